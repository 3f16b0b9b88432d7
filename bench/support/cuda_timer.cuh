/// \file
/// Google Benchmark on a device: events around the work, caches flushed before each repeat, the median of many repeats, and the device's own limits
/// measured in the same run, so that a figure is a part of what this device could do in these minutes.
///
///     void my_operation(benchmark::State& state) {
///       bench::Device* device = bench::device_or_skip(state);
///       if (device == nullptr) return;
///       ... buffers; run once; compare with the reference, state.SkipWithError where it differs ...
///       device->time(state, {.flop = 2.0 * m * n * d, .rate = bench::Rate::tf32, .bytes = 4.0 * (m + n) * d},
///                    [&](cuda::StreamRef stream) { return cuda::my_operation(stream, ...); });
///     }
///     BENCHMARK(my_operation)->ArgNames(...)->Args(...)->NORMA_CUDA_BENCHMARK;
///     NORMA_CUDA_BENCHMARK_MAIN()
///
/// Counters: `us` (median), `fastest_us`, `repeats`; with flop `tflops` and `percent_of_rate`; with bytes `gbytes` a second and `percent_of_copy`.
#pragma once

#include <benchmark/benchmark.h>
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <norma/cuda/detail/simt.cuh>
#include <norma/cuda/runtime.hpp>

namespace norma::bench {

/// Which of the device's limits the arithmetic is measured against: a product of two large matrices by cuBLAS.
enum class Rate { fp32, tf32, bf16 };
constexpr const char* to_string(Rate rate) { return rate == Rate::fp32 ? "fp32" : rate == Rate::tf32 ? "tf32" : "bf16"; }

/// What one call of the work does.
struct Work {
  double flop = 0.0;       ///< 0: not counted
  Rate rate = Rate::fp32;
  double bytes = 0.0;      ///< that must be read and written at least; 0: not counted
};

/// How the work reaches the device.
enum class Launch {
  calls,  ///< the calls themselves, each time
  graph,  ///< recorded once, launched as one
};

/// Milliseconds of each repeat.
struct Times {
  std::vector<float> ms;  // ascending
  [[nodiscard]] double median() const { return static_cast<double>(ms[ms.size() / 2]); }
  [[nodiscard]] double fastest() const { return static_cast<double>(ms.front()); }
};

/// The device's limits, as measured.
struct Ceilings {
  double copy_gbytes = 0.0;  ///< read and written
  double tflops[3] = {};     ///< by Rate
};

namespace detail {

/// Numbers in [-1, 1) that differ: products of zeros draw less power, so the clock is higher than with real data.
template <class T>
NORMA_KERNEL fill_uniform_kernel(T* to, std::int64_t count, std::uint64_t seed) {
  const std::int64_t threads = cuda::simt::blocks_x() * cuda::simt::block_threads();
  for (std::int64_t i = cuda::simt::block_x() * cuda::simt::block_threads() + cuda::simt::thread_index(); i < count; i += threads) {
    std::uint64_t x = (static_cast<std::uint64_t>(i) + seed) * 0x9e3779b97f4a7c15ull;  // splitmix64
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    x ^= x >> 31;
    to[i] = cuda::simt::from_float<T>(static_cast<float>(x >> 40) * (2.0f / 16777216.0f) - 1.0f);
  }
}

NORMA_KERNEL empty_kernel(int) {}

}  // namespace detail

/// Fills device memory; T: float, cuda::Half, cuda::BFloat16.
template <class T>
Status fill_uniform(cuda::StreamRef stream, T* to, std::int64_t count, std::uint64_t seed) {
  const std::int64_t blocks = std::min<std::int64_t>(cuda::detail::ceil_div(count, 256), 4096);
  return cuda::detail::launch("bench::fill_uniform", stream, {.blocks_x = blocks, .threads = 256}, detail::fill_uniform_kernel<T>, to, count, seed);
}

/// One kernel that does nothing: what a launch costs.
inline Status launch_empty(cuda::StreamRef stream) { return cuda::detail::launch("bench::launch_empty", stream, {.threads = 32}, detail::empty_kernel, 0); }

/// The current device with what timing needs.
class Device {
 public:
  static constexpr int kFewestRepeats = 50;
  static constexpr int kMostRepeats = 2000;
  static constexpr double kSeconds = 0.5;      // of repeats, once there are enough
  static constexpr double kMostSeconds = 60.0;  // then five are enough: the counter `repeats` says how many there were
  static constexpr double kWarmUpSeconds = 0.1;

