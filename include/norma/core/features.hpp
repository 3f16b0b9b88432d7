/// \file
/// What a backbone hands to an estimator for one image: a few feature maps, coarse to compute with, all channels last.
#pragma once

#include <array>

#include <norma/core/view.hpp>

namespace norma {

inline constexpr int kMaxLevels = 8;

/// The shapes of the levels, known before anything runs. A pooled vector is a level of 1 x 1 positions.
struct FeatureShapes {
  std::array<Shape, kMaxLevels> level{};
  int count = 0;
  constexpr void add(Shape shape) noexcept {
    NORMA_EXPECTS(count < kMaxLevels);
    level[static_cast<std::size_t>(count++)] = shape;
  }
  [[nodiscard]] constexpr const Shape& operator[](int i) const noexcept { return level[static_cast<std::size_t>(i)]; }
  /// Numbers of all levels.
  [[nodiscard]] constexpr std::int64_t numbers() const noexcept {
    std::int64_t total = 0;
    for (int i = 0; i < count; ++i) total += (*this)[i].count();
    return total;
  }
  friend constexpr bool operator==(const FeatureShapes& a, const FeatureShapes& b) noexcept {
    if (a.count != b.count) return false;
    for (int i = 0; i < a.count; ++i) {
      if (!(a[i] == b[i])) return false;
    }
    return true;
  }
};

/// Views of the levels of one image (batch 1), in memory of the workspace: valid until the next image.
struct Features {
  std::array<TensorView<const float>, kMaxLevels> level{};
  int count = 0;
  void add(TensorView<const float> view) noexcept {
    NORMA_EXPECTS(count < kMaxLevels);
    level[static_cast<std::size_t>(count++)] = view;
  }
  [[nodiscard]] const TensorView<const float>& operator[](int i) const noexcept { return level[static_cast<std::size_t>(i)]; }
  [[nodiscard]] FeatureShapes shapes() const noexcept {
    FeatureShapes all;
    for (int i = 0; i < count; ++i) all.add((*this)[i].shape());
    return all;
  }
};

}  // namespace norma
