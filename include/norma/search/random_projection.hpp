/// \file
/// Fixed random linear maps that keep distances roughly and make rows shorter.
/// Source:      Roth et al., "PatchCore", CVPR 2022, section 3.2; Li, Hastie, Church, "Very sparse random projections", KDD 2006
/// Shapes:      points [n, d] -> [n, dims]
/// Determinism: the map is a pure function of (kind, dims, d, seed); the product is bit-equal for any number of threads
#pragma once

#include <cmath>
#include <cstdint>
#include <string_view>

#include <norma/core/arena.hpp>
#include <norma/core/parallel.hpp>
#include <norma/core/random.hpp>
#include <norma/core/tensor.hpp>
#include <norma/linalg/gemm.hpp>

namespace norma {

enum class Projection : std::uint8_t {
  none,     ///< distances of the rows as they are
  uniform,  ///< entries uniform in +-1 / sqrt(d), as a linear layer is initialised (the authors' code)
  sparse,   ///< +-1 with probability 1 / (2 sqrt(d)) each, else 0, scaled to keep lengths (other codes)
};

constexpr std::string_view to_string(Projection projection) noexcept {
  switch (projection) {
    case Projection::none: return "none";
    case Projection::uniform: return "uniform";
    case Projection::sparse: return "sparse";
  }
  return "unknown";
}
constexpr bool from_string(std::string_view text, Projection& projection) noexcept {
  for (const Projection each : {Projection::none, Projection::uniform, Projection::sparse}) {
    if (text == to_string(each)) return projection = each, true;
  }
  return false;
}

/// Dimensions that keep all distances of `points` points within a factor 1 +- distortion (Johnson and Lindenstrauss):
/// 4 ln n / (e^2 / 2 - e^3 / 3). About 300 for 1.6e5 points and 0.9.
inline std::int64_t johnson_lindenstrauss_dims(std::int64_t points, double distortion) noexcept {
  const double room = distortion * distortion / 2.0 - distortion * distortion * distortion / 3.0;
  return static_cast<std::int64_t>(4.0 * std::log(static_cast<double>(points)) / room);
}

/// The map [dims, d] of a kind other than `none`.
inline Matrix<float> projection_matrix(Projection kind, std::int64_t dims, std::int64_t d, std::uint64_t seed) {
  Matrix<float> map(dims, d);
  Random random(seed, 0x70726f6a656374);  // a stream of its own: the start rule draws from the same seed
  const double root = std::sqrt(static_cast<double>(d));
  const double length = std::sqrt(root / static_cast<double>(dims));
  for (std::int64_t i = 0; i < dims * d; ++i) {
    const double draw = random.uniform();
    if (kind == Projection::uniform) {
      map.data()[i] = static_cast<float>((2.0 * draw - 1.0) / root);
    } else if (draw * root < 1.0) {
      map.data()[i] = static_cast<float>(draw * root < 0.5 ? -length : length);
    }
  }
  return map;
}

/// points * map^T.
inline Matrix<float> project(MatrixView<const float> points, const Matrix<float>& map, Parallel parallel) {
  Matrix<float> projected(points.rows, map.rows());
  Buffer<std::byte> scratch(static_cast<std::int64_t>(linalg::gemm_scratch_bytes(points.rows, map.rows(), map.cols(), parallel.workers())));
  Arena arena(scratch.span());
  linalg::gemm(points, linalg::PackedMatrix::pack(map.view()), projected.view(), {}, parallel, arena);
  return projected;
}

}  // namespace norma
