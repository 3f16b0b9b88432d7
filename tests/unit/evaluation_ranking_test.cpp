// Ranking metrics: worked values, edge cases, errors, curves, the sort.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/evaluation/ranking.hpp>

namespace {

namespace evaluation = norma::evaluation;
using Labels = std::vector<std::uint8_t>;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

template <class T>
evaluation::Ranking<T> ranking_of(const std::vector<T>& scores, const Labels& labels) {
  auto ranking = evaluation::Ranking<T>::create(scores, labels);
  REQUIRE_MESSAGE(ranking.ok(), ranking.message());
  return *std::move(ranking);
}

double area(const evaluation::RocCurve& curve) {
  double sum = 0.0;
  for (std::size_t i = 1; i < curve.threshold.size(); ++i) {
    sum += 0.5 * (curve.true_positive_rate[i] + curve.true_positive_rate[i - 1]) *
           (curve.false_positive_rate[i] - curve.false_positive_rate[i - 1]);
  }
  return sum;
}

bool rising(const std::vector<double>& values) { return std::is_sorted(values.begin(), values.end()); }

}  // namespace

TEST_CASE("the worked example") {
  const std::vector<float> scores{0.1f, 0.4f, 0.35f, 0.8f, 0.4f};
  const Labels labels{0, 0, 1, 1, 1};
  auto auroc = evaluation::auroc(scores, labels);
  auto precision = evaluation::average_precision(scores, labels);
  auto f1 = evaluation::f1_max(scores, labels);
  REQUIRE(auroc.ok());
  REQUIRE(precision.ok());
  REQUIRE(f1.ok());
  CHECK(**auroc == 0.75);
  CHECK(std::abs(**precision - (1.0 + 2.0 / 3.0 + 0.75) / 3.0) <= 1e-15);
  CHECK((*f1)->value == 6.0 / 7.0);
  CHECK((*f1)->threshold == 0.35f);
}

TEST_CASE("labels other than 1 are positive too") {
  const std::vector<float> scores{0.0f, 1.0f, 2.0f};
  CHECK(ranking_of(scores, {0, 255, 7}).positives() == 2);
}

TEST_CASE("undefined values are empty, never a number") {
  const std::vector<float> scores{0.25f, 0.5f, 0.125f};
  SUBCASE("no positive") {
    const auto r = ranking_of(scores, {0, 0, 0});
    CHECK(!r.auroc());
    CHECK(!r.average_precision());
    CHECK(!r.f1_max());
    CHECK(r.roc_curve().threshold.empty());
    CHECK(r.precision_recall_curve().threshold.empty());
  }
  SUBCASE("no negative") {
    const auto r = ranking_of(scores, {1, 1, 1});
    CHECK(!r.auroc());
    CHECK(r.average_precision() == 1.0);
    CHECK(r.f1_max()->value == 1.0);
    CHECK(r.f1_max()->threshold == 0.125);
    CHECK(r.roc_curve().threshold.empty());
  }
  SUBCASE("nothing at all") {
    const auto r = ranking_of(std::vector<float>{}, {});
    CHECK(!r.auroc());
    CHECK(!r.average_precision());
    CHECK(!r.f1_max());
  }
}

TEST_CASE("all scores equal: one half, prevalence, 2p/(1+p)") {
  for (const std::int64_t n : {2, 3, 31, 32, 33, 5000}) {
    CAPTURE(n);
    std::vector<double> scores(static_cast<std::size_t>(n), -3.5);
    Labels labels(scores.size(), 0);
    for (std::size_t i = 0; i < scores.size(); i += 3) labels[i] = 1;
    const auto r = ranking_of(scores, labels);
    const double prevalence = static_cast<double>(r.positives()) / static_cast<double>(n);
    CHECK(r.auroc() == 0.5);
    CHECK(std::abs(*r.average_precision() - prevalence) <= 1e-15);
    CHECK(std::abs(r.f1_max()->value - 2.0 * prevalence / (1.0 + prevalence)) <= 1e-15);
    CHECK(r.f1_max()->threshold == -3.5);
  }
}

TEST_CASE("negative zero ties with zero, infinities are ordered as usual") {
  CHECK(ranking_of<float>({0.0f, -0.0f}, {1, 0}).auroc() == 0.5);
  CHECK(ranking_of<double>({-0.0, 0.0}, {1, 0}).auroc() == 0.5);
  CHECK(ranking_of<float>({kInfinity, 1.0f, -kInfinity}, {1, 0, 0}).auroc() == 1.0);
  CHECK(ranking_of<float>({kInfinity, kInfinity}, {1, 0}).auroc() == 0.5);
  CHECK(ranking_of<float>({-kInfinity, -1e30f, 0.0f}, {1, 0, 0}).auroc() == 0.0);
}

