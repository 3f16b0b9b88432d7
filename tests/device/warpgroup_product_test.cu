// On a device of compute capability 9.0, compiled for 90a.
#include "device/warpgroup_product_cases.hpp"
