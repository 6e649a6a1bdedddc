// masked_mean_pool: finds each row's unmasked tokens and spreads the rows over threads.
#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace diverseevol {

Status masked_mean_pool(MaskedMeanPool& call) {
  if (!isa_usable(call.isa)) return Status::kUnusableIsa;
  if (!known(call.dtype)) return Status::kUnknownDType;
  const auto pool_row = kernels_of(call.isa).pool_row[static_cast<int>(call.dtype)];
  const Rows rows{call.hidden, call.dtype, call.batch, call.dim, call.hidden_stride_batch};
  std::atomic<int64_t> first_empty{call.batch};
  parallel_ranges(call.batch, call.threads, [&](int64_t first, int64_t last) {
    std::vector<int64_t> kept(static_cast<size_t>(call.tokens));
    for (int64_t b = first; b < last; ++b) {
      int64_t count = 0;
      for (int64_t t = 0; t < call.tokens; ++t) {
        if (call.mask[b * call.tokens + t] != 0) kept[static_cast<size_t>(count++)] = t;
      }
      if (count == 0) {
        int64_t lowest = first_empty.load();
        while (b < lowest && !first_empty.compare_exchange_weak(lowest, b)) {
        }
        continue;
      }
      pool_row(row_of(rows, b), call.hidden_stride_token, kept.data(), count, call.dim, call.out + b * call.dim);
    }
  });
  call.first_empty_row = first_empty.load() < call.batch ? first_empty.load() : -1;
  return Status::kOk;
}

}  // namespace diverseevol
