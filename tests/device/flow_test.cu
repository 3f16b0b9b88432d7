// The device's flow on a GPU.
#include <device/flow_cases.hpp>
