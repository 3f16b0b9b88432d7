// Gaussians of PaDiM on the device: means, covariances, factors and inverse factors of 3136 positions from 209 images, and Mahalanobis distances of 1
// and 16 images. Axes: positions / images / dimensions. Before timing, two positions are compared with sums in double. Peers, in the same program:
// `peer_fit` centres into a copy, multiplies with cublasSgemmStridedBatched (the full product: cuBLAS has no batched symmetric one), factors with
// cusolverDnSpotrfBatched and inverts with cublasStrsmBatched; `peer_covariance` is that without factors; `peer_distance` is a strided-batched
// product with the full inverse factors. percent_of_rate of `fit`: symmetric product, factor and inverse (n d (d + 1) + 2 d^3 / 3 flop a position)
// against cuBLAS' fp32 product.
#include "support/cuda_timer.cuh"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#if __has_include(<cusolverDn.h>)
#include <cusolverDn.h>
#define NORMA_BENCH_HAS_CUSOLVER 1
#else
#define NORMA_BENCH_HAS_CUSOLVER 0
#endif

#include <norma/cuda/covariance.hpp>
#include <norma/cuda/mahalanobis.hpp>

namespace norma::bench::covariance_peers {

namespace simt = cuda::simt;

inline constexpr int kThreads = 256;

/// Mean of every position and column, and the features without it. One block: 256 columns of one position.
NORMA_KERNEL centre_kernel(const float* x, std::int64_t positions, std::int64_t images, std::int64_t dims, float* mean, float* centred) {
  const std::int64_t column = simt::block_x() * kThreads + simt::thread_index(), position = simt::block_y();
  if (column >= dims) return;
  float sum = 0.0f;
  for (std::int64_t i = 0; i < images; ++i) sum += x[(i * positions + position) * dims + column];
  const float average = sum / static_cast<float>(images);
  mean[position * dims + column] = average;
  for (std::int64_t i = 0; i < images; ++i) {
    const std::int64_t at = (i * positions + position) * dims + column;
    centred[at] = x[at] - average;
  }
}
NORMA_KERNEL add_to_diagonal_kernel(float* matrices, std::int64_t dims, std::int64_t count, float value) {
  const std::int64_t n = simt::block_x() * kThreads + simt::thread_index();
  if (n < count * dims) matrices[n / dims * dims * dims + n % dims * (dims + 1)] += value;
}
NORMA_KERNEL unit_matrices_kernel(float* matrices, std::int64_t dims, std::int64_t count) {
  const std::int64_t n = simt::block_x() * kThreads + simt::thread_index();
  if (n < count * dims * dims) matrices[n] = n % (dims * dims) % (dims + 1) == 0 ? 1.0f : 0.0f;
}
NORMA_KERNEL pointers_kernel(float** pointers, float* first, std::int64_t stride, std::int64_t count) {
  const std::int64_t n = simt::block_x() * kThreads + simt::thread_index();
  if (n < count) pointers[n] = first + n * stride;
}
/// y = x - mean, image by image.
NORMA_KERNEL subtract_kernel(const float* x, const float* mean, std::int64_t count, std::int64_t rows, float* y) {
  const std::int64_t n = simt::block_x() * kThreads + simt::thread_index();
  if (n < rows) y[n] = x[n] - mean[n % count];
}
/// One warp a row.
NORMA_KERNEL norms_kernel(const float* y, std::int64_t rows, std::int64_t dims, float* norms) {
  const std::int64_t row = simt::block_x() * (kThreads / simt::kWarp) + simt::warp_index();
  if (row >= rows) return;
  float sum = 0.0f;
  for (std::int64_t c = simt::lane_index(); c < dims; c += simt::kWarp) sum += y[row * dims + c] * y[row * dims + c];
  sum = simt::warp_sum(sum);
  if (simt::lane_index() == 0) norms[row] = sqrtf(sum);
}

template <class... Parameters, class... Arguments>
Status over(cuda::StreamRef stream, std::int64_t items, void (*kernel)(Parameters...), Arguments... arguments) {
  return cuda::detail::launch("bench", stream, {.blocks_x = cuda::detail::ceil_div(items, kThreads), .threads = kThreads}, kernel, arguments...);
}

inline Status check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return {};
  return {Errc::io_error, std::string("bench: ") + what + ": " + cublasGetStatusString(status)};
}

}  // namespace norma::bench::covariance_peers

