// nn/random_rotation.hpp: rotations, uniformly distributed, whatever the number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>
#include <norma/core/thread_pool.hpp>
#include <norma/nn/random_rotation.hpp>

namespace norma::test {
namespace {

std::vector<float> rotation(std::int64_t n, std::uint64_t seed, Parallel parallel = {}) {
  std::vector<float> r(static_cast<std::size_t>(n * n));
  Random random(seed, 3);
  nn::random_rotation(n, random, r, parallel);
  return r;
}

/// The largest entry of R R^T - 1 (rows) or R^T R - 1 (columns) over pairs of rows at most `reach` apart, in double.
double orthogonality_error(const std::vector<float>& r, std::int64_t n, bool columns, std::int64_t reach) {
  const auto at = [&](std::int64_t i, std::int64_t j) { return static_cast<double>(r[static_cast<std::size_t>(columns ? j * n + i : i * n + j)]); };
  double worst = 0.0;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = i; j < std::min(n, i + reach + 1); ++j) {
      double sum = 0.0;
      for (std::int64_t k = 0; k < n; ++k) sum += at(i, k) * at(j, k);
      const double error = std::abs(sum - (i == j ? 1.0 : 0.0));
      if (!(error <= worst)) worst = error;  // a NaN stays
    }
  }
  return worst;
}

/// By elimination with pivots, in double.
double determinant(const std::vector<float>& r, std::int64_t n) {
  std::vector<double> a(r.begin(), r.end());
  const auto at = [&](std::int64_t i, std::int64_t j) -> double& { return a[static_cast<std::size_t>(i * n + j)]; };
  double product = 1.0;
  for (std::int64_t c = 0; c < n; ++c) {
    std::int64_t pivot = c;
    for (std::int64_t i = c + 1; i < n; ++i) {
      if (std::abs(at(i, c)) > std::abs(at(pivot, c))) pivot = i;
    }
    if (pivot != c) {
      product = -product;
      for (std::int64_t j = c; j < n; ++j) std::swap(at(c, j), at(pivot, j));
    }
    product *= at(c, c);
    for (std::int64_t i = c + 1; i < n; ++i) {
      const double factor = at(i, c) / at(c, c);
      for (std::int64_t j = c; j < n; ++j) at(i, j) -= factor * at(c, j);
    }
  }
  return product;
}

TEST_CASE("random_rotation: orthogonal to 1e-6 with determinant 1, on both sides of every block size") {
  for (const std::int64_t n : {1, 2, 3, 4, 5, 31, 63, 64, 65, 66, 127, 128, 129, 130, 193, 320}) {
    for (const std::uint64_t seed : {1u, 2u}) {
      CAPTURE(n);
      CAPTURE(seed);
      const auto r = rotation(n, seed);
      CHECK(orthogonality_error(r, n, false, n) <= 1e-6);
      CHECK(orthogonality_error(r, n, true, n) <= 1e-6);
      // |R R^T - 1| <= 1e-6 an entry bounds log det by n 1e-6 / 2; elimination adds far less.
      CHECK(std::abs(determinant(r, n) - 1.0) <= 1e-6 * static_cast<double>(n));
    }
  }
}

TEST_CASE("random_rotation: 2048 dimensions") {
  const auto r = rotation(2048, 5);
  CHECK(orthogonality_error(r, 2048, false, 4) <= 1e-6);
}

TEST_CASE("random_rotation: the same numbers for any number of threads, others for another seed") {
  ThreadPool pool(3);
  const auto one = rotation(150, 9);
  CHECK(one == rotation(150, 9, pool.parallel()));
  CHECK(one != rotation(150, 10));
}

TEST_CASE("random_rotation: two dimensions, where the angle is uniform") {
  // 4000 angles in 16 boxes: chi squared with 15 degrees of freedom, 0.999 quantile 37.7. The seeds are fixed: nothing is left to chance.
  std::vector<int> box(16, 0);
  for (std::uint64_t seed = 0; seed < 4000; ++seed) {
    const auto r = rotation(2, seed);
    CHECK(std::abs(r[0] - r[3]) <= 1e-6f);
    CHECK(std::abs(r[1] + r[2]) <= 1e-6f);
    const double turns = std::atan2(static_cast<double>(r[2]), static_cast<double>(r[0])) / (2.0 * 3.14159265358979) + 0.5;
    ++box[static_cast<std::size_t>(std::clamp(static_cast<int>(turns * 16.0), 0, 15))];
  }
  double chi_squared = 0.0;
  for (const int count : box) chi_squared += (count - 250.0) * (count - 250.0) / 250.0;
  CHECK(chi_squared <= 37.7);
}

TEST_CASE("random_rotation: moments of the uniform distribution, entry by entry") {
  // Uniform over the rotations of n >= 3 dimensions: every entry has mean 0 and mean square 1 / n, the trace has mean 0 and mean square 1, different
  // entries are uncorrelated. Householder's signs uncorrected would give a first row whose first entry is never positive. 5 standard errors; seeds
  // are fixed.
  constexpr std::int64_t n = 4;
  constexpr int samples = 6000;
  std::vector<double> mean(n * n, 0.0), square(n * n, 0.0), product(n * n * n * n, 0.0);
  double trace_mean = 0.0, trace_square = 0.0;
  for (int s = 0; s < samples; ++s) {
    const auto r = rotation(n, 100000 + static_cast<std::uint64_t>(s));
    double trace = 0.0;
    for (std::size_t i = 0; i < n * n; ++i) {
      const auto value = static_cast<double>(r[i]);
      mean[i] += value / samples;
      square[i] += value * value / samples;
      for (std::size_t j = 0; j < n * n; ++j) product[i * n * n + j] += value * static_cast<double>(r[j]) / samples;
      if (i % (n + 1) == 0) trace += value;
    }
    trace_mean += trace / samples;
    trace_square += trace * trace / samples;
  }
  const double error = 5.0 / std::sqrt(static_cast<double>(samples));
  for (std::size_t i = 0; i < n * n; ++i) {
    CAPTURE(i);
    CHECK(std::abs(mean[i]) <= error * 0.5);            // deviation 1 / sqrt n
    CHECK(std::abs(square[i] - 0.25) <= error * 0.21);  // the square of an entry: Beta(1/2, 3/2), deviation 0.204
    for (std::size_t j = 0; j < n * n; ++j) {
      if (i != j) CHECK(std::abs(product[i * n * n + j]) <= error * 0.25);  // |entry product| has deviation below 1 / n
    }
  }
  CHECK(std::abs(trace_mean) <= error);
  CHECK(std::abs(trace_square - 1.0) <= error * 1.5);  // the fourth moment of the trace is at most 3
}

}  // namespace
}  // namespace norma::test
