/// \file
/// Float TIFF images: organised point clouds (x, y, z per pixel) and anomaly maps. The reader takes classic TIFF of either byte order with
/// 32-bit floating-point samples, in strips or tiles, interleaved or in planes, uncompressed, LZW or deflate, with any predictor. Anything
/// else is an error that names the tag and its value. docs/formats/tiff.md has the table.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/io/file.hpp>
#include <norma/io/inflate.hpp>

namespace norma::io {

struct TiffLimits {
  std::int64_t values = std::int64_t{1} << 28;  ///< height x width x channels: 1 GiB of floats
};

namespace detail {

/// LZW as TIFF has it: codes of 9 to 12 bits, high bit first, widened one code early. Stops when `out` is full.
/// Returns the bytes made, or -1 for a stream that contradicts itself.
inline std::int64_t unpack_lzw(std::span<const std::byte> in, std::span<std::byte> out) noexcept {
  constexpr std::uint32_t kClear = 256, kEnd = 257, kCodes = 4096;
  // A code's text is an earlier piece of the output and one byte more, so a place and a length say it all.
  std::array<std::uint32_t, kCodes> place;
  std::array<std::uint32_t, kCodes> length;
  std::uint32_t next = 258, width = 9;
  std::size_t written = 0, read = 0;
  std::uint64_t bits = 0;
  std::uint32_t count = 0;
  bool first = true;  // after a clear: nothing before to grow from
  std::size_t last_place = 0;
  std::uint32_t last_length = 0;
  if (out.size() > std::numeric_limits<std::uint32_t>::max()) return -1;
  while (written < out.size()) {
    while (count < width && read < in.size()) {
      bits = bits << 8 | std::to_integer<std::uint64_t>(in[read++]);
      count += 8;
    }
    if (count < width) return static_cast<std::int64_t>(written);
    const auto code = static_cast<std::uint32_t>(bits >> (count - width)) & ((1u << width) - 1);
    count -= width;
    if (code == kEnd) return static_cast<std::int64_t>(written);
    if (code == kClear) {
      next = 258;
      width = 9;
      first = true;
      continue;
    }
    if (first && code > 255) return -1;
    if (!first && next < kCodes) {  // the text before, and the byte that follows it: this code's first
      place[next] = static_cast<std::uint32_t>(last_place);
      length[next] = last_length + 1;
      ++next;
    }
    if (code > 255 && code >= next) return -1;
    const std::size_t start = written;
    if (code < 256) {
      out[written++] = static_cast<std::byte>(code);
      last_length = 1;
    } else {
      last_length = length[code];
      const std::size_t from = place[code];
      const std::size_t copy = std::min<std::size_t>(last_length, out.size() - written);
      for (std::size_t i = 0; i < copy; ++i) out[written + i] = out[from + i];  // may overlap: the byte that follows was just written
      written += copy;
    }
    last_place = start;
    first = false;
    if (next + 1 >= (1u << width) && width < 12) ++width;
  }
  return static_cast<std::int64_t>(written);
}

class TiffReader {
 public:
  TiffReader(std::span<const std::byte> bytes, std::string_view name, const TiffLimits& limits)
      : bytes_(bytes), name_(name), limits_(limits) {}

  Result<Tensor<float>> read() {
    NORMA_CHECK(header());
    NORMA_CHECK(layout());
    Tensor<float> image(1, height_, width_, channels_);
    const std::int64_t across = tiled_ ? (width_ + piece_width_ - 1) / piece_width_ : 1;
    const std::int64_t down = (height_ + piece_height_ - 1) / piece_height_;
    const std::int64_t planes = planar_ ? channels_ : 1;
    std::vector<std::byte> scratch;
    for (std::int64_t plane = 0; plane < planes; ++plane) {
      for (std::int64_t y = 0; y < down; ++y) {
        for (std::int64_t x = 0; x < across; ++x)
          NORMA_CHECK(piece((plane * down + y) * across + x, plane, y * piece_height_, x * piece_width_, scratch, image));
      }
    }
    return image;
  }

