// Golden vectors of tests/golden/metrics: ranking metrics, AU-PRO by both rules with their curves, AUPIMO.
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/evaluation/aupimo.hpp>
#include <norma/evaluation/pro.hpp>
#include <norma/evaluation/ranking.hpp>
#include <norma/io/file.hpp>
#include <norma/io/json.hpp>

namespace {

using norma::io::JsonValue;
namespace evaluation = norma::evaluation;

#ifdef NORMA_SOURCE_DIR
const std::string kFolder = NORMA_SOURCE_DIR "/tests/golden/metrics/";
#else
const std::string kFolder = "tests/golden/metrics/";
#endif

// The reference values are doubles of a few roundings; so are ours.
constexpr double kTolerance = 1e-12;

JsonValue load(const std::string& name) {
  auto text = norma::io::read_text_file(kFolder + name);
  REQUIRE_MESSAGE(text.ok(), text.message());
  auto json = JsonValue::parse(*text, name);
  REQUIRE_MESSAGE(json.ok(), json.message());
  return *std::move(json);
}

const JsonValue& at(const JsonValue& value, const char* key) {
  const JsonValue* found = value.find(key);
  REQUIRE_MESSAGE(found != nullptr, key);
  return *found;
}

double number(const JsonValue& value) {
  const auto got = value.number();
  REQUIRE(got.has_value());
  return *got;
}

std::vector<double> numbers(const JsonValue& list) {
  std::vector<double> out;
  for (const JsonValue& item : list.items()) out.push_back(number(item));
  return out;
}

bool close(const std::optional<double>& got, const JsonValue& want, double tolerance = kTolerance) {
  if (want.is_null() || !got.has_value()) return want.is_null() && !got.has_value();
  return std::abs(*got - number(want)) <= tolerance;
}

template <class T>
void check_ranking(const evaluation::RankingMetrics& got, const JsonValue& want) {
  CHECK(got.positives == number(at(want, "n_pos")));
  CHECK(got.negatives == number(at(want, "n_neg")));
  CHECK(close(got.auroc, at(want, "auroc")));
  CHECK(close(got.average_precision, at(want, "average_precision")));
  const JsonValue& f1 = at(want, "f1_max");
  CHECK(f1.is_null() == !got.f1_max.has_value());
  if (!f1.is_null() && got.f1_max.has_value()) {
    CHECK(close(got.f1_max->value, f1));
    CHECK(got.f1_max->threshold == static_cast<double>(static_cast<T>(number(at(want, "f1_threshold_smallest")))));
  }
}

template <class T>
evaluation::RankingMetrics metrics_of(const std::vector<double>& scores, const std::vector<double>& labels) {
  const std::vector<T> s(scores.begin(), scores.end());
  const std::vector<std::uint8_t> y(labels.begin(), labels.end());
  auto got = evaluation::ranking_metrics(std::span<const T>(s), y);
  REQUIRE_MESSAGE(got.ok(), got.message());
  return *got;
}

struct Images {
  std::vector<norma::Map<float>> maps;
  std::vector<norma::Map<std::uint8_t>> masks;
  std::vector<norma::MapView<const float>> map_views;
  std::vector<norma::MapView<const std::uint8_t>> mask_views;
};

template <class T>
norma::Map<T> map_of(const JsonValue& rows) {
  const auto height = static_cast<std::int64_t>(rows.items().size());
  const auto width = static_cast<std::int64_t>(rows.items()[0].items().size());
  norma::Map<T> map(height, width);
  for (std::int64_t y = 0; y < height; ++y) {
    for (std::int64_t x = 0; x < width; ++x) {
      const double value = number(rows.items()[static_cast<std::size_t>(y)].items()[static_cast<std::size_t>(x)]);
      map(y, x) = static_cast<T>(value);
      REQUIRE(static_cast<double>(map(y, x)) == value);  // all maps of the files are exact in float
    }
  }
  return map;
}

Images images_of(const JsonValue& test) {
  Images out;
  for (const JsonValue& map : at(test, "maps").items()) out.maps.push_back(map_of<float>(map));
  for (const JsonValue& mask : at(test, "masks").items()) out.masks.push_back(map_of<std::uint8_t>(mask));
  REQUIRE(out.maps.size() == out.masks.size());
  for (const auto& map : out.maps) out.map_views.push_back(map.view());
  for (const auto& mask : out.masks) out.mask_views.push_back(mask.view());
  return out;
}

bool has_vertex(const std::vector<double>& xs, const std::vector<double>& ys, double x, double y) {
  for (std::size_t i = 0; i < xs.size(); ++i) {
    if (std::abs(xs[i] - x) <= kTolerance && std::abs(ys[i] - y) <= kTolerance) return true;
  }
  return false;
}

bool on_polyline(const std::vector<double>& xs, const std::vector<double>& ys, double x, double y) {
  if (has_vertex(xs, ys, x, y)) return true;
  for (std::size_t i = 1; i < xs.size(); ++i) {
    if (x < xs[i - 1] - kTolerance || x > xs[i] + kTolerance) continue;
    const double low = std::min(ys[i - 1], ys[i]), high = std::max(ys[i - 1], ys[i]);
    const double length = xs[i] - xs[i - 1];
    if (length <= kTolerance ? y >= low - kTolerance && y <= high + kTolerance
                             : std::abs(ys[i - 1] + (ys[i] - ys[i - 1]) * (x - xs[i - 1]) / length - y) <= 1e-9) {
      return true;
    }
  }
  return false;
}

}  // namespace

