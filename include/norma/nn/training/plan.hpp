/// \file
/// How a graph is trained for one input size and some taps: which values are kept for the way back, where gradients flow, and one place
/// in one workspace for every value and every gradient. The same `constexpr` function serves the compiler
/// (`static_assert(training_workspace_bytes(...) <= ...)`) and the program whose user chooses the size.
///
/// Time runs over the nodes forwards and then backwards. A value lives until the last layer that reads it on either way, a gradient from
/// the first layer that writes it (the last of the value's readers) to the value's own layer; gradients take the places of values that
/// nobody needs any more.
///
/// Cost: linear in the nodes times the values kept; graphs of about a hundred nodes stay inside the default limits of constant evaluation.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <norma/nn/kernels/attention_backward.hpp>
#include <norma/nn/kernels/convolution_backward.hpp>
#include <norma/nn/kernels/detail/mirror_backward.hpp>
#include <norma/nn/kernels/normalisation_backward.hpp>
#include <norma/nn/kernels/pooling_backward.hpp>
#include <norma/nn/plan.hpp>

namespace norma::nn {

/// Whether `backward` also computes the gradient of the network's input.
enum class InputGradient : std::uint8_t { no, yes };

struct TrainingOptions {
  /// Nodes that keep their weights: names, or their first parts up to a dot ("layer1" means "layer1.0.conv1" too). A node with several
  /// tensors is frozen as a whole by its first name (tokens: the position embedding's, else the class token's; talking heads: the mix of
  /// the scores). Frozen batch norms always use their running statistics.
  std::span<const std::string_view> frozen = {};
  InputGradient input_gradient = InputGradient::no;
  float batch_norm_momentum = 0.1f;  ///< share of the new batch in the running statistics, in [0, 1]
};

/// Whether a node's name is `prefix` or goes on after it with a dot.
constexpr bool name_begins_with(std::string_view name, std::string_view prefix) noexcept {
  if (prefix.empty() || name.size() < prefix.size() || name.substr(0, prefix.size()) != prefix) return false;
  return name.size() == prefix.size() || name[prefix.size()] == '.';
}

/// What a convolution does.
constexpr ConvolutionGeometry training_geometry(const Node& node, const Padding& padding) noexcept {
  ConvolutionGeometry g{node.kernel.height, node.kernel.width, node.stride,   node.dilation, padding.top,
                        padding.left,       padding.bottom,    padding.right, node.groups};
  if (padding.kind == PaddingKind::reflect) g.border = Border::mirror;
  return g;
}
namespace detail {
/// The way back through reflection padding is that through a convolution without padding over the bordered map.
constexpr bool mirrors(const Node& node) noexcept { return node.op == Op::convolution && node.padding.kind == PaddingKind::reflect; }
constexpr ConvolutionGeometry gradient_geometry(const Node& node, const Padding& padding) noexcept {
  const ConvolutionGeometry g = training_geometry(node, padding);
  return mirrors(node) ? bordered_geometry(g) : g;
}
constexpr Shape gradient_input(const Node& node, const Padding& padding, Shape in) noexcept {
  return mirrors(node) ? bordered_shape(in, training_geometry(node, padding)) : in;
}
}  // namespace detail

/// What happens to one node, on both ways.
struct TrainingNode {
  Shape in;                      ///< of its first input
  Shape out;                     ///< of its value
  Padding padding;               ///< in numbers
  std::int64_t value = -1;       ///< where its value lies, bytes per image; -1: not needed, or the picture
  std::int64_t before = -1;      ///< where the value before norm and activation is kept; -1: the same place
  std::int64_t gradient = -1;    ///< where its gradient lies; -1: has none
  std::int64_t statistics = -1;  ///< the first of its 2 C floats: mean, 1 / deviation (batch norms)
  int consumers = 0;
  bool needed = false;  ///< by a tap
  bool tapped = false;
  bool trained = false;          ///< has weights of its own that learn
  bool gradient_wanted = false;  ///< something at or before it learns
  bool gradient_begun = false;   ///< a reader has written its gradient before its own turn (else it comes from the taps alone)
};

/// Why there is no plan.
enum class TrainingIssue : std::uint8_t {
  none,
  not_planned,     ///< see the PlanIssue
  unsupported,     ///< a layer that cannot be trained
  nothing_learns,  ///< all weights are frozen and the input's gradient is not wanted
  unknown_frozen,  ///< a name in `frozen` that no node has; index in `index`
  momentum,        ///< outside [0, 1]
};

class TrainingPlan {
 public:
  constexpr TrainingPlan() noexcept = default;

