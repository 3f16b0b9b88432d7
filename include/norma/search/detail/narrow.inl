// Integer codes of rows and the register tile of their products. See linalg/detail/for_each_instruction_set.inl for the macros.
#if NORMA_X86_DISPATCH && NORMA_SIMD_WIDTH >= 8
#if NORMA_SIMD_WIDTH == 16
#define NORMA_NARROW_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
#else
#define NORMA_NARROW_TARGET NORMA_SIMD_TARGET
#endif
namespace norma::simd::NORMA_SIMD {

#if NORMA_SIMD_WIDTH == 16
using NarrowVec = __m512i;
inline constexpr int kNarrowRows = 14;
inline constexpr int kQueryLevels = 127;  // 8 bits
inline constexpr int kBankLevels = 127;
NORMA_NARROW_TARGET NORMA_ALWAYS_INLINE NarrowVec narrow_load(const void* p) { return _mm512_load_si512(p); }
NORMA_NARROW_TARGET NORMA_ALWAYS_INLINE void narrow_store(void* p, NarrowVec v) { _mm512_store_si512(p, v); }
// Four codes of a row, repeated.
NORMA_NARROW_TARGET NORMA_ALWAYS_INLINE NarrowVec narrow_repeat(const std::uint8_t* p) {
  std::int32_t four;
  std::memcpy(&four, p, sizeof four);
  return _mm512_set1_epi32(four);
}
#else
using NarrowVec = __m256i;
inline constexpr int kNarrowRows = 3;
// Four products must fit 16 bits: 4 * 127 * 64 < 2^15.
inline constexpr int kQueryLevels = 63;  // 7 bits
inline constexpr int kBankLevels = 64;
NORMA_NARROW_TARGET NORMA_ALWAYS_INLINE NarrowVec narrow_load(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }
NORMA_NARROW_TARGET NORMA_ALWAYS_INLINE void narrow_store(void* p, NarrowVec v) { _mm256_store_si256(static_cast<__m256i*>(p), v); }
NORMA_NARROW_TARGET NORMA_ALWAYS_INLINE NarrowVec narrow_repeat(const std::uint8_t* p) {
  std::int32_t four;
  std::memcpy(&four, p, sizeof four);
  return _mm256_set1_epi32(four);
}
// sum + eight products a lane. A function of its own keeps the instructions of one sum together, which g++ otherwise sorts by kind: 40 % slower.
NORMA_NARROW_TARGET NORMA_ALWAYS_INLINE NarrowVec narrow_add(NarrowVec sum, NarrowVec a0, NarrowVec a1, NarrowVec b0, NarrowVec b1) {
  const NarrowVec pairs = _mm256_add_epi16(_mm256_maddubs_epi16(a0, b0), _mm256_maddubs_epi16(a1, b1));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif

// tile[rows, kPanel] = start[kPanel] + a[rows, 8 steps] * panel. Accumulators as in linalg/detail/gemm_kernels.inl.
template <std::size_t... R>
NORMA_NARROW_TARGET inline void narrow_tile_of(std::index_sequence<R...>, const std::uint8_t* NORMA_RESTRICT a, std::int64_t stride,
                                               const std::int8_t* NORMA_RESTRICT panel, std::int64_t steps, const std::int32_t* start,
                                               std::int32_t* NORMA_RESTRICT tile) {
  constexpr std::size_t kRows = sizeof...(R);
  NarrowVec left[kRows], right[kRows];
  const std::uint8_t* base[kRows];
  ((left[R] = narrow_load(start), right[R] = narrow_load(start + kWidth), base[R] = a + static_cast<std::int64_t>(R) * stride), ...);
#if NORMA_SIMD_WIDTH == 16
  for (std::int64_t i = 0; i < 2 * steps; ++i) {
    const NarrowVec b0 = narrow_load(panel), b1 = narrow_load(panel + 64);
    panel += 128;
    ((left[R] = _mm512_dpbusd_epi32(left[R], narrow_repeat(base[R / 3 * 3] + static_cast<std::int64_t>(R % 3) * stride), b0),
      right[R] = _mm512_dpbusd_epi32(right[R], narrow_repeat(base[R / 3 * 3] + static_cast<std::int64_t>(R % 3) * stride), b1)),
     ...);
    ((R % 3 == 0 ? void(base[R] += 4) : void()), ...);
  }
#else
  for (std::int64_t i = 0; i < steps; ++i) {
    const NarrowVec b0 = narrow_load(panel), b1 = narrow_load(panel + 32), b2 = narrow_load(panel + 64), b3 = narrow_load(panel + 96);
    panel += 128;
    ((left[R] = narrow_add(left[R], narrow_repeat(base[R / 3 * 3] + static_cast<std::int64_t>(R % 3) * stride),
                           narrow_repeat(base[R / 3 * 3] + static_cast<std::int64_t>(R % 3) * stride + 4), b0, b2),
      right[R] = narrow_add(right[R], narrow_repeat(base[R / 3 * 3] + static_cast<std::int64_t>(R % 3) * stride),
                            narrow_repeat(base[R / 3 * 3] + static_cast<std::int64_t>(R % 3) * stride + 4), b1, b3)),
     ...);
    ((R % 3 == 0 ? void(base[R] += 8) : void()), ...);
  }
#endif
  ((narrow_store(tile + static_cast<std::int64_t>(R) * 2 * kWidth, left[R]), narrow_store(tile + static_cast<std::int64_t>(R) * 2 * kWidth + kWidth, right[R])),
   ...);
}
template <std::size_t Rows>
NORMA_NARROW_TARGET inline void narrow_tile(const std::uint8_t* a, std::int64_t stride, const std::int8_t* panel, std::int64_t steps, const std::int32_t* start,
                                            std::int32_t* tile) {
  narrow_tile_of(std::make_index_sequence<Rows>{}, a, stride, panel, steps, start, tile);
}

// sum a[i] b[i]; count a multiple of 64, rows aligned to 64 bytes.
NORMA_NARROW_TARGET inline std::int32_t narrow_product(const std::uint8_t* a, const std::int8_t* b, std::int64_t count) {
  NarrowVec sum{};
#if NORMA_SIMD_WIDTH == 16
  for (std::int64_t i = 0; i < count; i += 64) sum = _mm512_dpbusd_epi32(sum, narrow_load(a + i), narrow_load(b + i));
#else
  for (std::int64_t i = 0; i < count; i += 64) sum = narrow_add(sum, narrow_load(a + i), narrow_load(a + i + 32), narrow_load(b + i), narrow_load(b + i + 32));
#endif
  alignas(64) std::int32_t lanes[kWidth];
  narrow_store(lanes, sum);
  std::int32_t total = 0;
  for (int l = 0; l < kWidth; ++l) total += lanes[l];
  return total;
}

typedef std::int32_t NarrowInts __attribute__((vector_size(4 * NORMA_SIMD_WIDTH), aligned(4), may_alias));

// Bit c of found[r] is set where low[c] - step[r] scale[c] tile[r, c] is not above bar[r]; the result has bit r set where found[r] is not 0.
NORMA_SIMD_TARGET inline std::uint32_t narrow_candidates(const std::int32_t* tile, std::int64_t rows, const float* low, const float* scale, const float* step,
                                                         const float* bar, std::uint32_t* found) {
  std::uint32_t any = 0;
  const Vec low0 = load(low), low1 = load(low + kWidth), scale0 = load(scale), scale1 = load(scale + kWidth);
  for (std::int64_t r = 0; r < rows; ++r, tile += 2 * kWidth) {
    const Vec steps = broadcast(step[r]), bars = broadcast(bar[r]);
    const Vec left = __builtin_convertvector(*reinterpret_cast<const NarrowInts*>(tile), Vec);
    const Vec right = __builtin_convertvector(*reinterpret_cast<const NarrowInts*>(tile + kWidth), Vec);
    const std::uint32_t bits = not_above(low0 - left * scale0 * steps, bars) | not_above(low1 - right * scale1 * steps, bars) << kWidth;
    found[r] = bits;
    any |= static_cast<std::uint32_t>(bits != 0) << r;
  }
  return any;
}

typedef std::int32_t NarrowHalf __attribute__((vector_size(2 * NORMA_SIMD_WIDTH)));
typedef std::uint8_t NarrowBytes __attribute__((vector_size(NORMA_SIMD_WIDTH / 2)));

// Codes of row - centre, `levels` for its largest element. All sums are in double.
NORMA_SIMD_TARGET inline search::detail::NarrowRow narrow_code(const float* row, const float* centre, std::int64_t count, int levels, int offset,
                                                               std::uint8_t* codes) {
  constexpr int half = kWidth / 2;
  constexpr double kShift = 0x1.8p52;  // adding it rounds to an integer
  const std::int64_t whole = count / half * half;
  search::detail::NarrowRow out{};
  SearchWide squares{}, most{};
  for (std::int64_t i = 0; i < whole; i += half) {
    const SearchWide x = __builtin_convertvector(*reinterpret_cast<const SearchNarrow*>(row + i), SearchWide) -
                         __builtin_convertvector(*reinterpret_cast<const SearchNarrow*>(centre + i), SearchWide);
    const SearchWide square = x * x;
    squares += square;
    most = square > most ? square : most;
  }
  double largest = 0.0;
  for (int l = 0; l < half; ++l) {
    out.squares += squares[l];
    if (most[l] > largest) largest = most[l];
  }
  for (std::int64_t i = whole; i < count; ++i) {
    const double x = static_cast<double>(row[i]) - static_cast<double>(centre[i]);
    out.squares += x * x;
    if (x * x > largest) largest = x * x;
  }
  largest = __builtin_sqrt(largest) * (1.0 + 4.0 * search::detail::kRoundingUnit);
  // Rows of nearly nothing, and what is not finite, are coded as 0: then all of them is error.
  const bool coded = largest > 1e-30 && out.squares < 3.5e38;
  out.scale = coded ? static_cast<float>(largest / levels) : 0.0f;
  const double scale = static_cast<double>(out.scale), inverse = coded ? 1.0 / scale : 0.0;
  if (!coded) {
    out.error = out.squares;
    for (std::int64_t i = 0; i < count; ++i) codes[i] = static_cast<std::uint8_t>(offset);
    return out;
  }
  SearchWide error{}, length{}, sum{};
  for (std::int64_t i = 0; i < whole; i += half) {
    const SearchWide x = __builtin_convertvector(*reinterpret_cast<const SearchNarrow*>(row + i), SearchWide) -
                         __builtin_convertvector(*reinterpret_cast<const SearchNarrow*>(centre + i), SearchWide);
    const SearchWide code = (x * inverse + kShift) - kShift, rest = x - code * scale;
    error += rest * rest;
    length += code * code;
    sum += code;
    const NarrowBytes bytes = __builtin_convertvector(__builtin_convertvector(code, NarrowHalf) + offset, NarrowBytes);
    std::memcpy(codes + i, &bytes, sizeof bytes);
  }
  double total = 0.0;
  for (int l = 0; l < half; ++l) {
    out.error += error[l];
    out.length += length[l];
    total += sum[l];
  }
  for (std::int64_t i = whole; i < count; ++i) {
    const double x = static_cast<double>(row[i]) - static_cast<double>(centre[i]);
    const double code = (x * inverse + kShift) - kShift, rest = x - code * scale;
    out.error += rest * rest;
    out.length += code * code;
    total += code;
    codes[i] = static_cast<std::uint8_t>(static_cast<int>(code) + offset);
  }
  out.length *= scale * scale;
  out.sum = static_cast<std::int32_t>(total);
  return out;
}

template <std::size_t... R>
constexpr search::detail::NarrowKernels make_narrow_kernels(std::index_sequence<R...>) {
  return {kNarrowRows, 2 * kWidth, kQueryLevels, kBankLevels, {nullptr, &narrow_tile<R + 1>...}, &narrow_candidates, &narrow_product, &narrow_code};
}
inline constexpr search::detail::NarrowKernels kNarrowKernels = make_narrow_kernels(std::make_index_sequence<kNarrowRows>{});

}  // namespace norma::simd::NORMA_SIMD
#undef NORMA_NARROW_TARGET
#endif
