/// \file
/// Convolutions as products: rows are pixels of the result, the depth is (tap, channel), and a chunk of 16 bytes lies inside one tap. The sources
/// below are pieces of their own: give them to a TileProduct with another epilogue to fuse what follows. Bound by: the multipliers from about 64
/// channels on; below, by reading each pixel kernel^2 times through the caches. Reference: norma's host convolution.
#pragma once

#include <algorithm>
#include <string>
#include <string_view>

#include <norma/cuda/convolution.hpp>
#include <norma/cuda/matrix_product.cuh>

namespace norma::cuda {

/// n / divisor for n < 2^31 without a division: (high word of n * multiplier + n) >> shift (Granlund and Montgomery, PLDI 1994).
class Divisor {
 public:
  explicit Divisor(std::int64_t divisor) : divisor_(static_cast<unsigned>(divisor)) {
    while ((std::int64_t{1} << shift_) < divisor) ++shift_;
    multiplier_ = static_cast<unsigned>(((std::uint64_t{1} << 32) * ((std::uint64_t{1} << shift_) - divisor_)) / divisor_ + 1);
  }
  [[nodiscard]] NORMA_HD unsigned quotient(unsigned n) const { return (static_cast<unsigned>((std::uint64_t{n} * multiplier_) >> 32) + n) >> shift_; }
  [[nodiscard]] NORMA_HD unsigned remainder(unsigned n, unsigned quotient) const { return n - quotient * divisor_; }
  [[nodiscard]] NORMA_HD unsigned value() const { return divisor_; }

 private:
  unsigned divisor_, multiplier_ = 0;
  int shift_ = 0;
};

/// Where a convolution's taps fall: pixel (y, x) of a grid, whose tap (ky, kx) is pixel (y stride - padding + ky, ..) of the image. Made on the host,
/// copied to kernels.
struct ConvolutionGrid {
  int height, width;  // of the image
  int chunks;         // of a pixel
  int stride, padding;
  int pixels;                  // of the grid, all images
  Divisor per_image, per_row;  // of the grid
  Divisor channels, kernel;    // of the image

  ConvolutionGrid(std::int64_t batch, Shape image, std::int64_t grid_height, std::int64_t grid_width, std::int64_t kernel_, std::int64_t stride_,
                  std::int64_t padding_, std::int64_t chunk)
      : height(static_cast<int>(image.height)),
        width(static_cast<int>(image.width)),
        chunks(static_cast<int>(image.channels / chunk)),
        stride(static_cast<int>(stride_)),
        padding(static_cast<int>(padding_)),
        pixels(static_cast<int>(batch * grid_height * grid_width)),
        per_image(grid_height * grid_width),
        per_row(grid_width),
        channels(image.channels),
        kernel(kernel_) {}

  struct Pixel {
    int image, y, x;  // y and x of tap (0, 0), may be outside
  };
  [[nodiscard]] NORMA_HD Pixel pixel(unsigned p) const {
    const unsigned image = per_image.quotient(p), in_image = per_image.remainder(p, image);
    const unsigned y = per_row.quotient(in_image), x = per_row.remainder(in_image, y);
    return {static_cast<int>(image), static_cast<int>(y) * stride - padding, static_cast<int>(x) * stride - padding};
  }
  struct Tap {
    int y, x, channel;
  };
  /// Of a depth.
  [[nodiscard]] NORMA_HD Tap tap(unsigned k) const {
    const unsigned number = channels.quotient(k), y = kernel.quotient(number);
    return {static_cast<int>(y), static_cast<int>(kernel.remainder(number, y)), static_cast<int>(channels.remainder(k, number))};
  }
};

inline constexpr int kOutsideImage = -32000;  // no tap of it is inside

/// Rows are pixels of the grid from first_row on, depths (ky, kx, channel) from .. to: Contiguous::depth.
/// kUpsampled 2: the image stands with a pixel of zeros between any two, as for the input gradient of stride 2 (then the grid's stride is 1).
template <class T, int kUpsampled = 1>
class ConvolutionSource {
  static_assert(kUpsampled == 1 || kUpsampled == 2);

