// Flows of coupling blocks: FastFlow on the three maps of a ResNet-18 at 256 pixels (64 channels at 64 x 64, 128 at 32 x 32, 256 at 16 x 16; eight
// blocks each, a stream each) and CFlow on one level of a wide ResNet-50 (512, 1024, 2048 channels, condition 128, dense rotations). Forward: z and
// log-determinants. Step: forward, gradient of the likelihood, backward. Before timing, the inverse must give the input back. `launches`: kernels
// that a call queues; percent_of_rate counts the products of subnets and rotations alone, with those that a step computes again.
#include "support/cuda_timer.cuh"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <norma/core/random.hpp>
#include <norma/cuda/coupling.hpp>

namespace {

using namespace norma;
using cuda::FlowArithmetic;
using cuda::FlowPass;

enum Task : std::int64_t { forward = 0, step = 1 };

/// A dense rotation in O(C^2): two reflections, at random vectors.
std::vector<float> random_rotation(std::int64_t n, Random& random) {
  std::vector<double> u[2];
  for (auto& v : u) {
    double square = 0.0;
    for (std::int64_t i = 0; i < n; ++i) {
      v.push_back(random.normal());
      square += v.back() * v.back();
    }
    for (double& x : v) x /= std::sqrt(square);
  }
  double uv = 0.0;
  for (std::size_t i = 0; i < u[0].size(); ++i) uv += u[0][i] * u[1][i];
  std::vector<float> rotation;
  for (std::size_t i = 0; i < u[0].size(); ++i) {
    for (std::size_t j = 0; j < u[0].size(); ++j) {
      rotation.push_back(static_cast<float>((i == j ? 1.0 : 0.0) - 2.0 * u[0][i] * u[0][j] - 2.0 * u[1][i] * u[1][j] + 4.0 * uv * u[0][i] * u[1][j]));
    }
  }
  return rotation;
}

/// Default initialisation of a library, in the layout of the device.
std::vector<float> random_parameters(const nn::CouplingShape& shape, Random& random) {
  const nn::ParameterLayout layout = nn::parameter_layout(shape);
  std::vector<float> parameters(static_cast<std::size_t>(layout.total), 0.0f);
  const auto at = [&](std::int64_t i) -> float& { return parameters[static_cast<std::size_t>(i)]; };
  for (int s = 0; s < shape.steps(); ++s) {
    for (int l = 0; l < shape.layers; ++l) {
      const nn::LayerLayout& layer = layout.layers[s][l];
      const std::int64_t in = layer.x + layer.condition;
      const double bound = 1.0 / std::sqrt(static_cast<double>(in * layer.taps));
      for (std::int64_t o = 0; o < layer.out; ++o) {
        for (std::int64_t i = 0; i < in; ++i) {
          for (std::int64_t tap = 0; tap < layer.taps; ++tap) at(layer.at(o, i, tap)) = static_cast<float>(random.uniform(-bound, bound));
        }
        at(layer.bias + o) = static_cast<float>(random.uniform(-bound, bound));
      }
    }
  }
  for (std::int64_t c = 0; shape.has_global_affine() && c < shape.channels; ++c) at(layout.global_scale + c) = nn::kUnitGlobalScale;
  return parameters;
}

/// One flow with everything that a call needs, in device memory.
struct Flow {
  cuda::FlowGrid grid;
  std::vector<cuda::FlowBlock> blocks;
  std::vector<float*> gradient_pointers;
  std::vector<cuda::DeviceBuffer<float>> parameters, gradients, rotations;
  std::vector<cuda::DeviceBuffer<std::int32_t>> permutations;
  cuda::DeviceBuffer<float> x, z, dz, condition, logdet, dlogdet;
  cuda::DeviceBuffer<std::byte> memory;

  [[nodiscard]] MatrixView<float> rows(cuda::DeviceBuffer<float>& buffer, std::int64_t channels) const {
    return channels == 0 ? MatrixView<float>() : MatrixView<float>(buffer.data(), grid.rows(), channels, nn::padded(channels));
  }
  [[nodiscard]] const nn::CouplingShape& shape() const { return blocks[0].shape; }

