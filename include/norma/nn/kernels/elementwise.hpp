/// \file
/// Layers without weights of their own: activation, sum, channel gates, concatenation, enlarging.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>

#include <norma/core/parallel.hpp>
#include <norma/core/view.hpp>
#include <norma/linalg/simd.hpp>

namespace norma::nn::detail {

struct ElementwiseKernels {
  void (*activate)(const float* x, float* y, std::int64_t count, Activation activation);
  void (*add)(const float* a, const float* b, float* y, std::int64_t count, Activation activation);
  void (*multiply)(const float* a, const float* b, float* y, std::int64_t count);
  void (*scale)(const float* x, const float* scale, const float* shift, float* y, std::int64_t count, Activation activation);
  void (*blend)(const float* a, const float* b, const float* c, const float* d, float u, float v, float* y, std::int64_t count);
  void (*sum_positions)(const float* x, std::int64_t positions, std::int64_t stride, std::int64_t channels, const float* mean, float* sums);
  void (*normalise_positions)(const float* x, std::int64_t positions, std::int64_t stride, std::int64_t channels, const float* mean,
                              const float* factor, float* y);
};

}  // namespace norma::nn::detail

#define NORMA_SIMD_FILE <norma/nn/kernels/detail/elementwise_kernels.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE

namespace norma::nn {
namespace detail {

inline const ElementwiseKernels& elementwise_kernels(InstructionSet set) noexcept { return NORMA_SIMD_SELECT(set, kElementwiseKernels); }

inline constexpr std::int64_t kElementwiseGrain = 16384;

}  // namespace detail

/// y = activation(x); y may be x.
inline void activate(TensorView<const float> x, Activation activation, TensorView<float> y, Parallel parallel,
                     InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(x.count() == y.count());
  const auto& kernels = detail::elementwise_kernels(set);
  parallel.run_ranges(x.count(), detail::kElementwiseGrain, [&](std::int64_t first, std::int64_t last, int) {
    kernels.activate(x.data + first, y.data + first, last - first, activation);
  });
}

/// y = activation(a + b); y may be a or b.
inline void add(TensorView<const float> a, TensorView<const float> b, Activation activation, TensorView<float> y, Parallel parallel,
                InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(a.count() == b.count() && a.count() == y.count());
  const auto& kernels = detail::elementwise_kernels(set);
  parallel.run_ranges(a.count(), detail::kElementwiseGrain, [&](std::int64_t first, std::int64_t last, int) {
    kernels.add(a.data + first, b.data + first, y.data + first, last - first, activation);
  });
}

/// y = a * b, element by element; y may be a or b.
inline void multiply(TensorView<const float> a, TensorView<const float> b, TensorView<float> y, Parallel parallel,
                     InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(a.count() == b.count() && a.count() == y.count());
  const auto& kernels = detail::elementwise_kernels(set);
  parallel.run_ranges(a.count(), detail::kElementwiseGrain, [&](std::int64_t first, std::int64_t last, int) {
    kernels.multiply(a.data + first, b.data + first, y.data + first, last - first);
  });
}

/// y[n, i, j, c] = x[n, i, j, c] * gate[n, c] (squeeze-and-excitation); y may be x. gate is [n, 1, 1, c].
inline void multiply_channels(TensorView<const float> x, TensorView<const float> gate, TensorView<float> y, Parallel parallel,
                              InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(gate.batch == x.batch && gate.channels == x.channels && gate.height == 1 && gate.width == 1 && x.count() == y.count());
  const auto& kernels = detail::elementwise_kernels(set);
  parallel.run_ranges(x.batch * x.height, 4, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t line = first; line < last; ++line) {
      const float* factors = gate.data + line / x.height * x.channels;
      for (std::int64_t i = line * x.width; i < (line + 1) * x.width; ++i) {
        kernels.scale(x.data + i * x.channels, factors, nullptr, y.data + i * x.channels, x.channels, Activation::none);
      }
    }
  });
}

/// y = activation(x * scale[c] + shift[c]): a normalisation with fixed statistics that could not be folded. shift may be null; y may be x.
inline void scale_channels(TensorView<const float> x, const float* scale, const float* shift, Activation activation, TensorView<float> y,
                           Parallel parallel, InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(x.count() == y.count());
  const auto& kernels = detail::elementwise_kernels(set);
  parallel.run_ranges(x.batch * x.height * x.width, 64, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i)
      kernels.scale(x.data + i * x.channels, scale, shift, y.data + i * x.channels, x.channels, activation);
  });
}