  struct Issue {
    TrainingIssue error = TrainingIssue::none;
    int index = -1;
    PlanIssue plan;
  };
  static constexpr TrainingPlan make(GraphView graph, std::span<const int> tap_nodes, std::int64_t height, std::int64_t width,
                                     const TrainingOptions& options, Issue& issue);
  /// Errors name the node and the sizes.
  static Result<TrainingPlan> create(GraphView graph, std::span<const std::string_view> taps, std::int64_t height, std::int64_t width,
                                     const TrainingOptions& options = {});
  static Result<TrainingPlan> create(GraphView graph, std::span<const int> tap_nodes, std::int64_t height, std::int64_t width,
                                     const TrainingOptions& options = {});

  [[nodiscard]] constexpr GraphView graph() const noexcept { return plan_.graph(); }
  [[nodiscard]] constexpr Shape input() const noexcept { return plan_.input(); }
  [[nodiscard]] constexpr std::span<const PlannedTap> taps() const noexcept { return plan_.taps(); }
  [[nodiscard]] constexpr int size() const noexcept { return plan_.graph().size(); }
  [[nodiscard]] constexpr const TrainingNode& node(int id) const noexcept { return nodes_.data()[id]; }
  /// The node whose way back is the first to write the gradient of `input`; -1: none.
  [[nodiscard]] constexpr int first_writer(int input) const noexcept { return first_writer_.data()[input]; }
  [[nodiscard]] constexpr bool input_gradient_wanted() const noexcept { return input_gradient_ == InputGradient::yes; }
  [[nodiscard]] constexpr float batch_norm_momentum() const noexcept { return momentum_; }
  /// Values and gradients, per image of the batch.
  [[nodiscard]] constexpr std::int64_t bytes_per_image() const noexcept { return bytes_per_image_; }
  /// Means and deviations of batch norms.
  [[nodiscard]] constexpr std::int64_t statistics_count() const noexcept { return statistics_count_; }
  /// The largest need of any layer on either way.
  [[nodiscard]] constexpr std::size_t scratch_bytes(int workers) const noexcept;
  /// All memory of a step: values, gradients, statistics and scratch.
  [[nodiscard]] constexpr std::size_t workspace_bytes(std::int64_t batch, int workers) const noexcept {
    return static_cast<std::size_t>(bytes_per_image_ * batch) + arena_bytes<float>(statistics_count_) + scratch_bytes(workers);
  }

 private:
  struct Block {
    std::int64_t first = 0, end = 0;
    int last = 0;  // the time of its last use
  };
  constexpr int place(Block* used, int& count, std::int64_t bytes, int last) noexcept;
  constexpr void place_all() noexcept;

