// The backbones' graphs against facts that others published: tensor names and shapes of PyTorch's state dicts, parameter counts,
// multiply-adds, sizes of the feature maps. No weights are needed here; tests/golden/backbones_*_test.cpp compute.
#include <norma/backbones/backbones.hpp>
#include <norma/nn/plan.hpp>

#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <tests/support/state_dicts.hpp>

using namespace norma;

namespace {

std::string_view last_tap(nn::GraphView graph) { return graph.taps.back().name.view(); }

nn::Plan plan(const AnyNetwork& network, std::vector<std::string_view> taps, std::int64_t size) {
  auto made = nn::Plan::create(network.graph(), std::span<const std::string_view>(taps), size, size);
  INFO(made.message());
  REQUIRE(made.ok());
  return *std::move(made);
}

AnyNetwork find(std::string_view name) {
  auto network = AnyNetwork::find(name);
  INFO(network.message());
  REQUIRE(network.ok());
  return *network;
}

Shape shape_of(std::string_view network, std::string_view tap, std::int64_t size) { return plan(find(network), {tap}, size).taps()[0].shape; }

// Two decimals in units of a million, as tables print them.
double millions(std::int64_t count) { return std::round(static_cast<double>(count) / 1e4) / 100.0; }
double billions(std::int64_t count) { return std::round(static_cast<double>(count) / 1e7) / 100.0; }

}  // namespace

TEST_CASE("backbones: tensors are named and shaped as PyTorch's state dict, none missing, none left over") {
  // Transformers written from their publications for lack of a package: tests/golden/backbones_reference.py says which.
  const auto all = test::read_state_dicts();
  CHECK(all.size() == AnyNetwork::all().size());
  int listed = 0;
  for (const AnyNetwork& network : AnyNetwork::all()) {
    CAPTURE(network.name());
    const auto found = all.find(std::string(network.name()));
    REQUIRE(found != all.end());
    const nn::Plan whole = plan(network, {last_tap(network.graph())}, found->second.side);
    std::map<std::string, std::vector<std::int64_t>> tensors;
    for (const nn::Step& step : whole.steps()) {
      for (const nn::TensorSpec& tensor : nn::NodeTensors(network.graph()[step.node], step.in, whole.shape(step.value))) {
        const std::vector<std::int64_t> shape(tensor.shape().begin(), tensor.shape().end());
        const auto entry = tensors.emplace(tensor.name(), shape);
        CHECK(entry.second);
      }
    }
    if (found->second.tensors.empty()) {
      CHECK(static_cast<std::int64_t>(tensors.size()) == found->second.tensor_count);
      CHECK(test::digest_of(tensors) == found->second.digest);
      continue;
    }
    ++listed;
    auto expected = found->second.tensors;
    for (const auto& tensor : tensors) {
      CAPTURE(tensor.first);
      const auto entry = expected.find(tensor.first);
      REQUIRE(entry != expected.end());
      CHECK(entry->second == tensor.second);
      expected.erase(entry);
    }
    for (const auto& [name, shape] : expected) FAIL_CHECK("not in the graph: " << name);
  }
  CHECK(listed == 25);
}

TEST_CASE("backbones: parameters and multiply-adds are PyTorch's") {
  for (const auto& entry : test::read_state_dicts()) {
    CAPTURE(entry.first);
    const test::StateDict& dict = entry.second;
    const AnyNetwork network = find(entry.first);
    const nn::Plan whole = plan(network, {last_tap(network.graph())}, dict.side);
    CHECK(whole.summary().parameters == dict.parameters);
    CHECK(whole.summary().multiply_adds == dict.multiply_adds);
  }
}

