/// \file
/// Connected components of a mask: the regions of which PRO speaks.
/// Shapes:      mask [height, width], non-zero = inside; labels [height, width]
/// Cost:        two passes with union-find, O(height * width), no recursion
/// Determinism: regions are numbered 1, 2, ... in raster order of their first pixel
#pragma once

#include <cstdint>
#include <vector>

#include <norma/core/tensor.hpp>

namespace norma::evaluation {

/// Which neighbours belong together: `eight` joins pixels that touch at a corner, as the evaluation of MVTec AD does.
enum class Connectivity : std::uint8_t { four, eight };

struct Components {
  Map<std::int32_t> labels;         ///< 0 outside, 1 ... count() inside
  std::vector<std::int64_t> sizes;  ///< pixels of region k at [k - 1]
  [[nodiscard]] std::int64_t count() const noexcept { return static_cast<std::int64_t>(sizes.size()); }
};

/// Precondition: fewer than 2^31 pixels.
inline Components connected_components(MapView<const std::uint8_t> mask, Connectivity connectivity = Connectivity::eight) {
  Components out;
  out.labels = Map<std::int32_t>(mask.rows, mask.cols);
  std::vector<std::int32_t> parent(1, 0);  // of provisional labels; a root is the smallest label of its region
  const auto root = [&](std::int32_t label) {
    while (parent[static_cast<std::size_t>(label)] != label) {
      auto& up = parent[static_cast<std::size_t>(label)];
      up = parent[static_cast<std::size_t>(up)];
      label = up;
    }
    return label;
  };
  const bool corners = connectivity == Connectivity::eight;
  for (std::int64_t y = 0; y < mask.rows; ++y) {
    const std::uint8_t* inside = mask.data + y * mask.stride;
    std::int32_t* here = out.labels.data() + y * mask.cols;
    const std::int32_t* above = y > 0 ? here - mask.cols : nullptr;
    for (std::int64_t x = 0; x < mask.cols; ++x) {
      if (inside[x] == 0) continue;
      std::int32_t label = 0;
      const auto join = [&](std::int32_t neighbour) {
        if (neighbour == 0) return;
        neighbour = root(neighbour);
        if (label == 0 || label == neighbour) {
          label = neighbour;
        } else {
          const std::int32_t low = label < neighbour ? label : neighbour;
          parent[static_cast<std::size_t>(label < neighbour ? neighbour : label)] = low;
          label = low;
        }
      };
      if (x > 0) join(here[x - 1]);
      if (above != nullptr) {
        if (corners && x > 0) join(above[x - 1]);
        join(above[x]);
        if (corners && x + 1 < mask.cols) join(above[x + 1]);
      }
      if (label == 0) {
        label = static_cast<std::int32_t>(parent.size());
        parent.push_back(label);
      }
      here[x] = label;
    }
  }
  // The first pixel of a region got its smallest label, so numbering the roots in order numbers the regions in raster order.
  std::vector<std::int32_t> number(parent.size(), 0);
  std::int32_t regions = 0;
  for (std::size_t label = 1; label < parent.size(); ++label) {
    const auto top = static_cast<std::size_t>(root(static_cast<std::int32_t>(label)));
    number[label] = top == label ? ++regions : number[top];
  }
  out.sizes.assign(static_cast<std::size_t>(regions), 0);
  for (std::int64_t i = 0; i < mask.rows * mask.cols; ++i) {
    std::int32_t& label = out.labels.data()[i];
    if (label == 0) continue;
    label = number[static_cast<std::size_t>(label)];
    ++out.sizes[static_cast<std::size_t>(label - 1)];
  }
  return out;
}

}  // namespace norma::evaluation
