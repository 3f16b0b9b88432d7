/// \file
/// CFlow-AD: for each of three deep layers a conditional flow over single feature vectors, told their place by a position code; likelihoods of the
/// layers added up. The published encoders mirror their borders: CFlow<ReflectPadded<WideResNet50>> (backbones/reflect_padding.hpp).
/// Source: Gudovskiy et al., "CFLOW-AD: real-time unsupervised anomaly detection with localization via conditional normalizing flows", WACV 2022.
#pragma once

#include <norma/detector.hpp>
#include <norma/estimators/conditional_flow.hpp>
#include <norma/features/levels.hpp>
#include <norma/metrics/fiber_likelihood.hpp>

namespace norma {

template <class NetworkT, class ExecutionT = Cpu<>>
using CFlow = Detector<Patches<NetworkT, DeepLevels>, ConditionalFlow<>, FiberLikelihood, ExecutionT>;

}  // namespace norma
