// The specification's float64 squared distance, computed by one warp: squared differences, summed by halving.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/elements.cuh"
#include "cuda/launch.cuh"

namespace diverseevol::cuda {

constexpr int kLanes = 32;

// Width of the sum: a power of two with at least eight values per lane. Zeros beyond the row do not change the sum.
__host__ __device__ inline int64_t halving_width(int64_t dim) {
  int64_t width = 8 * kLanes;
  while (width < dim) width *= 2;
  return width;
}

inline int64_t warp_scratch_bytes(int64_t dim) { return halving_width(dim) / 8 * static_cast<int64_t>(sizeof(double)); }

constexpr int64_t kStaticBytes =
    16 * 1024;  // more than the static shared memory of any kernel that computes float64 distances

// Number of warps whose scratch fits into `bytes` of shared memory, at least one and at most eight.
inline int warps_of(const char* op, const ExecutionTarget& target, int64_t dim, int64_t bytes) {
  const int64_t most = shared_memory(target) - kStaticBytes;
  if (warp_scratch_bytes(dim) > most) {
    int64_t columns = dim;
    while (warp_scratch_bytes(columns) > most) columns = halving_width(columns) / 2;
    throw std::invalid_argument(std::string(op) + ": up to " + std::to_string(columns) + " columns on this GPU, got " +
                                std::to_string(dim));
  }
  const int64_t warps = bytes / warp_scratch_bytes(dim);
  return static_cast<int>(warps < 1 ? 1 : warps > 8 ? 8 : warps);
}

// The first three halvings, for one column of each eighth of the sum's width.
__device__ inline double sum_of_eighths(const double (&eighths)[8]) {
  return add(add(add(eighths[0], eighths[4]), add(eighths[2], eighths[6])),
             add(add(eighths[1], eighths[5]), add(eighths[3], eighths[7])));
}

// The remaining halvings of a warp's `width` sums; sum d is sums[index(d)]. Lane l handles the d with d % 32 == l.
template <class Index>
__device__ double halve(double* sums, int width, const Index& index) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  for (; width > kLanes; width /= 2) {
    for (int d = lane; d < width / 2; d += kLanes) sums[index(d)] = add(sums[index(d)], sums[index(d + width / 2)]);
  }
  double sum = sums[index(lane)];
#pragma unroll
  for (int other = kLanes / 2; other > 0; other /= 2) sum = add(sum, shuffle_down(sum, other));
  return shuffle_from(sum, 0);
}

// The whole warp calls it, and every lane gets the result. sums: halving_width(dim) / 8 doubles of the warp.
template <class T, class U>
__device__ double sqdist(const T* row, const U* center, int64_t dim, double* sums) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t width = halving_width(dim) / 8;
  // Three halvings at once: eight loads in flight, all coalesced over the lanes.
  for (int64_t d = lane; d < width; d += kLanes) {
    T values[8];
    U points[8];
#pragma unroll
    for (int part = 0; part < 8; ++part) {  // all loads are issued before the first value is used
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
    sums[d] = sum_of_eighths(eighths);
  }
  return halve(sums, static_cast<int>(width), [](int d) { return d; });
}

// Whether sqdist_in_chunks can be used for these rows.
template <class T>
bool halves_in_chunks(int64_t dim, const void* data, int64_t stride) {
  return dim == halving_width(dim) && in_chunks<T>(data, stride);
}

struct alignas(16) DoublePair {
  double values[2];
};

// Index of double d in shared memory. Each lane accesses pairs of its own Chunk<T>::kValues consecutive doubles; in
// plain order the lanes' addresses would be that many doubles apart, and several lanes would hit the same banks. Pairs
// stay adjacent.
template <class T>
__device__ int spread_over_banks(int d) {
  constexpr int kPairs = Chunk<T>::kValues / 2;
  return d ^ (d >> 4 & (kPairs - 1)) << 1;
}

