// Write your own backbone, estimator and metric, and compose them with each other and with the built-in ones.
// Page: docs/examples/03_own_policies.md
//
//   03_own_policies          (draws its own pictures)
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <vector>

#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/data/in_memory.hpp>
#include <norma/detector.hpp>
#include <norma/estimators/memory_bank.hpp>
#include <norma/metrics/nearest_distance.hpp>

// A backbone without weights: brightness and contrast of 8 x 8 tiles of the picture.
class TileStatistics {
 public:
  static constexpr std::string_view name = "tile_statistics";
  struct Settings {
    norma::Preprocess preprocess{.resize = 0, .height = 128, .width = 128, .mean = {0, 0, 0}, .stddev = {255, 255, 255}};
    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      visitor("height", self.preprocess.height, "height that frames are stretched to, a multiple of 8");
      visitor("width", self.preprocess.width, "width that frames are stretched to, a multiple of 8");
    }
  };
  static constexpr norma::Shape input_shape(const Settings& s) { return {s.preprocess.height, s.preprocess.width, 1}; }
  static constexpr norma::FeatureShapes shapes(const Settings& s) {
    norma::FeatureShapes all;
    all.add({s.preprocess.height / 8, s.preprocess.width / 8, 2});
    return all;
  }
  static constexpr std::size_t scratch_bytes(const Settings& s, int) {
    return norma::arena_bytes<float>(s.preprocess.height * s.preprocess.width * 3) + norma::arena_bytes<float>(shapes(s)[0].count()) +
           norma::image::preprocess_scratch_bytes(s.preprocess);
  }
  static norma::Status validate(const Settings& s) {
    if (s.preprocess.height % 8 != 0 || s.preprocess.width % 8 != 0) return {norma::Errc::invalid_argument, "TileStatistics: height and width must be multiples of 8"};
    return s.preprocess.validate();
  }
  static norma::Result<TileStatistics> create(const norma::io::Weights&, const Settings& s) { return TileStatistics(s); }

  norma::Status extract(const norma::ImageView& frame, norma::Features& out, norma::Context& context) const {
    const auto& p = settings_.preprocess;
    const norma::TensorView<float> pixels(context.arena.take<float>(p.height * p.width * 3), 1, p.height, p.width, 3);
    NORMA_CHECK(norma::image::preprocess(p, frame, pixels, context.arena));
    const norma::TensorView<float> tiles(context.arena.take<float>(shapes(settings_)[0].count()), 1, shapes(settings_)[0]);
    for (std::int64_t ty = 0; ty < tiles.height; ++ty) {
      for (std::int64_t tx = 0; tx < tiles.width; ++tx) {
        float sum = 0.0f, squares = 0.0f;
        for (std::int64_t y = 8 * ty; y < 8 * ty + 8; ++y) {
          for (std::int64_t x = 8 * tx; x < 8 * tx + 8; ++x) {
            const float gray = (pixels(0, y, x, 0) + pixels(0, y, x, 1) + pixels(0, y, x, 2)) / 3.0f;
            sum += gray;
            squares += gray * gray;
          }
        }
        tiles(0, ty, tx, 0) = sum / 64.0f;
        tiles(0, ty, tx, 1) = std::sqrt(std::max(0.0f, squares / 64.0f - sum * sum / 4096.0f));
      }
    }
    out = {};
    out.add(tiles);
    return {};
  }
  const Settings& settings() const { return settings_; }
  norma::Placement placement(std::int64_t height, std::int64_t width) const { return norma::image::placement(settings_.preprocess, height, width); }
  norma::Status save(norma::io::TensorFileWriter&) const { return {}; }  // no weights

 private:
  explicit TileStatistics(const Settings& s) : settings_(s) {}
  Settings settings_;
};

// An estimator: the smallest and largest value that each channel had at each position.
class ValueRange {
 public:
  static constexpr std::string_view name = "value_range";
  struct Settings {
    template <class Self, class Visitor>
    static constexpr void visit(Self&, Visitor&&) {}
  };
  static norma::Result<ValueRange> create(const norma::FeatureShapes& shapes, const Settings&) {
    ValueRange range;
    range.low.assign(static_cast<std::size_t>(shapes[0].count()), INFINITY);
    range.high.assign(range.low.size(), -INFINITY);
    return range;
  }
  norma::Status observe(const norma::Features& features, std::int64_t, norma::Parallel) {
    for (std::size_t i = 0; i < low.size(); ++i) {
      low[i] = std::min(low[i], features[0].data[i]);
      high[i] = std::max(high[i], features[0].data[i]);
    }
    return {};
  }
  norma::Status merge(ValueRange&& other) {
    for (std::size_t i = 0; i < low.size(); ++i) low[i] = std::min(low[i], other.low[i]), high[i] = std::max(high[i], other.high[i]);
    return {};
  }
  norma::Status finish(const norma::FitContext&) { return {}; }
  norma::Status save(norma::io::TensorFileWriter& writer) const {
    NORMA_CHECK(writer.add("estimator.low", {static_cast<std::int64_t>(low.size())}, std::span<const float>(low)));
    return writer.add("estimator.high", {static_cast<std::int64_t>(high.size())}, std::span<const float>(high));
  }
  static norma::Result<ValueRange> load(const norma::io::Weights& file, const norma::FeatureShapes& shapes, const Settings& settings, norma::Parallel) {
    NORMA_TRY(ValueRange range, create(shapes, settings));
    NORMA_CHECK(file.read("estimator.low", {shapes[0].count()}, std::span<float>(range.low)));
    NORMA_CHECK(file.read("estimator.high", {shapes[0].count()}, std::span<float>(range.high)));
    return range;
  }
  std::vector<float> low, high;
};

