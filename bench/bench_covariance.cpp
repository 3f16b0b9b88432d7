// One Gaussian per position: streaming covariance, factors, Mahalanobis distances. PaDiM: 3136 positions, 209 images, 100 dimensions
// (550 on 64 positions, so that a machine of any size can run it). Percentages are of the multiply-add rate and of the reading rate
// measured in the same run. Axes: positions / dimensions / images / threads. Memory is kept between the runs, as peers are given theirs:
// the first touch of fresh memory costs as much again as half of a fit (NORMA_BENCH_COLD=1 shows it).
#include <benchmark/benchmark.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/linalg/cholesky.hpp>
#include <norma/linalg/covariance.hpp>

#include "support/peak.hpp"

namespace {

using namespace norma;

/// Different images [n P, d].
Matrix<float> images(std::int64_t count, std::int64_t positions, std::int64_t d) {
  Matrix<float> m(count * positions, d);
  Random random(1);
  std::vector<float> values(65521);  // a prime: no position meets the same ones in every image
  for (auto& value : values) value = static_cast<float>(1.0 + random.normal());
  for (std::int64_t i = 0; i < m.rows() * d; ++i) m.data()[i] = values[static_cast<std::size_t>(i) % values.size()];
  return m;
}

/// One after the other, or all at once.
std::optional<GaussianAccumulator> sums_of(const Matrix<float>& samples, std::int64_t positions, bool at_once, Parallel parallel) {
  auto sums = GaussianAccumulator::create(positions, samples.cols());
  if (!sums.ok()) return std::nullopt;
  if (at_once) {
    if (!sums->add_batch(samples.view(), parallel).ok()) return std::nullopt;
  } else {
    for (std::int64_t first = 0; first < samples.rows(); first += positions) {
      if (!sums->add(samples.view().block(first, positions), parallel).ok()) return std::nullopt;
    }
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
    for (std::int64_t i = 0; i < count; ++i)
      mean[static_cast<std::size_t>(c)] += static_cast<double>(samples(i * positions + p, c)) / static_cast<double>(count);
  }
  for (std::int64_t r = 0; r < d; r += 7) {
    for (std::int64_t c = 0; c < d; c += 5) {
      double want = 0.0;
      for (std::int64_t i = 0; i < count; ++i) {
        want += (static_cast<double>(samples(i * positions + p, r)) - mean[static_cast<std::size_t>(r)]) *
                (static_cast<double>(samples(i * positions + p, c)) - mean[static_cast<std::size_t>(c)]) / static_cast<double>(count - 1);
      }
      if (!(std::abs(got(r, c) - want) <= 1e-5 * std::sqrt(got(r, r) * got(c, c)))) return false;
    }
  }
  return true;
}

void covariance(benchmark::State& state) {
  const std::int64_t positions = state.range(0), d = state.range(1), count = state.range(2);
  const int threads = static_cast<int>(state.range(3));
  const bool at_once = state.range(4) != 0;
  ThreadPool pool(threads);
  const Parallel parallel = pool.parallel();
  const auto samples = images(count, positions, d);
  auto sums = sums_of(samples, positions, at_once, parallel);
  if (!sums || !right(*sums, samples, positions, count)) return state.SkipWithError("wrong covariance");
  const double peak = bench::fma_peak(instruction_set(), parallel);
  double best = 1e30;
  for (auto _ : state) {
    sums.reset();
    const double start = bench::work_seconds(threads);
    sums = sums_of(samples, positions, at_once, parallel);
    const double time = bench::work_seconds(threads) - start;
    state.SetIterationTime(time);
    best = std::min(best, time);
  }
  const double work = 1e-9 * static_cast<double>(positions * d * (d + 1)) * static_cast<double>(count);  // the triangle alone
  state.counters["best_ms"] = 1e3 * best;
  state.counters["GFLOP/s"] = work / best;
  state.counters["percent_of_peak"] = 100.0 * work / best / peak;
}

/// Factor and inverse of every position in double, as a fit ends.
void factors(benchmark::State& state) {
  const std::int64_t positions = state.range(0), d = state.range(1);
  const int threads = static_cast<int>(state.range(2));
  ThreadPool pool(threads);
  const Parallel parallel = pool.parallel();
  auto sums = sums_of(images(2 * d, positions, d), positions, true, parallel);
  if (!sums) return state.SkipWithError("failed");
  const double peak = bench::fma_peak(instruction_set(), parallel) / 2.0;
  double best = 1e30;
  for (auto _ : state) {
    auto last = *sums;  // a fit gives its memory to the model
    const double start = bench::work_seconds(threads);
    const auto model = std::move(last).finish(0.01, parallel);
    const double time = bench::work_seconds(threads) - start;
    if (!model.ok()) return state.SkipWithError(model.message().c_str());
    state.SetIterationTime(time);
    best = std::min(best, time);
  }
  const double work = 2.0 / 3.0 * 1e-9 * static_cast<double>(positions * d * d * d);
  state.counters["best_ms"] = 1e3 * best;
  state.counters["GFLOP/s"] = work / best;
  state.counters["percent_of_peak"] = 100.0 * work / best / peak;
}

/// Factors alone.
template <class T>
void cholesky(benchmark::State& state) {
  const std::int64_t matrices = state.range(0), d = state.range(1);
  const int threads = static_cast<int>(state.range(2));
  ThreadPool pool(threads);
  const Parallel parallel = pool.parallel();
  auto sums = sums_of(images(2 * d, 1, d), 1, true, {});
  Matrix<double> one(d, d);
  if (!sums || !sums->covariance(0, one.view()).ok()) return state.SkipWithError("failed");
  Matrix<T> all(matrices * d, d);
  const auto fill = [&] {
    for (std::int64_t m = 0; m < matrices; ++m) {
      for (std::int64_t i = 0; i < d * d; ++i) all.data()[m * d * d + i] = static_cast<T>(one.data()[i] * (1.0 + static_cast<double>(m % 7)));
    }
  };
  fill();
  if (!cholesky_batch<T>(all.view(), parallel).ok()) return state.SkipWithError("failed");
  for (std::int64_t m = 0; m < matrices; m += matrices - 1) {
    for (std::int64_t r = 0; r < d; r += 3) {
      for (std::int64_t c = r; c < d; c += 5) {
        double sum = 0.0;
        for (std::int64_t k = 0; k <= r; ++k) sum += static_cast<double>(all(m * d + k, r)) * static_cast<double>(all(m * d + k, c));
        if (!(std::abs(sum / (1.0 + static_cast<double>(m % 7)) - one(r, c)) <= 1e-5 * std::sqrt(one(r, r) * one(c, c)))) {
          return state.SkipWithError("wrong factor");
        }
      }
    }
  }
  const double peak = bench::fma_peak(instruction_set(), parallel) * 4.0 / sizeof(T);
  double best = 1e30;
  for (auto _ : state) {
    fill();
    const double start = bench::work_seconds(threads);
    const Status status = cholesky_batch<T>(all.view(), parallel);
    const double time = bench::work_seconds(threads) - start;
    if (!status.ok()) return state.SkipWithError(status.message().c_str());
    state.SetIterationTime(time);
    best = std::min(best, time);
  }
  const double work = 1e-9 / 3.0 * static_cast<double>(matrices * d * d * d);
  state.counters["best_ms"] = 1e3 * best;
  state.counters["GFLOP/s"] = work / best;
  state.counters["percent_of_peak"] = 100.0 * work / best / peak;
}

void distances(benchmark::State& state) {
  const std::int64_t positions = state.range(0), d = state.range(1), batch = state.range(2);
  const int threads = static_cast<int>(state.range(3));
  ThreadPool pool(threads);
  const Parallel parallel = pool.parallel();
  const auto samples = images(16, positions, d);
  auto sums = sums_of(samples, positions, false, parallel);
  if (!sums) return state.SkipWithError("failed");
  const auto model = sums->finish(0.01, parallel);
  if (!model.ok()) return state.SkipWithError(model.message().c_str());
  std::vector<float> out(static_cast<std::size_t>(batch * positions));
  Buffer<std::byte> memory(static_cast<std::int64_t>(mahalanobis_scratch_bytes(d, parallel.workers())));
  Arena arena(memory.span());
  const double bandwidth = bench::read_bandwidth(256, parallel);
  double best = 1e30;
  for (auto _ : state) {
    const double start = bench::work_seconds(threads);
    const Status status = mahalanobis(model->view(), samples.view().block(0, batch * positions), out, parallel, arena);
    const double time = bench::work_seconds(threads) - start;
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
  b->ArgNames({"positions", "dims", "images", "threads", "at_once"});
  for (const int threads : {1, 2}) {
    for (const int at_once : {0, 1}) {
      b->Args({3136, 100, 209, threads, at_once});
      b->Args({64, 550, 209, threads, at_once});
    }
  }
}
void factor_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"matrices", "dims", "threads"});
  for (const int threads : {1, 2}) {
    b->Args({3136, 100, threads});
    b->Args({64, 550, threads});
  }
}
BENCHMARK(covariance)->Apply(fit_shapes)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(factors)->Apply(factor_shapes)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(cholesky<float>)->Apply(factor_shapes)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(cholesky<double>)->Apply(factor_shapes)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(distances)
    ->ArgNames({"positions", "dims", "batch", "threads"})
    ->Args({3136, 100, 1, 1})
    ->Args({3136, 100, 1, 2})
    ->Args({3136, 100, 8, 1})
    ->Args({3136, 100, 8, 2})
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace

int main(int argc, char** argv) {
#if defined(__GLIBC__)
  const char* const cold = std::getenv("NORMA_BENCH_COLD");
  if (cold == nullptr || std::strcmp(cold, "1") != 0) {
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    mallopt(M_TRIM_THRESHOLD, -1);
  }
#endif
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
