// CS-Flow with real weights on a few real images, small enough for a test: it learns, its file comes back, and broken bottles score higher.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/backbones/mobilenet_v2.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/data/mvtec_ad.hpp>
#include <norma/methods/csflow.hpp>
#include <support/shared_fixtures.hpp>

namespace norma::test {
namespace {

/// The first images of the training folder.
struct FirstImages {
  const data::MvtecAd& set;
  std::int64_t count;
  [[nodiscard]] std::int64_t size() const { return count; }
  [[nodiscard]] std::string name(std::int64_t i) const { return set.train().name(i); }
  [[nodiscard]] Status status() const { return {}; }
  [[nodiscard]] Result<Image> load(std::int64_t i) const { return set.train().load(i); }
};

TEST_CASE("CS-Flow on bottles") {
  const auto file = shared("weights/mobilenet_v2.safetensors");
  const auto root = shared("data/mvtec_ad");
  if (!file || !root) return;
  using CsFlow = CSFlow<MobileNetV2>;
  CsFlow::Settings settings;
  settings.backbone.preprocess.height = settings.backbone.preprocess.width = 128;
  settings.estimator.hidden_channels = 16;
  settings.estimator.training.epochs = 30;
  settings.estimator.training.batch = 4;
  settings.estimator.training.learning_rate = 3e-3;
  const FeatureShapes shapes = CsFlow::Backbone::shapes(settings.backbone);
  REQUIRE(shapes.count == 3);
  CHECK(shapes[0] == Shape{8, 8, 96});
  CHECK(shapes[2] == Shape{2, 2, 96});

  const auto weights = io::Weights::open(file->string());
  REQUIRE_MESSAGE(weights.ok(), weights.message());
  const auto set = data::MvtecAd::open(root->string(), "bottle", {.masks = data::Masks::optional});
  REQUIRE_MESSAGE(set.ok(), set.message());
  auto detector = CsFlow::create(*weights, settings);
  REQUIRE_MESSAGE(detector.ok(), detector.message());
  const Status fitted = detector->fit(FirstImages{*set, 24}, {.seed = 1, .threads = 1});
  REQUIRE_MESSAGE(fitted.ok(), fitted.message());
  const std::vector<float>& loss = detector->training()->loss;
  REQUIRE(loss.size() == 30);
  CHECK(loss.back() < loss.front() - 0.2f);

  const TemporaryFolder folder;
  const std::string path = (folder.path() / "bottle.norma").string();
  REQUIRE(detector->save(path).ok());
  const auto opened = CsFlow::open(path);
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  auto workspace = opened->make_workspace(), own = detector->make_workspace();
  // Every fourth test image. A broken bottle scores higher than a good one in most of the pairs; half of them would be chance.
  std::vector<float> good, broken;
  for (std::size_t i = 0; i < set->test().size(); i += 4) {
    const auto image = set->load(static_cast<std::int64_t>(i));
    REQUIRE(image.ok());
    const auto verdict = opened->inspect(*image, workspace);
    REQUIRE_MESSAGE(verdict.ok(), verdict.message());
    (set->test()[i].label == 0 ? good : broken).push_back(verdict->score);
    if (i == 0) CHECK(detector->inspect(*image, own)->score == verdict->score);
  }
  REQUIRE(good.size() >= 4);
  REQUIRE(broken.size() >= 12);
  std::int64_t right = 0;
  for (const float g : good) right += std::count_if(broken.begin(), broken.end(), [&](float b) { return b > g; });
  const double share = static_cast<double>(right) / static_cast<double>(good.size() * broken.size());
  CAPTURE(share);
  CHECK(share >= 0.75);
}

}  // namespace
}  // namespace norma::test
