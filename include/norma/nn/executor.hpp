/// \file
/// Runs a planned network on the host: loads the weights that the plan needs, folds batch norm into them, packs them for the
/// kernels, and walks the plan's steps.
/// Cost:        `create` reads and packs once. `run` allocates nothing; its memory is `workspace_bytes(batch, workers)`.
/// Threads:     `run` is const and re-entrant: one arena a caller.
/// Determinism: bit-equal for any number of workers, and for an image alone or in a batch.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/arena.hpp>
#include <norma/core/parallel.hpp>
#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/nn/kernels/attention.hpp>
#include <norma/nn/kernels/convolution.hpp>
#include <norma/nn/kernels/elementwise.hpp>
#include <norma/nn/kernels/inverted_residual.hpp>
#include <norma/nn/kernels/pooling.hpp>
#include <norma/nn/plan.hpp>

namespace norma::nn {

/// The numbers that the convolution kernels take.
constexpr ConvolutionGeometry convolution_geometry(const Node& node, const Padding& padding) noexcept {
  return {.kernel_height = node.kernel.height,
          .kernel_width = node.kernel.width,
          .stride = node.stride,
          .dilation = node.dilation,
          .pad_top = padding.top,
          .pad_left = padding.left,
          .pad_bottom = padding.bottom,
          .pad_right = padding.right,
          .groups = node.groups,
          .border = padding.kind == PaddingKind::reflect ? Border::mirror : Border::zeros};
}

/// The same for a transposed convolution, whose kernels take neither groups nor dilation nor a kernel smaller than its stride: those become
/// zeros of a larger dense kernel (`dense_transposed_weight`), which costs more products.
constexpr ConvolutionGeometry transposed_geometry(const Node& node, const Padding& padding) noexcept {
  const auto extent = [&](int kernel) { return node.dilation * (kernel - 1) + 1; };
  const int height = extent(node.kernel.height), width = extent(node.kernel.width);
  ConvolutionGeometry g = convolution_geometry(node, padding);
  g.kernel_height = height < node.stride ? node.stride : height;
  g.kernel_width = width < node.stride ? node.stride : width;
  g.pad_bottom += g.kernel_height - height;
  g.pad_right += g.kernel_width - width;
  g.dilation = 1;
  g.groups = 1;
  return g;
}

/// Scratch of one step, its output not counted.
constexpr std::size_t step_scratch_bytes(const Node& node, const Step& step, int workers) noexcept {
  switch (node.op) {
    case Op::convolution:
      if (node.transposed) {
        return convolution_transposed_scratch_bytes(step.in, step.out.channels, transposed_geometry(node, step.padding), workers);
      }
      return convolution_scratch_bytes(step.in, step.out.channels, convolution_geometry(node, step.padding), workers);
    case Op::linear: return linalg::gemm_scratch_bytes(step.in.positions(), step.out.channels, step.in.channels, workers);
    case Op::attention: return attention_scratch_bytes(step.in.positions(), step.out.channels, node.heads, workers);
    case Op::talking_heads_attention:
      return talking_heads_attention_scratch_bytes(step.in.positions(), step.out.channels, node.heads, workers);
    case Op::class_attention: return class_attention_scratch_bytes(step.in.positions(), node.heads);
    default: return 0;
  }
}

/// Memory that `Executor::run` takes from its arena for a plan: known before any weights are. A step's scratch lies above the values
/// that are alive while it runs.
constexpr std::size_t workspace_bytes(const Plan& plan, std::int64_t batch, int workers) noexcept {
  std::size_t most = 0;
  for (const Step& step : plan.steps()) {
    const std::size_t needed =
        static_cast<std::size_t>(step.values_end * batch) + step_scratch_bytes(plan.graph()[step.node], step, workers);
    if (needed > most) most = needed;
  }
  return arena_bytes<std::byte>(static_cast<std::int64_t>(most));
}

/// Whether steps first, first + 1 and first + 2 run as one `inverted_residual`: their maps between are read by nobody else and the wide one is
/// larger than a second-level cache (below that nothing is gained).
constexpr bool runs_as_one(const Plan& plan, int first) noexcept {
  constexpr std::int64_t kSmallest = 1 << 20;
  const auto steps = plan.steps();
  if (first + 2 >= static_cast<int>(steps.size())) return false;
  const Step* step = steps.data() + first;
  if (step[0].out.count() * 4 < kSmallest) return false;
  for (int i = 0; i < 3; ++i) {
    const Node& node = plan.graph()[step[i].node];
    if (node.op != Op::convolution || node.transposed || node.dilation != 1) return false;
    const auto wanted = i == 1 ? ConvolutionAlgorithm::depthwise : ConvolutionAlgorithm::pointwise;
    if (convolution_algorithm(step[i].in, step[i].out.channels, convolution_geometry(node, step[i].padding)) != wanted) return false;
    if (i == 2) break;
    if (step[i].residual >= 0 || step[i + 1].inputs[0] != step[i].value || plan.last_use(step[i].value) != first + i + 1) return false;
  }
  return step[2].residual != step[0].value && step[2].residual != step[1].value;
}

/// What to do with tensors of a weight file that belong to no node of the graph, asked for or not.
enum class SurplusTensors : std::uint8_t {
  refuse,  ///< a weight file: another network's weights, even if all shapes happen to fit
  allow,   ///< a model file, which holds other things beside the network
};

/// Told how long each step took; of steps that run as one (`runs_as_one`) the last is told their time and the others 0. Unused, it costs
/// nothing.
struct StepTimer {
  void* context = nullptr;
  void (*function)(void* context, int step, double seconds) = nullptr;
};

class Executor {
 public:
  Executor() = default;

