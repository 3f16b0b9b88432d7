/// \file
/// Embedding policy of PatchCore: locally averaged patches of a few layers on the grid of the first of them.
/// Source: Roth et al., CVPR 2022, section 3.1; the pooled variant as in the authors' code, the concatenated one as in anomalib.
#pragma once

#include <algorithm>
#include <span>
#include <string_view>
#include <vector>

#include <norma/core/features.hpp>
#include <norma/core/status.hpp>
#include <norma/features/grid.hpp>

namespace norma {

/// How the layers become one vector.
enum class PatchEmbedding {
  automatic,    ///< pooled where the layers have more channels than `feature_dims`, else concatenated
  concatenated, ///< average pooling, bilinear resize, all channels side by side
  pooled,       ///< adaptive average pooling over (channel, ky, kx) to `feature_dims` numbers a layer, then over the layers
};
constexpr std::string_view to_string(PatchEmbedding kind) noexcept {
  switch (kind) {
    case PatchEmbedding::automatic: return "automatic";
    case PatchEmbedding::concatenated: return "concatenated";
    case PatchEmbedding::pooled: return "pooled";
  }
  return "unknown";
}
constexpr bool from_string(std::string_view text, PatchEmbedding& kind) noexcept {
  for (const auto candidate : {PatchEmbedding::automatic, PatchEmbedding::concatenated, PatchEmbedding::pooled}) {
    if (text == to_string(candidate)) return kind = candidate, true;
  }
  return false;
}

/// Shapes: taps [1, h_l, w_l, c_l] -> one level [h_0, w_0, sum c_l] (concatenated) or [h_0, w_0, feature_dims] (pooled).
/// Cost: one pass over the taps; no allocation.
class LocalAverage {
 public:
  static constexpr std::string_view name = "local_average";
  static constexpr std::string_view default_layers = "local";  ///< which of a network's default tap lists is meant
  struct Settings {
    int neighbourhood = 3;
    PatchEmbedding embedding = PatchEmbedding::automatic;
    int feature_dims = 1024;
    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      visitor("neighbourhood", self.neighbourhood, "side of the square of positions that a patch vector averages (odd)");
      visitor("embedding", self.embedding, "automatic, concatenated (all channels) or pooled (to feature_dims numbers)");
      visitor("feature_dims", self.feature_dims, "length of a pooled patch vector");
    }
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  static Status validate(std::span<const Shape> taps, const Settings& settings) {
    if (settings.neighbourhood < 1 || settings.neighbourhood > features::kMaxNeighbourhood || settings.neighbourhood % 2 == 0) {
      return {Errc::invalid_argument, "LocalAverage: neighbourhood must be odd and in 1..31, found " + std::to_string(settings.neighbourhood)};
    }
    if (settings.feature_dims < 1 || settings.feature_dims > 65536) {
      return {Errc::invalid_argument, "LocalAverage: feature_dims must be in 1..65536, found " + std::to_string(settings.feature_dims)};
    }
    if (taps.empty()) return {Errc::invalid_argument, "LocalAverage: needs at least one layer"};
    return {};
  }

  static constexpr bool is_pooled(std::span<const Shape> taps, const Settings& settings) noexcept {
    if (settings.embedding != PatchEmbedding::automatic) return settings.embedding == PatchEmbedding::pooled;
    std::int64_t channels = 0;
    for (const Shape& tap : taps) channels += tap.channels;
    return channels > settings.feature_dims;
  }
  static constexpr FeatureShapes shapes(std::span<const Shape> taps, const Settings& settings) noexcept {
    std::int64_t channels = 0;
    for (const Shape& tap : taps) channels += tap.channels;
    FeatureShapes out;
    out.add({taps[0].height, taps[0].width, is_pooled(taps, settings) ? settings.feature_dims : channels});
    return out;
  }
  /// Memory of the output and of what is needed while it is made.
  static constexpr std::size_t scratch_bytes(std::span<const Shape> taps, const Settings& settings, int workers) noexcept {
    const bool pooled = is_pooled(taps, settings);
    const std::int64_t area = std::int64_t{settings.neighbourhood} * settings.neighbourhood;
    std::size_t temporary = 0;
    for (const Shape& tap : taps) {
      const std::size_t bytes = pooled ? arena_bytes<float>(taps[0].positions()) + arena_bytes<float>(tap.positions() * level_dims(taps, settings)) +
                                             arena_bytes<float>(tap.channels) + arena_bytes<const float*>(area * workers) +
                                             arena_bytes<float>(most_slots(taps, tap.channels, settings) * tap.channels * workers)
                                       : arena_bytes<float>(tap.count()) + features::local_average_scratch_bytes(tap, workers);
      temporary = std::max(temporary, bytes);
    }
    return arena_bytes<float>(shapes(taps, settings)[0].count()) + temporary;
  }

