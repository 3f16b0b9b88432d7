/// \file
/// Estimator policy: what remembers normality. The streaming kind sees each image once, in any order, and two halves of a fit can be
/// merged, so that a fit can be spread over processes and continued later.
///
/// | part | meaning |
/// | --- | --- |
/// | `static constexpr std::string_view name` | for reports and model files |
/// | `Settings` | literal struct with `visit` (core/settings.hpp) |
/// | `static Result<E> create(const FeatureShapes&, const Settings&)` | empty, ready to observe; refuses shapes or settings that cannot work |
/// | `Status observe(const Features&, std::int64_t image, Parallel)` | one normal image; on error nothing was added |
/// | `Status merge(E&&)` | takes over what another one has observed |
/// | `Status finish(const FitContext&)` | from observations to what is scored against |
/// | `Status save(io::TensorFileWriter&) const` | tensors named `estimator.*` |
/// | `static Result<E> load(const io::Weights&, const FeatureShapes&, const Settings&, Parallel)` | the reverse |
///
/// docs/policies/estimator.md has a ten-line example.
#pragma once

#include <norma/concepts/backbone.hpp>
#include <norma/core/progress.hpp>

namespace norma {

/// What `finish` is given.
struct FitContext {
  Parallel parallel{};
  const Observer& observer;
  std::uint64_t seed = 0;
};

template <class E>
concept HasCreateFromShapes = requires(const FeatureShapes& shapes, const typename E::Settings& settings) {
  { E::create(shapes, settings) } -> std::same_as<Result<E>>;
};
template <class E>
concept HasObserve = requires(E& estimator, const Features& features) {
  { estimator.observe(features, std::int64_t{}, Parallel{}) } -> std::same_as<Status>;
};
template <class E>
concept HasMerge = requires(E& estimator, E&& other) {
  { estimator.merge(static_cast<E&&>(other)) } -> std::same_as<Status>;
};
template <class E>
concept HasFinish = requires(E& estimator, const FitContext& context) {
  { estimator.finish(context) } -> std::same_as<Status>;
};
template <class E>
concept HasLoadFromWeights = requires(const io::Weights& weights, const FeatureShapes& shapes, const typename E::Settings& settings) {
  { E::load(weights, shapes, settings, Parallel{}) } -> std::same_as<Result<E>>;
};

template <class E>
concept StreamingEstimator =
    HasPolicyName<E> && HasSettings<E> && HasCreateFromShapes<E> && HasObserve<E> && HasMerge<E> && HasFinish<E> && HasSave<E> && HasLoadFromWeights<E>;

namespace detail {
template <class E>
consteval bool check_estimator() {
  static_assert(HasPolicyName<E>, "Estimator policy: add `static constexpr std::string_view name`");
  static_assert(HasSettings<E>, "Estimator policy: add a copyable, default-constructible struct `Settings`");
  if constexpr (HasSettings<E>) {
    static_assert(HasVisit<E>, "Estimator policy: add `template <class Self, class Visitor> static constexpr void visit(Self&, Visitor&&)` to its Settings");
    static_assert(HasCreateFromShapes<E>, "Estimator policy: add `static Result<Self> create(const FeatureShapes&, const Settings&)`");
    static_assert(HasLoadFromWeights<E>, "Estimator policy: add `static Result<Self> load(const io::Weights&, const FeatureShapes&, const Settings&, Parallel)`");
  }
  static_assert(HasObserve<E>, "Estimator policy: add `Status observe(const Features&, std::int64_t image, Parallel)`");
  static_assert(HasMerge<E>, "Estimator policy: add `Status merge(Self&&)`");
  static_assert(HasFinish<E>, "Estimator policy: add `Status finish(const FitContext&)`");
  static_assert(HasSave<E>, "Estimator policy: add `Status save(io::TensorFileWriter&) const`");
  return true;
}
}  // namespace detail

}  // namespace norma
