// Networks run by the executor against plain loops in double over the graph itself: no plan, no folding, no packing.
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/thread_pool.hpp>
#include <norma/nn/executor.hpp>

#include "../support/count_allocations.hpp"
#include "../support/reference.hpp"

namespace {

using norma::Activation;
using norma::Arena;
using norma::Buffer;
using norma::Errc;
using norma::Parallel;
using norma::Random;
using norma::Result;
using norma::Shape;
using norma::Status;
using norma::Tensor;
using norma::TensorView;
using norma::ThreadPool;
using norma::test::Scratch;
using namespace norma::nn;
namespace io = norma::io;

struct Stored {
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};
using Store = std::map<std::string, Stored>;

std::uint64_t hash(std::string_view text) {
  std::uint64_t h = 1469598103934665603u;
  for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return h;
}

// Random tensors for everything that a plan reads, of sizes that keep a network's values near one.
Store random_store(const Plan& plan) {
  Store store;
  for (const Step& step : plan.steps()) {
    const Node& node = plan.graph()[step.node];
    for (const TensorSpec& spec : NodeTensors(node, step.in, step.out)) {
      Random random(hash(spec.name()));
      Stored tensor{{spec.shape().begin(), spec.shape().end()}, std::vector<float>(static_cast<std::size_t>(spec.count()))};
      const double fan_in = static_cast<double>(spec.count() / spec.dims[0]);
      for (float& v : tensor.values) {
        switch (spec.role) {
          case TensorRole::weight:
            v = static_cast<float>(spec.rank == 1 ? 1.0 + 0.3 * random.normal() : random.normal() / std::sqrt(fan_in));
            break;
          case TensorRole::norm_variance: v = static_cast<float>(random.uniform(0.3, 2.0)); break;
          case TensorRole::norm_weight:
          case TensorRole::scale: v = static_cast<float>(random.uniform(0.5, 1.5)); break;
          default: v = static_cast<float>(0.3 * random.normal()); break;
        }
      }
      store[spec.name()] = std::move(tensor);
    }
  }
  return store;
}
io::Weights to_weights(const Store& store, std::string_view name = "test.safetensors") {
  io::TensorFileWriter writer;
  for (const auto& [key, tensor] : store) REQUIRE(writer.add(key, tensor.shape, tensor.values).ok());
  auto bytes = writer.to_bytes();
  REQUIRE(bytes.ok());
  auto weights = io::Weights::from_bytes(*std::move(bytes), name);
  REQUIRE(weights.ok());
  return *std::move(weights);
}

// ---- the reference -------------------------------------------------------------------------------------------------------

struct Value {
  Shape shape;
  std::vector<double> data;
  [[nodiscard]] double& at(std::int64_t y, std::int64_t x, std::int64_t c) {
    return data[static_cast<std::size_t>((y * shape.width + x) * shape.channels + c)];
  }
  [[nodiscard]] double at(std::int64_t y, std::int64_t x, std::int64_t c) const {
    return data[static_cast<std::size_t>((y * shape.width + x) * shape.channels + c)];
  }
};
Value make_value(Shape shape) { return {shape, std::vector<double>(static_cast<std::size_t>(shape.count()))}; }

void each(const Value& v, const std::function<void(std::int64_t, std::int64_t, std::int64_t)>& body) {
  for (std::int64_t y = 0; y < v.shape.height; ++y)
    for (std::int64_t x = 0; x < v.shape.width; ++x)
      for (std::int64_t c = 0; c < v.shape.channels; ++c) body(y, x, c);
}

// One image through all nodes up to the last; shapes are the plan's.
std::vector<Value> reference(const Plan& plan, const Store& store, TensorView<const float> image) {
  const GraphView graph = plan.graph();
  std::vector<Value> values(static_cast<std::size_t>(graph.size()));
  values[0] = make_value(image.shape());
  for (std::size_t i = 0; i < values[0].data.size(); ++i) values[0].data[i] = double{image.data[i]};
  const auto get = [&](std::string_view prefix, const char* suffix) -> const std::vector<float>& {
    return store.at(std::string(prefix) + suffix).values;
  };
  for (int id = 1; id < graph.size(); ++id) {
    const Node& node = graph[id];
    if (plan.shape(id) == Shape{}) continue;  // nobody asked for it
    const Value& in = values[static_cast<std::size_t>(node.inputs[0])];
    PlanIssue issue;
    const Shape second = node.input_count > 1 ? values[static_cast<std::size_t>(node.inputs[1])].shape : Shape{};
    const Shape like = node.like >= 0 ? values[static_cast<std::size_t>(node.like)].shape : Shape{};
    Value out = make_value(norma::nn::detail::output_shape(node, id, in.shape, second, like, issue));
    REQUIRE(issue.error == PlanError::none);
    const Padding pad = norma::nn::detail::resolve_padding(node, in.shape);
    const auto normed = [&](std::string_view norm, double v, std::size_t c) {
      return (v - double{get(norm, ".running_mean")[c]}) / std::sqrt(double{get(norm, ".running_var")[c]} + node.epsilon) *
                 double{get(norm, ".weight")[c]} +
             double{get(norm, ".bias")[c]};
    };
    const auto size = [](std::int64_t n) { return static_cast<std::size_t>(n); };
    switch (node.op) {
      case Op::convolution: {
        const auto& w = get(node.name, ".weight");
        const std::int64_t in_group = in.shape.channels / node.groups, out_group = out.shape.channels / node.groups;
        if (node.transposed) {
          each(in, [&](std::int64_t y, std::int64_t x, std::int64_t i) {
            for (std::int64_t o = 0; o < out_group; ++o)
              for (int u = 0; u < node.kernel.height; ++u)
                for (int v = 0; v < node.kernel.width; ++v) {
                  const std::int64_t oy = y * node.stride + u * node.dilation - pad.top, ox = x * node.stride + v * node.dilation - pad.left;
                  if (oy < 0 || ox < 0 || oy >= out.shape.height || ox >= out.shape.width) continue;
                  out.at(oy, ox, i / in_group * out_group + o) +=
                      in.at(y, x, i) * double{w[size(((i * out_group + o) * node.kernel.height + u) * node.kernel.width + v)]};
                }
          });
          each(out, [&](std::int64_t y, std::int64_t x, std::int64_t o) {
            if (node.bias) out.at(y, x, o) += double{get(node.name, ".bias")[size(o)]};
            if (node.norm == Norm::batch) out.at(y, x, o) = normed(node.second, out.at(y, x, o), size(o));
          });
          break;
        }
        const auto mirrored = [&](std::int64_t at, std::int64_t length) {
          if (pad.kind != PaddingKind::reflect) return at;
          return at < 0 ? -at : at >= length ? 2 * length - 2 - at : at;
        };
        each(out, [&](std::int64_t y, std::int64_t x, std::int64_t o) {
          double sum = 0.0;
          for (int u = 0; u < node.kernel.height; ++u)
            for (int v = 0; v < node.kernel.width; ++v) {
              const std::int64_t iy = mirrored(y * node.stride + u * node.dilation - pad.top, in.shape.height);
              const std::int64_t ix = mirrored(x * node.stride + v * node.dilation - pad.left, in.shape.width);
              if (iy < 0 || ix < 0 || iy >= in.shape.height || ix >= in.shape.width) continue;
              for (std::int64_t i = 0; i < in_group; ++i) {
                sum += in.at(iy, ix, o / out_group * in_group + i) *
                       double{w[size(((o * in_group + i) * node.kernel.height + u) * node.kernel.width + v)]};
              }
            }
          if (node.bias) sum += double{get(node.name, ".bias")[size(o)]};
          if (node.norm == Norm::batch) sum = normed(node.second, sum, size(o));
          out.at(y, x, o) = sum;
        });
        break;
      }
      case Op::linear: {
        const auto& w = get(node.name, ".weight");
        each(out, [&](std::int64_t y, std::int64_t x, std::int64_t o) {
          double sum = node.bias ? double{get(node.name, ".bias")[size(o)]} : 0.0;
          for (std::int64_t i = 0; i < in.shape.channels; ++i) sum += in.at(y, x, i) * double{w[size(o * in.shape.channels + i)]};
          out.at(y, x, o) = sum;
        });
        break;
      }
      case Op::max_pool:
      case Op::average_pool:
        each(out, [&](std::int64_t y, std::int64_t x, std::int64_t c) {
          double most = -std::numeric_limits<double>::infinity(), sum = 0.0;
          int inside = 0, padded = 0;
          for (int u = 0; u < node.kernel.height; ++u)
            for (int v = 0; v < node.kernel.width; ++v) {
              const std::int64_t iy = y * node.stride + u - pad.top, ix = x * node.stride + v - pad.left;
              if (iy < in.shape.height + pad.bottom && ix < in.shape.width + pad.right) ++padded;
              if (iy < 0 || ix < 0 || iy >= in.shape.height || ix >= in.shape.width) continue;
              most = std::max(most, in.at(iy, ix, c));
              sum += in.at(iy, ix, c);
              ++inside;
            }
          out.at(y, x, c) = node.op == Op::max_pool ? most : sum / (node.count_include_pad ? padded : inside);
        });
        break;
      case Op::global_average_pool:
        each(in, [&](std::int64_t y, std::int64_t x, std::int64_t c) {
          out.at(0, 0, c) += in.at(y, x, c) / static_cast<double>(in.shape.positions());
        });
        break;
      case Op::adaptive_average_pool:
        each(out, [&](std::int64_t y, std::int64_t x, std::int64_t c) {
          const auto first = [](std::int64_t i, std::int64_t n, std::int64_t m) { return i * n / m; };
          const auto last = [](std::int64_t i, std::int64_t n, std::int64_t m) { return ((i + 1) * n + m - 1) / m; };
          const std::int64_t y0 = first(y, in.shape.height, out.shape.height), y1 = last(y, in.shape.height, out.shape.height);
          const std::int64_t x0 = first(x, in.shape.width, out.shape.width), x1 = last(x, in.shape.width, out.shape.width);
          for (std::int64_t iy = y0; iy < y1; ++iy)
            for (std::int64_t ix = x0; ix < x1; ++ix) out.at(y, x, c) += in.at(iy, ix, c) / static_cast<double>((y1 - y0) * (x1 - x0));
        });
        break;
      case Op::flatten:
        each(in, [&](std::int64_t y, std::int64_t x, std::int64_t c) {
          out.at(0, 0, (c * in.shape.height + y) * in.shape.width + x) = in.at(y, x, c);
        });
        break;
      case Op::instance_norm: {
        const auto count = static_cast<double>(in.shape.positions());
        for (std::int64_t c = 0; c < in.shape.channels; ++c) {
          double mean = 0.0, variance = 0.0;
          for (std::int64_t p = 0; p < in.shape.positions(); ++p) mean += in.data[size(p * in.shape.channels + c)] / count;
          for (std::int64_t p = 0; p < in.shape.positions(); ++p) variance += std::pow(in.data[size(p * in.shape.channels + c)] - mean, 2) / count;
          for (std::int64_t p = 0; p < in.shape.positions(); ++p) {
            const std::size_t at = size(p * in.shape.channels + c);
            out.data[at] = (in.data[at] - mean) / std::sqrt(variance + node.epsilon);
          }
        }
        break;
      }
      case Op::add:
      case Op::multiply: {
        const Value& other = values[size(node.inputs[1])];
        const bool gate = other.shape.positions() == 1;
        each(out, [&](std::int64_t y, std::int64_t x, std::int64_t c) {
          const double b = gate ? other.at(0, 0, c) : other.at(y, x, c);
          out.at(y, x, c) = node.op == Op::add ? in.at(y, x, c) + b : in.at(y, x, c) * b;
        });
        break;
      }
      case Op::concat: {
        std::int64_t first = 0;
        for (int i = 0; i < node.input_count; ++i) {
          const Value& part = values[size(node.inputs[size(i)])];
          each(part, [&](std::int64_t y, std::int64_t x, std::int64_t c) { out.at(y, x, first + c) = part.at(y, x, c); });
          first += part.shape.channels;
        }
        break;
      }
      case Op::activation: out.data = in.data; break;
      case Op::layer_norm:
        for (std::int64_t p = 0; p < in.shape.positions(); ++p) {
          const double* row = in.data.data() + p * in.shape.channels;
          double mean = 0.0, variance = 0.0;
          for (std::int64_t c = 0; c < in.shape.channels; ++c) mean += row[c] / static_cast<double>(in.shape.channels);
          for (std::int64_t c = 0; c < in.shape.channels; ++c)
            variance += (row[c] - mean) * (row[c] - mean) / static_cast<double>(in.shape.channels);
          for (std::int64_t c = 0; c < in.shape.channels; ++c) {
            out.data[size(p * in.shape.channels + c)] =
                (row[c] - mean) / std::sqrt(variance + node.epsilon) * double{get(node.name, ".weight")[size(c)]} +
                double{get(node.name, ".bias")[size(c)]};
          }
        }
        break;
      case Op::tokens: {
        const std::int64_t channels = out.shape.channels;
        for (std::int64_t t = 0; t < out.shape.width; ++t) {
          for (std::int64_t c = 0; c < channels; ++c) {
            double v = node.name.empty() ? 0.0 : double{get(node.name, "")[size(t * channels + c)]};
            if (t < node.class_tokens) {
              v += double{get((t == 0 && !node.second.empty() ? node.second : node.third), "")[size(c)]};
            } else {
              v += in.data[size((t - node.class_tokens) * channels + c)];
            }
            out.at(0, t, c) = v;
          }
        }
        break;
      }
      case Op::talking_heads_attention: {
        const std::int64_t tokens = in.shape.width, channels = out.shape.channels, heads = node.heads, dim = channels / heads;
        const auto mix = [&](std::vector<double>& v, std::string_view tensor) {  // v [heads, tokens]
          std::vector<double> mixed(v.size());
          for (std::int64_t h = 0; h < heads; ++h)
            for (std::int64_t u = 0; u < tokens; ++u) {
              double sum = double{get(tensor, ".bias")[size(h)]};
              for (std::int64_t g = 0; g < heads; ++g) sum += double{get(tensor, ".weight")[size(h * heads + g)]} * v[size(g * tokens + u)];
              mixed[size(h * tokens + u)] = sum;
            }
          v = mixed;
        };
        for (std::int64_t t = 0; t < tokens; ++t) {
          std::vector<double> score(size(heads * tokens));
          for (std::int64_t h = 0; h < heads; ++h)
            for (std::int64_t u = 0; u < tokens; ++u)
              for (std::int64_t d = 0; d < dim; ++d)
                score[size(h * tokens + u)] += in.at(0, t, h * dim + d) * in.at(0, u, channels + h * dim + d) / std::sqrt(static_cast<double>(dim));
          mix(score, node.name);
          for (std::int64_t h = 0; h < heads; ++h) {
            double sum = 0.0;
            for (std::int64_t u = 0; u < tokens; ++u) sum += score[size(h * tokens + u)] = std::exp(score[size(h * tokens + u)]);
            for (std::int64_t u = 0; u < tokens; ++u) score[size(h * tokens + u)] /= sum;
          }
          mix(score, node.second);
          for (std::int64_t h = 0; h < heads; ++h)
            for (std::int64_t u = 0; u < tokens; ++u)
              for (std::int64_t d = 0; d < dim; ++d)
                out.at(0, t, h * dim + d) += score[size(h * tokens + u)] * in.at(0, u, 2 * channels + h * dim + d);
        }
        break;
      }
      case Op::class_attention: {
        const Value& v = values[size(node.inputs[1])];
        const Value& q = values[size(node.inputs[2])];
        const std::int64_t tokens = in.shape.width, dim = in.shape.channels / node.heads;
        for (int h = 0; h < node.heads; ++h) {
          double sum = 0.0;
          std::vector<double> weight(size(tokens));
          for (std::int64_t u = 0; u < tokens; ++u) {
            double dot = 0.0;
            for (std::int64_t d = 0; d < dim; ++d) dot += q.at(0, 0, h * dim + d) * in.at(0, u, h * dim + d);
            sum += weight[size(u)] = std::exp(dot / std::sqrt(static_cast<double>(dim)));
          }
          for (std::int64_t u = 0; u < tokens; ++u)
            for (std::int64_t d = 0; d < dim; ++d) out.at(0, 0, h * dim + d) += weight[size(u)] / sum * v.at(0, u, h * dim + d);
        }
        break;
      }
      case Op::join_tokens: {
        const Value& other = values[size(node.inputs[1])];
        std::copy(in.data.begin(), in.data.end(), out.data.begin());
        std::copy(other.data.begin(), other.data.end(), out.data.begin() + static_cast<std::ptrdiff_t>(in.data.size()));
        break;
      }
      case Op::attention: {
        const std::int64_t tokens = in.shape.width, channels = out.shape.channels, dim = channels / node.heads;
        for (int h = 0; h < node.heads; ++h)
          for (std::int64_t t = 0; t < tokens; ++t) {
            std::vector<double> weight(size(tokens));
            double sum = 0.0;
            for (std::int64_t u = 0; u < tokens; ++u) {
              double dot = 0.0;
              for (std::int64_t d = 0; d < dim; ++d) dot += in.at(0, t, h * dim + d) * in.at(0, u, channels + h * dim + d);
              sum += weight[size(u)] = std::exp(dot / std::sqrt(static_cast<double>(dim)));
            }
            for (std::int64_t u = 0; u < tokens; ++u)
              for (std::int64_t d = 0; d < dim; ++d)
                out.at(0, t, h * dim + d) += weight[size(u)] / sum * in.at(0, u, 2 * channels + h * dim + d);
          }
        break;
      }
      case Op::resize:
        each(out, [&](std::int64_t y, std::int64_t x, std::int64_t c) {
          if (node.interpolation == Interpolation::nearest) {
            out.at(y, x, c) = in.at(y / node.factor, x / node.factor, c);
            return;
          }
          const auto source = [&](std::int64_t at, std::int64_t before, std::int64_t after) {
            if (node.interpolation == Interpolation::bilinear) return std::max(0.0, (static_cast<double>(at) + 0.5) / node.factor - 0.5);
            return after == 1 ? 0.0 : static_cast<double>(at * (before - 1)) / static_cast<double>(after - 1);
          };
          const double fy = source(y, in.shape.height, out.shape.height), fx = source(x, in.shape.width, out.shape.width);
          const auto y0 = static_cast<std::int64_t>(fy), x0 = static_cast<std::int64_t>(fx);
          const std::int64_t y1 = std::min(y0 + 1, in.shape.height - 1), x1 = std::min(x0 + 1, in.shape.width - 1);
          const double a = fy - static_cast<double>(y0), b = fx - static_cast<double>(x0);
          out.at(y, x, c) =
              (1 - a) * ((1 - b) * in.at(y0, x0, c) + b * in.at(y0, x1, c)) + a * ((1 - b) * in.at(y1, x0, c) + b * in.at(y1, x1, c));
        });
        break;
      case Op::grid: std::copy(in.data.begin() + node.class_tokens * in.shape.channels, in.data.end(), out.data.begin()); break;
      case Op::token: std::copy_n(in.data.begin() + node.offset * in.shape.channels, in.shape.channels, out.data.begin()); break;
      case Op::layer_scale:
        each(out, [&](std::int64_t y, std::int64_t x, std::int64_t c) {
          out.at(y, x, c) = in.at(y, x, c) * double{get(node.name, "")[size(c)]};
        });
        break;
      case Op::batch_norm:
        each(out, [&](std::int64_t y, std::int64_t x, std::int64_t c) { out.at(y, x, c) = normed(node.name, in.at(y, x, c), size(c)); });
        break;
      case Op::slice:
        each(out, [&](std::int64_t y, std::int64_t x, std::int64_t c) { out.at(y, x, c) = in.at(y, x, node.offset + c); });
        break;
      default: FAIL("no reference for this operation");
    }
    for (double& v : out.data) v = norma::test::activate(v, node.activation);
    values[size(id)] = std::move(out);
  }
  return values;
}

// ---- running -------------------------------------------------------------------------------------------------------------

struct Outputs {
  std::vector<Tensor<float>> taps;
};
Outputs run(const Executor& executor, TensorView<const float> input, int threads) {
  ThreadPool pool(threads);
  Scratch memory(executor.workspace_bytes(input.batch, threads));
  Arena arena = memory.arena();
  std::vector<TensorView<const float>> views(executor.plan().taps().size());
  const Status status = executor.run(input, arena, pool.parallel(), views);
  INFO(status.message());
  REQUIRE(status.ok());
  Outputs out;
  for (const auto& view : views) {
    out.taps.emplace_back(view.batch, view.shape());
    std::memcpy(out.taps.back().data(), view.data, static_cast<std::size_t>(view.count()) * sizeof(float));
  }
  return out;
}
bool same_bits(const Tensor<float>& a, const Tensor<float>& b) {
  return a.shape() == b.shape() && a.batch() == b.batch() &&
         std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.view().count()) * sizeof(float)) == 0;
}

