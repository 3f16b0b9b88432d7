// The matrix product against double: layouts, edges, strides, batches, epilogue, parts along the depth, and what is refused.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <norma/cuda/matrix_product.cuh>

#include "device/operands.hpp"
#include "support/device.hpp"

namespace norma::test {

using cuda::Arithmetic;
using cuda::BFloat16;
using cuda::Contiguous;
using cuda::Half;
using cuda::MatrixProductSettings;

template <class T, Contiguous kContiguous>
MatrixView<const T> view_of(const DeviceArray<T>& data, const Operand<T, kContiguous>& operand) {
  if (kContiguous == Contiguous::depth) return {data.data(), operand.rows, operand.depth, operand.stride};
  return {data.data(), operand.depth, operand.rows, operand.stride};
}

/// alpha, bias and activation as asked, C with `c_padding` unused columns. A workspace of exactly what is needed.
template <class T, Arithmetic kArithmetic, Contiguous kA, Contiguous kB, class Draw>
void check_matrix_product(Draw draw, std::int64_t m, std::int64_t n, std::int64_t depth, float alpha = 1.0f, bool with_bias = false,
                          Activation activation = Activation::none, std::int64_t c_padding = 0) {
  CAPTURE(static_cast<int>(kArithmetic));
  CAPTURE(static_cast<int>(kA));
  CAPTURE(static_cast<int>(kB));
  CAPTURE(m);
  CAPTURE(n);
  CAPTURE(depth);
  const Operand<T, kA> a(draw, m, depth, 21);
  const Operand<T, kB> b(draw, n, depth, 22, 16);
  const DeviceArray<T> da(a.values), db(b.values);
  std::vector<float> bias(static_cast<std::size_t>(n));
  Random random(23);
  for (float& x : bias) x = static_cast<float>(random.below(9)) - 4.0f;
  const DeviceArray<float> dbias(bias);
  DeviceArray<float> dc(m * (n + c_padding));
  DeviceArray<std::byte> workspace(static_cast<std::int64_t>(cuda::matrix_product_workspace_bytes(m, n, depth)));
  const MatrixProductSettings settings{.alpha = alpha, .bias = with_bias ? dbias.data() : nullptr, .activation = activation};
  const Status done = cuda::matrix_product<T, kArithmetic, kA, kB>(
      {}, view_of(da, a), view_of(db, b), MatrixView<float>(dc.data(), m, n, n + c_padding), settings, {workspace.data(), workspace.bytes()});
  REQUIRE_MESSAGE(done.ok(), done.message());
  const std::vector<float> got = dc.read();
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      double want = 0.0, size = 0.0;
      for (std::int64_t k = 0; k < depth; ++k) {
        want += a(i, k) * b(j, k);
        size += std::fabs(a(i, k) * b(j, k));
      }
      want = static_cast<double>(alpha) * want + (with_bias ? static_cast<double>(bias[static_cast<std::size_t>(j)]) : 0.0);
      if (activation == Activation::relu) want = want < 0.0 ? 0.0 : want;
      // Parts add at most 64 roundings, alpha and bias one each.
      const double bound = std::is_same_v<Draw, SmallIntegers>
                               ? 0.0
                               : std::fabs(static_cast<double>(alpha)) * sum_error<T, T>(kArithmetic, depth + 66, size) + 8 * 0x1p-24;
      const double value = static_cast<double>(got[static_cast<std::size_t>(i * (n + c_padding) + j)]);
      if (!(std::fabs(value - want) <= bound) && ++wrong <= 3)
        MESSAGE("(" << i << ", " << j << "): " << value << ", expected " << want << " within " << bound);
    }
    for (std::int64_t j = n; j < n + c_padding; ++j)
      wrong += std::isnan(got[static_cast<std::size_t>(i * (n + c_padding) + j)]) ? 0 : 1;  // untouched
  }
  CHECK(wrong == 0);
}

template <class T, Arithmetic kArithmetic, Contiguous kA, Contiguous kB>
void check_layout() {
  for (const std::int64_t extent : {1, 31, 32, 33})
    check_matrix_product<T, kArithmetic, kA, kB>(SmallIntegers{}, extent, 34 - extent, 3 * extent - 2);
  check_matrix_product<T, kArithmetic, kA, kB>(SmallIntegers{}, 64, 65, 40, 2.0f, true, Activation::relu, 3);
  check_matrix_product<T, kArithmetic, kA, kB>(Normals{}, 63, 130, 70, -0.5f, true, Activation::none, 4);
}

TEST_CASE("matrix product: float") {
  if (!has_device()) return;
  check_layout<float, Arithmetic::fp32, Contiguous::depth, Contiguous::depth>();
  check_layout<float, Arithmetic::fp32, Contiguous::row, Contiguous::row>();
  check_layout<float, Arithmetic::tf32, Contiguous::depth, Contiguous::row>();
  check_layout<float, Arithmetic::tf32x3, Contiguous::depth, Contiguous::depth>();
  check_layout<float, Arithmetic::tf32x3, Contiguous::depth, Contiguous::row>();
}
TEST_CASE("matrix product: 16 bits") {
  if (!has_device()) return;
  check_layout<BFloat16, Arithmetic::bf16, Contiguous::depth, Contiguous::depth>();
  check_layout<BFloat16, Arithmetic::bf16, Contiguous::row, Contiguous::row>();
  check_layout<Half, Arithmetic::f16, Contiguous::depth, Contiguous::row>();
}

