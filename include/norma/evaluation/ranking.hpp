/// \file
/// Ranking metrics of scores against labels: AUROC, average precision, F1-max with its threshold, ROC and precision-recall curves.
/// Source:      the definitions of docs/concepts/metrics.md; larger scores are more anomalous, label non-zero = anomalous = positive.
/// Shapes:      scores [n], labels [n], n up to kMaxSamples
/// Ties:        exact equality of the scores given (-0.0 equals 0.0); infinities are ordinary scores; NaN is an error with its index
/// Cost:        one sort, O(n); memory two keys a sample (8 bytes for float scores, 16 for double) beside the input
/// Determinism: same bits for any number of threads and any order of the samples
/// Undefined values are empty optionals, never 0, 0.5 or NaN.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <norma/core/parallel.hpp>
#include <norma/core/status.hpp>
#include <norma/evaluation/sorted_keys.hpp>

namespace norma::evaluation {

/// With more samples the 64-bit pair counts could overflow: 2 n^2 < 2^64.
inline constexpr std::int64_t kMaxSamples = 3'000'000'000;

/// Vertices of a polyline from (0, 0) to (1, 1); between two vertices the curve is straight. `threshold[i]` is the score that puts
/// the detector (prediction = score >= threshold) at vertex i; the first one is +infinity (nothing is predicted).
struct RocCurve {
  std::vector<double> false_positive_rate, true_positive_rate, threshold;
};

/// One vertex for each distinct score of a positive sample, thresholds falling, so recall rising. The other thresholds only lower the
/// precision at a recall that is already listed.
struct PrecisionRecallCurve {
  std::vector<double> recall, precision, threshold;
};

/// The largest F1 over all thresholds, and the smallest threshold that reaches it (prediction = score >= threshold).
struct F1Max {
  double value = 0.0;
  double threshold = 0.0;  ///< one of the scores, exactly
};

/// Samples sorted once, from which every ranking metric is read. T is float or double.
template <class T>
class Ranking {
 public:
  using Key = typename SortKey<T>::type;

  /// Errors: shape_mismatch (different lengths), not_finite (a NaN, with its index), invalid_argument (more than kMaxSamples).
  static Result<Ranking> create(std::span<const T> scores, std::span<const std::uint8_t> labels, Parallel parallel = {}) {
    if (scores.size() != labels.size()) {
      return Status{Errc::shape_mismatch, "Ranking::create: as many labels as scores, expected " + std::to_string(scores.size()) +
                                              ", found " + std::to_string(labels.size())};
    }
    const auto n = static_cast<std::int64_t>(scores.size());
    struct Part {
      std::int64_t positives = 0;
      std::int64_t first_nan = -1;
    };
    std::vector<Part> parts(static_cast<std::size_t>((n + kGrain - 1) / kGrain));
    parallel.run_ranges(n, kGrain, [&](std::int64_t first, std::int64_t last, int) {
      Part part;
      bool nan = false;
      for (std::int64_t i = first; i < last; ++i) {
        part.positives += labels[static_cast<std::size_t>(i)] != 0 ? 1 : 0;
        nan = nan || std::isnan(scores[static_cast<std::size_t>(i)]);
      }
      for (std::int64_t i = first; nan && part.first_nan < 0; ++i) {
        if (std::isnan(scores[static_cast<std::size_t>(i)])) part.first_nan = i;
      }
      parts[static_cast<std::size_t>(first / kGrain)] = part;
    });
    std::int64_t total = 0;
    for (Part& part : parts) {
      if (part.first_nan >= 0) {
        return Status{Errc::not_finite, "Ranking::create: scores[" + std::to_string(part.first_nan) + "] is NaN, expected a number"};
      }
      part.positives = std::exchange(total, total + part.positives);  // from here on: where the task's positives go
    }
    Buffer<Key> positives(total), negatives(n - total);
    parallel.run_ranges(n, kGrain, [&](std::int64_t first, std::int64_t last, int) {
      Key* positive = positives.data() + parts[static_cast<std::size_t>(first / kGrain)].positives;
      Key* negative = negatives.data() + (first - parts[static_cast<std::size_t>(first / kGrain)].positives);
      for (std::int64_t i = first; i < last; ++i) {
        const Key key = SortKey<T>::encode(scores[static_cast<std::size_t>(i)]);
        (labels[static_cast<std::size_t>(i)] != 0 ? *positive++ : *negative++) = key;
      }
    });
    return from_keys(std::move(positives), std::move(negatives), parallel);
  }

  /// From keys (SortKey<T>) in any order.
  static Result<Ranking> from_keys(Buffer<Key> positives, Buffer<Key> negatives, Parallel parallel = {}) {
    if (positives.size() + negatives.size() > kMaxSamples) {
      return Status{Errc::invalid_argument, "Ranking: too many samples, expected at most " + std::to_string(kMaxSamples) + ", found " +
                                                std::to_string(positives.size() + negatives.size())};
    }
    sort_keys(positives, parallel);
    sort_keys(negatives, parallel);
    Ranking ranking;
    ranking.positives_ = std::move(positives);
    ranking.negatives_ = std::move(negatives);
    return ranking;
  }

