// Losses: values by hand or by their definition, gradients against central differences of the value in double.
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/thread_pool.hpp>
#include <norma/nn/training/losses.hpp>

#include "../support/reference.hpp"

namespace {

using namespace norma;
using namespace norma::nn;

// Central differences by steps that floats hold exactly. The loss itself is computed in double from float inputs, so h = 2^-10 leaves
// h^2 / 6 of the third derivative, about 2e-7 of it, and no rounding to speak of.
void check_gradient(std::vector<float> x, const std::function<double(std::span<const float>, std::span<float>)>& loss, double bound) {
  std::vector<float> gradient(x.size());
  loss(x, gradient);
  constexpr float h = 0x1p-10f;
  double largest = 0.0;
  for (const float g : gradient) largest = std::max(largest, std::abs(static_cast<double>(g)));
  CHECK(largest > 0.0);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const float before = x[i];
    x[i] = before + h;
    const float up = x[i];
    const double high = loss(x, {});
    x[i] = before - h;
    const double low = loss(x, {});
    const double wanted = (high - low) / (static_cast<double>(up) - static_cast<double>(x[i]));
    x[i] = before;
    CHECK(std::abs(static_cast<double>(gradient[i]) - wanted) <= bound * largest);
  }
  std::vector<float> twice = gradient;  // `add` adds
  std::vector<float> again(x.size());
  loss(x, again);
  CHECK(again == twice);
}

TEST_CASE("squared and absolute error") {
  const std::vector<float> y{1.0f, -2.0f, 3.0f, 0.5f}, target{0.0f, -2.0f, 5.0f, 0.0f};
  std::vector<float> gradient(4);
  CHECK(squared_error(y, target, 1.0, gradient) == (1.0 + 0.0 + 4.0 + 0.25) / 4.0);
  CHECK(gradient == std::vector<float>{0.5f, 0.0f, -1.0f, 0.25f});
  CHECK(squared_error(y, target, 2.0, gradient, LossGradient::add) == 5.25 / 4.0);
  CHECK(gradient == std::vector<float>{1.5f, 0.0f, -3.0f, 0.75f});
  CHECK(absolute_error(y, target, 2.0, gradient) == 3.5 / 4.0);
  CHECK(gradient == std::vector<float>{0.5f, 0.0f, -0.5f, 0.5f});
  const std::vector<float> broken{std::numeric_limits<float>::quiet_NaN()}, one{1.0f};
  std::vector<float> g(1);
  CHECK(std::isnan(squared_error(broken, one, 1.0, g)));
  CHECK(std::isnan(absolute_error(broken, one, 1.0, g)));
  CHECK(std::isnan(g[0]));
}

TEST_CASE("cosine distance: flattened and per location, as the card of reverse distillation counts them") {
  // Two locations of two channels: cosines 1 and 0, then the second scaled by 3.
  const std::vector<float> f{1, 0, 1, 0}, g{1, 0, 0, 1}, scaled{1, 0, 0, 3};
  const auto rows = [](const std::vector<float>& v, std::int64_t count) {
    return MatrixView<const float>(v.data(), count, static_cast<std::int64_t>(v.size()) / count);
  };
  CHECK(std::abs(cosine_distance(rows(g, 2), rows(f, 2), 1.0, {}) - 0.5) <= 1e-12);
  CHECK(std::abs(cosine_distance(rows(g, 1), rows(f, 1), 1.0, {}) - 0.5) <= 1e-12);
  CHECK(std::abs(cosine_distance(rows(scaled, 1), rows(f, 1), 1.0, {}) - 0.776393) <= 1e-6);
  CHECK(std::abs(cosine_distance(rows(f, 1), rows(f, 1), 1.0, {})) <= 1e-12);
  const auto target = test::normal_vector(24, 2);
  check_gradient(
      test::normal_vector(24, 1),
      [&](std::span<const float> x, std::span<float> d) {
        return cosine_distance({x.data(), 3, 8}, {target.data(), 3, 8}, 1.0,
                               d.empty() ? MatrixView<float>() : MatrixView<float>(d.data(), 3, 8));
      },
      1e-5);
  const std::vector<float> zero(4);
  std::vector<float> d(4);
  CHECK(cosine_distance(rows(zero, 1), rows(f, 1), 1.0, {d.data(), 1, 4}) == 1.0);
  for (const float v : d) CHECK(std::isfinite(v));
}

