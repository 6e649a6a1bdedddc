// masked_mean_pool: lists each row's unmasked tokens and distributes the rows over threads.
#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace diverseevol {

namespace {

// Lists the unmasked tokens of row b as indices into the row, or into `hidden` if it is packed.
void list_tokens(const MaskedMeanPool& call, int64_t b, std::vector<int64_t>& tokens) {
  tokens.clear();
  if (call.cu_seqlens != nullptr) {
    for (int64_t t = call.cu_seqlens[b]; t < call.cu_seqlens[b + 1]; ++t) tokens.push_back(t);
    return;
  }
  const uint8_t* mask = call.mask + b * call.tokens;
  for (int64_t t = 0; t < call.tokens; ++t) {
    if (mask[t] != 0) tokens.push_back(t);
  }
}

}  // namespace

Status masked_mean_pool(const MaskedMeanPool& call) {
  if (!isa_usable(call.target.isa)) return Status::kUnusableIsa;
  if (!known(call.dtype)) return Status::kUnknownDType;
  const auto pool_row = kernels_of(call.target.isa).pool_row[static_cast<int>(call.dtype)];
  const Rows rows{call.hidden, call.dtype, call.batch, call.dim, call.hidden_stride_batch};
  std::atomic<int64_t> first_empty{call.batch};
  parallel_ranges(call.batch, call.target.threads, [&](int64_t first, int64_t last) {
    std::vector<int64_t> tokens;
    for (int64_t b = first; b < last; ++b) {
      list_tokens(call, b, tokens);
      if (tokens.empty() && call.prefix_len == 0) {
        int64_t lowest = first_empty.load();
        while (b < lowest && !first_empty.compare_exchange_weak(lowest, b)) {
        }
        continue;
      }
      float* out = call.out + b * call.dim;
      if (call.prefix_sum != nullptr) {
        std::copy_n(call.prefix_sum, call.dim, out);
      } else {
        std::fill_n(out, call.dim, 0.0F);
      }
      const void* hidden = call.cu_seqlens != nullptr ? call.hidden : row_of(rows, b);
      pool_row(hidden, call.hidden_stride_token, tokens.data(), static_cast<int64_t>(tokens.size()), call.dim,
               call.prefix_len, out);
    }
  });
  *call.first_empty_row = first_empty.load() < call.batch ? first_empty.load() : -1;
  return Status::kOk;
}

}  // namespace diverseevol
