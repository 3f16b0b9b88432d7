// Pruned search gives the answer of ExactSearch bit by bit, whatever the data, and where pruning pays it measures little.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/thread_pool.hpp>
#include <norma/search/pruned.hpp>

namespace {

using norma::ExactSearch;
using norma::Matrix;
using norma::PrunedSearch;

// Rectified combinations of a few factors of falling weight, and noise: most of the energy lies in few directions.
Matrix<float> feature_like_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed, double noise, double offset = 0.0) {
  constexpr int kFactors = 12;
  norma::Random shared(90), random(seed);
  Matrix<float> factors(kFactors, cols), matrix(rows, cols);
  for (std::int64_t i = 0; i < kFactors * cols; ++i) factors.data()[i] = static_cast<float>(shared.normal());
  for (std::int64_t r = 0; r < rows; ++r) {
    double weight[kFactors];
    for (int f = 0; f < kFactors; ++f) weight[f] = random.normal() / (1.0 + f);
    for (std::int64_t c = 0; c < cols; ++c) {
      double sum = noise * random.normal();
      for (int f = 0; f < kFactors; ++f) sum += weight[f] * static_cast<double>(factors(f, c));
      matrix(r, c) = static_cast<float>(offset + std::max(sum, 0.0));
    }
  }
  return matrix;
}

struct Found {
  Matrix<float> distance;
  Matrix<std::int64_t> row;
  std::int64_t compared = 0;
};

template <class SearchT>
Found search(const typename SearchT::Index& index, norma::MatrixView<const float> queries, int k, norma::Parallel parallel = {}) {
  Found found{Matrix<float>(queries.rows, k), Matrix<std::int64_t>(queries.rows, k)};
  norma::Buffer<std::byte> scratch(static_cast<std::int64_t>(SearchT::scratch_bytes(queries.rows, queries.cols, k, parallel.workers())));
  norma::Arena arena(scratch.span());
  norma::Status status;
  if constexpr (std::is_same_v<SearchT, PrunedSearch>) {
    status = PrunedSearch::nearest(index, queries, k, found.distance.view(), found.row.view(), parallel, arena, found.compared);
  } else {
    status = SearchT::nearest(index, queries, k, found.distance.view(), found.row.view(), parallel, arena);
  }
  REQUIRE_MESSAGE(status.ok(), status.message());
  return found;
}

void check_same(const Found& a, const Found& b) {
  const auto count = static_cast<std::size_t>(a.row.rows() * a.row.cols());
  CHECK(std::memcmp(a.row.data(), b.row.data(), count * sizeof(std::int64_t)) == 0);
  CHECK(std::memcmp(a.distance.data(), b.distance.data(), count * sizeof(float)) == 0);
}

// On every instruction set of this machine; the result is that of the best one.
Found both(const Matrix<float>& bank, const Matrix<float>& queries, int k) {
  Found best;
  for (const auto set : {norma::InstructionSet::generic, norma::InstructionSet::avx2, norma::InstructionSet::avx512}) {
    if (!norma::available(set)) continue;
    CAPTURE(norma::to_string(set));
    const auto pruned = PrunedSearch::prepare_pruned(bank.view(), {}, set);
    const auto exact = ExactSearch::prepare(bank.view(), {}, set);
    REQUIRE(pruned.ok());
    REQUIRE(exact.ok());
    REQUIRE(pruned->prunes());
    CHECK(pruned->codes.empty() == (norma::search::detail::narrow_kernels(set) == nullptr));
    best = search<PrunedSearch>(*pruned, queries.view(), k);
    check_same(best, search<ExactSearch>(*exact, queries.view(), k));
  }
  return best;
}

}  // namespace

TEST_CASE("the answer of ExactSearch, for any shape") {
  for (const std::int64_t n : {1, 2, 8, 9, 33, 300}) {
    for (const std::int64_t d : {1, 12, 25, 100, 600}) {
      for (const int k : {1, 2, 9}) {
        CAPTURE(n);
        CAPTURE(d);
        CAPTURE(k);
        both(feature_like_rows(n, d, 91, 0.3), feature_like_rows(21, d, 92, 0.3), k);
      }
    }
  }
}

TEST_CASE("the answer of ExactSearch where the bound says nothing, and where values tie") {
  norma::Random random(93);
  Matrix<float> bank(1500, 64), queries(40, 64);
  for (std::int64_t i = 0; i < 1500 * 64; ++i) bank.data()[i] = static_cast<float>(random.normal());
  for (std::int64_t i = 0; i < 40 * 64; ++i) queries.data()[i] = static_cast<float>(random.normal());
  for (const int k : {1, 9}) both(bank, queries, k);
  for (std::int64_t i = 0; i < 1500 * 64; ++i) bank.data()[i] = static_cast<float>(random.below(2));
  for (std::int64_t r = 0; r < 700; ++r) std::memcpy(bank.view().row(2 * r + 1).data(), bank.view().row(r).data(), 64 * sizeof(float));
  for (const int k : {1, 9}) {
    const auto found = both(bank, bank, k);
    CHECK(found.distance(700, 0) == 0.0f);
  }
  Matrix<float> same(200, 64);
  for (std::int64_t i = 0; i < 200 * 64; ++i) same.data()[i] = 0.3f;
  for (const int k : {1, 9}) both(same, same, k);
}

