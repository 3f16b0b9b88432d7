/// \file
/// Pooling of channels-last feature maps. The output's shape is the caller's: windows that reach beyond the padded input (ceiling mode)
/// are cut off there. NaN in a window makes its result NaN.
#pragma once

#include <algorithm>
#include <cstdint>

#include <norma/core/parallel.hpp>
#include <norma/core/view.hpp>
#include <norma/linalg/simd.hpp>

namespace norma::nn {

struct PoolingGeometry {
  int kernel_height = 1;
  int kernel_width = 1;
  int stride = 1;
  int pad_top = 0;
  int pad_left = 0;
  int pad_bottom = 0;
  int pad_right = 0;
  friend constexpr bool operator==(const PoolingGeometry&, const PoolingGeometry&) = default;
};

enum class Rounding : std::uint8_t { floor, ceil };

/// Output of a pooling layer. With `ceil`, a last window that would start in the padding behind the input is dropped (as PyTorch does).
constexpr Shape pooling_output(Shape in, const PoolingGeometry& g, Rounding rounding = Rounding::floor) noexcept {
  const auto size = [&](std::int64_t length, int before, int after, int kernel) {
    const std::int64_t room = length + before + after - kernel;
    std::int64_t count = room / g.stride + 1;
    if (rounding == Rounding::ceil && room % g.stride != 0 && count * g.stride < length + before) ++count;
    return count;
  };
  return {size(in.height, g.pad_top, g.pad_bottom, g.kernel_height), size(in.width, g.pad_left, g.pad_right, g.kernel_width), in.channels};
}

/// Whether an average divides by the zeros of the padding too.
enum class PaddingCounts : std::uint8_t { no, yes };

namespace detail {

/// Positions inside the map, at least one.
struct Window {
  const float* first;
  std::int64_t line_stride;  // floats between lines
  std::int64_t height, width;
};

struct PoolingKernels {
  void (*max_of_window)(const Window& window, std::int64_t channels, float* to);
  void (*sum_of_window)(const Window& window, std::int64_t channels, float factor, float* to);
};

}  // namespace detail
}  // namespace norma::nn

#define NORMA_SIMD_FILE <norma/nn/kernels/detail/pooling_kernels.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE

namespace norma::nn {
namespace detail {

inline const PoolingKernels& pooling_kernels(InstructionSet set) noexcept { return NORMA_SIMD_SELECT(set, kPoolingKernels); }

/// [first, last) of an input axis.
struct Range {
  std::int64_t first, last;
};

/// Calls body(window, image, oy, ox, ranges) for every output position.
template <class Row, class Column, class Body>
void for_each_window(TensorView<const float> x, TensorView<float> y, Row&& rows_of, Column&& columns_of, Parallel parallel, Body&& body) {
  NORMA_EXPECTS(x.channels == y.channels && x.batch == y.batch);
  parallel.run_ranges(y.batch * y.height, 4, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t line = begin; line < end; ++line) {
      const Range rows = rows_of(line % y.height);
      const float* image = x.image(line / y.height).data;
      for (std::int64_t ox = 0; ox < y.width; ++ox) {
        const Range columns = columns_of(ox);
        const Window window{image + (rows.first * x.width + columns.first) * x.channels, x.width * x.channels, rows.last - rows.first,
                            columns.last - columns.first};
        body(window, line % y.height, ox, y.data + (line * y.width + ox) * y.channels);
      }
    }
  });
}

constexpr Range clipped(std::int64_t out, int stride, int pad, int kernel, std::int64_t length) noexcept {
  const std::int64_t first = out * stride - pad;
  return {first < 0 ? 0 : first, first + kernel < length ? first + kernel : length};
}

}  // namespace detail

/// y = largest of each window. Precondition: every window holds a position of x (padding smaller than the kernel).
inline void max_pool(TensorView<const float> x, const PoolingGeometry& g, TensorView<float> y, Parallel parallel,
                     InstructionSet set = instruction_set()) {
  const auto& kernels = detail::pooling_kernels(set);
  detail::for_each_window(
      x, y, [&](std::int64_t oy) { return detail::clipped(oy, g.stride, g.pad_top, g.kernel_height, x.height); },
      [&](std::int64_t ox) { return detail::clipped(ox, g.stride, g.pad_left, g.kernel_width, x.width); }, parallel,
      [&](const detail::Window& window, std::int64_t, std::int64_t, float* to) { kernels.max_of_window(window, x.channels, to); });
}

/// y = mean of each window. With PaddingCounts::yes the divisor is the window's size within the padded input.
inline void average_pool(TensorView<const float> x, const PoolingGeometry& g, PaddingCounts padding, TensorView<float> y, Parallel parallel,
                         InstructionSet set = instruction_set()) {
  const auto& kernels = detail::pooling_kernels(set);
  const auto padded = [](std::int64_t out, int stride, int before, int after, int kernel, std::int64_t length) {
    const std::int64_t first = out * stride - before;
    return std::min<std::int64_t>(first + kernel, length + after) - first;
  };
  detail::for_each_window(
      x, y, [&](std::int64_t oy) { return detail::clipped(oy, g.stride, g.pad_top, g.kernel_height, x.height); },
      [&](std::int64_t ox) { return detail::clipped(ox, g.stride, g.pad_left, g.kernel_width, x.width); }, parallel,
      [&](const detail::Window& window, std::int64_t oy, std::int64_t ox, float* to) {
        const std::int64_t count = padding == PaddingCounts::no
                                       ? window.height * window.width
                                       : padded(oy, g.stride, g.pad_top, g.pad_bottom, g.kernel_height, x.height) *
                                             padded(ox, g.stride, g.pad_left, g.pad_right, g.kernel_width, x.width);
        kernels.sum_of_window(window, x.channels, 1.0f / static_cast<float>(count), to);
      });
}

/// y [n, oh, ow, c] = means of the regions [floor(i h / oh), ceil((i + 1) h / oh)) and likewise in x, PyTorch's adaptive pooling.
inline void adaptive_average_pool(TensorView<const float> x, TensorView<float> y, Parallel parallel,
                                  InstructionSet set = instruction_set()) {
  const auto& kernels = detail::pooling_kernels(set);
  const auto region = [](std::int64_t i, std::int64_t out, std::int64_t length) {
    return detail::Range{i * length / out, ((i + 1) * length + out - 1) / out};
  };
  detail::for_each_window(
      x, y, [&](std::int64_t oy) { return region(oy, y.height, x.height); }, [&](std::int64_t ox) { return region(ox, y.width, x.width); },
      parallel,
      [&](const detail::Window& window, std::int64_t, std::int64_t, float* to) {
        kernels.sum_of_window(window, x.channels, 1.0f / static_cast<float>(window.height * window.width), to);
      });
}

/// y [n, 1, 1, c] = mean over all positions of each image.
inline void global_average_pool(TensorView<const float> x, TensorView<float> y, Parallel parallel, InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(y.height == 1 && y.width == 1);
  adaptive_average_pool(x, y, parallel, set);
}

}  // namespace norma::nn
