/// \file
/// Exact nearest rows without a distance matrix.
/// Shapes:      bank [n, d]; queries [m, d]; squared_distance, row [m, k], nearest first
/// Units:       squared L2 distance
/// Method:      products of rows as 8-bit integers (7 bits with AVX2 alone), which run at four (2.4) times the speed of float, bound every distance
///              from both sides; so do products in float where the processor has no such instructions, where rows are short or few, and where
///              a sample of the bank shows that integers are too coarse.
/// Exactness:   products only exclude: a bank row is left out where a proven lower bound of its distance is above a proven upper bound of the
///              k-th best. What is left is measured by direct difference in double, so the answer is that of brute force in double, equal
///              rows have distance exactly 0, and ties go to the lowest row.
/// Cost:        2 m n d operations; the bank's codes cross main memory once for every kQueriesPerPass queries. Many nearly equal rows cost more
///              (all are measured).
/// Memory:      the index holds the bank's codes (n (d + 20) bytes) or the bank packed (4 n d bytes), and keeps a view of the original
/// Determinism: bit-equal for any number of threads, and whichever of the two products excludes
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>
#include <utility>

#include <norma/concepts/search.hpp>
#include <norma/core/tensor.hpp>
#include <norma/linalg/gemm.hpp>
#include <norma/search/detail/candidates.hpp>
#include <norma/search/detail/narrow.hpp>
#include <norma/search/detail/search_kernels.hpp>

namespace norma {

/// Search policy: brute force's answer at more than the speed of a matrix product.
struct ExactSearch {
  static constexpr std::string_view name = "exact";
  static constexpr std::int64_t kQueriesPerPass = 1024;
  static constexpr std::int64_t kFewestRows = 1024;  // smaller banks, and shorter rows, are compared in float
  static constexpr std::int64_t kFewestDims = 32;
  // Share of the bank that integers may leave, for k = 2: a row that is measured costs as much as 20 of a product in float.
  static constexpr double kMostMeasured = 0.008;

  /// A bank made ready. Keeps a view of the bank: its memory (a matrix, a mapped model file) must stay where it is.
  struct Index {
    MatrixView<const float> bank;
    InstructionSet instructions = InstructionSet::generic;
    Buffer<float> centre;              // c [d], the mean row: distances do not change, rounding errors shrink
    search::detail::NarrowBank narrow;  // of b - c; or, in its place,
    linalg::PackedMatrix packed;
    Buffer<float> low;    // [n to whole panels] |b - c|^2, rounded down; NaN beyond n
    Buffer<float> slack;  // [n to whole panels] bound of the product's error, per |q - c|; 0 beyond n
    [[nodiscard]] std::int64_t rows() const noexcept { return bank.rows; }
    [[nodiscard]] std::int64_t dims() const noexcept { return bank.cols; }
    [[nodiscard]] std::size_t bytes() const noexcept {
      return narrow.bytes() + packed.bytes() + static_cast<std::size_t>(centre.size() + low.size() + slack.size()) * sizeof(float);
    }
  };

  /// `invalid_argument` for an empty bank, `not_finite` names a row with NaN, infinity, or a squared norm that float cannot hold.
  static Result<Index> prepare(MatrixView<const float> bank, Parallel parallel) { return prepare(bank, parallel, instruction_set()); }
  /// The same for a chosen instruction set, for tests.
  static Result<Index> prepare(MatrixView<const float> bank, Parallel parallel, InstructionSet set) {
    namespace impl = search::detail;
    const bool coded = bank.rows >= kFewestRows && bank.cols >= kFewestDims && bank.cols <= impl::kNarrowMostDims;
    if (coded && impl::narrow_kernels(set) != nullptr) {
      NORMA_TRY(Index index, prepare_narrow(bank, parallel, set));
      // Of the bank's own rows two have to be measured: itself and the nearest other.
      NORMA_TRY(const double share, impl::sample_share<ExactSearch>(index, 2, parallel));
      if (share <= kMostMeasured) return index;
    }
    return prepare_float(bank, parallel, set);
  }
  /// The two products without the choice between them, for tests and measurements. In float where there are no narrow kernels, or rows are
  /// longer than 16384.
  static Result<Index> prepare_narrow(MatrixView<const float> bank, Parallel parallel, InstructionSet set) {
    const auto* const kernels = search::detail::narrow_kernels(set);
    if (kernels == nullptr || bank.cols > search::detail::kNarrowMostDims) return prepare_float(bank, parallel, set);
    NORMA_TRY(const Buffer<double> squares, search::detail::row_squares("ExactSearch", bank, parallel));
    Index index;
    index.bank = bank;
    index.instructions = set;
    index.centre = search::detail::centre_of(bank, squares, parallel);
    index.narrow = search::detail::NarrowBank::in_panels(*kernels, bank, index.centre.data(), parallel);
    return index;
  }
  static Result<Index> prepare_float(MatrixView<const float> bank, Parallel parallel, InstructionSet set) {
    NORMA_TRY(const Buffer<double> squares, search::detail::row_squares("ExactSearch", bank, parallel));
    Index index;
    index.bank = bank;
    index.instructions = set;
    index.centre = search::detail::centre_of(bank, squares, parallel);
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
    const std::size_t in_float = arena_bytes<float>(rows * linalg::detail::scratch_stride(dims)) + arena_bytes<float>(rows) +
                                 linalg::gemm_scratch_bytes(rows, 1, dims, workers);
    return search::detail::Selection::bytes(rows, k) + std::max(in_float, search::detail::NarrowQueries::bytes(rows, dims));
  }

