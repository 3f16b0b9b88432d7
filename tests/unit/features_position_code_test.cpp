// features/position_code.hpp: the values that CFlow-AD's condition has.
#include <cmath>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>
#include <norma/features/position_code.hpp>

namespace norma::test {
namespace {

constexpr std::int64_t kDims = features::kPositionCodeChannels;

std::vector<float> codes(std::int64_t height, std::int64_t width, std::int64_t channels = kDims) {
  std::vector<float> out(static_cast<std::size_t>(features::position_code_count(height, width, channels)), -7.0f);
  features::position_code(height, width, out, channels);
  return out;
}
float at(const std::vector<float>& all, std::int64_t width, std::int64_t row, std::int64_t column, std::int64_t i, std::int64_t channels = kDims) {
  return all[static_cast<std::size_t>((row * width + column) * channels + i)];
}

static_assert(features::position_code_count(32, 16) == 32 * 16 * 128);

TEST_CASE("position_code: the first position is 0, 1, 0, 1, ...") {
  const auto code = codes(3, 2);
  for (std::int64_t i = 0; i < kDims; ++i) CHECK(at(code, 2, 0, 0, i) == (i % 2 == 0 ? 0.0f : 1.0f));
}

TEST_CASE("position_code: columns in the first half, rows in the second, in whole numbers of the grid") {
  const auto code = codes(5, 7);
  // Computed by hand with 12 digits: frequency k of 64 is 10000^(-2k / 64); k = 1: 0.749894209332.
  const double angle = 0.749894209332;
  for (std::int64_t row = 0; row < 5; ++row) {
    for (std::int64_t column = 0; column < 7; ++column) {
      const double x = static_cast<double>(column), y = static_cast<double>(row);
      const double want[] = {std::sin(x), std::cos(x), std::sin(x * angle), std::cos(x * angle)};
      const double want_rows[] = {std::sin(y), std::cos(y), std::sin(y * angle), std::cos(y * angle)};
      for (std::int64_t i = 0; i < 4; ++i) {  // the angle's 12 digits times 7, and one rounding to float
        CHECK(std::abs(static_cast<double>(at(code, 7, row, column, i)) - want[i]) <= 6.1e-8);
        CHECK(std::abs(static_cast<double>(at(code, 7, row, column, 64 + i)) - want_rows[i]) <= 6.1e-8);
      }
    }
  }
  // The slowest: 10000^(-62 / 64).
  CHECK(std::abs(static_cast<double>(at(code, 7, 0, 6, 62)) - std::sin(6.0 * 1.33352143216e-4)) <= 1e-9);
  CHECK(std::abs(static_cast<double>(at(code, 7, 4, 6, 126)) - std::sin(4.0 * 1.33352143216e-4)) <= 1e-9);
}

TEST_CASE("position_code: a transposed grid has its halves swapped, exactly") {
  const auto code = codes(6, 9), transposed = codes(9, 6);
  for (std::int64_t row = 0; row < 6; ++row) {
    for (std::int64_t column = 0; column < 9; ++column) {
      for (std::int64_t i = 0; i < kDims; ++i) CHECK(at(code, 9, row, column, i) == at(transposed, 6, column, row, (i + 64) % kDims));
    }
  }
}

TEST_CASE("position_code: every position of a large grid has its own code; other numbers of channels") {
  const auto code = codes(64, 64, 16);
  double closest = 1e9;
  for (std::int64_t a = 0; a < 64 * 64; a += 17) {
    for (std::int64_t b = 0; b < 64 * 64; ++b) {
      if (a == b) continue;
      double distance = 0.0;
      for (std::int64_t i = 0; i < 16; ++i) {
        const double d =
            static_cast<double>(code[static_cast<std::size_t>(a * 16 + i)]) - static_cast<double>(code[static_cast<std::size_t>(b * 16 + i)]);
        distance += d * d;
      }
      closest = std::min(closest, distance);
    }
  }
  CHECK(closest > 0.01);  // neighbours: (2 sin(1/2))^2 + (2 sin(1/20))^2 + ...
  CHECK(codes(0, 5).empty());
  // With 4 channels there is one frequency, 1.
  const auto small = codes(2, 2, 4);
  CHECK(at(small, 2, 1, 0, 0, 4) == 0.0f);
  CHECK(std::abs(static_cast<double>(at(small, 2, 1, 0, 2, 4)) - std::sin(1.0)) <= 6e-8);
}

}  // namespace
}  // namespace norma::test
