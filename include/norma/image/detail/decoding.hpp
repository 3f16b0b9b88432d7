/// \file
/// What the decoders share: limits, the sentence of an error, numbers in files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include <norma/core/status.hpp>
#include <norma/image/image.hpp>

namespace norma::image {

/// What a file may ask for. The default admits 32768 pixels a side and 2^28 in all.
struct DecodeLimits {
  std::int64_t max_side = 32768;
  std::int64_t max_pixels = std::int64_t{1} << 28;
  std::int64_t max_bytes = std::int64_t{1} << 30;  ///< of the file itself
};

namespace detail {

inline std::uint32_t big_endian_32(const std::byte* p) noexcept {
  return std::to_integer<std::uint32_t>(p[0]) << 24 | std::to_integer<std::uint32_t>(p[1]) << 16 |
         std::to_integer<std::uint32_t>(p[2]) << 8 | std::to_integer<std::uint32_t>(p[3]);
}
inline std::uint32_t little_endian(const std::byte* p, int bytes) noexcept {
  std::uint32_t value = 0;
  for (int i = 0; i < bytes; ++i) value |= std::to_integer<std::uint32_t>(p[i]) << (8 * i);
  return value;
}

inline Status bad_image(Errc code, std::string_view name, std::string what) {
  return {code, "image::decode: '" + std::string(name) + "': " + std::move(what)};
}

inline Status check_limits(std::int64_t width, std::int64_t height, std::string_view name, const DecodeLimits& limits) {
  if (width <= 0 || height <= 0) {
    return bad_image(Errc::corrupt, name,
                     "expected a positive size, found " + std::to_string(width) + " x " + std::to_string(height) + " pixels");
  }
  const std::int64_t max_side = limits.max_side < kMaxImageSide ? limits.max_side : kMaxImageSide;
  if (width > max_side || height > max_side) {
    return bad_image(
        Errc::unsupported, name,
        "expected sides up to " + std::to_string(max_side) + " pixels, found " + std::to_string(width) + " x " + std::to_string(height));
  }
  if (width * height > limits.max_pixels) {
    return bad_image(
        Errc::unsupported, name,
        "expected up to " + std::to_string(limits.max_pixels) + " pixels, found " + std::to_string(width) + " x " + std::to_string(height));
  }
  return {};
}

}  // namespace detail
}  // namespace norma::image
