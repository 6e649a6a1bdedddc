// The AVX512-BF16 kernels with an AMX-BF16 matrix product: one instruction does 16 x 16 products of 32 dimensions.
#include <immintrin.h>

#include <cstdint>

#include "cpu/kernels.h"

namespace {

using diverseevol::BFloat16;

constexpr int64_t kTile = 16;                // rows of a tile; 64 bytes each
constexpr int64_t kDepth = 32;               // dimensions of a tile of rows
constexpr int64_t kGroup = 2 * kTile;        // rows of a group and centers of a panel: 2 x 2 tiles
constexpr int64_t kPanelBytes = kGroup * 4;  // distance in a panel from one pair of dimensions to the next

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  TileConfig() {
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = 64;
      rows[tile] = kTile;
    }
  }
};

// Tiles 0 to 3 hold the products, 4 and 5 the rows, 6 and 7 the centers.
void multiply_group(const BFloat16* rows, int64_t padded, const BFloat16* panel, float* products, int64_t stride) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t d = 0; d < padded; d += kDepth) {
    const BFloat16* centers = panel + d * kGroup;
    _tile_loadd(4, rows + d, padded * 2);
    _tile_loadd(6, centers, kPanelBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, centers + 2 * kTile, kPanelBytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, rows + kTile * padded + d, padded * 2);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, products, stride * 4);
  _tile_stored(1, products + kTile, stride * 4);
  _tile_stored(2, products + kTile * stride, stride * 4);
  _tile_stored(3, products + kTile * stride + kTile, stride * 4);
}

void multiply(const void* rows_data, int64_t num_rows, const void* panels_data, int64_t num_centers, int64_t padded,
              float* products) {
  const BFloat16* rows = static_cast<const BFloat16*>(rows_data);
  const BFloat16* panels = static_cast<const BFloat16*>(panels_data);
  const int64_t stride = (num_centers + kGroup - 1) / kGroup * kGroup;
  const TileConfig config;
  _tile_loadconfig(&config);
  for (int64_t j = 0; j < num_centers; j += kGroup) {
    for (int64_t r = 0; r < num_rows; r += kGroup) {
      multiply_group(rows + r * padded, padded, panels + j * padded, products + r * stride + j, stride);
    }
  }
  _tile_release();
}

}  // namespace

namespace diverseevol {

Kernels amxbf16_kernels() {
  Kernels kernels = avx512bf16_kernels();
  kernels.gemm.row_group = kGroup;
  kernels.gemm.panel = kGroup;
  kernels.gemm.padding = kDepth;
  kernels.gemm.multiply = multiply;
  return kernels;
}

}  // namespace diverseevol
