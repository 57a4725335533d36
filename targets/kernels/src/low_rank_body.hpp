// The loops of low_rank.hpp, compiled once for each instruction set: EDGEPEFT_ISA names the namespace, EDGEPEFT_WIDTH the floats of
// its widest vector. Written in the vector extensions of GCC and Clang, which become the instructions that the flags allow.
#include <cstring>

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

inline float one(const float* from) { return *from; }
inline float one(const uint16_t* from) { return from_half(*from); }

template <int N>
inline void store(float* to, V<N> value) {
  std::memcpy(to, &value, sizeof(value));
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
  for (; k + SUMS <= p.in; k += SUMS)
    for (int s = 0; s < SUMS; ++s)
      for (int v = 0; v < COUNT; ++v) {
        const V<N> factor = load<N>(a + (k + s) * p.rank + v * N);
        for (int r = 0; r < ROWS; ++r) sums[s][r][v] += x[r * p.in + k + s] * factor;
      }
  for (; k < p.in; ++k)
    for (int v = 0; v < COUNT; ++v) {
      const V<N> factor = load<N>(a + k * p.rank + v * N);
      for (int r = 0; r < ROWS; ++r) sums[0][r][v] += x[r * p.in + k] * factor;
    }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < COUNT; ++v) {
      V<N> sum = sums[0][r][v];
      for (int s = 1; s < SUMS; ++s) sum += sums[s][r][v];
      store<N>(p.scratch + (row + r) * p.rank + c + v * N, sum);
    }
}

template <int ROWS, typename T>
void down_single(const Problem& p, size_t row, size_t c) {
  float sums[ROWS] = {};
  const T* a = static_cast<const T*>(p.a) + c;
  const float* x = p.x + row * p.in;
  for (size_t k = 0; k < p.in; ++k) {
    const float factor = one(a + k * p.rank);
    for (int r = 0; r < ROWS; ++r) sums[r] += x[r * p.in + k] * factor;
  }
  for (int r = 0; r < ROWS; ++r) p.scratch[(row + r) * p.rank + c] = sums[r];
}

// The first `rank` columns of x A for ROWS rows.
template <int ROWS, typename T>
void down(const Problem& p, size_t row, size_t rank) {
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

// result = y + h B for ROWS rows and N * COUNT outputs from n on, over the ranks in `order`.
template <int N, int COUNT, int ROWS, typename T>
inline void up_columns(const Problem& p, size_t row, size_t n, const uint32_t* order, size_t ranks) {
  V<N> sums[ROWS][COUNT];
  const T* b = static_cast<const T*>(p.b) + n;
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < COUNT; ++v) sums[r][v] = load<N>(p.y + (row + r) * p.out + n + v * N);
  for (size_t i = 0; i < ranks; ++i) {
    const size_t rank = order[i];
    for (int v = 0; v < COUNT; ++v) {
      const V<N> factor = load<N>(b + rank * p.out + v * N);
      for (int r = 0; r < ROWS; ++r) sums[r][v] += p.scratch[(row + r) * p.rank + rank] * factor;
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < COUNT; ++v) store<N>(p.result + (row + r) * p.out + n + v * N, sums[r][v]);
}

template <int ROWS, typename T>
void up(const Problem& p, size_t row, size_t n, size_t end, const uint32_t* order, size_t ranks) {
  // As many sums as there are registers for: 32 of 16 floats, 16 of 8.
  constexpr int W = EDGEPEFT_WIDTH, COUNT = ROWS == 1 ? 4 : ROWS == 8 && W < 16 ? 1 : 2;
  for (; n + W * COUNT <= end; n += W * COUNT) up_columns<W, COUNT, ROWS, T>(p, row, n, order, ranks);
  for (; n + W <= end; n += W) up_columns<W, 1, ROWS, T>(p, row, n, order, ranks);
  for (; n < end; ++n)
    for (int r = 0; r < ROWS; ++r) {
      float sum = p.y[(row + r) * p.out + n];
      for (size_t i = 0; i < ranks; ++i)
        sum += p.scratch[(row + r) * p.rank + order[i]] * one(static_cast<const T*>(p.b) + order[i] * p.out + n);
      p.result[(row + r) * p.out + n] = sum;
    }
}

template <int ROWS, typename T>
void rows_of(const Problem& p, size_t row, size_t rank) {
  down<ROWS, T>(p, row, rank);
  for (size_t part = 0; part < p.parts; ++part) {
    size_t ranks = 0;
    for (size_t r = 0; r < rank; ++r)
      if (p.reach == nullptr || p.reach[r] == kWhole || p.reach[r] == static_cast<int32_t>(part)) p.order[ranks++] = r;
    const size_t begin = p.parts == 1 ? 0 : p.offsets[part], end = part + 1 == p.parts ? p.out : p.offsets[part + 1];
    up<ROWS, T>(p, row, begin, end, p.order, ranks);
  }
}

template <typename T>
void run_typed(const Problem& p) {
  size_t rank = p.rank;  // ranks at the end that reach nothing are another row's, in a batch of several adapters
  while (rank > 0 && p.reach != nullptr && p.reach[rank - 1] == kNothing) --rank;
  if (rank == 0) {
    if (p.result != p.y) std::memcpy(p.result, p.y, p.rows * p.out * sizeof(float));
    return;
  }
  size_t row = 0;
  for (; row + 8 <= p.rows; row += 8) rows_of<8, T>(p, row, rank);
  for (; row + 4 <= p.rows; row += 4) rows_of<4, T>(p, row, rank);
  for (; row < p.rows; ++row) rows_of<1, T>(p, row, rank);
}

}  // namespace

void run(const Problem& p) {
  if (p.half) {
    run_typed<uint16_t>(p);
  } else {
    run_typed<float>(p);
  }
}

}  // namespace edgepeft::kernels::EDGEPEFT_ISA
