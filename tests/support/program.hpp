// The program `norma` as its users run it: a process with arguments, an exit code and two outputs. POSIX.
#pragma once

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <doctest/doctest.h>
#include <norma/io/json.hpp>

#include "shared_fixtures.hpp"

namespace norma::test {

struct Run {
  int code = -1;  // exit code; 128 + number of the signal that ended it
  std::string out, err;
};

inline std::string file_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}
inline void write_file(const std::filesystem::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

class Program {
 public:
  explicit Program(std::filesystem::path folder) : folder_(std::move(folder)) {
    if (const char* path = std::getenv("NORMA_PROGRAM"); path != nullptr) path_ = path;
  }
  /// False (with a message) where the build has no program.
  [[nodiscard]] bool exists() const {
    if (path_.empty()) MESSAGE("skipped: NORMA_PROGRAM does not name the program");
    return !path_.empty();
  }
  /// Runs in the folder; what it prints is kept outside of it.
  [[nodiscard]] Run run(const std::vector<std::string>& arguments) const { return finish(start(arguments)); }
  /// Sends SIGINT `after` the process has installed its handler (as Linux's /proc tells; elsewhere a second later).
  [[nodiscard]] Run interrupt(const std::vector<std::string>& arguments, std::chrono::milliseconds after) const {
    const pid_t child = start(arguments);
    const std::string status = "/proc/" + std::to_string(child) + "/status";
    if (!std::filesystem::exists(status)) after = std::chrono::seconds(1);
    for (bool caught = !std::filesystem::exists(status); !caught;) {
      const std::string text = file_text(status);
      const auto field = text.find("SigCgt:");
      caught = field == std::string::npos || (std::strtoull(text.c_str() + field + 7, nullptr, 16) >> (SIGINT - 1) & 1) != 0;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    std::this_thread::sleep_for(after);
    ::kill(child, SIGINT);
    return finish(child);
  }
  /// Sends a signal as soon as the file exists; a process that ends without it is not waited for.
  [[nodiscard]] Run stop_when(const std::vector<std::string>& arguments, const std::filesystem::path& file, int signal) const {
    const pid_t child = start(arguments);
    for (int status = 0; !std::filesystem::exists(folder_ / file);) {
      if (::waitpid(child, &status, WNOHANG) == child) return collect(status);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    ::kill(child, signal);
    return finish(child);
  }

 private:
  [[nodiscard]] pid_t start(const std::vector<std::string>& arguments) const {
    std::vector<char*> words{const_cast<char*>(path_.c_str())};
    for (const std::string& argument : arguments) words.push_back(const_cast<char*>(argument.c_str()));
    words.push_back(nullptr);
    const std::string out = output_.path() / "out", err = output_.path() / "err";
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      const int nothing = ::open("/dev/null", O_RDONLY);
      const int out_file = ::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), err_file = ::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
      ::dup2(nothing, 0);
      ::dup2(out_file, 1);
      ::dup2(err_file, 2);
      if (::chdir(folder_.c_str()) == 0) ::execv(path_.c_str(), words.data());
      ::_exit(127);
    }
    return child;
  }
  [[nodiscard]] Run finish(pid_t child) const {
    int status = 0;
    REQUIRE(::waitpid(child, &status, 0) == child);
    return collect(status);
  }
  [[nodiscard]] Run collect(int status) const {
    Run run;
    run.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    run.out = file_text(output_.path() / "out");
    run.err = file_text(output_.path() / "err");
    return run;
  }

  std::filesystem::path folder_;
  TemporaryFolder output_;
  std::string path_;
};

/// Parsed, or null after a failed check.
inline io::JsonValue parse_json(const std::string& text) {
  auto value = io::JsonValue::parse(text, "output");
  INFO(text);
  CHECK_MESSAGE(value.ok(), value.message());
  return value.ok() ? *std::move(value) : io::JsonValue();
}
inline std::vector<std::string> keys(const io::JsonValue& object) {
  std::vector<std::string> names;
  for (const io::JsonMember& member : object.members()) names.emplace_back(member.name);
  return names;
}
inline std::vector<std::string> lines(const std::string& text) {
  std::vector<std::string> all;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) all.push_back(line);
  return all;
}

}  // namespace norma::test
