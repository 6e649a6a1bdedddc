// The table of functions that each ISA's file provides, and the element types. Declarations only.
#pragma once

#include <cstdint>

namespace diverseevol {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Float32 sums for one row or center x.
struct Norms {
  float sqnorm;           // |x - offset|^2
  float rounding_sqnorm;  // squared norm of the rounding residual (x - offset) - element(x - offset)
};

// Matrix product of rows with centers, both after subtraction of the offset. Rows come in groups of `row_group`,
// centers are packed in panels of `panel`, and the dimensions of both are zero-padded to a multiple of `padding`.
struct GemmKernel {
  int64_t row_group;
  int64_t panel;
  int64_t depth;    // number of elements in four bytes
  int64_t padding;  // a multiple of depth
  int64_t element_size;
  bool rounds;  // elements are narrower than float32
  int64_t padded(int64_t dim) const { return (dim + padding - 1) / padding * padding; }
  // Writes the elements [padded] of one row; indexed by the row's DType.
  Norms (*center_row[3])(const void* row, const float* offset, int64_t dim, int64_t padded, void* elements);
  // products[r][j] = row_r . center_j, [num_rows, num_centers rounded up to whole panels]; columns beyond the last
  // center are undefined; num_rows is a multiple of row_group. A panel is [padded / depth][panel][depth] elements.
  void (*multiply)(const void* rows, int64_t num_rows, const void* panels, int64_t num_centers, int64_t padded,
                   float* products);
};

struct Kernels {
  // Indexed by DType; see masked_mean_pool.h.
  void (*pool_row[3])(const void* hidden, int64_t stride_token, const int64_t* indices, int64_t count, int64_t dim,
                      int64_t prefix_len, float* out);
  GemmKernel gemm;  // the ISA's fastest, whatever its precision
  // Float64 squared distance, summed by halving (see ops/reference.py); scratch: [dim + 16] doubles.
  // row is indexed by DType, center is float32.
  double (*sqdist[3])(const void* row, const float* center, int64_t dim, double* scratch);
};

#define DEF_ISA(name, ...) Kernels name##_kernels();
#include "isas.def"

}  // namespace diverseevol
