// Ranking metrics and AU-PRO at the sizes of one category: image scores are few, pixels are up to ten million.
// Named axes: n = samples, percent = positives, threads. Rate: samples (pixels) a second from input to
// figure, by processor time on one thread and by the clock on several.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/evaluation/aupimo.hpp>
#include <norma/evaluation/pro.hpp>

namespace {

namespace evaluation = norma::evaluation;

struct Samples {
  std::vector<float> scores;
  std::vector<std::uint8_t> labels;
};

Samples samples(std::int64_t n, std::int64_t percent) {
  norma::Random random(1);
  Samples out;
  out.scores.resize(static_cast<std::size_t>(n));
  out.labels.resize(out.scores.size());
  for (std::size_t i = 0; i < out.scores.size(); ++i) {
    out.labels[i] = random.below(100) < percent ? 1 : 0;
    out.scores[i] = static_cast<float>(random.uniform() + random.uniform() + 0.5 * out.labels[i]);
  }
  return out;
}

/// By sorting pairs: another way to the same number.
double auroc_by_pairs(const Samples& s) {
  std::vector<std::pair<float, std::uint8_t>> sorted;
  for (std::size_t i = 0; i < s.scores.size(); ++i) sorted.emplace_back(s.scores[i], s.labels[i]);
  std::sort(sorted.begin(), sorted.end());
  double below = 0.0, pairs = 0.0, positives = 0.0;
  for (std::size_t i = 0; i < sorted.size();) {
    double tied_positives = 0.0, tied_negatives = 0.0;
    const float score = sorted[i].first;
    for (; i < sorted.size() && sorted[i].first == score; ++i) ++(sorted[i].second != 0 ? tied_positives : tied_negatives);
    pairs += tied_positives * (below + 0.5 * tied_negatives);
    below += tied_negatives;
    positives += tied_positives;
  }
  return pairs / (positives * below);
}

void set_rate(benchmark::State& state, std::int64_t n, int threads) {
  state.counters["samples/s"] = benchmark::Counter(static_cast<double>(n), benchmark::Counter::kIsIterationInvariantRate);
  state.counters["threads"] = threads;
}

void auroc(benchmark::State& state) {
  const Samples s = samples(state.range(0), state.range(1));
  norma::ThreadPool pool(static_cast<int>(state.range(2)));
  const auto got = evaluation::auroc(s.scores, s.labels, pool.parallel());
  if (!got.ok() || !got->has_value() || !(std::abs(**got - auroc_by_pairs(s)) <= 1e-9)) {
    state.SkipWithError("AUROC differs from the sorted pairs");
    return;
  }
  for (auto _ : state) benchmark::DoNotOptimize(evaluation::auroc(s.scores, s.labels, pool.parallel()));
  set_rate(state, state.range(0), pool.threads());
}
BENCHMARK(auroc)
    ->ArgNames({"n", "percent", "threads"})
    ->Args({83, 75, 1})
    ->Args({10'000, 3, 1})
    ->Args({4'164'608, 3, 1})
    ->Args({10'000'000, 3, 1})
    ->Args({10'000'000, 50, 1})
    ->Unit(benchmark::kMillisecond);
BENCHMARK(auroc)->ArgNames({"n", "percent", "threads"})->Args({10'000'000, 3, 2})->UseRealTime()->Unit(benchmark::kMillisecond);

void all_ranking_metrics(benchmark::State& state) {
  const Samples s = samples(state.range(0), state.range(1));
  for (auto _ : state) benchmark::DoNotOptimize(evaluation::ranking_metrics(std::span<const float>(s.scores), s.labels));
  set_rate(state, state.range(0), 1);
}
BENCHMARK(all_ranking_metrics)->ArgNames({"n", "percent"})->Args({10'000'000, 3})->Unit(benchmark::kMillisecond);

/// The size of MVTec AD's bottle: 83 maps, 63 of them with a blob of about 3 % of the pixels.
struct Maps {
  std::vector<norma::Map<float>> maps;
  std::vector<norma::Map<std::uint8_t>> masks;
  std::vector<norma::MapView<const float>> map_views;
  std::vector<norma::MapView<const std::uint8_t>> mask_views;
  std::int64_t pixels = 0;

  Maps(std::int64_t count, std::int64_t side) {
    for (std::int64_t i = 0; i < count; ++i) {
      norma::Random random(2, static_cast<std::uint64_t>(i));
      norma::Map<float> map(side, side);
      norma::Map<std::uint8_t> mask(side, side);
      const double y0 = random.uniform(0.3, 0.7), x0 = random.uniform(0.3, 0.7);
      for (std::int64_t y = 0; y < side; ++y) {
        for (std::int64_t x = 0; x < side; ++x) {
          const double scale = 1.0 / static_cast<double>(side);
          const double d = std::hypot(scale * static_cast<double>(y) - y0, scale * static_cast<double>(x) - x0);
          mask(y, x) = i % 4 != 0 && d < 0.1 ? 1 : 0;
          map(y, x) = static_cast<float>(random.uniform() + (mask(y, x) != 0 ? 0.7 : 0.0));
        }
      }
      maps.push_back(std::move(map));
      masks.push_back(std::move(mask));
      pixels += side * side;
    }
    for (const auto& map : maps) map_views.push_back(map.view());
    for (const auto& mask : masks) mask_views.push_back(mask.view());
  }
};

/// At L = 1, AU-PRO is the mean over the regions (one an image here) of the AUROC of a region against all normal pixels.
bool area_is_right() {
  const Maps m(12, 48);
  double sum = 0.0;
  std::int64_t regions = 0;
  for (std::size_t i = 0; i < m.maps.size(); ++i) {
    Samples one;
    std::int64_t inside = 0;
    for (std::size_t j = 0; j < m.maps.size(); ++j) {
      for (std::int64_t p = 0; p < m.maps[j].rows() * m.maps[j].cols(); ++p) {
        const std::uint8_t label = m.masks[j].data()[p];
        if (label != 0 && j != i) continue;
        one.scores.push_back(m.maps[j].data()[p]);
        one.labels.push_back(label);
        inside += label;
      }
    }
    if (inside == 0) continue;
    sum += auroc_by_pairs(one);
    ++regions;
  }
  const auto got = evaluation::au_pro(m.map_views, m.mask_views, {.limit = 1.0});
  return got.ok() && got->has_value() && std::abs(**got - sum / static_cast<double>(regions)) <= 1e-9;
}

const Maps& bottle_sized() {
  static const Maps maps(83, 224);
  return maps;
}

void pixel_figures(benchmark::State& state) {
  const Maps& m = bottle_sized();
  norma::ThreadPool pool(static_cast<int>(state.range(0)));
  if (!area_is_right()) {
    state.SkipWithError("AU-PRO differs from the mean AUROC of the regions");
    return;
  }
  for (auto _ : state) {
    const auto pixels = evaluation::PixelRanking::create(m.map_views, m.mask_views, pool.parallel());
    benchmark::DoNotOptimize(evaluation::ranking_metrics(pixels->ranking()));
    benchmark::DoNotOptimize(pixels->au_pro({.limit = 0.3}, pool.parallel()));
    benchmark::DoNotOptimize(pixels->au_pro({.limit = 0.05}, pool.parallel()));
  }
  set_rate(state, m.pixels, pool.threads());
}
BENCHMARK(pixel_figures)->ArgNames({"threads"})->Arg(1)->Unit(benchmark::kMillisecond);
BENCHMARK(pixel_figures)->ArgNames({"threads"})->Arg(2)->UseRealTime()->Unit(benchmark::kMillisecond);

void au_pro_of_sorted_pixels(benchmark::State& state) {
  const Maps& m = bottle_sized();
  const auto pixels = evaluation::PixelRanking::create(m.map_views, m.mask_views);
  const evaluation::AuProOptions options{.rule = state.range(0) == 0 ? evaluation::ProRule::exact : evaluation::ProRule::sampled};
  for (auto _ : state) benchmark::DoNotOptimize(pixels->au_pro(options));
  set_rate(state, m.pixels, 1);
}
BENCHMARK(au_pro_of_sorted_pixels)->ArgNames({"sampled"})->Arg(0)->Arg(1)->Unit(benchmark::kMillisecond);

void components(benchmark::State& state) {
  const Maps& m = bottle_sized();
  for (auto _ : state) {
    for (const auto& mask : m.mask_views) benchmark::DoNotOptimize(evaluation::connected_components(mask));
  }
  set_rate(state, m.pixels, 1);
}
BENCHMARK(components)->Unit(benchmark::kMillisecond);

void aupimo(benchmark::State& state) {
  const Maps& m = bottle_sized();
  const evaluation::AupimoOptions options{.few_points = evaluation::FewPoints::accept};
  if (!evaluation::aupimo(m.map_views, m.mask_views, options).ok()) {
    state.SkipWithError("AUPIMO was refused");
    return;
  }
  for (auto _ : state) benchmark::DoNotOptimize(evaluation::aupimo(m.map_views, m.mask_views, options));
  set_rate(state, m.pixels, 1);
}
BENCHMARK(aupimo)->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
