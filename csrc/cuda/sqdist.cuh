// The float64 squared distance of the specification by one warp: squares of differences, summed by halving.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/elements.cuh"
#include "cuda/launch.cuh"

namespace diverseevol::cuda {

constexpr int kLanes = 32;

// The sum's width: a power of two, at least eight for each lane. Zeros beyond the row change nothing.
__host__ __device__ inline int64_t halving_width(int64_t dim) {
  int64_t width = 8 * kLanes;
  while (width < dim) width *= 2;
  return width;
}

inline int64_t warp_scratch_bytes(int64_t dim) { return halving_width(dim) / 8 * static_cast<int64_t>(sizeof(double)); }

constexpr int64_t kStaticBytes = 16 * 1024;  // more than a kernel that takes float64 distances has besides

// As many warps as fit into `bytes` of shared memory with their scratch, at least one and at most eight.
inline int warps_of(const char* op, const Target& on, int64_t dim, int64_t bytes) {
  const int64_t most = shared_memory(on) - kStaticBytes;
  if (warp_scratch_bytes(dim) > most) {
    int64_t columns = dim;
    while (warp_scratch_bytes(columns) > most) columns = halving_width(columns) / 2;
    throw std::invalid_argument(std::string(op) + ": up to " + std::to_string(columns) + " columns on this GPU, got " +
                                std::to_string(dim));
  }
  const int64_t warps = bytes / warp_scratch_bytes(dim);
  return static_cast<int>(warps < 1 ? 1 : warps > 8 ? 8 : warps);
}

// The whole warp calls, and every lane gets the result. sums: the warp's own halving_width(dim) / 8 doubles.
template <class T, class U>
__device__ double sqdist(const T* row, const U* center, int64_t dim, double* sums) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  int64_t width = halving_width(dim) / 8;
  // Three halvings at once: eight loads in flight, all coalesced over the lanes.
  for (int64_t d = lane; d < width; d += kLanes) {
    T values[8];
    U points[8];
#pragma unroll
    for (int part = 0; part < 8; ++part) {  // all before the first is used
      const int64_t column = d + part * width;
      values[part] = row[column < dim ? column : 0];
      points[part] = center[column < dim ? column : 0];
    }
    double eighths[8];
#pragma unroll
    for (int part = 0; part < 8; ++part) {
      const double difference =
          subtract(static_cast<double>(to_float(values[part])), static_cast<double>(to_float(points[part])));
      eighths[part] = d + part * width < dim ? multiply(difference, difference) : 0.0;
    }
    sums[d] = add(add(add(eighths[0], eighths[4]), add(eighths[2], eighths[6])),
                  add(add(eighths[1], eighths[5]), add(eighths[3], eighths[7])));
  }
  // Down to one number a lane, each lane among its own.
  for (; width > kLanes; width /= 2) {
    for (int64_t d = lane; d < width / 2; d += kLanes) sums[d] = add(sums[d], sums[d + width / 2]);
  }
  double sum = sums[lane];
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2) sum = add(sum, shuffle_down(sum, other));
  return shuffle_from(sum, 0);
}

// The farther of two, of equals the lower; a number of -1 is farther than none.
struct Farthest {
  double value = -2.0;
  int64_t number = INT64_MAX;

  __device__ void meet(double other_value, int64_t other_number) {
    if (other_value > value || (other_value == value && other_number < number)) {
      value = other_value;
      number = other_number;
    }
  }
  // Over the warp.
  __device__ void meet_lanes() {
#pragma unroll
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
      const double other_value = shuffle_xor(value, lanes);
      meet(other_value, shuffle_xor(number, lanes));
    }
  }
};

// Over the block: what every thread of warp 0 gets. shared: one for each warp.
__device__ inline Farthest farthest_of_block(Farthest mine, Farthest* shared) {
  mine.meet_lanes();
  const unsigned warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  if (lane == 0) shared[warp] = mine;
  __syncthreads();
  Farthest all;
  if (warp == 0) {
    if (lane < blockDim.x / kLanes) all = shared[lane];
    all.meet_lanes();
  }
  return all;
}

}  // namespace diverseevol::cuda
