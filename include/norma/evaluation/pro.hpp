/// \file
/// Per-region overlap: AU-PRO by the exact rule (evaluation of MVTec AD) and by the sampled rule (evaluation of MVTec 3D-AD), and the
/// curves. `PixelRanking` holds everything that pixel-level metrics need, sorted once.
/// Source:      Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021; the exact definitions are in docs/concepts/metrics.md
/// Shapes:      for each image a map [h, w] and a mask [h, w] of the same size; sizes may differ between images
/// Regions:     connected components of each mask (non-zero = anomalous); each weighs the same whatever its size and image
/// Normal:      every pixel outside all regions, of normal and of anomalous images
/// Cost:        O(pixels) to label and sort; each AU-PRO then O(p log n) for p pixels in regions and n normal ones
/// Memory:      8 bytes a normal pixel and 12 a pixel in a region while sorting, 4 and 8 afterwards; beside it a label image a worker
/// Determinism: same bits for any number of threads
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <norma/core/parallel.hpp>
#include <norma/core/status.hpp>
#include <norma/evaluation/components.hpp>
#include <norma/evaluation/ranking.hpp>

namespace norma::evaluation {

enum class ProRule : std::uint8_t {
  exact,    ///< one vertex for each distinct score, prediction = score >= t; for comparing with figures on MVTec AD
  sampled,  ///< thresholds at equally spaced ranks of the normal scores, prediction = score > t; for comparing with MVTec 3D-AD
};

struct AuProOptions {
  double limit = 0.3;  ///< largest false positive rate of the integral, in (0, 1]
  ProRule rule = ProRule::exact;
  std::int64_t thresholds = 100;  ///< of the sampled rule, >= 2
};

/// Rising vertices; between two vertices the curve is straight.
struct ProCurve {
  std::vector<double> false_positive_rate, overlap;
};

/// All pixels of a set of test images, sorted once.
class PixelRanking {
 public:
  /// Errors: shape_mismatch (names the image), not_finite (a NaN; names image, row and column), invalid_argument (too many pixels).
  static Result<PixelRanking> create(std::span<const MapView<const float>> maps, std::span<const MapView<const std::uint8_t>> masks,
                                     Parallel parallel = {}, Connectivity connectivity = Connectivity::eight) {
    if (maps.size() != masks.size()) {
      return Status{Errc::shape_mismatch, "PixelRanking::create: as many masks as maps, expected " + std::to_string(maps.size()) +
                                              ", found " + std::to_string(masks.size())};
    }
    const auto images = static_cast<std::int64_t>(maps.size());
    struct Part {
      std::vector<std::int64_t> region_sizes;
      std::int64_t normal = 0, anomalous = 0, nan = -1;
    };
    std::vector<Part> parts(maps.size());
    for (std::size_t i = 0; i < maps.size(); ++i) {
      if (maps[i].rows != masks[i].rows || maps[i].cols != masks[i].cols) {
        return Status{Errc::shape_mismatch, "PixelRanking::create: mask of image " + std::to_string(i) + ", expected " +
                                                size_text(maps[i].rows, maps[i].cols) + " like its map, found " +
                                                size_text(masks[i].rows, masks[i].cols)};
      }
      if (maps[i].count() > std::int64_t{std::numeric_limits<std::int32_t>::max()}) {
        return Status{Errc::invalid_argument, "PixelRanking::create: image " + std::to_string(i) + " has " +
                                                  size_text(maps[i].rows, maps[i].cols) + " pixels, expected fewer than 2^31"};
      }
    }
    // Regions are labelled twice, once to count and once to fill, so that only one label image a worker exists at a time.
    parallel.run(images, [&](std::int64_t image, int) {
      const auto i = static_cast<std::size_t>(image);
      Part& part = parts[i];
      part.nan = first_nan(maps[i]);
      if (!any(masks[i])) {
        part.normal = maps[i].count();
        return;
      }
      part.region_sizes = connected_components(masks[i], connectivity).sizes;
      for (const std::int64_t size : part.region_sizes) part.anomalous += size;
      part.normal = maps[i].count() - part.anomalous;
    });

    PixelRanking out;
    std::vector<std::int64_t> first_region(maps.size());
    std::int64_t normal = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
      if (parts[i].nan >= 0) {
        return Status{Errc::not_finite, "PixelRanking::create: map of image " + std::to_string(i) + " is NaN at row " +
                                            std::to_string(parts[i].nan / maps[i].cols) + ", column " +
                                            std::to_string(parts[i].nan % maps[i].cols) + ", expected a number"};
      }
      first_region[i] = out.regions();
      for (const std::int64_t size : parts[i].region_sizes) out.region_begin_.push_back(out.region_begin_.back() + size);
      normal += parts[i].normal;
      parts[i].normal = normal - parts[i].normal;  // from here on: where the image's normal pixels go
    }
    out.region_keys_ = Buffer<Key>(out.region_begin_.back());
    Buffer<Key> normal_keys(normal);
    parallel.run(images, [&](std::int64_t image, int) {
      const auto i = static_cast<std::size_t>(image);
      Key* normal_at = normal_keys.data() + parts[i].normal;
      if (parts[i].anomalous == 0) {
        for (std::int64_t y = 0; y < maps[i].rows; ++y) {
          for (const float score : maps[i].row(y)) *normal_at++ = SortKey<float>::encode(score);
        }
        return;
      }
      const Components components = connected_components(masks[i], connectivity);
      std::vector<Key*> region_at;
      for (std::int64_t r = 0; r < components.count(); ++r) {
        region_at.push_back(out.region_keys_.data() + out.region_begin_[static_cast<std::size_t>(first_region[i] + r)]);
      }
      for (std::int64_t y = 0; y < maps[i].rows; ++y) {
        for (std::int64_t x = 0; x < maps[i].cols; ++x) {
          const std::int32_t label = components.labels(y, x);
          (label == 0 ? *normal_at++ : *region_at[static_cast<std::size_t>(label - 1)]++) = SortKey<float>::encode(maps[i](y, x));
        }
      }
    });
    NORMA_TRY(out.ranking_, Ranking<float>::from_keys(out.region_keys_, std::move(normal_keys), parallel));
    return out;
  }

