/// \file
/// Mahalanobis distance to one Gaussian per position.
/// Source:      Defard et al., "PaDiM", ICPR 2021, section III-C.
/// Shapes:      mean [P, d], factor [P, d (d + 1) / 2], x [n P, d], distance [n P]
/// Units:       distance (not squared), >= 0, in standard deviations
/// Cost:        P d^2 flop an image; every image reads the factor once (P d (d + 1) / 2 floats), up to eight images share a pass
/// Determinism: bitwise for a fixed machine, for any number of threads and any grouping of images
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string>

#include <norma/core/arena.hpp>
#include <norma/core/parallel.hpp>
#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/linalg/detail/outer_tile.hpp>

namespace norma {

/// Elements of a packed triangle of a d x d matrix; row i starts at packed_triangle(i).
constexpr std::int64_t packed_triangle(std::int64_t d) noexcept { return d * (d + 1) / 2; }

/// A fitted Gaussian per position that somebody else owns, for instance a memory-mapped model file.
/// `factor` holds, per position, W = L^-1 with covariance = L L^T: the lower triangle, row after row, so that the squared distance
/// is the sum of squares of W (x - mean): a product that reads the factor once from front to back.
struct GaussianModelView {
  MatrixView<const float> mean;    ///< [P, d]
  MatrixView<const float> factor;  ///< [P, packed_triangle(d)]
  [[nodiscard]] constexpr std::int64_t positions() const noexcept { return mean.rows; }
  [[nodiscard]] constexpr std::int64_t dims() const noexcept { return mean.cols; }
};

/// The owning form.
struct GaussianModel {
  Matrix<float> mean;
  Matrix<float> factor;
  [[nodiscard]] GaussianModelView view() const noexcept { return {mean.view(), factor.view()}; }
};

namespace linalg::detail {

inline constexpr std::int64_t kImagesPerPass = 8;
inline constexpr std::int64_t kPositionsPerTask = 16;

constexpr std::int64_t centred_stride(std::int64_t dims) noexcept { return padded(dims, 16); }

/// y[dims] = x - mean.
inline void subtract_generic(const float* x, const float* mean, std::int64_t dims, float* y) noexcept {
  for (std::int64_t j = 0; j < dims; ++j) y[j] = x[j] - mean[j];
}

/// out[b] = |W y_b|^2 for `images` vectors y_b of `dims` values in rows of `stride`, W packed by rows.
inline void triangle_norms_generic(const float* w, std::int64_t dims, const float* y, std::int64_t stride, std::int64_t images, float* out) noexcept {
  for (std::int64_t b = 0; b < images; ++b) out[b] = 0.0f;
  for (std::int64_t i = 0; i < dims; ++i, w += i) {
    for (std::int64_t b = 0; b < images; ++b) {
      const float* v = y + b * stride;
      float lane[8] = {};  // eight partial sums, so that the loop can be vectorised without reordering
      std::int64_t j = 0;
      for (; j + 8 <= i + 1; j += 8) {
        for (std::int64_t l = 0; l < 8; ++l) lane[l] += w[j + l] * v[j + l];
      }
      for (std::int64_t l = 0; j < i + 1; ++j, ++l) lane[l] += w[j] * v[j];
      const float z = ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
      out[b] += z * z;
    }
  }
}

#if NORMA_X86_DISPATCH
// Element by element, this takes as long as half of the product, and nothing of the next factor is fetched meanwhile.
NORMA_TARGET_AVX2 inline void subtract_avx2(const float* x, const float* mean, std::int64_t dims, float* y) noexcept {
  std::int64_t j = 0;
  for (; j + 8 <= dims; j += 8) _mm256_storeu_ps(y + j, _mm256_sub_ps(_mm256_loadu_ps(x + j), _mm256_loadu_ps(mean + j)));
  for (; j < dims; ++j) y[j] = x[j] - mean[j];
}

NORMA_TARGET_AVX2 NORMA_ALWAYS_INLINE float sum_lanes(__m256 v) noexcept {
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pair = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

/// Mask of the first `count` of eight lanes.
NORMA_TARGET_AVX2 NORMA_ALWAYS_INLINE __m256i first_lanes(std::int64_t count) noexcept {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}

// Four rows of W share each load of y. The last vector of a row is masked: beyond it lies the next row, or the end of the file.
NORMA_TARGET_AVX2 inline void triangle_norms_avx2(const float* w, std::int64_t dims, const float* y, std::int64_t stride, std::int64_t images,
                                                  float* out) noexcept {
  for (std::int64_t b = 0; b < images; ++b) out[b] = 0.0f;
  std::int64_t i = 0;
  for (; i + 4 <= dims; i += 4) {
    const float* w0 = w;
    const float* w1 = w0 + i + 1;
    const float* w2 = w1 + i + 2;
    const float* w3 = w2 + i + 3;
    w = w3 + i + 4;
    const std::int64_t whole = i / 8 * 8;  // columns that all four rows have in whole vectors
    for (std::int64_t b = 0; b < images; ++b) {
      const float* v = y + b * stride;
      __m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
      std::int64_t j = 0;
      for (; j < whole; j += 8) {
        const __m256 t = _mm256_loadu_ps(v + j);
        s0 = _mm256_fmadd_ps(_mm256_loadu_ps(w0 + j), t, s0);
        s1 = _mm256_fmadd_ps(_mm256_loadu_ps(w1 + j), t, s1);
        s2 = _mm256_fmadd_ps(_mm256_loadu_ps(w2 + j), t, s2);
        s3 = _mm256_fmadd_ps(_mm256_loadu_ps(w3 + j), t, s3);
      }
      // i - whole is 0 or 4, so rows i .. i + 3 have 1 to 8 columns left.
      const __m256 t = _mm256_loadu_ps(v + j);
      const std::int64_t left = i + 1 - whole;
      s0 = _mm256_fmadd_ps(_mm256_maskload_ps(w0 + j, first_lanes(left)), t, s0);
      s1 = _mm256_fmadd_ps(_mm256_maskload_ps(w1 + j, first_lanes(left + 1)), t, s1);
      s2 = _mm256_fmadd_ps(_mm256_maskload_ps(w2 + j, first_lanes(left + 2)), t, s2);
      s3 = _mm256_fmadd_ps(_mm256_maskload_ps(w3 + j, first_lanes(left + 3)), t, s3);
      // Sums of the four rows side by side.
      const __m256 h01 = _mm256_hadd_ps(s0, s1), h23 = _mm256_hadd_ps(s2, s3);
      const __m256 h = _mm256_hadd_ps(h01, h23);
      const __m128 z = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
      const __m128 q = _mm_mul_ps(z, z);
      const __m128 pair = _mm_add_ps(q, _mm_movehl_ps(q, q));
      out[b] += _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
    }
  }
  for (; i < dims; ++i, w += i) {
    for (std::int64_t b = 0; b < images; ++b) {
      const float* v = y + b * stride;
      __m256 s = _mm256_setzero_ps();
      std::int64_t j = 0;
      for (; j + 8 <= i + 1; j += 8) s = _mm256_fmadd_ps(_mm256_loadu_ps(w + j), _mm256_loadu_ps(v + j), s);
      float z = sum_lanes(s);
      for (; j < i + 1; ++j) z += w[j] * v[j];
      out[b] += z * z;
    }
  }
}
#endif

using Subtract = void (*)(const float* x, const float* mean, std::int64_t dims, float* y) noexcept;

inline Subtract subtract() noexcept {
#if NORMA_X86_DISPATCH
  if (has_avx2()) return subtract_avx2;
#endif
  return subtract_generic;
}

using TriangleNorms = void (*)(const float* w, std::int64_t dims, const float* y, std::int64_t stride, std::int64_t images, float* out) noexcept;

inline TriangleNorms triangle_norms() noexcept {
#if NORMA_X86_DISPATCH
  if (has_avx2()) return triangle_norms_avx2;
#endif
  return triangle_norms_generic;
}

}  // namespace linalg::detail

/// Scratch that `mahalanobis` takes from its arena.
constexpr std::size_t mahalanobis_scratch_bytes(std::int64_t dims, int workers) noexcept {
  return arena_bytes<float>(workers * linalg::detail::kImagesPerPass * linalg::detail::centred_stride(dims));
}

/// Distance of every row of `x` to the Gaussian of its position; row r belongs to position r mod P, so `x` is one image's feature
/// map or several one after the other. A row that is not finite gets a distance that is not finite, never a small one.
inline Status mahalanobis(const GaussianModelView& model, MatrixView<const float> x, std::span<float> distance, Parallel parallel, Arena& arena) {
  namespace impl = linalg::detail;
  const std::int64_t positions = model.positions();
  const std::int64_t dims = model.dims();
  if (positions == 0 || dims == 0) return {Errc::not_fitted, "mahalanobis: the model is empty"};
  if (model.factor.rows != positions || model.factor.cols != packed_triangle(dims)) {
    return {Errc::shape_mismatch, "mahalanobis: wrong factor, expected " + std::to_string(positions) + " x " + std::to_string(packed_triangle(dims)) +
                                      ", found " + std::to_string(model.factor.rows) + " x " + std::to_string(model.factor.cols)};
  }
  if (x.cols != dims || x.rows % positions != 0) {
    return {Errc::shape_mismatch, "mahalanobis: wrong features, expected a multiple of " + std::to_string(positions) + " rows of " +
                                      std::to_string(dims) + " values, found " + std::to_string(x.rows) + " x " + std::to_string(x.cols)};
  }
  if (static_cast<std::int64_t>(distance.size()) != x.rows) {
    return {Errc::shape_mismatch,
            "mahalanobis: wrong output, expected " + std::to_string(x.rows) + " values, found " + std::to_string(distance.size())};
  }
  const std::int64_t images = x.rows / positions;
  const std::int64_t stride = impl::centred_stride(dims);
  const Arena::Scope scope(arena);
  float* const scratch = arena.take<float>(parallel.workers() * impl::kImagesPerPass * stride);
  if (scratch == nullptr) return {Errc::out_of_memory, "mahalanobis: the arena is smaller than mahalanobis_scratch_bytes"};
  const auto subtract = impl::subtract();
  const auto norms = impl::triangle_norms();
  parallel.run_ranges(positions, impl::kPositionsPerTask, [&](std::int64_t first, std::int64_t last, int worker) {
    float* const y = scratch + worker * impl::kImagesPerPass * stride;
    for (std::int64_t b = 0; b < impl::kImagesPerPass; ++b) {
      for (std::int64_t j = dims; j < stride; ++j) y[b * stride + j] = 0.0f;
    }
    for (std::int64_t p = first; p < last; ++p) {
      const float* const mean = model.mean.row(p).data();
      for (std::int64_t done = 0; done < images; done += impl::kImagesPerPass) {
        const std::int64_t count = images - done < impl::kImagesPerPass ? images - done : impl::kImagesPerPass;
        for (std::int64_t b = 0; b < count; ++b) {
          subtract(x.row((done + b) * positions + p).data(), mean, dims, y + b * stride);
        }
        float squared[impl::kImagesPerPass];
        norms(model.factor.row(p).data(), dims, y, stride, count, squared);
        for (std::int64_t b = 0; b < count; ++b) distance[static_cast<std::size_t>((done + b) * positions + p)] = std::sqrt(squared[b]);
      }
    }
  });
  return {};
}

}  // namespace norma
