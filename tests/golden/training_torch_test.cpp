// Four small networks against PyTorch in double: gradients of every parameter and of the input, running statistics, and ten steps of each
// optimiser. The file and the script that made it stand beside this test.
#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/nn/executor.hpp>
#include <norma/nn/training/executor.hpp>
#include <norma/nn/training/losses.hpp>
#include <norma/nn/training/optimisers.hpp>

#include "../support/reference.hpp"

namespace {

using namespace norma;
using namespace norma::nn;

io::Weights golden() {
#ifdef NORMA_SOURCE_DIR
  const std::string root = NORMA_SOURCE_DIR;
#else
  const std::string root = ".";
#endif
  auto file = io::Weights::open(root + "/tests/golden/training_torch.safetensors");
  REQUIRE_MESSAGE(file.ok(), file.message());
  return *std::move(file);
}

std::vector<float> read(const io::Weights& file, const std::string& name) {
  const auto tensor = file.get(name);
  REQUIRE_MESSAGE(tensor.ok(), tensor.message());
  std::vector<float> values(static_cast<std::size_t>(tensor->count()));
  REQUIRE(file.read(name, tensor->shape, values).ok());
  return values;
}
// [n, c, h, w] as [n, h, w, c].
Tensor<float> read_map(const io::Weights& file, const std::string& name) {
  const auto values = read(file, name);
  const auto shape = file.get(name)->shape;
  Tensor<float> t(shape[0], shape[2], shape[3], shape[1]);
  std::size_t i = 0;
  for (std::int64_t n = 0; n < shape[0]; ++n)
    for (std::int64_t c = 0; c < shape[1]; ++c)
      for (std::int64_t y = 0; y < shape[2]; ++y)
        for (std::int64_t x = 0; x < shape[3]; ++x) t.view()(n, y, x, c) = values[i++];
  return t;
}

int basic_block(Builder& b, int x, const Name& p, int planes, int stride) {
  int y = b.convolution(x, {.name = p + ".conv1",
                            .out_channels = planes,
                            .kernel = 3,
                            .stride = stride,
                            .padding = 1,
                            .norm = p + ".bn1",
                            .activation = Activation::relu});
  y = b.convolution(y, {.name = p + ".conv2", .out_channels = planes, .kernel = 3, .padding = 1, .norm = p + ".bn2"});
  int shortcut = x;
  if (stride != 1) {
    shortcut = b.convolution(x, {.name = p + ".downsample.0", .out_channels = planes, .stride = stride, .norm = p + ".downsample.1"});
  }
  return b.add(y, shortcut, Activation::relu);
}
Graph<24> resnet() {
  Graph<24> graph;
  Builder b(graph);
  int x = b.convolution(
      b.input(3),
      {.name = "conv1", .out_channels = 6, .kernel = 5, .stride = 2, .padding = 2, .norm = "bn1", .activation = Activation::relu});
  x = b.max_pool(x, {.kernel = 3, .stride = 2, .padding = 1});
  x = basic_block(b, x, "layer1", 6, 1);
  x = basic_block(b, x, "layer2", 10, 2);
  b.tap("fc", b.linear(b.global_average_pool(x), {.name = "fc", .out_channels = 4}));
  return graph;
}
Graph<40> unet() {
  Graph<40> graph;
  Builder b(graph);
  const int a = b.convolution(
      b.input(3),
      {.name = "e1", .out_channels = 6, .kernel = 3, .padding = 1, .bias = true, .norm = "n1", .activation = Activation::leaky_relu});
  const int e = b.convolution(
      a, {.name = "e2", .out_channels = 8, .kernel = 3, .stride = 2, .padding = 1, .bias = true, .activation = Activation::silu});
  const int c = b.convolution(e, {.name = "e3",
                                  .out_channels = 8,
                                  .kernel = 3,
                                  .padding = 2,
                                  .dilation = 2,
                                  .groups = 2,
                                  .bias = true,
                                  .activation = Activation::gelu});
  const int w = b.convolution(
      c, {.name = "depthwise", .out_channels = 8, .kernel = 5, .padding = 2, .groups = 8, .activation = Activation::hard_swish});
  const int d = b.add(w, b.instance_norm(e));
  int up = b.add(b.resize(c, 2, Interpolation::bilinear_corners), b.resize(d, 2, Interpolation::bilinear));
  up = b.multiply(up, b.activation(b.resize(e, 2, Interpolation::nearest), Activation::sigmoid));
  const int up1 = b.transposed_convolution(
      d, {.name = "up1", .out_channels = 5, .kernel = 4, .stride = 2, .padding = 1, .bias = true, .activation = Activation::tanh});
  const int up2 = b.transposed_convolution(e, {.name = "up2", .out_channels = 4, .kernel = 2, .stride = 2});
  const int joined = b.concat(up1, up2, up, b.average_pool(a, {.kernel = 3, .stride = 1, .padding = 1}));
  b.tap("out", b.convolution(
                   joined, {.name = "out", .out_channels = 2, .kernel = 3, .padding = 1, .bias = true, .activation = Activation::sigmoid}));
  return graph;
}

// Both sides are sums of at most a few thousand products of the same numbers; ours are in float. A share of the largest gradient of the
// piece, or of all where a piece's true gradient is zero.
constexpr double kShare = 1e-5;

void compare(std::span<const float> got, std::span<const float> want, double bound, const std::string& what) {
  REQUIRE(got.size() == want.size());
  double worst = 0.0;
  bool inside = true;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    worst = std::max(worst, error);
    inside = inside && error <= bound;
  }
  CHECK_MESSAGE(inside, what << ": off by " << worst << ", bound " << bound);
}
double largest(std::span<const float> values) {
  double most = 0.0;
  for (const float v : values) most = std::max(most, std::abs(static_cast<double>(v)));
  return most;
}

