// Many rows of activations: 16 of them side by side in a vector, four bytes of each, times four bytes of a column's weights.
#pragma once

#include <vector>

#include "block_avx512.hpp"

namespace edgepeft::kernels::avx512 {

namespace {

constexpr std::size_t kLanes = 16;       // rows of a vector
constexpr std::size_t kQuads = kBlock / 4;
constexpr std::size_t kColumns = 16;     // whose weights are unpacked together

// Tiles of 16 rows. Numbers are 128 more than they are, since a dot product of bytes takes one side without a sign: [tile, block,
// quad, row, 4], the even ones of a block before the odd ones; scales [tile, block, row].
struct Tiles {
  unsigned char* numbers;
  float* scales;
  std::size_t blocks;

  static std::size_t tiles(std::size_t rows) { return (rows + kLanes - 1) / kLanes; }
  static std::size_t blocks_of(std::size_t k) { return (k + kBlock - 1) / kBlock; }
  static std::size_t size(std::size_t rows, std::size_t k) { return tiles(rows) * kLanes * blocks_of(k) * (kBlock + sizeof(float)); }

  Tiles(const void* memory, std::size_t rows, std::size_t k) : blocks(blocks_of(k)) {
    numbers = static_cast<unsigned char*>(const_cast<void*>(memory));
    scales = reinterpret_cast<float*>(numbers + tiles(rows) * kLanes * blocks * kBlock);
  }
};

void round_tiles(const float* x, std::size_t rows, std::size_t k, const Tiles& to, std::size_t begin, std::size_t end) {
  const __m256i signs = _mm256_set1_epi8(-128);
  for (std::size_t row = begin; row < (end + kLanes - 1) / kLanes * kLanes; ++row) {
    const std::size_t tile = row / kLanes, lane = row % kLanes;
    for (std::size_t block = 0; block < to.blocks; ++block) {
      int sum;
      float* scale = to.scales + (tile * to.blocks + block) * kLanes + lane;
      alignas(32) uint32_t quads[kQuads];
      const __m256i bytes = _mm256_xor_si256(round_block(x + (row < rows ? row : 0) * k, row < rows ? k : 0, block, *scale, sum), signs);
      _mm256_store_si256(reinterpret_cast<__m256i*>(quads), _mm256_set_m128i(odds(bytes), evens(bytes)));
      uint32_t* at = reinterpret_cast<uint32_t*>(to.numbers + (tile * to.blocks + block) * kLanes * kBlock) + lane;
      for (std::size_t quad = 0; quad < kQuads; ++quad) at[quad * kLanes] = quads[quad];
    }
  }
}

// Columns whose weights were unpacked: less their zero points, with what 128 times their sum takes away.
struct Unpacked {
  std::vector<int8_t> numbers;  // [column, block, 32]
  std::vector<float> scales;    // [column, block]
  std::vector<int32_t> less;    // [column, block]
};

// The lower or upper four blocks' halves of `low` and `high`, which hold 16 bytes of each of four blocks, side by side.
inline __m512i side_by_side(__m512i low, __m512i high, bool upper) {
  const __m512i lower_half = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0), upper_half = _mm512_set_epi64(15, 14, 7, 6, 13, 12, 5, 4);
  return _mm512_permutex2var_epi64(low, upper ? upper_half : lower_half, high);
}

template <bool kHalf>
void unpack(const BlockMatrix& matrix, std::size_t column, std::size_t count, Unpacked& to) {
  const std::size_t blocks = matrix.blocks();
  const __m512i low = _mm512_set1_epi8(15);
  for (std::size_t c = 0; c < count; ++c)
    for (std::size_t at = 0; at < blocks; at += kStep) {
      const std::size_t together = blocks - at < kStep ? blocks - at : kStep, place = c * blocks + at;
      _mm512_mask_storeu_ps(&to.scales[place], first(together), scales_at<kHalf>(matrix.scales, (column + c) * blocks + at, first(together)));
      const __m128i zeros = matrix.zeros == nullptr ? _mm_set1_epi8(8) : zero_bytes_at<4>(matrix.zeros + (column + c) * matrix.zero_bytes(), at, together);
      for (std::size_t done = 0; done < together; done += 4) {
        const std::size_t some = together - done < 4 ? together - done : 4;
        const __mmask64 held = some == 4 ? ~__mmask64{0} : (__mmask64{1} << some * 16) - 1;
        const __m512i packed = _mm512_maskz_loadu_epi8(held, matrix.weights + ((column + c) * blocks + at + done) * 16);
        const __m128i four = _mm_set_epi8(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
        const __m512i which = _mm512_cvtepi8_epi32(_mm_add_epi8(four, _mm_set1_epi8(static_cast<char>(done))));
        const __m512i zero = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(zeros), _mm512_mullo_epi32(which, _mm512_set1_epi32(0x01010101)));
        const __m512i even = _mm512_sub_epi8(_mm512_and_si512(packed, low), zero);
        const __m512i odd = _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(packed, 4), low), zero);
        __m512i sums = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), even), _mm512_set1_epi8(1), odd);
        sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, _MM_PERM_BADC));
        sums = _mm512_slli_epi32(_mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, _MM_PERM_CDAB)), 7);
        const __m512i less = _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_permutexvar_epi32(_mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0), sums));
        const __mmask64 first_two = some >= 2 ? ~__mmask64{0} : (__mmask64{1} << 32) - 1, last_two = some <= 2 ? 0 : some == 3 ? (__mmask64{1} << 32) - 1 : ~__mmask64{0};
        _mm512_mask_storeu_epi8(&to.numbers[(place + done) * kBlock], first_two, side_by_side(even, odd, false));
        _mm512_mask_storeu_epi8(&to.numbers[(place + done) * kBlock] + 64, last_two, side_by_side(even, odd, true));
        _mm512_mask_storeu_epi32(&to.less[place + done], first(some), less);
      }
    }
}

