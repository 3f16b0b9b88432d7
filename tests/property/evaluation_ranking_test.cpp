// Ranking metrics against brute force, and what must not change them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/evaluation/ranking.hpp>

namespace {

namespace evaluation = norma::evaluation;
using Labels = std::vector<std::uint8_t>;

struct Sample {
  std::vector<double> scores;
  Labels labels;
};

/// Scores that are whole multiples of 1 / 64 (so also exact in float), with many ties where `levels` is small.
Sample random_sample(std::int64_t n, std::int64_t levels, std::int64_t one_in, norma::Random& random) {
  Sample sample;
  for (std::int64_t i = 0; i < n; ++i) {
    sample.labels.push_back(random.below(one_in) == 0 ? 1 : 0);
    sample.scores.push_back(static_cast<double>(random.below(levels) + sample.labels.back() * levels / 5 - levels / 3) / 64.0);
  }
  return sample;
}

template <class T>
evaluation::RankingMetrics metrics(const std::vector<T>& scores, const Labels& labels, norma::Parallel parallel = {}) {
  auto got = evaluation::ranking_metrics(std::span<const T>(scores), labels, parallel);
  REQUIRE_MESSAGE(got.ok(), got.message());
  return *got;
}

/// The definitions, word by word.
void check_brute_force(const Sample& sample) {
  const auto got = metrics(sample.scores, sample.labels);
  std::int64_t p = 0, n = 0;
  double pairs = 0.0;
  for (std::size_t i = 0; i < sample.scores.size(); ++i) {
    ++(sample.labels[i] != 0 ? p : n);
    for (std::size_t j = 0; sample.labels[i] != 0 && j < sample.scores.size(); ++j) {
      if (sample.labels[j] == 0) pairs += sample.scores[i] > sample.scores[j] ? 1.0 : sample.scores[i] == sample.scores[j] ? 0.5 : 0.0;
    }
  }
  CHECK(got.positives == p);
  CHECK(got.negatives == n);
  REQUIRE(got.auroc.has_value() == (p > 0 && n > 0));
  if (p > 0 && n > 0) CHECK(std::abs(*got.auroc - pairs / static_cast<double>(p * n)) <= 1e-14);
  REQUIRE(got.average_precision.has_value() == (p > 0));
  REQUIRE(got.f1_max.has_value() == (p > 0));
  if (p == 0) return;
  double precision_sum = 0.0, recall_before = 0.0, best = -1.0, threshold = 0.0;
  const std::set<double, std::greater<>> distinct(sample.scores.begin(), sample.scores.end());
  for (const double t : distinct) {
    std::int64_t hits = 0, predicted = 0;
    for (std::size_t i = 0; i < sample.scores.size(); ++i) {
      if (sample.scores[i] < t) continue;
      ++predicted;
      hits += sample.labels[i];
    }
    const double recall = static_cast<double>(hits) / static_cast<double>(p);
    precision_sum += (recall - recall_before) * static_cast<double>(hits) / static_cast<double>(predicted);
    recall_before = recall;
    // Equal fractions of integers below 2^26 are equal as doubles: both are the rounded value of the same number.
    const double f1 = 2.0 * static_cast<double>(hits) / static_cast<double>(p + predicted);
    if (f1 >= best) {
      best = f1;
      threshold = t;
    }
  }
  CHECK(std::abs(*got.average_precision - precision_sum) <= 1e-12);
  CHECK(got.f1_max->value == best);
  CHECK(got.f1_max->threshold == threshold);
}

}  // namespace

TEST_CASE("ranking metrics equal their definitions") {
  norma::Random random(20240601);
  for (const std::int64_t n : {1, 2, 3, 31, 32, 33, 200}) {
    for (const std::int64_t levels : {1, 2, 7, 100000}) {
      for (const std::int64_t one_in : {1, 2, 20}) {
        for (int round = 0; round < 4; ++round) {
          CAPTURE(n);
          CAPTURE(levels);
          CAPTURE(one_in);
          CAPTURE(round);
          check_brute_force(random_sample(n, levels, one_in, random));
        }
      }
    }
  }
}

