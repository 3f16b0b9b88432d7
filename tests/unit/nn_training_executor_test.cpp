// The training plan and its executor: sizes known to the compiler, bits, memory, passes, errors. Gradients are checked in
// nn_training_gradients_test.cpp.
#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/backbones/vit.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/nn/training/executor.hpp>
#include <norma/nn/training/initialise.hpp>

#include "../support/count_allocations.hpp"
#include "../support/reference.hpp"

namespace {

using namespace norma;
using namespace norma::nn;

consteval auto make_net() {
  Graph<16> graph;
  Builder b(graph);
  int x = b.convolution(
      b.input(3),
      {.name = "stem", .out_channels = 16, .kernel = 3, .stride = 2, .padding = 1, .norm = "stem_bn", .activation = Activation::silu});
  int y = b.convolution(x, {.name = "a", .out_channels = 16, .kernel = 3, .padding = 1, .norm = "a_bn", .activation = Activation::relu});
  y = b.convolution(y, {.name = "b", .out_channels = 16, .kernel = 3, .padding = 1, .bias = true});
  x = b.add(y, x, Activation::relu);
  b.tap("block", x);
  x = b.transposed_convolution(x,
                               {.name = "up", .out_channels = 8, .kernel = 4, .stride = 2, .padding = 1, .activation = Activation::gelu});
  b.tap("map", x);
  b.tap("fc", b.linear(b.global_average_pool(x), {.name = "fc", .out_channels = 5}));
  return graph;
}
constexpr auto kNet = make_net();
constexpr std::array<std::string_view, 2> kTaps{"map", "fc"};

// Known while compiling. A value is 16 x 16 x 16 floats = 16 KiB at 32 x 32 input; the picture is the caller's.
constexpr std::size_t kBytes = training_workspace_bytes(kNet, kTaps, 32, 32, 2);
static_assert(kBytes > 0);
static_assert(training_workspace_bytes(kNet, kTaps, 32, 32, 4) > kBytes);
static_assert(training_workspace_bytes(kNet, kTaps, 32, 32, 2, 4) >= kBytes);

// A residual network of 17 blocks, the size of ResNet-50, inside every compiler's default limits.
consteval auto make_deep() {
  Graph<128> graph;
  Builder b(graph);
  int x = b.convolution(b.input(3),
                        {.name = "stem", .out_channels = 32, .kernel = 3, .padding = 1, .norm = "bn", .activation = Activation::relu});
  for (int i = 0; i < 17; ++i) {
    int y =
        b.convolution(x, {.name = name("b", i, ".c1"), .out_channels = 16, .norm = name("b", i, ".n1"), .activation = Activation::relu});
    y = b.convolution(y, {.name = name("b", i, ".c2"),
                          .out_channels = 16,
                          .kernel = 3,
                          .padding = 1,
                          .norm = name("b", i, ".n2"),
                          .activation = Activation::relu});
    y = b.convolution(y, {.name = name("b", i, ".c3"), .out_channels = 32, .norm = name("b", i, ".n3")});
    x = b.add(y, x, Activation::relu);
  }
  b.tap("y", x);
  return graph;
}
constexpr auto kDeep = make_deep();
constexpr std::array<std::string_view, 1> kDeepTap{"y"};
static_assert(training_workspace_bytes(kDeep, kDeepTap, 32, 32, 1) > 0);
// With all but the last block frozen nothing before it is kept.
constexpr std::array<std::string_view, 17> kAllButLast{"stem", "b0", "b1",  "b2",  "b3",  "b4",  "b5",  "b6", "b7",
                                                       "b8",   "b9", "b10", "b11", "b12", "b13", "b14", "b15"};
static_assert(4 * training_workspace_bytes(kDeep, kDeepTap, 32, 32, 8, 1, {.frozen = kAllButLast}) <
              training_workspace_bytes(kDeep, kDeepTap, 32, 32, 8));

// A transformer with both kinds of attention, behind a convolution with mirrored borders.
consteval auto make_transformer() {
  Graph<40> graph;
  Builder b(graph);
  const int stem = b.convolution(
      b.input(3), {.name = "stem", .out_channels = 16, .kernel = 3, .padding = Padding::reflect(1), .activation = Activation::relu});
  const int patches = b.convolution(stem, {.name = "patches", .out_channels = 24, .kernel = 4, .stride = 4, .bias = true});
  int x = b.tokens(patches, {.position_embedding = "positions", .class_token = "cls"});
  int y = b.linear(b.layer_norm(x, {.name = "n1"}), {.name = "qkv", .out_channels = 72});
  x = b.add(b.linear(b.attention(y, 3), {.name = "proj", .out_channels = 24}), x);
  y = b.linear(b.layer_norm(x, {.name = "n2"}), {.name = "qkv2", .out_channels = 72});
  x = b.add(b.layer_scale(b.talking_heads_attention(y, 4, "mix_l", "mix_w"), "gamma"), x);
  b.tap("map", b.grid(x, patches, 1));
  const int q = b.linear(b.first_token(x), {.name = "q", .out_channels = 24}), k = b.linear(x, {.name = "k", .out_channels = 24});
  b.tap("fc", b.linear(b.class_attention(q, k, b.linear(x, {.name = "v", .out_channels = 24}), 4), {.name = "fc", .out_channels = 5}));
  return graph;
}
constexpr auto kTransformer = make_transformer();
constexpr std::size_t kTransformerBytes = training_workspace_bytes(kTransformer, kTaps, 32, 36, 2);
// The published ones, whole, inside every compiler's default limits.
constexpr auto kVision = ViTTiny16::graph();
constexpr std::array<std::string_view, 1> kHead{"head"};
static_assert(training_workspace_bytes(kVision, kHead, 224, 224, 1) < std::size_t{64} << 20);

// As `initialise`, and tokens and mixes that are not zero.
Parameters first_numbers(const TrainingExecutor& executor) {
  Parameters parameters = executor.make_parameters();
  initialise(parameters, {}, 3);
  for (const ParameterPiece& piece : parameters.layout().pieces()) {
    const auto values = parameters.of(piece);
    if (piece.role >= TensorRole::position_embedding && piece.role != TensorRole::scale) {
      test::fill_normal(values.data(), piece.count, static_cast<std::uint64_t>(piece.offset));
    }
  }
  return parameters;
}

struct Step {
  std::vector<float> map, gradients, input_gradient, running;
};

Step run(TrainingExecutor& executor, Parameters parameters, const Tensor<float>& input, Parallel parallel) {
  test::Scratch memory(executor.workspace_bytes(input.batch(), parallel.workers()));
  Arena arena = memory.arena();
  std::array<TensorView<const float>, 2> out;
  TrainingPass pass;
  Step step;
  REQUIRE(executor.forward(parameters, input.view(), BatchNorm::training, arena, parallel, out, pass).ok());
  step.map.assign(out[0].data, out[0].data + out[0].count());
  const auto d0 = test::normal_vector(out[0].count(), 5), d1 = test::normal_vector(out[1].count(), 6);
  const std::array<TensorView<const float>, 2> tap_gradients{TensorView<const float>(d0.data(), out[0].batch, out[0].shape()),
                                                             TensorView<const float>(d1.data(), out[1].batch, out[1].shape())};
  step.gradients.resize(static_cast<std::size_t>(executor.layout().trained()));
  step.input_gradient.resize(static_cast<std::size_t>(input.view().count()));
  REQUIRE(
      executor
          .backward(parameters, pass, tap_gradients, step.gradients, parallel, {step.input_gradient.data(), input.batch(), input.shape()})
          .ok());
  step.running.assign(parameters.values().begin() + executor.layout().trained(), parameters.values().end());
  return step;
}

TEST_CASE("one, two and three threads give the same bits") {
  for (const GraphView graph : {GraphView(kNet), GraphView(kTransformer)}) {
    auto executor = TrainingExecutor::create(graph, kTaps, 32, 36, {.input_gradient = InputGradient::yes});
    REQUIRE(executor.ok());
    Parameters parameters = first_numbers(*executor);
    const auto input = test::normal_tensor(5, {32, 36, 3}, 4);
    ThreadPool two(2), three(3);
    const Step one = run(*executor, parameters, input, {});
    for (const Parallel parallel : {two.parallel(), three.parallel()}) {
      const Step other = run(*executor, parameters, input, parallel);
      CHECK(one.map == other.map);
      CHECK(one.gradients == other.gradients);
      CHECK(one.input_gradient == other.input_gradient);
      CHECK(one.running == other.running);
      for (const float g : other.gradients) CHECK(std::isfinite(g));
    }
  }
}

TEST_CASE("a step allocates nothing and needs no more than it said") {
  struct Case {
    GraphView graph;
    std::int64_t width;
    std::size_t bytes;
  };
  for (const Case& c : {Case{kNet, 32, kBytes}, Case{kTransformer, 36, kTransformerBytes}}) {
    auto executor = TrainingExecutor::create(c.graph, kTaps, 32, c.width);
    REQUIRE(executor.ok());
    CHECK(executor->workspace_bytes(2, 1) == c.bytes);
    Parameters parameters = first_numbers(*executor);
    const auto input = test::normal_tensor(2, {32, c.width, 3}, 4);
    Buffer<float> gradients(executor->layout().trained());
    test::Scratch memory(c.bytes), small(c.bytes - 64);
    ThreadPool pool(1);
    const auto d = test::normal_tensor(2, executor->plan().taps()[0].shape, 5);
    const std::array<TensorView<const float>, 2> tap_gradients{d.view(), {}};
    std::array<TensorView<const float>, 2> out;
    const std::int64_t before = test::allocation_count();
    Arena arena = memory.arena();
    TrainingPass pass;
    const bool forward = executor->forward(parameters, input.view(), BatchNorm::training, arena, pool.parallel(), out, pass).ok();
    const bool backward = executor->backward(parameters, pass, tap_gradients, gradients.span(), pool.parallel()).ok();
    CHECK(test::allocation_count() == before);
    CHECK(forward);
    CHECK(backward);
    Arena tight = small.arena();
    const Status status = executor->forward(parameters, input.view(), BatchNorm::training, tight, {}, out, pass);
    CHECK(status.code() == Errc::out_of_memory);
    CHECK(status.message().find(std::to_string(c.bytes)) != std::string::npos);
  }
}

TEST_CASE("two passes at once, and gradients that are added up") {
  auto executor = TrainingExecutor::create(kNet, kTaps, 16, 16);
  REQUIRE(executor.ok());
  Parameters parameters = executor->make_parameters();
  initialise(parameters, {}, 3);
  const auto a = test::normal_tensor(2, {16, 16, 3}, 4), b = test::normal_tensor(3, {16, 16, 3}, 5);
  const auto da = test::normal_tensor(2, {1, 1, 5}, 6), db = test::normal_tensor(3, {1, 1, 5}, 7);
  test::Scratch memory(executor->workspace_bytes(2, 1) + executor->workspace_bytes(3, 1));
  const auto step = [&](bool first, bool second, bool together) {
    Arena arena = memory.arena();
    std::array<TensorView<const float>, 2> out;
    TrainingPass one, two;
    std::vector<float> gradients(static_cast<std::size_t>(executor->layout().trained()));
    const std::array<TensorView<const float>, 2> ga{TensorView<const float>{}, da.view()}, gb{TensorView<const float>{}, db.view()};
    Parameters own = parameters;
    if (first) REQUIRE(executor->forward(own, a.view(), BatchNorm::evaluation, arena, {}, out, one).ok());
    if (first && !together) REQUIRE(executor->backward(own, one, ga, gradients, {}).ok());
    if (second) REQUIRE(executor->forward(own, b.view(), BatchNorm::evaluation, arena, {}, out, two).ok());
    if (second) REQUIRE(executor->backward(own, two, gb, gradients, {}).ok());
    if (first && together) REQUIRE(executor->backward(own, one, ga, gradients, {}).ok());
    return gradients;
  };
  const auto only_a = step(true, false, false), only_b = step(false, true, false);
  const auto in_turn = step(true, true, false), together = step(true, true, true);
  for (std::size_t i = 0; i < only_a.size(); ++i) {
    const float bound = 4.0f * 6e-8f * (std::abs(only_a[i]) + std::abs(only_b[i])) + 1e-12f;  // one addition each, in another order
    CHECK(std::abs(in_turn[i] - (only_a[i] + only_b[i])) <= bound);
    CHECK(std::abs(together[i] - (only_a[i] + only_b[i])) <= bound);
  }
}

TEST_CASE("a pass goes back once, with fitting sizes") {
  auto executor = TrainingExecutor::create(kNet, kTaps, 16, 16);
  REQUIRE(executor.ok());
  Parameters parameters = executor->make_parameters();
  initialise(parameters, {}, 3);
  const auto input = test::normal_tensor(2, {16, 16, 3}, 4);
  test::Scratch memory(executor->workspace_bytes(2, 2));
  Arena arena = memory.arena();
  std::array<TensorView<const float>, 2> out;
  std::array<TensorView<const float>, 1> one;
  std::vector<float> gradients(static_cast<std::size_t>(executor->layout().trained()));
  TrainingPass pass;
  const auto code = [](const Status& status, std::string_view word) {
    CHECK_MESSAGE(status.message().find(word) != std::string::npos, status.message());
    return status.code();
  };
  const std::array<TensorView<const float>, 2> nothing{};
  CHECK(code(executor->backward(parameters, pass, nothing, gradients, {}), "forward") == Errc::not_fitted);
  CHECK(code(executor->forward(parameters, test::normal_tensor(2, {16, 17, 3}, 4).view(), BatchNorm::training, arena, {}, out, pass),
             "16 x 17 x 3") == Errc::shape_mismatch);
  CHECK(code(executor->forward(parameters, input.view(), BatchNorm::training, arena, {}, one, pass), "expected 2") ==
        Errc::invalid_argument);
  Parameters none;
  CHECK(code(executor->forward(none, input.view(), BatchNorm::training, arena, {}, out, pass), "are empty") == Errc::invalid_argument);
  REQUIRE(executor->forward(parameters, input.view(), BatchNorm::training, arena, {}, out, pass).ok());
  const auto wrong = test::normal_tensor(1, {1, 1, 5}, 1);
  const std::array<TensorView<const float>, 2> misshapen{TensorView<const float>{}, wrong.view()};
  CHECK(code(executor->backward(parameters, pass, misshapen, gradients, {}), "output 1") == Errc::shape_mismatch);
  CHECK(code(executor->backward(parameters, pass, {}, gradients, {}), "expected 2") == Errc::invalid_argument);
  CHECK(code(executor->backward(parameters, pass, nothing, std::span(gradients).first(3), {}), "room for 3") == Errc::shape_mismatch);
  Tensor<float> room(2, {16, 16, 3});
  CHECK(code(executor->backward(parameters, pass, nothing, gradients, {}, room.view()), "input_gradient") == Errc::invalid_argument);
  REQUIRE(executor->backward(parameters, pass, nothing, gradients, {}).ok());
  for (const float g : gradients) CHECK(g == 0.0f);
  CHECK(executor->backward(parameters, pass, nothing, gradients, {}).code() == Errc::not_fitted);
  CHECK(TrainingExecutor().backward(parameters, pass, nothing, gradients, {}).code() == Errc::not_fitted);
}

TEST_CASE("what cannot be trained is refused by name") {
  const auto message = [](GraphView graph, std::string_view tap, const TrainingOptions& options = {}) {
    const auto executor = TrainingExecutor::create(graph, std::span(&tap, 1), 8, 8, options);
    REQUIRE_FALSE(executor.ok());
    return executor.message();
  };
  Graph<16> graph;
  Builder b(graph);
  const int x = b.input(12);
  b.tap("heads", b.talking_heads_attention(b.linear(x, {.name = "many", .out_channels = 3 * 65}), 65, "l", "w"));
  b.tap("groups", b.transposed_convolution(x, {.name = "grouped", .out_channels = 4, .kernel = 2, .stride = 2, .groups = 2}));
  b.tap("plain", b.convolution(x, {.name = "plain", .out_channels = 4, .norm = "bn"}));
  b.tap("pool", b.max_pool(x, {}));
  b.tap("large", b.convolution(x, {.name = "large", .out_channels = 4, .kernel = 9}));
  CHECK(message(graph, "heads").find("'l'): training does not have talking heads, more than 64") != std::string::npos);
  CHECK(message(graph, "groups").find("'grouped'): training does not have transposed convolutions with groups") != std::string::npos);
  CHECK(message(graph, "pool").find("weights that learn") != std::string::npos);
  CHECK(message(graph, "large").find("does not fit") != std::string::npos);
  CHECK(message(graph, "nowhere").find("'nowhere'") != std::string::npos);
  const std::string_view frozen[] = {"plain", "plan"}, all[] = {"plain"};
  CHECK(message(graph, "plain", {.frozen = frozen}).find("'plan'") != std::string::npos);
  CHECK(message(graph, "plain", {.frozen = all}).find("weights that learn") != std::string::npos);
  CHECK(message(graph, "plain", {.batch_norm_momentum = 1.5f}).find("momentum") != std::string::npos);

  // A batch norm that sees one value a channel has no variance.
  const std::string_view plain[] = {"plain"};
  auto executor = TrainingExecutor::create(graph, plain, 1, 1);
  REQUIRE(executor.ok());
  Parameters parameters = executor->make_parameters();
  const auto input = test::normal_tensor(1, {1, 1, 12}, 4);
  test::Scratch memory(executor->workspace_bytes(1, 1));
  Arena arena = memory.arena();
  std::array<TensorView<const float>, 1> out;
  TrainingPass pass;
  const Status status = executor->forward(parameters, input.view(), BatchNorm::training, arena, {}, out, pass);
  CHECK(status.code() == Errc::invalid_argument);
  CHECK(status.message().find("'plain'") != std::string::npos);
  CHECK(executor->forward(parameters, input.view(), BatchNorm::evaluation, arena, {}, out, pass).ok());

  // One tensor in two shapes.
  Graph<8> shared;
  Builder s(shared);
  int y = s.convolution(s.input(4), {.name = "c", .out_channels = 4, .kernel = 3, .padding = 1});
  y = s.convolution(y, {.name = "c", .out_channels = 4, .kernel = 1});
  s.tap("y", y);
  CHECK(message(shared, "y").find("'c.weight' is shared") != std::string::npos);
}

TEST_CASE("numbers go into a weight file and come back; a file of another network is refused") {
  auto executor = TrainingExecutor::create(kNet, kTaps, 16, 16);
  REQUIRE(executor.ok());
  Parameters parameters = executor->make_parameters(), read = executor->make_parameters();
  initialise(parameters, {}, 3);
  auto weights = parameters.to_weights("trained");
  REQUIRE(weights.ok());
  CHECK(weights->find("stem_bn.running_var") != nullptr);
  REQUIRE(read.load(*weights).ok());
  CHECK(std::memcmp(read.values().data(), parameters.values().data(), parameters.values().size_bytes()) == 0);
  parameters.trained()[7] = std::nanf("");
  auto broken = parameters.to_weights("broken");
  REQUIRE(broken.ok());
  const Status status = read.load(*broken);
  CHECK(status.code() == Errc::not_finite);
  CHECK(status.message().find("'stem.weight'") != std::string::npos);
  io::TensorFileWriter empty;
  auto bytes = empty.to_bytes();
  auto nothing = io::Weights::from_bytes(*std::move(bytes), "empty");
  REQUIRE(nothing.ok());
  CHECK(read.load(*nothing).message().find("'stem.weight'") != std::string::npos);
  CHECK(std::isfinite(read.trained()[7]));

  // A part alone: the head keeps its numbers.
  Parameters part = executor->make_parameters();
  REQUIRE(part.load(*weights, {}, "stem").ok());
  CHECK(part.of(*part.layout().find("stem.weight"))[5] == read.of(*read.layout().find("stem.weight"))[5]);
  CHECK(part.of(*part.layout().find("fc.weight"))[5] == 0.0f);
  CHECK(part.load(*weights, {}, "ste").code() == Errc::not_found);
  const auto other = TrainingExecutor::create(kDeep, kDeepTap, 16, 16);
  REQUIRE(other.ok());
  Parameters foreign = other->make_parameters();
  test::Scratch memory(executor->workspace_bytes(2, 1));
  Arena arena = memory.arena();
  std::array<TensorView<const float>, 2> out;
  TrainingPass pass;
  const auto input = test::normal_tensor(2, {16, 16, 3}, 4);
  const Status refused = executor->forward(foreign, input.view(), BatchNorm::training, arena, {}, out, pass);
  CHECK(refused.code() == Errc::invalid_argument);
  CHECK(refused.message().find("another network's") != std::string::npos);
}

}  // namespace
