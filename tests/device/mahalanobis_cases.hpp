/// \file
/// Mahalanobis distances on the device against sums in double, against a solve in double (test G2) and against the host. For the emulation and for a
/// GPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <norma/core/random.hpp>
#include <norma/cuda/mahalanobis.cuh>
#include <norma/linalg/cholesky.hpp>

#include <device/covariance_reference.hpp>
#include <support/device.hpp>

namespace norma::test {

struct HostGaussians {
  Matrix<float> mean, factor;
};

/// Factors with entries of both signs and a diagonal that is not small.
inline HostGaussians some_gaussians(std::int64_t positions, std::int64_t d, std::uint64_t seed) {
  Random random(seed);
  HostGaussians model{Matrix<float>(positions, d), Matrix<float>(positions, packed_triangle(d))};
  for (std::int64_t p = 0; p < positions; ++p) {
    for (std::int64_t r = 0; r < d; ++r) {
      model.mean(p, r) = static_cast<float>(3.0 * random.normal());
      for (std::int64_t c = 0; c <= r; ++c)
        model.factor(p, packed_triangle(r) + c) = static_cast<float>(r == c ? 1.0 + random.uniform() : 0.3 * random.normal());
    }
  }
  return model;
}

struct DeviceCopy {
  DeviceArray<float> mean, factor;
  GaussianModelView view;
  explicit DeviceCopy(const HostGaussians& model) : mean(values_of(model.mean)), factor(values_of(model.factor)) {
    view = {{mean.data(), model.mean.rows(), model.mean.cols()}, {factor.data(), model.factor.rows(), model.factor.cols()}};
  }
};

inline std::vector<float> distances(const GaussianModelView& model, const Matrix<float>& x, cuda::DistanceKind kind = cuda::DistanceKind::distance) {
  const DeviceArray<float> on_device(values_of(x));
  DeviceArray<float> out(x.rows());
  const TestStream stream;
  required(cuda::mahalanobis(stream, model, {on_device.data(), x.rows(), x.cols()}, out.data(), kind));
  stream.wait();
  return out.read();
}

/// Every squared distance. An element of W (x - mean) is one chain of at most d / 32 + 1 products and sums a lane, five more sums over the lanes, and
/// the rounding of x - mean: |error| <= (d / 32 + 8) u (|W| |x - mean|)_r. Squared and summed (three sums over eight rows, then one for every eight
/// rows): 2 (d / 32 + 8) + 1 + 3 + d / 8 + 1, at most d / 16 + d / 8 + 24, on sums of squares of |W| |x - mean|.
inline void check_squared(const HostGaussians& model, const Matrix<float>& x, const std::vector<float>& got) {
  const std::int64_t positions = model.mean.rows(), d = model.mean.cols();
  for (std::int64_t row = 0; row < x.rows(); ++row) {
    CAPTURE(row);
    const std::int64_t p = row % positions;
    double want = 0.0, size = 0.0;
    for (std::int64_t r = 0; r < d; ++r) {
      double sum = 0.0, sizes = 0.0;
      for (std::int64_t c = 0; c <= r; ++c) {
        const double term =
            static_cast<double>(model.factor(p, packed_triangle(r) + c)) * (static_cast<double>(x(row, c)) - static_cast<double>(model.mean(p, c)));
        sum += term;
        sizes += std::abs(term);
      }
      want += sum * sum;
      size += sizes * sizes;
    }
    const double bound = (static_cast<double>(d) * (1.0 / 16.0 + 1.0 / 8.0) + 24.0) * kUnit * size;
    REQUIRE(std::abs(static_cast<double>(got[static_cast<std::size_t>(row)]) - want) <= bound);
  }
}

TEST_CASE("squared distances equal sums in double") {
  if (!has_device()) return;
  for (const std::int64_t d : {1, 2, 7, 8, 9, 31, 32, 33, 64, 100, 130, 257}) {
    for (const std::int64_t n : {1, 2, 7, 8, 9, 17}) {
      if (d > 100 && n > 2 && n != 9) continue;
      CAPTURE(d);
      CAPTURE(n);
      const auto model = some_gaussians(3, d, 31);
      const DeviceCopy on_device(model);
      const auto x = gaussian_images(n, 3, d, 2.0, 32);
      const auto squared = distances(on_device.view, x, cuda::DistanceKind::squared);
      check_squared(model, x, squared);
      const auto plain = distances(on_device.view, x);
      for (std::size_t i = 0; i < plain.size(); ++i) {
        // One rounding, of a root that nvcc rounds correctly too.
        REQUIRE(std::abs(plain[i] - std::sqrt(squared[i])) <= static_cast<float>(kUnit) * plain[i]);
      }
    }
  }
}

struct OneWarp {
  NORMA_HD constexpr cuda::MahalanobisPolicy operator()(int) const { return {.warps = 1}; }
};

TEST_CASE("a distance does not depend on the images beside it, nor on the warps") {
  if (!has_device()) return;
  constexpr std::int64_t kDims = 43, kPositions = 2, kImages = 19;
  const auto model = some_gaussians(kPositions, kDims, 33);
  const DeviceCopy on_device(model);
  const auto x = gaussian_images(kImages, kPositions, kDims, 2.0, 34);
  const auto all = distances(on_device.view, x);
  for (std::int64_t image = 0; image < kImages; ++image) {
    const auto alone = distances(on_device.view, part_of(x, image * kPositions, kPositions));
    for (std::int64_t p = 0; p < kPositions; ++p)
      REQUIRE(alone[static_cast<std::size_t>(p)] == all[static_cast<std::size_t>(image * kPositions + p)]);
  }
  const DeviceArray<float> features(values_of(x));
  DeviceArray<float> out(x.rows());
  const TestStream stream;
  required(cuda::mahalanobis<OneWarp>(stream, on_device.view, {features.data(), x.rows(), kDims}, out.data()));
  stream.wait();
  CHECK(same_bits(out.read(), all));
}

TEST_CASE("rows with gaps") {
  if (!has_device()) return;
  const auto model = some_gaussians(2, 21, 35);
  const DeviceCopy on_device(model);
  const auto x = gaussian_images(3, 2, 21, 0.0, 36);
  std::vector<float> spread(static_cast<std::size_t>(x.rows() * 24), std::numeric_limits<float>::quiet_NaN());
  for (std::int64_t r = 0; r < x.rows(); ++r) std::ranges::copy(x.view().row(r), spread.begin() + r * 24);
  const DeviceArray<float> features(spread);
  DeviceArray<float> out(x.rows());
  const TestStream stream;
  required(cuda::mahalanobis(stream, on_device.view, {features.data(), x.rows(), 21, 24}, out.data()));
  stream.wait();
  CHECK(same_bits(out.read(), distances(on_device.view, x)));
}

TEST_CASE("the mean itself has distance 0") {
  if (!has_device()) return;
  const auto model = some_gaussians(3, 40, 37);
  const DeviceCopy on_device(model);
  for (const float distance : distances(on_device.view, model.mean)) CHECK(distance == 0.0f);
}

TEST_CASE("a feature that is not finite gives a distance that is not finite, to its row alone") {
  if (!has_device()) return;
  const auto model = some_gaussians(2, 37, 38);
  const DeviceCopy on_device(model);
  const auto clean = gaussian_images(5, 2, 37, 1.0, 39);
  const auto want = distances(on_device.view, clean);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    for (const std::int64_t column : {0, 17, 36}) {
      CAPTURE(bad);
      CAPTURE(column);
      auto x = clean;
      x(3, column) = bad;
      const auto got = distances(on_device.view, x);
      for (std::size_t row = 0; row < got.size(); ++row) {
        if (row == 3) {
          CHECK_FALSE(std::isfinite(got[row]));
        } else {
          CHECK(got[row] == want[row]);
        }
      }
    }
  }
}