TEST_CASE("backbones: the well-known totals are constants") {
  constexpr auto total = []<class N>(N) {
    const std::string_view tap = N::graph().taps.back().name.view();
    return nn::plan_summary(N::graph(), std::span<const std::string_view>(&tap, 1), N::input().size, N::input().size).parameters;
  };
  static_assert(total(ResNet18{}) == 11'689'512);
  static_assert(total(MobileNetV2{}) == 3'504'872);
  static_assert(total(SqueezeNet1_1{}) == 1'235'496);
  static_assert(total(EfficientNetLite0{}) == 4'652'008);
  static_assert(total(EfficientNetB0{}) == 5'288'548);
  static_assert(total(EfficientNetB5{}) == 30'389'784);
  static_assert(total(EfficientNetB5Same{}) == 30'389'784);
  static_assert(total(EfficientNetB7{}) == 66'347'960);  // 434 nodes
  static_assert(total(AlexNet{}) == 61'100'840);
  static_assert(total(VGG16{}) == 138'357'544);
  static_assert(total(VGG19Reflect{}) == 143'667'240);
  static_assert(total(CaiTM48{}) == 356'460'520);  // 661 nodes
  CHECK(total(EfficientNetB1{}) == 7'794'184);
  CHECK(total(EfficientNetB2{}) == 9'109'994);
  CHECK(total(EfficientNetB3{}) == 12'233'232);
  CHECK(total(EfficientNetB4{}) == 19'341'616);
  CHECK(total(EfficientNetB6{}) == 43'040'704);
  CHECK(total(VGG16BatchNorm{}) == 138'365'992);
  CHECK(total(VGG19{}) == 143'667'240);
  CHECK(total(VGG19BatchNorm{}) == 143'678'248);
  CHECK(total(ResNet50{}) == 25'557'032);
  CHECK(total(ResNet50Caffe{}) == 25'557'032);
  CHECK(total(ResNet152{}) == 60'192'808);
  CHECK(total(WideResNet50{}) == 68'883'240);
  CHECK(total(EfficientNetLite1{}) == 5'416'680);
  CHECK(total(ViTTiny16{}) == 5'717'416);
}

TEST_CASE("backbones: sizes of the stages at 224, 256, 320 and 512") {
  struct Row {
    std::int64_t size, first;  // of layer1
  };
  for (const Row row : {Row{224, 56}, Row{256, 64}, Row{320, 80}, Row{512, 128}}) {
    CAPTURE(row.size);
    std::int64_t side = row.first;
    std::int64_t wide = 256, narrow = 64;
    for (const std::string_view layer : {"layer1", "layer2", "layer3", "layer4"}) {
      CAPTURE(layer);
      CHECK(shape_of("wide_resnet50_2", layer, row.size) == Shape{side, side, wide});
      CHECK(shape_of("resnet152", layer, row.size) == Shape{side, side, wide});
      CHECK(shape_of("resnet50_caffe", layer, row.size) == Shape{side, side, wide});
      CHECK(shape_of("resnet18", layer, row.size) == Shape{side, side, narrow});
      CHECK(shape_of("resnet34", layer, row.size) == Shape{side, side, narrow});
      side /= 2;
      wide *= 2;
      narrow *= 2;
    }
  }
  CHECK(shape_of("resnet18", "avgpool", 256) == Shape{1, 1, 512});
  CHECK(shape_of("wide_resnet101_2", "avgpool", 320) == Shape{1, 1, 2048});
  CHECK(shape_of("mobilenet_v2", "features.18", 256) == Shape{8, 8, 1280});
  // Pools that round up: 224 -> 111 -> 55 -> 27 -> 13, and 230 -> 114 -> 57 (from 56.5) -> 28 -> 14 (from 13.5).
  CHECK(shape_of("squeezenet1_1", "features.1", 224) == Shape{111, 111, 64});
  CHECK(shape_of("squeezenet1_1", "features.2", 224) == Shape{55, 55, 64});
  CHECK(shape_of("squeezenet1_1", "features.12", 224) == Shape{13, 13, 512});
  CHECK(shape_of("squeezenet1_1", "features.2", 230) == Shape{57, 57, 64});
  CHECK(shape_of("squeezenet1_1", "features.8", 230) == Shape{14, 14, 256});
  CHECK(shape_of("vit_base_patch16_224", "block7", 224) == Shape{14, 14, 768});
  CHECK(shape_of("vit_small_patch16_224", "cls", 224) == Shape{1, 1, 384});
}

