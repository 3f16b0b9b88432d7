// Sums of rows of channels. See for_each_instruction_set.inl for the macros.
namespace norma::simd::NORMA_SIMD {

// to[n] = factor * (rows[0] + ... + rows[count - 1]), added in this order; count >= 1.
NORMA_SIMD_TARGET inline void sum_of_rows(const float* const* rows, std::int64_t count, std::int64_t n, float factor, float* to) {
  std::int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    const float* from = rows[0] + i;
    Vec a = load(from), b = load(from + kWidth), c = load(from + 2 * kWidth), d = load(from + 3 * kWidth);
    for (std::int64_t k = 1; k < count; ++k) {
      from = rows[k] + i;
      a = a + load(from);
      b = b + load(from + kWidth);
      c = c + load(from + 2 * kWidth);
      d = d + load(from + 3 * kWidth);
    }
    store(to + i, a * factor);
    store(to + i + kWidth, b * factor);
    store(to + i + 2 * kWidth, c * factor);
    store(to + i + 3 * kWidth, d * factor);
  }
  for (; i < n; ++i) {
    float sum = rows[0][i];
    for (std::int64_t k = 1; k < count; ++k) sum += rows[k][i];
    to[i] = sum * factor;
  }
}

// to[n] = sum over k of weights[k * n + i] * rows[k][i].
NORMA_SIMD_TARGET inline void weighted_sum_of_rows(const float* const* rows, const float* weights, std::int64_t count, std::int64_t n, float* to) {
  std::int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    Vec a = broadcast(0.0f), b = a, c = a, d = a;
    const float* weight = weights + i;
    for (std::int64_t k = 0; k < count; ++k, weight += n) {
      const float* const from = rows[k] + i;
      a = a + load(weight) * load(from);
      b = b + load(weight + kWidth) * load(from + kWidth);
      c = c + load(weight + 2 * kWidth) * load(from + 2 * kWidth);
      d = d + load(weight + 3 * kWidth) * load(from + 3 * kWidth);
    }
    store(to + i, a);
    store(to + i + kWidth, b);
    store(to + i + 2 * kWidth, c);
    store(to + i + 3 * kWidth, d);
  }
  for (; i < n; ++i) {
    float sum = 0.0f;
    for (std::int64_t k = 0; k < count; ++k) sum += weights[k * n + i] * rows[k][i];
    to[i] = sum;
  }
}

// Between four rows: wx of the way from a to b and from c to d, then wy of the way from the upper to the lower.
NORMA_SIMD_TARGET inline void between_rows(const float* a, const float* b, const float* c, const float* d, float wx, float wy, std::int64_t n,
                                           float* to) {
  std::int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    const Vec upper = load(a + i) + (load(b + i) - load(a + i)) * wx;
    const Vec lower = load(c + i) + (load(d + i) - load(c + i)) * wx;
    store(to + i, upper + (lower - upper) * wy);
  }
  for (; i < n; ++i) {
    const float upper = a[i] + (b[i] - a[i]) * wx;
    const float lower = c[i] + (d[i] - c[i]) * wx;
    to[i] = upper + (lower - upper) * wy;
  }
}

inline constexpr ::norma::features::detail::GridKernels kGridKernels{sum_of_rows, weighted_sum_of_rows, between_rows};

}  // namespace norma::simd::NORMA_SIMD
