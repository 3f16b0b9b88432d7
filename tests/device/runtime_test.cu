// The runtime's objects on a GPU.
#include "device/runtime_cases.hpp"
