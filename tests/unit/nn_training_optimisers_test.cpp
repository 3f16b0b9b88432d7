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

TEST_CASE("Adam, coupled and decoupled, in groups, every instruction set, any number of threads") {
  constexpr std::int64_t kCount = 100'003, kSecond = 40'005;  // several pieces of work; neither is a whole number of vectors
  const std::vector<ParameterGroup> groups{{0, kSecond, 1.0f, 1.0f}, {kSecond, kCount, 0.1f, 0.0f}};
  ThreadPool two(2), three(3);
  for (const bool decoupled : {false, true}) {
    const AdamSettings s{
        .learning_rate = 0.01f, .beta1 = 0.8f, .beta2 = 0.95f, .epsilon = 1e-3f, .weight_decay = 0.1f, .decoupled = decoupled};
    const auto start = test::normal_vector(kCount, 1);
    std::vector<double> exact(start.begin(), start.end()), mean(start.size()), squares(start.size());
    for (int t = 1; t <= 5; ++t) {
      const auto g = test::normal_vector(kCount, 10 + static_cast<std::uint64_t>(t));
      for (std::size_t i = 0; i < exact.size(); ++i) {
        const bool first = static_cast<std::int64_t>(i) < kSecond;
        const double rate = static_cast<double>(0.02f) * (first ? 1.0 : static_cast<double>(0.1f)),
                     decay = first ? static_cast<double>(0.1f) : 0.0;
        if (decoupled) exact[i] *= 1.0 - rate * decay;
        const double d = static_cast<double>(g[i]) + (decoupled ? 0.0 : decay * exact[i]);
        mean[i] = static_cast<double>(0.8f) * mean[i] + (1.0 - static_cast<double>(0.8f)) * d;
        squares[i] = static_cast<double>(0.95f) * squares[i] + (1.0 - static_cast<double>(0.95f)) * d * d;
        const double m = mean[i] / (1.0 - std::pow(static_cast<double>(0.8f), t)),
                     q = squares[i] / (1.0 - std::pow(static_cast<double>(0.95f), t));
        exact[i] -= rate * m / (std::sqrt(q) + static_cast<double>(1e-3f));
      }
    }
    for (const InstructionSet set : test::instruction_sets()) {
      CAPTURE(to_string(set));
      std::vector<float> first;
      for (const Parallel parallel : {Parallel{}, two.parallel(), three.parallel()}) {
        auto adam = Adam::create(kCount, s, groups);
        REQUIRE(adam.ok());
        auto w = start;
        for (int t = 1; t <= 5; ++t) adam->step(w, test::normal_vector(kCount, 10 + static_cast<std::uint64_t>(t)), 0.02f, parallel, set);
        CHECK(adam->steps() == 5);
        if (first.empty()) first = w;
        CHECK(first == w);
      }
      // Five steps of about ten roundings of numbers up to 5: 5 * 10 * 2^-24 * 5.
      bool inside = true;
      for (std::size_t i = 0; i < exact.size(); ++i) inside = inside && std::abs(static_cast<double>(first[i]) - exact[i]) <= 1.5e-5;
      CHECK(inside);
    }
  }
}

TEST_CASE("a number's step does not depend on its neighbours or on where its range begins") {
  const auto start = test::normal_vector(75, 1), g = test::normal_vector(75, 2);
  for (const InstructionSet set : test::instruction_sets()) {
    CAPTURE(to_string(set));
    auto whole = start, whole_sgd = start;
    auto adam = Adam::create(75, {.weight_decay = 0.1f});
    auto sgd = Sgd::create(75, {.momentum = 0.9f, .weight_decay = 0.1f, .nesterov = true});
    for (int t = 0; t < 2; ++t) {
      adam->step(whole, g, 0.1f, {}, set);
      sgd->step(whole_sgd, g, 0.1f, {}, set);
    }
    for (std::size_t i = 0; i < start.size(); ++i) {
      std::vector<float> w{start[i]}, v{start[i]};
      auto one = Adam::create(1, {.weight_decay = 0.1f});
      auto other = Sgd::create(1, {.momentum = 0.9f, .weight_decay = 0.1f, .nesterov = true});
      for (int t = 0; t < 2; ++t) {
        one->step(w, std::span(&g[i], 1), 0.1f, {}, set);
        other->step(v, std::span(&g[i], 1), 0.1f, {}, set);
      }
      CHECK(w[0] == whole[i]);
      CHECK(v[0] == whole_sgd[i]);
    }
  }
}

TEST_CASE("Adam: a gradient that is always zero moves nothing, one that is NaN stays where it is") {
  for (const InstructionSet set : test::instruction_sets()) {
    auto adam = Adam::create(40, {});
    std::vector<float> w(40, 2.0f), g(40, 0.0f);
    g[17] = std::nanf("");
    adam->step(w, g, 0.1f, {}, set);
    for (std::size_t i = 0; i < w.size(); ++i) CHECK((i == 17 ? std::isnan(w[i]) : w[i] == 2.0f));
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

TEST_CASE("the norm: any count, numbers whose squares no float holds, the same bits for any number of threads") {
  ThreadPool two(2), three(3);
  for (const InstructionSet set : test::instruction_sets()) {
    CAPTURE(to_string(set));
    for (const std::int64_t count : {0, 1, 7, 31, 32, 33, 34, 4095, 4096, 4097, 70'001, 1'500'000}) {
      CAPTURE(count);
      auto g = test::normal_vector(count, 3);
      if (count == 34) g[7] = 3e30f;
      double sum = 0.0;
      for (const float v : g) sum += static_cast<double>(v) * static_cast<double>(v);
      const double norm = gradient_norm(g, {}, set);
      CHECK(std::abs(norm - std::sqrt(sum)) <=
            static_cast<double>(count) * 0x1p-53 * norm);  // both sides round once a number, the root halves it
      CHECK(norm == gradient_norm(g, two.parallel(), set));
      CHECK(norm == gradient_norm(g, three.parallel(), set));
      if (count == 0) continue;
      auto clipped = g, other = g;
      CHECK(clip_gradient_norm(clipped, 0.5 * norm, {}, set) == norm);
      CHECK(clip_gradient_norm(other, 0.5 * norm, three.parallel(), set) == norm);
      CHECK(clipped == other);
      const auto factor = static_cast<float>(0.5 * norm / (norm + 1e-6));
      bool exact = true;
      for (std::size_t i = 0; i < g.size(); ++i) exact = exact && clipped[i] == g[i] * factor;
      CHECK(exact);
    }
  }
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
