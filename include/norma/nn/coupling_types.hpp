/// \file
/// Coupling layers by their settings: which block, which clamp, how channels are mixed, which subnet; the shapes and the parameter layout that follow
/// from them; and the scalar formulas. The host implementation, the CUDA kernels and the trainers share this page, so a flow's parameters are one
/// array of floats with the same meaning everywhere.
///
/// Source:   all-in-one block: Kingma & Dhariwal, "Glow", NeurIPS 2018, with the soft clamp and the single subnet of the FrEIA library
///           (FastFlow, CFlow-AD). glow block: Dinh et al., "Density estimation using Real NVP", ICLR 2017, both halves, with the arctangent
///           clamp of DifferNet and CS-Flow.
///
/// Formulas, C channels, n positions of a sample, P the mixing:
///   all_in_one   passive = the first C - C / 2 channels, active = the others; [s, t] = 0.1 N([passive, condition]);
///                v = [passive, active exp(L(s)) + t]; out = P(v g + o), g = 0.1 * 2 log(1 + exp(G / 2)); log-determinant = sum L(s) + n sum log g
///   glow         x = P(in); first = the first C / 2 channels, second = the others; [s, t] = N0([second, condition]); first' = first exp(L(s)) + t;
///                [s', t'] = N1([first', condition]); second' = second exp(L(s')) + t'; log-determinant = sum L(s) + sum L(s')
///   P            permutation: out[i] = in[permutation[i]]; rotation: out = R in with an orthogonal R of determinant 1
///
/// Layout of activations: positions are rows. *Plain* is channels last with rows of `padded(C)` floats. *Split* is what the blocks work on: each half
/// starts at a multiple of 4 floats and is filled up with zeros. The two are the same where the first half is a multiple of 4.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <norma/config.hpp>
#include <norma/core/status.hpp>
#include <norma/linalg/activation.hpp>

namespace norma::nn {

enum class BlockKind : std::uint8_t { glow, all_in_one };

/// How the raw log-scale is bounded.
enum class ScaleClamp : std::uint8_t {
  tanh,           ///< alpha tanh(s): FrEIA until August 2023, the published FastFlow and CFlow weights
  tanh_of_ratio,  ///< alpha tanh(s / alpha): FrEIA since
  atan,           ///< 0.636 alpha atan(s / alpha): DifferNet, CS-Flow; the literal 0.636, not 2 / pi
};

enum class ChannelMixing : std::uint8_t { permutation, rotation };

/// Convolution of side `kernel` (1: a matrix product), zero padding to the same size, bias, activation (none or ReLU).
struct SubnetLayer {
  std::int64_t in = 0;
  std::int64_t out = 0;
  std::int64_t kernel = 1;
  Activation activation = Activation::none;
  friend constexpr bool operator==(const SubnetLayer&, const SubnetLayer&) = default;
};

inline constexpr int kMostSubnetLayers = 4;

struct SubnetShape {
  SubnetLayer layers[kMostSubnetLayers] = {};
  int count = 0;
};

/// Rows of activations are filled up to whole 16-byte loads.
NORMA_HD constexpr std::int64_t padded(std::int64_t channels) noexcept { return (channels + 3) / 4 * 4; }

/// One block. The subnets' first and last widths follow from `channels` and `condition`; the others are given.
struct CouplingShape {
  BlockKind kind = BlockKind::all_in_one;
  ScaleClamp clamp = ScaleClamp::tanh;
  ChannelMixing mixing = ChannelMixing::permutation;
  float alpha = 2.0f;
  std::int64_t channels = 0;
  std::int64_t condition = 0;                           ///< channels of the condition, 0: none
  int layers = 2;                                       ///< of each subnet, 1 to kMostSubnetLayers
  std::int64_t kernels[kMostSubnetLayers] = {1, 1, 1, 1};  ///< side of each layer's convolution, 1 or 3
  std::int64_t hidden[kMostSubnetLayers - 1] = {};      ///< outputs of each layer but the last

  friend constexpr bool operator==(const CouplingShape&, const CouplingShape&) = default;