namespace {

using namespace norma;
using namespace norma::bench::covariance_peers;

constexpr double kRegularisation = 0.01;

/// Features and a model in device memory.
struct Memory {
  std::int64_t positions = 0, images = 0, dims = 0;
  cuda::DeviceBuffer<float> x, mean, factor;
  cuda::DeviceBuffer<int> flags;
  cuda::DeviceBuffer<std::byte> workspace;
  cuda::DeviceGaussians model;

  static Result<Memory> create(benchmark::State& state, cuda::StreamRef stream) {
    Memory m;
    m.positions = state.range(0);
    m.images = state.range(1);
    m.dims = state.range(2);
    NORMA_TRY(m.x, cuda::DeviceBuffer<float>::create(m.images * m.positions * m.dims));
    NORMA_TRY(m.mean, cuda::DeviceBuffer<float>::create(m.positions * m.dims));
    NORMA_TRY(m.factor, cuda::DeviceBuffer<float>::create(m.positions * packed_triangle(m.dims)));
    NORMA_TRY(m.flags, cuda::DeviceBuffer<int>::create(m.positions));
    NORMA_TRY(m.workspace,
              cuda::DeviceBuffer<std::byte>::create(static_cast<std::int64_t>(cuda::gaussian_workspace_bytes(m.positions, m.dims, m.images))));
    m.model = {{m.mean.data(), m.positions, m.dims}, {m.factor.data(), m.positions, packed_triangle(m.dims)}, m.flags.data()};
    NORMA_CHECK(bench::fill_uniform(stream, m.x.data(), m.x.size(), 1));
    return m;
  }
  [[nodiscard]] std::span<std::byte> scratch() { return {workspace.data(), workspace.bytes()}; }
  [[nodiscard]] MatrixView<const float> rows() const { return {x.data(), images * positions, dims}; }
  [[nodiscard]] Status fit(cuda::StreamRef stream) { return cuda::fit_gaussians(stream, rows(), kRegularisation, model, scratch()); }
  [[nodiscard]] double count() const { return static_cast<double>(positions); }

