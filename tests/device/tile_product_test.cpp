// In the emulation.
#include "device/tile_product_cases.hpp"
