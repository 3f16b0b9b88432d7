/// \file
/// The matrix product on tiles, and what a convolution shares with it: operands that give a block its sources, an epilogue that gets the sums, one
/// kernel and one launcher for all of them. To fuse something else with a product, write an epilogue and call detail::run_product. Bound by: the
/// multipliers, from about 64 rows and columns on. Reference: norma::Gemm.
#pragma once

#include <string>
#include <string_view>

#include <norma/cuda/matrix_product.hpp>
#include <norma/cuda/tile_product.cuh>

namespace norma::cuda {

/// Which tile a product of an arithmetic uses. One policy for all architectures: nothing has been measured that tells them apart.
template <Arithmetic kArithmetic, bool kLarge>
struct ProductTuning {
  static constexpr TilePolicy policy = kArithmetic == Arithmetic::fp32     ? (kLarge ? kTileFp32 : kTileFp32Small)
                                       : kArithmetic == Arithmetic::tf32   ? (kLarge ? kTileTf32 : kTileTf32Small)
                                       : kArithmetic == Arithmetic::tf32x3 ? (kLarge ? kTileTf32x3 : kTileTf32x3Small)
                                       : kArithmetic == Arithmetic::bf16   ? (kLarge ? kTileBf16 : kTileBf16Small)
                                                                           : (kLarge ? kTileF16 : kTileF16Small);
};

/// An operand gives each block the source of its tile: depths from .. to of product `batch`, rows first_row ..
///     using Element = ...;  static constexpr Contiguous contiguous = ...;
///     Source tile(std::int64_t batch, std::int64_t first_row, std::int64_t from, std::int64_t to) const;
template <class T, Contiguous kContiguous>
struct MatrixOperand {
  using Element = T;
  static constexpr Contiguous contiguous = kContiguous;
  const T* data;
  std::int64_t rows, stride, batch_stride;

  [[nodiscard]] NORMA_DEVICE MatrixSource<T, kContiguous> tile(std::int64_t batch, std::int64_t first_row, std::int64_t from, std::int64_t to) const {
    return {data + batch * batch_stride + (kContiguous == Contiguous::depth ? from : from * stride), first_row, rows, to - from, stride};
  }
};

/// An epilogue gets the finished sums: `epilogue(batch, row, col, Vec<float, N>)` for col .. col + N - 1, row inside the result, col inside and a
/// multiple of N; columns beyond the result may be among them. This one stores activation(alpha sum + bias + residual).
template <class Out>
struct StoreEpilogue {
  Out* data;
  std::int64_t stride, batch_stride, cols;
  const float* bias;    // [cols] or null
  const Out* residual;  // where the result is, or null
  float alpha;
  bool relu;
  bool wide;  // runs of up to 4 results are aligned

