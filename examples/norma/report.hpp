// Pictures of an evaluation: heat maps on one common scale, and a page that holds everything.
#pragma once

#include <string>

#include "detectors.hpp"

namespace program {

/// Heat maps of one evaluation share a scale, so that a normal image looks calm beside an anomalous one.
class HeatMaps {
 public:
  HeatMaps(const norma::AnyDetector& detector, const norma::evaluation::Report& report);
  /// image | heat map, side by side, at most `side` pixels high (0: the image's own size).
  [[nodiscard]] norma::Result<norma::Image> panel(const norma::evaluation::ImageResult& image, std::int64_t side = 0) const;

 private:
  const norma::AnyDetector& detector_;
  float low_ = 0.0f;
  float high_ = 1.0f;
};

/// One HTML page without anything outside it: figures, curves, scores, worst misses, overlays.
norma::Result<std::string> report_page(const norma::AnyDetector& detector, const norma::evaluation::Report& report, const HeatMaps& heat,
                                       std::optional<double> fit_seconds, const std::string& data_digest);

}  // namespace program
