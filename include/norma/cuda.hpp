/// \file
/// Everything that norma does on a CUDA device, for plain C++: link norma::cuda. <norma/norma.hpp> does not include it.
#pragma once

#include <norma/cuda/arithmetic.hpp>
#include <norma/cuda/convolution.hpp>
#include <norma/cuda/coupling.hpp>
#include <norma/cuda/covariance.hpp>
#include <norma/cuda/device_info.hpp>
#include <norma/cuda/element.hpp>
#include <norma/cuda/exact_search.hpp>
#include <norma/cuda/flow.hpp>
#include <norma/cuda/greedy_k_centre.hpp>
#include <norma/cuda/k_centre.hpp>
#include <norma/cuda/mahalanobis.hpp>
#include <norma/cuda/matrix_product.hpp>
#include <norma/cuda/nearest_rows.hpp>
#include <norma/cuda/runtime.hpp>
#include <norma/cuda/stream_ref.hpp>
