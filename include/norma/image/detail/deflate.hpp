/// \file
/// Compression into a zlib stream (RFC 1950, 1951) for PNG: one probe of a hash table a position, greedy matches, Huffman codes made for
/// each block. Counterpart of io/inflate.hpp.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include <norma/io/inflate.hpp>

namespace norma::image::detail {

/// Bits in the order of deflate: the first one written is the lowest of its byte.
class BitWriter {
 public:
  explicit BitWriter(std::vector<std::byte>& out) noexcept : out_(out) {}
  /// Up to 32 bits.
  void put(std::uint32_t value, int bits) {
    buffer_ |= static_cast<std::uint64_t>(value) << filled_;
    filled_ += bits;
    for (; filled_ >= 8; filled_ -= 8, buffer_ >>= 8) out_.push_back(static_cast<std::byte>(buffer_ & 0xFFu));
  }
  void finish_byte() {
    if (filled_ > 0) put(0, 8 - filled_);
  }

 private:
  std::vector<std::byte>& out_;
  std::uint64_t buffer_ = 0;
  int filled_ = 0;
};

/// A Huffman code for `kCount` symbols, no word longer than `kLongest` bits.
template <std::size_t kCount, int kLongest>
class HuffmanCode {
 public:
  /// Unused symbols get no word; one symbol alone gets one of one bit.
  explicit HuffmanCode(std::array<std::uint32_t, kCount> uses) {
    // Halving the counts flattens the tree; with all counts 1 it is balanced, so this ends.
    while (!assign_lengths(uses)) {
      for (auto& n : uses) n = (n + 1) / 2;
    }
    assign_words();
  }
  [[nodiscard]] int length(std::size_t symbol) const noexcept { return length_[symbol]; }
  void put(BitWriter& bits, std::size_t symbol) const { bits.put(word_[symbol], length_[symbol]); }

 private:
  bool assign_lengths(const std::array<std::uint32_t, kCount>& uses) {
    struct Node {
      std::uint64_t weight;
      std::int32_t parent;
    };
    std::array<Node, 2 * kCount> nodes{};
    std::array<std::uint16_t, kCount> order{};
    std::size_t leaves = 0;
    for (std::size_t s = 0; s < kCount; ++s) {
      if (uses[s] > 0) order[leaves++] = static_cast<std::uint16_t>(s);
    }
    length_.fill(0);
    if (leaves == 0) return true;
    if (leaves == 1) {
      length_[order[0]] = 1;
      return true;
    }
    std::sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(leaves),
              [&](std::uint16_t a, std::uint16_t b) { return uses[a] != uses[b] ? uses[a] < uses[b] : a < b; });
    for (std::size_t i = 0; i < leaves; ++i) nodes[i].weight = uses[order[i]];
    // Both the leaves and the inner nodes come out in order of weight: the two lightest are at the heads of the two queues.
    std::size_t leaf = 0, inner = leaves, total = leaves;
    const auto lightest = [&] { return leaf < leaves && (inner >= total || nodes[leaf].weight <= nodes[inner].weight) ? leaf++ : inner++; };
    while (total < 2 * leaves - 1) {
      const std::size_t a = lightest();
      const std::size_t b = lightest();
      nodes[total].weight = nodes[a].weight + nodes[b].weight;
      nodes[a].parent = nodes[b].parent = static_cast<std::int32_t>(total);
      ++total;
    }
    std::array<int, 2 * kCount> depth{};
    for (std::size_t i = total - 1; i-- > 0;) {
      depth[i] = depth[static_cast<std::size_t>(nodes[i].parent)] + 1;
      if (i >= leaves) continue;
      if (depth[i] > kLongest) return false;
      length_[order[i]] = static_cast<std::uint8_t>(depth[i]);
    }
    return true;
  }

  // Words in the order of length, then symbol; deflate writes their highest bit first.
  void assign_words() {
    std::uint32_t next = 0;
    for (int bits = 1; bits <= kLongest; ++bits) {
      for (std::size_t s = 0; s < kCount; ++s) {
        if (length_[s] != bits) continue;
        std::uint32_t reversed = 0;
        for (int b = 0; b < bits; ++b) reversed |= (next >> b & 1u) << (bits - 1 - b);
        word_[s] = static_cast<std::uint16_t>(reversed);
        ++next;
      }
      next <<= 1;
    }
  }

  std::array<std::uint8_t, kCount> length_{};
  std::array<std::uint16_t, kCount> word_{};
};

/// A literal byte (distance 0), or a match.
struct DeflateToken {
  std::uint16_t value;     // the byte, or the length
  std::uint16_t distance;  // less 1, where it is a match
  bool match;
};

/// Symbol and extra bits of deflate's two logarithmic scales: `x` counts from 0, each power of two has `2^kFine` symbols.
template <int kFine>
struct LogSymbol {
  std::uint32_t symbol, extra;
  int extra_bits;
  explicit LogSymbol(std::uint32_t x) noexcept {
    extra_bits = std::max(static_cast<int>(std::bit_width(x)) - 1 - kFine, 0);
    symbol = (static_cast<std::uint32_t>(extra_bits) << kFine) + (x >> extra_bits);
    extra = x & ((1u << extra_bits) - 1u);
  }
};

