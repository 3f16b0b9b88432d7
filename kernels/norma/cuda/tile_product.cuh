/// \file
/// One block's part of a matrix product: acc(row, col) += sum over k of A(row, k) B(col, k) for a tile of rows x cols, the operands fetched by
/// asynchronous copies through a ring of stages in shared memory. What an operand is (a matrix, an image read as a convolution) is a *source*, what
/// becomes of the sums is up to the caller: search takes minima, the matrix product stores, a coupling layer applies its transform.
///
/// Arithmetic (x is an operand, rounding to nearest; sums are float):
///
/// | arithmetic | unit | relative error of one product, at most | operands in memory |
/// | --- | --- | --- | --- |
/// | `fp32` | FFMA, every architecture | exact product, one rounding a sum | float, Half, BFloat16 |
/// | `tf32` | tensor cores, sm_80 | 2^-10 (each operand 2^-11) | float |
/// | `tf32x3` | the same, three products of operands split in two | 2^-20 (3 * 2^-22) | float |
/// | `bf16` | the same | 2^-8 from float (each operand 2^-9), else exact | BFloat16, float |
/// | `f16` | the same | 2^-10 from float (each operand 2^-11, numbers under 65504), else exact | Half, float |
///
/// Order of the sums: depth ascending, fixed by the policy. Tensor cores add the products of one instruction in an order of their own and may
/// truncate where the table's other rows round, so two architectures may differ in the last bits; one architecture gives the same bits every time.
/// NaN and infinity: stay in their row and column. tf32x3 turns an infinite operand, or one within 2^-11 of the largest float, into NaN.
///
/// Shared memory. Tensor cores, Contiguous::depth: [row][depth] without padding; the 16-byte chunks of a row are permuted (xor with bits of the row)
/// so that the eight rows that one phase of ldmatrix reads, and the eight chunks that one phase of the copies writes, lie in different banks.
/// Contiguous::row: [depth][row + padding]. fp32: [row + padding][depth], the rows in the order in which lanes read them, and [depth][row].
#pragma once

#include <cstdint>
#include <type_traits>

#include <norma/cuda/arithmetic.hpp>
#include <norma/cuda/detail/simt.cuh>

namespace norma::cuda {

/// Never changes what a product means; it may change the order of its sums, and so the last bits.
struct TilePolicy {
  int rows, cols, depth;         ///< of the block's tile; depth: of one stage, in elements
  int warps_down, warps_across;  ///< each warp has rows / warps_down x cols / warps_across of the tile
  int stages;                    ///< of the ring in shared memory, >= 2
  Arithmetic arithmetic;
  friend constexpr bool operator==(const TilePolicy&, const TilePolicy&) = default;
  [[nodiscard]] NORMA_HD constexpr int threads() const noexcept { return 32 * warps_down * warps_across; }
};

/// For large products: 64 bytes of depth a stage, 64 KiB of shared memory, two blocks on a multiprocessor. A warp has 64 x 64 where a product is one
/// instruction (its reads of shared memory then keep up with the tensor cores), 32 x 64 where it is three, and on the CUDA cores (8 x 8 a thread).
inline constexpr TilePolicy kTileFp32{128, 128, 16, 4, 2, 3, Arithmetic::fp32};
inline constexpr TilePolicy kTileTf32{128, 128, 16, 2, 2, 4, Arithmetic::tf32};
inline constexpr TilePolicy kTileTf32x3{128, 128, 16, 2, 2, 4, Arithmetic::tf32x3};
inline constexpr TilePolicy kTileBf16{128, 128, 32, 2, 2, 4, Arithmetic::bf16};
inline constexpr TilePolicy kTileF16{128, 128, 32, 2, 2, 4, Arithmetic::f16};
/// For products of few tiles: four times as many blocks of 128 threads, a warp has 32 x 32.
inline constexpr TilePolicy kTileFp32Small{64, 64, 16, 2, 2, 4, Arithmetic::fp32};
inline constexpr TilePolicy kTileTf32Small{64, 64, 16, 2, 2, 4, Arithmetic::tf32};
inline constexpr TilePolicy kTileTf32x3Small{64, 64, 16, 2, 2, 4, Arithmetic::tf32x3};
inline constexpr TilePolicy kTileBf16Small{64, 64, 32, 2, 2, 4, Arithmetic::bf16};
inline constexpr TilePolicy kTileF16Small{64, 64, 32, 2, 2, 4, Arithmetic::f16};

/// An operand of `rows` rows, of which the tile has first_row ..: `data` is element (row 0, k 0) of the whole matrix.
/// Contiguous::depth: element (r, k) is data[r * stride + k]; Contiguous::row: data[k * stride + r], and first_row is a multiple of the chunk.
/// `data` is aligned to 16 bytes and `stride` is a multiple of the chunk, 16 / sizeof(T) elements. A contiguous extent that is no multiple of the
/// chunk is read up to the next one: that padding must exist; along the depth it must hold zeros, along the rows anything. Depth below 2^31; a tile's
/// rows (Contiguous::row: the matrix) span less than 64 GiB, the reach of 32 bits in chunks.
template <class T, Contiguous kContiguous = Contiguous::depth>
class MatrixSource {
 public:
  using Element = T;
  NORMA_HD MatrixSource(const T* data, std::int64_t first_row, std::int64_t rows, std::int64_t depth, std::int64_t stride)
      : tile_(data + (kAlongDepth ? first_row * stride : first_row)),
        rows_(rows - first_row < kMost ? static_cast<int>(rows - first_row) : kMost),
        depth_(static_cast<unsigned>(depth)),
        chunks_per_line_(static_cast<unsigned>(stride / kChunk)) {}