TEST_CASE("G2: distances of fitted Gaussians equal a solve in double, and the host's") {
  if (!has_device()) return;
  for (const std::int64_t d : {5, 60, 217}) {
    CAPTURE(d);
    const std::int64_t n = d > 100 ? 40 : 150;
    const auto x = gaussian_images(n, 2, d, 1.0, 40);
    const auto query = gaussian_images(3, 2, d, 1.2, 41);
    // A regularisation of the features' own size: condition numbers of some hundreds, so that 1e-5 is within reach of float factors.
    constexpr double kRegularisation = 1.0;
    const auto fitted = fit_on_device(x, 2, kRegularisation);
    HostGaussians model{Matrix<float>(2, d), Matrix<float>(2, packed_triangle(d))};
    std::ranges::copy(fitted.mean, model.mean.data());
    std::ranges::copy(fitted.factor, model.factor.data());
    const DeviceCopy on_device(model);
    const auto got = distances(on_device.view, query, cuda::DistanceKind::squared);
    for (std::int64_t row = 0; row < query.rows(); ++row) {
      const std::int64_t p = row % 2;
      auto want = two_pass(x, 2, p);
      for (std::int64_t r = 0; r < d; ++r) want.covariance(r, r) += kRegularisation;
      Matrix<double> y(d, 1);
      std::vector<double> difference(static_cast<std::size_t>(d));
      for (std::int64_t c = 0; c < d; ++c) {
        y(c, 0) = difference[static_cast<std::size_t>(c)] = static_cast<double>(query(row, c)) - want.mean[static_cast<std::size_t>(c)];
      }
      required(cholesky(want.covariance.view()));
      required(cholesky_solve<double>(want.covariance.view(), y.view()));
      double square = 0.0;
      for (std::int64_t c = 0; c < d; ++c) square += difference[static_cast<std::size_t>(c)] * y(c, 0);
      CHECK(std::abs(static_cast<double>(got[static_cast<std::size_t>(row)]) - square) <= 1e-5 * square);
    }

    // The same model on the host: two sums in float, each within the bound of check_squared.
    check_squared(model, query, got);
    Buffer<std::byte> scratch(static_cast<std::int64_t>(mahalanobis_scratch_bytes(d, 1)));
    Arena arena(scratch.span());
    std::vector<float> host(static_cast<std::size_t>(query.rows()));
    required(mahalanobis({model.mean.view(), model.factor.view()}, query.view(), host, {}, arena));
    for (auto& distance : host) distance *= distance;
    check_squared(model, query, host);
  }
}

