/// \file
/// Embedding policy of PatchCore: locally averaged patches of a few layers on the grid of the first of them.
/// Source: Roth et al., CVPR 2022, section 3.1; the pooled variant as in the authors' code, the concatenated one as in anomalib.
#pragma once

#include <algorithm>
#include <span>
#include <string_view>

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
    if (settings.neighbourhood < 1 || settings.neighbourhood > 31 || settings.neighbourhood % 2 == 0) {
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
    std::size_t temporary = 0;
    for (const Shape& tap : taps) {
      const std::size_t bytes =
          pooled ? arena_bytes<float>(tap.positions() * level_dims(taps, settings)) +
                       arena_bytes<float>(tap.channels * settings.neighbourhood * settings.neighbourhood * workers)
                 : arena_bytes<float>(tap.count()) + features::local_average_scratch_bytes(tap, workers);
      temporary = std::max(temporary, bytes);
    }
    if (pooled) temporary += arena_bytes<float>(taps[0].positions() * level_dims(taps, settings));
    return arena_bytes<float>(shapes(taps, settings)[0].count()) + temporary;
  }

  static Result<LocalAverage> create(std::span<const Shape> taps, const Settings& settings) {
    NORMA_CHECK(validate(taps, settings));
    return LocalAverage(settings);
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

  // Pooling along channels and resizing along positions are both linear and act on different axes, so they commute: each layer is
  // pooled on its own coarse grid and only the few pooled numbers are resized.
  void pool(std::span<const TensorView<const float>> taps, std::span<const Shape> all, MatrixView<float> rows, Context& context) const {
    const auto levels = static_cast<std::int64_t>(taps.size());
    const std::int64_t dims = settings_.feature_dims;
    for (std::int64_t r = 0; r < rows.rows; ++r) std::fill_n(rows.row(r).data(), rows.cols, 0.0f);
    for (std::int64_t level = 0; level < levels; ++level) {
      const Arena::Scope scope(context.arena);
      const auto& tap = taps[static_cast<std::size_t>(level)];
      const Share mine = share(level, levels, dims);
      const std::int64_t width = mine.last_output - mine.first_output;
      NORMA_EXPECTS(width <= level_dims(all, settings_));
      const MatrixView<float> coarse(context.arena.take<float>(tap.height * tap.width * level_dims(all, settings_)),
                                     tap.height * tap.width, width);
      pool_level(tap, level, levels, mine, coarse, context);
      MatrixView<float> resized = coarse;
      if (tap.height != taps[0].height || tap.width != taps[0].width) {
        resized = {context.arena.take<float>(rows.rows * level_dims(all, settings_)), rows.rows, width};
        features::resize_bilinear(coarse, tap.height, tap.width, resized, taps[0].height, taps[0].width, context);
      }
      context.parallel.run_ranges(rows.rows, 64, [&](std::int64_t first, std::int64_t last, int) {
        for (std::int64_t r = first; r < last; ++r) {
          float* target = rows.row(r).data() + mine.first_output;
          const float* source = resized.row(r).data();
          for (std::int64_t j = 0; j < width; ++j) target[j] += source[j];
        }
      });
    }
  }

  void pool_level(const TensorView<const float>& tap, std::int64_t level, std::int64_t levels, Share mine, MatrixView<float> out,
                  Context& context) const {
    const std::int64_t p = settings_.neighbourhood;
    const std::int64_t radius = p / 2;
    const std::int64_t length = tap.channels * p * p;  // the unfolded patch, (channel, ky, kx)
    const std::int64_t dims = settings_.feature_dims;
    const Arena::Scope scope(context.arena);
    float* patches = context.arena.take<float>(length * context.parallel.workers());
    context.parallel.run(tap.height, [&](std::int64_t y, int worker) {
      float* patch = patches + worker * length;
      for (std::int64_t x = 0; x < tap.width; ++x) {
        for (std::int64_t k = 0; k < p * p; ++k) {
          const std::int64_t row = y + k / p - radius;
          const std::int64_t column = x + k % p - radius;
          const bool inside = row >= 0 && row < tap.height && column >= 0 && column < tap.width;
          const float* source = inside ? &tap(0, row, column, 0) : nullptr;
          for (std::int64_t c = 0; c < tap.channels; ++c) patch[c * p * p + k] = inside ? source[c] : 0.0f;
        }
        float* target = out.row(y * tap.width + x).data();
        for (std::int64_t j = mine.first_output; j < mine.last_output; ++j) {
          float sum = 0.0f;
          const std::int64_t begin = std::max(j * levels, level * dims) - level * dims;
          const std::int64_t end = std::min((j + 1) * levels, (level + 1) * dims) - level * dims;
          for (std::int64_t i = begin; i < end; ++i) {  // adaptive window i of `dims` over the patch
            const std::int64_t first = i * length / dims;
            const std::int64_t last = ((i + 1) * length + dims - 1) / dims;
            float window = 0.0f;
            for (std::int64_t e = first; e < last; ++e) window += patch[e];
            sum += window / static_cast<float>(last - first);
          }
          target[j - mine.first_output] = sum / static_cast<float>(levels);
        }
      }
    });
  }

  Settings settings_;
};

}  // namespace norma
