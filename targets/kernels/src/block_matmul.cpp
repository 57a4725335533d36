#include "block_matmul.hpp"

#include <cstring>

namespace edgepeft::kernels {

#ifdef EDGEPEFT_X86
namespace avx512 {
std::size_t size(std::size_t rows, std::size_t k, int bits);
void round(const float* x, std::size_t rows, std::size_t k, int bits, void* to, std::size_t begin, std::size_t end);
void multiply(const BlockMatrix& matrix, const void* x, std::size_t rows, float* y, std::size_t begin, std::size_t end);
}  // namespace avx512

namespace {

constexpr BlockMatMul kAvx512Vnni{avx512::size, avx512::round, avx512::multiply, "avx512vnni"};

}  // namespace
#endif

const BlockMatMul* block_matmul() {
#ifdef EDGEPEFT_X86
  static const BlockMatMul* chosen = [] {
    __builtin_cpu_init();
    const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
    return has ? &kAvx512Vnni : nullptr;
  }();
  return chosen;
#else
  return nullptr;
#endif
}

}  // namespace edgepeft::kernels