  /// Covariance + regularisation * I of one position in double, and its mean.
  Status reference(cuda::StreamRef stream, std::int64_t position, Matrix<double>& a, std::vector<double>& average) const {
    Matrix<float> sample(images, dims);
    for (std::int64_t i = 0; i < images; ++i) {
      NORMA_CHECK(cuda::copy_async(stream, sample.data() + i * dims, x.data() + (i * positions + position) * dims, dims));
    }
    NORMA_CHECK(cuda::detail::synchronize("bench", stream));
    a = Matrix<double>(dims, dims);
    average.assign(static_cast<std::size_t>(dims), 0.0);
    for (std::int64_t i = 0; i < images; ++i) {
      for (std::int64_t c = 0; c < dims; ++c) average[static_cast<std::size_t>(c)] += static_cast<double>(sample(i, c)) / static_cast<double>(images);
    }
    for (std::int64_t i = 0; i < images; ++i) {
      for (std::int64_t r = 0; r < dims; ++r) {
        const double v = (static_cast<double>(sample(i, r)) - average[static_cast<std::size_t>(r)]) / static_cast<double>(images - 1);
        for (std::int64_t c = 0; c < dims; ++c) a(r, c) += v * (static_cast<double>(sample(i, c)) - average[static_cast<std::size_t>(c)]);
      }
    }
    for (std::int64_t c = 0; c < dims; ++c) a(c, c) += kRegularisation;
    return {};
  }
};

/// W A W^T of two positions is the unit matrix but for rounding: condition numbers here are below 1000, so 1e-2 is far more than float errs and far
/// less than any wrong entry.
Status check_factors(cuda::StreamRef stream, const Memory& m) {
  std::vector<int> flags(static_cast<std::size_t>(m.positions));
  NORMA_CHECK(cuda::copy_async(stream, flags.data(), m.flags.data(), m.positions));
  NORMA_CHECK(cuda::detail::synchronize("bench", stream));
  NORMA_CHECK(cuda::check_flags(flags, kRegularisation));
  for (const std::int64_t p : {std::int64_t{0}, m.positions - 1}) {
    Matrix<double> a;
    std::vector<double> average;
    NORMA_CHECK(m.reference(stream, p, a, average));
    std::vector<float> packed(static_cast<std::size_t>(packed_triangle(m.dims)));
    NORMA_CHECK(cuda::copy_async(stream, packed.data(), m.factor.data() + p * packed_triangle(m.dims), packed_triangle(m.dims)));
    NORMA_CHECK(cuda::detail::synchronize("bench", stream));
    const auto w = [&](std::int64_t r, std::int64_t c) { return static_cast<double>(packed[static_cast<std::size_t>(packed_triangle(r) + c)]); };
    Matrix<double> wa(m.dims, m.dims);
    for (std::int64_t r = 0; r < m.dims; ++r) {
      for (std::int64_t k = 0; k <= r; ++k) {
        for (std::int64_t c = 0; c < m.dims; ++c) wa(r, c) += w(r, k) * a(k, c);
      }
    }
    for (std::int64_t r = 0; r < m.dims; ++r) {
      for (std::int64_t c = 0; c <= r; ++c) {
        double sum = 0.0;
        for (std::int64_t k = 0; k <= c; ++k) sum += wa(r, k) * w(c, k);
        if (!(std::abs(sum - (r == c ? 1.0 : 0.0)) <= 1e-2)) {
          return {Errc::mismatch,
                  "bench: W A W^T is not the unit matrix at " + std::to_string(r) + ", " + std::to_string(c) + " of position " + std::to_string(p)};
        }
      }
    }
  }
  return {};
}

double fit_flop(const Memory& m) {
  const auto n = static_cast<double>(m.images), d = static_cast<double>(m.dims);
  return m.count() * (n * d * (d + 1.0) + 2.0 * d * d * d / 3.0);
}
double fit_bytes(const Memory& m) {
  const auto n = static_cast<double>(m.images), d = static_cast<double>(m.dims);
  return 4.0 * m.count() * (n * d + d + d * (d + 1.0) / 2.0);
}

/// Makes the memory, or says why not.
std::unique_ptr<Memory> memory_or_skip(benchmark::State& state, cuda::StreamRef stream) {
  auto made = Memory::create(state, stream);
  if (made.ok()) return std::make_unique<Memory>(*std::move(made));
  state.SkipWithError(made.message().c_str());
  return nullptr;
}

bool skipped(benchmark::State& state, const Status& status) {
  if (!status.ok()) state.SkipWithError(status.message().c_str());
  return !status.ok();
}

void fit(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  const auto m = memory_or_skip(state, device->stream());
  if (!m || skipped(state, m->fit(device->stream())) || skipped(state, check_factors(device->stream(), *m))) return;
  device->time(state, {.flop = fit_flop(*m), .rate = bench::Rate::fp32, .bytes = fit_bytes(*m)},
               [&](cuda::StreamRef stream) { return m->fit(stream); });
}

/// Sums alone, in batches of 64 images, as a fit that does not have all images at hand does it.
void observe(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  const auto m = memory_or_skip(state, device->stream());
  if (!m) return;
  auto mean = cuda::DeviceBuffer<double>::create(m->positions * m->dims);
  if (skipped(state, mean.status())) return;
  const auto run = [&](cuda::StreamRef stream) -> Status {
    cuda::GaussianState sums{0, {mean->data(), m->positions, m->dims}, m->model.factor};
    for (std::int64_t first = 0; first < m->images; first += 64) {
      NORMA_CHECK(cuda::observe_gaussians(
          stream, sums, m->rows().block(first * m->positions, std::min<std::int64_t>(64, m->images - first) * m->positions), m->scratch()));
    }
    return {};
  };
  if (skipped(state, run(device->stream()))) return;
  // Factored in place, the sums must give what `fit` gives.
  const cuda::GaussianState sums{m->images, {mean->data(), m->positions, m->dims}, m->model.factor};
  if (skipped(state, cuda::finish_gaussians(device->stream(), sums, kRegularisation, m->model, m->scratch()))) return;
  if (skipped(state, check_factors(device->stream(), *m))) return;
  const auto n = static_cast<double>(m->images), d = static_cast<double>(m->dims);
  device->time(state, {.flop = m->count() * n * d * (d + 1.0), .rate = bench::Rate::fp32, .bytes = fit_bytes(*m)}, run);
}

/// What the libraries offer, in four steps.
struct Peer {
  cublasHandle_t blas = nullptr;
#if NORMA_BENCH_HAS_CUSOLVER
  cusolverDnHandle_t solver = nullptr;
#endif
  cuda::DeviceBuffer<float> centred, covariance, inverse;
  cuda::DeviceBuffer<float*> covariances, inverses;

