// The loops of low_rank.hpp, compiled once for each instruction set: EDGEPEFT_ISA names the namespace, EDGEPEFT_WIDTH the floats of
// its widest vector. Written in the vector extensions of GCC and Clang, which become the instructions that the flags allow.
#include <cstring>
#include <type_traits>
#include <utility>

#include "low_rank.hpp"

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace edgepeft::kernels::EDGEPEFT_ISA {
namespace {

using std::size_t;

template <int N>
struct Vector {
  typedef float type __attribute__((vector_size(N * sizeof(float))));
};
template <int N>
using V = typename Vector<N>::type;

// A float16's value; on processors without an instruction for it by its bits (subnormals, infinities and NaN included).
inline float from_half(uint16_t bits) {
#if defined(__F16C__)
  return _cvtsh_ss(bits);
#elif defined(__ARM_NEON)
  __fp16 value;
  std::memcpy(&value, &bits, 2);
  return value;
#else
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, rest = bits & 0x7fff;
  float value;
  uint32_t word;
  if (rest >= 0x7c00) {
    word = 0x7f800000 | (rest & 0x3ff) << 13;
    std::memcpy(&value, &word, 4);
  } else if (rest >= 0x400) {
    word = (rest << 13) + (112u << 23);
    std::memcpy(&value, &word, 4);
  } else {
    value = float(rest) * 0x1p-24f;
  }
  std::memcpy(&word, &value, 4);
  word |= sign;
  std::memcpy(&value, &word, 4);
  return value;
#endif
}

template <int N>
inline V<N> load(const float* from) {
  V<N> found;
  std::memcpy(&found, from, sizeof(found));
  return found;
}

template <int N>
inline V<N> load(const uint16_t* from) {
  V<N> found;
#if defined(__AVX512F__)
  if constexpr (N == 16) {
    const __m512 wide = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    std::memcpy(&found, &wide, sizeof(found));
    return found;
  }
#endif
#if defined(__F16C__)
  if constexpr (N == 8) {
    const __m256 wide = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
    std::memcpy(&found, &wide, sizeof(found));
    return found;
  }
#elif defined(__ARM_NEON)
  if constexpr (N % 4 == 0) {
    for (int i = 0; i < N; i += 4) {
      const float32x4_t wide = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + i)));
      std::memcpy(reinterpret_cast<float*>(&found) + i, &wide, sizeof(wide));
    }
    return found;
  }
#endif
  for (int i = 0; i < N; ++i) found[i] = from_half(from[i]);
  return found;
}

template <int N>
inline V<N> load(const int8_t* from) {
  V<N> found;
#if defined(__AVX512F__)
  if constexpr (N == 16) {
    const __m512 wide = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
    std::memcpy(&found, &wide, sizeof(found));
    return found;
  }
#endif
#if defined(__AVX2__)
  if constexpr (N == 8) {
    const __m256 wide = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
    std::memcpy(&found, &wide, sizeof(found));
    return found;
  }
  if constexpr (N == 4) {
    int32_t four;
    std::memcpy(&four, from, 4);
    const __m128 wide = _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four)));
    std::memcpy(&found, &wide, sizeof(found));
    return found;
  }
#elif defined(__ARM_NEON)
  if constexpr (N % 8 == 0) {
    for (int i = 0; i < N; i += 8) {
      const int16x8_t words = vmovl_s8(vld1_s8(from + i));
      const float32x4_t low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(words))), high = vcvtq_f32_s32(vmovl_s16(vget_high_s16(words)));
      std::memcpy(reinterpret_cast<float*>(&found) + i, &low, sizeof(low));
      std::memcpy(reinterpret_cast<float*>(&found) + i + 4, &high, sizeof(high));
    }
    return found;
  }
#endif
  for (int i = 0; i < N; ++i) found[i] = from[i];
  return found;
}

inline float one(const float* from) { return *from; }
inline float one(const uint16_t* from) { return from_half(*from); }
inline float one(const int8_t* from) { return *from; }

template <int N>
inline void store(float* to, V<N> value) {
  std::memcpy(to, &value, sizeof(value));
}

// How far ahead of a single row's sums the bytes of A are asked for; B's a block of rows ahead. They come from far, and no stretch of them
// is long enough for the processor to foresee. Behind the last of B lies the next factor that is read (adapter.hpp).
constexpr size_t kAheadA = 4096;

// Asks for the cache lines of a vector or more that will be read soon; beyond the end of the factors it does nothing.
template <size_t BYTES>
inline void soon(uintptr_t from) {
  for (size_t line = 0; line < (BYTES + kLine - 1) / kLine; ++line) ask_for(from + line * kLine);
}

