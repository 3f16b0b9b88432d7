// The device's own limits and costs, with nothing of norma in between: copy, matrix products by cuBLAS (both in the lines above the table), what a kernel launch
// costs alone, in a row, and as a node of a graph.
#include "support/cuda_timer.cuh"

namespace {

using namespace norma;

void empty_kernels(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  const auto launch = state.range(1) != 0 ? bench::Launch::graph : bench::Launch::calls;
  const std::int64_t count = state.range(0);
  const bool done = device->time(
      state, {},
      [&](cuda::StreamRef stream) -> Status {
        for (std::int64_t i = 0; i < count; ++i) NORMA_CHECK(bench::launch_empty(stream));
        return {};
      },
      launch);
  if (done) state.counters["us_a_kernel"] = state.counters["us"] / static_cast<double>(count);
}
BENCHMARK(empty_kernels)->ArgNames({"kernels", "graph"})->ArgsProduct({{1, 10, 100}, {0, 1}})->NORMA_CUDA_BENCHMARK;

void read_and_write(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  const std::int64_t bytes = state.range(0) << 20;
  auto from = cuda::DeviceBuffer<unsigned char>::create(bytes);
  auto to = cuda::DeviceBuffer<unsigned char>::create(bytes);
  if (!from.ok() || !to.ok()) return state.SkipWithError((from.ok() ? to : from).message().c_str());
  device->time(state, {.bytes = 2.0 * static_cast<double>(bytes)},
               [&](cuda::StreamRef stream) { return cuda::copy_async(stream, to->data(), from->data(), bytes); });
}
BENCHMARK(read_and_write)->ArgName("MiB")->Arg(1)->Arg(16)->Arg(256)->NORMA_CUDA_BENCHMARK;

}  // namespace

NORMA_CUDA_BENCHMARK_MAIN()
