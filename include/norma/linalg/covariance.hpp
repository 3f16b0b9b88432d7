/// \file
/// Covariances: of the rows of one matrix, and of one set of vectors per position, streamed image by image and mergeable.
/// Source:      Defard et al., "PaDiM", ICPR 2021, eq. 1; Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983 (merging)
/// Shapes:      sample [P, d]; mean [P, d]; products [P, d (d + 1) / 2], packed lower triangles, row after row
/// Accuracy:    images are gathered in batches of 64; a batch is centred by its own mean, multiplied in float and merged with what
///              came before, so nothing cancels however large the mean is: |error| <= (64 + images / 64 + 6) 2^-24 of the entry's
///              standard deviations' product at worst, about 3e-7 as a rule. Means are kept in double. Factors are computed in double.
/// Memory:      P (d (d + 1) / 2 + 64 d) floats + P d doubles (PaDiM: 148 MB for P = 3136, d = 100; 2.4 GB for d = 550)
/// Determinism: bitwise for a fixed machine and order of images, for any number of threads
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
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

#if NORMA_X86_DISPATCH
#include <immintrin.h>
#endif

#define NORMA_SIMD_FILE <norma/linalg/detail/centre_rows.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE
#define NORMA_SIMD_FILE <norma/linalg/detail/outer_products.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE

