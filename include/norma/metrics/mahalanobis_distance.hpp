/// \file
/// Mahalanobis distance of every position to its own Gaussian; the image score is the maximum of the smoothed map.
/// Source: Defard et al., "PaDiM", ICPR 2021, section III-C. Units: distance (not squared), >= 0.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include <norma/metrics/anomaly_map.hpp>

namespace norma {

class MahalanobisDistance {
 public:
  static constexpr std::string_view name = "mahalanobis_distance";
  using Settings = MapSettings;

  explicit MahalanobisDistance(const Settings& settings) : settings_(settings) {}
  static Status validate(const Settings& settings) { return settings.validate().with_context("MahalanobisDistance"); }

  template <class EstimatorT>
  static constexpr std::size_t scratch_bytes(const FeatureShapes& shapes, Shape map, const Settings& settings, int workers) noexcept {
    return arena_bytes<float>(shapes[0].positions()) + std::max(EstimatorT::distance_scratch_bytes(shapes[0].channels, workers),
                                                                metrics::smooth_map_scratch_bytes(map, settings));
  }

  template <class EstimatorT>
    requires requires(const EstimatorT& estimator, MatrixView<const float> patches, std::span<float> out, Context& context) {
      { estimator.distance(patches, out, context) } -> std::same_as<Status>;
    }
  Status measure(const EstimatorT& estimator, const Features& features, MapView<float> map, float& score, Context& context) const {
    const auto& level = features[0];
    const auto patches = level.patches();
    const Arena::Scope scope(context.arena);
    float* distance = context.arena.take<float>(patches.rows);
    {
      const StageTimer timer(context, Stage::estimator);
      const Arena::Scope measuring(context.arena);
      NORMA_CHECK(estimator.distance(patches, {distance, static_cast<std::size_t>(patches.rows)}, context));
    }
    const StageTimer timer(context, Stage::metric);
    for (std::int64_t p = 0; p < patches.rows; ++p) {
      if (!std::isfinite(distance[p])) return {Errc::not_finite, "MahalanobisDistance: the features of position " + std::to_string(p) + " are not finite numbers"};
    }
    NORMA_CHECK(image::resize_bilinear(MapView<const float>(distance, level.height, level.width), map, AlignCorners::no));
    NORMA_CHECK(metrics::smooth_map(map, settings_, context));
    score = map(0, 0);
    for (std::int64_t y = 0; y < map.rows; ++y) score = std::max(score, *std::max_element(map.row(y).begin(), map.row(y).end()));
    return {};
  }

 private:
  Settings settings_;
};

}  // namespace norma
