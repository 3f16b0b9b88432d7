/// \file
/// Kernels and launchers of norma/cuda/k_centre.hpp; docs/kernels/k_centre.md explains them.
// Bound by: reading the points once a sweep; between sweeps by the latency of one block that picks. Reference: norma::GreedyKCenter.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include <norma/cuda/detail/simt.cuh>
#include <norma/cuda/k_centre.hpp>
#include <norma/cuda/prepared_bank.cuh>
#include <norma/cuda/tile_product.cuh>

namespace norma::cuda {

// ------------------------------------------------------------------------------------------------------------------------- 1 policy
struct KCentrePolicy {
  int pool;             // candidates of a round; a multiple of 64 and of pick_threads
  int pick_threads;     // of the one block that picks
  int picks_per_sweep;  // at most so many picks of a round
  TilePolicy sweep;     // points by picks; its arithmetic only excludes
  TilePolicy project;   // points by rows of the map
  friend constexpr bool operator==(const KCentrePolicy&, const KCentrePolicy&) = default;
};

// ------------------------------------------------------------------------------------------------------------------------- 2 tuning
struct KCentreTuning {
  NORMA_HD constexpr KCentrePolicy operator()(int arch) const {
    const TilePolicy exact{128, 64, 16, 4, 2, 3, Arithmetic::fp32};
    const TilePolicy rough{128, 64, 16, 4, 2, 4, Arithmetic::tf32};
    const bool has_tf32 = arch == 0 || arch >= 80;
    return {.pool = 1024, .pick_threads = 256, .picks_per_sweep = 256, .sweep = has_tf32 ? rough : exact, .project = exact};
  }
};

// ------------------------------------------------------------------------------------------------------------------------- 3 kernels
namespace detail::k_centre {

/// A squared distance as an integer that orders like it: its bits plus one, so that 0 means chosen and 1 means coincident with a chosen row.
using Key = unsigned long long;
inline constexpr Key kKeyChosen = 0, kKeyCoincident = 1;

/// The best row that is not in the pool, of one block.
struct Outside {
  Key key;
  int row;
};

struct State {
  KCentreReport report;
  Key max_key;          // of all rows, after the last sweep
  unsigned max_square;  // bits of the largest |centred row|^2
  unsigned ticket;      // blocks that have counted
  int pending;          // picks that the next sweep measures
  int pool;             // rows in the pool
  int edge;             // the class of distance that the pool takes rows of only while there is room: its lowest rows
  int room;             // for so many of them
};
static_assert(sizeof(State) <= 128);

/// Everything a kernel needs, by value.
struct Arrays {
  MatrixView<const float> points;
  std::int64_t count;
  std::int64_t first_row;
  const double* initial;
  std::int64_t* chosen;
  State* state;
  unsigned* histogram;   // [kReplicas, kBins], zero between rounds
  Key* counts;           // [blocks], rows below the edge class, and in it << 32
  Outside* outside;      // [blocks]
  int* pending;          // [kMostPending] rows
  int* pool;             // [kMostPool] rows, ascending
  Key* mutual;           // [pool, pool] keys of the distances within the pool
  float* centre;         // [d]
  float* squares;        // [n] |centred row|^2
  Key* keys;             // [n] distances to the chosen rows
  float* centred;        // [n, stride], zeros beyond d
  std::int64_t stride;
  std::int64_t rows_per_block;  // of the kernels that go through all keys
  int blocks;
};

inline constexpr int kSelectThreads = 256, kSelectWarps = kSelectThreads / simt::kWarp;
inline constexpr std::size_t kSelectShared = kSelectWarps * (sizeof(Key) + sizeof(int));
inline constexpr int kPieceLength = 32;  // coordinates that are summed in order before the pieces are
inline constexpr int kMutualTile = 64, kMutualThreads = 256;
inline constexpr int kMutualPad = kMutualTile + 1;  // in doubles: a warp that writes a column meets each bank once a phase
inline constexpr std::size_t kMutualShared = 2 * kPieceLength * kMutualPad * sizeof(double);
inline constexpr int kGroup = 4;  // lanes that measure one distance
inline constexpr double kLargestSquare = 0x1p122;  // |x|^2; products and sums of the sweep stay finite below it
inline constexpr double kRoundingUnitOfFloat = 0x1p-24;
inline constexpr float kFloatInfinity = std::numeric_limits<float>::infinity();
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();
inline constexpr float kFloatNaN = std::numeric_limits<float>::quiet_NaN();

NORMA_HD inline Key key_of(double squared_distance) {
  Key bits;
  memcpy(&bits, &squared_distance, sizeof(bits));
  return bits + 1;
}
NORMA_HD inline double distance_of(Key key) {
  const Key bits = key - 1;
  double squared_distance;
  memcpy(&squared_distance, &bits, sizeof(bits));
  return squared_distance;
}
NORMA_HD constexpr int count_bits(unsigned v) {
  v -= (v >> 1) & 0x55555555u;
  v = (v & 0x33333333u) + ((v >> 2) & 0x33333333u);
  return static_cast<int>((((v + (v >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24);
}

/// The class of a key: how far it is below the largest, 64 classes an octave. A float has at most 65 x 64 such classes of integers, and
/// no distance is 2^63 below another.
NORMA_DEVICE int class_of(Key key, Key max_key) {
  const Key below = max_key - key;
  if (below == 0) return 0;
  return static_cast<int>((simt::float_bits(static_cast<float>(below)) >> 17) - (127u << 6)) + 1;
}
static_assert(KCentreLayout::kBins > 63 * 64 + 1);

NORMA_DEVICE bool is_ahead(Key key_a, int a, Key key_b, int b) { return key_a > key_b || (key_a == key_b && a < b); }

NORMA_DEVICE bool is_done(const Arrays& a) {
  return a.state->report.chosen >= a.count || a.state->report.not_finite != KCentreReport::kNoRow;
}

/// Exclusive sum over the threads of the block in their order; `total` receives the sum of all. `scratch`: one element a warp. Passes barriers.
template <int Threads>
NORMA_DEVICE Key block_exclusive_sum(Key value, simt::Shared<Key> scratch, Key& total) {
  const int lane = simt::lane_index();
  Key inclusive = value;
  for (int step = 1; step < simt::kWarp; step *= 2) {
    const Key before = simt::warp_shuffle(inclusive, lane - step < 0 ? lane : lane - step);
    if (lane >= step) inclusive += before;
  }
  if (lane == simt::kWarp - 1) scratch[simt::warp_index()] = inclusive;
  simt::block_barrier();
  Key before = 0;
  total = 0;
  for (int w = 0; w < Threads / simt::kWarp; ++w) {
    const Key sum = scratch[w];
    if (w < simt::warp_index()) before += sum;
    total += sum;
  }
  simt::block_barrier();
  return before + inclusive - value;
}

/// The lanes' best row, in every lane.
NORMA_DEVICE void warp_best(Key& key, int& row) {
  for (int mask = simt::kWarp / 2; mask > 0; mask /= 2) {
    const Key other_key = simt::warp_shuffle_xor(key, mask);
    const int other_row = simt::warp_shuffle_xor(row, mask);
    if (is_ahead(other_key, other_row, key, row)) {
      key = other_key;
      row = other_row;
    }
  }
}

/// The block's best row, in every thread; a barrier is passed before the result, none after it.
template <int Threads>
NORMA_DEVICE void block_best(Key& key, int& row, simt::Shared<Key> keys, simt::Shared<int> rows) {
  constexpr int kWarps = Threads / simt::kWarp;
  warp_best(key, row);
  if (simt::lane_index() == 0) {
    keys[simt::warp_index()] = key;
    rows[simt::warp_index()] = row;
  }
  simt::block_barrier();
  key = keys[0];
  row = rows[0];
  NORMA_UNROLL
  for (int w = 1; w < kWarps; ++w) {
    const Key other_key = keys[w];
    const int other_row = rows[w];
    if (is_ahead(other_key, other_row, key, row)) {
      key = other_key;
      row = other_row;
    }
  }
}

/// Squared distance of rows x and y, by kGroup lanes; all lanes of the warp call it. The sum has the order of mutual_kernel, whoever computes what.
NORMA_DEVICE double group_distance(const float* x, const float* y, std::int64_t d, bool aligned) {
  const int lane = simt::lane_index(), member = lane % kGroup, first = lane - member;
  const std::int64_t pieces = ceil_div(d, kPieceLength);
  double sum = 0.0;
  for (std::int64_t p0 = 0; p0 < pieces; p0 += kGroup) {
    const std::int64_t k0 = (p0 + member) * kPieceLength;
    const std::int64_t last = k0 + kPieceLength < d ? k0 + kPieceLength : d;
    double piece = 0.0;
    std::int64_t k = k0;
    if (aligned) {
      for (; k + 4 <= last; k += 4) {
        const auto a = simt::load<4>(x + k);
        const auto b = simt::load<4>(y + k);
        NORMA_UNROLL
        for (int i = 0; i < 4; ++i) {
          const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
          piece = std::fma(difference, difference, piece);
        }
      }
    }
    for (; k < last; ++k) {
      const double difference = static_cast<double>(x[k]) - static_cast<double>(y[k]);
      piece = std::fma(difference, difference, piece);
    }
    NORMA_UNROLL
    for (int g = 0; g < kGroup; ++g) sum += simt::warp_shuffle(piece, first + g);  // + 0 for pieces beyond the last
  }
  return sum;
}

inline bool rows_are_aligned(MatrixView<const float> m) noexcept { return reinterpret_cast<std::uintptr_t>(m.data) % 16 == 0 && m.stride % 4 == 0; }

// The mean of up to 256 rows, spread evenly: what the product measures from, so that its rounding is that of the differences. Any point would do.
// Block 0 also sets the state.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kSelectThreads)
NORMA_KERNEL reset_kernel(Arrays a) {
  constexpr int kWarps = kSelectWarps;
  constexpr std::int64_t kSample = 256;
  const auto sums = simt::shared_array<double>(0, kSelectThreads);
  const std::int64_t n = a.points.rows, sample = n < kSample ? n : kSample;
  const int lane = simt::lane_index(), warp = simt::warp_index();
  const std::int64_t column = simt::block_x() * simt::kWarp + lane;
  double sum = 0.0;
  if (column < a.points.cols) {
    for (std::int64_t s = warp; s < sample; s += kWarps) sum += static_cast<double>(a.points(s * n / sample, column));
  }
  sums[warp * simt::kWarp + lane] = sum;
  simt::block_barrier();
  if (warp == 0 && column < a.points.cols) {
    double total = 0.0;
    for (int w = 0; w < kWarps; ++w) {
      const double part = sums[w * simt::kWarp + lane];
      total += part;
    }
    a.centre[column] = static_cast<float>(total / static_cast<double>(sample));
  }
  if (simt::block_x() == 0 && simt::thread_index() == 0) {
    State state{};
    if (a.initial == nullptr) {
      a.chosen[0] = a.first_row;
      a.pending[0] = static_cast<int>(a.first_row);
      state.pending = 1;
      state.report.chosen = 1;
      state.report.sweeps = a.count > 1 ? 1 : 0;
    }
    *a.state = state;
  }
}

// Centred rows, their squared lengths, first keys. A warp a row.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kSelectThreads)
NORMA_KERNEL prepare_kernel(Arrays a) {
  const std::int64_t warps = simt::blocks_x() * kSelectWarps;
  const int lane = simt::lane_index();
  float longest = 0.0f;
  for (std::int64_t row = simt::block_x() * kSelectWarps + simt::warp_index(); row < a.points.rows; row += warps) {
    double square = 0.0, centred_square = 0.0;
    for (std::int64_t k = lane; k < a.stride; k += simt::kWarp) {
      float centred = 0.0f;
      if (k < a.points.cols) {
        const float value = a.points(row, k);
        centred = value - a.centre[k];
        square += static_cast<double>(value) * static_cast<double>(value);
        centred_square += static_cast<double>(centred) * static_cast<double>(centred);
      }
      a.centred[row * a.stride + k] = centred;
    }
    square = simt::warp_sum(square);
    centred_square = simt::warp_sum(centred_square);
    if (lane != 0) continue;
    const double first = a.initial == nullptr ? kInfinity : a.initial[row];
    if (!(square <= kLargestSquare) || !(first >= 0.0)) {
      simt::atomic_min(&a.state->report.not_finite, static_cast<unsigned long long>(row));
      continue;
    }
    const auto rounded = static_cast<float>(centred_square);
    a.squares[row] = rounded;
    a.keys[row] = a.initial == nullptr && row == a.first_row ? kKeyChosen : first > 0.0 ? key_of(first) : kKeyCoincident;
    if (rounded > longest) longest = rounded;
  }
  if (lane == 0) simt::atomic_max(&a.state->max_square, simt::float_bits(longest));
}

// Counts the classes of all keys. The block that ends last finds the classes that fit the pool.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kSelectThreads)
NORMA_KERNEL count_kernel(Arrays a, int most) {
  constexpr int kBins = static_cast<int>(KCentreLayout::kBins), kReplicas = static_cast<int>(KCentreLayout::kReplicas);
  constexpr int kOwn = kBins / kSelectThreads;
  const auto scratch = simt::shared_array<Key>(0, kSelectWarps);
  const auto is_last = simt::shared_array<int>(8 * kSelectWarps, 1);
  if (is_done(a)) return;
  const Key max_key = a.state->max_key;
  const int thread = simt::thread_index();
  unsigned* own = a.histogram + (simt::block_x() % kReplicas) * kBins;
  const std::int64_t first = simt::block_x() * a.rows_per_block;
  const std::int64_t last = first + a.rows_per_block < a.points.rows ? first + a.rows_per_block : a.points.rows;
  for (std::int64_t r0 = first; r0 < last; r0 += kSelectThreads) {
    const std::int64_t row = r0 + thread;
    const Key key = row < last ? a.keys[row] : kKeyChosen;
    const int bin = class_of(key, max_key);
    bool waits = key != kKeyChosen;
    // Lanes that agree with the first one add together: distances that tie are common, and one address takes one addition at a time.
    for (int turn = 0; turn < 2; ++turn) {
      const unsigned lanes = simt::warp_ballot(waits);
      if (lanes == 0) break;
      const int leader = count_bits((lanes & (~lanes + 1u)) - 1u);
      const int common = simt::warp_shuffle(bin, leader);
      const bool agrees = waits && bin == common;
      const unsigned agreed = simt::warp_ballot(agrees);
      if (simt::lane_index() == leader) simt::atomic_add(own + bin, static_cast<unsigned>(count_bits(agreed)));
      if (agrees) waits = false;
    }
    if (waits) simt::atomic_add(own + bin, 1u);
  }
  simt::memory_fence();
  simt::block_barrier();
  if (thread == 0) is_last[0] = simt::atomic_add(&a.state->ticket, 1u) + 1u == static_cast<unsigned>(simt::blocks_x()) ? 1 : 0;
  simt::block_barrier();
  const int ends = is_last[0];
  if (ends == 0) return;

  simt::memory_fence();
  unsigned mine[kOwn] = {};
  for (int r = 0; r < kReplicas; ++r) {
    unsigned* from = a.histogram + r * kBins + thread * kOwn;
    NORMA_UNROLL
    for (int i = 0; i < kOwn; i += 4) {
      const auto four = simt::load<4>(from + i);
      NORMA_UNROLL
      for (int j = 0; j < 4; ++j) mine[i + j] += four[j];
      simt::store<4>(from + i, simt::Vec<unsigned, 4>{});
    }
  }
  Key sum = 0, total = 0;
  NORMA_UNROLL
  for (int i = 0; i < kOwn; ++i) sum += mine[i];
  Key before = block_exclusive_sum<kSelectThreads>(sum, scratch, total);
  const auto room = static_cast<Key>(most);
  if (total <= room) {
    if (thread == 0) {
      a.state->edge = kBins;
      a.state->room = 0;
      a.state->pool = static_cast<int>(total);
      a.state->ticket = 0;
    }
    return;
  }
  // Exactly one class begins within the room and ends behind it.
  NORMA_UNROLL
  for (int i = 0; i < kOwn; ++i) {
    if (before <= room && before + mine[i] > room) {
      a.state->edge = thread * kOwn + i;
      a.state->room = static_cast<int>(room - before);
      a.state->pool = most;
      a.state->ticket = 0;
    }
    before += mine[i];
  }
}

// How many rows of each block's share are below the edge class and in it.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kSelectThreads)
NORMA_KERNEL share_kernel(Arrays a) {
  const auto scratch = simt::shared_array<Key>(0, kSelectWarps);
  if (is_done(a)) return;
  const Key max_key = a.state->max_key;
  const int edge = a.state->edge;
  const std::int64_t first = simt::block_x() * a.rows_per_block;
  const std::int64_t last = first + a.rows_per_block < a.points.rows ? first + a.rows_per_block : a.points.rows;
  Key found = 0;
  for (std::int64_t row = first + simt::thread_index(); row < last; row += kSelectThreads) {
    const Key key = a.keys[row];
    if (key == kKeyChosen) continue;
    const int bin = class_of(key, max_key);
    found += bin < edge ? Key{1} : bin == edge ? Key{1} << 32 : Key{0};
  }
  Key total = 0;
  (void)block_exclusive_sum<kSelectThreads>(found, scratch, total);
  if (simt::thread_index() == 0) a.counts[simt::block_x()] = total;
}

// Writes the pool in ascending order of row, and each block's best row that is left out.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kSelectThreads)
NORMA_KERNEL gather_kernel(Arrays a) {
  constexpr int kWarps = kSelectWarps;
  static_assert(kSelectThreads >= KCentreLayout::kMostBlocks);
  const auto scratch = simt::shared_array<Key>(0, kWarps);
  const auto rows = simt::shared_array<int>(8 * kWarps, kWarps);
  if (is_done(a)) return;
  const Key max_key = a.state->max_key;
  const int edge = a.state->edge, room = a.state->room, thread = simt::thread_index();
  Key before = 0;  // of the blocks before this one; then of the rows before this piece
  (void)block_exclusive_sum<kSelectThreads>(thread < simt::block_x() ? a.counts[thread] : Key{0}, scratch, before);
  const std::int64_t first = simt::block_x() * a.rows_per_block;
  const std::int64_t last = first + a.rows_per_block < a.points.rows ? first + a.rows_per_block : a.points.rows;
  Key best_key = kKeyChosen;
  int best_row = 0;
  for (std::int64_t r0 = first; r0 < last; r0 += kSelectThreads) {
    const std::int64_t row = r0 + thread;
    const Key key = row < last ? a.keys[row] : kKeyChosen;
    const int bin = class_of(key, max_key);
    const bool in = key != kKeyChosen && bin < edge, on_edge = key != kKeyChosen && bin == edge;
    Key total = 0;
    const Key place = before + block_exclusive_sum<kSelectThreads>(in ? Key{1} : on_edge ? Key{1} << 32 : Key{0}, scratch, total);
    before += total;
    const auto edge_rank = static_cast<std::int64_t>(place >> 32);
    if (in || (on_edge && edge_rank < room)) {
      a.pool[static_cast<std::int64_t>(place & 0xffffffffu) + (edge_rank < room ? edge_rank : room)] = static_cast<int>(row);
    } else if (is_ahead(key, static_cast<int>(row), best_key, best_row)) {
      best_key = key;
      best_row = static_cast<int>(row);
    }
  }
  block_best<kSelectThreads>(best_key, best_row, scratch, rows);
  if (thread == 0) a.outside[simt::block_x()] = {best_key, best_row};
}

// All distances within the pool, one block a tile on or above the diagonal.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kMutualThreads, 2)
NORMA_KERNEL mutual_kernel(Arrays a, int most) {
  constexpr int kSide = 16, kEach = kMutualTile / kSide, kPad = kMutualPad;
  static_assert(kSide * kSide == kMutualThreads);
  const auto x = simt::shared_array<double>(0, kPieceLength * kPad);  // [coordinate, row]
  const auto y = simt::shared_array<double>(8 * kPieceLength * kPad, kPieceLength * kPad);
  if (is_done(a) || a.state->max_key <= kKeyCoincident) return;
  const int pool = a.state->pool;
  const int tiles = static_cast<int>(ceil_div(most, kMutualTile));
  int down = 0, across = static_cast<int>(simt::block_x());
  while (across >= tiles - down) across -= tiles - down++;
  across += down;
  const int row0 = down * kMutualTile, col0 = across * kMutualTile;
  if (row0 >= pool || col0 >= pool) return;

  const int lane = simt::lane_index(), warp = simt::warp_index();
  const int ty = simt::thread_index() / kSide, tx = simt::thread_index() % kSide;
  double sum[kEach][kEach] = {};
  for (std::int64_t k0 = 0; k0 < a.points.cols; k0 += kPieceLength) {
    const bool inside = k0 + lane < a.points.cols;
    for (int r = warp; r < kMutualTile; r += kMutualThreads / simt::kWarp) {
      const bool has_row = row0 + r < pool, has_col = col0 + r < pool;
      x[lane * kPad + r] = inside && has_row ? static_cast<double>(a.points(a.pool[row0 + r], k0 + lane)) : 0.0;
      y[lane * kPad + r] = inside && has_col ? static_cast<double>(a.points(a.pool[col0 + r], k0 + lane)) : 0.0;
    }
    simt::block_barrier();
    double piece[kEach][kEach] = {};
    for (int k = 0; k < kPieceLength; ++k) {
      double xs[kEach], ys[kEach];
      NORMA_UNROLL
      for (int i = 0; i < kEach; ++i) {
        xs[i] = x[k * kPad + ty + kSide * i];
        ys[i] = y[k * kPad + tx + kSide * i];
      }
      NORMA_UNROLL
      for (int i = 0; i < kEach; ++i) {
        NORMA_UNROLL
        for (int j = 0; j < kEach; ++j) {
          const double difference = xs[i] - ys[j];
          piece[i][j] = std::fma(difference, difference, piece[i][j]);
        }
      }
    }
    NORMA_UNROLL
    for (int i = 0; i < kEach; ++i) {
      NORMA_UNROLL
      for (int j = 0; j < kEach; ++j) sum[i][j] += piece[i][j];
    }
    simt::block_barrier();
  }
  NORMA_UNROLL
  for (int i = 0; i < kEach; ++i) {
    NORMA_UNROLL
    for (int j = 0; j < kEach; ++j) {
      const int row = row0 + ty + kSide * i, col = col0 + tx + kSide * j;
      if (row >= pool || col >= pool) continue;
      const Key key = key_of(sum[i][j]);
      a.mutual[std::int64_t{row} * most + col] = key;
      if (down != across) a.mutual[std::int64_t{col} * most + row] = key;
    }
  }
}

struct PickShared {
  int warps, keys, places, rows, bytes;
  NORMA_HD constexpr explicit PickShared(const KCentrePolicy& p)
      : warps(p.pick_threads / simt::kWarp), keys(0), places(keys + 2 * 8 * warps), rows(places + 2 * 4 * warps), bytes(rows + 4 * p.pool) {}
};

// The rule inside the pool, by one block, as long as the best of the pool is ahead of everything outside.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(Tuning{}(simt::pass_arch()).pick_threads)
NORMA_KERNEL pick_kernel(Arrays a, int most) {
  constexpr KCentrePolicy kPolicy = Tuning{}(simt::pass_arch());
  constexpr int kThreads = kPolicy.pick_threads, kWarps = kThreads / simt::kWarp, kSlots = kPolicy.pool / kThreads;
  static_assert(kPolicy.pool <= KCentreLayout::kMostPool && kPolicy.pool % kMutualTile == 0);
  static_assert(kPolicy.pool % kThreads == 0 && kThreads % simt::kWarp == 0);
  static_assert(kPolicy.picks_per_sweep > 0 && kPolicy.picks_per_sweep <= KCentreLayout::kMostPending);
  // Two sets of the warps' results in turn: one barrier a pick.
  constexpr PickShared kShared(kPolicy);
  const auto keys = simt::shared_array<Key>(kShared.keys, 2 * kWarps);
  const auto places = simt::shared_array<int>(kShared.places, 2 * kWarps);
  const auto rows = simt::shared_array<int>(kShared.rows, kPolicy.pool);
  if (is_done(a)) return;
  const int thread = simt::thread_index(), pool = a.state->pool;

  Key outside_key = kKeyChosen;
  int outside_row = 0;
  for (int b = thread; b < a.blocks; b += kThreads) {
    const Outside other = a.outside[b];
    if (is_ahead(other.key, other.row, outside_key, outside_row)) {
      outside_key = other.key;
      outside_row = other.row;
    }
  }
  block_best<kThreads>(outside_key, outside_row, keys + kWarps, places + kWarps);

  Key key[kSlots];
  NORMA_UNROLL
  for (int s = 0; s < kSlots; ++s) {
    const int place = s * kThreads + thread;
    const int row = place < pool ? a.pool[place] : 0;
    rows[place] = row;
    key[s] = place < pool ? a.keys[row] : kKeyChosen;
  }
  std::int64_t chosen = a.state->report.chosen;
  const std::int64_t chosen_before = chosen;
  int pending = 0;
  for (int turn = 0; chosen < a.count && pending < kPolicy.picks_per_sweep; turn ^= 1) {
    Key best_key = key[0];
    int best = thread;
    NORMA_UNROLL
    for (int s = 1; s < kSlots; ++s) {
      if (key[s] > best_key) {
        best_key = key[s];
        best = s * kThreads + thread;
      }
    }
    block_best<kThreads>(best_key, best, keys + turn * kWarps, places + turn * kWarps);
    if (best_key == kKeyChosen) break;
    const int row = rows[best];
    if (!is_ahead(best_key, row, outside_key, outside_row)) break;
    const bool moves = best_key > kKeyCoincident;  // a row that coincides with a chosen one brings nobody closer
    if (thread == 0) {
      a.chosen[chosen] = row;
      if (moves) a.pending[pending] = row;
    }
    ++chosen;
    if (moves) ++pending;
    NORMA_UNROLL
    for (int s = 0; s < kSlots; ++s) {
      const int place = s * kThreads + thread;
      if (moves && place < pool) {
        const Key measured = a.mutual[std::int64_t{best} * most + place];
        key[s] = measured < key[s] ? measured : key[s];
      }
      if (place == best) key[s] = kKeyChosen;
    }
  }
  NORMA_UNROLL
  for (int s = 0; s < kSlots; ++s) {
    const int place = s * kThreads + thread;
    if (place < pool) a.keys[a.pool[place]] = key[s];
  }
  if (thread == 0) {
    a.state->report.chosen = chosen;
    if (chosen > chosen_before) ++a.state->report.rounds;
    if (pending > 0 && chosen < a.count) ++a.state->report.sweeps;
    a.state->pending = pending;
    a.state->max_key = kKeyChosen;
  }
}

/// A computed product of two rows is at most this times |a| |b| off: the rounding of the operands (TF32: 2^-11 each), and of the sums.
NORMA_HD constexpr double product_bound(Arithmetic arithmetic, std::int64_t d) {
  return arithmetic == Arithmetic::tf32 ? 0x1.01p-10 + 1.01 * product_error(RowProduct::tf32, d) : product_error(RowProduct::fp32, d);
}

/// Rows of the centred points by their number in a list: a source of TileProduct.
struct PendingRows {
  const float* data;
  simt::Shared<int> rows;
  int count;
  std::int64_t depth;
  std::int64_t stride;
  [[nodiscard]] NORMA_DEVICE int row(int i) const {
    if (i >= count) return -1;
    const int row = rows[i];
    return row;
  }
  [[nodiscard]] NORMA_DEVICE bool inside(int row, std::int64_t k) const { return row >= 0 && k < depth; }
  [[nodiscard]] NORMA_DEVICE const float* address(int row, std::int64_t k) const { return data + (row < 0 ? 0 : row * stride + k); }
  [[nodiscard]] NORMA_DEVICE const float* chunk(int i, std::int64_t k) const { return inside(row(i), k) ? address(row(i), k) : nullptr; }
};

/// Where the sweep's arrays are in shared memory, in bytes.
struct SweepShared {
  int padded;                                          // most pending picks, in whole tiles
  int norm, limit, least, square, slack, pending, max_key;
  int tile;                                            // the product's stages; afterwards the pairs to measure, in 16 bits
  int bytes;
  NORMA_HD constexpr explicit SweepShared(const KCentrePolicy& p)
      : padded((p.picks_per_sweep + p.sweep.cols - 1) / p.sweep.cols * p.sweep.cols),
        norm(0),                                       // [rows]
        limit(norm + 4 * p.sweep.rows),                // [rows]
        least(limit + 4 * p.sweep.rows),               // [warps, rows]
        square(least + 4 * p.sweep.threads() / simt::kWarp * p.sweep.rows),  // [padded]
        slack(square + 4 * padded),                    // [padded]
        pending(slack + 4 * padded),                   // [padded]
        max_key(pending + 4 * padded),                 // [warps]
        tile((max_key + 8 * p.sweep.threads() / simt::kWarp + 127) / 128 * 128),
        bytes(tile + (product_bytes(p.sweep) > 2 * p.sweep.rows * p.sweep.cols ? product_bytes(p.sweep) : 2 * p.sweep.rows * p.sweep.cols)) {}
  /// At least TileProduct::kSharedBytes for float; on the CUDA cores rows may be padded by 16 bytes.
  static NORMA_HD constexpr int product_bytes(const TilePolicy& t) {
    return t.stages * (t.rows + t.cols) * (t.depth + (t.arithmetic == Arithmetic::fp32 ? 4 : 0)) * 4;
  }
};

// Measures a tile of points against all pending picks and finds the largest distance left.
//
// With a, b centred rows and p the computed product: |a - b|^2 - |a|^2 is within  slack(b) |a| + e  of  |b|^2 - 2 p,  slack(b) = 2 gamma |b|.
// e = 32 u M^2 + tiny covers centring (8 u M^2), the rounded |a|^2, |b|^2 (2), the arithmetic below (3 + 4 + 5 + 5), M the longest centred row;
// tiny is more than d products lose where they are denormal. So a pick b can be the nearest of a only if
// |b|^2 - 2 p - slack |a|  <=  min(what a has already, the least over picks of |b|^2 - 2 p + slack |a| + e) + e; those are measured in double.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(Tuning{}(simt::pass_arch()).sweep.threads(), 2)
NORMA_KERNEL sweep_kernel(Arrays a, bool aligned) {
  constexpr KCentrePolicy kPolicy = Tuning{}(simt::pass_arch());
  constexpr TilePolicy kTile = kPolicy.sweep;
  static_assert(kTile.arithmetic == Arithmetic::fp32 || kTile.arithmetic == Arithmetic::tf32, "the bound is derived for these");
  using Product = TileProduct<kTile, float>;
  constexpr SweepShared kShared(kPolicy);
  static_assert(Product::kSharedBytes <= SweepShared::product_bytes(kTile));
  constexpr int kRows = kTile.rows, kCols = kTile.cols, kThreads = Product::kThreads, kWarps = kThreads / simt::kWarp;
  constexpr int kPairs = kRows * kCols / kWarps;  // of a warp: all of its entries
  static_assert(kRows * kCols <= 65536, "a pair is written in 16 bits");
  const auto norm = simt::shared_array<float>(kShared.norm, kRows);
  const auto limit = simt::shared_array<float>(kShared.limit, kRows);
  const auto least = simt::shared_array<float>(kShared.least, kWarps * kRows);
  const auto square = simt::shared_array<float>(kShared.square, kShared.padded);
  const auto slack = simt::shared_array<float>(kShared.slack, kShared.padded);
  const auto pending_rows = simt::shared_array<int>(kShared.pending, kShared.padded);
  const auto max_keys = simt::shared_array<Key>(kShared.max_key, kWarps);
  const auto pairs = simt::shared_array<std::uint16_t>(kShared.tile, kRows * kCols);
  if (is_done(a)) return;

  const int thread = simt::thread_index(), lane = simt::lane_index(), warp = simt::warp_index();
  const int pending = a.state->pending;
  const std::int64_t row0 = simt::block_x() * kRows, n = a.points.rows, d = a.points.cols;
  if (pending > 0) {
    constexpr double kUp = 1.0 + 4.0 * kRoundingUnitOfFloat;
    const auto longest_square = static_cast<double>(simt::float_from_bits(a.state->max_square)) * kUp;
    const double room = 32.0 * kRoundingUnitOfFloat * longest_square + static_cast<double>(d) * 0x1p-124 * (std::sqrt(longest_square) + 1.0);
    const double factor = 2.0 * product_bound(kTile.arithmetic, d) * kUp * kUp;
    for (int r = thread; r < kRows; r += kThreads) {
      const Key key = row0 + r < n ? a.keys[row0 + r] : kKeyChosen;
      float length = 0.0f, most = -kFloatInfinity;  // nothing is nearer
      if (key > kKeyCoincident) {
        const double own = static_cast<double>(a.squares[row0 + r]), nearest = distance_of(key);
        length = static_cast<float>(std::sqrt(own) * kUp);
        most = nearest < 0x1p126 ? static_cast<float>(nearest - own + room) : kFloatInfinity;
      }
      norm[r] = length;
      limit[r] = most;
    }
    for (int c = thread; c < kShared.padded; c += kThreads) {
      const int row = c < pending ? a.pending[c] : 0;
      const float own = a.squares[row];
      pending_rows[c] = row;
      square[c] = c < pending ? own : kFloatNaN;  // compares as false
      slack[c] = static_cast<float>(factor * std::sqrt(static_cast<double>(own)) * kUp);
    }
    for (int i = thread; i < kWarps * kRows; i += kThreads) least[i] = kFloatInfinity;
    simt::block_barrier();

    const auto margin = static_cast<float>(2.0 * room * kUp);
    for (int col0 = 0; col0 < pending; col0 += kCols) {
      const MatrixSource<float> rows{a.centred, row0, n, d, a.stride};
      const PendingRows cols{a.centred, pending_rows + col0, pending - col0, d, a.stride};
      typename Product::Accumulator product;
      product.fill(0.0f);
      Product::accumulate(product, rows, cols, d, kShared.tile);

      float bound[Product::kRowSlots], length[Product::kRowSlots];
      product.for_each_row([&](int slot, int row) {
        bound[slot] = kFloatInfinity;
        length[slot] = norm[row];
      });
      product.for_each([&](int slot, int, int col, float& value) {
        const float s = square[col0 + col], wide = slack[col0 + col];
        value = std::fma(-2.0f, value, s);
        const float upper = std::fma(wide, length[slot], value);
        bound[slot] = upper < bound[slot] ? upper : bound[slot];
      });
      product.for_each_row([&](int slot, int row) {
        NORMA_UNROLL
        for (int mask = 1; mask < Product::kRowLanes; mask *= 2) {
          const float other = simt::warp_shuffle_xor(bound[slot], mask);
          bound[slot] = other < bound[slot] ? other : bound[slot];
        }
        if (lane % Product::kRowLanes == 0) least[warp * kRows + row] = bound[slot];
      });
      simt::block_barrier();
      for (int r = thread; r < kRows; r += kThreads) {
        float most = limit[r];
        for (int w = 0; w < kWarps; ++w) {
          const float upper = least[w * kRows + r];
          most = upper + margin < most ? upper + margin : most;
        }
        limit[r] = most;
      }
      simt::block_barrier();

      product.for_each_row([&](int slot, int row) { bound[slot] = limit[row]; });
      const auto own_pairs = pairs + warp * kPairs;
      int found = 0;
      product.for_each([&](int slot, int row, int col, float& value) {
        const float wide = slack[col0 + col];
        const bool near = std::fma(-wide, length[slot], value) <= bound[slot];
        const unsigned lanes = simt::warp_ballot(near);
        if (lanes == 0) return;
        if (near) own_pairs[found + count_bits(lanes & ((1u << lane) - 1u))] = static_cast<std::uint16_t>(row * kCols + col);
        found += count_bits(lanes);
      });
      simt::warp_barrier();
      for (int p0 = 0; p0 < found; p0 += simt::kWarp / kGroup) {
        const int p = p0 + lane / kGroup;
        const std::uint16_t pair = own_pairs[p < found ? p : p0];
        const int picked = pending_rows[col0 + pair % kCols];
        const std::int64_t row = row0 + pair / kCols;
        const float* const point = a.points.data + row * a.points.stride;
        const double measured = group_distance(point, a.points.data + std::int64_t{picked} * a.points.stride, d, aligned);
        if (p < found && lane % kGroup == 0) simt::atomic_min(a.keys + row, key_of(measured));
      }
      if (lane == 0 && found > 0) simt::atomic_add(&a.state->report.measured, static_cast<unsigned long long>(found));
      simt::block_barrier();
    }
  }

  Key largest = kKeyChosen;
  for (int r = thread; r < kRows; r += kThreads) {
    const Key key = row0 + r < n ? a.keys[row0 + r] : kKeyChosen;
    largest = key > largest ? key : largest;
  }
  largest = simt::warp_max(largest);
  if (lane == 0) max_keys[warp] = largest;
  simt::block_barrier();
  if (thread == 0) {
    for (int w = 1; w < kWarps; ++w) {
      const Key other = max_keys[w];
      largest = other > largest ? other : largest;
    }
    simt::atomic_max(&a.state->max_key, largest);
  }
}

// A group of lanes a row.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kSelectThreads)
NORMA_KERNEL mean_distances_kernel(MatrixView<const float> points, const std::int64_t* rows, std::int64_t count, double* squared, bool aligned) {
  const std::int64_t own = (simt::block_x() * kSelectThreads + simt::thread_index()) / kGroup;
  const std::int64_t row = own < points.rows ? own : points.rows - 1;
  double sum = 0.0;
  for (std::int64_t s = 0; s < count; ++s) {
    sum += std::sqrt(group_distance(points.data + row * points.stride, points.data + rows[s] * points.stride, points.cols, aligned));
  }
  const double mean = sum / static_cast<double>(count);
  if (own < points.rows && simt::lane_index() % kGroup == 0) squared[row] = mean * mean;
}

template <class Tuning>
NORMA_LAUNCH_BOUNDS(Tuning{}(simt::pass_arch()).project.threads(), 2)
NORMA_KERNEL project_kernel(MatrixView<const float> points, MatrixView<const float> map, MatrixView<float> out) {
  constexpr TilePolicy kTile = Tuning{}(simt::pass_arch()).project;
  using Product = TileProduct<kTile, float>;
  static_assert(Product::kSharedBytes <= SweepShared::product_bytes(kTile));
  const std::int64_t row0 = simt::block_x() * kTile.rows, col0 = simt::block_y() * kTile.cols;
  const MatrixSource<float> rows{points.data, row0, points.rows, points.cols, points.stride};
  const MatrixSource<float> cols{map.data, col0, map.rows, map.cols, map.stride};
  typename Product::Accumulator product;
  product.fill(0.0f);
  Product::accumulate(product, rows, cols, points.cols, 0);
  product.for_each([&](int, int row, int col, float& value) {
    if (row0 + row < out.rows && col0 + col < out.cols) out(row0 + row, col0 + col) = value;
  });
}

// ----------------------------------------------------------------------------------------------------------------------- 4 launchers
inline Status check_problem(std::string_view who, const KCentreProblem& p) {
  const std::string name(who);
  if (p.points.rows <= 0 || p.points.cols <= 0) {
    return {Errc::not_enough_data,
            name + ": expected rows and columns, found " + std::to_string(p.points.rows) + " x " + std::to_string(p.points.cols)};
  }
  if (p.points.rows > std::numeric_limits<int>::max()) {
    return {Errc::invalid_argument, name + ": expected fewer than 2^31 rows, found " + std::to_string(p.points.rows)};
  }
  if (p.points.cols > kMostRowDims) {
    return {Errc::invalid_argument, name + ": expected at most " + std::to_string(kMostRowDims) + " columns, found " + std::to_string(p.points.cols)};
  }
  if (p.points.stride < p.points.cols) {
    return {Errc::shape_mismatch,
            name + ": expected a stride of at least " + std::to_string(p.points.cols) + ", found " + std::to_string(p.points.stride)};
  }
  if (p.count < 1 || p.count > p.points.rows) {
    return {Errc::invalid_argument, name + ": expected a count of 1 to " + std::to_string(p.points.rows) + ", found " + std::to_string(p.count)};
  }
  if (p.initial == nullptr && (p.first_row < 0 || p.first_row >= p.points.rows)) {
    return {Errc::invalid_argument,
            name + ": expected a first row of 0 to " + std::to_string(p.points.rows - 1) + ", found " + std::to_string(p.first_row)};
  }
  if (p.points.data == nullptr || p.chosen == nullptr || p.workspace.data() == nullptr) {
    return {Errc::invalid_argument, name + ": expected device memory for points, chosen and workspace, found a null pointer"};
  }
  const std::size_t bytes = k_centre_workspace_bytes(p.points.rows, p.points.cols);
  if (p.workspace.size() < bytes) {
    return {Errc::out_of_memory, name + ": expected a workspace of " + std::to_string(bytes) + " bytes, found " + std::to_string(p.workspace.size())};
  }
  if (reinterpret_cast<std::uintptr_t>(p.workspace.data()) % 256 != 0) {
    return {Errc::invalid_argument, name + ": expected a workspace aligned to 256 bytes"};
  }
  return {};
}

inline Arrays arrays_of(const KCentreProblem& p) {
  const KCentreLayout layout(p.points.rows, p.points.cols);
  std::byte* base = p.workspace.data();
  Arrays a{};
  a.points = p.points;
  a.count = p.count;
  a.first_row = p.first_row;
  a.initial = p.initial;
  a.chosen = p.chosen;
  a.state = reinterpret_cast<State*>(base + layout.state);
  a.histogram = reinterpret_cast<unsigned*>(base + layout.histogram);
  a.counts = reinterpret_cast<Key*>(base + layout.counts);
  a.outside = reinterpret_cast<Outside*>(base + layout.outside);
  a.pending = reinterpret_cast<int*>(base + layout.pending);
  a.pool = reinterpret_cast<int*>(base + layout.pool);
  a.mutual = reinterpret_cast<Key*>(base + layout.mutual);
  a.centre = reinterpret_cast<float*>(base + layout.centre);
  a.squares = reinterpret_cast<float*>(base + layout.squares);
  a.keys = reinterpret_cast<Key*>(base + layout.keys);
  a.centred = reinterpret_cast<float*>(base + layout.centred);
  a.stride = layout.stride;
  a.rows_per_block = ceil_div(ceil_div(p.points.rows, KCentreLayout::kMostBlocks), kSelectThreads) * kSelectThreads;
  a.blocks = static_cast<int>(ceil_div(p.points.rows, a.rows_per_block));
  return a;
}

/// The policy of the code that will run.
template <class Tuning>
Result<KCentrePolicy> policy_of(std::string_view who) {
  NORMA_TRY(const int arch, kernel_arch(who, sweep_kernel<Tuning>));
  return Tuning{}(arch);
}

template <class Tuning>
Status launch_sweep(std::string_view who, StreamRef stream, const KCentrePolicy& policy, const Arrays& a) {
  const LaunchShape shape{.blocks_x = ceil_div(a.points.rows, policy.sweep.rows),
                          .threads = policy.sweep.threads(),
                          .shared_bytes = static_cast<std::size_t>(SweepShared(policy).bytes)};
  return launch(who, stream, shape, sweep_kernel<Tuning>, a, rows_are_aligned(a.points));
}

}  // namespace detail::k_centre

template <class Tuning>
Status enqueue_k_centre_start(StreamRef stream, const KCentreProblem& problem) {
  constexpr std::string_view kWho = "cuda::enqueue_k_centre_start";
  namespace k = detail::k_centre;
  NORMA_CHECK(k::check_problem(kWho, problem));
  NORMA_TRY(const KCentrePolicy policy, k::policy_of<Tuning>(kWho));
  const k::Arrays a = k::arrays_of(problem);
  const std::int64_t n = problem.points.rows;
  NORMA_CHECK(detail::fill_async(kWho, a.histogram, 0, detail::KCentreLayout::kBins * detail::KCentreLayout::kReplicas * sizeof(unsigned), stream));
  NORMA_CHECK(detail::launch(kWho, stream,
                             {.blocks_x = detail::ceil_div(problem.points.cols, simt::kWarp),
                              .threads = k::kSelectThreads,
                              .shared_bytes = k::kSelectThreads * sizeof(double)},
                             k::reset_kernel<Tuning>, a));
  constexpr std::int64_t kMostBlocks = 1024;
  NORMA_CHECK(detail::launch(kWho, stream, {.blocks_x = std::min(kMostBlocks, detail::ceil_div(n, k::kSelectWarps)), .threads = k::kSelectThreads},
                             k::prepare_kernel<Tuning>, a));
  return k::launch_sweep<Tuning>(kWho, stream, policy, a);
}

template <class Tuning>
Status enqueue_k_centre_rounds(StreamRef stream, const KCentreProblem& problem, std::int64_t rounds) {
  constexpr std::string_view kWho = "cuda::enqueue_k_centre_rounds";
  namespace k = detail::k_centre;
  NORMA_CHECK(k::check_problem(kWho, problem));
  NORMA_TRY(const KCentrePolicy policy, k::policy_of<Tuning>(kWho));
  const k::Arrays a = k::arrays_of(problem);
  const int most = static_cast<int>(std::min<std::int64_t>(policy.pool, problem.points.rows));
  const std::int64_t tiles = detail::ceil_div(most, k::kMutualTile);
  const detail::LaunchShape all{.blocks_x = a.blocks, .threads = k::kSelectThreads, .shared_bytes = k::kSelectShared};
  const detail::LaunchShape pairs{.blocks_x = tiles * (tiles + 1) / 2, .threads = k::kMutualThreads, .shared_bytes = k::kMutualShared};
  const detail::LaunchShape one{.threads = policy.pick_threads, .shared_bytes = static_cast<std::size_t>(k::PickShared(policy).bytes)};
  for (std::int64_t r = 0; r < rounds; ++r) {
    NORMA_CHECK(detail::launch(kWho, stream, all, k::count_kernel<Tuning>, a, most));
    NORMA_CHECK(detail::launch(kWho, stream, all, k::share_kernel<Tuning>, a));
    NORMA_CHECK(detail::launch(kWho, stream, all, k::gather_kernel<Tuning>, a));
    NORMA_CHECK(detail::launch(kWho, stream, pairs, k::mutual_kernel<Tuning>, a, most));
    NORMA_CHECK(detail::launch(kWho, stream, one, k::pick_kernel<Tuning>, a, most));
    NORMA_CHECK(k::launch_sweep<Tuning>(kWho, stream, policy, a));
  }
  return {};
}

template <class Tuning>
Status enqueue_k_centre_report(StreamRef stream, const KCentreProblem& problem, KCentreReport* report) {
  constexpr std::string_view kWho = "cuda::enqueue_k_centre_report";
  NORMA_CHECK(detail::k_centre::check_problem(kWho, problem));
  return detail::copy_async(kWho, report, &detail::k_centre::arrays_of(problem).state->report, sizeof(KCentreReport), stream);
}

template <class Tuning>
Result<std::vector<std::int64_t>> greedy_k_centre(StreamRef stream, const KCentreProblem& problem, const Observer& observer) {
  constexpr std::string_view kWho = "cuda::greedy_k_centre";
  using Clock = std::chrono::steady_clock;
  constexpr std::chrono::milliseconds kShort(50), kLong(150);
  NORMA_CHECK(detail::k_centre::check_problem(kWho, problem));
  NORMA_CHECK(enqueue_k_centre_start<Tuning>(stream, problem));
  Progress progress("coreset", problem.count, observer);
  KCentreReport report;
  std::int64_t reported = 0, rounds = 1;
  while (true) {
    const auto before = Clock::now();
    NORMA_CHECK(enqueue_k_centre_report<Tuning>(stream, problem, &report));
    NORMA_CHECK(detail::synchronize(kWho, stream));
    if (report.not_finite != KCentreReport::kNoRow) {
      return Status(Errc::not_finite, std::string(kWho) + ": row " + std::to_string(report.not_finite) + " is not finite");
    }
    NORMA_CHECK(progress.advance(report.chosen - reported));
    if (report.chosen == problem.count) break;
    reported = report.chosen;
    if (report.rounds > 0) {
      const auto took = Clock::now() - before;
      if (took < kShort) rounds *= 2;
      if (took > kLong) rounds = std::max<std::int64_t>(1, rounds / 2);
    }
    // No more than at the pace so far are needed, and a few for the end.
    const std::int64_t pace = report.rounds > 0 ? std::max<std::int64_t>(1, report.chosen / report.rounds) : 1;
    rounds = std::min(rounds, (problem.count - report.chosen) / pace + 2);
    NORMA_CHECK(enqueue_k_centre_rounds<Tuning>(stream, problem, rounds));
  }
  std::vector<std::int64_t> chosen(static_cast<std::size_t>(problem.count));
  NORMA_CHECK(detail::copy_async(kWho, chosen.data(), problem.chosen, chosen.size() * sizeof(std::int64_t), stream));
  NORMA_CHECK(detail::synchronize(kWho, stream));
  return chosen;
}

template <class Tuning>
Status k_centre_mean_distances(StreamRef stream, MatrixView<const float> points, const std::int64_t* rows, std::int64_t count, double* squared) {
  constexpr std::string_view kWho = "cuda::k_centre_mean_distances";
  namespace k = detail::k_centre;
  if (points.stride < points.cols) return {Errc::shape_mismatch, std::string(kWho) + ": expected a stride of at least the columns"};
  if (count < 1) return {Errc::invalid_argument, std::string(kWho) + ": expected at least one row to measure from, found " + std::to_string(count)};
  if (points.empty()) return {};
  const detail::LaunchShape shape{.blocks_x = detail::ceil_div(points.rows, k::kSelectThreads / k::kGroup), .threads = k::kSelectThreads};
  return detail::launch(kWho, stream, shape, k::mean_distances_kernel<Tuning>, points, rows, count, squared, k::rows_are_aligned(points));
}

template <class Tuning>
Status k_centre_project(StreamRef stream, MatrixView<const float> points, MatrixView<const float> map, MatrixView<float> out) {
  constexpr std::string_view kWho = "cuda::k_centre_project";
  namespace k = detail::k_centre;
  if (points.cols != map.cols || out.rows != points.rows || out.cols != map.rows || out.stride < out.cols) {
    const auto shape_of = [](std::int64_t rows, std::int64_t cols) { return std::to_string(rows) + " x " + std::to_string(cols); };
    return {Errc::shape_mismatch, std::string(kWho) + ": points " + shape_of(points.rows, points.cols) + ", map " + shape_of(map.rows, map.cols) +
                                      " and result " + shape_of(out.rows, out.cols) + " do not fit together"};
  }
  const std::int64_t padded = detail::ceil_div(points.cols, 4) * 4;
  if (!k::rows_are_aligned(points) || !k::rows_are_aligned(map) || points.stride < padded || map.stride < padded) {
    return {Errc::invalid_argument, std::string(kWho) + ": expected rows of points and map at multiples of 16 bytes"};
  }
  if (out.rows == 0 || out.cols == 0) return {};
  NORMA_TRY(const int arch, detail::kernel_arch(kWho, k::project_kernel<Tuning>));
  const TilePolicy tile = Tuning{}(arch).project;
  const detail::LaunchShape shape{.blocks_x = detail::ceil_div(out.rows, tile.rows),
                                  .blocks_y = detail::ceil_div(out.cols, tile.cols),
                                  .threads = tile.threads(),
                                  .shared_bytes = static_cast<std::size_t>(k::SweepShared::product_bytes(tile))};
  return detail::launch(kWho, stream, shape, k::project_kernel<Tuning>, points, map, out);
}

}  // namespace norma::cuda
