/// \file
/// The elementwise part of a coupling step, vectorised: y = x exp(L(s)) + t, its inverse, and its gradients from y.
///
/// Accuracy:    L with tanh or atan: relative error <= 4e-7; exp: 2e-7 + |L| 2^-24; so |error of y| <= (6e-7 + 5e-7 |L|) |x exp(L)| + 2^-23 |t|,
///              the rounding of the factors included. Every instruction set has its own last bits.
/// Not finite:  a NaN stays in its channel of its position (and in the position's sum of L).
#pragma once

#include <array>
#include <cstdint>

#include <norma/linalg/simd.hpp>
#include <norma/nn/coupling_types.hpp>

namespace norma::nn::detail {

/// A subnet's output at one position: raw log-scales and shifts, both multiplied by `gain` before anything else.
struct CouplingRow {
  const float* s;
  const float* t;
  std::int64_t count;
  float alpha, gain;
};

/// Indexed by ScaleClamp.
struct CouplingKernels {
  std::array<float (*)(const CouplingRow& row, const float* x, float* y), 3> couple;
  std::array<void (*)(const CouplingRow& row, const float* y, float* x), 3> uncouple;
  std::array<void (*)(const CouplingRow& row, float* y, float* dy, float dlogdet, float* ds, float* dt), 3> uncouple_gradient;
  void (*atan)(const float* x, float* y, std::int64_t count);
};

}  // namespace norma::nn::detail

#define NORMA_SIMD_FILE <norma/nn/kernels/detail/coupling_kernels.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE

namespace norma::nn::detail {

inline const CouplingKernels& coupling_kernels(InstructionSet set) noexcept { return NORMA_SIMD_SELECT(set, kCouplingKernels); }

}  // namespace norma::nn::detail
