// Training on the host. Two kinds of rows:
//   conv/<in>-><out>@<size>   one 3x3 convolution of FastFlow's subnets, batch 8: forward + input gradient + weight gradient + bias
//   gradient,
//                             the weights packed anew as after every step. Checked against sums in double before timing.
//   resnet18_layer3           ResNet-18 to layer3, 224 x 224, batch 4: forward and backward with batch statistics, all weights learn
//   vit_tiny, cait_xxs24      to the class token, 224 x 224, batch 4. Checked by the derivative along the gradient.
//   attention/<heads>x<dim>, talking_heads/..., 197 tokens, batch 4: from q, k, v to the result and back, without the linear layers
//   adam, sgd, clip/<numbers> one step over flat buffers; clip: norm and scaling
//   scaling/<what>            one and two threads in turn, round by round: wall_1, wall_2, cpu_1, cpu_2 (of the process) are medians,
//                             best_1, best_2 the least times on the wall. schedule: what two threads would gain if tasks took on them what
//                             they take on one thread, each given to whoever is free first; it leaves out waiting and shared memory, and
//                             does not depend on what else runs on the machine.
// GFLOP/s of direct arithmetic (three products a weight and position); Winograd's saving counts, so more than 100 percent of the
// multiply-add rate is possible. On a busy machine read cpu_ms (one thread only). Axes: threads. Peer: bench/peers/training_torch.py, same
// shapes.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <ctime>
#include <string>
#include <utility>
#include <vector>

#include <norma/backbones/cait.hpp>
#include <norma/backbones/resnet.hpp>
#include <norma/backbones/vit.hpp>
#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/nn/coupling.hpp>
#include <norma/nn/training/executor.hpp>
#include <norma/nn/training/initialise.hpp>
#include <norma/nn/training/optimisers.hpp>

#include "../tests/support/coupling_reference.hpp"
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

// A network with all that a step needs.
struct Network {
  nn::TrainingExecutor executor;
  nn::Parameters parameters;
  Tensor<float> input, factors;
  Buffer<std::byte> memory;
  Buffer<float> gradients;
  double multiply_adds = 0.0;
  double output = 0.0;  // of the last call: sum of the tap's values times `factors`

  Status run(Parallel parallel, bool back) {
    Arena arena(memory.span());
    std::array<TensorView<const float>, 1> out;
    nn::TrainingPass pass;
    NORMA_CHECK(executor.forward(parameters, input.view(), nn::BatchNorm::training, arena, parallel, out, pass));
    output = 0.0;
    for (std::int64_t i = 0; i < out[0].count(); ++i)
      output += static_cast<double>(out[0].data[i]) * static_cast<double>(factors.data()[i]);
    if (!back) return {};
    const std::array<TensorView<const float>, 1> tap_gradients{factors.view()};
    return executor.backward(parameters, pass, tap_gradients, gradients.span(), parallel);
  }
};

Result<Network> make_network(nn::GraphView graph, std::string_view tap, std::int64_t batch, int workers) {
  const std::string_view taps[] = {tap};
  Network n;
  NORMA_TRY(n.executor, nn::TrainingExecutor::create(graph, taps, 224, 224));
  n.parameters = n.executor.make_parameters();
  nn::initialise(n.parameters, {.weights = nn::Initialiser::kaiming_fan_in, .gain = 1.0}, 1);
  Random random(4);
  for (const auto& piece : n.parameters.layout().pieces()) {  // tokens, positions and mixes begin with zeros
    if (piece.role < nn::TensorRole::position_embedding || piece.role == nn::TensorRole::scale) continue;
    for (float& v : n.parameters.of(piece)) v = static_cast<float>(0.5 * random.normal());
  }
  n.input = normal(batch, {224, 224, 3}, 2);
  n.factors = normal(batch, n.executor.plan().taps()[0].shape, 3);
  n.memory = Buffer<std::byte>(static_cast<std::int64_t>(n.executor.workspace_bytes(batch, workers)));
  n.gradients = Buffer<float>(n.executor.layout().trained());
  n.multiply_adds = static_cast<double>(nn::plan_summary(graph, taps, 224, 224).multiply_adds) * static_cast<double>(batch);
  return n;
}

