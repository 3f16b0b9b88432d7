// backbones/reflect_padding.hpp: the same network with mirrored borders before its convolutions.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <norma/backbones/mobilenet_v2.hpp>
#include <norma/backbones/reflect_padding.hpp>
#include <norma/backbones/resnet.hpp>
#include <norma/backbones/vgg.hpp>
#include <norma/core/random.hpp>
#include <norma/nn/executor.hpp>
#include <support/backbone_run.hpp>

namespace norma::test {
namespace {

using Reflected = ReflectPadded<ResNet18>;
static_assert(StaticNetwork<Reflected> && BackboneNetwork<Reflected>);
static_assert(Reflected::name() == "resnet18_reflect");
static_assert(Reflected::input() == ResNet18::input());
static_assert(ReflectPadded<MobileNetV2>::name() == "mobilenet_v2_reflect");

/// Convolutions and a pool, all padded but the last.
consteval auto make_small() {
  nn::Graph<5, 3> graph;
  nn::Builder b(graph);
  int x = b.input(3);
  x = b.convolution(x, {.name = "a", .out_channels = 8, .kernel = 3, .stride = 2, .padding = 1, .bias = true});
  b.tap("a", x);
  x = b.max_pool(x, {.kernel = 3, .stride = 2, .padding = 1});
  x = b.convolution(x, {.name = "b", .out_channels = 8, .kernel = 3, .padding = nn::Padding(2, 1, 0, 1), .groups = 8});
  b.tap("b", x);
  x = b.convolution(x, {.name = "c", .out_channels = 4});
  b.tap("c", x);
  return graph;
}
constexpr auto kSmall = make_small();
struct Small {
  static constexpr std::string_view name() noexcept { return "small"; }
  static constexpr nn::InputSpec input() noexcept { return nn::kImageNet; }
  static constexpr nn::GraphView graph() noexcept { return kSmall; }
  static constexpr std::span<const std::string_view> default_taps() noexcept { return kTaps; }

 private:
  static constexpr std::array<std::string_view, 3> kTaps{"a", "b", "c"};
};
static_assert(StaticNetwork<ReflectPadded<Small>> && !BackboneNetwork<ReflectPadded<Small>>);

bool same_tensors(const nn::Node& a, const nn::Node& b) {
  return a.op == b.op && a.name == b.name && a.second == b.second && a.out_channels == b.out_channels && a.stride == b.stride &&
         a.groups == b.groups && a.kernel.height == b.kernel.height && a.kernel.width == b.kernel.width && a.activation == b.activation &&
         a.bias == b.bias && a.norm == b.norm && a.inputs == b.inputs && a.padding.top == b.padding.top && a.padding.left == b.padding.left &&
         a.padding.bottom == b.padding.bottom && a.padding.right == b.padding.right;
}

template <class NetworkT>
int padded_convolutions() {
  const nn::GraphView plain = NetworkT::graph(), mirrored = ReflectPadded<NetworkT>::graph();
  REQUIRE(plain.size() == mirrored.size());
  REQUIRE(plain.taps.size() == mirrored.taps.size());
  for (std::size_t i = 0; i < plain.taps.size(); ++i) {
    CHECK(plain.taps[i].name == mirrored.taps[i].name);
    CHECK(plain.taps[i].node == mirrored.taps[i].node);
  }
  int changed = 0;
  for (int i = 0; i < plain.size(); ++i) {
    CAPTURE(i);
    CHECK(same_tensors(plain[i], mirrored[i]));
    const bool pads = plain[i].op == nn::Op::convolution && plain[i].padding.top > 0;
    CHECK((mirrored[i].padding.kind == nn::PaddingKind::reflect) == pads);
    changed += pads;
  }
  return changed;
}

TEST_CASE("ReflectPadded: every padded convolution, no pool, the same tensors") {
  CHECK(padded_convolutions<ResNet18>() == 17);      // the stem and 2 a block; the shortcuts pad nothing
  CHECK(padded_convolutions<WideResNet50>() == 17);  // the stem and 1 a block
  CHECK(padded_convolutions<MobileNetV2>() == 18);   // the stem and 17 depthwise ones
}

TEST_CASE("ReflectPadded: of VGG-19 it is VGG-19 with mirrored borders") {
  const nn::GraphView a = ReflectPadded<VGG19>::graph(), b = VGG19Reflect::graph();
  CHECK(ReflectPadded<VGG19>::name() == VGG19Reflect::name());
  REQUIRE(a.size() == b.size());
  for (int i = 0; i < a.size(); ++i) {
    CHECK(same_tensors(a[i], b[i]));
    CHECK(a[i].padding.kind == b[i].padding.kind);
  }
}

// A plain convolution over an image that is mirrored by index, in double.
std::vector<double> convolve(const std::vector<double>& x, std::int64_t h, std::int64_t w, std::int64_t c, const std::vector<float>& weight,
                             const std::vector<float>& bias, std::int64_t out, std::int64_t groups, std::int64_t stride, std::int64_t top,
                             std::int64_t left, std::int64_t bottom, std::int64_t right) {
  const auto mirror = [](std::int64_t i, std::int64_t n) { return i < 0 ? -i : i >= n ? 2 * n - 2 - i : i; };
  const std::int64_t height = (h + top + bottom - 3) / stride + 1, width = (w + left + right - 3) / stride + 1, each = c / groups;
  std::vector<double> y(static_cast<std::size_t>(height * width * out));
  for (std::int64_t i = 0; i < height; ++i) {
    for (std::int64_t j = 0; j < width; ++j) {
      for (std::int64_t o = 0; o < out; ++o) {
        double sum = bias.empty() ? 0.0 : static_cast<double>(bias[static_cast<std::size_t>(o)]);
        for (std::int64_t q = 0; q < each; ++q) {
          for (std::int64_t a = 0; a < 3; ++a) {
            for (std::int64_t b = 0; b < 3; ++b) {
              const std::int64_t row = mirror(i * stride + a - top, h), column = mirror(j * stride + b - left, w);
              sum += x[static_cast<std::size_t>((row * w + column) * c + o / (out / groups) * each + q)] *
                     static_cast<double>(weight[static_cast<std::size_t>(((o * each + q) * 3 + a) * 3 + b)]);
            }
          }
        }
        y[static_cast<std::size_t>((i * width + j) * out + o)] = sum;
      }
    }
  }
  return y;
}

TEST_CASE("ReflectPadded: computes what a convolution over a mirrored image gives, strided and depthwise too") {
  Random random(4);
  const auto draw = [&](std::int64_t count) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& v : values) v = static_cast<float>(random.normal());
    return values;
  };
  const auto a = draw(8 * 3 * 9), bias = draw(8), b = draw(8 * 9), c = draw(4 * 8);
  io::TensorFileWriter writer;
  REQUIRE(writer.add("a.weight", {8, 3, 3, 3}, std::span<const float>(a)).ok());
  REQUIRE(writer.add("a.bias", {8}, std::span<const float>(bias)).ok());
  REQUIRE(writer.add("b.weight", {8, 1, 3, 3}, std::span<const float>(b)).ok());
  REQUIRE(writer.add("c.weight", {4, 8, 1, 1}, std::span<const float>(c)).ok());
  auto bytes = writer.to_bytes();
  REQUIRE(bytes.ok());
  const auto weights = io::Weights::from_bytes(*std::move(bytes));
  REQUIRE_MESSAGE(weights.ok(), weights.message());

