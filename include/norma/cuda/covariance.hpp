/// \file
/// Means, covariances and inverse factors of many positions on the device: what norma/linalg/covariance.hpp does on the host, with its layouts,
/// divisor and regularisation, so that states and models can be copied from one side to the other.
///
/// Source:      Defard et al., "PaDiM", ICPR 2021, eq. 1; Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983 (merging)
/// Shapes:      x [n P, d], image after image; mean [P, d]; products and factor [P, d (d + 1) / 2], packed lower triangles, row after row
/// Accuracy:    images are centred by the mean of their batch of 64 (summed in double), multiplied in float and merged, so nothing cancels
///              however large the mean is: |error of a covariance| <= (81 + n / 64) 2^-24 of the entry's standard deviations' product. Factors are
///              computed in float: docs/kernels/covariance.md says what that means for distances, and when the host's, in double, are better
/// Determinism: bitwise for a device and a size, whatever the workspace; the order of batches and merges changes the last bits
/// Errors:      launchers check sizes and report what cannot be launched. What only the device can know (a matrix that is not positive definite,
///              features that are not finite) goes to one flag per position in device memory; `check_flags` makes a Status of them on the host
///
/// Everything below is ordered on `stream`, allocates nothing, waits for nothing and may be captured; pointers are device memory, views are dense.
/// `workspace` is device memory of the `..._workspace_bytes` beside it, aligned to 256 bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/finite.hpp>
#include <norma/core/parallel.hpp>
#include <norma/core/progress.hpp>
#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/core/view.hpp>
#include <norma/cuda/runtime.hpp>
#include <norma/cuda/stream_ref.hpp>
#include <norma/linalg/mahalanobis.hpp>

