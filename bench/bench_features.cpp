// Patch embeddings and the map behind them at the sizes of one image (input 224): bytes read and written a second beside the time,
// and the share of this run's read bandwidth. Everything here only moves and adds numbers: memory is the limit.
#include <array>
#include <cmath>
#include <vector>

#include <benchmark/benchmark.h>

#include <norma/core/random.hpp>
#include <norma/features/chosen_channels.hpp>
#include <norma/features/local_average.hpp>
#include <norma/metrics/anomaly_map.hpp>

#include "support/peak.hpp"

namespace {

using namespace norma;

double bandwidth() {
  static const double measured = bench::read_bandwidth();
  return measured;
}

std::vector<Tensor<float>> taps(std::span<const Shape> shapes) {
  Random random(1);
  std::vector<Tensor<float>> all;
  for (const Shape& shape : shapes) {
    all.emplace_back(1, shape);
    for (std::int64_t i = 0; i < shape.count(); ++i) all.back().data()[i] = static_cast<float>(random.uniform());
  }
  return all;
}

template <class EmbeddingT>
void embed(benchmark::State& state, std::vector<Shape> shapes, typename EmbeddingT::Settings settings) {
  const auto layers = taps(shapes);
  std::array<TensorView<const float>, kMaxLevels> views{};
  double bytes = 0.0;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    views[i] = layers[i].view();
    bytes += 4.0 * static_cast<double>(shapes[i].count());
  }
  const auto embedding = EmbeddingT::create(shapes, settings);
  if (!embedding.ok()) return state.SkipWithError(embedding.message().c_str());
  Buffer<std::byte> memory(static_cast<std::int64_t>(EmbeddingT::scratch_bytes(shapes, settings, 1)));
  const auto run = [&](Features& out) {
    Arena arena(memory.span());
    Context context{arena};
    return embedding->embed({views.data(), layers.size()}, out, context);
  };
  Features out;
  if (!run(out).ok() || !std::isfinite(out[0].data[0]) || !(out.shapes() == EmbeddingT::shapes(shapes, settings))) return state.SkipWithError("wrong answer");
  bytes += 4.0 * static_cast<double>(out[0].count());
  for (auto _ : state) {
    benchmark::DoNotOptimize(run(out).ok());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(bytes * static_cast<double>(state.iterations())));
  state.counters["of_bandwidth"] = benchmark::Counter(bytes / bandwidth() * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

void smooth(benchmark::State& state) {
  const std::int64_t side = state.range(0);
  const MapSettings settings;
  Map<float> map(side, side);
  for (std::int64_t i = 0; i < side * side; ++i) map.data()[i] = static_cast<float>(i % 97);
  Buffer<std::byte> memory(static_cast<std::int64_t>(metrics::smooth_map_scratch_bytes({side, side, 1}, settings)));
  for (auto _ : state) {
    Arena arena(memory.span());
    Context context{arena};
    benchmark::DoNotOptimize(metrics::smooth_map(map.view(), settings, context).ok());
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(side * side * state.iterations());
}

const std::vector<Shape> kResNet18Local{{28, 28, 128}, {14, 14, 256}};
const std::vector<Shape> kWideLocal{{28, 28, 512}, {14, 14, 1024}};
const std::vector<Shape> kResNet18Pyramid{{56, 56, 64}, {28, 28, 128}, {14, 14, 256}};
const std::vector<Shape> kWidePyramid{{56, 56, 256}, {28, 28, 512}, {14, 14, 1024}};

void local_average(benchmark::State& state, const std::vector<Shape>& shapes) { embed<LocalAverage>(state, shapes, {}); }
void chosen_channels(benchmark::State& state, const std::vector<Shape>& shapes) { embed<ChosenChannels>(state, shapes, {}); }

BENCHMARK_CAPTURE(local_average, resnet18_concatenated_384, kResNet18Local)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(local_average, wide_resnet50_pooled_1024, kWideLocal)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(chosen_channels, resnet18_100_of_448, kResNet18Pyramid)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(chosen_channels, wide_resnet50_550_of_1792, kWidePyramid)->Unit(benchmark::kMillisecond);
BENCHMARK(smooth)->Arg(224)->Arg(900)->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
