/// \file
/// From a graph to what runs: shapes, the nodes that nobody asked for left out, residual additions moved into the convolution
/// before them, and one place in one workspace for every value. The same `constexpr` function serves the compiler
/// (`static_assert(plan_summary(...).workspace_bytes <= ...)`) and the program whose user chooses the size.
///
/// Cost: linear in the nodes times the number of values that are alive together, so that a graph of 600 nodes stays inside the
/// default limits of constant evaluation (clang: about a million steps).
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <norma/core/arena.hpp>
#include <norma/core/status.hpp>
#include <norma/nn/graph.hpp>

namespace norma::nn {

/// Largest height or width of a network's input; keeps every count inside 64 bits.
inline constexpr std::int64_t kMaxInputSide = 16384;

namespace detail {

/// A fixed number of zero-initialised elements, usable while compiling.
template <class T>
class Array {
 public:
  constexpr Array() noexcept = default;
  constexpr explicit Array(int count) : data_(count > 0 ? new T[static_cast<std::size_t>(count)]() : nullptr), count_(count) {}
  constexpr Array(const Array& other) : Array(other.count_) {
    for (int i = 0; i < count_; ++i) data_[i] = other.data_[i];
  }
  constexpr Array(Array&& other) noexcept : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  constexpr Array& operator=(Array other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  constexpr ~Array() { delete[] data_; }
  [[nodiscard]] constexpr T* data() noexcept { return data_; }
  [[nodiscard]] constexpr const T* data() const noexcept { return data_; }
  [[nodiscard]] constexpr std::span<const T> first(int count) const noexcept { return {data_, static_cast<std::size_t>(count)}; }

 private:
  T* data_ = nullptr;
  int count_ = 0;
};

}  // namespace detail

enum class TensorRole : std::uint8_t {
  weight,
  bias,
  norm_weight,
  norm_bias,
  norm_mean,
  norm_variance,
  position_embedding,
  class_token,
  second_token,
  scale,
  logits_mix,
  logits_mix_bias,
  weights_mix,
  weights_mix_bias,
};

/// One tensor of a weight file: its name is `prefix` followed by `suffix`.
struct TensorSpec {
  TensorRole role = TensorRole::weight;
  std::string_view prefix, suffix;
  std::array<std::int64_t, 4> dims{};
  int rank = 0;

  [[nodiscard]] constexpr std::int64_t count() const noexcept {
    std::int64_t product = 1;
    for (int i = 0; i < rank; ++i) product *= dims[static_cast<std::size_t>(i)];
    return product;
  }
  /// Statistics are stored but not counted as parameters, as everybody does.
  [[nodiscard]] constexpr bool is_parameter() const noexcept { return role != TensorRole::norm_mean && role != TensorRole::norm_variance; }
  [[nodiscard]] std::string name() const { return std::string(prefix).append(suffix); }
  [[nodiscard]] std::span<const std::int64_t> shape() const noexcept { return {dims.data(), static_cast<std::size_t>(rank)}; }
};

/// The tensors of one node; `in` is the shape of its first input and `out` its own.
struct NodeTensors {
  static constexpr int kCapacity = 6;
  std::array<TensorSpec, kCapacity> specs{};
  int count = 0;

