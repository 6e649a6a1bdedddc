// pick_block: greedy K-Center among the rows of a block (its members). It compares intervals of the distances, and
// computes distances in float64 only where intervals overlap.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "cpu/centered.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace diverseevol {

namespace {

constexpr int64_t kWorthThreads = 1 << 23;  // multiplications; with fewer, starting threads costs more than it saves
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// A member's two smallest approximate distances to centers, and the nearest center.
struct Nearest {
  float distance = std::numeric_limits<float>::infinity();
  float second = std::numeric_limits<float>::infinity();
  const float* center = nullptr;

  void update(float approximate, const float* other) {
    second = std::min(second, std::max(distance, approximate));
    center = approximate < distance ? other : center;
    distance = std::min(distance, approximate);
  }
};

class Block {
 public:
  explicit Block(const PickBlock& call)
      : call_(call),
        floor_(std::max({*call.threshold, call.stop_sqdist, -1.0})),
        kernels_(kernels_of(call.target.isa)),
        gemm_(kernels_.gemm),
        centers_(centered_panels(gemm_, call.centers, call.num_centers, call.dim, call.offset, call.target.threads)),
        elements_(new char[padded_rows() * row_bytes()]),
        norms_(size()),
        error_(size()),
        to_centers_(new float[size() * at(call.num_centers)]),
        column_(size(), -1),
        nearest_(size()),
        low_(size()),
        high_(size()) {}

  Status run() {
    approximate();
    if (violated_) return Status::kBoundViolation;
    for (int64_t i = 0; i < call_.num_rows; ++i) candidates_.push_back(i);
    drop_beaten_candidates();
    for (; num_picks_ < call_.max_picks; ++num_picks_) {
      if (candidates_.empty()) {
        next_ = floor_;
        break;
      }
      const int64_t winner = farthest();
      resolve(winner);
      next_ = std::max(low_[at(winner)], floor_if_any_dropped_);
      if (low_[at(winner)] <= floor_) break;
      call_.picks[num_picks_] = winner;
      call_.sqdist[num_picks_] = low_[at(winner)];
      if (num_picks_ + 1 < call_.max_picks) add_center(winner);
      low_[at(winner)] = high_[at(winner)] = -1.0;
      drop_beaten_candidates();
    }
    for (int64_t i = 0; i < call_.num_rows; ++i) {
      const double bound = high_[at(i)] < 0 ? -kInfinity : high_[at(i)];
      // Rounded up one unit, because the conversion may have rounded down.
      const float up = std::nextafter(static_cast<float>(bound), std::numeric_limits<float>::infinity());
      call_.bound[i] = std::min(call_.bound[i], bound == -kInfinity ? -std::numeric_limits<float>::infinity() : up);
    }
    *call_.num_picks = num_picks_;
    *call_.next = num_picks_ < call_.num_rows ? next_ : -1.0;
    return Status::kOk;
  }

 private:
  int threads_for(int64_t multiplications) const { return multiplications > kWorthThreads ? call_.target.threads : 1; }
  size_t size() const { return static_cast<size_t>(call_.num_rows); }
  static size_t at(int64_t i) { return static_cast<size_t>(i); }
  size_t row_bytes() const { return at(centers_.row_bytes()); }
  size_t padded_rows() const {
    const int64_t group = gemm_.row_group;
    return at((call_.num_rows + group - 1) / group * group);
  }
  char* element(int64_t i) { return elements_.get() + at(i) * row_bytes(); }

