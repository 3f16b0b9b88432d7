#include <norma/cuda/covariance.cuh>

namespace norma::cuda {

template Status observe_gaussians<GaussianTuning>(StreamRef, GaussianState&, MatrixView<const float>, std::span<std::byte>);
template Status merge_gaussians<GaussianTuning>(StreamRef, GaussianState&, const GaussianState&);
template Status finish_gaussians<GaussianTuning>(StreamRef, const GaussianState&, double, const DeviceGaussians&, std::span<std::byte>);
template Status fit_gaussians<GaussianTuning>(StreamRef, MatrixView<const float>, double, const DeviceGaussians&, std::span<std::byte>);
template Status covariance<GaussianTuning>(StreamRef, MatrixView<const float>, float*, MatrixView<float>, std::span<std::byte>);

}  // namespace norma::cuda
