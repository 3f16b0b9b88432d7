#include <norma/io/dtype.hpp>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>

using namespace norma;
using io::DType;

namespace {

/// The value of a small float by its definition, in double.
double value_of(unsigned bits, int exponent_bits, int mantissa_bits) {
  const unsigned mantissa = bits & ((1u << mantissa_bits) - 1);
  const int exponent = static_cast<int>(bits >> mantissa_bits & ((1u << exponent_bits) - 1));
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = (bits >> (exponent_bits + mantissa_bits) & 1u) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp((1u << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

bool same(float a, float b) { return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b); }

/// Rounds to nearest, ties to even, by looking at both neighbours in the table of all finite values.
std::uint16_t nearest(float value, int exponent_bits, int mantissa_bits) {
  const unsigned sign = std::signbit(value) ? 0x8000u : 0u;
  const double magnitude = std::abs(static_cast<double>(value));
  const unsigned infinity = ((1u << exponent_bits) - 1) << mantissa_bits;
  unsigned low = 0, high = infinity;  // value_of(low) <= magnitude < value_of(high); infinity counts as the next step of the last binade
  const auto step_value = [&](unsigned bits) {
    return bits == infinity ? std::ldexp(1.0, (1 << exponent_bits) - 1 - ((1 << (exponent_bits - 1)) - 1))
                            : value_of(bits, exponent_bits, mantissa_bits);
  };
  if (magnitude >= step_value(infinity)) return static_cast<std::uint16_t>(sign | infinity);
  while (high - low > 1) {
    const unsigned middle = (low + high) / 2;
    (step_value(middle) <= magnitude ? low : high) = middle;
  }
  const double below = magnitude - step_value(low), above = step_value(high) - magnitude;
  const unsigned chosen = below < above || (below == above && low % 2 == 0) ? low : high;
  return static_cast<std::uint16_t>(sign | chosen);
}

}  // namespace

TEST_CASE("names and sizes") {
  struct Case {
    DType dtype;
    const char* name;
    std::int64_t size;
    bool is_float;
    bool is_integer;
  };
  const Case cases[] = {{DType::f64, "F64", 8, true, false},         {DType::f32, "F32", 4, true, false},
                        {DType::f16, "F16", 2, true, false},         {DType::bf16, "BF16", 2, true, false},
                        {DType::i64, "I64", 8, false, true},         {DType::i32, "I32", 4, false, true},
                        {DType::i16, "I16", 2, false, true},         {DType::i8, "I8", 1, false, true},
                        {DType::u64, "U64", 8, false, true},         {DType::u32, "U32", 4, false, true},
                        {DType::u16, "U16", 2, false, true},         {DType::u8, "U8", 1, false, true},
                        {DType::boolean, "BOOL", 1, false, true},    {DType::f8_e4m3, "F8_E4M3", 1, false, false},
                        {DType::f8_e5m2, "F8_E5M2", 1, false, false}};
  for (const Case& c : cases) {
    CHECK(io::to_string(c.dtype) == c.name);
    CHECK(io::dtype_from_name(c.name) == c.dtype);
    CHECK(io::size_of(c.dtype) == c.size);
    CHECK(io::is_float(c.dtype) == c.is_float);
    CHECK(io::is_integer(c.dtype) == c.is_integer);
  }
  for (const char* name : {"", "F", "f32", "F32 ", "F128", "unknown"}) CHECK_FALSE(io::dtype_from_name(name).has_value());
}

TEST_CASE("every half and bfloat16 converts to the float of the same value and back") {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    const auto stored = static_cast<std::uint16_t>(bits);
    const float half = io::float_from_half(stored);
    const double expected = value_of(bits, 5, 10);
    if (std::isnan(expected)) {
      REQUIRE(std::isnan(half));
      REQUIRE(io::half_from_float(half) == (bits | 0x0200u));  // quiet, sign and payload kept
    } else {
      REQUIRE(same(half, static_cast<float>(expected)));
      REQUIRE(io::half_from_float(half) == bits);
    }
    const float brain = io::float_from_bfloat16(stored);
    const double expected_brain = value_of(bits, 8, 7);
    if (std::isnan(expected_brain)) {
      REQUIRE(std::isnan(brain));
      REQUIRE(io::bfloat16_from_float(brain) == (bits | 0x0040u));
    } else {
      REQUIRE(same(brain, static_cast<float>(expected_brain)));
      REQUIRE(io::bfloat16_from_float(brain) == bits);
    }
  }
}

TEST_CASE("floats round to the nearest half and bfloat16, ties to even") {
  std::vector<float> values = {0.0f,
                               -0.0f,
                               65504.0f,
                               65519.996f,
                               65520.0f,
                               -65520.0f,
                               65536.0f,
                               1e30f,
                               0x1p-24f,
                               0x1p-25f,
                               0x1.000002p-25f,
                               0x1.8p-24f,
                               0x1p-14f,
                               0x1.ffcp-15f,
                               0x1.ffep-15f,
                               0x1.fffp-15f,
                               std::numeric_limits<float>::max(),
                               std::numeric_limits<float>::min(),
                               std::numeric_limits<float>::denorm_min(),
                               std::numeric_limits<float>::infinity(),
                               -std::numeric_limits<float>::infinity()};
  for (unsigned bits = 0; bits < 0x7c00; bits += 7) {  // around every boundary between neighbours, which is where ties are
    const double middle = (value_of(bits, 5, 10) + value_of(bits + 1, 5, 10)) / 2;
    const auto tie = static_cast<float>(middle);
    values.insert(values.end(), {tie, -tie, std::nextafter(tie, 0.0f), std::nextafter(tie, 1e9f)});
  }
  Random random(3);
  for (int i = 0; i < 20000; ++i) {
    const float value = std::bit_cast<float>(random.bits());
    if (!std::isnan(value)) values.push_back(value);
  }
  for (const float value : values) {
    CAPTURE(value);
    REQUIRE(io::half_from_float(value) == nearest(value, 5, 10));
    REQUIRE(io::bfloat16_from_float(value) == nearest(value, 8, 7));
  }
}

TEST_CASE("bulk conversion equals conversion one by one, for every type, from unaligned bytes") {
  Random random(4);
  for (const DType dtype : {DType::f16, DType::bf16, DType::f32, DType::f64}) {
    for (const std::size_t count : {0u, 1u, 7u, 8u, 9u, 31u, 32u, 33u, 1000u}) {
      const auto element = static_cast<std::size_t>(io::size_of(dtype));
      std::vector<std::byte> stored(count * element + 1);
      for (std::byte& byte : stored) byte = static_cast<std::byte>(random.below(256));
      const std::span<const std::byte> in(stored.data() + 1, count * element);
      std::vector<float> out(count);
      REQUIRE(io::to_float(dtype, in, out).ok());
      std::vector<std::byte> back(count * element + 1);
      REQUIRE(io::from_float(dtype, out, std::span(back).subspan(1)).ok());
      for (std::size_t i = 0; i < count; ++i) {
        if (element == 2) {
          std::uint16_t bits = 0, again = 0;
          std::memcpy(&bits, in.data() + 2 * i, 2);
          std::memcpy(&again, back.data() + 1 + 2 * i, 2);
          REQUIRE(same(out[i], dtype == DType::f16 ? io::float_from_half(bits) : io::float_from_bfloat16(bits)));
          REQUIRE(again == (dtype == DType::f16 ? io::half_from_float(out[i]) : io::bfloat16_from_float(out[i])));
        } else if (element == 4) {
          REQUIRE(std::memcmp(&out[i], in.data() + 4 * i, 4) == 0);
          REQUIRE(std::memcmp(&out[i], back.data() + 1 + 4 * i, 4) == 0);
        } else {
          double wide = 0.0, again = 0.0;
          std::memcpy(&wide, in.data() + 8 * i, 8);
          std::memcpy(&again, back.data() + 1 + 8 * i, 8);
          REQUIRE((same(out[i], static_cast<float>(wide)) || (std::isnan(out[i]) && std::isnan(wide))));
          REQUIRE((again == static_cast<double>(out[i]) || (std::isnan(again) && std::isnan(out[i]))));
        }
      }
    }
  }
}

TEST_CASE("every float through the bulk path of halves: the processor's conversion agrees with ours") {
  std::vector<float> values;
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 65521)
    values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  std::vector<std::byte> out(values.size() * 2);
  REQUIRE(io::from_float(DType::f16, values, out).ok());
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t half = 0;
    std::memcpy(&half, out.data() + 2 * i, 2);
    REQUIRE(half == io::half_from_float(values[i]));
  }
}

