// Direct convolution of single channels, register tiles of products with their epilogue, and the transforms of Winograd's algorithm.
// See linalg/detail/for_each_instruction_set.inl for the macros.
namespace norma::simd::NORMA_SIMD {

// One output position of a depthwise convolution, any window: y[c] = activation(sum over the taps inside the map + bias + residual).
// `weights` is [taps, channels].
NORMA_SIMD_TARGET inline void depthwise_position(const nn::detail::DepthwiseRows& r, std::int64_t row, std::int64_t ox, std::int64_t first_channel) {
  const std::int64_t left = ox * r.stride - r.pad_left;
  for (std::int64_t c = first_channel; c < r.channels; c += kWidth) {
    const std::int64_t count = r.channels - c;
    const bool whole = count >= kWidth;
    Vec sum{};
    for (int ky = 0; ky < r.kernel_height; ++ky) {
      const std::int64_t iy = r.top + row * r.stride + ky * r.dilation;
      if (iy < 0 || iy >= r.height) continue;
      for (int kx = 0; kx < r.kernel_width; ++kx) {
        const std::int64_t ix = left + kx * r.dilation;
        if (ix < 0 || ix >= r.width) continue;
        const float* from = r.x + (iy % r.held * r.width + ix) * r.channels + c;
        const float* weight = r.weights + (ky * r.kernel_width + kx) * r.channels + c;
        sum += whole ? load(from) * load(weight) : load_part(from, count) * load_part(weight, count);
      }
    }
    const std::int64_t at = (row * r.out_width + ox) * r.channels + c;
    if (r.bias != nullptr) sum += whole ? load(r.bias + c) : load_part(r.bias + c, count);
    if (r.residual != nullptr) sum += whole ? load(r.residual + at) : load_part(r.residual + at, count);
    sum = activate(sum, r.activation);
    whole ? store(r.y + at, sum) : store_part(r.y + at, sum, count);
  }
}

// Keeps a vector that was loaded once in a register: GCC would read it from memory again for each of its uses.
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void keep(Vec& v) {
#if NORMA_X86_DISPATCH
  __asm__ volatile("" : "+v"(v));
#else
  (void)v;
#endif
}
// at_most(at_least(x, low), high) in two instructions, which the compilers do not find: the operation gives its second source for NaN and
// for zeros of either sign.
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE Vec limited(Vec x, Vec low, Vec high) {
#if NORMA_X86_DISPATCH
  if constexpr (kWidth >= 8) {
    Vec y;
    __asm__("vmaxps {%1, %2, %0|%0, %2, %1}" : "=v"(y) : "v"(x), "v"(low));
    __asm__("vminps {%1, %2, %0|%0, %2, %1}" : "=v"(x) : "v"(y), "v"(high));
    return x;
  }
#endif
  const Vec y = low > x ? low : x;
  return high < y ? high : y;
}

inline constexpr int kDepthwiseOutputs = 8;  // of a block
alignas(64) inline constexpr float kZeros[kWidth] = {};

// Eight neighbouring outputs of a square kernel share the columns of the map that they read: column J meets output o with tap J - o Stride.
// Eight sums are as many multiply-adds as are under way at a time.
template <int Kernel, int Stride>
struct DepthwiseBlock {
  static constexpr int kOutputs = kDepthwiseOutputs;
  static constexpr int kColumns = (kOutputs - 1) * Stride + Kernel;
  using Outputs = std::make_integer_sequence<int, kOutputs>;

