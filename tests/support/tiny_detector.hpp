// A network small enough to be fitted in a test, its weights, and pictures to look at.
#pragma once

#include <array>
#include <cmath>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <norma/backbones/backbone.hpp>
#include <norma/core/random.hpp>
#include <norma/image/image.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/nn/graph.hpp>

namespace norma::test {

// A class cannot call its own constexpr members while it is being defined, so the graph is made outside.
consteval auto tiny_graph() {
  nn::Graph<8> graph;
  nn::Builder b(graph);
  int x = b.input(3);
  for (int i = 0; i < 3; ++i) {
    x = b.convolution(x, {.name = nn::name("conv", i), .out_channels = 6 + 2 * i, .kernel = 3, .stride = 2, .padding = 1, .bias = true, .activation = Activation::relu});
    b.tap(nn::name("level", i), x);
  }
  b.tap("pool", b.global_average_pool(x));
  return graph;
}

/// Three convolutions, each halving the picture: 16, 8 and 4 pixels a side, 6, 8 and 10 channels.
struct TinyNetwork {
  static constexpr std::string_view name() noexcept { return "tiny"; }
  static constexpr nn::InputSpec input() noexcept {
    return {.mean = {128.0f, 128.0f, 128.0f}, .stddev = {64.0f, 64.0f, 64.0f}, .channel_order = nn::ChannelOrder::rgb, .size = 32, .resize = 40};
  }
  static constexpr nn::GraphView graph() noexcept { return kGraph; }
  static constexpr std::span<const std::string_view> default_taps() noexcept { return kThree; }
  static constexpr TapChoice taps() noexcept { return {.three_levels = kThree, .two_levels = std::span(kThree).last(2), .pooled = kPooled}; }

 private:
  static constexpr auto kGraph = tiny_graph();
  static constexpr std::array<std::string_view, 3> kThree{"level0", "level1", "level2"};
  static constexpr std::array<std::string_view, 1> kPooled{"pool"};
};
static_assert(BackboneNetwork<TinyNetwork>);

inline std::vector<std::byte> tiny_weight_bytes(std::uint64_t seed = 1, float poison = 0.0f) {
  io::TensorFileWriter writer;
  Random random(seed);
  std::int64_t in = 3;
  for (int i = 0; i < 3; ++i) {
    const std::int64_t out = 6 + 2 * i;
    std::vector<float> weight(static_cast<std::size_t>(out * in * 9)), bias(static_cast<std::size_t>(out));
    for (float& w : weight) w = static_cast<float>(random.normal() / std::sqrt(static_cast<double>(in) * 9.0));
    for (float& b : bias) b = static_cast<float>(0.1 * random.normal());
    if (poison != 0.0f && i == 0) weight[0] = poison;
    const std::string name = "conv" + std::to_string(i);
    REQUIRE(writer.add(name + ".weight", {out, in, 3, 3}, std::span<const float>(weight)).ok());
    REQUIRE(writer.add(name + ".bias", {out}, std::span<const float>(bias)).ok());
    in = out;
  }
  auto bytes = writer.to_bytes();
  REQUIRE(bytes.ok());
  return *std::move(bytes);
}
inline io::Weights tiny_weights(std::uint64_t seed = 1) {
  auto weights = io::Weights::from_bytes(tiny_weight_bytes(seed), "tiny.safetensors");
  REQUIRE(weights.ok());
  return *std::move(weights);
}

/// A soft chequered pattern with noise; `defect` paints a bright square.
inline Image tiny_picture(std::uint64_t index, bool defect = false, std::int64_t height = 48, std::int64_t width = 48) {
  Random random(99, index);
  Image image(height, width, 3);
  for (std::int64_t y = 0; y < height; ++y) {
    for (std::int64_t x = 0; x < width; ++x) {
      const double wave = 120.0 + 40.0 * std::sin(0.5 * static_cast<double>(x)) * std::cos(0.4 * static_cast<double>(y));
      for (std::int64_t c = 0; c < 3; ++c) image(y, x, c) = static_cast<std::uint8_t>(wave + 10.0 * random.uniform());
    }
  }
  if (defect) {
    for (std::int64_t y = height / 3; y < height / 3 + 8; ++y) {
      for (std::int64_t x = width / 2; x < width / 2 + 8; ++x) {
        for (std::int64_t c = 0; c < 3; ++c) image(y, x, c) = 250;
      }
    }
  }
  return image;
}

/// Good pictures as a source; `broken` cannot be loaded.
struct TinySource {
  std::int64_t count = 12;
  std::int64_t first = 0;
  std::int64_t broken = -1;
  [[nodiscard]] std::int64_t size() const { return count; }
  [[nodiscard]] std::string name(std::int64_t i) const { return "folder/picture" + std::to_string(first + i) + ".png"; }
  [[nodiscard]] Status status() const { return {}; }
  [[nodiscard]] Result<Image> load(std::int64_t i) const {
    if (i == broken) return Status{Errc::corrupt, "'" + name(i) + "': not an image"};
    return tiny_picture(static_cast<std::uint64_t>(first + i));
  }
};

}  // namespace norma::test