TEST_CASE("float and double agree where the scores are exact in both") {
  norma::Random random(5);
  for (int round = 0; round < 20; ++round) {
    const Sample sample = random_sample(500, 300, 6, random);
    const std::vector<float> scores(sample.scores.begin(), sample.scores.end());
    const auto a = metrics(sample.scores, sample.labels), b = metrics(scores, sample.labels);
    CHECK(a.auroc == b.auroc);
    CHECK(a.average_precision == b.average_precision);
    CHECK(a.f1_max->value == b.f1_max->value);
    CHECK(a.f1_max->threshold == b.f1_max->threshold);
  }
}

TEST_CASE("strictly increasing transforms, the order of the samples and threads change no bit") {
  norma::Random random(6);
  norma::ThreadPool pool(4);
  for (const std::int64_t n : {300, 5000, 600'000}) {
    const Sample sample = random_sample(n, 2000, 9, random);
    const auto want = metrics(sample.scores, sample.labels);
    std::vector<double> moved(sample.scores);
    for (double& s : moved) s = std::exp(0.01 * s) - 3.0;  // 2,000 levels stay distinct
    const auto transformed = metrics(moved, sample.labels);
    CHECK(transformed.auroc == want.auroc);
    CHECK(transformed.average_precision == want.average_precision);
    CHECK(transformed.f1_max->value == want.f1_max->value);
    CHECK(transformed.f1_max->threshold == std::exp(0.01 * want.f1_max->threshold) - 3.0);

    Sample shuffled = sample;
    for (std::size_t i = shuffled.scores.size(); i > 1; --i) {
      const auto j = static_cast<std::size_t>(random.below(static_cast<std::int64_t>(i)));
      std::swap(shuffled.scores[i - 1], shuffled.scores[j]);
      std::swap(shuffled.labels[i - 1], shuffled.labels[j]);
    }
    for (const auto& other : {metrics(shuffled.scores, shuffled.labels), metrics(sample.scores, sample.labels, pool.parallel())}) {
      CHECK(other.auroc == want.auroc);
      CHECK(other.average_precision == want.average_precision);
      CHECK(other.f1_max->value == want.f1_max->value);
      CHECK(other.f1_max->threshold == want.f1_max->threshold);
    }
  }
}

TEST_CASE("AUROC of negated scores or of exchanged labels is the rest to 1") {
  norma::Random random(9);
  for (const std::int64_t levels : {3, 40, 1000000}) {
    const Sample sample = random_sample(3000, levels, 4, random);
    const double auroc = *metrics(sample.scores, sample.labels).auroc;
    std::vector<double> negated(sample.scores);
    for (double& s : negated) s = -s;
    Labels exchanged(sample.labels);
    for (auto& y : exchanged) y = y == 0 ? 1 : 0;
    // Each is a correctly rounded quotient of integers, so they differ from the exact rest by half an ulp each.
    CHECK(std::abs(*metrics(negated, sample.labels).auroc - (1.0 - auroc)) <= 2.3e-16);
    CHECK(std::abs(*metrics(sample.scores, exchanged).auroc - (1.0 - auroc)) <= 2.3e-16);
  }
}

TEST_CASE("scores without information give about one half") {
  norma::Random random(10);
  std::vector<float> scores;
  Labels labels;
  for (int i = 0; i < 100'000; ++i) {
    scores.push_back(static_cast<float>(random.uniform()));
    labels.push_back(random.below(20) == 0 ? 1 : 0);
  }
  const auto got = metrics(scores, labels);
  CHECK(std::abs(*got.auroc - 0.5) <= 0.015);  // standard deviation about 0.0042
  CHECK(std::abs(*got.average_precision - 0.05) <= 0.005);
}
