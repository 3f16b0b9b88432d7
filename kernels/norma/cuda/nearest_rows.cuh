/// \file
/// Exact nearest rows: a product that excludes, and a selection that measures. Contract and ties rule: norma/cuda/nearest_rows.hpp. Host
/// reference: norma::ExactSearch.
///
/// 1. query_operand_kernel centres and rounds the queries (prepared_bank.cuh, which also derives the bounds).
/// 2. row_product_kernel: a block multiplies a tile of queries with a tile of the bank. Its accumulators start at the rows' `low`, so its epilogue is
///    a pure minimum: of every group of 32 rows it keeps, a query, the smallest value with the row it belongs to, and the second smallest. 8 bytes
///    for 32 distances leave the chip.
/// 3. nearest_select_kernel: a block a query turns these into lower bounds of distances and measures, by direct difference in double from the
///    original rows: the best row of the k most promising groups, which gives an upper bound of the k-th distance; then the best row of every group
///    whose first bound is not above that; then all rows of every group whose second bound is not above it. What is left is proven to be farther than
///    the k-th.
///
/// Nothing is approximate and nothing can fail: rounding decides how many rows are measured, in the worst case (all rows equal) all of them.
///
/// Bound by: the product; 2 m n d flop. Writes and reads m n / 4 bytes of summaries.
#pragma once

#include <norma/cuda/prepared_bank.cuh>
#include <norma/cuda/tile_product.cuh>
#include <norma/cuda/warpgroup_product.cuh>

namespace norma::cuda {

/// Tiles of a product, and the threads of the selection. Never changes an answer.
struct NearestRowsPolicy {
  TilePolicy large;  // of queries by rows of the bank
  TilePolicy small;  // where there are fewer large tiles than `few`
  std::int64_t few;
  int select_threads;
  bool warpgroup = false;  // the large product is WarpgroupProduct's

