/// \file
/// Cholesky factors, solves and triangular inverses of symmetric positive definite matrices, in float or double.
/// Convention: A = U^T U, where U is the *upper* triangle and is stored row by row; L = U^T is the usual lower factor.
/// Cost: d^3/3 flop for a factor, d^3/3 for its inverse, 2 d^2 a solved column.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <norma/core/parallel.hpp>
#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/linalg/detail/outer_tile.hpp>
#include <norma/linalg/simd.hpp>

namespace norma {
namespace linalg::detail {

inline constexpr std::int64_t kPositiveDefinite = -1;

/// In place: `a` holds the upper triangle of a d x d matrix in rows of `stride` >= tile_stride(d) elements; what lies below the
/// diagonal and beyond column d is scratch but must be finite. Returns kPositiveDefinite, or the first row whose pivot is not a positive
/// finite number.
template <class T>
std::int64_t factor_upper(T* a, std::int64_t d, std::int64_t stride, OuterTile<T> tile) noexcept {
  T spare[kTileCols<T>] = {};  // target of the rows that the last block does not have
  for (std::int64_t first = 0; first < d; first += kTileRows) {
    const std::int64_t rows = d - first < kTileRows ? d - first : kTileRows;
    for (std::int64_t j = first; j < d; j += kTileCols<T>) {
      T* c[kTileRows];
      for (std::int64_t r = 0; r < kTileRows; ++r) c[r] = r < rows ? a + (first + r) * stride + j : spare;
      tile(first, a + first, stride, a + j, stride, c, T{-1});
    }
    for (std::int64_t r = first; r < first + rows; ++r) {
      T* row = a + r * stride;
      for (std::int64_t s = first; s < r; ++s) {
        const T* above = a + s * stride;
        const T factor = above[r];
        for (std::int64_t i = r; i < d; ++i) row[i] -= factor * above[i];
      }
      if (!(row[r] > T{0}) || !std::isfinite(row[r])) return r;
      const T scale = T{1} / std::sqrt(row[r]);
      for (std::int64_t i = r; i < d; ++i) row[i] *= scale;
    }
  }
  return kPositiveDefinite;
}

/// Several matrices at once, one in every lane of the vectors; the layouts stand in factor_lanes.inl.
template <class T>
struct LaneKernels {
  std::int64_t lanes;
  void (*factor)(T* l, std::int64_t blocks, T* inverse, T* pivots);
  void (*invert)(const T* l, std::int64_t blocks, const T* inverse, T* w);
  void (*load_upper)(const T* const* a, std::int64_t stride, std::int64_t dims, T* l);
  void (*store_upper)(const T* l, std::int64_t dims, T* const* a, std::int64_t stride);
  void (*load_packed)(const float* const* packed, std::int64_t dims, T scale, T* l);
  void (*store_packed)(const T* w, std::int64_t dims, float* const* packed);
};
inline constexpr std::int64_t kMostLanes = 16;

}  // namespace linalg::detail
}  // namespace norma

#define NORMA_SIMD_FILE <norma/linalg/detail/factor_lanes.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE

namespace norma {
namespace linalg::detail {

template <class T>
LaneKernels<T> lane_kernels(InstructionSet set = instruction_set()) noexcept {
  return NORMA_SIMD_SELECT(set, kLaneKernels<T>);
}

/// Workspace of one group of matrices: L in panels, two vectors for every row and, where it is wanted, W in panels.
template <class T>
struct LaneGroup {
  std::int64_t dims, lanes, blocks;
  T *l, *inverse, *pivots, *w;

