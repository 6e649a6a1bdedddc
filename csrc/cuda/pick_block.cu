// pick_block: one persistent cooperative launch for a block's rows (its members). Distances to all centers are computed
// in float32, and in float64 for centers that can be the nearest; then the greedy runs with one grid barrier per pick.
#include "cuda/launch.cuh"
#include "cuda/simt_tile.cuh"
#include "cuda/sqdist.cuh"

namespace diverseevol::cuda {

namespace {

constexpr int kSharedBytes = 64 * 1024;

// Global memory that all blocks share.
struct Space {
  float* approximate;  // [members, centers]
  float* least;        // [members]: their minimum over the centers
  double* nearest;     // [members]: squared distance to the nearest center; negative marks a pick
  Farthest* farthest;  // [2, blocks]: each block's farthest member for the current and the previous pick
};

// Upper bound of the approximate distance of the nearest center. Squared distances by direct difference in float32 have
// a relative error below (dim + 4) 2^-24 in any order of additions (Higham, Accuracy and Stability of Numerical
// Algorithms, section 3.1), apart from squares that underflow below 2^-126.
__device__ double nearest_limit(float least, int64_t dim) {
  const double relative = 1.02 * (static_cast<double>(dim) + 4.0) * 0x1p-24,
               underflow = static_cast<double>(dim) * 0x1p-125;
  const double limit = (static_cast<double>(least) + underflow) * (1.0 + relative) / (1.0 - relative) + underflow;
  return limit < 0x1p127 ? limit : static_cast<double>(__uint_as_float(0x7F800000U));  // float32 sums may overflow
}

// Computes the approximate distances of a tile of members to a tile of centers.
__device__ void approximate_tile(const PickBlock& call, const Space& space, int64_t first_member, int64_t first_center,
                                 SimtMemory& memory) {
  float sums[kSimtEach][kSimtEach];
  simt_sums({call.rows, call.dim, first_member, call.num_rows},
            {call.centers, call.dim, first_center, call.num_centers}, call.dim, memory, sums,
            [](float sum, float row, float center) { return sum + (row - center) * (row - center); });
#pragma unroll
  for (int i = 0; i < kSimtEach; ++i) {
    const int64_t row = first_member + simt_row() + i;
    if (row >= call.num_rows) continue;
#pragma unroll
    for (int j = 0; j < kSimtEach; ++j) {
      const int64_t other = first_center + simt_other() + j;
      if (other >= call.num_centers) continue;
      space.approximate[row * call.num_centers + other] = sums[i][j];
      lower_to(space.least + row, sums[i][j]);
    }
  }
}

// kChunks: reads rows and centers in chunks.
template <bool kChunks>
__device__ double exact_sqdist(const float* row, const float* other, int64_t dim, double* sums) {
  if constexpr (kChunks) {
    return sqdist_in_chunks(row, StoredCenter{other}, static_cast<int>(dim), sums);
  } else {
    return sqdist(row, other, dim, sums);
  }
}

// A member's float64 squared distance to its nearest center, computed by a warp.
template <bool kChunks>
__device__ double nearest_center(const PickBlock& call, const Space& space, int64_t member, double* sums) {
  const double limit = nearest_limit(load_fresh(space.least + member), call.dim);
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  double nearest = static_cast<double>(__uint_as_float(0x7F800000U));
  for (int64_t first = 0; first < call.num_centers; first += kLanes) {
    const int64_t center = first + lane;
    const bool near = center < call.num_centers &&
                      static_cast<double>(load_fresh(space.approximate + member * call.num_centers + center)) <= limit;
    for (unsigned remaining = ballot(near); remaining != 0; remaining &= remaining - 1) {
      const int64_t other = first + __ffs(static_cast<int>(remaining)) - 1;
      nearest = fmin(nearest, exact_sqdist<kChunks>(call.rows + member * call.dim, call.centers + other * call.dim,
                                                    call.dim, sums));
      sync_warp();
    }
  }
  return nearest;
}

// Maximum over the blocks' farthest members, returned to every thread.
__device__ Farthest farthest_of_grid(const Farthest* blocks, Farthest* shared) {
  Farthest all;
  for (unsigned block = threadIdx.x; block < gridDim.x; block += blockDim.x) {
    all.merge(load_fresh(&blocks[block].value), load_fresh(&blocks[block].row));
  }
  all = farthest_of_block(all, shared);
  __syncthreads();
  if (threadIdx.x == 0) shared[0] = all;
  __syncthreads();
  all = shared[0];
  __syncthreads();
  return all;
}

// The first `warps` warps of a block have scratch for float64 distances; the others only compute approximate ones.
template <bool kChunks>
__global__ void __launch_bounds__(kSimtThreads, 2) pick_block_kernel(PickBlock call, Space space, int warps) {
  __shared__ SimtMemory memory;
  __shared__ Farthest shared[kSimtThreads / kLanes];
  const int warp = static_cast<int>(threadIdx.x) / kLanes;
  double* sums = launch_shared<double>() + warp * (halving_width(call.dim) / 8);
  const int64_t step = static_cast<int64_t>(gridDim.x) * warps;
  const int64_t first = warp < warps ? static_cast<int64_t>(blockIdx.x) * warps + warp : call.num_rows;
  const int64_t center_tiles = (call.num_centers + kSimtSide - 1) / kSimtSide;
  const int64_t tiles = (call.num_rows + kSimtSide - 1) / kSimtSide * center_tiles;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    approximate_tile(call, space, tile / center_tiles * kSimtSide, tile % center_tiles * kSimtSide, memory);
  }
  __threadfence();
  sync_grid();
  for (int64_t member = first; member < call.num_rows; member += step) {
    const double nearest = nearest_center<kChunks>(call, space, member, sums);
    if (threadIdx.x % kLanes == 0) space.nearest[member] = nearest;
  }
  const double floor = fmax(fmax(*call.threshold, call.stop_sqdist), -1.0);
  int64_t picked = -1, count = 0;
  double next;
  while (true) {
    Farthest mine;
    for (int64_t member = first; member < call.num_rows; member += step) {
      sync_warp();  // lane 0's write is visible
      double nearest = space.nearest[member];
      sync_warp();
      if (picked == member) nearest = -1.0;
      if (picked >= 0 && nearest >= 0.0) {
        nearest = fmin(nearest, exact_sqdist<kChunks>(call.rows + member * call.dim, call.rows + picked * call.dim,
                                                      call.dim, sums));
      }
      if (threadIdx.x % kLanes == 0) space.nearest[member] = nearest;
      mine.merge(nearest, member);
    }
    Farthest* blocks = space.farthest + count % 2 * gridDim.x;
    const Farthest ours = farthest_of_block(mine, shared);
    if (threadIdx.x == 0) blocks[blockIdx.x] = ours;
    __threadfence();
    sync_grid();
    const Farthest winner = farthest_of_grid(blocks, shared);
    next = winner.value;
    if (count == call.max_picks || next <= floor) break;
    picked = winner.row;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
      call.picks[count] = picked;
      call.sqdist[count] = next;
    }
    ++count;
  }
  for (int64_t member = first; member < call.num_rows; member += step) {
    if (threadIdx.x % kLanes != 0) continue;
    const double nearest = space.nearest[member];
    lower_to(call.bound + member, nearest < 0.0 ? -__uint_as_float(0x7F800000U) : float_above(nearest));
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    *call.num_picks = count;
    *call.next = next;
  }
}

