// min_sqdist: bfloat16 products of a tile of rows with all centres, norms and the running minimum in the same launch.
#include "cuda/centered.cuh"
#include "cuda/launch.cuh"
#include "cuda/min_sqdist.cuh"
#include "cuda/mma_tile.cuh"

namespace diverseevol::cuda {

namespace {

constexpr int kFew = 32, kMany = 64;  // centres of a tile: with few, the products take less than reading the rows
constexpr int kRowBytes = 128;        // of a row that are copied at once
constexpr int kStages = 3;            // steps that are on their way or being multiplied

template <class T>
constexpr int kColumns = kRowBytes / static_cast<int>(sizeof(T));  // of a step

// Rows as they are stored and centres are copied ahead; what has come is centred into `elements` and multiplied.
template <int kCenters>
struct Memory {
  Chunk<uint16_t> rows[kStages][kTileRows * kRowBytes / 16];
  uint16_t centers[kStages][kCenters * kTileStride];
  uint16_t elements[kTileRows * kTileStride];
  float sqnorm[kTileRows];  // these two once the first tile of centres is done: registers are short
  float rounding_sqnorm[kTileRows];
};

// What a row's values say besides their products.
struct RowSums {
  float sqnorm, rounding_sqnorm;
};

// Brings the block's rows to shared memory, and from there to elements. A thread always has the same rows, and the same
// 16 bytes among a step's columns.
template <class T, bool kAligned>
class RowReader {
 public:
  static constexpr int kPerRow = kRowBytes / 16;  // threads
  static constexpr int kPasses = kTileRows * kPerRow / kTileThreads;

  __device__ RowReader(const MinSqdist& call, const float* offset, int64_t first_place)
      : dim_(static_cast<int>(call.x.dim)), offset_(offset) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      // Beyond the last row the block's first one is read again, for nothing.
      const int64_t place = first_place + row_of(pass) < call.count ? first_place + row_of(pass) : first_place;
      const int64_t number = call.indices == nullptr ? place : call.indices[place];
      rows_[pass] = static_cast<const T*>(call.x.data) + number * call.x.stride;
    }
  }

  __device__ static int row_of(int pass) { return (static_cast<int>(threadIdx.x) + pass * kTileThreads) / kPerRow; }

  __device__ void copy(int first, Chunk<uint16_t>* buffer) const {
    const int column = first + column_of();
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      Chunk<T>* to = place_in(buffer, pass);
      if (kAligned && column + kValues <= dim_) {
        copy_later(to, rows_[pass] + column);
      } else {
        *to = load_chunk<false>(rows_[pass] + column, dim_ - column);
      }
    }
  }

  // What the thread itself has copied, less the offset; adds to the rows' sums if asked for.
  template <bool kSums>
  __device__ void center(int first, Chunk<uint16_t>* buffer, uint16_t* elements, RowSums (&sums)[kPasses]) const {
    const Offsets offset = *reinterpret_cast<const Offsets*>(offset_ + first + column_of());
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const Chunk<T> stored = *place_in(buffer, pass);
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

  __device__ static Chunk<T>* place_in(Chunk<uint16_t>* buffer, int pass) {
    return reinterpret_cast<Chunk<T>*>(buffer + threadIdx.x + pass * kTileThreads);
  }

  const int dim_;        // below 2^16, for which errors are certified
  const float* offset_;  // zero beyond the columns
  const T* rows_[kPasses];
};

// Multiplies the block's rows with a tile of centres.
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
    commit_copies();  // empty beyond the last: as many groups as steps
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

// The least of own - 2 (product) over the centres of a tile, for the four rows of a thread.
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

// What the threads of a block have summed of its rows, put together.
template <class Reader, int kCenters>
__device__ void put_sums(const RowSums (&sums)[Reader::kPasses], Memory<kCenters>& memory) {
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

// The least of own - 2 (product) that the threads of a block have found of its rows, put together.
struct Found {
  float nearest[2][kTileRows];  // of the warps' two columns
};

template <int kCenters>
__device__ void put_nearest(const float (&nearest)[2][2], Found& found) {
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float least = nearest[m][half];
      least = fminf(least, shuffle_xor(least, 1));
      least = fminf(least, shuffle_xor(least, 2));
      if (Products<kCenters>::lane() % 4 == 0)
        found.nearest[Products<kCenters>::warp() % 2][Products<kCenters>::row_of(m, 2 * half)] = least;
    }
  }
}

// Blocks are for rows first, then for centre_tiles tiles of centres each.
template <class T, bool kAligned, int kCenters>
__global__ void __launch_bounds__(kTileThreads, kAligned ? 2 : 1)
    min_sqdist_kernel(MinSqdist call, CenteredCenters<uint16_t> centers, int64_t row_blocks, int64_t center_tiles) {
  using Reader = RowReader<T, kAligned>;
  Memory<kCenters>& memory = *launch_shared<Memory<kCenters>>();
  const int64_t first_place = blockIdx.x % row_blocks * kTileRows;
  int64_t center = blockIdx.x / row_blocks * center_tiles * kCenters;
  const int64_t beyond = min(center + center_tiles * kCenters, centers.padded_count);
  const int dim = static_cast<int>(centers.padded_dim);
  const Reader reader(call, centers.offset, first_place);
  RowSums sums[Reader::kPasses] = {};
  const float none = __uint_as_float(0x7F800000U);
  float nearest[2][2] = {{none, none}, {none, none}};
  Products<kCenters> products;
  multiply_rows<true, kCenters>(reader, centers.elements + center * dim, dim, memory, sums, products);
  lower_nearest(products, centers.own + center, nearest);
  put_sums<Reader>(sums, memory);
  for (center += kCenters; center < beyond; center += kCenters) {
    multiply_rows<false, kCenters>(reader, centers.elements + center * dim, dim, memory, sums, products);
    lower_nearest(products, centers.own + center, nearest);
  }
  Found& found = *reinterpret_cast<Found*>(memory.rows);
  put_nearest<kCenters>(nearest, found);
  __syncthreads();
  const int row = static_cast<int>(threadIdx.x);
  const int64_t place = first_place + row;
  if (row >= kTileRows || place >= call.count) return;
  const int64_t number = call.indices == nullptr ? place : call.indices[place];
  // A value that is not finite makes the norm so; a norm can be so without one.
  if (!is_finite(memory.sqnorm[row]) &&
      !all_finite(static_cast<const T*>(call.x.data) + number * call.x.stride, call.x.dim)) {
    lower_to(call.first_bad_row, number);
  }
  const double error =
      certified_error(norm_above(memory.sqnorm[row], dim), norm_above(memory.rounding_sqnorm[row], dim), 0.0,
                      *centers.largest, dim, kMatrixUnitRoundoff);
  const float nearest_center = fminf(found.nearest[0][row], found.nearest[1][row]);
  lower_bound(call.bound + number,
              static_cast<double>(memory.sqnorm[row]) + static_cast<double>(nearest_center) + error);
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
  static_assert(sizeof(Found) <= sizeof(Memory<kCenters>::rows), "shared memory is used for one after the other");
  static_assert(sizeof(Memory<kCenters>) <= kLeastSharedMemory);
  const int64_t row_blocks = blocks_of(call.count, kTileRows), tiles = centers.padded_count / kCenters;
  // Few rows: the centres are spread over blocks too, until the device is filled twice.
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
