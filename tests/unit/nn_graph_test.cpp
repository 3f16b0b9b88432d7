// The list of nodes that a network is, and the names in it.
#include <memory>
#include <string>

#include <doctest/doctest.h>

#include <norma/concepts/network.hpp>
#include <norma/nn/graph.hpp>
#include <norma/nn/network.hpp>

namespace {

using norma::Activation;
using namespace norma::nn;

static_assert(name("layer", 1, ".", 0, ".conv1") == Name("layer1.0.conv1"));
static_assert(Name("layer") + 12 + ".bn" + Name("1") == Name("layer12.bn1"));
static_assert(name(0, std::string_view("x"), 2147483647).view() == "0x2147483647");
static_assert(Name("0123456789012345678901234567890123456789012345678901234").size == Name::kCapacity);
static_assert(Name().empty() && Name("").empty() && !Name("a").empty());
static_assert(!(Name("ab") == Name("abc")) && !(Name("ab") == Name("ac")));

consteval auto make_small() {
  Graph<8, 3> graph;
  Builder b(graph);
  int x = b.input(3);
  x = b.convolution(x, {.name = "stem",
                        .out_channels = 8,
                        .kernel = {1, 7},
                        .stride = 2,
                        .padding = Padding::same(),
                        .norm = "bn",
                        .epsilon = 1e-3f,
                        .activation = Activation::relu6});
  b.tap("stem", x);
  const int y =
      b.convolution(x, {.name = "depthwise", .out_channels = 8, .kernel = 3, .padding = 1, .groups = b.channels(x), .bias = true});
  b.tap("also_stem", x);
  b.tap("sum", b.add(y, x, Activation::relu));
  return graph;
}
constexpr auto kSmall = make_small();
constexpr GraphView kView(kSmall);

static_assert(kView.size() == 4 && kView.taps.size() == 3);
static_assert(kView.find_tap("stem") == 1 && kView.find_tap("also_stem") == 1 && kView.find_tap("sum") == 3);
static_assert(kView.find_tap("stems") == -1 && kView.find_tap("") == -1);
static_assert(kView[0].op == Op::input && kView[0].out_channels == 3);
static_assert(kView[1].op == Op::convolution && kView[1].norm == Norm::batch && kView[1].second == Name("bn") && !kView[1].bias);
static_assert(kView[1].kernel.height == 1 && kView[1].kernel.width == 7 && kView[1].padding.kind == PaddingKind::same);
static_assert(kView[1].epsilon == 1e-3f && kView[1].activation == Activation::relu6);
static_assert(kView[2].groups == 8 && kView[2].norm == Norm::none && kView[2].bias && kView[2].inputs[0] == 1);
static_assert(kView[3].input_count == 2 && kView[3].inputs[0] == 2 && kView[3].inputs[1] == 1 && kView[3].out_channels == 8);

// A view cannot be made of a graph that dies at once.
static_assert(!std::is_constructible_v<GraphView, const Graph<8, 3>&&>);

struct Tiny {
  static constexpr std::string_view name() { return "tiny"; }
  static constexpr InputSpec input() { return kImageNet; }
  static constexpr GraphView graph() { return kView; }
  static constexpr std::span<const std::string_view> default_taps() { return kTaps; }
  static constexpr std::array<std::string_view, 1> kTaps{"sum"};
};
struct Nameless {
  static constexpr InputSpec input() { return kImageNet; }
};
static_assert(norma::Network<Tiny> && norma::StaticNetwork<Tiny>);
static_assert(norma::Network<NetworkInfo> && !norma::StaticNetwork<NetworkInfo>);
static_assert(!norma::Network<Nameless> && !norma::HasNetworkName<Nameless> && norma::HasNetworkInput<Nameless>);
static_assert(norma::detail::check_network<Tiny>());

}  // namespace

TEST_CASE("every operation knows its channels") {
  const auto graph = std::make_unique<Graph<40>>();
  Builder b(*graph);
  const int x = b.input(4);
  const int wide = b.convolution(x, {.name = "wide", .out_channels = 12});
  CHECK(b.channels(b.max_pool(wide, {})) == 12);
  CHECK(b.channels(b.average_pool(wide, {.kernel = 3, .stride = 1, .padding = 1})) == 12);
  CHECK(b.channels(b.global_average_pool(wide)) == 12);
  CHECK(b.channels(b.concat(x, wide)) == 16);
  CHECK(b.channels(b.concat(x, wide, x, wide)) == 32);
  CHECK(b.channels(b.multiply(wide, b.global_average_pool(wide))) == 12);
  CHECK(b.channels(b.activation(wide, Activation::silu)) == 12);
  CHECK(b.channels(b.layer_norm(wide, {.name = "n"})) == 12);
  const int tokens = b.tokens(wide, {.position_embedding = "p", .class_token = "c", .second_token = "d"});
  CHECK(b.channels(tokens) == 12);
  CHECK(graph->nodes[static_cast<std::size_t>(tokens)].class_tokens == 2);
  CHECK(b.channels(b.attention(tokens, 2)) == 4);
  CHECK(b.channels(b.talking_heads_attention(tokens, 2, "l", "w")) == 4);
  CHECK(b.channels(b.linear(tokens, {.name = "l", .out_channels = 7})) == 7);
  CHECK(b.channels(b.grid(tokens, wide, 2)) == 12);
  CHECK(b.channels(b.first_token(tokens)) == 12);
  CHECK(b.channels(b.resize(wide, 2, Interpolation::bilinear)) == 12);
  CHECK(b.channels(b.layer_scale(wide, "g")) == 12);
  CHECK(b.channels(b.instance_norm(wide)) == 12);
  CHECK(b.channels(b.batch_norm(wide, "bn")) == 12);
  CHECK(b.channels(b.slice(wide, 3, 5)) == 5);
  CHECK(b.channels(b.transposed_convolution(wide, {.name = "t", .out_channels = 6, .kernel = 2, .stride = 2})) == 6);
  const GraphView view(*graph);
  for (int id = 1; id < view.size(); ++id) {
    CAPTURE(id);
    CHECK(view[id].input_count >= 1);
    CHECK(to_string(view[id].op) != "unknown");
    for (int i = 0; i < view[id].input_count; ++i) CHECK(view[id].inputs[static_cast<std::size_t>(i)] < id);
  }
}

TEST_CASE("a network chosen at run time has the members of a type") {
  const NetworkInfo info = network_info<Tiny>();
  CHECK(info.name() == Tiny::name());
  CHECK(info.input() == Tiny::input());
  CHECK(info.graph().nodes.data() == Tiny::graph().nodes.data());
  CHECK(info.graph().size() == 4);
  CHECK(info.default_taps().data() == Tiny::default_taps().data());
}
