// The cases on a GPU: see coupling_cases.hpp.
#include <device/coupling_cases.hpp>
