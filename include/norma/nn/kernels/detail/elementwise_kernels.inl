// Loops over all elements. See linalg/detail/for_each_instruction_set.inl for the macros.
namespace norma::simd::NORMA_SIMD {

NORMA_SIMD_TARGET inline void activate_range(const float* x, float* y, std::int64_t count, Activation activation) {
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(y + i, activate(load(x + i), activation));
  if (i < count) store_part(y + i, activate(load_part(x + i, count - i), activation), count - i);
}
NORMA_SIMD_TARGET inline void add_range(const float* a, const float* b, float* y, std::int64_t count, Activation activation) {
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(y + i, activate(load(a + i) + load(b + i), activation));
  if (i < count) store_part(y + i, activate(load_part(a + i, count - i) + load_part(b + i, count - i), activation), count - i);
}
NORMA_SIMD_TARGET inline void multiply_range(const float* a, const float* b, float* y, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(y + i, load(a + i) * load(b + i));
  if (i < count) store_part(y + i, load_part(a + i, count - i) * load_part(b + i, count - i), count - i);
}
// sums[c] = sum over positions of x[c], or of (x[c] - mean[c])^2 where there is a mean.
NORMA_SIMD_TARGET inline void sum_positions(const float* x, std::int64_t positions, std::int64_t stride, std::int64_t channels,
                                            const float* mean, float* sums) {
  for (std::int64_t c = 0; c < channels; c += kWidth) {
    const std::int64_t count = channels - c;
    const bool whole = count >= kWidth;
    const Vec middle = mean == nullptr ? Vec{} : whole ? load(mean + c) : load_part(mean + c, count);
    Vec sum{};
    for (std::int64_t i = 0; i < positions; ++i) {
      const Vec d = (whole ? load(x + i * stride + c) : load_part(x + i * stride + c, count)) - middle;
      sum += mean == nullptr ? d : d * d;
    }
    whole ? store(sums + c, sum) : store_part(sums + c, sum, count);
  }
}
// y = (x - mean[c]) * factor[c]
NORMA_SIMD_TARGET inline void normalise_positions(const float* x, std::int64_t positions, std::int64_t stride, std::int64_t channels,
                                                  const float* mean, const float* factor, float* y) {
  for (std::int64_t c = 0; c < channels; c += kWidth) {
    const std::int64_t count = channels - c;
    const bool whole = count >= kWidth;
    const Vec middle = whole ? load(mean + c) : load_part(mean + c, count);
    const Vec scale = whole ? load(factor + c) : load_part(factor + c, count);
    for (std::int64_t i = 0; i < positions; ++i) {
      const std::int64_t at = i * stride + c;
      const Vec value = ((whole ? load(x + at) : load_part(x + at, count)) - middle) * scale;
      whole ? store(y + at, value) : store_part(y + at, value, count);
    }
  }
}
// y = activation(x * scale + shift) for one position's channels; shift may be null.
NORMA_SIMD_TARGET inline void scale_range(const float* x, const float* scale, const float* shift, float* y, std::int64_t count,
                                          Activation activation) {
  for (std::int64_t i = 0; i < count; i += kWidth) {
    const std::int64_t left = count - i;
    if (left >= kWidth) {
      const Vec product = load(x + i) * load(scale + i);
      store(y + i, activate(shift != nullptr ? product + load(shift + i) : product, activation));
    } else {
      const Vec product = load_part(x + i, left) * load_part(scale + i, left);
      store_part(y + i, activate(shift != nullptr ? product + load_part(shift + i, left) : product, activation), left);
    }
  }
}
// y = (a (1 - u) + b u) (1 - v) + (c (1 - u) + d u) v
NORMA_SIMD_TARGET inline void blend_range(const float* a, const float* b, const float* c, const float* d, float u, float v, float* y,
                                          std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += kWidth) {
    const std::int64_t left = count - i;
    const bool whole = left >= kWidth;
    const Vec va = whole ? load(a + i) : load_part(a + i, left), vb = whole ? load(b + i) : load_part(b + i, left);
    const Vec vc = whole ? load(c + i) : load_part(c + i, left), vd = whole ? load(d + i) : load_part(d + i, left);
    const Vec value = (va * (1.0f - u) + vb * u) * (1.0f - v) + (vc * (1.0f - u) + vd * u) * v;
    whole ? store(y + i, value) : store_part(y + i, value, left);
  }
}

inline constexpr nn::detail::ElementwiseKernels kElementwiseKernels{&activate_range, &add_range,     &multiply_range,     &scale_range,
                                                                    &blend_range,    &sum_positions, &normalise_positions};

}  // namespace norma::simd::NORMA_SIMD