// Batches of 1 and 3 against the reference, and the same bits for 1, 2 and 4 threads and for each image alone.
// Bound: rounding a layer costs about sqrt(k) 2^-24 of the rms of what it sums, k <= 300 terms; 24 layers that each at most double
// what came before only where normalisation divides by a small deviation: 24 * sqrt(300) * 2^-24 * 8 = 2e-4 of the rms.
void check_network(GraphView graph, std::span<const int> taps, std::int64_t height, std::int64_t width, std::uint64_t seed) {
  auto plan = Plan::create(graph, taps, height, width);
  INFO(plan.message());
  REQUIRE(plan.ok());
  const Store store = random_store(*plan);
  const auto executor = Executor::create(*plan, to_weights(store));
  INFO(executor.message());
  REQUIRE(executor.ok());
  const auto input = norma::test::normal_tensor(3, plan->input(), seed);
  const Outputs all = run(*executor, input.view(), 1);
  for (const int threads : {2, 4}) {
    const Outputs again = run(*executor, input.view(), threads);
    for (std::size_t t = 0; t < taps.size(); ++t) {
      CAPTURE(threads);
      CAPTURE(t);
      CHECK(same_bits(all.taps[t], again.taps[t]));
    }
  }
  for (std::int64_t n = 0; n < 3; ++n) {
    const Outputs one = run(*executor, input.view().image(n), 2);
    const auto want = reference(*plan, store, input.view().image(n));
    for (std::size_t t = 0; t < taps.size(); ++t) {
      CAPTURE(n);
      CAPTURE(t);
      const auto view = all.taps[t].view().image(n);
      CHECK(std::memcmp(view.data, one.taps[t].data(), static_cast<std::size_t>(view.count()) * sizeof(float)) == 0);
      const Value& expected = want[static_cast<std::size_t>(taps[t])];
      REQUIRE(expected.shape == view.shape());
      double square = 0.0, error = 0.0;
      for (std::int64_t i = 0; i < view.count(); ++i) {
        const double difference = double{view.data[i]} - expected.data[static_cast<std::size_t>(i)];
        square += expected.data[static_cast<std::size_t>(i)] * expected.data[static_cast<std::size_t>(i)];
        error += difference * difference;
      }
      REQUIRE(square > 0.0);
      CHECK(std::sqrt(error / square) <= 2e-4);
    }
  }
}