  static constexpr std::int64_t elements(std::int64_t dims, std::int64_t lanes, bool with_w) noexcept {
    const std::int64_t blocks = (dims + 3) / 4;
    return padded((8 * blocks * (blocks + 1) * (with_w ? 2 : 1) + 8 * blocks) * lanes, 16);
  }
  LaneGroup(T* memory, std::int64_t dims_, std::int64_t lanes_) noexcept
      : dims(dims_),
        lanes(lanes_),
        blocks((dims_ + 3) / 4),
        l(memory),
        inverse(l + 8 * blocks * (blocks + 1) * lanes_),
        pivots(inverse + 4 * blocks * lanes_),
        w(pivots + 4 * blocks * lanes_) {}

  /// Row i of L or of the matrix that becomes it, of one lane: element k at [k * row_step()].
  [[nodiscard]] T* row(std::int64_t i, std::int64_t lane) const noexcept { return l + (8 * (i / 4) * (i / 4 + 1) + i % 4) * lanes + lane; }
  [[nodiscard]] std::int64_t row_step() const noexcept { return 4 * lanes; }
  /// Rows that fill the last block up: those of the unit matrix.
  void fill() const noexcept {
    for (std::int64_t i = dims; i < 4 * blocks; ++i) {
      for (std::int64_t lane = 0; lane < lanes; ++lane) {
        for (std::int64_t k = 0; k <= i; ++k) row(i, lane)[k * row_step()] = T(k == i);
      }
    }
  }
  /// First row of a lane's matrix whose pivot was not a positive finite number, or kPositiveDefinite.
  [[nodiscard]] std::int64_t failed(std::int64_t lane) const noexcept {
    for (std::int64_t i = 0; i < dims; ++i) {
      const T pivot = pivots[i * lanes + lane];
      if (!(pivot > T{0}) || !std::isfinite(pivot)) return i;
    }
    return kPositiveDefinite;
  }
};

NORMA_COLD inline Status no_factor(const std::string& what, double pivot, std::int64_t row) {
  const bool finite = std::isfinite(pivot);
  return {finite ? Errc::invalid_argument : Errc::not_finite, what + (finite ? " not positive definite" : " not finite") +
                                                                  ", expected a positive pivot, found " + std::to_string(pivot) +
                                                                  " in row " + std::to_string(row)};
}

}  // namespace linalg::detail

/// Replaces the upper triangle of the symmetric matrix `a` [d, d] by its factor U, A = U^T U. Reads and writes nothing below the diagonal.
/// `not_finite` where NaN or infinity turns up, `invalid_argument` where `a` is not positive definite; then `a` is unchanged.
template <class T>
Status cholesky(MatrixView<T> a) {
  if (a.rows != a.cols) {
    return {Errc::shape_mismatch,
            "cholesky: matrix not square, expected rows == cols, found " + std::to_string(a.rows) + " x " + std::to_string(a.cols)};
  }
  const std::int64_t d = a.rows;
  if (d == 0) return {};
  Matrix<T> work(d, linalg::detail::tile_stride<T>(d));
  for (std::int64_t r = 0; r < d; ++r) {
    for (std::int64_t c = r; c < d; ++c) work(r, c) = a(r, c);
  }
  const std::int64_t failed = linalg::detail::factor_upper(work.data(), d, work.cols(), linalg::detail::outer_tile<T>());
  if (failed != linalg::detail::kPositiveDefinite) {
    return linalg::detail::no_factor("cholesky: matrix", work(failed, failed), failed);
  }
  for (std::int64_t r = 0; r < d; ++r) {
    for (std::int64_t c = r; c < d; ++c) a(r, c) = work(r, c);
  }
  return {};
}

/// The same for a batch: `matrices` [n d, d] holds n of them, one after the other. They go through the vectors side by side, one in every
/// lane, which is several times as fast: 16 floats or 8 doubles at once where there is AVX-512. A factor has the same bits whatever stands
/// beside it, but other last bits than one by `cholesky`. The error names the first matrix that has no factor; that one and others like it
/// are unchanged, the rest is factored.
template <class T>
Status cholesky_batch(MatrixView<T> matrices, Parallel parallel = {}) {
  namespace impl = linalg::detail;
  const std::int64_t d = matrices.cols;
  if (d == 0 ? matrices.rows != 0 : matrices.rows % d != 0) {
    return {Errc::shape_mismatch, "cholesky_batch: expected a multiple of " + std::to_string(d) + " rows, found " + std::to_string(matrices.rows)};
  }
  if (matrices.empty()) return {};
  const std::int64_t count = matrices.rows / d;
  const auto kernels = impl::lane_kernels<T>();
  const std::int64_t lanes = kernels.lanes, scratch = impl::LaneGroup<T>::elements(d, lanes, false);
  Buffer<T> work(parallel.workers() * scratch);
  std::vector<std::int64_t> failed(static_cast<std::size_t>(count), impl::kPositiveDefinite);
  std::vector<T> pivots(static_cast<std::size_t>(count));
  parallel.run_ranges(count, lanes, [&](std::int64_t first, std::int64_t last, int worker) {
    const impl::LaneGroup<T> group(work.data() + worker * scratch, d, lanes);
    T* a[impl::kMostLanes];
    for (std::int64_t lane = 0; lane < lanes; ++lane)
      a[lane] = &matrices(std::min(first + lane, last - 1) * d, 0);  // the last one fills the lanes up
    kernels.load_upper(a, matrices.stride, d, group.l);
    group.fill();
    kernels.factor(group.l, group.blocks, group.inverse, group.pivots);
    bool all = true;
    for (std::int64_t lane = 0; lane < last - first; ++lane) {
      const auto index = static_cast<std::size_t>(first + lane);
      failed[index] = group.failed(lane);
      if (failed[index] == impl::kPositiveDefinite) continue;
      pivots[index] = group.pivots[failed[index] * lanes + lane];
      all = false;
    }
    if (all) return kernels.store_upper(group.l, d, a, matrices.stride);
    for (std::int64_t lane = 0; lane < last - first; ++lane) {
      if (failed[static_cast<std::size_t>(first + lane)] != impl::kPositiveDefinite) continue;
      for (std::int64_t k = 0; k < d; ++k) {
        for (std::int64_t i = k; i < d; ++i) matrices((first + lane) * d + k, i) = group.row(i, lane)[k * group.row_step()];
      }
    }
  });
  for (std::size_t m = 0; m < failed.size(); ++m) {
    if (failed[m] != impl::kPositiveDefinite) return impl::no_factor("cholesky_batch: matrix " + std::to_string(m), pivots[m], failed[m]);
  }
  return {};
}

/// Solves A X = B in place of `b` [d, n], given the factor U [d, d] that `cholesky` left.
template <class T>
Status cholesky_solve(MatrixView<const T> factor, MatrixView<T> b) {
  if (factor.rows != factor.cols || factor.rows != b.rows) {
    return {Errc::shape_mismatch, "cholesky_solve: expected a square factor with as many rows as the right-hand side, found " +
                                      std::to_string(factor.rows) + " x " + std::to_string(factor.cols) + " and " + std::to_string(b.rows) + " rows"};
  }
  const std::int64_t d = factor.rows;
  for (std::int64_t r = 0; r < d; ++r) {  // U^T Y = B
    for (std::int64_t s = 0; s < r; ++s) {
      const T f = factor(s, r);
      for (std::int64_t c = 0; c < b.cols; ++c) b(r, c) -= f * b(s, c);
    }
    for (std::int64_t c = 0; c < b.cols; ++c) b(r, c) /= factor(r, r);
  }
  for (std::int64_t r = d - 1; r >= 0; --r) {  // U X = Y
    for (std::int64_t s = r + 1; s < d; ++s) {
      const T f = factor(r, s);
      for (std::int64_t c = 0; c < b.cols; ++c) b(r, c) -= f * b(s, c);
    }
    for (std::int64_t c = 0; c < b.cols; ++c) b(r, c) /= factor(r, r);
  }
  return {};
}

}  // namespace norma
