// What every ISA's file provides, as a table of functions, and the element types. Declarations only.
#pragma once

#include <cstdint>

namespace diverseevol {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// |row - offset|^2, and the same of what rounding the differences to the gram's elements lost. Float32 sums.
struct Norms {
  float sqnorm;
  float rounding_sqnorm;
};

// Products of rows with centres, both after subtraction of the offset. Rows are taken `row_group` at a time, centres
// are packed in panels of `panel`, the dimensions of both are padded with zeros to a multiple of `padding`.
struct GemmKernel {
  int64_t row_group;
  int64_t panel;
  int64_t depth;    // elements in four bytes
  int64_t padding;  // a multiple of depth
  int64_t element_size;
  bool rounds;  // whether elements are narrower than float32
  int64_t padded(int64_t dim) const { return (dim + padding - 1) / padding * padding; }
  // Writes one row's elements [padded]; indexed by DType.
  Norms (*center_row[3])(const void* row, const float* offset, int64_t dim, int64_t padded, void* elements);
  // products[r][j] = row_r . centre_j, [num_rows, num_centers rounded up to whole panels], of which columns beyond the
  // last centre mean nothing; num_rows a multiple of row_group. Panel data: [padded / depth][panel][depth] elements.
  void (*multiply)(const void* rows, int64_t num_rows, const void* panels, int64_t num_centers, int64_t padded,
                   float* products);
};

struct Kernels {
  // Indexed by DType; see masked_mean_pool.h.
  void (*pool_row[3])(const void* hidden, int64_t stride_token, const int64_t* kept, int64_t count, int64_t dim,
                      int64_t prefix_len, float* out);
  GemmKernel gemm;  // the fastest products, in any precision
  // Float64 squared distance, summed by halving (see ops/reference.py); scratch: [dim + 16] doubles.
  // row is indexed by DType, center is float32.
  double (*sqdist[3])(const void* row, const float* center, int64_t dim, double* scratch);
};

#define DEF_ISA(name, ...) Kernels name##_kernels();
#include "isas.def"

}  // namespace diverseevol