 public:
  using Element = T;
  NORMA_DEVICE ConvolutionSource(const T* data, const ConvolutionGrid& grid, std::int64_t first_row, std::int64_t from, std::int64_t to)
      : data_(data),
        grid_(grid),
        first_row_(static_cast<int>(first_row)),
        from_(static_cast<unsigned>(from)),
        depth_(static_cast<unsigned>(to - from)) {}

  struct Row {
    int origin;     // of tap (0, 0), in chunks from data
    unsigned taps;  // bit ky: the tap's y is inside, bit 16 + kx: its x is
  };
  [[nodiscard]] NORMA_DEVICE Row row(int tile_row) const {
    const int p = first_row_ + tile_row;
    if (p >= grid_.pixels) return {0, 0};
    const ConvolutionGrid::Pixel pixel = grid_.pixel(static_cast<unsigned>(p));
    // Halves are rounded down here and up for a tap: right where both are odd or both even, and the others are zeros.
    const int y = floor_half(pixel.y), x = floor_half(pixel.x);
    return {((pixel.image * grid_.height + y) * grid_.width + x) * grid_.chunks,
            inside_bits(pixel.y, grid_.height) | inside_bits(pixel.x, grid_.width) << 16};
  }
  [[nodiscard]] NORMA_DEVICE bool inside(Row row, std::int64_t k) const {
    const auto u = static_cast<unsigned>(k);
    const ConvolutionGrid::Tap tap = grid_.tap(from_ + u);
    return u < depth_ && (row.taps >> tap.y & row.taps >> (16 + tap.x) & 1u) != 0;
  }
  [[nodiscard]] NORMA_DEVICE const T* address(Row row, std::int64_t k) const {
    const ConvolutionGrid::Tap tap = grid_.tap(from_ + static_cast<unsigned>(k));
    const int y = (tap.y + kUpsampled - 1) / kUpsampled, x = (tap.x + kUpsampled - 1) / kUpsampled;
    return data_ + std::int64_t{row.origin + (y * grid_.width + x) * grid_.chunks + tap.channel / kChunk<T>} * kChunk<T>;
  }
  [[nodiscard]] NORMA_DEVICE const T* chunk(int tile_row, std::int64_t k) const {
    const Row r = row(tile_row);
    return inside(r, k) ? address(r, k) : nullptr;
  }

 private:
  static NORMA_DEVICE int floor_half(int x) { return kUpsampled == 1 ? x : x >> 1; }
  /// Bit t: from + t is in [0, kUpsampled * side) and, upsampled, even.
  static NORMA_DEVICE unsigned inside_bits(int from, int side) {
    const int first = from < 0 ? -from : 0, end = kUpsampled * side - from;
    if (first >= 16 || end <= first) return 0;
    const unsigned bits = (end >= 16 ? 0xffffu : (1u << end) - 1u) & ~((1u << first) - 1u);
    return kUpsampled == 1 ? bits : bits & ((from & 1) == 0 ? 0x5555u : 0xaaaau);
  }

  const T* data_;
  const ConvolutionGrid& grid_;
  int first_row_;
  unsigned from_, depth_;
};

/// The same values transposed, for gradients of weights: rows are (ky, kx, channel) from first_row on, depths the pixels from .. to: Contiguous::row.
template <class T>
class ConvolutionTapSource {
 public:
  using Element = T;
  NORMA_DEVICE ConvolutionTapSource(const T* data, const ConvolutionGrid& grid, std::int64_t first_row, std::int64_t from, std::int64_t to)
      : data_(data),
        grid_(grid),
        first_row_(static_cast<unsigned>(first_row)),
        from_(static_cast<unsigned>(from)),
        depth_(static_cast<unsigned>(to - from)) {}

