/// \file
/// A network as a value: a list of nodes in the order in which they run, their settings and the names of their weights.
/// Nothing here computes. A plan (nn/plan.hpp) derives shapes, fusions and memory from the list, an executor (nn/executor.hpp)
/// walks the plan, training walks the same list backwards.
///
/// A network is written once as a function and evaluated by the compiler. A ResNet basic block:
/// \code
///   constexpr int basic_block(Builder& b, int x, Name p, int planes, int stride) {
///     int y = b.convolution(x, {.name = p + ".conv1", .out_channels = planes, .kernel = 3, .stride = stride, .padding = 1,
///                               .norm = p + ".bn1", .activation = Activation::relu});
///     y = b.convolution(y, {.name = p + ".conv2", .out_channels = planes, .kernel = 3, .padding = 1, .norm = p + ".bn2"});
///     int shortcut = x;
///     if (stride != 1 || b.channels(x) != planes) {
///       shortcut = b.convolution(x, {.name = p + ".downsample.0", .out_channels = planes, .stride = stride,
///                                    .norm = p + ".downsample.1"});
///     }
///     return b.add(y, shortcut, Activation::relu);      // the plan moves this into the convolution before it
///   }
///   consteval auto make() {
///     Graph<64> graph;
///     Builder b(graph);
///     int x = b.input(3);
///     x = b.convolution(x, {.name = "conv1", .out_channels = 64, .kernel = 7, .stride = 2, .padding = 3, .norm = "bn1",
///                           .activation = Activation::relu});
///     x = b.max_pool(x, {.kernel = 3, .stride = 2, .padding = 1});
///     for (int i = 0; i < 2; ++i) x = basic_block(b, x, name("layer1.", i), 64, 1);
///     b.tap("layer1", x);
///     return graph;
///   }
///   inline constexpr auto kGraph = make();              // GraphView(kGraph) is what everything else takes
/// \endcode
/// A name or a graph that outgrows its fixed capacity is a compile error that names `name_exceeds_its_capacity` or
/// `graph_exceeds_its_capacity`.
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <span>
#include <string_view>

#include <norma/core/view.hpp>
#include <norma/linalg/activation.hpp>

namespace norma::nn {

namespace detail {
// Called where a constant cannot grow. Not constexpr on purpose: the compiler stops here and prints the name.
inline void name_exceeds_its_capacity() { NORMA_EXPECTS(false && "nn::Name: longer than its capacity"); }
inline void graph_exceeds_its_capacity() { NORMA_EXPECTS(false && "nn::Builder: more nodes or taps than the graph's capacity"); }
inline void node_uses_an_unknown_node() { NORMA_EXPECTS(false && "nn::Builder: a node may only use nodes made before it"); }
inline void node_settings_are_wrong() { NORMA_EXPECTS(false && "nn::Builder: a size, stride, group or head count that cannot be"); }
}  // namespace detail

/// A short string that a constant can hold: the name of a tensor, or the part that its tensors' names begin with.
struct Name {
  static constexpr int kCapacity = 55;

  // Plain arrays and loops: the compilers' limits on constant evaluation count every function call.
  char text[kCapacity] = {};
  std::uint8_t size = 0;

  constexpr Name() noexcept = default;
  constexpr Name(const char* other) noexcept { append(std::string_view(other)); }  // NOLINT(google-explicit-constructor)
  constexpr Name(std::string_view other) noexcept { append(other); }               // NOLINT(google-explicit-constructor)

  constexpr void append(std::string_view other) noexcept {
    const char* from = other.data();
    int count = static_cast<int>(other.size());
    if (size + count > kCapacity) {
      detail::name_exceeds_its_capacity();
      count = kCapacity - size;
    }
    char* to = text + size;
    for (int i = 0; i < count; ++i) to[i] = from[i];
    size = static_cast<std::uint8_t>(size + count);
  }
  /// Appends a number >= 0 in decimal.
  constexpr void append(int number) noexcept {
    char digits[10] = {};
    int first = 10;
    do {
      digits[--first] = static_cast<char>('0' + number % 10);
      number /= 10;
    } while (number > 0);
    append(std::string_view(digits + first, static_cast<std::size_t>(10 - first)));
  }

  [[nodiscard]] constexpr std::string_view view() const noexcept { return {text, size}; }
  constexpr operator std::string_view() const noexcept { return view(); }  // NOLINT(google-explicit-constructor)
  [[nodiscard]] constexpr bool empty() const noexcept { return size == 0; }
  friend constexpr bool operator==(const Name& a, const Name& b) noexcept { return a.view() == b.view(); }

