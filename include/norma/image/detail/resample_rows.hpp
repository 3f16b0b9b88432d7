/// \file
/// The separable 8-bit resizer under `resize` and `preprocess`: weights of one axis, and a loop that streams a frame through a ring
/// of horizontally resized rows, so that a crop costs only its own rows and columns and memory depends on the output's width.
///
/// Pillow (ImagingResample): taps and weights in double, fixed point with 22 fraction bits, horizontal pass first, both passes rounded
/// and clamped to 8 bit. OpenCV INTER_LINEAR: two taps, 11 fraction bits, the row between the passes keeps 7 of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

#include <norma/config.hpp>
#include <norma/core/arena.hpp>
#include <norma/image/image.hpp>

#if NORMA_X86_DISPATCH
#include <immintrin.h>
#endif

namespace norma {

/// How an image changes its size. `pillow_*` are Pillow's resizers (anti-aliased except nearest), `opencv_*` are OpenCV's (two taps,
/// no anti-aliasing). Nearest differs too: Pillow takes floor((i + 0.5) * in / out), OpenCV floor(i * in / out).
enum class Interpolation : std::uint8_t {
  pillow_nearest,
  pillow_bilinear,
  pillow_bicubic,
  pillow_lanczos,
  opencv_nearest,
  opencv_bilinear
};

namespace image::detail {

inline constexpr int kPillowBits = 22;
inline constexpr int kOpenCvBits = 11;

constexpr bool is_nearest(Interpolation kind) noexcept {
  return kind == Interpolation::pillow_nearest || kind == Interpolation::opencv_nearest;
}

/// Radius of the filter in output pixels (input pixels when enlarging).
constexpr std::int64_t filter_support(Interpolation kind) noexcept {
  switch (kind) {
    case Interpolation::pillow_bilinear: return 1;
    case Interpolation::pillow_bicubic: return 2;
    case Interpolation::pillow_lanczos: return 3;
    default: return 0;
  }
}

/// Most taps that one output can have when at most `in` samples become at least `out`. One more than 2 * support + 1 absorbs the
/// rounding of the window's ends in double.
constexpr std::int64_t max_taps(Interpolation kind, std::int64_t in, std::int64_t out) noexcept {
  if (is_nearest(kind)) return 1;
  if (kind == Interpolation::opencv_bilinear) return 2;
  const std::int64_t support = filter_support(kind);
  const std::int64_t scaled = in > out ? (support * in + out - 1) / out : support;
  const std::int64_t taps = 2 * scaled + 2;
  return taps < in ? taps : in;
}

/// Weights of outputs [0, size) of one axis: output i is the sum over k < count[i] of weight[i * capacity + k] * input[first[i] + k].
struct AxisTaps {
  std::int32_t* first = nullptr;
  std::int32_t* count = nullptr;
  std::int32_t* weight = nullptr;
  double* work = nullptr;  // [capacity]
  std::int64_t size = 0;
  std::int64_t capacity = 0;

  [[nodiscard]] const std::int32_t* weights(std::int64_t i) const noexcept { return weight + i * capacity; }
};

constexpr std::size_t axis_bytes(std::int64_t size, std::int64_t capacity) noexcept {
  return 2 * arena_bytes<std::int32_t>(size) + arena_bytes<std::int32_t>(size * capacity) + arena_bytes<double>(capacity);
}

inline bool take_axis(Arena& arena, std::int64_t size, std::int64_t capacity, AxisTaps& axis) noexcept {
  axis.first = arena.take<std::int32_t>(size);
  axis.count = arena.take<std::int32_t>(size);
  axis.weight = arena.take<std::int32_t>(size * capacity);
  axis.work = arena.take<double>(capacity);
  axis.size = size;
  axis.capacity = capacity;
  return axis.first != nullptr && axis.count != nullptr && axis.weight != nullptr && axis.work != nullptr;
}

/// Sources of Pillow's nearest, output after output from `crop` on. The position is added up as Pillow does it, because its rounding
/// decides where a position falls on the border of two pixels.
class NearestAxis {
 public:
  NearestAxis(std::int64_t in, std::int64_t out, std::int64_t crop) noexcept
      : scale_(static_cast<double>(in) / static_cast<double>(out)), position_(scale_ * 0.5), last_(in - 1) {
    for (std::int64_t i = 0; i < crop; ++i) position_ += scale_;
  }
  std::int64_t next() noexcept {
    const auto source = static_cast<std::int64_t>(position_);
    position_ += scale_;
    return source < last_ ? source : last_;
  }

