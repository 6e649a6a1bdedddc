// masked_mean_pool: one block per row and range of columns; limited by memory bandwidth.
#include "cuda/launch.cuh"
#include "cuda/masked_mean_pool.cuh"

namespace diverseevol::cuda {

namespace {

template <class T, int kVec>
__global__ void __launch_bounds__(kPoolThreads, 4) masked_mean_pool_kernel(MaskedMeanPool call, int64_t column_blocks) {
  __shared__ TokenList list;
  const int64_t row = blockIdx.x / column_blocks;
  const int64_t column = (blockIdx.x % column_blocks * kPoolThreads + threadIdx.x) * kVec;
  const bool inside = column < call.dim;
  const Columns<T, kVec> sum = sum_of_tokens<T, kVec>(call, row, column, inside, list);
  const int64_t count = sum.count + call.prefix_len;
  if (count == 0) {
    if (threadIdx.x == 0) lower_to(call.first_empty_row, row);
    return;
  }
  if (!inside) return;
#pragma unroll
  for (int v = 0; v < kVec; ++v) call.out[row * call.dim + column + v] = sum.sums[v] / static_cast<float>(count);
}

template <class T, int kVec>
void pool(const MaskedMeanPool& call) {
  const int64_t column_blocks = blocks_of(call.dim, static_cast<int64_t>(kPoolThreads) * kVec);
  launch(masked_mean_pool_kernel<T, kVec>, call.target, {call.batch * column_blocks, kPoolThreads, 0}, call,
         column_blocks);
}

}  // namespace

int64_t scratch_bytes(const MaskedMeanPool&) { return 0; }

Status masked_mean_pool(const MaskedMeanPool& call) {
  const Device device(call.target);
  fill(call.target, call.first_empty_row, 0xFF, sizeof(int64_t));
  if (call.batch == 0 || call.dim == 0) return Status::kOk;
  const bool known = with_type(call.dtype, [&](auto type) {
    using T = decltype(type);
    if (tokens_in_chunks<T>(call)) {
      pool<T, Chunk<T>::kValues>(call);
    } else {
      pool<T, 1>(call);
    }
  });
  return known ? Status::kOk : Status::kUnknownDType;
}

}  // namespace diverseevol::cuda
