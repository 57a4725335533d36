#include <cstring>
#include <initializer_list>

#include "low_rank.hpp"

namespace edgepeft::kernels {

namespace portable {
void run(const Problem&);
}
#ifdef EDGEPEFT_X86
namespace avx2 {
void run(const Problem&);
}
namespace avx512 {
void run(const Problem&);
}
#endif

Function named(const char* name) {
#ifdef EDGEPEFT_X86
  __builtin_cpu_init();
  const bool wide = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (std::strcmp(name, "avx512") == 0)
    return wide && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") ? avx512::run : nullptr;
  if (std::strcmp(name, "avx2") == 0) return wide ? avx2::run : nullptr;
#endif
  return std::strcmp(name, "portable") == 0 ? portable::run : nullptr;
}

const Choice& chosen() {
  static const Choice choice = [] {
    for (const char* name : {"avx512", "avx2"})
      if (Function found = named(name)) return Choice{found, name};
    return Choice{portable::run, "portable"};
  }();
  return choice;
}

}  // namespace edgepeft::kernels