  /// The same pixels as one pool: pixel AUROC, average precision, F1-max and their curves.
  [[nodiscard]] const Ranking<float>& ranking() const noexcept { return ranking_; }
  [[nodiscard]] std::int64_t regions() const noexcept { return static_cast<std::int64_t>(region_begin_.size()) - 1; }
  [[nodiscard]] std::int64_t region_size(std::int64_t r) const noexcept {
    return region_begin_[static_cast<std::size_t>(r) + 1] - region_begin_[static_cast<std::size_t>(r)];
  }
  [[nodiscard]] std::int64_t normal_pixels() const noexcept { return ranking_.negatives(); }

  /// Area under the PRO curve up to a false positive rate of `limit`, divided by `limit`. Empty without a region or a normal pixel.
  /// Errors: invalid_argument (limit outside (0, 1], fewer than 2 thresholds).
  [[nodiscard]] Result<std::optional<double>> au_pro(const AuProOptions& options = {}, Parallel parallel = {}) const {
    if (!(options.limit > 0.0 && options.limit <= 1.0)) {
      return Status{Errc::invalid_argument, "PixelRanking::au_pro: limit, expected in (0, 1], found " + std::to_string(options.limit)};
    }
    if (options.rule == ProRule::exact) return exact_area(options.limit, parallel);
    NORMA_TRY(const ProCurve curve, sampled_curve(options.thresholds, parallel));
    if (curve.overlap.empty()) return std::optional<double>();
    return std::optional<double>(area_up_to(curve, options.limit) / options.limit);
  }

