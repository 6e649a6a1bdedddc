// Centers minus the offset as elements of the matrix product, and the certified error of approximate squared distances.
#pragma once

#include <cstdint>

#include "cuda/elements.cuh"

namespace diverseevol::cuda {

constexpr int kCenterThreads = 128;

// The matrix units truncate when they align summands, which is a bit or two worse than rounding to nearest.
constexpr double kMatrixUnitRoundoff = 0x1p-22;
constexpr double kFloatRoundoff = 0x1p-24;

// Element types of the matrix product: conversion from float32 and back.
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

// Maxima over all centers; zero-initialized by the caller.
struct Largest {
  float sqnorm;
  float rounding_sqnorm;  // squared norm of the rounding residual
  float offset_sqnorm;    // of the offset, the same for all centers
};

template <class Stored>
struct CenteredCenters {
  Stored* elements;  // [padded_count, padded_dim], zero beyond the centers and their columns
  float* own;        // [padded_count]: the center's term beside -2 (product); infinity beyond the centers
  float* offset;     // [padded_dim], zero beyond the columns
  Largest* largest;
  int64_t padded_count;
  int64_t padded_dim;
};

// Sum over the block in a fixed order, returned to every thread. shared: one value per warp.
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

// One block per padded center. kShifted: the rows of the product are not shifted by the offset o; since
// (x - o).d = x.d - o.d, `own` includes the term o.d.
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

// Upper bound of a norm from its float32 sum of squares, as in csrc/cpu/centered.h.
__device__ inline double norm_above(float sum_of_squares, int64_t dim) {
  return 1.005 * sqrt(static_cast<double>(sum_of_squares) + static_cast<double>(dim) * 0x1p-125);
}

// Upper bound of the error of an approximate squared distance, derived in csrc/cpu/centered.h. norm and rounding_norm
// are the row's, roundoff is that of one addition in the products' sums. unshifted: norm of the stored row plus norm of
// the offset if the rows of the product are not shifted, else 0; it enlarges the sums only.
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

// Lowers a bound to a new upper bound, which is ignored if it is NaN.
__device__ inline void lower_bound(float* bound, double upper) {
  const float rounded = float_above(upper < 0.0 ? 0.0 : upper);  // no squared distance is below 0
  if (upper == upper) lower_to(bound, rounded);
}

}  // namespace diverseevol::cuda
