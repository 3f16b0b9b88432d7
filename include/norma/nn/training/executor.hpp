/// \file
/// Runs a graph forwards, keeping what the way back needs, and backwards, from gradients of its taps to those of its weights.
/// Cost:        `create` allocates the packed weights (of a Winograd convolution eight times the plain ones, else twice); `forward` and
///              `backward` allocate nothing, their memory is `workspace_bytes(batch, workers)` from the caller's arena.
/// Threads:     one caller at a time.
/// Determinism: bit-equal for any number of workers.
#pragma once

#include <array>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/arena.hpp>
#include <norma/core/parallel.hpp>
#include <norma/core/status.hpp>
#include <norma/nn/executor.hpp>
#include <norma/nn/training/parameters.hpp>
#include <norma/nn/training/plan.hpp>

namespace norma::nn {

/// How batch norms that are not frozen behave in a call.
enum class BatchNorm : std::uint8_t {
  training,    ///< the batch's statistics; running ones move towards them
  evaluation,  ///< running statistics
};

/// What a forward call left behind for its way back. Several may be kept at once (one network on several inputs), each with its own memory.
struct TrainingPass {
  std::byte* memory = nullptr;
  std::size_t bytes = 0;
  TensorView<const float> input;
  BatchNorm batch_norm = BatchNorm::training;
};

class TrainingExecutor {
 public:
  TrainingExecutor() = default;
  static Result<TrainingExecutor> create(GraphView graph, std::span<const std::string_view> taps, std::int64_t height, std::int64_t width,
                                         const TrainingOptions& options = {}) {
    NORMA_TRY(auto plan, TrainingPlan::create(graph, taps, height, width, options));
    return create(std::move(plan));
  }
  static Result<TrainingExecutor> create(TrainingPlan plan);

  [[nodiscard]] const TrainingPlan& plan() const noexcept { return plan_; }
  /// Numbers for this network, to be initialised or loaded.
  [[nodiscard]] Parameters make_parameters() const { return Parameters(layout_); }
  [[nodiscard]] const ParameterTable& layout() const noexcept { return layout_; }
  /// Memory that `forward` takes from its arena.
  [[nodiscard]] std::size_t workspace_bytes(std::int64_t batch, int workers) const noexcept {
    return plan_.workspace_bytes(batch, workers);
  }

  /// input [n, height, width, channels] as planned; `taps_out` receives one view a tap, in their order. The views and `pass` lie in `arena`
  /// (a tapped picture: in `input`) until the caller's Arena::Scope ends. `BatchNorm::training` moves the running statistics in
  /// `parameters`. Errors: shape_mismatch, invalid_argument (parameters of another network, training statistics of a single number),
  /// out_of_memory.
  Status forward(Parameters& parameters, TensorView<const float> input, BatchNorm batch_norm, Arena& arena, Parallel parallel,
                 std::span<TensorView<const float>> taps_out, TrainingPass& pass);

  /// From `tap_gradients`, one a tap (without data: zero), to `gradients` [layout().trained()], which are added to, and to `input_gradient`
  /// (only where the plan wants it), which is overwritten. The parameters' weights must be those of `forward`. A pass goes back once: its
  /// values are overwritten.
  Status backward(const Parameters& parameters, TrainingPass& pass, std::span<const TensorView<const float>> tap_gradients,
                  std::span<float> gradients, Parallel parallel, TensorView<float> input_gradient = {});

 private:
  // Which members are used depends on the operation.
  struct Layer {
    PackedConvolution convolution;
    PackedTransposedConvolution transposed;
    PackedInputGradient back;
    linalg::PackedMatrix matrix, matrix_back;
    std::array<std::int64_t, 6> pieces{-1, -1, -1, -1, -1, -1};  // in the order of NodeTensors
  };
  struct Run;

  void pack(const Parameters& parameters, bool back, Parallel parallel, std::byte* scratch);
  Status check(const Parameters& parameters, std::string_view function) const;

