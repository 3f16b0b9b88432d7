/// \file
/// EfficientNet-B0 to B7: inverted residuals with squeeze-and-excite and SiLU.
/// Source:  Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019. `efficientnet_b0` .. `b7` have
///          torchvision's tensor names and its symmetric padding; batch norm epsilon 1e-5, from B5 on 1e-3.
///          `efficientnet_b5_same` is B5 as the Python package efficientnet-pytorch publishes it: its tensor names, epsilon 1e-3 and
///          TensorFlow's SAME padding fixed for a 456 x 456 input, whatever the input's size. torchvision's B5 file is a port of that one, so
///          the weights do not tell the two apart; the maps differ. CS-Flow's authors used the package.
/// Weights: features.0.{0, 1}; features.<stage>.<i>.block.{0.0, 0.1, 1.0, 1.1, 2.fc1, 2.fc2, 3.0, 3.1} (without expansion one number less);
///          features.8.{0, 1}; classifier.1
///          or _conv_stem, _bn0; _blocks.<N>.{_expand_conv, _bn0, _depthwise_conv, _bn1, _se_reduce, _se_expand, _project_conv, _bn2};
///          _conv_head, _bn1; _fc
/// Taps:    features.0 .. features.8 (stem, stages, head) in both, block0 .. block<last> counted through all stages, avgpool [1, 1, C],
///          classifier [1, 1, 1000]. B5's block35 (304 channels, stride 32), which CS-Flow reads, ends the sixth stage: features.6.
#pragma once

#include <algorithm>

#include <norma/backbones/backbone.hpp>

namespace norma::backbones {

/// Compound scaling of one variant, in tenths so that widths and depths are exact.
struct EfficientNetSettings {
  int width_tenths = 10;
  int depth_tenths = 10;
  float epsilon = 1e-5f;
  int same_padding_for = 0;  ///< input size for which SAME padding was computed; 0: torchvision's names, (k - 1) / 2 on all sides

  /// Channels scaled and rounded to a multiple of 8, at least 90 % of the exact value.
  [[nodiscard]] constexpr int channels(int base) const noexcept {
    const int tenths = base * width_tenths;
    const int rounded = std::max(8, (tenths + 40) / 80 * 8);
    return 100 * rounded < 9 * tenths ? rounded + 8 : rounded;
  }
  /// Blocks of stage 0..6.
  [[nodiscard]] constexpr int blocks(int stage) const noexcept {
    constexpr std::array<int, 7> kBlocks{1, 2, 2, 3, 3, 4, 1};
    return (kBlocks[static_cast<std::size_t>(stage)] * depth_tenths + 9) / 10;
  }
  [[nodiscard]] constexpr int block_count() const noexcept {
    int count = 0;
    for (int stage = 0; stage < 7; ++stage) count += blocks(stage);
    return count;
  }
  /// Seven nodes a block (the first stage has no expansion), an addition where a block repeats, and five around them.
  [[nodiscard]] constexpr int node_count() const noexcept { return 7 * block_count() - blocks(0) + (block_count() - 7) + 5; }
};

namespace detail {

struct EfficientNetBlock {
  int kernel, stride, expand, channels;
};
inline constexpr std::array<EfficientNetBlock, 7> kEfficientNetStages{
    {{3, 1, 1, 16}, {3, 2, 6, 24}, {5, 2, 6, 40}, {3, 2, 6, 80}, {5, 1, 6, 112}, {5, 2, 6, 192}, {3, 1, 6, 320}}};

/// Writes the layers of one variant; `side` follows the input size that the SAME padding was computed for.
struct EfficientNetWriter {
  nn::Builder& b;
  const EfficientNetSettings& settings;
  int side;

