/// \file
/// Writing PNG.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/status.hpp>
#include <norma/image/detail/deflate.hpp>
#include <norma/image/detail/png.hpp>
#include <norma/image/image.hpp>
#include <norma/io/file.hpp>
#include <norma/io/inflate.hpp>

namespace norma::image {

namespace detail {

/// out[i] = row[i] less what filter `kind` predicts; returns the sum of magnitudes, which tells how well the row will compress.
/// `row` and `above` have `step` zero bytes in front.
inline std::int64_t filter_png_row(int kind, const std::uint8_t* row, const std::uint8_t* above, std::int64_t n, std::int64_t step,
                                   std::uint8_t* out) noexcept {
  const auto each = [&](auto predict) {
    std::int64_t sum = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const auto rest = static_cast<std::uint8_t>(row[i] - predict(row[i - step], above[i], above[i - step]));
      out[i] = rest;
      sum += rest < 128 ? rest : 256 - rest;
    }
    return sum;
  };
  switch (kind) {
    case 1: return each([](int left, int, int) { return left; });
    case 2: return each([](int, int up, int) { return up; });
    case 3: return each([](int left, int up, int) { return (left + up) / 2; });
    case 4: return each([](int left, int up, int corner) { return paeth(left, up, corner); });
    default: return each([](int, int, int) { return 0; });
  }
}

inline void put_big_endian_32(std::vector<std::byte>& out, std::uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<std::byte>(value >> shift & 0xFFu));
}

/// Length, type, what `fill` appends, checksum.
template <class Fill>
void put_png_chunk(std::vector<std::byte>& out, std::string_view type, Fill fill) {
  const std::size_t start = out.size();
  put_big_endian_32(out, 0);
  for (const char c : type) out.push_back(static_cast<std::byte>(c));
  fill();
  const std::size_t length = out.size() - start - 8;
  for (std::size_t i = 0; i < 4; ++i) out[start + i] = static_cast<std::byte>(length >> (24 - 8 * i) & 0xFFu);
  put_big_endian_32(out, io::crc32(std::span<const std::byte>(out).subspan(start + 4)));
}

}  // namespace detail

/// The frame as a PNG, 8-bit gray or RGB (more bits are rounded, alpha is dropped). Frames up to 2^30 bytes.
inline Result<std::vector<std::byte>> encode_png(const ImageView& frame) {
  NORMA_CHECK(validate(frame));
  const std::int64_t step = colour_channels(frame.format);
  const std::int64_t n = frame.width * step;
  if (frame.height * (n + 1) > std::int64_t{1} << 30) {
    return Status{Errc::unsupported, "image::encode_png: expected up to 2^30 bytes, found " + std::to_string(frame.height) + " x " +
                                         std::to_string(frame.width) + " pixels"};
  }
  // Every row with the filter that leaves the smallest numbers.
  std::vector<std::byte> filtered(static_cast<std::size_t>(frame.height * (n + 1)));
  std::vector<std::uint8_t> memory(static_cast<std::size_t>(2 * (step + n) + 5 * n), 0);
  std::uint8_t* row = memory.data() + step;
  std::uint8_t* above = row + n + step;
  std::uint8_t* tries = above + n;
  for (std::int64_t y = 0; y < frame.height; ++y, std::swap(row, above)) {
    detail::copy_row_8_bit(frame, y, row);
    int best = 0;
    std::int64_t least = detail::filter_png_row(0, row, above, n, step, tries);
    for (int kind = 1; kind < 5; ++kind) {
      const std::int64_t sum = detail::filter_png_row(kind, row, above, n, step, tries + kind * n);
      if (sum < least) least = sum, best = kind;
    }
    std::byte* to = filtered.data() + y * (n + 1);
    to[0] = static_cast<std::byte>(best);
    std::memcpy(to + 1, tries + best * n, static_cast<std::size_t>(n));
  }
  const auto signature = io::as_bytes("\x89PNG\r\n\x1a\n");
  std::vector<std::byte> out(signature.begin(), signature.end());
  detail::put_png_chunk(out, "IHDR", [&] {
    detail::put_big_endian_32(out, static_cast<std::uint32_t>(frame.width));
    detail::put_big_endian_32(out, static_cast<std::uint32_t>(frame.height));
    for (const int value : {8, step == 3 ? 2 : 0, 0, 0, 0}) out.push_back(static_cast<std::byte>(value));
  });
  detail::put_png_chunk(out, "IDAT", [&] { detail::deflate_zlib(filtered, out); });
  detail::put_png_chunk(out, "IEND", [] {});
  return out;
}

/// Writes a PNG; the file appears whole or not at all.
inline Status write_png(const std::string& path, const ImageView& frame) {
  const auto png = encode_png(frame);
  if (!png) return png.status().with_context("'" + path + "'");
  return io::write_file_atomically(path, std::span<const std::byte>(*png));
}

}  // namespace norma::image
