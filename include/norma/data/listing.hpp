/// \file
/// Names of the images in a folder, in the order that every source of norma uses.
///
/// Order: files whose stem is all digits first, by value (2 before 10; by bytes where the values are equal), then the others by bytes.
/// Left out: names that start with a dot, `Thumbs.db`, and files without an image suffix. Suffixes may be upper case.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <norma/core/status.hpp>
#include <norma/io/file.hpp>

namespace norma::data {

/// Suffixes that count as images.
inline constexpr std::array<std::string_view, 7> kImageSuffixes{"png", "jpg", "jpeg", "bmp", "ppm", "pgm", "pnm"};

enum class Subfolders : std::uint8_t { ignore, include };

/// The name without its last suffix.
[[nodiscard]] inline std::string_view stem_of(std::string_view name) noexcept { return name.substr(0, name.rfind('.')); }

/// Whether a file of this name (no folders) is listed.
[[nodiscard]] inline bool is_image_name(std::string_view name) {
  const std::size_t dot = name.rfind('.');
  if (dot == std::string_view::npos || dot == 0 || name.front() == '.') return false;
  std::string suffix(name.substr(dot + 1));
  for (char& c : suffix) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return std::find(kImageSuffixes.begin(), kImageSuffixes.end(), suffix) != kImageSuffixes.end();
}

/// The order of the listing; strict and total over different names.
[[nodiscard]] inline bool listed_before(std::string_view a, std::string_view b) noexcept {
  const auto digits = [](std::string_view stem) {
    return !stem.empty() && std::all_of(stem.begin(), stem.end(), [](char c) { return c >= '0' && c <= '9'; });
  };
  const std::string_view stem_a = stem_of(a), stem_b = stem_of(b);
  const bool digits_a = digits(stem_a), digits_b = digits(stem_b);
  if (digits_a != digits_b) return digits_a;
  if (digits_a) {  // numbers of any length: without leading zeros the longer one is larger
    const auto value = [](std::string_view stem) { return stem.substr(std::min(stem.find_first_not_of('0'), stem.size())); };
    const std::string_view value_a = value(stem_a), value_b = value(stem_b);
    if (value_a.size() != value_b.size()) return value_a.size() < value_b.size();
    if (value_a != value_b) return value_a < value_b;
  }
  return a < b;
}

namespace detail {

inline Status folder_error(std::string_view function, const std::string& folder, const std::error_code& error) {
  return io::detail::file_error(function, folder, error.value());
}

struct FolderContent {
  std::vector<std::string> images, folders;  // names alone, in the order of the listing
};

inline Result<FolderContent> read_folder(std::string_view function, const std::string& folder) {
  NORMA_CHECK(io::detail::check_path(function, folder));
  namespace fs = std::filesystem;
  std::error_code error;
  const bool exists = fs::exists(folder, error);
  if (error) return folder_error(function, folder, error);
  if (!exists) return Status{Errc::not_found, std::string(function) + ": '" + folder + "': no such folder"};
  if (!fs::is_directory(folder, error)) {
    return Status{Errc::invalid_argument, std::string(function) + ": '" + folder + "': is a file, expected a folder"};
  }
  FolderContent content;
  fs::directory_iterator entry(folder, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    std::string name = entry->path().filename().string();
    if (name.empty() || name.front() == '.') continue;
    std::error_code ignored;  // a dangling link or a file that has just gone is not listed
    if (entry->is_directory(ignored)) {
      content.folders.push_back(std::move(name));
    } else if (is_image_name(name) && entry->is_regular_file(ignored)) {
      content.images.push_back(std::move(name));
    }
  }
  if (error) return folder_error(function, folder, error);
  std::sort(content.images.begin(), content.images.end(), listed_before);
  std::sort(content.folders.begin(), content.folders.end(), listed_before);
  return content;
}

/// Appends the images of `folder`/`inside` and below; `above` holds the real paths of the folders that lead there, so that a link
/// back to one of them ends the walk instead of repeating it.
inline Status list_below(const std::string& folder, const std::string& inside, std::vector<std::filesystem::path>& above,
                         std::vector<std::string>& names) {
  constexpr std::string_view kFunction = "data::list_images";
  const std::string here = inside.empty() ? folder : folder + "/" + inside;
  std::error_code error;
  auto real = std::filesystem::canonical(here, error);
  if (error) return folder_error(kFunction, here, error);
  if (std::find(above.begin(), above.end(), real) != above.end()) return {};
  NORMA_TRY(const FolderContent content, read_folder(kFunction, here));
  const std::string prefix = inside.empty() ? std::string() : inside + "/";
  for (const std::string& name : content.images) names.push_back(prefix + name);
  above.push_back(std::move(real));
  for (const std::string& name : content.folders) NORMA_CHECK(list_below(folder, prefix + name, above, names));
  above.pop_back();
  return {};
}

}  // namespace detail

/// Names of the images relative to `folder`, `/` between folders; with Subfolders::include, a folder's own images come before those of
/// its subfolders. An empty folder gives an empty list. Errors: not_found, invalid_argument (a file), io_error; all name the path.
inline Result<std::vector<std::string>> list_images(const std::string& folder, Subfolders subfolders = Subfolders::ignore) {
  if (subfolders == Subfolders::ignore) {
    NORMA_TRY(auto content, detail::read_folder("data::list_images", folder));
    return std::move(content.images);
  }
  // Looked at first so that a missing root says so in the words of every other listing.
  NORMA_TRY(const auto root, detail::read_folder("data::list_images", folder));
  static_cast<void>(root);
  std::vector<std::string> names;
  std::vector<std::filesystem::path> above;
  NORMA_CHECK(detail::list_below(folder, {}, above, names));
  return names;
}

/// Names of the folders directly inside `folder`, hidden ones left out.
inline Result<std::vector<std::string>> list_folders(const std::string& folder) {
  NORMA_TRY(auto content, detail::read_folder("data::list_folders", folder));
  return std::move(content.folders);
}

}  // namespace norma::data
