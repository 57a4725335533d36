// low_rank.hpp's loops for many rows, included by low_rank_body.hpp: two small matrix products over factors that were laid out once
// for all of them (Widened), in float32 whatever they are stored in.

namespace edgepeft::kernels::EDGEPEFT_ISA {
namespace {

// Rows and vectors side by side: of 32 registers of 16 floats, and of 16 (or of 32 of half a vector, on Arm) of 8.
constexpr int kW = EDGEPEFT_WIDTH, kSideRows = kW >= 16 ? 8 : 4;
constexpr int kHalf = 8;  // columns of A are a multiple of this
constexpr int kPanelVectors = kW >= 16 ? 3 : 2;
constexpr size_t kPanel = kPanelVectors * kW;

// Whether A can be read as it lies.
bool as_it_lies(const Problem& p) { return p.type == Type::kFloat && p.rank % kHalf == 0 && p.stride == p.rank; }

size_t panels_of(size_t columns) { return (columns + kPanel - 1) / kPanel; }

// Some rows of A, in float32 and with columns of zeros up to the stride.
template <typename T>
void widen_a(const Problem& p, Widened& found, size_t row, size_t end) {
  for (; row < end; ++row) {
    const T* from = static_cast<const T*>(p.a) + row * p.stride;
    float* to = found.of_a.data() + row * found.stride;
    size_t c = 0;
    for (; c + kW <= p.rank; c += kW) store<kW>(to + c, load<kW>(from + c));
    for (; c < p.rank; ++c) to[c] = one(from + c);
    for (; c < found.stride; ++c) to[c] = 0;
  }
}

// One panel of a part: its ranks' columns from n on, times their scales, and zeros behind the part's last column.
template <typename T>
void widen_panel(const Part& part, size_t n, float* to) {
  const size_t count = part.end - n < kPanel ? part.end - n : kPanel;
  for (size_t i = 0; i < part.ranks; ++i, to += kPanel) {
    const size_t at = part.rows == nullptr ? i : part.rows[i];
    const T* from = static_cast<const T*>(part.b) + at * part.stride + (n - part.begin);
    const float scale = part.scale == nullptr ? 1.0f : part.scale[i];
    size_t c = 0;
    for (; c + kW <= count; c += kW) store<kW>(to + c, load<kW>(from + c) * scale);
    for (; c < count; ++c) to[c] = one(from + c) * scale;
    for (; c < kPanel; ++c) to[c] = 0;
  }
}

template <typename T>
void widen_typed(const Problem& p, Widened& found, size_t piece) {
  if (!as_it_lies(p)) widen_a<T>(p, found, p.in * piece / kPieces, p.in * (piece + 1) / kPieces);
  size_t panels = 0, number = 0;
  for (const Widened::Part& part : found.parts) panels += panels_of(part.end - part.begin);
  const size_t first = panels * piece / kPieces, end = panels * (piece + 1) / kPieces;
  for (size_t i = 0; i < found.parts.size(); ++i) {
    const Part& part = p.parts[i];
    float* to = found.of_b.data() + found.parts[i].b;
    for (size_t n = part.begin; n < part.end; n += kPanel, ++number, to += kPanel * part.ranks)
      if (number >= first && number < end) widen_panel<T>(part, n, to);
  }
}

// f(0), f(1), ... with numbers that are known when it is compiled: sums in an array then stay in registers.
#define EDGEPEFT_INLINE __attribute__((always_inline))
template <typename F, size_t... I>
EDGEPEFT_INLINE inline void each_of(const F& f, std::index_sequence<I...>) {
  (f(std::integral_constant<size_t, I>{}), ...);
}
template <size_t COUNT, typename F>
EDGEPEFT_INLINE inline void each(const F& f) {
  each_of(f, std::make_index_sequence<COUNT>{});
}

// h = x A for ROWS rows and COUNT vectors of A's columns.
template <int N, int ROWS, int COUNT>
void side_down(const float* x, size_t in, const float* a, size_t stride, float* h) {
  V<N> sums[ROWS * COUNT];
  each<ROWS * COUNT>([&](auto i) EDGEPEFT_INLINE { sums[i] = V<N>{}; });
  for (size_t k = 0; k < in; ++k, ++x, a += stride) {
    V<N> factor[COUNT];
    each<COUNT>([&](auto v) EDGEPEFT_INLINE { factor[v] = load<N>(a + v * N); });
    each<ROWS>([&](auto r) EDGEPEFT_INLINE {
      const V<N> mine = x[r * in] - V<N>{};
      each<COUNT>([&](auto v) EDGEPEFT_INLINE { sums[r * COUNT + v] += mine * factor[v]; });
    });
  }
  each<ROWS * COUNT>([&](auto i) EDGEPEFT_INLINE { store<N>(h + i / COUNT * stride + i % COUNT * N, sums[i]); });
}

// Asks for a cache line that is read and written soon; beyond the end of the memory it does nothing.
inline void soon_written(uintptr_t at) { __builtin_prefetch(reinterpret_cast<const void*>(at), 1, 3); }

// to = from + h B for ROWS rows and one panel.
template <int ROWS>
void side_up(const float* from, float* to, size_t out, const float* panel, size_t ranks, const float* h, size_t stride) {
  constexpr int COUNT = kPanelVectors;
  V<kW> sums[ROWS * COUNT];
  each<ROWS * COUNT>([&](auto i) EDGEPEFT_INLINE { sums[i] = load<kW>(from + i / COUNT * out + i % COUNT * kW); });
  // The next panel's columns of each row are asked for: rows lie apart, so the processor does not foresee them.
  each<ROWS * COUNT>([&](auto i) EDGEPEFT_INLINE {
    soon_written(reinterpret_cast<uintptr_t>(from) + (i / COUNT * out + (i % COUNT + COUNT) * kW) * sizeof(float));
  });
  for (size_t i = 0; i < ranks; ++i, ++h, panel += kPanel) {
    V<kW> factor[COUNT];
    each<COUNT>([&](auto v) EDGEPEFT_INLINE { factor[v] = load<kW>(panel + v * kW); });
    each<ROWS>([&](auto r) EDGEPEFT_INLINE {
      const V<kW> mine = h[r * stride] - V<kW>{};
      each<COUNT>([&](auto v) EDGEPEFT_INLINE { sums[r * COUNT + v] += mine * factor[v]; });
    });
  }
  each<ROWS * COUNT>([&](auto i) EDGEPEFT_INLINE { store<kW>(to + i / COUNT * out + i % COUNT * kW, sums[i]); });
}

// The same for the last columns of a part, fewer than a panel.
template <int ROWS>
void side_up_rest(const float* from, float* to, size_t out, size_t count, const float* panel, size_t ranks, const float* h, size_t stride) {
  float room[ROWS * kPanel] = {};
  for (int r = 0; r < ROWS; ++r) std::memcpy(room + r * kPanel, from + r * out, count * sizeof(float));
  side_up<ROWS>(room, room, kPanel, panel, ranks, h, stride);
  for (int r = 0; r < ROWS; ++r) std::memcpy(to + r * out, room + r * kPanel, count * sizeof(float));
}

template <int ROWS>
void wide_down(const Problem& p, const Widened& wide, size_t row) {
  const float* x = p.x + row * p.in;
  float* h = p.scratch + row * wide.stride;
  size_t c = 0;
  if (kW >= 16)
    for (; c + 3 * kW <= wide.stride; c += 3 * kW) side_down<kW, ROWS, 3>(x, p.in, wide.a + c, wide.stride, h + c);
  for (; c + 2 * kW <= wide.stride; c += 2 * kW) side_down<kW, ROWS, 2>(x, p.in, wide.a + c, wide.stride, h + c);
  for (; c + kW <= wide.stride; c += kW) side_down<kW, ROWS, 1>(x, p.in, wide.a + c, wide.stride, h + c);
  if (kW > kHalf && c < wide.stride) side_down<kHalf, ROWS, 1>(x, p.in, wide.a + c, wide.stride, h + c);
}

template <int ROWS>
void wide_up(const Problem& p, size_t row, size_t n, size_t end, const float* panel, size_t ranks, const float* h, size_t stride) {
  const float* from = p.y + row * p.out + n;
  float* to = p.result + row * p.out + n;
  h += row * stride;
  if (end - n >= kPanel) {
    side_up<ROWS>(from, to, p.out, panel, ranks, h, stride);
  } else {
    side_up_rest<ROWS>(from, to, p.out, end - n, panel, ranks, h, stride);
  }
}

}  // namespace

void plan_wide(const Problem& p, Widened& found) {
  found.stride = (p.rank + kHalf - 1) / kHalf * kHalf;
  if (!as_it_lies(p) && found.of_a.size() < p.in * found.stride) found.of_a.resize(p.in * found.stride);
  found.a = as_it_lies(p) ? static_cast<const float*>(p.a) : found.of_a.data();
  found.parts.clear();
  size_t size = 0;
  for (size_t number = 0; number < p.part_count; ++number) {
    const Part& part = p.parts[number];
    Widened::Part mine{part.begin, part.end, part.ranks, size, 0, nullptr};
    if (part.order != nullptr && part.ranks > 0) {
      mine.first = part.order[0];
      for (size_t i = 1; i < part.ranks; ++i)
        if (part.order[i] != mine.first + i) mine.order = part.order;
      if (mine.order != nullptr) mine.first = 0;
    }
    size += panels_of(part.end - part.begin) * kPanel * part.ranks;
    found.parts.push_back(mine);
  }
  if (found.of_b.size() < size) found.of_b.resize(size);
}

void widen(const Problem& p, Widened& found, size_t piece) {
  switch (p.type) {
    case Type::kFloat: return widen_typed<float>(p, found, piece);
    case Type::kHalf: return widen_typed<uint16_t>(p, found, piece);
    case Type::kInt8: return widen_typed<int8_t>(p, found, piece);
  }
}

// At most kTile rows.
void run_wide(const Problem& p, const Widened& wide) {
  size_t row = 0;
  for (; row + kSideRows <= p.rows; row += kSideRows) wide_down<kSideRows>(p, wide, row);
  for (; row + 2 <= p.rows; row += 2) wide_down<2>(p, wide, row);
  for (; row < p.rows; ++row) wide_down<1>(p, wide, row);
  for (const Widened::Part& part : wide.parts) {
    if (part.ranks == 0) {
      if (p.result != p.y)
        for (row = 0; row < p.rows; ++row) {
          const size_t place = row * p.out + part.begin;
          std::memcpy(p.result + place, p.y + place, (part.end - part.begin) * sizeof(float));
        }
      continue;
    }
    const float* h = p.scratch + part.first;
    size_t stride = wide.stride;
    if (part.order != nullptr) {
      float* mine = p.scratch + kTile * wide.stride;
      for (row = 0; row < p.rows; ++row)
        for (size_t i = 0; i < part.ranks; ++i) mine[row * part.ranks + i] = p.scratch[row * wide.stride + part.order[i]];
      h = mine, stride = part.ranks;
    }
    const float* panel = wide.of_b.data() + part.b;
    for (size_t n = part.begin; n < part.end; n += kPanel, panel += kPanel * part.ranks) {
      row = 0;
      for (; row + kSideRows <= p.rows; row += kSideRows) wide_up<kSideRows>(p, row, n, part.end, panel, part.ranks, h, stride);
      for (; row + 2 <= p.rows; row += 2) wide_up<2>(p, row, n, part.end, panel, part.ranks, h, stride);
      for (; row < p.rows; ++row) wide_up<1>(p, row, n, part.end, panel, part.ranks, h, stride);
    }
  }
}

}  // namespace edgepeft::kernels::EDGEPEFT_ISA
