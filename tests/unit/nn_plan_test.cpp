// From a graph to what runs: shapes, what is left out, what moves together, and where every value lies.
#include <array>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/nn/plan.hpp>

namespace {

using norma::Activation;
using norma::Errc;
using norma::Shape;
using namespace norma::nn;

using Taps = std::array<std::string_view, 1>;

// A ResNet-18 up to layer3, written here a second time so that the test has its own idea of it.
constexpr int block(Builder& b, int x, Name p, int planes, int stride) {
  int y = b.convolution(x, {.name = p + ".conv1",
                            .out_channels = planes,
                            .kernel = 3,
                            .stride = stride,
                            .padding = 1,
                            .norm = p + ".bn1",
                            .activation = Activation::relu});
  y = b.convolution(y, {.name = p + ".conv2", .out_channels = planes, .kernel = 3, .padding = 1, .norm = p + ".bn2"});
  int shortcut = x;
  if (stride != 1 || b.channels(x) != planes) {
    shortcut = b.convolution(x, {.name = p + ".downsample.0", .out_channels = planes, .stride = stride, .norm = p + ".downsample.1"});
  }
  return b.add(y, shortcut, Activation::relu);
}
template <int Capacity>
consteval Graph<Capacity> make_residual(int blocks_a_stage) {
  Graph<Capacity> graph;
  Builder b(graph);
  int x = b.input(3);
  x = b.convolution(
      x, {.name = "conv1", .out_channels = 64, .kernel = 7, .stride = 2, .padding = 3, .norm = "bn1", .activation = Activation::relu});
  x = b.max_pool(x, {.kernel = 3, .stride = 2, .padding = 1});
  for (int stage = 0; stage < 4; ++stage) {
    for (int i = 0; i < blocks_a_stage; ++i) x = block(b, x, name("layer", stage + 1, ".", i), 64 << stage, stage > 0 && i == 0 ? 2 : 1);
    b.tap(name("layer", stage + 1), x);
  }
  b.tap("fc", b.linear(b.global_average_pool(x), {.name = "fc", .out_channels = 1000}));
  return graph;
}

constexpr auto kResNet18 = make_residual<40>(2);
constexpr std::array<std::string_view, 3> kThree{"layer1", "layer2", "layer3"};
constexpr PlanSummary kSummary = plan_summary(kResNet18, kThree, 224, 224);
// Parameters up to layer3 of torchvision's network, batch norm included: 9408 + 128 + 147968 + 525568 + 2099712.
static_assert(kSummary.parameters == 2782784);
// 16 kernels: the stem, its pooling, four convolutions and two additions a stage less the additions, two shortcuts.
static_assert(kSummary.steps == 2 + 12 + 2 && kSummary.fused_adds == 6 && kSummary.live_nodes == kSummary.steps + 6 + 1);
// The widest moment is the stem's output with its pooled copy.
static_assert(kSummary.workspace_bytes == (112 * 112 * 64 + 56 * 56 * 64) * 4);
static_assert(plan_summary(kResNet18, Taps{"fc"}, 224, 224).parameters == 11689512);  // published
static_assert(tap_shape(kResNet18, "layer3", 224, 224) == Shape{14, 14, 256});
static_assert(tap_shape(kResNet18, "layer3", 256, 320) == Shape{16, 20, 256});
static_assert(tap_shape(kResNet18, "fc", 224, 224) == Shape{1, 1, 1000});
static_assert(tap_shape(kResNet18, "layer4", 33, 31) == Shape{2, 1, 512});
// The stem: 112 x 112 x 64 x 147.
static_assert(plan_of(kResNet18, kThree, 224, 224).steps()[0].out == Shape{112, 112, 64});
static_assert(plan_of(kResNet18, kThree, 224, 224).taps()[0].multiply_adds == 118013952 + 4 * 115605504);
static_assert(plan_of(kResNet18, kThree, 224, 224).taps()[2].multiply_adds == kSummary.multiply_adds);

// As long as the longest backbones: the compilers' default limits must suffice.
constexpr auto kLong = make_residual<640>(51);
constexpr PlanSummary kLongSummary = plan_summary(kLong, Taps{"fc"}, 224, 224);
static_assert(GraphView(kLong).size() == 3 + 51 * 4 * 3 + 3 + 2);
static_assert(kLongSummary.steps == GraphView(kLong).size() - 1 - 51 * 4 && kLongSummary.fused_adds == 51 * 4);
static_assert(kLongSummary.workspace_bytes == kSummary.workspace_bytes);

norma::Result<Plan> plan_nodes(GraphView graph, std::initializer_list<int> taps, std::int64_t height, std::int64_t width) {
  return Plan::create(graph, std::span<const int>(taps.begin(), taps.size()), height, width);
}

// Windows counted one by one: the reference for the closed formula.
int windows(int size, int kernel, int stride, int dilation, int before, int after, bool ceil_mode) {
  int count = 0;
  for (int first = -before;; first += stride) {
    const int last = first + dilation * (kernel - 1);
    const bool inside = last < size + after;
    const bool begins_inside = first < size && last - (stride - 1) < size + after;
    if (!(inside || (ceil_mode && begins_inside && count > 0))) return count;
    ++count;
  }
}

// Everything that must hold for any plan, from the steps alone.
void check_plan(const Plan& plan, std::span<const int> taps) {
  const GraphView graph = plan.graph();
  const auto steps = plan.steps();
  const int never = -1;
  std::vector<int> written(static_cast<std::size_t>(graph.size()), never), last_read(static_cast<std::size_t>(graph.size()), never);
  std::vector<bool> over(static_cast<std::size_t>(graph.size()), false);
  written[0] = 0;
  for (int s = 0; s < static_cast<int>(steps.size()); ++s) {
    const Step& step = steps[static_cast<std::size_t>(s)];
    const auto read = [&](int value) {
      REQUIRE(value >= 0);
      REQUIRE(written[static_cast<std::size_t>(value)] != never);  // before it is read
      last_read[static_cast<std::size_t>(value)] = s;
    };
    for (int i = 0; i < step.input_count; ++i) read(step.inputs[static_cast<std::size_t>(i)]);
    if (step.residual >= 0) {
      read(step.residual);
      CHECK(plan.shape(step.residual) == step.out);
    }
    REQUIRE(written[static_cast<std::size_t>(step.value)] == never);  // once
    written[static_cast<std::size_t>(step.value)] = s;
    CHECK(plan.offset(step.value) >= 0);
    CHECK(plan.offset(step.value) % 64 == 0);
    CHECK(plan.offset(step.value) + step.out.count() * 4 <= plan.summary().workspace_bytes);
    // A convolution, a pooling or a linear layer reads its input again after it has begun to write.
    const Op op = graph[step.node].op;
    if (op == Op::convolution || op == Op::global_average_pool || op == Op::concat) {
      for (int i = 0; i < step.input_count; ++i) {
        const int input = step.inputs[static_cast<std::size_t>(i)];
        if (input == 0) continue;
        CHECK((plan.offset(input) + plan.shape(input).count() * 4 <= plan.offset(step.value) ||
               plan.offset(step.value) + step.out.count() * 4 <= plan.offset(input)));
      }
    }
    if (step.over >= 0) over[static_cast<std::size_t>(step.value)] = true;
  }
  for (const int tap : taps) {
    REQUIRE(written[static_cast<std::size_t>(tap)] != never);
    last_read[static_cast<std::size_t>(tap)] = static_cast<int>(steps.size());
  }
  std::int64_t widest = 0;
  for (int a = 1; a < graph.size(); ++a) {
    const auto ia = static_cast<std::size_t>(a);
    if (written[ia] == never) continue;
    CHECK(last_read[ia] > written[ia]);  // nothing runs for nobody
    CHECK(plan.last_use(a) == last_read[ia]);
    for (int b = a + 1; b < graph.size(); ++b) {
      const auto ib = static_cast<std::size_t>(b);
      if (written[ib] == never) continue;
      const int first = written[ia] < written[ib] ? a : b, second = first == a ? b : a;
      const int dies = last_read[static_cast<std::size_t>(first)], born = written[static_cast<std::size_t>(second)];
      if (dies < born) continue;
      const bool share =
          plan.offset(a) < plan.offset(b) + plan.shape(b).count() * 4 && plan.offset(b) < plan.offset(a) + plan.shape(a).count() * 4;
      if (!share) continue;
      CAPTURE(a);
      CAPTURE(b);
      // Only an elementwise step may lie over an input, and only over all of it.
      CHECK(dies == born);
      CHECK(over[static_cast<std::size_t>(second)]);
      CHECK(plan.offset(a) == plan.offset(b));
      CHECK(plan.shape(a) == plan.shape(b));
    }
  }
  for (int s = 0; s < static_cast<int>(steps.size()); ++s) {
    std::int64_t alive = 0;
    for (int v = 1; v < graph.size(); ++v) {
      const auto i = static_cast<std::size_t>(v);
      if (written[i] == never || written[i] > s || last_read[i] < s) continue;
      const bool dies_under_output =
          last_read[i] == s && written[i] < s && plan.offset(v) == plan.offset(steps[static_cast<std::size_t>(s)].value);
      if (!dies_under_output) alive += plan.shape(v).count() * 4;
    }
    widest = std::max(widest, alive);
  }
  CHECK(plan.summary().workspace_bytes >= widest);
}

// Layers of random kinds on random earlier nodes of one size; every third one keeps the size of the picture.
void make_random(Graph<80, 4>& graph, norma::Random& random) {
  Builder b(graph);
  std::vector<int> ids{b.input(4)};
  const auto pick = [&] {
    return ids[static_cast<std::size_t>(std::max<std::int64_t>(0, static_cast<std::int64_t>(ids.size()) - 1 - random.below(6)) %
                                        static_cast<std::int64_t>(ids.size()))];
  };
  const int count = 10 + static_cast<int>(random.below(50));
  for (int i = 0; i < count; ++i) {
    const int x = pick();
    switch (random.below(8)) {
      case 0:
      case 1: ids.push_back(b.convolution(x, {.name = name("c", i), .out_channels = 4, .kernel = 3, .padding = 1, .bias = true})); break;
      case 2:
        ids.push_back(b.convolution(x, {.name = name("a", i), .out_channels = 4, .bias = true, .activation = Activation::relu}));
        break;
      case 3:
      case 4: ids.push_back(b.add(x, pick(), Activation::relu)); break;
      case 5: ids.push_back(b.activation(x, Activation::silu)); break;
      case 6: ids.push_back(b.multiply(x, b.global_average_pool(pick()))); break;
      default: ids.push_back(b.convolution(b.concat(x, pick(), pick()), {.name = name("j", i), .out_channels = 4, .bias = true})); break;
    }
  }
}

}  // namespace

