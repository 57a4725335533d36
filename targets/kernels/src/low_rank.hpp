// y + (x A) B, for one row or many: what LowRankAdd computes, without ONNX Runtime. Chosen at run time for the processor.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgepeft::kernels {

// What a rank's row of B reaches: one part of a packed matrix (0, 1, ...), all of it, or nothing (a row of zeros).
constexpr int32_t kWhole = -1, kNothing = -2;

// One activation's rows and the factors that they meet.
struct Problem {
  const float* x = nullptr;        // [rows, in]
  const void* a = nullptr;         // [in, rank]
  const void* b = nullptr;         // [rank, out]
  const float* y = nullptr;        // [rows, out]
  float* result = nullptr;         // [rows, out]; may be y
  std::size_t rows = 0, in = 0, rank = 0, out = 0;
  const int32_t* reach = nullptr;  // [rank], or none: every row of B reaches all outputs
  const int64_t* offsets = nullptr;  // where each part begins; part p ends where p + 1 begins, the last at `out`
  std::size_t parts = 1;
  bool half = false;               // A and B are float16, else float32
  float* scratch = nullptr;        // [rows, rank]
  uint32_t* order = nullptr;       // [rank]
};

using Function = void (*)(const Problem&);

// The fastest one that this processor runs. `name` is portable, avx2 or avx512; of aarch64 the portable one is NEON.
struct Choice {
  Function run;
  const char* name;
};
const Choice& chosen();

// By name, for tests: nothing where the processor cannot run it or this build does not have it.
Function named(const char* name);

}  // namespace edgepeft::kernels
