/// \file
/// Gradients of attention and of what moves tokens about.
/// Scores are not kept: a block of queries at a time makes them again, so the way back needs no memory that grows with tokens^2 (Dao et
/// al., "FlashAttention", 2022, section 3.1). With p = softmax(s), s = q k^T / sqrt(dim), o = p v:
///     dv = p^T do,   dp = do v^T,   ds = p (dp - sum of p dp),   dq = ds k / sqrt(dim),   dk = ds^T q / sqrt(dim)
/// dy is the gradient of the layer's result. With `Accumulate::yes` the gradient is added to what is there. A dx without data is not
/// wanted. Accuracy:    products are chains of multiply-adds; sums over tokens go by blocks of queries. What is common to all of a row of
/// dp cancels
///              in ds, with the rounding of its size.
/// Determinism: bit-equal for any number of workers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>

#include <norma/nn/kernels/attention.hpp>
#include <norma/nn/kernels/elementwise_backward.hpp>

namespace norma::nn::detail {

struct AttentionBackwardKernels {
  void (*softmax_gradient_row)(const float* p, float* d, std::int64_t count, float factor);
  void (*head_products)(const float* a, const float* b, std::int64_t head_stride, std::int64_t count, int heads, float* products,
                        float* sums);
};

}  // namespace norma::nn::detail

#define NORMA_SIMD_FILE <norma/nn/kernels/detail/attention_backward_kernels.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE

namespace norma::nn {
namespace detail {

inline const AttentionBackwardKernels& attention_backward_kernels(InstructionSet set) noexcept {
  return NORMA_SIMD_SELECT(set, kAttentionBackwardKernels);
}

// Queries of a block: how often the sums of dk and dv are read and written again.
inline constexpr std::int64_t kAttentionGradientRows = 56;
// Rows of a block whose heads are mixed in one task.
inline constexpr std::int64_t kMixRows = 7;

constexpr std::int64_t padded_floats(std::int64_t count) noexcept {
  return static_cast<std::int64_t>(arena_bytes<float>(count) / sizeof(float));
}

/// Where the gradients of one head lie while they are computed, in floats from its beginning. Everything is padded to whole panels.
struct HeadGradientScratch {
  constexpr HeadGradientScratch(std::int64_t tokens_, std::int64_t dim_, std::int64_t panel) noexcept
      : tokens(tokens_),
        dim(dim_),
        rows(tokens_ < kAttentionGradientRows ? tokens_ : kAttentionGradientRows),
        width(linalg::detail::round_up(dim_, panel)),
        stride(linalg::detail::scratch_stride(tokens_)) {
    const std::int64_t packed_rows = padded_floats(linalg::detail::round_up(tokens, panel) * dim);
    keys = 0;
    values = keys + packed_rows;
    key_columns = values + packed_rows;
    queries = key_columns + padded_floats(width * tokens);
    results = queries + padded_floats(rows * width);
    key_sums = results + padded_floats(rows * width);
    value_sums = key_sums + padded_floats(tokens * width);
    size = value_sums + padded_floats(tokens * width);
  }
  std::int64_t tokens, dim;
  std::int64_t rows;                  // of a block
  std::int64_t width;                 // dim in whole panels
  std::int64_t stride;                // between rows of scores
  std::int64_t keys, values;          // packed as [tokens, dim] operands
  std::int64_t key_columns;           // packed as a [dim, tokens] operand
  std::int64_t queries, results;      // of a block: q and do, [rows, width]
  std::int64_t key_sums, value_sums;  // dk and dv, [tokens, width]
  std::int64_t size;
};

/// One head of one image: what is packed and summed. All functions run on the calling worker.
struct HeadGradient {
  const linalg::detail::GemmKernels& product;
  const BackwardKernels& kernels;
  const HeadGradientScratch& at;
  float* memory;
  const float* q;  // of the first token; k and v lie `channels` and twice as far behind
  std::int64_t qkv_stride, channels;
  const float* dy;
  std::int64_t dy_stride;

