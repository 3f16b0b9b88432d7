// Inverse factors on a GPU.
#include "device/cholesky_cases.hpp"