  /// A query that is not finite (or whose squared distance from the bank's mean float cannot hold) gets distance NaN and row -1. Where k exceeds the bank's rows,
  /// what is missing is +infinity and -1.
  static Status nearest(const Index& index, MatrixView<const float> queries, int k, MatrixView<float> squared_distance, MatrixView<std::int64_t> row,
                        Parallel parallel, Arena& arena) {
    std::int64_t measured = 0;
    return nearest(index, queries, k, squared_distance, row, parallel, arena, measured);
  }
  /// `measured` receives how many pairs of rows were measured.
  static Status nearest(const Index& index, MatrixView<const float> queries, int k, MatrixView<float> squared_distance, MatrixView<std::int64_t> row,
                        Parallel parallel, Arena& arena, std::int64_t& measured) {
    measured = 0;
    NORMA_CHECK(search::detail::check_search("ExactSearch", index.bank, queries, k, squared_distance, row));
    for (std::int64_t first = 0; first < queries.rows; first += kQueriesPerPass) {
      const std::int64_t count = std::min(kQueriesPerPass, queries.rows - first);
      NORMA_CHECK(pass(index, queries.block(first, count), k, squared_distance.block(first, count), row.block(first, count), parallel, arena, measured));
    }
    return {};
  }

 private:
  static Status pass(const Index& index, MatrixView<const float> queries, int k, MatrixView<float> squared_distance, MatrixView<std::int64_t> row,
                     Parallel parallel, Arena& arena, std::int64_t& measured) {
    namespace impl = search::detail;
    constexpr Errc kSmall = Errc::out_of_memory;
    constexpr const char* kWhy = "ExactSearch::nearest: the arena is smaller than scratch_bytes";
    const std::int64_t m = queries.rows, d = queries.cols;
    const Arena::Scope scope(arena);
    const auto& kernels = impl::search_kernels(index.instructions);
    impl::Selection selection(index.bank, queries, k, kernels, arena);
    if (!selection.ready()) return {kSmall, kWhy};

    if (!index.narrow.empty()) {
      const auto codes = impl::NarrowQueries::take(arena, m, d);
      if (codes.length == nullptr) return {kSmall, kWhy};
      parallel.run_ranges(m, 32, [&](std::int64_t from, std::int64_t to, int) {
        for (std::int64_t q = from; q < to; ++q) {
          const double squares = codes.code(*index.narrow.kernels, q, queries.row(q).data(), index.centre.data(), d);
          selection.begin(q, squares, squares);
        }
      });
      impl::walk_narrow(index.narrow, codes, selection.limit(), parallel,
                        [&](std::int64_t q, std::int64_t r, impl::NarrowBounds bounds) { selection.add(q, r, bounds.lower, bounds.upper); });
    } else {
      const std::int64_t stride = linalg::detail::scratch_stride(d);
      float* const centred = arena.take<float>(m * stride);
      float* const norm = arena.take<float>(m);
      if (norm == nullptr) return {kSmall, kWhy};
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
          selection.begin(q, squares, squares + 2.0 * product);
          norm[q] = static_cast<float>(std::sqrt(squares) * (1.0 + 4.0 * impl::kRoundingUnit));
          if (std::isfinite(static_cast<float>(squares))) continue;
          std::fill_n(shifted, d, 0.0f);
          norm[q] = std::numeric_limits<float>::quiet_NaN();
        }
      });
      linalg::gemm_tiles(MatrixView<const float>(centred, m, d, stride), index.packed, parallel, arena,
                         [&](std::int64_t row0, std::int64_t rows, std::int64_t col0, std::int64_t, const float* tile, std::int64_t width, int) {
                           impl::visit_candidates(kernels, tile, rows, width, index.low.data() + col0, index.slack.data() + col0, norm + row0,
                                                  selection.limit() + row0, [&](std::int64_t r, std::int64_t c, float bound) {
                                                    const impl::ProductBounds of{index.low[col0 + c], index.slack[col0 + c]};
                                                    selection.add(row0 + r, col0 + c, bound, impl::upper_bound(bound, of, norm[row0 + r]));
                                                  });
                         });
    }
    parallel.run_ranges(m, 16, [&](std::int64_t from, std::int64_t to, int) { selection.finish(from, to, squared_distance, row); });
    for (std::int64_t q = 0; q < m; ++q) measured += selection.measured(q);
    return {};
  }
};

static_assert(Search<ExactSearch>);

}  // namespace norma
