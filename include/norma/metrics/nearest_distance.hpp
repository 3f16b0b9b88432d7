/// \file
/// Distance to the nearest patch of a memory bank.
/// Source:      Roth et al., "PatchCore", CVPR 2022, section 3.3, equations 6 and 7.
/// Units:       L2 distance (not squared), >= 0
/// Cost:        one search of all patches and one of a single row
#pragma once

#include <cmath>
#include <limits>
#include <string>

#include <norma/metrics/anomaly_map.hpp>

namespace norma {

/// Image score = distance of the worst patch.
struct Plain {
  static constexpr std::string_view name = "plain";
  static constexpr bool uses_neighbours = false;
};
/// Image score = distance of the worst patch, lowered where the matched row of the bank has close company (equation 7).
struct Reweighted {
  static constexpr std::string_view name = "reweighted";
  static constexpr bool uses_neighbours = true;
};

template <class WeightT = Reweighted>
class NearestDistance {
 public:
  static constexpr std::string_view name = "nearest_distance";
  using Weight = WeightT;
  static constexpr int kMaxNeighbours = 64;
  struct Settings {
    int num_neighbours = 9;
    MapSettings map{};
    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      if constexpr (WeightT::uses_neighbours) {
        visitor("num_neighbours", self.num_neighbours, "rows of the bank around the matched one that weigh the image score; 1 for no weight");
      }
      MapSettings::visit(self.map, visitor);
    }
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  static std::string type_name(const Settings&) { return "nearest_distance<" + std::string(WeightT::name) + ">"; }

  explicit NearestDistance(const Settings& settings) : settings_(settings) {}

  static Status validate(const Settings& settings) {
    if (settings.num_neighbours < 1 || settings.num_neighbours > kMaxNeighbours) {
      return {Errc::invalid_argument, "NearestDistance: num_neighbours must be in 1.." + std::to_string(kMaxNeighbours) + ", found " + std::to_string(settings.num_neighbours)};
    }
    return settings.map.validate().with_context("NearestDistance");
  }

  // The bank's own search bounds its memory by (queries, dims, k); both searches fit into the larger one.
  template <class EstimatorT>
  static constexpr std::size_t scratch_bytes(const FeatureShapes& shapes, Shape map, const Settings& settings, int workers) noexcept {
    const std::int64_t patches = shapes[0].positions();
    const std::int64_t dims = shapes[0].channels;
    const std::size_t grid = arena_bytes<float>(patches) + arena_bytes<std::int64_t>(patches) + arena_bytes<float>(kMaxNeighbours) +
                             arena_bytes<std::int64_t>(kMaxNeighbours);
    std::size_t most = EstimatorT::nearest_scratch_bytes(patches, dims, 1, workers);
    const std::size_t around = EstimatorT::nearest_scratch_bytes(1, dims, settings.num_neighbours, workers);
    const std::size_t smooth = metrics::smooth_map_scratch_bytes(map, settings.map);
    most = around > most ? around : most;
    return grid + (smooth > most ? smooth : most);
  }

  template <class EstimatorT>
    requires requires(const EstimatorT& estimator, MatrixView<const float> queries, MatrixView<float> distance, MatrixView<std::int64_t> row, Context& context) {
      { estimator.nearest(queries, 1, distance, row, context) } -> std::same_as<Status>;
      { estimator.bank() } -> std::same_as<MatrixView<const float>>;
    }
  Status measure(const EstimatorT& estimator, const Features& features, MapView<float> map, float& score, Context& context) const {
    const auto& level = features[0];
    const auto patches = level.patches();
    const Arena::Scope scope(context.arena);
    float* distance = context.arena.take<float>(patches.rows);
    auto* row = context.arena.take<std::int64_t>(patches.rows);
    {
      const StageTimer timer(context, Stage::estimator);
      const Arena::Scope searching(context.arena);
      NORMA_CHECK(estimator.nearest(patches, 1, {distance, patches.rows, 1}, {row, patches.rows, 1}, context));
    }
    const StageTimer timer(context, Stage::metric);
    std::int64_t worst = 0;
    for (std::int64_t p = 0; p < patches.rows; ++p) {
      if (!std::isfinite(distance[p])) return {Errc::not_finite, "NearestDistance: the features of patch " + std::to_string(p) + " are not finite numbers"};
      distance[p] = std::sqrt(distance[p]);
      if (distance[p] > distance[worst]) worst = p;
    }
    score = distance[worst];
    if constexpr (WeightT::uses_neighbours) {
      NORMA_TRY(const double weight, neighbour_weight(estimator, patches.block(worst, 1), row[worst], context));
      score = static_cast<float>(weight * static_cast<double>(score));
    }
    NORMA_CHECK(image::resize_bilinear(MapView<const float>(distance, level.height, level.width), map, AlignCorners::no));
    return metrics::smooth_map(map, settings_.map, context);
  }

 private:
  // 1 - softmax over the matched row m* and its nearest rows of the bank, of their distances to the query; 1 for b = 1.
  template <class EstimatorT>
  Result<double> neighbour_weight(const EstimatorT& estimator, MatrixView<const float> query, std::int64_t matched, Context& context) const {
    const auto bank = estimator.bank();
    const int b = static_cast<int>(std::min<std::int64_t>(settings_.num_neighbours, bank.rows));
    if (b == 1) return 1.0;
    float* distance = context.arena.take<float>(kMaxNeighbours);
    auto* row = context.arena.take<std::int64_t>(kMaxNeighbours);
    {
      const Arena::Scope searching(context.arena);
      NORMA_CHECK(estimator.nearest(bank.block(matched, 1), b, {distance, 1, b}, {row, 1, b}, context));
    }
    double all[kMaxNeighbours];
    double largest = 0.0;
    const double matched_distance = row_distance(query, bank.block(matched, 1));
    for (int i = 0; i < b; ++i) {
      all[i] = row_distance(query, bank.block(row[i], 1));
      largest = std::max(largest, all[i]);
    }
    double sum = 0.0;  // shifted by the largest: distances are tens and more, their exponentials overflow
    for (int i = 0; i < b; ++i) sum += std::exp(all[i] - largest);
    return 1.0 - std::exp(matched_distance - largest) / sum;
  }
  static double row_distance(MatrixView<const float> a, MatrixView<const float> b) {
    double sum = 0.0;
    for (std::int64_t c = 0; c < a.cols; ++c) {
      const double difference = static_cast<double>(a(0, c)) - static_cast<double>(b(0, c));
      sum += difference * difference;
    }
    return std::sqrt(sum);
  }

  Settings settings_;
};

}  // namespace norma