  /// Loads what the taps need. Errors name the file, the tensor and the node: unknown tap, input too small, tensor missing, surplus or
  /// of another shape, weights that are not finite. The position embedding of another square grid of patches is resampled.
  static Result<Executor> create(GraphView graph, std::span<const std::string_view> taps, std::int64_t height, std::int64_t width,
                                 const io::Weights& weights, SurplusTensors surplus = SurplusTensors::refuse) {
    NORMA_TRY(auto plan, Plan::create(graph, taps, height, width));
    return create(std::move(plan), weights, surplus);
  }
  static Result<Executor> create(Plan plan, const io::Weights& weights, SurplusTensors surplus = SurplusTensors::refuse);

  [[nodiscard]] const Plan& plan() const noexcept { return plan_; }
  /// Memory that `run` takes from its arena.
  [[nodiscard]] std::size_t workspace_bytes(std::int64_t batch, int workers) const noexcept {
    return nn::workspace_bytes(plan_, batch, workers);
  }
  /// Memory of the packed weights.
  [[nodiscard]] std::size_t weight_bytes() const noexcept;

  /// input [n, height, width, channels] as planned; `taps_out` receives one view a tap, in the order in which they were asked for. The
  /// views lie in `arena` (a tapped picture: in `input`) and last until the caller's Arena::Scope ends.
  /// Errors: shape_mismatch, out_of_memory (the arena is smaller than `workspace_bytes`).
  Status run(TensorView<const float> input, Arena& arena, Parallel parallel, std::span<TensorView<const float>> taps_out,
             StepTimer timer = {}) const;

  /// Names of the tensors that were read, in the order of the network.
  [[nodiscard]] std::span<const std::string> live_tensor_names() const noexcept { return live_names_; }
  /// Adds the tensors that were read to a model file, as `source` (what `create` was given) stores them. Their bytes are not copied:
  /// `source` must live until the file is written.
  Status export_weights(const io::Weights& source, io::TensorFileWriter& writer) const {
    for (const std::string& name : live_names_) {
      NORMA_TRY(const io::TensorInfo tensor, source.get(name));
      NORMA_CHECK(writer.add_view(name, tensor.dtype, tensor.shape, tensor.bytes));
    }
    return {};
  }

 private:
  // What one step needs; which members are used depends on its operation.
  struct Layer {
    PackedConvolution convolution;
    PackedTransposedConvolution transposed;
    linalg::PackedMatrix matrix;
    Buffer<float> scale;  // layer norm, standing batch norm, layer scale; tokens: one row a token; talking heads: both mixes, see below
    Buffer<float> shift;  // bias
  };
  class Loader;

  void run_step(const Step& step, const Layer& layer, std::span<const TensorView<const float>> in, TensorView<const float> residual,
                TensorView<float> out, Parallel parallel, Arena& arena) const;

  // Three steps from `first` on as one. Its scratch and, where the output would lie over what is still read, the output lie in the memory of
  // the wide map, which is not written. Whether there is room for that.
  bool run_as_one(std::size_t first, TensorView<const float> x, TensorView<const float> residual, TensorView<float> wide,
                  TensorView<float> out, Parallel parallel) const;