  [[nodiscard]] NORMA_HD constexpr const TilePolicy& tile(bool is_large) const { return is_large ? large : small; }
};

/// Not measured on a device yet. On tensor cores two large tiles of one product an instruction fit a multiprocessor (64 KiB of shared memory and 128
/// threads of at most 255 registers each), so that one selects while the other multiplies. With fewer than 256 of them the machine would not be full.
struct NearestRowsTuning {
  NORMA_HD constexpr NearestRowsPolicy operator()(int /*arch*/, RowProduct product) const {
    constexpr std::int64_t kFew = 256;
    constexpr int kSelectThreads = 128;
    switch (product) {
      case RowProduct::fp32: return {kTileFp32, kTileFp32Small, kFew, kSelectThreads};
      // kTileTf32x3's 64 x 64 a warp would spill: this epilogue needs more registers than a store.
      case RowProduct::tf32x3: return {{128, 128, 16, 2, 4, 4, Arithmetic::tf32x3}, kTileTf32x3Small, kFew, kSelectThreads};
      case RowProduct::tf32: return {kTileTf32, kTileTf32Small, kFew, kSelectThreads};
      case RowProduct::bf16: break;
    }
    return {kTileBf16, kTileBf16Small, kFew, kSelectThreads};
  }
};

struct NearestRowsWarpgroupTuning {
  NORMA_HD constexpr NearestRowsPolicy operator()(int arch, RowProduct product) const {
    NearestRowsPolicy policy = NearestRowsTuning{}(arch, product);
    if (product != RowProduct::tf32 && product != RowProduct::bf16) return policy;
    policy.large = product == RowProduct::bf16 ? kWarpgroupBf16 : kWarpgroupTf32;
    policy.few = 132;  // one block on each multiprocessor of an H100
    policy.warpgroup = true;
    return policy;
  }
};

namespace detail {

// ------------------------------------------------------------------------------------------------------------------------------ summaries
// A value with its row in the group: the row takes the place of the last 5 bits.
inline constexpr unsigned kPlaceBits = kRowGroup - 1;

NORMA_DEVICE float with_place(float value, int place) {
  return simt::float_from_bits((simt::float_bits(value) & ~kPlaceBits) | static_cast<unsigned>(place));
}
NORMA_DEVICE int place_of(float summary) { return static_cast<int>(simt::float_bits(summary) & kPlaceBits); }
/// The smallest value that has this summary. It does not decrease where the summary increases.
NORMA_DEVICE float least_of(float summary) {
  const unsigned bits = simt::float_bits(summary);
  return simt::float_from_bits((bits >> 31) != 0u ? bits | kPlaceBits : bits & ~kPlaceBits);
}

struct ProductTask {
  const void* queries;  // [m, stride] operands
  const void* bank;     // [groups of the bank, kRowGroup, stride]
  const float* low;     // [groups of the bank to whole tiles, kRowGroup]
  float* summary;       // [m, groups, 2]
  std::int64_t query_rows;
  std::int64_t bank_groups;
  std::int64_t stride;
  std::int64_t first_group;  // of this segment of the bank, at a tile
  std::int64_t groups;       // of this segment
  std::int64_t query_tiles;
};

template <RowProduct P>
using ProductOperand = std::conditional_t<P == RowProduct::bf16, BFloat16, float>;

/// How much is left to choose once the tuning has spoken: the same code on two tiles.
enum class TileSize { large, small };

template <RowProduct P, TileSize Size, class Tuning>
constexpr auto choose_tile() {
  constexpr NearestRowsPolicy kPolicy = Tuning{}(simt::pass_arch(), P);
  if constexpr (kPolicy.warpgroup && Size == TileSize::large) {
    return std::type_identity<WarpgroupProduct<kPolicy.large, ProductOperand<P>>>{};
  } else {
    return std::type_identity<TileProduct<kPolicy.tile(Size == TileSize::large), ProductOperand<P>>>{};
  }
}
template <RowProduct P, TileSize Size, class Tuning>
using RowTile = typename decltype(choose_tile<P, Size, Tuning>())::type;

/// Enough shared memory for a tile: on the CUDA cores a line may be padded by one chunk.
NORMA_HD constexpr int tile_shared_bytes(const TilePolicy& policy, int element_bytes) noexcept {
  const int line = policy.depth * element_bytes + (policy.arithmetic == Arithmetic::fp32 ? 16 : 0);
  return policy.stages * (policy.rows + policy.cols) * line;
}

/// One block a tile; neighbouring blocks share the tile of the bank, so that it crosses main memory once.
template <RowProduct P, TileSize Size, class Tuning>
NORMA_LAUNCH_BOUNDS(RowTile<P, Size, Tuning>::kThreads, 1)
NORMA_KERNEL row_product_kernel(ProductTask task) {
  using Tile = RowTile<P, Size, Tuning>;
  using Operand = ProductOperand<P>;
  constexpr TilePolicy kPolicy = Tile::policy;
  constexpr int kGroups = kPolicy.cols / kPolicy.warps_across / kRowGroup;  // of a warp
  constexpr int kColumns = kRowGroup / Tile::kRowLanes;                     // of a group in a thread
  static_assert(kPolicy.cols == kGroups * kPolicy.warps_across * kRowGroup && kBankTile % kPolicy.cols == 0,
                "a warp covers whole groups of the bank's rows");
  static_assert(tile_shared_bytes(kPolicy, sizeof(Operand)) >= Tile::kSharedBytes);
  const std::int64_t query_tile = simt::block_x() % task.query_tiles, bank_tile = simt::block_x() / task.query_tiles;
  const std::int64_t first_query = query_tile * kPolicy.rows, first_row = task.first_group * kRowGroup + bank_tile * kPolicy.cols;

  typename Tile::Accumulator sums;
  const float* const low = task.low + first_row;
  sums.for_each([&](int, int, int column, float& value) { value = low[column]; });
  Tile::accumulate(sums, MatrixSource<Operand>{static_cast<const Operand*>(task.queries), first_query, task.query_rows, task.stride, task.stride},
                   MatrixSource<Operand>{static_cast<const Operand*>(task.bank), first_row, task.bank_groups * kRowGroup, task.stride, task.stride},
                   task.stride, 0);

  float first[Tile::kRowSlots][kGroups], second[Tile::kRowSlots][kGroups];
  int first_group = 0, seen = 0;  // `seen` is known when the loops are unrolled
  sums.for_each([&](int slot, int, int column, float& value) {
    const float summary = with_place(value, column % kRowGroup);
    const int g = seen / kColumns % kGroups;
    if (seen % kColumns == 0) {
      first[slot][g] = summary;
      second[slot][g] = kAbsent;
      if (seen == 0) first_group = column / kRowGroup;
    } else {
      second[slot][g] = ::fminf(second[slot][g], ::fmaxf(first[slot][g], summary));
      first[slot][g] = ::fminf(first[slot][g], summary);
    }
    ++seen;
  });
  const std::int64_t group = bank_tile * (kPolicy.cols / kRowGroup) + first_group;
  sums.for_each_row([&](int slot, int row) {
    NORMA_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      float least = first[slot][g], next = second[slot][g];
      NORMA_UNROLL
      for (int mask = 1; mask < Tile::kRowLanes; mask *= 2) {
        const float other_least = simt::warp_shuffle_xor(least, mask), other_next = simt::warp_shuffle_xor(next, mask);
        next = ::fminf(::fminf(next, other_next), ::fmaxf(least, other_least));
        least = ::fminf(least, other_least);
      }
      if (simt::lane_index() % Tile::kRowLanes == 0 && first_query + row < task.query_rows && group + g < task.groups) {
        simt::store<2>(task.summary + 2 * ((first_query + row) * task.groups + group + g), simt::Vec<float, 2>{{least, next}});
      }
    }
  });
}

// ------------------------------------------------------------------------------------------------------------------------------ measuring
/// sum over i of (a[i] - ratio b[i])^2 in double, in an order that depends on `count` alone; all lanes. `quads`: both rows may be read four elements
/// at once.
template <class T>
NORMA_DEVICE double warp_squared_difference(const T* a, const T* b, std::int64_t count, double ratio, bool quads) {
  constexpr int kQuad = 4;
  double sum = 0.0;
  const auto add = [&](T x, T y) {
    const double difference = static_cast<double>(simt::to_float(x)) - ratio * static_cast<double>(simt::to_float(y));
    sum += difference * difference;
  };
  std::int64_t c = simt::lane_index() * kQuad;
  if (quads) {
    for (; c + kQuad <= count; c += kQuad * simt::kWarp) {
      const simt::Vec<T, kQuad> x = simt::load<kQuad>(a + c), y = simt::load<kQuad>(b + c);
      NORMA_UNROLL
      for (int i = 0; i < kQuad; ++i) add(x[i], y[i]);
    }
  }
  for (; c < count; c += kQuad * simt::kWarp) {
    const std::int64_t end = c + kQuad < count ? c + kQuad : count;
    for (std::int64_t i = c; i < end; ++i) add(a[i], b[i]);
  }
  return simt::warp_sum(sum);
}

/// The squared distance of two rows that both have a scale (row_scale). In double precision, `x sx - y sy` would not be 0 for equal rows where the
/// compiler contracts it; `(x - (sy / sx) y) sx` is. A row of zeros has scale 0 where the distance is cosine: 2, so that half of it is 1.
template <class T>
NORMA_DEVICE double warp_squared_distance(const T* query, double query_scale, const T* row, double row_scale, std::int64_t count, bool quads) {
  if (query_scale == 0.0 || row_scale == 0.0) return 2.0;
  return warp_squared_difference(query, row, count, row_scale / query_scale, quads) * query_scale * query_scale;
}

template <class T>
struct SelectTask {
  PreparedBank<T> bank;
  MatrixView<const T> queries;  // of this pass
  QueryFacts* facts;
  const float* summary;      // [m, groups, 2]
  std::int64_t first_group;  // of this segment
  std::int64_t groups;
  int k;
  bool last;  // segment: write the answer, else what was found so far
  bool quads;
  double* best;  // [m, k] from one segment to the next
  std::int64_t* best_row;
  MatrixView<float> distance;
  MatrixView<std::int64_t> index;
  SearchCounters* counters;
};

inline constexpr int kWaiting = 256;  // rows that wait to be measured

/// Offsets in shared memory.
struct SelectMemory {
  int distance, row, next, next_row, least, group, warps, bytes;
};
NORMA_HD constexpr SelectMemory select_memory(int threads) {
  constexpr int kSlots = kMostNeighbours + kWaiting, kEight = 8, kFour = 4;
  SelectMemory m{};
  m.row = m.distance + kSlots * kEight;
  m.next = m.row + kSlots * kEight;
  m.next_row = m.next + kMostNeighbours * kEight;
  m.least = m.next_row + kMostNeighbours * kEight;
  m.group = m.least + (threads + 1) * kEight;
  m.warps = m.group + threads * kFour;
  m.bytes = m.warps + threads / simt::kWarp * kFour;
  return m;
}

/// The k best so far and the rows that wait, in shared memory: places [0, found) and [kMostNeighbours, kMostNeighbours + waiting). All threads of the
/// block call all members, and all of them hold the same values.
template <class T>
class Selection {
 public:
  NORMA_DEVICE Selection(const SelectTask<T>& task, std::int64_t query, const QueryFacts& facts)
      : task_(task), query_(query), facts_(facts), memory_(select_memory(simt::block_threads())) {}

