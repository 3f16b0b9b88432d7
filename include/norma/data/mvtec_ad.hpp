/// \file
/// Data sets in the layout of MVTec AD: `<root>/<category>/train/good`, `test/<kind>`, `ground_truth/<kind>/<stem>_mask.png`.
/// Source:  Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021. The data themselves are not part of norma.
/// Labels:  come from the folder (`good` = 0), never from the mask. Masks pair with images by name, never by position.
/// Memory:  paths only; images and masks are decoded when asked for
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/data/files.hpp>
#include <norma/data/listing.hpp>
#include <norma/image/decode.hpp>
#include <norma/io/sha256.hpp>

namespace norma::data {

/// Whether an anomalous test image without a mask is an error, or counts for image-level figures only.
enum class Masks : std::uint8_t { required, optional };

/// Which stored values of a mask mean "anomalous".
enum class MaskRule : std::uint8_t {
  /// `half` for a file that holds a value >= 128, else `nonzero`. The same as `nonzero` for masks of 0 and 255 (MVTec AD) and of 0 and
  /// 1; ignores the grey fringe of masks that once were JPEG or were resized.
  automatic,
  nonzero,  ///< every value except 0: class-coded masks
  half,     ///< values >= 128
};

constexpr std::string_view to_string(MaskRule rule) noexcept {
  switch (rule) {
    case MaskRule::automatic: return ">= 128 where a mask holds such a value, else non-zero";
    case MaskRule::nonzero: return "non-zero";
    case MaskRule::half: return ">= 128";
  }
  return "unknown";
}

/// 1 where the stored value is anomalous under `rule`, else 0. A colour mask counts by its largest channel.
[[nodiscard]] inline Map<std::uint8_t> binary_mask(const Image& stored, MaskRule rule = MaskRule::automatic) {
  const std::uint8_t* values = stored.data();
  if (rule == MaskRule::automatic) {
    rule = std::any_of(values, values + stored.size_bytes(), [](std::uint8_t v) { return v >= 128; }) ? MaskRule::half : MaskRule::nonzero;
  }
  const std::uint8_t least = rule == MaskRule::half ? 128 : 1;
  Map<std::uint8_t> mask(stored.height(), stored.width());
  for (std::int64_t i = 0; i < stored.height() * stored.width(); ++i) {
    for (std::int64_t c = 0; c < stored.channels(); ++c) {
      if (values[i * stored.channels() + c] >= least) mask.data()[i] = 1;
    }
  }
  return mask;
}

struct MvtecAdOptions {
  Masks masks = Masks::required;
  MaskRule mask_rule = MaskRule::automatic;
};

struct TestSample {
  std::string path;
  std::string kind;                      ///< the folder's name: "good", "scratch", ...
  std::uint8_t label = 0;                ///< 0 good, 1 anomalous
  std::optional<std::string> mask_path;  ///< of anomalous images; absent where there is none
};

struct KindCount {
  std::string kind;
  std::int64_t images = 0;
  std::int64_t masks = 0;
};

struct MvtecAdCounts {
  std::int64_t train = 0;
  std::int64_t test_good = 0;
  std::int64_t test_anomalous = 0;
  std::int64_t masks = 0;          ///< anomalous images with a mask
  std::int64_t missing_masks = 0;  ///< anomalous images without
  std::vector<KindCount> kinds;    ///< of the test images, in the order of the listing
};

class MvtecAd {
 public:
  /// Folders directly inside `root` that hold `train/good`.
  static Result<std::vector<std::string>> categories(const std::string& root) {
    NORMA_TRY(const auto folders, list_folders(root));
    std::vector<std::string> found;
    for (const std::string& folder : folders) {
      if (is_folder(join(root, folder) + "/train/good")) found.push_back(folder);
    }
    return found;
  }

  /// Lists the files of one category; with an empty `category`, `root` is the category's own folder. Decodes nothing.
  /// A category without a test folder opens with a warning (enough to fit).
  /// Errors: not_found (folders, an unknown category with the ones that exist, no training image, a missing mask where they are
  /// required; each names the path), io_error.
  static Result<MvtecAd> open(const std::string& root, const std::string& category = {}, const MvtecAdOptions& options = {}) {
    MvtecAd set;
    set.options_ = options;
    NORMA_TRY(set.folder_, category_folder(root, category));
    set.category_ = set.folder_.substr(set.folder_.rfind('/') + 1);
    const std::string train = set.folder_ + "/train/good";
    NORMA_TRY(auto names, list_images(train));
    if (names.empty()) return Status{Errc::not_found, "MvtecAd::open: '" + train + "': no images"};
    for (std::string& name : names) set.relative_.push_back("train/good/" + name);
    set.train_ = Files(set.paths_of(set.relative_));
    NORMA_CHECK(set.list_test());
    set.count();
    if (set.counts_.missing_masks > 0) {
      const auto first = std::find_if(set.test_.begin(), set.test_.end(), [](const auto& s) { return s.label == 1 && !s.mask_path; });
      const std::string_view name = std::string_view(first->path).substr(first->path.rfind('/') + 1);
      const std::string what = std::to_string(set.counts_.missing_masks) + " of " + std::to_string(set.counts_.test_anomalous) +
                               " anomalous images have no mask, the first is '" + first->path + "'";
      if (options.masks == Masks::required) {
        return Status{Errc::not_found, "MvtecAd::open: " + what + ", expected '" + set.folder_ + "/ground_truth/" + first->kind + "/" +
                                           std::string(stem_of(name)) +
                                           "_mask.png' (optional masks keep such images for image-level figures)"};
      }
      set.warnings_.push_back(what + "; left out of pixel-level figures");
    }
    return set;
  }

