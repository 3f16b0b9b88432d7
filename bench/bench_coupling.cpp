// Flows on the host at FastFlow-ResNet-18's three scales (eight blocks each), forward and a step's gradients; peer: peers/coupling_torch.py. With one
// thread the times are processor times.
//     bench_coupling --benchmark_min_time=2
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>
#include <norma/core/thread_pool.hpp>
#include <norma/nn/coupling.hpp>

#include <bench/support/peak.hpp>
#include <tests/support/coupling_reference.hpp>

namespace {

using namespace norma;

struct Scale {
  std::int64_t channels, size;
};
constexpr Scale kScales[] = {{64, 64}, {128, 32}, {256, 16}};
constexpr int kBlocks = 8;

enum class Pass { forward, inverse, gradients, prepare };

struct Case {
  std::vector<test::ReferenceBlock> host;
  std::vector<float> parameters, x, z, dz, dlogdet, logdet, gradients;
  nn::Flow flow;
  Buffer<std::byte> memory;
};

Case make(const Scale& scale, std::int64_t batch, int workers, InstructionSet set, int blocks) {
  Case c;
  Random random(1, static_cast<std::uint64_t>(scale.channels));
  std::vector<nn::FlowBlock> given;
  for (int b = 0; b < blocks; ++b) {
    c.host.push_back(test::random_block(nn::fastflow_block(scale.channels, 3), random));
    std::fill(c.host.back().global_scale.begin(), c.host.back().global_scale.end(), static_cast<double>(nn::kUnitGlobalScale));
  }
  for (const auto& block : c.host) {
    given.push_back({block.shape, block.permutation, {}});
    const auto packed = test::packed_parameters(block);
    c.parameters.insert(c.parameters.end(), packed.begin(), packed.end());
  }
  c.flow = *nn::Flow::create(given, {scale.size, scale.size, scale.channels}, nn::FlowUse::training, set);
  const auto count = static_cast<std::size_t>(batch * c.flow.map().count());
  c.x.resize(count);
  for (float& v : c.x) v = static_cast<float>(random.normal());
  c.z = c.dz = std::vector<float>(count);
  c.dlogdet.assign(static_cast<std::size_t>(batch), -1.0f / static_cast<float>(count));
  c.logdet.resize(static_cast<std::size_t>(batch));
  c.gradients.resize(c.parameters.size());
  std::size_t bytes = 0;
  for (const auto pass : {nn::FlowPass::prepare, nn::FlowPass::forward, nn::FlowPass::backward}) {
    bytes = std::max(bytes, c.flow.scratch_bytes(pass, batch, workers));
  }
  c.memory = Buffer<std::byte>(static_cast<std::int64_t>(bytes));
  return c;
}

Status run(Case& c, Pass pass, std::int64_t batch, Parallel parallel) {
  Arena arena(c.memory.span());
  const Shape map = c.flow.map();
  const TensorView<float> z(c.z.data(), batch, map);
  if (pass == Pass::prepare) return c.flow.prepare(c.parameters, arena);
  if (pass == Pass::inverse) return c.flow.inverse(z, {}, z, parallel, arena);
  NORMA_CHECK(c.flow.forward({c.x.data(), batch, map}, {}, z, c.logdet, {}, parallel, arena));
  if (pass == Pass::forward) return {};
  const float weight = 1.0f / static_cast<float>(c.z.size());  // of the mean of 0.5 |z|^2 - logdet
  for (std::size_t i = 0; i < c.z.size(); ++i) c.dz[i] = weight * c.z[i];
  return c.flow.backward(z, {}, {c.dz.data(), batch, map}, c.dlogdet, c.gradients, {}, {}, parallel, arena);
}

/// One block against the reference in double, and there and back through all of them.
bool correct(const Scale& scale, InstructionSet set) {
  Case one = make(scale, 1, 1, set, 1);
  if (!run(one, Pass::prepare, 1, {}).ok() || !run(one, Pass::forward, 1, {}).ok()) return false;
  test::Doubles logdet(1);
  const test::Positions at{1, scale.size, scale.size};
  const test::Doubles want = test::reference_forward(one.host[0], at, test::Doubles(one.x.begin(), one.x.end()), {}, logdet);
  for (std::size_t i = 0; i < want.size(); ++i) {
    if (!(std::abs(static_cast<double>(one.z[i]) - want[i]) <= 2e-5)) return false;
  }
  if (!(std::abs(static_cast<double>(one.logdet[0]) - logdet[0]) <= 1e-6 * static_cast<double>(want.size()))) return false;
  Case all = make(scale, 1, 1, set, kBlocks);
  if (!run(all, Pass::prepare, 1, {}).ok() || !run(all, Pass::forward, 1, {}).ok() || !run(all, Pass::inverse, 1, {}).ok()) return false;
  for (std::size_t i = 0; i < all.x.size(); ++i) {
    if (!(std::abs(all.z[i] - all.x[i]) <= 1e-5f)) return false;
  }
  return true;
}

void flow(benchmark::State& state, const Scale& scale, Pass pass) {
  const auto set = static_cast<InstructionSet>(state.range(0));
  const auto threads = static_cast<int>(state.range(1));
  const std::int64_t batch = state.range(2);
  if (!available(set)) return state.SkipWithError("instruction set not available");
  if (!correct(scale, set)) return state.SkipWithError("wrong result");
  ThreadPool pool(threads);
  Case c = make(scale, batch, threads, set, kBlocks);
  if (!run(c, Pass::prepare, batch, {}).ok() || !run(c, Pass::forward, batch, pool.parallel()).ok()) return state.SkipWithError("refused");
  double best = 1e30;
  for (auto _ : state) {
    const double start = bench::work_seconds(threads);
    const Status status = run(c, pass, batch, pool.parallel());
    const double time = bench::work_seconds(threads) - start;
    if (!status.ok()) return state.SkipWithError("refused");
    state.SetIterationTime(time);
    best = std::min(best, time);
    benchmark::DoNotOptimize(c.z.data());
  }
  state.counters["best_ms"] = 1e3 * best;
}

const bool kRegistered = [] {
  const std::pair<Pass, const char*> passes[] = {
      {Pass::forward, "forward"}, {Pass::inverse, "inverse"}, {Pass::gradients, "forward_and_backward"}, {Pass::prepare, "prepare"}};
  for (const Scale& scale : kScales) {
    for (const auto& [pass, name] : passes) {
      std::string label = name;
      label.append("/").append(std::to_string(scale.channels)).append("@").append(std::to_string(scale.size));
      auto* b = benchmark::RegisterBenchmark(label.c_str(), [&scale, pass = pass](benchmark::State& state) { flow(state, scale, pass); });
      b->ArgNames({"set", "threads", "batch"})->UseManualTime()->Unit(benchmark::kMillisecond);
      b->Args({2, 1, 1});
      if (pass == Pass::prepare) continue;
      b->Args({2, 1, 8})->Args({1, 1, 1})->Args({2, 2, 8});
    }
  }
  return true;
}();

}  // namespace

BENCHMARK_MAIN();