/// The derivative along the gradient is its squared length; by differences in float good to a few parts in a thousand.
bool correct(Network& n) {
  std::fill(n.gradients.span().begin(), n.gradients.span().end(), 0.0f);
  if (!n.run({}, true)) return false;
  const double norm = nn::gradient_norm(n.gradients.span()), step = 1e-2 * std::abs(n.output) / (norm * norm);
  const auto moved = [&](double by) {
    const std::vector<float> kept(n.parameters.trained().begin(), n.parameters.trained().end());
    for (std::size_t i = 0; i < kept.size(); ++i) {
      n.parameters.trained()[i] =
          static_cast<float>(static_cast<double>(kept[i]) + by * static_cast<double>(n.gradients[static_cast<std::int64_t>(i)]));
    }
    const bool fine = n.run({}, false).ok();
    std::copy(kept.begin(), kept.end(), n.parameters.trained().begin());
    return fine ? n.output : std::nan("");
  };
  const double slope = (moved(step) - moved(-step)) / (2.0 * step);
  return norm > 0.0 && std::abs(slope - norm * norm) <= 0.01 * norm * norm;
}

void network(benchmark::State& state, nn::GraphView graph, std::string_view tap, bool back) {
  ThreadPool pool(static_cast<int>(state.range(0)));
  auto n = make_network(graph, tap, 4, pool.threads());
  if (!n) return state.SkipWithError(n.message().c_str());
  if (!correct(*n)) return state.SkipWithError("wrong result");
  time(state, pool.threads(), (back ? 3.0 : 1.0) * 2e-9 * n->multiply_adds, pool.parallel(),
       [&] { static_cast<void>(n->run(pool.parallel(), back)); });
  state.counters["workspace_MB"] = static_cast<double>(n->memory.size()) / 1048576.0;
}

void attention(benchmark::State& state, int heads, std::int64_t dim, bool talking) {
  constexpr std::int64_t kTokens = 197, kImages = 4;
  ThreadPool pool(static_cast<int>(state.range(0)));
  const Parallel parallel = pool.parallel();
  const std::int64_t channels = heads * dim;
  const auto qkv = normal(kImages, {1, kTokens, 3 * channels}, 1), dy = normal(kImages, {1, kTokens, channels}, 2);
  const auto mixes = normal(1, {4, heads, heads}, 3);
  const float *l = mixes.data(), *lb = l + heads * heads, *w = lb + heads * heads, *wb = w + heads * heads;
  Tensor<float> y(kImages, dy.shape()), dqkv(kImages, qkv.shape()), dmix(1, {4, heads, heads});
  float *dl = dmix.data(), *dlb = dl + heads * heads, *dw = dlb + heads * heads, *dwb = dw + heads * heads;
  Buffer<std::byte> memory(
      static_cast<std::int64_t>(std::max({nn::attention_scratch_bytes(kTokens, channels, heads, pool.threads()),
                                          nn::attention_gradient_scratch_bytes(kTokens, channels, heads, pool.threads()),
                                          nn::talking_heads_attention_scratch_bytes(kTokens, channels, heads, pool.threads()),
                                          nn::talking_heads_attention_gradient_scratch_bytes(kTokens, channels, heads)})));
  const auto run = [&] {
    Arena arena(memory.span());
    for (std::int64_t n = 0; n < kImages; ++n) {
      const auto from = qkv.view().image(n).patches();
      const auto to = y.view().image(n).patches();
      talking ? nn::talking_heads_attention(from, heads, l, lb, w, wb, to, parallel, arena)
              : nn::attention(from, heads, to, parallel, arena);
    }
    if (talking) {
      nn::talking_heads_attention_gradient(dy.view(), qkv.view(), heads, {l, lb, w, wb}, {dl, dlb, dw, dwb}, dqkv.view(),
                                           nn::Accumulate::no, parallel, arena);
    } else {
      nn::attention_gradient(dy.view(), qkv.view(), heads, dqkv.view(), nn::Accumulate::no, parallel, arena);
    }
  };
  run();
  // The result is linear in the values: <dv, v> is <dy, y>, less what the mixes' bias adds in the same way.
  double left = 0.0, right = 0.0, size = 0.0;
  for (std::int64_t i = 0; i < y.view().count(); ++i) right += static_cast<double>(y.data()[i]) * static_cast<double>(dy.data()[i]);
  for (std::int64_t i = 0; i < kImages * kTokens; ++i) {
    for (std::int64_t c = 2 * channels; c < 3 * channels; ++c) {
      const double product = static_cast<double>(dqkv.data()[i * 3 * channels + c]) * static_cast<double>(qkv.data()[i * 3 * channels + c]);
      left += product;
      size += std::abs(product);
    }
  }
  if (!(std::abs(left - right) <= 1e-5 * size)) return state.SkipWithError("wrong result");
  // Products of [tokens, dim] and [tokens, tokens]: two forwards, five backwards.
  time(state, pool.threads(), 7.0 * 2e-9 * static_cast<double>(kImages * kTokens * kTokens * channels), parallel, run);
}

