#include <norma/cuda/convolution.cuh>

namespace norma::cuda {

#define NORMA_INSTANTIATE(T, arithmetic)                                                                                                                       \
  template Status convolution<T, Arithmetic::arithmetic>(StreamRef, TensorView<const T>, MatrixView<const T>, TensorView<T>, const ConvolutionSettings&,    \
                                                         const float*, Activation, const T*, std::span<std::byte>);                                        \
  template Status convolution_input_gradient<T, Arithmetic::arithmetic>(StreamRef, TensorView<const T>, MatrixView<const T>, TensorView<T>,                 \
                                                                        const ConvolutionSettings&, std::span<std::byte>);                                  \
  template Status convolution_weight_gradient<T, Arithmetic::arithmetic>(StreamRef, TensorView<const T>, TensorView<const T>, MatrixView<float>, float*,    \
                                                                         const ConvolutionSettings&, std::span<std::byte>)
#define NORMA_INSTANTIATE_FLIP(T) template Status flip_convolution_weights<T>(StreamRef, MatrixView<const T>, MatrixView<T>, std::int64_t)

NORMA_INSTANTIATE(float, fp32);
NORMA_INSTANTIATE(float, tf32);
NORMA_INSTANTIATE(float, tf32x3);
NORMA_INSTANTIATE(BFloat16, bf16);
NORMA_INSTANTIATE(Half, f16);
NORMA_INSTANTIATE_FLIP(float);
NORMA_INSTANTIATE_FLIP(BFloat16);
NORMA_INSTANTIATE_FLIP(Half);

}  // namespace norma::cuda