  /// The polyline of the exact rule, without vertices inside straight parts; `max_points` >= 4 thins it for drawing (0 keeps all).
  /// Empty where AU-PRO is undefined.
  [[nodiscard]] ProCurve exact_curve(std::int64_t max_points = 0) const {
    ProCurve curve;
    if (regions() == 0 || normal_pixels() == 0) return curve;
    std::vector<std::pair<Key, double>> pixels;  // score and share of one region
    pixels.reserve(static_cast<std::size_t>(region_keys_.size()));
    for (std::int64_t r = 0; r < regions(); ++r) {
      const double share = 1.0 / (static_cast<double>(region_size(r)) * static_cast<double>(regions()));
      for (const Key key : region(r)) pixels.emplace_back(key, share);
    }
    std::sort(pixels.begin(), pixels.end(), std::greater<>());
    const std::span<const Key> normal = ranking_.negative_keys();
    const auto n = static_cast<std::int64_t>(normal.size());
    double marked = 0.0;
    const auto add = [&](std::int64_t predicted, double overlap, bool end) {
      const double x = static_cast<double>(predicted) / static_cast<double>(n);
      if (!end && !curve.overlap.empty()) {
        if (x == curve.false_positive_rate.back() && overlap == curve.overlap.back()) return;
        if (max_points > 0 && (x + overlap) * static_cast<double>(max_points - 2) < 2.0 * marked) return;
      }
      if (max_points > 0) marked = std::floor((x + overlap) * static_cast<double>(max_points - 2) / 2.0) + 1.0;
      curve.false_positive_rate.push_back(x);
      curve.overlap.push_back(overlap);
    };
    add(0, 0.0, true);
    double overlap = 0.0;
    std::int64_t normal_end = n;
    for (std::size_t i = 0; i < pixels.size();) {
      const Key key = pixels[i].first;
      const std::int64_t above = lower_bound_from_end(normal.data(), normal_end, static_cast<Key>(key + 1));
      add(n - above, overlap, false);
      for (; i < pixels.size() && pixels[i].first == key; ++i) overlap += pixels[i].second;
      normal_end = lower_bound_from_end(normal.data(), above, key);
      if (i == pixels.size()) overlap = 1.0;  // without the rounding of the sum
      add(n - normal_end, overlap, false);
    }
    if (curve.false_positive_rate.back() < 1.0 || curve.overlap.back() < 1.0) add(n, 1.0, true);
    return curve;
  }

  /// The polyline of the sampled rule: `thresholds` vertices and (1, 1). Empty where AU-PRO is undefined.
  [[nodiscard]] Result<ProCurve> sampled_curve(std::int64_t thresholds = 100, Parallel parallel = {}) const {
    if (thresholds < 2) {
      return Status{Errc::invalid_argument,
                    "PixelRanking::sampled_curve: thresholds, expected at least 2, found " + std::to_string(thresholds)};
    }
    ProCurve curve;
    const std::span<const Key> normal = ranking_.negative_keys();
    const auto n = static_cast<std::int64_t>(normal.size());
    if (regions() == 0 || n == 0) return curve;
    // Ranks as numpy.linspace(0, n - 1, thresholds, dtype=int) gives them: products truncated, the last one exact.
    const double step = static_cast<double>(n - 1) / static_cast<double>(thresholds - 1);
    std::vector<std::int64_t> rank(static_cast<std::size_t>(thresholds));
    std::vector<Key> level(rank.size());
    for (std::size_t i = 0; i < rank.size(); ++i) {
      rank[i] = i + 1 == rank.size() ? n - 1 : static_cast<std::int64_t>(static_cast<double>(i) * step);
      level[i] = normal[static_cast<std::size_t>(rank[i])];
    }
    Matrix<std::int64_t> detected(regions(), thresholds + 1);  // [r, k]: pixels of region r above exactly k levels, then above k or more
    parallel.run(regions(), [&](std::int64_t r, int) {
      for (const Key key : region(r)) ++detected(r, std::lower_bound(level.begin(), level.end(), key) - level.begin());
      for (std::int64_t k = thresholds - 1; k >= 0; --k) detected(r, k) += detected(r, k + 1);
    });
    for (std::int64_t k = thresholds; k > 0; --k) {
      double sum = 0.0;
      for (std::int64_t r = 0; r < regions(); ++r) sum += static_cast<double>(detected(r, k)) / static_cast<double>(region_size(r));
      curve.false_positive_rate.push_back(1.0 - static_cast<double>(rank[static_cast<std::size_t>(k) - 1] + 1) / static_cast<double>(n));
      curve.overlap.push_back(sum / static_cast<double>(regions()));
    }
    curve.false_positive_rate.push_back(1.0);
    curve.overlap.push_back(1.0);
    return curve;
  }

