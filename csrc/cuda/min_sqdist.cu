// min_sqdist: multiplies a tile of rows with all centers in bfloat16; norms and running minimum are in the same launch.
#include "cuda/centered.cuh"
#include "cuda/launch.cuh"
#include "cuda/min_sqdist.cuh"
#include "cuda/mma_tile.cuh"

namespace diverseevol::cuda {

namespace {

constexpr int kFew = 32, kMany = 64;  // centers of a tile; with few, reading the rows takes longer than the products
constexpr int kRowBytes = 128;        // bytes of a row per step
constexpr int kStages = 3;            // steps in flight or being multiplied

template <class T>
constexpr int kColumns = kRowBytes / static_cast<int>(sizeof(T));  // per step

// Stored rows and centers are copied ahead; each step centers its rows into `elements` and multiplies them.
template <int kCenters>
struct Memory {
  Chunk<uint16_t> rows[kStages][kTileRows * kRowBytes / 16];
  uint16_t centers[kStages][kCenters * kTileStride];
  uint16_t elements[kTileRows * kTileStride];
  float sqnorm[kTileRows];  // these two are written after the first tile of centers, to free registers
  float rounding_sqnorm[kTileRows];
};

// Sums over a row's values, beside its products.
struct RowSums {
  float sqnorm, rounding_sqnorm;
};

// Copies the block's rows to shared memory and converts them to elements. A thread always works on the same rows and
// the same 16 bytes of a step's columns.
template <class T, bool kAligned>
class RowReader {
 public:
  static constexpr int kPerRow = kRowBytes / 16;  // threads per row
  static constexpr int kPasses = kTileRows * kPerRow / kTileThreads;

  __device__ RowReader(const MinSqdist& call, const float* offset, int64_t first)
      : dim_(static_cast<int>(call.x.dim)), offset_(offset) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      // Beyond the last row the block's first row is read again, and its result discarded.
      const int64_t i = first + row_of(pass) < call.count ? first + row_of(pass) : first;
      const int64_t row = call.indices == nullptr ? i : call.indices[i];
      rows_[pass] = static_cast<const T*>(call.x.data) + row * call.x.stride;
    }
  }

  __device__ static int row_of(int pass) { return (static_cast<int>(threadIdx.x) + pass * kTileThreads) / kPerRow; }

  __device__ void copy(int first, Chunk<uint16_t>* buffer) const {
    const int column = first + column_of();
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      Chunk<T>* to = chunk_in(buffer, pass);
      if (kAligned && column + kValues <= dim_) {
        copy_later(to, rows_[pass] + column);
      } else {
        *to = load_chunk<false>(rows_[pass] + column, dim_ - column);
      }
    }
  }

  // Writes the values that this thread copied, minus the offset, as elements; kSums: adds them to the rows' sums.
  template <bool kSums>
  __device__ void center(int first, Chunk<uint16_t>* buffer, uint16_t* elements, RowSums (&sums)[kPasses]) const {
    const Offsets offset = *reinterpret_cast<const Offsets*>(offset_ + first + column_of());
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const Chunk<T> stored = *chunk_in(buffer, pass);
      Elements out;
#pragma unroll
      for (int v = 0; v < kValues; v += 2) {
        const float one = to_float(stored.values[v]) - offset.values[v];
        const float two = to_float(stored.values[v + 1]) - offset.values[v + 1];
        out.pairs[v / 2] = floats_to_bfloats(one, two);
        if constexpr (kSums) {
          const float one_residual = one - __uint_as_float(out.pairs[v / 2] << 16);
          const float two_residual = two - __uint_as_float(out.pairs[v / 2] & 0xFFFF0000U);
          sums[pass].sqnorm += one * one + two * two;
          sums[pass].rounding_sqnorm += one_residual * one_residual + two_residual * two_residual;
        }
      }
      *reinterpret_cast<Elements*>(elements + row_of(pass) * kTileStride + column_of()) = out;
    }
  }

 private:
  static constexpr int kValues = Chunk<T>::kValues;

  struct alignas(16) Offsets {
    float values[kValues];
  };

  struct alignas(2 * kValues) Elements {
    uint32_t pairs[kValues / 2];
  };

  __device__ static int column_of() { return static_cast<int>(threadIdx.x) % kPerRow * kValues; }

  __device__ static Chunk<T>* chunk_in(Chunk<uint16_t>* buffer, int pass) {
    return reinterpret_cast<Chunk<T>*>(buffer + threadIdx.x + pass * kTileThreads);
  }

  const int dim_;        // below 2^16, the limit of certified_error
  const float* offset_;  // [padded dim], zero beyond the columns
  const T* rows_[kPasses];
};