  Peer() = default;
  Peer(const Peer&) = delete;
  Peer& operator=(const Peer&) = delete;
  ~Peer() {
    if (blas != nullptr) (void)cublasDestroy(blas);
#if NORMA_BENCH_HAS_CUSOLVER
    if (solver != nullptr) (void)cusolverDnDestroy(solver);
#endif
  }

  Status create(const Memory& m, cuda::StreamRef stream, bool factors) {
    NORMA_CHECK(check(cublasCreate(&blas), "cublasCreate"));
    NORMA_CHECK(check(cublasSetStream(blas, cuda::detail::native(stream)), "cublasSetStream"));
    NORMA_CHECK(check(cublasSetMathMode(blas, CUBLAS_PEDANTIC_MATH), "cublasSetMathMode"));
    NORMA_TRY(centred, cuda::DeviceBuffer<float>::create(m.x.size()));
    NORMA_TRY(covariance, cuda::DeviceBuffer<float>::create(m.positions * m.dims * m.dims));
    if (!factors) return {};
#if NORMA_BENCH_HAS_CUSOLVER
    if (cusolverDnCreate(&solver) != CUSOLVER_STATUS_SUCCESS ||
        cusolverDnSetStream(solver, cuda::detail::native(stream)) != CUSOLVER_STATUS_SUCCESS) {
      return {Errc::io_error, "bench: cusolverDnCreate failed"};
    }
#endif
    NORMA_TRY(inverse, cuda::DeviceBuffer<float>::create(covariance.size()));
    NORMA_TRY(covariances, cuda::DeviceBuffer<float*>::create(m.positions));
    NORMA_TRY(inverses, cuda::DeviceBuffer<float*>::create(m.positions));
    NORMA_CHECK(over(stream, m.positions, pointers_kernel, covariances.data(), covariance.data(), m.dims * m.dims, m.positions));
    return over(stream, m.positions, pointers_kernel, inverses.data(), inverse.data(), m.dims * m.dims, m.positions);
  }