  [[nodiscard]] NORMA_DEVICE const T* chunk(int tile_row, std::int64_t k) const {
    const unsigned r = row(tile_row);
    return inside(r, k) ? address(r, k) : nullptr;
  }
  // The same in parts, see TileProduct. A row is its distance from the tile's first element in chunks.
  [[nodiscard]] NORMA_DEVICE unsigned row(int tile_row) const {
    const auto r = static_cast<unsigned>(tile_row);
    if (tile_row >= rows_) return kNoRow;
    return kAlongDepth ? r * chunks_per_line_ : r / kChunk;
  }
  [[nodiscard]] NORMA_DEVICE bool inside(unsigned row, std::int64_t k) const { return row != kNoRow && static_cast<unsigned>(k) < depth_; }
  [[nodiscard]] NORMA_DEVICE const T* address(unsigned row, std::int64_t k) const {
    const auto u = static_cast<unsigned>(k);
    return tile_ + std::uint64_t{row + (kAlongDepth ? u / kChunk : u * chunks_per_line_)} * kChunk;
  }

 private:
  static constexpr bool kAlongDepth = kContiguous == Contiguous::depth;
  static constexpr int kChunk = 16 / static_cast<int>(sizeof(T));
  static constexpr int kMost = 1 << 30;
  static constexpr unsigned kNoRow = ~0u;

  const T* tile_;
  int rows_;
  unsigned depth_;
  unsigned chunks_per_line_;
};

namespace detail {

template <class Source>
concept SourceInParts = requires(const Source& source, std::int64_t k) {
  source.inside(source.row(0), k);
  source.address(source.row(0), k);
};
template <class Source>
NORMA_DEVICE auto source_row(const Source& source, int tile_row) {
  if constexpr (SourceInParts<Source>) {
    return source.row(tile_row);
  } else {
    return tile_row;
  }
}

NORMA_HD constexpr bool on_tensor_cores(Arithmetic a) noexcept { return a != Arithmetic::fp32; }
NORMA_HD constexpr bool in_16_bits(Arithmetic a) noexcept { return a == Arithmetic::bf16 || a == Arithmetic::f16; }
template <class Element>
NORMA_HD constexpr bool can_compute(Arithmetic a) noexcept {
  if (std::is_same_v<Element, float> || a == Arithmetic::fp32) return true;
  return std::is_same_v<Element, BFloat16> ? a == Arithmetic::bf16 : a == Arithmetic::f16;
}

/// One operand's tile of one stage in shared memory: where its chunks are, and how a warp gets its fragments.
/// `kLanes`: fp32 only, how many lanes of a warp hold different rows of this operand (4 for A, 8 for B).
template <class Element, Contiguous kContiguous, Arithmetic kArithmetic, int kRows, int kDepth, int kLanes>
struct OperandTile {
  static_assert(can_compute<Element>(kArithmetic), "TilePolicy::arithmetic: bf16 takes float or BFloat16, f16 float or Half, tf32 and tf32x3 float");
  static constexpr bool kAlongDepth = kContiguous == Contiguous::depth;
  static constexpr int kChunk = 16 / static_cast<int>(sizeof(Element));
  static constexpr int kLine = kAlongDepth ? kDepth : kRows;  // contiguous elements
  static constexpr int kLines = kAlongDepth ? kRows : kDepth;
  static constexpr int kChunksPerLine = kLine / kChunk;
  static constexpr int kChunks = kLines * kChunksPerLine;
  static_assert(kLine % kChunk == 0, "TilePolicy: rows, cols and depth are multiples of 16 bytes of elements");
  static constexpr bool kMma = on_tensor_cores(kArithmetic);
  static constexpr bool kPairs = in_16_bits(kArithmetic) && sizeof(Element) == 4;  // fragments of 16 bits from float: read two depths at once
  static constexpr bool kPermute = kMma && kAlongDepth;
  static constexpr int kPadding = kPermute ? 0 : kMma ? (kPairs ? 4 : 8) : kAlongDepth && kChunksPerLine % 2 == 0 ? kChunk : 0;
  static constexpr int kStride = kLine + kPadding;
  static constexpr int kElements = kLines * kStride;
  static constexpr int kBytes = kElements * static_cast<int>(sizeof(Element));

