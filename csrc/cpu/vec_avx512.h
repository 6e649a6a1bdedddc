// A vector of sixteen floats for the two AVX-512 files; the namespace is unnamed for the reason that
// masked_mean_pool.h gives.
#pragma once

#include <immintrin.h>

#include "cpu/convert.h"

namespace {

struct Vec {
  static constexpr int64_t kWidth = 16;
  static __m512 load(const float* from) { return _mm512_loadu_ps(from); }
  static __m512 load(const diverseevol::BFloat16* from) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  static __m512 load(const diverseevol::Float16* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static void store(float* to, __m512 value) { _mm512_storeu_ps(to, value); }
  static __m512 zero() { return _mm512_setzero_ps(); }
  static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
  static __m512 sub(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }
  static __m512 mul(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
  static __m512 div(__m512 a, float b) { return _mm512_div_ps(a, _mm512_set1_ps(b)); }
  static float sum(__m512 a) { return _mm512_reduce_add_ps(a); }

  struct Double {
    static constexpr int64_t kWidth = 8;
    static __m512d load(const float* from) { return _mm512_cvtps_pd(_mm256_loadu_ps(from)); }
    static __m512d load(const diverseevol::BFloat16* from) {
      const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      return _mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16)));
    }
    static __m512d load(const diverseevol::Float16* from) {
      return _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
    }
    static __m512d from(const double* from) { return _mm512_loadu_pd(from); }
    static void store(double* to, __m512d value) { _mm512_storeu_pd(to, value); }
    static __m512d add(__m512d a, __m512d b) { return _mm512_add_pd(a, b); }
    static __m512d sub(__m512d a, __m512d b) { return _mm512_sub_pd(a, b); }
    static __m512d mul(__m512d a, __m512d b) { return _mm512_mul_pd(a, b); }
  };
};

}  // namespace
