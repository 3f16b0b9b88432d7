/// \file
/// Reading image files: PNG, JPEG, BMP, binary PGM and PPM, into 8-bit gray or RGB.
///
/// Gray stays one channel; 16 bits are divided by 257 with rounding; palettes are expanded; alpha is dropped. The header is checked against
/// the limits before anything is allocated, and a file that ends early is an error and never a picture with a grey end: PNG chunks are
/// walked with their checksums, JPEG markers up to the end of the image, BMP and PNM sizes compared. Orientation tags are not applied.
/// JPEG and BMP are decoded by stb_image, the others by norma. docs/formats/images.md lists what is read.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <norma/core/context.hpp>
#include <norma/core/status.hpp>
#include <norma/image/detail/decoding.hpp>
#include <norma/image/detail/png.hpp>
#include <norma/image/detail/stb_image.hpp>
#include <norma/image/image.hpp>
#include <norma/io/file.hpp>

#if NORMA_X86_DISPATCH
#include <immintrin.h>
#endif

namespace norma::image {

namespace detail {

enum class FileKind : std::uint8_t { png, jpeg, bmp, pnm, other };

inline FileKind file_kind(std::span<const std::byte> bytes) noexcept {
  const std::string_view text = io::as_text(bytes);
  if (text.starts_with("\x89PNG\r\n\x1a\n")) return FileKind::png;
  if (text.starts_with("\xFF\xD8\xFF")) return FileKind::jpeg;
  if (text.starts_with("P5") || text.starts_with("P6")) return FileKind::pnm;
  if (text.starts_with("BM")) return FileKind::bmp;
  return FileKind::other;
}

/// A name for formats that people try, for the message only.
inline std::string_view other_format(std::span<const std::byte> bytes) noexcept {
  const std::string_view text = io::as_text(bytes);
  if (text.starts_with("GIF8")) return "a GIF";
  if (text.starts_with("II*") || text.starts_with(std::string_view("MM\0*", 4))) return "a TIFF";
  if (text.starts_with("RIFF") && text.size() >= 12 && text.substr(8, 4) == "WEBP") return "a WebP";
  if (text.size() >= 12 && text.substr(4, 4) == "ftyp") return "an AVIF, HEIC or video file";
  if (text.starts_with("8BPS")) return "a Photoshop file";
  if (text.starts_with("P1") || text.starts_with("P2") || text.starts_with("P3") || text.starts_with("P4")) return "a text or bitmap PNM";
  return "another kind of file";
}

/// Code tables of a JPEG's DHT segment: no more than 256 codes each, and the segment as long as they say. stb_image up to 2.27 takes longer
/// tables without asking and writes past its own.
inline bool code_tables_fit(std::span<const std::byte> segment) noexcept {
  while (!segment.empty()) {
    if (segment.size() < 17) return false;
    std::size_t codes = 0;
    for (std::size_t i = 1; i <= 16; ++i) codes += std::to_integer<std::size_t>(segment[i]);
    if (codes > 256 || segment.size() < 17 + codes) return false;
    segment = segment.subspan(17 + codes);
  }
  return true;
}

/// Segments, then coded data, up to the end-of-image marker. A 0xFF in coded data is followed by 0 or by a restart marker, so another
/// image's end inside a segment (a thumbnail) is not taken for this one's.
inline Status check_jpeg(std::span<const std::byte> bytes, std::string_view name) {
  const Status early = bad_image(Errc::corrupt, name, "the JPEG ends early (no end-of-image marker)");
  const auto value = [&](std::size_t i) { return std::to_integer<unsigned>(bytes[i]); };
  std::size_t at = 2;
  bool framed = false;
  bool scanned = false;
  for (;;) {
    // Coded data, or padding that decoders skip.
    const void* next = at < bytes.size() ? std::memchr(bytes.data() + at, 0xFF, bytes.size() - at) : nullptr;
    at = next != nullptr ? static_cast<std::size_t>(static_cast<const std::byte*>(next) - bytes.data()) : bytes.size();
    while (at < bytes.size() && value(at) == 0xFF) ++at;
    if (at >= bytes.size()) return early;
    const unsigned marker = value(at++);
    if (marker == 0x00 || marker == 0x01 || (marker >= 0xD0 && marker <= 0xD7)) continue;
    if (marker == 0xD9) break;
    if (bytes.size() - at < 2) return early;
    const std::size_t length = value(at) << 8 | value(at + 1);
    if (length < 2) return bad_image(Errc::corrupt, name, "a JPEG segment has an impossible length");
    if (length > bytes.size() - at) return early;
    if (marker == 0xC4 && !code_tables_fit(bytes.subspan(at + 2, length - 2))) {
      return bad_image(Errc::corrupt, name, "a code table of the JPEG has an impossible length");
    }
    if (marker == 0xC0 || marker == 0xC1 || marker == 0xC2) {
      if (framed) return bad_image(Errc::corrupt, name, "the JPEG has two frame headers");
      framed = true;
    }
    if (marker == 0xDA) scanned = true;
    at += length;
  }
  if (!scanned) return bad_image(Errc::corrupt, name, "the JPEG holds no picture");
  return {};
}

// Drops every fourth byte: `pixels` of four bytes to three. Each store but the last ones is wider than what it is for.
inline void drop_alpha_generic(const std::uint8_t* from, std::int64_t pixels, std::uint8_t* to) noexcept {
  std::int64_t i = 0;
  for (; i + 1 < pixels; ++i) std::memcpy(to + 3 * i, from + 4 * i, 4);
  if (i < pixels) std::memcpy(to + 3 * i, from + 4 * i, 3);
}
#if NORMA_X86_DISPATCH
NORMA_TARGET_AVX2 inline void drop_alpha_avx2(const std::uint8_t* from, std::int64_t pixels, std::uint8_t* to) noexcept {
  const __m128i pick = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -128, -128, -128, -128);
  std::int64_t i = 0;
  for (; i + 6 <= pixels; i += 4) {
    const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 4 * i));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 3 * i), _mm_shuffle_epi8(four, pick));
  }
  drop_alpha_generic(from + 4 * i, pixels - i, to + 3 * i);
}
#endif
inline void drop_alpha(const std::uint8_t* from, std::int64_t pixels, std::uint8_t* to) noexcept {
#if NORMA_X86_DISPATCH
  if (__builtin_cpu_supports("avx2")) return drop_alpha_avx2(from, pixels, to);
#endif
  drop_alpha_generic(from, pixels, to);
}

