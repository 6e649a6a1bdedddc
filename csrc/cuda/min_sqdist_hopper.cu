// min_sqdist on Hopper (sm_90a): a persistent grid computes products of 128 rows with 256 centers; the tensor copy
// engine loads them and two warpgroups multiply them. Rows are not shifted: the offset enters through the centers. Rows
// that `indices` selects are gathered first, a chunk at a time, because the copy engine needs a constant stride.
#include "cuda/centered.cuh"
#include "cuda/hopper.cuh"
#include "cuda/launch.cuh"
#include "cuda/min_sqdist.cuh"

#ifndef DEF_FEWEST_TILES
#define DEF_FEWEST_TILES 64
#endif

#ifndef DEF_CHUNK_BYTES
#define DEF_CHUNK_BYTES (64 << 20)
#endif

namespace diverseevol::cuda {

namespace {

constexpr int kRows = 128, kCenters = 256, kColumns = kBoxColumns, kStages = 4;
constexpr int kWarpgroup = 128, kConsumers = 2, kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kStep = 16;          // columns per instruction
constexpr int64_t kWorthIt = 192;  // centers; with fewer, reading the rows takes longer than the products
constexpr int64_t kFewestTiles = DEF_FEWEST_TILES;  // tiles of rows; with fewer, most multiprocessors would be idle
constexpr int64_t kChunkBytes = DEF_CHUNK_BYTES;    // bytes of rows per gathered chunk, at least kFewestTiles tiles
constexpr int kGatherThreads = 256;

struct Stage {
  uint16_t rows[kRows * kColumns];
  uint16_t centers[kCenters * kColumns];
};

struct Memory {
  Stage stages[kStages];
  CopyBarrier full[kStages];
  CopyBarrier empty[kStages];
};

constexpr int64_t kMemory = sizeof(Memory);

// `count` gathered rows; `stride`, in elements, keeps each row aligned to 16 bytes.
struct Gathered {
  uint16_t* rows;
  int64_t count;
  int64_t stride;
};

// One warp per row. kAligned: all rows of x are aligned to 16 bytes.
template <bool kAligned>
__global__ void __launch_bounds__(kGatherThreads)
    gather_rows_kernel(Rows x, const int64_t* indices, Gathered gathered) {
  constexpr int kValues = Chunk<uint16_t>::kValues;
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kGatherThreads + threadIdx.x) / 32;
  if (i >= gathered.count) return;
  const uint16_t* from = static_cast<const uint16_t*>(x.data) + indices[i] * x.stride;
  uint16_t* to = gathered.rows + i * gathered.stride;
#pragma unroll 4
  for (int64_t d = threadIdx.x % 32 * kValues; d < x.dim; d += 32 * kValues) {
    *reinterpret_cast<Chunk<uint16_t>*>(to + d) = load_chunk<kAligned>(from + d, x.dim - d);
  }
}

// Kernels receive a call whose x is the `count` rows to multiply: all rows of the data, or gathered ones. Bounds and
// first_bad_row use the index of a row in the data.
__device__ int64_t data_row(const MinSqdist& call, int64_t i) { return call.indices == nullptr ? i : call.indices[i]; }

// Computes the part of a row's bound that does not depend on its products: the squared norm of the row minus the
// offset, plus the certified error. One warp per four rows.
template <class T>
__global__ void __launch_bounds__(256)
    row_terms_kernel(MinSqdist call, const float* padded_offset, const Largest* largest, double* terms) {
  constexpr int kValues = Chunk<T>::kValues, kAtOnce = 4;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) / 32 * kAtOnce;
  const int64_t last = call.count - 1, dim = call.x.dim;
  const T* rows = static_cast<const T*>(call.x.data);
  float sqnorm[kAtOnce] = {}, unshifted[kAtOnce] = {};
  for (int64_t d = threadIdx.x % 32 * kValues; d < dim; d += 32 * kValues) {
    struct alignas(16) Offsets {
      float values[kValues];
    };
    const Offsets offset = *reinterpret_cast<const Offsets*>(padded_offset + d);  // zero beyond the columns
    Chunk<T> chunks[kAtOnce];
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
      chunks[r] = load_chunk<true>(rows + min(first + r, last) * call.x.stride + d, dim - d);
    }
#pragma unroll
    for (int r = 0; r < kAtOnce; ++r) {
#pragma unroll
      for (int v = 0; v < kValues; ++v) {
        const float stored = to_float(chunks[r].values[v]), value = stored - offset.values[v];
        sqnorm[r] += value * value;
        unshifted[r] += stored * stored;
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kAtOnce; ++r) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      sqnorm[r] += shuffle_xor(sqnorm[r], lanes);
      unshifted[r] += shuffle_xor(unshifted[r], lanes);
    }
    if (threadIdx.x % 32 != 0 || first + r > last) continue;
    // A non-finite value makes the norm non-finite; the norm of finite values can overflow too.
    if (!is_finite(unshifted[r]) && !all_finite(rows + (first + r) * call.x.stride, dim)) {
      lower_to(call.first_bad_row, data_row(call, first + r));
    }
    const double others = norm_above(unshifted[r], dim) + norm_above(largest->offset_sqnorm, dim);
    const double error = certified_error(norm_above(sqnorm[r], dim), 0.0, others, *largest, dim, kMatrixUnitRoundoff);
    terms[first + r] = static_cast<double>(sqnorm[r]) + error;
  }
}

