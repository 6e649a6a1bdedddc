// Centres less the offset as a product's elements, and how far approximate squared distances can be off.
#pragma once

#include <cstdint>

#include "cuda/elements.cuh"

namespace diverseevol::cuda {

constexpr int kCenterThreads = 128;

// The matrix units cut off when they align summands: a bit or two worse than rounding to nearest.
constexpr double kMatrixUnitRoundoff = 0x1p-22;
constexpr double kFloatRoundoff = 0x1p-24;

// Elements: what a float becomes, and what is lost.
struct FloatElement {
  using Stored = float;
  __device__ static Stored of(float value) { return value; }
  __device__ static float back(Stored stored) { return stored; }
};

struct BFloatElement {
  using Stored = uint16_t;
  __device__ static Stored of(float value) { return float_to_bfloat(value); }
  __device__ static float back(Stored stored) { return __uint_as_float(static_cast<uint32_t>(stored) << 16); }
};

struct HalfElement {
  using Stored = uint16_t;
  __device__ static Stored of(float value) { return float_to_half(value); }
  __device__ static float back(Stored stored) { return half_to_float(stored); }
};

// Over all centres; zero before.
struct Largest {
  float sqnorm;
  float rounding_sqnorm;
  float offset_sqnorm;  // of the offset
};

template <class Stored>
struct CenteredCenters {
  Stored* elements;  // [padded_count, padded_dim], zero beyond the centres and their columns
  float* own;        // [padded_count]: what is added to -2 (product); infinity beyond the centres
  float* offset;     // [padded_dim], zero beyond the columns
  Largest* largest;
  int64_t padded_count;
  int64_t padded_dim;
};

// Sum over the block, in a fixed order; every thread gets it. shared: one for each warp.
__device__ inline double block_sum(double value, double* shared) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += shuffle_xor(value, lanes);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0.0;
  for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) sum += shared[warp];
  return sum;
}

// A block for each padded centre. kShifted: products will be with rows as they are, not less the offset; `own` makes up
// for it: (x - o).d = x.d - o.d.
template <class Element, bool kShifted>
__global__ void __launch_bounds__(kCenterThreads)
    center_centers_kernel(const float* centers, int64_t num_centers, int64_t dim, const float* offset,
                          CenteredCenters<typename Element::Stored> out) {
  __shared__ double shared[kCenterThreads / 32];
  const int64_t center = blockIdx.x;
  double sqnorm = 0.0, rounding_sqnorm = 0.0, shift = 0.0, offset_sqnorm = 0.0;
  for (int64_t d = threadIdx.x; d < out.padded_dim; d += kCenterThreads) {
    typename Element::Stored element = Element::of(0.0F);
    if (center == 0) out.offset[d] = d < dim ? offset[d] : 0.0F;
    if (center < num_centers && d < dim) {
      const float value = centers[center * dim + d] - offset[d];
      element = Element::of(value);
      const float stored = Element::back(element);
      const double residual = static_cast<double>(value) - static_cast<double>(stored);
      const double origin = static_cast<double>(offset[d]);
      sqnorm += static_cast<double>(value) * static_cast<double>(value);
      rounding_sqnorm += residual * residual;
      shift += origin * static_cast<double>(stored);
      offset_sqnorm += origin * origin;
    }
    out.elements[center * out.padded_dim + d] = element;
  }
  sqnorm = block_sum(sqnorm, shared);
  rounding_sqnorm = block_sum(rounding_sqnorm, shared);
  shift = block_sum(shift, shared);
  offset_sqnorm = block_sum(offset_sqnorm, shared);
  if (threadIdx.x != 0) return;
  if (center >= num_centers) {
    out.own[center] = __uint_as_float(0x7F800000U);
    return;
  }
  out.own[center] = static_cast<float>(kShifted ? sqnorm + 2.0 * shift : sqnorm);
  raise_to(&out.largest->sqnorm, float_above(sqnorm));
  raise_to(&out.largest->rounding_sqnorm, float_above(rounding_sqnorm));
  raise_to(&out.largest->offset_sqnorm, float_above(offset_sqnorm));
}

// A norm out of a float32 sum of squares, from above: the sum's rounding, and squares lost below 2^-126.
__device__ inline double norm_above(float sum_of_squares, int64_t dim) {
  return 1.005 * sqrt(static_cast<double>(sum_of_squares) + static_cast<double>(dim) * 0x1p-125);
}

// How far approximate squared distances can be off: csrc/cpu/centered.h, which derives it. norm and lost are the row's,
// roundoff that of one addition in the products' sums. `unshifted`: where the products are with rows as they are, their
// norm and the offset's; they enter the sums alone.
__device__ inline double certified_error(double norm, double rounding_norm, double unshifted, const Largest& centers,
                                         int64_t dim, double roundoff) {
  const double center = norm_above(centers.sqnorm, dim), center_rounding = norm_above(centers.rounding_sqnorm, dim);
  const double reach = norm + center;
  const double sums =
      (static_cast<double>(dim) + 32.0) * roundoff * (reach * reach + 2.0 * unshifted * (center + center_rounding));
  const double elements = 2.0 * (rounding_norm * center + (norm + rounding_norm) * center_rounding);
  const double error = 1.02 * (sums + elements) + static_cast<double>(dim) * 0x1p-124 * (1.0 + reach + unshifted);
  return reach + unshifted < 0x1p63 ? error : static_cast<double>(__uint_as_float(0x7F800000U));
}

// Lowers a bound to what a row's products say; nothing happens where they say nothing (NaN).
__device__ inline void lower_bound(float* bound, double above) {
  const float rounded = float_above(above < 0.0 ? 0.0 : above);  // no squared distance is below 0
  if (above == above) lower_to(bound, rounded);
}

}  // namespace diverseevol::cuda
