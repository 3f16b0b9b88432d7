/// \file
/// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
/// The value at (seed, stream, index) is a pure function, so results do not depend on order, threads or platform.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <utility>
#include <vector>

#include <norma/config.hpp>

namespace norma {

/// The ten-round bijection: 128-bit counter, 64-bit key.
constexpr std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) noexcept {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * counter[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<std::uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(b),
               static_cast<std::uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

/// A sequence of random numbers. `stream` separates independent uses of one seed (one image, one layer, one epoch).
class Random {
 public:
  explicit constexpr Random(std::uint64_t seed, std::uint64_t stream = 0) noexcept : seed_(seed), stream_(stream) {}

  constexpr std::uint32_t bits() noexcept {
    if (left_ == 0) {
      block_ = philox4x32({static_cast<std::uint32_t>(index_), static_cast<std::uint32_t>(index_ >> 32),
                           static_cast<std::uint32_t>(stream_), static_cast<std::uint32_t>(stream_ >> 32)},
                          {static_cast<std::uint32_t>(seed_), static_cast<std::uint32_t>(seed_ >> 32)});
      ++index_;
      left_ = 4;
    }
    return block_[static_cast<std::size_t>(4 - left_--)];
  }
  constexpr std::uint64_t bits64() noexcept {
    const std::uint64_t high = bits();
    return high << 32 | bits();
  }
  /// Uniform in [0, 1), 53 bits.
  constexpr double uniform() noexcept { return static_cast<double>(bits64() >> 11) * 0x1p-53; }
  /// Uniform in [low, high).
  constexpr double uniform(double low, double high) noexcept { return low + (high - low) * uniform(); }
  /// Uniform in [0, bound), unbiased by rejection. Precondition: bound > 0.
  constexpr std::int64_t below(std::int64_t bound) noexcept {
    NORMA_EXPECTS(bound > 0);
    const auto n = static_cast<std::uint64_t>(bound);
    const std::uint64_t limit = ~std::uint64_t{0} - ~std::uint64_t{0} % n;
    std::uint64_t value = bits64();
    while (value >= limit) value = bits64();
    return static_cast<std::int64_t>(value % n);
  }
  /// Standard normal (Box-Muller).
  double normal() noexcept {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
    return radius * std::cos(2.0 * std::numbers::pi * uniform());
  }

 private:
  std::uint64_t seed_;
  std::uint64_t stream_;
  std::uint64_t index_ = 0;
  std::array<std::uint32_t, 4> block_{};
  int left_ = 0;
};

/// `count` different numbers of [0, bound) in random order (partial Fisher-Yates). Precondition: count <= bound.
inline std::vector<std::int64_t> sample_without_replacement(std::int64_t bound, std::int64_t count, Random& random) {
  NORMA_EXPECTS(count <= bound);
  std::vector<std::int64_t> all(static_cast<std::size_t>(bound));
  for (std::int64_t i = 0; i < bound; ++i) all[static_cast<std::size_t>(i)] = i;
  for (std::int64_t i = 0; i < count; ++i) {
    std::swap(all[static_cast<std::size_t>(i)], all[static_cast<std::size_t>(i + random.below(bound - i))]);
  }
  all.resize(static_cast<std::size_t>(count));
  return all;
}

}  // namespace norma
