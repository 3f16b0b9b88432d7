// A whole detector whose coreset and search run on the device, against the same on the host, and one model file for both.
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>

#include <norma/cuda/covariance.cuh>
#include <norma/cuda/covariance.hpp>
#include <norma/cuda/exact_search.hpp>
#include <norma/cuda/greedy_k_centre.hpp>
#include <norma/cuda/k_centre.cuh>
#include <norma/cuda/nearest_rows.cuh>
#include <norma/cuda/runtime.cuh>
#include <norma/methods/padim.hpp>
#include <norma/methods/patchcore.hpp>

#include "support/tiny_detector.hpp"

using namespace norma;

namespace {

using PaDiMOnHost = PaDiM<test::TinyNetwork, Cpu<SingleThread>>;
using PaDiMOnDevice = Detector<PaDiMOnHost::Backbone, BasicPositionGaussian<cuda::GaussianAccumulator>, PaDiMOnHost::Metric, Cpu<SingleThread>>;
using OnHost = PatchCore<test::TinyNetwork, Cpu<SingleThread>>;
using OnDevice = Detector<OnHost::Backbone, MemoryBank<cuda::GreedyKCenter, cuda::ExactSearch>, OnHost::Metric, Cpu<SingleThread>>;

template <class DetectorT>
DetectorT fitted() {
  typename DetectorT::Settings settings;
  if constexpr (requires { settings.estimator.projection; }) settings.estimator.projection = Projection::none;
  auto detector = DetectorT::create(test::tiny_weights(), settings);
  REQUIRE_MESSAGE(detector.ok(), detector.message());
  const Status fit = detector->fit(test::TinySource{});
  REQUIRE_MESSAGE(fit.ok(), fit.message());
  return *std::move(detector);
}
template <class DetectorT>
float score(const DetectorT& detector, bool defect) {
  auto workspace = detector.make_workspace();
  const Image picture = test::tiny_picture(1000, defect);
  const auto verdict = detector.inspect(picture.view(), workspace);
  REQUIRE_MESSAGE(verdict.ok(), verdict.message());
  return verdict->score;
}

}  // namespace

TEST_CASE("PatchCore with the coreset and the search on the device equals the host's, and reads its model file") {
  const OnHost host = fitted<OnHost>();
  const OnDevice device = fitted<OnDevice>();
  CHECK(OnHost::type_name() == OnDevice::type_name());
  for (const bool defect : {false, true}) {
    CAPTURE(defect);
    // The same picks, the same neighbours; distances are rounded to float once in both.
    CHECK(std::abs(score(device, defect) - score(host, defect)) <= 1e-6f * score(host, defect));
  }
  CHECK(score(device, true) > score(device, false));

  const auto file = (std::filesystem::temp_directory_path() / "norma_device_detector.norma").string();
  REQUIRE(device.save(file).ok());
  const auto reopened = OnHost::open(file);
  REQUIRE_MESSAGE(reopened.ok(), reopened.message());
  CHECK(std::abs(score(*reopened, true) - score(device, true)) <= 1e-6f * score(device, true));
  std::filesystem::remove(file);
}

TEST_CASE("PaDiM with its covariances and factors on the device equals the host's within the rounding of float, and has its type") {
  const PaDiMOnHost host = fitted<PaDiMOnHost>();
  const PaDiMOnDevice device = fitted<PaDiMOnDevice>();
  CHECK(PaDiMOnHost::type_name() == PaDiMOnDevice::type_name());
  for (const bool defect : {false, true}) {
    CAPTURE(defect);
    // The device factors in float: docs/kernels/covariance.md measures errors up to 1.2e-4 of a distance.
    CHECK(std::abs(score(device, defect) - score(host, defect)) <= 2e-4f * score(host, defect));
  }
  CHECK(score(device, true) > score(device, false));
}
