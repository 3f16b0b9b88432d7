/// \file
/// Covariances: of the rows of one matrix, and of one set of vectors per position, streamed image by image and mergeable.
/// Source:      Defard et al., "PaDiM", ICPR 2021, eq. 1; Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983 (merging)
/// Shapes:      sample [P, d]; mean [P, d]; products [P, d (d + 1) / 2], packed lower triangles, row after row
/// Accuracy:    images are gathered in batches of 64; a batch is centred by its own mean, multiplied in float and merged with what
///              came before, so nothing cancels however large the mean is: |error| <= (64 + images / 64 + 4) 2^-24 of the entry's
///              standard deviations' product at worst, about 3e-7 as a rule. Means are kept in double. Factors are computed in double.
/// Memory:      P (d (d + 1) / 2 + 64 d) floats + P d doubles (PaDiM: 148 MB for P = 3136, d = 100; 2.4 GB for d = 550)
/// Determinism: bitwise for a fixed machine and order of images, for any number of threads
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <norma/core/finite.hpp>
#include <norma/core/parallel.hpp>
#include <norma/core/progress.hpp>
#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/linalg/cholesky.hpp>
#include <norma/linalg/mahalanobis.hpp>
#include <norma/linalg/simd.hpp>

#define NORMA_SIMD_FILE <norma/linalg/detail/centre_rows.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE

namespace norma {

namespace linalg::detail {

using CentreRows = void (*)(const float* rows, std::int64_t count, std::int64_t dims, double* mean, float* centred, std::int64_t stride);

inline CentreRows centre_rows(InstructionSet set) noexcept {
#if NORMA_X86_DISPATCH
  if (set == InstructionSet::avx512) return simd::avx512::centre_rows;
  if (set == InstructionSet::avx2) return simd::avx2::centre_rows;
#endif
  (void)set;
  return simd::generic::centre_rows;
}

/// Adds the first `counts[r]` (at most a tile's columns) values of every row of `edge` to `rows[r]`.
using AddEdge = void (*)(const float (*edge)[kTileCols<float>], float* const* rows, const std::int64_t* counts, std::int64_t height) noexcept;

inline void add_edge_generic(const float (*edge)[kTileCols<float>], float* const* rows, const std::int64_t* counts, std::int64_t height) noexcept {
  for (std::int64_t r = 0; r < height; ++r) {
    for (std::int64_t c = 0; c < counts[r]; ++c) rows[r][c] += edge[r][c];
  }
}
#if NORMA_X86_DISPATCH
NORMA_TARGET_AVX2 inline void add_edge_avx2(const float (*edge)[kTileCols<float>], float* const* rows, const std::int64_t* counts,
                                            std::int64_t height) noexcept {
  for (std::int64_t r = 0; r < height; ++r) {
    for (std::int64_t half = 0; half < kTileCols<float>; half += 8) {
      const __m256i mask = first_lanes(counts[r] - half);
      float* const to = rows[r] + half;
      _mm256_maskstore_ps(to, mask, _mm256_add_ps(_mm256_maskload_ps(to, mask), _mm256_loadu_ps(edge[r] + half)));
    }
  }
}
#endif
inline AddEdge add_edge() noexcept {
#if NORMA_X86_DISPATCH
  if (has_avx2()) return add_edge_avx2;
#endif
  return add_edge_generic;
}

/// packed += X^T X for X [depth, d] in rows of `stride` = tile_stride(d), zero beyond column d.
inline void add_products(const float* x, std::int64_t depth, std::int64_t d, std::int64_t stride, float* packed, OuterTile<float> tile,
                         AddEdge add) noexcept {
  constexpr std::int64_t cols = kTileCols<float>;
  float spare[cols] = {};
  for (std::int64_t i = 0; i < d; i += kTileRows) {
    const std::int64_t rows = std::min(kTileRows, d - i);
    for (std::int64_t j = 0; j < i + rows; j += cols) {
      float* c[kTileRows];
      if (j + cols <= i + 1) {  // all columns lie in the triangle for every row
        for (std::int64_t r = 0; r < kTileRows; ++r) c[r] = r < rows ? packed + packed_triangle(i + r) + j : spare;
        tile(depth, x + i, stride, x + j, stride, c, 1.0f);
        continue;
      }
      float edge[kTileRows][cols] = {};
      std::int64_t counts[kTileRows];
      for (std::int64_t r = 0; r < kTileRows; ++r) c[r] = edge[r];
      tile(depth, x + i, stride, x + j, stride, c, 1.0f);
      for (std::int64_t r = 0; r < rows; ++r) {
        c[r] = packed + packed_triangle(i + r) + j;
        counts[r] = std::clamp<std::int64_t>(i + r + 1 - j, 0, cols);
      }
      add(edge, c, counts, rows);
    }
  }
}

}  // namespace linalg::detail

/// What a `GaussianAccumulator` knows, in a form that can be written to a file and continued from.
struct GaussianSums {
  std::int64_t count = 0;
  MatrixView<const double> mean;     ///< [P, d]
  MatrixView<const float> products;  ///< [P, packed_triangle(d)], sum of (x - mean) (x - mean)^T
};

/// One streaming mean and covariance per position.
class GaussianAccumulator {
 public:
  static constexpr std::int64_t kBatch = 64;

