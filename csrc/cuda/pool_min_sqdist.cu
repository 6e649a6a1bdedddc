// pool_min_sqdist: in one launch, a block pools a range of a row's columns and multiplies them with the first centers;
// the row's last block to finish adds the parts in order and bounds the row. min_sqdist screens the remaining centers.
#include "cuda/centered.cuh"
#include "cuda/launch.cuh"
#include "cuda/masked_mean_pool.cuh"

namespace diverseevol::cuda {

namespace {

constexpr int kFirst = 32;  // centers in the launch, one per lane
constexpr int kWarps = kPoolThreads / 32;

// A row's products with the centers and its squared norm, over one block's columns.
struct Part {
  float products[kFirst];
  float sqnorm;
};

struct Parts {
  Part* parts;        // [rows, column_blocks]
  unsigned* arrived;  // [rows]: number of finished blocks, initially 0
  int64_t column_blocks;
};

// Sum over the warp's lanes.
__device__ float warp_sum(float value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += shuffle_xor(value, lanes);
  return value;
}

// Writes the part of a block's columns, kVec per thread; lane l of warp 0 writes product l.
template <int kVec>
__device__ void add_columns(const float (&values)[kVec], int64_t column, bool inside, const float* centers, int64_t dim,
                            Part (&warps)[kWarps], Part* part) {
  constexpr int kLoad = kVec < 4 ? kVec : 4;
  struct alignas(kLoad * sizeof(float)) Points {
    float values[kLoad];
  };
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  float sqnorm = 0.0F;
#pragma unroll
  for (int v = 0; v < kVec; ++v) sqnorm += values[v] * values[v];
  sqnorm = warp_sum(sqnorm);
  if (lane == 0) warps[warp].sqnorm = sqnorm;
  for (int center = 0; center < kFirst; ++center) {
    float product = 0.0F;
#pragma unroll
    for (int v = 0; v < kVec; v += kLoad) {
      const Points points = inside ? *reinterpret_cast<const Points*>(centers + center * dim + column + v) : Points{};
#pragma unroll
      for (int i = 0; i < kLoad; ++i) product += values[v + i] * points.values[i];
    }
    product = warp_sum(product);
    if (lane == 0) warps[warp].products[center] = product;
  }
  __syncthreads();
  if (warp != 0) return;
  float product = 0.0F, norm = 0.0F;
  for (int w = 0; w < kWarps; ++w) {
    product += warps[w].products[lane];
    norm += warps[w].sqnorm;
  }
  part->products[lane] = product;
  if (lane == 0) part->sqnorm = norm;
}

// Bounds a row; called by warp 0 of the row's last block.
__device__ void bound_row(const MinSqdist& call, const CenteredCenters<float>& centers, const Parts& parts,
                          int64_t row) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float product = 0.0F, sqnorm = 0.0F;
  for (int64_t block = 0; block < parts.column_blocks; ++block) {
    const Part* part = parts.parts + row * parts.column_blocks + block;
    product += load_fresh(part->products + lane);
    sqnorm += load_fresh(&part->sqnorm);
  }
  float nearest = centers.own[lane] - 2.0F * product;
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) nearest = fminf(nearest, shuffle_xor(nearest, lanes));
  if (lane != 0) return;
  const double error =
      certified_error(norm_above(sqnorm, call.x.dim), 0.0, 0.0, *centers.largest, call.x.dim, kFloatRoundoff);
  lower_bound(call.bound + row, static_cast<double>(sqnorm) + static_cast<double>(nearest) + error);
}

