/// \file
/// First values of weights. Every number is drawn from a generator of its tensor's own, found by seed and name: results do not depend on
/// the order of the network, on threads or on what else is drawn. Source: PyTorch's defaults and `torch.nn.init`.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string_view>

#include <norma/core/random.hpp>
#include <norma/nn/training/parameters.hpp>

namespace norma::nn {

/// Which random numbers. Biases, norms and scales are set separately.
enum class Initialiser : std::uint8_t {
  standard,        ///< PyTorch's default of convolutions and linear layers: U(-b, b), b = 1 / sqrt(fan in); kaiming uniform with a = sqrt 5
  kaiming_fan_in,  ///< N(0, gain^2 / fan in)
  kaiming_fan_out,  ///< N(0, gain^2 / fan out)
  xavier_normal,    ///< N(0, gain^2 2 / (fan in + fan out))
  xavier_uniform,   ///< U(-b, b), b = gain sqrt(6 / (fan in + fan out))
  normal,           ///< N(0, gain^2)
  zeros,
};

namespace detail {
/// FNV-1a: a tensor's own stream.
constexpr std::uint64_t name_stream(std::string_view name) noexcept {
  std::uint64_t hash = 1469598103934665603u;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return hash;
}
}  // namespace detail

/// Fills one tensor. `gain` is sqrt 2 before a ReLU; `standard` and `zeros` do not use it. A pure function of its arguments.
inline void initialise(std::span<float> to, std::int64_t fan_in, std::int64_t fan_out, Initialiser how, double gain, std::uint64_t seed,
                       std::string_view name) {
  Random random(seed, detail::name_stream(name));
  const auto in = static_cast<double>(fan_in), out = static_cast<double>(fan_out);
  double width = 0.0;  // of a uniform distribution, or deviation of a normal one
  bool uniform = false;
  switch (how) {
    case Initialiser::standard: width = 1.0 / std::sqrt(in), uniform = true; break;
    case Initialiser::kaiming_fan_in: width = gain / std::sqrt(in); break;
    case Initialiser::kaiming_fan_out: width = gain / std::sqrt(out); break;
    case Initialiser::xavier_normal: width = gain * std::sqrt(2.0 / (in + out)); break;
    case Initialiser::xavier_uniform: width = gain * std::sqrt(6.0 / (in + out)), uniform = true; break;
    case Initialiser::normal: width = gain; break;
    case Initialiser::zeros: break;
  }
  for (float& value : to) {
    value = width == 0.0 ? 0.0f : static_cast<float>(uniform ? random.uniform(-width, width) : width * random.normal());
  }
}

/// What the pieces of a network begin with.
struct InitialiserSettings {
  Initialiser weights = Initialiser::standard;
  Initialiser biases = Initialiser::standard;  ///< `standard` or `zeros`
  double gain = 1.4142135623730951;            ///< of the weights
};

/// Sets everything that learns and whose name begins with `prefix` (empty: all): weights and biases as `settings` say; norms 1 and 0,
/// running statistics 0 and 1, scales 1, as PyTorch's. Frozen weights stay.
inline void initialise(Parameters& parameters, const InitialiserSettings& settings, std::uint64_t seed, std::string_view prefix = {}) {
  for (const ParameterPiece& piece : parameters.layout().pieces()) {
    if (!prefix.empty() && !name_begins_with(piece.name, prefix)) continue;
    const auto values = parameters.of(piece);
    const bool statistic = piece.role == TensorRole::norm_mean || piece.role == TensorRole::norm_variance;
    if (!piece.trained && !statistic) continue;
    const auto fill = [&](float value) {
      for (float& v : values) v = value;
    };
    switch (piece.role) {
      case TensorRole::weight:
        if (piece.shape.size() == 1) {
          fill(1.0f);  // layer norm
        } else {
          initialise(values, piece.fan_in, piece.fan_out, settings.weights, settings.gain, seed, piece.name);
        }
        break;
      case TensorRole::bias:
        if (piece.of_norm) {
          fill(0.0f);
        } else {
          initialise(values, piece.fan_in, piece.fan_out, settings.biases, 1.0, seed, piece.name);
        }
        break;
      case TensorRole::norm_weight:
      case TensorRole::scale: fill(1.0f); break;
      case TensorRole::norm_variance:
        if (piece.learning_layer) fill(1.0f);
        break;
      case TensorRole::norm_mean:
        if (piece.learning_layer) fill(0.0f);
        break;
      default: fill(0.0f); break;
    }
  }
}

}  // namespace norma::nn
