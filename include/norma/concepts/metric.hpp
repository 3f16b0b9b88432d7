/// \file
/// Metric policy: what measures the distance from normality, as a map and as one score an image. Larger is more anomalous.
///
/// | part | meaning |
/// | --- | --- |
/// | `static constexpr std::string_view name` | for reports and model files |
/// | `Settings` | literal struct with `visit` (core/settings.hpp) |
/// | `template <class Estimator> static constexpr std::size_t scratch_bytes(const FeatureShapes&, Shape map, const Settings&, int workers)` | memory of one `measure` |
/// | `static Status validate(const Settings&)` | refuses settings in one sentence |
/// | `Metric(const Settings&)` | cheap |
/// | `Status measure(const Estimator&, const Features&, MapView<float> map, float& score, Context&) const` | const, re-entrant, allocates nothing |
///
/// Where the memory also depends on the estimator's settings, `scratch_bytes` takes them as fourth argument, before `workers`.
/// A metric that scores an image as a whole and fills the map with that score says so with `static constexpr bool localizes(const Settings&)`,
/// false; then no pixel figures are made of its maps. A metric says with `measure`'s constraint which estimators it fits.
/// docs/policies/metric.md has a ten-line example.
#pragma once

#include <norma/concepts/estimator.hpp>

namespace norma {

template <class M, class E>
concept ScratchDependsOnEstimator =
    requires(const FeatureShapes& shapes, Shape map, const typename M::Settings& settings, const typename E::Settings& estimator) {
      { M::template scratch_bytes<E>(shapes, map, settings, estimator, 1) } -> std::convertible_to<std::size_t>;
    };
template <class M, class E>
concept HasMetricScratchBytes =
    ScratchDependsOnEstimator<M, E> || requires(const FeatureShapes& shapes, Shape map, const typename M::Settings& settings) {
  { M::template scratch_bytes<E>(shapes, map, settings, 1) } -> std::convertible_to<std::size_t>;
};
template <class M, class E>
concept Measures = requires(const M& metric, const E& estimator, const Features& features, MapView<float> map, float& score, Context& context) {
  { metric.measure(estimator, features, map, score, context) } -> std::same_as<Status>;
};

template <class M, class E>
concept MetricFor = HasPolicyName<M> && HasSettings<M> && HasValidate<M> && HasMetricScratchBytes<M, E> &&
                    std::constructible_from<M, const typename M::Settings&> && Measures<M, E>;

namespace detail {
template <class M, class E>
consteval bool check_metric() {
  static_assert(HasPolicyName<M>, "Metric policy: add `static constexpr std::string_view name`");
  static_assert(HasSettings<M>, "Metric policy: add a copyable, default-constructible struct `Settings`");
  if constexpr (HasSettings<M>) {
    static_assert(HasVisit<M>, "Metric policy: add `template <class Self, class Visitor> static constexpr void visit(Self&, Visitor&&)` to its Settings");
    static_assert(HasMetricScratchBytes<M, E> || !Measures<M, E>,
                  "Metric policy: add `template <class Estimator> static constexpr std::size_t scratch_bytes(const FeatureShapes&, Shape map, const Settings&, int workers)`");
    static_assert(HasValidate<M>, "Metric policy: add `static Status validate(const Settings&)`");
    static_assert(std::constructible_from<M, const typename M::Settings&>, "Metric policy: add a constructor that takes `const Settings&`");
  }
  static_assert(Measures<M, E>,
                "Metric and Estimator do not fit: the Metric needs `Status measure(const Estimator&, const Features&, MapView<float>, float&, Context&) const` "
                "for this Estimator (NearestDistance goes with MemoryBank, MahalanobisDistance with PositionGaussian, GalleryDistance with ImageGallery)");
  return true;
}
}  // namespace detail

}  // namespace norma
