// The kernels' contract: plain pointers, int64 sizes and strides in elements, a status. No Python, no torch.
// Each op is `Status op(const Call&)`, on the CPU in namespace diverseevol, on a GPU in diverseevol::cuda. Pointers are
// to memory of the device that runs the call; on a GPU a call is queued on its stream and returns before it has run.
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
  kBoundViolation = 3,  // of pick_block on the CPU: a bound is below its row's distance, so that picks would be wrong
};

// Where a call runs.
struct ExecutionTarget {
  Isa isa;        // on the CPU
  int threads;    // on the CPU: at most this many
  int device;     // on a GPU: its number
  void* stream;   // on a GPU: a cudaStream_t of that device
  void* scratch;  // on a GPU: cuda::scratch_bytes(call) bytes of its memory, aligned to 256; unspecified contents
};

// True when this CPU and its operating system can run the ISA, and this build has it.
bool isa_usable(Isa isa);

// Mean over the tokens whose mask byte is not 0, or over each packed sequence, in float32.
// Order of additions, the same on every ISA and GPU: the prefix sum or 0, then the unmasked tokens in groups of eight,
// a group added as a tree ((0+1)+(2+3))+((4+5)+(6+7)), then the tokens left over one after the other.
struct MaskedMeanPool {
  const void* hidden;  // [batch, tokens, dim], or packed [total tokens, dim]; dim contiguous
  DType dtype;
  const uint8_t* mask;        // [batch, tokens], contiguous; null when packed
  const int64_t* cu_seqlens;  // [batch + 1]: row b is tokens [cu_seqlens[b], cu_seqlens[b + 1]); null when padded
  const float* prefix_sum;    // [dim]: the states that every row begins with, summed; null for none
  int64_t prefix_len;         // how many tokens that sum is of
  float* out;                 // [batch, dim], contiguous
  int64_t batch;
  int64_t tokens;
  int64_t dim;
  int64_t hidden_stride_batch;
  int64_t hidden_stride_token;
  int64_t* first_empty_row;  // written: the lowest row with nothing to pool (its output is not written), or -1
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

// Screen: bound[i] = min(bound[i], an upper bound of row i's squared distance to its nearest centre).
// The bound holds for the exact distance and for its float64 value, whatever the precision of the products.
struct MinSqdist {
  Rows x;
  const int64_t* indices;  // [count]: the rows to bound, each once; null: all
  int64_t count;           // x.rows when indices is null
  const float* centers;    // [num_centers, dim], contiguous: the centres' stored values
  int64_t num_centers;     // >= 1
  const float* offset;     // [dim]: subtracted from rows and centres before the products; any finite values
  float* bound;            // [x.rows], in place; -infinity stays
  int64_t* first_bad_row;  // written: the lowest row that holds a value that is not finite, or -1
  bool general;            // on a GPU: only the kernel that serves every GPU, even where the call suits Hopper's
  ExecutionTarget target;
};

Status min_sqdist(const MinSqdist& call);

// Both in one call: the rows of `screen` are what `pool` writes. Bounds mean nothing when a row has nothing to pool.
struct PoolMinSqdist {
  MaskedMeanPool pool;
  MinSqdist screen;  // scratch is the pool's
};

Status pool_min_sqdist(const PoolMinSqdist& call);

// Greedy K-Center inside a block, exact: the winner is picked while it is above every row outside.
struct PickBlock {
  const float* rows;  // [num_rows, dim], contiguous, in ascending order of their indices in the data
  int64_t num_rows;
  const float* centers;  // [num_centers, dim], contiguous: all centres so far
  int64_t num_centers;   // >= 1
  int64_t dim;
  const float* offset;      // [dim], as in MinSqdist
  float* bound;             // [num_rows], in place: upper bounds, tightened on return
  const double* threshold;  // no row outside the block is farther from its nearest centre than this
  double stop_sqdist;       // no pick at or below this squared distance; negative: none
  int64_t max_picks;
  int64_t* picks;      // [max_picks] written: positions in the block, in pick order
  double* sqdist;      // [max_picks] written: each one's float64 squared distance to its nearest centre when picked
  int64_t* num_picks;  // written
  double* next;        // written: no row that is left is farther (squared); -1: none is left
  ExecutionTarget target;
};

Status pick_block(const PickBlock& call);

// The streaming step: nearest[i] = min(nearest[i], float64 squared distance to the centre), and the farthest row.
struct UpdateArgmax {
  Rows x;
  const float* center;  // [dim]
  double* nearest;      // [rows], in place; negative: the row is a centre, and stays so
  int64_t* farthest;    // written: the lowest row that attains the maximum of nearest
  ExecutionTarget target;
};

Status update_argmax(const UpdateArgmax& call);

// Of each token's logits hidden . weight + bias: the largest, by how much it is above the second largest (infinity for
// a vocabulary of one), and the entropy of their softmax in nats. Logits are kept in tiles alone. GPU only.
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
  int64_t* first_bad_token;  // written: the lowest token with a logit that is not finite, or -1
  ExecutionTarget target;
};

#ifdef DEF_CUDA
// Errors of the CUDA runtime are thrown as std::runtime_error.
namespace cuda {

int64_t scratch_bytes(const MaskedMeanPool& call);
int64_t scratch_bytes(const MinSqdist& call);
int64_t scratch_bytes(const PoolMinSqdist& call);
int64_t scratch_bytes(const PickBlock& call);
int64_t scratch_bytes(const UpdateArgmax& call);
int64_t scratch_bytes(const LogitStats& call);

// Whether min_sqdist gives the call to Hopper's own kernel: one check is of that kernel, another of the general one.
// Of the call only x, indices, count, num_centers, general and target are read.
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
