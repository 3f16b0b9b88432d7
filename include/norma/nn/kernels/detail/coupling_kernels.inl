// The elementwise part of a coupling step, one position at a time. See linalg/detail/for_each_instruction_set.inl for the macros.
namespace norma::simd::NORMA_SIMD {

// Relative error <= 3e-7 for every x, NaN for NaN. atan(x) = a + atan((x - c) / (1 + c x)) with c = tan(a): a = 0, pi / 4 from tan(pi / 8) on,
// pi / 2 from tan(3 pi / 8) on; the odd polynomial of degree 9 in between is that of Cephes' atanf (S. Moshier, 1989).
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE Vec atan(Vec x) {
  const Vec size = x < 0.0f ? -x : x;
  const Vec zero{};
  const Vec far = -1.0f / size, middle = (size - 1.0f) / (size + 1.0f);
  const Vec r = size > 2.414213562373095f ? far : (size > 0.4142135623730950f ? middle : size);
  const Vec quarter = size > 0.4142135623730950f ? broadcast(0.78539816339744831f) : zero;
  const Vec start = size > 2.414213562373095f ? broadcast(1.5707963267948966f) : quarter;
  const Vec s = r * r;
  Vec p = s * 8.05374449538e-2f - 1.38776856032e-1f;
  p = p * s + 1.99777106478e-1f;
  p = p * s - 3.33329491539e-1f;
  const Vec angle = start + (p * s * r + r);
  return x < 0.0f ? -angle : angle;
}

// L(s) and L'(s) of a raw log-scale, as nn::clamp_scale has them.
struct ClampedVec {
  Vec value, slope;
};
template <nn::ScaleClamp kClamp>
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE ClampedVec clamp_scale(Vec s, float alpha) {
  if constexpr (kClamp == nn::ScaleClamp::atan) {
    const Vec ratio = s * (1.0f / alpha);
    return {atan(ratio) * (0.636f * alpha), 0.636f / (ratio * ratio + 1.0f)};
  } else {
    const Vec t = tanh(kClamp == nn::ScaleClamp::tanh ? s : s * (1.0f / alpha));
    const Vec slope = 1.0f - t * t;
    return {t * alpha, kClamp == nn::ScaleClamp::tanh ? slope * alpha : slope};
  }
}

// y = x exp(L(gain s)) + gain t; returns sum L. y may be x.
template <nn::ScaleClamp kClamp>
NORMA_SIMD_TARGET inline float couple(const nn::detail::CouplingRow& row, const float* x, float* y) {
  const float alpha = row.alpha, gain = row.gain;
  Vec sum{};
  std::int64_t i = 0;
  for (; i + kWidth <= row.count; i += kWidth) {
    const Vec scale = clamp_scale<kClamp>(load(row.s + i) * gain, alpha).value;
    sum += scale;
    store(y + i, load(x + i) * exp(scale) + load(row.t + i) * gain);
  }
  if (i < row.count) {
    const std::int64_t left = row.count - i;
    const Vec scale = clamp_scale<kClamp>(load_part(row.s + i, left) * gain, alpha).value;  // 0 in the lanes behind
    sum += scale;
    store_part(y + i, load_part(x + i, left) * exp(scale) + load_part(row.t + i, left) * gain, left);
  }
  return sum_of_lanes(sum);
}

// x = (y - gain t) exp(-L(gain s)). x may be y.
template <nn::ScaleClamp kClamp>
NORMA_SIMD_TARGET inline void uncouple(const nn::detail::CouplingRow& row, const float* y, float* x) {
  const float alpha = row.alpha, gain = row.gain;
  std::int64_t i = 0;
  for (; i + kWidth <= row.count; i += kWidth) {
    const Vec scale = clamp_scale<kClamp>(load(row.s + i) * gain, alpha).value;
    store(x + i, (load(y + i) - load(row.t + i) * gain) * exp(-scale));
  }
  if (i < row.count) {
    const std::int64_t left = row.count - i;
    const Vec scale = clamp_scale<kClamp>(load_part(row.s + i, left) * gain, alpha).value;
    store_part(x + i, (load_part(y + i, left) - load_part(row.t + i, left) * gain) * exp(-scale), left);
  }
}

// From y and dL/dy: x, dL/dx in their places, dL/ds and dL/dt in those of s and t.
template <nn::ScaleClamp kClamp>
NORMA_SIMD_TARGET inline void uncouple_gradient(const nn::detail::CouplingRow& row, float* y, float* dy, float dlogdet, float* ds, float* dt) {
  const float alpha = row.alpha, gain = row.gain;
  for (std::int64_t i = 0; i < row.count; i += kWidth) {
    const std::int64_t left = row.count - i;
    const bool whole = left >= kWidth;
    const auto clamped = clamp_scale<kClamp>((whole ? load(row.s + i) : load_part(row.s + i, left)) * gain, alpha);
    const Vec moved = (whole ? load(y + i) : load_part(y + i, left)) - (whole ? load(row.t + i) : load_part(row.t + i, left)) * gain;
    const Vec d = whole ? load(dy + i) : load_part(dy + i, left);
    const Vec x = moved * exp(-clamped.value), dx = d * exp(clamped.value);
    const Vec to_s = (d * moved + dlogdet) * clamped.slope * gain, to_t = d * gain;
    if (whole) {
      store(y + i, x);
      store(dy + i, dx);
      store(ds + i, to_s);
      store(dt + i, to_t);
    } else {
      store_part(y + i, x, left);
      store_part(dy + i, dx, left);
      store_part(ds + i, to_s, left);
      store_part(dt + i, to_t, left);
    }
  }
}

NORMA_SIMD_TARGET inline void atan_range(const float* x, float* y, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(y + i, atan(load(x + i)));
  if (i < count) store_part(y + i, atan(load_part(x + i, count - i)), count - i);
}

inline constexpr nn::detail::CouplingKernels kCouplingKernels{
    {&couple<nn::ScaleClamp::tanh>, &couple<nn::ScaleClamp::tanh_of_ratio>, &couple<nn::ScaleClamp::atan>},
    {&uncouple<nn::ScaleClamp::tanh>, &uncouple<nn::ScaleClamp::tanh_of_ratio>, &uncouple<nn::ScaleClamp::atan>},
    {&uncouple_gradient<nn::ScaleClamp::tanh>, &uncouple_gradient<nn::ScaleClamp::tanh_of_ratio>, &uncouple_gradient<nn::ScaleClamp::atan>},
    &atan_range};

}  // namespace norma::simd::NORMA_SIMD
