// Real data sets where they exist beside the checkout: counts, masks, sizes.
#include <algorithm>
#include <string>

#include <doctest/doctest.h>

#include <norma/data/mvtec_ad.hpp>

#include "../support/shared_fixtures.hpp"

namespace {
using norma::data::Masks;
using norma::data::MvtecAd;
}  // namespace

TEST_CASE("bottle: the official split, without masks") {
  const auto root = norma::test::shared("data/mvtec_ad");
  if (!root) return;
  auto strict = MvtecAd::open(root->string(), "bottle");
  CHECK(strict.code() == norma::Errc::not_found);
  auto set = MvtecAd::open(root->string(), "bottle", {.masks = Masks::optional});
  REQUIRE_MESSAGE(set.ok(), set.message());
  CHECK(set->counts().train == 209);
  CHECK(set->counts().test_good == 20);
  CHECK(set->counts().test_anomalous == 63);
  CHECK(set->counts().masks == 0);
  auto image = set->load(0);
  REQUIRE_MESSAGE(image.ok(), image.message());
  CHECK(image->height() == 900);
  CHECK(image->width() == 900);
  CHECK(image->channels() == 3);
}

TEST_CASE("magnetic tiles: masks that once were JPEG, images of many sizes") {
  const auto root = norma::test::shared("data");
  if (!root || !norma::test::shared("data/mtd")) return;
  auto set = MvtecAd::open(root->string(), "mtd");
  REQUIRE_MESSAGE(set.ok(), set.message());
  CHECK(set->counts().train == 762);
  CHECK(set->counts().test_good == 190);
  CHECK(set->counts().test_anomalous == 392);
  CHECK(set->counts().masks == 392);
  CHECK(set->warnings().empty());
  std::int64_t empty = 0;
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(set->test().size()); ++i) {
    const auto& sample = set->test()[static_cast<std::size_t>(i)];
    if (sample.label == 0) continue;
    auto mask = set->load_mask(i);
    REQUIRE_MESSAGE(mask.ok(), mask.message());
    empty += set->mask_warning(i, mask->view()) ? 1 : 0;
    // The rule is >= 128 for every mask that holds such a value: compare on the stored bytes of a few.
    if (i % 50 != 0) continue;
    auto stored = norma::image::read(*sample.mask_path);
    REQUIRE(stored.ok());
    std::int64_t wrong = 0;
    for (std::int64_t p = 0; p < stored->size_bytes(); ++p) wrong += (mask->data()[p] == 1) != (stored->data()[p] >= 128) ? 1 : 0;
    CHECK(wrong == 0);
  }
  CHECK(empty == 4);
}
