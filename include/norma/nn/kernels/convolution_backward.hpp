/// \file
/// Gradients of convolution, transposed convolution and linear layers, channels last.
///
/// Input gradient, algorithm chosen from the shapes:
///   flipped     stride 1: the convolution of dy with the mirrored weights, inputs and outputs exchanged (so 3x3 runs as Winograd)
///   transposed  strides up to the kernel, one group: the transposed convolution of dy
///   depthwise   one channel a group, any stride: direct
///   scatter     everything else: dy times the weights, added window by window
///   strided     of a transposed convolution: the convolution of dy with its own weights
/// Weight gradient:
///   winograd    where the convolution runs so: the adjoint of its algorithm, a quarter of the products; same accuracy
///   depthwise   direct
///   products    the windows of some positions are gathered and multiplied with dy
/// Accuracy:    sums of at most 1024 products in float, then their sums: |error| <= (1024 + pieces) 2^-24 of the products' absolute sum;
///              Winograd as its forward twin, relative to the gradient's rms.
/// Determinism: bit-equal for any number of workers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

#include <norma/nn/kernels/convolution.hpp>
#include <norma/nn/kernels/detail/backward_kernels.hpp>
#include <norma/nn/kernels/elementwise.hpp>

namespace norma::nn {

/// Which way a convolution goes.
enum class Direction : std::uint8_t {
  forward,
  transposed,  ///< enlarges; weights [I, O, kh, kw]
};

enum class InputGradientAlgorithm : std::uint8_t { flipped, transposed, depthwise, scatter, strided };

constexpr InputGradientAlgorithm input_gradient_algorithm(Shape in, std::int64_t out_channels, const ConvolutionGeometry& g,
                                                          Direction direction = Direction::forward) noexcept {
  if (direction == Direction::transposed) return InputGradientAlgorithm::strided;
  const int reach_y = g.dilation * (g.kernel_height - 1), reach_x = g.dilation * (g.kernel_width - 1);
  const bool small_pads = g.pad_top <= reach_y && g.pad_bottom <= reach_y && g.pad_left <= reach_x && g.pad_right <= reach_x;
  if (g.stride == 1 && small_pads) return InputGradientAlgorithm::flipped;
  if (g.groups > 1 && g.groups == in.channels && g.groups == out_channels) return InputGradientAlgorithm::depthwise;
  if (g.groups == 1 && g.dilation == 1 && g.kernel_height >= g.stride && g.kernel_width >= g.stride) {
    return InputGradientAlgorithm::transposed;
  }
  return InputGradientAlgorithm::scatter;
}

namespace detail {

/// The convolution whose result is the input gradient of a stride-1 convolution.
constexpr ConvolutionGeometry flipped_geometry(const ConvolutionGeometry& g) noexcept {
  const int reach_y = g.dilation * (g.kernel_height - 1), reach_x = g.dilation * (g.kernel_width - 1);
  return {g.kernel_height,        g.kernel_width,        1,       g.dilation, reach_y - g.pad_top, reach_x - g.pad_left,
          reach_y - g.pad_bottom, reach_x - g.pad_right, g.groups};
}
/// The transposed convolution whose result is the input gradient: it also fills what no window reached.
constexpr ConvolutionGeometry transposed_geometry(Shape in, const ConvolutionGeometry& g) noexcept {
  const Shape out = convolution_output(in, g, 1);
  ConvolutionGeometry t = g;
  t.pad_bottom = static_cast<int>((out.height - 1) * g.stride + g.kernel_height - g.pad_top - in.height);
  t.pad_right = static_cast<int>((out.width - 1) * g.stride + g.kernel_width - g.pad_left - in.width);
  return t;
}
inline constexpr std::int64_t kScatteredRows = 56;

}  // namespace detail

/// Scratch of `convolution_input_gradient` for any batch. `in` and `out_channels` are those of the forward convolution.
constexpr std::size_t convolution_input_gradient_scratch_bytes(Shape in, std::int64_t out_channels, const ConvolutionGeometry& g,
                                                               Direction direction, int workers) noexcept {
  switch (input_gradient_algorithm(in, out_channels, g, direction)) {
    case InputGradientAlgorithm::flipped: {
      const Shape out = convolution_output(in, g, out_channels);
      return convolution_scratch_bytes(out, in.channels, detail::flipped_geometry(g), workers);
    }
    case InputGradientAlgorithm::transposed: {
      const Shape out = convolution_output(in, g, out_channels);
      return convolution_transposed_scratch_bytes(out, in.channels, detail::transposed_geometry(in, g), workers);
    }
    case InputGradientAlgorithm::depthwise: return 0;
    case InputGradientAlgorithm::strided:
      return convolution_scratch_bytes(transposed_convolution_output(in, g, out_channels), in.channels, g, workers);
    case InputGradientAlgorithm::scatter: break;
  }
  const std::int64_t k = in.channels / g.groups * g.kernel_height * g.kernel_width;
  return static_cast<std::size_t>(workers) * arena_bytes<float>(detail::kScatteredRows * linalg::detail::scratch_stride(k));
}

/// A convolution's weights in the order in which its input gradient reads them. Made once, repacked after every change of the weights.
class PackedInputGradient {
 public:
  PackedInputGradient() noexcept = default;
  /// Memory for weights that `repack` will bring; `in` and `out_channels` of the forward convolution. Allocates.
  static PackedInputGradient shaped(Shape in, std::int64_t out_channels, const ConvolutionGeometry& g, Direction direction,
                                    InstructionSet set = instruction_set()) {
    PackedInputGradient packed;
    packed.in_ = in;
    packed.out_ =
        direction == Direction::transposed ? transposed_convolution_output(in, g, out_channels) : convolution_output(in, g, out_channels);
    packed.geometry_ = g;
    packed.set_ = set;
    packed.algorithm_ = input_gradient_algorithm(in, out_channels, g, direction);
    const std::int64_t taps = packed.taps();
    switch (packed.algorithm_) {
      case InputGradientAlgorithm::flipped:
        packed.convolution_ = PackedConvolution::shaped(packed.out_, in.channels, detail::flipped_geometry(g), set);
        break;
      case InputGradientAlgorithm::transposed:
        packed.transposed_ = PackedTransposedConvolution::shaped(packed.out_, in.channels, detail::transposed_geometry(in, g), set);
        break;
      case InputGradientAlgorithm::depthwise: packed.depthwise_ = Buffer<float>(taps * in.channels); break;
      case InputGradientAlgorithm::strided: packed.convolution_ = PackedConvolution::shaped(packed.out_, in.channels, g, set); break;
      case InputGradientAlgorithm::scatter: {
        const Matrix<float> nothing(taps * (in.channels / g.groups), out_channels / g.groups);
        for (int group = 0; group < g.groups; ++group) packed.products_.push_back(linalg::PackedMatrix::pack(nothing.view(), set));
        break;
      }
    }
    return packed;
  }
  /// Floats of scratch that `repack` needs.
  [[nodiscard]] std::int64_t repack_scratch() const noexcept {
    if (algorithm_ == InputGradientAlgorithm::transposed) return transposed_.repack_scratch();
    if (algorithm_ == InputGradientAlgorithm::scatter) return products_.front().n() * products_.front().k();
    return convolution_.repack_scratch();
  }
  /// `weights` as the weight file and the forward convolution have them: [O, I / groups, kh, kw], transposed [I, O, kh, kw].
  void repack(std::span<const float> weights, float* scratch) noexcept {
    const std::int64_t taps = this->taps(), groups = geometry_.groups;
    const std::int64_t in_group = in_.channels / groups, out_group = out_.channels / groups;
    NORMA_EXPECTS(static_cast<std::int64_t>(weights.size()) == out_.channels * in_group * taps);
    const float* w = weights.data();
    switch (algorithm_) {
      case InputGradientAlgorithm::flipped:
        convolution_.repack({w + taps - 1, out_group * in_group * taps, taps, in_group * taps, -1}, scratch);
        break;
      case InputGradientAlgorithm::transposed: transposed_.repack(weights, scratch); break;
      case InputGradientAlgorithm::depthwise:
        for (std::int64_t c = 0; c < in_.channels; ++c) {
          for (std::int64_t tap = 0; tap < taps; ++tap) depthwise_[tap * in_.channels + c] = w[c * taps + tap];
        }
        break;
      case InputGradientAlgorithm::strided: convolution_.repack({w, 0, out_.channels * taps, taps, 1}, scratch); break;
      case InputGradientAlgorithm::scatter:
        for (std::int64_t group = 0; group < groups; ++group) {
          for (std::int64_t o = 0; o < out_group; ++o) {
            for (std::int64_t i = 0; i < in_group; ++i) {
              for (std::int64_t tap = 0; tap < taps; ++tap) {
                scratch[(tap * in_group + i) * out_group + o] = w[((group * out_group + o) * in_group + i) * taps + tap];
              }
            }
          }
          products_[static_cast<std::size_t>(group)].repack({scratch, taps * in_group, out_group});
        }
        break;
    }
  }

