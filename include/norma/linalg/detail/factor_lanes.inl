// Cholesky factors and triangular inverses of several matrices at once, one in every lane of the vectors, in blocks of 4 x 4. See
// for_each_instruction_set.inl for the macros. All lanes do the same, so a matrix has the same factor in whichever lane and company.
//
// L lies in panels of four rows, element (4 b + r, k) at 8 b (b + 1) + 4 k + r: four rows of a column together, columns one after the
// other. W = L^-1 lies in panels of four columns, element (k, 4 c + s) at 4 c D - 8 c (c - 1) + 4 (k - 4 c) + s for D = 4 blocks rows.
// Products then run through both from front to back.
namespace norma::simd::NORMA_SIMD {

#if NORMA_HAS_VECTOR_EXTENSION
template <class T>
struct LaneType;
template <>
struct LaneType<float> {
  using Vector = Vec;
  typedef float Loose __attribute__((vector_size(4 * NORMA_SIMD_WIDTH), aligned(4), may_alias));
};
template <>
struct LaneType<double> {
  typedef double Vector __attribute__((vector_size(4 * NORMA_SIMD_WIDTH)));
  typedef double Loose __attribute__((vector_size(4 * NORMA_SIMD_WIDTH), aligned(8), may_alias));
};
// As many values of another type as there are lanes, as they lie in memory.
template <class T, class S>
struct LaneMemory {
  using Type = typename LaneType<T>::Loose;
};
template <>
struct LaneMemory<double, float> {
  typedef float Type __attribute__((vector_size(2 * NORMA_SIMD_WIDTH), aligned(4), may_alias));
};
template <class T>
inline constexpr std::int64_t kLanes = 4 * NORMA_SIMD_WIDTH / static_cast<std::int64_t>(sizeof(T));
#else
template <class T>
struct LaneType {
  using Vector = T;
  using Loose = T;
};
template <class T>
inline constexpr std::int64_t kLanes = 1;
#endif

template <class T>
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE typename LaneType<T>::Vector lanes_at(const T* p, std::int64_t index) {
  return *reinterpret_cast<const typename LaneType<T>::Loose*>(p + index * kLanes<T>);
}
template <class T>
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void set_lanes(T* p, std::int64_t index, typename LaneType<T>::Vector v) {
  *reinterpret_cast<typename LaneType<T>::Loose*>(p + index * kLanes<T>) = v;
}
#if NORMA_X86_DISPATCH && NORMA_SIMD_WIDTH == 16
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE LaneType<float>::Vector root(LaneType<float>::Vector v) { return _mm512_maskz_sqrt_ps(0xffff, v); }
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE LaneType<double>::Vector root(LaneType<double>::Vector v) { return _mm512_maskz_sqrt_pd(0xff, v); }
#elif NORMA_X86_DISPATCH && NORMA_SIMD_WIDTH == 8
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE LaneType<float>::Vector root(LaneType<float>::Vector v) { return _mm256_sqrt_ps(v); }
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE LaneType<double>::Vector root(LaneType<double>::Vector v) { return _mm256_sqrt_pd(v); }
#elif NORMA_HAS_VECTOR_EXTENSION
template <class V>
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE V root(V v) {
  for (std::size_t l = 0; l < sizeof(V) / sizeof(v[0]); ++l) v[l] = std::sqrt(v[l]);
  return v;
}
#else
template <class T>
NORMA_ALWAYS_INLINE T root(T v) {
  return std::sqrt(v);
}
#endif

// sum[4 s + t] = sum_k q[4 k + s] p[4 k + t].
template <class T, class V, std::size_t... I>
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void dot_block(std::index_sequence<I...>, const T* q, const T* p, std::int64_t count, V* out) {
  constexpr std::int64_t lanes = kLanes<T>;
  V sum[sizeof...(I)];
  ((sum[I] = V{}), ...);
  for (std::int64_t k = 0; k < count; ++k, q += 4 * lanes, p += 4 * lanes) {
    const V column[4] = {lanes_at(p, 0), lanes_at(p, 1), lanes_at(p, 2), lanes_at(p, 3)};
    ((sum[I] += lanes_at(q, static_cast<std::int64_t>(I / 4)) * column[I % 4]), ...);
  }
  ((out[I] = sum[I]), ...);
}

// Solves T x = x for the lower 4 x 4 block at `block` (element (t, u) at 4 u + t) with reciprocal diagonal `inverse`.
template <class T, class V>
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void solve_block(const T* block, const T* inverse, V& x0, V& x1, V& x2, V& x3) {
  x0 *= lanes_at(inverse, 0);
  x1 = (x1 - lanes_at(block, 1) * x0) * lanes_at(inverse, 1);
  x2 = (x2 - lanes_at(block, 2) * x0 - lanes_at(block, 6) * x1) * lanes_at(inverse, 2);
  x3 = (x3 - lanes_at(block, 3) * x0 - lanes_at(block, 7) * x1 - lanes_at(block, 11) * x2) * lanes_at(inverse, 3);
}

// Sixteen sums want 32 registers.
inline constexpr std::int64_t kLaneStep = NORMA_SIMD_ROWS >= 12 ? 4 : 2;

// Factors the panels `l` of matrices of 4 `blocks` rows in place. pivots[4 blocks]: what was left of the diagonal, which must be positive
// and finite for a factor to be one; inverse[4 blocks]: reciprocals of the factor's diagonal.
template <class T>
NORMA_SIMD_TARGET inline void factor_lanes(T* l, std::int64_t blocks, T* inverse, T* pivots) {
  using V = typename LaneType<T>::Vector;
  constexpr std::int64_t lanes = kLanes<T>;
  using Step = std::make_index_sequence<static_cast<std::size_t>(4 * kLaneStep)>;
  for (std::int64_t b = 0; b < blocks; ++b) {
    T* const rows = l + 8 * b * (b + 1) * lanes;
    for (std::int64_t c = 0; c < b; ++c) {
      const T* const columns = l + 8 * c * (c + 1) * lanes;
      for (std::int64_t first = 0; first < 4; first += kLaneStep) {
        V sum[4 * kLaneStep];
        dot_block<T, V>(Step{}, rows + first * lanes, columns, 4 * c, sum);
        T* const at = rows + (16 * c + first) * lanes;
        for (std::int64_t s = 0; s < kLaneStep; ++s) {
          V x0 = lanes_at(at, s) - sum[4 * s], x1 = lanes_at(at, 4 + s) - sum[4 * s + 1];
          V x2 = lanes_at(at, 8 + s) - sum[4 * s + 2], x3 = lanes_at(at, 12 + s) - sum[4 * s + 3];
          solve_block(columns + 16 * c * lanes, inverse + 4 * c * lanes, x0, x1, x2, x3);
          set_lanes(at, s, x0);
          set_lanes(at, 4 + s, x1);
          set_lanes(at, 8 + s, x2);
          set_lanes(at, 12 + s, x3);
        }
      }
    }
    V sum[16];
    for (std::int64_t first = 0; first < 4; first += kLaneStep) dot_block<T, V>(Step{}, rows + first * lanes, rows, 4 * b, sum + 4 * first);
    T* const at = rows + 16 * b * lanes;
    for (std::int64_t t = 0; t < 4; ++t) {  // column t: row s at 4 t + s
      V column[4];
      for (std::int64_t s = t; s < 4; ++s) {
        V x = lanes_at(at, 4 * t + s) - sum[4 * s + t];
        for (std::int64_t u = 0; u < t; ++u) x -= lanes_at(at, 4 * u + s) * lanes_at(at, 4 * u + t);
        column[s] = x;
      }
      const V reciprocal = V{} + T{1} / root(column[t]);
      set_lanes(pivots, 4 * b + t, column[t]);
      set_lanes(inverse, 4 * b + t, reciprocal);
      for (std::int64_t s = t; s < 4; ++s) set_lanes(at, 4 * t + s, column[s] * reciprocal);
    }
  }
}

// W = L^-1 from what factor_lanes left.
template <class T>
NORMA_SIMD_TARGET inline void invert_lanes(const T* l, std::int64_t blocks, const T* inverse, T* w) {
  using V = typename LaneType<T>::Vector;
  constexpr std::int64_t lanes = kLanes<T>;
  using Step = std::make_index_sequence<static_cast<std::size_t>(4 * kLaneStep)>;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const T* const rows = l + 8 * b * (b + 1) * lanes;
    for (std::int64_t c = 0; c <= b; ++c) {
      T* const columns = w + (16 * c * blocks - 8 * c * (c - 1)) * lanes;
      T* const at = columns + 16 * (b - c) * lanes;
      for (std::int64_t first = 0; first < 4; first += kLaneStep) {
        V sum[4 * kLaneStep];
        dot_block<T, V>(Step{}, columns + first * lanes, rows + 16 * c * lanes, 4 * (b - c), sum);
        for (std::int64_t s = 0; s < kLaneStep; ++s) {
          V x0 = V{} - sum[4 * s], x1 = V{} - sum[4 * s + 1], x2 = V{} - sum[4 * s + 2], x3 = V{} - sum[4 * s + 3];
          if (b == c) {
            x0 = V{} + T(first + s == 0);
            x1 = V{} + T(first + s == 1);
            x2 = V{} + T(first + s == 2);
            x3 = V{} + T(first + s == 3);
          }
          solve_block(rows + 16 * b * lanes, inverse + 4 * b * lanes, x0, x1, x2, x3);
          set_lanes(at, first + s, x0);
          set_lanes(at, 4 + first + s, x1);
          set_lanes(at, 8 + first + s, x2);
          set_lanes(at, 12 + first + s, x3);
        }
      }
    }
  }
}

