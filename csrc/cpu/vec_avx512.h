// Sixteen float lanes, for the two AVX-512 files. In an unnamed namespace for the reason masked_mean_pool.h gives.
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
};

}  // namespace
