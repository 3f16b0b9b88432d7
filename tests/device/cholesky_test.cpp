// Inverse factors in the emulation.
#include "device/cholesky_cases.hpp"
