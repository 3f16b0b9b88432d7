/// \file
/// Colour scales for maps. Each is a path through OKLab (Björn Ottosson, 2020), whose lightness rises evenly from end to end, so that equal
/// steps of the value look equal and a grey print still reads.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <string_view>

namespace norma {

enum class ColourMap : std::uint8_t {
  ember,   ///< near black, violet, red, orange, pale yellow: heat
  meadow,  ///< dark blue, teal, green, yellow: also for those who do not tell red from green
  gray,    ///< black to white
};

constexpr std::string_view to_string(ColourMap map) noexcept {
  switch (map) {
    case ColourMap::ember: return "ember";
    case ColourMap::meadow: return "meadow";
    case ColourMap::gray: return "gray";
  }
  return "unknown";
}

/// An 8-bit sRGB colour.
struct Rgb {
  std::uint8_t r = 0;
  std::uint8_t g = 0;
  std::uint8_t b = 0;
  friend constexpr bool operator==(const Rgb&, const Rgb&) = default;
};

namespace image {

/// 256 colours, lowest value first.
using ColourTable = std::array<Rgb, 256>;

/// OKLab with the lightness in 0 .. 1, chroma, and hue in degrees, as the nearest sRGB colour.
inline Rgb from_oklch(double lightness, double chroma, double hue_degrees) noexcept {
  const double hue = hue_degrees * std::numbers::pi / 180.0;
  const double a = chroma * std::cos(hue);
  const double b = chroma * std::sin(hue);
  const auto cube = [](double v) { return v * v * v; };
  const double l = cube(lightness + 0.3963377774 * a + 0.2158037573 * b);
  const double m = cube(lightness - 0.1055613458 * a - 0.0638541728 * b);
  const double s = cube(lightness - 0.0894841775 * a - 1.2914855480 * b);
  const auto encode = [](double linear) {
    linear = std::clamp(linear, 0.0, 1.0);
    const double v = linear <= 0.0031308 ? 12.92 * linear : 1.055 * std::pow(linear, 1.0 / 2.4) - 0.055;
    return static_cast<std::uint8_t>(std::lround(255.0 * v));
  };
  return {encode(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s), encode(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s),
          encode(-0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s)};
}

inline ColourTable colour_table(ColourMap map) noexcept {
  struct Stop {
    double lightness, chroma, hue;
  };
  // Evenly spaced; hues go the short way between neighbours. Chroma stays inside sRGB at each lightness.
  static constexpr std::array<Stop, 6> kEmber{
      {{0.10, 0.03, 285}, {0.28, 0.14, 300}, {0.46, 0.19, 360}, {0.63, 0.20, 392}, {0.80, 0.16, 430}, {0.96, 0.09, 465}}};
  static constexpr std::array<Stop, 6> kMeadow{
      {{0.25, 0.10, 285}, {0.40, 0.10, 255}, {0.54, 0.09, 210}, {0.67, 0.12, 170}, {0.80, 0.17, 138}, {0.93, 0.18, 106}}};
  static constexpr std::array<Stop, 6> kGray{{{0.0, 0, 0}, {0.2, 0, 0}, {0.4, 0, 0}, {0.6, 0, 0}, {0.8, 0, 0}, {1.0, 0, 0}}};
  const auto& stops = map == ColourMap::ember ? kEmber : (map == ColourMap::meadow ? kMeadow : kGray);
  ColourTable table;
  for (std::size_t i = 0; i < table.size(); ++i) {
    const double place = static_cast<double>(i) / 255.0 * static_cast<double>(stops.size() - 1);
    const auto low = std::min(static_cast<std::size_t>(place), stops.size() - 2);
    const double t = place - static_cast<double>(low);
    const auto mix = [&](double a, double b) { return a + t * (b - a); };
    table[i] = from_oklch(mix(stops[low].lightness, stops[low + 1].lightness), mix(stops[low].chroma, stops[low + 1].chroma),
                          mix(stops[low].hue, stops[low + 1].hue));
  }
  return table;
}

/// The colour of `value` on a scale from `low` to `high`, held at its ends; NaN counts as `low`.
inline Rgb colour_of(const ColourTable& table, float value, float low, float high) noexcept {
  const float place = high > low ? (value - low) / (high - low) : (value >= high ? 1.0f : 0.0f);
  if (!(place > 0.0f)) return table.front();
  return place >= 1.0f ? table.back() : table[static_cast<std::size_t>(place * 255.0f + 0.5f)];
}

}  // namespace image
}  // namespace norma