  [[nodiscard]] const ConvolutionGeometry& geometry() const noexcept { return geometry_; }
  [[nodiscard]] InputGradientAlgorithm algorithm() const noexcept { return algorithm_; }
  /// Of the forward convolution.
  [[nodiscard]] Shape input() const noexcept { return in_; }
  [[nodiscard]] Shape output() const noexcept { return out_; }
  [[nodiscard]] InstructionSet instructions() const noexcept { return set_; }
  [[nodiscard]] const PackedConvolution& convolution() const noexcept { return convolution_; }
  [[nodiscard]] const PackedTransposedConvolution& transposed() const noexcept { return transposed_; }
  /// [taps, channels]
  [[nodiscard]] const float* depthwise() const noexcept { return depthwise_.data(); }
  [[nodiscard]] const linalg::PackedMatrix& product(std::int64_t group) const noexcept {
    return products_[static_cast<std::size_t>(group)];
  }
  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t total = convolution_.bytes() + transposed_.bytes() + static_cast<std::size_t>(depthwise_.size()) * sizeof(float);
    for (const auto& product : products_) total += product.bytes();
    return total;
  }

 private:
  [[nodiscard]] std::int64_t taps() const noexcept { return std::int64_t{geometry_.kernel_height} * geometry_.kernel_width; }

