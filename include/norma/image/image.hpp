/// \file
/// Pictures: a view of a camera's frame as it lies in memory, and an owning 8-bit image.
///
/// Frames keep the layout that the camera's driver gives them (rows `pitch` bytes apart, any of the formats below); everything that
/// reads pixels converts on the way. An owned `Image` is always 8 bit, gray or RGB, rows packed.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>

#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/core/view.hpp>

namespace norma {

/// How pixels lie in memory. 10 and 12 bits stand in the low bits of a little-endian 16-bit word. Alpha is read over and dropped.
enum class PixelFormat : std::uint8_t { gray8, gray10, gray12, gray16, rgb8, bgr8, rgba8, bgra8 };

constexpr std::string_view to_string(PixelFormat format) noexcept {
  switch (format) {
    case PixelFormat::gray8: return "gray8";
    case PixelFormat::gray10: return "gray10";
    case PixelFormat::gray12: return "gray12";
    case PixelFormat::gray16: return "gray16";
    case PixelFormat::rgb8: return "rgb8";
    case PixelFormat::bgr8: return "bgr8";
    case PixelFormat::rgba8: return "rgba8";
    case PixelFormat::bgra8: return "bgra8";
  }
  return "unknown";
}

/// Distance between neighbouring pixels of a row in bytes; 0 for a value outside the enumeration.
constexpr std::int64_t bytes_per_pixel(PixelFormat format) noexcept {
  switch (format) {
    case PixelFormat::gray8: return 1;
    case PixelFormat::gray10:
    case PixelFormat::gray12:
    case PixelFormat::gray16: return 2;
    case PixelFormat::rgb8:
    case PixelFormat::bgr8: return 3;
    case PixelFormat::rgba8:
    case PixelFormat::bgra8: return 4;
  }
  return 0;
}

/// Channels that carry a picture: 1 (gray) or 3 (colour; alpha does not count).
constexpr std::int64_t colour_channels(PixelFormat format) noexcept { return bytes_per_pixel(format) >= 3 ? 3 : 1; }

/// True where blue comes first.
constexpr bool blue_first(PixelFormat format) noexcept { return format == PixelFormat::bgr8 || format == PixelFormat::bgra8; }

/// A frame that somebody else owns. Make one with `image::view`.
struct ImageView {
  const std::byte* data = nullptr;
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::int64_t pitch = 0;  ///< bytes from one row to the next, >= width * bytes_per_pixel(format)
  PixelFormat format = PixelFormat::rgb8;

  /// The part of `roi_height` x `roi_width` pixels at (top, left); must lie inside.
  [[nodiscard]] ImageView roi(std::int64_t top, std::int64_t left, std::int64_t roi_height, std::int64_t roi_width) const noexcept {
    NORMA_EXPECTS(top >= 0 && left >= 0 && roi_height >= 0 && roi_width >= 0);
    NORMA_EXPECTS(top <= height - roi_height && left <= width - roi_width);
    return {data + top * pitch + left * bytes_per_pixel(format), roi_height, roi_width, pitch, format};
  }
  [[nodiscard]] const std::uint8_t* row(std::int64_t y) const noexcept { return reinterpret_cast<const std::uint8_t*>(data + y * pitch); }
};

/// Sides above this are taken for a mistake (they would overflow sizes further on).
inline constexpr std::int64_t kMaxImageSide = std::int64_t{1} << 20;

/// Whether `frame` can be read: memory there, sizes in range, rows that do not overlap, a known format.
inline Status validate(const ImageView& frame) {
  const auto text = [](std::int64_t value) { return std::to_string(value); };
  const std::int64_t pixel = bytes_per_pixel(frame.format);
  if (pixel == 0) return {Errc::invalid_argument, "ImageView: unknown pixel format " + text(static_cast<int>(frame.format))};
  if (frame.height <= 0 || frame.width <= 0) {
    return {Errc::invalid_argument,
            "ImageView: height and width must be positive, found " + text(frame.height) + " x " + text(frame.width)};
  }
  if (frame.height > kMaxImageSide || frame.width > kMaxImageSide) {
    return {Errc::invalid_argument, "ImageView: too large, expected sides up to " + text(kMaxImageSide) + ", found " + text(frame.height) +
                                        " x " + text(frame.width)};
  }
  if (frame.pitch < frame.width * pixel) {
    return {Errc::invalid_argument, "ImageView: pitch is too small for a row, expected at least " + text(frame.width * pixel) + " bytes (" +
                                        text(frame.width) + " pixels of " + std::string(to_string(frame.format)) + "), found " +
                                        text(frame.pitch)};
  }
  if (frame.pitch > std::numeric_limits<std::int64_t>::max() / kMaxImageSide) {
    return {Errc::invalid_argument, "ImageView: pitch is too large, found " + text(frame.pitch)};
  }
  if (frame.data == nullptr) return {Errc::invalid_argument, "ImageView: no pixels (null pointer)"};
  return {};
}

/// Owning image, [height, width, channels], 8 bit, 1 channel (gray) or 3 (RGB), rows packed, zero-initialised.
class Image {
 public:
  Image() noexcept = default;
  Image(std::int64_t height, std::int64_t width, std::int64_t channels)
      : buffer_(height * width * channels), height_(height), width_(width), channels_(channels) {
    NORMA_EXPECTS(channels == 1 || channels == 3);
  }

