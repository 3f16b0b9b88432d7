/// \file
/// Kernel of <norma/cuda/mahalanobis.hpp>. Reference: norma::mahalanobis.
///
/// Bound by: reading the factor. One thread block takes one position and up to eight images: the centred features go to shared memory, its warps take
/// eight rows of the packed triangle in turn. A lane reads columns lane, lane + 32, ... of the eight rows: eight loads of 128 consecutive bytes under
/// way a warp, without any alignment of the rows; a row that starts between two cache lines shares them with its neighbours, which the same warp
/// reads. Loads of 16 bytes would need another layout (rows padded to four columns: 4 % more bytes at d = 100) and a copy of every model file.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

#include <norma/cuda/detail/simt.cuh>
#include <norma/cuda/mahalanobis.hpp>

namespace norma::cuda {

struct MahalanobisPolicy {
  int warps;  ///< that share one position, at most
  friend constexpr bool operator==(const MahalanobisPolicy&, const MahalanobisPolicy&) = default;
};

/// Counted, not measured: docs/kernels/covariance.md.
struct MahalanobisTuning {
  NORMA_HD constexpr MahalanobisPolicy operator()(int /*arch*/) const { return {.warps = 4}; }
};

namespace detail {
namespace distances {

inline constexpr int kRows = 8;    // of the factor that a warp takes at a time
inline constexpr int kImages = 8;  // that share a pass

/// Bytes of shared memory: the centred features, and the sum of squares of every eight rows.
NORMA_HD constexpr std::int64_t padded_dims(std::int64_t dims) { return (dims + simt::kWarp - 1) / simt::kWarp * simt::kWarp; }
constexpr std::int64_t shared_bytes(std::int64_t dims, int images) { return 4 * images * (padded_dims(dims) + ceil_div(dims, kRows)); }

struct Task {
  const float* mean;
  const float* factor;
  const float* x;
  float* distance;
  std::int64_t x_stride, positions, images, dims;
  bool squared;
};

template <int Images, class Tuning>
NORMA_LAUNCH_BOUNDS(Tuning{}(simt::pass_arch()).warps* simt::kWarp)
NORMA_KERNEL mahalanobis_kernel(Task task) {
  const std::int64_t position = simt::block_x(), first_image = simt::block_y() * Images;
  const int dims = static_cast<int>(task.dims), stride = static_cast<int>(padded_dims(task.dims));
  const int thread = simt::thread_index(), threads = simt::block_threads(), lane = simt::lane_index();
  const int groups = (dims + kRows - 1) / kRows;
  const auto centred = simt::shared_array<float>(0, Images * stride);
  const auto sums = simt::shared_array<float>(4 * Images * stride, Images * groups);
  const float* const mean = task.mean + position * task.dims;
  for (int c = thread; c < stride; c += threads) {
    const float m = c < dims ? mean[c] : 0.0f;
    NORMA_UNROLL
    for (int b = 0; b < Images; ++b) {
      const std::int64_t image = first_image + b;
      centred[b * stride + c] = c < dims && image < task.images ? task.x[(image * task.positions + position) * task.x_stride + c] - m : 0.0f;
    }
  }
  simt::block_barrier();

  const float* const factor = task.factor + position * (task.dims * (task.dims + 1) / 2);
  for (int group = simt::warp_index(); group < groups; group += threads / simt::kWarp) {
    const int first = group * kRows, last = first + kRows < dims ? first + kRows : dims;
    const float* const row = factor + static_cast<std::int64_t>(first) * (first + 1) / 2;
    float sum[Images][kRows];
    NORMA_UNROLL
    for (int b = 0; b < Images; ++b) {
      NORMA_UNROLL
      for (int r = 0; r < kRows; ++r) sum[b][r] = 0.0f;
    }
    for (int c = lane; c - lane < last; c += simt::kWarp) {  // the warp stays together
      float w[kRows];
      NORMA_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const bool inside = c <= first + r && first + r < dims;
        w[r] = inside ? row[r * first + r * (r + 1) / 2 + c] : 0.0f;
      }
      NORMA_UNROLL
      for (int b = 0; b < Images; ++b) {
        const float y = centred[b * stride + c];
        NORMA_UNROLL
        for (int r = 0; r < kRows; ++r) sum[b][r] += w[r] * y;
      }
    }
    // The lanes' parts of eight rows: each exchange halves the rows a lane keeps, then two more finish the one that is left.
    NORMA_UNROLL
    for (int b = 0; b < Images; ++b) {
      NORMA_UNROLL
      for (int half = kRows / 2; half > 0; half /= 2) {
        const int mask = 4 * half;
        const bool upper = (lane & mask) != 0;
        NORMA_UNROLL
        for (int r = 0; r < half; ++r) {
          const float gives = upper ? sum[b][r] : sum[b][r + half];
          const float keeps = upper ? sum[b][r + half] : sum[b][r];
          sum[b][r] = keeps + simt::warp_shuffle_xor(gives, mask);
        }
      }
      float z = sum[b][0];
      z += simt::warp_shuffle_xor(z, 2);
      z += simt::warp_shuffle_xor(z, 1);
      float square = z * z;
      NORMA_UNROLL
      for (int mask = 16; mask >= 4; mask /= 2) square += simt::warp_shuffle_xor(square, mask);
      if (lane == 0) sums[b * groups + group] = square;
    }
  }
  simt::block_barrier();
  if (thread < Images && first_image + thread < task.images) {
    float square = 0.0f;
    for (int group = 0; group < groups; ++group) {
      const float part = sums[thread * groups + group];
      square += part;
    }
    task.distance[(first_image + thread) * task.positions + position] = task.squared ? square : std::sqrt(square);
  }
}

template <int Images, class Tuning>
Status run(std::string_view who, StreamRef stream, const Task& task) {
  auto* const kernel = mahalanobis_kernel<Images, Tuning>;
  NORMA_TRY(const int arch, kernel_arch(who, kernel));
  const std::int64_t warps = std::min<std::int64_t>(Tuning{}(arch).warps, ceil_div(task.dims, kRows));
  constexpr std::int64_t kMostGroups = 65535;  // of images in one launch
  for (std::int64_t first = 0; first < task.images; first += kMostGroups * Images) {
    Task part = task;
    part.images = std::min(task.images - first, kMostGroups * Images);
    part.x += first * task.positions * task.x_stride;
    part.distance += first * task.positions;
    NORMA_CHECK(launch(who, stream,
                       LaunchShape{.blocks_x = task.positions,
                                   .blocks_y = ceil_div(part.images, Images),
                                   .threads = static_cast<int>(warps) * simt::kWarp,
                                   .shared_bytes = static_cast<std::size_t>(shared_bytes(task.dims, Images))},
                       kernel, part));
  }
  return {};
}

}  // namespace distances
}  // namespace detail