  Shape in_, out_;
  ConvolutionGeometry geometry_;
  InputGradientAlgorithm algorithm_ = InputGradientAlgorithm::flipped;
  InstructionSet set_ = InstructionSet::generic;
  PackedConvolution convolution_;
  PackedTransposedConvolution transposed_;
  Buffer<float> depthwise_;
  std::vector<linalg::PackedMatrix> products_;
};

namespace detail {

/// dx[y, x] = sum over the windows that read it of w[tap] dy, channel by channel.
inline void depthwise_input_gradient(TensorView<const float> dy, const PackedInputGradient& weights, TensorView<float> dx,
                                     Accumulate accumulate, Parallel parallel) {
  const auto& kernels = backward_kernels(weights.instructions());
  const ConvolutionGeometry& g = weights.geometry();
  const std::int64_t channels = dx.channels;
  parallel.run_ranges(dx.batch * dx.height, 4, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t line = first; line < last; ++line) {
      const std::int64_t iy = line % dx.height;
      float* to = dx.data + line * dx.width * channels;
      if (accumulate == Accumulate::no) std::memset(to, 0, static_cast<std::size_t>(dx.width * channels) * sizeof(float));
      for (std::int64_t ky = 0; ky < g.kernel_height; ++ky) {
        const std::int64_t top = iy + g.pad_top - ky * g.dilation;
        if (top < 0 || top % g.stride != 0 || top / g.stride >= dy.height) continue;
        const float* row = dy.image(line / dx.height).data + top / g.stride * dy.width * channels;
        for (std::int64_t ix = 0; ix < dx.width; ++ix) {
          for (std::int64_t kx = 0; kx < g.kernel_width; ++kx) {
            const std::int64_t left = ix + g.pad_left - kx * g.dilation;
            if (left < 0 || left % g.stride != 0 || left / g.stride >= dy.width) continue;
            kernels.add_product(row + left / g.stride * channels, weights.depthwise() + (ky * g.kernel_width + kx) * channels,
                                to + ix * channels, channels);
          }
        }
      }
    }
  });
}

