/// \file
/// C = activation(alpha A B^T + bias) on the device, with float sums. Plain C++; link norma::cuda, or include <norma/cuda/matrix_product.cuh> in a
/// file that nvcc compiles.
///
/// Shapes:      A [m, depth], B [n, depth], C [m, n], bias [n]. Contiguous::depth: the view is that; Contiguous::row: the view is the transpose,
/// [depth, m] or [depth, n].
///              With B stored as [depth, n] this is the ordinary product A B; with both transposed, A^T B, as in gradients of weights
/// Memory:      device. A and B: data aligned to 16 bytes, stride (and batch stride) a multiple of 16 bytes; where a line is no multiple of 16 bytes,
/// its padding up to one must
///              be readable, and along the depth it must hold zeros. C: any alignment, wide stores where data and strides allow 16 bytes. No overlap
/// Limits:      m, n, depth < 2^31; 128 rows of A or B (or the whole of a transposed one) less than 64 GiB apart
/// Errors:      invalid_argument (null, misaligned, too large, an activation other than none and relu), shape_mismatch, out_of_memory (workspace too
/// small),
///              unsupported (tensor cores wanted, kernel compiled for less than sm_80), and what a launch reports
/// Determinism: bitwise for a device and a shape. A product with few outputs and a long depth is cut along the depth, as the shape says and not the
/// device; the parts are added in order Source:      kernels/norma/cuda/tile_product.cuh; docs/kernels/matrix_product.md
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include <norma/core/status.hpp>
#include <norma/core/view.hpp>
#include <norma/cuda/arithmetic.hpp>
#include <norma/cuda/stream_ref.hpp>
#include <norma/linalg/activation.hpp>

namespace norma::cuda {

struct MatrixProductSettings {
  float alpha = 1.0f;
  const float* bias = nullptr;               ///< [n], null for none
  Activation activation = Activation::none;  ///< none or relu
  std::int64_t batch = 1;                    ///< so many products, operand i at data + i * its batch stride, in elements; 0 shares it
  std::int64_t batch_stride_a = 0, batch_stride_b = 0, batch_stride_c = 0;
};

/// How a product is cut into blocks: a function of its shape alone.
struct ProductPlan {
  bool large_tiles = false;     ///< 128 x 128, else 64 x 64
  std::int64_t parts = 1;       ///< along the depth
  std::int64_t part_depth = 0;  ///< of each but the last, a multiple of 64

  static constexpr std::int64_t kFullDevice = 256;  // blocks, about two on each multiprocessor of today's devices
  static constexpr std::int64_t kLeastDepth = 256;  // of a part: below, its result costs more than its products

  static constexpr ProductPlan make(std::int64_t m, std::int64_t n, std::int64_t depth, std::int64_t batch = 1) noexcept {
    const auto tiles = [&](std::int64_t side) { return (m + side - 1) / side * ((n + side - 1) / side) * batch; };
    ProductPlan plan;
    plan.large_tiles = tiles(128) >= kFullDevice / 2;
    const std::int64_t blocks = std::max<std::int64_t>(tiles(plan.large_tiles ? 128 : 64), 1);
    const std::int64_t wanted = std::clamp<std::int64_t>(std::min(kFullDevice / blocks, depth / kLeastDepth), 1, 64);
    plan.part_depth = std::max<std::int64_t>(((depth + wanted - 1) / wanted + 63) / 64 * 64, 64);
    plan.parts = std::max<std::int64_t>((depth + plan.part_depth - 1) / plan.part_depth, 1);
    return plan;
  }
  /// Of the workspace: the parts' sums.
  [[nodiscard]] constexpr std::size_t bytes(std::int64_t m, std::int64_t n, std::int64_t batch = 1) const noexcept {
    return parts == 1 ? 0 : static_cast<std::size_t>(parts * batch * m * n) * sizeof(float);
  }
};

/// Bytes of the workspace, aligned to 256; 0 for most shapes.
constexpr std::size_t matrix_product_workspace_bytes(std::int64_t m, std::int64_t n, std::int64_t depth, std::int64_t batch = 1) noexcept {
  return ProductPlan::make(m, n, depth, batch).bytes(m, n, batch);
}

/// See the file's comment. Compiled for float with fp32, tf32 and tf32x3, BFloat16 with bf16, Half with f16; (kA, kB) = (depth, depth), (depth, row),
/// (row, row).
template <class T, Arithmetic kArithmetic = kTensorArithmetic<T>, Contiguous kA = Contiguous::depth, Contiguous kB = Contiguous::depth>
Status matrix_product(StreamRef stream, MatrixView<const T> a, MatrixView<const T> b, MatrixView<float> c, const MatrixProductSettings& settings = {},
                      std::span<std::byte> workspace = {});

}  // namespace norma::cuda
