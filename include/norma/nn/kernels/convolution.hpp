/// \file
/// Convolution of channels-last feature maps with bias, residual and activation applied on the way out.
///
/// Algorithms, chosen from the shapes when the weights are packed:
///   pointwise   1x1, stride 1: the matrix product of all positions
///   depthwise   one channel a group: direct, vectors over channels, eight outputs of a line together
///   winograd    3x3, stride 1, enough channels and tiles: F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308), a quarter of the products;
///               rms error about 1e-6 of the output's rms; NaN or infinity reaches all outputs of the 4x4 tiles that read it
///   im2col      everything else: the windows of some rows of the output are gathered into scratch and multiplied; with small weights, where
///               a window's lines are pieces of the map, they are multiplied there without being gathered
/// Transposed convolution is cut into stride x stride ordinary ones, one for each phase of the output.
/// Bits do not depend on the number of workers.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <norma/linalg/gemm.hpp>

namespace norma::nn {

/// What a convolution reads outside its input.
enum class Border : std::uint8_t {
  zeros,
  mirror,  ///< the input mirrored without repeating its border; every pad must be smaller than the input
};

/// Cross-correlation as neural networks use it: y[o, i, j] = sum w[o, c, u, v] x[c, i stride + u dilation - pad_top, ...].
struct ConvolutionGeometry {
  int kernel_height = 1;
  int kernel_width = 1;
  int stride = 1;
  int dilation = 1;
  int pad_top = 0;
  int pad_left = 0;
  int pad_bottom = 0;
  int pad_right = 0;
  int groups = 1;
  Border border = Border::zeros;
  friend constexpr bool operator==(const ConvolutionGeometry&, const ConvolutionGeometry&) = default;
};

constexpr Shape convolution_output(Shape in, const ConvolutionGeometry& g, std::int64_t out_channels) noexcept {
  const std::int64_t window_height = std::int64_t{g.dilation} * (g.kernel_height - 1) + 1;
  const std::int64_t window_width = std::int64_t{g.dilation} * (g.kernel_width - 1) + 1;
  return {(in.height + g.pad_top + g.pad_bottom - window_height) / g.stride + 1,
          (in.width + g.pad_left + g.pad_right - window_width) / g.stride + 1, out_channels};
}

namespace detail {

/// 4x4 tiles that cover one image's output.
constexpr std::int64_t winograd_tiles(Shape out) noexcept { return (out.height + 3) / 4 * ((out.width + 3) / 4); }

}  // namespace detail

enum class ConvolutionAlgorithm : std::uint8_t { pointwise, depthwise, winograd, im2col };

constexpr ConvolutionAlgorithm convolution_algorithm(Shape in, std::int64_t out_channels, const ConvolutionGeometry& g) noexcept {
  const bool padded = g.pad_top != 0 || g.pad_left != 0 || g.pad_bottom != 0 || g.pad_right != 0;
  if (g.groups == 1 && g.kernel_height == 1 && g.kernel_width == 1 && g.stride == 1 && !padded) return ConvolutionAlgorithm::pointwise;
  if (g.groups > 1 && g.groups == in.channels && g.groups == out_channels && g.border == Border::zeros) return ConvolutionAlgorithm::depthwise;
  const bool square3 = g.kernel_height == 3 && g.kernel_width == 3 && g.stride == 1 && g.dilation == 1 && g.groups == 1;
  // With few tiles the transformed weights, four times the plain ones, cost more to read from memory than the saved products.
  const std::int64_t tiles = detail::winograd_tiles(convolution_output(in, g, out_channels));
  const bool small_weights = in.channels * out_channels <= 256 * 256;
  if (square3 && in.channels >= 16 && out_channels >= 16 && tiles >= (small_weights ? 4 : 8)) return ConvolutionAlgorithm::winograd;
  return ConvolutionAlgorithm::im2col;
}

namespace detail {

/// An activation that only limits its input, as most do in convolutional networks.
struct Limits {
  bool known;  // whether it is one; if not, the limits let everything pass
  float low, high;
};
constexpr Limits limits_of(Activation activation) noexcept {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  switch (activation) {
    case Activation::none: return {true, -kInfinity, kInfinity};
    case Activation::relu: return {true, 0.0f, kInfinity};
    case Activation::relu6: return {true, 0.0f, 6.0f};
    default: return {false, -kInfinity, kInfinity};
  }
}

/// Some output rows of a depthwise convolution.
struct DepthwiseRows {
  const float* x;  // one image, or its last lines: line i lies at i modulo `held`
  std::int64_t held;
  std::int64_t height, width, channels, out_width;
  std::int64_t top;   // input row of the first row's first tap, may be negative
  std::int64_t rows;  // of the output
  std::int64_t pad_left;
  int kernel_height, kernel_width, stride, dilation;
  const float* weights;   // [taps, channels]
  const float* bias;      // or null
  const float* residual;  // of the first row, or null
  float* y;               // of the first row
  Activation activation;
  Limits limits;  // of the activation
};

/// One register tile of a product with its epilogue; as many rows as the matrix product's tiles have at most.
struct ProductTile {
  const float* a;          // row r, segment s begins at a + r stride + s segment_stride
  std::int64_t stride;
  std::int64_t segments, length, segment_stride;
  const float* panel;      // [segments * length, panel width]
  std::int64_t columns;    // of the panel that exist, at least 1
  float* y;                // of the tile, [rows, y_stride]
  std::int64_t y_stride;
  const float* bias;       // of the panel's first column, or null
  const float* residual;   // beside y, or null
  std::int64_t residual_stride;
  Limits limits;
};

/// Where the outputs of one tile and one panel of output channels go.
struct WinogradOutput {
  float* y;
  const float* residual;  // beside y, or null
  const float* bias;      // of the panel's first channel, or null
  std::int64_t line_stride, position_stride;
  std::int64_t height, width;  // of the tile, cut at the map's border
  std::int64_t channels;
  Activation activation;
};

/// Where the 3x3 weights of one panel of output channels and one input channel lie, and where their transforms go.
struct WinogradWeights {
  const float* w;
  std::int64_t out_stride, tap_stride;
  std::int64_t channels;  // of the panel
  float* to;              // [36, point_stride], the panel's channels side by side
  std::int64_t point_stride;
};

struct ConvolutionKernels {
  void (*product_tile)(const ProductTile& tile);
  void (*winograd_weights)(const WinogradWeights& weights);
  void (*depthwise_rows)(const DepthwiseRows& rows);
  void (*winograd_input_tile)(const float* const* from, std::int64_t channels, float* to, std::int64_t point_stride);
  void (*winograd_output_tile)(const WinogradOutput& out, const float* m, std::int64_t point_stride);
};

}  // namespace detail
}  // namespace norma::nn

