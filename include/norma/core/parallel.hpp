/// \file
/// Parallel loops whose results do not depend on the number of threads: work is cut into tasks by the problem's size, never by
/// the number of workers, and every task writes its own outputs.
///
/// `Parallel` is a reference to whoever runs the tasks; operations take it by value. The default runs everything on the calling
/// thread and needs no thread support; `ThreadPool` (core/thread_pool.hpp) provides the other one.
#pragma once

#include <cstdint>
#include <type_traits>

#include <norma/config.hpp>

namespace norma {

class Parallel {
 public:
  using Task = void (*)(void* context, std::int64_t task, int worker);
  using Runner = void (*)(void* self, std::int64_t tasks, Task task, void* context);

  constexpr Parallel() noexcept = default;
  constexpr Parallel(void* self, Runner runner, int workers) noexcept : self_(self), runner_(runner), workers_(workers) {}

  /// Number of distinct `worker` values that tasks may see; at least 1. For per-worker scratch.
  [[nodiscard]] constexpr int workers() const noexcept { return workers_; }

  /// Calls `body(task, worker)` for every task in [0, tasks), each once, and returns when all are done.
  /// The order is not defined; one worker runs one task at a time. Must not be called from inside `body`.
  template <class Body>
  void run(std::int64_t tasks, Body&& body) const {
    if (tasks <= 0) return;
    if (runner_ == nullptr || tasks == 1) {
      for (std::int64_t task = 0; task < tasks; ++task) body(task, 0);
      return;
    }
    using Plain = std::remove_reference_t<Body>;
    runner_(
        self_, tasks, [](void* context, std::int64_t task, int worker) { (*static_cast<Plain*>(context))(task, worker); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

  /// Calls `body(first, last, worker)` over [0, count) in pieces of `grain`.
  template <class Body>
  void run_ranges(std::int64_t count, std::int64_t grain, Body&& body) const {
    NORMA_EXPECTS(grain > 0);
    run((count + grain - 1) / grain, [&](std::int64_t task, int worker) {
      const std::int64_t first = task * grain;
      body(first, first + grain < count ? first + grain : count, worker);
    });
  }

 private:
  void* self_ = nullptr;
  Runner runner_ = nullptr;
  int workers_ = 1;
};

}  // namespace norma
