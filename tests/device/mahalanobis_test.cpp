// Distances in the emulation.
#include "device/mahalanobis_cases.hpp"
