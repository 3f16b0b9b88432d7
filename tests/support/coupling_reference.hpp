// Coupling blocks in double, straight from their formulas and one loop at a time: what the fast implementations are compared with. Plain layout
// [batch, height, width, C] without fillers, weights in a library's order [out, in, kernel, kernel].
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include <norma/core/random.hpp>
#include <norma/nn/coupling_types.hpp>

namespace norma::test {

using Doubles = std::vector<double>;

inline std::size_t index_of(std::int64_t i) { return static_cast<std::size_t>(i); }

/// Batch and map of the positions.
struct Positions {
  std::int64_t batch = 1, height = 1, width = 1;
  [[nodiscard]] std::int64_t per_sample() const { return height * width; }
  [[nodiscard]] std::int64_t rows() const { return batch * height * width; }
};

struct ReferenceLayer {
  nn::SubnetLayer shape;
  Doubles weight, bias;

  [[nodiscard]] double& at(std::int64_t out, std::int64_t in, std::int64_t ky, std::int64_t kx) {
    return weight[index_of(((out * shape.in + in) * shape.kernel + ky) * shape.kernel + kx)];
  }
  [[nodiscard]] double at(std::int64_t out, std::int64_t in, std::int64_t ky, std::int64_t kx) const {
    return weight[index_of(((out * shape.in + in) * shape.kernel + ky) * shape.kernel + kx)];
  }
};

/// Parameters of a block; gradients have the same type.
struct ReferenceBlock {
  nn::CouplingShape shape;
  std::vector<ReferenceLayer> subnets[2];
  Doubles global_scale, global_offset;       // G, o; [C] or empty
  std::vector<std::int64_t> permutation;     // out[i] = in[permutation[i]]
  Doubles rotation;                          // [C, C] or empty
};

/// The library's default: U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)) for weights and biases; G near g = 1, o near 0, a random permutation, a random
/// rotation (a product of plane rotations of every pair of channels: orthogonal, determinant 1).
inline ReferenceBlock random_block(const nn::CouplingShape& shape, Random& random) {
  ReferenceBlock block{shape, {}, {}, {}, {}, {}};
  for (int step = 0; step < shape.steps(); ++step) {
    const nn::SubnetShape subnet = shape.subnet(step);
    for (int l = 0; l < subnet.count; ++l) {
      const nn::SubnetLayer& s = subnet.layers[l];
      ReferenceLayer layer{s, Doubles(index_of(s.out * s.in * s.kernel * s.kernel)), Doubles(index_of(s.out))};
      const double bound = 1.0 / std::sqrt(static_cast<double>(s.in * s.kernel * s.kernel));
      // Floats, so that the device works on the same numbers.
      for (double& w : layer.weight) w = static_cast<float>(random.uniform(-bound, bound));
      for (double& b : layer.bias) b = static_cast<float>(random.uniform(-bound, bound));
      block.subnets[step].push_back(std::move(layer));
    }
  }
  if (shape.has_global_affine()) {
    for (std::int64_t c = 0; c < shape.channels; ++c) {
      block.global_scale.push_back(static_cast<float>(nn::kUnitGlobalScale + random.uniform(-2.0, 2.0)));
      block.global_offset.push_back(static_cast<float>(random.uniform(-0.5, 0.5)));
    }
  }
  block.permutation = sample_without_replacement(shape.channels, shape.channels, random);
  if (shape.mixing == nn::ChannelMixing::rotation) {
    const std::int64_t n = shape.channels;
    block.rotation.assign(index_of(n * n), 0.0);
    for (std::int64_t i = 0; i < n; ++i) block.rotation[index_of(i * n + i)] = 1.0;
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = i + 1; j < n; ++j) {
        const double angle = random.uniform(-3.0, 3.0), cosine = std::cos(angle), sine = std::sin(angle);
        for (std::int64_t k = 0; k < n; ++k) {
          double& a = block.rotation[index_of(i * n + k)];
          double& b = block.rotation[index_of(j * n + k)];
          const double was = a;
          a = cosine * was - sine * b;
          b = sine * was + cosine * b;
        }
      }
    }
  }
  return block;
}

