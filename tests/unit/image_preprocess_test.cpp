// Preprocessing against torchvision's Resize + CenterCrop to the bit, and the way back to the frame.
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/image/preprocess.hpp>

#include "support/image_files.hpp"

using namespace norma;
using test::random_image;
using test::read_image;

namespace {

// (v - 0) / 1: the 8-bit values themselves.
constexpr Preprocess plain(std::int64_t resize, std::int64_t height, std::int64_t width, Interpolation kind) {
  return {.resize = resize, .height = height, .width = width, .interpolation = kind, .mean = {0, 0, 0}, .stddev = {1, 1, 1}};
}

Result<Tensor<float>> run(const Preprocess& settings, const ImageView& frame) {
  Buffer<std::byte> memory(static_cast<std::int64_t>(image::preprocess_scratch_bytes(settings, {frame.height, frame.width})));
  Arena arena(memory.span());
  Tensor<float> out(1, settings.height, settings.width, 3);
  NORMA_CHECK(image::preprocess(settings, frame, out.view(), arena));
  CHECK(arena.used() == 0);
  return out;
}

double largest_difference(const Tensor<float>& tensor, const Image& image) {
  if (tensor.shape() != Shape{image.height(), image.width(), image.channels()}) return 1e9;
  double most = 0;
  for (std::int64_t i = 0; i < image.size_bytes(); ++i) {
    const double d = std::abs(static_cast<double>(tensor.data()[i]) - image.data()[i]);
    most = d <= most ? most : d;
  }
  return most;
}

static_assert(Preprocess{} == Preprocess{});
static_assert(image::preprocess_scratch_bytes(Preprocess{}) < 288 * 1024);
static_assert(image::preprocess_scratch_bytes(Preprocess{}, {900, 900}) < 64 * 1024);

}  // namespace

TEST_CASE("preprocess gives torchvision's pixels to the bit") {
  const std::pair<const char*, Interpolation> kinds[] = {{"nearest", Interpolation::pillow_nearest},
                                                         {"bilinear", Interpolation::pillow_bilinear},
                                                         {"bicubic", Interpolation::pillow_bicubic},
                                                         {"lanczos", Interpolation::pillow_lanczos}};
  for (const char* source : {"61x47", "40x75", "52x52"}) {
    const Image photo = read_image(std::string("photo_") + source + ".png");
    for (const auto& pair : kinds) {
      const auto name = pair.first;
      const auto kind = pair.second;
      const std::string file = std::string("photo_") + source + "_" + name + "_33_24x30.png";
      CAPTURE(file);
      const auto out = run(plain(33, 24, 30, kind), photo.view());
      REQUIRE(out.ok());
      CHECK(largest_difference(*out, read_image(file)) == 0.0);
    }
  }
}

TEST_CASE("preprocess is the whole image resized, then cropped, for every format and interpolation") {
  const std::int64_t height = 50, width = 61;
  for (const PixelFormat format : {PixelFormat::gray8, PixelFormat::gray10, PixelFormat::gray12, PixelFormat::gray16, PixelFormat::rgb8,
                                   PixelFormat::bgr8, PixelFormat::rgba8, PixelFormat::bgra8}) {
    const std::int64_t pitch = width * bytes_per_pixel(format) + 3;
    std::vector<std::uint8_t> memory(static_cast<std::size_t>((height - 1) * pitch + width * bytes_per_pixel(format)));
    Random random(17, static_cast<std::uint64_t>(format));
    for (auto& byte : memory) byte = static_cast<std::uint8_t>(random.bits() >> 24);
    const ImageView frame = image::view(memory.data(), height, width, pitch, format);
    for (const Interpolation kind : kInterpolations) {
      for (const std::int64_t resize : {20, 29, 70}) {
        CAPTURE(to_string(format));
        CAPTURE(to_string(kind));
        CAPTURE(resize);
        const auto got = run(plain(resize, 18, 20, kind), frame);
        REQUIRE(got.ok());
        const auto whole = image::resize(frame, resize, resize * width / height, kind);
        REQUIRE(whole.ok());
        const auto top = static_cast<std::int64_t>(std::nearbyint(static_cast<double>(whole->height() - 18) / 2.0));
        const auto left = static_cast<std::int64_t>(std::nearbyint(static_cast<double>(whole->width() - 20) / 2.0));
        double most = 0;
        for (std::int64_t y = 0; y < 18; ++y) {
          for (std::int64_t x = 0; x < 20; ++x) {
            for (std::int64_t c = 0; c < 3; ++c) {
              const double want = (*whole)(y + top, x + left, whole->channels() == 1 ? 0 : c);
              most = std::max(most, std::abs(got->view()(0, y, x, c) - want));
            }
          }
        }
        CHECK(most == 0.0);
      }
      const auto stretched = run(plain(0, 23, 45, kind), frame);
      REQUIRE(stretched.ok());
      auto want = image::resize(frame, 23, 45, kind);
      if (want->channels() == 3) CHECK(largest_difference(*stretched, *want) == 0.0);
    }
  }
}

