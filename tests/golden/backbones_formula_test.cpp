// Every backbone against PyTorch without any weight file: weights and input are functions of (tensor name, index), and
// tests/data/backbones_formula.txt holds what PyTorch computes from them in float64 (tests/golden/backbones_formula.py). Of the largest
// networks it holds the outputs of the first blocks: the plan then loads and runs no more than those.
// A projection of the error on random signs is about as large as the error's norm: four of them see an error wherever it is.
#include <norma/backbones/backbones.hpp>

#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <norma/core/thread_pool.hpp>
#include <tests/support/backbone_run.hpp>
#include <tests/support/formula_weights.hpp>

using namespace norma;

namespace {

// The signs of a projection are the same for all maps: made once, for the longest.
const std::vector<signed char>& signs(int k) {
  static std::vector<signed char> all[test::FormulaTap::kProjections];
  auto& row = all[k];
  if (row.empty()) {
    const test::FormulaNumbers u("projection" + std::to_string(k));
    row.resize(700'000);
    for (std::size_t i = 0; i < row.size(); ++i) row[i] = u(static_cast<std::int64_t>(i)) < 0.5 ? -1 : 1;
  }
  return row;
}

/// Largest deviation of a summary in units of the map's norm (samples: of the map's root mean square, which is smaller).
double deviation(const Tensor<float>& map, const test::FormulaTap& expected) {
  const std::int64_t count = map.shape().count();
  REQUIRE(count <= static_cast<std::int64_t>(signs(0).size()));
  double square = 0;
  for (std::int64_t i = 0; i < count; ++i) square += double{map.data()[i]} * map.data()[i];
  double worst = std::abs(std::sqrt(square) - expected.norm);
  const auto raise = [&worst](double value) { worst = value <= worst ? worst : value; };  // a NaN wins
  for (int k = 0; k < test::FormulaTap::kProjections; ++k) {
    double projection = 0;
    for (std::int64_t i = 0; i < count; ++i) projection += double{map.data()[i]} * signs(k)[static_cast<std::size_t>(i)];
    raise(std::abs(projection - expected.projections[k]));
  }
  for (int k = 0; k < test::FormulaTap::kSamples; ++k) {
    raise(std::abs(double{map.data()[test::FormulaTap::sample_index(k, count)]} - expected.samples[k]));
  }
  return worst / expected.norm;
}

// float32 rounding grows with depth: 4e-7 after the stem, 3e-6 after 150 layers; a wrong epsilon, padding or window moves a map by 1e-5 to 1.
constexpr double kTolerance = 1e-5;

/// `side` is the input size whose weight file is read, where that is not the one that is run.
void compare(const test::FormulaNetwork& expected, std::span<const test::FormulaTap> which, Parallel parallel, std::int64_t side = 0) {
  const auto network = AnyNetwork::find(expected.name);
  REQUIRE(network.ok());
  std::vector<std::string_view> taps;
  for (const test::FormulaTap& tap : which) taps.push_back(tap.name);
  const auto plan = nn::Plan::create(network->graph(), std::span<const std::string_view>(taps), side > 0 ? side : expected.height,
                                     side > 0 ? side : expected.width);
  REQUIRE(plan.ok());
  const Tensor<float> input = test::formula_input(expected.height, expected.width);
  const auto weights = test::formula_weights(*plan, expected.gains);
  INFO(weights.message());
  REQUIRE(weights.ok());
  const auto outputs = test::run_backbone(network->graph(), taps, input.view(), *weights, parallel);
  double worst = 0;
  for (std::size_t t = 0; t < taps.size(); ++t) {
    CAPTURE(taps[t]);
    REQUIRE(outputs[t].shape() == which[t].shape);
    const double error = deviation(outputs[t], which[t]);
    CHECK(error <= kTolerance);
    worst = std::max(worst, error);
  }
  MESSAGE(expected.name << ": " << taps.size() << " outputs, largest deviation " << worst);
}

}  // namespace

TEST_CASE("every backbone: all outputs at once are PyTorch's") {
  const auto all = test::read_formula_networks();
  CHECK(all.size() == AnyNetwork::all().size());
  for (const test::FormulaNetwork& expected : all) {
    CAPTURE(expected.name);
    compare(expected, expected.taps, {});
  }
}

TEST_CASE("small backbones: the usual three outputs alone, with two workers") {
  // Fewer outputs mean another plan: values lie elsewhere, additions move, the rest of the network is neither loaded nor run.
  ThreadPool pool(2);
  const auto all = test::read_formula_networks();
  CHECK(all.size() == AnyNetwork::all().size());
  for (const test::FormulaNetwork& expected : all) {
    if (expected.name != "resnet18" && expected.name != "resnet50_caffe" && expected.name != "mobilenet_v2" && expected.name != "squeezenet1_1" &&
        expected.name != "efficientnet_lite2" && expected.name != "efficientnet_b0" && expected.name != "alexnet" &&
        expected.name != "vit_tiny_patch16_224") {
      continue;
    }
    CAPTURE(expected.name);
    const auto network = AnyNetwork::find(expected.name);
    std::vector<test::FormulaTap> levels;
    for (const std::string_view level : network->default_taps()) {
      const test::FormulaTap* tap = expected.find(level);
      REQUIRE(tap != nullptr);
      levels.push_back(*tap);
    }
    compare(expected, levels, pool.parallel());
  }
}

TEST_CASE("transformers: at other sizes the position embedding is resampled as timm does it") {
  const auto all = test::read_formula_networks("backbones_resized.txt");
  CHECK(all.size() == 3);
  for (const test::FormulaNetwork& expected : all) {
    CAPTURE(expected.name);
    const auto network = AnyNetwork::find(expected.name);
    REQUIRE(network.ok());
    compare(expected, expected.taps, {}, network->input().size);
  }
}
