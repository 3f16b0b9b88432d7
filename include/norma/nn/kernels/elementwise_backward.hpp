/// \file
/// Gradients of the layers without weights of their own: activation, sum, gates, concatenation, slices, enlarging.
/// dy is the gradient of the layer's result. With `Accumulate::yes` the gradient is added to what is there.
/// Determinism: bit-equal for any number of workers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include <norma/nn/kernels/detail/backward_kernels.hpp>
#include <norma/nn/kernels/elementwise.hpp>

namespace norma::nn {

/// dx (+)= dy activation'. `at` is the activation's result, or its argument where `gradient_needs_argument(activation)`. dx may be dy (with
/// `Accumulate::no`). Bends as PyTorch has them: relu 0 at 0, relu6 0 at both ends, leaky_relu its slope at 0.
inline void activation_gradient(TensorView<const float> dy, TensorView<const float> at, Activation activation, TensorView<float> dx,
                                Accumulate accumulate, Parallel parallel, InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(dy.count() == at.count() && dy.count() == dx.count());
  const auto& kernels = detail::backward_kernels(set);
  parallel.run_ranges(dy.count(), detail::kElementwiseGrain, [&](std::int64_t first, std::int64_t last, int) {
    kernels.activation_gradient(dy.data + first, at.data + first, dx.data + first, last - first, activation, accumulate == Accumulate::yes);
  });
}

/// dx (+)= dy.
inline void pass_gradient(TensorView<const float> dy, TensorView<float> dx, Accumulate accumulate, Parallel parallel,
                          InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(dy.count() == dx.count());
  const auto& kernels = detail::backward_kernels(set);
  parallel.run_ranges(dy.count(), detail::kElementwiseGrain, [&](std::int64_t first, std::int64_t last, int) {
    if (accumulate == Accumulate::yes) {
      kernels.add_scaled(dy.data + first, 1.0f, dx.data + first, last - first);
    } else if (dx.data != dy.data) {
      std::memcpy(dx.data + first, dy.data + first, static_cast<std::size_t>(last - first) * sizeof(float));
    }
  });
}

/// dx (+)= dy * other, element by element: the gradient of one factor of a product.
inline void product_gradient(TensorView<const float> dy, TensorView<const float> other, TensorView<float> dx, Accumulate accumulate,
                             Parallel parallel, InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(dy.count() == other.count() && dy.count() == dx.count());
  if (accumulate == Accumulate::no) return multiply(dy, other, dx, parallel, set);
  const auto& kernels = detail::backward_kernels(set);
  parallel.run_ranges(dy.count(), detail::kElementwiseGrain, [&](std::int64_t first, std::int64_t last, int) {
    kernels.add_product(dy.data + first, other.data + first, dx.data + first, last - first);
  });
}

/// dx (+)= dy scale[c]; `scale` is [C], or [n, C] with a distance of C between images (a gate).
inline void scaled_gradient(TensorView<const float> dy, const float* scale, std::int64_t scale_stride, TensorView<float> dx,
                            Accumulate accumulate, Parallel parallel, InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(dy.count() == dx.count());
  const auto& kernels = detail::backward_kernels(set);
  const auto& forward = detail::elementwise_kernels(set);
  const std::int64_t positions = dy.height * dy.width, c = dy.channels;
  parallel.run_ranges(dy.batch * positions, 64, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) {
      const float* factors = scale + i / positions * scale_stride;
      if (accumulate == Accumulate::yes) {
        kernels.add_product(dy.data + i * c, factors, dx.data + i * c, c);
      } else {
        forward.multiply(dy.data + i * c, factors, dx.data + i * c, c);
      }
    }
  });
}

/// Scratch of `gate_gradient` and `scale_gradient`.
constexpr std::size_t scale_gradient_scratch_bytes(std::int64_t channels) noexcept { return detail::sums_scratch_bytes(channels, 2); }