  Plan plan_;
  std::vector<Layer> layers_;  // one a step
  std::vector<std::string> live_names_;
};

namespace detail {

/// Where one output of a resampled axis takes its values from.
struct ResampledAt {
  std::int64_t first = 0;
  std::vector<double> weights;
};

/// Bicubic (a = -1/2) as Pillow and PyTorch's `antialias=True` do it: the kernel grows with the scale where the axis shrinks, weights are
/// normalised inside the input.
inline std::vector<ResampledAt> resampled_axis(std::int64_t in, std::int64_t out) {
  const auto cubic = [](double x) {
    x = std::abs(x);
    if (x < 1.0) return (1.5 * x - 2.5) * x * x + 1.0;
    return x < 2.0 ? ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0 : 0.0;
  };
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double stretch = std::max(scale, 1.0);
  std::vector<ResampledAt> axis(static_cast<std::size_t>(out));
  for (std::size_t i = 0; i < axis.size(); ++i) {
    const double centre = scale * (static_cast<double>(i) + 0.5);
    axis[i].first = std::max<std::int64_t>(static_cast<std::int64_t>(centre - 2.0 * stretch + 0.5), 0);
    const std::int64_t last = std::min(static_cast<std::int64_t>(centre + 2.0 * stretch + 0.5), in);
    double sum = 0.0;
    for (std::int64_t j = axis[i].first; j < last; ++j) {
      axis[i].weights.push_back(cubic((static_cast<double>(j) - centre + 0.5) / stretch));
      sum += axis[i].weights.back();
    }
    for (double& weight : axis[i].weights) weight /= sum;
  }
  return axis;
}

/// A position embedding [height, width, channels] for another grid, as timm resamples it (bicubic with antialiasing).
inline void resample_positions(const float* from, Shape in, float* to, Shape out) {
  const auto rows = resampled_axis(in.height, out.height), columns = resampled_axis(in.width, out.width);
  std::vector<double> sums(static_cast<std::size_t>(in.channels));
  for (const ResampledAt& row : rows) {
    for (const ResampledAt& column : columns) {
      std::fill(sums.begin(), sums.end(), 0.0);
      for (std::size_t u = 0; u < row.weights.size(); ++u) {
        for (std::size_t v = 0; v < column.weights.size(); ++v) {
          const double weight = row.weights[u] * column.weights[v];
          const std::int64_t position = (row.first + static_cast<std::int64_t>(u)) * in.width + column.first + static_cast<std::int64_t>(v);
          for (std::size_t c = 0; c < sums.size(); ++c) sums[c] += weight * double{from[position * in.channels + static_cast<std::int64_t>(c)]};
        }
      }
      for (const double sum : sums) *to++ = static_cast<float>(sum);
    }
  }
}

}  // namespace detail

/// Reads, checks and folds. Lives while an executor is made.
class Executor::Loader {
 public:
  Loader(GraphView graph, const io::Weights& weights) noexcept : graph_(graph), weights_(weights) {}

  Status load(const Step& step, Layer& layer) {
    const Node& node = graph_[step.node];
    node_ = step.node;
    const NodeTensors tensors(node, step.in, step.out);
    switch (node.op) {
      case Op::convolution: return load_convolution(node, step, tensors, layer);
      case Op::linear: {
        NORMA_TRY(const auto weight, read(tensors.specs[0]));
        layer.matrix = linalg::PackedMatrix::pack({weight.data(), step.out.channels, step.in.channels});
        if (node.bias) { NORMA_TRY(layer.shift, read(tensors.specs[1])); }
        return {};
      }
      case Op::layer_norm: {
        NORMA_TRY(layer.scale, read(tensors.specs[0]));
        NORMA_TRY(layer.shift, read(tensors.specs[1]));
        return {};
      }
      case Op::layer_scale: {
        NORMA_TRY(layer.scale, read(tensors.specs[0]));
        return {};
      }
      case Op::batch_norm: return load_norm(tensors.specs.data(), node.epsilon, layer.scale, layer.shift);
      case Op::tokens: return load_tokens(step, tensors, layer);
      case Op::talking_heads_attention: return load_mixes(node, tensors, layer);
      default: return {};
    }
  }

