// What the files for AVX-512 share: scales and zero points of 16 blocks, and a block of activations in 8 bits.
#pragma once

#include <immintrin.h>

#include "block_matmul.hpp"

namespace edgepeft::kernels::avx512 {

namespace {

constexpr std::size_t kStep = 16;  // blocks whose scales are looked at together

inline __mmask16 first(std::size_t count) { return static_cast<__mmask16>(count >= 16 ? 0xffff : (1u << count) - 1); }

template <bool kHalf>
inline __m512 scales_at(const void* scales, std::size_t at, __mmask16 held) {
  if (kHalf) return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(held, static_cast<const uint16_t*>(scales) + at));
  return _mm512_maskz_loadu_ps(held, static_cast<const float*>(scales) + at);
}

// The zero points of 16 blocks, the first of which is even.
template <int kBits>
inline __m128i zero_bytes_at(const unsigned char* zeros, std::size_t block, std::size_t count) {
  if (kBits == 8) return _mm_maskz_loadu_epi8(first(count), zeros + block);
  const __m128i pairs = _mm_maskz_loadu_epi8(first((count + 1) / 2), zeros + block / 2), low = _mm_set1_epi8(15);
  return _mm_unpacklo_epi8(_mm_and_si128(pairs, low), _mm_and_si128(_mm_srli_epi16(pairs, 4), low));
}

template <int kBits>
inline __m512 zeros_at(const unsigned char* zeros, std::size_t block, std::size_t count) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(zero_bytes_at<kBits>(zeros, block, count)));
}

// The sums of four vectors.
inline __m128 sums_of(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 two = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_add_ps(_mm256_castps256_ps128(two), _mm256_extractf128_ps(two, 1));
}

// 32 numbers in 8 bits, and what they are to be multiplied by.
inline __m256i round_block(const float* x, std::size_t k, std::size_t block, float& scale, int& sum) {
  const std::size_t at = block * kBlock, left = at < k ? k - at : 0;
  const __m512 one = _mm512_maskz_loadu_ps(first(left), x + at), other = _mm512_maskz_loadu_ps(first(left > 16 ? left - 16 : 0), x + at + 16);
  const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(one), _mm512_abs_ps(other)));
  const __m512 inverse = _mm512_set1_ps(most > 0 ? 127 / most : 0);
  const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(one, inverse)), high = _mm512_cvtps_epi32(_mm512_mul_ps(other, inverse));
  scale = most / 127;
  sum = _mm512_reduce_add_epi32(_mm512_add_epi32(low, high));
  return _mm256_set_m128i(_mm512_cvtepi32_epi8(high), _mm512_cvtepi32_epi8(low));
}

inline __m128i evens(__m256i bytes) { return _mm256_cvtepi16_epi8(bytes); }
inline __m128i odds(__m256i bytes) { return _mm256_cvtepi16_epi8(_mm256_srli_epi16(bytes, 8)); }

}  // namespace

}  // namespace edgepeft::kernels::avx512
