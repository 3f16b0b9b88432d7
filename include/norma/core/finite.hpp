/// \file
/// NaN and infinity are reported, never scored as normal.
#pragma once

#include <bit>
#include <cstdint>

#include <norma/core/view.hpp>

namespace norma {

/// Index of the first element that is NaN or infinite, or -1. Looks at the bits, so it also works under fast-math.
inline std::int64_t first_not_finite(std::span<const float> values) noexcept {
  constexpr std::uint32_t kExponent = 0x7f800000u;
  constexpr std::size_t kBlock = 1024;
  for (std::size_t begin = 0; begin < values.size(); begin += kBlock) {
    const std::size_t end = begin + kBlock < values.size() ? begin + kBlock : values.size();
    std::uint32_t bad = 0;  // a branch-free block first, so that the usual case runs at memory speed
    for (std::size_t i = begin; i < end; ++i) bad |= static_cast<std::uint32_t>((std::bit_cast<std::uint32_t>(values[i]) & kExponent) == kExponent);
    if (bad == 0) continue;
    for (std::size_t i = begin; i < end; ++i) {
      if ((std::bit_cast<std::uint32_t>(values[i]) & kExponent) == kExponent) return static_cast<std::int64_t>(i);
    }
  }
  return -1;
}

}  // namespace norma
