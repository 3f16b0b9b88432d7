// Once prepared, a search and a distance allocate nothing.
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/linalg/covariance.hpp>
#include <norma/search/pruned.hpp>

#include "../support/count_allocations.hpp"

namespace {

using norma::Matrix;

Matrix<float> normal_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  norma::Random random(seed);
  Matrix<float> matrix(rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) matrix.data()[i] = static_cast<float>(random.normal());
  return matrix;
}

template <class SearchT>
std::int64_t allocations_of(const typename SearchT::Index& index, const Matrix<float>& queries, norma::Parallel parallel) {
  constexpr int k = 3;
  Matrix<float> distance(queries.rows(), k);
  Matrix<std::int64_t> row(queries.rows(), k);
  norma::Buffer<std::byte> memory(static_cast<std::int64_t>(SearchT::scratch_bytes(queries.rows(), queries.cols(), k, parallel.workers())));
  norma::Arena arena(memory.span());
  const std::int64_t before = norma::test::allocation_count();
  const bool done = SearchT::nearest(index, queries.view(), k, distance.view(), row.view(), parallel, arena).ok();
  const std::int64_t after = norma::test::allocation_count();
  CHECK(done);
  return after - before;
}

}  // namespace

TEST_CASE("searching allocates nothing") {
  norma::ThreadPool pool(3);
  const auto bank = normal_rows(1200, 60, 1), queries = normal_rows(1100, 60, 2);
  const auto exact = norma::ExactSearch::prepare(bank.view(), {});
  const auto pruned = norma::PrunedSearch::prepare_pruned(bank.view(), {});
  REQUIRE(exact.ok());
  REQUIRE(pruned.ok());
  for (const norma::Parallel parallel : {norma::Parallel(), pool.parallel()}) {
    CHECK(allocations_of<norma::ExactSearch>(*exact, queries, parallel) == 0);
    CHECK(allocations_of<norma::PrunedSearch>(*pruned, queries, parallel) == 0);
  }
}

TEST_CASE("Mahalanobis distances allocate nothing") {
  norma::ThreadPool pool(3);
  const auto images = normal_rows(12 * 30, 21, 3);
  auto sums = norma::GaussianAccumulator::create(30, 21);
  REQUIRE(sums.ok());
  REQUIRE(sums->add_batch(images.view()).ok());
  const auto model = sums->finish();
  REQUIRE(model.ok());
  std::vector<float> distance(12 * 30);
  for (const norma::Parallel parallel : {norma::Parallel(), pool.parallel()}) {
    norma::Buffer<std::byte> memory(static_cast<std::int64_t>(norma::mahalanobis_scratch_bytes(21, parallel.workers())));
    norma::Arena arena(memory.span());
    const std::int64_t before = norma::test::allocation_count();
    const bool done = norma::mahalanobis(model->view(), images.view(), distance, parallel, arena).ok();
    const std::int64_t after = norma::test::allocation_count();
    CHECK(done);
    CHECK(after == before);
  }
}
