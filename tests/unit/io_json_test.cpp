#include <norma/io/csv.hpp>
#include <norma/io/json.hpp>

#include <cmath>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>

#include "tests/support/io_files.hpp"

using namespace norma;
using io::JsonValue;
using Kind = JsonValue::Kind;

namespace {

JsonValue parsed(std::string_view text) {
  auto value = JsonValue::parse(text);
  REQUIRE_MESSAGE(value.ok(), value.message());
  return *std::move(value);
}

}  // namespace

TEST_CASE("every kind of value, with its questions") {
  const JsonValue value = parsed(R"( {"a": [1, -2.5, true, false, null, "x"], "b": {"c": {}}, "d": []} )");
  CHECK(value.kind() == Kind::object);
  REQUIRE(value.members().size() == 3);
  CHECK(value.members()[0].name == "a");
  const auto items = value.find("a")->items();
  REQUIRE(items.size() == 6);
  CHECK(items[0].integer() == 1);
  CHECK(items[0].number() == 1.0);
  CHECK(items[1].number() == -2.5);
  CHECK_FALSE(items[1].integer().has_value());
  CHECK(items[2].boolean() == true);
  CHECK(items[3].boolean() == false);
  CHECK(items[4].is_null());
  CHECK(items[5].string() == "x");
  CHECK(value.find("b")->find("c")->kind() == Kind::object);
  CHECK(value.find("d")->kind() == Kind::array);
  CHECK(value.find("absent") == nullptr);
  // The wrong question gives nothing.
  CHECK(items[0].find("a") == nullptr);
  CHECK(items[0].items().empty());
  CHECK_FALSE(items[0].string().has_value());
  CHECK_FALSE(items[5].number().has_value());
  CHECK_FALSE(items[4].boolean().has_value());
}

TEST_CASE("numbers") {
  CHECK(parsed("9223372036854775807").integer() == std::numeric_limits<std::int64_t>::max());
  CHECK(parsed("-9223372036854775808").integer() == std::numeric_limits<std::int64_t>::min());
  CHECK_FALSE(parsed("9223372036854775808").integer().has_value());
  CHECK(parsed("9223372036854775808").number() == 9223372036854775808.0);
  CHECK_FALSE(parsed("1.0").integer().has_value());
  CHECK(parsed("1e3").number() == 1000.0);
  CHECK(parsed("1E+2").number() == 100.0);
  CHECK(parsed("5e-324").number() == std::numeric_limits<double>::denorm_min());
  CHECK(parsed("1.7976931348623157e308").number() == std::numeric_limits<double>::max());
  CHECK(parsed("0.1").number() == 0.1);
  CHECK(parsed("0").integer() == 0);
  CHECK(std::signbit(*parsed("-0").number()));
  CHECK(std::signbit(*parsed("-0.0").number()));
  for (const char* text :
       {"01", "-", "+1", ".5", "1.", "1e", "1e+", "0x10", "1_000", "NaN", "Infinity", "-Infinity", "1e400", "--1", "1.e1"}) {
    CAPTURE(text);
    CHECK_FALSE(JsonValue::parse(text).ok());
  }
}

