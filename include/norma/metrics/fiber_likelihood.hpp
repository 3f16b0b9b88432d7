/// \file
/// From the log-likelihoods of the feature vectors of several levels to a map: at each position P = exp(l - maximum), enlarged, added up over the
/// levels; the anomaly is -log(sum / levels). The image score is the map's maximum.
/// Source: Gudovskiy et al., "CFLOW-AD", WACV 2022, section 4.3, and its published code.
///
/// The publication's anomaly is (largest sum of all test images) - sum, with each level's maximum taken over all test images: what an image gets
/// depends on the others. Here the maxima come from the training images, once, so that an image's score is its own, and normal places come close to
/// P = 1 (above it where a vector is likelier than every one of the training). `levels - sum` would then be the publication's, up to a constant; but
/// between two very unlikely places it differs by less than a float can tell. -log(sum / levels) falls with the same sum: the same order and so the
/// same rankings, with no ties, 0 where everything is as likely as the likeliest of the training. Where a sum is too small for a double, its
/// logarithm is computed from the logarithms.
/// Units: nats per dimension, larger is more anomalous; may be slightly negative
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>

#include <norma/concepts/metric.hpp>
#include <norma/image/resample.hpp>

namespace norma {

class FiberLikelihood {
 public:
  static constexpr std::string_view name = "fiber_likelihood";
  struct Settings {
    template <class Self, class Visitor>
    static constexpr void visit(Self&, Visitor&&) {}
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  explicit FiberLikelihood(const Settings&) {}
  static Status validate(const Settings&) { return {}; }

  template <class EstimatorT>
  static constexpr std::size_t scratch_bytes(const FeatureShapes& shapes, Shape map, const Settings&, const typename EstimatorT::Settings& estimator,
                                             int workers) noexcept {
    std::size_t bytes = arena_bytes<double>(map.width);
    std::int64_t widest = 0;
    for (int l = 0; l < shapes.count; ++l) {
      bytes += 2 * arena_bytes<double>(shapes[l].positions()) + arena_bytes<Column>(map.width);
      widest = std::max(widest, shapes[l].width);
    }
    return bytes + arena_bytes<double>(widest) + EstimatorT::scratch_bytes(shapes, estimator, workers);
  }

  template <class EstimatorT>
  requires requires(const EstimatorT& estimator, MatrixView<const float> patches, std::span<double> out, Context& context) {
    { estimator.log_likelihood(0, patches, out, context) } -> std::same_as<Status>;
    { estimator.maxima() } -> std::convertible_to<std::span<const float>>;
  }
  Status measure(const EstimatorT& estimator, const Features& features, MapView<float> map, float& score, Context& context) const {
    const Arena::Scope scope(context.arena);
    const std::span<const float> maxima = estimator.maxima();
    if (static_cast<int>(maxima.size()) != features.count) {
      return {Errc::shape_mismatch,
              "FiberLikelihood: expected features of " + std::to_string(maxima.size()) + " levels, found " + std::to_string(features.count)};
    }
    std::array<Level, kMaxLevels> levels{};
    std::int64_t widest = 0;
    {
      const StageTimer timer(context, Stage::estimator);
      for (int l = 0; l < features.count; ++l) {
        Level& level = levels[static_cast<std::size_t>(l)];
        const auto patches = features[l].patches();
        level = {features[l].height, features[l].width, context.arena.take<double>(patches.rows), context.arena.take<double>(patches.rows),
                 context.arena.take<Column>(map.cols)};
        widest = std::max(widest, level.width);
      }
      for (int l = 0; l < features.count; ++l) {
        const Level& level = levels[static_cast<std::size_t>(l)];
        const std::int64_t positions = level.height * level.width;
        NORMA_CHECK(estimator.log_likelihood(l, features[l].patches(), {level.below, static_cast<std::size_t>(positions)}, context));
        for (std::int64_t p = 0; p < positions; ++p) {
          level.below[p] -= static_cast<double>(maxima[static_cast<std::size_t>(l)]);
          level.share[p] = std::exp(level.below[p]);
        }
      }
    }
    const StageTimer timer(context, Stage::metric);
    combine({levels.data(), static_cast<std::size_t>(features.count)}, context.arena.take<double>(map.cols), context.arena.take<double>(widest), map);
    score = map(0, 0);
    for (std::int64_t y = 0; y < map.rows; ++y) score = std::max(score, *std::max_element(map.row(y).begin(), map.row(y).end()));
    return {};
  }

 private:
  /// Between which columns of a level an output's column lies.
  struct Column {
    std::int32_t low, high;
    double fraction;
  };
  struct Level {
    std::int64_t height = 0, width = 0;
    double* below = nullptr;    // log-likelihood - maximum
    double* share = nullptr;    // exp of it
    Column* columns = nullptr;  // of the map
  };

  /// Bilinear with corners on corners, in double.
  static void combine(std::span<const Level> levels, double* sum, double* blended, MapView<float> map) {
    const auto taps = [](std::int64_t i, std::int64_t in, std::int64_t out) {
      return image::detail::two_taps(image::detail::source_position(i, in, out, AlignCorners::yes), in);
    };
    for (const Level& level : levels) {
      for (std::int64_t x = 0; x < map.cols; ++x) {
        const auto at = taps(x, level.width, map.cols);
        level.columns[x] = {static_cast<std::int32_t>(at.low), static_cast<std::int32_t>(at.high), at.fraction};
      }
    }
    const auto count = static_cast<double>(levels.size());
    for (std::int64_t y = 0; y < map.rows; ++y) {
      std::fill_n(sum, map.cols, 0.0);
      for (const Level& level : levels) {
        const auto row = taps(y, level.height, map.rows);
        const double* above = level.share + row.low * level.width;
        const double* under = level.share + row.high * level.width;
        for (std::int64_t x = 0; x < level.width; ++x) blended[x] = (1.0 - row.fraction) * above[x] + row.fraction * under[x];
        for (std::int64_t x = 0; x < map.cols; ++x) {
          const Column& at = level.columns[x];
          sum[x] += (1.0 - at.fraction) * blended[at.low] + at.fraction * blended[at.high];
        }
      }
      for (std::int64_t x = 0; x < map.cols; ++x) {
        const double log_sum = sum[x] > 1e-280 ? std::log(sum[x]) : log_of_sum(levels, y, x, map.rows);
        map(y, x) = static_cast<float>(std::log(count) - log_sum);
      }
    }
  }

  /// log of a pixel's sum from the logarithms of its terms, four a level.
  static double log_of_sum(std::span<const Level> levels, std::int64_t y, std::int64_t x, std::int64_t rows) {
    std::array<double, std::size_t{4} * kMaxLevels> terms{};
    std::size_t count = 0;
    double largest = -std::numeric_limits<double>::infinity();
    for (const Level& level : levels) {
      const auto row = image::detail::two_taps(image::detail::source_position(y, level.height, rows, AlignCorners::yes), level.height);
      const Column& column = level.columns[x];
      for (const auto& [r, by_row] : {std::pair{row.low, 1.0 - row.fraction}, std::pair{row.high, row.fraction}}) {
        for (const auto& [c, by_column] : {std::pair{column.low, 1.0 - column.fraction}, std::pair{column.high, column.fraction}}) {
          if (!(by_row * by_column > 0.0)) continue;
          terms[count] = level.below[r * level.width + c] + std::log(by_row * by_column);
          largest = std::max(largest, terms[count++]);
        }
      }
    }
    double sum = 0.0;
    for (std::size_t i = 0; i < count; ++i) sum += std::exp(terms[i] - largest);
    return largest + std::log(sum);
  }
};

}  // namespace norma
