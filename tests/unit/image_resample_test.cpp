// Resizers against Pillow's outputs to the bit, OpenCV's rule against its definition in double, and what must hold for every filter.
#include <cmath>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/image/resample.hpp>

#include "support/image_files.hpp"

using namespace norma;
using test::largest_difference;
using test::random_image;
using test::read_image;

namespace {

const std::pair<const char*, Interpolation> kPillow[] = {{"nearest", Interpolation::pillow_nearest},
                                                         {"bilinear", Interpolation::pillow_bilinear},
                                                         {"bicubic", Interpolation::pillow_bicubic},
                                                         {"lanczos", Interpolation::pillow_lanczos}};

// OpenCV's INTER_LINEAR without its fixed point: half-pixel centres, two taps, ends held.
double opencv_bilinear_reference(const Image& in, std::int64_t height, std::int64_t width, std::int64_t y, std::int64_t x, std::int64_t c) {
  const auto place = [](std::int64_t i, std::int64_t from, std::int64_t to) {
    const double p = (static_cast<double>(i) + 0.5) * static_cast<double>(from) / static_cast<double>(to) - 0.5;
    return std::min(std::max(p, 0.0), static_cast<double>(from - 1));
  };
  const double py = place(y, in.height(), height), px = place(x, in.width(), width);
  const auto y0 = static_cast<std::int64_t>(py), x0 = static_cast<std::int64_t>(px);
  const std::int64_t y1 = std::min(y0 + 1, in.height() - 1), x1 = std::min(x0 + 1, in.width() - 1);
  const double fy = py - static_cast<double>(y0), fx = px - static_cast<double>(x0);
  return (1 - fy) * ((1 - fx) * in(y0, x0, c) + fx * in(y0, x1, c)) + fy * ((1 - fx) * in(y1, x0, c) + fx * in(y1, x1, c));
}

}  // namespace

TEST_CASE("resize gives Pillow's pixels to the bit") {
  const Image rgb = read_image("rgb.png");
  const Image gray = read_image("gray.png");
  const std::pair<int, int> sizes[] = {{16, 16}, {11, 50}, {40, 64}, {23, 37}, {1, 1}, {5, 3}, {23, 20}, {9, 37}};
  for (const auto& pair : kPillow) {
    const auto name = pair.first;
    const auto kind = pair.second;
    for (const auto& [rows, columns] : sizes) {
      const int height = rows, width = columns;
      const std::string file = std::string("rgb_") + name + "_" + std::to_string(height) + "x" + std::to_string(width) + ".png";
      CAPTURE(file);
      const auto got = image::resize(rgb, height, width, kind);
      REQUIRE(got.ok());
      CHECK(largest_difference(*got, read_image(file)) == 0);
    }
    const std::string file = std::string("gray_") + name + "_10x14.png";
    CAPTURE(file);
    const auto got = image::resize(gray, 10, 14, kind);
    REQUIRE(got.ok());
    CHECK(largest_difference(*got, read_image(file)) == 0);
  }
}

TEST_CASE("the same size is the identity, and a constant image stays constant, for every filter") {
  const Image image = random_image(13, 29, 3, 5);
  Image constant(13, 29, 3);
  std::fill_n(constant.data(), constant.size_bytes(), std::uint8_t{173});
  for (const Interpolation kind : kInterpolations) {
    CAPTURE(to_string(kind));
    CHECK(largest_difference(*image::resize(image, 13, 29, kind), image) == 0);
    for (const auto& pair : {std::pair{1, 1}, {2, 7}, {13, 5}, {31, 64}, {100, 3}}) {
      const auto height = pair.first;
      const auto width = pair.second;
      CAPTURE(height);
      const auto out = image::resize(constant, height, width, kind);
      REQUIRE(out.ok());
      for (std::int64_t i = 0; i < out->size_bytes(); ++i) REQUIRE(out->data()[i] == 173);
    }
  }
}

