// In the emulation.
#include "device/matrix_product_cases.hpp"
