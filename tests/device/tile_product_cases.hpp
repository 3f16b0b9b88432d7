// The tile product in every arithmetic, layout and mixture of element types: exact with whole numbers, inside derived bounds with normal ones.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include <norma/cuda/tile_product.cuh>

#include "device/operands.hpp"
#include "support/device.hpp"

namespace norma::test {

using cuda::Arithmetic;
using cuda::BFloat16;
using cuda::Contiguous;
using cuda::Half;
using cuda::TilePolicy;

// A product as a type: kernels take types.
template <class A, class B, Contiguous kA, Contiguous kB>
struct TileOperands {
  using ElementA = A;
  using ElementB = B;
  static constexpr Contiguous contiguous_a = kA, contiguous_b = kB;
};
template <class Element, Contiguous kBoth = Contiguous::depth>
using Same = TileOperands<Element, Element, kBoth, kBoth>;

template <int kRows, int kCols, int kDepth, int kDown, int kAcross, int kStages, Arithmetic kArithmetic>
struct Tile {
  static constexpr TilePolicy policy{kRows, kCols, kDepth, kDown, kAcross, kStages, kArithmetic};
};
struct LargeFp32 {
  static constexpr TilePolicy policy = cuda::kTileFp32;
};
struct LargeTf32 {
  static constexpr TilePolicy policy = cuda::kTileTf32;
};
struct LargeTf32x3 {
  static constexpr TilePolicy policy = cuda::kTileTf32x3;
};
struct LargeBf16 {
  static constexpr TilePolicy policy = cuda::kTileBf16;
};
struct LargeF16 {
  static constexpr TilePolicy policy = cuda::kTileF16;
};
struct SmallFp32 {
  static constexpr TilePolicy policy = cuda::kTileFp32Small;
};
struct SmallTf32 {
  static constexpr TilePolicy policy = cuda::kTileTf32Small;
};
struct SmallTf32x3 {
  static constexpr TilePolicy policy = cuda::kTileTf32x3Small;
};
struct SmallBf16 {
  static constexpr TilePolicy policy = cuda::kTileBf16Small;
};
struct SmallF16 {
  static constexpr TilePolicy policy = cuda::kTileF16Small;
};

template <class Tuning, class Operands>
using ProductOf =
    cuda::TileProduct<Tuning::policy, typename Operands::ElementA, typename Operands::ElementB, Operands::contiguous_a, Operands::contiguous_b>;

constexpr int kSharedOffset = 64;  // somebody else's

// The depth in two parts, so that the ring is used twice; `first` is a multiple of every chunk. row_sum [m, warps across, blocks across].
template <class Tuning, class Operands>
NORMA_LAUNCH_BOUNDS(Tuning::policy.threads())
NORMA_KERNEL tile_kernel(MatrixView<const typename Operands::ElementA> a, MatrixView<const typename Operands::ElementB> b, MatrixView<float> c,
                         std::int64_t first, std::int64_t depth, float* row_sum, int* order) {
  using Product = ProductOf<Tuning, Operands>;
  using ElementA = typename Operands::ElementA;
  using ElementB = typename Operands::ElementB;
  constexpr TilePolicy kPolicy = Tuning::policy;
  const std::int64_t row0 = cuda::simt::block_x() * kPolicy.rows, col0 = cuda::simt::block_y() * kPolicy.cols;
  const auto source_a = [&](std::int64_t from, std::int64_t extent) {
    const ElementA* data = a.data + (Operands::contiguous_a == Contiguous::depth ? from : from * a.stride);
    return cuda::MatrixSource<ElementA, Operands::contiguous_a>{data, row0, c.rows, extent, a.stride};
  };
  const auto source_b = [&](std::int64_t from, std::int64_t extent) {
    const ElementB* data = b.data + (Operands::contiguous_b == Contiguous::depth ? from : from * b.stride);
    return cuda::MatrixSource<ElementB, Operands::contiguous_b>{data, col0, c.cols, extent, b.stride};
  };
  typename Product::Accumulator acc;
  acc.fill(0.0f);
  Product::accumulate(acc, source_a(0, first), source_b(0, first), first, kSharedOffset);
  Product::accumulate(acc, source_a(first, depth - first), source_b(first, depth - first), depth - first, kSharedOffset);

  int rows[Product::kRowSlots], last[Product::kRowSlots];
  float sums[Product::kRowSlots];
  bool in_order = true;
  acc.for_each_row([&](int slot, int row) {
    rows[slot] = row;
    last[slot] = -1;
    sums[slot] = 0.0f;
  });
  acc.for_each([&](int slot, int row, int col, float& value) {
    in_order = in_order && rows[slot] == row && col > last[slot];
    last[slot] = col;
    if (row0 + row < c.rows && col0 + col < c.cols) {
      sums[slot] += value;
      value += 1.0f;  // seen by for_each_run
    }
  });
  acc.for_each_run([&](int, int row, int col, const cuda::simt::Vec<float, Product::kRun>& run) {
    NORMA_UNROLL
    for (int e = 0; e < Product::kRun; ++e) {
      if (row0 + row < c.rows && col0 + col + e < c.cols) c(row0 + row, col0 + col + e) = run[e] - 1.0f;
    }
  });
  NORMA_UNROLL
  for (int slot = 0; slot < Product::kRowSlots; ++slot) {
    for (int mask = 1; mask < Product::kRowLanes; mask *= 2) sums[slot] += cuda::simt::warp_shuffle_xor(sums[slot], mask);
    const int warp = cuda::simt::warp_index() % kPolicy.warps_across;
    if (cuda::simt::lane_index() % Product::kRowLanes == 0 && row0 + rows[slot] < c.rows) {
      row_sum[((row0 + rows[slot]) * kPolicy.warps_across + warp) * cuda::simt::blocks_y() + cuda::simt::block_y()] = sums[slot];
    }
  }
  if (!in_order) *order = 1;
}

/// C = A B^T over the whole depth. `first` depths in the first call.
template <class Tuning, class Operands, class Draw>
void check_tile_product(Draw draw, std::int64_t m, std::int64_t n, std::int64_t depth, std::int64_t first = 0, std::int64_t extra_stride = 0) {
  using Product = ProductOf<Tuning, Operands>;
  using A = typename Operands::ElementA;
  using B = typename Operands::ElementB;
  constexpr TilePolicy kPolicy = Tuning::policy;
  CAPTURE(static_cast<int>(kPolicy.arithmetic));
  CAPTURE(m);
  CAPTURE(n);
  CAPTURE(depth);
  CAPTURE(first);
  const Operand<A, Operands::contiguous_a> a(draw, m, depth, 11, extra_stride);
  const Operand<B, Operands::contiguous_b> b(draw, n, depth, 12, 2 * extra_stride);
  const DeviceArray<A> da(a.values);
  const DeviceArray<B> db(b.values);
  const std::int64_t blocks_x = cuda::detail::ceil_div(m, kPolicy.rows), blocks_y = cuda::detail::ceil_div(n, kPolicy.cols);
  DeviceArray<float> dc(m * n), row_sum(m * kPolicy.warps_across * blocks_y);
  DeviceArray<int> order(std::vector<int>{0});
  const Status launched = cuda::detail::launch(
      "test", {}, {.blocks_x = blocks_x, .blocks_y = blocks_y, .threads = Product::kThreads, .shared_bytes = kSharedOffset + Product::kSharedBytes},
      tile_kernel<Tuning, Operands>, MatrixView<const A>(da.data(), m, depth, a.stride), MatrixView<const B>(db.data(), n, depth, b.stride),
      dc.matrix(m, n), first, depth, row_sum.data(), order.data());
  REQUIRE_MESSAGE(launched.ok(), launched.message());
  CHECK(order.read()[0] == 0);
  const std::vector<float> got = dc.read(), sums = row_sum.read();
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < m; ++i) {
    double row_want = 0.0, row_size = 0.0;
    for (std::int64_t j = 0; j < n; ++j) {
      double want = 0.0, size = 0.0;
      for (std::int64_t k = 0; k < depth; ++k) {
        want += a(i, k) * b(j, k);
        size += std::fabs(a(i, k) * b(j, k));
      }
      const double value = static_cast<double>(got[static_cast<std::size_t>(i * n + j)]);
      // The kernel adds and takes away 1, two roundings; whole numbers are exact throughout.
      const double bound = std::is_same_v<Draw, SmallIntegers> ? 0.0 : sum_error<A, B>(kPolicy.arithmetic, depth + 2, size + 1.0);
      if (!(std::fabs(value - want) <= bound)) {
        if (++wrong <= 3) MESSAGE("(" << i << ", " << j << "): " << value << ", expected " << want << " within " << bound);
      }
      row_want += want;
      row_size += bound + std::fabs(want);
    }
    double row_got = 0.0;
    const std::int64_t parts = kPolicy.warps_across * blocks_y;
    for (std::int64_t p = 0; p < parts; ++p) row_got += static_cast<double>(sums[static_cast<std::size_t>(i * parts + p)]);
    // Whole numbers: exact. Others: the entries' bounds dominate; row_size holds them, and a float sum of n terms rounds by n 2^-24 of the
    // magnitudes.
    const double bound = std::is_same_v<Draw, SmallIntegers> ? 0.0 : row_size * (1.0 + static_cast<double>(n) * 0x1p-24);
    CHECK(std::fabs(row_got - row_want) <= bound);
  }
  CHECK(wrong == 0);
}

