// Greedy k-centre selection on the device: milliseconds a pick. PatchCore's bottle, 163 856 patches of 209 images, 1 % of them chosen, in the 128
// projected dimensions of the default settings and in the 296 that Johnson and Lindenstrauss ask for. Axes: points / dimensions / picks.
// Peers, a pick after the other: `chain`, the kernels of the usual code in PyTorch (difference, norm, minimum, argmax; each through memory), and
// `sweep`, the same fused into one pass over the points, the least that a pick after the other can read. They make 1/16 of our picks, which cost the
// same each.
// `picks_a_sweep`; `measured`: pairs a point that were measured in double. percent_of_rate: 2 n d flop a pick.
#include "support/cuda_timer.cuh"
#include "support/feature_rows.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <norma/cuda/k_centre.hpp>

namespace norma::bench::k_centre_peers {

namespace simt = cuda::simt;

inline constexpr int kThreads = 256, kWarps = kThreads / simt::kWarp;

struct Farthest {
  float distance;
  int row;
};
NORMA_DEVICE bool ahead(Farthest a, Farthest b) { return a.distance > b.distance || (a.distance == b.distance && a.row < b.row); }

/// The block's farthest row, in thread 0.
NORMA_DEVICE Farthest block_farthest(Farthest mine) {
  const auto shared = simt::shared_array<Farthest>(0, kWarps);
  for (int mask = simt::kWarp / 2; mask > 0; mask /= 2) {
    const Farthest other{simt::warp_shuffle_xor(mine.distance, mask), simt::warp_shuffle_xor(mine.row, mask)};
    if (ahead(other, mine)) mine = other;
  }
  if (simt::lane_index() == 0) shared[simt::warp_index()] = mine;
  simt::block_barrier();
  for (int w = 1; w < kWarps && simt::thread_index() == 0; ++w) {
    const Farthest other = shared[w];
    if (ahead(other, mine)) mine = other;
  }
  return mine;
}

NORMA_KERNEL difference_kernel(MatrixView<const float> points, const std::int64_t* centre, float* difference) {
  const std::int64_t threads = simt::blocks_x() * kThreads, count = points.count();
  const float* row = points.data + *centre * points.stride;
  for (std::int64_t i = simt::block_x() * kThreads + simt::thread_index(); i < count; i += threads) {
    difference[i] = points.data[i] - row[i % points.cols];
  }
}
NORMA_KERNEL norm_kernel(MatrixView<const float> difference, float* distance) {
  const std::int64_t row = simt::block_x() * kWarps + simt::warp_index();
  if (row >= difference.rows) return;
  float sum = 0.0f;
  for (std::int64_t k = simt::lane_index(); k < difference.cols; k += simt::kWarp) sum += difference(row, k) * difference(row, k);
  sum = simt::warp_sum(sum);
  if (simt::lane_index() == 0) distance[row] = sqrtf(sum);
}
NORMA_KERNEL minimum_kernel(const float* distance, float* nearest, std::int64_t n) {
  const std::int64_t i = simt::block_x() * kThreads + simt::thread_index();
  if (i < n) nearest[i] = distance[i] < nearest[i] ? distance[i] : nearest[i];
}
NORMA_KERNEL argmax_kernel(const float* nearest, std::int64_t n, Farthest* parts) {
  Farthest best{-1.0f, 0};
  for (std::int64_t i = simt::block_x() * kThreads + simt::thread_index(); i < n; i += simt::blocks_x() * kThreads) {
    const Farthest mine{nearest[i], static_cast<int>(i)};
    if (ahead(mine, best)) best = mine;
  }
  best = block_farthest(best);
  if (simt::thread_index() == 0) parts[simt::block_x()] = best;
}
NORMA_KERNEL choose_kernel(const Farthest* parts, std::int64_t count, std::int64_t* chosen) {
  Farthest best{-1.0f, 0};
  for (std::int64_t i = simt::thread_index(); i < count; i += kThreads) {
    const Farthest part = parts[i];
    if (ahead(part, best)) best = part;
  }
  best = block_farthest(best);
  if (simt::thread_index() == 0) *chosen = best.row;
}
// Difference, norm, minimum and each block's part of the argmax: one pass over the points.
NORMA_KERNEL fused_kernel(MatrixView<const float> points, const std::int64_t* centre, float* nearest, Farthest* parts) {
  const float* row_of_centre = points.data + *centre * points.stride;
  Farthest best{-1.0f, 0};
  for (std::int64_t row = simt::block_x() * kWarps + simt::warp_index(); row < points.rows; row += simt::blocks_x() * kWarps) {
    float sum = 0.0f;
    for (std::int64_t k = 4 * simt::lane_index(); k < points.cols; k += 4 * simt::kWarp) {
      const auto a = simt::load<4>(&points(row, k));
      const auto b = simt::load<4>(row_of_centre + k);
      NORMA_UNROLL
      for (int i = 0; i < 4; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
    }
    sum = simt::warp_sum(sum);
    const float before = nearest[row], now = sum < before ? sum : before;
    if (simt::lane_index() == 0) nearest[row] = now;
    const Farthest mine{now, static_cast<int>(row)};
    if (ahead(mine, best)) best = mine;
  }
  best = block_farthest(best);
  if (simt::thread_index() == 0) parts[simt::block_x()] = best;
}

}  // namespace norma::bench::k_centre_peers

namespace {

using namespace norma;
using namespace norma::bench::k_centre_peers;

struct Memory {
  cuda::DeviceBuffer<float> points, nearest, distance, difference;
  cuda::DeviceBuffer<Farthest> parts;
  cuda::DeviceBuffer<std::int64_t> chosen;
  cuda::DeviceBuffer<std::byte> workspace;
  cuda::KCentreProblem problem;