TEST_CASE("no two values that are alive together share memory") {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    norma::Random random(seed);
    const auto graph = std::make_unique<Graph<80, 4>>();
    make_random(*graph, random);
    const GraphView view(*graph);
    const std::vector<int> taps{view.size() - 1, 1 + static_cast<int>(random.below(view.size() - 1)),
                                1 + static_cast<int>(random.below(view.size() - 1))};
    const auto plan = Plan::create(view, taps, 5, 7);
    REQUIRE(plan.ok());
    check_plan(*plan, taps);
  }
  for (const auto& taps : std::vector<std::vector<int>>{{2}, {5, 12}, {GraphView(kResNet18).size() - 1}}) {
    const auto plan = Plan::create(kResNet18, taps, 96, 64);
    REQUIRE(plan.ok());
    check_plan(*plan, taps);
  }
}

TEST_CASE("a chain needs no more than its widest two neighbours") {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    CAPTURE(seed);
    norma::Random random(seed, 1);
    const auto graph = std::make_unique<Graph<80, 4>>();
    Builder b(*graph);
    int x = b.input(3);
    std::int64_t widest = 0, before = 0;
    for (int i = 0; i < 30; ++i) {
      const int channels = 16 * (1 + static_cast<int>(random.below(40)));
      x = b.convolution(x, {.name = name("c", i), .out_channels = channels, .bias = true});
      widest = std::max(widest, before + 4 * channels * 12);
      before = 4 * channels * 12;
    }
    const auto plan = plan_nodes(*graph, {x}, 3, 4);
    REQUIRE(plan.ok());
    check_plan(*plan, std::array{x});
    CHECK(plan->summary().workspace_bytes == widest);
  }
}