 private:
  struct Field {
    std::uint64_t count = 0;
    std::uint64_t element = 0;  // bytes of one value; 0: the tag is absent
    std::uint64_t at = 0;
  };
  enum Known : std::size_t {
    width,
    height,
    bits,
    compression,
    fill_order,
    offsets,
    samples,
    rows_per_strip,
    byte_counts,
    planar,
    predictor,
    tile_width,
    tile_height,
    tile_offsets,
    tile_byte_counts,
    sample_format,
    known_count
  };
  static constexpr std::array<std::uint16_t, known_count> kTags = {256, 257, 258, 259, 266, 273, 277, 278,
                                                                   279, 284, 317, 322, 323, 324, 325, 339};

  Status error(Errc code, const std::string& what) const { return {code, "io::read_tiff: '" + std::string(name_) + "': " + what}; }
  Status corrupt(const std::string& what) const { return error(Errc::corrupt, what); }
  Status unsupported(Known tag, std::uint64_t value, std::string_view expected) const {
    return error(Errc::unsupported,
                 "tag " + std::to_string(kTags[tag]) + " is " + std::to_string(value) + ", expected " + std::string(expected));
  }

  /// An unsigned integer in the file's byte order; `ok_` turns false beyond the end.
  std::uint64_t at(std::uint64_t offset, std::uint64_t size) noexcept {
    if (offset > bytes_.size() || bytes_.size() - offset < size) {
      ok_ = false;
      return 0;
    }
    std::uint64_t value = 0;
    for (std::uint64_t i = 0; i < size; ++i) {
      const std::uint64_t byte = std::to_integer<std::uint64_t>(bytes_[static_cast<std::size_t>(offset + i)]);
      value |= byte << (8 * (big_ ? size - 1 - i : i));
    }
    return value;
  }
  /// Value `i` of a field that is there.
  std::uint64_t value(Known tag, std::uint64_t i = 0) noexcept {
    return at(fields_[tag].at + i * fields_[tag].element, fields_[tag].element);
  }
  std::uint64_t value_or(Known tag, std::uint64_t otherwise) noexcept { return fields_[tag].element == 0 ? otherwise : value(tag); }

  Status header() {
    if (bytes_.size() < 8) return corrupt("not a TIFF file: " + std::to_string(bytes_.size()) + " bytes");
    const std::string_view order = as_text(bytes_.first(2));
    if (order != "II" && order != "MM") return corrupt("not a TIFF file: it starts with neither II nor MM");
    big_ = order == "MM";
    const std::uint64_t version = at(2, 2);
    if (version == 43) return error(Errc::unsupported, "a BigTIFF (version 43), expected a classic TIFF (42)");
    if (version != 42) return corrupt("not a TIFF file: version " + std::to_string(version) + ", expected 42");
    const std::uint64_t directory = at(4, 4);
    const std::uint64_t count = at(directory, 2);
    if (!ok_ || directory + 2 + 12 * count > bytes_.size()) return corrupt("the directory lies outside of the file");
    constexpr std::array<std::uint64_t, 13> kBytes = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8};
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t entry = directory + 2 + 12 * i;
      const auto tag = std::find(kTags.begin(), kTags.end(), at(entry, 2));
      if (tag == kTags.end()) continue;
      const std::uint64_t type = at(entry + 2, 2);
      Field field{at(entry + 4, 4), 0, entry + 8};
      if (type != 1 && type != 3 && type != 4)
        return corrupt("tag " + std::to_string(*tag) + " has type " + std::to_string(type) + ", expected an unsigned integer");
      if (field.count == 0) return corrupt("tag " + std::to_string(*tag) + " has no value");
      field.element = kBytes[type];
      if (field.count * field.element > 4) field.at = at(entry + 8, 4);
      if (field.at > bytes_.size() || field.count * field.element > bytes_.size() - field.at)
        return corrupt("tag " + std::to_string(*tag) + " lies outside of the file");
      Field& known = fields_[static_cast<std::size_t>(tag - kTags.begin())];
      if (known.element != 0) return corrupt("tag " + std::to_string(*tag) + " appears twice");
      known = field;
    }
    return {};
  }

