/// \file
/// Element types of device arrays beside float: their bits, so that host code may hold and pass them. Kernels convert
/// (kernels/norma/cuda/detail/simt.cuh); on the host, norma/io/dtype.hpp does.
#pragma once

#include <cstdint>

namespace norma::cuda {

/// IEEE binary16.
struct Half {
  std::uint16_t bits = 0;
};

/// The upper half of a float.
struct BFloat16 {
  std::uint16_t bits = 0;
};

}  // namespace norma::cuda
