// A block's tile of products on the matrix units of sm_80 and later: 128 rows with 32 or 64 others, up to 64 columns
// per step.
#pragma once

#include <cstdint>

#include "cuda/elements.cuh"

namespace diverseevol::cuda {

constexpr int kTileRows = 128;
constexpr int kDepth = 64;
constexpr int kTileThreads = 256;
constexpr int kTileStride = kDepth + 8;  // elements; the padding puts rows that are read together into different banks

// Shared memory in bytes that a block can use on every supported GPU; sm_86 and sm_89 have the least.
constexpr int kLeastSharedMemory = 99 * 1024;

// A warp's part of the tile: 32 rows and half of the others, with 4 x 2 warps. A thread's values[m][n][i] is the
// product of row row_of(m, i) and other column_of(n, i).
template <int kOthers>
struct Products {
  static constexpr int kEights = kOthers / 16;  // groups of eight others per warp
  float values[2][kEights][4];

  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ static int row_of(int m, int i) { return warp() / 2 * 32 + m * 16 + i / 2 * 8 + lane() / 4; }
  __device__ static int column_of(int n, int i) { return warp() % 2 * (kOthers / 2) + n * 8 + lane() % 4 * 2 + i % 2; }

  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int n = 0; n < kEights; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) values[m][n][i] = 0.0F;
      }
    }
  }

  // Adds the products over kColumns <= kDepth columns. kHalf: elements are float16, else bfloat16.
  template <bool kHalf, int kColumns>
  __device__ void add(const uint16_t* left, const uint16_t* right) {
    const int row = lane() % 16, column = lane() / 16 * 8;
#pragma unroll
    for (int k = 0; k < kColumns; k += 16) {
      uint32_t rows[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        load_matrices(rows[m], left + (warp() / 2 * 32 + m * 16 + row) * kTileStride + k + column);
      }
#pragma unroll
      for (int n = 0; n < kEights; n += 2) {
        uint32_t others[4];  // columns 0 to 7 and 8 to 15 of eight others in 0 and 2, of the next eight in 1 and 3
        load_matrices(others, right + (warp() % 2 * (kOthers / 2) + n * 8 + row) * kTileStride + k + column);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply<kHalf>(values[m][n], rows[m], others[0], others[2]);
          multiply<kHalf>(values[m][n + 1], rows[m], others[1], others[3]);
        }
      }
    }
  }

 private:
  template <bool kHalf>
  __device__ static void multiply(float (&acc)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
    if constexpr (kHalf) {
      multiply_halves(acc, left, right0, right1);
    } else {
      multiply_bfloats(acc, left, right0, right1);
    }
  }
};

// Copies kColumns columns of kCount rows of 16-bit elements asynchronously into a buffer. All exist and are aligned.
template <int kCount, int kColumns>
__device__ void copy_whole_tile(const uint16_t* data, int64_t stride, uint16_t* buffer) {
  constexpr int kEach = 8, kChunks = kColumns / kEach, kRowsAtOnce = kTileThreads / kChunks;
  const int column = static_cast<int>(threadIdx.x) % kChunks * kEach;
#pragma unroll
  for (int pass = 0; pass < (kCount + kRowsAtOnce - 1) / kRowsAtOnce; ++pass) {
    const int row = static_cast<int>(threadIdx.x) / kChunks + pass * kRowsAtOnce;
    if (kCount % kRowsAtOnce == 0 || row < kCount) {
      copy_later(buffer + row * kTileStride + column, data + row * stride + column);
    }
  }
}

// Like copy_whole_tile, but zero beyond `rows` rows and `columns` columns. kAligned: rows are aligned to 16 bytes.
template <int kCount, int kColumns, bool kAligned>
__device__ void copy_tile(const uint16_t* data, int64_t stride, int64_t rows, int64_t columns, uint16_t* buffer) {
  constexpr int kEach = 8, kChunks = kColumns / kEach, kRowsAtOnce = kTileThreads / kChunks;
  const int column = static_cast<int>(threadIdx.x) % kChunks * kEach;
#pragma unroll
  for (int pass = 0; pass < kCount / kRowsAtOnce; ++pass) {
    const int row = static_cast<int>(threadIdx.x) / kChunks + pass * kRowsAtOnce;
    uint16_t* to = buffer + row * kTileStride + column;
    const uint16_t* from = data + row * stride + column;
    const int64_t count = row < rows ? columns - column : 0;
    if (kAligned && count >= kEach) {
      copy_later(to, from);
    } else {
      *reinterpret_cast<Chunk<uint16_t>*>(to) = load_chunk<false>(from, count);
    }
  }
}

}  // namespace diverseevol::cuda