  template <class T>
  static Status upload(std::vector<cuda::DeviceBuffer<T>>& to, const std::vector<T>& from, cuda::StreamRef stream) {
    NORMA_TRY(auto buffer, cuda::DeviceBuffer<T>::create(static_cast<std::int64_t>(from.size())));
    NORMA_CHECK(cuda::copy_async(stream, buffer.data(), from.data(), buffer.size()));
    to.push_back(std::move(buffer));
    return {};
  }

  static Result<Flow> create(const nn::CouplingShape& shape, int count, cuda::FlowGrid grid, cuda::StreamRef stream) {
    Flow flow;
    flow.grid = grid;
    Random random(31, static_cast<std::uint64_t>(shape.channels));
    for (int b = 0; b < count; ++b) {
      NORMA_CHECK(upload(flow.parameters, random_parameters(shape, random), stream));
      NORMA_TRY(auto gradient, cuda::DeviceBuffer<float>::create(flow.parameters.back().size()));
      flow.gradient_pointers.push_back(gradient.data());
      flow.gradients.push_back(std::move(gradient));
      cuda::FlowBlock block{shape, flow.parameters.back().data(), nullptr, nullptr};
      if (shape.mixing == nn::ChannelMixing::rotation) {
        NORMA_TRY(const auto packed, nn::pack_rotation(shape, random_rotation(shape.channels, random)));
        NORMA_CHECK(upload(flow.rotations, packed, stream));
        block.rotation = flow.rotations.back().data();
      } else {
        NORMA_TRY(const auto packed, nn::pack_permutation(sample_without_replacement(shape.channels, shape.channels, random)));
        NORMA_CHECK(upload(flow.permutations, packed, stream));
        block.permutation = flow.permutations.back().data();
      }
      flow.blocks.push_back(block);
    }
    for (auto* buffer : {&flow.x, &flow.z, &flow.dz}) {
      NORMA_TRY(*buffer, cuda::DeviceBuffer<float>::create(grid.rows() * nn::padded(shape.channels)));
    }
    NORMA_TRY(flow.condition, cuda::DeviceBuffer<float>::create(grid.rows() * nn::padded(shape.condition)));
    NORMA_TRY(flow.logdet, cuda::DeviceBuffer<float>::create(grid.batch));
    NORMA_TRY(flow.dlogdet, cuda::DeviceBuffer<float>::create(grid.batch));
    std::size_t bytes = 0;
    for (const auto pass : {FlowPass::forward, FlowPass::inverse, FlowPass::backward})
      bytes = std::max(bytes, cuda::flow_workspace_bytes(flow.blocks, grid, pass));
    NORMA_TRY(flow.memory, cuda::DeviceBuffer<std::byte>::create(static_cast<std::int64_t>(bytes)));
    NORMA_CHECK(bench::fill_uniform(stream, flow.x.data(), flow.x.size(), 3));
    if (shape.condition > 0) NORMA_CHECK(bench::fill_uniform(stream, flow.condition.data(), flow.condition.size(), 4));
    return flow;
  }

  template <FlowArithmetic kArithmetic>
  Status run(cuda::StreamRef stream, Task task) {
    const std::span<std::byte> workspace(memory.data(), memory.bytes());
    const auto c = rows(condition, shape().condition);
    NORMA_CHECK(cuda::flow_forward<kArithmetic>(stream, blocks, grid, rows(x, shape().channels), c, rows(z, shape().channels), logdet.data(), nullptr,
                                                workspace));
    if (task == forward) return {};
    NORMA_CHECK(cuda::likelihood_gradient(stream, rows(z, shape().channels), 1.0f / static_cast<float>(grid.batch), rows(dz, shape().channels),
                                          dlogdet.data(), grid.batch));
    return cuda::flow_backward<kArithmetic>(stream, blocks, grid, rows(z, shape().channels), c, rows(dz, shape().channels), dlogdet.data(),
                                            gradient_pointers, {}, {}, workspace);
  }