inline __m512i same(const int8_t* four) {
  int32_t word;
  __builtin_memcpy(&word, four, 4);
  return _mm512_set1_epi32(word);
}

// Some columns of some tiles: sums [column, tile, row].
template <int kTiles, int kSome>
void meet(const Tiles& x, std::size_t tile, const Unpacked& weights, std::size_t column, float* sums) {
  const std::size_t blocks = x.blocks;
  __m512 sum[kSome][kTiles];
  for (auto& of_column : sum)
    for (__m512& each : of_column) each = _mm512_setzero_ps();
  for (std::size_t block = 0; block < blocks; ++block) {
    __m512i dot[kSome][kTiles];
    for (int c = 0; c < kSome; ++c)
      for (int t = 0; t < kTiles; ++t) dot[c][t] = _mm512_set1_epi32(weights.less[(column + c) * blocks + block]);
#pragma GCC unroll 8
    for (std::size_t quad = 0; quad < kQuads; ++quad) {
      __m512i numbers[kTiles];
      for (int t = 0; t < kTiles; ++t)
        numbers[t] = _mm512_load_si512(x.numbers + (((tile + t) * blocks + block) * kQuads + quad) * kLanes * 4);
      for (int c = 0; c < kSome; ++c) {
        const __m512i four = same(&weights.numbers[((column + c) * blocks + block) * kBlock + quad * 4]);
        for (int t = 0; t < kTiles; ++t) dot[c][t] = _mm512_dpbusd_epi32(dot[c][t], numbers[t], four);
      }
    }
    for (int t = 0; t < kTiles; ++t) {
      const __m512 of_rows = _mm512_loadu_ps(x.scales + ((tile + t) * blocks + block) * kLanes);
      for (int c = 0; c < kSome; ++c) {
        const __m512 scale = _mm512_mul_ps(of_rows, _mm512_set1_ps(weights.scales[(column + c) * blocks + block]));
        sum[c][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[c][t]), scale, sum[c][t]);
      }
    }
  }
  for (int c = 0; c < kSome; ++c)
    for (int t = 0; t < kTiles; ++t) _mm512_store_ps(sums + ((column + c) * 2 + t) * kLanes, sum[c][t]);
}

template <int kTiles>
void meet_all(const Tiles& x, std::size_t tile, const Unpacked& weights, std::size_t count, float* sums) {
  std::size_t column = 0;
  for (; column + 4 <= count; column += 4) meet<kTiles, 4>(x, tile, weights, column, sums);
  for (; column < count; ++column) meet<kTiles, 1>(x, tile, weights, column, sums);
}

template <bool kHalf>
void multiply_tiles(const BlockMatrix& matrix, const Tiles& x, std::size_t rows, float* y, std::size_t begin, std::size_t end) {
  static thread_local Unpacked weights;
  weights.numbers.resize(kColumns * x.blocks * kBlock), weights.scales.resize(kColumns * x.blocks), weights.less.resize(kColumns * x.blocks);
  alignas(64) float sums[kColumns * 2 * kLanes];
  const __m512i across = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(2 * kLanes));
  for (std::size_t column = begin; column < end; column += kColumns) {
    const std::size_t count = end - column < kColumns ? end - column : kColumns;
    unpack<kHalf>(matrix, column, count, weights);
    const __m512 bias = matrix.bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(first(count), matrix.bias + column);
    for (std::size_t row = 0; row < rows; row += 2 * kLanes) {
      if (rows - row > kLanes)
        meet_all<2>(x, row / kLanes, weights, count, sums);
      else
        meet_all<1>(x, row / kLanes, weights, count, sums);
      const std::size_t left = rows - row < 2 * kLanes ? rows - row : 2 * kLanes;
      for (std::size_t r = 0; r < left; ++r) {
        const __m512 found = _mm512_mask_i32gather_ps(bias, first(count), across, sums + r, 4);
        _mm512_mask_storeu_ps(y + (row + r) * matrix.n + column, first(count), _mm512_mask_add_ps(found, first(count), found, bias));
      }
    }
  }
}

}  // namespace

}  // namespace edgepeft::kernels::avx512
