#include "terminal.hpp"

#include <cstdio>

#include <signal.h>
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
    std::fprintf(stderr, "%s: %lld in %.1f s\n", stage.c_str(), static_cast<long long>(update.done), update.elapsed_seconds);
    return;
  }
  if (!live_) return;
  const int percent = update.total > 0 ? static_cast<int>(100 * update.done / update.total) : 0;
  std::string bar(24, '.');
  for (int i = 0; i < percent * 24 / 100; ++i) bar[static_cast<std::size_t>(i)] = '#';
  std::fprintf(stderr, "\r\033[K%s [%s] %lld/%lld", stage.c_str(), bar.c_str(), static_cast<long long>(update.done), static_cast<long long>(update.total));
  if (update.remaining_seconds >= 0.0) std::fprintf(stderr, ", %s left", duration(update.remaining_seconds).c_str());
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
