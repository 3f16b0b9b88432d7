/// \file
/// AUPIMO: recall of each anomalous image, integrated over a range of very low false positive rates of normal images only.
/// Source:      Bertoldo et al., "AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High Speed and Low Tolerance", 2024
/// Shapes:      for each image a map [h, w] and a mask [h, w]; an image whose mask is all zero is normal
/// Cost:        O(pixels + images * thresholds); memory 8 bytes a threshold
/// Determinism: one thread, fixed order
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <norma/core/status.hpp>
#include <norma/core/view.hpp>

namespace norma::evaluation {

/// What to do when the curve has at most kAupimoFewestPoints points inside the bounds: its area then says little.
enum class FewPoints : std::uint8_t { refuse, accept };

inline constexpr std::int64_t kAupimoFewestPoints = 30;
inline constexpr std::int64_t kAupimoAdvisedPoints = 300;

struct AupimoOptions {
  std::int64_t thresholds = 300'000;  ///< equally spaced over the scores of the normal images, >= 2
  double lower = 1e-5, upper = 1e-4;  ///< bounds of the shared false positive rate, 0 < lower < upper <= 1
  FewPoints few_points = FewPoints::refuse;
};

struct Aupimo {
  std::vector<std::optional<double>> per_image;  ///< empty for normal images; in [0, 1]
  std::optional<double> mean;                    ///< over the anomalous images
  std::int64_t upper_index = 0, lower_index = 0; ///< threshold indices of the upper and of the lower bound
  double upper_rate = 0.0, lower_rate = 0.0;     ///< shared false positive rates at those indices
  std::int64_t points = 0;                       ///< integrated
  std::string warning;                           ///< empty, or why the value deserves little trust
};

/// All values are empty (with a warning) where the normal scores leave no range between the bounds.
/// Errors: invalid_argument (options), shape_mismatch (names the image), not_finite (a NaN or infinity; names the image),
/// not_enough_data (no normal image; or too few points, see FewPoints).
inline Result<Aupimo> aupimo(std::span<const MapView<const float>> maps, std::span<const MapView<const std::uint8_t>> masks,
                             const AupimoOptions& options = {}) {
  const std::int64_t count = options.thresholds;
  if (count < 2) return Status{Errc::invalid_argument, "aupimo: thresholds, expected at least 2, found " + std::to_string(count)};
  if (!(options.lower > 0.0 && options.lower < options.upper && options.upper <= 1.0)) {
    return Status{Errc::invalid_argument, "aupimo: bounds, expected 0 < lower < upper <= 1, found " + std::to_string(options.lower) +
                                              " and " + std::to_string(options.upper)};
  }
  if (maps.size() != masks.size()) {
    return Status{Errc::shape_mismatch,
                  "aupimo: as many masks as maps, expected " + std::to_string(maps.size()) + ", found " + std::to_string(masks.size())};
  }
  std::vector<std::int64_t> mask_pixels(maps.size(), 0);
  std::int64_t normal_images = 0;
  double first = std::numeric_limits<double>::infinity(), last = -first;
  for (std::size_t i = 0; i < maps.size(); ++i) {
    if (maps[i].rows != masks[i].rows || maps[i].cols != masks[i].cols || maps[i].empty()) {
      const auto size = [](std::int64_t rows, std::int64_t cols) { return std::to_string(rows) + "x" + std::to_string(cols); };
      return Status{Errc::shape_mismatch, "aupimo: mask of image " + std::to_string(i) + ", expected " + size(maps[i].rows, maps[i].cols) +
                                              " (at least 1x1) like its map, found " + size(masks[i].rows, masks[i].cols)};
    }
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (std::int64_t y = 0; y < maps[i].rows; ++y) {
      for (std::int64_t x = 0; x < maps[i].cols; ++x) {
        const double score = maps[i](y, x);
        if (!std::isfinite(score)) {
          return Status{Errc::not_finite, "aupimo: map of image " + std::to_string(i) + " at row " + std::to_string(y) + ", column " +
                                              std::to_string(x) + ", expected a finite number, found " + std::to_string(score)};
        }
        low = std::min(low, score);
        high = std::max(high, score);
        mask_pixels[i] += masks[i](y, x) != 0 ? 1 : 0;
      }
    }
    if (mask_pixels[i] > 0) continue;
    ++normal_images;
    first = std::min(first, low);
    last = std::max(last, high);
  }
  if (normal_images == 0) {
    return Status{Errc::not_enough_data, "aupimo: normal images, expected at least 1, found 0 of " + std::to_string(maps.size())};
  }

  const double step = (last - first) / static_cast<double>(count - 1);
  const auto threshold = [&](std::int64_t k) { return k == count - 1 ? last : first + static_cast<double>(k) * step; };
  // How many thresholds are <= score. The division guesses, the comparisons decide.
  const auto passed = [&](double score) {
    const double guess = step > 0.0 ? (score - first) / step : (score >= first ? static_cast<double>(count) : -1.0);
    auto k = static_cast<std::int64_t>(std::clamp(guess, -1.0, static_cast<double>(count - 1))) + 1;
    while (k > 0 && threshold(k - 1) > score) --k;
    while (k < count && threshold(k) <= score) ++k;
    return k;
  };
  // Fraction of the chosen pixels that each threshold predicts, added to `rates`.
  std::vector<std::int64_t> histogram(static_cast<std::size_t>(count) + 1);
  const auto add_rates = [&](std::size_t i, bool only_mask, double pixels, std::vector<double>& rates) {
    std::fill(histogram.begin(), histogram.end(), 0);
    for (std::int64_t y = 0; y < maps[i].rows; ++y) {
      for (std::int64_t x = 0; x < maps[i].cols; ++x) {
        if (!only_mask || masks[i](y, x) != 0) ++histogram[static_cast<std::size_t>(passed(maps[i](y, x)))];
      }
    }
    std::int64_t predicted = 0;
    for (std::size_t k = rates.size(); k-- > 0;) {
      predicted += histogram[k + 1];
      rates[k] += static_cast<double>(predicted) / pixels;
    }
  };
  std::vector<double> shared(static_cast<std::size_t>(count), 0.0);
  for (std::size_t i = 0; i < maps.size(); ++i) {
    if (mask_pixels[i] == 0) add_rates(i, false, static_cast<double>(maps[i].count()), shared);
  }
  for (double& rate : shared) rate /= static_cast<double>(normal_images);
  const auto nearest = [&](double rate) {
    std::size_t best = 0;
    for (std::size_t k = 1; k < shared.size(); ++k) {
      if (std::abs(shared[k] - rate) < std::abs(shared[best] - rate)) best = k;
    }
    return best;
  };
  const std::size_t a = nearest(options.upper), b = nearest(options.lower);

  Aupimo out;
  out.per_image.resize(maps.size());
  out.upper_index = static_cast<std::int64_t>(a);
  out.lower_index = static_cast<std::int64_t>(b);
  out.upper_rate = shared[a];
  out.lower_rate = shared[b];
  if (a >= b) {
    out.warning = "AUPIMO is undefined: the scores of the normal images leave no thresholds between the false positive rates " +
                  std::to_string(options.lower) + " and " + std::to_string(options.upper);
    return out;
  }
  std::size_t end = b + 1;  // the shared rate falls with k; log(0) is left out
  while (end > a && shared[end - 1] <= 0.0) --end;
  out.points = static_cast<std::int64_t>(end - a);
  if (out.points <= kAupimoFewestPoints && options.few_points == FewPoints::refuse) {
    return Status{Errc::not_enough_data, "aupimo: points between the false positive rates of the bounds, expected more than " +
                                             std::to_string(kAupimoFewestPoints) + ", found " + std::to_string(out.points) +
                                             "; more thresholds, more normal pixels or wider bounds give more"};
  }
  if (out.points < kAupimoAdvisedPoints) {
    out.warning =
        "AUPIMO rests on " + std::to_string(out.points) + " points, fewer than the advised " + std::to_string(kAupimoAdvisedPoints);
  }
  const double range = std::log(options.upper / options.lower);
  std::vector<double> recall(static_cast<std::size_t>(count));
  double sum = 0.0;
  std::int64_t anomalous = 0;
  for (std::size_t i = 0; i < maps.size(); ++i) {
    if (mask_pixels[i] == 0) continue;
    std::fill(recall.begin(), recall.end(), 0.0);
    add_rates(i, true, static_cast<double>(mask_pixels[i]), recall);
    double area = 0.0;
    for (std::size_t k = end - 1; k > a; --k) {
      area += 0.5 * (recall[k] + recall[k - 1]) * (std::log(shared[k - 1]) - std::log(shared[k]));
    }
    out.per_image[i] = std::clamp(area / range, 0.0, 1.0);
    sum += *out.per_image[i];
    ++anomalous;
  }
  if (anomalous > 0) out.mean = sum / static_cast<double>(anomalous);
  return out;
}

}  // namespace norma::evaluation