  /// The largest power of two that divides the chunks of a line, at most the 8 chunks that fill the banks once.
  static constexpr int permuted_chunks() {
    int w = 1;
    while (w < 8 && kChunksPerLine % (2 * w) == 0) w *= 2;
    return w;
  }
  static constexpr unsigned kPermuted = permuted_chunks();
  static_assert(!kPairs || !kPermute || kPermuted >= 4, "TilePolicy::depth: at least 16 floats");
  static NORMA_DEVICE unsigned permutation(unsigned row) {
    const unsigned x = row / (8 / kPermuted);
    return kPairs ? 2 * (x % (kPermuted / 2)) : x % kPermuted;
  }
  static constexpr int kLineGroup = kMma ? 8 : 4 * kLanes;  ///< place() and line_of() repeat after so many lines
  /// Where a row of the tile lies along the lines: for fp32, rows that lanes read at once become neighbours.
  static NORMA_DEVICE unsigned line_of(unsigned row) {
    if constexpr (kMma) {
      return row;
    } else {
      constexpr unsigned kGroup = kLineGroup;
      return row / kGroup * kGroup + row % 4 * kLanes + row % kGroup / 4;
    }
  }
  /// Of element (line, k) of a tile whose contiguous index is the depth.
  static NORMA_DEVICE int place(unsigned line, unsigned k) {
    if constexpr (kPermute) k = ((k / kChunk) ^ permutation(line)) * kChunk + k % kChunk;
    return static_cast<int>(line * kStride + k);
  }

  /// Tensor cores: 16 rows from `row` (a multiple of 16) and the depth of one instruction from k, as warp_mma's a: {rows 0 .. 7, rows 8 .. 15} x
  /// {first half of the depth}, then of the second half. Two operands b of 8 columns are {r[0], r[2]} and {r[1], r[3]}. Float is left unrounded for
  /// tf32.
  static NORMA_DEVICE void load_fragment(unsigned (&r)[4], simt::Shared<Element> s, int row, int k) {
    const int lane = simt::lane_index(), g = lane / 4, t = lane % 4;
    if constexpr (kAlongDepth && !kPairs) {
      const int line = row + lane / 8 % 2 * 8 + lane % 8;
      simt::load_matrix_x4(r, s, place(static_cast<unsigned>(line), static_cast<unsigned>(k + lane / 16 * kChunk)));
    } else if constexpr (!kAlongDepth && sizeof(Element) == 2) {
      simt::load_matrix_x4_transposed(r, s, (k + lane / 16 * 8 + lane % 8) * kStride + row + lane / 8 % 2 * 8);
    } else {
      NORMA_UNROLL
      for (int q = 0; q < 4; ++q) {
        const int my_row = row + q % 2 * 8 + g;
        if constexpr (kPairs) {
          const int my_k = k + q / 2 * 8 + 2 * t;
          float low, high;
          if constexpr (kAlongDepth) {
            const simt::Vec<float, 2> both = s.template load<2>(place(static_cast<unsigned>(my_row), static_cast<unsigned>(my_k)));
            low = both[0];
            high = both[1];
          } else {
            low = s[my_k * kStride + my_row];
            high = s[(my_k + 1) * kStride + my_row];
          }
          r[q] = simt::pack<std::conditional_t<kArithmetic == Arithmetic::bf16, BFloat16, Half>>(low, high);
        } else {
          const float x = s[(k + q / 2 * 4 + t) * kStride + my_row];
          r[q] = simt::float_bits(x);
        }
      }
    }
  }

