/// \file
/// DifferNet: the mean squared latent of a flow over averaged features of three image scales, over 64 turned copies of an image. It finds
/// images, not places; methods/score_gradient.hpp shows which pixels the score hangs on.
/// Source: Rudolph et al., "Same same but DifferNet: semi-supervised defect detection with normalizing flows", WACV 2021.
#pragma once

#include <norma/detector.hpp>
#include <norma/estimators/vector_flow.hpp>
#include <norma/features/image_scales.hpp>
#include <norma/metrics/mean_squared_latent.hpp>

namespace norma {

template <class NetworkT, class ExecutionT = Cpu<>>
using DifferNet = Detector<ImageScales<NetworkT, PooledScales>, VectorFlow<>, MeanSquaredLatent, ExecutionT>;

}  // namespace norma
