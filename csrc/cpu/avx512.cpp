// All kernels with sixteen lanes (AVX-512F). Compiled with its own ISA flags; called only if isa_usable.
#include "cpu/gemm_kernel.h"
#include "cpu/masked_mean_pool.h"
#include "cpu/sqdist.h"
#include "cpu/vec_avx512.h"

namespace {

struct MicroKernel : FloatMicroKernel<Vec> {
  static constexpr int kRows = 12;
  static constexpr int kVecs = 2;
  static __m512 broadcast(const float* from) { return _mm512_set1_ps(*from); }
  static __m512 multiply_add(__m512 acc, __m512 a, __m512 b) { return _mm512_fmadd_ps(a, b, acc); }
};

}  // namespace

namespace diverseevol {

Kernels avx512_kernels() {
  return {{pool_row<Vec, float>, pool_row<Vec, BFloat16>, pool_row<Vec, Float16>},
          gemm_kernel_of<Vec, MicroKernel>(),
          {sqdist<Vec, float>, sqdist<Vec, BFloat16>, sqdist<Vec, Float16>}};
}

}  // namespace diverseevol
