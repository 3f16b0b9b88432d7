/// \file
/// What all backbones share: where their graph lives, and which outputs the published kinds of method usually ask for.
/// A backbone is a type without members that models the concept Network (concepts/network.hpp).
#pragma once

#include <array>
#include <span>
#include <string_view>

#include <norma/concepts/network.hpp>

namespace norma {

/// The outputs that methods take where the user names none. Names are taps of the backbone's graph.
struct TapChoice {
  std::span<const std::string_view> three_levels;  ///< fine to coarse: PaDiM, SPADE's maps, distillation
  std::span<const std::string_view> two_levels;    ///< fine to coarse: PatchCore
  std::span<const std::string_view> pooled;        ///< the global average of the first one whose weights are at hand: SPADE, DN2
};

/// A network with such a choice.
template <class N>
concept BackboneNetwork = Network<N> && requires(const N& network) {
  { network.taps() } -> std::convertible_to<TapChoice>;
};

namespace backbones {

/// The graph of a backbone type. A template, so that the compiler builds only the graphs that a program uses.
template <class Self>
inline constexpr auto kGraph = Self::make_graph();

/// Base of the backbone types: `Self` has `make_graph()` and `taps()`.
template <class Self>
struct Base {
  static constexpr nn::GraphView graph() noexcept { return kGraph<Self>; }
  static constexpr std::span<const std::string_view> default_taps() noexcept { return Self::taps().three_levels; }
};

}  // namespace backbones
}  // namespace norma
