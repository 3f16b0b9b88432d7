// Nearest rows on a GPU.
#include <device/nearest_rows_cases.hpp>