#define NORMA_SIMD_FILE <norma/nn/kernels/detail/convolution_kernels.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE

namespace norma::nn {
namespace detail {

inline const ConvolutionKernels& convolution_kernels(InstructionSet set) noexcept { return NORMA_SIMD_SELECT(set, kConvolutionKernels); }

/// Rows of windows that a task gathers at a time: a few hundred KiB; multiples of the tile heights 6 and 14.
constexpr std::int64_t gathered_rows(std::int64_t k) noexcept { return k <= 1024 ? 84 : k <= 4096 ? 42 : 28; }
/// The same, evened out so that every worker has as many tasks.
constexpr std::int64_t gathered_rows(std::int64_t k, std::int64_t rows, int workers) noexcept {
  const std::int64_t most = gathered_rows(k);
  if (workers <= 1 || rows <= 1) return most;
  const std::int64_t tasks = linalg::detail::round_up((rows + most - 1) / most, workers);
  return (rows + tasks - 1) / tasks;
}

/// Tiles that are transformed together: their 36 x channels values stay in the second-level cache while the panels of the weights walk
/// past.
constexpr std::int64_t winograd_block(std::int64_t channels) noexcept {
  const std::int64_t tiles = 512 * 1024 / (36 * 4 * linalg::detail::scratch_stride(channels));
  return tiles < 16 ? 16 : tiles > 56 ? 56 : tiles;
}

}  // namespace detail

/// Where weight (group, o, i, tap) of a convolution lies: data[group * group_stride + o * out_stride + i * in_stride + tap * tap_stride], o and
/// i counted within the group.
struct WeightOrder {
  const float* data;
  std::int64_t group_stride, out_stride, in_stride, tap_stride;
};

/// Weights in the order of the algorithm that runs them. Made once, read by any number of calls.
class PackedConvolution {
 public:
  PackedConvolution() noexcept = default;
  /// `oihw` is [out_channels, in.channels / groups, kernel_height, kernel_width] as weight files have it; `in` is the input that it will
  /// run on. Preconditions: sizes agree, groups divides both channel counts. Allocates. `set` is for tests.
  static PackedConvolution pack(std::span<const float> oihw, Shape in, std::int64_t out_channels, const ConvolutionGeometry& geometry,
                                InstructionSet set = instruction_set()) {
    PackedConvolution packed = shaped(in, out_channels, geometry, set);
    const std::int64_t taps = packed.taps(), fan_in = packed.in_group() * taps;
    NORMA_EXPECTS(static_cast<std::int64_t>(oihw.size()) == out_channels * fan_in);
    Buffer<float> scratch(packed.repack_scratch());
    packed.repack({oihw.data(), packed.out_group() * fan_in, fan_in, taps, 1}, scratch.data());
    return packed;
  }
  /// Memory for weights that `repack` will bring.
  static PackedConvolution shaped(Shape in, std::int64_t out_channels, const ConvolutionGeometry& geometry,
                                  InstructionSet set = instruction_set()) {
    PackedConvolution packed;
    packed.in_ = in;
    packed.out_channels_ = out_channels;
    packed.geometry_ = geometry;
    packed.set_ = set;
    packed.algorithm_ = convolution_algorithm(in, out_channels, geometry);
    NORMA_EXPECTS(packed.in_group() * geometry.groups == in.channels && packed.out_group() * geometry.groups == out_channels);
    if (packed.algorithm_ == ConvolutionAlgorithm::depthwise) {
      packed.depthwise_ = Buffer<float>(packed.taps() * out_channels);
    } else if (packed.algorithm_ == ConvolutionAlgorithm::winograd) {
      const std::int64_t panel = linalg::detail::gemm_kernels(set).panel;
      packed.winograd_ = Buffer<float>(linalg::detail::round_up(out_channels, panel) * 36 * in.channels);
    } else {
      const Matrix<float> nothing(packed.out_group(), packed.taps() * packed.in_group());
      packed.products_.reserve(static_cast<std::size_t>(geometry.groups));
      for (int group = 0; group < geometry.groups; ++group) packed.products_.push_back(linalg::PackedMatrix::pack(nothing.view(), set));
    }
    return packed;
  }
  /// Floats of scratch that `repack` needs.
  [[nodiscard]] std::int64_t repack_scratch() const noexcept { return products_.empty() ? 0 : out_group() * taps() * in_group(); }
  /// Other numbers of the same shape, without allocation: weights after a training step.
  void repack(const WeightOrder& weights, float* scratch) noexcept {
    const std::int64_t taps = this->taps(), in_group = this->in_group(), out_group = this->out_group();
    if (algorithm_ == ConvolutionAlgorithm::depthwise) {
      for (std::int64_t c = 0; c < out_channels_; ++c) {
        const float* from = weights.data + c * weights.group_stride;
        for (std::int64_t tap = 0; tap < taps; ++tap) depthwise_[tap * out_channels_ + c] = from[tap * weights.tap_stride];
      }
      return;
    }
    if (algorithm_ == ConvolutionAlgorithm::winograd) {
      const std::int64_t panel = linalg::detail::gemm_kernels(set_).panel;
      const auto& kernels = detail::convolution_kernels(set_);
      for (std::int64_t first = 0; first < out_channels_; first += panel) {
        for (std::int64_t i = 0; i < in_.channels; ++i) {
          kernels.winograd_weights({weights.data + first * weights.out_stride + i * weights.in_stride, weights.out_stride, weights.tap_stride,
                                    std::min(panel, out_channels_ - first), winograd_.data() + first * 36 * in_.channels + i * panel,
                                    in_.channels * panel});
        }
      }
      return;
    }
    if (taps == 1 && (weights.in_stride == 1 || weights.out_stride == 1)) {  // a matrix, or its transpose, as it is
      for (std::int64_t group = 0; group < geometry_.groups; ++group) {
        linalg::PackedMatrix& product = products_[static_cast<std::size_t>(group)];
        const float* from = weights.data + group * weights.group_stride;
        if (weights.in_stride == 1) {
          product.repack({from, out_group, in_group, weights.out_stride});
        } else {
          product.repack_transposed({from, in_group, out_group, weights.in_stride});
        }
      }
      return;
    }
    // [out, taps, in]: the order in which a window lies in a channels-last map.
    for (std::int64_t group = 0; group < geometry_.groups; ++group) {
      for (std::int64_t o = 0; o < out_group; ++o) {
        const float* from = weights.data + group * weights.group_stride + o * weights.out_stride;
        for (std::int64_t tap = 0; tap < taps; ++tap) {
          float* to = scratch + (o * taps + tap) * in_group;
          for (std::int64_t i = 0; i < in_group; ++i) to[i] = from[i * weights.in_stride + tap * weights.tap_stride];
        }
      }
      products_[static_cast<std::size_t>(group)].repack({scratch, out_group, taps * in_group});
    }
  }

