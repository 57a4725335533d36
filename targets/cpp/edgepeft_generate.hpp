// Greedy generation with a causal language model's bundle: one sequence, its key/value cache, any adapter.
//
//   edgepeft::Model model("bundle/onnx/model_q4.onnx");
//   model.load("support", "bundle/adapters/support.onnx_adapter");
//   edgepeft::Generator generator(model);
//   model.use("support");                                                    // or "" for the base
//   auto answer = generator.generate(prompt, /*max_new_tokens=*/64, /*stops=*/{2});
//
// A prompt is token ids as the bundle's chat template and tokenizer.json give them, `stops` are the ids of
// generation_config.json's eos_token_id. A cache belongs to the adapter that filled it: begin again after a swap.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <set>
#include <stdexcept>

#include "edgepeft.hpp"
#include "edgepeft_draft.hpp"

namespace edgepeft {

// A model's logits are NaN or infinite, so they choose no token.
struct NonFinite : std::runtime_error {
  NonFinite() : std::runtime_error("the model's logits are not finite numbers") {}
};

class Generator {
 public:
  // Reads from the graph's own inputs how it keeps its cache. Throws where it is no decoder of the kind that bundles hold.
  explicit Generator(Model& model) : model_(model) {
    Ort::AllocatorWithDefaultOptions allocator;
    auto& session = model.session();
    for (size_t i = 0; i < session.GetInputCount(); ++i) {
      std::string name = session.GetInputNameAllocated(i, allocator).get();
      if (name.rfind(kPast, 0) == 0) {
        auto type = session.GetInputTypeInfo(i);  // what follows is a view of it
        auto info = type.GetTensorTypeAndShapeInfo();
        auto shape = info.GetShape();  // [batch, heads, sequence, head_dim]
        if (shape.size() != 4 || shape[1] < 1 || shape[3] < 1) throw std::runtime_error(name + " is no cache of four dimensions");
        cache_.push_back({name, "present." + name.substr(std::strlen(kPast)), shape[1], shape[3], info.GetElementType(), {}});
      } else {
        fed_.insert(name);
      }
    }
    for (size_t i = 0; i < session.GetOverridableInitializerCount(); ++i) {
      std::string name = session.GetOverridableInitializerNameAllocated(i, allocator).get();
      if (name == "logits_from") fed_.insert(name);  // a run then computes the logits of its last tokens only
    }
    for (const auto& name : fed_)
      if (name != "input_ids" && name != "attention_mask" && name != "position_ids" && name != "logits_from")
        throw std::runtime_error("generation does not know the graph's input " + name);
    if (cache_.empty() || fed_.count("input_ids") == 0) throw std::runtime_error("the graph has no key/value cache");
    shared_ = shares();
  }

  // The likeliest token, then the likeliest after that: at most `max_new_tokens`, ending with one of `stops` where it comes.
  // `on_token` is called with each as it comes. With `draft` on, drafts are looked up in prompt and answer, and several tokens are
  // verified in one run: the same answer (up to rounding), sooner where it repeats what was there.
  std::vector<int64_t> generate(const std::vector<int64_t>& prompt, int64_t max_new_tokens, const std::set<int64_t>& stops,
                                const std::function<void(int64_t)>& on_token = [](int64_t) {}, bool draft = false) {
    if (draft) return drafted(prompt, max_new_tokens, stops, on_token);
    std::vector<int64_t> answer;
    auto logits = begin(prompt, max_new_tokens);
    while (true) {
      answer.push_back(best(logits));
      on_token(answer.back());
      if (static_cast<int64_t>(answer.size()) >= max_new_tokens || stops.count(answer.back())) return answer;
      logits = step(answer.back());
    }
  }

  // Reads a prompt with the adapter in use and room for `more` tokens; the logits after it, one for each token of the vocabulary.
  std::vector<float> begin(const std::vector<int64_t>& prompt, int64_t more) {
    if (prompt.empty()) throw std::invalid_argument("the prompt has no tokens");
    width_ = 0;
    const Tensors* states = model_.states();
    if (states != nullptr) width_ = states->at(state(cache_[0])).GetTensorTypeAndShapeInfo().GetShape()[2];
    capacity_ = shared_ ? width_ + static_cast<int64_t>(prompt.size()) + more : width_;
    for (auto& each : cache_) {
      allocate(each, capacity_);
      if (states != nullptr) copy(states->at(state(each)), each);
    }
    std::vector<float> logits;
    for (size_t start = 0; start < prompt.size(); start += kChunk)
      logits = run({prompt.begin() + start, prompt.begin() + std::min(prompt.size(), start + kChunk)});
    return logits;
  }

  // Feeds one token; the logits after it.
  std::vector<float> step(int64_t token) { return run({token}); }

