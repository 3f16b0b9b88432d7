/// \file
/// Element types of stored tensors, with their safetensors names, and exact conversions to and from float.
/// binary16 and bfloat16 convert to float exactly and from float with round-to-nearest-even; subnormals, infinities and signed
/// zeros are kept, a NaN stays a NaN with the payload bits that fit.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <norma/core/status.hpp>

#if NORMA_X86_DISPATCH
#include <immintrin.h>
#endif

namespace norma::io {

/// The order is that of alignment, as safetensors sorts: a file written from the last to the first has every tensor aligned.
enum class DType : std::uint8_t { boolean, u8, i8, f8_e5m2, f8_e4m3, i16, u16, f16, bf16, i32, u32, f32, f64, i64, u64 };

/// Bytes of one element.
[[nodiscard]] constexpr std::int64_t size_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::boolean:
    case DType::u8:
    case DType::i8:
    case DType::f8_e5m2:
    case DType::f8_e4m3: return 1;
    case DType::i16:
    case DType::u16:
    case DType::f16:
    case DType::bf16: return 2;
    case DType::i32:
    case DType::u32:
    case DType::f32: return 4;
    case DType::f64:
    case DType::i64:
    case DType::u64: return 8;
  }
  return 1;
}

/// The name in a safetensors header.
[[nodiscard]] constexpr std::string_view to_string(DType dtype) noexcept {
  switch (dtype) {
    case DType::boolean: return "BOOL";
    case DType::u8: return "U8";
    case DType::i8: return "I8";
    case DType::f8_e5m2: return "F8_E5M2";
    case DType::f8_e4m3: return "F8_E4M3";
    case DType::i16: return "I16";
    case DType::u16: return "U16";
    case DType::f16: return "F16";
    case DType::bf16: return "BF16";
    case DType::i32: return "I32";
    case DType::u32: return "U32";
    case DType::f32: return "F32";
    case DType::f64: return "F64";
    case DType::i64: return "I64";
    case DType::u64: return "U64";
  }
  return "unknown";
}

[[nodiscard]] constexpr std::optional<DType> dtype_from_name(std::string_view name) noexcept {
  for (int i = 0; i <= static_cast<int>(DType::u64); ++i) {
    if (to_string(static_cast<DType>(i)) == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

/// f64, f32, f16 or bf16: what `to_float` converts.
[[nodiscard]] constexpr bool is_float(DType dtype) noexcept {
  return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

/// An integer or a boolean: what `to_int64` converts (u64 where the value fits).
[[nodiscard]] constexpr bool is_integer(DType dtype) noexcept {
  return !is_float(dtype) && dtype != DType::f8_e5m2 && dtype != DType::f8_e4m3;
}

[[nodiscard]] constexpr float float_from_half(std::uint16_t half) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1fu;
  const std::uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0x1f) {  // infinity or NaN; the quiet bit is set as the hardware conversion does
    return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13) | (mantissa != 0 ? 0x00400000u : 0u));
  }
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

[[nodiscard]] constexpr std::uint16_t half_from_float(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and above round to infinity
  if (magnitude >= 0x38800000u) {  // normal: drop 13 bits, ties to even; a carry moves into the exponent as it should
    const std::uint32_t rounded = magnitude + 0x0fffu + ((magnitude >> 13) & 1u);
    return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
  }
  if (magnitude < 0x33000000u) return static_cast<std::uint16_t>(sign);  // below 2^-25
  const std::uint32_t shift = 126u - (magnitude >> 23);                  // 14 .. 24: how many bits a subnormal drops
  const std::uint32_t mantissa = (magnitude & 0x007fffffu) | 0x00800000u;
  const std::uint32_t half_ulp = 1u << (shift - 1);
  const std::uint32_t kept = mantissa >> shift;
  const std::uint32_t rest = mantissa & ((1u << shift) - 1u);
  return static_cast<std::uint16_t>(sign | (kept + (rest > half_ulp || (rest == half_ulp && (kept & 1u) != 0) ? 1u : 0u)));
}

[[nodiscard]] constexpr float float_from_bfloat16(std::uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

[[nodiscard]] constexpr std::uint16_t bfloat16_from_float(float value) noexcept {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

namespace detail {

/// Element `i` of unaligned little-endian storage.
template <class T>
[[nodiscard]] inline T load_element(const std::byte* bytes, std::size_t i) noexcept {
  static_assert(std::endian::native == std::endian::little, "stored tensors are little-endian");
  T value;
  std::memcpy(&value, bytes + i * sizeof(T), sizeof(T));
  return value;
}

template <class T>
inline void store_element(std::byte* bytes, std::size_t i, T value) noexcept {
  std::memcpy(bytes + i * sizeof(T), &value, sizeof(T));
}

#if NORMA_X86_DISPATCH
/// Converts whole groups of eight and says how many elements that were.
NORMA_TARGET_AVX2 inline std::size_t floats_from_halves_f16c(const std::byte* in, float* out, std::size_t count) noexcept {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 2 * i));
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(half));
  }
  return i;
}
NORMA_TARGET_AVX2 inline std::size_t halves_from_floats_f16c(const float* in, std::byte* out, std::size_t count) noexcept {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * i), half);
  }
  return i;
}
/// Every processor with AVX2 has F16C, which not every compiler's feature test knows by name.
inline bool has_f16c() noexcept { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

inline Status conversion_size_error(std::string_view function, DType dtype, std::size_t bytes, std::size_t count) {
  return {Errc::shape_mismatch, std::string(function) + ": " + std::to_string(bytes) + " bytes of " + std::string(to_string(dtype)) +
                                    ", expected " + std::to_string(count * static_cast<std::size_t>(size_of(dtype))) + " for " +
                                    std::to_string(count) + " elements"};
}

}  // namespace detail

