// The normal-only threshold: its rank against the exact binomial sum, its promise by simulation, its refusals.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/evaluation/calibration.hpp>

namespace {

using norma::CalibrationOptions;

std::vector<double> ramp(std::int64_t n) {
  std::vector<double> scores;
  for (std::int64_t i = 0; i < n; ++i) scores.push_back(static_cast<double>(n - i));  // not sorted upwards
  return scores;
}

norma::Calibration calibrated(const std::vector<double>& scores, const CalibrationOptions& options) {
  auto got = norma::calibrate(std::span<const double>(scores), options);
  REQUIRE_MESSAGE(got.ok(), got.message());
  return *got;
}

/// P(Binomial(n, rate) <= most), term by term with exact binomial coefficients in long double.
long double binomial_cdf(std::int64_t n, double rate, std::int64_t most) {
  long double sum = 0.0L, coefficient = 1.0L;
  for (std::int64_t k = 0; k <= most; ++k) {
    sum += coefficient * std::pow(static_cast<long double>(rate), static_cast<long double>(k)) *
           std::pow(1.0L - static_cast<long double>(rate), static_cast<long double>(n - k));
    coefficient = coefficient * static_cast<long double>(n - k) / static_cast<long double>(k + 1);
  }
  return sum;
}

}  // namespace

TEST_CASE("images that are needed") {
  CHECK(norma::required_images(0.01) == 99);
  CHECK(norma::required_images(0.05) == 19);
  CHECK(norma::required_images(0.1) == 9);
  CHECK(norma::required_images(0.001) == 999);
  CHECK(norma::required_images(0.3) == 3);
  CHECK(norma::required_images(0.5) == 1);
  CHECK(norma::required_images(0.9) == 1);
  CHECK(norma::required_images(0.01, 0.95) == 299);
  CHECK(norma::required_images(0.05, 0.95) == 59);
  CHECK(norma::required_images(0.1, 0.9) == 22);
  CHECK(norma::required_images(0.001, 0.99) == 4603);
}

TEST_CASE("without confidence the threshold is the conformal quantile ceil((n + 1)(1 - R))") {
  for (const std::int64_t percent : {1, 5, 7, 10, 29, 50}) {
    for (const std::int64_t n : {1, 9, 19, 20, 99, 100, 101, 199, 250, 1000}) {
      const double rate = static_cast<double>(percent) / 100.0;
      // In whole numbers: rank = ceil((n + 1)(100 - percent) / 100).
      const std::int64_t rank = ((n + 1) * (100 - percent) + 99) / 100;
      CAPTURE(percent);
      CAPTURE(n);
      const auto scores = ramp(n);
      auto got = norma::calibrate(std::span<const double>(scores), {.false_reject_rate = rate});
      if (rank > n) {
        CHECK(got.code() == norma::Errc::not_enough_data);
        CHECK(norma::required_images(rate) > n);
        continue;
      }
      REQUIRE_MESSAGE(got.ok(), got.message());
      CHECK(got->rank == rank);
      CHECK(got->threshold == static_cast<double>(rank));
      CHECK(got->above == n - rank);
      CHECK(got->images == n);
    }
  }
}

TEST_CASE("with confidence it is the smallest rank whose binomial tail is small enough") {
  for (const double rate : {0.01, 0.05, 0.1, 0.3}) {
    for (const double confidence : {0.5, 0.9, 0.95, 0.99}) {
      const std::int64_t need = norma::required_images(rate, confidence);
      for (const std::int64_t n : {need - 1, need, need + 1, 2 * need, std::int64_t{500}, std::int64_t{1000}}) {
        CAPTURE(rate);
        CAPTURE(confidence);
        CAPTURE(n);
        const auto scores = ramp(n);
        auto got = norma::calibrate(std::span<const double>(scores), {.false_reject_rate = rate, .confidence = confidence});
        if (n < need) {
          CHECK(got.code() == norma::Errc::not_enough_data);
          if (n > 0) CHECK(binomial_cdf(n, rate, 0) > 1.0L - static_cast<long double>(confidence));
          continue;
        }
        REQUIRE_MESSAGE(got.ok(), got.message());
        CHECK(binomial_cdf(n, rate, n - got->rank) <= 1.0L - static_cast<long double>(confidence));
        CHECK(binomial_cdf(n, rate, n - got->rank + 1) > 1.0L - static_cast<long double>(confidence));
        CHECK(got->threshold == static_cast<double>(got->rank));
      }
    }
  }
}