 private:
  double scale_;
  double position_;
  std::int64_t last_;
};

inline double filter_value(Interpolation kind, double x) noexcept {
  x = std::abs(x);
  switch (kind) {
    case Interpolation::pillow_bilinear: return x < 1.0 ? 1.0 - x : 0.0;
    case Interpolation::pillow_bicubic: {
      constexpr double a = -0.5;
      if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
      if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
      return 0.0;
    }
    case Interpolation::pillow_lanczos: {
      if (x >= 3.0) return 0.0;
      const auto sinc = [](double v) { return v == 0.0 ? 1.0 : std::sin(v * std::numbers::pi) / (v * std::numbers::pi); };
      return sinc(x) * sinc(x / 3.0);
    }
    default: return 0.0;
  }
}

/// Taps of outputs [crop, crop + axis.size) when `in` samples become `out`. Precondition: axis.capacity >= max_taps(kind, in, out).
inline void fill_axis(Interpolation kind, std::int64_t in, std::int64_t out, std::int64_t crop, AxisTaps& axis) noexcept {
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  switch (kind) {
    case Interpolation::pillow_nearest: {
      NearestAxis source(in, out, crop);
      for (std::int64_t i = 0; i < axis.size; ++i) {
        axis.first[i] = static_cast<std::int32_t>(source.next());
        axis.count[i] = 1;
        axis.weight[i * axis.capacity] = 1;
      }
      return;
    }
    case Interpolation::opencv_nearest: {
      for (std::int64_t i = 0; i < axis.size; ++i) {
        axis.first[i] = static_cast<std::int32_t>(std::min((i + crop) * in / out, in - 1));
        axis.count[i] = 1;
        axis.weight[i * axis.capacity] = 1;
      }
      return;
    }
    case Interpolation::opencv_bilinear: {
      for (std::int64_t i = 0; i < axis.size; ++i) {
        const auto position = static_cast<float>((static_cast<double>(i + crop) + 0.5) * scale - 0.5);
        auto first = static_cast<std::int64_t>(std::floor(position));
        float fraction = position - static_cast<float>(first);
        if (first < 0) first = 0, fraction = 0.0f;
        if (first >= in - 1) first = in - 1, fraction = 0.0f;
        const auto one = static_cast<std::int32_t>(1 << kOpenCvBits);
        const auto second = static_cast<std::int32_t>(std::lrint(fraction * static_cast<float>(one)));
        axis.first[i] = static_cast<std::int32_t>(first);
        axis.count[i] = second == 0 ? 1 : 2;
        axis.weight[i * axis.capacity] = one - second;
        if (second != 0) axis.weight[i * axis.capacity + 1] = second;
      }
      return;
    }
    default: break;
  }
  const double filter_scale = std::max(scale, 1.0);
  const double support = static_cast<double>(filter_support(kind)) * filter_scale;
  const double inverse = 1.0 / filter_scale;
  for (std::int64_t i = 0; i < axis.size; ++i) {
    const double centre = (static_cast<double>(i + crop) + 0.5) * scale;
    std::int64_t first = std::max<std::int64_t>(static_cast<std::int64_t>(centre - support + 0.5), 0);
    const std::int64_t last = std::min(static_cast<std::int64_t>(centre + support + 0.5), in);
    std::int64_t count = last - first;
    NORMA_EXPECTS(count >= 1 && count <= axis.capacity);
    double sum = 0.0;
    for (std::int64_t k = 0; k < count; ++k) {
      axis.work[k] = filter_value(kind, (static_cast<double>(k + first) - centre + 0.5) * inverse);
      sum += axis.work[k];
    }
    std::int32_t* weight = axis.weight + i * axis.capacity;
    for (std::int64_t k = 0; k < count; ++k) {
      const double w = (sum != 0.0 ? axis.work[k] / sum : axis.work[k]) * static_cast<double>(1 << kPillowBits);
      weight[k] = static_cast<std::int32_t>(w < 0.0 ? w - 0.5 : w + 0.5);
    }
    // Zero weights at the ends (always there when the size stays) would only cost time.
    while (count > 1 && weight[count - 1] == 0) --count;
    std::int64_t skip = 0;
    while (skip < count - 1 && weight[skip] == 0) ++skip;
    if (skip > 0) std::copy(weight + skip, weight + count, weight);
    axis.first[i] = static_cast<std::int32_t>(first + skip);
    axis.count[i] = static_cast<std::int32_t>(count - skip);
  }
}

NORMA_ALWAYS_INLINE std::uint8_t clip_8_bits(std::int32_t value) noexcept {
  return static_cast<std::uint8_t>(value < 0 ? 0 : (value > 255 ? 255 : value));
}

// Output pixel `i` of the horizontal pass. `in` points at source pixel 0; pixels are kStep bytes apart, the first kChannels count.
template <int kChannels, int kStep>
NORMA_ALWAYS_INLINE void pillow_output(const std::uint8_t* NORMA_RESTRICT in, const AxisTaps& axis, std::int64_t i,
                                       std::uint8_t* NORMA_RESTRICT out) noexcept {
  const std::uint8_t* NORMA_RESTRICT pixel = in + static_cast<std::int64_t>(axis.first[i]) * kStep;
  const std::int32_t* NORMA_RESTRICT weight = axis.weights(i);
  std::int32_t sum[kChannels];
  for (int c = 0; c < kChannels; ++c) sum[c] = 1 << (kPillowBits - 1);
  for (std::int32_t k = 0; k < axis.count[i]; ++k, pixel += kStep) {
    for (int c = 0; c < kChannels; ++c) sum[c] += pixel[c] * weight[k];
  }
  for (int c = 0; c < kChannels; ++c) out[i * kChannels + c] = clip_8_bits(sum[c] >> kPillowBits);
}

// One output row of the vertical pass: `count` rows of `n` bytes. Blocks of constant length are what every compiler vectorises.
NORMA_ALWAYS_INLINE void pillow_vertical_body(const std::uint8_t* const* rows, const std::int32_t* weight, std::int64_t count,
                                              std::int64_t n, std::uint8_t* NORMA_RESTRICT out) noexcept {
  constexpr std::int64_t kBlock = 32;
  std::int64_t x = 0;
  for (; x + kBlock <= n; x += kBlock) {
    std::int32_t sum[kBlock];
    for (std::int64_t j = 0; j < kBlock; ++j) sum[j] = 1 << (kPillowBits - 1);
    for (std::int64_t k = 0; k < count; ++k) {
      const std::uint8_t* NORMA_RESTRICT row = rows[k] + x;
      const std::int32_t w = weight[k];
      for (std::int64_t j = 0; j < kBlock; ++j) sum[j] += row[j] * w;
    }
    for (std::int64_t j = 0; j < kBlock; ++j) out[x + j] = clip_8_bits(sum[j] >> kPillowBits);
  }
  for (; x < n; ++x) {
    std::int32_t sum = 1 << (kPillowBits - 1);
    for (std::int64_t k = 0; k < count; ++k) sum += rows[k][x] * weight[k];
    out[x] = clip_8_bits(sum >> kPillowBits);
  }
}

inline void pillow_vertical_generic(const std::uint8_t* const* rows, const std::int32_t* weight, std::int64_t count, std::int64_t n,
                                    std::uint8_t* out) noexcept {
  pillow_vertical_body(rows, weight, count, n, out);
}
#if NORMA_X86_DISPATCH
NORMA_TARGET_AVX2 inline void pillow_vertical_avx2(const std::uint8_t* const* rows, const std::int32_t* weight, std::int64_t count,
                                                   std::int64_t n, std::uint8_t* out) noexcept {
  pillow_vertical_body(rows, weight, count, n, out);
}
#endif

/// Weights of a horizontal axis in the order that the vector loops read: for every four taps eight 16-bit numbers, the high halves of four
/// weights (weight >> 11) and their low halves (weight & 2047), zeros after the last tap. Products of 8-bit samples with either half can be
/// added in pairs by one instruction, and high * 2048 + low is the exact sum.
struct PackedWeights {
  std::int16_t* data = nullptr;  // [axis.size, stride]
  std::int64_t stride = 0;       // a multiple of 16: gray reads eight taps at a time

