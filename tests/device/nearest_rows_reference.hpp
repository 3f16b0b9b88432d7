// Rows on the host, and their nearest ones by brute force in double.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include <norma/core/random.hpp>
#include <norma/core/view.hpp>
#include <norma/cuda/nearest_rows.hpp>
#include <norma/io/dtype.hpp>

namespace norma::test {

using cuda::BFloat16;
using cuda::Half;
using cuda::RowDistance;
using cuda::RowProduct;

inline float value_of(float x) { return x; }
inline float value_of(Half x) { return io::float_from_half(x.bits); }
inline float value_of(BFloat16 x) { return io::float_from_bfloat16(x.bits); }
template <class T>
T element_of(float x) {
  if constexpr (std::is_same_v<T, Half>) return Half{io::half_from_float(x)};
  if constexpr (std::is_same_v<T, BFloat16>) return BFloat16{io::bfloat16_from_float(x)};
  if constexpr (std::is_same_v<T, float>) return x;
}

/// Rows on the host, with their size.
template <class T = float>
struct Rows {
  std::vector<T> data;
  std::int64_t rows = 0, cols = 0;
  [[nodiscard]] MatrixView<const T> view() const { return {data.data(), rows, cols}; }
  [[nodiscard]] T& at(std::int64_t r, std::int64_t c) { return data[static_cast<std::size_t>(r * cols + c)]; }
  [[nodiscard]] double value(std::int64_t r, std::int64_t c) const {
    return static_cast<double>(value_of(data[static_cast<std::size_t>(r * cols + c)]));
  }
};
template <class T = float>
Rows<T> normal_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed, double offset = 0.0, double scale = 1.0) {
  Random random(seed);
  Rows<T> made{std::vector<T>(static_cast<std::size_t>(rows * cols)), rows, cols};
  for (T& x : made.data) x = element_of<T>(static_cast<float>(offset + scale * random.normal()));
  return made;
}
// Small integers: all distances are exact in double and many of them tie.
inline Rows<> grid_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed, std::int64_t values) {
  Random random(seed);
  Rows<> made{std::vector<float>(static_cast<std::size_t>(rows * cols)), rows, cols};
  for (float& x : made.data) x = static_cast<float>(random.below(values));
  return made;
}

template <class T>
double length(const Rows<T>& rows, std::int64_t r) {
  double sum = 0.0;
  for (std::int64_t c = 0; c < rows.cols; ++c) sum += rows.value(r, c) * rows.value(r, c);
  return std::sqrt(sum);
}

template <class T>
std::vector<std::pair<double, std::int64_t>> brute_force(const Rows<T>& bank, const Rows<T>& queries, std::int64_t q, RowDistance distance) {
  std::vector<std::pair<double, std::int64_t>> all;
  const double query_length = distance == RowDistance::cosine ? length(queries, q) : 1.0;
  for (std::int64_t r = 0; r < bank.rows; ++r) {
    const double row_length = distance == RowDistance::cosine ? length(bank, r) : 1.0;
    double sum = 0.0;
    for (std::int64_t c = 0; c < bank.cols; ++c) {
      const double difference = queries.value(q, c) / query_length - bank.value(r, c) / row_length;
      sum += difference * difference;
    }
    if (distance == RowDistance::cosine) sum = query_length == 0.0 || row_length == 0.0 ? 1.0 : 0.5 * sum;
    all.emplace_back(sum, r);
  }
  std::ranges::sort(all);
  return all;
}

/// How far two sums in double of the same distance may be apart. Squared L2: d non-negative terms each of which has three roundings, added in two
/// different orders: 2 (d + 3) 2^-53. Cosine: in addition the two lengths have a relative error of e = (d / 2 + 4) 2^-53 each, so that the difference
/// of the two rows of length 1 moves by 2 e at most, and half its square by 2 e sqrt(2 distance) + 2 e^2; both sides do that.
inline double spread(double distance, std::int64_t d, RowDistance kind) {
  const double sums = 2.0 * static_cast<double>(d + 3) * 0x1p-53 * distance;
  if (kind == RowDistance::squared_l2) return sums;
  const double e = (0.5 * static_cast<double>(d) + 4.0) * 0x1p-53;
  return sums + 2.0 * (2.0 * e * std::sqrt(2.0 * distance) + 2.0 * e * e);
}

template <class T>
void check_exact(const Rows<T>& bank, const Rows<T>& queries, int k, std::span<const float> got_distances, std::span<const std::int64_t> got_rows,
                 RowDistance kind = RowDistance::squared_l2) {
  for (std::int64_t q = 0; q < queries.rows; ++q) {
    CAPTURE(q);
    REQUIRE(got_distances.size() == static_cast<std::size_t>(queries.rows * k));
    const auto want = brute_force(bank, queries, q, kind);
    for (std::int64_t i = 0; i < k; ++i) {
      CAPTURE(i);
      const float got = got_distances[static_cast<std::size_t>(q * k + i)];
      const std::int64_t got_row = got_rows[static_cast<std::size_t>(q * k + i)];
      if (i >= bank.rows) {
        REQUIRE(got == std::numeric_limits<float>::infinity());
        REQUIRE(got_row == -1);
        continue;
      }
      const auto& [distance, row] = want[static_cast<std::size_t>(i)];
      // Rounded once to float, or to the smallest denormal.
      REQUIRE(std::abs(static_cast<double>(got) - distance) <= spread(distance, bank.cols, kind) + 0x1p-24 * distance + 0x1p-150);
      if (got_row != row) {  // allowed only where two orders of summation may rank differently
        const auto other = std::ranges::find_if(want, [&](const auto& entry) { return entry.second == got_row; });
        REQUIRE(other != want.end());
        REQUIRE(std::abs(other->first - distance) <= 2.0 * spread(std::max(distance, other->first), bank.cols, kind));
        REQUIRE((distance > 0.0 || kind == RowDistance::cosine));  // rows with a common direction are 0 apart, but for rounding
      }
    }
  }
}

}  // namespace norma::test
