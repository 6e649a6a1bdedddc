// update_argmax: one pass over the rows for one center, in float64; limited by memory bandwidth.
#include <algorithm>
#include <mutex>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace diverseevol {

namespace {

// The sum by halving reads eight parts of a row at once, a pattern that the hardware prefetcher does not follow.
void prefetch(const void* data, int64_t bytes) {
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(static_cast<const char*>(data) + line);
}

}  // namespace

Status update_argmax(const UpdateArgmax& call) {
  if (!isa_usable(call.target.isa)) return Status::kUnusableIsa;
  if (!known(call.x.dtype)) return Status::kUnknownDType;
  const auto sqdist = kernels_of(call.target.isa).sqdist[static_cast<int>(call.x.dtype)];
  const int64_t row_bytes = call.x.dim * (call.x.dtype == DType::kFloat32 ? 4 : 2);
  std::mutex mutex;
  int64_t farthest_of_all = -1;
  parallel_ranges(call.x.rows, call.target.threads, [&](int64_t first, int64_t last) {
    std::vector<double> scratch(static_cast<size_t>(call.x.dim) + 16);
    int64_t farthest = first;
    for (int64_t i = first; i < last; ++i) {
      double& nearest = call.nearest[i];
      if (i + 1 < last) prefetch(row_of(call.x, i + 1), row_bytes);
      if (nearest >= 0) nearest = std::min(nearest, sqdist(row_of(call.x, i), call.center, call.x.dim, scratch.data()));
      if (nearest > call.nearest[farthest]) farthest = i;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    // farthest_of_all belongs to a finished range: no thread writes its `nearest` any more.
    const double ours = call.nearest[farthest];
    const double theirs = farthest_of_all < 0 ? -1.0 : call.nearest[farthest_of_all];
    if (farthest_of_all < 0 || ours > theirs || (ours == theirs && farthest < farthest_of_all))
      farthest_of_all = farthest;
  });
  *call.farthest = farthest_of_all;
  return Status::kOk;
}

}  // namespace diverseevol