// Where the vectors of a row or a column lie.
struct RowOfL {
  std::int64_t i;
  NORMA_ALWAYS_INLINE std::int64_t operator()(std::int64_t k) const { return 8 * (i / 4) * (i / 4 + 1) + 4 * k + i % 4; }
};
struct ColumnOfL {
  std::int64_t k;
  NORMA_ALWAYS_INLINE std::int64_t operator()(std::int64_t below) const { return RowOfL{k + below}(k); }
};
struct RowOfW {
  std::int64_t i, blocks;
  NORMA_ALWAYS_INLINE std::int64_t operator()(std::int64_t j) const {
    const std::int64_t c = j / 4;
    return 16 * c * blocks - 8 * c * (c - 1) + 4 * (i - 4 * c) + j % 4;
  }
};

#if NORMA_HAS_VECTOR_EXTENSION
// The even and the odd vectors of one step of a transposition: halves of a and b, element by element in turn.
// Indices are written out: nvcc does not expand a pack of them.
template <std::size_t Lanes, class V>
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void interleave_pair(V a, V b, V& low, V& high) {
  if constexpr (Lanes == 2) {
    low = __builtin_shufflevector(a, b, 0, 2);
    high = __builtin_shufflevector(a, b, 1, 3);
  } else if constexpr (Lanes == 4) {
    low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  } else if constexpr (Lanes == 8) {
    low = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    high = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  } else {
    static_assert(Lanes == 16);
    low = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    high = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  }
}
template <class V, std::size_t... I>
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void transpose(std::index_sequence<I...>, V* v) {
  constexpr std::size_t half = sizeof...(I);
  for (std::size_t step = 1; step < 2 * half; step *= 2) {
    V next[2 * half];
    (interleave_pair<2 * half>(v[I], v[I + half], next[2 * I], next[2 * I + 1]), ...);
    ((v[I] = next[I], v[I + half] = next[I + half]), ...);
  }
}
#endif