  int found = 0;
  unsigned measured = 0;
  double limit = __builtin_inf();  // on a distance less QueryFacts::offset: what is proven to be above it is out

  /// Rows that may still be added before `measure` has to be called.
  [[nodiscard]] NORMA_DEVICE int room() const { return kWaiting - waiting_; }

  /// Lets the rows of the threads with `wanted` wait, in the order of the threads.
  NORMA_DEVICE void add(bool wanted, std::int64_t row) {
    const auto rows = simt::shared_array<std::int64_t>(memory_.row, kMostNeighbours + kWaiting);
    const Place place = place_among(wanted);
    if (wanted) rows[kMostNeighbours + waiting_ + place.before] = row;
    waiting_ += place.all;
  }

  /// How many threads with `wanted` come before this one, and how many there are.
  struct Place {
    int before, all;
  };
  NORMA_DEVICE Place place_among(bool wanted) const {
    const auto counts = simt::shared_array<int>(memory_.warps, simt::block_threads() / simt::kWarp);
    const unsigned ballot = simt::warp_ballot(wanted);
    if (simt::lane_index() == 0) counts[simt::warp_index()] = __builtin_popcount(ballot);
    simt::block_barrier();
    Place place{__builtin_popcount(ballot & ((1u << simt::lane_index()) - 1u)), 0};
    for (int warp = 0; warp < simt::block_threads() / simt::kWarp; ++warp) {
      const int count = counts[warp];
      if (warp < simt::warp_index()) place.before += count;
      place.all += count;
    }
    simt::block_barrier();
    return place;
  }