template <class Tuning, class Operands>
void check_tile_sizes() {
  constexpr TilePolicy kPolicy = Tuning::policy;
  for (const std::int64_t extent : {1, 31, 32, 33}) check_tile_product<Tuning, Operands>(SmallIntegers{}, extent, 34 - extent, 2 * extent);
  check_tile_product<Tuning, Operands>(SmallIntegers{}, kPolicy.rows, kPolicy.cols, kPolicy.depth);
  check_tile_product<Tuning, Operands>(SmallIntegers{}, kPolicy.rows + 1, kPolicy.cols - 1, 3 * kPolicy.depth + 1, kPolicy.depth, 16);
  check_tile_product<Tuning, Operands>(Normals{}, kPolicy.rows - 1, kPolicy.cols + 1, (kPolicy.stages + 2) * kPolicy.depth + 5, 2 * kPolicy.depth);
}

TEST_CASE("tile product: float") {
  if (!has_device()) return;
  check_tile_sizes<Tile<32, 64, 8, 2, 2, 2, Arithmetic::fp32>, Same<float>>();
  check_tile_sizes<Tile<64, 32, 16, 2, 1, 3, Arithmetic::fp32>, Same<float, Contiguous::row>>();
  check_tile_sizes<Tile<32, 32, 16, 1, 1, 4, Arithmetic::fp32>, TileOperands<float, float, Contiguous::depth, Contiguous::row>>();
  check_tile_sizes<Tile<32, 32, 16, 2, 1, 3, Arithmetic::fp32>, TileOperands<float, float, Contiguous::row, Contiguous::depth>>();
}
TEST_CASE("tile product: tf32") {
  if (!has_device()) return;
  check_tile_sizes<Tile<32, 64, 16, 2, 2, 2, Arithmetic::tf32>, Same<float>>();
  check_tile_sizes<Tile<32, 32, 32, 1, 2, 3, Arithmetic::tf32>, Same<float, Contiguous::row>>();
  check_tile_sizes<Tile<64, 16, 16, 2, 1, 4, Arithmetic::tf32>, TileOperands<float, float, Contiguous::depth, Contiguous::row>>();
  check_tile_sizes<Tile<16, 64, 32, 1, 2, 3, Arithmetic::tf32>, TileOperands<float, float, Contiguous::row, Contiguous::depth>>();
}
TEST_CASE("tile product: tf32x3") {
  if (!has_device()) return;
  check_tile_sizes<Tile<64, 32, 16, 2, 2, 3, Arithmetic::tf32x3>, Same<float>>();
  check_tile_sizes<Tile<32, 32, 16, 1, 1, 3, Arithmetic::tf32x3>, Same<float, Contiguous::row>>();
  check_tile_sizes<Tile<32, 32, 48, 2, 1, 2, Arithmetic::tf32x3>, TileOperands<float, float, Contiguous::depth, Contiguous::row>>();
}
TEST_CASE("tile product: 16 bits in memory") {
  if (!has_device()) return;
  check_tile_sizes<Tile<64, 32, 32, 2, 1, 3, Arithmetic::bf16>, Same<BFloat16>>();
  check_tile_sizes<Tile<32, 64, 64, 1, 2, 2, Arithmetic::bf16>, Same<BFloat16, Contiguous::row>>();
  check_tile_sizes<Tile<32, 32, 32, 2, 1, 3, Arithmetic::f16>, TileOperands<Half, Half, Contiguous::depth, Contiguous::row>>();
  check_tile_sizes<Tile<32, 48, 96, 1, 1, 2, Arithmetic::f16>, TileOperands<Half, Half, Contiguous::row, Contiguous::depth>>();
  check_tile_sizes<Tile<32, 64, 16, 1, 2, 3, Arithmetic::fp32>, TileOperands<BFloat16, Half, Contiguous::depth, Contiguous::row>>();
}
TEST_CASE("tile product: rounded on the way, mixtures") {
  if (!has_device()) return;
  check_tile_sizes<Tile<32, 32, 32, 2, 1, 3, Arithmetic::bf16>, Same<float>>();
  check_tile_sizes<Tile<32, 32, 32, 1, 1, 3, Arithmetic::f16>, Same<float, Contiguous::row>>();
  check_tile_sizes<Tile<32, 32, 64, 1, 2, 2, Arithmetic::bf16>, TileOperands<float, BFloat16, Contiguous::depth, Contiguous::depth>>();
  check_tile_sizes<Tile<64, 32, 32, 2, 1, 2, Arithmetic::f16>, TileOperands<Half, float, Contiguous::row, Contiguous::depth>>();
}
TEST_CASE("tile product: the ready-made policies") {
  if (!has_device()) return;
  check_tile_product<LargeFp32, Same<float>>(SmallIntegers{}, 150, 130, 41);
  check_tile_product<LargeTf32, Same<float>>(SmallIntegers{}, 150, 130, 41);
  check_tile_product<LargeTf32x3, Same<float>>(Normals{}, 150, 130, 41);
  check_tile_product<LargeBf16, Same<BFloat16>>(SmallIntegers{}, 150, 130, 77);
  check_tile_product<LargeF16, Same<Half, Contiguous::row>>(SmallIntegers{}, 150, 130, 77);
  check_tile_product<LargeFp32, Same<float, Contiguous::row>>(SmallIntegers{}, 127, 129, 33);
  check_tile_product<LargeTf32x3, Same<float, Contiguous::row>>(SmallIntegers{}, 127, 129, 33);
  check_tile_product<SmallFp32, Same<float>>(SmallIntegers{}, 65, 63, 70);
  check_tile_product<SmallTf32, Same<float>>(SmallIntegers{}, 65, 63, 70);
  check_tile_product<SmallTf32x3, Same<float>>(Normals{}, 65, 63, 70);
  check_tile_product<SmallBf16, Same<BFloat16>>(Normals{}, 65, 63, 140);
  check_tile_product<SmallF16, Same<Half>>(Normals{}, 65, 63, 140);
}