// h[row, c .. c + N * COUNT] of ROWS rows: the k of x runs outside, so A is read once and in its order.
template <int N, int COUNT, int ROWS, typename T>
void down_columns(const Problem& p, size_t row, size_t c) {
  // An addition waits for the one before it: eight sums side by side hide that, four where one row's A comes from memory.
  constexpr int SUMS = ROWS == 1 ? (COUNT == 1 ? 4 : COUNT == 2 ? 2 : 1) : ROWS * COUNT >= 8 ? 1 : 8 / (ROWS * COUNT);
  V<N> sums[SUMS][ROWS][COUNT] = {};
  const T* a = static_cast<const T*>(p.a) + c;
  const float* x = p.x + row * p.in;
  size_t k = 0;
  for (; k + SUMS <= p.in; k += SUMS) {
    if constexpr (ROWS == 1) soon<SUMS * COUNT * N * sizeof(T)>(reinterpret_cast<uintptr_t>(a + k * p.stride) + kAheadA);
    for (int s = 0; s < SUMS; ++s)
      for (int v = 0; v < COUNT; ++v) {
        const V<N> factor = load<N>(a + (k + s) * p.stride + v * N);
        for (int r = 0; r < ROWS; ++r) sums[s][r][v] += x[r * p.in + k + s] * factor;
      }
  }
  for (; k < p.in; ++k)
    for (int v = 0; v < COUNT; ++v) {
      const V<N> factor = load<N>(a + k * p.stride + v * N);
      for (int r = 0; r < ROWS; ++r) sums[0][r][v] += x[r * p.in + k] * factor;
    }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < COUNT; ++v) {
      V<N> sum = sums[0][r][v];
      for (int s = 1; s < SUMS; ++s) sum += sums[s][r][v];
      store<N>(p.scratch + r * p.rank + c + v * N, sum);
    }
}

template <int ROWS, typename T>
void down_single(const Problem& p, size_t row, size_t c) {
  float sums[ROWS] = {};
  const T* a = static_cast<const T*>(p.a) + c;
  const float* x = p.x + row * p.in;
  for (size_t k = 0; k < p.in; ++k) {
    const float factor = one(a + k * p.stride);
    for (int r = 0; r < ROWS; ++r) sums[r] += x[r * p.in + k] * factor;
  }
  for (int r = 0; r < ROWS; ++r) p.scratch[r * p.rank + c] = sums[r];
}

// The first `rank` columns of x A for ROWS rows.
template <int ROWS, typename T>
void down(const Problem& p, size_t row) {
  const size_t rank = p.rank;
  size_t c = 0;
#if EDGEPEFT_WIDTH >= 16
  if (rank % 16 == 0) {
    for (; c + 32 <= rank; c += 32) down_columns<16, 2, ROWS, T>(p, row, c);
    for (; c + 16 <= rank; c += 16) down_columns<16, 1, ROWS, T>(p, row, c);
  }
#endif
  for (; c + 24 <= rank; c += 24) down_columns<8, 3, ROWS, T>(p, row, c);
  for (; c + 16 <= rank; c += 16) down_columns<8, 2, ROWS, T>(p, row, c);
  for (; c + 8 <= rank; c += 8) down_columns<8, 1, ROWS, T>(p, row, c);
  for (; c + 4 <= rank; c += 4) down_columns<4, 1, ROWS, T>(p, row, c);
  for (; c < rank; ++c) down_single<ROWS, T>(p, row, c);
}

// result = y + h B for ROWS rows and N * COUNT outputs from n on.
template <int N, int COUNT, int ROWS, typename T>
inline void up_columns(const Problem& p, const Part& part, size_t row, size_t n, const float* h) {
  V<N> sums[ROWS][COUNT];
  const T* b = static_cast<const T*>(part.b) + (n - part.begin);
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < COUNT; ++v) sums[r][v] = load<N>(p.y + (row + r) * p.out + n + v * N);
  auto add = [&](size_t i, size_t at) {
    for (int v = 0; v < COUNT; ++v) {
      const V<N> factor = load<N>(b + at * part.stride + v * N);
      for (int r = 0; r < ROWS; ++r) sums[r][v] += h[r * p.rank + i] * factor;
    }
  };
  if (part.rows == nullptr)
    for (size_t i = 0; i < part.ranks; ++i) add(i, i);
  else
    for (size_t i = 0; i < part.ranks; ++i) add(i, part.rows[i]);
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < COUNT; ++v) store<N>(p.result + (row + r) * p.out + n + v * N, sums[r][v]);
}

