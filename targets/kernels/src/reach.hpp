// The parts of a packed matrix from what is known of zeros in B: LowRankAdd's input `reach`.
#pragma once

#include <vector>

#include "low_rank.hpp"

namespace edgepeft::kernels {

// What a rank's row of B reaches: one part of a packed matrix (0, 1, ...), all of it, or nothing (a row of zeros).
constexpr int32_t kWhole = -1, kNothing = -2;

// The lists that parts point into.
struct Reached {
  std::vector<Part> parts;
  std::vector<uint32_t> order;
  std::size_t rank = 0;  // the ranks behind it reach nothing: they are another row's, in a batch of several adapters
};

// Fills `found` for B [rank, out]. `reach` is [rank] or none: every row of B reaches all outputs. `offsets` are where each part
// begins (part p ends where p + 1 begins, the last at `out`).
inline void find_parts(const void* b, Type type, std::size_t rank, std::size_t out, const int32_t* reach, const int64_t* offsets,
                       std::size_t count, Reached& found) {
  found.rank = rank;
  while (found.rank > 0 && reach != nullptr && reach[found.rank - 1] == kNothing) --found.rank;
  if (reach == nullptr || count < 1) count = 1;
  found.parts.assign(count, {});
  found.order.resize(count * found.rank);
  for (std::size_t p = 0; p < count; ++p) {
    Part& part = found.parts[p];
    part.begin = p == 0 ? 0 : offsets[p];
    part.end = p + 1 == count ? out : offsets[p + 1];
    part.b = static_cast<const char*>(b) + part.begin * size_of(type);
    part.stride = out;
    uint32_t* order = found.order.data() + p * found.rank;
    for (std::size_t r = 0; r < found.rank; ++r)
      if (reach == nullptr || reach[r] == kWhole || reach[r] == static_cast<int32_t>(p)) order[part.ranks++] = r;
    if (part.ranks < found.rank) part.order = part.rows = order;
  }
}

}  // namespace edgepeft::kernels