TEST_CASE("the answer of ExactSearch far from the origin and at the ends of the range") {
  for (const double offset : {10.0, 1000.0}) both(feature_like_rows(1200, 96, 94, 0.1, offset), feature_like_rows(30, 96, 95, 0.1, offset), 3);
  for (const float scale : {1e-25f, 1e-18f, 1e14f}) {
    auto bank = feature_like_rows(1200, 96, 94, 0.1), queries = feature_like_rows(30, 96, 95, 0.1);
    for (std::int64_t i = 0; i < bank.rows() * 96; ++i) bank.data()[i] *= scale;
    for (std::int64_t i = 0; i < queries.rows() * 96; ++i) queries.data()[i] *= scale;
    both(bank, queries, 3);
  }
}

TEST_CASE("little is compared where most of the energy lies in few directions") {
  const auto bank = feature_like_rows(5000, 240, 96, 0.02), queries = feature_like_rows(200, 240, 97, 0.02);
  const auto found = both(bank, queries, 1);
  CHECK(found.compared < 200 * 5000 / 20);
  const auto index = PrunedSearch::prepare(bank.view(), {});
  REQUIRE(index.ok());
  CHECK(index->prunes());
  // Short rows of at most 21 floats (and an eighth of them again), and codes of 256 + 24 bytes a row.
  CHECK(index->bytes() < static_cast<std::size_t>(bank.rows()) * (21 * 4 * 9 / 8 + 280) + 200'000);
  check_same(found, search<PrunedSearch>(*index, queries.view(), 1));
}

TEST_CASE("where pruning cannot pay, the search falls back") {
  norma::Random random(98);
  Matrix<float> bank(5000, 64);
  for (std::int64_t i = 0; i < 5000 * 64; ++i) bank.data()[i] = static_cast<float>(random.normal());
  const auto noise = PrunedSearch::prepare(bank.view(), {});
  REQUIRE(noise.ok());
  CHECK_FALSE(noise->prunes());
  const auto exact = ExactSearch::prepare(bank.view(), {});
  const auto queries = bank.view().block(0, 300);
  check_same(search<PrunedSearch>(*noise, queries, 2), search<ExactSearch>(*exact, queries, 2));
  const auto small = PrunedSearch::prepare(bank.view().block(0, 100), {});
  REQUIRE(small.ok());
  CHECK_FALSE(small->prunes());
}

TEST_CASE("rows that neither short vectors nor codes tell apart are measured, all of them if need be") {
  auto bunches = feature_like_rows(3000, 96, 104, 0.1);
  norma::Random random(105);
  for (std::int64_t r = 3; r < 3000; ++r) {
    for (std::int64_t i = 0; i < 96; ++i) bunches(r, i) = bunches(r % 3, i) + 1e-5f * static_cast<float>(random.normal());
  }
  for (const int k : {1, 9}) both(bunches, bunches, k);
}

TEST_CASE("bit-equal for any number of threads, in several passes") {
  const auto bank = feature_like_rows(1500, 120, 99, 0.1), queries = feature_like_rows(PrunedSearch::kQueriesPerPass + 300, 120, 100, 0.1);
  const auto index = PrunedSearch::prepare_pruned(bank.view(), {});
  REQUIRE(index.ok());
  const auto alone = search<PrunedSearch>(*index, queries.view(), 4);
  for (const int threads : {2, 4}) {
    norma::ThreadPool pool(threads);
    const auto threaded = PrunedSearch::prepare_pruned(bank.view(), pool.parallel());
    REQUIRE(threaded.ok());
    check_same(alone, search<PrunedSearch>(*threaded, queries.view(), 4, pool.parallel()));
  }
}

TEST_CASE("queries that are not finite") {
  const auto bank = feature_like_rows(1100, 60, 101, 0.1);
  const auto index = PrunedSearch::prepare_pruned(bank.view(), {});
  REQUIRE(index.ok());
  const auto clean = feature_like_rows(13, 60, 102, 0.1);
  const auto want = search<PrunedSearch>(*index, clean.view(), 2);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 3e38f}) {
    auto queries = clean;
    queries(5, 59) = bad;
    const auto found = search<PrunedSearch>(*index, queries.view(), 2);
    for (std::int64_t q = 0; q < 13; ++q) {
      if (q == 5) {
        CHECK(std::isnan(found.distance(q, 0)));
        CHECK(found.row(q, 1) == -1);
      } else {
        CHECK(found.distance(q, 1) == want.distance(q, 1));
        CHECK(found.row(q, 0) == want.row(q, 0));
      }
    }
  }
}

TEST_CASE("what is refused") {
  auto bank = feature_like_rows(1100, 60, 103, 0.1);
  bank(77, 3) = std::numeric_limits<float>::quiet_NaN();
  const auto broken = PrunedSearch::prepare(bank.view(), {});
  CHECK(broken.code() == norma::Errc::not_finite);
  CHECK(broken.message().find("row 77") != std::string::npos);
  CHECK(PrunedSearch::prepare({}, {}).code() == norma::Errc::invalid_argument);
  norma::Arena arena;
  Matrix<float> queries(2, 60), distance(2, 1);
  Matrix<std::int64_t> row(2, 1);
  CHECK(PrunedSearch::nearest({}, queries.view(), 1, distance.view(), row.view(), {}, arena).code() == norma::Errc::not_fitted);
}
