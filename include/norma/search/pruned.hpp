/// \file
/// Exact nearest rows with most of the arithmetic left out.
/// Source:      Cauchy-Schwarz on the tail of a rotated vector, as in "orthogonal search" (McNames, 2001) and partial-distance searches.
/// Shapes:      bank [n, d]; queries [m, d]; squared_distance, row [m, k], nearest first
/// Units:       squared L2 distance
/// Method:      the bank is seen along its few principal axes; the rest of a row is one number, its length. The distance of these short
///              vectors is a lower bound of the true one, and it costs a small part of it. A row whose bound is not above the k-th best distance
///              so far is compared by its 8-bit codes (search/detail/narrow.hpp; not on processors without products of integers), and measured
///              by direct difference in double if their bound does not exclude it either. Every eighth row is looked at first, so that the limit
///              starts low.
/// Exactness:   the answer of brute force in double, bit for bit that of ExactSearch: rounding of every step is part of the bound.
/// Cost:        short vectors leave 2-3 % of the rows of real patch features, codes leave k + 10 or so of each query. Where a sample of the bank
///              against itself leaves too much, `prepare` falls back to ExactSearch.
/// Memory:      the short rows (a float for every 18 dimensions, at most 32; an eighth of it again for the seeds) and the codes (d + 20 bytes);
///              without codes short rows of a twelfth of the bank. Keeps a view of the bank.
/// Determinism: bit-equal for any number of threads
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <span>
#include <string_view>
#include <utility>

#include <norma/concepts/search.hpp>
#include <norma/core/random.hpp>
#include <norma/core/tensor.hpp>
#include <norma/linalg/covariance.hpp>
#include <norma/linalg/gemm.hpp>
#include <norma/search/exact.hpp>

namespace norma {

namespace search::detail {

/// Orthonormal rows [count, d] that span the space of the largest eigenvalues of a covariance [d, d], nearly: the bounds hold for any
/// rows, better ones only leave less to measure. A degenerate direction is a row of zeros.
inline Matrix<double> principal_axes(const Matrix<float>& covariance, std::int64_t count, Parallel parallel) {
  const std::int64_t d = covariance.rows();
  Matrix<double> axes(count, d);
  Random random(0x61786573);
  for (std::int64_t i = 0; i < count * d; ++i) axes.data()[i] = random.normal();
  const auto packed = linalg::PackedMatrix::pack(covariance.view());
  Matrix<float> narrow(count, d), turned(count, d);
  Buffer<std::byte> scratch(static_cast<std::int64_t>(linalg::gemm_scratch_bytes(count, d, d, parallel.workers())));
  const auto orthonormalise = [&] {
    for (std::int64_t a = 0; a < count; ++a) {
      double* const row = axes.view().row(a).data();
      double before = 0.0;
      for (std::int64_t i = 0; i < d; ++i) before += row[i] * row[i];
      for (int twice = 0; twice < 2; ++twice) {
        for (std::int64_t b = 0; b < a; ++b) {
          const double* const other = axes.view().row(b).data();
          double product = 0.0;
          for (std::int64_t i = 0; i < d; ++i) product += row[i] * other[i];
          for (std::int64_t i = 0; i < d; ++i) row[i] -= product * other[i];
        }
      }
      double squares = 0.0;
      for (std::int64_t i = 0; i < d; ++i) squares += row[i] * row[i];
      const double scale = squares > 1e-20 * before && std::isnormal(squares) ? 1.0 / std::sqrt(squares) : 0.0;
      for (std::int64_t i = 0; i < d; ++i) row[i] *= scale;
    }
  };
  orthonormalise();
  constexpr int kRounds = 8;
  for (int round = 0; round < kRounds; ++round) {
    for (std::int64_t i = 0; i < count * d; ++i) narrow.data()[i] = static_cast<float>(axes.data()[i]);
    Arena arena(scratch.span());
    linalg::gemm(narrow.view(), packed, turned.view(), {}, parallel, arena);
    for (std::int64_t i = 0; i < count * d; ++i) axes.data()[i] = static_cast<double>(turned.data()[i]);
    orthonormalise();
  }
  return axes;
}

}  // namespace search::detail

/// Search policy: brute force's answer for a fraction of its arithmetic.
struct PrunedSearch {
  static constexpr std::string_view name = "pruned";
  static constexpr std::int64_t kQueriesPerPass = 1024;
  static constexpr std::int64_t kMostAxes = 47;
  static constexpr std::int64_t kSeedStep = 8;
  static constexpr std::int64_t kFewestRows = 1024;       // smaller banks are searched whole
  static constexpr std::int64_t kFewestCodedRows = 4096;  // where ExactSearch would use products of integers
  static constexpr std::int64_t kFewestDims = 48;
  // Share of the bank that short vectors may leave: a row that is left costs several times its share of a product. Where products of
  // integers are the alternative, dims / kDimsToCompareAll at most.
  static constexpr double kMostCompared = 0.12;
  static constexpr double kDimsToCompareAll = 8192.0;