// In the vectors at(0) ... at(count - 1) of `to`, lane l = from[l][0 ... count - 1] * scale; and back. The last vectors may be done twice.
template <class T, class S, class At>
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void to_lanes(const S* const* from, std::int64_t offset, std::int64_t count, T scale, At at, T* to) {
  constexpr std::int64_t lanes = kLanes<T>;
  std::int64_t k = 0;
#if NORMA_HAS_VECTOR_EXTENSION
  using V = typename LaneType<T>::Vector;
  for (; k < count && count >= lanes; k += lanes) {
    if (k + lanes > count) k = count - lanes;
    V v[lanes];
    NORMA_UNROLL_TIMES(16)
    for (std::int64_t l = 0; l < lanes; ++l) {
      v[l] = __builtin_convertvector(*reinterpret_cast<const typename LaneMemory<T, S>::Type*>(from[l] + offset + k), V) * scale;
    }
    transpose(std::make_index_sequence<lanes / 2>{}, v);
    NORMA_UNROLL_TIMES(16)
    for (std::int64_t l = 0; l < lanes; ++l) set_lanes(to, at(k + l), v[l]);
  }
#endif
  for (; k < count; ++k) {
    for (std::int64_t l = 0; l < lanes; ++l) to[at(k) * lanes + l] = static_cast<T>(from[l][offset + k]) * scale;
  }
}
template <class T, class S, class At>
NORMA_SIMD_TARGET NORMA_ALWAYS_INLINE void from_lanes(const T* from, At at, std::int64_t count, S* const* to, std::int64_t offset) {
  constexpr std::int64_t lanes = kLanes<T>;
  std::int64_t k = 0;
#if NORMA_HAS_VECTOR_EXTENSION
  using V = typename LaneType<T>::Vector;
  using Memory = typename LaneMemory<T, S>::Type;
  for (; k < count && count >= lanes; k += lanes) {
    if (k + lanes > count) k = count - lanes;
    V v[lanes];
    NORMA_UNROLL_TIMES(16)
    for (std::int64_t l = 0; l < lanes; ++l) v[l] = lanes_at(from, at(k + l));
    transpose(std::make_index_sequence<lanes / 2>{}, v);
    NORMA_UNROLL_TIMES(16)
    for (std::int64_t l = 0; l < lanes; ++l) *reinterpret_cast<Memory*>(to[l] + offset + k) = __builtin_convertvector(v[l], Memory);
  }
#endif
  for (; k < count; ++k) {
    for (std::int64_t l = 0; l < lanes; ++l) to[l][offset + k] = static_cast<S>(from[at(k) * lanes + l]);
  }
}