  [[nodiscard]] std::int64_t positives() const noexcept { return positives_.size(); }
  [[nodiscard]] std::int64_t negatives() const noexcept { return negatives_.size(); }
  /// Ascending keys of the samples with label 0.
  [[nodiscard]] std::span<const Key> negative_keys() const noexcept { return negatives_.span(); }

  /// Probability that a positive scores above a negative, ties counting one half. Empty without positives or without negatives.
  [[nodiscard]] std::optional<double> auroc() const {
    if (positives() == 0 || negatives() == 0) return std::nullopt;
    std::uint64_t twice_pairs = 0;  // exact: at most 2 P N
    for_each_group([&](const Group& g) {
      const std::int64_t below = negatives() - g.negatives_above - g.negatives_tied;
      twice_pairs += static_cast<std::uint64_t>(g.positives) * static_cast<std::uint64_t>(2 * below + g.negatives_tied);
    });
    const auto all = 2 * static_cast<std::uint64_t>(positives()) * static_cast<std::uint64_t>(negatives());
    return static_cast<double>(twice_pairs) / static_cast<double>(all);
  }

  /// Sum over the distinct scores, falling, of the gain in recall times the precision (no interpolation). Empty without positives.
  [[nodiscard]] std::optional<double> average_precision() const {
    if (positives() == 0) return std::nullopt;
    double sum = 0.0;
    for_each_group([&](const Group& g) {
      const std::int64_t hits = g.positives_above + g.positives;
      const std::int64_t predicted = hits + g.negatives_above + g.negatives_tied;
      sum += static_cast<double>(g.positives) * (static_cast<double>(hits) / static_cast<double>(predicted));
    });
    return sum / static_cast<double>(positives());
  }

  /// Empty without positives. Candidates are compared as integers, so equal F1 values tie exactly.
  [[nodiscard]] std::optional<F1Max> f1_max() const {
    if (positives() == 0) return std::nullopt;
    std::uint64_t best_hits = 0, best_sum = 1;
    Key best_key = 0;
    for_each_group([&](const Group& g) {  // between two distinct scores of positives F1 only falls
      const auto hits = static_cast<std::uint64_t>(g.positives_above + g.positives);
      const auto sum = static_cast<std::uint64_t>(positives() + g.negatives_above + g.negatives_tied) + hits;
      if (hits * best_sum >= best_hits * sum) {
        best_hits = hits;
        best_sum = sum;
        best_key = g.key;
      }
    });
    return F1Max{2.0 * static_cast<double>(best_hits) / static_cast<double>(best_sum), static_cast<double>(SortKey<T>::decode(best_key))};
  }

  /// The exact polyline, without vertices inside straight parts. With `max_points` >= 4 it is thinned to at most so many vertices,
  /// spaced evenly along the curve (for drawing); 0 keeps all. Empty curves where AUROC is undefined.
  [[nodiscard]] RocCurve roc_curve(std::int64_t max_points = 0) const {
    RocCurve curve;
    if (positives() == 0 || negatives() == 0) return curve;
    const auto p = static_cast<double>(positives()), n = static_cast<double>(negatives());
    double marked = 0.0;
    const auto add = [&](std::int64_t hits, std::int64_t false_alarms, double threshold, bool end) {
      const double x = static_cast<double>(false_alarms) / n, y = static_cast<double>(hits) / p;
      if (!end && !curve.threshold.empty()) {
        if (x == curve.false_positive_rate.back() && y == curve.true_positive_rate.back()) return;
        if (max_points > 0 && (x + y) * static_cast<double>(max_points - 2) < 2.0 * marked) return;
      }
      if (max_points > 0) marked = std::floor((x + y) * static_cast<double>(max_points - 2) / 2.0) + 1.0;
      curve.false_positive_rate.push_back(x);
      curve.true_positive_rate.push_back(y);
      curve.threshold.push_back(threshold);
    };
    add(0, 0, std::numeric_limits<double>::infinity(), true);
    for_each_group([&](const Group& g) {
      // Negatives above this group and below the one before it: a horizontal line that ends at the lowest of them.
      if (g.negatives_above > 0) {
        add(g.positives_above, g.negatives_above, score(negatives_[negatives() - g.negatives_above]), false);
      }
      add(g.positives_above + g.positives, g.negatives_above + g.negatives_tied, score(g.key), false);
    });
    if (curve.false_positive_rate.back() < 1.0 || curve.true_positive_rate.back() < 1.0) {
      add(positives(), negatives(), std::min(score(negatives_[0]), score(positives_[0])), true);
    }
    return curve;
  }