TEST_CASE("matrix product: a long depth is cut in parts, which are added in order") {
  if (!has_device()) return;
  REQUIRE(cuda::ProductPlan::make(33, 40, 5000).parts > 1);
  check_matrix_product<float, Arithmetic::tf32x3, Contiguous::row, Contiguous::row>(Normals{}, 33, 42, 2101, 1.0f, true, Activation::relu, 2);
  check_matrix_product<BFloat16, Arithmetic::bf16, Contiguous::row, Contiguous::row>(SmallIntegers{}, 16, 24, 3000, 1.0f, true);
  check_matrix_product<float, Arithmetic::fp32, Contiguous::depth, Contiguous::depth>(SmallIntegers{}, 5, 3, 1025);
}

TEST_CASE("matrix product: plans cover the depth and fill a device") {
  for (const std::int64_t m : {1, 64, 100, 784, 3136, 100000}) {
    for (const std::int64_t n : {1, 64, 550, 16400}) {
      for (const std::int64_t depth : {0, 1, 63, 64, 65, 511, 512, 1024, 100000, 1000000}) {
        const auto plan = cuda::ProductPlan::make(m, n, depth);
        CAPTURE(m);
        CAPTURE(n);
        CAPTURE(depth);
        CHECK(plan.part_depth % 64 == 0);
        CHECK(plan.parts * plan.part_depth >= depth);
        CHECK((plan.parts == 1 || (plan.parts - 1) * plan.part_depth < depth));
        CHECK(plan.parts <= 64);
      }
    }
  }
  CHECK(cuda::ProductPlan::make(3136, 16400, 1024).large_tiles);
  CHECK(cuda::ProductPlan::make(3136, 16400, 1024).parts == 1);
  CHECK_FALSE(cuda::ProductPlan::make(64, 64, 1024).large_tiles);
}

TEST_CASE("matrix product: large tiles give the bits of small ones") {
  if (!has_device()) return;
  constexpr std::int64_t kM = 130, kN = 140, kDepth = 50;
  const Operand<float, Contiguous::depth> a(Normals{}, kM, kDepth, 5), b(Normals{}, kN, kDepth, 6);
  const DeviceArray<float> da(a.values), db(b.values);
  DeviceArray<float> small(kM * kN), large(kM * kN);
  const auto run = [&]<bool kLarge>(DeviceArray<float>& c, std::bool_constant<kLarge>) {
    const cuda::MatrixOperand<float, Contiguous::depth> operand_a{da.data(), kM, a.stride, 0}, operand_b{db.data(), kN, b.stride, 0};
    const cuda::StoreEpilogue<float> epilogue{c.data(), kN, 0, kN, nullptr, nullptr, 1.0f, false, true};
    return cuda::detail::launch_product<cuda::ProductTuning<Arithmetic::tf32x3, kLarge>>("test", {}, operand_a, operand_b, epilogue,
                                                                                         {kM, kN, kDepth, 1}, {kLarge, 1, 64}, nullptr);
  };
  REQUIRE(run(small, std::false_type{}).ok());
  REQUIRE(run(large, std::true_type{}).ok());
  CHECK(small.read() == large.read());
}

TEST_CASE("matrix product: batches, a shared operand") {
  if (!has_device()) return;
  constexpr std::int64_t kBatch = 3, kM = 20, kN = 9, kDepth = 24;
  const Operand<float, Contiguous::depth> a(SmallIntegers{}, kBatch * 30, kDepth, 7), b(SmallIntegers{}, kN, kDepth, 8);
  const DeviceArray<float> da(a.values), db(b.values);
  DeviceArray<float> dc(kBatch * (kM * kN + 5));
  const MatrixProductSettings settings{.batch = kBatch, .batch_stride_a = 30 * a.stride, .batch_stride_b = 0, .batch_stride_c = kM * kN + 5};
  const Status done = cuda::matrix_product<float, Arithmetic::fp32>({}, MatrixView<const float>(da.data(), kM, kDepth, a.stride),
                                                                    MatrixView<const float>(db.data(), kN, kDepth, b.stride),
                                                                    MatrixView<float>(dc.data(), kM, kN), settings);
  REQUIRE_MESSAGE(done.ok(), done.message());
  const std::vector<float> got = dc.read();
  for (std::int64_t p = 0; p < kBatch; ++p) {
    for (std::int64_t i = 0; i < kM; ++i) {
      for (std::int64_t j = 0; j < kN; ++j) {
        double want = 0.0;
        for (std::int64_t k = 0; k < kDepth; ++k) want += a(30 * p + i, k) * b(j, k);
        CHECK(static_cast<double>(got[static_cast<std::size_t>(p * (kM * kN + 5) + i * kN + j)]) == want);
      }
    }
  }
}

