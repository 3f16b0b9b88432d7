/// \file
/// Comma-separated values as RFC 4180 has them: fields with a comma, quote or line break are quoted, quotes doubled, lines end in CRLF
/// or, by default, in a plain line feed.
#pragma once

#include <array>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <norma/core/status.hpp>

namespace norma::io {

enum class LineEnd : std::uint8_t { lf, crlf };

/// Builds a table row by row: `csv.row("name", 1, 2.5)`, or `field` by field and then `end_row`.
class CsvWriter {
 public:
  explicit CsvWriter(LineEnd line_end = LineEnd::lf) noexcept : line_end_(line_end) {}

  /// Text, bool (0 or 1), integers, floating-point numbers (shortest text that reads back to the same value; empty when not finite), or
  /// std::optional of these (empty when absent).
  template <class T>
  CsvWriter& field(const T& value) {
    if constexpr (std::is_convertible_v<const T&, std::string_view>) {
      start();
      quote(value);
    } else if constexpr (std::is_same_v<T, bool>) {
      start();
      text_.push_back(value ? '1' : '0');
    } else if constexpr (std::is_arithmetic_v<T>) {
      start();
      number(value);
    } else if (value.has_value()) {
      field(*value);
    } else {
      start();
    }
    return *this;
  }

  CsvWriter& end_row() {
    text_.append(line_end_ == LineEnd::crlf ? "\r\n" : "\n");
    first_ = true;
    return *this;
  }

  template <class... T>
  CsvWriter& row(const T&... values) {
    (field(values), ...);
    return end_row();
  }

  [[nodiscard]] const std::string& text() const noexcept { return text_; }
  [[nodiscard]] std::string take() { return std::exchange(text_, {}); }

 private:
  void start() {
    if (!std::exchange(first_, false)) text_.push_back(',');
  }
  void quote(std::string_view value) {
    if (value.find_first_of(",\"\r\n") == std::string_view::npos) {
      text_.append(value);
      return;
    }
    text_.push_back('"');
    for (const char c : value) {
      if (c == '"') text_.push_back('"');
      text_.push_back(c);
    }
    text_.push_back('"');
  }
  template <class T>
  void number(T value) {
    if constexpr (std::is_floating_point_v<T>) {
      if (!std::isfinite(value)) return;
    }
    std::array<char, 40> buffer;
    const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value).ptr;
    text_.append(buffer.data(), static_cast<std::size_t>(end - buffer.data()));
  }

  LineEnd line_end_;
  std::string text_;
  bool first_ = true;
};

}  // namespace norma::io