void compare_gradients(const io::Weights& file, const std::string& prefix, const ParameterTable& layout, std::span<const float> gradients,
                       const Tensor<float>& input_gradient) {
  const double floor = 0.1 * largest(gradients);
  for (const ParameterPiece& piece : layout.pieces()) {
    if (!piece.trained) continue;
    const auto want = read(file, prefix + piece.name);
    compare(gradients.subspan(static_cast<std::size_t>(piece.offset), static_cast<std::size_t>(piece.count)), want,
            kShare * std::max(floor, largest(want)), prefix + piece.name);
  }
  const auto want = read_map(file, prefix + "input");
  const auto count = static_cast<std::size_t>(want.view().count());
  compare({input_gradient.data(), count}, {want.data(), count}, kShare * largest({want.data(), count}), prefix + "input");
}

constexpr std::array<std::int64_t, 4> kLabels{0, 2, 3, 1};

TEST_CASE("a residual network: gradients, running statistics, ten steps of each optimiser") {
  const io::Weights file = golden();
  const auto graph = resnet();
  const std::string_view tap[] = {"fc"};
  const auto input = read_map(file, "resnet/input");
  auto executor = TrainingExecutor::create(graph, tap, 19, 17, {.input_gradient = InputGradient::yes});
  REQUIRE_MESSAGE(executor.ok(), executor.message());
  Parameters start = executor->make_parameters();
  const Status loaded = start.load(file, "resnet/start/");
  REQUIRE_MESSAGE(loaded.ok(), loaded.message());
  test::Scratch memory(executor->workspace_bytes(4, 1));
  Buffer<float> gradients(executor->layout().trained());
  Tensor<float> input_gradient(4, {19, 17, 3});
  const auto step = [&](Parameters& parameters, BatchNorm mode) {
    Arena arena = memory.arena();
    std::array<TensorView<const float>, 1> out;
    std::array<float, 16> d{};
    TrainingPass pass;
    REQUIRE(executor->forward(parameters, input.view(), mode, arena, {}, out, pass).ok());
    const double loss = cross_entropy(out[0].patches(), kLabels, 1.0, {d.data(), 4, 4});
    std::fill(gradients.span().begin(), gradients.span().end(), 0.0f);
    const std::array<TensorView<const float>, 1> tap_gradients{TensorView<const float>(d.data(), 4, 1, 1, 4)};
    REQUIRE(executor->backward(parameters, pass, tap_gradients, gradients.span(), {}, input_gradient.view()).ok());
    return loss;
  };
  for (const bool training : {true, false}) {
    const std::string prefix = training ? "resnet/training/" : "resnet/evaluation/";
    Parameters parameters = start;
    const double loss = step(parameters, training ? BatchNorm::training : BatchNorm::evaluation);
    CHECK(std::abs(loss - static_cast<double>(read(file, prefix + "loss")[0])) <= 1e-6 * loss);
    compare_gradients(file, prefix + "gradient/", executor->layout(), gradients.span(), input_gradient);
    if (!training) continue;
    for (const ParameterPiece& piece : parameters.layout().pieces()) {
      if (piece.role != TensorRole::norm_mean && piece.role != TensorRole::norm_variance) continue;
      compare(parameters.of(piece), read(file, prefix + piece.name), 1e-6, piece.name);
    }
  }

  const auto ten_steps = [&](const std::string& name, auto optimiser, double most_norm) {
    REQUIRE_MESSAGE(optimiser.ok(), optimiser.message());
    Parameters parameters = start;
    for (int i = 0; i < 10; ++i) {
      step(parameters, BatchNorm::training);
      if (most_norm > 0.0) CHECK(clip_gradient_norm(gradients.span(), most_norm) > 0.0);
      optimiser->step(parameters.trained(), gradients.span(), optimiser->settings().learning_rate);
    }
    for (const ParameterPiece& piece : parameters.layout().pieces()) {
      compare(parameters.of(piece), read(file, "resnet/" + name + "/" + piece.name), 1e-5, name + " " + piece.name);
    }
  };
  const std::int64_t count = executor->layout().trained();
  ten_steps("adam", Adam::create(count, {.learning_rate = 2e-3f, .beta1 = 0.8f, .beta2 = 0.99f, .epsilon = 1e-4f, .weight_decay = 1e-2f}),
            0.0);
  ten_steps("adamw", Adam::create(count, {.learning_rate = 2e-3f, .epsilon = 1e-4f, .weight_decay = 0.1f, .decoupled = true}), 0.0);
  ten_steps("sgd", Sgd::create(count, {.learning_rate = 0.02f, .momentum = 0.9f, .weight_decay = 1e-3f}), 0.5);
  ten_steps("nesterov", Sgd::create(count, {.learning_rate = 0.02f, .momentum = 0.9f, .nesterov = true}), 0.0);
}