template <class Tuning>
Status mahalanobis(StreamRef stream, const GaussianModelView& model, MatrixView<const float> x, float* distance, DistanceKind kind) {
  namespace impl = detail::distances;
  constexpr std::string_view kWho = "cuda::mahalanobis";
  const std::string name(kWho);
  const std::int64_t positions = model.positions(), dims = model.dims();
  const auto shape = [](std::int64_t rows, std::int64_t cols) { return std::to_string(rows) + " x " + std::to_string(cols); };
  if (positions == 0 || dims == 0) return {Errc::not_fitted, name + ": the model is empty"};
  if (model.factor.rows != positions || model.factor.cols != packed_triangle(dims)) {
    return {Errc::shape_mismatch,
            name + ": wrong factor, expected " + shape(positions, packed_triangle(dims)) + ", found " + shape(model.factor.rows, model.factor.cols)};
  }
  if (!model.mean.dense() || !model.factor.dense()) return {Errc::invalid_argument, name + ": expected a dense model, found rows with gaps"};
  if (x.cols != dims || x.rows % positions != 0) {
    return {Errc::shape_mismatch, name + ": wrong features, expected a multiple of " + std::to_string(positions) + " rows of " +
                                      std::to_string(dims) + " values, found " + shape(x.rows, x.cols)};
  }
  if (x.rows == 0) return {};
  if (x.stride < dims)
    return {Errc::invalid_argument, name + ": expected rows at least " + std::to_string(dims) + " apart, found " + std::to_string(x.stride)};
  if (distance == nullptr) return {Errc::invalid_argument, name + ": expected memory for " + std::to_string(x.rows) + " distances, found none"};
  const impl::Task task{
      model.mean.data, model.factor.data, x.data, distance, x.stride, positions, x.rows / positions, dims, kind == DistanceKind::squared};
  constexpr std::int64_t kAnyDevice = 99 * 1024;  // bytes of shared memory that every device from sm_80 on gives a block
  if (task.images == 1 || impl::shared_bytes(dims, impl::kImages) > kAnyDevice) return impl::run<1, Tuning>(kWho, stream, task);
  return impl::run<impl::kImages, Tuning>(kWho, stream, task);
}

}  // namespace norma::cuda
