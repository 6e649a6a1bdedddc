// The matrix product of rows with centers, written once for all vector widths and both element types.
// Included by one .cpp per ISA; the namespace is unnamed for the reason that masked_mean_pool.h gives.
//
// A `MicroKernel` multiplies a group of rows with a panel of centers in registers. It defines:
//   Element            type that rows and centers are stored as; kDepth elements are four bytes
//   kDepth             elements of each row in one multiply_add (2 if the instruction adds pairs of products)
//   kRows, kVecs       rows of a group; vectors of a panel, each with kLanes centers
//   Acc, zero, load, store, broadcast(const Element*), panel(const Element*), multiply_add(acc, row, centers)
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/convert.h"
#include "cpu/kernels.h"

namespace {

// The part of a float32 MicroKernel that follows from the ISA's float vector; the rest is kRows, kVecs, broadcast and
// multiply_add. store_elements and store_element return the rounding residual.
template <class Vec>
struct FloatMicroKernel {
  using Element = float;
  using Acc = decltype(Vec::zero());
  using Operand = Acc;
  static constexpr int64_t kDepth = 1;
  static constexpr int64_t kLanes = Vec::kWidth;
  static Acc zero() { return Vec::zero(); }
  static Acc load(const float* from) { return Vec::load(from); }
  static void store(float* to, Acc value) { Vec::store(to, value); }
  static Acc panel(const float* from) { return Vec::load(from); }
  static Acc store_elements(float* to, Acc value) {
    Vec::store(to, value);
    return Vec::zero();
  }
  static float store_element(float* to, float value) {
    *to = value;
    return 0.0F;
  }
};

constexpr int64_t kDepthBlock = 1024;  // dimensions per pass, so that rows and centers stay in the L2 cache

// Multiplies one group of rows with one panel over dimensions [first, last); adds to products unless first is 0.
template <class MicroKernel>
void multiply_group(const typename MicroKernel::Element* rows, int64_t padded,
                    const typename MicroKernel::Element* panel, int64_t first, int64_t last, float* products,
                    int64_t products_stride) {
  constexpr int64_t kPanel = MicroKernel::kVecs * MicroKernel::kLanes;
  typename MicroKernel::Acc acc[MicroKernel::kRows][MicroKernel::kVecs];
  for (int r = 0; r < MicroKernel::kRows; ++r) {
    for (int v = 0; v < MicroKernel::kVecs; ++v) {
      acc[r][v] = first == 0 ? MicroKernel::zero()
                             : MicroKernel::load(products + r * products_stride + v * MicroKernel::kLanes);
    }
  }
  for (int64_t d = first; d < last; d += MicroKernel::kDepth) {
    const typename MicroKernel::Element* centers = panel + d * kPanel;
    typename MicroKernel::Operand c[MicroKernel::kVecs];
    for (int v = 0; v < MicroKernel::kVecs; ++v)
      c[v] = MicroKernel::panel(centers + v * MicroKernel::kLanes * MicroKernel::kDepth);
    for (int r = 0; r < MicroKernel::kRows; ++r) {
      const typename MicroKernel::Operand row = MicroKernel::broadcast(rows + r * padded + d);
      for (int v = 0; v < MicroKernel::kVecs; ++v) acc[r][v] = MicroKernel::multiply_add(acc[r][v], row, c[v]);
    }
  }
  for (int r = 0; r < MicroKernel::kRows; ++r) {
    for (int v = 0; v < MicroKernel::kVecs; ++v) {
      MicroKernel::store(products + r * products_stride + v * MicroKernel::kLanes, acc[r][v]);
    }
  }
}

template <class MicroKernel>
void multiply(const void* rows_data, int64_t num_rows, const void* panels_data, int64_t num_centers, int64_t padded,
              float* products) {
  using Element = typename MicroKernel::Element;
  const Element* rows = static_cast<const Element*>(rows_data);
  const Element* panels = static_cast<const Element*>(panels_data);
  constexpr int64_t kPanel = MicroKernel::kVecs * MicroKernel::kLanes;
  const int64_t stride = (num_centers + kPanel - 1) / kPanel * kPanel;
  for (int64_t first = 0; first < padded; first += kDepthBlock) {
    const int64_t last = first + kDepthBlock < padded ? first + kDepthBlock : padded;
    for (int64_t j = 0; j < num_centers; j += kPanel) {
      for (int64_t r = 0; r < num_rows; r += MicroKernel::kRows) {
        multiply_group<MicroKernel>(rows + r * padded, padded, panels + j * padded, first, last,
                                    products + r * stride + j, stride);
      }
    }
  }
}

// Writes row - offset as elements, zero beyond dim. Vec: the ISA's float vector.
template <class Vec, class MicroKernel, class T>
diverseevol::Norms center_row(const void* row_data, const float* offset, int64_t dim, int64_t padded, void* out) {
  const T* row = static_cast<const T*>(row_data);
  typename MicroKernel::Element* elements = static_cast<typename MicroKernel::Element*>(out);
  auto sqnorm = Vec::zero();
  auto rounding_sqnorm = Vec::zero();
  int64_t d = 0;
  for (; d + Vec::kWidth <= dim; d += Vec::kWidth) {
    const auto value = Vec::sub(Vec::load(row + d), Vec::load(offset + d));
    sqnorm = Vec::add(sqnorm, Vec::mul(value, value));
    const auto residual = MicroKernel::store_elements(elements + d, value);
    rounding_sqnorm = Vec::add(rounding_sqnorm, Vec::mul(residual, residual));
  }
  diverseevol::Norms norms{Vec::sum(sqnorm), Vec::sum(rounding_sqnorm)};
  for (; d < dim; ++d) {
    const float value = to_float(row[d]) - offset[d];
    const float residual = MicroKernel::store_element(elements + d, value);
    norms.sqnorm += value * value;
    norms.rounding_sqnorm += residual * residual;
  }
  std::memset(static_cast<void*>(elements + dim), 0, static_cast<size_t>(padded - dim) * sizeof *elements);
  return norms;
}

template <class Vec, class MicroKernel>
diverseevol::GemmKernel gemm_kernel_of() {
  static_assert(MicroKernel::kDepth * sizeof(typename MicroKernel::Element) == sizeof(uint32_t),
                "pack_panel moves four bytes at a time");
  return {MicroKernel::kRows,
          MicroKernel::kVecs * MicroKernel::kLanes,
          MicroKernel::kDepth,
          MicroKernel::kDepth,
          sizeof(typename MicroKernel::Element),
          sizeof(typename MicroKernel::Element) < sizeof(float),
          {center_row<Vec, MicroKernel, float>, center_row<Vec, MicroKernel, diverseevol::BFloat16>,
           center_row<Vec, MicroKernel, diverseevol::Float16>},
          multiply<MicroKernel>};
}

}  // namespace