  /// Channels of the first half.
  [[nodiscard]] constexpr std::int64_t first() const noexcept { return kind == BlockKind::glow ? channels / 2 : channels - channels / 2; }
  [[nodiscard]] constexpr std::int64_t second() const noexcept { return channels - first(); }
  /// Subnets, in the order of the forward pass. Step 0 of a glow block and step 0 of an all-in-one block change different halves.
  [[nodiscard]] constexpr int steps() const noexcept { return kind == BlockKind::glow ? 2 : 1; }
  /// Whether the half that a step changes is the first one.
  [[nodiscard]] constexpr bool changes_first(int step) const noexcept { return kind == BlockKind::glow && step == 0; }
  [[nodiscard]] constexpr std::int64_t active(int step) const noexcept { return changes_first(step) ? first() : second(); }
  [[nodiscard]] constexpr std::int64_t passive(int step) const noexcept { return changes_first(step) ? second() : first(); }
  /// What the subnet's output is multiplied by.
  [[nodiscard]] constexpr float gain() const noexcept { return kind == BlockKind::glow ? 1.0f : 0.1f; }
  /// Whether the block ends with a trainable scale and offset of each channel.
  [[nodiscard]] constexpr bool has_global_affine() const noexcept { return kind == BlockKind::all_in_one; }

  [[nodiscard]] constexpr SubnetShape subnet(int step) const noexcept {
    SubnetShape shape;
    shape.count = layers;
    std::int64_t in = passive(step) + condition;
    for (int l = 0; l < layers; ++l) {
      const bool last = l == layers - 1;
      const std::int64_t out = last ? 2 * active(step) : hidden[l];
      shape.layers[l] = {in, out, kernels[l], last ? Activation::none : Activation::relu};
      in = out;
    }
    return shape;
  }

  /// Split layout: where channel c lies in a row, and the floats of a row.
  [[nodiscard]] constexpr std::int64_t split_position(std::int64_t c) const noexcept { return c < first() ? c : padded(first()) + c - first(); }
  [[nodiscard]] constexpr std::int64_t split_stride() const noexcept { return padded(first()) + padded(second()); }
  [[nodiscard]] constexpr bool split_is_plain() const noexcept { return padded(first()) == first(); }
};

// The blocks of the published methods.

/// FastFlow: two convolutions with `ratio` C / 2 hidden channels; kernel 3 (ResNet-18) or 3 and 1 in turn.
constexpr CouplingShape fastflow_block(std::int64_t channels, std::int64_t kernel, double ratio = 1.0) noexcept {
  CouplingShape s;
  s.channels = channels;
  s.kernels[0] = s.kernels[1] = kernel;
  s.hidden[0] = static_cast<std::int64_t>(ratio * static_cast<double>(s.first()));
  return s;
}
/// CFlow-AD: a perceptron with twice its inputs as hidden units, conditioned on a position code.
constexpr CouplingShape cflow_block(std::int64_t channels, std::int64_t condition = 128, ChannelMixing mixing = ChannelMixing::rotation) noexcept {
  CouplingShape s;
  s.channels = channels;
  s.condition = condition;
  s.mixing = mixing;
  s.alpha = 1.9f;
  s.hidden[0] = 2 * (s.first() + condition);
  return s;
}
/// DifferNet: four linear layers on vectors.
constexpr CouplingShape differnet_block(std::int64_t channels = 768, std::int64_t width = 2048) noexcept {
  CouplingShape s;
  s.kind = BlockKind::glow;
  s.clamp = ScaleClamp::atan;
  s.alpha = 3.0f;
  s.channels = channels;
  s.layers = 4;
  s.hidden[0] = s.hidden[1] = s.hidden[2] = width;
  return s;
}

/// Whether a shape makes sense. `who` starts the message.
inline Status check_shape(std::string_view who, const CouplingShape& s) {
  const std::string name(who);
  if (s.channels < 2) return {Errc::invalid_argument, name + ": expected at least 2 channels, found " + std::to_string(s.channels)};
  if (s.condition < 0) return {Errc::invalid_argument, name + ": expected condition >= 0, found " + std::to_string(s.condition)};
  if (!(s.alpha > 0.0f) || !std::isfinite(s.alpha))
    return {Errc::invalid_argument, name + ": expected a clamp alpha > 0, found " + std::to_string(s.alpha)};
  if (s.layers < 1 || s.layers > kMostSubnetLayers) {
    return {Errc::invalid_argument,
            name + ": expected 1 to " + std::to_string(kMostSubnetLayers) + " subnet layers, found " + std::to_string(s.layers)};
  }
  for (int l = 0; l < s.layers; ++l) {
    if (s.kernels[l] != 1 && s.kernels[l] != 3) {
      return {Errc::unsupported, name + ": subnet layer " + std::to_string(l) + ": expected kernel 1 or 3, found " + std::to_string(s.kernels[l])};
    }
    if (l + 1 < s.layers && s.hidden[l] < 1) {
      return {Errc::invalid_argument,
              name + ": subnet layer " + std::to_string(l) + ": expected at least 1 hidden channel, found " + std::to_string(s.hidden[l])};
    }
  }
  // 2^20 channels keep every size of a layer inside 64 bits and every index of a row inside 32.
  const std::int64_t most = std::max({s.channels, s.condition, s.hidden[0], s.hidden[1], s.hidden[2]});
  if (most > std::int64_t{1} << 20) return {Errc::invalid_argument, name + ": expected at most 1048576 channels, found " + std::to_string(most)};
  return {};
}

// -- Parameters ------------------------------------------------------------------------------------------------------------------------------------

/// One layer's place in a block's parameters. Weights are [out][depth] with depth = kernel^2 (padded(x) + padded(condition)): first every tap of the
/// x part, then every tap of the condition part, each tap's channels filled up with zeros. Then `padded(out)` biases. The rows of a last layer
/// are s0, t0, s1, t1, ... (a library stacks s0, s1, ..., t0, t1, ...), so that one thread of a product gets a pair.
struct LayerLayout {
  std::int64_t weight = 0;     ///< offset of the weights in floats
  std::int64_t bias = 0;       ///< offset of the biases
  std::int64_t x = 0;          ///< input channels that are not the condition
  std::int64_t condition = 0;  ///< input channels of the condition
  std::int64_t out = 0;
  std::int64_t taps = 1;       ///< kernel^2
  bool last = false;

