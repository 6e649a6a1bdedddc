// Access to the kernels of an ISA, and to stored rows.
#pragma once

#include "cpu/kernels.h"
#include "ops.h"

namespace diverseevol {

// Call only with a usable ISA.
Kernels kernels_of(Isa isa);

inline bool known(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16;
}

inline const void* row_of(const Rows& x, int64_t row) {
  const int64_t size = x.dtype == DType::kFloat32 ? 4 : 2;
  return static_cast<const char*>(x.data) + row * x.stride * size;
}

}  // namespace diverseevol
