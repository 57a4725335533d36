// x W' for weights in 4 or 8 bits, as com.microsoft's MatMulNBits lays them out, over activations that are rounded to 8 bits: what the
// operator computes, without ONNX Runtime. Chosen at run time for the processor.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgepeft::kernels {

constexpr std::size_t kBlock = 32;  // numbers that share a scale, of weights and of activations

// Weights [n, k]. They are read where ONNX Runtime has them, which is the file.
struct BlockMatrix {
  const unsigned char* weights = nullptr;  // [n, blocks, 4 * bits]; of 4 bits the even one of two is the lower
  const void* scales = nullptr;            // [n, blocks]
  bool half = false;                       // scales are float16
  const unsigned char* zeros = nullptr;    // [n, ceil(blocks * bits / 8)]; none: 8 or 128
  const float* bias = nullptr;             // [n], or none
  std::size_t n = 0, k = 0;
  int bits = 4;
  std::size_t blocks() const { return (k + kBlock - 1) / kBlock; }
  std::size_t zero_bytes() const { return bits == 8 ? blocks() : (blocks() + 1) / 2; }
};

// Columns that all rows meet before the next ones, so that their weights stay near.
inline std::size_t strip_of(const BlockMatrix& matrix, std::size_t rows, std::size_t columns) {
  const std::size_t bytes = matrix.blocks() * 4 * matrix.bits;
  return rows <= 4 ? columns : ((std::size_t{1} << 15) / bytes & ~std::size_t{3}) + 4;
}

struct BlockMatMul {
  // Bytes that so many rows take once they are rounded.
  std::size_t (*size)(std::size_t rows, std::size_t k, int bits);
  // Rounds the rows [begin, end) of x [rows, k], for weights of so many bits; `begin` is a multiple of kTileRows, and `end` too or
  // `rows`. `to` lies at a multiple of 64 bytes.
  void (*round)(const float* x, std::size_t rows, std::size_t k, int bits, void* to, std::size_t begin, std::size_t end);
  // y[row, n] for all rows and columns [begin, end).
  void (*multiply)(const BlockMatrix& matrix, const void* x, std::size_t rows, float* y, std::size_t begin, std::size_t end);
  const char* name;
  static constexpr std::size_t kTileRows = 16;
};

// The one that this processor runs: with AVX-512's dot products of bytes. Nothing elsewhere: with 256-bit vectors the same took 1.3 to 2.4
// times as long as ONNX Runtime's own node.
const BlockMatMul* block_matmul();

}  // namespace edgepeft::kernels
