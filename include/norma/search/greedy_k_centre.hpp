/// \file
/// Greedy k-centre selection: again and again the point that is farthest from all chosen ones.
/// Source:      Roth et al., "PatchCore", CVPR 2022, section 3.2, algorithm 1; Gonzalez, "Clustering to minimize the maximum
///              intercluster distance", 1985 (the covering radius is at most twice the optimum).
/// Method:      many picks per sweep over the points. Of the points left, the `kPool` farthest are candidates; the rule is run among them
///              alone, and a pick counts as long as it is ahead of every point outside, whose distances can only have shrunk. Then one
///              matrix product measures all points against the new centres. The picks are those of the plain loop with distances in
///              double: the product in float only excludes pairs by a proven bound.
/// Cost:        2 n d flop a pick, near the speed of a matrix product; memory n (dims + 8) floats beside the points
/// Determinism: ties go to the lowest row; the same picks for any number of threads
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include <norma/concepts/subset.hpp>
#include <norma/core/random.hpp>
#include <norma/core/tensor.hpp>
#include <norma/linalg/gemm.hpp>
#include <norma/search/detail/search_kernels.hpp>
#include <norma/search/random_projection.hpp>
#include <norma/search/subset.hpp>

namespace norma {

/// What a point's distance is before anything is chosen.
enum class KCenterStart : std::uint8_t {
  approximate,  ///< mean distance to ten random points, which are not chosen themselves (the authors' code)
  first_row,    ///< row 0 is chosen first
  random,       ///< a random row is chosen first
};

constexpr std::string_view to_string(KCenterStart start) noexcept {
  switch (start) {
    case KCenterStart::approximate: return "approximate";
    case KCenterStart::first_row: return "first_row";
    case KCenterStart::random: return "random";
  }
  return "unknown";
}
constexpr bool from_string(std::string_view text, KCenterStart& start) noexcept {
  for (const KCenterStart each : {KCenterStart::approximate, KCenterStart::first_row, KCenterStart::random}) {
    if (text == to_string(each)) return start = each, true;
  }
  return false;
}

/// Subset policy: PatchCore's coreset.
struct GreedyKCenter {
  static constexpr std::string_view name = "greedy_k_center";
  static constexpr std::int64_t kPool = 1024;
  static constexpr std::int64_t kPicksPerSweep = 256;
  static constexpr std::int64_t kStartPoints = 10;

  struct Settings {
    SubsetSize size{};
    Projection projection = Projection::uniform;
    std::int64_t projection_dims = 128;  ///< 0: as many as Johnson and Lindenstrauss ask for at distortion 0.9
    KCenterStart start = KCenterStart::first_row;

    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      SubsetSize::visit(self.size, visitor);
      visitor("projection", self.projection, "random map used for the selection alone: uniform, sparse or none");
      visitor("projection_dims", self.projection_dims, "dimensions of that map; 0 for the Johnson-Lindenstrauss number");
      visitor("coreset_start", self.start, "first distances: approximate (mean to ten random points), first_row or random");
    }
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  static Status validate(const Settings& settings) {
    NORMA_CHECK(settings.size.validate());
    if (settings.projection_dims < 0) {
      return {Errc::invalid_argument, "GreedyKCenter: projection_dims must not be negative, found " + std::to_string(settings.projection_dims)};
    }
    return {};
  }

  /// Rows in the order of choice. `not_finite` names a row; `cancelled` on request. No row comes twice; where all points left equal chosen
  /// ones, the lowest rows follow.
  static Result<std::vector<std::int64_t>> select(MatrixView<const float> points, const Settings& settings, std::uint64_t seed, Parallel parallel,
                                                  const Observer& observer) {
    NORMA_CHECK(validate(settings));
    NORMA_CHECK(search::detail::check_points("GreedyKCenter", points));
    const std::int64_t count = settings.size.of(points.rows, points.cols);
    const std::int64_t dims = settings.projection_dims > 0 ? settings.projection_dims : johnson_lindenstrauss_dims(points.rows, 0.9);
    Matrix<float> projected;
    if (settings.projection != Projection::none && dims < points.cols) {
      projected = project(points, projection_matrix(settings.projection, dims, points.cols, seed), parallel);
      points = projected.view();
    }
    Selection selection(points, parallel);
    NORMA_CHECK(selection.measure_norms());
    return selection.run(count, settings.start, seed, observer);
  }

