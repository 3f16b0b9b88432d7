/// \file
/// A detector whose method and backbone are chosen while the program runs: for programs that open whatever model file they are
/// given. A thin wrapper over a closed list of static types; docs/concepts/any_detector.md shows how to close over your own list.
#pragma once

#include <array>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <norma/backbones/any_network.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/methods/cflow.hpp>
#include <norma/methods/csflow.hpp>
#include <norma/methods/differnet.hpp>
#include <norma/methods/fastflow.hpp>
#include <norma/methods/padim.hpp>
#include <norma/methods/patchcore.hpp>
#include <norma/methods/spade.hpp>

namespace norma {

/// One setting by name and text, as `{"coreset_ratio", "0.01"}`.
using SettingText = std::pair<std::string, std::string>;

/// A template so that a file which includes this header, but opens no model whose type it does not know, does not compile every method and backbone of the list.
template <class Networks = backbones::detail::BuiltIn>
class BasicAnyDetector {
 public:
  using Execution = Cpu<>;
  using Workspace = norma::Workspace<Execution>;
  using Any = std::variant<PaDiM<AnyNetwork>, PatchCore<AnyNetwork>, SPADE<AnyNetwork>, FastFlow<AnyNetwork>, CFlow<AnyNetwork>, CSFlow<AnyNetwork>,
                           DifferNet<AnyNetwork>>;
  static constexpr std::array<std::string_view, std::variant_size_v<Any>> kMethods{"padim", "patchcore", "spade",    "fastflow",
                                                                                   "cflow", "csflow",    "differnet"};

  /// An empty detector. `settings` override the method's defaults in order. Errors: not_found (method, backbone, layer or setting,
  /// with what there is), invalid_argument (a value that cannot be), and what the weight file lacks.
  static Result<BasicAnyDetector> create(std::string_view method, std::string_view backbone, const io::Weights& weights,
                                    std::span<const SettingText> settings = {}) {
    NORMA_TRY(const AnyNetwork network, AnyNetwork::find<Networks>(backbone));
    return with_method(method, [&]<class D>(std::type_identity<D>) -> Result<BasicAnyDetector> {
      NORMA_TRY(const typename D::Settings chosen, settings_for<D>(network, settings));
      NORMA_TRY(D detector, D::create(weights, chosen));
      return BasicAnyDetector(std::move(detector));
    });
  }

  /// Opens a model file of any method of the list.
  static Result<BasicAnyDetector> open(const std::string& path, const OpenOptions& options = {}) {
    NORMA_TRY(const io::Weights file, io::Weights::open(path));
    return open(file, options);
  }
  static Result<BasicAnyDetector> open(const io::Weights& file, const OpenOptions& options = {}) { return open_from<0>(file, options); }

  /// Every setting of a method: `visitor(name, default value as text, help)`. Defaults are those for `backbone`.
  template <class Visitor>
  static Status for_each_setting(std::string_view method, std::string_view backbone, Visitor&& visitor) {
    NORMA_TRY(const AnyNetwork network, AnyNetwork::find<Networks>(backbone));
    const auto done = with_method(method, [&]<class D>(std::type_identity<D>) -> Result<bool> {
      const typename D::Settings defaults = defaults_for<D>(network);
      D::Settings::visit(defaults, [&](std::string_view name, const auto& value, std::string_view help) { visitor(name, field_text(value), help); });
      return true;
    });
    return done.status();
  }
  /// Bytes that looking at one frame needs with a method's settings.
  static Result<std::size_t> workspace_bytes(std::string_view method, std::string_view backbone, std::span<const SettingText> settings = {}, int threads = 1) {
    NORMA_TRY(const AnyNetwork network, AnyNetwork::find<Networks>(backbone));
    return with_method(method, [&]<class D>(std::type_identity<D>) -> Result<std::size_t> {
      NORMA_TRY(const typename D::Settings chosen, settings_for<D>(network, settings));
      NORMA_CHECK(D::Backbone::validate(chosen.backbone));
      NORMA_CHECK(D::Estimator::create(D::Backbone::shapes(chosen.backbone), chosen.estimator).status());
      NORMA_CHECK(D::Metric::validate(chosen.metric));
      return D::workspace_bytes(chosen, threads);
    });
  }

  /// Calls `f` with the static detector.
  template <class F>
  decltype(auto) visit(F&& f) const { return std::visit(std::forward<F>(f), any_); }
  template <class F>
  decltype(auto) visit(F&& f) { return std::visit(std::forward<F>(f), any_); }

  [[nodiscard]] std::string_view method() const noexcept { return kMethods[any_.index()]; }
  [[nodiscard]] std::string_view backbone() const {
    return visit([](const auto& detector) { return detector.settings().backbone.network.name(); });
  }
  [[nodiscard]] std::string type_name() const {
    return visit([](const auto& detector) { return detector.type_name(detector.settings()); });
  }
  [[nodiscard]] const Preprocess& preprocess() const {
    return visit([](const auto& detector) -> const Preprocess& { return detector.settings().backbone.preprocess; });
  }
  /// The settings as a flat JSON object.
  void write_settings(io::JsonWriter& json) const {
    visit([&](const auto& detector) { io::write_settings(json, detector.settings()); });
  }

