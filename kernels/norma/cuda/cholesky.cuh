/// \file
/// Cholesky factors and their inverses for many symmetric matrices at once: what covariance.cuh is built from.
///
/// One loop leaves W = L^-1, with A = L L^T, where A was. Write A in square blocks and look at block row and block column k, once everything above
/// and left of it is final: L(k, k) is the factor of what A(k, k) has become; L(i, k) = A(i, k) L(k, k)^-T below it; and in block row k, where the
/// sums -sum_m L(k, m) W(m, j) have been gathered, W(k, j) = L(k, k)^-1 times that. Blocks below row k then lose a product with L(i, k): with L(j,
/// k)^T right of column k (the factor's update), with W(k, j) left of it and in it (the inverse's). A block left of column k is stored transposed,
/// and then all of this is the same code: a block solves X L(k, k)^T = T in its turn and loses P(a) P(b)^T afterwards, where P(s) is L(s, k)
/// for s > k and W(k, s)^T for s <= k, and (a, b) is (i, j) before the block's column has come and (j, i) after.
///
/// The loop is used twice: with 8 x 8 blocks, each in the registers of one thread, for a matrix that one thread block holds; and, for larger
/// ones, with 64 x 64 blocks, each of 64 threads, left-looking: two kernels a block column, over L and W in device memory.
///
/// Cost: d^3 / 3 multiply-adds a matrix.
///
/// Accuracy: L L^T = A + E with |E| <= (d + 12) 2^-24 |L| |L|^T to first order: an entry is a chain of at most d products and sums, and is scaled
/// by a reciprocal root, which is wrong by 4 units of 2^-24 at most, once off the diagonal and twice, squared, on it (Higham, "Accuracy and Stability
/// of Numerical Algorithms", theorem 10.3). L W = I + F with |F| <= (d + 12) 2^-24 |L| |W| likewise: columns of W are solved for.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include <norma/cuda/covariance.hpp>
#include <norma/cuda/detail/simt.cuh>

