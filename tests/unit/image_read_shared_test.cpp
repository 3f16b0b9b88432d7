// Real photographs: all of a folder decode, and preprocessing keeps their brightness.
#include <cmath>
#include <filesystem>

#include <doctest/doctest.h>

#include <norma/image/decode.hpp>
#include <norma/image/preprocess.hpp>

#include "support/shared_fixtures.hpp"

using namespace norma;

TEST_CASE("photographs of bottles decode and keep their mean through preprocessing") {
  const auto folder = test::shared("data/mvtec_ad/bottle/test/good");
  if (!folder) return;
  Preprocess settings{.resize = 0, .mean = {0, 0, 0}, .stddev = {1, 1, 1}};
  Buffer<std::byte> memory(static_cast<std::int64_t>(image::preprocess_scratch_bytes(settings)));
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(*folder)) {
    const auto image = image::read(entry.path().string());
    REQUIRE_MESSAGE(image.ok(), image.message());
    CHECK(image->height() == 900);
    CHECK(image->channels() == 3);
    Tensor<float> out(1, 224, 224, 3);
    Arena arena(memory.span());
    REQUIRE(image::preprocess(settings, image->view(), out.view(), arena).ok());
    double before = 0, after = 0;
    for (std::int64_t i = 0; i < image->size_bytes(); ++i) before += image->data()[i];
    for (std::int64_t i = 0; i < out.view().count(); ++i) after += out.data()[i];
    before /= static_cast<double>(image->size_bytes());
    after /= static_cast<double>(out.view().count());
    CHECK(std::abs(before - after) <= 0.5);  // weights near the border sum to 1 too, so each sample counts about alike
    ++count;
  }
  CHECK(count == 20);
}

TEST_CASE("gray photographs of tiles and their masks decode as one channel") {
  const auto folder = test::shared("data/mtd");
  if (!folder) return;
  int photographs = 0, masks = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(*folder / "test" / "blowhole")) {
    const auto image = image::read(entry.path().string());
    REQUIRE_MESSAGE(image.ok(), image.message());
    CHECK(image->channels() == 1);
    ++photographs;
  }
  for (const auto& entry : std::filesystem::recursive_directory_iterator(*folder / "ground_truth" / "blowhole")) {
    const auto mask = image::read(entry.path().string());
    REQUIRE_MESSAGE(mask.ok(), mask.message());
    CHECK(mask->channels() == 1);
    ++masks;
  }
  CHECK(photographs == 115);
  CHECK(masks == 115);
}