  [[nodiscard]] std::int64_t height() const noexcept { return height_; }
  [[nodiscard]] std::int64_t width() const noexcept { return width_; }
  [[nodiscard]] std::int64_t channels() const noexcept { return channels_; }
  [[nodiscard]] std::int64_t size_bytes() const noexcept { return buffer_.size(); }
  [[nodiscard]] bool empty() const noexcept { return buffer_.empty(); }
  [[nodiscard]] std::uint8_t* data() noexcept { return buffer_.data(); }
  [[nodiscard]] const std::uint8_t* data() const noexcept { return buffer_.data(); }
  [[nodiscard]] std::uint8_t* row(std::int64_t y) noexcept { return data() + y * width_ * channels_; }
  [[nodiscard]] const std::uint8_t* row(std::int64_t y) const noexcept { return data() + y * width_ * channels_; }
  [[nodiscard]] std::uint8_t& operator()(std::int64_t y, std::int64_t x, std::int64_t c) noexcept {
    return buffer_[(y * width_ + x) * channels_ + c];
  }
  [[nodiscard]] const std::uint8_t& operator()(std::int64_t y, std::int64_t x, std::int64_t c) const noexcept {
    return buffer_[(y * width_ + x) * channels_ + c];
  }
  [[nodiscard]] PixelFormat format() const noexcept { return channels_ == 1 ? PixelFormat::gray8 : PixelFormat::rgb8; }
  [[nodiscard]] ImageView view() const noexcept {
    return {reinterpret_cast<const std::byte*>(data()), height_, width_, width_ * channels_, format()};
  }