template <int Capacity>
struct Network {
  std::unique_ptr<Graph<Capacity>> graph = std::make_unique<Graph<Capacity>>();
  Builder b{*graph};
};

}  // namespace

TEST_CASE("executor: convolutions of every kind, pooling, sums and gates") {
  Network<40> net;
  Builder& b = net.b;
  const int x = b.input(3);
  int y = b.convolution(x, {.name = "stem",
                            .out_channels = 16,
                            .kernel = 3,
                            .stride = 2,
                            .padding = Padding::same(),
                            .norm = "bn",
                            .epsilon = 1e-3f,
                            .activation = Activation::relu6});
  const int stem = y;
  y = b.max_pool(y, {.kernel = 3, .stride = 2, .padding = 0, .ceil_mode = true});
  const int expand = b.convolution(y, {.name = "expand", .out_channels = 24, .norm = "bn1", .activation = Activation::hard_swish});
  const int depthwise = b.convolution(expand, {.name = "dw",
                                               .out_channels = 24,
                                               .kernel = 5,
                                               .padding = Padding::same(),
                                               .groups = 24,
                                               .norm = "bn2",
                                               .activation = Activation::silu});
  int gate = b.global_average_pool(depthwise);
  gate = b.convolution(gate, {.name = "se.fc1", .out_channels = 6, .bias = true, .activation = Activation::relu});
  gate = b.convolution(gate, {.name = "se.fc2", .out_channels = 24, .bias = true, .activation = Activation::sigmoid});
  const int gated = b.multiply(depthwise, gate);
  const int project = b.convolution(gated, {.name = "project", .out_channels = 16, .bias = true, .norm = "bn3"});
  const int sum = b.add(project, y, Activation::relu);
  const int grouped = b.convolution(sum, {.name = "grouped",
                                          .out_channels = 8,
                                          .kernel = {3, 1},
                                          .padding = {2, 0, 2, 0},
                                          .dilation = 2,
                                          .groups = 4,
                                          .bias = true,
                                          .activation = Activation::leaky_relu});
  const int averaged = b.average_pool(sum, {.kernel = 3, .stride = 1, .padding = 1, .count_include_pad = false});
  const int joined = b.concat(grouped, averaged, sum);
  const int mixed = b.convolution(joined, {.name = "mixed", .out_channels = 16, .kernel = 3, .padding = 1});
  const int product = b.multiply(mixed, sum);
  const int tail = b.activation(b.add(product, averaged), Activation::tanh);
  const int head = b.linear(b.global_average_pool(tail), {.name = "fc", .out_channels = 10});
  check_network(*net.graph, std::vector<int>{stem, sum, tail, head}, 29, 35, 1);
  check_network(*net.graph, std::vector<int>{head, product}, 16, 16, 2);
  check_network(*net.graph, std::vector<int>{sum}, 1 + 4, 7, 3);
}

