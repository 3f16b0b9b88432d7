/// \file
/// Inverse factors on the device: that W A W^T is the unit matrix, which matrices are refused and how (test G3). For the emulation and for a GPU.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <norma/cuda/covariance.cuh>

#include <device/covariance_reference.hpp>
#include <support/device.hpp>

namespace norma::test {

/// Factors of given matrices: a state of two images has 1 / (n - 1) = 1, so its products are the matrix. `values(p, r, c)` for c <= r.
template <class Values>
Fitted factors_of(std::int64_t positions, std::int64_t d, double regularisation, Values values, bool in_place = false) {
  const std::int64_t packed = packed_triangle(d);
  std::vector<float> products(static_cast<std::size_t>(positions * packed));
  for (std::int64_t p = 0; p < positions; ++p) {
    for (std::int64_t r = 0; r < d; ++r) {
      for (std::int64_t c = 0; c <= r; ++c)
        products[static_cast<std::size_t>(p * packed + packed_triangle(r) + c)] = static_cast<float>(values(p, r, c));
    }
  }
  DeviceState state(positions, d);
  state.products.write(products);
  state.mean.write(std::vector<double>(static_cast<std::size_t>(positions * d), 0.1));
  state.view.count = 2;
  DeviceModel model(positions, d);
  if (in_place) model.view.factor = state.view.products;
  Workspace workspace(cuda::gaussian_workspace_bytes(positions, d, 0));
  const TestStream stream;
  required(cuda::finish_gaussians(stream, state.view, regularisation, model.view, workspace.span()));
  stream.wait();
  for (const float m : model.mean.read()) REQUIRE(m == 0.1f);
  if (in_place) return {{}, state.products.read(), model.flags.read()};
  CHECK(same_bits(state.products.read(), products));
  return {{}, model.factor.read(), model.flags.read()};
}

TEST_CASE("fitted factors: W A W^T is the unit matrix") {
  if (!has_device()) return;
  for (const std::int64_t d : {1, 2, 7, 8, 9, 31, 32, 33, 64, 100, 130, 216, 217, 256, 257}) {
    for (const std::int64_t n : {2, 3, 65, 200}) {
      if (d > 33 && n == 3) continue;
      if (d > 100 && n != 65) continue;
      CAPTURE(d);
      CAPTURE(n);
      const auto x = gaussian_images(n, 2, d, 1.0, 21);
      const auto fitted = fit_on_device(x, 2, 0.01);
      for (std::int64_t p = 0; p < 2; ++p) {
        CAPTURE(p);
        REQUIRE(fitted.flags[static_cast<std::size_t>(p)] == cuda::kPositiveDefinite);
        const auto want = two_pass(x, 2, p);
        for (std::int64_t c = 0; c < d; ++c) {
          REQUIRE(std::abs(static_cast<double>(fitted.mean[static_cast<std::size_t>(p * d + c)]) - want.mean[static_cast<std::size_t>(c)]) <=
                  2.0 * kUnit * std::abs(want.mean[static_cast<std::size_t>(c)]));
        }
        // The covariance's own error, the rounded scale and its product, the rounded regularisation and its sum.
        check_inverse_factor(fitted.factor.data() + p * packed_triangle(d), regularised(want.covariance, 0.01), products_bound(n, 1) + 4.0 * kUnit);
      }
    }
  }
}

TEST_CASE("given matrices: the factor is the inverse's, in place too") {
  if (!has_device()) return;
  for (const std::int64_t d : {1, 9, 64, 100, 217, 300}) {
    CAPTURE(d);
    // An exponential kernel's matrix: condition number below 400.
    const auto value = [](std::int64_t p, std::int64_t r, std::int64_t c) {
      return (p == 0 ? 1.0 : 1024.0) * static_cast<double>(static_cast<float>(std::pow(0.9, static_cast<double>(r - c))));
    };
    const auto factors = factors_of(2, d, 0.0, value);
    const auto in_place = factors_of(2, d, 0.0, value, true);
    CHECK(same_bits(factors.factor, in_place.factor));
    CHECK(factors.flags == std::vector<int>(2, cuda::kPositiveDefinite));
    Matrix<double> a(d, d);
    for (std::int64_t r = 0; r < d; ++r) {
      for (std::int64_t c = 0; c < d; ++c) a(r, c) = value(0, std::max(r, c), std::min(r, c));
    }
    check_inverse_factor(factors.factor.data(), a, 0.0);
    // Scaling by 2^10 scales a factor by 2^-5 without a rounding.
    for (std::int64_t n = 0; n < packed_triangle(d); ++n) {
      REQUIRE(factors.factor[static_cast<std::size_t>(n)] == 32.0f * factors.factor[static_cast<std::size_t>(packed_triangle(d) + n)]);
    }
  }
}

TEST_CASE("a state's factors equal those of one fit, batch by batch") {
  if (!has_device()) return;
  for (const std::int64_t d : {10, 220}) {
    CAPTURE(d);
    const auto x = gaussian_images(50, 2, d, 1.0, 22);
    const auto fitted = fit_on_device(x, 2, 0.01);
    DeviceState state(2, d);
    state.observe(x, 2);
    DeviceModel model(2, d);
    Workspace workspace(cuda::gaussian_workspace_bytes(2, d, 0));
    const TestStream stream;
    required(cuda::finish_gaussians(stream, state.view, 0.01, model.view, workspace.span()));
    stream.wait();
    CHECK(same_bits(model.factor.read(), fitted.factor));
    CHECK(same_bits(model.mean.read(), fitted.mean));
  }
}

TEST_CASE("G3: fewer images than dimensions stay positive definite with 0.01 on the diagonal, and do not without") {
  if (!has_device()) return;
  for (const std::int64_t d : {100, 220}) {
    CAPTURE(d);
    const auto x = gaussian_images(10, 2, d, 3.0, 23);
    CHECK(fit_on_device(x, 2, 0.01).flags == std::vector<int>(2, cuda::kPositiveDefinite));
    const auto without = fit_on_device(x, 2, 0.0);
    // Nine independent images: pivots from row 9 on are rounding errors of either sign, far below 90 positive ones in a row.
    for (const int flag : without.flags) {
      CHECK(flag / 2 >= 9);
      CHECK(flag / 2 < 100);
      CHECK(flag % 2 == 0);
    }
    for (const float w : without.factor) REQUIRE(std::isnan(w));
    const Status status = cuda::check_flags(without.flags, 0.0);
    CHECK(status.code() == Errc::invalid_argument);
    CHECK(status.message().find("cuda::check_flags: covariance of position 0 not positive definite, expected a positive pivot in row " +
                                std::to_string(without.flags[0] / 2) + "; raise the regularisation, found 0.0") == 0);
  }
}

TEST_CASE("the first row without a positive finite pivot is named, other positions keep their factors") {
  if (!has_device()) return;
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();
  struct Fault {
    std::int64_t row, column;
    float value;
    bool finite;  // the pivot of `row`
  };
  for (const std::int64_t d : {1, 7, 64, 100, 217, 300}) {
    for (const std::int64_t row : {std::int64_t{0}, std::int64_t{7}, std::int64_t{63}, std::int64_t{64}, std::int64_t{130}, d - 1}) {
      if (row >= d) continue;
      std::vector<Fault> faults{
          {row, row, -1.0f, true}, {row, row, 0.0f, true}, {row, row, kNaN, false}, {row, row, kInfinity, false}, {row, row, -kInfinity, false}};
      if (row > 0)
        faults.insert(faults.end(),
                      {{row, row / 2, 9.0f, true}, {row, row / 2, kNaN, false}, {row, row / 2, kInfinity, false}});  // 4 - (9 / 2)^2 < 0
      for (const Fault& fault : faults) {
        if (d > 100 && fault.value != kInfinity && fault.value != 0.0f && fault.value != 9.0f) continue;
        CAPTURE(d);
        CAPTURE(row);
        CAPTURE(fault.column);
        CAPTURE(fault.value);
        const auto factors = factors_of(3, d, 0.0, [&](std::int64_t p, std::int64_t r, std::int64_t c) {
          if (p == 1 && r == fault.row && c == fault.column) return fault.value;
          return r == c ? 4.0f : 0.0f;
        });
        CHECK(factors.flags[0] == cuda::kPositiveDefinite);
        CHECK(factors.flags[2] == cuda::kPositiveDefinite);
        CHECK(factors.flags[1] == static_cast<int>(2 * row + (fault.finite ? 0 : 1)));
        for (std::int64_t p = 0; p < 3; ++p) {
          for (std::int64_t r = 0; r < d; ++r) {
            for (std::int64_t c = 0; c <= r; ++c) {
              const float w = factors.factor[static_cast<std::size_t>(p * packed_triangle(d) + packed_triangle(r) + c)];
              const bool right = p == 1 ? std::isnan(w) : w == (r == c ? 0.5f : 0.0f);
              if (!right) REQUIRE(right);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("features that are not finite spoil their position alone") {
  if (!has_device()) return;
  for (const std::int64_t d : {9, 217}) {
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
      CAPTURE(d);
      CAPTURE(bad);
      auto x = gaussian_images(20, 3, d, 1.0, 24);
      const auto clean = fit_on_device(x, 3, 0.01);
      x(3 * 11 + 1, 5) = bad;
      const auto fitted = fit_on_device(x, 3, 0.01);
      CHECK(fitted.flags == std::vector<int>{cuda::kPositiveDefinite, 11, cuda::kPositiveDefinite});
      const Status status = cuda::check_flags(fitted.flags, 0.01);
      CHECK(status.code() == Errc::not_finite);
      CHECK(status.message().find("cuda::check_flags: covariance of position 1 not finite in row 5") == 0);
      const std::int64_t packed = packed_triangle(d);
      for (std::int64_t n = 0; n < 3 * packed; ++n) {
        const float w = fitted.factor[static_cast<std::size_t>(n)];
        if (n / packed == 1) {
          if (!std::isnan(w)) REQUIRE(std::isnan(w));
        } else if (w != clean.factor[static_cast<std::size_t>(n)]) {
          REQUIRE(w == clean.factor[static_cast<std::size_t>(n)]);
        }
      }
    }
  }
}

TEST_CASE("an inverse beyond the range of float is refused although every pivot is 1") {
  if (!has_device()) return;
  // L has 1 on its diagonal and -t below it; W(r, c) = t^(r - c). All numbers of A and L are small whole ones.
  for (const auto& shape :
       {std::array<std::int64_t, 3>{30, 128, 19}, std::array<std::int64_t, 3>{100, 4, 64}, std::array<std::int64_t, 3>{217, 128, 19},
        std::array<std::int64_t, 3>{217, 4, 64}, std::array<std::int64_t, 3>{217, 2, 128}}) {
    const std::int64_t d = shape[0], row = shape[2];
    const double t = static_cast<double>(shape[1]);
    CAPTURE(d);
    CAPTURE(t);
    const auto factors = factors_of(2, d, 0.0, [t](std::int64_t p, std::int64_t r, std::int64_t c) {
      if (p == 0) return r == c ? 1.0 : 0.0;
      return r == c ? (r == 0 ? 1.0 : 1.0 + t * t) : r == c + 1 ? -t : 0.0;
    });
    CHECK(factors.flags == std::vector<int>{cuda::kPositiveDefinite, static_cast<int>(2 * row + 1)});
    for (std::int64_t n = packed_triangle(d); n < 2 * packed_triangle(d); ++n) {
      const float w = factors.factor[static_cast<std::size_t>(n)];
      if (!std::isnan(w)) REQUIRE(std::isnan(w));
    }
  }
}

TEST_CASE("flags of success say nothing") {
  CHECK(cuda::check_flags({}, 0.01).ok());
  CHECK(cuda::check_flags(std::vector<int>(5, cuda::kPositiveDefinite), 0.01).ok());
  CHECK(cuda::check_flags(std::vector<int>{cuda::kPositiveDefinite, 4}, 0.25)
            .message()
            .find("position 1 not positive definite, expected a positive pivot in row 2") != std::string::npos);
}

}  // namespace norma::test