  /// The padding of a layer, and the size behind it.
  constexpr nn::Padding padding(int kernel, int stride) {
    if (side == 0) return (kernel - 1) / 2;
    const int outputs = (side + stride - 1) / stride;
    const int total = std::max((outputs - 1) * stride + kernel - side, 0);
    side = outputs;
    return {total / 2, total / 2, total - total / 2, total - total / 2};
  }
  constexpr int convolution(int x, const nn::Name& name, const nn::Name& norm, int out, int kernel, int stride, int groups,
                            Activation activation) {
    return b.convolution(x, {.name = name, .out_channels = out, .kernel = kernel, .stride = stride, .padding = padding(kernel, stride),
                             .groups = groups, .norm = norm, .epsilon = settings.epsilon, .activation = activation});
  }
  /// `p` ends with a dot. torchvision numbers the parts, and without expansion they begin at the depthwise convolution.
  constexpr int block(int x, const nn::Name& p, const EfficientNetBlock& block) {
    const bool tf = settings.same_padding_for != 0;
    const int in = b.channels(x), wide = in * block.expand;
    int part = 0;
    const auto named = [&](const char* tf_name, const char* suffix) { return tf ? p + tf_name : nn::name(p, part, suffix); };
    int y = x;
    if (block.expand != 1) {
      y = convolution(y, named("_expand_conv", ".0"), named("_bn0", ".1"), wide, 1, 1, 1, Activation::silu);
      ++part;
    }
    y = convolution(y, named("_depthwise_conv", ".0"), named("_bn1", ".1"), wide, block.kernel, block.stride, wide, Activation::silu);
    ++part;
    int gate = b.global_average_pool(y);
    gate = b.convolution(gate, {.name = named("_se_reduce", ".fc1"), .out_channels = std::max(1, in / 4), .bias = true,
                                .activation = Activation::silu});
    gate = b.convolution(gate, {.name = named("_se_expand", ".fc2"), .out_channels = wide, .bias = true, .activation = Activation::sigmoid});
    y = b.multiply(y, gate);
    ++part;
    y = convolution(y, named("_project_conv", ".0"), named("_bn2", ".1"), block.channels, 1, 1, 1, Activation::none);
    return block.stride == 1 && in == block.channels ? b.add(y, x) : y;
  }
};

}  // namespace detail

template <int Capacity, int TapCapacity>
constexpr auto efficientnet_graph(const EfficientNetSettings& settings) {
  nn::Graph<Capacity, TapCapacity> graph;
  nn::Builder b(graph);
  detail::EfficientNetWriter writer{b, settings, settings.same_padding_for};
  const bool tf = settings.same_padding_for != 0;
  int x = writer.convolution(b.input(3), tf ? "_conv_stem" : "features.0.0", tf ? "_bn0" : "features.0.1", settings.channels(32), 3, 2, 1,
                             Activation::silu);
  b.tap("features.0", x);
  int index = 0;
  for (int stage = 0; stage < 7; ++stage) {
    detail::EfficientNetBlock block = detail::kEfficientNetStages[static_cast<std::size_t>(stage)];
    block.channels = settings.channels(block.channels);
    const nn::Name feature = nn::name("features.", stage + 1);
    for (int i = 0; i < settings.blocks(stage); ++i, ++index) {
      x = writer.block(x, tf ? nn::name("_blocks.", index, ".") : nn::name(feature, ".", i, ".block."), block);
      block.stride = 1;
      b.tap(nn::name("block", index), x);
    }
    b.tap(feature, x);
  }
  x = writer.convolution(x, tf ? "_conv_head" : "features.8.0", tf ? "_bn1" : "features.8.1", 4 * b.channels(x), 1, 1, 1, Activation::silu);
  b.tap("features.8", x);
  x = b.global_average_pool(x);
  b.tap("avgpool", x);
  b.tap("classifier", b.linear(x, {.name = tf ? "_fc" : "classifier.1", .out_channels = 1000}));
  return graph;
}

/// Common part of them all: `Self` has `name()`, `settings()`, `kSize` and `kResize`. The default taps are the stages that end at strides 4, 8
/// and 16.
template <class Self>
struct EfficientNet : Base<Self> {
  static constexpr nn::InputSpec input() noexcept {
    nn::InputSpec spec = nn::kImageNet;
    spec.size = Self::kSize;
    spec.resize = Self::kResize;
    return spec;
  }
  static constexpr TapChoice taps() noexcept {
    return {.three_levels = kLevels, .two_levels = std::span(kLevels).template last<2>(), .pooled = kPooled};
  }
  static consteval auto make_graph() {
    constexpr EfficientNetSettings kSettings = Self::settings();
    return efficientnet_graph<kSettings.node_count(), kSettings.block_count() + 11>(kSettings);
  }

