// min_sqdist on Hopper's own matrix instructions: what min_sqdist.cu asks of min_sqdist_hopper.cu.
#pragma once

#include <cstdint>

#include "ops.h"

namespace diverseevol::cuda {

#ifdef DEF_HOPPER  // built for sm_90a
int64_t hopper_scratch_bytes(const MinSqdist& call);

// The call's device is current, first_bad_row is -1.
Status hopper_min_sqdist(const MinSqdist& call);
#else
inline int64_t hopper_scratch_bytes(const MinSqdist&) { return 0; }
inline Status hopper_min_sqdist(const MinSqdist&) { return Status::kOk; }
#endif

}  // namespace diverseevol::cuda
