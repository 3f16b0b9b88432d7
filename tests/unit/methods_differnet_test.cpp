// DifferNet on a tiny network: the whole way from pictures to scores and back to pixels.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/methods/score_gradient.hpp>

#include "support/shared_fixtures.hpp"
#include "support/tiny_detector.hpp"

using namespace norma;

namespace {

using Tiny = DifferNet<test::TinyNetwork>;

Tiny::Settings small(std::int64_t rotations) {
  Tiny::Settings settings;
  settings.backbone.preprocess.height = settings.backbone.preprocess.width = 32;
  settings.backbone.layers = Layers("level2");
  settings.backbone.scales.rotations = rotations;
  settings.estimator.training.epochs = 3;
  settings.estimator.training.batch = 4;
  settings.estimator.training.learning_rate = 2e-3;
  settings.estimator.turns = 2;
  settings.estimator.flow_steps = 2;
  settings.estimator.flow_width = 24;
  return settings;
}
Tiny fitted(const Tiny::Settings& settings, const FitOptions& options = {.threads = 1}) {
  auto detector = Tiny::create(test::tiny_weights(), settings);
  REQUIRE_MESSAGE(detector.ok(), detector.message());
  const Status status = detector->fit(test::TinySource{}, options);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return *std::move(detector);
}
float score(const Tiny& detector, const Image& frame) {
  auto workspace = detector.make_workspace();
  const auto verdict = detector.inspect(frame, workspace);
  REQUIRE_MESSAGE(verdict.ok(), verdict.message());
  CHECK(verdict->map(0, 0) == verdict->score);
  return verdict->score;
}
std::vector<float> network_input(const Tiny& detector, const Image& frame, double degrees = 0.0) {
  const Preprocess& p = detector.settings().backbone.preprocess;
  Image prepared;
  REQUIRE(image::crop(p, frame.view(), prepared).ok());
  std::vector<float> input(static_cast<std::size_t>(p.height * p.width * 3));
  Buffer<std::byte> memory(1 << 16);
  Arena arena(memory.span());
  REQUIRE(image::normalise_turned(p, prepared.view(), degrees, TensorView<float>(input.data(), 1, p.height, p.width, 3), arena).ok());
  return input;
}
TensorView<const float> picture(const std::vector<float>& values) { return {values.data(), 1, 32, 32, 3}; }
TensorView<float> picture(std::vector<float>& values) { return {values.data(), 1, 32, 32, 3}; }

}  // namespace

TEST_CASE("DifferNet: the published flow has 172,077,056 parameters") {
  using Published = DifferNet<test::TinyNetwork>;
  FeatureShapes alexnet;
  alexnet.add({64, 1, 768});
  CHECK(Published::Estimator::parameter_count(alexnet, Published::Settings{}.estimator) == 172077056);
}

TEST_CASE("DifferNet: fit, save, open: the same scores; pooled and exact training agree") {
  const Tiny detector = fitted(small(4));
  const test::TemporaryFolder folder;
  const std::string path = (folder.path() / "tiny.norma").string();
  REQUIRE(detector.save(path).ok());
  const auto opened = Tiny::open(path);
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  CHECK(opened->self_test(0.0).ok());
  Tiny::Settings pooled = small(4);
  pooled.estimator.pooled_turns = 6;  // 3 epochs of 2 turns
  const Tiny other = fitted(pooled, {.threads = 3});
  for (std::uint64_t i = 20; i < 24; ++i) {
    const Image frame = test::tiny_picture(i, i % 2 == 0);
    CHECK(score(*opened, frame) == score(detector, frame));
    CHECK(score(other, frame) == score(detector, frame));
  }
  CHECK(opened->estimator().record().loss == detector.estimator().record().loss);
}

TEST_CASE("DifferNet: without turned images the features of a backbone without views are enough") {
  Tiny::Settings settings = small(1);
  settings.estimator.turns = 0;
  CHECK(std::isfinite(score(fitted(settings), test::tiny_picture(30))));
}

