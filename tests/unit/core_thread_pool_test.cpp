// The pool's protocol: with and without spinning, from several threads at once, after long pauses, without allocation. Run under a thread
// sanitizer too; the plain numbers that loops write here are what it watches.
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include <norma/core/thread_pool.hpp>

#include "../support/count_allocations.hpp"

using namespace norma;
using std::chrono::microseconds;

namespace {

// Sums over many short loops that build on one another's results: a worker that joins late, leaves early or runs an old loop breaks them.
std::int64_t row_of_loops(Parallel parallel, int loops, std::int64_t tasks, microseconds pause) {
  std::vector<std::int64_t> value(static_cast<std::size_t>(tasks), 0);
  for (int loop = 0; loop < loops; ++loop) {
    parallel.run(tasks, [&](std::int64_t task, int) { value[static_cast<std::size_t>(task)] += task + loop; });
    if (pause.count() > 0 && loop % 8 == 0) std::this_thread::sleep_for(pause);
  }
  std::int64_t sum = 0;
  for (const std::int64_t v : value) sum += v;
  return sum;
}

constexpr std::int64_t expected_sum(std::int64_t loops, std::int64_t tasks) {
  return loops * (tasks * (tasks - 1) / 2) + tasks * (loops * (loops - 1) / 2);
}

}  // namespace

TEST_CASE("ThreadPool: short loops one after the other, spinning and sleeping") {
  for (const int threads : {1, 2, 3, 5}) {
    for (const auto spin : {microseconds(0), microseconds(1), ThreadPool::kSpin, microseconds(5000)}) {
      ThreadPool pool(threads, spin);
      CHECK(pool.threads() == threads);
      CHECK(row_of_loops(pool.parallel(), 500, 7, microseconds(0)) == expected_sum(500, 7));
      CHECK(row_of_loops(pool.parallel(), 64, 2, microseconds(300)) == expected_sum(64, 2));  // longer than some of the spins
    }
  }
}

TEST_CASE("ThreadPool: two tasks run at the same time") {
  // Each task waits for the other: with one thread doing both this would never end.
  for (const auto spin : {microseconds(0), ThreadPool::kSpin}) {
    ThreadPool pool(2, spin);
    for (int repeat = 0; repeat < 20; ++repeat) {
      std::atomic<int> arrived{0};
      pool.parallel().run(2, [&](std::int64_t, int) {
        ++arrived;
        while (arrived < 2) std::this_thread::yield();
      });
      CHECK(arrived == 2);
    }
  }
}

TEST_CASE("ThreadPool: the caller waits for a worker that takes longer than the spin") {
  ThreadPool pool(2, microseconds(20));
  for (int repeat = 0; repeat < 5; ++repeat) {
    std::atomic<int> begun{0};
    int finished[2] = {0, 0};
    pool.parallel().run(2, [&](std::int64_t task, int worker) {
      ++begun;
      while (begun < 2) std::this_thread::yield();
      if (worker == 1) std::this_thread::sleep_for(std::chrono::milliseconds(3));
      finished[task] = 1;
    });
    CHECK(finished[0] + finished[1] == 2);
  }
}

TEST_CASE("ThreadPool: loops from several threads run one after the other") {
  for (const auto spin : {microseconds(0), ThreadPool::kSpin}) {
    ThreadPool pool(3, spin);
    std::int64_t shared = 0;  // of all loops; written by one task of each
    std::atomic<int> inside{0}, overlaps{0};
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller) {
      callers.emplace_back([&] {
        for (int loop = 0; loop < 100; ++loop) {
          std::atomic<int> first{1};
          pool.parallel().run(4, [&](std::int64_t task, int) {
            if (first.exchange(0) == 1 && inside.fetch_add(1) != 0) ++overlaps;
            if (task == 2) ++shared;
            if (task == 3) {
              while (first != 0) std::this_thread::yield();
              --inside;
            }
          });
        }
      });
    }
    for (auto& caller : callers) caller.join();
    CHECK(shared == 400);
    CHECK(overlaps == 0);
  }
}

TEST_CASE("ThreadPool: ends while its workers spin, sleep or have not begun") {
  for (int repeat = 0; repeat < 50; ++repeat) {
    const ThreadPool untouched(3);
    ThreadPool used(2, microseconds(repeat * 10));
    CHECK(row_of_loops(used.parallel(), 3, 5, microseconds(0)) == expected_sum(3, 5));
    if (repeat % 4 == 0) std::this_thread::sleep_for(microseconds(200));
  }
}

TEST_CASE("ThreadPool: loops allocate nothing") {
  ThreadPool pool(2);
  std::atomic<std::int64_t> sum{0};
  const std::int64_t before = test::allocation_count();
  for (int loop = 0; loop < 100; ++loop) pool.parallel().run(8, [&](std::int64_t task, int) { sum += task; });
  const std::int64_t after = test::allocation_count();
  CHECK(after == before);
  CHECK(sum == 2800);
}