  constexpr std::int64_t side = 14;
  Tensor<float> image(1, side, side, 3);
  for (std::int64_t i = 0; i < side * side * 3; ++i) image.data()[i] = static_cast<float>(random.normal());
  const auto got = run_backbone(ReflectPadded<Small>::graph(), ReflectPadded<Small>::default_taps(), image.view(), *weights);
  const auto zeros = run_backbone(Small::graph(), Small::default_taps(), image.view(), *weights);

  const std::vector<double> x(image.data(), image.data() + side * side * 3);
  const auto first = convolve(x, side, side, 3, a, bias, 8, 1, 2, 1, 1, 1, 1);
  REQUIRE(got[0].shape() == Shape{7, 7, 8});
  // 28 products of normal numbers a sum: |terms| below 100 in all, 28 roundings of 2^-24 each, and Winograd's factor.
  for (std::size_t i = 0; i < first.size(); ++i) CHECK(std::abs(static_cast<double>(got[0].data()[i]) - first[i]) <= 1e-4);
  // The pool still never lets its padding win: over zeros it would change negative maxima at the border.
  std::vector<double> pooled(4 * 4 * 8, -1e30);
  for (std::int64_t i = 0; i < 7; ++i) {
    for (std::int64_t j = 0; j < 7; ++j) {
      for (std::int64_t q = 0; q < 8; ++q) {
        for (std::int64_t row = 0; row < 4; ++row) {
          for (std::int64_t column = 0; column < 4; ++column) {
            if (std::abs(2 * row - i) > 1 || std::abs(2 * column - j) > 1) continue;
            double& best = pooled[static_cast<std::size_t>((row * 4 + column) * 8 + q)];
            best = std::max(best, first[static_cast<std::size_t>((i * 7 + j) * 8 + q)]);
          }
        }
      }
    }
  }
  const auto second = convolve(pooled, 4, 4, 8, b, {}, 8, 8, 1, 2, 1, 0, 1);
  REQUIRE(got[1].shape() == Shape{4, 4, 8});
  for (std::size_t i = 0; i < second.size(); ++i) CHECK(std::abs(static_cast<double>(got[1].data()[i]) - second[i]) <= 1e-3);

  // Inside, far from every border, nothing changed; at the border something did.
  bool differs = false;
  for (std::int64_t i = 0; i < 7; ++i) {
    for (std::int64_t q = 0; q < 8; ++q) {
      differs = differs || got[0].data()[i * 8 + q] != zeros[0].data()[i * 8 + q];
      CHECK(std::abs(got[0].data()[(3 * 7 + i) * 8 + q] - zeros[0].data()[(3 * 7 + i) * 8 + q]) <= (i > 0 ? 1e-4f : 1e30f));
    }
  }
  CHECK(differs);
}

}  // namespace
}  // namespace norma::test
