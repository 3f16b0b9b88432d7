// The evaluation protocol as a whole, on drawn images and a tiny network.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/data/generate.hpp>
#include <norma/evaluation/evaluate.hpp>
#include <norma/methods/padim.hpp>

#include "support/shared_fixtures.hpp"
#include "support/tiny_detector.hpp"

namespace {

using namespace norma;
using namespace norma::test;
using D = PaDiM<TinyNetwork>;

struct Fixture {
  TemporaryFolder folder;
  Fixture() {
    const auto made = data::generate(folder.path().string(), {.seed = 3, .size = 64, .train = 10, .test_good = 4, .test_per_kind = 2, .categories = {"disc"}});
    REQUIRE_MESSAGE(made.ok(), made.message());
  }
  [[nodiscard]] data::MvtecAd open() const {
    auto set = data::MvtecAd::open(folder.path().string(), "disc", {.masks = data::Masks::optional});
    REQUIRE_MESSAGE(set.ok(), set.message());
    return *std::move(set);
  }
  [[nodiscard]] static D fitted(const data::MvtecAd& set) {
    D::Settings settings;
    settings.backbone.embedding.feature_dims = 12;
    auto detector = D::create(tiny_weights(), settings);
    REQUIRE_MESSAGE(detector.ok(), detector.message());
    REQUIRE(detector->fit(set.train(), {.threads = 1}).ok());
    return *std::move(detector);
  }
};

TEST_CASE_FIXTURE(Fixture, "every test image is scored once, figures are fractions, masks stay with their images") {
  const auto set = open();
  const D detector = fitted(set);
  const auto report = evaluation::evaluate(detector, set, {.threads = 1});
  REQUIRE_MESSAGE(report.ok(), report.message());
  CHECK(report->normal == 4);
  CHECK(report->anomalous == 8);
  CHECK(report->images.size() == set.test().size());
  CHECK(report->pixel_images == 12);
  CHECK(report->regions >= 8);
  for (const auto& figure : {report->image.auroc, report->pixel.auroc, report->au_pro_30, report->au_pro_05}) {
    REQUIRE(figure);
    CHECK((*figure >= 0.0 && *figure <= 1.0));
  }
  // Drawn spots and cuts are found far better than by chance only if every mask is its own image's.
  CHECK(*report->pixel.auroc > 0.7);
  CHECK(report->latency.p50 > 0.0);
  CHECK(report->latency.p99 >= report->latency.p50);
  const auto original = evaluation::evaluate(detector, set, {.threads = 2, .resolution = evaluation::Resolution::original});
  REQUIRE(original.ok());
  CHECK(*original->image.auroc == *report->image.auroc);
  CHECK(original->pixel_images == 12);
}

TEST_CASE_FIXTURE(Fixture, "a broken test image is listed and changes nothing for the others") {
  const auto whole = open();
  const D detector = fitted(whole);
  const auto before = evaluation::evaluate(detector, whole, {.threads = 1});
  REQUIRE(before.ok());
  const std::string victim = whole.test()[5].path;
  std::ofstream(victim, std::ios::binary) << "not a picture";
  const auto report = evaluation::evaluate(detector, open(), {.threads = 1});
  REQUIRE(report.ok());
  REQUIRE(report->broken.size() == 1);
  CHECK(report->broken[0].path == victim);
  CHECK(report->broken[0].reason.message().find(victim) != std::string::npos);
  REQUIRE(report->images.size() + 1 == before->images.size());
  for (std::size_t i = 0, j = 0; i < before->images.size(); ++i) {
    if (before->images[i].path == victim) continue;
    CHECK(report->images[j].path == before->images[i].path);
    CHECK(report->images[j++].score == before->images[i].score);
  }
  CHECK(report->pixel_images == 11);
}

TEST_CASE_FIXTURE(Fixture, "what a caller does with an image can stop the evaluation, and its error is returned") {
  const auto set = open();
  const D detector = fitted(set);
  int seen = 0;
  evaluation::EvaluateOptions options{.threads = 1};
  options.on_image = [&](const evaluation::ImageResult&, const Image&) -> Status {
    return ++seen == 3 ? Status{Errc::io_error, "the disk is full"} : Status{};
  };
  const auto report = evaluation::evaluate(detector, set, options);
  CHECK(report.code() == Errc::io_error);
  CHECK(seen == 3);
}

TEST_CASE_FIXTURE(Fixture, "threads, and images at once, change times alone: results, their order and the errors stay") {
  std::ofstream(open().test()[3].path, std::ios::binary) << "not a picture";
  std::ofstream(*open().test()[6].mask_path, std::ios::binary) << "not a mask";
  std::ofstream(open().test()[9].path, std::ios::binary) << "nor is this";
  const auto set = open();
  const D detector = fitted(set);
  const auto one = evaluation::evaluate(detector, set, {.threads = 1});
  REQUIRE_MESSAGE(one.ok(), one.message());
  REQUIRE(one->broken.size() == 3);
  CHECK(one->broken[1].reason.message().find(*set.test()[6].mask_path) != std::string::npos);
  for (const int threads : {1, 2, 3, 5, 16}) {
    for (const int at_once : {0, 1, 2, 3, 100}) {
      CAPTURE(threads);
      CAPTURE(at_once);
      std::vector<std::string> seen;
      evaluation::EvaluateOptions options{.threads = threads, .images_at_once = at_once};
      options.on_image = [&](const evaluation::ImageResult& image, const Image& frame) -> Status {
        CHECK(frame.height() == image.height);
        seen.push_back(image.path);
        return {};
      };
      const auto report = evaluation::evaluate(detector, set, options);
      REQUIRE_MESSAGE(report.ok(), report.message());
      const int expected = at_once == 0 ? threads : std::min(at_once, threads);
      CHECK(report->threads == threads);
      CHECK(report->images_at_once == expected);
      CHECK(report->threads_per_image == threads / expected);
      CHECK(report->workspace_bytes >= static_cast<std::size_t>(expected) * D::workspace_bytes(detector.settings(), 1));
      REQUIRE(report->broken.size() == 3);
      for (std::size_t i = 0; i < 3; ++i) {
        CHECK(report->broken[i].path == one->broken[i].path);
        CHECK(report->broken[i].reason.message() == one->broken[i].reason.message());
      }
      REQUIRE(report->images.size() == one->images.size());
      REQUIRE(seen.size() == one->images.size());
      for (std::size_t i = 0; i < seen.size(); ++i) {
        const auto& image = report->images[i];
        CHECK(seen[i] == one->images[i].path);
        CHECK(image.path == one->images[i].path);
        CHECK(image.score == one->images[i].score);
        CHECK(image.has_mask == one->images[i].has_mask);
        CHECK(std::equal(image.map.data(), image.map.data() + image.map.rows() * image.map.cols(), one->images[i].map.data()));
      }
      CHECK(report->pixel.auroc == one->pixel.auroc);
      CHECK(report->au_pro_30 == one->au_pro_30);
      CHECK(report->regions == one->regions);
    }
  }
}

TEST_CASE_FIXTURE(Fixture, "times: every stage that there is, percentiles in order, means that add up") {
  const auto set = open();
  const D detector = fitted(set);
  for (const int at_once : {1, 2}) {
    const auto report = evaluation::evaluate(detector, set, {.threads = 2, .images_at_once = at_once});
    REQUIRE(report.ok());
    double sum = 0.0;
    for (std::size_t s = 0; s < report->stages.size(); ++s) {
      CAPTURE(kStageNames[s]);
      const auto& stage = report->stages[s];
      CHECK(stage.mean > 0.0);
      CHECK(stage.p50 <= stage.p99);
      CHECK(stage.p99 <= report->latency.p99);
      sum += stage.mean;
    }
    CHECK(std::abs(sum - report->latency.mean) <= 1e-9 * sum);
    for (const auto& image : report->images) CHECK(image.times[Stage::read] > 0.0);
  }
}

TEST_CASE_FIXTURE(Fixture, "a request to stop is followed between two images, one at a time or several") {
  const auto set = open();
  const D detector = fitted(set);
  for (const int at_once : {1, 2}) {
    std::atomic<bool> stop{false};
    std::size_t seen = 0;
    evaluation::EvaluateOptions options{.threads = 2, .images_at_once = at_once};
    options.observer.cancel = &stop;
    options.on_image = [&](const evaluation::ImageResult&, const Image&) -> Status {
      if (++seen == 3) stop = true;
      return {};
    };
    const auto report = evaluation::evaluate(detector, set, options);
    CHECK(report.code() == Errc::cancelled);
    CHECK(report.message().find("3 of 12") != std::string::npos);
    CHECK(seen == 3);
  }
}

TEST_CASE_FIXTURE(Fixture, "an empty detector and a set without usable images are refused") {
  const auto set = open();
  D::Settings settings;
  settings.backbone.embedding.feature_dims = 12;
  const auto empty = D::create(tiny_weights(), settings);
  REQUIRE(empty.ok());
  CHECK(evaluation::evaluate(*empty, set).code() == Errc::not_fitted);
  const D detector = fitted(set);
  for (const auto& sample : set.test()) std::ofstream(sample.path, std::ios::binary) << "x";
  CHECK(evaluation::evaluate(detector, open()).code() == Errc::not_enough_data);
}

}  // namespace