TEST_CASE("ranking metrics agree with the golden vectors in double and in float") {
  const JsonValue file = load("ranking.json");
  REQUIRE(at(file, "cases").items().size() >= 20);
  for (const JsonValue& test : at(file, "cases").items()) {
    CAPTURE(*at(test, "name").string());
    const auto scores = numbers(at(test, "scores")), labels = numbers(at(test, "labels"));
    check_ranking<double>(metrics_of<double>(scores, labels), at(test, "expected"));
    // Rounding to float could make ties; where it is exact everything must agree.
    if (*at(test, "float32_exact").boolean()) check_ranking<float>(metrics_of<float>(scores, labels), at(test, "expected"));
  }
}

TEST_CASE("AU-PRO by both rules, curves, regions and pixel metrics agree with the golden vectors") {
  const JsonValue file = load("pro.json");
  REQUIRE(at(file, "cases").items().size() >= 11);
  int curves = 0;
  for (const JsonValue& test : at(file, "cases").items()) {
    CAPTURE(*at(test, "name").string());
    const Images images = images_of(test);
    const JsonValue& want = at(test, "expected");
    auto pixels = evaluation::PixelRanking::create(images.map_views, images.mask_views);
    REQUIRE_MESSAGE(pixels.ok(), pixels.message());
    CHECK(pixels->regions() == number(at(want, "n_regions_8")));
    CHECK(pixels->normal_pixels() == number(at(want, "n_normal_pixels")));
    auto four = evaluation::PixelRanking::create(images.map_views, images.mask_views, {}, evaluation::Connectivity::four);
    REQUIRE(four.ok());
    CHECK(four->regions() == number(at(want, "n_regions_4")));
    std::int64_t region = 0;
    for (const JsonValue& image : at(want, "region_sizes_8_per_image").items()) {
      for (const double size : numbers(image)) {
        REQUIRE(region < pixels->regions());
        CHECK(pixels->region_size(region++) == size);
      }
    }
    for (const double limit : {0.05, 0.3, 1.0}) {
      CAPTURE(limit);
      const char* key = limit == 0.05 ? "0.05" : limit == 0.3 ? "0.3" : "1.0";
      auto exact = pixels->au_pro({.limit = limit});
      REQUIRE(exact.ok());
      const JsonValue& all = at(want, "au_pro_exact");
      CHECK(close(*exact, all.is_null() ? all : at(all, key)));
      if (limit == 1.0) continue;
      for (const std::int64_t thresholds : {100, 10}) {
        CAPTURE(thresholds);
        auto sampled = pixels->au_pro({.limit = limit, .rule = evaluation::ProRule::sampled, .thresholds = thresholds});
        REQUIRE(sampled.ok());
        const JsonValue& counts = at(want, "au_pro_sampled");
        CHECK(close(*sampled, counts.is_null() ? counts : at(at(counts, thresholds == 100 ? "100" : "10"), key)));
      }
    }
    if (const JsonValue* exact = want.find("curve_exact"); exact != nullptr) {
      ++curves;
      const auto xs = numbers(at(*exact, "fpr")), ys = numbers(at(*exact, "pro"));
      const auto curve = pixels->exact_curve();
      for (std::size_t i = 0; i < curve.overlap.size(); ++i) CHECK(has_vertex(xs, ys, curve.false_positive_rate[i], curve.overlap[i]));
      for (std::size_t i = 0; i < xs.size(); ++i) CHECK(on_polyline(curve.false_positive_rate, curve.overlap, xs[i], ys[i]));
      const JsonValue& sampled = at(want, "curve_sampled_10");
      const auto sampled_xs = numbers(at(sampled, "fpr")), sampled_ys = numbers(at(sampled, "pro"));
      auto got = pixels->sampled_curve(10);
      REQUIRE(got.ok());
      REQUIRE(got->overlap.size() == sampled_xs.size());
      for (std::size_t i = 0; i < sampled_xs.size(); ++i) {
        CHECK(std::abs(got->false_positive_rate[i] - sampled_xs[i]) <= kTolerance);
        CHECK(std::abs(got->overlap[i] - sampled_ys[i]) <= kTolerance);
      }
    }
    check_ranking<float>(evaluation::ranking_metrics(pixels->ranking()), at(want, "pixel"));
    check_ranking<float>(metrics_of<float>(numbers(at(want, "image_max_score")), numbers(at(want, "image_label"))), at(want, "image"));
  }
  CHECK(curves == 6);
}