// L's panels = the upper triangles at a[lane], in rows of `stride`; and back.
template <class T>
NORMA_SIMD_TARGET inline void load_upper(const T* const* a, std::int64_t stride, std::int64_t dims, T* l) {
  for (std::int64_t k = 0; k < dims; ++k) to_lanes(a, k * stride + k, dims - k, T{1}, ColumnOfL{k}, l);
}
template <class T>
NORMA_SIMD_TARGET inline void store_upper(const T* l, std::int64_t dims, T* const* a, std::int64_t stride) {
  for (std::int64_t k = 0; k < dims; ++k) from_lanes(l, ColumnOfL{k}, dims - k, a, k * stride + k);
}
// L's panels = the lower triangles at packed[lane], row after row, times `scale`; and W's panels back into such triangles.
template <class T>
NORMA_SIMD_TARGET inline void load_packed(const float* const* packed, std::int64_t dims, T scale, T* l) {
  for (std::int64_t i = 0; i < dims; ++i) to_lanes(packed, i * (i + 1) / 2, i + 1, scale, RowOfL{i}, l);
}
template <class T>
NORMA_SIMD_TARGET inline void store_packed(const T* w, std::int64_t dims, float* const* packed) {
  for (std::int64_t i = 0; i < dims; ++i) from_lanes(w, RowOfW{i, (dims + 3) / 4}, i + 1, packed, i * (i + 1) / 2);
}

template <class T>
inline constexpr linalg::detail::LaneKernels<T> kLaneKernels{
    kLanes<T>, &factor_lanes<T>, &invert_lanes<T>, &load_upper<T>, &store_upper<T>, &load_packed<T>, &store_packed<T>};

}  // namespace norma::simd::NORMA_SIMD
