/// \file
/// Images that are already in memory as a source; needs no file system.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <norma/concepts/source.hpp>

namespace norma::data {

/// Owned images, or frames that stay in the caller's memory (which must outlive the source). `load` gives 8-bit copies.
class InMemory {
 public:
  InMemory() noexcept = default;
  explicit InMemory(std::vector<Image> images, std::string label = "image") : owned_(std::move(images)), label_(std::move(label)) {}
  explicit InMemory(std::span<const ImageView> frames, std::string label = "frame")
      : frames_(frames.begin(), frames.end()), label_(std::move(label)) {}

  [[nodiscard]] std::int64_t size() const noexcept { return static_cast<std::int64_t>(owned_.size() + frames_.size()); }
  /// Errors: those of `validate(ImageView)`, with the name of the frame.
  [[nodiscard]] Result<Image> load(std::int64_t i) const {
    NORMA_EXPECTS(i >= 0 && i < size());
    if (!owned_.empty()) return owned_[static_cast<std::size_t>(i)];
    auto copy = image::to_image(frames_[static_cast<std::size_t>(i)]);
    if (!copy) return copy.status().with_context(name(i));
    return copy;
  }
  /// The label and the number of the image: "frame 3".
  [[nodiscard]] std::string name(std::int64_t i) const { return label_ + " " + std::to_string(i); }
  [[nodiscard]] Status status() const noexcept { return {}; }

 private:
  std::vector<Image> owned_;
  std::vector<ImageView> frames_;
  std::string label_ = "image";
};

static_assert(Source<InMemory>);

}  // namespace norma::data
