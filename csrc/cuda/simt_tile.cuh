// A block's tile of sums over columns in float32 without matrix units: 64 rows against 64 others.
#pragma once

#include <cstdint>

#include "cuda/elements.cuh"

namespace diverseevol::cuda {

constexpr int kSimtThreads = 256;
constexpr int kSimtSide = 64;
constexpr int kSimtColumns = 16;  // per step
constexpr int kSimtEach = 4;      // rows, and others, of each of the 16 x 16 threads

struct SimtMemory {
  float rows[kSimtColumns][kSimtSide + 1];
  float others[kSimtColumns][kSimtSide + 1];
};

// One operand of the tile: float32 rows, dim contiguous.
struct SimtSide {
  const float* data;
  int64_t stride;
  int64_t first;  // first row of the tile
  int64_t count;  // number of rows in data; rows beyond read as zero

  __device__ void load(int64_t column, int64_t dim, float (&side)[kSimtColumns][kSimtSide + 1]) const {
    for (int i = static_cast<int>(threadIdx.x); i < kSimtSide * kSimtColumns; i += kSimtThreads) {
      const int row = i / kSimtColumns, d = i % kSimtColumns;
      const bool inside = first + row < count && column + d < dim;
      side[d][row] = inside ? data[(first + row) * stride + column + d] : 0.0F;
    }
  }
};

// The thread's sums[i][j] belong to row simt_row() + i and other simt_other() + j.
__device__ inline int simt_row() { return static_cast<int>(threadIdx.x) / 16 * kSimtEach; }
__device__ inline int simt_other() { return static_cast<int>(threadIdx.x) % 16 * kSimtEach; }

// Folds sums[i][j] = add(sums[i][j], value of the row, value of the other) over the columns, from 0.
template <class Add>
__device__ void simt_sums(const SimtSide& rows, const SimtSide& others, int64_t dim, SimtMemory& memory,
                          float (&sums)[kSimtEach][kSimtEach], const Add& add) {
#pragma unroll
  for (int i = 0; i < kSimtEach * kSimtEach; ++i) sums[i / kSimtEach][i % kSimtEach] = 0.0F;
  for (int64_t column = 0; column < dim; column += kSimtColumns) {
    __syncthreads();  // all threads have finished reading the previous step
    rows.load(column, dim, memory.rows);
    others.load(column, dim, memory.others);
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kSimtColumns; ++d) {
#pragma unroll
      for (int i = 0; i < kSimtEach; ++i) {
#pragma unroll
        for (int j = 0; j < kSimtEach; ++j) {
          sums[i][j] = add(sums[i][j], memory.rows[d][simt_row() + i], memory.others[d][simt_other() + j]);
        }
      }
    }
  }
}

}  // namespace diverseevol::cuda