inline constexpr std::uint32_t kDeflateLongest = 258;

// 258 has a symbol of its own although it would fit the one before.
inline LogSymbol<2> length_symbol(std::uint32_t length) noexcept {
  LogSymbol<2> s(length - 3);
  if (length == kDeflateLongest) s.symbol = 28, s.extra = 0, s.extra_bits = 0;
  return s;
}

inline void put_deflate_block(BitWriter& bits, std::span<const DeflateToken> tokens, bool last) {
  std::array<std::uint32_t, 286> literal_uses{};
  std::array<std::uint32_t, 30> distance_uses{};
  literal_uses[256] = 1;
  for (const DeflateToken& t : tokens) {
    if (!t.match) {
      ++literal_uses[t.value];
      continue;
    }
    ++literal_uses[257 + length_symbol(t.value).symbol];
    ++distance_uses[LogSymbol<1>(t.distance).symbol];
  }
  if (std::all_of(distance_uses.begin(), distance_uses.end(), [](std::uint32_t n) { return n == 0; })) distance_uses[0] = 1;
  const HuffmanCode<286, 15> literals(literal_uses);
  const HuffmanCode<30, 15> distances(distance_uses);

  std::array<std::uint32_t, 19> length_uses{};
  const auto each_length = [&](auto&& use) {
    for (std::size_t s = 0; s < 286; ++s) use(static_cast<std::size_t>(literals.length(s)));
    for (std::size_t s = 0; s < 30; ++s) use(static_cast<std::size_t>(distances.length(s)));
  };
  each_length([&](std::size_t length) { ++length_uses[length]; });
  const HuffmanCode<19, 7> lengths(length_uses);
  bits.put(last ? 1 : 0, 1);
  bits.put(2, 2);  // codes of its own
  bits.put(286 - 257, 5);
  bits.put(30 - 1, 5);
  bits.put(19 - 4, 4);
  for (const unsigned s : {16u, 17u, 18u, 0u, 8u, 7u, 9u, 6u, 10u, 5u, 11u, 4u, 12u, 3u, 13u, 2u, 14u, 1u, 15u}) {
    bits.put(static_cast<std::uint32_t>(lengths.length(s)), 3);
  }
  each_length([&](std::size_t length) { lengths.put(bits, length); });

  for (const DeflateToken& t : tokens) {
    if (!t.match) {
      literals.put(bits, t.value);
      continue;
    }
    const auto length = length_symbol(t.value);
    literals.put(bits, 257 + length.symbol);
    bits.put(length.extra, length.extra_bits);
    const LogSymbol<1> distance(t.distance);
    distances.put(bits, distance.symbol);
    bits.put(distance.extra, distance.extra_bits);
  }
  literals.put(bits, 256);
}

/// Appends `in` to `out` as a zlib stream.
inline void deflate_zlib(std::span<const std::byte> in, std::vector<std::byte>& out) {
  constexpr int kHashBits = 15;
  constexpr std::size_t kTokens = 1 << 16;  // in a block
  constexpr std::size_t kWindow = 32768;
  out.push_back(std::byte{0x78});
  out.push_back(std::byte{0x01});
  BitWriter bits(out);
  std::vector<std::size_t> latest(std::size_t{1} << kHashBits, 0);  // position + 1 of the last place with that hash
  std::vector<DeflateToken> tokens;
  tokens.reserve(kTokens);
  const auto word_at = [&](std::size_t i) {
    std::uint32_t word;
    std::memcpy(&word, in.data() + i, 4);
    return word;
  };
  for (std::size_t at = 0; at < in.size();) {
    std::size_t length = 0, distance = 0;
    if (at + 4 <= in.size()) {
      const std::uint32_t word = word_at(at);
      std::size_t& slot = latest[word * 2654435761u >> (32 - kHashBits)];
      const std::size_t before = slot;
      slot = at + 1;
      if (before != 0 && at + 1 - before <= kWindow && word_at(before - 1) == word) {
        distance = at + 1 - before;
        const std::size_t most = std::min<std::size_t>(kDeflateLongest, in.size() - at);
        for (length = 4; length < most && in[at + length] == in[at + length - distance];) ++length;
      }
    }
    if (length == 0) {
      tokens.push_back({std::to_integer<std::uint16_t>(in[at]), 0, false});
      ++at;
    } else {
      tokens.push_back({static_cast<std::uint16_t>(length), static_cast<std::uint16_t>(distance - 1), true});
      at += length;
    }
    if (tokens.size() == kTokens && at < in.size()) {
      put_deflate_block(bits, tokens, false);
      tokens.clear();
    }
  }
  put_deflate_block(bits, tokens, true);
  bits.finish_byte();
  const std::uint32_t sum = io::adler32(in);
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<std::byte>(sum >> shift & 0xFFu));
}

}  // namespace norma::image::detail