enum class Step { adam, sgd, clip };
void optimiser(benchmark::State& state, Step step, std::int64_t count) {
  ThreadPool pool(static_cast<int>(state.range(0)));
  Buffer<float> weights(count), gradients(count);
  for (std::int64_t i = 0; i < count; ++i) gradients[i] = 1e-3f * static_cast<float>(i % 1000 - 500);
  auto adam = nn::Adam::create(step == Step::adam ? count : 0, {});
  auto sgd = nn::Sgd::create(step == Step::sgd ? count : 0, {.momentum = 0.9f});
  if (!adam || !sgd) return state.SkipWithError("no optimiser");
  const auto run = [&] {
    switch (step) {
      case Step::adam: adam->step(weights.span(), gradients.span(), 1e-3f, pool.parallel()); break;
      case Step::sgd: sgd->step(weights.span(), gradients.span(), 1e-3f, pool.parallel()); break;
      case Step::clip: benchmark::DoNotOptimize(nn::clip_gradient_norm(gradients.span(), 1.0, pool.parallel())); break;
    }
  };
  run();
  // Adam's first step is the rate, downhill; SGD's the rate times the gradient; the norm afterwards is 1.
  const bool fine = step == Step::adam  ? std::abs(weights[0] - 1e-3f) <= 1e-8f && std::abs(weights[501] + 1e-3f) <= 1e-7f
                    : step == Step::sgd ? std::abs(weights[0] - 5e-4f) <= 1e-9f
                                        : std::abs(nn::gradient_norm(gradients.span()) - 1.0) <= 1e-6;
  if (!fine) return state.SkipWithError("wrong result");
  // The norm is brought above the limit again, so that every call scales.
  time(state, pool.threads(), 0.0, pool.parallel(), [&] {
    if (step == Step::clip) {
      benchmark::DoNotOptimize(nn::clip_gradient_norm(gradients.span(), 0.999, pool.parallel()));
      gradients[0] += 1.0f;
    } else {
      run();
    }
  });
  state.counters["GB/s"] = 1e-6 * static_cast<double>(count) *
                           (step == Step::adam  ? 28.0
                            : step == Step::sgd ? 20.0
                                                : 12.0) /
                           state.counters["best_ms"];
}

/// Runs tasks one after the other and keeps account of when `workers` would have been done with them.
class Schedule {
 public:
  explicit Schedule(int workers) : free_(static_cast<std::size_t>(workers)) {}
  [[nodiscard]] Parallel parallel() noexcept {
    return {
        this,
        [](void* self, std::int64_t tasks, Parallel::Task task, void* context) { static_cast<Schedule*>(self)->run(tasks, task, context); },
        static_cast<int>(free_.size())};
  }
  /// Seconds that all loops so far would have been shorter.
  [[nodiscard]] double saved() const noexcept { return saved_; }

 private:
  void run(std::int64_t tasks, Parallel::Task task, void* context) {
    std::fill(free_.begin(), free_.end(), 0.0);
    double total = 0.0;
    for (std::int64_t t = 0; t < tasks; ++t) {
      const auto next = std::min_element(free_.begin(), free_.end());
      const double start = bench::work_seconds(1);
      task(context, t, static_cast<int>(next - free_.begin()));
      const double time = bench::work_seconds(1) - start;
      *next += time;
      total += time;
    }
    saved_ += total - *std::max_element(free_.begin(), free_.end());
  }
  std::vector<double> free_;
  double saved_ = 0.0;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0.0 : values[values.size() / 2];
}

