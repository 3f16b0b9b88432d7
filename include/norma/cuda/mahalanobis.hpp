/// \file
/// Mahalanobis distance of every position to its own Gaussian, on the device: what norma/linalg/mahalanobis.hpp does on the host, with its layouts.
/// Source:      Defard et al., "PaDiM", ICPR 2021, section III-C
/// Shapes:      model.mean [P, d], model.factor [P, d (d + 1) / 2], x [n P, d] (row r: position r mod P), distance [n P]
/// Units:       distance, or its square; >= 0, in standard deviations
/// Cost:        P d^2 flop an image; up to eight images share one pass over the factor (P d (d + 1) / 2 floats), which is what the time goes to
/// Accuracy:    |error of the square| <= (3 d / 16 + 24) 2^-24 (|W| |x - mean|)^2 to first order; docs/kernels/covariance.md
/// Determinism: bitwise for a device, for any grouping of images
#pragma once

#include <cstdint>

#include <norma/core/status.hpp>
#include <norma/core/view.hpp>
#include <norma/cuda/covariance.hpp>
#include <norma/cuda/stream_ref.hpp>
#include <norma/linalg/mahalanobis.hpp>

namespace norma::cuda {

/// The policy behind the launcher: kernels/norma/cuda/mahalanobis.cuh.
struct MahalanobisTuning;

enum class DistanceKind { distance, squared };

/// `model` as views of device memory.
constexpr GaussianModelView model_view(const DeviceGaussians& model) noexcept { return {model.mean, model.factor}; }

/// Distances of the rows of `x`; all pointers are device memory. Ordered on `stream`, allocates nothing, waits for nothing, may be captured. The
/// factor is read as the host packs it, so a model file can be copied to the device as it is. A row that is not finite, and every row of a position
/// whose fit failed, gets a distance that is not finite.
template <class Tuning = MahalanobisTuning>
Status mahalanobis(StreamRef stream, const GaussianModelView& model, MatrixView<const float> x, float* distance,
                   DistanceKind kind = DistanceKind::distance);

}  // namespace norma::cuda