/// The pixels that the header promises are in the file.
inline Status check_bmp(std::span<const std::byte> bytes, std::string_view name) {
  const Status early = bad_image(Errc::corrupt, name, "the BMP ends early");
  if (bytes.size() < 26) return early;
  const std::uint64_t offset = little_endian(bytes.data() + 10, 4);
  const std::uint32_t header = little_endian(bytes.data() + 14, 4);
  std::uint64_t width = 0, height = 0, bits = 0;
  if (header == 12) {
    width = little_endian(bytes.data() + 18, 2);
    height = little_endian(bytes.data() + 20, 2);
    bits = little_endian(bytes.data() + 24, 2);
  } else {
    if (bytes.size() < 34) return early;
    width = little_endian(bytes.data() + 18, 4);
    const auto signed_height = static_cast<std::int64_t>(static_cast<std::int32_t>(little_endian(bytes.data() + 22, 4)));
    height = static_cast<std::uint64_t>(signed_height < 0 ? -signed_height : signed_height);  // negative: rows from the top
    bits = little_endian(bytes.data() + 28, 2);
    const std::uint32_t compression = little_endian(bytes.data() + 30, 4);
    if (compression != 0 && compression != 3) return bad_image(Errc::unsupported, name, "a compressed BMP (expected an uncompressed one)");
  }
  const std::uint64_t row = (width * bits + 31) / 32 * 4;
  // Bounded by 2^32 * 2^19: no overflow. The last row's padding may be missing.
  const std::uint64_t needed = offset + (height > 0 ? (height - 1) * row + (width * bits + 7) / 8 : 0);
  return needed > bytes.size() ? early : Status{};
}

/// Binary PGM and PPM, values scaled to 8 bit.
inline Result<Image> decode_pnm(std::span<const std::byte> bytes, std::string_view name, const DecodeLimits& limits) {
  const Status early = bad_image(Errc::corrupt, name, "the PNM ends early");
  std::size_t at = 2;
  const auto is_space = [](unsigned c) { return c == ' ' || (c >= 9 && c <= 13); };
  std::int64_t field[3] = {};  // width, height, largest value
  for (std::int64_t& number : field) {
    for (bool comment = false; at < bytes.size(); ++at) {
      const auto c = std::to_integer<unsigned>(bytes[at]);
      if (comment)
        comment = c != '\n' && c != '\r';
      else if (c == '#')
        comment = true;
      else if (!is_space(c))
        break;
    }
    const std::size_t start = at;
    for (; at < bytes.size(); ++at) {
      const auto c = std::to_integer<unsigned>(bytes[at]);
      if (c < '0' || c > '9') break;
      number = number * 10 + static_cast<std::int64_t>(c - '0');
      if (number > 0x7FFFFFFF) return bad_image(Errc::corrupt, name, "a number of the PNM header is too large");
    }
    if (at >= bytes.size()) return early;
    if (at == start) return bad_image(Errc::corrupt, name, "expected a number in the PNM header");
  }
  if (!is_space(std::to_integer<unsigned>(bytes[at]))) return bad_image(Errc::corrupt, name, "expected white space after the PNM header");
  ++at;
  const auto [width, height, top] = field;
  if (top < 1 || top > 65535) {
    return bad_image(Errc::corrupt, name, "expected a largest value within 1 and 65535 in the PNM header, found " + std::to_string(top));
  }
  NORMA_CHECK(check_limits(width, height, name, limits));
  const std::int64_t channels = std::to_integer<char>(bytes[1]) == '5' ? 1 : 3;
  const std::int64_t samples = width * height * channels;
  const std::int64_t wide = top > 255 ? 2 : 1;
  if (static_cast<std::uint64_t>(samples * wide) > bytes.size() - at) return early;
  Image image(height, width, channels);
  const std::byte* in = bytes.data() + at;
  for (std::int64_t i = 0; i < samples; ++i) {
    std::int64_t v = std::to_integer<std::int64_t>(in[i * wide]);
    if (wide == 2) v = v << 8 | std::to_integer<std::int64_t>(in[i * wide + 1]);
    image.data()[i] = static_cast<std::uint8_t>(((v < top ? v : top) * 255 + top / 2) / top);
  }
  return image;
}

}  // namespace detail

