/// \file
/// Threads that wait for loops. Starting a loop allocates nothing.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include <norma/core/parallel.hpp>

namespace norma {

/// `threads - 1` waiting workers; the thread that calls a loop is the last one. Loops from several threads at once are run one
/// after the other.
class ThreadPool {
 public:
  /// `threads` <= 0 means one for every hardware thread.
  explicit ThreadPool(int threads = 0) {
    if (threads <= 0) threads = static_cast<int>(std::thread::hardware_concurrency());
    if (threads < 1) threads = 1;
    workers_.reserve(static_cast<std::size_t>(threads - 1));
    for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { wait_for_work(worker); });
  }
  ~ThreadPool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int threads() const noexcept { return static_cast<int>(workers_.size()) + 1; }
  [[nodiscard]] Parallel parallel() noexcept {
    if (workers_.empty()) return {};
    return {this, [](void* self, std::int64_t tasks, Parallel::Task task, void* context) {
              static_cast<ThreadPool*>(self)->run(tasks, task, context);
            }, threads()};
  }

 private:
  void run(std::int64_t tasks, Parallel::Task task, void* context) {
    const std::lock_guard one_loop(loop_mutex_);
    {
      const std::lock_guard lock(mutex_);
      task_ = task;
      context_ = context;
      tasks_ = tasks;
      next_.store(0, std::memory_order_relaxed);
      open_ = true;
      ++generation_;
    }
    wake_.notify_all();
    drain(0);
    std::unique_lock lock(mutex_);
    open_ = false;  // who has not woken by now has nothing left to do: on a busy machine it may be long before it runs
    done_.wait(lock, [this] { return busy_ == 0; });
  }

  void drain(int worker) {
    for (std::int64_t i = next_.fetch_add(1, std::memory_order_relaxed); i < tasks_;
         i = next_.fetch_add(1, std::memory_order_relaxed)) {
      task_(context_, i, worker);
    }
  }

  void wait_for_work(int worker) {
    std::uint64_t seen = 0;
    for (;;) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stopping_ || generation_ != seen; });
        if (stopping_) return;
        seen = generation_;
        if (!open_) continue;
        ++busy_;
      }
      drain(worker);
      const std::lock_guard lock(mutex_);
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> workers_;
  std::mutex loop_mutex_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<std::int64_t> next_{0};
  std::int64_t tasks_ = 0;
  Parallel::Task task_ = nullptr;
  void* context_ = nullptr;
  std::uint64_t generation_ = 0;
  int busy_ = 0;       // workers inside the loop
  bool open_ = false;  // whether more may join it
  bool stopping_ = false;
};

}  // namespace norma