TEST_CASE("executor: a transformer") {
  Network<40> net;
  Builder& b = net.b;
  const int patches = b.convolution(b.input(3), {.name = "patch_embed.proj", .out_channels = 24, .kernel = 4, .stride = 4, .bias = true});
  int x = b.tokens(patches, {.position_embedding = "pos_embed", .class_token = "cls_token", .second_token = "dist_token"});
  std::vector<int> taps;
  for (int i = 0; i < 2; ++i) {
    const Name p = name("blocks.", i, ".");
    int y = b.layer_norm(x, {.name = p + "norm1", .epsilon = 1e-6f});
    y = b.linear(y, {.name = p + "attn.qkv", .out_channels = 72});
    y = b.attention(y, 3);
    y = b.linear(y, {.name = p + "attn.proj", .out_channels = 24});
    y = b.layer_scale(y, p + "gamma_1");
    x = b.add(x, y);
    y = b.layer_norm(x, {.name = p + "norm2", .epsilon = 1e-6f});
    y = b.linear(y, {.name = p + "mlp.fc1", .out_channels = 40, .activation = Activation::gelu});
    y = b.linear(y, {.name = p + "mlp.fc2", .out_channels = 24, .bias = false});
    x = b.add(y, x);
    taps.push_back(b.grid(x, patches, 2));
  }
  taps.push_back(b.first_token(x));
  check_network(*net.graph, taps, 20, 28, 4);
  // Without class tokens, and without a position embedding.
  Network<6> plain;
  const int grid = plain.b.convolution(plain.b.input(2), {.name = "embed", .out_channels = 6, .kernel = 2, .stride = 2, .bias = true});
  const int tokens = plain.b.tokens(grid, {.position_embedding = "pos"});
  const int back = plain.b.grid(tokens, grid, 0);
  check_network(*plain.graph, std::vector<int>{tokens, back}, 6, 4, 5);
}

TEST_CASE("executor: enlarging, slices and a norm on its own") {
  Network<20> net;
  Builder& b = net.b;
  const int x = b.convolution(b.input(5), {.name = "c", .out_channels = 12, .kernel = 3, .stride = 2, .padding = 1, .bias = true});
  const int normed = b.batch_norm(x, "bn", 1e-5f, Activation::relu);
  const int nearest = b.resize(normed, 2, Interpolation::nearest);
  const int bilinear = b.resize(normed, 3, Interpolation::bilinear);
  const int corners = b.resize(normed, 2, Interpolation::bilinear_corners);
  const int part = b.slice(nearest, 3, 7);
  const int last = b.convolution(part, {.name = "d", .out_channels = 4, .kernel = 3, .padding = 1});
  check_network(*net.graph, std::vector<int>{normed, nearest, bilinear, corners, part, last}, 9, 12, 6);
}

TEST_CASE("executor: random networks") {
  for (std::uint64_t seed = 0; seed < 25; ++seed) {
    CAPTURE(seed);
    Random random(seed, 7);
    Network<64> net;
    Builder& b = net.b;
    std::vector<int> ids{b.input(4)};
    const auto pick = [&] {
      return ids[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(std::min<std::size_t>(ids.size(), 5))) +
                                          static_cast<std::int64_t>(ids.size() > 5 ? ids.size() - 5 : 0))];
    };
    const int count = 6 + static_cast<int>(random.below(10));
    for (int i = 0; i < count; ++i) {
      const int x = pick(), other = pick();
      switch (random.below(7)) {
        case 0:
        case 1:
          ids.push_back(b.convolution(x, {.name = name("c", i), .out_channels = 4, .kernel = 3, .padding = 1, .norm = name("n", i)}));
          break;
        case 2:
          ids.push_back(b.convolution(x, {.name = name("a", i), .out_channels = 4, .bias = true, .activation = Activation::relu}));
          break;
        case 3: ids.push_back(b.add(x, other, Activation::tanh)); break;
        case 4: ids.push_back(b.activation(x, Activation::silu)); break;
        case 5: ids.push_back(b.multiply(x, b.global_average_pool(b.activation(other, Activation::sigmoid)))); break;
        default:
          ids.push_back(
              b.convolution(b.concat(x, other), {.name = name("j", i), .out_channels = 4, .bias = true, .activation = Activation::tanh}));
          break;
      }
    }
    check_network(*net.graph,
                  std::vector<int>{ids.back(), ids[1 + static_cast<std::size_t>(random.below(static_cast<std::int64_t>(ids.size()) - 1))]},
                  6, 7, seed);
  }
}

