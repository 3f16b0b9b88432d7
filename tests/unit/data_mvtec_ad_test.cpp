// The MVTec AD layout: listing, pairing by name, masks, warnings, errors, digest.
#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/data/mvtec_ad.hpp>
#include <norma/image/encode.hpp>
#include <norma/io/file.hpp>

#include "../support/shared_fixtures.hpp"

namespace {

namespace data = norma::data;
namespace fs = std::filesystem;
using data::Masks;
using data::MvtecAd;

void write(const fs::path& path, const norma::Image& image) {
  fs::create_directories(path.parent_path());
  auto status = norma::image::write_png(path.string(), image.view());
  REQUIRE_MESSAGE(status.ok(), status.message());
}

norma::Image plain(std::int64_t height, std::int64_t width, std::uint8_t value, std::int64_t channels = 1) {
  norma::Image image(height, width, channels);
  std::fill_n(image.data(), image.size_bytes(), value);
  return image;
}

/// A 4 x 6 mask with one pixel of `value` at (1, `column`).
norma::Image mask(std::int64_t column, std::uint8_t value = 255) {
  norma::Image image = plain(4, 6, 0);
  image(1, column, 0) = value;
  return image;
}

/// "screw": train 000, 001; test good 000; test crack 000, 001, 003 with masks whose pixel says the number.
class SmallSet {
 public:
  SmallSet() {
    for (const char* name : {"000", "001"}) write(category() / "train/good" / (std::string(name) + ".png"), plain(4, 6, 90));
    write(category() / "test/good/000.png", plain(5, 7, 91));
    for (const int number : {0, 1, 3}) {
      const std::string stem = "00" + std::to_string(number);
      write(category() / "test/crack" / (stem + ".png"), plain(4, 6, 200, 3));
      write(category() / "ground_truth/crack" / (stem + "_mask.png"), mask(number));
    }
  }
  [[nodiscard]] std::string root() const { return folder_.path().string(); }
  [[nodiscard]] fs::path category() const { return folder_.path() / "screw"; }
  [[nodiscard]] MvtecAd open(Masks masks = Masks::required) const {
    auto set = MvtecAd::open(root(), "screw", {.masks = masks});
    REQUIRE_MESSAGE(set.ok(), set.message());
    return *std::move(set);
  }

 private:
  norma::test::TemporaryFolder folder_;
};

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::int64_t count(const norma::Map<std::uint8_t>& mask) {
  return std::count(mask.data(), mask.data() + mask.rows() * mask.cols(), std::uint8_t{1});
}

}  // namespace

TEST_CASE("counts, order, labels, kinds; strangers change nothing") {
  const SmallSet small;
  const MvtecAd set = small.open();
  const std::string digest = *set.digest();
  const auto check = [&](const MvtecAd& s) {
    CHECK(s.category() == "screw");
    CHECK(s.counts().train == 2);
    CHECK(s.counts().test_good == 1);
    CHECK(s.counts().test_anomalous == 3);
    CHECK(s.counts().masks == 3);
    CHECK(s.counts().missing_masks == 0);
    REQUIRE(s.counts().kinds.size() == 2);
    CHECK(s.counts().kinds[0].kind == "crack");
    CHECK(s.counts().kinds[0].images == 3);
    CHECK(s.counts().kinds[0].masks == 3);
    CHECK(s.counts().kinds[1].kind == "good");
    CHECK(s.warnings().empty());
    REQUIRE(s.train().size() == 2);
    CHECK(s.train().name(1) == (small.category() / "train/good/001.png").string());
    CHECK(s.train().load(0)->width() == 6);
    REQUIRE(s.test().size() == 4);
    CHECK(s.test()[0].kind == "crack");
    CHECK(s.test()[0].label == 1);
    CHECK(s.test()[0].path == (small.category() / "test/crack/000.png").string());
    CHECK(s.test()[3].kind == "good");
    CHECK(s.test()[3].label == 0);
    CHECK(!s.test()[3].mask_path);
    CHECK(s.has_mask(3));
    CHECK(*s.digest() == digest);
  };
  check(set);
  for (const char* stray : {"train/good/.DS_Store", "test/crack/Thumbs.db", "test/notes.txt", "test/crack/notes.txt",
                            "ground_truth/crack/.x.png", "license.txt", "test/.hidden/000.png"}) {
    fs::create_directories((small.category() / stray).parent_path());
    REQUIRE(norma::io::write_file_atomically((small.category() / stray).string(), "x").ok());
  }
  check(small.open());
}

TEST_CASE("the category's own folder can be given alone") {
  const SmallSet small;
  for (const std::string& path : {small.category().string(), small.category().string() + "/"}) {
    auto set = MvtecAd::open(path);
    REQUIRE_MESSAGE(set.ok(), set.message());
    CHECK(set->category() == "screw");
    CHECK(set->counts().train == 2);
    CHECK(*set->digest() == *small.open().digest());
  }
}

