/// \file
/// Exact nearest rows on the device, without a distance matrix: the answer is that of brute force in double, for every product that may be chosen.
///
///     NORMA_TRY(const auto bank, cuda::place_bank(rows, cuda::RowDistance::squared_l2, cuda::RowProduct::bf16, memory));
///     NORMA_CHECK(cuda::prepare_bank(stream, bank));                                     // once
///     NORMA_CHECK(cuda::nearest_rows(stream, bank, queries, 9, distance, index, workspace));  // as often as wanted
///
/// Shapes:      bank [n, d], queries [m, d]; distance, index [m, k], nearest first; k = 1 to 64
/// Units:       squared L2 distance; or 1 - cosine, in [0, 2]
/// Ties rule:   a distance is a sum of d squared differences in double, in an order that depends on d alone; the k smallest of (distance, row) are
///              the answer, so what ties goes to the lowest row. Equal rows have distance exactly 0. Where k exceeds the rows, the rest is +infinity
///              and -1. A query that is not finite has distance NaN and index -1 and disturbs nobody.
/// Exactness:   the tensor-core or float product only excludes: see kernels/norma/cuda/prepared_bank.cuh
/// Cost:        2 m n d flop of the chosen product; of the order of m k rows are measured in double
/// Memory:      all of it is the caller's. Nothing here allocates, waits or reads back, so everything may be captured into a graph
/// Determinism: bitwise, whatever the device, the grid, the product and the memory
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>

#include <norma/core/status.hpp>
#include <norma/core/view.hpp>
#include <norma/cuda/element.hpp>
#include <norma/cuda/stream_ref.hpp>

namespace norma::cuda {

/// Cosine: half the squared L2 distance of the two rows divided by their lengths. Rows of one direction but not of the same bits are 0 apart within
///         double's
/// rounding, about 1e-32. A row of zeros has no direction; its distance to every row is 1.
enum class RowDistance : std::uint8_t { squared_l2, cosine };

/// How the product that excludes rows is computed. Never changes an answer: a coarser one is faster and leaves more rows to be measured.
enum class RowProduct : std::uint8_t {
  fp32,    ///< float on the CUDA cores
  tf32x3,  ///< tensor cores, float split in two
  tf32,    ///< tensor cores, 10 bits
  bf16,    ///< tensor cores, 7 bits; the prepared copy is half as large
};

/// What preparing found, in device memory (PreparedBank::status). Copy it behind prepare_bank and look at it: refused rows never win, but a bank
/// that has some is usually a mistake.
struct BankStatus {
  unsigned long long refused = 0;            ///< rows with NaN, infinity, or a squared length that float cannot hold
  unsigned long long first_refused = ~0ull;  ///< the lowest of them; all ones where there is none
};

/// What a search did, in device memory (search_counters). Bitwise reproducible, and no part of the answer.
struct SearchCounters {
  unsigned long long measured = 0;      ///< rows measured in double, over all queries
  unsigned long long whole_groups = 0;  ///< groups of kRowGroup rows of which every row had to be measured
};

inline constexpr int kMostNeighbours = 64;
inline constexpr int kRowGroup =
    32;  ///< rows of the bank that share one summary a query: rows g, g + groups, g + 2 groups, ..., so that neighbours share none
inline constexpr std::int64_t kMostRowDims = std::int64_t{1} << 20;

namespace detail {

inline constexpr std::int64_t kBankTile = 256;  // the prepared arrays end at a multiple of it; the largest tile

constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) noexcept { return (a + b - 1) / b * b; }
NORMA_HD constexpr std::int64_t row_groups(std::int64_t rows) noexcept { return (rows + kRowGroup - 1) / kRowGroup; }
/// The row at a place, 0 to kRowGroup - 1, of a group; beyond the last row where there is none. Rows that follow one another are often alike (patches
/// of one image): scattered over the groups, they do not hide one another.
NORMA_HD constexpr std::int64_t row_at(std::int64_t group, int place, std::int64_t groups) noexcept { return place * groups + group; }
constexpr std::size_t row_product_element(RowProduct product) noexcept { return product == RowProduct::bf16 ? 2 : 4; }
/// Elements between rows of a prepared copy: whole chunks of 16 bytes.
constexpr std::int64_t row_product_stride(std::int64_t dims, RowProduct product) noexcept {
  return round_up(dims, 16 / static_cast<std::int64_t>(row_product_element(product)));
}

/// Pieces one after the other, each aligned to 256 bytes.
struct MemoryPlan {
  std::size_t bytes = 0;
  constexpr std::size_t take(std::int64_t count, std::size_t element) noexcept {
    const std::size_t at = bytes;
    bytes += static_cast<std::size_t>(round_up(count * static_cast<std::int64_t>(element), 256));
    return at;
  }
};

struct BankPlan {
  std::size_t status = 0, centre = 0, scale = 0, low = 0, slack = 0, operand = 0, bytes = 0;
};
constexpr BankPlan plan_bank(std::int64_t rows, std::int64_t dims, RowProduct product) noexcept {
  MemoryPlan memory;
  BankPlan plan;
  const std::int64_t padded = round_up(rows, kBankTile);
  plan.status = memory.take(1, sizeof(BankStatus));
  plan.centre = memory.take(dims, sizeof(float));
  plan.scale = memory.take(rows, sizeof(double));
  plan.low = memory.take(padded, sizeof(float));
  plan.slack = memory.take(2 * (padded / kRowGroup), sizeof(float));
  plan.operand = memory.take(round_up(rows, kRowGroup) * row_product_stride(dims, product), row_product_element(product));
  plan.bytes = memory.bytes;
  return plan;
}

/// What the bounds need to know of a query.
struct QueryFacts {
  double offset = 0.0;  // |x|^2, x = query - centre
  double scale = 0.0;   // 1, or 1 / |query|; NaN: not finite
  float norm = 0.0f;    // of the rounded x, rounded up
  float error = 0.0f;   // |x - rounded x|, rounded up; +infinity: x is too long for products in float
  std::int32_t found = 0;
  std::int32_t unused = 0;
};

}  // namespace detail

