/// \file
/// An 8-bit image turned about its centre, same size, nearest pixel, black where nothing is seen.
/// Source:      Pillow's `Image.rotate(angle, NEAREST, expand=False)`, which torchvision's `rotate` calls: bit-equal to it. Positions are
///              whole numbers of 1/65536 pixel there, and so they are here.
/// Units:       degrees, counter-clockwise; any finite number
/// Cost:        one read and one write a pixel; allocates nothing
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numbers>
#include <span>
#include <string>

#include <norma/core/arena.hpp>
#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/image/image.hpp>
#include <norma/image/preprocess.hpp>

namespace norma::image {

/// Longest side that `rotate` takes: its positions stay within 16 bits before the point.
inline constexpr std::int64_t kMaxRotatedSide = 16384;

namespace detail {

/// Where output pixel (y, x) lies in the input, in 1/65536 pixel: column = x0 + x * xx + y * xy, row = y0 + x * yx + y * yy.
struct Turn {
  std::int64_t x0 = 0, xx = 65536, xy = 0;
  std::int64_t y0 = 0, yx = 0, yy = 65536;
};

inline Turn turn(double degrees, std::int64_t height, std::int64_t width) noexcept {
  double angle = std::fmod(degrees, 360.0);
  if (angle < 0.0) angle += 360.0;
  const auto fixed = [](double value) { return static_cast<std::int64_t>(std::floor(value * 65536.0 + 0.5)); };
  // Quarter turns are exact, as in Pillow: a square image at 90 degrees loses no row.
  const bool square = height == width;
  if (angle == 0.0 || angle == 360.0) return {.x0 = 32768, .y0 = 32768};
  if (angle == 180.0) return {fixed(static_cast<double>(width) - 0.5), -65536, 0, fixed(static_cast<double>(height) - 0.5), 0, -65536};
  if (square && angle == 90.0) return {fixed(static_cast<double>(width) - 0.5), 0, -65536, 32768, 65536, 0};
  if (square && angle == 270.0) return {32768, 0, 65536, fixed(static_cast<double>(height) - 0.5), -65536, 0};
  const double radians = -angle * (std::numbers::pi / 180.0);
  const auto rounded = [](double value) { return std::round(value * 1e15) / 1e15; };
  const double cosine = rounded(std::cos(radians)), sine = rounded(std::sin(radians)), minus_sine = rounded(-std::sin(radians));
  const double x = static_cast<double>(width) / 2.0, y = static_cast<double>(height) / 2.0;
  const double left = cosine * -x + sine * -y + x;
  const double top = minus_sine * -x + cosine * -y + y;
  return {fixed(left + cosine * 0.5 + sine * 0.5),      fixed(cosine),     fixed(sine),
          fixed(top + minus_sine * 0.5 + cosine * 0.5), fixed(minus_sine), fixed(cosine)};
}

template <int kBytes>
void turn_rows(const ImageView& image, const Turn& turn, std::uint8_t* out) noexcept {
  for (std::int64_t y = 0; y < image.height; ++y) {
    std::int64_t column = turn.x0 + y * turn.xy;
    std::int64_t row = turn.y0 + y * turn.yy;
    for (std::int64_t x = 0; x < image.width; ++x, out += kBytes, column += turn.xx, row += turn.yx) {
      const std::int64_t from_x = column >> 16, from_y = row >> 16;
      if (from_x >= 0 && from_x < image.width && from_y >= 0 && from_y < image.height) {
        std::memcpy(out, image.row(from_y) + from_x * kBytes, kBytes);
      } else {
        std::memset(out, 0, kBytes);
      }
    }
  }
}

}  // namespace detail

/// Writes the turned image to `out` [height, width, bytes per pixel], packed, in the image's own format. `out` must not overlap the image.
/// Errors: invalid_argument for an image that cannot be read, has more than 8 bits or a side above kMaxRotatedSide, an angle that is not
/// finite; shape_mismatch for an `out` of another size.
inline Status rotate(const ImageView& image, double degrees, std::span<std::uint8_t> out) {
  NORMA_CHECK(validate(image));
  const std::int64_t pixel = bytes_per_pixel(image.format);
  if (pixel == 2) { return {Errc::invalid_argument, "image::rotate: expected 8 bits a channel, found " + std::string(to_string(image.format))}; }
  if (image.height > kMaxRotatedSide || image.width > kMaxRotatedSide) {
    return {Errc::invalid_argument, "image::rotate: expected sides up to " + std::to_string(kMaxRotatedSide) + ", found " +
                                        std::to_string(image.height) + " x " + std::to_string(image.width)};
  }
  if (!std::isfinite(degrees)) return {Errc::invalid_argument, "image::rotate: expected a finite angle"};
  const std::int64_t bytes = image.height * image.width * pixel;
  if (static_cast<std::int64_t>(out.size()) != bytes) {
    return {Errc::shape_mismatch, "image::rotate: expected an output of " + std::to_string(bytes) + " bytes, found " + std::to_string(out.size())};
  }
  const detail::Turn turn = detail::turn(degrees, image.height, image.width);
  switch (pixel) {
    case 1: detail::turn_rows<1>(image, turn, out.data()); break;
    case 3: detail::turn_rows<3>(image, turn, out.data()); break;
    default: detail::turn_rows<4>(image, turn, out.data()); break;
  }
  return {};
}

/// The second half of `preprocess` (image/preprocess.hpp) with a turn before it: out [1, height, width, 3]. Takes
/// height * width * 3 bytes of `arena` for a moment, none where nothing is turned.
inline Status normalise_turned(const Preprocess& settings, const ImageView& image, double degrees, TensorView<float> out, Arena& arena) {
  if (degrees == 0.0) return normalise(settings, image, out);
  NORMA_CHECK(validate(image));
  const Arena::Scope scope(arena);
  const std::int64_t pitch = image.width * bytes_per_pixel(image.format);
  if (arena.remaining() < arena_bytes<std::uint8_t>(image.height * pitch)) {
    return {Errc::out_of_memory, "image::normalise_turned: expected " + std::to_string(image.height * pitch) + " bytes of scratch, found " +
                                     std::to_string(arena.remaining())};
  }
  std::uint8_t* turned = arena.take<std::uint8_t>(image.height * pitch);
  NORMA_CHECK(rotate(image, degrees, {turned, static_cast<std::size_t>(image.height * pitch)}));
  return normalise(settings, view(turned, image.height, image.width, pitch, image.format), out);
}

/// `rotate` into a new image, gray or RGB.
inline Result<Image> rotate(const Image& image, double degrees) {
  if (image.empty()) return Status{Errc::invalid_argument, "image::rotate: the image is empty"};
  Image out(image.height(), image.width(), image.channels());
  NORMA_CHECK(rotate(image.view(), degrees, {out.data(), static_cast<std::size_t>(out.size_bytes())}));
  return out;
}

}  // namespace norma::image