  Status run_covariance(const Memory& m, cuda::StreamRef stream, float* mean) {
    NORMA_CHECK(cuda::detail::launch("bench", stream,
                                     {.blocks_x = cuda::detail::ceil_div(m.dims, kThreads), .blocks_y = m.positions, .threads = kThreads},
                                     centre_kernel, m.x.data(), m.positions, m.images, m.dims, mean, centred.data()));
    // In column-major order the features of a position are [d, n], columns P d apart.
    const int d = static_cast<int>(m.dims), n = static_cast<int>(m.images);
    const auto stride = static_cast<int>(m.positions * m.dims);
    const float scale = 1.0f / static_cast<float>(m.images - 1), zero = 0.0f;
    return check(cublasSgemmStridedBatched(blas, CUBLAS_OP_N, CUBLAS_OP_T, d, d, n, &scale, centred.data(), stride, m.dims, centred.data(), stride,
                                           m.dims, &zero, covariance.data(), d, m.dims * m.dims, static_cast<int>(m.positions)),
                 "cublasSgemmStridedBatched");
  }

  /// Lower factors, column-major, and their inverses.
  Status run_factors(const Memory& m, cuda::StreamRef stream, int* flags) {
    NORMA_CHECK(
        over(stream, m.positions * m.dims, add_to_diagonal_kernel, covariance.data(), m.dims, m.positions, static_cast<float>(kRegularisation)));
#if NORMA_BENCH_HAS_CUSOLVER
    const int d = static_cast<int>(m.dims), batch = static_cast<int>(m.positions);
    if (cusolverDnSpotrfBatched(solver, CUBLAS_FILL_MODE_LOWER, d, covariances.data(), d, flags, batch) != CUSOLVER_STATUS_SUCCESS) {
      return {Errc::io_error, "bench: cusolverDnSpotrfBatched failed"};
    }
    NORMA_CHECK(over(stream, inverse.size(), unit_matrices_kernel, inverse.data(), m.dims, m.positions));
    const float one = 1.0f;
    return check(cublasStrsmBatched(blas, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_N, CUBLAS_DIAG_NON_UNIT, d, d, &one, covariances.data(),
                                    d, inverses.data(), d, batch),
                 "cublasStrsmBatched");
#else
    (void)flags;
    return {Errc::unsupported, "bench: compiled without cuSOLVER"};
#endif
  }

