/// \file
/// Network: what looks at a picture. A name, the picture that it expects, a graph, and the outputs that are usually asked for.
/// Types that are one network have static members; a network chosen at run time has the same members on an object.
#pragma once

#include <concepts>
#include <span>
#include <string_view>

#include <norma/nn/network.hpp>

namespace norma {

template <class N>
concept HasNetworkName = requires(const N& network) {
  { network.name() } -> std::convertible_to<std::string_view>;
};
template <class N>
concept HasNetworkInput = requires(const N& network) {
  { network.input() } -> std::convertible_to<nn::InputSpec>;
};
template <class N>
concept HasNetworkGraph = requires(const N& network) {
  { network.graph() } -> std::convertible_to<nn::GraphView>;
};
template <class N>
concept HasDefaultTaps = requires(const N& network) {
  { network.default_taps() } -> std::convertible_to<std::span<const std::string_view>>;
};

template <class N>
concept Network = std::copyable<N> && HasNetworkName<N> && HasNetworkInput<N> && HasNetworkGraph<N> && HasDefaultTaps<N>;

/// A network that is known when the program is compiled: its plan is a constant.
template <class N>
concept StaticNetwork = Network<N> && std::is_empty_v<N> && requires {
  { N::graph() } -> std::convertible_to<nn::GraphView>;
};

namespace detail {
/// One sentence for each thing that a network lacks; the message is what to add.
template <class N>
consteval bool check_network() {
  static_assert(HasNetworkName<N>, "Network: add `static constexpr std::string_view name()`");
  static_assert(HasNetworkInput<N>, "Network: add `static constexpr norma::nn::InputSpec input()`");
  static_assert(HasNetworkGraph<N>, "Network: add `static constexpr norma::nn::GraphView graph()`");
  static_assert(HasDefaultTaps<N>, "Network: add `static constexpr std::span<const std::string_view> default_taps()`");
  static_assert(std::copyable<N>, "Network: make the type copyable");
  return true;
}
}  // namespace detail

static_assert(Network<nn::NetworkInfo>);

}  // namespace norma
