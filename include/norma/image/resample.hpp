/// \file
/// Change of size. Three different "bilinear" and two different "nearest" are in use among the published methods, and they do not give
/// the same figures (docs/formats/images.md): the names say whose they are.
/// 8-bit images: Pillow's resizers to the bit, OpenCV's within 1 of 255. Float maps: what networks do (`torch.nn.functional.interpolate`).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <norma/core/arena.hpp>
#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/image/detail/resample_rows.hpp>
#include <norma/image/image.hpp>

namespace norma {

inline constexpr Interpolation kInterpolations[] = {Interpolation::pillow_nearest, Interpolation::pillow_bilinear,
                                                    Interpolation::pillow_bicubic, Interpolation::pillow_lanczos,
                                                    Interpolation::opencv_nearest, Interpolation::opencv_bilinear};

constexpr std::string_view to_string(Interpolation kind) noexcept {
  switch (kind) {
    case Interpolation::pillow_nearest: return "pillow_nearest";
    case Interpolation::pillow_bilinear: return "pillow_bilinear";
    case Interpolation::pillow_bicubic: return "pillow_bicubic";
    case Interpolation::pillow_lanczos: return "pillow_lanczos";
    case Interpolation::opencv_nearest: return "opencv_nearest";
    case Interpolation::opencv_bilinear: return "opencv_bilinear";
  }
  return "unknown";
}
/// The inverse; false, and `kind` unchanged, for any other text.
constexpr bool from_string(std::string_view text, Interpolation& kind) noexcept {
  for (const Interpolation candidate : kInterpolations) {
    if (text == to_string(candidate)) return kind = candidate, true;
  }
  return false;
}

/// Whether the two outermost samples of in- and output coincide (`yes`) or the two areas do (`no`, half-pixel centres).
enum class AlignCorners : std::uint8_t { no, yes };

namespace image {

/// The kind of that name (the inverse of to_string), or an error that lists the names.
inline Result<Interpolation> interpolation_from_string(std::string_view name) {
  std::string known;
  for (const Interpolation kind : kInterpolations) {
    if (to_string(kind) == name) return kind;
    known += (known.empty() ? "" : ", ") + std::string(to_string(kind));
  }
  return Status{Errc::invalid_argument,
                "image::interpolation_from_string: expected one of " + known + ", found \"" + std::string(name) + "\""};
}

/// The frame at `height` x `width`, 8-bit gray or RGB.
inline Result<Image> resize(const ImageView& frame, std::int64_t height, std::int64_t width, Interpolation kind) {
  NORMA_CHECK(validate(frame));
  if (height <= 0 || width <= 0 || height > kMaxImageSide || width > kMaxImageSide) {
    return Status{Errc::invalid_argument, "image::resize: expected an output size within 1 and " + std::to_string(kMaxImageSide) +
                                              ", found " + std::to_string(height) + " x " + std::to_string(width)};
  }
  const std::int64_t taps_y = detail::max_taps(kind, frame.height, height);
  const std::int64_t taps_x = detail::max_taps(kind, frame.width, width);
  Buffer<std::byte> memory(static_cast<std::int64_t>(detail::axis_bytes(height, taps_y) + detail::axis_bytes(width, taps_x) +
                                                     detail::row_scratch_bytes(width, taps_x, taps_y, frame.width)));
  Arena arena(memory.span());
  detail::AxisTaps vertical, horizontal;
  detail::RowScratch scratch;
  if (!detail::take_axis(arena, height, taps_y, vertical) || !detail::take_axis(arena, width, taps_x, horizontal) ||
      !detail::take_row_scratch(arena, width, taps_x, taps_y, frame.width, scratch)) {
    return Status{Errc::out_of_memory, "image::resize: scratch memory is too small"};
  }
  detail::fill_axis(kind, frame.height, height, 0, vertical);
  detail::fill_axis(kind, frame.width, width, 0, horizontal);
  Image out(height, width, colour_channels(frame.format));
  const bool swap = blue_first(frame.format);
  detail::resample_rows(kind, frame, horizontal, vertical, scratch, [&](std::int64_t y, const std::uint8_t* row) {
    std::uint8_t* to = out.row(y);
    if (!swap) {
      std::memcpy(to, row, static_cast<std::size_t>(width * out.channels()));
      return;
    }
    for (std::int64_t x = 0; x < 3 * width; x += 3) to[x] = row[x + 2], to[x + 1] = row[x + 1], to[x + 2] = row[x];
  });
  return out;
}

inline Result<Image> resize(const Image& image, std::int64_t height, std::int64_t width, Interpolation kind) {
  return resize(image.view(), height, width, kind);
}

/// Nearest for masks and label maps of any element type; sizes are those of the views. `kind` is one of the two nearest.
template <class T>
Status resize_nearest(MapView<const std::type_identity_t<T>> in, MapView<T> out, Interpolation kind = Interpolation::pillow_nearest) {
  if (in.empty() || out.empty()) return {Errc::shape_mismatch, "image::resize_nearest: a map is empty"};
  if (!detail::is_nearest(kind)) {
    return {Errc::invalid_argument, "image::resize_nearest: expected a nearest interpolation, found " + std::string(to_string(kind))};
  }
  const bool pillow = kind == Interpolation::pillow_nearest;
  detail::NearestAxis y(in.rows, out.rows, 0);
  for (std::int64_t r = 0; r < out.rows; ++r) {
    const std::int64_t from = pillow ? y.next() : r * in.rows / out.rows;
    detail::NearestAxis x(in.cols, out.cols, 0);
    for (std::int64_t c = 0; c < out.cols; ++c) out(r, c) = in(from, pillow ? x.next() : c * in.cols / out.cols);
  }
  return {};
}

namespace detail {

/// The two samples and the weight of the second one for output `i` of a bilinear axis.
struct TwoTaps {
  std::int64_t low = 0;
  std::int64_t high = 0;
  double fraction = 0.0;
};

/// Bilinear between the centres of `in` samples at the real-valued place `position`, held at the ends.
inline TwoTaps two_taps(double position, std::int64_t in) noexcept {
  position = std::max(position, 0.0);
  const std::int64_t low = std::min(static_cast<std::int64_t>(position), in - 1);
  const std::int64_t high = std::min(low + 1, in - 1);
  return {low, high, high == low ? 0.0 : position - static_cast<double>(low)};
}

inline double source_position(std::int64_t i, std::int64_t in, std::int64_t out, AlignCorners corners) noexcept {
  if (corners == AlignCorners::yes) {
    return out > 1 ? static_cast<double>(i) * static_cast<double>(in - 1) / static_cast<double>(out - 1) : 0.0;
  }
  return (static_cast<double>(i) + 0.5) * static_cast<double>(in) / static_cast<double>(out) - 0.5;
}

/// Fills rows [rows.first, rows.second) and columns [columns.first, columns.second) of `out` by bilinear between the samples of `in`;
/// `row_at(r)` and `column_at(c)` say where in `in` an output stands. Columns go in blocks whose taps are worked out once.
template <class RowAt, class ColumnAt>
void bilinear_between(MapView<const float> in, MapView<float> out, std::pair<std::int64_t, std::int64_t> rows,
                      std::pair<std::int64_t, std::int64_t> columns, RowAt row_at, ColumnAt column_at) noexcept {
  constexpr std::int64_t kBlock = 256;
  std::int32_t low[kBlock], high[kBlock];
  float fraction[kBlock];
  for (std::int64_t first = columns.first; first < columns.second; first += kBlock) {
    const std::int64_t count = std::min(kBlock, columns.second - first);
    for (std::int64_t i = 0; i < count; ++i) {
      const TwoTaps x = two_taps(column_at(first + i), in.cols);
      low[i] = static_cast<std::int32_t>(x.low);
      high[i] = static_cast<std::int32_t>(x.high);
      fraction[i] = static_cast<float>(x.fraction);
    }
    for (std::int64_t r = rows.first; r < rows.second; ++r) {
      const TwoTaps y = two_taps(row_at(r), in.rows);
      const float* above = in.data + y.low * in.stride;
      const float* below = in.data + y.high * in.stride;
      const auto fy = static_cast<float>(y.fraction);
      float* to = out.data + r * out.stride + first;
      for (std::int64_t i = 0; i < count; ++i) {
        const float a = above[low[i]] + fraction[i] * (above[high[i]] - above[low[i]]);
        const float b = below[low[i]] + fraction[i] * (below[high[i]] - below[low[i]]);
        to[i] = a + fy * (b - a);
      }
    }
  }
}

}  // namespace detail

/// Bilinear without anti-aliasing between float maps, as networks enlarge theirs. Sizes are those of the views, up to 2^20 a side.
inline Status resize_bilinear(MapView<const float> in, MapView<float> out, AlignCorners corners) {
  if (in.empty() || out.empty()) return {Errc::shape_mismatch, "image::resize_bilinear: a map is empty"};
  if (in.rows > kMaxImageSide || in.cols > kMaxImageSide) {
    return {Errc::invalid_argument, "image::resize_bilinear: expected sides up to " + std::to_string(kMaxImageSide) + ", found " +
                                        std::to_string(in.rows) + " x " + std::to_string(in.cols)};
  }
  detail::bilinear_between(
      in, out, {0, out.rows}, {0, out.cols}, [&](std::int64_t r) { return detail::source_position(r, in.rows, out.rows, corners); },
      [&](std::int64_t c) { return detail::source_position(c, in.cols, out.cols, corners); });
  return {};
}

}  // namespace image
}  // namespace norma
