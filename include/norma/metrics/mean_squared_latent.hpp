/// \file
/// One score an image: the mean of the squared latents, over all views and dimensions. Nothing is said about where: the map is that score
/// everywhere (`localizes` is false), and what is measured on its pixels means nothing. A flow stretches what it has never seen without limit, and
/// scores of 10^15 are not rare; what float cannot hold is the largest float, not an error.
/// Source: Rudolph et al., "Same same but DifferNet", WACV 2021, section 3.4 (the mean over turned copies). Units: 1 for latents of a standard
///         normal distribution, higher is more anomalous.
#pragma once

#include <algorithm>
#include <limits>
#include <string>

#include <norma/concepts/metric.hpp>
#include <norma/core/finite.hpp>

namespace norma {

class MeanSquaredLatent {
 public:
  static constexpr std::string_view name = "mean_squared_latent";
  struct Settings {
    template <class Self, class Visitor>
    static constexpr void visit(Self&, Visitor&&) {}
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };
  /// Whether the map says where.
  static constexpr bool localizes(const Settings&) noexcept { return false; }

  explicit MeanSquaredLatent(const Settings&) {}
  static Status validate(const Settings&) { return {}; }

  template <class EstimatorT>
  static constexpr std::size_t scratch_bytes(const FeatureShapes& shapes, Shape /*map*/, const Settings&,
                                             const typename EstimatorT::Settings& estimator, int workers) noexcept {
    std::int64_t numbers = 0;
    for (int l = 0; l < shapes.count; ++l) numbers = std::max(numbers, shapes[l].count());
    return arena_bytes<float>(numbers) + EstimatorT::latent_scratch_bytes(shapes, estimator, workers);
  }

  template <class EstimatorT>
  requires requires(const EstimatorT& estimator, TensorView<const float> features, TensorView<float> z, Context& context) {
    { estimator.latent(0, features, z, nullptr, context) } -> std::same_as<Status>;
  }
  Status measure(const EstimatorT& estimator, const Features& features, MapView<float> map, float& score, Context& context) const {
    double squares = 0.0;
    std::int64_t numbers = 0;
    for (int l = 0; l < features.count; ++l) {
      const StageTimer timer(context, Stage::estimator);
      const Arena::Scope scope(context.arena);
      const Shape shape = features[l].shape();
      if (first_not_finite({features[l].data, static_cast<std::size_t>(shape.count())}) >= 0) {
        return {Errc::not_finite, "MeanSquaredLatent: the features of level " + std::to_string(l) + " are not finite numbers"};
      }
      const TensorView<float> z(context.arena.template take<float>(shape.count()), 1, shape);
      NORMA_CHECK(estimator.latent(l, features[l], z, nullptr, context));
      for (std::int64_t i = 0; i < shape.count(); ++i) squares += static_cast<double>(z.data[i]) * static_cast<double>(z.data[i]);
      numbers += shape.count();
    }
    const StageTimer timer(context, Stage::metric);
    constexpr double kMost = std::numeric_limits<float>::max();
    const double mean = squares / static_cast<double>(numbers);
    score = static_cast<float>(mean < kMost ? mean : kMost);  // also where the flow itself has overflown
    for (std::int64_t r = 0; r < map.rows; ++r) std::fill_n(map.data + r * map.stride, map.cols, score);
    return {};
  }
};

}  // namespace norma