TEST_CASE("backbones: parameters and multiply-adds up to a stage") {
  struct Row {
    std::string_view network, tap;
    double parameters, at_224, at_256;  // millions, billions
  };
  for (const Row row : {Row{"resnet18", "layer2", 0.68, -1, -1}, Row{"resnet18", "layer3", 2.78, 1.40, 1.83},
                        Row{"resnet18", "layer4", 11.18, 1.81, 2.37}, Row{"wide_resnet50_2", "layer2", 4.13, -1, -1},
                        Row{"wide_resnet50_2", "layer3", 24.86, 9.19, 12.00}, Row{"wide_resnet50_2", "layer4", 66.83, 11.40, 14.88},
                        Row{"resnet152", "layer2", 2.57, -1, -1}, Row{"resnet152", "layer3", 43.18, 10.70, 13.98},
                        Row{"resnet152", "layer4", 58.14, 11.51, 15.04}, Row{"wide_resnet101_2", "layer3", 82.87, 20.54, 26.83},
                        Row{"wide_resnet101_2", "layer4", 124.84, 22.75, 29.72}}) {
    CAPTURE(row.network);
    CAPTURE(row.tap);
    const AnyNetwork network = find(row.network);
    const nn::PlanSummary small = plan(network, {row.tap}, 224).summary();
    CHECK(millions(small.parameters) == doctest::Approx(row.parameters).epsilon(1e-9));
    if (row.at_224 < 0) continue;
    CHECK(billions(small.multiply_adds) == doctest::Approx(row.at_224).epsilon(1e-9));
    CHECK(billions(plan(network, {row.tap}, 256).summary().multiply_adds) == doctest::Approx(row.at_256).epsilon(1e-9));
  }
}

TEST_CASE("backbones: EfficientNet-Lite0 stage by stage") {
  struct Row {
    std::string_view tap;
    std::int64_t size, channels;
    double multiply_adds;  // millions, cumulative
  };
  for (const Row row : {Row{"stem", 112, 32, 10.8}, Row{"block0", 112, 16, 20.9}, Row{"block2", 56, 24, 75.8}, Row{"block4", 28, 40, 113.7},
                        Row{"block7", 14, 80, 157.3}, Row{"block10", 14, 112, 243.3}, Row{"block14", 7, 192, 334.4},
                        Row{"block15", 7, 320, 363.8}}) {
    CAPTURE(row.tap);
    const nn::Plan made = plan(find("efficientnet_lite0"), {row.tap}, 224);
    CHECK(made.taps()[0].shape == Shape{row.size, row.size, row.channels});
    CHECK(std::abs(static_cast<double>(made.summary().multiply_adds) / 1e6 - row.multiply_adds) <= 0.05);
  }
  // Blocks and their taps of the larger ones.
  CHECK(find("efficientnet_lite1").graph().find_tap("block20") >= 0);
  CHECK(find("efficientnet_lite1").graph().find_tap("block21") < 0);
  CHECK(find("efficientnet_lite4").graph().find_tap("block29") >= 0);
  CHECK(find("efficientnet_lite4").graph().find_tap("block30") < 0);
}

TEST_CASE("backbones: what the published methods read, as constants") {
  // CS-Flow: B5's block 35 at three scales, in both namings. Parameters and multiply-adds up to there.
  static_assert(nn::tap_shape(EfficientNetB5::graph(), "block35", 768, 768) == Shape{24, 24, 304});
  static_assert(nn::tap_shape(EfficientNetB5Same::graph(), "block35", 768, 768) == Shape{24, 24, 304});
  for (const std::string_view name : {"efficientnet_b5", "efficientnet_b5_same"}) {
    CAPTURE(name);
    CHECK(shape_of(name, "block35", 384) == Shape{12, 12, 304});
    CHECK(shape_of(name, "block35", 192) == Shape{6, 6, 304});
    CHECK(find(name).graph().find_tap("block35") == find(name).graph().find_tap("features.6"));
    CHECK(shape_of(name, "features.7", 192) == Shape{6, 6, 512});
    CHECK(millions(plan(find(name), {"block35"}, 768).summary().parameters) == doctest::Approx(17.54).epsilon(1e-9));
  }
  struct Cost {
    std::int64_t size;
    double multiply_adds;
  };
  for (const Cost cost : {Cost{192, 1.41}, Cost{384, 5.63}, Cost{768, 22.49}}) {
    const auto found = static_cast<double>(plan(find("efficientnet_b5"), {"block35"}, cost.size).summary().multiply_adds) / 1e9;
    CHECK(std::abs(found - cost.multiply_adds) <= 0.02);
  }
  // DifferNet: AlexNet's convolutional part at three scales.
  static_assert(nn::tap_shape(AlexNet::graph(), "features", 448, 448) == Shape{13, 13, 256});
  CHECK(shape_of("alexnet", "features", 224) == Shape{6, 6, 256});
  CHECK(shape_of("alexnet", "features", 112) == Shape{2, 2, 256});
  CHECK(millions(plan(find("alexnet"), {"features"}, 448).summary().parameters) == doctest::Approx(2.47).epsilon(1e-9));
  CHECK(std::abs(static_cast<double>(plan(find("alexnet"), {"features"}, 448).summary().multiply_adds) / 1e9 - 2.774) <= 0.0005);
  // DFR: twelve or sixteen activations of VGG-19, trunk sizes.
  static_assert(nn::tap_shape(VGG19Reflect::graph(), "relu1_1", 256, 256) == Shape{256, 256, 64});
  static_assert(nn::tap_shape(VGG19Reflect::graph(), "relu4_4", 256, 256) == Shape{32, 32, 512});
  CHECK(shape_of("vgg19_reflect", "relu5_4", 256) == Shape{16, 16, 512});
  CHECK(plan(find("vgg19_reflect"), {"relu4_4"}, 256).summary().parameters == 10'585'152);
  CHECK(plan(find("vgg19_reflect"), {"relu5_4"}, 256).summary().parameters == 20'024'384);
  std::int64_t channels = 0;
  for (const nn::Tap& tap : VGG19Reflect::graph().taps) {
    if (!tap.name.view().starts_with("relu")) continue;
    channels += VGG19Reflect::graph()[tap.node].out_channels;
    if (tap.name.view() == "relu4_4") CHECK(channels == 3456);
  }
  CHECK(channels == 5504);
  // FastFlow: one map of a transformer through its final norm, class tokens dropped.
  static_assert(nn::tap_shape(DeiTBaseDistilled384::graph(), "block8.norm", 384, 384) == Shape{24, 24, 768});
  static_assert(nn::tap_shape(CaiTM48::graph(), "block41.norm", 448, 448) == Shape{28, 28, 768});
  CHECK(shape_of("cait_xxs24_224", "head", 224) == Shape{1, 1, 1000});
  CHECK(shape_of("deit_tiny_distilled_patch16_224", "dist", 224) == Shape{1, 1, 192});
}