  /// Largest difference of inverse(forward(x)) from x.
  template <FlowArithmetic kArithmetic>
  Result<double> round_trip(cuda::StreamRef stream) {
    NORMA_CHECK(run<kArithmetic>(stream, forward));
    NORMA_CHECK(cuda::flow_inverse<kArithmetic>(stream, blocks, grid, rows(z, shape().channels), rows(condition, shape().condition),
                                                rows(dz, shape().channels), {memory.data(), memory.bytes()}));
    std::vector<float> from(static_cast<std::size_t>(x.size())), back(from.size());
    NORMA_CHECK(cuda::copy_async(stream, from.data(), x.data(), x.size()));
    NORMA_CHECK(cuda::copy_async(stream, back.data(), dz.data(), dz.size()));
    NORMA_CHECK(cuda::detail::synchronize("bench", stream));
    double most = 0.0;
    for (std::size_t i = 0; i < from.size(); ++i) {
      const double difference = std::abs(static_cast<double>(from[i]) - static_cast<double>(back[i]));
      if (!(difference <= most)) most = difference;  // NaN stays
    }
    return most;
  }

  /// Of the products: twice the weights for each position, three times that on the way back, and once more for what is computed again.
  [[nodiscard]] double flop(Task task) const {
    double weights = 0.0;
    const double channels = static_cast<double>(shape().channels);
    for (int s = 0; s < shape().steps(); ++s) {
      const nn::SubnetShape subnet = shape().subnet(s);
      for (int l = 0; l < subnet.count; ++l)
        weights += static_cast<double>(subnet.layers[l].in * subnet.layers[l].out * subnet.layers[l].kernel * subnet.layers[l].kernel);
    }
    const double rotation = shape().mixing == nn::ChannelMixing::rotation ? channels * channels : 0.0;
    const double of_position = task == forward ? weights + rotation : 4.0 * weights + 3.0 * rotation;
    return 2.0 * of_position * static_cast<double>(grid.rows()) * static_cast<double>(blocks.size());
  }
  /// Kernels of one call, for blocks of one step.
  [[nodiscard]] std::int64_t launches(Task task) const {
    const std::int64_t layers = shape().layers, count = static_cast<std::int64_t>(blocks.size()),
                       rotates = shape().mixing == nn::ChannelMixing::rotation ? 1 : 0;
    const std::int64_t conditions = shape().condition > 0 ? 1 : 0,
                       parts = cuda::detail::plan_flow(blocks, grid, FlowPass::backward).parts > 1 ? 1 : 0;
    const std::int64_t of_forward = count * (layers + rotates) + 1;
    return task == forward ? of_forward : of_forward + 1 + count * (1 + 3 * layers + 2 * rotates + conditions + parts);
  }
};

template <FlowArithmetic kArithmetic>
bool returns(benchmark::State& state, std::vector<Flow>& flows, cuda::StreamRef stream) {
  // Eight blocks multiply the rounding of their subnets by exp(1.9 tanh) each: 10 bits of mantissa leave two or three digits.
  const double bound = kArithmetic == FlowArithmetic::tf32 ? 0.5 : 1e-3;
  for (Flow& flow : flows) {
    const Result<double> difference = flow.round_trip<kArithmetic>(stream);
    if (!difference.ok()) return state.SkipWithError(difference.message().c_str()), false;
    if (!(*difference <= bound)) return state.SkipWithError(("the inverse is off by " + std::to_string(*difference)).c_str()), false;
  }
  return true;
}

/// All flows at once, each on a stream of its own between a fork and a join of `stream`.
template <FlowArithmetic kArithmetic>
void time_flows(benchmark::State& state, bench::Device& device, std::vector<Flow> flows, Task task, bench::Launch launch) {
  if (!returns<kArithmetic>(state, flows, device.stream())) return;
  std::vector<cuda::Stream> streams;
  std::vector<cuda::Event> events;
  for (std::size_t i = 0; i <= flows.size(); ++i) {
    auto event = cuda::Event::create();
    auto stream = cuda::Stream::create();
    if (!event.ok() || !stream.ok()) return state.SkipWithError("no stream or event");
    events.push_back(*std::move(event));
    streams.push_back(*std::move(stream));
  }
  bench::Work work{.rate = kArithmetic == FlowArithmetic::fp32 ? bench::Rate::fp32 : bench::Rate::tf32};
  std::int64_t launches = 0;
  for (const Flow& flow : flows) {
    work.flop += flow.flop(task);
    launches += flow.launches(task);
  }
  const auto call = [&](cuda::StreamRef stream) -> Status {
    if (flows.size() == 1) return flows[0].run<kArithmetic>(stream, task);
    cuda::Event& fork = events.back();
    NORMA_CHECK(fork.record(stream));
    for (std::size_t i = 0; i < flows.size(); ++i) {
      NORMA_CHECK(fork.hold(streams[i]));
      NORMA_CHECK(flows[i].run<kArithmetic>(streams[i], task));
      NORMA_CHECK(events[i].record(streams[i]));
    }
    for (std::size_t i = 0; i < flows.size(); ++i) NORMA_CHECK(events[i].hold(stream));
    return {};
  };
  if (device.time(state, work, call, launch)) state.counters["launches"] = static_cast<double>(launches);
}

void time_in(benchmark::State& state, bench::Device& device, std::vector<Flow> flows, Task task, std::int64_t arithmetic, bench::Launch launch) {
  if (arithmetic == 0) return time_flows<FlowArithmetic::fp32>(state, device, std::move(flows), task, launch);
  if (arithmetic == 1) return time_flows<FlowArithmetic::tf32x3>(state, device, std::move(flows), task, launch);
  time_flows<FlowArithmetic::tf32>(state, device, std::move(flows), task, launch);
}

void fastflow_r18(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  std::vector<Flow> flows;
  for (const std::int64_t channels : {64, 128, 256}) {
    auto flow = Flow::create(nn::fastflow_block(channels, 3), 8, {state.range(0), 4096 / channels, 4096 / channels}, device->stream());
    if (!flow.ok()) return state.SkipWithError(flow.message().c_str());
    flows.push_back(*std::move(flow));
  }
  time_in(state, *device, std::move(flows), static_cast<Task>(state.range(1)), state.range(2),
          state.range(3) != 0 ? bench::Launch::graph : bench::Launch::calls);
}
BENCHMARK(fastflow_r18)
    ->ArgNames({"batch", "step", "fp32_tf32x3_tf32", "graph"})
    ->ArgsProduct({{1, 32}, {0, 1}, {0, 1, 2}, {0, 1}})
    ->NORMA_CUDA_BENCHMARK;

void cflow_level(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  // Vectors: every position is a sample of its own.
  std::vector<Flow> flows;
  auto flow = Flow::create(nn::cflow_block(state.range(0)), 8, {state.range(1), 1, 1}, device->stream());
  if (!flow.ok()) return state.SkipWithError(flow.message().c_str());
  flows.push_back(*std::move(flow));
  time_in(state, *device, std::move(flows), static_cast<Task>(state.range(2)), state.range(3), bench::Launch::graph);
}
BENCHMARK(cflow_level)
    ->ArgNames({"channels", "positions", "step", "fp32_tf32x3_tf32"})
    ->ArgsProduct({{512}, {1024}, {0}, {0, 1, 2}})
    ->ArgsProduct({{1024}, {256}, {0}, {0, 1, 2}})
    ->ArgsProduct({{2048}, {64}, {0}, {0, 1, 2}})
    ->ArgsProduct({{512, 1024, 2048}, {256}, {1}, {0, 1, 2}})
    ->NORMA_CUDA_BENCHMARK;

}  // namespace

NORMA_CUDA_BENCHMARK_MAIN()