  template <int N>
  NORMA_DEVICE void operator()(std::int64_t batch, std::int64_t row, std::int64_t col, simt::Vec<float, N> sums) const {
    const std::int64_t at = batch * batch_stride + row * stride + col;
    simt::Vec<Out, N> results;
    NORMA_UNROLL
    for (int e = 0; e < N; ++e) {
      if (col + e >= cols) break;
      float x = alpha * sums[e];
      if (bias != nullptr) x += bias[col + e];
      if (residual != nullptr) x += simt::to_float(residual[at + e]);
      if (relu) x = x < 0.0f ? 0.0f : x;  // NaN stays
      results[e] = simt::from_float<Out>(x);
    }
    if (wide && col + N <= cols) {
      simt::store<N>(data + at, results);
    } else {
      NORMA_UNROLL
      for (int e = 0; e < N; ++e) {
        if (col + e < cols) data[at + e] = results[e];
      }
    }
  }
};

namespace detail {

struct ProductShape {
  std::int64_t rows, cols, depth, batch;
};

template <class Tuning, class OperandA, class OperandB, class Epilogue>
NORMA_LAUNCH_BOUNDS(Tuning::policy.threads(), Tuning::policy.rows >= 128 ? 2 : 3)
NORMA_KERNEL product_kernel(OperandA a, OperandB b, Epilogue epilogue, ProductShape shape, std::int64_t part_depth, float* parts) {
  using Product = TileProduct<Tuning::policy, typename OperandA::Element, typename OperandB::Element, OperandA::contiguous, OperandB::contiguous>;
  constexpr TilePolicy kPolicy = Tuning::policy;
  const std::int64_t across = ceil_div(shape.cols, kPolicy.cols);
  const std::int64_t row0 = simt::block_x() / across * kPolicy.rows, col0 = simt::block_x() % across * kPolicy.cols;
  const std::int64_t part = simt::block_y(), batch = simt::block_z();
  const std::int64_t from = part * part_depth, to = from + part_depth < shape.depth ? from + part_depth : shape.depth;
  typename Product::Accumulator acc;
  acc.fill(0.0f);
  Product::accumulate(acc, a.tile(batch, row0, from, to), b.tile(batch, col0, from, to), to - from, 0);
  if (parts == nullptr) {
    acc.for_each_run([&](int, int row, int col, simt::Vec<float, Product::kRun> sums) {
      if (row0 + row < shape.rows && col0 + col < shape.cols) epilogue(batch, row0 + row, col0 + col, sums);
    });
  } else {
    float* const mine = parts + (part * shape.batch + batch) * shape.rows * shape.cols;
    acc.for_each([&](int, int row, int col, float& sum) {
      if (row0 + row < shape.rows && col0 + col < shape.cols) mine[(row0 + row) * shape.cols + col0 + col] = sum;
    });
  }
}

inline constexpr int kAddPartsThreads = 256;

/// The parts of a product, added in their order; a thread has four neighbouring columns of a row.
template <class Epilogue>
NORMA_LAUNCH_BOUNDS(kAddPartsThreads)
NORMA_KERNEL add_parts_kernel(const float* parts, std::int64_t count, Epilogue epilogue, ProductShape shape) {
  const std::int64_t runs = ceil_div(shape.cols, 4);
  const std::int64_t i = simt::block_x() * kAddPartsThreads + simt::thread_index();
  if (i >= shape.batch * shape.rows * runs) return;
  const std::int64_t col = i % runs * 4, row = i / runs % shape.rows, batch = i / runs / shape.rows;
  const float* const first = parts + (batch * shape.rows + row) * shape.cols + col;
  simt::Vec<float, 4> sums{};
  for (std::int64_t part = 0; part < count; ++part) {
    NORMA_UNROLL
    for (int e = 0; e < 4; ++e) {
      if (col + e < shape.cols) sums[e] += first[part * shape.batch * shape.rows * shape.cols + e];
    }
  }
  epilogue(batch, row, col, sums);
}

template <class Tuning, class OperandA, class OperandB, class Epilogue>
Status launch_product(std::string_view who, StreamRef stream, const OperandA& a, const OperandB& b, const Epilogue& epilogue,
                      const ProductShape& shape, const ProductPlan& plan, float* parts) {
  using Product = TileProduct<Tuning::policy, typename OperandA::Element, typename OperandB::Element, OperandA::contiguous, OperandB::contiguous>;
  constexpr TilePolicy kPolicy = Tuning::policy;
  auto* const kernel = product_kernel<Tuning, OperandA, OperandB, Epilogue>;
  if constexpr (on_tensor_cores(kPolicy.arithmetic)) {
    NORMA_TRY(const int arch, kernel_arch(who, kernel));
    if (arch < 80) {
      return {Errc::unsupported, std::string(who) + ": this arithmetic needs a kernel compiled for sm_80 or later, found sm_" + std::to_string(arch) +
                                     "; Arithmetic::fp32 runs everywhere"};
    }
  }
  return launch(who, stream,
                {.blocks_x = ceil_div(shape.rows, kPolicy.rows) * ceil_div(shape.cols, kPolicy.cols),
                 .blocks_y = plan.parts,
                 .blocks_z = shape.batch,
                 .threads = Product::kThreads,
                 .shared_bytes = Product::kSharedBytes},
                kernel, a, b, epilogue, shape, plan.part_depth, parts);
}

/// Checks the workspace, cuts the product as its shape says, launches.
template <Arithmetic kArithmetic, class OperandA, class OperandB, class Epilogue>
Status run_product(std::string_view who, StreamRef stream, const OperandA& a, const OperandB& b, const Epilogue& epilogue, const ProductShape& shape,
                   std::span<std::byte> workspace) {
  if (shape.rows == 0 || shape.cols == 0 || shape.batch == 0) return {};
  const ProductPlan plan = ProductPlan::make(shape.rows, shape.cols, shape.depth, shape.batch);
  const std::size_t bytes = plan.bytes(shape.rows, shape.cols, shape.batch);
  float* parts = nullptr;
  if (bytes > 0) {
    if (workspace.size() < bytes || workspace.data() == nullptr) {
      return {Errc::out_of_memory,
              std::string(who) + ": workspace too small, expected " + std::to_string(bytes) + " bytes, found " + std::to_string(workspace.size())};
    }
    if (reinterpret_cast<std::uintptr_t>(workspace.data()) % 16 != 0) {
      return {Errc::invalid_argument, std::string(who) + ": the workspace is not aligned to 16 bytes"};
    }
    parts = reinterpret_cast<float*>(workspace.data());
  }
  NORMA_CHECK(plan.large_tiles ? launch_product<ProductTuning<kArithmetic, true>>(who, stream, a, b, epilogue, shape, plan, parts)
                               : launch_product<ProductTuning<kArithmetic, false>>(who, stream, a, b, epilogue, shape, plan, parts));
  if (parts == nullptr) return {};
  return launch(who, stream,
                {.blocks_x = ceil_div(shape.batch * shape.rows * ceil_div(shape.cols, 4), kAddPartsThreads), .threads = kAddPartsThreads},
                add_parts_kernel<Epilogue>, parts, plan.parts, epilogue, shape);
}

inline constexpr std::int64_t kMostExtent = 2147483647 - 4096;

/// An operand's view: not null, aligned, wide enough.
template <class T>
Status check_operand(std::string_view who, std::string_view name, MatrixView<const T> view, std::int64_t batch_stride) {
  const std::string start = std::string(who) + ": " + std::string(name);
  if (view.rows < 0 || view.cols < 0 || view.rows > kMostExtent || view.cols > kMostExtent) {
    return {Errc::invalid_argument,
            start + " has " + std::to_string(view.rows) + " x " + std::to_string(view.cols) + ", expected sides of 0 to 2^31 - 4097"};
  }
  if (view.empty()) return {};
  if (view.data == nullptr) return {Errc::invalid_argument, start + " is null"};
  if (reinterpret_cast<std::uintptr_t>(view.data) % 16 != 0) return {Errc::invalid_argument, start + " is not aligned to 16 bytes"};
  if (view.stride % kChunk<T> != 0 || view.stride < ceil_div(view.cols, kChunk<T>) * kChunk<T> || batch_stride % kChunk<T> != 0) {
    return {Errc::invalid_argument, start + ": expected strides that are multiples of " + std::to_string(kChunk<T>) + " and hold a line of " +
                                        std::to_string(view.cols) + " padded to it, found " + std::to_string(view.stride) + " and " +
                                        std::to_string(batch_stride) + " between batches"};
  }
  return {};
}
/// What a tile spans in 32 bits of chunks.
template <class T>
Status check_reach(std::string_view who, std::string_view name, std::int64_t lines, std::int64_t stride) {
  if (stride / kChunk<T> <= 4294967294 / (lines + 1)) return {};
  return {Errc::invalid_argument,
          std::string(who) + ": " + std::string(name) + " is too large, expected at most 64 GiB from a tile's first element to its last"};
}

}  // namespace detail

template <class T, Arithmetic kArithmetic, Contiguous kA, Contiguous kB>
Status matrix_product(StreamRef stream, MatrixView<const T> a, MatrixView<const T> b, MatrixView<float> c, const MatrixProductSettings& settings,
                      std::span<std::byte> workspace) {
  constexpr std::string_view kWho = "cuda::matrix_product";
  constexpr bool kRowsA = kA == Contiguous::row, kRowsB = kB == Contiguous::row;
  const std::int64_t m = kRowsA ? a.cols : a.rows, n = kRowsB ? b.cols : b.rows, depth = kRowsA ? a.rows : a.cols;
  const std::int64_t depth_b = kRowsB ? b.rows : b.cols;
  if (depth != depth_b) {
    return {Errc::shape_mismatch,
            std::string(kWho) + ": expected operands of one depth, found " + std::to_string(depth) + " and " + std::to_string(depth_b)};
  }
  if (c.rows != m || c.cols != n) {
    return {Errc::shape_mismatch, std::string(kWho) + ": expected a result of " + std::to_string(m) + " x " + std::to_string(n) + ", found " +
                                      std::to_string(c.rows) + " x " + std::to_string(c.cols)};
  }
  NORMA_CHECK(detail::check_operand<T>(kWho, "a", a, settings.batch_stride_a));
  NORMA_CHECK(detail::check_operand<T>(kWho, "b", b, settings.batch_stride_b));
  NORMA_CHECK(detail::check_reach<T>(kWho, "a", kRowsA ? a.rows : 128, a.stride));
  NORMA_CHECK(detail::check_reach<T>(kWho, "b", kRowsB ? b.rows : 128, b.stride));
  if (settings.batch < 0)
    return {Errc::invalid_argument, std::string(kWho) + ": expected a batch of 0 or more, found " + std::to_string(settings.batch)};
  if (settings.activation != Activation::none && settings.activation != Activation::relu) {
    return {Errc::invalid_argument, std::string(kWho) + ": expected Activation::none or relu"};
  }
  if (c.empty()) return {};
  if (c.data == nullptr) return {Errc::invalid_argument, std::string(kWho) + ": c is null"};
  if (c.stride < n || (settings.batch > 1 && settings.batch_stride_c < (m - 1) * c.stride + n)) {
    return {Errc::invalid_argument, std::string(kWho) + ": c: expected strides that keep rows of " + std::to_string(n) +
                                        " and products apart, found " + std::to_string(c.stride) + " and " + std::to_string(settings.batch_stride_c)};
  }
  const bool wide = reinterpret_cast<std::uintptr_t>(c.data) % 16 == 0 && c.stride % 4 == 0 && settings.batch_stride_c % 4 == 0;
  const StoreEpilogue<float> epilogue{
      c.data, c.stride, settings.batch_stride_c, n, settings.bias, nullptr, settings.alpha, settings.activation == Activation::relu, wide};
  const MatrixOperand<T, kA> operand_a{a.data, m, a.stride, settings.batch_stride_a};
  const MatrixOperand<T, kB> operand_b{b.data, n, b.stride, settings.batch_stride_b};
  return detail::run_product<kArithmetic>(kWho, stream, operand_a, operand_b, epilogue, {m, n, depth, settings.batch}, workspace);
}

}  // namespace norma::cuda
