/// \file
/// Tensor files in the `.safetensors` format: an 8-byte little-endian header length, a JSON header, then the tensors' bytes.
/// `Weights` reads them from a file (mapped) or from memory (not copied); `TensorFileWriter` writes them, byte for byte as the Python
/// package orders them, optionally sealed by a SHA-256 over the whole file. docs/formats/safetensors.md describes both.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/status.hpp>
#include <norma/io/dtype.hpp>
#include <norma/io/file.hpp>
#include <norma/io/json.hpp>
#include <norma/io/sha256.hpp>

namespace norma::io {

/// One stored tensor. Views into the `Weights` that it came from, valid while that or a copy of it lives.
struct TensorInfo {
  std::string_view name;
  DType dtype = DType::f32;
  std::span<const std::int64_t> shape;  ///< row-major; empty for a scalar
  std::span<const std::byte> bytes;     ///< little-endian elements, not necessarily aligned

  /// Number of elements.
  [[nodiscard]] std::int64_t count() const noexcept { return static_cast<std::int64_t>(bytes.size()) / size_of(dtype); }
};

/// A pair of the metadata section.
struct MetadataEntry {
  std::string_view key;
  std::string_view value;
};

namespace detail {

/// "[64, 3, 7, 7]"
inline std::string shape_text(std::span<const std::int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

/// Product of the sizes, or -1 when one is negative or the product does not fit.
[[nodiscard]] constexpr std::int64_t element_count(std::span<const std::int64_t> shape) noexcept {
  std::int64_t count = 1;
  bool zero = false;
  for (const std::int64_t size : shape) {
    if (size < 0) return -1;
    zero = zero || size == 0;
  }
  if (zero) return 0;
  for (const std::int64_t size : shape) {
    if (count > std::numeric_limits<std::int64_t>::max() / size) return -1;
    count *= size;
  }
  return count;
}

/// A text from a file, cut and cleaned so that it cannot flood or confuse a message.
inline std::string quoted(std::string_view text) {
  constexpr std::size_t kMost = 120;
  std::string out = "'";
  for (const char c : text.substr(0, kMost)) out.push_back(static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c);
  return out + (text.size() > kMost ? "...'" : "'");
}

}  // namespace detail

/// An opened weight or model file. Immutable and cheap to copy: copies share the mapping. Safe to read from many threads.
class Weights {
 public:
  /// Maps a file. Errors name the path: not_found, io_error, corrupt.
  static Result<Weights> open(const std::string& path) {
    NORMA_TRY(auto file, MappedFile::open(path));
    auto state = std::make_shared<State>();
    state->file = std::move(file);
    state->bytes = state->file.bytes();
    return parse(std::move(state), path);
  }
  /// Reads bytes that stay where they are and must outlive the object and its copies (flash, a linked-in array).
  static Result<Weights> from_bytes(std::span<const std::byte> bytes, std::string_view name = "memory") {
    auto state = std::make_shared<State>();
    state->bytes = bytes;
    return parse(std::move(state), std::string(name));
  }
  /// Reads bytes and keeps them.
  static Result<Weights> from_bytes(std::vector<std::byte>&& bytes, std::string_view name = "memory") {
    auto state = std::make_shared<State>();
    state->owned = std::move(bytes);
    state->bytes = state->owned;
    return parse(std::move(state), std::string(name));
  }

