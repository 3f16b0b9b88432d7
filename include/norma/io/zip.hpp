/// \file
/// A restricted reader of zip archives in memory: stored and deflated entries, zip64, no encryption, one volume. Nothing is ever written
/// to a file system. Sizes, offsets, overlaps and checksums are checked; limits stop archives that unpack to far more than they hold.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/status.hpp>
#include <norma/io/file.hpp>
#include <norma/io/inflate.hpp>

namespace norma::io {

struct ZipLimits {
  std::int64_t entries = 1 << 18;
  std::int64_t entry_bytes = std::int64_t{1} << 33;  ///< of one entry, unpacked
  /// Unpacked over packed, for entries above 16 MiB unpacked. Deflate itself cannot exceed 1032.
  std::int64_t ratio = 200;
};

enum class ZipMethod : std::uint16_t { stored = 0, deflated = 8 };

struct ZipEntry {
  std::string name;  ///< as stored, checked: relative, without "..", backslashes and control characters
  ZipMethod method = ZipMethod::stored;
  std::uint32_t crc = 0;
  std::int64_t size = 0;  ///< unpacked
  std::span<const std::byte> packed;
};

/// An opened archive: a list of entries over bytes that must outlive it.
class ZipArchive {
 public:
  /// Errors name `name`: corrupt, unsupported (encryption, other methods, several volumes, beyond a limit).
  static Result<ZipArchive> open(std::span<const std::byte> bytes, std::string name, const ZipLimits& limits = {});

  /// In the order of the central directory. Folders (names ending in '/') are left out.
  [[nodiscard]] std::span<const ZipEntry> entries() const noexcept { return entries_; }
  [[nodiscard]] const ZipEntry* find(std::string_view name) const noexcept {
    const auto at = std::find_if(entries_.begin(), entries_.end(), [&](const ZipEntry& entry) { return entry.name == name; });
    return at != entries_.end() ? &*at : nullptr;
  }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }

  /// Unpacks an entry and checks its CRC-32.
  [[nodiscard]] Result<std::vector<std::byte>> read(const ZipEntry& entry) const;
  /// The bytes of a stored entry where they are, CRC-32 checked. Error for a deflated one: unsupported.
  [[nodiscard]] Result<std::span<const std::byte>> view(const ZipEntry& entry) const;

 private:
  ZipArchive(std::string name, std::vector<ZipEntry> entries) noexcept : name_(std::move(name)), entries_(std::move(entries)) {}
  [[nodiscard]] Status check(const ZipEntry& entry, std::span<const std::byte> unpacked) const;

  std::string name_;
  std::vector<ZipEntry> entries_;
};

namespace detail {

/// Little-endian reading with a check of the bounds: beyond the end gives zeros and `ok` false.
struct LittleEndianReader {
  std::span<const std::byte> bytes;
  bool ok = true;

  [[nodiscard]] std::uint64_t at(std::uint64_t offset, std::size_t size) noexcept {
    if (offset > bytes.size() || bytes.size() - offset < size) {
      ok = false;
      return 0;
    }
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < size; ++i) value |= std::to_integer<std::uint64_t>(bytes[static_cast<std::size_t>(offset) + i]) << (8 * i);
    return value;
  }
};

[[nodiscard]] inline bool safe_zip_name(std::string_view name) noexcept {
  if (name.empty() || name.front() == '/') return false;
  for (const char c : name) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f || c == '\\') return false;
  }
  for (std::size_t at = 0; at <= name.size();) {
    const std::size_t slash = std::min(name.find('/', at), name.size());
    if (name.substr(at, slash - at) == "..") return false;
    at = slash + 1;
  }
  return true;
}

}  // namespace detail

