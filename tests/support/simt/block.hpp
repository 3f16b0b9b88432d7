/// \file
/// Runs the threads of one block on fibers: warps in turn, lanes in turn, with the barriers and warp operations of simt.cuh.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <norma/config.hpp>

#include <support/simt/fiber.hpp>
#include <support/simt/shared_memory.hpp>

namespace norma::test {

/// Where a kernel calls a barrier or a warp operation: the default argument of each. (clang 14 has no std::source_location.)
struct Where {
  const char* file = "";
  int line = 0;
  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

struct BlockPlace {
  std::int64_t x = 0, y = 0, z = 0;
  std::int64_t blocks_x = 1, blocks_y = 1, blocks_z = 1;
};

class Block {
 public:
  static constexpr int kWarp = 32;

  /// Runs one block to its end; returns what went wrong, or an empty string.
  std::string run(const std::function<void()>& kernel, const BlockPlace& place, int threads, std::size_t shared_bytes, bool last_warp_first) {
    kernel_ = &kernel;
    place_ = place;
    count_ = threads;
    shared_.reset(shared_bytes);
    warp_now_.assign(static_cast<std::size_t>((threads + kWarp - 1) / kWarp), 0);
    deferred_.assign(warp_now_.size(), Deferred{});
    now_ = 0;
    fault_.clear();
    while (static_cast<int>(fibers_.size()) < threads) fibers_.emplace_back();
    threads_.assign(static_cast<std::size_t>(threads), Thread{});
    for (int t = 0; t < threads; ++t) fibers_[static_cast<std::size_t>(t)].start(&Block::entry);
    Block* const before = current_;
    current_ = this;
    const int warps = static_cast<int>(warp_now_.size());
    while (fault_.empty()) {
      bool moved = false;
      for (int w = 0; w < warps && fault_.empty(); ++w) moved = run_warp(last_warp_first ? warps - 1 - w : w) || moved;
      if (!fault_.empty() || all_done()) break;
      if (!release_barriers() && !moved && fault_.empty()) stuck();
    }
    current_ = before;
    return fault_;
  }

  static Block& current() { return *current_; }
  [[nodiscard]] const BlockPlace& place() const noexcept { return place_; }
  [[nodiscard]] int thread() const noexcept { return running_; }
  [[nodiscard]] int threads() const noexcept { return count_; }
  [[nodiscard]] SharedMemory& shared() noexcept { return shared_; }
  [[nodiscard]] Moment moment() const noexcept { return {now_, warp_now_[static_cast<std::size_t>(running_ / kWarp)]}; }

  /// Ends the kernel: nothing after this call runs. NORMA_EMULATION_ABORT=1 stops in a debugger instead.
  void fail(const std::string& what) {
    if (std::getenv("NORMA_EMULATION_ABORT") != nullptr) {
      std::fprintf(stderr, "emulation: %s\n", what.c_str());
      std::abort();
    }
    if (fault_.empty()) {
      fault_ = "block " + std::to_string(place_.x) + "," + std::to_string(place_.y) + "," + std::to_string(place_.z) + ", thread " + std::to_string(running_) +
               ": " + what;
    }
#if NORMA_HAS_EXCEPTIONS
    throw Stop{};  // so that what the kernel's frames hold is released
#else
    fibers_[static_cast<std::size_t>(running_)].yield();  // never resumed
#endif
  }
  void require(const std::string& fault) {
    if (!fault.empty()) fail(fault);
  }

  void barrier(int id, int threads, Where where) {
    Thread& me = self();
    me.state = State::at_barrier;
    me.barrier = id;
    me.barrier_threads = threads;
    me.where = where;
    yield();
  }

  /// All lanes meet; the last one to come runs `together` (which sees every lane's `data`), then all go on.
  void meet(const char* operation, void* data, const std::function<void(Block&, int warp)>& together, Where where) {
    Thread& me = self();
    me.state = State::at_meeting;
    me.operation = operation;
    me.data = data;
    me.together = &together;
    me.where = where;
    yield();
  }
  [[nodiscard]] void* data_of(int thread) const { return threads_[static_cast<std::size_t>(thread)].data; }

  void next_warp_moment(int warp) { ++warp_now_[static_cast<std::size_t>(warp)]; }

  /// Work of a warp that is done when the warp waits for its group; it returns what went wrong.
  void defer(int warp, std::function<std::string()> work) {
    Deferred& d = deferred_[static_cast<std::size_t>(warp)];
    d.work.emplace_back(d.closed, std::move(work));
  }
  void close_group(int warp) { ++deferred_[static_cast<std::size_t>(warp)].closed; }
  void finish_groups(int warp, int open) {
    Deferred& d = deferred_[static_cast<std::size_t>(warp)];
    std::size_t done = 0;
    for (; done < d.work.size() && d.work[done].first < d.closed - open; ++done) {
      const std::string fault = d.work[done].second();
      if (!fault.empty()) note(fault);
    }
    d.work.erase(d.work.begin(), d.work.begin() + static_cast<std::ptrdiff_t>(done));
  }

  struct Copy {
    std::size_t offset = 0, bytes = 0;
    const void* from = nullptr;
    int group = 0;
  };
  std::vector<Copy>& copies() { return self().copies; }
  int& committed() { return self().committed; }
  /// Finishes this thread's copies of all but the last `open` groups.
  void finish_copies(int open) {
    Thread& me = self();
    std::size_t kept = 0;
    for (const Copy& copy : me.copies) {
      if (copy.group < me.committed - open) {
        shared_.end_copy(copy.offset, copy.bytes, copy.from, running_, moment());
      } else {
        me.copies[kept++] = copy;
      }
    }
    me.copies.resize(kept);
  }

