// Windows of a channels-last map. See linalg/detail/for_each_instruction_set.inl for the macros.
namespace norma::simd::NORMA_SIMD {

// to[c] = largest of the window's positions; NaN if any of them is.
NORMA_SIMD_TARGET inline void max_of_window(const nn::detail::Window& w, std::int64_t channels, float* to) {
  for (std::int64_t c = 0; c < channels; c += kWidth) {
    const std::int64_t count = channels - c;
    const bool whole = count >= kWidth;
    Vec best{};
    for (std::int64_t y = 0; y < w.height; ++y) {
      for (std::int64_t x = 0; x < w.width; ++x) {
        const float* from = w.first + y * w.line_stride + x * channels + c;
        const Vec value = whole ? load(from) : load_part(from, count);
        best = y == 0 && x == 0 ? value : max_or_nan(best, value);
      }
    }
    whole ? store(to + c, best) : store_part(to + c, best, count);
  }
}

// to[c] = factor * sum of the window's positions.
NORMA_SIMD_TARGET inline void sum_of_window(const nn::detail::Window& w, std::int64_t channels, float factor, float* to) {
  for (std::int64_t c = 0; c < channels; c += kWidth) {
    const std::int64_t count = channels - c;
    const bool whole = count >= kWidth;
    Vec sum{};
    for (std::int64_t y = 0; y < w.height; ++y) {
      for (std::int64_t x = 0; x < w.width; ++x) {
        const float* from = w.first + y * w.line_stride + x * channels + c;
        sum += whole ? load(from) : load_part(from, count);
      }
    }
    sum *= factor;
    whole ? store(to + c, sum) : store_part(to + c, sum, count);
  }
}

inline constexpr nn::detail::PoolingKernels kPoolingKernels{&max_of_window, &sum_of_window};

}  // namespace norma::simd::NORMA_SIMD