  [[nodiscard]] const ConvolutionGeometry& geometry() const noexcept { return geometry_; }
  [[nodiscard]] ConvolutionAlgorithm algorithm() const noexcept { return algorithm_; }
  [[nodiscard]] Shape input() const noexcept { return in_; }
  [[nodiscard]] Shape output() const noexcept { return convolution_output(in_, geometry_, out_channels_); }
  [[nodiscard]] std::int64_t out_channels() const noexcept { return out_channels_; }
  [[nodiscard]] InstructionSet instructions() const noexcept { return set_; }
  [[nodiscard]] bool empty() const noexcept { return out_channels_ == 0; }
  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t total = static_cast<std::size_t>(depthwise_.size() + winograd_.size()) * sizeof(float);
    for (const auto& product : products_) total += product.bytes();
    return total;
  }
  /// The packed weights of one group (pointwise, im2col).
  [[nodiscard]] const linalg::PackedMatrix& product(std::int64_t group) const noexcept {
    return products_[static_cast<std::size_t>(group)];
  }
  /// [taps, channels] (depthwise).
  [[nodiscard]] const float* depthwise() const noexcept { return depthwise_.data(); }
  /// [panels, 36, in channels, panel] (winograd).
  [[nodiscard]] const float* winograd() const noexcept { return winograd_.data(); }

 private:
  [[nodiscard]] std::int64_t taps() const noexcept { return std::int64_t{geometry_.kernel_height} * geometry_.kernel_width; }
  [[nodiscard]] std::int64_t in_group() const noexcept { return in_.channels / geometry_.groups; }
  [[nodiscard]] std::int64_t out_group() const noexcept { return out_channels_ / geometry_.groups; }

  Shape in_;
  std::int64_t out_channels_ = 0;
  ConvolutionGeometry geometry_;
  ConvolutionAlgorithm algorithm_ = ConvolutionAlgorithm::im2col;
  InstructionSet set_ = InstructionSet::generic;
  std::vector<linalg::PackedMatrix> products_;
  Buffer<float> depthwise_;
  Buffer<float> winograd_;
};

namespace detail {

/// One worker's memory for Winograd's algorithm.
struct WinogradScratch {
  constexpr explicit WinogradScratch(std::int64_t channels) noexcept
      : tiles(winograd_block(channels)),
        stride(linalg::detail::scratch_stride(channels)),
        input(36 * tiles * stride),
        products(36 * tiles * linalg::detail::kMaxPanel) {}
  std::int64_t tiles;     // of a block
  std::int64_t stride;    // between the rows of a transformed tile
  std::int64_t input;     // [36, tiles, stride]
  std::int64_t products;  // [36, tiles, panel]
  [[nodiscard]] constexpr std::int64_t floats() const noexcept { return input + products + stride; }  // and a row of zeros
  [[nodiscard]] constexpr std::size_t bytes() const noexcept { return arena_bytes<float>(floats()); }
};

}  // namespace detail

/// Scratch of `convolution` for any batch; `in` as it was when the weights were packed.
constexpr std::size_t convolution_scratch_bytes(Shape in, std::int64_t out_channels, const ConvolutionGeometry& g, int workers) noexcept {
  switch (convolution_algorithm(in, out_channels, g)) {
    case ConvolutionAlgorithm::pointwise:
    case ConvolutionAlgorithm::depthwise: return 0;
    case ConvolutionAlgorithm::winograd: return static_cast<std::size_t>(workers) * detail::WinogradScratch(in.channels).bytes();
    case ConvolutionAlgorithm::im2col: break;
  }
  const std::int64_t k = in.channels / g.groups * g.kernel_height * g.kernel_width;
  return static_cast<std::size_t>(workers) * arena_bytes<float>(detail::gathered_rows(k) * linalg::detail::scratch_stride(k));
}

