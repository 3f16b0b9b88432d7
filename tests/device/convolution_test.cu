// On a GPU.
#include "device/convolution_cases.hpp"
