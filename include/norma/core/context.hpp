/// \file
/// What an operation on one image is given to work with, and how long each stage of the last image took.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>

#include <norma/core/arena.hpp>
#include <norma/core/parallel.hpp>

namespace norma {

/// The stages of an image's way to its verdict, in order; docs/concepts/detector.md says what each holds. Whoever decodes the frame counts the
/// first two.
enum class Stage { read, decode, preprocess, backbone, features, estimator, metric, verdict };
inline constexpr std::array<const char*, 8> kStageNames{"read", "decode", "preprocess", "backbone", "features", "estimator", "metric", "verdict"};

/// Milliseconds by stage; stages that a detector does not have stay 0.
struct StageTimes {
  std::array<double, kStageNames.size()> ms{};
  [[nodiscard]] double& operator[](Stage stage) noexcept { return ms[static_cast<std::size_t>(stage)]; }
  [[nodiscard]] double operator[](Stage stage) const noexcept { return ms[static_cast<std::size_t>(stage)]; }
  [[nodiscard]] double total() const noexcept {
    double sum = 0.0;
    for (const double stage : ms) sum += stage;
    return sum;
  }
};

/// Passed along the data flow: scratch memory, threads and the clock.
struct Context {
  Arena& arena;
  Parallel parallel{};
  StageTimes* times = nullptr;
};

/// Adds the time of its scope to a stage.
class StageTimer {
 public:
  StageTimer(const Context& context, Stage stage) noexcept : StageTimer(context.times, stage) {}
  /// `times` may be null: nothing is measured then.
  StageTimer(StageTimes* times, Stage stage) noexcept : times_(times), stage_(stage) {
    if (times_ != nullptr) start_ = Clock::now();
  }
  ~StageTimer() {
    if (times_ != nullptr) (*times_)[stage_] += std::chrono::duration<double, std::milli>(Clock::now() - start_).count();
  }
  StageTimer(const StageTimer&) = delete;
  StageTimer& operator=(const StageTimer&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  StageTimes* times_;
  Stage stage_;
  Clock::time_point start_{};
};

}  // namespace norma