namespace detail {

/// The position that a mirror shows at `i`; positions further out than the input is long stay outside.
constexpr std::int64_t mirrored(std::int64_t i, std::int64_t size) noexcept { return i < 0 ? -i : i >= size ? 2 * (size - 1) - i : i; }

/// How a product over all positions is cut into tasks: whole register tiles, as many tasks for every worker.
inline linalg::detail::Split split_positions(std::int64_t positions, const linalg::PackedMatrix& b, int workers) noexcept {
  const std::int64_t height = linalg::detail::gemm_kernels(b.instructions()).rows;
  auto split = linalg::detail::split_output(positions, b.panels(), b.panel() * b.k() * 4, height, workers);
  if (workers <= 1) return split;
  const std::int64_t tiles = (positions + height - 1) / height;
  std::int64_t each = (split.rows + height - 1) / height;
  const auto uneven = [&] { return (tiles + each - 1) / each % workers != 0; };
  if (each < tiles) {
    while (each > 1 && uneven()) --each;
  }
  split.rows = each * height;
  return split;
}

/// What a task of products writes: rows from y on, with what is added to them and their limits.
struct ProductOutput {
  float* y;  // [rows, stride]
  std::int64_t stride;
  const float* bias;      // of all columns, or null
  const float* residual;  // beside y, or null
  std::int64_t residual_stride;
  Activation activation;
};

/// y = activation(a b^T + bias + residual) for `rows` rows of a and the panels [first_panel, last_panel) of b. The bits of a row do not depend
/// on how many rows there are, nor on where the epilogue happens.
inline void multiply_positions(const PackedConvolution& weights, const linalg::PackedMatrix& b, linalg::detail::Rows a, std::int64_t rows,
                               std::int64_t first_panel, std::int64_t last_panel, const ProductOutput& out) {
  const auto& products = linalg::detail::gemm_kernels(b.instructions());
  const auto& kernels = convolution_kernels(weights.instructions());
  const Limits limits = limits_of(out.activation);
  // Whole register tiles finish in their registers. Rows a multiple of 4 KiB apart want lower tiles (see multiply_rows).
  const std::int64_t whole = limits.known && a.stride % 1024 != 0 ? rows / products.rows : 0;
  const std::int64_t width = products.panel;
  const std::int64_t block = std::max<std::int64_t>(1, linalg::detail::kPanelBlockBytes / (b.k() * width * 4));
  for (std::int64_t from = first_panel; whole > 0 && from < last_panel; from += block) {
    const std::int64_t to = std::min(from + block, last_panel);
    for (std::int64_t t = 0; t < whole; ++t) {
      const std::int64_t row = t * products.rows;
      for (std::int64_t p = from; p < to; ++p) {
        const std::int64_t col = p * width;
        kernels.product_tile({a.data + row * a.stride, a.stride, 1, b.k(), 0, b.data() + col * b.k(), std::min(width, b.n() - col),
                              out.y + row * out.stride + col, out.stride, out.bias == nullptr ? nullptr : out.bias + col,
                              out.residual == nullptr ? nullptr : out.residual + row * out.residual_stride + col, out.residual_stride,
                              limits});
      }
    }
  }
  const std::int64_t done = whole * products.rows;
  if (done == rows) return;
  const std::int64_t rest = rows - done;
  const linalg::Epilogue epilogue{
      out.bias, out.residual == nullptr ? MatrixView<const float>{} : MatrixView<const float>{out.residual, rows, b.n(), out.residual_stride},
      out.activation};
  const linalg::detail::StoreTile finish{products, {out.y, rows, b.n(), out.stride}, epilogue};
  linalg::detail::multiply_rows(products, {a.data + done * a.stride, a.stride}, done, rest, b.data(), b.n(), b.k(), first_panel, last_panel, 0,
                                finish);
}

/// Copies the windows of output positions [first, first + count) (counted over batch, height, width), channels [channel, channel +
/// channels), as rows [kernel_height, kernel_width, channels] to `to`.
inline void gather_windows(TensorView<const float> x, const ConvolutionGeometry& g, Shape out, std::int64_t channel, std::int64_t channels,
                           std::int64_t first, std::int64_t count, float* to, std::int64_t to_stride) {
  const auto bytes = static_cast<std::size_t>(channels) * sizeof(float);
  const std::int64_t line_stride = x.width * x.channels;
  // Outputs of a line whose window lies inside the map horizontally; a window's line is then one piece of memory.
  const bool pieces = g.dilation == 1 && channels == x.channels;
  const std::int64_t piece = g.kernel_width * channels;
  // Short pieces are copied in whole vectors: what comes too much is overwritten by the next piece or lies between the rows of `to`.
  constexpr std::int64_t kCopied = 16;
  const bool short_pieces = piece <= 2 * kCopied && to_stride >= g.kernel_height * piece + kCopied;
  const float* end = x.data + x.batch * x.height * line_stride;
  const std::int64_t first_inside = (g.pad_left + g.stride - 1) / g.stride;
  const std::int64_t last_inside = x.width < g.kernel_width - g.pad_left ? 0 : (x.width - g.kernel_width + g.pad_left) / g.stride + 1;
  for (std::int64_t i = 0; i < count;) {
    const std::int64_t ox = (first + i) % out.width;
    const std::int64_t image = (first + i) / out.positions();
    const std::int64_t top = (first + i) % out.positions() / out.width * g.stride - g.pad_top;
    const std::int64_t left = ox * g.stride - g.pad_left;
    float* row = to + i * to_stride;
    if (pieces && top >= 0 && top + g.kernel_height <= x.height && ox >= first_inside && ox < last_inside) {
      const std::int64_t run = std::min(count - i, last_inside - ox);
      const float* corner = x.data + (image * x.height + top) * line_stride + left * x.channels;
      for (std::int64_t r = 0; r < run; ++r) {
        const float* from = corner + r * g.stride * x.channels;
        float* window = row + r * to_stride;
        if (short_pieces && from + (g.kernel_height - 1) * line_stride + linalg::detail::round_up(piece, kCopied) <= end) {
          for (std::int64_t ky = 0; ky < g.kernel_height; ++ky) {
            for (std::int64_t j = 0; j < piece; j += kCopied) {
              std::memcpy(window + ky * piece + j, from + ky * line_stride + j, kCopied * sizeof(float));
            }
          }
          continue;
        }
        for (std::int64_t ky = 0; ky < g.kernel_height; ++ky) {
          std::memcpy(window + ky * piece, from + ky * line_stride, bytes * static_cast<std::size_t>(g.kernel_width));
        }
      }
      i += run;
      continue;
    }
    for (int ky = 0; ky < g.kernel_height; ++ky) {
      std::int64_t iy = top + std::int64_t{ky} * g.dilation;
      if (g.border == Border::mirror) iy = mirrored(iy, x.height);
      for (int kx = 0; kx < g.kernel_width; ++kx, row += channels) {
        std::int64_t ix = left + std::int64_t{kx} * g.dilation;
        if (g.border == Border::mirror) ix = mirrored(ix, x.width);
        if (iy >= 0 && iy < x.height && ix >= 0 && ix < x.width) {
          std::memcpy(row, x.data + ((image * x.height + iy) * x.width + ix) * x.channels + channel, bytes);
        } else {
          std::memset(row, 0, bytes);
        }
      }
    }
    ++i;
  }
}

/// Whether windows are multiplied where they lie in the map: their lines are pieces of memory, and the packed weights stay in the second-level
/// cache while the tiles of a line walk past them.
inline bool multiplies_in_place(const PackedConvolution& weights, std::int64_t out_width, Activation activation) noexcept {
  const ConvolutionGeometry& g = weights.geometry();
  const linalg::PackedMatrix& product = weights.product(0);
  const bool whole_tiles = out_width >= 2 * linalg::detail::gemm_kernels(product.instructions()).rows;
  return g.groups == 1 && g.dilation == 1 && whole_tiles && limits_of(activation).known &&
         product.n() * product.k() * 4 <= linalg::detail::kPanelBlockBytes;
}

/// Lines [first, last) of the output (counted over the batch). Tiles of positions whose windows reach over the map's border are gathered
/// into `scratch`, rows `stride` apart.
inline void convolve_lines(TensorView<const float> x, const PackedConvolution& weights, TensorView<float> y, const float* bias,
                           const float* residual, Activation activation, std::int64_t first, std::int64_t last, float* scratch,
                           std::int64_t stride) {
  const ConvolutionGeometry& g = weights.geometry();
  const linalg::PackedMatrix& product = weights.product(0);
  const auto& kernels = convolution_kernels(weights.instructions());
  const std::int64_t rows = linalg::detail::gemm_kernels(weights.instructions()).rows, panel = product.panel();
  const std::int64_t line_stride = x.width * x.channels;
  const Limits limits = limits_of(activation);
  for (std::int64_t line = first; line < last; ++line) {
    const std::int64_t top = line % y.height * g.stride - g.pad_top;
    const bool lines_inside = top >= 0 && top + g.kernel_height <= x.height;
    for (std::int64_t ox = 0; ox < y.width; ox += rows) {
      const std::int64_t count = std::min(rows, y.width - ox);
      const std::int64_t left = ox * g.stride - g.pad_left;
      const std::int64_t at = (line * y.width + ox) * y.channels;
      if (count < rows || !lines_inside || left < 0 || left + (rows - 1) * g.stride + g.kernel_width > x.width) {
        gather_windows(x, g, y.shape(), 0, x.channels, line * y.width + ox, count, scratch, stride);
        multiply_positions(weights, product, {scratch, stride}, count, 0, product.panels(),
                           {y.data + at, y.channels, bias, residual == nullptr ? nullptr : residual + at, y.channels, activation});
        continue;
      }
      const float* corner = x.image(line / y.height).data + top * line_stride + left * x.channels;
      for (std::int64_t col = 0; col < y.channels; col += panel) {
        kernels.product_tile({corner, g.stride * x.channels, g.kernel_height, g.kernel_width * x.channels, line_stride,
                              product.data() + col * product.k(), std::min(panel, y.channels - col), y.data + at + col, y.channels,
                              bias == nullptr ? nullptr : bias + col, residual == nullptr ? nullptr : residual + at + col, y.channels,
                              limits});
      }
    }
  }
}

/// The Winograd path. Blocks of tiles -> input transform -> for each panel of output channels: 36 products, output transform.
inline void convolve_winograd(TensorView<const float> x, const PackedConvolution& weights, TensorView<float> y, const float* bias,
                              const float* residual, Activation activation, Parallel parallel, Arena& arena) {
  const ConvolutionGeometry& g = weights.geometry();
  const auto& product = linalg::detail::gemm_kernels(weights.instructions());
  const auto& kernels = convolution_kernels(weights.instructions());
  const WinogradScratch size(x.channels);
  const std::int64_t panel = product.panel;
  const std::int64_t panels = (y.channels + panel - 1) / panel;
  const std::int64_t tiles_x = (y.width + 3) / 4;
  const std::int64_t tiles_image = (y.height + 3) / 4 * tiles_x;
  const std::int64_t tiles = y.batch * tiles_image;
  const Arena::Scope scope(arena);
  const std::int64_t piece = static_cast<std::int64_t>(size.bytes() / sizeof(float));
  float* scratch = arena.take<float>(piece * parallel.workers());

  // Blocks of nearly equal size, as many for every worker; with fewer blocks than workers the output channels are cut too, since reading
  // the large transformed weights twice costs more than transforming a few tiles twice. A tile's bits do not depend on its task.
  const std::int64_t workers = parallel.workers();
  const std::int64_t fewest = (tiles + size.tiles - 1) / size.tiles;
  const std::int64_t groups = std::clamp<std::int64_t>(workers / fewest, 1, panels);
  const std::int64_t blocks = linalg::detail::round_up(fewest, std::max<std::int64_t>(1, workers / groups));
  parallel.run(blocks * groups, [&](std::int64_t task, int worker) {
    const std::int64_t block = task / groups;
    const std::int64_t first_panel = panels * (task % groups) / groups;
    const std::int64_t last_panel = panels * (task % groups + 1) / groups;
    const std::int64_t first = tiles * block / blocks;
    const std::int64_t count = tiles * (block + 1) / blocks - first;
    if (count == 0) return;
    float* input = scratch + worker * piece;
    float* products = input + size.input;
    float* zeros = products + size.products;
    std::memset(zeros, 0, static_cast<std::size_t>(x.channels) * sizeof(float));

    for (std::int64_t t = 0; t < count; ++t) {
      const std::int64_t in_image = (first + t) % tiles_image;
      const float* image = x.image((first + t) / tiles_image).data;
      const std::int64_t top = in_image / tiles_x * 4 - g.pad_top;
      const std::int64_t left = in_image % tiles_x * 4 - g.pad_left;
      const float* from[36];
      for (std::int64_t i = 0; i < 6; ++i) {
        for (std::int64_t j = 0; j < 6; ++j) {
          // Where a tile reaches over the output's end it reads beyond the padding; nothing that is kept depends on that.
          const std::int64_t iy = g.border == Border::mirror ? mirrored(top + i, x.height) : top + i;
          const std::int64_t ix = g.border == Border::mirror ? mirrored(left + j, x.width) : left + j;
          const bool inside = iy >= 0 && iy < x.height && ix >= 0 && ix < x.width;
          from[i * 6 + j] = inside ? image + (iy * x.width + ix) * x.channels : zeros;
        }
      }
      kernels.winograd_input_tile(from, x.channels, input + t * size.stride, count * size.stride);
    }

    const std::int64_t heights = (count + product.rows - 1) / product.rows;
    for (std::int64_t p = first_panel; p < last_panel; ++p) {
      for (std::int64_t point = 0; point < 36; ++point) {
        const float* u = weights.winograd() + (p * 36 + point) * x.channels * panel;
        for (std::int64_t h = 0; h < heights; ++h) {
          const std::int64_t row = count * h / heights;
          const std::int64_t rows = count * (h + 1) / heights - row;
          product.tile[static_cast<std::size_t>(rows)](input + (point * count + row) * size.stride, size.stride, u, x.channels,
                                                       products + (point * count + row) * panel);
        }
      }
      for (std::int64_t t = 0; t < count; ++t) {
        const std::int64_t in_image = (first + t) % tiles_image;
        const std::int64_t oy = in_image / tiles_x * 4, ox = in_image % tiles_x * 4;
        const std::int64_t offset = (((first + t) / tiles_image * y.height + oy) * y.width + ox) * y.channels + p * panel;
        const WinogradOutput out{y.data + offset,
                                 residual == nullptr ? nullptr : residual + offset,
                                 bias == nullptr ? nullptr : bias + p * panel,
                                 y.width * y.channels,
                                 y.channels,
                                 std::min<std::int64_t>(4, y.height - oy),
                                 std::min<std::int64_t>(4, y.width - ox),
                                 std::min(panel, y.channels - p * panel),
                                 activation};
        kernels.winograd_output_tile(out, products + t * panel, count * panel);
      }
    }
  });
}

}  // namespace detail

