/// \file
/// How far a flow over three image sizes moves an image from the middle of its latent space.
/// Source: Rudolph et al., "Fully convolutional cross-scale-flows for image-based defect detection", WACV 2022; the product of the scales is the map
///         of the anomalib library. Units: score: half the mean square of all latents, >= 0; map: mean square over the channels of a position.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

#include <norma/metrics/anomaly_map.hpp>
#include <norma/nn/cross_scale_types.hpp>

namespace norma {

/// What the anomaly map shows.
enum class LatentMap : std::uint8_t {
  finest,   ///< the finest level, as the published code draws it
  product,  ///< the product of the three levels, each enlarged
};
constexpr std::string_view to_string(LatentMap map) noexcept { return map == LatentMap::product ? "product" : "finest"; }
constexpr bool from_string(std::string_view text, LatentMap& map) noexcept {
  if (text != "product" && text != "finest") return false;
  map = text == "product" ? LatentMap::product : LatentMap::finest;
  return true;
}

class LatentSquare {
 public:
  static constexpr std::string_view name = "latent_square";
  struct Settings {
    LatentMap latent_map = LatentMap::finest;
    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      visitor("latent_map", self.latent_map, "anomaly map: of the finest scale (finest) or the product of all scales (product)");
    }
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  explicit LatentSquare(const Settings& settings) : settings_(settings) {}
  static Status validate(const Settings&) { return {}; }

  template <class EstimatorT>
  static constexpr std::size_t scratch_bytes(const FeatureShapes& shapes, Shape map, const Settings&, const typename EstimatorT::Settings& estimator,
                                             int workers) noexcept {
    std::size_t bytes = EstimatorT::latent_scratch_bytes(shapes, estimator, workers) + arena_bytes<float>(map.positions());
    for (int l = 0; l < shapes.count; ++l) bytes += arena_bytes<float>(shapes[l].count()) + arena_bytes<float>(shapes[l].positions());
    return bytes;
  }

  template <class EstimatorT>
  requires requires(const EstimatorT& estimator, const Features& features, const nn::ScaleViews<float>& z, Context& context) {
    { estimator.latent(features, z, nullptr, context) } -> std::same_as<Status>;
  }
  Status measure(const EstimatorT& estimator, const Features& features, MapView<float> map, float& score, Context& context) const {
    if (features.count != nn::kScales) {
      return {Errc::shape_mismatch, "LatentSquare: expected features of 3 image sizes, found " + std::to_string(features.count) + " level(s)"};
    }
    const Arena::Scope scope(context.arena);
    nn::ScaleViews<float> z;
    for (int l = 0; l < nn::kScales; ++l) z[l] = {context.arena.take<float>(features[l].shape().count()), 1, features[l].shape()};
    {
      const StageTimer timer(context, Stage::estimator);
      NORMA_CHECK(estimator.latent(features, z, nullptr, context));
    }
    const StageTimer timer(context, Stage::metric);
    MapView<float> square[nn::kScales];
    double total = 0.0, dims = 0.0;
    for (int l = 0; l < nn::kScales; ++l) {
      const Shape shape = z[l].shape();
      square[l] = {context.arena.take<float>(shape.positions()), shape.height, shape.width};
      for (std::int64_t p = 0; p < shape.positions(); ++p) {
        double squares = 0.0;
        for (std::int64_t c = 0; c < shape.channels; ++c) {
          const auto value = static_cast<double>(z[l].data[p * shape.channels + c]);
          squares += value * value;
        }
        if (!std::isfinite(squares)) {
          return {Errc::not_finite,
                  "LatentSquare: the latents of level " + std::to_string(l) + ", position " + std::to_string(p) + " are not finite numbers"};
        }
        square[l].data[p] = static_cast<float>(squares / static_cast<double>(shape.channels));
        total += squares;
      }
      dims += static_cast<double>(shape.count());
    }
    score = static_cast<float>(0.5 * total / dims);
    NORMA_CHECK(image::resize_bilinear(MapView<const float>(square[0]), map, AlignCorners::no));
    if (settings_.latent_map == LatentMap::finest) return {};
    const MapView<float> enlarged(context.arena.take<float>(map.count()), map.rows, map.cols);
    for (int l = 1; l < nn::kScales; ++l) {
      NORMA_CHECK(image::resize_bilinear(MapView<const float>(square[l]), enlarged, AlignCorners::no));
      for (std::int64_t y = 0; y < map.rows; ++y) {
        for (std::int64_t i = 0; i < map.cols; ++i) map(y, i) *= enlarged(y, i);
      }
    }
    return {};
  }

 private:
  Settings settings_;
};

}  // namespace norma
