// Exact search against brute force in double (tests K1, K2): the same rows, in the same order, also where distances tie.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/search/exact.hpp>

namespace {

using norma::ExactSearch;
using norma::Matrix;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

Matrix<float> normal_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed, double offset = 0.0, double scale = 1.0) {
  norma::Random random(seed);
  Matrix<float> matrix(rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) matrix.data()[i] = static_cast<float>(offset + scale * random.normal());
  return matrix;
}

// Small integers: all distances are exact in double and many of them tie.
Matrix<float> grid_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed, std::int64_t values) {
  norma::Random random(seed);
  Matrix<float> matrix(rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) matrix.data()[i] = static_cast<float>(random.below(values));
  return matrix;
}

struct Found {
  Matrix<float> distance;
  Matrix<std::int64_t> row;
};

Found search(const ExactSearch::Index& index, norma::MatrixView<const float> queries, int k, norma::Parallel parallel = {}) {
  Found found{Matrix<float>(queries.rows, k), Matrix<std::int64_t>(queries.rows, k)};
  norma::Buffer<std::byte> scratch(static_cast<std::int64_t>(ExactSearch::scratch_bytes(queries.rows, queries.cols, k, parallel.workers())));
  norma::Arena arena(scratch.span());
  const auto status = ExactSearch::nearest(index, queries, k, found.distance.view(), found.row.view(), parallel, arena);
  REQUIRE_MESSAGE(status.ok(), status.message());
  CHECK(arena.used() == 0);
  return found;
}

std::vector<std::pair<double, std::int64_t>> brute_force(norma::MatrixView<const float> bank, std::span<const float> query) {
  std::vector<std::pair<double, std::int64_t>> all;
  for (std::int64_t r = 0; r < bank.rows; ++r) {
    double sum = 0.0;
    for (std::int64_t i = 0; i < bank.cols; ++i) {
      const double difference = static_cast<double>(query[static_cast<std::size_t>(i)]) - static_cast<double>(bank(r, i));
      sum += difference * difference;
    }
    all.emplace_back(sum, r);
  }
  std::ranges::sort(all);
  return all;
}

void check_exact(norma::MatrixView<const float> bank, norma::MatrixView<const float> queries, int k, const Found& found) {
  for (std::int64_t q = 0; q < queries.rows; ++q) {
    CAPTURE(q);
    const auto want = brute_force(bank, queries.row(q));
    for (std::int64_t i = 0; i < k; ++i) {
      if (i >= bank.rows) {
        REQUIRE(found.distance(q, i) == kInfinity);
        REQUIRE(found.row(q, i) == -1);
        continue;
      }
      const auto& [distance, row] = want[static_cast<std::size_t>(i)];
      // Both sums are of d non-negative doubles, in different orders, rounded once to float.
      const double bound = distance * (0x1p-24 + 2.0 * static_cast<double>(bank.cols) * 0x1p-53);
      REQUIRE(std::abs(static_cast<double>(found.distance(q, i)) - distance) <= bound);
      if (found.row(q, i) != row) {  // allowed only where the two orders of summation may rank differently
        const auto other = std::ranges::find_if(want, [&](const auto& entry) { return entry.second == found.row(q, i); });
        REQUIRE(other != want.end());
        REQUIRE(std::abs(other->first - distance) <= 4.0 * static_cast<double>(bank.cols) * 0x1p-53 * distance);
        REQUIRE(distance > 0.0);
      }
    }
  }
}

std::vector<norma::InstructionSet> instruction_sets() {
  std::vector<norma::InstructionSet> sets;
  for (const auto set : {norma::InstructionSet::generic, norma::InstructionSet::avx2, norma::InstructionSet::avx512}) {
    if (norma::available(set)) sets.push_back(set);
  }
  return sets;
}

}  // namespace

TEST_CASE("K1: neighbours are those of brute force in double") {
  for (const auto set : instruction_sets()) {
    CAPTURE(norma::to_string(set));
    for (const std::int64_t n : {1, 2, 7, 15, 16, 17, 31, 32, 33, 65, 300}) {
      for (const std::int64_t d : {1, 2, 15, 16, 33, 100}) {
        for (const std::int64_t m : {1, 5, 29}) {
          for (const int k : {1, 3, 9}) {
            CAPTURE(n);
            CAPTURE(d);
            CAPTURE(m);
            CAPTURE(k);
            const auto bank = normal_rows(n, d, 41), queries = normal_rows(m, d, 42);
            const auto index = ExactSearch::prepare(bank.view(), {}, set);
            REQUIRE(index.ok());
            check_exact(bank.view(), queries.view(), k, search(*index, queries.view(), k));
          }
        }
      }
    }
  }
}

TEST_CASE("K1: more queries than fit one pass") {
  const auto bank = normal_rows(200, 20, 43), queries = normal_rows(2 * ExactSearch::kQueriesPerPass + 37, 20, 44);
  const auto index = ExactSearch::prepare(bank.view(), {});
  REQUIRE(index.ok());
  check_exact(bank.view(), queries.view(), 2, search(*index, queries.view(), 2));
}