/// y = activation(convolution(x) + bias + residual). x [n, h, w, c], y [n, oh, ow, out_channels]; bias [out_channels] or null; residual of
/// y's shape or empty (it may be y itself). y must not overlap x.
inline void convolution(TensorView<const float> x, const PackedConvolution& weights, TensorView<float> y, const float* bias,
                        TensorView<const float> residual, Activation activation, Parallel parallel, Arena& arena) {
  const ConvolutionGeometry& g = weights.geometry();
  const Shape out = convolution_output(x.shape(), g, weights.out_channels());
  NORMA_EXPECTS(x.channels == weights.input().channels && y.shape() == out && x.batch == y.batch);
  NORMA_EXPECTS(residual.data == nullptr || (residual.shape() == y.shape() && residual.batch == y.batch));
  const std::int64_t positions = y.batch * out.positions();
  const float* more = residual.data;
  if (positions == 0) return;

  if (weights.algorithm() == ConvolutionAlgorithm::pointwise) {
    const linalg::PackedMatrix& product = weights.product(0);
    const auto split = detail::split_positions(positions, product, parallel.workers());
    const std::int64_t row_tasks = (positions + split.rows - 1) / split.rows;
    const std::int64_t column_tasks = (product.panels() + split.panels - 1) / split.panels;
    parallel.run(row_tasks * column_tasks, [&](std::int64_t task, int) {
      const std::int64_t first = task / column_tasks * split.rows;
      const std::int64_t panel = task % column_tasks * split.panels;
      detail::multiply_positions(weights, product, {x.data + first * x.channels, x.channels}, std::min(split.rows, positions - first), panel,
                                 std::min(panel + split.panels, product.panels()),
                                 {y.data + first * y.channels, y.channels, bias, more == nullptr ? nullptr : more + first * y.channels,
                                  y.channels, activation});
    });
    return;
  }
  if (weights.algorithm() == ConvolutionAlgorithm::depthwise) {
    const auto& kernels = detail::convolution_kernels(weights.instructions());
    const detail::Limits limits = detail::limits_of(activation);
    const std::int64_t bands = (out.height + 3) / 4;
    parallel.run(y.batch * bands, [&](std::int64_t task, int) {
      const std::int64_t image = task / bands, oy = task % bands * 4;
      const std::int64_t offset = (image * out.height + oy) * out.width * out.channels;
      kernels.depthwise_rows({x.image(image).data, x.height, x.height, x.width, x.channels, out.width, oy * g.stride - g.pad_top,
                              std::min<std::int64_t>(4, out.height - oy), g.pad_left, g.kernel_height, g.kernel_width, g.stride, g.dilation,
                              weights.depthwise(), bias, more == nullptr ? nullptr : more + offset, y.data + offset, activation,
                              limits});
    });
    return;
  }
  if (weights.algorithm() == ConvolutionAlgorithm::winograd) {
    detail::convolve_winograd(x, weights, y, bias, more, activation, parallel, arena);
    return;
  }

  const std::int64_t k = weights.product(0).k();
  const std::int64_t in_group = x.channels / g.groups;
  const std::int64_t out_group = out.channels / g.groups;
  const std::int64_t stride = linalg::detail::scratch_stride(k);
  const std::int64_t grain = detail::gathered_rows(k, positions, parallel.workers());
  const Arena::Scope scope(arena);
  const auto piece = static_cast<std::int64_t>(arena_bytes<float>(detail::gathered_rows(k) * stride) / sizeof(float));
  float* scratch = arena.take<float>(piece * parallel.workers());
  if (detail::multiplies_in_place(weights, out.width, activation)) {
    parallel.run_ranges(y.batch * y.height, 4, [&](std::int64_t first, std::int64_t last, int worker) {
      detail::convolve_lines(x, weights, y, bias, more, activation, first, last, scratch + worker * piece, stride);
    });
    return;
  }
  for (std::int64_t group = 0; group < g.groups; ++group) {
    const auto& product = weights.product(group);
    parallel.run_ranges(positions, grain, [&](std::int64_t first, std::int64_t last, int worker) {
      float* rows = scratch + worker * piece;
      detail::gather_windows(x, g, out, group * in_group, in_group, first, last - first, rows, stride);
      const std::int64_t at = first * out.channels + group * out_group;
      detail::multiply_positions(weights, product, {rows, stride}, last - first, 0, product.panels(),
                                 {y.data + at, out.channels, bias == nullptr ? nullptr : bias + group * out_group,
                                  more == nullptr ? nullptr : more + at, out.channels, activation});
    });
  }
}

