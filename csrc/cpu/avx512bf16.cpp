// The AVX-512 kernels with a bfloat16 matrix product (AVX512_BF16): twice as many products per cycle as float32.
#include "cpu/gemm_kernel.h"
#include "cpu/vec_avx512.h"

namespace {

struct MicroKernel {
  using Element = diverseevol::BFloat16;
  using Acc = __m512;
  using Operand = __m512bh;
  static constexpr int64_t kDepth = 2;
  static constexpr int64_t kLanes = 16;
  static constexpr int kRows = 12;
  static constexpr int kVecs = 2;
  static __m512 zero() { return _mm512_setzero_ps(); }
  static __m512 load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, __m512 value) { _mm512_storeu_ps(to, value); }
  static __m512bh broadcast(const Element* from) {
    int pair;
    std::memcpy(&pair, from, sizeof pair);
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
  }
  static __m512bh panel(const Element* from) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(from)); }
  static __m512 multiply_add(__m512 acc, __m512bh a, __m512bh b) { return _mm512_dpbf16_ps(acc, a, b); }
  static __m512 store_elements(Element* to, __m512 value) {
    const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), rounded);
    const __m512 back = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16));
    return _mm512_sub_ps(value, back);
  }
  static float store_element(Element* to, float value) {
    *to = round(value);
    return value - to_float(*to);
  }
  // Rounds to nearest, ties to even, like the vector instruction.
  static Element round(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return {static_cast<uint16_t>((bits >> 16) | 0x40U)};
    return {static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16)};
  }
};

}  // namespace

namespace diverseevol {

Kernels avx512bf16_kernels() {
  Kernels kernels = avx512_kernels();
  kernels.gemm = gemm_kernel_of<Vec, MicroKernel>();
  return kernels;
}

}  // namespace diverseevol