TEST_CASE("what no tap needs is left out") {
  const GraphView graph(kResNet18);
  const auto plan = Plan::create(graph, std::array<std::string_view, 1>{"layer1"}, 64, 64);
  REQUIRE(plan.ok());
  CHECK(plan->summary().steps == 2 + 4);
  CHECK(plan->summary().parameters == 9408 + 128 + 147968);
  for (int id = graph.find_tap("layer1") + 1; id < graph.size(); ++id) CHECK(plan->shape(id) == Shape{});
  // A dead end that could not even run does no harm.
  const auto broken = std::make_unique<Graph<4>>();
  Builder b(*broken);
  const int x = b.input(3);
  const int small = b.convolution(x, {.name = "a", .out_channels = 2, .bias = true});
  b.convolution(x, {.name = "b", .out_channels = 2, .kernel = 9, .bias = true});
  CHECK(plan_nodes(*broken, {small}, 4, 4).ok());
  CHECK_FALSE(plan_nodes(*broken, {small, small + 1}, 4, 4).ok());
}

TEST_CASE("an addition moves into a convolution only where nobody else needs what it had before") {
  const auto graph = std::make_unique<Graph<8>>();
  Builder b(*graph);
  const int x = b.input(4);
  const int first = b.convolution(x, {.name = "a", .out_channels = 4, .bias = true});
  const int second = b.convolution(first, {.name = "b", .out_channels = 4, .bias = true});
  const int sum = b.add(second, first, Activation::relu);
  SUBCASE("moved") {
    const auto plan = plan_nodes(*graph, {sum}, 3, 3);
    REQUIRE(plan.ok());
    REQUIRE(plan->summary().fused_adds == 1);
    const Step& step = plan->steps()[1];
    CHECK(step.node == second);
    CHECK(step.value == sum);
    CHECK(step.residual == first);
    CHECK(step.activation == Activation::relu);
    CHECK(plan->offset(second) == -1);
  }
  SUBCASE("the convolution's own value is an output") {
    const auto plan = plan_nodes(*graph, {sum, second}, 3, 3);
    REQUIRE(plan.ok());
    CHECK(plan->summary().fused_adds == 0);
    CHECK(plan->steps().size() == 3);
    CHECK(plan->offset(second) != plan->offset(sum));
  }
  SUBCASE("somebody else reads it") {
    const int other = b.activation(second, Activation::silu);
    const auto plan = plan_nodes(*graph, {sum, other}, 3, 3);
    REQUIRE(plan.ok());
    CHECK(plan->summary().fused_adds == 0);
  }
  SUBCASE("a reader that does not run does not count") {
    b.activation(second, Activation::silu);
    const auto plan = plan_nodes(*graph, {sum}, 3, 3);
    REQUIRE(plan.ok());
    CHECK(plan->summary().fused_adds == 1);
  }
  SUBCASE("a convolution with an activation of its own keeps it") {
    const int active = b.convolution(first, {.name = "c", .out_channels = 4, .bias = true, .activation = Activation::relu});
    const int kept = b.add(active, first);
    const auto plan = plan_nodes(*graph, {kept}, 3, 3);
    REQUIRE(plan.ok());
    CHECK(plan->summary().fused_adds == 0);
  }
  SUBCASE("twice the same value") {
    const int twice = b.add(second, second);
    const auto plan = plan_nodes(*graph, {twice}, 3, 3);
    REQUIRE(plan.ok());
    CHECK(plan->summary().fused_adds == 0);
    CHECK(plan->steps().back().over == second);
  }
  SUBCASE("the earlier one takes it where the later cannot") {
    const int pooled = b.max_pool(second, {.kernel = 3, .stride = 1, .padding = 1});
    const int late = b.add(first, pooled);  // `first` is read by `second` as well
    const auto plan = plan_nodes(*graph, {late}, 3, 3);
    REQUIRE(plan.ok());
    CHECK(plan->summary().fused_adds == 0);
    const auto other = std::make_unique<Graph<8>>();
    Builder o(*other);
    const int picture = o.input(4);
    const int early = o.convolution(picture, {.name = "early", .out_channels = 4, .bias = true});
    const int pool = o.max_pool(picture, {.kernel = 3, .stride = 1, .padding = 1});
    const int both = o.add(early, pool);
    const auto moved = plan_nodes(*other, {both}, 3, 3);
    REQUIRE(moved.ok());
    CHECK(moved->summary().fused_adds == 1);
    CHECK(moved->steps().back().node == early);
    CHECK(moved->steps().back().residual == pool);
  }
}

