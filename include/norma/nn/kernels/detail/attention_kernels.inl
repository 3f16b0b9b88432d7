// Row-wise statistics of a transformer. See linalg/detail/for_each_instruction_set.inl for the macros.
namespace norma::simd::NORMA_SIMD {

// y = (x - mean) / sqrt(variance + eps) * gamma + beta over one row. Two passes over the row, so the variance loses nothing.
NORMA_SIMD_TARGET inline void layer_norm_row(const float* x, const float* gamma, const float* beta, float eps, float* y,
                                             std::int64_t count) {
  Vec sum{};
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) sum += load(x + i);
  if (i < count) sum += load_part(x + i, count - i);
  const float mean = sum_of_lanes(sum) / static_cast<float>(count);
  Vec squares{};
  float rest = 0.0f;
  for (i = 0; i + kWidth <= count; i += kWidth) {
    const Vec d = load(x + i) - mean;
    squares += d * d;
  }
  for (; i < count; ++i) rest += (x[i] - mean) * (x[i] - mean);
  const float factor = 1.0f / std::sqrt((sum_of_lanes(squares) + rest) / static_cast<float>(count) + eps);
  for (i = 0; i + kWidth <= count; i += kWidth) store(y + i, (load(x + i) - mean) * factor * load(gamma + i) + load(beta + i));
  for (; i < count; ++i) y[i] = (x[i] - mean) * factor * gamma[i] + beta[i];
}

// s[count] = softmax(scale * s) in place.
NORMA_SIMD_TARGET inline void softmax_row(float* s, std::int64_t count, float scale) {
  Vec most = broadcast(s[0]);
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) most = max_or_nan(most, load(s + i));
  float lanes[kWidth];
  store(lanes, most);
  float largest = lanes[0];
  for (int lane = 1; lane < kWidth; ++lane) largest = lanes[lane] > largest || lanes[lane] != lanes[lane] ? lanes[lane] : largest;
  for (; i < count; ++i) largest = s[i] > largest || s[i] != s[i] ? s[i] : largest;
  Vec sum{};
  for (i = 0; i + kWidth <= count; i += kWidth) {
    const Vec e = exp((load(s + i) - largest) * scale);
    store(s + i, e);
    sum += e;
  }
  float total = sum_of_lanes(sum);
  if (i < count) {
    store_part(s + i, exp((load_part(s + i, count - i) - largest) * scale), count - i);
    for (std::int64_t j = i; j < count; ++j) total += s[j];
  }
  const float factor = 1.0f / total;
  for (i = 0; i + kWidth <= count; i += kWidth) store(s + i, load(s + i) * factor);
  for (; i < count; ++i) s[i] *= factor;
}

// s[h, i] = bias[h] + sum over g of mix[h, g] s[g, i] for i < count, in place; heads lie head_stride apart, at most kMaxMixedHeads of them.
NORMA_SIMD_TARGET inline void mix_heads_row(float* s, std::int64_t head_stride, std::int64_t count, int heads, const float* mix,
                                            const float* bias) {
  Vec in[nn::kMaxMixedHeads];
  for (std::int64_t i = 0; i < count; i += kWidth) {
    const std::int64_t left = count - i;
    const bool whole = left >= kWidth;
    for (int g = 0; g < heads; ++g) in[g] = whole ? load(s + g * head_stride + i) : load_part(s + g * head_stride + i, left);
    for (int h = 0; h < heads; ++h) {
      Vec sum = broadcast(bias[h]);
      for (int g = 0; g < heads; ++g) sum += in[g] * mix[h * heads + g];
      whole ? store(s + h * head_stride + i, sum) : store_part(s + h * head_stride + i, sum, left);
    }
  }
}

inline constexpr nn::detail::AttentionKernels kAttentionKernels{&layer_norm_row, &softmax_row, &mix_heads_row};

}  // namespace norma::simd::NORMA_SIMD
