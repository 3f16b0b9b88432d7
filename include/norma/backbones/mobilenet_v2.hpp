/// \file
/// MobileNetV2, width 1.0.
/// Source:  Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018; tensor names are torchvision's.
/// Weights: features.0.{0, 1}; features.1.conv.{0.0, 0.1, 1, 2}; features.2..17.conv.{0.0, 0.1, 1.0, 1.1, 2, 3}; features.18.{0, 1};
///          classifier.1
/// Taps:    features.0 .. features.18, avgpool [1, 1, 1280], classifier [1, 1, 1000]
#pragma once

#include <norma/backbones/backbone.hpp>

namespace norma::backbones {

namespace detail {

constexpr int inverted_residual(nn::Builder& b, int x, const nn::Name& p, int out, int stride, int expand) {
  const int in = b.channels(x);
  const int wide = in * expand;
  int y = x;
  int part = 0;
  if (expand != 1) {
    y = b.convolution(y, {.name = p + "0.0", .out_channels = wide, .norm = p + "0.1", .activation = Activation::relu6});
    part = 1;
  }
  const nn::Name depthwise = nn::name(p, part);
  y = b.convolution(y, {.name = depthwise + ".0", .out_channels = wide, .kernel = 3, .stride = stride, .padding = 1, .groups = wide,
                        .norm = depthwise + ".1", .activation = Activation::relu6});
  y = b.convolution(y, {.name = p + (part + 1), .out_channels = out, .norm = p + (part + 2)});
  return stride == 1 && in == out ? b.add(y, x) : y;
}

constexpr auto mobilenet_v2_graph() {
  struct Stage {
    int expand, channels, blocks, stride;
  };
  constexpr Stage kStages[] = {{1, 16, 1, 1}, {6, 24, 2, 2}, {6, 32, 3, 2}, {6, 64, 4, 2}, {6, 96, 3, 1}, {6, 160, 3, 2}, {6, 320, 1, 1}};
  nn::Graph<65, 21> graph;
  nn::Builder b(graph);
  int x = b.convolution(b.input(3), {.name = "features.0.0", .out_channels = 32, .kernel = 3, .stride = 2, .padding = 1,
                                     .norm = "features.0.1", .activation = Activation::relu6});
  b.tap("features.0", x);
  int index = 1;
  for (const Stage& stage : kStages) {
    for (int i = 0; i < stage.blocks; ++i, ++index) {
      const nn::Name feature = nn::name("features.", index);
      x = inverted_residual(b, x, feature + ".conv.", stage.channels, i == 0 ? stage.stride : 1, stage.expand);
      b.tap(feature, x);
    }
  }
  x = b.convolution(x, {.name = "features.18.0", .out_channels = 1280, .norm = "features.18.1", .activation = Activation::relu6});
  b.tap("features.18", x);
  x = b.global_average_pool(x);
  b.tap("avgpool", x);
  b.tap("classifier", b.linear(x, {.name = "classifier.1", .out_channels = 1000}));
  return graph;
}

}  // namespace detail

}  // namespace norma::backbones

namespace norma {

struct MobileNetV2 : backbones::Base<MobileNetV2> {
  static constexpr std::string_view name() noexcept { return "mobilenet_v2"; }
  static constexpr nn::InputSpec input() noexcept { return nn::kImageNet; }
  static constexpr TapChoice taps() noexcept { return {.three_levels = kLevels, .two_levels = kMiddle, .pooled = kPooled}; }
  static consteval auto make_graph() { return backbones::detail::mobilenet_v2_graph(); }

 private:
  static constexpr std::array<std::string_view, 3> kLevels{"features.3", "features.6", "features.13"};
  static constexpr std::array<std::string_view, 2> kMiddle{"features.6", "features.13"};
  static constexpr std::array<std::string_view, 2> kPooled{"avgpool", "features.13"};
};

static_assert(StaticNetwork<MobileNetV2> && BackboneNetwork<MobileNetV2>);

}  // namespace norma