  Status layout() {
    for (const Known tag : {width, height, bits}) {
      if (fields_[tag].element == 0) return corrupt("tag " + std::to_string(kTags[tag]) + " is missing");
    }
    constexpr std::uint64_t kMost = std::uint64_t{1} << 31;
    const std::uint64_t w = value(width), h = value(height), c = value_or(samples, 1);
    if (w == 0 || h == 0 || c == 0 || w >= kMost || h >= kMost || c > 65535) {
      return corrupt("an image of " + std::to_string(w) + " x " + std::to_string(h) + " with " + std::to_string(c) + " channels");
    }
    const auto most = static_cast<std::uint64_t>(limits_.values);
    if (w > most / h || w * h > most / c) {
      return error(Errc::unsupported, "an image of " + std::to_string(w) + " x " + std::to_string(h) + " with " + std::to_string(c) +
                                          " channels, more than the limit of " + std::to_string(most) + " values");
    }
    width_ = static_cast<std::int64_t>(w);
    height_ = static_cast<std::int64_t>(h);
    channels_ = static_cast<std::int64_t>(c);

    for (std::uint64_t i = 0; i < fields_[bits].count; ++i) {
      if (value(bits, i) != 32) return unsupported(bits, value(bits, i), "32 (BitsPerSample)");
    }
    if (fields_[sample_format].element == 0)
      return error(Errc::unsupported, "tag 339 (SampleFormat) is missing, which means integers; expected 3 (floating-point)");
    for (std::uint64_t i = 0; i < fields_[sample_format].count; ++i) {
      if (value(sample_format, i) != 3) return unsupported(sample_format, value(sample_format, i), "3 (floating-point)");
    }
    compression_ = value_or(compression, 1);
    if (compression_ != 1 && compression_ != 5 && compression_ != 8 && compression_ != 32946) {
      return unsupported(compression, compression_, "1 (none), 5 (LZW), 8 or 32946 (deflate)");
    }
    predictor_ = value_or(predictor, 1);
    if (predictor_ < 1 || predictor_ > 3) return unsupported(predictor, predictor_, "1 (none), 2 (differences) or 3 (floating-point)");
    const std::uint64_t arrangement = value_or(planar, 1);
    if (arrangement != 1 && arrangement != 2) return unsupported(planar, arrangement, "1 (interleaved) or 2 (planes)");
    planar_ = arrangement == 2 && channels_ > 1;
    if (const std::uint64_t order = value_or(fill_order, 1); order != 1) return unsupported(fill_order, order, "1");

    tiled_ = fields_[tile_width].element != 0;
    if (tiled_) {
      if (fields_[tile_height].element == 0) return corrupt("tag 323 (TileLength) is missing");
      const std::uint64_t tw = value(tile_width), th = value(tile_height);
      if (tw == 0 || th == 0 || tw > most / th || tw * th > most / c)
        return corrupt("tiles of " + std::to_string(tw) + " x " + std::to_string(th));
      piece_width_ = static_cast<std::int64_t>(tw);
      piece_height_ = static_cast<std::int64_t>(th);
    } else {
      const std::uint64_t rows = value_or(rows_per_strip, h);
      if (rows == 0) return corrupt("strips of 0 rows");
      piece_width_ = width_;
      piece_height_ = static_cast<std::int64_t>(std::min(rows, h));
    }
    const auto pw = static_cast<std::uint64_t>(piece_width_), ph = static_cast<std::uint64_t>(piece_height_);
    const std::uint64_t pieces = ((w + pw - 1) / pw) * ((h + ph - 1) / ph) * (planar_ ? c : 1);
    for (const Known tag : {tiled_ ? tile_offsets : offsets, tiled_ ? tile_byte_counts : byte_counts}) {
      if (fields_[tag].element == 0) return corrupt("tag " + std::to_string(kTags[tag]) + " is missing");
      if (fields_[tag].count < pieces) {
        return corrupt("tag " + std::to_string(kTags[tag]) + " has " + std::to_string(fields_[tag].count) + " values, expected " +
                       std::to_string(pieces));
      }
    }
    // Before anything is allocated: no compression here packs more than 2000 to 1, so a short file cannot ask for a large image.
    const std::uint64_t packing = compression_ == 1 ? 1 : 2000;
    if (w * h * c * 4 / packing > bytes_.size() || pw * ph * (planar_ ? 1 : c) * 4 / packing > bytes_.size())
      return corrupt("an image far larger than the file can hold");
    return ok_ ? Status() : corrupt("cut short");
  }

