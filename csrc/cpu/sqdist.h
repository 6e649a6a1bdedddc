// The float64 squared distance of the specification: squares of differences, summed by halving.
// In an unnamed namespace for the reason masked_mean_pool.h gives. Plain loops: each file's flags vectorise them.
#pragma once

#include <cstdint>

#include "cpu/convert.h"

namespace {

// scratch: at least 2 * dim doubles, and 16.
template <class T>
double sqdist(const void* row_data, const float* center, int64_t dim, double* scratch) {
  const T* row = static_cast<const T*>(row_data);
  int64_t width = 1;
  while (width < dim) width *= 2;
  // The first halving on the way in: element d of the lower half meets d + width / 2, zero beyond dim.
  const int64_t half = width == 1 ? 1 : width / 2;
  const int64_t met = width == 1 ? 0 : dim - half;
  for (int64_t d = 0; d < met; ++d) {
    const double low = static_cast<double>(to_float(row[d])) - static_cast<double>(center[d]);
    const double high = static_cast<double>(to_float(row[d + half])) - static_cast<double>(center[d + half]);
    scratch[d] = low * low + high * high;
  }
  for (int64_t d = met; d < half; ++d) {
    const double low = static_cast<double>(to_float(row[d])) - static_cast<double>(center[d]);
    scratch[d] = low * low;
  }
  for (int64_t w = half / 2; w >= 1; w /= 2) {
    for (int64_t d = 0; d < w; ++d) scratch[d] = scratch[d] + scratch[d + w];
  }
  return scratch[0];
}

}  // namespace
