/// \file
/// The channel subset that PaDiM's usual re-implementation draws, so that models can be compared map by map with it: Python's
/// `random.seed(seed); random.sample(range(total), count)` (Mersenne Twister, rejection on the needed bits, pool or set selection).
#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include <norma/config.hpp>

namespace norma::features {

namespace detail {

/// MT19937 seeded as CPython seeds it from one 32-bit integer (`init_by_array` of that word).
class PythonRandom {
 public:
  explicit PythonRandom(std::uint32_t seed) {
    constexpr int n = 624;
    state_[0] = 19650218u;
    for (int i = 1; i < n; ++i) {
      state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + static_cast<std::uint32_t>(i);
    }
    int i = 1;
    for (int k = 0; k < n; ++k) {
      state_[i] = (state_[i] ^ ((state_[i - 1] ^ (state_[i - 1] >> 30)) * 1664525u)) + seed;
      if (++i >= n) state_[0] = state_[n - 1], i = 1;
    }
    for (int k = 0; k < n - 1; ++k) {
      state_[i] = (state_[i] ^ ((state_[i - 1] ^ (state_[i - 1] >> 30)) * 1566083941u)) - static_cast<std::uint32_t>(i);
      if (++i >= n) state_[0] = state_[n - 1], i = 1;
    }
    state_[0] = 0x80000000u;
  }
  /// Uniform in [0, bound).
  std::int64_t below(std::int64_t bound) {
    const auto bits = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(bound)));
    std::int64_t value = bound;
    while (value >= bound) value = static_cast<std::int64_t>(next() >> (32 - bits));
    return value;
  }

 private:
  std::uint32_t next() {
    constexpr int n = 624;
    constexpr int m = 397;
    if (index_ == n) {
      for (int k = 0; k < n; ++k) {
        const std::uint32_t y = (state_[k] & 0x80000000u) | (state_[(k + 1) % n] & 0x7fffffffu);
        state_[k] = state_[(k + m) % n] ^ (y >> 1) ^ ((y & 1u) != 0 ? 0x9908b0dfu : 0u);
      }
      index_ = 0;
    }
    std::uint32_t y = state_[index_++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
  }
  std::uint32_t state_[624];
  int index_ = 624;
};

}  // namespace detail

/// `count` different channels of [0, total), in the reference's order. Precondition: 0 <= count <= total < 2^31.
inline std::vector<std::int64_t> reference_channels(std::int64_t total, std::int64_t count, std::uint32_t seed) {
  NORMA_EXPECTS(0 <= count && count <= total && total < (std::int64_t{1} << 31));
  detail::PythonRandom random(seed);
  std::vector<std::int64_t> chosen;
  chosen.reserve(static_cast<std::size_t>(count));
  std::int64_t set_size = 21;  // CPython: above this many, a set of the chosen is smaller than a list of all
  if (count > 5) {
    std::int64_t power = 4;
    while (power < count * 3) power *= 4;
    set_size += power;
  }
  if (total <= set_size) {
    std::vector<std::int64_t> pool(static_cast<std::size_t>(total));
    for (std::int64_t i = 0; i < total; ++i) pool[static_cast<std::size_t>(i)] = i;
    for (std::int64_t i = 0; i < count; ++i) {
      const auto j = static_cast<std::size_t>(random.below(total - i));
      chosen.push_back(pool[j]);
      pool[j] = pool[static_cast<std::size_t>(total - i - 1)];
    }
  } else {
    std::vector<bool> taken(static_cast<std::size_t>(total));
    while (static_cast<std::int64_t>(chosen.size()) < count) {
      const std::int64_t j = random.below(total);
      if (taken[static_cast<std::size_t>(j)]) continue;
      taken[static_cast<std::size_t>(j)] = true;
      chosen.push_back(j);
    }
  }
  return chosen;
}

}  // namespace norma::features