TEST_CASE("an encoder with decoder: gradients of every kind of layer that enlarges, and the same network run by the executor") {
  const io::Weights file = golden();
  const auto graph = unet();
  const std::string_view tap[] = {"out"};
  const auto input = read_map(file, "unet/input"), target = read_map(file, "unet/target");
  auto executor = TrainingExecutor::create(graph, tap, 8, 12, {.input_gradient = InputGradient::yes});
  REQUIRE_MESSAGE(executor.ok(), executor.message());
  Parameters parameters = executor->make_parameters();
  REQUIRE(parameters.load(file, "unet/start/").ok());
  test::Scratch memory(executor->workspace_bytes(2, 1));
  Arena arena = memory.arena();
  std::array<TensorView<const float>, 1> out;
  TrainingPass pass;
  REQUIRE(executor->forward(parameters, input.view(), BatchNorm::training, arena, {}, out, pass).ok());
  const auto count = static_cast<std::size_t>(out[0].count());
  std::vector<float> d(count);
  const double loss = squared_error({out[0].data, count}, {target.data(), count}, 1.0, d);
  CHECK(std::abs(loss - static_cast<double>(read(file, "unet/loss")[0])) <= 1e-6 * loss);
  Buffer<float> gradients(executor->layout().trained());
  Tensor<float> input_gradient(2, {8, 12, 3});
  const std::array<TensorView<const float>, 1> tap_gradients{TensorView<const float>(d.data(), 2, out[0].shape())};
  REQUIRE(executor->backward(parameters, pass, tap_gradients, gradients.span(), {}, input_gradient.view()).ok());
  compare_gradients(file, "unet/gradient/", executor->layout(), gradients.span(), input_gradient);
}

