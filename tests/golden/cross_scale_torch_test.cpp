// A cross-scale flow of two blocks against PyTorch in double: latents, log-determinants, gradients of every parameter and of the input, and five
// training steps. The file and the script that made it stand beside this test. The flow's tensors are read by the estimator, so this is also a test
// of the model file's layout.
#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/estimators/cross_scale_flow.hpp>

namespace {

using namespace norma;

constexpr std::int64_t kBatch = 2, kChannels = 4, kHidden = 4;
constexpr Shape kFinest{8, 8, kChannels};
constexpr std::array<nn::CrossScaleShape, 2> kBlocks{{{kChannels, kHidden, 3}, {kChannels, kHidden, 5}}};

io::Weights golden() {
#ifdef NORMA_SOURCE_DIR
  const std::string root = NORMA_SOURCE_DIR;
#else
  const std::string root = ".";
#endif
  auto file = io::Weights::open(root + "/tests/golden/cross_scale_torch.safetensors");
  REQUIRE_MESSAGE(file.ok(), file.message());
  return *std::move(file);
}
std::vector<float> read(const io::Weights& file, const std::string& name) {
  const auto tensor = file.get(name);
  REQUIRE_MESSAGE(tensor.ok(), tensor.message());
  std::vector<float> values(static_cast<std::size_t>(tensor->count()));
  REQUIRE(file.read(name, tensor->shape, values).ok());
  return values;
}
// Three maps [n, c, h, w] as [n, h, w, c].
std::array<Tensor<float>, 3> read_maps(const io::Weights& file, const std::string& name) {
  std::array<Tensor<float>, 3> maps;
  for (int l = 0; l < 3; ++l) {
    const auto values = read(file, name + std::to_string(l));
    const Shape s = nn::scale_shape(kFinest, l);
    Tensor<float> t(kBatch, s);
    std::size_t i = 0;
    for (std::int64_t n = 0; n < kBatch; ++n)
      for (std::int64_t c = 0; c < s.channels; ++c)
        for (std::int64_t y = 0; y < s.height; ++y)
          for (std::int64_t x = 0; x < s.width; ++x) t.view()(n, y, x, c) = values[i++];
    maps[static_cast<std::size_t>(l)] = std::move(t);
  }
  return maps;
}
nn::ScaleViews<float> views(std::array<Tensor<float>, 3>& maps) { return {maps[0].view(), maps[1].view(), maps[2].view()}; }

// All parameters in the flow's order, from tensors `prefix` + their names in the file.
std::vector<float> read_parameters(const io::Weights& file, const std::string& prefix) {
  std::vector<float> all;
  for (std::size_t b = 0; b < kBlocks.size(); ++b) {
    for (int step = 0; step < 2; ++step) {
      const std::string subnet = prefix + std::to_string(b) + ".subnet" + std::to_string(step) + ".";
      for (int c = 0; c < nn::kCrossScaleConvolutions; ++c) {
        for (const char* part : {".weight", ".bias"}) {
          const auto values = read(file, subnet + std::string(nn::cross_scale_name(c)) + part);
          all.insert(all.end(), values.begin(), values.end());
        }
      }
      const auto gamma = read(file, subnet + "gamma");
      all.insert(all.end(), gamma.begin(), gamma.end());
    }
  }
  return all;
}
double largest(const std::vector<float>& values) {
  double most = 0.0;
  for (float v : values) most = std::max(most, std::abs(static_cast<double>(v)));
  return most;
}
void check_close(std::span<const float> got, std::span<const float> want, double bound, const char* what) {
  REQUIRE(got.size() == want.size());
  double worst = 0.0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double error = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    worst = error <= worst ? worst : error;  // keeps a NaN
  }
  CAPTURE(what);
  CHECK(worst <= bound);
}

struct GoldenFlow {
  GoldenFlow() : file(golden()), parameters(read_parameters(file, "estimator.")), x(read_maps(file, "x")) {
    std::vector<nn::CrossScaleBlock> blocks;
    for (std::size_t b = 0; b < kBlocks.size(); ++b) {
      for (int l = 0; l < 3; ++l) {
        auto& order = permutation[b][static_cast<std::size_t>(l)];
        order.resize(kChannels);
        REQUIRE(file.read_int64("estimator." + std::to_string(b) + ".permutation" + std::to_string(l), {kChannels}, order).ok());
      }
      blocks.push_back({kBlocks[b], {permutation[b][0], permutation[b][1], permutation[b][2]}});
    }
    flow = *nn::CrossScaleFlow::create(blocks, kFinest, nn::FlowUse::training);
    REQUIRE(static_cast<std::int64_t>(parameters.size()) == flow.parameters());
    memory = Buffer<std::byte>(static_cast<std::int64_t>(flow.scratch_bytes(nn::FlowPass::backward, kBatch, 1)));
    z = dz =
        dx = {Tensor<float>(kBatch, kFinest), Tensor<float>(kBatch, nn::scale_shape(kFinest, 1)), Tensor<float>(kBatch, nn::scale_shape(kFinest, 2))};
    gradients.resize(parameters.size());
  }
  /// Loss, gradients of the parameters and of the input, z.
  double run() {
    const double dims = static_cast<double>(nn::scale_dims(kFinest));
    Arena arena(memory.span());
    REQUIRE(flow.prepare(parameters, {}, arena).ok());
    REQUIRE(flow.forward(views(x), views(z), logdet, {}, arena).ok());
    double loss = 0.0;
    std::vector<float> slope(kBatch, static_cast<float>(-1.0 / (dims * kBatch)));
    for (std::size_t l = 0; l < 3; ++l) {
      const auto from = z[l].view();
      const auto to = dz[l].view();
      for (std::int64_t i = 0; i < from.count(); ++i) {
        loss += 0.5 * static_cast<double>(from.data[i]) * static_cast<double>(from.data[i]);
        to.data[i] = from.data[i] * static_cast<float>(1.0 / (dims * kBatch));
      }
    }
    for (float v : logdet) loss -= static_cast<double>(v);
    REQUIRE(flow.backward(views(z), views(dz), slope, gradients, views(dx), {}, arena).ok());
    return loss / (dims * kBatch);
  }

