// Published weights and one photograph: the feature maps that PyTorch 1.13 gives in float32. The reference's own rounding is of the same
// size as ours, hence 1e-5 of the norm; files stored as F16 have weights off by 2^-11, which the layers carry to less than 3e-3.
#include <norma/backbones/backbones.hpp>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <tests/support/backbone_run.hpp>
#include <tests/support/shared_fixtures.hpp>

using namespace norma;

namespace {

struct Case {
  std::string_view tap, golden;  // public name of the output, tensor of the golden file
};

/// The ImageNet class with the largest of 1000 logits.
std::ptrdiff_t likeliest(const Tensor<float>& logits) {
  REQUIRE(logits.shape().count() == 1000);
  return std::max_element(logits.data(), logits.data() + 1000) - logits.data();
}

io::Weights open(const std::filesystem::path& path) {
  auto file = io::Weights::open(path.string());
  INFO(file.message());
  REQUIRE(file.ok());
  return *std::move(file);
}

void compare(std::string_view name, const std::filesystem::path& weights, const std::filesystem::path& golden, double tolerance,
             const std::vector<Case>& cases) {
  const auto network = AnyNetwork::find(name);
  REQUIRE(network.ok());
  const io::Weights reference = open(golden);
  const Tensor<float> input = test::read_channels_first(reference, "input");
  std::vector<std::string_view> taps;
  for (const Case& item : cases) taps.push_back(item.tap);
  const auto outputs = test::run_backbone(network->graph(), taps, input.view(), open(weights));
  for (std::size_t i = 0; i < cases.size(); ++i) {
    CAPTURE(cases[i].tap);
    const double error = test::relative_error(outputs[i], test::read_channels_first(reference, cases[i].golden));
    MESSAGE(name << " " << cases[i].tap << ": relative error " << error);
    CHECK(error < tolerance);
  }
}

void compare_shared(const std::string& name, double tolerance, const std::vector<Case>& cases) {
  const auto weights = test::shared("weights/" + name + ".safetensors");
  const auto golden = test::shared("weights/golden/" + name + "_photo224.safetensors");
  if (weights && golden) compare(name, *weights, *golden, tolerance, cases);
}

}  // namespace

TEST_CASE("resnet18 with torchvision's weights") {
  compare_shared("resnet18", 1e-5, {{"layer1", "layer1"}, {"layer2", "layer2"}, {"layer3", "layer3"}});
}

TEST_CASE("resnet50_caffe with the first publication's weights, stored as F16") {
  compare_shared("resnet50_caffe", 3e-3, {{"layer1", "layer1"}, {"layer2", "layer2"}, {"layer3", "layer3"}});
}

TEST_CASE("mobilenet_v2 with published weights") {
  compare_shared("mobilenet_v2", 1e-5,
                 {{"features.3", "features_3"}, {"features.6", "features_6"}, {"features.13", "features_13"}, {"features.18", "features_18"}});
}

TEST_CASE("efficientnet_lite0 with published weights") {
  // Converted from the Python package's checkpoint; it is no part of the shared folder.
  std::optional<std::filesystem::path> weights;
  if (const char* set = std::getenv("NORMA_EFFICIENTNET_LITE0"); set != nullptr) {
    weights = set;
  } else {
    weights = test::shared("weights/efficientnet_lite0.safetensors");
  }
  const auto golden = test::shared("weights/golden/efficientnet_lite0_photo224.safetensors");
  if (!weights || !golden) return;
  compare("efficientnet_lite0", *weights, *golden, 1e-5,
          {{"block2", "block2"}, {"block4", "block4"}, {"block7", "block7"}, {"block10", "block10"}});
  const Tensor<float> input = test::read_channels_first(open(*golden), "input");
  const std::vector<std::string_view> taps{"fc"};
  const auto outputs = test::run_backbone(EfficientNetLite0::graph(), taps, input.view(), open(*weights));
  CHECK(likeliest(outputs[0]) == 967);  // a cup of espresso
}

TEST_CASE("vit_tiny_patch16_224 with timm's weights, stored as F16") {
  const auto weights = test::shared("weights/vit_tiny_patch16_224.safetensors");
  const auto golden = test::shared("weights/golden/vit_tiny_patch16_224_photo224.safetensors");
  if (!weights || !golden) return;
  const io::Weights reference = open(*golden);
  const Tensor<float> input = test::read_channels_first(reference, "input");
  const std::vector<std::string_view> taps{"block4", "block8", "block12", "head"};
  const auto outputs = test::run_backbone(ViTTiny16::graph(), taps, input.view(), open(*weights));
  for (std::size_t i = 0; i < 3; ++i) {
    CAPTURE(taps[i]);
    std::vector<float> tokens(197 * 192);
    REQUIRE(reference.read(taps[i], {1, 197, 192}, tokens).ok());
    const double error = test::relative_error({outputs[i].data(), 196 * 192}, std::span<const float>(tokens).subspan(192));  // no class token
    MESSAGE("vit_tiny_patch16_224 " << taps[i] << ": relative error " << error);
    CHECK(error < 3e-3);
  }
  std::vector<float> logits(1000);
  REQUIRE(reference.read("logits", {1, 1000}, logits).ok());
  const double error = test::relative_error({outputs[3].data(), 1000}, logits);
  MESSAGE("vit_tiny_patch16_224 head: relative error " << error);
  CHECK(error < 3e-3);
  CHECK(likeliest(outputs[3]) == 285);  // a cat
}

TEST_CASE("squeezenet1_1 with published weights names what is on the photograph") {
  // The same photograph as resnet18's, in the same normalisation: a cat (ImageNet class 285, as the transformer says too).
  const auto weights = test::shared("weights/squeezenet1_1.safetensors");
  const auto photo = test::shared("weights/golden/resnet18_photo224.safetensors");
  if (!weights || !photo) return;
  const Tensor<float> input = test::read_channels_first(open(*photo), "input");
  const std::vector<std::string_view> taps{"classifier"};
  const auto outputs = test::run_backbone(SqueezeNet1_1::graph(), taps, input.view(), open(*weights));
  CHECK(likeliest(outputs[0]) == 285);
}

TEST_CASE("weights of one network are refused by another") {
  const auto weights = test::shared("weights/resnet18.safetensors");
  if (!weights) return;
  const std::vector<std::string_view> taps{"layer3"};
  const auto wrong = nn::Executor::create(ResNet34::graph(), taps, 224, 224, open(*weights));
  REQUIRE(!wrong.ok());
  CHECK(wrong.message().find("resnet18.safetensors") != std::string::npos);
  CHECK(wrong.message().find("layer1.2.conv1") != std::string::npos);
  const std::vector<std::string_view> deep{"layer4"};
  const auto missing = nn::Executor::create(ResNet18::graph(), deep, 224, 224, open(*weights));
  REQUIRE(!missing.ok());
  CHECK(missing.message().find("layer4.0.conv1") != std::string::npos);
}