TEST_CASE("the worked example: the row 0, 0, 255, 255 halved") {
  Image row(1, 4, 1);
  row(0, 2, 0) = row(0, 3, 0) = 255;
  const auto pillow = image::resize(row, 1, 2, Interpolation::pillow_bilinear);
  CHECK((*pillow)(0, 0, 0) == 36);  // 255 / 7
  CHECK((*pillow)(0, 1, 0) == 219);
  const auto opencv = image::resize(row, 1, 2, Interpolation::opencv_bilinear);
  CHECK((*opencv)(0, 0, 0) == 0);
  CHECK((*opencv)(0, 1, 0) == 255);
}

TEST_CASE("the two kinds of nearest: 5 to 2 picks {1, 3} and {0, 2}") {
  Image row(1, 5, 1);
  for (int x = 0; x < 5; ++x) row(0, x, 0) = static_cast<std::uint8_t>(x);
  const auto pillow = image::resize(row, 1, 2, Interpolation::pillow_nearest);
  CHECK((*pillow)(0, 0, 0) == 1);
  CHECK((*pillow)(0, 1, 0) == 3);
  const auto opencv = image::resize(row, 1, 2, Interpolation::opencv_nearest);
  CHECK((*opencv)(0, 0, 0) == 0);
  CHECK((*opencv)(0, 1, 0) == 2);

  Map<std::int32_t> labels(2, 5), out(1, 2);
  for (int x = 0; x < 5; ++x) labels(1, x) = labels(0, x) = -1000 * x;
  CHECK(image::resize_nearest<std::int32_t>(labels.view(), out.view()).ok());
  CHECK(out(0, 0) == -1000);
  CHECK(out(0, 1) == -3000);
  CHECK(image::resize_nearest<std::int32_t>(labels.view(), out.view(), Interpolation::opencv_nearest).ok());
  CHECK(out(0, 1) == -2000);
  CHECK(image::resize_nearest<std::int32_t>(labels.view(), out.view(), Interpolation::pillow_lanczos).code() == Errc::invalid_argument);
  CHECK(image::resize_nearest<std::int32_t>({}, out.view()).code() == Errc::shape_mismatch);
}

TEST_CASE("OpenCV's bilinear within 1 of its definition") {
  for (const std::int64_t channels : {1, 3}) {
    const Image in = random_image(31, 46, channels, 9);
    for (const auto& pair : {std::pair<std::int64_t, std::int64_t>{7, 9}, {31, 20}, {64, 91}, {1, 1}, {33, 47}}) {
      const auto height = pair.first;
      const auto width = pair.second;
      const auto out = image::resize(in, height, width, Interpolation::opencv_bilinear);
      REQUIRE(out.ok());
      double most = 0;
      for (std::int64_t y = 0; y < height; ++y) {
        for (std::int64_t x = 0; x < width; ++x) {
          for (std::int64_t c = 0; c < channels; ++c) {
            most = std::max(most, std::abs((*out)(y, x, c) - opencv_bilinear_reference(in, height, width, y, x, c)));
          }
        }
      }
      CAPTURE(height);
      // Half a step of rounding, 2^-12 of weight error twice on up to 255, and the bits cut between the passes.
      CHECK(most <= 1.0);
    }
  }
}

