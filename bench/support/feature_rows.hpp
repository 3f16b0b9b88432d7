/// \file
/// Rows for benchmarks of search and selection.
#pragma once

#include <algorithm>
#include <cstdint>

#include <norma/core/random.hpp>
#include <norma/core/tensor.hpp>

namespace norma::bench {

inline Matrix<float> normal_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  Matrix<float> m(rows, cols);
  Random random(seed);
  for (std::int64_t i = 0; i < rows * cols; ++i) m.data()[i] = static_cast<float>(random.normal());
  return m;
}

/// Rectified combinations of 16 factors of falling weight and noise, as patch features are: most of the energy lies in a few directions.
/// Rows of different seeds share their factors.
inline Matrix<float> feature_like_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  constexpr int kFactors = 16;
  Random shared(0), random(seed);
  Matrix<float> factors(kFactors, cols), m(rows, cols);
  for (std::int64_t i = 0; i < kFactors * cols; ++i) factors.data()[i] = static_cast<float>(shared.normal());
  for (std::int64_t r = 0; r < rows; ++r) {
    float weight[kFactors];
    for (int f = 0; f < kFactors; ++f) weight[f] = static_cast<float>(random.normal()) / static_cast<float>(1 + f);
    for (std::int64_t c = 0; c < cols; ++c) {
      float sum = 0.2f * static_cast<float>(random.normal());
      for (int f = 0; f < kFactors; ++f) sum += weight[f] * factors(f, c);
      m(r, c) = std::max(sum, 0.0f);
    }
  }
  return m;
}

}  // namespace norma::bench
