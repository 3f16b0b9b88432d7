/// \file
/// CaiT: deep Vision Transformers whose class token enters after the other tokens are done.
/// Source:  Touvron et al., "Going deeper with Image Transformers", ICCV 2021: layer scale, talking-heads attention, two class-attention
///          blocks. Tensor names are timm's; layer norm epsilon 1e-6, exact GELU.
/// Weights: cls_token, pos_embed, patch_embed.proj, blocks.<N>.{gamma_1, gamma_2, norm1, attn.{qkv, proj_l, proj_w, proj}, norm2, mlp.fc1,
///          mlp.fc2}, blocks_token_only.{0, 1}.{gamma_1, gamma_2, norm1, attn.{q, k, v, proj}, norm2, mlp.fc1, mlp.fc2}, norm, head
/// Taps:    block1 .. block<depth>: the tokens after so many blocks as a grid [h / 16, w / 16, C]; block1.norm .. : the same through the
///          network's final norm (FastFlow reads cait_m48_448's block41.norm at 448 x 448); cls: the class token after the final norm,
///          [1, 1, C]; head [1, 1, 1000]
/// The position embedding belongs to the network's own size; for other input sizes it is resampled when the weights are loaded.
#pragma once

#include <norma/backbones/backbone.hpp>

namespace norma::backbones {

struct CaiTSettings {
  int channels = 192;
  int heads = 4;
  int depth = 24;

  [[nodiscard]] constexpr int node_count() const noexcept { return 13 * depth + 2 * 15 + 7; }
};

namespace detail {

inline constexpr float kCaiTEpsilon = 1e-6f;

/// The second half of both kinds of block: x + gamma_2 mlp(norm2(x)).
constexpr int cait_mlp(nn::Builder& b, int x, const nn::Name& p) {
  const int channels = b.channels(x);
  int y = b.layer_norm(x, {.name = p + "norm2", .epsilon = kCaiTEpsilon});
  y = b.linear(y, {.name = p + "mlp.fc1", .out_channels = 4 * channels, .activation = Activation::gelu});
  y = b.linear(y, {.name = p + "mlp.fc2", .out_channels = channels});
  return b.add(b.layer_scale(y, p + "gamma_2"), x);
}

constexpr int cait_block(nn::Builder& b, int x, const nn::Name& p, int heads) {
  const int channels = b.channels(x);
  int y = b.layer_norm(x, {.name = p + "norm1", .epsilon = kCaiTEpsilon});
  y = b.linear(y, {.name = p + "attn.qkv", .out_channels = 3 * channels});
  y = b.talking_heads_attention(y, heads, p + "attn.proj_l", p + "attn.proj_w");
  y = b.linear(y, {.name = p + "attn.proj", .out_channels = channels});
  return cait_mlp(b, b.add(b.layer_scale(y, p + "gamma_1"), x), p);
}

/// The class token looks at itself and at all tokens, which stay as they are.
constexpr int cait_class_block(nn::Builder& b, int cls, int x, const nn::Name& p, int heads) {
  const int channels = b.channels(x);
  const int all = b.layer_norm(b.join_tokens(cls, x), {.name = p + "norm1", .epsilon = kCaiTEpsilon});
  const int q = b.linear(b.first_token(all), {.name = p + "attn.q", .out_channels = channels});
  const int k = b.linear(all, {.name = p + "attn.k", .out_channels = channels});
  const int v = b.linear(all, {.name = p + "attn.v", .out_channels = channels});
  int y = b.class_attention(q, k, v, heads);
  y = b.linear(y, {.name = p + "attn.proj", .out_channels = channels});
  return cait_mlp(b, b.add(b.layer_scale(y, p + "gamma_1"), cls), p);
}

}  // namespace detail

template <int Capacity, int TapCapacity>
constexpr auto cait_graph(const CaiTSettings& settings) {
  nn::Graph<Capacity, TapCapacity> graph;
  nn::Builder b(graph);
  const int patches = b.convolution(b.input(3), {.name = "patch_embed.proj", .out_channels = settings.channels, .kernel = 16, .stride = 16,
                                                 .bias = true});
  int x = b.tokens(patches, {.position_embedding = "pos_embed"});
  for (int i = 0; i < settings.depth; ++i) {
    x = detail::cait_block(b, x, nn::name("blocks.", i, "."), settings.heads);
    const nn::Name tap = nn::name("block", i + 1);
    const int grid = b.grid(x, patches, 0);
    b.tap(tap, grid);
    b.tap(tap + ".norm", b.layer_norm(grid, {.name = "norm", .epsilon = detail::kCaiTEpsilon}));
  }
  int cls = b.first_token(b.tokens(x, {.position_embedding = "", .class_token = "cls_token"}));
  for (int i = 0; i < 2; ++i) cls = detail::cait_class_block(b, cls, x, nn::name("blocks_token_only.", i, "."), settings.heads);
  cls = b.layer_norm(cls, {.name = "norm", .epsilon = detail::kCaiTEpsilon});
  b.tap("cls", cls);
  b.tap("head", b.linear(cls, {.name = "head", .out_channels = 1000}));
  return graph;
}

/// Common part: `Self` has `name()`, `settings()`, `kSize` and `kLevels`.
template <class Self>
struct CaiT : Base<Self> {
  static constexpr nn::InputSpec input() noexcept {
    nn::InputSpec spec = nn::kImageNet;
    spec.size = Self::kSize;
    spec.resize = Self::kSize;
    return spec;
  }
  static constexpr TapChoice taps() noexcept {
    return {.three_levels = std::span(Self::kLevels).template first<3>(), .two_levels = std::span(Self::kLevels).template subspan<1, 2>(),
            .pooled = std::span(Self::kLevels).template last<1>()};
  }
  static consteval auto make_graph() {
    constexpr CaiTSettings kSettings = Self::settings();
    return cait_graph<kSettings.node_count(), 2 * kSettings.depth + 2>(kSettings);
  }
};

}  // namespace norma::backbones

namespace norma {

struct CaiTXXS24 : backbones::CaiT<CaiTXXS24> {
  static constexpr int kSize = 224;
  static constexpr std::array<std::string_view, 4> kLevels{"block6", "block12", "block20", "block24"};
  static constexpr std::string_view name() noexcept { return "cait_xxs24_224"; }
  static constexpr backbones::CaiTSettings settings() noexcept { return {.channels = 192, .heads = 4, .depth = 24}; }
};
struct CaiTM48 : backbones::CaiT<CaiTM48> {
  static constexpr int kSize = 448;
  static constexpr std::array<std::string_view, 4> kLevels{"block12", "block24", "block41", "block48"};
  static constexpr std::string_view name() noexcept { return "cait_m48_448"; }
  static constexpr backbones::CaiTSettings settings() noexcept { return {.channels = 768, .heads = 16, .depth = 48}; }
};

static_assert(StaticNetwork<CaiTXXS24> && BackboneNetwork<CaiTXXS24>);

}  // namespace norma