  TrainingPlan plan_;
  ParameterTable layout_;
  std::vector<Layer> layers_;  // one a node
};

inline Result<TrainingExecutor> TrainingExecutor::create(TrainingPlan plan) {
  TrainingExecutor executor;
  NORMA_TRY(executor.layout_, ParameterTable::create(plan));
  executor.layers_.resize(static_cast<std::size_t>(plan.size()));
  for (int id = 1; id < plan.size(); ++id) {
    const TrainingNode& at = plan.node(id);
    if (!at.needed) continue;
    const Node& node = plan.graph()[id];
    Layer& layer = executor.layers_[static_cast<std::size_t>(id)];
    std::size_t t = 0;
    for (const TensorSpec& spec : NodeTensors(node, at.in, at.out)) {
      layer.pieces[t++] = executor.layout_.find(spec.name()) - executor.layout_.pieces().data();
    }
    const bool back = at.gradient_wanted && plan.node(node.inputs[0]).gradient_wanted;
    if (node.op == Op::convolution) {
      const ConvolutionGeometry g = training_geometry(node, at.padding);
      if (node.transposed) {
        layer.transposed = PackedTransposedConvolution::shaped(at.in, at.out.channels, g);
      } else {
        layer.convolution = PackedConvolution::shaped(at.in, at.out.channels, g);
      }
      if (back) {
        layer.back = PackedInputGradient::shaped(detail::gradient_input(node, at.padding, at.in), at.out.channels,
                                                 detail::gradient_geometry(node, at.padding),
                                                 node.transposed ? Direction::transposed : Direction::forward);
      }
    } else if (node.op == Op::linear) {
      layer.matrix = linalg::PackedMatrix::pack(Matrix<float>(at.out.channels, at.in.channels).view());
      if (back) layer.matrix_back = linalg::PackedMatrix::pack(Matrix<float>(at.in.channels, at.out.channels).view());
    }
  }
  executor.plan_ = std::move(plan);
  return executor;
}

inline Status TrainingExecutor::check(const Parameters& parameters, std::string_view function) const {
  if (layers_.empty()) return {Errc::not_fitted, std::string(function) + ": there is no network"};
  if (parameters.empty()) return {Errc::invalid_argument, std::string(function) + ": the parameters are empty, see make_parameters"};
  const auto expected = layout_.pieces(), found = parameters.layout().pieces();
  bool same = expected.size() == found.size();
  for (std::size_t i = 0; same && i < expected.size(); ++i) {
    same = expected[i].name == found[i].name && expected[i].offset == found[i].offset && expected[i].count == found[i].count;
  }
  if (same) return {};
  return {Errc::invalid_argument, std::string(function) + ": the parameters are another network's, expected " +
                                      std::to_string(layout_.total()) + " numbers of which " + std::to_string(layout_.trained()) +
                                      " learn, found " + std::to_string(parameters.layout().total()) + " and " +
                                      std::to_string(parameters.layout().trained())};
}

// Weights in the order of the kernels: layers are independent, one task each.
inline void TrainingExecutor::pack(const Parameters& parameters, bool back, Parallel parallel, std::byte* scratch) {
  std::int64_t most = 0;
  for (int id = 1; id < plan_.size(); ++id) {
    if (plan_.node(id).needed) most = std::max(most, detail::packing_floats(plan_.graph()[id], plan_.node(id)));
  }
  const auto piece = static_cast<std::int64_t>(arena_bytes<float>(most));
  parallel.run(plan_.size() - 1, [&](std::int64_t task, int worker) {
    const int id = plan_.size() - 1 - static_cast<int>(task);  // the large ones are usually the last
    const Node& node = plan_.graph()[id];
    Layer& layer = layers_[static_cast<std::size_t>(id)];
    if (layer.pieces[0] < 0 || (node.op != Op::convolution && node.op != Op::linear)) return;
    float* rows = reinterpret_cast<float*>(scratch + worker * piece);
    const TrainingNode& at = plan_.node(id);
    const auto weights = parameters.of(layout_.pieces()[static_cast<std::size_t>(layer.pieces[0])]);
    if (node.op == Op::linear) {
      const MatrixView<const float> matrix(weights.data(), at.out.channels, at.in.channels);
      if (!back) layer.matrix.repack(matrix);
      if (back && !layer.matrix_back.empty()) layer.matrix_back.repack_transposed(matrix);
    } else if (back) {
      if (layer.back.output().channels != 0) layer.back.repack(weights, rows);
    } else if (node.transposed) {
      layer.transposed.repack(weights, rows);
    } else {
      const std::int64_t taps = std::int64_t{node.kernel.height} * node.kernel.width, fan_in = at.in.channels / node.groups * taps;
      layer.convolution.repack({weights.data(), at.out.channels / node.groups * fan_in, fan_in, taps, 1}, rows);
    }
  });
}

// One call, forwards or backwards: where things are in its memory.
struct TrainingExecutor::Run {
  const TrainingExecutor& executor;
  const TrainingPass& pass;
  std::span<const float> numbers;
  Parallel parallel;
  std::byte* statistics_memory;
  std::span<std::byte> scratch_memory;

