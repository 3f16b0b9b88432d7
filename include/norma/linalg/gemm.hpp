/// \file
/// Matrix product with one packed operand: c = epilogue(a * b^T), a [m, k], b [n, k] packed once, c [m, n].
///
/// Packed layout: panels of `panel()` rows of b (32 with AVX-512, 16 with AVX2, 8 generic), each panel [k, panel()] dense, rows beyond n
/// zero. Panel p starts at data() + p * k() * panel().
/// Order of work: a block of panels that fits the second-level cache -> the rows of the task, a register tile at a time -> the panels of
/// the block; every tile runs over the whole of k. (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008;
/// Van Zee and van de Geijn, "BLIS", 2015.)
/// Accuracy: every element is one chain of k fused multiply-adds: |error| <= k 2^-24 sum |a b| (typically sqrt(k) in place of k).
/// Determinism: bit-equal for any number of workers; other instruction sets differ in rounding only.
/// Own epilogues: `gemm_tiles` hands every finished tile to a functor instead of storing it.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <utility>

#include <norma/core/arena.hpp>
#include <norma/core/parallel.hpp>
#include <norma/core/view.hpp>
#include <norma/linalg/activation.hpp>
#include <norma/linalg/simd.hpp>

namespace norma::linalg {

/// What happens to a * b^T before it is stored: activation(product + bias + residual).
struct Epilogue {
  const float* bias = nullptr;         ///< [n]
  MatrixView<const float> residual{};  ///< [m, n]; empty: none
  Activation activation = Activation::none;
};

namespace detail {

inline constexpr int kMaxTileRows = 14;
inline constexpr int kMaxPanel = 32;

/// The inner loops of one instruction set.
struct GemmKernels {
  using Tile = void (*)(const float* a, std::int64_t stride, const float* panel, std::int64_t k, float* tile);
  using Finish = void (*)(const float* tile, std::int64_t tile_stride, std::int64_t rows, std::int64_t cols, float* c,
                          std::int64_t c_stride, const float* bias, const float* residual, std::int64_t residual_stride,
                          Activation activation);
  int rows;                                 // of the largest tile
  int panel;                                // columns of a tile
  std::array<Tile, kMaxTileRows + 1> tile;  // tile[r] computes r rows, 1 <= r <= rows
  Finish finish;
};

constexpr std::int64_t round_up(std::int64_t value, std::int64_t step) noexcept { return (value + step - 1) / step * step; }

}  // namespace detail
}  // namespace norma::linalg

#define NORMA_SIMD_FILE <norma/linalg/detail/gemm_kernels.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE

namespace norma::linalg {
namespace detail {

inline const GemmKernels& gemm_kernels(InstructionSet set) noexcept { return NORMA_SIMD_SELECT(set, kGemmKernels); }

}  // namespace detail

/// The [n, k] operand ("output channel x input", or "bank row x feature") in panels. Packed once, read by any number of products.
class PackedMatrix {
 public:
  PackedMatrix() noexcept = default;
  /// Allocates. `set` is for tests; it must be available().
  static PackedMatrix pack(MatrixView<const float> nk, InstructionSet set = instruction_set()) {
    PackedMatrix packed(nk.rows, nk.cols, set);
    packed.repack(nk);
    return packed;
  }
  /// The same operand given as its transpose, [k, n].
  static PackedMatrix pack_transposed(MatrixView<const float> kn, InstructionSet set = instruction_set()) {
    PackedMatrix packed(kn.cols, kn.rows, set);
    packed.repack_transposed(kn);
    return packed;
  }
  /// Other numbers of the same shape, without allocation: weights after a training step.
  void repack(MatrixView<const float> nk) noexcept {
    NORMA_EXPECTS(nk.rows == n_ && nk.cols == k_);
    constexpr std::int64_t kPart = 128;  // of a panel: what the rows of a panel write in turn stays in the first cache
    for (std::int64_t panel = 0; panel < n_; panel += panel_) {
      const std::int64_t rows = std::min(panel_, n_ - panel);
      for (std::int64_t first = 0; first < k_; first += kPart) {
        const std::int64_t last = std::min(first + kPart, k_);
        for (std::int64_t r = 0; r < rows; ++r) {
          const float* from = nk.data + (panel + r) * nk.stride;
          float* to = data_.data() + panel * k_ + r;
          for (std::int64_t i = first; i < last; ++i) to[i * panel_] = from[i];
        }
      }
    }
  }
  void repack_transposed(MatrixView<const float> kn) noexcept {
    NORMA_EXPECTS(kn.rows == k_ && kn.cols == n_);
    for (std::int64_t first = 0; first < n_; first += panel_) {
      const auto bytes = static_cast<std::size_t>(std::min(panel_, n_ - first)) * sizeof(float);
      float* to = data_.data() + first * k_;
      for (std::int64_t i = 0; i < k_; ++i) std::memcpy(to + i * panel_, kn.data + i * kn.stride + first, bytes);
    }
  }