template <class Run>
void scaling(benchmark::State& state, Run&& run) {
  ThreadPool pool(2);
  const auto process = [] {
    timespec now{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  };
  std::vector<double> wall[2], cpu[2], schedule;
  run(pool.parallel());
  for (auto _ : state) {
    for (std::size_t i = 0; i < 2; ++i) {
      const double start = bench::seconds(), start_cpu = process();
      run(i == 0 ? Parallel{} : pool.parallel());
      wall[i].push_back(1e3 * (bench::seconds() - start));
      cpu[i].push_back(1e3 * (process() - start_cpu));
    }
    Schedule two(2);
    const double start = bench::work_seconds(1);
    run(two.parallel());
    const double all = bench::work_seconds(1) - start;
    schedule.push_back(all / (all - two.saved()));
    state.SetIterationTime(1e-3 * wall[1].back());
  }
  state.counters["wall_1"] = median(wall[0]);
  state.counters["wall_2"] = median(wall[1]);
  state.counters["best_1"] = *std::min_element(wall[0].begin(), wall[0].end());
  state.counters["best_2"] = *std::min_element(wall[1].begin(), wall[1].end());
  state.counters["cpu_1"] = median(cpu[0]);
  state.counters["cpu_2"] = median(cpu[1]);
  state.counters["schedule"] = median(schedule);
}

void network_scaling(benchmark::State& state, nn::GraphView graph, std::string_view tap) {
  auto n = make_network(graph, tap, 4, 2);
  if (!n) return state.SkipWithError(n.message().c_str());
  scaling(state, [&](Parallel parallel) { static_cast<void>(n->run(parallel, true)); });
}

// Eight of FastFlow's blocks, batch 8: weights packed anew, forward, backward.
void flow_scaling(benchmark::State& state, std::int64_t channels, std::int64_t size) {
  Random random(1);
  std::vector<test::ReferenceBlock> host;
  std::vector<nn::FlowBlock> blocks;
  std::vector<float> numbers;
  for (int b = 0; b < 8; ++b) host.push_back(test::random_block(nn::fastflow_block(channels, 3), random));
  for (const auto& block : host) {
    blocks.push_back({block.shape, block.permutation, {}});
    const auto packed = test::packed_parameters(block);
    numbers.insert(numbers.end(), packed.begin(), packed.end());
  }
  auto flow = nn::Flow::create(blocks, {size, size, channels}, nn::FlowUse::training);
  if (!flow) return state.SkipWithError(flow.message().c_str());
  std::size_t bytes = 0;
  for (const auto pass : {nn::FlowPass::prepare, nn::FlowPass::forward, nn::FlowPass::backward}) {
    bytes = std::max(bytes, flow->scratch_bytes(pass, kBatch, 2));
  }
  Buffer<std::byte> memory(static_cast<std::int64_t>(bytes));
  const auto x = normal(kBatch, flow->map(), 2), dz = normal(kBatch, flow->map(), 3);
  Tensor<float> z(kBatch, flow->map());
  std::vector<float> logdet(kBatch), dlogdet(kBatch, -1.0f), gradients(numbers.size());
  Status status;
  scaling(state, [&](Parallel parallel) {
    Arena arena(memory.span());
    status = flow->prepare(numbers, arena);
    if (status) status = flow->forward(x.view(), {}, z.view(), logdet, {}, parallel, arena);
    if (status) status = flow->backward(z.view(), {}, dz.view(), dlogdet, gradients, {}, {}, parallel, arena);
  });
  if (!status) state.SkipWithError(status.message().c_str());
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
  struct Named {
    const char* name;
    nn::GraphView graph;
    std::string_view tap;
  };
  static const Named networks[] = {
      {"resnet18_layer3", ResNet18::graph(), "layer3"}, {"vit_tiny", ViTTiny16::graph(), "cls"}, {"cait_xxs24", CaiTXXS24::graph(), "cls"}};
  const auto add_scaling = [](const std::string& name, auto&& function) {
    benchmark::RegisterBenchmark(("scaling/" + name).c_str(), function)->UseManualTime()->Unit(benchmark::kMillisecond)->Iterations(7);
  };
  for (const Named& n : networks) {
    add(std::string(n.name) + "/forward", [&n](benchmark::State& state) { network(state, n.graph, n.tap, false); });
    add(std::string(n.name) + "/forward_backward", [&n](benchmark::State& state) { network(state, n.graph, n.tap, true); });
    add_scaling(n.name, [&n](benchmark::State& state) { network_scaling(state, n.graph, n.tap); });
  }
  add("attention/6x64", [](benchmark::State& state) { attention(state, 6, 64, false); });
  add("talking_heads/4x48", [](benchmark::State& state) { attention(state, 4, 48, true); });
  for (const std::int64_t size : {64, 32, 16}) {
    add_scaling("fastflow/" + std::to_string(4096 / size) + "@" + std::to_string(size),
                [size](benchmark::State& state) { flow_scaling(state, 4096 / size, size); });
  }
  const std::pair<const char*, Step> steps[] = {{"adam", Step::adam}, {"sgd", Step::sgd}, {"clip", Step::clip}};
  for (const auto& [name, step] : steps) {
    add(std::string(name) + "/5M", [step = step](benchmark::State& state) { optimiser(state, step, 5'000'000); });
    add(std::string(name) + "/80M", [step = step](benchmark::State& state) { optimiser(state, step, 80'000'000); });
  }
  return true;
}();

}  // namespace

BENCHMARK_MAIN();