  /// All tensors in the order of their bytes.
  [[nodiscard]] std::span<const TensorInfo> tensors() const noexcept { return state_->tensors; }
  /// The tensor of that name, or null.
  [[nodiscard]] const TensorInfo* find(std::string_view name) const noexcept;
  /// The tensor of that name, or an error that names the file and the nearest stored names.
  [[nodiscard]] Result<TensorInfo> get(std::string_view name) const;
  [[nodiscard]] std::optional<std::string_view> metadata(std::string_view key) const noexcept;
  /// All pairs in the order of the file.
  [[nodiscard]] std::span<const MetadataEntry> metadata() const noexcept { return state_->metadata; }
  /// The path, or the name given to `from_bytes`.
  [[nodiscard]] const std::string& name() const noexcept { return state_->name; }
  /// Size of the file.
  [[nodiscard]] std::int64_t total_bytes() const noexcept { return static_cast<std::int64_t>(state_->bytes.size()); }
  /// SHA-256 of the whole file as 64 hexadecimal digits. Computed at each call: reads everything.
  [[nodiscard]] std::string digest() const { return sha256_hex(state_->bytes); }

  /// Copies a floating-point tensor into `out`, converted to float. `out.size()` must be the product of `expected_shape`.
  /// Errors name file, tensor, expected and found: not_found, shape_mismatch, wrong_type (not a float type).
  Status read(std::string_view tensor, std::span<const std::int64_t> expected_shape, std::span<float> out) const;
  Status read(std::string_view tensor, std::initializer_list<std::int64_t> expected_shape, std::span<float> out) const {
    return read(tensor, std::span(expected_shape.begin(), expected_shape.size()), out);
  }
  /// The same for integer and boolean tensors.
  Status read_int64(std::string_view tensor, std::span<const std::int64_t> expected_shape, std::span<std::int64_t> out) const;
  Status read_int64(std::string_view tensor, std::initializer_list<std::int64_t> expected_shape, std::span<std::int64_t> out) const {
    return read_int64(tensor, std::span(expected_shape.begin(), expected_shape.size()), out);
  }
  /// The same without conversion: type and shape must be the stored ones.
  Status read_raw(std::string_view tensor, DType dtype, std::span<const std::int64_t> expected_shape, std::span<std::byte> out) const;
  Status read_raw(std::string_view tensor, DType dtype, std::initializer_list<std::int64_t> expected_shape,
                  std::span<std::byte> out) const {
    return read_raw(tensor, dtype, std::span(expected_shape.begin(), expected_shape.size()), out);
  }

  /// Recomputes the digest of a file written by `TensorFileWriter::write_sealed`. Any changed byte is noticed.
  /// Errors: corrupt, naming the file, the digest it carries and the one it has.
  Status verify_seal(std::string_view digest_key = "digest") const;

 private:
  struct State {
    MappedFile file;
    std::vector<std::byte> owned;
    std::span<const std::byte> bytes;
    std::string name;
    std::string text;                    // all names, keys and values, one after the other
    std::vector<std::int64_t> shapes;    // all shapes
    std::vector<TensorInfo> tensors;     // by offset
    std::vector<std::uint32_t> by_name;  // indices into tensors
    std::vector<MetadataEntry> metadata;
    std::vector<std::int64_t> metadata_offsets;  // where each value's opening quote is in the file
  };
  explicit Weights(std::shared_ptr<const State> state) noexcept : state_(std::move(state)) {}
  static Result<Weights> parse(std::shared_ptr<State> state, std::string name);
  [[nodiscard]] Result<const TensorInfo*> expect(std::string_view function, std::string_view tensor,
                                                 std::span<const std::int64_t> expected_shape, std::size_t out_size) const;

