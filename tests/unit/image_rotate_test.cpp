// Turned images against Pillow's to the bit, and what must hold for every angle.
#include <cmath>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/image/rotate.hpp>

#include "support/count_allocations.hpp"
#include "support/image_files.hpp"

using namespace norma;
using test::random_image;

namespace {

// As tests/data/image/rotate.py makes it.
Image picture(std::int64_t height, std::int64_t width, std::int64_t channels) {
  Image image(height, width, channels);
  for (std::int64_t y = 0; y < height; ++y) {
    for (std::int64_t x = 0; x < width; ++x) {
      for (std::int64_t c = 0; c < channels; ++c) {
        image(y, x, c) = static_cast<std::uint8_t>((y * 37 + x * 11 + c * 101 + (x * y) % 251) % 255 + 1);
      }
    }
  }
  return image;
}

std::uint64_t hash(const Image& image) {
  std::uint64_t value = 0xCBF29CE484222325u;
  for (std::int64_t i = 0; i < image.size_bytes(); ++i) value = (value ^ image.data()[i]) * 0x100000001B3u;
  return value;
}

std::span<std::uint8_t> bytes(Image& image) { return {image.data(), static_cast<std::size_t>(image.size_bytes())}; }

}  // namespace

TEST_CASE("rotate gives Pillow's pixels to the bit") {
  std::ifstream file(test::image_path("rotate.txt"));
  std::int64_t height = 0, width = 0, channels = 0, lines = 0;
  double degrees = 0.0;
  std::uint64_t expected = 0;
  while (file >> height >> width >> channels >> degrees >> expected) {
    CAPTURE(height);
    CAPTURE(width);
    CAPTURE(channels);
    CAPTURE(degrees);
    const auto turned = image::rotate(picture(height, width, channels), degrees);
    REQUIRE(turned.ok());
    CHECK(hash(*turned) == expected);
    ++lines;
  }
  CHECK(lines == 9 * 2 * 24);
}

TEST_CASE("quarter turns move every pixel of a square image and four of them move it back") {
  const Image start = random_image(9, 9, 3, 4);
  for (const double quarter : {90.0, -90.0, 270.0, 450.0}) {
    auto now = image::rotate(start, quarter);
    REQUIRE(now.ok());
    CHECK((*now)(0, 0, 0) ==
          (std::fmod(quarter + 720.0, 360.0) == 90.0 ? start(0, 8, 0) : start(8, 0, 0)));  // counter-clockwise: the top right corner comes left
    for (int i = 1; i < 4; ++i) now = image::rotate(*now, quarter);
    CHECK(test::largest_difference(*now, start) == 0);
  }
}

TEST_CASE("every pixel of a turned image is a pixel of the image or black, and the corners of a long image are black") {
  Image white(20, 60, 1);
  for (auto& byte : bytes(white)) byte = 200;
  const auto turned = image::rotate(white, 45.0);
  REQUIRE(turned.ok());
  std::int64_t seen = 0;
  for (std::int64_t i = 0; i < turned->size_bytes(); ++i) {
    CHECK((turned->data()[i] == 0 || turned->data()[i] == 200));
    seen += turned->data()[i] == 200 ? 1 : 0;
  }
  CHECK((*turned)(0, 0, 0) == 0);
  CHECK((*turned)(19, 59, 0) == 0);
  CHECK((*turned)(10, 30, 0) == 200);
  // The band of height 20 at 45 degrees covers 20 sqrt(2) columns of each row.
  CHECK(std::abs(static_cast<double>(seen) - 20.0 * 20.0 * std::sqrt(2.0)) <= 40.0);
}

