/// \file
/// What a vision transformer needs beside the matrix product: layer normalisation, softmax, multi-head self-attention.
#pragma once

#include <cmath>
#include <cstdint>

#include <norma/linalg/gemm.hpp>

namespace norma::nn {

/// Most heads of `talking_heads_attention`.
inline constexpr int kMaxMixedHeads = 64;

namespace detail {

struct AttentionKernels {
  void (*layer_norm_row)(const float* x, const float* gamma, const float* beta, float eps, float* y, std::int64_t count);
  void (*softmax_row)(float* s, std::int64_t count, float scale);
  void (*mix_heads_row)(float* s, std::int64_t head_stride, std::int64_t count, int heads, const float* mix, const float* bias);
};

}  // namespace detail
}  // namespace norma::nn

#define NORMA_SIMD_FILE <norma/nn/kernels/detail/attention_kernels.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE

namespace norma::nn {
namespace detail {

inline const AttentionKernels& attention_kernels(InstructionSet set) noexcept { return NORMA_SIMD_SELECT(set, kAttentionKernels); }

// Queries of a task: multiples of the tile heights 6 and 14; fewer where a task holds the scores of all heads.
inline constexpr std::int64_t kAttentionRows = 42;
inline constexpr std::int64_t kMixedAttentionRows = 14;

}  // namespace detail

/// y[r] = (x[r] - mean) / sqrt(variance + eps) * gamma + beta, mean and (population) variance over the row. y may be x.
inline void layer_norm(MatrixView<const float> x, const float* gamma, const float* beta, float eps, MatrixView<float> y,
                       Parallel parallel = {}, InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(x.rows == y.rows && x.cols == y.cols);
  const auto& kernels = detail::attention_kernels(set);
  parallel.run_ranges(x.rows, 16, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t r = first; r < last; ++r)
      kernels.layer_norm_row(x.data + r * x.stride, gamma, beta, eps, y.data + r * y.stride, x.cols);
  });
}

/// Each row becomes softmax(scale * row), in place.
inline void softmax(MatrixView<float> x, float scale, Parallel parallel = {}, InstructionSet set = instruction_set()) {
  const auto& kernels = detail::attention_kernels(set);
  parallel.run_ranges(x.rows, 16, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t r = first; r < last; ++r) kernels.softmax_row(x.data + r * x.stride, x.cols, scale);
  });
}

namespace detail {

/// Where attention keeps its intermediate results: packed keys and values of every head, and each worker's block of scores.
struct AttentionScratch {
  constexpr AttentionScratch(std::int64_t tokens, std::int64_t dim, std::int64_t panel, std::int64_t block_rows) noexcept
      : keys(padded(linalg::detail::round_up(tokens, panel) * dim)),
        values(padded(linalg::detail::round_up(dim, panel) * tokens)),
        stride(linalg::detail::scratch_stride(tokens)),
        scores(padded(block_rows * stride)) {}
  std::int64_t keys;    // floats of one head
  std::int64_t values;  // floats of one head
  std::int64_t stride;  // between rows of scores
  std::int64_t scores;  // floats of one worker
  [[nodiscard]] constexpr std::size_t bytes(int heads, int workers) const noexcept {
    return static_cast<std::size_t>((keys + values) * heads + scores * workers) * sizeof(float);
  }

