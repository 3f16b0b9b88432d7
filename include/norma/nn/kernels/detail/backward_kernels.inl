// Inner loops of the layers' gradients. See linalg/detail/for_each_instruction_set.inl for the macros.
namespace norma::simd::NORMA_SIMD {

// c[rows, kPanel] += sum over k of a[k, row] b[k, column]: both operands have k as the slow index, so nothing is packed. Every element is
// one chain of k multiply-adds from 0 upwards that is then added to c, so bits do not depend on how c is cut into tiles.
template <std::size_t... R>
NORMA_SIMD_TARGET inline void outer_of(std::index_sequence<R...>, const float* NORMA_RESTRICT a, std::int64_t a_stride,
                                       const float* NORMA_RESTRICT b, std::int64_t b_stride, std::int64_t k, float* NORMA_RESTRICT c,
                                       std::int64_t c_stride) {
  constexpr std::size_t kRows = sizeof...(R);
  Vec left[kRows], right[kRows];
  ((left[R] = Vec{}, right[R] = Vec{}), ...);
  for (std::int64_t i = 0; i < k; ++i) {
    const Vec b0 = load(b), b1 = load(b + kWidth);
    ((left[R] += b0 * a[R], right[R] += b1 * a[R]), ...);
    a += a_stride;
    b += b_stride;
  }
  ((store(c + static_cast<std::int64_t>(R) * c_stride, load(c + static_cast<std::int64_t>(R) * c_stride) + left[R]),
    store(c + static_cast<std::int64_t>(R) * c_stride + kWidth, load(c + static_cast<std::int64_t>(R) * c_stride + kWidth) + right[R])),
   ...);
}
template <std::size_t Rows>
NORMA_SIMD_TARGET inline void outer_kernel(const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, std::int64_t k,
                                           float* c, std::int64_t c_stride) {
  outer_of(std::make_index_sequence<Rows>{}, a, a_stride, b, b_stride, k, c, c_stride);
}

// A d, the transpose of the output transform of Winograd's algorithm (convolution_kernels.inl).
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void winograd_spread(Vec d0, Vec d1, Vec d2, Vec d3, Six& r) {
  const Vec e = d0 + 0.5f * d2, f = kRootHalf * (d1 + 0.5f * d3);
  const Vec g = d0 + 2.0f * d2, h = kRoot2 * (d1 + 2.0f * d3);
  r.v[0] = d0;
  r.v[1] = e + f;
  r.v[2] = e - f;
  r.v[3] = g + h;
  r.v[4] = g - h;
  r.v[5] = d3;
}
// to[36][point_stride] = A d A^T of one 4x4 tile of the output's gradient, for all channels; `from` points to its 16 positions.
NORMA_SIMD_TARGET inline void winograd_gradient_tile(const float* const* from, std::int64_t channels, float* to, std::int64_t point_stride) {
  Six columns[4];
  for (std::int64_t c = 0; c < channels; c += kWidth) {
    const std::int64_t count = channels - c;
    for (int j = 0; j < 4; ++j) {
      if (count >= kWidth) {
        winograd_spread(load(from[j] + c), load(from[4 + j] + c), load(from[8 + j] + c), load(from[12 + j] + c), columns[j]);
      } else {
        winograd_spread(load_part(from[j] + c, count), load_part(from[4 + j] + c, count), load_part(from[8 + j] + c, count),
                        load_part(from[12 + j] + c, count), columns[j]);
      }
    }
    // Whole vectors also at the end: rows of `to` have room for them.
    for (int i = 0; i < 6; ++i) {
      Six row;
      winograd_spread(columns[0].v[i], columns[1].v[i], columns[2].v[i], columns[3].v[i], row);
      for (int j = 0; j < 6; ++j) store(to + (i * 6 + j) * point_stride + c, row.v[j]);
    }
  }
}
// G^T u, the transpose of the weights' transform.
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void winograd_fold(Vec u0, Vec u1, Vec u2, Vec u3, Vec u4, Vec u5, Vec& r0, Vec& r1, Vec& r2) {
  const Vec s = u1 + u2, d = u1 - u2, t = u3 + u4, e = u3 - u4;
  r0 = u0 + (t * (1.0f / 6.0f) - s * (2.0f / 3.0f));
  r1 = e * (kRoot2 / 6.0f) - d * (kRoot2 / 3.0f);
  r2 = u5 + (t - s) * (1.0f / 3.0f);
}
// to[i * 9 + tap] += G^T u G for the input channels of one output channel; u is [36, point_stride], with room for whole vectors.
NORMA_SIMD_TARGET inline void winograd_weight_gradient(const float* u, std::int64_t point_stride, std::int64_t channels, float* to) {
  for (std::int64_t c = 0; c < channels; c += kWidth) {
    Vec rows[3][6], out[9];
    for (int j = 0; j < 6; ++j) {
      const float* p = u + j * point_stride + c;
      winograd_fold(load(p), load(p + 6 * point_stride), load(p + 12 * point_stride), load(p + 18 * point_stride),
                    load(p + 24 * point_stride), load(p + 30 * point_stride), rows[0][j], rows[1][j], rows[2][j]);
    }
    for (int i = 0; i < 3; ++i) {
      winograd_fold(rows[i][0], rows[i][1], rows[i][2], rows[i][3], rows[i][4], rows[i][5], out[3 * i], out[3 * i + 1], out[3 * i + 2]);
    }
    float lanes[9][kWidth];
    for (int tap = 0; tap < 9; ++tap) store(lanes[tap], out[tap]);
    const std::int64_t count = channels - c < kWidth ? channels - c : kWidth;
    for (std::int64_t i = 0; i < count; ++i) {
      for (int tap = 0; tap < 9; ++tap) to[(c + i) * 9 + tap] += lanes[tap][i];
    }
  }
}

// The factor by which an activation passes a gradient on. `at` is the activation's result, or its argument where
// nn::gradient_needs_argument says so. Where a bend lies exactly on `at`, as PyTorch; NaN passes.
NORMA_SIMD_TARGET NORMA_NOINLINE inline Vec activation_gradient(Vec g, Vec at, Activation activation) {
  const Vec zero{};
  switch (activation) {
    case Activation::none: return g;
    case Activation::relu: return at <= 0.0f ? zero : g;
    case Activation::relu6: return at <= 0.0f ? zero : at >= 6.0f ? zero : g;
    case Activation::sigmoid: return g * (at * (1.0f - at));
    case Activation::tanh: return g * (1.0f - at * at);
    case Activation::leaky_relu: return at <= 0.0f ? g * kLeakyReluSlope : g;
    case Activation::silu: {
      const Vec s = sigmoid(at);
      return g * (s * (1.0f + at * (1.0f - s)));
    }
    case Activation::gelu: {
      const Vec z = at * 0.70710678118654752f;
      const Vec tail = erfc_of_positive(z < 0.0f ? -z : z);
      const Vec probability = 0.5f * (at < 0.0f ? tail : 2.0f - tail);
      return g * (probability + at * (0.39894228040143268f * exp(at * at * -0.5f)));
    }
    case Activation::hard_swish: {
      const Vec between = g * (at * (1.0f / 3.0f) + 0.5f);
      return at < -3.0f ? zero : at > 3.0f ? g : between;
    }
  }
  return g;
}
// dx = dy * activation'(at), added to dx where `sum`; dx may be dy.
NORMA_SIMD_TARGET inline void activation_gradient_range(const float* dy, const float* at, float* dx, std::int64_t count,
                                                        Activation activation, bool sum) {
  for (std::int64_t i = 0; i < count; i += kWidth) {
    const std::int64_t left = count - i;
    if (left >= kWidth) {
      const Vec d = activation_gradient(load(dy + i), load(at + i), activation);
      store(dx + i, sum ? d + load(dx + i) : d);
    } else {
      const Vec d = activation_gradient(load_part(dy + i, left), load_part(at + i, left), activation);
      store_part(dx + i, sum ? d + load_part(dx + i, left) : d, left);
    }
  }
}
// y += x * factor
NORMA_SIMD_TARGET inline void add_scaled_range(const float* x, float factor, float* y, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(y + i, load(y + i) + load(x + i) * factor);
  if (i < count) store_part(y + i, load_part(y + i, count - i) + load_part(x + i, count - i) * factor, count - i);
}
// y += a * b
NORMA_SIMD_TARGET inline void add_product_range(const float* a, const float* b, float* y, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(y + i, load(y + i) + load(a + i) * load(b + i));
  if (i < count) store_part(y + i, load_part(y + i, count - i) + load_part(a + i, count - i) * load_part(b + i, count - i), count - i);
}

// Over `positions` rows: sums[c] = sum of dy, products[c] = sum of dy (x - mean[c]); without a mean of dy x.
NORMA_SIMD_TARGET inline void sum_gradients(const float* dy, const float* x, std::int64_t positions, std::int64_t dy_stride,
                                            std::int64_t x_stride, std::int64_t channels, const float* mean, float* sums, float* products) {
  for (std::int64_t c = 0; c < channels; c += kWidth) {
    const std::int64_t count = channels - c;
    const bool whole = count >= kWidth;
    const Vec middle = mean == nullptr ? Vec{} : whole ? load(mean + c) : load_part(mean + c, count);
    Vec sum{}, product{};
    for (std::int64_t i = 0; i < positions; ++i) {
      const Vec d = whole ? load(dy + i * dy_stride + c) : load_part(dy + i * dy_stride + c, count);
      const Vec v = whole ? load(x + i * x_stride + c) : load_part(x + i * x_stride + c, count);
      sum += d;
      product += d * (v - middle);
    }
    whole ? store(sums + c, sum) : store_part(sums + c, sum, count);
    whole ? store(products + c, product) : store_part(products + c, product, count);
  }
}
// dx = dy a[c] + (x - mean[c]) b[c] + d[c], added to dx where `sum`; dx may be dy.
NORMA_SIMD_TARGET inline void apply_gradients(const float* dy, const float* x, std::int64_t positions, std::int64_t channels,
                                              const float* mean, const float* a, const float* b, const float* d, float* dx, bool sum) {
  for (std::int64_t c = 0; c < channels; c += kWidth) {
    const std::int64_t count = channels - c;
    const bool whole = count >= kWidth;
    const Vec middle = whole ? load(mean + c) : load_part(mean + c, count);
    const Vec va = whole ? load(a + c) : load_part(a + c, count);
    const Vec vb = whole ? load(b + c) : load_part(b + c, count);
    const Vec vd = whole ? load(d + c) : load_part(d + c, count);
    for (std::int64_t i = 0; i < positions; ++i) {
      const std::int64_t at = i * channels + c;
      const Vec g = whole ? load(dy + at) : load_part(dy + at, count);
      const Vec v = whole ? load(x + at) : load_part(x + at, count);
      Vec r = g * va + (v - middle) * vb + vd;
      if (sum) r += whole ? load(dx + at) : load_part(dx + at, count);
      whole ? store(dx + at, r) : store_part(dx + at, r, count);
    }
  }
}

// The gradient of a window's largest value goes to the first position that holds it (a NaN counts as the largest).
NORMA_SIMD_TARGET inline void max_gradient(const nn::detail::Window& window, std::int64_t channels, std::int64_t position_stride,
                                           const float* y, const float* dy, float* dx) {
  for (std::int64_t c = 0; c < channels; c += kWidth) {
    const std::int64_t count = channels - c;
    const bool whole = count >= kWidth;
    const Vec most = whole ? load(y + c) : load_part(y + c, count);
    Vec left = whole ? load(dy + c) : load_part(dy + c, count);  // what no position has taken yet
    for (std::int64_t i = 0; i < window.height; ++i) {
      for (std::int64_t j = 0; j < window.width; ++j) {
        const std::int64_t at = i * window.line_stride + j * position_stride + c;
        const Vec v = whole ? load(window.first + at) : load_part(window.first + at, count);
        const Vec zero{};
        const Vec taken = v == most ? left : v != v ? left : zero;
        left = v == most ? zero : v != v ? zero : left;
        whole ? store(dx + at, load(dx + at) + taken) : store_part(dx + at, load_part(dx + at, count) + taken, count);
      }
    }
  }
}

template <std::size_t... R>
constexpr nn::detail::BackwardKernels make_backward_kernels(std::index_sequence<R...>) {
  return {kTileRows,         kPanel,           {nullptr, &outer_kernel<R + 1>...}, &winograd_gradient_tile, &winograd_weight_gradient,
          &activation_gradient_range, &add_scaled_range, &add_product_range, &sum_gradients, &apply_gradients, &max_gradient};
}
inline constexpr nn::detail::BackwardKernels kBackwardKernels = make_backward_kernels(std::make_index_sequence<kTileRows>{});

}  // namespace norma::simd::NORMA_SIMD
