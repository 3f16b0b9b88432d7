/// \file
/// How many rows a bank keeps, and the two simplest ways to choose them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include <norma/concepts/subset.hpp>
#include <norma/core/random.hpp>

namespace norma {

/// Size of a subset: a share of the rows, or a number of rows, or as many as a number of bytes holds. The smallest one given wins.
struct SubsetSize {
  double coreset_ratio = 0.1;
  std::int64_t coreset_count = 0;  ///< 0: no such limit
  std::int64_t coreset_bytes = 0;  ///< of float rows, 0: no such limit

  template <class Self, class Visitor>
  static constexpr void visit(Self& self, Visitor&& visitor) {
    visitor("coreset_ratio", self.coreset_ratio, "share of the training patches kept in the bank, in (0, 1]");
    visitor("coreset_count", self.coreset_count, "most patches kept in the bank; 0 for no limit");
    visitor("coreset_bytes", self.coreset_bytes, "most bytes of the bank; 0 for no limit");
  }
  friend constexpr bool operator==(const SubsetSize&, const SubsetSize&) = default;

  [[nodiscard]] Status validate() const {
    if (!(coreset_ratio > 0.0 && coreset_ratio <= 1.0)) {
      return {Errc::invalid_argument, "subset: coreset_ratio must be in (0, 1], found " + std::to_string(coreset_ratio)};
    }
    if (coreset_count < 0 || coreset_bytes < 0) {
      return {Errc::invalid_argument, "subset: coreset_count and coreset_bytes must not be negative, found " + std::to_string(coreset_count) + " and " +
                                          std::to_string(coreset_bytes)};
    }
    return {};
  }
  /// Rows to keep of n rows of d floats: floor(ratio n) within the limits, at least 1 and at most n.
  [[nodiscard]] std::int64_t of(std::int64_t n, std::int64_t d) const noexcept {
    std::int64_t rows = std::min(n, static_cast<std::int64_t>(coreset_ratio * static_cast<double>(n)));
    if (coreset_count > 0) rows = std::min(rows, coreset_count);
    if (coreset_bytes > 0) rows = std::min(rows, coreset_bytes / (d * static_cast<std::int64_t>(sizeof(float))));
    return std::max<std::int64_t>(1, rows);
  }
};

namespace search::detail {

inline Status check_points(std::string_view policy, MatrixView<const float> points) {
  if (!points.empty()) return {};
  return {Errc::not_enough_data, std::string(policy) + "::select: expected rows and columns, found " + std::to_string(points.rows) + " x " +
                                     std::to_string(points.cols)};
}

}  // namespace search::detail

/// Subset policy: a uniform draw without replacement, in ascending order.
struct RandomSubset {
  static constexpr std::string_view name = "random";
  using Settings = SubsetSize;
  static Status validate(const Settings& settings) { return settings.validate(); }
  static Result<std::vector<std::int64_t>> select(MatrixView<const float> points, const Settings& settings, std::uint64_t seed, Parallel, const Observer&) {
    NORMA_CHECK(settings.validate());
    NORMA_CHECK(search::detail::check_points("RandomSubset", points));
    Random random(seed);
    auto rows = sample_without_replacement(points.rows, settings.of(points.rows, points.cols), random);
    std::ranges::sort(rows);
    return rows;
  }
};
static_assert(Subset<RandomSubset>);

/// Subset policy: every row.
struct KeepAll {
  static constexpr std::string_view name = "all";
  struct Settings {
    template <class Self, class Visitor>
    static constexpr void visit(Self&, Visitor&&) {}
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };
  static Status validate(const Settings&) { return {}; }
  static Result<std::vector<std::int64_t>> select(MatrixView<const float> points, const Settings&, std::uint64_t, Parallel, const Observer&) {
    NORMA_CHECK(search::detail::check_points("KeepAll", points));
    std::vector<std::int64_t> rows(static_cast<std::size_t>(points.rows));
    std::iota(rows.begin(), rows.end(), std::int64_t{0});
    return rows;
  }
};
static_assert(Subset<KeepAll>);

}  // namespace norma