 private:
  static constexpr std::int64_t padded(std::int64_t count) noexcept {
    return static_cast<std::int64_t>(arena_bytes<float>(count) / sizeof(float));
  }
};

/// The second and third part of each row of qkv in panels: keys as [tokens, dim] and values as [dim, tokens] operands, head by head.
inline void pack_keys_and_values(MatrixView<const float> qkv, int heads, std::int64_t dim, std::int64_t panel, const AttentionScratch& size,
                                 float* keys, float* values, Parallel parallel) {
  const std::int64_t tokens = qkv.rows;
  parallel.run(heads, [&](std::int64_t head, int) {
    const float* k = qkv.data + (heads + head) * dim;
    const float* v = k + heads * dim;
    float* key_panels = keys + head * size.keys;
    float* value_panels = values + head * size.values;
    for (std::int64_t t = 0; t < linalg::detail::round_up(tokens, panel); ++t) {
      float* to = key_panels + t / panel * panel * dim + t % panel;
      for (std::int64_t d = 0; d < dim; ++d) to[d * panel] = t < tokens ? k[t * qkv.stride + d] : 0.0f;
    }
    for (std::int64_t first = 0; first < dim; first += panel) {
      const std::int64_t count = std::min(panel, dim - first);
      float* to = value_panels + first * tokens;
      for (std::int64_t t = 0; t < tokens; ++t, to += panel) {
        std::memcpy(to, v + t * qkv.stride + first, static_cast<std::size_t>(count) * sizeof(float));
        std::memset(to + count, 0, static_cast<std::size_t>(panel - count) * sizeof(float));
      }
    }
  });
}

/// Mixes over heads, [heads, heads] and [heads]; null without.
struct HeadMix {
  const float* logits = nullptr;
  const float* logits_bias = nullptr;
  const float* weights = nullptr;
  const float* weights_bias = nullptr;
};

/// Tasks are blocks of queries; each task runs `task_heads` heads (all of them where they are mixed).
inline void attend(MatrixView<const float> qkv, int heads, int task_heads, std::int64_t block_rows, const HeadMix& mix,
                   MatrixView<float> out, Parallel parallel, Arena& arena, InstructionSet set) {
  const std::int64_t tokens = qkv.rows;
  const std::int64_t dim = out.cols / heads;
  NORMA_EXPECTS(qkv.cols == 3 * out.cols && dim * heads == out.cols && out.rows == tokens);
  const auto& product = linalg::detail::gemm_kernels(set);
  const auto& kernels = attention_kernels(set);
  const std::int64_t panel = product.panel;
  const AttentionScratch size(tokens, dim, panel, block_rows * task_heads);
  const Arena::Scope scope(arena);
  float* keys = arena.take<float>(size.keys * heads);
  float* values = arena.take<float>(size.values * heads);
  float* scores = arena.take<float>(size.scores * parallel.workers());
  pack_keys_and_values(qkv, heads, dim, panel, size, keys, values, parallel);

  const std::int64_t blocks = (tokens + block_rows - 1) / block_rows;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  parallel.run(heads / task_heads * blocks, [&](std::int64_t task, int worker) {
    const std::int64_t first_head = task / blocks * task_heads;
    const std::int64_t first = task % blocks * block_rows;
    const std::int64_t rows = std::min(block_rows, tokens - first);
    const std::int64_t head_stride = rows * size.stride;
    float* block = scores + worker * size.scores;  // [task_heads, rows, stride]
    for (std::int64_t h = 0; h < task_heads; ++h) {
      const std::int64_t head = first_head + h;
      const linalg::detail::StoreTile to_scores{product, {block + h * head_stride, rows, tokens, size.stride}, {}};
      linalg::detail::multiply_rows(product, {qkv.data + first * qkv.stride + head * dim, qkv.stride}, 0, rows, keys + head * size.keys,
                                    tokens, dim, 0, (tokens + panel - 1) / panel, worker, to_scores);
    }
    if (mix.logits != nullptr) {
      // The mix is linear, but its bias is not scaled: scale first.
      for (std::int64_t h = 0; h < task_heads; ++h) {
        for (std::int64_t r = 0; r < rows; ++r) {
          float* row = block + h * head_stride + r * size.stride;
          for (std::int64_t t = 0; t < tokens; ++t) row[t] *= scale;
        }
      }
      for (std::int64_t r = 0; r < rows; ++r) {
        kernels.mix_heads_row(block + r * size.stride, head_stride, tokens, heads, mix.logits, mix.logits_bias);
      }
    }
    for (std::int64_t h = 0; h < task_heads; ++h) {
      for (std::int64_t r = 0; r < rows; ++r) {
        kernels.softmax_row(block + h * head_stride + r * size.stride, tokens, mix.logits != nullptr ? 1.0f : scale);
      }
    }
    if (mix.weights != nullptr) {
      for (std::int64_t r = 0; r < rows; ++r) {
        kernels.mix_heads_row(block + r * size.stride, head_stride, tokens, heads, mix.weights, mix.weights_bias);
      }
    }
    for (std::int64_t h = 0; h < task_heads; ++h) {
      const std::int64_t head = first_head + h;
      const linalg::detail::StoreTile to_out{product, {out.data + first * out.stride + head * dim, rows, dim, out.stride}, {}};
      linalg::detail::multiply_rows(product, {block + h * head_stride, size.stride}, 0, rows, values + head * size.values, dim, tokens, 0,
                                    (dim + panel - 1) / panel, worker, to_out);
    }
  });
}

}  // namespace detail