  /// The inverse factors against ours, a position at either end.
  Status compare(const Memory& m, cuda::StreamRef stream) const {
    for (const std::int64_t p : {std::int64_t{0}, m.positions - 1}) {
      std::vector<float> theirs(static_cast<std::size_t>(m.dims * m.dims)), ours(static_cast<std::size_t>(packed_triangle(m.dims)));
      NORMA_CHECK(cuda::copy_async(stream, theirs.data(), inverse.data() + p * m.dims * m.dims, m.dims * m.dims));
      NORMA_CHECK(cuda::copy_async(stream, ours.data(), m.factor.data() + p * packed_triangle(m.dims), packed_triangle(m.dims)));
      NORMA_CHECK(cuda::detail::synchronize("bench", stream));
      for (std::int64_t r = 0; r < m.dims; ++r) {
        for (std::int64_t c = 0; c <= r; ++c) {
          const float a = theirs[static_cast<std::size_t>(c * m.dims + r)], b = ours[static_cast<std::size_t>(packed_triangle(r) + c)];
          if (!(std::abs(a - b) <= 1e-2f)) return {Errc::mismatch, "bench: the libraries' factor differs from ours"};  // entries are at most 10
        }
      }
    }
    return {};
  }
};

void peer_covariance(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  const auto m = memory_or_skip(state, device->stream());
  Peer peer;
  if (!m || skipped(state, peer.create(*m, device->stream(), false))) return;
  const auto n = static_cast<double>(m->images), d = static_cast<double>(m->dims);
  // The useful half is counted, as for `observe`.
  device->time(state, {.flop = m->count() * n * d * (d + 1.0), .rate = bench::Rate::fp32, .bytes = fit_bytes(*m)},
               [&](cuda::StreamRef stream) { return peer.run_covariance(*m, stream, m->mean.data()); });
}

void peer_fit(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  const auto m = memory_or_skip(state, device->stream());
  Peer peer;
  if (!m || skipped(state, peer.create(*m, device->stream(), true))) return;
  const auto run = [&](cuda::StreamRef stream) -> Status {
    NORMA_CHECK(peer.run_covariance(*m, stream, m->mean.data()));
    return peer.run_factors(*m, stream, m->flags.data());
  };
  if (skipped(state, run(device->stream())) || skipped(state, m->fit(device->stream())) || skipped(state, peer.compare(*m, device->stream()))) return;
  device->time(state, {.flop = fit_flop(*m), .rate = bench::Rate::fp32, .bytes = fit_bytes(*m)}, run);
}

/// The first images of the fit, scored by the fitted model; how many is the fourth axis.
void distance(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  const auto m = memory_or_skip(state, device->stream());
  if (!m) return;
  const std::int64_t images = state.range(3);
  auto out = cuda::DeviceBuffer<float>::create(images * m->positions);
  if (skipped(state, out.status()) || skipped(state, m->fit(device->stream()))) return;
  const auto run = [&](cuda::StreamRef stream) {
    return cuda::mahalanobis(stream, cuda::model_view(m->model), m->rows().block(0, images * m->positions), out->data());
  };
  if (skipped(state, run(device->stream()))) return;
  const auto d = static_cast<double>(m->dims), rows = static_cast<double>(images) * m->count();
  device->time(state, {.flop = rows * d * d, .rate = bench::Rate::fp32, .bytes = 4.0 * (m->count() * (d + d * (d + 1.0) / 2.0) + rows * (d + 1.0))},
               run);
}

void peer_distance(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  const auto m = memory_or_skip(state, device->stream());
  Peer peer;
  if (!m || skipped(state, peer.create(*m, device->stream(), true))) return;
  const std::int64_t images = state.range(3), rows = images * m->positions;
  auto centred = cuda::DeviceBuffer<float>::create(rows * m->dims), product = cuda::DeviceBuffer<float>::create(rows * m->dims);
  auto out = cuda::DeviceBuffer<float>::create(rows), ours = cuda::DeviceBuffer<float>::create(rows);
  for (const auto* buffer : {&centred, &product, &out, &ours}) {
    if (skipped(state, buffer->status())) return;
  }
  const cuda::StreamRef own = device->stream();
  if (skipped(state, peer.run_covariance(*m, own, m->mean.data())) || skipped(state, peer.run_factors(*m, own, m->flags.data()))) return;
  const auto run = [&](cuda::StreamRef stream) -> Status {
    NORMA_CHECK(over(stream, rows * m->dims, subtract_kernel, m->x.data(), m->mean.data(), m->positions * m->dims, rows * m->dims, centred->data()));
    const int d = static_cast<int>(m->dims), n = static_cast<int>(images), apart = static_cast<int>(m->positions * m->dims);
    const float one = 1.0f, zero = 0.0f;
    NORMA_CHECK(
        check(cublasSgemmStridedBatched(peer.blas, CUBLAS_OP_N, CUBLAS_OP_N, d, n, d, &one, peer.inverse.data(), d, m->dims * m->dims,
                                        centred->data(), apart, m->dims, &zero, product->data(), apart, m->dims, static_cast<int>(m->positions)),
              "cublasSgemmStridedBatched"));
    return over(stream, rows * simt::kWarp, norms_kernel, product->data(), rows, m->dims, out->data());
  };
  if (skipped(state, run(own)) || skipped(state, m->fit(own))) return;
  if (skipped(state, cuda::mahalanobis(own, cuda::model_view(m->model), m->rows().block(0, rows), ours->data()))) return;
  std::vector<float> a(static_cast<std::size_t>(rows)), b(static_cast<std::size_t>(rows));
  if (skipped(state, cuda::copy_async(own, a.data(), out->data(), rows)) || skipped(state, cuda::copy_async(own, b.data(), ours->data(), rows)) ||
      skipped(state, cuda::detail::synchronize("bench", own))) {
    return;
  }
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!(std::abs(a[i] - b[i]) <= 1e-2f * b[i])) return state.SkipWithError("the libraries' distances differ from ours");
  }
  const auto d = static_cast<double>(m->dims), count = static_cast<double>(rows);
  device->time(state, {.flop = count * d * d, .rate = bench::Rate::fp32, .bytes = 4.0 * (m->count() * (d + d * (d + 1.0) / 2.0) + count * (d + 1.0))},
               run);
}

