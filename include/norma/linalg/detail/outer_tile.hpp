/// \file
/// The register tile under the covariance of the rows of a matrix and the factor of one matrix: six rows by two vectors of
///     C[r, c] += sign * sum_k A[k, r] * B[k, c],
/// where both operands are stored with k as the slow index, so that nothing is packed or transposed.
#pragma once

#include <cstdint>
#include <type_traits>

#include <norma/config.hpp>
#include <norma/linalg/simd.hpp>

#if NORMA_X86_DISPATCH
#include <immintrin.h>
#endif

namespace norma::linalg::detail {

inline constexpr std::int64_t kTileRows = 6;
/// Two 32-byte vectors.
template <class T>
inline constexpr std::int64_t kTileCols = static_cast<std::int64_t>(64 / sizeof(T));

constexpr std::int64_t padded(std::int64_t value, std::int64_t multiple) noexcept { return (value + multiple - 1) / multiple * multiple; }

/// Row length, in elements, of a workspace whose tiles may start anywhere in [0, cols) and always read whole tiles. An odd number of
/// cache lines: a tile walks down the rows, and with an even number they would fall into few of the cache's sets.
template <class T>
constexpr std::int64_t tile_stride(std::int64_t cols) noexcept {
  return (padded(cols + kTileCols<T>, kTileCols<T>) / kTileCols<T> | 1) * kTileCols<T>;
}

template <class T>
void outer_tile_generic(std::int64_t depth, const T* a, std::int64_t a_stride, const T* b, std::int64_t b_stride, T* const* c, T sign) noexcept {
  constexpr std::int64_t cols = kTileCols<T>;
  T sum[kTileRows][cols] = {};
  for (std::int64_t k = 0; k < depth; ++k, a += a_stride, b += b_stride) {
    for (std::int64_t r = 0; r < kTileRows; ++r) {
      for (std::int64_t j = 0; j < cols; ++j) sum[r][j] += a[r] * b[j];
    }
  }
  for (std::int64_t r = 0; r < kTileRows; ++r) {
    for (std::int64_t j = 0; j < cols; ++j) c[r][j] += sign * sum[r][j];
  }
}

#if NORMA_X86_DISPATCH
inline bool has_avx2() noexcept { return instruction_set() != InstructionSet::generic; }

template <class T>
struct Avx2;
template <>
struct Avx2<float> {
  using Vector = __m256;
  static constexpr std::int64_t kLanes = 8;
  NORMA_TARGET_AVX2 static NORMA_ALWAYS_INLINE Vector zero() { return _mm256_setzero_ps(); }
  NORMA_TARGET_AVX2 static NORMA_ALWAYS_INLINE Vector load(const float* p) { return _mm256_loadu_ps(p); }
  NORMA_TARGET_AVX2 static NORMA_ALWAYS_INLINE void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
  NORMA_TARGET_AVX2 static NORMA_ALWAYS_INLINE Vector all(float value) { return _mm256_set1_ps(value); }
  NORMA_TARGET_AVX2 static NORMA_ALWAYS_INLINE Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
};
template <>
struct Avx2<double> {
  using Vector = __m256d;
  static constexpr std::int64_t kLanes = 4;
  NORMA_TARGET_AVX2 static NORMA_ALWAYS_INLINE Vector zero() { return _mm256_setzero_pd(); }
  NORMA_TARGET_AVX2 static NORMA_ALWAYS_INLINE Vector load(const double* p) { return _mm256_loadu_pd(p); }
  NORMA_TARGET_AVX2 static NORMA_ALWAYS_INLINE void store(double* p, Vector v) { _mm256_storeu_pd(p, v); }
  NORMA_TARGET_AVX2 static NORMA_ALWAYS_INLINE Vector all(double value) { return _mm256_set1_pd(value); }
  NORMA_TARGET_AVX2 static NORMA_ALWAYS_INLINE Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_pd(a, b, c); }
};

// Twelve named accumulators: arrays of vectors are spilled by some compilers.
template <class T>
NORMA_TARGET_AVX2 void outer_tile_avx2(std::int64_t depth, const T* a, std::int64_t a_stride, const T* b, std::int64_t b_stride, T* const* c,
                                       T sign) noexcept {
  using V = Avx2<T>;
  constexpr std::int64_t lanes = V::kLanes;
  auto c00 = V::zero(), c01 = V::zero(), c10 = V::zero(), c11 = V::zero(), c20 = V::zero(), c21 = V::zero();
  auto c30 = V::zero(), c31 = V::zero(), c40 = V::zero(), c41 = V::zero(), c50 = V::zero(), c51 = V::zero();
  for (std::int64_t k = 0; k < depth; ++k, a += a_stride, b += b_stride) {
    const auto b0 = V::load(b), b1 = V::load(b + lanes);
    auto x = V::all(a[0]);
    c00 = V::fma(x, b0, c00), c01 = V::fma(x, b1, c01);
    x = V::all(a[1]);
    c10 = V::fma(x, b0, c10), c11 = V::fma(x, b1, c11);
    x = V::all(a[2]);
    c20 = V::fma(x, b0, c20), c21 = V::fma(x, b1, c21);
    x = V::all(a[3]);
    c30 = V::fma(x, b0, c30), c31 = V::fma(x, b1, c31);
    x = V::all(a[4]);
    c40 = V::fma(x, b0, c40), c41 = V::fma(x, b1, c41);
    x = V::all(a[5]);
    c50 = V::fma(x, b0, c50), c51 = V::fma(x, b1, c51);
  }
  const auto s = V::all(sign);
  V::store(c[0], V::fma(s, c00, V::load(c[0]))), V::store(c[0] + lanes, V::fma(s, c01, V::load(c[0] + lanes)));
  V::store(c[1], V::fma(s, c10, V::load(c[1]))), V::store(c[1] + lanes, V::fma(s, c11, V::load(c[1] + lanes)));
  V::store(c[2], V::fma(s, c20, V::load(c[2]))), V::store(c[2] + lanes, V::fma(s, c21, V::load(c[2] + lanes)));
  V::store(c[3], V::fma(s, c30, V::load(c[3]))), V::store(c[3] + lanes, V::fma(s, c31, V::load(c[3] + lanes)));
  V::store(c[4], V::fma(s, c40, V::load(c[4]))), V::store(c[4] + lanes, V::fma(s, c41, V::load(c[4] + lanes)));
  V::store(c[5], V::fma(s, c50, V::load(c[5]))), V::store(c[5] + lanes, V::fma(s, c51, V::load(c[5] + lanes)));
}
#endif

template <class T>
using OuterTile = void (*)(std::int64_t depth, const T* a, std::int64_t a_stride, const T* b, std::int64_t b_stride, T* const* c, T sign) noexcept;

/// The tile for this processor. Rows of `c` must not overlap.
template <class T>
OuterTile<T> outer_tile() noexcept {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>);
#if NORMA_X86_DISPATCH
  if (has_avx2()) return outer_tile_avx2<T>;
#endif
  return outer_tile_generic<T>;
}

}  // namespace norma::linalg::detail