/// Converts stored floating-point elements (unaligned, little-endian) to float. `f64` rounds to nearest.
/// Errors: unsupported for a type that is not floating-point; shape_mismatch when the sizes differ.
inline Status to_float(DType dtype, std::span<const std::byte> in, std::span<float> out) {
  if (!is_float(dtype)) {
    return {Errc::unsupported, "io::to_float: type " + std::string(to_string(dtype)) + ", expected F64, F32, F16 or BF16"};
  }
  const std::size_t count = out.size();
  if (in.size() != count * static_cast<std::size_t>(size_of(dtype))) {
    return detail::conversion_size_error("io::to_float", dtype, in.size(), count);
  }
  const std::byte* from = in.data();
  std::size_t i = 0;
  if (dtype == DType::f32) {
    if (count > 0) std::memcpy(out.data(), from, in.size());
  } else if (dtype == DType::f16) {
#if NORMA_X86_DISPATCH
    if (detail::has_f16c()) i = detail::floats_from_halves_f16c(from, out.data(), count);
#endif
    for (; i < count; ++i) out[i] = float_from_half(detail::load_element<std::uint16_t>(from, i));
  } else if (dtype == DType::bf16) {
    for (; i < count; ++i) out[i] = float_from_bfloat16(detail::load_element<std::uint16_t>(from, i));
  } else {
    for (; i < count; ++i) out[i] = static_cast<float>(detail::load_element<double>(from, i));
  }
  return {};
}

/// Converts floats to stored elements of a floating-point type; the mirror of `to_float`.
inline Status from_float(DType dtype, std::span<const float> in, std::span<std::byte> out) {
  if (!is_float(dtype)) {
    return {Errc::unsupported, "io::from_float: type " + std::string(to_string(dtype)) + ", expected F64, F32, F16 or BF16"};
  }
  const std::size_t count = in.size();
  if (out.size() != count * static_cast<std::size_t>(size_of(dtype))) {
    return detail::conversion_size_error("io::from_float", dtype, out.size(), count);
  }
  std::byte* to = out.data();
  std::size_t i = 0;
  if (dtype == DType::f32) {
    if (count > 0) std::memcpy(to, in.data(), out.size());
  } else if (dtype == DType::f16) {
#if NORMA_X86_DISPATCH
    if (detail::has_f16c()) i = detail::halves_from_floats_f16c(in.data(), to, count);
#endif
    for (; i < count; ++i) detail::store_element(to, i, half_from_float(in[i]));
  } else if (dtype == DType::bf16) {
    for (; i < count; ++i) detail::store_element(to, i, bfloat16_from_float(in[i]));
  } else {
    for (; i < count; ++i) detail::store_element(to, i, static_cast<double>(in[i]));
  }
  return {};
}

/// Converts stored integers or booleans to int64. A u64 beyond int64 is an error.
inline Status to_int64(DType dtype, std::span<const std::byte> in, std::span<std::int64_t> out) {
  if (!is_integer(dtype)) {
    return {Errc::unsupported, "io::to_int64: type " + std::string(to_string(dtype)) + ", expected an integer type or BOOL"};
  }
  const std::size_t count = out.size();
  if (in.size() != count * static_cast<std::size_t>(size_of(dtype))) {
    return detail::conversion_size_error("io::to_int64", dtype, in.size(), count);
  }
  const auto convert = [&]<class T>(T) {
    for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<std::int64_t>(detail::load_element<T>(in.data(), i));
  };
  switch (dtype) {
    case DType::i64: convert(std::int64_t{}); break;
    case DType::i32: convert(std::int32_t{}); break;
    case DType::i16: convert(std::int16_t{}); break;
    case DType::i8: convert(std::int8_t{}); break;
    case DType::u32: convert(std::uint32_t{}); break;
    case DType::u16: convert(std::uint16_t{}); break;
    case DType::u64:
      for (std::size_t i = 0; i < count; ++i) {
        if ((detail::load_element<std::uint64_t>(in.data(), i) >> 63) != 0) {
          return {Errc::unsupported, "io::to_int64: element " + std::to_string(i) + " of type U64 is larger than int64 can hold"};
        }
      }
      convert(std::uint64_t{});
      break;
    default: convert(std::uint8_t{});
  }
  return {};
}

}  // namespace norma::io
