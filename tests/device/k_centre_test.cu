// Greedy k-centre on a GPU.
#include "device/k_centre_cases.hpp"
