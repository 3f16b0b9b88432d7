// Means and covariances in the emulation.
#include "device/covariance_cases.hpp"