  /// With `max_points` >= 2 thinned to at most so many vertices, spaced evenly in recall; 0 keeps all. Empty without positives.
  [[nodiscard]] PrecisionRecallCurve precision_recall_curve(std::int64_t max_points = 0) const {
    PrecisionRecallCurve curve;
    double marked = 0.0;
    for_each_group([&](const Group& g) {
      const std::int64_t hits = g.positives_above + g.positives;
      const double recall = static_cast<double>(hits) / static_cast<double>(positives());
      if (max_points > 0) {
        const double place = recall * static_cast<double>(max_points - 1);
        if (hits < positives() && place < marked) return;
        marked = std::floor(place) + 1.0;
      }
      curve.recall.push_back(recall);
      curve.precision.push_back(static_cast<double>(hits) / static_cast<double>(hits + g.negatives_above + g.negatives_tied));
      curve.threshold.push_back(score(g.key));
    });
    return curve;
  }

 private:
  static constexpr std::int64_t kGrain = std::int64_t{1} << 18;

  /// All positives of one score, and how many negatives lie above it and on it.
  struct Group {
    Key key;
    std::int64_t positives, positives_above, negatives_above, negatives_tied;
  };

  static double score(Key key) { return static_cast<double>(SortKey<T>::decode(key)); }

  /// Distinct scores of positives, falling.
  template <class Visit>
  void for_each_group(Visit&& visit) const {
    const std::int64_t p = positives(), n = negatives();
    std::int64_t negative_end = n;  // negatives_[negative_end, n) lie at or above the previous group
    for (std::int64_t end = p; end > 0;) {
      const Key key = positives_[end - 1];
      const std::int64_t begin = lower_bound_from_end(positives_.data(), end, key);
      // A key never is the largest integer (that would be a NaN), so key + 1 does not wrap.
      const std::int64_t above = lower_bound_from_end(negatives_.data(), negative_end, static_cast<Key>(key + 1));
      const std::int64_t tied = lower_bound_from_end(negatives_.data(), above, key);
      visit(Group{key, end - begin, p - end, n - above, above - tied});
      negative_end = tied;
      end = begin;
    }
  }

  Buffer<Key> positives_, negatives_;  // ascending
};

/// Several values of one sort; the names are those of the report.
struct RankingMetrics {
  std::optional<double> auroc, average_precision;
  std::optional<F1Max> f1_max;
  std::int64_t positives = 0, negatives = 0;
};

template <class T>
[[nodiscard]] RankingMetrics ranking_metrics(const Ranking<T>& ranking) {
  return {ranking.auroc(), ranking.average_precision(), ranking.f1_max(), ranking.positives(), ranking.negatives()};
}

namespace detail {
template <class T, class Read>
auto read_ranking(std::span<const T> scores, std::span<const std::uint8_t> labels, Parallel parallel, Read read)
    -> Result<decltype(read(std::declval<const Ranking<T>&>()))> {
  NORMA_TRY(const auto ranking, Ranking<T>::create(scores, labels, parallel));
  return read(ranking);
}
}  // namespace detail

inline Result<RankingMetrics> ranking_metrics(std::span<const float> scores, std::span<const std::uint8_t> labels, Parallel parallel = {}) {
  return detail::read_ranking(scores, labels, parallel, [](const auto& r) { return ranking_metrics(r); });
}
inline Result<RankingMetrics> ranking_metrics(std::span<const double> scores, std::span<const std::uint8_t> labels,
                                              Parallel parallel = {}) {
  return detail::read_ranking(scores, labels, parallel, [](const auto& r) { return ranking_metrics(r); });
}

/// Area under the ROC curve; empty where there are no positives or no negatives.
inline Result<std::optional<double>> auroc(std::span<const float> scores, std::span<const std::uint8_t> labels, Parallel parallel = {}) {
  return detail::read_ranking(scores, labels, parallel, [](const auto& r) { return r.auroc(); });
}
inline Result<std::optional<double>> auroc(std::span<const double> scores, std::span<const std::uint8_t> labels, Parallel parallel = {}) {
  return detail::read_ranking(scores, labels, parallel, [](const auto& r) { return r.auroc(); });
}

/// Step-wise average precision; empty where there are no positives.
inline Result<std::optional<double>> average_precision(std::span<const float> scores, std::span<const std::uint8_t> labels,
                                                       Parallel parallel = {}) {
  return detail::read_ranking(scores, labels, parallel, [](const auto& r) { return r.average_precision(); });
}
inline Result<std::optional<double>> average_precision(std::span<const double> scores, std::span<const std::uint8_t> labels,
                                                       Parallel parallel = {}) {
  return detail::read_ranking(scores, labels, parallel, [](const auto& r) { return r.average_precision(); });
}

/// Largest F1 and the smallest threshold that reaches it; empty where there are no positives.
inline Result<std::optional<F1Max>> f1_max(std::span<const float> scores, std::span<const std::uint8_t> labels, Parallel parallel = {}) {
  return detail::read_ranking(scores, labels, parallel, [](const auto& r) { return r.f1_max(); });
}
inline Result<std::optional<F1Max>> f1_max(std::span<const double> scores, std::span<const std::uint8_t> labels, Parallel parallel = {}) {
  return detail::read_ranking(scores, labels, parallel, [](const auto& r) { return r.f1_max(); });
}

}  // namespace norma::evaluation
