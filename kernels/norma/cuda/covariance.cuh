/// \file
/// Kernels of <norma/cuda/covariance.hpp>. Reference: norma::GaussianAccumulator, norma::covariance.
///
/// Up to kGaussianDimsInOneBlock dimensions, one kernel does everything for one position a thread block: batches of 64 images come to shared memory
/// by asynchronous copies, are summed (double), centred in place and multiplied, each thread keeping an 8 x 8 tile of the lower triangle in
/// registers; what one batch's mean differs from the mean so far is one more row of the product (Chan et al.). The same registers are then scaled,
/// factored and inverted (cholesky.cuh), and leave through shared memory as whole rows. A stream of batches is the same kernel, with the sums read at
/// its start and written at its end.
///
/// Larger matrices: centred features go to the workspace, 64 x 64 blocks of the product are one thread block each, factors are cholesky.cuh's block
/// algorithm, for as many positions at a time as the workspace holds.
///
/// Bound by: multiply-adds (d = 100, 209 images: 1.2 M for the product and 0.4 M for the factor a position, against 84 KB read and 20 KB written).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include <norma/cuda/cholesky.cuh>
#include <norma/cuda/covariance.hpp>
#include <norma/cuda/detail/simt.cuh>

namespace norma::cuda {

struct GaussianPolicy {
  int stages;        ///< copies of 8 rows under way where a block is 64 x 64; at least 2
  int batch_stages;  ///< batches of 64 images in shared memory where one block holds the matrix: 2 copies the next one meanwhile
  int threads;       ///< of the kernels that only read and write
  friend constexpr bool operator==(const GaussianPolicy&, const GaussianPolicy&) = default;
};

/// Counted, not measured: docs/kernels/covariance.md.
struct GaussianTuning {
  NORMA_HD constexpr GaussianPolicy operator()(int /*arch*/) const { return {.stages = 4, .batch_stages = 1, .threads = 256}; }
};

namespace detail {
namespace triangle {

inline constexpr int kBatch = static_cast<int>(kGaussianBatch);
inline constexpr int kGroups = 8;  // sums of 8 images each make a batch's
inline constexpr int kMostTiles = static_cast<int>(kGaussianDimsInOneBlock) / kTile;
inline constexpr int kMostThreads = 384;
static_assert(kMostTiles * kTile == kGaussianDimsInOneBlock && kMostTiles * (kMostTiles + 1) / 2 <= kMostThreads);

/// Byte offsets in the shared memory of gaussian_kernel. The batches make way for the packed triangle, and both for what `invert` takes.
struct SharedLayout {
  int stages, stride;                       // batches, floats in a row
  int sums, mean, high, low, found, bytes;  // [8, stride] double; [stride] double; two floats that add up to the mean; [warps] int
};
NORMA_HD constexpr SharedLayout shared_layout(std::int64_t dims, int batch_stages) {
  // 99 KiB is what every device from sm_80 on gives a block.
  constexpr int kAnyDevice = 99 * 1024;
  const int d = static_cast<int>(dims), tiles = (d + kTile - 1) / kTile;
  SharedLayout layout{};
  layout.stride = kTile * tiles;
  for (layout.stages = batch_stages;; --layout.stages) {
    layout.sums = 4 * layout.stages * (kBatch + 1) * layout.stride;
    int end = layout.sums + 8 * kGroups * layout.stride;
    const int packed = (4 * (d * (d + 1) / 2) + 15) / 16 * 16, inversion = 4 * inversion_words(tiles);
    end = end > packed ? end : packed;
    end = end > inversion ? end : inversion;
    layout.mean = end;
    layout.high = layout.mean + 8 * layout.stride;
    layout.low = layout.high + 4 * layout.stride;
    layout.found = layout.low + 4 * layout.stride;
    layout.bytes = layout.found + 4 * (kMostThreads / simt::kWarp);
    if (layout.stages == 1 || layout.bytes <= kAnyDevice) return layout;
  }
}
static_assert(shared_layout(kGaussianDimsInOneBlock, 2).bytes <= 99 * 1024);

/// Everything that one launch may do, in this order; null pointers leave it out.
struct GaussianTask {
  const float* x;  ///< [rows, dims]; row r belongs to position r mod positions
  std::int64_t x_stride, rows, positions, dims;
  bool groups_of_four;  ///< x may be copied 16 bytes at a time
  std::int64_t before;  ///< images in the sums
  double* mean;         ///< sums: read where before > 0, written where `keep`
  float* products;
  bool keep;
  float* model_mean;  ///< model, with `factor` and `flags`
  float* factor;
  int* flags;
  float scale, regularisation;
};

/// Images of one position.
NORMA_DEVICE std::int64_t images_of(std::int64_t rows, std::int64_t position, std::int64_t positions) {
  return position < rows ? (rows - position + positions - 1) / positions : 0;
}

/// How much of the old mean's step towards the mean of `added` images enters the products, as a factor of one more row.
NORMA_DEVICE float step_weight(double before, double added) {
  return before > 0.0 ? std::sqrt(static_cast<float>(before) * (static_cast<float>(added) / static_cast<float>(before + added))) : 0.0f;
}

/// Tile number `thread` of the lower triangle, row after row, so that whole warps run out of work as rows are done.
NORMA_DEVICE void find_tile(int thread, int tiles, int& i, int& j) {
  i = 0;
  for (j = thread; j > i; ++i) j -= i + 1;
  if (i < tiles) return;
  i = -1;
  j = -1;
}

/// Goes through the places of a table row by row, `threads` places at a time, without a division a place.
class Walk {
 public:
  NORMA_DEVICE Walk(int columns) : columns_(columns), row_step_(simt::block_threads() / columns) {
    column_step_ = simt::block_threads() - row_step_ * columns;
    row = simt::thread_index() / columns;
    column = simt::thread_index() - row * columns;
  }
  NORMA_DEVICE void next() {
    row += row_step_;
    column += column_step_;
    if (column >= columns_) {
      column -= columns_;
      ++row;
    }
  }
  int row, column;

