// Training on the host. Two kinds of rows:
//   conv/<in>-><out>@<size>   one 3x3 convolution of FastFlow's subnets, batch 8: forward + input gradient + weight gradient + bias
//   gradient,
//                             the weights packed anew as after every step. Checked against sums in double before timing.
//   resnet18_layer3           ResNet-18 to layer3, 224 x 224, batch 4: forward and backward with batch statistics, all weights learn
//   adam/<numbers>            one step over a flat buffer
// GFLOP/s of direct arithmetic (three products a weight and position); Winograd's saving counts, so more than 100 percent of the
// multiply-add rate is possible. On a busy machine read cpu_ms (one thread only). Axes: threads. Peer: bench/peers/training_torch.py, same
// shapes.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include <norma/backbones/resnet.hpp>
#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/nn/training/executor.hpp>
#include <norma/nn/training/initialise.hpp>
#include <norma/nn/training/optimisers.hpp>

#include "support/peak.hpp"

namespace {

using namespace norma;

struct Layer {
  const char* name;
  std::int64_t in, out, size;
};
constexpr Layer kLayers[] = {
    {"conv/32->32@64", 32, 32, 64},   {"conv/32->64@64", 32, 64, 64},     {"conv/64->64@32", 64, 64, 32},
    {"conv/64->128@32", 64, 128, 32}, {"conv/128->128@16", 128, 128, 16}, {"conv/128->256@16", 128, 256, 16},
};
constexpr std::int64_t kBatch = 8;

Tensor<float> normal(std::int64_t batch, Shape shape, std::uint64_t seed) {
  Tensor<float> t(batch, shape);
  Random random(seed);
  for (std::int64_t i = 0; i < batch * shape.count(); ++i) t.data()[i] = static_cast<float>(random.normal());
  return t;
}

template <class Run>
void time(benchmark::State& state, int threads, double work, Parallel parallel, Run&& run) {
  const double peak = bench::fma_peak(instruction_set(), parallel);
  double best = 1e30;
  for (auto _ : state) {
    const double start = bench::work_seconds(threads);
    run();
    const double seconds = bench::work_seconds(threads) - start;
    state.SetIterationTime(seconds);
    best = std::min(best, seconds);
  }
  state.counters["best_ms"] = 1e3 * best;
  if (work > 0.0) {
    state.counters["GFLOP/s"] = work / best;
    state.counters["percent_of_peak"] = 100.0 * work / best / peak;
  }
}

// part 0: everything; 1 forward, 2 input gradient, 3 weight gradient, 4 packing both ways.
void convolution(benchmark::State& state, const Layer& layer, int part) {
  ThreadPool pool(static_cast<int>(state.range(0)));
  const Parallel parallel = pool.parallel();
  const nn::ConvolutionGeometry g{3, 3, 1, 1, 1, 1, 1, 1, 1};
  const Shape in{layer.size, layer.size, layer.in}, out{layer.size, layer.size, layer.out};
  const auto x = normal(kBatch, in, 1), dy = normal(kBatch, out, 2);
  const auto w = normal(1, {1, layer.out, layer.in * 9}, 3);
  const std::span<const float> weights(w.data(), static_cast<std::size_t>(layer.out * layer.in * 9));
  Tensor<float> y(kBatch, out), dx(kBatch, in);
  std::vector<float> dw(weights.size()), db(static_cast<std::size_t>(layer.out));
  auto packed = nn::PackedConvolution::shaped(in, layer.out, g);
  auto back = nn::PackedInputGradient::shaped(in, layer.out, g, nn::Direction::forward);
  const std::size_t bytes =
      std::max({nn::convolution_scratch_bytes(in, layer.out, g, parallel.workers()),
                nn::convolution_input_gradient_scratch_bytes(in, layer.out, g, nn::Direction::forward, parallel.workers()),
                nn::convolution_weight_gradient_scratch_bytes(in, layer.out, g, nn::Direction::forward),
                nn::bias_gradient_scratch_bytes(layer.out)});
  Buffer<std::byte> memory(static_cast<std::int64_t>(bytes));
  Buffer<float> rows(std::max(packed.repack_scratch(), back.repack_scratch()));
  const auto run = [&](int which) {
    Arena arena(memory.span());
    if (which == 0 || which == 4) packed.repack({weights.data(), 0, layer.in * 9, 9, 1}, rows.data());
    if (which == 0 || which == 1) nn::convolution(x.view(), packed, y.view(), db.data(), {}, Activation::none, parallel, arena);
    if (which == 0 || which == 4) back.repack(weights, rows.data());
    if (which == 0 || which == 2) nn::convolution_input_gradient(dy.view(), back, dx.view(), nn::Accumulate::no, parallel, arena);
    if (which == 0 || which == 3) {
      nn::convolution_weight_gradient(x.view(), dy.view(), g, nn::Direction::forward, dw, parallel, arena);
      nn::bias_gradient(dy.view(), db, parallel, arena);
    }
  };
  run(0);
  // Some gradients against sums in double; Winograd may err by 2e-5 of the gradients' rms, here sqrt(terms).
  Random random(5);
  bool fine = true;
  for (int i = 0; i < 40; ++i) {
    const std::int64_t n = random.below(kBatch), iy = random.below(layer.size), ix = random.below(layer.size), c = random.below(layer.in);
    const std::int64_t o = random.below(layer.out), tap = random.below(9);
    double want_x = 0.0, want_w = 0.0;
    for (std::int64_t t = 0; t < 9; ++t) {
      const std::int64_t oy = iy - t / 3 + 1, ox = ix - t % 3 + 1;
      if (oy < 0 || oy >= layer.size || ox < 0 || ox >= layer.size) continue;
      for (std::int64_t k = 0; k < layer.out; ++k) {
        want_x += static_cast<double>(dy.view()(n, oy, ox, k)) *
                  static_cast<double>(weights[static_cast<std::size_t>((k * layer.in + c) * 9 + t)]);
      }
    }
    for (std::int64_t image = 0; image < kBatch; ++image) {
      for (std::int64_t p = 0; p < layer.size * layer.size; ++p) {
        const std::int64_t sy = p / layer.size + tap / 3 - 1, sx = p % layer.size + tap % 3 - 1;
        if (sy < 0 || sy >= layer.size || sx < 0 || sx >= layer.size) continue;
        want_w +=
            static_cast<double>(dy.view()(image, p / layer.size, p % layer.size, o)) * static_cast<double>(x.view()(image, sy, sx, c));
      }
    }
    const double got_w = static_cast<double>(dw[static_cast<std::size_t>((o * layer.in + c) * 9 + tap)]);
    fine =
        fine && std::abs(static_cast<double>(dx.view()(n, iy, ix, c)) - want_x) <= 2e-5 * std::sqrt(9.0 * static_cast<double>(layer.out));
    fine = fine && std::abs(got_w - want_w) <= 2e-5 * std::sqrt(static_cast<double>(kBatch * layer.size * layer.size));
  }
  if (!fine) return state.SkipWithError("wrong result");
  const double products = part == 0 ? 3.0 : part == 4 ? 0.0 : 1.0;
  time(state, pool.threads(), products * 2e-9 * static_cast<double>(kBatch * out.count() * layer.in * 9), parallel, [&] { run(part); });
}

void resnet18(benchmark::State& state, bool back) {
  ThreadPool pool(static_cast<int>(state.range(0)));
  const Parallel parallel = pool.parallel();
  const std::string_view taps[] = {"layer3"};
  auto executor = nn::TrainingExecutor::create(ResNet18::graph(), taps, 224, 224);
  if (!executor) return state.SkipWithError(executor.message().c_str());
  nn::Parameters parameters = executor->make_parameters();
  nn::initialise(parameters, {.weights = nn::Initialiser::kaiming_fan_out}, 1);
  const auto input = normal(4, {224, 224, 3}, 2), factors = normal(4, executor->plan().taps()[0].shape, 3);
  Buffer<std::byte> memory(static_cast<std::int64_t>(executor->workspace_bytes(4, parallel.workers())));
  Buffer<float> gradients(executor->layout().trained());
  const std::array<TensorView<const float>, 1> tap_gradients{factors.view()};
  Status status;
  const auto run = [&] {
    Arena arena(memory.span());
    std::array<TensorView<const float>, 1> out;
    nn::TrainingPass pass;
    status = executor->forward(parameters, input.view(), nn::BatchNorm::training, arena, parallel, out, pass);
    if (status && back) status = executor->backward(parameters, pass, tap_gradients, gradients.span(), parallel);
  };
  run();
  if (!status) return state.SkipWithError(status.message().c_str());
  // What each batch norm adds cancels in its argument: gradients of a convolution before one are orthogonal to its weights.
  if (back) {
    double product = 0.0, sizes = 0.0, own = 0.0;
    const auto* piece = parameters.layout().find("layer2.0.conv1.weight");
    for (std::int64_t i = 0; i < piece->count; ++i) {
      const auto a = static_cast<double>(gradients[piece->offset + i]),
                 b = static_cast<double>(parameters.of(*piece)[static_cast<std::size_t>(i)]);
      product += a * b;
      sizes += a * a;
      own += b * b;
    }
    if (!(sizes > 0.0 && std::abs(product) <= 1e-3 * std::sqrt(sizes * own))) return state.SkipWithError("wrong result");
  }
  double multiply_adds = 0.0;
  const auto summary = nn::plan_summary(ResNet18::graph(), taps, 224, 224);
  multiply_adds = static_cast<double>(summary.multiply_adds) * 4.0;
  time(state, pool.threads(), (back ? 3.0 : 1.0) * 2e-9 * multiply_adds, parallel, run);
  state.counters["workspace_MB"] = static_cast<double>(memory.size()) / 1048576.0;
}

void adam(benchmark::State& state) {
  ThreadPool pool(static_cast<int>(state.range(0)));
  const std::int64_t count = 4 << 20;
  Buffer<float> weights(count), gradients(count);
  for (std::int64_t i = 0; i < count; ++i) gradients[i] = 1e-3f * static_cast<float>(i % 1000 - 500);
  auto optimiser = nn::Adam::create(count, {});
  if (!optimiser) return state.SkipWithError("no optimiser");
  optimiser->step(weights.span(), gradients.span(), 1e-3f, pool.parallel());
  if (!(std::abs(weights[0] - 1e-3f) <= 1e-8f && std::abs(weights[501] + 1e-3f) <= 1e-7f)) return state.SkipWithError("wrong result");
  time(state, pool.threads(), 0.0, pool.parallel(), [&] { optimiser->step(weights.span(), gradients.span(), 1e-3f, pool.parallel()); });
}

const bool kRegistered = [] {
  const auto add = [](const std::string& name, auto&& function) {
    benchmark::RegisterBenchmark(name.c_str(), function)
        ->ArgName("threads")
        ->Arg(1)
        ->Arg(2)
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  };
  const char* parts[] = {"", "/forward", "/input_gradient", "/weight_gradient", "/packing"};
  for (const Layer& layer : kLayers) {
    for (int part = 0; part < 5; ++part) {
      add(std::string(layer.name) + parts[part], [&layer, part](benchmark::State& state) { convolution(state, layer, part); });
    }
  }
  add("resnet18_layer3/forward", [](benchmark::State& state) { resnet18(state, false); });
  add("resnet18_layer3/forward_backward", [](benchmark::State& state) { resnet18(state, true); });
  add("adam/4M", adam);
  return true;
}();

}  // namespace

BENCHMARK_MAIN();