/// One task an image, so that windows are added in order.
inline void scatter_input_gradient(TensorView<const float> dy, const PackedInputGradient& weights, TensorView<float> dx,
                                   Accumulate accumulate, Parallel parallel, Arena& arena) {
  const auto& kernels = backward_kernels(weights.instructions());
  const ConvolutionGeometry& g = weights.geometry();
  const std::int64_t in_group = dx.channels / g.groups, out_group = dy.channels / g.groups;
  const std::int64_t k = in_group * g.kernel_height * g.kernel_width, stride = linalg::detail::scratch_stride(k);
  const auto piece = static_cast<std::int64_t>(arena_bytes<float>(kScatteredRows * stride) / sizeof(float));
  const Arena::Scope scope(arena);
  float* scratch = arena.take<float>(piece * parallel.workers());
  parallel.run(dx.batch, [&](std::int64_t n, int worker) {
    float* rows = scratch + worker * piece;
    const TensorView<float> to = dx.image(n);
    const std::int64_t positions = dy.height * dy.width;
    if (accumulate == Accumulate::no) std::memset(to.data, 0, static_cast<std::size_t>(to.count()) * sizeof(float));
    for (std::int64_t group = 0; group < g.groups; ++group) {
      for (std::int64_t first = 0; first < positions; first += kScatteredRows) {
        const std::int64_t count = std::min(kScatteredRows, positions - first);
        Arena none;
        linalg::gemm({dy.image(n).data + first * dy.channels + group * out_group, count, out_group, dy.channels}, weights.product(group),
                     {rows, count, k, stride}, {}, Parallel{}, none);
        for (std::int64_t i = 0; i < count; ++i) {
          const std::int64_t top = (first + i) / dy.width * g.stride - g.pad_top, left = (first + i) % dy.width * g.stride - g.pad_left;
          const float* from = rows + i * stride;
          for (std::int64_t ky = 0; ky < g.kernel_height; ++ky) {
            for (std::int64_t kx = 0; kx < g.kernel_width; ++kx, from += in_group) {
              const std::int64_t iy = top + ky * g.dilation, ix = left + kx * g.dilation;
              if (iy < 0 || iy >= dx.height || ix < 0 || ix >= dx.width) continue;
              kernels.add_scaled(from, 1.0f, to.data + (iy * dx.width + ix) * dx.channels + group * in_group, in_group);
            }
          }
        }
      }
    }
  });
}

}  // namespace detail

/// dx (+)= gradient of sum(dy * y) with respect to x. dy [n, oh, ow, O], dx [n, h, w, I]; dx must not overlap dy.
inline void convolution_input_gradient(TensorView<const float> dy, const PackedInputGradient& weights, TensorView<float> dx,
                                       Accumulate accumulate, Parallel parallel, Arena& arena) {
  NORMA_EXPECTS(dy.shape() == weights.output() && dx.shape() == weights.input() && dx.batch == dy.batch);
  const TensorView<const float> before = accumulate == Accumulate::yes ? TensorView<const float>(dx) : TensorView<const float>();
  switch (weights.algorithm()) {
    case InputGradientAlgorithm::flipped:
    case InputGradientAlgorithm::strided:
      convolution(dy, weights.convolution(), dx, nullptr, before, Activation::none, parallel, arena);
      break;
    case InputGradientAlgorithm::transposed:
      convolution_transposed(dy, weights.transposed(), dx, nullptr, before, Activation::none, parallel, arena);
      break;
    case InputGradientAlgorithm::depthwise: detail::depthwise_input_gradient(dy, weights, dx, accumulate, parallel); break;
    case InputGradientAlgorithm::scatter: detail::scatter_input_gradient(dy, weights, dx, accumulate, parallel, arena); break;
  }
}