/// Rows picked from a matrix by an index, -1 for zeros: a source of the caller's own, with nothing but chunk(row, k).
struct PickedRows {
  const float* data;
  const int* index;
  std::int64_t depth;
  NORMA_DEVICE const float* chunk(int row, std::int64_t k) const {
    const int r = row < 32 ? index[row] : -1;
    return r < 0 || k >= depth ? nullptr : data + r * depth + k;
  }
};
template <class Tuning>
NORMA_LAUNCH_BOUNDS(Tuning::policy.threads())
NORMA_KERNEL picked_rows_kernel(PickedRows a, const float* b, float* c, std::int64_t depth) {
  using Product = cuda::TileProduct<Tuning::policy, float>;
  typename Product::Accumulator acc;
  acc.fill(0.5f);
  Product::accumulate(acc, a, cuda::MatrixSource<float>{b, 0, 32, depth, depth}, depth, 0);
  acc.for_each([&](int, int row, int col, float& value) { c[row * 32 + col] = value; });
}
TEST_CASE("tile product: a source of the caller's own, NaN and infinity stay in their row") {
  if (!has_device()) return;
  using Tuning = Tile<32, 32, 16, 1, 1, 2, Arithmetic::tf32x3>;
  constexpr std::int64_t kDepth = 20;
  Operand<float, Contiguous::depth> a(SmallIntegers{}, 40, kDepth, 3), b(SmallIntegers{}, 32, kDepth, 4);
  std::vector<int> index(32);
  for (int i = 0; i < 32; ++i) index[static_cast<std::size_t>(i)] = i % 5 == 4 ? -1 : (i * 7 + 3) % 40;
  a.values[a.index(index[7], 2)] = NAN;
  a.values[a.index(index[8], 3)] = INFINITY;
  const DeviceArray<float> da(a.values), db(b.values);
  const DeviceArray<int> di(index);
  DeviceArray<float> dc(32 * 32);
  using Product = cuda::TileProduct<Tuning::policy, float>;
  const Status launched = cuda::detail::launch("test", {}, {.threads = Product::kThreads, .shared_bytes = Product::kSharedBytes},
                                               picked_rows_kernel<Tuning>, PickedRows{da.data(), di.data(), kDepth}, db.data(), dc.data(), kDepth);
  REQUIRE_MESSAGE(launched.ok(), launched.message());
  const std::vector<float> got = dc.read();
  for (int i = 0; i < 32; ++i) {
    for (int j = 0; j < 32; ++j) {
      double want = 0.5;
      for (std::int64_t k = 0; k < kDepth; ++k)
        want += index[static_cast<std::size_t>(i)] < 0 ? 0.0 : a(index[static_cast<std::size_t>(i)], k) * b(j, k);
      const float value = got[static_cast<std::size_t>(i * 32 + j)];
      if (i == 7 || i == 8) {
        CHECK_FALSE(std::isfinite(value));
      } else {
        CHECK(static_cast<double>(value) == want);
      }
    }
  }
}

}  // namespace norma::test