 private:
  static constexpr std::array<std::string_view, 3> kLevels{"features.2", "features.3", "features.5"};
  static constexpr std::array<std::string_view, 1> kPooled{"avgpool"};
};

}  // namespace norma::backbones

namespace norma {

struct EfficientNetB0 : backbones::EfficientNet<EfficientNetB0> {
  static constexpr int kSize = 224, kResize = 256;
  static constexpr std::string_view name() noexcept { return "efficientnet_b0"; }
  static constexpr backbones::EfficientNetSettings settings() noexcept { return {}; }
};
struct EfficientNetB1 : backbones::EfficientNet<EfficientNetB1> {
  static constexpr int kSize = 240, kResize = 256;
  static constexpr std::string_view name() noexcept { return "efficientnet_b1"; }
  static constexpr backbones::EfficientNetSettings settings() noexcept { return {.depth_tenths = 11}; }
};
struct EfficientNetB2 : backbones::EfficientNet<EfficientNetB2> {
  static constexpr int kSize = 288, kResize = 288;
  static constexpr std::string_view name() noexcept { return "efficientnet_b2"; }
  static constexpr backbones::EfficientNetSettings settings() noexcept { return {.width_tenths = 11, .depth_tenths = 12}; }
};
struct EfficientNetB3 : backbones::EfficientNet<EfficientNetB3> {
  static constexpr int kSize = 300, kResize = 320;
  static constexpr std::string_view name() noexcept { return "efficientnet_b3"; }
  static constexpr backbones::EfficientNetSettings settings() noexcept { return {.width_tenths = 12, .depth_tenths = 14}; }
};
struct EfficientNetB4 : backbones::EfficientNet<EfficientNetB4> {
  static constexpr int kSize = 380, kResize = 384;
  static constexpr std::string_view name() noexcept { return "efficientnet_b4"; }
  static constexpr backbones::EfficientNetSettings settings() noexcept { return {.width_tenths = 14, .depth_tenths = 18}; }
};
struct EfficientNetB5 : backbones::EfficientNet<EfficientNetB5> {
  static constexpr int kSize = 456, kResize = 456;
  static constexpr std::string_view name() noexcept { return "efficientnet_b5"; }
  static constexpr backbones::EfficientNetSettings settings() noexcept {
    return {.width_tenths = 16, .depth_tenths = 22, .epsilon = 1e-3f};
  }
};
struct EfficientNetB6 : backbones::EfficientNet<EfficientNetB6> {
  static constexpr int kSize = 528, kResize = 528;
  static constexpr std::string_view name() noexcept { return "efficientnet_b6"; }
  static constexpr backbones::EfficientNetSettings settings() noexcept {
    return {.width_tenths = 18, .depth_tenths = 26, .epsilon = 1e-3f};
  }
};
struct EfficientNetB7 : backbones::EfficientNet<EfficientNetB7> {
  static constexpr int kSize = 600, kResize = 600;
  static constexpr std::string_view name() noexcept { return "efficientnet_b7"; }
  static constexpr backbones::EfficientNetSettings settings() noexcept {
    return {.width_tenths = 20, .depth_tenths = 31, .epsilon = 1e-3f};
  }
};
/// B5 with the names and the padding of the package efficientnet-pytorch.
struct EfficientNetB5Same : backbones::EfficientNet<EfficientNetB5Same> {
  static constexpr int kSize = 456, kResize = 456;
  static constexpr std::string_view name() noexcept { return "efficientnet_b5_same"; }
  static constexpr backbones::EfficientNetSettings settings() noexcept {
    return {.width_tenths = 16, .depth_tenths = 22, .epsilon = 1e-3f, .same_padding_for = 456};
  }
};

static_assert(StaticNetwork<EfficientNetB0> && BackboneNetwork<EfficientNetB0>);

}  // namespace norma
