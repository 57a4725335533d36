// y + (x A) B, for one row or many: what the operators compute, without ONNX Runtime. Chosen at run time for the processor.
#pragma once

#include <cstddef>
#include <cstdint>

namespace edgepeft::kernels {

// How A and B are stored. int8 factors have a scale for each rank of each part, which holds A's and B's together.
enum class Type : uint32_t { kFloat = 0, kHalf = 1, kInt8 = 2 };

constexpr std::size_t size_of(Type type) { return type == Type::kFloat ? 4 : type == Type::kHalf ? 2 : 1; }

// Some columns of the result, and the ranks that have numbers there. The parts of a problem cover its columns in their order.
struct Part {
  std::size_t begin, end;  // columns of y
  std::size_t ranks;       // 0: y stays as it is
  const void* b;           // B's first row, at column `begin`
  std::size_t stride;      // elements from a row of B to the next
  const uint32_t* order;   // [ranks]: which columns of x A; none: the first ones
  const uint32_t* rows;    // [ranks]: which rows of B; none: the first ones
  const float* scale;      // [ranks]: what x A is multiplied by; none: 1
};

// Rows of activations and the factors that they meet.
struct Problem {
  const float* x = nullptr;  // [rows, in]
  const void* a = nullptr;   // [in, stride]
  const float* y = nullptr;  // [rows, out]
  float* result = nullptr;   // [rows, out]; may be y
  std::size_t rows = 0, in = 0, out = 0;
  std::size_t rank = 0;    // columns of A that are computed, at least 1
  std::size_t stride = 0;  // elements from a row of A to the next
  Type type = Type::kFloat;
  const Part* parts = nullptr;
  std::size_t part_count = 0;
  float* scratch = nullptr;  // scratch_size() floats
};

constexpr std::size_t kLine = 64;  // bytes of a cache line

// Asks for a cache line into the second level. A number and not a pointer: it may lie beyond the end of an array.
inline void ask_for(uintptr_t at) { __builtin_prefetch(reinterpret_cast<const void*>(at), 0, 2); }

// Rows that are computed side by side, so that factors are read once for them.
constexpr std::size_t kMostRows = 8;

// Room for x A of the rows side by side, and once more for a part's ranks in their order.
inline std::size_t scratch_size(const Problem& p) { return 2 * kMostRows * p.rank; }

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