/// A block of zeros of the same shape, for gradients.
inline ReferenceBlock zero_like(const ReferenceBlock& block) {
  ReferenceBlock zero = block;
  for (auto& subnet : zero.subnets) {
    for (ReferenceLayer& layer : subnet) {
      std::fill(layer.weight.begin(), layer.weight.end(), 0.0);
      std::fill(layer.bias.begin(), layer.bias.end(), 0.0);
    }
  }
  std::fill(zero.global_scale.begin(), zero.global_scale.end(), 0.0);
  std::fill(zero.global_offset.begin(), zero.global_offset.end(), 0.0);
  return zero;
}

/// Zero-padded convolution plus bias, activation not applied.
inline Doubles reference_layer(const ReferenceLayer& layer, const Positions& at, const Doubles& x) {
  const auto& s = layer.shape;
  const std::int64_t border = s.kernel / 2;
  Doubles y(index_of(at.rows() * s.out));
  for (std::int64_t n = 0; n < at.batch; ++n) {
    for (std::int64_t i = 0; i < at.height; ++i) {
      for (std::int64_t j = 0; j < at.width; ++j) {
        for (std::int64_t o = 0; o < s.out; ++o) {
          double sum = layer.bias[index_of(o)];
          for (std::int64_t ky = 0; ky < s.kernel; ++ky) {
            for (std::int64_t kx = 0; kx < s.kernel; ++kx) {
              const std::int64_t yy = i + ky - border, xx = j + kx - border;
              if (yy < 0 || yy >= at.height || xx < 0 || xx >= at.width) continue;
              for (std::int64_t c = 0; c < s.in; ++c) sum += layer.at(o, c, ky, kx) * x[index_of(((n * at.height + yy) * at.width + xx) * s.in + c)];
            }
          }
          y[index_of(((n * at.height + i) * at.width + j) * s.out + o)] = sum;
        }
      }
    }
  }
  return y;
}

/// Gradients of reference_layer: adds to `gradient`, returns dL/dx.
inline Doubles reference_layer_backward(const ReferenceLayer& layer, const Positions& at, const Doubles& x, const Doubles& dy,
                                        ReferenceLayer& gradient) {
  const auto& s = layer.shape;
  const std::int64_t border = s.kernel / 2;
  Doubles dx(x.size());
  for (std::int64_t n = 0; n < at.batch; ++n) {
    for (std::int64_t i = 0; i < at.height; ++i) {
      for (std::int64_t j = 0; j < at.width; ++j) {
        for (std::int64_t o = 0; o < s.out; ++o) {
          const double d = dy[index_of(((n * at.height + i) * at.width + j) * s.out + o)];
          gradient.bias[index_of(o)] += d;
          for (std::int64_t ky = 0; ky < s.kernel; ++ky) {
            for (std::int64_t kx = 0; kx < s.kernel; ++kx) {
              const std::int64_t yy = i + ky - border, xx = j + kx - border;
              if (yy < 0 || yy >= at.height || xx < 0 || xx >= at.width) continue;
              for (std::int64_t c = 0; c < s.in; ++c) {
                const std::size_t from = index_of(((n * at.height + yy) * at.width + xx) * s.in + c);
                gradient.at(o, c, ky, kx) += d * x[from];
                dx[from] += d * layer.at(o, c, ky, kx);
              }
            }
          }
        }
      }
    }
  }
  return dx;
}

/// A subnet's layer inputs, inputs[l] of layer l, and its output inputs[layers].
struct SubnetRun {
  std::vector<Doubles> inputs;
};

inline SubnetRun reference_subnet(const std::vector<ReferenceLayer>& subnet, const Positions& at, Doubles x) {
  SubnetRun run;
  run.inputs.push_back(std::move(x));
  for (const ReferenceLayer& layer : subnet) {
    Doubles y = reference_layer(layer, at, run.inputs.back());
    if (layer.shape.activation == Activation::relu) {
      for (double& v : y) v = v > 0.0 ? v : 0.0;
    }
    run.inputs.push_back(std::move(y));
  }
  return run;
}

inline Doubles reference_subnet_backward(const std::vector<ReferenceLayer>& subnet, const Positions& at, const SubnetRun& run, Doubles dy,
                                         std::vector<ReferenceLayer>& gradients) {
  for (std::size_t l = subnet.size(); l-- > 0;) {
    if (subnet[l].shape.activation == Activation::relu) {
      for (std::size_t i = 0; i < dy.size(); ++i) dy[i] = run.inputs[l + 1][i] > 0.0 ? dy[i] : 0.0;
    }
    dy = reference_layer_backward(subnet[l], at, run.inputs[l], dy, gradients[l]);
  }
  return dy;
}