TEST_CASE("output sizes are those of counting windows") {
  const auto graph = std::make_unique<Graph<2>>();
  for (int size = 1; size <= 9; ++size) {
    for (int kernel = 1; kernel <= 4; ++kernel) {
      for (int stride = 1; stride <= 4; ++stride) {
        for (int pad = 0; 2 * pad <= kernel; ++pad) {
          for (const bool ceil_mode : {false, true}) {
            CAPTURE(size);
            CAPTURE(kernel);
            CAPTURE(stride);
            CAPTURE(pad);
            CAPTURE(ceil_mode);
            *graph = {};
            Builder b(*graph);
            const int y = b.max_pool(b.input(1), {.kernel = kernel, .stride = stride, .padding = pad, .ceil_mode = ceil_mode});
            const auto plan = plan_nodes(*graph, {y}, size, size + 1);
            const int height = windows(size, kernel, stride, 1, pad, pad, ceil_mode),
                      width = windows(size + 1, kernel, stride, 1, pad, pad, ceil_mode);
            REQUIRE(plan.ok() == (height > 0 && width > 0));
            if (plan.ok()) CHECK(plan->shape(y) == Shape{height, width, 1});
          }
        }
      }
    }
  }
  CHECK(norma::nn::detail::window_count(9, 3, 1, 3, 0, 0, false) == 3);
  CHECK(norma::nn::detail::window_count(6, 3, 1, 3, 0, 0, false) == 0);
}

