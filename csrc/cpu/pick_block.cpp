// pick_block: greedy K-Center among the rows of a block, on intervals, with float64 where intervals overlap.
#include <algorithm>
#include <cmath>
#include <cstring>
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
        centers_(
            centered_panels(kernels_.precise, call.centers, call.num_centers, call.dim, call.offset, call.threads)),
        elements_(padded_rows() * row_bytes()),
        sqnorm_(size()),
        error_(size()),
        to_centers_(size() * static_cast<size_t>(centers_.width())),
        column_(size(), -1),
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
  size_t row_bytes() const { return at(call_.dim) * sizeof(float); }
  size_t padded_rows() const {
    const int64_t group = kernels_.precise.row_group;
    return at((call_.num_rows + group - 1) / group * group);
  }
  char* element(int64_t i) { return elements_.data() + at(i) * row_bytes(); }

  // All approximate squared distances of the members to the centres and to one another, and the first intervals.
  void approximate() {
    const Gram& gram = kernels_.precise;
    RowNorms largest = centers_.largest();
    for (int64_t i = 0; i < call_.num_rows; ++i) {
      const float* row = call_.rows + i * call_.dim;
      sqnorm_[at(i)] = gram.center_row[0](row, call_.offset, call_.dim, call_.dim, element(i));
      largest.norm = std::max(largest.norm, above(sqnorm_[at(i)], gram, call_.dim).norm);
    }
    multiply(centers_, to_centers_.data(), centers_.width(), 1);
    for (int64_t i = 0; i < call_.num_rows; ++i) first_interval(i, largest);
  }

  // out[i * row_stride + j * center_stride] = approximate squared distance of member i to centre j of the panels.
  void multiply(const Panels& panels, float* out, int64_t row_stride, int64_t center_stride) {
    const int64_t group = kernels_.precise.row_group;
    parallel_ranges(static_cast<int64_t>(padded_rows()) / group, call_.threads, [&](int64_t first, int64_t last) {
      std::vector<float> products(at(group * panels.width()));
      for (int64_t row = first * group; row < last * group; row += group) {
        panels.multiply(element(row), group, products.data());
        for (int64_t i = row; i < std::min(row + group, call_.num_rows); ++i) {
          const float* own = products.data() + (i - row) * panels.width();
          for (int64_t j = 0; j < panels.num_centers(); ++j) {
            out[i * row_stride + j * center_stride] = sqnorm_[at(i)].sqnorm + (panels.sqnorm()[j] + own[j]);
          }
        }
      }
    });
  }

  // Distances of all members to member `pick`, computed together with those to the likeliest next picks.
  const float* column(int64_t pick) {
    const int64_t panel = kernels_.precise.panel;
    if (column_[at(pick)] < 0) {
      std::vector<int64_t> likely;
      for (int64_t i = 0; i < call_.num_rows; ++i) {
        if (i != pick && column_[at(i)] < 0 && high_[at(i)] >= 0) likely.push_back(i);
      }
      const int64_t others = std::min<int64_t>(panel - 1, static_cast<int64_t>(likely.size()));
      std::partial_sort(likely.begin(), likely.begin() + others, likely.end(),
                        [this](int64_t a, int64_t b) { return high_[at(a)] > high_[at(b)]; });
      likely.resize(at(others));
      likely.push_back(pick);
      const Panels panels(kernels_.precise, others + 1, call_.dim, 1, [&](int64_t place, char* elements) {
        const int64_t i = likely[at(place)];
        column_[at(i)] = static_cast<int64_t>(columns_.size()) * panel + place;
        std::memcpy(elements, element(i), row_bytes());
        return sqnorm_[at(i)];
      });
      columns_.emplace_back(size() * at(panel));
      multiply(panels, columns_.back().data(), 1, call_.num_rows);
    }
    const int64_t slot = column_[at(pick)];
    return columns_[at(slot / panel)].data() + (slot % panel) * call_.num_rows;
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
    for (int64_t p = 0; p < call_.num_picks; ++p) {
      nearest = std::min(nearest, static_cast<double>(column(call_.picks[p])[i]));
    }
    const double limit = nearest + 2.0 * error_[at(i)];
    double exact = kInfinity;
    const auto consider = [&](double approximate, const float* center) {
      if (approximate > limit) return;  // false for NaN: then it is looked at
      exact = std::min(exact, kernels_.sqdist[0](call_.rows + i * call_.dim, center, call_.dim, scratch_.data()));
    };
    for (int64_t j = 0; j < call_.num_centers; ++j) consider(to_center(i, j), call_.centers + j * call_.dim);
    for (int64_t p = 0; p < call_.num_picks; ++p) {
      consider(column(call_.picks[p])[i], call_.rows + call_.picks[p] * call_.dim);
    }
    low_[at(i)] = high_[at(i)] = exact;
  }

  // Member `pick` becomes a centre: the other members' intervals fall, its own leaves the race.
  void add_center(int64_t pick) {
    const float* approximations = column(pick);
    for (int64_t i = 0; i < call_.num_rows; ++i) {
      const double approximate = approximations[i];
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
  std::vector<char> elements_;  // [padded rows, dim] float32, less the offset
  std::vector<Norms> sqnorm_;
  std::vector<double> error_;
  std::vector<float> to_centers_;
  std::vector<std::vector<float>> columns_;  // each [panel, num_rows]: distances to a panel of members
  std::vector<int64_t> column_;              // a member's place among them, or -1
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
