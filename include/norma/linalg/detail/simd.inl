// Short vectors of one instruction set. See for_each_instruction_set.inl for the macros.
namespace norma::simd::NORMA_SIMD {

inline constexpr int kWidth = NORMA_SIMD_WIDTH;

#if NORMA_HAS_VECTOR_EXTENSION
typedef float Vec __attribute__((vector_size(4 * NORMA_SIMD_WIDTH)));
typedef std::uint32_t Bits __attribute__((vector_size(4 * NORMA_SIMD_WIDTH)));
// As they lie in memory: any alignment, over floats.
typedef float Loose __attribute__((vector_size(4 * NORMA_SIMD_WIDTH), aligned(4), may_alias));
#else
using Vec = float;
using Bits = std::uint32_t;
using Loose = float;
#endif

NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE Vec load(const float* p) { return *reinterpret_cast<const Loose*>(p); }
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void store(float* p, Vec v) { *reinterpret_cast<Loose*>(p) = v; }
// A hint; any address is fine.
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void prefetch(const float* p) {
#if NORMA_HAS_VECTOR_EXTENSION
  __builtin_prefetch(p);
#else
  (void)p;
#endif
}
// x - 0 is x for every x, also for -0.
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE Vec broadcast(float x) { return x - Vec{}; }
// The first `count` lanes, zero behind them; 0 < count < kWidth.
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE Vec load_part(const float* p, std::int64_t count) {
  float lanes[kWidth] = {};
  for (std::int64_t i = 0; i < count; ++i) lanes[i] = p[i];
  return load(lanes);
}
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void store_part(float* p, Vec v, std::int64_t count) {
  float lanes[kWidth];
  store(lanes, v);
  for (std::int64_t i = 0; i < count; ++i) p[i] = lanes[i];
}
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE float sum_of_lanes(Vec v) {
  float lanes[kWidth];
  store(lanes, v);
  for (int width = kWidth / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// The larger one; NaN if either is.
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE Vec max_or_nan(Vec a, Vec b) {
  const Vec larger = a > b ? a : b;  // b where one of them is NaN
  return a != a ? a : larger;
}
// Limits that let NaN through.
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE Vec at_least(Vec x, float low) { return broadcast(low) > x ? broadcast(low) : x; }
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE Vec at_most(Vec x, float high) { return broadcast(high) < x ? broadcast(high) : x; }

// exp(x) with relative error <= 2e-7 for x in [-87.3, 88.3], the value at the border outside, NaN for NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2 (two-part ln 2 after Cody and Waite); the Taylor polynomial of degree 7 leaves r^8 / 8! <= 5e-9.
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE Vec exp(Vec x) {
  constexpr float kShift = 0x1.8p23f;  // adding it rounds to an integer that then stands in the low bits
  x = at_most(at_least(x, -87.3f), 88.3f);
  const Vec shifted = x * 1.44269504088896341f + kShift;
  const Vec n = shifted - kShift;
  Vec r = x - n * 0x1.62e4p-1f;
  r = r - n * 0x1.7f7d1cp-20f;
  Vec p = r * (1.0f / 5040.0f) + (1.0f / 720.0f);
  p = p * r + (1.0f / 120.0f);
  p = p * r + (1.0f / 24.0f);
  p = p * r + (1.0f / 6.0f);
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Bits power = (__builtin_bit_cast(Bits, shifted) << 23) + 0x3f800000u;
  return p * __builtin_bit_cast(Vec, power);
}
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }
// Absolute error <= 2e-7, relative too: below 0.625 by a rational-free odd polynomial (minimax, after Cephes' tanhf).
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE Vec tanh(Vec x) {
  const Vec size = x < 0.0f ? -x : x;
  const Vec far = 1.0f - 2.0f / (exp(2.0f * size) + 1.0f);
  const Vec s = x * x;
  Vec p = s * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  const Vec near = x + x * s * p;
  return size < 0.625f ? near : (x < 0.0f ? -far : far);
}
// erfc(z) for z >= 0, relative error <= 3e-7 + 2e-7 z^2: a Chebyshev fit good to 1.2e-7 (Press et al., Numerical Recipes, section 6.2), and
// the rounding of an exponent of about -z^2.
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE Vec erfc_of_positive(Vec z) {
  const Vec t = 1.0f / (1.0f + 0.5f * z);
  Vec p = t * 0.17087277f - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  p = p * t - 1.26551223f;
  return t * exp(p - z * z);
}
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE Vec gelu(Vec x) {
  const Vec z = x * 0.70710678118654752f;
  const Vec tail = erfc_of_positive(z < 0.0f ? -z : z);  // twice the normal probability beyond |x|
  return 0.5f * x * (x < 0.0f ? tail : 2.0f - tail);
}

// The less frequent ones stand apart and are called, which keeps the loops that use them small.
NORMA_SIMD_TARGET NORMA_NOINLINE inline Vec activate_other(Vec x, Activation activation) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::relu: return at_least(x, 0.0f);
    case Activation::relu6: return at_most(at_least(x, 0.0f), 6.0f);
    case Activation::silu: return x * sigmoid(x);
    case Activation::gelu: return gelu(x);
    case Activation::sigmoid: return sigmoid(x);
    case Activation::tanh: return tanh(x);
    case Activation::leaky_relu: return x < 0.0f ? x * kLeakyReluSlope : x;
    case Activation::hard_swish: return x * at_most(at_least(x + 3.0f, 0.0f), 6.0f) * (1.0f / 6.0f);
  }
  return x;
}
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE Vec activate(Vec x, Activation activation) {
  if (activation == Activation::none) return x;
  if (activation == Activation::relu) return at_least(x, 0.0f);
  return activate_other(x, activation);
}

}  // namespace norma::simd::NORMA_SIMD