  std::shared_ptr<const State> state_;
};

inline Result<Weights> Weights::parse(std::shared_ptr<State> state, std::string name) {
  constexpr std::uint64_t kMostHeaderBytes = 100'000'000;  // the limit of the reference implementation
  constexpr std::size_t kMostDimensions = 32;
  const std::span<const std::byte> bytes = state->bytes;
  const auto corrupt = [&](const std::string& what) { return Status(Errc::corrupt, "Weights::open: '" + name + "': " + what); };

  if (bytes.size() < 8) return corrupt("not a safetensors file: " + std::to_string(bytes.size()) + " bytes, expected at least 8");
  std::uint64_t header_bytes = 0;
  for (std::size_t i = 0; i < 8; ++i) header_bytes |= std::to_integer<std::uint64_t>(bytes[i]) << (8 * i);
  if (header_bytes > kMostHeaderBytes) {
    return corrupt("not a safetensors file: header of " + std::to_string(header_bytes) + " bytes, expected at most " +
                   std::to_string(kMostHeaderBytes));
  }
  if (header_bytes > bytes.size() - 8) {
    return corrupt("the file is cut short: header of " + std::to_string(header_bytes) + " bytes, found " +
                   std::to_string(bytes.size() - 8));
  }
  const std::string_view header = as_text(bytes.subspan(8, static_cast<std::size_t>(header_bytes)));
  if (header.empty() || header.front() != '{') return corrupt("not a safetensors file: the header does not start with '{'");
  const std::span<const std::byte> data = bytes.subspan(8 + header.size());

  JsonLimits limits;
  limits.depth = 4;
  limits.values = 1 << 21;  // a parsed value takes more memory than its text: room for 200,000 tensors
  NORMA_TRY(const JsonValue json, JsonValue::parse(header, name, limits));

  struct Entry {
    const JsonMember* member;
    DType dtype;
    std::int64_t begin, end;
  };
  std::vector<Entry> entries;
  entries.reserve(json.members().size());
  std::size_t text_bytes = 0;
  std::size_t shape_values = 0;
  const JsonValue* metadata = nullptr;
  for (const JsonMember& member : json.members()) {
    if (member.name == "__metadata__") {
      if (member.value.kind() != JsonValue::Kind::object) return corrupt("__metadata__ is not an object");
      metadata = &member.value;
      for (const JsonMember& pair : metadata->members()) {
        if (!pair.value.string()) return corrupt("metadata " + detail::quoted(pair.name) + " is not a string");
        text_bytes += pair.name.size() + pair.value.string()->size();
      }
      continue;
    }
    const std::string who = "tensor " + detail::quoted(member.name);
    if (member.name.empty()) return corrupt("a tensor without a name");
    for (const char c : member.name) {
      if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return corrupt(who + ": control character in the name");
    }
    const JsonValue* type = member.value.find("dtype");
    const JsonValue* shape = member.value.find("shape");
    const JsonValue* offsets = member.value.find("data_offsets");
    if (type == nullptr || shape == nullptr || offsets == nullptr || member.value.members().size() != 3) {
      return corrupt(who + ": expected exactly dtype, shape and data_offsets");
    }
    const auto dtype = dtype_from_name(type->string().value_or(""));
    if (!dtype) {
      return Status(Errc::unsupported,
                    "Weights::open: '" + name + "': " + who + ": unknown dtype " + detail::quoted(type->string().value_or("")));
    }
    if (shape->kind() != JsonValue::Kind::array || shape->items().size() > kMostDimensions) {
      return corrupt(who + ": the shape is not an array of at most " + std::to_string(kMostDimensions) + " sizes");
    }
    std::array<std::int64_t, kMostDimensions> sizes{};
    for (std::size_t i = 0; i < shape->items().size(); ++i) {
      const auto size = shape->items()[i].integer();
      if (!size || *size < 0) return corrupt(who + ": a size in the shape is not a whole number from 0 up");
      sizes[i] = *size;
    }
    const std::span<const std::int64_t> dimensions(sizes.data(), shape->items().size());
    const std::int64_t count = detail::element_count(dimensions);
    if (count < 0 || count > std::numeric_limits<std::int64_t>::max() / 8) {
      return corrupt(who + ": shape " + detail::shape_text(dimensions) + " has more elements than can be counted");
    }
    if (offsets->items().size() != 2 || !offsets->items()[0].integer() || !offsets->items()[1].integer()) {
      return corrupt(who + ": data_offsets is not a pair of whole numbers");
    }
    const Entry entry{&member, *dtype, *offsets->items()[0].integer(), *offsets->items()[1].integer()};
    if (entry.begin < 0 || entry.begin > entry.end || entry.end > static_cast<std::int64_t>(data.size())) {
      return corrupt(who + ": data_offsets [" + std::to_string(entry.begin) + ", " + std::to_string(entry.end) + "] outside of the " +
                     std::to_string(data.size()) + " bytes of data");
    }
    if (entry.end - entry.begin != count * size_of(*dtype)) {
      return corrupt(who + ": " + std::to_string(entry.end - entry.begin) + " bytes, expected " + std::to_string(count * size_of(*dtype)) +
                     " for " + std::string(to_string(*dtype)) + " " + detail::shape_text(dimensions));
    }
    entries.push_back(entry);
    text_bytes += member.name.size();
    shape_values += dimensions.size();
  }

  std::stable_sort(entries.begin(), entries.end(),
                   [](const Entry& a, const Entry& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  std::int64_t reached = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != reached) {
      return corrupt("tensor " + detail::quoted(entry.member->name) + " starts at byte " + std::to_string(entry.begin) +
                     " of the data, expected " + std::to_string(reached) +
                     (entry.begin > reached ? ": a hole" : ": it overlaps the one before"));
    }
    reached = entry.end;
  }
  if (reached != static_cast<std::int64_t>(data.size())) {
    return corrupt(std::to_string(static_cast<std::int64_t>(data.size()) - reached) + " bytes after the last tensor belong to none");
  }

  // Reserved in full beforehand: the views below point into both.
  state->text.reserve(text_bytes);
  state->shapes.reserve(shape_values);
  const auto keep = [&](std::string_view text) {
    const std::size_t at = state->text.size();
    state->text.append(text);
    return std::string_view(state->text).substr(at, text.size());
  };
  state->tensors.reserve(entries.size());
  for (const Entry& entry : entries) {
    const std::size_t first = state->shapes.size();
    const auto sizes = entry.member->value.find("shape")->items();
    for (const JsonValue& size : sizes) state->shapes.push_back(*size.integer());
    state->tensors.push_back({keep(entry.member->name), entry.dtype,
                              std::span<const std::int64_t>(state->shapes.data() + first, sizes.size()),
                              data.subspan(static_cast<std::size_t>(entry.begin), static_cast<std::size_t>(entry.end - entry.begin))});
  }
  state->by_name.resize(entries.size());
  for (std::size_t i = 0; i < entries.size(); ++i) state->by_name[i] = static_cast<std::uint32_t>(i);
  std::sort(state->by_name.begin(), state->by_name.end(),
            [&](std::uint32_t a, std::uint32_t b) { return state->tensors[a].name < state->tensors[b].name; });
  if (metadata != nullptr) {
    for (const JsonMember& pair : metadata->members()) {
      state->metadata.push_back({keep(pair.name), keep(*pair.value.string())});
      state->metadata_offsets.push_back(8 + pair.value.offset());
    }
  }
  state->name = std::move(name);
  return Weights(std::move(state));
}

inline const TensorInfo* Weights::find(std::string_view name) const noexcept {
  const auto at = std::lower_bound(state_->by_name.begin(), state_->by_name.end(), name,
                                   [&](std::uint32_t i, std::string_view wanted) { return state_->tensors[i].name < wanted; });
  return at != state_->by_name.end() && state_->tensors[*at].name == name ? &state_->tensors[*at] : nullptr;
}

inline Result<TensorInfo> Weights::get(std::string_view name) const {
  if (const TensorInfo* tensor = find(name); tensor != nullptr) return *tensor;
  std::string near;
  for (const TensorInfo& tensor : tensors()) {  // a prefix such as "module." or "encoder." is the usual reason
    if (tensor.name.size() > name.size() && tensor.name.ends_with(name)) {
      near = "; it has " + detail::quoted(tensor.name);
      break;
    }
  }
  return Status(Errc::not_found, "Weights::get: '" + state_->name + "': no tensor " + detail::quoted(name) + " among " +
                                     std::to_string(tensors().size()) + near);
}

inline std::optional<std::string_view> Weights::metadata(std::string_view key) const noexcept {
  for (const MetadataEntry& entry : state_->metadata) {
    if (entry.key == key) return entry.value;
  }
  return std::nullopt;
}

inline Result<const TensorInfo*> Weights::expect(std::string_view function, std::string_view tensor,
                                                 std::span<const std::int64_t> expected_shape, std::size_t out_size) const {
  const TensorInfo* info = find(tensor);
  const auto where = [&] { return std::string(function) + ": '" + state_->name + "': tensor " + detail::quoted(tensor) + ": "; };
  if (info == nullptr) return get(tensor).status();
  if (!std::equal(info->shape.begin(), info->shape.end(), expected_shape.begin(), expected_shape.end())) {
    return Status(Errc::shape_mismatch,
                  where() + "shape " + detail::shape_text(info->shape) + ", expected " + detail::shape_text(expected_shape));
  }
  if (static_cast<std::int64_t>(out_size) != info->count()) {
    return Status(Errc::shape_mismatch,
                  where() + "room for " + std::to_string(out_size) + " elements, expected " + std::to_string(info->count()));
  }
  return info;
}

inline Status Weights::read(std::string_view tensor, std::span<const std::int64_t> expected_shape, std::span<float> out) const {
  NORMA_TRY(const TensorInfo* info, expect("Weights::read", tensor, expected_shape, out.size()));
  if (!is_float(info->dtype)) {
    return {Errc::wrong_type, "Weights::read: '" + state_->name + "': tensor " + detail::quoted(tensor) + ": type " +
                                  std::string(to_string(info->dtype)) + ", expected F64, F32, F16 or BF16"};
  }
  return to_float(info->dtype, info->bytes, out);
}

inline Status Weights::read_int64(std::string_view tensor, std::span<const std::int64_t> expected_shape,
                                  std::span<std::int64_t> out) const {
  NORMA_TRY(const TensorInfo* info, expect("Weights::read_int64", tensor, expected_shape, out.size()));
  if (!is_integer(info->dtype)) {
    return {Errc::wrong_type, "Weights::read_int64: '" + state_->name + "': tensor " + detail::quoted(tensor) + ": type " +
                                  std::string(to_string(info->dtype)) + ", expected an integer type or BOOL"};
  }
  return to_int64(info->dtype, info->bytes, out).with_context("Weights::read_int64: '" + state_->name + "': " + std::string(tensor));
}

inline Status Weights::read_raw(std::string_view tensor, DType dtype, std::span<const std::int64_t> expected_shape,
                                std::span<std::byte> out) const {
  const auto element = static_cast<std::size_t>(size_of(dtype));
  NORMA_TRY(const TensorInfo* info, expect("Weights::read_raw", tensor, expected_shape, out.size() / element));
  if (info->dtype != dtype) {
    return {Errc::wrong_type, "Weights::read_raw: '" + state_->name + "': tensor " + detail::quoted(tensor) + ": type " +
                                  std::string(to_string(info->dtype)) + ", expected " + std::string(to_string(dtype))};
  }
  if (out.size() != info->bytes.size()) {
    return detail::conversion_size_error("Weights::read_raw", dtype, out.size(), static_cast<std::size_t>(info->count()));
  }
  if (!out.empty()) std::memcpy(out.data(), info->bytes.data(), out.size());
  return {};
}

namespace detail {

inline constexpr std::size_t kSealDigits = 64;

/// The digest of a sealed file: SHA-256 over all of it with the digest's own digits, at `at`, replaced by '0'.
inline std::string seal_of(std::span<const std::span<const std::byte>> pieces, std::size_t at) {
  std::array<std::byte, kSealDigits> zeros;
  zeros.fill(std::byte{'0'});
  Sha256 sha;
  std::size_t position = 0;
  for (const auto piece : pieces) {
    if (at >= position && at + kSealDigits <= position + piece.size()) {
      sha.update(piece.first(at - position)).update(zeros).update(piece.subspan(at - position + kSealDigits));
    } else {
      sha.update(piece);
    }
    position += piece.size();
  }
  return sha.hex();
}

}  // namespace detail

inline Status Weights::verify_seal(std::string_view digest_key) const {
  const auto corrupt = [&](const std::string& what) {
    return Status(Errc::corrupt, "Weights::verify_seal: '" + state_->name + "': " + what);
  };
  for (std::size_t i = 0; i < state_->metadata.size(); ++i) {
    const auto& [key, value] = state_->metadata[i];
    if (key != digest_key) continue;
    const auto at = static_cast<std::size_t>(state_->metadata_offsets[i]) + 1;
    // The digits must stand in the file as they are: an escaped form would be another text with the same meaning.
    if (value.size() != detail::kSealDigits || as_text(state_->bytes).substr(at, detail::kSealDigits) != value) {
      return corrupt("metadata " + detail::quoted(digest_key) + " is not a digest of 64 hexadecimal digits");
    }
    const std::string found = detail::seal_of(std::span(&state_->bytes, 1), at);
    if (found != value) return corrupt("the content was changed: digest " + found + ", expected " + std::string(value));
    return {};
  }
  return corrupt("not sealed: no metadata " + detail::quoted(digest_key));
}

/// Collects tensors and metadata and writes them. Output depends on the content alone, not on the order of the calls: metadata by
/// key; tensors by element type (largest alignment first, so that all are aligned), then by name.
class TensorFileWriter {
 public:
  /// Sets or replaces a pair of the metadata section. Both must be UTF-8.
  Status set_metadata(std::string_view key, std::string_view value);

