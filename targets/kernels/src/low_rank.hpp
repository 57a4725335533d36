// y + (x A) B, for one row or many: what the operators compute, without ONNX Runtime. Chosen at run time for the processor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

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

// Rows of a tile: one thread takes so many at once, in blocks of rows side by side.
constexpr std::size_t kTile = 16;

// Room for x A of a tile's rows, and once more for a part's ranks in their order.
inline std::size_t scratch_size(const Problem& p) {
  constexpr std::size_t kWidest = 16;  // floats of a vector
  return 2 * kTile * ((p.rank + kWidest - 1) / kWidest * kWidest);
}

// From so many rows on it pays to lay the factors out first.
constexpr std::size_t kMany = 48;

// Factors are laid out in so many pieces, each by one thread.
constexpr std::size_t kPieces = 8;

// A problem's factors for many rows: in float32, A's columns in whole vectors, B's in panels, without scales.
struct Widened {
  struct Part {
    std::size_t begin, end, ranks;  // as of kernels::Part
    std::size_t b;                  // where in of_b its panels begin
    std::size_t first;              // the first of its columns of x A, which the others follow
    const uint32_t* order;          // [ranks]: where they do not
  };
  const float* a = nullptr;  // [in, stride]
  std::size_t stride = 0;
  std::vector<Part> parts;
  std::vector<float> of_a, of_b;
};

// What there is for an instruction set: portable, avx2 or avx512; of aarch64 the portable one is NEON.
struct Functions {
  const char* name;
  void (*run)(const Problem&);
  void (*plan_wide)(const Problem&, Widened&);                   // says where what lies, and makes room
  void (*widen)(const Problem&, Widened&, std::size_t piece);    // fills one of kPieces pieces
  void (*run_wide)(const Problem&, const Widened&);  // at most kTile rows
  void (*silu_mul)(const float* gate, const float* up, float* result, std::size_t count);  // result may be one of them
};

// The fastest that this processor runs.
const Functions& chosen();

// By name, for tests: nothing where the processor cannot run it or this build does not have it.
const Functions* named(const char* name);

}  // namespace edgepeft::kernels
