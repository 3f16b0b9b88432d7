/// \file
/// Cholesky factors, solves and triangular inverses of symmetric positive definite matrices, in float or double.
/// Convention: A = U^T U, where U is the *upper* triangle and is stored row by row; L = U^T is the usual lower factor.
/// Cost: d^3/3 flop for a factor, d^3/3 for its inverse, 2 d^2 a solved column.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/linalg/detail/outer_tile.hpp>

namespace norma {
namespace linalg::detail {

inline constexpr std::int64_t kPositiveDefinite = -1;

/// In place: `a` holds the upper triangle of a d x d matrix in rows of `stride` >= tile_stride(d) elements; what lies below the
/// diagonal and beyond column d is scratch but must be finite. Returns kPositiveDefinite, or the first row whose pivot is not a positive finite number.
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

/// W = L^-1 with L = U^T, lower triangle in rows of `stride`; `w` must be zero on entry, both strides >= tile_stride(d).
template <class T>
void invert_lower(const T* u, T* w, std::int64_t d, std::int64_t stride, OuterTile<T> tile) noexcept {
  T spare[kTileCols<T>] = {};
  for (std::int64_t first = 0; first < d; first += kTileRows) {
    const std::int64_t rows = d - first < kTileRows ? d - first : kTileRows;
    for (std::int64_t j = 0; j < first; j += kTileCols<T>) {
      T* c[kTileRows];
      for (std::int64_t r = 0; r < kTileRows; ++r) c[r] = r < rows ? w + (first + r) * stride + j : spare;
      tile(first - j, u + j * stride + first, stride, w + j * stride + j, stride, c, T{-1});  // rows above j are zero in these columns
    }
    for (std::int64_t r = first; r < first + rows; ++r) {
      T* row = w + r * stride;
      row[r] = T{1};
      for (std::int64_t s = first; s < r; ++s) {
        const T factor = u[s * stride + r];
        const T* above = w + s * stride;
        for (std::int64_t i = 0; i <= s; ++i) row[i] -= factor * above[i];
      }
      const T scale = T{1} / u[r * stride + r];
      for (std::int64_t i = 0; i <= r; ++i) row[i] *= scale;
    }
  }
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
    const bool finite = std::isfinite(work(failed, failed));
    return {finite ? Errc::invalid_argument : Errc::not_finite, "cholesky: " + std::string(finite ? "matrix not positive definite" : "value not finite") +
                                                                    ", expected a positive pivot, found " + std::to_string(work(failed, failed)) + " in row " +
                                                                    std::to_string(failed)};
  }
  for (std::int64_t r = 0; r < d; ++r) {
    for (std::int64_t c = r; c < d; ++c) a(r, c) = work(r, c);
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
