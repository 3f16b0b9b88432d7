// Direct convolution of single channels, and the transforms of Winograd's algorithm. See linalg/detail/for_each_instruction_set.inl for the
// macros.
namespace norma::simd::NORMA_SIMD {

// One output position of a depthwise convolution, any window: y[c] = activation(sum over the taps inside the map + bias + residual).
// `weights` is [taps, channels].
NORMA_SIMD_TARGET inline void depthwise_position(const nn::detail::DepthwiseRow& r, std::int64_t ox, std::int64_t first_channel) {
  const std::int64_t left = ox * r.stride - r.pad_left;
  for (std::int64_t c = first_channel; c < r.channels; c += kWidth) {
    const std::int64_t count = r.channels - c;
    const bool whole = count >= kWidth;
    Vec sum{};
    for (int ky = 0; ky < r.kernel_height; ++ky) {
      const std::int64_t iy = r.top + ky * r.dilation;
      if (iy < 0 || iy >= r.height) continue;
      for (int kx = 0; kx < r.kernel_width; ++kx) {
        const std::int64_t ix = left + kx * r.dilation;
        if (ix < 0 || ix >= r.width) continue;
        const float* from = r.x + (iy * r.width + ix) * r.channels + c;
        const float* weight = r.weights + (ky * r.kernel_width + kx) * r.channels + c;
        sum += whole ? load(from) * load(weight) : load_part(from, count) * load_part(weight, count);
      }
    }
    const std::int64_t at = ox * r.channels + c;
    if (r.bias != nullptr) sum += whole ? load(r.bias + c) : load_part(r.bias + c, count);
    if (r.residual != nullptr) sum += whole ? load(r.residual + at) : load_part(r.residual + at, count);
    sum = activate(sum, r.activation);
    whole ? store(r.y + at, sum) : store_part(r.y + at, sum, count);
  }
}

// What input column J of a line adds to the four outputs that share it: output o meets it with tap J - o Stride.
template <int Kernel, int Stride, int J>
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void depthwise_column(Vec x, const Vec (&w)[Kernel], Vec& s0, Vec& s1, Vec& s2, Vec& s3) {
  if constexpr (J >= 0 && J < Kernel) s0 += x * w[J];
  if constexpr (J >= Stride && J < Stride + Kernel) s1 += x * w[J - Stride];
  if constexpr (J >= 2 * Stride && J < 2 * Stride + Kernel) s2 += x * w[J - 2 * Stride];
  if constexpr (J >= 3 * Stride && J < 3 * Stride + Kernel) s3 += x * w[J - 3 * Stride];
}
template <int Kernel, int Stride, int... J>
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void depthwise_line(std::integer_sequence<int, J...>, const float* x, std::int64_t channels,
                                                          const Vec (&w)[Kernel], Vec& s0, Vec& s1, Vec& s2, Vec& s3) {
  (depthwise_column<Kernel, Stride, J>(load(x + J * channels), w, s0, s1, s2, s3), ...);
}
template <int... K>
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void load_taps(std::integer_sequence<int, K...>, const float* from, std::int64_t channels,
                                                     Vec (&w)[sizeof...(K)]) {
  ((w[K] = load(from + K * channels)), ...);
}
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void depthwise_finish(const nn::detail::DepthwiseRow& r, std::int64_t at, Vec sum, Vec shift) {
  sum += shift;
  if (r.residual != nullptr) sum += load(r.residual + at);
  store(r.y + at, activate(sum, r.activation));
}

// Four neighbouring outputs whose columns are all inside the map; whole vectors of channels. Returns the first channel left undone.
// Sums run over the taps in the same order as in depthwise_position.
template <int Kernel, int Stride>
NORMA_SIMD_TARGET inline std::int64_t depthwise_four(const nn::detail::DepthwiseRow& r, std::int64_t ox) {
  const std::int64_t first_line = r.top < 0 ? -r.top : 0;
  const std::int64_t last_line = r.top + Kernel > r.height ? r.height - r.top : Kernel;
  const std::int64_t left = ox * Stride - r.pad_left;
  std::int64_t c = 0;
  for (; c + kWidth <= r.channels; c += kWidth) {
    Vec s0{}, s1{}, s2{}, s3{};
    for (std::int64_t ky = first_line; ky < last_line; ++ky) {
      Vec w[Kernel];
      load_taps(std::make_integer_sequence<int, Kernel>{}, r.weights + ky * Kernel * r.channels + c, r.channels, w);
      depthwise_line<Kernel, Stride>(std::make_integer_sequence<int, 3 * Stride + Kernel>{},
                                     r.x + ((r.top + ky) * r.width + left) * r.channels + c, r.channels, w, s0, s1, s2, s3);
    }
    const Vec shift = r.bias != nullptr ? load(r.bias + c) : Vec{};
    const std::int64_t at = ox * r.channels + c;
    depthwise_finish(r, at, s0, shift);
    depthwise_finish(r, at + r.channels, s1, shift);
    depthwise_finish(r, at + 2 * r.channels, s2, shift);
    depthwise_finish(r, at + 3 * r.channels, s3, shift);
  }
  return c;
}

// One row of a depthwise convolution's output.
NORMA_SIMD_TARGET inline void depthwise_row(const nn::detail::DepthwiseRow& r) {
  std::int64_t (*four)(const nn::detail::DepthwiseRow&, std::int64_t) = nullptr;
  if (r.kernel_height == r.kernel_width && r.dilation == 1) {
    if (r.kernel_width == 3 && r.stride == 1) four = &depthwise_four<3, 1>;
    if (r.kernel_width == 3 && r.stride == 2) four = &depthwise_four<3, 2>;
    if (r.kernel_width == 5 && r.stride == 1) four = &depthwise_four<5, 1>;
    if (r.kernel_width == 5 && r.stride == 2) four = &depthwise_four<5, 2>;
  }
  for (std::int64_t ox = 0; ox < r.out_width;) {
    const std::int64_t left = ox * r.stride - r.pad_left;
    if (four != nullptr && ox + 4 <= r.out_width && left >= 0 && left + 3 * r.stride + r.kernel_width <= r.width) {
      const std::int64_t done = four(r, ox);
      if (done < r.channels) {
        for (std::int64_t i = 0; i < 4; ++i) depthwise_position(r, ox + i, done);
      }
      ox += 4;
    } else {
      depthwise_position(r, ox, 0);
      ox += 1;
    }
  }
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

inline constexpr nn::detail::ConvolutionKernels kConvolutionKernels{&winograd_weights, &depthwise_row, &winograd_input_tile, &winograd_output_tile};

}  // namespace norma::simd::NORMA_SIMD
