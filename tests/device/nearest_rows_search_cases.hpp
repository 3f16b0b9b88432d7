// The search policy that runs on the device, through the interface that estimators use.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <norma/core/thread_pool.hpp>
#include <norma/cuda/exact_search.hpp>
#include <support/device.hpp>

#include <device/nearest_rows_reference.hpp>

namespace norma::test {

struct Answer {
  std::vector<float> distance;
  std::vector<std::int64_t> row;
  bool operator==(const Answer&) const = default;
};

template <class SearchT>
Answer nearest(const typename SearchT::Index& index, MatrixView<const float> queries, int k, Parallel parallel = {}) {
  const auto count = static_cast<std::size_t>(queries.rows * k);
  Answer answer{std::vector<float>(count), std::vector<std::int64_t>(count)};
  Buffer<std::byte> scratch(static_cast<std::int64_t>(SearchT::scratch_bytes(queries.rows, queries.cols, k, parallel.workers())));
  Arena arena(scratch.span());
  const Status status =
      SearchT::nearest(index, queries, k, {answer.distance.data(), queries.rows, k}, {answer.row.data(), queries.rows, k}, parallel, arena);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return answer;
}

TEST_CASE("cuda::ExactSearch: brute force in double, for every product") {
  if (!has_device()) return;
  const auto run = [](auto search) {
    using SearchT = decltype(search);
    const auto bank = normal_rows(130, 19, 1, 2.0), queries = normal_rows(33, 19, 2, 2.0);
    const auto index = SearchT::prepare(bank.view(), {});
    REQUIRE_MESSAGE(index.ok(), index.message());
    CHECK(index->rows() == 130);
    CHECK(index->dims() == 19);
    CHECK(index->bytes() >= 130 * 19 * sizeof(float));
    for (const int k : {1, 6}) {
      const Answer answer = nearest<SearchT>(*index, queries.view(), k);
      check_exact(bank, queries, k, answer.distance, answer.row);
    }
  };
  run(cuda::BasicExactSearch<RowProduct::fp32>{});
  run(cuda::BasicExactSearch<RowProduct::tf32x3>{});
  run(cuda::BasicExactSearch<RowProduct::tf32>{});
  run(cuda::ExactSearch{});
}

TEST_CASE("cuda::ExactSearch: strided banks and queries, an index that moves, several threads at once") {
  if (!has_device()) return;
  const auto wide_bank = normal_rows(90, 25, 3), wide_queries = normal_rows(40, 21, 4);
  const MatrixView<const float> bank(wide_bank.data.data() + 3, 90, 16, 25), queries(wide_queries.data.data() + 2, 40, 16, 21);
  Rows<> dense_bank{{}, 90, 16}, dense_queries{{}, 40, 16};
  for (std::int64_t r = 0; r < 90; ++r) dense_bank.data.insert(dense_bank.data.end(), bank.row(r).begin(), bank.row(r).end());
  for (std::int64_t r = 0; r < 40; ++r) dense_queries.data.insert(dense_queries.data.end(), queries.row(r).begin(), queries.row(r).end());
  auto prepared = cuda::ExactSearch::prepare(bank, {});
  REQUIRE(prepared.ok());
  const cuda::ExactSearch::Index index = *std::move(prepared);
  const Answer want = nearest<cuda::ExactSearch>(index, queries, 3);
  check_exact(dense_bank, dense_queries, 3, want.distance, want.row);
  ThreadPool pool(3);
  CHECK(nearest<cuda::ExactSearch>(index, queries, 3, pool.parallel()) == want);

  constexpr int kThreads = 4, kCalls = 5;
  std::vector<Answer> answers(kThreads * kCalls);
  std::vector<Status> statuses(kThreads * kCalls);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int c = 0; c < kCalls; ++c) {
        const auto i = static_cast<std::size_t>(t * kCalls + c);
        answers[i] = {std::vector<float>(120), std::vector<std::int64_t>(120)};
        Arena none;
        statuses[i] = cuda::ExactSearch::nearest(index, queries, 3, {answers[i].distance.data(), 40, 3}, {answers[i].row.data(), 40, 3}, {}, none);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < answers.size(); ++i) {
    REQUIRE_MESSAGE(statuses[i].ok(), statuses[i].message());
    CHECK(answers[i] == want);
  }
}

