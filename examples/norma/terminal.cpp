#include "terminal.hpp"

#include <algorithm>
#include <cstdio>

#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

namespace program {

std::atomic<bool> interrupted{false};

void catch_interrupts() {
  // One-shot, and not restarting: a read that waits for a pipe ends as well.
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = true; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

namespace {

// Columns of the terminal: a longer line could not be taken back.
std::size_t columns() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string duration(double seconds) {
  char text[32];
  if (seconds < 100.0) {
    std::snprintf(text, sizeof text, "%.0f s", seconds);
  } else {
    std::snprintf(text, sizeof text, "%d min %02d s", static_cast<int>(seconds) / 60, static_cast<int>(seconds) % 60);
  }
  return text;
}

}  // namespace

Terminal::Terminal(bool quiet) : quiet_(quiet), live_(isatty(STDERR_FILENO) != 0) {}
Terminal::~Terminal() { clear_line(); }

norma::Observer Terminal::observer() {
  norma::Observer observer;
  observer.cancel = &interrupted;
  if (!quiet_) observer.on_progress = [this](const norma::ProgressUpdate& update) { show(update); };
  return observer;
}

void Terminal::show(const norma::ProgressUpdate& update) {
  const bool complete = update.done >= update.total;
  const std::string stage(update.stage);
  if (complete) {
    clear_line();
    // A training's stage tells epoch and loss ("training, epoch 3 of 500, loss 1.5"); its last line is written by who knows all of them.
    if (stage.find(',') != std::string::npos) return;
    std::fprintf(stderr, "%s: %lld in %.1f s\n", stage.c_str(), static_cast<long long>(update.done), update.elapsed_seconds);
    return;
  }
  if (!live_) return;
  const int percent = update.total > 0 ? static_cast<int>(100 * update.done / update.total) : 0;
  std::string end = " " + std::to_string(update.done) + "/" + std::to_string(update.total);
  if (update.remaining_seconds >= 0.0) end += ", " + duration(update.remaining_seconds) + " left";
  const std::size_t taken = stage.size() + end.size() + 4, room = columns();
  std::string bar(taken < room ? std::min<std::size_t>(24, room - taken) : 0, '.');
  std::fill_n(bar.begin(), static_cast<std::ptrdiff_t>(bar.size()) * percent / 100, '#');
  std::string line = stage + (bar.size() >= 4 ? " [" + bar + "]" : "") + end;
  line.resize(std::min(line.size(), room - 1));
  std::fprintf(stderr, "\r\033[K%s", line.c_str());
  std::fflush(stderr);
  line_open_ = true;
}

void Terminal::clear_line() {
  if (!line_open_) return;
  std::fputs("\r\033[K", stderr);
  line_open_ = false;
}

void Terminal::note(std::string_view text) {
  if (!quiet_) warn(text);
}
void Terminal::warn(std::string_view text) {
  clear_line();
  std::fprintf(stderr, "%.*s\n", static_cast<int>(text.size()), text.data());
}

}  // namespace program