  [[nodiscard]] std::int64_t n() const noexcept { return n_; }
  [[nodiscard]] std::int64_t k() const noexcept { return k_; }
  [[nodiscard]] bool empty() const noexcept { return n_ == 0; }
  /// Columns of a panel.
  [[nodiscard]] std::int64_t panel() const noexcept { return panel_; }
  [[nodiscard]] std::int64_t panels() const noexcept { return panel_ == 0 ? 0 : (n_ + panel_ - 1) / panel_; }
  [[nodiscard]] const float* data() const noexcept { return data_.data(); }
  [[nodiscard]] std::size_t bytes() const noexcept { return static_cast<std::size_t>(data_.size()) * sizeof(float); }
  [[nodiscard]] InstructionSet instructions() const noexcept { return set_; }

 private:
  PackedMatrix(std::int64_t n, std::int64_t k, InstructionSet set)
      : panel_(detail::gemm_kernels(set).panel), data_(detail::round_up(n, panel_) * k), n_(n), k_(k), set_(set) {
    NORMA_EXPECTS(n >= 1 && k >= 1 && available(set));  // the rows that fill up the last panel are zero and stay so
  }
  std::int64_t panel_ = 0;
  Buffer<float> data_;
  std::int64_t n_ = 0;
  std::int64_t k_ = 0;
  InstructionSet set_ = InstructionSet::generic;
};

namespace detail {

/// Rows of a as a kernel reads them.
struct Rows {
  const float* data;
  std::int64_t stride;
};

/// Distance between rows in scratch: an odd number of cache lines, so that the rows of a tile fall into different cache sets.
constexpr std::int64_t scratch_stride(std::int64_t k) noexcept { return round_up(k, 32) + 16; }

// Bytes of packed panels that stay in the second-level cache while the rows walk past.
inline constexpr std::int64_t kPanelBlockBytes = 256 * 1024;

/// One task: rows [first_row, first_row + rows) of a, given by `a`, against panels [first_panel, last_panel).
/// finish(row, rows, col, cols, tile, tile_stride, worker), `row` counted as `first_row` is.
template <class Finish>
void multiply_rows(const GemmKernels& kernels, Rows a, std::int64_t first_row, std::int64_t rows, const float* panels, std::int64_t n,
                   std::int64_t k, std::int64_t first_panel, std::int64_t last_panel, int worker, Finish& finish) {
  alignas(64) float tile[kMaxTileRows * kMaxPanel];
  const std::int64_t width = kernels.panel;
  const std::int64_t block = std::max<std::int64_t>(1, kPanelBlockBytes / (k * width * 4));
  // Rows whose distance is a multiple of 4 KiB share one set of the first-level cache, and more than its 8 ways would evict each other.
  const std::int64_t highest = a.stride % 1024 == 0 ? std::min(kernels.rows, 7) : kernels.rows;
  // Tiles of nearly equal height: 16 rows as 8 + 8, not as 14 + 2.
  const std::int64_t tiles = (rows + highest - 1) / highest;
  for (std::int64_t from = first_panel; from < last_panel; from += block) {
    const std::int64_t to = std::min(from + block, last_panel);
    for (std::int64_t t = 0; t < tiles; ++t) {
      const std::int64_t row = rows * t / tiles;
      const std::int64_t height = rows * (t + 1) / tiles - row;
      const auto kernel = kernels.tile[static_cast<std::size_t>(height)];
      for (std::int64_t p = from; p < to; ++p) {
        kernel(a.data + row * a.stride, a.stride, panels + p * k * width, k, tile);
        finish(first_row + row, height, p * width, std::min(width, n - p * width), static_cast<const float*>(tile), width, worker);
      }
    }
  }
}

/// Stores finished tiles into c with the epilogue applied.
struct StoreTile {
  const GemmKernels& kernels;
  MatrixView<float> c;
  Epilogue epilogue;
  void operator()(std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols, const float* tile, std::int64_t tile_stride,
                  int) const {
    const auto& residual = epilogue.residual;
    kernels.finish(tile, tile_stride, rows, cols, c.data + row * c.stride + col, c.stride,
                   epilogue.bias == nullptr ? nullptr : epilogue.bias + col,
                   residual.data == nullptr ? nullptr : residual.data + row * residual.stride + col, residual.stride, epilogue.activation);
  }
};

/// How the output is cut into tasks. Results do not depend on it.
struct Split {
  std::int64_t rows;    // of a task
  std::int64_t panels;  // of a task
};
/// Every task of the same columns reads the same panels again, so large packed operands are cut by rows no finer than there are workers;
/// the slack for uneven workers then comes from cutting the columns.
constexpr Split split_output(std::int64_t m, std::int64_t panels, std::int64_t panel_bytes, std::int64_t tile_rows, int workers) noexcept {
  if (workers <= 1) return {m, panels};
  const std::int64_t wanted = std::int64_t{4} * workers;
  const std::int64_t tiles = (m + tile_rows - 1) / tile_rows;
  std::int64_t row_tasks = std::min<std::int64_t>(tiles, panels * panel_bytes <= kPanelBlockBytes ? wanted : workers);
  if (row_tasks > workers) row_tasks -= row_tasks % workers;
  const std::int64_t column_tasks = std::min(panels, (wanted + row_tasks - 1) / row_tasks);
  return {(m + row_tasks - 1) / row_tasks, (panels + column_tasks - 1) / column_tasks};
}
/// Rows of a task that runs all columns in order.
constexpr std::int64_t split_rows(std::int64_t m, std::int64_t tile_rows, int workers) noexcept {
  if (workers <= 1) return m;
  const std::int64_t tiles = (m + tile_rows - 1) / tile_rows;
  const std::int64_t tasks = std::min<std::int64_t>(tiles, std::int64_t{2} * workers);
  return (m + tasks - 1) / tasks;
}

}  // namespace detail

/// Scratch of `gemm` and `gemm_tiles`: none, rows of a are read in place.
constexpr std::size_t gemm_scratch_bytes(std::int64_t /*m*/, std::int64_t /*n*/, std::int64_t /*k*/, int /*workers*/) noexcept { return 0; }

/// Calls `finish(row0, rows, col0, cols, const float* tile, tile_stride, worker)` for every finished tile of a * b^T: rows [row0, row0 +
/// rows) and columns [col0, col0 + cols) of the product, tile[r * tile_stride + c]. tile_stride is b.panel(), the tile is 64-byte aligned
/// and may be read up to column tile_stride (zero-padded rows of b give 0 there, or NaN for rows of a with NaN or infinity). One row's
/// tiles come in ascending order of columns from one worker, so state per row needs no lock; different rows come concurrently.
template <class Finish>
void gemm_tiles(MatrixView<const float> a, const PackedMatrix& b, Parallel parallel, Arena& arena, Finish&& finish) {
  NORMA_EXPECTS(a.cols == b.k());
  (void)arena;
  const auto& kernels = detail::gemm_kernels(b.instructions());
  if (a.rows == 0) return;
  parallel.run_ranges(a.rows, detail::split_rows(a.rows, kernels.rows, parallel.workers()),
                      [&](std::int64_t first, std::int64_t last, int worker) {
                        detail::multiply_rows(kernels, {a.data + first * a.stride, a.stride}, first, last - first, b.data(), b.n(), b.k(),
                                              0, b.panels(), worker, finish);
                      });
}

/// c[m, n] = epilogue(a[m, k] * b^T). Any strides; m may be 0. c must not overlap a; it may be the residual.
inline void gemm(MatrixView<const float> a, const PackedMatrix& b, MatrixView<float> c, const Epilogue& epilogue, Parallel parallel,
                 Arena& arena) {
  NORMA_EXPECTS(a.cols == b.k() && c.rows == a.rows && c.cols == b.n());
  NORMA_EXPECTS(epilogue.residual.empty() || (epilogue.residual.rows == c.rows && epilogue.residual.cols == c.cols));
  (void)arena;
  if (a.rows == 0) return;
  const auto& kernels = detail::gemm_kernels(b.instructions());
  const detail::StoreTile finish{kernels, c, epilogue};
  const auto split = detail::split_output(a.rows, b.panels(), b.panel() * b.k() * 4, kernels.rows, parallel.workers());
  const std::int64_t column_tasks = (b.panels() + split.panels - 1) / split.panels;
  const std::int64_t row_tasks = (a.rows + split.rows - 1) / split.rows;
  parallel.run(row_tasks * column_tasks, [&](std::int64_t task, int worker) {
    const std::int64_t first = task % row_tasks * split.rows;
    const std::int64_t panel = task / row_tasks * split.panels;
    detail::multiply_rows(kernels, {a.data + first * a.stride, a.stride}, first, std::min(split.rows, a.rows - first), b.data(), b.n(),
                          b.k(), panel, std::min(panel + split.panels, b.panels()), worker, finish);
  });
}

}  // namespace norma::linalg