TEST_CASE("backbones: the padding of efficientnet-pytorch's B5 is the one for 456 x 456") {
  // By hand, a layer at a time: stride 2 pads (before, after), everything else is symmetric.
  struct Row {
    int block, before, after;  // of the depthwise convolution; -1 the stem
  };
  const nn::GraphView graph = EfficientNetB5Same::graph();
  int seen = 0;
  for (const Row row : {Row{-1, 0, 1}, Row{0, 1, 1}, Row{3, 0, 1}, Row{4, 1, 1}, Row{8, 1, 2}, Row{9, 2, 2}, Row{13, 1, 1}, Row{20, 2, 2},
                        Row{27, 2, 2}, Row{28, 2, 2}, Row{36, 1, 1}}) {
    CAPTURE(row.block);
    const std::string name = row.block < 0 ? "_conv_stem" : "_blocks." + std::to_string(row.block) + "._depthwise_conv";
    for (const nn::Node& node : graph.nodes) {
      if (node.op != nn::Op::convolution || node.name.view() != name) continue;
      ++seen;
      CHECK(node.padding.top == row.before);
      CHECK(node.padding.left == row.before);
      CHECK(node.padding.bottom == row.after);
      CHECK(node.padding.right == row.after);
    }
  }
  CHECK(seen == 11);
}

TEST_CASE("backbones: the chosen taps exist, are ordered fine to coarse, and each level has its stride") {
  for (const AnyNetwork& network : AnyNetwork::all()) {
    CAPTURE(network.name());
    const TapChoice choice = network.taps();
    CHECK(choice.three_levels.size() == 3);
    CHECK(choice.two_levels.size() == 2);
    CHECK(!choice.pooled.empty());
    CHECK(std::string(network.default_taps()[0]) == std::string(choice.three_levels[0]));
    const std::int64_t size = network.input().size;
    for (const auto taps : {choice.three_levels, choice.two_levels, choice.pooled}) {
      for (const auto tap : taps) {
        CAPTURE(tap);
        CHECK(network.graph().find_tap(tap) >= 0);
      }
    }
    std::int64_t before = size;
    for (const auto tap : choice.three_levels) {
      const Shape shape = plan(network, {tap}, size).taps()[0].shape;
      CHECK(shape.height == shape.width);
      CHECK(shape.height <= before);
      before = shape.height;
      CHECK(shape.height >= 13);
    }
    // What a method with three levels runs needs less than the whole network.
    const nn::Plan levels = plan(network, {choice.three_levels.begin(), choice.three_levels.end()}, size);
    const nn::Plan whole = plan(network, {last_tap(network.graph())}, size);
    CHECK(levels.summary().parameters < whole.summary().parameters);
  }
}

