// The pictures under tests/data/image, and helpers to compare and to make images.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <string>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/image/decode.hpp>
#include <norma/image/image.hpp>

namespace norma::test {

inline std::string image_path(const std::string& name) { return std::string(NORMA_SOURCE_DIR) + "/tests/data/image/" + name; }

inline Image read_image(const std::string& name) {
  auto image = image::read(image_path(name));
  REQUIRE_MESSAGE(image.ok(), image.message());
  return *std::move(image);
}

/// Random bytes in every channel.
inline Image random_image(std::int64_t height, std::int64_t width, std::int64_t channels, std::uint64_t seed) {
  Image image(height, width, channels);
  Random random(seed);
  for (std::int64_t i = 0; i < image.size_bytes(); ++i) image.data()[i] = static_cast<std::uint8_t>(random.bits() >> 24);
  return image;
}

/// Largest difference of any sample; 256 where the shapes differ.
inline int largest_difference(const Image& a, const Image& b) {
  if (a.height() != b.height() || a.width() != b.width() || a.channels() != b.channels()) return 256;
  int most = 0;
  for (std::int64_t i = 0; i < a.size_bytes(); ++i) most = std::max(most, std::abs(int{a.data()[i]} - int{b.data()[i]}));
  return most;
}

}  // namespace norma::test