  /// The name of the category's folder.
  [[nodiscard]] const std::string& category() const noexcept { return category_; }
  /// The category's folder.
  [[nodiscard]] const std::string& folder() const noexcept { return folder_; }
  [[nodiscard]] MaskRule mask_rule() const noexcept { return options_.mask_rule; }
  [[nodiscard]] const MvtecAdCounts& counts() const noexcept { return counts_; }
  /// What deserves a look but stops nothing; each names the file or folder.
  [[nodiscard]] std::span<const std::string> warnings() const noexcept { return warnings_; }

  /// The good training images as a source.
  [[nodiscard]] const Files& train() const noexcept { return train_; }
  /// All test images, kind by kind in the order of the listing.
  [[nodiscard]] std::span<const TestSample> test() const noexcept { return test_; }
  /// Test image `i`; `times` as for `image::read`.
  [[nodiscard]] Result<Image> load(std::int64_t i, StageTimes* times = nullptr) const { return image::read(sample(i).path, {}, times); }
  /// Whether pixel-level figures may use test image `i`: good images always, the others when they have a mask.
  [[nodiscard]] bool has_mask(std::int64_t i) const noexcept { return sample(i).label == 0 || sample(i).mask_path.has_value(); }

  /// Mask of test image `i` as 0 and 1; all zero for a good image. The image is decoded only for its size: pass that where it is known.
  /// Errors: not_found (no mask), shape_mismatch (a mask of another size), those of `image::read`; each names the file.
  [[nodiscard]] Result<Map<std::uint8_t>> load_mask(std::int64_t i) const {
    NORMA_TRY(const Image picture, load(i));
    return load_mask(i, picture.height(), picture.width());
  }
  [[nodiscard]] Result<Map<std::uint8_t>> load_mask(std::int64_t i, std::int64_t height, std::int64_t width) const {
    const TestSample& s = sample(i);
    if (s.label == 0) return Map<std::uint8_t>(height, width);
    if (!s.mask_path) return Status{Errc::not_found, "MvtecAd::load_mask: '" + s.path + "' has no mask"};
    NORMA_TRY(const Image stored, image::read(*s.mask_path));
    if (stored.height() != height || stored.width() != width) {
      const auto size = [](std::int64_t h, std::int64_t w) { return std::to_string(h) + "x" + std::to_string(w); };
      return Status{Errc::shape_mismatch, "MvtecAd::load_mask: '" + *s.mask_path + "': height x width, expected " + size(height, width) +
                                              " like '" + s.path + "', found " + size(stored.height(), stored.width())};
    }
    return binary_mask(stored, options_.mask_rule);
  }

  /// The sentence for a report where the mask of an anomalous image is all zero: its label stays 1, but it has no region for AU-PRO.
  [[nodiscard]] std::optional<std::string> mask_warning(std::int64_t i, MapView<const std::uint8_t> mask) const {
    const TestSample& s = sample(i);
    if (s.label == 0 || !s.mask_path) return std::nullopt;
    for (std::int64_t y = 0; y < mask.rows; ++y) {
      for (const std::uint8_t value : mask.row(y)) {
        if (value != 0) return std::nullopt;
      }
    }
    return "'" + *s.mask_path + "': the mask of an anomalous image is all zero; it counts as anomalous, but has no region";
  }

  /// SHA-256 over the listed images and masks, sorted by bytes: for each `<path inside the category>\t<size in bytes>\n`. Tells two
  /// releases or a changed folder apart without reading the images. Errors: io_error, not_found (a file gone since `open`).
  [[nodiscard]] Result<std::string> digest() const {
    std::vector<std::string> files = relative_;
    std::sort(files.begin(), files.end());
    io::Sha256 hash;
    for (const std::string& file : files) {
      std::error_code error;
      const auto size = std::filesystem::file_size(folder_ + "/" + file, error);
      if (error) return detail::folder_error("MvtecAd::digest", folder_ + "/" + file, error);
      hash.update(io::as_bytes(file + "\t" + std::to_string(size) + "\n"));
    }
    return hash.hex();
  }

 private:
  static std::string join(const std::string& root, const std::string& name) {
    return root.ends_with('/') ? root + name : root + "/" + name;
  }

  static bool is_folder(const std::string& path) {
    std::error_code ignored;
    return std::filesystem::is_directory(path, ignored);
  }

  static std::string listed(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
  }

