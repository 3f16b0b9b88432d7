/// \file
/// Parts of a source: some of its images, and a random split that holds a part back for calibration.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <norma/concepts/source.hpp>
#include <norma/core/random.hpp>

namespace norma::data {

/// Chosen images of a source, in the order of `indices`. The source must outlive the subset.
template <class S>
class Subset {
 public:
  /// Precondition: every index in [0, source.size()).
  Subset(const S& source, std::vector<std::int64_t> indices) : source_(&source), indices_(std::move(indices)) {
    for ([[maybe_unused]] const std::int64_t i : indices_) NORMA_EXPECTS(i >= 0 && i < source.size());
  }
  [[nodiscard]] std::int64_t size() const noexcept { return static_cast<std::int64_t>(indices_.size()); }
  [[nodiscard]] auto load(std::int64_t i) const { return source_->load(indices_[static_cast<std::size_t>(i)]); }
  [[nodiscard]] std::string name(std::int64_t i) const { return source_->name(indices_[static_cast<std::size_t>(i)]); }
  [[nodiscard]] Status status() const { return source_->status(); }

 private:
  const S* source_;
  std::vector<std::int64_t> indices_;
};

/// Indices of one source, each in one of the two lists, both rising.
struct Split {
  std::vector<std::int64_t> fit, held_out;
};

/// Holds back round(fraction * size) images, at least one and at most size - 1, chosen by `seed`.
/// Errors: invalid_argument (fraction outside (0, 1)), not_enough_data (fewer than two images).
inline Result<Split> split_held_out(std::int64_t size, double fraction = 0.1, std::uint64_t seed = 0) {
  if (!(fraction > 0.0 && fraction < 1.0)) {
    return Status{Errc::invalid_argument, "data::split_held_out: fraction, expected in (0, 1), found " + std::to_string(fraction)};
  }
  if (size < 2) return Status{Errc::not_enough_data, "data::split_held_out: images, expected at least 2, found " + std::to_string(size)};
  const auto held = std::clamp<std::int64_t>(std::llround(fraction * static_cast<double>(size)), 1, size - 1);
  Random random(seed);
  Split split;
  split.held_out = sample_without_replacement(size, held, random);
  std::sort(split.held_out.begin(), split.held_out.end());
  for (std::int64_t i = 0; i < size; ++i) {
    if (!std::binary_search(split.held_out.begin(), split.held_out.end(), i)) split.fit.push_back(i);
  }
  return split;
}

}  // namespace norma::data
