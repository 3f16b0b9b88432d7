/// \file
/// AlexNet in its one-tower form.
/// Source:  Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997; layout and tensor names are
///          torchvision's.
/// Weights: features.{0, 3, 6, 8, 10}; classifier.{1, 4, 6}
/// Taps:    features.1, 4, 7, 9, 11 (convolutions after their ReLU), features.2, 5, 12 (pools), features (the last of them, which DifferNet
///          reads), avgpool [6, 6, 256], classifier [1, 1, 1000]
#pragma once

#include <norma/backbones/backbone.hpp>

namespace norma::backbones::detail {

constexpr auto alexnet_graph() {
  nn::Graph<16, 11> graph;
  nn::Builder b(graph);
  const auto convolution = [&](int x, int index, int out, int kernel, int stride, int padding) {
    x = b.convolution(x, {.name = nn::name("features.", index), .out_channels = out, .kernel = kernel, .stride = stride, .padding = padding,
                          .bias = true, .activation = Activation::relu});
    b.tap(nn::name("features.", index + 1), x);
    return x;
  };
  const auto pool = [&](int x, int index) {
    x = b.max_pool(x, {.kernel = 3, .stride = 2});
    b.tap(nn::name("features.", index), x);
    return x;
  };
  int x = convolution(b.input(3), 0, 64, 11, 4, 2);
  x = pool(x, 2);
  x = convolution(x, 3, 192, 5, 1, 2);
  x = pool(x, 5);
  x = convolution(x, 6, 384, 3, 1, 1);
  x = convolution(x, 8, 256, 3, 1, 1);
  x = convolution(x, 10, 256, 3, 1, 1);
  x = pool(x, 12);
  b.tap("features", x);
  x = b.adaptive_average_pool(x, 6);
  b.tap("avgpool", x);
  x = b.flatten(x, 6);
  x = b.linear(x, {.name = "classifier.1", .out_channels = 4096, .activation = Activation::relu});
  x = b.linear(x, {.name = "classifier.4", .out_channels = 4096, .activation = Activation::relu});
  b.tap("classifier", b.linear(x, {.name = "classifier.6", .out_channels = 1000}));
  return graph;
}

}  // namespace norma::backbones::detail

namespace norma {

struct AlexNet : backbones::Base<AlexNet> {
  static constexpr std::string_view name() noexcept { return "alexnet"; }
  static constexpr nn::InputSpec input() noexcept { return nn::kImageNet; }
  static constexpr TapChoice taps() noexcept { return {.three_levels = kLevels, .two_levels = kMiddle, .pooled = kPooled}; }
  static consteval auto make_graph() { return backbones::detail::alexnet_graph(); }

 private:
  static constexpr std::array<std::string_view, 3> kLevels{"features.1", "features.4", "features.11"};
  static constexpr std::array<std::string_view, 2> kMiddle{"features.4", "features.11"};
  static constexpr std::array<std::string_view, 1> kPooled{"features"};
};

static_assert(StaticNetwork<AlexNet> && BackboneNetwork<AlexNet>);

}  // namespace norma