  /// A bank made ready. Keeps a view of the bank: its memory must stay where it is.
  struct Index {
    MatrixView<const float> bank;
    Buffer<float> centre;         // c [d], the mean row
    Matrix<double> axes;          // A^T [d, axes], a row to tile_stride(axes); |A x| <= |x|
    linalg::PackedMatrix shorts;  // [n, axes + 1]: A (b - c), and the length of what A leaves out
    linalg::PackedMatrix seeds;   // every kSeedStep-th of them
    Buffer<float> low, slack;     // bounds of `shorts`, to whole panels
    Buffer<float> seed_low, seed_slack;
    double error = 0.0;           // of a short vector, relative to the length of what it stands for
    search::detail::NarrowBank codes;  // of b - c, row by row; empty where products of integers are not faster than those of floats
    ExactSearch::Index full;           // in place of all this where pruning does not pay
    [[nodiscard]] bool prunes() const noexcept { return !shorts.empty(); }
    [[nodiscard]] std::int64_t rows() const noexcept { return bank.rows; }
    [[nodiscard]] std::int64_t dims() const noexcept { return bank.cols; }
    [[nodiscard]] std::size_t bytes() const noexcept {
      return shorts.bytes() + seeds.bytes() + codes.bytes() + full.bytes() + static_cast<std::size_t>(axes.rows() * axes.cols()) * sizeof(double) +
             static_cast<std::size_t>(centre.size() + low.size() + slack.size() + seed_low.size() + seed_slack.size()) * sizeof(float);
    }
  };

  static constexpr std::int64_t axes_of(std::int64_t dims) noexcept { return std::clamp<std::int64_t>(dims / 12, 1, kMostAxes); }

  /// As ExactSearch::prepare; a second or two for a large bank.
  static Result<Index> prepare(MatrixView<const float> bank, Parallel parallel) {
    const bool integers = search::detail::narrow_kernels(instruction_set()) != nullptr;
    if (bank.rows >= (integers ? kFewestCodedRows : kFewestRows) && bank.cols >= kFewestDims) {
      NORMA_TRY(Index index, prepare_pruned(bank, parallel));
      NORMA_TRY(const double share, search::detail::sample_share<PrunedSearch>(index, 0, parallel));
      const double cheaper = index.codes.empty() ? 1.0 : static_cast<double>(bank.cols) / kDimsToCompareAll;
      if (share <= std::min(kMostCompared, cheaper)) return index;
    }
    Index plain;
    plain.bank = bank;
    NORMA_TRY(plain.full, ExactSearch::prepare(bank, parallel));
    return plain;
  }

