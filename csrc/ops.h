// The kernels' contract: plain pointers, int64 sizes and strides in elements, a status. No Python, no torch.
// Each op is `Status op(const Call&)`, on the CPU in namespace diverseevol, on a GPU in diverseevol::cuda. Pointers are
// to memory of the device that runs the call; a GPU call is enqueued on its stream and returns before it has run.
#pragma once

#include <cstdint>

namespace diverseevol {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

enum class Isa : int {
#define DEF_ISA(name, ...) name,
#include "isas.def"
};

enum class Status : int {
  kOk = 0,
  kUnknownDType = 1,
  kUnusableIsa = 2,
  kBoundViolation = 3,  // pick_block on the CPU: a bound is below its row's distance, so picks could be wrong
};

// What a call runs on.
struct ExecutionTarget {
  Isa isa;        // CPU
  int threads;    // CPU: maximum number of threads
  int device;     // GPU: CUDA's index of the device
  void* stream;   // GPU: a cudaStream_t of that device
  void* scratch;  // GPU: cuda::scratch_bytes(call) bytes of device memory, aligned to 256, contents unspecified
};

// Whether this CPU and its operating system run the ISA, and this build includes it.
bool isa_usable(Isa isa);

// Mean over the tokens whose mask byte is not 0, or over each packed sequence, in float32.
// The order of additions is the same on every ISA and GPU: the prefix sum (or 0), then the unmasked tokens in groups of
// eight, each group summed as a tree ((0+1)+(2+3))+((4+5)+(6+7)), then the remaining tokens one by one.
struct MaskedMeanPool {
  const void* hidden;  // [batch, tokens, dim], or packed [total tokens, dim]; dim contiguous
  DType dtype;
  const uint8_t* mask;        // [batch, tokens], contiguous; null when packed
  const int64_t* cu_seqlens;  // [batch + 1]: row b is tokens [cu_seqlens[b], cu_seqlens[b + 1]); null when padded
  const float* prefix_sum;    // [dim]: sum of the hidden states of the prefix that all rows share; null for none
  int64_t prefix_len;         // number of tokens in prefix_sum
  float* out;                 // [batch, dim], contiguous
  int64_t batch;
  int64_t tokens;
  int64_t dim;
  int64_t hidden_stride_batch;
  int64_t hidden_stride_token;
  int64_t* first_empty_row;  // output: the lowest row without a token to pool (its `out` stays unwritten), or -1
  ExecutionTarget target;
};

Status masked_mean_pool(const MaskedMeanPool& call);

// Stored rows [rows, dim], dim contiguous.
struct Rows {
  const void* data;
  DType dtype;
  int64_t rows;
  int64_t dim;
  int64_t stride;
};

// Screen: bound[i] = min(bound[i], upper bound of row i's squared distance to its nearest center).
// The upper bound holds for the exact distance and for its float64 value, whatever the precision of the products.
struct MinSqdist {
  Rows x;
  const int64_t* indices;  // [count]: the rows to bound, without repetition; null: all rows
  int64_t count;           // x.rows when indices is null
  const float* centers;    // [num_centers, dim], contiguous
  int64_t num_centers;     // >= 1
  const float* offset;     // [dim], finite: subtracted from rows and centers before the products
  float* bound;            // [x.rows], updated in place; -infinity stays
  int64_t* first_bad_row;  // output: the lowest row with a non-finite value, or -1
  bool general;            // GPU: use the kernel that runs on every GPU, even where suits_hopper is true
  ExecutionTarget target;
};

Status min_sqdist(const MinSqdist& call);

// Pools and screens in one call: `screen.x` is `pool.out`. Bounds are undefined if a row has no token to pool.
struct PoolMinSqdist {
  MaskedMeanPool pool;
  MinSqdist screen;  // same target as `pool`; only pool.target has scratch
};

Status pool_min_sqdist(const PoolMinSqdist& call);

// Exact greedy K-Center inside a block: picks the farthest row as long as it is above every row outside the block.
struct PickBlock {
  const float* rows;  // [num_rows, dim], contiguous, in ascending order of their indices in the data set
  int64_t num_rows;
  const float* centers;  // [num_centers, dim], contiguous: all current centers
  int64_t num_centers;   // >= 1
  int64_t dim;
  const float* offset;      // [dim], as in MinSqdist
  float* bound;             // [num_rows], updated in place: upper bounds of the squared distances
  const double* threshold;  // [1]: upper bound of the squared distances of all rows outside the block
  double stop_sqdist;       // picks stop at this squared distance or below; negative: never
  int64_t max_picks;
  int64_t* picks;      // [max_picks] output: indices into the block, in pick order
  double* sqdist;      // [max_picks] output: float64 squared distance of each pick to its nearest center when picked
  int64_t* num_picks;  // output
  double* next;        // output: upper bound of the unpicked rows' squared distances; -1: all are picked
  ExecutionTarget target;
};

Status pick_block(const PickBlock& call);

// Streaming step: nearest[i] = min(nearest[i], float64 squared distance of row i to the center), and the farthest row.
struct UpdateArgmax {
  Rows x;
  const float* center;  // [dim]
  double* nearest;      // [rows], updated in place; negative marks a row that is a center
  int64_t* farthest;    // output: the lowest row that attains the maximum of nearest
  ExecutionTarget target;
};

Status update_argmax(const UpdateArgmax& call);

// Statistics of each token's logits hidden . weight + bias: the largest, its margin over the second largest (infinity
// for a vocabulary of one), and the entropy of their softmax in nats. Only a tile of logits exists at a time. GPU only.
struct LogitStats {
  const void* hidden;  // [tokens, dim], dim contiguous
  const void* weight;  // [vocabulary, dim], dim contiguous
  const float* bias;   // [vocabulary]; null for none
  DType dtype;         // of hidden and weight
  int64_t tokens;
  int64_t vocabulary;  // >= 1
  int64_t dim;
  int64_t hidden_stride;
  int64_t weight_stride;
  float* largest;            // [tokens]
  float* margin;             // [tokens]
  float* entropy;            // [tokens]
  int64_t* first_bad_token;  // output: the lowest token with a non-finite logit, or -1
  ExecutionTarget target;
};

#ifdef DEF_CUDA
// The functions throw errors of the CUDA runtime as std::runtime_error.
namespace cuda {

int64_t scratch_bytes(const MaskedMeanPool& call);
int64_t scratch_bytes(const MinSqdist& call);
int64_t scratch_bytes(const PoolMinSqdist& call);
int64_t scratch_bytes(const PickBlock& call);
int64_t scratch_bytes(const UpdateArgmax& call);
int64_t scratch_bytes(const LogitStats& call);

// Whether min_sqdist runs the call on the Hopper kernel; the general and the Hopper kernel have separate self-checks.
// Reads only x, indices, count, num_centers, general and target of the call.
bool suits_hopper(const MinSqdist& call);

Status masked_mean_pool(const MaskedMeanPool& call);
Status min_sqdist(const MinSqdist& call);
Status pool_min_sqdist(const PoolMinSqdist& call);
Status pick_block(const PickBlock& call);
Status update_argmax(const UpdateArgmax& call);
Status logit_stats(const LogitStats& call);

}  // namespace cuda
#endif

}  // namespace diverseevol
