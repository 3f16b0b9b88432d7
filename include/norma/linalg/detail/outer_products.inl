// Products of columns, C[i, j] += sum_k X[k, i] X[k, j], in register tiles of four rows by up to three vectors. See
// for_each_instruction_set.inl for the macros.
namespace norma::simd::NORMA_SIMD {

// The first `count` lanes of v, zero behind them.
struct LaneMasks {
  std::uint32_t bits[2 * kWidth] = {};
  constexpr LaneMasks() {
    for (int l = 0; l < kWidth; ++l) bits[l] = 0xffffffffu;
  }
};
inline constexpr LaneMasks kLaneMasks;
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE Vec first_lanes(Vec v, std::int64_t count) {
#if NORMA_HAS_VECTOR_EXTENSION
  typedef std::uint32_t LooseBits __attribute__((vector_size(4 * NORMA_SIMD_WIDTH), aligned(4), may_alias));
  const Bits mask = *reinterpret_cast<const LooseBits*>(kLaneMasks.bits + kWidth - count);
  return __builtin_bit_cast(Vec, __builtin_bit_cast(Bits, v) & mask);
#else
  return count > 0 ? v : Vec{};
#endif
}

// Adds `V` vectors a0, a1, a2 to the row c. An edge tile has `count` values of the row, which end in the last vector; what lies behind
// them, up to `end`, may be rewritten with what it holds.
template <int V, bool Edge>
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void add_row(float* c, Vec a0, Vec a1, Vec a2, std::int64_t count, const float* end) {
  if constexpr (Edge && kWidth < 4) {  // plain floats: four rows end in different vectors
    const Vec sums[3] = {a0, a1, a2};
    for (std::int64_t v = 0; v < V && v < count; ++v) store(c + v, load(c + v) + sums[v]);
    return;
  }
  if constexpr (V > 1) store(c, load(c) + a0);
  if constexpr (V > 2) store(c + kWidth, load(c + kWidth) + a1);
  const Vec last = V == 1 ? a0 : V == 2 ? a1 : a2;
  float* const to = c + (V - 1) * kWidth;
  count = Edge ? std::min<std::int64_t>(count - (V - 1) * kWidth, kWidth) : kWidth;
  if (!Edge || to + kWidth <= end) {
    store(to, load(to) + (Edge ? first_lanes(last, count) : last));
  } else {
    float lanes[kWidth];
    store(lanes, last);
    for (std::int64_t l = 0; l < count; ++l) to[l] += lanes[l];
  }
}

// c[r][0, V vectors) += sum_k x[k, r] y[k, :] for four rows r.
template <int V, bool Edge>
NORMA_SIMD_TARGET inline void outer_tile(const float* NORMA_RESTRICT x, const float* NORMA_RESTRICT y, std::int64_t stride,
                                         std::int64_t depth, float* const* c, std::int64_t count, const float* end) {
  Vec a0{}, a1{}, a2{}, b0{}, b1{}, b2{}, c0{}, c1{}, c2{}, d0{}, d1{}, d2{};
  for (std::int64_t k = 0; k < depth; ++k, x += stride, y += stride) {
    const Vec y0 = load(y);
    Vec y1{}, y2{};
    if constexpr (V > 1) y1 = load(y + kWidth);
    if constexpr (V > 2) y2 = load(y + 2 * kWidth);
    a0 += x[0] * y0;
    if constexpr (V > 1) a1 += x[0] * y1;
    if constexpr (V > 2) a2 += x[0] * y2;
    b0 += x[1] * y0;
    if constexpr (V > 1) b1 += x[1] * y1;
    if constexpr (V > 2) b2 += x[1] * y2;
    c0 += x[2] * y0;
    if constexpr (V > 1) c1 += x[2] * y1;
    if constexpr (V > 2) c2 += x[2] * y2;
    d0 += x[3] * y0;
    if constexpr (V > 1) d1 += x[3] * y1;
    if constexpr (V > 2) d2 += x[3] * y2;
  }
  add_row<V, Edge>(c[0], a0, a1, a2, count, end);
  add_row<V, Edge>(c[1], b0, b1, b2, count + 1, end);
  add_row<V, Edge>(c[2], c0, c1, c2, count + 2, end);
  add_row<V, Edge>(c[3], d0, d1, d2, count + 3, end);
}

// Twelve sums, three vectors of a row and a product that is not fused do not fit 16 registers.
inline constexpr std::int64_t kTileVectors = NORMA_SIMD_WIDTH <= 4 && NORMA_SIMD_ROWS < 12 ? 2 : 3;

template <bool Edge>
NORMA_SIMD_TARGET inline void outer_tile_of(std::int64_t vectors, const float* x, const float* y, std::int64_t stride, std::int64_t depth,
                                            float* const* c, std::int64_t count, const float* end) {
  if constexpr (kTileVectors > 2) {
    if (vectors == 3) return outer_tile<3, Edge>(x, y, stride, depth, c, count, end);
  }
  if (vectors == 2) return outer_tile<2, Edge>(x, y, stride, depth, c, count, end);
  outer_tile<1, Edge>(x, y, stride, depth, c, count, end);
}

// packed += X^T X for X [depth, d] in rows of `stride`, zero beyond column d. `next` are the rows, `next_stride` apart, that the caller
// reads next; may be null. They and the sums of the next block are fetched while a tile is computed, a little in each: all at once, the
// tile waits for them.
NORMA_SIMD_TARGET inline void add_products(const float* x, std::int64_t depth, std::int64_t d, std::int64_t stride, float* packed, const float* next,
                                           std::int64_t next_stride, std::int64_t next_count) {
  float spare[3 * kWidth] = {};
  const float* const end = packed + d * (d + 1) / 2;
  for (std::int64_t i = 0; i < d; i += 4) {
    float* rows[4];
    float* row = packed + i * (i + 1) / 2;
    for (std::int64_t r = 0; r < 4; ++r) {
      rows[r] = i + r < d ? row : nullptr;
      row += i + r + 1;
    }
    std::int64_t ahead = i % 16 * 4;  // this block fetches one line of sixteen of the next rows
    std::int64_t left = (std::min(i + 4, d) + kWidth - 1) / kWidth;
    for (std::int64_t j = 0; left > 0;) {
      // Of four 2 + 2 rather than 3 + 1: a tile of one vector waits for its own sums.
      const std::int64_t vectors = left == 4 ? 2 : std::min(left, kTileVectors);
      left -= vectors;
      for (std::int64_t n = 0; n < 4 * vectors * kWidth; n += 16)
        prefetch(row + 4 * j + n);  // the rows of the next block, as much as this tile is wide
      if (next != nullptr) {
        const std::int64_t last = left > 0 ? ahead + 2 : i % 16 * 4 + 16;
        for (; ahead < last && ahead < next_count; ++ahead) prefetch(next + ahead * next_stride + i / 16 * 16);
      }
      float* c[4];
      for (std::int64_t r = 0; r < 4; ++r) c[r] = rows[r] != nullptr ? rows[r] + j : spare;
      if (j + vectors * kWidth <= i + 1) {
        outer_tile_of<false>(vectors, x + i, x + j, stride, depth, c, 0, nullptr);
      } else {
        outer_tile_of<true>(vectors, x + i, x + j, stride, depth, c, i + 1 - j, end);
      }
      j += vectors * kWidth;
    }
  }
}

}  // namespace norma::simd::NORMA_SIMD
