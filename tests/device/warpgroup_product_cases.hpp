// The product of sm_90a against double.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include <norma/core/random.hpp>
#include <norma/cuda/warpgroup_product.cuh>
#include <norma/io/dtype.hpp>
#include <support/device.hpp>

namespace norma::test {

template <class Product>
NORMA_LAUNCH_BOUNDS(Product::kThreads)
NORMA_KERNEL warpgroup_product_kernel(MatrixView<const typename Product::Element> a, MatrixView<const typename Product::Element> b, MatrixView<float> c) {
  using Element = typename Product::Element;
  const std::int64_t row0 = cuda::simt::block_x() * Product::policy.rows, col0 = cuda::simt::block_y() * Product::policy.cols;
  typename Product::Accumulator acc;
  acc.fill(1.0f);
  const cuda::MatrixSource<Element> source_a{a.data, row0, a.rows, a.cols, a.stride}, source_b{b.data, col0, b.rows, b.cols, b.stride};
  Product::accumulate(acc, source_a, source_b, a.cols, 0);
  Product::accumulate(acc, source_a, source_b, a.cols, 0);
  int rows[Product::kRowSlots];
  acc.for_each_row([&](int slot, int row) { rows[slot] = row; });
  int last = -1;
  acc.for_each([&](int slot, int row, int col, float& value) {
    const bool in_order = rows[slot] == row && (col > last || slot > 0);
    last = slot == 0 ? col : last;
    if (in_order && row0 + row < c.rows && col0 + col < c.cols) c(row0 + row, col0 + col) = value;
  });
}

template <class Element>
double element_value(Element x) {
  if constexpr (std::is_same_v<Element, float>) return static_cast<double>(x);
  if constexpr (std::is_same_v<Element, cuda::BFloat16>) return static_cast<double>(io::float_from_bfloat16(x.bits));
  if constexpr (std::is_same_v<Element, cuda::Half>) return static_cast<double>(io::float_from_half(x.bits));
}

/// c = 1 + 2 A B^T. The operands have 8 significant bits, so every element type holds them and products are exact: what is left is the rounding of
/// 2 depth float sums, each at most 2^-24 (2^-23 where the unit truncates) of the sum of magnitudes.
template <class Product>
void check_warpgroup_product(std::int64_t m, std::int64_t n, std::int64_t depth) {
  using Element = typename Product::Element;
  CAPTURE(m);
  CAPTURE(n);
  CAPTURE(depth);
  Random random(17);
  const std::int64_t stride = (depth + 15) / 16 * 16;
  const auto operand = [&](std::int64_t rows) {
    std::vector<Element> v(static_cast<std::size_t>(rows * stride), Element{});
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t k = 0; k < depth; ++k) {
        const float x = (static_cast<float>(random.below(255)) - 127.0f) / 64.0f;
        Element& e = v[static_cast<std::size_t>(r * stride + k)];
        if constexpr (std::is_same_v<Element, float>) e = x;
        if constexpr (std::is_same_v<Element, cuda::BFloat16>) e.bits = io::bfloat16_from_float(x);
        if constexpr (std::is_same_v<Element, cuda::Half>) e.bits = io::half_from_float(x);
      }
    }
    return v;
  };
  const std::vector<Element> a = operand(m), b = operand(n);
  const DeviceArray<Element> da(a), db(b);
  DeviceArray<float> dc(m * n);
  const Status launched = cuda::detail::launch(
      "test", {}, {.blocks_x = cuda::detail::ceil_div(m, Product::policy.rows), .blocks_y = cuda::detail::ceil_div(n, Product::policy.cols),
                   .threads = Product::kThreads, .shared_bytes = Product::kSharedBytes},
      warpgroup_product_kernel<Product>, MatrixView<const Element>(da.data(), m, depth, stride), MatrixView<const Element>(db.data(), n, depth, stride),
      dc.matrix(m, n));
  REQUIRE_MESSAGE(launched.ok(), launched.message());
  const std::vector<float> got = dc.read();
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      double want = 1.0, size = 1.0;
      for (std::int64_t k = 0; k < depth; ++k) {
        const double product = 2.0 * element_value(a[static_cast<std::size_t>(i * stride + k)]) * element_value(b[static_cast<std::size_t>(j * stride + k)]);
        want += product;
        size += std::abs(product);
      }
      const double bound = std::ldexp(static_cast<double>(2 * depth + 1) * size, -23);
      if (!(std::abs(static_cast<double>(got[static_cast<std::size_t>(i * n + j)]) - want) <= bound)) ++wrong;
    }
  }
  CHECK(wrong == 0);
}

/// Warpgroup instructions need the code of sm_90a on a device that runs it.
inline bool has_warpgroups() {
  if (!has_device()) return false;
  const auto info = cuda::detail::device_info("test");
  if (info.ok() && (info->arch == 90 || info->name == "emulation")) return true;
  MESSAGE("skipped: warpgroup products need a device of compute capability 9.0");
  return false;
}

TEST_CASE("warpgroup product") {
  if (!has_warpgroups()) return;
  using cuda::WarpgroupProduct, cuda::TilePolicy, cuda::Arithmetic;
  using Bf16 = WarpgroupProduct<TilePolicy{64, 64, 64, 4, 1, 3, Arithmetic::bf16}, cuda::BFloat16>;
  for (const std::int64_t depth : {1, 8, 63, 64, 65, 200, 333}) check_warpgroup_product<Bf16>(64, 64, depth);
  for (const std::int64_t m : {1, 31, 65}) check_warpgroup_product<Bf16>(m, 70, 100);
  check_warpgroup_product<WarpgroupProduct<TilePolicy{64, 128, 64, 4, 2, 4, Arithmetic::f16}, cuda::Half>>(70, 130, 150);
  check_warpgroup_product<WarpgroupProduct<TilePolicy{64, 128, 32, 4, 1, 4, Arithmetic::tf32}, float>>(70, 130, 150);
}

TEST_CASE("warpgroup product: the policies of large problems") {
  if (!has_warpgroups()) return;
  const auto info = cuda::detail::device_info("test");
  REQUIRE(info.ok());
  if (info->shared_bytes_per_block < cuda::WarpgroupProduct<cuda::kWarpgroupBf16, cuda::BFloat16>::kSharedBytes) return;
  check_warpgroup_product<cuda::WarpgroupProduct<cuda::kWarpgroupBf16, cuda::BFloat16>>(130, 260, 300);
  check_warpgroup_product<cuda::WarpgroupProduct<cuda::kWarpgroupF16, cuda::Half>>(128, 256, 64);
  check_warpgroup_product<cuda::WarpgroupProduct<cuda::kWarpgroupTf32, float>>(128, 256, 96);
}

}  // namespace norma::test
