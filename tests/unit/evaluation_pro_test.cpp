// AU-PRO: the worked example, edge cases, errors.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <norma/evaluation/pro.hpp>

namespace {

namespace evaluation = norma::evaluation;
using evaluation::PixelRanking;
using evaluation::ProRule;

struct Images {
  std::vector<norma::Map<float>> maps;
  std::vector<norma::Map<std::uint8_t>> masks;
  void add(std::int64_t height, std::int64_t width, const std::vector<float>& scores, const std::vector<int>& mask) {
    maps.emplace_back(height, width);
    masks.emplace_back(height, width);
    for (std::size_t i = 0; i < scores.size(); ++i) {
      maps.back().data()[i] = scores[i];
      masks.back().data()[i] = static_cast<std::uint8_t>(mask[i]);
    }
  }
  [[nodiscard]] std::vector<norma::MapView<const float>> map_views() const {
    std::vector<norma::MapView<const float>> views;
    for (const auto& map : maps) views.push_back(map.view());
    return views;
  }
  [[nodiscard]] std::vector<norma::MapView<const std::uint8_t>> mask_views() const {
    std::vector<norma::MapView<const std::uint8_t>> views;
    for (const auto& mask : masks) views.push_back(mask.view());
    return views;
  }
  [[nodiscard]] norma::Result<PixelRanking> ranking() const { return PixelRanking::create(map_views(), mask_views()); }
};

Images worked_example() {
  Images images;
  images.add(3, 4, {9, 4, 8, 3, 2, 1, 0, 5, 2, 3, 1, 7}, {1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1});
  return images;
}

double value(const norma::Result<std::optional<double>>& result) {
  REQUIRE_MESSAGE(result.ok(), result.message());
  REQUIRE(result->has_value());
  return **result;
}

}  // namespace

TEST_CASE("the worked example") {
  auto pixels = worked_example().ranking();
  REQUIRE_MESSAGE(pixels.ok(), pixels.message());
  CHECK(pixels->regions() == 2);
  CHECK(pixels->region_size(0) == 2);
  CHECK(pixels->region_size(1) == 1);
  CHECK(pixels->normal_pixels() == 9);
  CHECK(std::abs(value(pixels->au_pro()) - 0.6296296296296297) <= 1e-15);
  CHECK(std::abs(value(pixels->au_pro({.limit = 0.05})) - 0.25) <= 1e-15);
  CHECK(std::abs(value(pixels->au_pro({.limit = 1.0})) - 8.0 / 9.0) <= 1e-15);
  for (const std::int64_t thresholds : {9, 100, 1000}) {
    CHECK(std::abs(value(pixels->au_pro({.rule = ProRule::sampled, .thresholds = thresholds})) - 0.7685185185185185) <= 1e-14);
    CHECK(std::abs(value(pixels->au_pro({.limit = 0.05, .rule = ProRule::sampled, .thresholds = thresholds})) - 0.3625) <= 1e-14);
  }
  CHECK(std::abs(*pixels->ranking().auroc() - 8.0 / 9.0) <= 1e-15);
  CHECK(pixels->ranking().f1_max()->value == 0.75);  // at 4: three of five predicted pixels are right
  CHECK(pixels->ranking().f1_max()->threshold == 4.0);
  auto direct = evaluation::au_pro(worked_example().map_views(), worked_example().mask_views());
  CHECK(direct.code() == norma::Errc::ok);
}

TEST_CASE("all scores equal: L / 2 by the exact rule, 0 by the sampled rule") {
  Images images;
  images.add(4, 4, std::vector<float>(16, 0.25f), {0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0});
  auto pixels = images.ranking();
  REQUIRE(pixels.ok());
  for (const double limit : {0.05, 0.3, 1.0}) {
    CHECK(std::abs(value(pixels->au_pro({.limit = limit})) - 0.5 * limit) <= 1e-15);
    if (limit < 1.0) CHECK(value(pixels->au_pro({.limit = limit, .rule = ProRule::sampled})) == 0.0);
  }
}

TEST_CASE("without a region or a normal pixel there is no value") {
  Images no_region, no_normal;
  no_region.add(2, 2, {1, 2, 3, 4}, {0, 0, 0, 0});
  no_normal.add(2, 2, {1, 2, 3, 4}, {1, 1, 1, 1});
  for (const Images& images : {no_region, no_normal, Images()}) {
    auto pixels = images.ranking();
    REQUIRE(pixels.ok());
    for (const ProRule rule : {ProRule::exact, ProRule::sampled}) {
      auto got = pixels->au_pro({.rule = rule});
      REQUIRE(got.ok());
      CHECK(!got->has_value());
    }
    CHECK(pixels->exact_curve().overlap.empty());
    REQUIRE(pixels->sampled_curve().ok());
    CHECK(pixels->sampled_curve()->overlap.empty());
    CHECK(!pixels->ranking().auroc());
  }
}

TEST_CASE("one normal pixel is enough") {
  Images images;
  images.add(1, 2, {2, 1}, {1, 0});
  auto pixels = images.ranking();
  REQUIRE(pixels.ok());
  CHECK(value(pixels->au_pro()) == 1.0);
  CHECK(value(pixels->au_pro({.rule = ProRule::sampled})) == 1.0);
}

TEST_CASE("infinite scores are ordered as usual") {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Images images;
  images.add(2, 3, {kInfinity, 1, -kInfinity, 0, 5, kInfinity}, {1, 0, 0, 0, 0, 0});
  auto pixels = images.ranking();
  REQUIRE(pixels.ok());
  // The region ties with one of five normal pixels: half of the first fifth is lost.
  CHECK(std::abs(value(pixels->au_pro({.limit = 1.0})) - 0.9) <= 1e-15);
}

TEST_CASE("errors name the image") {
  Images images = worked_example();
  images.add(2, 2, {1, 2, 3, 4}, {0, 0, 0, 0});
  images.maps[1](1, 0) = std::numeric_limits<float>::quiet_NaN();
  auto nan = images.ranking();
  CHECK(nan.code() == norma::Errc::not_finite);
  CHECK(nan.message().find("image 1 is NaN at row 1, column 0") != std::string::npos);
  images.masks[1] = norma::Map<std::uint8_t>(2, 3);
  auto size = images.ranking();
  CHECK(size.code() == norma::Errc::shape_mismatch);
  CHECK(size.message().find("image 1, expected 2x2 like its map, found 2x3") != std::string::npos);
  auto count = PixelRanking::create(images.map_views(), std::vector<norma::MapView<const std::uint8_t>>());
  CHECK(count.code() == norma::Errc::shape_mismatch);

  auto pixels = worked_example().ranking();
  REQUIRE(pixels.ok());
  for (const double limit : {0.0, -1.0, 1.5, std::numeric_limits<double>::quiet_NaN()}) {
    CHECK(pixels->au_pro({.limit = limit}).code() == norma::Errc::invalid_argument);
  }
  CHECK(pixels->au_pro({.rule = ProRule::sampled, .thresholds = 1}).code() == norma::Errc::invalid_argument);
}
