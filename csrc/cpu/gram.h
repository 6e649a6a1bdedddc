// Products of rows with centres, written once for all vector widths and both element types.
// Included by one .cpp per ISA. In an unnamed namespace for the reason masked_mean_pool.h gives.
//
// `Mul` says how a group of rows meets a panel of centres:
//   Element            what rows and centres are stored as; kDepth of them are four bytes
//   kDepth             elements that one multiply takes from each row (2 where products come in pairs)
//   kRows, kVecs       rows of a group; vectors of a panel, each of kLanes centres
//   Acc, zero, load, store, broadcast(const Element*), panel(const Element*), multiply_add(acc, row, centres)
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/convert.h"
#include "cpu/kernels.h"

namespace {

constexpr int64_t kDepthBlock = 1024;  // dimensions taken at once, so that rows and centres stay in the L2 cache

// One group of rows with one panel over dimensions [first, last); adds to products unless first is 0.
template <class Mul>
void multiply_group(const typename Mul::Element* rows, int64_t padded, const typename Mul::Element* panel,
                    int64_t first, int64_t last, float* products, int64_t products_stride) {
  constexpr int64_t kPanel = Mul::kVecs * Mul::kLanes;
  typename Mul::Acc acc[Mul::kRows][Mul::kVecs];
  for (int r = 0; r < Mul::kRows; ++r) {
    for (int v = 0; v < Mul::kVecs; ++v) {
      acc[r][v] = first == 0 ? Mul::zero() : Mul::load(products + r * products_stride + v * Mul::kLanes);
    }
  }
  for (int64_t d = first; d < last; d += Mul::kDepth) {
    const typename Mul::Element* centres = panel + d * kPanel;
    typename Mul::Operand c[Mul::kVecs];
    for (int v = 0; v < Mul::kVecs; ++v) c[v] = Mul::panel(centres + v * Mul::kLanes * Mul::kDepth);
    for (int r = 0; r < Mul::kRows; ++r) {
      const typename Mul::Operand row = Mul::broadcast(rows + r * padded + d);
      for (int v = 0; v < Mul::kVecs; ++v) acc[r][v] = Mul::multiply_add(acc[r][v], row, c[v]);
    }
  }
  for (int r = 0; r < Mul::kRows; ++r) {
    for (int v = 0; v < Mul::kVecs; ++v) {
      Mul::store(products + r * products_stride + v * Mul::kLanes, acc[r][v]);
    }
  }
}

template <class Mul>
void multiply(const void* rows_data, int64_t num_rows, const void* panels_data, int64_t num_centers, int64_t padded,
              float* products) {
  using Element = typename Mul::Element;
  const Element* rows = static_cast<const Element*>(rows_data);
  const Element* panels = static_cast<const Element*>(panels_data);
  constexpr int64_t kPanel = Mul::kVecs * Mul::kLanes;
  const int64_t stride = (num_centers + kPanel - 1) / kPanel * kPanel;
  for (int64_t first = 0; first < padded; first += kDepthBlock) {
    const int64_t last = first + kDepthBlock < padded ? first + kDepthBlock : padded;
    for (int64_t j = 0; j < num_centers; j += kPanel) {
      for (int64_t r = 0; r < num_rows; r += Mul::kRows) {
        multiply_group<Mul>(rows + r * padded, padded, panels + j * padded, first, last, products + r * stride + j,
                            stride);
      }
    }
  }
}

// The row less the offset as elements, zero beyond dim. Vec: the ISA's float vector.
template <class Vec, class Mul, class T>
diverseevol::Norms center_row(const void* row_data, const float* offset, int64_t dim, int64_t padded, void* out) {
  const T* row = static_cast<const T*>(row_data);
  typename Mul::Element* elements = static_cast<typename Mul::Element*>(out);
  auto sqnorm = Vec::zero();
  auto lost = Vec::zero();
  int64_t d = 0;
  for (; d + Vec::kWidth <= dim; d += Vec::kWidth) {
    const auto value = Vec::sub(Vec::load(row + d), Vec::load(offset + d));
    sqnorm = Vec::add(sqnorm, Vec::mul(value, value));
    const auto gone = Mul::store_elements(elements + d, value);
    lost = Vec::add(lost, Vec::mul(gone, gone));
  }
  diverseevol::Norms norms{Vec::sum(sqnorm), Vec::sum(lost)};
  for (; d < dim; ++d) {
    const float value = to_float(row[d]) - offset[d];
    const float gone = Mul::store_element(elements + d, value);
    norms.sqnorm += value * value;
    norms.lost += gone * gone;
  }
  std::memset(static_cast<void*>(elements + dim), 0, static_cast<size_t>(padded - dim) * sizeof *elements);
  return norms;
}

template <class Vec, class Mul>
diverseevol::Gram gram_of() {
  static_assert(Mul::kDepth * sizeof(typename Mul::Element) == sizeof(uint32_t), "what pack_panel moves at a time");
  return {Mul::kRows,
          Mul::kVecs * Mul::kLanes,
          Mul::kDepth,
          Mul::kDepth,
          sizeof(typename Mul::Element),
          sizeof(typename Mul::Element) < sizeof(float),
          {center_row<Vec, Mul, float>, center_row<Vec, Mul, diverseevol::BFloat16>,
           center_row<Vec, Mul, diverseevol::Float16>},
          multiply<Mul>};
}

}  // namespace