 private:
  enum class State : std::uint8_t { ready, at_barrier, at_meeting, done };
  struct Thread {
    State state = State::ready;
    int barrier = 0, barrier_threads = 0;
    const char* operation = nullptr;
    void* data = nullptr;
    const std::function<void(Block&, int)>* together = nullptr;
    Where where;
    std::vector<Copy> copies;
    int committed = 0;
  };

  struct Stop {};

  struct Deferred {
    int closed = 0;
    std::vector<std::pair<int, std::function<std::string()>>> work;
  };

  static void entry() {
    Block& block = *current_;
    block.fiber().entered();
#if NORMA_HAS_EXCEPTIONS
    try {
      (*block.kernel_)();
    } catch (const Stop&) {
    }
#else
    (*block.kernel_)();
#endif
    block.self().state = State::done;
    block.yield();
  }
  Fiber& fiber() { return fibers_[static_cast<std::size_t>(running_)]; }
  Thread& self() { return threads_[static_cast<std::size_t>(running_)]; }
  void yield() { fiber().yield(); }

  // Until every lane waits for the block or has left. True when anything ran.
  bool run_warp(int warp) {
    const int first = warp * kWarp, last = std::min(first + kWarp, count_);
    bool moved = false;
    while (true) {
      for (int t = first; t < last; ++t) {
        if (threads_[static_cast<std::size_t>(t)].state != State::ready) continue;
        running_ = t;
        fiber().resume();
        moved = true;
        if (!fault_.empty()) return moved;
      }
      if (!hold_meeting(warp, first, last)) return moved;
    }
  }

  bool hold_meeting(int warp, int first, int last) {
    int waiting = 0;
    for (int t = first; t < last; ++t) waiting += threads_[static_cast<std::size_t>(t)].state == State::at_meeting ? 1 : 0;
    if (waiting == 0) return false;
    const Thread* one = nullptr;
    for (int t = first; t < last; ++t) {
      const Thread& thread = threads_[static_cast<std::size_t>(t)];
      if (thread.state == State::at_meeting && one == nullptr) one = &thread;
    }
    running_ = first;
    if (waiting != kWarp) {
      note(std::string(one->operation) + " at " + place_of(one->where) + " needs all 32 lanes, " + std::to_string(waiting) + " of warp " + std::to_string(warp) +
           " came (others left, or wait elsewhere)");
      return false;
    }
    for (int t = first; t < last; ++t) {
      const Thread& thread = threads_[static_cast<std::size_t>(t)];
      if (std::strcmp(thread.operation, one->operation) != 0 || thread.where.line != one->where.line) {
        note("lanes of warp " + std::to_string(warp) + " meet at different places: " + one->operation + " at " + place_of(one->where) + " and " +
             thread.operation + " at " + place_of(thread.where));
        return false;
      }
    }
    (*one->together)(*this, warp);
    for (int t = first; t < last; ++t) threads_[static_cast<std::size_t>(t)].state = State::ready;
    return fault_.empty();
  }

  // Warps are between operations here: every thread waits at a barrier or is done.
  bool release_barriers() {
    for (int t = 0; t < count_; ++t) {
      const Thread& thread = threads_[static_cast<std::size_t>(t)];
      if (thread.state != State::at_barrier) continue;
      int came = 0, left = 0;
      for (int u = 0; u < count_; ++u) {
        const Thread& other = threads_[static_cast<std::size_t>(u)];
        left += other.state == State::done ? 1 : 0;
        came += other.state == State::at_barrier && other.barrier == thread.barrier ? 1 : 0;
      }
      const int wanted = thread.barrier == 0 ? count_ - left : thread.barrier_threads;
      if (came < wanted) continue;
      running_ = t;
      if (came > wanted) {
        note("named barrier " + std::to_string(thread.barrier) + " at " + place_of(thread.where) + " is for " + std::to_string(wanted) + " threads, " +
             std::to_string(came) + " came");
        return false;
      }
      const int id = thread.barrier;
      const Where where = thread.where;
      for (int u = 0; u < count_; ++u) {
        Thread& other = threads_[static_cast<std::size_t>(u)];
        if (other.state != State::at_barrier || other.barrier != id) continue;
        if (other.where.line != where.line && id == 0) {
          note("threads wait at different barriers: " + place_of(where) + " and " + place_of(other.where));
          return false;
        }
        other.state = State::ready;
      }
      ++now_;
      return true;
    }
    return false;
  }

  [[nodiscard]] bool all_done() const {
    for (const Thread& thread : threads_) {
      if (thread.state != State::done) return false;
    }
    return true;
  }
  void stuck() {
    std::string text = "the block is stuck:";
    State said = State::done;
    for (int t = 0; t < count_; ++t) {
      const Thread& thread = threads_[static_cast<std::size_t>(t)];
      if (thread.state == State::done || thread.state == said) continue;
      said = thread.state;
      running_ = t;
      text += " thread " + std::to_string(t) + " waits at " + place_of(thread.where) + ";";
    }
    note(text);
  }
  // A fault found by the scheduler, on its own stack.
  void note(const std::string& what) {
    if (fault_.empty()) fault_ = "block " + std::to_string(place_.x) + "," + std::to_string(place_.y) + "," + std::to_string(place_.z) + ": " + what;
  }
  static std::string place_of(const Where& where) {
    const std::string file = where.file;
    return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line);
  }

  static inline Block* current_ = nullptr;
  const std::function<void()>* kernel_ = nullptr;
  BlockPlace place_;
  int count_ = 0;
  int running_ = 0;
  std::uint32_t now_ = 0;
  std::vector<std::uint32_t> warp_now_;
  std::vector<Deferred> deferred_;  // of each warp
  std::vector<Fiber> fibers_;
  std::vector<Thread> threads_;
  SharedMemory shared_;
  std::string fault_;
};

}  // namespace norma::test
