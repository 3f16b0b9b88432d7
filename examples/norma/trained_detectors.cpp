// The detectors that are trained in epochs, compiled beside the others.
#include "detectors.hpp"

template class norma::Detector<norma::Patches<norma::AnyNetwork, norma::Levels>, norma::FeatureFlow<>, norma::FlowLikelihood, norma::Cpu<>>;
template class norma::Detector<norma::Patches<norma::AnyNetwork, norma::DeepLevels>, norma::ConditionalFlow<>, norma::FiberLikelihood, norma::Cpu<>>;
template class norma::Detector<norma::ImageScales<norma::AnyNetwork, norma::ScaleMaps>, norma::ScaleFlow, norma::LatentSquare, norma::Cpu<>>;
template class norma::Detector<norma::ImageScales<norma::AnyNetwork, norma::PooledScales>, norma::VectorFlow<>, norma::MeanSquaredLatent,
                               norma::Cpu<>>;