TEST_CASE("denormal numbers keep their order") {
  const float tiny = std::numeric_limits<float>::denorm_min();
  CHECK(ranking_of<float>({tiny, 0.0f, -tiny}, {1, 0, 0}).auroc() == 1.0);
  CHECK(ranking_of<float>({-tiny, 0.0f, tiny}, {1, 0, 0}).auroc() == 0.0);
}

TEST_CASE("the largest F1 is reached at the smallest of several thresholds") {
  const std::vector<float> scores{5.0f, 4.0f, 3.0f, 2.0f, 1.0f, 0.0f};
  const auto f1 = ranking_of(scores, {1, 0, 0, 1, 0, 0}).f1_max();
  CHECK(f1->value == 2.0 / 3.0);
  CHECK(f1->threshold == 2.0);
}

TEST_CASE("errors name what was wrong") {
  const std::vector<float> scores{0.5f, 1.0f, kNan, 0.0f, kNan};
  auto nan = evaluation::auroc(scores, Labels{0, 1, 0, 1, 1});
  CHECK(nan.code() == norma::Errc::not_finite);
  CHECK(nan.message().find("scores[2]") != std::string::npos);
  auto nan_double = evaluation::f1_max(std::vector<double>{std::numeric_limits<double>::quiet_NaN()}, Labels{0});
  CHECK(nan_double.code() == norma::Errc::not_finite);
  auto lengths = evaluation::average_precision(scores, Labels{0, 1});
  CHECK(lengths.code() == norma::Errc::shape_mismatch);
  CHECK(lengths.message().find("expected 5, found 2") != std::string::npos);
  // A NaN behind the first task of the parallel pass.
  std::vector<float> many(300'000, 1.0f);
  many[299'999] = kNan;
  many[299'000] = kNan;
  auto late = evaluation::auroc(many, Labels(many.size(), 0));
  CHECK(late.code() == norma::Errc::not_finite);
  CHECK(late.message().find("scores[299000]") != std::string::npos);
}

TEST_CASE("the ROC curve is the polyline whose area is AUROC") {
  norma::Random random(7);
  for (const int levels : {2, 5, 50, 100000}) {
    std::vector<double> scores;
    Labels labels;
    for (int i = 0; i < 2000; ++i) {
      labels.push_back(random.below(4) == 0 ? 1 : 0);
      scores.push_back(std::floor(random.uniform() * levels + 0.2 * levels * labels.back()));
    }
    const auto r = ranking_of(scores, labels);
    const auto curve = r.roc_curve();
    CHECK(std::abs(area(curve) - *r.auroc()) <= 1e-12);
    CHECK(curve.false_positive_rate.front() == 0.0);
    CHECK(curve.true_positive_rate.front() == 0.0);
    CHECK(curve.false_positive_rate.back() == 1.0);
    CHECK(curve.true_positive_rate.back() == 1.0);
    CHECK(rising(curve.false_positive_rate));
    CHECK(rising(curve.true_positive_rate));
    CHECK(std::is_sorted(curve.threshold.rbegin(), curve.threshold.rend()));
    // Each vertex is what counting says for its threshold.
    for (std::size_t k = 0; k < curve.threshold.size(); k += 1 + curve.threshold.size() / 50) {
      std::int64_t hits = 0, alarms = 0;
      for (std::size_t i = 0; i < scores.size(); ++i) {
        if (scores[i] >= curve.threshold[k]) ++(labels[i] != 0 ? hits : alarms);
      }
      CHECK(curve.true_positive_rate[k] == static_cast<double>(hits) / static_cast<double>(r.positives()));
      CHECK(curve.false_positive_rate[k] == static_cast<double>(alarms) / static_cast<double>(r.negatives()));
    }
    for (const std::int64_t points : {4, 20, 200}) {
      const auto thin = r.roc_curve(points);
      CHECK(static_cast<std::int64_t>(thin.threshold.size()) <= points);
      CHECK(thin.true_positive_rate.back() == 1.0);
      CHECK(thin.false_positive_rate.back() == 1.0);
      if (points == 200) CHECK(std::abs(area(thin) - *r.auroc()) <= 0.01);
    }
  }
}

TEST_CASE("the precision-recall curve holds the steps of average precision") {
  norma::Random random(8);
  std::vector<double> scores;
  Labels labels;
  for (int i = 0; i < 3000; ++i) {
    labels.push_back(random.below(10) == 0 ? 1 : 0);
    scores.push_back(std::floor(random.uniform(0.0, 300.0) + 40.0 * labels.back()));
  }
  const auto r = ranking_of(scores, labels);
  const auto curve = r.precision_recall_curve();
  double sum = 0.0, before = 0.0;
  for (std::size_t i = 0; i < curve.recall.size(); ++i) {
    sum += (curve.recall[i] - before) * curve.precision[i];
    before = curve.recall[i];
  }
  CHECK(std::abs(sum - *r.average_precision()) <= 1e-12);
  CHECK(curve.recall.back() == 1.0);
  double best = 0.0;
  for (std::size_t i = 0; i < curve.recall.size(); ++i) {
    best = std::max(best, 2.0 * curve.recall[i] * curve.precision[i] / (curve.recall[i] + curve.precision[i]));
  }
  CHECK(std::abs(best - r.f1_max()->value) <= 1e-12);
  const auto thin = r.precision_recall_curve(30);
  CHECK(thin.recall.size() <= 30);
  CHECK(thin.recall.size() >= 20);
  CHECK(thin.recall.back() == 1.0);
}

TEST_CASE("keys keep the order of the scores and decode to them") {
  const std::array<float, 10> scores{-kInfinity, -1e30f, -1.5f, -std::numeric_limits<float>::denorm_min(), 0.0f,
                                     std::numeric_limits<float>::denorm_min(), 1e-30f, 1.0f, 1e30f, kInfinity};
  for (std::size_t i = 0; i < scores.size(); ++i) {
    CHECK(evaluation::SortKey<float>::decode(evaluation::SortKey<float>::encode(scores[i])) == scores[i]);
    CHECK(evaluation::SortKey<double>::decode(evaluation::SortKey<double>::encode(scores[i])) == static_cast<double>(scores[i]));
    for (std::size_t j = i + 1; j < scores.size(); ++j) {
      CHECK(evaluation::SortKey<float>::encode(scores[i]) < evaluation::SortKey<float>::encode(scores[j]));
      CHECK(evaluation::SortKey<double>::encode(scores[i]) < evaluation::SortKey<double>::encode(scores[j]));
    }
  }
  CHECK(evaluation::SortKey<float>::encode(-0.0f) == evaluation::SortKey<float>::encode(0.0f));
}

TEST_CASE_TEMPLATE("sort_keys sorts, around its task size and with threads", Key, std::uint32_t, std::uint64_t) {
  norma::ThreadPool pool(3);
  for (const std::int64_t n : {0, 1, 2, 31, 4095, 4096, 4097, (1 << 18) - 1, 1 << 18, (1 << 18) + 1, 700'001}) {
    for (const std::uint64_t mask : {~std::uint64_t{0}, std::uint64_t{0xff00}, std::uint64_t{0}}) {
      CAPTURE(n);
      CAPTURE(mask);
      norma::Random random(static_cast<std::uint64_t>(n));
      norma::Buffer<Key> keys(n);
      for (std::int64_t i = 0; i < n; ++i) keys[i] = static_cast<Key>(random.bits64() & mask);
      std::vector<Key> want(keys.data(), keys.data() + n);
      std::sort(want.begin(), want.end());
      norma::Buffer<Key> parallel = keys;
      evaluation::sort_keys(keys);
      evaluation::sort_keys(parallel, pool.parallel());
      CHECK(std::equal(want.begin(), want.end(), keys.data()));
      CHECK(std::equal(want.begin(), want.end(), parallel.data()));
    }
  }
}

TEST_CASE("lower_bound_from_end agrees with a search from the front") {
  norma::Random random(3);
  for (int round = 0; round < 200; ++round) {
    const std::int64_t n = random.below(70);
    std::vector<std::uint32_t> keys;
    for (std::int64_t i = 0; i < n; ++i) keys.push_back(static_cast<std::uint32_t>(random.below(20)));
    std::sort(keys.begin(), keys.end());
    const std::int64_t end = random.below(n + 1);
    for (std::uint32_t key = 0; key <= 21; ++key) {
      const auto want = std::lower_bound(keys.begin(), keys.begin() + end, key) - keys.begin();
      CHECK(evaluation::lower_bound_from_end(keys.data(), end, key) == want);
    }
  }
}