  /// fp32: of this thread's rows from `row` on, which are 4 neighbours in every 4 * kLanes, the `kCount` from number `first` on, at depths k .. k +
  /// kSteps - 1 (k a multiple of kSteps). Contiguous::row: first and kCount are multiples of 4.
  template <int kCount, int kSteps>
  static NORMA_DEVICE void load_registers(float (&x)[kCount][kSteps], simt::Shared<Element> s, int row, int first, int lane, int k) {
    if constexpr (kAlongDepth) {
      NORMA_UNROLL
      for (int i = 0; i < kCount; ++i) {
        const int line = row + (first + i) * kLanes + lane;
        const simt::Vec<Element, kSteps> steps = s.template load<kSteps>(place(static_cast<unsigned>(line), static_cast<unsigned>(k)));
        NORMA_UNROLL
        for (int n = 0; n < kSteps; ++n) x[i][n] = simt::to_float(steps[n]);
      }
    } else {
      NORMA_UNROLL
      for (int n = 0; n < kSteps; ++n) {
        NORMA_UNROLL
        for (int i = 0; i < kCount; i += 4) {
          const simt::Vec<Element, 4> four = s.template load<4>((k + n) * kStride + row + (first + i) * kLanes + 4 * lane);
          NORMA_UNROLL
          for (int e = 0; e < 4; ++e) x[i + e][n] = simt::to_float(four[e]);
        }
      }
    }
  }
};

/// Brings an operand's tiles into shared memory: which chunks this thread fetches.
template <class Tile, class Element, class Source, int kThreads>
struct OperandCopy {
  static constexpr int kEach = (Tile::kChunks + kThreads - 1) / kThreads;
  static constexpr bool kWholeLines = kThreads % Tile::kChunksPerLine == 0;  // then all chunks of a thread lie at one place of their lines
  static constexpr int kDifferentRows = !Tile::kAlongDepth && kWholeLines ? 1 : kEach;
  using Row = decltype(source_row(std::declval<const Source&>(), 0));

  const Source& source;
  Row rows[kDifferentRows];

