// The matrix product, NT: C [m, n] = A [m, depth] B [n, depth]^T. Axes: m / n / depth. Before timing, 64 entries are compared with sums in double.
// Peer in the same program: cublasGemmEx on the same memory; for tf32x3 and fp32 with CUBLAS_COMPUTE_32F_PEDANTIC. `gradient` is A^T B with a long
// depth and a small result, cut along the depth.
#include "support/cublas_product.cuh"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <norma/cuda/matrix_product.hpp>
#include <norma/io/dtype.hpp>

namespace {

using namespace norma;
using cuda::Arithmetic;
using cuda::BFloat16;
using cuda::Contiguous;
using cuda::Half;

template <class T>
double value_of(T x) {
  if constexpr (std::is_same_v<T, BFloat16>)
    return static_cast<double>(io::float_from_bfloat16(x.bits));
  else if constexpr (std::is_same_v<T, Half>)
    return static_cast<double>(io::float_from_half(x.bits));
  else
    return static_cast<double>(x);
}

template <class T, Contiguous kContiguous>
struct Memory {
  std::int64_t m, n, depth;
  cuda::DeviceBuffer<T> a, b;
  cuda::DeviceBuffer<float> c;
  cuda::DeviceBuffer<std::byte> workspace;

  static Result<Memory> create(benchmark::State& state, cuda::StreamRef stream) {
    Memory memory{state.range(0), state.range(1), state.range(2), {}, {}, {}, {}};
    NORMA_TRY(memory.a, cuda::DeviceBuffer<T>::create(memory.m * memory.depth));
    NORMA_TRY(memory.b, cuda::DeviceBuffer<T>::create(memory.n * memory.depth));
    NORMA_TRY(memory.c, cuda::DeviceBuffer<float>::create(memory.m * memory.n));
    NORMA_TRY(memory.workspace, cuda::DeviceBuffer<std::byte>::create(
                                    static_cast<std::int64_t>(cuda::matrix_product_workspace_bytes(memory.m, memory.n, memory.depth))));
    NORMA_CHECK(bench::fill_uniform(stream, memory.a.data(), memory.a.size(), 1));
    NORMA_CHECK(bench::fill_uniform(stream, memory.b.data(), memory.b.size(), 2));
    return memory;
  }
  [[nodiscard]] MatrixView<const T> view(const T* data, std::int64_t rows) const {
    return kContiguous == Contiguous::depth ? MatrixView<const T>(data, rows, depth) : MatrixView<const T>(data, depth, rows);
  }
  template <Arithmetic kArithmetic>
  Status run(cuda::StreamRef stream) {
    return cuda::matrix_product<T, kArithmetic, kContiguous, kContiguous>(
        stream, view(a.data(), m), view(b.data(), n), MatrixView<float>(c.data(), m, n), {}, {workspace.data(), workspace.bytes()});
  }
  /// Entries of C against double: within what the arithmetic rounds, 2^-9 of the sum of magnitudes at most, which is below depth.
  Status check(cuda::StreamRef stream) const {
    std::vector<T> x(static_cast<std::size_t>(m * depth)), y(static_cast<std::size_t>(n * depth));
    std::vector<float> z(static_cast<std::size_t>(m * n));
    NORMA_CHECK(cuda::copy_async(stream, x.data(), a.data(), m * depth));
    NORMA_CHECK(cuda::copy_async(stream, y.data(), b.data(), n * depth));
    NORMA_CHECK(cuda::copy_async(stream, z.data(), c.data(), m * n));
    NORMA_CHECK(cuda::detail::synchronize("bench", stream));
    const bool along_depth = kContiguous == Contiguous::depth;
    for (std::int64_t e = 0; e < 64; ++e) {
      const std::int64_t i = (e * 7919 + m - 1) % m, j = (e * 104729 + n - 1) % n;
      double want = 0.0, size = 0.0;
      for (std::int64_t k = 0; k < depth; ++k) {
        const double p = value_of(x[static_cast<std::size_t>(along_depth ? i * depth + k : k * m + i)]) *
                         value_of(y[static_cast<std::size_t>(along_depth ? j * depth + k : k * n + j)]);
        want += p;
        size += std::abs(p);
      }
      const double got = static_cast<double>(z[static_cast<std::size_t>(i * n + j)]);
      if (!(std::abs(got - want) <= 0x1p-9 * size)) {
        return {Errc::mismatch,
                "bench: entry " + std::to_string(i) + ", " + std::to_string(j) + " is " + std::to_string(got) + ", expected " + std::to_string(want)};
      }
    }
    return {};
  }
  [[nodiscard]] bench::Work work(Arithmetic arithmetic) const {
    const auto dm = static_cast<double>(m), dn = static_cast<double>(n), dk = static_cast<double>(depth);
    return {.flop = 2.0 * dm * dn * dk, .rate = bench::rate_of(arithmetic), .bytes = sizeof(T) * (dm + dn) * dk + 4.0 * dm * dn};
  }
};

template <class T, Arithmetic kArithmetic, Contiguous kContiguous>
void run(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  auto memory = Memory<T, kContiguous>::create(state, device->stream());
  if (!memory.ok()) return state.SkipWithError(memory.message().c_str());
  const auto call = [&](cuda::StreamRef stream) { return memory->template run<kArithmetic>(stream); };
  if (Status s = call(device->stream()); !s) return state.SkipWithError(s.message().c_str());
  if (Status s = memory->check(device->stream()); !s) return state.SkipWithError(s.message().c_str());
  device->time(state, memory->work(kArithmetic), call);
}
template <class T, Arithmetic kArithmetic>
void product(benchmark::State& state) {
  run<T, kArithmetic, Contiguous::depth>(state);
}
template <class T, Arithmetic kArithmetic>
void gradient(benchmark::State& state) {
  run<T, kArithmetic, Contiguous::row>(state);
}

template <class T, Arithmetic kArithmetic>
void peer_cublas(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  auto memory = Memory<T, Contiguous::depth>::create(state, device->stream());
  if (!memory.ok()) return state.SkipWithError(memory.message().c_str());
  auto blas = bench::CublasProduct::create(device->stream());
  if (!blas.ok()) return state.SkipWithError(blas.message().c_str());
  const auto call = [&](cuda::StreamRef) {
    return (*blas)(kArithmetic, memory->a.data(), memory->b.data(), memory->c.data(), memory->m, memory->n, memory->depth);
  };
  if (Status s = call(device->stream()); !s) return state.SkipWithError(s.message().c_str());
  if (Status s = memory->check(device->stream()); !s) return state.SkipWithError(s.message().c_str());
  device->time(state, memory->work(kArithmetic), call);
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"m", "n", "depth"});
  b->Args({1024, 1024, 1024})->Args({784, 1640, 1024})->Args({784, 16400, 1024})->Args({3136, 16400, 1024})->Args({8192, 8192, 8192});
}
void gradients(benchmark::internal::Benchmark* b) { b->ArgNames({"m", "n", "depth"})->Args({64, 576, 100352})->Args({256, 2304, 6272}); }

#define NORMA_PRODUCT(T, arithmetic)                                                      \
  BENCHMARK(product<T, Arithmetic::arithmetic>)->Apply(shapes)->NORMA_CUDA_BENCHMARK;     \
  BENCHMARK(peer_cublas<T, Arithmetic::arithmetic>)->Apply(shapes)->NORMA_CUDA_BENCHMARK; \
  BENCHMARK(gradient<T, Arithmetic::arithmetic>)->Apply(gradients)->NORMA_CUDA_BENCHMARK

NORMA_PRODUCT(float, fp32);
NORMA_PRODUCT(float, tf32);
NORMA_PRODUCT(float, tf32x3);
NORMA_PRODUCT(BFloat16, bf16);
NORMA_PRODUCT(Half, f16);

}  // namespace

NORMA_CUDA_BENCHMARK_MAIN()