inline Result<ZipArchive> ZipArchive::open(std::span<const std::byte> bytes, std::string name, const ZipLimits& limits) {
  const auto error = [&](Errc code, const std::string& what) { return Status(code, "ZipArchive::open: '" + name + "': " + what); };
  const auto corrupt = [&](const std::string& what) { return error(Errc::corrupt, what); };
  constexpr std::size_t kEndBytes = 22;
  constexpr std::uint64_t kEndMark = 0x06054b50, kEnd64Mark = 0x06064b50, kLocator64Mark = 0x07064b50, kEntryMark = 0x02014b50,
                          kLocalMark = 0x04034b50;
  detail::LittleEndianReader in{bytes};

  // The end record is last, before a comment of at most 65535 bytes.
  if (bytes.size() < kEndBytes) return corrupt("not a zip archive: " + std::to_string(bytes.size()) + " bytes");
  std::uint64_t end = bytes.size() - kEndBytes;
  const std::uint64_t earliest = end > 65535 ? end - 65535 : 0;
  while (in.at(end, 4) != kEndMark || in.at(end + 20, 2) != bytes.size() - end - kEndBytes) {
    if (end == earliest) return corrupt("not a zip archive, or cut short: it has no end record");
    --end;
  }
  std::uint64_t disk = in.at(end + 4, 2), count = in.at(end + 10, 2), size = in.at(end + 12, 4), start = in.at(end + 16, 4);
  if (end >= 20 && in.at(end - 20, 4) == kLocator64Mark) {
    const std::uint64_t end64 = in.at(end - 12, 8);
    if (in.at(end64, 4) != kEnd64Mark || !in.ok) return corrupt("the zip64 end record is not where its locator says");
    disk = in.at(end64 + 16, 4);
    count = in.at(end64 + 32, 8);
    size = in.at(end64 + 40, 8);
    start = in.at(end64 + 48, 8);
    if (!in.ok) return corrupt("the zip64 end record is cut short");
  }
  if (disk != 0) return error(Errc::unsupported, "one of several volumes");
  if (start > end || size > end - start) return corrupt("the central directory lies outside of the file");
  if (count > static_cast<std::uint64_t>(limits.entries) || count > size / 46) {
    return count > size / 46 ? corrupt(std::to_string(count) + " entries do not fit the central directory")
                             : error(Errc::unsupported, "more than " + std::to_string(limits.entries) + " entries");
  }

  std::vector<ZipEntry> entries;
  entries.reserve(static_cast<std::size_t>(count));
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;  // of the file, that entries occupy
  ranges.reserve(static_cast<std::size_t>(count));
  std::uint64_t at = start;
  for (std::uint64_t i = 0; i < count; ++i) {
    const auto bad = [&](const std::string& what) { return corrupt("entry " + std::to_string(i) + ": " + what); };
    if (in.at(at, 4) != kEntryMark) return bad("the central directory is damaged");
    const std::uint64_t flags = in.at(at + 8, 2), method = in.at(at + 10, 2), crc = in.at(at + 16, 4);
    std::uint64_t packed = in.at(at + 20, 4), unpacked = in.at(at + 24, 4), local = in.at(at + 42, 4);
    const std::uint64_t name_bytes = in.at(at + 28, 2), extra_bytes = in.at(at + 30, 2), comment_bytes = in.at(at + 32, 2);
    if (!in.ok || start + size - at < 46 || start + size - at - 46 < name_bytes + extra_bytes + comment_bytes) return bad("cut short");
    ZipEntry entry;
    entry.name = as_text(bytes.subspan(static_cast<std::size_t>(at + 46), static_cast<std::size_t>(name_bytes)));

    // Sizes that do not fit 32 bits are in the zip64 field, in this order, only those that are needed.
    for (std::uint64_t extra = at + 46 + name_bytes, last = extra + extra_bytes; extra + 4 <= last;) {
      const std::uint64_t id = in.at(extra, 2), field_bytes = in.at(extra + 2, 2);
      if (field_bytes > last - extra - 4) break;  // padding by some writers
      if (id == 1) {
        std::uint64_t field = extra + 4;
        for (std::uint64_t* value : {&unpacked, &packed, &local}) {
          if (*value != 0xffffffff) continue;
          if (field + 8 > extra + 4 + field_bytes) return bad("its zip64 field is cut short");
          *value = in.at(field, 8);
          field += 8;
        }
      }
      extra += 4 + field_bytes;
    }
    at += 46 + name_bytes + extra_bytes + comment_bytes;

    if (!detail::safe_zip_name(entry.name)) return bad("its name is not a plain relative path");
    if ((flags & 1u) != 0) return error(Errc::unsupported, "entry '" + entry.name + "' is encrypted");
    if (method != 0 && method != 8) {
      return error(Errc::unsupported, "entry '" + entry.name + "': compression method " + std::to_string(method) + ", expected 0 or 8");
    }
    const std::uint64_t local_name = in.at(local + 26, 2);
    if (in.at(local, 4) != kLocalMark || !in.ok || local_name != name_bytes || local > start)
      return bad("no local header where it should be");
    const std::uint64_t data = local + 30 + local_name + in.at(local + 28, 2);
    if (!in.ok || data > start || packed > start - data) return bad("its data lies outside of the file");
    if (as_text(bytes.subspan(static_cast<std::size_t>(local + 30), static_cast<std::size_t>(local_name))) != entry.name) {
      return bad("its local header has another name");
    }
    if (unpacked > static_cast<std::uint64_t>(limits.entry_bytes)) {
      return error(Errc::unsupported, "entry '" + entry.name + "': " + std::to_string(unpacked) + " bytes, the limit is " +
                                          std::to_string(limits.entry_bytes));
    }
    if (method == 0 && packed != unpacked) return bad("stored, but of two sizes");
    if (method == 8 && unpacked / 1032 > packed) return bad("more bytes than deflate can make of so few");
    if (unpacked > (1u << 24) && unpacked / static_cast<std::uint64_t>(limits.ratio) > packed) {
      return error(Errc::unsupported,
                   "entry '" + entry.name + "': unpacks to more than " + std::to_string(limits.ratio) + " times its size");
    }
    ranges.emplace_back(local, data + packed);
    if (entry.name.back() == '/') continue;
    entry.method = static_cast<ZipMethod>(method);
    entry.crc = static_cast<std::uint32_t>(crc);
    entry.size = static_cast<std::int64_t>(unpacked);
    entry.packed = bytes.subspan(static_cast<std::size_t>(data), static_cast<std::size_t>(packed));
    entries.push_back(std::move(entry));
  }

  // Entries that share bytes are how small archives unpack to petabytes.
  std::sort(ranges.begin(), ranges.end());
  for (std::size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].first < ranges[i - 1].second) return corrupt("entries overlap");
  }
  std::vector<std::string_view> names;
  names.reserve(entries.size());
  for (const ZipEntry& entry : entries) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  if (const auto twice = std::adjacent_find(names.begin(), names.end()); twice != names.end()) {
    return corrupt("entry '" + std::string(*twice) + "' appears twice");
  }
  return ZipArchive(std::move(name), std::move(entries));
}