// One transformer block; `attend` makes attention's result of the normalised tokens. Scaled as CaiT's where `scaled`.
template <class Attend>
int transformer_block(Builder& b, int normalised, int residual, const Name& p, bool scaled, Attend&& attend) {
  int y =
      b.linear(attend(b.layer_norm(normalised, {.name = p + "norm1", .epsilon = 1e-6f})), {.name = p + "attn.proj", .out_channels = 12});
  const int x = b.add(scaled ? b.layer_scale(y, p + "gamma_1") : y, residual);
  y = b.linear(b.layer_norm(x, {.name = p + "norm2", .epsilon = 1e-6f}),
               {.name = p + "mlp.fc1", .out_channels = 24, .activation = Activation::gelu});
  y = b.linear(y, {.name = p + "mlp.fc2", .out_channels = 12});
  return b.add(scaled ? b.layer_scale(y, p + "gamma_2") : y, x);
}
Graph<64> deit() {
  Graph<64> graph;
  Builder b(graph);
  const int patches = b.convolution(b.input(3), {.name = "patch_embed.proj", .out_channels = 12, .kernel = 4, .stride = 4, .bias = true});
  int x = b.tokens(patches, {.position_embedding = "pos_embed", .class_token = "cls_token", .second_token = "dist_token"});
  for (int i = 0; i < 2; ++i) {
    const Name p = name("blocks.", i, ".");
    x = transformer_block(b, x, x, p, false,
                          [&](int y) { return b.attention(b.linear(y, {.name = p + "attn.qkv", .out_channels = 36}), 2); });
  }
  x = b.layer_norm(x, {.name = "norm", .epsilon = 1e-6f});
  const int head = b.linear(b.token(x, 0), {.name = "head", .out_channels = 4});
  b.tap("head", b.global_average_pool(b.join_tokens(head, b.linear(b.token(x, 1), {.name = "head_dist", .out_channels = 4}))));
  return graph;
}
Graph<80> cait() {
  Graph<80> graph;
  Builder b(graph);
  const int patches = b.convolution(b.input(3), {.name = "patch_embed.proj", .out_channels = 12, .kernel = 4, .stride = 4, .bias = true});
  int x = b.tokens(patches, {.position_embedding = "pos_embed"});
  for (int i = 0; i < 2; ++i) {
    const Name p = name("blocks.", i, ".");
    x = transformer_block(b, x, x, p, true, [&](int y) {
      y = b.linear(y, {.name = p + "attn.qkv", .out_channels = 36});
      return b.talking_heads_attention(y, 3, p + "attn.proj_l", p + "attn.proj_w");
    });
  }
  int cls = b.first_token(b.tokens(x, {.position_embedding = "", .class_token = "cls_token"}));
  for (int i = 0; i < 2; ++i) {
    const Name p = name("blocks_token_only.", i, ".");
    cls = transformer_block(b, b.join_tokens(cls, x), cls, p, true, [&](int y) {
      const int q = b.linear(b.first_token(y), {.name = p + "attn.q", .out_channels = 12});
      const int k = b.linear(y, {.name = p + "attn.k", .out_channels = 12}), v = b.linear(y, {.name = p + "attn.v", .out_channels = 12});
      return b.class_attention(q, k, v, 3);
    });
  }
  b.tap("head", b.linear(b.layer_norm(cls, {.name = "norm", .epsilon = 1e-6f}), {.name = "head", .out_channels = 4}));
  return graph;
}