namespace detail {

enum class WeightGradientAlgorithm : std::uint8_t { winograd, depthwise, products };

constexpr WeightGradientAlgorithm weight_gradient_algorithm(Shape in, std::int64_t out_channels, const ConvolutionGeometry& g) noexcept {
  switch (convolution_algorithm(in, out_channels, g)) {
    case ConvolutionAlgorithm::winograd: return WeightGradientAlgorithm::winograd;
    case ConvolutionAlgorithm::depthwise: return WeightGradientAlgorithm::depthwise;
    default: return WeightGradientAlgorithm::products;
  }
}

/// Positions whose windows are gathered together: 4 MiB of them. A multiple of the images' sizes would buy nothing.
constexpr std::int64_t gradient_rows(std::int64_t stride) noexcept {
  const std::int64_t rows = (std::int64_t{1} << 20) / stride;
  return rows < 64 ? 64 : rows > 1024 ? 1024 : rows;
}
/// Tiles that are transformed together: 4 MiB of them (1 to 8 MiB made no difference beyond the noise).
constexpr std::int64_t gradient_tiles(std::int64_t in_stride, std::int64_t out_stride) noexcept {
  const std::int64_t tiles = (std::int64_t{1} << 20) / (36 * (in_stride + out_stride));
  return tiles < 16 ? 16 : tiles > 512 ? 512 : tiles;
}
/// Distance between rows of products: whole panels.
constexpr std::int64_t product_stride(std::int64_t cols) noexcept { return linalg::detail::round_up(cols, linalg::detail::kMaxPanel); }

inline void winograd_weight_gradient(TensorView<const float> x, TensorView<const float> dy, const ConvolutionGeometry& g, float* dw,
                                     Parallel parallel, Arena& arena, InstructionSet set) {
  const auto& kernels = backward_kernels(set);
  const auto& forward = convolution_kernels(set);
  const std::int64_t in_stride = linalg::detail::scratch_stride(x.channels), out_stride = linalg::detail::scratch_stride(dy.channels);
  const std::int64_t block = gradient_tiles(in_stride, out_stride), sum_stride = product_stride(x.channels);
  const std::int64_t tiles_x = (dy.width + 3) / 4, tiles_image = winograd_tiles(dy.shape()), tiles = dy.batch * tiles_image;
  const Arena::Scope scope(arena);
  float* inputs = arena.take<float>(36 * block * in_stride);
  float* outputs = arena.take<float>(36 * block * out_stride);
  float* sums = arena.take<float>(36 * dy.channels * sum_stride);  // [36, O, I]
  float* zeros = arena.take<float>(std::max(in_stride, out_stride));
  std::memset(zeros, 0, static_cast<std::size_t>(std::max(in_stride, out_stride)) * sizeof(float));
  std::memset(sums, 0, static_cast<std::size_t>(36 * dy.channels * sum_stride) * sizeof(float));
  const std::int64_t panel = kernels.panel, panels = (x.channels + panel - 1) / panel;
  const std::int64_t heights = (dy.channels + kernels.rows - 1) / kernels.rows;

  for (std::int64_t first = 0; first < tiles; first += block) {
    const std::int64_t count = std::min(block, tiles - first);
    parallel.run_ranges(count, 8, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t t = begin; t < end; ++t) {
        const std::int64_t image = (first + t) / tiles_image, tile = (first + t) % tiles_image;
        const std::int64_t oy = tile / tiles_x * 4, ox = tile % tiles_x * 4;
        const float* from[36];
        for (std::int64_t i = 0; i < 6; ++i) {
          for (std::int64_t j = 0; j < 6; ++j) {
            const std::int64_t iy = oy + i - g.pad_top, ix = ox + j - g.pad_left;
            const bool inside = iy >= 0 && iy < x.height && ix >= 0 && ix < x.width;
            from[i * 6 + j] = inside ? x.image(image).data + (iy * x.width + ix) * x.channels : zeros;
          }
        }
        forward.winograd_input_tile(from, x.channels, inputs + t * in_stride, block * in_stride);
        for (std::int64_t i = 0; i < 4; ++i) {
          for (std::int64_t j = 0; j < 4; ++j) {
            const bool inside = oy + i < dy.height && ox + j < dy.width;
            from[i * 4 + j] = inside ? dy.image(image).data + ((oy + i) * dy.width + ox + j) * dy.channels : zeros;
          }
        }
        kernels.winograd_gradient_tile(from, dy.channels, outputs + t * out_stride, block * out_stride);
      }
    });
    // Points by panels of input channels: each task adds to sums of its own.
    parallel.run(36 * panels, [&](std::int64_t task, int) {
      const std::int64_t point = task / panels, col = task % panels * panel;
      const float* a = outputs + point * block * out_stride;
      const float* b = inputs + point * block * in_stride + col;
      float* c = sums + point * dy.channels * sum_stride + col;
      for (std::int64_t h = 0; h < heights; ++h) {
        const std::int64_t row = dy.channels * h / heights, rows = dy.channels * (h + 1) / heights - row;
        kernels.outer[static_cast<std::size_t>(rows)](a + row, out_stride, b, in_stride, count, c + row * sum_stride, sum_stride);
      }
    });
  }
  parallel.run_ranges(dy.channels, 8, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t o = begin; o < end; ++o) {
      kernels.winograd_weight_gradient(sums + o * sum_stride, dy.channels * sum_stride, x.channels, dw + o * x.channels * 9);
    }
  });
}

