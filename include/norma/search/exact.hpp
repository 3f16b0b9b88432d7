/// \file
/// Exact nearest rows without a distance matrix.
/// Shapes:      bank [n, d]; queries [m, d]; squared_distance, row [m, k], nearest first
/// Units:       squared L2 distance
/// Exactness:   the product in float only excludes: a bank row is left out where a proven lower bound of its distance is above a
///              proven upper bound of the k-th best. What is left is measured by direct difference in double, so the answer is that
///              of brute force in double, equal rows have distance exactly 0, and ties go to the lowest row.
/// Cost:        2 m n d flop; the bank crosses main memory once for every kQueriesPerPass queries. Many equal rows cost more (all are measured).
/// Memory:      the index holds the bank a second time, packed, and keeps a view of the original
/// Determinism: bit-equal for any number of threads
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

#include <norma/concepts/search.hpp>
#include <norma/core/tensor.hpp>
#include <norma/linalg/gemm.hpp>
#include <norma/search/detail/search_kernels.hpp>

namespace norma {

namespace search::detail {

/// What a query row has found so far; the arrays are pieces of the arena.
struct Candidates {
  float* upper;            // [k] smallest upper bounds, ascending
  float* lower;            // [capacity] lower bounds of rows not measured yet
  std::int64_t* row;       // [capacity]
  double* best;            // [k] measured distances, ascending by (distance, row)
  std::int64_t* best_row;  // [k]
  std::int64_t count;      // of rows not measured yet
  std::int64_t uppers;     // of upper bounds, <= k
  std::int64_t found;      // of measured rows, <= k
  double offset;           // |q - b|^2 = offset + |b - c|^2 - 2 (q - c) b
};

constexpr std::int64_t candidate_capacity(int k) noexcept { return k + 32; }

/// Keeps the k smallest of (distance, row).
inline void keep_best(Candidates& c, int k, double distance, std::int64_t row) noexcept {
  std::int64_t at = c.found;
  if (at == k) {
    const auto last = static_cast<std::int64_t>(k) - 1;
    if (distance > c.best[last] || (distance == c.best[last] && row > c.best_row[last])) return;
    at = last;
  } else {
    ++c.found;
  }
  for (; at > 0 && (c.best[at - 1] > distance || (c.best[at - 1] == distance && c.best_row[at - 1] > row)); --at) {
    c.best[at] = c.best[at - 1];
    c.best_row[at] = c.best_row[at - 1];
  }
  c.best[at] = distance;
  c.best_row[at] = row;
}

/// |row|^2 of every row. `not_finite` names a row with NaN, infinity, or a squared norm that float cannot hold.
inline Result<Buffer<double>> row_squares(std::string_view who, MatrixView<const float> bank, Parallel parallel) {
  if (bank.empty()) {
    return Status(Errc::invalid_argument, std::string(who) + "::prepare: expected a bank with rows and columns, found " + std::to_string(bank.rows) + " x " +
                                              std::to_string(bank.cols));
  }
  Buffer<double> squares(bank.rows);
  parallel.run_ranges(bank.rows, 256, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t r = first; r < last; ++r) {
      for (const float value : bank.row(r)) squares[r] += static_cast<double>(value) * static_cast<double>(value);
    }
  });
  for (std::int64_t r = 0; r < bank.rows; ++r) {
    if (!std::isfinite(static_cast<float>(squares[r]))) {
      return Status(Errc::not_finite, std::string(who) + "::prepare: row " + std::to_string(r) + " of the bank is not finite, or too large for float");
    }
  }
  return squares;
}

inline Buffer<float> mean_row(MatrixView<const float> bank, Parallel parallel) {
  Buffer<float> mean(bank.cols);
  constexpr std::int64_t kColumns = 64;
  parallel.run_ranges(bank.cols, kColumns, [&](std::int64_t first, std::int64_t last, int) {
    double sum[kColumns] = {};
    for (std::int64_t r = 0; r < bank.rows; ++r) {
      for (std::int64_t i = first; i < last; ++i) sum[i - first] += static_cast<double>(bank(r, i));
    }
    for (std::int64_t i = first; i < last; ++i) mean[i] = static_cast<float>(sum[i - first] / static_cast<double>(bank.rows));
  });
  return mean;
}

/// What every search refuses.
inline Status check_search(std::string_view who, MatrixView<const float> bank, MatrixView<const float> queries, int k, MatrixView<float> squared_distance,
                           MatrixView<std::int64_t> row) {
  const std::string name(who);
  if (bank.rows == 0) return {Errc::not_fitted, name + "::nearest: the index is empty"};
  if (queries.cols != bank.cols) {
    return {Errc::shape_mismatch, name + "::nearest: wrong queries, expected rows of " + std::to_string(bank.cols) + " values, found " +
                                      std::to_string(queries.cols)};
  }
  if (k < 1) return {Errc::invalid_argument, name + "::nearest: expected k >= 1, found " + std::to_string(k)};
  if (squared_distance.rows != queries.rows || row.rows != queries.rows || squared_distance.cols != k || row.cols != k) {
    return {Errc::shape_mismatch, name + "::nearest: wrong outputs, expected " + std::to_string(queries.rows) + " x " + std::to_string(k) + ", found " +
                                      std::to_string(squared_distance.rows) + " x " + std::to_string(squared_distance.cols) + " and " +
                                      std::to_string(row.rows) + " x " + std::to_string(row.cols)};
  }
  return {};
}

