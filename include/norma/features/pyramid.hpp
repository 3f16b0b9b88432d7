/// \file
/// Embedding policy of SPADE: the layers as they are, and one vector for the whole image.
/// Source: Cohen and Hoshen, arXiv 2005.02357, section 3.
#pragma once

#include <span>
#include <string_view>

#include <norma/core/features.hpp>
#include <norma/core/status.hpp>
#include <norma/core/context.hpp>

namespace norma {

/// Shapes: taps [1, h_l, w_l, c_l] -> the same levels, then [1, 1, c] : the last tap averaged over its positions.
/// The last tap serves the vector only where `pooled_only` (the network's deepest layer); a 1 x 1 tap is taken as it is.
class Pyramid {
 public:
  static constexpr std::string_view name = "pyramid";
  static constexpr std::string_view default_layers = "pyramid_and_pooled";
  struct Settings {
    bool pooled_only = true;
    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      visitor("pooled_only", self.pooled_only, "the last layer gives the image's vector only and is not matched patch by patch");
    }
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  static Status validate(std::span<const Shape> taps, const Settings& settings) {
    if (taps.size() < (settings.pooled_only ? 2u : 1u)) {
      return {Errc::invalid_argument, "Pyramid: needs at least one layer to match and one to pool, found " + std::to_string(taps.size())};
    }
    if (taps.size() + 1 > kMaxLevels && !settings.pooled_only) return {Errc::invalid_argument, "Pyramid: at most 7 layers"};
    return {};
  }
  static constexpr FeatureShapes shapes(std::span<const Shape> taps, const Settings& settings) noexcept {
    FeatureShapes out;
    const std::size_t maps = taps.size() - (settings.pooled_only ? 1 : 0);
    for (std::size_t i = 0; i < maps; ++i) out.add(taps[i]);
    out.add({1, 1, taps.back().channels});
    return out;
  }
  static constexpr std::size_t scratch_bytes(std::span<const Shape> taps, const Settings&, int /*workers*/) noexcept {
    return arena_bytes<float>(taps.back().channels);
  }
  static Result<Pyramid> create(std::span<const Shape> taps, const Settings& settings) {
    NORMA_CHECK(validate(taps, settings));
    Pyramid pyramid;
    pyramid.settings_ = settings;
    return pyramid;
  }

  Status embed(std::span<const TensorView<const float>> taps, Features& out, Context& context) const {
    const auto& deepest = taps.back();
    float* mean = context.arena.take<float>(deepest.channels);
    const auto rows = deepest.patches();
    const float scale = 1.0f / static_cast<float>(rows.rows);
    for (std::int64_t c = 0; c < rows.cols; ++c) {
      float sum = 0.0f;
      for (std::int64_t r = 0; r < rows.rows; ++r) sum += rows(r, c);
      mean[c] = sum * scale;
    }
    out = {};
    for (std::size_t i = 0; i + (settings_.pooled_only ? 1 : 0) < taps.size(); ++i) out.add(taps[i]);
    out.add({mean, 1, 1, 1, deepest.channels});
    return {};
  }

 private:
  Settings settings_;
};

}  // namespace norma
