/// \file
/// JSON (RFC 8259): a small strict reader with limits, and a streaming writer whose numbers read back to the same value.
/// The reader accepts nothing beyond the standard, and less in one place: a key may not appear twice in an object.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include <norma/core/status.hpp>

namespace norma::io {

namespace detail {

/// Length of the valid UTF-8 sequence at the start of `text` (no surrogates, no overlong forms, at most U+10FFFF), or 0.
[[nodiscard]] constexpr std::size_t utf8_sequence(std::string_view text) noexcept {
  const auto at = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto follows = [&](std::size_t i, unsigned low = 0x80, unsigned high = 0xbf) { return at(i) >= low && at(i) <= high; };
  const unsigned first = at(0);
  if (text.empty()) return 0;
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return follows(1) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) { return follows(1, first == 0xe0 ? 0xa0 : 0x80, first == 0xed ? 0x9f : 0xbf) && follows(2) ? 3 : 0; }
  if (first >= 0xf0 && first <= 0xf4) {
    return follows(1, first == 0xf0 ? 0x90 : 0x80, first == 0xf4 ? 0x8f : 0xbf) && follows(2) && follows(3) ? 4 : 0;
  }
  return 0;
}

[[nodiscard]] constexpr bool is_utf8(std::string_view text) noexcept {
  while (!text.empty()) {
    const std::size_t length = utf8_sequence(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

inline void append_utf8(std::string& out, std::uint32_t code) {
  if (code < 0x80) {
    out.push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    out.push_back(static_cast<char>(0xc0 | (code >> 6)));
    out.push_back(static_cast<char>(0x80 | (code & 0x3f)));
  } else if (code < 0x10000) {
    out.push_back(static_cast<char>(0xe0 | (code >> 12)));
    out.push_back(static_cast<char>(0x80 | ((code >> 6) & 0x3f)));
    out.push_back(static_cast<char>(0x80 | (code & 0x3f)));
  } else {
    out.push_back(static_cast<char>(0xf0 | (code >> 18)));
    out.push_back(static_cast<char>(0x80 | ((code >> 12) & 0x3f)));
    out.push_back(static_cast<char>(0x80 | ((code >> 6) & 0x3f)));
    out.push_back(static_cast<char>(0x80 | (code & 0x3f)));
  }
}

class JsonParser;

}  // namespace detail

/// What a reader refuses before it costs memory.
struct JsonLimits {
  std::int64_t bytes = std::int64_t{1} << 27;   ///< of text
  std::int64_t values = std::int64_t{1} << 22;  ///< of all kinds together
  int depth = 64;                               ///< of arrays and objects inside each other
};

struct JsonMember;

/// A parsed value. Questions of the wrong kind give nothing instead of failing: `value.find("a")` of a number is null.
class JsonValue {
 public:
  enum class Kind : std::uint8_t { null, boolean, integer, real, string, array, object };

  /// Errors (corrupt, or unsupported beyond a limit) name `source` and the byte offset.
  static Result<JsonValue> parse(std::string_view text, std::string_view source = "json", const JsonLimits& limits = {});

  JsonValue() noexcept = default;

  [[nodiscard]] Kind kind() const noexcept { return static_cast<Kind>(content_.index()); }
  [[nodiscard]] bool is_null() const noexcept { return kind() == Kind::null; }
  [[nodiscard]] std::optional<bool> boolean() const noexcept {
    const bool* value = std::get_if<bool>(&content_);
    return value != nullptr ? std::optional<bool>(*value) : std::nullopt;
  }
  /// A number written without fraction and exponent that fits.
  [[nodiscard]] std::optional<std::int64_t> integer() const noexcept {
    const std::int64_t* value = std::get_if<std::int64_t>(&content_);
    return value != nullptr ? std::optional<std::int64_t>(*value) : std::nullopt;
  }
  /// Any number.
  [[nodiscard]] std::optional<double> number() const noexcept {
    if (const auto whole = integer()) return static_cast<double>(*whole);
    const double* value = std::get_if<double>(&content_);
    return value != nullptr ? std::optional<double>(*value) : std::nullopt;
  }
  [[nodiscard]] std::optional<std::string_view> string() const noexcept {
    const std::string* value = std::get_if<std::string>(&content_);
    return value != nullptr ? std::optional<std::string_view>(*value) : std::nullopt;
  }
  /// Elements of an array; empty for every other kind.
  [[nodiscard]] std::span<const JsonValue> items() const noexcept;
  /// Members of an object in the order of the text; empty for every other kind.
  [[nodiscard]] std::span<const JsonMember> members() const noexcept;
  /// The member of that name, or null. Takes time proportional to the number of members.
  [[nodiscard]] const JsonValue* find(std::string_view key) const noexcept;
  /// Where the value starts in the text, in bytes.
  [[nodiscard]] std::int64_t offset() const noexcept { return offset_; }

 private:
  friend class detail::JsonParser;

  // In the order of Kind.
  std::variant<std::monostate, bool, std::int64_t, double, std::string, std::vector<JsonValue>, std::vector<JsonMember>> content_;
  std::int64_t offset_ = 0;
};

struct JsonMember {
  std::string name;
  JsonValue value;
};

inline std::span<const JsonValue> JsonValue::items() const noexcept {
  const auto* items = std::get_if<std::vector<JsonValue>>(&content_);
  return items != nullptr ? std::span<const JsonValue>(*items) : std::span<const JsonValue>();
}

inline std::span<const JsonMember> JsonValue::members() const noexcept {
  const auto* members = std::get_if<std::vector<JsonMember>>(&content_);
  return members != nullptr ? std::span<const JsonMember>(*members) : std::span<const JsonMember>();
}

inline const JsonValue* JsonValue::find(std::string_view key) const noexcept {
  for (const JsonMember& member : members()) {
    if (member.name == key) return &member.value;
  }
  return nullptr;
}

/// The kind as error messages say it.
constexpr std::string_view to_string(JsonValue::Kind kind) noexcept {
  switch (kind) {
    case JsonValue::Kind::null: return "null";
    case JsonValue::Kind::boolean: return "boolean";
    case JsonValue::Kind::integer: return "integer";
    case JsonValue::Kind::real: return "number";
    case JsonValue::Kind::string: return "string";
    case JsonValue::Kind::array: return "array";
    case JsonValue::Kind::object: return "object";
  }
  return "unknown";
}

namespace detail {

/// Recursive descent; the depth limit bounds the stack. Functions give false after having recorded the first error.
class JsonParser {
 public:
  JsonParser(std::string_view text, const JsonLimits& limits) noexcept : text_(text), limits_(limits) {}

  bool document(JsonValue& value) {
    if (static_cast<std::int64_t>(text_.size()) > limits_.bytes) {
      return fail("longer than the limit of " + std::to_string(limits_.bytes) + " bytes", Errc::unsupported);
    }
    skip_space();
    if (!parse(value, 0)) return false;
    skip_space();
    return at_ == text_.size() || fail("more text after the end of the value");
  }

  [[nodiscard]] Status error(std::string_view source) const {
    return {code_, "JsonValue::parse: '" + std::string(source) + "': byte " + std::to_string(at_) + ": " + error_};
  }

 private:
  bool fail(std::string what, Errc code = Errc::corrupt) {
    error_ = std::move(what);
    code_ = code;
    return false;
  }
  [[nodiscard]] char peek() const noexcept { return at_ < text_.size() ? text_[at_] : '\0'; }
  void skip_space() noexcept {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r')) ++at_;
  }

  bool parse(JsonValue& value, int depth) {
    if (++values_ > limits_.values) return fail("more than " + std::to_string(limits_.values) + " values", Errc::unsupported);
    value.offset_ = static_cast<std::int64_t>(at_);
    if (at_ >= text_.size()) return fail("the text ends where a value is expected");
    switch (text_[at_]) {
      case '{': return object(value, depth);
      case '[': return array(value, depth);
      case '"': return string(value.content_.emplace<std::string>());
      case 't': value.content_ = true; return word("true");
      case 'f': value.content_ = false; return word("false");
      case 'n': return word("null");
      default: return number(value);
    }
  }

  bool word(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) return fail("not a value, expected " + std::string(expected));
    at_ += expected.size();
    return true;
  }

  bool array(JsonValue& value, int depth) {
    if (depth >= limits_.depth) return fail("nested deeper than " + std::to_string(limits_.depth), Errc::unsupported);
    auto& items = value.content_.emplace<std::vector<JsonValue>>();
    ++at_;
    skip_space();
    if (peek() == ']') return ++at_, true;
    for (;;) {
      skip_space();
      if (!parse(items.emplace_back(), depth + 1)) return false;
      skip_space();
      const char next = peek();
      if (next != ',' && next != ']') return fail("expected ',' or ']' in an array");
      ++at_;
      if (next == ']') return true;
    }
  }

  bool object(JsonValue& value, int depth) {
    if (depth >= limits_.depth) return fail("nested deeper than " + std::to_string(limits_.depth), Errc::unsupported);
    auto& members = value.content_.emplace<std::vector<JsonMember>>();
    ++at_;
    skip_space();
    if (peek() == '}') return ++at_, true;
    for (;;) {
      skip_space();
      if (peek() != '"') return fail("expected a member's name in quotes");
      JsonMember& member = members.emplace_back();
      if (!string(member.name)) return false;
      skip_space();
      if (peek() != ':') return fail("expected ':' after a member's name");
      ++at_;
      skip_space();
      if (!parse(member.value, depth + 1)) return false;
      skip_space();
      const char next = peek();
      if (next != ',' && next != '}') return fail("expected ',' or '}' in an object");
      ++at_;
      if (next == '}') return unique_names(members);
    }
  }

  /// Sorted, so that an object of a million members does not take a million squared comparisons.
  bool unique_names(const std::vector<JsonMember>& members) {
    std::vector<std::string_view> names;
    names.reserve(members.size());
    for (const JsonMember& member : members) names.push_back(member.name);
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    return twice == names.end() || fail("the name '" + std::string(*twice) + "' appears twice in an object");
  }

  bool hex4(std::uint32_t& code) {
    code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
      if (digit < 0) return fail("expected four hexadecimal digits after \\u");
      code = code * 16 + static_cast<std::uint32_t>(digit);
    }
    return true;
  }

  bool escape(std::string& out) {
    const char kind = peek();
    ++at_;
    switch (kind) {
      case '"':
      case '\\':
      case '/': out.push_back(kind); return true;
      case 'b': out.push_back('\b'); return true;
      case 'f': out.push_back('\f'); return true;
      case 'n': out.push_back('\n'); return true;
      case 'r': out.push_back('\r'); return true;
      case 't': out.push_back('\t'); return true;
      case 'u': break;
      default: --at_; return fail("unknown escape in a string");
    }
    std::uint32_t code = 0;
    if (!hex4(code)) return false;
    if (code >= 0xdc00 && code <= 0xdfff) return fail("second half of a surrogate pair without the first");
    if (code >= 0xd800 && code <= 0xdbff) {
      if (text_.substr(at_, 2) != "\\u") return fail("first half of a surrogate pair without the second");
      at_ += 2;
      std::uint32_t low = 0;
      if (!hex4(low)) return false;
      if (low < 0xdc00 || low > 0xdfff) return fail("first half of a surrogate pair without the second");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    append_utf8(out, code);
    return true;
  }

  bool string(std::string& out) {
    ++at_;
    for (;;) {
      std::size_t end = at_;
      while (end < text_.size() && text_[end] >= ' ' && text_[end] != '"' && text_[end] != '\\') ++end;  // plain ASCII (char may be signed)
      out.append(text_.substr(at_, end - at_));
      at_ = end;
      if (at_ >= text_.size()) return fail("the text ends inside a string");
      const auto c = static_cast<unsigned char>(text_[at_]);
      if (c == '"') return ++at_, true;
      if (c == '\\') {
        ++at_;
        if (!escape(out)) return false;
      } else if (c < 0x20) {
        return fail("control character inside a string");
      } else {
        const std::size_t length = utf8_sequence(text_.substr(at_));
        if (length == 0) return fail("invalid UTF-8 inside a string");
        out.append(text_.substr(at_, length));
        at_ += length;
      }
    }
  }

  [[nodiscard]] bool digit() const noexcept { return peek() >= '0' && peek() <= '9'; }
  bool digits() {
    if (!digit()) return fail("not a value");
    while (digit()) ++at_;
    return true;
  }

  bool number(JsonValue& value) {
    const std::size_t begin = at_;
    bool whole = true;
    if (peek() == '-') ++at_;
    if (peek() == '0') {
      ++at_;
      if (digit()) return fail("a number with a leading zero");
    } else if (!digits()) {
      return false;
    }
    if (peek() == '.') {
      whole = false;
      ++at_;
      if (!digits()) return false;
    }
    if (peek() == 'e' || peek() == 'E') {
      whole = false;
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      if (!digits()) return false;
    }
    const char* first = text_.data() + begin;
    const char* last = text_.data() + at_;
    // -0 is a double that no integer can be.
    if (std::int64_t integer = 0; whole && std::from_chars(first, last, integer).ec == std::errc{} && (integer != 0 || *first != '-')) {
      value.content_ = integer;
      return true;
    }
    double real = 0.0;
    if (std::from_chars(first, last, real).ec != std::errc{}) return fail("a number outside the range of double");
    value.content_ = real;
    return true;
  }

  std::string_view text_;
  const JsonLimits& limits_;
  std::size_t at_ = 0;
  std::int64_t values_ = 0;
  std::string error_;
  Errc code_ = Errc::corrupt;
};

}  // namespace detail

inline Result<JsonValue> JsonValue::parse(std::string_view text, std::string_view source, const JsonLimits& limits) {
  detail::JsonParser parser(text, limits);
  JsonValue value;
  if (!parser.document(value)) return parser.error(source);
  return value;
}

/// Appends `text` in quotes. Bytes that are not UTF-8 (a file name may hold any) become U+FFFD, so the result is always JSON.
inline void append_json_string(std::string& out, std::string_view text) {
  constexpr std::string_view kHex = "0123456789abcdef";
  out.push_back('"');
  while (!text.empty()) {
    const std::size_t length = detail::utf8_sequence(text);
    const char c = text.front();
    if (length == 0) {
      out.append("\xef\xbf\xbd");
    } else if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (static_cast<unsigned char>(c) >= 0x20) {
      out.append(text.substr(0, length));
    } else if (c == '\n') {
      out.append("\\n");
    } else if (c == '\r') {
      out.append("\\r");
    } else if (c == '\t') {
      out.append("\\t");
    } else {
      out.append("\\u00");
      out.push_back(kHex[static_cast<std::size_t>(c) >> 4]);
      out.push_back(kHex[static_cast<std::size_t>(c) & 15]);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  out.push_back('"');
}

/// Appends the shortest text that reads back to the same number of the same type; `null` for NaN and infinities, which JSON lacks.
template <class T>
requires std::floating_point<T> || std::integral<T>
inline void append_json_number(std::string& out, T value) {
  if constexpr (std::floating_point<T>) {
    if (!std::isfinite(value)) {
      out.append("null");
      return;
    }
  }
  std::array<char, 40> buffer;
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr;
  out.append(buffer.data(), static_cast<std::size_t>(end - buffer.data()));
}

enum class JsonLayout : std::uint8_t { compact, pretty };

/// Builds one JSON text piece by piece. Commas, quotes and indentation come by themselves; calls that cannot make JSON
/// (a value without its name, an end without its begin) are broken preconditions.
class JsonWriter {
 public:
  explicit JsonWriter(JsonLayout layout = JsonLayout::compact) noexcept : layout_(layout) {}

  JsonWriter& begin_object() { return open('{'); }
  JsonWriter& end_object() { return close('}'); }
  JsonWriter& begin_array() { return open('['); }
  JsonWriter& end_array() { return close(']'); }

  /// The name of the next value.
  JsonWriter& key(std::string_view name) {
    NORMA_EXPECTS(!open_.empty() && open_.back().closer == '}' && !named_);
    separate();
    append_json_string(text_, name);
    text_.append(layout_ == JsonLayout::pretty ? ": " : ":");
    named_ = true;
    return *this;
  }

  /// bool, integers, floating-point numbers (null when not finite), text, nullptr, std::optional of these, spans of these.
  template <class T>
  JsonWriter& value(const T& v) {
    if constexpr (std::is_same_v<T, bool>) {
      start().append(v ? "true" : "false");
    } else if constexpr (std::is_same_v<T, std::nullptr_t> || std::is_same_v<T, std::nullopt_t>) {
      start().append("null");
    } else if constexpr (std::is_arithmetic_v<T>) {
      append_json_number(start(), v);
    } else if constexpr (std::is_convertible_v<const T&, std::string_view>) {
      append_json_string(start(), v);
    } else if constexpr (requires {
                           v.has_value();
                           *v;
                         }) {
      if (v.has_value()) {
        value(*v);
      } else {
        start().append("null");
      }
    } else {
      begin_array();
      for (const auto& item : v) value(item);
      end_array();
    }
    return *this;
  }
  /// A named value.
  template <class T>
  JsonWriter& member(std::string_view name, const T& v) {
    return key(name).value(v);
  }
  /// A value that is JSON already.
  JsonWriter& raw(std::string_view json) {
    start().append(json);
    return *this;
  }

  [[nodiscard]] const std::string& text() const noexcept { return text_; }
  /// Gives the text away and starts afresh.
  [[nodiscard]] std::string take() {
    NORMA_EXPECTS(open_.empty());
    return std::exchange(text_, {});
  }

 private:
  struct Level {
    char closer;
    bool has_items;
  };

  void separate() {
    if (open_.empty()) return;
    if (open_.back().has_items) text_.push_back(',');
    open_.back().has_items = true;
    new_line();
  }
  void new_line() {
    if (layout_ != JsonLayout::pretty) return;
    text_.push_back('\n');
    text_.append(2 * open_.size(), ' ');
  }
  std::string& start() {
    NORMA_EXPECTS(open_.empty() || open_.back().closer == ']' || named_);
    if (!std::exchange(named_, false)) separate();
    return text_;
  }
  JsonWriter& open(char opener) {
    start().push_back(opener);
    open_.push_back({opener == '{' ? '}' : ']', false});
    return *this;
  }
  JsonWriter& close(char closer) {
    NORMA_EXPECTS(!open_.empty() && open_.back().closer == closer && !named_);
    const bool had_items = open_.back().has_items;
    open_.pop_back();
    if (had_items) new_line();
    text_.push_back(closer);
    return *this;
  }

  JsonLayout layout_;
  std::string text_;
  std::vector<Level> open_;
  bool named_ = false;
};

}  // namespace norma::io
