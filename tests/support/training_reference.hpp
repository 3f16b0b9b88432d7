/// \file
/// A network's forward pass as plain loops in double over the graph itself, for checking gradients: no plan, no packing, no kept values.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include <norma/nn/training/executor.hpp>

#include "reference.hpp"

namespace norma::test {

/// All numbers in double. `numbers` is laid out as Parameters are.
class TrainingReference {
 public:
  TrainingReference(const nn::TrainingPlan& plan, const nn::ParameterTable& layout, std::int64_t batch, nn::BatchNorm batch_norm)
      : plan_(plan), layout_(layout), batch_(batch), batch_norm_(batch_norm) {}

  using Values = std::vector<double>;

  /// The taps' values, [n, h, w, c] each.
  [[nodiscard]] std::vector<Values> forward(const Values& numbers, const Values& input) const {
    std::vector<Values> values(static_cast<std::size_t>(plan_.size()));
    values[0] = input;
    for (int id = 1; id < plan_.size(); ++id) {
      if (plan_.node(id).needed) values[static_cast<std::size_t>(id)] = run(id, numbers, values);
    }
    std::vector<Values> taps;
    for (const auto& tap : plan_.taps()) taps.push_back(values[static_cast<std::size_t>(tap.node)]);
    return taps;
  }
  /// Sum over the taps of values times factors.
  [[nodiscard]] double loss(const Values& numbers, const Values& input, const std::vector<std::vector<float>>& factors) const {
    const auto taps = forward(numbers, input);
    double sum = 0.0;
    for (std::size_t t = 0; t < taps.size(); ++t) {
      for (std::size_t i = 0; i < taps[t].size(); ++i) sum += taps[t][i] * static_cast<double>(factors[t][i]);
    }
    return sum;
  }

 private:
  [[nodiscard]] const double* tensor(const Values& numbers, const std::string& name) const {
    return numbers.data() + layout_.find(name)->offset;
  }
  static std::size_t at(Shape shape, std::int64_t n, std::int64_t y, std::int64_t x, std::int64_t c) {
    return static_cast<std::size_t>(((n * shape.height + y) * shape.width + x) * shape.channels + c);
  }

  void batch_norm(int id, const std::string& prefix, const Values& numbers, Values& v) const {
    const nn::Node& node = plan_.graph()[id];
    const Shape s = plan_.node(id).out;
    const auto count = static_cast<double>(batch_ * s.positions());
    for (std::int64_t c = 0; c < s.channels; ++c) {
      double mean = tensor(numbers, prefix + ".running_mean")[c], variance = tensor(numbers, prefix + ".running_var")[c];
      if (batch_norm_ == nn::BatchNorm::training && plan_.node(id).trained) {
        mean = variance = 0.0;
        for (std::size_t i = static_cast<std::size_t>(c); i < v.size(); i += static_cast<std::size_t>(s.channels)) mean += v[i] / count;
        for (std::size_t i = static_cast<std::size_t>(c); i < v.size(); i += static_cast<std::size_t>(s.channels)) {
          variance += (v[i] - mean) * (v[i] - mean) / count;
        }
      }
      const double factor = tensor(numbers, prefix + ".weight")[c] / std::sqrt(variance + static_cast<double>(node.epsilon));
      const double shift = tensor(numbers, prefix + ".bias")[c];
      for (std::size_t i = static_cast<std::size_t>(c); i < v.size(); i += static_cast<std::size_t>(s.channels)) {
        v[i] = (v[i] - mean) * factor + shift;
      }
    }
  }

  // s[h] = bias[h] + sum over g of mix[h, g] s[g].
  void mix(std::vector<Values>& s, const Values& numbers, const std::string& name) const {
    const std::vector<Values> before = s;
    for (std::size_t h = 0; h < s.size(); ++h)
      for (std::size_t i = 0; i < s[h].size(); ++i) {
        s[h][i] = tensor(numbers, name + ".bias")[h];
        for (std::size_t g = 0; g < s.size(); ++g) s[h][i] += tensor(numbers, name + ".weight")[h * s.size() + g] * before[g][i];
      }
  }
  static void softmax_rows(Values& s, std::int64_t count) {
    for (auto row = s.begin(); row != s.end(); row += count) {
      const double most = *std::max_element(row, row + count);
      double sum = 0.0;
      for (std::int64_t u = 0; u < count; ++u) sum += row[u] = std::exp(row[u] - most);
      for (std::int64_t u = 0; u < count; ++u) row[u] /= sum;
    }
  }