TEST_CASE("ScoreGradient: of one view, against the detector's score and finite differences") {
  const Tiny detector = fitted(small(1));
  auto gradient = ScoreGradient::create(detector);
  REQUIRE_MESSAGE(gradient.ok(), gradient.message());
  const Image frame = test::tiny_picture(40, true);
  const std::vector<float> input = network_input(detector, frame);
  std::vector<float> slope(input.size(), 7.0f), unused(input.size());
  const auto value = gradient->of_input(picture(input), picture(slope));
  REQUIRE_MESSAGE(value.ok(), value.message());
  const double expected = static_cast<double>(score(detector, frame));
  // The training executor's convolutions add in another order: a hundred terms of float.
  CHECK(std::abs(*value - expected) <= 1e-5 * expected);

  double length = 0.0;
  for (const float s : slope) length += static_cast<double>(s) * static_cast<double>(s);
  length = std::sqrt(length);
  REQUIRE(length > 0.0);
  const auto difference = [&](const std::vector<double>& direction, double h) {
    std::array<double, 2> scores{};
    for (const int sign : {0, 1}) {
      std::vector<float> moved(input.size());
      for (std::size_t i = 0; i < input.size(); ++i)
        moved[i] = static_cast<float>(static_cast<double>(input[i]) + (sign == 0 ? h : -h) * direction[i]);
      const auto at = gradient->of_input(picture(std::as_const(moved)), picture(unused));
      REQUIRE(at.ok());
      scores[static_cast<std::size_t>(sign)] = *at;
    }
    return (scores[0] - scores[1]) / (2.0 * h);
  };
  // Along the gradient, and along random directions near it in the pixels of one scale each: a step of 0.005 moves a pixel by less than 0.001,
  // so that few ReLUs change sides. Rounding: some 1e-6 of the score, by 2 h.
  const double h = 0.005;
  const double noise = 0.5e-6 * expected / h;
  std::vector<double> along(slope.begin(), slope.end());
  for (double& d : along) d /= length;
  CHECK(std::abs(difference(along, h) - length) <= 0.005 * length + noise);
  for (const std::int64_t step : {1, 2, 4}) {
    std::vector<bool> chosen(input.size());
    double own = 0.0;
    std::int64_t count = 0;
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      const auto pixel = static_cast<std::int64_t>(i) / 3, y = pixel / 32, x = pixel % 32;
      const std::int64_t seen = y % 4 == 0 && x % 4 == 0 ? 4 : y % 2 == 0 && x % 2 == 0 ? 2 : 1;  // the smallest picture that has this pixel
      chosen[i] = seen == step;
      if (!chosen[i]) continue;
      own += static_cast<double>(slope[i]) * static_cast<double>(slope[i]);
      ++count;
    }
    own = std::sqrt(own);
    for (std::uint64_t draw = 0; draw < 5; ++draw) {
      Random random(3, draw);
      std::vector<double> direction(input.size());
      double size = 0.0, dot = 0.0;
      for (std::size_t i = 0; i < direction.size(); ++i) {
        if (chosen[i]) direction[i] = random.normal() / std::sqrt(static_cast<double>(count)) + static_cast<double>(slope[i]) / own;
        size += direction[i] * direction[i];
      }
      for (std::size_t i = 0; i < direction.size(); ++i) {
        direction[i] /= std::sqrt(size);
        dot += direction[i] * static_cast<double>(slope[i]);
      }
      CAPTURE(step);
      CAPTURE(draw);
      CHECK(dot > 10.0 * noise);  // else the next line says nothing
      CHECK(std::abs(difference(direction, h) - dot) <= 0.005 * dot + noise);
    }
  }
}