namespace norma::cuda::detail::triangle {

/// Rows and columns of the matrix tile that one thread keeps in registers.
inline constexpr int kTile = 8;
/// Rows and columns of the block that 64 threads keep.
inline constexpr int kBlock = 64;
inline constexpr int kBlockTiles = kBlock / kTile;
inline constexpr int kBlockThreads = kBlockTiles * kBlockTiles;
inline constexpr int kBlockElements = kBlock * kBlock;
/// Blocks that share a multiprocessor: 168 registers a thread are enough, without a spill.
inline constexpr int kBlocksAtOnce = 6;

using Tile = float[kTile][kTile];

inline constexpr float kLargest = std::numeric_limits<float>::max();
inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
NORMA_DEVICE bool is_finite(float x) { return x >= -kLargest && x <= kLargest; }

NORMA_DEVICE std::int64_t row_start(std::int64_t row) { return row * (row + 1) / 2; }  // of a packed lower triangle

NORMA_DEVICE void clear(Tile& t) {
  NORMA_UNROLL
  for (int p = 0; p < kTile; ++p) {
    NORMA_UNROLL
    for (int q = 0; q < kTile; ++q) t[p][q] = 0.0f;
  }
}

NORMA_DEVICE void transpose(Tile& t) {
  NORMA_UNROLL
  for (int p = 0; p < kTile; ++p) {
    NORMA_UNROLL
    for (int q = 0; q < p; ++q) {
      const float value = t[p][q];
      t[p][q] = t[q][p];
      t[q][p] = value;
    }
  }
}

/// to += Sign * from; from = 0.
template <int Sign>
NORMA_DEVICE void fold(Tile& to, Tile& from) {
  NORMA_UNROLL
  for (int p = 0; p < kTile; ++p) {
    NORMA_UNROLL
    for (int q = 0; q < kTile; ++q) {
      to[p][q] += Sign > 0 ? from[p][q] : -from[p][q];
      from[p][q] = 0.0f;
    }
  }
}

// Panels. A panel holds rows of 8 * tiles numbers in shared memory. Every second group of four goes to the row's second half: neighbouring threads,
// which read neighbouring tiles as two groups of four, then read neighbouring groups, which share no bank.

/// Where group `g` of four columns begins in a row of a panel.
NORMA_DEVICE int group_start(int g, int tiles) { return g % 2 * (4 * tiles) + g / 2 * 4; }
/// The matrix column that lies at place `f` of a panel's row.
NORMA_DEVICE int column_at(int f, int tiles) {
  const int half = f / (4 * tiles), within = f - half * (4 * tiles);
  return within / 4 * 8 + half * 4 + within % 4;
}

struct Eight {
  simt::Vec<float, 4> low, high;
};
/// Columns 8 tile .. 8 tile + 7 of the row that starts at `row`.
NORMA_DEVICE Eight read_eight(simt::Shared<float> panel, int row, int tile, int tiles) {
  return {panel.load<4>(row + 4 * tile), panel.load<4>(row + 4 * tile + 4 * tiles)};
}
NORMA_DEVICE float element(const Eight& e, int i) { return i < 4 ? e.low[i % 4] : e.high[i % 4]; }

/// t[p][q] += Sign * sum over `rows` rows of A(row, 8 ta + p) * B(row, 8 tb + q), for two panels of the same shape.
template <int Sign>
NORMA_DEVICE void add_products(Tile& t, simt::Shared<float> a, int ta, simt::Shared<float> b, int tb, int tiles, int rows) {
  const int stride = kTile * tiles, half = 4 * tiles;
  auto x_low = a + 4 * ta, x_high = x_low + half, y_low = b + 4 * tb, y_high = y_low + half;
  const auto add_row = [&] {
    const Eight x{x_low.load<4>(0), x_high.load<4>(0)};
    const Eight y{y_low.load<4>(0), y_high.load<4>(0)};
    x_low = x_low + stride;
    x_high = x_high + stride;
    y_low = y_low + stride;
    y_high = y_high + stride;
    NORMA_UNROLL
    for (int p = 0; p < kTile; ++p) {
      const float factor = Sign > 0 ? element(x, p) : -element(x, p);
      NORMA_UNROLL
      for (int q = 0; q < kTile; ++q) t[p][q] += factor * element(y, q);
    }
  };
  int r = 0;
  for (; r + kTile <= rows; r += kTile) {
    NORMA_UNROLL
    for (int n = 0; n < kTile; ++n) add_row();
  }
  for (; r < rows; ++r) add_row();
}

/// Panel row `row + q`, columns of `tile`: t[0 .. 7][q].
NORMA_DEVICE void write_columns(const Tile& t, simt::Shared<float> panel, int first_row, int tile, int tiles) {
  NORMA_UNROLL
  for (int q = 0; q < kTile; ++q) {
    const int at = (first_row + q) * kTile * tiles + 4 * tile;
    panel.store<4>(at, simt::Vec<float, 4>{{t[0][q], t[1][q], t[2][q], t[3][q]}});
    panel.store<4>(at + 4 * tiles, simt::Vec<float, 4>{{t[4][q], t[5][q], t[6][q], t[7][q]}});
  }
}

/// What a flag says of a pivot, see kPositiveDefinite.
NORMA_DEVICE int failure(std::int64_t row, bool finite) { return static_cast<int>(2 * row + (finite ? 0 : 1)); }

/// Replaces the lower triangle of a diagonal tile by its factor. Returns kPositiveDefinite, or the flag of the first row that has no positive finite
/// pivot, counted from `first_row`.
NORMA_DEVICE int factor_tile(Tile& t, float (&reciprocal)[kTile], std::int64_t first_row) {
  int flag = kPositiveDefinite;
  NORMA_UNROLL
  for (int q = 0; q < kTile; ++q) {
    const float pivot = t[q][q];
    const bool finite = is_finite(pivot);
    if (flag == kPositiveDefinite && !(finite && pivot > 0.0f)) flag = failure(first_row + q, finite);
    const float scale = simt::reciprocal_root(pivot);
    reciprocal[q] = scale;
    NORMA_UNROLL
    for (int p = q; p < kTile; ++p) t[p][q] *= scale;
    NORMA_UNROLL
    for (int c = q + 1; c < kTile; ++c) {
      NORMA_UNROLL
      for (int p = c; p < kTile; ++p) t[p][c] -= t[p][q] * t[c][q];
    }
  }
  return flag;
}

/// x L^T = x in place, for the diagonal tile L(8 tile + q, 8 tile + m) that a panel holds with the columns of L as its rows, from `first_row` on.
NORMA_DEVICE void solve(float (&x)[kTile], simt::Shared<float> panel, int first_row, int tile, int tiles, simt::Shared<float> reciprocals) {
  NORMA_UNROLL
  for (int m = 0; m < kTile; ++m) {
    const Eight column = read_eight(panel, (first_row + m) * kTile * tiles, tile, tiles);
    const float scale = reciprocals[m];
    x[m] *= scale;
    NORMA_UNROLL
    for (int q = m + 1; q < kTile; ++q) x[q] -= x[m] * element(column, q);
  }
}

/// Smallest value of the block, in every thread; an int a warp at byte `offset` of the shared memory.
NORMA_DEVICE int block_min(int value, int offset) {
  const int warps = simt::block_threads() / simt::kWarp;
  const auto found = simt::shared_array<int>(offset, warps);
  value = simt::warp_min(value);
  if (simt::lane_index() == 0) found[simt::warp_index()] = value;
  simt::block_barrier();
  for (int w = 0; w < warps; ++w) {
    const int other = found[w];
    value = other < value ? other : value;
  }
  return value;
}

/// Shared memory of `invert` in 4-byte words: twice a panel of 8 rows, a diagonal tile and its reciprocals, and two flags.
NORMA_HD constexpr int inversion_words(int tiles) { return 2 * (kTile * kTile * tiles + kTile * kTile + kTile) + 4; }

/// The loop of this page over the tiles of one matrix. The thread's tile is (i, j), j <= i < tiles (a thread without one says -1, -1) and holds
/// t[p][q] = A(8 i + p, 8 j + q), which is used up. `emit(k, panel, corner)` is called by all threads for every k: panel row m holds W(8 k + m, c) in
/// the columns c < 8 k + 8 (zero above the diagonal) and L(c, 8 k + m) in those behind, corner[8 m + c] is L(8 k + c, 8 k + m). All threads of the
/// block call `invert`, behind a barrier, and get the same flag; unless that is kPositiveDefinite, what was emitted is not all. Its memory,
/// inversion_words(tiles) words at byte `offset` of the shared memory, may still be read by other threads when it returns.
template <class Emit>
NORMA_DEVICE int invert(Tile& t, int i, int j, int tiles, int offset, std::int64_t first_row, Emit emit) {
  const int stride = kTile * tiles, panel_floats = kTile * stride;
  const auto panels = simt::shared_array<float>(offset, 2 * panel_floats);
  const auto corners = simt::shared_array<float>(offset + 4 * 2 * panel_floats, 2 * kTile * kTile);
  const auto roots = simt::shared_array<float>(offset + 4 * 2 * (panel_floats + kTile * kTile), 2 * kTile);
  const auto flags = simt::shared_array<int>(offset + 4 * 2 * (panel_floats + kTile * kTile + kTile), 2);
  int a = i, b = j;
  for (int k = 0; k < tiles; ++k) {
    // Two of each, so that two barriers a step are enough: what a step writes, nobody has read since two barriers.
    const int now = k % 2;
    const auto panel = panels + now * panel_floats, corner = corners + now * kTile * kTile, reciprocals = roots + now * kTile;
    const bool below = j == k && i > k;
    if (i == k && j == k) {
      float reciprocal[kTile];
      flags[now] = factor_tile(t, reciprocal, first_row + kTile * k);
      NORMA_UNROLL
      for (int q = 0; q < kTile; ++q) reciprocals[q] = reciprocal[q];
      write_columns(t, corner, 0, 0, 1);
      NORMA_UNROLL
      for (int p = 0; p < kTile; ++p) {
        NORMA_UNROLL
        for (int q = 0; q < kTile; ++q) t[p][q] = p == q ? 1.0f : 0.0f;
      }
    }
    if (below || i == k) write_columns(t, panel, 0, a, tiles);
    simt::block_barrier();
    const int flag = flags[now];
    if (flag != kPositiveDefinite) return flag;
    for (int f = simt::thread_index(); f < stride; f += simt::block_threads()) {
      float x[kTile];
      NORMA_UNROLL
      for (int m = 0; m < kTile; ++m) x[m] = panel[m * stride + f];
      solve(x, corner, 0, 0, 1, reciprocals);
      NORMA_UNROLL
      for (int m = 0; m < kTile; ++m) panel[m * stride + f] = x[m];
    }
    simt::block_barrier();
    emit(k, panel, corner);
    if (i > k) {
      if (below) {
        clear(t);
        a = j;
        b = i;
      }
      add_products<-1>(t, panel, a, panel, b, tiles, kTile);
    }
  }
  return kPositiveDefinite;
}

// ------------------------------------------------------------------------------------------------------- matrices of several blocks

/// Per matrix: L as block rows (block (i, m) at row_start(i) + m) and W as block columns (block (j, j), then those below it), so that the blocks
/// which one sum runs over lie behind one another. A block of L is stored with its columns as rows, one of W as it is.
struct Blocks {
  float* factor;   ///< L, `count` blocks
  float* inverse;  ///< W
  int* marks;      ///< [blocks across]: first flag of a number of W that is not finite
  int across;      ///< blocks across
  NORMA_DEVICE std::int64_t count() const { return row_start(across); }
  NORMA_DEVICE float* l(std::int64_t matrix, int i, int m) const { return factor + (matrix * count() + row_start(i) + m) * kBlockElements; }
  NORMA_DEVICE float* w(std::int64_t matrix, int m, int j) const {
    return inverse + (matrix * count() + count() - row_start(across - j) + m - j) * kBlockElements;
  }
  NORMA_DEVICE int* mark(std::int64_t matrix, int block) const { return marks + matrix * across + block; }
};

/// Rows of the two operands that are copied at a time, and how many such copies are under way.
inline constexpr int kStageRows = 8;
inline constexpr int kStageFloats = 2 * kStageRows * kBlock;

/// t[p][q] += Sign * sum over `depth` rows of A(row, 8 (thread % 8) + p) * B(row, 8 (thread / 8) + q). A and B are row-major in device memory, rows
/// of 64 numbers at multiples of 16 bytes. Sums of 64 rows are added to `t` one after the other: chains stay short. `Stages` copies of 4 KiB at byte
/// 0 of the shared memory.
template <int Sign, int Stages>
NORMA_DEVICE void add_block_products(Tile& t, const float* a, std::int64_t a_stride, const float* b, std::int64_t b_stride, int depth) {
  constexpr int kGroups = kBlock / 4, kRowsAtOnce = kBlockThreads / kGroups;  // groups of four columns in a row; rows that one instruction copies
  const int thread = simt::thread_index();
  const auto stages = simt::shared_array<float>(0, Stages * kStageFloats);
  const int rounds = static_cast<int>(ceil_div(depth, kStageRows));
  // A thread copies the same group of every kRowsAtOnce-th row.
  const int own_row = thread / kGroups, own_group = thread % kGroups;
  const int place = own_row * kBlock + group_start(own_group, kBlockTiles);
  const float* from_a = a + own_row * a_stride + 4 * own_group;
  const float* from_b = b + own_row * b_stride + 4 * own_group;
  const auto copy = [&](int round) {
    if (round < rounds) {
      const auto to = stages + round % Stages * kStageFloats;
      NORMA_UNROLL
      for (int row = 0; row < kStageRows; row += kRowsAtOnce) {
        const bool valid = round * kStageRows + row + own_row < depth;
        simt::copy_async<16>(to, place + row * kBlock, valid ? from_a : a, valid);
        simt::copy_async<16>(to, place + row * kBlock + kStageFloats / 2, valid ? from_b : b, valid);
        from_a += kRowsAtOnce * a_stride;
        from_b += kRowsAtOnce * b_stride;
      }
    }
    simt::copy_async_commit();
  };
  NORMA_UNROLL
  for (int s = 0; s < Stages - 1; ++s) copy(s);
  Tile part;
  clear(part);
  for (int round = 0; round < rounds; ++round) {
    simt::copy_async_wait<Stages - 2>();
    simt::block_barrier();
    copy(round + Stages - 1);
    const auto from = stages + round % Stages * kStageFloats;
    add_products<1>(part, from, thread % kBlockTiles, from + kStageFloats / 2, thread / kBlockTiles, kBlockTiles, kStageRows);
    if (round % (kBlock / kStageRows) == kBlock / kStageRows - 1 || round == rounds - 1) fold<Sign>(t, part);
  }
  simt::copy_async_wait<0>();
  simt::block_barrier();
}

/// out[row][column] = t[p][q] with row = 8 (thread / 8) + q, column = 8 (thread % 8) + p, as whole rows: rows and columns below the limits, and, in a
/// block on the diagonal, columns up to the row. `out` is packed: row r of the block starts at row_start(first_row + r) + first_column. 16 KiB of
/// shared memory.
NORMA_DEVICE void write_packed(const Tile& t, float* packed, std::int64_t first_row, std::int64_t first_column, std::int64_t dims) {
  const int thread = simt::thread_index();
  const auto rows = simt::shared_array<float>(0, kBlockElements);
  NORMA_UNROLL
  for (int q = 0; q < kTile; ++q) {
    const int at = (kTile * (thread / kBlockTiles) + q) * kBlock + kTile * (thread % kBlockTiles);
    rows.store<4>(at, simt::Vec<float, 4>{{t[0][q], t[1][q], t[2][q], t[3][q]}});
    rows.store<4>(at + 4, simt::Vec<float, 4>{{t[4][q], t[5][q], t[6][q], t[7][q]}});
  }
  simt::block_barrier();
  for (int r = 0; r < kBlock && first_row + r < dims; ++r) {
    if (first_column + thread <= first_row + r) {
      const float value = rows[r * kBlock + thread];
      packed[row_start(first_row + r) + first_column + thread] = value;
    }
  }
}

/// Matrices A = scale * packed + regularisation * I, and where W and the flags go (may be where `packed` is).
struct FactorTask {
  const float* packed;
  float* factor;
  int* flags;
  std::int64_t dims;
  std::int64_t triangle;  ///< dims (dims + 1) / 2
  float scale;
  float regularisation;
  Blocks blocks;
};

/// t[p][q] = A(row + p, column + q), lower triangle; beyond the matrix, the unit matrix.
NORMA_DEVICE void read_matrix(Tile& t, const float* packed, std::int64_t row, std::int64_t column, const FactorTask& task) {
  NORMA_UNROLL
  for (int p = 0; p < kTile; ++p) {
    NORMA_UNROLL
    for (int q = 0; q < kTile; ++q) {
      const std::int64_t r = row + p, c = column + q;
      float value = r == c ? 1.0f : 0.0f;
      if (r < task.dims && c <= r) value = packed[row_start(r) + c] * task.scale + (r == c ? task.regularisation : 0.0f);
      t[p][q] = value;
    }
  }
}

/// Shared memory of the kernels below: the operands' copies, later the factor's block; then what `invert` takes, or eight rows that are solved and 64
/// reciprocals.
NORMA_HD constexpr int block_extra_offset(int stages) {
  const int copies = stages * kStageFloats;
  return 4 * (copies > kBlockElements ? copies : kBlockElements);
}
NORMA_HD constexpr int block_shared_bytes(int stages) {
  const int solving = 2 * kTile * kBlock + kBlock, inversion = inversion_words(kBlockTiles);
  return block_extra_offset(stages) + 4 * (solving > inversion ? solving : inversion);
}

/// One number of W, in column `column` of row `row`, both counted in the whole matrix; returns the flag to remember.
NORMA_DEVICE int write_inverse(float* packed, std::int64_t row, std::int64_t column, std::int64_t dims, float value, int flag) {
  if (row >= dims || column > row) return flag;
  packed[row_start(row) + column] = value;
  return is_finite(value) || flag != kPositiveDefinite ? flag : failure(row, false);  // rows come in order: the first one stays
}

/// Block column `k`, first half: the diagonal block. One thread block a matrix.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kBlockThreads, kBlocksAtOnce)
NORMA_KERNEL factor_diagonal_kernel(FactorTask task, int k) {
  constexpr int kStages = Tuning{}(simt::pass_arch()).stages;
  const std::int64_t matrix = simt::block_x();
  const int thread = simt::thread_index();
  if (k == 0) {
    for (int n = thread; n < task.blocks.across; n += kBlockThreads) *task.blocks.mark(matrix, n) = kPositiveDefinite;
  } else if (task.flags[matrix] != kPositiveDefinite) {
    return;
  }
  const std::int64_t first = std::int64_t{kBlock} * k;
  const int i = thread / kBlockTiles, j = thread % kBlockTiles;  // the thread's tile; the block is symmetric, so those with i < j only help to copy
  Tile t;
  read_matrix(t, task.packed + matrix * task.triangle, first + kTile * i, first + kTile * j, task);
  transpose(t);
  const float* const left = task.blocks.l(matrix, k, 0);
  add_block_products<-1, kStages>(t, left, kBlock, left, kBlock, kBlock * k);
  transpose(t);
  float* const l = task.blocks.l(matrix, k, k);
  float* const w = task.blocks.w(matrix, k, k);
  float* const packed = task.factor + matrix * task.triangle;
  const bool lower = i >= j;
  int mark = kPositiveDefinite;
  const auto emit = [&](int step, simt::Shared<float> panel, simt::Shared<float> corner) {
    const int place = group_start(thread / 4, kBlockTiles) + thread % 4, above = kTile * step;  // one column a thread
    for (int m = 0; m < kTile; ++m) {
      const float value = panel[m * kBlock + place];
      const std::int64_t at = (above + m) * kBlock + thread;
      w[at] = thread < above + kTile ? value : 0.0f;
      if (thread < above + kTile) mark = write_inverse(packed, first + above + m, first + thread, task.dims, value, mark);
      float factor = thread > above ? value : 0.0f;
      if (thread >= above && thread < above + kTile) factor = corner[m * kTile + thread - above];
      l[at] = factor;
    }
  };
  const int flag = invert(t, lower ? i : -1, lower ? j : -1, kBlockTiles, block_extra_offset(kStages), first, emit);
  if (thread == 0 && (k == 0 || flag != kPositiveDefinite)) task.flags[matrix] = flag;
  if (flag != kPositiveDefinite) return;
  mark = block_min(mark, 0);
  if (thread == 0) *task.blocks.mark(matrix, k) = mark;
}

/// Block column `k`, second half: L(i, k) below the diagonal block and W(k, j) left of it. One thread block a block: block_x() counts all but k.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kBlockThreads, kBlocksAtOnce)
NORMA_KERNEL factor_panel_kernel(FactorTask task, int k) {
  constexpr int kStages = Tuning{}(simt::pass_arch()).stages;
  constexpr int kExtra = block_extra_offset(kStages);
  const std::int64_t matrix = simt::block_y();
  if (task.flags[matrix] != kPositiveDefinite) return;
  const int other = static_cast<int>(simt::block_x()) + (simt::block_x() >= k ? 1 : 0);
  const bool below = other > k;
  const int thread = simt::thread_index();
  const int ti = thread % kBlockTiles, tj = thread / kBlockTiles;
  const std::int64_t k_row = std::int64_t{kBlock} * k, other_row = std::int64_t{kBlock} * other;
  Tile t;
  clear(t);
  const float* left = task.blocks.w(matrix, other, other);
  int from = other;  // first block of the sum
  if (below) {
    read_matrix(t, task.packed + matrix * task.triangle, other_row + kTile * ti, k_row + kTile * tj, task);
    left = task.blocks.l(matrix, other, 0);
    from = 0;
  }
  add_block_products<-1, kStages>(t, left, kBlock, task.blocks.l(matrix, k, from), kBlock, kBlock * (k - from));

  // X L(k, k)^T = T, eight columns after eight columns; one row of X a thread.
  const auto l = simt::shared_array<float>(0, kBlockElements);
  const auto rows = simt::shared_array<float>(kExtra, 2 * kTile * kBlock);
  const auto reciprocals = simt::shared_array<float>(kExtra + 4 * 2 * kTile * kBlock, kBlock);
  const float* const corner = task.blocks.l(matrix, k, k);
  for (int n = 0; n < kBlockElements / 4 / kBlockThreads; ++n) {
    const int item = n * kBlockThreads + thread, row = item / (kBlock / 4), group = item % (kBlock / 4);
    simt::copy_async<16>(l, row * kBlock + group_start(group, kBlockTiles), corner + row * kBlock + 4 * group, true);
  }
  simt::copy_async_commit();
  reciprocals[thread] = 1.0f / corner[thread * kBlock + thread];
  simt::copy_async_wait<0>();
  float* const out = below ? task.blocks.l(matrix, other, k) : task.blocks.w(matrix, k, other);
  float* const packed = task.factor + matrix * task.triangle;
  const int place = group_start(thread / 4, kBlockTiles) + thread % 4;
  int mark = kPositiveDefinite;
  for (int s = 0; s < kBlockTiles; ++s) {
    const auto panel = rows + s % 2 * (kTile * kBlock);
    if (tj == s) write_columns(t, panel, 0, ti, kBlockTiles);
    simt::block_barrier();
    float x[kTile];
    NORMA_UNROLL
    for (int m = 0; m < kTile; ++m) x[m] = panel[m * kBlock + place];
    solve(x, l, kTile * s, s, kBlockTiles, reciprocals + kTile * s);
    NORMA_UNROLL
    for (int m = 0; m < kTile; ++m) {
      panel[m * kBlock + place] = x[m];
      out[(kTile * s + m) * kBlock + thread] = x[m];
      if (!below) mark = write_inverse(packed, k_row + kTile * s + m, other_row + thread, task.dims, x[m], mark);
    }
    simt::block_barrier();
    if (tj > s) add_products<-1>(t, panel, ti, l + kTile * s * kBlock, tj, kBlockTiles, kTile);
  }
  if (below) return;
  simt::block_barrier();
  mark = block_min(mark, 0);
  if (thread == 0 && mark < *task.blocks.mark(matrix, other)) *task.blocks.mark(matrix, other) = mark;
}

/// Sets the final flag and fills the factor of a matrix that has none with NaN. One thread block a matrix.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(Tuning{}(simt::pass_arch()).threads)
NORMA_KERNEL seal_kernel(FactorTask task) {
  const std::int64_t matrix = simt::block_x();
  int flag = task.flags[matrix];
  simt::block_barrier();
  if (flag == kPositiveDefinite) {
    for (int n = 0; n < task.blocks.across; ++n) {
      const int mark = *task.blocks.mark(matrix, n);
      flag = mark < flag ? mark : flag;
    }
    if (flag == kPositiveDefinite) return;
    if (simt::thread_index() == 0) task.flags[matrix] = flag;
  }
  float* const factor = task.factor + matrix * task.triangle;
  for (std::int64_t n = simt::thread_index(); n < task.triangle; n += simt::block_threads()) factor[n] = kNaN;
}

/// Launches the above for `matrices` matrices.
template <class Tuning>
Status factor_blocked(std::string_view who, StreamRef stream, const FactorTask& task, std::int64_t matrices) {
  auto* const diagonal = factor_diagonal_kernel<Tuning>;
  auto* const panel = factor_panel_kernel<Tuning>;
  auto* const seal = seal_kernel<Tuning>;
  NORMA_TRY(const int arch, kernel_arch(who, panel));
  const auto policy = Tuning{}(arch);
  const auto shared = static_cast<std::size_t>(block_shared_bytes(policy.stages));
  for (int k = 0; k < task.blocks.across; ++k) {
    NORMA_CHECK(launch(who, stream, LaunchShape{.blocks_x = matrices, .threads = kBlockThreads, .shared_bytes = shared}, diagonal, task, k));
    NORMA_CHECK(launch(who, stream,
                       LaunchShape{.blocks_x = task.blocks.across - 1, .blocks_y = matrices, .threads = kBlockThreads, .shared_bytes = shared}, panel,
                       task, k));
  }
  return launch(who, stream, LaunchShape{.blocks_x = matrices, .threads = policy.threads}, seal, task);
}

}  // namespace norma::cuda::detail::triangle
