// Convolution layers of ResNet-18 and wide ResNet-50-2 at 224 x 224, and depthwise layers of EfficientNet: GFLOP/s of direct arithmetic, so
// that Winograd's saving shows as more than 100 percent of the multiply-add rate measured in the same run.
// Axes: layer / instruction set (1 AVX2, 2 AVX-512) / threads. "times" is how often the network has that layer up to its third stage.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/nn/kernels/convolution.hpp>

#include "support/peak.hpp"

namespace {

using namespace norma;

struct Layer {
  const char* name;
  std::int64_t size, in, out;
  int kernel, stride, pad, groups, times;
  bool residual;
};

constexpr Layer kLayers[] = {
    {"r18/7x7s2_3_64", 224, 3, 64, 7, 2, 3, 1, 1, false},
    {"r18/3x3_64@56", 56, 64, 64, 3, 1, 1, 1, 4, true},
    {"r18/3x3s2_64_128", 56, 64, 128, 3, 2, 1, 1, 1, false},
    {"r18/3x3_128@28", 28, 128, 128, 3, 1, 1, 1, 3, true},
    {"r18/1x1s2_64_128", 56, 64, 128, 1, 2, 0, 1, 1, false},
    {"r18/3x3s2_128_256", 28, 128, 256, 3, 2, 1, 1, 1, false},
    {"r18/3x3_256@14", 14, 256, 256, 3, 1, 1, 1, 3, true},
    {"r18/1x1s2_128_256", 28, 128, 256, 1, 2, 0, 1, 1, false},
    {"r18/3x3s2_256_512", 14, 256, 512, 3, 2, 1, 1, 0, false},
    {"r18/3x3_512@7", 7, 512, 512, 3, 1, 1, 1, 0, true},
    {"wrn50/1x1_64_128@56", 56, 64, 128, 1, 1, 0, 1, 1, false},
    {"wrn50/1x1_64_256@56", 56, 64, 256, 1, 1, 0, 1, 1, false},
    {"wrn50/3x3_128@56", 56, 128, 128, 3, 1, 1, 1, 3, false},
    {"wrn50/1x1_128_256@56", 56, 128, 256, 1, 1, 0, 1, 3, true},
    {"wrn50/1x1_256_128@56", 56, 256, 128, 1, 1, 0, 1, 2, false},
    {"wrn50/1x1_256_256@56", 56, 256, 256, 1, 1, 0, 1, 1, false},
    {"wrn50/3x3s2_256@28", 56, 256, 256, 3, 2, 1, 1, 1, false},
    {"wrn50/1x1_256_512@28", 28, 256, 512, 1, 1, 0, 1, 4, true},
    {"wrn50/1x1s2_256_512@28", 56, 256, 512, 1, 2, 0, 1, 1, false},
    {"wrn50/1x1_512_256@28", 28, 512, 256, 1, 1, 0, 1, 3, false},
    {"wrn50/3x3_256@28", 28, 256, 256, 3, 1, 1, 1, 3, false},
    {"wrn50/1x1_512_512@28", 28, 512, 512, 1, 1, 0, 1, 1, false},
    {"wrn50/3x3s2_512@14", 28, 512, 512, 3, 2, 1, 1, 1, false},
    {"wrn50/1x1_512_1024@14", 14, 512, 1024, 1, 1, 0, 1, 6, true},
    {"wrn50/1x1s2_512_1024@14", 28, 512, 1024, 1, 2, 0, 1, 1, false},
    {"wrn50/1x1_1024_512@14", 14, 1024, 512, 1, 1, 0, 1, 5, false},
    {"wrn50/3x3_512@14", 14, 512, 512, 3, 1, 1, 1, 5, false},
    {"effnet/dw3x3_32@112", 112, 32, 32, 3, 1, 1, 32, 1, false},
    {"effnet/dw3x3s2_96@112", 112, 96, 96, 3, 2, 1, 96, 1, false},
    {"effnet/dw3x3_144@56", 56, 144, 144, 3, 1, 1, 144, 1, false},
    {"effnet/dw5x5_240@28", 28, 240, 240, 5, 1, 2, 240, 1, false},
};

std::vector<float> uniform(std::int64_t count, std::uint64_t seed) {
  std::vector<float> v(static_cast<std::size_t>(count));
  Random random(seed);
  for (auto& x : v) x = static_cast<float>(random.uniform(-1.0, 1.0));
  return v;
}

void convolution(benchmark::State& state, const Layer& layer) {
  const auto set = static_cast<InstructionSet>(state.range(0));
  if (!available(set)) return state.SkipWithError("instruction set not available");
  ThreadPool pool(static_cast<int>(state.range(1)));
  const Parallel parallel = pool.parallel();
  const nn::ConvolutionGeometry g{layer.kernel, layer.kernel, layer.stride, 1, layer.pad, layer.pad, layer.pad, layer.pad, layer.groups};
  const Shape in{layer.size, layer.size, layer.in};
  const Shape out = nn::convolution_output(in, g, layer.out);
  const auto x = uniform(in.count(), 1), residual = uniform(out.count(), 2), bias = uniform(layer.out, 3);
  const std::int64_t in_group = layer.in / layer.groups, taps = layer.kernel * layer.kernel;
  const auto w = uniform(layer.out * in_group * taps, 4);
  std::vector<float> y(static_cast<std::size_t>(out.count()));
  const auto packed = nn::PackedConvolution::pack(w, in, layer.out, g, set);
  Buffer<std::byte> memory(static_cast<std::int64_t>(nn::convolution_scratch_bytes(in, layer.out, g, parallel.workers())));
  Arena arena(memory.span());
  const TensorView<const float> input(x.data(), 1, in), more(layer.residual ? residual.data() : nullptr, 1, out);
  const auto run = [&] { nn::convolution(input, packed, {y.data(), 1, out}, bias.data(), more, Activation::relu, parallel, arena); };
  run();
  // Some outputs against sums in double; Winograd may err by 2e-5 of the outputs' rms, sqrt(terms) / 3 for these uniform numbers.
  Random random(5);
  const double bound = 2e-5 * std::sqrt(static_cast<double>(in_group * taps));
  for (int i = 0; i < 100; ++i) {
    const std::int64_t oy = random.below(out.height), ox = random.below(out.width), o = random.below(out.channels);
    const auto at = static_cast<std::size_t>((oy * out.width + ox) * out.channels + o);
    double want = static_cast<double>(bias[static_cast<std::size_t>(o)]) + (layer.residual ? static_cast<double>(residual[at]) : 0.0);
    for (std::int64_t tap = 0; tap < taps; ++tap) {
      const std::int64_t iy = oy * layer.stride + tap / layer.kernel - layer.pad, ix = ox * layer.stride + tap % layer.kernel - layer.pad;
      if (iy < 0 || iy >= in.height || ix < 0 || ix >= in.width) continue;
      const std::int64_t first = o / (layer.out / layer.groups) * in_group;
      for (std::int64_t c = 0; c < in_group; ++c) {
        want += static_cast<double>(input(0, iy, ix, first + c)) *
                static_cast<double>(w[static_cast<std::size_t>((o * in_group + c) * taps + tap)]);
      }
    }
    if (!(std::abs(static_cast<double>(y[at]) - std::max(want, 0.0)) <= bound)) return state.SkipWithError("wrong result");
  }
  const double peak = bench::fma_peak(set, parallel);
  double best = 1e30;
  for (auto _ : state) {
    const double start = bench::work_seconds(pool.threads());
    run();
    const double time = bench::work_seconds(pool.threads()) - start;
    state.SetIterationTime(time);
    best = std::min(best, time);
    benchmark::DoNotOptimize(y.data());
  }
  const double work = 2e-9 * static_cast<double>(out.count() * in_group * taps);
  state.counters["GFLOP/s"] = benchmark::Counter(work * static_cast<double>(state.iterations()), benchmark::Counter::kIsRate);
  state.counters["best"] = work / best;
  state.counters["percent_of_peak"] = 100.0 * work / best / peak;
  state.counters["times"] = layer.times;
}

const bool kRegistered = [] {
  for (const Layer& layer : kLayers) {
    benchmark::RegisterBenchmark(layer.name, [&layer](benchmark::State& state) { convolution(state, layer); })
        ->ArgNames({"set", "threads"})
        ->Args({2, 1})
        ->Args({1, 1})
        ->Args({2, 2})
        ->Args({1, 2})
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  }
  return true;
}();

}  // namespace

BENCHMARK_MAIN();
