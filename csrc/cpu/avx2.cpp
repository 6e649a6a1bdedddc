// All kernels with eight lanes (AVX2, FMA, F16C). Compiled with its own ISA flags; called only if isa_usable.
#include <immintrin.h>

#include "cpu/convert.h"
#include "cpu/gemm_kernel.h"
#include "cpu/masked_mean_pool.h"
#include "cpu/sqdist.h"

namespace {

struct Vec {
  static constexpr int64_t kWidth = 8;
  static __m256 load(const float* from) { return _mm256_loadu_ps(from); }
  static __m256 load(const diverseevol::BFloat16* from) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  static __m256 load(const diverseevol::Float16* from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static void store(float* to, __m256 value) { _mm256_storeu_ps(to, value); }
  static __m256 zero() { return _mm256_setzero_ps(); }
  static __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
  static __m256 sub(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }
  static __m256 mul(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
  static __m256 div(__m256 a, float b) { return _mm256_div_ps(a, _mm256_set1_ps(b)); }
  static float sum(__m256 a) {
    float lanes[8];
    _mm256_storeu_ps(lanes, a);
    return ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
  }

  struct Double {
    static constexpr int64_t kWidth = 4;
    static __m256d load(const float* from) { return _mm256_cvtps_pd(_mm_loadu_ps(from)); }
    static __m256d load(const diverseevol::BFloat16* from) {
      const __m128i half = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
      return _mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(half), 16)));
    }
    static __m256d load(const diverseevol::Float16* from) {
      return _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
    }
    static __m256d from(const double* from) { return _mm256_loadu_pd(from); }
    static void store(double* to, __m256d value) { _mm256_storeu_pd(to, value); }
    static __m256d add(__m256d a, __m256d b) { return _mm256_add_pd(a, b); }
    static __m256d sub(__m256d a, __m256d b) { return _mm256_sub_pd(a, b); }
    static __m256d mul(__m256d a, __m256d b) { return _mm256_mul_pd(a, b); }
  };
};

struct MicroKernel : FloatMicroKernel<Vec> {
  static constexpr int kRows = 6;
  static constexpr int kVecs = 2;
  static __m256 broadcast(const float* from) { return _mm256_broadcast_ss(from); }
  static __m256 multiply_add(__m256 acc, __m256 a, __m256 b) { return _mm256_fmadd_ps(a, b, acc); }
};

}  // namespace

namespace diverseevol {

Kernels avx2_kernels() {
  return {{pool_row<Vec, float>, pool_row<Vec, BFloat16>, pool_row<Vec, Float16>},
          gemm_kernel_of<Vec, MicroKernel>(),
          {sqdist<Vec, float>, sqdist<Vec, BFloat16>, sqdist<Vec, Float16>}};
}

}  // namespace diverseevol
