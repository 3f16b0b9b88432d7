// Detectors whose flows run on the device, in training and in use, against the same on the host, and one model file for both.
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <type_traits>

#include <norma/cuda/coupling.cuh>
#include <norma/cuda/flow.hpp>
#include <norma/cuda/runtime.cuh>
#include <norma/methods/cflow.hpp>
#include <norma/methods/differnet.hpp>
#include <norma/methods/fastflow.hpp>

#include "support/tiny_detector.hpp"

using namespace norma;

namespace {

/// The detector with another estimator.
template <class DetectorT, class EstimatorT>
using With = Detector<typename DetectorT::Backbone, EstimatorT, typename DetectorT::Metric, Cpu<SingleThread>>;

template <class DetectorT>
float score(const DetectorT& detector, bool defect) {
  auto workspace = detector.make_workspace();
  const Image picture = test::tiny_picture(1000, defect);
  const auto verdict = detector.inspect(picture.view(), workspace);
  REQUIRE_MESSAGE(verdict.ok(), verdict.message());
  return verdict->score;
}

/// `change(settings)` makes the method small enough for the emulation. `score_bound`: of the scores of one model on the two sides.
template <class Host, class Device, class Change>
void check_same_detector(Change&& change, float score_bound) {
  const auto fitted = [&](auto type) {
    using DetectorT = typename decltype(type)::type;
    typename DetectorT::Settings settings;
    change(settings);
    auto detector = DetectorT::create(test::tiny_weights(), settings);
    REQUIRE_MESSAGE(detector.ok(), detector.message());
    const Status fit = detector->fit(test::TinySource{.count = 4});
    REQUIRE_MESSAGE(fit.ok(), fit.message());
    return *std::move(detector);
  };
  CHECK(Host::type_name() == Device::type_name());
  const Host host = fitted(std::type_identity<Host>{});
  const Device device = fitted(std::type_identity<Device>{});
  const auto &want = host.estimator().record().loss, &got = device.estimator().record().loss;
  REQUIRE(want.size() > 1);
  REQUIRE(got.size() == want.size());
  // The first loss is that of the same weights: sums of some 10 to 2000 squares. Then Adam divides by the size of a gradient, so that where one is
  // next to nothing its rounding decides a whole step; but there the loss hardly changes.
  CHECK(std::abs(got[0] - want[0]) <= 2e-5f * std::abs(want[0]));
  CHECK(std::abs(got.back() - want.back()) <= 2e-4f * std::abs(want.back()));
  CHECK(got.back() != got[0]);

  const auto file = (std::filesystem::temp_directory_path() / "norma_flow_detector.norma").string();
  REQUIRE(host.save(file).ok());
  const auto opened_on_device = Device::open(file);
  REQUIRE_MESSAGE(opened_on_device.ok(), opened_on_device.message());
  REQUIRE(device.save(file).ok());
  const auto opened_on_host = Host::open(file);
  REQUIRE_MESSAGE(opened_on_host.ok(), opened_on_host.message());
  std::filesystem::remove(file);
  for (const bool defect : {false, true}) {
    CAPTURE(defect);
    CHECK(std::abs(score(*opened_on_device, defect) - score(host, defect)) <= score_bound);
    CHECK(std::abs(score(*opened_on_host, defect) - score(device, defect)) <= score_bound);
  }
  CHECK(std::abs(score(host, true) - score(host, false)) > 2 * score_bound);
}

// Latents of the two flows differ by at most 4e-5 of the largest, or 4e-5 where all are below 1 (flow_cases.hpp).
constexpr float kLatentBound = 4e-5f;

}  // namespace

TEST_CASE("FastFlow with its flows on the device learns and scores as on the host, and each reads the other's model file") {
  using Host = FastFlow<test::TinyNetwork, Cpu<SingleThread>>;
  // Latents are below 10. A score is -exp(-m^2 / 2) with m the root of a mean of squares, so its slope is at most exp(-1 / 2).
  check_same_detector<Host, With<Host, FeatureFlow<cuda::Flow>>>(
      [](auto& settings) {
        settings.backbone.preprocess.resize = 40;
        settings.backbone.preprocess.height = settings.backbone.preprocess.width = 32;  // maps of 16, 8 and 4 positions a side
        settings.estimator.training.epochs = 3;
        settings.estimator.training.batch = 4;
        settings.estimator.flow_steps = 2;
      },
      0.61f * 10 * kLatentBound);
}

TEST_CASE("CFlow with its flows on the device") {
  using Host = CFlow<test::TinyNetwork, Cpu<SingleThread>>;
  // Latents are below 10, 2 in the mean. A score is -log of a mean of exp(l - largest l), so its slope by l = (logdet - |z|^2 / 2) / C is at most 1;
  // the parts of l are off by one and by two times the latents' error.
  check_same_detector<Host, With<Host, ConditionalFlow<cuda::Flow>>>(
      [](auto& settings) {
        settings.backbone.preprocess.resize = 20;
        settings.backbone.preprocess.height = settings.backbone.preprocess.width = 16;  // maps of 8, 4 and 2 positions a side
        settings.estimator.training.epochs = 2;
        settings.estimator.training.batch = 4;
        settings.estimator.training.learning_rate = 1e-3;
        settings.estimator.flow_steps = 2;
        settings.estimator.fibers = 64;
      },
      3 * 10 * kLatentBound);
}

TEST_CASE("DifferNet with its flow on the device") {
  using Host = DifferNet<test::TinyNetwork, Cpu<SingleThread>>;
  // Latents are below 1. A score is the mean of their squares: its slope is twice their mean size.
  check_same_detector<Host, With<Host, VectorFlow<cuda::Flow>>>(
      [](auto& settings) {
        settings.backbone.preprocess.height = settings.backbone.preprocess.width = 32;
        settings.backbone.layers = Layers("level2");
        settings.backbone.scales.rotations = 4;
        settings.estimator.training.epochs = 2;
        settings.estimator.training.batch = 4;
        settings.estimator.training.learning_rate = 2e-3;
        settings.estimator.turns = 2;
        settings.estimator.flow_steps = 2;
        settings.estimator.flow_width = 24;
      },
      2 * kLatentBound);
}
