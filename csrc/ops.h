// The kernels' contract: plain pointers, int64 sizes and strides in elements, a status. No Python, no torch.
#pragma once

#include <cstdint>

namespace diverseevol {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

enum class Isa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3, kAmxBf16 = 4 };

enum class Status : int {
  kOk = 0,
  kUnknownDType = 1,
  kUnusableIsa = 2,
};

// True when this CPU and its operating system can run the ISA, and this build has it.
bool isa_usable(Isa isa);

// Mean over the tokens whose mask byte is not 0, or over each packed sequence, in float32.
// Order of additions, the same on every ISA: the prefix sum or 0, then the unmasked tokens in groups of eight, a group
// added as a tree ((0+1)+(2+3))+((4+5)+(6+7)), then the tokens left over one after the other.
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
  Isa isa;
  int threads;              // at most this many
  int64_t first_empty_row;  // written: the lowest row with nothing to pool, or -1; its output is not written
};

Status masked_mean_pool(MaskedMeanPool& call);

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
  const int64_t* numbers;  // [count]: the rows to bound, each once; null: all
  int64_t count;           // x.rows when numbers is null
  const float* centers;    // [num_centers, dim], contiguous: the centres' stored values
  int64_t num_centers;     // >= 1
  const float* offset;     // [dim]: subtracted from rows and centres before the products; any finite values
  float* bound;            // [x.rows], in place; -infinity stays
  Isa isa;
  int threads;
  int64_t first_bad_row;  // written: the lowest row that holds a value that is not finite, or -1
};

Status min_sqdist(MinSqdist& call);

// Both in one call: the rows of `screen` are what `pool` writes. Nothing is bounded when a row has nothing to pool.
struct PoolMinSqdist {
  MaskedMeanPool pool;
  MinSqdist screen;
};

Status pool_min_sqdist(PoolMinSqdist& call);

// Greedy K-Center inside a block, exact: the winner is picked while it is above every row outside.
struct PickBlock {
  const float* rows;  // [num_rows, dim], contiguous, in ascending order of their numbers in the data
  int64_t num_rows;
  const float* centers;  // [num_centers, dim], contiguous: all centres so far
  int64_t num_centers;   // >= 1
  int64_t dim;
  const float* offset;  // [dim], as in MinSqdist
  float* bound;         // [num_rows], in place: upper bounds, tightened on return
  double threshold;     // no row outside the block is farther from its nearest centre than this
  double stop_sqdist;   // no pick at or below this squared distance; negative: none
  int64_t max_picks;
  Isa isa;
  int threads;
  int64_t* picks;     // [max_picks] written: positions in the block, in pick order
  double* sqdist;     // [max_picks] written: each one's float64 squared distance to its nearest centre when picked
  int64_t num_picks;  // written
  double next;        // written: no row that is left is farther (squared); -1: none is left
};

Status pick_block(PickBlock& call);

// The streaming step: nearest[i] = min(nearest[i], float64 squared distance to the centre), and the farthest row.
struct UpdateArgmax {
  Rows x;
  const float* center;  // [dim]
  double* nearest;      // [rows], in place; negative: the row is a centre, and stays so
  Isa isa;
  int threads;
  int64_t farthest;  // written: the lowest row that attains the maximum of nearest
};

Status update_argmax(UpdateArgmax& call);

}  // namespace diverseevol
