// Which ISAs this CPU can run, and the kernels of each. Compiled for any CPU of the architecture.
#include "cpu/dispatch.h"

#ifdef DEF_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace diverseevol {

#ifdef DEF_X86
namespace {

// CPUID leaf 7: AMX-TILE (EDX bit 24) and AMX-BF16 (bit 22); XCR0: tile configuration and data (bits 17 and 18); and
// Linux's permission for this process to use tile data, which is asked for here.
bool tiles_usable() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_OSXSAVE) == 0) return false;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & (1U << 24)) == 0 || (d & (1U << 22)) == 0) return false;
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & (3U << 17)) != (3U << 17)) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace
#endif

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
    case Isa::kAmxBf16: {
      static const bool usable = tiles_usable();
      return usable && isa_usable(Isa::kAvx512Bf16);
    }
#endif
    default:
      return false;
  }
}

Kernels kernels_of(Isa isa) {
#ifdef DEF_X86
  if (isa == Isa::kAmxBf16) return amxbf16_kernels();
  if (isa == Isa::kAvx512Bf16) return avx512bf16_kernels();
  if (isa == Isa::kAvx512) return avx512_kernels();
  if (isa == Isa::kAvx2) return avx2_kernels();
#endif
  (void)isa;
  return scalar_kernels();
}

}  // namespace diverseevol
