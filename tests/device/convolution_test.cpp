// In the emulation.
#include "device/convolution_cases.hpp"