  /// Adds a tensor and copies its bytes. Errors: invalid_argument (name empty, taken, or not UTF-8), shape_mismatch (bytes and shape
  /// differ).
  Status add(std::string_view name, DType dtype, std::span<const std::int64_t> shape, std::span<const std::byte> bytes);
  Status add(std::string_view name, DType dtype, std::initializer_list<std::int64_t> shape, std::span<const std::byte> bytes) {
    return add(name, dtype, std::span(shape.begin(), shape.size()), bytes);
  }
  Status add(std::string_view name, std::span<const std::int64_t> shape, std::span<const float> values) {
    return add(name, DType::f32, shape, std::as_bytes(values));
  }
  Status add(std::string_view name, std::initializer_list<std::int64_t> shape, std::span<const float> values) {
    return add(name, DType::f32, shape, std::as_bytes(values));
  }
  Status add(std::string_view name, std::span<const std::int64_t> shape, std::span<const std::int64_t> values) {
    return add(name, DType::i64, shape, std::as_bytes(values));
  }
  Status add(std::string_view name, std::initializer_list<std::int64_t> shape, std::span<const std::int64_t> values) {
    return add(name, DType::i64, shape, std::as_bytes(values));
  }
  /// Adds floats stored as `dtype`, one of F64, F32, F16, BF16.
  Status add_converted(std::string_view name, DType dtype, std::span<const std::int64_t> shape, std::span<const float> values);

