// Exact nearest rows, 1024 dimensions, uniform data: ours with each product, and the classical way beside it: cuBLAS writes the matrix of products, a
// selection kernel reads it. Ours is exact for every product (checked against brute force in double before timing, on the first queries); the peer is
// as exact as its product, and its squared lengths of the bank are computed beforehand, as ours are. tf32x3 is measured against the TF32 rate, of
// which it can reach a third. Counters beside the harness' own: `measured` and `whole_groups` a query (rows measured in double; groups of 32 rows
// measured whole).
#include "support/cuda_timer.cuh"

#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include <norma/cuda/nearest_rows.hpp>

namespace norma::bench {

inline constexpr std::int64_t kRowDims = 1024;

/// Lengths of rows, one warp a row; and the operand of the 16-bit product.
template <class Operand>
NORMA_KERNEL peer_prepare_kernel(const float* rows, std::int64_t count, float* squares, Operand* operand) {
  const std::int64_t row = cuda::simt::block_x() * 8 + cuda::simt::warp_index();
  if (row >= count) return;
  float sum = 0.0f;
  for (std::int64_t c = cuda::simt::lane_index(); c < kRowDims; c += 32) {
    const float x = rows[row * kRowDims + c];
    sum += x * x;
    operand[row * kRowDims + c] = cuda::simt::from_float<Operand>(x);
  }
  sum = cuda::simt::warp_sum(sum);
  if (cuda::simt::lane_index() == 0 && squares != nullptr) squares[row] = sum;
}

/// The k smallest of squares[r] - 2 products[q, r] of every query: one block a query, every thread keeps its own k in registers, then k rounds over
/// the threads' heads.
template <int K>
NORMA_LAUNCH_BOUNDS(256)
NORMA_KERNEL peer_select_kernel(const float* products, const float* squares, std::int64_t n, float* distance, std::int64_t* index) {
  const auto heads = cuda::simt::shared_array<float>(0, 8);
  const auto rows = cuda::simt::shared_array<int>(8 * 4, 8);
  const float* const row = products + cuda::simt::block_x() * n;
  float best[K];
  int best_row[K];
  NORMA_UNROLL
  for (int i = 0; i < K; ++i) {
    best[i] = 3e38f;
    best_row[i] = 2147483647;
  }
  for (std::int64_t r = cuda::simt::thread_index(); r < n; r += 256) {
    float value = squares[r] - 2.0f * row[r];
    if (!(value < best[K - 1])) continue;
    int at = static_cast<int>(r);
    NORMA_UNROLL
    for (int i = 0; i < K; ++i) {
      if (value < best[i]) {
        const float held = best[i];
        const int held_row = best_row[i];
        best[i] = value;
        best_row[i] = at;
        value = held;
        at = held_row;
      }
    }
  }
  for (int round = 0; round < K; ++round) {
    float least = best[0];
    int least_row = best_row[0];
    for (int mask = 16; mask > 0; mask /= 2) {
      const float other = cuda::simt::warp_shuffle_xor(least, mask);
      const int other_row = cuda::simt::warp_shuffle_xor(least_row, mask);
      if (other < least || (other == least && other_row < least_row)) {
        least = other;
        least_row = other_row;
      }
    }
    if (cuda::simt::lane_index() == 0) {
      heads[cuda::simt::warp_index()] = least;
      rows[cuda::simt::warp_index()] = least_row;
    }
    cuda::simt::block_barrier();
    for (int w = 0; w < 8; ++w) {
      const float other = heads[w];
      const int other_row = rows[w];
      if (other < least || (other == least && other_row < least_row)) {
        least = other;
        least_row = other_row;
      }
    }
    cuda::simt::block_barrier();
    if (best_row[0] == least_row) {  // mine: the next one is the head
      NORMA_UNROLL
      for (int i = 0; i + 1 < K; ++i) {
        best[i] = best[i + 1];
        best_row[i] = best_row[i + 1];
      }
      best[K - 1] = 3e38f;
      best_row[K - 1] = 2147483647;
    }
    if (cuda::simt::thread_index() == 0) {
      distance[cuda::simt::block_x() * K + round] = least;
      index[cuda::simt::block_x() * K + round] = least_row;
    }
  }
}

}  // namespace norma::bench