inline double reference_clamp(nn::ScaleClamp clamp, double alpha, double s) {
  switch (clamp) {
    case nn::ScaleClamp::tanh: return alpha * std::tanh(s);
    case nn::ScaleClamp::tanh_of_ratio: return alpha * std::tanh(s / alpha);
    case nn::ScaleClamp::atan: return alpha * 0.636 * std::atan(s / alpha);
  }
  return 0.0;
}
inline double reference_clamp_slope(nn::ScaleClamp clamp, double alpha, double s) {
  switch (clamp) {
    case nn::ScaleClamp::tanh: return alpha / (std::cosh(s) * std::cosh(s));
    case nn::ScaleClamp::tanh_of_ratio: return 1.0 / (std::cosh(s / alpha) * std::cosh(s / alpha));
    case nn::ScaleClamp::atan: return 0.636 * alpha * alpha / (alpha * alpha + s * s);
  }
  return 0.0;
}
inline double reference_global_scale(double raw) { return 0.1 * 2.0 * std::log(1.0 + std::exp(raw / 2.0)); }
inline double reference_global_scale_slope(double raw) { return 0.1 / (1.0 + std::exp(-raw / 2.0)); }

/// [first channels, second channels] of each row, side by side.
inline Doubles concatenated(const Doubles& a, std::int64_t a_channels, const Doubles& b, std::int64_t b_channels, std::int64_t rows) {
  Doubles joined;
  for (std::int64_t r = 0; r < rows; ++r) {
    joined.insert(joined.end(), a.begin() + r * a_channels, a.begin() + (r + 1) * a_channels);
    if (b_channels > 0) joined.insert(joined.end(), b.begin() + r * b_channels, b.begin() + (r + 1) * b_channels);
  }
  return joined;
}
/// Channels [from, from + count) of rows of `channels`.
inline Doubles channels_of(const Doubles& x, std::int64_t channels, std::int64_t from, std::int64_t count) {
  Doubles part;
  for (std::size_t r = 0; r < x.size() / index_of(channels); ++r) {
    const auto row = x.begin() + static_cast<std::int64_t>(r) * channels + from;
    part.insert(part.end(), row, row + count);
  }
  return part;
}

/// P of a block and its inverse; `inverse` is also the transposed map of gradients.
inline Doubles mix(const ReferenceBlock& block, const Doubles& x, bool inverse) {
  const std::int64_t n = block.shape.channels;
  Doubles y(x.size());
  for (std::size_t r = 0; r < x.size() / index_of(n); ++r) {
    const double* in = x.data() + r * index_of(n);
    double* out = y.data() + r * index_of(n);
    for (std::int64_t i = 0; i < n; ++i) {
      if (block.rotation.empty()) {
        const std::int64_t from = block.permutation[index_of(i)];
        if (inverse) out[from] = in[i]; else out[i] = in[from];
      } else {
        for (std::int64_t j = 0; j < n; ++j) {
          const double r_ij = block.rotation[index_of(i * n + j)];
          if (inverse) out[j] += r_ij * in[i]; else out[i] += r_ij * in[j];
        }
      }
    }
  }
  return y;
}

/// One coupling step on the two halves, in place: `active` becomes active exp(L(s)) + t (or the way back). Adds sum L(s) of each sample.
inline void reference_step(const ReferenceBlock& block, int step, const Positions& at, const Doubles& passive, Doubles& active,
                           const Doubles& condition, bool inverse, Doubles& logdet) {
  const auto& s = block.shape;
  const std::int64_t count = s.active(step);
  const SubnetRun run = reference_subnet(block.subnets[step], at, concatenated(passive, s.passive(step), condition, s.condition, at.rows()));
  const Doubles& a = run.inputs.back();
  for (std::int64_t r = 0; r < at.rows(); ++r) {
    for (std::int64_t c = 0; c < count; ++c) {
      const double scale =
          reference_clamp(s.clamp, static_cast<double>(s.alpha), (s.has_global_affine() ? 0.1 : 1.0) * a[index_of(r * 2 * count + c)]);
      const double shift = (s.has_global_affine() ? 0.1 : 1.0) * a[index_of(r * 2 * count + count + c)];
      double& x = active[index_of(r * count + c)];
      x = inverse ? (x - shift) * std::exp(-scale) : x * std::exp(scale) + shift;
      logdet[index_of(r / at.per_sample())] += inverse ? -scale : scale;
    }
  }
}

