// Whole backbones at 224 x 224 (their own size where it differs) up to the two outputs that PatchCore takes: milliseconds, GFLOP/s of direct
// arithmetic, and percent of the multiply-add rate measured in the same run (Winograd's saving counts, so more than 100 is possible).
// Weights are made by formula (tests/support/formula_weights.hpp); before timing the outputs are compared with PyTorch's norms.
// On a busy machine read cpu_ms, the processor time of the best call (one thread only): it leaves out what others took.
// Axes: network / batch / threads. Peers: bash bench/peers/run.sh backbones, same shapes and outputs.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <string>
#include <vector>

#include <norma/backbones/backbones.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/nn/executor.hpp>
#include <tests/support/formula_weights.hpp>

#include "support/peak.hpp"

namespace {

using namespace norma;

struct Running {
  nn::Executor executor;
  Buffer<std::byte> memory;
  Tensor<float> input;

  Status run(Parallel parallel, std::vector<TensorView<const float>>& outputs) {
    Arena arena(memory.span());
    return executor.run(input.view(), arena, parallel, outputs);
  }
};

Result<Running> prepare(const AnyNetwork& network, test::FormulaGains gains, std::int64_t batch, std::int64_t height, std::int64_t width,
                        Parallel parallel) {
  NORMA_TRY(auto plan, nn::Plan::create(network.graph(), network.taps().two_levels, height, width));
  NORMA_TRY(const auto weights, test::formula_weights(plan, gains));
  Running running;
  NORMA_TRY(running.executor, nn::Executor::create(std::move(plan), weights));
  running.memory = Buffer<std::byte>(static_cast<std::int64_t>(running.executor.workspace_bytes(batch, parallel.workers())));
  const Tensor<float> one = test::formula_input(height, width);
  running.input = Tensor<float>(batch, one.shape());
  for (std::int64_t n = 0; n < batch; ++n) std::copy_n(one.data(), one.shape().count(), running.input.view().image(n).data);
  return running;
}

/// Norms of the outputs against PyTorch's, for the size that the file has.
Status check(const AnyNetwork& network, const test::FormulaNetwork& expected, Parallel parallel) {
  NORMA_TRY(auto running, prepare(network, expected.gains, 1, expected.height, expected.width, parallel));
  const auto taps = network.taps().two_levels;
  std::vector<TensorView<const float>> outputs(taps.size());
  NORMA_CHECK(running.run(parallel, outputs));
  for (std::size_t t = 0; t < taps.size(); ++t) {
    const test::FormulaTap* tap = expected.find(taps[t]);
    double square = 0;
    for (std::int64_t i = 0; i < outputs[t].count(); ++i) square += double{outputs[t].data[i]} * outputs[t].data[i];
    if (tap == nullptr || !(std::abs(std::sqrt(square) - tap->norm) <= 1e-5 * tap->norm)) {
      return {Errc::mismatch, "wrong result for output " + std::string(taps[t])};
    }
  }
  return {};
}

void backbone(benchmark::State& state, const AnyNetwork& network) {
  static const std::vector<test::FormulaNetwork> all = test::read_formula_networks();
  const auto expected = std::find_if(all.begin(), all.end(), [&](const auto& item) { return item.name == network.name(); });
  if (expected == all.end()) return state.SkipWithError("no reference values");
  const std::int64_t batch = state.range(0);
  ThreadPool pool(static_cast<int>(state.range(1)));
  const Parallel parallel = pool.parallel();
  if (const Status status = check(network, *expected, parallel); !status) return state.SkipWithError(status.message().c_str());
  auto running = prepare(network, expected->gains, batch, network.input().size, network.input().size, parallel);
  if (!running) return state.SkipWithError(running.message().c_str());
  std::vector<TensorView<const float>> outputs(network.taps().two_levels.size());
  if (const Status status = running->run(parallel, outputs); !status) return state.SkipWithError(status.message().c_str());
  const double peak = bench::fma_peak(instruction_set(), parallel);
  double best = 1e30, best_cpu = 1e30;
  for (auto _ : state) {
    const double start = bench::seconds();
    const std::clock_t cpu_start = std::clock();
    const Status status = running->run(parallel, outputs);
    const double time = bench::seconds() - start;
    best_cpu = std::min(best_cpu, static_cast<double>(std::clock() - cpu_start) / CLOCKS_PER_SEC);
    if (!status) return state.SkipWithError(status.message().c_str());
    state.SetIterationTime(time);
    best = std::min(best, time);
  }
  const double work = 2e-9 * static_cast<double>(running->executor.plan().summary().multiply_adds * batch);
  state.counters["GFLOP"] = work;
  state.counters["best_ms"] = 1e3 * best;
  if (parallel.workers() == 1) {
    state.counters["cpu_ms"] = 1e3 * best_cpu;
    state.counters["cpu_percent_of_peak"] = 100.0 * work / best_cpu / peak;
  }
  state.counters["best_GFLOP/s"] = work / best;
  state.counters["peak_GFLOP/s"] = peak;
  state.counters["percent_of_peak"] = 100.0 * work / best / peak;
  state.counters["workspace_MB"] = static_cast<double>(running->memory.size()) / 1e6;
  state.counters["weights_MB"] = static_cast<double>(running->executor.weight_bytes()) / 1e6;
}

const bool kRegistered = [] {
  for (const AnyNetwork& network : AnyNetwork::all()) {
    benchmark::RegisterBenchmark(std::string(network.name()).c_str(), [network](benchmark::State& state) { backbone(state, network); })
        ->ArgNames({"batch", "threads"})
        ->Args({1, 1})
        ->Args({1, 2})
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  }
  return true;
}();

}  // namespace

BENCHMARK_MAIN();