  // The detector's own calls; detector.hpp says what they do.
  [[nodiscard]] double fit_bytes(std::int64_t images, std::uint64_t cache_bytes = FitOptions{}.cache_bytes) const {
    return visit([&](const auto& detector) { return detector.fit_bytes(detector.settings(), images, cache_bytes); });
  }
  template <class SourceT>
  Status fit(const SourceT& source, const FitOptions& options = {}) {
    return visit([&](auto& detector) { return detector.fit(source, options); });
  }
  template <class SourceT>
  Status calibrate(const SourceT& source, const CalibrationOptions& options = {}, const FitOptions& run = {}) {
    return visit([&](auto& detector) { return detector.calibrate(source, options, run); });
  }
  [[nodiscard]] const std::optional<Calibration>& calibration() const {
    return visit([](const auto& detector) -> const std::optional<Calibration>& { return detector.calibration(); });
  }
  [[nodiscard]] Workspace make_workspace(int threads = 1) const {
    return visit([&](const auto& detector) { return detector.make_workspace(threads); });
  }
  Result<Verdict> inspect(const ImageView& frame, Workspace& workspace) const {
    return visit([&](const auto& detector) { return detector.inspect(frame, workspace); });
  }
  Result<Verdict> inspect(const Image& image, Workspace& workspace) const { return inspect(image.view(), workspace); }
  [[nodiscard]] Placement placement(std::int64_t height, std::int64_t width) const {
    return visit([&](const auto& detector) { return detector.placement(height, width); });
  }
  [[nodiscard]] Result<Map<float>> map_to_original(MapView<const float> map, std::int64_t height, std::int64_t width) const {
    return visit([&](const auto& detector) { return detector.map_to_original(map, height, width); });
  }
  Status save(const std::string& path) const {
    return visit([&](const auto& detector) { return detector.save(path); });
  }
  Status self_test(double tolerance = 1e-3) const {
    return visit([&](const auto& detector) { return detector.self_test(tolerance); });
  }
  [[nodiscard]] std::pair<float, float> map_range() const {
    return visit([](const auto& detector) { return detector.map_range(); });
  }
  [[nodiscard]] bool localizes() const {
    return visit([](const auto& detector) { return detector.localizes(); });
  }
  [[nodiscard]] const TrainingRecord* training() const {
    return visit([](const auto& detector) { return detector.training(); });
  }
  [[nodiscard]] const Provenance& provenance() const {
    return visit([](const auto& detector) -> const Provenance& { return detector.provenance(); });
  }

 private:
  explicit BasicAnyDetector(Any any) : any_(std::move(any)) {}

  // Runs `f` with the type that `method` names.
  template <class F, std::size_t I = 0>
  static auto with_method(std::string_view method, F&& f) -> decltype(f(std::type_identity<std::variant_alternative_t<0, Any>>{})) {
    if constexpr (I == std::variant_size_v<Any>) {
      std::string known;
      for (const auto name : kMethods) known += (known.empty() ? "" : ", ") + std::string(name);
      return Status(Errc::not_found, "AnyDetector: no method called '" + std::string(method) + "', expected one of " + known);
    } else {
      if (method == kMethods[I]) return f(std::type_identity<std::variant_alternative_t<I, Any>>{});
      return with_method<F, I + 1>(method, std::forward<F>(f));
    }
  }

  template <class D>
  static typename D::Settings defaults_for(const AnyNetwork& network) {
    typename D::Settings settings;
    settings.backbone = typename D::Backbone::Settings(network);
    return settings;
  }
  template <class D>
  static Result<typename D::Settings> settings_for(const AnyNetwork& network, std::span<const SettingText> overrides) {
    typename D::Settings settings = defaults_for<D>(network);
    for (const auto& [name, text] : overrides) {
      const Status set = set_field(settings, name, text);
      if (set.code() == Errc::not_found) {
        std::string known;
        D::Settings::visit(settings, [&](std::string_view field, const auto&, std::string_view) { known += (known.empty() ? "" : ", ") + std::string(field); });
        return Status(Errc::not_found, "AnyDetector: no setting called '" + name + "' here, expected one of " + known);
      }
      NORMA_CHECK(set);
    }
    return settings;
  }

  template <std::size_t I>
  static Result<BasicAnyDetector> open_from(const io::Weights& file, const OpenOptions& options) {
    using D = std::variant_alternative_t<I, Any>;
    if constexpr (I + 1 < std::variant_size_v<Any>) {
      if (D::stored_settings(file).code() == Errc::wrong_type) return open_from<I + 1>(file, options);
    } else if (D::stored_settings(file).code() == Errc::wrong_type && file.metadata("norma.format") == detail::kModelFormat) {
      std::string known;
      for (const auto name : kMethods) known += (known.empty() ? "" : ", ") + std::string(name);
      return Status(Errc::wrong_type, "AnyDetector::open: '" + file.name() + "' holds a " + std::string(file.metadata("norma.type").value_or("model without a type")) +
                                          " in format " + std::string(file.metadata("norma.format_version").value_or("none")) + ", expected one of " + known);
    }
    NORMA_TRY(D detector, D::open(file, options));
    return BasicAnyDetector(std::move(detector));
  }

  Any any_;
};

using AnyDetector = BasicAnyDetector<>;

}  // namespace norma
