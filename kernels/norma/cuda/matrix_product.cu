#include <norma/cuda/matrix_product.cuh>

namespace norma::cuda {

#define NORMA_INSTANTIATE(T, arithmetic, a, b)                                                                                                   \
  template Status matrix_product<T, Arithmetic::arithmetic, Contiguous::a, Contiguous::b>(StreamRef, MatrixView<const T>, MatrixView<const T>, \
                                                                                          MatrixView<float>, const MatrixProductSettings&, std::span<std::byte>)
#define NORMA_INSTANTIATE_LAYOUTS(T, arithmetic)    \
  NORMA_INSTANTIATE(T, arithmetic, depth, depth);   \
  NORMA_INSTANTIATE(T, arithmetic, depth, row);     \
  NORMA_INSTANTIATE(T, arithmetic, row, row)

NORMA_INSTANTIATE_LAYOUTS(float, fp32);
NORMA_INSTANTIATE_LAYOUTS(float, tf32);
NORMA_INSTANTIATE_LAYOUTS(float, tf32x3);
NORMA_INSTANTIATE_LAYOUTS(BFloat16, bf16);
NORMA_INSTANTIATE_LAYOUTS(Half, f16);

}  // namespace norma::cuda
