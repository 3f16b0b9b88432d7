// Optimisers by their formulas in double, groups, clipping, schedules, first values. tests/golden/training_torch_test.cpp compares with
// PyTorch.
#include <cmath>
#include <numbers>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/thread_pool.hpp>
#include <norma/nn/training/initialise.hpp>
#include <norma/nn/training/optimisers.hpp>

#include "../support/reference.hpp"

namespace {

using namespace norma;
using namespace norma::nn;

TEST_CASE("Adam, coupled and decoupled, in groups, for any number of threads") {
  constexpr std::int64_t kCount = 100'000;  // several pieces of work
  const std::vector<ParameterGroup> groups{{0, 40'000, 1.0f, 1.0f}, {40'000, kCount, 0.1f, 0.0f}};
  for (const bool decoupled : {false, true}) {
    const AdamSettings s{
        .learning_rate = 0.01f, .beta1 = 0.8f, .beta2 = 0.95f, .epsilon = 1e-3f, .weight_decay = 0.1f, .decoupled = decoupled};
    auto one = Adam::create(kCount, s, groups), other = Adam::create(kCount, s, groups);
    REQUIRE(one.ok());
    ThreadPool pool(2);
    auto w = test::normal_vector(kCount, 1), v = w;
    std::vector<double> exact(w.begin(), w.end()), mean(w.size()), squares(w.size());
    for (int t = 1; t <= 5; ++t) {
      const auto g = test::normal_vector(kCount, 10 + static_cast<std::uint64_t>(t));
      one->step(w, g, 0.02f);
      other->step(v, g, 0.02f, pool.parallel());
      for (std::size_t i = 0; i < exact.size(); ++i) {
        const double rate = static_cast<double>(0.02f) * (i < 40'000 ? 1.0 : static_cast<double>(0.1f)),
                     decay = i < 40'000 ? static_cast<double>(0.1f) : 0.0;
        if (decoupled) exact[i] *= 1.0 - rate * decay;
        const double d = static_cast<double>(g[i]) + (decoupled ? 0.0 : decay * exact[i]);
        mean[i] = static_cast<double>(0.8f) * mean[i] + (1.0 - static_cast<double>(0.8f)) * d;
        squares[i] = static_cast<double>(0.95f) * squares[i] + (1.0 - static_cast<double>(0.95f)) * d * d;
        const double m = mean[i] / (1.0 - std::pow(static_cast<double>(0.8f), t)),
                     q = squares[i] / (1.0 - std::pow(static_cast<double>(0.95f), t));
        exact[i] -= rate * m / (std::sqrt(q) + static_cast<double>(1e-3f));
      }
    }
    CHECK(w == v);
    CHECK(one->steps() == 5);
    // Five steps of about ten roundings of numbers up to 5: 5 * 10 * 2^-24 * 5.
    for (std::size_t i = 0; i < exact.size(); i += 97) CHECK(std::abs(static_cast<double>(w[i]) - exact[i]) <= 1.5e-5);
  }
}

TEST_CASE("SGD: momentum begins with the gradient itself; Nesterov looks ahead") {
  for (const bool nesterov : {false, true}) {
    auto sgd = Sgd::create(1, {.learning_rate = 0.5f, .momentum = 0.5f, .weight_decay = 0.25f, .nesterov = nesterov});
    REQUIRE(sgd.ok());
    std::vector<float> w{1.0f};
    const std::vector<float> g{1.0f};
    sgd->step(w, g, 0.5f);
    // d = 1 + 0.25; v = d; step v, or d + 0.5 v
    const float first = nesterov ? 1.0f - 0.5f * 1.875f : 1.0f - 0.5f * 1.25f;
    CHECK(w[0] == first);
    sgd->step(w, g, 0.5f);
    const float d = 1.0f + 0.25f * first, v = 0.5f * 1.25f + d;
    CHECK(std::abs(w[0] - (first - 0.5f * (nesterov ? d + 0.5f * v : v))) <= 1e-7f);
  }
}

TEST_CASE("settings outside their range are refused by name") {
  const auto refused = [](const auto& result, std::string_view word) {
    REQUIRE_FALSE(result.ok());
    CHECK(result.code() == Errc::invalid_argument);
    CHECK(result.message().find(word) != std::string::npos);
  };
  refused(Adam::create(1, {.learning_rate = 0.0f}), "learning_rate");
  refused(Adam::create(1, {.beta1 = 1.0f}), "beta1");
  refused(Adam::create(1, {.beta2 = -0.1f}), "beta2");
  refused(Adam::create(1, {.epsilon = 0.0f}), "epsilon");
  refused(Adam::create(1, {.weight_decay = -1.0f}), "weight_decay");
  refused(Sgd::create(1, {.learning_rate = std::nanf("")}), "learning_rate");
  refused(Sgd::create(1, {.momentum = 1.0f}), "momentum");
  refused(Sgd::create(1, {.nesterov = true}), "nesterov");
}

TEST_CASE("clipping by the norm") {
  std::vector<float> g{3.0f, 4.0f};
  CHECK(clip_gradient_norm(g, 10.0) == 5.0);
  CHECK(g == std::vector<float>{3.0f, 4.0f});
  CHECK(clip_gradient_norm(g, 1.0) == 5.0);
  CHECK(std::abs(gradient_norm(g) - 1.0) <= 1e-6);
  std::vector<float> broken{std::nanf(""), 1.0f};
  CHECK(std::isnan(clip_gradient_norm(broken, 1.0)));
  CHECK(broken[1] == 1.0f);
}

TEST_CASE("schedules: the cards' values") {
  // NSA: epoch 0 -> 1e-3, towards 1e-6.
  const Schedule cosine{.kind = Schedule::Kind::cosine, .length = 100, .end_factor = 1e-3};
  CHECK(cosine.rate(1e-3, 0) == 1e-3);
  CHECK(std::abs(cosine.rate(1e-3, 50) - (1e-3 + 1e-6) / 2) <= 1e-12);
  CHECK(std::abs(cosine.rate(1e-3, 100) - 1e-6) <= 1e-15);
  CHECK(std::abs(cosine.rate(1e-3, 500) - 1e-6) <= 1e-15);
  // CutPaste: 0.03, 0.015, 0.
  const Schedule to_zero{.kind = Schedule::Kind::cosine, .length = 256};
  CHECK(std::abs(to_zero.rate(0.03, 128) - 0.015) <= 1e-12);
  CHECK(std::abs(to_zero.rate(0.03, 256)) <= 1e-12);
  // CFlow: warm-up over two meta epochs from a tenth to the cosine's value there.
  const Schedule warm{.kind = Schedule::Kind::cosine, .length = 25, .end_factor = 1e-3, .warm_up = 2, .warm_up_factor = 0.1};
  const double lowest = 2e-7, at2 = lowest + (2e-4 - lowest) * (1 + std::cos(std::numbers::pi * 2 / 25)) / 2;
  CHECK(std::abs(warm.rate(2e-4, 0) - 2e-5) <= 1e-15);
  CHECK(std::abs(warm.rate(2e-4, 1) - (2e-5 + at2) / 2) <= 1e-15);
  CHECK(std::abs(warm.rate(2e-4, 2) - at2) <= 1e-15);
  CHECK(std::abs(warm.rate(2e-4, 24) - (lowest + (2e-4 - lowest) * (1 + std::cos(std::numbers::pi * 24 / 25)) / 2)) <= 1e-15);
  // DRAEM: a fifth after 560 and again after 630 of 700.
  const Schedule step{.kind = Schedule::Kind::step, .milestones = {560, 630}, .step_factor = 0.2};
  CHECK(step.rate(1e-4, 559) == 1e-4);
  CHECK(std::abs(step.rate(1e-4, 560) - 2e-5) <= 1e-18);
  CHECK(std::abs(step.rate(1e-4, 699) - 4e-6) <= 1e-18);
  CHECK(Schedule{}.rate(0.5, 1e9) == 0.5);
}

consteval auto make_net() {
  Graph<8> graph;
  Builder b(graph);
  int x =
      b.convolution(b.input(32), {.name = "body.conv", .out_channels = 64, .kernel = 3, .padding = 1, .bias = true, .norm = "body.norm"});
  x = b.transposed_convolution(x, {.name = "up", .out_channels = 16, .kernel = 2, .stride = 2, .bias = true});
  b.tap("y", b.linear(x, {.name = "head", .out_channels = 50}));
  return graph;
}
constexpr auto kNet = make_net();

Parameters parameters_of(std::span<const std::string_view> frozen = {}) {
  const std::string_view taps[] = {"y"};
  auto plan = TrainingPlan::create(kNet, taps, 8, 8, {.frozen = frozen});
  REQUIRE(plan.ok());
  auto parameters = Parameters::create(*plan);
  REQUIRE(parameters.ok());
  return *std::move(parameters);
}

TEST_CASE("groups by name") {
  const Parameters parameters = parameters_of();
  const GroupRule rules[] = {{.prefix = "body", .rate = 0.1f}, {.decay = 0.0f, .only_vectors = true}};
  auto groups = make_groups(parameters.layout(), rules);
  REQUIRE(groups.ok());
  std::int64_t covered = 0;
  for (const ParameterGroup& group : *groups) {
    covered += group.last - group.first;
    for (const ParameterPiece& piece : parameters.layout().pieces()) {
      if (piece.offset != group.first || !piece.trained) continue;
      const bool body = name_begins_with(piece.name, "body");
      CHECK(group.rate == (body ? 0.1f : 1.0f));
      CHECK(group.decay == (!body && piece.shape.size() == 1 ? 0.0f : 1.0f));
    }
  }
  CHECK(covered == parameters.layout().trained());
  const GroupRule wrong[] = {{.prefix = "tail"}};
  const auto none = make_groups(parameters.layout(), wrong);
  CHECK(none.code() == Errc::not_found);
  CHECK(none.message().find("'tail'") != std::string::npos);
}

TEST_CASE("first values: range, deviation, independence of what else there is") {
  const auto moments = [](std::span<const float> v) {
    double mean = 0.0, square = 0.0, most = 0.0;
    for (const float x : v) {
      mean += static_cast<double>(x);
      square += static_cast<double>(x) * static_cast<double>(x);
      most = std::max(most, std::abs(static_cast<double>(x)));
    }
    const auto n = static_cast<double>(v.size());
    return std::array<double, 3>{mean / n, std::sqrt(square / n), most};
  };
  Parameters p = parameters_of();
  initialise(p, {}, 5);
  const auto values = [&](std::string_view name) { return p.of(*p.layout().find(name)); };
  const double b = 1.0 / std::sqrt(32.0 * 9.0);  // 18,432 numbers: the deviation is known to 0.5 %, the largest to 0.1 %
  auto m = moments(values("body.conv.weight"));
  CHECK(std::abs(m[0]) <= 0.02 * b);
  CHECK(std::abs(m[1] - b / std::sqrt(3.0)) <= 0.02 * b);
  CHECK((m[2] <= b && m[2] >= 0.99 * b));
  CHECK(moments(values("body.conv.bias"))[2] <= b);
  CHECK(moments(values("body.conv.bias"))[2] >= 0.8 * b);
  CHECK(moments(values("up.weight"))[2] <= 1.0 / 8.0);  // PyTorch counts a transposed convolution's outputs: 16 * 4
  CHECK(moments(values("up.weight"))[2] >= 0.99 / 8.0);
  CHECK(moments(values("head.weight"))[2] <= 0.25);
  CHECK(values("body.norm.weight")[3] == 1.0f);
  CHECK(values("body.norm.bias")[3] == 0.0f);
  CHECK(values("body.norm.running_mean")[3] == 0.0f);
  CHECK(values("body.norm.running_var")[3] == 1.0f);
  const std::vector<float> conv(values("body.conv.weight").begin(), values("body.conv.weight").end());

  const std::string_view frozen[] = {"head"};
  Parameters q = parameters_of(frozen);
  initialise(q, {}, 5);
  const auto same = q.of(*q.layout().find("body.conv.weight"));
  CHECK(std::equal(conv.begin(), conv.end(), same.begin()));
  CHECK(q.of(*q.layout().find("head.weight"))[0] == 0.0f);  // frozen weights stay
  initialise(q, {}, 6);
  CHECK_FALSE(std::equal(conv.begin(), conv.end(), same.begin()));

  const struct {
    Initialiser how;
    double deviation;
  } normals[] = {{Initialiser::kaiming_fan_in, std::sqrt(2.0 / 288)},
                 {Initialiser::kaiming_fan_out, std::sqrt(2.0 / 576)},
                 {Initialiser::xavier_normal, std::sqrt(2.0) * std::sqrt(2.0 / (288 + 576))},
                 {Initialiser::normal, std::sqrt(2.0)},
                 {Initialiser::xavier_uniform, std::sqrt(2.0) * std::sqrt(6.0 / (288 + 576)) / std::sqrt(3.0)},
                 {Initialiser::zeros, 0.0}};
  for (const auto& n : normals) {
    initialise(p, {.weights = n.how, .biases = Initialiser::zeros}, 9, "body.conv");
    m = moments(values("body.conv.weight"));
    CHECK(std::abs(m[1] - n.deviation) <= 0.03 * n.deviation);
    CHECK(values("body.conv.bias")[0] == 0.0f);
  }
}

}  // namespace