inline void depthwise_weight_gradient(TensorView<const float> x, TensorView<const float> dy, const ConvolutionGeometry& g, float* dw,
                                      Parallel parallel, Arena& arena, InstructionSet set) {
  constexpr std::int64_t kBlock = 32;  // channels of a task
  const auto& kernels = backward_kernels(set);
  const std::int64_t taps = std::int64_t{g.kernel_height} * g.kernel_width;
  const std::int64_t blocks = (x.channels + kBlock - 1) / kBlock;
  (void)arena;
  parallel.run(taps * blocks, [&](std::int64_t task, int) {
    const std::int64_t tap = task / blocks, channel = task % blocks * kBlock, channels = std::min(kBlock, x.channels - channel);
    const std::int64_t shift_y = tap / g.kernel_width * g.dilation - g.pad_top, shift_x = tap % g.kernel_width * g.dilation - g.pad_left;
    // Outputs of a line whose tap lies inside the map.
    const std::int64_t begin = shift_x >= 0 ? 0 : (-shift_x + g.stride - 1) / g.stride;
    const std::int64_t end = x.width <= shift_x ? 0 : std::min(dy.width, (x.width - 1 - shift_x) / g.stride + 1);
    double total[kBlock] = {};
    float unused[kBlock], sums[kBlock];
    for (std::int64_t line = 0; line < dy.batch * dy.height && begin < end; ++line) {
      const std::int64_t iy = line % dy.height * g.stride + shift_y;
      if (iy < 0 || iy >= x.height) continue;
      const float* from = x.image(line / dy.height).data + (iy * x.width + begin * g.stride + shift_x) * x.channels + channel;
      kernels.sum_gradients(dy.data + (line * dy.width + begin) * dy.channels + channel, from, end - begin, dy.channels,
                            g.stride * x.channels, channels, nullptr, unused, sums);
      for (std::int64_t c = 0; c < channels; ++c) total[c] += static_cast<double>(sums[c]);
    }
    for (std::int64_t c = 0; c < channels; ++c) dw[(channel + c) * taps + tap] += static_cast<float>(total[c]);
  });
}

/// Where the products (o, tap, i) of a group go: dw[o * out_stride + i * in_stride + tap * tap_stride].
struct GradientOrder {
  float* data;
  std::int64_t out_stride, in_stride, tap_stride;
};