  Run(const TrainingExecutor& executor_, const TrainingPass& pass_, std::span<const float> numbers_, Parallel parallel_)
      : executor(executor_), pass(pass_), numbers(numbers_), parallel(parallel_) {
    statistics_memory = pass.memory + executor.plan_.bytes_per_image() * pass.input.batch;
    std::byte* scratch = statistics_memory + arena_bytes<float>(executor.plan_.statistics_count());
    scratch_memory = {scratch, static_cast<std::size_t>(pass.memory + pass.bytes - scratch)};
  }
  [[nodiscard]] const Node& node(int id) const noexcept { return executor.plan_.graph()[id]; }
  [[nodiscard]] const TrainingNode& at(int id) const noexcept { return executor.plan_.node(id); }
  [[nodiscard]] const Layer& layer(int id) const noexcept { return executor.layers_[static_cast<std::size_t>(id)]; }
  [[nodiscard]] TensorView<float> place(std::int64_t offset, int id) const noexcept {
    return {reinterpret_cast<float*>(pass.memory + offset * pass.input.batch), pass.input.batch, at(id).out};
  }
  [[nodiscard]] TensorView<const float> value(int id) const noexcept { return id == 0 ? pass.input : place(at(id).value, id); }
  // The value before norm and activation: kept apart, or the result itself where they do nothing.
  [[nodiscard]] TensorView<float> before(int id) const noexcept { return place(at(id).before >= 0 ? at(id).before : at(id).value, id); }
  [[nodiscard]] NormStatistics statistics(int id) const noexcept {
    float* first = reinterpret_cast<float*>(statistics_memory) + at(id).statistics;
    return {first, first + at(id).out.channels};
  }
  [[nodiscard]] std::int64_t offset(int id, std::size_t tensor) const noexcept {
    return executor.layout_.pieces()[static_cast<std::size_t>(layer(id).pieces[tensor])].offset;
  }
  [[nodiscard]] const float* tensor(int id, std::size_t which) const noexcept { return numbers.data() + offset(id, which); }
  // Where the four tensors of a batch norm begin among a node's.
  [[nodiscard]] std::size_t norm_tensor(int id) const noexcept { return node(id).op == Op::batch_norm ? 0 : node(id).bias ? 2 : 1; }
  [[nodiscard]] bool by_batch(int id) const noexcept { return pass.batch_norm == BatchNorm::training && at(id).trained; }
  [[nodiscard]] PoolingGeometry pooling(int id) const noexcept {
    const Padding& p = at(id).padding;
    return {node(id).kernel.height, node(id).kernel.width, node(id).stride, p.top, p.left, p.bottom, p.right};
  }

  void batch_norm(int id, TensorView<const float> x, TensorView<float> y, std::span<float> all, Arena& arena) const {
    const std::size_t first = norm_tensor(id);
    const NormStatistics s = statistics(id);
    if (by_batch(id)) {
      batch_statistics(x, node(id).epsilon, executor.plan_.batch_norm_momentum(), all.data() + offset(id, first + 2),
                       all.data() + offset(id, first + 3), s, parallel, arena);
    } else {
      running_statistics(tensor(id, first + 2), tensor(id, first + 3), x.channels, node(id).epsilon, s);
    }
    normalise(x, s, tensor(id, first), tensor(id, first + 1), node(id).activation, y, parallel, arena);
  }

  // Where the tensors of a token node are among its own, -1: has none.
  struct TokenTensors {
    int positions = -1;
    std::array<int, 2> class_tokens{-1, -1};
    int class_count = 0;
  };
  static TokenTensors token_tensors(const Node& node) noexcept {
    TokenTensors tensors;
    int next = 0;
    if (!node.name.empty()) tensors.positions = next++;
    for (const Name* name : {&node.second, &node.third}) {
      if (!name->empty()) tensors.class_tokens[static_cast<std::size_t>(tensors.class_count++)] = next++;
    }
    return tensors;
  }
  // One row a token, as Executor's: the position embedding, for class tokens with the token itself.
  float* token_rows(int id, Arena& arena) const {
    const Shape out = at(id).out;
    const TokenTensors tensors = token_tensors(node(id));
    float* rows = arena.take<float>(out.count());
    if (tensors.positions >= 0) {
      std::memcpy(rows, tensor(id, static_cast<std::size_t>(tensors.positions)), static_cast<std::size_t>(out.count()) * sizeof(float));
    } else {
      std::memset(rows, 0, static_cast<std::size_t>(out.count()) * sizeof(float));
    }
    for (int r = 0; r < tensors.class_count; ++r) {
      const float* token = tensor(id, static_cast<std::size_t>(tensors.class_tokens[static_cast<std::size_t>(r)]));
      for (std::int64_t c = 0; c < out.channels; ++c) rows[r * out.channels + c] += token[c];
    }
    return rows;
  }
  [[nodiscard]] detail::HeadMix head_mix(int id) const noexcept { return {tensor(id, 0), tensor(id, 1), tensor(id, 2), tensor(id, 3)}; }