  [[nodiscard]] const std::int16_t* of(std::int64_t i) const noexcept { return data + i * stride; }
};

inline constexpr int kLowBits = 11;

constexpr std::int64_t packed_stride(std::int64_t capacity) noexcept { return (capacity + 7) / 8 * 16; }

inline void pack_weights(const AxisTaps& axis, const PackedWeights& packed) noexcept {
  for (std::int64_t i = 0; i < axis.size; ++i) {
    const std::int32_t* weight = axis.weights(i);
    std::int16_t* out = packed.data + i * packed.stride;
    for (std::int64_t k = 0; k < packed.stride / 2; ++k) {
      const std::int32_t w = k < axis.count[i] ? weight[k] : 0;
      out[k / 4 * 8 + k % 4] = static_cast<std::int16_t>(w >> kLowBits);
      out[k / 4 * 8 + 4 + k % 4] = static_cast<std::int16_t>(w & ((1 << kLowBits) - 1));
    }
  }
}

#if NORMA_X86_DISPATCH
// (high * 2048 + low + half) >> 22, clamped to 8 bits, in the low bytes.
NORMA_TARGET_AVX2 inline std::int32_t round_sums_avx2(__m128i high, __m128i low) noexcept {
  __m128i sum = _mm_add_epi32(_mm_slli_epi32(high, kLowBits), low);
  sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(1 << (kPillowBits - 1))), kPillowBits);
  sum = _mm_packs_epi32(sum, sum);
  return _mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));
}

