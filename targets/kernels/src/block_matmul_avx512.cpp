// With AVX-512's dot products of bytes (VNNI): 64 bytes of weights at a time, which are 4 blocks in 4 bits and 2 in 8.
#include <immintrin.h>

#include "block_many_avx512.hpp"
#include "block_rows.hpp"
#include "low_rank.hpp"

namespace edgepeft::kernels::avx512 {

namespace {

// Blocks in 64 bytes of weights.
constexpr std::size_t together(int bits) { return bits == 4 ? 4 : 2; }

// Which of 16 scales each lane of a product takes: blocks `group * kTogether` and on, each in as many lanes.
template <int kBits>
inline __m512i lanes_of(std::size_t group) {
  const __m512i base = kBits == 4 ? _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0)
                                  : _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
  return _mm512_add_epi32(base, _mm512_set1_epi32(static_cast<int>(group * together(kBits))));
}

// How far ahead weights are asked for, in bytes: the processor itself looks no further than the end of a page.
constexpr std::size_t kAhead = 8192;

template <int kRows, int kColumns, int kBits, bool kHalf>
void tile(const BlockMatrix& matrix, const Rounded& x, std::size_t row, std::size_t column, float* y) {
  constexpr std::size_t kTogether = together(kBits), kGroups = kStep / kTogether;
  const std::size_t blocks = matrix.blocks(), bytes = blocks * 4 * kBits, zero_bytes = matrix.zero_bytes();
  const __m512i low = _mm512_set1_epi8(15);
  __m512 sum[kRows][kColumns];
  for (auto& of_row : sum)
    for (__m512& each : of_row) each = _mm512_setzero_ps();
  for (std::size_t at = 0; at < blocks; at += kStep) {
    const std::size_t count = blocks - at < kStep ? blocks - at : kStep;
    __m512 scale[kRows][kColumns];
    for (int c = 0; c < kColumns; ++c) {
      const __m512 of_weights = scales_at<kHalf>(matrix.scales, (column + c) * blocks + at, first(count));
      const __m512 zero = matrix.zeros == nullptr ? _mm512_set1_ps(kBits == 4 ? 8 : 128)
                                                  : zeros_at<kBits>(matrix.zeros + (column + c) * zero_bytes, at, count);
      const __m512 less = _mm512_mul_ps(of_weights, zero);
      for (int r = 0; r < kRows; ++r) {
        const std::size_t place = (row + r) * x.padded + at;
        scale[r][c] = _mm512_mul_ps(of_weights, _mm512_loadu_ps(x.scales + place));
        sum[r][c] = _mm512_fnmadd_ps(less, _mm512_loadu_ps(x.sums + place), sum[r][c]);
      }
    }
#pragma GCC unroll 8
    for (std::size_t group = 0; group < kGroups; ++group) {
      const std::size_t done = group * kTogether;
      if (done >= count) break;
      const __m512i lanes = lanes_of<kBits>(group);
      const std::size_t left = (count - done) * 4 * kBits;
      const __mmask64 held = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
      __m512i one[kColumns], other[kColumns];
      for (int c = 0; c < kColumns; ++c) {
        const unsigned char* from = matrix.weights + (column + c) * bytes + (at + done) * 4 * kBits;
        ask_for(reinterpret_cast<uintptr_t>(from) + kAhead);
        const __m512i packed = left >= 64 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi8(held, from);
        one[c] = kBits == 4 ? _mm512_and_si512(packed, low) : packed;
        other[c] = kBits == 4 ? _mm512_and_si512(_mm512_srli_epi16(packed, 4), low) : packed;
      }
      for (int r = 0; r < kRows; ++r) {
        const int8_t* numbers = x.numbers + ((row + r) * x.padded + at + done) * kBlock;
        for (int c = 0; c < kColumns; ++c) {
          __m512i dot = _mm512_dpbusd_epi32(_mm512_setzero_si512(), one[c], _mm512_load_si512(numbers));
          if (kBits == 4) dot = _mm512_dpbusd_epi32(dot, other[c], _mm512_load_si512(numbers + 64));
          sum[r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot), _mm512_permutexvar_ps(lanes, scale[r][c]), sum[r][c]);
        }
      }
    }
  }
  // In one order whatever is computed together, so that a token's numbers are the same alone and among others.
  const __mmask8 some = (1 << kColumns) - 1;
  const __m128 bias = matrix.bias == nullptr ? _mm_setzero_ps() : _mm_maskz_loadu_ps(some, matrix.bias + column);
  for (int r = 0; r < kRows; ++r) {
    __m512 four[4] = {};
    for (int c = 0; c < kColumns; ++c) four[c] = sum[r][c];
    _mm_mask_storeu_ps(y + (row + r) * matrix.n + column, some, _mm_add_ps(sums_of(four[0], four[1], four[2], four[3]), bias));
  }
}