  NORMA_DEVICE explicit OperandCopy(const Source& s) : source(s) {
    NORMA_UNROLL
    for (int i = 0; i < kDifferentRows; ++i) {
      rows[i] = source_row(source, static_cast<int>(Tile::kAlongDepth ? line(i) : position(i) * Tile::kChunk));
    }
  }
  static NORMA_DEVICE unsigned line(int i) {
    const unsigned t = static_cast<unsigned>(simt::thread_index());
    if constexpr (kWholeLines) return t / Tile::kChunksPerLine + static_cast<unsigned>(i * (kThreads / Tile::kChunksPerLine));
    return (t + static_cast<unsigned>(i * kThreads)) / Tile::kChunksPerLine;
  }
  static NORMA_DEVICE unsigned position(int i) {
    const unsigned t = static_cast<unsigned>(simt::thread_index());
    if constexpr (kWholeLines) return t % Tile::kChunksPerLine;
    return (t + static_cast<unsigned>(i * kThreads)) % Tile::kChunksPerLine;
  }
  /// Begins the copies of the tile at depth k.
  NORMA_DEVICE void begin(simt::Shared<Element> s, std::int64_t k) const {
    NORMA_UNROLL
    for (int i = 0; i < kEach; ++i) {
      if (Tile::kChunks % kThreads != 0 && simt::thread_index() + i * kThreads >= Tile::kChunks) break;
      int row, to;
      std::int64_t at;
      if constexpr (Tile::kAlongDepth) {
        row = i;
        at = k + position(i) * Tile::kChunk;
        if constexpr (kWholeLines && kThreads / Tile::kChunksPerLine % Tile::kLineGroup == 0) {  // where the lines are permuted the same way
          to = Tile::place(Tile::line_of(line(0)), position(0) * Tile::kChunk) + i * (kThreads / Tile::kChunksPerLine) * Tile::kStride;
        } else {
          to = Tile::place(Tile::line_of(line(i)), position(i) * Tile::kChunk);
        }
      } else {
        row = kDifferentRows == 1 ? 0 : i;
        at = k + line(i);
        to = static_cast<int>(line(i) * Tile::kStride + position(i) * Tile::kChunk);
      }
      if constexpr (SourceInParts<Source>) {
        simt::copy_async<16>(s, to, source.address(rows[row], at), source.inside(rows[row], at));
      } else {
        const Element* const from = source.chunk(rows[row], at);
        simt::copy_async<16>(s, to, from, from != nullptr);
      }
    }
  }
};

}  // namespace detail

/// See the file's comment. A source has
///     const Element* chunk(int row, std::int64_t k) const;
/// the address, aligned to 16 bytes, of the chunk of 16 / sizeof(Element) elements at depth k of the tile's row `row`: Contiguous::depth: depths k ..
/// (k a multiple of the chunk); Contiguous::row: rows row .. (row a multiple of the chunk). Null for zeros, and it must be null beyond the operand:
/// rows up to the tile's, depths up to the stage's are asked for. A source may have, besides, the same in parts: `Row row(int row) const`, which is
/// called once and the result kept for the whole depth (it should be 4 bytes), `bool inside(Row, std::int64_t k) const`, and `const Element*
/// address(Row, std::int64_t k) const`, which is called inside or not.
template <TilePolicy kPolicy, class ElementA, class ElementB = ElementA, Contiguous kA = Contiguous::depth, Contiguous kB = Contiguous::depth>
struct TileProduct {
 private:
  static constexpr bool kTensorCores = detail::on_tensor_cores(kPolicy.arithmetic);
  static constexpr int kWarpRows = kPolicy.rows / kPolicy.warps_down, kWarpCols = kPolicy.cols / kPolicy.warps_across;
  static constexpr int kFfmaSteps = 4;
  static constexpr int kMmaDepth = detail::in_16_bits(kPolicy.arithmetic) ? 16 : 8;
  static constexpr int kSteps = kPolicy.depth / (kTensorCores ? kMmaDepth : kFfmaSteps);  // of one stage
  static_assert(kPolicy.stages >= 2, "TilePolicy::stages: at least 2");
  static_assert(kWarpRows * kPolicy.warps_down == kPolicy.rows && kWarpRows % 16 == 0, "TilePolicy::rows: a multiple of 16 * warps_down");
  static_assert(kWarpCols * kPolicy.warps_across == kPolicy.cols && kWarpCols % (kTensorCores ? 16 : 32) == 0,
                "TilePolicy::cols: a multiple of 16 * warps_across (fp32: 32 * warps_across)");
  static_assert(kPolicy.depth % (kTensorCores ? 2 * kMmaDepth : kFfmaSteps) == 0, "TilePolicy::depth: a multiple of 16 (bf16, f16: 32; fp32: 4)");

  using TileA = detail::OperandTile<ElementA, kA, kPolicy.arithmetic, kPolicy.rows, kPolicy.depth, 4>;
  using TileB = detail::OperandTile<ElementB, kB, kPolicy.arithmetic, kPolicy.cols, kPolicy.depth, 8>;
  static constexpr int kStageBytes = TileA::kBytes + TileB::kBytes;

  static NORMA_DEVICE int first_row() { return simt::warp_index() / kPolicy.warps_across * kWarpRows; }
  static NORMA_DEVICE int first_col() { return simt::warp_index() % kPolicy.warps_across * kWarpCols; }

 public:
  static constexpr TilePolicy policy = kPolicy;
  static constexpr int kThreads = kPolicy.threads();
  static constexpr int kSharedBytes = kPolicy.stages * kStageBytes;
  static constexpr int kRowSlots = kTensorCores ? kWarpRows / 8 : kWarpRows / 4;  ///< different tile rows that one thread's sums belong to
  static constexpr int kRowLanes = kTensorCores ? 4 : 8;  ///< so many consecutive lanes share their rows: xor-shuffles with masks below it reduce
                                                          ///< over a row within the warp; warps_across warps hold the rest
  static constexpr int kRun = kTensorCores ? 2 : 4;  ///< consecutive columns in a thread