TEST_CASE("every format, pitch and region resizes like its 8-bit copy") {
  const std::int64_t height = 27, width = 33;
  for (const PixelFormat format : {PixelFormat::gray8, PixelFormat::gray10, PixelFormat::gray12, PixelFormat::gray16, PixelFormat::rgb8,
                                   PixelFormat::bgr8, PixelFormat::rgba8, PixelFormat::bgra8}) {
    CAPTURE(to_string(format));
    const std::int64_t pitch = width * bytes_per_pixel(format) + 5;
    // Exactly as long as the last row needs: reading past it is an error that a sanitizer sees.
    std::vector<std::uint8_t> memory(static_cast<std::size_t>((height - 1) * pitch + width * bytes_per_pixel(format)));
    Random random(3, static_cast<std::uint64_t>(format));
    for (auto& byte : memory) byte = static_cast<std::uint8_t>(random.bits() >> 24);
    const ImageView frame = image::view(memory.data(), height, width, pitch, format);
    const ImageView part = frame.roi(2, 3, 25, 30);
    for (const ImageView& v : {frame, part}) {
      const auto plain = image::to_image(v);
      REQUIRE(plain.ok());
      for (const Interpolation kind : kInterpolations) {
        CAPTURE(to_string(kind));
        for (const auto& pair : {std::pair{10, 12}, {40, 50}, {1, 1}, {25, 31}}) {
          const auto h = pair.first;
          const auto w = pair.second;
          CHECK(largest_difference(*image::resize(v, h, w, kind), *image::resize(*plain, h, w, kind)) == 0);
        }
      }
    }
  }
}

TEST_CASE("a gray image and its three equal channels resize alike") {
  const Image gray = random_image(40, 35, 1, 21);
  Image rgb(40, 35, 3);
  for (std::int64_t i = 0; i < rgb.size_bytes(); ++i) rgb.data()[i] = gray.data()[i / 3];
  for (const Interpolation kind : kInterpolations) {
    for (const auto& pair : {std::pair{17, 19}, {3, 35}, {61, 80}}) {
      const auto h = pair.first;
      const auto w = pair.second;
      const auto a = image::resize(gray, h, w, kind);
      const auto b = image::resize(rgb, h, w, kind);
      int most = 0;
      for (std::int64_t i = 0; i < b->size_bytes(); ++i) most = std::max(most, std::abs(int{b->data()[i]} - int{a->data()[i / 3]}));
      CAPTURE(to_string(kind));
      CHECK(most == 0);
    }
  }
}

TEST_CASE("the vector loops give what the plain loops give") {
  const Image in = random_image(60, 203, 3, 77);
  namespace detail = image::detail;
  for (const Interpolation kind : {Interpolation::pillow_bilinear, Interpolation::pillow_bicubic, Interpolation::pillow_lanczos}) {
    for (const std::int64_t size : {1, 5, 31, 50, 200, 300}) {
      CAPTURE(to_string(kind));
      CAPTURE(size);
      const auto check = [&](auto channels, auto step) {
        constexpr int kChannels = decltype(channels)::value, kStep = decltype(step)::value;
        const std::int64_t width = in.width() * 3 / kStep;
        const std::int64_t taps = detail::max_taps(kind, width, size);
        Buffer<std::byte> memory(
            static_cast<std::int64_t>(detail::axis_bytes(size, taps) + detail::row_scratch_bytes(size, taps, taps, 1)));
        Arena arena(memory.span());
        detail::AxisTaps axis;
        detail::RowScratch scratch;
        REQUIRE(detail::take_axis(arena, size, taps, axis));
        REQUIRE(detail::take_row_scratch(arena, size, taps, taps, 1, scratch));
        detail::fill_axis(kind, width, size, 0, axis);
        detail::pack_weights(axis, scratch.packed);
        std::vector<std::uint8_t> plain(static_cast<std::size_t>(size * 3 + 1)), other(plain.size());
        for (std::int64_t i = 0; i < size; ++i) detail::pillow_output<kChannels, kStep>(in.row(7), axis, i, plain.data());
        detail::PillowPasses::horizontal<kChannels, kStep>(in.row(7), in.row(7) + width * kStep, axis, scratch.packed, other.data());
        for (std::int64_t i = 0; i < size * kChannels; ++i)
          REQUIRE(plain[static_cast<std::size_t>(i)] == other[static_cast<std::size_t>(i)]);

        std::vector<const std::uint8_t*> rows;
        for (std::int64_t y = 0; y < axis.count[size / 2] && y < in.height(); ++y) rows.push_back(in.row(y));
        std::vector<std::uint8_t> a(609), b(609);
        const auto count = static_cast<std::int64_t>(rows.size());
        detail::pillow_vertical_generic(rows.data(), axis.weights(size / 2), count, 609, a.data());
        detail::PillowPasses::vertical(rows.data(), axis.weights(size / 2), count, 609, b.data());
        REQUIRE(a == b);
      };
      check(std::integral_constant<int, 1>{}, std::integral_constant<int, 1>{});
      check(std::integral_constant<int, 3>{}, std::integral_constant<int, 3>{});
      check(std::integral_constant<int, 3>{}, std::integral_constant<int, 4>{});
    }
  }
}