namespace norma {

namespace linalg::detail {

/// See centre_rows.inl and outer_products.inl.
struct CovarianceKernels {
  bool (*copy)(const float* from, std::int64_t count, float* to, bool past_caches);
  void (*centre)(const float* rows, std::int64_t row_stride, std::int64_t count, std::int64_t dims, double* mean, float* centred,
                 std::int64_t stride);
  void (*add)(const float* x, std::int64_t depth, std::int64_t d, std::int64_t stride, float* packed, const float* next, std::int64_t next_stride,
              std::int64_t next_count);
};

inline CovarianceKernels covariance_kernels(InstructionSet set = instruction_set()) noexcept {
  return {NORMA_SIMD_SELECT(set, copy_finite), NORMA_SIMD_SELECT(set, centre_rows), NORMA_SIMD_SELECT(set, add_products)};
}

/// Floats from one row to the next where the same columns of many rows are read together: with an even number of cache lines they would
/// fall into few of the cache's sets. Whole vectors may be read from every multiple of their width.
constexpr std::int64_t odd_lines(std::int64_t floats) noexcept { return (padded(floats, 16) / 16 | 1) * 16; }

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
      return {Errc::shape_mismatch, "GaussianAccumulator::add: wrong features, expected " + std::to_string(positions_) + " x " +
                                        std::to_string(dims_) + ", found " + std::to_string(sample.rows) + " x " +
                                        std::to_string(sample.cols)};
    }
    if (pending_.empty()) pending_ = Buffer<float>(kBatch * image_stride());
    // Rows of one task lie together, in memory that is not read again before the batch is full.
    const auto kernels = linalg::detail::covariance_kernels();
    const bool past_caches = kBatch * image_stride() >= kCachedFloats && sample.dense();
    float* const to = pending_.data() + pending_count_ * image_stride();
    const std::int64_t per_task = positions_per_copy();
    std::vector<std::int64_t> bad(static_cast<std::size_t>((positions_ + per_task - 1) / per_task), -1);
    parallel.run_ranges(positions_, per_task, [&](std::int64_t first, std::int64_t last, int) {
      bool finite = true;
      if (sample.dense()) {
        finite = kernels.copy(sample.row(first).data(), (last - first) * dims_, to + first * dims_, past_caches);
      } else {
        for (std::int64_t p = first; p < last; ++p) finite = kernels.copy(sample.row(p).data(), dims_, to + p * dims_, false) && finite;
      }
      if (finite) return;
      std::int64_t p = first;
      while (first_not_finite(sample.row(p)) < 0) ++p;
      bad[static_cast<std::size_t>(first / per_task)] = p;
    });
    for (const std::int64_t p : bad) {
      if (p >= 0) return {Errc::not_finite, "GaussianAccumulator::add: a feature of position " + std::to_string(p) + " is not finite"};
    }
    if (++pending_count_ == kBatch) flush(parallel);
    return {};
  }

  /// Adds several images, one after the other: [n P, d]. The first ones, if they are 64 or more, are not copied, which takes less
  /// time than one `add` for each.
  Status add_batch(MatrixView<const float> samples, Parallel parallel = {}) {
    if (positions_ == 0 || samples.rows % positions_ != 0) {
      return {Errc::shape_mismatch, "GaussianAccumulator::add_batch: expected a multiple of " + std::to_string(positions_) + " rows, found " +
                                        std::to_string(samples.rows)};
    }
    // Many images are taken from where they lie, all of a position's one after the other: its sums then come from memory once. A value that
    // is not finite shows in a mean: then what was done is undone, and the images go one after the other up to the one that is refused.
    std::int64_t first = 0;
    if (count() == 0 && samples.rows >= kBatch * positions_ && samples.cols == dims_) {
      const std::int64_t images = samples.rows / positions_;
      if (merge_images(samples.data, positions_ * samples.stride, samples.stride, images, parallel)) {
        merged_ = images;
        first = samples.rows;
      } else {
        std::fill_n(mean_.data(), positions_ * dims_, 0.0);
        std::fill_n(products_.data(), positions_ * products_.cols(), 0.0f);
      }
    }
    for (; first < samples.rows; first += positions_) NORMA_CHECK(add(samples.block(first, positions_), parallel));
    return {};
  }

  /// Takes the images of another fit of the same shape in, as if they had been added here.
  Status merge(const GaussianAccumulator& other, Parallel parallel = {}) {
    if (other.positions_ != positions_ || other.dims_ != dims_ || positions_ == 0) {
      return {Errc::shape_mismatch, "GaussianAccumulator::merge: expected " + std::to_string(positions_) + " x " + std::to_string(dims_) +
                                        ", found " + std::to_string(other.positions_) + " x " + std::to_string(other.dims_)};
    }
    const std::int64_t pending = other.pending_count_;  // before anything changes: `other` may be *this
    flush(parallel);
    if (&other == this) return merge_sums(merged_, mean_, products_, parallel);
    if (other.merged_ > 0) NORMA_CHECK(merge_sums(other.merged_, other.mean_, other.products_, parallel));
    if (pending > 0) {
      (void)merge_images(other.pending_.data(), image_stride(), dims_, pending, parallel);
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
      return Status(Errc::shape_mismatch, "GaussianAccumulator::resume: sums that do not fit together, expected " +
                                              std::to_string(sums.mean.rows) + " x " + std::to_string(packed_triangle(sums.mean.cols)) +
                                              " products, found " + std::to_string(sums.products.rows) + " x " +
                                              std::to_string(sums.products.cols));
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
                                        std::to_string(dims_) + " x " + std::to_string(dims_) + ", found position " +
                                        std::to_string(position) + " and " + std::to_string(out.rows) + " x " + std::to_string(out.cols)};
    }
    flush({});
    const float* packed = products_.view().row(position).data();
    for (std::int64_t r = 0; r < dims_; ++r) {
      for (std::int64_t c = 0; c <= r; ++c)
        out(r, c) = out(c, r) = static_cast<double>(packed[packed_triangle(r) + c]) / static_cast<double>(merged_ - 1);
    }
    return {};
  }

 private:
  static constexpr std::int64_t kPositionsPerTask = 16;
  static constexpr std::uint64_t kInfinity = 0x7ff0000000000000u, kLowestExponent = 0x0010000000000000u;
  static constexpr std::int64_t kCachedFloats = 4 * (1 << 20);  // a batch larger than this leaves the caches before it is used

  GaussianAccumulator(std::int64_t positions, std::int64_t dims)
      : positions_(positions), dims_(dims), mean_(positions, dims), products_(positions, packed_triangle(dims)) {}

  [[nodiscard]] std::int64_t image_stride() const noexcept { return linalg::detail::odd_lines(positions_ * dims_); }

  // About 64 KB; a multiple of 16, so that every task starts at a cache line. A small image is not worth waking anybody.
  [[nodiscard]] std::int64_t positions_per_copy() const noexcept {
    return positions_ * dims_ < (1 << 16) ? positions_ : 16 * std::max<std::int64_t>(1, 1024 / dims_);
  }
  // Positions that are merged by one task: fewer of the large ones, so that there are tasks enough.
  [[nodiscard]] std::int64_t positions_per_merge() const noexcept { return std::clamp<std::int64_t>(1024 / dims_, 1, kPositionsPerTask); }

  [[nodiscard]] Status check_count() const {
    if (count() >= 2) return {};
    return {Errc::not_enough_data, "GaussianAccumulator: a covariance needs at least 2 images, found " + std::to_string(count())};
  }

  void flush(Parallel parallel) {
    if (pending_count_ == 0) return;
    (void)merge_images(pending_.data(), image_stride(), dims_, pending_count_, parallel);  // finite, or they would not be there
    merged_ += std::exchange(pending_count_, 0);
  }

  // Merges images that lie `image_stride` floats apart, a position's rows in each `row_stride` apart, in batches: a batch is centred by its
  // own mean, and the difference of the two means enters as one more row of the product. The caller counts them. Whether all means are
  // finite, and with them all values.
  bool merge_images(const float* first_image, std::int64_t image_stride, std::int64_t row_stride, std::int64_t images, Parallel parallel) {
    namespace impl = linalg::detail;
    const std::int64_t stride = impl::odd_lines(dims_);
    const auto kernels = impl::covariance_kernels();
    Buffer<float> centred(parallel.workers() * (kBatch + 1) * stride);
    Buffer<double> means(parallel.workers() * dims_);
    std::atomic<bool> finite{true};
    parallel.run_ranges(positions_, positions_per_merge(), [&](std::int64_t first, std::int64_t last, int worker) {
      float* const x = centred.data() + worker * (kBatch + 1) * stride;
      double* const batch_mean = means.data() + worker * dims_;
      for (std::int64_t p = first; p < last; ++p) {
        double* const mean = mean_.view().row(p).data();
        for (std::int64_t done = 0; done < images; done += kBatch) {
          const std::int64_t count = std::min(kBatch, images - done), old = merged_ + done;
          const double before = static_cast<double>(old), added = static_cast<double>(count), after = before + added;
          const double weight = std::sqrt(before * added / after);
          const float* const rows = first_image + p * row_stride + done * image_stride;
          kernels.centre(rows, image_stride, count, dims_, batch_mean, x, stride);
          float* const extra = x + count * stride;
          std::uint64_t exponents = 0;  // the sign bit is set where all bits of an exponent are
          for (std::int64_t j = 0; j < dims_; ++j) {
            const double step = batch_mean[j] - mean[j];
            extra[j] = static_cast<float>(weight * step);
            mean[j] += step * (added / after);
            exponents |= (std::bit_cast<std::uint64_t>(batch_mean[j]) & kInfinity) + kLowestExponent;
          }
          if (exponents >> 63 != 0) return finite.store(false, std::memory_order_relaxed);
          const bool more = done + kBatch < images;  // of this position
          const float* const next = more                ? rows + kBatch * image_stride
                                    : p + 1 < positions_ ? first_image + (p + 1) * row_stride
                                                         : nullptr;
          const std::int64_t next_count = std::min(kBatch, more ? images - done - kBatch : images);
          kernels.add(x, old > 0 ? count + 1 : count, dims_, stride, products_.view().row(p).data(), next, image_stride, next_count);
        }
      }
    });
    return finite.load(std::memory_order_relaxed);
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
    const double scale = 1.0 / static_cast<double>(merged_ - 1);
    const auto kernels = impl::lane_kernels<double>();
    const std::int64_t lanes = kernels.lanes, scratch = impl::LaneGroup<double>::elements(dims_, lanes, true);
    Buffer<double> work(parallel.workers() * scratch);
    Progress progress("Gaussian factors", positions_, observer);
    constexpr std::int64_t kPositionsPerReport = 256;
    for (std::int64_t done = 0; done < positions_; done += kPositionsPerReport) {
      const std::int64_t block = std::min(kPositionsPerReport, positions_ - done);
      std::int64_t failed[kPositionsPerReport];
      parallel.run_ranges(block, lanes, [&](std::int64_t first, std::int64_t last, int worker) {
        const impl::LaneGroup<double> group(work.data() + worker * scratch, dims_, lanes);
        float* packed[impl::kMostLanes];
        for (std::int64_t lane = 0; lane < lanes; ++lane)
          packed[lane] = &model.factor(done + std::min(first + lane, last - 1), 0);  // the last one fills the lanes up
        kernels.load_packed(packed, dims_, scale, group.l);
        for (std::int64_t i = 0; i < dims_; ++i) {
          for (std::int64_t lane = 0; lane < lanes; ++lane) group.row(i, lane)[i * group.row_step()] += regularisation;
        }
        group.fill();
        kernels.factor(group.l, group.blocks, group.inverse, group.pivots);
        bool all = true;
        for (std::int64_t lane = 0; lane < last - first; ++lane) {
          failed[first + lane] = group.failed(lane);
          all = all && failed[first + lane] == impl::kPositiveDefinite;
        }
        if (!all) return;
        kernels.invert(group.l, group.blocks, group.inverse, group.w);
        kernels.store_packed(group.w, dims_, packed);
        for (std::int64_t p = done + first; p < done + last; ++p) {
          for (std::int64_t i = 0; i < dims_; ++i) model.mean(p, i) = static_cast<float>(mean_(p, i));
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
  Buffer<float> pending_;           // [kBatch, image_stride()], allocated by the first add
};

/// Mean [d] and unbiased covariance [d, d] (symmetric, both triangles) of the rows of a matrix [n, d].
/// T is the type of the arithmetic: float products of centred values, or double. `not_enough_data` below two rows.
template <class T>
Status covariance(MatrixView<const float> rows, std::span<T> mean, MatrixView<T> out, Parallel parallel = {}) {
  namespace impl = linalg::detail;
  const std::int64_t n = rows.rows, d = rows.cols;
  if (static_cast<std::int64_t>(mean.size()) != d || out.rows != d || out.cols != d) {
    return {Errc::shape_mismatch, "covariance: wrong output, expected " + std::to_string(d) + " and " + std::to_string(d) + " x " +
                                      std::to_string(d) + ", found " + std::to_string(mean.size()) + " and " + std::to_string(out.rows) +
                                      " x " + std::to_string(out.cols)};
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
