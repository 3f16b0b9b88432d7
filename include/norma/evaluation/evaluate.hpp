/// \file
/// One protocol for every method: look at all test images of a category, then compute the figures.
/// Scores and maps are those of `Detector::inspect`; masks are brought to the map's resolution (nearest) or maps to the image's
/// (bilinear); AU-PRO follows the exact rule. docs/concepts/metrics.md defines every figure.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/progress.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/data/mvtec_ad.hpp>
#include <norma/detector.hpp>
#include <norma/evaluation/aupimo.hpp>
#include <norma/evaluation/pro.hpp>
#include <norma/evaluation/ranking.hpp>

namespace norma::evaluation {

/// Where pixel figures are computed.
enum class Resolution : std::uint8_t {
  network,   ///< at the map's size: what most papers report
  original,  ///< at the image's size, maps enlarged: what the official scripts do; memory grows with the images
};
constexpr std::string_view to_string(Resolution resolution) noexcept { return resolution == Resolution::network ? "network" : "original"; }
constexpr bool from_string(std::string_view text, Resolution& resolution) noexcept {
  if (text == "network") return resolution = Resolution::network, true;
  if (text == "original") return resolution = Resolution::original, true;
  return false;
}

/// One test image after the detector has seen it.
struct ImageResult {
  std::string path;
  std::string kind;
  std::uint8_t label = 0;             ///< 1 anomalous
  float score = 0.0f;
  Label verdict = Label::uncalibrated;
  double peak_row = 0.0;              ///< in pixels of the image
  double peak_column = 0.0;
  std::int64_t height = 0;            ///< of the image
  std::int64_t width = 0;
  StageTimes times;                   ///< decoding included
  bool has_mask = false;              ///< takes part in pixel figures
  Map<float> map;                     ///< as the detector gave it
};

struct BrokenImage {
  std::string path;
  Status reason;
};

/// Milliseconds.
struct LatencySummary {
  double p50 = 0.0;
  double p99 = 0.0;
  double mean = 0.0;
};

/// Figures are fractions; empty where undefined.
struct Report {
  std::string category;
  std::int64_t normal = 0;     ///< test images that were scored
  std::int64_t anomalous = 0;
  std::vector<ImageResult> images;   ///< in the data set's order
  std::vector<BrokenImage> broken;
  std::vector<std::string> warnings;
  Resolution resolution = Resolution::network;
  std::string mask_rule;
  std::int64_t pixel_images = 0;     ///< images that pixel figures are over
  std::int64_t regions = 0;
  RankingMetrics image;
  RankingMetrics pixel;
  std::optional<double> au_pro_30, au_pro_05, aupimo;
  ProCurve pro_curve;                ///< thinned, for drawing
  std::string aupimo_note;           ///< why there is no AUPIMO, or why it deserves little trust
  LatencySummary latency;            ///< of one image, from file to verdict
  StageTimes mean_times;
};

struct EvaluateOptions {
  int threads = 0;  ///< inside one image; <= 0: one for every hardware thread
  Resolution resolution = Resolution::network;
  Observer observer{};
  /// Called for every image that was scored, in order, with its pixels: for overlays and exported maps.
  std::function<Status(const ImageResult&, const Image&)> on_image{};
};

namespace detail {

/// The mask at the map's resolution: the mask pixel under the centre of each map pixel. For any backbone's geometry; with
/// `image::Preprocess` it is what Pillow's nearest gives, up to the rounding of exact ties.
inline Map<std::uint8_t> mask_at_map(MapView<const std::uint8_t> mask, const Placement& placement, std::int64_t height, std::int64_t width) {
  Map<std::uint8_t> out(height, width);
  for (std::int64_t y = 0; y < height; ++y) {
    const auto row = std::clamp<std::int64_t>(static_cast<std::int64_t>(std::floor(placement.original_row(static_cast<double>(y)) + 0.5)), 0, mask.rows - 1);
    for (std::int64_t x = 0; x < width; ++x) {
      const auto column =
          std::clamp<std::int64_t>(static_cast<std::int64_t>(std::floor(placement.original_column(static_cast<double>(x)) + 0.5)), 0, mask.cols - 1);
      out(y, x) = mask(row, column);
    }
  }
  return out;
}

/// Nearest rank: the smallest value that at least a share `q` of the values does not exceed.
inline double percentile(std::vector<double> values, double q) {
  if (values.empty()) return 0.0;
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<std::size_t>(std::ceil(q * static_cast<double>(values.size())));
  return values[std::min(values.size() - 1, rank > 0 ? rank - 1 : 0)];
}

inline Status pixel_figures(const std::vector<const Map<float>*>& maps, const std::vector<Map<std::uint8_t>>& masks, Parallel parallel, Report& report) {
  std::vector<MapView<const float>> map_views;
  std::vector<MapView<const std::uint8_t>> mask_views;
  for (std::size_t i = 0; i < maps.size(); ++i) {
    map_views.push_back(maps[i]->view());
    mask_views.push_back(masks[i].view());
  }
  NORMA_TRY(const PixelRanking pixels, PixelRanking::create(map_views, mask_views, parallel));
  report.pixel = ranking_metrics(pixels.ranking());
  report.regions = pixels.regions();
  NORMA_TRY(report.au_pro_30, pixels.au_pro({.limit = 0.3}, parallel));
  NORMA_TRY(report.au_pro_05, pixels.au_pro({.limit = 0.05}, parallel));
  report.pro_curve = pixels.exact_curve(400);
  const Result<Aupimo> strict = aupimo(map_views, mask_views);
  if (strict.ok()) {
    report.aupimo = strict->mean;
    report.aupimo_note = strict->warning;
  } else {
    report.aupimo_note = strict.message();
  }
  return {};
}

}  // namespace detail

/// Broken test images are listed and left out; everything else goes on. Errors: not_fitted, cancelled, not_enough_data (no test image
/// could be used), and errors of `on_image`.
template <class DetectorT>
Result<Report> evaluate(const DetectorT& detector, const data::MvtecAd& set, const EvaluateOptions& options = {}) {
  Report report;
  report.category = set.category();
  report.resolution = options.resolution;
  report.mask_rule = to_string(set.mask_rule());
  report.warnings.assign(set.warnings().begin(), set.warnings().end());
  auto workspace = detector.make_workspace(options.threads);
  const bool localizes = detector.localizes();
  if (!localizes) report.warnings.emplace_back("this method scores images as a whole: there are no pixel figures");

  std::vector<Map<std::uint8_t>> masks;
  std::vector<std::size_t> masked;  // the image of each mask
  const auto count = static_cast<std::int64_t>(set.test().size());
  Progress progress("test images", count, options.observer);
  for (std::int64_t i = 0; i < count; ++i) {
    const data::TestSample& sample = set.test()[static_cast<std::size_t>(i)];
    ImageResult result;
    result.path = sample.path;
    result.kind = sample.kind;
    result.label = sample.label;
    Image frame;
    std::optional<Map<std::uint8_t>> image_mask;
    const Status status = [&]() -> Status {
      {
        const StageTimer timer(&result.times, Stage::decode);
        NORMA_TRY(Image decoded, set.load(i));
        frame = std::move(decoded);
      }
      NORMA_TRY(const Verdict verdict, detector.inspect(frame, workspace));
      const double decode = result.times[Stage::decode];
      result.times = workspace.times();
      result.times[Stage::decode] = decode;
      result.score = verdict.score;
      result.verdict = verdict.label;
      result.peak_row = verdict.peak_row;
      result.peak_column = verdict.peak_column;
      result.height = frame.height();
      result.width = frame.width();
      result.map = Map<float>(verdict.map.rows, verdict.map.cols);
      std::copy_n(verdict.map.data, verdict.map.count(), result.map.data());
      if (localizes && set.has_mask(i)) {
        NORMA_TRY(Map<std::uint8_t> mask, set.load_mask(i, frame.height(), frame.width()));
        if (const auto warning = set.mask_warning(i, mask.view())) report.warnings.push_back(*warning);
        if (options.resolution == Resolution::network) {
          mask = detail::mask_at_map(mask.view(), detector.placement(frame.height(), frame.width()), verdict.map.rows, verdict.map.cols);
        }
        image_mask = std::move(mask);
        result.has_mask = true;
      }
      return {};
    }();
    if (status.ok()) {
      if (options.on_image) NORMA_CHECK(options.on_image(result, frame));
      if (image_mask) {
        masks.push_back(*std::move(image_mask));
        masked.push_back(report.images.size());
      }
      ++(result.label != 0 ? report.anomalous : report.normal);
      report.images.push_back(std::move(result));
    } else if (status.code() == Errc::not_fitted || status.code() == Errc::cancelled) {
      return status;
    } else {
      report.broken.push_back({sample.path, status});
    }
    NORMA_CHECK(progress.advance());
  }
  if (report.images.empty()) {
    return Status{Errc::not_enough_data, "evaluate: none of the " + std::to_string(count) + " test images of '" + set.folder() + "' could be used"};
  }

  std::vector<float> scores;
  std::vector<std::uint8_t> labels;
  std::vector<double> latency;
  for (const ImageResult& image : report.images) {
    scores.push_back(image.score);
    labels.push_back(image.label);
    latency.push_back(image.times.total());
    report.latency.mean += image.times.total() / static_cast<double>(report.images.size());
    for (std::size_t s = 0; s < image.times.ms.size(); ++s) report.mean_times.ms[s] += image.times.ms[s] / static_cast<double>(report.images.size());
  }
  report.latency.p50 = detail::percentile(latency, 0.5);
  report.latency.p99 = detail::percentile(latency, 0.99);

  ThreadPool pool(options.threads);
  NORMA_TRY(report.image, ranking_metrics(std::span<const float>(scores), std::span<const std::uint8_t>(labels), pool.parallel()));

  report.pixel_images = static_cast<std::int64_t>(masks.size());
  // Good images alone define no pixel figure: with no mask of an anomalous image there is nothing to find.
  const bool any_mask = std::any_of(masked.begin(), masked.end(), [&](std::size_t i) { return report.images[i].label != 0; });
  if (any_mask) {
    std::vector<Map<float>> enlarged;
    std::vector<const Map<float>*> maps;
    enlarged.reserve(masked.size());
    for (const std::size_t i : masked) {
      const ImageResult& image = report.images[i];
      if (options.resolution == Resolution::network) {
        maps.push_back(&image.map);
      } else {
        NORMA_TRY(Map<float> whole, detector.map_to_original(image.map.view(), image.height, image.width));
        enlarged.push_back(std::move(whole));
        maps.push_back(&enlarged.back());
      }
    }
    NORMA_CHECK(detail::pixel_figures(maps, masks, pool.parallel(), report));
  }
  return report;
}

}  // namespace norma::evaluation
