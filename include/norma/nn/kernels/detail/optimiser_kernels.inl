// Steps of optimisers over flat ranges. See linalg/detail/for_each_instruction_set.inl for the macros.
// Whole vectors and the rest of a range compute alike, so a number's bits do not depend on where its range begins.
namespace norma::simd::NORMA_SIMD {

// The instruction itself: correctly rounded, 0 for 0, NaN below.
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE Vec square_root(Vec x) {
#if NORMA_HAS_ELEMENTWISE_SQRT
  return __builtin_elementwise_sqrt(x);
#elif NORMA_X86_DISPATCH && NORMA_SIMD_WIDTH == 4
  return __builtin_ia32_sqrtps(x);
#elif NORMA_X86_DISPATCH && NORMA_SIMD_WIDTH == 8
  return __builtin_ia32_sqrtps256(x);
#elif NORMA_X86_DISPATCH && NORMA_SIMD_WIDTH == 16
  // Halves: the compilers do not share a name for the whole, and the unit is 256 bits wide in most processors.
  typedef float Half __attribute__((vector_size(32)));
  struct Halves {
    Half low, high;
  };
  const Halves from = __builtin_bit_cast(Halves, x);
  return __builtin_bit_cast(Vec, Halves{__builtin_ia32_sqrtps256(from.low), __builtin_ia32_sqrtps256(from.high)});
#elif NORMA_HAS_VECTOR_EXTENSION
  float lanes[kWidth];
  store(lanes, x);
  for (float& lane : lanes) lane = std::sqrt(lane);
  return load(lanes);
#else
  return std::sqrt(x);
#endif
}

NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void adam_vector(const nn::detail::AdamStep& s, Vec& w, Vec g, Vec& m, Vec& v) {
  w = w * s.shrink;
  g = g + w * s.coupled;
  m = m * s.beta1 + g * s.keep1;
  v = v * s.beta2 + g * g * s.keep2;
  w = w - s.rate * (m / (square_root(v) * s.inverse_root + s.epsilon));
}
NORMA_SIMD_TARGET inline void adam_range(const nn::detail::AdamStep& step, const float* g, float* w, float* m, float* v, std::int64_t count) {
  const nn::detail::AdamStep s = step;  // the compiler need not fear that w is one of its numbers
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    Vec vw = load(w + i), vm = load(m + i), vv = load(v + i);
    adam_vector(s, vw, load(g + i), vm, vv);
    store(w + i, vw);
    store(m + i, vm);
    store(v + i, vv);
  }
  if (i < count) {
    const std::int64_t rest = count - i;
    Vec vw = load_part(w + i, rest), vm = load_part(m + i, rest), vv = load_part(v + i, rest);
    adam_vector(s, vw, load_part(g + i, rest), vm, vv);
    store_part(w + i, vw, rest);
    store_part(m + i, vm, rest);
    store_part(v + i, vv, rest);
  }
}

NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void sgd_vector(const nn::detail::SgdStep& s, Vec& w, Vec g, Vec& v) {
  g = g + w * s.decay;
  v = v * s.momentum + g;
  w = w - s.rate * (s.nesterov ? g + v * s.momentum : v);
}
NORMA_SIMD_TARGET inline void sgd_range(const nn::detail::SgdStep& step, const float* g, float* w, float* v, std::int64_t count) {
  const nn::detail::SgdStep s = step;
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    Vec vw = load(w + i), vv = load(v + i);
    sgd_vector(s, vw, load(g + i), vv);
    store(w + i, vw);
    store(v + i, vv);
  }
  if (i < count) {
    const std::int64_t rest = count - i;
    Vec vw = load_part(w + i, rest), vv = load_part(v + i, rest);
    sgd_vector(s, vw, load_part(g + i, rest), vv);
    store_part(w + i, vw, rest);
    store_part(v + i, vv, rest);
  }
}

NORMA_SIMD_TARGET inline void multiply_range_by(float* x, float factor, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(x + i, load(x + i) * factor);
  for (; i < count; ++i) x[i] *= factor;
}

// Sum of squares in double, which no float can overflow: four chains of vectors, then the chains, then the rest.
NORMA_SIMD_TARGET inline double sum_of_squares(const float* x, std::int64_t count) {
  double total = 0.0;
  std::int64_t i = 0;
#if NORMA_HAS_VECTOR_EXTENSION
  constexpr int kHalf = kWidth / 2;
  typedef float Narrow __attribute__((vector_size(4 * (NORMA_SIMD_WIDTH / 2))));
  typedef float LooseNarrow __attribute__((vector_size(4 * (NORMA_SIMD_WIDTH / 2)), aligned(4), may_alias));
  typedef double Wide __attribute__((vector_size(8 * (NORMA_SIMD_WIDTH / 2))));
  Wide chain[4] = {};
  for (; i + 4 * kHalf <= count; i += 4 * kHalf) {
    NORMA_UNROLL_TIMES(4)
    for (int c = 0; c < 4; ++c) {
      const Narrow narrow = *reinterpret_cast<const LooseNarrow*>(x + i + c * kHalf);
      const Wide wide = __builtin_convertvector(narrow, Wide);
      chain[c] += wide * wide;
    }
  }
  const Wide sums = (chain[0] + chain[1]) + (chain[2] + chain[3]);
  for (int lane = 0; lane < kHalf; ++lane) total += sums[lane];
#endif
  for (; i < count; ++i) total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return total;
}

inline constexpr nn::detail::OptimiserKernels kOptimiserKernels{&adam_range, &sgd_range, &multiply_range_by, &sum_of_squares};

}  // namespace norma::simd::NORMA_SIMD