  friend constexpr Name operator+(Name a, const char* b) noexcept {
    a.append(std::string_view(b));
    return a;
  }
  friend constexpr Name operator+(Name a, std::string_view b) noexcept {
    a.append(b);
    return a;
  }
  friend constexpr Name operator+(Name a, const Name& b) noexcept {
    a.append(b.view());
    return a;
  }
  friend constexpr Name operator+(Name a, int b) noexcept {
    a.append(b);
    return a;
  }
};

/// The parts one after the other: `name("layer", 2, ".", i)`. Parts are texts, names and numbers >= 0.
template <class... Parts>
constexpr Name name(const Parts&... parts) noexcept {
  Name whole;
  const auto add = [&whole](const auto& part) {
    if constexpr (std::integral<std::remove_cvref_t<decltype(part)>>) {
      whole.append(static_cast<int>(part));
    } else {
      whole.append(std::string_view(part));
    }
  };
  (add(parts), ...);
  return whole;
}

/// What a node does. Shapes are of one image, [height, width, channels]; a sequence of tokens is [1, tokens, channels].
enum class Op : std::uint8_t {
  input,                ///< the picture
  convolution,          ///< weight [O, I/groups, kh, kw]; bias, norm, activation; transposed where the flag says so
  linear,               ///< at each position; weight [O, I]; bias, activation
  max_pool,             ///< padding never wins
  average_pool,         ///< with or without the padding in the count
  global_average_pool,  ///< [1, 1, C]
  adaptive_average_pool,  ///< [kernel.height, kernel.width, C], PyTorch's regions
  add,                  ///< two nodes of one shape; activation
  multiply,             ///< inputs[1] of the same shape, or a gate [1, 1, C]
  concat,               ///< along channels
  activation,           ///< elementwise
  layer_norm,           ///< over the channels of each position; weight [C], bias [C]
  tokens,               ///< [h, w, C] -> [1, h w + class tokens, C], position embedding added
  attention,            ///< multi-head self-attention of [1, T, 3 C] = (q, k, v) as timm lays them out -> [1, T, C]
  resize,               ///< nearest or bilinear, by a whole factor
  grid,                 ///< [1, T, C] without its first tokens -> [h, w, C]
  token,                ///< [1, T, C] -> [1, 1, C]: the one at `offset`
  join_tokens,          ///< [1, A, C] and [1, B, C] -> [1, A + B, C]
  class_attention,      ///< keys and values [1, T, C], query [1, 1, C] -> [1, 1, C] (CaiT)
  flatten,              ///< [kernel.height, kernel.width, C] -> [1, 1, all], channel by channel as PyTorch counts them
  layer_scale,              ///< multiplied by a learnt vector [C]
  talking_heads_attention,  ///< attention with a mix over heads before and after the softmax (CaiT)
  instance_norm,            ///< over the positions of each channel
  batch_norm,               ///< one that does not follow a convolution
  slice,                    ///< channels [offset, offset + out_channels)
};

/// Name of an operation, for messages.
constexpr std::string_view to_string(Op op) noexcept {
  switch (op) {
    case Op::input: return "input";
    case Op::convolution: return "convolution";
    case Op::linear: return "linear";
    case Op::max_pool: return "max_pool";
    case Op::average_pool: return "average_pool";
    case Op::global_average_pool: return "global_average_pool";
    case Op::adaptive_average_pool: return "adaptive_average_pool";
    case Op::add: return "add";
    case Op::multiply: return "multiply";
    case Op::concat: return "concat";
    case Op::activation: return "activation";
    case Op::layer_norm: return "layer_norm";
    case Op::tokens: return "tokens";
    case Op::attention: return "attention";
    case Op::resize: return "resize";
    case Op::grid: return "grid";
    case Op::token: return "token";
    case Op::join_tokens: return "join_tokens";
    case Op::class_attention: return "class_attention";
    case Op::flatten: return "flatten";
    case Op::layer_scale: return "layer_scale";
    case Op::talking_heads_attention: return "talking_heads_attention";
    case Op::instance_norm: return "instance_norm";
    case Op::batch_norm: return "batch_norm";
    case Op::slice: return "slice";
  }
  return "unknown";
}

enum class Norm : std::uint8_t { none, batch };
enum class PaddingKind : std::uint8_t {
  zeros,    ///< the four numbers
  same,     ///< TensorFlow's SAME: ceil(n / stride) outputs, the smaller half first; depends on the input's size
  reflect,  ///< the four numbers, mirrored without repeating the border; convolutions only
};
enum class Interpolation : std::uint8_t {
  nearest,
  bilinear,          ///< between the centres of positions (PyTorch's align_corners = false)
  bilinear_corners,  ///< corners on corners (align_corners = true)
};

/// Padding of a convolution or a pooling: `1`, `{2, 2, 3, 3}` or `Padding::same()`.
struct Padding {
  std::int16_t top = 0, left = 0, bottom = 0, right = 0;
  PaddingKind kind = PaddingKind::zeros;

