// The float64 squared distance of the specification: squares of differences, summed by halving.
// Written once for all vector widths; the namespace is unnamed for the reason that masked_mean_pool.h gives.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cpu/convert.h"

namespace {

// The squared differences of a row and a center, one by one or a vector at a time.
template <class Vec, class T>
struct Squares {
  using Double = typename Vec::Double;
  const T* row;
  const float* center;

  double one(int64_t d) const {
    const double difference = static_cast<double>(to_float(row[d])) - static_cast<double>(center[d]);
    return difference * difference;
  }
  auto vector(int64_t d) const {
    const auto difference = Double::sub(Double::load(row + d), Double::load(center + d));
    return Double::mul(difference, difference);
  }
};

// The first three halvings in one step: adds one value of each eighth, of which eighths kParts to 7 are zero.
template <int kParts, class Value, class Add>
inline auto add_eighths(const Value& value, const Add& add) {
  const auto pair = [&](auto part) {
    if constexpr (part() + 4 < kParts) {
      return add(value(part()), value(part() + 4));
    } else {
      return value(part());
    }
  };
  return add(add(pair(std::integral_constant<int, 0>()), pair(std::integral_constant<int, 2>())),
             add(pair(std::integral_constant<int, 1>()), pair(std::integral_constant<int, 3>())));
}

template <int kParts, class Vec, class T>
void sum_eighths(const Squares<Vec, T>& squares, int64_t first, int64_t last, int64_t eighth, double* sums) {
  using Double = typename Vec::Double;
  int64_t d = first;
  for (; d + Double::kWidth <= last; d += Double::kWidth) {
    Double::store(sums + d, add_eighths<kParts>([&](int part) { return squares.vector(d + part * eighth); },
                                                [](auto a, auto b) { return Double::add(a, b); }));
  }
  for (; d < last; ++d) {
    sums[d] = add_eighths<kParts>([&](int part) { return squares.one(d + part * eighth); },
                                  [](double a, double b) { return a + b; });
  }
}

template <class Vec, class T>
void sum_eighths(int64_t parts, const Squares<Vec, T>& squares, int64_t first, int64_t last, int64_t eighth,
                 double* sums) {
  if (parts == 4) sum_eighths<4>(squares, first, last, eighth, sums);
  if (parts == 5) sum_eighths<5>(squares, first, last, eighth, sums);
  if (parts == 6) sum_eighths<6>(squares, first, last, eighth, sums);
  if (parts == 7) sum_eighths<7>(squares, first, last, eighth, sums);
  if (parts == 8) sum_eighths<8>(squares, first, last, eighth, sums);
}

// scratch: at least dim + 16 doubles. Vec: the ISA's float vector; Vec::Double is its float64 counterpart.
template <class Vec, class T>
double sqdist(const void* row, const float* center, int64_t dim, double* scratch) {
  using Double = typename Vec::Double;
  const Squares<Vec, T> squares{static_cast<const T*>(row), center};
  int64_t width = 1;
  while (width < dim) width *= 2;
  if (width >= 8) {
    const int64_t eighth = width / 8;
    const int64_t parts = dim / eighth;
    sum_eighths(parts + 1, squares, 0, dim % eighth, eighth, scratch);
    sum_eighths(parts, squares, dim % eighth, eighth, eighth, scratch);
    width = eighth;
  } else {
    for (int64_t d = 0; d < width; ++d) scratch[d] = d < dim ? squares.one(d) : 0.0;
  }
  for (width /= 2; width >= Double::kWidth; width /= 2) {
    for (int64_t d = 0; d < width; d += Double::kWidth) {
      Double::store(scratch + d, Double::add(Double::from(scratch + d), Double::from(scratch + d + width)));
    }
  }
  for (; width >= 1; width /= 2) {
    for (int64_t d = 0; d < width; ++d) scratch[d] = scratch[d] + scratch[d + width];
  }
  return scratch[0];
}

}  // namespace