  /// Adds a tensor without copying: the bytes must stay as they are until the file is written.
  Status add_view(std::string_view name, DType dtype, std::span<const std::int64_t> shape, std::span<const std::byte> bytes);
  Status add_view(std::string_view name, DType dtype, std::initializer_list<std::int64_t> shape, std::span<const std::byte> bytes) {
    return add_view(name, dtype, std::span(shape.begin(), shape.size()), bytes);
  }
  Status add_view(std::string_view name, std::span<const std::int64_t> shape, std::span<const float> values) {
    return add_view(name, DType::f32, shape, std::as_bytes(values));
  }
  Status add_view(std::string_view name, std::initializer_list<std::int64_t> shape, std::span<const float> values) {
    return add_view(name, DType::f32, shape, std::as_bytes(values));
  }

  /// The file's content.
  [[nodiscard]] Result<std::vector<std::byte>> to_bytes() const { return to_bytes_with(std::nullopt); }
  /// The same, sealed: metadata `digest_key` holds the digest that `Weights::verify_seal` recomputes.
  [[nodiscard]] Result<std::vector<std::byte>> to_sealed_bytes(std::string_view digest_key = "digest") const {
    return to_bytes_with(digest_key);
  }
  /// Writes the file atomically, tensor by tensor: needs no memory beyond the header.
  Status write(const std::string& path) const { return write_with(path, std::nullopt); }
  Status write_sealed(const std::string& path, std::string_view digest_key = "digest") const { return write_with(path, digest_key); }