 private:
  using Key = SortKey<float>::type;

  [[nodiscard]] std::span<const Key> region(std::int64_t r) const noexcept {
    return region_keys_.span().subspan(static_cast<std::size_t>(region_begin_[static_cast<std::size_t>(r)]),
                                       static_cast<std::size_t>(region_size(r)));
  }

  static std::string size_text(std::int64_t rows, std::int64_t cols) { return std::to_string(rows) + "x" + std::to_string(cols); }

  static bool any(MapView<const std::uint8_t> mask) noexcept {
    for (std::int64_t y = 0; y < mask.rows; ++y) {
      for (const std::uint8_t value : mask.row(y)) {
        if (value != 0) return true;
      }
    }
    return false;
  }

  /// Index of the first NaN in raster order, or -1.
  static std::int64_t first_nan(MapView<const float> map) noexcept {
    for (std::int64_t y = 0; y < map.rows; ++y) {
      bool nan = false;
      for (const float value : map.row(y)) nan = nan || std::isnan(value);
      for (std::int64_t x = 0; nan; ++x) {
        if (std::isnan(map(y, x))) return y * map.cols + x;
      }
    }
    return -1;
  }

  /// The false positive rate does not depend on the regions, so the area is the mean over regions of each region's own area, and that
  /// is the mean over its pixels: a pixel counts as detected for all normal ranks beyond those that tie with it, and linearly inside
  /// the tie. Counted in normal pixels, so everything except the last division is exact while it stays below 2^53.
  [[nodiscard]] std::optional<double> exact_area(double limit, Parallel parallel) const {
    const std::span<const Key> normal = ranking_.negative_keys();
    const auto n = static_cast<std::int64_t>(normal.size());
    if (regions() == 0 || n == 0) return std::nullopt;
    const double end = limit * static_cast<double>(n);
    std::vector<double> area(static_cast<std::size_t>(regions()));
    parallel.run(regions(), [&](std::int64_t r, int) {
      double sum = 0.0;
      for (const Key key : region(r)) {
        const auto tie = std::lower_bound(normal.begin(), normal.end(), key);
        const auto above = tie == normal.end() || *tie != key ? tie : std::upper_bound(tie, normal.end(), key);
        const auto first = static_cast<double>(normal.end() - above), last = static_cast<double>(normal.end() - tie);
        if (last <= end) {
          sum += end - 0.5 * (first + last);
        } else if (first < end) {
          sum += 0.5 * (end - first) * (end - first) / (last - first);
        }
      }
      area[static_cast<std::size_t>(r)] = sum / static_cast<double>(region_size(r));
    });
    double total = 0.0;
    for (const double a : area) total += a;
    return total / (static_cast<double>(regions()) * end);
  }

  static double area_up_to(const ProCurve& curve, double limit) {
    double area = 0.0;
    for (std::size_t i = 1; i < curve.overlap.size(); ++i) {
      const double x0 = curve.false_positive_rate[i - 1], x1 = curve.false_positive_rate[i];
      const double y0 = curve.overlap[i - 1], y1 = curve.overlap[i];
      if (x1 <= limit) {
        area += 0.5 * (y0 + y1) * (x1 - x0);
        continue;
      }
      if (x0 < limit) area += 0.5 * (y0 + y0 + (y1 - y0) * (limit - x0) / (x1 - x0)) * (limit - x0);
      break;
    }
    return area;
  }

  Ranking<float> ranking_;
  Buffer<Key> region_keys_;                    // region after region, raster order inside
  std::vector<std::int64_t> region_begin_{0};  // of region r in region_keys_; one more at the end
};

/// AU-PRO of one set of maps. For several values of the same maps make a `PixelRanking` once.
inline Result<std::optional<double>> au_pro(std::span<const MapView<const float>> maps, std::span<const MapView<const std::uint8_t>> masks,
                                            const AuProOptions& options = {}, Parallel parallel = {}) {
  NORMA_TRY(const auto pixels, PixelRanking::create(maps, masks, parallel));
  return pixels.au_pro(options, parallel);
}

}  // namespace norma::evaluation
