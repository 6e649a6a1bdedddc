// Which ISAs this CPU can run, and the kernels of each. Compiled for any CPU of the architecture.
#include "cpu/dispatch.h"

namespace diverseevol {

// The compiler's probe reads CPUID and, for the AVX families, XCR0: an ISA whose registers the operating system
// does not save is not reported.
bool isa_usable(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return true;
#ifdef DEF_X86
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && isa_usable(Isa::kAvx2);
    case Isa::kAvx512Bf16:
      return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && isa_usable(Isa::kAvx512);
#endif
    default:
      return false;
  }
}

Kernels kernels_of(Isa isa) {
#ifdef DEF_X86
  if (isa == Isa::kAvx512Bf16) return avx512bf16_kernels();
  if (isa == Isa::kAvx512) return avx512_kernels();
  if (isa == Isa::kAvx2) return avx2_kernels();
#endif
  (void)isa;
  return scalar_kernels();
}

}  // namespace diverseevol
