/// \file
/// VGG-16 and VGG-19, with and without batch norm.
/// Source:  Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015; layout and tensor names are
///          torchvision's. `vgg19_reflect` is VGG-19 (the same weight files) with mirrored borders before every convolution, as DFR uses it:
///          Yang et al., "DFR: Deep Feature Reconstruction for Unsupervised Anomaly Segmentation", arXiv 2012.07122.
/// Weights: features.<N> of convolutions (and of their batch norms, one number later), classifier.{0, 3, 6}; N counts convolutions, norms,
///          ReLUs and pools
/// Taps:    relu1_1, relu1_2, relu2_1 .. relu5_3 (VGG-19: relu5_4), pool1 .. pool5, features (pool5), avgpool [7, 7, 512],
///          classifier [1, 1, 1000]
#pragma once

#include <norma/backbones/backbone.hpp>

namespace norma::backbones {

struct VGGSettings {
  int deep_convolutions = 3;  ///< of each of the last three stages; the first two have two
  bool batch_norm = false;
  bool mirrored_border = false;

  [[nodiscard]] constexpr int convolutions() const noexcept { return 4 + 3 * deep_convolutions; }
};

/// Convolutions, five pools, the input and five nodes for the classifier.
template <int Convolutions>
constexpr auto vgg_graph(const VGGSettings& settings) {
  nn::Graph<Convolutions + 11, Convolutions + 8> graph;
  nn::Builder b(graph);
  int x = b.input(3);
  int feature = 0;
  for (int stage = 0; stage < 5; ++stage) {
    const int count = stage < 2 ? 2 : settings.deep_convolutions;
    for (int i = 0; i < count; ++i) {
      x = b.convolution(x, {.name = nn::name("features.", feature), .out_channels = stage < 3 ? 64 << stage : 512, .kernel = 3,
                            .padding = settings.mirrored_border ? nn::Padding::reflect(1) : nn::Padding(1), .bias = true,
                            .norm = settings.batch_norm ? nn::name("features.", feature + 1) : nn::Name(), .activation = Activation::relu});
      feature += settings.batch_norm ? 3 : 2;
      b.tap(nn::name("relu", stage + 1, "_", i + 1), x);
    }
    x = b.max_pool(x, {.kernel = 2, .stride = 2});
    ++feature;
    b.tap(nn::name("pool", stage + 1), x);
  }
  b.tap("features", x);
  x = b.adaptive_average_pool(x, 7);
  b.tap("avgpool", x);
  x = b.flatten(x, 7);
  x = b.linear(x, {.name = "classifier.0", .out_channels = 4096, .activation = Activation::relu});
  x = b.linear(x, {.name = "classifier.3", .out_channels = 4096, .activation = Activation::relu});
  b.tap("classifier", b.linear(x, {.name = "classifier.6", .out_channels = 1000}));
  return graph;
}

/// Common part of them all: `Self` has `name()` and `settings()`. The default taps are the last convolutions at strides 4, 8 and 16.
template <class Self>
struct VGG : Base<Self> {
  static constexpr nn::InputSpec input() noexcept { return nn::kImageNet; }
  static constexpr TapChoice taps() noexcept {
    const auto levels = std::span(kLevels).subspan(Self::settings().deep_convolutions == 4 ? 3 : 0, 3);
    return {.three_levels = levels, .two_levels = levels.last(2), .pooled = kPooled};
  }
  static consteval auto make_graph() {
    constexpr VGGSettings kSettings = Self::settings();
    return vgg_graph<kSettings.convolutions()>(kSettings);
  }

 private:
  static constexpr std::array<std::string_view, 6> kLevels{"relu3_3", "relu4_3", "relu5_3", "relu3_4", "relu4_4", "relu5_4"};
  static constexpr std::array<std::string_view, 1> kPooled{"features"};
};

}  // namespace norma::backbones

namespace norma {

struct VGG16 : backbones::VGG<VGG16> {
  static constexpr std::string_view name() noexcept { return "vgg16"; }
  static constexpr backbones::VGGSettings settings() noexcept { return {.deep_convolutions = 3}; }
};
struct VGG16BatchNorm : backbones::VGG<VGG16BatchNorm> {
  static constexpr std::string_view name() noexcept { return "vgg16_bn"; }
  static constexpr backbones::VGGSettings settings() noexcept { return {.deep_convolutions = 3, .batch_norm = true}; }
};
struct VGG19 : backbones::VGG<VGG19> {
  static constexpr std::string_view name() noexcept { return "vgg19"; }
  static constexpr backbones::VGGSettings settings() noexcept { return {.deep_convolutions = 4}; }
};
struct VGG19BatchNorm : backbones::VGG<VGG19BatchNorm> {
  static constexpr std::string_view name() noexcept { return "vgg19_bn"; }
  static constexpr backbones::VGGSettings settings() noexcept { return {.deep_convolutions = 4, .batch_norm = true}; }
};
/// VGG-19 whose convolutions mirror their input at the border.
struct VGG19Reflect : backbones::VGG<VGG19Reflect> {
  static constexpr std::string_view name() noexcept { return "vgg19_reflect"; }
  static constexpr backbones::VGGSettings settings() noexcept { return {.deep_convolutions = 4, .mirrored_border = true}; }
};

static_assert(StaticNetwork<VGG16> && BackboneNetwork<VGG16>);

}  // namespace norma