  /// The same without the fall-back, for tests and measurements.
  static Result<Index> prepare_pruned(MatrixView<const float> bank, Parallel parallel) { return prepare_pruned(bank, parallel, instruction_set()); }
  static Result<Index> prepare_pruned(MatrixView<const float> bank, Parallel parallel, InstructionSet set) {
    namespace impl = search::detail;
    NORMA_TRY(const Buffer<double> squares, impl::row_squares("PrunedSearch", bank, parallel));
    const auto* const narrow = impl::narrow_kernels(set);
    const bool coded = narrow != nullptr && bank.cols <= impl::kNarrowMostDims;
    const std::int64_t n = bank.rows, d = bank.cols, axes = coded ? std::max<std::int64_t>(1, axes_of(d) * 2 / 3) : axes_of(d);
    Index index;
    index.bank = bank;
    index.centre = impl::centre_of(bank, squares, parallel);
    NORMA_CHECK(find_axes(index, axes, parallel));
    // Short vectors err by one rounding to float, and the length of the rest by the square root of what |b - c|^2 - |A (b - c)|^2 loses
    // in double: sums of d terms, each counted twice.
    index.error = 1.5 * impl::kRoundingUnit + std::sqrt(4.0 * static_cast<double>(d + axes + 4) * 0x1p-53);

    Matrix<float> rows(n, axes + 1);
    Buffer<double> lengths(n), short_squares(n);
    Buffer<double> scratch(parallel.workers() * projection_doubles(d));
    parallel.run_ranges(n, kProjectionRows, [&](std::int64_t first, std::int64_t last, int worker) {
      project(index, bank, first, last, rows.view(), lengths.data(), short_squares.data(), scratch.data() + worker * projection_doubles(d));
    });
    index.shorts = linalg::PackedMatrix::pack(rows.view(), set);
    const std::int64_t seeds = (n + kSeedStep - 1) / kSeedStep;
    index.seeds = linalg::PackedMatrix::pack(MatrixView<const float>(rows.data(), seeds, axes + 1, kSeedStep * (axes + 1)), set);
    const auto bounds_of = [&](const linalg::PackedMatrix& packed, std::int64_t step, Buffer<float>& low, Buffer<float>& slack) {
      const std::int64_t padded = packed.panels() * packed.panel();
      low = Buffer<float>(padded);
      slack = Buffer<float>(padded);
      for (std::int64_t r = 0; r < padded; ++r) {
        if (r >= packed.n()) {
          low[r] = std::numeric_limits<float>::quiet_NaN();
          continue;
        }
        const auto bounds = impl::product_bounds(axes + 1, short_squares[r * step], short_squares[r * step]);
        const double lower = static_cast<double>(bounds.low) - kErrorShare * index.error * lengths[r * step];
        low[r] = static_cast<float>(lower - impl::kRoundingUnit * std::abs(lower));
        slack[r] = bounds.slack;
      }
    };
    if (coded) index.codes = impl::NarrowBank::row_by_row(*narrow, bank, index.centre.data(), parallel);
    bounds_of(index.shorts, 1, index.low, index.slack);
    bounds_of(index.seeds, kSeedStep, index.seed_low, index.seed_slack);
    return index;
  }

  static constexpr std::size_t scratch_bytes(std::int64_t queries, std::int64_t dims, int k, int workers) noexcept {
    const std::int64_t rows = std::min(queries, kQueriesPerPass), width = axes_of(dims) + 1;
    const std::size_t own = arena_bytes<float>(rows * width) + 2 * arena_bytes<double>(rows) + 2 * arena_bytes<float>(rows) +
                            search::detail::Selection::bytes(rows, k) + search::detail::NarrowQueries::bytes(rows, dims) +
                            arena_bytes<search::detail::Waiting>(rows * k) + arena_bytes<std::int64_t>(rows * kPending) + arena_bytes<Counts>(rows) +
                            arena_bytes<double>(workers * projection_doubles(dims)) + linalg::gemm_scratch_bytes(rows, 1, width, workers);
    return std::max(own, ExactSearch::scratch_bytes(queries, dims, k, workers));
  }

