/// \file
/// One protocol for every method: look at all test images of a category, then compute the figures.
/// Scores and maps are those of `Detector::inspect`; masks are brought to the map's resolution (nearest) or maps to the image's
/// (bilinear); AU-PRO follows the exact rule. docs/concepts/metrics.md defines every figure.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
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
  StageTimes times;                   ///< from the file to the verdict
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
  std::array<LatencySummary, kStageNames.size()> stages;  ///< the same by stage; means add up to the whole one's, percentiles need not
  int threads = 1;                   ///< in all; with the next two, what the times were measured under
  int images_at_once = 1;
  int threads_per_image = 1;
  std::size_t workspace_bytes = 0;   ///< of all workspaces together
};

struct EvaluateOptions {
  int threads = 0;  ///< in all; <= 0: one for every hardware thread
  /// 1: an image has all threads, as on a line with one camera; files are decoded as many at once as there are threads. More: each has its share
  /// of the threads and a workspace of its own, which takes less time in all and more for each. <= 0: as many as threads. Results are the same.
  int images_at_once = 1;
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

inline LatencySummary summary(const std::vector<double>& milliseconds) {
  double sum = 0.0;
  for (const double value : milliseconds) sum += value;
  const double mean = milliseconds.empty() ? 0.0 : sum / static_cast<double>(milliseconds.size());
  return {percentile(milliseconds, 0.5), percentile(milliseconds, 0.99), mean};
}

/// A test image on its way through the evaluation.
struct TestImage {
  ImageResult result;
  Image frame;
  std::optional<Map<std::uint8_t>> mask;  // of the frame's size, then of the map's where figures are computed there
  std::optional<std::string> warning;     // about the mask
  Status status;                          // the first of what went wrong with the frame, the verdict and the mask
  Status mask_status;
};

/// Reads and decodes image `i` and its mask.
inline void load_test_image(const data::MvtecAd& set, std::int64_t i, bool with_mask, TestImage& image) {
  const data::TestSample& sample = set.test()[static_cast<std::size_t>(i)];
  image = {};
  image.result.path = sample.path;
  image.result.kind = sample.kind;
  image.result.label = sample.label;
  Result<Image> frame = set.load(i, &image.result.times);
  image.status = frame.status();
  if (!frame.ok()) return;
  image.frame = *std::move(frame);
  image.result.height = image.frame.height();
  image.result.width = image.frame.width();
  if (!with_mask || !set.has_mask(i)) return;
  Result<Map<std::uint8_t>> mask = set.load_mask(i, image.frame.height(), image.frame.width());
  image.mask_status = mask.status();
  if (!mask.ok()) return;
  image.warning = set.mask_warning(i, mask->view());
  image.mask = *std::move(mask);
  image.result.has_mask = true;
}

template <class DetectorT>
void look_at_test_image(const DetectorT& detector, typename DetectorT::Workspace& workspace, Resolution resolution, TestImage& image) {
  if (!image.status.ok()) return;
  const Result<Verdict> verdict = detector.inspect(image.frame, workspace);
  image.status = verdict.ok() ? image.mask_status : verdict.status();
  if (!image.status.ok()) return;
  ImageResult& result = image.result;
  for (std::size_t s = 0; s < result.times.ms.size(); ++s) result.times.ms[s] += workspace.times().ms[s];
  result.score = verdict->score;
  result.verdict = verdict->label;
  result.peak_row = verdict->peak_row;
  result.peak_column = verdict->peak_column;
  result.map = Map<float>(verdict->map.rows, verdict->map.cols);
  std::copy_n(verdict->map.data, verdict->map.count(), result.map.data());
  if (image.mask && resolution == Resolution::network) {
    image.mask = mask_at_map(image.mask->view(), detector.placement(result.height, result.width), result.map.rows(), result.map.cols());
  }
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
/// could be used), and errors of `on_image`. Memory besides the report: a workspace and a frame with its mask for every image at once, and with one
/// image at once a frame and a mask for every thread.
template <class DetectorT>
Result<Report> evaluate(const DetectorT& detector, const data::MvtecAd& set, const EvaluateOptions& options = {}) {
  Report report;
  report.category = set.category();
  report.resolution = options.resolution;
  report.mask_rule = to_string(set.mask_rule());
  report.warnings.assign(set.warnings().begin(), set.warnings().end());
  const bool localizes = detector.localizes();
  if (!localizes) report.warnings.emplace_back("this method scores images as a whole: there are no pixel figures");

  const auto count = static_cast<std::int64_t>(set.test().size());
  report.threads = options.threads > 0 ? options.threads : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  report.images_at_once = options.images_at_once > 0 ? std::min(options.images_at_once, report.threads) : report.threads;
  report.threads_per_image = report.threads / report.images_at_once;
  std::vector<typename DetectorT::Workspace> workspaces;
  for (int i = 0; i < report.images_at_once; ++i) {
    workspaces.push_back(detector.make_workspace(report.threads_per_image));
    report.workspace_bytes += workspaces.back().bytes();
  }
  // With one image at once its own threads decode, so that no more than `threads` are ever busy.
  const bool single = report.images_at_once == 1;
  ThreadPool lanes(report.images_at_once);
  const Parallel decoding = single ? workspaces.front().parallel() : lanes.parallel();
  std::vector<detail::TestImage> round(static_cast<std::size_t>(decoding.workers()));

  std::vector<Map<std::uint8_t>> masks;
  std::vector<std::size_t> masked;  // the image of each mask
  Progress progress("test images", count, options.observer);
  for (std::int64_t first = 0; first < count; first += decoding.workers()) {
    const std::int64_t images = std::min<std::int64_t>(decoding.workers(), count - first);
    decoding.run(images, [&](std::int64_t i, int worker) {
      detail::TestImage& image = round[static_cast<std::size_t>(i)];
      detail::load_test_image(set, first + i, localizes, image);
      if (!single) detail::look_at_test_image(detector, workspaces[static_cast<std::size_t>(worker)], options.resolution, image);
    });
    for (std::int64_t i = 0; i < images; ++i) {
      detail::TestImage& image = round[static_cast<std::size_t>(i)];
      if (single) detail::look_at_test_image(detector, workspaces.front(), options.resolution, image);
      if (image.status.ok()) {
        if (image.warning) report.warnings.push_back(*image.warning);
        if (options.on_image) NORMA_CHECK(options.on_image(image.result, image.frame));
        if (image.mask) {
          masks.push_back(*std::move(image.mask));
          masked.push_back(report.images.size());
        }
        ++(image.result.label != 0 ? report.anomalous : report.normal);
        report.images.push_back(std::move(image.result));
      } else if (image.status.code() == Errc::not_fitted || image.status.code() == Errc::cancelled) {
        return image.status;
      } else {
        report.broken.push_back({image.result.path, image.status});
      }
      NORMA_CHECK(progress.advance());
    }
  }
  if (report.images.empty()) {
    return Status{Errc::not_enough_data, "evaluate: none of the " + std::to_string(count) + " test images of '" + set.folder() + "' could be used"};
  }

  std::vector<float> scores;
  std::vector<std::uint8_t> labels;
  for (const ImageResult& image : report.images) {
    scores.push_back(image.score);
    labels.push_back(image.label);
  }
  const auto times = [&](const auto& of) {
    std::vector<double> milliseconds;
    for (const ImageResult& image : report.images) milliseconds.push_back(of(image.times));
    return detail::summary(milliseconds);
  };
  report.latency = times([](const StageTimes& image) { return image.total(); });
  for (std::size_t s = 0; s < report.stages.size(); ++s) report.stages[s] = times([s](const StageTimes& image) { return image.ms[s]; });

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
