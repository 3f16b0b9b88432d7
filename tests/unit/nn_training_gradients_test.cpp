// Gradients of whole graphs against finite differences of a forward pass in double (tests/support/training_reference.hpp). The network runs
// in float; what is compared is its gradient with the derivative of the same function of exact numbers.
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/thread_pool.hpp>

#include "../support/training_reference.hpp"

namespace {

using namespace norma;
using namespace norma::nn;
using test::TrainingReference;

struct Case {
  GraphView graph;
  std::vector<std::string_view> taps;
  Shape in;
  std::int64_t batch = 2;
  BatchNorm batch_norm = BatchNorm::training;
  std::vector<std::string_view> frozen = {};
};

void randomise(Parameters& parameters, std::uint64_t seed) {
  Random random(seed);
  for (const ParameterPiece& piece : parameters.layout().pieces()) {
    for (float& v : parameters.of(piece)) {
      switch (piece.role) {
        case TensorRole::weight:
          v = static_cast<float>(piece.shape.size() == 1 ? random.uniform(0.5, 1.5)
                                                         : random.normal() / std::sqrt(static_cast<double>(piece.fan_in)));
          break;
        case TensorRole::norm_variance:
        case TensorRole::norm_weight:
        case TensorRole::scale: v = static_cast<float>(random.uniform(0.5, 1.5)); break;
        default: v = static_cast<float>(0.3 * random.normal()); break;
      }
    }
  }
}

// Gradients of some entries of each piece, and of the input, by central differences: h = 1e-6 leaves h^2 / 6 of the third derivative, about
// 1e-12, and 1e-16 / h = 1e-10 of the loss. Bound: a share of the largest gradient of the same piece, or of a tenth of the largest of all,
// where a piece's true gradient is zero (a bias before a batch norm).
void check(const Case& c, double bound, std::uint64_t seed = 1) {
  auto executor =
      TrainingExecutor::create(c.graph, c.taps, c.in.height, c.in.width, {.frozen = c.frozen, .input_gradient = InputGradient::yes});
  REQUIRE_MESSAGE(executor.ok(), executor.message());
  Parameters parameters = executor->make_parameters();
  randomise(parameters, seed);
  const TrainingPlan& plan = executor->plan();
  const Tensor<float> input = test::normal_tensor(c.batch, c.in, seed + 1);
  std::vector<double> numbers(parameters.values().begin(), parameters.values().end());
  std::vector<double> x(input.data(), input.data() + c.batch * c.in.count());
  std::vector<std::vector<float>> factors;
  for (const PlannedTap& tap : plan.taps()) factors.push_back(test::normal_vector(c.batch * tap.shape.count(), seed + 2 + factors.size()));

  test::Scratch memory(executor->workspace_bytes(c.batch, 1));
  Arena arena = memory.arena();
  std::vector<TensorView<const float>> taps(c.taps.size()), tap_gradients;
  TrainingPass pass;
  REQUIRE(executor->forward(parameters, input.view(), c.batch_norm, arena, {}, taps, pass).ok());
  const TrainingReference reference(plan, executor->layout(), c.batch, c.batch_norm);
  const auto want = reference.forward(numbers, x);
  for (std::size_t t = 0; t < taps.size(); ++t) {
    double largest = 0.0, error = 0.0;
    for (std::size_t i = 0; i < want[t].size(); ++i) {
      largest = std::max(largest, std::abs(want[t][i]));
      error = std::max(error, std::abs(want[t][i] - static_cast<double>(taps[t].data[i])));
    }
    CHECK(error <= 1e-5 * largest);
    tap_gradients.push_back({factors[t].data(), c.batch, plan.taps()[t].shape});
  }
  Buffer<float> gradients(executor->layout().trained());
  Tensor<float> input_gradient(c.batch, c.in);
  const Status done = executor->backward(parameters, pass, tap_gradients, gradients.span(), {}, input_gradient.view());
  REQUIRE_MESSAGE(done.ok(), done.message());

  constexpr double h = 1e-6;
  Random random(seed + 99);
  double floor = 0.0;
  for (const float g : gradients.span()) floor = std::max(floor, 0.1 * std::abs(static_cast<double>(g)));
  const auto compare = [&](const std::string& name, std::vector<double>& varied, std::int64_t offset, std::int64_t count,
                           const float* got) {
    double largest = floor;
    for (std::int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(static_cast<double>(got[i])));
    const std::int64_t tries = std::min<std::int64_t>(count, 24);
    for (std::int64_t k = 0; k < tries; ++k) {
      const std::int64_t i = tries == count ? k : random.below(count);
      double& v = varied[static_cast<std::size_t>(offset + i)];
      const double before = v;
      v = before + h;
      const double up = reference.loss(numbers, x, factors);
      v = before - h;
      const double down = reference.loss(numbers, x, factors);
      v = before;
      const double wanted = (up - down) / (2 * h);
      CHECK_MESSAGE(std::abs(static_cast<double>(got[i]) - wanted) <= bound * largest,
                    name << "[" << i << "]: got " << got[i] << ", want " << wanted << ", largest " << largest);
    }
  };
  for (const ParameterPiece& piece : executor->layout().pieces()) {
    if (piece.trained) compare(piece.name, numbers, piece.offset, piece.count, gradients.data() + piece.offset);
  }
  compare("input", x, 0, static_cast<std::int64_t>(x.size()), input_gradient.data());
}

template <class Build>
auto graph_of(Build&& build) {
  Graph<32> graph;
  Builder b(graph);
  build(b);
  return graph;
}

// One layer of each kind, after a convolution so that values have a history. A gradient is a sum of at most about 1,000 products of numbers
// that carry a few roundings each: errors add up as roots do, sqrt(1000) 2^-24 = 2e-6 of the largest product sum, and 5e-6 is never met by
// a wrong term.
constexpr double kBound = 5e-6;

TEST_CASE("convolutions of any geometry") {
  struct Geometry {
    std::string_view what;
    int in, out, kernel_h, kernel_w, stride, dilation, groups;
    Padding padding;
    Shape size;
  };
  const Geometry all[] = {
      {"1x1", 5, 7, 1, 1, 1, 1, 1, 0, {4, 3, 0}},
      {"1x1 of whole panels", 32, 64, 1, 1, 1, 1, 1, 0, {5, 4, 0}},
      {"3x3", 5, 7, 3, 3, 1, 1, 1, 1, {5, 6, 0}},
      {"3x3 winograd", 16, 20, 3, 3, 1, 1, 1, 1, {9, 10, 0}},
      {"3x3 winograd without padding", 17, 16, 3, 3, 1, 1, 1, 0, {10, 11, 0}},
      {"stride 2", 6, 5, 3, 3, 2, 1, 1, 1, {7, 6, 0}},
      {"stride 2, unread border", 3, 4, 3, 3, 2, 1, 1, 0, {6, 8, 0}},
      {"1x1 stride 2", 6, 5, 1, 1, 2, 1, 1, 0, {6, 7, 0}},
      {"7x7 stride 2", 3, 8, 7, 7, 2, 1, 1, 3, {12, 11, 0}},
      {"1x7", 4, 3, 1, 7, 1, 1, 1, {0, 3, 0, 3}, {4, 9, 0}},
      {"dilated", 4, 6, 3, 3, 1, 2, 1, 2, {7, 8, 0}},
      {"dilated stride 2", 4, 6, 3, 3, 2, 2, 1, 2, {9, 8, 0}},
      {"groups", 6, 9, 3, 3, 1, 1, 3, 1, {5, 5, 0}},
      {"groups stride 2", 6, 4, 3, 3, 2, 1, 2, 1, {6, 5, 0}},
      {"depthwise", 10, 10, 3, 3, 1, 1, 10, 1, {6, 7, 0}},
      {"depthwise stride 2", 35, 35, 5, 5, 2, 1, 35, 2, {9, 8, 0}},
      {"more padding than reach", 3, 4, 1, 1, 1, 1, 1, 1, {4, 4, 0}},
      {"same", 3, 4, 3, 3, 2, 1, 1, Padding::same(), {7, 6, 0}},
      {"mirrored", 3, 4, 3, 3, 1, 1, 1, Padding::reflect(1), {5, 6, 0}},
      {"mirrored, products of whole panels", 32, 33, 3, 3, 1, 1, 1, Padding::reflect(1), {3, 2, 0}},
      {"mirrored winograd", 16, 20, 3, 3, 1, 1, 1, Padding::reflect(1), {9, 10, 0}},
      {"mirrored, wide, stride 2", 4, 5, 7, 7, 2, 1, 1, Padding::reflect(3), {9, 4, 0}},
      {"mirrored, dilated, groups", 6, 4, 3, 3, 1, 2, 2, Padding::reflect(2), {6, 5, 0}},
      {"mirrored, depthwise", 10, 10, 3, 3, 1, 1, 10, Padding::reflect(1), {6, 7, 0}},
  };
  for (const Geometry& g : all) {
    for (const bool transposed : {false, true}) {
      if (transposed && (g.groups > 1 || g.dilation > 1 || g.kernel_h < g.stride || g.padding.kind != PaddingKind::zeros ||
                         g.what == "more padding than reach"))
        continue;
      CAPTURE(g.what);
      CAPTURE(transposed);
      const auto graph = graph_of([&](Builder& b) {
        const Convolution c{.name = "c",
                            .out_channels = g.out,
                            .kernel = {g.kernel_h, g.kernel_w},
                            .stride = g.stride,
                            .padding = g.padding,
                            .dilation = g.dilation,
                            .groups = g.groups,
                            .bias = true};
        const int x = b.input(g.in);
        b.tap("y", transposed ? b.transposed_convolution(x, c) : b.convolution(x, c));
      });
      check({graph, {"y"}, {g.size.height, g.size.width, g.in}}, kBound);
    }
  }
}

TEST_CASE("activations, alone and behind every layer that has one") {
  for (const Activation activation : test::kActivations) {
    CAPTURE(static_cast<int>(activation));
    const auto graph = graph_of([&](Builder& b) {
      int x = b.input(3);
      x = b.convolution(x, {.name = "a", .out_channels = 6, .kernel = 3, .padding = 1, .bias = true, .activation = activation});
      int y = b.convolution(x, {.name = "b", .out_channels = 6, .kernel = 3, .padding = 1, .norm = "bn", .activation = activation});
      y = b.add(x, y, activation);
      y = b.batch_norm(y, "bn2", 1e-5f, activation);
      y = b.linear(y, {.name = "l", .out_channels = 4, .activation = activation});
      b.tap("y", b.activation(y, activation));
    });
    check({graph, {"y"}, {5, 4, 3}}, kBound);
    check({graph, {"y"}, {5, 4, 3}, 2, BatchNorm::evaluation}, kBound);
  }
}

TEST_CASE("pooling") {
  const auto graph = graph_of([](Builder& b) {
    const int x = b.convolution(b.input(3), {.name = "a", .out_channels = 5, .kernel = 3, .padding = 1, .bias = true});
    b.tap("max", b.max_pool(x, {.kernel = 3, .stride = 2, .padding = 1}));
    b.tap("max_ceil", b.max_pool(x, {.kernel = 2, .stride = 2, .ceil_mode = true}));
    b.tap("average", b.average_pool(x, {.kernel = 3, .stride = 2, .padding = 1}));
    b.tap("average_inside", b.average_pool(x, {.kernel = 3, .stride = 1, .padding = 1, .count_include_pad = false}));
    b.tap("average_ceil", b.average_pool(x, {.kernel = 2, .stride = 2, .padding = 0, .ceil_mode = true}));
    b.tap("global", b.global_average_pool(x));
    b.tap("adaptive", b.adaptive_average_pool(x, {3, 2}));
  });
  for (const std::string_view tap : {"max", "max_ceil", "average", "average_inside", "average_ceil", "global", "adaptive"}) {
    CAPTURE(tap);
    check({graph, {tap}, {7, 5, 3}}, kBound);
  }
  check({graph, {"max", "average", "global", "adaptive", "max_ceil"}, {7, 5, 3}}, kBound);  // one value, five readers
}

TEST_CASE("resizing, concatenation, slices, products, gates, flattening") {
  const auto graph = graph_of([](Builder& b) {
    const int x = b.convolution(b.input(3), {.name = "a", .out_channels = 6, .kernel = 3, .padding = 1, .bias = true});
    b.tap("nearest", b.resize(x, 2, Interpolation::nearest));
    b.tap("bilinear", b.resize(x, 2, Interpolation::bilinear));
    b.tap("corners", b.resize(x, 4, Interpolation::bilinear_corners));
    const int part = b.slice(x, 1, 3);
    b.tap("concat", b.concat(part, x, part, b.activation(x, Activation::tanh)));
    b.tap("twice", b.add(b.concat(x, x), b.concat(x, x)));
    b.tap("sum", b.add(x, x));
    b.tap("product", b.multiply(x, b.activation(x, Activation::sigmoid)));
    b.tap("square", b.multiply(x, x));
    const int gate =
        b.convolution(b.global_average_pool(x), {.name = "g", .out_channels = 6, .bias = true, .activation = Activation::sigmoid});
    b.tap("gate", b.multiply(x, gate));
    b.tap("flat", b.linear(b.flatten(x, {4, 5}), {.name = "f", .out_channels = 3}));
    b.tap("picture", 0);
  });
  for (const std::string_view tap : {"nearest", "bilinear", "corners", "concat", "twice", "sum", "product", "square", "gate", "flat"}) {
    CAPTURE(tap);
    check({graph, {tap}, {4, 5, 3}}, kBound);
  }
  check({graph, {"nearest", "concat", "gate", "flat", "square", "picture"}, {4, 5, 3}}, kBound);
}

TEST_CASE("norms and scales") {
  const auto graph = graph_of([](Builder& b) {
    const int x = b.convolution(b.input(3), {.name = "a", .out_channels = 9, .kernel = 3, .padding = 1, .bias = true});
    b.tap("batch", b.batch_norm(x, "bn"));
    b.tap("layer", b.layer_norm(x, {.name = "ln"}));
    b.tap("instance", b.instance_norm(x));
    b.tap("scale", b.layer_scale(x, "gamma"));
    b.tap("with_bias", b.convolution(x, {.name = "c", .out_channels = 4, .bias = true, .norm = "cbn", .activation = Activation::relu}));
    b.tap("linear", b.linear(x, {.name = "l", .out_channels = 37, .bias = false}));
  });
  for (const std::string_view tap : {"batch", "layer", "instance", "scale", "with_bias", "linear"}) {
    for (const BatchNorm mode : {BatchNorm::training, BatchNorm::evaluation}) {
      CAPTURE(tap);
      check({graph, {tap}, {5, 4, 3}, 3, mode}, kBound);
    }
  }
  check({graph, {"batch", "layer", "instance", "scale", "with_bias", "linear"}, {5, 4, 3}}, kBound);
}

TEST_CASE("frozen layers get no gradient, pass it on, and keep their statistics") {
  const auto graph = graph_of([](Builder& b) {
    int x = b.convolution(
        b.input(3),
        {.name = "first.conv", .out_channels = 6, .kernel = 3, .padding = 1, .norm = "first.bn", .activation = Activation::silu});
    x = b.convolution(
        x, {.name = "middle.conv", .out_channels = 6, .kernel = 3, .padding = 1, .norm = "middle.bn", .activation = Activation::relu});
    b.tap("y", b.linear(x, {.name = "last", .out_channels = 4}));
  });
  check({graph, {"y"}, {6, 5, 3}, 2, BatchNorm::training, {"middle"}}, kBound);
  check({graph, {"y"}, {6, 5, 3}, 2, BatchNorm::training, {"first", "middle.conv"}}, kBound);
  check({graph, {"y"}, {6, 5, 3}, 2, BatchNorm::training, {"first", "middle", "last"}}, kBound);  // the input's gradient alone

  const std::string_view frozen[] = {"first"}, taps[] = {"y"};
  auto executor = TrainingExecutor::create(graph, taps, 6, 5, {.frozen = frozen});
  REQUIRE(executor.ok());
  Parameters parameters = executor->make_parameters();
  randomise(parameters, 3);
  const Parameters before = parameters;
  const auto input = test::normal_tensor(2, {6, 5, 3}, 4);
  test::Scratch memory(executor->workspace_bytes(2, 1));
  Arena arena = memory.arena();
  std::array<TensorView<const float>, 1> out;
  TrainingPass pass;
  REQUIRE(executor->forward(parameters, input.view(), BatchNorm::training, arena, {}, out, pass).ok());
  for (const ParameterPiece& piece : parameters.layout().pieces()) {
    CAPTURE(piece.name);
    const bool moved = !std::equal(parameters.of(piece).begin(), parameters.of(piece).end(), before.of(piece).begin());
    CHECK(moved == (piece.name == "middle.bn.running_mean" || piece.name == "middle.bn.running_var"));
    CHECK(piece.trained == (!name_begins_with(piece.name, "first") && piece.name.find("running") == std::string::npos));
  }
}

TEST_CASE("mirrored borders with norms, activations, several readers and frozen layers") {
  const auto graph = graph_of([](Builder& b) {
    const int x = b.convolution(
        b.input(3),
        {.name = "a", .out_channels = 6, .kernel = 3, .padding = Padding::reflect(1), .norm = "an", .activation = Activation::silu});
    const int y = b.convolution(x, {.name = "b",
                                    .out_channels = 6,
                                    .kernel = 3,
                                    .stride = 2,
                                    .padding = Padding::reflect(1),
                                    .bias = true,
                                    .activation = Activation::relu});
    b.tap("y", b.convolution(y, {.name = "c", .out_channels = 4, .kernel = 3, .padding = Padding::reflect(1), .bias = true}));
    b.tap("z", b.convolution(x, {.name = "d", .out_channels = 4, .kernel = 5, .padding = Padding::reflect(2)}));
  });
  check({graph, {"y", "z"}, {7, 6, 3}}, kBound);
  check({graph, {"y", "z"}, {7, 6, 3}, 2, BatchNorm::training, {"b", "c", "d"}}, kBound);
}

TEST_CASE("layers that share their weights add up their gradients") {
  const auto graph = graph_of([](Builder& b) {
    int x = b.convolution(b.input(4),
                          {.name = "c", .out_channels = 4, .kernel = 3, .padding = 1, .bias = true, .activation = Activation::tanh});
    x = b.convolution(x, {.name = "c", .out_channels = 4, .kernel = 3, .padding = 1, .bias = true, .activation = Activation::tanh});
    b.tap("y", x);
  });
  check({graph, {"y"}, {5, 5, 4}}, kBound);
}

TEST_CASE("a residual block and an encoder with decoder") {
  const auto block = graph_of([](Builder& b) {
    int x = b.input(3);
    x = b.convolution(
        x, {.name = "stem", .out_channels = 16, .kernel = 3, .stride = 2, .padding = 1, .norm = "stem_bn", .activation = Activation::relu});
    x = b.max_pool(x, {.kernel = 3, .stride = 1, .padding = 1});
    int y = b.convolution(x, {.name = "c1", .out_channels = 16, .kernel = 3, .padding = 1, .norm = "n1", .activation = Activation::relu});
    y = b.convolution(y, {.name = "c2", .out_channels = 16, .kernel = 3, .padding = 1, .norm = "n2"});
    x = b.add(y, x, Activation::relu);
    b.tap("layer1", x);
    y = b.convolution(
        x, {.name = "d1", .out_channels = 24, .kernel = 3, .stride = 2, .padding = 1, .norm = "m1", .activation = Activation::relu});
    y = b.convolution(y, {.name = "d2", .out_channels = 24, .kernel = 3, .padding = 1, .norm = "m2"});
    const int s = b.convolution(x, {.name = "ds", .out_channels = 24, .stride = 2, .norm = "ms"});
    b.tap("layer2", b.add(y, s, Activation::relu));
  });
  check({block, {"layer1", "layer2"}, {16, 18, 3}, 2}, kBound);
  const auto unet = graph_of([](Builder& b) {
    const int x = b.input(3);
    const int e1 =
        b.convolution(x, {.name = "e1", .out_channels = 8, .kernel = 3, .padding = 1, .norm = "be1", .activation = Activation::leaky_relu});
    const int e2 = b.convolution(
        b.max_pool(e1, {}), {.name = "e2", .out_channels = 16, .kernel = 3, .padding = 1, .bias = true, .activation = Activation::silu});
    const int d1 = b.transposed_convolution(
        e2, {.name = "d1", .out_channels = 8, .kernel = 2, .stride = 2, .norm = "bd1", .activation = Activation::relu});
    const int u = b.resize(e2, 2, Interpolation::bilinear);
    const int joined = b.concat(d1, e1, u);
    b.tap("y", b.convolution(joined,
                             {.name = "o", .out_channels = 2, .kernel = 3, .padding = 1, .bias = true, .activation = Activation::sigmoid}));
  });
  check({unet, {"y"}, {8, 10, 3}, 2}, kBound);
}

TEST_CASE("attention, talking heads, class attention, and what moves tokens about") {
  const auto graph = graph_of([](Builder& b) {
    const int x = b.convolution(b.input(3), {.name = "patches", .out_channels = 12, .kernel = 2, .stride = 2, .bias = true});
    const int t = b.tokens(x, {.position_embedding = "positions", .class_token = "cls", .second_token = "second"});
    b.tap("tokens", t);
    b.tap("class_alone", b.tokens(x, {.position_embedding = "", .class_token = "cls"}));
    b.tap("second_alone", b.tokens(x, {.position_embedding = "", .class_token = "", .second_token = "second"}));
    b.tap("nothing_added", b.tokens(x, {}));
    b.tap("grid", b.grid(t, x, 2));
    b.tap("token", b.token(t, 1));
    b.tap("joined", b.join_tokens(b.token(t, 1), t));
    b.tap("twice", b.join_tokens(t, t));
    const int qkv = b.linear(t, {.name = "qkv", .out_channels = 36});
    b.tap("attention", b.attention(qkv, 3));
    b.tap("one_head", b.attention(qkv, 1));
    b.tap("talking", b.talking_heads_attention(qkv, 4, "mix_l", "mix_w"));
    const int k = b.slice(qkv, 12, 12), v = b.slice(qkv, 24, 12);
    b.tap("class_attention", b.class_attention(b.token(b.slice(qkv, 0, 12), 0), k, v, 2));
    b.tap("keys_are_values", b.class_attention(b.token(k, 0), k, k, 3));
    const int alone = b.token(k, 0);
    b.tap("all_one", b.class_attention(alone, alone, alone, 3));
  });
  for (const std::string_view tap : {"tokens", "class_alone", "second_alone", "nothing_added", "grid", "token", "joined", "twice",
                                     "attention", "one_head", "talking", "class_attention", "keys_are_values", "all_one"}) {
    CAPTURE(tap);
    check({graph, {tap}, {6, 8, 3}}, kBound);
  }
  check({graph, {"tokens", "grid", "token", "joined", "attention", "one_head", "talking", "class_attention", "keys_are_values"}, {6, 8, 3}},
        kBound);  // qkv and tokens with many readers: gradients are added up
  check({graph, {"talking"}, {6, 8, 3}, 2, BatchNorm::training, {"mix_l"}}, kBound);
  check({graph, {"talking"}, {6, 8, 3}, 2, BatchNorm::training, {"patches", "positions"}}, kBound);
  check({graph, {"class_alone"}, {6, 8, 3}, 2, BatchNorm::training, {"cls"}}, kBound);
  check({graph, {"talking", "tokens"}, {6, 8, 3}, 2, BatchNorm::training, {"patches", "positions", "qkv"}}, kBound);
}

TEST_CASE("one block of a Vision Transformer and of CaiT") {
  const auto vit = graph_of([](Builder& b) {
    const int patches = b.convolution(b.input(3), {.name = "p", .out_channels = 16, .kernel = 4, .stride = 4, .bias = true});
    const int x = b.tokens(patches, {.position_embedding = "pos", .class_token = "cls", .second_token = "dist"});
    int y = b.linear(b.layer_norm(x, {.name = "n1", .epsilon = 1e-6f}), {.name = "qkv", .out_channels = 48});
    const int z = b.add(b.linear(b.attention(y, 4), {.name = "proj", .out_channels = 16}), x);
    y = b.linear(b.layer_norm(z, {.name = "n2", .epsilon = 1e-6f}), {.name = "fc1", .out_channels = 32, .activation = Activation::gelu});
    y = b.add(b.linear(y, {.name = "fc2", .out_channels = 16}), z);
    b.tap("grid", b.grid(y, patches, 2));
    y = b.layer_norm(y, {.name = "n", .epsilon = 1e-6f});
    b.tap("head",
          b.add(b.linear(b.token(y, 0), {.name = "h", .out_channels = 5}), b.linear(b.token(y, 1), {.name = "hd", .out_channels = 5})));
  });
  check({vit, {"head"}, {12, 16, 3}}, kBound);
  check({vit, {"head", "grid"}, {12, 16, 3}}, kBound);
  const auto cait = graph_of([](Builder& b) {
    const int patches = b.convolution(b.input(3), {.name = "p", .out_channels = 16, .kernel = 4, .stride = 4, .bias = true});
    const int x = b.tokens(patches, {.position_embedding = "pos"});
    int y = b.linear(b.layer_norm(x, {.name = "n1"}), {.name = "qkv", .out_channels = 48});
    y = b.linear(b.talking_heads_attention(y, 4, "l", "w"), {.name = "proj", .out_channels = 16});
    const int z = b.add(b.layer_scale(y, "g1"), x);
    const int cls = b.first_token(b.tokens(z, {.position_embedding = "", .class_token = "cls"}));
    const int all = b.layer_norm(b.join_tokens(cls, z), {.name = "n2"});
    const int q = b.linear(b.first_token(all), {.name = "q", .out_channels = 16});
    const int k = b.linear(all, {.name = "k", .out_channels = 16}), v = b.linear(all, {.name = "v", .out_channels = 16});
    b.tap("y", b.add(b.layer_scale(b.class_attention(q, k, v, 4), "g2"), cls));
  });
  check({cait, {"y"}, {12, 16, 3}}, kBound);
}

}  // namespace