  constexpr NodeTensors(const Node& node, Shape in, Shape out) noexcept {
    const std::string_view own = node.name.view();
    const std::string_view second = node.second.view();
    const std::int64_t c = node.out_channels;
    switch (node.op) {
      case Op::convolution: {
        const std::int64_t rows = node.transposed ? in.channels : c;
        const std::int64_t cols = (node.transposed ? c : in.channels) / node.groups;
        add({TensorRole::weight, own, ".weight", {rows, cols, node.kernel.height, node.kernel.width}, 4});
        if (node.bias) vector(TensorRole::bias, own, ".bias", c);
        if (node.norm == Norm::batch) batch_norm(second, c);
        break;
      }
      case Op::linear:
        add({TensorRole::weight, own, ".weight", {c, in.channels}, 2});
        if (node.bias) vector(TensorRole::bias, own, ".bias", c);
        break;
      case Op::layer_norm:
        vector(TensorRole::weight, own, ".weight", c);
        vector(TensorRole::bias, own, ".bias", c);
        break;
      case Op::batch_norm: batch_norm(own, c); break;
      case Op::layer_scale: vector(TensorRole::scale, own, "", c); break;
      case Op::tokens:
        if (!own.empty()) add({TensorRole::position_embedding, own, "", {1, out.width, c}, 3});
        if (!second.empty()) add({TensorRole::class_token, second, "", {1, 1, c}, 3});
        if (!node.third.empty()) add({TensorRole::second_token, node.third.view(), "", {1, 1, c}, 3});
        break;
      case Op::talking_heads_attention:
        add({TensorRole::logits_mix, own, ".weight", {node.heads, node.heads}, 2});
        vector(TensorRole::logits_mix_bias, own, ".bias", node.heads);
        add({TensorRole::weights_mix, second, ".weight", {node.heads, node.heads}, 2});
        vector(TensorRole::weights_mix_bias, second, ".bias", node.heads);
        break;
      default: break;
    }
  }
  [[nodiscard]] constexpr const TensorSpec* begin() const noexcept { return specs.data(); }
  [[nodiscard]] constexpr const TensorSpec* end() const noexcept { return specs.data() + count; }

 private:
  constexpr void add(const TensorSpec& spec) noexcept { specs[static_cast<std::size_t>(count++)] = spec; }
  constexpr void vector(TensorRole role, std::string_view prefix, std::string_view suffix, std::int64_t size) noexcept {
    add({role, prefix, suffix, {size}, 1});
  }
  constexpr void batch_norm(std::string_view prefix, std::int64_t size) noexcept {
    vector(TensorRole::norm_weight, prefix, ".weight", size);
    vector(TensorRole::norm_bias, prefix, ".bias", size);
    vector(TensorRole::norm_mean, prefix, ".running_mean", size);
    vector(TensorRole::norm_variance, prefix, ".running_var", size);
  }
};

enum class PlanError : std::uint8_t {
  none,
  no_taps,         ///< nothing asked for
  unknown_tap,     ///< a name that the graph does not have
  input_size,      ///< height or width outside 1..kMaxInputSide
  no_input,        ///< the graph does not begin with its input
  too_small,       ///< a kernel that does not fit into its (padded) input
  shape_mismatch,  ///< two inputs of one node that do not go together
  token_count,     ///< tokens that do not fill the grid they are laid out in
};

/// Why there is no plan. `index` is a position in the list of taps (unknown_tap) or a node.
struct PlanIssue {
  PlanError error = PlanError::none;
  int index = -1;
  Shape first, second;
};

/// One call of a kernel.
struct Step {
  int node = -1;   ///< whose operation and weights
  int value = -1;  ///< whose value is written; the add's where one moved into the convolution
  int input_count = 0;
  std::array<int, 4> inputs{-1, -1, -1, -1};  ///< nodes whose values are read; 0 is the picture
  int residual = -1;                          ///< node whose value is added before the activation
  Activation activation = Activation::none;
  int over = -1;                ///< node whose value dies here and in whose memory the output lies
  Padding padding;              ///< in numbers, SAME resolved
  Shape in, out;                ///< of inputs[0] and of the output
  std::int64_t values_end = 0;  ///< bytes per image up to which values lie while it runs; scratch may begin there
};

/// An output that was asked for. It stays in the workspace to the end.
struct PlannedTap {
  int node = -1;
  Shape shape;
  std::int64_t multiply_adds = 0;  ///< of an image, of all steps up to and including this one
};

/// What the compiler can check.
struct PlanSummary {
  std::int64_t workspace_bytes = 0;  ///< per image of the batch: all values that are not the picture
  std::int64_t parameters = 0;       ///< of the nodes that run; running statistics not counted
  std::int64_t multiply_adds = 0;    ///< per image: convolutions, linear layers and attention
  int steps = 0;                     ///< kernels called
  int live_nodes = 0;                ///< nodes that the taps need, the input included
  int fused_adds = 0;                ///< additions that moved into a convolution or linear layer
};

/// How the graph runs for one input size. Holds views into the graph, which must outlive it.
class Plan {
 public:
  constexpr Plan() noexcept = default;

