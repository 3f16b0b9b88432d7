/// \file
/// Scores as unsigned integers of the same order, and their sort. Every ranking metric is a walk over such sorted keys.
/// Cost: least-significant-digit radix sort, O(n) with one extra copy of the keys; a comparison sort below 4,096 keys.
/// Determinism: the sorted sequence does not depend on the number of threads.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include <norma/core/parallel.hpp>
#include <norma/core/tensor.hpp>

namespace norma::evaluation {

/// Order-preserving map from a floating-point score to an unsigned integer: a < b exactly when key(a) < key(b), and -0.0 has the
/// key of 0.0. Infinities are ordinary values. Precondition: not NaN.
template <class T>
struct SortKey {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>);
  using type = std::conditional_t<std::is_same_v<T, float>, std::uint32_t, std::uint64_t>;
  static constexpr type kSign = type{1} << (std::numeric_limits<type>::digits - 1);

  static constexpr type encode(T score) noexcept {
    const type bits = std::bit_cast<type>(score + T{0});  // the addition turns -0.0 into 0.0
    return (bits & kSign) != 0 ? static_cast<type>(~bits) : static_cast<type>(bits | kSign);
  }
  static constexpr T decode(type key) noexcept {
    return std::bit_cast<T>((key & kSign) != 0 ? static_cast<type>(key & ~kSign) : static_cast<type>(~key));
  }
};

/// Sorts ascending.
template <class Key>
void sort_keys(Buffer<Key>& keys, Parallel parallel = {}) {
  static_assert(std::is_unsigned_v<Key>);
  constexpr std::int64_t kSmall = 4096;
  constexpr std::int64_t kGrain = std::int64_t{1} << 18;  // keys a task; part of the algorithm, not of the machine
  constexpr int kDigitBits = 8;
  constexpr std::size_t kDigits = std::size_t{1} << kDigitBits;
  const std::int64_t n = keys.size();
  if (n < kSmall) {
    std::sort(keys.data(), keys.data() + n);
    return;
  }
  using Histogram = std::array<std::int64_t, kDigits>;
  Buffer<Key> other(n);
  std::vector<Histogram> next(static_cast<std::size_t>((n + kGrain - 1) / kGrain));
  for (int shift = 0; shift < std::numeric_limits<Key>::digits; shift += kDigitBits) {
    const auto digit = [shift](Key key) { return static_cast<std::size_t>(key >> shift & (kDigits - 1)); };
    const Key* from = keys.data();
    Key* to = other.data();
    parallel.run_ranges(n, kGrain, [&](std::int64_t first, std::int64_t last, int) {
      Histogram& count = next[static_cast<std::size_t>(first / kGrain)];
      count.fill(0);
      for (std::int64_t i = first; i < last; ++i) ++count[digit(from[i])];
    });
    // Where each task puts its first key of each digit: all smaller digits come before, then the same digit of earlier tasks.
    std::int64_t place = 0;
    bool one_digit = false;
    for (std::size_t d = 0; d < kDigits; ++d) {
      const std::int64_t start = place;
      for (Histogram& task : next) place += std::exchange(task[d], place);
      one_digit = one_digit || place - start == n;
    }
    if (one_digit) continue;  // every key has the same digit here: nothing moves
    parallel.run_ranges(n, kGrain, [&](std::int64_t first, std::int64_t last, int) {
      Histogram& at = next[static_cast<std::size_t>(first / kGrain)];
      for (std::int64_t i = first; i < last; ++i) to[at[digit(from[i])]++] = from[i];
    });
    std::swap(keys, other);
  }
}

/// Index of the first key >= `key` in the ascending keys[0, end), searching from the end: O(log distance). So walking down a list
/// with falling `key` costs no more than a merge, and much less where one list is short.
template <class Key>
[[nodiscard]] std::int64_t lower_bound_from_end(const Key* keys, std::int64_t end, Key key) noexcept {
  std::int64_t high = end;  // keys[high, end) are all >= key
  std::int64_t step = 1;
  while (step <= high && keys[high - step] >= key) {
    high -= step;
    step *= 2;
  }
  const std::int64_t low = step <= high ? high - step + 1 : 0;
  return std::lower_bound(keys + low, keys + high, key) - keys;
}

}  // namespace norma::evaluation