void fits(benchmark::internal::Benchmark* b) {
  b->ArgNames({"positions", "images", "dims"})->Args({3136, 209, 100})->Args({3136, 209, 550})->NORMA_CUDA_BENCHMARK;
}
void scores(benchmark::internal::Benchmark* b) {
  b->ArgNames({"positions", "fitted", "dims", "images"});
  for (const std::int64_t d : {100, 550}) b->Args({3136, 209, d, 1})->Args({3136, 209, d, 16});
  b->NORMA_CUDA_BENCHMARK;
}
BENCHMARK(fit)->Apply(fits);
BENCHMARK(observe)->Apply(fits);
BENCHMARK(peer_covariance)->Apply(fits);
BENCHMARK(peer_fit)->Apply(fits);
BENCHMARK(distance)->Apply(scores);
BENCHMARK(peer_distance)->Apply(scores);

/// One tall matrix. Rows / dimensions.
void tall(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  const std::int64_t rows = state.range(0), dims = state.range(1);
  auto x = cuda::DeviceBuffer<float>::create(rows * dims), mean = cuda::DeviceBuffer<float>::create(dims),
       out = cuda::DeviceBuffer<float>::create(dims * dims);
  auto workspace = cuda::DeviceBuffer<std::byte>::create(static_cast<std::int64_t>(cuda::covariance_workspace_bytes(rows, dims)));
  if (skipped(state, x.status()) || skipped(state, mean.status()) || skipped(state, out.status()) || skipped(state, workspace.status())) return;
  if (skipped(state, bench::fill_uniform(device->stream(), x->data(), x->size(), 3))) return;
  const auto run = [&](cuda::StreamRef stream) {
    return cuda::covariance(stream, {x->data(), rows, dims}, mean->data(), {out->data(), dims, dims}, {workspace->data(), workspace->bytes()});
  };
  std::vector<float> result(static_cast<std::size_t>(dims * dims));
  if (skipped(state, run(device->stream())) || skipped(state, cuda::copy_async(device->stream(), result.data(), out->data(), dims * dims)) ||
      skipped(state, cuda::detail::synchronize("bench", device->stream()))) {
    return;
  }
  // Independent uniform numbers in [-1, 1): variance 1/3, other entries 0, both within ten standard errors.
  const double allowed = 10.0 / std::sqrt(static_cast<double>(rows));
  for (std::int64_t r = 0; r < dims; ++r) {
    for (std::int64_t c = 0; c < dims; ++c) {
      const double value = static_cast<double>(result[static_cast<std::size_t>(r * dims + c)]);
      if (!(std::abs(value - (r == c ? 1.0 / 3.0 : 0.0)) <= allowed)) return state.SkipWithError("not the covariance of uniform numbers");
    }
  }
  const auto n = static_cast<double>(rows), d = static_cast<double>(dims);
  device->time(state, {.flop = n * d * (d + 1.0), .rate = bench::Rate::fp32, .bytes = 4.0 * (n * d + d * d)}, run);
}
BENCHMARK(tall)->ArgNames({"rows", "dims"})->Args({655424, 100})->Args({655424, 550})->NORMA_CUDA_BENCHMARK;

}  // namespace

NORMA_CUDA_BENCHMARK_MAIN()
