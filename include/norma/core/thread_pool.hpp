/// \file
/// Threads that wait for loops. Starting a loop allocates nothing.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include <norma/core/parallel.hpp>

namespace norma {

/// `threads - 1` waiting workers; the thread that calls a loop is the last one. Loops from several threads at once are run one
/// after the other.
///
/// A worker that has finished a loop looks for the next one for `spin` before it sleeps, and the caller looks as long for the last worker to
/// finish: a network is a row of short loops, and waking a sleeping thread takes longer than many of them (tens of microseconds on a virtual
/// machine). The price: after the last of a row of loops every worker keeps its processor for `spin` more, giving it up to other threads
/// that want it in the second half of that time. Zero sleeps at once, for machines whose processors are wanted elsewhere or run on a
/// battery. A pool with more threads than processors never spins.
class ThreadPool {
 public:
  static constexpr std::chrono::microseconds kSpin{100};

  /// `threads` <= 0 means one for every hardware thread.
  explicit ThreadPool(int threads = 0, std::chrono::microseconds spin = kSpin) {
    const int processors = static_cast<int>(std::thread::hardware_concurrency());  // 0: unknown
    if (threads <= 0) threads = processors;
    if (threads < 1) threads = 1;
    spin_ = threads > processors && processors > 0 ? std::chrono::microseconds(0) : spin;
    shares_ = std::vector<Share>(static_cast<std::size_t>(threads));
    workers_.reserve(static_cast<std::size_t>(threads - 1));
    for (int worker = 1; worker < threads; ++worker) workers_.emplace_back([this, worker] { wait_for_work(worker); });
  }
  ~ThreadPool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_.store(true, std::memory_order_release);
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
  // What is shared changes under the mutex; the atomic members may also be read without it, to see whether taking it is worth while.
  void run(std::int64_t tasks, Parallel::Task task, void* context) {
    const std::lock_guard one_loop(loop_mutex_);
    {
      const std::lock_guard lock(mutex_);
      task_ = task;
      context_ = context;
      const auto shares = static_cast<std::int64_t>(shares_.size());
      for (std::int64_t i = 0; i < shares; ++i) {
        Share& share = shares_[static_cast<std::size_t>(i)];
        share.next.store(tasks * i / shares, std::memory_order_relaxed);
        share.last = tasks * (i + 1) / shares;
      }
      open_ = true;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    drain(0);
    {
      const std::lock_guard lock(mutex_);
      open_ = false;  // who has not woken by now has nothing left to do: on a busy machine it may be long before it runs
    }
    const auto finished = [this] { return busy_.load(std::memory_order_acquire) == 0; };
    if (spin_until(finished)) return;
    std::unique_lock lock(mutex_);
    done_.wait(lock, finished);
  }

  // Its own share, then what is left of the others'. Neighbouring tasks go to one worker, loop after loop the same ones: what a task reads
  // usually lies in the cache of the processor that wrote it.
  void drain(int worker) {
    const std::size_t shares = shares_.size();
    for (std::size_t turn = 0; turn < shares; ++turn) {
      Share& share = shares_[(static_cast<std::size_t>(worker) + turn) % shares];
      for (std::int64_t i = share.next.fetch_add(1, std::memory_order_relaxed); i < share.last;
           i = share.next.fetch_add(1, std::memory_order_relaxed)) {
        task_(context_, i, worker);
      }
    }
  }

  void wait_for_work(int worker) {
    std::uint64_t seen = 0;
    const auto called = [&] {
      return stopping_.load(std::memory_order_acquire) || generation_.load(std::memory_order_acquire) != seen;
    };
    for (;;) {
      spin_until(called);
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, called);
        if (stopping_.load(std::memory_order_relaxed)) return;
        seen = generation_.load(std::memory_order_relaxed);
        if (!open_) continue;
        busy_.fetch_add(1, std::memory_order_relaxed);
      }
      drain(worker);
      const std::lock_guard lock(mutex_);
      if (busy_.fetch_sub(1, std::memory_order_release) == 1) done_.notify_one();
    }
  }

  // Looks for at most `spin_`; whether it came true.
  template <class Condition>
  bool spin_until(const Condition& condition) const {
    if (condition()) return true;
    if (spin_.count() <= 0) return false;
    const auto start = std::chrono::steady_clock::now();
    for (;;) {
      for (int i = 0; i < 16; ++i) {
        if (condition()) return true;
        pause();
      }
      const auto spent = std::chrono::steady_clock::now() - start;
      if (spent >= spin_) return false;
      if (2 * spent >= spin_) std::this_thread::yield();
    }
  }
  // Tells the processor that this is a loop that waits.
  static void pause() noexcept {
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
    __builtin_ia32_pause();
#elif defined(__GNUC__) && (defined(__aarch64__) || defined(__arm__))
    __asm__ __volatile__("yield");
#endif
  }

  // Tasks [next, last).
  struct alignas(64) Share {
    std::atomic<std::int64_t> next{0};
    std::int64_t last = 0;
  };

  std::vector<Share> shares_;  // one a thread
  std::vector<std::thread> workers_;
  std::chrono::nanoseconds spin_{0};
  std::mutex loop_mutex_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Parallel::Task task_ = nullptr;
  void* context_ = nullptr;
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<int> busy_{0};  // workers inside the loop
  bool open_ = false;         // whether more may join it
  std::atomic<bool> stopping_{false};
};

}  // namespace norma