  /// Measures what waits, keeps the k best of all, and draws the limit tighter.
  NORMA_DEVICE void measure() {
    if (waiting_ == 0) return;
    const auto distance = simt::shared_array<double>(memory_.distance, kMostNeighbours + kWaiting);
    const auto rows = simt::shared_array<std::int64_t>(memory_.row, kMostNeighbours + kWaiting);
    const auto next = simt::shared_array<double>(memory_.next, kMostNeighbours);
    const auto next_row = simt::shared_array<std::int64_t>(memory_.next_row, kMostNeighbours);
    simt::block_barrier();
    for (int i = simt::warp_index(); i < waiting_; i += simt::block_threads() / simt::kWarp) {
      const std::int64_t row = rows[kMostNeighbours + i];
      const double d = warp_squared_distance(&task_.queries(query_, 0), facts_.scale, &task_.bank.rows(row, 0), task_.bank.scale[row],
                                             task_.queries.cols, task_.quads);
      if (simt::lane_index() == 0) distance[kMostNeighbours + i] = d;
    }
    simt::block_barrier();
    // Everybody's rank is the number of those before it; no two are equal because no row is here twice.
    const int all = found + waiting_;
    const auto place = [this](int i) { return i < found ? i : kMostNeighbours + i - found; };
    for (int i = simt::thread_index(); i < all; i += simt::block_threads()) {
      const double mine = distance[place(i)];
      const std::int64_t my_row = rows[place(i)];
      int rank = 0;
      for (int j = 0; j < all; ++j) {
        const double other = distance[place(j)];
        const std::int64_t other_row = rows[place(j)];
        rank += other < mine || (other == mine && other_row < my_row) ? 1 : 0;
      }
      if (rank >= task_.k) continue;
      next[rank] = mine;
      next_row[rank] = my_row;
    }
    simt::block_barrier();
    measured += static_cast<unsigned>(waiting_);
    found = all < task_.k ? all : task_.k;
    waiting_ = 0;
    for (int i = simt::thread_index(); i < found; i += simt::block_threads()) {
      const double d = next[i];
      const std::int64_t row = next_row[i];
      distance[i] = d;
      rows[i] = row;
    }
    simt::block_barrier();
    draw_limit();
  }