  // Feeds several tokens; the logits after each.
  std::vector<std::vector<float>> verify(const std::vector<int64_t>& tokens) {
    run(tokens, 0);
    std::vector<std::vector<float>> rows;
    for (size_t i = 0; i < tokens.size(); ++i) rows.push_back(row_of(logits_, tokens.size() - 1 - i));
    return rows;
  }

  // Forgets the last `count` tokens that were fed.
  void forget(int64_t count) {
    if (count <= 0) return;
    if (count > width_) throw std::invalid_argument("fewer tokens were fed");
    width_ -= count;
    if (shared_) return;
    for (auto& each : cache_) {  // of each head the first `width_` places
      const size_t place = each.head_dim * each.element(), places = each.value.GetTensorTypeAndShapeInfo().GetShape()[2];
      const auto* from = static_cast<const uint8_t*>(each.value.GetTensorRawData());
      std::vector<uint8_t> kept(each.heads * width_ * place);
      for (int64_t head = 0; head < each.heads; ++head)
        std::memcpy(kept.data() + head * width_ * place, from + head * places * place, width_ * place);
      each.buffer = std::move(kept);
      each.value = over(each, width_);
    }
  }

  static int64_t best(const std::vector<float>& logits) {
    size_t found = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      if (std::isnan(logits[i])) throw NonFinite();  // no comparison would find it
      if (logits[i] > logits[found]) found = i;
    }
    if (!std::isfinite(logits.at(found))) throw NonFinite();
    return static_cast<int64_t>(found);
  }