TEST_CASE("K1: ties go to the lowest row") {
  for (const auto set : instruction_sets()) {
    CAPTURE(norma::to_string(set));
    for (const int k : {1, 4, 9}) {
      CAPTURE(k);
      const auto bank = grid_rows(500, 6, 45, 3), queries = grid_rows(40, 6, 46, 3);
      const auto index = ExactSearch::prepare(bank.view(), {}, set);
      REQUIRE(index.ok());
      const auto found = search(*index, queries.view(), k);
      for (std::int64_t q = 0; q < 40; ++q) {
        const auto want = brute_force(bank.view(), queries.view().row(q));
        for (std::int64_t i = 0; i < k; ++i) {
          REQUIRE(found.row(q, i) == want[static_cast<std::size_t>(i)].second);
          REQUIRE(static_cast<double>(found.distance(q, i)) == want[static_cast<std::size_t>(i)].first);
        }
      }
    }
  }
}

TEST_CASE("K1: a bank of one row many times") {
  Matrix<float> bank(700, 33);
  for (std::int64_t r = 0; r < 700; ++r) {
    for (std::int64_t c = 0; c < 33; ++c) bank(r, c) = 0.1f * static_cast<float>(c);
  }
  const auto queries = normal_rows(9, 33, 47);
  const auto index = ExactSearch::prepare(bank.view(), {});
  REQUIRE(index.ok());
  const auto found = search(*index, queries.view(), 5);
  for (std::int64_t q = 0; q < 9; ++q) {
    for (std::int64_t i = 0; i < 5; ++i) CHECK(found.row(q, i) == i);
  }
}

TEST_CASE("K1: far from the origin, where the expanded form alone would be noise") {
  // |b|^2 is 1e6 times the squared distances: in float, |q|^2 - 2 q b + |b|^2 has no correct digit left.
  for (const double offset : {100.0, 3000.0}) {
    CAPTURE(offset);
    const auto bank = normal_rows(400, 64, 48, offset), queries = normal_rows(30, 64, 49, offset);
    const auto index = ExactSearch::prepare(bank.view(), {});
    REQUIRE(index.ok());
    check_exact(bank.view(), queries.view(), 3, search(*index, queries.view(), 3));
  }
}

TEST_CASE("K1: very small and very large values") {
  for (const double scale : {1e-30, 1e-21, 1e-18, 1e15}) {
    CAPTURE(scale);
    const auto bank = normal_rows(150, 24, 50, 0.0, scale), queries = normal_rows(12, 24, 51, 0.0, scale);
    const auto index = ExactSearch::prepare(bank.view(), {});
    REQUIRE(index.ok());
    const auto found = search(*index, queries.view(), 2);
    for (std::int64_t q = 0; q < 12; ++q) {
      const auto want = brute_force(bank.view(), queries.view().row(q));
      for (std::int64_t i = 0; i < 2; ++i) CHECK(found.row(q, i) == want[static_cast<std::size_t>(i)].second);
    }
  }
}

TEST_CASE("K1: rows that differ in the last bit are told apart") {
  auto bank = normal_rows(64, 50, 52);
  for (std::int64_t r = 1; r < 64; ++r) std::memcpy(bank.view().row(r).data(), bank.data(), 50 * sizeof(float));
  for (std::int64_t r = 0; r < 64; ++r) bank(63 - r, 7) = std::nextafter(r == 0 ? 1.0f : bank(64 - r, 7), 2.0f);
  const auto index = ExactSearch::prepare(bank.view(), {});
  REQUIRE(index.ok());
  const auto found = search(*index, bank.view(), 1);
  for (std::int64_t r = 0; r < 64; ++r) {
    CHECK(found.row(r, 0) == r);
    CHECK(found.distance(r, 0) == 0.0f);
  }
}

TEST_CASE("K2: every stored row finds itself at exactly 0") {
  for (const double offset : {0.0, 50.0}) {
    const auto bank = normal_rows(333, 40, 53, offset);
    const auto index = ExactSearch::prepare(bank.view(), {});
    REQUIRE(index.ok());
    const auto found = search(*index, bank.view(), 2);
    for (std::int64_t r = 0; r < 333; ++r) {
      CHECK(found.row(r, 0) == r);
      CHECK(found.distance(r, 0) == 0.0f);
      CHECK(found.distance(r, 1) > 0.0f);
    }
  }
}

TEST_CASE("strided queries and banks") {
  const auto wide_bank = normal_rows(90, 50, 54), wide_queries = normal_rows(20, 70, 55);
  const norma::MatrixView<const float> bank(wide_bank.data() + 3, 90, 30, 50), queries(wide_queries.data() + 5, 20, 30, 70);
  const auto index = ExactSearch::prepare(bank, {});
  REQUIRE(index.ok());
  check_exact(bank, queries, 3, search(*index, queries, 3));
}

