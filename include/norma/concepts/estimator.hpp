/// \file
/// Estimator policy: what remembers normality. There are two kinds.
///
/// The *streaming* kind sees each image once, in any order, and two halves of a fit can be merged, so that a fit can be spread over
/// processes and continued later:
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
/// The *training* kind asks for epochs over images that can be looked at again, and can be interrupted and go on bit for bit. It has
/// `name`, `Settings`, `create`, `save` and `load` as above, and
///
/// | part | meaning |
/// | --- | --- |
/// | `Status train(const TrainingImages&, const TrainingContext&)` | from first weights to what is scored against (estimators/trainer.hpp) |
/// | `const TrainingRecord& record() const` | how the training went |
/// | `static constexpr bool wants_views(const Settings&)` | optional: whether `train` asks for turned images; default: no |
///
/// docs/policies/estimator.md has a ten-line example of each.
#pragma once

#include <span>
#include <string>
#include <vector>

#include <norma/concepts/backbone.hpp>
#include <norma/core/progress.hpp>

namespace norma {

/// What `finish` is given.
struct FitContext {
  Parallel parallel{};
  const Observer& observer;
  std::uint64_t seed = 0;
};

/// The normal images of a fit as features, as often as a training asks for them.
class TrainingImages {
 public:
  TrainingImages() = default;
  TrainingImages(const TrainingImages&) = delete;
  TrainingImages& operator=(const TrainingImages&) = delete;
  virtual ~TrainingImages() = default;

  [[nodiscard]] virtual std::int64_t size() const noexcept = 0;
  /// Of one image in one view.
  [[nodiscard]] virtual const FeatureShapes& shapes() const noexcept = 0;
  /// The features of images[i], seen as views[i] (empty: as they are): level l at out[l] + i * shapes()[l].count(). Errors name the image.
  virtual Status gather(std::span<const std::int64_t> images, std::span<const View> views, std::span<float* const> out) const = 0;
};

/// What `train` is given.
struct TrainingContext {
  Parallel parallel{};
  const Observer& observer;
  std::uint64_t seed = 0;
  std::string checkpoint{};          ///< file for the state of the run; where it exists the run goes on from it; empty: none
  std::string identity{};            ///< what a checkpoint must have been written for: detector, settings, weights, images
  double checkpoint_seconds = 60.0;  ///< time between checkpoints; one is always written when the observer asks to stop
};

/// How a training went: one entry for each epoch that was run.
struct TrainingRecord {
  std::vector<float> loss;       ///< mean over the epoch's batches
  std::vector<float> held_out;   ///< loss on the held-out normal images; empty where none were held out
  std::int64_t best_epoch = -1;  ///< epochs done when the weights that were kept were found; -1: the last epoch's were kept
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

template <class E>
concept HasTrain = requires(E& estimator, const TrainingImages& images, const TrainingContext& context) {
  { estimator.train(images, context) } -> std::same_as<Status>;
};
template <class E>
concept HasRecord = requires(const E& estimator) {
  { estimator.record() } -> std::same_as<const TrainingRecord&>;
};

template <class E>
concept TrainingEstimator =
    HasPolicyName<E> && HasSettings<E> && HasCreateFromShapes<E> && HasTrain<E> && HasRecord<E> && HasSave<E> && HasLoadFromWeights<E>;

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
  if constexpr (HasTrain<E>) {
    static_assert(HasRecord<E>, "Estimator policy: add `const TrainingRecord& record() const`");
  } else {
    static_assert(HasObserve<E>,
                  "Estimator policy: add `Status observe(const Features&, std::int64_t image, Parallel)`, or `train` for one that is trained in epochs");
    static_assert(HasMerge<E>, "Estimator policy: add `Status merge(Self&&)`");
    static_assert(HasFinish<E>, "Estimator policy: add `Status finish(const FitContext&)`");
  }
  static_assert(HasSave<E>, "Estimator policy: add `Status save(io::TensorFileWriter&) const`");
  return true;
}
}  // namespace detail

}  // namespace norma
