/// \file
/// Readable references for tests: plain loops that accumulate in double, and the data they run on.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <norma/core/arena.hpp>
#include <norma/core/random.hpp>
#include <norma/core/tensor.hpp>
#include <norma/linalg/activation.hpp>
#include <norma/linalg/simd.hpp>

namespace norma::test {

/// The instruction sets that this machine can run.
inline std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> sets;
  for (const auto set : {InstructionSet::generic, InstructionSet::avx2, InstructionSet::avx512}) {
    if (available(set)) sets.push_back(set);
  }
  return sets;
}

/// Standard normal numbers.
inline void fill_normal(float* to, std::int64_t count, std::uint64_t seed) {
  Random random(seed);
  for (std::int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(random.normal());
}
inline Matrix<float> normal_matrix(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  Matrix<float> m(rows, cols);
  fill_normal(m.data(), rows * cols, seed);
  return m;
}
inline Tensor<float> normal_tensor(std::int64_t batch, Shape shape, std::uint64_t seed) {
  Tensor<float> t(batch, shape);
  fill_normal(t.data(), batch * shape.count(), seed);
  return t;
}
inline std::vector<float> normal_vector(std::int64_t count, std::uint64_t seed) {
  std::vector<float> v(static_cast<std::size_t>(count));
  fill_normal(v.data(), count, seed);
  return v;
}

/// Memory for an Arena of exactly `bytes`.
class Scratch {
 public:
  explicit Scratch(std::size_t bytes) : memory_(static_cast<std::int64_t>(bytes)) {}
  [[nodiscard]] Arena arena() { return Arena({reinterpret_cast<std::byte*>(memory_.data()), static_cast<std::size_t>(memory_.size())}); }

 private:
  Buffer<unsigned char> memory_;
};

inline double activate(double x, Activation activation) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::relu: return x < 0.0 ? 0.0 : x;
    case Activation::relu6: return x < 0.0 ? 0.0 : x > 6.0 ? 6.0 : x;
    case Activation::silu: return x / (1.0 + std::exp(-x));
    case Activation::gelu: return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case Activation::sigmoid: return 1.0 / (1.0 + std::exp(-x));
    case Activation::tanh: return std::tanh(x);
    case Activation::leaky_relu: return x < 0.0 ? static_cast<double>(kLeakyReluSlope) * x : x;
    case Activation::hard_swish: return x * (x + 3.0 < 0.0 ? 0.0 : x + 3.0 > 6.0 ? 6.0 : x + 3.0) / 6.0;
  }
  return x;
}
inline constexpr Activation kActivations[] = {Activation::none, Activation::relu,       Activation::relu6,
                                              Activation::silu, Activation::gelu,       Activation::sigmoid,
                                              Activation::tanh, Activation::leaky_relu, Activation::hard_swish};

/// A sum of products with the sum of their sizes, which bounds what rounding can do to it.
struct BoundedSum {
  double value = 0.0;
  double magnitude = 0.0;
  void add(double product) {
    value += product;
    magnitude += std::abs(product);
  }
};

/// One output of a convolution. `oihw` as weight files have it.
inline BoundedSum convolve(TensorView<const float> x, const std::vector<float>& oihw, std::int64_t out_channels, int kernel_height,
                           int kernel_width, int stride, int dilation, int pad_top, int pad_left, int groups, std::int64_t image,
                           std::int64_t oy, std::int64_t ox, std::int64_t o) {
  const std::int64_t in_group = x.channels / groups;
  const std::int64_t group = o / (out_channels / groups);
  BoundedSum sum;
  for (int ky = 0; ky < kernel_height; ++ky) {
    for (int kx = 0; kx < kernel_width; ++kx) {
      const std::int64_t iy = oy * stride + ky * dilation - pad_top;
      const std::int64_t ix = ox * stride + kx * dilation - pad_left;
      if (iy < 0 || iy >= x.height || ix < 0 || ix >= x.width) continue;
      for (std::int64_t i = 0; i < in_group; ++i) {
        const auto w = static_cast<std::size_t>(((o * in_group + i) * kernel_height + ky) * kernel_width + kx);
        sum.add(static_cast<double>(x(image, iy, ix, group * in_group + i)) * static_cast<double>(oihw[w]));
      }
    }
  }
  return sum;
}

}  // namespace norma::test
