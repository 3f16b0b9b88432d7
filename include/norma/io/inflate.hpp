/// \file
/// Decompression of deflate data (RFC 1951), bare or in the zlib wrapper (RFC 1950), into a buffer of known size, and the checksums
/// that come with it. Never writes beyond the buffer and never allocates: nothing in the input can make it do more than fill it.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>

#include <norma/core/status.hpp>

namespace norma::io {

namespace detail {

/// Eight tables, so that eight bytes are taken at a time.
consteval std::array<std::array<std::uint32_t, 256>, 8> make_crc32_tables() {
  std::array<std::array<std::uint32_t, 256>, 8> tables{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) != 0 ? 0xedb88320u : 0u);
    tables[0][i] = crc;
  }
  for (std::size_t t = 1; t < 8; ++t) {
    for (std::size_t i = 0; i < 256; ++i) tables[t][i] = (tables[t - 1][i] >> 8) ^ tables[0][tables[t - 1][i] & 0xffu];
  }
  return tables;
}
inline constexpr auto kCrc32Tables = make_crc32_tables();

}  // namespace detail

/// CRC-32 as in zip and PNG; continue with the earlier value.
[[nodiscard]] inline std::uint32_t crc32(std::span<const std::byte> bytes, std::uint32_t earlier = 0) noexcept {
  const auto& t = detail::kCrc32Tables;
  std::uint32_t crc = ~earlier;
  std::size_t i = 0;
  const auto at = [&](std::size_t k) { return std::to_integer<std::uint32_t>(bytes[i + k]); };
  for (; i + 8 <= bytes.size(); i += 8) {
    const std::uint32_t low = crc ^ (at(0) | at(1) << 8 | at(2) << 16 | at(3) << 24);
    crc = t[7][low & 0xff] ^ t[6][low >> 8 & 0xff] ^ t[5][low >> 16 & 0xff] ^ t[4][low >> 24] ^ t[3][at(4)] ^ t[2][at(5)] ^ t[1][at(6)] ^
          t[0][at(7)];
  }
  for (; i < bytes.size(); ++i) crc = t[0][(crc ^ at(0)) & 0xff] ^ (crc >> 8);
  return ~crc;
}

/// Adler-32 as in zlib.
[[nodiscard]] inline std::uint32_t adler32(std::span<const std::byte> bytes) noexcept {
  std::uint32_t a = 1, b = 0;
  while (!bytes.empty()) {
    const auto part = bytes.first(bytes.size() < 5552 ? bytes.size() : 5552);  // the most before b could overflow
    for (const std::byte byte : part) {
      a += std::to_integer<std::uint32_t>(byte);
      b += a;
    }
    a %= 65521;
    b %= 65521;
    bytes = bytes.subspan(part.size());
  }
  return b << 16 | a;
}

/// How an inflation ended.
struct Inflated {
  std::int64_t produced = 0;  ///< bytes written
  std::int64_t consumed = 0;  ///< bytes read, the last one perhaps in part
  bool ended = false;         ///< the stream's own end was reached; else the buffer was full before it
};

namespace detail {

/// A canonical Huffman code: a table for short codes, counting for the few longer ones.
class HuffmanCode {
 public:
  /// False for lengths that are no prefix code. An incomplete code is accepted only where deflate allows one: at most one symbol.
  bool build(std::span<const std::uint8_t> lengths) noexcept {
    count_.fill(0);
    for (const std::uint8_t length : lengths) ++count_[length];
    const int used = static_cast<int>(lengths.size()) - count_[0];
    count_[0] = 0;
    int left = 1;
    for (std::size_t length = 1; length <= kLongest; ++length) {
      left = 2 * left - count_[length];
      if (left < 0) return false;
    }
    if (left > 0 && !(used == 0 || (used == 1 && count_[1] == 1))) return false;

    std::array<std::uint16_t, kLongest + 2> start{};
    for (std::size_t length = 1; length <= kLongest; ++length)
      start[length + 1] = static_cast<std::uint16_t>(start[length] + count_[length]);
    std::array<std::uint32_t, kLongest + 2> code{};
    for (std::size_t length = 1; length <= kLongest; ++length) code[length + 1] = (code[length] + count_[length]) << 1;
    table_.fill(0);
    for (std::size_t symbol = 0; symbol < lengths.size(); ++symbol) {
      const std::size_t length = lengths[symbol];
      if (length == 0) continue;
      symbols_[start[length]++] = static_cast<std::uint16_t>(symbol);
      const std::uint32_t bits = code[length]++;
      if (length > kTableBits) continue;
      std::uint32_t reversed = 0;  // the stream gives a code's first bit first
      for (std::size_t i = 0; i < length; ++i) reversed |= (bits >> i & 1u) << (length - 1 - i);
      for (std::uint32_t i = reversed; i < table_.size(); i += 1u << length) table_[i] = static_cast<std::uint16_t>(symbol << 4 | length);
    }
    return true;
  }

