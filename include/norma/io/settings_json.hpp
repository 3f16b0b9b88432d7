/// \file
/// Settings structs (core/settings.hpp) as a flat JSON object and back.
#pragma once

#include <string>
#include <string_view>

#include <norma/core/settings.hpp>
#include <norma/io/json.hpp>

namespace norma::io {

/// Adds one member a field to the open object: numbers and booleans as such, everything else as text.
template <class SettingsT>
void write_settings(JsonWriter& json, const SettingsT& settings) {
  SettingsT::visit(settings, [&](std::string_view name, const auto& value, std::string_view) {
    if constexpr (std::is_arithmetic_v<std::remove_cvref_t<decltype(value)>>) {
      json.member(name, value);
    } else {
      json.member(name, field_text(value));
    }
  });
}

/// Sets the fields that `object` has; fields that it does not mention keep their values. Unknown members are an error.
template <class SettingsT>
Status read_settings(const JsonValue& object, SettingsT& settings) {
  if (object.kind() != JsonValue::Kind::object) return {Errc::corrupt, "settings: expected a JSON object"};
  SettingsT read = settings;
  for (const JsonMember& member : object.members()) {
    std::string text;
    switch (member.value.kind()) {
      case JsonValue::Kind::boolean: text = *member.value.boolean() ? "true" : "false"; break;
      case JsonValue::Kind::integer: text = field_text(*member.value.integer()); break;
      case JsonValue::Kind::real: text = field_text(*member.value.number()); break;
      case JsonValue::Kind::string: text = *member.value.string(); break;
      default: return {Errc::corrupt, "settings: '" + member.name + "' is neither a number, a truth value nor a text"};
    }
    NORMA_CHECK(set_field(read, member.name, text));
  }
  settings = read;
  return {};
}

}  // namespace norma::io
