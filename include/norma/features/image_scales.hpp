/// \file
/// Backbone policy of CS-Flow and DifferNet: one network, one layer, three sizes of the same picture. The frame is resized once, to S x S
/// pixels of 8 bits, and normalised; the inputs of S / 2 and S / 4 are every second and every fourth pixel of that one (even rows and
/// columns, nothing averaged: the methods' flows learn the aliasing, so a smoother pyramid would be another method).
/// Source: Rudolph et al., "Same same but DifferNet", WACV 2021, section 3.2 (PooledScales); Rudolph et al., "Fully convolutional cross-scale
///         flows", WACV 2022, section 3.2 (ScaleMaps).
/// Memory: the layer's network is packed once for each size.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <norma/backbones/backbone.hpp>
#include <norma/concepts/backbone.hpp>
#include <norma/features/layers.hpp>
#include <norma/image/preprocess.hpp>
#include <norma/image/rotate.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/nn/executor.hpp>

namespace norma {

inline constexpr int kImageScales = 3;

/// What becomes of the three maps: as they are, fine to coarse, [h, w, C], [h / 2, w / 2, C], [h / 4, w / 4, C].
struct ScaleMaps {
  static constexpr std::string_view name = "maps";
  static constexpr std::int64_t default_side = 768;
  static constexpr std::int64_t side_multiple = 128;
  struct Settings {
    template <class Self, class Visitor>
    static constexpr void visit(Self&, Visitor&&) {}
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  /// EfficientNet-B5's 36th block; of other networks the deepest of the layers that methods with maps take.
  template <class N>
  static constexpr std::string_view default_layer(const N& network) {
    if (network.graph().find_tap("block35") >= 0) return "block35";
    return network.default_taps().back();
  }
  static constexpr std::int64_t views(const Settings&) noexcept { return 1; }
  static Status validate(std::span<const Shape> maps, const Settings&) {
    for (std::size_t i = 1; i < maps.size(); ++i) {
      if (2 * maps[i].height != maps[i - 1].height || 2 * maps[i].width != maps[i - 1].width) {
        return {Errc::invalid_argument, "ScaleMaps: the layer's map must halve with the picture, found " + nn::detail::describe(maps[i - 1]) +
                                            " and then " + nn::detail::describe(maps[i])};
      }
    }
    return {};
  }
  static constexpr FeatureShapes shapes(std::span<const Shape> maps, std::int64_t /*views*/) noexcept {
    FeatureShapes out;
    for (const Shape& map : maps) out.add(map);
    return out;
  }
  static void write(std::size_t scale, std::int64_t /*view*/, TensorView<const float> map, std::span<float* const> levels, Parallel) noexcept {
    std::memcpy(levels[scale], map.data, static_cast<std::size_t>(map.count()) * sizeof(float));
  }
};

/// One vector a view: the mean of each map over its positions, the three behind each other, large picture first. `extract` gives
/// [rotations, 1, 3 C], the picture turned by i * 360 / rotations degrees.
struct PooledScales {
  static constexpr std::string_view name = "pooled";
  static constexpr std::int64_t default_side = 448;
  static constexpr std::int64_t side_multiple = 4;
  struct Settings {
    std::int64_t rotations = 64;
    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      visitor("rotations", self.rotations, "turned copies of an image that its score is the mean of");
    }
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  /// What is averaged for one vector an image; AlexNet: `features`, behind its last pool.
  template <class N>
  static constexpr std::string_view default_layer(const N& network) {
    if constexpr (BackboneNetwork<N>) {
      return network.taps().pooled.front();
    } else {
      return network.default_taps().back();
    }
  }
  static constexpr std::int64_t views(const Settings& settings) noexcept { return settings.rotations; }
  static Status validate(std::span<const Shape>, const Settings& settings) {
    if (settings.rotations >= 1 && settings.rotations <= 4096) return {};
    return {Errc::invalid_argument, "PooledScales: expected rotations within 1 and 4096, found " + std::to_string(settings.rotations)};
  }
  static constexpr FeatureShapes shapes(std::span<const Shape> maps, std::int64_t views) noexcept {
    FeatureShapes out;
    out.add({views, 1, kImageScales * maps[0].channels});
    return out;
  }
  static void write(std::size_t scale, std::int64_t view, TensorView<const float> map, std::span<float* const> levels, Parallel parallel) {
    float* to = levels[0] + (view * kImageScales + static_cast<std::int64_t>(scale)) * map.channels;
    nn::global_average_pool(map, TensorView<float>(to, 1, 1, 1, map.channels), parallel);
  }
};

namespace detail {

/// Every `step`-th pixel of every `step`-th row: what "nearest" resampling to a whole fraction of the size gives.
inline void sample_pixels(TensorView<const float> in, std::int64_t step, TensorView<float> out) noexcept {
  for (std::int64_t y = 0; y < out.height; ++y) {
    const float* from = in.data + y * step * in.width * in.channels;
    float* to = out.data + y * out.width * out.channels;
    for (std::int64_t x = 0; x < out.width; ++x) {
      for (std::int64_t c = 0; c < in.channels; ++c) to[x * in.channels + c] = from[x * step * in.channels + c];
    }
  }
}

}  // namespace detail

/// `NetworkT` is a network type or AnyNetwork; `PolicyT` is ScaleMaps or PooledScales.
template <class NetworkT, class PolicyT = ScaleMaps>
class ImageScales {
  static_assert(detail::check_network<NetworkT>());