  /// Refuses tensors that no node of the graph has. A convolution with norm may have its bias instead, and PyTorch counts batches.
  Status check_surplus() const {
    std::vector<std::string> known;
    for (const Node& node : graph_.nodes) {
      for (const TensorSpec& tensor : NodeTensors(node, {}, {})) known.push_back(tensor.name());
      if (node.norm == Norm::batch) {
        known.push_back(std::string(node.name.view()).append(".bias"));
        known.push_back(std::string(node.second.view()).append(".num_batches_tracked"));
      }
      if (node.op == Op::batch_norm) known.push_back(std::string(node.name.view()).append(".num_batches_tracked"));
    }
    std::sort(known.begin(), known.end());
    std::string first;
    std::int64_t count = 0;
    for (const io::TensorInfo& tensor : weights_.tensors()) {
      if (std::binary_search(known.begin(), known.end(), tensor.name, std::less<>())) continue;
      if (count++ == 0) first = tensor.name;
    }
    if (count == 0) return {};
    return {Errc::wrong_type, "nn::Executor::create: '" + weights_.name() + "' holds " + std::to_string(count) +
                                  (count == 1 ? " tensor" : " tensors") + " that the network does not have, the first is '" + first +
                                  "': expected the weights of this network, found another's"};
  }

  std::vector<std::string> take_names() { return std::move(names_); }

 private:
  [[nodiscard]] std::string where() const { return "nn::Executor::create: " + detail::describe(graph_, node_) + ": "; }

  Result<Buffer<float>> read(const TensorSpec& spec) {
    std::string name = spec.name();
    Buffer<float> values(spec.count());
    if (Status status = weights_.read(name, spec.shape(), values.span()); !status) {
      return Status(status.code(), where() + status.message());
    }
    for (std::int64_t i = 0; i < values.size(); ++i) {
      if (!std::isfinite(values[i])) return not_finite(name);
    }
    if (std::find(names_.begin(), names_.end(), name) == names_.end()) names_.push_back(std::move(name));  // nodes may share weights
    return values;
  }
  Status not_finite(const std::string& name) const {
    return {Errc::not_finite, where() + "'" + weights_.name() + "': tensor '" + name + "' holds a NaN or an infinity"};
  }

  // y = gamma (x - mean) / sqrt(variance + epsilon) + beta as y = scale x + shift.
  Status load_norm(const TensorSpec* specs, float epsilon, Buffer<float>& scale, Buffer<float>& shift) {
    NORMA_TRY(scale, read(specs[0]));
    NORMA_TRY(shift, read(specs[1]));
    NORMA_TRY(const auto mean, read(specs[2]));
    NORMA_TRY(const auto variance, read(specs[3]));
    for (std::int64_t c = 0; c < scale.size(); ++c) {
      const double factor = scale[c] / std::sqrt(double{variance[c]} + epsilon);
      scale[c] = static_cast<float>(factor);
      shift[c] = static_cast<float>(shift[c] - factor * mean[c]);
      if (!std::isfinite(scale[c]) || !std::isfinite(shift[c])) {
        return {Errc::not_finite, where() + "'" + weights_.name() + "': batch norm '" + std::string(specs[0].prefix) +
                                      "' has a variance that is not above zero, found " + std::to_string(variance[c]) + " in channel " +
                                      std::to_string(c)};
      }
    }
    return {};
  }

  Status load_convolution(const Node& node, const Step& step, const NodeTensors& tensors, Layer& layer) {
    NORMA_TRY(auto weight, read(tensors.specs[0]));
    if (node.transposed) weight = dense_transposed_weight(node, step, weight);
    const std::int64_t channels = step.out.channels;
    const TensorSpec bias_spec{TensorRole::bias, node.name.view(), ".bias", {channels}, 1};
    const std::string bias_name = bias_spec.name();
    bool folded = node.norm == Norm::none;
    if (node.norm == Norm::batch) {
      const TensorSpec* norm = tensors.specs.data() + (node.bias ? 2 : 1);
      folded = std::none_of(norm, norm + 4, [&](const TensorSpec& spec) { return weights_.find(spec.name()) != nullptr; });
      const bool has_bias = weights_.find(bias_name) != nullptr;
      if (folded && !has_bias) {
        return {Errc::not_found, where() + "'" + weights_.name() + "': expected batch norm '" + std::string(node.second.view()) +
                                     ".*', or '" + bias_name + "' where it is folded, found neither"};
      }
      if (!folded && !node.bias && has_bias) {
        return {Errc::corrupt, where() + "'" + weights_.name() + "': found both batch norm '" + std::string(node.second.view()) +
                                   ".*' and '" + bias_name + "', expected one of them"};
      }
      if (!folded) {
        Buffer<float> scale, bias;
        if (node.bias) { NORMA_TRY(bias, read(bias_spec)); }
        NORMA_CHECK(load_norm(norm, node.epsilon, scale, layer.shift));
        // [O, the rest], or transposed [I, O, window]
        const std::int64_t outer = node.transposed ? step.in.channels : 1;
        const std::int64_t inner = weight.size() / (outer * channels);
        for (std::int64_t o = 0; o < channels; ++o) {
          for (std::int64_t i = 0; i < outer; ++i) {
            for (std::int64_t k = 0; k < inner; ++k) weight[(i * channels + o) * inner + k] *= scale[o];
          }
          if (node.bias) layer.shift[o] += scale[o] * bias[o];
        }
        for (std::int64_t i = 0; i < weight.size(); ++i) {
          if (!std::isfinite(weight[i])) return not_finite(tensors.specs[0].name());
        }
      }
    }
    if (folded && (node.bias || node.norm == Norm::batch)) { NORMA_TRY(layer.shift, read(bias_spec)); }
    if (node.transposed) {
      layer.transposed = PackedTransposedConvolution::pack(weight.span(), step.in, channels, transposed_geometry(node, step.padding));
      return {};
    }
    layer.convolution = PackedConvolution::pack(weight.span(), step.in, channels, convolution_geometry(node, step.padding));
    return {};
  }

