// The simple subsets and the random projections.
#include <cmath>
#include <set>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/thread_pool.hpp>
#include <norma/search/random_projection.hpp>
#include <norma/search/subset.hpp>

namespace {

norma::Matrix<float> normal_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  norma::Random random(seed);
  norma::Matrix<float> matrix(rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) matrix.data()[i] = static_cast<float>(random.normal());
  return matrix;
}

}  // namespace

TEST_CASE("a random subset is ascending, without repetition, and a function of the seed") {
  const auto points = normal_rows(1000, 3, 81);
  const auto a = norma::RandomSubset::select(points.view(), {.coreset_ratio = 0.25}, 7, {}, {});
  REQUIRE(a.ok());
  CHECK(a->size() == 250);
  CHECK(std::set<std::int64_t>(a->begin(), a->end()).size() == 250);
  CHECK(std::ranges::is_sorted(*a));
  CHECK(a->front() >= 0);
  CHECK(a->back() < 1000);
  const auto same = norma::RandomSubset::select(points.view(), {.coreset_ratio = 0.25}, 7, {}, {});
  const auto other = norma::RandomSubset::select(points.view(), {.coreset_ratio = 0.25}, 8, {}, {});
  CHECK(*a == *same);
  CHECK(*a != *other);
  // Uniform: the mean index of 250 of 1000 has standard deviation 1000 / sqrt(12 * 250) * sqrt(0.75) = 15.8; five of them.
  double mean = 0.0;
  for (const std::int64_t row : *a) mean += static_cast<double>(row) / 250.0;
  CHECK(std::abs(mean - 499.5) <= 80.0);
}

TEST_CASE("keeping all keeps all, in order") {
  const auto points = normal_rows(5, 3, 82);
  const auto rows = norma::KeepAll::select(points.view(), {}, 1, {}, {});
  REQUIRE(rows.ok());
  CHECK(*rows == std::vector<std::int64_t>{0, 1, 2, 3, 4});
  CHECK(norma::KeepAll::select({}, {}, 1, {}, {}).code() == norma::Errc::not_enough_data);
  CHECK(norma::RandomSubset::select({}, {}, 1, {}, {}).code() == norma::Errc::not_enough_data);
  CHECK(norma::RandomSubset::validate({.coreset_ratio = 2.0}).code() == norma::Errc::invalid_argument);
  CHECK(norma::RandomSubset::validate({.coreset_count = -1}).code() == norma::Errc::invalid_argument);
}

TEST_CASE("the uniform map has the entries of an initialised linear layer") {
  const auto map = norma::projection_matrix(norma::Projection::uniform, 128, 1024, 3);
  double sum = 0.0, squares = 0.0, most = 0.0;
  for (std::int64_t i = 0; i < 128 * 1024; ++i) {
    const double x = static_cast<double>(map.data()[i]);
    sum += x;
    squares += x * x;
    most = std::max(most, std::abs(x));
  }
  const double count = 128.0 * 1024.0;
  CHECK(most <= 1.0 / 32.0);
  CHECK(most > 0.999 / 32.0);
  // Variance 1 / (3 * 1024); five standard errors of mean and variance (of a uniform variable: 0.894 of the variance).
  const double variance = 1.0 / (3.0 * 1024.0);
  CHECK(std::abs(sum / count) <= 5.0 * std::sqrt(variance / count));
  CHECK(std::abs(squares / count - variance) <= 5.0 * 0.9 * variance / std::sqrt(count));
}

TEST_CASE("the sparse map has three values in the right shares and keeps lengths on average") {
  const std::int64_t dims = 64, d = 400;
  const auto map = norma::projection_matrix(norma::Projection::sparse, dims, d, 4);
  std::int64_t positive = 0, negative = 0;
  const float length = static_cast<float>(std::sqrt(20.0 / 64.0));
  for (std::int64_t i = 0; i < dims * d; ++i) {
    const float x = map.data()[i];
    REQUIRE((x == 0.0f || x == length || x == -length));
    positive += x > 0.0f;
    negative += x < 0.0f;
  }
  // Expected 1/40 of 25600 = 640 each, standard deviation 25.
  CHECK(std::abs(static_cast<double>(positive) - 640.0) <= 125.0);
  CHECK(std::abs(static_cast<double>(negative) - 640.0) <= 125.0);
  const auto points = normal_rows(200, d, 83);
  const auto projected = norma::project(points.view(), map, {});
  double before = 0.0, after = 0.0;
  for (std::int64_t i = 0; i < 200 * d; ++i) before += static_cast<double>(points.data()[i]) * static_cast<double>(points.data()[i]);
  for (std::int64_t i = 0; i < 200 * dims; ++i) after += static_cast<double>(projected.data()[i]) * static_cast<double>(projected.data()[i]);
  CHECK(std::abs(after / before - 1.0) <= 0.2);  // the map's own share of non-zeros varies by 2.8 % (one standard deviation)
}

TEST_CASE("projected rows are products with the map, for any number of threads") {
  const auto points = normal_rows(77, 50, 84);
  const auto map = norma::projection_matrix(norma::Projection::uniform, 9, 50, 5);
  const auto projected = norma::project(points.view(), map, {});
  norma::ThreadPool pool(4);
  const auto threaded = norma::project(points.view(), map, pool.parallel());
  for (std::int64_t r = 0; r < 77; ++r) {
    for (std::int64_t c = 0; c < 9; ++c) {
      double want = 0.0, size = 0.0;
      for (std::int64_t i = 0; i < 50; ++i) {
        want += static_cast<double>(points(r, i)) * static_cast<double>(map(c, i));
        size += std::abs(static_cast<double>(points(r, i)) * static_cast<double>(map(c, i)));
      }
      CHECK(std::abs(static_cast<double>(projected(r, c)) - want) <= 51.0 * 0x1p-24 * size);
      CHECK(projected(r, c) == threaded(r, c));
    }
  }
}

TEST_CASE("the Johnson-Lindenstrauss number") {
  // 4 ln(163856) / (0.405 - 0.243) = 296.5
  CHECK(norma::johnson_lindenstrauss_dims(163856, 0.9) == 296);
}
