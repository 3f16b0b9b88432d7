/// \file
/// A map with its border mirrored, and the way back: how convolutions with reflection padding are trained, as convolutions without padding.
/// Determinism: bit-equal for any number of workers.
#pragma once

#include <cstdint>
#include <cstring>

#include <norma/nn/kernels/convolution.hpp>
#include <norma/nn/kernels/detail/backward_kernels.hpp>

namespace norma::nn::detail {

/// The map that a convolution with these pads sees.
constexpr Shape bordered_shape(Shape in, const ConvolutionGeometry& g) noexcept {
  return {in.height + g.pad_top + g.pad_bottom, in.width + g.pad_left + g.pad_right, in.channels};
}
/// The same convolution over that map.
constexpr ConvolutionGeometry bordered_geometry(ConvolutionGeometry g) noexcept {
  g.pad_top = g.pad_left = g.pad_bottom = g.pad_right = 0;
  g.border = Border::zeros;
  return g;
}

/// to [bordered_shape(x)] = x with its border mirrored, of one image.
inline void mirror_border(TensorView<const float> x, const ConvolutionGeometry& g, TensorView<float> to, Parallel parallel) {
  const auto bytes = static_cast<std::size_t>(x.channels) * sizeof(float);
  parallel.run_ranges(to.height, 4, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) {
      const float* line = x.data + mirrored(i - g.pad_top, x.height) * x.width * x.channels;
      for (std::int64_t j = 0; j < to.width; ++j) {
        std::memcpy(to.data + (i * to.width + j) * x.channels, line + mirrored(j - g.pad_left, x.width) * x.channels, bytes);
      }
    }
  });
}

/// dx (+)= what `mirror_border` made of each position, of one image. One task a line of dx: what reaches it is added line by line of
/// `from`.
inline void mirror_border_gradient(TensorView<const float> from, const ConvolutionGeometry& g, TensorView<float> dx, Accumulate accumulate,
                                   Parallel parallel, InstructionSet set = instruction_set()) {
  const auto& kernels = backward_kernels(set);
  const std::int64_t c = dx.channels;
  parallel.run_ranges(dx.height, 4, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) {
      float* to = dx.data + i * dx.width * c;
      if (accumulate == Accumulate::no) std::memset(to, 0, static_cast<std::size_t>(dx.width * c) * sizeof(float));
      // A line is seen where it lies, above the first and below the last one.
      const std::int64_t seen[] = {i, -i, 2 * (dx.height - 1) - i};
      for (int s = 0; s < 3; ++s) {
        if ((s == 1 && (i == 0 || i > g.pad_top)) || (s == 2 && (i == dx.height - 1 || seen[2] >= dx.height + g.pad_bottom))) continue;
        const float* line = from.data + (seen[s] + g.pad_top) * from.width * c;
        for (std::int64_t j = 0; j < from.width; ++j)
          kernels.add_scaled(line + j * c, 1.0f, to + mirrored(j - g.pad_left, dx.width) * c, c);
      }
    }
  });
}

}  // namespace norma::nn::detail