  constexpr Padding() noexcept = default;
  constexpr Padding(int all) noexcept : Padding(all, all, all, all) {}  // NOLINT(google-explicit-constructor)
  constexpr Padding(int top_, int left_, int bottom_, int right_) noexcept
      : top(static_cast<std::int16_t>(top_)),
        left(static_cast<std::int16_t>(left_)),
        bottom(static_cast<std::int16_t>(bottom_)),
        right(static_cast<std::int16_t>(right_)) {}
  static constexpr Padding same() noexcept {
    Padding padding;
    padding.kind = PaddingKind::same;
    return padding;
  }
  static constexpr Padding reflect(int all) noexcept {
    Padding padding(all);
    padding.kind = PaddingKind::reflect;
    return padding;
  }
};

/// Height and width of a kernel: `3` or `{1, 7}`.
struct Kernel {
  int height = 1, width = 1;
  constexpr Kernel() noexcept = default;
  constexpr Kernel(int both) noexcept : height(both), width(both) {}  // NOLINT(google-explicit-constructor)
  constexpr Kernel(int height_, int width_) noexcept : height(height_), width(width_) {}
};

/// One operation. Which members count depends on `op`.
struct Node {
  Op op = Op::input;
  Activation activation = Activation::none;  ///< after everything else (convolution, linear, add, activation)
  Norm norm = Norm::none;                    ///< of a convolution, before its activation
  bool bias = false;                         ///< convolution and linear: `<name>.bias` exists
  bool ceil_mode = false;                    ///< pooling: the last window may begin inside and end outside
  bool count_include_pad = false;            ///< average pooling: divide by the whole window
  bool transposed = false;                   ///< convolution: weight [I, O/groups, kh, kw], enlarges
  Interpolation interpolation = Interpolation::nearest;
  Padding padding;
  Kernel kernel;  ///< adaptive pooling: the output's size; flatten: the input's
  int stride = 1;
  int dilation = 1;
  int groups = 1;
  int heads = 1;         ///< attention
  int factor = 1;        ///< resize
  int class_tokens = 0;  ///< tokens: how many are prepended; grid: how many are dropped
  int offset = 0;        ///< slice: the first channel; token: which one
  int like = -1;         ///< grid: the node whose height and width the tokens are laid out in (its values are not read)
  int out_channels = 0;  ///< always set
  float epsilon = 0.0f;  ///< batch norm, layer norm
  int input_count = 0;
  std::array<int, 4> inputs{-1, -1, -1, -1};
  Name name;    ///< what its tensors' names begin with, or a whole name (tokens: the position embedding; layer_scale: the vector)
  Name second;  ///< the norm of a convolution; tokens: the class token; talking heads: the mix of the weights
  Name third;   ///< tokens: the second class token
};

/// A node that users can ask for, by its public name.
struct Tap {
  Name name;
  int node = -1;
};

/// The list with its memory. `Capacity` bounds the nodes, `TapCapacity` the taps.
template <int Capacity, int TapCapacity = 40>
struct Graph {
  std::array<Node, Capacity> nodes{};
  std::array<Tap, TapCapacity> taps{};
  int node_count = 0;
  int tap_count = 0;
};

/// What everything that reads a graph takes: code that walks graphs is compiled once, not once a network.
/// Nodes come in the order in which they run; the first is the input.
struct GraphView {
  std::span<const Node> nodes;
  std::span<const Tap> taps;

  constexpr GraphView() noexcept = default;
  constexpr GraphView(std::span<const Node> nodes_, std::span<const Tap> taps_) noexcept : nodes(nodes_), taps(taps_) {}
  template <int Capacity, int TapCapacity>
  constexpr GraphView(const Graph<Capacity, TapCapacity>& graph) noexcept  // NOLINT(google-explicit-constructor)
      : nodes(graph.nodes.data(), static_cast<std::size_t>(graph.node_count)),
        taps(graph.taps.data(), static_cast<std::size_t>(graph.tap_count)) {}
  template <int Capacity, int TapCapacity>
  GraphView(const Graph<Capacity, TapCapacity>&&) = delete;  // would dangle