  [[nodiscard]] constexpr std::int64_t depth() const noexcept { return taps * (padded(x) + padded(condition)); }
  /// Row of the library's output channel.
  [[nodiscard]] constexpr std::int64_t row(std::int64_t channel) const noexcept {
    if (!last) return channel;
    return channel < out / 2 ? 2 * channel : 2 * (channel - out / 2) + 1;
  }
  /// Offset of the weight from the library's input channel (x, then condition) to its output channel at `tap` = kernel y + x.
  [[nodiscard]] constexpr std::int64_t at(std::int64_t to, std::int64_t from, std::int64_t tap) const noexcept {
    const std::int64_t column = from < x ? tap * padded(x) + from : taps * padded(x) + tap * padded(condition) + from - x;
    return weight + row(to) * depth() + column;
  }
};

/// Offsets in one block's parameters: the layers of each subnet, then the global scale G and the global offset o (`padded(channels)` floats each, in
/// the order of the channels before P; all-in-one only). Every offset is a multiple of 4; `total` floats. Fillers are zero, have zero gradients, and
/// stay zero.
struct ParameterLayout {
  LayerLayout layers[2][kMostSubnetLayers] = {};
  std::int64_t global_scale = 0;
  std::int64_t global_offset = 0;
  std::int64_t total = 0;
};

constexpr ParameterLayout parameter_layout(const CouplingShape& s) noexcept {
  ParameterLayout layout;
  for (int step = 0; step < s.steps(); ++step) {
    const SubnetShape subnet = s.subnet(step);
    for (int l = 0; l < subnet.count; ++l) {
      LayerLayout& layer = layout.layers[step][l];
      layer.condition = l == 0 ? s.condition : 0;
      layer.x = subnet.layers[l].in - layer.condition;
      layer.out = subnet.layers[l].out;
      layer.taps = subnet.layers[l].kernel * subnet.layers[l].kernel;
      layer.last = l == subnet.count - 1;
      layer.weight = layout.total;
      layer.bias = layer.weight + layer.out * layer.depth();
      layout.total = layer.bias + padded(layer.out);
    }
  }
  if (s.has_global_affine()) {
    layout.global_scale = layout.total;
    layout.global_offset = layout.global_scale + padded(s.channels);
    layout.total = layout.global_offset + padded(s.channels);
  }
  return layout;
}

/// Trainable numbers, without fillers: what the papers count.
constexpr std::int64_t parameter_count(const CouplingShape& s) noexcept {
  std::int64_t count = s.has_global_affine() ? 2 * s.channels : 0;
  for (int step = 0; step < s.steps(); ++step) {
    const SubnetShape subnet = s.subnet(step);
    for (int l = 0; l < subnet.count; ++l) {
      const SubnetLayer& layer = subnet.layers[l];
      count += layer.out * (layer.in * layer.kernel * layer.kernel + 1);
    }
  }
  return count;
}

/// A layer of a library: weight [out, in, kernel, kernel] (linear: [out, in]) and bias [out].
template <class T>
struct LibraryLayer {
  std::span<T> weight;
  std::span<T> bias;
};

namespace detail {
/// Calls f(place in the block, place in the library's weight, count) for runs of a row's weights: one behind the other in the block, `taps` apart in
/// the library's order.
template <class F>
void for_each_run(const LayerLayout& layout, F f) {
  const std::int64_t in = layout.x + layout.condition;
  for (std::int64_t o = 0; o < layout.out; ++o) {
    for (std::int64_t tap = 0; tap < layout.taps; ++tap) {
      f(layout.at(o, 0, tap), o * in * layout.taps + tap, layout.x);
      if (layout.condition > 0) f(layout.at(o, layout.x, tap), (o * in + layout.x) * layout.taps + tap, layout.condition);
    }
  }
}
template <class T, class U>
Status check_layer(const LayerLayout& layout, const LibraryLayer<T>& layer, std::span<U> block) {
  const auto weights = static_cast<std::size_t>(layout.out * (layout.x + layout.condition) * layout.taps);
  if (layer.weight.size() != weights || layer.bias.size() != static_cast<std::size_t>(layout.out)) {
    return {Errc::shape_mismatch, "nn::coupling: subnet layer: expected " + std::to_string(weights) + " weights and " + std::to_string(layout.out) +
                                      " biases, found " + std::to_string(layer.weight.size()) + " and " + std::to_string(layer.bias.size())};
  }
  if (block.size() < static_cast<std::size_t>(layout.bias + padded(layout.out))) {
    return {Errc::shape_mismatch, "nn::coupling: the block's parameters are shorter than parameter_layout(shape).total"};
  }
  return {};
}
}  // namespace detail

/// Copies a library's layer into its place of a block's parameters and clears the fillers.
inline Status pack_layer(const LayerLayout& layout, LibraryLayer<const float> layer, std::span<float> block) {
  NORMA_CHECK(detail::check_layer(layout, layer, block));
  std::fill(block.begin() + layout.weight, block.begin() + layout.bias + padded(layout.out), 0.0f);
  const std::int64_t taps = layout.taps;
  detail::for_each_run(layout, [&, to = block.data(), from = layer.weight.data()](std::int64_t at, std::int64_t library, std::int64_t count) {
    if (taps == 1) {
      std::copy_n(from + library, count, to + at);
    } else {
      for (std::int64_t i = 0; i < count; ++i) to[at + i] = from[library + i * taps];
    }
  });
  for (std::int64_t o = 0; o < layout.out; ++o)
    block[static_cast<std::size_t>(layout.bias + layout.row(o))] = layer.bias[static_cast<std::size_t>(o)];
  return {};
}

/// The way back, for weights and for gradients.
inline Status unpack_layer(const LayerLayout& layout, std::span<const float> block, LibraryLayer<float> layer) {
  NORMA_CHECK(detail::check_layer(layout, layer, block));
  const std::int64_t taps = layout.taps;
  detail::for_each_run(layout, [&, from = block.data(), to = layer.weight.data()](std::int64_t at, std::int64_t library, std::int64_t count) {
    if (taps == 1) {
      std::copy_n(from + at, count, to + library);
    } else {
      for (std::int64_t i = 0; i < count; ++i) to[library + i * taps] = from[at + i];
    }
  });
  for (std::int64_t o = 0; o < layout.out; ++o)
    layer.bias[static_cast<std::size_t>(o)] = block[static_cast<std::size_t>(layout.bias + layout.row(o))];
  return {};
}

/// [permutation, its inverse], int32 [2, C]: what the kernels read. Fails unless `permutation` holds each of 0 .. C - 1 once.
inline Result<std::vector<std::int32_t>> pack_permutation(std::span<const std::int64_t> permutation) {
  const std::size_t n = permutation.size();
  std::vector<std::int32_t> packed(2 * n, -1);
  for (std::size_t i = 0; i < n; ++i) {
    const std::int64_t from = permutation[i];
    if (from < 0 || from >= static_cast<std::int64_t>(n) || packed[n + static_cast<std::size_t>(from)] >= 0) {
      return Status{Errc::invalid_argument, "nn::pack_permutation: expected each of 0 to " + std::to_string(n) + " - 1 once, found " +
                                                std::to_string(from) + " at place " + std::to_string(i)};
    }
    packed[i] = static_cast<std::int32_t>(from);
    packed[n + static_cast<std::size_t>(from)] = static_cast<std::int32_t>(i);
  }
  return packed;
}

/// The rotation R [C, C], row-major, with rows and columns at their places of the split layout: [split_stride, split_stride], zero elsewhere.
inline Result<std::vector<float>> pack_rotation(const CouplingShape& s, std::span<const float> rotation) {
  const std::int64_t stride = s.split_stride();
  if (rotation.size() != static_cast<std::size_t>(s.channels * s.channels)) {
    return Status{Errc::shape_mismatch, "nn::pack_rotation: expected " + std::to_string(s.channels) + " x " + std::to_string(s.channels) +
                                            " numbers, found " + std::to_string(rotation.size())};
  }
  std::vector<float> packed(static_cast<std::size_t>(stride * stride), 0.0f);
  for (std::int64_t i = 0; i < s.channels; ++i) {
    for (std::int64_t j = 0; j < s.channels; ++j) {
      packed[static_cast<std::size_t>(s.split_position(i) * stride + s.split_position(j))] = rotation[static_cast<std::size_t>(i * s.channels + j)];
    }
  }
  return packed;
}

// -- Scalar formulas -------------------------------------------------------------------------------------------------------------------------------

/// The bounded log-scale and its derivative by the raw one.
template <class T>
struct Clamped {
  T value;
  T slope;
};

template <class T>
NORMA_HD inline Clamped<T> clamp_scale(ScaleClamp clamp, T alpha, T s) {
  if (clamp == ScaleClamp::atan) {
    const T ratio = s / alpha;
    return {T(0.636) * alpha * std::atan(ratio), T(0.636) / (T(1) + ratio * ratio)};
  }
  const T t = std::tanh(clamp == ScaleClamp::tanh ? s : s / alpha);
  const T slope = T(1) - t * t;
  return {alpha * t, clamp == ScaleClamp::tanh ? alpha * slope : slope};
}

/// g = 0.1 * 2 log(1 + exp(G / 2)) and dg / dG, without overflow.
template <class T>
struct GlobalScale {
  T value;
  T slope;
};

template <class T>
NORMA_HD inline GlobalScale<T> global_scale(T raw) {
  const T e = std::exp(-std::abs(raw) / T(2));
  const T positive = raw > T(0) ? raw : T(0);
  return {T(0.1) * (positive + T(2) * std::log1p(e)), T(0.1) * (raw > T(0) ? T(1) : e) / (T(1) + e)};
}

/// G with g = 1: 2 log(e^5 - 1).
inline constexpr float kUnitGlobalScale = 9.9864785f;

}  // namespace norma::nn
