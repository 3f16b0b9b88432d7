/// \file
/// The vector loops of the search, chosen by instruction set.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include <norma/linalg/simd.hpp>

#if NORMA_X86_DISPATCH
#include <immintrin.h>
#endif

namespace norma::search::detail {

struct SearchKernels {
  std::uint32_t (*tile_candidates)(const float* tile, std::int64_t rows, std::int64_t width, const float* low, const float* slack, const float* norm,
                                   const float* limit, std::uint32_t* found);
  double (*squared_distance)(const float* a, const float* b, std::int64_t count, double limit);
};

inline constexpr double kRoundingUnit = 0x1p-24;  // of float
inline constexpr double kLargest = 0x1p126;       // sums below it have not overflowed in float
inline constexpr double kSmallest = 0x1p-100;     // what denormal squares lose does not count against it

}  // namespace norma::search::detail

#define NORMA_SIMD_FILE <norma/search/detail/search_kernels.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE

namespace norma::search::detail {

inline const SearchKernels& search_kernels(InstructionSet set) noexcept { return NORMA_SIMD_SELECT(set, kSearchKernels); }

/// What turns a product a * b in float into a proven lower bound of |a - b|^2 less what depends on a alone:
/// low - 2 product - slack |a|.
struct ProductBounds {
  float low;
  float slack;
};
inline constexpr double kLowUnits = 8.0;
inline constexpr double kTiny = 0x1p-120;  // more than what denormal products of any length lose

/// `squares` is what the distance needs of b (|b|^2, or |b - c|^2 where a is given relative to c), `norm_squares` is |b|^2.
/// The product's error is at most gamma |a| |b| with gamma = (d + 4) u / (1 - (d + 4) u), where four roundings are those of a - c and of
/// the bound's own arithmetic; the product counts twice.
inline ProductBounds product_bounds(std::int64_t dims, double squares, double norm_squares) noexcept {
  const double steps = static_cast<double>(dims + 4) * kRoundingUnit;
  const double factor = 2.0 * steps / (1.0 - steps) * (1.0 + 8.0 * kRoundingUnit);
  return {static_cast<float>(squares * (1.0 - kLowUnits * kRoundingUnit) - kTiny), static_cast<float>(factor * std::sqrt(norm_squares))};
}

/// What a lower bound becomes as an upper bound of the same distance.
inline float upper_bound(float lower, ProductBounds of, float norm) noexcept {
  const double wide = static_cast<double>(lower) + 2.0 * static_cast<double>(of.slack) * static_cast<double>(norm) +
                      3.0 * kLowUnits * kRoundingUnit * std::abs(static_cast<double>(of.low)) + 3.0 * kTiny;
  return static_cast<float>(wide + 4.0 * kRoundingUnit * std::abs(wide));
}

/// A measured squared distance less `offset` (what depends on a alone), rounded up: lower bounds above it belong to larger distances.
inline float limit_of(double squared_distance, double offset) noexcept {
  const double exact = squared_distance - offset;
  return static_cast<float>(exact + kRoundingUnit * (2.0 * std::abs(exact) + 0x1p-16 * (std::abs(offset) + squared_distance)) + kTiny);
}

/// Calls visit(row, column, bound) for every entry of a tile whose lower bound is not above its row's limit; visits may lower limits.
/// `norm` and `limit` begin at the tile's first row, `low` and `slack` at its first column.
template <class Visit>
inline void visit_candidates(const SearchKernels& kernels, const float* tile, std::int64_t rows, std::int64_t width, const float* low, const float* slack,
                             const float* norm, const float* limit, const Visit& visit) {
  std::uint32_t found[32];
  for (std::uint32_t any = kernels.tile_candidates(tile, rows, width, low, slack, norm, limit, found); any != 0; any &= any - 1) {
    const std::int64_t r = std::countr_zero(any);
    for (std::uint32_t columns = found[r]; columns != 0; columns &= columns - 1) {
      const std::int64_t c = std::countr_zero(columns);
      const float bound = low[c] - 2.0f * tile[r * width + c] - slack[c] * norm[r];
      if (bound <= limit[r]) visit(r, c, bound);
    }
  }
}

}  // namespace norma::search::detail