namespace {

// Two convolutions with norm, one without, a branch that nobody taps.
struct Small {
  Network<8> net;
  int tap = 0;
  Small() {
    Builder& b = net.b;
    const int x = b.input(3);
    const int y =
        b.convolution(x, {.name = "conv1", .out_channels = 6, .kernel = 3, .padding = 1, .norm = "bn1", .activation = Activation::relu});
    const int z = b.convolution(y, {.name = "conv2", .out_channels = 6, .norm = "bn2"});
    tap = b.convolution(b.add(z, y), {.name = "conv3", .out_channels = 5, .bias = true});
    b.tap("conv3", tap);
    b.tap("fc", b.linear(b.global_average_pool(tap), {.name = "fc", .out_channels = 4}));
  }
  [[nodiscard]] Plan plan(std::int64_t height = 6, std::int64_t width = 8) const {
    auto made = Plan::create(*net.graph, std::span<const int>(&tap, 1), height, width);
    REQUIRE(made.ok());
    return *std::move(made);
  }
  [[nodiscard]] Result<Executor> create(const io::Weights& weights, SurplusTensors surplus = SurplusTensors::refuse) const {
    return Executor::create(plan(), weights, surplus);
  }
};

Store folded(Store store) {
  for (const int i : {1, 2}) {
    const std::string conv = "conv" + std::to_string(i), norm = "bn" + std::to_string(i);
    const auto get = [&](const char* suffix) { return store.at(norm + suffix).values; };
    auto& weight = store.at(conv + ".weight").values;
    Stored bias{{6}, std::vector<float>(6)};
    for (std::size_t o = 0; o < 6; ++o) {
      const double scale = double{get(".weight")[o]} / std::sqrt(double{get(".running_var")[o]} + 1e-5);
      for (std::size_t k = 0; k < weight.size() / 6; ++k)
        weight[o * weight.size() / 6 + k] = static_cast<float>(scale * double{weight[o * weight.size() / 6 + k]});
      bias.values[o] = static_cast<float>(double{get(".bias")[o]} - scale * double{get(".running_mean")[o]});
    }
    store[conv + ".bias"] = bias;
    for (const char* suffix : {".weight", ".bias", ".running_mean", ".running_var"}) store.erase(norm + suffix);
  }
  return store;
}

void refused(const Small& small, const Store& store, Errc code, std::initializer_list<const char*> parts) {
  const auto executor = small.create(to_weights(store));
  REQUIRE_FALSE(executor.ok());
  INFO(executor.message());
  CHECK(executor.code() == code);
  CHECK(executor.message().find("test.safetensors") != std::string::npos);
  for (const char* part : parts) CHECK(executor.message().find(part) != std::string::npos);
}

}  // namespace

TEST_CASE("executor: batch norm folded in the file gives what folding it here gives") {
  const Small small;
  const Store store = random_store(small.plan());
  const auto plain = small.create(to_weights(store));
  const auto file = small.create(to_weights(folded(store)));
  INFO(file.message());
  REQUIRE(plain.ok());
  REQUIRE(file.ok());
  const auto input = norma::test::normal_tensor(1, {6, 8, 3}, 11);
  const auto a = run(*plain, input.view(), 1), b = run(*file, input.view(), 1);
  // Both round the same products once; only the order of two roundings may differ: a few units in the last place of values near one.
  for (std::int64_t i = 0; i < a.taps[0].view().count(); ++i) CHECK(std::abs(a.taps[0].data()[i] - b.taps[0].data()[i]) <= 4e-6f);
  // PyTorch's counter of batches belongs to the norm and is ignored.
  Store counted_batches = store;
  counted_batches["bn1.num_batches_tracked"] = {{1}, {3.0f}};
  CHECK(small.create(to_weights(counted_batches)).ok());
}

TEST_CASE("executor: weights that do not fit are named") {
  const Small small;
  const Store good = random_store(small.plan());
  CHECK(small.create(to_weights(good)).ok());
  Store bad = good;
  SUBCASE("missing") {
    bad.erase("conv3.weight");
    refused(small, bad, Errc::not_found, {"node 4 (convolution 'conv3')", "conv3.weight"});
  }
  SUBCASE("missing bias") {
    bad.erase("conv3.bias");
    refused(small, bad, Errc::not_found, {"conv3.bias"});
  }
  SUBCASE("a norm with a hole") {
    bad.erase("bn2.running_var");
    refused(small, bad, Errc::not_found, {"'conv2'", "bn2.running_var"});
  }
  SUBCASE("neither norm nor bias") {
    for (const char* suffix : {".weight", ".bias", ".running_mean", ".running_var"}) bad.erase(std::string("bn1") + suffix);
    refused(small, bad, Errc::not_found, {"'conv1'", "'bn1.*'", "'conv1.bias'", "found neither"});
  }
  SUBCASE("both") {
    bad["conv1.bias"] = {{6}, std::vector<float>(6)};
    refused(small, bad, Errc::corrupt, {"'conv1'", "found both"});
  }
  SUBCASE("of another shape") {
    bad["conv2.weight"] = {{6, 6, 3, 3}, std::vector<float>(324)};
    refused(small, bad, Errc::shape_mismatch, {"'conv2'", "[6, 6, 3, 3]", "expected [6, 6, 1, 1]"});
  }
  SUBCASE("a matrix where a convolution is expected") {
    bad["conv2.weight"].shape = {6, 6};
    refused(small, bad, Errc::shape_mismatch, {"[6, 6]"});
  }
  SUBCASE("another network's") {
    bad["layer9.weight"] = {{1}, {1.0f}};
    bad["layer9.bias"] = {{1}, {1.0f}};
    refused(small, bad, Errc::wrong_type, {"2 tensors", "layer9."});
    CHECK(small.create(to_weights(bad), SurplusTensors::allow).ok());
  }
  SUBCASE("not a number") {
    bad["conv2.weight"].values[7] = std::numeric_limits<float>::quiet_NaN();
    refused(small, bad, Errc::not_finite, {"conv2.weight"});
  }
  SUBCASE("infinite") {
    bad["conv3.bias"].values[0] = std::numeric_limits<float>::infinity();
    refused(small, bad, Errc::not_finite, {"conv3.bias"});
  }
  SUBCASE("a negative variance") {
    bad["bn1.running_var"].values[2] = -1.0f;
    refused(small, bad, Errc::not_finite, {"'bn1'", "channel 2"});
  }
  SUBCASE("a dead channel is fine") {
    bad["bn1.running_var"].values[2] = 0.0f;
    CHECK(small.create(to_weights(bad)).ok());
  }
  SUBCASE("integers") {
    io::TensorFileWriter writer;
    for (const auto& [key, tensor] : good) {
      if (key == "conv3.bias") {
        REQUIRE(writer.add(key, tensor.shape, std::vector<std::int64_t>(tensor.values.size())).ok());
      } else {
        REQUIRE(writer.add(key, tensor.shape, tensor.values).ok());
      }
    }
    auto bytes = writer.to_bytes();
    REQUIRE(bytes.ok());
    const auto executor = small.create(*io::Weights::from_bytes(*std::move(bytes), "test.safetensors"));
    CHECK(executor.code() == Errc::wrong_type);
    CHECK(executor.message().find("conv3.bias") != std::string::npos);
  }
}

TEST_CASE("executor: what no tap needs is not read, and what was read can be written again") {
  const Small small;
  Store store = random_store(small.plan());  // no fc
  const auto lean = small.create(to_weights(store));
  REQUIRE(lean.ok());
  const std::vector<std::string> names(lean->live_tensor_names().begin(), lean->live_tensor_names().end());
  CHECK(names.size() == store.size());
  for (const auto& [key, tensor] : store) CHECK(std::find(names.begin(), names.end(), key) != names.end());

  store["fc.weight"] = {{4, 99}, std::vector<float>(4 * 99)};  // of the graph, but dead: not even its shape is looked at
  const io::Weights source = to_weights(store);
  const auto executor = small.create(source);
  REQUIRE(executor.ok());
  io::TensorFileWriter writer;
  REQUIRE(executor->export_weights(source, writer).ok());
  auto bytes = writer.to_bytes();
  REQUIRE(bytes.ok());
  const auto copy = io::Weights::from_bytes(*std::move(bytes));
  REQUIRE(copy.ok());
  CHECK(copy->tensors().size() == names.size());
  CHECK(copy->find("fc.weight") == nullptr);
  const auto again = small.create(*copy);
  REQUIRE(again.ok());
  const auto input = norma::test::normal_tensor(2, {6, 8, 3}, 12);
  CHECK(same_bits(run(*executor, input.view(), 1).taps[0], run(*again, input.view(), 1).taps[0]));
}