TEST_CASE("matrix product: empty results, an empty depth leaves the bias, NaN and infinity go through") {
  if (!has_device()) return;
  const DeviceArray<float> a(std::vector<float>{1, 2, 3, NAN, 1, 1, INFINITY, 0}), b(std::vector<float>{1, 1, 1, 1}), bias(std::vector<float>{-2});
  DeviceArray<float> c(2);
  const auto product = [&](std::int64_t m, std::int64_t depth, Activation activation) {
    return cuda::matrix_product<float, Arithmetic::fp32>({}, MatrixView<const float>(a.data(), m, depth, 4),
                                                         MatrixView<const float>(b.data(), 1, depth, 4), c.matrix(m, 1),
                                                         {.bias = bias.data(), .activation = activation});
  };
  REQUIRE(product(0, 4, Activation::none).ok());
  CHECK(std::isnan(c.read()[0]));  // untouched
  REQUIRE(product(2, 0, Activation::none).ok());
  CHECK(c.read() == std::vector<float>{-2, -2});
  REQUIRE(product(2, 0, Activation::relu).ok());
  CHECK(c.read() == std::vector<float>{0, 0});
  REQUIRE(product(2, 4, Activation::relu).ok());
  CHECK(std::isnan(c.read()[0]));
  CHECK(c.read()[1] == INFINITY);
}

TEST_CASE("matrix product: what is refused") {
  if (!has_device()) return;
  DeviceArray<float> a(64 * 8), c(64);
  DeviceArray<std::byte> workspace(1 << 20);
  const float* const p = a.data();
  const auto says = [](const Status& status, Errc code, const std::string& part) {
    INFO(status.message());
    CHECK(status.code() == code);
    CHECK(status.message().find("cuda::matrix_product: ") == 0);
    CHECK(status.message().find(part) != std::string::npos);
  };
  const auto product = [&](MatrixView<const float> x, MatrixView<const float> y, MatrixView<float> z, const MatrixProductSettings& settings = {}) {
    return cuda::matrix_product<float, Arithmetic::tf32>({}, x, y, z, settings);
  };
  using In = MatrixView<const float>;
  says(product(In(p, 4, 8), In(p, 4, 12), c.matrix(4, 4)), Errc::shape_mismatch, "one depth, found 8 and 12");
  says(product(In(p, 4, 8), In(p, 5, 8), c.matrix(4, 4)), Errc::shape_mismatch, "a result of 4 x 5, found 4 x 4");
  says(product(In(nullptr, 4, 8), In(p, 4, 8), c.matrix(4, 4)), Errc::invalid_argument, "a is null");
  says(product(In(p, 4, 8), In(nullptr, 4, 8), c.matrix(4, 4)), Errc::invalid_argument, "b is null");
  says(product(In(p, 4, 8), In(p, 4, 8), MatrixView<float>(nullptr, 4, 4)), Errc::invalid_argument, "c is null");
  says(product(In(p + 1, 4, 8), In(p, 4, 8), c.matrix(4, 4)), Errc::invalid_argument, "a is not aligned");
  says(product(In(p, 4, 8, 10), In(p, 4, 8), c.matrix(4, 4)), Errc::invalid_argument, "multiples of 4");
  says(product(In(p, 4, 7), In(p, 4, 7, 8), c.matrix(4, 4)), Errc::invalid_argument, "padded");
  says(product(In(p, 4, 8), In(p, 4, 8), MatrixView<float>(c.data(), 4, 4, 3)), Errc::invalid_argument, "keep rows of 4");
  says(product(In(p, 4, 8), In(p, 4, 8), c.matrix(4, 4), {.batch = -1}), Errc::invalid_argument, "batch");
  says(product(In(p, 4, 8), In(p, 4, 8), c.matrix(4, 4), {.batch = 2}), Errc::invalid_argument, "products apart");
  says(product(In(p, 4, 8), In(p, 4, 8), c.matrix(4, 4), {.activation = Activation::gelu}), Errc::invalid_argument, "none or relu");
  says(product(In(p, std::int64_t{1} << 31, 8), In(p, 4, 8), c.matrix(std::int64_t{1} << 31, 4)), Errc::invalid_argument, "2^31");
  says(product(In(p, 4, 8, std::int64_t{1} << 30), In(p, 4, 8), c.matrix(4, 4)), Errc::invalid_argument, "64 GiB");
  says(product(In(p, 2, 2048), In(p, 2, 2048), c.matrix(2, 2)), Errc::out_of_memory, "workspace too small");
  says(cuda::matrix_product<float, Arithmetic::tf32>({}, In(p, 2, 2048), In(p, 2, 2048), c.matrix(2, 2), {}, {workspace.data() + 4, 1 << 19}),
       Errc::invalid_argument, "not aligned");
}

}  // namespace norma::test