  // [I, O/groups, kh, kw] as [I, O, kh', kw'] of `transposed_geometry`, zeros between.
  static Buffer<float> dense_transposed_weight(const Node& node, const Step& step, const Buffer<float>& weight) {
    const ConvolutionGeometry g = transposed_geometry(node, step.padding);
    const std::int64_t in_group = step.in.channels / node.groups, out_group = step.out.channels / node.groups;
    Buffer<float> dense(step.in.channels * step.out.channels * g.kernel_height * g.kernel_width);
    std::fill_n(dense.data(), dense.size(), 0.0f);
    std::int64_t from = 0;
    for (std::int64_t i = 0; i < step.in.channels; ++i) {
      for (std::int64_t o = 0; o < out_group; ++o) {
        float* to = dense.data() + (i * step.out.channels + i / in_group * out_group + o) * g.kernel_height * g.kernel_width;
        for (std::int64_t u = 0; u < node.kernel.height; ++u) {
          for (std::int64_t v = 0; v < node.kernel.width; ++v) to[(u * g.kernel_width + v) * node.dilation] = weight[from++];
        }
      }
    }
    return dense;
  }

  // The mix of the scores [heads, heads] and its bias [heads], then the same of the weights: in `scale` one after the other.
  Status load_mixes(const Node& node, const NodeTensors& tensors, Layer& layer) {
    if (node.heads > kMaxMixedHeads) {
      return {Errc::unsupported,
              where() + "expected at most " + std::to_string(kMaxMixedHeads) + " heads, found " + std::to_string(node.heads)};
    }
    layer.scale = Buffer<float>(2 * (std::int64_t{node.heads} * node.heads + node.heads));
    std::int64_t at = 0;
    for (const TensorSpec& spec : tensors) {
      NORMA_TRY(const auto values, read(spec));
      std::copy_n(values.data(), values.size(), layer.scale.data() + at);
      at += values.size();
    }
    return {};
  }

  // A position embedding for another square grid of patches is resampled to this one's, its rows for class tokens kept.
  Result<Buffer<float>> read_position_embedding(const Step& step, const TensorSpec& spec) {
    const io::TensorInfo* stored = weights_.find(spec.name());
    const std::int64_t channels = step.out.channels;
    const std::int64_t class_rows = spec.dims[1] - step.in.positions();
    if (stored == nullptr || stored->shape.size() != 3 || stored->shape[1] == spec.dims[1] || stored->shape[2] != channels) return read(spec);
    const std::int64_t positions = stored->shape[1] - class_rows;
    const auto side = static_cast<std::int64_t>(std::lround(std::sqrt(static_cast<double>(std::max<std::int64_t>(positions, 0)))));
    if (side < 1 || side * side != positions) return read(spec);
    TensorSpec as_stored = spec;
    as_stored.dims[1] = stored->shape[1];
    NORMA_TRY(const auto values, read(as_stored));
    Buffer<float> resampled(spec.count());
    std::copy_n(values.data(), class_rows * channels, resampled.data());
    detail::resample_positions(values.data() + class_rows * channels, {side, side, channels}, resampled.data() + class_rows * channels,
                               {step.in.height, step.in.width, channels});
    return resampled;
  }

