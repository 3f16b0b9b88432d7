/// \file
/// A stream by name, for headers that know no CUDA header.
#pragma once

namespace norma::cuda {

/// A `cudaStream_t`; null is the default stream. Work of one stream runs in the order of the calls.
struct StreamRef {
  void* handle = nullptr;
};

}  // namespace norma::cuda