/// Output of a transposed convolution: kernel and stride as its forward twin has them, pads cut from its result. What PyTorch calls
/// `output_padding` is subtracted from pad_bottom and pad_right (which may become negative).
constexpr Shape transposed_convolution_output(Shape in, const ConvolutionGeometry& g, std::int64_t out_channels) noexcept {
  return {(in.height - 1) * g.stride + g.kernel_height - g.pad_top - g.pad_bottom,
          (in.width - 1) * g.stride + g.kernel_width - g.pad_left - g.pad_right, out_channels};
}

namespace detail {

/// One axis of one phase: outputs first, first + stride, ... see taps first_tap, first_tap + stride, ... of the kernel, and output number i
/// sees with tap number j the input at i + shift - j.
struct TransposedPhase {
  std::int64_t first_tap, taps, shift;
};
constexpr TransposedPhase transposed_phase(std::int64_t first, int kernel, int stride, int pad) noexcept {
  // output o = input * stride + tap - pad, so tap = first + pad modulo stride
  const std::int64_t tap = (first + pad) % stride;
  return {tap, (kernel - tap + stride - 1) / stride, (first + pad - tap) / stride};
}
constexpr std::int64_t transposed_terms(std::int64_t channels, const ConvolutionGeometry& g) noexcept {
  return channels * ((g.kernel_height + g.stride - 1) / g.stride) * ((g.kernel_width + g.stride - 1) / g.stride);
}

}  // namespace detail