  /// The symbol whose code starts `bits`, and the length of that code; a length of 0 means that there is none.
  struct Match {
    std::uint32_t symbol;
    std::uint32_t length;
  };
  [[nodiscard]] Match match(std::uint64_t bits) const noexcept {
    const std::uint16_t entry = table_[bits & (table_.size() - 1)];
    if (entry != 0) return {static_cast<std::uint32_t>(entry >> 4), entry & 15u};
    std::uint32_t code = 0, first = 0, index = 0;
    for (std::uint32_t length = 1; length <= kLongest; ++length, bits >>= 1) {
      code |= static_cast<std::uint32_t>(bits & 1u);
      const std::uint32_t count = count_[length];
      if (code < first + count) return {symbols_[index + (code - first)], length};
      index += count;
      first = (first + count) << 1;
      code <<= 1;
    }
    return {0, 0};
  }

 private:
  static constexpr std::size_t kLongest = 15;
  static constexpr std::size_t kTableBits = 10;
  std::array<std::uint16_t, kLongest + 1> count_{};
  std::array<std::uint16_t, 288> symbols_{};
  std::array<std::uint16_t, 1u << kTableBits> table_{};
};

class Inflater {
 public:
  Inflater(std::span<const std::byte> in, std::span<std::byte> out) noexcept : in_(in), out_(out) {}

  Result<Inflated> run() {
    bool last = false;
    while (!last && !full_) {
      refill();
      last = take(1) != 0;
      const std::uint32_t kind = take(2);
      if (overrun()) return corrupt("the data ends before its end mark");
      const char* error = kind == 0 ? stored() : kind == 1 ? fixed() : kind == 2 ? dynamic() : "unknown kind of block";
      if (error != nullptr) return corrupt(error);
    }
    Inflated result;
    result.produced = static_cast<std::int64_t>(written_);
    result.consumed = static_cast<std::int64_t>(read_ - static_cast<std::size_t>(count_ / 8));
    result.ended = last && !full_;
    return result;
  }

 private:
  Status corrupt(const char* what) const {
    return {Errc::corrupt,
            std::string("io::inflate: ") + what + ", after " + std::to_string(written_) + " of " + std::to_string(out_.size()) + " bytes"};
  }

  /// At least 56 bits, zeros beyond the end of the input; `overrun` tells whether such zeros were used.
  void refill() noexcept {
    if (read_ + 8 <= in_.size()) {
      std::uint64_t word = 0;
      if constexpr (std::endian::native == std::endian::little) {
        std::memcpy(&word, in_.data() + read_, 8);
      } else {
        for (std::size_t i = 0; i < 8; ++i) word |= std::to_integer<std::uint64_t>(in_[read_ + i]) << (8 * i);
      }
      bits_ |= word << count_;
      const int bytes = (63 - count_) / 8;
      read_ += static_cast<std::size_t>(bytes);
      count_ += 8 * bytes;
      return;
    }
    while (count_ <= 56) {
      if (read_ < in_.size()) bits_ |= std::to_integer<std::uint64_t>(in_[read_]) << count_;
      ++read_;
      count_ += 8;
    }
  }
  /// Bits that were taken beyond the end of the input.
  [[nodiscard]] bool overrun() const noexcept { return read_ > in_.size() && (read_ - in_.size()) * 8 > static_cast<std::size_t>(count_); }
  void skip(std::uint32_t bits) noexcept {
    bits_ >>= bits;
    count_ -= static_cast<int>(bits);
  }
  std::uint32_t take(std::uint32_t bits) noexcept {
    const auto value = static_cast<std::uint32_t>(bits_ & ((std::uint64_t{1} << bits) - 1));
    skip(bits);
    return value;
  }