TEST_CASE("masks pair by name, not by position") {
  const SmallSet small;
  fs::remove(small.category() / "ground_truth/crack/001_mask.png");
  auto strict = MvtecAd::open(small.root(), "screw");
  CHECK(strict.code() == norma::Errc::not_found);
  CHECK(contains(strict.message(), "1 of 3 anomalous images have no mask"));
  CHECK(contains(strict.message(), "test/crack/001.png"));
  CHECK(contains(strict.message(), "ground_truth/crack/001_mask.png"));

  const MvtecAd set = small.open(Masks::optional);
  CHECK(set.counts().missing_masks == 1);
  REQUIRE(set.warnings().size() == 1);
  CHECK(contains(set.warnings()[0], "001.png"));
  CHECK(set.has_mask(0));
  CHECK(!set.has_mask(1));
  CHECK(set.load_mask(1).code() == norma::Errc::not_found);
  auto third = set.load_mask(2);
  REQUIRE_MESSAGE(third.ok(), third.message());
  CHECK((*third)(1, 3) == 1);
  CHECK(count(*third) == 1);
}

TEST_CASE("a mask may have the image's own name; the longer name wins") {
  const SmallSet small;
  fs::rename(small.category() / "ground_truth/crack/003_mask.png", small.category() / "ground_truth/crack/003.png");
  CHECK((*small.open().load_mask(2))(1, 3) == 1);
  write(small.category() / "ground_truth/crack/003_mask.png", mask(5));
  const MvtecAd both = small.open();
  CHECK((*both.load_mask(2))(1, 5) == 1);
  REQUIRE(both.warnings().size() == 1);
  CHECK(contains(both.warnings()[0], "003.png': a mask without an image"));
}

TEST_CASE("masks without images and masks of good images are warnings") {
  const SmallSet small;
  write(small.category() / "ground_truth/crack/009_mask.png", mask(0));
  write(small.category() / "ground_truth/good/000_mask.png", plain(5, 7, 255));
  write(small.category() / "ground_truth/dent/000_mask.png", mask(0));
  const MvtecAd set = small.open();
  REQUIRE(set.warnings().size() == 3);
  CHECK(contains(set.warnings()[0], "009_mask.png"));
  CHECK(contains(set.warnings()[1], "ground_truth/dent"));
  CHECK(contains(set.warnings()[2], "ground_truth/good"));
  CHECK(count(*set.load_mask(3)) == 0);
}

TEST_CASE("a good image has a zero mask of its own size") {
  const SmallSet small;
  auto zero = small.open().load_mask(3);
  REQUIRE(zero.ok());
  CHECK(zero->rows() == 5);
  CHECK(zero->cols() == 7);
  CHECK(count(*zero) == 0);
}

TEST_CASE("a mask of another size is an error, an empty one a sentence for the report") {
  const SmallSet small;
  write(small.category() / "ground_truth/crack/000_mask.png", plain(6, 4, 255));
  write(small.category() / "ground_truth/crack/001_mask.png", plain(4, 6, 0));
  const MvtecAd set = small.open();
  auto size = set.load_mask(0);
  CHECK(size.code() == norma::Errc::shape_mismatch);
  CHECK(contains(size.message(), "000_mask.png"));
  CHECK(contains(size.message(), "expected 4x6"));
  CHECK(contains(size.message(), "found 6x4"));
  auto empty = set.load_mask(1);
  REQUIRE(empty.ok());
  CHECK(count(*empty) == 0);
  CHECK(set.test()[1].label == 1);
  REQUIRE(set.mask_warning(1, empty->view()).has_value());
  CHECK(contains(*set.mask_warning(1, empty->view()), "001_mask.png"));
  CHECK(!set.mask_warning(2, set.load_mask(2)->view()));
  CHECK(!set.mask_warning(3, set.load_mask(3)->view()));
}