namespace {

using namespace norma;
using cuda::RowProduct;

constexpr std::int64_t kDims = bench::kRowDims;

/// Queries and bank in device memory.
struct Rows {
  std::int64_t m, n;
  cuda::DeviceBuffer<float> queries, bank;
  static Result<Rows> create(std::int64_t m, std::int64_t n, cuda::StreamRef stream) {
    Rows rows{m, n, {}, {}};
    NORMA_TRY(rows.queries, cuda::DeviceBuffer<float>::create(m * kDims));
    NORMA_TRY(rows.bank, cuda::DeviceBuffer<float>::create(n * kDims));
    NORMA_CHECK(bench::fill_uniform(stream, rows.queries.data(), m * kDims, 1));
    NORMA_CHECK(bench::fill_uniform(stream, rows.bank.data(), n * kDims, 2));
    return Result<Rows>(std::move(rows));
  }
  [[nodiscard]] MatrixView<const float> query_view() const { return {queries.data(), m, kDims}; }
  [[nodiscard]] MatrixView<const float> bank_view() const { return {bank.data(), n, kDims}; }
  [[nodiscard]] bench::Work work(bench::Rate rate) const {
    return {.flop = 2.0 * static_cast<double>(m) * static_cast<double>(n) * kDims, .rate = rate, .bytes = 4.0 * static_cast<double>(m + n) * kDims};
  }
};

bench::Rate rate_of(RowProduct product) {
  return product == RowProduct::fp32 ? bench::Rate::fp32 : product == RowProduct::bf16 ? bench::Rate::bf16 : bench::Rate::tf32;
}

template <class T>
Result<std::vector<T>> download(cuda::StreamRef stream, const T* from, std::int64_t count) {
  std::vector<T> values(static_cast<std::size_t>(count));
  NORMA_CHECK(cuda::copy_async(stream, values.data(), from, count));
  NORMA_CHECK(cuda::detail::synchronize("download", stream));
  return Result<std::vector<T>>(std::move(values));
}

/// The first queries' neighbours against brute force in double; the data has no ties.
Status check(const Rows& rows, int k, const std::int64_t* index, cuda::StreamRef stream) {
  constexpr std::int64_t kChecked = 3;
  NORMA_TRY(const std::vector<float> bank, download(stream, rows.bank.data(), rows.n * kDims));
  NORMA_TRY(const std::vector<float> queries, download(stream, rows.queries.data(), kChecked * kDims));
  NORMA_TRY(const std::vector<std::int64_t> got, download(stream, index, kChecked * k));
  std::vector<std::pair<double, std::int64_t>> all(static_cast<std::size_t>(rows.n));
  for (std::int64_t q = 0; q < kChecked; ++q) {
    for (std::int64_t r = 0; r < rows.n; ++r) {
      double sum = 0.0;
      for (std::int64_t c = 0; c < kDims; ++c) {
        const double difference = static_cast<double>(queries[static_cast<std::size_t>(q * kDims + c)]) -
                                  static_cast<double>(bank[static_cast<std::size_t>(r * kDims + c)]);
        sum += difference * difference;
      }
      all[static_cast<std::size_t>(r)] = {sum, r};
    }
    std::partial_sort(all.begin(), all.begin() + k, all.end());
    for (int i = 0; i < k; ++i) {
      if (got[static_cast<std::size_t>(q * k + i)] != all[static_cast<std::size_t>(i)].second) {
        return {Errc::mismatch, "query " + std::to_string(q) + ", neighbour " + std::to_string(i) + ": found row " +
                                    std::to_string(got[static_cast<std::size_t>(q * k + i)]) + ", expected " +
                                    std::to_string(all[static_cast<std::size_t>(i)].second)};
      }
    }
  }
  return {};
}

/// What `body`, which returns Status, has to say goes into the state.
template <class Body>
void report_errors(benchmark::State& state, const Body& body) {
  const Status status = body();
  if (!status) state.SkipWithError(status.message().c_str());
}

template <class Tuning>
void nearest_rows(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  const std::int64_t m = state.range(0), n = state.range(1);
  const int k = static_cast<int>(state.range(2));
  const auto product = static_cast<RowProduct>(state.range(3));
  report_errors(state, [&]() -> Status {
    const cuda::StreamRef stream = device->stream();
    NORMA_TRY(const Rows rows, Rows::create(m, n, stream));
    NORMA_TRY(auto prepared, cuda::DeviceBuffer<std::byte>::create(static_cast<std::int64_t>(cuda::prepared_bank_bytes(n, kDims, product))));
    NORMA_TRY(auto workspace,
              cuda::DeviceBuffer<std::byte>::create(static_cast<std::int64_t>(cuda::nearest_rows_workspace_bytes(m, n, kDims, k, product))));
    NORMA_TRY(auto distance, cuda::DeviceBuffer<float>::create(m * k));
    NORMA_TRY(auto index, cuda::DeviceBuffer<std::int64_t>::create(m * k));
    NORMA_TRY(const auto bank, cuda::place_bank(rows.bank_view(), cuda::RowDistance::squared_l2, product, {prepared.data(), prepared.bytes()}));
    NORMA_CHECK(cuda::prepare_bank(stream, bank));
    const std::span<std::byte> memory(workspace.data(), workspace.bytes());
    const auto search = [&](cuda::StreamRef s) {
      return cuda::nearest_rows<float, Tuning>(s, bank, rows.query_view(), k, {distance.data(), m, k}, {index.data(), m, k}, memory);
    };
    NORMA_CHECK(search(stream));
    NORMA_CHECK(check(rows, k, index.data(), stream));
    NORMA_TRY(const auto counters, download(stream, cuda::search_counters(memory), 1));
    if (!device->time(state, rows.work(rate_of(product)), search)) return {};
    state.counters["measured"] = static_cast<double>(counters[0].measured) / static_cast<double>(m);
    state.counters["whole_groups"] = static_cast<double>(counters[0].whole_groups) / static_cast<double>(m);
    return {};
  });
}

template <class Operand>
Status peer(benchmark::State& state, bench::Device& device, cublasHandle_t blas, RowProduct product) {
  const std::int64_t m = state.range(0), n = state.range(1);
  const int k = static_cast<int>(state.range(2));
  const cuda::StreamRef stream = device.stream();
  NORMA_TRY(const Rows rows, Rows::create(m, n, stream));
  NORMA_TRY(auto bank, cuda::DeviceBuffer<Operand>::create(n * kDims));
  NORMA_TRY(auto queries, cuda::DeviceBuffer<Operand>::create(m * kDims));
  NORMA_TRY(auto squares, cuda::DeviceBuffer<float>::create(n));
  NORMA_TRY(auto products, cuda::DeviceBuffer<float>::create(m * n));
  NORMA_TRY(auto distance, cuda::DeviceBuffer<float>::create(m * k));
  NORMA_TRY(auto index, cuda::DeviceBuffer<std::int64_t>::create(m * k));
  const auto prepare = [&](const cuda::DeviceBuffer<float>& from, std::int64_t count, float* lengths, Operand* to, cuda::StreamRef s) {
    return cuda::detail::launch("peer", s, {.blocks_x = cuda::detail::ceil_div(count, 8), .threads = 256}, bench::peer_prepare_kernel<Operand>,
                                from.data(), count, lengths, to);
  };
  NORMA_CHECK(prepare(rows.bank, n, squares.data(), bank.data(), stream));
  constexpr cudaDataType_t kType = std::is_same_v<Operand, float> ? CUDA_R_32F : CUDA_R_16BF;
  const cublasComputeType_t compute = product == RowProduct::fp32   ? CUBLAS_COMPUTE_32F_PEDANTIC
                                      : product == RowProduct::tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                                    : CUBLAS_COMPUTE_32F;
  const float one = 1.0f, zero = 0.0f;
  const auto search = [&](cuda::StreamRef s) -> Status {
    const Operand* operand = queries.data();
    if constexpr (std::is_same_v<Operand, float>) {
      operand = rows.queries.data();
    } else {
      NORMA_CHECK(prepare(rows.queries, m, nullptr, queries.data(), s));
    }
    const cublasStatus_t done = cublasGemmEx(blas, CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(n), static_cast<int>(m), static_cast<int>(kDims), &one,
                                             bank.data(), kType, static_cast<int>(kDims), operand, kType, static_cast<int>(kDims), &zero,
                                             products.data(), CUDA_R_32F, static_cast<int>(n), compute, CUBLAS_GEMM_DEFAULT);
    if (done != CUBLAS_STATUS_SUCCESS) return {Errc::io_error, std::string("cublasGemmEx: ") + cublasGetStatusString(done)};
    const cuda::detail::LaunchShape shape{.blocks_x = m, .threads = 256, .shared_bytes = 64};
    const auto select = [&](auto* kernel) {
      return cuda::detail::launch("peer", s, shape, kernel, products.data(), squares.data(), n, distance.data(), index.data());
    };
    return k == 1 ? select(bench::peer_select_kernel<1>) : select(bench::peer_select_kernel<9>);
  };
  NORMA_CHECK(search(stream));
  if (product == RowProduct::fp32) NORMA_CHECK(check(rows, k, index.data(), stream));
  device.time(state, rows.work(rate_of(product)), search);
  return {};
}

void product_then_select(benchmark::State& state) {
  bench::Device* device = bench::device_or_skip(state);
  if (device == nullptr) return;
  const auto product = static_cast<RowProduct>(state.range(3));
  report_errors(state, [&]() -> Status {
    cublasHandle_t blas = nullptr;
    if (cublasCreate(&blas) != CUBLAS_STATUS_SUCCESS) return {Errc::io_error, "cublasCreate failed"};
    const std::unique_ptr<cublasContext, cublasStatus_t (*)(cublasHandle_t)> owner(blas, &cublasDestroy);
    if (cublasSetStream(blas, cuda::detail::native(device->stream())) != CUBLAS_STATUS_SUCCESS) return {Errc::io_error, "cublasSetStream failed"};
    return product == RowProduct::bf16 ? peer<cuda::BFloat16>(state, *device, blas, product) : peer<float>(state, *device, blas, product);
  });
}

/// One image and four at 1, 10 and 25 % of 209 images, by the numbers of neighbours that PatchCore asks for, by product.
void shapes(benchmark::internal::Benchmark* b, std::initializer_list<RowProduct> products) {
  b->ArgNames({"queries", "bank", "k", "product"});
  for (const auto& [m, n] : {std::pair{784, 1640}, {784, 16400}, {784, 41000}, {3136, 16400}, {3136, 41000}}) {
    for (const int k : {1, 9}) {
      for (const RowProduct product : products) b->Args({m, n, k, static_cast<std::int64_t>(product)});
    }
  }
}
BENCHMARK(nearest_rows<cuda::NearestRowsTuning>)->Apply([](auto* b) {
                         shapes(b, {RowProduct::fp32, RowProduct::tf32x3, RowProduct::tf32, RowProduct::bf16});
                       }) -> NORMA_CUDA_BENCHMARK;
// The same search with the warpgroup's products, on a device of compute capability 9.0; another says that it has none.
BENCHMARK(nearest_rows<cuda::NearestRowsWarpgroupTuning>)->Apply([](auto* b) { shapes(b, {RowProduct::tf32, RowProduct::bf16}); }) -> NORMA_CUDA_BENCHMARK;
BENCHMARK(product_then_select)->Apply([](auto* b) { shapes(b, {RowProduct::fp32, RowProduct::tf32, RowProduct::bf16}); }) -> NORMA_CUDA_BENCHMARK;

}  // namespace

NORMA_CUDA_BENCHMARK_MAIN()
