// Means and covariances on a GPU.
#include "device/covariance_cases.hpp"
