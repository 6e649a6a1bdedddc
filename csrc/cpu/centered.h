// Rows and centers minus a common offset, their norms, and the certified error of approximate squared distances.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace diverseevol {

// Upper bound of a norm from its float32 sum of squares: covers the sum's rounding and squares that underflow below
// 2^-126.
inline double norm_above(float sum_of_squares, int64_t dim) {
  return 1.005 * std::sqrt(static_cast<double>(sum_of_squares) + static_cast<double>(dim) * 0x1p-125);
}

struct RowNorms {
  double norm;           // upper bound of |x - offset|
  double rounding_norm;  // upper bound of |(x - offset) - x'|, where x' is x - offset as elements
};

inline RowNorms norms_above(const Norms& norms, const GemmKernel& gemm, int64_t dim) {
  return {norm_above(norms.sqnorm, dim), gemm.rounds ? norm_above(norms.rounding_sqnorm, dim) : 0.0};
}

// Upper bound of |approximate - exact| for a squared distance computed as |x|^2 + |c|^2 - 2 x.c from float32 sums in
// any order, where x and c are a row and a center minus the offset. With r = |x| + |c| and u = 2^-24:
//   sums          (dim + 1) u r^2       Higham, Accuracy and Stability of Numerical Algorithms, section 3.1
//   offset        2 u r^2               each difference has a relative error of u
//   additions     4 u r^2               the three terms, and rounding the result to float32
//   elements      2 (|x - x'| |c| + |x'| |c - c'|)      x and c are rounded to x' and c' before the products
//   underflow     dim 2^-124 (1 + r)
// The specification's float64 value is within 2^-24 u r^2 of the exact one; the 32 and the 2 % leave room for it and
// for second-order terms. Valid for dim < 2^16; infinite if the sums may overflow.
inline double certified_error(const RowNorms& row, const RowNorms& center, int64_t dim) {
  const double r = row.norm + center.norm;
  if (!(r < 0x1p63)) return std::numeric_limits<double>::infinity();  // float32 sums may overflow
  const double sums = static_cast<double>(dim + 32) * 0x1p-24 * r * r;
  const double elements =
      2.0 * (row.rounding_norm * center.norm + (row.norm + row.rounding_norm) * center.rounding_norm);
  return 1.02 * (sums + elements) + static_cast<double>(dim) * 0x1p-124 * (1.0 + r);
}

// Lays out the elements of `count` centers, `groups` times four bytes each, as a panel [groups][panel] whose columns
// beyond the last center are zero.
inline void pack_panel(const char* elements, int64_t count, int64_t panel, int64_t groups, char* panel_data) {
  constexpr int64_t kStep = 16;  // groups per pass, so that the written part of the panel stays in the L1 cache
  std::memset(panel_data, 0, static_cast<size_t>(groups * panel) * sizeof(uint32_t));
  for (int64_t first = 0; first < groups; first += kStep) {
    const int64_t last = std::min(first + kStep, groups);
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t group = first; group < last; ++group) {
        std::memcpy(panel_data + (group * panel + j) * 4, elements + (j * groups + group) * 4, 4);
      }
    }
  }
}

// Centers packed in panels for a GemmKernel.
class Panels {
 public:
  // elements_of(j, elements) writes center j's elements [padded] and returns its norms; any thread may call it.
  template <class ElementsOf>
  Panels(const GemmKernel& gemm, int64_t num_centers, int64_t dim, int threads, const ElementsOf& elements_of)
      : gemm_(gemm),
        num_centers_(num_centers),
        padded_(gemm.padded(dim)),
        width_((num_centers + gemm.panel - 1) / gemm.panel * gemm.panel),
        data_(new char[static_cast<size_t>(width_ * row_bytes())]),
        sqnorm_(static_cast<size_t>(width_), std::numeric_limits<float>::infinity()) {
    std::vector<RowNorms> norms(static_cast<size_t>(num_centers));
    parallel_ranges(width_ / gemm.panel, threads, [&](int64_t first_panel, int64_t last_panel) {
      std::vector<char> elements(static_cast<size_t>(gemm.panel * row_bytes()));
      for (int64_t first = first_panel * gemm.panel; first < last_panel * gemm.panel; first += gemm.panel) {
        const int64_t count = std::min(gemm.panel, num_centers - first);
        for (int64_t j = 0; j < count; ++j) {
          const Norms one = elements_of(first + j, elements.data() + j * row_bytes());
          sqnorm_[static_cast<size_t>(first + j)] = one.sqnorm;
          norms[static_cast<size_t>(first + j)] = norms_above(one, gemm, dim);
        }
        pack_panel(elements.data(), count, gemm.panel, padded_ / gemm.depth, data_.get() + first * row_bytes());
      }
    });
    for (const RowNorms& one : norms) {
      largest_.norm = std::max(largest_.norm, one.norm);
      largest_.rounding_norm = std::max(largest_.rounding_norm, one.rounding_norm);
    }
  }

  // products[r][j] = row_r . center_j, [num_rows, width()], undefined for j >= num_centers(); num_rows is a multiple of
  // the GemmKernel's row_group.
  void multiply(const void* rows, int64_t num_rows, float* products) const {
    gemm_.multiply(rows, num_rows, data_.get(), num_centers_, padded_, products);
  }

  int64_t num_centers() const { return num_centers_; }
  int64_t width() const { return width_; }
  int64_t row_bytes() const { return padded_ * gemm_.element_size; }
  int64_t padded() const { return padded_; }
  const float* sqnorm() const { return sqnorm_.data(); }
  RowNorms largest() const { return largest_; }

 private:
  const GemmKernel gemm_;
  const int64_t num_centers_, padded_, width_;
  const std::unique_ptr<char[]> data_;
  std::vector<float> sqnorm_;
  RowNorms largest_{0.0, 0.0};
};

// Packs float32 centers [num_centers, dim], contiguous, minus the offset.
inline Panels centered_panels(const GemmKernel& gemm, const float* centers, int64_t num_centers, int64_t dim,
                              const float* offset, int threads) {
  return Panels(gemm, num_centers, dim, threads, [&](int64_t j, char* elements) {
    return gemm.center_row[0](centers + j * dim, offset, dim, gemm.padded(dim), elements);
  });
}

}  // namespace diverseevol
