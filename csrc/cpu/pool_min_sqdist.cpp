// pool_min_sqdist: pools a batch, and bounds the pooled rows while they are in the cache.
#include "ops.h"

namespace diverseevol {

Status pool_min_sqdist(const PoolMinSqdist& call) {
  const Status pooled = masked_mean_pool(call.pool);
  if (pooled != Status::kOk || *call.pool.first_empty_row >= 0) return pooled;
  return min_sqdist(call.screen);
}

}  // namespace diverseevol