  /// Decodes one strip or tile and copies what is inside the image.
  Status piece(std::int64_t index, std::int64_t plane, std::int64_t top, std::int64_t left, std::vector<std::byte>& scratch,
               Tensor<float>& image) {
    const auto i = static_cast<std::uint64_t>(index);
    const std::uint64_t from = value(tiled_ ? tile_offsets : offsets, i);
    const std::uint64_t size = value(tiled_ ? tile_byte_counts : byte_counts, i);
    const std::string who = (tiled_ ? "tile " : "strip ") + std::to_string(index);
    if (from > bytes_.size() || size > bytes_.size() - from) {
      return corrupt(who + ": bytes " + std::to_string(from) + " to " + std::to_string(from + size) + " of a file of " +
                     std::to_string(bytes_.size()));
    }
    const std::span<const std::byte> stored = bytes_.subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(size));
    const std::int64_t samples_here = planar_ ? 1 : channels_;
    const std::int64_t rows = tiled_ ? piece_height_ : std::min(piece_height_, height_ - top);  // the last strip is short, a tile never is
    const std::int64_t row_values = piece_width_ * samples_here;
    scratch.resize(static_cast<std::size_t>(rows * row_values) * 4);
    NORMA_CHECK(unpack(stored, scratch, who));
    const std::int64_t copy_rows = std::min(rows, height_ - top);
    const std::int64_t copy_columns = std::min(piece_width_, width_ - left);
    for (std::int64_t y = 0; y < copy_rows; ++y) {
      const std::span<std::byte> row =
          std::span(scratch).subspan(static_cast<std::size_t>(y * row_values) * 4, static_cast<std::size_t>(row_values) * 4);
      undo_predictor(row, samples_here);
      float* to = image.data() + ((top + y) * width_ + left) * channels_ + plane;
      if (samples_here == channels_) {
        std::memcpy(to, row.data(), static_cast<std::size_t>(copy_columns * channels_) * 4);
      } else {
        for (std::int64_t x = 0; x < copy_columns; ++x) std::memcpy(to + x * channels_, row.data() + 4 * x, 4);
      }
    }
    return {};
  }

  Status unpack(std::span<const std::byte> stored, std::span<std::byte> out, const std::string& who) const {
    std::int64_t produced = 0;
    if (compression_ == 1) {
      produced = static_cast<std::int64_t>(std::min(stored.size(), out.size()));
      if (produced > 0) std::memcpy(out.data(), stored.data(), static_cast<std::size_t>(produced));
    } else if (compression_ == 5) {
      produced = unpack_lzw(stored, out);
      if (produced < 0) return corrupt(who + ": damaged LZW data");
    } else {
      const auto inflated = inflate_zlib(stored, out);
      if (!inflated) return inflated.status().with_context("io::read_tiff: '" + std::string(name_) + "': " + who);
      produced = inflated->produced;
    }
    if (produced != static_cast<std::int64_t>(out.size())) {
      return corrupt(who + ": " + std::to_string(produced) + " bytes, expected " + std::to_string(out.size()));
    }
    return {};
  }

  /// Turns a stored row into native floats in place.
  void undo_predictor(std::span<std::byte> row, std::int64_t samples_here) {
    const std::size_t values = row.size() / 4;
    const auto step = static_cast<std::size_t>(samples_here);
    if (predictor_ == 3) {
      // Differences of bytes at the distance of a pixel's samples; then the bytes of all values by significance, highest first, in either
      // byte order.
      for (std::size_t i = step; i < row.size(); ++i) {
        row[i] = static_cast<std::byte>(std::to_integer<unsigned>(row[i]) + std::to_integer<unsigned>(row[i - step]));
      }
      row_.assign(row.begin(), row.end());
      for (std::size_t i = 0; i < values; ++i) {
        std::uint32_t word = 0;
        for (std::size_t b = 0; b < 4; ++b) word = word << 8 | std::to_integer<std::uint32_t>(row_[b * values + i]);
        std::memcpy(row.data() + 4 * i, &word, 4);
      }
      return;
    }
    const bool swap = big_ != (std::endian::native == std::endian::big);
    if (!swap && predictor_ == 1) return;
    for (std::size_t i = 0; i < values; ++i) {
      std::uint32_t word = 0;
      std::memcpy(&word, row.data() + 4 * i, 4);
      if (swap) word = word << 24 | (word & 0xff00u) << 8 | (word >> 8 & 0xff00u) | word >> 24;
      if (predictor_ == 2 && i >= step) {
        std::uint32_t before = 0;
        std::memcpy(&before, row.data() + 4 * (i - step), 4);
        word += before;
      }
      std::memcpy(row.data() + 4 * i, &word, 4);
    }
  }

  std::span<const std::byte> bytes_;
  std::string_view name_;
  const TiffLimits& limits_;
  bool big_ = false;
  bool ok_ = true;
  std::array<Field, known_count> fields_{};
  std::int64_t width_ = 0, height_ = 0, channels_ = 0;
  std::int64_t piece_width_ = 0, piece_height_ = 0;
  std::uint64_t compression_ = 1, predictor_ = 1;
  bool planar_ = false, tiled_ = false;
  std::vector<std::byte> row_;
};

}  // namespace detail