TEST_CASE("a position whose fit failed has no distance") {
  if (!has_device()) return;
  constexpr std::int64_t kImages = 49;  // 49 (1 / 49) is not 1 in double: a mean must be a quotient to be exact
  auto x = gaussian_images(kImages, 2, 6, 1.0, 42);
  for (std::int64_t i = 0; i < kImages; ++i) {
    for (std::int64_t c = 0; c < 6; ++c) x(2 * i + 1, c) = 2.0f;
  }
  const auto fitted = fit_on_device(x, 2, 0.0);
  CHECK(fitted.flags == std::vector<int>{cuda::kPositiveDefinite, 0});
  HostGaussians model{Matrix<float>(2, 6), Matrix<float>(2, packed_triangle(6))};
  std::ranges::copy(fitted.mean, model.mean.data());
  std::ranges::copy(fitted.factor, model.factor.data());
  const auto got = distances(DeviceCopy(model).view, part_of(x, 0, 4));
  CHECK(std::isfinite(got[0]));
  CHECK(std::isnan(got[1]));
  CHECK(std::isfinite(got[2]));
  CHECK(std::isnan(got[3]));
}

TEST_CASE("distances that are refused") {
  if (!has_device()) return;
  const auto model = some_gaussians(3, 5, 43);
  const DeviceCopy on_device(model);
  const DeviceArray<float> features(std::vector<float>(60));
  DeviceArray<float> out(12);
  const TestStream stream;
  const auto refuses = [&](const GaussianModelView& view, MatrixView<const float> x, float* to, Errc code, const std::string& start) {
    const Status status = cuda::mahalanobis(stream, view, x, to);
    CHECK(status.code() == code);
    CHECK_MESSAGE(status.message().find("cuda::mahalanobis: " + start) == 0, status.message());
  };
  refuses({}, {features.data(), 12, 5}, out.data(), Errc::not_fitted, "the model is empty");
  refuses(on_device.view, {features.data(), 10, 5}, out.data(), Errc::shape_mismatch,
          "wrong features, expected a multiple of 3 rows of 5 values, found 10 x 5");
  refuses(on_device.view, {features.data(), 12, 4}, out.data(), Errc::shape_mismatch,
          "wrong features, expected a multiple of 3 rows of 5 values, found 12 x 4");
  refuses(on_device.view, {features.data(), 12, 5, 4}, out.data(), Errc::invalid_argument, "expected rows at least 5 apart, found 4");
  refuses(on_device.view, {features.data(), 12, 5}, nullptr, Errc::invalid_argument, "expected memory for 12 distances, found none");
  auto wrong = on_device.view;
  wrong.factor.cols = 25;
  refuses(wrong, {features.data(), 12, 5}, out.data(), Errc::shape_mismatch, "wrong factor, expected 3 x 15, found 3 x 25");
  wrong = on_device.view;
  wrong.mean.stride = 8;
  refuses(wrong, {features.data(), 12, 5}, out.data(), Errc::invalid_argument, "expected a dense model, found rows with gaps");
  CHECK(cuda::mahalanobis(stream, on_device.view, {features.data(), 0, 5}, nullptr).ok());
  stream.wait();
}

}  // namespace norma::test