/// dgate[n, c] (+)= sum over the image's positions of dy x: the gradient of a gate [n, 1, 1, c].
inline void gate_gradient(TensorView<const float> dy, TensorView<const float> x, TensorView<float> dgate, Accumulate accumulate,
                          Parallel parallel, Arena& arena, InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(dy.count() == x.count() && dgate.count() == dy.batch * dy.channels);
  const auto& kernels = detail::backward_kernels(set);
  const std::int64_t c = dy.channels, positions = dy.height * dy.width;
  for (std::int64_t n = 0; n < dy.batch; ++n) {
    const float* from = dy.data + n * positions * c;
    const float* with = x.data + n * positions * c;
    float* to = dgate.data + n * c;
    detail::sum_over_positions(
        positions, c, 2, parallel, arena,
        [&](std::int64_t first, std::int64_t count, float* sums) {
          kernels.sum_gradients(from + first * c, with + first * c, count, c, c, c, nullptr, sums, sums + c);
        },
        [&](std::int64_t channel, int q, double sum) {
          if (q == 1) to[channel] = static_cast<float>(sum) + (accumulate == Accumulate::yes ? to[channel] : 0.0f);
        });
  }
}

/// dscale[c] += sum over all positions of dy x: the gradient of a learnt factor a channel.
inline void scale_gradient(TensorView<const float> dy, TensorView<const float> x, std::span<float> dscale, Parallel parallel, Arena& arena,
                           InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(static_cast<std::int64_t>(dscale.size()) == dy.channels);
  gate_gradient({dy.data, 1, dy.batch * dy.height, dy.width, dy.channels}, {x.data, 1, x.batch * x.height, x.width, x.channels},
                {dscale.data(), 1, 1, 1, dy.channels}, Accumulate::yes, parallel, arena, set);
}

/// dx (+)= channels [offset, offset + dx.channels) of dy: the gradient of one part of a concatenation.
inline void concat_gradient(TensorView<const float> dy, std::int64_t offset, TensorView<float> dx, Accumulate accumulate, Parallel parallel,
                            InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(offset + dx.channels <= dy.channels && dx.batch == dy.batch && dx.height == dy.height && dx.width == dy.width);
  const auto& kernels = detail::backward_kernels(set);
  parallel.run_ranges(dy.batch * dy.height * dy.width, 64, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) {
      const float* from = dy.data + i * dy.channels + offset;
      float* to = dx.data + i * dx.channels;
      if (accumulate == Accumulate::yes) {
        kernels.add_scaled(from, 1.0f, to, dx.channels);
      } else {
        std::memcpy(to, from, static_cast<std::size_t>(dx.channels) * sizeof(float));
      }
    }
  });
}

/// Channels [offset, offset + dy.channels) of dx (+)= dy, the others (+)= 0: the gradient of a slice.
inline void slice_gradient(TensorView<const float> dy, std::int64_t offset, TensorView<float> dx, Accumulate accumulate, Parallel parallel,
                           InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(offset + dy.channels <= dx.channels && dx.batch == dy.batch && dx.height == dy.height && dx.width == dy.width);
  const auto& kernels = detail::backward_kernels(set);
  parallel.run_ranges(dy.batch * dy.height * dy.width, 64, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) {
      float* to = dx.data + i * dx.channels;
      if (accumulate == Accumulate::no) std::memset(to, 0, static_cast<std::size_t>(dx.channels) * sizeof(float));
      kernels.add_scaled(dy.data + i * dy.channels, 1.0f, to + offset, dy.channels);
    }
  });
}

/// y [n, 1, 1, c h w] = x [n, h, w, c], channel by channel (PyTorch's order of a flattened map).
inline void flatten(TensorView<const float> x, TensorView<float> y, Parallel parallel) {
  NORMA_EXPECTS(x.count() == y.count() && x.batch == y.batch);
  const std::int64_t positions = x.height * x.width, c = x.channels;
  parallel.run_ranges(x.batch * c, 16, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) {
      const float* from = x.data + i / c * positions * c + i % c;
      for (std::int64_t p = 0; p < positions; ++p) y.data[i * positions + p] = from[p * c];
    }
  });
}
/// dx (+)= dy, back in the order of the map.
inline void flatten_gradient(TensorView<const float> dy, TensorView<float> dx, Accumulate accumulate, Parallel parallel) {
  NORMA_EXPECTS(dx.count() == dy.count() && dx.batch == dy.batch);
  const std::int64_t positions = dx.height * dx.width, c = dx.channels;
  parallel.run_ranges(dx.batch * c, 16, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) {
      float* to = dx.data + i / c * positions * c + i % c;
      for (std::int64_t p = 0; p < positions; ++p) {
        to[p * c] = dy.data[i * positions + p] + (accumulate == Accumulate::yes ? to[p * c] : 0.0f);
      }
    }
  });
}

