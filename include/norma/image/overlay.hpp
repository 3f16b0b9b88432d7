/// \file
/// Pictures for people: where the anomaly is, drawn into the image.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include <norma/core/status.hpp>
#include <norma/core/view.hpp>
#include <norma/image/colour.hpp>
#include <norma/image/image.hpp>

namespace norma {

/// How a map is drawn. Give `low` and `high` to compare pictures with each other. Without them the map's own range is taken, or, with a
/// threshold, a range around it: from half way between the map's minimum and the threshold to at least as far above it, so that a map below
/// the threshold everywhere stays cool.
struct OverlayOptions {
  std::optional<float> low = std::nullopt;        ///< this and below: the image alone
  std::optional<float> high = std::nullopt;       ///< this and above: the warmest colour
  float alpha = 0.65f;                            ///< opacity of the warmest colour, 0 .. 1
  std::optional<float> threshold = std::nullopt;  ///< a contour is drawn here
  bool mark_peak = true;                          ///< a ring around the highest value
  ColourMap colours = ColourMap::ember;
};

namespace image {

namespace detail {

struct MapRange {
  float low = 0.0f;
  float high = 0.0f;
  std::int64_t peak_row = -1;  // -1: no finite value
  std::int64_t peak_column = -1;
};

/// Smallest and largest finite value, and the first place of the largest.
inline MapRange range_of(MapView<const float> map) noexcept {
  MapRange range;
  for (std::int64_t r = 0; r < map.rows; ++r) {
    for (std::int64_t c = 0; c < map.cols; ++c) {
      const float v = map(r, c);
      if (!std::isfinite(v)) continue;
      const bool none = range.peak_row < 0;
      if (none || v < range.low) range.low = v;
      if (none || v > range.high) range.high = v, range.peak_row = r, range.peak_column = c;
    }
  }
  return range;
}

struct Scale {
  float low = 0.0f;
  float high = 0.0f;
};

inline Scale scale_of(const MapRange& range, const OverlayOptions& options) noexcept {
  Scale scale{range.low, range.high};
  if (options.threshold && *options.threshold > range.low) {
    scale.low = range.low + (*options.threshold - range.low) * 0.5f;
    scale.high = std::max(range.high, *options.threshold + (*options.threshold - scale.low));
  }
  return {options.low.value_or(scale.low), options.high.value_or(scale.high)};
}

inline void blend(std::uint8_t* pixel, Rgb colour, float weight) noexcept {
  const auto mix = [weight](std::uint8_t under, std::uint8_t over) {
    const float value = static_cast<float>(under) + weight * (static_cast<float>(over) - static_cast<float>(under));
    return static_cast<std::uint8_t>(std::clamp(value + 0.5f, 0.0f, 255.0f));
  };
  pixel[0] = mix(pixel[0], colour.r);
  pixel[1] = mix(pixel[1], colour.g);
  pixel[2] = mix(pixel[2], colour.b);
}

/// A ring with soft edges: `colour` between the radii, blended by how much of the pixel it covers.
inline void draw_ring(Image& image, double row, double column, double inner, double outer, Rgb colour, float opacity) noexcept {
  const auto first = [](double v) { return std::max<std::int64_t>(static_cast<std::int64_t>(std::floor(v)), 0); };
  const std::int64_t bottom = std::min(static_cast<std::int64_t>(std::ceil(row + outer + 1.0)), image.height() - 1);
  const std::int64_t right = std::min(static_cast<std::int64_t>(std::ceil(column + outer + 1.0)), image.width() - 1);
  for (std::int64_t r = first(row - outer - 1.0); r <= bottom; ++r) {
    for (std::int64_t c = first(column - outer - 1.0); c <= right; ++c) {
      const double distance = std::hypot(static_cast<double>(r) - row, static_cast<double>(c) - column);
      const double cover = std::min(std::clamp(outer - distance + 0.5, 0.0, 1.0), std::clamp(distance - inner + 0.5, 0.0, 1.0));
      if (cover > 0.0) blend(&image(r, c, 0), colour, opacity * static_cast<float>(cover));
    }
  }
}

/// 1 within `reach` (a square) of a step across the threshold, from the inside.
inline std::vector<std::uint8_t> contour(MapView<const float> map, float threshold, std::int64_t reach) {
  const std::int64_t height = map.rows, width = map.cols;
  std::vector<std::uint8_t> line(static_cast<std::size_t>(height * width), 0);
  const auto inside = [&](std::int64_t r, std::int64_t c) { return map(r, c) >= threshold; };
  for (std::int64_t r = 0; r < height; ++r) {
    for (std::int64_t c = 0; c < width; ++c) {
      if (!inside(r, c)) continue;
      const bool edge = (r > 0 && !inside(r - 1, c)) || (r + 1 < height && !inside(r + 1, c)) || (c > 0 && !inside(r, c - 1)) ||
                        (c + 1 < width && !inside(r, c + 1));
      if (!edge) continue;
      for (std::int64_t y = std::max<std::int64_t>(r - reach, 0); y <= std::min(r + reach, height - 1); ++y) {
        for (std::int64_t x = std::max<std::int64_t>(c - reach, 0); x <= std::min(c + reach, width - 1); ++x) {
          if ((y - r) * (y - r) + (x - c) * (x - c) <= reach * reach + reach) line[static_cast<std::size_t>(y * width + x)] = 1;
        }
      }
    }
  }
  return line;
}

/// The image as RGB, gray replicated.
inline Result<Image> to_rgb(const ImageView& frame) {
  NORMA_TRY(Image image, to_image(frame));
  if (image.channels() == 3) return image;
  Image rgb(image.height(), image.width(), 3);
  for (std::int64_t i = 0; i < image.size_bytes(); ++i) {
    for (std::int64_t c = 0; c < 3; ++c) rgb.data()[3 * i + c] = image.data()[i];
  }
  return rgb;
}

}  // namespace detail

/// The map alone in colours, RGB, [map.rows, map.cols].
inline Result<Image> heat_map(MapView<const float> map, const OverlayOptions& options = {}) {
  if (map.empty()) return Status{Errc::shape_mismatch, "image::heat_map: the map is empty"};
  const detail::Scale scale = detail::scale_of(detail::range_of(map), options);
  const ColourTable table = colour_table(options.colours);
  Image image(map.rows, map.cols, 3);
  for (std::int64_t r = 0; r < map.rows; ++r) {
    for (std::int64_t c = 0; c < map.cols; ++c) {
      const Rgb colour = colour_of(table, map(r, c), scale.low, scale.high);
      std::uint8_t* pixel = &image(r, c, 0);
      pixel[0] = colour.r, pixel[1] = colour.g, pixel[2] = colour.b;
    }
  }
  return image;
}

/// The image with the map over it: untouched where normal, warmer and more opaque with the value, a contour at the threshold and a ring
/// around the peak (the ring only where the peak reaches the threshold, if there is one). `map` has the image's size (`map_to_original`).
inline Result<Image> overlay(const ImageView& frame, MapView<const float> map, const OverlayOptions& options = {}) {
  NORMA_TRY(Image image, detail::to_rgb(frame));
  if (map.rows != image.height() || map.cols != image.width()) {
    return Status{Errc::shape_mismatch, "image::overlay: expected a map of the image's size " + std::to_string(image.height()) + " x " +
                                            std::to_string(image.width()) + ", found " + std::to_string(map.rows) + " x " +
                                            std::to_string(map.cols)};
  }
  const detail::MapRange range = detail::range_of(map);
  const auto [low, high] = detail::scale_of(range, options);
  const float alpha = std::clamp(options.alpha, 0.0f, 1.0f);
  const ColourTable table = colour_table(options.colours);
  for (std::int64_t r = 0; r < map.rows; ++r) {
    for (std::int64_t c = 0; c < map.cols; ++c) {
      const float place = high > low ? std::clamp((map(r, c) - low) / (high - low), 0.0f, 1.0f) : 0.0f;
      if (!(place > 0.0f)) continue;
      // The dark third of the scale would only dirty the image: start above it and fade in.
      const float ramp = std::min(1.0f, 1.6f * place);
      const float fade = ramp * ramp * (3.0f - 2.0f * ramp);
      detail::blend(&image(r, c, 0), table[static_cast<std::size_t>(85.0f + 170.0f * place)], alpha * fade);
    }
  }
  const double size = static_cast<double>(std::min(map.rows, map.cols));
  if (options.threshold) {
    const auto reach = static_cast<std::int64_t>(size / 600.0);
    const auto halo = detail::contour(map, *options.threshold, reach + 1);
    const auto line = detail::contour(map, *options.threshold, reach);
    for (std::size_t i = 0; i < line.size(); ++i) {
      if (line[i] != 0)
        detail::blend(image.data() + 3 * i, {255, 255, 255}, 0.95f);
      else if (halo[i] != 0)
        detail::blend(image.data() + 3 * i, {20, 20, 20}, 0.6f);
    }
  }
  if (options.mark_peak && range.peak_row >= 0 && (!options.threshold || range.high >= *options.threshold)) {
    const auto row = static_cast<double>(range.peak_row);
    const auto column = static_cast<double>(range.peak_column);
    const double radius = std::max(3.0, size / 45.0);
    const double width = std::max(1.0, size / 300.0);
    detail::draw_ring(image, row, column, radius - 1.0, radius + width + 1.0, {20, 20, 20}, 0.8f);
    detail::draw_ring(image, row, column, radius, radius + width, {80, 230, 255}, 1.0f);
  }
  return image;
}

/// Pictures beside each other on white, `gap` pixels apart, their tops on one line.
inline Result<Image> side_by_side(std::initializer_list<ImageView> frames, std::int64_t gap = 8) {
  if (frames.size() == 0) return Status{Errc::invalid_argument, "image::side_by_side: no images"};
  std::int64_t height = 0, width = -gap;
  for (const ImageView& frame : frames) {
    NORMA_CHECK(validate(frame));
    height = std::max(height, frame.height);
    width += frame.width + gap;
  }
  Image panel(height, width, 3);
  std::fill_n(panel.data(), panel.size_bytes(), std::uint8_t{255});
  std::int64_t left = 0;
  for (const ImageView& frame : frames) {
    NORMA_TRY(const Image image, detail::to_rgb(frame));
    for (std::int64_t r = 0; r < image.height(); ++r) std::copy_n(image.row(r), image.width() * 3, panel.row(r) + left * 3);
    left += frame.width + gap;
  }
  return panel;
}

/// Image, overlay, and the map alone, beside each other.
inline Result<Image> panel(const ImageView& frame, MapView<const float> map, const OverlayOptions& options = {}) {
  NORMA_TRY(const Image drawn, overlay(frame, map, options));
  NORMA_TRY(const Image heat, heat_map(map, options));
  return side_by_side({frame, drawn.view(), heat.view()});
}

}  // namespace image
}  // namespace norma