  static Result<LocalAverage> create(std::span<const Shape> taps, const Settings& settings) {
    NORMA_CHECK(validate(taps, settings));
    LocalAverage made(settings);
    if (is_pooled(taps, settings)) {
      for (std::size_t level = 0; level < taps.size(); ++level) made.pooling_.push_back(pooling_of(taps, level, settings));
    }
    return made;
  }

  Status embed(std::span<const TensorView<const float>> taps, Features& out, Context& context) const {
    std::array<Shape, kMaxLevels> tap_shapes{};
    for (std::size_t i = 0; i < taps.size(); ++i) tap_shapes[i] = taps[i].shape();
    const std::span<const Shape> all(tap_shapes.data(), taps.size());
    const Shape shape = shapes(all, settings_)[0];
    const MatrixView<float> rows(context.arena.take<float>(shape.count()), shape.positions(), shape.channels);
    const Arena::Scope scope(context.arena);
    if (is_pooled(all, settings_)) {
      pool(taps, all, rows, context);
    } else {
      concatenate(taps, rows, context);
    }
    out = {};
    out.add({rows.data, 1, shape});
    return {};
  }

 private:
  explicit LocalAverage(const Settings& settings) : settings_(settings) {}

  void concatenate(std::span<const TensorView<const float>> taps, MatrixView<float> rows, Context& context) const {
    std::int64_t first_channel = 0;
    for (const auto& tap : taps) {
      const MatrixView<float> columns(rows.data + first_channel, rows.rows, tap.channels, rows.stride);
      if (tap.height == taps[0].height && tap.width == taps[0].width) {
        features::local_average(tap, settings_.neighbourhood, columns, context);
      } else {
        const Arena::Scope scope(context.arena);
        const MatrixView<float> averaged(context.arena.take<float>(tap.count()), tap.height * tap.width, tap.channels);
        features::local_average(tap, settings_.neighbourhood, averaged, context);
        features::resize_bilinear(averaged, tap.height, tap.width, columns, taps[0].height, taps[0].width, context);
      }
      first_channel += tap.channels;
    }
  }

  // Output j averages the flat indices j*n .. j*n + n - 1 of the n layers' pooled vectors laid end to end. These are the outputs
  // that layer `level` contributes to, at most ceil(dims / n) + 1 of them.
  struct Share {
    std::int64_t first_output, last_output;  // [first, last)
  };
  static constexpr Share share(std::int64_t level, std::int64_t levels, std::int64_t dims) noexcept {
    return {level * dims / levels, ((level + 1) * dims + levels - 1) / levels};
  }
  static constexpr std::int64_t level_dims(std::span<const Shape> taps, const Settings& settings) noexcept {
    return settings.feature_dims / static_cast<std::int64_t>(taps.size()) + 2;
  }

