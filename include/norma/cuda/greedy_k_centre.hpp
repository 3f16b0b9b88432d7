/// \file
/// Subset policy: PatchCore's coreset, chosen on the device, for MemoryBank<cuda::GreedyKCenter, ...>. docs/policies/subset.md has the settings.
/// Plain C++; a program that uses it links norma::cuda.
/// Method:      norma/cuda/k_centre.hpp. Points go to the device through pinned memory, are projected there, and only the chosen rows come back
/// Same as:     norma::GreedyKCenter. With `projection` none the picks are the same up to distances that agree to 1e-14; with a projection the map is
///              the same and its products are rounded in another order, so that points whose distances agree to about 1e-6 may change places
/// Memory:      on the device two copies of the (projected) points, 12 bytes a point and 8.2 MiB; 32 MiB of pinned memory
/// Determinism: the same picks for the same points, settings and seed on one kind of device; without a projection on every device
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/concepts/subset.hpp>
#include <norma/core/random.hpp>
#include <norma/cuda/k_centre.hpp>
#include <norma/cuda/runtime.hpp>
#include <norma/search/greedy_k_centre.hpp>
#include <norma/search/random_projection.hpp>
#include <norma/search/subset.hpp>

namespace norma::cuda {

struct GreedyKCenter {
  /// The host's name: a bank that was chosen here is a bank like any other, and its file opens without a device.
  static constexpr std::string_view name = norma::GreedyKCenter::name;
  using Settings = norma::GreedyKCenter::Settings;
  static Status validate(const Settings& settings) { return norma::GreedyKCenter::validate(settings); }

  /// Rows in the order of choice, as norma::GreedyKCenter::select. Also fails with what the device reports: `not_found` without one, `out_of_memory`.
  static Result<std::vector<std::int64_t>> select(MatrixView<const float> points, const Settings& settings, std::uint64_t seed, Parallel,
                                                  const Observer& observer) {
    NORMA_CHECK(validate(settings));
    NORMA_CHECK(search::detail::check_points("cuda::GreedyKCenter", points));
    const std::int64_t count = settings.size.of(points.rows, points.cols);
    const std::int64_t dims = settings.projection_dims > 0 ? settings.projection_dims : johnson_lindenstrauss_dims(points.rows, 0.9);
    Matrix<float> map;
    if (settings.projection != Projection::none && dims < points.cols) map = projection_matrix(settings.projection, dims, points.cols, seed);

    NORMA_TRY(const Stream stream, Stream::create());
    NORMA_TRY(const Rows rows, upload(stream, points, map));
    KCentreProblem problem{.points = rows.view, .count = count};
    Random random(seed);
    DeviceBuffer<std::int64_t> start_rows;
    DeviceBuffer<double> initial;
    std::vector<std::int64_t> starts;
    if (settings.start == KCenterStart::approximate) {
      starts = sample_without_replacement(points.rows, std::min(norma::GreedyKCenter::kStartPoints, points.rows), random);
      const auto number = static_cast<std::int64_t>(starts.size());
      NORMA_TRY(start_rows, DeviceBuffer<std::int64_t>::create(number));
      NORMA_TRY(initial, DeviceBuffer<double>::create(points.rows));
      NORMA_CHECK(copy_async(stream, start_rows.data(), starts.data(), number));
      NORMA_CHECK(k_centre_mean_distances(stream, rows.view, start_rows.data(), number, initial.data()));
      problem.initial = initial.data();
    } else if (settings.start == KCenterStart::random) {
      problem.first_row = random.below(points.rows);
    }
    NORMA_TRY(DeviceBuffer<std::int64_t> chosen, DeviceBuffer<std::int64_t>::create(count));
    const std::size_t bytes = k_centre_workspace_bytes(points.rows, rows.view.cols);
    NORMA_TRY(DeviceBuffer<std::byte> workspace, DeviceBuffer<std::byte>::create(static_cast<std::int64_t>(bytes)));
    problem.chosen = chosen.data();
    problem.workspace = {workspace.data(), bytes};
    return greedy_k_centre(stream, problem, observer);
  }

 private:
  /// Points in device memory, rows at multiples of 16 bytes.
  struct Rows {
    DeviceBuffer<float> memory;
    MatrixView<const float> view;
  };
  static constexpr std::int64_t kFloatsAtOnce = std::int64_t{1} << 22;

  static std::int64_t padded(std::int64_t cols) noexcept { return (cols + 3) / 4 * 4; }

  /// `count` rows, packed as the device wants them: zeros up to the stride.
  static void pack(MatrixView<const float> from, float* to, std::int64_t stride) {
    for (std::int64_t r = 0; r < from.rows; ++r, to += stride) {
      std::memcpy(to, from.row(r).data(), static_cast<std::size_t>(from.cols) * sizeof(float));
      std::fill(to + from.cols, to + stride, 0.0f);
    }
  }

  /// The points, or their products with the map, slab by slab: one is packed while the other is on its way.
  static Result<Rows> upload(const Stream& stream, MatrixView<const float> points, const Matrix<float>& map) {
    const bool projects = !map.empty();
    const std::int64_t stride = padded(points.cols), slab = std::min(points.rows, std::max<std::int64_t>(1, kFloatsAtOnce / stride));
    const std::int64_t cols = projects ? map.rows() : points.cols, kept_stride = padded(cols);
    Rows rows;
    NORMA_TRY(rows.memory, DeviceBuffer<float>::create(points.rows * kept_stride));
    rows.view = {rows.memory.data(), points.rows, cols, kept_stride};
    NORMA_TRY(PinnedBuffer<float> staging, PinnedBuffer<float>::create(2 * slab * stride));
    NORMA_TRY(Event first, Event::create());
    NORMA_TRY(Event second, Event::create());
    Event* const sent[2] = {&first, &second};
    DeviceBuffer<float> device_map, raw;
    std::vector<float> packed_map;
    if (projects) {
      NORMA_TRY(device_map, DeviceBuffer<float>::create(map.rows() * stride));
      NORMA_TRY(raw, DeviceBuffer<float>::create(slab * stride));
      packed_map.resize(static_cast<std::size_t>(map.rows() * stride));
      pack(map.view(), packed_map.data(), stride);
      NORMA_CHECK(copy_async(stream, device_map.data(), packed_map.data(), device_map.size()));
    }
    for (std::int64_t row = 0, turn = 0; row < points.rows; row += slab, ++turn) {
      const std::int64_t count = std::min(slab, points.rows - row);
      float* const half = staging.data() + turn % 2 * slab * stride;
      if (turn >= 2) NORMA_CHECK(sent[turn % 2]->synchronize());
      pack(points.block(row, count), half, stride);
      NORMA_CHECK(copy_async(stream, projects ? raw.data() : rows.memory.data() + row * stride, half, count * stride));
      NORMA_CHECK(sent[turn % 2]->record(stream));
      if (projects) {
        NORMA_CHECK(k_centre_project(stream, {raw.data(), count, points.cols, stride}, {device_map.data(), map.rows(), map.cols(), stride},
                                     {rows.memory.data() + row * kept_stride, count, cols, kept_stride}));
      }
    }
    NORMA_CHECK(stream.synchronize());  // the staging memory goes
    return rows;
  }
};

static_assert(Subset<GreedyKCenter>);

}  // namespace norma::cuda