TEST_CASE("normalisation and channel order") {
  Image image(2, 2, 3);
  for (int i = 0; i < 12; ++i) image.data()[i] = static_cast<std::uint8_t>(20 * i);
  Preprocess settings{.resize = 0, .height = 2, .width = 2};
  const auto rgb = run(settings, image.view());
  settings.order = ChannelOrder::bgr;
  const auto bgr = run(settings, image.view());
  ImageView as_bgr = image.view();
  as_bgr.format = PixelFormat::bgr8;
  const auto bgr_of_bgr = run(settings, as_bgr);
  settings.order = ChannelOrder::rgb;
  const auto rgb_of_bgr = run(settings, as_bgr);
  for (std::int64_t p = 0; p < 4; ++p) {
    for (std::int64_t c = 0; c < 3; ++c) {
      const auto channel = static_cast<std::size_t>(c);
      const auto value = [&](std::int64_t k) {
        return (static_cast<float>(image.data()[3 * p + k]) - settings.mean[channel]) / settings.stddev[channel];
      };
      CHECK(rgb->data()[3 * p + c] == value(c));
      CHECK(bgr->data()[3 * p + c] == value(2 - c));
      CHECK(bgr_of_bgr->data()[3 * p + c] == value(c));  // memory is B G R and so is the network
      CHECK(rgb_of_bgr->data()[3 * p + c] == value(2 - c));
    }
  }
  Image gray(2, 2, 1);
  gray.data()[3] = 200;
  const auto replicated = run(settings, gray.view());
  for (std::size_t c = 0; c < 3; ++c) CHECK(replicated->data()[9 + c] == (200.0f - settings.mean[c]) / settings.stddev[c]);
}

TEST_CASE("frames at the limits fit, larger ones are refused, and nothing is written") {
  const Preprocess settings = plain(32, 24, 24, Interpolation::pillow_lanczos);
  const FrameLimits limits{300, 200};
  Buffer<std::byte> memory(static_cast<std::int64_t>(image::preprocess_scratch_bytes(settings, limits)));
  Tensor<float> out(1, 24, 24, 3);
  // Extreme shapes inside the limits: neither axis is scaled by more than limit / resize.
  for (const auto& pair : {std::pair{300, 200}, {1, 200}, {300, 1}, {1, 1}, {300, 32}, {33, 200}, {2, 3}}) {
    const auto height = pair.first;
    const auto width = pair.second;
    CAPTURE(height);
    CAPTURE(width);
    Arena arena(memory.span());
    CHECK(image::preprocess(settings, random_image(height, width, 3, 3).view(), out.view(), arena).ok());
  }
  std::fill_n(out.data(), out.view().count(), -5.0f);
  Arena arena(memory.span());
  const Status status = image::preprocess(settings, random_image(900, 900, 3, 3).view(), out.view(), arena);
  CHECK(status.code() == Errc::out_of_memory);
  CHECK(status.message().find("900 x 900") != std::string::npos);
  CHECK(out.data()[0] == -5.0f);
  CHECK(arena.used() == 0);
  CHECK(image::preprocess(settings, ImageView{}, out.view(), arena).code() == Errc::invalid_argument);
  Tensor<float> wrong(1, 24, 23, 3);
  CHECK(image::preprocess(settings, random_image(40, 40, 3, 3).view(), wrong.view(), arena).code() == Errc::shape_mismatch);
}

