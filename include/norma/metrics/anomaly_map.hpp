/// \file
/// From a distance per patch to a map of the network's input: bilinear enlargement, then a Gaussian.
/// Source: the shared post-processing of PaDiM, PatchCore and SPADE (sigma 4, scipy's border).
#pragma once

#include <string>

#include <norma/concepts/metric.hpp>
#include <norma/image/gaussian.hpp>
#include <norma/image/resample.hpp>

namespace norma {

struct MapSettings {
  double sigma = 4.0;
  template <class Self, class Visitor>
  static constexpr void visit(Self& self, Visitor&& visitor) {
    visitor("sigma", self.sigma, "standard deviation of the Gaussian over the anomaly map, in pixels of the network's input; 0 for none");
  }
  [[nodiscard]] Status validate() const {
    if (!(sigma >= 0.0 && sigma <= 64.0)) return {Errc::invalid_argument, "sigma must be in 0..64, found " + std::to_string(sigma)};
    return {};
  }
  friend constexpr bool operator==(const MapSettings&, const MapSettings&) = default;
};

namespace metrics {

constexpr std::size_t smooth_map_scratch_bytes(Shape map, const MapSettings& settings) noexcept {
  return settings.sigma > 0.0 ? image::gaussian_scratch_bytes<float>(map.height, map.width, settings.sigma) : 0;
}

/// Smooths `map` in place.
inline Status smooth_map(MapView<float> map, const MapSettings& settings, Context& context) {
  if (!(settings.sigma > 0.0)) return {};
  const Arena::Scope scope(context.arena);
  return image::gaussian_filter<float>(map, map, settings.sigma, context.arena);
}

}  // namespace metrics
}  // namespace norma
