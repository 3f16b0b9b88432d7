/// \file
/// Embedding policies of methods that work on each layer by itself: the tapped layers as they are.
/// Source: Yu et al., "FastFlow", arXiv 2111.07677, section 4 (Levels); Gudovskiy et al., "CFLOW-AD", WACV 2022, section 4.1 (DeepLevels).
#pragma once

#include <span>
#include <string_view>

#include <norma/backbones/backbone.hpp>
#include <norma/core/context.hpp>
#include <norma/core/features.hpp>
#include <norma/core/status.hpp>
#include <norma/features/layers.hpp>
#include <norma/image/preprocess.hpp>

namespace norma {

/// What both have in common. Shapes: taps [1, h_l, w_l, c_l] -> the same levels.
class TappedLayers {
 public:
  struct Settings {
    template <class Self, class Visitor>
    static constexpr void visit(Self&, Visitor&&) {}
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };
  static Status validate(std::span<const Shape> taps, const Settings&) {
    if (taps.empty()) return {Errc::invalid_argument, "Levels: needs at least one layer"};
    return {};
  }
  static constexpr FeatureShapes shapes(std::span<const Shape> taps, const Settings&) noexcept {
    FeatureShapes out;
    for (const Shape& tap : taps) out.add(tap);
    return out;
  }
  static constexpr std::size_t scratch_bytes(std::span<const Shape>, const Settings&, int /*workers*/) noexcept { return 0; }
  Status embed(std::span<const TensorView<const float>> taps, Features& out, Context&) const {
    out = {};
    for (const auto& tap : taps) out.add(tap);
    return {};
  }

 protected:
  /// Straight to side x side.
  static constexpr void stretch(Preprocess& preprocess, std::int64_t side, Interpolation interpolation) noexcept {
    preprocess.resize = 0;
    preprocess.height = preprocess.width = side;
    preprocess.interpolation = interpolation;
  }
};

/// Three layers, fine to coarse, of a convolutional network at 256 x 256; of DeiT and CaiT the one layer that FastFlow takes, behind the
/// network's own last normalisation, at the network's own size.
class Levels : public TappedLayers {
 public:
  static constexpr std::string_view name = "levels";
  static constexpr std::string_view default_layers = "levels";
  static Result<Levels> create(std::span<const Shape> taps, const Settings& settings) {
    NORMA_CHECK(validate(taps, settings));
    return Levels();
  }
  template <BackboneNetwork N>
  static constexpr Layers layers(const N& network) {
    if (const std::string_view single = transformer_layer(network); !single.empty()) return Layers(single);
    Layers all;
    for (const std::string_view tap : network.taps().three_levels) all.add(tap);
    return all;
  }
  template <BackboneNetwork N>
  static constexpr void adjust(const N& network, Preprocess& preprocess) {
    const bool own_size = !transformer_layer(network).empty();
    stretch(preprocess, own_size ? network.input().size : 256, preprocess.interpolation);
  }

 private:
  template <class N>
  static constexpr std::string_view transformer_layer(const N& network) {
    for (const std::string_view tap : {std::string_view("block41.norm"), std::string_view("block8.norm")}) {
      if (network.graph().find_tap(tap) >= 0) return tap;
    }
    return {};
  }
};

/// Three layers that end with the network's deepest, at 256 x 256 by Lanczos resampling.
class DeepLevels : public TappedLayers {
 public:
  static constexpr std::string_view name = "deep_levels";
  static constexpr std::string_view default_layers = "deep_levels";
  static Result<DeepLevels> create(std::span<const Shape> taps, const Settings& settings) {
    NORMA_CHECK(validate(taps, settings));
    return DeepLevels();
  }
  template <BackboneNetwork N>
  static constexpr Layers layers(const N& network) {
    const TapChoice taps = network.taps();
    return Layers(taps.three_levels[1], taps.three_levels[2], deepest_map(network));
  }
  template <BackboneNetwork N>
  static constexpr void adjust(const N&, Preprocess& preprocess) {
    stretch(preprocess, 256, Interpolation::pillow_lanczos);
  }

 private:
  /// What the network's pooled vector is the global average of; the pooled layer itself where it is a map.
  template <class N>
  static constexpr std::string_view deepest_map(const N& network) {
    const std::string_view pooled = network.taps().pooled[0];
    const nn::GraphView graph = network.graph();
    const int node = graph.find_tap(pooled);
    if (node < 0 || graph[node].op != nn::Op::global_average_pool) return pooled;
    for (const nn::Tap& tap : graph.taps) {
      if (tap.node == graph[node].inputs[0]) return tap.name.view();
    }
    return pooled;
  }
};

}  // namespace norma
