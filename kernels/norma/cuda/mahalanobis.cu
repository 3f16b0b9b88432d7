#include <norma/cuda/mahalanobis.cuh>

template norma::Status norma::cuda::mahalanobis<norma::cuda::MahalanobisTuning>(StreamRef, const GaussianModelView&, MatrixView<const float>, float*,
                                                                                DistanceKind);
