// The nearest rows of float, half and bfloat16 banks.
#include <norma/cuda/nearest_rows.cuh>

#define NORMA_INSTANTIATE(T)                                                                                                  \
  template norma::Status norma::cuda::prepare_bank<T>(norma::cuda::StreamRef, const norma::cuda::PreparedBank<T>&);           \
  template norma::Status norma::cuda::nearest_rows<T>(norma::cuda::StreamRef, const norma::cuda::PreparedBank<T>&,            \
                                                      norma::MatrixView<const T>, int, norma::MatrixView<float>,              \
                                                      norma::MatrixView<std::int64_t>, std::span<std::byte>,                  \
                                                      norma::cuda::SearchMemory);

NORMA_INSTANTIATE(float)
NORMA_INSTANTIATE(norma::cuda::Half)
NORMA_INSTANTIATE(norma::cuda::BFloat16)