NORMA_TARGET_AVX2 inline __m128i sum_lanes_avx2(__m128i v) noexcept {
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4E));
  return _mm_add_epi32(v, _mm_shuffle_epi32(v, 0xB1));
}

// Colour: four pixels a step. Loads 16 bytes at a time and stays below `end`; outputs too close to it take the plain loop.
// Writes one byte past the last pixel of `out`.
template <int kStep>
NORMA_TARGET_AVX2 inline void pillow_horizontal_colour_avx2(const std::uint8_t* in, const std::uint8_t* end, const AxisTaps& axis,
                                                            const PackedWeights& packed, std::uint8_t* out) noexcept {
  constexpr char s = kStep;
  constexpr char z = -128;  // makes a zero
  // Pixels 0 and 1 beside each other channel by channel in the low half, 2 and 3 in the high one, widened to 16 bits.
  const __m256i gather = _mm256_setr_epi8(0, z, s, z, 1, z, s + 1, z, 2, z, s + 2, z, z, z, z, z,  //
                                          2 * s, z, 3 * s, z, 2 * s + 1, z, 3 * s + 1, z, 2 * s + 2, z, 3 * s + 2, z, z, z, z, z);
  const __m256i high_pairs = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
  const __m256i low_pairs = _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3);
  for (std::int64_t i = 0; i < axis.size; ++i) {
    const std::int64_t steps = (axis.count[i] + 3) / 4;
    const std::uint8_t* pixel = in + static_cast<std::int64_t>(axis.first[i]) * kStep;
    if (end - pixel < (steps - 1) * 4 * kStep + 16) {
      pillow_output<3, kStep>(in, axis, i, out);
      continue;
    }
    const std::int16_t* weight = packed.of(i);
    __m256i high = _mm256_setzero_si256();
    __m256i low = _mm256_setzero_si256();
    for (std::int64_t g = 0; g < steps; ++g) {
      const __m256i samples = _mm256_shuffle_epi8(
          _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(pixel + g * 4 * kStep))), gather);
      const __m256i w = _mm256_castsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(weight + 8 * g)));
      high = _mm256_add_epi32(high, _mm256_madd_epi16(samples, _mm256_permutevar8x32_epi32(w, high_pairs)));
      low = _mm256_add_epi32(low, _mm256_madd_epi16(samples, _mm256_permutevar8x32_epi32(w, low_pairs)));
    }
    const std::int32_t rgb = round_sums_avx2(_mm_add_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)),
                                             _mm_add_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1)));
    std::memcpy(out + 3 * i, &rgb, 4);
  }
}

