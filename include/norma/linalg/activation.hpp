/// \file
/// Activation functions that the matrix product and the layers apply to their results. NaN stays NaN in all of them: a broken
/// input must never look normal.
#pragma once

#include <cstdint>

namespace norma {

enum class Activation : std::uint8_t {
  none,
  relu,     ///< max(x, 0)
  relu6,    ///< min(max(x, 0), 6)
  silu,     ///< x sigmoid(x), "swish"
  gelu,     ///< x Phi(x), the exact form with erf
  sigmoid,  ///< 1 / (1 + exp(-x))
  tanh,
  leaky_relu,  ///< x for x >= 0, kLeakyReluSlope x below
  hard_swish,  ///< x min(max(x + 3, 0), 6) / 6
};

inline constexpr float kLeakyReluSlope = 0.2f;

}  // namespace norma
