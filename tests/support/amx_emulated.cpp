// Runs the AMX kernel on an emulation of its six instructions (Intel SDM, volume 2, TDPBF16PS and its neighbors), to
// check the layout of the tiles. Prints the largest difference from float64 products, relative to the norms.
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/convert.h"

namespace emulated {

struct Tile {
  unsigned char bytes[16][64];
} tiles[8];
bool configured = false;

Tile& tile(int number) {
  if (!configured) {
    std::puts("a tile was used without its configuration");
    std::exit(1);
  }
  return tiles[number];
}

void loadconfig(const void* config) {
  const unsigned char* bytes = static_cast<const unsigned char*>(config);
  configured = bytes[0] == 1;
  for (int t = 0; t < 8; ++t) {
    unsigned short row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * t, 2);
    configured = configured && row_bytes == 64 && bytes[48 + t] == 16;
  }
}

void loadd(int number, const void* base, long stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(tile(number).bytes[r], static_cast<const char*>(base) + r * stride, 64);
}

void stored(int number, void* base, long stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(base) + r * stride, tile(number).bytes[r], 64);
}

void dpbf16ps(int sums, int a, int b) {
  for (int m = 0; m < 16; ++m) {
    float row[16];
    std::memcpy(row, tile(sums).bytes[m], 64);
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 16; ++n) {
        diverseevol::BFloat16 left[2], right[2];
        std::memcpy(left, tiles[a].bytes[m] + 4 * k, 4);
        std::memcpy(right, tiles[b].bytes[k] + 4 * n, 4);
        row[n] += to_float(left[0]) * to_float(right[0]) + to_float(left[1]) * to_float(right[1]);
      }
    }
    std::memcpy(tiles[sums].bytes[m], row, 64);
  }
}

}  // namespace emulated

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) emulated::loadconfig(config)
#define _tile_release() (emulated::configured = false)
#define _tile_zero(number) std::memset(&emulated::tile(number), 0, sizeof(emulated::Tile))
#define _tile_loadd(number, base, stride) emulated::loadd(number, base, stride)
#define _tile_stored(number, base, stride) emulated::stored(number, base, stride)
#define _tile_dpbf16ps(sums, a, b) emulated::dpbf16ps(sums, a, b)
#include "cpu/amxbf16.cpp"
#include "cpu/centered.h"

namespace diverseevol {

// Stands for the AVX512-BF16 kernels, of which the AMX kernels use center_row here; converts one value at a time.
Kernels avx512bf16_kernels() {
  Kernels kernels{};
  kernels.gemm.depth = 2;
  kernels.gemm.element_size = 2;
  kernels.gemm.rounds = true;
  kernels.gemm.center_row[0] = [](const void* row, const float* offset, int64_t dim, int64_t padded, void* elements) {
    BFloat16* out = static_cast<BFloat16*>(elements);
    std::memset(elements, 0, static_cast<size_t>(padded) * 2);
    for (int64_t d = 0; d < dim; ++d) {
      const float value = static_cast<const float*>(row)[d] - offset[d];
      unsigned bits;
      std::memcpy(&bits, &value, 4);
      out[d].bits = static_cast<uint16_t>(bits >> 16);
    }
    return Norms{0.0F, 0.0F};
  };
  return kernels;
}

}  // namespace diverseevol

int main() {
  using namespace diverseevol;
  const GemmKernel gemm = amxbf16_kernels().gemm;
  std::mt19937 random(0);
  std::normal_distribution<float> normal;
  double largest = 0.0;
  const int64_t sizes[][3] = {{32, 1, 1}, {32, 33, 31}, {96, 100, 384}, {64, 7, 1000}};
  for (const auto& [rows, centers, dim] : sizes) {
    std::vector<float> x(rows * dim), c(centers * dim), offset(dim, 0.0F);
    for (float& value : x) value = normal(random);
    for (float& value : c) value = normal(random);
    const Panels panels = centered_panels(gemm, c.data(), centers, dim, offset.data(), 1);
    std::vector<char> elements(rows * panels.row_bytes());
    for (int64_t r = 0; r < rows; ++r) {
      gemm.center_row[0](x.data() + r * dim, offset.data(), dim, panels.padded(),
                         elements.data() + r * panels.row_bytes());
    }
    std::vector<float> products(rows * panels.width(), NAN);
    panels.multiply(elements.data(), rows, products.data());
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < centers; ++j) {
        double product = 0.0, xx = 1e-9, cc = 1e-9;
        for (int64_t d = 0; d < dim; ++d) {
          product += static_cast<double>(x[r * dim + d]) * c[j * dim + d];
          xx += static_cast<double>(x[r * dim + d]) * x[r * dim + d];
          cc += static_cast<double>(c[j * dim + d]) * c[j * dim + d];
        }
        const double off = std::fabs(products[r * panels.width() + j] - product) / std::sqrt(xx * cc);
        largest = std::isfinite(off) ? std::max(largest, off) : INFINITY;
      }
    }
  }
  std::printf("%g\n", largest);
}
