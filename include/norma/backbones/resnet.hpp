/// \file
/// Residual networks and their wide variants.
/// Source:  He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; Zagoruyko & Komodakis, "Wide Residual Networks",
///          BMVC 2016. Layout and tensor names are torchvision's: the stride of a bottleneck sits on its 3x3 convolution.
///          `resnet50_caffe` is the first publication's network, with the stride on the first 1x1 convolution.
/// Weights: conv1, bn1, layer1..layer4.<block>.{conv1, bn1, conv2, bn2[, conv3, bn3][, downsample.0, downsample.1]}, fc
/// Taps:    maxpool, layer1, layer2, layer3, layer4, avgpool [1, 1, C], fc [1, 1, 1000]
#pragma once

#include <norma/backbones/backbone.hpp>

namespace norma::backbones {

/// What tells one residual network from another.
struct ResNetSettings {
  std::array<int, 4> blocks{};
  bool bottleneck = true;       ///< 1x1, 3x3, 1x1 with four times the channels at the end; else two 3x3
  int width = 64;               ///< channels of the 3x3 convolutions in the first stage; torchvision's width_per_group
  bool stride_on_first = false; ///< of a bottleneck

  /// Nodes of the graph: convolutions with their additions, one shortcut convolution a stage, and the five around them.
  [[nodiscard]] constexpr int node_count() const noexcept {
    int count = 5;
    for (const int stage : blocks) count += stage * (bottleneck ? 4 : 3);
    return count + (bottleneck ? 4 : 3);
  }
};

namespace detail {

constexpr int resnet_block(nn::Builder& b, int x, const nn::Name& p, const ResNetSettings& settings, int planes, int stride) {
  const int out = settings.bottleneck ? 4 * planes : planes;
  int y = x;
  if (settings.bottleneck) {
    const int wide = planes * settings.width / 64;
    y = b.convolution(y, {.name = p + "conv1", .out_channels = wide, .stride = settings.stride_on_first ? stride : 1, .norm = p + "bn1",
                          .activation = Activation::relu});
    y = b.convolution(y, {.name = p + "conv2", .out_channels = wide, .kernel = 3, .stride = settings.stride_on_first ? 1 : stride,
                          .padding = 1, .norm = p + "bn2", .activation = Activation::relu});
    y = b.convolution(y, {.name = p + "conv3", .out_channels = out, .norm = p + "bn3"});
  } else {
    y = b.convolution(y, {.name = p + "conv1", .out_channels = out, .kernel = 3, .stride = stride, .padding = 1, .norm = p + "bn1",
                          .activation = Activation::relu});
    y = b.convolution(y, {.name = p + "conv2", .out_channels = out, .kernel = 3, .padding = 1, .norm = p + "bn2"});
  }
  int shortcut = x;
  if (stride != 1 || b.channels(x) != out) {
    shortcut = b.convolution(x, {.name = p + "downsample.0", .out_channels = out, .stride = stride, .norm = p + "downsample.1"});
  }
  return b.add(y, shortcut, Activation::relu);
}

}  // namespace detail

/// The whole network with its classifier; what no tap needs is neither loaded nor run.
template <int Capacity>
constexpr nn::Graph<Capacity, 7> resnet_graph(const ResNetSettings& settings) {
  nn::Graph<Capacity, 7> graph;
  nn::Builder b(graph);
  int x = b.input(3);
  x = b.convolution(x, {.name = "conv1", .out_channels = 64, .kernel = 7, .stride = 2, .padding = 3, .norm = "bn1",
                        .activation = Activation::relu});
  x = b.max_pool(x, {.kernel = 3, .stride = 2, .padding = 1});
  b.tap("maxpool", x);
  for (int stage = 0; stage < 4; ++stage) {
    const nn::Name layer = nn::name("layer", stage + 1);
    for (int i = 0; i < settings.blocks[static_cast<std::size_t>(stage)]; ++i) {
      x = detail::resnet_block(b, x, nn::name(layer, ".", i, "."), settings, 64 << stage, i == 0 && stage > 0 ? 2 : 1);
    }
    b.tap(layer, x);
  }
  x = b.global_average_pool(x);
  b.tap("avgpool", x);
  b.tap("fc", b.linear(x, {.name = "fc", .out_channels = 1000}));
  return graph;
}

/// Common part of the residual networks: `Self` has `name()` and `settings()`.
template <class Self>
struct ResNet : Base<Self> {
  static constexpr nn::InputSpec input() noexcept { return nn::kImageNet; }
  static constexpr TapChoice taps() noexcept { return {.three_levels = kLevels, .two_levels = kMiddle, .pooled = kPooled}; }
  static consteval auto make_graph() {
    constexpr ResNetSettings kSettings = Self::settings();
    return resnet_graph<kSettings.node_count()>(kSettings);
  }

