/// \file
/// Backbone policy: what looks at an image and turns it into features.
///
/// | part | meaning |
/// | --- | --- |
/// | `static constexpr std::string_view name` | for reports and model files |
/// | `Settings` | literal struct with `visit` (core/settings.hpp) |
/// | `static constexpr FeatureShapes shapes(const Settings&)` | what `extract` will give |
/// | `static constexpr Shape input_shape(const Settings&)` | size of the anomaly map |
/// | `static constexpr std::size_t scratch_bytes(const Settings&, int workers)` | memory of one `extract`, its outputs included |
/// | `static Status validate(const Settings&)` | refuses settings in one sentence |
/// | `static Result<B> create(const io::Weights&, const Settings&)` | loads once; may allocate |
/// | `Status extract(const ImageView&, Features&, Context&) const` | one frame; const, re-entrant, allocates nothing |
/// | `const Settings& settings() const` | as created |
/// | `Placement placement(height, width) const` | where the map's pixels lie in the frame |
/// | `Status save(io::TensorFileWriter&) const` | what `create` needs, under the same names |
///
/// A backbone whose frames can be shown turned, for estimators that are trained on turned images, has three more parts:
///
/// | part | meaning |
/// | --- | --- |
/// | `static constexpr FeatureShapes view_shapes(const Settings&)` | what `extract_view` gives (`extract` may give several views) |
/// | `Status prepare(const ImageView&, Image&) const` | the 8-bit RGB image [height, width, 3] that is turned and then normalised; may allocate |
/// | `Status extract_view(const ImageView& prepared, const View&, Features&, Context&) const` | one view, in `scratch_bytes`; allocates nothing |
///
/// docs/policies/backbone.md has a ten-line example.
#pragma once

#include <concepts>
#include <cstddef>
#include <string_view>

#include <norma/core/context.hpp>
#include <norma/core/features.hpp>
#include <norma/core/status.hpp>
#include <norma/image/preprocess.hpp>

namespace norma {

namespace io {
class Weights;
class TensorFileWriter;
}  // namespace io

/// How an image is shown in training: turned about its centre after the resize, counter-clockwise, nearest pixel, black beyond the edge.
struct View {
  float degrees = 0.0f;
  friend constexpr bool operator==(const View&, const View&) = default;
};

template <class P>
concept HasPolicyName = requires {
  { P::name } -> std::convertible_to<std::string_view>;
};
namespace detail {
struct IgnoreField {
  template <class... Field>
  constexpr void operator()(Field&&...) const noexcept {}
};
}  // namespace detail
template <class P>
concept HasVisit = requires(typename P::Settings& settings) { P::Settings::visit(settings, detail::IgnoreField{}); };
template <class P>
concept HasSettings = requires { typename P::Settings; } && std::copyable<typename P::Settings> && std::default_initializable<typename P::Settings>;
template <class B>
concept HasShapes = requires(const typename B::Settings& settings) {
  { B::shapes(settings) } -> std::same_as<FeatureShapes>;
  { B::input_shape(settings) } -> std::same_as<Shape>;
};
template <class B>
concept HasScratchBytes = requires(const typename B::Settings& settings) {
  { B::scratch_bytes(settings, 1) } -> std::convertible_to<std::size_t>;
};
template <class B>
concept HasValidate = requires(const typename B::Settings& settings) {
  { B::validate(settings) } -> std::same_as<Status>;
};
template <class B>
concept HasCreateFromWeights = requires(const io::Weights& weights, const typename B::Settings& settings) {
  { B::create(weights, settings) } -> std::same_as<Result<B>>;
};
template <class B>
concept HasExtract = requires(const B& backbone, const ImageView& frame, Features& out, Context& context) {
  { backbone.extract(frame, out, context) } -> std::same_as<Status>;
};
template <class B>
concept HasSettingsAccess = requires(const B& backbone) {
  { backbone.settings() } -> std::convertible_to<const typename B::Settings&>;
};
template <class B>
concept HasPlacement = requires(const B& backbone) {
  { backbone.placement(std::int64_t{}, std::int64_t{}) } -> std::same_as<Placement>;
};
template <class P>
concept HasSave = requires(const P& policy, io::TensorFileWriter& writer) {
  { policy.save(writer) } -> std::same_as<Status>;
};

template <class B>
concept Backbone = HasPolicyName<B> && HasSettings<B> && HasShapes<B> && HasScratchBytes<B> && HasValidate<B> && HasCreateFromWeights<B> &&
                   HasExtract<B> && HasSettingsAccess<B> && HasPlacement<B> && HasSave<B>;

/// The optional parts for turned views.
template <class B>
concept HasViews = requires(const B& backbone, const typename B::Settings& settings, const ImageView& frame, Image& prepared, const View& view,
                            Features& out, Context& context) {
  { B::view_shapes(settings) } -> std::same_as<FeatureShapes>;
  { backbone.prepare(frame, prepared) } -> std::same_as<Status>;
  { backbone.extract_view(frame, view, out, context) } -> std::same_as<Status>;
};

namespace detail {
template <class B>
consteval bool check_backbone() {
  static_assert(HasPolicyName<B>, "Backbone policy: add `static constexpr std::string_view name`");
  static_assert(HasSettings<B>, "Backbone policy: add a copyable, default-constructible struct `Settings`");
  if constexpr (HasSettings<B>) {
    static_assert(HasVisit<B>, "Backbone policy: add `template <class Self, class Visitor> static constexpr void visit(Self&, Visitor&&)` to its Settings");
    static_assert(HasShapes<B>, "Backbone policy: add `static constexpr FeatureShapes shapes(const Settings&)` and `static constexpr Shape input_shape(const Settings&)`");
    static_assert(HasScratchBytes<B>, "Backbone policy: add `static constexpr std::size_t scratch_bytes(const Settings&, int workers)`");
    static_assert(HasValidate<B>, "Backbone policy: add `static Status validate(const Settings&)`");
    static_assert(HasCreateFromWeights<B>, "Backbone policy: add `static Result<Self> create(const io::Weights&, const Settings&)`");
    static_assert(HasSettingsAccess<B>, "Backbone policy: add `const Settings& settings() const`");
  }
  static_assert(HasExtract<B>, "Backbone policy: add `Status extract(const ImageView&, Features&, Context&) const`");
  static_assert(HasPlacement<B>, "Backbone policy: add `Placement placement(std::int64_t height, std::int64_t width) const`");
  static_assert(HasSave<B>, "Backbone policy: add `Status save(io::TensorFileWriter&) const`");
  return true;
}
}  // namespace detail

}  // namespace norma
