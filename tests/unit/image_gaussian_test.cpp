// Gaussian smoothing against a dense two-dimensional sum, with maps smaller than the radius and both borders.
#include <cmath>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/core/tensor.hpp>
#include <norma/image/gaussian.hpp>

using namespace norma;
using image::Border;

namespace {

// The continued sample by walking: turn round at each end.
std::int64_t walk(std::int64_t i, std::int64_t n, Border border) {
  if (n == 1) return 0;
  while (i < 0 || i >= n) {
    if (i < 0) i = border == Border::reflect ? -i - 1 : -i;
    if (i >= n) i = border == Border::reflect ? 2 * n - 1 - i : 2 * n - 2 - i;
  }
  return i;
}

Map<double> dense(MapView<const double> in, double sigma, Border border) {
  const auto radius = static_cast<std::int64_t>(4.0 * sigma + 0.5);
  Map<double> out(in.rows, in.cols);
  for (std::int64_t r = 0; r < in.rows; ++r) {
    for (std::int64_t c = 0; c < in.cols; ++c) {
      double sum = 0, weights = 0;
      for (std::int64_t y = -radius; y <= radius; ++y) {
        for (std::int64_t x = -radius; x <= radius; ++x) {
          const double w = sigma > 0 ? std::exp(-0.5 * static_cast<double>(y * y + x * x) / (sigma * sigma)) : 1.0;
          sum += w * in(walk(r + y, in.rows, border), walk(c + x, in.cols, border));
          weights += w;
        }
      }
      out(r, c) = sum / weights;
    }
  }
  return out;
}

Map<double> random_map(std::int64_t height, std::int64_t width, std::uint64_t seed) {
  Map<double> map(height, width);
  Random random(seed);
  for (std::int64_t i = 0; i < height * width; ++i) map.data()[i] = random.uniform();
  return map;
}

template <class T>
Status smooth(MapView<const std::type_identity_t<T>> in, MapView<T> out, double sigma, Border border) {
  Buffer<std::byte> memory(static_cast<std::int64_t>(image::gaussian_scratch_bytes<T>(in.rows, in.cols, sigma)));
  Arena arena(memory.span());
  const Status status = image::gaussian_filter(in, out, sigma, arena, border);
  CHECK(arena.used() == 0);
  return status;
}

}  // namespace

TEST_CASE("gaussian_filter is the dense sum, in double and float") {
  const std::pair<std::int64_t, std::int64_t> sizes[] = {{1, 1}, {1, 9}, {7, 1}, {2, 3}, {5, 33}, {20, 31}, {40, 67}};
  for (const Border border : {Border::reflect, Border::mirror}) {
    for (const auto& pair : sizes) {
      const auto height = pair.first;
      const auto width = pair.second;
      for (const double sigma : {0.0, 0.1, 0.8, 2.0, 4.0}) {
        const Map<double> in = random_map(height, width, 31);
        const Map<double> want = dense(in.view(), sigma, border);
        Map<double> out(height, width);
        REQUIRE(smooth(in.view(), out.view(), sigma, border).ok());
        Map<float> in_float(height, width), out_float(height, width);
        for (std::int64_t i = 0; i < height * width; ++i) in_float.data()[i] = static_cast<float>(in.data()[i]);
        REQUIRE(smooth(in_float.view(), out_float.view(), sigma, border).ok());
        double most = 0, most_float = 0;
        for (std::int64_t i = 0; i < height * width; ++i) {
          most = std::max(most, std::abs(out.data()[i] - want.data()[i]));
          most_float = std::max(most_float, std::abs(out_float.data()[i] - want.data()[i]));
        }
        CAPTURE(height);
        CAPTURE(width);
        CAPTURE(sigma);
        CHECK(most <= 1e-12);
        // Two passes of up to 17 additions of positive terms that sum to at most 1: 2 * (17 + 3) * 2^-24 < 2.5e-6; usually a tenth of it.
        CHECK(most_float <= 1e-6);
      }
    }
  }
}

TEST_CASE("gaussian_filter may work in place, on rows with gaps, and keeps a constant map") {
  const Map<double> in = random_map(30, 40, 3);
  Map<double> apart(30, 40), within = in;
  REQUIRE(smooth(in.view(), apart.view(), 4.0, Border::reflect).ok());
  REQUIRE(smooth(MapView<const double>(within.view()), within.view(), 4.0, Border::reflect).ok());
  for (std::int64_t i = 0; i < 1200; ++i) REQUIRE(apart.data()[i] == within.data()[i]);

  Map<double> wide(30, 50);
  MapView<double> part(wide.data() + 5, 30, 40, 50);
  for (std::int64_t r = 0; r < 30; ++r) {
    for (std::int64_t c = 0; c < 40; ++c) part(r, c) = in(r, c);
  }
  REQUIRE(smooth(MapView<const double>(part), part, 4.0, Border::reflect).ok());
  for (std::int64_t r = 0; r < 30; ++r) {
    for (std::int64_t c = 0; c < 40; ++c) REQUIRE(part(r, c) == apart(r, c));
    REQUIRE(wide(r, 4) == 0.0);
    REQUIRE(wide(r, 45) == 0.0);
  }

  Map<float> constant(21, 37), out(21, 37);
  for (std::int64_t i = 0; i < 21 * 37; ++i) constant.data()[i] = 3.25f;
  REQUIRE(smooth(constant.view(), out.view(), 4.0, Border::mirror).ok());
  for (std::int64_t i = 0; i < 21 * 37; ++i) REQUIRE(std::abs(out.data()[i] - 3.25f) <= 4e-6f);
}

TEST_CASE("gaussian_filter refuses what it cannot do") {
  Map<float> map(8, 8), other(8, 9);
  std::byte few[64];
  Arena arena(std::span<std::byte>(few, 0));
  CHECK(smooth(map.view(), other.view(), 4.0, Border::reflect).code() == Errc::shape_mismatch);
  CHECK(image::gaussian_filter(map.view(), map.view(), 4.0, arena).code() == Errc::out_of_memory);
  CHECK(image::gaussian_filter(map.view(), map.view(), -1.0, arena).code() == Errc::invalid_argument);
  CHECK(image::gaussian_filter(map.view(), map.view(), std::numeric_limits<double>::quiet_NaN(), arena).code() == Errc::invalid_argument);
  CHECK(image::gaussian_filter(map.view(), map.view(), std::numeric_limits<double>::infinity(), arena).code() == Errc::invalid_argument);
  CHECK(image::gaussian_filter(MapView<const float>{}, MapView<float>{}, 4.0, arena).ok());
}

TEST_CASE("radius") {
  static_assert(image::gaussian_radius(4.0) == 16);
  static_assert(image::gaussian_radius(1.0) == 4);
  static_assert(image::gaussian_radius(2.5) == 10);
  static_assert(image::gaussian_radius(0.0) == 0);
  CHECK(image::gaussian_radius(0.6) == 2);  // int(2.9)
}
