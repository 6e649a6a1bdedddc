// The Hopper kernel of min_sqdist, as min_sqdist.cu calls it.
#pragma once

#include <cstdint>

#include "ops.h"

namespace diverseevol::cuda {

#ifdef DEF_HOPPER  // built for sm_90a
int64_t hopper_scratch_bytes(const MinSqdist& call);

// Expects that the target's device is current and first_bad_row is -1.
Status hopper_min_sqdist(const MinSqdist& call);
#else
inline int64_t hopper_scratch_bytes(const MinSqdist&) { return 0; }
inline Status hopper_min_sqdist(const MinSqdist&) { return Status::kOk; }
#endif

}  // namespace diverseevol::cuda
