/// \file
/// Embedding policy of PaDiM: a random subset of the channels of all layers, on the grid of the first of them.
/// Source: Defard et al., ICPR 2021 (arXiv 2011.08785), section III-A; the draw of the usual re-implementation (seed 1024).
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include <norma/core/features.hpp>
#include <norma/core/status.hpp>
#include <norma/features/grid.hpp>
#include <norma/features/reference_channels.hpp>

namespace norma {

/// Shapes: taps [1, h_l, w_l, c_l] -> one level [h_0, w_0, feature_dims]; coarser layers are repeated ("nearest").
class ChosenChannels {
 public:
  static constexpr std::string_view name = "chosen_channels";
  static constexpr std::string_view default_layers = "pyramid";
  struct Settings {
    int feature_dims = 0;             ///< 0: 550 where there are at least 1000 channels, else 100
    std::uint32_t channel_seed = 1024;
    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      visitor("feature_dims", self.feature_dims, "number of channels drawn at random; 0: 550 of 1000 and more channels, else 100");
      visitor("channel_seed", self.channel_seed, "seed of that draw");
    }
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  static constexpr std::int64_t total_channels(std::span<const Shape> taps) noexcept {
    std::int64_t total = 0;
    for (const Shape& tap : taps) total += tap.channels;
    return total;
  }
  static constexpr std::int64_t dims(std::span<const Shape> taps, const Settings& settings) noexcept {
    const std::int64_t total = total_channels(taps);
    if (settings.feature_dims > 0) return settings.feature_dims;
    return std::min<std::int64_t>(total, total >= 1000 ? 550 : 100);
  }
  static Status validate(std::span<const Shape> taps, const Settings& settings) {
    if (taps.empty()) return {Errc::invalid_argument, "ChosenChannels: needs at least one layer"};
    if (settings.feature_dims < 0 || dims(taps, settings) > total_channels(taps)) {
      return {Errc::invalid_argument, "ChosenChannels: feature_dims must be in 1.." + std::to_string(total_channels(taps)) +
                                          " (the layers' channels), found " + std::to_string(settings.feature_dims)};
    }
    return {};
  }
  static constexpr FeatureShapes shapes(std::span<const Shape> taps, const Settings& settings) noexcept {
    FeatureShapes out;
    out.add({taps[0].height, taps[0].width, dims(taps, settings)});
    return out;
  }
  static constexpr std::size_t scratch_bytes(std::span<const Shape> taps, const Settings& settings, int /*workers*/) noexcept {
    return arena_bytes<float>(shapes(taps, settings)[0].count());
  }
  static Result<ChosenChannels> create(std::span<const Shape> taps, const Settings& settings) {
    NORMA_CHECK(validate(taps, settings));
    ChosenChannels embedding;
    for (const std::int64_t flat : features::reference_channels(total_channels(taps), dims(taps, settings), settings.channel_seed)) {
      std::int64_t channel = flat;
      int level = 0;
      while (channel >= taps[static_cast<std::size_t>(level)].channels) channel -= taps[static_cast<std::size_t>(level++)].channels;
      embedding.channels_.push_back(flat);
      embedding.sources_.push_back({level, static_cast<int>(channel)});
    }
    return embedding;
  }

  /// The drawn channels, as indices into the concatenation of the layers.
  [[nodiscard]] std::span<const std::int64_t> channels() const noexcept { return channels_; }

  Status embed(std::span<const TensorView<const float>> taps, Features& out, Context& context) const {
    const Shape fine = taps[0].shape();
    const auto d = static_cast<std::int64_t>(sources_.size());
    float* data = context.arena.take<float>(fine.positions() * d);
    context.parallel.run(fine.height, [&](std::int64_t y, int) {
      for (std::int64_t x = 0; x < fine.width; ++x) {
        std::array<const float*, kMaxLevels> patch{};
        for (std::size_t level = 0; level < taps.size(); ++level) {
          patch[level] = taps[level].data + features::nearest_position(y, x, taps[level].shape(), fine) * taps[level].channels;
        }
        float* target = data + (y * fine.width + x) * d;
        for (std::int64_t j = 0; j < d; ++j) {
          const Source source = sources_[static_cast<std::size_t>(j)];
          target[j] = patch[static_cast<std::size_t>(source.level)][source.channel];
        }
      }
    });
    out = {};
    out.add({data, 1, fine.height, fine.width, d});
    return {};
  }

 private:
  struct Source {
    int level;
    int channel;
  };
  ChosenChannels() = default;
  std::vector<std::int64_t> channels_;
  std::vector<Source> sources_;
};

}  // namespace norma