 private:
  static constexpr std::array<std::string_view, 3> kLevels{"layer1", "layer2", "layer3"};
  static constexpr std::array<std::string_view, 2> kMiddle{"layer2", "layer3"};
  static constexpr std::array<std::string_view, 2> kPooled{"avgpool", "layer3"};  // files without layer4 exist
};

}  // namespace norma::backbones

namespace norma {

struct ResNet18 : backbones::ResNet<ResNet18> {
  static constexpr std::string_view name() noexcept { return "resnet18"; }
  static constexpr backbones::ResNetSettings settings() noexcept { return {.blocks = {2, 2, 2, 2}, .bottleneck = false}; }
};
struct ResNet34 : backbones::ResNet<ResNet34> {
  static constexpr std::string_view name() noexcept { return "resnet34"; }
  static constexpr backbones::ResNetSettings settings() noexcept { return {.blocks = {3, 4, 6, 3}, .bottleneck = false}; }
};
struct ResNet50 : backbones::ResNet<ResNet50> {
  static constexpr std::string_view name() noexcept { return "resnet50"; }
  static constexpr backbones::ResNetSettings settings() noexcept { return {.blocks = {3, 4, 6, 3}}; }
};
struct ResNet101 : backbones::ResNet<ResNet101> {
  static constexpr std::string_view name() noexcept { return "resnet101"; }
  static constexpr backbones::ResNetSettings settings() noexcept { return {.blocks = {3, 4, 23, 3}}; }
};
struct ResNet152 : backbones::ResNet<ResNet152> {
  static constexpr std::string_view name() noexcept { return "resnet152"; }
  static constexpr backbones::ResNetSettings settings() noexcept { return {.blocks = {3, 8, 36, 3}}; }
};
/// Stride on the first 1x1 convolution; input BGR 0..255 minus the mean.
struct ResNet50Caffe : backbones::ResNet<ResNet50Caffe> {
  static constexpr std::string_view name() noexcept { return "resnet50_caffe"; }
  static constexpr backbones::ResNetSettings settings() noexcept { return {.blocks = {3, 4, 6, 3}, .stride_on_first = true}; }
  static constexpr nn::InputSpec input() noexcept {
    return {.mean = {103.939f, 116.779f, 123.68f}, .stddev = {1.0f, 1.0f, 1.0f}, .channel_order = nn::ChannelOrder::bgr};
  }
};
struct WideResNet50 : backbones::ResNet<WideResNet50> {
  static constexpr std::string_view name() noexcept { return "wide_resnet50_2"; }
  static constexpr backbones::ResNetSettings settings() noexcept { return {.blocks = {3, 4, 6, 3}, .width = 128}; }
};
struct WideResNet101 : backbones::ResNet<WideResNet101> {
  static constexpr std::string_view name() noexcept { return "wide_resnet101_2"; }
  static constexpr backbones::ResNetSettings settings() noexcept { return {.blocks = {3, 4, 23, 3}, .width = 128}; }
};

static_assert(StaticNetwork<ResNet18> && BackboneNetwork<ResNet18>);

}  // namespace norma
