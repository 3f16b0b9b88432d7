/// \file
/// What this machine can do in this minute: the rate of fused multiply-adds from registers and the rate of reading memory. Benchmarks
/// measure them beside their kernels, because on shared machines a "percent of peak" is only worth something within one run.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <ctime>

#include <norma/core/parallel.hpp>
#include <norma/core/tensor.hpp>
#include <norma/linalg/simd.hpp>

namespace norma::bench {

inline double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// A clock for work on `threads` threads: the processor time of this thread where it is the only one, so that what else runs on the machine
/// is left out (its use of shared caches and memory is not); else the time on the wall.
inline double work_seconds([[maybe_unused]] int threads) {
#if defined(CLOCK_THREAD_CPUTIME_ID)
  if (threads == 1) {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }
#endif
  return seconds();
}

}  // namespace norma::bench

#define NORMA_SIMD_FILE "../../../../bench/support/peak.inl"  // as seen from the folder of the next file
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE

namespace norma::bench {

/// Multiply-adds from registers only, GFLOP/s over all workers (two operations each): the best of `repeats` rounds of about half a
/// millisecond, short enough to fit between two interruptions on a busy machine.
/// The generic set counts multiplications and additions the same way, fused or not.
inline double fma_peak(InstructionSet set = instruction_set(), Parallel parallel = {}, int repeats = 40) {
  const std::int64_t rounds = 150'000;
  const double floats = 12.0 * NORMA_SIMD_SELECT(set, kWidth);  // of a round: twelve chains
  const int workers = parallel.workers();
  double best = 0.0;
  for (int i = 0; i < repeats; ++i) {
    const double start = work_seconds(workers);
    parallel.run(workers, [&](std::int64_t, int) { [[maybe_unused]] volatile float sink = NORMA_SIMD_SELECT(set, fma_chains)(rounds); });
    const double time = work_seconds(workers) - start;
    best = std::max(best, 2e-9 * static_cast<double>(rounds) * floats * workers / time);
  }
  return best;
}

/// Reading `megabytes` of memory once, GB/s over all workers: the best of `repeats`.
inline double read_bandwidth(std::int64_t megabytes = 256, Parallel parallel = {}, InstructionSet set = instruction_set(),
                             int repeats = 3) {
  const std::int64_t count = megabytes * (1 << 18);
  Buffer<float> memory(count);
  double best = 0.0;
  const std::int64_t grain = (count + parallel.workers() - 1) / parallel.workers();
  for (int i = 0; i < repeats; ++i) {
    const double start = work_seconds(parallel.workers());
    parallel.run_ranges(count, grain, [&](std::int64_t first, std::int64_t last, int) {
      [[maybe_unused]] volatile float sink = NORMA_SIMD_SELECT(set, sum_of)(memory.data() + first, last - first);
    });
    best = std::max(best, 4e-9 * static_cast<double>(count) / (work_seconds(parallel.workers()) - start));
  }
  return best;
}

}  // namespace norma::bench