 public:
  using input_type = Image;
  using Network = NetworkT;
  static constexpr std::string_view name = "image_scales";

  struct Settings {
    NetworkT network{};
    Preprocess preprocess{};
    Layers layers{};
    typename PolicyT::Settings scales{};

    constexpr Settings() : Settings(NetworkT{}) {}
    /// The network's own normalisation, the method's size and layer.
    constexpr explicit Settings(NetworkT chosen) : network(chosen) {
      const nn::InputSpec input = chosen.input();
      preprocess.resize = 0;
      preprocess.height = preprocess.width = PolicyT::default_side;
      preprocess.order = input.channel_order == nn::ChannelOrder::bgr ? ChannelOrder::bgr : ChannelOrder::rgb;
      preprocess.mean = input.mean;
      preprocess.stddev = input.stddev;
      layers.add(PolicyT::default_layer(chosen));
    }

    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      visitor("layers", self.layers, "the one layer of the network that is tapped");
      visitor("resize", self.preprocess.resize, "shorter side of the resized image in pixels; 0 stretches straight to height x width");
      visitor("height", self.preprocess.height, "side of the largest picture that the network sees; the others have half and a quarter of it");
      visitor("width", self.preprocess.width, "the same: pictures are square");
      visitor("interpolation", self.preprocess.interpolation, "how images are resized");
      visitor("channel_order", self.preprocess.order, "rgb or bgr, as the network was trained");
      visitor("mean", self.preprocess.mean, "subtracted from values of 0..255");
      visitor("stddev", self.preprocess.stddev, "what is left is divided by");
      PolicyT::Settings::visit(self.scales, visitor);
    }
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  static std::string type_name(const Settings& settings) {
    return "image_scales<" + std::string(settings.network.name()) + "," + std::string(PolicyT::name) + ">";
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
  static constexpr FeatureShapes shapes(const Settings& settings) { return PolicyT::shapes(Maps(settings).shape, PolicyT::views(settings.scales)); }
  static constexpr FeatureShapes view_shapes(const Settings& settings) { return PolicyT::shapes(Maps(settings).shape, 1); }
  static constexpr std::size_t scratch_bytes(const Settings& settings, int workers) {
    const Maps maps(settings);
    const std::int64_t side = settings.preprocess.height, pixels = side * side * 3;
    const FeatureShapes levels = PolicyT::shapes(maps.shape, PolicyT::views(settings.scales));
    std::size_t kept = arena_bytes<std::uint8_t>(pixels) + arena_bytes<float>(pixels);
    for (int l = 0; l < levels.count; ++l) kept += arena_bytes<float>(levels[l].count());
    const std::size_t running = arena_bytes<float>((side / 2) * (side / 2) * 3) +
                                std::max({nn::workspace_bytes(maps.plan[0], 1, workers), nn::workspace_bytes(maps.plan[1], 1, workers),
                                          nn::workspace_bytes(maps.plan[2], 1, workers)});
    return kept + std::max({image::preprocess_scratch_bytes(settings.preprocess), arena_bytes<std::uint8_t>(pixels), running});
  }

  static Status validate(const Settings& settings) {
    const Preprocess& p = settings.preprocess;
    NORMA_CHECK(p.validate());
    if (p.height != p.width || p.height % PolicyT::side_multiple != 0) {
      return {Errc::invalid_argument, "ImageScales: expected height and width to be equal and a multiple of " +
                                          std::to_string(PolicyT::side_multiple) + ", found " + std::to_string(p.height) + " x " +
                                          std::to_string(p.width)};
    }
    if (settings.layers.count != 1) {
      return {Errc::invalid_argument, "ImageScales: expected one layer, found " + std::to_string(settings.layers.count)};
    }
    std::array<Shape, kImageScales> maps{};
    const std::array<std::string_view, 1> tap{settings.layers[0]};
    for (std::size_t i = 0; i < kImageScales; ++i) {
      const std::int64_t side = p.height >> i;
      NORMA_TRY(const nn::Plan plan, nn::Plan::create(settings.network.graph(), tap, side, side));
      maps[i] = plan.taps()[0].shape;
    }
    return PolicyT::validate(maps, settings.scales);
  }

  static Result<ImageScales> create(const io::Weights& weights, const Settings& settings) {
    NORMA_CHECK(validate(settings));
    // A weight file with tensors of no node is another network's; a model file holds the estimator's tensors as well.
    const auto surplus = weights.metadata("norma.network").has_value() ? nn::SurplusTensors::allow : nn::SurplusTensors::refuse;
    ImageScales made(settings, weights);
    const std::array<std::string_view, 1> tap{settings.layers[0]};
    for (std::size_t i = 0; i < kImageScales; ++i) {
      const std::int64_t side = settings.preprocess.height >> i;
      NORMA_TRY(made.executors_[i], nn::Executor::create(settings.network.graph(), tap, side, side, weights, surplus));
    }
    return made;
  }

  Status extract(const ImageView& frame, Features& out, Context& context) const {
    const std::int64_t views = PolicyT::views(settings_.scales), side = settings_.preprocess.height;
    const auto bytes = static_cast<std::size_t>(side * side * 3);
    std::uint8_t* pixels = context.arena.template take<std::uint8_t>(static_cast<std::int64_t>(bytes));
    {
      const StageTimer timer(context, Stage::preprocess);
      NORMA_CHECK(image::crop(settings_.preprocess, frame, {pixels, bytes}, context.arena));
    }
    Levels levels(PolicyT::shapes(map_shapes(), views), context.arena);
    const ImageView prepared = image::view(pixels, side, side, 3 * side, PixelFormat::rgb8);
    for (std::int64_t view = 0; view < views; ++view) { NORMA_CHECK(look(prepared, turn(view, views), view, levels.span(), context)); }
    out = levels.features();
    return {};
  }

  /// The frame as the network sees it before normalisation: 8-bit RGB, [S, S, 3].
  Status prepare(const ImageView& frame, Image& out) const { return image::crop(settings_.preprocess, frame, out); }
  /// Features of a prepared image in one view, as view_shapes says: for `turn(i, rotations)` the bits of extract's row i.
  Status extract_view(const ImageView& prepared, const View& view, Features& out, Context& context) const {
    Levels levels(PolicyT::shapes(map_shapes(), 1), context.arena);
    NORMA_CHECK(look(prepared, view, 0, levels.span(), context));
    out = levels.features();
    return {};
  }
  /// View number `index` of `views` over the full circle.
  [[nodiscard]] static constexpr View turn(std::int64_t index, std::int64_t views) noexcept {
    return {static_cast<float>(360.0 * static_cast<double>(index) / static_cast<double>(views))};
  }

  [[nodiscard]] const Settings& settings() const noexcept { return settings_; }
  /// The file that `create` was given.
  [[nodiscard]] const io::Weights& weights() const noexcept { return weights_; }
  [[nodiscard]] Placement placement(std::int64_t height, std::int64_t width) const noexcept {
    return image::placement(settings_.preprocess, height, width);
  }

  /// The tensors that run, as they were in the weight file, and the network's name.
  Status save(io::TensorFileWriter& writer) const {
    NORMA_CHECK(writer.set_metadata("norma.network", settings_.network.name()));
    return executors_[0].export_weights(weights_, writer);
  }

 private:
  // Plans and the layer's shapes for settings that are valid.
  struct Maps {
    std::array<nn::Plan, kImageScales> plan;
    std::array<Shape, kImageScales> shape{};
    constexpr explicit Maps(const Settings& settings) {
      const std::array<std::string_view, 1> tap{settings.layers[0]};
      for (std::size_t i = 0; i < kImageScales; ++i) {
        const std::int64_t side = settings.preprocess.height >> i;
        plan[i] = nn::plan_of(settings.network.graph(), tap, side, side);
        shape[i] = plan[i].taps()[0].shape;
      }
    }
  };
  // Memory of the features in the arena.
  class Levels {
   public:
    Levels(const FeatureShapes& shapes, Arena& arena) : shapes_(shapes) {
      for (int l = 0; l < shapes.count; ++l) data_[static_cast<std::size_t>(l)] = arena.take<float>(shapes[l].count());
    }
    [[nodiscard]] std::span<float* const> span() const noexcept { return {data_.data(), static_cast<std::size_t>(shapes_.count)}; }
    [[nodiscard]] Features features() const noexcept {
      Features out;
      for (int l = 0; l < shapes_.count; ++l) out.add(TensorView<const float>(data_[static_cast<std::size_t>(l)], 1, shapes_[l]));
      return out;
    }

   private:
    FeatureShapes shapes_;
    std::array<float*, kMaxLevels> data_{};
  };

  [[nodiscard]] std::array<Shape, kImageScales> map_shapes() const noexcept {
    std::array<Shape, kImageScales> maps{};
    for (std::size_t i = 0; i < kImageScales; ++i) maps[i] = executors_[i].plan().taps()[0].shape;
    return maps;
  }

  // One view through the three networks.
  Status look(const ImageView& prepared, const View& view, std::int64_t index, std::span<float* const> levels, Context& context) const {
    const Arena::Scope all(context.arena);
    const std::int64_t side = settings_.preprocess.height;
    const TensorView<float> input(context.arena.template take<float>(side * side * 3), 1, side, side, 3);
    {
      const StageTimer timer(context, Stage::preprocess);
      NORMA_CHECK(image::normalise_turned(settings_.preprocess, prepared, static_cast<double>(view.degrees), input, context.arena));
    }
    for (std::size_t i = 0; i < kImageScales; ++i) {
      const Arena::Scope scope(context.arena);
      const StageTimer timer(context, Stage::backbone);
      TensorView<const float> picture = input;
      if (i > 0) {
        const std::int64_t small = side >> i;
        const TensorView<float> sampled(context.arena.template take<float>(small * small * 3), 1, small, small, 3);
        detail::sample_pixels(input, std::int64_t{1} << i, sampled);
        picture = sampled;
      }
      TensorView<const float> map;
      NORMA_CHECK(executors_[i].run(picture, context.arena, context.parallel, {&map, 1}));
      PolicyT::write(i, index, map, levels, context.parallel);
    }
    return {};
  }

  ImageScales(const Settings& settings, const io::Weights& weights) : settings_(settings), weights_(weights) {}

  Settings settings_;
  io::Weights weights_;                               // shares the mapping; read again when a model is saved
  std::array<nn::Executor, kImageScales> executors_;  // one a size, S first
};

}  // namespace norma
