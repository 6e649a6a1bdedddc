// min_sqdist on Hopper (sm_90a): a persistent grid of products of 128 rows with 256 centres, copied by the tensor copy
// engine and multiplied by two warpgroups. Rows are multiplied as they are stored; the offset enters through the
// centres.
#include "cuda/centered.cuh"
#include "cuda/hopper.cuh"
#include "cuda/launch.cuh"
#include "cuda/min_sqdist.cuh"

#ifndef DEF_FEWEST_TILES
#define DEF_FEWEST_TILES 64
#endif

namespace diverseevol::cuda {

namespace {

constexpr int kRows = 128, kCenters = 256, kColumns = kBoxColumns, kStages = 4;
constexpr int kWarpgroup = 128, kConsumers = 2, kThreads = (1 + kConsumers) * kWarpgroup;
constexpr int kStep = 16;                           // columns of one instruction
constexpr int64_t kWorthIt = 192;                   // centres: for fewer, reading the rows takes the time
constexpr int64_t kFewestTiles = DEF_FEWEST_TILES;  // of rows: for fewer, most of a Hopper would be idle

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

// What a row's bound is besides its products, from above: its squared norm less the offset, and the certified error. A
// warp takes four rows at once.
template <class T>
__global__ void __launch_bounds__(256)
    row_terms_kernel(MinSqdist call, const float* padded_offset, const Largest* largest, double* terms) {
  constexpr int kValues = Chunk<T>::kValues, kAtOnce = 4;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) / 32 * kAtOnce;
  const int64_t last = call.x.rows - 1, dim = call.x.dim;
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
    // A value that is not finite makes the norm so; a norm can be so without one.
    if (!is_finite(unshifted[r]) && !all_finite(rows + (first + r) * call.x.stride, dim)) {
      lower_to(call.first_bad_row, first + r);
    }
    const double others = norm_above(unshifted[r], dim) + norm_above(largest->offset_sqnorm, dim);
    const double error = certified_error(norm_above(sqnorm[r], dim), 0.0, others, *largest, dim, kMatrixUnitRoundoff);
    terms[first + r] = static_cast<double>(sqnorm[r]) + error;
  }
}

// Which stage comes next, and in which of its barriers' phases.
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
  int tiles, center_tiles, steps;  // steps: of 64 columns

  __device__ int row(int tile) const { return tile / center_tiles * kRows; }
  __device__ int center(int tile) const { return tile % center_tiles * kCenters; }
};

// One thread keeps the stages filled.
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

// 64 rows times 256 centres, over all columns.
template <bool kHalf>
__device__ void multiply_tile(int steps, int group, Memory& memory, Turn& turn, float (&products)[128]) {
  CopyBarrier* before = nullptr;  // of the stage that is still being multiplied
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
    if (lane % 4 == 0 && row < call.x.rows)
      lower_bound(call.bound + row, terms[row] + static_cast<double>(nearest[half]));
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

CenteredCenters<uint16_t> centers_in(Scratch& scratch, const MinSqdist& call) {
  const int64_t count = rounded_up(call.num_centers, kCenters), dim = rounded_up(call.x.dim, kColumns);
  return {scratch.take<uint16_t>(count * dim),
          scratch.take<float>(count),
          scratch.take<float>(dim),
          scratch.take<Largest>(1),
          count,
          dim};
}

template <class T, class Element, bool kHalf>
void screen(const MinSqdist& call) {
  Scratch scratch(call.on.scratch);
  const CenteredCenters<uint16_t> centers = centers_in(scratch, call);
  double* terms = scratch.take<double>(call.x.rows);
  fill(call.on, centers.largest, 0, sizeof(Largest));
  launch(center_centers_kernel<Element, true>, call.on, {centers.padded_count, kCenterThreads, 0}, call.centers,
         call.num_centers, call.x.dim, call.offset, centers);
  launch(row_terms_kernel<T>, call.on, {blocks_of(call.x.rows, 32), 256, 0}, call,
         static_cast<const float*>(centers.offset), static_cast<const Largest*>(centers.largest), terms);
  const int center_tiles = static_cast<int>(centers.padded_count / kCenters);
  const Grid grid{static_cast<int>(blocks_of(call.x.rows, kRows)) * center_tiles, center_tiles,
                  static_cast<int>(centers.padded_dim / kColumns)};
  const int most = multiprocessors(call.on);
  launch(min_sqdist_hopper_kernel<kHalf>, call.on, {grid.tiles < most ? grid.tiles : most, kThreads, kMemory}, call,
         grid, tensor_map(call.x.data, kHalf, call.x.rows, call.x.dim, call.x.stride, kRows),
         tensor_map(centers.elements, kHalf, centers.padded_count, centers.padded_dim, centers.padded_dim, kCenters),
         static_cast<const double*>(terms), static_cast<const float*>(centers.own));
}

}  // namespace

// The products must be what takes the time: many centres, 16-bit rows, all of them.
bool suits_hopper(const MinSqdist& call) {
  return !call.general && call.numbers == nullptr && call.x.dtype != DType::kFloat32 && call.num_centers >= kWorthIt &&
         call.x.rows >= kFewestTiles * kRows &&
         call.x.rows / kRows * (call.num_centers / kCenters + 1) < (int64_t{1} << 30) &&
         call.x.rows < (int64_t{1} << 30) && in_chunks<uint16_t>(call.x.data, call.x.stride) &&
         call.x.stride >= call.x.dim &&  // a tensor map has no rows that overlap
         capability(call.on) == 90;
}

int64_t hopper_scratch_bytes(const MinSqdist& call) {
  Scratch scratch(nullptr);
  centers_in(scratch, call);
  scratch.take<double>(call.x.rows);
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