  /// This thread's sums, in registers: loops over them must be unrolled, as the members' are.
  struct Accumulator {
    // Tensor cores: [16 rows][8 columns][warp_mma's c]. fp32: [4 rows][4 columns][row * 4 + column].
    static constexpr int kDown = kTensorCores ? kWarpRows / 16 : kWarpRows / 16, kAcross = kTensorCores ? kWarpCols / 8 : kWarpCols / 32;
    static constexpr int kEach = kTensorCores ? 4 : 16, kRowsEach = kTensorCores ? 2 : 4;
    float value[kDown][kAcross][kEach];

    NORMA_DEVICE void fill(float v) {
      NORMA_UNROLL
      for (int i = 0; i < kDown; ++i) {
        NORMA_UNROLL
        for (int j = 0; j < kAcross; ++j) {
          NORMA_UNROLL
          for (int e = 0; e < kEach; ++e) value[i][j][e] = v;
        }
      }
    }
    /// f(int slot, int row, int col, float& value): row and col in the tile. A row's columns ascend.
    template <class F>
    NORMA_DEVICE void for_each(F f) {
      visit([&](int slot, int row, int col, float* run) {
        NORMA_UNROLL
        for (int e = 0; e < kRun; ++e) f(slot, row, col + e, run[e]);
      });
    }
    /// f(int slot, int row, int col, Vec<float, kRun>): the sums of columns col .. col + kRun - 1, col a multiple of kRun. For wide stores.
    template <class F>
    NORMA_DEVICE void for_each_run(F f) {
      visit([&](int slot, int row, int col, float* run) {
        simt::Vec<float, kRun> v;
        NORMA_UNROLL
        for (int e = 0; e < kRun; ++e) v[e] = run[e];
        f(slot, row, col, v);
      });
    }
    /// f(int slot, int row)
    template <class F>
    NORMA_DEVICE void for_each_row(F f) {
      const int base = row_base();
      NORMA_UNROLL
      for (int slot = 0; slot < kRowSlots; ++slot) f(slot, base + row_offset(slot));
    }

   private:
    static NORMA_DEVICE int row_base() { return first_row() + (kTensorCores ? simt::lane_index() / 4 : simt::lane_index() / 8 * 4); }
    static NORMA_DEVICE int row_offset(int slot) { return slot / kRowsEach * 16 + slot % kRowsEach * (kTensorCores ? 8 : 1); }
    template <class F>
    NORMA_DEVICE void visit(F f) {
      const int row = row_base(), col = first_col() + simt::lane_index() % kRowLanes * kRun;
      NORMA_UNROLL
      for (int slot = 0; slot < kRowSlots; ++slot) {
        NORMA_UNROLL
        for (int j = 0; j < kAcross; ++j) {
          f(slot, row + row_offset(slot), col + j * (kRowLanes * kRun), &value[slot / kRowsEach][j][slot % kRowsEach * kRun]);
        }
      }
    }
  };

  /// acc(row, col) += sum over k in [0, depth) of A(row, k) B(col, k). All threads of the block (kThreads of them) call it with the same depth.
  /// Whatever was in the kSharedBytes from `shared_offset` (a multiple of 16) must be done with: put a barrier between its last use and this call.
  /// Two calls need none between them, and after the call the memory is free for anyone.
  template <class SourceA, class SourceB>
  static NORMA_DEVICE void accumulate(Accumulator& acc, const SourceA& a, const SourceB& b, std::int64_t depth, int shared_offset) {
    const int steps = static_cast<int>(detail::ceil_div(depth, kPolicy.depth));
    if (steps <= 0) return;
    const detail::OperandCopy<TileA, ElementA, SourceA, kThreads> copy_a(a);
    const detail::OperandCopy<TileB, ElementB, SourceB, kThreads> copy_b(b);
    // Stage `slot` of the ring gets the tiles of `step`; beyond the last one an empty group keeps the count of groups.
    const auto fetch = [&](int step, int slot) {
      if (step < steps) {
        const std::int64_t k = static_cast<std::int64_t>(step) * kPolicy.depth;
        copy_a.begin(stage_a(shared_offset, slot), k);
        copy_b.begin(stage_b(shared_offset, slot), k);
      }
      simt::copy_async_commit();
    };
    NORMA_UNROLL
    for (int s = 0; s < kPolicy.stages - 1; ++s) fetch(s, s);
    if constexpr (kTensorCores) {
      multiply_on_tensor_cores(acc, fetch, steps, shared_offset);
    } else {
      multiply_on_cuda_cores(acc, fetch, steps, shared_offset);
    }
  }

