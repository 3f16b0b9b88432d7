/// \file
/// Everything that looking at one image needs besides the detector: memory, threads and the clock. Made once, one per calling
/// thread; nothing is allocated while images are looked at.
#pragma once

#include <memory>
#include <span>
#include <utility>

#include <norma/core/context.hpp>
#include <norma/core/execution.hpp>
#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>

namespace norma {

template <class ExecutionT>
class Workspace {
 public:
  using Threads = typename ExecutionT::Threads;

  /// Allocates `bytes` and starts `threads` - 1 threads (`threads` <= 0: one for every hardware thread). `made_for` is what the size
  /// was computed for.
  Workspace(std::size_t bytes, int threads, std::shared_ptr<const void> made_for)
      : state_(std::make_shared<State>(bytes, threads, std::move(made_for))) {}
  /// Uses memory that somebody else owns: aligned to kAlignment, alive as long as the workspace and the verdicts made with it.
  Workspace(std::span<std::byte> memory, int threads, std::shared_ptr<const void> made_for)
      : state_(std::make_shared<State>(memory, threads, std::move(made_for))) {}

  [[nodiscard]] std::size_t bytes() const noexcept { return state_->memory.size(); }
  [[nodiscard]] int threads() const noexcept { return state_->threads.threads(); }
  [[nodiscard]] std::span<std::byte> memory() const noexcept { return state_->memory; }
  [[nodiscard]] Parallel parallel() const noexcept { return state_->threads.parallel(); }
  /// Milliseconds that the last image spent in each stage.
  [[nodiscard]] StageTimes& times() const noexcept { return state_->times; }
  [[nodiscard]] const void* made_for() const noexcept { return state_->made_for.get(); }
  /// Keeps the memory alive for a view into it.
  [[nodiscard]] std::shared_ptr<const void> keep_alive() const noexcept { return state_; }

 private:
  struct State {
    State(std::size_t bytes, int count, std::shared_ptr<const void> purpose)
        : owned(static_cast<std::int64_t>(bytes)), memory(owned.span()), threads(count), made_for(std::move(purpose)) {}
    State(std::span<std::byte> given, int count, std::shared_ptr<const void> purpose) : memory(given), threads(count), made_for(std::move(purpose)) {}
    Buffer<std::byte> owned;
    std::span<std::byte> memory;
    Threads threads;
    StageTimes times;
    std::shared_ptr<const void> made_for;
  };
  std::shared_ptr<State> state_;
};

}  // namespace norma
