// AU-PRO against the definitions, and what must not change it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <set>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/evaluation/pro.hpp>

namespace {

namespace evaluation = norma::evaluation;
using evaluation::PixelRanking;
using evaluation::ProRule;

struct Images {
  std::vector<norma::Map<float>> maps;
  std::vector<norma::Map<std::uint8_t>> masks;
};

std::vector<norma::MapView<const float>> views(const std::vector<norma::Map<float>>& maps) {
  std::vector<norma::MapView<const float>> out;
  for (const auto& map : maps) out.push_back(map.view());
  return out;
}
std::vector<norma::MapView<const std::uint8_t>> views(const std::vector<norma::Map<std::uint8_t>>& masks) {
  std::vector<norma::MapView<const std::uint8_t>> out;
  for (const auto& mask : masks) out.push_back(mask.view());
  return out;
}

/// Images of different sizes with rectangles as regions (which may touch and overlap); scores are whole numbers, so they tie.
Images random_images(std::int64_t count, std::int64_t side, std::int64_t levels, norma::Random& random) {
  Images out;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t height = 1 + random.below(side), width = 1 + random.below(side);
    norma::Map<float> map(height, width);
    norma::Map<std::uint8_t> mask(height, width);
    for (std::int64_t r = random.below(4); r > 0; --r) {
      const std::int64_t top = random.below(height), left = random.below(width);
      const std::int64_t bottom = std::min(height, top + 1 + random.below(5)), right = std::min(width, left + 1 + random.below(5));
      for (std::int64_t y = top; y < bottom; ++y) {
        for (std::int64_t x = left; x < right; ++x) mask(y, x) = 1;
      }
    }
    for (std::int64_t p = 0; p < height * width; ++p) {
      map.data()[p] = static_cast<float>(random.below(levels) + (mask.data()[p] != 0 ? random.below(levels) : 0) - levels / 2);
    }
    out.maps.push_back(std::move(map));
    out.masks.push_back(std::move(mask));
  }
  return out;
}

PixelRanking ranking(const Images& images, norma::Parallel parallel = {}) {
  auto pixels = PixelRanking::create(views(images.maps), views(images.masks), parallel);
  REQUIRE_MESSAGE(pixels.ok(), pixels.message());
  return *std::move(pixels);
}

std::optional<double> au_pro(const PixelRanking& pixels, const evaluation::AuProOptions& options, norma::Parallel parallel = {}) {
  auto got = pixels.au_pro(options, parallel);
  REQUIRE_MESSAGE(got.ok(), got.message());
  return *got;
}

double area(const std::vector<double>& xs, const std::vector<double>& ys, double limit) {
  double sum = 0.0;
  for (std::size_t i = 1; i < xs.size() && xs[i - 1] < limit; ++i) {
    if (xs[i] <= limit) {
      sum += 0.5 * (ys[i] + ys[i - 1]) * (xs[i] - xs[i - 1]);
    } else {
      const double y = ys[i - 1] + (ys[i] - ys[i - 1]) * (limit - xs[i - 1]) / (xs[i] - xs[i - 1]);
      sum += 0.5 * (y + ys[i - 1]) * (limit - xs[i - 1]);
    }
  }
  return sum;
}

/// Region scores and normal scores, collected one pixel at a time.
struct Pixels {
  std::vector<std::vector<float>> regions;
  std::vector<float> normal;
};
Pixels collect(const Images& images) {
  Pixels out;
  for (std::size_t i = 0; i < images.maps.size(); ++i) {
    const auto components = evaluation::connected_components(images.masks[i].view());
    const std::size_t before = out.regions.size();
    out.regions.resize(before + static_cast<std::size_t>(components.count()));
    for (std::int64_t p = 0; p < images.maps[i].rows() * images.maps[i].cols(); ++p) {
      const std::int32_t label = components.labels.data()[p];
      (label == 0 ? out.normal : out.regions[before + static_cast<std::size_t>(label) - 1]).push_back(images.maps[i].data()[p]);
    }
  }
  return out;
}