TEST_CASE("cross entropy, softmax, focal loss, binary cross entropy") {
  const std::vector<float> logits{0.0f, 0.0f, 1.0f, 3.0f};
  const std::array<std::int64_t, 2> labels{0, 1};
  CHECK(std::abs(cross_entropy({logits.data(), 2, 2}, labels, 1.0, {}) - 0.5 * (std::log(2.0) + std::log1p(std::exp(-2.0)))) <= 1e-12);
  std::vector<float> p(4);
  softmax({logits.data(), 2, 2}, {p.data(), 2, 2});
  CHECK(std::abs(p[0] - 0.5f) <= 1e-7f);
  CHECK(std::abs(static_cast<double>(p[3]) - 1.0 / (1.0 + std::exp(-2.0))) <= 1e-7);
  const std::vector<float> large{1000.0f, -1000.0f};
  const std::array<std::int64_t, 1> second{1};
  CHECK(cross_entropy({large.data(), 1, 2}, second, 1.0, {}) == 2000.0);
  const std::array<std::int64_t, 4> four{2, 0, 1, 2};
  const auto x = test::normal_vector(12, 3);
  check_gradient(
      x,
      [&](std::span<const float> v, std::span<float> d) {
        return cross_entropy({v.data(), 4, 3}, four, 1.0, d.empty() ? MatrixView<float>() : MatrixView<float>(d.data(), 4, 3));
      },
      1e-5);
  // Focal: gamma 0 and no smoothing is cross entropy; the card's gamma 2 by its formula.
  CHECK(std::abs(focal_loss({x.data(), 4, 3}, four, 0.0, 0.0, 1.0, {}) - cross_entropy({x.data(), 4, 3}, four, 1.0, {})) <= 1e-12);
  const double pt = (1.0 - 1e-5) / (1.0 + std::exp(-2.0)) + 1e-5 / (1.0 + std::exp(2.0)) + 1e-5;
  const std::array<std::int64_t, 1> one{1};
  CHECK(std::abs(focal_loss({logits.data() + 2, 1, 2}, one, 2.0, 1e-5, 1.0, {}) + (1 - pt) * (1 - pt) * std::log(pt)) <= 1e-12);
  check_gradient(
      x,
      [&](std::span<const float> v, std::span<float> d) {
        return focal_loss({v.data(), 4, 3}, four, 2.0, 1e-5, 1.0, d.empty() ? MatrixView<float>() : MatrixView<float>(d.data(), 4, 3));
      },
      1e-5);
  const std::vector<float> target{1.0f, 0.0f, 0.25f, 1.0f, 0.0f, 1.0f, 0.0f, 0.5f, 1.0f, 0.0f, 0.1f, 0.9f};
  double want = 0.0;
  for (std::size_t i = 0; i < 12; ++i) {
    const double q = 1.0 / (1.0 + std::exp(-static_cast<double>(x[i])));
    want -= (static_cast<double>(target[i]) * std::log(q) + (1.0 - static_cast<double>(target[i])) * std::log(1.0 - q)) / 12.0;
  }
  CHECK(std::abs(binary_cross_entropy(x, target, 1.0, {}) - want) <= 1e-12);
  check_gradient(
      x, [&](std::span<const float> v, std::span<float> d) { return binary_cross_entropy(v, target, 1.0, d); }, 1e-5);
}

TEST_CASE("likelihoods of flows") {
  const std::vector<float> z{1.0f, 2.0f, 0.0f, -2.0f}, logdet{0.5f, -1.0f};
  std::vector<float> dz(4), dlogdet(2);
  // (0.5 * 5 - 0.5 + 0.5 * 4 + 1) / 2
  CHECK(flow_likelihood_loss({z.data(), 2, 2}, logdet, 0.5, {dz.data(), 2, 2}, dlogdet) == 2.5);
  CHECK(dz == std::vector<float>{0.25f, 0.5f, 0.0f, -0.5f});
  CHECK(dlogdet == std::vector<float>{-0.25f, -0.25f});
  const std::vector<float> l{0.0f, 100.0f, -100.0f};
  CHECK(std::abs(negative_log_sigmoid(l, 1.0, {}) - (std::log(2.0) + 0.0 + 100.0) / 3.0) <= 1e-9);
  check_gradient(
      test::normal_vector(9, 4), [](std::span<const float> v, std::span<float> d) { return negative_log_sigmoid(v, 1.0, d); }, 1e-5);
}

TEST_CASE("structural distance: equal images, constants by hand, gradient, threads") {
  const Shape shape{9, 13, 2};
  Tensor<float> x(2, shape), y(2, shape);
  Random random(7);
  for (std::int64_t i = 0; i < 2 * shape.count(); ++i) {
    x.data()[i] = static_cast<float>(random.uniform());
    y.data()[i] = static_cast<float>(random.uniform());
  }
  ThreadPool two(2);
  test::Scratch scratch(structural_distance_scratch_bytes(shape, 2));
  std::vector<double> planes(4);
  const auto run = [&](TensorView<const float> a, TensorView<float> d, Parallel parallel) {
    Arena arena = scratch.arena();
    return structural_distance(a, y.view(), 1.0, d, parallel, arena, planes);
  };
  CHECK(std::abs(run(y.view(), {}, {})) <= 1e-9);
  check_gradient(
      {x.data(), x.data() + 2 * shape.count()},
      [&](std::span<const float> v, std::span<float> d) {
        return run({v.data(), 2, shape}, d.empty() ? TensorView<float>() : TensorView<float>(d.data(), 2, shape), {});
      },
      1e-4);  // its third derivative is larger
  Tensor<float> one(2, shape), other(2, shape);
  CHECK(run(x.view(), one.view(), {}) == run(x.view(), other.view(), two.parallel()));
  for (std::int64_t i = 0; i < 2 * shape.count(); ++i) CHECK(one.data()[i] == other.data()[i]);
  // One pixel: the window sees w = its middle weight squared of it, so means w a, variances w a^2 - (w a)^2.
  const float a = 0.5f, b = 0.25f;
  test::Scratch small(structural_distance_scratch_bytes({1, 1, 1}, 1));
  Arena arena = small.arena();
  double total = 0.0;
  for (int i = -5; i <= 5; ++i) total += std::exp(-i * i / 4.5);
  const double w = 1.0 / (total * total), c1 = 1e-4, c2 = 9e-4;
  const double m = w * 0.5, n = w * 0.25;
  const double want =
      (2 * m * n + c1) * (2 * (w * 0.125 - m * n) + c2) / ((m * m + n * n + c1) * (w * 0.25 - m * m + w * 0.0625 - n * n + c2));
  CHECK(std::abs(1.0 - structural_distance({&a, 1, 1, 1, 1}, {&b, 1, 1, 1, 1}, 1.0, {}, {}, arena, std::span(planes).first(1)) - want) <=
        1e-12);
}

}  // namespace
