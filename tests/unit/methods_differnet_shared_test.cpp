// DifferNet with pretrained networks on photographs: a small run from folder to scores, and gradients through real weights.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/backbones/any_network.hpp>
#include <norma/backbones/mobilenet_v2.hpp>
#include <norma/backbones/squeezenet.hpp>
#include <norma/data/mvtec_ad.hpp>
#include <norma/methods/score_gradient.hpp>

#include "support/shared_fixtures.hpp"

using namespace norma;

namespace {

// Every `step`-th training image.
struct Some {
  const data::MvtecAd& set;
  std::int64_t step = 1;
  [[nodiscard]] std::int64_t size() const { return set.train().size() / step; }
  [[nodiscard]] std::string name(std::int64_t i) const { return set.train().name(i * step); }
  [[nodiscard]] Status status() const { return {}; }
  [[nodiscard]] Result<Image> load(std::int64_t i) const { return set.train().load(i * step); }
};

template <class D>
typename D::Settings small() {
  typename D::Settings settings;
  settings.backbone.preprocess.height = settings.backbone.preprocess.width = 128;
  settings.backbone.scales.rotations = 8;
  settings.estimator.training.epochs = 40;
  settings.estimator.training.batch = 8;
  settings.estimator.training.learning_rate = 1e-3;
  settings.estimator.turns = 4;
  settings.estimator.pooled_turns = 8;
  settings.estimator.flow_steps = 4;
  settings.estimator.flow_width = 32;
  return settings;
}

}  // namespace

TEST_CASE("DifferNet finds broken bottles after a small training") {
  using D = DifferNet<SqueezeNet1_1>;
  const auto folder = test::shared("data/mvtec_ad/bottle"), file = test::shared("weights/squeezenet1_1.safetensors");
  if (!folder || !file) return;
  const auto set = data::MvtecAd::open(folder->string(), {}, {.masks = data::Masks::optional});
  REQUIRE_MESSAGE(set.ok(), set.message());
  const auto weights = io::Weights::open(file->string());
  REQUIRE(weights.ok());
  auto detector = D::create(*weights, small<D>());
  REQUIRE_MESSAGE(detector.ok(), detector.message());
  const Status fitted = detector->fit(Some{*set, 8}, {.threads = 2});
  REQUIRE_MESSAGE(fitted.ok(), fitted.message());
  const auto& loss = detector->estimator().record().loss;
  REQUIRE(loss.size() == 40);
  CHECK(loss.back() < loss.front() - 0.5f);

  auto workspace = detector->make_workspace(2);
  std::vector<float> good, broken;
  for (std::size_t i = 0; i < set->test().size(); ++i) {
    const auto& sample = set->test()[i];
    if (sample.kind != "good" && sample.kind != "broken_large") continue;
    const auto frame = set->load(static_cast<std::int64_t>(i));
    REQUIRE(frame.ok());
    const auto verdict = detector->inspect(*frame, workspace);
    REQUIRE_MESSAGE(verdict.ok(), verdict.message());
    (sample.label == 0 ? good : broken).push_back(verdict->score);
  }
  double above = 0.0;
  for (const float b : broken) {
    for (const float g : good) above += b > g ? 1.0 : b == g ? 0.5 : 0.0;
  }
  const double auroc = above / static_cast<double>(good.size() * broken.size());
  MESSAGE("good against broken_large, a small training: AUROC " << auroc);
  CHECK(auroc >= 0.8);
}

TEST_CASE("ImageScales with a network chosen at run time gives the bits of the static one") {
  const auto file = test::shared("weights/squeezenet1_1.safetensors"), folder = test::shared("data/mvtec_ad/bottle");
  if (!file || !folder) return;
  const auto set = data::MvtecAd::open(folder->string(), {}, {.masks = data::Masks::optional});
  const auto weights = io::Weights::open(file->string());
  REQUIRE((set.ok() && weights.ok()));
  const auto frame = set->load(0);
  REQUIRE(frame.ok());
  const auto features = [&]<class B>(std::type_identity<B>, typename B::Settings settings) {
    settings.preprocess.height = settings.preprocess.width = 128;
    settings.scales.rotations = 3;
    const auto backbone = B::create(*weights, settings);
    REQUIRE_MESSAGE(backbone.ok(), backbone.message());
    Buffer<std::byte> memory(static_cast<std::int64_t>(B::scratch_bytes(settings, 1)));
    Arena arena(memory.span());
    Context context{arena};
    Features out;
    REQUIRE(backbone->extract(frame->view(), out, context).ok());
    REQUIRE(out[0].shape() == Shape{3, 1, 1536});
    return std::vector<float>(out[0].data, out[0].data + out[0].count());
  };
  using Any = ImageScales<AnyNetwork, PooledScales>;
  using Static = ImageScales<SqueezeNet1_1, PooledScales>;
  const auto network = AnyNetwork::find("squeezenet1_1");
  REQUIRE(network.ok());
  CHECK(Any::type_name(Any::Settings(*network)) == Static::type_name({}));
  CHECK(features(std::type_identity<Any>{}, Any::Settings(*network)) == features(std::type_identity<Static>{}, {}));
}

TEST_CASE("ScoreGradient has the detector's score, with batch norms folded into the weights as well") {
  const auto folder = test::shared("data/mvtec_ad/bottle");
  if (!folder) return;
  const auto set = data::MvtecAd::open(folder->string(), {}, {.masks = data::Masks::optional});
  REQUIRE(set.ok());
  const auto check = [&]<class D>(std::type_identity<D>, const std::string& name) {
    const auto file = test::shared("weights/" + name + ".safetensors");
    if (!file) return;
    const auto weights = io::Weights::open(file->string());
    REQUIRE(weights.ok());
    auto settings = small<D>();
    settings.backbone.scales.rotations = 1;
    settings.backbone.layers = Layers("features.7");
    settings.estimator.training.epochs = 2;
    auto detector = D::create(*weights, settings);
    REQUIRE_MESSAGE(detector.ok(), detector.message());
    REQUIRE(detector->fit(Some{*set, 50}, {.threads = 2}).ok());
    const auto frame = set->load(0);
    REQUIRE(frame.ok());
    auto workspace = detector->make_workspace();
    const auto verdict = detector->inspect(*frame, workspace);
    REQUIRE(verdict.ok());
    auto gradient = ScoreGradient::create(*detector);
    REQUIRE_MESSAGE(gradient.ok(), gradient.message());
    Tensor<float> input(1, 128, 128, 3), slope(1, 128, 128, 3);
    Image prepared;
    REQUIRE(image::crop(settings.backbone.preprocess, frame->view(), prepared).ok());
    REQUIRE(image::normalise(settings.backbone.preprocess, prepared.view(), input.view()).ok());
    const auto score = gradient->of_input(std::as_const(input).view(), slope.view());
    REQUIRE_MESSAGE(score.ok(), score.message());
    // Networks of some twenty layers, added up in another order.
    CHECK(std::abs(*score - static_cast<double>(verdict->score)) <= 1e-3 * static_cast<double>(verdict->score));
    double length = 0.0;
    for (std::int64_t i = 0; i < slope.view().count(); ++i) length += std::abs(static_cast<double>(slope.data()[i]));
    CHECK(length > 0.0);
    const auto map = gradient_map(*detector, frame->view(), 2);
    REQUIRE(map.ok());
    CHECK(*std::max_element(map->data(), map->data() + 128 * 128) > 0.0f);
  };
  check(std::type_identity<DifferNet<SqueezeNet1_1>>{}, "squeezenet1_1");
  check(std::type_identity<DifferNet<MobileNetV2>>{}, "mobilenet_v2");
}