// Gray: eight pixels a step, below `end` as above.
NORMA_TARGET_AVX2 inline void pillow_horizontal_gray_avx2(const std::uint8_t* in, const std::uint8_t* end, const AxisTaps& axis,
                                                          const PackedWeights& packed, std::uint8_t* out) noexcept {
  for (std::int64_t i = 0; i < axis.size; ++i) {
    const std::int64_t steps = (axis.count[i] + 7) / 8;
    const std::uint8_t* pixel = in + axis.first[i];
    if (end - pixel < steps * 8) {
      pillow_output<1, 1>(in, axis, i, out);
      continue;
    }
    const std::int16_t* weight = packed.of(i);
    __m128i high = _mm_setzero_si128();
    __m128i low = _mm_setzero_si128();
    for (std::int64_t g = 0; g < steps; ++g) {
      const __m128i samples = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(pixel + 8 * g)));
      const __m128i first = _mm_load_si128(reinterpret_cast<const __m128i*>(weight + 16 * g));
      const __m128i second = _mm_load_si128(reinterpret_cast<const __m128i*>(weight + 16 * g + 8));
      high = _mm_add_epi32(high, _mm_madd_epi16(samples, _mm_unpacklo_epi64(first, second)));
      low = _mm_add_epi32(low, _mm_madd_epi16(samples, _mm_unpackhi_epi64(first, second)));
    }
    out[i] = static_cast<std::uint8_t>(round_sums_avx2(sum_lanes_avx2(high), sum_lanes_avx2(low)) & 0xFF);
  }
}
#endif

/// One row through the horizontal pass. `in` points at source pixel 0, `end` past the last readable byte.
template <class Row>
using HorizontalPass = void (*)(const std::uint8_t* in, const std::uint8_t* end, const AxisTaps& axis, const PackedWeights& packed,
                                Row* out) noexcept;

struct PillowPasses {
  using Row = std::uint8_t;  // a horizontally resized sample
  static constexpr bool kPacked = NORMA_X86_DISPATCH != 0;
  template <int kChannels, int kStep>
  static void horizontal(const std::uint8_t* in, [[maybe_unused]] const std::uint8_t* end, const AxisTaps& axis,
                         [[maybe_unused]] const PackedWeights& packed, Row* out) noexcept {
#if NORMA_X86_DISPATCH
    if (__builtin_cpu_supports("avx2")) {
      if constexpr (kChannels == 1)
        return pillow_horizontal_gray_avx2(in, end, axis, packed, out);
      else
        return pillow_horizontal_colour_avx2<kStep>(in, end, axis, packed, out);
    }
#endif
    for (std::int64_t i = 0; i < axis.size; ++i) pillow_output<kChannels, kStep>(in, axis, i, out);
  }
  static void vertical(const Row* const* rows, const std::int32_t* weight, std::int64_t count, std::int64_t n, std::uint8_t* out) noexcept {
#if NORMA_X86_DISPATCH
    if (__builtin_cpu_supports("avx2")) return pillow_vertical_avx2(rows, weight, count, n, out);
#endif
    pillow_vertical_generic(rows, weight, count, n, out);
  }
};

