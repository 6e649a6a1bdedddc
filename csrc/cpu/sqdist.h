// The float64 squared distance of the specification: squares of differences, summed by halving.
// Written once for all vector widths; in an unnamed namespace for the reason masked_mean_pool.h gives.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/convert.h"

namespace {

// scratch: at least dim + 16 doubles. Vec: the ISA's float vector, which knows its float64 counterpart.
template <class Vec, class T>
double sqdist(const void* row_data, const float* center, int64_t dim, double* scratch) {
  using Double = typename Vec::Double;
  const T* row = static_cast<const T*>(row_data);
  const auto square = [row, center](int64_t d) {
    const double difference = static_cast<double>(to_float(row[d])) - static_cast<double>(center[d]);
    return difference * difference;
  };
  const auto squares = [row, center](int64_t d) {
    const auto difference = Double::sub(Double::load(row + d), Double::load(center + d));
    return Double::mul(difference, difference);
  };
  int64_t width = 1;
  while (width < dim) width *= 2;
  // The first halving on the way in: element d of the lower half meets d + width / 2, zero beyond dim.
  const int64_t half = std::max<int64_t>(1, width / 2);
  const int64_t met = width == 1 ? 0 : dim - half;
  int64_t d = 0;
  for (; d + Double::kWidth <= met; d += Double::kWidth) {
    Double::store(scratch + d, Double::add(squares(d), squares(d + half)));
  }
  for (; d < met; ++d) scratch[d] = square(d) + square(d + half);
  for (; d + Double::kWidth <= half; d += Double::kWidth) Double::store(scratch + d, squares(d));
  for (; d < half; ++d) scratch[d] = square(d);
  int64_t w = half / 2;
  for (; w >= Double::kWidth; w /= 2) {
    for (d = 0; d < w; d += Double::kWidth) {
      Double::store(scratch + d, Double::add(Double::from(scratch + d), Double::from(scratch + d + w)));
    }
  }
  for (; w >= 1; w /= 2) {
    for (d = 0; d < w; ++d) scratch[d] = scratch[d] + scratch[d + w];
  }
  return scratch[0];
}

}  // namespace