 private:
  struct Cache {
    std::string past, present;
    int64_t heads, head_dim;
    ONNXTensorElementDataType type;
    std::vector<uint8_t> buffer;         // [1, heads, capacity, head_dim]
    Ort::Value value{nullptr};           // over the buffer, or what the last run returned
    size_t element() const {
      if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8) return 1;  // rounded inside the graph, which has the scales
      return type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 ? 2 : 4;
    }
  };

  static constexpr const char* kPast = "past_key_values.";
  static constexpr size_t kChunk = 512;  // of a prompt, so that attention scores stay small

  std::vector<int64_t> drafted(const std::vector<int64_t>& prompt, int64_t max_new_tokens, const std::set<int64_t>& stops,
                               const std::function<void(int64_t)>& on_token) {
    Drafter drafter;
    for (int64_t token : prompt) drafter.add(token);
    std::vector<int64_t> answer;
    auto take = [&](const std::vector<float>& logits) {
      answer.push_back(best(logits));
      drafter.add(answer.back());
      on_token(answer.back());
      return static_cast<int64_t>(answer.size()) >= max_new_tokens || stops.count(answer.back()) > 0;
    };
    bool ended = take(begin(prompt, max_new_tokens));
    while (!ended) {
      const size_t had = answer.size();
      // The last token is never fed, and a draft is followed by one token that it did not foresee.
      const auto draft = drafter.draft(costs_, static_cast<size_t>(max_new_tokens) - had - 1);
      std::vector<int64_t> tokens = {answer.back()};
      tokens.insert(tokens.end(), draft.begin(), draft.end());
      const auto start = std::chrono::steady_clock::now();
      const auto rows = verify(tokens);
      costs_.add(tokens.size(), std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      for (size_t i = 0; i < rows.size(); ++i) {
        ended = take(rows[i]);
        if (ended || i == draft.size() || answer.back() != draft[i]) break;
      }
      const std::vector<int64_t> chosen(answer.begin() + had, answer.end());
      forget(static_cast<int64_t>(tokens.size() - chosen.size()));
      drafter.judge(chosen);
    }
    return answer;
  }

  static std::string state(const Cache& cache) { return "prefix." + cache.past.substr(std::strlen(kPast)); }

  Ort::Value over(Cache& cache, int64_t places) {
    const int64_t shape[] = {1, cache.heads, places, cache.head_dim};
    return Ort::Value::CreateTensor(memory_, cache.buffer.data(), cache.buffer.size(), shape, 4, cache.type);
  }

  void allocate(Cache& cache, int64_t places) {
    cache.buffer.assign(cache.heads * places * cache.head_dim * cache.element(), 0);
    cache.value = over(cache, places);
  }

  // An adapter's states, [1, heads, length, head_dim] in float32, to the front of a cache.
  static void copy(const Ort::Value& states, Cache& cache) {
    auto shape = states.GetTensorTypeAndShapeInfo().GetShape();
    if (shape.size() != 4 || shape[1] != cache.heads || shape[3] != cache.head_dim)
      throw std::runtime_error("the adapter's states do not fit " + cache.past);
    if (cache.element() == 1)
      throw std::runtime_error("the adapter puts states in floats before the sequence, and this variant's cache is int8");
    const float* from = states.GetTensorData<float>();
    const int64_t block = shape[2] * cache.head_dim;
    const size_t places = cache.buffer.size() / (cache.heads * cache.head_dim * cache.element());
    for (int64_t head = 0; head < cache.heads; ++head, from += block) {
      uint8_t* to = cache.buffer.data() + head * places * cache.head_dim * cache.element();
      if (cache.element() == 4) {
        std::memcpy(to, from, block * 4);
      } else {
        std::transform(from, from + block, reinterpret_cast<Ort::Float16_t*>(to), [](float x) { return Ort::Float16_t(x); });
      }
    }
  }

  std::vector<float> run(const std::vector<int64_t>& tokens) {
    run(tokens, static_cast<int64_t>(tokens.size()) - 1);
    return row_of(logits_, 0);
  }

  // Leaves in `logits_` those after each token from the `first` on, where the graph can leave others out.
  void run(const std::vector<int64_t>& tokens, int64_t first) {
    const int64_t count = tokens.size();
    std::map<std::string, std::vector<int64_t>> fed = {{"input_ids", tokens}, {"attention_mask", {}}};
    fed["attention_mask"].assign(width_ + count, 1);
    for (int64_t i = 0; i < count; ++i) fed["position_ids"].push_back(width_ + i);
    fed["logits_from"] = {first};
    std::vector<const char*> names, wanted = {"logits"};
    std::vector<Ort::Value> inputs, outputs;
    outputs.emplace_back(nullptr);  // allocated by the run
    for (auto& [name, data] : fed) {
      if (fed_.count(name) == 0) continue;
      const int64_t shape[] = {1, static_cast<int64_t>(data.size())};
      const bool flat = name == "logits_from";
      names.push_back(name.c_str());
      inputs.push_back(Ort::Value::CreateTensor<int64_t>(memory_, data.data(), data.size(), flat ? shape + 1 : shape, flat ? 1 : 2));
    }
    for (auto& each : cache_) {
      names.push_back(each.past.c_str());
      inputs.push_back(std::move(each.value));
      wanted.push_back(each.present.c_str());
      // One buffer is past and present where the graph writes into it; others return a cache that is longer.
      outputs.push_back(shared_ ? over(each, capacity_) : Ort::Value(nullptr));
    }
    const size_t own = inputs.size();
    model_.add_slots(names, inputs);
    model_.session().Run(model_.run_options(), names.data(), inputs.data(), inputs.size(), wanted.data(), outputs.data(), wanted.size());
    for (size_t i = 0; i < cache_.size(); ++i)
      cache_[i].value = std::move(shared_ ? inputs[own - cache_.size() + i] : outputs[i + 1]);
    width_ += count;
    logits_ = std::move(outputs[0]);
  }

  // The last row of logits, or that many rows before it.
  static std::vector<float> row_of(const Ort::Value& logits, size_t before) {
    auto info = logits.GetTensorTypeAndShapeInfo();
    const size_t size = info.GetShape().back(), from = info.GetElementCount() - (before + 1) * size;
    if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16) {
      const float* data = logits.GetTensorData<float>() + from;
      return {data, data + size};
    }
    const auto* data = logits.GetTensorData<Ort::Float16_t>() + from;
    std::vector<float> row(size);
    std::transform(data, data + size, row.begin(), [](Ort::Float16_t x) { return x.ToFloat(); });
    return row;
  }

  // Whether the graph takes a cache longer than what is filled and writes into it (GroupQueryAttention): one run tells.
  bool shares() {
    Ort::RunOptions quiet;
    quiet.SetRunLogSeverityLevel(4);  // a failure is an answer here
    int64_t token = 0, one = 1, position = 0, from = 0;
    const int64_t shape[] = {1, 1};
    std::vector<const char*> names;
    std::vector<Ort::Value> inputs;
    for (const auto& name : fed_) {
      int64_t* data = name == "attention_mask" ? &one : name == "position_ids" ? &position : name == "logits_from" ? &from : &token;
      names.push_back(name.c_str());
      inputs.push_back(Ort::Value::CreateTensor<int64_t>(memory_, data, 1, shape, name == "logits_from" ? 1 : 2));
    }
    const int64_t room = 4;
    for (auto& each : cache_) {
      allocate(each, room);
      names.push_back(each.past.c_str());
      inputs.push_back(std::move(each.value));
    }
    const char* present = cache_[0].present.c_str();
    try {
      auto found = model_.session().Run(quiet, names.data(), inputs.data(), inputs.size(), &present, 1);
      return found[0].GetTensorTypeAndShapeInfo().GetShape()[2] == room;
    } catch (const Ort::Exception&) {  // a graph that concatenates may refuse the mask
      return false;
    }
  }

  Model& model_;
  Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<Cache> cache_;
  std::set<std::string> fed_;  // the graph's inputs beside the cache
  Ort::Value logits_{nullptr};  // of the last run
  RunCosts costs_;
  bool shared_ = false;
  int64_t width_ = 0;          // places of the cache that are filled
  int64_t capacity_ = 0;       // and that there are, where one buffer is past and present
};

}  // namespace edgepeft