/// Adds the block's log-determinant to `logdet` [batch].
inline Doubles reference_forward(const ReferenceBlock& block, const Positions& at, const Doubles& x, const Doubles& condition, Doubles& logdet) {
  const auto& s = block.shape;
  const Doubles in = s.kind == nn::BlockKind::glow ? mix(block, x, false) : x;
  Doubles first = channels_of(in, s.channels, 0, s.first()), second = channels_of(in, s.channels, s.first(), s.second());
  for (int step = 0; step < s.steps(); ++step) {
    const bool changes_first = s.changes_first(step);
    reference_step(block, step, at, changes_first ? second : first, changes_first ? first : second, condition, false, logdet);
  }
  Doubles out = concatenated(first, s.first(), second, s.second(), at.rows());
  if (!s.has_global_affine()) return out;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::size_t c = i % index_of(s.channels);
    out[i] = out[i] * reference_global_scale(block.global_scale[c]) + block.global_offset[c];
  }
  for (double& l : logdet) {
    for (double raw : block.global_scale) l += static_cast<double>(at.per_sample()) * std::log(reference_global_scale(raw));
  }
  return mix(block, out, false);
}

inline Doubles reference_inverse(const ReferenceBlock& block, const Positions& at, const Doubles& y, const Doubles& condition) {
  const auto& s = block.shape;
  Doubles out = y;
  if (s.has_global_affine()) {
    out = mix(block, y, true);
    for (std::size_t i = 0; i < out.size(); ++i) {
      const std::size_t c = i % index_of(s.channels);
      out[i] = (out[i] - block.global_offset[c]) / reference_global_scale(block.global_scale[c]);
    }
  }
  Doubles first = channels_of(out, s.channels, 0, s.first()), second = channels_of(out, s.channels, s.first(), s.second());
  Doubles unused(index_of(at.batch));
  for (int step = s.steps() - 1; step >= 0; --step) {
    const bool changes_first = s.changes_first(step);
    reference_step(block, step, at, changes_first ? second : first, changes_first ? first : second, condition, true, unused);
  }
  const Doubles in = concatenated(first, s.first(), second, s.second(), at.rows());
  return s.kind == nn::BlockKind::glow ? mix(block, in, true) : in;
}