 private:
  int columns_, row_step_, column_step_;
};

/// s[row_start(8 i + p) + 8 j + q] <-> t[p][q], entries of the triangle only.
NORMA_DEVICE void read_tile(Tile& t, simt::Shared<float> s, int i, int j, int d) {
  NORMA_UNROLL
  for (int p = 0; p < kTile; ++p) {
    const int r = kTile * i + p, at = r * (r + 1) / 2;
    NORMA_UNROLL
    for (int q = 0; q < kTile; ++q) {
      const int c = kTile * j + q;
      if (r < d && c <= r) t[p][q] = s[at + c];
    }
  }
}
NORMA_DEVICE void write_tile(const Tile& t, simt::Shared<float> s, int i, int j, int d) {
  NORMA_UNROLL
  for (int p = 0; p < kTile; ++p) {
    const int r = kTile * i + p, at = r * (r + 1) / 2;
    NORMA_UNROLL
    for (int q = 0; q < kTile; ++q) {
      const int c = kTile * j + q;
      if (r < d && c <= r) s[at + c] = t[p][q];
    }
  }
}

template <class Tuning>
NORMA_LAUNCH_BOUNDS(kMostThreads)
NORMA_KERNEL gaussian_kernel(GaussianTask task) {
  constexpr auto kPolicy = Tuning{}(simt::pass_arch());
  const SharedLayout layout = shared_layout(task.dims, kPolicy.batch_stages);
  const std::int64_t position = simt::block_x();
  const int thread = simt::thread_index(), threads = simt::block_threads();
  const int d = static_cast<int>(task.dims), stride = layout.stride, tiles = stride / kTile, groups = stride / 4;
  const int packed_count = d * (d + 1) / 2, batch_floats = (kBatch + 1) * stride;
  const auto batches = simt::shared_array<float>(0, layout.stages * batch_floats);
  const auto packed = simt::shared_array<float>(0, packed_count);
  const auto sums = simt::shared_array<double>(layout.sums, kGroups * stride);
  const auto mean = simt::shared_array<double>(layout.mean, stride);
  const auto high = simt::shared_array<float>(layout.high, stride);
  const auto low = simt::shared_array<float>(layout.low, stride);
  int i, j;
  find_tile(thread, tiles, i, j);

  Tile total;
  clear(total);
  if (task.before > 0) {
    const float* const from = task.products + position * packed_count;
    for (int n = thread; n < packed_count; n += threads) packed[n] = from[n];
    simt::block_barrier();
    if (i >= 0) read_tile(total, packed, i, j, d);
    simt::block_barrier();
  }
  for (int f = thread; f < stride; f += threads) {
    const int c = column_at(f, tiles);
    mean[f] = task.before > 0 && c < d ? task.mean[position * d + c] : 0.0;
  }

  const std::int64_t images = images_of(task.rows, position, task.positions);
  const int rounds = static_cast<int>(ceil_div(images, kBatch));  // fewer than 2^31 of 64 images
  const int last_rows = static_cast<int>(images - std::int64_t{kBatch} * (rounds - 1));
  const auto rows_in = [&](int round) { return round + 1 < rounds ? kBatch : last_rows; };
  const auto copy = [&](int round) {
    const auto to = batches + round % layout.stages * batch_floats;
    const std::int64_t step = task.positions * task.x_stride;
    const float* const from = task.x + position * task.x_stride + std::int64_t{kBatch} * round * step;
    const int rows = rows_in(round);
    if (task.groups_of_four) {
      for (Walk at(groups); at.row < rows; at.next()) {
        const bool valid = 4 * at.column < d;
        simt::copy_async<16>(to, at.row * stride + group_start(at.column, tiles), valid ? from + at.row * step + 4 * at.column : from, valid);
      }
    } else {
      for (Walk at(stride); at.row < rows; at.next()) {
        const bool valid = at.column < d;
        simt::copy_async<4>(to, at.row * stride + group_start(at.column / 4, tiles) + at.column % 4, valid ? from + at.row * step + at.column : from,
                            valid);
      }
    }
    simt::copy_async_commit();
  };
  for (int round = 0; round < rounds; ++round) {
    if (layout.stages == 1 || round == 0) copy(round);
    simt::copy_async_wait<0>();
    simt::block_barrier();
    if (layout.stages > 1 && round + 1 < rounds) copy(round + 1);
    const auto batch = batches + round % layout.stages * batch_floats;
    const int rows = rows_in(round);

    for (Walk at(groups); at.row < kGroups; at.next()) {
      const int f = 4 * at.column, first = at.row * (kBatch / kGroups);
      const int last = first + kBatch / kGroups < rows ? first + kBatch / kGroups : rows;
      double sum[4] = {};
      for (int row = first; row < last; ++row) {
        const simt::Vec<float, 4> v = batch.load<4>(row * stride + f);
        NORMA_UNROLL
        for (int e = 0; e < 4; ++e) sum[e] += static_cast<double>(v[e]);
      }
      NORMA_UNROLL
      for (int e = 0; e < 4; ++e) sums[at.row * stride + f + e] = sum[e];
    }
    simt::block_barrier();
    const double before = static_cast<double>(task.before + std::int64_t{kBatch} * round), added = static_cast<double>(rows);
    const double share = added / (before + added);
    const float weight = step_weight(before, added);
    for (int f = thread; f < stride; f += threads) {
      double own = 0.0;
      for (int g = 0; g < kGroups; ++g) own += sums[g * stride + f];
      own /= added;  // exact where all are equal, and no product that a compiler may contract with the differences below
      const double old = mean[f], step = own - old;
      batch[rows * stride + f] = before > 0.0 ? weight * static_cast<float>(step) : 0.0f;
      mean[f] = old + step * share;  // the first batch's: 0 + own * 1
      high[f] = static_cast<float>(own);
      low[f] = static_cast<float>(own - static_cast<double>(static_cast<float>(own)));
    }
    simt::block_barrier();
    for (Walk at(groups); at.row < rows; at.next()) {
      const int f = 4 * at.column;
      simt::Vec<float, 4> v = batch.load<4>(at.row * stride + f);
      const simt::Vec<float, 4> h = high.load<4>(f), l = low.load<4>(f);
      NORMA_UNROLL
      for (int e = 0; e < 4; ++e) v[e] = (v[e] - h[e]) - l[e];
      batch.store<4>(at.row * stride + f, v);
    }
    simt::block_barrier();
    if (i >= 0) {
      Tile part;
      clear(part);
      add_products<1>(part, batch, i, batch, j, tiles, task.before > 0 || round > 0 ? rows + 1 : rows);
      fold<1>(total, part);
    }
    if (layout.stages == 1) simt::block_barrier();  // before the next copy comes to the same place
  }
  simt::block_barrier();

  if (task.keep) {
    for (int f = thread; f < stride; f += threads) {
      const int c = column_at(f, tiles);
      if (c < d) task.mean[position * d + c] = mean[f];
    }
    if (i >= 0) write_tile(total, packed, i, j, d);
    simt::block_barrier();
    float* const to = task.products + position * packed_count;
    for (int n = thread; n < packed_count; n += threads) to[n] = packed[n];
    simt::block_barrier();
  }
  if (task.factor == nullptr) return;

  for (int f = thread; f < stride; f += threads) {
    const int c = column_at(f, tiles);
    const double value = mean[f];
    if (c < d) task.model_mean[position * d + c] = static_cast<float>(value);
  }
  if (i >= 0) {
    NORMA_UNROLL
    for (int p = 0; p < kTile; ++p) {
      NORMA_UNROLL
      for (int q = 0; q < kTile; ++q) {
        total[p][q] *= task.scale;
        if (p == q && i == j) total[p][q] = kTile * i + p < d ? total[p][q] + task.regularisation : 1.0f;
      }
    }
  }
  float* const factor = task.factor + position * packed_count;
  int bad = kPositiveDefinite;
  const auto emit = [&](int k, simt::Shared<float> panel, simt::Shared<float> /*corner*/) {
    const int columns = kTile * (k + 1) < d ? kTile * (k + 1) : d;
    for (int c = thread; c < columns; c += threads) {
      const int place = group_start(c / 4, tiles) + c % 4;
      int first = kPositiveDefinite;
      NORMA_UNROLL
      for (int m = 0; m < kTile; ++m) first = write_inverse(factor, kTile * k + m, c, d, panel[m * stride + place], first);
      bad = first < bad ? first : bad;
    }
  };
  int flag = invert(total, i, j, tiles, 0, 0, emit);
  if (flag == kPositiveDefinite) flag = block_min(bad, layout.found);
  if (thread == 0) task.flags[position] = flag;
  if (flag != kPositiveDefinite) {
    simt::block_barrier();  // behind what emit wrote
    for (int n = thread; n < packed_count; n += threads) factor[n] = kNaN;
  }
}

// ------------------------------------------------------------------------------------------------------------ matrices of several blocks

/// Features of positions first .. first + count - 1 of a task, centred, in a workspace: per position `rows` rows of `stride` numbers, images first,
/// then the step of each batch.
struct CentredTask {
  GaussianTask task;
  std::int64_t first;
  float* centred;
  std::int64_t images, rows, stride;
};

inline constexpr int kCentreThreads = kBlock * 4;

/// One thread block: 64 columns of one position, batch after batch.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kCentreThreads)
NORMA_KERNEL centre_kernel(CentredTask work) {
  constexpr int kRows = kBatch / 4;
  const GaussianTask& task = work.task;
  const std::int64_t position = work.first + simt::block_y();
  const int within = simt::thread_index() % kBlock, group = simt::thread_index() / kBlock;
  const std::int64_t column = simt::block_x() * kBlock + within;
  const bool inside = column < task.dims;
  float* const out = work.centred + simt::block_y() * work.rows * work.stride + column;
  const auto sums = simt::shared_array<double>(0, 2 * kCentreThreads);
  const std::int64_t images = images_of(task.rows, position, task.positions);
  double mean = task.before > 0 && inside ? task.mean[position * task.dims + column] : 0.0;
  for (std::int64_t batch = 0; batch * kBatch < work.images; ++batch) {
    const std::int64_t first = batch * kBatch + group * kRows;
    const std::int64_t left = images - batch * kBatch;
    const std::int64_t rows = left < 0 ? 0 : left < kBatch ? left : kBatch;
    float value[kRows];
    double sum = 0.0;
    NORMA_UNROLL
    for (int r = 0; r < kRows; ++r) {
      value[r] = inside && first + r < images ? task.x[((first + r) * task.positions + position) * task.x_stride + column] : 0.0f;
      sum += static_cast<double>(value[r]);
    }
    const auto now = sums + static_cast<int>(batch % 2) * kCentreThreads;
    now[group * kBlock + within] = sum;
    simt::block_barrier();
    double own = 0.0;
    for (int g = 0; g < 4; ++g) own += now[g * kBlock + within];
    const double before = static_cast<double>(task.before + batch * kBatch), added = static_cast<double>(rows);
    own = rows > 0 ? own / added : 0.0;
    const float high = static_cast<float>(own), low = static_cast<float>(own - static_cast<double>(high));
    NORMA_UNROLL
    for (int r = 0; r < kRows; ++r) {
      if (first + r < work.images) out[(first + r) * work.stride] = inside && first + r < images ? (value[r] - high) - low : 0.0f;
    }
    const double step = own - mean;
    const bool moves = before > 0.0 && rows > 0;
    if (group == 0) out[(work.images + batch) * work.stride] = moves ? step_weight(before, added) * static_cast<float>(step) : 0.0f;
    if (rows > 0) mean = moves ? mean + step * (added / (before + added)) : own;
  }
  if (group == 0 && inside) task.mean[position * task.dims + column] = mean;
}

/// One block of one position's products: block_x() counts the blocks of the lower triangle, row after row.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kBlockThreads, kBlocksAtOnce)
NORMA_KERNEL products_kernel(CentredTask work) {
  constexpr int kStages = Tuning{}(simt::pass_arch()).stages;
  const GaussianTask& task = work.task;
  int row = 0, column = static_cast<int>(simt::block_x());
  for (; column > row; ++row) column -= row + 1;
  const std::int64_t first_row = std::int64_t{kBlock} * row, first_column = std::int64_t{kBlock} * column;
  const float* const centred = work.centred + simt::block_y() * work.rows * work.stride;
  float* const packed = task.products + (work.first + simt::block_y()) * row_start(task.dims);
  const int thread = simt::thread_index();
  Tile t;
  clear(t);
  if (task.before > 0) {
    const std::int64_t r0 = first_row + kTile * (thread / kBlockTiles), c0 = first_column + kTile * (thread % kBlockTiles);
    NORMA_UNROLL
    for (int q = 0; q < kTile; ++q) {
      NORMA_UNROLL
      for (int p = 0; p < kTile; ++p) {
        if (r0 + q < task.dims && c0 + p <= r0 + q) t[p][q] = packed[row_start(r0 + q) + c0 + p];
      }
    }
  }
  add_block_products<1, kStages>(t, centred + first_column, work.stride, centred + first_row, work.stride, static_cast<int>(work.rows));
  write_packed(t, packed, first_row, first_column, task.dims);
}

/// to = float(from), `count` numbers.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(Tuning{}(simt::pass_arch()).threads)
NORMA_KERNEL round_kernel(const double* from, float* to, std::int64_t count) {
  const std::int64_t n = simt::block_x() * simt::block_threads() + simt::thread_index();
  if (n < count) to[n] = static_cast<float>(from[n]);
}

// ---------------------------------------------------------------------------------------------------------------------------- merging

/// products += other products + weight * step step^T; one warp a row of one position's triangle.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(Tuning{}(simt::pass_arch()).threads)
NORMA_KERNEL
    merge_products_kernel(std::int64_t dims, double weight, const double* mean, const double* other_mean, float* products, const float* other) {
  const std::int64_t row = simt::block_x() * (simt::block_threads() / simt::kWarp) + simt::warp_index();
  if (row >= dims) return;
  const std::int64_t position = simt::block_y();
  const double* const a = mean + position * dims;
  const double* const b = other_mean + position * dims;
  const std::int64_t start = position * row_start(dims) + row_start(row);
  const double factor = weight * (b[row] - a[row]);
  for (std::int64_t c = simt::lane_index(); c <= row; c += simt::kWarp) {
    products[start + c] =
        static_cast<float>(static_cast<double>(products[start + c]) + static_cast<double>(other[start + c]) + factor * (b[c] - a[c]));
  }
}

template <class Tuning>
NORMA_LAUNCH_BOUNDS(Tuning{}(simt::pass_arch()).threads)
NORMA_KERNEL merge_means_kernel(std::int64_t count, double share, double* mean, const double* other) {
  const std::int64_t n = simt::block_x() * simt::block_threads() + simt::thread_index();
  if (n < count) mean[n] += (other[n] - mean[n]) * share;
}

/// Mean of `rows` rows from the means of their segments (row r in segment r mod segments), in double and rounded.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(Tuning{}(simt::pass_arch()).threads)
NORMA_KERNEL join_means_kernel(std::int64_t rows, std::int64_t segments, std::int64_t dims, const double* means, double* exact, float* mean) {
  const std::int64_t c = simt::block_x() * simt::block_threads() + simt::thread_index();
  if (c >= dims) return;
  double sum = 0.0;
  for (std::int64_t s = 0; s < segments; ++s) sum += static_cast<double>(images_of(rows, s, segments)) * means[s * dims + c];
  sum /= static_cast<double>(rows);
  exact[c] = sum;
  mean[c] = static_cast<float>(sum);
}

/// One row of the covariance a block: the segments' products, and how far their means lie from the mean.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(Tuning{}(simt::pass_arch()).threads)
NORMA_KERNEL join_products_kernel(std::int64_t rows, std::int64_t segments, std::int64_t dims, const double* means, const double* exact,
                                  const float* products, MatrixView<float> out) {
  const std::int64_t r = simt::block_x();
  for (std::int64_t c = simt::thread_index(); c <= r; c += simt::block_threads()) {
    double sum = 0.0;
    for (std::int64_t s = 0; s < segments; ++s) {
      const double step = (means[s * dims + r] - exact[r]) * (means[s * dims + c] - exact[c]);
      sum += static_cast<double>(products[s * row_start(dims) + row_start(r) + c]) + static_cast<double>(images_of(rows, s, segments)) * step;
    }
    const float value = static_cast<float>(sum / static_cast<double>(rows - 1));
    out(r, c) = value;
    out(c, r) = value;
  }
}

// -------------------------------------------------------------------------------------------------------------------------- launchers

inline Status check_workspace(std::string_view who, std::span<const std::byte> workspace) {
  if (reinterpret_cast<std::uintptr_t>(workspace.data()) % 256 == 0) return {};
  return {Errc::invalid_argument, std::string(who) + ": expected a workspace aligned to 256 bytes"};
}

/// Runs a task whose positions may be many, on the path that its size asks for.
template <class Tuning>
Status run_task(std::string_view who, StreamRef stream, const GaussianTask& task, std::span<std::byte> workspace) {
  if (task.dims <= kGaussianDimsInOneBlock) {
    auto* const kernel = gaussian_kernel<Tuning>;
    NORMA_TRY(const int arch, kernel_arch(who, kernel));
    const std::int64_t tiles = ceil_div(task.dims, kTile);
    const auto threads = static_cast<int>(ceil_div(tiles * (tiles + 1) / 2, simt::kWarp) * simt::kWarp);
    const auto shared = static_cast<std::size_t>(shared_layout(task.dims, Tuning{}(arch).batch_stages).bytes);
    return launch(who, stream, LaunchShape{.blocks_x = task.positions, .threads = threads, .shared_bytes = shared}, kernel, task);
  }

  auto* const centre = centre_kernel<Tuning>;
  auto* const products = products_kernel<Tuning>;
  auto* const round = round_kernel<Tuning>;
  NORMA_TRY(const int arch, kernel_arch(who, products));
  const GaussianPolicy policy = Tuning{}(arch);
  const std::int64_t across = blocks_across(task.dims), images = ceil_div(task.rows, task.positions);
  const std::int64_t triangle_size = packed_triangle(task.dims), blocks = packed_triangle(across) * kBlockElements;
  const bool scratch_mean = task.mean == nullptr, factors = task.factor != nullptr, observes = task.rows > 0;
  const std::size_t mean_bytes = scratch_mean ? aligned_bytes(task.dims, sizeof(double)) : 0;
  const std::size_t each =
      mean_bytes + std::max(observes ? observe_bytes_per_position(task.dims, images) : 0, factors ? factor_bytes_per_position(task.dims) : 0);
  const std::int64_t room = std::min<std::int64_t>({static_cast<std::int64_t>(workspace.size() / each), task.positions, 65535});
  if (room < 1) {
    return {Errc::out_of_memory, std::string(who) + ": the workspace is too small for one position, expected at least " + std::to_string(each) +
                                     " bytes, found " + std::to_string(workspace.size())};
  }
  NORMA_CHECK(check_workspace(who, workspace));
  for (std::int64_t first = 0; first < task.positions; first += room) {
    const std::int64_t count = std::min(room, task.positions - first);
    std::byte* const rest = workspace.data() + static_cast<std::size_t>(room) * mean_bytes;
    GaussianTask part = task;
    if (scratch_mean) {
      // Kernels find a position's mean by its number, so the scratch begins where position 0 would have been.
      part.mean = reinterpret_cast<double*>(workspace.data()) - first * task.dims;
      part.products = task.factor;
    }
    if (observes) {
      const CentredTask work{part, first, reinterpret_cast<float*>(rest), images, centred_rows(images), across * kBlock};
      NORMA_CHECK(
          launch(who, stream,
                 LaunchShape{.blocks_x = across, .blocks_y = count, .threads = kCentreThreads, .shared_bytes = 2 * kCentreThreads * sizeof(double)},
                 centre, work));
      NORMA_CHECK(launch(who, stream,
                         LaunchShape{.blocks_x = packed_triangle(across),
                                     .blocks_y = count,
                                     .threads = kBlockThreads,
                                     .shared_bytes = static_cast<std::size_t>(block_extra_offset(policy.stages))},
                         products, work));
    }
    if (!factors) continue;
    const std::int64_t numbers = count * task.dims;
    NORMA_CHECK(launch(who, stream, LaunchShape{.blocks_x = ceil_div(numbers, policy.threads), .threads = policy.threads}, round,
                       part.mean + first * task.dims, part.model_mean + first * task.dims, numbers));
    float* const l = reinterpret_cast<float*>(rest);
    const Blocks places{l, l + count * blocks, reinterpret_cast<int*>(l + 2 * count * blocks), static_cast<int>(across)};
    const FactorTask factor{part.products + first * triangle_size,
                            part.factor + first * triangle_size,
                            part.flags + first,
                            task.dims,
                            triangle_size,
                            part.scale,
                            part.regularisation,
                            places};
    NORMA_CHECK(factor_blocked<Tuning>(who, stream, factor, count));
  }
  return {};
}

inline std::string shape_text(std::int64_t rows, std::int64_t cols) { return std::to_string(rows) + " x " + std::to_string(cols); }

inline Status check_state(std::string_view who, const GaussianState& state) {
  const std::string name(who);
  const std::int64_t positions = state.mean.rows, dims = state.mean.cols;
  if (positions < 1 || dims < 1 || state.mean.data == nullptr || state.products.data == nullptr) {
    return {Errc::invalid_argument, name + ": expected sums of at least one position and one dimension, found " + shape_text(positions, dims)};
  }
  if (state.products.rows != positions || state.products.cols != packed_triangle(dims)) {
    return {Errc::shape_mismatch, name + ": sums that do not fit together, expected " + shape_text(positions, packed_triangle(dims)) +
                                      " products, found " + shape_text(state.products.rows, state.products.cols)};
  }
  if (!state.mean.dense() || !state.products.dense()) return {Errc::invalid_argument, name + ": expected dense sums, found rows with gaps"};
  if (state.count < 0) return {Errc::invalid_argument, name + ": expected a count of 0 or more, found " + std::to_string(state.count)};
  return {};
}

inline Status check_model(std::string_view who, const DeviceGaussians& model, double regularisation) {
  const std::string name(who);
  const std::int64_t positions = model.mean.rows, dims = model.mean.cols;
  if (positions < 1 || dims < 1 || model.mean.data == nullptr || model.factor.data == nullptr || model.flags == nullptr) {
    return {Errc::invalid_argument, name + ": expected memory for a mean, a factor and flags of at least one position and one dimension, found " +
                                        shape_text(positions, dims)};
  }
  if (model.factor.rows != positions || model.factor.cols != packed_triangle(dims)) {
    return {Errc::shape_mismatch, name + ": wrong factor, expected " + shape_text(positions, packed_triangle(dims)) + ", found " +
                                      shape_text(model.factor.rows, model.factor.cols)};
  }
  if (!model.mean.dense() || !model.factor.dense()) return {Errc::invalid_argument, name + ": expected a dense model, found rows with gaps"};
  if (!(regularisation >= 0.0) || !(regularisation <= static_cast<double>(std::numeric_limits<float>::max()))) {
    return {Errc::invalid_argument, name + ": expected a regularisation >= 0, found " + std::to_string(regularisation)};
  }
  return {};
}

inline Status check_features(std::string_view who, MatrixView<const float> x, std::int64_t positions, std::int64_t dims) {
  const std::string name(who);
  if (x.cols != dims || x.rows < 0 || x.rows % positions != 0) {
    return {Errc::shape_mismatch, name + ": wrong features, expected a multiple of " + std::to_string(positions) + " rows of " +
                                      std::to_string(dims) + " values, found " + shape_text(x.rows, x.cols)};
  }
  if (x.stride < x.cols)
    return {Errc::invalid_argument, name + ": expected rows at least " + std::to_string(dims) + " apart, found " + std::to_string(x.stride)};
  return {};
}

inline Status check_images(std::string_view who, std::int64_t images) {
  if (images >= 2) return {};
  return {Errc::not_enough_data, std::string(who) + ": a covariance needs at least 2 images, found " + std::to_string(images)};
}

inline GaussianTask task_of(MatrixView<const float> x, std::int64_t positions, std::int64_t dims) {
  GaussianTask task{};
  task.x = x.data;
  task.x_stride = x.stride;
  task.rows = x.rows;
  task.positions = positions;
  task.dims = dims;
  task.groups_of_four = dims % 4 == 0 && x.stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(x.data) % 16 == 0;
  return task;
}

inline void set_model(GaussianTask& task, const DeviceGaussians& model, std::int64_t images, double regularisation) {
  task.model_mean = model.mean.data;
  task.factor = model.factor.data;
  task.flags = model.flags;
  task.scale = static_cast<float>(1.0 / static_cast<double>(images - 1));
  task.regularisation = static_cast<float>(regularisation);
}

}  // namespace triangle
}  // namespace detail

template <class Tuning>
Status observe_gaussians(StreamRef stream, GaussianState& state, MatrixView<const float> x, std::span<std::byte> workspace) {
  namespace impl = detail::triangle;
  constexpr std::string_view kWho = "cuda::observe_gaussians";
  NORMA_CHECK(impl::check_state(kWho, state));
  NORMA_CHECK(impl::check_features(kWho, x, state.mean.rows, state.mean.cols));
  if (x.rows == 0) return {};
  auto task = impl::task_of(x, state.mean.rows, state.mean.cols);
  task.before = state.count;
  task.mean = state.mean.data;
  task.products = state.products.data;
  task.keep = true;
  NORMA_CHECK(impl::run_task<Tuning>(kWho, stream, task, workspace));
  state.count += x.rows / state.mean.rows;
  return {};
}

template <class Tuning>
Status merge_gaussians(StreamRef stream, GaussianState& into, const GaussianState& from) {
  namespace impl = detail::triangle;
  constexpr std::string_view kWho = "cuda::merge_gaussians";
  NORMA_CHECK(impl::check_state(kWho, into));
  NORMA_CHECK(impl::check_state(kWho, from));
  const std::int64_t positions = into.mean.rows, dims = into.mean.cols;
  if (from.mean.rows != positions || from.mean.cols != dims) {
    return {Errc::shape_mismatch,
            std::string(kWho) + ": expected " + impl::shape_text(positions, dims) + ", found " + impl::shape_text(from.mean.rows, from.mean.cols)};
  }
  if (from.count == 0) return {};
  if (into.count == 0) {
    NORMA_CHECK(detail::copy_async(kWho, into.mean.data, from.mean.data, static_cast<std::size_t>(from.mean.count()) * sizeof(double), stream));
    NORMA_CHECK(
        detail::copy_async(kWho, into.products.data, from.products.data, static_cast<std::size_t>(from.products.count()) * sizeof(float), stream));
    into.count = from.count;
    return {};
  }
  auto* const products = impl::merge_products_kernel<Tuning>;
  auto* const means = impl::merge_means_kernel<Tuning>;
  NORMA_TRY(const int arch, detail::kernel_arch(kWho, products));
  const int threads = Tuning{}(arch).threads;
  const double before = static_cast<double>(into.count), added = static_cast<double>(from.count);
  const std::int64_t row_blocks = detail::ceil_div(dims, threads / simt::kWarp);
  // Positions beyond what one launch's grid holds go to further launches.
  constexpr std::int64_t kMost = 65535;
  for (std::int64_t first = 0; first < positions; first += kMost) {
    const std::int64_t count = std::min(kMost, positions - first), offset = first * packed_triangle(dims);
    NORMA_CHECK(detail::launch(kWho, stream, detail::LaunchShape{.blocks_x = row_blocks, .blocks_y = count, .threads = threads}, products, dims,
                               before * (added / (before + added)), into.mean.data + first * dims, from.mean.data + first * dims,
                               into.products.data + offset, from.products.data + offset));
  }
  const std::int64_t numbers = positions * dims;
  NORMA_CHECK(detail::launch(kWho, stream, detail::LaunchShape{.blocks_x = detail::ceil_div(numbers, threads), .threads = threads}, means, numbers,
                             added / (before + added), into.mean.data, from.mean.data));
  into.count += from.count;
  return {};
}

template <class Tuning>
Status finish_gaussians(StreamRef stream, const GaussianState& state, double regularisation, const DeviceGaussians& model,
                        std::span<std::byte> workspace) {
  namespace impl = detail::triangle;
  constexpr std::string_view kWho = "cuda::finish_gaussians";
  NORMA_CHECK(impl::check_state(kWho, state));
  NORMA_CHECK(impl::check_model(kWho, model, regularisation));
  if (model.mean.rows != state.mean.rows || model.mean.cols != state.mean.cols) {
    return {Errc::shape_mismatch, std::string(kWho) + ": wrong model, expected " + impl::shape_text(state.mean.rows, state.mean.cols) + ", found " +
                                      impl::shape_text(model.mean.rows, model.mean.cols)};
  }
  NORMA_CHECK(impl::check_images(kWho, state.count));
  auto task = impl::task_of({}, state.mean.rows, state.mean.cols);
  task.before = state.count;
  task.mean = state.mean.data;
  task.products = state.products.data;
  impl::set_model(task, model, state.count, regularisation);
  return impl::run_task<Tuning>(kWho, stream, task, workspace);
}

template <class Tuning>
Status fit_gaussians(StreamRef stream, MatrixView<const float> x, double regularisation, const DeviceGaussians& model,
                     std::span<std::byte> workspace) {
  namespace impl = detail::triangle;
  constexpr std::string_view kWho = "cuda::fit_gaussians";
  NORMA_CHECK(impl::check_model(kWho, model, regularisation));
  NORMA_CHECK(impl::check_features(kWho, x, model.mean.rows, model.mean.cols));
  const std::int64_t images = x.rows / model.mean.rows;
  NORMA_CHECK(impl::check_images(kWho, images));
  auto task = impl::task_of(x, model.mean.rows, model.mean.cols);
  impl::set_model(task, model, images, regularisation);
  return impl::run_task<Tuning>(kWho, stream, task, workspace);
}

template <class Tuning>
Status covariance(StreamRef stream, MatrixView<const float> rows, float* mean, MatrixView<float> out, std::span<std::byte> workspace) {
  namespace impl = detail::triangle;
  constexpr std::string_view kWho = "cuda::covariance";
  const std::string name(kWho);
  const std::int64_t n = rows.rows, dims = rows.cols;
  if (dims < 1 || mean == nullptr || out.data == nullptr || out.rows != dims || out.cols != dims || out.stride < dims) {
    return {Errc::shape_mismatch, name + ": wrong output, expected " + impl::shape_text(dims, dims) + " and a mean, at least one dimension, found " +
                                      impl::shape_text(out.rows, out.cols)};
  }
  if (n < 2) return {Errc::not_enough_data, name + ": expected at least 2 rows, found " + std::to_string(n)};
  NORMA_CHECK(impl::check_features(kWho, rows, 1, dims));
  const std::int64_t segments = detail::covariance_segments(n, dims);
  const std::size_t product_bytes = detail::aligned_bytes(segments * packed_triangle(dims), sizeof(float));
  const std::size_t sum_bytes = product_bytes + detail::aligned_bytes((segments + 1) * dims, sizeof(double));
  if (workspace.size() < covariance_workspace_bytes(n, dims)) {
    return {Errc::out_of_memory, name + ": the workspace is too small, expected covariance_workspace_bytes = " +
                                     std::to_string(covariance_workspace_bytes(n, dims)) + ", found " + std::to_string(workspace.size())};
  }
  NORMA_CHECK(impl::check_workspace(kWho, workspace));
  float* const products = reinterpret_cast<float*>(workspace.data());
  double* const means = reinterpret_cast<double*>(workspace.data() + product_bytes);
  double* const exact = means + segments * dims;
  // A segment takes every so-and-so-many-th row, as a position does with images; all but the last slice have whole rounds of segments.
  const bool in_one_go = dims <= kGaussianDimsInOneBlock;
  const std::int64_t slice = in_one_go ? n : segments * detail::kCovarianceSliceBatches * detail::kGaussianBatch;
  for (std::int64_t first = 0; first < n; first += slice) {
    auto task = impl::task_of(rows.block(first, std::min(slice, n - first)), segments, dims);
    task.before = first / segments;
    task.mean = means;
    task.products = products;
    task.keep = true;
    NORMA_CHECK(impl::run_task<Tuning>(kWho, stream, task, workspace.subspan(sum_bytes)));
  }
  auto* const join_means = impl::join_means_kernel<Tuning>;
  auto* const join_products = impl::join_products_kernel<Tuning>;
  NORMA_TRY(const int arch, detail::kernel_arch(kWho, join_products));
  const int threads = Tuning{}(arch).threads;
  NORMA_CHECK(detail::launch(kWho, stream, detail::LaunchShape{.blocks_x = detail::ceil_div(dims, threads), .threads = threads}, join_means, n,
                             segments, dims, means, exact, mean));
  return detail::launch(kWho, stream, detail::LaunchShape{.blocks_x = dims, .threads = threads}, join_products, n, segments, dims, means, exact,
                        products, out);
}

}  // namespace norma::cuda
