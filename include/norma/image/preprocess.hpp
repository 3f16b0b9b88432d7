/// \file
/// From a camera's frame to what a network reads: resize, centre crop, channel order, normalisation, in one pass over the rows that are
/// needed and without allocation; and the way back, from the network's pixels to the frame's.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>

#include <norma/core/arena.hpp>
#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/core/view.hpp>
#include <norma/image/image.hpp>
#include <norma/image/resample.hpp>

namespace norma {

/// Order of the three channels that a network expects.
enum class ChannelOrder : std::uint8_t { rgb, bgr };

constexpr std::string_view to_string(ChannelOrder order) noexcept { return order == ChannelOrder::rgb ? "rgb" : "bgr"; }
constexpr bool from_string(std::string_view text, ChannelOrder& order) noexcept {
  if (text != "rgb" && text != "bgr") return false;
  order = text == "rgb" ? ChannelOrder::rgb : ChannelOrder::bgr;
  return true;
}

/// Geometry and normalisation in front of a network. Geometry as torchvision's Resize and CenterCrop: the shorter edge becomes `resize`,
/// the longer int(resize * long / short), then the centre `height` x `width` is cut out. The defaults are ImageNet's.
struct Preprocess {
  std::int64_t resize = 256;  ///< shorter edge; 0 stretches straight to height x width
  std::int64_t height = 224;
  std::int64_t width = 224;
  Interpolation interpolation = Interpolation::pillow_bilinear;
  ChannelOrder order = ChannelOrder::rgb;
  // On values of 0 .. 255, in the network's channel order: out = (value - mean) / stddev.
  std::array<float, 3> mean{123.675f, 116.28f, 103.53f};
  std::array<float, 3> stddev{58.395f, 57.12f, 57.375f};

  friend constexpr bool operator==(const Preprocess&, const Preprocess&) = default;

  /// Sides within 1 .. 65536, a resize that covers the crop, finite mean, positive stddev.
  [[nodiscard]] Status validate() const {
    constexpr std::int64_t kMost = 65536;
    const auto text = [](auto value) { return std::to_string(value); };
    if (height < 1 || width < 1 || height > kMost || width > kMost) {
      return {Errc::invalid_argument,
              "Preprocess: expected height and width within 1 and 65536, found " + text(height) + " x " + text(width)};
    }
    if (resize < 0 || resize > kMost)
      return {Errc::invalid_argument, "Preprocess: expected resize within 0 and 65536, found " + text(resize)};
    if (resize != 0 && (resize < height || resize < width)) {
      return {Errc::invalid_argument, "Preprocess: the crop is larger than the resized image, expected resize >= " +
                                          text(std::max(height, width)) + " (or 0 to stretch), found " + text(resize)};
    }
    if (to_string(interpolation) == "unknown") return {Errc::invalid_argument, "Preprocess: unknown interpolation"};
    for (std::size_t c = 0; c < 3; ++c) {
      if (!std::isfinite(mean[c]) || !std::isfinite(stddev[c]) || !(stddev[c] > 0.0f)) {
        return {Errc::invalid_argument, "Preprocess: expected finite means and positive standard deviations, found mean " + text(mean[c]) +
                                            " and stddev " + text(stddev[c]) + " in channel " + text(c)};
      }
    }
    return {};
  }
};

/// The largest frame that a fixed scratch memory is made for.
struct FrameLimits {
  std::int64_t max_height = 8192;
  std::int64_t max_width = 8192;
  friend constexpr bool operator==(const FrameLimits&, const FrameLimits&) = default;
};

/// Where the network's pixels lie in the frame. Pixel indices are real numbers here: pixel i covers [i - 0.5, i + 0.5), its centre is i.
struct Placement {
  double scale_y = 1.0;  ///< frame pixels per output pixel
  double scale_x = 1.0;
  std::int64_t crop_top = 0;  ///< of the output in the resized frame
  std::int64_t crop_left = 0;
  // The part of the frame that the network sees, as distances of its edges from the frame's top left corner in pixels.
  double top = 0.0, left = 0.0, bottom = 0.0, right = 0.0;