  void forward(int id, std::span<float> all) const {
    const Node& node = this->node(id);
    Arena arena(scratch_memory);
    const TensorView<const float> x = value(node.inputs[0]);
    const TensorView<float> y = place(at(id).value, id);
    const auto second = [&] { return value(node.inputs[1]); };
    switch (node.op) {
      case Op::convolution: {
        const float* bias = node.bias ? tensor(id, 1) : nullptr;
        const bool apart = node.norm == Norm::batch || at(id).before >= 0;
        const Activation activation = apart ? Activation::none : node.activation;
        const TensorView<float> to = before(id);
        if (node.transposed) {
          convolution_transposed(x, layer(id).transposed, to, bias, {}, activation, parallel, arena);
        } else {
          convolution(x, layer(id).convolution, to, bias, {}, activation, parallel, arena);
        }
        if (node.norm == Norm::batch) {
          batch_norm(id, to, y, all, arena);
        } else if (apart) {
          activate(to, node.activation, y, parallel);
        }
        break;
      }
      case Op::linear: {
        const bool apart = at(id).before >= 0;
        const linalg::Epilogue epilogue{node.bias ? tensor(id, 1) : nullptr, {}, apart ? Activation::none : node.activation};
        linalg::gemm(x.patches(), layer(id).matrix, before(id).patches(), epilogue, parallel, arena);
        if (apart) activate(before(id), node.activation, y, parallel);
        break;
      }
      case Op::add:
        if (at(id).before >= 0) {
          add(x, second(), Activation::none, before(id), parallel);
          activate(before(id), node.activation, y, parallel);
        } else {
          add(x, second(), node.activation, y, parallel);
        }
        break;
      case Op::max_pool: max_pool(x, pooling(id), y, parallel); break;
      case Op::average_pool:
        average_pool(x, pooling(id), node.count_include_pad ? PaddingCounts::yes : PaddingCounts::no, y, parallel);
        break;
      case Op::global_average_pool:
      case Op::adaptive_average_pool: adaptive_average_pool(x, y, parallel); break;
      case Op::multiply:
        if (second().shape() == y.shape()) {
          multiply(x, second(), y, parallel);
        } else {
          multiply_channels(x, second(), y, parallel);
        }
        break;
      case Op::concat: {
        std::array<TensorView<const float>, 4> parts;
        for (std::size_t i = 0; i < static_cast<std::size_t>(node.input_count); ++i) parts[i] = value(node.inputs[i]);
        concat_channels(std::span<const TensorView<const float>>(parts.data(), static_cast<std::size_t>(node.input_count)), y, parallel);
        break;
      }
      case Op::activation: activate(x, node.activation, y, parallel); break;
      case Op::layer_norm: layer_norm(x.patches(), tensor(id, 0), tensor(id, 1), node.epsilon, y.patches(), parallel); break;
      case Op::layer_scale: scale_channels(x, tensor(id, 0), nullptr, Activation::none, y, parallel); break;
      case Op::batch_norm: batch_norm(id, x, y, all, arena); break;
      case Op::instance_norm: instance_norm(x, node.epsilon, y, parallel); break;
      case Op::resize:
        if (node.interpolation == Interpolation::nearest) {
          upsample_nearest(x, y, parallel);
        } else {
          upsample_bilinear(x, node.interpolation == Interpolation::bilinear_corners ? AlignCorners::yes : AlignCorners::no, y, parallel);
        }
        break;
      case Op::slice: concat_gradient(x, node.offset, y, Accumulate::no, parallel); break;  // the same copy
      case Op::flatten: flatten(x, y, parallel); break;
      case Op::tokens: detail::add_tokens(x, node.class_tokens, token_rows(id, arena), y, parallel); break;
      case Op::grid: detail::copy_positions(x, node.class_tokens, y.height * y.width, y, parallel); break;
      case Op::token: detail::copy_positions(x, node.offset, 1, y, parallel); break;
      case Op::join_tokens: detail::join_tokens(x, second(), y, parallel); break;
      case Op::attention:
        for (std::int64_t n = 0; n < x.batch; ++n) attention(x.image(n).patches(), node.heads, y.image(n).patches(), parallel, arena);
        break;
      case Op::talking_heads_attention: {
        const detail::HeadMix mix = head_mix(id);
        for (std::int64_t n = 0; n < x.batch; ++n) {
          talking_heads_attention(x.image(n).patches(), node.heads, mix.logits, mix.logits_bias, mix.weights, mix.weights_bias,
                                  y.image(n).patches(), parallel, arena);
        }
        break;
      }
      case Op::class_attention: {
        const TensorView<const float> query = value(node.inputs[2]);
        for (std::int64_t n = 0; n < x.batch; ++n) {
          class_attention(query.image(n).data, x.image(n).patches(), second().image(n).patches(), node.heads, y.image(n).data, parallel,
                          arena);
        }
        break;
      }
      case Op::input: break;  // is no step
    }
  }