// Multiplies the block's rows with one tile of centers.
template <bool kSums, int kCenters, class T, bool kAligned>
__device__ void multiply_rows(const RowReader<T, kAligned>& reader, const uint16_t* centers, int dim,
                              Memory<kCenters>& memory, RowSums (&sums)[RowReader<T, kAligned>::kPasses],
                              Products<kCenters>& products) {
  constexpr int kStep = kColumns<T>;
  const auto copy = [&](int step) {
    if (step * kStep < dim) {
      reader.copy(step * kStep, memory.rows[step % kStages]);
      copy_whole_tile<kCenters, kStep>(centers + step * kStep, dim, memory.centers[step % kStages]);
    }
    commit_copies();  // may be empty, so that there is one group per step
  };
  products.clear();
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) copy(step);
#pragma unroll 1
  for (int step = 0; step * kStep < dim; ++step) {
    await_copies<kStages - 2>();
    reader.template center<kSums>(step * kStep, memory.rows[step % kStages], memory.elements, sums);
    __syncthreads();
    copy(step + kStages - 1);
    products.template add<false, kStep>(memory.elements, memory.centers[step % kStages]);
    __syncthreads();
  }
}

// Lowers `nearest` to the minimum of own - 2 (product) over a tile of centers, for the thread's four rows.
template <int kCenters>
__device__ void lower_nearest(const Products<kCenters>& products, const float* own, float (&nearest)[2][2]) {
#pragma unroll
  for (int n = 0; n < Products<kCenters>::kEights; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float center = own[Products<kCenters>::column_of(n, i)];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        nearest[m][i / 2] = fminf(nearest[m][i / 2], center - 2.0F * products.values[m][n][i]);
      }
    }
  }
}

// Reduces the threads' partial sums and writes each row's to shared memory.
template <class Reader, int kCenters>
__device__ void reduce_sums(const RowSums (&sums)[Reader::kPasses], Memory<kCenters>& memory) {
#pragma unroll
  for (int pass = 0; pass < Reader::kPasses; ++pass) {
    RowSums all = sums[pass];
#pragma unroll
    for (int lanes = Reader::kPerRow / 2; lanes > 0; lanes /= 2) {
      all.sqnorm += shuffle_xor(all.sqnorm, lanes);
      all.rounding_sqnorm += shuffle_xor(all.rounding_sqnorm, lanes);
    }
    if (threadIdx.x % Reader::kPerRow == 0) {
      const int row = Reader::row_of(pass);
      memory.sqnorm[row] = all.sqnorm;
      memory.rounding_sqnorm[row] = all.rounding_sqnorm;
    }
  }
}

// Minimum of own - 2 (product) for each row of the block, one per column of warps.
struct RowMinima {
  float nearest[2][kTileRows];
};

template <int kCenters>
__device__ void reduce_nearest(const float (&nearest)[2][2], RowMinima& minima) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float least = nearest[m][half];
      least = fminf(least, shuffle_xor(least, 1));
      least = fminf(least, shuffle_xor(least, 2));
      if (Products<kCenters>::lane() % 4 == 0)
        minima.nearest[Products<kCenters>::warp() % 2][Products<kCenters>::row_of(m, 2 * half)] = least;
    }
  }
}