inline Status ZipArchive::check(const ZipEntry& entry, std::span<const std::byte> unpacked) const {
  if (crc32(unpacked) == entry.crc) return {};
  return {Errc::corrupt, "ZipArchive::read: '" + name_ + "': entry '" + entry.name + "': checksum differs"};
}

inline Result<std::vector<std::byte>> ZipArchive::read(const ZipEntry& entry) const {
  std::vector<std::byte> unpacked;
  if (entry.method == ZipMethod::stored) {
    unpacked.assign(entry.packed.begin(), entry.packed.end());
  } else {
    unpacked.resize(static_cast<std::size_t>(entry.size));
    auto inflated = inflate(entry.packed, unpacked);
    const std::string where = "ZipArchive::read: '" + name_ + "': entry '" + entry.name + "'";
    if (!inflated) return inflated.status().with_context(where);
    if (!inflated->ended || inflated->produced != entry.size) {
      return Status(Errc::corrupt, where + ": unpacks to another size than the " + std::to_string(entry.size) + " bytes of its header");
    }
  }
  NORMA_CHECK(check(entry, unpacked));
  return unpacked;
}

inline Result<std::span<const std::byte>> ZipArchive::view(const ZipEntry& entry) const {
  if (entry.method != ZipMethod::stored) {
    return Status(Errc::unsupported, "ZipArchive::view: '" + name_ + "': entry '" + entry.name + "' is compressed");
  }
  NORMA_CHECK(check(entry, entry.packed));
  return entry.packed;
}

}  // namespace norma::io