/// One query's answer.
inline void write_answer(const Candidates& c, bool finite, int k, std::int64_t q, MatrixView<float> squared_distance, MatrixView<std::int64_t> row) noexcept {
  for (std::int64_t i = 0; i < k; ++i) {
    const bool there = finite && i < c.found;
    squared_distance(q, i) = !finite ? std::numeric_limits<float>::quiet_NaN()
                             : there ? static_cast<float>(c.best[i])
                                     : std::numeric_limits<float>::infinity();
    row(q, i) = there ? c.best_row[i] : -1;
  }
}

}  // namespace search::detail

/// Search policy: brute force at the speed of a matrix product.
struct ExactSearch {
  static constexpr std::string_view name = "exact";
  static constexpr std::int64_t kQueriesPerPass = 1024;

  /// A bank made ready. Keeps a view of the bank: its memory (a matrix, a mapped model file) must stay where it is.
  struct Index {
    MatrixView<const float> bank;
    linalg::PackedMatrix packed;
    Buffer<float> centre;  // c [d], the mean row: distances do not change, rounding errors shrink
    Buffer<float> low;     // [n to whole panels] |b - c|^2, rounded down; NaN beyond n
    Buffer<float> slack;   // [n to whole panels] bound of the product's error, per |q - c|; 0 beyond n
    [[nodiscard]] std::int64_t rows() const noexcept { return bank.rows; }
    [[nodiscard]] std::int64_t dims() const noexcept { return bank.cols; }
    [[nodiscard]] std::size_t bytes() const noexcept {
      return packed.bytes() + static_cast<std::size_t>(centre.size() + low.size() + slack.size()) * sizeof(float);
    }
  };