  [[nodiscard]] constexpr int size() const noexcept { return static_cast<int>(nodes.size()); }
  [[nodiscard]] constexpr const Node& operator[](int id) const noexcept { return nodes[static_cast<std::size_t>(id)]; }
  /// The node behind a public name, or -1.
  [[nodiscard]] constexpr int find_tap(std::string_view tap) const noexcept {
    for (const Tap& candidate : taps) {
      if (candidate.name.view() == tap) return candidate.node;
    }
    return -1;
  }
};

/// Settings of a convolution. With `norm` set, batch norm follows (tensors `<norm>.weight`, `.bias`, `.running_mean`,
/// `.running_var`); a weight file may hold it already folded, as `<name>.bias`.
struct Convolution {
  Name name;
  int out_channels = 0;
  Kernel kernel = 1;
  int stride = 1;
  Padding padding = 0;
  int dilation = 1;
  int groups = 1;
  bool bias = false;
  Name norm = {};
  float epsilon = 1e-5f;
  Activation activation = Activation::none;
};
struct Linear {
  Name name;
  int out_channels = 0;
  bool bias = true;
  Activation activation = Activation::none;
};
struct Pool {
  Kernel kernel = 2;
  int stride = 2;
  Padding padding = 0;
  bool ceil_mode = false;
  bool count_include_pad = true;  ///< average pooling only; PyTorch's default
};
struct LayerNorm {
  Name name;
  float epsilon = 1e-5f;
};
/// Whole tensor names; an empty one means that there is none.
struct Tokens {
  Name position_embedding;  ///< [1, T, C], T counts the class tokens
  Name class_token = {};    ///< [1, 1, C]
  Name second_token = {};   ///< [1, 1, C], DeiT's distillation token
};

/// Writes nodes into a graph. Every function returns the new node's number.
class Builder {
 public:
  template <int Capacity, int TapCapacity>
  constexpr explicit Builder(Graph<Capacity, TapCapacity>& graph) noexcept
      : nodes_(graph.nodes.data()),
        taps_(graph.taps.data()),
        node_count_(&graph.node_count),
        tap_count_(&graph.tap_count),
        capacity_(Capacity),
        tap_capacity_(TapCapacity) {}

  /// Channels of a node's output.
  [[nodiscard]] constexpr int channels(int id) const noexcept { return nodes_[id].out_channels; }

