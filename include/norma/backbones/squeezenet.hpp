/// \file
/// SqueezeNet 1.1.
/// Source:  Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters", arXiv 1602.07360, and its release 1.1;
///          tensor names are torchvision's. Pools round their output size up.
/// Weights: features.0; features.{3, 4, 6, 7, 9, 10, 11, 12}.{squeeze, expand1x1, expand3x3}; classifier.1 (a 1x1 convolution)
/// Taps:    features.1 .. features.12 (a convolution's and a fire module's outputs after their ReLU), avgpool [1, 1, 512],
///          classifier [1, 1, 1000]
#pragma once

#include <norma/backbones/backbone.hpp>

namespace norma::backbones {

namespace detail {

constexpr int fire(nn::Builder& b, int x, const nn::Name& p, int squeeze, int expand) {
  x = b.convolution(x, {.name = p + ".squeeze", .out_channels = squeeze, .bias = true, .activation = Activation::relu});
  const int narrow = b.convolution(x, {.name = p + ".expand1x1", .out_channels = expand, .bias = true, .activation = Activation::relu});
  const int wide = b.convolution(
      x, {.name = p + ".expand3x3", .out_channels = expand, .kernel = 3, .padding = 1, .bias = true, .activation = Activation::relu});
  return b.concat(narrow, wide);
}

constexpr auto squeezenet1_1_graph() {
  // One entry a feature from number 2: a pool (0), or a fire module that squeezes to this many channels and expands to eight times as many.
  constexpr int kSqueeze[] = {0, 16, 16, 0, 32, 32, 0, 48, 48, 64, 64};
  nn::Graph<40, 14> graph;
  nn::Builder b(graph);
  int x = b.convolution(b.input(3), {.name = "features.0", .out_channels = 64, .kernel = 3, .stride = 2, .bias = true,
                                     .activation = Activation::relu});
  b.tap("features.1", x);
  int index = 2;
  for (const int squeeze : kSqueeze) {
    const nn::Name feature = nn::name("features.", index++);
    x = squeeze == 0 ? b.max_pool(x, {.kernel = 3, .stride = 2, .ceil_mode = true}) : fire(b, x, feature, squeeze, 4 * squeeze);
    b.tap(feature, x);
  }
  b.tap("avgpool", b.global_average_pool(x));
  x = b.convolution(x, {.name = "classifier.1", .out_channels = 1000, .bias = true, .activation = Activation::relu});
  b.tap("classifier", b.global_average_pool(x));
  return graph;
}

}  // namespace detail
}  // namespace norma::backbones

namespace norma {

struct SqueezeNet1_1 : backbones::Base<SqueezeNet1_1> {
  static constexpr std::string_view name() noexcept { return "squeezenet1_1"; }
  static constexpr nn::InputSpec input() noexcept { return nn::kImageNet; }
  static constexpr TapChoice taps() noexcept { return {.three_levels = kLevels, .two_levels = kMiddle, .pooled = kPooled}; }
  static consteval auto make_graph() { return backbones::detail::squeezenet1_1_graph(); }

 private:
  static constexpr std::array<std::string_view, 3> kLevels{"features.4", "features.7", "features.12"};
  static constexpr std::array<std::string_view, 2> kMiddle{"features.7", "features.12"};
  static constexpr std::array<std::string_view, 1> kPooled{"avgpool"};
};

static_assert(StaticNetwork<SqueezeNet1_1> && BackboneNetwork<SqueezeNet1_1>);

}  // namespace norma
