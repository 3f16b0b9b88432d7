/// \file
/// Images with correlated features, two passes in double, and the device memory that the Gaussian kernels work on: shared by their tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include <norma/core/random.hpp>
#include <norma/core/tensor.hpp>
#include <norma/cuda/covariance.cuh>

#include <support/device.hpp>

namespace norma::test {

inline constexpr double kUnit = 0x1p-24;  // rounding of one float operation

inline void required(const Status& status) { REQUIRE_MESSAGE(status.ok(), status.message()); }

/// [n P, d]: image after image, correlated between dimensions, each with its own mean and scale; `offset` moves all of it away from 0.
inline Matrix<float> gaussian_images(std::int64_t n, std::int64_t positions, std::int64_t d, double offset, std::uint64_t seed) {
  Random random(seed);
  Matrix<float> all(n * positions, d);
  for (std::int64_t r = 0; r < all.rows(); ++r) {
    const double common = random.normal();
    for (std::int64_t c = 0; c < d; ++c) {
      all(r, c) = static_cast<float>(offset * (1.0 + 0.1 * static_cast<double>(c % 7)) +
                                     (0.5 + 0.1 * static_cast<double>(c % 5)) * (random.normal() + common));
    }
  }
  return all;
}

inline Matrix<float> part_of(const Matrix<float>& all, std::int64_t first, std::int64_t rows) {
  Matrix<float> part(rows, all.cols());
  if (rows > 0) std::memcpy(part.data(), all.data() + first * all.cols(), static_cast<std::size_t>(rows * all.cols()) * sizeof(float));
  return part;
}

template <class T>
std::vector<T> values_of(const Matrix<T>& m) {
  return {m.data(), m.data() + m.rows() * m.cols()};
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

struct TwoPass {
  std::vector<double> mean;
  Matrix<double> covariance;
};

inline TwoPass two_pass(const Matrix<float>& all, std::int64_t positions, std::int64_t position) {
  const std::int64_t d = all.cols(), n = all.rows() / positions;
  TwoPass result{std::vector<double>(static_cast<std::size_t>(d)), Matrix<double>(d, d)};
  const auto value = [&](std::int64_t i, std::int64_t c) { return static_cast<double>(all(i * positions + position, c)); };
  for (std::int64_t c = 0; c < d; ++c) {
    double& mean = result.mean[static_cast<std::size_t>(c)];
    for (std::int64_t i = 0; i < n; ++i) mean += value(i, c);
    mean /= static_cast<double>(n);
  }
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t r = 0; r < d; ++r) {
      const double x = (value(i, r) - result.mean[static_cast<std::size_t>(r)]) / static_cast<double>(n - 1);
      for (std::int64_t c = 0; c < d; ++c) result.covariance(r, c) += x * (value(i, c) - result.mean[static_cast<std::size_t>(c)]);
    }
  }
  return result;
}

/// How far a sum of products may lie from the exact one, in units of the two columns' root sums of squares; n images in `calls` calls (a merge is
/// one). A centred value is (x - high) - low, two roundings, so a product of two has 4; it is rounded, and goes through at most 64 additions within
/// its batch: 69. The row for the step between two means has at most 6 roundings a factor (the weight 5, the step 1), 12 and not 4 together: 77. Each
/// batch's sum goes through one addition a batch, there are at most n / 64 + calls batches, and a merge in double rounds once. The columns of all
/// rows of a product, steps included, have the sum of squares of the whole (Chan et al.), so Cauchy and Schwarz bound the sum of the products' sizes.
/// 80 leaves 3 units for second-order terms and the reference.
inline double products_bound(std::int64_t n, int calls) { return (80.0 + static_cast<double>(n) / 64.0 + calls) * kUnit; }

/// A workspace in device memory.
class Workspace {
 public:
  explicit Workspace(std::size_t bytes) : memory_(static_cast<std::int64_t>(bytes)) {}
  [[nodiscard]] std::span<std::byte> span() { return {memory_.data(), memory_.bytes()}; }

 private:
  DeviceArray<std::byte> memory_;
};

/// A state in device memory.
struct DeviceState {
  DeviceArray<double> mean;
  DeviceArray<float> products;
  cuda::GaussianState view;

  DeviceState(std::int64_t positions, std::int64_t d) : mean(positions * d), products(positions * packed_triangle(d)) {
    view = {0, mean.matrix(positions, d), products.matrix(positions, packed_triangle(d))};
  }
  void observe(MatrixView<const float> on_device) {
    Workspace workspace(cuda::gaussian_workspace_bytes(view.mean.rows, view.mean.cols, on_device.rows / view.mean.rows));
    const TestStream stream;
    required(cuda::observe_gaussians(stream, view, on_device, workspace.span()));
    stream.wait();
  }
  void observe(const Matrix<float>& x, std::int64_t positions) {
    REQUIRE(positions == view.mean.rows);
    const DeviceArray<float> on_device(values_of(x));
    observe(MatrixView<const float>(on_device.data(), x.rows(), x.cols()));
  }
};

/// A model in device memory.
struct DeviceModel {
  DeviceArray<float> mean, factor;
  DeviceArray<int> flags;
  cuda::DeviceGaussians view;

  DeviceModel(std::int64_t positions, std::int64_t d) : mean(positions * d), factor(positions * packed_triangle(d)), flags(positions) {
    view = {mean.matrix(positions, d), factor.matrix(positions, packed_triangle(d)), flags.data()};
  }
};

struct Fitted {
  std::vector<float> mean, factor;
  std::vector<int> flags;
};

