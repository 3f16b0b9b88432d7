/// \file
/// A decision threshold from good images alone, with a guarantee that holds for any score distribution.
/// Source:      split conformal quantile (Vovk et al., "Algorithmic Learning in a Random World", 2005) for the plain rule; Wilks,
///              "Determination of sample sizes for setting tolerance limits", Ann. Math. Stat. 1941, for the rule with confidence
/// Requires:    scores of good images that the fit has not seen, drawn like the good images to come
/// Rule:        an image is anomalous when its score is > threshold
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include <norma/core/status.hpp>

namespace norma {

/// `confidence` = 0 promises the rate on average over calibration sets: the next good image is rejected with probability at most
/// `false_reject_rate`. That needs the fewest images (99 for 1 %), so it is the default. A confidence C > 0 promises more: with
/// probability C over the calibration set, the rate of all good images to come is at most `false_reject_rate` (299 images for 1 % at
/// C = 0.95).
struct CalibrationOptions {
  double false_reject_rate = 0.01;  ///< in (0, 1)
  double confidence = 0.0;          ///< in [0, 1)
};

struct Calibration {
  double threshold = 0.0;           ///< one of the scores; anomalous means score > threshold
  double false_reject_rate = 0.0;   ///< what was promised
  double confidence = 0.0;
  std::int64_t images = 0;          ///< scores used
  std::int64_t rank = 0;            ///< the threshold is the rank-th smallest score, from 1
  std::int64_t above = 0;           ///< calibration scores above the threshold
  std::string statement;            ///< the guarantee as one sentence, for reports
};

/// Fewest calibration images for which a threshold exists: ceil(1 / R) - 1 without confidence, else ceil(log(1 - C) / log(1 - R)).
/// Preconditions: R in (0, 1), C in [0, 1).
inline std::int64_t required_images(double false_reject_rate, double confidence = 0.0) {
  // The tolerance keeps decimal rates whole: 1 / 0.01 and such must not be rounded up by their last bit.
  constexpr double kSlack = 1e-9;
  const double exact = confidence > 0.0 ? std::log1p(-confidence) / std::log1p(-false_reject_rate) : 1.0 / false_reject_rate - 1.0;
  const double images = std::ceil(exact * (1.0 - kSlack));
  return std::max<std::int64_t>(1, images < 9e18 ? static_cast<std::int64_t>(images) : std::numeric_limits<std::int64_t>::max());
}

namespace detail {

/// How many of `n` good images may lie above the threshold; -1 when not even none is enough.
inline std::int64_t allowed_above(std::int64_t n, const CalibrationOptions& options) {
  const double rate = options.false_reject_rate;
  if (n < required_images(rate, options.confidence)) return -1;
  if (options.confidence == 0.0) {
    // (above + 1) / (n + 1) <= rate
    return std::max<std::int64_t>(0, static_cast<std::int64_t>(std::floor(static_cast<double>(n + 1) * rate * (1.0 + 1e-12))) - 1);
  }
  // The true rate exceeds `rate` with probability P(Binomial(n, rate) <= above): the largest count that keeps it <= 1 - C.
  // Terms in logarithms, since (1 - rate)^n underflows.
  const double odds = std::log(rate) - std::log1p(-rate);
  double log_term = static_cast<double>(n) * std::log1p(-rate);
  double below = std::exp(log_term);
  std::int64_t above = 0;
  for (; above + 1 < n; ++above) {
    log_term += std::log(static_cast<double>(n - above) / static_cast<double>(above + 1)) + odds;
    below += std::exp(log_term);
    if (!(below <= 1.0 - options.confidence)) break;
  }
  return above;
}

/// Shortest plain decimal of a fraction as percent: 0.01 -> "1 %", 0.955 -> "95.5 %".
inline std::string percent_text(double fraction) {
  std::string text = std::to_string(100.0 * fraction);
  while (text.back() == '0') text.pop_back();
  if (text.back() == '.') text.pop_back();
  return text + " %";
}

}  // namespace detail

/// The smallest threshold among `good_scores` that keeps the promise of `options`.
/// Errors: invalid_argument (a rate or confidence outside its range), not_finite (a NaN or infinite score, with its index),
/// not_enough_data (says how many images are needed and how many there are).
inline Result<Calibration> calibrate(std::span<const double> good_scores, const CalibrationOptions& options = {}) {
  const double rate = options.false_reject_rate, confidence = options.confidence;
  if (!(rate > 0.0 && rate < 1.0)) {
    return Status{Errc::invalid_argument, "calibrate: false_reject_rate, expected in (0, 1), found " + std::to_string(rate)};
  }
  if (!(confidence >= 0.0 && confidence < 1.0)) {
    return Status{Errc::invalid_argument, "calibrate: confidence, expected in [0, 1), found " + std::to_string(confidence)};
  }
  for (std::size_t i = 0; i < good_scores.size(); ++i) {
    if (!std::isfinite(good_scores[i])) {
      return Status{Errc::not_finite, "calibrate: score of image " + std::to_string(i) + ", expected a finite number, found " +
                                          std::to_string(good_scores[i])};
    }
  }
  const auto n = static_cast<std::int64_t>(good_scores.size());
  const std::string promise = "a false-reject rate of at most " + detail::percent_text(rate) +
                              (confidence > 0.0 ? " with " + detail::percent_text(confidence) + " confidence" : std::string());
  const std::int64_t above = detail::allowed_above(n, options);
  if (above < 0) {
    return Status{Errc::not_enough_data, "calibrate: not enough good images for " + promise + ", expected at least " +
                                             std::to_string(required_images(rate, confidence)) + ", found " + std::to_string(n)};
  }
  std::vector<double> scores(good_scores.begin(), good_scores.end());
  const auto place = scores.begin() + static_cast<std::ptrdiff_t>(n - 1 - above);
  std::nth_element(scores.begin(), place, scores.end());

  Calibration out;
  out.threshold = *place + 0.0;  // no -0.0 in files and reports
  out.false_reject_rate = rate;
  out.confidence = confidence;
  out.images = n;
  out.rank = n - above;
  out.above = std::count_if(scores.begin(), scores.end(), [&](double score) { return score > out.threshold; });
  out.statement = confidence > 0.0
                      ? "With " + detail::percent_text(confidence) + " confidence, at most " + detail::percent_text(rate) +
                            " of good images like the " + std::to_string(n) + " calibration images are rejected."
                      : "The next good image like the " + std::to_string(n) + " calibration images is rejected with probability at most " +
                            detail::percent_text(rate) + ".";
  return out;
}

inline Result<Calibration> calibrate(std::span<const float> good_scores, const CalibrationOptions& options = {}) {
  const std::vector<double> scores(good_scores.begin(), good_scores.end());
  return calibrate(std::span<const double>(scores), options);
}

}  // namespace norma
