#include <norma/cuda/runtime.cuh>

template struct norma::cuda::detail::Runtime<>;
