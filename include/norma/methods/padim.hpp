/// \file
/// PaDiM: one Gaussian per position over a random subset of the channels of three layers; Mahalanobis distance.
/// Source: Defard et al., "PaDiM: a patch distribution modeling framework for anomaly detection and localization", ICPR 2021.
#pragma once

#include <norma/detector.hpp>
#include <norma/estimators/position_gaussian.hpp>
#include <norma/metrics/mahalanobis_distance.hpp>

namespace norma {

template <class NetworkT, class ExecutionT = Cpu<>>
using PaDiM = Detector<Patches<NetworkT, ChosenChannels>, PositionGaussian, MahalanobisDistance, ExecutionT>;

}  // namespace norma