 private:
  Buffer<std::uint8_t> buffer_;
  std::int64_t height_ = 0;
  std::int64_t width_ = 0;
  std::int64_t channels_ = 1;
};

namespace image {

/// A frame in the caller's memory. `pitch` is the distance between rows in bytes. Check with `validate` before reading.
inline ImageView view(const void* pixels, std::int64_t height, std::int64_t width, std::int64_t pitch, PixelFormat format) noexcept {
  return {static_cast<const std::byte*>(pixels), height, width, pitch, format};
}

namespace detail {

/// round(value * 255 / (2^bits - 1)) by one multiplication: exact for every value of 10, 12 and 16 bits (tested). 16 bits: value / 257.
/// Values above the range count as its end.
constexpr std::uint8_t to_8_bits(std::uint32_t value, int bits) noexcept {
  const std::uint32_t top = (std::uint32_t{1} << bits) - 1;
  const std::uint32_t factor = bits == 10 ? 4182003u : (bits == 12 ? 1044735u : 65281u);  // 255 * 2^24 / top, rounded
  return static_cast<std::uint8_t>(((value < top ? value : top) * factor + (1u << 23)) >> 24);
}

/// Pixels [first, first + count) of row `y` of a gray frame with more than 8 bits, as 8 bits.
inline void narrow_gray_row(const ImageView& frame, std::int64_t y, std::int64_t first, std::int64_t count, std::uint8_t* out) noexcept {
  const std::uint8_t* in = frame.row(y) + first * 2;
  const auto convert = [&](auto bits) {
    constexpr std::int64_t kBlock = 64;  // of constant length, so that every compiler vectorises
    std::uint16_t words[kBlock];
    std::uint8_t bytes[kBlock];
    for (std::int64_t x = 0; x < count; x += kBlock) {
      const std::int64_t n = count - x < kBlock ? count - x : kBlock;
      if constexpr (std::endian::native == std::endian::little) {
        std::memcpy(words, in + 2 * x, static_cast<std::size_t>(2 * n));
      } else {
        for (std::int64_t i = 0; i < n; ++i) words[i] = static_cast<std::uint16_t>(in[2 * (x + i)] | in[2 * (x + i) + 1] << 8);
      }
      std::fill(words + n, words + kBlock, std::uint16_t{0});
      for (std::int64_t i = 0; i < kBlock; ++i) bytes[i] = to_8_bits(words[i], decltype(bits)::value);
      std::memcpy(out + x, bytes, static_cast<std::size_t>(n));
    }
  };
  switch (frame.format) {
    case PixelFormat::gray10: return convert(std::integral_constant<int, 10>{});
    case PixelFormat::gray12: return convert(std::integral_constant<int, 12>{});
    default: return convert(std::integral_constant<int, 16>{});
  }
}

/// Row `y` as packed gray or RGB bytes.
inline void copy_row_8_bit(const ImageView& frame, std::int64_t y, std::uint8_t* out) noexcept {
  const std::uint8_t* in = frame.row(y);
  const std::int64_t step = bytes_per_pixel(frame.format);
  switch (frame.format) {
    case PixelFormat::gray10:
    case PixelFormat::gray12:
    case PixelFormat::gray16: narrow_gray_row(frame, y, 0, frame.width, out); return;
    case PixelFormat::gray8:
    case PixelFormat::rgb8: std::memcpy(out, in, static_cast<std::size_t>(frame.width * step)); return;
    case PixelFormat::bgr8:
    case PixelFormat::rgba8:
    case PixelFormat::bgra8: break;
  }
  const std::int64_t red = blue_first(frame.format) ? 2 : 0;
  for (std::int64_t x = 0; x < frame.width; ++x) {
    out[3 * x + 0] = in[step * x + red];
    out[3 * x + 1] = in[step * x + 1];
    out[3 * x + 2] = in[step * x + 2 - red];
  }
}

}  // namespace detail

/// Copy of a frame as 8-bit gray or RGB (more bits are rounded, alpha dropped).
inline Result<Image> to_image(const ImageView& frame) {
  NORMA_CHECK(validate(frame));
  Image image(frame.height, frame.width, colour_channels(frame.format));
  for (std::int64_t y = 0; y < frame.height; ++y) detail::copy_row_8_bit(frame, y, image.row(y));
  return image;
}

/// Gray as 1 channel: ITU-R 601 luma in 16-bit fixed point, the weights that Pillow's conversion to "L" uses.
inline Result<Image> to_gray(const ImageView& frame) {
  NORMA_TRY(Image colour, to_image(frame));
  if (colour.channels() == 1) return colour;
  Image gray(colour.height(), colour.width(), 1);
  const std::uint8_t* in = colour.data();
  for (std::int64_t i = 0; i < gray.size_bytes(); ++i, in += 3) {
    gray.data()[i] = static_cast<std::uint8_t>((in[0] * 19595u + in[1] * 38470u + in[2] * 7471u + 0x8000u) >> 16);
  }
  return gray;
}

}  // namespace image
}  // namespace norma
