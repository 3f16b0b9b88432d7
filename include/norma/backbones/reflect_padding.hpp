/// \file
/// A network whose convolutions see their input mirrored at the border instead of zeros around it. The weights are the network's own, from the same
/// file; features near the border differ.
/// Source: the published encoders of CFlow-AD (Gudovskiy et al., WACV 2022), which put reflect padding into pretrained networks.
#pragma once

#include <norma/backbones/backbone.hpp>

namespace norma {

/// `NetworkT` (ResNet18, WideResNet50, MobileNetV2, ...) with reflect padding in every convolution that pads: mirrored without repeating the border.
/// Pools keep theirs. Same tensor names, taps and input; the name is `<name>_reflect`. Networks with TensorFlow's SAME padding are refused: how much
/// it pads depends on the input. Inputs must be large enough that no convolution pads by more than its input's size less 1; a plan says so.
template <StaticNetwork NetworkT>
class ReflectPadded {
 public:
  static constexpr std::string_view name() noexcept { return kName.view(); }
  static constexpr nn::InputSpec input() noexcept { return NetworkT::input(); }
  static constexpr nn::GraphView graph() noexcept { return backbones::kGraph<ReflectPadded>; }
  static constexpr std::span<const std::string_view> default_taps() noexcept { return NetworkT::default_taps(); }
  static constexpr TapChoice taps() noexcept
    requires BackboneNetwork<NetworkT>
  {
    return NetworkT::taps();
  }

  /// For backbones::kGraph: the network's graph with its paddings changed.
  static consteval auto make_graph() {
    static_assert(!has_same_padding(), "ReflectPadded: this network pads as TensorFlow's SAME does; reflect padding is for fixed paddings");
    constexpr nn::GraphView kFrom = NetworkT::graph();
    nn::Graph<kFrom.size(), static_cast<int>(kFrom.taps.size())> graph;
    for (const nn::Node& from : kFrom.nodes) {
      nn::Node& node = graph.nodes[static_cast<std::size_t>(graph.node_count++)];
      node = from;
      if (pads(node)) node.padding.kind = nn::PaddingKind::reflect;
    }
    for (const nn::Tap& tap : kFrom.taps) graph.taps[static_cast<std::size_t>(graph.tap_count++)] = tap;
    return graph;
  }

 private:
  static constexpr nn::Name kName = nn::name(NetworkT::name(), "_reflect");

  static constexpr bool pads(const nn::Node& node) noexcept {
    const nn::Padding& p = node.padding;
    return node.op == nn::Op::convolution && !node.transposed && (p.top > 0 || p.left > 0 || p.bottom > 0 || p.right > 0);
  }
  static constexpr bool has_same_padding() noexcept {
    for (const nn::Node& node : NetworkT::graph().nodes) {
      if (node.op == nn::Op::convolution && node.padding.kind == nn::PaddingKind::same) return true;
    }
    return false;
  }
};

}  // namespace norma
