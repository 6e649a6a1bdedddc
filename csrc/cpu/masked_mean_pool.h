// The pooling of one row, written once for all vector widths. Included by one .cpp per ISA, with the ISA's `Vec`.
// The namespace is unnamed because the linker would merge functions of the same name from files with different ISA
// flags, possibly into a version that the running CPU cannot execute.
#pragma once

#include <cstdint>

#include "cpu/convert.h"

namespace {

// sums[d] += the tree sum of the eight tokens at `rows`.
template <class Vec, class T>
void add_group(const T* const* rows, int64_t dim, float* sums) {
  int64_t d = 0;
  for (; d + Vec::kWidth <= dim; d += Vec::kWidth) {
    const auto s01 = Vec::add(Vec::load(rows[0] + d), Vec::load(rows[1] + d));
    const auto s23 = Vec::add(Vec::load(rows[2] + d), Vec::load(rows[3] + d));
    const auto s45 = Vec::add(Vec::load(rows[4] + d), Vec::load(rows[5] + d));
    const auto s67 = Vec::add(Vec::load(rows[6] + d), Vec::load(rows[7] + d));
    const auto group = Vec::add(Vec::add(s01, s23), Vec::add(s45, s67));
    Vec::store(sums + d, Vec::add(Vec::load(sums + d), group));
  }
  for (; d < dim; ++d) {
    const float s01 = to_float(rows[0][d]) + to_float(rows[1][d]);
    const float s23 = to_float(rows[2][d]) + to_float(rows[3][d]);
    const float s45 = to_float(rows[4][d]) + to_float(rows[5][d]);
    const float s67 = to_float(rows[6][d]) + to_float(rows[7][d]);
    sums[d] = sums[d] + ((s01 + s23) + (s45 + s67));
  }
}

template <class Vec, class T>
void add_one(const T* row, int64_t dim, float* sums) {
  int64_t d = 0;
  for (; d + Vec::kWidth <= dim; d += Vec::kWidth) {
    Vec::store(sums + d, Vec::add(Vec::load(sums + d), Vec::load(row + d)));
  }
  for (; d < dim; ++d) sums[d] = sums[d] + to_float(row[d]);
}

template <class Vec>
void divide(float* sums, int64_t dim, float count) {
  int64_t d = 0;
  for (; d + Vec::kWidth <= dim; d += Vec::kWidth) {
    Vec::store(sums + d, Vec::div(Vec::load(sums + d), count));
  }
  for (; d < dim; ++d) sums[d] = sums[d] / count;
}

// hidden: [tokens, dim]; indices: [count], the unmasked tokens, ascending; out: [dim], on entry the sum of the
// `prefix_len` prefix tokens (or 0), on return the mean. count + prefix_len >= 1.
template <class Vec, class T>
void pool_row(const void* hidden_data, int64_t stride_token, const int64_t* indices, int64_t count, int64_t dim,
              int64_t prefix_len, float* out) {
  const T* hidden = static_cast<const T*>(hidden_data);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const T* rows[8];
    for (int j = 0; j < 8; ++j) rows[j] = hidden + indices[i + j] * stride_token;
    add_group<Vec>(rows, dim, out);
  }
  for (; i < count; ++i) add_one<Vec>(hidden + indices[i] * stride_token, dim, out);
  divide<Vec>(out, dim, static_cast<float>(count + prefix_len));
}

}  // namespace