// Block b handles tile b % row_blocks of the rows and the (b / row_blocks)-th group of center_tiles tiles of centers.
template <class T, bool kAligned, int kCenters>
__global__ void __launch_bounds__(kTileThreads, kAligned ? 2 : 1)
    min_sqdist_kernel(MinSqdist call, CenteredCenters<uint16_t> centers, int64_t row_blocks, int64_t center_tiles) {
  using Reader = RowReader<T, kAligned>;
  Memory<kCenters>& memory = *launch_shared<Memory<kCenters>>();
  const int64_t first = blockIdx.x % row_blocks * kTileRows;
  int64_t center = blockIdx.x / row_blocks * center_tiles * kCenters;
  const int64_t beyond = min(center + center_tiles * kCenters, centers.padded_count);
  const int dim = static_cast<int>(centers.padded_dim);
  const Reader reader(call, centers.offset, first);
  RowSums sums[Reader::kPasses] = {};
  const float none = __uint_as_float(0x7F800000U);
  float nearest[2][2] = {{none, none}, {none, none}};
  Products<kCenters> products;
  multiply_rows<true, kCenters>(reader, centers.elements + center * dim, dim, memory, sums, products);
  lower_nearest(products, centers.own + center, nearest);
  reduce_sums<Reader>(sums, memory);
  for (center += kCenters; center < beyond; center += kCenters) {
    multiply_rows<false, kCenters>(reader, centers.elements + center * dim, dim, memory, sums, products);
    lower_nearest(products, centers.own + center, nearest);
  }
  RowMinima& minima = *reinterpret_cast<RowMinima*>(memory.rows);
  reduce_nearest<kCenters>(nearest, minima);
  __syncthreads();
  const int tile_row = static_cast<int>(threadIdx.x);
  const int64_t i = first + tile_row;
  if (tile_row >= kTileRows || i >= call.count) return;
  const int64_t row = call.indices == nullptr ? i : call.indices[i];
  // A non-finite value makes the norm non-finite; the norm of finite values can overflow too.
  if (!is_finite(memory.sqnorm[tile_row]) &&
      !all_finite(static_cast<const T*>(call.x.data) + row * call.x.stride, call.x.dim)) {
    lower_to(call.first_bad_row, row);
  }
  const double error =
      certified_error(norm_above(memory.sqnorm[tile_row], dim), norm_above(memory.rounding_sqnorm[tile_row], dim), 0.0,
                      *centers.largest, dim, kMatrixUnitRoundoff);
  const float nearest_center = fminf(minima.nearest[0][tile_row], minima.nearest[1][tile_row]);
  lower_bound(call.bound + row,
              static_cast<double>(memory.sqnorm[tile_row]) + static_cast<double>(nearest_center) + error);
}

int64_t tile_of(const MinSqdist& call) { return call.num_centers <= kFew ? kFew : kMany; }

CenteredCenters<uint16_t> centers_in(Scratch& scratch, const MinSqdist& call) {
  const int64_t count = rounded_up(call.num_centers, tile_of(call)), dim = rounded_up(call.x.dim, kDepth);
  return {scratch.take<uint16_t>(count * dim),
          scratch.take<float>(count),
          scratch.take<float>(dim),
          scratch.take<Largest>(1),
          count,
          dim};
}

template <class T, int kCenters>
void screen(const MinSqdist& call, const CenteredCenters<uint16_t>& centers) {
  static_assert(sizeof(RowMinima) <= sizeof(Memory<kCenters>::rows), "the minima reuse the shared memory of the rows");
  static_assert(sizeof(Memory<kCenters>) <= kLeastSharedMemory);
  const int64_t row_blocks = blocks_of(call.count, kTileRows), tiles = centers.padded_count / kCenters;
  // With few rows the centers are distributed over blocks too, until there are two blocks per multiprocessor.
  const int64_t spread = blocks_of(2 * multiprocessors(call.target), row_blocks);
  const int64_t each = blocks_of(tiles, spread < tiles ? spread : tiles);
  const Shape shape{row_blocks * blocks_of(tiles, each), kTileThreads, sizeof(Memory<kCenters>)};
  const bool aligned = in_chunks<T>(call.x.data, call.x.stride);
  launch(aligned ? min_sqdist_kernel<T, true, kCenters> : min_sqdist_kernel<T, false, kCenters>, call.target, shape,
         call, centers, row_blocks, each);
}

}  // namespace

#ifndef DEF_HOPPER
bool suits_hopper(const MinSqdist&) { return false; }
#endif

int64_t scratch_bytes(const MinSqdist& call) {
  if (suits_hopper(call)) return hopper_scratch_bytes(call);
  Scratch scratch(nullptr);
  centers_in(scratch, call);
  return scratch.bytes();
}

Status min_sqdist(const MinSqdist& call) {
  const Device device(call.target);
  fill(call.target, call.first_bad_row, 0xFF, sizeof(int64_t));
  if (call.count == 0) return Status::kOk;
  if (suits_hopper(call)) return hopper_min_sqdist(call);
  Scratch scratch(call.target.scratch);
  const CenteredCenters<uint16_t> centers = centers_in(scratch, call);
  fill(call.target, centers.largest, 0, sizeof(Largest));
  launch(center_centers_kernel<BFloatElement, false>, call.target, {centers.padded_count, kCenterThreads, 0},
         call.centers, call.num_centers, call.x.dim, call.offset, centers);
  const bool known = with_type(call.x.dtype, [&](auto type) {
    using T = decltype(type);
    if (tile_of(call) == kFew) {
      screen<T, kFew>(call, centers);
    } else {
      screen<T, kMany>(call, centers);
    }
  });
  return known ? Status::kOk : Status::kUnknownDType;
}

}  // namespace diverseevol::cuda
