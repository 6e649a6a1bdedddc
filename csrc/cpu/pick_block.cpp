// pick_block: greedy K-Center among the rows of a block, on intervals, with float64 where intervals overlap.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/centered.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace diverseevol {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

class Block {
 public:
  explicit Block(PickBlock& call)
      : call_(call),
        kernels_(kernels_of(call.isa)),
        centers_(kernels_.precise, call.num_centers, call.dim),
        members_(kernels_.precise, call.num_rows, call.dim),
        sqnorm_(size()),
        error_(size()),
        to_centers_(size() * static_cast<size_t>(centers_.width())),
        to_members_(size() * static_cast<size_t>(members_.width())),
        low_(size()),
        high_(size()),
        scratch_(static_cast<size_t>(call.dim) + 16) {}

  void run() {
    approximate();
    for (call_.num_picks = 0; call_.num_picks < call_.max_picks; ++call_.num_picks) {
      const int64_t winner = farthest();
      if (winner < 0) {
        call_.next = -1.0;
        break;
      }
      // A winner that may be no farther than a row outside, or than the stop, is looked at exactly.
      if (low_[at(winner)] <= std::max(call_.threshold, call_.stop_sqdist)) resolve(winner);
      call_.next = low_[at(winner)];
      if (call_.next <= call_.threshold || call_.next <= call_.stop_sqdist) break;
      resolve(winner);
      call_.picks[call_.num_picks] = winner;
      call_.sqdist[call_.num_picks] = low_[at(winner)];
      add_center(winner);
    }
    for (int64_t i = 0; i < call_.num_rows; ++i) {
      const double bound = high_[at(i)] < 0 ? -kInfinity : high_[at(i)];
      // One unit up: the conversion may have rounded down.
      const float up = std::nextafter(static_cast<float>(bound), std::numeric_limits<float>::infinity());
      call_.bound[i] = std::min(call_.bound[i], bound == -kInfinity ? -std::numeric_limits<float>::infinity() : up);
    }
  }

 private:
  size_t size() const { return static_cast<size_t>(call_.num_rows); }
  static size_t at(int64_t i) { return static_cast<size_t>(i); }

  // All approximate squared distances of the members to the centres and to one another, and the first intervals.
  void approximate() {
    const Gram& gram = kernels_.precise;
    const int64_t padded_rows = (call_.num_rows + gram.row_group - 1) / gram.row_group * gram.row_group;
    std::vector<char> elements(at(padded_rows * members_.row_bytes()));
    centers_.set_all(call_.centers, call_.num_centers, call_.offset);
    for (int64_t i = 0; i < call_.num_rows; ++i) {
      char* row = elements.data() + i * members_.row_bytes();
      const Norms norms =
          gram.center_row[0](call_.rows + i * call_.dim, call_.offset, call_.dim, members_.padded(), row);
      sqnorm_[at(i)] = norms;
      members_.set(i, row, norms);
    }
    const RowNorms largest{std::max(centers_.largest().norm, members_.largest().norm), 0.0};
    parallel_ranges(padded_rows / gram.row_group, call_.threads, [&](int64_t first, int64_t last) {
      std::vector<float> products(at(gram.row_group * std::max(centers_.width(), members_.width())));
      for (int64_t group = first; group < last; ++group) {
        const int64_t row = group * gram.row_group;
        const void* rows = elements.data() + row * members_.row_bytes();
        const int64_t count = std::min(gram.row_group, call_.num_rows - row);
        fill(centers_, rows, row, count, products.data(), to_centers_);
        fill(members_, rows, row, count, products.data(), to_members_);
        for (int64_t i = row; i < row + count; ++i) first_interval(i, largest);
      }
    });
  }

  void fill(const Panels& panels, const void* rows, int64_t first, int64_t count, float* products,
            std::vector<float>& out) {
    panels.multiply(rows, kernels_.precise.row_group, products);
    for (int64_t r = 0; r < count; ++r) {
      const float own = sqnorm_[at(first + r)].sqnorm;
      for (int64_t j = 0; j < panels.width(); ++j) {
        out[at((first + r) * panels.width() + j)] = own + (panels.sqnorm()[j] + products[r * panels.width() + j]);
      }
    }
  }

