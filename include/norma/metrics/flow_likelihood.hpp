/// \file
/// How unlikely a position is by the squares of its latents: -exp(-mean over channels of z^2 / 2), the mean of the levels.
/// Source: Yu et al., "FastFlow", arXiv 2111.07677, section 4.3, as the public codes compute it. Units: in [-1, 0], higher is more anomalous.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>

#include <norma/metrics/anomaly_map.hpp>

namespace norma {

class FlowLikelihood {
 public:
  static constexpr std::string_view name = "flow_likelihood";
  struct Settings {
    std::int64_t top_pixels = 1;
    double sigma = 0.0;
    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      visitor("top_pixels", self.top_pixels, "the image's score is the mean of that many highest values of the map; 1: the maximum");
      visitor("sigma", self.sigma, "standard deviation of the Gaussian over the anomaly map, in pixels of the network's input; 0 for none");
    }
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  explicit FlowLikelihood(const Settings& settings) : settings_(settings) {}
  static Status validate(const Settings& settings) {
    if (settings.top_pixels < 1)
      return {Errc::invalid_argument, "FlowLikelihood: top_pixels must be at least 1, found " + std::to_string(settings.top_pixels)};
    return MapSettings{settings.sigma}.validate().with_context("FlowLikelihood");
  }

  template <class EstimatorT>
  static constexpr std::size_t scratch_bytes(const FeatureShapes& shapes, Shape map, const Settings& settings,
                                             const typename EstimatorT::Settings& estimator, int workers) noexcept {
    std::int64_t numbers = 0, positions = 0;
    for (int l = 0; l < shapes.count; ++l) {
      numbers = std::max(numbers, shapes[l].count());
      positions = std::max(positions, shapes[l].positions());
    }
    const std::size_t flowing = arena_bytes<float>(numbers) + EstimatorT::latent_scratch_bytes(shapes, estimator, workers);
    const std::size_t after = std::max(metrics::smooth_map_scratch_bytes(map, {settings.sigma}), arena_bytes<float>(map.positions()));
    return arena_bytes<float>(positions) + arena_bytes<float>(map.positions()) + std::max(flowing, after);
  }

  template <class EstimatorT>
  requires requires(const EstimatorT& estimator, TensorView<const float> features, TensorView<float> z, Context& context) {
    { estimator.latent(0, features, z, nullptr, context) } -> std::same_as<Status>;
  }
  Status measure(const EstimatorT& estimator, const Features& features, MapView<float> map, float& score, Context& context) const {
    NORMA_EXPECTS(map.dense());
    const Arena::Scope scope(context.arena);
    std::int64_t positions = 0;
    for (int l = 0; l < features.count; ++l) positions = std::max(positions, features[l].shape().positions());
    float* level_map = context.arena.take<float>(positions);
    const MapView<float> enlarged(context.arena.take<float>(map.count()), map.rows, map.cols);
    for (int l = 0; l < features.count; ++l) {
      const Shape shape = features[l].shape();
      {
        const StageTimer timer(context, Stage::estimator);
        const Arena::Scope flowing(context.arena);
        const TensorView<float> z(context.arena.take<float>(shape.count()), 1, shape);
        NORMA_CHECK(estimator.latent(l, features[l], z, nullptr, context));
        for (std::int64_t p = 0; p < shape.positions(); ++p) {
          double squares = 0.0;
          for (std::int64_t c = 0; c < shape.channels; ++c) {
            const auto value = static_cast<double>(z.data[p * shape.channels + c]);
            squares += value * value;
          }
          if (std::isnan(squares)) {  // an infinity is as far from normal as can be: 0, the highest value
            return {Errc::not_finite,
                    "FlowLikelihood: the latents of level " + std::to_string(l) + ", position " + std::to_string(p) + " are not numbers"};
          }
          level_map[p] = static_cast<float>(-std::exp(-0.5 * squares / static_cast<double>(shape.channels)));
        }
      }
      const StageTimer timer(context, Stage::metric);
      NORMA_CHECK(image::resize_bilinear(MapView<const float>(level_map, shape.height, shape.width), enlarged, AlignCorners::no));
      const float share = 1.0f / static_cast<float>(features.count);
      for (std::int64_t i = 0; i < map.count(); ++i) map.data[i] = (l == 0 ? 0.0f : map.data[i]) + share * enlarged.data[i];
    }
    const StageTimer timer(context, Stage::metric);
    NORMA_CHECK(metrics::smooth_map(map, {settings_.sigma}, context));
    const std::int64_t top = std::min(settings_.top_pixels, map.count());
    if (top == 1) {
      score = *std::max_element(map.data, map.data + map.count());
      return {};
    }
    float* values = context.arena.take<float>(map.count());
    std::copy_n(map.data, map.count(), values);
    std::nth_element(values, values + top - 1, values + map.count(), std::greater<>());
    std::sort(values, values + top, std::greater<>());  // so that the sum does not depend on the selection's order
    double sum = 0.0;
    for (std::int64_t i = 0; i < top; ++i) sum += static_cast<double>(values[i]);
    score = static_cast<float>(sum / static_cast<double>(top));
    return {};
  }

 private:
  Settings settings_;
};

}  // namespace norma