  // One row a token: the position embedding, for class tokens with the token itself.
  Status load_tokens(const Step& step, const NodeTensors& tensors, Layer& layer) {
    const std::int64_t channels = step.out.channels;
    layer.scale = Buffer<float>(step.out.count());
    std::int64_t row = 0;
    std::fill_n(layer.scale.data(), layer.scale.size(), 0.0f);
    for (const TensorSpec& spec : tensors) {
      if (spec.role == TensorRole::position_embedding) {
        NORMA_TRY(layer.scale, read_position_embedding(step, spec));
      } else {
        NORMA_TRY(const auto values, read(spec));
        for (std::int64_t c = 0; c < channels; ++c) layer.scale[row * channels + c] += values[c];
        ++row;
      }
    }
    return {};
  }

  GraphView graph_;
  const io::Weights& weights_;
  std::vector<std::string> names_;
  int node_ = 0;
};

inline Result<Executor> Executor::create(Plan plan, const io::Weights& weights, SurplusTensors surplus) {
  Executor executor;
  executor.plan_ = std::move(plan);
  const auto steps = executor.plan_.steps();
  executor.layers_.resize(steps.size());
  Loader loader(executor.plan_.graph(), weights);
  if (surplus == SurplusTensors::refuse) NORMA_CHECK(loader.check_surplus());
  for (std::size_t s = 0; s < steps.size(); ++s) NORMA_CHECK(loader.load(steps[s], executor.layers_[s]));
  executor.live_names_ = loader.take_names();
  return executor;
}

inline std::size_t Executor::weight_bytes() const noexcept {
  std::size_t total = 0;
  for (const Layer& layer : layers_) {
    total += layer.convolution.bytes() + layer.transposed.bytes() + layer.matrix.bytes() +
             static_cast<std::size_t>(layer.scale.size() + layer.shift.size()) * sizeof(float);
  }
  return total;
}

inline Status Executor::run(TensorView<const float> input, Arena& arena, Parallel parallel, std::span<TensorView<const float>> taps_out,
                            StepTimer timer) const {
  const auto steps = plan_.steps();
  const auto taps = plan_.taps();
  if (taps.empty()) return {Errc::not_fitted, "nn::Executor::run: nothing is loaded"};
  if (input.shape() != plan_.input() || input.batch < 0) {
    return {Errc::shape_mismatch,
            "nn::Executor::run: the input is " + detail::describe(input.shape()) + ", expected " + detail::describe(plan_.input())};
  }
  if (taps_out.size() != taps.size()) {
    return {Errc::invalid_argument,
            "nn::Executor::run: room for " + std::to_string(taps_out.size()) + " outputs, expected " + std::to_string(taps.size())};
  }
  const std::size_t needed = workspace_bytes(input.batch, parallel.workers());
  if (arena.remaining() < needed) {
    return {Errc::out_of_memory, "nn::Executor::run: the workspace has " + std::to_string(arena.remaining()) + " bytes left, expected " +
                                     std::to_string(needed)};
  }
  std::byte* memory = arena.take<std::byte>(static_cast<std::int64_t>(needed));
  const auto value = [&](int node) {
    return TensorView<float>(reinterpret_cast<float*>(memory + plan_.offset(node) * input.batch), input.batch, plan_.shape(node));
  };
  const auto read = [&](int node) { return node == 0 ? input : TensorView<const float>(value(node)); };
  const auto residual_of = [&](const Step& step) { return step.residual >= 0 ? read(step.residual) : TensorView<const float>(); };
  for (std::size_t s = 0; s < steps.size(); ++s) {
    const Step& step = steps[s];
    if (runs_as_one(plan_, static_cast<int>(s))) {
      const Step& last = steps[s + 2];
      const auto start = std::chrono::steady_clock::now();
      if (run_as_one(s, read(step.inputs[0]), residual_of(last), value(step.value), value(last.value), parallel)) {
        s += 2;
        if (timer.function != nullptr) {
          const double spent = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
          for (int i = 2; i >= 0; --i) timer.function(timer.context, static_cast<int>(s) - i, i == 0 ? spent : 0.0);
        }
        continue;
      }
    }
    std::array<TensorView<const float>, 4> in;
    for (int i = 0; i < step.input_count; ++i) in[static_cast<std::size_t>(i)] = read(step.inputs[static_cast<std::size_t>(i)]);
    const auto inputs = std::span<const TensorView<const float>>(in.data(), static_cast<std::size_t>(step.input_count));
    const auto residual = residual_of(step);
    const std::int64_t values_end = step.values_end * input.batch;
    Arena scratch(std::span(memory + values_end, needed - static_cast<std::size_t>(values_end)));
    if (timer.function == nullptr) {
      run_step(step, layers_[s], inputs, residual, value(step.value), parallel, scratch);
    } else {
      const auto start = std::chrono::steady_clock::now();
      run_step(step, layers_[s], inputs, residual, value(step.value), parallel, scratch);
      timer.function(timer.context, static_cast<int>(s), std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
  }
  for (std::size_t t = 0; t < taps.size(); ++t) taps_out[t] = read(taps[t].node);
  return {};
}

namespace detail {

/// Rows [first, first + count) of every image of x as all rows of y: what moves tokens about.
inline void copy_positions(TensorView<const float> x, std::int64_t first, std::int64_t count, TensorView<float> y, Parallel parallel) {
  parallel.run(x.batch, [&](std::int64_t n, int) {
    std::memcpy(y.data + n * count * y.channels, x.data + (n * x.height * x.width + first) * x.channels,
                static_cast<std::size_t>(count * x.channels) * sizeof(float));
  });
}

inline void add_tokens(TensorView<const float> x, int class_tokens, const float* rows, TensorView<float> y, Parallel parallel) {
  const std::int64_t grid = x.height * x.width;
  parallel.run(x.batch, [&](std::int64_t n, int) {
    float* to = y.image(n).data;
    const std::int64_t before = class_tokens * y.channels;
    std::memcpy(to, rows, static_cast<std::size_t>(before) * sizeof(float));
    const float* from = x.image(n).data;
    for (std::int64_t i = 0; i < grid * y.channels; ++i) to[before + i] = from[i] + rows[before + i];
  });
}

inline void multiply_elements(TensorView<const float> a, TensorView<const float> b, TensorView<float> y, Parallel parallel) {
  parallel.run_ranges(y.count(), 16384, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) y.data[i] = a.data[i] * b.data[i];
  });
}

/// Rows of a, then rows of b, image by image.
inline void join_tokens(TensorView<const float> a, TensorView<const float> b, TensorView<float> y, Parallel parallel) {
  const std::int64_t first = a.height * a.width * a.channels, second = b.height * b.width * b.channels;
  parallel.run(y.batch, [&](std::int64_t n, int) {
    float* to = y.data + n * (first + second);
    std::memcpy(to, a.data + n * first, static_cast<std::size_t>(first) * sizeof(float));
    std::memcpy(to + first, b.data + n * second, static_cast<std::size_t>(second) * sizeof(float));
  });
}

/// [h, w, C] -> [1, 1, C h w], channel by channel.
inline void flatten(TensorView<const float> x, TensorView<float> y, Parallel parallel) {
  const std::int64_t positions = x.height * x.width;
  parallel.run(x.batch, [&](std::int64_t n, int) {
    const float* from = x.image(n).data;
    float* to = y.image(n).data;
    for (std::int64_t c = 0; c < x.channels; ++c) {
      for (std::int64_t p = 0; p < positions; ++p) to[c * positions + p] = from[p * x.channels + c];
    }
  });
}

inline void slice_channels(TensorView<const float> x, std::int64_t offset, TensorView<float> y, Parallel parallel) {
  parallel.run_ranges(y.batch * y.height * y.width, 64, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) {
      std::memcpy(y.data + i * y.channels, x.data + i * x.channels + offset, static_cast<std::size_t>(y.channels) * sizeof(float));
    }
  });
}

}  // namespace detail