struct OpenCvPasses {
  using Row = std::uint16_t;
  static constexpr bool kPacked = false;
  template <int kChannels, int kStep>
  static void horizontal(const std::uint8_t* in, const std::uint8_t*, const AxisTaps& axis, const PackedWeights&, Row* out) noexcept {
    for (std::int64_t i = 0; i < axis.size; ++i) {
      const std::uint8_t* pixel = in + static_cast<std::int64_t>(axis.first[i]) * kStep;
      const std::int32_t* weight = axis.weights(i);
      const bool two = axis.count[i] == 2;
      for (int c = 0; c < kChannels; ++c) {
        const std::int32_t sum = pixel[c] * weight[0] + (two ? pixel[kStep + c] * weight[1] : 0);
        out[i * kChannels + c] = static_cast<Row>(sum >> 4);
      }
    }
  }
  static void vertical(const Row* const* rows, const std::int32_t* weight, std::int64_t count, std::int64_t n, std::uint8_t* out) noexcept {
    const Row* a = rows[0];
    const Row* b = rows[count - 1];
    const std::int32_t wa = weight[0];
    const std::int32_t wb = count == 2 ? weight[1] : 0;
    for (std::int64_t x = 0; x < n; ++x) { out[x] = clip_8_bits((((a[x] * wa) >> 16) + ((b[x] * wb) >> 16) + 2) >> 2); }
  }
};

/// What `resample_rows` works with besides the two axes.
struct RowScratch {
  std::byte* ring = nullptr;  // [ring_rows, row_bytes]
  std::int64_t ring_rows = 0;
  std::int64_t row_bytes = 0;
  const void** rows = nullptr;     // [ring_rows]
  std::uint8_t* narrow = nullptr;  // [frame width], for frames with more than 8 bits
  std::uint8_t* out = nullptr;     // [output width, 3]
  PackedWeights packed;
};

constexpr std::int64_t ring_row_bytes(std::int64_t out_width) noexcept {
  // 16-bit samples of three channels; a multiple of the alignment keeps rows apart.
  return static_cast<std::int64_t>(arena_bytes<std::uint16_t>(out_width * 3));
}

constexpr std::size_t row_scratch_bytes(std::int64_t out_width, std::int64_t horizontal_taps, std::int64_t vertical_taps,
                                        std::int64_t max_width) noexcept {
  return arena_bytes<std::byte>(vertical_taps * ring_row_bytes(out_width)) + arena_bytes<const void*>(vertical_taps) +
         arena_bytes<std::uint8_t>(max_width) + arena_bytes<std::uint8_t>(out_width * 3) +
         arena_bytes<std::int16_t>(out_width * packed_stride(horizontal_taps));
}

inline bool take_row_scratch(Arena& arena, std::int64_t out_width, std::int64_t horizontal_taps, std::int64_t vertical_taps,
                             std::int64_t max_width, RowScratch& scratch) noexcept {
  scratch.ring_rows = vertical_taps;
  scratch.row_bytes = ring_row_bytes(out_width);
  scratch.ring = arena.take<std::byte>(vertical_taps * scratch.row_bytes);
  scratch.rows = arena.take<const void*>(vertical_taps);
  scratch.narrow = arena.take<std::uint8_t>(max_width);
  scratch.out = arena.take<std::uint8_t>(out_width * 3);
  scratch.packed.stride = packed_stride(horizontal_taps);
  scratch.packed.data = arena.take<std::int16_t>(out_width * scratch.packed.stride);
  return scratch.ring != nullptr && scratch.rows != nullptr && scratch.narrow != nullptr && scratch.out != nullptr &&
         scratch.packed.data != nullptr;
}

/// Source row `y` as bytes that a pass can read: the frame's own, or narrowed to 8 bit.
inline const std::uint8_t* readable_row(const ImageView& frame, std::int64_t y, std::int64_t first, std::int64_t last,
                                        const RowScratch& scratch) noexcept {
  if (bytes_per_pixel(frame.format) != 2) return frame.row(y);
  narrow_gray_row(frame, y, first, last - first, scratch.narrow + first);
  return scratch.narrow;
}

