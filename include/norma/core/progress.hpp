/// \file
/// What long work tells its caller, and how the caller stops it. The library prints nothing itself.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include <norma/core/status.hpp>

namespace norma {

/// One report: `done` of `total` steps of a named stage.
struct ProgressUpdate {
  std::string_view stage;
  std::int64_t done = 0;
  std::int64_t total = 0;        ///< 0 when not known
  double elapsed_seconds = 0.0;
  double remaining_seconds = -1.0;  ///< estimate from the mean pace so far; negative while unknown
};

/// Given to long calls. Both members may be empty.
struct Observer {
  std::function<void(const ProgressUpdate&)> on_progress;
  const std::atomic<bool>* cancel = nullptr;  ///< set to true from any thread (or a signal handler) to stop
};

/// Counts the steps of one stage and reports at most every 100 ms, at the beginning and at the end.
class Progress {
 public:
  Progress(std::string_view stage, std::int64_t total, const Observer& observer)
      : stage_(stage), total_(total), observer_(observer), start_(Clock::now()), reported_(start_) {
    report();
  }
  /// Marks `steps` more as done. Fails with Errc::cancelled once the caller asked to stop.
  Status advance(std::int64_t steps = 1) {
    done_ += steps;
    const auto now = Clock::now();
    if (done_ >= total_ || now - reported_ >= std::chrono::milliseconds(100)) {
      reported_ = now;
      report();
    }
    return check();
  }
  [[nodiscard]] Status check() const {
    if (observer_.cancel != nullptr && observer_.cancel->load(std::memory_order_relaxed)) {
      return {Errc::cancelled, std::string(stage_) + ": stopped on request after " + std::to_string(done_) + " of " + std::to_string(total_)};
    }
    return {};
  }

 private:
  using Clock = std::chrono::steady_clock;
  void report() const {
    if (!observer_.on_progress) return;
    const double elapsed = std::chrono::duration<double>(reported_ - start_).count();
    const double remaining = done_ > 0 && total_ > 0 ? elapsed * static_cast<double>(total_ - done_) / static_cast<double>(done_) : -1.0;
    observer_.on_progress({stage_, done_, total_, elapsed, remaining});
  }
  std::string stage_;
  std::int64_t total_;
  std::int64_t done_ = 0;
  const Observer& observer_;
  Clock::time_point start_, reported_;
};

}  // namespace norma