/// y = (x - mean) / sqrt(variance + eps), mean and (population) variance over the positions of each image and channel (instance
/// normalisation without weights). Lines are summed in float, their sums in double. y may be x.
inline void instance_norm(TensorView<const float> x, float eps, TensorView<float> y, Parallel parallel,
                          InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(x.count() == y.count());
  constexpr std::int64_t kBlock = 32;  // channels of a task
  const auto& kernels = detail::elementwise_kernels(set);
  const std::int64_t blocks = (x.channels + kBlock - 1) / kBlock;
  parallel.run(x.batch * blocks, [&](std::int64_t task, int) {
    const std::int64_t channel = task % blocks * kBlock;
    const std::int64_t channels = std::min(kBlock, x.channels - channel);
    const std::int64_t offset = task / blocks * x.height * x.width * x.channels + channel;
    const auto positions = static_cast<double>(x.height * x.width);
    float sums[kBlock], mean[kBlock], factor[kBlock];
    double total[kBlock] = {};
    const auto add_lines = [&](const float* middle) {
      for (std::int64_t line = 0; line < x.height; ++line) {
        kernels.sum_positions(x.data + offset + line * x.width * x.channels, x.width, x.channels, channels, middle, sums);
        for (std::int64_t c = 0; c < channels; ++c) total[c] += static_cast<double>(sums[c]);
      }
    };
    add_lines(nullptr);
    for (std::int64_t c = 0; c < channels; ++c) {
      mean[c] = static_cast<float>(total[c] / positions);
      total[c] = 0.0;
    }
    add_lines(mean);
    for (std::int64_t c = 0; c < channels; ++c)
      factor[c] = static_cast<float>(1.0 / std::sqrt(total[c] / positions + static_cast<double>(eps)));
    kernels.normalise_positions(x.data + offset, x.height * x.width, x.channels, channels, mean, factor, y.data + offset);
  });
}

/// y's channels are those of all parts, in order; heights, widths and batches are equal.
inline void concat_channels(std::span<const TensorView<const float>> parts, TensorView<float> y, Parallel parallel) {
  parallel.run_ranges(y.batch * y.height * y.width, 64, [&](std::int64_t first, std::int64_t last, int) {
    std::int64_t channel = 0;
    for (const auto& part : parts) {
      NORMA_EXPECTS(part.batch == y.batch && part.height == y.height && part.width == y.width && channel + part.channels <= y.channels);
      for (std::int64_t i = first; i < last; ++i) {
        std::memcpy(y.data + i * y.channels + channel, part.data + i * part.channels,
                    static_cast<std::size_t>(part.channels) * sizeof(float));
      }
      channel += part.channels;
    }
    NORMA_EXPECTS(channel == y.channels);
  });
}

/// y[i, j] = x[floor(i h / oh), floor(j w / ow)], the map's nearest positions as PyTorch's "nearest" counts them.
inline void upsample_nearest(TensorView<const float> x, TensorView<float> y, Parallel parallel) {
  NORMA_EXPECTS(x.batch == y.batch && x.channels == y.channels);
  parallel.run_ranges(y.batch * y.height, 4, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t line = first; line < last; ++line) {
      const std::int64_t iy = line % y.height * x.height / y.height;
      const float* from = x.data + (line / y.height * x.height + iy) * x.width * x.channels;
      float* to = y.data + line * y.width * y.channels;
      for (std::int64_t ox = 0; ox < y.width; ++ox) {
        std::memcpy(to + ox * y.channels, from + ox * x.width / y.width * x.channels, static_cast<std::size_t>(x.channels) * sizeof(float));
      }
    }
  });
}

/// Where the first and last positions of an enlarged map lie: on those of the source (`yes`), or half a pixel outside (`no`, clamped).
enum class AlignCorners : std::uint8_t { no, yes };

namespace detail {

/// Source of one output coordinate of a bilinear enlargement: (1 - weight) * x[low] + weight * x[high].
struct LinearSource {
  std::int64_t low, high;
  float weight;
};
inline LinearSource linear_source(std::int64_t out, std::int64_t out_size, std::int64_t in_size, AlignCorners align) noexcept {
  double at = 0.0;
  if (align == AlignCorners::yes) {
    if (out_size > 1) at = static_cast<double>(out) * static_cast<double>(in_size - 1) / static_cast<double>(out_size - 1);
  } else {
    at = (static_cast<double>(out) + 0.5) * static_cast<double>(in_size) / static_cast<double>(out_size) - 0.5;
    if (at < 0.0) at = 0.0;
  }
  const std::int64_t low = std::min(static_cast<std::int64_t>(at), in_size - 1);
  return {low, std::min(low + 1, in_size - 1), static_cast<float>(at - static_cast<double>(low))};
}

}  // namespace detail

/// Bilinear interpolation to y's size (also smaller ones, without averaging), as PyTorch's `interpolate(mode="bilinear")`.
inline void upsample_bilinear(TensorView<const float> x, AlignCorners align, TensorView<float> y, Parallel parallel,
                              InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(x.batch == y.batch && x.channels == y.channels);
  const auto& kernels = detail::elementwise_kernels(set);
  parallel.run_ranges(y.batch * y.height, 4, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t line = first; line < last; ++line) {
      const auto sy = detail::linear_source(line % y.height, y.height, x.height, align);
      const float* image = x.image(line / y.height).data;
      const float* upper = image + sy.low * x.width * x.channels;
      const float* lower = image + sy.high * x.width * x.channels;
      for (std::int64_t ox = 0; ox < y.width; ++ox) {
        const auto sx = detail::linear_source(ox, y.width, x.width, align);
        kernels.blend(upper + sx.low * x.channels, upper + sx.high * x.channels, lower + sx.low * x.channels, lower + sx.high * x.channels,
                      sx.weight, sy.weight, y.data + (line * y.width + ox) * y.channels, y.channels);
      }
    }
  });
}

}  // namespace norma::nn