/// How much memory a search may take; never changes an answer. More queries than `queries`, or more rows than fit `summaries`, go in several passes.
struct SearchMemory {
  std::int64_t queries = 4096;                     ///< at once
  std::int64_t summaries = std::int64_t{1} << 22;  ///< of 8 bytes, at once; at least 8 for every query are taken
};

namespace detail {

struct SearchPlan {
  std::int64_t pass_queries = 0;    // at once
  std::int64_t segment_groups = 0;  // groups of the bank at once, whole tiles
  std::int64_t segments = 0;
  std::size_t counters = 0, facts = 0, operand = 0, summary = 0, best = 0, best_row = 0, bytes = 0;
};
constexpr SearchPlan plan_search(std::int64_t queries, std::int64_t rows, std::int64_t dims, int k, RowProduct product,
                                 SearchMemory limits) noexcept {
  constexpr std::int64_t kTileGroups = kBankTile / kRowGroup;
  SearchPlan plan;
  plan.pass_queries = std::min(queries, std::max<std::int64_t>(limits.queries, 1));
  const std::int64_t all = round_up(rows, kBankTile) / kRowGroup;
  const std::int64_t room = limits.summaries / std::max<std::int64_t>(plan.pass_queries, 1) / kTileGroups * kTileGroups;
  plan.segment_groups = std::min(all, std::max(room, kTileGroups));
  plan.segments = plan.segment_groups == 0 ? 0 : (all + plan.segment_groups - 1) / plan.segment_groups;
  MemoryPlan memory;
  plan.counters = memory.take(1, sizeof(SearchCounters));
  plan.facts = memory.take(plan.pass_queries, sizeof(QueryFacts));
  plan.operand = memory.take(plan.pass_queries * row_product_stride(dims, product), row_product_element(product));
  plan.summary = memory.take(plan.pass_queries * plan.segment_groups, 2 * sizeof(float));
  const std::int64_t kept = plan.segments > 1 ? plan.pass_queries * k : 0;  // from one segment to the next
  plan.best = memory.take(kept, sizeof(double));
  plan.best_row = memory.take(kept, sizeof(std::int64_t));
  plan.bytes = memory.bytes;
  return plan;
}

}  // namespace detail

/// Device memory that a prepared bank of `rows` rows takes, the bank itself not counted.
constexpr std::size_t prepared_bank_bytes(std::int64_t rows, std::int64_t dims, RowProduct product) noexcept {
  return detail::plan_bank(rows, dims, product).bytes;
}

/// Device memory that one search takes; k as in the search, or larger.
constexpr std::size_t nearest_rows_workspace_bytes(std::int64_t queries, std::int64_t rows, std::int64_t dims, int k, RowProduct product,
                                                   SearchMemory limits = {}) noexcept {
  return detail::plan_search(queries, rows, dims, k, product, limits).bytes;
}