TEST_CASE("executor: two layers may share their weights") {
  Network<4> net;
  int x = net.b.input(4);
  for (int i = 0; i < 2; ++i) x = net.b.convolution(x, {.name = "shared", .out_channels = 4, .kernel = 3, .padding = 1, .bias = true});
  check_network(*net.graph, std::vector<int>{x}, 5, 5, 17);
  const auto plan = Plan::create(*net.graph, std::span<const int>(&x, 1), 5, 5);
  REQUIRE(plan.ok());
  const io::Weights source = to_weights(random_store(*plan));
  const auto executor = Executor::create(*plan, source);
  REQUIRE(executor.ok());
  CHECK(executor->live_tensor_names().size() == 2);
  io::TensorFileWriter writer;
  CHECK(executor->export_weights(source, writer).ok());
}

TEST_CASE("executor: running allocates nothing") {
  const Small small;
  const auto executor = small.create(to_weights(random_store(small.plan())));
  REQUIRE(executor.ok());
  const auto input = norma::test::normal_tensor(2, {6, 8, 3}, 13);
  for (const int threads : {1, 4}) {
    ThreadPool pool(threads);
    Scratch memory(executor->workspace_bytes(2, threads));
    Arena arena = memory.arena();
    TensorView<const float> tap;
    bool fine = true;
    const std::int64_t before = norma::test::allocation_count();
    for (int i = 0; i < 3; ++i) {
      const Arena::Scope scope(arena);
      fine = fine && executor->run(input.view(), arena, pool.parallel(), std::span(&tap, 1)).ok();
    }
    CHECK(norma::test::allocation_count() == before);
    CHECK(fine);
    CHECK(arena.used() == 0);
  }
}

TEST_CASE("executor: arguments") {
  const Small small;
  const auto executor = small.create(to_weights(random_store(small.plan())));
  REQUIRE(executor.ok());
  const auto input = norma::test::normal_tensor(1, {6, 8, 3}, 14);
  Scratch memory(executor->workspace_bytes(1, 1));
  TensorView<const float> tap;
  SUBCASE("another size") {
    Arena arena = memory.arena();
    const auto other = norma::test::normal_tensor(1, {8, 6, 3}, 15);
    const Status status = executor->run(other.view(), arena, {}, std::span(&tap, 1));
    CHECK(status.code() == Errc::shape_mismatch);
    CHECK(status.message() == "nn::Executor::run: the input is 8 x 6 x 3, expected 6 x 8 x 3");
  }
  SUBCASE("too few places for the outputs") {
    Arena arena = memory.arena();
    CHECK(executor->run(input.view(), arena, {}, {}).code() == Errc::invalid_argument);
  }
  SUBCASE("a workspace one byte too small") {
    Scratch less(executor->workspace_bytes(1, 1) - 1);
    Arena arena = less.arena();
    CHECK(executor->run(input.view(), arena, {}, std::span(&tap, 1)).code() == Errc::out_of_memory);
    CHECK(arena.used() == 0);
  }
  SUBCASE("no images") {
    Arena arena = memory.arena();
    const TensorView<const float> none(input.data(), 0, Shape{6, 8, 3});
    REQUIRE(executor->run(none, arena, {}, std::span(&tap, 1)).ok());
    CHECK(tap.batch == 0);
    CHECK(tap.shape() == Shape{6, 8, 5});
  }
  SUBCASE("nothing loaded") {
    Arena arena = memory.arena();
    CHECK(Executor().run(input.view(), arena, {}, {}).code() == Errc::not_fitted);
  }
  SUBCASE("each step is timed once") {
    Arena arena = memory.arena();
    std::vector<int> seen;
    seen.reserve(10);
    const StepTimer timer{&seen, [](void* context, int step, double seconds) {
                            if (seconds >= 0.0) static_cast<std::vector<int>*>(context)->push_back(step);
                          }};
    REQUIRE(executor->run(input.view(), arena, {}, std::span(&tap, 1), timer).ok());
    CHECK(seen == std::vector<int>{0, 1, 2});
  }
}

TEST_CASE("executor: the picture as an output is the picture") {
  Network<2> net;
  const int x = net.b.input(3);
  const auto plan = Plan::create(*net.graph, std::span<const int>(&x, 1), 4, 4);
  REQUIRE(plan.ok());
  const auto executor = Executor::create(*plan, to_weights({}));
  INFO(executor.message());
  REQUIRE(executor.ok());
  const auto input = norma::test::normal_tensor(1, {4, 4, 3}, 16);
  Arena arena;
  TensorView<const float> tap;
  REQUIRE(executor->run(input.view(), arena, {}, std::span(&tap, 1)).ok());
  CHECK(tap.data == input.data());
}

TEST_CASE("executor: transposed convolutions of every kind") {
  Network<20> net;
  Builder& b = net.b;
  const int x = b.convolution(b.input(5), {.name = "c", .out_channels = 6, .kernel = 3, .padding = 1, .bias = true});
  std::vector<int> taps;
  const auto add = [&](const Convolution& settings) { taps.push_back(b.transposed_convolution(x, settings)); };
  add({.name = "plain", .out_channels = 7, .kernel = 4, .stride = 2, .padding = 1, .bias = true, .activation = Activation::leaky_relu});
  add({.name = "normed", .out_channels = 8, .kernel = 2, .stride = 2, .bias = true, .norm = "bn", .activation = Activation::relu});
  add({.name = "uneven", .out_channels = 3, .kernel = {3, 5}, .stride = 2, .padding = {1, 2, 0, 1}});
  add({.name = "dilated", .out_channels = 4, .kernel = 3, .padding = 1, .dilation = 2});
  add({.name = "grouped", .out_channels = 9, .kernel = 3, .stride = 3, .groups = 3, .norm = "bn2"});
  add({.name = "depthwise", .out_channels = 6, .kernel = 4, .stride = 2, .padding = 1, .groups = 6});
  add({.name = "gaps", .out_channels = 5, .kernel = 2, .stride = 3, .bias = true});  // a kernel smaller than its stride leaves zeros
  const int same = b.transposed_convolution(x, {.name = "same", .out_channels = 6, .kernel = 3, .padding = 1, .norm = "bn3"});
  taps.push_back(b.add(same, x, Activation::relu));
  check_network(*net.graph, taps, 7, 5, 21);
  check_network(*net.graph, taps, 1, 3, 22);
  const auto plan = Plan::create(*net.graph, taps, 7, 5);
  REQUIRE(plan.ok());
  CHECK(plan->summary().fused_adds == 1);
}

TEST_CASE("executor: reflection padding") {
  // Windows of 3x3 with few channels (gathered), with many (Winograd), strided, dilated, grouped, one channel a group, uneven.
  Network<20> net;
  Builder& b = net.b;
  const int x = b.input(3);
  const int wide = b.convolution(x, {.name = "few", .out_channels = 24, .kernel = 3, .padding = Padding::reflect(1), .activation = Activation::relu});
  std::vector<int> taps{wide};
  const auto add = [&](const Convolution& settings) { taps.push_back(b.convolution(wide, settings)); };
  Padding uneven{2, 0, 1, 3};
  uneven.kind = PaddingKind::reflect;
  add({.name = "many", .out_channels = 20, .kernel = 3, .padding = Padding::reflect(1), .norm = "bn"});
  add({.name = "twice", .out_channels = 16, .kernel = 3, .padding = Padding::reflect(2), .bias = true});
  add({.name = "strided", .out_channels = 8, .kernel = 5, .stride = 2, .padding = Padding::reflect(2)});
  add({.name = "dilated", .out_channels = 8, .kernel = 3, .padding = Padding::reflect(2), .dilation = 2});
  add({.name = "grouped", .out_channels = 8, .kernel = 3, .padding = Padding::reflect(1), .groups = 4});
  add({.name = "depthwise", .out_channels = 24, .kernel = 3, .padding = Padding::reflect(1), .groups = 24});
  add({.name = "uneven", .out_channels = 17, .kernel = 3, .padding = uneven});
  const int residual = b.convolution(wide, {.name = "sum", .out_channels = 24, .kernel = 3, .padding = Padding::reflect(1)});
  taps.push_back(b.add(residual, wide));
  check_network(*net.graph, taps, 13, 18, 23);
  check_network(*net.graph, taps, 4, 9, 24);
  // A pad as large as the input has nothing to mirror.
  const auto small = Plan::create(*net.graph, taps, 2, 9);
  REQUIRE_FALSE(small.ok());
  CHECK(small.code() == Errc::shape_mismatch);
}