  constexpr int input(int channels = 3) noexcept {
    if (*node_count_ != 0) detail::node_settings_are_wrong();
    Node& node = append(Op::input);
    node.out_channels = channels;
    return last();
  }
  constexpr int convolution(int x, const Convolution& settings) noexcept { return convolution(x, settings, false); }
  /// PyTorch's ConvTranspose2d without output padding; zero padding, cut from the result.
  constexpr int transposed_convolution(int x, const Convolution& settings) noexcept { return convolution(x, settings, true); }
  constexpr int linear(int x, const Linear& settings) noexcept {
    if (settings.out_channels < 1) detail::node_settings_are_wrong();
    Node& node = append(Op::linear, x);
    node.name = settings.name;
    node.out_channels = settings.out_channels;
    node.bias = settings.bias;
    node.activation = settings.activation;
    return last();
  }
  constexpr int max_pool(int x, const Pool& settings) noexcept { return pool(Op::max_pool, x, settings); }
  constexpr int average_pool(int x, const Pool& settings) noexcept { return pool(Op::average_pool, x, settings); }
  constexpr int global_average_pool(int x) noexcept { return append_like(Op::global_average_pool, x); }
  /// PyTorch's AdaptiveAvgPool2d: whatever the input's size, the output's is `size`.
  constexpr int adaptive_average_pool(int x, Kernel size) noexcept {
    if (size.height < 1 || size.width < 1) detail::node_settings_are_wrong();
    append_like(Op::adaptive_average_pool, x);
    nodes_[last()].kernel = size;
    return last();
  }
  /// A map of `size` as one vector, ordered channel, row, column: what PyTorch's flatten gives to a linear layer.
  constexpr int flatten(int x, Kernel size) noexcept {
    if (size.height < 1 || size.width < 1) detail::node_settings_are_wrong();
    Node& node = append(Op::flatten, x);
    node.kernel = size;
    node.out_channels = size.height * size.width * channels(x);
    return last();
  }
  constexpr int add(int a, int b, Activation activation = Activation::none) noexcept {
    if (channels(a) != channels(b)) detail::node_settings_are_wrong();
    Node& node = append(Op::add, a, b);
    node.out_channels = channels(a);
    node.activation = activation;
    return last();
  }
  /// `gate` is [1, 1, C] (squeeze and excite) or of x's shape.
  constexpr int multiply(int x, int gate) noexcept {
    if (channels(x) != channels(gate)) detail::node_settings_are_wrong();
    Node& node = append(Op::multiply, x, gate);
    node.out_channels = channels(x);
    return last();
  }
  constexpr int concat(int a, int b, int c = -1, int d = -1) noexcept {
    if (c < 0 && d >= 0) detail::node_uses_an_unknown_node();
    Node& node = append(Op::concat, a, b, c, d);
    for (int i = 0; i < node.input_count; ++i) node.out_channels += channels(node.inputs[static_cast<std::size_t>(i)]);
    return last();
  }
  constexpr int activation(int x, Activation kind) noexcept {
    append_like(Op::activation, x);
    nodes_[last()].activation = kind;
    return last();
  }
  constexpr int layer_norm(int x, const LayerNorm& settings) noexcept {
    append_like(Op::layer_norm, x);
    nodes_[last()].name = settings.name;
    nodes_[last()].epsilon = settings.epsilon;
    return last();
  }
  constexpr int tokens(int x, const Tokens& settings) noexcept {
    append_like(Op::tokens, x);
    Node& node = nodes_[last()];
    node.name = settings.position_embedding;
    node.second = settings.class_token;
    node.third = settings.second_token;
    node.class_tokens = (settings.class_token.empty() ? 0 : 1) + (settings.second_token.empty() ? 0 : 1);
    return last();
  }
  /// `qkv` is what a linear layer of 3 C outputs gives: all queries, all keys, all values, each cut into heads.
  constexpr int attention(int qkv, int heads) noexcept {
    if (heads < 1 || channels(qkv) % (3 * heads) != 0) detail::node_settings_are_wrong();
    Node& node = append(Op::attention, qkv);
    node.heads = heads;
    node.out_channels = channels(qkv) / 3;
    return last();
  }
  constexpr int resize(int x, int factor, Interpolation interpolation) noexcept {
    if (factor < 1) detail::node_settings_are_wrong();
    append_like(Op::resize, x);
    nodes_[last()].factor = factor;
    nodes_[last()].interpolation = interpolation;
    return last();
  }
  /// Drops the class tokens and lays the others out in height and width of `like` (usually the patch embedding's convolution).
  constexpr int grid(int x, int like, int class_tokens) noexcept {
    if (like < 0 || like >= *node_count_) detail::node_uses_an_unknown_node();
    append_like(Op::grid, x);
    nodes_[last()].like = like;
    nodes_[last()].class_tokens = class_tokens;
    return last();
  }
  /// The first of the tokens alone, [1, 1, C]: what a transformer's classifier reads.
  constexpr int first_token(int x) noexcept { return token(x, 0); }
  constexpr int token(int x, int index) noexcept {
    if (index < 0) detail::node_settings_are_wrong();
    append_like(Op::token, x);
    nodes_[last()].offset = index;
    return last();
  }
  /// The tokens of `a`, then those of `b`.
  constexpr int join_tokens(int a, int b) noexcept {
    if (channels(a) != channels(b)) detail::node_settings_are_wrong();
    Node& node = append(Op::join_tokens, a, b);
    node.out_channels = channels(a);
    return last();
  }
  /// One query over all keys, head by head (Touvron et al. 2021, section 3): `query` [1, 1, C], `keys` and `values` [1, T, C].
  constexpr int class_attention(int query, int keys, int values, int heads) noexcept {
    if (heads < 1 || channels(keys) % heads != 0 || channels(values) != channels(keys) || channels(query) != channels(keys)) {
      detail::node_settings_are_wrong();
    }
    Node& node = append(Op::class_attention, keys, values, query);
    node.heads = heads;
    node.out_channels = channels(keys);
    return last();
  }
  constexpr int layer_scale(int x, const Name& gamma) noexcept {
    append_like(Op::layer_scale, x);
    nodes_[last()].name = gamma;
    return last();
  }
  constexpr int talking_heads_attention(int qkv, int heads, const Name& logits_mix, const Name& weights_mix) noexcept {
    const int node = attention(qkv, heads);
    nodes_[node].op = Op::talking_heads_attention;
    nodes_[node].name = logits_mix;
    nodes_[node].second = weights_mix;
    return node;
  }
  constexpr int instance_norm(int x, float epsilon = 1e-5f) noexcept {
    append_like(Op::instance_norm, x);
    nodes_[last()].epsilon = epsilon;
    return last();
  }
  constexpr int batch_norm(int x, const Name& norm, float epsilon = 1e-5f, Activation activation = Activation::none) noexcept {
    append_like(Op::batch_norm, x);
    Node& node = nodes_[last()];
    node.name = norm;
    node.epsilon = epsilon;
    node.activation = activation;
    return last();
  }
  constexpr int slice(int x, int offset, int count) noexcept {
    if (offset < 0 || count < 1 || offset + count > channels(x)) detail::node_settings_are_wrong();
    Node& node = append(Op::slice, x);
    node.offset = offset;
    node.out_channels = count;
    return last();
  }

