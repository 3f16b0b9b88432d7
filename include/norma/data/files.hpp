/// \file
/// A list of image files as a source (concepts/source.hpp).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <norma/concepts/source.hpp>
#include <norma/core/status.hpp>
#include <norma/image/decode.hpp>

namespace norma::data {

/// Decodes on every `load`; keeps nothing in memory but the paths. Errors of `load` name the file.
class Files {
 public:
  Files() noexcept = default;
  explicit Files(std::vector<std::string> paths) noexcept : paths_(std::move(paths)) {}
  /// A source that could not be opened.
  explicit Files(Status why_not) noexcept : status_(std::move(why_not)) {}

  [[nodiscard]] std::int64_t size() const noexcept { return static_cast<std::int64_t>(paths_.size()); }
  [[nodiscard]] Result<Image> load(std::int64_t i) const { return image::read(name(i)); }
  /// The path as it was given or found.
  [[nodiscard]] const std::string& name(std::int64_t i) const noexcept {
    NORMA_EXPECTS(i >= 0 && i < size());
    return paths_[static_cast<std::size_t>(i)];
  }
  [[nodiscard]] const Status& status() const noexcept { return status_; }
  [[nodiscard]] std::span<const std::string> paths() const noexcept { return paths_; }

 private:
  std::vector<std::string> paths_;
  Status status_;
};

static_assert(Source<Files>);

}  // namespace norma::data