TEST_CASE("executor: instance norm, adaptive pooling, a map as a vector") {
  Network<20> net;
  Builder& b = net.b;
  const int x = b.convolution(b.input(5), {.name = "c", .out_channels = 35, .kernel = 3, .padding = 1, .bias = true});
  const int normed = b.instance_norm(x);
  const int squashed = b.activation(b.instance_norm(b.activation(normed, Activation::relu), 0.5f), Activation::tanh);
  const int smaller = b.adaptive_average_pool(squashed, {3, 4});
  const int larger = b.adaptive_average_pool(squashed, {11, 2});
  const int vector = b.flatten(smaller, {3, 4});
  const int logits = b.linear(vector, {.name = "fc", .out_channels = 6, .activation = Activation::relu});
  check_network(*net.graph, std::vector<int>{normed, squashed, smaller, larger, vector, logits}, 7, 9, 25);
  check_network(*net.graph, std::vector<int>{logits}, 3, 4, 26);
  Network<4> wrong;
  const int flat = wrong.b.flatten(wrong.b.input(2), {3, 4});
  const auto plan = Plan::create(*wrong.graph, std::span<const int>(&flat, 1), 4, 3);
  REQUIRE_FALSE(plan.ok());
  CHECK(plan.code() == Errc::shape_mismatch);
}

TEST_CASE("executor: talking heads and class attention") {
  Network<40> net;
  Builder& b = net.b;
  const int patches = b.convolution(b.input(3), {.name = "patch_embed.proj", .out_channels = 24, .kernel = 4, .stride = 4, .bias = true});
  const int embedded = b.tokens(patches, {.position_embedding = "pos_embed"});
  int y = b.linear(b.layer_norm(embedded, {.name = "norm1"}), {.name = "qkv", .out_channels = 72});
  y = b.talking_heads_attention(y, 4, "proj_l", "proj_w");
  const int mixed = b.add(b.layer_scale(y, "gamma"), embedded);
  int cls = b.first_token(b.tokens(mixed, {.position_embedding = "", .class_token = "cls_token"}));
  std::vector<int> taps{y, mixed};
  for (int i = 0; i < 2; ++i) {
    const Name p = name("class.", i, ".");
    const int all = b.layer_norm(b.join_tokens(cls, mixed), {.name = p + "norm1"});
    const int q = b.linear(b.token(all, 0), {.name = p + "q", .out_channels = 24});
    const int k = b.linear(all, {.name = p + "k", .out_channels = 24});
    const int v = b.linear(all, {.name = p + "v", .out_channels = 24, .bias = false});
    const int attended = b.class_attention(q, k, v, 3);
    cls = b.add(b.linear(attended, {.name = p + "proj", .out_channels = 24}), cls);
    taps.push_back(attended);
  }
  taps.push_back(b.token(mixed, 3));
  check_network(*net.graph, taps, 20, 28, 27);
  check_network(*net.graph, std::vector<int>{cls}, 4, 16, 28);
  const int missing = b.token(mixed, 8);
  const auto plan = Plan::create(*net.graph, std::span<const int>(&missing, 1), 4, 16);
  REQUIRE_FALSE(plan.ok());
  CHECK(plan.code() == Errc::shape_mismatch);

  Network<8> many;
  const int heads = many.b.talking_heads_attention(many.b.linear(many.b.tokens(many.b.input(3), {.position_embedding = ""}),
                                                                 {.name = "qkv", .out_channels = 3 * 65}), 65, "l", "w");
  const auto crowded = Plan::create(*many.graph, std::span<const int>(&heads, 1), 1, 4);
  REQUIRE(crowded.ok());
  const auto executor = Executor::create(*crowded, to_weights(random_store(*crowded)));
  REQUIRE_FALSE(executor.ok());
  CHECK(executor.code() == Errc::unsupported);
  CHECK(executor.message().find("at most 64 heads, found 65") != std::string::npos);
}

TEST_CASE("executor: a position embedding of another square grid is resampled, of anything else refused") {
  Network<4> net;
  Builder& b = net.b;
  const int patches = b.convolution(b.input(1), {.name = "embed", .out_channels = 2, .kernel = 2, .stride = 2, .bias = true});
  const int tokens = b.tokens(patches, {.position_embedding = "pos_embed", .class_token = "cls_token"});
  const auto plan = Plan::create(*net.graph, std::span<const int>(&tokens, 1), 8, 12);  // 4 x 6 patches
  REQUIRE(plan.ok());
  Store store = random_store(*plan);
  for (float& v : store.at("embed.weight").values) v = 0.0f;
  for (float& v : store.at("embed.bias").values) v = 0.0f;
  for (float& v : store.at("cls_token").values) v = 0.0f;
  const auto embed = [&](std::int64_t side, const std::function<float(std::int64_t, std::int64_t, std::int64_t)>& at) {
    Stored table{{1, side * side + 1, 2}, {7.0f, -7.0f}};  // the class token's row stays
    for (std::int64_t y = 0; y < side; ++y)
      for (std::int64_t x = 0; x < side; ++x)
        for (std::int64_t c = 0; c < 2; ++c) table.values.push_back(at(y, x, c));
    store["pos_embed"] = table;
    auto executor = Executor::create(*plan, to_weights(store));
    INFO(executor.message());
    REQUIRE(executor.ok());
    return run(*executor, norma::test::normal_tensor(1, {8, 12, 1}, 1).view(), 1).taps[0];
  };
  SUBCASE("a constant stays what it is, larger and smaller") {
    for (const std::int64_t side : {1, 3, 5, 14}) {
      const auto out = embed(side, [](auto, auto, std::int64_t c) { return c == 0 ? 1.5f : -2.0f; });
      CHECK(out.data()[0] == 7.0f);
      CHECK(out.data()[1] == -7.0f);
      for (std::int64_t t = 1; t < 25; ++t) {
        CHECK(std::abs(out.data()[2 * t] - 1.5f) <= 4e-7f);
        CHECK(std::abs(out.data()[2 * t + 1] + 2.0f) <= 5e-7f);
      }
    }
  }
  SUBCASE("rows and columns are not mixed up; halving is the published filter") {
    // Channel 0 grows down, channel 1 to the right: 8 -> 4 rows and 8 -> 6 columns. One step at row 4: weights of Pillow's bicubic for a
    // factor 2 at the centres 2 o + 1, support 4, k(x) = 1.5 x^3 - 2.5 x^2 + 1 and -0.5 x^3 + 2.5 x^2 - 4 x + 2 of (j + 0.5 - centre) / 2.
    const auto out = embed(8, [](std::int64_t y, std::int64_t x, std::int64_t c) { return c == 0 ? (y >= 4 ? 1.0f : 0.0f) : static_cast<float>(x); });
    const auto k = [](double x) {
      x = std::abs(x);
      return x < 1 ? 1.5 * x * x * x - 2.5 * x * x + 1 : x < 2 ? -0.5 * x * x * x + 2.5 * x * x - 4 * x + 2 : 0.0;
    };
    for (int o = 0; o < 4; ++o) {
      double sum = 0, all = 0;
      for (int j = 0; j < 8; ++j) {
        const double weight = k((j + 0.5 - (2 * o + 1)) / 2);
        all += weight;
        if (j >= 4) sum += weight;
      }
      for (int x = 0; x < 6; ++x) CHECK(std::abs(double{out.data()[2 * (1 + o * 6 + x)]} - sum / all) <= 2e-7);
    }
    for (int x = 1; x < 6; ++x) CHECK(out.data()[2 * (1 + x) + 1] > out.data()[2 * x + 1]);
    for (int y = 1; y < 4; ++y) CHECK(out.data()[2 * (1 + 6 * y) + 1] == out.data()[2 * 1 + 1]);
  }
  SUBCASE("no square") {
    store["pos_embed"] = {{1, 7, 2}, std::vector<float>(14, 1.0f)};
    const auto executor = Executor::create(*plan, to_weights(store));
    REQUIRE_FALSE(executor.ok());
    CHECK(executor.code() == Errc::shape_mismatch);
    CHECK(executor.message().find("[1, 7, 2]") != std::string::npos);
  }
  SUBCASE("other channels") {
    store["pos_embed"] = {{1, 10, 3}, std::vector<float>(30, 1.0f)};
    CHECK(Executor::create(*plan, to_weights(store)).code() == Errc::shape_mismatch);
  }
  SUBCASE("not a number") {
    store["pos_embed"] = {{1, 10, 2}, std::vector<float>(20, std::numeric_limits<float>::quiet_NaN())};
    CHECK(Executor::create(*plan, to_weights(store)).code() == Errc::not_finite);
  }
}

