// On a GPU.
#include "device/matrix_product_cases.hpp"