  /// An empty accumulator. It owns nothing and refuses everything; use `create`.
  GaussianAccumulator() = default;

  static Result<GaussianAccumulator> create(std::int64_t positions, std::int64_t dims) {
    if (positions < 1 || dims < 1) {
      return Status(Errc::invalid_argument, "GaussianAccumulator::create: expected at least one position and one dimension, found " +
                                                std::to_string(positions) + " and " + std::to_string(dims));
    }
    return GaussianAccumulator(positions, dims);
  }

  [[nodiscard]] std::int64_t positions() const noexcept { return positions_; }
  [[nodiscard]] std::int64_t dims() const noexcept { return dims_; }
  /// Images added so far.
  [[nodiscard]] std::int64_t count() const noexcept { return merged_ + pending_count_; }

  /// Adds one image's features [P, d]. On an error (shape, `not_finite`) nothing is added.
  Status add(MatrixView<const float> sample, Parallel parallel = {}) {
    if (sample.rows != positions_ || sample.cols != dims_ || positions_ == 0) {
      return {Errc::shape_mismatch, "GaussianAccumulator::add: wrong features, expected " + std::to_string(positions_) + " x " + std::to_string(dims_) +
                                        ", found " + std::to_string(sample.rows) + " x " + std::to_string(sample.cols)};
    }
    if (pending_.empty()) pending_ = Buffer<float>(positions_ * kBatch * dims_);
    std::vector<std::int64_t> bad(static_cast<std::size_t>((positions_ + kPositionsPerTask - 1) / kPositionsPerTask), -1);
    parallel.run_ranges(positions_, kPositionsPerTask, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t p = first; p < last; ++p) {
        const float* const from = sample.row(p).data();
        std::memcpy(pending_row(p, pending_count_), from, static_cast<std::size_t>(dims_) * sizeof(float));
        if (first_not_finite(sample.row(p)) >= 0) bad[static_cast<std::size_t>(first / kPositionsPerTask)] = p;
      }
    });
    for (const std::int64_t p : bad) {
      if (p >= 0) return {Errc::not_finite, "GaussianAccumulator::add: a feature of position " + std::to_string(p) + " is not finite"};
    }
    if (++pending_count_ == kBatch) flush(parallel);
    return {};
  }

  /// Adds several images, one after the other: [n P, d].
  Status add_batch(MatrixView<const float> samples, Parallel parallel = {}) {
    if (positions_ == 0 || samples.rows % positions_ != 0) {
      return {Errc::shape_mismatch, "GaussianAccumulator::add_batch: expected a multiple of " + std::to_string(positions_) + " rows, found " +
                                        std::to_string(samples.rows)};
    }
    for (std::int64_t first = 0; first < samples.rows; first += positions_) NORMA_CHECK(add(samples.block(first, positions_), parallel));
    return {};
  }

  /// Takes the images of another fit of the same shape in, as if they had been added here.
  Status merge(const GaussianAccumulator& other, Parallel parallel = {}) {
    if (other.positions_ != positions_ || other.dims_ != dims_ || positions_ == 0) {
      return {Errc::shape_mismatch, "GaussianAccumulator::merge: expected " + std::to_string(positions_) + " x " + std::to_string(dims_) + ", found " +
                                        std::to_string(other.positions_) + " x " + std::to_string(other.dims_)};
    }
    const std::int64_t pending = other.pending_count_;  // before anything changes: `other` may be *this
    flush(parallel);
    if (&other == this) return merge_sums(merged_, mean_, products_, parallel);
    if (other.merged_ > 0) NORMA_CHECK(merge_sums(other.merged_, other.mean_, other.products_, parallel));
    if (pending > 0) {
      merge_pending(other.pending_, pending, parallel);
      merged_ += pending;
    }
    return {};
  }

  /// The state so far, to be written to a file; the views hold until the next non-const call.
  [[nodiscard]] GaussianSums sums(Parallel parallel = {}) {
    flush(parallel);
    return {merged_, mean_.view(), products_.view()};
  }

  /// An accumulator that continues from such a state (which is copied).
  static Result<GaussianAccumulator> resume(const GaussianSums& sums) {
    if (sums.count < 0 || sums.products.rows != sums.mean.rows || sums.products.cols != packed_triangle(sums.mean.cols)) {
      return Status(Errc::shape_mismatch, "GaussianAccumulator::resume: sums that do not fit together, expected " + std::to_string(sums.mean.rows) + " x " +
                                              std::to_string(packed_triangle(sums.mean.cols)) + " products, found " + std::to_string(sums.products.rows) +
                                              " x " + std::to_string(sums.products.cols));
    }
    NORMA_TRY(auto accumulator, create(sums.mean.rows, sums.mean.cols));
    accumulator.merged_ = sums.count;
    for (std::int64_t p = 0; p < sums.mean.rows; ++p) {
      std::ranges::copy(sums.mean.row(p), accumulator.mean_.view().row(p).begin());
      std::ranges::copy(sums.products.row(p), accumulator.products_.view().row(p).begin());
    }
    return accumulator;
  }

  /// The Gaussians: unbiased covariance + regularisation * I, factored. Keeps the state, so that more images can follow.
  /// `not_enough_data` below two images; `invalid_argument` names the first position whose matrix is not positive definite.
  Result<GaussianModel> finish(double regularisation = 0.01, Parallel parallel = {}, const Observer& observer = {}) & {
    NORMA_CHECK(check_count());
    flush(parallel);
    GaussianModel model;
    model.factor = products_;
    NORMA_CHECK(factor_in_place(model, regularisation, parallel, observer));
    return model;
  }
  /// The same for an accumulator that is no longer needed: its memory becomes the model's.
  Result<GaussianModel> finish(double regularisation = 0.01, Parallel parallel = {}, const Observer& observer = {}) && {
    NORMA_CHECK(check_count());
    flush(parallel);
    pending_ = {};
    GaussianModel model;
    model.factor = std::move(products_);
    const Status done = factor_in_place(model, regularisation, parallel, observer);
    *this = GaussianAccumulator();
    NORMA_CHECK(done);
    return model;
  }

  /// Unbiased covariance of one position, [d, d], without regularisation. `not_enough_data` below two images.
  Status covariance(std::int64_t position, MatrixView<double> out) {
    NORMA_CHECK(check_count());
    if (position < 0 || position >= positions_ || out.rows != dims_ || out.cols != dims_) {
      return {Errc::shape_mismatch, "GaussianAccumulator::covariance: expected a position below " + std::to_string(positions_) + " and " +
                                        std::to_string(dims_) + " x " + std::to_string(dims_) + ", found position " + std::to_string(position) + " and " +
                                        std::to_string(out.rows) + " x " + std::to_string(out.cols)};
    }
    flush({});
    const float* packed = products_.view().row(position).data();
    for (std::int64_t r = 0; r < dims_; ++r) {
      for (std::int64_t c = 0; c <= r; ++c) out(r, c) = out(c, r) = static_cast<double>(packed[packed_triangle(r) + c]) / static_cast<double>(merged_ - 1);
    }
    return {};
  }

 private:
  static constexpr std::int64_t kPositionsPerTask = 16;

  GaussianAccumulator(std::int64_t positions, std::int64_t dims)
      : positions_(positions), dims_(dims), mean_(positions, dims), products_(positions, packed_triangle(dims)) {}

  [[nodiscard]] float* pending_row(std::int64_t position, std::int64_t image) noexcept { return pending_.data() + (position * kBatch + image) * dims_; }

  [[nodiscard]] Status check_count() const {
    if (count() >= 2) return {};
    return {Errc::not_enough_data, "GaussianAccumulator: a covariance needs at least 2 images, found " + std::to_string(count())};
  }

  void flush(Parallel parallel) {
    if (pending_count_ == 0) return;
    merge_pending(pending_, pending_count_, parallel);
    merged_ += std::exchange(pending_count_, 0);
  }

  // Centres `images` gathered images by their own mean; the difference of the two means enters as one more row of the product.
  void merge_pending(const Buffer<float>& pending, std::int64_t images, Parallel parallel) {
    namespace impl = linalg::detail;
    const std::int64_t stride = impl::tile_stride<float>(dims_);
    const auto tile = impl::outer_tile<float>();
    const auto add = impl::add_edge();
    const auto centre = impl::centre_rows(instruction_set());
    const double before = static_cast<double>(merged_), added = static_cast<double>(images), after = before + added;
    const double weight = std::sqrt(before * added / after);
    Buffer<float> centred(parallel.workers() * (kBatch + 1) * stride);
    Buffer<double> means(parallel.workers() * dims_);
    parallel.run_ranges(positions_, kPositionsPerTask, [&](std::int64_t first, std::int64_t last, int worker) {
      float* const x = centred.data() + worker * (kBatch + 1) * stride;
      double* const batch_mean = means.data() + worker * dims_;
      for (std::int64_t p = first; p < last; ++p) {
        centre(pending.data() + p * kBatch * dims_, images, dims_, batch_mean, x, stride);
        double* const mean = mean_.view().row(p).data();
        float* const extra = x + images * stride;
        for (std::int64_t j = 0; j < dims_; ++j) {
          const double step = batch_mean[j] - mean[j];
          extra[j] = static_cast<float>(weight * step);
          mean[j] += step * (added / after);
        }
        impl::add_products(x, merged_ > 0 ? images + 1 : images, dims_, stride, products_.view().row(p).data(), tile, add);
      }
    });
  }

  Status merge_sums(std::int64_t count, const Matrix<double>& other_mean, const Matrix<float>& other_products, Parallel parallel) {
    if (count == 0) return {};
    const double before = static_cast<double>(merged_), added = static_cast<double>(count), after = before + added;
    const double weight = before * added / after;
    Buffer<double> steps(parallel.workers() * dims_);
    parallel.run_ranges(positions_, kPositionsPerTask, [&](std::int64_t first, std::int64_t last, int worker) {
      double* const step = steps.data() + worker * dims_;
      for (std::int64_t p = first; p < last; ++p) {
        float* into = products_.view().row(p).data();
        const float* from = other_products.view().row(p).data();
        for (std::int64_t j = 0; j < dims_; ++j) step[j] = other_mean(p, j) - mean_(p, j);
        for (std::int64_t r = 0; r < dims_; ++r) {
          for (std::int64_t c = 0; c <= r; ++c, ++into, ++from) {
            *into = static_cast<float>(static_cast<double>(*into) + static_cast<double>(*from) + weight * step[r] * step[c]);
          }
        }
        for (std::int64_t j = 0; j < dims_; ++j) mean_(p, j) += step[j] * (added / after);
      }
    });
    merged_ += count;
    return {};
  }

  // `model.factor` holds the products on entry and the inverse factors on success.
  Status factor_in_place(GaussianModel& model, double regularisation, Parallel parallel, const Observer& observer) {
    namespace impl = linalg::detail;
    if (!(regularisation >= 0.0) || !std::isfinite(regularisation)) {
      return {Errc::invalid_argument, "GaussianAccumulator::finish: expected a regularisation >= 0, found " + std::to_string(regularisation)};
    }
    model.mean = Matrix<float>(positions_, dims_);
    const std::int64_t stride = impl::tile_stride<double>(dims_);
    const auto tile = impl::outer_tile<double>();
    const double scale = 1.0 / static_cast<double>(merged_ - 1);
    Buffer<double> work(parallel.workers() * 2 * dims_ * stride);
    Progress progress("Gaussian factors", positions_, observer);
    constexpr std::int64_t kPositionsPerReport = 256;
    for (std::int64_t done = 0; done < positions_; done += kPositionsPerReport) {
      const std::int64_t block = std::min(kPositionsPerReport, positions_ - done);
      std::int64_t failed[kPositionsPerReport];
      parallel.run(block, [&](std::int64_t task, int worker) {
        const std::int64_t p = done + task;
        double* const upper = work.data() + worker * 2 * dims_ * stride;
        double* const inverse = upper + dims_ * stride;
        std::memset(upper, 0, static_cast<std::size_t>(2 * dims_ * stride) * sizeof(double));
        float* const packed = model.factor.view().row(p).data();
        for (std::int64_t r = 0; r < dims_; ++r) {
          for (std::int64_t c = 0; c <= r; ++c) upper[c * stride + r] = static_cast<double>(packed[packed_triangle(r) + c]) * scale;
          upper[r * stride + r] += regularisation;
          model.mean(p, r) = static_cast<float>(mean_(p, r));
        }
        failed[task] = impl::factor_upper(upper, dims_, stride, tile);
        if (failed[task] != impl::kPositiveDefinite) return;
        impl::invert_lower(upper, inverse, dims_, stride, tile);
        for (std::int64_t r = 0; r < dims_; ++r) {
          for (std::int64_t c = 0; c <= r; ++c) packed[packed_triangle(r) + c] = static_cast<float>(inverse[r * stride + c]);
        }
      });
      for (std::int64_t task = 0; task < block; ++task) {
        if (failed[task] == impl::kPositiveDefinite) continue;
        return {Errc::invalid_argument, "GaussianAccumulator::finish: covariance of position " + std::to_string(done + task) +
                                            " not positive definite, expected a positive pivot in row " + std::to_string(failed[task]) +
                                            "; raise the regularisation, found " + std::to_string(regularisation)};
      }
      NORMA_CHECK(progress.advance(block));
    }
    return {};
  }

  std::int64_t positions_ = 0;
  std::int64_t dims_ = 0;
  std::int64_t merged_ = 0;         // images in mean_ and products_
  std::int64_t pending_count_ = 0;  // images gathered after them
  Matrix<double> mean_;             // [P, d]
  Matrix<float> products_;          // [P, packed_triangle(d)]
  Buffer<float> pending_;           // [P, kBatch, d], allocated by the first add
};

