// The vocabulary of kernels on a GPU.
#include "device/simt_cases.hpp"
