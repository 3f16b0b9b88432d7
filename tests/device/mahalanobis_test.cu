// Distances on a GPU.
#include "device/mahalanobis_cases.hpp"
