/// \file
/// Gaussian smoothing of anomaly maps, as scipy.ndimage.gaussian_filter does it by default: separable, radius int(4 sigma + 0.5),
/// weights exp(-x^2 / (2 sigma^2)) normalised to sum 1. Allocates nothing. Golden values: metrics card section 7.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>

#include <norma/config.hpp>
#include <norma/core/arena.hpp>
#include <norma/core/status.hpp>
#include <norma/core/view.hpp>

namespace norma::image {

/// What lies beyond the edge of a map a b c d; repeated as often as the radius asks.
enum class Border : std::uint8_t {
  reflect,  ///< d c b a | a b c d | d c b a, scipy's "reflect"
  mirror,   ///<   d c b | a b c d | c b a, scipy's "mirror", torch's "reflect"; anomalib uses it
};

/// Samples on each side of the centre.
constexpr std::int64_t gaussian_radius(double sigma) noexcept { return static_cast<std::int64_t>(4.0 * sigma + 0.5); }

/// Bytes of scratch that `gaussian_filter` takes for a map of that size.
template <class T>
constexpr std::size_t gaussian_scratch_bytes(std::int64_t height, std::int64_t width, double sigma) noexcept {
  const std::int64_t radius = gaussian_radius(sigma);
  return arena_bytes<T>(radius + 1) + arena_bytes<const T*>(2 * radius + 1) + arena_bytes<T>(width + 2 * radius) +
         arena_bytes<T>(height * width);
}

namespace detail {

/// The sample inside [0, n) that stands at position `i` of the continued axis.
constexpr std::int64_t border_index(std::int64_t i, std::int64_t n, Border border) noexcept {
  if (n == 1) return 0;
  const std::int64_t period = border == Border::reflect ? 2 * n : 2 * n - 2;
  i %= period;
  if (i < 0) i += period;
  if (i < n) return i;
  return border == Border::reflect ? period - 1 - i : period - i;
}

/// out[x] = weight[0] * lines[radius][x] + sum over k of weight[k] * (lines[radius - k][x] + lines[radius + k][x]).
/// Blocks of constant length are what every compiler vectorises.
template <class T>
NORMA_ALWAYS_INLINE void symmetric_sum_body(const T* const* lines, const T* weight, std::int64_t radius, std::int64_t n, T* out) noexcept {
  constexpr std::int64_t kBlock = 64 / sizeof(T) * 2;
  std::int64_t x = 0;
  for (; x + kBlock <= n; x += kBlock) {
    T sum[kBlock];
    const T* NORMA_RESTRICT centre = lines[radius] + x;
    for (std::int64_t j = 0; j < kBlock; ++j) sum[j] = weight[0] * centre[j];
    for (std::int64_t k = 1; k <= radius; ++k) {
      const T* NORMA_RESTRICT before = lines[radius - k] + x;
      const T* NORMA_RESTRICT after = lines[radius + k] + x;
      const T w = weight[k];
      for (std::int64_t j = 0; j < kBlock; ++j) sum[j] += w * (before[j] + after[j]);
    }
    for (std::int64_t j = 0; j < kBlock; ++j) out[x + j] = sum[j];
  }
  for (; x < n; ++x) {
    T sum = weight[0] * lines[radius][x];
    for (std::int64_t k = 1; k <= radius; ++k) sum += weight[k] * (lines[radius - k][x] + lines[radius + k][x]);
    out[x] = sum;
  }
}

template <class T>
void symmetric_sum_generic(const T* const* lines, const T* weight, std::int64_t radius, std::int64_t n, T* out) noexcept {
  symmetric_sum_body(lines, weight, radius, n, out);
}
#if NORMA_X86_DISPATCH
template <class T>
NORMA_TARGET_AVX2 void symmetric_sum_avx2(const T* const* lines, const T* weight, std::int64_t radius, std::int64_t n, T* out) noexcept {
  symmetric_sum_body(lines, weight, radius, n, out);
}
#endif

template <class T>
auto choose_symmetric_sum() noexcept {
#if NORMA_X86_DISPATCH
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &symmetric_sum_avx2<T>;
#endif
  return &symmetric_sum_generic<T>;
}

}  // namespace detail

/// Smooths `in` into `out` (same size; may be the same memory) with a standard deviation of `sigma` pixels; 0 copies.
/// Sums in T. A value that is not finite spreads over its neighbourhood.
template <class T>
Status gaussian_filter(MapView<const std::type_identity_t<T>> in, MapView<T> out, double sigma, Arena& arena,
                       Border border = Border::reflect) {
  static_assert(std::is_floating_point_v<T>);
  if (!std::isfinite(sigma) || sigma < 0.0 || sigma > 1e6) {
    return {Errc::invalid_argument, "image::gaussian_filter: expected a sigma within 0 and 1e6, found " + std::to_string(sigma)};
  }
  if (in.rows != out.rows || in.cols != out.cols) {
    return {Errc::shape_mismatch, "image::gaussian_filter: expected maps of one size, found " + std::to_string(in.rows) + " x " +
                                      std::to_string(in.cols) + " and " + std::to_string(out.rows) + " x " + std::to_string(out.cols)};
  }
  if (in.empty()) return {};
  const std::size_t bytes = gaussian_scratch_bytes<T>(in.rows, in.cols, sigma);
  if (bytes > arena.remaining()) {
    return {Errc::out_of_memory, "image::gaussian_filter: a map of " + std::to_string(in.rows) + " x " + std::to_string(in.cols) +
                                     " needs " + std::to_string(bytes) + " bytes of scratch, found " + std::to_string(arena.remaining())};
  }
  const Arena::Scope scope(arena);
  const std::int64_t radius = gaussian_radius(sigma);
  T* weight = arena.take<T>(radius + 1);
  const T** lines = arena.take<const T*>(2 * radius + 1);
  T* padded = arena.take<T>(in.cols + 2 * radius);
  T* between = arena.take<T>(in.rows * in.cols);
  if (weight == nullptr || lines == nullptr || padded == nullptr || between == nullptr) {
    return {Errc::out_of_memory, "image::gaussian_filter: scratch memory is too small"};
  }
  const auto bell = [&](std::int64_t k) {
    const auto x = static_cast<double>(k);
    return k == 0 ? 1.0 : std::exp(-0.5 * x * x / (sigma * sigma));
  };
  double sum = bell(0);
  for (std::int64_t k = 1; k <= radius; ++k) sum += 2.0 * bell(k);
  for (std::int64_t k = 0; k <= radius; ++k) weight[k] = static_cast<T>(bell(k) / sum);

  const auto pass = detail::choose_symmetric_sum<T>();
  for (std::int64_t r = 0; r < in.rows; ++r) {  // down the columns first, as scipy goes through the axes
    for (std::int64_t k = -radius; k <= radius; ++k) lines[radius + k] = in.data + detail::border_index(r + k, in.rows, border) * in.stride;
    pass(lines, weight, radius, in.cols, between + r * in.cols);
  }
  for (std::int64_t k = 0; k <= 2 * radius; ++k) lines[k] = padded + k;
  for (std::int64_t r = 0; r < in.rows; ++r) {
    const T* row = between + r * in.cols;
    std::copy_n(row, in.cols, padded + radius);
    for (std::int64_t k = 1; k <= radius; ++k) {
      padded[radius - k] = row[detail::border_index(-k, in.cols, border)];
      padded[radius + in.cols - 1 + k] = row[detail::border_index(in.cols - 1 + k, in.cols, border)];
    }
    pass(lines, weight, radius, in.cols, out.data + r * out.stride);
  }
  return {};
}

}  // namespace norma::image
