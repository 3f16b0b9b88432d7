/// \file
/// The usual backbone policy: a pretrained network looked at in the middle. A frame is resized and normalised, the network runs up to
/// the deepest layer that was asked for, and an embedding policy makes features of the tapped layers.
#pragma once

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>

#include <norma/backbones/backbone.hpp>
#include <norma/concepts/backbone.hpp>
#include <norma/features/chosen_channels.hpp>
#include <norma/features/layers.hpp>
#include <norma/features/local_average.hpp>
#include <norma/features/pyramid.hpp>
#include <norma/image/preprocess.hpp>
#include <norma/image/rotate.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/nn/executor.hpp>

namespace norma {

/// Embedding policy: `name`, `Settings`, `default_layers`, and static `validate`, `shapes`, `scratch_bytes`, `create`, member `embed`
/// over the shapes or views of the tapped layers (features/local_average.hpp shows all of them).
template <class E>
concept Embedding = HasPolicyName<E> && HasSettings<E> && requires(std::span<const Shape> taps, const typename E::Settings& settings) {
  { E::validate(taps, settings) } -> std::same_as<Status>;
  { E::shapes(taps, settings) } -> std::same_as<FeatureShapes>;
  { E::scratch_bytes(taps, settings, 1) } -> std::convertible_to<std::size_t>;
  { E::create(taps, settings) } -> std::same_as<Result<E>>;
  { E::default_layers } -> std::convertible_to<std::string_view>;
} && requires(const E& embedding, std::span<const TensorView<const float>> taps, Features& out, Context& context) {
  { embedding.embed(taps, out, context) } -> std::same_as<Status>;
};

/// `NetworkT` is a network type (ResNet18) or AnyNetwork; `EmbeddingT` is LocalAverage, ChosenChannels, Pyramid or your own.
template <class NetworkT, class EmbeddingT = LocalAverage>
class Patches {
  static_assert(detail::check_network<NetworkT>());
  static_assert(Embedding<EmbeddingT>, "Embedding policy: see features/local_average.hpp for the members that Patches needs");

 public:
  using input_type = Image;
  using Network = NetworkT;
  static constexpr std::string_view name = "patches";

  struct Settings {
    NetworkT network{};
    Preprocess preprocess{};
    Layers layers{};
    typename EmbeddingT::Settings embedding{};

    constexpr Settings() : Settings(NetworkT{}) {}
    /// The network's own preprocessing and the layers that methods of this kind usually take.
    constexpr explicit Settings(NetworkT chosen) : network(chosen), preprocess(preprocess_for(chosen)), layers(default_layers(chosen)) {
      if constexpr (requires { EmbeddingT::adjust(chosen, preprocess); }) EmbeddingT::adjust(chosen, preprocess);
    }

    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      visitor("layers", self.layers, "the network's layers that are tapped, fine to coarse, separated by commas");
      visitor("resize", self.preprocess.resize, "shorter side of the resized image in pixels; 0 stretches straight to height x width");
      visitor("height", self.preprocess.height, "height of the centre crop that the network sees");
      visitor("width", self.preprocess.width, "width of the centre crop that the network sees");
      visitor("interpolation", self.preprocess.interpolation, "how images are resized");
      visitor("channel_order", self.preprocess.order, "rgb or bgr, as the network was trained");
      visitor("mean", self.preprocess.mean, "subtracted from values of 0..255");
      visitor("stddev", self.preprocess.stddev, "what is left is divided by");
      EmbeddingT::Settings::visit(self.embedding, visitor);
    }
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  static std::string type_name(const Settings& settings) {
    return "patches<" + std::string(settings.network.name()) + "," + std::string(EmbeddingT::name) + ">";
  }
  /// Default settings for the network that a model file names; for a static network they are the only ones.
  static Result<Settings> stored_settings(const io::Weights& file) {
    if constexpr (StaticNetwork<NetworkT>) {
      return Settings{};
    } else {
      NORMA_TRY(const NetworkT network, NetworkT::find(file.metadata("norma.network").value_or("")));
      return Settings(network);
    }
  }

