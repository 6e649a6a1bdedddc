// Which ISAs this CPU runs, and the kernels of each. This file is compiled without ISA flags.
#include "cpu/dispatch.h"

// Keep the code of isas.def rows whose architecture this build is for, and drop that of the others.
#define DEF_IF_ANY(code) code
#ifdef DEF_X86
#define DEF_IF_X86(code) code
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#define DEF_IF_X86(code)
#endif

namespace diverseevol {

#ifdef DEF_X86
namespace {

// CPUID leaf 7: AMX-TILE (EDX bit 24) and AMX-BF16 (bit 22); XCR0: tile configuration and data (bits 17 and 18); and
// Linux's permission for this process to use tile data, which is requested here.
bool request_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_OSXSAVE) == 0) return false;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & (1U << 24)) == 0 || (d & (1U << 22)) == 0) return false;
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & (3U << 17)) != (3U << 17)) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool amx_usable() {
  static const bool usable = request_amx();
  return usable;
}

}  // namespace
#endif

// The builtin reads CPUID and, for the AVX families, XCR0: it is false if the operating system does not save the ISA's
// registers.
#define cpu_has(feature) __builtin_cpu_supports(feature)

bool isa_usable(Isa isa) {
  switch (isa) {
#define DEF_ISA(name, architecture, flags, probe) DEF_IF_##architecture(case Isa::name : return probe;)
#include "isas.def"
    default:
      return false;
  }
}

Kernels kernels_of(Isa isa) {
  switch (isa) {
#define DEF_ISA(name, architecture, flags, probe) DEF_IF_##architecture(case Isa::name : return name##_kernels();)
#include "isas.def"
    default:
      return scalar_kernels();
  }
}

}  // namespace diverseevol
