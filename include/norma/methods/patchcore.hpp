/// \file
/// PatchCore: a bank of locally averaged patches, thinned by greedy k-centre selection; distance to the nearest one.
/// Source: Roth et al., "Towards total recall in industrial anomaly detection", CVPR 2022.
#pragma once

#include <norma/detector.hpp>
#include <norma/estimators/memory_bank.hpp>
#include <norma/metrics/nearest_distance.hpp>

namespace norma {

template <class NetworkT, class ExecutionT = Cpu<>>
using PatchCore = Detector<Patches<NetworkT, LocalAverage>, MemoryBank<GreedyKCenter, ExactSearch>, NearestDistance<Reweighted>, ExecutionT>;

}  // namespace norma
