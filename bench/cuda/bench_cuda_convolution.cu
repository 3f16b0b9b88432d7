// Convolutions of ResNet-18 and Wide ResNet-50-2 at 224 pixels, channels last. Axes: batch / side of the image / in / out / kernel / stride. Before
// timing, 64 results are compared with sums in double. Peer in the same program: cublasGemmEx on the product of the same shape, its image unfolded
// beforehand, so that it reads memory that exists; a convolution that keeps up with it loses nothing to its addresses. `weight_gradient` is timed for
// the same layers.
#include "support/cublas_product.cuh"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <norma/cuda/convolution.hpp>
#include <norma/io/dtype.hpp>

namespace {

using namespace norma;
using cuda::Arithmetic;
using cuda::BFloat16;

double value_of(float x) { return static_cast<double>(x); }
double value_of(BFloat16 x) { return static_cast<double>(io::float_from_bfloat16(x.bits)); }

template <class T>
struct Memory {
  std::int64_t batch, side, in, out;
  cuda::ConvolutionSettings settings;
  std::int64_t out_side, pixels, depth;
  cuda::DeviceBuffer<T> x, w, y;
  cuda::DeviceBuffer<float> bias, dw;
  cuda::DeviceBuffer<std::byte> workspace;

  static Result<Memory> create(benchmark::State& state, cuda::StreamRef stream) {
    const cuda::ConvolutionSettings s{state.range(4), state.range(5), state.range(4) / 2};
    const std::int64_t out_side = cuda::convolution_side(state.range(1), s);
    Memory m{state.range(0),
             state.range(1),
             state.range(2),
             state.range(3),
             s,
             out_side,
             state.range(0) * out_side * out_side,
             s.taps() * state.range(2),
             {},
             {},
             {},
             {},
             {},
             {}};
    NORMA_TRY(m.x, cuda::DeviceBuffer<T>::create(m.batch * m.side * m.side * m.in));
    NORMA_TRY(m.w, cuda::DeviceBuffer<T>::create(m.out * m.depth));
    NORMA_TRY(m.y, cuda::DeviceBuffer<T>::create(m.pixels * m.out));
    NORMA_TRY(m.bias, cuda::DeviceBuffer<float>::create(m.out));
    NORMA_TRY(m.dw, cuda::DeviceBuffer<float>::create(m.out * m.depth));
    const std::size_t forward = cuda::convolution_workspace_bytes(m.pixels, m.in, m.out, s),
                      gradient = cuda::convolution_weight_gradient_workspace_bytes(m.pixels, m.in, m.out, s);
    NORMA_TRY(m.workspace, cuda::DeviceBuffer<std::byte>::create(static_cast<std::int64_t>(forward > gradient ? forward : gradient)));
    NORMA_CHECK(bench::fill_uniform(stream, m.x.data(), m.x.size(), 1));
    NORMA_CHECK(bench::fill_uniform(stream, m.w.data(), m.w.size(), 2));
    NORMA_CHECK(bench::fill_uniform(stream, m.y.data(), m.y.size(), 3));
    NORMA_CHECK(bench::fill_uniform(stream, m.bias.data(), m.bias.size(), 4));
    return m;
  }
  [[nodiscard]] TensorView<const T> image() const { return {x.data(), batch, side, side, in}; }
  [[nodiscard]] std::span<std::byte> scratch() { return {workspace.data(), workspace.bytes()}; }
  template <Arithmetic kArithmetic>
  Status forward(cuda::StreamRef stream) {
    return cuda::convolution<T, kArithmetic>(stream, image(), MatrixView<const T>(w.data(), out, depth),
                                             TensorView<T>(y.data(), batch, out_side, out_side, out), settings, bias.data(), Activation::relu,
                                             nullptr, scratch());
  }
  template <Arithmetic kArithmetic>
  Status weight_gradient(cuda::StreamRef stream) {
    return cuda::convolution_weight_gradient<T, kArithmetic>(stream, image(), TensorView<const T>(y.data(), batch, out_side, out_side, out),
                                                             MatrixView<float>(dw.data(), out, depth), nullptr, settings, scratch());
  }
  /// Results against double: within 2^-8 of the sum of magnitudes, which covers a result rounded to BFloat16 too.
  Status check(cuda::StreamRef stream) const {
    std::vector<T> hx(static_cast<std::size_t>(x.size())), hw(static_cast<std::size_t>(w.size())), hy(static_cast<std::size_t>(y.size()));
    std::vector<float> hb(static_cast<std::size_t>(out));
    NORMA_CHECK(cuda::copy_async(stream, hx.data(), x.data(), x.size()));
    NORMA_CHECK(cuda::copy_async(stream, hw.data(), w.data(), w.size()));
    NORMA_CHECK(cuda::copy_async(stream, hy.data(), y.data(), y.size()));
    NORMA_CHECK(cuda::copy_async(stream, hb.data(), bias.data(), out));
    NORMA_CHECK(cuda::detail::synchronize("bench", stream));
    for (std::int64_t e = 0; e < 64; ++e) {
      const std::int64_t p = (e * 7919 + pixels - 1) % pixels, o = (e * 104729 + out - 1) % out;
      const std::int64_t n = p / (out_side * out_side), oy = p / out_side % out_side, ox = p % out_side;
      double want = value_of(hb[static_cast<std::size_t>(o)]), size = std::abs(want);
      for (std::int64_t tap = 0; tap < settings.taps(); ++tap) {
        const std::int64_t iy = oy * settings.stride - settings.padding + tap / settings.kernel,
                           ix = ox * settings.stride - settings.padding + tap % settings.kernel;
        if (iy < 0 || iy >= side || ix < 0 || ix >= side) continue;
        for (std::int64_t c = 0; c < in; ++c) {
          const double v = value_of(hx[static_cast<std::size_t>(((n * side + iy) * side + ix) * in + c)]) *
                           value_of(hw[static_cast<std::size_t>(o * depth + tap * in + c)]);
          want += v;
          size += std::abs(v);
        }
      }
      want = want < 0.0 ? 0.0 : want;
      const double got = value_of(hy[static_cast<std::size_t>(p * out + o)]);
      if (!(std::abs(got - want) <= 0x1p-8 * size)) {
        return {Errc::mismatch, "bench: pixel " + std::to_string(p) + ", channel " + std::to_string(o) + " is " + std::to_string(got) +
                                    ", expected " + std::to_string(want)};
      }
    }
    return {};
  }
  [[nodiscard]] bench::Work work(Arithmetic arithmetic) const {
    return {.flop = 2.0 * static_cast<double>(pixels) * static_cast<double>(out) * static_cast<double>(depth),
            .rate = bench::rate_of(arithmetic),
            .bytes = static_cast<double>(x.bytes() + w.bytes() + y.bytes())};
  }
};

template <class T, Arithmetic kArithmetic>
void forward(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  auto memory = Memory<T>::create(state, device->stream());
  if (!memory.ok()) return state.SkipWithError(memory.message().c_str());
  const auto call = [&](cuda::StreamRef stream) { return memory->template forward<kArithmetic>(stream); };
  if (Status s = call(device->stream()); !s) return state.SkipWithError(s.message().c_str());
  if (Status s = memory->check(device->stream()); !s) return state.SkipWithError(s.message().c_str());
  device->time(state, memory->work(kArithmetic), call);
}
template <class T, Arithmetic kArithmetic>
void weight_gradient(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  auto memory = Memory<T>::create(state, device->stream());
  if (!memory.ok()) return state.SkipWithError(memory.message().c_str());
  device->time(state, memory->work(kArithmetic), [&](cuda::StreamRef stream) { return memory->template weight_gradient<kArithmetic>(stream); });
}
template <class T, Arithmetic kArithmetic>
void peer_cublas_unfolded(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  const auto prepare = [&]() -> Status {
    NORMA_TRY(auto memory, Memory<T>::create(state, device->stream()));
    NORMA_TRY(auto unfolded, cuda::DeviceBuffer<T>::create(memory.pixels * memory.depth));
    NORMA_TRY(auto result, cuda::DeviceBuffer<float>::create(memory.pixels * memory.out));
    NORMA_CHECK(bench::fill_uniform(device->stream(), unfolded.data(), unfolded.size(), 5));
    NORMA_TRY(auto blas, bench::CublasProduct::create(device->stream()));
    device->time(state, memory.work(kArithmetic), [&](cuda::StreamRef) {
      return blas(kArithmetic, unfolded.data(), memory.w.data(), result.data(), memory.pixels, memory.out, memory.depth);
    });
    return {};
  };
  if (Status s = prepare(); !s) state.SkipWithError(s.message().c_str());
}

void layers(benchmark::internal::Benchmark* b) {
  b->ArgNames({"batch", "side", "in", "out", "kernel", "stride"});
  for (const std::int64_t batch : {1, 32}) {
    // ResNet-18: 3x3 of layers 1 to 3, the first of layer 2; the stem with its 3 channels padded to 8.
    b->Args({batch, 224, 8, 64, 7, 2})
        ->Args({batch, 56, 64, 64, 3, 1})
        ->Args({batch, 56, 64, 128, 3, 2})
        ->Args({batch, 28, 128, 128, 3, 1})
        ->Args({batch, 14, 256, 256, 3, 1});
    // Wide ResNet-50-2: 3x3 and 1x1 of layers 1 to 3.
    b->Args({batch, 56, 128, 128, 3, 1})->Args({batch, 28, 256, 256, 3, 1})->Args({batch, 14, 512, 512, 3, 1});
    b->Args({batch, 56, 128, 256, 1, 1})->Args({batch, 28, 256, 512, 1, 1})->Args({batch, 14, 512, 1024, 1, 1});
  }
}

#define NORMA_CONVOLUTION(T, arithmetic)                                                           \
  BENCHMARK(forward<T, Arithmetic::arithmetic>)->Apply(layers)->NORMA_CUDA_BENCHMARK;              \
  BENCHMARK(peer_cublas_unfolded<T, Arithmetic::arithmetic>)->Apply(layers)->NORMA_CUDA_BENCHMARK; \
  BENCHMARK(weight_gradient<T, Arithmetic::arithmetic>)->Apply(layers)->NORMA_CUDA_BENCHMARK

NORMA_CONVOLUTION(float, fp32);
NORMA_CONVOLUTION(float, tf32);
NORMA_CONVOLUTION(float, tf32x3);
NORMA_CONVOLUTION(BFloat16, bf16);

}  // namespace

NORMA_CUDA_BENCHMARK_MAIN()