  io::Weights file;
  std::vector<float> parameters, gradients, logdet = std::vector<float>(kBatch);
  std::array<std::array<std::vector<std::int64_t>, 3>, 2> permutation;
  std::array<Tensor<float>, 3> x, z, dz, dx;
  nn::CrossScaleFlow flow;
  Buffer<std::byte> memory;
};

TEST_CASE("a cross-scale flow and its gradients are PyTorch's") {
  GoldenFlow g;
  const double loss = g.run();
  CHECK(std::abs(loss - static_cast<double>(read(g.file, "loss")[0])) <= 1e-6);
  auto z = read_maps(g.file, "z"), dx = read_maps(g.file, "dx");
  for (std::size_t l = 0; l < 3; ++l) {
    // A dozen convolutions of at most 180 products, each with a few roundings of numbers near 1.
    check_close({g.z[l].data(), static_cast<std::size_t>(g.z[l].view().count())}, {z[l].data(), static_cast<std::size_t>(z[l].view().count())}, 5e-6,
                "z");
    check_close({g.dx[l].data(), static_cast<std::size_t>(g.dx[l].view().count())}, {dx[l].data(), static_cast<std::size_t>(dx[l].view().count())},
                1e-7, "dx");
  }
  check_close(g.logdet, read(g.file, "logdet"), 2e-5, "logdet");
  const auto want = read_parameters(g.file, "gradient.");
  CHECK(largest(want) > 1e-2);
  check_close(g.gradients, want, 2e-6 * largest(want), "gradients");
}

TEST_CASE("five steps of the training are PyTorch's") {
  GoldenFlow g;
  auto adam = *nn::Adam::create(g.flow.parameters(), {.learning_rate = 2e-4f, .epsilon = 1e-4f, .weight_decay = 1e-5f});
  const auto norms = read(g.file, "norms");
  for (int step = 0; step < 5; ++step) {
    g.run();
    const double norm = nn::clip_gradient_norm(g.gradients, 0.05);
    CHECK(std::abs(norm - static_cast<double>(norms[static_cast<std::size_t>(step)])) <= 1e-5 * norm);
    CHECK(norm > 0.05);
    adam.step(g.parameters, g.gradients, 2e-4f);
  }
  const auto want = read_parameters(g.file, "trained."), start = read_parameters(g.file, "estimator.");
  double moved = 0.0;
  for (std::size_t i = 0; i < want.size(); ++i) moved = std::max(moved, std::abs(static_cast<double>(want[i]) - static_cast<double>(start[i])));
  CHECK(moved > 5e-4);
  // A step is rate * m / (sqrt(v) + 1e-4): an error of a gradient of 2e-7 changes it by at most 2e-4 * 2e-7 / 1e-4; and the weights' own rounding.
  check_close(g.parameters, want, 1e-6, "parameters");
}

TEST_CASE("the estimator reads the file that PyTorch's names make") {
  GoldenFlow g;
  ScaleFlow::Settings settings;
  settings.flow_steps = 2;
  settings.hidden_channels = kHidden;
  FeatureShapes shapes;
  for (int l = 0; l < 3; ++l) shapes.add(nn::scale_shape(kFinest, l));
  const auto estimator = ScaleFlow::load(g.file, shapes, settings, {});
  REQUIRE_MESSAGE(estimator.ok(), estimator.message());
  CHECK(std::equal(g.parameters.begin(), g.parameters.end(), estimator->parameters().begin(), estimator->parameters().end()));
  Features features;
  for (std::size_t l = 0; l < 3; ++l) features.add(TensorView<const float>(g.x[l].view().image(1)));
  Buffer<std::byte> memory(static_cast<std::int64_t>(ScaleFlow::latent_scratch_bytes(shapes, settings, 1)));
  Arena arena(memory.span());
  Context context{arena};
  const nn::ScaleViews<float> z(g.z[0].view().image(1), g.z[1].view().image(1), g.z[2].view().image(1));
  float logdet = 0.0f;
  REQUIRE(estimator->latent(features, z, &logdet, context).ok());
  CHECK(std::abs(logdet - read(g.file, "logdet")[1]) <= 2e-5f);
}

}  // namespace