inline bool Executor::run_as_one(std::size_t first, TensorView<const float> x, TensorView<const float> residual, TensorView<float> wide,
                                 TensorView<float> out, Parallel parallel) const {
  const auto layer = [&](std::size_t s) {
    const Buffer<float>& bias = layers_[s].shift;
    return ConvolutionLayer{layers_[s].convolution, bias.empty() ? nullptr : bias.data(), plan_.steps()[s].activation};
  };
  const auto overlap = [](TensorView<const float> a, TensorView<const float> b) {
    return a.data < b.data + b.count() && b.data < a.data + a.count();
  };
  const bool aside = overlap(out, x) || overlap(out, wide);
  const std::size_t room = static_cast<std::size_t>(wide.count()) * sizeof(float);
  const std::size_t scratch_bytes =
      inverted_residual_scratch_bytes(wide.shape(), out.shape(), layers_[first + 1].convolution.geometry(), parallel.workers());
  if (room < scratch_bytes + (aside ? arena_bytes<float>(out.count()) : 0)) return false;
  Arena arena(std::span(reinterpret_cast<std::byte*>(wide.data), room));
  const TensorView<float> y = aside ? TensorView<float>(arena.take<float>(out.count()), out.batch, out.shape()) : out;
  inverted_residual(x, layer(first), layer(first + 1), layer(first + 2), y, residual, parallel, arena);
  if (!aside) return true;
  if (overlap(out, y)) {
    std::memmove(out.data, y.data, static_cast<std::size_t>(out.count()) * sizeof(float));
    return true;
  }
  parallel.run_ranges(out.count(), 16384, [&](std::int64_t from, std::int64_t to, int) {
    std::memcpy(out.data + from, y.data + from, static_cast<std::size_t>(to - from) * sizeof(float));
  });
  return true;
}

