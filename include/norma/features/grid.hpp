/// \file
/// Operations on feature maps as grids of patch vectors: neighbourhood averages and changes of resolution.
/// Outputs are rows of a matrix whose stride may exceed its columns, so that concatenation along channels is a choice of columns.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include <norma/core/context.hpp>
#include <norma/core/view.hpp>
#include <norma/linalg/simd.hpp>

namespace norma::features {

inline constexpr int kMaxNeighbourhood = 31;

namespace detail {

struct GridKernels {
  void (*sum_of_rows)(const float* const* rows, std::int64_t count, std::int64_t n, float factor, float* to);
  void (*weighted_sum_of_rows)(const float* const* rows, const float* weights, std::int64_t count, std::int64_t n, float* to);
  void (*between_rows)(const float* a, const float* b, const float* c, const float* d, float wx, float wy, std::int64_t n, float* to);
};

}  // namespace detail
}  // namespace norma::features

#define NORMA_SIMD_FILE <norma/features/detail/grid_kernels.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE

namespace norma::features {
namespace detail {

inline const GridKernels& grid_kernels(InstructionSet set) noexcept { return NORMA_SIMD_SELECT(set, kGridKernels); }

}  // namespace detail

/// Scratch of `local_average`.
constexpr std::size_t local_average_scratch_bytes(Shape shape, int workers) noexcept {
  return arena_bytes<float>(shape.width * shape.channels * workers);
}
/// Mean over a p x p neighbourhood (p odd), stride 1, zero padding that counts in the divisor: each position becomes locally aware.
/// Shapes: `in` one image [1, h, w, c], `out` [h * w, c]. Source: Roth et al., CVPR 2022, section 3.1 (as anomalib pools it).
inline void local_average(TensorView<const float> in, int neighbourhood, MatrixView<float> out, Context& context,
                          InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(in.batch == 1 && neighbourhood >= 1 && neighbourhood <= kMaxNeighbourhood && neighbourhood % 2 == 1);
  NORMA_EXPECTS(out.rows == in.height * in.width && out.cols == in.channels);
  const auto sum_of_rows = detail::grid_kernels(set).sum_of_rows;
  const std::int64_t radius = neighbourhood / 2;
  const std::int64_t row_size = in.width * in.channels;
  const float scale = 1.0f / static_cast<float>(neighbourhood * neighbourhood);
  const Arena::Scope scope(context.arena);
  float* columns = context.arena.take<float>(row_size * context.parallel.workers());
  context.parallel.run(in.height, [&](std::int64_t y, int worker) {
    std::array<const float*, kMaxNeighbourhood> rows;
    const auto from = [&](const float* base, std::int64_t step, std::int64_t middle, std::int64_t size) {  // the part of the window inside the map
      const std::int64_t first = std::max<std::int64_t>(middle - radius, 0);
      const std::int64_t last = std::min(middle + radius, size - 1);
      for (std::int64_t i = first; i <= last; ++i) rows[static_cast<std::size_t>(i - first)] = base + i * step;
      return last - first + 1;
    };
    float* const sums = columns + worker * row_size;  // down the columns of this row
    const std::int64_t high = from(in.data, row_size, y, in.height);
    sum_of_rows(rows.data(), high, row_size, 1.0f, sums);
    for (std::int64_t x = 0; x < in.width; ++x) {
      const std::int64_t wide = from(sums, in.channels, x, in.width);
      sum_of_rows(rows.data(), wide, in.channels, scale, out.row(y * in.width + x).data());
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
                            std::int64_t height, std::int64_t width, Context& context, InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(in.rows == in_height * in_width && out.rows == height * width && in.cols == out.cols);
  const auto between_rows = detail::grid_kernels(set).between_rows;
  context.parallel.run(height, [&](std::int64_t y, int) {
    const LinearTap v = linear_tap(y, in_height, height);
    for (std::int64_t x = 0; x < width; ++x) {
      const LinearTap h = linear_tap(x, in_width, width);
      const float* a = in.row(v.low * in_width + h.low).data();
      const float* b = in.row(v.low * in_width + h.high).data();
      const float* c = in.row(v.high * in_width + h.low).data();
      const float* d = in.row(v.high * in_width + h.high).data();
      between_rows(a, b, c, d, h.high_weight, v.high_weight, in.cols, out.row(y * width + x).data());
    }
  });
}

/// The row of a coarser grid that repetition ("nearest" up-sampling, src = floor(dst * in / out)) puts at (y, x) of a finer one.
constexpr std::int64_t nearest_position(std::int64_t y, std::int64_t x, Shape coarse, Shape fine) noexcept {
  return (y * coarse.height / fine.height) * coarse.width + x * coarse.width / fine.width;
}

}  // namespace norma::features