TEST_CASE("many images do not underflow") {
  std::vector<double> scores;
  for (int i = 0; i < 200'000; ++i) scores.push_back(i);
  const auto got = calibrated(scores, {.false_reject_rate = 0.01, .confidence = 0.95});
  // Normal approximation: 2000 - 1.645 * sqrt(1980) = 1926.8 may lie above.
  CHECK(std::abs(static_cast<double>(got.above) - 1926.3) <= 2.0);
}

TEST_CASE("the promise holds on average, and with confidence for most calibration sets") {
  norma::Random random(2025);
  constexpr int kSets = 2000;
  constexpr double kRate = 0.05, kConfidence = 0.9;
  double mean = 0.0;
  int kept = 0;
  for (int set = 0; set < kSets; ++set) {
    std::vector<double> scores;
    for (int i = 0; i < 80; ++i) scores.push_back(random.uniform());  // so the true false-reject rate of a threshold t is 1 - t
    mean += (1.0 - calibrated(scores, {.false_reject_rate = kRate}).threshold) / kSets;
    kept += 1.0 - calibrated(scores, {.false_reject_rate = kRate, .confidence = kConfidence}).threshold <= kRate ? 1 : 0;
  }
  // Exact expectation 4 / 81 (rank 77 of 80); its standard error over 2,000 sets is 0.0006.
  CHECK(std::abs(mean - 4.0 / 81.0) <= 0.003);
  CHECK(mean <= kRate);
  // P(kept) = 1 - P(Binomial(80, 0.05) <= 1) = 0.914: standard error 0.0063.
  CHECK(std::abs(static_cast<double>(kept) / kSets - 0.914) <= 0.03);
  CHECK(static_cast<double>(kept) / kSets >= kConfidence);
}

TEST_CASE("ties keep the promise: only scores above the threshold count as rejected") {
  const auto got = calibrated(std::vector<double>(99, 2.5), {});
  CHECK(got.threshold == 2.5);
  CHECK(got.above == 0);
  CHECK(!std::signbit(calibrated(std::vector<double>(99, -0.0), {}).threshold));
}

TEST_CASE("float scores give the same threshold") {
  std::vector<float> scores;
  norma::Random random(4);
  for (int i = 0; i < 150; ++i) scores.push_back(static_cast<float>(random.normal()));
  auto got = norma::calibrate(std::span<const float>(scores), {.false_reject_rate = 0.1});
  REQUIRE(got.ok());
  std::sort(scores.begin(), scores.end());
  CHECK(got->threshold == static_cast<double>(scores[static_cast<std::size_t>(got->rank) - 1]));
}

TEST_CASE("the statement says what was promised") {
  CHECK(calibrated(ramp(120), {}).statement ==
        "The next good image like the 120 calibration images is rejected with probability at most 1 %.");
  CHECK(calibrated(ramp(400), {.false_reject_rate = 0.025, .confidence = 0.95}).statement ==
        "With 95 % confidence, at most 2.5 % of good images like the 400 calibration images are rejected.");
}

TEST_CASE("refusals say how many images are needed and how many there are") {
  const auto few = ramp(21);
  auto plain = norma::calibrate(std::span<const double>(few));
  CHECK(plain.code() == norma::Errc::not_enough_data);
  CHECK(plain.message().find("expected at least 99, found 21") != std::string::npos);
  auto sure = norma::calibrate(std::span<const double>(few), {.confidence = 0.95});
  CHECK(sure.code() == norma::Errc::not_enough_data);
  CHECK(sure.message().find("expected at least 299, found 21") != std::string::npos);
  CHECK(norma::calibrate(std::span<const double>()).code() == norma::Errc::not_enough_data);
  const double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  for (const double rate : {0.0, 1.0, -0.1, nan}) {
    CHECK(norma::calibrate(std::span<const double>(few), {.false_reject_rate = rate}).code() == norma::Errc::invalid_argument);
  }
  for (const double confidence : {1.0, -0.1, nan}) {
    CHECK(norma::calibrate(std::span<const double>(few), {.confidence = confidence}).code() == norma::Errc::invalid_argument);
  }
  for (const double bad : {nan, infinity}) {
    auto scores = ramp(100);
    scores[7] = bad;
    auto got = norma::calibrate(std::span<const double>(scores));
    CHECK(got.code() == norma::Errc::not_finite);
    CHECK(got.message().find("image 7") != std::string::npos);
  }
}
