/// \file
/// Position codes: for each position of a grid a fixed vector of sines and cosines of its row and column, by which a model of single feature vectors
/// can tell places apart.
/// Source: Vaswani et al., "Attention is all you need", NeurIPS 2017, section 3.5, for two dimensions as CFlow-AD has it: Gudovskiy et al.,
///         "CFLOW-AD: real-time unsupervised anomaly detection with localization via conditional normalizing flows", WACV 2022, section 3.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include <norma/config.hpp>

namespace norma::features {

/// Numbers of a position's code as CFlow-AD has it.
inline constexpr std::int64_t kPositionCodeChannels = 128;

/// Numbers of a grid's codes.
constexpr std::int64_t position_code_count(std::int64_t height, std::int64_t width, std::int64_t channels = kPositionCodeChannels) noexcept {
  return height * width * channels;
}

/// The codes of all positions of a grid, `out` [height width, channels]. With D = channels / 2 and f_k = 10000^(-2k / D), k = 0, ..., D / 2 - 1:
///   code[2k] = sin(column f_k), code[2k + 1] = cos(column f_k), code[D + 2k] = sin(row f_k), code[D + 2k + 1] = cos(row f_k).
/// Rows and columns are whole numbers of this grid, not shares of it. Computed in double, rounded once.
/// Preconditions: channels is a positive multiple of 4; out.size() == position_code_count(height, width, channels).
inline void position_code(std::int64_t height, std::int64_t width, std::span<float> out, std::int64_t channels = kPositionCodeChannels) {
  NORMA_EXPECTS(channels > 0 && channels % 4 == 0 && height >= 0 && width >= 0);
  NORMA_EXPECTS(out.size() == static_cast<std::size_t>(position_code_count(height, width, channels)));
  const std::int64_t half = channels / 2;
  for (std::int64_t k = 0; k < half / 2; ++k) {
    const double frequency = std::pow(1e4, -2.0 * static_cast<double>(k) / static_cast<double>(half));
    for (std::int64_t row = 0; row < height; ++row) {
      const double y = static_cast<double>(row) * frequency;
      for (std::int64_t column = 0; column < width; ++column) {
        const double x = static_cast<double>(column) * frequency;
        float* code = out.data() + (row * width + column) * channels + 2 * k;
        code[0] = static_cast<float>(std::sin(x));
        code[1] = static_cast<float>(std::cos(x));
        code[half] = static_cast<float>(std::sin(y));
        code[half + 1] = static_cast<float>(std::cos(y));
      }
    }
  }
}

}  // namespace norma::features
