// masked_mean_pool, eight lanes (AVX2, F16C). Compiled with its own ISA flags; called only where they hold.
#include <immintrin.h>

#include "cpu/convert.h"
#include "cpu/masked_mean_pool.h"
#include "cpu/pool_rows.h"

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
  static __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
  static __m256 div(__m256 a, float b) { return _mm256_div_ps(a, _mm256_set1_ps(b)); }
};

}  // namespace

namespace diverseevol {
DEF_DEFINE_POOL_ROWS(avx2)
}