  /// Gives a node a public name. Several names for one node are fine.
  constexpr void tap(const Name& public_name, int id) noexcept {
    if (*tap_count_ >= tap_capacity_) {
      detail::graph_exceeds_its_capacity();
      return;
    }
    if (id < 0 || id >= *node_count_) detail::node_uses_an_unknown_node();
    taps_[*tap_count_].name = public_name;
    taps_[*tap_count_].node = id;
    ++*tap_count_;
  }

 private:
  [[nodiscard]] constexpr int last() const noexcept { return *node_count_ - 1; }
  constexpr Node& append(Op op, int a = -1, int b = -1, int c = -1, int d = -1) noexcept {
    if (*node_count_ >= capacity_) {
      detail::graph_exceeds_its_capacity();
      --*node_count_;  // keeps later writes inside; the graph is wrong either way and a debug build has stopped
    }
    const int id = *node_count_;
    if (a >= id || b >= id || c >= id || d >= id || (op != Op::input && a < 0)) detail::node_uses_an_unknown_node();
    Node& node = nodes_[id];
    node.op = op;
    node.inputs = {a, b, c, d};
    node.input_count = (a >= 0) + (b >= 0) + (c >= 0) + (d >= 0);
    ++*node_count_;
    return node;
  }
  constexpr int append_like(Op op, int x) noexcept {
    Node& node = append(op, x);
    node.out_channels = channels(x);
    return last();
  }
  constexpr int convolution(int x, const Convolution& settings, bool transposed) noexcept {
    if (settings.out_channels < 1 || settings.kernel.height < 1 || settings.kernel.width < 1 || settings.stride < 1 ||
        settings.dilation < 1 || settings.groups < 1 || settings.out_channels % settings.groups != 0 ||
        channels(x) % settings.groups != 0) {
      detail::node_settings_are_wrong();
    }
    if (transposed && (settings.padding.kind != PaddingKind::zeros || settings.padding.top < 0 || settings.padding.left < 0)) {
      detail::node_settings_are_wrong();
    }
    Node& node = append(Op::convolution, x);
    node.name = settings.name;
    node.second = settings.norm;
    node.out_channels = settings.out_channels;
    node.kernel = settings.kernel;
    node.stride = settings.stride;
    node.padding = settings.padding;
    node.dilation = settings.dilation;
    node.groups = settings.groups;
    node.bias = settings.bias;
    node.norm = settings.norm.empty() ? Norm::none : Norm::batch;
    node.epsilon = settings.epsilon;
    node.activation = settings.activation;
    node.transposed = transposed;
    return last();
  }
  constexpr int pool(Op op, int x, const Pool& settings) noexcept {
    if (settings.kernel.height < 1 || settings.kernel.width < 1 || settings.stride < 1 || settings.padding.kind == PaddingKind::reflect) {
      detail::node_settings_are_wrong();
    }
    append_like(op, x);
    Node& node = nodes_[last()];
    node.kernel = settings.kernel;
    node.stride = settings.stride;
    node.padding = settings.padding;
    node.ceil_mode = settings.ceil_mode;
    node.count_include_pad = settings.count_include_pad;
    return last();
  }

  Node* nodes_;
  Tap* taps_;
  int* node_count_;
  int* tap_count_;
  int capacity_;
  int tap_capacity_;
};

}  // namespace norma::nn