// The next stage of the pipeline, and the parity of its barriers' phase.
struct Turn {
  int stage = 0;
  unsigned phase = 0;

  __device__ void next() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

struct Grid {
  int tiles, center_tiles, steps;  // a step is 64 columns

  __device__ int row(int tile) const { return tile / center_tiles * kRows; }
  __device__ int center(int tile) const { return tile % center_tiles * kCenters; }
};

// Fills the stages; called by one thread.
__device__ void copy_tiles(const Grid& grid, const TensorMap* rows, const TensorMap* centers, Memory& memory) {
  Turn turn;
  for (int tile = static_cast<int>(blockIdx.x); tile < grid.tiles; tile += static_cast<int>(gridDim.x)) {
    for (int step = 0; step < grid.steps; ++step, turn.next()) {
      Stage& stage = memory.stages[turn.stage];
      CopyBarrier& full = memory.full[turn.stage];
      memory.empty[turn.stage].wait(turn.phase ^ 1);
      full.arrive_announcing(sizeof(Stage));
      copy_box(stage.rows, rows, grid.row(tile), step * kColumns, &full);
      copy_box(stage.centers, centers, grid.center(tile), step * kColumns, &full);
    }
  }
}

// Multiplies 64 rows with 256 centers over all columns.
template <bool kHalf>
__device__ void multiply_tile(int steps, int group, Memory& memory, Turn& turn, float (&products)[128]) {
  CopyBarrier* before = nullptr;  // `empty` barrier of the stage whose products are in flight
  for (int step = 0; step < steps; ++step, turn.next()) {
    const Stage& stage = memory.stages[turn.stage];
    memory.full[turn.stage].wait(turn.phase);
    const uint16_t* rows = stage.rows + group * 64 * kColumns;
    before_products();
#pragma unroll
    for (int column = 0; column < kColumns; column += kStep) {
      const uint64_t left = operand(rows + column), right = operand(stage.centers + column);
      const bool adding = step > 0 || column > 0;
      if constexpr (kHalf) {
        multiply_half_tiles(products, left, right, adding);
      } else {
        multiply_bfloat_tiles(products, left, right, adding);
      }
    }
    commit_products();
    await_products<1>();
    if (before != nullptr && threadIdx.x % 32 == 0) before->arrive();
    before = &memory.empty[turn.stage];
  }
  await_products<0>();
  products_have_come(products);
  if (threadIdx.x % 32 == 0) before->arrive();
}

// Lowers the bounds of the 64 rows from first_row on.
__device__ void lower_bounds(const MinSqdist& call, const double* terms, const float* own, int first_row,
                             const float (&products)[128]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32;
  const float none = __uint_as_float(0x7F800000U);
  float nearest[2] = {none, none};
#pragma unroll
  for (int n = 0; n < kCenters / 8; ++n) {
    struct alignas(8) Pair {
      float values[2];
    };
    const Pair centers = *reinterpret_cast<const Pair*>(own + 8 * n + lane % 4 * 2);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      nearest[i / 2] = fminf(nearest[i / 2], centers.values[i % 2] - 2.0F * products[4 * n + i]);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    nearest[half] = fminf(nearest[half], shuffle_xor(nearest[half], 1));
    nearest[half] = fminf(nearest[half], shuffle_xor(nearest[half], 2));
    const int64_t row = first_row + 16 * warp + 8 * half + lane / 4;
    if (lane % 4 == 0 && row < call.count) {
      lower_bound(call.bound + data_row(call, row), terms[row] + static_cast<double>(nearest[half]));
    }
  }
}

template <bool kHalf>
__global__ void __launch_bounds__(kThreads, 1)
    min_sqdist_hopper_kernel(MinSqdist call, Grid grid, const __grid_constant__ TensorMap rows,
                             const __grid_constant__ TensorMap centers, const double* terms, const float* own) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(DEF_EMULATED)
  Memory& memory = *launch_shared<Memory>();
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      memory.full[s].init(1);
      memory.empty[s].init(kConsumers * kWarpgroup / 32);
    }
    publish_barriers();
    prefetch_map(&rows);
    prefetch_map(&centers);
  }
  __syncthreads();
  const int group = static_cast<int>(threadIdx.x) / kWarpgroup - 1;
  if (group < 0) {
    give_registers<40>();
    if (threadIdx.x == 0) copy_tiles(grid, &rows, &centers, memory);
  } else {
    take_registers<232>();
    Turn turn;
    float products[128];
    for (int tile = static_cast<int>(blockIdx.x); tile < grid.tiles; tile += static_cast<int>(gridDim.x)) {
      multiply_tile<kHalf>(grid.steps, group, memory, turn, products);
      lower_bounds(call, terms, own + grid.center(tile), grid.row(tile) + group * 64, products);
    }
  }