TEST_CASE("backbones: expected input") {
  CHECK(ResNet18::input() == nn::kImageNet);
  CHECK(ResNet18::input().mean[0] == doctest::Approx(255 * 0.485));
  CHECK(ResNet18::input().stddev[2] == doctest::Approx(255 * 0.225));
  CHECK(ResNet50Caffe::input().channel_order == nn::ChannelOrder::bgr);
  CHECK(ResNet50Caffe::input().mean[0] == doctest::Approx(103.939));
  const int sizes[] = {224, 240, 260, 280, 300};
  for (int i = 0; i < 5; ++i) {
    const nn::InputSpec input = find("efficientnet_lite" + std::to_string(i)).input();
    CHECK(input.size == sizes[i]);
    CHECK(input.mean[1] == 127.0f);
    CHECK(input.stddev[1] == 128.0f);
  }
  const int crops[] = {224, 240, 288, 300, 380, 456, 528, 600};
  for (int i = 0; i < 8; ++i) {
    const nn::InputSpec input = find("efficientnet_b" + std::to_string(i)).input();
    CHECK(input.size == crops[i]);
    CHECK(input.mean == nn::kImageNet.mean);
  }
  CHECK(DeiTBaseDistilled384::input().size == 384);
  CHECK(CaiTM48::input().size == 448);
  CHECK((255.0f - ViTTiny16::input().mean[0]) / ViTTiny16::input().stddev[0] == 1.0f);
}

TEST_CASE("backbones: the norms' epsilons are their publishers'") {
  // Too small to show in feature maps whose variances are ordinary; published weights have channels where they matter.
  for (const AnyNetwork& network : AnyNetwork::all()) {
    CAPTURE(network.name());
    const bool large = network.name().starts_with("efficientnet_lite") ||
                       (network.name().starts_with("efficientnet_b") && network.name().at(14) >= '5');
    const float batch = large ? 1e-3f : 1e-5f;
    int norms = 0;
    for (const nn::Node& node : network.graph().nodes) {
      if (node.norm == nn::Norm::batch) {
        CHECK(node.epsilon == batch);
        ++norms;
      } else if (node.op == nn::Op::layer_norm) {
        CHECK(node.epsilon == 1e-6f);
        ++norms;
      }
    }
    const bool without = network.name() == "squeezenet1_1" || network.name() == "alexnet" || network.name() == "vgg16" ||
                         network.name() == "vgg19" || network.name() == "vgg19_reflect";
    CHECK((norms > 0) == !without);
  }
}

TEST_CASE("AnyNetwork: found by name, the same as the type") {
  std::set<std::string_view> names;
  for (const AnyNetwork& network : AnyNetwork::all()) {
    CHECK(names.insert(network.name()).second);
    CHECK(find(network.name()) == network);
  }
  CHECK(names.size() == 37);
  CHECK(find("resnet18").graph().nodes.data() == ResNet18::graph().nodes.data());
  CHECK(find("vit_tiny_patch16_224").input() == ViTTiny16::input());
  CHECK(AnyNetwork::of<WideResNet50>()->name() == "wide_resnet50_2");
}

TEST_CASE("AnyNetwork: an unknown name is answered with the nearest ones") {
  for (const std::string_view name : {"resnet19", "ResNet18", "resnet 18", "resnet018"}) {
    const auto network = AnyNetwork::find(name);
    REQUIRE(!network.ok());
    CHECK(network.code() == Errc::not_found);
    CHECK(network.message().find("\"" + std::string(name) + "\"") != std::string::npos);
    CHECK(network.message().find("resnet18") != std::string::npos);
  }
  CHECK(AnyNetwork::find("wide_resnet50").message().find("nearest are wide_resnet50_2") != std::string::npos);
  CHECK(AnyNetwork::find("efficientnet_light0").message().find("efficientnet_lite0") != std::string::npos);
  CHECK(!AnyNetwork::find("").ok());
  CHECK(!AnyNetwork::find("resnet18 ").ok());
}

TEST_CASE("backbones: a transformer is planned for any size that holds a patch") {
  // The file's position embedding, [1, 197, C], is resampled when it is loaded: tests/golden/backbones_formula_test.cpp.
  const AnyNetwork network = find("vit_tiny_patch16_224");
  CHECK(shape_of("vit_tiny_patch16_224", "block1", 256) == Shape{16, 16, 192});
  const std::string_view tap = "block1";
  auto tiny = nn::Plan::create(network.graph(), std::span<const std::string_view>(&tap, 1), 15, 224);
  REQUIRE(!tiny.ok());
  CHECK(tiny.code() == Errc::shape_mismatch);
}