namespace detail {

/// One task an image and 64 channels: what reaches one value is added in the order of dy's positions. body(image, channel, channels).
template <class Body>
void for_each_image_block(TensorView<float> dx, Accumulate accumulate, Parallel parallel, Body&& body) {
  constexpr std::int64_t kBlock = 64;
  const std::int64_t blocks = (dx.channels + kBlock - 1) / kBlock;
  parallel.run(dx.batch * blocks, [&](std::int64_t task, int) {
    const std::int64_t n = task / blocks, channel = task % blocks * kBlock, channels = std::min(kBlock, dx.channels - channel);
    if (accumulate == Accumulate::no) {
      float* to = dx.image(n).data + channel;
      for (std::int64_t i = 0; i < dx.height * dx.width; ++i) {
        std::memset(to + i * dx.channels, 0, static_cast<std::size_t>(channels) * sizeof(float));
      }
    }
    body(n, channel, channels);
  });
}

}  // namespace detail

/// Of `upsample_nearest`.
inline void upsample_nearest_gradient(TensorView<const float> dy, TensorView<float> dx, Accumulate accumulate, Parallel parallel,
                                      InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(dy.batch == dx.batch && dy.channels == dx.channels);
  const auto& kernels = detail::backward_kernels(set);
  const std::int64_t c = dy.channels;
  detail::for_each_image_block(dx, accumulate, parallel, [&](std::int64_t n, std::int64_t channel, std::int64_t channels) {
    for (std::int64_t oy = 0; oy < dy.height; ++oy) {
      const float* from = dy.image(n).data + oy * dy.width * c + channel;
      float* to = dx.image(n).data + oy * dx.height / dy.height * dx.width * c + channel;
      for (std::int64_t ox = 0; ox < dy.width; ++ox) kernels.add_scaled(from + ox * c, 1.0f, to + ox * dx.width / dy.width * c, channels);
    }
  });
}

/// Of `upsample_bilinear`.
inline void upsample_bilinear_gradient(TensorView<const float> dy, AlignCorners align, TensorView<float> dx, Accumulate accumulate,
                                       Parallel parallel, InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(dy.batch == dx.batch && dy.channels == dx.channels);
  const auto& kernels = detail::backward_kernels(set);
  const std::int64_t c = dy.channels;
  detail::for_each_image_block(dx, accumulate, parallel, [&](std::int64_t n, std::int64_t channel, std::int64_t channels) {
    for (std::int64_t oy = 0; oy < dy.height; ++oy) {
      const auto sy = detail::linear_source(oy, dy.height, dx.height, align);
      float* upper = dx.image(n).data + sy.low * dx.width * c + channel;
      float* lower = dx.image(n).data + sy.high * dx.width * c + channel;
      for (std::int64_t ox = 0; ox < dy.width; ++ox) {
        const auto sx = detail::linear_source(ox, dy.width, dx.width, align);
        const float* from = dy.image(n).data + (oy * dy.width + ox) * c + channel;
        kernels.add_scaled(from, (1.0f - sx.weight) * (1.0f - sy.weight), upper + sx.low * c, channels);
        kernels.add_scaled(from, sx.weight * (1.0f - sy.weight), upper + sx.high * c, channels);
        kernels.add_scaled(from, (1.0f - sx.weight) * sy.weight, lower + sx.low * c, channels);
        kernels.add_scaled(from, sx.weight * sy.weight, lower + sx.high * c, channels);
      }
    }
  });
}

}  // namespace norma::nn
