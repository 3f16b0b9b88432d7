/// \file
/// Gradients of pooling. Windows overlap, so an image's windows are added in order by one task for every 64 channels.
/// Determinism: bit-equal for any number of workers.
#pragma once

#include <algorithm>
#include <cstdint>

#include <norma/nn/kernels/elementwise_backward.hpp>
#include <norma/nn/kernels/pooling.hpp>

namespace norma::nn {

/// dx (+)= dy at the first of each window's largest values, in the order of the window's lines (as PyTorch). y = max_pool(x).
inline void max_pool_gradient(TensorView<const float> x, TensorView<const float> y, const PoolingGeometry& g, TensorView<const float> dy,
                              TensorView<float> dx, Accumulate accumulate, Parallel parallel, InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(x.count() == dx.count() && y.count() == dy.count() && x.batch == y.batch && x.channels == y.channels);
  const auto& kernels = detail::backward_kernels(set);
  const std::int64_t c = x.channels;
  detail::for_each_image_block(dx, accumulate, parallel, [&](std::int64_t n, std::int64_t channel, std::int64_t channels) {
    for (std::int64_t oy = 0; oy < y.height; ++oy) {
      const auto rows = detail::clipped(oy, g.stride, g.pad_top, g.kernel_height, x.height);
      for (std::int64_t ox = 0; ox < y.width; ++ox) {
        const auto columns = detail::clipped(ox, g.stride, g.pad_left, g.kernel_width, x.width);
        const std::int64_t corner = (rows.first * x.width + columns.first) * c + channel, at = (oy * y.width + ox) * c + channel;
        const detail::Window window{x.image(n).data + corner, x.width * c, rows.last - rows.first, columns.last - columns.first};
        kernels.max_gradient(window, channels, c, y.image(n).data + at, dy.image(n).data + at, dx.image(n).data + corner);
      }
    }
  });
}

/// dx (+)= dy / count over each window, `count` as `average_pool` counts.
inline void average_pool_gradient(TensorView<const float> dy, const PoolingGeometry& g, PaddingCounts padding, TensorView<float> dx,
                                  Accumulate accumulate, Parallel parallel, InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(dy.batch == dx.batch && dy.channels == dx.channels);
  const auto& kernels = detail::backward_kernels(set);
  const std::int64_t c = dx.channels;
  const auto padded = [](std::int64_t out, int stride, int before, int after, int kernel, std::int64_t length) {
    const std::int64_t first = out * stride - before;
    return std::min<std::int64_t>(first + kernel, length + after) - first;
  };
  detail::for_each_image_block(dx, accumulate, parallel, [&](std::int64_t n, std::int64_t channel, std::int64_t channels) {
    for (std::int64_t oy = 0; oy < dy.height; ++oy) {
      const auto rows = detail::clipped(oy, g.stride, g.pad_top, g.kernel_height, dx.height);
      for (std::int64_t ox = 0; ox < dy.width; ++ox) {
        const auto columns = detail::clipped(ox, g.stride, g.pad_left, g.kernel_width, dx.width);
        const std::int64_t count = padding == PaddingCounts::no
                                       ? (rows.last - rows.first) * (columns.last - columns.first)
                                       : padded(oy, g.stride, g.pad_top, g.pad_bottom, g.kernel_height, dx.height) *
                                             padded(ox, g.stride, g.pad_left, g.pad_right, g.kernel_width, dx.width);
        const float factor = 1.0f / static_cast<float>(count);
        const float* from = dy.image(n).data + (oy * dy.width + ox) * c + channel;
        for (std::int64_t iy = rows.first; iy < rows.last; ++iy) {
          float* to = dx.image(n).data + (iy * dx.width + columns.first) * c + channel;
          for (std::int64_t ix = columns.first; ix < columns.last; ++ix, to += c) kernels.add_scaled(from, factor, to, channels);
        }
      }
    }
  });
}

/// dx (+)= dy / size over each region of `adaptive_average_pool` (global pooling: one region).
inline void adaptive_average_pool_gradient(TensorView<const float> dy, TensorView<float> dx, Accumulate accumulate, Parallel parallel,
                                           InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(dy.batch == dx.batch && dy.channels == dx.channels);
  const auto& kernels = detail::backward_kernels(set);
  const std::int64_t c = dx.channels;
  detail::for_each_image_block(dx, accumulate, parallel, [&](std::int64_t n, std::int64_t channel, std::int64_t channels) {
    for (std::int64_t oy = 0; oy < dy.height; ++oy) {
      const std::int64_t top = oy * dx.height / dy.height, bottom = ((oy + 1) * dx.height + dy.height - 1) / dy.height;
      for (std::int64_t ox = 0; ox < dy.width; ++ox) {
        const std::int64_t left = ox * dx.width / dy.width, right = ((ox + 1) * dx.width + dy.width - 1) / dy.width;
        const float factor = 1.0f / static_cast<float>((bottom - top) * (right - left));
        const float* from = dy.image(n).data + (oy * dy.width + ox) * c + channel;
        for (std::int64_t iy = top; iy < bottom; ++iy) {
          for (std::int64_t ix = left; ix < right; ++ix) {
            kernels.add_scaled(from, factor, dx.image(n).data + (iy * dx.width + ix) * c + channel, channels);
          }
        }
      }
    }
  });
}

}  // namespace norma::nn