/// Weights of a transposed convolution. Preconditions: one group, dilation 1, kernel >= stride, pads at the top and left >= 0.
class PackedTransposedConvolution {
 public:
  PackedTransposedConvolution() noexcept = default;
  /// `iohw` is [in.channels, out_channels, kernel_height, kernel_width], as weight files have it. Allocates. `set` is for tests.
  static PackedTransposedConvolution pack(std::span<const float> iohw, Shape in, std::int64_t out_channels,
                                          const ConvolutionGeometry& geometry, InstructionSet set = instruction_set()) {
    PackedTransposedConvolution packed = shaped(in, out_channels, geometry, set);
    Buffer<float> scratch(packed.repack_scratch());
    packed.repack(iohw, scratch.data());
    return packed;
  }
  /// Memory for weights that `repack` will bring.
  static PackedTransposedConvolution shaped(Shape in, std::int64_t out_channels, const ConvolutionGeometry& geometry,
                                            InstructionSet set = instruction_set()) {
    const ConvolutionGeometry& g = geometry;
    NORMA_EXPECTS(g.groups == 1 && g.dilation == 1 && g.kernel_height >= g.stride && g.kernel_width >= g.stride && g.pad_top >= 0 &&
                  g.pad_left >= 0);
    PackedTransposedConvolution packed;
    packed.in_ = in;
    packed.out_channels_ = out_channels;
    packed.geometry_ = g;
    packed.set_ = set;
    for (int y = 0; y < g.stride; ++y) {
      for (int x = 0; x < g.stride; ++x) {
        const auto rows = detail::transposed_phase(y, g.kernel_height, g.stride, g.pad_top);
        const auto columns = detail::transposed_phase(x, g.kernel_width, g.stride, g.pad_left);
        const Matrix<float> nothing(out_channels, rows.taps * columns.taps * in.channels);
        packed.products_.push_back(linalg::PackedMatrix::pack(nothing.view(), set));
      }
    }
    return packed;
  }
  /// Floats of scratch that `repack` needs.
  [[nodiscard]] std::int64_t repack_scratch() const noexcept {
    return in_.channels * out_channels_ * geometry_.kernel_height * geometry_.kernel_width;
  }
  /// Other numbers of the same shape, without allocation: weights after a training step.
  void repack(std::span<const float> iohw, float* scratch) noexcept {
    const ConvolutionGeometry& g = geometry_;
    NORMA_EXPECTS(static_cast<std::int64_t>(iohw.size()) == repack_scratch());
    for (int y = 0; y < g.stride; ++y) {
      for (int x = 0; x < g.stride; ++x) {
        const auto rows = detail::transposed_phase(y, g.kernel_height, g.stride, g.pad_top);
        const auto columns = detail::transposed_phase(x, g.kernel_width, g.stride, g.pad_left);
        const MatrixView<float> product(scratch, out_channels_, rows.taps * columns.taps * in_.channels);
        for (std::int64_t i = 0; i < rows.taps; ++i) {
          for (std::int64_t j = 0; j < columns.taps; ++j) {
            const std::int64_t tap = (rows.first_tap + i * g.stride) * g.kernel_width + columns.first_tap + j * g.stride;
            for (std::int64_t c = 0; c < in_.channels; ++c) {
              for (std::int64_t o = 0; o < out_channels_; ++o) {
                product(o, (i * columns.taps + j) * in_.channels + c) =
                    iohw[static_cast<std::size_t>((c * out_channels_ + o) * g.kernel_height * g.kernel_width + tap)];
              }
            }
          }
        }
        products_[static_cast<std::size_t>(y * g.stride + x)].repack(product);
      }
    }
  }