int64_t most_blocks(const PickBlock& call) { return 4 * static_cast<int64_t>(multiprocessors(call.target)); }

Space space_in(Scratch& scratch, const PickBlock& call) {
  return {scratch.take<float>(call.num_rows * call.num_centers), scratch.take<float>(call.num_rows),
          scratch.take<double>(call.num_rows), scratch.take<Farthest>(2 * most_blocks(call))};
}

}  // namespace

int64_t scratch_bytes(const PickBlock& call) {
  Scratch scratch(nullptr);
  space_in(scratch, call);
  return scratch.bytes();
}

Status pick_block(const PickBlock& call) {
  const Device device(call.target);
  Scratch scratch(call.target.scratch);
  const Space space = space_in(scratch, call);
  fill(call.target, space.least, 0x7F,
       call.num_rows * static_cast<int64_t>(sizeof(float)));  // 3.4e38: above every finite distance
  const int warps = warps_of("pick_block", call.target, call.dim, kSharedBytes);
  const int64_t for_members = blocks_of(call.num_rows, warps);
  const int64_t tiles = blocks_of(call.num_rows, kSimtSide) * blocks_of(call.num_centers, kSimtSide);
  const int64_t wanted = for_members > tiles ? for_members : tiles;
  const Shape shape{wanted > most_blocks(call) ? most_blocks(call) : wanted, kSimtThreads,
                    warps * warp_scratch_bytes(call.dim)};
  const bool chunks = halves_in_chunks<float>(call.dim, call.rows, call.dim) &&
                      halves_in_chunks<float>(call.dim, call.centers, call.dim);
  launch_cooperative(chunks ? pick_block_kernel<true> : pick_block_kernel<false>, call.target, shape, call, space,
                     warps);
  return Status::kOk;
}

}  // namespace diverseevol::cuda