 private:
  static NORMA_DEVICE simt::Shared<ElementA> stage_a(int shared_offset, int slot) {
    return simt::shared_array<ElementA>(shared_offset + slot * kStageBytes, TileA::kElements);
  }
  static NORMA_DEVICE simt::Shared<ElementB> stage_b(int shared_offset, int slot) {
    return simt::shared_array<ElementB>(shared_offset + slot * kStageBytes + TileA::kBytes, TileB::kElements);
  }
  static NORMA_DEVICE int next(int slot) { return slot + 1 == kPolicy.stages ? 0 : slot + 1; }

  template <class Fetch>
  static NORMA_DEVICE void multiply_on_cuda_cores(Accumulator& acc, const Fetch& fetch, int steps, int shared_offset) {
    constexpr int kM = kWarpRows / 4, kN = kWarpCols / 8, kColumnsAtOnce = TileB::kAlongDepth ? 1 : 4;
    const int row = first_row(), col = first_col(), lane = simt::lane_index();
    int reading = 0, writing = kPolicy.stages - 1;
    for (int step = 0; step < steps; ++step) {
      simt::copy_async_wait<kPolicy.stages - 2>();
      simt::block_barrier();  // this stage is there for everybody, and everybody is done with the one before
      fetch(step + kPolicy.stages - 1, writing);
      writing = next(writing);
      const auto a = stage_a(shared_offset, reading);
      const auto b = stage_b(shared_offset, reading);
      reading = next(reading);
      NORMA_NO_UNROLL  // all at once, the compiler fetches too far ahead and runs out of registers
      for (int n = 0; n < kSteps; ++n) {
        float x[kM][kFfmaSteps];
        TileA::load_registers(x, a, row, 0, lane / 8, n * kFfmaSteps);
        NORMA_UNROLL
        for (int j = 0; j < kN; j += kColumnsAtOnce) {
          float y[kColumnsAtOnce][kFfmaSteps];
          TileB::load_registers(y, b, col, j, lane % 8, n * kFfmaSteps);
          NORMA_UNROLL
          for (int k = 0; k < kFfmaSteps; ++k) {
            NORMA_UNROLL
            for (int e = 0; e < kColumnsAtOnce; ++e) {
              NORMA_UNROLL
              for (int i = 0; i < kM; ++i) acc.value[i / 4][(j + e) / 4][i % 4 * 4 + (j + e) % 4] += x[i][k] * y[e][k];  // nvcc contracts it
            }
          }
        }
      }
    }
    simt::block_barrier();
  }

  // A warp's operands at the depth of one instruction, in registers. B's next columns follow into the registers of those that were just used; A's
  // next rows come in a second set while the first is at work, or, where three products a pair hide the wait, after it.
  static constexpr int kSetsOfA = kPolicy.arithmetic == Arithmetic::tf32x3 ? 1 : 2;
  static constexpr int kFragmentsDown = kTensorCores ? kWarpRows / 16 : 1, kFragmentsAcross = kTensorCores ? kWarpCols / 16 : 1;
  using FragmentsA = unsigned[kFragmentsDown][4];

  static NORMA_DEVICE void load_rows(FragmentsA& a, int shared_offset, int slot, int n) {
    NORMA_UNROLL
    for (int i = 0; i < kFragmentsDown; ++i) TileA::load_fragment(a[i], stage_a(shared_offset, slot), first_row() + 16 * i, n * kMmaDepth);
  }
  static NORMA_DEVICE void load_columns(unsigned (&b)[4], int shared_offset, int slot, int j, int n) {
    TileB::load_fragment(b, stage_b(shared_offset, slot), first_col() + 16 * j, n * kMmaDepth);
  }

