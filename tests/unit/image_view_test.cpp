// Views of frames, owned images, formats.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/image/image.hpp>

#include "support/image_files.hpp"

using namespace norma;

TEST_CASE("more than 8 bits are rounded to the nearest, exhaustively") {
  for (const int bits : {10, 12, 16}) {
    const std::uint32_t top = (1u << bits) - 1;
    for (std::uint32_t v = 0; v <= top; ++v) { REQUIRE(image::detail::to_8_bits(v, bits) == std::lround(v * 255.0 / top)); }
    CHECK(image::detail::to_8_bits(top + 5, bits) == 255);
  }
}

TEST_CASE("every format as 8 bits") {
  const std::uint8_t raw[] = {10, 20, 30, 40, 50, 60, 70, 80};
  const auto at = [&](PixelFormat format, std::int64_t width) { return *image::to_image(image::view(raw, 1, width, 8, format)); };
  const Image rgb = at(PixelFormat::rgb8, 2), bgr = at(PixelFormat::bgr8, 2), rgba = at(PixelFormat::rgba8, 2),
              bgra = at(PixelFormat::bgra8, 2);
  CHECK(std::vector<int>(rgb.data(), rgb.data() + 6) == std::vector<int>{10, 20, 30, 40, 50, 60});
  CHECK(std::vector<int>(bgr.data(), bgr.data() + 6) == std::vector<int>{30, 20, 10, 60, 50, 40});
  CHECK(std::vector<int>(rgba.data(), rgba.data() + 6) == std::vector<int>{10, 20, 30, 50, 60, 70});
  CHECK(std::vector<int>(bgra.data(), bgra.data() + 6) == std::vector<int>{30, 20, 10, 70, 60, 50});
  const std::uint8_t words[] = {0xFF, 0x03, 0x00, 0x02};  // 1023, 512
  CHECK(image::to_image(image::view(words, 1, 2, 4, PixelFormat::gray10))->data()[0] == 255);
  CHECK(image::to_image(image::view(words, 1, 2, 4, PixelFormat::gray10))->data()[1] == 128);
  CHECK(image::to_image(image::view(words, 1, 2, 4, PixelFormat::gray12))->data()[0] == 64);
  CHECK(image::to_image(image::view(words, 1, 2, 4, PixelFormat::gray16))->data()[0] == 4);
  for (const PixelFormat format : {PixelFormat::gray8, PixelFormat::gray16, PixelFormat::bgra8}) CHECK(to_string(format) != "unknown");
}

TEST_CASE("gray as Pillow makes it") {
  Image image(1, 4, 3);
  const int values[] = {255, 255, 255, 255, 0, 0, 0, 255, 0, 0, 0, 255};
  for (int i = 0; i < 12; ++i) image.data()[i] = static_cast<std::uint8_t>(values[i]);
  const auto gray = image::to_gray(image.view());
  CHECK(std::vector<int>(gray->data(), gray->data() + 4) == std::vector<int>{255, 76, 150, 29});
  CHECK(image::to_gray(gray->view())->data()[2] == 150);
}

TEST_CASE("a region is the same memory") {
  const Image image = test::random_image(12, 15, 3, 8);
  const ImageView part = image.view().roi(3, 5, 6, 7);
  CHECK(validate(part).ok());
  const auto copy = image::to_image(part);
  for (int y = 0; y < 6; ++y) {
    for (int x = 0; x < 7; ++x) CHECK((*copy)(y, x, 1) == image(y + 3, x + 5, 1));
  }
  CHECK(image::to_image(part.roi(5, 6, 1, 1))->data()[0] == image(8, 11, 0));
}

TEST_CASE("frames that cannot be read are refused") {
  std::uint8_t pixel[4] = {};
  const auto code = [&](const void* data, std::int64_t height, std::int64_t width, std::int64_t pitch, PixelFormat format) {
    return validate(image::view(data, height, width, pitch, format)).code();
  };
  constexpr auto most = std::numeric_limits<std::int64_t>::max();
  CHECK(code(pixel, 1, 1, 3, PixelFormat::rgb8) == Errc::ok);
  CHECK(code(nullptr, 1, 1, 3, PixelFormat::rgb8) == Errc::invalid_argument);
  CHECK(code(pixel, 1, 1, 2, PixelFormat::rgb8) == Errc::invalid_argument);
  CHECK(code(pixel, 1, 2, 3, PixelFormat::gray10) == Errc::invalid_argument);
  CHECK(code(pixel, 0, 1, 3, PixelFormat::rgb8) == Errc::invalid_argument);
  CHECK(code(pixel, 1, -1, 3, PixelFormat::rgb8) == Errc::invalid_argument);
  CHECK(code(pixel, most, most, most, PixelFormat::rgb8) == Errc::invalid_argument);
  CHECK(code(pixel, 2, 1, most, PixelFormat::rgb8) == Errc::invalid_argument);
  CHECK(code(pixel, 1, 1, -3, PixelFormat::rgb8) == Errc::invalid_argument);
  CHECK(code(pixel, 1, 1, 3, static_cast<PixelFormat>(99)) == Errc::invalid_argument);
  CHECK(image::to_image(ImageView{}).code() == Errc::invalid_argument);
  const Status narrow = validate(image::view(pixel, 4, 100, 299, PixelFormat::rgb8));
  CHECK(narrow.message().find("300") != std::string::npos);
  CHECK(narrow.message().find("299") != std::string::npos);
}

TEST_CASE("an image owns its pixels") {
  Image image(3, 4, 3);
  CHECK(image.size_bytes() == 36);
  CHECK(image.format() == PixelFormat::rgb8);
  image(2, 3, 1) = 9;
  const Image copy = image;
  image(2, 3, 1) = 1;
  CHECK(copy(2, 3, 1) == 9);
  const Image moved = std::move(image);
  CHECK(moved(2, 3, 1) == 1);
  CHECK(Image{}.empty());
  CHECK(validate(Image{}.view()).code() == Errc::invalid_argument);
}
