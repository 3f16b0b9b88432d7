// Colour scales and the pictures made with them: what must hold, whatever they look like.
#include <cmath>
#include <limits>

#include <doctest/doctest.h>

#include <norma/image/overlay.hpp>

#include "support/image_files.hpp"

using namespace norma;
using test::largest_difference;
using test::random_image;

namespace {

// CIE lightness of an sRGB colour.
double lightness(Rgb colour) {
  const auto linear = [](std::uint8_t v) {
    const double x = v / 255.0;
    return x <= 0.04045 ? x / 12.92 : std::pow((x + 0.055) / 1.055, 2.4);
  };
  const double y = 0.2126 * linear(colour.r) + 0.7152 * linear(colour.g) + 0.0722 * linear(colour.b);
  return y > 0.008856 ? 116.0 * std::cbrt(y) - 16.0 : 903.3 * y;
}

Map<float> spot(std::int64_t height, std::int64_t width, std::int64_t row, std::int64_t column) {
  Map<float> map(height, width);
  for (std::int64_t r = 0; r < height; ++r) {
    for (std::int64_t c = 0; c < width; ++c) {
      map(r, c) = std::exp(-static_cast<float>((r - row) * (r - row) + (c - column) * (c - column)) / 50.0f);
    }
  }
  return map;
}

}  // namespace

TEST_CASE("every scale grows lighter from end to end") {
  for (const ColourMap map : {ColourMap::ember, ColourMap::meadow, ColourMap::gray}) {
    CAPTURE(to_string(map));
    const auto table = image::colour_table(map);
    for (std::size_t i = 1; i < table.size(); ++i) {
      CAPTURE(i);
      CHECK(lightness(table[i]) - lightness(table[i - 1]) >= -0.4);  // 8-bit steps
    }
    CHECK(lightness(table.back()) - lightness(table.front()) >= 60.0);
  }
  CHECK(image::from_oklch(1.0, 0.0, 0.0) == Rgb{255, 255, 255});
  CHECK(image::from_oklch(0.0, 0.0, 0.0) == Rgb{0, 0, 0});
  const Rgb red = image::from_oklch(0.62796, 0.25768, 29.234);  // sRGB red in OKLCh
  CHECK(red.r >= 254);
  CHECK(red.g <= 2);
  CHECK(red.b <= 2);
}

TEST_CASE("values outside the scale, an empty scale and NaN have a colour") {
  const auto table = image::colour_table(ColourMap::ember);
  CHECK(image::colour_of(table, -5.0f, 0.0f, 1.0f) == table.front());
  CHECK(image::colour_of(table, 5.0f, 0.0f, 1.0f) == table.back());
  CHECK(image::colour_of(table, 0.5f, 0.0f, 1.0f) == table[128]);
  CHECK(image::colour_of(table, std::numeric_limits<float>::quiet_NaN(), 0.0f, 1.0f) == table.front());
  CHECK(image::colour_of(table, std::numeric_limits<float>::infinity(), 0.0f, 1.0f) == table.back());
  CHECK(image::colour_of(table, 1.0f, 2.0f, 2.0f) == table.front());
  CHECK(image::colour_of(table, 3.0f, 2.0f, 2.0f) == table.back());
}

TEST_CASE("the image stays where the map is low, and changes at the spot") {
  const Image image = random_image(120, 90, 3, 1);
  const Map<float> map = spot(120, 90, 40, 60);
  const auto out = image::overlay(image.view(), map.view(), {.low = 0.2f, .high = 1.0f, .threshold = 0.5f});
  REQUIRE(out.ok());
  int changed_far = 0, changed_near = 0;
  for (std::int64_t r = 0; r < 120; ++r) {
    for (std::int64_t c = 0; c < 90; ++c) {
      const bool changed = (*out)(r, c, 0) != image(r, c, 0) || (*out)(r, c, 1) != image(r, c, 1);
      if (std::hypot(static_cast<double>(r - 40), static_cast<double>(c - 60)) > 15)
        changed_far += changed;
      else if (map(r, c) > 0.7f)
        changed_near += changed;
    }
  }
  CHECK(changed_far == 0);
  CHECK(changed_near > 40);
}

TEST_CASE("a map below the threshold draws neither contour nor ring nor hot colours") {
  Image image(50, 60, 1);
  std::fill_n(image.data(), image.size_bytes(), std::uint8_t{100});
  Map<float> map = spot(50, 60, 20, 20);
  const auto out = image::overlay(image.view(), map.view(), {.threshold = 3.0f});
  REQUIRE(out.ok());
  for (std::int64_t i = 0; i < out->size_bytes(); ++i) REQUIRE(out->data()[i] == 100);
  const auto hot = image::overlay(image.view(), map.view(), {.threshold = 0.5f});
  CHECK(largest_difference(*hot, *out) > 100);  // the white line
}

TEST_CASE("maps that are constant, not finite or of another size") {
  const Image image = random_image(30, 40, 3, 2);
  Map<float> map(30, 40);
  CHECK(largest_difference(*image::overlay(image.view(), map.view(), {.mark_peak = false}), image) == 0);
  for (std::int64_t i = 0; i < 1200; ++i) map.data()[i] = std::numeric_limits<float>::quiet_NaN();
  CHECK(largest_difference(*image::overlay(image.view(), map.view(), {.threshold = 1.0f}), image) == 0);
  CHECK(image::heat_map(map.view()).ok());
  map(3, 3) = std::numeric_limits<float>::infinity();
  map(4, 4) = 1.0f;
  CHECK(image::overlay(image.view(), map.view()).ok());
  Map<float> other(30, 41);
  CHECK(image::overlay(image.view(), other.view()).code() == Errc::shape_mismatch);
  CHECK(image::overlay(ImageView{}, other.view()).code() == Errc::invalid_argument);
  CHECK(image::heat_map({}).code() == Errc::shape_mismatch);
  Map<float> one(1, 1);
  CHECK(image::panel(random_image(1, 1, 1, 1).view(), one.view(), {.threshold = -1.0f}).ok());
}

TEST_CASE("side by side") {
  const Image a = random_image(10, 12, 1, 1), b = random_image(8, 5, 3, 2);
  const auto out = image::side_by_side({a.view(), b.view()}, 3);
  REQUIRE(out.ok());
  CHECK(out->height() == 10);
  CHECK(out->width() == 20);
  CHECK((*out)(9, 11, 2) == a(9, 11, 0));
  CHECK((*out)(0, 13, 0) == 255);
  CHECK((*out)(7, 19, 1) == b(7, 4, 1));
  CHECK((*out)(9, 19, 1) == 255);
  CHECK(image::side_by_side({}).code() == Errc::invalid_argument);
  CHECK(image::side_by_side({a.view(), ImageView{}}).code() == Errc::invalid_argument);
}