  const char* stored() noexcept {
    skip(static_cast<std::uint32_t>(count_ % 8));
    refill();
    const std::uint32_t length = take(16);
    const std::uint32_t complement = take(16);
    if (overrun()) return "the data ends in a stored block";
    if ((length ^ complement) != 0xffff) return "a stored block's length contradicts its check";
    // Give whole bytes back to the input and copy from there.
    const std::size_t at = read_ - static_cast<std::size_t>(count_ / 8);
    if (at > in_.size() || in_.size() - at < length) return "the data ends in a stored block";
    std::size_t copy = length;
    if (copy > out_.size() - written_) {
      copy = out_.size() - written_;
      full_ = true;
    }
    if (copy > 0) std::memcpy(out_.data() + written_, in_.data() + at, copy);
    written_ += copy;
    read_ = at + length;
    bits_ = 0;
    count_ = 0;
    return nullptr;
  }

  const char* fixed() noexcept {
    std::array<std::uint8_t, 288> lengths;
    for (std::size_t i = 0; i < 288; ++i) lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8;
    std::array<std::uint8_t, 32> distances;  // the last two complete the code and may not occur
    distances.fill(5);
    literals_.build(lengths);
    distances_.build(distances);
    return codes();
  }

  const char* dynamic() noexcept {
    constexpr std::array<std::uint8_t, 19> kOrder = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    const std::size_t literal_count = take(5) + 257;
    const std::size_t distance_count = take(5) + 1;
    const std::size_t length_count = take(4) + 4;
    if (literal_count > 286 || distance_count > 30) return "too many codes";
    std::array<std::uint8_t, 320> lengths{};
    for (std::size_t i = 0; i < length_count; ++i) {
      refill();
      lengths[kOrder[i]] = static_cast<std::uint8_t>(take(3));
    }
    if (!literals_.build(std::span(lengths).first(19))) return "the code of code lengths is no code";
    lengths.fill(0);
    for (std::size_t i = 0; i < literal_count + distance_count;) {
      refill();
      const auto [symbol, length] = literals_.match(bits_);
      if (length == 0) return "unknown code length";
      skip(length);
      if (overrun()) return "the data ends in a block's header";
      if (symbol < 16) {
        lengths[i++] = static_cast<std::uint8_t>(symbol);
        continue;
      }
      if (symbol == 16 && i == 0) return "a repeated code length without one before";
      const std::uint8_t value = symbol == 16 ? lengths[i - 1] : std::uint8_t{0};
      std::size_t repeat = symbol == 16 ? 3 + take(2) : symbol == 17 ? 3 + take(3) : 11 + take(7);
      if (i + repeat > literal_count + distance_count) return "more code lengths than codes";
      while (repeat-- > 0) lengths[i++] = value;
    }
    if (lengths[256] == 0) return "no code for the end of the block";
    if (!literals_.build(std::span(lengths).first(literal_count))) return "the literal code is no code";
    if (!distances_.build(std::span(lengths).subspan(literal_count, distance_count))) return "the distance code is no code";
    return codes();
  }