  /// The plan for taps given by node, or an empty one with `issue` set. `first_steps` is what both ways below share.
  static constexpr Plan make(GraphView graph, std::span<const int> tap_nodes, std::int64_t height, std::int64_t width, PlanIssue& issue);

  /// By public names; errors name the node and the sizes.
  static Result<Plan> create(GraphView graph, std::span<const std::string_view> taps, std::int64_t height, std::int64_t width);
  /// By node, for graphs whose caller knows the numbers.
  static Result<Plan> create(GraphView graph, std::span<const int> tap_nodes, std::int64_t height, std::int64_t width);

  [[nodiscard]] constexpr GraphView graph() const noexcept { return graph_; }
  [[nodiscard]] constexpr Shape input() const noexcept { return input_; }
  [[nodiscard]] constexpr std::span<const Step> steps() const noexcept { return steps_.first(summary_.steps); }
  [[nodiscard]] constexpr std::span<const PlannedTap> taps() const noexcept { return taps_.first(tap_count_); }
  [[nodiscard]] constexpr const PlanSummary& summary() const noexcept { return summary_; }
  /// The shape of a node's output (zero where the node does not run).
  [[nodiscard]] constexpr Shape shape(int node) const noexcept { return values_.data()[node].shape; }
  /// Where a node's value begins, in bytes per image of the batch; -1 for the picture and for nodes without a value of their own.
  [[nodiscard]] constexpr std::int64_t offset(int node) const noexcept { return values_.data()[node].offset; }
  /// The last step that reads a node's value; `steps().size()` for a tap.
  [[nodiscard]] constexpr int last_use(int node) const noexcept { return values_.data()[node].last_use; }

 private:
  struct Value {
    Shape shape;
    std::int64_t offset = -1;
    int last_use = -1;
    int consumers = 0;
    bool needed = false;
    bool tapped = false;
    int moved_into = -1;   // the add that runs as this convolution's epilogue
    int epilogue_of = -1;  // the convolution whose epilogue this add is
  };
  struct Block {
    std::int64_t first = 0, end = 0;
    int value = -1;
  };

  constexpr void mark_needed() noexcept;
  constexpr bool infer_shapes(PlanIssue& issue) noexcept;
  constexpr void move_adds() noexcept;
  constexpr void write_steps() noexcept;
  constexpr void reuse_inputs() noexcept;
  enum class Placement : std::uint8_t { first_fit, both_ends };
  constexpr std::int64_t place(Placement placement, std::int64_t limit, std::int64_t& widest) noexcept;
  constexpr void place() noexcept;

