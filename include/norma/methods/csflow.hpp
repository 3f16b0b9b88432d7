/// \file
/// CS-Flow: the maps of one picture at three sizes pass jointly through one flow; the mean square of its latents.
/// Source: Rudolph et al., "Fully convolutional cross-scale-flows for image-based defect detection", WACV 2022.
#pragma once

#include <norma/detector.hpp>
#include <norma/estimators/cross_scale_flow.hpp>
#include <norma/features/image_scales.hpp>
#include <norma/metrics/latent_square.hpp>

namespace norma {

template <class NetworkT, class ExecutionT = Cpu<>>
using CSFlow = Detector<ImageScales<NetworkT, ScaleMaps>, ScaleFlow, LatentSquare, ExecutionT>;

}  // namespace norma