  /// As ExactSearch::nearest, with the same result.
  static Status nearest(const Index& index, MatrixView<const float> queries, int k, MatrixView<float> squared_distance, MatrixView<std::int64_t> row,
                        Parallel parallel, Arena& arena) {
    std::int64_t compared = 0;
    return nearest(index, queries, k, squared_distance, row, parallel, arena, compared);
  }
  /// `compared` receives how many pairs of rows the short vectors left; 0 where ExactSearch did the work.
  static Status nearest(const Index& index, MatrixView<const float> queries, int k, MatrixView<float> squared_distance, MatrixView<std::int64_t> row,
                        Parallel parallel, Arena& arena, std::int64_t& compared) {
    compared = 0;
    NORMA_CHECK(search::detail::check_search("PrunedSearch", index.bank, queries, k, squared_distance, row));
    if (!index.prunes()) return ExactSearch::nearest(index.full, queries, k, squared_distance, row, parallel, arena);
    for (std::int64_t first = 0; first < queries.rows; first += kQueriesPerPass) {
      const std::int64_t count = std::min(kQueriesPerPass, queries.rows - first);
      NORMA_CHECK(pass(index, queries.block(first, count), k, squared_distance.block(first, count), row.block(first, count), parallel, arena, compared));
    }
    return {};
  }

 private:
  static constexpr std::int64_t kProjectionRows = 24;
  static constexpr std::int64_t kPending = 16;  // rows whose codes are fetched before they are compared
  // Of a query.
  struct Counts {
    std::int64_t seeds, pending, compared;
  };
  // |q - b| >= |short difference| - error (|q - c| + |b - c|), so |q - b|^2 is at least the short one less this share of error times
  // |q - c|^2, and the same of b: 2 (1 + error) (x + y)^2 <= 4.1 (x^2 + y^2).
  static constexpr double kErrorShare = 4.1;

  static constexpr std::int64_t projection_doubles(std::int64_t dims) noexcept {
    return dims * 8 + linalg::detail::kTileRows * linalg::detail::tile_stride<double>(axes_of(dims));
  }

  // A^T of a sample of the bank, scaled so that it never lengthens a vector.
  static Status find_axes(Index& index, std::int64_t count, Parallel parallel) {
    const std::int64_t n = index.bank.rows, d = index.bank.cols;
    const std::int64_t wanted = std::min<std::int64_t>(n, std::clamp<std::int64_t>(4 * d, 1024, 4096));
    const std::int64_t step = n / wanted;
    index.axes = Matrix<double>(d, linalg::detail::tile_stride<double>(count));
    if (n < 2) return {};  // no directions: all of a row is in its length
    Matrix<float> covariance_of(d, d);
    Buffer<float> mean(d);
    NORMA_CHECK(covariance<float>(MatrixView<const float>(index.bank.data, std::min(wanted, n / step), d, index.bank.stride * step), mean.span(),
                                  covariance_of.view(), parallel));
    const Matrix<double> axes = search::detail::principal_axes(covariance_of, count, parallel);
    double most = 0.0;  // largest row sum of |A A^T|, at least its largest eigenvalue
    for (std::int64_t a = 0; a < count; ++a) {
      double sum = 0.0;
      for (std::int64_t b = 0; b < count; ++b) {
        double product = 0.0;
        for (std::int64_t i = 0; i < d; ++i) product += axes(a, i) * axes(b, i);
        sum += std::abs(product);
      }
      most = std::max(most, sum);
    }
    if (!(most > 0.0) || !std::isfinite(most)) return {};
    const double scale = 1.0 / std::sqrt(most * (1.0 + 1e-9));
    for (std::int64_t a = 0; a < count; ++a) {
      for (std::int64_t i = 0; i < d; ++i) index.axes(i, a) = axes(a, i) * scale;
    }
    return {};
  }