  template <class Fetch>
  static NORMA_DEVICE void multiply_on_tensor_cores(Accumulator& acc, const Fetch& fetch, int steps, int shared_offset) {
    FragmentsA a[kSetsOfA];
    unsigned b[kFragmentsAcross][4];
    int reading = 0, writing = kPolicy.stages - 1;
    simt::copy_async_wait<kPolicy.stages - 2>();
    simt::block_barrier();
    load_rows(a[0], shared_offset, 0, 0);
    NORMA_UNROLL
    for (int j = 0; j < kFragmentsAcross; ++j) load_columns(b[j], shared_offset, 0, j, 0);
    for (int step = 0; step < steps; ++step) {
      NORMA_UNROLL
      for (int n = 0; n < kSteps; ++n) {
        constexpr int kLast = kSteps - 1;
        if (n == kLast) {  // all of this stage is in registers
          simt::copy_async_wait<kPolicy.stages - 2>();
          simt::block_barrier();
          reading = step + 1 < steps ? next(reading) : reading;  // in the end, something that nobody uses
        }
        const int next_n = n == kLast ? 0 : n + 1;
        if constexpr (kSetsOfA == 2) load_rows(a[(n + 1) % kSetsOfA], shared_offset, reading, next_n);
        multiply(acc, a[n % kSetsOfA], b, [&](int j) { load_columns(b[j], shared_offset, reading, j, next_n); });
        if (n == 0) {  // behind the products, where its addresses need no more registers than there are
          fetch(step + kPolicy.stages - 1, writing);
          writing = next(writing);
        }
        if constexpr (kSetsOfA == 1) load_rows(a[0], shared_offset, reading, next_n);
      }
    }
    simt::block_barrier();
  }

  /// `done(j)`: b[j] is free.
  template <class Done>
  static NORMA_DEVICE void multiply(Accumulator& acc, FragmentsA& a, unsigned (&b)[kFragmentsAcross][4], const Done& done) {
    if constexpr (kPolicy.arithmetic == Arithmetic::tf32x3) {
      FragmentsA a_rest;
      NORMA_UNROLL
      for (int i = 0; i < kFragmentsDown; ++i) split(a[i], a_rest[i]);
      NORMA_UNROLL
      for (int j = 0; j < kFragmentsAcross; ++j) {
        unsigned b_rest[4];
        split(b[j], b_rest);
        multiply_columns<simt::Tf32>(acc, a_rest, b[j], j);  // small products first
        multiply_columns<simt::Tf32>(acc, a, b_rest, j);
        multiply_columns<simt::Tf32>(acc, a, b[j], j);
        done(j);
      }
    } else if constexpr (kPolicy.arithmetic == Arithmetic::tf32) {
      NORMA_UNROLL
      for (int i = 0; i < kFragmentsDown; ++i) round(a[i]);
      NORMA_UNROLL
      for (int j = 0; j < kFragmentsAcross; ++j) {
        round(b[j]);
        multiply_columns<simt::Tf32>(acc, a, b[j], j);
        done(j);
      }
    } else {
      NORMA_UNROLL
      for (int j = 0; j < kFragmentsAcross; ++j) {
        multiply_columns<std::conditional_t<kPolicy.arithmetic == Arithmetic::bf16, BFloat16, Half>>(acc, a, b[j], j);
        done(j);
      }
    }
  }
  template <class Tag>
  static NORMA_DEVICE void multiply_columns(Accumulator& acc, const FragmentsA& a, const unsigned (&b)[4], int j) {
    const unsigned left[2] = {b[0], b[2]}, right[2] = {b[1], b[3]};
    NORMA_UNROLL
    for (int i = 0; i < kFragmentsDown; ++i) {
      simt::warp_mma<Tag>(acc.value[i][2 * j], a[i], left);
      simt::warp_mma<Tag>(acc.value[i][2 * j + 1], a[i], right);
    }
  }
  static NORMA_DEVICE void round(unsigned (&x)[4]) {
    NORMA_UNROLL
    for (int e = 0; e < 4; ++e) x[e] = simt::round_tf32(simt::float_from_bits(x[e]));
  }
  /// x = x rounded + rest, the rest rounded too: at most 2^-22 of x is lost.
  static NORMA_DEVICE void split(unsigned (&x)[4], unsigned (&rest)[4]) {
    NORMA_UNROLL
    for (int e = 0; e < 4; ++e) {
      const float whole = simt::float_from_bits(x[e]);
      x[e] = simt::round_tf32(whole);
      rest[e] = simt::round_tf32(whole - simt::float_from_bits(x[e]));
    }
  }
};

}  // namespace norma::cuda
