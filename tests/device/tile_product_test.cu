// On a GPU.
#include "device/tile_product_cases.hpp"