TEST_CASE("TensorFlow's SAME") {
  const auto graph = std::make_unique<Graph<2>>();
  Builder b(*graph);
  const int y =
      b.convolution(b.input(3), {.name = "stem", .out_channels = 1, .kernel = 3, .stride = 2, .padding = Padding::same(), .bias = true});
  const auto even = plan_nodes(*graph, {y}, 224, 225);
  REQUIRE(even.ok());
  CHECK(even->shape(y) == Shape{112, 113, 1});
  const Padding padding = even->steps()[0].padding;
  CHECK(padding.top == 0);
  CHECK(padding.bottom == 1);
  CHECK(padding.left == 1);
  CHECK(padding.right == 1);
  CHECK(plan_nodes(*graph, {y}, 1, 1)->shape(y) == Shape{1, 1, 1});
}

TEST_CASE("tokens, attention and the way back") {
  const auto graph = std::make_unique<Graph<10>>();
  Builder b(*graph);
  const int patches = b.convolution(b.input(3), {.name = "embed", .out_channels = 12, .kernel = 4, .stride = 4, .bias = true});
  const int tokens = b.tokens(patches, {.position_embedding = "pos", .class_token = "cls"});
  const int qkv = b.linear(tokens, {.name = "qkv", .out_channels = 36});
  const int mixed = b.attention(qkv, 3);
  const int map = b.grid(mixed, patches, 1);
  const int cls = b.first_token(mixed);
  const int wrong = b.grid(mixed, patches, 0);
  const auto plan = plan_nodes(*graph, {map, cls}, 16, 24);
  REQUIRE(plan.ok());
  CHECK(plan->shape(tokens) == Shape{1, 25, 12});
  CHECK(plan->shape(qkv) == Shape{1, 25, 36});
  CHECK(plan->shape(mixed) == Shape{1, 25, 12});
  CHECK(plan->shape(map) == Shape{4, 6, 12});
  CHECK(plan->shape(cls) == Shape{1, 1, 12});
  CHECK(plan->summary().parameters == 12 * 3 * 16 + 12 + 25 * 12 + 12 + 36 * 12 + 36);
  CHECK(plan->summary().multiply_adds == 24 * 12 * 48 + 25 * 36 * 12 + 2 * 25 * 25 * 12);
  const auto refused = plan_nodes(*graph, {wrong}, 16, 24);
  REQUIRE_FALSE(refused.ok());
  CHECK(refused.code() == Errc::shape_mismatch);
  CHECK(refused.message().find("25 tokens do not fill a grid of 4 x 6") != std::string::npos);
}

TEST_CASE("the picture itself can be asked for") {
  const auto graph = std::make_unique<Graph<1>>();
  Builder b(*graph);
  const int picture = b.input(3);
  const auto plan = plan_nodes(*graph, {picture}, 8, 9);
  REQUIRE(plan.ok());
  CHECK(plan->steps().empty());
  CHECK(plan->summary().workspace_bytes == 0);
  CHECK(plan->taps()[0].shape == Shape{8, 9, 3});
}

