/// \file
/// PNG (W3C recommendation, 3rd edition) into 8-bit gray or RGB: every bit depth and colour type, interlaced or not. Every chunk's checksum
/// and that of the pixels are compared. Alpha and transparent colours are dropped, 16 bits divided by 257 with rounding.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <norma/core/status.hpp>
#include <norma/image/detail/decoding.hpp>
#include <norma/image/image.hpp>
#include <norma/io/file.hpp>
#include <norma/io/inflate.hpp>

#if NORMA_X86_DISPATCH
#include <emmintrin.h>
#endif

namespace norma::image::detail {

/// PNG's prediction of a byte from its left, upper and upper left neighbour.
inline int paeth(int left, int up, int corner) noexcept {
  const int to_left = std::abs(up - corner), to_up = std::abs(left - corner), to_corner = std::abs(left + up - 2 * corner);
  const int nearest = to_left <= to_up ? left : up;
  return std::min(to_left, to_up) <= to_corner ? nearest : corner;
}

struct PngHeader {
  std::int64_t width = 0;
  std::int64_t height = 0;
  int depth = 0;
  int colour_type = 0;  // 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGB and alpha
  bool interlaced = false;

  [[nodiscard]] int samples() const noexcept {
    switch (colour_type) {
      case 2: return 3;
      case 4: return 2;
      case 6: return 4;
      default: return 1;
    }
  }
  [[nodiscard]] std::int64_t channels() const noexcept { return colour_type == 0 || colour_type == 4 ? 1 : 3; }
  [[nodiscard]] std::int64_t row_bytes(std::int64_t pixels) const noexcept { return (pixels * samples() * depth + 7) / 8; }
  /// Distance to the byte that a filter calls left.
  [[nodiscard]] std::int64_t filter_step() const noexcept { return std::max(samples() * depth / 8, 1); }
};

/// What the chunks say, once all of them have been looked at.
struct PngParts {
  PngHeader header;
  std::span<const std::byte> palette;
  std::span<const std::byte> pixels;  // compressed
  std::vector<std::byte> joined;      // where they came in several pieces
};

inline Result<PngHeader> read_png_header(std::span<const std::byte> body, std::string_view name) {
  PngHeader h;
  h.width = big_endian_32(body.data());
  h.height = big_endian_32(body.data() + 4);
  h.depth = std::to_integer<int>(body[8]);
  h.colour_type = std::to_integer<int>(body[9]);
  const int interlace = std::to_integer<int>(body[12]);
  h.interlaced = interlace == 1;
  const bool any = h.depth == 1 || h.depth == 2 || h.depth == 4;
  const bool whole = h.depth == 8 || h.depth == 16;
  bool known = false;
  switch (h.colour_type) {
    case 0: known = any || whole; break;
    case 2:
    case 4:
    case 6: known = whole; break;
    case 3: known = any || h.depth == 8; break;
    default: break;
  }
  if (!known) {
    return bad_image(Errc::corrupt, name,
                     "a PNG has no colour type " + std::to_string(h.colour_type) + " with " + std::to_string(h.depth) + " bits");
  }
  if (body[10] != std::byte{0} || body[11] != std::byte{0} || interlace > 1) {
    return bad_image(Errc::unsupported, name, "an unknown kind of compression, filter or interlacing in the PNG's header");
  }
  return h;
}

/// Walks the chunks to IEND. The header is checked against the limits as soon as it is read.
inline Result<PngParts> read_png_chunks(std::span<const std::byte> bytes, std::string_view name, const DecodeLimits& limits) {
  PngParts parts;
  std::size_t pieces = 0;
  for (std::size_t at = 8;;) {
    if (bytes.size() - at < 12) return bad_image(Errc::corrupt, name, "the PNG ends early (no IEND chunk)");
    const std::size_t length = big_endian_32(bytes.data() + at);
    const std::string_view type = io::as_text(bytes.subspan(at + 4, 4));
    const bool first = at == 8;
    if (first != (type == "IHDR") || (first && length != 13))
      return bad_image(Errc::corrupt, name, "the PNG does not begin with its one header");
    if (length > bytes.size() - at - 12) return bad_image(Errc::corrupt, name, "the PNG ends early (inside a chunk)");
    if (io::crc32(bytes.subspan(at + 4, 4 + length)) != big_endian_32(bytes.data() + at + 8 + length)) {
      return bad_image(Errc::corrupt, name, "a PNG chunk's checksum does not match its content");
    }
    const auto body = bytes.subspan(at + 8, length);
    at += 12 + length;
    if (type == "IHDR") {
      NORMA_TRY(parts.header, read_png_header(body, name));
      NORMA_CHECK(check_limits(parts.header.width, parts.header.height, name, limits));
    } else if (type == "PLTE") {
      if (length % 3 != 0 || length > 768) return bad_image(Errc::corrupt, name, "a PNG palette of " + std::to_string(length) + " bytes");
      parts.palette = body;
    } else if (type == "IDAT") {
      if (++pieces == 1) {
        parts.pixels = body;
      } else {
        if (pieces == 2) parts.joined.assign(parts.pixels.begin(), parts.pixels.end());
        parts.joined.insert(parts.joined.end(), body.begin(), body.end());
      }
    } else if (type == "IEND") {
      break;
    } else if ((std::to_integer<unsigned>(bytes[at - 12 - length + 4]) & 0x20u) == 0) {  // a capital: must be understood
      return bad_image(Errc::unsupported, name, "the PNG needs a chunk that norma does not know");
    }
  }
  if (pieces == 0) return bad_image(Errc::corrupt, name, "the PNG holds no pixels");
  if (pieces > 1) parts.pixels = parts.joined;
  if (parts.header.colour_type == 3 && parts.palette.empty()) return bad_image(Errc::corrupt, name, "the PNG has no palette");
  return parts;
}

template <int kStep>
void unfilter_png_average(std::uint8_t* row, const std::uint8_t* above, std::int64_t n) noexcept {
  int left[kStep] = {};
  for (std::int64_t i = 0; i + kStep <= n; i += kStep) {
    for (int c = 0; c < kStep; ++c) {
      left[c] = (row[i + c] + (left[c] + above[i + c]) / 2) & 0xFF;
      row[i + c] = static_cast<std::uint8_t>(left[c]);
    }
  }
}

template <int kStep>
void unfilter_png_paeth(std::uint8_t* row, const std::uint8_t* above, std::int64_t n) noexcept {
  int left[kStep] = {}, corner[kStep] = {};
  for (std::int64_t i = 0; i + kStep <= n; i += kStep) {
    for (int c = 0; c < kStep; ++c) {
      const int up = above[i + c];
      left[c] = (row[i + c] + paeth(left[c], up, corner[c])) & 0xFF;
      corner[c] = up;
      row[i + c] = static_cast<std::uint8_t>(left[c]);
    }
  }
}

#if NORMA_X86_DISPATCH
// The same two for 3 or 4 samples beside each other in one register (SSE2, which every x86-64 has): without branches, which noise would
// mislead. They read one byte past the end of both rows where kStep is 3: putting three bytes together would cost more than the filter.
inline __m128i load_4_bytes(const std::uint8_t* p) noexcept {
  std::int32_t pixel;
  std::memcpy(&pixel, p, 4);
  return _mm_cvtsi32_si128(pixel);
}

template <int kStep>
void store_pixel(std::uint8_t* p, __m128i bytes) noexcept {
  const std::int32_t pixel = _mm_cvtsi128_si32(bytes);
  std::memcpy(p, &pixel, kStep);
}

template <int kStep>
void unfilter_png_average_sse2(std::uint8_t* row, const std::uint8_t* above, std::int64_t n) noexcept {
  const __m128i one = _mm_set1_epi8(1);
  __m128i left = _mm_setzero_si128();
  for (std::int64_t i = 0; i + kStep <= n; i += kStep) {
    const __m128i up = load_4_bytes(above + i);
    const __m128i mean = _mm_sub_epi8(_mm_avg_epu8(left, up), _mm_and_si128(_mm_xor_si128(left, up), one));  // avg rounds up
    left = _mm_add_epi8(load_4_bytes(row + i), mean);
    store_pixel<kStep>(row + i, left);
  }
}

template <int kStep>
void unfilter_png_paeth_sse2(std::uint8_t* row, const std::uint8_t* above, std::int64_t n) noexcept {
  const __m128i zero = _mm_setzero_si128();
  const auto load = [&](const std::uint8_t* p) { return _mm_unpacklo_epi8(load_4_bytes(p), zero); };
  const auto magnitude = [&](__m128i v) { return _mm_max_epi16(v, _mm_sub_epi16(zero, v)); };
  const auto choose = [](__m128i mask, __m128i yes, __m128i no) {
    return _mm_or_si128(_mm_and_si128(mask, yes), _mm_andnot_si128(mask, no));
  };
  __m128i left = zero, corner = zero;
  for (std::int64_t i = 0; i + kStep <= n; i += kStep) {
    const __m128i up = load(above + i);
    const __m128i by_left = _mm_sub_epi16(up, corner);
    const __m128i by_up = _mm_sub_epi16(left, corner);
    const __m128i to_corner = magnitude(_mm_add_epi16(by_left, by_up));
    const __m128i to_left = magnitude(by_left), to_up = magnitude(by_up);
    const __m128i least = _mm_min_epi16(to_corner, _mm_min_epi16(to_left, to_up));
    const __m128i guess = choose(_mm_cmpeq_epi16(least, to_left), left, choose(_mm_cmpeq_epi16(least, to_up), up, corner));
    left = _mm_add_epi8(load(row + i), guess);  // the upper bytes are zero: the sum stays within 8 bits
    corner = up;
    store_pixel<kStep>(row + i, _mm_packus_epi16(left, left));
  }
}
#endif

/// Undoes filter `kind` in place; `above` is the row before, zeros for the first one. False for an unknown kind.
inline bool unfilter_png_row(int kind, std::uint8_t* NORMA_RESTRICT row, const std::uint8_t* NORMA_RESTRICT above, std::int64_t n,
                             std::int64_t step) noexcept {
  const auto with_step = [&](auto unfilter) {
    switch (step) {
      case 1: return unfilter(std::integral_constant<int, 1>{});
      case 2: return unfilter(std::integral_constant<int, 2>{});
      case 3: return unfilter(std::integral_constant<int, 3>{});
      case 4: return unfilter(std::integral_constant<int, 4>{});
      case 6: return unfilter(std::integral_constant<int, 6>{});
      default: return unfilter(std::integral_constant<int, 8>{});
    }
  };
  switch (kind) {
    case 0: return true;
    case 1:
      for (std::int64_t i = step; i < n; ++i) row[i] = static_cast<std::uint8_t>(row[i] + row[i - step]);
      return true;
    case 2:
      for (std::int64_t i = 0; i < n; ++i) row[i] = static_cast<std::uint8_t>(row[i] + above[i]);
      return true;
    case 3:
      with_step([&](auto s) {
        constexpr int kStep = decltype(s)::value;
#if NORMA_X86_DISPATCH
        if constexpr (kStep == 3 || kStep == 4) return unfilter_png_average_sse2<kStep>(row, above, n);
#endif
        unfilter_png_average<kStep>(row, above, n);
      });
      return true;
    case 4:
      with_step([&](auto s) {
        constexpr int kStep = decltype(s)::value;
#if NORMA_X86_DISPATCH
        if constexpr (kStep == 3 || kStep == 4) return unfilter_png_paeth_sse2<kStep>(row, above, n);
#endif
        unfilter_png_paeth<kStep>(row, above, n);
      });
      return true;
    default: return false;
  }
}

/// `pixels` unfiltered pixels as 8-bit gray or RGB, `out_step` bytes apart. False where a palette index has no colour.
inline bool expand_png_row(const PngParts& parts, const std::uint8_t* row, std::int64_t pixels, std::uint8_t* out,
                           std::int64_t out_step) noexcept {
  const PngHeader& h = parts.header;
  const std::int64_t channels = h.channels();
  if (h.colour_type == 3) {
    const auto colours = static_cast<std::int64_t>(parts.palette.size() / 3);
    for (std::int64_t x = 0; x < pixels; ++x, out += out_step) {
      const std::int64_t bit = x * h.depth;
      const std::int64_t index = row[bit / 8] >> (8 - h.depth - bit % 8) & ((1 << h.depth) - 1);
      if (index >= colours) return false;
      for (std::int64_t c = 0; c < 3; ++c) out[c] = std::to_integer<std::uint8_t>(parts.palette[static_cast<std::size_t>(3 * index + c)]);
    }
    return true;
  }
  if (h.depth == 8) {
    const std::int64_t samples = h.samples();
    if (samples == channels && out_step == channels) {
      std::memcpy(out, row, static_cast<std::size_t>(pixels * channels));
      return true;
    }
    for (std::int64_t x = 0; x < pixels; ++x, out += out_step, row += samples) {
      for (std::int64_t c = 0; c < channels; ++c) out[c] = row[c];
    }
    return true;
  }
  if (h.depth == 16) {
    for (std::int64_t x = 0; x < pixels; ++x, out += out_step, row += 2 * h.samples()) {
      for (std::int64_t c = 0; c < channels; ++c) out[c] = to_8_bits(static_cast<std::uint32_t>(row[2 * c] << 8 | row[2 * c + 1]), 16);
    }
    return true;
  }
  const int top = (1 << h.depth) - 1;  // gray with 1, 2 or 4 bits
  for (std::int64_t x = 0; x < pixels; ++x, out += out_step) {
    const std::int64_t bit = x * h.depth;
    *out = static_cast<std::uint8_t>((row[bit / 8] >> (8 - h.depth - bit % 8) & top) * 255 / top);
  }
  return true;
}

/// Decodes a PNG file whose signature has been seen.
inline Result<Image> decode_png(std::span<const std::byte> bytes, std::string_view name, const DecodeLimits& limits) {
  NORMA_TRY(const PngParts parts, read_png_chunks(bytes, name, limits));
  const PngHeader& h = parts.header;
  struct Pass {
    std::int64_t top, left, down, across;
  };
  static constexpr Pass kWhole[] = {{0, 0, 1, 1}};
  static constexpr Pass kAdam7[] = {{0, 0, 8, 8}, {0, 4, 8, 8}, {4, 0, 8, 4}, {0, 2, 4, 4}, {2, 0, 4, 2}, {0, 1, 2, 2}, {1, 0, 2, 1}};
  const std::span<const Pass> passes = h.interlaced ? std::span<const Pass>(kAdam7) : std::span<const Pass>(kWhole);
  const auto rows_of = [&](const Pass& p) { return (h.height - p.top + p.down - 1) / p.down; };
  const auto columns_of = [&](const Pass& p) { return (h.width - p.left + p.across - 1) / p.across; };
  std::int64_t size = 0;
  for (const Pass& p : passes) {
    if (columns_of(p) > 0) size += rows_of(p) * (1 + h.row_bytes(columns_of(p)));
  }
  Buffer<std::byte> raw(size + 1);  // one more for the filters' last load
  const auto inflated = io::inflate_zlib(parts.pixels, raw.span().first(static_cast<std::size_t>(size)));
  if (!inflated) return bad_image(inflated.code(), name, "the pixels cannot be decompressed (" + inflated.message() + ")");
  if (inflated->produced != size) {
    return bad_image(Errc::corrupt, name,
                     "expected " + std::to_string(size) + " bytes of pixels, found " + std::to_string(inflated->produced));
  }
  Image image(h.height, h.width, h.channels());
  const std::vector<std::uint8_t> zeros(static_cast<std::size_t>(h.row_bytes(h.width) + 1), 0);
  auto* at = reinterpret_cast<std::uint8_t*>(raw.data());
  for (const Pass& p : passes) {
    const std::int64_t columns = columns_of(p);
    const std::int64_t n = h.row_bytes(columns);
    const std::uint8_t* above = zeros.data();
    for (std::int64_t r = 0; columns > 0 && r < rows_of(p); ++r, above = at + 1, at += n + 1) {
      if (!unfilter_png_row(at[0], at + 1, above, n, h.filter_step())) {
        return bad_image(Errc::corrupt, name, "a PNG has no filter " + std::to_string(at[0]));
      }
      if (!expand_png_row(parts, at + 1, columns, image.row(p.top + r * p.down) + p.left * h.channels(), p.across * h.channels())) {
        return bad_image(Errc::corrupt, name, "a pixel outside the PNG's palette");
      }
    }
  }
  return image;
}

}  // namespace norma::image::detail