namespace norma::cuda {

/// The policy behind the launchers: kernels/norma/cuda/covariance.cuh.
struct GaussianTuning;

/// Sums over images, in device memory but for their number: what the host calls GaussianSums.
struct GaussianState {
  std::int64_t count = 0;      ///< images so far; 0: the rest is not read
  MatrixView<double> mean;     ///< [P, d]
  MatrixView<float> products;  ///< [P, packed_triangle(d)], sum of (x - mean) (x - mean)^T
};

/// A fitted Gaussian per position, in device memory.
struct DeviceGaussians {
  MatrixView<float> mean;  ///< [P, d]
  MatrixView<float>
      factor;  ///< [P, packed_triangle(d)], W = L^-1 with covariance + regularisation * I = L L^T, as in GaussianModelView. NaN where it failed
  int* flags = nullptr;  ///< [P]: kPositiveDefinite, or what check_flags reads
};

/// Flag of a position that has its factor. Otherwise 2 r, where row r (the first such) has no positive pivot, or 2 r + 1, where that row is not
/// finite.
inline constexpr int kPositiveDefinite = 0x7fffffff;

/// Up to this many dimensions one thread block holds a matrix, and nothing below needs a workspace for it.
inline constexpr std::int64_t kGaussianDimsInOneBlock = 216;

namespace detail {

inline constexpr std::int64_t kGaussianBatch = 64;     // images that are centred by one mean
inline constexpr std::int64_t kGaussianBlock = 64;     // rows and columns of a block of a larger matrix
inline constexpr std::int64_t kPositionsAtOnce = 128;  // that a workspace is made for; more would only need more memory
inline constexpr std::size_t kWorkspaceAlignment = 256;

constexpr std::size_t aligned_bytes(std::int64_t elements, std::size_t size) noexcept {
  return (static_cast<std::size_t>(elements) * size + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
}
constexpr std::int64_t blocks_across(std::int64_t dims) noexcept { return (dims + kGaussianBlock - 1) / kGaussianBlock; }
/// Rows of centred features of one position: the images, and one row per batch for the step between two means.
constexpr std::int64_t centred_rows(std::int64_t images) noexcept { return images + (images + kGaussianBatch - 1) / kGaussianBatch; }

// Bytes that one position takes of a workspace. In a fit, the features are done with when the factors begin.
constexpr std::size_t observe_bytes_per_position(std::int64_t dims, std::int64_t images) noexcept {
  return aligned_bytes(centred_rows(images) * blocks_across(dims) * kGaussianBlock, sizeof(float));
}
constexpr std::size_t factor_bytes_per_position(std::int64_t dims) noexcept {
  return 2 * aligned_bytes(packed_triangle(blocks_across(dims)) * kGaussianBlock * kGaussianBlock, sizeof(float)) +
         aligned_bytes(blocks_across(dims), sizeof(int));
}
constexpr std::size_t fit_bytes_per_position(std::int64_t dims, std::int64_t images) noexcept {
  return aligned_bytes(dims, sizeof(double)) + std::max(observe_bytes_per_position(dims, images), factor_bytes_per_position(dims));
}

constexpr std::int64_t covariance_segments(std::int64_t rows, std::int64_t dims) noexcept {
  constexpr std::int64_t kMost = 512, kRows = 64, kMostFloats = std::int64_t{1} << 24;
  return std::max<std::int64_t>(1, std::min({kMost, rows / kRows, kMostFloats / packed_triangle(std::max<std::int64_t>(dims, 1))}));
}
inline constexpr std::int64_t kCovarianceSliceBatches = 4;  // of 64 rows a segment, in one go through a workspace

}  // namespace detail

/// Device bytes for any of the next four with this many images in one call (0 for finish_gaussians): 0 up to kGaussianDimsInOneBlock dimensions. Half
/// of it, or any part that holds one position, does as well; only the time differs.
constexpr std::size_t gaussian_workspace_bytes(std::int64_t positions, std::int64_t dims, std::int64_t images) noexcept {
  if (dims <= kGaussianDimsInOneBlock || positions < 1) return 0;
  return static_cast<std::size_t>(std::min(positions, detail::kPositionsAtOnce)) * detail::fit_bytes_per_position(dims, images);
}

/// Adds the images `x` [n P, d] to `state` and their number to `state.count`. Features that are not finite spoil their own position, and its flag
/// will say so.
template <class Tuning = GaussianTuning>
Status observe_gaussians(StreamRef stream, GaussianState& state, MatrixView<const float> x, std::span<std::byte> workspace);

/// Takes the images of another state of the same shape in, as if they had been added to `into`; `from` may be `into`.
template <class Tuning = GaussianTuning>
Status merge_gaussians(StreamRef stream, GaussianState& into, const GaussianState& from);

/// The Gaussians of a state of at least two images: unbiased covariance + regularisation * I, factored. `model.factor` may be the memory of
/// `state.products`, whose content is then lost.
template <class Tuning = GaussianTuning>
Status finish_gaussians(StreamRef stream, const GaussianState& state, double regularisation, const DeviceGaussians& model,
                        std::span<std::byte> workspace);

/// The same from all images at once, `x` [n P, d] with P = model.mean.rows: `x` is read once, the model written once.
template <class Tuning = GaussianTuning>
Status fit_gaussians(StreamRef stream, MatrixView<const float> x, double regularisation, const DeviceGaussians& model,
                     std::span<std::byte> workspace);

/// Device bytes for `covariance`.
constexpr std::size_t covariance_workspace_bytes(std::int64_t rows, std::int64_t dims) noexcept {
  if (rows < 1 || dims < 1) return 0;
  const std::int64_t segments = detail::covariance_segments(rows, dims);
  const std::size_t sums =
      detail::aligned_bytes(segments * packed_triangle(dims), sizeof(float)) + detail::aligned_bytes((segments + 1) * dims, sizeof(double));
  if (dims <= kGaussianDimsInOneBlock) return sums;
  return sums + static_cast<std::size_t>(std::min(segments, detail::kPositionsAtOnce)) *
                    detail::observe_bytes_per_position(dims, detail::kCovarianceSliceBatches * detail::kGaussianBatch);
}

/// Mean [d] and unbiased covariance [d, d] (symmetric, both triangles) of the rows of one matrix [n, d], n >= 2.
template <class Tuning = GaussianTuning>
Status covariance(StreamRef stream, MatrixView<const float> rows, float* mean, MatrixView<float> out, std::span<std::byte> workspace);

/// What flags that were copied to the host say: success, or the first position that has no factor, in the words of GaussianAccumulator::finish
/// (`invalid_argument`; `not_finite` where its sums were not finite).
inline Status check_flags(std::span<const int> flags, double regularisation, std::string_view who = "cuda::check_flags") {
  const auto failed = std::find_if(flags.begin(), flags.end(), [](int flag) { return flag != kPositiveDefinite; });
  if (failed == flags.end()) return {};
  const std::string where = std::string(who) + ": covariance of position " + std::to_string(failed - flags.begin());
  const std::string row = std::to_string(*failed / 2);
  if (*failed % 2 != 0)
    return {Errc::not_finite, where + " not finite in row " + row + ", expected finite features and sums within the range of float"};
  return {Errc::invalid_argument, where + " not positive definite, expected a positive pivot in row " + row + "; raise the regularisation, found " +
                                      std::to_string(regularisation)};
}

/// The streaming fit for features that lie in host memory: norma::GaussianAccumulator's calls, computed on the device, with a model on the host at
/// the end. Memory: device P (d (d + 1) / 2 + 2 d) floats, one batch of images and the workspace; pinned host memory two batches. A batch is 64
/// images or 128 MiB of them, whichever is less. While the device works on one, the next is gathered. Not for two threads at a time.
/// `norma::BasicPositionGaussian<norma::cuda::GaussianAccumulator>` is PaDiM's estimator with it; the host's `parallel` and `observer` are accepted and not needed.
class GaussianAccumulator {
 public:
  static Result<GaussianAccumulator> create(std::int64_t positions, std::int64_t dims) {
    if (positions < 1 || dims < 1) {
      return Status(Errc::invalid_argument, "cuda::GaussianAccumulator::create: expected at least one position and one dimension, found " +
                                                std::to_string(positions) + " and " + std::to_string(dims));
    }
    constexpr std::int64_t kMostFloats = std::int64_t{32} << 20;
    const std::int64_t batch = std::clamp<std::int64_t>(kMostFloats / (positions * dims), 1, detail::kGaussianBatch);
    NORMA_TRY(auto stream, Stream::create());
    GaussianAccumulator made(std::move(stream), positions, dims, batch);
    NORMA_TRY(made.mean_, DeviceBuffer<double>::create(positions * dims));
    NORMA_TRY(made.products_, DeviceBuffer<float>::create(positions * packed_triangle(dims)));
    NORMA_TRY(made.images_, DeviceBuffer<float>::create(batch * positions * dims));
    NORMA_TRY(made.workspace_, DeviceBuffer<std::byte>::create(static_cast<std::int64_t>(gaussian_workspace_bytes(positions, dims, batch))));
    for (int n = 0; n < 2; ++n) {
      NORMA_TRY(auto images, PinnedBuffer<float>::create(batch * positions * dims));
      NORMA_TRY(auto copied, Event::create());
      made.pending_.push_back({std::move(images), std::move(copied), 0, false});
    }
    return made;
  }