double fraction(const std::vector<float>& scores, const std::function<bool(float)>& predicted) {
  return static_cast<double>(std::count_if(scores.begin(), scores.end(), predicted)) / static_cast<double>(scores.size());
}

double overlap(const Pixels& pixels, const std::function<bool(float)>& predicted) {
  double sum = 0.0;
  for (const auto& region : pixels.regions) sum += fraction(region, predicted);
  return sum / static_cast<double>(pixels.regions.size());
}

}  // namespace

TEST_CASE("both rules equal their definitions; the curve carries the area") {
  norma::Random random(41);
  int defined = 0;
  for (int round = 0; round < 60; ++round) {
    CAPTURE(round);
    const Images images = random_images(1 + random.below(4), 14, round % 2 == 0 ? 6 : 1000, random);
    const Pixels pixels = collect(images);
    const PixelRanking got = ranking(images);
    REQUIRE(got.regions() == static_cast<std::int64_t>(pixels.regions.size()));
    REQUIRE(got.normal_pixels() == static_cast<std::int64_t>(pixels.normal.size()));
    if (pixels.regions.empty() || pixels.normal.empty()) {
      CHECK(!au_pro(got, {}));
      continue;
    }
    ++defined;
    std::set<float, std::greater<>> distinct(pixels.normal.begin(), pixels.normal.end());
    for (const auto& region : pixels.regions) distinct.insert(region.begin(), region.end());
    std::vector<double> xs{0.0}, ys{0.0};
    for (const float t : distinct) {
      xs.push_back(fraction(pixels.normal, [t](float s) { return s >= t; }));
      ys.push_back(overlap(pixels, [t](float s) { return s >= t; }));
    }
    const auto curve = got.exact_curve();
    for (const double limit : {0.01, 0.05, 0.3, 0.77, 1.0}) {
      CAPTURE(limit);
      CHECK(std::abs(*au_pro(got, {.limit = limit}) - area(xs, ys, limit) / limit) <= 1e-12);
      CHECK(std::abs(area(curve.false_positive_rate, curve.overlap, limit) - area(xs, ys, limit)) <= 1e-12);
    }
    const auto thin = got.exact_curve(16);
    CHECK(thin.overlap.size() <= 16);
    CHECK(thin.overlap.back() == 1.0);

    std::vector<float> sorted(pixels.normal);
    std::sort(sorted.begin(), sorted.end());
    const auto n = static_cast<double>(sorted.size());
    for (const std::int64_t thresholds : {2, 10, 100}) {
      std::vector<double> sampled_xs{1.0}, sampled_ys{1.0};
      for (std::int64_t i = 0; i < thresholds; ++i) {
        const double step = (n - 1.0) / static_cast<double>(thresholds - 1);
        const auto rank = i + 1 == thresholds ? sorted.size() - 1 : static_cast<std::size_t>(static_cast<double>(i) * step);
        const float t = sorted[rank];
        sampled_xs.push_back(1.0 - (static_cast<double>(rank) + 1.0) / n);
        sampled_ys.push_back(overlap(pixels, [t](float s) { return s > t; }));
      }
      std::reverse(sampled_xs.begin(), sampled_xs.end());
      std::reverse(sampled_ys.begin(), sampled_ys.end());
      for (const double limit : {0.05, 0.3}) {
        const auto value = au_pro(got, {.limit = limit, .rule = ProRule::sampled, .thresholds = thresholds});
        CHECK(std::abs(*value - area(sampled_xs, sampled_ys, limit) / limit) <= 1e-12);
      }
    }
  }
  CHECK(defined >= 40);
}