inline Fitted fit_on_device(const Matrix<float>& x, std::int64_t positions, double regularisation) {
  const DeviceArray<float> on_device(values_of(x));
  DeviceModel model(positions, x.cols());
  Workspace workspace(cuda::gaussian_workspace_bytes(positions, x.cols(), x.rows() / positions));
  const TestStream stream;
  required(cuda::fit_gaussians(stream, {on_device.data(), x.rows(), x.cols()}, regularisation, model.view, workspace.span()));
  stream.wait();
  return {model.mean.read(), model.factor.read(), model.flags.read()};
}

/// Every mean and every product of a state against two passes over `x`.
inline void check_state(const DeviceState& state, const Matrix<float>& x, int calls) {
  const std::int64_t positions = state.view.mean.rows, d = x.cols(), n = x.rows() / positions;
  REQUIRE(state.view.count == n);
  const auto mean = state.mean.read();
  const auto products = state.products.read();
  const double bound = products_bound(n, calls);
  for (std::int64_t p = 0; p < positions; ++p) {
    CAPTURE(p);
    const auto want = two_pass(x, positions, p);
    for (std::int64_t r = 0; r < d; ++r) {
      CAPTURE(r);
      // Sums of doubles: n additions here and there, a division, and three operations a batch.
      const double size = std::abs(want.mean[static_cast<std::size_t>(r)]) + std::sqrt(static_cast<double>(n) * want.covariance(r, r));
      REQUIRE(std::abs(mean[static_cast<std::size_t>(p * d + r)] - want.mean[static_cast<std::size_t>(r)]) <=
              (2.0 * static_cast<double>(n) + 16.0) * 0x1p-52 * size);
      for (std::int64_t c = 0; c <= r; ++c) {
        CAPTURE(c);
        const double got =
            static_cast<double>(products[static_cast<std::size_t>(p * packed_triangle(d) + packed_triangle(r) + c)]) / static_cast<double>(n - 1);
        const double allowed = bound * std::sqrt(want.covariance(r, r) * want.covariance(c, c));
        if (!(std::abs(got - want.covariance(r, c)) <= allowed)) REQUIRE(std::abs(got - want.covariance(r, c)) <= allowed);
      }
    }
  }
}

/// |W A W^T - I| in every entry for a factor W of A = covariance + regularisation * I. `spread` bounds the error of A's entries: |error(r, c)| <=
/// spread sqrt(A(r, r) A(c, c)). With L L^T = A + E, |E| <= g |L| |L|^T, and L W = I + F, |F| <= g |L| |W|, g = (d + 12) u (cholesky.cuh): W L = I +
/// W F L to first order, and so |W A W^T - I| <= g (G G + (G G)^T + G G^T) + spread v v^T with G = |W| |L|, v = |W| sqrt(diag A). L is taken as the
/// inverse of W in double.
inline void check_inverse_factor(const float* packed, const Matrix<double>& a, double spread) {
  const std::int64_t d = a.rows();
  Matrix<double> w(d, d), l(d, d), g(d, d), gg(d, d), ggt(d, d), wa(d, d);
  for (std::int64_t r = 0; r < d; ++r) {
    for (std::int64_t c = 0; c <= r; ++c) w(r, c) = static_cast<double>(packed[packed_triangle(r) + c]);
    REQUIRE(w(r, r) > 0.0);
  }
  for (std::int64_t c = 0; c < d; ++c) {
    for (std::int64_t r = c; r < d; ++r) {
      double sum = r == c ? 1.0 : 0.0;
      for (std::int64_t k = c; k < r; ++k) sum -= w(r, k) * l(k, c);
      l(r, c) = sum / w(r, r);
    }
  }
  std::vector<double> v(static_cast<std::size_t>(d));
  for (std::int64_t r = 0; r < d; ++r) {
    for (std::int64_t k = 0; k <= r; ++k) {
      v[static_cast<std::size_t>(r)] += std::abs(w(r, k)) * std::sqrt(a(k, k));
      for (std::int64_t c = 0; c <= k; ++c) g(r, c) += std::abs(w(r, k) * l(k, c));
      for (std::int64_t c = 0; c < d; ++c) wa(r, c) += w(r, k) * a(k, c);
    }
  }
  for (std::int64_t r = 0; r < d; ++r) {
    for (std::int64_t k = 0; k <= r; ++k) {
      for (std::int64_t c = 0; c <= k; ++c) gg(r, c) += g(r, k) * g(k, c);
    }
    for (std::int64_t c = 0; c < d; ++c) {
      for (std::int64_t k = 0; k <= std::min(r, c); ++k) ggt(r, c) += g(r, k) * g(c, k);
    }
  }
  const double unit = (static_cast<double>(d) + 12.0) * kUnit;
  for (std::int64_t r = 0; r < d; ++r) {
    CAPTURE(r);
    for (std::int64_t c = 0; c <= r; ++c) {
      CAPTURE(c);
      double product = 0.0;
      for (std::int64_t k = 0; k <= c; ++k) product += wa(r, k) * w(c, k);
      const double allowed = unit * (gg(r, c) + gg(c, r) + ggt(r, c)) + spread * v[static_cast<std::size_t>(r)] * v[static_cast<std::size_t>(c)];
      const double error = std::abs(product - (r == c ? 1.0 : 0.0));
      if (!(error <= allowed)) REQUIRE(error <= allowed);
    }
  }
}

inline Matrix<double> regularised(const Matrix<double>& covariance, double regularisation) {
  Matrix<double> a = covariance;
  for (std::int64_t r = 0; r < a.rows(); ++r) a(r, r) += regularisation;
  return a;
}

}  // namespace norma::test
