// One function a command. Each returns the exit code or throws a Failure.
#pragma once

#include "arguments.hpp"

namespace program {

int run_fit(Arguments arguments);
int run_eval(Arguments arguments);
int run_predict(Arguments arguments);
int run_calibrate(Arguments arguments);
int run_selftest(Arguments arguments);
int run_info(Arguments arguments);
int run_convert(Arguments arguments);
int run_generate(Arguments arguments);
int run_list(Arguments arguments);

}  // namespace program