/// One group: out_group channels of dy with the windows of in_group channels of x.
inline void product_weight_gradient(TensorView<const float> x, std::int64_t in_first, std::int64_t in_group, TensorView<const float> dy,
                                    std::int64_t out_first, std::int64_t out_group, const ConvolutionGeometry& g, const GradientOrder& dw,
                                    Parallel parallel, Arena& arena, InstructionSet set) {
  const auto& kernels = backward_kernels(set);
  const std::int64_t taps = std::int64_t{g.kernel_height} * g.kernel_width, k = taps * in_group;
  const std::int64_t stride = linalg::detail::scratch_stride(k), sum_stride = product_stride(k);
  const std::int64_t block = gradient_rows(stride), positions = dy.batch * dy.height * dy.width;
  const bool in_place = taps == 1 && g.stride == 1 && g.pad_top == 0 && g.pad_left == 0 && g.pad_bottom == 0 && g.pad_right == 0 &&
                        in_group % linalg::detail::kMaxPanel == 0;  // the windows are the positions, and panels do not reach beyond them
  const Arena::Scope scope(arena);
  float* sums = arena.take<float>(out_group * sum_stride);
  float* rows = arena.take<float>(block * stride);
  std::memset(sums, 0, static_cast<std::size_t>(out_group * sum_stride) * sizeof(float));
  for (std::int64_t first = 0; first < positions; first += block) {
    const std::int64_t count = std::min(block, positions - first);
    const float* b = x.data + first * x.channels + in_first;
    if (!in_place) {
      b = rows;
      parallel.run_ranges(count, 32, [&](std::int64_t begin, std::int64_t end, int) {
        gather_windows(x, g, dy.shape(), in_first, in_group, first + begin, end - begin, rows + begin * stride, stride);
      });
    }
    outer_products(kernels, dy.data + first * dy.channels + out_first, dy.channels, out_group, b, in_place ? x.channels : stride, k, count,
                   sums, sum_stride, parallel);
  }
  parallel.run_ranges(out_group, 8, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t o = begin; o < end; ++o) {
      for (std::int64_t tap = 0; tap < taps; ++tap) {
        const float* from = sums + o * sum_stride + tap * in_group;
        float* to = dw.data + o * dw.out_stride + tap * dw.tap_stride;
        for (std::int64_t i = 0; i < in_group; ++i) to[i * dw.in_stride] += from[i];
      }
    }
  });
}

constexpr std::size_t product_weight_gradient_scratch_bytes(std::int64_t k, std::int64_t out_group) noexcept {
  const std::int64_t stride = linalg::detail::scratch_stride(k);
  return arena_bytes<float>(out_group * product_stride(k)) + arena_bytes<float>(gradient_rows(stride) * stride);
}

}  // namespace detail

/// Scratch of `convolution_weight_gradient` for any batch and any number of workers; `in` and `out_channels` of the forward convolution.
constexpr std::size_t convolution_weight_gradient_scratch_bytes(Shape in, std::int64_t out_channels, const ConvolutionGeometry& g,
                                                                Direction direction) noexcept {
  const std::int64_t taps = std::int64_t{g.kernel_height} * g.kernel_width;
  if (direction == Direction::transposed) return detail::product_weight_gradient_scratch_bytes(taps * out_channels, in.channels);
  switch (detail::weight_gradient_algorithm(in, out_channels, g)) {
    case detail::WeightGradientAlgorithm::depthwise: return 0;
    case detail::WeightGradientAlgorithm::products: break;
    case detail::WeightGradientAlgorithm::winograd: {
      const std::int64_t in_stride = linalg::detail::scratch_stride(in.channels);
      const std::int64_t out_stride = linalg::detail::scratch_stride(out_channels);
      const std::int64_t block = detail::gradient_tiles(in_stride, out_stride);
      return arena_bytes<float>(36 * block * in_stride) + arena_bytes<float>(36 * block * out_stride) +
             arena_bytes<float>(36 * out_channels * detail::product_stride(in.channels)) +
             arena_bytes<float>(in_stride > out_stride ? in_stride : out_stride);
    }
  }
  return detail::product_weight_gradient_scratch_bytes(taps * (in.channels / g.groups), out_channels / g.groups);
}