void compare_transformer(const io::Weights& file, GraphView graph, const std::string& name) {
  CAPTURE(name);
  const std::string_view tap[] = {"head"};
  const auto input = read_map(file, name + "/input");
  auto executor = TrainingExecutor::create(graph, tap, 12, 16, {.input_gradient = InputGradient::yes});
  REQUIRE_MESSAGE(executor.ok(), executor.message());
  Parameters parameters = executor->make_parameters();
  const Status loaded = parameters.load(file, name + "/start/");
  REQUIRE_MESSAGE(loaded.ok(), loaded.message());
  test::Scratch memory(executor->workspace_bytes(4, 1));
  Arena arena = memory.arena();
  std::array<TensorView<const float>, 1> out, plain;
  std::array<float, 16> d{};
  TrainingPass pass;
  REQUIRE(executor->forward(parameters, input.view(), BatchNorm::training, arena, {}, out, pass).ok());
  const double loss = cross_entropy(out[0].patches(), kLabels, 1.0, {d.data(), 4, 4});
  CHECK(std::abs(loss - static_cast<double>(read(file, name + "/loss")[0])) <= 1e-6 * loss);

  // The same numbers in the executor that only runs.
  auto weights = parameters.to_weights();
  REQUIRE(weights.ok());
  auto runs = Executor::create(graph, tap, 12, 16, *weights);
  REQUIRE_MESSAGE(runs.ok(), runs.message());
  test::Scratch other(runs->workspace_bytes(4, 1));
  Arena other_arena = other.arena();
  REQUIRE(runs->run(input.view(), other_arena, {}, plain).ok());
  compare({out[0].data, 16}, {plain[0].data, 16}, 1e-6 * largest({plain[0].data, 16}), name + " head");

  Buffer<float> gradients(executor->layout().trained());
  Tensor<float> input_gradient(4, {12, 16, 3});
  const std::array<TensorView<const float>, 1> tap_gradients{TensorView<const float>(d.data(), 4, 1, 1, 4)};
  REQUIRE(executor->backward(parameters, pass, tap_gradients, gradients.span(), {}, input_gradient.view()).ok());
  compare_gradients(file, name + "/gradient/", executor->layout(), gradients.span(), input_gradient);
}

TEST_CASE("a distilled Vision Transformer and a CaiT: gradients of every tensor, and the same results as the executor") {
  const io::Weights file = golden();
  const auto vision = deit();
  compare_transformer(file, vision, "deit");
  const auto talking = cait();
  compare_transformer(file, talking, "cait");
}

TEST_CASE("trained numbers are a weight file that the executor reads, with the same results") {
  const io::Weights file = golden();
  const auto graph = resnet();
  const std::string_view tap[] = {"fc"};
  auto training = TrainingExecutor::create(graph, tap, 19, 17);
  REQUIRE(training.ok());
  Parameters parameters = training->make_parameters();
  REQUIRE(parameters.load(file, "resnet/adam/").ok());
  auto weights = parameters.to_weights();
  REQUIRE(weights.ok());
  auto executor = Executor::create(graph, tap, 19, 17, *weights);
  REQUIRE_MESSAGE(executor.ok(), executor.message());
  const auto input = read_map(file, "resnet/input");
  test::Scratch memory(training->workspace_bytes(4, 1)), other(executor->workspace_bytes(4, 1));
  Arena arena = memory.arena(), other_arena = other.arena();
  std::array<TensorView<const float>, 1> mine, its;
  TrainingPass pass;
  REQUIRE(training->forward(parameters, input.view(), BatchNorm::evaluation, arena, {}, mine, pass).ok());
  REQUIRE(executor->run(input.view(), other_arena, {}, its).ok());
  compare({mine[0].data, 16}, {its[0].data, 16}, 1e-6 * largest({its[0].data, 16}), "fc");
}

}  // namespace
