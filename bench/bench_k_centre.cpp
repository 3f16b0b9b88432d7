// Greedy k-centre selection: milliseconds a pick, and percent of the multiply-add rate counted as 2 n d flop a pick.
// Axes: points x dimensions / picks / threads. PatchCore's bottle: 163 856 patches of 209 images, 128 projected dimensions (or about 300).
#include <benchmark/benchmark.h>

#include <algorithm>
#include <limits>
#include <vector>

#include <norma/core/thread_pool.hpp>
#include <norma/search/greedy_k_centre.hpp>

#include "support/feature_rows.hpp"
#include "support/peak.hpp"

namespace {

using namespace norma;

std::int64_t first_difference_from_plain_loop(const Matrix<float>& points, const std::vector<std::int64_t>& picks, std::int64_t count) {
  std::vector<double> nearest(static_cast<std::size_t>(points.rows()), std::numeric_limits<double>::infinity());
  for (std::int64_t p = 0; p < count; ++p) {
    const auto best = std::max_element(nearest.begin(), nearest.end()) - nearest.begin();
    if (picks[static_cast<std::size_t>(p)] != best) return p;
    for (std::int64_t i = 0; i < points.rows(); ++i) {
      double sum = 0.0;
      for (std::int64_t c = 0; c < points.cols(); ++c) {
        const double difference = static_cast<double>(points(i, c)) - static_cast<double>(points(best, c));
        sum += difference * difference;
      }
      nearest[static_cast<std::size_t>(i)] = std::min(nearest[static_cast<std::size_t>(i)], sum);
    }
  }
  return -1;
}

void greedy_k_centre(benchmark::State& state) {
  const std::int64_t n = state.range(0), d = state.range(1), count = state.range(2);
  ThreadPool pool(static_cast<int>(state.range(3)));
  const Parallel parallel = pool.parallel();
  const auto points = bench::feature_like_rows(n, d, 1);
  GreedyKCenter::Settings settings;
  settings.size.coreset_ratio = 1.0;
  settings.size.coreset_count = count;
  settings.projection = Projection::none;
  settings.start = KCenterStart::first_row;
  const double peak = bench::fma_peak(instruction_set(), parallel);
  double best = 1e30;
  std::vector<std::int64_t> picks;
  for (auto _ : state) {
    const double start = bench::seconds();
    auto chosen = GreedyKCenter::select(points.view(), settings, 1, parallel, {});
    const double time = bench::seconds() - start;
    if (!chosen.ok()) return state.SkipWithError(chosen.message().c_str());
    state.SetIterationTime(time);
    best = std::min(best, time);
    picks = *std::move(chosen);
  }
  if (first_difference_from_plain_loop(points, picks, std::min<std::int64_t>(count, 40)) >= 0) return state.SkipWithError("not the picks of the plain loop");
  state.counters["ms_a_pick"] = 1e3 * best / static_cast<double>(count);
  state.counters["percent_of_peak"] = 100.0 * 2e-9 * static_cast<double>(n * d) * static_cast<double>(count) / best / peak;
  state.counters["peak"] = peak;
}
BENCHMARK(greedy_k_centre)
    ->ArgNames({"points", "dims", "picks", "threads"})
    ->Args({163856, 128, 1638, 1})
    ->Args({163856, 128, 1638, 2})
    ->Args({163856, 296, 1638, 1})
    ->Args({163856, 296, 1638, 2})
    ->Args({163856, 128, 16385, 2})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1);

}  // namespace

BENCHMARK_MAIN();