  static constexpr Shape input_shape(const Settings& settings) noexcept { return {settings.preprocess.height, settings.preprocess.width, 1}; }
  static constexpr FeatureShapes shapes(const Settings& settings) {
    const Taps taps(settings);
    return EmbeddingT::shapes(taps.shapes(), settings.embedding);
  }
  static constexpr std::size_t scratch_bytes(const Settings& settings, int workers) {
    const Taps taps(settings);
    const std::size_t resizing = image::preprocess_scratch_bytes(settings.preprocess);
    const std::size_t turning = arena_bytes<std::uint8_t>(settings.preprocess.height * settings.preprocess.width * 3);
    const std::size_t running = nn::workspace_bytes(taps.plan, 1, workers) + EmbeddingT::scratch_bytes(taps.shapes(), settings.embedding, workers);
    return arena_bytes<float>(settings.preprocess.height * settings.preprocess.width * 3) + std::max({resizing, turning, running});
  }
  static constexpr FeatureShapes view_shapes(const Settings& settings) { return shapes(settings); }

  static Status validate(const Settings& settings) {
    NORMA_CHECK(settings.preprocess.validate());
    std::array<std::string_view, kMaxLevels> names{};
    for (int i = 0; i < settings.layers.count; ++i) names[static_cast<std::size_t>(i)] = settings.layers[i];
    if (settings.layers.count == 0) return {Errc::invalid_argument, "Patches: no layers named, expected at least one"};
    NORMA_TRY(const nn::Plan plan, nn::Plan::create(settings.network.graph(), std::span<const std::string_view>(names.data(), static_cast<std::size_t>(settings.layers.count)),
                                                    settings.preprocess.height, settings.preprocess.width));
    std::array<Shape, kMaxLevels> tap_shapes{};
    for (std::size_t i = 0; i < plan.taps().size(); ++i) tap_shapes[i] = plan.taps()[i].shape;
    return EmbeddingT::validate({tap_shapes.data(), plan.taps().size()}, settings.embedding);
  }

  static Result<Patches> create(const io::Weights& weights, const Settings& settings) {
    NORMA_CHECK(validate(settings));
    const Taps taps(settings);
    NORMA_TRY(EmbeddingT embedding, EmbeddingT::create(taps.shapes(), settings.embedding));
    // A weight file with tensors of no node is another network's; a model file holds the estimator's tensors as well.
    const auto surplus = weights.metadata("norma.network").has_value() ? nn::SurplusTensors::allow : nn::SurplusTensors::refuse;
    NORMA_TRY(nn::Executor executor,
              nn::Executor::create(settings.network.graph(), taps.names(), settings.preprocess.height, settings.preprocess.width, weights, surplus));
    return Patches(settings, weights, std::move(executor), std::move(embedding));
  }

  Status extract(const ImageView& frame, Features& out, Context& context) const {
    const auto& p = settings_.preprocess;
    const TensorView<float> input(context.arena.template take<float>(p.height * p.width * 3), 1, p.height, p.width, 3);
    {
      const StageTimer timer(context, Stage::preprocess);
      const Arena::Scope scope(context.arena);
      NORMA_CHECK(image::preprocess(p, frame, input, context.arena));
    }
    return embed(input, out, context);
  }

  /// The frame as the network sees it before normalisation: 8-bit RGB, [height, width, 3].
  Status prepare(const ImageView& frame, Image& out) const { return image::crop(settings_.preprocess, frame, out); }
  /// Features of a prepared image in one view; those of `View{}` are `extract`'s, bit for bit.
  Status extract_view(const ImageView& prepared, const View& view, Features& out, Context& context) const {
    const auto& p = settings_.preprocess;
    const TensorView<float> input(context.arena.template take<float>(p.height * p.width * 3), 1, p.height, p.width, 3);
    {
      const StageTimer timer(context, Stage::preprocess);
      NORMA_CHECK(image::normalise_turned(p, prepared, view.degrees, input, context.arena));
    }
    return embed(input, out, context);
  }

  [[nodiscard]] const Settings& settings() const noexcept { return settings_; }
  [[nodiscard]] const EmbeddingT& embedding() const noexcept { return embedding_; }
  [[nodiscard]] Placement placement(std::int64_t height, std::int64_t width) const noexcept { return image::placement(settings_.preprocess, height, width); }