  // Where the gradient of node id's i-th input goes, or a view without data where nobody wants it.
  using Target = GradientTarget;
  [[nodiscard]] Target target(int id, int i, TensorView<float> input_gradient) const noexcept {
    const auto& inputs = node(id).inputs;
    const int input = inputs[static_cast<std::size_t>(i)];
    if (!at(input).gradient_wanted) return {};
    bool first = executor.plan_.first_writer(input) == id;
    for (int j = 0; j < i; ++j) first = first && inputs[static_cast<std::size_t>(j)] != input;
    return {input == 0 ? input_gradient : place(at(input).gradient, input), first ? Accumulate::no : Accumulate::yes};
  }

  // Both gradients of a convolution with reflection padding, an image at a time; no weights: not wanted.
  void mirrored_convolution(int id, TensorView<const float> x, TensorView<const float> dy, std::span<float> weights, const Target& to,
                            Arena& arena) const {
    const ConvolutionGeometry g = training_geometry(node(id), at(id).padding);
    const Shape shape = detail::bordered_shape(at(id).in, g);
    const TensorView<float> bordered(arena.take<float>(shape.count()), 1, shape);
    for (std::int64_t n = 0; n < x.batch; ++n) {
      if (!weights.empty()) {
        detail::mirror_border(x.image(n), g, bordered, parallel);
        convolution_weight_gradient(bordered, dy.image(n), detail::bordered_geometry(g), Direction::forward, weights, parallel, arena);
      }
      if (to.dx.data == nullptr) continue;
      convolution_input_gradient(dy.image(n), layer(id).back, bordered, Accumulate::no, parallel, arena);
      detail::mirror_border_gradient(bordered, g, to.dx.image(n), to.accumulate, parallel);
    }
  }