  [[nodiscard]] std::int64_t positions() const noexcept { return positions_; }
  [[nodiscard]] std::int64_t dims() const noexcept { return dims_; }
  /// Images added so far.
  [[nodiscard]] std::int64_t count() const noexcept { return count_ + (pending_.empty() ? 0 : pending_.front().count); }

  /// Adds one image's features [P, d]. On an error (shape, `not_finite`, the device's) nothing is added.
  Status add(MatrixView<const float> sample, Parallel /*parallel*/ = {}) {
    if (sample.rows != positions_ || sample.cols != dims_ || pending_.empty()) {
      return {Errc::shape_mismatch, "cuda::GaussianAccumulator::add: wrong features, expected " + std::to_string(positions_) + " x " +
                                        std::to_string(dims_) + ", found " + std::to_string(sample.rows) + " x " + std::to_string(sample.cols)};
    }
    for (std::int64_t p = 0; p < positions_; ++p) {
      if (first_not_finite(sample.row(p)) >= 0) {
        return {Errc::not_finite, "cuda::GaussianAccumulator::add: a feature of position " + std::to_string(p) + " is not finite"};
      }
    }
    if (pending_.front().count == batch_) NORMA_CHECK(flush());
    Pending& pending = pending_.front();
    if (pending.in_flight) NORMA_CHECK(pending.copied.synchronize());
    pending.in_flight = false;
    float* to = pending.images.data() + pending.count * positions_ * dims_;
    for (std::int64_t p = 0; p < positions_; ++p, to += dims_) std::memcpy(to, sample.row(p).data(), static_cast<std::size_t>(dims_) * sizeof(float));
    ++pending.count;
    return {};
  }

  /// Adds several images, one after the other: [n P, d]. On an error those before it stay.
  Status add_batch(MatrixView<const float> samples) {
    if (positions_ == 0 || samples.rows % positions_ != 0) {
      return {Errc::shape_mismatch, "cuda::GaussianAccumulator::add_batch: expected a multiple of " + std::to_string(positions_) + " rows, found " +
                                        std::to_string(samples.rows)};
    }
    for (std::int64_t first = 0; first < samples.rows; first += positions_) NORMA_CHECK(add(samples.block(first, positions_)));
    return {};
  }

  /// Takes the images of another fit of the same shape in, as if they had been added here. `other` keeps them.
  Status merge(GaussianAccumulator& other, Parallel /*parallel*/ = {}) {
    if (other.positions_ != positions_ || other.dims_ != dims_ || pending_.empty() || other.pending_.empty()) {
      return {Errc::shape_mismatch, "cuda::GaussianAccumulator::merge: expected " + std::to_string(positions_) + " x " + std::to_string(dims_) +
                                        ", found " + std::to_string(other.positions_) + " x " + std::to_string(other.dims_)};
    }
    NORMA_CHECK(flush());
    NORMA_CHECK(other.flush());
    NORMA_CHECK(other.stream_.synchronize());
    GaussianState into = state();
    NORMA_CHECK(merge_gaussians(stream_, into, other.state()));
    NORMA_CHECK(stream_.synchronize());  // so that `other` may go on, or go
    count_ = into.count;
    return {};
  }