TEST_CASE("scratch of any smaller frame fits that of the limits") {
  for (const Interpolation kind : kInterpolations) {
    for (const std::int64_t resize : {0, 24, 40}) {
      const Preprocess settings = plain(resize, 24, 20, kind);
      const std::size_t most = image::preprocess_scratch_bytes(settings, {70, 90});
      for (std::int64_t h = 1; h <= 70; h += 3) {
        for (std::int64_t w = 1; w <= 90; w += 4) REQUIRE(image::preprocess_scratch_bytes(settings, {h, w}) <= most);
      }
    }
  }
}

TEST_CASE("settings that make no sense are refused") {
  const auto code = [](auto change) {
    Preprocess settings;
    change(settings);
    return settings.validate().code();
  };
  CHECK(Preprocess{}.validate().ok());
  CHECK(code([](Preprocess& p) { p.resize = 0; }) == Errc::ok);
  CHECK(code([](Preprocess& p) { p.resize = 223; }) == Errc::invalid_argument);
  CHECK(code([](Preprocess& p) { p.resize = -1; }) == Errc::invalid_argument);
  CHECK(code([](Preprocess& p) { p.height = 0; }) == Errc::invalid_argument);
  CHECK(code([](Preprocess& p) { p.width = 1 << 20; }) == Errc::invalid_argument);
  CHECK(code([](Preprocess& p) { p.stddev[1] = 0.0f; }) == Errc::invalid_argument);
  CHECK(code([](Preprocess& p) { p.stddev[2] = std::numeric_limits<float>::quiet_NaN(); }) == Errc::invalid_argument);
  CHECK(code([](Preprocess& p) { p.mean[0] = std::numeric_limits<float>::infinity(); }) == Errc::invalid_argument);
  CHECK(code([](Preprocess& p) { p.interpolation = static_cast<Interpolation>(77); }) == Errc::invalid_argument);
}

TEST_CASE("crop offsets round halves to even, as Python does") {
  CHECK(image::detail::centre_offset(256, 224) == 16);
  CHECK(image::detail::centre_offset(257, 224) == 16);  // 16.5
  CHECK(image::detail::centre_offset(259, 224) == 18);  // 17.5
  CHECK(image::detail::centre_offset(225, 224) == 0);   // 0.5
  CHECK(image::detail::centre_offset(227, 224) == 2);   // 1.5
  CHECK(image::detail::centre_offset(224, 224) == 0);
}

TEST_CASE("placement: there and back, and the box that is seen") {
  const Preprocess settings;
  const Placement square = image::placement(settings, 900, 900);
  CHECK(std::abs(square.top - 56.25) <= 1e-9);  // 16 * 900 / 256
  CHECK(std::abs(square.bottom - 843.75) <= 1e-9);
  CHECK(square.sees(56, 56));
  CHECK_FALSE(square.sees(55, 450));
  CHECK_FALSE(square.sees(450, 844));
  CHECK(std::abs(square.original_row(0) - (16.5 * 900.0 / 256.0 - 0.5)) <= 1e-9);
  for (const auto& pair : {std::pair{900, 900}, {480, 640}, {1, 7}, {3000, 17}}) {
    const auto height = pair.first;
    const auto width = pair.second;
    for (const std::int64_t resize : {256, 0}) {
      Preprocess changed;
      changed.resize = resize;
      const Placement p = image::placement(changed, height, width);
      for (double v : {-3.0, 0.0, 100.25, 223.0}) {
        CHECK(std::abs(p.output_row(p.original_row(v)) - v) <= 1e-9);
        CHECK(std::abs(p.output_column(p.original_column(v)) - v) <= 1e-9);
      }
      CHECK(p.top >= 0.0);
      CHECK(p.left >= 0.0);
      CHECK(p.bottom <= height + 1e-9);
      CHECK(p.right <= width + 1e-9);
    }
  }
}

