// The program `norma`: learn what normal looks like from good images, then say of new ones whether they are normal, and where not.
#include <array>
#include <cstdio>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include <norma/version.hpp>

#include "commands.hpp"
#include "help.hpp"
#include "terminal.hpp"

namespace {

struct Command {
  std::string_view name;
  int (*run)(program::Arguments);
};
constexpr std::array<Command, 9> kCommands{{
    {"fit", program::run_fit},           {"eval", program::run_eval},         {"predict", program::run_predict},
    {"calibrate", program::run_calibrate}, {"selftest", program::run_selftest}, {"info", program::run_info},
    {"convert", program::run_convert},   {"generate", program::run_generate}, {"list", program::run_list},
}};

int dispatch(std::vector<std::string> words) {
  using program::Failure;
  if (words.empty()) {
    std::fputs(std::string(program::usage()).c_str(), stderr);
    return program::kWrongUsage;
  }
  const std::string name = words.front();
  words.erase(words.begin());
  if (name == "--help" || name == "-h" || name == "help") {
    std::fputs(program::help(words.empty() ? "" : words.front()).c_str(), stdout);
    return program::kDone;
  }
  if (name == "--version") {
    std::printf("norma %.*s\n", static_cast<int>(norma::kVersion.size()), norma::kVersion.data());
    return program::kDone;
  }
  for (const Command& command : kCommands) {
    if (command.name != name) continue;
    program::Arguments arguments(std::move(words));
    if (arguments.has("help")) {
      std::fputs(program::help(name).c_str(), stdout);
      return program::kDone;
    }
    return command.run(std::move(arguments));
  }
  std::string nearest;
  std::size_t best = 4;
  for (const Command& command : kCommands) {
    const std::size_t distance = norma::backbones::detail::edit_distance(name, command.name);
    if (distance < best) best = distance, nearest = command.name;
  }
  throw Failure{program::kWrongUsage, "no command '" + name + "'" + (nearest.empty() ? "" : ", did you mean '" + nearest + "'?") + "\n" + std::string(program::usage())};
}

}  // namespace

int main(int argc, char** argv) {
  program::catch_interrupts();
  try {
    const int code = dispatch(std::vector<std::string>(argv + 1, argv + argc));
    // A full disk behind standard output is a file that cannot be written, whatever the command found out.
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      std::fputs("norma: standard output cannot be written to\n", stderr);
      return program::kUnusable;
    }
    return code;
  } catch (const program::Failure& failure) {
    std::fprintf(stderr, "norma: %s\n", failure.message.c_str());
    return failure.code;
  } catch (const std::bad_alloc&) {
    std::fputs("norma: out of memory\n", stderr);
    return program::kUnusable;
  }
}