  struct Row {
    int offset;  // from tap (0, 0), channel 0, in chunks
    short y, x;
  };
  [[nodiscard]] NORMA_DEVICE Row row(int tile_row) const {
    const ConvolutionGrid::Tap tap = grid_.tap(first_row_ + static_cast<unsigned>(tile_row));
    if (tap.y >= static_cast<int>(grid_.kernel.value())) return {0, kOutsideImage, kOutsideImage};
    return {(tap.y * grid_.width + tap.x) * grid_.chunks + tap.channel / kChunk<T>, static_cast<short>(tap.y), static_cast<short>(tap.x)};
  }
  [[nodiscard]] NORMA_DEVICE bool inside(Row row, std::int64_t k) const {
    const auto u = static_cast<unsigned>(k);
    const ConvolutionGrid::Pixel pixel = grid_.pixel(from_ + u);
    return u < depth_ && static_cast<unsigned>(pixel.y + row.y) < static_cast<unsigned>(grid_.height) &&
           static_cast<unsigned>(pixel.x + row.x) < static_cast<unsigned>(grid_.width);
  }
  [[nodiscard]] NORMA_DEVICE const T* address(Row row, std::int64_t k) const {
    const ConvolutionGrid::Pixel pixel = grid_.pixel(from_ + static_cast<unsigned>(k));
    const int chunk = ((pixel.image * grid_.height + pixel.y) * grid_.width + pixel.x) * grid_.chunks + row.offset;
    return data_ + std::int64_t{chunk} * kChunk<T>;
  }
  [[nodiscard]] NORMA_DEVICE const T* chunk(int tile_row, std::int64_t k) const {
    const Row r = row(tile_row);
    return inside(r, k) ? address(r, k) : nullptr;
  }