template <class T, int kVec>
__global__ void __launch_bounds__(kPoolThreads, 4)
    pool_min_sqdist_kernel(PoolMinSqdist call, CenteredCenters<float> centers, Parts parts) {
  __shared__ TokenList list;
  __shared__ Part warps[kWarps];
  __shared__ bool last;
  const MaskedMeanPool& pool = call.pool;
  const int64_t row = blockIdx.x / parts.column_blocks, block = blockIdx.x % parts.column_blocks;
  const int64_t column = (block * kPoolThreads + threadIdx.x) * kVec;
  const bool inside = column < pool.dim;
  const Columns<T, kVec> sum = sum_of_tokens<T, kVec>(pool, row, column, inside, list);
  const int64_t count = sum.count + pool.prefix_len;
  if (count == 0) {
    if (threadIdx.x == 0) lower_to(pool.first_empty_row, row);
    return;
  }
  float values[kVec];
#pragma unroll
  for (int v = 0; v < kVec; ++v) {
    const float mean = sum.sums[v] / static_cast<float>(count);
    values[v] = inside ? mean - call.screen.offset[column + v] : 0.0F;
    if (inside) pool.out[row * pool.dim + column + v] = mean;
    if (inside && !is_finite(mean)) lower_to(call.screen.first_bad_row, row);
  }
  add_columns<kVec>(values, column, inside, centers.elements, centers.padded_dim, warps,
                    parts.parts + row * parts.column_blocks + block);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = add_one(parts.arrived + row) == parts.column_blocks - 1;
  __syncthreads();
  if (!last || threadIdx.x >= 32) return;
  __threadfence();
  bound_row(call.screen, centers, parts, row);
}

// The call's scratch memory: the first centers, the rows' parts, and the scratch of screening the other centers.
struct Space {
  CenteredCenters<float> centers;
  Parts parts;
  void* others;
  int64_t bytes;

  Space(const PoolMinSqdist& call, int64_t columns_each) {
    const MaskedMeanPool& pool = call.pool;
    const int64_t column_blocks = blocks_of(pool.dim, columns_each);
    Scratch scratch(pool.target.scratch);
    centers = {scratch.take<float>(kFirst * pool.dim),
               scratch.take<float>(kFirst),
               scratch.take<float>(pool.dim),
               scratch.take<Largest>(1),
               kFirst,
               pool.dim};
    parts = {scratch.take<Part>(pool.batch * column_blocks), scratch.take<unsigned>(pool.batch), column_blocks};
    const int64_t before = scratch.bytes();
    others = static_cast<char*>(pool.target.scratch) + before;
    bytes = before + (call.screen.num_centers > kFirst ? cuda::scratch_bytes(other_centers(call)) : 0);
  }

  static MinSqdist other_centers(const PoolMinSqdist& call) {
    MinSqdist others = call.screen;
    others.target = call.pool.target;
    others.centers += kFirst * call.pool.dim;
    others.num_centers -= kFirst;
    return others;
  }
};

template <class T, int kVec>
void run(const PoolMinSqdist& call) {
  const MaskedMeanPool& pool = call.pool;
  const Space space(call, static_cast<int64_t>(kPoolThreads) * kVec);
  fill(pool.target, space.centers.largest, 0, sizeof(Largest));
  fill(pool.target, space.parts.arrived, 0, pool.batch * static_cast<int64_t>(sizeof(unsigned)));
  const int64_t first = call.screen.num_centers < kFirst ? call.screen.num_centers : kFirst;
  launch(center_centers_kernel<FloatElement, false>, pool.target, {kFirst, kCenterThreads, 0}, call.screen.centers,
         first, pool.dim, call.screen.offset, space.centers);
  launch(pool_min_sqdist_kernel<T, kVec>, pool.target, {pool.batch * space.parts.column_blocks, kPoolThreads, 0}, call,
         space.centers, space.parts);
  if (call.screen.num_centers > kFirst) {
    MinSqdist others = Space::other_centers(call);
    others.target.scratch = space.others;
    cuda::min_sqdist(others);
  }
}

}  // namespace

int64_t scratch_bytes(const PoolMinSqdist& call) { return Space(call, kPoolThreads).bytes; }

Status pool_min_sqdist(const PoolMinSqdist& call) {
  const MaskedMeanPool& pool = call.pool;
  const Device device(pool.target);
  fill(pool.target, pool.first_empty_row, 0xFF, sizeof(int64_t));
  fill(pool.target, call.screen.first_bad_row, 0xFF, sizeof(int64_t));
  if (pool.batch == 0 || pool.dim == 0) return Status::kOk;
  const bool known = with_type(pool.dtype, [&](auto type) {
    using T = decltype(type);
    if (tokens_in_chunks<T>(pool)) {
      run<T, Chunk<T>::kValues>(call);
    } else {
      run<T, 1>(call);
    }
  });
  return known ? Status::kOk : Status::kUnknownDType;
}

}  // namespace diverseevol::cuda