TEST_CASE("mask rules") {
  norma::Image stored(1, 6, 1);
  const auto binary = [&](std::vector<int> values, data::MaskRule rule) {
    for (std::size_t i = 0; i < 6; ++i) stored.data()[i] = static_cast<std::uint8_t>(values[i]);
    const auto got = data::binary_mask(stored, rule);
    return std::vector<int>(got.data(), got.data() + 6);
  };
  const std::vector<int> jpeg{0, 3, 127, 128, 250, 255}, classes{0, 253, 254, 255, 0, 254};
  const std::vector<int> ones{0, 1, 1, 0, 2, 0}, two{0, 255, 0, 255, 0, 0};
  CHECK(binary(jpeg, data::MaskRule::half) == std::vector<int>{0, 0, 0, 1, 1, 1});
  CHECK(binary(jpeg, data::MaskRule::nonzero) == std::vector<int>{0, 1, 1, 1, 1, 1});
  CHECK(binary(jpeg, data::MaskRule::automatic) == std::vector<int>{0, 0, 0, 1, 1, 1});
  CHECK(binary(classes, data::MaskRule::automatic) == std::vector<int>{0, 1, 1, 1, 0, 1});
  CHECK(binary(ones, data::MaskRule::automatic) == std::vector<int>{0, 1, 1, 0, 1, 0});
  CHECK(binary(ones, data::MaskRule::half) == std::vector<int>(6, 0));
  CHECK(binary(two, data::MaskRule::automatic) == binary(two, data::MaskRule::nonzero));
  // Colour: the largest channel counts.
  norma::Image colour(1, 2, 3);
  colour(0, 1, 2) = 255;
  const auto largest = data::binary_mask(colour);
  CHECK(largest(0, 0) == 0);
  CHECK(largest(0, 1) == 1);

  const SmallSet small;
  write(small.category() / "ground_truth/crack/000_mask.png", mask(2, 100));
  auto half = MvtecAd::open(small.root(), "screw", {.mask_rule = data::MaskRule::half});
  REQUIRE(half.ok());
  CHECK(half->mask_rule() == data::MaskRule::half);
  CHECK(count(*half->load_mask(0)) == 0);
  CHECK(count(*small.open().load_mask(0)) == 1);
}

TEST_CASE("errors name what is missing and what there is") {
  const SmallSet small;
  write(fs::path(small.root()) / "bottle/train/good/000.png", plain(4, 4, 1));
  auto categories = MvtecAd::categories(small.root());
  REQUIRE(categories.ok());
  CHECK(*categories == std::vector<std::string>{"bottle", "screw"});
  auto wrong = MvtecAd::open(small.root(), "bottel");
  CHECK(wrong.code() == norma::Errc::not_found);
  CHECK(contains(wrong.message(), "no category 'bottel'"));
  CHECK(contains(wrong.message(), "found bottle, screw"));
  auto none = MvtecAd::open(small.root());
  CHECK(none.code() == norma::Errc::not_found);
  CHECK(contains(none.message(), "expected the name of a category too, found bottle, screw"));
  auto inside = MvtecAd::open(small.category().string(), "screw");
  CHECK(inside.code() == norma::Errc::not_found);
  CHECK(contains(inside.message(), "leave the category empty"));
  auto missing = MvtecAd::open(small.root() + "/missing", "screw");
  CHECK(missing.code() == norma::Errc::not_found);
  CHECK(contains(missing.message(), "missing"));
  auto layout = MvtecAd::open(small.category().string() + "/train");
  CHECK(layout.code() == norma::Errc::not_found);
  CHECK(contains(layout.message(), "no folder 'train/good'"));
  fs::remove(fs::path(small.root()) / "bottle/train/good/000.png");
  auto empty = MvtecAd::open(small.root(), "bottle");
  CHECK(empty.code() == norma::Errc::not_found);
  CHECK(contains(empty.message(), "train/good': no images"));
}

TEST_CASE("without a test folder a category opens for fitting, with a warning") {
  const norma::test::TemporaryFolder folder;
  write(folder.path() / "train/good/0.png", plain(4, 4, 1));
  auto set = MvtecAd::open(folder.path().string());
  REQUIRE_MESSAGE(set.ok(), set.message());
  CHECK(set->test().empty());
  REQUIRE(set->warnings().size() == 1);
  CHECK(contains(set->warnings()[0], "nothing to evaluate"));
}

TEST_CASE("the digest follows names and sizes, not the order in which files were made") {
  const SmallSet small, again;
  CHECK(*small.open().digest() == *again.open().digest());
  const norma::test::TemporaryFolder folder;
  // The same files, made in the opposite order.
  std::vector<fs::path> files;
  for (const auto& entry : fs::recursive_directory_iterator(small.category())) {
    if (entry.is_regular_file()) files.push_back(fs::relative(entry.path(), small.category()));
  }
  std::sort(files.rbegin(), files.rend());
  for (const auto& file : files) {
    fs::create_directories((folder.path() / file).parent_path());
    fs::copy_file(small.category() / file, folder.path() / file);
  }
  auto copy = MvtecAd::open(folder.path().string());
  REQUIRE(copy.ok());
  const std::string digest = *copy->digest();
  CHECK(digest == *small.open().digest());
  CHECK(digest.size() == 64);
  write(folder.path() / "test/crack/003.png", plain(40, 60, 17));
  CHECK(*copy->digest() != digest);
  fs::remove(folder.path() / "test/crack/003.png");
  auto gone = copy->digest();
  CHECK(gone.code() == norma::Errc::not_found);
  CHECK(contains(gone.message(), "003.png"));
}