TEST_CASE("strings, escapes and UTF-8") {
  CHECK(parsed(R"("\"\\\/\b\f\n\r\t")").string() == "\"\\/\b\f\n\r\t");
  CHECK(parsed(R"("\u0041\u00e9\u20AC\ud83d\ude00")").string() == "A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
  CHECK(parsed("\"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 \x7f\"").string() == "\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 \x7f");
  CHECK(parsed(R"("a\u0000b")").string() == std::string_view("a\0b", 3));
  for (const std::string text : {R"("\ud83d")", R"("\ud83dx")", R"("\ude00")", R"("\ud83d\u0041")", R"("\u12")", R"("\u12g4")", R"("\x41")",
                                 R"("\)", R"("abc)", "\"a\nb\"", "\"\x01\"", "\"\xff\"", "\"\xc3\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"",
                                 "\"\xf4\x90\x80\x80\"", "\"\xe2\x82\"", "'a'"}) {
    CAPTURE(text);
    const auto value = JsonValue::parse(text);
    CHECK(value.code() == Errc::corrupt);
  }
}

TEST_CASE("malformed structure is refused with the place") {
  for (const char* text : {"",
                           "  ",
                           "{",
                           "[",
                           "[1",
                           "[1,",
                           "[1,]",
                           "[,1]",
                           "{\"a\"}",
                           "{\"a\":}",
                           "{\"a\":1,}",
                           "{a:1}",
                           "{1:2}",
                           "[1 2]",
                           "{\"a\":1 \"b\":2}",
                           "tru",
                           "nulL",
                           "[] []",
                           "[]x",
                           "1 2",
                           "]",
                           "}",
                           ":",
                           "// comment\n1",
                           "[1]\x0b",
                           "\xef\xbb\xbf[]"}) {
    CAPTURE(text);
    const auto value = JsonValue::parse(text, "settings.json");
    REQUIRE_FALSE(value.ok());
    CHECK(value.code() == Errc::corrupt);
    CHECK(value.message().find("'settings.json': byte ") != std::string::npos);
  }
  const auto twice = JsonValue::parse(R"({"a": 1, "b": 2, "a": 3})");
  CHECK(twice.code() == Errc::corrupt);
  CHECK(twice.message().find("'a' appears twice") != std::string::npos);
  CHECK_FALSE(JsonValue::parse(R"({"a": 1, "\u0061": 3})").ok());  // the same name in other letters
  CHECK(parsed(R"([{"a": 1}, {"a": 2}])").items().size() == 2);
}

TEST_CASE("limits hold for depth, values and bytes") {
  const std::string deep(64, '['), deep_end(64, ']');
  CHECK(JsonValue::parse(deep + deep_end).ok());
  CHECK(JsonValue::parse("[" + deep + deep_end + "]").code() == Errc::unsupported);
  CHECK(JsonValue::parse(std::string(1000000, '[')).code() == Errc::unsupported);
  io::JsonLimits few;
  few.values = 4;
  CHECK(JsonValue::parse("[1,2,3]", "x", few).ok());
  CHECK(JsonValue::parse("[1,2,3,4]", "x", few).code() == Errc::unsupported);
  few.bytes = 6;
  CHECK(JsonValue::parse("[1,2,3]", "x", few).code() == Errc::unsupported);
  // An object of many members is checked for repeated names without comparing all pairs.
  std::string large = "{";
  for (int i = 0; i < 200000; ++i) large += "\"" + std::to_string(i) + "\":0,";
  CHECK(JsonValue::parse(large + "\"x\":0}").ok());
  CHECK_FALSE(JsonValue::parse(large + "\"77\":0}").ok());
}

TEST_CASE("offsets point at the values") {
  const std::string text = R"({"a": "x", "b": [10, 20]})";
  const JsonValue value = parsed(text);
  CHECK(text[static_cast<std::size_t>(value.find("a")->offset())] == '"');
  CHECK(text.substr(static_cast<std::size_t>(value.find("b")->items()[1].offset()), 2) == "20");
}

TEST_CASE("the writer makes what the reader reads") {
  io::JsonWriter json;
  json.begin_object();
  json.member("text", "quote \" slash \\ newline \n bell \a \xc3\xa9").member("yes", true).member("none", nullptr);
  json.member("list", std::vector<int>{1, 2, 3}).member("empty", std::vector<double>{});
  json.member("maybe", std::optional<double>()).member("surely", std::optional<double>(2.5));
  json.key("inner").begin_array().value(1.5f).value(std::uint64_t{18446744073709551615u}).begin_object().end_object().end_array();
  json.key("raw").raw("[1]");
  json.end_object();
  CHECK(
      json.text() ==
      R"({"text":"quote \" slash \\ newline \n bell \u0007 é","yes":true,"none":null,"list":[1,2,3],"empty":[],"maybe":null,"surely":2.5,)"
      R"("inner":[1.5,18446744073709551615,{}],"raw":[1]})");
  const JsonValue back = parsed(json.text());
  CHECK(back.find("text")->string() == "quote \" slash \\ newline \n bell \a \xc3\xa9");
  CHECK(json.take().size() > 10);
  CHECK(json.text().empty());
}

