/// \file
/// A plain folder of images.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <norma/data/files.hpp>
#include <norma/data/listing.hpp>

namespace norma::data {

/// The images directly inside a folder, or with Subfolders::include also those below it (a test tree), in the order of listing.hpp.
/// A folder that is missing, unreadable or without images gives a source of size 0 whose `status()` names it.
class Folder : public Files {
 public:
  explicit Folder(std::string path, Subfolders subfolders = Subfolders::ignore) : Files(open(path, subfolders)), path_(std::move(path)) {}

  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  static Files open(const std::string& path, Subfolders subfolders) {
    auto names = list_images(path, subfolders);
    if (!names) return Files(names.status().with_context("data::Folder"));
    if (names->empty()) {
      std::string suffixes;
      for (const std::string_view suffix : kImageSuffixes) suffixes += (suffixes.empty() ? "" : ", ") + std::string(suffix);
      return Files(Status{Errc::not_found, "data::Folder: '" + path + "': no images, expected files of type " + suffixes +
                                               (subfolders == Subfolders::ignore ? " (subfolders are not looked at)" : "")});
    }
    for (std::string& name : *names) name.insert(0, path.back() == '/' ? path : path + "/");
    return Files(*std::move(names));
  }

  std::string path_;
};

static_assert(Source<Folder>);

}  // namespace norma::data
