/// \file
/// Distance to the nearest images of a gallery, and of every patch to the nearest patch of those images.
/// Source: Cohen and Hoshen, "Sub-image anomaly detection with deep pyramid correspondences" (SPADE), arXiv 2005.02357, section 3;
///         unsquared distances and equal weight for each level as in the usual re-implementation.
/// Units:  L2 distance, >= 0
/// Cost:   k searches a level: k (h w)^2 c multiply-adds
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include <norma/metrics/anomaly_map.hpp>

namespace norma {

class GalleryDistance {
 public:
  static constexpr std::string_view name = "gallery_distance";
  static constexpr int kMaxNeighbours = 64;
  struct Settings {
    int num_neighbours = 50;
    bool squared = false;
    MapSettings map{};
    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      visitor("num_neighbours", self.num_neighbours, "images that a new one is compared with");
      visitor("squared", self.squared, "squared distances, in the image score and in the map");
      MapSettings::visit(self.map, visitor);
    }
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  explicit GalleryDistance(const Settings& settings) : settings_(settings) {}

  static Status validate(const Settings& settings) {
    if (settings.num_neighbours < 1 || settings.num_neighbours > kMaxNeighbours) {
      return {Errc::invalid_argument, "GalleryDistance: num_neighbours must be in 1.." + std::to_string(kMaxNeighbours) + ", found " + std::to_string(settings.num_neighbours)};
    }
    return settings.map.validate().with_context("GalleryDistance");
  }

  template <class EstimatorT>
  static constexpr std::size_t scratch_bytes(const FeatureShapes& shapes, Shape map, const Settings& settings, int workers) noexcept {
    std::int64_t positions = 1;
    for (int l = 0; l + 1 < shapes.count; ++l) positions = std::max(positions, shapes[l].positions());
    return arena_bytes<float>(kMaxNeighbours) + arena_bytes<std::int64_t>(kMaxNeighbours) + 2 * arena_bytes<float>(positions) +
           arena_bytes<std::int64_t>(positions) + arena_bytes<float>(map.positions()) +
           std::max(EstimatorT::nearest_scratch_bytes(shapes, settings.num_neighbours, workers), metrics::smooth_map_scratch_bytes(map, settings.map));
  }

  template <class EstimatorT>
    requires requires(const EstimatorT& estimator, MatrixView<const float> queries, MatrixView<float> distance, MatrixView<std::int64_t> index, Context& context) {
      { estimator.nearest_images(queries, 1, distance, index, context) } -> std::same_as<Status>;
      { estimator.nearest_patches(std::int64_t{}, 0, queries, distance, index, context) } -> std::same_as<Status>;
    }
  Status measure(const EstimatorT& estimator, const Features& features, MapView<float> map, float& score, Context& context) const {
    const Arena::Scope scope(context.arena);
    const int k = static_cast<int>(std::min<std::int64_t>(settings_.num_neighbours, estimator.images()));
    float* image_distance = context.arena.take<float>(kMaxNeighbours);
    auto* image = context.arena.take<std::int64_t>(kMaxNeighbours);
    {
      const StageTimer timer(context, Stage::estimator);
      const Arena::Scope searching(context.arena);
      NORMA_CHECK(estimator.nearest_images(features[features.count - 1].patches(), k, {image_distance, 1, k}, {image, 1, k}, context));
    }
    double sum = 0.0;
    for (int i = 0; i < k; ++i) {
      if (!std::isfinite(image_distance[i])) return {Errc::not_finite, "GalleryDistance: the image's feature vector holds numbers that are not finite"};
      sum += settings_.squared ? static_cast<double>(image_distance[i]) : std::sqrt(static_cast<double>(image_distance[i]));
    }
    score = static_cast<float>(sum / k);
    // Searching in ascending order makes the order of the images irrelevant to the result and the memory of the gallery read forward.
    std::sort(image, image + k);

    std::int64_t positions = 1;
    for (int l = 0; l + 1 < features.count; ++l) positions = std::max(positions, features[l].height * features[l].width);
    float* best = context.arena.take<float>(positions);
    float* candidate = context.arena.take<float>(positions);
    auto* matched = context.arena.take<std::int64_t>(positions);
    const MapView<float> enlarged(context.arena.take<float>(map.rows * map.cols), map.rows, map.cols);
    for (std::int64_t y = 0; y < map.rows; ++y) std::fill_n(map.row(y).data(), map.cols, 0.0f);
    const int levels = features.count - 1;
    for (int l = 0; l < levels; ++l) {
      const auto patches = features[l].patches();
      {
        const StageTimer timer(context, Stage::estimator);
        std::fill_n(best, patches.rows, std::numeric_limits<float>::infinity());
        for (int i = 0; i < k; ++i) {
          const Arena::Scope searching(context.arena);
          NORMA_CHECK(estimator.nearest_patches(image[i], l, patches, {candidate, patches.rows, 1}, {matched, patches.rows, 1}, context));
          for (std::int64_t p = 0; p < patches.rows; ++p) {
            if (!(candidate[p] >= best[p])) best[p] = candidate[p];  // written so that NaN wins and is found below
          }
        }
      }
      const StageTimer timer(context, Stage::metric);
      for (std::int64_t p = 0; p < patches.rows; ++p) {
        if (!std::isfinite(best[p])) return {Errc::not_finite, "GalleryDistance: the features of patch " + std::to_string(p) + " are not finite numbers"};
        if (!settings_.squared) best[p] = std::sqrt(best[p]);
      }
      NORMA_CHECK(image::resize_bilinear(MapView<const float>(best, features[l].height, features[l].width), enlarged, AlignCorners::no));
      for (std::int64_t y = 0; y < map.rows; ++y) {
        for (std::int64_t x = 0; x < map.cols; ++x) map(y, x) += enlarged(y, x) / static_cast<float>(levels);
      }
    }
    const StageTimer timer(context, Stage::metric);
    return metrics::smooth_map(map, settings_.map, context);
  }

 private:
  Settings settings_;
};

}  // namespace norma
