// Centring of a batch of vectors. See for_each_instruction_set.inl for the macros.
namespace norma::simd::NORMA_SIMD {

#if NORMA_HAS_VECTOR_EXTENSION
typedef float CentreNarrow __attribute__((vector_size(2 * NORMA_SIMD_WIDTH), aligned(4), may_alias));
typedef double CentreWide __attribute__((vector_size(4 * NORMA_SIMD_WIDTH), aligned(8), may_alias));
inline constexpr std::int64_t kCentreLanes = kWidth / 2;
#endif

// mean[dims] = column means of rows [count, dims], summed in double; centred[count, dims] in rows of `stride` = rows - mean, rounded once.
// Row after row, as they lie in memory.
NORMA_SIMD_TARGET inline void centre_rows(const float* rows, std::int64_t count, std::int64_t dims, double* mean, float* centred, std::int64_t stride) {
  for (std::int64_t j = 0; j < dims; ++j) mean[j] = 0.0;
  for (std::int64_t n = 0; n < count; ++n) {
    const float* const row = rows + n * dims;
    std::int64_t j = 0;
#if NORMA_HAS_VECTOR_EXTENSION
    for (; j + kCentreLanes <= dims; j += kCentreLanes) {
      *reinterpret_cast<CentreWide*>(mean + j) += __builtin_convertvector(*reinterpret_cast<const CentreNarrow*>(row + j), CentreWide);
    }
#endif
    for (; j < dims; ++j) mean[j] += static_cast<double>(row[j]);
  }
  for (std::int64_t j = 0; j < dims; ++j) mean[j] /= static_cast<double>(count);
  for (std::int64_t n = 0; n < count; ++n) {
    const float* const row = rows + n * dims;
    float* const to = centred + n * stride;
    std::int64_t j = 0;
#if NORMA_HAS_VECTOR_EXTENSION
    for (; j + kCentreLanes <= dims; j += kCentreLanes) {
      *reinterpret_cast<CentreNarrow*>(to + j) = __builtin_convertvector(
          __builtin_convertvector(*reinterpret_cast<const CentreNarrow*>(row + j), CentreWide) - *reinterpret_cast<const CentreWide*>(mean + j), CentreNarrow);
    }
#endif
    for (; j < dims; ++j) to[j] = static_cast<float>(static_cast<double>(row[j]) - mean[j]);
  }
}

}  // namespace norma::simd::NORMA_SIMD