  [[nodiscard]] Values run(int id, const Values& numbers, const std::vector<Values>& values) const {
    using nn::Op;
    const nn::Node& node = plan_.graph()[id];
    const nn::TrainingNode& about = plan_.node(id);
    const Shape in = about.in, out = about.out;
    const Values& x = values[static_cast<std::size_t>(node.inputs[0])];
    const Values* second = node.input_count > 1 ? &values[static_cast<std::size_t>(node.inputs[1])] : nullptr;
    const std::string name(node.name.view());
    Values y(static_cast<std::size_t>(batch_ * out.count()));
    const auto each = [&](auto&& body) {
      for (std::int64_t n = 0; n < batch_; ++n)
        for (std::int64_t i = 0; i < out.height; ++i)
          for (std::int64_t j = 0; j < out.width; ++j)
            for (std::int64_t c = 0; c < out.channels; ++c) y[at(out, n, i, j, c)] = body(n, i, j, c);
    };
    const int kh = node.kernel.height, kw = node.kernel.width, stride = node.stride, dilation = node.dilation;
    const nn::Padding pad = about.padding;
    switch (node.op) {
      case Op::convolution: {
        const double* w = tensor(numbers, name + ".weight");
        if (node.transposed) {
          for (std::int64_t n = 0; n < batch_; ++n)
            for (std::int64_t i = 0; i < in.height; ++i)
              for (std::int64_t j = 0; j < in.width; ++j)
                for (int u = 0; u < kh; ++u)
                  for (int v = 0; v < kw; ++v) {
                    const std::int64_t oy = i * stride + u - pad.top, ox = j * stride + v - pad.left;
                    if (oy < 0 || oy >= out.height || ox < 0 || ox >= out.width) continue;
                    for (std::int64_t c = 0; c < in.channels; ++c)
                      for (std::int64_t o = 0; o < out.channels; ++o)
                        y[at(out, n, oy, ox, o)] += x[at(in, n, i, j, c)] * w[((c * out.channels + o) * kh + u) * kw + v];
                  }
        } else {
          const std::int64_t in_group = in.channels / node.groups, out_group = out.channels / node.groups;
          each([&](std::int64_t n, std::int64_t i, std::int64_t j, std::int64_t o) {
            double sum = 0.0;
            for (int u = 0; u < kh; ++u)
              for (int v = 0; v < kw; ++v) {
                std::int64_t iy = i * stride + u * dilation - pad.top, ix = j * stride + v * dilation - pad.left;
                if (node.padding.kind == nn::PaddingKind::reflect) {
                  iy = std::min(std::abs(iy), 2 * (in.height - 1) - std::abs(iy));
                  ix = std::min(std::abs(ix), 2 * (in.width - 1) - std::abs(ix));
                }
                if (iy < 0 || iy >= in.height || ix < 0 || ix >= in.width) continue;
                for (std::int64_t c = 0; c < in_group; ++c) {
                  sum += x[at(in, n, iy, ix, o / out_group * in_group + c)] * w[((o * in_group + c) * kh + u) * kw + v];
                }
              }
            return sum;
          });
        }
        if (node.bias) {
          const double* bias = tensor(numbers, name + ".bias");
          for (std::size_t i = 0; i < y.size(); ++i) y[i] += bias[i % static_cast<std::size_t>(out.channels)];
        }
        if (node.norm == nn::Norm::batch) batch_norm(id, std::string(node.second.view()), numbers, y);
        break;
      }
      case Op::linear: {
        const double* w = tensor(numbers, name + ".weight");
        each([&](std::int64_t n, std::int64_t i, std::int64_t j, std::int64_t o) {
          double sum = node.bias ? tensor(numbers, name + ".bias")[o] : 0.0;
          for (std::int64_t c = 0; c < in.channels; ++c) sum += x[at(in, n, i, j, c)] * w[o * in.channels + c];
          return sum;
        });
        break;
      }
      case Op::max_pool:
      case Op::average_pool:
        each([&](std::int64_t n, std::int64_t i, std::int64_t j, std::int64_t c) {
          double most = -std::numeric_limits<double>::infinity(), sum = 0.0;
          std::int64_t inside = 0, padded = 0;
          for (int u = 0; u < kh; ++u)
            for (int v = 0; v < kw; ++v) {
              const std::int64_t iy = i * stride + u - pad.top, ix = j * stride + v - pad.left;
              if (iy < in.height + pad.bottom && ix < in.width + pad.right) ++padded;
              if (iy < 0 || iy >= in.height || ix < 0 || ix >= in.width) continue;
              ++inside;
              most = std::max(most, x[at(in, n, iy, ix, c)]);
              sum += x[at(in, n, iy, ix, c)];
            }
          return node.op == Op::max_pool ? most : sum / static_cast<double>(node.count_include_pad ? padded : inside);
        });
        break;
      case Op::global_average_pool:
      case Op::adaptive_average_pool:
        each([&](std::int64_t n, std::int64_t i, std::int64_t j, std::int64_t c) {
          double sum = 0.0, count = 0.0;
          for (std::int64_t iy = i * in.height / out.height; iy < ((i + 1) * in.height + out.height - 1) / out.height; ++iy)
            for (std::int64_t ix = j * in.width / out.width; ix < ((j + 1) * in.width + out.width - 1) / out.width; ++ix, ++count) {
              sum += x[at(in, n, iy, ix, c)];
            }
          return sum / count;
        });
        break;
      case Op::add:
        for (std::size_t i = 0; i < y.size(); ++i) y[i] = x[i] + (*second)[i];
        break;
      case Op::multiply: {
        const bool gate = second->size() != y.size();
        each([&](std::int64_t n, std::int64_t i, std::int64_t j, std::int64_t c) {
          return x[at(out, n, i, j, c)] *
                 (gate ? (*second)[static_cast<std::size_t>(n * out.channels + c)] : (*second)[at(out, n, i, j, c)]);
        });
        break;
      }
      case Op::concat: {
        std::int64_t first = 0;
        for (int p = 0; p < node.input_count; ++p) {
          const int part = node.inputs[static_cast<std::size_t>(p)];
          const Shape shape = plan_.node(part).out;
          for (std::int64_t i = 0; i < batch_ * shape.positions(); ++i)
            for (std::int64_t c = 0; c < shape.channels; ++c) {
              y[static_cast<std::size_t>(i * out.channels + first + c)] =
                  values[static_cast<std::size_t>(part)][static_cast<std::size_t>(i * shape.channels + c)];
            }
          first += shape.channels;
        }
        break;
      }
      case Op::slice: each([&](auto n, auto i, auto j, auto c) { return x[at(in, n, i, j, node.offset + c)]; }); break;
      case Op::flatten:
        each([&](auto n, auto, auto, auto c) { return x[at(in, n, c % in.positions() / in.width, c % in.width, c / in.positions())]; });
        break;
      case Op::activation: y = x; break;
      case Op::layer_scale: each([&](auto n, auto i, auto j, auto c) { return x[at(in, n, i, j, c)] * tensor(numbers, name)[c]; }); break;
      case Op::batch_norm:
        y = x;
        batch_norm(id, name, numbers, y);
        break;
      case Op::layer_norm:
      case Op::instance_norm: {
        const bool layer = node.op == Op::layer_norm;
        each([&](std::int64_t n, std::int64_t i, std::int64_t j, std::int64_t c) {
          double mean = 0.0, variance = 0.0;
          const std::int64_t count = layer ? in.channels : in.positions();
          const auto element = [&](std::int64_t k) { return layer ? x[at(in, n, i, j, k)] : x[at(in, n, k / in.width, k % in.width, c)]; };
          for (std::int64_t k = 0; k < count; ++k) mean += element(k) / static_cast<double>(count);
          for (std::int64_t k = 0; k < count; ++k) variance += (element(k) - mean) * (element(k) - mean) / static_cast<double>(count);
          const double xhat = (x[at(in, n, i, j, c)] - mean) / std::sqrt(variance + static_cast<double>(node.epsilon));
          return layer ? xhat * tensor(numbers, name + ".weight")[c] + tensor(numbers, name + ".bias")[c] : xhat;
        });
        break;
      }
      case Op::resize: {
        const auto source = [&](std::int64_t o, std::int64_t from, std::int64_t to) {
          const double position =
              node.interpolation == nn::Interpolation::bilinear_corners
                  ? (to > 1 ? static_cast<double>(o * (from - 1)) / static_cast<double>(to - 1) : 0.0)
                  : std::max((static_cast<double>(o) + 0.5) * static_cast<double>(from) / static_cast<double>(to) - 0.5, 0.0);
          return std::min(position, static_cast<double>(from - 1));
        };
        each([&](std::int64_t n, std::int64_t i, std::int64_t j, std::int64_t c) {
          if (node.interpolation == nn::Interpolation::nearest) return x[at(in, n, i / node.factor, j / node.factor, c)];
          const double sy = source(i, in.height, out.height), sx = source(j, in.width, out.width);
          const auto y0 = static_cast<std::int64_t>(sy), x0 = static_cast<std::int64_t>(sx);
          const std::int64_t y1 = std::min(y0 + 1, in.height - 1), x1 = std::min(x0 + 1, in.width - 1);
          const double v = sy - static_cast<double>(y0), u = sx - static_cast<double>(x0);
          return (x[at(in, n, y0, x0, c)] * (1 - u) + x[at(in, n, y0, x1, c)] * u) * (1 - v) +
                 (x[at(in, n, y1, x0, c)] * (1 - u) + x[at(in, n, y1, x1, c)] * u) * v;
        });
        break;
      }
      case Op::tokens: {
        const std::string classes[] = {std::string(node.second.view()), std::string(node.third.view())};
        each([&](std::int64_t n, std::int64_t, std::int64_t t, std::int64_t c) {
          double v = name.empty() ? 0.0 : tensor(numbers, name)[t * out.channels + c];
          if (t >= node.class_tokens) return v + x[at(in, n, 0, t - node.class_tokens, c)];  // positions in order, whatever the width
          const bool first = t == 0 && !classes[0].empty();
          return v + tensor(numbers, classes[first ? 0 : 1])[c];
        });
        break;
      }
      case Op::grid: each([&](auto n, auto i, auto j, auto c) { return x[at(in, n, 0, node.class_tokens + i * out.width + j, c)]; }); break;
      case Op::token: each([&](auto n, auto, auto, auto c) { return x[at(in, n, 0, node.offset, c)]; }); break;
      case Op::join_tokens: {
        const Shape other = plan_.node(node.inputs[1]).out;
        each([&](auto n, auto, auto t, auto c) {
          return t < in.positions() ? x[at(in, n, 0, t, c)] : (*second)[at(other, n, 0, t - in.positions(), c)];
        });
        break;
      }
      case Op::attention:
      case Op::talking_heads_attention:
        for (std::int64_t n = 0; n < batch_; ++n) {
          const std::int64_t tokens = in.positions(), heads = node.heads, dim = out.channels / heads;
          const auto part = [&](std::int64_t which, std::int64_t h, std::int64_t t, std::int64_t d) {
            return x[at(in, n, 0, t, (which * heads + h) * dim + d)];
          };
          std::vector<Values> weights(static_cast<std::size_t>(heads), Values(static_cast<std::size_t>(tokens * tokens)));
          for (std::int64_t h = 0; h < heads; ++h)
            for (std::int64_t t = 0; t < tokens; ++t)
              for (std::int64_t u = 0; u < tokens; ++u) {
                double dot = 0.0;
                for (std::int64_t d = 0; d < dim; ++d) dot += part(0, h, t, d) * part(1, h, u, d);
                weights[static_cast<std::size_t>(h)][static_cast<std::size_t>(t * tokens + u)] = dot / std::sqrt(static_cast<double>(dim));
              }
          if (node.op == Op::talking_heads_attention) mix(weights, numbers, name);
          for (Values& w : weights) softmax_rows(w, tokens);
          if (node.op == Op::talking_heads_attention) mix(weights, numbers, std::string(node.second.view()));
          for (std::int64_t h = 0; h < heads; ++h)
            for (std::int64_t t = 0; t < tokens; ++t)
              for (std::int64_t d = 0; d < dim; ++d) {
                double sum = 0.0;
                for (std::int64_t u = 0; u < tokens; ++u) {
                  sum += weights[static_cast<std::size_t>(h)][static_cast<std::size_t>(t * tokens + u)] * part(2, h, u, d);
                }
                y[at(out, n, 0, t, h * dim + d)] = sum;
              }
        }
        break;
      case Op::class_attention: {
        const Values& query = values[static_cast<std::size_t>(node.inputs[2])];
        const std::int64_t tokens = in.positions(), dim = out.channels / node.heads;
        for (std::int64_t n = 0; n < batch_; ++n)
          for (std::int64_t h = 0; h < node.heads; ++h) {
            Values weights(static_cast<std::size_t>(tokens));
            for (std::int64_t u = 0; u < tokens; ++u)
              for (std::int64_t d = h * dim; d < (h + 1) * dim; ++d) {
                weights[static_cast<std::size_t>(u)] +=
                    query[at(out, n, 0, 0, d)] * x[at(in, n, 0, u, d)] / std::sqrt(static_cast<double>(dim));
              }
            softmax_rows(weights, tokens);
            for (std::int64_t d = h * dim; d < (h + 1) * dim; ++d)
              for (std::int64_t u = 0; u < tokens; ++u) {
                y[at(out, n, 0, 0, d)] += weights[static_cast<std::size_t>(u)] * (*second)[at(in, n, 0, u, d)];
              }
          }
        break;
      }
      case Op::input: break;
    }
    for (double& v : y) v = test::activate(v, node.activation);
    return y;
  }

  const nn::TrainingPlan& plan_;
  const nn::ParameterTable& layout_;
  std::int64_t batch_;
  nn::BatchNorm batch_norm_;
};

}  // namespace norma::test