  // Short vectors of rows [first, last): out [.., axes + 1], lengths |row - c|^2, short_squares |out|^2. A row that is not finite becomes 0
  // with length infinity.
  static void project(const Index& index, MatrixView<const float> rows, std::int64_t first, std::int64_t last, MatrixView<float> out, double* lengths,
                      double* short_squares, double* scratch) noexcept {
    namespace impl = linalg::detail;
    const std::int64_t d = rows.cols, axes = out.cols - 1, stride = index.axes.cols();
    double* const columns = scratch;           // [d, 8], six of them used: the rows as the tile reads them
    double* const turned = scratch + d * 8;    // [6, stride]
    const auto tile = impl::outer_tile<double>();
    for (std::int64_t base = first; base < last; base += impl::kTileRows) {
      const std::int64_t height = std::min(impl::kTileRows, last - base);
      for (std::int64_t r = 0; r < impl::kTileRows; ++r) {
        if (r >= height) {
          for (std::int64_t i = 0; i < d; ++i) columns[i * 8 + r] = 0.0;
          continue;
        }
        double squares = 0.0;
        for (std::int64_t i = 0; i < d; ++i) {
          const double value = static_cast<double>(rows(base + r, i)) - static_cast<double>(index.centre[i]);
          columns[i * 8 + r] = value;
          squares += value * value;
        }
        lengths[base + r] = squares;
        if (std::isfinite(static_cast<float>(squares))) continue;
        lengths[base + r] = std::numeric_limits<double>::infinity();
        for (std::int64_t i = 0; i < d; ++i) columns[i * 8 + r] = 0.0;
      }
      std::memset(turned, 0, static_cast<std::size_t>(impl::kTileRows * stride) * sizeof(double));
      for (std::int64_t j = 0; j < axes; j += impl::kTileCols<double>) {
        double* c[impl::kTileRows];
        for (std::int64_t r = 0; r < impl::kTileRows; ++r) c[r] = turned + r * stride + j;
        tile(d, columns, 8, index.axes.data() + j, stride, c, 1.0);
      }
      for (std::int64_t r = 0; r < height; ++r) {
        double along = 0.0, sum = 0.0;
        for (std::int64_t j = 0; j < axes; ++j) {
          const double value = turned[r * stride + j];
          along += value * value;
          out(base + r, j) = static_cast<float>(value);
        }
        const double rest = lengths[base + r] - along;
        out(base + r, axes) = rest > 0.0 && std::isfinite(rest) ? static_cast<float>(std::sqrt(rest)) : 0.0f;
        for (std::int64_t j = 0; j <= axes; ++j) sum += static_cast<double>(out(base + r, j)) * static_cast<double>(out(base + r, j));
        short_squares[base + r] = sum;
      }
    }
  }