// A metric: how far outside of the range, summed over the channels.
class OutsideRange {
 public:
  static constexpr std::string_view name = "outside_range";
  using Settings = norma::MapSettings;
  explicit OutsideRange(const Settings& s) : settings_(s) {}
  static norma::Status validate(const Settings& s) { return s.validate(); }
  template <class EstimatorT>
  static constexpr std::size_t scratch_bytes(const norma::FeatureShapes& shapes, norma::Shape map, const Settings& s, int) {
    return norma::arena_bytes<float>(shapes[0].positions()) + norma::metrics::smooth_map_scratch_bytes(map, s);
  }
  norma::Status measure(const ValueRange& range, const norma::Features& features, norma::MapView<float> map, float& score, norma::Context& context) const {
    const auto& level = features[0];
    const norma::MapView<float> distance(context.arena.take<float>(level.height * level.width), level.height, level.width);
    for (std::int64_t p = 0; p < distance.count(); ++p) {
      distance.data[p] = 0.0f;
      for (std::int64_t c = 0; c < level.channels; ++c) {
        const auto i = static_cast<std::size_t>(p * level.channels + c);
        distance.data[p] += std::max({0.0f, range.low[i] - level.data[i], level.data[i] - range.high[i]});
      }
    }
    NORMA_CHECK(norma::image::resize_bilinear(norma::MapView<const float>(distance), map, norma::AlignCorners::no));
    NORMA_CHECK(norma::metrics::smooth_map(map, settings_, context));
    score = *std::max_element(map.data, map.data + map.count());
    return {};
  }

 private:
  Settings settings_;
};

using Own = norma::Detector<TileStatistics, ValueRange, OutsideRange>;
using Mixed = norma::Detector<TileStatistics, norma::MemoryBank<norma::KeepAll>, norma::NearestDistance<norma::Plain>>;  // own eyes, built-in memory

namespace {

norma::Image picture(std::uint64_t number, bool scratched) {
  norma::Random random(1, number);
  norma::Image image(160, 160, 1);
  for (std::int64_t y = 0; y < 160; ++y) {
    for (std::int64_t x = 0; x < 160; ++x) image(y, x, 0) = static_cast<std::uint8_t>(100 + (x / 20 + y / 20) % 2 * 40 + random.below(20));
  }
  for (std::int64_t i = 40; scratched && i < 90; ++i) image(i, i + 20, 0) = image(i, i + 21, 0) = image(i, i + 22, 0) = 250;
  return image;
}

template <class D>
norma::Status demonstrate(const char* title) {
  std::vector<norma::Image> good;
  for (std::uint64_t i = 0; i < 30; ++i) good.push_back(picture(i, false));
  NORMA_TRY(const auto empty_file, norma::io::TensorFileWriter().to_bytes());
  NORMA_TRY(const auto no_weights, norma::io::Weights::from_bytes(std::span<const std::byte>(empty_file), "no weights"));
  NORMA_TRY(D detector, D::create(no_weights));
  NORMA_CHECK(detector.fit(norma::data::InMemory(std::move(good))));
  auto workspace = detector.make_workspace();
  NORMA_TRY(const norma::Verdict normal, detector.inspect(picture(100, false), workspace));
  const float normal_score = normal.score;
  NORMA_TRY(const norma::Verdict scratched, detector.inspect(picture(101, true), workspace));
  std::printf("%s: %zu bytes of workspace, good picture %.4f, scratched picture %.4f at row %.0f, column %.0f\n", title, D::workspace_bytes(),
              static_cast<double>(normal_score), static_cast<double>(scratched.score), scratched.peak_row, scratched.peak_column);
  return scratched.score > normal_score ? norma::Status{} : norma::Status{norma::Errc::mismatch, "the scratch was not found"};
}

}  // namespace

int main() {
  for (const norma::Status& status : {demonstrate<Own>("own estimator and metric"), demonstrate<Mixed>("own backbone, memory bank")}) {
    if (status.ok()) continue;
    std::fprintf(stderr, "%s\n", status.message().c_str());
    return 1;
  }
  return 0;
}