// result = from + h B for one row, some ranks and the columns of whole vectors; B's rows are read side by side, each in its order.
template <int RANKS, typename T>
void up_ranks(const Part& part, size_t first, const float* h, const float* from, float* to) {
  constexpr int W = EDGEPEFT_WIDTH;
  const T* b[RANKS];
  V<W> factor[RANKS];
  for (int r = 0; r < RANKS; ++r) {
    const size_t at = part.rows == nullptr ? first + r : part.rows[first + r];
    b[r] = static_cast<const T*>(part.b) + at * part.stride;
    factor[r] = h[first + r] - V<W>{};
  }
  for (size_t n = 0; n + W <= part.end - part.begin; n += W) {
    if (n * sizeof(T) % kLine == 0)
      for (int r = 0; r < RANKS; ++r) ask_for(reinterpret_cast<uintptr_t>(b[r] + n) + RANKS * part.stride * sizeof(T));
    V<W> sum = load<W>(from + n);
    for (int r = 0; r < RANKS; ++r) sum += factor[r] * load<W>(b[r] + n);
    store<W>(to + n, sum);
  }
}

// The same for one row, whose factors come from far: in stretches that the processor foresees.
template <typename T>
void up_single(const Problem& p, const Part& part, size_t row, const float* h) {
  const float* from = p.y + row * p.out + part.begin;
  float* to = p.result + row * p.out + part.begin;
  size_t i = 0;
  for (; i + 8 <= part.ranks; i += 8, from = to) up_ranks<8, T>(part, i, h, from, to);
  for (; i + 4 <= part.ranks; i += 4, from = to) up_ranks<4, T>(part, i, h, from, to);
  for (; i < part.ranks; ++i, from = to) up_ranks<1, T>(part, i, h, from, to);
}

template <int ROWS, typename T>
void up(const Problem& p, const Part& part, size_t row, const float* h) {
  // As many sums as there are registers for: 32 of 16 floats, 16 of 8.
  constexpr int W = EDGEPEFT_WIDTH, COUNT = ROWS == 8 && W < 16 ? 1 : 2;
  size_t n = part.begin;
  if constexpr (ROWS == 1) {
    up_single<T>(p, part, row, h);
    n += (part.end - part.begin) / W * W;
  } else {
    for (; n + W * COUNT <= part.end; n += W * COUNT) up_columns<W, COUNT, ROWS, T>(p, part, row, n, h);
    for (; n + W <= part.end; n += W) up_columns<W, 1, ROWS, T>(p, part, row, n, h);
  }
  for (; n < part.end; ++n)
    for (int r = 0; r < ROWS; ++r) {
      float sum = p.y[(row + r) * p.out + n];
      for (size_t i = 0; i < part.ranks; ++i) {
        const size_t at = part.rows == nullptr ? i : part.rows[i];
        sum += h[r * p.rank + i] * one(static_cast<const T*>(part.b) + at * part.stride + (n - part.begin));
      }
      p.result[(row + r) * p.out + n] = sum;
    }
}

template <int ROWS, typename T>
void rows_of(const Problem& p, size_t row) {
  down<ROWS, T>(p, row);
  for (size_t number = 0; number < p.part_count; ++number) {
    const Part& part = p.parts[number];
    if (part.ranks == 0) {
      if (p.result != p.y)
        for (int r = 0; r < ROWS; ++r) {
          const size_t place = (row + r) * p.out + part.begin;
          std::memcpy(p.result + place, p.y + place, (part.end - part.begin) * sizeof(float));
        }
      continue;
    }
    const float* h = p.scratch;
    if (part.order != nullptr || part.scale != nullptr) {
      float* mine = p.scratch + kMostRows * p.rank;
      for (size_t i = 0; i < part.ranks; ++i) {
        const size_t at = part.order == nullptr ? i : part.order[i];
        const float scale = part.scale == nullptr ? 1.0f : part.scale[i];
        for (int r = 0; r < ROWS; ++r) mine[r * p.rank + i] = p.scratch[r * p.rank + at] * scale;
      }
      h = mine;
    }
    up<ROWS, T>(p, part, row, h);
  }
}

template <typename T>
void run_typed(const Problem& p) {
  static_assert(kMostRows == 8);
  size_t row = 0;
  for (; row + 8 <= p.rows; row += 8) rows_of<8, T>(p, row);
  for (; row + 4 <= p.rows; row += 4) rows_of<4, T>(p, row);
  for (; row < p.rows; ++row) rows_of<1, T>(p, row);
}

}  // namespace

void run(const Problem& p) {
  switch (p.type) {
    case Type::kFloat: return run_typed<float>(p);
    case Type::kHalf: return run_typed<uint16_t>(p);
    case Type::kInt8: return run_typed<int8_t>(p);
  }
}

}  // namespace edgepeft::kernels::EDGEPEFT_ISA

#include "many_rows_body.hpp"
#include "silu_body.hpp"