/// Scratch of `attention`; `channels` is heads * dim.
constexpr std::size_t attention_scratch_bytes(std::int64_t tokens, std::int64_t channels, int heads, int workers) noexcept {
  return detail::AttentionScratch(tokens, channels / heads, linalg::detail::kMaxPanel, detail::kAttentionRows).bytes(heads, workers);
}

/// out[t, h dim + d] = sum over u of softmax_u(q_h[t] . k_h[u] / sqrt(dim)) v_h[u, d]: Vaswani et al. 2017, equation 1, per head.
/// qkv [tokens, 3 channels]: queries of all heads, then keys, then values, each [heads, dim] (timm's layout); out [tokens, channels] must
/// not overlap qkv.
inline void attention(MatrixView<const float> qkv, int heads, MatrixView<float> out, Parallel parallel, Arena& arena,
                      InstructionSet set = instruction_set()) {
  detail::attend(qkv, heads, 1, detail::kAttentionRows, {}, out, parallel, arena, set);
}

/// Scratch of `talking_heads_attention`.
constexpr std::size_t talking_heads_attention_scratch_bytes(std::int64_t tokens, std::int64_t channels, int heads, int workers) noexcept {
  return detail::AttentionScratch(tokens, channels / heads, linalg::detail::kMaxPanel, detail::kMixedAttentionRows * heads)
      .bytes(heads, workers);
}

/// Attention whose scores are mixed over heads before the softmax and whose weights after it (Shazeer et al., arXiv 2003.02436; CaiT):
/// s'[h] = logits_bias[h] + sum_g logits_mix[h, g] s[g], and likewise with the weights. Mixes are [heads, heads] as `torch.nn.Linear`
/// holds them, biases [heads]. Precondition: heads <= kMaxMixedHeads.
inline void talking_heads_attention(MatrixView<const float> qkv, int heads, const float* logits_mix, const float* logits_bias,
                                    const float* weights_mix, const float* weights_bias, MatrixView<float> out, Parallel parallel,
                                    Arena& arena, InstructionSet set = instruction_set()) {
  NORMA_EXPECTS(heads <= kMaxMixedHeads);
  detail::attend(qkv, heads, heads, detail::kMixedAttentionRows, {logits_mix, logits_bias, weights_mix, weights_bias}, out, parallel, arena,
                 set);
}

/// Scratch of `class_attention`.
constexpr std::size_t class_attention_scratch_bytes(std::int64_t tokens, int heads) noexcept { return arena_bytes<float>(heads * tokens); }

/// One query per head over all tokens (CaiT's class attention): out[h dim + d] = sum over u of softmax_u(q_h . k_h[u] / sqrt(dim)) v_h[u, d].
/// query and out [heads * dim]; keys and values [tokens, heads * dim]. Scores are summed in double, values in float.
inline void class_attention(const float* query, MatrixView<const float> keys, MatrixView<const float> values, int heads, float* out,
                            Parallel parallel, Arena& arena, InstructionSet set = instruction_set()) {
  const std::int64_t tokens = keys.rows;
  const std::int64_t dim = keys.cols / heads;
  NORMA_EXPECTS(dim * heads == keys.cols && values.rows == tokens && values.cols == keys.cols);
  const auto& kernels = detail::attention_kernels(set);
  const Arena::Scope scope(arena);
  float* scores = arena.take<float>(heads * tokens);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  parallel.run(heads, [&](std::int64_t head, int) {
    float* weights = scores + head * tokens;
    const float* q = query + head * dim;
    for (std::int64_t u = 0; u < tokens; ++u) {
      const float* k = keys.data + u * keys.stride + head * dim;
      double dot = 0.0;
      for (std::int64_t d = 0; d < dim; ++d) dot += static_cast<double>(q[d]) * static_cast<double>(k[d]);
      weights[u] = static_cast<float>(dot);
    }
    kernels.softmax_row(weights, tokens, scale);
    float* to = out + head * dim;
    for (std::int64_t d = 0; d < dim; ++d) to[d] = 0.0f;
    for (std::int64_t u = 0; u < tokens; ++u) {
      const float* v = values.data + u * values.stride + head * dim;
      for (std::int64_t d = 0; d < dim; ++d) to[d] += weights[u] * v[d];
    }
  });
}

}  // namespace norma::nn