/// Decodes an image file that lies in memory. `name` only appears in errors.
/// Errors: unsupported (not an image that norma reads, or beyond the limits),
/// corrupt (cut short or contradicting itself).
inline Result<Image> decode(std::span<const std::byte> bytes, std::string_view name, const DecodeLimits& limits = {}) {
  using detail::bad_image;
  if (bytes.empty()) return bad_image(Errc::corrupt, name, "the file is empty");
  if (limits.max_bytes < static_cast<std::int64_t>(bytes.size()) || bytes.size() > 0x7FFFFFFF) {
    return bad_image(Errc::unsupported, name,
                     "expected up to " + std::to_string(std::min<std::int64_t>(limits.max_bytes, 0x7FFFFFFF)) + " bytes, found " +
                         std::to_string(bytes.size()));
  }
  const detail::FileKind kind = detail::file_kind(bytes);
  switch (kind) {
    case detail::FileKind::png: return detail::decode_png(bytes, name, limits);
    case detail::FileKind::pnm: return detail::decode_pnm(bytes, name, limits);
    case detail::FileKind::jpeg: NORMA_CHECK(detail::check_jpeg(bytes, name)); break;
    case detail::FileKind::bmp: NORMA_CHECK(detail::check_bmp(bytes, name)); break;
    case detail::FileKind::other:
      return bad_image(Errc::unsupported, name,
                       "expected a PNG, JPEG, BMP, PGM (P5) or PPM (P6) image, found " + std::string(detail::other_format(bytes)));
  }
  namespace stb = detail::stb;
  const auto* data = reinterpret_cast<const unsigned char*>(bytes.data());
  const int size = static_cast<int>(bytes.size());
  const auto reason = [] {
    const char* text = stb::stbi_failure_reason();
    return std::string(text != nullptr ? text : "unknown reason");
  };
  stb::largest_block = std::size_t{1} << 20;  // the decoder's own state; a header needs no more
  int width = 0, height = 0, components = 0;
  if (stb::stbi_info_from_memory(data, size, &width, &height, &components) == 0) {
    return bad_image(Errc::corrupt, name, "the header cannot be read (" + reason() + ")");
  }
  NORMA_CHECK(detail::check_limits(width, height, name, limits));
  // The largest pieces are a progressive JPEG's coefficients, 2 bytes each, and the pixels, 4 bytes; a JPEG's edges are padded to its
  // blocks.
  stb::largest_block =
      4 * (static_cast<std::size_t>(width) * static_cast<std::size_t>(height) + 64 * static_cast<std::size_t>(width + height)) +
      (std::size_t{1} << 20);
  const int channels = components >= 3 ? 3 : 1;
  // stb_image converts a JPEG's colours with vector instructions only into pixels of four bytes: the same values, sooner.
  const int stored = kind == detail::FileKind::jpeg && channels == 3 ? 4 : channels;
  struct Free {
    void operator()(void* p) const noexcept { std::free(p); }
  };
  const std::unique_ptr<stb::stbi_uc, Free> pixels(stb::stbi_load_from_memory(data, size, &width, &height, &components, stored));
  if (!pixels) return bad_image(Errc::corrupt, name, "the pixels cannot be decoded (" + reason() + ")");
  Image image(height, width, channels);
  if (stored == 4) {
    detail::drop_alpha(pixels.get(), image.height() * image.width(), image.data());
  } else {
    std::memcpy(image.data(), pixels.get(), static_cast<std::size_t>(image.size_bytes()));
  }
  return image;
}

/// Reads and decodes a file; the time of both goes to `times` where that is given. Errors name the path; a missing file is Errc::not_found.
inline Result<Image> read(const std::string& path, const DecodeLimits& limits = {}, StageTimes* times = nullptr) {
  std::vector<std::byte> bytes;
  {
    const StageTimer timer(times, Stage::read);
    NORMA_TRY(bytes, io::read_file(path, limits.max_bytes));
  }
  const StageTimer timer(times, Stage::decode);
  return decode(bytes, path, limits);
}

}  // namespace norma::image
