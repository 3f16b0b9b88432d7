// Texts of --help.
#pragma once

#include <string>
#include <string_view>

namespace program {

std::string_view usage();
std::string help(std::string_view command);

}  // namespace program
