// Exact nearest rows: GFLOP/s of the full product (2 m n d), and percent of the multiply-add rate measured in the same run.
// Percentages above 100 are what products of small integers, and pruning, save. ExactInFloat and ExactOnAvx2 are ExactSearch with its choice
// of the product, or of instructions, made for it.
// Axes: queries x bank rows x dimensions / k / threads. Shapes are one image of PatchCore (28 x 28 patches) or of a 56 x 56 grid
// against banks of 1, 10 and 25 % of 209 images.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include <norma/core/thread_pool.hpp>
#include <norma/search/pruned.hpp>

#include "support/feature_rows.hpp"
#include "support/peak.hpp"

namespace {

using namespace norma;

/// A few queries against brute force in double.
bool right(const Matrix<float>& bank, const Matrix<float>& queries, int k, const Matrix<std::int64_t>& row) {
  for (std::int64_t q = 0; q < queries.rows(); q += queries.rows() / 4) {
    std::vector<std::pair<double, std::int64_t>> all;
    for (std::int64_t r = 0; r < bank.rows(); ++r) {
      double sum = 0.0;
      for (std::int64_t i = 0; i < bank.cols(); ++i) {
        const double difference = static_cast<double>(bank(r, i)) - static_cast<double>(queries(q, i));
        sum += difference * difference;
      }
      all.emplace_back(sum, r);
    }
    std::partial_sort(all.begin(), all.begin() + k, all.end());
    for (int i = 0; i < k; ++i) {
      if (row(q, i) != all[static_cast<std::size_t>(i)].second) return false;
    }
  }
  return true;
}

enum class Rows { normal, feature_like };

struct ExactInFloat : ExactSearch {
  static Result<Index> prepare(MatrixView<const float> bank, Parallel parallel) { return prepare_float(bank, parallel, instruction_set()); }
};
struct ExactOnAvx2 : ExactSearch {
  static Result<Index> prepare(MatrixView<const float> bank, Parallel parallel) {
    if (!available(InstructionSet::avx2)) return Status(Errc::unsupported, "no AVX2");
    return ExactSearch::prepare(bank, parallel, InstructionSet::avx2);
  }
};

template <class SearchT, Rows kRows>
void nearest(benchmark::State& state) {
  const std::int64_t m = state.range(0), n = state.range(1), d = state.range(2);
  const int k = static_cast<int>(state.range(3));
  ThreadPool pool(static_cast<int>(state.range(4)));
  const Parallel parallel = pool.parallel();
  const auto rows = kRows == Rows::normal ? bench::normal_rows : bench::feature_like_rows;
  const auto bank = rows(n, d, 1), queries = rows(m, d, 2);
  const auto index = SearchT::prepare(bank.view(), parallel);
  if (!index.ok()) return state.SkipWithError(index.message().c_str());
  Matrix<float> distance(m, k);
  Matrix<std::int64_t> row(m, k);
  Buffer<std::byte> memory(static_cast<std::int64_t>(SearchT::scratch_bytes(m, d, k, parallel.workers())));
  Arena arena(memory.span());
  std::int64_t left = 0;
  if (!SearchT::nearest(*index, queries.view(), k, distance.view(), row.view(), parallel, arena, left).ok()) return state.SkipWithError("failed");
  if (!right(bank, queries, k, row)) return state.SkipWithError("wrong neighbours");
  const double peak = bench::fma_peak(instruction_set(), parallel);
  double best = 1e30;
  for (auto _ : state) {
    const double start = bench::seconds();
    const Status status = SearchT::nearest(*index, queries.view(), k, distance.view(), row.view(), parallel, arena);
    const double time = bench::seconds() - start;
    if (!status.ok()) return state.SkipWithError(status.message().c_str());
    state.SetIterationTime(time);
    best = std::min(best, time);
  }
  const double work = 2e-9 * static_cast<double>(m * n * d);
  state.counters["best_ms"] = 1e3 * best;
  state.counters["GFLOP/s"] = work / best;
  state.counters["percent_of_peak"] = 100.0 * work / best / peak;
  state.counters["peak"] = peak;
  state.counters["percent_left"] = 100.0 * static_cast<double>(left) / static_cast<double>(m * n);
  state.counters["index_MB"] = static_cast<double>(index->bytes()) * 1e-6;
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"queries", "bank", "dims", "k", "threads"});
  for (const int threads : {1, 2}) {
    for (const int k : {1, 9}) {
      b->Args({784, 1640, 1024, k, threads});
      b->Args({784, 16400, 1024, k, threads});
      b->Args({784, 41000, 1024, k, threads});
      b->Args({3136, 16400, 1024, k, threads});
      b->Args({784, 16400, 384, k, threads});
    }
  }
}
BENCHMARK(nearest<ExactSearch, Rows::normal>)->Apply(shapes)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(nearest<ExactInFloat, Rows::normal>)->Apply(shapes)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(nearest<ExactOnAvx2, Rows::normal>)->Apply(shapes)->UseManualTime()->Unit(benchmark::kMillisecond);

void feature_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"queries", "bank", "dims", "k", "threads"});
  for (const int threads : {1, 2}) {
    for (const int k : {1, 9}) b->Args({3136, 16400, 384, k, threads});
  }
}
BENCHMARK(nearest<ExactSearch, Rows::feature_like>)->Apply(feature_shapes)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(nearest<PrunedSearch, Rows::feature_like>)->Apply(feature_shapes)->UseManualTime()->Unit(benchmark::kMillisecond);

template <class SearchT>
void prepare(benchmark::State& state) {
  const auto bank = bench::normal_rows(state.range(0), state.range(1), 1);
  for (auto _ : state) {
    auto index = SearchT::prepare(bank.view(), {});
    benchmark::DoNotOptimize(index);
  }
}
BENCHMARK(prepare<ExactInFloat>)->ArgNames({"bank", "dims"})->Args({16400, 1024})->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(prepare<PrunedSearch>)->ArgNames({"bank", "dims"})->Args({16400, 1024})->UseRealTime()->Unit(benchmark::kMillisecond);
BENCHMARK(prepare<ExactSearch>)->ArgNames({"bank", "dims"})->Args({16400, 1024})->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
