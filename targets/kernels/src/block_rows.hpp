// Rows of activations in 8 bits, one behind another, for few of them.
#pragma once

#include "block_matmul.hpp"

namespace edgepeft::kernels {

// The order of the numbers is that in which the weights' bits come, and the processor's.
struct Rounded {
  static constexpr std::size_t kPadding = 16;

  int8_t* numbers;     // [rows, padded * 32], at a multiple of 64 bytes
  float* scales;       // [rows, padded]
  float* sums;         // [rows, padded]: of a block's numbers, times its scale
  std::size_t padded;  // blocks of a row, and empty ones up to a multiple of kPadding

  static std::size_t padded_blocks(std::size_t k) { return ((k + kBlock - 1) / kBlock + kPadding - 1) / kPadding * kPadding; }
  static std::size_t size(std::size_t rows, std::size_t k) { return rows * padded_blocks(k) * (kBlock + 2 * sizeof(float)); }

  // What lies in memory of size() bytes.
  Rounded(const void* memory, std::size_t rows, std::size_t k) : padded(padded_blocks(k)) {
    numbers = static_cast<int8_t*>(const_cast<void*>(memory));
    scales = reinterpret_cast<float*>(numbers + rows * padded * kBlock);
    sums = scales + rows * padded;
  }
};

}  // namespace edgepeft::kernels