  void backward(int id, std::span<float> gradients, TensorView<float> input_gradient) const {
    const Node& node = this->node(id);
    const TrainingNode& at = this->at(id);
    Arena arena(scratch_memory);
    const TensorView<float> dy = place(at.gradient, id);
    const Target to = target(id, 0, input_gradient);
    const TensorView<const float> x = value(node.inputs[0]);
    const auto gradient = [&](std::size_t which) {
      const ParameterPiece& piece = executor.layout_.pieces()[static_cast<std::size_t>(layer(id).pieces[which])];
      return gradients.subspan(static_cast<std::size_t>(piece.offset), static_cast<std::size_t>(piece.count));
    };
    const auto through_activation = [&] {
      if (node.activation == Activation::none) return;
      const TensorView<const float> seen = gradient_needs_argument(node.activation) ? before(id) : value(id);
      activation_gradient(dy, seen, node.activation, dy, Accumulate::no, parallel);
    };
    // From the result of a norm with an activation to the norm's argument `z`.
    const auto through_norm = [&](TensorView<const float> z, TensorView<float> dx, Accumulate accumulate) {
      const std::size_t first = norm_tensor(id);
      const NormStatistics s = statistics(id);
      if (gradient_needs_argument(node.activation)) {
        // The activation's argument is not kept: made again, in the place of the result.
        const TensorView<float> argument = place(at.value, id);
        normalise(z, s, tensor(id, first), tensor(id, first + 1), Activation::none, argument, parallel, arena);
        activation_gradient(dy, argument, node.activation, dy, Accumulate::no, parallel);
      } else if (node.activation != Activation::none) {
        activation_gradient(dy, value(id), node.activation, dy, Accumulate::no, parallel);
      }
      batch_norm_gradient(dy, z, s, tensor(id, first), by_batch(id) ? StatisticsFrom::batch : StatisticsFrom::running,
                          at.trained ? gradient(first).data() : nullptr, at.trained ? gradient(first + 1).data() : nullptr, dx, accumulate,
                          parallel, arena);
    };
    switch (node.op) {
      case Op::convolution: {
        const Direction direction = node.transposed ? Direction::transposed : Direction::forward;
        if (node.norm == Norm::batch) {
          through_norm(before(id), dy, Accumulate::no);
        } else {
          through_activation();
        }
        if (at.trained && node.bias) bias_gradient(dy, gradient(1), parallel, arena);
        if (detail::mirrors(node)) {
          mirrored_convolution(id, x, dy, at.trained ? gradient(0) : std::span<float>(), to, arena);
          break;
        }
        if (at.trained) convolution_weight_gradient(x, dy, training_geometry(node, at.padding), direction, gradient(0), parallel, arena);
        if (to.dx.data != nullptr) convolution_input_gradient(dy, layer(id).back, to.dx, to.accumulate, parallel, arena);
        break;
      }
      case Op::linear: {
        through_activation();
        if (at.trained) {
          linear_weight_gradient(x, dy, gradient(0), parallel, arena);
          if (node.bias) bias_gradient(dy, gradient(1), parallel, arena);
        }
        if (to.dx.data != nullptr) {
          const auto before = to.accumulate == Accumulate::yes ? MatrixView<const float>(to.dx.patches()) : MatrixView<const float>();
          linalg::gemm(dy.patches(), layer(id).matrix_back, to.dx.patches(), {nullptr, before, Activation::none}, parallel, arena);
        }
        break;
      }
      case Op::add: {
        through_activation();
        // The first may lie where dy lies.
        if (const Target other = target(id, 1, input_gradient); other.dx.data != nullptr && node.inputs[0] != node.inputs[1]) {
          pass_gradient(dy, other.dx, other.accumulate, parallel);
        }
        if (to.dx.data != nullptr) {
          pass_gradient(dy, to.dx, to.accumulate, parallel);
          if (node.inputs[0] == node.inputs[1]) pass_gradient(dy, to.dx, Accumulate::yes, parallel);
        }
        break;
      }
      case Op::activation:
        if (to.dx.data != nullptr) {
          activation_gradient(dy, gradient_needs_argument(node.activation) ? x : value(id), node.activation, to.dx, to.accumulate,
                              parallel);
        }
        break;
      case Op::max_pool: max_pool_gradient(x, value(id), pooling(id), dy, to.dx, to.accumulate, parallel); break;
      case Op::average_pool:
        average_pool_gradient(dy, pooling(id), node.count_include_pad ? PaddingCounts::yes : PaddingCounts::no, to.dx, to.accumulate,
                              parallel);
        break;
      case Op::global_average_pool:
      case Op::adaptive_average_pool: adaptive_average_pool_gradient(dy, to.dx, to.accumulate, parallel); break;
      case Op::flatten: flatten_gradient(dy, to.dx, to.accumulate, parallel); break;
      case Op::multiply: {
        const Target other = target(id, 1, input_gradient);
        const TensorView<const float> factor = value(node.inputs[1]);
        const bool gate = factor.shape() != x.shape();
        if (to.dx.data != nullptr) {
          if (gate) {
            scaled_gradient(dy, factor.data, factor.channels, to.dx, to.accumulate, parallel);
          } else {
            product_gradient(dy, factor, to.dx, to.accumulate, parallel);
          }
        }
        if (other.dx.data != nullptr) {
          if (gate) {
            gate_gradient(dy, x, other.dx, other.accumulate, parallel, arena);
          } else {
            product_gradient(dy, x, other.dx, other.accumulate, parallel);
          }
        }
        break;
      }
      case Op::concat: {
        std::int64_t offset = 0;
        for (int i = 0; i < node.input_count; ++i) {
          const Target part = target(id, i, input_gradient);
          if (part.dx.data != nullptr) concat_gradient(dy, offset, part.dx, part.accumulate, parallel);
          offset += this->at(node.inputs[static_cast<std::size_t>(i)]).out.channels;
        }
        break;
      }
      case Op::slice: slice_gradient(dy, node.offset, to.dx, to.accumulate, parallel); break;
      case Op::layer_norm:
        layer_norm_gradient(dy, x, tensor(id, 0), node.epsilon, at.trained ? gradient(0).data() : nullptr,
                            at.trained ? gradient(1).data() : nullptr, to.dx, to.accumulate, parallel, arena);
        break;
      case Op::layer_scale:
        if (at.trained) scale_gradient(dy, x, gradient(0), parallel, arena);
        if (to.dx.data != nullptr) scaled_gradient(dy, tensor(id, 0), 0, to.dx, to.accumulate, parallel);
        break;
      case Op::batch_norm: through_norm(x, to.dx, to.accumulate); break;
      case Op::instance_norm: instance_norm_gradient(dy, x, node.epsilon, to.dx, to.accumulate, parallel, arena); break;
      case Op::resize:
        if (node.interpolation == Interpolation::nearest) {
          upsample_nearest_gradient(dy, to.dx, to.accumulate, parallel);
        } else {
          const auto align = node.interpolation == Interpolation::bilinear_corners ? AlignCorners::yes : AlignCorners::no;
          upsample_bilinear_gradient(dy, align, to.dx, to.accumulate, parallel);
        }
        break;
      case Op::tokens: {
        if (to.dx.data != nullptr) placed_positions_gradient(dy, node.class_tokens, to.dx, to.accumulate, parallel);
        if (!at.trained) break;
        const TokenTensors tensors = token_tensors(node);
        std::array<float*, 2> tokens{};
        for (std::size_t r = 0; r < static_cast<std::size_t>(tensors.class_count); ++r) {
          tokens[r] = gradient(static_cast<std::size_t>(tensors.class_tokens[r])).data();
        }
        token_weight_gradient(dy, tensors.positions < 0 ? nullptr : gradient(static_cast<std::size_t>(tensors.positions)).data(),
                              std::span<float* const>(tokens.data(), static_cast<std::size_t>(tensors.class_count)), parallel);
        break;
      }
      case Op::grid: taken_positions_gradient(dy, node.class_tokens, to.dx, to.accumulate, parallel); break;
      case Op::token: taken_positions_gradient(dy, node.offset, to.dx, to.accumulate, parallel); break;
      case Op::join_tokens: {
        if (to.dx.data != nullptr) placed_positions_gradient(dy, 0, to.dx, to.accumulate, parallel);
        const Target other = target(id, 1, input_gradient);
        if (other.dx.data != nullptr) placed_positions_gradient(dy, x.height * x.width, other.dx, other.accumulate, parallel);
        break;
      }
      case Op::attention: attention_gradient(dy, x, node.heads, to.dx, to.accumulate, parallel, arena); break;
      case Op::talking_heads_attention: {
        HeadMixGradient mixes;
        if (at.trained) mixes = {gradient(0).data(), gradient(1).data(), gradient(2).data(), gradient(3).data()};
        talking_heads_attention_gradient(dy, x, node.heads, head_mix(id), mixes, to.dx, to.accumulate, parallel, arena);
        break;
      }
      case Op::class_attention:
        class_attention_gradient(dy, x, value(node.inputs[1]), value(node.inputs[2]), node.heads, to, target(id, 1, input_gradient),
                                 target(id, 2, input_gradient), parallel, arena);
        break;
      case Op::input: break;  // is no step
    }
  }
};

inline Status TrainingExecutor::forward(Parameters& parameters, TensorView<const float> input, BatchNorm batch_norm, Arena& arena,
                                        Parallel parallel, std::span<TensorView<const float>> taps_out, TrainingPass& pass) {
  constexpr std::string_view where = "nn::TrainingExecutor::forward";
  NORMA_CHECK(check(parameters, where));
  const auto taps = plan_.taps();
  if (input.shape() != plan_.input() || input.batch < 1) {
    return {Errc::shape_mismatch, std::string(where) + ": the input is " + std::to_string(input.batch) + " of " +
                                      detail::describe(input.shape()) + ", expected at least one of " + detail::describe(plan_.input())};
  }
  if (taps_out.size() != taps.size()) {
    return {Errc::invalid_argument,
            std::string(where) + ": room for " + std::to_string(taps_out.size()) + " outputs, expected " + std::to_string(taps.size())};
  }
  if (batch_norm == BatchNorm::training) {
    for (int id = 1; id < plan_.size(); ++id) {
      const TrainingNode& at = plan_.node(id);
      if (at.statistics >= 0 && at.trained && input.batch * at.out.positions() < 2) {
        return {Errc::invalid_argument, std::string(where) + ": " + detail::describe(plan_.graph(), id) +
                                            ": a batch norm cannot be trained on one value a channel, expected a larger batch or map"};
      }
    }
  }
  const std::size_t needed = workspace_bytes(input.batch, parallel.workers());
  if (arena.remaining() < needed) {
    return {Errc::out_of_memory, std::string(where) + ": the workspace has " + std::to_string(arena.remaining()) +
                                     " bytes left, expected " + std::to_string(needed)};
  }
  pass = {arena.take<std::byte>(static_cast<std::int64_t>(needed)), needed, input, batch_norm};
  const Run run(*this, pass, parameters.values(), parallel);
  pack(parameters, false, parallel, run.scratch_memory.data());
  for (int id = 1; id < plan_.size(); ++id) {
    if (plan_.node(id).needed) run.forward(id, parameters.values());
  }
  for (std::size_t t = 0; t < taps.size(); ++t) taps_out[t] = run.value(taps[t].node);
  return {};
}

inline Status TrainingExecutor::backward(const Parameters& parameters, TrainingPass& pass,
                                         std::span<const TensorView<const float>> tap_gradients, std::span<float> gradients,
                                         Parallel parallel, TensorView<float> input_gradient) {
  constexpr std::string_view where = "nn::TrainingExecutor::backward";
  NORMA_CHECK(check(parameters, where));
  if (pass.memory == nullptr)
    return {Errc::not_fitted, std::string(where) + ": expected a pass that `forward` made and that has not gone back yet"};
  const auto taps = plan_.taps();
  if (tap_gradients.size() != taps.size()) {
    return {Errc::invalid_argument, std::string(where) + ": found gradients of " + std::to_string(tap_gradients.size()) +
                                        " outputs, expected " + std::to_string(taps.size())};
  }
  for (std::size_t t = 0; t < taps.size(); ++t) {
    const auto& d = tap_gradients[t];
    if (d.data != nullptr && (d.batch != pass.input.batch || d.shape() != taps[t].shape)) {
      return {Errc::shape_mismatch, std::string(where) + ": the gradient of output " + std::to_string(t) + " is " +
                                        std::to_string(d.batch) + " of " + detail::describe(d.shape()) + ", expected " +
                                        std::to_string(pass.input.batch) + " of " + detail::describe(taps[t].shape)};
    }
  }
  if (static_cast<std::int64_t>(gradients.size()) != layout_.trained()) {
    return {Errc::shape_mismatch, std::string(where) + ": room for " + std::to_string(gradients.size()) + " gradients, expected " +
                                      std::to_string(layout_.trained())};
  }
  const bool wants_input = plan_.input_gradient_wanted();
  if (wants_input != (input_gradient.data != nullptr) ||
      (wants_input && (input_gradient.shape() != plan_.input() || input_gradient.batch != pass.input.batch))) {
    return {Errc::invalid_argument,
            std::string(where) + (wants_input ? ": expected room for the input's gradient, of the input's shape"
                                              : ": the input's gradient was not planned, see TrainingOptions::input_gradient")};
  }
  if (pass.bytes < workspace_bytes(pass.input.batch, parallel.workers())) {
    return {Errc::out_of_memory, std::string(where) + ": more workers than in `forward`"};
  }
  const Run run(*this, pass, parameters.values(), parallel);
  pack(parameters, true, parallel, run.scratch_memory.data());
  // What arrives at a tap from outside.
  const auto add_taps = [&](int id, TensorView<float> dy) {
    bool begun = plan_.node(id).gradient_begun;
    for (std::size_t t = 0; t < taps.size(); ++t) {
      if (taps[t].node != id || tap_gradients[t].data == nullptr) continue;
      pass_gradient(tap_gradients[t], dy, begun ? Accumulate::yes : Accumulate::no, parallel);
      begun = true;
    }
    if (!begun) std::memset(dy.data, 0, static_cast<std::size_t>(dy.count()) * sizeof(float));
  };
  for (int id = plan_.size() - 1; id >= 1; --id) {
    const TrainingNode& at = plan_.node(id);
    if (!at.gradient_wanted || !at.needed) continue;
    if (at.tapped) add_taps(id, run.place(at.gradient, id));
    run.backward(id, gradients, input_gradient);
  }
  if (wants_input && (plan_.node(0).tapped || !plan_.node(0).gradient_begun)) add_taps(0, input_gradient);
  pass = {};
  return {};
}

}  // namespace norma::nn