  [[nodiscard]] constexpr double original_row(double output_row) const noexcept {
    return (output_row + static_cast<double>(crop_top) + 0.5) * scale_y - 0.5;
  }
  [[nodiscard]] constexpr double original_column(double output_column) const noexcept {
    return (output_column + static_cast<double>(crop_left) + 0.5) * scale_x - 0.5;
  }
  [[nodiscard]] constexpr double output_row(double original_row) const noexcept {
    return (original_row + 0.5) / scale_y - static_cast<double>(crop_top) - 0.5;
  }
  [[nodiscard]] constexpr double output_column(double original_column) const noexcept {
    return (original_column + 0.5) / scale_x - static_cast<double>(crop_left) - 0.5;
  }
  /// Whether the centre of that pixel of the frame is seen.
  [[nodiscard]] constexpr bool sees(std::int64_t row, std::int64_t column) const noexcept {
    const double y = static_cast<double>(row) + 0.5;
    const double x = static_cast<double>(column) + 0.5;
    return y >= top && y < bottom && x >= left && x < right;
  }
};

namespace image {

namespace detail {

/// round((size - crop) / 2) with halves to the even number, as Python rounds.
constexpr std::int64_t centre_offset(std::int64_t size, std::int64_t crop) noexcept {
  const std::int64_t twice = size - crop;
  const std::int64_t half = twice / 2;
  return twice % 2 != 0 && half % 2 != 0 ? half + 1 : half;
}

struct Geometry {
  std::int64_t resized_height = 0;
  std::int64_t resized_width = 0;
  std::int64_t top = 0;
  std::int64_t left = 0;
};

constexpr Geometry geometry(const Preprocess& preprocess, std::int64_t height, std::int64_t width) noexcept {
  if (preprocess.resize == 0) return {preprocess.height, preprocess.width, 0, 0};
  Geometry g;
  const bool tall = height >= width;
  g.resized_height = tall ? preprocess.resize * height / width : preprocess.resize;
  g.resized_width = tall ? preprocess.resize : preprocess.resize * width / height;
  g.top = centre_offset(g.resized_height, preprocess.height);
  g.left = centre_offset(g.resized_width, preprocess.width);
  return g;
}

/// Most taps a side: neither edge of the resized frame is shorter than `resize`, so this bounds every frame inside the limits.
constexpr std::int64_t vertical_capacity(const Preprocess& p, FrameLimits limits) noexcept {
  return max_taps(p.interpolation, limits.max_height, p.resize == 0 ? p.height : p.resize);
}
constexpr std::int64_t horizontal_capacity(const Preprocess& p, FrameLimits limits) noexcept {
  return max_taps(p.interpolation, limits.max_width, p.resize == 0 ? p.width : p.resize);
}

/// The pixels [first, second) of an axis whose centres lie in [low, high).
inline std::pair<std::int64_t, std::int64_t> centres_within(double low, double high, std::int64_t size) noexcept {
  const auto first = std::clamp(static_cast<std::int64_t>(std::ceil(low - 0.5)), std::int64_t{0}, size);
  return {first, std::clamp(static_cast<std::int64_t>(std::ceil(high - 0.5)), first, size)};
}

inline Status check_size(const char* where, std::int64_t height, std::int64_t width) {
  if (height >= 1 && width >= 1 && height <= kMaxImageSide && width <= kMaxImageSide) return {};
  return {Errc::invalid_argument, std::string(where) + ": expected an image size within 1 and " + std::to_string(kMaxImageSide) +
                                      ", found " + std::to_string(height) + " x " + std::to_string(width)};
}

}  // namespace detail

/// Bytes of scratch that `preprocess` takes for any frame within the limits.
constexpr std::size_t preprocess_scratch_bytes(const Preprocess& preprocess, FrameLimits limits = {}) noexcept {
  const std::int64_t vertical = detail::vertical_capacity(preprocess, limits);
  const std::int64_t horizontal = detail::horizontal_capacity(preprocess, limits);
  return detail::axis_bytes(preprocess.height, vertical) + detail::axis_bytes(preprocess.width, horizontal) +
         detail::row_scratch_bytes(preprocess.width, horizontal, vertical, limits.max_width);
}

namespace detail {

/// The frame's pixels as the network sees them, still 8 bit: `sink(y, row)` for every row, the frame's own channels in the frame's order.
/// Preconditions: settings and frame are valid.
template <class Sink>
Status crop_rows(const char* where, const Preprocess& settings, const ImageView& frame, Arena& arena, Sink&& sink) {
  const FrameLimits needed{frame.height, frame.width};
  const std::size_t bytes = preprocess_scratch_bytes(settings, needed);
  if (bytes > arena.remaining()) {
    return {Errc::out_of_memory, std::string(where) + ": a frame of " + std::to_string(frame.height) + " x " + std::to_string(frame.width) +
                                     " needs " + std::to_string(bytes) + " bytes of scratch, found " + std::to_string(arena.remaining()) +
                                     " (the scratch of a detector is made for frames up to 8192 x 8192)"};
  }
  const Arena::Scope scope(arena);
  const std::int64_t taps_y = vertical_capacity(settings, needed);
  const std::int64_t taps_x = horizontal_capacity(settings, needed);
  AxisTaps vertical, horizontal;
  RowScratch scratch;
  if (!take_axis(arena, settings.height, taps_y, vertical) || !take_axis(arena, settings.width, taps_x, horizontal) ||
      !take_row_scratch(arena, settings.width, taps_x, taps_y, frame.width, scratch)) {
    return {Errc::out_of_memory, std::string(where) + ": scratch memory is too small"};
  }
  const Geometry g = geometry(settings, frame.height, frame.width);
  fill_axis(settings.interpolation, frame.height, g.resized_height, g.top, vertical);
  fill_axis(settings.interpolation, frame.width, g.resized_width, g.left, horizontal);
  resample_rows(settings.interpolation, frame, horizontal, vertical, scratch, sink);
  return {};
}

/// Rows of 8-bit pixels to rows of the network's input.
class Normaliser {
 public:
  Normaliser(const Preprocess& settings, PixelFormat format) noexcept {
    for (std::size_t c = 0; c < 3; ++c) {
      for (std::size_t v = 0; v < 256; ++v) value_[c][v] = (static_cast<float>(v) - settings.mean[c]) / settings.stddev[c];
    }
    const bool gray = colour_channels(format) == 1;
    // Network channel 0 is the frame's byte 0 unless exactly one of the two puts blue first.
    first_ = !gray && blue_first(format) != (settings.order == ChannelOrder::bgr) ? 2 : 0;
    step_ = gray ? 1 : 3;
    middle_ = gray ? 0 : 1;
    last_ = gray ? 0 : 2 - first_;
  }
  void operator()(const std::uint8_t* row, std::int64_t width, float* to) const noexcept {
    for (std::int64_t x = 0; x < width; ++x, to += 3, row += step_) {
      to[0] = value_[0][row[first_]];
      to[1] = value_[1][row[middle_]];
      to[2] = value_[2][row[last_]];
    }
  }