 private:
  // State of one selection. Squared distances throughout: the order is the same.
  class Selection {
   public:
    Selection(MatrixView<const float> points, Parallel parallel)
        : points_(points),
          parallel_(parallel),
          kernels_(search::detail::search_kernels(instruction_set())),
          nearest_(points.rows),
          squares_(points.rows),
          norm_(points.rows),
          limit_(points.rows) {}

    Status measure_norms() {
      parallel_.run_ranges(points_.rows, kRowsPerTask, [&](std::int64_t first, std::int64_t last, int) {
        for (std::int64_t i = first; i < last; ++i) {
          double sum = 0.0;
          for (const float value : points_.row(i)) sum += static_cast<double>(value) * static_cast<double>(value);
          squares_[i] = sum;
          norm_[i] = static_cast<float>(std::sqrt(sum) * (1.0 + 4.0 * kUnit));
        }
      });
      for (std::int64_t i = 0; i < points_.rows; ++i) {
        if (!std::isfinite(static_cast<float>(squares_[i]))) {
          return {Errc::not_finite, "GreedyKCenter::select: row " + std::to_string(i) + " is not finite"};
        }
      }
      return {};
    }

    Result<std::vector<std::int64_t>> run(std::int64_t count, KCenterStart rule, std::uint64_t seed, const Observer& observer) {
      chosen_.reserve(static_cast<std::size_t>(count));
      Progress progress("coreset", count, observer);
      start(rule, seed);
      std::size_t reported = 0;
      while (true) {
        NORMA_CHECK(progress.advance(static_cast<std::int64_t>(chosen_.size() - reported)));
        reported = chosen_.size();
        if (static_cast<std::int64_t>(chosen_.size()) == count) return std::move(chosen_);
        if (!pick_from_pool(count)) {
          fill(count);
          continue;
        }
        if (static_cast<std::int64_t>(chosen_.size()) < count) sweep();
      }
    }

   private:
    static constexpr double kUnit = search::detail::kRoundingUnit;
    static constexpr std::int64_t kRowsPerTask = 1024;
    static constexpr double kTaken = -1.0;  // in nearest_: the row is chosen

    // Exact up to `limit`; above it only that it is above.
    [[nodiscard]] double distance(std::int64_t a, std::int64_t b, double limit = std::numeric_limits<double>::infinity()) const {
      return kernels_.squared_distance(points_.row(a).data(), points_.row(b).data(), points_.cols, limit);
    }

    void start(KCenterStart rule, std::uint64_t seed) {
      const std::int64_t n = points_.rows;
      Random random(seed);
      if (rule == KCenterStart::approximate) {
        const auto starts = sample_without_replacement(n, std::min(kStartPoints, n), random);
        parallel_.run_ranges(n, kRowsPerTask, [&](std::int64_t first, std::int64_t last, int) {
          for (std::int64_t i = first; i < last; ++i) {
            double sum = 0.0;
            for (const std::int64_t s : starts) sum += std::sqrt(distance(i, s));
            const double mean = sum / static_cast<double>(starts.size());
            nearest_[i] = mean * mean;
          }
        });
        return;
      }
      for (std::int64_t i = 0; i < n; ++i) nearest_[i] = std::numeric_limits<double>::infinity();
      const std::int64_t first = rule == KCenterStart::first_row ? 0 : random.below(n);
      take(first);
      sweep();
    }

    void take(std::int64_t row) {
      nearest_[row] = kTaken;
      chosen_.push_back(row);
      fresh_.push_back(row);
    }

    // a is chosen before b.
    [[nodiscard]] static bool ahead(double distance_a, std::int64_t a, double distance_b, std::int64_t b) noexcept {
      return distance_a > distance_b || (distance_a == distance_b && a < b);
    }

