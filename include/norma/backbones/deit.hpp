/// \file
/// DeiT: Vision Transformers trained by distillation, with a second class token.
/// Source:  Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021. Tensor names are timm's;
///          layer norm epsilon 1e-6, exact GELU.
/// Weights: cls_token, dist_token, pos_embed, patch_embed.proj, blocks.<N>.{norm1, attn.qkv, attn.proj, norm2, mlp.fc1, mlp.fc2}, norm, head,
///          head_dist
/// Taps:    block1 .. block12: the tokens after so many blocks without the two class tokens, as a grid [h / 16, w / 16, C];
///          block1.norm .. block12.norm: the same through the network's final norm (FastFlow reads block8.norm at 384 x 384);
///          cls, dist: the class tokens after the final norm, [1, 1, C]; head [1, 1, 1000]: the mean of both classifiers
/// The position embedding belongs to the network's own size; for other input sizes it is resampled when the weights are loaded.
#pragma once

#include <norma/backbones/vit.hpp>

namespace norma::backbones {

struct DeiTSettings {
  int channels = 192;
  int heads = 3;
};

constexpr auto deit_graph(const DeiTSettings& settings) {
  nn::Graph<11 * detail::kViTBlocks + 11, 2 * detail::kViTBlocks + 3> graph;
  nn::Builder b(graph);
  const int patches = b.convolution(b.input(3), {.name = "patch_embed.proj", .out_channels = settings.channels, .kernel = 16, .stride = 16,
                                                 .bias = true});
  int x = b.tokens(patches, {.position_embedding = "pos_embed", .class_token = "cls_token", .second_token = "dist_token"});
  for (int i = 0; i < detail::kViTBlocks; ++i) {
    x = detail::vit_block(b, x, nn::name("blocks.", i, "."), settings.heads);
    const nn::Name tap = nn::name("block", i + 1);
    const int grid = b.grid(x, patches, 2);
    b.tap(tap, grid);
    b.tap(tap + ".norm", b.layer_norm(grid, {.name = "norm", .epsilon = detail::kViTEpsilon}));
  }
  x = b.layer_norm(x, {.name = "norm", .epsilon = detail::kViTEpsilon});
  const int cls = b.token(x, 0);
  const int dist = b.token(x, 1);
  b.tap("cls", cls);
  b.tap("dist", dist);
  const int logits = b.linear(cls, {.name = "head", .out_channels = 1000});
  b.tap("head", b.global_average_pool(b.join_tokens(logits, b.linear(dist, {.name = "head_dist", .out_channels = 1000}))));
  return graph;
}

/// Common part: `Self` has `name()`, `settings()` and `kSize`.
template <class Self>
struct DeiT : Base<Self> {
  static constexpr nn::InputSpec input() noexcept {
    nn::InputSpec spec = nn::kImageNet;
    spec.size = Self::kSize;
    spec.resize = Self::kSize == 224 ? 256 : Self::kSize;
    return spec;
  }
  static constexpr TapChoice taps() noexcept { return {.three_levels = kLevels, .two_levels = kMiddle, .pooled = kPooled}; }
  static consteval auto make_graph() { return deit_graph(Self::settings()); }

 private:
  static constexpr std::array<std::string_view, 3> kLevels{"block3", "block6", "block10"};
  static constexpr std::array<std::string_view, 2> kMiddle{"block6", "block10"};
  static constexpr std::array<std::string_view, 1> kPooled{"block12"};
};

}  // namespace norma::backbones

namespace norma {

struct DeiTTinyDistilled : backbones::DeiT<DeiTTinyDistilled> {
  static constexpr int kSize = 224;
  static constexpr std::string_view name() noexcept { return "deit_tiny_distilled_patch16_224"; }
  static constexpr backbones::DeiTSettings settings() noexcept { return {.channels = 192, .heads = 3}; }
};
struct DeiTBaseDistilled384 : backbones::DeiT<DeiTBaseDistilled384> {
  static constexpr int kSize = 384;
  static constexpr std::string_view name() noexcept { return "deit_base_distilled_patch16_384"; }
  static constexpr backbones::DeiTSettings settings() noexcept { return {.channels = 768, .heads = 12}; }
};

static_assert(StaticNetwork<DeiTTinyDistilled> && BackboneNetwork<DeiTTinyDistilled>);

}  // namespace norma
