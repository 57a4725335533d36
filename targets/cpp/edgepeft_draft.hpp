// Drafts by prompt lookup: what followed the last few tokens where they stood before is likely to follow again.
//
// Several tokens are then run at once, and a draft is no longer than what such a run costs on this host, which the runs themselves
// measure. The rules are those of edgepeft/runtime/generation/draft.py. Used by Generator::generate with `draft` on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

namespace edgepeft {

// What a run over 1, 2, 3, ... tokens costs here, by that of one.
class RunCosts {
 public:
  // A run over `tokens` took `seconds`. The first over a number of tokens does not count: memory is planned then.
  void add(size_t tokens, double seconds) {
    auto& each = seen_[tokens];
    ++runs_;
    if (each.runs++ == 0) return;
    each.seconds.push_back(seconds);
    if (each.seconds.size() > kKept) each.seconds.erase(each.seconds.begin());
    each.last = runs_;
  }

  // Of `tokens` tokens; between what was measured lies a line, and beyond the last the slope so far goes on.
  double of(size_t tokens) const {
    std::map<size_t, double> known = {{1, 1.0}};
    const auto one = seen_.find(1);
    if (one != seen_.end() && !one->second.seconds.empty())
      for (const auto& [count, each] : seen_)
        if (count > 1 && !each.seconds.empty() && runs_ - each.last < kStale)
          known[count] = std::max(1.0, median(each.seconds) / median(one->second.seconds));
    double least = known.rbegin()->second;  // a longer run costs no less than a shorter one
    for (auto each = known.rbegin(); each != known.rend(); ++each) each->second = least = std::min(least, each->second);
    const auto above = known.upper_bound(tokens);
    const auto below = std::prev(above);
    if (above != known.end())
      return below->second + (above->second - below->second) * (tokens - below->first) / (above->first - below->first);
    const double slope = below->first > 1 ? (below->second - 1) / (below->first - 1) : kAssumedSlope;
    return below->second + slope * (tokens - below->first);
  }

 private:
  static constexpr size_t kKept = 8, kStale = 256;
  static constexpr double kAssumedSlope = 0.15;
  struct Seen {
    size_t runs = 0, last = 0;
    std::vector<double> seconds;
  };

  static double median(std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
    return values[values.size() / 2];
  }

  std::map<size_t, Seen> seen_;
  size_t runs_ = 0;
};

// Looks up what may follow one sequence. `add` each token as it is chosen, the prompt's first.
class Drafter {
 public:
  static constexpr size_t kLongest = 15;

  void add(int64_t token) {
    for (size_t size : {4, 3, 2})
      if (tokens_.size() >= size) places_[{tokens_.end() - size, tokens_.end()}] = tokens_.size();
    tokens_.push_back(token);
  }

  // What may follow, as much of it as is worth a run; at most `most` tokens.
  std::vector<int64_t> draft(const RunCosts& costs, size_t most) {
    propose();
    const double share = right_[match_] / seen_[match_];
    size_t best = 0;
    double speed = 1.0, tokens = 1.0, likely = 1.0;
    for (size_t length = 1; length <= std::min(most, proposal_.size()); ++length) {
      likely *= share;
      tokens += likely;
      if (tokens / costs.of(length + 1) > speed) best = length, speed = tokens / costs.of(length + 1);
    }
    return {proposal_.begin(), proposal_.begin() + best};
  }

  // Learns from what was chosen how good the last proposal was, whether it was run or not.
  void judge(const std::vector<int64_t>& chosen) {
    for (size_t i = 0; i < std::min(chosen.size(), proposal_.size()); ++i) {
      const bool same = proposal_[i] == chosen[i];
      seen_[match_] = seen_[match_] * 0.9 + 1;
      right_[match_] = right_[match_] * 0.9 + same;
      if (!same) return;
    }
  }

 private:
  void propose() {
    proposal_.clear();
    for (size_t size : {4, 3, 2}) {
      if (tokens_.size() < size) continue;
      const auto found = places_.find({tokens_.end() - size, tokens_.end()});
      if (found == places_.end()) continue;
      const size_t place = found->second, period = tokens_.size() - place;
      while (proposal_.size() < kLongest)  // a text that repeats itself goes on as it began
        proposal_.push_back(proposal_.size() < period ? tokens_[place + proposal_.size()] : proposal_[proposal_.size() - period]);
      const bool passage = size == 4 && place >= 8 && std::equal(tokens_.end() - 8, tokens_.end(), tokens_.begin() + place - 8);
      match_ = passage ? 8 : size;
      return;
    }
  }

  std::vector<int64_t> tokens_, proposal_;
  std::map<std::vector<int64_t>, size_t> places_;
  size_t match_ = 2;
  std::map<size_t, double> right_ = {{2, 1.6}, {3, 2.4}, {4, 2.8}, {8, 3.4}};  // shares of 0.4, 0.6, 0.7 and 0.85 before any is seen
  std::map<size_t, double> seen_ = {{2, 4.0}, {3, 4.0}, {4, 4.0}, {8, 4.0}};
};

}  // namespace edgepeft
