// Texts of --help.
#pragma once

#include <string_view>

namespace program {

std::string_view usage();
std::string_view help(std::string_view command);

}  // namespace program