TEST_CASE("turn_back: what image::rotate has turned lies upright again") {
  Image smooth(33, 33, 3);
  for (std::int64_t y = 0; y < 33; ++y) {
    for (std::int64_t x = 0; x < 33; ++x) {
      smooth(y, x, 0) = static_cast<std::uint8_t>(20 + 3 * y + 2 * x);
      smooth(y, x, 1) = static_cast<std::uint8_t>(20 + 5 * x);
      smooth(y, x, 2) = 100;
    }
  }
  for (const double degrees : {0.0, 90.0, 30.0, -75.0, 200.0}) {
    const auto turned = image::rotate(smooth, degrees);
    REQUIRE(turned.ok());
    Tensor<float> values(1, 33, 33, 3);
    for (std::int64_t i = 0; i < turned->size_bytes(); ++i) values.data()[i] = static_cast<float>(turned->data()[i]);
    Map<float> upright(33, 33);
    for (std::int64_t c = 0; c < 3; ++c) {
      detail::turn_back(std::as_const(values).view(), c, degrees, upright.view());
      for (std::int64_t y = 0; y < 33; ++y) {
        for (std::int64_t x = 0; x < 33; ++x) {
          if ((y - 16) * (y - 16) + (x - 16) * (x - 16) > 14 * 14) continue;
          // A nearest pixel is at most half a pixel off in each direction: half of 3 + 2, half of 5.
          const float bound = degrees == 0.0 ? 0.0f : std::abs(degrees) == 90.0 ? 1e-3f : c == 2 ? 1e-3f : 2.6f;
          CHECK(std::abs(upright(y, x) - static_cast<float>(smooth(y, x, c))) <= bound);
        }
      }
    }
  }
}

TEST_CASE("gradient_map: the mean over turns and channels of the smoothed gradients, squared") {
  const Tiny detector = fitted(small(3));
  const Image frame = test::tiny_picture(50, true);
  const auto map = gradient_map(detector, frame.view(), 2);
  REQUIRE_MESSAGE(map.ok(), map.message());
  REQUIRE(map->rows() == 32);
  auto gradient = ScoreGradient::create(detector);
  REQUIRE(gradient.ok());
  std::vector<double> sum(32 * 32);
  Buffer<std::byte> memory(1 << 20);
  for (int turn = 0; turn < 3; ++turn) {
    const std::vector<float> input = network_input(detector, frame, 120.0 * turn);
    std::vector<float> slope(input.size());
    REQUIRE(gradient->of_input(picture(input), picture(slope)).ok());
    for (std::int64_t c = 0; c < 3; ++c) {
      Map<float> plane(32, 32);
      detail::turn_back(picture(std::as_const(slope)), c, 120.0 * turn, plane.view());
      Arena arena(memory.span());
      REQUIRE(image::gaussian_filter<float>(plane.view(), plane.view(), 3.0, arena).ok());
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += std::abs(static_cast<double>(plane.data()[i])) / 9.0;
    }
  }
  double largest = 0.0;
  for (std::size_t i = 0; i < sum.size(); ++i) {
    CHECK(std::abs(static_cast<double>(map->data()[i]) - sum[i] * sum[i]) <= 4e-6 * sum[i] * sum[i]);
    largest = std::max(largest, sum[i]);
  }
  CHECK(largest > 0.0);
  const test::TemporaryFolder folder;
  const std::string path = (folder.path() / "tiny.norma").string();
  REQUIRE(detector.save(path).ok());
  const auto opened = Tiny::open(path);
  REQUIRE(opened.ok());
  const auto again = gradient_map(*opened, frame.view());  // an opened model has the same map
  REQUIRE_MESSAGE(again.ok(), again.message());
  CHECK(std::equal(again->data(), again->data() + 32 * 32, map->data()));
  const auto unfitted = Tiny::create(test::tiny_weights(), small(3));
  REQUIRE(unfitted.ok());
  CHECK(gradient_map(*unfitted, frame.view()).code() == Errc::not_fitted);
  std::vector<float> wrong(30);
  CHECK(gradient->of_input(TensorView<const float>(wrong.data(), 1, 1, 10, 3), TensorView<float>(wrong.data(), 1, 1, 10, 3)).code() ==
        Errc::shape_mismatch);
}
