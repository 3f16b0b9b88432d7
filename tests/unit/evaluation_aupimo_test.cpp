// AUPIMO: hand check, refusals, errors.
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/core/tensor.hpp>
#include <norma/evaluation/aupimo.hpp>

namespace {

namespace evaluation = norma::evaluation;

struct Images {
  std::vector<norma::Map<float>> maps;
  std::vector<norma::Map<std::uint8_t>> masks;
  [[nodiscard]] norma::Result<evaluation::Aupimo> aupimo(const evaluation::AupimoOptions& options = {}) const {
    std::vector<norma::MapView<const float>> map_views;
    std::vector<norma::MapView<const std::uint8_t>> mask_views;
    for (const auto& map : maps) map_views.push_back(map.view());
    for (const auto& mask : masks) mask_views.push_back(mask.view());
    return evaluation::aupimo(map_views, mask_views, options);
  }
};

/// `normal` images of uniform scores in [0, 1), then one image whose mask is its upper half. Of every `one_in` mask pixels one scores 2.
Images images(std::int64_t normal, std::int64_t side, std::int64_t one_in) {
  norma::Random random(99);
  Images out;
  for (std::int64_t i = 0; i <= normal; ++i) {
    out.maps.emplace_back(side, side);
    out.masks.emplace_back(side, side);
    for (std::int64_t p = 0; p < side * side; ++p) {
      const bool inside = i == normal && p < side * side / 2;
      out.masks.back().data()[p] = inside ? 1 : 0;
      out.maps.back().data()[p] = inside ? (p % one_in == 0 ? 2.0f : -1.0f) : static_cast<float>(random.uniform());
    }
  }
  return out;
}

}  // namespace

TEST_CASE("a constant recall c gives c ln(Fa / Fb) / ln(u / l)") {
  for (const std::int64_t one_in : {1, 2, 4}) {
    CAPTURE(one_in);
    const evaluation::AupimoOptions options{.thresholds = 20'000, .lower = 0.01, .upper = 0.1};
    auto got = images(3, 64, one_in).aupimo(options);
    REQUIRE_MESSAGE(got.ok(), got.message());
    REQUIRE(got->per_image.size() == 4);
    CHECK(!got->per_image[0]);
    REQUIRE(got->per_image[3].has_value());
    const double want = std::log(got->upper_rate / got->lower_rate) / std::log(10.0) / static_cast<double>(one_in);
    CHECK(std::abs(*got->per_image[3] - std::min(1.0, want)) <= 1e-12);
    CHECK(got->mean == got->per_image[3]);
    // One of 3 * 64 * 64 pixels is the finest step of the shared rate.
    CHECK(std::abs(got->upper_rate - 0.1) <= 1.0 / (3 * 64 * 64));
    CHECK(std::abs(got->lower_rate - 0.01) <= 1.0 / (3 * 64 * 64));
    CHECK(got->warning.empty());
  }
}

TEST_CASE("too few points are refused, or accepted with a warning") {
  const Images few = images(2, 16, 1);
  const evaluation::AupimoOptions narrow{.thresholds = 100, .lower = 0.01, .upper = 0.1};
  auto refused = few.aupimo(narrow);
  CHECK(refused.code() == norma::Errc::not_enough_data);
  CHECK(refused.message().find("expected more than 30, found ") != std::string::npos);
  evaluation::AupimoOptions forced = narrow;
  forced.few_points = evaluation::FewPoints::accept;
  auto accepted = few.aupimo(forced);
  REQUIRE(accepted.ok());
  CHECK(accepted->points <= 30);
  CHECK(accepted->mean.has_value());
  CHECK(accepted->warning.find("fewer than the advised 300") != std::string::npos);
}

TEST_CASE("where the normal scores leave no range there is no value") {
  Images flat = images(2, 16, 1);
  for (std::size_t i = 0; i < 2; ++i) {
    for (std::int64_t p = 0; p < 256; ++p) flat.maps[i].data()[p] = 0.5f;
  }
  auto got = flat.aupimo();
  REQUIRE_MESSAGE(got.ok(), got.message());
  CHECK(!got->mean);
  CHECK(!got->per_image[2]);
  CHECK(got->warning.find("undefined") != std::string::npos);
}

TEST_CASE("anomalous images alone are not enough; normal ones alone have no mean") {
  Images only_anomalous = images(1, 16, 1);
  only_anomalous.maps.erase(only_anomalous.maps.begin());
  only_anomalous.masks.erase(only_anomalous.masks.begin());
  CHECK(only_anomalous.aupimo().code() == norma::Errc::not_enough_data);
  Images only_normal = images(3, 64, 1);
  only_normal.maps.pop_back();
  only_normal.masks.pop_back();
  auto got = only_normal.aupimo({.thresholds = 20'000, .lower = 0.01, .upper = 0.1});
  REQUIRE_MESSAGE(got.ok(), got.message());
  CHECK(!got->mean);
}

TEST_CASE("errors") {
  Images broken = images(1, 16, 1);
  CHECK(broken.aupimo({.thresholds = 1}).code() == norma::Errc::invalid_argument);
  CHECK(broken.aupimo({.lower = 0.1, .upper = 0.1}).code() == norma::Errc::invalid_argument);
  CHECK(broken.aupimo({.lower = 0.0}).code() == norma::Errc::invalid_argument);
  broken.maps[1](2, 3) = std::numeric_limits<float>::infinity();
  auto infinite = broken.aupimo();
  CHECK(infinite.code() == norma::Errc::not_finite);
  CHECK(infinite.message().find("image 1 at row 2, column 3") != std::string::npos);
  broken.masks[0] = norma::Map<std::uint8_t>(16, 15);
  CHECK(broken.aupimo().code() == norma::Errc::shape_mismatch);
}
