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

struct RowNorms {
  float sqnorm;     // less the offset
  float unshifted;  // as it is
};

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

// A warp for each row.
template <class T>
__global__ void __launch_bounds__(256) row_norms_kernel(MinSqdist call, RowNorms* norms) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x) / 32;
  if (row >= call.x.rows) return;  // the whole warp
  constexpr int kValues = Chunk<T>::kValues;
  const T* data = static_cast<const T*>(call.x.data) + row * call.x.stride;
  float sqnorm = 0.0F, unshifted = 0.0F;
  int strange = 0;
  for (int64_t d = threadIdx.x % 32 * kValues; d < call.x.dim; d += 32 * kValues) {
    const Chunk<T> chunk = load_chunk<true>(data + d, call.x.dim - d);
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      const float stored = to_float(chunk.values[v]);
      const float value = d + v < call.x.dim ? stored - call.offset[d + v] : 0.0F;
      sqnorm += value * value;
      unshifted += stored * stored;
      strange |= !is_finite(stored);
    }
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    sqnorm += shuffle_xor(sqnorm, lanes);
    unshifted += shuffle_xor(unshifted, lanes);
    strange |= shuffle_xor(strange, lanes);
  }
  if (threadIdx.x % 32 != 0) return;
  norms[row] = {sqnorm, unshifted};
  if (strange != 0) lower_to(call.first_bad_row, row);
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
  int64_t tiles, center_tiles, steps;  // steps: of 64 columns

  __device__ int64_t row(int64_t tile) const { return tile / center_tiles * kRows; }
  __device__ int64_t center(int64_t tile) const { return tile % center_tiles * kCenters; }
};

// One thread keeps the stages filled.
__device__ void copy_tiles(const Grid& grid, const TensorMap* rows, const TensorMap* centers, Memory& memory) {
  Turn turn;
  for (int64_t tile = blockIdx.x; tile < grid.tiles; tile += gridDim.x) {
    for (int64_t step = 0; step < grid.steps; ++step, turn.next()) {
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
__device__ void multiply_tile(int64_t steps, int group, Memory& memory, Turn& turn, float (&products)[128]) {
  CopyBarrier* before = nullptr;  // of the stage that is still being multiplied
  for (int64_t step = 0; step < steps; ++step, turn.next()) {
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
  if (threadIdx.x % 32 == 0) before->arrive();
}

// Lowers the bounds of the 64 rows from first_row on.
__device__ void lower_bounds(const MinSqdist& call, const RowNorms* norms, const float* own, const Largest& largest,
                             int64_t first_row, const float (&products)[128]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) % kWarpgroup / 32;
  const float none = __uint_as_float(0x7F800000U);
  float nearest[2] = {none, none};
#pragma unroll
  for (int n = 0; n < kCenters / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      nearest[i / 2] = fminf(nearest[i / 2], own[8 * n + lane % 4 * 2 + i % 2] - 2.0F * products[4 * n + i]);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    nearest[half] = fminf(nearest[half], shuffle_xor(nearest[half], 1));
    nearest[half] = fminf(nearest[half], shuffle_xor(nearest[half], 2));
    const int64_t row = first_row + 16 * warp + 8 * half + lane / 4;
    if (lane % 4 != 0 || row >= call.x.rows) continue;
    const RowNorms row_norms = norms[row];
    const int64_t dim = call.x.dim;
    const double unshifted = norm_above(row_norms.unshifted, dim) + norm_above(largest.offset_sqnorm, dim);
    const double error =
        certified_error(norm_above(row_norms.sqnorm, dim), 0.0, unshifted, largest, dim, kMatrixUnitRoundoff);
    lower_bound(call.bound + row, row_norms.sqnorm, nearest[half], error);
  }
}

template <bool kHalf>
__global__ void __launch_bounds__(kThreads, 1)
    min_sqdist_hopper_kernel(MinSqdist call, Grid grid, const __grid_constant__ TensorMap rows,
                             const __grid_constant__ TensorMap centers, const RowNorms* norms, const float* own,
                             const Largest* largest) {
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
    for (int64_t tile = blockIdx.x; tile < grid.tiles; tile += gridDim.x) {
      multiply_tile<kHalf>(grid.steps, group, memory, turn, products);
      lower_bounds(call, norms, own + grid.center(tile), *largest, grid.row(tile) + group * 64, products);
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
  RowNorms* norms = scratch.take<RowNorms>(call.x.rows);
  fill(call.on, centers.largest, 0, sizeof(Largest));
  launch(center_centers_kernel<Element, true>, call.on, {centers.padded_count, kCenterThreads, 0}, call.centers,
         call.num_centers, call.x.dim, call.offset, centers);
  launch(row_norms_kernel<T>, call.on, {blocks_of(call.x.rows, 8), 256, 0}, call, norms);
  const Grid grid{blocks_of(call.x.rows, kRows) * (centers.padded_count / kCenters), centers.padded_count / kCenters,
                  centers.padded_dim / kColumns};
  const int64_t most = multiprocessors(call.on);
  launch(min_sqdist_hopper_kernel<kHalf>, call.on, {grid.tiles < most ? grid.tiles : most, kThreads, kMemory}, call,
         grid, tensor_map(call.x.data, kHalf, call.x.rows, call.x.dim, call.x.stride, kRows),
         tensor_map(centers.elements, kHalf, centers.padded_count, centers.padded_dim, centers.padded_dim, kCenters),
         static_cast<const RowNorms*>(norms), static_cast<const float*>(centers.own),
         static_cast<const Largest*>(centers.largest));
}

}  // namespace

bool suits_hopper(const MinSqdist& call) {
  return call.numbers == nullptr && call.x.dtype != DType::kFloat32 && call.num_centers >= kWorthIt &&
         call.x.rows >= kFewestTiles * kRows && call.x.rows < (int64_t{1} << 31) &&
         in_chunks<uint16_t>(call.x.data, call.x.stride) && capability(call.on) == 90;
}

int64_t hopper_scratch_bytes(const MinSqdist& call) {
  Scratch scratch(nullptr);
  centers_in(scratch, call);
  scratch.take<RowNorms>(call.x.rows);
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
