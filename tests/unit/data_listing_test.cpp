// Listing of folders: order, what is left out, subfolders, errors.
#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/data/listing.hpp>
#include <norma/io/file.hpp>

#include "../support/shared_fixtures.hpp"

namespace {

namespace data = norma::data;
namespace fs = std::filesystem;

void touch(const fs::path& path) {
  fs::create_directories(path.parent_path());
  REQUIRE(norma::io::write_file_atomically(path.string(), "x").ok());
}

std::vector<std::string> listed(const fs::path& folder, data::Subfolders subfolders = data::Subfolders::ignore) {
  auto names = data::list_images(folder.string(), subfolders);
  REQUIRE_MESSAGE(names.ok(), names.message());
  return *names;
}

}  // namespace

TEST_CASE("numbers by value, then the other names by bytes") {
  const norma::test::TemporaryFolder folder;
  for (const char* name : {"10.png", "9.png", "b.png", "010.png", "A.png", "a1.png", "007.png", "1000000000000000000000000.png", "0.png",
                           "1a.png", "00.png"}) {
    touch(folder.path() / name);
  }
  CHECK(listed(folder.path()) == std::vector<std::string>{"0.png", "00.png", "007.png", "9.png", "010.png", "10.png",
                                                          "1000000000000000000000000.png", "1a.png", "A.png", "a1.png", "b.png"});
}

TEST_CASE("the order is strict and total") {
  const std::vector<std::string> names{"1.png", "01.png", "1.jpg", "2.png", "10.png", "1a.png", "a.png", "", ".png", "png", "9", "10"};
  for (const auto& a : names) {
    CHECK(!data::listed_before(a, a));
    for (const auto& b : names) {
      if (a != b) CHECK(data::listed_before(a, b) != data::listed_before(b, a));
      for (const auto& c : names) {
        if (data::listed_before(a, b) && data::listed_before(b, c)) CHECK(data::listed_before(a, c));
      }
    }
  }
}

TEST_CASE("suffixes in either case; hidden files and strangers are left out") {
  const norma::test::TemporaryFolder folder;
  for (const char* name : {"0.png", "1.PNG", "2.jpg", "3.JPEG", "4.bmp", "5.Ppm", "6.pgm"}) touch(folder.path() / name);
  const auto want = listed(folder.path());
  CHECK(want.size() == 7);
  for (const char* name : {".DS_Store", "._0.png", ".png", "Thumbs.db", "thumbs.DB", "readme.txt", "7.png.bak", "8.tiff", "png", "9.",
                           "license"}) {
    touch(folder.path() / name);
  }
  fs::create_directory(folder.path() / "folder.png");
  fs::create_symlink(folder.path() / "nowhere.png", folder.path() / "dangling.png");
  CHECK(listed(folder.path()) == want);
  fs::create_symlink(folder.path() / "0.png", folder.path() / "link.png");
  CHECK(listed(folder.path()).size() == 8);
}

TEST_CASE("subfolders on request, a folder's own images first, hidden folders left out, links in a circle end") {
  const norma::test::TemporaryFolder folder;
  for (const char* name : {"z.png", "a/1.png", "a/b/2.png", "10/3.png", "9/4.png", ".cache/5.png"}) touch(folder.path() / name);
  CHECK(listed(folder.path()) == std::vector<std::string>{"z.png"});
  const std::vector<std::string> want{"z.png", "9/4.png", "10/3.png", "a/1.png", "a/b/2.png"};
  CHECK(listed(folder.path(), data::Subfolders::include) == want);
  fs::create_directory_symlink(folder.path() / "a", folder.path() / "a" / "b" / "back");
  CHECK(listed(folder.path(), data::Subfolders::include) == want);
  auto folders = data::list_folders(folder.path().string());
  REQUIRE(folders.ok());
  CHECK(*folders == std::vector<std::string>{"9", "10", "a"});
}

TEST_CASE("errors name the path") {
  const norma::test::TemporaryFolder folder;
  for (const auto subfolders : {data::Subfolders::ignore, data::Subfolders::include}) {
    auto missing = data::list_images((folder.path() / "missing").string(), subfolders);
    CHECK(missing.code() == norma::Errc::not_found);
    CHECK(missing.message().find((folder.path() / "missing").string()) != std::string::npos);
    touch(folder.path() / "file.png");
    auto file = data::list_images((folder.path() / "file.png").string(), subfolders);
    CHECK(file.code() == norma::Errc::invalid_argument);
    CHECK(file.message().find("file.png': is a file, expected a folder") != std::string::npos);
    CHECK(data::list_images("", subfolders).code() == norma::Errc::invalid_argument);
  }
  fs::create_directory(folder.path() / "empty");
  CHECK(listed(folder.path() / "empty").empty());
}