  static Result<Device> create() {
    NORMA_TRY(cuda::DeviceInfo info, cuda::device_info());
    NORMA_TRY(cuda::Stream stream, cuda::Stream::create());
    NORMA_TRY(cuda::Event begin, cuda::Event::create());
    NORMA_TRY(cuda::Event end, cuda::Event::create());
    // Twice the cache, whose lines the write replaces; where its size is not told, as if it were 64 MB.
    const std::size_t cache = info.l2_bytes > 0 ? info.l2_bytes : std::size_t{64} << 20;
    NORMA_TRY(auto flush, cuda::DeviceBuffer<unsigned char>::create(static_cast<std::int64_t>(2 * cache)));
    Device device(std::move(info), std::move(stream), std::move(begin), std::move(end), std::move(flush));
    NORMA_CHECK(device.measure_ceilings());
    return device;
  }

  [[nodiscard]] const cuda::DeviceInfo& info() const { return info_; }
  [[nodiscard]] const Ceilings& ceilings() const { return ceilings_; }
  [[nodiscard]] cuda::StreamRef stream() const { return stream_; }

  /// Repeats of `call`, a callable that takes a StreamRef and returns Status. Queued behind the flush, so that the host's part of a launch hides under it.
  template <class Call>
  Result<Times> repeat(Call&& call, Launch launch = Launch::calls) {
    if (launch == Launch::calls) return repeat_calls(call);
    NORMA_TRY(const cuda::Graph graph, cuda::Graph::capture(stream_, [&]() -> Status { return call(cuda::StreamRef(stream_)); }));
    return repeat_calls([&](cuda::StreamRef stream) { return graph.launch(stream); });
  }

  /// Runs the benchmark's one iteration: repeats of `call`, its median as the iteration's time, counters. False after state.SkipWithError.
  template <class Call>
  bool time(benchmark::State& state, const Work& work, Call&& call, Launch launch = Launch::calls) {
    for (auto _ : state) {
      const Result<Times> times = repeat(call, launch);
      if (!times.ok()) {
        state.SkipWithError(times.message().c_str());
        return false;
      }
      state.SetIterationTime(1e-3 * times->median());
      report(state, work, *times);
    }
    return true;
  }

  /// The counters alone, for those who repeat by themselves.
  void report(benchmark::State& state, const Work& work, const Times& times) const {
    const double seconds = 1e-3 * times.median();
    state.counters["us"] = 1e6 * seconds;
    state.counters["fastest_us"] = 1e3 * times.fastest();
    state.counters["repeats"] = static_cast<double>(times.ms.size());
    if (work.flop > 0.0) {
      const double tflops = 1e-12 * work.flop / seconds;
      state.counters["tflops"] = tflops;
      state.counters["percent_of_rate"] = 100.0 * tflops / ceilings_.tflops[static_cast<int>(work.rate)];
      state.SetLabel(std::string("rate: ") + to_string(work.rate));
    }
    if (work.bytes > 0.0) {
      const double gbytes = 1e-9 * work.bytes / seconds;
      state.counters["gbytes"] = gbytes;
      state.counters["percent_of_copy"] = 100.0 * gbytes / ceilings_.copy_gbytes;
    }
  }

 private:
  Device(cuda::DeviceInfo info, cuda::Stream stream, cuda::Event begin, cuda::Event end, cuda::DeviceBuffer<unsigned char> flush)
      : info_(std::move(info)), stream_(std::move(stream)), begin_(std::move(begin)), end_(std::move(end)), flush_(std::move(flush)) {}

  template <class Call>
  Result<Times> repeat_calls(const Call& call) {
    for (const double start = now(); now() - start < kWarmUpSeconds;) {
      NORMA_CHECK(call(cuda::StreamRef(stream_)));
      NORMA_CHECK(stream_.synchronize());
    }
    Times times;
    double spent = 0.0;
    const auto enough = [&] {
      const int repeats = static_cast<int>(times.ms.size());
      return (repeats >= kFewestRepeats && (spent >= kSeconds || repeats >= kMostRepeats)) || (repeats >= 5 && spent >= kMostSeconds);
    };
    while (!enough()) {
      NORMA_CHECK(cuda::fill_async(stream_, flush_.data(), static_cast<int>(times.ms.size() & 0xff), flush_.size()));
      NORMA_CHECK(begin_.record(stream_));
      NORMA_CHECK(call(cuda::StreamRef(stream_)));
      NORMA_CHECK(end_.record(stream_));
      NORMA_CHECK(end_.synchronize());
      NORMA_TRY(const float ms, end_.ms_since(begin_));
      times.ms.push_back(ms);
      spent += 1e-3 * static_cast<double>(ms);
    }
    std::sort(times.ms.begin(), times.ms.end());
    return times;
  }

  static double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

  static Status check(cublasStatus_t status, const char* what) {
    if (status == CUBLAS_STATUS_SUCCESS) return {};
    return {Errc::io_error, std::string("bench::Device: ") + what + ": " + cublasGetStatusString(status)};
  }