 private:
  const T* data_;
  const ConvolutionGrid& grid_;
  unsigned first_row_, from_, depth_;
};

/// Both as operands of product_kernel.
template <class T, int kUpsampled = 1>
struct PixelOperand {
  using Element = T;
  static constexpr Contiguous contiguous = Contiguous::depth;
  const T* data;
  ConvolutionGrid grid;
  [[nodiscard]] NORMA_DEVICE ConvolutionSource<T, kUpsampled> tile(std::int64_t, std::int64_t first_row, std::int64_t from, std::int64_t to) const {
    return {data, grid, first_row, from, to};
  }
};
template <class T>
struct TapOperand {
  using Element = T;
  static constexpr Contiguous contiguous = Contiguous::row;
  const T* data;
  ConvolutionGrid grid;
  [[nodiscard]] NORMA_DEVICE ConvolutionTapSource<T> tile(std::int64_t, std::int64_t first_row, std::int64_t from, std::int64_t to) const {
    return {data, grid, first_row, from, to};
  }
};

namespace detail {

template <class T>
Status check_convolution(std::string_view who, TensorView<const T> x, TensorView<const T> y, const ConvolutionSettings& s) {
  const std::string start(who);
  if (s.kernel < 1 || s.kernel > 15 || s.stride < 1 || s.stride > 15 || s.padding < 0 || s.padding >= s.kernel) {
    return {Errc::invalid_argument, start + ": expected a kernel and a stride of 1 to 15 and a padding below the kernel, found " +
                                        std::to_string(s.kernel) + ", " + std::to_string(s.stride) + " and " + std::to_string(s.padding)};
  }
  constexpr std::int64_t kMostSide = 16000, kMost = 2147483647;
  const auto side_fits = [](std::int64_t side) { return side >= 0 && side <= kMostSide; };
  if (!side_fits(x.height) || !side_fits(x.width) || !side_fits(y.height) || !side_fits(y.width)) {
    return {Errc::invalid_argument, start + ": expected sides up to 16000"};
  }
  if (x.batch != y.batch || y.height != convolution_side(x.height, s) || y.width != convolution_side(x.width, s)) {
    return {Errc::shape_mismatch, start + ": expected a result of " + std::to_string(x.batch) + " x " +
                                      std::to_string(convolution_side(x.height, s)) + " x " + std::to_string(convolution_side(x.width, s)) +
                                      ", found " + std::to_string(y.batch) + " x " + std::to_string(y.height) + " x " + std::to_string(y.width)};
  }
  const auto check_tensor = [&](const TensorView<const T>& t) -> Status {
    const std::int64_t most_pixels = t.batch * (t.height + 32) * (t.width + 32);  // with what taps outside may name
    const bool counts_fit = 0 <= t.batch && kMost >= t.batch && 1 <= t.channels && (1 << 20) >= t.channels;
    if (!counts_fit || most_pixels > kMost - 4096 || ceil_div(t.channels, std::int64_t{kChunk<T>}) > kMost / std::max<std::int64_t>(most_pixels, 1)) {
      return {Errc::invalid_argument, start + ": the tensor is too large or has no channels, expected less than 2^31 pixels and units of 16 bytes"};
    }
    if (t.count() > 0 && t.data == nullptr) return {Errc::invalid_argument, start + ": a tensor is null"};
    if (reinterpret_cast<std::uintptr_t>(t.data) % 16 != 0) return {Errc::invalid_argument, start + ": a tensor is not aligned to 16 bytes"};
    return {};
  };
  NORMA_CHECK(check_tensor(x));
  return check_tensor(y);
}
template <class T>
Status check_channels(std::string_view who, std::string_view name, std::int64_t channels) {
  if (channels % kChunk<T> == 0) return {};
  return {Errc::invalid_argument, std::string(who) + ": expected a multiple of " + std::to_string(kChunk<T>) + " channels of " + std::string(name) +
                                      ", found " + std::to_string(channels) + "; pad with zero weights"};
}
template <class T>
Status check_weights(std::string_view who, MatrixView<const T> weights, std::int64_t rows, std::int64_t cols) {
  if (weights.rows != rows || weights.cols != cols) {
    return {Errc::shape_mismatch, std::string(who) + ": expected weights of " + std::to_string(rows) + " x " + std::to_string(cols) + ", found " +
                                      std::to_string(weights.rows) + " x " + std::to_string(weights.cols)};
  }
  NORMA_CHECK(check_operand<T>(who, "weights", weights, 0));
  return check_reach<T>(who, "weights", 128, weights.stride);
}

inline constexpr int kColumnSumThreads = 256, kColumnSumRows = kColumnSumThreads / simt::kWarp;

/// sums [blocks_y, cols]: of the rows of each part, a warp's rows in order, then the warps in order.
template <class T>
NORMA_LAUNCH_BOUNDS(kColumnSumThreads)
NORMA_KERNEL column_sums_kernel(MatrixView<const T> x, std::int64_t part_rows, float* sums) {
  const auto shared = simt::shared_array<float>(0, kColumnSumThreads);
  const std::int64_t col = simt::block_x() * simt::kWarp + simt::lane_index();
  const std::int64_t first = simt::block_y() * part_rows, end = first + part_rows < x.rows ? first + part_rows : x.rows;
  float sum = 0.0f;
  if (col < x.cols) {
    for (std::int64_t r = first + simt::warp_index(); r < end; r += kColumnSumRows) sum += simt::to_float(x(r, col));
  }
  shared[simt::thread_index()] = sum;
  simt::block_barrier();
  if (simt::warp_index() == 0 && col < x.cols) {
    for (int w = 1; w < kColumnSumRows; ++w) {
      const float other = shared[w * simt::kWarp + simt::lane_index()];
      sum += other;
    }
    sums[simt::block_y() * x.cols + col] = sum;
  }
}
template <class T>
Status column_sums(std::string_view who, StreamRef stream, MatrixView<const T> x, std::int64_t parts, std::int64_t part_rows, float* sums) {
  return launch(
      who, stream,
      {.blocks_x = ceil_div(x.cols, simt::kWarp), .blocks_y = parts, .threads = kColumnSumThreads, .shared_bytes = kColumnSumThreads * sizeof(float)},
      column_sums_kernel<T>, x, part_rows, sums);
}

inline constexpr int kFlipThreads = 256;

template <class T>
NORMA_LAUNCH_BOUNDS(kFlipThreads)
NORMA_KERNEL flip_weights_kernel(MatrixView<const T> weights, MatrixView<T> flipped, std::int64_t taps) {
  const std::int64_t i = simt::block_x() * kFlipThreads + simt::thread_index();
  if (i >= flipped.rows * flipped.cols) return;
  const std::int64_t c = i / flipped.cols, rest = i % flipped.cols, tap = rest / weights.rows, o = rest % weights.rows;
  flipped(c, rest) = weights(o, (taps - 1 - tap) * flipped.rows + c);
}

}  // namespace detail

template <class T, Arithmetic kArithmetic>
Status convolution(StreamRef stream, TensorView<const T> x, MatrixView<const T> weights, TensorView<T> y, const ConvolutionSettings& settings,
                   const float* bias, Activation activation, const T* residual, std::span<std::byte> workspace) {
  constexpr std::string_view kWho = "cuda::convolution";
  NORMA_CHECK(detail::check_convolution<T>(kWho, x, y, settings));
  NORMA_CHECK(detail::check_channels<T>(kWho, "x", x.channels));
  const std::int64_t depth = settings.taps() * x.channels;
  NORMA_CHECK(detail::check_weights<T>(kWho, weights, y.channels, depth));
  if (activation != Activation::none && activation != Activation::relu) {
    return {Errc::invalid_argument, std::string(kWho) + ": expected Activation::none or relu"};
  }
  if (y.empty()) return {};
  const StoreEpilogue<T> epilogue{y.data, y.channels, 0, y.channels, bias, residual, 1.0f, activation == Activation::relu, y.channels % 4 == 0};
  const PixelOperand<T> pixels{x.data,
                               ConvolutionGrid(x.batch, x.shape(), y.height, y.width, settings.kernel, settings.stride, settings.padding, kChunk<T>)};
  const MatrixOperand<T, Contiguous::depth> rows{weights.data, weights.rows, weights.stride, 0};
  return detail::run_product<kArithmetic>(kWho, stream, pixels, rows, epilogue, {y.batch * y.height * y.width, y.channels, depth, 1}, workspace);
}

template <class T, Arithmetic kArithmetic>
Status convolution_input_gradient(StreamRef stream, TensorView<const T> dy, MatrixView<const T> flipped, TensorView<T> dx,
                                  const ConvolutionSettings& settings, std::span<std::byte> workspace) {
  constexpr std::string_view kWho = "cuda::convolution_input_gradient";
  NORMA_CHECK(detail::check_convolution<T>(kWho, dx, dy, settings));
  NORMA_CHECK(detail::check_channels<T>(kWho, "dy", dy.channels));
  if (settings.stride > 2)
    return {Errc::invalid_argument, std::string(kWho) + ": expected a stride of 1 or 2, found " + std::to_string(settings.stride)};
  const std::int64_t depth = settings.taps() * dy.channels;
  NORMA_CHECK(detail::check_weights<T>(kWho, flipped, dx.channels, depth));
  if (dx.empty()) return {};
  const StoreEpilogue<T> epilogue{dx.data, dx.channels, 0, dx.channels, nullptr, nullptr, 1.0f, false, dx.channels % 4 == 0};
  const MatrixOperand<T, Contiguous::depth> rows{flipped.data, flipped.rows, flipped.stride, 0};
  const ConvolutionGrid grid(dy.batch, dy.shape(), dx.height, dx.width, settings.kernel, 1, settings.kernel - 1 - settings.padding, kChunk<T>);
  const detail::ProductShape shape{dx.batch * dx.height * dx.width, dx.channels, depth, 1};
  if (settings.stride == 1)
    return detail::run_product<kArithmetic>(kWho, stream, PixelOperand<T, 1>{dy.data, grid}, rows, epilogue, shape, workspace);
  return detail::run_product<kArithmetic>(kWho, stream, PixelOperand<T, 2>{dy.data, grid}, rows, epilogue, shape, workspace);
}

template <class T, Arithmetic kArithmetic>
Status convolution_weight_gradient(StreamRef stream, TensorView<const T> x, TensorView<const T> dy, MatrixView<float> dw, float* dbias,
                                   const ConvolutionSettings& settings, std::span<std::byte> workspace) {
  constexpr std::string_view kWho = "cuda::convolution_weight_gradient";
  NORMA_CHECK(detail::check_convolution<T>(kWho, x, dy, settings));
  NORMA_CHECK(detail::check_channels<T>(kWho, "x", x.channels));
  NORMA_CHECK(detail::check_channels<T>(kWho, "dy", dy.channels));
  const std::int64_t pixels = dy.batch * dy.height * dy.width, cols = settings.taps() * x.channels;
  if (dw.rows != dy.channels || dw.cols != cols || dw.stride < cols) {
    return {Errc::shape_mismatch, std::string(kWho) + ": expected dw of " + std::to_string(dy.channels) + " x " + std::to_string(cols) + ", found " +
                                      std::to_string(dw.rows) + " x " + std::to_string(dw.cols) + " with stride " + std::to_string(dw.stride)};
  }
  if (dw.data == nullptr) return {Errc::invalid_argument, std::string(kWho) + ": dw is null"};
  const std::size_t bytes = convolution_weight_gradient_workspace_bytes(pixels, x.channels, dy.channels, settings);
  if (workspace.size() < bytes || workspace.data() == nullptr || reinterpret_cast<std::uintptr_t>(workspace.data()) % 16 != 0) {
    return {Errc::out_of_memory, std::string(kWho) + ": expected a workspace of " + std::to_string(bytes) + " bytes aligned to 256, found " +
                                     std::to_string(workspace.size())};
  }
  const bool wide = reinterpret_cast<std::uintptr_t>(dw.data) % 16 == 0 && dw.stride % 4 == 0;
  const StoreEpilogue<float> epilogue{dw.data, dw.stride, 0, cols, nullptr, nullptr, 1.0f, false, wide};
  const MatrixOperand<T, Contiguous::row> gradients{dy.data, dy.channels, dy.channels, 0};
  // Without pixels there is no grid to divide by, and nothing reads it.
  const ConvolutionGrid grid(dy.batch, x.shape(), std::max<std::int64_t>(dy.height, 1), std::max<std::int64_t>(dy.width, 1), settings.kernel,
                             settings.stride, settings.padding, kChunk<T>);
  NORMA_CHECK(
      detail::run_product<kArithmetic>(kWho, stream, gradients, TapOperand<T>{x.data, grid}, epilogue, {dy.channels, cols, pixels, 1}, workspace));
  if (dbias == nullptr) return {};
  // After the product, which is done with the workspace by then.
  auto* const sums = reinterpret_cast<float*>(workspace.data());
  const std::int64_t part_rows = std::max<std::int64_t>(detail::ceil_div(pixels, kMostBiasParts), 256),
                     parts = std::max<std::int64_t>(detail::ceil_div(pixels, part_rows), 1);
  NORMA_CHECK(detail::column_sums<T>(kWho, stream, dy.patches(), parts, part_rows, sums));
  return detail::column_sums<float>(kWho, stream, MatrixView<const float>(sums, parts, dy.channels), 1, parts, dbias);
}

template <class T>
Status flip_convolution_weights(StreamRef stream, MatrixView<const T> weights, MatrixView<T> flipped, std::int64_t kernel) {
  constexpr std::string_view kWho = "cuda::flip_convolution_weights";
  const std::int64_t taps = kernel * kernel;
  if (kernel < 1 || kernel > 15 || weights.rows < 0 || flipped.rows < 0 || weights.cols != taps * flipped.rows ||
      flipped.cols != taps * weights.rows || weights.stride < weights.cols || flipped.stride < flipped.cols) {
    return {Errc::shape_mismatch, std::string(kWho) + ": expected [out, taps * in] and [in, taps * out] for a kernel of 1 to 15, found " +
                                      std::to_string(weights.rows) + " x " + std::to_string(weights.cols) + ", " + std::to_string(flipped.rows) +
                                      " x " + std::to_string(flipped.cols) + " and " + std::to_string(kernel)};
  }
  if (weights.empty()) return {};
  if (weights.data == nullptr || flipped.data == nullptr) return {Errc::invalid_argument, std::string(kWho) + ": weights are null"};
  return detail::launch(kWho, stream, {.blocks_x = detail::ceil_div(flipped.count(), detail::kFlipThreads), .threads = detail::kFlipThreads},
                        detail::flip_weights_kernel<T>, weights, flipped, taps);
}

}  // namespace norma::cuda
