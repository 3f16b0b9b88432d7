/// \file
/// What a network is besides its graph: a name, the picture that it expects, and the outputs that are usually asked for.
/// The concept is in concepts/network.hpp; a type that names a graph looks like
/// \code
///   struct ResNet18 {
///     static constexpr std::string_view name() { return "resnet18"; }
///     static constexpr nn::InputSpec input() { return nn::kImageNet; }
///     static constexpr nn::GraphView graph() { return kGraph; }
///     static constexpr std::span<const std::string_view> default_taps() { return kDefaultTaps; }
///    private:
///     static constexpr auto kGraph = detail::make_resnet18();
///     static constexpr std::array<std::string_view, 3> kDefaultTaps{"layer1", "layer2", "layer3"};
///   };
/// \endcode
/// A network chosen at run time (`AnyNetwork`) has the same four members and looks them up in a table of `NetworkInfo`.
#pragma once

#include <array>
#include <span>
#include <string_view>

#include <norma/nn/graph.hpp>

namespace norma::nn {

enum class ChannelOrder : std::uint8_t { rgb, bgr };

/// The picture that a network was trained on, as plain numbers. A value v of 0..255 in channel c becomes
/// (v - mean[c]) / stddev[c]; `mean` and `stddev` are in the order of `channel_order`.
struct InputSpec {
  std::array<float, 3> mean{0.0f, 0.0f, 0.0f};
  std::array<float, 3> stddev{1.0f, 1.0f, 1.0f};
  ChannelOrder channel_order = ChannelOrder::rgb;
  int size = 224;    ///< height and width of the network's input
  int resize = 256;  ///< shorter side before the centre crop of `size`
  friend constexpr bool operator==(const InputSpec&, const InputSpec&) = default;
};

/// torchvision and most of timm: RGB / 255 by ImageNet's mean (0.485, 0.456, 0.406) and deviation (0.229, 0.224, 0.225).
inline constexpr InputSpec kImageNet{.mean = {123.675f, 116.28f, 103.53f},
                                     .stddev = {58.395f, 57.12f, 57.375f},
                                     .channel_order = ChannelOrder::rgb,
                                     .size = 224,
                                     .resize = 256};

/// A network's four members as a row of a table.
struct NetworkInfo {
  std::string_view name_;
  InputSpec input_;
  GraphView graph_;
  std::span<const std::string_view> default_taps_;

  [[nodiscard]] constexpr std::string_view name() const noexcept { return name_; }
  [[nodiscard]] constexpr InputSpec input() const noexcept { return input_; }
  [[nodiscard]] constexpr GraphView graph() const noexcept { return graph_; }
  [[nodiscard]] constexpr std::span<const std::string_view> default_taps() const noexcept { return default_taps_; }
};

/// The row of a network type.
template <class NetworkT>
constexpr NetworkInfo network_info() noexcept {
  return {NetworkT::name(), NetworkT::input(), NetworkT::graph(), NetworkT::default_taps()};
}

}  // namespace norma::nn
