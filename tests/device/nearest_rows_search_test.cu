// The device's search policy on a GPU.
#include <device/nearest_rows_search_cases.hpp>
