/// \file
/// Convolutions on the device, forward and gradients, as matrix products whose operand is read from the image. Plain C++; link norma::cuda, or
/// include <norma/cuda/convolution.cuh> in a file that nvcc compiles.
///
/// y(n, oy, ox, o) = activation(bias(o) + sum over ky, kx, c of w(o, ky, kx, c) x(n, oy stride - padding + ky, ox stride - padding + kx, c) +
/// residual(n, oy, ox, o)), x being zero outside the image. A linear layer is the kernel 1 on a 1 x rows image.
///
/// Shapes:      x [n, height, width, in], y [n, oy, ox, out] with convolution_side(height or width), weights [out, kernel * kernel * in], column (ky
/// * kernel + kx) * in + c
///              (repack_convolution_weights makes them from the usual [out, in, ky, kx]), bias [out], residual as y. Channels last, dense
/// Channels:    `in` (of input and weights) and, for gradients, `out` are multiples of 16 bytes: 4 floats, 8 Half or BFloat16. Where a layer has
/// fewer, pad: finite
///              values in the image, zeros in the weights. Data aligned to 16 bytes, the weights' stride a multiple of 16 bytes
/// Limits:      kernel 1 to 15, padding below it; sides up to 16 000; pixels, and tensors in units of 16 bytes, below 2^31. Input gradient: stride 1
/// or 2 Errors:      invalid_argument (null, misaligned, out of the limits), shape_mismatch, out_of_memory (workspace too small), unsupported (tensor
/// cores wanted, kernel
///              compiled for less than sm_80), and what a launch reports
/// Determinism: bitwise for a device and a shape; cut along the depth as in matrix_product
/// Source:      kernels/norma/cuda/convolution.cuh; docs/kernels/matrix_product.md
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <norma/core/status.hpp>
#include <norma/core/view.hpp>
#include <norma/cuda/arithmetic.hpp>
#include <norma/cuda/matrix_product.hpp>
#include <norma/cuda/stream_ref.hpp>

namespace norma::cuda {

struct ConvolutionSettings {
  std::int64_t kernel = 3;
  std::int64_t stride = 1;
  std::int64_t padding = 1;
  [[nodiscard]] constexpr std::int64_t taps() const noexcept { return kernel * kernel; }
};

/// Side of the result of a side of the input; 0 where the kernel does not fit.
constexpr std::int64_t convolution_side(std::int64_t side, const ConvolutionSettings& s) noexcept {
  return side + 2 * s.padding < s.kernel ? 0 : (side + 2 * s.padding - s.kernel) / s.stride + 1;
}

/// Bytes of the workspace of `convolution`: y is [batch, .., .., out], x has `in` channels.
constexpr std::size_t convolution_workspace_bytes(std::int64_t pixels_of_y, std::int64_t in, std::int64_t out,
                                                  const ConvolutionSettings& s) noexcept {
  return matrix_product_workspace_bytes(pixels_of_y, out, s.taps() * in);
}
/// ... of `convolution_input_gradient`.
constexpr std::size_t convolution_input_gradient_workspace_bytes(std::int64_t pixels_of_x, std::int64_t in, std::int64_t out,
                                                                 const ConvolutionSettings& s) noexcept {
  return matrix_product_workspace_bytes(pixels_of_x, in, s.taps() * out);
}
inline constexpr std::int64_t kMostBiasParts = 64;
/// ... of `convolution_weight_gradient`.
constexpr std::size_t convolution_weight_gradient_workspace_bytes(std::int64_t pixels_of_y, std::int64_t in, std::int64_t out,
                                                                  const ConvolutionSettings& s) noexcept {
  const std::size_t weights = matrix_product_workspace_bytes(out, s.taps() * in, pixels_of_y),
                    bias = static_cast<std::size_t>(kMostBiasParts * out) * sizeof(float);
  return weights > bias ? weights : bias;
}

/// See the file's comment. `bias` and `residual` may be null.
template <class T, Arithmetic kArithmetic = kTensorArithmetic<T>>
Status convolution(StreamRef stream, TensorView<const T> x, MatrixView<const T> weights, TensorView<T> y, const ConvolutionSettings& settings,
                   const float* bias = nullptr, Activation activation = Activation::none, const T* residual = nullptr,
                   std::span<std::byte> workspace = {});

/// dx from dy. `flipped`: flip_convolution_weights of the forward weights, [in, kernel * kernel * out].
template <class T, Arithmetic kArithmetic = kTensorArithmetic<T>>
Status convolution_input_gradient(StreamRef stream, TensorView<const T> dy, MatrixView<const T> flipped, TensorView<T> dx,
                                  const ConvolutionSettings& settings, std::span<std::byte> workspace = {});

/// dw [out, kernel * kernel * in] and, unless null, dbias [out] from x and dy; overwritten, not added to.
template <class T, Arithmetic kArithmetic = kTensorArithmetic<T>>
Status convolution_weight_gradient(StreamRef stream, TensorView<const T> x, TensorView<const T> dy, MatrixView<float> dw, float* dbias,
                                   const ConvolutionSettings& settings, std::span<std::byte> workspace = {});

/// flipped(c, (ky, kx, o)) = weights(o, (kernel - 1 - ky, kernel - 1 - kx, c)).
template <class T>
Status flip_convolution_weights(StreamRef stream, MatrixView<const T> weights, MatrixView<T> flipped, std::int64_t kernel);

/// Host: weights [out, in, kernel, kernel] as [out, kernel * kernel * padded_in], zeros for the channels that were added. T: float, or what
/// `convert(float)` returns.
template <class T, class Convert>
Status repack_convolution_weights(std::span<const float> weights, std::int64_t out, std::int64_t in, std::int64_t kernel, std::int64_t padded_in,
                                  std::span<T> packed, Convert convert) {
  if (out < 0 || in < 0 || kernel < 1 || padded_in < in || static_cast<std::int64_t>(weights.size()) != out * in * kernel * kernel ||
      static_cast<std::int64_t>(packed.size()) != out * kernel * kernel * padded_in) {
    return {Errc::shape_mismatch, "cuda::repack_convolution_weights: expected " + std::to_string(out * in * kernel * kernel) + " weights, room for " +
                                      std::to_string(out * kernel * kernel * padded_in) + " and no channel lost, found " +
                                      std::to_string(weights.size()) + ", " + std::to_string(packed.size()) + " and " + std::to_string(padded_in) +
                                      " for " + std::to_string(in) + " channels"};
  }
  const std::int64_t taps = kernel * kernel;
  for (std::int64_t o = 0; o < out; ++o) {
    for (std::int64_t tap = 0; tap < taps; ++tap) {
      for (std::int64_t c = 0; c < padded_in; ++c) {
        packed[static_cast<std::size_t>((o * taps + tap) * padded_in + c)] =
            convert(c < in ? weights[static_cast<std::size_t>((o * in + c) * taps + tap)] : 0.0f);
      }
    }
  }
  return {};
}

}  // namespace norma::cuda