  /// What an earlier segment found.
  NORMA_DEVICE void restore() {
    found = facts_.found;
    if (found == 0) return;
    const auto distance = simt::shared_array<double>(memory_.distance, kMostNeighbours + kWaiting);
    const auto rows = simt::shared_array<std::int64_t>(memory_.row, kMostNeighbours + kWaiting);
    for (int i = simt::thread_index(); i < found; i += simt::block_threads()) {
      distance[i] = task_.best[query_ * task_.k + i];
      rows[i] = task_.best_row[query_ * task_.k + i];
    }
    simt::block_barrier();
    draw_limit();
  }

  /// The answer, or what the next segment restores.
  NORMA_DEVICE void write() const {
    const auto distance = simt::shared_array<double>(memory_.distance, kMostNeighbours + kWaiting);
    const auto rows = simt::shared_array<std::int64_t>(memory_.row, kMostNeighbours + kWaiting);
    for (int i = simt::thread_index(); i < task_.k; i += simt::block_threads()) {
      double d = __builtin_inf();
      std::int64_t row = -1;
      if (i < found) {
        d = distance[i];
        row = rows[i];
      }
      if (task_.last) {
        task_.distance(query_, i) = static_cast<float>(task_.bank.distance == RowDistance::cosine ? 0.5 * d : d);
        task_.index(query_, i) = row;
      } else if (i < found) {
        task_.best[query_ * task_.k + i] = d;
        task_.best_row[query_ * task_.k + i] = row;
      }
    }
    if (!task_.last && simt::thread_index() == 0) task_.facts[query_].found = found;
  }

 private:
  /// Both the distance and the offset are sums in double of at most kMostRowDims squares: 2^-30 is more than they lose.
  NORMA_DEVICE void draw_limit() {
    if (found < task_.k) return;
    const auto distance = simt::shared_array<double>(memory_.distance, kMostNeighbours + kWaiting);
    const double worst = distance[task_.k - 1];
    limit = worst - facts_.offset + 0x1p-30 * (worst + facts_.offset);
  }

