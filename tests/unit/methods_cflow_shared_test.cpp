// methods/cflow.hpp: from pictures to verdicts, on real pictures.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <norma/backbones/mobilenet_v2.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/data/in_memory.hpp>
#include <norma/data/mvtec_ad.hpp>
#include <norma/evaluation/ranking.hpp>
#include <norma/methods/cflow.hpp>
#include <support/shared_fixtures.hpp>

namespace norma::test {
namespace {

TEST_CASE("CFlow: a few epochs on a few pictures tell broken bottles from whole ones; a saved model gives the same verdicts") {
  const auto weights_file = shared("weights/mobilenet_v2.safetensors");
  const auto folder = shared("data/mvtec_ad");
  if (!weights_file || !folder) return;
  const auto weights = io::Weights::open(weights_file->string());
  REQUIRE_MESSAGE(weights.ok(), weights.message());
  const auto bottle = data::MvtecAd::open(folder->string(), "bottle", {.masks = data::Masks::optional});
  REQUIRE_MESSAGE(bottle.ok(), bottle.message());

  using Bottles = CFlow<MobileNetV2>;
  Bottles::Settings settings;  // small enough for a test: two layers, small pictures, short flows
  settings.backbone.layers = Layers("features.6", "features.13");
  settings.backbone.preprocess.height = settings.backbone.preprocess.width = 128;
  settings.estimator.training.epochs = 8;
  settings.estimator.training.batch = 8;
  settings.estimator.training.learning_rate = 1e-3;
  settings.estimator.flow_steps = 4;
  settings.estimator.fibers = 64;
  auto detector = Bottles::create(*weights, settings);
  REQUIRE_MESSAGE(detector.ok(), detector.message());
  std::vector<Image> normal;
  for (std::int64_t i = 0; i < 24; ++i) {
    auto image = bottle->train().load(i);
    REQUIRE_MESSAGE(image.ok(), image.message());
    normal.push_back(*std::move(image));
  }
  const Status fitted = detector->fit(data::InMemory(std::move(normal)), {.threads = 1});
  REQUIRE_MESSAGE(fitted.ok(), fitted.message());
  const auto& loss = detector->estimator().record().loss;
  REQUIRE(loss.size() == 8);
  CHECK(loss.back() < loss.front() - 0.2f);

  const TemporaryFolder temporary;
  const std::string model = (temporary.path() / "bottle.norma").string();
  REQUIRE(detector->save(model).ok());
  const auto opened = Bottles::open(model);
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  CHECK(opened->self_test().ok());

  auto workspace = detector->make_workspace(), other = opened->make_workspace();
  std::vector<float> scores;
  std::vector<std::uint8_t> labels;
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(bottle->test().size()); ++i) {
    const auto image = bottle->load(i);
    REQUIRE_MESSAGE(image.ok(), image.message());
    const auto verdict = detector->inspect(*image, workspace);
    REQUIRE_MESSAGE(verdict.ok(), verdict.message());
    scores.push_back(verdict->score);
    labels.push_back(bottle->test()[static_cast<std::size_t>(i)].label);
    if (i % 20 != 0) continue;
    const auto again = opened->inspect(*image, other);
    REQUIRE_MESSAGE(again.ok(), again.message());
    CHECK(again->score == verdict->score);
    CHECK(std::equal(verdict->map.data, verdict->map.data + verdict->map.count(), again->map.data));
  }
  const auto auroc = evaluation::auroc(std::span<const float>(scores), labels);
  REQUIRE_MESSAGE(auroc.ok(), auroc.message());
  REQUIRE(auroc->has_value());
  MESSAGE("image AUROC of a training of seconds, MobileNetV2 at 128 x 128: " << **auroc);
  CHECK(**auroc > 0.85);  // 0.938 to 0.975 for six seeds
}

}  // namespace
}  // namespace norma::test