template <class Passes, class Sink>
void resample_filtered(const ImageView& frame, const AxisTaps& horizontal, const AxisTaps& vertical, const RowScratch& scratch,
                       Sink& sink) {
  using Row = typename Passes::Row;
  const std::int64_t step = bytes_per_pixel(frame.format) == 2 ? 1 : bytes_per_pixel(frame.format);
  const std::int64_t channels = colour_channels(frame.format);
  HorizontalPass<Row> pass = &Passes::template horizontal<1, 1>;
  if (step == 3) pass = &Passes::template horizontal<3, 3>;
  if (step == 4) pass = &Passes::template horizontal<3, 4>;
  const std::int64_t left = horizontal.first[0];
  const std::int64_t right = horizontal.first[horizontal.size - 1] + horizontal.count[horizontal.size - 1];
  if constexpr (Passes::kPacked) pack_weights(horizontal, scratch.packed);
  std::int64_t ready = 0;  // rows below this one have been through the horizontal pass, or are not needed
  const auto slot = [&](std::int64_t y) { return reinterpret_cast<Row*>(scratch.ring + y % scratch.ring_rows * scratch.row_bytes); };
  const auto rows = reinterpret_cast<const Row**>(scratch.rows);
  for (std::int64_t i = 0; i < vertical.size; ++i) {
    const std::int64_t first = vertical.first[i];
    const std::int64_t count = vertical.count[i];
    for (ready = std::max(ready, first); ready < first + count; ++ready) {
      const std::uint8_t* in = readable_row(frame, ready, left, right, scratch);
      const std::uint8_t* end = in + (in == scratch.narrow ? right : frame.width * step);
      pass(in, end, horizontal, scratch.packed, slot(ready));
    }
    for (std::int64_t k = 0; k < count; ++k) rows[k] = slot(first + k);
    Passes::vertical(rows, vertical.weights(i), count, horizontal.size * channels, scratch.out);
    sink(i, static_cast<const std::uint8_t*>(scratch.out));
  }
}

template <class Sink>
void resample_nearest(const ImageView& frame, const AxisTaps& horizontal, const AxisTaps& vertical, const RowScratch& scratch, Sink& sink) {
  const std::int64_t step = bytes_per_pixel(frame.format) == 2 ? 1 : bytes_per_pixel(frame.format);
  const std::int64_t channels = colour_channels(frame.format);
  const std::int64_t left = horizontal.first[0];
  const std::int64_t right = horizontal.first[horizontal.size - 1] + 1;
  for (std::int64_t i = 0; i < vertical.size; ++i) {
    if (i == 0 || vertical.first[i] != vertical.first[i - 1]) {
      const std::uint8_t* in = readable_row(frame, vertical.first[i], left, right, scratch);
      for (std::int64_t x = 0; x < horizontal.size; ++x) {
        const std::uint8_t* pixel = in + horizontal.first[x] * step;
        for (std::int64_t c = 0; c < channels; ++c) scratch.out[x * channels + c] = pixel[c];
      }
    }
    sink(i, static_cast<const std::uint8_t*>(scratch.out));
  }
}

/// Calls `sink(i, row)` for every output row in order: `row` has horizontal.size pixels of colour_channels(frame.format) bytes, in the
/// frame's own channel order. Weights come from `fill_axis` with the same `kind`.
template <class Sink>
void resample_rows(Interpolation kind, const ImageView& frame, const AxisTaps& horizontal, const AxisTaps& vertical,
                   const RowScratch& scratch, Sink&& sink) {
  if (is_nearest(kind)) return resample_nearest(frame, horizontal, vertical, scratch, sink);
  if (kind == Interpolation::opencv_bilinear) return resample_filtered<OpenCvPasses>(frame, horizontal, vertical, scratch, sink);
  resample_filtered<PillowPasses>(frame, horizontal, vertical, scratch, sink);
}

}  // namespace image::detail
}  // namespace norma
