// Gathering and centring of a batch of vectors. See for_each_instruction_set.inl for the macros.
namespace norma::simd::NORMA_SIMD {

// Past the caches, to an address that a vector is aligned to.
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void store_past_caches(float* p, Vec v) {
#if NORMA_X86_DISPATCH && NORMA_SIMD_WIDTH == 16
  _mm512_stream_ps(p, v);
#elif NORMA_X86_DISPATCH && NORMA_SIMD_WIDTH == 8
  _mm256_stream_ps(p, v);
#elif NORMA_X86_DISPATCH
  _mm_stream_ps(p, v);
#else
  store(p, v);
#endif
}

// to[count] = from[count]. Whether all of it is finite: looks at the bits, so that it also works under fast-math. `past_caches`: `to` is not read for
// long and starts at a multiple of 64 bytes.
NORMA_SIMD_TARGET inline bool copy_finite(const float* from, std::int64_t count, float* to, bool past_caches) {
  constexpr std::uint32_t kExponent = 0x7f800000u, kLowest = 0x00800000u;  // their sum has the sign bit set
  std::int64_t i = 0;
  Bits found{};
  if (past_caches) {
    for (; i + kWidth <= count; i += kWidth) {
      const Vec v = load(from + i);
      found |= (__builtin_bit_cast(Bits, v) & kExponent) + kLowest;
      store_past_caches(to + i, v);
    }
#if NORMA_X86_DISPATCH
    _mm_sfence();
#endif
  } else {
    for (; i + kWidth <= count; i += kWidth) {
      const Vec v = load(from + i);
      found |= (__builtin_bit_cast(Bits, v) & kExponent) + kLowest;
      store(to + i, v);
    }
  }
  std::uint32_t lanes[kWidth];
  std::memcpy(lanes, &found, sizeof(lanes));
  std::uint32_t bad = 0;
  for (int l = 0; l < kWidth; ++l) bad |= lanes[l];
  for (; i < count; ++i) {
    bad |= (std::bit_cast<std::uint32_t>(from[i]) & kExponent) + kLowest;
    to[i] = from[i];
  }
  return (bad & 0x80000000u) == 0;
}

#if NORMA_HAS_VECTOR_EXTENSION
typedef float CentreNarrow __attribute__((vector_size(2 * NORMA_SIMD_WIDTH), aligned(4), may_alias));
typedef double CentreWide __attribute__((vector_size(4 * NORMA_SIMD_WIDTH), aligned(8), may_alias));
inline constexpr std::int64_t kCentreLanes = kWidth / 2;

NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE CentreWide widened(const float* p) {
  return __builtin_convertvector(*reinterpret_cast<const CentreNarrow*>(p), CentreWide);
}
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void split_mean(CentreWide value, double* mean, float* rounded, float* rest) {
  *reinterpret_cast<CentreWide*>(mean) = value;
  const CentreNarrow high = __builtin_convertvector(value, CentreNarrow);
  *reinterpret_cast<CentreNarrow*>(rounded) = high;
  *reinterpret_cast<CentreNarrow*>(rest) = __builtin_convertvector(value - __builtin_convertvector(high, CentreWide), CentreNarrow);
}
#endif

// mean[dims] = column means of rows [count, dims], which lie `row_stride` apart, summed in double; centred[count, dims] in rows of `stride`
// = rows - mean, by the mean rounded to float and then by what the rounding left, so that the two roundings are of the size of a deviation.
// Two vectors of columns at a time, copied first: rows of images may lie where few sets of a cache hold them. The last ones are done with
// whole vectors too, some of them twice.
NORMA_SIMD_TARGET inline void centre_rows(const float* rows, std::int64_t row_stride, std::int64_t count, std::int64_t dims, double* mean,
                                          float* centred, std::int64_t stride) {
  const double images = static_cast<double>(count);
  std::int64_t j = 0;
#if NORMA_HAS_VECTOR_EXTENSION
  constexpr std::int64_t kColumns = 2 * kWidth;
  for (; j < dims && dims >= kColumns; j += kColumns) {
    if (j + kColumns > dims) j = dims - kColumns;
    const float* row = rows + j;
    float* to = centred + j;
    CentreWide s0{}, s1{}, s2{}, s3{};
    for (std::int64_t n = 0; n < count; ++n, row += row_stride, to += stride) {
      store(to, load(row));
      store(to + kWidth, load(row + kWidth));
      s0 += widened(row);
      s1 += widened(row + kCentreLanes);
      s2 += widened(row + 2 * kCentreLanes);
      s3 += widened(row + 3 * kCentreLanes);
    }
    float rounded[kColumns], rest[kColumns];
    split_mean(s0 / images, mean + j, rounded, rest);
    split_mean(s1 / images, mean + j + kCentreLanes, rounded + kCentreLanes, rest + kCentreLanes);
    split_mean(s2 / images, mean + j + 2 * kCentreLanes, rounded + 2 * kCentreLanes, rest + 2 * kCentreLanes);
    split_mean(s3 / images, mean + j + 3 * kCentreLanes, rounded + 3 * kCentreLanes, rest + 3 * kCentreLanes);
    const Vec rounded0 = load(rounded), rounded1 = load(rounded + kWidth), rest0 = load(rest), rest1 = load(rest + kWidth);
    to = centred + j;
    for (std::int64_t n = 0; n < count; ++n, to += stride) {
      store(to, (load(to) - rounded0) - rest0);
      store(to + kWidth, (load(to + kWidth) - rounded1) - rest1);
    }
  }
#endif
  for (; j < dims; ++j) {
    double sum = 0.0;
    for (std::int64_t n = 0; n < count; ++n) sum += static_cast<double>(rows[n * row_stride + j]);
    mean[j] = sum / images;
    const float rounded = static_cast<float>(mean[j]), rest = static_cast<float>(mean[j] - static_cast<double>(rounded));
    for (std::int64_t n = 0; n < count; ++n) centred[n * stride + j] = (rows[n * row_stride + j] - rounded) - rest;
  }
}

}  // namespace norma::simd::NORMA_SIMD
