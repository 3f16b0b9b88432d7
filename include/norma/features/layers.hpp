/// \file
/// The layers that a backbone is tapped at, as a value that a constant, a settings file and a command line can hold.
#pragma once

#include <array>
#include <string>
#include <string_view>

#include <norma/core/features.hpp>
#include <norma/nn/graph.hpp>

namespace norma {

/// Public tap names of a network, shallow to deep: `Layers{"layer2", "layer3"}`; as text `layer2,layer3`.
struct Layers {
  std::array<nn::Name, kMaxLevels> names{};
  int count = 0;

  constexpr Layers() = default;
  template <class... Names>
    requires(sizeof...(Names) > 0 && (std::is_convertible_v<const Names&, std::string_view> && ...))
  constexpr Layers(const Names&... all) {  // NOLINT(google-explicit-constructor)
    static_assert(sizeof...(Names) <= kMaxLevels, "Layers: at most 8 layers");
    (add(std::string_view(all)), ...);
  }
  constexpr void add(std::string_view name) {
    NORMA_EXPECTS(count < kMaxLevels);
    names[static_cast<std::size_t>(count++)] = nn::Name(name);
  }
  [[nodiscard]] constexpr std::string_view operator[](int i) const { return names[static_cast<std::size_t>(i)].view(); }
  friend constexpr bool operator==(const Layers& a, const Layers& b) {
    if (a.count != b.count) return false;
    for (int i = 0; i < a.count; ++i) {
      if (a[i] != b[i]) return false;
    }
    return true;
  }
  [[nodiscard]] std::string text() const {
    std::string joined;
    for (int i = 0; i < count; ++i) {
      if (i > 0) joined += ',';
      joined += (*this)[i];
    }
    return joined;
  }
  /// False for an empty list, an empty or over-long name, or more than 8 of them.
  bool from_text(std::string_view text) {
    Layers parsed;
    for (;;) {
      const auto comma = text.find(',');
      const auto name = text.substr(0, comma);
      if (name.empty() || name.size() > nn::Name::kCapacity || parsed.count == kMaxLevels) return false;
      parsed.add(name);
      if (comma == std::string_view::npos) break;
      text.remove_prefix(comma + 1);
    }
    *this = parsed;
    return true;
  }
};

}  // namespace norma