TEST_CASE("pretty layout") {
  io::JsonWriter json(io::JsonLayout::pretty);
  json.begin_object()
      .member("a", 1)
      .key("b")
      .begin_array()
      .value(2)
      .value("x")
      .end_array()
      .key("c")
      .begin_object()
      .end_object()
      .end_object();
  CHECK(json.text() == "{\n  \"a\": 1,\n  \"b\": [\n    2,\n    \"x\"\n  ],\n  \"c\": {}\n}");
  CHECK(parsed(json.text()).members().size() == 3);
}

TEST_CASE("doubles and floats read back to the same bits; what is not finite becomes null") {
  Random random(5);
  for (int i = 0; i < 20000; ++i) {
    const double value = std::bit_cast<double>(random.bits64());
    if (!std::isfinite(value)) continue;
    std::string text;
    io::append_json_number(text, value);
    const auto back = parsed(text).number();
    REQUIRE(back.has_value());
    REQUIRE(std::bit_cast<std::uint64_t>(*back) == std::bit_cast<std::uint64_t>(value));
  }
  for (int i = 0; i < 20000; ++i) {
    const float value = std::bit_cast<float>(random.bits());
    if (!std::isfinite(value)) continue;
    std::string text;
    io::append_json_number(text, value);
    REQUIRE(static_cast<float>(*parsed(text).number()) == value);
  }
  std::string text;
  io::append_json_number(text, std::nan(""));
  io::append_json_number(text, -std::numeric_limits<float>::infinity());
  CHECK(text == "nullnull");
  text.clear();
  io::append_json_number(text, 0.1f);
  CHECK(text == "0.1");
}

TEST_CASE("bytes that are not UTF-8 still give JSON") {
  for (const std::string name : {"caf\xe9.png", "\xff\xfe", "ok \xe2\x82", "\xed\xa0\x80"}) {
    std::string text;
    io::append_json_string(text, name);
    CHECK(parsed(text).string()->find("\xef\xbf\xbd") != std::string_view::npos);
  }
}

TEST_CASE("damaged text gives an error or a value, nothing else") {
  const std::string original =
      R"({"__metadata__": {"format": "pt", "note": "\u00e9\ud83d\ude00"}, "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "x": [1.5e3, -7, true, null]})";
  const auto bytes = test::bytes_of(original);
  Random random(6);
  int accepted = 0;
  for (int i = 0; i < 5000; ++i) {
    const auto changed = test::damaged(bytes, random);
    const auto value = JsonValue::parse(io::as_text(changed));
    if (value.ok()) {
      ++accepted;
    } else {
      REQUIRE_FALSE(value.message().empty());
    }
  }
  CHECK(accepted > 0);
  CHECK(accepted < 5000);
}

TEST_CASE("csv quotes what needs it") {
  io::CsvWriter csv;
  csv.row("name", "score", "n").row("plain", 0.5, 3).row("comma, here", -1.25f, std::int64_t{-9}).row("quote \"q\"", std::nan(""), true);
  csv.field("line\nbreak").field(std::optional<double>()).field(std::optional<int>(4)).end_row();
  csv.field("").field(std::string("s")).field(std::string_view("v")).end_row();
  CHECK(csv.text() == "name,score,n\nplain,0.5,3\n\"comma, here\",-1.25,-9\n\"quote \"\"q\"\"\",,1\n\"line\nbreak\",,4\n,s,v\n");
  io::CsvWriter windows(io::LineEnd::crlf);
  windows.row(1, 2).row("a\rb", 3);
  CHECK(windows.take() == "1,2\r\n\"a\rb\",3\r\n");
  CHECK(windows.text().empty());
}