TEST_CASE("extreme sizes") {
  const Image one = random_image(1, 1, 3, 1);
  const Image line = random_image(1, 5000, 1, 2);
  for (const Interpolation kind : kInterpolations) {
    CAPTURE(to_string(kind));
    const auto large = image::resize(one, 50, 70, kind);
    REQUIRE(large.ok());
    CHECK((*large)(49, 69, 2) == one(0, 0, 2));
    CHECK(image::resize(line, 1, 1, kind).ok());
    CHECK(image::resize(line, 7, 3, kind).ok());
  }
  CHECK(image::resize(one, 0, 5, Interpolation::pillow_bilinear).code() == Errc::invalid_argument);
  CHECK(image::resize(one, 5, kMaxImageSide + 1, Interpolation::pillow_bilinear).code() == Errc::invalid_argument);
  CHECK(image::resize(ImageView{}, 5, 5, Interpolation::pillow_bilinear).code() == Errc::invalid_argument);
}

TEST_CASE("names of interpolations") {
  for (const Interpolation kind : kInterpolations) {
    const auto back = image::interpolation_from_string(to_string(kind));
    REQUIRE(back.ok());
    CHECK(*back == kind);
  }
  const auto wrong = image::interpolation_from_string("bilinear");
  CHECK(wrong.code() == Errc::invalid_argument);
  CHECK(wrong.message().find("pillow_bilinear") != std::string::npos);
  CHECK(wrong.message().find("\"bilinear\"") != std::string::npos);
}

TEST_CASE("maps: bilinear with and without aligned corners") {
  Map<float> in(2, 2), out(4, 4);
  in(0, 1) = 1.0f, in(1, 0) = 2.0f, in(1, 1) = 3.0f;  // v = x + 2 y
  REQUIRE(image::resize_bilinear(in.view(), out.view(), AlignCorners::no).ok());
  const double half[] = {0.0, 0.25, 0.75, 1.0};  // (i + 0.5) / 2 - 0.5, held at the ends
  for (int y = 0; y < 4; ++y) {
    for (int x = 0; x < 4; ++x) CHECK(std::abs(out(y, x) - (half[x] + 2 * half[y])) <= 1e-6);
  }
  REQUIRE(image::resize_bilinear(in.view(), out.view(), AlignCorners::yes).ok());
  for (int y = 0; y < 4; ++y) {
    for (int x = 0; x < 4; ++x) CHECK(std::abs(out(y, x) - (x / 3.0 + 2 * y / 3.0)) <= 1e-6);
  }
  Map<float> one(1, 1);
  REQUIRE(image::resize_bilinear(in.view(), one.view(), AlignCorners::yes).ok());
  CHECK(one(0, 0) == 0.0f);
  REQUIRE(image::resize_bilinear(in.view(), one.view(), AlignCorners::no).ok());
  CHECK(std::abs(one(0, 0) - 1.5f) <= 1e-6f);
  one(0, 0) = 7.0f;
  for (const AlignCorners corners : {AlignCorners::no, AlignCorners::yes}) {
    REQUIRE(image::resize_bilinear(one.view(), out.view(), corners).ok());
    CHECK(out(3, 2) == 7.0f);
  }
  CHECK(image::resize_bilinear({}, out.view(), AlignCorners::no).code() == Errc::shape_mismatch);
}
