// What the program says while it works: a line that updates itself on a terminal, a line a stage in a pipe. Ctrl-C asks to stop.
#pragma once

#include <atomic>
#include <string>
#include <string_view>

#include <norma/core/progress.hpp>

namespace program {

/// Set by the first interrupt; the second one ends the program at once.
extern std::atomic<bool> interrupted;
void catch_interrupts();

class Terminal {
 public:
  explicit Terminal(bool quiet);
  ~Terminal();
  Terminal(const Terminal&) = delete;
  Terminal& operator=(const Terminal&) = delete;

  /// For long library calls. Must not outlive the terminal.
  [[nodiscard]] norma::Observer observer();
  /// A line on standard error, unless quiet.
  void note(std::string_view text);
  /// A line on standard error, always.
  void warn(std::string_view text);

 private:
  void show(const norma::ProgressUpdate& update);
  void clear_line();
  bool quiet_;
  bool live_;
  bool line_open_ = false;
};

}  // namespace program