    // Picks while the best of the pool is ahead of everything outside. False when every point left coincides with a chosen one.
    bool pick_from_pool(std::int64_t count) {
      const std::int64_t n = points_.rows;
      order_.resize(static_cast<std::size_t>(n));
      for (std::int64_t i = 0; i < n; ++i) order_[static_cast<std::size_t>(i)] = i;
      const auto by_distance = [&](std::int64_t a, std::int64_t b) { return ahead(nearest_[a], a, nearest_[b], b); };
      std::int64_t outside = -1;  // the best row that is not in the pool
      std::int64_t size = n;
      if (n > kPool) {
        std::nth_element(order_.begin(), order_.begin() + kPool, order_.end(), by_distance);
        outside = order_[static_cast<std::size_t>(kPool)];
        size = kPool;
      }
      pool_.assign(order_.begin(), order_.begin() + size);
      const std::size_t before = chosen_.size();
      while (static_cast<std::int64_t>(chosen_.size()) < count && static_cast<std::int64_t>(fresh_.size()) < kPicksPerSweep) {
        // Points that are no longer ahead of the outside leave the pool; the next sweep measures them like everybody else.
        const std::int64_t last = fresh_.empty() ? -1 : fresh_.back();
        std::int64_t best = -1;
        std::size_t kept = 0;
        for (const std::int64_t row : pool_) {
          if (last >= 0) nearest_[row] = std::min(nearest_[row], distance(row, last, nearest_[row]));
          if (!(nearest_[row] > 0.0) || (outside >= 0 && !by_distance(row, outside))) continue;
          pool_[kept++] = row;
          if (best < 0 || by_distance(row, best)) best = row;
        }
        pool_.resize(kept);
        if (best < 0) break;
        take(best);
      }
      return chosen_.size() > before;
    }

    void fill(std::int64_t count) {
      for (std::int64_t i = 0; i < points_.rows && static_cast<std::int64_t>(chosen_.size()) < count; ++i) {
        if (nearest_[i] != kTaken) take(i);
      }
    }

    [[nodiscard]] float limit_of(std::int64_t row) const noexcept { return search::detail::limit_of(nearest_[row], squares_[row]); }

    // Measures every point against the centres chosen since the last sweep.
    void sweep() {
      const auto centres = static_cast<std::int64_t>(fresh_.size());
      const std::int64_t d = points_.cols;
      Matrix<float> rows(centres, d);
      for (std::int64_t c = 0; c < centres; ++c) {
        std::memcpy(rows.view().row(c).data(), points_.row(fresh_[static_cast<std::size_t>(c)]).data(), static_cast<std::size_t>(d) * sizeof(float));
      }
      const auto packed = linalg::PackedMatrix::pack(rows.view());
      const std::int64_t padded = packed.panels() * packed.panel();
      Buffer<float> low(padded), slack(padded);
      for (std::int64_t c = 0; c < padded; ++c) {
        if (c >= centres) {
          low[c] = std::numeric_limits<float>::quiet_NaN();
          continue;
        }
        const auto bounds = search::detail::product_bounds(d, squares_[fresh_[static_cast<std::size_t>(c)]], squares_[fresh_[static_cast<std::size_t>(c)]]);
        low[c] = bounds.low;
        slack[c] = bounds.slack;
      }
      for (std::int64_t i = 0; i < points_.rows; ++i) limit_[i] = nearest_[i] > 0.0 ? limit_of(i) : -std::numeric_limits<float>::infinity();
      Buffer<std::byte> scratch(static_cast<std::int64_t>(linalg::gemm_scratch_bytes(points_.rows, centres, d, parallel_.workers())));
      Arena arena(scratch.span());
      linalg::gemm_tiles(points_, packed, parallel_, arena,
                         [&](std::int64_t row0, std::int64_t rows_of_tile, std::int64_t col0, std::int64_t, const float* tile, std::int64_t width, int) {
                           search::detail::visit_candidates(kernels_, tile, rows_of_tile, width, low.data() + col0, slack.data() + col0, norm_.data() + row0,
                                                            limit_.data() + row0, [&](std::int64_t r, std::int64_t c, float) {
                                                              const std::int64_t row = row0 + r;
                                                              const double exact = distance(row, fresh_[static_cast<std::size_t>(col0 + c)], nearest_[row]);
                                                              if (!(exact < nearest_[row])) return;
                                                              nearest_[row] = exact;
                                                              limit_[row] = limit_of(row);
                                                            });
                         });
      fresh_.clear();
    }

    MatrixView<const float> points_;
    Parallel parallel_;
    const search::detail::SearchKernels& kernels_;
    Buffer<double> nearest_;  // squared distance to the chosen rows, kTaken for those
    Buffer<double> squares_;  // |p|^2
    Buffer<float> norm_;      // |p|, rounded up
    Buffer<float> limit_;     // nearest_ in the frame of the product's bounds
    std::vector<std::int64_t> chosen_, fresh_, order_, pool_;
  };
};

static_assert(Subset<GreedyKCenter>);

}  // namespace norma
