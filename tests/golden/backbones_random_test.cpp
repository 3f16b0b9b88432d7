// Whole feature maps of PyTorch with random weights, as tests/golden/backbones_random.py writes them into a folder (1.6 GB for all networks,
// so none is kept here). NORMA_BACKBONE_GOLDEN_DIR names the folder; backbones_formula_test.cpp checks every network without one.
#include <norma/backbones/backbones.hpp>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <tests/support/backbone_run.hpp>

using namespace norma;

TEST_CASE("random weights: every output that PyTorch wrote") {
  const char* folder = std::getenv("NORMA_BACKBONE_GOLDEN_DIR");
  if (folder == nullptr) {
    MESSAGE("skipped: NORMA_BACKBONE_GOLDEN_DIR is not set");
    return;
  }
  int found = 0;
  for (const AnyNetwork& network : AnyNetwork::all()) {
    CAPTURE(network.name());
    const auto stem = std::filesystem::path(folder) / network.name();
    if (!std::filesystem::exists(stem.string() + ".safetensors")) continue;
    ++found;
    const auto weights = io::Weights::open(stem.string() + ".safetensors");
    const auto golden = io::Weights::open(stem.string() + "_taps.safetensors");
    REQUIRE(weights.ok());
    REQUIRE(golden.ok());
    std::vector<std::string_view> taps;
    for (const io::TensorInfo& tensor : golden->tensors()) {
      if (tensor.name != "input") taps.push_back(tensor.name);
    }
    const Tensor<float> input = test::read_channels_first(*golden, "input");
    const auto outputs = test::run_backbone(network.graph(), taps, input.view(), *weights);
    double worst = 0;
    for (std::size_t t = 0; t < taps.size(); ++t) {
      CAPTURE(taps[t]);
      const double error = test::relative_error(outputs[t], test::read_channels_first(*golden, taps[t]));
      CHECK(error < 2e-5);  // both sides round in float32
      worst = std::max(worst, error);
    }
    MESSAGE(network.name() << ": " << taps.size() << " outputs, largest relative error " << worst);
  }
  CHECK(found > 0);
}