#endif
}

// Rows per gathered chunk; the last chunk may have fewer.
int64_t chunk_of(const MinSqdist& call, int64_t stride) {
  const int64_t fewest = kFewestTiles * kRows;
  const int64_t fitting = kChunkBytes / (stride * static_cast<int64_t>(sizeof(uint16_t))) / kRows * kRows;
  const int64_t most = fitting > fewest ? fitting : fewest;
  return call.count < most ? call.count : most;
}

// The call's scratch memory.
struct Space {
  CenteredCenters<uint16_t> centers;
  Gathered gathered;  // rows is null without indices
  double* terms;      // [rows], or [gathered.count] with indices
};

CenteredCenters<uint16_t> centers_in(Scratch& scratch, const MinSqdist& call) {
  const int64_t count = rounded_up(call.num_centers, kCenters), dim = rounded_up(call.x.dim, kColumns);
  return {scratch.take<uint16_t>(count * dim),
          scratch.take<float>(count),
          scratch.take<float>(dim),
          scratch.take<Largest>(1),
          count,
          dim};
}

Space space_in(Scratch& scratch, const MinSqdist& call) {
  const CenteredCenters<uint16_t> centers = centers_in(scratch, call);
  if (call.indices == nullptr) return {centers, {nullptr, 0, 0}, scratch.take<double>(call.count)};
  const int64_t stride = rounded_up(call.x.dim, Chunk<uint16_t>::kValues), count = chunk_of(call, stride);
  return {centers, {scratch.take<uint16_t>(count * stride), count, stride}, scratch.take<double>(count)};
}

