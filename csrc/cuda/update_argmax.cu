// update_argmax: one warp per row, in float64; the last block to finish reduces the blocks' farthest rows to one.
#include "cuda/launch.cuh"
#include "cuda/sqdist.cuh"

namespace diverseevol::cuda {

namespace {

constexpr int kSharedBytes = 48 * 1024;
constexpr int kCenterBytes =
    64 * 1024;                  // maximum for the center, so that two blocks fit on a multiprocessor of an H100
constexpr int kBlocksEach = 8;  // per multiprocessor; each handles many rows

struct Blocks {
  Farthest* farthest;  // [blocks]
  unsigned* arrived;   // number of finished blocks, initially 0
};

// kChunks: the block keeps the center as float64 in shared memory and reads rows in chunks.
template <class T, bool kChunks>
__global__ void __launch_bounds__(256, 2) update_argmax_kernel(UpdateArgmax call, Blocks blocks) {
  __shared__ Farthest shared[8];
  __shared__ bool last;
  const int warps = static_cast<int>(blockDim.x) / kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  double* center = launch_shared<double>();
  double* sums = center + (kChunks ? call.x.dim : 0) + warp * (halving_width(call.x.dim) / 8);
  if constexpr (kChunks) {
    SharedCenter<T>::fill(center, call.center, static_cast<int>(call.x.dim));
    __syncthreads();
  }
  const auto to_center = [&](const T* values) {
    if constexpr (kChunks) {
      return sqdist_in_chunks(values, SharedCenter<T>{center}, static_cast<int>(call.x.dim), sums);
    } else {
      return sqdist(values, call.center, call.x.dim, sums);
    }
  };
  Farthest mine;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * warps + warp; row < call.x.rows; row += gridDim.x * warps) {
    double nearest = call.nearest[row];
    if (nearest >= 0.0) {
      const T* values = static_cast<const T*>(call.x.data) + row * call.x.stride;
      nearest = fmin(nearest, to_center(values));
      if (threadIdx.x % kLanes == 0) call.nearest[row] = nearest;
    }
    mine.merge(nearest, row);
  }
  const Farthest ours = farthest_of_block(mine, shared);
  if (threadIdx.x == 0) {
    blocks.farthest[blockIdx.x] = ours;
    __threadfence();
    last = add_one(blocks.arrived) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  Farthest all;
  for (unsigned block = threadIdx.x; block < gridDim.x; block += blockDim.x) {
    all.merge(load_fresh(&blocks.farthest[block].value), load_fresh(&blocks.farthest[block].row));
  }
  all = farthest_of_block(all, shared);
  if (threadIdx.x == 0) *call.farthest = all.row;
}

Blocks blocks_in(Scratch& scratch, const UpdateArgmax& call) {
  const int64_t most = static_cast<int64_t>(kBlocksEach) * multiprocessors(call.target);
  return {scratch.take<Farthest>(most), scratch.take<unsigned>(1)};
}

template <class T>
void run(const UpdateArgmax& call, const Blocks& blocks) {
  const int warps = warps_of("update_argmax", call.target, call.x.dim, kSharedBytes);
  const int64_t most = static_cast<int64_t>(kBlocksEach) * multiprocessors(call.target);
  const int64_t wanted = blocks_of(call.x.rows, warps);
  const int64_t center = call.x.dim * static_cast<int64_t>(sizeof(double));
  Shape shape{wanted < most ? wanted : most, warps * kLanes, warps * warp_scratch_bytes(call.x.dim)};
  if (halves_in_chunks<T>(call.x.dim, call.x.data, call.x.stride) && center <= kCenterBytes &&
      center + shape.shared <= shared_memory(call.target) - kStaticBytes) {
    shape.shared += center;
    launch(update_argmax_kernel<T, true>, call.target, shape, call, blocks);
  } else {
    launch(update_argmax_kernel<T, false>, call.target, shape, call, blocks);
  }
}

}  // namespace

int64_t scratch_bytes(const UpdateArgmax& call) {
  Scratch scratch(nullptr);
  blocks_in(scratch, call);
  return scratch.bytes();
}

Status update_argmax(const UpdateArgmax& call) {
  const Device device(call.target);
  Scratch scratch(call.target.scratch);
  const Blocks blocks = blocks_in(scratch, call);
  fill(call.target, blocks.arrived, 0, sizeof(unsigned));
  const bool known = with_type(call.x.dtype, [&](auto type) { run<decltype(type)>(call, blocks); });
  return known ? Status::kOk : Status::kUnknownDType;
}

}  // namespace diverseevol::cuda