  /// `invalid_argument` for an empty bank, `not_finite` names a row with NaN, infinity, or a squared norm that float cannot hold.
  static Result<Index> prepare(MatrixView<const float> bank, Parallel parallel) { return prepare(bank, parallel, instruction_set()); }
  /// The same for a chosen instruction set, for tests.
  static Result<Index> prepare(MatrixView<const float> bank, Parallel parallel, InstructionSet set) {
    NORMA_TRY(const Buffer<double> squares, search::detail::row_squares("ExactSearch", bank, parallel));
    Index index;
    index.bank = bank;
    index.centre = search::detail::mean_row(bank, parallel);
    index.packed = linalg::PackedMatrix::pack(bank, set);
    const std::int64_t padded = index.packed.panels() * index.packed.panel();
    index.low = Buffer<float>(padded);
    index.slack = Buffer<float>(padded);
    parallel.run_ranges(padded, 256, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t r = first; r < last; ++r) {
        if (r >= bank.rows) {
          index.low[r] = std::numeric_limits<float>::quiet_NaN();
          continue;
        }
        double centred = 0.0;
        for (std::int64_t i = 0; i < bank.cols; ++i) {
          const double shifted = static_cast<double>(bank(r, i)) - static_cast<double>(index.centre[i]);
          centred += shifted * shifted;
        }
        const auto bounds = search::detail::product_bounds(bank.cols, centred, squares[r]);
        index.low[r] = bounds.low;
        index.slack[r] = bounds.slack;
      }
    });
    return index;
  }

  static constexpr std::size_t scratch_bytes(std::int64_t queries, std::int64_t dims, int k, int workers) noexcept {
    const std::int64_t rows = std::min(queries, kQueriesPerPass);
    return arena_bytes<float>(rows * linalg::detail::scratch_stride(dims)) + 2 * arena_bytes<float>(rows) + arena_bytes<search::detail::Candidates>(rows) +
           arena_bytes<float>(rows * k) + arena_bytes<double>(rows * k) + arena_bytes<std::int64_t>(rows * k) +
           arena_bytes<float>(rows * search::detail::candidate_capacity(k)) + arena_bytes<std::int64_t>(rows * search::detail::candidate_capacity(k)) +
           linalg::gemm_scratch_bytes(rows, 1, dims, workers);
  }

  /// A query that is not finite (or whose squared norm float cannot hold) gets distance NaN and row -1. Where k exceeds the bank's rows,
  /// what is missing is +infinity and -1.
  static Status nearest(const Index& index, MatrixView<const float> queries, int k, MatrixView<float> squared_distance, MatrixView<std::int64_t> row,
                        Parallel parallel, Arena& arena) {
    NORMA_CHECK(search::detail::check_search("ExactSearch", index.bank, queries, k, squared_distance, row));
    for (std::int64_t first = 0; first < queries.rows; first += kQueriesPerPass) {
      const std::int64_t count = std::min(kQueriesPerPass, queries.rows - first);
      NORMA_CHECK(pass(index, queries.block(first, count), k, squared_distance.block(first, count), row.block(first, count), parallel, arena));
    }
    return {};
  }

 private:
  static Status pass(const Index& index, MatrixView<const float> queries, int k, MatrixView<float> squared_distance, MatrixView<std::int64_t> row,
                     Parallel parallel, Arena& arena) {
    namespace impl = search::detail;
    const std::int64_t m = queries.rows, d = queries.cols;
    const std::int64_t stride = linalg::detail::scratch_stride(d), capacity = impl::candidate_capacity(k);
    const Arena::Scope scope(arena);
    float* const centred = arena.take<float>(m * stride);
    float* const norm = arena.take<float>(m);
    float* const limit = arena.take<float>(m);
    auto* const candidates = arena.take<impl::Candidates>(m);
    float* const upper = arena.take<float>(m * k);
    double* const best = arena.take<double>(m * k);
    auto* const best_row = arena.take<std::int64_t>(m * k);
    float* const lower = arena.take<float>(m * capacity);
    auto* const waiting = arena.take<std::int64_t>(m * capacity);
    if (waiting == nullptr) return {Errc::out_of_memory, "ExactSearch::nearest: the arena is smaller than scratch_bytes"};
    const auto& kernels = impl::search_kernels(index.packed.instructions());
    constexpr float infinity = std::numeric_limits<float>::infinity();

    parallel.run_ranges(m, 32, [&](std::int64_t from, std::int64_t to, int) {
      for (std::int64_t q = from; q < to; ++q) {
        double squares = 0.0, product = 0.0;
        float* const shifted = centred + q * stride;
        for (std::int64_t i = 0; i < d; ++i) {
          const double centre = static_cast<double>(index.centre[i]), difference = static_cast<double>(queries(q, i)) - centre;
          shifted[i] = static_cast<float>(difference);
          squares += difference * difference;
          product += difference * centre;
        }
        candidates[q] = {upper + q * k, lower + q * capacity, waiting + q * capacity, best + q * k, best_row + q * k, 0, 0, 0, squares + 2.0 * product};
        norm[q] = static_cast<float>(std::sqrt(squares) * (1.0 + 4.0 * impl::kRoundingUnit));
        limit[q] = infinity;
        if (std::isfinite(static_cast<float>(squares))) continue;
        std::fill_n(shifted, d, 0.0f);
        norm[q] = std::numeric_limits<float>::quiet_NaN();
        limit[q] = -infinity;
      }
    });

    // Measures what waits and draws the limit tighter.
    const auto measure = [&](std::int64_t q) {
      impl::Candidates& c = candidates[q];
      for (std::int64_t i = 0; i < c.count; ++i) {
        if (!(c.lower[i] <= limit[q])) continue;
        const double worst = c.found == k ? c.best[k - 1] : std::numeric_limits<double>::infinity();
        impl::keep_best(c, k, kernels.squared_distance(queries.row(q).data(), index.bank.row(c.row[i]).data(), d, worst), c.row[i]);
      }
      c.count = 0;
    };
    const auto add = [&](std::int64_t q, float bound, std::int64_t r) {
      impl::Candidates& c = candidates[q];
      if (c.count == capacity) {
        std::int64_t kept = 0;
        for (std::int64_t i = 0; i < c.count; ++i) {
          if (!(c.lower[i] <= limit[q])) continue;
          c.lower[kept] = c.lower[i];
          c.row[kept++] = c.row[i];
        }
        c.count = kept;
        if (kept == capacity) {
          measure(q);
          if (c.found == k) limit[q] = std::min(limit[q], impl::limit_of(c.best[k - 1], c.offset));
          if (!(bound <= limit[q])) return;
        }
      }
      c.lower[c.count] = bound;
      c.row[c.count++] = r;
      // An upper bound of the same distance; it draws the limit tighter once there are k of them.
      const float high = impl::upper_bound(bound, {index.low[r], index.slack[r]}, norm[q]);
      if (c.uppers == k && !(high < c.upper[k - 1])) return;
      std::int64_t at = c.uppers < k ? c.uppers++ : static_cast<std::int64_t>(k) - 1;
      for (; at > 0 && c.upper[at - 1] > high; --at) c.upper[at] = c.upper[at - 1];
      c.upper[at] = high;
      if (c.uppers == k) limit[q] = std::min(limit[q], c.upper[k - 1]);
    };

    linalg::gemm_tiles(MatrixView<const float>(centred, m, d, stride), index.packed, parallel, arena,
                       [&](std::int64_t row0, std::int64_t rows, std::int64_t col0, std::int64_t, const float* tile, std::int64_t width, int) {
                         impl::visit_candidates(kernels, tile, rows, width, index.low.data() + col0, index.slack.data() + col0, norm + row0, limit + row0,
                                                [&](std::int64_t r, std::int64_t c, float bound) { add(row0 + r, bound, col0 + c); });
                       });

    parallel.run_ranges(m, 16, [&](std::int64_t from, std::int64_t to, int) {
      for (std::int64_t q = from; q < to; ++q) {
        measure(q);
        impl::write_answer(candidates[q], limit[q] != -infinity, k, q, squared_distance, row);
      }
    });
    return {};
  }
};

static_assert(Search<ExactSearch>);

}  // namespace norma
