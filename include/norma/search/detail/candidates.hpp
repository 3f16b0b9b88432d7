/// \file
/// What the searches have in common: checks, the candidates of a query, and how they become its answer.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include <norma/core/arena.hpp>
#include <norma/core/parallel.hpp>
#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/search/detail/search_kernels.hpp>

namespace norma::search::detail {

/// A row that was not excluded, and the lower bound of its distance.
struct Waiting {
  float bound;
  std::int64_t row;
};

/// What a query has found so far; the arrays are pieces of the arena.
struct Candidates {
  float* upper;            // [k] smallest upper bounds, ascending
  Waiting* waiting;        // [capacity] rows not measured yet
  double* best;            // [k] measured distances, ascending by (distance, row)
  std::int64_t* best_row;  // [k]
  std::int64_t uppers;     // of upper bounds, <= k
  std::int64_t count;      // of rows not measured yet
  std::int64_t found;      // of measured rows that are kept, <= k
  std::int64_t measured;   // pairs of rows so far
  double offset;           // bounds are of |q - b|^2 - offset; NaN for a query that finds nothing
  double room;             // what a distance measured in double may be off by, of the part that is offset
};

// With fewer, more rows are measured than need be; with more, the candidates of a pass leave the second-level cache.
constexpr std::int64_t candidate_capacity(int k) noexcept { return 4 * k + 64; }

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

/// The centre for a bank whose rows have these squared norms: their mean, or zero where a row's squared distance from the mean could leave float.
inline Buffer<float> centre_of(MatrixView<const float> bank, const Buffer<double>& squares, Parallel parallel) {
  for (std::int64_t r = 0; r < bank.rows; ++r) {
    if (squares[r] > 0x1p124) return Buffer<float>(bank.cols);
  }
  return mean_row(bank, parallel);
}

/// Share of the bank that a search counts for 64 of its rows asked for two neighbours, beyond `needed` rows a query. A coreset's rows lie farther
/// from each other than a query from the nearest of them, so this is more than queries will need.
template <class SearchT>
Result<double> sample_share(const typename SearchT::Index& index, std::int64_t needed, Parallel parallel) {
  constexpr std::int64_t kSample = 64;
  const std::int64_t n = index.rows(), step = n / kSample;
  Matrix<float> distance(kSample, 2);
  Matrix<std::int64_t> row(kSample, 2);
  Buffer<std::byte> memory(static_cast<std::int64_t>(SearchT::scratch_bytes(kSample, index.dims(), 2, parallel.workers())));
  Arena arena(memory.span());
  std::int64_t counted = 0;
  const MatrixView<const float> sample(index.bank.data, kSample, index.dims(), index.bank.stride * step);
  NORMA_CHECK(SearchT::nearest(index, sample, 2, distance.view(), row.view(), parallel, arena, counted));
  return static_cast<double>(counted - needed * kSample) / static_cast<double>(kSample * n);
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

/// Asks for the beginning of a row that will be read soon; the processor fetches the rest by itself.
inline void prefetch_row(std::span<const float> row) noexcept {
#if NORMA_HAS_VECTOR_EXTENSION
  constexpr std::size_t kLine = 16, kLines = 16;
  for (std::size_t i = 0; i < row.size() && i < kLine * kLines; i += kLine) __builtin_prefetch(row.data() + i);
#else
  (void)row;
#endif
}

/// The queries of a pass: takes lower bounds of their distances, and measures the rows that these do not exclude.
class Selection {
 public:
  static constexpr std::size_t bytes(std::int64_t queries, int k) noexcept {
    return arena_bytes<float>(queries) + arena_bytes<Candidates>(queries) + arena_bytes<float>(queries * k) + arena_bytes<double>(queries * k) +
           arena_bytes<std::int64_t>(queries * k) + arena_bytes<Waiting>(queries * candidate_capacity(k));
  }
  Selection(MatrixView<const float> bank, MatrixView<const float> queries, int k, const SearchKernels& kernels, Arena& arena) noexcept
      : bank_(bank), queries_(queries), kernels_(kernels), k_(k), capacity_(candidate_capacity(k)), most_measured_(bank.rows / 16 + 64) {
    const std::int64_t m = queries.rows;
    limit_ = arena.take<float>(m);
    candidates_ = arena.take<Candidates>(m);
    upper_ = arena.take<float>(m * k);
    best_ = arena.take<double>(m * k);
    best_row_ = arena.take<std::int64_t>(m * k);
    waiting_ = arena.take<Waiting>(m * capacity_);
  }
  /// Whether the arena was large enough.
  [[nodiscard]] bool ready() const noexcept { return waiting_ != nullptr; }
  /// [queries] Rows whose lower bound is above it need not be given to `add`.
  [[nodiscard]] const float* limit() const noexcept { return limit_; }
  [[nodiscard]] std::int64_t measured(std::int64_t q) const noexcept { return candidates_[q].measured; }

  /// Bounds of query q will be of |q - b|^2 - offset. `squares` is |q - c|^2; a query where float cannot hold it finds nothing.
  void begin(std::int64_t q, double squares, double offset) noexcept {
    const bool finite = std::isfinite(static_cast<float>(squares));
    candidates_[q] = {upper_ + q * k_, waiting_ + q * capacity_, best_ + q * k_, best_row_ + q * k_, 0, 0, 0, 0,
                      finite ? offset : std::numeric_limits<double>::quiet_NaN(), kRoundingUnit * 0x1p-16 * std::abs(offset)};
    limit_[q] = finite ? std::numeric_limits<float>::infinity() : -std::numeric_limits<float>::infinity();
  }

  /// Row r, whose lower bound is not above limit()[q]; `high` is an upper bound, or infinity.
  void add(std::int64_t q, std::int64_t r, float bound, float high) noexcept {
    Candidates& c = candidates_[q];
    if (c.count == capacity_) {
      // The nearest ones are usually enough to exclude most of the others.
      drop(q);
      if (c.count > capacity_ / 2) measure(q, k_), drop(q);
      if (c.count > capacity_ / 2) measure(q, capacity_);
      if (!(bound <= limit_[q])) return;
    }
    c.waiting[c.count++] = {bound, r};
    // The k smallest upper bounds draw the limit tighter.
    high = static_cast<float>(static_cast<double>(high) + c.room);
    if (c.uppers == k_ && !(high < c.upper[k_ - 1])) return;
    std::int64_t at = c.uppers < k_ ? c.uppers++ : k_ - 1;
    for (; at > 0 && c.upper[at - 1] > high; --at) c.upper[at] = c.upper[at - 1];
    c.upper[at] = high;
    if (c.uppers == k_) limit_[q] = std::min(limit_[q], c.upper[k_ - 1]);
  }

  /// Measures row r at once. A row may come twice.
  NORMA_NOINLINE void look(std::int64_t q, std::int64_t r) noexcept {
    Candidates& c = candidates_[q];
    if (std::find(c.best_row, c.best_row + c.found, r) != c.best_row + c.found) return;
    const double worst = c.found == k_ ? c.best[k_ - 1] : std::numeric_limits<double>::infinity();
    const double distance = kernels_.squared_distance(queries_.row(q).data(), bank_.row(r).data(), bank_.cols, worst);
    if (distance <= worst) {
      keep_best(c, static_cast<int>(k_), distance, r);
      if (c.found == k_) limit_[q] = std::min(limit_[q], limit_of(c.best[k_ - 1], c.offset));
    }
    ++c.measured;
    if (crowded(q)) limit_[q] = -std::numeric_limits<float>::infinity();  // takes no more
  }

  /// Measures what is left of queries [from, to) and writes their answers.
  void finish(std::int64_t from, std::int64_t to, MatrixView<float> squared_distance, MatrixView<std::int64_t> row) noexcept {
    bool crowds = false;
    for (std::int64_t q = from; q < to; ++q) {
      measure(q, capacity_);
      crowds = crowds || crowded(q);
    }
    if (crowds) measure_all(from, to);
    for (std::int64_t q = from; q < to; ++q) write_answer(candidates_[q], !std::isnan(candidates_[q].offset), static_cast<int>(k_), q, squared_distance, row);
  }

 private:
  // Bounds exclude so little of the bank that one row after the other, queries side by side, is the faster way.
  [[nodiscard]] bool crowded(std::int64_t q) const noexcept { return candidates_[q].measured > most_measured_; }

  // Forgets what waits in vain.
  NORMA_NOINLINE void drop(std::int64_t q) noexcept {
    Candidates& c = candidates_[q];
    c.count = std::remove_if(c.waiting, c.waiting + c.count, [&](const Waiting& w) { return !(w.bound <= limit_[q]); }) - c.waiting;
  }

  // Measures `most` of what waits, smallest bound first; each row is asked for while the one before it is measured.
  NORMA_NOINLINE void measure(std::int64_t q, std::int64_t most) noexcept {
    Candidates& c = candidates_[q];
    const auto later = [](const Waiting& a, const Waiting& b) { return a.bound > b.bound; };
    Waiting* end = c.waiting + c.count;
    std::make_heap(c.waiting, end, later);
    const auto take = [&](Waiting& out) {
      if (end == c.waiting) return false;
      std::pop_heap(c.waiting, end, later);
      out = *--end;
      if (out.bound <= limit_[q]) {
        prefetch_row(bank_.row(out.row));
        return true;
      }
      end = c.waiting;  // nor is any other
      return false;
    };
    Waiting now{}, next{};
    for (bool there = take(now); there; now = next) {
      if (most-- == 0) {
        *end++ = now;
        break;
      }
      there = take(next);
      if (now.bound <= limit_[q]) look(q, now.row);
    }
    c.count = end - c.waiting;
  }

  // The crowded ones among queries [from, to) against the whole bank, a few rows of it at a time.
  NORMA_NOINLINE void measure_all(std::int64_t from, std::int64_t to) noexcept {
    constexpr std::int64_t kRows = 16;
    for (std::int64_t q = from; q < to; ++q) {
      if (!crowded(q)) continue;
      candidates_[q].found = 0;
      candidates_[q].measured += bank_.rows;
    }
    for (std::int64_t first = 0; first < bank_.rows; first += kRows) {
      const std::int64_t last = std::min(first + kRows, bank_.rows);
      for (std::int64_t q = from; q < to; ++q) {
        Candidates& c = candidates_[q];
        if (!crowded(q)) continue;
        for (std::int64_t r = first; r < last; ++r) {
          const double worst = c.found == k_ ? c.best[k_ - 1] : std::numeric_limits<double>::infinity();
          const double distance = kernels_.squared_distance(queries_.row(q).data(), bank_.row(r).data(), bank_.cols, worst);
          if (distance <= worst) keep_best(c, static_cast<int>(k_), distance, r);
        }
      }
    }
  }

  MatrixView<const float> bank_, queries_;
  const SearchKernels& kernels_;
  std::int64_t k_, capacity_, most_measured_;
  float* limit_ = nullptr;
  Candidates* candidates_ = nullptr;
  float* upper_ = nullptr;
  double* best_ = nullptr;
  std::int64_t* best_row_ = nullptr;
  Waiting* waiting_ = nullptr;
};

}  // namespace norma::search::detail