/// dw += gradient of sum(dy * y) with respect to the weights, in the order of the weight file: [O, I / groups, kh, kw], transposed
/// [I, O, kh, kw] (one group, dilation 1). x [n, h, w, I] is the layer's input, dy [n, oh, ow, O] the gradient of its output.
inline void convolution_weight_gradient(TensorView<const float> x, TensorView<const float> dy, const ConvolutionGeometry& g,
                                        Direction direction, std::span<float> dw, Parallel parallel, Arena& arena,
                                        InstructionSet set = instruction_set()) {
  const std::int64_t taps = std::int64_t{g.kernel_height} * g.kernel_width;
  const std::int64_t in_group = x.channels / g.groups, out_group = dy.channels / g.groups;
  NORMA_EXPECTS(x.batch == dy.batch && static_cast<std::int64_t>(dw.size()) == dy.channels * in_group * taps);
  if (direction == Direction::transposed) {
    // Windows of dy meet positions of x: the convolution whose input gradient the layer is.
    NORMA_EXPECTS(g.groups == 1 && dy.shape() == transposed_convolution_output(x.shape(), g, dy.channels));
    detail::product_weight_gradient(dy, 0, dy.channels, x, 0, x.channels, g, {dw.data(), dy.channels * taps, taps, 1}, parallel, arena,
                                    set);
    return;
  }
  NORMA_EXPECTS(dy.shape() == convolution_output(x.shape(), g, dy.channels));
  switch (detail::weight_gradient_algorithm(x.shape(), dy.channels, g)) {
    case detail::WeightGradientAlgorithm::winograd: detail::winograd_weight_gradient(x, dy, g, dw.data(), parallel, arena, set); break;
    case detail::WeightGradientAlgorithm::depthwise: detail::depthwise_weight_gradient(x, dy, g, dw.data(), parallel, arena, set); break;
    case detail::WeightGradientAlgorithm::products:
      for (std::int64_t group = 0; group < g.groups; ++group) {
        detail::product_weight_gradient(x, group * in_group, in_group, dy, group * out_group, out_group, g,
                                        {dw.data() + group * out_group * in_group * taps, in_group * taps, taps, 1}, parallel, arena, set);
      }
      break;
  }
}

/// Scratch of `bias_gradient`.
constexpr std::size_t bias_gradient_scratch_bytes(std::int64_t channels) noexcept { return detail::sums_scratch_bytes(channels, 1); }

/// db[c] += sum over all positions of dy.
inline void bias_gradient(TensorView<const float> dy, std::span<float> db, Parallel parallel, Arena& arena,
                          InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(static_cast<std::int64_t>(db.size()) == dy.channels);
  const auto& kernels = detail::elementwise_kernels(set);
  detail::sum_over_positions(
      dy.batch * dy.height * dy.width, dy.channels, 1, parallel, arena,
      [&](std::int64_t first, std::int64_t count, float* sums) {
        kernels.sum_positions(dy.data + first * dy.channels, count, dy.channels, dy.channels, nullptr, sums);
      },
      [&](std::int64_t c, int, double sum) { db[static_cast<std::size_t>(c)] += static_cast<float>(sum); });
}

/// Scratch of `linear_weight_gradient`; x [n, in], dy [n, out].
constexpr std::size_t linear_weight_gradient_scratch_bytes(std::int64_t in, std::int64_t out) noexcept {
  return detail::product_weight_gradient_scratch_bytes(in, out);
}
/// dw [out, in] += dy^T x.
inline void linear_weight_gradient(TensorView<const float> x, TensorView<const float> dy, std::span<float> dw, Parallel parallel,
                                   Arena& arena, InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(static_cast<std::int64_t>(dw.size()) == x.channels * dy.channels);
  detail::product_weight_gradient(x, 0, x.channels, dy, 0, dy.channels, {}, {dw.data(), x.channels, 1, 0}, parallel, arena, set);
}

}  // namespace norma::nn