/// dL/dx from the block's input, dL/dy and dL/dlogdet [batch]; adds to `gradient` and to `dcondition`.
inline Doubles reference_backward(const ReferenceBlock& block, const Positions& at, const Doubles& x, const Doubles& condition, const Doubles& dy,
                                  const Doubles& dlogdet, ReferenceBlock& gradient, Doubles& dcondition) {
  const auto& s = block.shape;
  const double gain = s.has_global_affine() ? 0.1 : 1.0;
  const Doubles in = s.kind == nn::BlockKind::glow ? mix(block, x, false) : x;
  // Forward again, keeping what each step started from.
  Doubles halves[2] = {channels_of(in, s.channels, 0, s.first()), channels_of(in, s.channels, s.first(), s.second())};
  Doubles before[2];
  Doubles unused(index_of(at.batch));
  for (int step = 0; step < s.steps(); ++step) {
    const int active = s.changes_first(step) ? 0 : 1;
    before[step] = halves[active];
    reference_step(block, step, at, halves[1 - active], halves[active], condition, false, unused);
  }

  Doubles dv = dy;
  if (s.has_global_affine()) {
    const Doubles v = concatenated(halves[0], s.first(), halves[1], s.second(), at.rows());
    dv = mix(block, dy, true);
    for (std::size_t i = 0; i < dv.size(); ++i) {
      const std::size_t c = i % index_of(s.channels);
      gradient.global_offset[c] += dv[i];
      gradient.global_scale[c] += dv[i] * v[i] * reference_global_scale_slope(block.global_scale[c]);
      dv[i] *= reference_global_scale(block.global_scale[c]);
    }
    for (std::size_t c = 0; c < block.global_scale.size(); ++c) {
      const double raw = block.global_scale[c];
      for (double d : dlogdet) {
        gradient.global_scale[c] += d * static_cast<double>(at.per_sample()) * reference_global_scale_slope(raw) / reference_global_scale(raw);
      }
    }
  }
  Doubles dhalves[2] = {channels_of(dv, s.channels, 0, s.first()), channels_of(dv, s.channels, s.first(), s.second())};

  for (int step = s.steps() - 1; step >= 0; --step) {
    const int active = s.changes_first(step) ? 0 : 1, passive = 1 - active;
    const std::int64_t count = s.active(step), passive_count = s.passive(step);
    // The passive half is what the subnet saw: later steps were undone already.
    const SubnetRun run = reference_subnet(block.subnets[step], at, concatenated(halves[passive], passive_count, condition, s.condition, at.rows()));
    const Doubles& a = run.inputs.back();
    Doubles da(a.size());
    for (std::int64_t r = 0; r < at.rows(); ++r) {
      for (std::int64_t c = 0; c < count; ++c) {
        const std::size_t at_s = index_of(r * 2 * count + c), at_t = at_s + index_of(count), at_x = index_of(r * count + c);
        const double raw = gain * a[at_s], scale = std::exp(reference_clamp(s.clamp, static_cast<double>(s.alpha), raw));
        const double d = dhalves[active][at_x];
        const double d_log_scale = d * before[step][at_x] * scale + dlogdet[index_of(r / at.per_sample())];
        da[at_s] = gain * d_log_scale * reference_clamp_slope(s.clamp, static_cast<double>(s.alpha), raw);
        da[at_t] = gain * d;
        dhalves[active][at_x] = d * scale;
      }
    }
    halves[active] = before[step];
    const Doubles din = reference_subnet_backward(block.subnets[step], at, run, da, gradient.subnets[step]);
    const std::int64_t width = passive_count + s.condition;
    for (std::int64_t r = 0; r < at.rows(); ++r) {
      for (std::int64_t c = 0; c < passive_count; ++c) dhalves[passive][index_of(r * passive_count + c)] += din[index_of(r * width + c)];
      for (std::int64_t c = 0; c < s.condition; ++c) dcondition[index_of(r * s.condition + c)] += din[index_of(r * width + passive_count + c)];
    }
  }
  const Doubles din = concatenated(dhalves[0], s.first(), dhalves[1], s.second(), at.rows());
  return s.kind == nn::BlockKind::glow ? mix(block, din, true) : din;
}

/// A block's parameters for the device: nn::parameter_layout. `permutation` and `rotation` are packed by nn::pack_permutation and nn::pack_rotation.
inline std::vector<float> packed_parameters(const ReferenceBlock& block) {
  const nn::ParameterLayout layout = nn::parameter_layout(block.shape);
  std::vector<float> packed(index_of(layout.total));
  for (int step = 0; step < block.shape.steps(); ++step) {
    for (std::size_t l = 0; l < block.subnets[step].size(); ++l) {
      const ReferenceLayer& layer = block.subnets[step][l];
      const std::vector<float> weight(layer.weight.begin(), layer.weight.end()), bias(layer.bias.begin(), layer.bias.end());
      const Status status = nn::pack_layer(layout.layers[step][l], {weight, bias}, packed);
      NORMA_EXPECTS(status.ok());
    }
  }
  for (std::size_t c = 0; c < block.global_scale.size(); ++c) {
    packed[index_of(layout.global_scale) + c] = static_cast<float>(block.global_scale[c]);
    packed[index_of(layout.global_offset) + c] = static_cast<float>(block.global_offset[c]);
  }
  return packed;
}

/// A block for tests: subnet layers of side `kernel` with the given hidden channels.
inline nn::CouplingShape flow_shape(nn::BlockKind kind, nn::ScaleClamp clamp, nn::ChannelMixing mixing, std::int64_t channels, std::int64_t condition,
                             std::int64_t kernel, std::vector<std::int64_t> hidden) {
  nn::CouplingShape s;
  s.kind = kind;
  s.clamp = clamp;
  s.mixing = mixing;
  s.alpha = 1.9f;
  s.channels = channels;
  s.condition = condition;
  s.layers = static_cast<int>(hidden.size()) + 1;
  for (int l = 0; l < s.layers; ++l) s.kernels[l] = kernel;
  std::copy(hidden.begin(), hidden.end(), s.hidden);
  return s;
}

}  // namespace norma::test
