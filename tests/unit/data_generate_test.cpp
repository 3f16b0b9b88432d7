// The generated data set: layout, determinism, exact masks, photographs, errors.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/thread_pool.hpp>
#include <norma/data/generate.hpp>
#include <norma/data/mvtec_ad.hpp>
#include <norma/evaluation/components.hpp>
#include <norma/io/file.hpp>

#include "../support/shared_fixtures.hpp"

namespace {

namespace data = norma::data;
namespace fs = std::filesystem;

const data::GenerateOptions kSmall{.seed = 5, .size = 48, .train = 3, .test_good = 2, .test_per_kind = 3};

std::vector<std::string> files_below(const fs::path& root) {
  std::vector<std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    if (entry.is_regular_file()) files.push_back(fs::relative(entry.path(), root).string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

TEST_CASE("the data set has the layout that the loader reads") {
  const norma::test::TemporaryFolder folder;
  auto made = data::generate((folder.path() / "set").string(), kSmall);
  REQUIRE_MESSAGE(made.ok(), made.message());
  CHECK(made->categories.size() == 5);
  CHECK(made->images == 5 * (3 + 2 + 4 * 3));
  CHECK(made->masks == 5 * 4 * 3);
  const std::vector<std::string> sorted{"bolt", "disc", "gravel", "stripes", "weave"};
  CHECK(*data::MvtecAd::categories((folder.path() / "set").string()) == sorted);
  for (const std::string& category : made->categories) {
    CAPTURE(category);
    auto set = data::MvtecAd::open((folder.path() / "set").string(), category);
    REQUIRE_MESSAGE(set.ok(), set.message());
    CHECK(set->counts().train == 3);
    CHECK(set->counts().test_good == 2);
    CHECK(set->counts().test_anomalous == 12);
    CHECK(set->counts().masks == 12);
    CHECK(set->counts().kinds.size() == 5);
    CHECK(set->warnings().empty());
    const bool object = category == "disc" || category == "bolt";
    for (std::int64_t i = 0; i < static_cast<std::int64_t>(set->test().size()); ++i) {
      auto image = set->load(i);
      REQUIRE(image.ok());
      CHECK(image->height() == 48);
      CHECK(image->channels() == (object ? 1 : 3));
      auto mask = set->load_mask(i);
      REQUIRE(mask.ok());
      const auto found = norma::evaluation::connected_components(mask->view());
      CHECK((found.count() > 0) == (set->test()[static_cast<std::size_t>(i)].label == 1));
    }
  }
}

TEST_CASE("the same seed gives the same bytes for any number of threads; another seed other pictures") {
  const norma::test::TemporaryFolder folder;
  norma::ThreadPool pool(3);
  data::GenerateOptions options = kSmall;
  options.categories = {"gravel", "bolt"};
  REQUIRE(data::generate((folder.path() / "a").string(), options).ok());
  REQUIRE(data::generate((folder.path() / "b").string(), options, {}, pool.parallel()).ok());
  options.seed = 6;
  REQUIRE(data::generate((folder.path() / "c").string(), options).ok());
  const auto names = files_below(folder.path() / "a");
  REQUIRE(names.size() == 2 * (17 + 12));
  CHECK(files_below(folder.path() / "b") == names);
  CHECK(files_below(folder.path() / "c") == names);
  for (const std::string& name : names) {
    CAPTURE(name);
    const auto a = *norma::io::read_file((folder.path() / "a" / name).string());
    CHECK(a == *norma::io::read_file((folder.path() / "b" / name).string()));
    CHECK(a != *norma::io::read_file((folder.path() / "c" / name).string()));
  }
}

TEST_CASE("a category does not depend on the others of the set") {
  const norma::test::TemporaryFolder folder;
  data::GenerateOptions options = kSmall;
  options.categories = {"disc", "weave"};
  REQUIRE(data::generate((folder.path() / "a").string(), options).ok());
  options.categories = {"weave"};
  REQUIRE(data::generate((folder.path() / "b").string(), options).ok());
  for (const std::string& name : files_below(folder.path() / "b")) {
    CHECK(*norma::io::read_file((folder.path() / "a" / name).string()) == *norma::io::read_file((folder.path() / "b" / name).string()));
  }
}

TEST_CASE("outside the mask not one byte differs from the normal picture; inside the defect can be seen") {
  using data::detail::Defect;
  constexpr std::array draw{data::detail::stripes_scene, data::detail::weave_scene, data::detail::gravel_scene, data::detail::disc_scene,
                            data::detail::bolt_scene};
  for (const std::int64_t size : {32, 64, 256}) {
    for (std::size_t category = 0; category < data::kDrawnCategories.size(); ++category) {
      const bool object = category >= 3;
      for (const Defect defect : {Defect::scratch, Defect::spot, Defect::stain, Defect::cut, Defect::missing, Defect::corners}) {
        if (defect == Defect::missing && !object) continue;
        for (const std::uint64_t seed : {1u, 2u, 3u}) {
          CAPTURE(size);
          CAPTURE(data::kDrawnCategories[category]);
          CAPTURE(static_cast<int>(defect));
          CAPTURE(seed);
          norma::Random normal(seed), random(seed, 1);
          data::detail::Scene scene = draw[category](size, normal);
          const norma::Image before = scene.picture;
          const auto mask = data::detail::paint(scene, defect, random);
          std::int64_t inside = 0, changed_outside = 0, other_values = 0;
          double difference = 0.0;
          for (std::int64_t y = 0; y < size; ++y) {
            for (std::int64_t x = 0; x < size; ++x) {
              other_values += mask(y, x) != 0 && mask(y, x) != 255 ? 1 : 0;
              for (std::int64_t c = 0; c < before.channels(); ++c) {
                const int d = std::abs(int{before(y, x, c)} - int{scene.picture(y, x, c)});
                if (mask(y, x) == 0) changed_outside += d != 0 ? 1 : 0;
                if (mask(y, x) != 0) difference += static_cast<double>(d) / static_cast<double>(before.channels());
              }
              inside += mask(y, x) != 0 ? 1 : 0;
            }
          }
          CHECK(other_values == 0);
          CHECK(changed_outside == 0);
          CHECK(inside >= 3);
          CHECK(inside < size * size / 3);
          CHECK(difference / static_cast<double>(inside) >= 12.0);
          if (defect == Defect::corners) {
            using norma::evaluation::Connectivity;
            CHECK(norma::evaluation::connected_components(mask.view()).count() == 1);
            CHECK(norma::evaluation::connected_components(mask.view(), Connectivity::four).count() == 2);
          }
        }
      }
    }
  }
}

TEST_CASE("photographs: normal images are cuts of the photograph") {
  const norma::test::TemporaryFolder folder;
  norma::Image photo(60, 80, 3);
  for (std::int64_t y = 0; y < 60; ++y) {
    for (std::int64_t x = 0; x < 80; ++x) {
      photo(y, x, 0) = static_cast<std::uint8_t>(3 * y);
      photo(y, x, 1) = static_cast<std::uint8_t>(3 * x);
      photo(y, x, 2) = 50;
    }
  }
  const std::string path = (folder.path() / "Tile.png").string();
  REQUIRE(norma::image::write_png(path, photo.view()).ok());
  data::GenerateOptions options = kSmall;
  options.train = 8;
  options.textures = {path};
  auto made = data::generate((folder.path() / "set").string(), options);
  REQUIRE_MESSAGE(made.ok(), made.message());
  CHECK(made->categories == std::vector<std::string>{"Tile"});
  auto set = data::MvtecAd::open((folder.path() / "set").string(), "Tile");
  REQUIRE_MESSAGE(set.ok(), set.message());
  bool offsets_differ = false;
  for (std::int64_t i = 0; i < set->train().size(); ++i) {
    auto cut = set->train().load(i);
    REQUIRE(cut.ok());
    const int step_y = int{(*cut)(1, 0, 0)} - int{(*cut)(0, 0, 0)}, step_x = int{(*cut)(0, 1, 1)} - int{(*cut)(0, 0, 1)};
    CHECK(std::abs(step_y) == 3);
    CHECK(std::abs(step_x) == 3);
    bool exact = true;
    for (std::int64_t y = 0; y < 48; ++y) {
      for (std::int64_t x = 0; x < 48; ++x) {
        exact = exact && int{(*cut)(y, x, 0)} == int{(*cut)(0, 0, 0)} + step_y * static_cast<int>(y) &&
                int{(*cut)(y, x, 1)} == int{(*cut)(0, 0, 1)} + step_x * static_cast<int>(x) && (*cut)(y, x, 2) == 50;
      }
    }
    CHECK(exact);
    offsets_differ = offsets_differ || (*cut)(0, 0, 1) != (*set->train().load(0))(0, 0, 1);
  }
  CHECK(offsets_differ);
}

TEST_CASE("progress is reported and a stop is obeyed") {
  const norma::test::TemporaryFolder folder;
  std::atomic<bool> cancel{false};
  std::int64_t last = 0, total = 0;
  norma::Observer observer;
  observer.cancel = &cancel;
  observer.on_progress = [&](const norma::ProgressUpdate& update) {
    CHECK(update.done >= last);
    last = update.done;
    total = update.total;
  };
  data::GenerateOptions options = kSmall;
  options.categories = {"disc"};
  REQUIRE(data::generate((folder.path() / "a").string(), options, observer).ok());
  CHECK(last == 17);
  CHECK(total == 17);
  cancel = true;
  last = 0;
  CHECK(data::generate((folder.path() / "b").string(), options, observer).code() == norma::Errc::cancelled);
}

TEST_CASE("errors name the option, the category or the file") {
  const norma::test::TemporaryFolder folder;
  const std::string root = folder.path().string();
  const auto message = [&](const data::GenerateOptions& options, norma::Errc code) {
    auto made = data::generate(root + "/set", options);
    CHECK(made.code() == code);
    return made.message();
  };
  data::GenerateOptions options = kSmall;
  options.size = 31;
  CHECK(message(options, norma::Errc::invalid_argument).find("found 31") != std::string::npos);
  options = kSmall;
  options.train = 0;
  CHECK(message(options, norma::Errc::invalid_argument).find("train") != std::string::npos);
  options = kSmall;
  options.categories = {"disk"};
  const std::string unknown = message(options, norma::Errc::invalid_argument);
  CHECK(unknown.find("'disk', expected one of stripes, weave, gravel, disc, bolt") != std::string::npos);
  options.categories = {"disc", "disc"};
  CHECK(message(options, norma::Errc::invalid_argument).find("'disc'") != std::string::npos);
  options.categories.clear();
  options.textures = {root + "/missing.png"};
  CHECK(message(options, norma::Errc::not_found).find("missing.png") != std::string::npos);
  REQUIRE(norma::image::write_png(root + "/small.png", norma::Image(47, 100, 1).view()).ok());
  options.textures = {root + "/small.png"};
  CHECK(message(options, norma::Errc::shape_mismatch).find("found 47x100") != std::string::npos);
  CHECK(!fs::exists(folder.path() / "set"));

  options = kSmall;
  options.categories = {"bolt"};
  REQUIRE(data::generate(root + "/set", options).ok());
  CHECK(message(options, norma::Errc::invalid_argument).find("already exists") != std::string::npos);
}
