#include <cstring>
#include <initializer_list>

#include "low_rank.hpp"

namespace edgepeft::kernels {

#define EDGEPEFT_FUNCTIONS(isa)                                                                              \
  namespace isa {                                                                                            \
  void run(const Problem&);                                                                                  \
  void plan_wide(const Problem&, Widened&);                                                                  \
  void widen(const Problem&, Widened&, std::size_t);                                                         \
  void run_wide(const Problem&, const Widened&);                                                             \
  void silu_mul(const float*, const float*, float*, std::size_t);                                            \
  const Functions functions = {#isa, run, plan_wide, widen, run_wide, silu_mul};                                        \
  }
EDGEPEFT_FUNCTIONS(portable)
#ifdef EDGEPEFT_X86
EDGEPEFT_FUNCTIONS(avx2)
EDGEPEFT_FUNCTIONS(avx512)
#endif
#undef EDGEPEFT_FUNCTIONS

const Functions* named(const char* name) {
#ifdef EDGEPEFT_X86
  __builtin_cpu_init();
  const bool wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (std::strcmp(name, "avx512") == 0)
    return wide && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") ? &avx512::functions : nullptr;
  if (std::strcmp(name, "avx2") == 0) return wide ? &avx2::functions : nullptr;
#endif
  return std::strcmp(name, "portable") == 0 ? &portable::functions : nullptr;
}

const Functions& chosen() {
  static const Functions& choice = []() -> const Functions& {
    for (const char* name : {"avx512", "avx2"})
      if (const Functions* found = named(name)) return *found;
    return portable::functions;
  }();
  return choice;
}

}  // namespace edgepeft::kernels