TEST_CASE("normalise_turned is preprocess of the turned image and allocates nothing") {
  const Preprocess settings{.resize = 0, .height = 24, .width = 32};
  const Image frame = random_image(24, 32, 3, 7);
  std::vector<float> got(24 * 32 * 3), want(got.size());
  const TensorView<float> out(got.data(), 1, 24, 32, 3), expected(want.data(), 1, 24, 32, 3);
  Buffer<std::byte> memory(1 << 20);
  for (const double degrees : {0.0, 17.0, 180.0}) {
    const auto turned = image::rotate(frame, degrees);
    REQUIRE(turned.ok());
    Arena arena(memory.span());
    REQUIRE(image::preprocess(settings, turned->view(), expected, arena).ok());
    const std::int64_t before = test::allocation_count();
    const Status status = image::normalise_turned(settings, frame.view(), degrees, out, arena);
    CHECK(test::allocation_count() == before);
    REQUIRE(status.ok());
    CHECK(arena.used() == 0);
    CHECK(got == want);
  }
  Arena small(std::span(memory.data(), 64));
  CHECK(image::normalise_turned(settings, frame.view(), 1.0, out, small).code() == Errc::out_of_memory);
}

TEST_CASE("crop and normalise together are preprocess, for every order of the channels") {
  for (const ChannelOrder order : {ChannelOrder::rgb, ChannelOrder::bgr}) {
    for (const PixelFormat format : {PixelFormat::gray8, PixelFormat::rgb8, PixelFormat::bgr8, PixelFormat::rgba8}) {
      const Preprocess settings{.resize = 30, .height = 24, .width = 20, .order = order};
      const Image pixels = random_image(41, 37 * 4, 1, 9);
      const ImageView frame = image::view(pixels.data(), 41, 37, 37 * 4, format);
      std::vector<float> got(24 * 20 * 3), want(got.size());
      Buffer<std::byte> memory(1 << 20);
      Arena arena(memory.span());
      REQUIRE(image::preprocess(settings, frame, TensorView<float>(want.data(), 1, 24, 20, 3), arena).ok());
      Image cropped;
      REQUIRE(image::crop(settings, frame, cropped).ok());
      REQUIRE(image::normalise(settings, cropped.view(), TensorView<float>(got.data(), 1, 24, 20, 3)).ok());
      CHECK(got == want);
    }
  }
}

TEST_CASE("what cannot be turned is refused in one sentence") {
  Image image = random_image(8, 6, 3, 1);
  Image out(8, 6, 3);
  CHECK(image::rotate(ImageView{}, 1.0, bytes(out)).code() == Errc::invalid_argument);
  CHECK(image::rotate(image.view(), std::nan(""), bytes(out)).code() == Errc::invalid_argument);
  CHECK(image::rotate(image.view(), std::numeric_limits<double>::infinity(), bytes(out)).code() == Errc::invalid_argument);
  CHECK(image::rotate(image.view(), 1.0, bytes(out).first(10)).message() == "image::rotate: expected an output of 144 bytes, found 10");
  CHECK(image::rotate(image::view(image.data(), 2, 3, 6, PixelFormat::gray16), 1.0, bytes(out)).code() == Errc::invalid_argument);
  CHECK(image::rotate(image::view(image.data(), 1, 16385, 16385, PixelFormat::gray8), 1.0, bytes(out)).message() ==
        "image::rotate: expected sides up to 16384, found 1 x 16385");
  CHECK(image::rotate(Image{}, 1.0).code() == Errc::invalid_argument);
  Arena none;
  CHECK(image::crop(Preprocess{.resize = 0, .height = 8, .width = 5}, image.view(), bytes(out), none).code() == Errc::shape_mismatch);
  CHECK(image::crop(Preprocess{.resize = 0, .height = 8, .width = 6}, image.view(), bytes(out), none).code() == Errc::out_of_memory);
  std::vector<float> input(8 * 6 * 3);
  CHECK(image::normalise(Preprocess{.resize = 0, .height = 8, .width = 5}, image.view(), TensorView<float>(input.data(), 1, 8, 5, 3)).code() ==
        Errc::shape_mismatch);
}
