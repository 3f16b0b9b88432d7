/// \file
/// A small data set in the layout of MVTec AD, drawn by the program: for demonstrations and tests where no real data may be shipped.
/// Determinism: every image depends on the seed, its category and its number alone; the same files for any number of threads
/// What it shows: that a chain of fit, calibration and evaluation works. Its figures say nothing about real data.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <norma/core/parallel.hpp>
#include <norma/core/progress.hpp>
#include <norma/core/status.hpp>
#include <norma/data/detail/defects.hpp>
#include <norma/data/detail/scenes.hpp>
#include <norma/data/listing.hpp>
#include <norma/image/decode.hpp>
#include <norma/image/encode.hpp>

namespace norma::data {

/// What can be drawn: textures in colour, objects in gray.
inline constexpr std::array<std::string_view, 5> kDrawnCategories{"stripes", "weave", "gravel", "disc", "bolt"};

struct GenerateOptions {
  std::uint64_t seed = 0;
  std::int64_t size = 256;  ///< side of the square images, 32 to 4096
  std::int64_t train = 40, test_good = 12, test_per_kind = 8;
  /// Some of kDrawnCategories; empty means all of them, or none where `textures` are given.
  std::vector<std::string> categories{};
  /// Image files of real surfaces. Each makes a category named after the file: its normal images are cut out of the photograph at
  /// random places, defects are painted into them. Both sides must be >= `size`, better twice that.
  std::vector<std::string> textures{};
};

struct Generated {
  std::vector<std::string> categories;
  std::int64_t images = 0;
  std::int64_t masks = 0;
};

namespace detail {

struct Plan {
  std::string name;
  Scene (*draw)(std::int64_t size, Random& random) = nullptr;  // or cut out of `photo`
  Image photo;
  bool object = false;
};

struct Kind {
  std::string_view name;
  Defect defect;
};

inline constexpr std::array<Kind, 4> kTextureKinds{
    {{"cut", Defect::cut}, {"scratch", Defect::scratch}, {"spot", Defect::spot}, {"stain", Defect::stain}}};
inline constexpr std::array<Kind, 4> kObjectKinds{
    {{"cut", Defect::cut}, {"missing_part", Defect::missing}, {"scratch", Defect::scratch}, {"spot", Defect::spot}}};

/// One file to write. `number` counts within its folder.
struct Item {
  std::size_t plan = 0;
  std::string folder;  // "train/good", "test/cut", ...
  std::int64_t number = 0;
  std::int64_t stream = 0;  // of the category's random numbers; different for every image of a category
  std::optional<Defect> defect;
};

inline Result<std::vector<Plan>> plan_categories(const GenerateOptions& options) {
  const auto invalid = [](std::string what) { return Status{Errc::invalid_argument, "data::generate: " + std::move(what)}; };
  if (options.size < 32 || options.size > 4096) return invalid("size, expected 32 to 4096, found " + std::to_string(options.size));
  if (options.train < 1 || options.test_good < 0 || options.test_per_kind < 0) {
    return invalid("counts, expected train >= 1 and the others >= 0, found " + std::to_string(options.train) + ", " +
                   std::to_string(options.test_good) + " and " + std::to_string(options.test_per_kind));
  }
  std::vector<std::string> names = options.categories;
  if (names.empty() && options.textures.empty()) names.assign(kDrawnCategories.begin(), kDrawnCategories.end());
  constexpr std::array kDraw{stripes_scene, weave_scene, gravel_scene, disc_scene, bolt_scene};
  std::vector<Plan> plans;
  for (const std::string& name : names) {
    const auto found = std::find(kDrawnCategories.begin(), kDrawnCategories.end(), name);
    if (found == kDrawnCategories.end()) {
      std::string known;
      for (const std::string_view drawn : kDrawnCategories) known += (known.empty() ? "" : ", ") + std::string(drawn);
      return invalid("category '" + name + "', expected one of " + known);
    }
    const auto index = static_cast<std::size_t>(found - kDrawnCategories.begin());
    plans.push_back({name, kDraw[index], {}, index >= 3});
  }
  for (const std::string& path : options.textures) {
    NORMA_TRY(Image photo, image::read(path));
    if (photo.height() < options.size || photo.width() < options.size) {
      return Status{Errc::shape_mismatch, "data::generate: '" + path + "': height x width, expected at least " +
                                              std::to_string(options.size) + " each, found " + std::to_string(photo.height()) + "x" +
                                              std::to_string(photo.width())};
    }
    plans.push_back({std::filesystem::path(path).stem().string(), nullptr, std::move(photo), false});
  }
  for (std::size_t i = 0; i < plans.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (plans[i].name == plans[j].name) return invalid("two categories of the name '" + plans[i].name + "'");
    }
  }
  return plans;
}

/// Everything there is to write for one category.
inline void list_items(std::size_t plan, bool object, const GenerateOptions& options, std::vector<Item>& items) {
  std::int64_t stream = 0;
  const auto add = [&](std::string folder, std::int64_t count, std::optional<Defect> defect) {
    for (std::int64_t i = 0; i < count; ++i) items.push_back({plan, folder, i, stream++, defect});
  };
  add("train/good", options.train, std::nullopt);
  add("test/good", options.test_good, std::nullopt);
  for (const Kind& kind : object ? kObjectKinds : kTextureKinds) {
    add("test/" + std::string(kind.name), options.test_per_kind, kind.defect);
    // The last spot of a category is the pair of squares.
    if (kind.defect == Defect::spot && options.test_per_kind > 0) items.back().defect = Defect::corners;
  }
}

/// Picture and mask (empty for a good image).
inline std::pair<Scene, Map<std::uint8_t>> draw(const Plan& plan, const Item& item, const GenerateOptions& options) {
  // The category's name decides its numbers, so the others of the set do not change it.
  std::uint64_t name = 0;
  for (const char c : plan.name) name = (name ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  const auto stream = (name << 20) ^ (static_cast<std::uint64_t>(item.stream) << 1);
  Random normal(options.seed, stream), defect(options.seed, stream | 1u);
  Scene scene = plan.draw != nullptr ? plan.draw(options.size, normal) : photo_scene(plan.photo, options.size, normal);
  Map<std::uint8_t> mask;
  if (item.defect) mask = paint(scene, *item.defect, defect);
  return {std::move(scene), std::move(mask)};
}

}  // namespace detail

/// Writes the data set under `folder` (created where it does not exist), one folder a category.
/// Files appear whole or not at all; a stopped run leaves a smaller data set.
/// Errors: invalid_argument (options; a category's folder that already holds something), those of reading the texture files, io_error,
/// cancelled.
inline Result<Generated> generate(const std::string& folder, const GenerateOptions& options = {}, const Observer& observer = {},
                                  Parallel parallel = {}) {
  namespace fs = std::filesystem;
  constexpr std::string_view kFunction = "data::generate";
  NORMA_TRY(const auto plans, detail::plan_categories(options));
  Generated out;
  std::vector<detail::Item> items;
  for (std::size_t i = 0; i < plans.size(); ++i) {
    const std::string path = folder + "/" + plans[i].name;
    std::error_code error;
    if (fs::exists(path, error) && !fs::is_empty(path, error) && !error) {
      return Status{Errc::invalid_argument,
                    std::string(kFunction) + ": '" + path + "' already exists, expected no such folder or an empty one"};
    }
    if (error) return detail::folder_error(kFunction, path, error);
    detail::list_items(i, plans[i].object, options, items);
    out.categories.push_back(plans[i].name);
  }
  const auto place = [&](const detail::Item& item) { return folder + "/" + plans[item.plan].name + "/" + item.folder; };
  const auto truth = [&](const detail::Item& item) {
    return folder + "/" + plans[item.plan].name + "/ground_truth/" + item.folder.substr(item.folder.rfind('/') + 1);
  };
  for (const detail::Item& item : items) {
    if (item.number != 0) continue;
    std::error_code error;
    fs::create_directories(place(item), error);
    if (!error && item.defect) fs::create_directories(truth(item), error);
    if (error) return detail::folder_error(kFunction, place(item), error);
  }
  Progress progress("generate", static_cast<std::int64_t>(items.size()), observer);
  constexpr std::size_t kBlock = 32;  // images between two reports
  std::array<Status, kBlock> statuses;
  for (std::size_t begin = 0; begin < items.size(); begin += kBlock) {
    const auto count = static_cast<std::int64_t>(std::min(kBlock, items.size() - begin));
    parallel.run(count, [&](std::int64_t task, int) {
      const detail::Item& item = items[begin + static_cast<std::size_t>(task)];
      std::string number = std::to_string(item.number);
      number.insert(0, number.size() < 3 ? 3 - number.size() : 0, '0');
      const auto [scene, mask] = detail::draw(plans[item.plan], item, options);
      Status& status = statuses[static_cast<std::size_t>(task)];
      status = image::write_png(place(item) + "/" + number + ".png", scene.picture.view());
      if (status.ok() && item.defect) {
        status = image::write_png(truth(item) + "/" + number + "_mask.png",
                                  image::view(mask.data(), mask.rows(), mask.cols(), mask.cols(), PixelFormat::gray8));
      }
    });
    for (std::int64_t i = 0; i < count; ++i) {
      NORMA_CHECK(statuses[static_cast<std::size_t>(i)]);
      out.masks += items[begin + static_cast<std::size_t>(i)].defect ? 1 : 0;
    }
    out.images += count;
    NORMA_CHECK(progress.advance(count));
  }
  return out;
}

}  // namespace norma::data
