// min_sqdist: centers a tile of rows, multiplies it with all centers and takes the minimum, all while it is in the
// cache.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "cpu/centered.h"
#include "cpu/convert.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace diverseevol {

namespace {

constexpr int64_t kTileRows = 96;  // a multiple of every GemmKernel's row_group

template <class T>
bool all_finite(const void* row_data, int64_t dim) {
  const T* row = static_cast<const T*>(row_data);
  return std::all_of(row, row + dim, [](T value) { return std::isfinite(to_float(value)); });
}

bool all_finite(const Rows& x, int64_t row) {
  if (x.dtype == DType::kBFloat16) return all_finite<BFloat16>(row_of(x, row), x.dim);
  if (x.dtype == DType::kFloat16) return all_finite<Float16>(row_of(x, row), x.dim);
  return all_finite<float>(row_of(x, row), x.dim);
}

// The tile buffers of one thread, and the work on a tile.
class Tile {
 public:
  Tile(const MinSqdist& call, const Kernels& kernels, const Panels& panels)
      : call_(call),
        kernels_(kernels),
        panels_(panels),
        rows_(static_cast<size_t>(kTileRows * panels.row_bytes())),
        products_(static_cast<size_t>(kTileRows * panels.width())) {}

  // Bounds the rows indices[first, last); returns the first row with a non-finite value, or -1.
  int64_t bound(int64_t first, int64_t last) {
    const GemmKernel& gemm = kernels_.gemm;
    const auto center_row = gemm.center_row[static_cast<int>(call_.x.dtype)];
    const int64_t count = last - first;
    Norms norms[kTileRows];
    for (int64_t r = 0; r < count; ++r) {
      norms[r] = center_row(row_of(call_.x, row(first + r)), call_.offset, call_.x.dim, panels_.padded(),
                            rows_.data() + r * panels_.row_bytes());
      // A row of finite values whose norm overflows keeps its bound.
      if (!std::isfinite(norms[r].sqnorm) && !all_finite(call_.x, row(first + r))) {
        return row(first + r);
      }
    }
    const int64_t whole_groups = (count + gemm.row_group - 1) / gemm.row_group * gemm.row_group;
    panels_.multiply(rows_.data(), whole_groups, products_.data());
    for (int64_t r = 0; r < count; ++r) {
      lower(call_.bound[row(first + r)], norms[r], products_.data() + r * panels_.width());
    }
    return -1;
  }

 private:
  int64_t row(int64_t i) const { return call_.indices == nullptr ? i : call_.indices[i]; }

  void lower(float& bound, const Norms& norms, const float* products) const {
    float nearest = std::numeric_limits<float>::infinity();
    for (int64_t j = 0; j < panels_.num_centers(); ++j) {
      nearest = std::min(nearest, panels_.sqnorm()[j] - 2.0F * products[j]);
    }
    const double error =
        certified_error(norms_above(norms, kernels_.gemm, call_.x.dim), panels_.largest(), call_.x.dim);
    const double upper = static_cast<double>(norms.sqnorm) + static_cast<double>(nearest) + error;
    if (upper < static_cast<double>(bound)) bound = static_cast<float>(upper);  // false for NaN
  }

  const MinSqdist& call_;
  const Kernels& kernels_;
  const Panels& panels_;
  std::vector<char> rows_;
  std::vector<float> products_;
};

}  // namespace

Status min_sqdist(const MinSqdist& call) {
  if (!isa_usable(call.target.isa)) return Status::kUnusableIsa;
  if (!known(call.x.dtype)) return Status::kUnknownDType;
  const Kernels kernels = kernels_of(call.target.isa);
  const Panels panels =
      centered_panels(kernels.gemm, call.centers, call.num_centers, call.x.dim, call.offset, call.target.threads);
  const int64_t tiles = (call.count + kTileRows - 1) / kTileRows;
  std::atomic<int64_t> first_bad{call.x.rows};
  parallel_ranges(tiles, call.target.threads, [&](int64_t first, int64_t last) {
    Tile tile(call, kernels, panels);
    for (int64_t t = first; t < last; ++t) {
      const int64_t bad = tile.bound(t * kTileRows, std::min((t + 1) * kTileRows, call.count));
      int64_t lowest = first_bad.load();
      while (bad >= 0 && bad < lowest && !first_bad.compare_exchange_weak(lowest, bad)) {
      }
      if (bad >= 0) return;
    }
  });
  *call.first_bad_row = first_bad.load() < call.x.rows ? first_bad.load() : -1;
  return Status::kOk;
}

}  // namespace diverseevol
