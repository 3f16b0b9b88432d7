/// \file
/// Three convolutions at once: 1x1 to many channels, depthwise, 1x1 to few (the block of MobileNetV2: Sandler et al., "MobileNetV2: Inverted
/// Residuals and Linear Bottlenecks", CVPR 2018). The many channels of some lines stay in the second-level cache instead of going through
/// memory as a whole map. Bits are those of the three one after the other, whatever the number of workers.
#pragma once

#include <algorithm>
#include <cstdint>

#include <norma/nn/kernels/convolution.hpp>

namespace norma::nn {

/// A packed convolution with what comes after it.
struct ConvolutionLayer {
  const PackedConvolution& weights;
  const float* bias;  ///< [out_channels] or null
  Activation activation;
};

namespace detail {

/// Lines of the output that are computed together: about a hundred positions, so that the products have whole tiles.
constexpr std::int64_t inverted_lines(Shape out) noexcept { return std::clamp<std::int64_t>(112 / out.width, 1, 4); }
/// Lines of the wide map that those read.
constexpr std::int64_t inverted_ring(Shape out, const ConvolutionGeometry& depthwise) noexcept {
  return (inverted_lines(out) - 1) * depthwise.stride + depthwise.kernel_height;
}

}  // namespace detail

/// Scratch of `inverted_residual`: `wide` is the shape between the first and the second convolution, `out` the last one's output.
constexpr std::size_t inverted_residual_scratch_bytes(Shape wide, Shape out, const ConvolutionGeometry& depthwise, int workers) noexcept {
  return static_cast<std::size_t>(workers) *
         (arena_bytes<float>(detail::inverted_ring(out, depthwise) * wide.width * wide.channels) +
          arena_bytes<float>(detail::inverted_lines(out) * out.width * wide.channels));
}

/// y = project(depthwise(expand(x))) + residual. Preconditions: their algorithms are pointwise, depthwise (without dilation) and pointwise.
/// residual of y's shape or empty (it may be y itself); y does not overlap x.
inline void inverted_residual(TensorView<const float> x, const ConvolutionLayer& expand, const ConvolutionLayer& depthwise,
                              const ConvolutionLayer& project, TensorView<float> y, TensorView<const float> residual, Parallel parallel,
                              Arena& arena) {
  const ConvolutionGeometry& g = depthwise.weights.geometry();
  NORMA_EXPECTS(expand.weights.algorithm() == ConvolutionAlgorithm::pointwise && project.weights.algorithm() == ConvolutionAlgorithm::pointwise);
  NORMA_EXPECTS(depthwise.weights.algorithm() == ConvolutionAlgorithm::depthwise && g.dilation == 1);
  NORMA_EXPECTS(x.shape() == expand.weights.input() && y.shape() == project.weights.output() && x.batch == y.batch);
  NORMA_EXPECTS(residual.data == nullptr || (residual.shape() == y.shape() && residual.batch == y.batch));
  const std::int64_t wide = expand.weights.out_channels();
  const std::int64_t lines = detail::inverted_lines(y.shape()), held = detail::inverted_ring(y.shape(), g);
  const auto& kernels = detail::convolution_kernels(depthwise.weights.instructions());
  const detail::Limits limits = detail::limits_of(depthwise.activation);
  const linalg::PackedMatrix& first_product = expand.weights.product(0);
  const linalg::PackedMatrix& last_product = project.weights.product(0);
  const std::int64_t ring_size = static_cast<std::int64_t>(arena_bytes<float>(held * x.width * wide) / sizeof(float));
  const std::int64_t piece = ring_size + static_cast<std::int64_t>(arena_bytes<float>(lines * y.width * wide) / sizeof(float));
  const Arena::Scope scope(arena);
  float* scratch = arena.take<float>(piece * parallel.workers());

  // A task is some bands of one image. Where it begins it computes lines of the wide map that its neighbour computes too, so there are few.
  const std::int64_t bands = (y.height + lines - 1) / lines;
  const std::int64_t tasks = parallel.workers() == 1 ? 1 : std::min<std::int64_t>(bands, std::int64_t{2} * parallel.workers());
  parallel.run(y.batch * tasks, [&](std::int64_t task, int worker) {
    const std::int64_t image = task / tasks;
    float* ring = scratch + worker * piece;
    float* band = ring + ring_size;
    const float* from = x.image(image).data;
    std::int64_t computed = 0;  // lines of the wide map before this one are in the ring or no longer wanted
    for (std::int64_t b = bands * (task % tasks) / tasks; b < bands * (task % tasks + 1) / tasks; ++b) {
      const std::int64_t oy = b * lines, count = std::min(lines, y.height - oy);
      const std::int64_t top = oy * g.stride - g.pad_top;
      const std::int64_t last = std::min(x.height, top + (count - 1) * g.stride + g.kernel_height);
      computed = std::max({computed, top, std::int64_t{0}});
      while (computed < last) {  // as many lines as lie side by side in the ring
        const std::int64_t slot = computed % held;
        const std::int64_t run = std::min(last - computed, held - slot);
        detail::multiply_positions(expand.weights, first_product, {from + computed * x.width * x.channels, x.channels}, run * x.width, 0,
                                   first_product.panels(),
                                   {ring + slot * x.width * wide, wide, expand.bias, nullptr, 0, expand.activation});
        computed += run;
      }
      kernels.depthwise_rows({ring, held, x.height, x.width, wide, y.width, top, count, g.pad_left, g.kernel_height, g.kernel_width, g.stride,
                              g.dilation, depthwise.weights.depthwise(), depthwise.bias, nullptr, band, depthwise.activation, limits});
      const std::int64_t at = (image * y.height + oy) * y.width * y.channels;
      detail::multiply_positions(project.weights, last_product, {band, wide}, count * y.width, 0, last_product.panels(),
                                 {y.data + at, y.channels, project.bias, residual.data == nullptr ? nullptr : residual.data + at, y.channels,
                                  project.activation});
    }
  });
}

}  // namespace norma::nn