  void pack() const {
    const std::int64_t panel = product.panel;
    const float *k = q + channels, *v = q + 2 * channels;
    const auto pack_rows = [&](const float* from, float* to) {
      for (std::int64_t t = 0; t < linalg::detail::round_up(at.tokens, panel); ++t) {
        float* column = to + t / panel * panel * at.dim + t % panel;
        for (std::int64_t d = 0; d < at.dim; ++d) column[d * panel] = t < at.tokens ? from[t * qkv_stride + d] : 0.0f;
      }
    };
    pack_rows(k, memory + at.keys);
    pack_rows(v, memory + at.values);
    float* to = memory + at.key_columns;
    for (std::int64_t first = 0; first < at.dim; first += panel) {
      const std::int64_t count = std::min(panel, at.dim - first);
      for (std::int64_t t = 0; t < at.tokens; ++t, to += panel) {
        std::memcpy(to, k + t * qkv_stride + first, static_cast<std::size_t>(count) * sizeof(float));
        std::memset(to + count, 0, static_cast<std::size_t>(panel - count) * sizeof(float));
      }
    }
    std::memset(memory + at.key_sums, 0, static_cast<std::size_t>(at.size - at.key_sums) * sizeof(float));
  }
  // q and do of queries [first, first + rows), padded.
  void take_block(std::int64_t first, std::int64_t rows) const {
    const auto take = [&](const float* from, std::int64_t stride, float* to) {
      for (std::int64_t r = 0; r < rows; ++r, to += at.width) {
        std::memcpy(to, from + (first + r) * stride, static_cast<std::size_t>(at.dim) * sizeof(float));
        std::memset(to + at.dim, 0, static_cast<std::size_t>(at.width - at.dim) * sizeof(float));
      }
    };
    take(q, qkv_stride, memory + at.queries);
    take(dy, dy_stride, memory + at.results);
  }
  // to[rows, tokens] = block [rows, dim] times packed rows.
  void times_rows(std::int64_t block, std::int64_t packed, std::int64_t rows, float* to) const {
    const linalg::detail::StoreTile store{product, {to, rows, at.tokens, at.stride}, {}};
    linalg::detail::multiply_rows(product, {memory + block, at.width}, 0, rows, memory + packed, at.tokens, at.dim, 0,
                                  (at.tokens + product.panel - 1) / product.panel, 0, store);
  }
  void scores(std::int64_t rows, float* to) const { times_rows(at.queries, at.keys, rows, to); }
  void weight_gradients(std::int64_t rows, float* to) const { times_rows(at.results, at.values, rows, to); }
  // sums[tokens, dim] += scores^T block.
  void add_sums(const float* scores, std::int64_t rows, std::int64_t block, std::int64_t sums) const {
    outer_products(kernels, scores, at.stride, at.tokens, memory + block, at.width, at.dim, rows, memory + sums, at.width, {});
  }
  void add_value_sums(const float* weights, std::int64_t rows) const { add_sums(weights, rows, at.results, at.value_sums); }
  void add_key_sums(const float* ds, std::int64_t rows) const { add_sums(ds, rows, at.queries, at.key_sums); }
  // dq (+)= ds k for the queries of a block.
  void store_queries(const float* ds, std::int64_t rows, float* dq, std::int64_t dq_stride, Accumulate accumulate) const {
    const auto before = accumulate == Accumulate::yes ? MatrixView<const float>(dq, rows, at.dim, dq_stride) : MatrixView<const float>();
    const linalg::detail::StoreTile store{product, {dq, rows, at.dim, dq_stride}, {nullptr, before, Activation::none}};
    linalg::detail::multiply_rows(product, {ds, at.stride}, 0, rows, memory + at.key_columns, at.dim, at.tokens, 0,
                                  (at.dim + product.panel - 1) / product.panel, 0, store);
  }
  // dk and dv (+)= their sums; `dq` is the first token's gradient, laid out as q.
  void store_sums(float* dq, std::int64_t dq_stride, Accumulate accumulate) const {
    for (int part = 0; part < 2; ++part) {
      const float* from = memory + (part == 0 ? at.key_sums : at.value_sums);
      float* to = dq + (part + 1) * channels;
      for (std::int64_t t = 0; t < at.tokens; ++t, from += at.width, to += dq_stride) {
        if (accumulate == Accumulate::yes) {
          kernels.add_scaled(from, 1.0f, to, at.dim);
        } else {
          std::memcpy(to, from, static_cast<std::size_t>(at.dim) * sizeof(float));
        }
      }
    }
  }
};

}  // namespace detail

/// Scratch of `attention_gradient`.
constexpr std::size_t attention_gradient_scratch_bytes(std::int64_t tokens, std::int64_t channels, int heads, int workers) noexcept {
  const detail::HeadGradientScratch size(tokens, channels / heads, linalg::detail::kMaxPanel);
  return static_cast<std::size_t>(workers * (size.size + 2 * detail::padded_floats(size.rows * size.stride))) * sizeof(float);
}

/// Gradient of `attention` for every image: dqkv (+)=, [n, 1, tokens, 3 channels] as qkv, from dy [n, 1, tokens, channels]. One task an
/// image and head.
inline void attention_gradient(TensorView<const float> dy, TensorView<const float> qkv, int heads, TensorView<float> dqkv,
                               Accumulate accumulate, Parallel parallel, Arena& arena, InstructionSet set = instruction_set()) {
  const std::int64_t tokens = qkv.height * qkv.width, channels = dy.channels, dim = channels / heads;
  NORMA_EXPECTS(qkv.channels == 3 * channels && dim * heads == channels && dqkv.count() == qkv.count());
  NORMA_EXPECTS(dy.batch == qkv.batch && dy.height * dy.width == tokens);
  const auto& product = linalg::detail::gemm_kernels(set);
  const auto& rows_of = detail::attention_kernels(set);
  const auto& back = detail::attention_backward_kernels(set);
  const detail::HeadGradientScratch size(tokens, dim, product.panel);
  const std::int64_t block = detail::padded_floats(size.rows * size.stride);
  const Arena::Scope scope(arena);
  float* memory = arena.take<float>(parallel.workers() * (size.size + 2 * block));
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  parallel.run(qkv.batch * heads, [&](std::int64_t task, int worker) {
    const std::int64_t n = task / heads, offset = task % heads * dim;
    float* own = memory + worker * (size.size + 2 * block);
    float* weights = own + size.size;
    float* gradients = weights + block;
    const detail::HeadGradient head{product,  detail::backward_kernels(set), size,    own, qkv.image(n).data + offset, 3 * channels,
                                    channels, dy.image(n).data + offset,     channels};
    float* dq = dqkv.image(n).data + offset;
    head.pack();
    for (std::int64_t first = 0; first < tokens; first += size.rows) {
      const std::int64_t rows = std::min(size.rows, tokens - first);
      head.take_block(first, rows);
      head.scores(rows, weights);
      for (std::int64_t r = 0; r < rows; ++r) rows_of.softmax_row(weights + r * size.stride, tokens, scale);
      head.add_value_sums(weights, rows);
      head.weight_gradients(rows, gradients);
      for (std::int64_t r = 0; r < rows; ++r) {
        back.softmax_gradient_row(weights + r * size.stride, gradients + r * size.stride, tokens, scale);
      }
      head.store_queries(gradients, rows, dq + first * 3 * channels, 3 * channels, accumulate);
      head.add_key_sums(gradients, rows);
    }
    head.store_sums(dq, 3 * channels, accumulate);
  });
}

/// Where the gradients of talking heads' mixes are added, [heads, heads] and [heads] each; all null: not wanted.
struct HeadMixGradient {
  float* logits = nullptr;
  float* logits_bias = nullptr;
  float* weights = nullptr;
  float* weights_bias = nullptr;
};

/// Scratch of `talking_heads_attention_gradient`; does not depend on the number of workers.
constexpr std::size_t talking_heads_attention_gradient_scratch_bytes(std::int64_t tokens, std::int64_t channels, int heads) noexcept {
  const detail::HeadGradientScratch size(tokens, channels / heads, linalg::detail::kMaxPanel);
  const std::int64_t h = heads, mix = h * h + h;
  const std::int64_t pieces = (size.rows + detail::kMixRows - 1) / detail::kMixRows;
  return static_cast<std::size_t>(h * size.size + 3 * detail::padded_floats(h * size.rows * size.stride)) * sizeof(float) +
         2 * arena_bytes<float>(mix) + arena_bytes<float>(2 * mix * pieces) + arena_bytes<double>(2 * mix);
}

/// Gradient of `talking_heads_attention` for every image: dqkv (+)= unless its data is null; gradients of the mixes are added to. Heads are
/// the tasks of products, rows those of mixes. Sums of the mixes' gradients: in float over `kMixRows` queries, in double over those.
inline void talking_heads_attention_gradient(TensorView<const float> dy, TensorView<const float> qkv, int heads, const detail::HeadMix& mix,
                                             const HeadMixGradient& dmix, TensorView<float> dqkv, Accumulate accumulate, Parallel parallel,
                                             Arena& arena, InstructionSet set = instruction_set()) {
  const std::int64_t tokens = qkv.height * qkv.width, channels = dy.channels, dim = channels / heads;
  NORMA_EXPECTS(qkv.channels == 3 * channels && dim * heads == channels && heads <= kMaxMixedHeads);
  NORMA_EXPECTS(dqkv.data == nullptr || dqkv.count() == qkv.count());
  const auto& product = linalg::detail::gemm_kernels(set);
  const auto& rows_of = detail::attention_kernels(set);
  const auto& back = detail::attention_backward_kernels(set);
  const auto& kernels = detail::backward_kernels(set);
  const detail::HeadGradientScratch size(tokens, dim, product.panel);
  const std::int64_t h = heads, squares = h * h, mixes = squares + h, pieces = (size.rows + detail::kMixRows - 1) / detail::kMixRows;
  const std::int64_t block = detail::padded_floats(h * size.rows * size.stride);
  const Arena::Scope scope(arena);
  float* memory = arena.take<float>(h * size.size);
  float* logits = arena.take<float>(block);     // scaled scores before any mix
  float* weights = arena.take<float>(block);    // after the softmax
  float* gradients = arena.take<float>(block);  // mixed weights, then what flows back
  // What takes gradients back through a mix: its transpose, without a bias.
  float* back_weights = arena.take<float>(mixes);
  float* back_logits = arena.take<float>(mixes);
  float* sums = arena.take<float>(2 * mixes * pieces);
  double* totals = arena.take<double>(2 * mixes);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  for (std::int64_t i = 0; i < h; ++i) {
    for (std::int64_t j = 0; j < h; ++j) {
      back_weights[i * h + j] = mix.weights[j * h + i];
      back_logits[i * h + j] = scale * mix.logits[j * h + i];
    }
    back_weights[squares + i] = back_logits[squares + i] = 0.0f;
  }
  std::fill(totals, totals + 2 * mixes, 0.0);
  const bool input_wanted = dqkv.data != nullptr, mixes_wanted = dmix.logits != nullptr;

  for (std::int64_t n = 0; n < qkv.batch; ++n) {
    const auto head = [&](std::int64_t which) {
      return detail::HeadGradient{product,
                                  kernels,
                                  size,
                                  memory + which * size.size,
                                  qkv.image(n).data + which * dim,
                                  3 * channels,
                                  channels,
                                  dy.image(n).data + which * dim,
                                  channels};
    };
    parallel.run(h, [&](std::int64_t which, int) { head(which).pack(); });
    for (std::int64_t first = 0; first < tokens; first += size.rows) {
      const std::int64_t rows = std::min(size.rows, tokens - first), head_stride = rows * size.stride;
      const auto each_row_and_head = [&](std::int64_t from, std::int64_t to, auto&& body) {
        for (std::int64_t r = from; r < to; ++r) {
          for (std::int64_t g = 0; g < h; ++g) body(g * head_stride + r * size.stride);
        }
      };
      parallel.run(h, [&](std::int64_t which, int) {
        head(which).take_block(first, rows);
        head(which).scores(rows, logits + which * head_stride);
      });
      parallel.run_ranges(rows, detail::kMixRows, [&](std::int64_t from, std::int64_t to, int) {
        const auto bytes = static_cast<std::size_t>(tokens) * sizeof(float);
        each_row_and_head(from, to, [&](std::int64_t at) {
          for (std::int64_t t = 0; t < tokens; ++t) logits[at + t] *= scale;
          std::memcpy(weights + at, logits + at, bytes);
        });
        for (std::int64_t r = from; r < to; ++r) {
          rows_of.mix_heads_row(weights + r * size.stride, head_stride, tokens, heads, mix.logits, mix.logits_bias);
        }
        each_row_and_head(from, to, [&](std::int64_t at) {
          rows_of.softmax_row(weights + at, tokens, 1.0f);
          std::memcpy(gradients + at, weights + at, bytes);
        });
        for (std::int64_t r = from; r < to && input_wanted; ++r) {
          rows_of.mix_heads_row(gradients + r * size.stride, head_stride, tokens, heads, mix.weights, mix.weights_bias);
        }
      });
      parallel.run(h, [&](std::int64_t which, int) {
        float* own = gradients + which * head_stride;
        if (input_wanted) head(which).add_value_sums(own, rows);
        head(which).weight_gradients(rows, own);
      });
      parallel.run_ranges(rows, detail::kMixRows, [&](std::int64_t from, std::int64_t to, int) {
        float* own = sums + from / detail::kMixRows * 2 * mixes;
        std::fill(own, own + 2 * mixes, 0.0f);
        for (std::int64_t r = from; r < to; ++r) {
          const std::int64_t at = r * size.stride;
          if (mixes_wanted) back.head_products(gradients + at, weights + at, head_stride, tokens, heads, own, own + squares);
          rows_of.mix_heads_row(gradients + at, head_stride, tokens, heads, back_weights, back_weights + squares);
        }
        each_row_and_head(from, to, [&](std::int64_t at) { back.softmax_gradient_row(weights + at, gradients + at, tokens, 1.0f); });
        for (std::int64_t r = from; r < to; ++r) {
          const std::int64_t at = r * size.stride;
          if (mixes_wanted) back.head_products(gradients + at, logits + at, head_stride, tokens, heads, own + mixes, own + mixes + squares);
          if (input_wanted) rows_of.mix_heads_row(gradients + at, head_stride, tokens, heads, back_logits, back_logits + squares);
        }
      });
      if (mixes_wanted) {
        for (std::int64_t piece = 0; piece * detail::kMixRows < rows; ++piece) {
          for (std::int64_t i = 0; i < 2 * mixes; ++i) totals[i] += static_cast<double>(sums[piece * 2 * mixes + i]);
        }
      }
      if (!input_wanted) continue;
      parallel.run(h, [&](std::int64_t which, int) {
        const float* own = gradients + which * head_stride;
        float* dq = dqkv.image(n).data + first * 3 * channels + which * dim;
        head(which).store_queries(own, rows, dq, 3 * channels, accumulate);
        head(which).add_key_sums(own, rows);
      });
    }
    if (!input_wanted) continue;
    parallel.run(h, [&](std::int64_t which, int) { head(which).store_sums(dqkv.image(n).data + which * dim, 3 * channels, accumulate); });
  }
  if (!mixes_wanted) return;
  const auto add = [](const double* from, std::int64_t count, float* to) {
    for (std::int64_t i = 0; i < count; ++i) to[i] += static_cast<float>(from[i]);
  };
  add(totals, squares, dmix.weights);
  add(totals + squares, h, dmix.weights_bias);
  add(totals + mixes, squares, dmix.logits);
  add(totals + mixes + squares, h, dmix.logits_bias);
}

/// Where one of class attention's three gradients goes; without data it is not wanted.
struct GradientTarget {
  TensorView<float> dx;
  Accumulate accumulate = Accumulate::no;
};

/// Scratch of `class_attention_gradient`.
constexpr std::size_t class_attention_gradient_scratch_bytes(std::int64_t tokens, std::int64_t channels, int heads, int workers) noexcept {
  return static_cast<std::size_t>(workers) * (2 * arena_bytes<float>(tokens) + arena_bytes<float>(channels / heads));
}

/// Gradients of `class_attention` for every image: keys and values [n, 1, tokens, channels], query and dy [n, 1, 1, channels]. Targets that
/// are one value are written in the order of the arguments. One task an image and head.
inline void class_attention_gradient(TensorView<const float> dy, TensorView<const float> keys, TensorView<const float> values,
                                     TensorView<const float> query, int heads, const GradientTarget& dkeys, const GradientTarget& dvalues,
                                     const GradientTarget& dquery, Parallel parallel, Arena& arena,
                                     InstructionSet set = instruction_set()) {
  const std::int64_t tokens = keys.height * keys.width, channels = dy.channels, dim = channels / heads;
  NORMA_EXPECTS(dim * heads == channels && keys.channels == channels && values.count() == keys.count() && query.count() == dy.count());
  const auto& kernels = detail::backward_kernels(set);
  const std::int64_t row = detail::padded_floats(tokens), own = 2 * row + detail::padded_floats(dim);
  const Arena::Scope scope(arena);
  float* memory = arena.take<float>(parallel.workers() * own);
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const auto dot = [dim](const float* a, const float* b) {
    double sum = 0.0;
    for (std::int64_t d = 0; d < dim; ++d) sum += static_cast<double>(a[d]) * static_cast<double>(b[d]);
    return static_cast<float>(sum);
  };
  // to (+)= factor * from
  const auto put = [&](const float* from, float factor, float* to, Accumulate accumulate) {
    if (accumulate == Accumulate::no) std::memset(to, 0, static_cast<std::size_t>(dim) * sizeof(float));
    kernels.add_scaled(from, factor, to, dim);
  };
  parallel.run(dy.batch * heads, [&](std::int64_t task, int worker) {
    const std::int64_t n = task / heads, offset = task % heads * dim;
    float* weights = memory + worker * own;
    float* ds = weights + row;
    float* dq = ds + row;
    const float *q = query.image(n).data + offset, *g = dy.image(n).data + offset;
    const float *k = keys.image(n).data + offset, *v = values.image(n).data + offset;
    for (std::int64_t u = 0; u < tokens; ++u) {
      weights[u] = dot(q, k + u * channels);
      ds[u] = dot(g, v + u * channels);
    }
    detail::attention_kernels(set).softmax_row(weights, tokens, scale);
    detail::attention_backward_kernels(set).softmax_gradient_row(weights, ds, tokens, scale);
    std::memset(dq, 0, static_cast<std::size_t>(dim) * sizeof(float));
    for (std::int64_t u = 0; u < tokens && dquery.dx.data != nullptr; ++u) kernels.add_scaled(k + u * channels, ds[u], dq, dim);
    const auto at = [&](const GradientTarget& to, std::int64_t u) { return to.dx.image(n).data + u * channels + offset; };
    for (std::int64_t u = 0; u < tokens && dkeys.dx.data != nullptr; ++u) put(q, ds[u], at(dkeys, u), dkeys.accumulate);
    for (std::int64_t u = 0; u < tokens && dvalues.dx.data != nullptr; ++u) put(g, weights[u], at(dvalues, u), dvalues.accumulate);
    if (dquery.dx.data != nullptr) put(dq, 1.0f, at(dquery, 0), dquery.accumulate);
  });
}

/// dx (+)= positions [first, first + those of dx) of every image of dy: the gradient of what was placed there (tokens behind class tokens,
/// either part of `join_tokens`).
inline void placed_positions_gradient(TensorView<const float> dy, std::int64_t first, TensorView<float> dx, Accumulate accumulate,
                                      Parallel parallel, InstructionSet set = instruction_set()) {
  const std::int64_t positions = dx.height * dx.width, c = dx.channels;
  NORMA_EXPECTS(dy.batch == dx.batch && dy.channels == c && first + positions <= dy.height * dy.width);
  const auto& kernels = detail::backward_kernels(set);
  parallel.run_ranges(dx.batch * positions, 64, [&](std::int64_t from, std::int64_t to, int) {
    for (std::int64_t i = from; i < to; ++i) {
      const float* g = dy.image(i / positions).data + (first + i % positions) * c;
      if (accumulate == Accumulate::yes) {
        kernels.add_scaled(g, 1.0f, dx.data + i * c, c);
      } else {
        std::memcpy(dx.data + i * c, g, static_cast<std::size_t>(c) * sizeof(float));
      }
    }
  });
}

/// Positions [first, first + those of dy) of every image of dx (+)= dy, the others (+)= 0: the gradient of what some positions were taken
/// from (`grid`, `token`).
inline void taken_positions_gradient(TensorView<const float> dy, std::int64_t first, TensorView<float> dx, Accumulate accumulate,
                                     Parallel parallel, InstructionSet set = instruction_set()) {
  const std::int64_t positions = dx.height * dx.width, taken = dy.height * dy.width, c = dx.channels;
  NORMA_EXPECTS(dy.batch == dx.batch && dy.channels == c && first + taken <= positions);
  const auto& kernels = detail::backward_kernels(set);
  parallel.run_ranges(dx.batch * positions, 64, [&](std::int64_t from, std::int64_t to, int) {
    for (std::int64_t i = from; i < to; ++i) {
      const std::int64_t at = i % positions - first;
      float* row = dx.data + i * c;
      if (accumulate == Accumulate::no) std::memset(row, 0, static_cast<std::size_t>(c) * sizeof(float));
      if (at >= 0 && at < taken) kernels.add_scaled(dy.image(i / positions).data + at * c, 1.0f, row, c);
    }
  });
}

/// What was added to, or set before, the tokens of every image: `dpositions` [tokens, channels] += the sum over images of dy;
/// `dclass[r]` [channels] += that of its row r. Null or empty where there is none.
inline void token_weight_gradient(TensorView<const float> dy, float* dpositions, std::span<float* const> dclass, Parallel parallel,
                                  InstructionSet set = instruction_set()) {
  const auto& kernels = detail::backward_kernels(set);
  const std::int64_t count = dy.height * dy.width * dy.channels;
  if (dpositions != nullptr) {
    parallel.run_ranges(count, detail::kElementwiseGrain, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t n = 0; n < dy.batch; ++n) kernels.add_scaled(dy.data + n * count + first, 1.0f, dpositions + first, last - first);
    });
  }
  for (std::size_t r = 0; r < dclass.size(); ++r) {
    for (std::int64_t n = 0; n < dy.batch; ++n) {
      kernels.add_scaled(dy.data + n * count + static_cast<std::int64_t>(r) * dy.channels, 1.0f, dclass[r], dy.channels);
    }
  }
}

}  // namespace norma::nn