 private:
  struct Entry {
    DType dtype;
    std::vector<std::int64_t> shape;
    std::vector<std::byte> owned;
    std::span<const std::byte> view;  // used where nothing is owned
    [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return owned.empty() ? view : std::span<const std::byte>(owned); }
  };
  using Pieces = std::vector<std::span<const std::byte>>;

  Result<Entry*> insert(std::string_view name, DType dtype, std::span<const std::int64_t> shape, std::size_t bytes);
  /// Header first, then every tensor's bytes; `header` owns the former. Sealed where there is a `digest_key`.
  Result<Pieces> pieces(std::optional<std::string_view> digest_key, std::string& header) const;
  Result<std::vector<std::byte>> to_bytes_with(std::optional<std::string_view> digest_key) const;
  Status write_with(const std::string& path, std::optional<std::string_view> digest_key) const;

  std::map<std::string, std::string, std::less<>> metadata_;
  std::map<std::string, Entry, std::less<>> tensors_;
};

inline Status TensorFileWriter::set_metadata(std::string_view key, std::string_view value) {
  if (!detail::is_utf8(key) || !detail::is_utf8(value)) {
    return {Errc::invalid_argument, "TensorFileWriter::set_metadata: " + detail::quoted(key) + ": key or value is not UTF-8"};
  }
  metadata_.insert_or_assign(std::string(key), std::string(value));
  return {};
}

inline Result<TensorFileWriter::Entry*> TensorFileWriter::insert(std::string_view name, DType dtype, std::span<const std::int64_t> shape,
                                                                 std::size_t bytes) {
  const auto refuse = [&](Errc code, const std::string& what) {
    return Status(code, "TensorFileWriter::add: tensor " + detail::quoted(name) + ": " + what);
  };
  if (name.empty() || name == "__metadata__") return refuse(Errc::invalid_argument, "not a name that a tensor can have");
  if (!detail::is_utf8(name)) return refuse(Errc::invalid_argument, "the name is not UTF-8");
  for (const char c : name) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return refuse(Errc::invalid_argument, "control character in the name");
  }
  const std::int64_t count = detail::element_count(shape);
  if (count < 0 || static_cast<std::uint64_t>(count) > std::numeric_limits<std::uint64_t>::max() / 16 || shape.size() > 32 ||
      static_cast<std::uint64_t>(count) * static_cast<std::uint64_t>(size_of(dtype)) != bytes) {
    return refuse(Errc::shape_mismatch,
                  std::to_string(bytes) + " bytes do not fit " + std::string(to_string(dtype)) + " " + detail::shape_text(shape));
  }
  const auto [at, added] = tensors_.try_emplace(std::string(name), Entry{dtype, {shape.begin(), shape.end()}, {}, {}});
  if (!added) return refuse(Errc::invalid_argument, "added twice");
  return &at->second;
}

inline Status TensorFileWriter::add(std::string_view name, DType dtype, std::span<const std::int64_t> shape,
                                    std::span<const std::byte> bytes) {
  NORMA_TRY(Entry * entry, insert(name, dtype, shape, bytes.size()));
  entry->owned.assign(bytes.begin(), bytes.end());
  return {};
}

inline Status TensorFileWriter::add_converted(std::string_view name, DType dtype, std::span<const std::int64_t> shape,
                                              std::span<const float> values) {
  std::vector<std::byte> bytes(values.size() * static_cast<std::size_t>(size_of(dtype)));
  NORMA_CHECK(from_float(dtype, values, bytes));
  NORMA_TRY(Entry * entry, insert(name, dtype, shape, bytes.size()));
  entry->owned = std::move(bytes);
  return {};
}

inline Status TensorFileWriter::add_view(std::string_view name, DType dtype, std::span<const std::int64_t> shape,
                                         std::span<const std::byte> bytes) {
  NORMA_TRY(Entry * entry, insert(name, dtype, shape, bytes.size()));
  entry->view = bytes;
  return {};
}

inline Result<TensorFileWriter::Pieces> TensorFileWriter::pieces(std::optional<std::string_view> digest_key, std::string& header) const {
  if (digest_key && !detail::is_utf8(*digest_key)) return Status(Errc::invalid_argument, "TensorFileWriter: the digest's key is not UTF-8");
  std::vector<const std::pair<const std::string, Entry>*> order;
  order.reserve(tensors_.size());
  for (const auto& item : tensors_) order.push_back(&item);
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->second.dtype > b->second.dtype; });

  header.assign(8, '\0');
  JsonWriter json;
  json.begin_object();
  if (!metadata_.empty() || digest_key) {
    auto pairs = metadata_;
    if (digest_key) pairs.insert_or_assign(std::string(*digest_key), std::string(detail::kSealDigits, '0'));
    json.key("__metadata__").begin_object();
    for (const auto& [key, value] : pairs) json.member(key, value);
    json.end_object();
  }
  std::uint64_t offset = 0;
  for (const auto* item : order) {
    const Entry& entry = item->second;
    const std::uint64_t end = offset + entry.bytes().size();
    json.key(item->first).begin_object();
    json.member("dtype", to_string(entry.dtype)).member("shape", entry.shape);
    json.member("data_offsets", std::array<std::uint64_t, 2>{offset, end});
    json.end_object();
    offset = end;
  }
  json.end_object();
  header += json.text();
  header.append((8 - header.size() % 8) % 8, ' ');
  for (std::size_t i = 0; i < 8; ++i) header[i] = static_cast<char>((header.size() - 8) >> (8 * i));

  Pieces all;
  all.reserve(order.size() + 1);
  all.push_back(as_bytes(header));
  for (const auto* item : order) all.push_back(item->second.bytes());
  if (digest_key) {
    // The reader knows where the value stands; the first mention of the key could be inside another value.
    NORMA_TRY(const JsonValue parsed, JsonValue::parse(std::string_view(header).substr(8), "header"));
    const auto at = static_cast<std::size_t>(8 + parsed.find("__metadata__")->find(*digest_key)->offset() + 1);
    header.replace(at, detail::kSealDigits, detail::seal_of(all, at));
    all.front() = as_bytes(header);
  }
  return all;
}

inline Result<std::vector<std::byte>> TensorFileWriter::to_bytes_with(std::optional<std::string_view> digest_key) const {
  std::string header;
  NORMA_TRY(const Pieces all, pieces(digest_key, header));
  std::size_t size = 0;
  for (const auto piece : all) size += piece.size();
  std::vector<std::byte> bytes;
  bytes.reserve(size);
  for (const auto piece : all) bytes.insert(bytes.end(), piece.begin(), piece.end());
  return bytes;
}

inline Status TensorFileWriter::write_with(const std::string& path, std::optional<std::string_view> digest_key) const {
  std::string header;
  NORMA_TRY(const Pieces all, pieces(digest_key, header));
  NORMA_TRY(auto file, AtomicFile::create(path));
  for (const auto piece : all) NORMA_CHECK(file.write(piece));
  return file.commit();
}

}  // namespace norma::io
