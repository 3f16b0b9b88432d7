/// \file
/// Settings as plain structs that can be listed: one `visit` serves the model file, the report and the command line.
///
/// A policy's settings are a literal aggregate with
/// \code
///   template <class Self, class Visitor>
///   static constexpr void visit(Self& self, Visitor&& visitor) {
///     visitor("coreset_ratio", self.coreset_ratio, "share of the training patches kept in the bank, in (0, 1]");
///   }
/// \endcode
/// Fields are bool, integers, floating point, arrays of these (`1,2,3`), enums with `to_string(E)` and `from_string(std::string_view, E&) -> bool`, and
/// types with members `std::string text() const` and `bool from_text(std::string_view)`.
#pragma once

#include <array>
#include <charconv>
#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>

#include <norma/core/status.hpp>

namespace norma {

template <class T>
concept TextField = requires(T& value, const T& constant, std::string_view text) {
  { constant.text() } -> std::convertible_to<std::string>;
  { value.from_text(text) } -> std::same_as<bool>;
};

namespace detail {
template <class T>
inline constexpr bool kIsArray = false;
template <class T, std::size_t N>
inline constexpr bool kIsArray<std::array<T, N>> = true;
}  // namespace detail

template <class T>
std::string field_text(const T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    return value ? "true" : "false";
  } else if constexpr (std::is_arithmetic_v<T>) {
    char buffer[40];
    const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
    return {buffer, end};
  } else if constexpr (std::is_enum_v<T>) {
    return std::string(to_string(value));
  } else if constexpr (detail::kIsArray<T>) {
    std::string joined;
    for (const auto& element : value) joined += (joined.empty() ? "" : ",") + field_text(element);
    return joined;
  } else {
    static_assert(TextField<T>, "a settings field is a number, a bool, an enum with to_string/from_string, or has text()/from_text()");
    return value.text();
  }
}

/// False, and `value` unchanged, where `text` does not say exactly one value.
template <class T>
bool field_from_text(std::string_view text, T& value) {
  if constexpr (std::is_same_v<T, bool>) {
    if (text == "true" || text == "1") return value = true, true;
    if (text == "false" || text == "0") return value = false, true;
    return false;
  } else if constexpr (std::is_arithmetic_v<T>) {
    T parsed{};
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), parsed);
    if (error != std::errc{} || end != text.data() + text.size()) return false;
    value = parsed;
    return true;
  } else if constexpr (std::is_enum_v<T>) {
    return from_string(text, value);
  } else if constexpr (detail::kIsArray<T>) {
    T parsed{};
    for (std::size_t i = 0; i < parsed.size(); ++i) {
      const auto comma = text.find(',');
      if ((comma == std::string_view::npos) != (i + 1 == parsed.size()) || !field_from_text(text.substr(0, comma), parsed[i])) return false;
      text.remove_prefix(comma == std::string_view::npos ? text.size() : comma + 1);
    }
    value = parsed;
    return true;
  } else {
    return value.from_text(text);
  }
}

/// Sets the field called `name`. Unknown names are `not_found`, unreadable values `invalid_argument`.
template <class SettingsT>
Status set_field(SettingsT& settings, std::string_view name, std::string_view text) {
  bool found = false;
  bool read = false;
  SettingsT::visit(settings, [&](std::string_view field, auto& value, std::string_view) {
    if (field != name) return;
    found = true;
    read = field_from_text(text, value);
  });
  if (!found) return {Errc::not_found, "settings: no field called '" + std::string(name) + "'"};
  if (!read) return {Errc::invalid_argument, "settings: '" + std::string(name) + "' cannot be '" + std::string(text) + "'"};
  return {};
}

}  // namespace norma
