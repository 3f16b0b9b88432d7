// The committed files under tests/data, and damaged copies of files: the same ones in every run.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/io/file.hpp>

namespace norma::test {

/// The path of a file under tests/data.
inline std::string data_path(const std::string& relative) {
#ifdef NORMA_SOURCE_DIR
  return (std::filesystem::path(NORMA_SOURCE_DIR) / "tests" / "data" / relative).string();
#else
  return (std::filesystem::current_path() / "tests" / "data" / relative).string();
#endif
}

inline std::vector<std::byte> data_bytes(const std::string& relative) {
  auto bytes = io::read_file(data_path(relative), 1 << 26);
  REQUIRE_MESSAGE(bytes.ok(), bytes.message());
  return *std::move(bytes);
}

inline std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = io::as_bytes(text);
  return {bytes.begin(), bytes.end()};
}

/// A copy with one to four places damaged: a bit, a byte, a 32-bit extreme, a piece cut out, doubled or moved, or the end cut off.
inline std::vector<std::byte> damaged(const std::vector<std::byte>& original, Random& random) {
  std::vector<std::byte> bytes = original;
  for (std::int64_t changes = 1 + random.below(4); changes > 0 && !bytes.empty(); --changes) {
    const auto size = static_cast<std::int64_t>(bytes.size());
    // Headers are small and decide most: half of the changes hit the first or last kilobyte.
    std::int64_t at = random.below(size);
    if (random.below(2) == 0)
      at = random.below(2) == 0 ? at % std::min<std::int64_t>(size, 1024) : size - 1 - at % std::min<std::int64_t>(size, 1024);
    const auto place = bytes.begin() + at;
    const std::int64_t length = 1 + random.below(std::min<std::int64_t>(size - at, 16));
    switch (random.below(8)) {
      case 0: *place ^= static_cast<std::byte>(1u << random.below(8)); break;
      case 1: *place = static_cast<std::byte>(random.below(256)); break;
      case 2: *place = random.below(2) == 0 ? std::byte{0xff} : std::byte{0}; break;
      case 3: {
        const std::uint32_t extremes[] = {0xffffffffu, 0x7fffffffu, 0x80000000u, 0x00000000u, 0xfffffffeu, 0x00010000u};
        const std::uint32_t value = extremes[random.below(6)];
        for (std::int64_t i = 0; i < 4 && at + i < size; ++i) place[i] = static_cast<std::byte>(value >> (8 * i));
        break;
      }
      case 4: bytes.erase(place, place + length); break;
      case 5: {
        const std::vector<std::byte> piece(place, place + length);
        bytes.insert(bytes.begin() + random.below(size), piece.begin(), piece.end());
        break;
      }
      case 6: {
        const std::vector<std::byte> piece(place, place + length);
        const std::int64_t to = random.below(size - static_cast<std::int64_t>(piece.size()) + 1);
        std::copy(piece.begin(), piece.end(), bytes.begin() + to);
        break;
      }
      default: bytes.resize(static_cast<std::size_t>(at)); break;
    }
  }
  return bytes;
}

}  // namespace norma::test