 private:
  std::array<std::array<float, 256>, 3> value_;  // normalised, by network channel and 8-bit value
  std::int64_t first_ = 0, middle_ = 0, last_ = 0, step_ = 1;
};

inline Status check_input(const char* where, const Preprocess& settings, const TensorView<float>& out) {
  if (out.batch == 1 && out.height == settings.height && out.width == settings.width && out.channels == 3) return {};
  return {Errc::shape_mismatch, std::string(where) + ": expected an output of [1, " + std::to_string(settings.height) + ", " +
                                    std::to_string(settings.width) + ", 3], found [" + std::to_string(out.batch) + ", " +
                                    std::to_string(out.height) + ", " + std::to_string(out.width) + ", " + std::to_string(out.channels) + "]"};
}

}  // namespace detail

/// Writes the network's input for one frame: out [1, height, width, 3]. A gray frame fills all three channels. The 8-bit values are those
/// of the whole frame resized and then cropped. Allocates nothing; fails when the frame does not fit `arena` (see FrameLimits).
inline Status preprocess(const Preprocess& settings, const ImageView& frame, TensorView<float> out, Arena& arena) {
  NORMA_CHECK(settings.validate());
  NORMA_CHECK(validate(frame));
  NORMA_CHECK(detail::check_input("image::preprocess", settings, out));
  const detail::Normaliser normalise(settings, frame.format);
  return detail::crop_rows("image::preprocess", settings, frame, arena, [&](std::int64_t y, const std::uint8_t* row) {
    normalise(row, settings.width, out.data + y * settings.width * 3);
  });
}

/// The first half of `preprocess`: the pixels that the network sees as RGB of 8 bits, `out` [height, width, 3]. A gray frame fills all three
/// channels. Allocates nothing.
inline Status crop(const Preprocess& settings, const ImageView& frame, std::span<std::uint8_t> out, Arena& arena) {
  NORMA_CHECK(settings.validate());
  NORMA_CHECK(validate(frame));
  if (static_cast<std::int64_t>(out.size()) != settings.height * settings.width * 3) {
    return {Errc::shape_mismatch, "image::crop: expected an output of " + std::to_string(settings.height * settings.width * 3) + " bytes, found " +
                                      std::to_string(out.size())};
  }
  const bool gray = colour_channels(frame.format) == 1;
  const std::int64_t step = gray ? 1 : 3, green = gray ? 0 : 1;
  const std::int64_t red = blue_first(frame.format) ? 2 : 0;
  const std::int64_t blue = gray ? 0 : 2 - red;
  return detail::crop_rows("image::crop", settings, frame, arena, [&](std::int64_t y, const std::uint8_t* row) {
    std::uint8_t* to = out.data() + y * settings.width * 3;
    for (std::int64_t x = 0; x < settings.width; ++x, to += 3, row += step) {
      to[0] = row[red];
      to[1] = row[green];
      to[2] = row[blue];
    }
  });
}
/// The same into an image, with scratch of its own.
inline Status crop(const Preprocess& settings, const ImageView& frame, Image& out) {
  NORMA_CHECK(settings.validate());
  NORMA_CHECK(validate(frame));
  Buffer<std::byte> memory(static_cast<std::int64_t>(preprocess_scratch_bytes(settings, {frame.height, frame.width})));
  Arena arena(memory.span());
  if (out.height() != settings.height || out.width() != settings.width || out.channels() != 3) out = Image(settings.height, settings.width, 3);
  return crop(settings, frame, {out.data(), static_cast<std::size_t>(out.size_bytes())}, arena);
}

/// The second half: an image of 8 bits, height x width as in `settings`, to the network's input. Allocates nothing.
inline Status normalise(const Preprocess& settings, const ImageView& image, TensorView<float> out) {
  NORMA_CHECK(settings.validate());
  NORMA_CHECK(validate(image));
  NORMA_CHECK(detail::check_input("image::normalise", settings, out));
  if (image.height != settings.height || image.width != settings.width || (image.format != PixelFormat::gray8 && bytes_per_pixel(image.format) != 3)) {
    return {Errc::shape_mismatch, "image::normalise: expected a gray8, rgb8 or bgr8 image of " + std::to_string(settings.height) + " x " +
                                      std::to_string(settings.width) + ", found a " + std::string(to_string(image.format)) + " one of " +
                                      std::to_string(image.height) + " x " + std::to_string(image.width)};
  }
  const detail::Normaliser normaliser(settings, image.format);
  for (std::int64_t y = 0; y < image.height; ++y) normaliser(image.row(y), settings.width, out.data + y * settings.width * 3);
  return {};
}

/// Where the network's pixels lie in a frame of that size. Preconditions: settings.validate() holds, sizes >= 1.
inline Placement placement(const Preprocess& settings, std::int64_t image_height, std::int64_t image_width) noexcept {
  NORMA_EXPECTS(image_height >= 1 && image_width >= 1);
  const detail::Geometry g = detail::geometry(settings, image_height, image_width);
  Placement p;
  p.scale_y = static_cast<double>(image_height) / static_cast<double>(g.resized_height);
  p.scale_x = static_cast<double>(image_width) / static_cast<double>(g.resized_width);
  p.crop_top = g.top;
  p.crop_left = g.left;
  p.top = static_cast<double>(g.top) * p.scale_y;
  p.left = static_cast<double>(g.left) * p.scale_x;
  p.bottom = static_cast<double>(g.top + settings.height) * p.scale_y;
  p.right = static_cast<double>(g.left + settings.width) * p.scale_x;
  return p;
}

/// An anomaly map of the network's view (any resolution) at the size of the frame that it was made from, `out` [image height, image width]:
/// bilinear between the map's pixel centres, the map's minimum where the network saw nothing.
inline Status map_to_original(MapView<const float> map, const Placement& p, MapView<float> out) {
  NORMA_CHECK(detail::check_size("image::map_to_original", out.rows, out.cols));
  if (map.empty()) return {Errc::shape_mismatch, "image::map_to_original: the map is empty"};
  NORMA_CHECK(detail::check_size("image::map_to_original", map.rows, map.cols));
  float lowest = std::numeric_limits<float>::infinity();
  for (std::int64_t r = 0; r < map.rows; ++r) {
    for (const float v : map.row(r)) lowest = v < lowest ? v : lowest;
  }
  const auto rows = detail::centres_within(p.top, p.bottom, out.rows);
  const auto columns = detail::centres_within(p.left, p.right, out.cols);
  for (std::int64_t r = 0; r < out.rows; ++r) {
    float* row = out.data + r * out.stride;
    const bool seen = r >= rows.first && r < rows.second;
    std::fill_n(row, seen ? columns.first : out.cols, lowest);
    if (seen) std::fill_n(row + columns.second, out.cols - columns.second, lowest);
  }
  const double rows_per_pixel = static_cast<double>(map.rows) * p.scale_y / (p.bottom - p.top);
  const double columns_per_pixel = static_cast<double>(map.cols) * p.scale_x / (p.right - p.left);
  detail::bilinear_between(
      map, out, rows, columns, [&](std::int64_t r) { return (p.output_row(static_cast<double>(r)) + 0.5) * rows_per_pixel - 0.5; },
      [&](std::int64_t c) { return (p.output_column(static_cast<double>(c)) + 0.5) * columns_per_pixel - 0.5; });
  return {};
}

/// The same, with the placement that `settings` give a frame of out's size.
inline Status map_to_original(MapView<const float> map, const Preprocess& settings, MapView<float> out) {
  NORMA_CHECK(settings.validate());
  NORMA_CHECK(detail::check_size("image::map_to_original", out.rows, out.cols));
  return map_to_original(map, placement(settings, out.rows, out.cols), out);
}

/// The same into a new map.
inline Result<Map<float>> map_to_original(MapView<const float> map, const Preprocess& settings, std::int64_t image_height,
                                          std::int64_t image_width) {
  NORMA_CHECK(detail::check_size("image::map_to_original", image_height, image_width));
  Map<float> out(image_height, image_width);
  NORMA_CHECK(map_to_original(map, settings, out.view()));
  return out;
}

/// A mask of the frame (non-zero = anomalous) as the network's pixels see it, `out` [height, width] of 0 and 1: the same geometry, Pillow's
/// nearest.
inline Status preprocess_mask(MapView<const std::uint8_t> mask, const Preprocess& settings, MapView<std::uint8_t> out) {
  NORMA_CHECK(settings.validate());
  NORMA_CHECK(detail::check_size("image::preprocess_mask", mask.rows, mask.cols));
  if (out.rows != settings.height || out.cols != settings.width) {
    return {Errc::shape_mismatch, "image::preprocess_mask: expected an output of " + std::to_string(settings.height) + " x " +
                                      std::to_string(settings.width) + ", found " + std::to_string(out.rows) + " x " +
                                      std::to_string(out.cols)};
  }
  const detail::Geometry g = detail::geometry(settings, mask.rows, mask.cols);
  detail::NearestAxis y(mask.rows, g.resized_height, g.top);
  for (std::int64_t r = 0; r < out.rows; ++r) {
    const std::uint8_t* from = mask.data + y.next() * mask.stride;
    detail::NearestAxis x(mask.cols, g.resized_width, g.left);
    for (std::int64_t c = 0; c < out.cols; ++c) out(r, c) = from[x.next()] != 0 ? 1 : 0;
  }
  return {};
}

/// The same into a new map.
inline Result<Map<std::uint8_t>> preprocess_mask(MapView<const std::uint8_t> mask, const Preprocess& settings) {
  NORMA_CHECK(settings.validate());
  Map<std::uint8_t> out(settings.height, settings.width);
  NORMA_CHECK(preprocess_mask(mask, settings, out.view()));
  return out;
}

}  // namespace image
}  // namespace norma