/// A bank made ready to be searched: views of device memory that belongs to the caller. Copy it freely.
template <class T>
struct PreparedBank {
  MatrixView<const T> rows;  ///< the caller's bank: measured distances come from it, so it must stay where it is
  RowDistance distance = RowDistance::squared_l2;
  RowProduct product = RowProduct::bf16;
  BankStatus* status = nullptr;
  float* centre = nullptr;  ///< [d], about the mean row: distances do not change, rounding errors shrink
  double* scale = nullptr;  ///< [n] 1, or 1 / |row| (0 for a row of zeros); NaN: refused
  float* low = nullptr;     ///< [groups to whole tiles, kRowGroup] |row - centre|^2, rounded down
  float* slack = nullptr;   ///< [groups to whole tiles, 2] what the product's errors are at most, per unit of a query's length and rounding error
  void* operand = nullptr;  ///< [groups, kRowGroup, stride] row - centre as the product takes it: BFloat16 or float
  std::int64_t stride = 0;
};

/// Lays a prepared bank out in `memory` (device memory, aligned to 256 bytes as allocations are). Touches nothing: prepare_bank fills it.
/// `invalid_argument`: an empty bank, more than kMostRowDims columns, memory that is not aligned; `out_of_memory`: less than prepared_bank_bytes.
template <class Element, class T = std::remove_const_t<Element>>
Result<PreparedBank<T>> place_bank(MatrixView<Element> bank, RowDistance distance, RowProduct product, std::span<std::byte> memory) {
  const std::string who = "cuda::place_bank";
  if (bank.empty() || bank.data == nullptr) {
    return Status(Errc::invalid_argument,
                  who + ": expected a bank with rows and columns, found " + std::to_string(bank.rows) + " x " + std::to_string(bank.cols));
  }
  if (bank.rows < 0 || bank.cols < 0 || bank.stride < bank.cols) {
    return Status(Errc::invalid_argument, who + ": expected rows that do not overlap, found " + std::to_string(bank.cols) +
                                              " columns at a stride of " + std::to_string(bank.stride));
  }
  if (bank.cols > kMostRowDims) {
    return Status(Errc::invalid_argument,
                  who + ": expected at most " + std::to_string(kMostRowDims) + " columns, found " + std::to_string(bank.cols));
  }
  const detail::BankPlan plan = detail::plan_bank(bank.rows, bank.cols, product);
  if (memory.size() < plan.bytes) {
    return Status(Errc::out_of_memory,
                  who + ": expected " + std::to_string(plan.bytes) + " bytes (prepared_bank_bytes), found " + std::to_string(memory.size()));
  }
  if (reinterpret_cast<std::uintptr_t>(memory.data()) % 256 != 0) {
    return Status(Errc::invalid_argument, who + ": expected memory aligned to 256 bytes");
  }
  std::byte* const at = memory.data();
  PreparedBank<T> placed;
  placed.rows = bank;
  placed.distance = distance;
  placed.product = product;
  placed.status = reinterpret_cast<BankStatus*>(at + plan.status);
  placed.centre = reinterpret_cast<float*>(at + plan.centre);
  placed.scale = reinterpret_cast<double*>(at + plan.scale);
  placed.low = reinterpret_cast<float*>(at + plan.low);
  placed.slack = reinterpret_cast<float*>(at + plan.slack);
  placed.operand = at + plan.operand;
  placed.stride = detail::row_product_stride(bank.cols, product);
  return placed;
}

/// Where a search leaves its counters.
inline const SearchCounters* search_counters(std::span<const std::byte> workspace) noexcept {
  return reinterpret_cast<const SearchCounters*>(workspace.data());
}

struct NearestRowsTuning;
struct NearestRowsWarpgroupTuning;  ///< for code compiled for sm_90a: the warpgroup's products where there is one (tf32, bf16)

/// Fills what place_bank laid out, in the order of `stream`. Rows that are not finite are counted in the status and never win.
/// T: float, Half, BFloat16. `not_fitted`: a bank that was not placed.
template <class T>
Status prepare_bank(StreamRef stream, const PreparedBank<T>& bank);

/// The k nearest rows of every query, in the order of `stream` behind prepare_bank. `workspace`: device memory, aligned to 256 bytes, one a stream.
/// `not_fitted`: a bank that was not placed; `shape_mismatch`: queries of another length, outputs that are not [m, k]; `invalid_argument`: k outside
/// 1 to 64, workspace that is not aligned; `out_of_memory`: less of it than nearest_rows_workspace_bytes with the same `limits`.
template <class T, class Tuning = NearestRowsTuning>
Status nearest_rows(StreamRef stream, const PreparedBank<T>& bank, MatrixView<const std::type_identity_t<T>> queries, int k,
                    MatrixView<float> distance, MatrixView<std::int64_t> index, std::span<std::byte> workspace, SearchMemory limits = {});

}  // namespace norma::cuda