  /// The Gaussians: unbiased covariance + regularisation * I, factored. Keeps the state, so that more images can follow; needs device memory for
  /// the factors beside it. `not_enough_data` below two images; `invalid_argument` names the first position whose matrix is not positive definite.
  Result<GaussianModel> finish(double regularisation = 0.01, Parallel /*parallel*/ = {}, const Observer& /*observer*/ = {}) & {
    NORMA_CHECK(check_count());
    NORMA_TRY(auto factor, DeviceBuffer<float>::create(products_.size()));
    return finish_into(factor, regularisation);
  }
  /// The same for an accumulator that is no longer needed: the factors take its memory, and it is empty afterwards.
  Result<GaussianModel> finish(double regularisation = 0.01, Parallel /*parallel*/ = {}, const Observer& /*observer*/ = {}) && {
    NORMA_CHECK(check_count());
    GaussianAccumulator last = std::move(*this);
    positions_ = dims_ = count_ = 0;
    return last.finish_into(last.products_, regularisation);
  }

 private:
  struct Pending {
    PinnedBuffer<float> images;  // [batch_, P, d]
    Event copied;
    std::int64_t count;
    bool in_flight;
  };

  GaussianAccumulator(Stream stream, std::int64_t positions, std::int64_t dims, std::int64_t batch)
      : stream_(std::move(stream)), positions_(positions), dims_(dims), batch_(batch) {}

  [[nodiscard]] GaussianState state() noexcept {
    return {count_, {mean_.data(), positions_, dims_}, {products_.data(), positions_, packed_triangle(dims_)}};
  }
  [[nodiscard]] std::span<std::byte> workspace() noexcept { return {workspace_.data(), workspace_.bytes()}; }

  [[nodiscard]] Status check_count() const {
    if (count() >= 2) return {};
    return {Errc::not_enough_data, "cuda::GaussianAccumulator: a covariance needs at least 2 images, found " + std::to_string(count())};
  }

  // Hands the gathered images to the device; gathering goes on in the other buffer.
  Status flush() {
    Pending& pending = pending_.front();
    if (pending.count == 0) return {};
    NORMA_CHECK(copy_async(stream_, images_.data(), pending.images.data(), pending.count * positions_ * dims_));
    NORMA_CHECK(pending.copied.record(stream_));
    pending.in_flight = true;  // from here on, whatever comes next
    GaussianState now = state();
    NORMA_CHECK(observe_gaussians(stream_, now, {images_.data(), pending.count * positions_, dims_}, workspace()));
    count_ = now.count;
    pending.count = 0;
    std::swap(pending_.front(), pending_.back());
    return {};
  }

  Result<GaussianModel> finish_into(DeviceBuffer<float>& factor, double regularisation) {
    NORMA_CHECK(flush());
    NORMA_TRY(auto mean, DeviceBuffer<float>::create(positions_ * dims_));
    NORMA_TRY(auto flags, DeviceBuffer<int>::create(positions_));
    const DeviceGaussians on_device{{mean.data(), positions_, dims_}, {factor.data(), positions_, packed_triangle(dims_)}, flags.data()};
    NORMA_CHECK(finish_gaussians(stream_, state(), regularisation, on_device, workspace()));
    std::vector<int> on_host(static_cast<std::size_t>(positions_));
    NORMA_CHECK(copy_async(stream_, on_host.data(), flags.data(), positions_));
    NORMA_CHECK(stream_.synchronize());
    NORMA_CHECK(check_flags(on_host, regularisation, "cuda::GaussianAccumulator::finish"));
    GaussianModel model{Matrix<float>(positions_, dims_), Matrix<float>(positions_, packed_triangle(dims_))};
    NORMA_CHECK(copy_async(stream_, model.mean.data(), mean.data(), mean.size()));
    NORMA_CHECK(copy_async(stream_, model.factor.data(), factor.data(), factor.size()));
    NORMA_CHECK(stream_.synchronize());
    return model;
  }

  Stream stream_;
  DeviceBuffer<double> mean_;     // [P, d]
  DeviceBuffer<float> products_;  // [P, packed_triangle(d)]
  DeviceBuffer<float> images_;    // [batch_, P, d]
  DeviceBuffer<std::byte> workspace_;
  std::vector<Pending> pending_;  // two: the first gathers, the second is on its way
  std::int64_t positions_ = 0;
  std::int64_t dims_ = 0;
  std::int64_t batch_ = 0;
  std::int64_t count_ = 0;  // images in mean_ and products_
};

}  // namespace norma::cuda
