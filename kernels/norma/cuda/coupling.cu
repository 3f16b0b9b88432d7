// The usual instantiations of norma/cuda/coupling.hpp.
#include <norma/cuda/coupling.cuh>

#define NORMA_INSTANTIATE(ARITHMETIC)                                                                                                                         \
  template norma::Status norma::cuda::flow_forward<ARITHMETIC>(norma::cuda::StreamRef, std::span<const norma::cuda::FlowBlock>, norma::cuda::FlowGrid,        \
                                                               norma::MatrixView<const float>, norma::MatrixView<const float>, norma::MatrixView<float>,     \
                                                               float*, float*, std::span<std::byte>);                                                        \
  template norma::Status norma::cuda::flow_inverse<ARITHMETIC>(norma::cuda::StreamRef, std::span<const norma::cuda::FlowBlock>, norma::cuda::FlowGrid,        \
                                                               norma::MatrixView<const float>, norma::MatrixView<const float>, norma::MatrixView<float>,     \
                                                               std::span<std::byte>);                                                                        \
  template norma::Status norma::cuda::flow_backward<ARITHMETIC>(norma::cuda::StreamRef, std::span<const norma::cuda::FlowBlock>, norma::cuda::FlowGrid,       \
                                                                norma::MatrixView<const float>, norma::MatrixView<const float>,                              \
                                                                norma::MatrixView<const float>, const float*, std::span<float* const>,                       \
                                                                norma::MatrixView<float>, norma::MatrixView<float>, std::span<std::byte>);

NORMA_INSTANTIATE(norma::cuda::FlowArithmetic::fp32)
NORMA_INSTANTIATE(norma::cuda::FlowArithmetic::tf32)
NORMA_INSTANTIATE(norma::cuda::FlowArithmetic::tf32x3)

template norma::Status norma::cuda::latent_squares<norma::cuda::FlowTuning>(norma::cuda::StreamRef, norma::MatrixView<const float>, float*);
template norma::Status norma::cuda::likelihood_gradient<norma::cuda::FlowTuning>(norma::cuda::StreamRef, norma::MatrixView<const float>, float,
                                                                                 norma::MatrixView<float>, float*, std::int64_t);