/// The first image of a TIFF file in memory: [1, height, width, channels], bit for bit.
/// Errors name `name`: corrupt; unsupported, with the tag and its value.
inline Result<Tensor<float>> read_tiff(std::span<const std::byte> bytes, std::string_view name, const TiffLimits& limits = {}) {
  return detail::TiffReader(bytes, name, limits).read();
}
/// The same from a file.
inline Result<Tensor<float>> read_tiff(const std::string& path, const TiffLimits& limits = {}) {
  NORMA_TRY(const MappedFile file, MappedFile::open(path));
  return read_tiff(file.bytes(), path, limits);
}

/// A TIFF file's content: little-endian, uncompressed, interleaved, strips of at most 64 KiB (at least a row). `image` is one image, not
/// empty. Errors: invalid_argument (empty, several images), unsupported (more than a classic TIFF can address).
inline Result<std::vector<std::byte>> tiff_bytes(TensorView<const float> image) {
  static_assert(std::endian::native == std::endian::little, "samples are copied as they are");
  if (image.batch != 1 || image.empty() || image.channels > 65535) {
    return Status(Errc::invalid_argument, "io::tiff_bytes: [" + std::to_string(image.batch) + ", " + std::to_string(image.height) + ", " +
                                              std::to_string(image.width) + ", " + std::to_string(image.channels) +
                                              "], expected one image that is not empty");
  }
  constexpr std::int64_t kMost = 0xf0000000;
  if (image.height > kMost / 4 / image.width / image.channels)
    return Status(Errc::unsupported, "io::tiff_bytes: more than 4 GB, which a classic TIFF cannot address");
  const std::int64_t row_bytes = image.width * image.channels * 4;
  const std::int64_t rows = std::min(image.height, std::max<std::int64_t>(1, 65536 / row_bytes));
  const std::int64_t strips = (image.height + rows - 1) / rows;
  const auto channels = static_cast<std::uint32_t>(image.channels);
  const bool extra = image.channels != 1 && image.channels != 3;

  struct Tag {
    std::uint16_t tag;
    std::uint16_t type;  // 3: 16 bits, 4: 32 bits
    std::vector<std::uint32_t> values;
  };
  const auto repeated = [&](std::uint32_t v, std::uint32_t times) { return std::vector<std::uint32_t>(times, v); };
  std::vector<std::uint32_t> offsets, counts;
  for (std::int64_t i = 0; i < strips; ++i) {
    const std::int64_t first = i * rows;
    offsets.push_back(static_cast<std::uint32_t>(8 + first * row_bytes));
    counts.push_back(static_cast<std::uint32_t>(std::min(rows, image.height - first) * row_bytes));
  }
  std::vector<Tag> tags = {{256, 4, {static_cast<std::uint32_t>(image.width)}},
                           {257, 4, {static_cast<std::uint32_t>(image.height)}},
                           {258, 3, repeated(32, channels)},
                           {259, 3, {1}},
                           {262, 3, {image.channels == 3 ? 2u : 1u}},  // three channels as RGB, else gray with extra samples
                           {273, 4, offsets},
                           {277, 3, {channels}},
                           {278, 4, {static_cast<std::uint32_t>(rows)}},
                           {279, 4, counts},
                           {284, 3, {1}}};
  if (extra) tags.push_back({338, 3, repeated(0, channels - 1)});
  tags.push_back({339, 3, repeated(3, channels)});

  std::vector<std::byte> out;
  const auto put = [&](std::uint32_t v, int size) {
    for (int i = 0; i < size; ++i) out.push_back(static_cast<std::byte>(v >> (8 * i)));
  };
  const std::int64_t data_bytes = image.height * row_bytes;
  const auto directory = static_cast<std::uint32_t>(8 + data_bytes);
  out.reserve(static_cast<std::size_t>(directory) + 1024 + offsets.size() * 8 + 8 * channels);
  put(0x002a4949, 4);
  put(directory, 4);
  out.resize(static_cast<std::size_t>(directory));
  std::memcpy(out.data() + 8, image.data, static_cast<std::size_t>(data_bytes));
  put(static_cast<std::uint32_t>(tags.size()), 2);
  auto beyond = static_cast<std::uint32_t>(directory + 2 + 12 * tags.size() + 4);  // where values that do not fit their entry go
  for (const Tag& tag : tags) {
    const int size = tag.type == 3 ? 2 : 4;
    const auto bytes = static_cast<std::uint32_t>(tag.values.size()) * static_cast<std::uint32_t>(size);
    put(tag.tag, 2);
    put(tag.type, 2);
    put(static_cast<std::uint32_t>(tag.values.size()), 4);
    if (bytes > 4) {
      put(beyond, 4);
      beyond += (bytes + 3) / 4 * 4;
    } else {
      for (const std::uint32_t v : tag.values) put(v, size);
      put(0, static_cast<int>(4 - bytes));
    }
  }
  put(0, 4);  // no second image
  for (const Tag& tag : tags) {
    const int size = tag.type == 3 ? 2 : 4;
    const std::size_t bytes = tag.values.size() * static_cast<std::size_t>(size);
    if (bytes <= 4) continue;
    for (const std::uint32_t v : tag.values) put(v, size);
    put(0, static_cast<int>((4 - bytes % 4) % 4));
  }
  return out;
}

/// Writes one image atomically.
inline Status write_tiff(const std::string& path, TensorView<const float> image) {
  NORMA_TRY(const auto bytes, tiff_bytes(image));
  return write_file_atomically(path, bytes);
}
/// Writes an anomaly map, [height, width], dense.
inline Status write_tiff(const std::string& path, MapView<const float> map) {
  NORMA_EXPECTS(map.dense());
  return write_tiff(path, TensorView<const float>(map.data, 1, map.rows, map.cols, 1));
}

}  // namespace norma::io
