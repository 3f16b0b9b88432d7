// Rows of attention's gradients. See linalg/detail/for_each_instruction_set.inl for the macros.
namespace norma::simd::NORMA_SIMD {

// d = factor * p (d - sum of p d) in place: from the gradient of softmax's result p to that of its argument.
NORMA_SIMD_TARGET inline void softmax_gradient_row(const float* p, float* d, std::int64_t count, float factor) {
  Vec sums{};
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) sums += load(p + i) * load(d + i);
  const std::int64_t whole = i, rest = count - i;
  if (rest > 0) sums += load_part(p + i, rest) * load_part(d + i, rest);
  const float sum = sum_of_lanes(sums);
  for (i = 0; i < whole; i += kWidth) store(d + i, load(p + i) * (load(d + i) - sum) * factor);
  if (rest > 0) store_part(d + i, load_part(p + i, rest) * (load_part(d + i, rest) - sum) * factor, rest);
}

// products[h, g] += sum over i < count of a[h, i] b[g, i] and sums[h] += sum of a[h, i]; heads lie head_stride apart.
NORMA_SIMD_TARGET inline void head_products(const float* a, const float* b, std::int64_t head_stride, std::int64_t count, int heads,
                                            float* products, float* sums) {
  constexpr int kBlock = 3;  // of each side; heads beyond the last are the last once more
  for (int h = 0; h < heads; h += kBlock) {
    for (int g = 0; g < heads; g += kBlock) {
      const float *left[kBlock], *right[kBlock];
      for (int k = 0; k < kBlock; ++k) {
        left[k] = a + (h + k < heads ? h + k : heads - 1) * head_stride;
        right[k] = b + (g + k < heads ? g + k : heads - 1) * head_stride;
      }
      Vec s00{}, s01{}, s02{}, s10{}, s11{}, s12{}, s20{}, s21{}, s22{}, t0{}, t1{}, t2{};
      for (std::int64_t i = 0; i < count; i += kWidth) {
        const std::int64_t rest = count - i;
        const bool whole = rest >= kWidth;
        const Vec a0 = whole ? load(left[0] + i) : load_part(left[0] + i, rest), b0 = whole ? load(right[0] + i) : load_part(right[0] + i, rest);
        const Vec a1 = whole ? load(left[1] + i) : load_part(left[1] + i, rest), b1 = whole ? load(right[1] + i) : load_part(right[1] + i, rest);
        const Vec a2 = whole ? load(left[2] + i) : load_part(left[2] + i, rest), b2 = whole ? load(right[2] + i) : load_part(right[2] + i, rest);
        s00 += a0 * b0, s01 += a0 * b1, s02 += a0 * b2;
        s10 += a1 * b0, s11 += a1 * b1, s12 += a1 * b2;
        s20 += a2 * b0, s21 += a2 * b1, s22 += a2 * b2;
        t0 += a0, t1 += a1, t2 += a2;
      }
      const float tile[kBlock][kBlock] = {{sum_of_lanes(s00), sum_of_lanes(s01), sum_of_lanes(s02)},
                                          {sum_of_lanes(s10), sum_of_lanes(s11), sum_of_lanes(s12)},
                                          {sum_of_lanes(s20), sum_of_lanes(s21), sum_of_lanes(s22)}};
      const float totals[kBlock] = {sum_of_lanes(t0), sum_of_lanes(t1), sum_of_lanes(t2)};
      for (int k = 0; k < kBlock && h + k < heads; ++k) {
        for (int j = 0; j < kBlock && g + j < heads; ++j) products[(h + k) * heads + g + j] += tile[k][j];
        if (g == 0) sums[h + k] += totals[k];
      }
    }
  }
}

inline constexpr nn::detail::AttentionBackwardKernels kAttentionBackwardKernels{&softmax_gradient_row, &head_products};

}  // namespace norma::simd::NORMA_SIMD
