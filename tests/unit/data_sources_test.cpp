// Sources: folder, file list, memory, subset, held-out split.
#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/data/folder.hpp>
#include <norma/data/in_memory.hpp>
#include <norma/data/split.hpp>
#include <norma/image/encode.hpp>

#include "../support/shared_fixtures.hpp"

namespace {

namespace data = norma::data;

norma::Image picture(std::int64_t height, std::int64_t width, std::int64_t channels, int first) {
  norma::Image image(height, width, channels);
  for (std::int64_t i = 0; i < image.size_bytes(); ++i) image.data()[i] = static_cast<std::uint8_t>(first + i);
  return image;
}

bool same(const norma::Image& a, const norma::Image& b) {
  if (a.height() != b.height() || a.width() != b.width() || a.channels() != b.channels()) return false;
  return std::equal(a.data(), a.data() + a.size_bytes(), b.data());
}

}  // namespace

TEST_CASE("a folder gives its images in the order of the listing") {
  const norma::test::TemporaryFolder temporary;
  const std::string root = temporary.path().string();
  std::filesystem::create_directory(temporary.path() / "below");
  for (const int i : {10, 2}) REQUIRE(norma::image::write_png(root + "/" + std::to_string(i) + ".png", picture(3, 4, 3, i).view()).ok());
  REQUIRE(norma::image::write_png(root + "/below/x.png", picture(2, 2, 1, 9).view()).ok());
  for (const std::string& path : {root, root + "/"}) {
    const data::Folder folder(path);
    REQUIRE_MESSAGE(folder.status().ok(), folder.status().message());
    REQUIRE(folder.size() == 2);
    CHECK(folder.name(0) == root + "/2.png");
    CHECK(folder.name(1) == root + "/10.png");
    auto second = folder.load(1);
    REQUIRE_MESSAGE(second.ok(), second.message());
    CHECK(same(*second, picture(3, 4, 3, 10)));
  }
  const data::Folder tree(root, data::Subfolders::include);
  REQUIRE(tree.size() == 3);
  CHECK(tree.name(2) == root + "/below/x.png");
  CHECK(tree.load(2)->channels() == 1);
}

TEST_CASE("a folder that cannot be used says so by its name") {
  const norma::test::TemporaryFolder temporary;
  const data::Folder missing((temporary.path() / "missing").string());
  CHECK(missing.size() == 0);
  CHECK(missing.status().code() == norma::Errc::not_found);
  CHECK(missing.status().message().find("missing") != std::string::npos);
  const data::Folder empty(temporary.path().string());
  CHECK(empty.size() == 0);
  CHECK(empty.status().code() == norma::Errc::not_found);
  CHECK(empty.status().message().find(temporary.path().string() + "': no images, expected files of type png") != std::string::npos);
}

TEST_CASE("a broken file is an error of that file alone") {
  const norma::test::TemporaryFolder temporary;
  const std::string root = temporary.path().string();
  REQUIRE(norma::image::write_png(root + "/0.png", picture(3, 4, 1, 1).view()).ok());
  REQUIRE(norma::io::write_file_atomically(root + "/1.png", "not a picture").ok());
  const data::Folder folder(root);
  REQUIRE(folder.size() == 2);
  CHECK(folder.load(0).ok());
  auto broken = folder.load(1);
  CHECK(!broken.ok());
  CHECK(broken.message().find(root + "/1.png") != std::string::npos);
}

TEST_CASE("images in memory") {
  std::vector<norma::Image> images;
  images.push_back(picture(2, 3, 1, 5));
  images.push_back(picture(4, 4, 3, 7));
  const data::InMemory owned(images, "sample");
  const data::InMemory copy = owned;
  REQUIRE(copy.size() == 2);
  CHECK(copy.status().ok());
  CHECK(copy.name(1) == "sample 1");
  CHECK(same(*copy.load(1), images[1]));

  const std::vector<std::uint8_t> bgr{1, 2, 3, 4, 5, 6, 0, 0};
  const std::vector<norma::ImageView> frames{norma::image::view(bgr.data(), 1, 2, 8, norma::PixelFormat::bgr8), norma::ImageView{}};
  const data::InMemory borrowed{std::span<const norma::ImageView>(frames)};
  REQUIRE(borrowed.size() == 2);
  auto rgb = borrowed.load(0);
  REQUIRE(rgb.ok());
  CHECK((*rgb)(0, 0, 0) == 3);
  CHECK((*rgb)(0, 1, 2) == 4);
  auto nothing = borrowed.load(1);
  CHECK(nothing.code() == norma::Errc::invalid_argument);
  CHECK(nothing.message().find("frame 1") != std::string::npos);
  CHECK(data::InMemory().size() == 0);
}

TEST_CASE("a split holds back a random part, each image once, the same for the same seed") {
  for (const std::int64_t size : {2, 3, 10, 209}) {
    for (const double fraction : {0.01, 0.1, 0.5, 0.99}) {
      auto split = data::split_held_out(size, fraction, 3);
      REQUIRE(split.ok());
      CHECK(!split->fit.empty());
      CHECK(!split->held_out.empty());
      std::set<std::int64_t> all(split->fit.begin(), split->fit.end());
      all.insert(split->held_out.begin(), split->held_out.end());
      CHECK(static_cast<std::int64_t>(all.size()) == size);
      CHECK(static_cast<std::int64_t>(split->fit.size() + split->held_out.size()) == size);
      CHECK(*all.begin() == 0);
      CHECK(*all.rbegin() == size - 1);
      CHECK(data::split_held_out(size, fraction, 3)->held_out == split->held_out);
    }
  }
  CHECK(data::split_held_out(209)->held_out.size() == 21);
  CHECK(data::split_held_out(209, 0.1, 1)->held_out != data::split_held_out(209, 0.1, 2)->held_out);
  CHECK(data::split_held_out(1).code() == norma::Errc::not_enough_data);
  CHECK(data::split_held_out(10, 0.0).code() == norma::Errc::invalid_argument);
  CHECK(data::split_held_out(10, 1.0).code() == norma::Errc::invalid_argument);
}

TEST_CASE("a subset forwards to its source") {
  std::vector<norma::Image> images;
  for (int i = 0; i < 4; ++i) images.push_back(picture(2, 2, 1, 10 * i));
  const data::InMemory source(images);
  const data::Subset<data::InMemory> subset(source, {3, 1});
  static_assert(norma::Source<data::Subset<data::InMemory>>);
  REQUIRE(subset.size() == 2);
  CHECK(subset.name(0) == "image 3");
  CHECK(same(*subset.load(1), images[1]));
  CHECK(subset.status().ok());
}