  // A square product of T with float accumulators.
  template <class T>
  Status measure_product(cublasHandle_t blas, std::int64_t n, Rate rate, cublasComputeType_t compute) {
    NORMA_TRY(auto a, cuda::DeviceBuffer<T>::create(n * n));
    NORMA_TRY(auto b, cuda::DeviceBuffer<T>::create(n * n));
    NORMA_TRY(auto c, cuda::DeviceBuffer<float>::create(n * n));
    NORMA_CHECK(fill_uniform(stream_, a.data(), a.size(), 1));
    NORMA_CHECK(fill_uniform(stream_, b.data(), b.size(), 2));
    constexpr cudaDataType_t kType = std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_16BF;
    const float one = 1.0f, zero = 0.0f;
    const int side = static_cast<int>(n);
    NORMA_TRY(const Times times, repeat([&](cuda::StreamRef) {
                return check(cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, side, side, side, &one, a.data(), kType, side, b.data(), kType, side, &zero, c.data(),
                                          CUDA_R_32F, side, compute, CUBLAS_GEMM_DEFAULT),
                             "product");
              }));
    ceilings_.tflops[static_cast<int>(rate)] = 1e-12 * 2.0 * static_cast<double>(n * n * n) / (1e-3 * times.median());
    return {};
  }

  Status measure_ceilings() {
    const std::int64_t bytes = std::min<std::int64_t>(std::int64_t{1} << 30, static_cast<std::int64_t>(info_.memory_bytes / 8));
    {
      NORMA_TRY(auto from, cuda::DeviceBuffer<unsigned char>::create(bytes));
      NORMA_TRY(auto to, cuda::DeviceBuffer<unsigned char>::create(bytes));
      NORMA_CHECK(cuda::fill_async(stream_, from.data(), 1, bytes));
      NORMA_TRY(const Times times, repeat([&](cuda::StreamRef stream) { return cuda::copy_async(stream, to.data(), from.data(), bytes); }));
      ceilings_.copy_gbytes = 1e-9 * 2.0 * static_cast<double>(bytes) / (1e-3 * times.median());
    }
    cublasHandle_t handle = nullptr;
    NORMA_CHECK(check(cublasCreate(&handle), "create"));
    const std::unique_ptr<cublasContext, cublasStatus_t (*)(cublasHandle_t)> owner(handle, &cublasDestroy);
    NORMA_CHECK(check(cublasSetStream(handle, cuda::detail::native(stream_)), "stream"));
    const std::int64_t n = info_.memory_bytes > (std::size_t{4} << 30) ? 8192 : 4096;
    NORMA_CHECK(measure_product<float>(handle, n, Rate::fp32, CUBLAS_COMPUTE_32F_PEDANTIC));
    NORMA_CHECK(measure_product<float>(handle, n, Rate::tf32, CUBLAS_COMPUTE_32F_FAST_TF32));
    return measure_product<cuda::BFloat16>(handle, n, Rate::bf16, CUBLAS_COMPUTE_32F);
  }

  cuda::DeviceInfo info_;
  cuda::Stream stream_;
  cuda::Event begin_, end_;
  cuda::DeviceBuffer<unsigned char> flush_;
  Ceilings ceilings_;
};

/// The current device, measured when first asked for; the reason why there is none otherwise.
inline Result<Device>& device() {
  static Result<Device> device = Device::create();
  return device;
}

inline Device* device_or_skip(benchmark::State& state) {
  Result<Device>& found = device();
  if (found.ok()) return &*found;
  state.SkipWithError(found.message().c_str());
  return nullptr;
}

/// Puts the device and its limits in front of every output, also the JSON.
inline int run_benchmarks(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  if (const Result<Device>& found = device(); found.ok()) {
    const Ceilings& c = found->ceilings();
    const auto number = [](double x) { return std::to_string(static_cast<std::int64_t>(x + 0.5)); };
    benchmark::AddCustomContext("device", found->info().name + ", sm_" + std::to_string(found->info().arch) + ", " +
                                              std::to_string(found->info().multiprocessors) + " multiprocessors");
    benchmark::AddCustomContext("copy", number(c.copy_gbytes) + " GB/s read and written");
    for (const Rate rate : {Rate::fp32, Rate::tf32, Rate::bf16}) {
      benchmark::AddCustomContext(std::string("product ") + to_string(rate), number(1e3 * c.tflops[static_cast<int>(rate)]) + " GFLOP/s");
    }
  } else {
    benchmark::AddCustomContext("device", found.message());
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace norma::bench

/// Device::time does the repeating, so Google Benchmark asks once.
#define NORMA_CUDA_BENCHMARK UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(1)

#define NORMA_CUDA_BENCHMARK_MAIN() \
  int main(int argc, char** argv) { return norma::bench::run_benchmarks(argc, argv); }