  void first_interval(int64_t i, const RowNorms& largest) {
    const double error = certified_error(above(sqnorm_[at(i)], kernels_.precise, call_.dim), largest, call_.dim);
    error_[at(i)] = std::isfinite(error) ? error : kInfinity;
    double nearest = kInfinity;
    for (int64_t j = 0; j < call_.num_centers; ++j) nearest = std::min(nearest, to_center(i, j));
    low_[at(i)] = std::isinf(error_[at(i)]) ? 0.0 : std::max(0.0, nearest - error_[at(i)]);
    high_[at(i)] = std::min(nearest + error_[at(i)], static_cast<double>(call_.bound[i]));
  }

  double to_center(int64_t i, int64_t j) const { return to_centers_[at(i * centers_.width() + j)]; }
  double to_member(int64_t i, int64_t j) const { return to_members_[at(i * members_.width() + j)]; }

  // The lowest position that is certainly farthest; -1 when every member has been picked.
  int64_t farthest() {
    double best_low = -1.0;
    for (int64_t i = 0; i < call_.num_rows; ++i) best_low = std::max(best_low, low_[at(i)]);
    if (best_low < 0) return -1;
    int64_t winner = -1;
    int64_t contenders = 0;
    for (int64_t i = 0; i < call_.num_rows; ++i) {
      if (high_[at(i)] < best_low) continue;
      ++contenders;
      if (winner < 0) winner = i;
    }
    if (contenders == 1) return winner;
    winner = -1;
    for (int64_t i = 0; i < call_.num_rows; ++i) {
      if (high_[at(i)] < best_low) continue;
      resolve(i);
      best_low = std::max(best_low, low_[at(i)]);
      if (winner < 0 || low_[at(i)] > low_[at(winner)]) winner = i;
    }
    return winner;
  }

  // Makes the interval of member i its float64 squared distance, from the centres that can be its nearest.
  void resolve(int64_t i) {
    if (low_[at(i)] == high_[at(i)]) return;
    double nearest = kInfinity;
    for (int64_t j = 0; j < call_.num_centers; ++j) nearest = std::min(nearest, to_center(i, j));
    for (int64_t p = 0; p < call_.num_picks; ++p) nearest = std::min(nearest, to_member(i, call_.picks[p]));
    const double limit = nearest + 2.0 * error_[at(i)];
    double exact = kInfinity;
    const auto consider = [&](double approximate, const float* center) {
      if (approximate > limit) return;  // false for NaN: then it is looked at
      exact = std::min(exact, kernels_.sqdist[0](call_.rows + i * call_.dim, center, call_.dim, scratch_.data()));
    };
    for (int64_t j = 0; j < call_.num_centers; ++j) consider(to_center(i, j), call_.centers + j * call_.dim);
    for (int64_t p = 0; p < call_.num_picks; ++p) {
      consider(to_member(i, call_.picks[p]), call_.rows + call_.picks[p] * call_.dim);
    }
    low_[at(i)] = high_[at(i)] = exact;
  }

  // Member `pick` becomes a centre: the other members' intervals fall, its own leaves the race.
  void add_center(int64_t pick) {
    for (int64_t i = 0; i < call_.num_rows; ++i) {
      const double approximate = to_member(i, pick);
      const double error = error_[at(i)];
      if (low_[at(i)] < 0 || approximate - error >= high_[at(i)]) continue;
      if (std::isfinite(approximate) && std::isfinite(error)) {
        low_[at(i)] = std::max(0.0, std::min(low_[at(i)], approximate - error));
        high_[at(i)] = std::min(high_[at(i)], approximate + error);
      } else {
        low_[at(i)] = 0.0;
      }
    }
    low_[at(pick)] = high_[at(pick)] = -1.0;
  }

  PickBlock& call_;
  const Kernels kernels_;
  Panels centers_;
  Panels members_;
  std::vector<Norms> sqnorm_;
  std::vector<double> error_;
  std::vector<float> to_centers_;
  std::vector<float> to_members_;
  std::vector<double> low_;
  std::vector<double> high_;
  std::vector<double> scratch_;
};

}  // namespace

Status pick_block(PickBlock& call) {
  if (!isa_usable(call.isa)) return Status::kUnusableIsa;
  Block(call).run();
  return Status::kOk;
}

}  // namespace diverseevol
