/// \file
/// Execution policy: where a detector runs, and who runs its loops.
#pragma once

#include <string_view>

#include <norma/core/parallel.hpp>

namespace norma {

class ThreadPool;  // core/thread_pool.hpp

/// No threads: everything runs where it is called.
class SingleThread {
 public:
  explicit SingleThread(int /*threads*/ = 1) noexcept {}
  [[nodiscard]] int threads() const noexcept { return 1; }
  [[nodiscard]] Parallel parallel() const noexcept { return {}; }
};

/// The host processor; `ThreadsT` is ThreadPool, or SingleThread for targets without threads (then <thread> is never included).
template <class ThreadsT = ThreadPool>
struct Cpu {
  using Threads = ThreadsT;
  static constexpr std::string_view name = "cpu";
};

}  // namespace norma
