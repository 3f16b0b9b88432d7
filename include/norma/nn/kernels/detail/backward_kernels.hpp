/// \file
/// The inner loops that the layers' gradients share, compiled once per instruction set.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include <norma/core/arena.hpp>
#include <norma/core/parallel.hpp>
#include <norma/core/view.hpp>
#include <norma/linalg/gemm.hpp>
#include <norma/linalg/simd.hpp>
#include <norma/nn/kernels/convolution.hpp>
#include <norma/nn/kernels/pooling.hpp>

namespace norma::nn {

/// Whether a gradient replaces what is there or is added to it (a value that several layers read).
enum class Accumulate : std::uint8_t { no, yes };

/// Whether an activation's gradient is computed from the activation's argument; else from its result, which is kept anyway.
constexpr bool gradient_needs_argument(Activation activation) noexcept {
  return activation == Activation::silu || activation == Activation::gelu || activation == Activation::hard_swish;
}

namespace detail {

struct BackwardKernels {
  using Outer = void (*)(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, std::int64_t k, float* c,
                         std::int64_t c_stride);
  int rows;                                                   // of the largest tile
  int panel;                                                  // columns of a tile
  std::array<Outer, linalg::detail::kMaxTileRows + 1> outer;  // outer[r] computes r rows, 1 <= r <= rows
  void (*winograd_gradient_tile)(const float* const* from, std::int64_t channels, float* to, std::int64_t point_stride);
  void (*winograd_weight_gradient)(const float* u, std::int64_t point_stride, std::int64_t channels, float* to);
  void (*activation_gradient)(const float* dy, const float* at, float* dx, std::int64_t count, Activation activation, bool sum);
  void (*add_scaled)(const float* x, float factor, float* y, std::int64_t count);
  void (*add_product)(const float* a, const float* b, float* y, std::int64_t count);
  void (*sum_gradients)(const float* dy, const float* x, std::int64_t positions, std::int64_t dy_stride, std::int64_t x_stride,
                        std::int64_t channels, const float* mean, float* sums, float* products);
  void (*apply_gradients)(const float* dy, const float* x, std::int64_t positions, std::int64_t channels, const float* mean, const float* a,
                          const float* b, const float* d, float* dx, bool sum);
  void (*max_gradient)(const Window& window, std::int64_t channels, std::int64_t position_stride, const float* y, const float* dy,
                       float* dx);
};

}  // namespace detail
}  // namespace norma::nn

#define NORMA_SIMD_FILE <norma/nn/kernels/detail/backward_kernels.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE

namespace norma::nn::detail {

inline const BackwardKernels& backward_kernels(InstructionSet set) noexcept { return NORMA_SIMD_SELECT(set, kBackwardKernels); }

/// Sums over positions are cut into pieces by the problem's size alone: summed in float within a piece, in double over the pieces, in
/// order.
constexpr std::int64_t positions_of_a_piece(std::int64_t positions, std::int64_t channels) noexcept {
  const std::int64_t cached = 16384 / (channels < 1 ? 1 : channels);
  const std::int64_t few = (positions + 63) / 64;
  const std::int64_t most = cached > few ? cached : few;
  return most < 16 ? 16 : most;
}
constexpr std::int64_t pieces_of(std::int64_t positions, std::int64_t channels) noexcept {
  const std::int64_t piece = positions_of_a_piece(positions, channels);
  return (positions + piece - 1) / piece;
}
/// Scratch of sums of `quantities` numbers a channel.
constexpr std::size_t sums_scratch_bytes(std::int64_t channels, int quantities) noexcept {
  return arena_bytes<float>(64 * channels * quantities);  // at most 64 pieces
}

/// total(c, q, sum) for the sums of `quantities` numbers a channel: `piece(first, count, sums)` writes sums[q * channels + c] of its rows.
template <class Piece, class Total>
void sum_over_positions(std::int64_t positions, std::int64_t channels, int quantities, Parallel parallel, Arena& arena, Piece&& piece,
                        Total&& total) {
  const Arena::Scope scope(arena);
  const std::int64_t size = positions_of_a_piece(positions, channels), pieces = pieces_of(positions, channels);
  float* sums = arena.take<float>(pieces * channels * quantities);
  parallel.run_ranges(positions, size, [&](std::int64_t first, std::int64_t last, int) {
    piece(first, last - first, sums + first / size * channels * quantities);
  });
  for (int q = 0; q < quantities; ++q) {
    for (std::int64_t c = 0; c < channels; ++c) {
      double sum = 0.0;
      for (std::int64_t p = 0; p < pieces; ++p) sum += static_cast<double>(sums[(p * quantities + q) * channels + c]);
      total(c, q, sum);
    }
  }
}

/// c[rows, cols] += sum over k of a[k, row] b[k, col]. Rows of b and c must have room for a whole panel at their end.
inline void outer_products(const BackwardKernels& kernels, const float* a, std::int64_t a_stride, std::int64_t rows, const float* b,
                           std::int64_t b_stride, std::int64_t cols, std::int64_t depth, float* c, std::int64_t c_stride,
                           Parallel parallel) {
  const std::int64_t panel = kernels.panel;
  const std::int64_t panels = (cols + panel - 1) / panel;
  const std::int64_t tiles = (rows + kernels.rows - 1) / kernels.rows;
  const std::int64_t tasks = panels >= 8 ? 1 : tiles;  // of a panel
  parallel.run(panels * tasks, [&](std::int64_t task, int) {
    const std::int64_t col = task / tasks * panel;
    const std::int64_t first = tasks == 1 ? 0 : task % tasks;
    const std::int64_t last = tasks == 1 ? tiles : first + 1;
    for (std::int64_t t = first; t < last; ++t) {
      const std::int64_t row = rows * t / tiles;
      const std::int64_t height = rows * (t + 1) / tiles - row;
      kernels.outer[static_cast<std::size_t>(height)](a + row, a_stride, b + col, b_stride, depth, c + row * c_stride + col, c_stride);
    }
  });
}

}  // namespace norma::nn::detail