// A center as float64 in shared memory, each eighth of it in the order of spread_over_banks.
template <class T>
struct SharedCenter {
  const double* values;

  struct Points {
    const double* values;
    int d, width;

    __device__ DoublePair pair(int part, int v) const {
      return *reinterpret_cast<const DoublePair*>(values + part * width + spread_over_banks<T>(d + v));
    }
  };

  // The whole block calls it, and synchronizes before it uses the center.
  __device__ static void fill(double* values, const float* center, int dim) {
    const int width = dim / 8;
    for (int column = static_cast<int>(threadIdx.x); column < dim; column += static_cast<int>(blockDim.x)) {
      const int d = column % width;
      values[column - d + spread_over_banks<T>(d)] = static_cast<double>(center[column]);
    }
  }

  __device__ Points load(int d, int width) const { return {values, d, width}; }
};

// A float32 center in global memory, aligned to 16 bytes, for float32 rows.
struct StoredCenter {
  const float* values;

  struct Points {
    Chunk<float> parts[8];

    __device__ DoublePair pair(int part, int v) const {
      return {static_cast<double>(parts[part].values[v]), static_cast<double>(parts[part].values[v + 1])};
    }
  };

  __device__ Points load(int d, int width) const {
    Points points;
#pragma unroll
    for (int part = 0; part < 8; ++part) {
      points.parts[part] = *reinterpret_cast<const Chunk<float>*>(values + part * width + d);
    }
    return points;
  }
};

// sqdist for rows with halves_in_chunks: the same additions in the same order, with 16-byte loads and without checks
// for the last column.
template <class T, class Center>
__device__ double sqdist_in_chunks(const T* row, const Center& center, int dim, double* sums) {
  constexpr int kValues = Chunk<T>::kValues;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, width = dim / 8;
  sync_warp();  // other lanes may still read the previous row's sums
  for (int d = lane * kValues; d < width; d += kLanes * kValues) {
    Chunk<T> parts[8];
#pragma unroll
    for (int part = 0; part < 8; ++part) {  // all loads are issued before the first value is used
      parts[part] = *reinterpret_cast<const Chunk<T>*>(row + part * width + d);
    }
    const typename Center::Points points = center.load(d, width);
#pragma unroll
    for (int v = 0; v < kValues; v += 2) {
      double squares[2][8];
#pragma unroll
      for (int part = 0; part < 8; ++part) {
        const DoublePair point = points.pair(part, v);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const double difference = subtract(static_cast<double>(to_float(parts[part].values[v + i])), point.values[i]);
          squares[i][part] = multiply(difference, difference);
        }
      }
      *reinterpret_cast<DoublePair*>(sums + spread_over_banks<T>(d + v)) = {
          {sum_of_eighths(squares[0]), sum_of_eighths(squares[1])}};
    }
  }
  sync_warp();  // lanes read sums of other lanes
  return halve(sums, width, [](int d) { return spread_over_banks<T>(d); });
}

// A maximum and the lowest row that attains it; a value of -1 is above the initial one.
struct Farthest {
  double value = -2.0;
  int64_t row = INT64_MAX;

  __device__ void merge(double other_value, int64_t other_row) {
    if (other_value > value || (other_value == value && other_row < row)) {
      value = other_value;
      row = other_row;
    }
  }
  // Over the warp.
  __device__ void merge_lanes() {
#pragma unroll
    for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
      const double other_value = shuffle_xor(value, lanes);
      merge(other_value, shuffle_xor(row, lanes));
    }
  }
};

// Maximum over the block, returned to the threads of warp 0. shared: one per warp.
__device__ inline Farthest farthest_of_block(Farthest mine, Farthest* shared) {
  mine.merge_lanes();
  const unsigned warp = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  if (lane == 0) shared[warp] = mine;
  __syncthreads();
  Farthest all;
  if (warp == 0) {
    if (lane < blockDim.x / kLanes) all = shared[lane];
    all.merge_lanes();
  }
  return all;
}

}  // namespace diverseevol::cuda
