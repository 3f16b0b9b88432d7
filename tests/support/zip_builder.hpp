// Builds small zip archives of stored entries, for tests that need archives with faults of their own choice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <norma/io/file.hpp>
#include <norma/io/inflate.hpp>

namespace norma::test {

class ZipBuilder {
 public:
  ZipBuilder& add(std::string name, std::string_view content) {
    entries_.push_back({std::move(name), std::string(content), static_cast<std::uint32_t>(content.size()), 0, 0, std::nullopt});
    return *this;
  }
  /// Packed bytes with a header of the test's choice.
  ZipBuilder& add_packed(std::string name, std::string_view packed, std::uint32_t size, std::uint16_t method, std::uint32_t crc,
                         std::uint16_t flags = 0) {
    entries_.push_back({std::move(name), std::string(packed), size, method, flags, crc});
    return *this;
  }

  [[nodiscard]] std::string text(std::string_view comment = {}) const {
    std::string out, directory;
    for (const Entry& e : entries_) {
      const auto offset = static_cast<std::uint32_t>(out.size());
      const std::uint32_t crc = e.crc ? *e.crc : io::crc32(io::as_bytes(e.packed));
      const auto packed = static_cast<std::uint32_t>(e.packed.size());
      const auto common = [&](std::string& to) {
        number(to, 20, 2);
        number(to, e.flags, 2);
        number(to, e.method, 2);
        number(to, 0, 4);
        number(to, crc, 4);
        number(to, packed, 4);
        number(to, e.size, 4);
        number(to, static_cast<std::uint32_t>(e.name.size()), 2);
        number(to, 0, 2);
      };
      out += "PK\x03\x04";
      common(out);
      out += e.name + e.packed;
      directory += "PK\x01\x02";
      number(directory, 20, 2);
      common(directory);
      number(directory, 0, 2);  // comment, disk, attributes
      number(directory, 0, 4);
      number(directory, 0, 4);
      number(directory, offset, 4);
      directory += e.name;
    }
    const auto start = static_cast<std::uint32_t>(out.size());
    out += directory + "PK\x05\x06";
    number(out, 0, 4);
    number(out, static_cast<std::uint32_t>(entries_.size()), 2);
    number(out, static_cast<std::uint32_t>(entries_.size()), 2);
    number(out, static_cast<std::uint32_t>(directory.size()), 4);
    number(out, start, 4);
    number(out, static_cast<std::uint32_t>(comment.size()), 2);
    return out + std::string(comment);
  }
  [[nodiscard]] std::vector<std::byte> bytes() const {
    const std::string all = text();
    const auto view = io::as_bytes(all);
    return {view.begin(), view.end()};
  }

 private:
  struct Entry {
    std::string name;
    std::string packed;
    std::uint32_t size;
    std::uint16_t method;
    std::uint16_t flags;
    std::optional<std::uint32_t> crc;
  };
  static void number(std::string& to, std::uint32_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) to.push_back(static_cast<char>(value >> (8 * i)));
  }
  std::vector<Entry> entries_;
};

}  // namespace norma::test