TEST_CASE("AUPIMO agrees with the golden vectors") {
  const JsonValue file = load("aupimo.json");
  for (const JsonValue& test : at(file, "cases").items()) {
    const Images images = images_of(test);
    REQUIRE(at(test, "expected").items().size() == 2);
    for (const JsonValue& want : at(test, "expected").items()) {
      const auto bounds = numbers(at(want, "fpr_bounds"));
      evaluation::AupimoOptions options{.thresholds = *at(want, "num_thresholds").integer(), .lower = bounds[0], .upper = bounds[1]};
      CAPTURE(options.thresholds);
      auto got = evaluation::aupimo(images.map_views, images.mask_views, options);
      REQUIRE_MESSAGE(got.ok(), got.message());
      CHECK(got->upper_index == number(at(want, "index_at_upper_fpr")));
      CHECK(got->lower_index == number(at(want, "index_at_lower_fpr")));
      const auto rates = numbers(at(want, "fpr_at_indices"));
      CHECK(std::abs(got->upper_rate - rates[0]) <= kTolerance);
      CHECK(std::abs(got->lower_rate - rates[1]) <= kTolerance);
      CHECK(got->points == number(at(want, "points_integrated")));
      CHECK((got->points < evaluation::kAupimoAdvisedPoints) == !got->warning.empty());
      CHECK(close(got->mean, at(want, "aupimo_mean")));
      const auto& each = at(want, "aupimo_per_image").items();
      REQUIRE(got->per_image.size() == each.size());
      for (std::size_t i = 0; i < each.size(); ++i) CHECK(close(got->per_image[i], each[i]));
    }
  }
}
