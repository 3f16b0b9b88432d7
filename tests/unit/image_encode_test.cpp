// Compression against the decompressor, on data that meets every branch; PNG round trips.
#include <cmath>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/image/decode.hpp>
#include <norma/image/encode.hpp>

#include "support/image_files.hpp"
#include "support/shared_fixtures.hpp"

using namespace norma;
using test::largest_difference;
using test::random_image;

namespace {

std::size_t check_round_trip(const std::vector<std::byte>& in) {
  std::vector<std::byte> packed;
  image::detail::deflate_zlib(in, packed);
  std::vector<std::byte> back(in.size());
  const auto result = io::inflate_zlib(packed, back);
  REQUIRE_MESSAGE(result.ok(), result.message());
  REQUIRE(back == in);
  return packed.size();
}

}  // namespace

TEST_CASE("deflate: what is unpacked is what was packed") {
  Random random(5);
  for (const unsigned size : {0u, 1u, 2u, 3u, 4u, 5u, 31u, 258u, 259u, 262u, 1000u, 65535u, 65536u, 65537u, 200000u}) {
    CAPTURE(size);
    std::vector<std::byte> zeros(size), noise(size), few(size), skewed(size), far(size);
    for (std::size_t i = 0; i < size; ++i) {
      noise[i] = static_cast<std::byte>(random.bits() >> 24);
      few[i] = static_cast<std::byte>(random.below(3));
      // Frequencies that halve from symbol to symbol: a tree deeper than 15 without the limit.
      skewed[i] = static_cast<std::byte>(std::min(std::countl_zero(random.bits()), 31));
      far[i] = static_cast<std::byte>(i < 32768 ? std::to_integer<unsigned>(noise[i])
                                                : std::to_integer<unsigned>(far[i - 32768]));  // the farthest match
    }
    const std::size_t packed = check_round_trip(zeros);
    if (size >= 1000) CHECK(packed * 20 < size + 6000);
    CHECK(check_round_trip(noise) <= size + size / 100 + 400);
    check_round_trip(few);
    check_round_trip(skewed);
    check_round_trip(far);
  }
}

TEST_CASE("deflate: symbols of lengths and distances are those of RFC 1951") {
  using image::detail::length_symbol;
  using image::detail::LogSymbol;
  CHECK(length_symbol(3).symbol == 0);   // 257
  CHECK(length_symbol(10).symbol == 7);  // 264
  CHECK(length_symbol(11).symbol == 8);  // 265, 1 extra bit
  CHECK(length_symbol(12).extra == 1);
  CHECK(length_symbol(257).symbol == 27);  // 284, 5 extra bits
  CHECK(length_symbol(257).extra == 30);
  CHECK(length_symbol(258).symbol == 28);  // 285
  CHECK(length_symbol(258).extra_bits == 0);
  CHECK(LogSymbol<1>(0).symbol == 0);
  CHECK(LogSymbol<1>(4).symbol == 4);  // distance 5: 1 extra bit
  CHECK(LogSymbol<1>(4).extra_bits == 1);
  CHECK(LogSymbol<1>(32767).symbol == 29);
  CHECK(LogSymbol<1>(32767).extra == 8191);
}

TEST_CASE("Huffman code words fit their limit and fill the space (Kraft)") {
  std::array<std::uint32_t, 40> uses{};
  std::uint32_t a = 1, b = 1;
  for (auto& n : uses) n = a, a = std::exchange(b, a + b);  // Fibonacci: the deepest tree there is
  const image::detail::HuffmanCode<40, 15> code(uses);
  double sum = 0;
  for (std::size_t s = 0; s < 40; ++s) {
    CHECK(code.length(s) >= 1);
    CHECK(code.length(s) <= 15);
    sum += std::ldexp(1.0, -code.length(s));
  }
  CHECK(sum == 1.0);
}

TEST_CASE("PNG round trip: gray, colour, regions, camera formats, one pixel, smooth and flat pictures") {
  for (const std::int64_t channels : {1, 3}) {
    for (const auto& pair : {std::pair{1, 1}, {1, 300}, {300, 1}, {17, 23}, {64, 64}, {211, 307}}) {
      const auto height = pair.first;
      const auto width = pair.second;
      CAPTURE(height);
      CAPTURE(width);
      Image noise = random_image(height, width, channels, 4), smooth = noise, flat(height, width, channels);
      for (std::int64_t i = 0; i < smooth.size_bytes(); ++i) {
        smooth.data()[i] = static_cast<std::uint8_t>(128.0 + 100.0 * std::sin(static_cast<double>(i) * 0.01));
      }
      for (const Image* image : {&noise, &smooth, &flat}) {
        const auto png = image::encode_png(image->view());
        REQUIRE(png.ok());
        const auto back = image::decode(*png, "back");
        REQUIRE_MESSAGE(back.ok(), back.message());
        CHECK(largest_difference(*back, *image) == 0);
      }
    }
  }
  const Image image = random_image(20, 30, 3, 6);
  const auto part = image::encode_png(image.view().roi(3, 4, 10, 11));
  CHECK(largest_difference(*image::decode(*part, "part"), *image::to_image(image.view().roi(3, 4, 10, 11))) == 0);
  ImageView swapped = image.view();
  swapped.format = PixelFormat::bgr8;
  const auto back = image::decode(*image::encode_png(swapped), "swapped");
  CHECK((*back)(7, 8, 0) == image(7, 8, 2));
  CHECK(image::encode_png(ImageView{}).code() == Errc::invalid_argument);
  const std::byte pixel{};
  CHECK(image::encode_png({&pixel, 1 << 20, 1 << 12, 1 << 12, PixelFormat::gray8}).code() == Errc::unsupported);
}

TEST_CASE("write_png leaves a whole file or an error that names it") {
  const test::TemporaryFolder folder;
  const Image image = random_image(9, 8, 3, 2);
  const std::string path = (folder.path() / "out.png").string();
  REQUIRE(image::write_png(path, image.view()).ok());
  CHECK(largest_difference(*image::read(path), image) == 0);
  const Status nowhere = image::write_png((folder.path() / "no" / "out.png").string(), image.view());
  CHECK_FALSE(nowhere.ok());
  CHECK(nowhere.message().find("out.png") != std::string::npos);
  CHECK(image::write_png(path, ImageView{}).code() == Errc::invalid_argument);
  CHECK(largest_difference(*image::read(path), image) == 0);
}