TEST_CASE("at L = 1 AU-PRO is the mean AUROC of the regions; one region gives its partial ROC area") {
  norma::Random random(43);
  const Images images = random_images(6, 30, 12, random);
  const Pixels pixels = collect(images);
  REQUIRE(pixels.regions.size() >= 3);
  double sum = 0.0;
  for (const auto& region : pixels.regions) {
    std::vector<float> scores(region);
    scores.insert(scores.end(), pixels.normal.begin(), pixels.normal.end());
    std::vector<std::uint8_t> labels(scores.size(), 0);
    std::fill_n(labels.begin(), region.size(), std::uint8_t{1});
    sum += *evaluation::Ranking<float>::create(scores, labels)->auroc();
  }
  CHECK(std::abs(*au_pro(ranking(images), {.limit = 1.0}) - sum / static_cast<double>(pixels.regions.size())) <= 1e-12);

  Images one;
  one.maps.emplace_back(20, 20);
  one.masks.emplace_back(20, 20);
  for (std::int64_t i = 0; i < 400; ++i) one.maps[0].data()[i] = static_cast<float>(random.below(50) + (i < 60 ? 20 : 0));
  for (std::int64_t i = 0; i < 60; ++i) one.masks[0].data()[i] = 1;
  const PixelRanking pixel = ranking(one);
  const auto roc = pixel.ranking().roc_curve();
  for (const double limit : {0.05, 0.3, 1.0}) {
    CHECK(std::abs(*au_pro(pixel, {.limit = limit}) - area(roc.false_positive_rate, roc.true_positive_rate, limit) / limit) <= 1e-12);
  }
}

TEST_CASE("increasing transforms, the order of the images and threads change no bit; L * AU-PRO@L never falls") {
  norma::Random random(47);
  norma::ThreadPool pool(4);
  const Images images = random_images(9, 60, 300, random);
  const PixelRanking want = ranking(images);
  Images moved = images, reversed = images;
  for (auto& map : moved.maps) {
    for (std::int64_t i = 0; i < map.rows() * map.cols(); ++i) map.data()[i] = std::ldexp(map.data()[i], 3) + 4096.0f;  // exact
  }
  std::reverse(reversed.maps.begin(), reversed.maps.end());
  std::reverse(reversed.masks.begin(), reversed.masks.end());
  double before = 0.0;
  for (const double limit : {0.01, 0.05, 0.1, 0.3, 0.5, 1.0}) {
    for (const ProRule rule : {ProRule::exact, ProRule::sampled}) {
      const evaluation::AuProOptions options{.limit = limit, .rule = rule};
      const double value = *au_pro(want, options);
      CHECK(*au_pro(ranking(moved), options) == value);
      CHECK(*au_pro(ranking(images, pool.parallel()), options, pool.parallel()) == value);
      // Regions are summed in another order: at most one rounding a region apart.
      CHECK(std::abs(*au_pro(ranking(reversed), options) - value) <= 1e-14);
      if (rule == ProRule::exact) {
        CHECK(limit * value >= before);
        before = limit * value;
      }
    }
  }
}

TEST_CASE("scores without information give about L / 2") {
  norma::Random random(53);
  Images images;
  for (int i = 0; i < 2; ++i) {
    images.maps.emplace_back(256, 256);
    images.masks.emplace_back(256, 256);
    for (std::int64_t p = 0; p < 256 * 256; ++p) images.maps.back().data()[p] = static_cast<float>(random.uniform());
    for (std::int64_t y = 40; y < 120; ++y) {
      for (std::int64_t x = 40; x < 120; ++x) images.masks.back()(y, x) = 1;
    }
  }
  const PixelRanking pixels = ranking(images);
  CHECK(std::abs(*au_pro(pixels, {}) - 0.15) <= 0.01);
  CHECK(std::abs(*au_pro(pixels, {.rule = ProRule::sampled}) - 0.15) <= 0.01);
  CHECK(std::abs(*pixels.ranking().auroc() - 0.5) <= 0.01);
}