  Plan plan_;
  detail::Array<TrainingNode> nodes_;
  detail::Array<int> first_writer_;
  InputGradient input_gradient_ = InputGradient::no;
  float momentum_ = 0.1f;
  std::int64_t bytes_per_image_ = 0;
  std::int64_t statistics_count_ = 0;
};

namespace detail {

/// Why a node cannot be trained, or empty.
constexpr std::string_view why_not_trainable(const Node& node) noexcept {
  switch (node.op) {
    case Op::convolution:
      if (node.transposed &&
          (node.groups != 1 || node.dilation != 1 || node.kernel.height < node.stride || node.kernel.width < node.stride)) {
        return "transposed convolutions with groups, dilation, or a stride larger than the kernel";
      }
      return {};
    case Op::input:
    case Op::linear:
    case Op::max_pool:
    case Op::average_pool:
    case Op::global_average_pool:
    case Op::adaptive_average_pool:
    case Op::add:
    case Op::multiply:
    case Op::concat:
    case Op::activation:
    case Op::layer_norm:
    case Op::resize:
    case Op::flatten:
    case Op::layer_scale:
    case Op::instance_norm:
    case Op::batch_norm:
    case Op::slice:
    case Op::tokens:
    case Op::grid:
    case Op::token:
    case Op::join_tokens:
    case Op::attention:
    case Op::class_attention: return {};
    case Op::talking_heads_attention: return node.heads > kMaxMixedHeads ? "talking heads, more than 64" : std::string_view{};
  }
  return to_string(node.op);
}

/// The name by which a node's weights are frozen; empty: it has none.
constexpr std::string_view weights_name(const Node& node) noexcept {
  switch (node.op) {
    case Op::convolution:
    case Op::linear:
    case Op::layer_norm:
    case Op::batch_norm:
    case Op::layer_scale:
    case Op::talking_heads_attention: return node.name.view();
    case Op::tokens: return !node.name.empty() ? node.name.view() : !node.second.empty() ? node.second.view() : node.third.view();
    default: return {};
  }
}
constexpr bool has_weights(const Node& node) noexcept { return !weights_name(node).empty(); }
constexpr bool has_batch_norm(const Node& node) noexcept {
  return node.op == Op::batch_norm || (node.op == Op::convolution && node.norm == Norm::batch);
}
/// Whether the value before norm and activation is kept apart from the result.
constexpr bool keeps_before(const Node& node, bool gradient_wanted) noexcept {
  switch (node.op) {
    case Op::convolution: return gradient_wanted && (node.norm == Norm::batch || gradient_needs_argument(node.activation));
    case Op::linear:
    case Op::add: return gradient_wanted && gradient_needs_argument(node.activation);
    default: return false;
  }
}
/// Whether the way back through a node reads its result, or uses its place: behind a norm the activation's argument is made there again.
constexpr bool back_reads_result(const Node& node) noexcept {
  return node.op == Op::max_pool ||
         (node.activation != Activation::none && (!gradient_needs_argument(node.activation) || has_batch_norm(node)));
}
/// Whether it reads the values of its inputs.
constexpr bool back_reads_inputs(const Node& node, bool trained) noexcept {
  switch (node.op) {
    case Op::convolution:
    case Op::linear: return trained;
    case Op::max_pool:
    case Op::multiply:
    case Op::layer_norm:
    case Op::instance_norm:
    case Op::batch_norm:
    case Op::attention:
    case Op::talking_heads_attention:
    case Op::class_attention: return true;
    case Op::layer_scale: return trained;
    case Op::activation: return gradient_needs_argument(node.activation);
    default: return false;
  }
}
/// Whether the gradient of the first input may be written over that of the result.
constexpr bool back_in_place(Op op) noexcept {
  return op == Op::activation || op == Op::add || op == Op::batch_norm || op == Op::layer_norm || op == Op::layer_scale ||
         op == Op::instance_norm;
}

constexpr std::size_t larger(std::size_t a, std::size_t b) noexcept { return a > b ? a : b; }

/// Floats that a convolution's weights pass through on their way into the kernels' order.
constexpr std::int64_t packing_floats(const Node& node, const TrainingNode& at) noexcept {
  if (node.op != Op::convolution) return 0;
  return at.out.channels * at.in.channels / node.groups * node.kernel.height * node.kernel.width;
}

constexpr std::size_t training_scratch_bytes(const Node& node, const TrainingNode& at, bool input_wanted, int workers) noexcept {
  std::size_t most = 0;
  const std::int64_t channels = at.out.channels;
  switch (node.op) {
    case Op::convolution: {
      const ConvolutionGeometry g = training_geometry(node, at.padding);
      const Direction direction = node.transposed ? Direction::transposed : Direction::forward;
      most = node.transposed ? convolution_transposed_scratch_bytes(at.in, channels, g, workers)
                             : convolution_scratch_bytes(at.in, channels, g, workers);
      if (node.norm == Norm::batch) most = larger(most, norm_scratch_bytes(channels));
      const Shape in = gradient_input(node, at.padding, at.in);
      const ConvolutionGeometry back = gradient_geometry(node, at.padding);
      const std::size_t bordered = mirrors(node) ? arena_bytes<float>(in.count()) : 0;
      if (at.trained) {
        most = larger(most, bordered + convolution_weight_gradient_scratch_bytes(in, channels, back, direction));
        if (node.bias) most = larger(most, bias_gradient_scratch_bytes(channels));
      }
      if (input_wanted) most = larger(most, bordered + convolution_input_gradient_scratch_bytes(in, channels, back, direction, workers));
      return most;
    }
    case Op::linear:
      if (at.trained) {
        most = linear_weight_gradient_scratch_bytes(at.in.channels, channels);
        if (node.bias) most = larger(most, bias_gradient_scratch_bytes(channels));
      }
      return larger(most, linalg::gemm_scratch_bytes(at.in.positions(), channels, at.in.channels, workers));
    case Op::batch_norm: return norm_scratch_bytes(channels);
    case Op::instance_norm: return instance_norm_scratch_bytes(channels);
    case Op::layer_norm: return layer_norm_gradient_scratch_bytes(channels, workers);
    case Op::multiply:
    case Op::layer_scale: return scale_gradient_scratch_bytes(channels);
    case Op::tokens: return arena_bytes<float>(at.out.count());
    case Op::attention:
      return larger(attention_scratch_bytes(at.out.positions(), channels, node.heads, workers),
                    input_wanted ? attention_gradient_scratch_bytes(at.out.positions(), channels, node.heads, workers) : 0);
    case Op::talking_heads_attention:
      return larger(talking_heads_attention_scratch_bytes(at.out.positions(), channels, node.heads, workers),
                    at.gradient_wanted ? talking_heads_attention_gradient_scratch_bytes(at.out.positions(), channels, node.heads) : 0);
    case Op::class_attention:
      return larger(class_attention_scratch_bytes(at.in.positions(), node.heads),
                    at.gradient_wanted ? class_attention_gradient_scratch_bytes(at.in.positions(), channels, node.heads, workers) : 0);
    default: return 0;
  }
}

}  // namespace detail

// Puts a block into the lowest gap that holds it; returns its position in the list, which is sorted.
constexpr int TrainingPlan::place(Block* used, int& count, std::int64_t bytes, int last) noexcept {
  int at = 0;
  std::int64_t first = 0;
  while (at < count && used[at].first - first < bytes) first = used[at++].end;
  for (int b = count; b > at; --b) used[b] = used[b - 1];
  used[at] = {first, first + bytes, last};
  ++count;
  if (first + bytes > bytes_per_image_) bytes_per_image_ = first + bytes;
  return at;
}

constexpr void TrainingPlan::place_all() noexcept {
  const GraphView graph = plan_.graph();
  const int size = graph.size();
  TrainingNode* nodes = nodes_.data();
  int* first_writer = first_writer_.data();
  // The last time that each value is read: node id runs forwards at time id, backwards at time 2 size - 1 - id.
  detail::Array<int> value_last(size), before_last(size);
  int* last = value_last.data();
  int* before = before_last.data();
  for (int id = 0; id < size; ++id) {
    if (!nodes[id].needed) continue;
    const Node& node = graph[id];
    const int back = 2 * size - 1 - id;
    last[id] = nodes[id].tapped ? 2 * size : id;
    before[id] = id;
    if (id == 0) continue;
    for (int i = 0; i < node.input_count; ++i) {
      const int input = node.inputs[static_cast<std::size_t>(i)];
      const int read = nodes[id].gradient_wanted && detail::back_reads_inputs(node, nodes[id].trained) ? back : id;
      if (read > last[input]) last[input] = read;
    }
    if (nodes[id].gradient_wanted) {
      if (detail::back_reads_result(node) && back > last[id]) last[id] = back;
      before[id] = back;
    }
  }
  detail::Array<Block> blocks(3 * size + 1);
  Block* used = blocks.data();
  int count = 0;
  const auto bytes_of = [&](int id) { return static_cast<std::int64_t>(arena_bytes<float>(nodes[id].out.count())); };
  const auto release = [&](int now) {
    int kept = 0;
    for (int b = 0; b < count; ++b) {
      if (used[b].last > now) {
        if (kept != b) used[kept] = used[b];
        ++kept;
      }
    }
    count = kept;
  };
  for (int id = 1; id < size; ++id) {
    if (!nodes[id].needed) continue;
    if (detail::keeps_before(graph[id], nodes[id].gradient_wanted)) {
      nodes[id].before = used[place(used, count, bytes_of(id), before[id])].first;
    }
    nodes[id].value = used[place(used, count, bytes_of(id), last[id])].first;
    release(id);
  }
  for (int id = 0; id < size; ++id) first_writer[id] = -1;
  for (int id = size - 1; id >= 1; --id) {
    if (!nodes[id].gradient_wanted) continue;
    const Node& node = graph[id];
    const int now = 2 * size - 1 - id;
    if (nodes[id].gradient < 0) nodes[id].gradient = used[place(used, count, bytes_of(id), now)].first;
    bool over = false;
    for (int i = 0; i < node.input_count; ++i) {
      const int input = node.inputs[static_cast<std::size_t>(i)];
      if (!nodes[input].gradient_wanted || first_writer[input] >= 0) continue;
      first_writer[input] = id;
      nodes[input].gradient_begun = true;
      const int end = 2 * size - 1 - input;
      if (input == 0) continue;  // written to the caller's memory
      if (!over && i == 0 && detail::back_in_place(node.op)) {
        over = true;
        nodes[input].gradient = nodes[id].gradient;
        for (int b = 0; b < count; ++b) {
          if (used[b].first == nodes[id].gradient) used[b].last = end;
        }
      } else {
        nodes[input].gradient = used[place(used, count, bytes_of(input), end)].first;
      }
    }
    release(now);
  }
}

constexpr std::size_t TrainingPlan::scratch_bytes(int workers) const noexcept {
  std::size_t most = 0;
  for (int id = 1; id < size(); ++id) {
    const TrainingNode& at = nodes_.data()[id];
    if (!at.needed) continue;
    const bool input_wanted = at.gradient_wanted && nodes_.data()[graph()[id].inputs[0]].gradient_wanted;
    most = detail::larger(most, detail::training_scratch_bytes(graph()[id], at, input_wanted, workers));
    most = detail::larger(most, static_cast<std::size_t>(workers) * arena_bytes<float>(detail::packing_floats(graph()[id], at)));
  }
  return most;
}

constexpr TrainingPlan TrainingPlan::make(GraphView graph, std::span<const int> tap_nodes, std::int64_t height, std::int64_t width,
                                          const TrainingOptions& options, Issue& issue) {
  issue = {};
  TrainingPlan plan;
  plan.plan_ = Plan::make(graph, tap_nodes, height, width, issue.plan);
  if (issue.plan.error != PlanError::none) {
    issue.error = TrainingIssue::not_planned;
    return {};
  }
  if (!(options.batch_norm_momentum >= 0.0f && options.batch_norm_momentum <= 1.0f)) {
    issue.error = TrainingIssue::momentum;
    return {};
  }
  plan.momentum_ = options.batch_norm_momentum;
  plan.input_gradient_ = options.input_gradient;
  const int size = graph.size();
  plan.nodes_ = detail::Array<TrainingNode>(size);
  plan.first_writer_ = detail::Array<int>(size);
  TrainingNode* nodes = plan.nodes_.data();
  for (const int tap : tap_nodes) {
    nodes[tap].needed = true;
    nodes[tap].tapped = true;
  }
  for (int id = size - 1; id >= 0; --id) {
    if (!nodes[id].needed) continue;
    for (int i = 0; i < graph[id].input_count; ++i) {
      TrainingNode& input = nodes[graph[id].inputs[static_cast<std::size_t>(i)]];
      input.needed = true;
      ++input.consumers;
    }
  }
  nodes[0].needed = true;
  detail::Array<bool> frozen_found(static_cast<int>(options.frozen.size()) + 1);
  bool anything = false;
  for (int id = 0; id < size; ++id) {
    TrainingNode& at = nodes[id];
    const Node& node = graph[id];
    bool frozen = false;
    if (detail::has_weights(node)) {
      for (std::size_t f = 0; f < options.frozen.size(); ++f) {
        if (name_begins_with(detail::weights_name(node), options.frozen.data()[f])) {
          frozen = true;
          frozen_found.data()[f] = true;
        }
      }
    }
    if (!at.needed) continue;
    if (!detail::why_not_trainable(node).empty()) {
      issue.error = TrainingIssue::unsupported;
      issue.index = id;
      return {};
    }
    at.out = plan.plan_.shape(id);
    if (id == 0) {
      at.gradient_wanted = options.input_gradient == InputGradient::yes;
      continue;
    }
    at.in = plan.plan_.shape(node.inputs[0]);
    at.padding = detail::resolve_padding(node, at.in);
    at.trained = detail::has_weights(node) && !frozen;
    at.gradient_wanted = at.trained;
    for (int i = 0; i < node.input_count; ++i) {
      if (nodes[node.inputs[static_cast<std::size_t>(i)]].gradient_wanted) at.gradient_wanted = true;
    }
    anything = anything || at.gradient_wanted;
    if (detail::has_batch_norm(node)) {
      at.statistics = plan.statistics_count_;
      plan.statistics_count_ += 2 * at.out.channels;
    }
  }
  for (std::size_t f = 0; f < options.frozen.size(); ++f) {
    if (!frozen_found.data()[f]) {
      issue.error = TrainingIssue::unknown_frozen;
      issue.index = static_cast<int>(f);
      return {};
    }
  }
  if (!anything) {
    issue.error = TrainingIssue::nothing_learns;
    return {};
  }
  plan.place_all();
  return plan;
}

inline Result<TrainingPlan> TrainingPlan::create(GraphView graph, std::span<const int> tap_nodes, std::int64_t height, std::int64_t width,
                                                 const TrainingOptions& options) {
  Issue issue;
  TrainingPlan plan = make(graph, tap_nodes, height, width, options, issue);
  const std::string where = "nn::TrainingPlan::create: ";
  switch (issue.error) {
    case TrainingIssue::none: break;
    case TrainingIssue::not_planned: return detail::to_status(issue.plan, graph, height, width);
    case TrainingIssue::unsupported:
      return Status(Errc::unsupported, where + detail::describe(graph, issue.index) + ": training does not have " +
                                           std::string(detail::why_not_trainable(graph[issue.index])));
    case TrainingIssue::nothing_learns:
      return Status(Errc::invalid_argument,
                    where + "no layer that the taps need has weights that learn, and no input gradient was asked for");
    case TrainingIssue::unknown_frozen:
      return Status(Errc::not_found, where + "no layer is called '" + std::string(options.frozen[static_cast<std::size_t>(issue.index)]) +
                                         "' or begins with it and a dot");
    case TrainingIssue::momentum:
      return Status(Errc::invalid_argument,
                    where + "batch_norm_momentum must be in [0, 1], found " + std::to_string(options.batch_norm_momentum));
  }
  return plan;
}

inline Result<TrainingPlan> TrainingPlan::create(GraphView graph, std::span<const std::string_view> taps, std::int64_t height,
                                                 std::int64_t width, const TrainingOptions& options) {
  NORMA_TRY(const Plan plan, Plan::create(graph, taps, height, width));  // resolves the names, or says which is wrong
  detail::Array<int> nodes(static_cast<int>(taps.size()));
  for (std::size_t t = 0; t < taps.size(); ++t) nodes.data()[t] = plan.taps()[t].node;
  return create(graph, nodes.first(static_cast<int>(taps.size())), height, width, options);
}

namespace detail {
// Reached while compiling, this name is the error message.
inline void this_graph_cannot_be_trained() { NORMA_EXPECTS(false && "nn::training_workspace_bytes: see TrainingPlan::create"); }
}  // namespace detail

/// Memory of a training step, known before anything runs; a mistake is a compile error. `workers` as Parallel counts them.
constexpr std::size_t training_workspace_bytes(GraphView graph, std::span<const std::string_view> taps, std::int64_t height,
                                               std::int64_t width, std::int64_t batch, int workers = 1,
                                               const TrainingOptions& options = {}) {
  const int count = static_cast<int>(taps.size());
  detail::Array<int> nodes(count);
  for (int t = 0; t < count; ++t) {
    nodes.data()[t] = graph.find_tap(taps.data()[t]);
    if (nodes.data()[t] < 0) detail::this_network_has_no_such_tap();
  }
  TrainingPlan::Issue issue;
  const TrainingPlan plan = TrainingPlan::make(graph, nodes.first(count), height, width, options, issue);
  if (issue.error != TrainingIssue::none) detail::this_graph_cannot_be_trained();
  return plan.workspace_bytes(batch, workers);
}

}  // namespace norma::nn