TEST_CASE("what cannot be planned is named") {
  const GraphView graph(kResNet18);
  const auto message = [&](std::string_view tap, std::int64_t height, std::int64_t width, Errc code) {
    const auto plan = Plan::create(graph, std::span<const std::string_view>(&tap, 1), height, width);
    REQUIRE_FALSE(plan.ok());
    CHECK(plan.code() == code);
    return plan.message();
  };
  CHECK(message("layer5", 224, 224, Errc::not_found) ==
        "nn::Plan::create: no output is called 'layer5', expected one of layer1, layer2, layer3, layer4, fc");
  CHECK(message("layer1", 0, 224, Errc::invalid_argument).find("0 x 224") != std::string::npos);
  CHECK(message("layer1", 224, kMaxInputSide + 1, Errc::invalid_argument).find("16384") != std::string::npos);
  CHECK(message("layer1", -1, -1, Errc::invalid_argument).find("-1 x -1") != std::string::npos);

  CHECK(Plan::create(graph, std::span<const int>(), 224, 224).code() == Errc::invalid_argument);
  CHECK(plan_nodes(graph, {-1}, 224, 224).code() == Errc::invalid_argument);
  CHECK(plan_nodes(graph, {graph.size()}, 224, 224).code() == Errc::invalid_argument);
  CHECK(plan_nodes(GraphView(), {0}, 224, 224).code() == Errc::invalid_argument);

  const auto made = std::make_unique<Graph<6>>();
  Builder b(*made);
  const int x = b.input(3);
  const int wide = b.convolution(x, {.name = "wide", .out_channels = 3, .kernel = 5, .bias = true});
  const auto small = plan_nodes(*made, {wide}, 7, 4);
  REQUIRE_FALSE(small.ok());
  CHECK(small.message() ==
        "nn::Plan::create: node 1 (convolution 'wide'): a kernel of 5 x 5 does not fit into its input of 7 x 4 x 3 (network input 7 x 4)");
  const int sum = b.add(x, wide);
  const auto sizes = plan_nodes(*made, {sum}, 8, 9);
  REQUIRE_FALSE(sizes.ok());
  CHECK(sizes.message() ==
        "nn::Plan::create: node 2 (add): its inputs do not go together, found 8 x 9 x 3 and 4 x 5 x 3 (network input 8 x 9)");
  const int joined = b.concat(x, wide), product = b.multiply(x, wide);
  CHECK(plan_nodes(*made, {joined}, 8, 9).code() == Errc::shape_mismatch);
  CHECK(plan_nodes(*made, {product}, 8, 9).code() == Errc::shape_mismatch);
}

TEST_CASE("tensors of a layer") {
  const auto graph = std::make_unique<Graph<4>>();
  Builder b(*graph);
  const int x = b.convolution(b.input(6), {.name = "c", .out_channels = 4, .kernel = {1, 3}, .groups = 2, .norm = "n"});
  const NodeTensors tensors(graph->nodes[static_cast<std::size_t>(x)], {5, 5, 6}, {5, 3, 4});
  REQUIRE(tensors.count == 5);
  CHECK(tensors.specs[0].name() == "c.weight");
  CHECK(tensors.specs[0].dims == std::array<std::int64_t, 4>{4, 3, 1, 3});
  CHECK(tensors.specs[0].rank == 4);
  CHECK(tensors.specs[4].name() == "n.running_var");
  CHECK(tensors.specs[4].count() == 4);
  CHECK_FALSE(tensors.specs[4].is_parameter());
  const int y = b.transposed_convolution(x, {.name = "t", .out_channels = 8, .kernel = 2, .stride = 2, .bias = true});
  const NodeTensors transposed(graph->nodes[static_cast<std::size_t>(y)], {5, 3, 4}, {10, 6, 8});
  CHECK(transposed.specs[0].dims == std::array<std::int64_t, 4>{4, 8, 2, 2});
  const auto plan = plan_nodes(*graph, {y}, 5, 5);
  REQUIRE(plan.ok());
  CHECK(plan->shape(y) == Shape{10, 6, 8});
}