  static Result<Memory> create(cuda::StreamRef stream, const Matrix<float>& rows, std::int64_t count) {
    Memory m;
    const std::int64_t n = rows.rows(), d = rows.cols();
    NORMA_TRY(m.points, cuda::DeviceBuffer<float>::create(n * d));
    NORMA_TRY(m.nearest, cuda::DeviceBuffer<float>::create(n));
    NORMA_TRY(m.distance, cuda::DeviceBuffer<float>::create(n));
    NORMA_TRY(m.difference, cuda::DeviceBuffer<float>::create(n * d));
    NORMA_TRY(m.parts, cuda::DeviceBuffer<Farthest>::create(2048));
    NORMA_TRY(m.chosen, cuda::DeviceBuffer<std::int64_t>::create(count));
    const std::size_t bytes = cuda::k_centre_workspace_bytes(n, d);
    NORMA_TRY(m.workspace, cuda::DeviceBuffer<std::byte>::create(static_cast<std::int64_t>(bytes)));
    NORMA_CHECK(cuda::copy_async(stream, m.points.data(), rows.data(), n * d));
    m.problem.points = {m.points.data(), n, d};
    m.problem.count = count;
    m.problem.chosen = m.chosen.data();
    m.problem.workspace = {m.workspace.data(), bytes};
    return m;
  }
};

/// The picks of the plain loop in double, from row 0.
std::vector<std::int64_t> plain_loop(const Matrix<float>& points, std::int64_t count) {
  std::vector<double> nearest(static_cast<std::size_t>(points.rows()), std::numeric_limits<double>::infinity());
  std::vector<std::int64_t> chosen;
  while (static_cast<std::int64_t>(chosen.size()) < count) {
    const auto best = std::max_element(nearest.begin(), nearest.end()) - nearest.begin();
    chosen.push_back(best);
    for (std::int64_t i = 0; i < points.rows(); ++i) {
      double sum = 0.0;
      for (std::int64_t k = 0; k < points.cols(); ++k) {
        const double difference = static_cast<double>(points(i, k)) - static_cast<double>(points(best, k));
        sum += difference * difference;
      }
      nearest[static_cast<std::size_t>(i)] = std::min(nearest[static_cast<std::size_t>(i)], sum);
    }
  }
  return chosen;
}

template <class Run>
void measure(benchmark::State& state, std::int64_t picks, std::int64_t checked, bench::Rate rate, const Run& run_of) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  const std::int64_t n = state.range(0), d = state.range(1);
  const auto rows = bench::feature_like_rows(n, d, 1);
  auto memory = Memory::create(device->stream(), rows, picks);
  if (!memory.ok()) return state.SkipWithError(memory.message().c_str());
  const auto run = run_of(*memory, state);
  std::vector<std::int64_t> chosen(static_cast<std::size_t>(picks));
  Status ran = run(device->stream());
  if (ran.ok()) ran = cuda::copy_async(device->stream(), chosen.data(), memory->chosen.data(), picks);
  if (ran.ok()) ran = cuda::detail::synchronize("bench", device->stream());
  if (!ran.ok()) return state.SkipWithError(ran.message().c_str());
  const auto want = plain_loop(rows, std::min(checked, picks));
  if (!std::equal(want.begin(), want.end(), chosen.begin())) return state.SkipWithError("not the picks of the plain loop");
  if (!device->time(state, {.flop = 2.0 * static_cast<double>(n * d) * static_cast<double>(picks), .rate = rate}, run)) return;
  state.counters["ms_a_pick"] = 1e-3 * state.counters["us"] / static_cast<double>(picks);
}

void k_centre(benchmark::State& state) {
  measure(state, state.range(2), 30, bench::Rate::tf32, [](Memory& m, benchmark::State& s) {
    // The rounds that this selection takes, so that the timed work has no answer from the host in it.
    bench::Device* device = bench::device_or_skip(s);
    cuda::KCentreReport report;
    Status counted = cuda::greedy_k_centre(device->stream(), m.problem).status();
    if (counted.ok()) counted = cuda::enqueue_k_centre_report(device->stream(), m.problem, &report);
    if (counted.ok()) counted = cuda::detail::synchronize("bench", device->stream());
    if (counted.ok()) {
      s.counters["rounds"] = static_cast<double>(report.rounds);
      s.counters["picks_a_sweep"] = static_cast<double>(report.chosen) / static_cast<double>(report.sweeps);
      s.counters["measured"] = static_cast<double>(report.measured) / static_cast<double>(m.problem.points.rows);
    }
    return [&m, counted, rounds = report.rounds](cuda::StreamRef stream) -> Status {
      NORMA_CHECK(counted);
      NORMA_CHECK(cuda::enqueue_k_centre_start(stream, m.problem));
      return cuda::enqueue_k_centre_rounds(stream, m.problem, rounds);
    };
  });
}

template <bool kFused>
void one_after_the_other(benchmark::State& state) {
  // Distances in float: near ties may fall otherwise than in double, so only the first picks are compared.
  measure(state, std::max<std::int64_t>(1, state.range(2) / 16), 5, bench::Rate::fp32, [](Memory& m, benchmark::State&) {
    return [&m](cuda::StreamRef stream) -> Status {
      using cuda::detail::ceil_div;
      using cuda::detail::launch;
      constexpr const char* kWho = "bench";
      const auto& points = m.problem.points;
      const std::int64_t n = points.rows;
      NORMA_CHECK(cuda::fill_async(stream, m.nearest.data(), 0x7f, n));    // 3.4e38
      NORMA_CHECK(cuda::fill_async(stream, m.chosen.data(), 0, 1));
      const std::size_t shared = kWarps * sizeof(Farthest);
      for (std::int64_t p = 1; p < m.chosen.size(); ++p) {
        const std::int64_t* centre = m.chosen.data() + p - 1;
        const std::int64_t parts = kFused ? std::min<std::int64_t>(2048, ceil_div(n, kWarps)) : std::min<std::int64_t>(256, ceil_div(n, kThreads));
        const cuda::detail::LaunchShape reduce{.blocks_x = parts, .threads = kThreads, .shared_bytes = shared};
        if constexpr (kFused) {
          NORMA_CHECK(launch(kWho, stream, reduce, fused_kernel, points, centre, m.nearest.data(), m.parts.data()));
        } else {
          const std::int64_t elements = std::min<std::int64_t>(16384, ceil_div(points.count(), kThreads));
          const MatrixView<const float> difference(m.difference.data(), n, points.cols);
          NORMA_CHECK(launch(kWho, stream, {.blocks_x = elements, .threads = kThreads}, difference_kernel, points, centre, m.difference.data()));
          NORMA_CHECK(launch(kWho, stream, {.blocks_x = ceil_div(n, kWarps), .threads = kThreads}, norm_kernel, difference, m.distance.data()));
          NORMA_CHECK(launch(kWho, stream, {.blocks_x = ceil_div(n, kThreads), .threads = kThreads}, minimum_kernel, m.distance.data(),
                             m.nearest.data(), n));
          NORMA_CHECK(launch(kWho, stream, reduce, argmax_kernel, m.nearest.data(), n, m.parts.data()));
        }
        NORMA_CHECK(launch(kWho, stream, {.threads = kThreads, .shared_bytes = shared}, choose_kernel, m.parts.data(), parts, m.chosen.data() + p));
      }
      return {};
    };
  });
}
void peer_chain(benchmark::State& state) { one_after_the_other<false>(state); }
void peer_sweep(benchmark::State& state) { one_after_the_other<true>(state); }

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"points", "dims", "picks"})->Args({163856, 128, 1638})->Args({163856, 296, 1638})->NORMA_CUDA_BENCHMARK;
}
BENCHMARK(k_centre)->Apply(shapes)->ArgNames({"points", "dims", "picks"})->Args({163856, 128, 16385});
BENCHMARK(peer_chain)->Apply(shapes);
BENCHMARK(peer_sweep)->Apply(shapes);

}  // namespace

NORMA_CUDA_BENCHMARK_MAIN()