  static Status pass(const Index& index, MatrixView<const float> queries, int k, MatrixView<float> squared_distance, MatrixView<std::int64_t> row,
                     Parallel parallel, Arena& arena, std::int64_t& compared) {
    namespace impl = search::detail;
    const std::int64_t m = queries.rows, d = queries.cols, width = index.shorts.k();
    const Arena::Scope scope(arena);
    const auto& kernels = impl::search_kernels(index.shorts.instructions());
    impl::Selection selection(index.bank, queries, k, kernels, arena);
    const auto codes = impl::NarrowQueries::take(arena, m, d);
    float* const shorts = arena.take<float>(m * width);
    double* const lengths = arena.take<double>(m);
    double* const short_squares = arena.take<double>(m);
    float* const norm = arena.take<float>(m);
    float* const limit = arena.take<float>(m);
    auto* const seeds = arena.take<impl::Waiting>(m * k);
    auto* const pending = arena.take<std::int64_t>(m * kPending);
    auto* const counts = arena.take<Counts>(m);
    double* const scratch = arena.take<double>(parallel.workers() * projection_doubles(d));
    if (!selection.ready() || scratch == nullptr) return {Errc::out_of_memory, "PrunedSearch::nearest: the arena is smaller than scratch_bytes"};
    constexpr float infinity = std::numeric_limits<float>::infinity();
    const MatrixView<float> short_rows(shorts, m, width);
    const bool coded = !index.codes.empty();

    parallel.run_ranges(m, kProjectionRows, [&](std::int64_t from, std::int64_t to, int worker) {
      project(index, queries, from, to, short_rows, lengths, short_squares, scratch + worker * projection_doubles(d));
      for (std::int64_t q = from; q < to; ++q) {
        const bool finite = std::isfinite(lengths[q]);
        if (coded) codes.code(*index.codes.kernels, q, queries.row(q).data(), index.centre.data(), d);
        selection.begin(q, lengths[q], lengths[q]);
        norm[q] = finite ? static_cast<float>(std::sqrt(short_squares[q]) * (1.0 + 4.0 * impl::kRoundingUnit)) : std::numeric_limits<float>::quiet_NaN();
        limit[q] = finite ? infinity : -infinity;
        counts[q] = {};
      }
    });

    // Calls add(query, bound, row) for every bound that is not above its query's limit.
    const auto walk = [&](const linalg::PackedMatrix& packed, const Buffer<float>& lows, const Buffer<float>& slacks, const auto& add) {
      linalg::gemm_tiles(MatrixView<const float>(shorts, m, width), packed, parallel, arena,
                         [&](std::int64_t row0, std::int64_t rows, std::int64_t col0, std::int64_t, const float* tile, std::int64_t tile_width, int) {
                           impl::visit_candidates(kernels, tile, rows, tile_width, lows.data() + col0, slacks.data() + col0, norm + row0, limit + row0,
                                                  [&](std::int64_t r, std::int64_t c, float bound) { add(row0 + r, bound, col0 + c); });
                         });
    };
    // What the selection's limit is for bounds of short vectors, which stand for |q - b|^2 less another number.
    const auto offset = [&](std::int64_t q) { return short_squares[q] - kErrorShare * index.error * lengths[q]; };
    const auto draw_limit = [&](std::int64_t q) {
      const float of_selection = selection.limit()[q];
      const double exact = static_cast<double>(of_selection) + lengths[q] - offset(q);
      limit[q] = std::isinf(of_selection) ? of_selection
                                          : static_cast<float>(exact + impl::kRoundingUnit * (2.0 * std::abs(exact) + 0x1p-16 * lengths[q]) + impl::kTiny);
    };
    // Hands over what is pending: by the bounds of its codes where there are codes.
    const auto compare = [&](std::int64_t q) {
      for (std::int64_t i = 0; i < counts[q].pending; ++i) {
        const std::int64_t r = pending[q * kPending + i];
        if (coded) {
          const auto product = index.codes.kernels->product(codes.codes + q * codes.stride, index.codes.row(r), index.codes.width) + index.codes.start[r];
          const auto bounds = impl::narrow_bounds(index.codes, r, codes, q, product);
          if (bounds.lower <= selection.limit()[q]) selection.add(q, r, bounds.lower, bounds.upper);
        } else if (selection.limit()[q] != -infinity) {
          selection.look(q, r);
        }
      }
      counts[q].compared += counts[q].pending;
      counts[q].pending = 0;
      draw_limit(q);
    };

    // Among the seeds, the k with the smallest bounds.
    walk(index.seeds, index.seed_low, index.seed_slack, [&](std::int64_t q, float bound, std::int64_t seed) {
      impl::Waiting* const best = seeds + q * k;
      if (counts[q].seeds == k && !(bound < best[k - 1].bound)) return;
      std::int64_t at = counts[q].seeds < k ? counts[q].seeds++ : static_cast<std::int64_t>(k) - 1;
      for (; at > 0 && best[at - 1].bound > bound; --at) best[at] = best[at - 1];
      best[at] = {bound, seed * kSeedStep};
      if (counts[q].seeds == k) limit[q] = best[k - 1].bound;
    });
    parallel.run_ranges(m, 16, [&](std::int64_t from, std::int64_t to, int) {
      for (std::int64_t q = from; q < to; ++q) {
        if (limit[q] == -infinity) continue;
        for (std::int64_t i = 0; i < counts[q].seeds; ++i) selection.look(q, seeds[q * k + i].row);
        draw_limit(q);
      }
    });
    walk(index.shorts, index.low, index.slack, [&](std::int64_t q, float bound, std::int64_t r) {
      if (counts[q].pending == kPending) {
        compare(q);
        if (!(bound <= limit[q])) return;
      }
      pending[q * kPending + counts[q].pending++] = r;
      if (coded) {
        impl::prefetch_codes(index.codes, r);
      } else {
        impl::prefetch_row(index.bank.row(r));
      }
    });
    parallel.run_ranges(m, 16, [&](std::int64_t from, std::int64_t to, int) {
      for (std::int64_t q = from; q < to; ++q) compare(q);
      selection.finish(from, to, squared_distance, row);
    });
    for (std::int64_t q = 0; q < m; ++q) compared += counts[q].compared;
    return {};
  }
};

static_assert(Search<PrunedSearch>);

}  // namespace norma