  const SelectTask<T>& task_;
  std::int64_t query_;
  const QueryFacts& facts_;
  SelectMemory memory_;
  int waiting_ = 0;
};

/// Lower bounds of the distances, less the query's offset, of a group of rows.
struct GroupBounds {
  double first = __builtin_inf();   // of the row at `place`, and so of all; +infinity: there is none
  double second = __builtin_inf();  // of all others
  int place = 0;
};
NORMA_DEVICE GroupBounds group_bounds(const float* summary, const float* slack, const QueryFacts& facts) {
  constexpr float kPresent = 0x1p127f;
  const simt::Vec<float, 2> values = simt::load<2>(summary), per = simt::load<2>(slack);
  const double error = static_cast<double>(per[0]) * static_cast<double>(facts.norm) + static_cast<double>(per[1]) * static_cast<double>(facts.error);
  GroupBounds bounds;
  bounds.place = place_of(values[0]);
  const float first = least_of(values[0]), second = least_of(values[1]);
  if (first < kPresent) bounds.first = static_cast<double>(first) - error;
  if (second < kPresent) bounds.second = static_cast<double>(second) - error;
  return bounds;
}
/// False for +infinity, whatever the limit.
NORMA_DEVICE bool within(double bound, double limit) { return bound <= limit && bound < __builtin_inf(); }

template <class Tuning>
inline constexpr int kSelectThreads = Tuning{}(simt::pass_arch(), RowProduct::fp32).select_threads;

/// One block a query.
template <class T, class Tuning>
NORMA_LAUNCH_BOUNDS(kSelectThreads<Tuning>, 4)
NORMA_KERNEL nearest_select_kernel(SelectTask<T> task) {
  constexpr int kThreads = kSelectThreads<Tuning>;
  static_assert(kThreads >= kMostNeighbours && kThreads <= kWaiting && kThreads % simt::kWarp == 0);
  constexpr SelectMemory kMemory = select_memory(kThreads);
  const std::int64_t query = simt::block_x();
  const int thread = simt::thread_index();
  const QueryFacts facts = task.facts[query];
  if (!is_number(facts.scale)) {
    for (int i = thread; i < task.k; i += kThreads) {
      task.distance(query, i) = __builtin_nanf("");
      task.index(query, i) = -1;
    }
    return;
  }
  const std::int64_t bank_groups = row_groups(task.bank.rows.rows);
  const float* const summary = task.summary + 2 * query * task.groups;
  const float* const slack = task.bank.slack + 2 * task.first_group;
  const auto bounds_of = [&](std::int64_t group) {
    return group < task.groups ? group_bounds(summary + 2 * group, slack + 2 * group, facts) : GroupBounds{};
  };

  Selection<T> selection(task, query, facts);
  selection.restore();

  // A value that at least k groups reach, if there are k: the k-th smallest of the threads' minima.
  double mine = __builtin_inf();
  for (std::int64_t group = thread; group < task.groups; group += kThreads) {
    const double first = bounds_of(group).first;
    mine = first < mine ? first : mine;
  }
  const auto least = simt::shared_array<double>(kMemory.least, kThreads + 1);
  least[thread] = mine;
  simt::block_barrier();
  int rank = 0;
  for (int i = 0; i < kThreads; ++i) {
    const double other = least[i];
    rank += other < mine || (other == mine && i < thread) ? 1 : 0;
  }
  if (rank == task.k - 1) least[kThreads] = mine;
  simt::block_barrier();
  double promising = least[kThreads];
  promising = selection.limit < promising ? selection.limit : promising;

  const auto measure_first = [&](auto wanted) {
    for (std::int64_t base = 0; base < task.groups; base += kThreads) {
      const GroupBounds bounds = bounds_of(base + thread);
      if (selection.room() < kThreads) selection.measure();
      selection.add(wanted(bounds.first), row_at(task.first_group + base + thread, bounds.place, bank_groups));
    }
    selection.measure();
  };
  measure_first([&](double first) { return within(first, promising); });
  measure_first([&](double first) { return first > promising && within(first, selection.limit); });

  // Groups of which a second row may be among the nearest: all their rows but the one that was measured.
  const auto listed = simt::shared_array<int>(kMemory.group, kThreads);
  unsigned whole = 0;
  for (std::int64_t base = 0; base < task.groups; base += kThreads) {
    const bool wanted = within(bounds_of(base + thread).second, selection.limit);
    const auto place = selection.place_among(wanted);
    if (wanted) listed[place.before] = thread;
    simt::block_barrier();
    for (int i = 0; i < place.all; ++i) {
      const int in_list = listed[i];
      const std::int64_t group = base + in_list;
      const GroupBounds bounds = bounds_of(group);
      if (!within(bounds.second, selection.limit)) continue;  // what was measured since may have excluded it
      if (selection.room() < kRowGroup) selection.measure();
      const std::int64_t row = row_at(task.first_group + group, thread, bank_groups);
      selection.add(thread < kRowGroup && thread != bounds.place && row < task.bank.rows.rows && is_number(task.bank.scale[row]), row);
      ++whole;
    }
    simt::block_barrier();
  }
  selection.measure();
  selection.write();
  if (thread == 0) {
    simt::atomic_add(&task.counters->measured, static_cast<unsigned long long>(selection.measured));
    simt::atomic_add(&task.counters->whole_groups, static_cast<unsigned long long>(whole));
  }
}

// ------------------------------------------------------------------------------------------------------------------------------ launching
/// Calls `run` with a product as a type.
template <class Run>
Status with_product(RowProduct product, const Run& run) {
  switch (product) {
    case RowProduct::fp32: return run(std::integral_constant<RowProduct, RowProduct::fp32>{});
    case RowProduct::tf32x3: return run(std::integral_constant<RowProduct, RowProduct::tf32x3>{});
    case RowProduct::tf32: return run(std::integral_constant<RowProduct, RowProduct::tf32>{});
    case RowProduct::bf16: break;
  }
  return run(std::integral_constant<RowProduct, RowProduct::bf16>{});
}

template <RowProduct P, TileSize Size, class Tuning>
Status launch_product_tiles(std::string_view who, StreamRef stream, ProductTask task, const TilePolicy& policy, std::int64_t tiles) {
  task.query_tiles = ceil_div(task.query_rows, policy.rows);
  return launch(who, stream,
                {.blocks_x = tiles,
                 .threads = policy.threads(),
                 .shared_bytes = static_cast<std::size_t>(tile_shared_bytes(policy, static_cast<int>(sizeof(ProductOperand<P>))))},
                row_product_kernel<P, Size, Tuning>, task);
}

template <RowProduct P, class Tuning>
Status launch_product(std::string_view who, StreamRef stream, const ProductTask& task) {
  NORMA_TRY(const int arch, kernel_arch(who, row_product_kernel<P, TileSize::large, Tuning>));
  const NearestRowsPolicy policy = Tuning{}(arch, P);
  const auto tiles = [&](const TilePolicy& tile) { return ceil_div(task.query_rows, tile.rows) * ceil_div(task.groups * kRowGroup, tile.cols); };
  if (tiles(policy.large) >= policy.few)
    return launch_product_tiles<P, TileSize::large, Tuning>(who, stream, task, policy.large, tiles(policy.large));
  return launch_product_tiles<P, TileSize::small, Tuning>(who, stream, task, policy.small, tiles(policy.small));
}

template <class T>
bool quads_are_aligned(const T* data, std::int64_t stride) noexcept {
  return reinterpret_cast<std::uintptr_t>(data) % (4 * sizeof(T)) == 0 && stride % 4 == 0;
}

}  // namespace detail