TEST_CASE("bit-equal for any number of threads") {
  const auto bank = normal_rows(900, 48, 56), queries = normal_rows(333, 48, 57);
  const auto index = ExactSearch::prepare(bank.view(), {});
  REQUIRE(index.ok());
  for (const int k : {1, 9}) {
    const auto alone = search(*index, queries.view(), k);
    for (const int threads : {2, 4}) {
      norma::ThreadPool pool(threads);
      const auto parallel_index = ExactSearch::prepare(bank.view(), pool.parallel());
      REQUIRE(parallel_index.ok());
      const auto together = search(*parallel_index, queries.view(), k, pool.parallel());
      CHECK(std::memcmp(alone.distance.data(), together.distance.data(), static_cast<std::size_t>(333 * k) * sizeof(float)) == 0);
      CHECK(std::memcmp(alone.row.data(), together.row.data(), static_cast<std::size_t>(333 * k) * sizeof(std::int64_t)) == 0);
    }
  }
}

TEST_CASE("a query that is not finite is reported, its neighbours are not disturbed") {
  const auto bank = normal_rows(100, 17, 58);
  const auto index = ExactSearch::prepare(bank.view(), {});
  REQUIRE(index.ok());
  const auto clean = normal_rows(20, 17, 59);
  const auto want = search(*index, clean.view(), 2);
  for (const float bad : {kNan, kInfinity, -kInfinity, 3e38f}) {
    auto queries = clean;
    queries(6, 11) = bad;
    const auto found = search(*index, queries.view(), 2);
    for (std::int64_t q = 0; q < 20; ++q) {
      for (std::int64_t i = 0; i < 2; ++i) {
        if (q == 6) {
          CHECK(std::isnan(found.distance(q, i)));
          CHECK(found.row(q, i) == -1);
        } else {
          CHECK(found.distance(q, i) == want.distance(q, i));
          CHECK(found.row(q, i) == want.row(q, i));
        }
      }
    }
  }
}

TEST_CASE("more neighbours asked for than there are rows") {
  const auto bank = normal_rows(3, 8, 60), queries = normal_rows(4, 8, 61);
  const auto index = ExactSearch::prepare(bank.view(), {});
  REQUIRE(index.ok());
  check_exact(bank.view(), queries.view(), 5, search(*index, queries.view(), 5));
}

TEST_CASE("what is refused") {
  auto bank = normal_rows(10, 4, 62);
  CHECK(ExactSearch::prepare({}, {}).code() == norma::Errc::invalid_argument);
  for (const float bad : {kNan, kInfinity, 3e38f}) {
    auto broken = bank;
    broken(7, 1) = bad;
    const auto index = ExactSearch::prepare(broken.view(), {});
    CHECK(index.code() == norma::Errc::not_finite);
  }
  auto broken = bank;
  broken(7, 1) = kNan;
  CHECK(ExactSearch::prepare(broken.view(), {}).message().find("row 7") != std::string::npos);

  const auto index = ExactSearch::prepare(bank.view(), {});
  REQUIRE(index.ok());
  norma::Buffer<std::byte> scratch(static_cast<std::int64_t>(ExactSearch::scratch_bytes(2, 4, 1, 1)));
  norma::Arena arena(scratch.span());
  Matrix<float> queries(2, 4), distance(2, 1), wide(2, 5);
  Matrix<std::int64_t> row(2, 1);
  CHECK(ExactSearch::nearest(*index, queries.view(), 1, distance.view(), row.view(), {}, arena).ok());
  CHECK(ExactSearch::nearest(*index, wide.view(), 1, distance.view(), row.view(), {}, arena).code() == norma::Errc::shape_mismatch);
  CHECK(ExactSearch::nearest(*index, queries.view(), 2, distance.view(), row.view(), {}, arena).code() == norma::Errc::shape_mismatch);
  CHECK(ExactSearch::nearest(*index, queries.view(), 0, distance.view(), row.view(), {}, arena).code() == norma::Errc::invalid_argument);
  CHECK(ExactSearch::nearest({}, queries.view(), 1, distance.view(), row.view(), {}, arena).code() == norma::Errc::not_fitted);
  Matrix<float> none(0, 4), no_distance(0, 1);
  Matrix<std::int64_t> no_row(0, 1);
  CHECK(ExactSearch::nearest(*index, none.view(), 1, no_distance.view(), no_row.view(), {}, arena).ok());
}

TEST_CASE("scratch does not grow with the bank, nor without limit with the queries") {
  static_assert(ExactSearch::scratch_bytes(784, 1024, 9, 2) < 6u << 20);
  static_assert(ExactSearch::scratch_bytes(1'000'000, 1024, 9, 2) == ExactSearch::scratch_bytes(ExactSearch::kQueriesPerPass, 1024, 9, 2));
}
