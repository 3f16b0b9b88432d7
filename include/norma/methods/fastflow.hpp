/// \file
/// FastFlow: a convolutional flow for each of three layers (or one layer of a transformer); the squares of its latents.
/// Source: Yu et al., "FastFlow: unsupervised anomaly detection and localization via 2D normalizing flows", arXiv 2111.07677.
#pragma once

#include <norma/detector.hpp>
#include <norma/estimators/feature_flow.hpp>
#include <norma/features/levels.hpp>
#include <norma/metrics/flow_likelihood.hpp>

namespace norma {

template <class NetworkT, class ExecutionT = Cpu<>>
using FastFlow = Detector<Patches<NetworkT, Levels>, FeatureFlow<>, FlowLikelihood, ExecutionT>;

}  // namespace norma