TEST_CASE("integers of every type") {
  const auto read = []<class T>(DType dtype, std::initializer_list<T> stored) {
    std::vector<std::byte> bytes(stored.size() * sizeof(T) + 1);
    std::memcpy(bytes.data() + 1, stored.begin(), stored.size() * sizeof(T));
    std::vector<std::int64_t> out(stored.size());
    REQUIRE(io::to_int64(dtype, std::span(bytes).subspan(1), out).ok());
    return out;
  };
  using Out = std::vector<std::int64_t>;
  CHECK(read(DType::i64, {std::numeric_limits<std::int64_t>::min(), std::int64_t{5}}) == Out{std::numeric_limits<std::int64_t>::min(), 5});
  CHECK(read(DType::i32, {std::int32_t{-70000}}) == Out{-70000});
  CHECK(read(DType::i16, {std::int16_t{-3}}) == Out{-3});
  CHECK(read(DType::i8, {std::int8_t{-128}, std::int8_t{127}}) == Out{-128, 127});
  CHECK(read(DType::u8, {std::uint8_t{255}}) == Out{255});
  CHECK(read(DType::u16, {std::uint16_t{65535}}) == Out{65535});
  CHECK(read(DType::u32, {std::uint32_t{4294967295u}}) == Out{4294967295});
  CHECK(read(DType::u64, {std::uint64_t{1} << 62}) == Out{std::int64_t{1} << 62});
  CHECK(read(DType::boolean, {true, false}) == Out{1, 0});
  const std::uint64_t large = std::uint64_t{1} << 63;
  std::int64_t out = 0;
  CHECK(io::to_int64(DType::u64, std::as_bytes(std::span(&large, 1)), std::span(&out, 1)).code() == Errc::unsupported);
}

TEST_CASE("wrong types and sizes are errors that say what was expected") {
  std::vector<std::byte> bytes(10);
  std::vector<float> floats(3);
  std::vector<std::int64_t> integers(3);
  CHECK(io::to_float(DType::i64, bytes, floats).code() == Errc::unsupported);
  CHECK(io::to_float(DType::f8_e4m3, bytes, floats).code() == Errc::unsupported);
  CHECK(io::from_float(DType::u8, floats, bytes).code() == Errc::unsupported);
  CHECK(io::to_int64(DType::f32, bytes, integers).code() == Errc::unsupported);
  const auto size = io::to_float(DType::f32, bytes, floats);
  CHECK(size.code() == Errc::shape_mismatch);
  CHECK(size.message() == "io::to_float: 10 bytes of F32, expected 12 for 3 elements");
  CHECK(io::from_float(DType::f64, floats, bytes).code() == Errc::shape_mismatch);
  CHECK(io::to_int64(DType::i16, bytes, integers).code() == Errc::shape_mismatch);
}
