/// \file
/// Operations on feature maps as grids of patch vectors: neighbourhood averages and changes of resolution.
/// Outputs are rows of a matrix whose stride may exceed its columns, so that concatenation along channels is a choice of columns.
#pragma once

#include <algorithm>
#include <cmath>

#include <norma/core/context.hpp>
#include <norma/core/view.hpp>

namespace norma::features {

/// Scratch of `local_average`.
constexpr std::size_t local_average_scratch_bytes(Shape shape, int workers) noexcept {
  return arena_bytes<float>(shape.width * shape.channels * workers);
}
/// Mean over a p x p neighbourhood (p odd), stride 1, zero padding that counts in the divisor: each position becomes locally aware.
/// Shapes: `in` one image [1, h, w, c], `out` [h * w, c]. Source: Roth et al., CVPR 2022, section 3.1 (as anomalib pools it).
inline void local_average(TensorView<const float> in, int neighbourhood, MatrixView<float> out, Context& context) {
  NORMA_EXPECTS(in.batch == 1 && neighbourhood >= 1 && neighbourhood % 2 == 1);
  NORMA_EXPECTS(out.rows == in.height * in.width && out.cols == in.channels);
  const std::int64_t radius = neighbourhood / 2;
  const std::int64_t row_size = in.width * in.channels;
  const float scale = 1.0f / static_cast<float>(neighbourhood * neighbourhood);
  const Arena::Scope scope(context.arena);
  float* columns = context.arena.take<float>(row_size * context.parallel.workers());
  context.parallel.run(in.height, [&](std::int64_t y, int worker) {
    float* NORMA_RESTRICT sums = columns + worker * row_size;  // vertical sums of this row
    const std::int64_t top = std::max<std::int64_t>(y - radius, 0);
    const std::int64_t bottom = std::min(y + radius, in.height - 1);
    std::copy_n(in.data + top * row_size, row_size, sums);
    for (std::int64_t row = top + 1; row <= bottom; ++row) {
      const float* NORMA_RESTRICT source = in.data + row * row_size;
      for (std::int64_t i = 0; i < row_size; ++i) sums[i] += source[i];
    }
    for (std::int64_t x = 0; x < in.width; ++x) {
      float* NORMA_RESTRICT target = out.row(y * in.width + x).data();
      const std::int64_t left = std::max<std::int64_t>(x - radius, 0);
      const std::int64_t right = std::min(x + radius, in.width - 1);
      std::copy_n(sums + left * in.channels, in.channels, target);
      for (std::int64_t column = left + 1; column <= right; ++column) {
        const float* source = sums + column * in.channels;
        for (std::int64_t c = 0; c < in.channels; ++c) target[c] += source[c];
      }
      for (std::int64_t c = 0; c < in.channels; ++c) target[c] *= scale;
    }
  });
}

/// Where an output sample lies between two input samples: half-pixel centres, clamped at the border (align_corners = false).
struct LinearTap {
  std::int64_t low = 0;
  std::int64_t high = 0;
  float high_weight = 0.0f;
};
inline LinearTap linear_tap(std::int64_t output, std::int64_t input_size, std::int64_t output_size) noexcept {
  const double source =
      std::max((static_cast<double>(output) + 0.5) * static_cast<double>(input_size) / static_cast<double>(output_size) - 0.5, 0.0);
  const auto low = std::min(static_cast<std::int64_t>(source), input_size - 1);
  return {low, std::min(low + 1, input_size - 1), static_cast<float>(source - static_cast<double>(low))};
}

/// Bilinear resize of a grid of patches. `in` [in_height * in_width, c] and `out` [height * width, c] are rows in raster order.
inline void resize_bilinear(MatrixView<const float> in, std::int64_t in_height, std::int64_t in_width, MatrixView<float> out,
                            std::int64_t height, std::int64_t width, Context& context) {
  NORMA_EXPECTS(in.rows == in_height * in_width && out.rows == height * width && in.cols == out.cols);
  context.parallel.run(height, [&](std::int64_t y, int) {
    const LinearTap v = linear_tap(y, in_height, height);
    for (std::int64_t x = 0; x < width; ++x) {
      const LinearTap h = linear_tap(x, in_width, width);
      const float* a = in.row(v.low * in_width + h.low).data();
      const float* b = in.row(v.low * in_width + h.high).data();
      const float* c = in.row(v.high * in_width + h.low).data();
      const float* d = in.row(v.high * in_width + h.high).data();
      float* NORMA_RESTRICT target = out.row(y * width + x).data();
      const float wx = h.high_weight;
      const float wy = v.high_weight;
      for (std::int64_t i = 0; i < in.cols; ++i) {
        const float upper = a[i] + (b[i] - a[i]) * wx;
        const float lower = c[i] + (d[i] - c[i]) * wx;
        target[i] = upper + (lower - upper) * wy;
      }
    }
  });
}

/// The row of a coarser grid that repetition ("nearest" up-sampling, src = floor(dst * in / out)) puts at (y, x) of a finer one.
constexpr std::int64_t nearest_position(std::int64_t y, std::int64_t x, Shape coarse, Shape fine) noexcept {
  return (y * coarse.height / fine.height) * coarse.width + x * coarse.width / fine.width;
}

}  // namespace norma::features