// Lowers the bounds of the call.count rows of call.x.
template <class T, bool kHalf>
void screen_rows(const MinSqdist& call, const CenteredCenters<uint16_t>& centers, double* terms) {
  launch(row_terms_kernel<T>, call.target, {blocks_of(call.count, 32), 256, 0}, call,
         static_cast<const float*>(centers.offset), static_cast<const Largest*>(centers.largest), terms);
  const int center_tiles = static_cast<int>(centers.padded_count / kCenters);
  const Grid grid{static_cast<int>(blocks_of(call.count, kRows)) * center_tiles, center_tiles,
                  static_cast<int>(centers.padded_dim / kColumns)};
  const int most = multiprocessors(call.target);
  launch(min_sqdist_hopper_kernel<kHalf>, call.target, {grid.tiles < most ? grid.tiles : most, kThreads, kMemory}, call,
         grid, tensor_map(call.x.data, kHalf, call.count, call.x.dim, call.x.stride, kRows),
         tensor_map(centers.elements, kHalf, centers.padded_count, centers.padded_dim, centers.padded_dim, kCenters),
         static_cast<const double*>(terms), static_cast<const float*>(centers.own));
}

// Gathers the next chunk of rows, indices[first, ...), and returns the call whose x is that chunk.
MinSqdist gather(const MinSqdist& call, int64_t first, Gathered gathered) {
  if (call.count - first < gathered.count) gathered.count = call.count - first;
  MinSqdist chunk = call;
  chunk.indices = call.indices + first;
  chunk.count = gathered.count;
  chunk.x = {gathered.rows, call.x.dtype, gathered.count, call.x.dim, gathered.stride};
  const bool aligned = in_chunks<uint16_t>(call.x.data, call.x.stride);
  launch(aligned ? gather_rows_kernel<true> : gather_rows_kernel<false>, call.target,
         {blocks_of(gathered.count, kGatherThreads / 32), kGatherThreads, 0}, call.x, chunk.indices, gathered);
  return chunk;
}

template <class T, class Element, bool kHalf>
void screen(const MinSqdist& call) {
  Scratch scratch(call.target.scratch);
  const Space space = space_in(scratch, call);
  fill(call.target, space.centers.largest, 0, sizeof(Largest));
  launch(center_centers_kernel<Element, true>, call.target, {space.centers.padded_count, kCenterThreads, 0},
         call.centers, call.num_centers, call.x.dim, call.offset, space.centers);
  if (call.indices == nullptr) return screen_rows<T, kHalf>(call, space.centers, space.terms);
  for (int64_t first = 0; first < call.count; first += space.gathered.count) {
    screen_rows<T, kHalf>(gather(call, first, space.gathered), space.centers, space.terms);
  }
}

// Whether the copy engine can read the rows in place.
bool copyable_in_place(const Rows& x) { return in_chunks<uint16_t>(x.data, x.stride) && x.stride >= x.dim; }

}  // namespace

// True if the products take most of the time: many centers, and many rows of 16-bit values.
bool suits_hopper(const MinSqdist& call) {
  return !call.general && call.x.dtype != DType::kFloat32 && call.num_centers >= kWorthIt &&
         call.count >= kFewestTiles * kRows && call.count < (int64_t{1} << 30) &&
         call.count / kRows * (call.num_centers / kCenters + 1) < (int64_t{1} << 30) &&
         (call.indices != nullptr || copyable_in_place(call.x)) && capability(call.target) == 90;
}

int64_t hopper_scratch_bytes(const MinSqdist& call) {
  Scratch scratch(nullptr);
  space_in(scratch, call);
  return scratch.bytes();
}

Status hopper_min_sqdist(const MinSqdist& call) {
  if (call.x.dtype == DType::kBFloat16) {
    screen<BFloat16, BFloatElement, false>(call);
  } else {
    screen<Float16, HalfElement, true>(call);
  }
  return Status::kOk;
}

}  // namespace diverseevol::cuda