TEST_CASE("cuda::ExactSearch: more queries than fit one pass") {
  if (!has_device()) return;
  const auto bank = normal_rows(20, 2, 5), queries = normal_rows(cuda::ExactSearch::kQueriesPerPass + 3, 2, 6);
  const auto index = cuda::ExactSearch::prepare(bank.view(), {});
  REQUIRE(index.ok());
  const Answer answer = nearest<cuda::ExactSearch>(*index, queries.view(), 1);
  check_exact(bank, queries, 1, answer.distance, answer.row);
}

TEST_CASE("cuda::ExactSearch: what is not finite, and what is missing") {
  if (!has_device()) return;
  const auto bank = normal_rows(3, 8, 7);
  const auto index = cuda::ExactSearch::prepare(bank.view(), {});
  REQUIRE(index.ok());
  auto queries = normal_rows(2, 8, 8);
  queries.at(1, 3) = std::numeric_limits<float>::infinity();
  const Answer answer = nearest<cuda::ExactSearch>(*index, queries.view(), 5);
  for (std::size_t i = 0; i < 5; ++i) {
    CHECK((answer.row[i] >= 0) == (i < 3));
    CHECK(std::isfinite(answer.distance[i]) == (i < 3));
    CHECK(std::isnan(answer.distance[5 + i]));
    CHECK(answer.row[5 + i] == -1);
  }
}

TEST_CASE("cuda::ExactSearch: what is refused") {
  if (!has_device()) return;
  auto bank = normal_rows(10, 4, 9);
  CHECK(cuda::ExactSearch::prepare({}, {}).message() == "cuda::ExactSearch::prepare: expected a bank with rows and columns, found 0 x 0");
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 3e38f}) {
    auto broken = bank;
    broken.at(7, 1) = bad;
    broken.at(9, 0) = bad;
    const auto index = cuda::ExactSearch::prepare(broken.view(), {});
    CHECK(index.code() == Errc::not_finite);
    CHECK(index.message() == "cuda::ExactSearch::prepare: row 7 of the bank is not finite, or too large for float");
  }
  const auto index = cuda::ExactSearch::prepare(bank.view(), {});
  REQUIRE(index.ok());
  std::vector<float> distance(8);
  std::vector<std::int64_t> row(8);
  Arena none;
  const auto search = [&](const cuda::ExactSearch::Index& where, MatrixView<const float> queries, int k, MatrixView<float> to,
                          MatrixView<std::int64_t> rows) { return cuda::ExactSearch::nearest(where, queries, k, to, rows, {}, none); };
  const MatrixView<float> d(distance.data(), 2, 2);
  const MatrixView<std::int64_t> r(row.data(), 2, 2);
  const MatrixView<const float> queries(bank.data.data(), 2, 4);
  CHECK(search(*index, queries, 2, d, r).ok());
  CHECK(search({}, queries, 2, d, r).message() == "cuda::ExactSearch::nearest: the index is empty");
  CHECK(search(*index, {bank.data.data(), 2, 5}, 2, d, r).message() ==
        "cuda::ExactSearch::nearest: wrong queries, expected rows of 4 values, found 5");
  CHECK(search(*index, queries, 0, d, r).message() == "cuda::ExactSearch::nearest: expected k from 1 to 64, found 0");
  CHECK(search(*index, queries, 65, d, r).code() == Errc::invalid_argument);
  CHECK(search(*index, queries, 1, d, r).message() == "cuda::ExactSearch::nearest: wrong outputs, expected 2 x 1, found 2 x 2 and 2 x 2");
  CHECK(search(*index, {bank.data.data(), 0, 4}, 2, {distance.data(), 0, 2}, {row.data(), 0, 2}).ok());
}

}  // namespace norma::test