  // Computes all approximate squared distances of members to centers, and the first intervals.
  void approximate() {
    parallel_ranges(call_.num_rows, threads_for(call_.num_rows * call_.dim), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const float* row = call_.rows + i * call_.dim;
        norms_[at(i)] = gemm_.center_row[0](row, call_.offset, call_.dim, centers_.padded(), element(i));
      }
    });
    RowNorms largest = centers_.largest();
    for (const Norms& norms : norms_) {
      const RowNorms member = norms_above(norms, gemm_, call_.dim);
      largest.norm = std::max(largest.norm, member.norm);
      largest.rounding_norm = std::max(largest.rounding_norm, member.rounding_norm);
    }
    multiply(centers_, [&](int64_t i, const float* products) {
      Nearest nearest;
      for (int64_t j = 0; j < call_.num_centers; ++j) {
        const float approximate = norms_[at(i)].sqnorm + (centers_.sqnorm()[j] - 2.0F * products[j]);
        to_centers_[at(i * call_.num_centers + j)] = approximate;
        nearest.update(approximate, call_.centers + j * call_.dim);
      }
      nearest_[at(i)] = nearest;
      first_interval(i, largest);
    });
  }

  // Calls use(i, products of member i with the panels' centers) for every member; any thread may call it.
  template <class Use>
  void multiply(const Panels& panels, const Use& use) {
    const int64_t group = gemm_.row_group;
    parallel_ranges(static_cast<int64_t>(padded_rows()) / group,
                    threads_for(call_.num_rows * panels.width() * call_.dim), [&](int64_t first, int64_t last) {
                      std::vector<float> products(at(group * panels.width()));
                      for (int64_t row = first * group; row < last * group; row += group) {
                        panels.multiply(element(row), group, products.data());
                        for (int64_t i = row; i < std::min(row + group, call_.num_rows); ++i) {
                          use(i, products.data() + (i - row) * panels.width());
                        }
                      }
                    });
  }

  // Distances of all members to member `pick`. Fills a whole panel: the other columns are for the likeliest next picks.
  const float* column(int64_t pick) {
    const int64_t panel = gemm_.panel;
    if (column_[at(pick)] < 0) {
      std::vector<int64_t> likely;
      for (const int64_t i : candidates_) {
        if (i != pick && column_[at(i)] < 0) likely.push_back(i);
      }
      const int64_t others = std::min<int64_t>(panel - 1, static_cast<int64_t>(likely.size()));
      std::partial_sort(likely.begin(), likely.begin() + others, likely.end(),
                        [this](int64_t a, int64_t b) { return high_[at(a)] > high_[at(b)]; });
      likely.resize(at(others));
      likely.push_back(pick);
      const Panels panels(gemm_, others + 1, call_.dim, 1, [&](int64_t j, char* elements) {
        const int64_t i = likely[at(j)];
        column_[at(i)] = static_cast<int64_t>(columns_.size()) * panel + j;
        std::memcpy(elements, element(i), row_bytes());
        return norms_[at(i)];
      });
      columns_.emplace_back(new float[size() * at(panel)]);
      float* distances = columns_.back().get();
      multiply(panels, [&](int64_t i, const float* products) {
        for (int64_t j = 0; j < panels.num_centers(); ++j) {
          distances[j * call_.num_rows + i] = norms_[at(i)].sqnorm + (panels.sqnorm()[j] - 2.0F * products[j]);
        }
      });
    }
    const int64_t slot = column_[at(pick)];
    return columns_[at(slot / panel)].get() + (slot % panel) * call_.num_rows;
  }

  void first_interval(int64_t i, const RowNorms& largest) {
    const double error = certified_error(norms_above(norms_[at(i)], gemm_, call_.dim), largest, call_.dim);
    error_[at(i)] = std::isfinite(error) ? error : kInfinity;
    const bool certified = std::isfinite(error);
    const double nearest = static_cast<double>(nearest_[at(i)].distance);
    low_[at(i)] = certified ? std::max(0.0, nearest - error) : 0.0;
    high_[at(i)] = static_cast<double>(call_.bound[i]);
    if (high_[at(i)] >= 0.0 && low_[at(i)] > high_[at(i)]) violated_ = true;
    if (certified) high_[at(i)] = std::min(high_[at(i)], nearest + error);
  }

  // The farthest candidate, the lowest of equals.
  int64_t farthest() {
    double best_low = -1.0;
    for (const int64_t i : candidates_) best_low = std::max(best_low, low_[at(i)]);
    std::vector<int64_t> overlapping;
    for (const int64_t i : candidates_) {
      if (high_[at(i)] >= best_low) overlapping.push_back(i);
    }
    if (overlapping.size() == 1) return overlapping.front();
    const auto resolve_range = [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) resolve(overlapping[at(i)]);
    };
    const int64_t count = static_cast<int64_t>(overlapping.size());
    parallel_ranges(count, threads_for(count * call_.dim), resolve_range);
    int64_t winner = overlapping.front();
    for (const int64_t i : overlapping) {
      if (low_[at(i)] > low_[at(winner)]) winner = i;
    }
    return winner;
  }

  // Reduces the interval of member i to its float64 squared distance. Threads may call it for different members.
  void resolve(int64_t i) {
    if (low_[at(i)] == high_[at(i)]) return;
    const Nearest& nearest = nearest_[at(i)];
    const double limit = static_cast<double>(nearest.distance) + 2.0 * error_[at(i)];
    const bool certain = static_cast<double>(nearest.second) > limit;  // false if the error is infinite
    low_[at(i)] = high_[at(i)] = certain ? exact(i, nearest.center) : nearest_exact(i, limit);
  }

  double exact(int64_t i, const float* center) {
    thread_local std::vector<double> scratch;
    scratch.resize(at(call_.dim) + 16);
    return kernels_.sqdist[0](call_.rows + i * call_.dim, center, call_.dim, scratch.data());
  }

  // The float64 distance to the nearest center; a center with an approximate distance above the limit cannot be it.
  double nearest_exact(int64_t i, double limit) {
    double nearest = kInfinity;
    const auto consider = [&](float approximate, const float* center) {
      if (static_cast<double>(approximate) > limit) return;  // false for NaN, so that center is considered
      nearest = std::min(nearest, exact(i, center));
    };
    for (int64_t j = 0; j < call_.num_centers; ++j) {
      consider(to_centers_[at(i * call_.num_centers + j)], call_.centers + j * call_.dim);
    }
    for (int64_t p = 0; p < num_picks_; ++p) {
      consider(column(call_.picks[p])[i], call_.rows + call_.picks[p] * call_.dim);
    }
    return nearest;
  }

  // Makes member `pick` a center: lowers the intervals of all candidates, including its own.
  void add_center(int64_t pick) {
    const float* approximations = column(pick);
    const float* center = call_.rows + pick * call_.dim;
    for (const int64_t i : candidates_) {
      nearest_[at(i)].update(approximations[i], center);
      if (std::isinf(error_[at(i)])) {  // the products certify nothing
        low_[at(i)] = 0.0;
        continue;
      }
      const double approximate = static_cast<double>(approximations[i]);
      if (approximate - error_[at(i)] >= high_[at(i)]) continue;
      low_[at(i)] = std::max(0.0, std::min(low_[at(i)], approximate - error_[at(i)]));
      high_[at(i)] = std::min(high_[at(i)], approximate + error_[at(i)]);
    }
  }

  // Removes candidates that cannot be picked any more; their bounds stay valid.
  void drop_beaten_candidates() {
    const auto beaten = [this](int64_t i) {
      if (high_[at(i)] > floor_) return false;
      if (high_[at(i)] >= 0) floor_if_any_dropped_ = floor_;
      return true;
    };
    candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(), beaten), candidates_.end());
  }

  const PickBlock& call_;
  const double floor_;  // picks are above this squared distance; at least -1, the value of picked members
  double floor_if_any_dropped_ = -1.0;
  int64_t num_picks_ = 0;
  double next_ = -1.0;
  std::vector<int64_t> candidates_;  // members that may still be picked, ascending
  const Kernels kernels_;
  const GemmKernel& gemm_;
  Panels centers_;
  const std::unique_ptr<char[]> elements_;  // [padded rows]: members minus the offset, as the GemmKernel's elements
  std::vector<Norms> norms_;
  std::vector<double> error_;
  const std::unique_ptr<float[]> to_centers_;      // [num_rows, num_centers]: approximate distances
  std::vector<std::unique_ptr<float[]>> columns_;  // each [panel, num_rows]: distances to a panel of members
  std::vector<int64_t> column_;                    // index of a member's column in columns_, or -1
  std::vector<Nearest> nearest_;
  std::vector<double> low_;  // the exact distance is in [low, high]; negative marks a pick
  std::vector<double> high_;
  std::atomic<bool> violated_ = false;  // a bound is below the lower end of its interval
};

}  // namespace

Status pick_block(const PickBlock& call) {
  if (!isa_usable(call.target.isa)) return Status::kUnusableIsa;
  return Block(call).run();
}

}  // namespace diverseevol
