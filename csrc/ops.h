// The kernels' contract: plain pointers, int64 sizes and strides in elements, a status. No Python, no torch.
#pragma once

#include <cstdint>

namespace diverseevol {

enum class DType : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

enum class Isa : int { kScalar = 0, kAvx2 = 1, kAvx512 = 2 };

enum class Status : int {
  kOk = 0,
  kUnknownDType = 1,
  kUnusableIsa = 2,
};

// True when this CPU and its operating system can run the ISA, and this build has it.
bool isa_usable(Isa isa);

// Mean over the tokens whose mask byte is not 0, in float32.
// Order of additions, the same on every ISA: the unmasked tokens in groups of eight, a group added as a tree
// ((0+1)+(2+3))+((4+5)+(6+7)), the groups and then the tokens left over added one after the other.
struct MaskedMeanPool {
  const void* hidden;  // [batch, tokens, dim], dim contiguous
  DType dtype;
  const uint8_t* mask;  // [batch, tokens], contiguous
  float* out;           // [batch, dim], contiguous
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

}  // namespace diverseevol