template <class T, class Tuning>
Status nearest_rows(StreamRef stream, const PreparedBank<T>& bank, MatrixView<const std::type_identity_t<T>> queries, int k,
                    MatrixView<float> distance, MatrixView<std::int64_t> index, std::span<std::byte> workspace, SearchMemory limits) {
  constexpr std::string_view kWho = "cuda::nearest_rows";
  const auto size = [](const auto& m) { return std::to_string(m.rows) + " x " + std::to_string(m.cols); };
  if (bank.operand == nullptr || bank.rows.empty()) return {Errc::not_fitted, std::string(kWho) + ": expected a bank that place_bank laid out"};
  if (k < 1 || k > kMostNeighbours) {
    return {Errc::invalid_argument, std::string(kWho) + ": expected k from 1 to " + std::to_string(kMostNeighbours) + ", found " + std::to_string(k)};
  }
  if (queries.cols != bank.rows.cols || queries.rows < 0) {
    return {Errc::shape_mismatch,
            std::string(kWho) + ": wrong queries, expected rows of " + std::to_string(bank.rows.cols) + " values, found " + size(queries)};
  }
  if (distance.rows != queries.rows || index.rows != queries.rows || distance.cols != k || index.cols != k) {
    return {Errc::shape_mismatch, std::string(kWho) + ": wrong outputs, expected " + std::to_string(queries.rows) + " x " + std::to_string(k) +
                                      ", found " + size(distance) + " and " + size(index)};
  }
  const detail::SearchPlan plan = detail::plan_search(queries.rows, bank.rows.rows, bank.rows.cols, k, bank.product, limits);
  if (workspace.size() < plan.bytes) {
    return {Errc::out_of_memory, std::string(kWho) + ": expected a workspace of " + std::to_string(plan.bytes) +
                                     " bytes (nearest_rows_workspace_bytes), found " + std::to_string(workspace.size())};
  }
  std::byte* const at = workspace.data();
  if (reinterpret_cast<std::uintptr_t>(at) % 256 != 0)
    return {Errc::invalid_argument, std::string(kWho) + ": expected a workspace aligned to 256 bytes"};
  auto* const counters = reinterpret_cast<SearchCounters*>(at + plan.counters);
  auto* const facts = reinterpret_cast<detail::QueryFacts*>(at + plan.facts);
  auto* const summary = reinterpret_cast<float*>(at + plan.summary);
  auto* const select = detail::nearest_select_kernel<T, Tuning>;
  NORMA_TRY(const int arch, detail::kernel_arch(kWho, select));
  const int select_threads = Tuning{}(arch, RowProduct::fp32).select_threads;
  NORMA_CHECK(detail::fill_async(kWho, counters, 0, sizeof(SearchCounters), stream));

  for (std::int64_t first = 0; first < queries.rows; first += plan.pass_queries) {
    const std::int64_t count = std::min(plan.pass_queries, queries.rows - first);
    const MatrixView<const T> these = queries.block(first, count);
    NORMA_CHECK(detail::with_operand(bank.product, [&](auto operand) {
      using Operand = decltype(operand);
      return detail::launch(kWho, stream, {.blocks_x = detail::ceil_div(count, detail::kPrepareWarps), .threads = detail::kPrepareThreads},
                            detail::query_operand_kernel<T, Operand>, bank, these, facts, reinterpret_cast<Operand*>(at + plan.operand));
    }));
    for (std::int64_t segment = 0; segment < plan.segments; ++segment) {
      const std::int64_t first_group = segment * plan.segment_groups;
      const std::int64_t groups = std::min(plan.segment_groups, detail::row_groups(bank.rows.rows) - first_group);
      const detail::ProductTask product{at + plan.operand, bank.operand, bank.low, summary, count, detail::row_groups(bank.rows.rows),
                                        bank.stride,       first_group,  groups,   0};
      NORMA_CHECK(
          detail::with_product(bank.product, [&](auto p) { return detail::launch_product<decltype(p)::value, Tuning>(kWho, stream, product); }));
      const detail::SelectTask<T> selection{
          bank,
          these,
          facts,
          summary,
          first_group,
          groups,
          k,
          segment + 1 == plan.segments,
          detail::quads_are_aligned(bank.rows.data, bank.rows.stride) && detail::quads_are_aligned(these.data, these.stride),
          reinterpret_cast<double*>(at + plan.best),
          reinterpret_cast<std::int64_t*>(at + plan.best_row),
          distance.block(first, count),
          index.block(first, count),
          counters};
      NORMA_CHECK(detail::launch(
          kWho, stream,
          {.blocks_x = count, .threads = select_threads, .shared_bytes = static_cast<std::size_t>(detail::select_memory(select_threads).bytes)},
          select, selection));
    }
  }
  return {};
}

}  // namespace norma::cuda
