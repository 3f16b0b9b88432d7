// The register tile of the matrix product and what happens to a finished tile. See for_each_instruction_set.inl for the macros.
namespace norma::simd::NORMA_SIMD {

inline constexpr int kTileRows = NORMA_SIMD_ROWS;
inline constexpr int kPanel = 2 * kWidth;

// tile[rows, kPanel] = a[rows, k] * panel[k, kPanel]. Every element is one chain of k multiply-adds from 0 upwards, so its bits do not
// depend on where in which tile it is computed. Accumulators are array elements with indices that are constants of the template (no
// loop to unroll), which both compilers keep in registers. Rows are addressed as three to a base pointer: base, base + stride,
// base + 2 stride are single operands. Where a step reads one line of the panel, lines are fetched a few steps ahead: packed weights often
// come from the third-level cache, and what follows a panel is what is needed next (10 % for Winograd's products of 16 rows on Zen 4,
// nothing elsewhere). With two lines a step the processor's own prefetching does better (bench/results/convolution.md).
template <std::size_t... R>
NORMA_SIMD_TARGET inline void tile_of(std::index_sequence<R...>, const float* NORMA_RESTRICT a, std::int64_t stride,
                                      const float* NORMA_RESTRICT panel, std::int64_t k, float* NORMA_RESTRICT tile) {
  constexpr std::size_t kRows = sizeof...(R);
  Vec left[kRows], right[kRows];
  const float* base[kRows];
  ((left[R] = Vec{}, right[R] = Vec{}, base[R] = a + static_cast<std::int64_t>(R) * stride), ...);
  for (std::int64_t i = 0; i < k; ++i) {
    const Vec b0 = load(panel), b1 = load(panel + kWidth);
    if constexpr (kPanel <= 16) prefetch(panel + 4 * kPanel);
    panel += kPanel;
    ((left[R] += b0 * base[R / 3 * 3][static_cast<std::int64_t>(R % 3) * stride],
      right[R] += b1 * base[R / 3 * 3][static_cast<std::int64_t>(R % 3) * stride]),
     ...);
    ((R % 3 == 0 ? void(++base[R]) : void()), ...);
  }
  ((store(tile + static_cast<std::int64_t>(R) * kPanel, left[R]), store(tile + static_cast<std::int64_t>(R) * kPanel + kWidth, right[R])),
   ...);
}
template <std::size_t Rows>
NORMA_SIMD_TARGET inline void tile_kernel(const float* a, std::int64_t stride, const float* panel, std::int64_t k, float* tile) {
  tile_of(std::make_index_sequence<Rows>{}, a, stride, panel, k, tile);
}

// c[rows, cols] = activation(tile + bias + residual); bias and residual may be null.
NORMA_SIMD_TARGET inline void finish_tile(const float* tile, std::int64_t tile_stride, std::int64_t rows, std::int64_t cols, float* c,
                                          std::int64_t c_stride, const float* bias, const float* residual, std::int64_t residual_stride,
                                          Activation activation) {
  for (std::int64_t col = 0; col < cols; col += kWidth) {
    const std::int64_t count = cols - col;
    if (count >= kWidth) {
      const Vec shift = bias != nullptr ? load(bias + col) : Vec{};
      for (std::int64_t row = 0; row < rows; ++row) {
        Vec x = load(tile + row * tile_stride + col) + shift;
        if (residual != nullptr) x += load(residual + row * residual_stride + col);
        store(c + row * c_stride + col, activate(x, activation));
      }
    } else {
      const Vec shift = bias != nullptr ? load_part(bias + col, count) : Vec{};
      for (std::int64_t row = 0; row < rows; ++row) {
        Vec x = load_part(tile + row * tile_stride + col, count) + shift;
        if (residual != nullptr) x += load_part(residual + row * residual_stride + col, count);
        store_part(c + row * c_stride + col, activate(x, activation), count);
      }
    }
  }
}

template <std::size_t... R>
constexpr linalg::detail::GemmKernels make_gemm_kernels(std::index_sequence<R...>) {
  return {kTileRows, kPanel, {nullptr, &tile_kernel<R + 1>...}, &finish_tile};
}
inline constexpr linalg::detail::GemmKernels kGemmKernels = make_gemm_kernels(std::make_index_sequence<kTileRows>{});

}  // namespace norma::simd::NORMA_SIMD