template <int kRows, int kColumns, int kBits, bool kHalf>
void columns(const BlockMatrix& matrix, const Rounded& x, std::size_t row, float* y, std::size_t begin, std::size_t end) {
  std::size_t column = begin;
  for (; column + kColumns <= end; column += kColumns) tile<kRows, kColumns, kBits, kHalf>(matrix, x, row, column, y);
  for (; column < end; ++column) tile<kRows, 1, kBits, kHalf>(matrix, x, row, column, y);
}

template <int kBits, bool kHalf>
void all(const BlockMatrix& matrix, const Rounded& x, std::size_t rows, float* y, std::size_t begin, std::size_t end) {
  const std::size_t strip = strip_of(matrix, rows, end - begin);
  for (std::size_t at = begin; at < end; at += strip) {
    const std::size_t to = end - at < strip ? end : at + strip;
    std::size_t row = 0;
    for (; row + 4 <= rows; row += 4) columns<4, 2, kBits, kHalf>(matrix, x, row, y, at, to);
    if (rows - row >= 2) columns<2, 2, kBits, kHalf>(matrix, x, row, y, at, to), row += 2;
    if (rows - row >= 1) columns<1, 4, kBits, kHalf>(matrix, x, row, y, at, to);
  }
}

void round_row(const float* x, std::size_t k, int bits, const Rounded& to, std::size_t row) {
  int8_t* numbers = to.numbers + row * to.padded * kBlock;
  float *scales = to.scales + row * to.padded, *sums = to.sums + row * to.padded;
  for (std::size_t block = 0; block < to.padded; ++block) {
    int sum = 0;
    const __m256i bytes = round_block(x, k, block, scales[block], sum);
    sums[block] = scales[block] * static_cast<float>(sum);
    if (bits == 8) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(numbers + block * kBlock), bytes);
    } else {  // the even ones of four blocks, and then the odd ones
      int8_t* group = numbers + block / 4 * 4 * kBlock + block % 4 * 16;
      _mm_store_si128(reinterpret_cast<__m128i*>(group), evens(bytes));
      _mm_store_si128(reinterpret_cast<__m128i*>(group + 64), odds(bytes));
    }
  }
}

// From so many rows on, rows side by side in a vector take less time.
bool many(std::size_t rows, int bits) { return bits == 4 && rows > 10; }

}  // namespace

std::size_t size(std::size_t rows, std::size_t k, int bits) {
  return many(rows, bits) ? Tiles::size(rows, k) : Rounded::size(rows, k);
}

void round(const float* x, std::size_t rows, std::size_t k, int bits, void* to, std::size_t begin, std::size_t end) {
  if (many(rows, bits)) return round_tiles(x, rows, k, Tiles(to, rows, k), begin, end);
  for (std::size_t row = begin; row < end; ++row) round_row(x + row * k, k, bits, Rounded(to, rows, k), row);
}

void multiply(const BlockMatrix& matrix, const void* x, std::size_t rows, float* y, std::size_t begin, std::size_t end) {
  if (many(rows, matrix.bits)) {
    const Tiles tiles(x, rows, matrix.k);
    return matrix.half ? multiply_tiles<true>(matrix, tiles, rows, y, begin, end) : multiply_tiles<false>(matrix, tiles, rows, y, begin, end);
  }
  const Rounded rounded(x, rows, matrix.k);
  if (matrix.bits == 4)
    return matrix.half ? all<4, true>(matrix, rounded, rows, y, begin, end) : all<4, false>(matrix, rounded, rows, y, begin, end);
  return matrix.half ? all<8, true>(matrix, rounded, rows, y, begin, end) : all<8, false>(matrix, rounded, rows, y, begin, end);
}

}  // namespace edgepeft::kernels::avx512
