/// \file
/// What a program may want to know of a CUDA device, for headers that know no CUDA header.
#pragma once

#include <cstddef>
#include <string>

namespace norma::cuda {

struct DeviceInfo {
  std::string name;
  int arch = 0;                            ///< 80, 86, 90, ...
  int multiprocessors = 0;
  std::size_t shared_bytes_per_block = 0;  ///< the largest that a kernel may ask for
  std::size_t l2_bytes = 0;
  std::size_t memory_bytes = 0;
};

}  // namespace norma::cuda