  GraphView graph_;
  Shape input_;
  detail::Array<Value> values_;  // one a node
  detail::Array<Step> steps_;
  detail::Array<PlannedTap> taps_;
  int tap_count_ = 0;
  PlanSummary summary_;
};

namespace detail {

/// Padding in numbers. TensorFlow's SAME: total = max((ceil(n / s) - 1) s + k - n, 0), the smaller half first.
constexpr Padding resolve_padding(const Node& node, Shape in) noexcept {
  if (node.padding.kind != PaddingKind::same) return node.padding;
  const auto total = [&](std::int64_t size, int kernel) {
    const std::int64_t outputs = (size + node.stride - 1) / node.stride;
    const std::int64_t extent = std::int64_t{node.dilation} * (kernel - 1) + 1;
    const std::int64_t missing = (outputs - 1) * node.stride + extent - size;
    return static_cast<int>(missing > 0 ? missing : 0);
  };
  const int vertical = total(in.height, node.kernel.height);
  const int horizontal = total(in.width, node.kernel.width);
  return {vertical / 2, horizontal / 2, vertical - vertical / 2, horizontal - horizontal / 2};
}

/// Windows along one axis; 0 where not even one fits. With `ceil_mode` a last window may end outside if it begins inside the
/// input or its left padding (PyTorch's rule).
constexpr std::int64_t window_count(std::int64_t size, int kernel, int stride, int dilation, int before, int after,
                                    bool ceil_mode) noexcept {
  const std::int64_t extent = std::int64_t{dilation} * (kernel - 1) + 1;
  const std::int64_t room = size + before + after - extent;
  if (room < 0) return 0;
  std::int64_t count = room / stride + 1;
  if (ceil_mode && room % stride != 0 && count * stride < size + before) ++count;
  return count;
}

/// The shape of a node's output, or {} with `issue` set.
constexpr Shape output_shape(const Node& node, int id, Shape in, Shape second, Shape like, PlanIssue& issue) noexcept {
  const auto fail = [&](PlanError error, Shape a, Shape b) {
    issue = {error, id, a, b};
    return Shape{};
  };
  switch (node.op) {
    case Op::convolution:
    case Op::max_pool:
    case Op::average_pool: {
      const Padding padding = resolve_padding(node, in);
      if (node.transposed) {
        const std::int64_t height =
            (in.height - 1) * node.stride - padding.top - padding.bottom + node.dilation * (node.kernel.height - 1) + 1;
        const std::int64_t width =
            (in.width - 1) * node.stride - padding.left - padding.right + node.dilation * (node.kernel.width - 1) + 1;
        if (height < 1 || width < 1) return fail(PlanError::too_small, in, {node.kernel.height, node.kernel.width, 0});
        return {height, width, node.out_channels};
      }
      const std::int64_t height =
          window_count(in.height, node.kernel.height, node.stride, node.dilation, padding.top, padding.bottom, node.ceil_mode);
      const std::int64_t width =
          window_count(in.width, node.kernel.width, node.stride, node.dilation, padding.left, padding.right, node.ceil_mode);
      const bool mirrored_too_far = padding.kind == PaddingKind::reflect && (padding.top >= in.height || padding.bottom >= in.height ||
                                                                             padding.left >= in.width || padding.right >= in.width);
      if (height < 1 || width < 1 || mirrored_too_far) return fail(PlanError::too_small, in, {node.kernel.height, node.kernel.width, 0});
      return {height, width, node.out_channels};
    }
    case Op::global_average_pool: return {1, 1, node.out_channels};
    case Op::adaptive_average_pool: return {node.kernel.height, node.kernel.width, node.out_channels};
    case Op::flatten: {
      const Shape expected{node.kernel.height, node.kernel.width, in.channels};
      return in == expected ? Shape{1, 1, node.out_channels} : fail(PlanError::shape_mismatch, in, expected);
    }
    case Op::token:
      if (node.offset >= in.positions()) return fail(PlanError::shape_mismatch, in, {1, node.offset + 1, in.channels});
      return {1, 1, node.out_channels};
    case Op::join_tokens: return {1, in.positions() + second.positions(), node.out_channels};
    case Op::class_attention: return in == second ? Shape{1, 1, node.out_channels} : fail(PlanError::shape_mismatch, in, second);
    case Op::add: return in == second ? in : fail(PlanError::shape_mismatch, in, second);
    case Op::multiply: return in == second || second == Shape{1, 1, in.channels} ? in : fail(PlanError::shape_mismatch, in, second);
    case Op::tokens: return {1, in.positions() + node.class_tokens, node.out_channels};
    case Op::attention:
    case Op::talking_heads_attention:
    case Op::linear:
    case Op::slice: return {in.height, in.width, node.out_channels};
    case Op::resize: return {in.height * node.factor, in.width * node.factor, node.out_channels};
    case Op::grid:
      if (in.positions() - node.class_tokens != like.positions()) return fail(PlanError::token_count, in, like);
      return {like.height, like.width, node.out_channels};
    default: return {in.height, in.width, node.out_channels};
  }
}

constexpr std::int64_t multiply_adds(const Node& node, Shape in, Shape out) noexcept {
  switch (node.op) {
    case Op::convolution: {
      const std::int64_t window = std::int64_t{node.kernel.height} * node.kernel.width;
      if (node.transposed) return in.count() * window * (out.channels / node.groups);
      return out.count() * window * (in.channels / node.groups);
    }
    case Op::linear: return out.count() * in.channels;
    case Op::attention: return 2 * in.positions() * in.positions() * out.channels;
    case Op::class_attention: return 2 * in.positions() * out.channels;
    case Op::talking_heads_attention: return 2 * in.positions() * in.positions() * (out.channels + std::int64_t{node.heads} * node.heads);
    default: return 0;
  }
}

}  // namespace detail

// A node is needed when a tap or a needed node reads it. The picture is kept even if nobody reads it.
constexpr void Plan::mark_needed() noexcept {
  Value* values = values_.data();
  for (int id = graph_.size() - 1; id >= 0; --id) {
    if (!values[id].needed) continue;
    const Node& node = graph_[id];
    for (int i = 0; i < node.input_count; ++i) {
      Value& input = values[node.inputs[static_cast<std::size_t>(i)]];
      input.needed = true;
      ++input.consumers;
    }
    if (node.like >= 0) values[node.like].needed = true;
  }
  values[0].needed = true;
}

constexpr bool Plan::infer_shapes(PlanIssue& issue) noexcept {
  Value* values = values_.data();
  values[0].shape = input_;
  for (int id = 1; id < graph_.size(); ++id) {
    if (!values[id].needed) continue;
    const Node& node = graph_[id];
    const Shape in = values[node.inputs[0]].shape;
    const Shape second = node.input_count > 1 ? values[node.inputs[1]].shape : Shape{};
    const Shape like = node.like >= 0 ? values[node.like].shape : Shape{};
    if (node.op == Op::concat) {
      for (int i = 1; i < node.input_count; ++i) {
        const Shape other = values[node.inputs[static_cast<std::size_t>(i)]].shape;
        if (other.height != in.height || other.width != in.width) {
          issue = {PlanError::shape_mismatch, id, in, other};
          return false;
        }
      }
    }
    if (node.op == Op::class_attention && values[node.inputs[2]].shape.positions() != 1) {
      issue = {PlanError::shape_mismatch, id, in, values[node.inputs[2]].shape};
      return false;
    }
    const Shape out = detail::output_shape(node, id, in, second, like, issue);
    if (issue.error != PlanError::none) return false;
    values[id].shape = out;
    for (const TensorSpec& tensor : NodeTensors(node, in, out)) {
      if (tensor.is_parameter()) summary_.parameters += tensor.count();
    }
    ++summary_.live_nodes;
  }
  ++summary_.live_nodes;
  return true;
}

// An addition becomes the epilogue of a convolution or linear layer that nothing else reads and that has no activation of its own.
// Of two candidates the later one is taken: the other's value is ready by then.
constexpr void Plan::move_adds() noexcept {
  Value* values = values_.data();
  const auto can_take = [&](int id) {
    const Node& node = graph_[id];
    return (node.op == Op::convolution || node.op == Op::linear) && node.activation == Activation::none && values[id].consumers == 1 &&
           !values[id].tapped;
  };
  for (int id = 1; id < graph_.size(); ++id) {
    if (!values[id].needed || graph_[id].op != Op::add) continue;
    const int a = graph_[id].inputs[0], b = graph_[id].inputs[1];
    const int later = a > b ? a : b, earlier = a > b ? b : a;
    const int taker = later != earlier && can_take(later) ? later : later != earlier && can_take(earlier) ? earlier : -1;
    if (taker < 0) continue;
    values[taker].moved_into = id;
    values[id].epilogue_of = taker;
    ++summary_.fused_adds;
  }
}

constexpr void Plan::write_steps() noexcept {
  Value* values = values_.data();
  Step* steps = steps_.data();
  int count = 0;
  for (int id = 1; id < graph_.size(); ++id) {
    Value& value = values[id];
    if (!value.needed || value.moved_into >= 0) continue;
    Step& step = steps[count];
    const int source = value.epilogue_of >= 0 ? value.epilogue_of : id;
    const Node& node = graph_[source];
    step.node = source;
    step.value = id;
    step.inputs = node.inputs;
    step.input_count = node.input_count;
    if (source != id) {
      const Node& add = graph_[id];
      step.residual = add.inputs[0] == source ? add.inputs[1] : add.inputs[0];
      values[step.residual].last_use = count;
    }
    step.activation = graph_[id].activation;
    for (int i = 0; i < node.input_count; ++i) values[node.inputs[static_cast<std::size_t>(i)]].last_use = count;
    step.in = values[node.inputs[0]].shape;
    step.out = value.shape;
    step.padding = detail::resolve_padding(node, step.in);
    summary_.multiply_adds += detail::multiply_adds(node, step.in, step.out);
    ++count;
    if (value.tapped) {
      PlannedTap* taps = taps_.data();
      for (int t = 0; t < tap_count_; ++t) {
        if (taps[t].node == id) taps[t].multiply_adds = summary_.multiply_adds;
      }
    }
  }
  summary_.steps = count;
  for (int t = 0; t < tap_count_; ++t) {
    PlannedTap& tap = taps_.data()[t];
    tap.shape = values[tap.node].shape;
    values[tap.node].last_use = count;
  }
}

// Operations that go position by position write over an input that nobody reads afterwards; a convolution or linear layer over what
// it adds, unless it convolves the same value.
constexpr void Plan::reuse_inputs() noexcept {
  const Value* values = values_.data();
  Step* steps = steps_.data();
  for (int s = 0; s < summary_.steps; ++s) {
    Step& step = steps[s];
    const auto try_over = [&](int input) {
      if (step.over < 0 && input > 0 && values[input].last_use == s) step.over = input;
    };
    switch (graph_[step.node].op) {
      case Op::activation:
      case Op::multiply:
      case Op::layer_norm:
      case Op::layer_scale:
      case Op::instance_norm:
      case Op::batch_norm: try_over(step.inputs[0]); break;
      case Op::add:
        try_over(step.inputs[0]);
        try_over(step.inputs[1]);
        break;
      default:
        if (step.residual != step.inputs[0]) try_over(step.residual);
        break;
    }
  }
}

// The blocks in use are kept sorted, a new value goes into a gap that holds it. The list is as long as the number of values alive
// together, which is small whatever the length of the network. First fit takes the lowest gap. With both ends, a value whose input
// lies in the lower half of `limit` bytes takes the highest gap below that limit, so that a chain of layers goes back and forth and the
// small value at its beginning does not cut the space of the large ones after it. Returns the bytes used.
constexpr std::int64_t Plan::place(Placement placement, std::int64_t limit, std::int64_t& widest) noexcept {
  Value* values = values_.data();
  Step* steps = steps_.data();
  detail::Array<Block> blocks(summary_.steps + 1);
  Block* used = blocks.data();
  int count = 0;
  std::int64_t alive = 0, end = 0;
  widest = 0;
  for (int s = 0; s < summary_.steps; ++s) {
    Step& step = steps[s];
    if (step.over >= 0) {
      for (int b = 0; b < count; ++b) {
        if (used[b].value == step.over) used[b].value = step.value;
      }
      values[step.value].offset = values[step.over].offset;
    } else {
      const auto bytes = static_cast<std::int64_t>(arena_bytes<float>(step.out.count()));
      const int from = step.inputs[0];
      int at = -1;
      std::int64_t first = 0;
      const std::int64_t middle = 2 * values[from].offset + static_cast<std::int64_t>(arena_bytes<float>(step.in.count()));
      if (placement == Placement::both_ends && from != 0 && middle < limit) {
        std::int64_t top = limit;
        for (int b = count; b >= 0 && at < 0; --b) {
          const std::int64_t bottom = b > 0 ? used[b - 1].end : 0;
          if (top - bottom >= bytes) {
            at = b;
            first = top - bytes;
          }
          if (b > 0) top = used[b - 1].first;
        }
      }
      if (at < 0) {
        at = 0;
        while (at < count && used[at].first - first < bytes) first = used[at++].end;
      }
      for (int b = count; b > at; --b) used[b] = used[b - 1];
      used[at] = {first, first + bytes, step.value};
      ++count;
      values[step.value].offset = first;
      alive += bytes;
      if (alive > widest) widest = alive;
      if (first + bytes > end) end = first + bytes;
    }
    step.values_end = count > 0 ? used[count - 1].end : 0;
    int kept = 0;
    for (int b = 0; b < count; ++b) {
      if (values[used[b].value].last_use > s) {
        if (kept != b) used[kept] = used[b];
        ++kept;
      } else {
        alive -= used[b].end - used[b].first;
      }
    }
    count = kept;
  }
  return end;
}

constexpr void Plan::place() noexcept {
  std::int64_t widest = 0, unused = 0;
  summary_.workspace_bytes = place(Placement::first_fit, 0, widest);
  if (summary_.workspace_bytes == widest) return;  // nothing can be smaller than what is alive together
  const std::int64_t other = place(Placement::both_ends, widest, unused);
  if (other < summary_.workspace_bytes) {
    summary_.workspace_bytes = other;
  } else {
    place(Placement::first_fit, 0, unused);
  }
}

constexpr Plan Plan::make(GraphView graph, std::span<const int> tap_nodes, std::int64_t height, std::int64_t width, PlanIssue& issue) {
  issue = {};
  if (graph.size() == 0 || graph[0].op != Op::input) {
    issue.error = PlanError::no_input;
    return {};
  }
  if (height < 1 || width < 1 || height > kMaxInputSide || width > kMaxInputSide) {
    issue = {PlanError::input_size, 0, {height, width, graph[0].out_channels}, {}};
    return {};
  }
  if (tap_nodes.empty()) {
    issue.error = PlanError::no_taps;
    return {};
  }
  Plan plan;
  plan.graph_ = graph;
  plan.input_ = {height, width, graph[0].out_channels};
  plan.values_ = detail::Array<Value>(graph.size());
  plan.steps_ = detail::Array<Step>(graph.size());
  plan.tap_count_ = static_cast<int>(tap_nodes.size());
  plan.taps_ = detail::Array<PlannedTap>(plan.tap_count_);
  for (int t = 0; t < plan.tap_count_; ++t) {
    const int node = tap_nodes.data()[t];
    if (node < 0 || node >= graph.size()) {
      issue = {PlanError::unknown_tap, t, {}, {}};
      return {};
    }
    plan.taps_.data()[t].node = node;
    plan.values_.data()[node].needed = true;
    plan.values_.data()[node].tapped = true;
  }
  plan.mark_needed();
  if (!plan.infer_shapes(issue)) return {};
  plan.move_adds();
  plan.write_steps();
  plan.reuse_inputs();
  plan.place();
  return plan;
}

namespace detail {

/// "node 12 (convolution 'layer1.0.conv1')".
inline std::string describe(GraphView graph, int id) {
  std::string text = "node " + std::to_string(id);
  if (id < 0 || id >= graph.size()) return text;
  text.append(" (").append(to_string(graph[id].op));
  if (!graph[id].name.empty()) text.append(" '").append(graph[id].name.view()).append("'");
  return text.append(")");
}
inline std::string describe(Shape shape) {
  return std::to_string(shape.height) + " x " + std::to_string(shape.width) + " x " + std::to_string(shape.channels);
}

inline Status to_status(const PlanIssue& issue, GraphView graph, std::int64_t height, std::int64_t width) {
  const std::string where = "nn::Plan::create: ";
  const std::string at = " (network input " + std::to_string(height) + " x " + std::to_string(width) + ")";
  switch (issue.error) {
    case PlanError::none: return {};
    case PlanError::no_taps: return {Errc::invalid_argument, where + "no output was asked for, expected at least one tap"};
    case PlanError::unknown_tap:
      return {Errc::invalid_argument,
              where + "tap " + std::to_string(issue.index) + " is no node, expected a number below " + std::to_string(graph.size())};
    case PlanError::input_size:
      return {Errc::invalid_argument, where + "the network's input must be 1 to " + std::to_string(kMaxInputSide) +
                                          " high and wide, found " + std::to_string(height) + " x " + std::to_string(width)};
    case PlanError::no_input: return {Errc::invalid_argument, where + "the graph does not begin with its input"};
    case PlanError::too_small:
      return {Errc::shape_mismatch, where + describe(graph, issue.index) + ": a kernel of " + std::to_string(issue.second.height) + " x " +
                                        std::to_string(issue.second.width) + " does not fit into its input of " + describe(issue.first) +
                                        at};
    case PlanError::shape_mismatch:
      return {Errc::shape_mismatch, where + describe(graph, issue.index) + ": its inputs do not go together, found " +
                                        describe(issue.first) + " and " + describe(issue.second) + at};
    case PlanError::token_count:
      return {Errc::shape_mismatch, where + describe(graph, issue.index) + ": " + std::to_string(issue.first.width) +
                                        " tokens do not fill a grid of " + std::to_string(issue.second.height) + " x " +
                                        std::to_string(issue.second.width) + at};
  }
  return {};
}

}  // namespace detail

inline Result<Plan> Plan::create(GraphView graph, std::span<const int> tap_nodes, std::int64_t height, std::int64_t width) {
  PlanIssue issue;
  Plan plan = make(graph, tap_nodes, height, width, issue);
  if (issue.error != PlanError::none) return detail::to_status(issue, graph, height, width);
  return plan;
}

inline Result<Plan> Plan::create(GraphView graph, std::span<const std::string_view> taps, std::int64_t height, std::int64_t width) {
  detail::Array<int> nodes(static_cast<int>(taps.size()));
  for (std::size_t t = 0; t < taps.size(); ++t) {
    const int node = graph.find_tap(taps[t]);
    if (node < 0) {
      std::string known;
      for (const Tap& tap : graph.taps) known.append(known.empty() ? "" : ", ").append(tap.name.view());
      return Status(Errc::not_found, "nn::Plan::create: no output is called '" + std::string(taps[t]) + "', expected one of " + known);
    }
    nodes.data()[t] = node;
  }
  return create(graph, nodes.first(static_cast<int>(taps.size())), height, width);
}

namespace detail {
// Reached while compiling, these names are the error message.
inline void this_network_has_no_such_tap() { NORMA_EXPECTS(false && "nn::plan_summary: unknown tap"); }
inline void this_input_is_too_small_for_the_network() { NORMA_EXPECTS(false && "nn::plan_summary: a kernel does not fit"); }
inline void this_graph_cannot_be_planned() { NORMA_EXPECTS(false && "nn::plan_summary: see PlanIssue"); }
}  // namespace detail

/// The plan for named taps where a mistake is a bug: while compiling it is an error that names what is wrong.
constexpr Plan plan_of(GraphView graph, std::span<const std::string_view> taps, std::int64_t height, std::int64_t width) {
  const int count = static_cast<int>(taps.size());
  detail::Array<int> nodes(count);
  for (int t = 0; t < count; ++t) {
    nodes.data()[t] = graph.find_tap(taps.data()[t]);
    if (nodes.data()[t] < 0) detail::this_network_has_no_such_tap();
  }
  PlanIssue issue;
  Plan plan = Plan::make(graph, nodes.first(count), height, width, issue);
  if (issue.error == PlanError::too_small) detail::this_input_is_too_small_for_the_network();
  if (issue.error != PlanError::none) detail::this_graph_cannot_be_planned();
  return plan;
}

/// What can be `static_assert`ed: `plan_summary(ResNet18::graph(), ResNet18::default_taps(), 224, 224).workspace_bytes`.
constexpr PlanSummary plan_summary(GraphView graph, std::span<const std::string_view> taps, std::int64_t height, std::int64_t width) {
  return plan_of(graph, taps, height, width).summary();
}

/// Height, width and channels of one tap.
constexpr Shape tap_shape(GraphView graph, std::string_view tap, std::int64_t height, std::int64_t width) {
  return plan_of(graph, std::span<const std::string_view>(&tap, 1), height, width).taps()[0].shape;
}

}  // namespace norma::nn
