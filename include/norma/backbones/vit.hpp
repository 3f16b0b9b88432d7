/// \file
/// Vision Transformers with 16 x 16 patches at 224 x 224: tiny, small, base.
/// Source:  Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; sizes of Touvron et al., "Training data-efficient image
///          transformers", ICML 2021. Tensor names are timm's; layer norm epsilon 1e-6, exact GELU.
/// Weights: cls_token, pos_embed, patch_embed.proj, blocks.<N>.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2}, norm, head
/// Taps:    block1 .. block12: the tokens after so many blocks without the class token, as a grid [14, 14, C];
///          cls: the class token after the final norm, [1, 1, C]; head [1, 1, 1000]
/// The position embedding belongs to 14 x 14 patches; for other input sizes it is resampled when the weights are loaded.
#pragma once

#include <norma/backbones/backbone.hpp>

namespace norma::backbones {

struct ViTSettings {
  int channels = 192;
  int heads = 3;
};

namespace detail {

inline constexpr int kViTBlocks = 12;
inline constexpr float kViTEpsilon = 1e-6f;

constexpr int vit_block(nn::Builder& b, int x, const nn::Name& p, int heads) {
  const int channels = b.channels(x);
  int y = b.layer_norm(x, {.name = p + "norm1", .epsilon = kViTEpsilon});
  y = b.linear(y, {.name = p + "attn.qkv", .out_channels = 3 * channels});
  y = b.attention(y, heads);
  y = b.linear(y, {.name = p + "attn.proj", .out_channels = channels});
  x = b.add(y, x);
  y = b.layer_norm(x, {.name = p + "norm2", .epsilon = kViTEpsilon});
  y = b.linear(y, {.name = p + "mlp.fc1", .out_channels = 4 * channels, .activation = Activation::gelu});
  y = b.linear(y, {.name = p + "mlp.fc2", .out_channels = channels});
  return b.add(y, x);
}

}  // namespace detail

constexpr auto vit_graph(const ViTSettings& settings) {
  nn::Graph<10 * detail::kViTBlocks + 6, detail::kViTBlocks + 2> graph;
  nn::Builder b(graph);
  const int patches = b.convolution(b.input(3), {.name = "patch_embed.proj", .out_channels = settings.channels, .kernel = 16, .stride = 16,
                                                 .bias = true});
  int x = b.tokens(patches, {.position_embedding = "pos_embed", .class_token = "cls_token"});
  for (int i = 0; i < detail::kViTBlocks; ++i) {
    x = detail::vit_block(b, x, nn::name("blocks.", i, "."), settings.heads);
    b.tap(nn::name("block", i + 1), b.grid(x, patches, 1));
  }
  x = b.first_token(x);
  x = b.layer_norm(x, {.name = "norm", .epsilon = detail::kViTEpsilon});
  b.tap("cls", x);
  b.tap("head", b.linear(x, {.name = "head", .out_channels = 1000}));
  return graph;
}

/// Common part of the three: `Self` has `name()` and `settings()`.
template <class Self>
struct ViT : Base<Self> {
  static constexpr nn::InputSpec input() noexcept { return {.mean = {127.5f, 127.5f, 127.5f}, .stddev = {127.5f, 127.5f, 127.5f}}; }
  static constexpr TapChoice taps() noexcept { return {.three_levels = kLevels, .two_levels = kMiddle, .pooled = kPooled}; }
  static consteval auto make_graph() { return vit_graph(Self::settings()); }

 private:
  static constexpr std::array<std::string_view, 3> kLevels{"block3", "block6", "block10"};
  static constexpr std::array<std::string_view, 2> kMiddle{"block6", "block10"};
  static constexpr std::array<std::string_view, 1> kPooled{"block12"};
};

}  // namespace norma::backbones

namespace norma {

struct ViTTiny16 : backbones::ViT<ViTTiny16> {
  static constexpr std::string_view name() noexcept { return "vit_tiny_patch16_224"; }
  static constexpr backbones::ViTSettings settings() noexcept { return {.channels = 192, .heads = 3}; }
};
struct ViTSmall16 : backbones::ViT<ViTSmall16> {
  static constexpr std::string_view name() noexcept { return "vit_small_patch16_224"; }
  static constexpr backbones::ViTSettings settings() noexcept { return {.channels = 384, .heads = 6}; }
};
struct ViTBase16 : backbones::ViT<ViTBase16> {
  static constexpr std::string_view name() noexcept { return "vit_base_patch16_224"; }
  static constexpr backbones::ViTSettings settings() noexcept { return {.channels = 768, .heads = 12}; }
};

static_assert(StaticNetwork<ViTTiny16> && BackboneNetwork<ViTTiny16>);

}  // namespace norma
