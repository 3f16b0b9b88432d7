// Vector loops of the search. See linalg/detail/for_each_instruction_set.inl for the macros.
namespace norma::simd::NORMA_SIMD {

// Bit i says whether lane i of a is not above lane i of b. NaN never is.
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE std::uint32_t not_above(Vec a, Vec b) {
#if NORMA_X86_DISPATCH && NORMA_SIMD_WIDTH == 16
  return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ);
#elif NORMA_X86_DISPATCH && NORMA_SIMD_WIDTH == 8
  return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ)));
#elif NORMA_HAS_VECTOR_EXTENSION
  const auto lanes = a <= b;
  std::uint32_t bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= static_cast<std::uint32_t>(lanes[i] != 0) << i;
  return bits;
#else
  return a <= b ? 1u : 0u;
#endif
}

// Bit c of found[r] is set where the lower bound low[c] - 2 tile[r, c] - slack[c] norm[r] is not above limit[r]; the result has bit r set
// where found[r] is not 0. Both sides of a tile are at most 32 long.
NORMA_SIMD_TARGET inline std::uint32_t tile_candidates(const float* tile, std::int64_t rows, std::int64_t width, const float* low, const float* slack,
                                                       const float* norm, const float* limit, std::uint32_t* found) {
  std::uint32_t any = 0;
  for (std::int64_t r = 0; r < rows; ++r, tile += width) {
    const Vec norms = broadcast(norm[r]), limits = broadcast(limit[r]);
    std::uint32_t bits = 0;
    for (std::int64_t c = 0; c < width; c += kWidth) bits |= not_above(load(low + c) - 2.0f * load(tile + c) - load(slack + c) * norms, limits) << c;
    found[r] = bits;
    any |= static_cast<std::uint32_t>(bits != 0) << r;
  }
  return any;
}

#if NORMA_HAS_VECTOR_EXTENSION
typedef float SearchNarrow __attribute__((vector_size(2 * NORMA_SIMD_WIDTH), aligned(4), may_alias));
typedef double SearchWide __attribute__((vector_size(4 * NORMA_SIMD_WIDTH)));
#endif

// sum (a - b)^2 over [from, from + count), count a multiple of a vector, in double: the differences are correctly rounded doubles.
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE double sum_of_squares(const float* a, const float* b, std::int64_t from, std::int64_t count) {
  double sum = 0.0;
#if NORMA_HAS_VECTOR_EXTENSION
  constexpr int half = kWidth / 2;
  SearchWide even{}, odd{};
  for (std::int64_t i = from; i < from + count; i += kWidth) {
    const SearchWide d0 = __builtin_convertvector(*reinterpret_cast<const SearchNarrow*>(a + i), SearchWide) -
                          __builtin_convertvector(*reinterpret_cast<const SearchNarrow*>(b + i), SearchWide);
    const SearchWide d1 = __builtin_convertvector(*reinterpret_cast<const SearchNarrow*>(a + i + half), SearchWide) -
                          __builtin_convertvector(*reinterpret_cast<const SearchNarrow*>(b + i + half), SearchWide);
    even += d0 * d0;
    odd += d1 * d1;
  }
  even += odd;
  for (int l = 0; l < half; ++l) sum += even[l];
#else
  for (std::int64_t i = from; i < from + count; ++i) {
    const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += difference * difference;
  }
#endif
  return sum;
}

// A lower bound of sum (a - b)^2, from float arithmetic. It stops early above `limit`. Infinity where float overflows.
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE float rough_squares(const float* a, const float* b, std::int64_t count, float limit) {
  constexpr std::int64_t kPiece = 256;
  Vec sum{};
  std::int64_t i = 0;
  for (; i + kPiece <= count; i += kPiece) {
    Vec other{};
    for (std::int64_t j = i; j < i + kPiece; j += 2 * kWidth) {
      const Vec d0 = load(a + j) - load(b + j), d1 = load(a + j + kWidth) - load(b + j + kWidth);
      sum += d0 * d0;
      other += d1 * d1;
    }
    sum += other;
    if (sum_of_lanes(sum) > limit) return sum_of_lanes(sum);
  }
  for (; i + kWidth <= count; i += kWidth) {
    const Vec difference = load(a + i) - load(b + i);
    sum += difference * difference;
  }
  float total = sum_of_lanes(sum);
  for (; i < count; ++i) total += (a[i] - b[i]) * (a[i] - b[i]);
  return total;
}

// sum (a - b)^2 in double. A pair that is farther apart than `limit` may come back as any number above it.
NORMA_SIMD_TARGET inline double squared_distance(const float* a, const float* b, std::int64_t count, double limit) {
  // Differences, squares and at most `count` additions of what is not negative round down by (count + 3) units at most.
  const double room = 1.0 + 2.0 * static_cast<double>(count + 4) * search::detail::kRoundingUnit;
  if (limit * room < search::detail::kLargest && limit > search::detail::kSmallest) {
    const double rough = static_cast<double>(rough_squares(a, b, count, static_cast<float>(limit * room)));
    if (rough > limit * room && rough < search::detail::kLargest) return rough;
  }
  const std::int64_t whole = count / kWidth * kWidth;
  double sum = sum_of_squares(a, b, 0, whole);
  for (std::int64_t i = whole; i < count; ++i) {
    const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    sum += difference * difference;
  }
  return sum;
}

inline constexpr search::detail::SearchKernels kSearchKernels{&tile_candidates, &squared_distance};

}  // namespace norma::simd::NORMA_SIMD