inline void Executor::run_step(const Step& step, const Layer& layer, std::span<const TensorView<const float>> in,
                               TensorView<const float> residual, TensorView<float> out, Parallel parallel, Arena& arena) const {
  const Node& node = plan_.graph()[step.node];
  const TensorView<const float> x = in[0];
  const float* bias = layer.shift.empty() ? nullptr : layer.shift.data();
  const PoolingGeometry pooling{node.kernel.height, node.kernel.width,   node.stride,       step.padding.top,
                                step.padding.left,  step.padding.bottom, step.padding.right};
  switch (node.op) {
    case Op::convolution:
      if (node.transposed) {
        convolution_transposed(x, layer.transposed, out, bias, residual, step.activation, parallel, arena);
        break;
      }
      convolution(x, layer.convolution, out, bias, residual, step.activation, parallel, arena);
      break;
    case Op::linear: {
      const auto more = residual.data == nullptr ? MatrixView<const float>() : residual.patches();
      linalg::gemm(x.patches(), layer.matrix, out.patches(), {bias, more, step.activation}, parallel, arena);
      break;
    }
    case Op::max_pool: max_pool(x, pooling, out, parallel); break;
    case Op::average_pool: average_pool(x, pooling, node.count_include_pad ? PaddingCounts::yes : PaddingCounts::no, out, parallel); break;
    case Op::global_average_pool: global_average_pool(x, out, parallel); break;
    case Op::adaptive_average_pool: adaptive_average_pool(x, out, parallel); break;
    case Op::add: add(x, in[1], step.activation, out, parallel); break;
    case Op::multiply:
      if (in[1].shape() == out.shape()) {
        detail::multiply_elements(x, in[1], out, parallel);
      } else {
        multiply_channels(x, in[1], out, parallel);
      }
      break;
    case Op::concat: concat_channels(in, out, parallel); break;
    case Op::activation: activate(x, step.activation, out, parallel); break;
    case Op::layer_norm: layer_norm(x.patches(), layer.scale.data(), layer.shift.data(), node.epsilon, out.patches(), parallel); break;
    case Op::layer_scale:
    case Op::batch_norm: scale_channels(x, layer.scale.data(), bias, step.activation, out, parallel); break;
    case Op::tokens: detail::add_tokens(x, node.class_tokens, layer.scale.data(), out, parallel); break;
    case Op::attention:
      for (std::int64_t n = 0; n < x.batch; ++n) attention(x.image(n).patches(), node.heads, out.image(n).patches(), parallel, arena);
      break;
    case Op::talking_heads_attention: {
      const std::int64_t heads = node.heads;
      const float* logits = layer.scale.data();
      const float* weights = logits + heads * heads + heads;
      for (std::int64_t n = 0; n < x.batch; ++n) {
        talking_heads_attention(x.image(n).patches(), node.heads, logits, logits + heads * heads, weights, weights + heads * heads,
                                out.image(n).patches(), parallel, arena);
      }
      break;
    }
    case Op::class_attention:
      for (std::int64_t n = 0; n < x.batch; ++n) {
        class_attention(in[2].image(n).data, x.image(n).patches(), in[1].image(n).patches(), node.heads, out.image(n).data, parallel, arena);
      }
      break;
    case Op::resize:
      if (node.interpolation == Interpolation::nearest) {
        upsample_nearest(x, out, parallel);
      } else {
        upsample_bilinear(x, node.interpolation == Interpolation::bilinear_corners ? AlignCorners::yes : AlignCorners::no, out, parallel);
      }
      break;
    case Op::grid: detail::copy_positions(x, node.class_tokens, out.height * out.width, out, parallel); break;
    case Op::token: detail::copy_positions(x, node.offset, 1, out, parallel); break;
    case Op::join_tokens: detail::join_tokens(x, in[1], out, parallel); break;
    case Op::flatten: detail::flatten(x, out, parallel); break;
    case Op::slice: detail::slice_channels(x, node.offset, out, parallel); break;
    case Op::instance_norm: instance_norm(x, node.epsilon, out, parallel); break;
    case Op::input: break;  // is no step
  }
}

}  // namespace norma::nn