  // Both poolings together: every output is a sum over the neighbourhoods of a few channels with weights that are the same at all positions.
  // A channel contributes to `slots` outputs that follow one another, or to fewer. So a position takes two steps: a weighted sum over the
  // neighbourhood for every slot and channel, and for every output the sum of its entries in that table.
  struct Pooling {
    Share mine{};
    std::int64_t slots = 0;
    std::vector<float> weight;           // [slots, p * p, channels]
    std::vector<std::int32_t> entry;     // in [slots, channels], output after output
    std::vector<std::int32_t> last;      // end of each output's entries
    bool plain = true;                   // the table is the output
  };
  // A channel meets at most dims / channels + 3 windows.
  static constexpr std::int64_t most_slots(std::span<const Shape> taps, std::int64_t channels, const Settings& settings) noexcept {
    return (settings.feature_dims / channels + 3) / static_cast<std::int64_t>(taps.size()) + 2;
  }
  NORMA_COLD static Pooling pooling_of(std::span<const Shape> taps, std::size_t index, const Settings& settings) {
    const auto level = static_cast<std::int64_t>(index), levels = static_cast<std::int64_t>(taps.size());
    const std::int64_t channels = taps[index].channels, area = std::int64_t{settings.neighbourhood} * settings.neighbourhood;
    const std::int64_t length = channels * area, dims = settings.feature_dims;  // of the unfolded patch: (channel, ky, kx)
    Pooling out;
    out.mine = share(level, levels, dims);
    // Calls body(first, last) for the elements of every window of output j.
    const auto windows = [&](std::int64_t j, auto&& body) {
      const std::int64_t begin = std::max(j * levels, level * dims) - level * dims;
      const std::int64_t end = std::min((j + 1) * levels, (level + 1) * dims) - level * dims;
      for (std::int64_t i = begin; i < end; ++i) body(i * length / dims, ((i + 1) * length + dims - 1) / dims);
    };
    std::vector<std::int64_t> first_output(static_cast<std::size_t>(channels), -1);
    for (std::int64_t j = out.mine.first_output; j < out.mine.last_output; ++j) {
      windows(j, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t c = first / area; c <= (last - 1) / area; ++c) {
          auto& output = first_output[static_cast<std::size_t>(c)];
          if (output < 0) output = j;
          out.slots = std::max(out.slots, j - output + 1);
        }
      });
    }
    NORMA_EXPECTS(out.slots <= most_slots(taps, channels, settings));
    std::vector<double> weight(static_cast<std::size_t>(out.slots * length));
    for (std::int64_t j = out.mine.first_output; j < out.mine.last_output; ++j) {
      std::int64_t next = 0;  // the first channel that is not listed yet
      windows(j, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t e = first; e < last; ++e) {
          const std::int64_t c = e / area, slot = j - first_output[static_cast<std::size_t>(c)];
          weight[static_cast<std::size_t>((slot * area + e % area) * channels + c)] += 1.0 / static_cast<double>((last - first) * levels);
          if (c < next) continue;
          next = c + 1;
          out.plain = out.plain && slot * channels + c == static_cast<std::int64_t>(out.entry.size());
          out.entry.push_back(static_cast<std::int32_t>(slot * channels + c));
        }
      });
      out.last.push_back(static_cast<std::int32_t>(out.entry.size()));
    }
    out.plain = out.plain && out.entry.size() == out.last.size() && out.slots * channels == static_cast<std::int64_t>(out.last.size());
    out.weight.assign(weight.begin(), weight.end());
    return out;
  }

  // Pooling along channels and resizing along positions are both linear and act on different axes, so they commute: each layer is
  // pooled on its own coarse grid and only the few pooled numbers are resized.
  void pool(std::span<const TensorView<const float>> taps, std::span<const Shape> all, MatrixView<float> rows, Context& context) const {
    for (std::size_t level = 0; level < taps.size(); ++level) {
      const Arena::Scope scope(context.arena);
      const auto& tap = taps[level];
      const Share mine = pooling_[level].mine;
      const MatrixView<float> columns(rows.data + mine.first_output, rows.rows, mine.last_output - mine.first_output, rows.stride);
      NORMA_EXPECTS(columns.cols <= level_dims(all, settings_));
      // Where the layers' shares do not divide evenly, the first output is the last one of the layer before.
      const bool shared = level > 0 && mine.first_output < pooling_[level - 1].mine.last_output;
      float* before = context.arena.take<float>(rows.rows);
      for (std::int64_t r = 0; shared && r < rows.rows; ++r) before[r] = columns(r, 0);
      if (tap.height == taps[0].height && tap.width == taps[0].width) {
        pool_level(tap, pooling_[level], columns, context);
      } else {
        const MatrixView<float> coarse(context.arena.take<float>(tap.height * tap.width * level_dims(all, settings_)), tap.height * tap.width,
                                       columns.cols);
        pool_level(tap, pooling_[level], coarse, context);
        features::resize_bilinear(coarse, tap.height, tap.width, columns, taps[0].height, taps[0].width, context);
      }
      for (std::int64_t r = 0; shared && r < rows.rows; ++r) columns(r, 0) += before[r];
    }
  }

  void pool_level(const TensorView<const float>& tap, const Pooling& pooling, MatrixView<float> out, Context& context) const {
    const std::int64_t p = settings_.neighbourhood, area = p * p, radius = p / 2, channels = tap.channels;
    const auto weighted_sum = features::detail::grid_kernels(instruction_set()).weighted_sum_of_rows;
    const Arena::Scope scope(context.arena);
    float* const outside = context.arena.take<float>(channels);
    std::fill_n(outside, channels, 0.0f);
    const auto pointers = context.arena.take<const float*>(area * context.parallel.workers());
    const std::int64_t table_size = pooling.slots * channels;
    float* const tables = context.arena.take<float>(table_size * context.parallel.workers());
    context.parallel.run(tap.height, [&](std::int64_t y, int worker) {
      const float** const around = pointers + worker * area;
      for (std::int64_t x = 0; x < tap.width; ++x) {
        for (std::int64_t k = 0; k < area; ++k) {
          const std::int64_t row = y + k / p - radius, column = x + k % p - radius;
          const bool inside = row >= 0 && row < tap.height && column >= 0 && column < tap.width;
          around[k] = inside ? &tap(0, row, column, 0) : outside;
        }
        float* const target = out.row(y * tap.width + x).data();
        float* const table = pooling.plain ? target : tables + worker * table_size;
        for (std::int64_t slot = 0; slot < pooling.slots; ++slot) {
          weighted_sum(around, pooling.weight.data() + slot * area * channels, area, channels, table + slot * channels);
        }
        if (pooling.plain) continue;
        const std::int32_t* entry = pooling.entry.data();
        for (std::int64_t j = 0; j < out.cols; ++j) {
          float sum = 0.0f;
          const std::int32_t* const end = pooling.entry.data() + pooling.last[static_cast<std::size_t>(j)];
          for (; entry < end; ++entry) sum += table[*entry];
          target[j] = sum;
        }
      }
    });
  }

  Settings settings_;
  std::vector<Pooling> pooling_;  // of every layer, where they are pooled
};

}  // namespace norma
