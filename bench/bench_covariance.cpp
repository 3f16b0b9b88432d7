// One Gaussian per position: streaming covariance, factors, Mahalanobis distances. PaDiM: 3136 positions, 209 images, 100 dimensions
// (550 on 64 positions, so that a machine of any size can run it). Percentages are of the multiply-add rate and of the reading rate
// measured in the same run. Axes: positions / dimensions / images / threads.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <vector>

#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/linalg/covariance.hpp>

#include "support/peak.hpp"

namespace {

using namespace norma;

/// Eight different images [8 P, d], used in turn.
Matrix<float> images(std::int64_t positions, std::int64_t d) {
  Matrix<float> m(8 * positions, d);
  Random random(1);
  for (std::int64_t i = 0; i < 8 * positions * d; ++i) m.data()[i] = static_cast<float>(1.0 + random.normal());
  return m;
}

std::optional<GaussianAccumulator> sums_of(const Matrix<float>& samples, std::int64_t positions, std::int64_t count, Parallel parallel) {
  auto sums = GaussianAccumulator::create(positions, samples.cols());
  if (!sums.ok()) return std::nullopt;
  for (std::int64_t i = 0; i < count; ++i) {
    if (!sums->add(samples.view().block(i % 8 * positions, positions), parallel).ok()) return std::nullopt;
  }
  (void)sums->sums(parallel);
  return *std::move(sums);
}

bool right(GaussianAccumulator& sums, const Matrix<float>& samples, std::int64_t positions, std::int64_t count) {
  const std::int64_t d = samples.cols(), p = positions / 2;
  Matrix<double> got(d, d);
  if (!sums.covariance(p, got.view()).ok()) return false;
  std::vector<double> mean(static_cast<std::size_t>(d));
  for (std::int64_t c = 0; c < d; ++c) {
    for (std::int64_t i = 0; i < count; ++i) mean[static_cast<std::size_t>(c)] += static_cast<double>(samples(i % 8 * positions + p, c)) / static_cast<double>(count);
  }
  for (std::int64_t r = 0; r < d; r += 7) {
    for (std::int64_t c = 0; c < d; c += 5) {
      double want = 0.0;
      for (std::int64_t i = 0; i < count; ++i) {
        want += (static_cast<double>(samples(i % 8 * positions + p, r)) - mean[static_cast<std::size_t>(r)]) *
                (static_cast<double>(samples(i % 8 * positions + p, c)) - mean[static_cast<std::size_t>(c)]) / static_cast<double>(count - 1);
      }
      if (!(std::abs(got(r, c) - want) <= 1e-5 * std::sqrt(got(r, r) * got(c, c)))) return false;
    }
  }
  return true;
}

void covariance(benchmark::State& state) {
  const std::int64_t positions = state.range(0), d = state.range(1), count = state.range(2);
  ThreadPool pool(static_cast<int>(state.range(3)));
  const Parallel parallel = pool.parallel();
  const auto samples = images(positions, d);
  auto sums = sums_of(samples, positions, count, parallel);
  if (!sums || !right(*sums, samples, positions, count)) return state.SkipWithError("wrong covariance");
  const double peak = bench::fma_peak(instruction_set(), parallel);
  double best = 1e30;
  for (auto _ : state) {
    const double start = bench::seconds();
    benchmark::DoNotOptimize(sums_of(samples, positions, count, parallel));
    const double time = bench::seconds() - start;
    state.SetIterationTime(time);
    best = std::min(best, time);
  }
  const double work = 1e-9 * static_cast<double>(positions * d * (d + 1)) * static_cast<double>(count);  // the triangle alone
  state.counters["best_ms"] = 1e3 * best;
  state.counters["GFLOP/s"] = work / best;
  state.counters["percent_of_peak"] = 100.0 * work / best / peak;
}

void factors(benchmark::State& state) {
  const std::int64_t positions = state.range(0), d = state.range(1), count = state.range(2);
  ThreadPool pool(static_cast<int>(state.range(3)));
  const Parallel parallel = pool.parallel();
  auto sums = sums_of(images(positions, d), positions, count, parallel);
  if (!sums) return state.SkipWithError("failed");
  double best = 1e30;
  for (auto _ : state) {
    const double start = bench::seconds();
    const auto model = sums->finish(0.01, parallel);
    const double time = bench::seconds() - start;
    if (!model.ok()) return state.SkipWithError(model.message().c_str());
    state.SetIterationTime(time);
    best = std::min(best, time);
  }
  state.counters["best_ms"] = 1e3 * best;
  state.counters["GFLOP/s"] = 2.0 / 3.0 * 1e-9 * static_cast<double>(positions * d * d * d) / best;  // in double: factor and inverse
}

void distances(benchmark::State& state) {
  const std::int64_t positions = state.range(0), d = state.range(1), batch = state.range(2);
  ThreadPool pool(static_cast<int>(state.range(3)));
  const Parallel parallel = pool.parallel();
  const auto samples = images(positions, d);
  auto sums = sums_of(samples, positions, 16, parallel);
  if (!sums) return state.SkipWithError("failed");
  const auto model = sums->finish(0.01, parallel);
  if (!model.ok()) return state.SkipWithError(model.message().c_str());
  std::vector<float> out(static_cast<std::size_t>(batch * positions));
  Buffer<std::byte> memory(static_cast<std::int64_t>(mahalanobis_scratch_bytes(d, parallel.workers())));
  Arena arena(memory.span());
  const double bandwidth = bench::read_bandwidth(256, parallel);
  double best = 1e30;
  for (auto _ : state) {
    const double start = bench::seconds();
    const Status status = mahalanobis(model->view(), samples.view().block(0, batch * positions), out, parallel, arena);
    const double time = bench::seconds() - start;
    if (!status.ok()) return state.SkipWithError(status.message().c_str());
    state.SetIterationTime(time);
    best = std::min(best, time);
  }
  const double bytes = 4e-9 * static_cast<double>(positions) * static_cast<double>(packed_triangle(d) + d * (batch + 1));
  state.counters["best_ms"] = 1e3 * best;
  state.counters["ms_an_image"] = 1e3 * best / static_cast<double>(batch);
  state.counters["GB/s"] = bytes / best;
  state.counters["percent_of_bandwidth"] = 100.0 * bytes / best / bandwidth;
}

void fit_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"positions", "dims", "images", "threads"});
  for (const int threads : {1, 2}) {
    b->Args({3136, 100, 209, threads});
    b->Args({64, 550, 209, threads});
  }
}
BENCHMARK(covariance)->Apply(fit_shapes)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(factors)->Apply(fit_shapes)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(distances)
    ->ArgNames({"positions", "dims", "batch", "threads"})
    ->Args({3136, 100, 1, 1})
    ->Args({3136, 100, 1, 2})
    ->Args({3136, 100, 8, 1})
    ->Args({3136, 100, 8, 2})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