  /// The tensors that run, as they were in the weight file, and the network's name.
  Status save(io::TensorFileWriter& writer) const {
    NORMA_CHECK(writer.set_metadata("norma.network", settings_.network.name()));
    NORMA_CHECK(executor_.export_weights(weights_, writer));
    if constexpr (requires { embedding_.channels(); }) {  // so that the drawn subset can be read from the file by other tools
      const auto channels = embedding_.channels();
      NORMA_CHECK(writer.add("features.channels", {static_cast<std::int64_t>(channels.size())}, channels));
    }
    return {};
  }

 private:
  // The tapped layers' names, plan and shapes for settings that are valid.
  struct Taps {
    std::array<std::string_view, kMaxLevels> name{};
    std::array<Shape, kMaxLevels> shape{};
    std::size_t count = 0;
    nn::Plan plan;
    constexpr explicit Taps(const Settings& settings) : count(static_cast<std::size_t>(settings.layers.count)) {
      for (std::size_t i = 0; i < count; ++i) name[i] = settings.layers[static_cast<int>(i)];
      plan = nn::plan_of(settings.network.graph(), names(), settings.preprocess.height, settings.preprocess.width);
      for (std::size_t i = 0; i < count; ++i) shape[i] = plan.taps()[i].shape;
    }
    [[nodiscard]] constexpr std::span<const std::string_view> names() const { return {name.data(), count}; }
    [[nodiscard]] constexpr std::span<const Shape> shapes() const { return {shape.data(), count}; }
  };

  static constexpr Preprocess preprocess_for(const NetworkT& network) {
    const nn::InputSpec input = network.input();
    Preprocess preprocess;
    preprocess.resize = input.resize;
    preprocess.height = preprocess.width = input.size;
    preprocess.order = input.channel_order == nn::ChannelOrder::bgr ? ChannelOrder::bgr : ChannelOrder::rgb;
    preprocess.mean = input.mean;
    preprocess.stddev = input.stddev;
    return preprocess;
  }
  static constexpr Layers default_layers(const NetworkT& network) {
    if constexpr (requires { EmbeddingT::layers(network); }) {
      return EmbeddingT::layers(network);
    } else {
      return listed_layers(network);
    }
  }
  static constexpr Layers listed_layers(const NetworkT& network) {
    Layers layers;
    static_assert(EmbeddingT::default_layers == LocalAverage::default_layers || EmbeddingT::default_layers == ChosenChannels::default_layers ||
                      EmbeddingT::default_layers == Pyramid::default_layers,
                  "Embedding policy: `default_layers` is \"local\", \"pyramid\" or \"pyramid_and_pooled\"");
    if constexpr (BackboneNetwork<NetworkT>) {
      const TapChoice taps = network.taps();
      for (const std::string_view tap : EmbeddingT::default_layers == LocalAverage::default_layers ? taps.two_levels : taps.three_levels) layers.add(tap);
      if (EmbeddingT::default_layers == Pyramid::default_layers) layers.add(taps.pooled[0]);
    } else {
      for (const std::string_view tap : network.default_taps()) layers.add(tap);
    }
    return layers;
  }

  Status embed(TensorView<const float> input, Features& out, Context& context) const {
    std::array<TensorView<const float>, kMaxLevels> taps{};
    const std::span<TensorView<const float>> tapped(taps.data(), static_cast<std::size_t>(settings_.layers.count));
    {
      const StageTimer timer(context, Stage::backbone);
      NORMA_CHECK(executor_.run(input, context.arena, context.parallel, tapped));
    }
    const StageTimer timer(context, Stage::features);
    return embedding_.embed(tapped, out, context);
  }

  Patches(const Settings& settings, const io::Weights& weights, nn::Executor executor, EmbeddingT embedding)
      : settings_(settings), weights_(weights), executor_(std::move(executor)), embedding_(std::move(embedding)) {}

  Settings settings_;
  io::Weights weights_;  // shares the mapping; read again when a model is saved
  nn::Executor executor_;
  EmbeddingT embedding_;
};

}  // namespace norma