  template <int Tap>
  NORMA_SIMD_TARGET static NORMA_ALWAYS_INLINE void multiply(Vec x, const Vec (&w)[Kernel], Vec& sum) {
    if constexpr (Tap >= 0 && Tap < Kernel) sum += x * w[Tap];
  }
  template <int J, int... O>
  NORMA_SIMD_TARGET static NORMA_ALWAYS_INLINE void column(std::integer_sequence<int, O...>, const float* from, const Vec (&w)[Kernel],
                                                           Vec (&sums)[kOutputs]) {
    Vec x = load(from);
    keep(x);
    (multiply<J - O * Stride>(x, w, sums[O]), ...);
  }
  // Column 0 of the block is column `left` of the map; those outside are zeros.
  template <int... J>
  NORMA_SIMD_TARGET static NORMA_ALWAYS_INLINE void line(std::integer_sequence<int, J...>, const float* from, std::int64_t channels,
                                                         std::uint64_t left, std::uint64_t width, const Vec (&w)[Kernel],
                                                         Vec (&sums)[kOutputs]) {
    (column<J>(Outputs{}, left + J < width ? from + J * channels : kZeros, w, sums), ...);
  }
  template <int... K>
  NORMA_SIMD_TARGET static NORMA_ALWAYS_INLINE void taps(std::integer_sequence<int, K...>, const float* from, std::int64_t channels,
                                                         Vec (&w)[Kernel]) {
    ((w[K] = load(from + K * channels)), ...);
  }
  template <int... O>
  NORMA_SIMD_TARGET static NORMA_ALWAYS_INLINE void finish(std::integer_sequence<int, O...>, const nn::detail::DepthwiseRows& r,
                                                           std::int64_t count, std::int64_t at, Vec (&sums)[kOutputs], Vec low, Vec high) {
    if (r.residual != nullptr) ((O < count ? void(sums[O] += load(r.residual + at + O * r.channels)) : void()), ...);
    float* to = r.y + at;
    ((O < count ? store(to + O * r.channels, limited(sums[O], low, high)) : void()), ...);
  }
  template <int... O>
  NORMA_SIMD_TARGET static NORMA_ALWAYS_INLINE void begin(std::integer_sequence<int, O...>, Vec (&sums)[kOutputs], Vec shift) {
    ((sums[O] = shift), ...);
  }
  // Output columns [ox, ox + count) of one row, whole vectors of channels [c, last_channel).
  NORMA_SIMD_TARGET static void run(const nn::detail::DepthwiseRows& r, std::int64_t row, std::int64_t ox, std::int64_t count,
                                    std::int64_t c, std::int64_t last_channel) {
    const std::int64_t top = r.top + row * Stride, left = ox * Stride - r.pad_left;
    const std::int64_t first_line = top < 0 ? -top : 0, last_line = top + Kernel > r.height ? r.height - top : Kernel;
    const std::int64_t first_slot = (top + first_line) % r.held;
    const float* corner = r.x + (first_slot * r.width + left) * r.channels;
    const float* first_weights = r.weights + first_line * Kernel * r.channels;
    const std::int64_t at = (row * r.out_width + ox) * r.channels;
    const Vec low = broadcast(r.limits.low), high = broadcast(r.limits.high);
    for (; c < last_channel; c += kWidth) {
      Vec sums[kOutputs];
      begin(Outputs{}, sums, r.bias != nullptr ? load(r.bias + c) : Vec{});
      const float* from = corner + c;
      const float* weights = first_weights + c;
      std::int64_t slot = first_slot;
      for (std::int64_t ky = first_line; ky < last_line; ++ky) {
        Vec w[Kernel];
        taps(std::make_integer_sequence<int, Kernel>{}, weights, r.channels, w);
        line(std::make_integer_sequence<int, kColumns>{}, from, r.channels, static_cast<std::uint64_t>(left),
             static_cast<std::uint64_t>(r.width), w, sums);
        from += r.width * r.channels;
        if (++slot == r.held) {
          slot = 0;
          from -= r.held * r.width * r.channels;
        }
        weights += Kernel * r.channels;
      }
      finish(Outputs{}, r, count, at + c, sums, low, high);
      if (!r.limits.known) {
        for (std::int64_t o = 0; o < count; ++o) {
          float* y = r.y + at + c + o * r.channels;
          store(y, activate_other(load(y), r.activation));
        }
      }
    }
  }
};

using DepthwiseRun = void (*)(const nn::detail::DepthwiseRows&, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t);

// Whole vectors of channels of all rows. Some channels at a time, so that their weights stay in the first cache.
NORMA_SIMD_TARGET inline void depthwise_blocks(const nn::detail::DepthwiseRows& r, DepthwiseRun run) {
  constexpr std::int64_t kChannels = 64;
  const std::int64_t channels = r.channels / kWidth * kWidth;
  for (std::int64_t c = 0; c < channels; c += kChannels) {
    const std::int64_t last = c + kChannels < channels ? c + kChannels : channels;
    for (std::int64_t row = 0; row < r.rows; ++row) {
      for (std::int64_t ox = 0; ox < r.out_width; ox += kDepthwiseOutputs) {
        run(r, row, ox, r.out_width - ox < kDepthwiseOutputs ? r.out_width - ox : kDepthwiseOutputs, c, last);
      }
    }
  }
}

// Some rows of a depthwise convolution's output.
NORMA_SIMD_TARGET inline void depthwise_rows(const nn::detail::DepthwiseRows& r) {
  DepthwiseRun run = nullptr;
  if (r.kernel_height == r.kernel_width && r.dilation == 1) {
    if (r.kernel_width == 3 && r.stride == 1) run = &DepthwiseBlock<3, 1>::run;
    if (r.kernel_width == 3 && r.stride == 2) run = &DepthwiseBlock<3, 2>::run;
    if (r.kernel_width == 5 && r.stride == 1) run = &DepthwiseBlock<5, 1>::run;
    if (r.kernel_width == 5 && r.stride == 2) run = &DepthwiseBlock<5, 2>::run;
  }
  std::int64_t done = 0;
  if (run != nullptr) {
    depthwise_blocks(r, run);
    done = r.channels / kWidth * kWidth;
    if (done == r.channels) return;
  }
  for (std::int64_t row = 0; row < r.rows; ++row) {
    for (std::int64_t ox = 0; ox < r.out_width; ++ox) depthwise_position(r, row, ox, done);
  }
}

// The first `count` lanes of v to p; half a vector, which output channels often end with, in one piece.
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void store_first(float* p, Vec v, std::int64_t count) {
  float lanes[kWidth];
  store(lanes, v);
  constexpr std::int64_t kHalf = kWidth / 2;
  std::int64_t i = 0;
  if (count >= kHalf) {
    std::memcpy(p, lanes, kHalf * sizeof(float));
    i = kHalf;
  }
  for (; i < count; ++i) p[i] = lanes[i];
}
// The epilogue of a tile whose columns do not fill its vectors; `tile` is [kTileRows, kPanel].
NORMA_SIMD_TARGET NORMA_NOINLINE inline void product_rest(const nn::detail::ProductTile& t, const float* tile) {
  const Vec low = broadcast(t.limits.low), high = broadcast(t.limits.high);
  for (std::int64_t col = 0; col < t.columns; col += kWidth) {
    const std::int64_t count = t.columns - col;
    const bool whole = count >= kWidth;
    const Vec shift = t.bias == nullptr ? Vec{} : whole ? load(t.bias + col) : load_part(t.bias + col, count);
    for (std::int64_t row = 0; row < kTileRows; ++row) {
      const float* residual = t.residual + row * t.residual_stride + col;
      Vec x = load(tile + row * kPanel + col) + shift;
      if (t.residual != nullptr) x += whole ? load(residual) : load_part(residual, count);
      x = limited(x, low, high);
      float* to = t.y + row * t.y_stride + col;
      whole ? store(to, x) : store_first(to, x, count);
    }
  }
}

// A register tile of a product whose epilogue happens in the registers: kTileRows rows of a by Vectors vectors of one panel. Row r of a is
// `segments` pieces of `length` numbers: with one segment a matrix, with more the windows of a convolution where they lie in the map. Every
// element is one chain of multiply-adds from 0 upwards, as in the matrix product's own tiles.
template <int Vectors, std::size_t... R>
NORMA_SIMD_TARGET inline void product_tile_of(std::index_sequence<R...>, const nn::detail::ProductTile& t) {
  constexpr std::size_t kRows = sizeof...(R);
  Vec left[kRows], right[kRows];
  ((left[R] = Vec{}, right[R] = Vec{}), ...);
  const float* panel = t.panel;
  const std::int64_t stride = t.stride;
  for (std::int64_t segment = 0; segment < t.segments; ++segment) {
    const float* base[kRows];
    ((base[R] = t.a + segment * t.segment_stride + static_cast<std::int64_t>(R) * stride), ...);
    for (std::int64_t i = 0; i < t.length; ++i) {
      const Vec b0 = load(panel);
      Vec b1{};
      if constexpr (Vectors == 2) b1 = load(panel + kWidth);
      if constexpr (kPanel <= 16) prefetch(panel + 4 * kPanel);
      panel += kPanel;
      if constexpr (Vectors == 2) {
        ((left[R] += b0 * base[R / 3 * 3][static_cast<std::int64_t>(R % 3) * stride],
          right[R] += b1 * base[R / 3 * 3][static_cast<std::int64_t>(R % 3) * stride]),
         ...);
      } else {
        ((left[R] += b0 * base[R / 3 * 3][static_cast<std::int64_t>(R % 3) * stride]), ...);
      }
      ((R % 3 == 0 ? void(++base[R]) : void()), ...);
    }
  }
  constexpr std::int64_t kSecond = Vectors == 2 ? kWidth : 0;
  if (t.columns < Vectors * kWidth) {
    float tile[kTileRows * kPanel];
    ((store(tile + static_cast<std::int64_t>(R) * kPanel, left[R]),
      Vectors == 2 ? store(tile + static_cast<std::int64_t>(R) * kPanel + kSecond, right[R]) : void()),
     ...);
    product_rest(t, tile);
    return;
  }
  if (t.bias != nullptr) {
    const Vec shift = load(t.bias), second_shift = load(t.bias + kSecond);
    ((left[R] += shift, right[R] += second_shift), ...);
  }
  if (t.residual != nullptr) {
    ((left[R] += load(t.residual + static_cast<std::int64_t>(R) * t.residual_stride),
      right[R] += load(t.residual + static_cast<std::int64_t>(R) * t.residual_stride + kSecond)),
     ...);
  }
  const Vec low = broadcast(t.limits.low), high = broadcast(t.limits.high);
  ((store(t.y + static_cast<std::int64_t>(R) * t.y_stride, limited(left[R], low, high)),
    Vectors == 2 ? store(t.y + static_cast<std::int64_t>(R) * t.y_stride + kSecond, limited(right[R], low, high)) : void()),
   ...);
}

#if NORMA_SIMD_WIDTH == 16
// The same where the columns end with half a vector, alone or after a whole one: 24 channels as 16 + 8, not as 32.
typedef float HalfVec __attribute__((vector_size(2 * NORMA_SIMD_WIDTH)));
typedef float LooseHalf __attribute__((vector_size(2 * NORMA_SIMD_WIDTH), aligned(4), may_alias));
template <int Vectors, std::size_t... R>
NORMA_SIMD_TARGET inline void product_half_tile_of(std::index_sequence<R...>, const nn::detail::ProductTile& t) {
  constexpr std::size_t kRows = sizeof...(R);
  constexpr std::int64_t kBefore = Vectors == 2 ? kWidth : 0;
  Vec left[kRows];
  HalfVec right[kRows];
  ((left[R] = Vec{}, right[R] = HalfVec{}), ...);
  const float* panel = t.panel;
  const std::int64_t stride = t.stride;
  for (std::int64_t segment = 0; segment < t.segments; ++segment) {
    const float* base[kRows];
    ((base[R] = t.a + segment * t.segment_stride + static_cast<std::int64_t>(R) * stride), ...);
    for (std::int64_t i = 0; i < t.length; ++i) {
      const Vec b0 = load(panel);
      const HalfVec b1 = *reinterpret_cast<const LooseHalf*>(panel + kBefore);
      panel += kPanel;
      if constexpr (Vectors == 2) ((left[R] += b0 * base[R / 3 * 3][static_cast<std::int64_t>(R % 3) * stride]), ...);
      ((right[R] += b1 * base[R / 3 * 3][static_cast<std::int64_t>(R % 3) * stride]), ...);
      ((R % 3 == 0 ? void(++base[R]) : void()), ...);
    }
  }
  float tile[kTileRows * kPanel] = {};
  ((store(tile + static_cast<std::int64_t>(R) * kPanel, left[R]),
    void(*reinterpret_cast<LooseHalf*>(tile + static_cast<std::int64_t>(R) * kPanel + kBefore) = right[R])),
   ...);
  product_rest(t, tile);
}
#endif

NORMA_SIMD_TARGET inline void product_tile(const nn::detail::ProductTile& t) {
  constexpr std::make_index_sequence<kTileRows> rows;
#if NORMA_SIMD_WIDTH == 16
  if (t.columns <= kWidth / 2) return product_half_tile_of<1>(rows, t);
  if (t.columns > kWidth && t.columns <= kWidth + kWidth / 2) return product_half_tile_of<2>(rows, t);
#endif
  t.columns > kWidth ? product_tile_of<2>(rows, t) : product_tile_of<1>(rows, t);
}

// Winograd F(4x4, 3x3) with the points 0, +-sqrt(1/2), +-sqrt(2) and infinity, whose products stay closer to the size of their factors
// than those of the usual 0, +-1, +-2 (Barabasz et al., arXiv 1803.10986, on the choice of points).
inline constexpr float kRoot2 = 1.41421356237309505f;
inline constexpr float kRootHalf = 0.70710678118654752f;

struct Six {
  Vec v[6];
};
// B^T d
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void winograd_input(Vec d0, Vec d1, Vec d2, Vec d3, Vec d4, Vec d5, Six& r) {
  const Vec e = d4 - 2.0f * d2, f = kRootHalf * d3 - kRoot2 * d1;
  const Vec g = d4 - 0.5f * d2, h = kRoot2 * d3 - kRootHalf * d1;
  r.v[0] = d0 + (d4 - 2.5f * d2);
  r.v[1] = e + f;
  r.v[2] = e - f;
  r.v[3] = g + h;
  r.v[4] = g - h;
  r.v[5] = d1 + (d5 - 2.5f * d3);
}
// A^T m
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void winograd_output(Vec m0, Vec m1, Vec m2, Vec m3, Vec m4, Vec m5, Vec& r0, Vec& r1, Vec& r2,
                                                           Vec& r3) {
  const Vec s = m1 + m2, d = m1 - m2, t = m3 + m4, e = m3 - m4;
  r0 = m0 + s + t;
  r1 = kRootHalf * d + kRoot2 * e;
  r2 = 0.5f * s + 2.0f * t;
  r3 = (m5 + 0.5f * kRootHalf * d) + 2.0f * kRoot2 * e;
}

// to[36][point_stride] = B^T d B of one 6x6 tile, for all channels; `from` points to its 36 positions, row by row.
NORMA_SIMD_TARGET inline void winograd_input_tile(const float* const* from, std::int64_t channels, float* to, std::int64_t point_stride) {
  Six columns[6];
  for (std::int64_t c = 0; c < channels; c += kWidth) {
    const std::int64_t count = channels - c;
    if (count >= kWidth) {
      for (int j = 0; j < 6; ++j) {
        winograd_input(load(from[j] + c), load(from[6 + j] + c), load(from[12 + j] + c), load(from[18 + j] + c), load(from[24 + j] + c),
                       load(from[30 + j] + c), columns[j]);
      }
    } else {
      for (int j = 0; j < 6; ++j) {
        winograd_input(load_part(from[j] + c, count), load_part(from[6 + j] + c, count), load_part(from[12 + j] + c, count),
                       load_part(from[18 + j] + c, count), load_part(from[24 + j] + c, count), load_part(from[30 + j] + c, count),
                       columns[j]);
      }
    }
    // Whole vectors also at the end: rows of `to` have room for them.
    for (int i = 0; i < 6; ++i) {
      Six row;
      winograd_input(columns[0].v[i], columns[1].v[i], columns[2].v[i], columns[3].v[i], columns[4].v[i], columns[5].v[i], row);
      for (int j = 0; j < 6; ++j) store(to + (i * 6 + j) * point_stride + c, row.v[j]);
    }
  }
}

// The 4x4 outputs of one tile and one panel of output channels: y = activation(A^T m A + bias + residual).
NORMA_SIMD_TARGET inline void winograd_output_tile(const nn::detail::WinogradOutput& o, const float* m, std::int64_t point_stride) {
  for (std::int64_t c = 0; c < o.channels; c += kWidth) {
    const std::int64_t count = o.channels - c;
    const bool whole = count >= kWidth;
    Vec columns[4][6];
    for (int j = 0; j < 6; ++j) {
      const float* p = m + j * point_stride + c;
      winograd_output(load(p), load(p + 6 * point_stride), load(p + 12 * point_stride), load(p + 18 * point_stride),
                      load(p + 24 * point_stride), load(p + 30 * point_stride), columns[0][j], columns[1][j], columns[2][j], columns[3][j]);
    }
    const Vec shift = o.bias == nullptr ? Vec{} : whole ? load(o.bias + c) : load_part(o.bias + c, count);
    for (std::int64_t i = 0; i < o.height; ++i) {
      Vec row[4];
      winograd_output(columns[i][0], columns[i][1], columns[i][2], columns[i][3], columns[i][4], columns[i][5], row[0], row[1], row[2],
                      row[3]);
      for (std::int64_t j = 0; j < o.width; ++j) {
        const std::int64_t at = i * o.line_stride + j * o.position_stride + c;
        Vec x = row[j] + shift;
        if (o.residual != nullptr) x += whole ? load(o.residual + at) : load_part(o.residual + at, count);
        x = activate(x, o.activation);
        whole ? store(o.y + at, x) : store_part(o.y + at, x, count);
      }
    }
  }
}

// G g G^T of the 3x3 kernels of up to kPanel output channels, in double; channels beyond the panel's stay as they are.
NORMA_SIMD_TARGET inline void winograd_weights(const nn::detail::WinogradWeights& weights) {
  constexpr double kRoot2d = 1.41421356237309505;
  constexpr int kLanes = 2 * NORMA_SIMD_WIDTH;  // a panel
  double g[9][kLanes] = {}, rows[6][3][kLanes];
  for (int tap = 0; tap < 9; ++tap) {
    const float* from = weights.w + tap * weights.tap_stride;
    for (std::int64_t o = 0; o < weights.channels; ++o) g[tap][o] = static_cast<double>(from[o * weights.out_stride]);
  }
  for (int x = 0; x < 3; ++x) {
    for (int o = 0; o < kLanes; ++o) {
      const double a = g[x][o], b = g[3 + x][o], c = g[6 + x][o];
      const double near = (-2.0 / 3.0) * a - (1.0 / 3.0) * c, far = (1.0 / 6.0) * a + (1.0 / 3.0) * c;
      rows[0][x][o] = a;
      rows[1][x][o] = near - (kRoot2d / 3.0) * b;
      rows[2][x][o] = near + (kRoot2d / 3.0) * b;
      rows[3][x][o] = far + (kRoot2d / 6.0) * b;
      rows[4][x][o] = far - (kRoot2d / 6.0) * b;
      rows[5][x][o] = c;
    }
  }
  for (int i = 0; i < 6; ++i) {
    float u[6][kLanes];
    for (int o = 0; o < kLanes; ++o) {
      const double a = rows[i][0][o], b = rows[i][1][o], c = rows[i][2][o];
      const double near = (-2.0 / 3.0) * a - (1.0 / 3.0) * c, far = (1.0 / 6.0) * a + (1.0 / 3.0) * c;
      u[0][o] = static_cast<float>(a);
      u[1][o] = static_cast<float>(near - (kRoot2d / 3.0) * b);
      u[2][o] = static_cast<float>(near + (kRoot2d / 3.0) * b);
      u[3][o] = static_cast<float>(far + (kRoot2d / 6.0) * b);
      u[4][o] = static_cast<float>(far - (kRoot2d / 6.0) * b);
      u[5][o] = static_cast<float>(c);
    }
    for (int j = 0; j < 6; ++j) {
      float* to = weights.to + (i * 6 + j) * weights.point_stride;
      for (std::int64_t o = 0; o < weights.channels; ++o) to[o] = u[j][o];
    }
  }
}

inline constexpr nn::detail::ConvolutionKernels kConvolutionKernels{&product_tile, &winograd_weights, &depthwise_rows, &winograd_input_tile,
                                                                    &winograd_output_tile};

}  // namespace norma::simd::NORMA_SIMD