  [[nodiscard]] const ConvolutionGeometry& geometry() const noexcept { return geometry_; }
  [[nodiscard]] Shape input() const noexcept { return in_; }
  [[nodiscard]] Shape output() const noexcept { return transposed_convolution_output(in_, geometry_, out_channels_); }
  [[nodiscard]] std::int64_t out_channels() const noexcept { return out_channels_; }
  [[nodiscard]] InstructionSet instructions() const noexcept { return set_; }
  [[nodiscard]] bool empty() const noexcept { return out_channels_ == 0; }
  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t total = 0;
    for (const auto& product : products_) total += product.bytes();
    return total;
  }
  /// Weights of the outputs at (y, x) modulo the stride: [out_channels, row taps, column taps, in channels].
  [[nodiscard]] const linalg::PackedMatrix& product(std::int64_t y, std::int64_t x) const noexcept {
    return products_[static_cast<std::size_t>(y * geometry_.stride + x)];
  }

 private:
  Shape in_;
  std::int64_t out_channels_ = 0;
  ConvolutionGeometry geometry_;
  InstructionSet set_ = InstructionSet::generic;
  std::vector<linalg::PackedMatrix> products_;
};

/// Scratch of `convolution_transposed` for any batch.
constexpr std::size_t convolution_transposed_scratch_bytes(Shape in, std::int64_t /*out_channels*/, const ConvolutionGeometry& g,
                                                           int workers) noexcept {
  const std::int64_t k = detail::transposed_terms(in.channels, g);
  return static_cast<std::size_t>(workers) * arena_bytes<float>(detail::gathered_rows(k) * linalg::detail::scratch_stride(k));
}

/// y = activation(transposed convolution(x) + bias + residual): y[o, i stride + u - pad_top, ...] += w[c, o, u, v] x[c, i, ...].
/// x [n, h, w, c], y [n, oh, ow, out_channels]; bias [out_channels] or null; residual of y's shape or empty (it may be y itself).
inline void convolution_transposed(TensorView<const float> x, const PackedTransposedConvolution& weights, TensorView<float> y,
                                   const float* bias, TensorView<const float> residual, Activation activation, Parallel parallel,
                                   Arena& arena) {
  const ConvolutionGeometry& g = weights.geometry();
  NORMA_EXPECTS(x.channels == weights.input().channels && x.batch == y.batch);
  NORMA_EXPECTS(y.shape() == transposed_convolution_output(x.shape(), g, weights.out_channels()));
  NORMA_EXPECTS(residual.data == nullptr || (residual.shape() == y.shape() && residual.batch == y.batch));
  const auto& kernels = linalg::detail::gemm_kernels(weights.instructions());
  const std::int64_t most = detail::transposed_terms(x.channels, g);
  const auto piece =
      static_cast<std::int64_t>(arena_bytes<float>(detail::gathered_rows(most) * linalg::detail::scratch_stride(most)) / sizeof(float));
  const Arena::Scope scope(arena);
  float* scratch = arena.take<float>(piece * parallel.workers());
  const auto bytes = static_cast<std::size_t>(x.channels) * sizeof(float);

  for (std::int64_t phase_y = 0; phase_y < std::min<std::int64_t>(g.stride, y.height); ++phase_y) {
    for (std::int64_t phase_x = 0; phase_x < std::min<std::int64_t>(g.stride, y.width); ++phase_x) {
      const auto& product = weights.product(phase_y, phase_x);
      const auto rows = detail::transposed_phase(phase_y, g.kernel_height, g.stride, g.pad_top);
      const auto columns = detail::transposed_phase(phase_x, g.kernel_width, g.stride, g.pad_left);
      const std::int64_t height = (y.height - phase_y + g.stride - 1) / g.stride;  // of the phase's outputs
      const std::int64_t width = (y.width - phase_x + g.stride - 1) / g.stride;
      const std::int64_t stride = linalg::detail::scratch_stride(product.k());
      // Outputs of a phase lie `stride` positions apart within a line: a tile is stored in pieces of lines.
      const auto finish = [&](std::int64_t row, std::int64_t count, std::int64_t col, std::int64_t cols, const float* tile,
                              std::int64_t tile_stride, int) {
        for (std::int64_t done = 0; done < count;) {
          const std::int64_t i = row + done;
          const std::int64_t run = std::min(count - done, width - i % width);
          const std::int64_t line = i / width % height * g.stride + phase_y;
          const std::int64_t at = ((i / (width * height) * y.height + line) * y.width + i % width * g.stride + phase_x) * y.channels + col;
          kernels.finish(tile + done * tile_stride, tile_stride, run, cols, y.data + at, g.stride * y.channels,
                         bias == nullptr ? nullptr : bias + col, residual.data == nullptr ? nullptr : residual.data + at,
                         g.stride * y.channels, activation);
          done += run;
        }
      };
      const std::int64_t positions = y.batch * height * width;
      const std::int64_t grain = detail::gathered_rows(most, positions, parallel.workers());
      parallel.run_ranges(positions, grain, [&](std::int64_t first, std::int64_t last, int worker) {
        float* block = scratch + worker * piece;
        for (std::int64_t i = first; i < last; ++i) {
          float* to = block + (i - first) * stride;
          const float* image = x.image(i / (width * height)).data;
          for (std::int64_t u = 0; u < rows.taps; ++u) {
            const std::int64_t iy = i / width % height + rows.shift - u;
            for (std::int64_t v = 0; v < columns.taps; ++v, to += x.channels) {
              const std::int64_t ix = i % width + columns.shift - v;
              if (iy >= 0 && iy < x.height && ix >= 0 && ix < x.width) {
                std::memcpy(to, image + (iy * x.width + ix) * x.channels, bytes);
              } else {
                std::memset(to, 0, bytes);
              }
            }
          }
        }
        linalg::detail::multiply_rows(kernels, {block, stride}, first, last - first, product.data(), product.n(), product.k(), 0,
                                      product.panels(), worker, finish);
      });
    }
  }
}

}  // namespace norma::nn