TEST_CASE("executor: the plan and the kernels agree on sizes") {
  for (int size = 1; size <= 10; ++size) {
    for (int kernel = 1; kernel <= 3; ++kernel) {
      for (int stride = 1; stride <= 3; ++stride) {
        for (const bool ceil_mode : {false, true}) {
          const int pad = kernel / 2;
          if (size + 2 * pad < kernel) continue;
          Network<3> net;
          const int x = net.b.input(2);
          const int pooled = net.b.max_pool(x, {.kernel = kernel, .stride = stride, .padding = pad, .ceil_mode = ceil_mode});
          const int convolved = net.b.convolution(x, {.name = "c", .out_channels = 4, .kernel = kernel, .stride = stride, .padding = pad});
          const auto plan = Plan::create(*net.graph, std::vector<int>{pooled, convolved}, size, size + 1);
          REQUIRE(plan.ok());
          const Shape in{size, size + 1, 2};
          CHECK(plan->shape(pooled) ==
                pooling_output(in, {kernel, kernel, stride, pad, pad, pad, pad}, ceil_mode ? Rounding::ceil : Rounding::floor));
          CHECK(plan->shape(convolved) == convolution_output(in, convolution_geometry(net.graph->nodes[2], plan->steps()[1].padding), 4));
        }
      }
    }
  }
}

TEST_CASE("executor: the workspace is known before anything is loaded") {
  const Small small;
  const Plan plan = small.plan();
  const auto executor = small.create(to_weights(random_store(plan)));
  REQUIRE(executor.ok());
  for (const int workers : {1, 2, 8}) {
    for (const std::int64_t batch : {1, 3}) CHECK(executor->workspace_bytes(batch, workers) == workspace_bytes(plan, batch, workers));
  }
  CHECK(executor->weight_bytes() >= static_cast<std::size_t>(plan.summary().parameters - 24) * sizeof(float) - 24 * sizeof(float));
}

// Maps of a mebibyte between three convolutions do not go through memory: the same bits as with a tap between, which keeps the steps apart.
TEST_CASE("executor: three convolutions that run as one give the bits of the three") {
  struct Case {
    int channels, wide, out, kernel, stride;
    bool adds, stem;  // a residual; something before the first of the three
  };
  for (const Case& c : {Case{8, 64, 8, 3, 1, true, true}, Case{8, 64, 12, 3, 2, false, true}, Case{12, 70, 12, 5, 1, true, true},
                        Case{3, 64, 24, 5, 2, false, false}, Case{64, 64, 64, 3, 1, true, true}}) {
    CAPTURE(c.channels);
    CAPTURE(c.wide);
    CAPTURE(c.kernel);
    CAPTURE(c.stride);
    Network<10> net;
    Builder& b = net.b;
    int x = b.input(3);
    if (c.stem) x = b.convolution(x, {.name = "stem", .out_channels = c.channels, .kernel = 3, .padding = 1, .activation = Activation::relu});
    const int expand = b.convolution(x, {.name = "expand", .out_channels = c.wide, .norm = "bn1", .activation = Activation::relu6});
    const int depthwise = b.convolution(expand, {.name = "dw",
                                                 .out_channels = c.wide,
                                                 .kernel = c.kernel,
                                                 .stride = c.stride,
                                                 .padding = c.kernel / 2,
                                                 .groups = c.wide,
                                                 .norm = "bn2",
                                                 .activation = Activation::relu6});
    int y = b.convolution(depthwise, {.name = "project", .out_channels = c.out, .norm = "bn3"});
    if (c.adds) y = b.add(y, x);
    const int tail = b.convolution(y, {.name = "tail", .out_channels = 5, .bias = true});
    const auto one = Plan::create(*net.graph, std::vector<int>{y, tail}, 64, 65);
    const auto only_tail = Plan::create(*net.graph, std::vector<int>{tail}, 64, 65);
    const auto apart = Plan::create(*net.graph, std::vector<int>{y, tail, expand}, 64, 65);
    const auto small = Plan::create(*net.graph, std::vector<int>{y, tail}, 60, 65);
    REQUIRE((one.ok() && only_tail.ok() && apart.ok() && small.ok()));
    const int first = c.stem ? 1 : 0;
    CHECK(runs_as_one(*one, first));
    CHECK(runs_as_one(*only_tail, first));
    CHECK(!runs_as_one(*apart, first));
    CHECK(!runs_as_one(*one, first + 1));
    CHECK(runs_as_one(*small, first) == (60 * 65 * c.wide * 4 >= (1 << 20)));
    const auto weights = to_weights(random_store(*one));
    for (const std::int64_t batch : {1, 2}) {
      const auto input = norma::test::normal_tensor(batch, {64, 65, 3}, 40);
      std::vector<std::vector<float>> want;
      // With forty workers their bands do not find room in the wide map, and the steps run one after the other.
      for (const int threads : {1, 2, 3, 40}) {
        ThreadPool pool(threads);
        for (const Plan* plan : {&*apart, &*one, &*only_tail}) {
          const auto executor = Executor::create(*plan, weights);
          REQUIRE(executor.ok());
          Scratch memory(executor->workspace_bytes(batch, threads));
          Arena arena = memory.arena();
          std::vector<TensorView<const float>> taps(plan->taps().size());
          std::vector<int> seen;
          const StepTimer timer{&seen, [](void* context, int step, double) { static_cast<std::vector<int>*>(context)->push_back(step); }};
          REQUIRE(executor->run(input.view(), arena, pool.parallel(), taps, timer).ok());
          for (std::size_t s = 0; s < seen.size(); ++s) CHECK(seen[s] == static_cast<int>(s));
          CHECK(seen.size() == plan->steps().size());
          if (want.empty()) {
            for (const auto& tap : taps) want.emplace_back(tap.data, tap.data + tap.count());
          }
          for (std::size_t t = 0; t < taps.size() && t < 2; ++t) {
            const auto& expected = want[plan == &*only_tail ? 1 : t];
            REQUIRE(taps[t].count() == static_cast<std::int64_t>(expected.size()));
            CHECK(std::memcmp(taps[t].data, expected.data(), expected.size() * sizeof(float)) == 0);
          }
        }
      }
    }
  }
}