/// Mean [d] and unbiased covariance [d, d] (symmetric, both triangles) of the rows of a matrix [n, d].
/// T is the type of the arithmetic: float products of centred values, or double. `not_enough_data` below two rows.
template <class T>
Status covariance(MatrixView<const float> rows, std::span<T> mean, MatrixView<T> out, Parallel parallel = {}) {
  namespace impl = linalg::detail;
  const std::int64_t n = rows.rows, d = rows.cols;
  if (static_cast<std::int64_t>(mean.size()) != d || out.rows != d || out.cols != d) {
    return {Errc::shape_mismatch, "covariance: wrong output, expected " + std::to_string(d) + " and " + std::to_string(d) + " x " + std::to_string(d) +
                                      ", found " + std::to_string(mean.size()) + " and " + std::to_string(out.rows) + " x " + std::to_string(out.cols)};
  }
  if (n < 2) return {Errc::not_enough_data, "covariance: expected at least 2 rows, found " + std::to_string(n)};
  Buffer<double> exact_mean(d);
  for (std::int64_t r = 0; r < n; ++r) {
    for (std::int64_t c = 0; c < d; ++c) exact_mean[c] += static_cast<double>(rows(r, c));
  }
  for (std::int64_t c = 0; c < d; ++c) {
    exact_mean[c] /= static_cast<double>(n);
    mean[static_cast<std::size_t>(c)] = static_cast<T>(exact_mean[c]);
  }
  constexpr std::int64_t kDepth = 128;  // rows in one product
  const std::int64_t stride = impl::tile_stride<T>(d);
  const auto tile = impl::outer_tile<T>();
  Matrix<T> centred(kDepth, stride);
  Matrix<T> sums(d, stride);
  for (std::int64_t first = 0; first < n; first += kDepth) {
    const std::int64_t depth = std::min(kDepth, n - first);
    parallel.run_ranges(depth, 16, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        for (std::int64_t c = 0; c < d; ++c) centred(r, c) = static_cast<T>(static_cast<double>(rows(first + r, c)) - exact_mean[c]);
      }
    });
    parallel.run_ranges(d, impl::kTileRows, [&](std::int64_t i, std::int64_t end, int) {
      T spare[impl::kTileCols<T>] = {};
      for (std::int64_t j = i; j < d; j += impl::kTileCols<T>) {
        T* c[impl::kTileRows];
        for (std::int64_t r = 0; r < impl::kTileRows; ++r) c[r] = i + r < end ? &sums(i + r, j) : spare;
        tile(depth, &centred(0, i), stride, &centred(0, j), stride, c, T{1});
      }
    });
  }
  for (std::int64_t r = 0; r < d; ++r) {
    for (std::int64_t c = r; c < d; ++c) out(r, c) = out(c, r) = sums(r, c) / static_cast<T>(n - 1);
  }
  return {};
}

}  // namespace norma
