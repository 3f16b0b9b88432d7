// The packed matrix product: GFLOP/s, and percent of the multiply-add rate measured in the same run on the same number of threads.
// Axes: m x n x k / instruction set (0 generic, 1 AVX2, 2 AVX-512) / threads.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstddef>

#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/linalg/gemm.hpp>

#include "support/peak.hpp"

namespace {

using namespace norma;

Matrix<float> uniform_matrix(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  Matrix<float> m(rows, cols);
  Random random(seed);
  for (std::int64_t i = 0; i < rows * cols; ++i) m.data()[i] = static_cast<float>(random.uniform(-1.0, 1.0));
  return m;
}

/// Some entries against sums in double; every rounding of the chain counts u = 2^-24 of a partial sum.
bool right(const Matrix<float>& a, const Matrix<float>& b, const Matrix<float>& c) {
  Random random(3);
  for (int i = 0; i < 200; ++i) {
    const std::int64_t row = random.below(a.rows()), col = random.below(b.rows());
    double want = 0.0, size = 0.0;
    for (std::int64_t j = 0; j < a.cols(); ++j) {
      const double term = static_cast<double>(a(row, j)) * static_cast<double>(b(col, j));
      want += term;
      size += std::abs(term);
    }
    if (!(std::abs(static_cast<double>(c(row, col)) - want) <= 4.0 * std::sqrt(static_cast<double>(a.cols())) * 0x1p-24 * size))
      return false;
  }
  return true;
}

void gemm(benchmark::State& state) {
  const std::int64_t m = state.range(0), n = state.range(1), k = state.range(2);
  const auto set = static_cast<InstructionSet>(state.range(3));
  if (!available(set)) return state.SkipWithError("instruction set not available");
  ThreadPool pool(static_cast<int>(state.range(4)));
  const Parallel parallel = pool.parallel();
  const auto a = uniform_matrix(m, k, 1), b = uniform_matrix(n, k, 2);
  Matrix<float> c(m, n);
  const auto packed = linalg::PackedMatrix::pack(b.view(), set);
  Buffer<std::byte> memory(static_cast<std::int64_t>(linalg::gemm_scratch_bytes(m, n, k, parallel.workers())));
  Arena arena(memory.span());
  linalg::gemm(a.view(), packed, c.view(), {}, parallel, arena);
  if (!right(a, b, c)) return state.SkipWithError("wrong result");
  const double peak = bench::fma_peak(set, parallel);
  double best = 1e30;
  for (auto _ : state) {
    const double start = bench::work_seconds(pool.threads());
    linalg::gemm(a.view(), packed, c.view(), {}, parallel, arena);
    const double time = bench::work_seconds(pool.threads()) - start;
    state.SetIterationTime(time);
    best = std::min(best, time);
    benchmark::DoNotOptimize(c.data());
  }
  const double work = 2e-9 * static_cast<double>(m * n * k);
  state.counters["GFLOP/s"] = benchmark::Counter(work * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
  state.counters["best"] = work / best;
  state.counters["percent_of_peak"] = 100.0 * work / best / peak;
  state.counters["peak"] = peak;
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"m", "n", "k", "set", "threads"});
  for (const int threads : {1, 2}) {
    for (const int set : {2, 1, 0}) {
      b->Args({1024, 1024, 1024, set, threads});
      b->Args({784, 1640, 1024, set, threads});  // one image against a 1 % bank
      b->Args({3136, 64, 64, set, threads});     // ResNet-18 layer 1 as 1x1
      b->Args({3136, 256, 64, set, threads});    // wide ResNet-50 layer 1
      b->Args({784, 512, 256, set, threads});    // layer 2
      b->Args({196, 1024, 512, set, threads});   // layer 3
      b->Args({196, 512, 1024, set, threads});
      b->Args({197, 1152, 384, set, threads});  // DeiT-S qkv
      b->Args({1, 1000, 512, set, threads});    // a classifier
    }
  }
}
BENCHMARK(gemm)->Apply(shapes)->UseManualTime()->Unit(benchmark::kMicrosecond);

void read_bandwidth(benchmark::State& state) {
  ThreadPool pool(static_cast<int>(state.range(0)));
  double best = 0.0;
  for (auto _ : state) best = std::max(best, bench::read_bandwidth(256, pool.parallel(), instruction_set(), 1));
  state.counters["GB/s"] = best;
}
BENCHMARK(read_bandwidth)->ArgName("threads")->Arg(1)->Arg(2)->Iterations(5)->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