  static Result<std::string> category_folder(const std::string& root, const std::string& category) {
    // Also the check that `root` is a readable folder.
    auto found = categories(root);
    if (!found) return found.status().with_context("MvtecAd::open");
    std::string folder = category.empty() ? root : join(root, category);
    while (folder.size() > 1 && folder.ends_with('/')) folder.pop_back();
    if (is_folder(folder + "/train/good")) return folder;
    std::string what = "MvtecAd::open: ";
    if (category.empty()) {
      what += "'" + root + "': no folder 'train/good'";
      what += found->empty() ? ", expected a category in the layout of MVTec AD"
                             : ", expected the name of a category too, found " + listed(*found);
    } else if (!is_folder(folder)) {
      what += "no category '" + category + "' in '" + root + "', ";
      what += !found->empty()                     ? "found " + listed(*found)
              : is_folder(join(root, "train/good")) ? "which holds 'train/good' itself: leave the category empty"
                                                    : "nor any other (a category holds 'train/good')";
    } else {
      what += "'" + folder + "': no folder 'train/good'";
    }
    return Status{Errc::not_found, std::move(what)};
  }

  [[nodiscard]] std::vector<std::string> paths_of(const std::vector<std::string>& relative) const {
    std::vector<std::string> paths;
    for (const std::string& name : relative) paths.push_back(folder_ + "/" + name);
    return paths;
  }

  [[nodiscard]] const TestSample& sample(std::int64_t i) const noexcept {
    NORMA_EXPECTS(i >= 0 && i < static_cast<std::int64_t>(test_.size()));
    return test_[static_cast<std::size_t>(i)];
  }

  Status list_test() {
    if (!is_folder(folder_ + "/test")) {
      warnings_.push_back("'" + folder_ + "/test': no such folder, so there is nothing to evaluate");
      return {};
    }
    NORMA_TRY(const auto kinds, list_folders(folder_ + "/test"));
    for (const std::string& kind : kinds) {
      NORMA_TRY(const auto images, list_images(folder_ + "/test/" + kind));
      if (images.empty()) {
        warnings_.push_back("'" + folder_ + "/test/" + kind + "': no images");
        continue;
      }
      const std::uint8_t label = kind == "good" ? 0 : 1;
      const std::string truth = "ground_truth/" + kind;
      std::vector<std::string> masks;
      if (label == 1 && is_folder(folder_ + "/" + truth)) {
        NORMA_TRY(masks, list_images(folder_ + "/" + truth));
      }
      std::vector<bool> used(masks.size(), false);
      for (const std::string& name : images) {
        TestSample s{folder_ + "/test/" + kind + "/" + name, kind, label, std::nullopt};
        for (const std::string_view suffix : {"_mask", ""}) {
          const std::string stem = std::string(stem_of(name)) + std::string(suffix);
          const auto mask = std::find_if(masks.begin(), masks.end(), [&](const std::string& m) { return stem_of(m) == stem; });
          if (mask == masks.end()) continue;
          used[static_cast<std::size_t>(mask - masks.begin())] = true;
          s.mask_path = folder_ + "/" + truth + "/" + *mask;
          break;
        }
        relative_.push_back("test/" + kind + "/" + name);
        test_.push_back(std::move(s));
      }
      for (std::size_t m = 0; m < masks.size(); ++m) {
        relative_.push_back(truth + "/" + masks[m]);
        if (!used[m]) warnings_.push_back("'" + folder_ + "/" + truth + "/" + masks[m] + "': a mask without an image");
      }
    }
    if (test_.empty()) warnings_.push_back("'" + folder_ + "/test': no images, so there is nothing to evaluate");
    if (!is_folder(folder_ + "/ground_truth")) return {};
    NORMA_TRY(const auto truths, list_folders(folder_ + "/ground_truth"));
    for (const std::string& kind : truths) {
      const std::string where = "'" + folder_ + "/ground_truth/" + kind + "': ";
      if (kind == "good") {
        warnings_.push_back(where + "not used (good images have an all-zero mask)");
      } else if (std::find(kinds.begin(), kinds.end(), kind) == kinds.end()) {
        warnings_.push_back(where + "masks without images (no folder 'test/" + kind + "')");
      }
    }
    return {};
  }

  void count() {
    counts_.train = train_.size();
    for (const TestSample& s : test_) {
      if (counts_.kinds.empty() || counts_.kinds.back().kind != s.kind) counts_.kinds.push_back({s.kind, 0, 0});
      ++counts_.kinds.back().images;
      ++(s.label == 0 ? counts_.test_good : counts_.test_anomalous);
      if (s.label == 0) continue;
      ++(s.mask_path ? counts_.masks : counts_.missing_masks);
      if (s.mask_path) ++counts_.kinds.back().masks;
    }
  }

  std::string category_, folder_;
  MvtecAdOptions options_;
  Files train_;
  std::vector<TestSample> test_;
  std::vector<std::string> relative_;  // every listed file, inside the category's folder
  std::vector<std::string> warnings_;
  MvtecAdCounts counts_;
};

}  // namespace norma::data
