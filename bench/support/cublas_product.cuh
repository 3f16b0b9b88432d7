/// \file
/// cuBLAS' product as a peer: C [m, n] = A [m, depth] B [n, depth]^T, float result, the arithmetic that a norma product is asked for.
#pragma once

#include "support/cuda_timer.cuh"

#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>

#include <norma/cuda/arithmetic.hpp>

namespace norma::bench {

/// What an arithmetic is measured against. tf32x3 stands for fp32, so it is compared with that.
constexpr Rate rate_of(cuda::Arithmetic a) {
  return a == cuda::Arithmetic::bf16 || a == cuda::Arithmetic::f16 ? Rate::bf16 : a == cuda::Arithmetic::tf32 ? Rate::tf32 : Rate::fp32;
}

class CublasProduct {
 public:
  static Result<CublasProduct> create(cuda::StreamRef stream) {
    cublasHandle_t handle = nullptr;
    NORMA_CHECK(check(cublasCreate(&handle), "create"));
    CublasProduct product(handle);
    NORMA_CHECK(check(cublasSetStream(handle, cuda::detail::native(stream)), "stream"));
    return product;
  }
  template <class T>
  Status operator()(cuda::Arithmetic arithmetic, const T* a, const T* b, float* c, std::int64_t m, std::int64_t n, std::int64_t depth) const {
    constexpr cudaDataType_t kType = std::is_same_v<T, float> ? CUDA_R_32F : std::is_same_v<T, cuda::Half> ? CUDA_R_16F : CUDA_R_16BF;
    const cublasComputeType_t compute = !std::is_same_v<T, float>              ? CUBLAS_COMPUTE_32F
                                        : arithmetic == cuda::Arithmetic::tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                                                                               : CUBLAS_COMPUTE_32F_PEDANTIC;
    const float one = 1.0f, zero = 0.0f;
    // Column-major: C^T [n, m] = B A^T.
    return check(cublasGemmEx(handle_.get(), CUBLAS_OP_T, CUBLAS_OP_N, static_cast<int>(n), static_cast<int>(m), static_cast<int>(depth), &one, b,
                              kType, static_cast<int>(depth), a, kType, static_cast<int>(depth), &zero, c, CUDA_R_32F, static_cast<int>(n), compute,
                              CUBLAS_GEMM_DEFAULT),
                 "product");
  }

 private:
  explicit CublasProduct(cublasHandle_t handle) : handle_(handle, &cublasDestroy) {}
  static Status check(cublasStatus_t status, const char* what) {
    if (status == CUBLAS_STATUS_SUCCESS) return {};
    return {Errc::io_error, std::string("bench::CublasProduct: ") + what + ": " + cublasGetStatusString(status)};
  }
  std::unique_ptr<cublasContext, cublasStatus_t (*)(cublasHandle_t)> handle_;
};

}  // namespace norma::bench