  const char* codes() noexcept {
    static constexpr std::array<std::uint16_t, 29> kLength = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                                              31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
    static constexpr std::array<std::uint8_t, 29> kLengthBits = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                                                 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    static constexpr std::array<std::uint16_t, 30> kDistance = {1,    2,    3,    4,    5,    7,    9,    13,    17,    25,
                                                                33,   49,   65,   97,   129,  193,  257,  385,   513,   769,
                                                                1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
    static constexpr std::array<std::uint8_t, 30> kDistanceBits = {0, 0, 0, 0, 1, 1, 2, 2,  3,  3,  4,  4,  5,  5,  6,
                                                                   6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13};
    std::byte* const out = out_.data();
    for (;;) {
      refill();  // 56 bits: a length with its extra bits (20) and a distance with its (28) fit
      const auto literal = literals_.match(bits_);
      if (literal.length == 0) return "unknown code";
      skip(literal.length);
      if (literal.symbol < 256) {
        if (overrun()) return "the data ends inside a block";
        if (written_ == out_.size()) return full_ = true, nullptr;
        out[written_++] = static_cast<std::byte>(literal.symbol);
        continue;
      }
      if (literal.symbol == 256) return overrun() ? "the data ends inside a block" : nullptr;
      if (literal.symbol > 285) return "unknown length code";
      std::size_t length = kLength[literal.symbol - 257] + take(kLengthBits[literal.symbol - 257]);
      const auto way = distances_.match(bits_);
      if (way.length == 0 || way.symbol > 29) return "unknown distance code";
      skip(way.length);
      const std::size_t distance = kDistance[way.symbol] + take(kDistanceBits[way.symbol]);
      if (overrun()) return "the data ends inside a block";
      if (distance > written_) return "a distance reaches before the start";
      if (length > out_.size() - written_) {
        length = out_.size() - written_;
        full_ = true;
      }
      const std::byte* from = out + written_ - distance;
      std::byte* to = out + written_;
      written_ += length;
      if (distance >= length) {
        std::memcpy(to, from, length);
      } else {
        while (length-- > 0) *to++ = *from++;  // overlapping on purpose: repeats what was just written
      }
      if (full_) return nullptr;
    }
  }

  std::span<const std::byte> in_;
  std::span<std::byte> out_;
  std::size_t read_ = 0;
  std::size_t written_ = 0;
  std::uint64_t bits_ = 0;
  int count_ = 0;
  bool full_ = false;
  HuffmanCode literals_;
  HuffmanCode distances_;
};

}  // namespace detail

/// Inflates bare deflate data. Stops when `out` is full; the caller decides whether that is an error. Errors: corrupt.
inline Result<Inflated> inflate(std::span<const std::byte> in, std::span<std::byte> out) { return detail::Inflater(in, out).run(); }

/// The same for the zlib wrapper; the checksum is compared where the stream's end was reached.
inline Result<Inflated> inflate_zlib(std::span<const std::byte> in, std::span<std::byte> out) {
  const auto at = [&](std::size_t i) { return std::to_integer<std::uint32_t>(in[i]); };
  if (in.size() < 6) return Status(Errc::corrupt, "io::inflate_zlib: " + std::to_string(in.size()) + " bytes, expected at least 6");
  if ((at(0) & 15u) != 8 || (at(0) >> 4) > 7 || (at(0) * 256 + at(1)) % 31 != 0)
    return Status(Errc::corrupt, "io::inflate_zlib: not a zlib header");
  if ((at(1) & 0x20u) != 0) return Status(Errc::unsupported, "io::inflate_zlib: the data needs a preset dictionary");
  NORMA_TRY(Inflated result, inflate(in.subspan(2), out));
  result.consumed += 2;
  if (!result.ended) return result;
  const auto tail = static_cast<std::size_t>(result.consumed);
  if (in.size() - tail < 4) return Status(Errc::corrupt, "io::inflate_zlib: the data ends before its checksum");
  const std::uint32_t expected = at(tail) << 24 | at(tail + 1) << 16 | at(tail + 2) << 8 | at(tail + 3);
  if (adler32(out.first(static_cast<std::size_t>(result.produced))) != expected)
    return Status(Errc::corrupt, "io::inflate_zlib: checksum differs");
  result.consumed += 4;
  return result;
}

}  // namespace norma::io