TEST_CASE("a bright spot goes through preprocessing and comes back to its place") {
  for (const auto& pair : {std::pair{300, 300}, {200, 320}, {333, 222}}) {
    const auto height = pair.first;
    const auto width = pair.second;
    const Preprocess settings = plain(64, 48, 56, Interpolation::pillow_bilinear);
    const std::int64_t row = height / 2 + 21, column = width / 2 - 33;
    Image image(height, width, 3);
    for (std::int64_t y = -4; y <= 4; ++y) {
      for (std::int64_t x = -4; x <= 4; ++x) image(row + y, column + x, 0) = 255;
    }
    const auto seen = run(settings, image.view());
    REQUIRE(seen.ok());
    Map<float> map(48, 56);
    for (std::int64_t i = 0; i < 48 * 56; ++i) map.data()[i] = seen->data()[3 * i];
    const auto back = image::map_to_original(map.view(), settings, height, width);
    REQUIRE(back.ok());
    double weight = 0, y = 0, x = 0;
    for (std::int64_t r = 0; r < height; ++r) {
      for (std::int64_t c = 0; c < width; ++c) {
        weight += (*back)(r, c);
        y += (*back)(r, c) * static_cast<double>(r);
        x += (*back)(r, c) * static_cast<double>(c);
      }
    }
    CAPTURE(height);
    // Both steps keep the centre of mass but for 8-bit rounding: well inside one pixel of the frame.
    CHECK(std::abs(y / weight - static_cast<double>(row)) <= 0.5);
    CHECK(std::abs(x / weight - static_cast<double>(column)) <= 0.5);
  }
}

TEST_CASE("map_to_original: minimum outside, any map resolution, bad sizes") {
  const Preprocess settings;
  Map<float> map(28, 28);
  for (std::int64_t i = 0; i < 28 * 28; ++i) map.data()[i] = 2.0f + static_cast<float>(i % 28);
  const auto out = image::map_to_original(map.view(), settings, 900, 900);
  REQUIRE(out.ok());
  const Placement p = image::placement(settings, 900, 900);
  double most = 0;
  for (std::int64_t r = 0; r < 900; r += 7) {
    for (std::int64_t c = 0; c < 900; ++c) {
      // 28 columns over the seen width: the value is linear in the column between the outermost centres.
      const double at = ((static_cast<double>(c) + 0.5) - p.left) / (p.right - p.left) * 28.0 - 0.5;
      const double want = p.sees(r, c) ? 2.0 + std::clamp(at, 0.0, 27.0) : 2.0;
      const double d = std::abs((*out)(r, c) - want);
      most = d <= most ? most : d;
    }
  }
  CHECK(most <= 1e-5);
  CHECK(image::map_to_original({}, settings, 900, 900).code() == Errc::shape_mismatch);
  CHECK(image::map_to_original(map.view(), settings, 0, 900).code() == Errc::invalid_argument);
  CHECK(image::map_to_original(map.view(), settings, std::int64_t{1} << 40, 900).code() == Errc::invalid_argument);
}

TEST_CASE("masks go through the same geometry by Pillow's nearest and stay binary") {
  const Image photo = read_image("photo_61x47.png");
  Map<std::uint8_t> mask(61, 47);
  for (std::int64_t r = 0; r < 61; ++r) {
    for (std::int64_t c = 0; c < 47; ++c) mask(r, c) = static_cast<std::uint8_t>(photo(r, c, 0) > 127 ? 1 + (r + c) % 255 : 0);
  }
  const Preprocess settings = plain(33, 24, 30, Interpolation::pillow_lanczos);
  const auto out = image::preprocess_mask(mask.view(), settings);
  REQUIRE(out.ok());
  const Image want = read_image("photo_61x47_nearest_33_24x30.png");
  for (std::int64_t r = 0; r < 24; ++r) {
    for (std::int64_t c = 0; c < 30; ++c) REQUIRE((*out)(r, c) == (want(r, c, 0) > 127 ? 1 : 0));
  }
  Map<std::uint8_t> wrong(24, 24);
  CHECK(image::preprocess_mask(mask.view(), settings, wrong.view()).code() == Errc::shape_mismatch);
  CHECK(image::preprocess_mask({}, settings).code() == Errc::invalid_argument);
}
