#include "data_options.hpp"

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include <unistd.h>

#include <norma/data/folder.hpp>
#include <norma/data/mvtec_ad.hpp>

namespace program {

using namespace norma;

data::Files good_images(const std::string& folder, const std::string& category) {
  std::error_code ignored;
  if (!category.empty() || std::filesystem::is_directory(folder + "/train/good", ignored)) {
    return require(data::MvtecAd::open(folder, category, {.masks = data::Masks::optional})).train();
  }
  data::Folder plain(folder);
  if (!plain.status().ok()) {
    const auto categories = data::MvtecAd::categories(folder);
    if (categories.ok() && !categories->empty()) {
      std::string names;
      for (const std::string& name : *categories) names += (names.empty() ? "" : ", ") + name;
      throw Failure{kWrongUsage, "'" + folder + "' is a data set: choose a category with --category (" + names + ")"};
    }
  }
  return plain;
}

void require_writable(const std::string& path, const std::vector<std::string>& inputs) {
  if (path.empty() || path == "-") throw Failure{kWrongUsage, "expected the name of a file to write, found '" + path + "'"};
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  std::error_code ignored;
  if (!parent.empty() && !std::filesystem::is_directory(parent, ignored)) {
    throw Failure{kUnusable, "'" + path + "': the folder '" + parent.string() + "' does not exist"};
  }
  if (std::filesystem::is_directory(path, ignored)) throw Failure{kUnusable, "'" + path + "': is a folder, expected a file name"};
  if (::access(parent.empty() ? "." : parent.c_str(), W_OK) != 0 && ::access(path.c_str(), W_OK) != 0) {
    throw Failure{kUnusable, "'" + path + "': the folder cannot be written to"};
  }
  for (const std::string& input : inputs) {
    if (std::filesystem::equivalent(path, input, ignored)) throw Failure{kWrongUsage, "'" + path + "' would be overwritten: it is read, too"};
  }
}
void require_writable(const std::optional<std::string>& path, const std::vector<std::string>& inputs) {
  if (path && *path != "-") require_writable(*path, inputs);
}

namespace {

// What the system would give without swapping, in bytes; 0 where it does not say.
double available_memory() {
  std::ifstream info("/proc/meminfo");
  for (std::string name; info >> name;) {
    double kilobytes = 0.0;
    if (name == "MemAvailable:" && info >> kilobytes) return kilobytes * 1024.0;
  }
  return 0.0;
}

// The kernel ends a process that takes too much without a word: refused before hours of work instead.
void require_memory(const AnyDetector& detector, std::int64_t images) {
  const double needed = detector.fit_bytes(images);
  const double there = available_memory();
  if (there == 0.0 || needed <= there) return;
  char text[256];
  std::snprintf(text, sizeof text, "this fit needs about %.1f GB of memory for %lld images, %.1f GB are available: a smaller --size or --crop, --feature-dims or fewer --layers need less",
                needed / 1e9, static_cast<long long>(images), there / 1e9);
  throw Failure{kUnusable, text};
}

}  // namespace

double timed_fit(AnyDetector& detector, const data::Files& source, const Common& common, Terminal& terminal, std::vector<SkippedImage>& skipped) {
  require_memory(detector, source.size());
  const auto start = std::chrono::steady_clock::now();
  const Status status = fit(detector, source, {.seed = common.seed, .threads = common.threads, .observer = terminal.observer(), .skipped = &skipped});
  for (const SkippedImage& image : skipped) terminal.warn("skipped: " + image.reason.message());
  require(status);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace program
