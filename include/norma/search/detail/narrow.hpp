/// \file
/// Rows as small integers, for products at four times (AVX-512 VNNI, 8 bits) or 2.4 times (AVX2, 7 bits) the rate of float.
///
/// A row x, less the centre, is scale * code + error with an integer code in [-levels, levels], so for two rows a and b
/// |a b - scale_a scale_b code_a code_b| <= |error_a| |coded b| + |a| |error_b| (Cauchy-Schwarz). With exactly summed integers that
/// bounds the squared distance |a|^2 + |b|^2 - 2 a b from both sides, for any rows.
///
/// Layout: panels of `panel` rows of the bank, each [width / 4, panel, 4] codes, rows and panels filled up with zeros. Codes of queries are
/// unsigned, levels + 1 above their value; what that adds to a product, (levels + 1) times the sum of the bank row's codes, is where the
/// accumulators start below 0.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include <norma/core/arena.hpp>
#include <norma/core/parallel.hpp>
#include <norma/core/tensor.hpp>
#include <norma/linalg/gemm.hpp>
#include <norma/search/detail/search_kernels.hpp>

namespace norma::search::detail {

struct NarrowRow {
  double squares;    // |x|^2
  double length;     // |scale code|^2
  double error;      // |x - scale code|^2
  float scale;
  std::int32_t sum;  // of the code
};

struct NarrowKernels {
  using Tile = void (*)(const std::uint8_t* a, std::int64_t stride, const std::int8_t* panel, std::int64_t steps, const std::int32_t* start, std::int32_t* tile);
  int rows;   // of the largest tile
  int panel;  // columns of a tile
  int query_levels;
  int bank_levels;
  std::array<Tile, linalg::detail::kMaxTileRows + 1> tile;  // tile[r] computes r rows, 1 <= r <= rows
  std::uint32_t (*candidates)(const std::int32_t* tile, std::int64_t rows, const float* low, const float* scale, const float* step, const float* bar,
                              std::uint32_t* found);
  std::int32_t (*product)(const std::uint8_t* a, const std::int8_t* b, std::int64_t count);
  NarrowRow (*code)(const float* row, const float* centre, std::int64_t count, int levels, int offset, std::uint8_t* codes);
};

}  // namespace norma::search::detail

#define NORMA_SIMD_FILE <norma/search/detail/narrow.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE

namespace norma::search::detail {

/// Null where products of small integers are not faster than those of floats.
inline const NarrowKernels* narrow_kernels(InstructionSet set) noexcept {
#if NORMA_X86_AVX512
  if (set == InstructionSet::avx512 && __builtin_cpu_supports("avx512vnni") != 0) return &simd::avx512::kNarrowKernels;
#endif
#if NORMA_X86_DISPATCH
  if (set != InstructionSet::generic) return &simd::avx2::kNarrowKernels;
#endif
  (void)set;
  return nullptr;
}

inline constexpr std::int64_t kNarrowStep = 8;          // codes of a row that the inner loop takes at a time
inline constexpr double kNarrowTiny = 1e-37;            // lengths below it are denormal floats
inline constexpr std::int64_t kNarrowMostDims = 16384;  // sums of longer rows could leave 32 bits, and their rounding in double the room for it

/// Distance between the codes of rows in scratch: an odd number of cache lines.
constexpr std::int64_t narrow_stride(std::int64_t dims) noexcept { return (linalg::detail::round_up(dims, 64) / 64 | 1) * 64; }

/// A bank, less its centre, as codes.
struct NarrowBank {
  const NarrowKernels* kernels = nullptr;
  std::int64_t rows = 0;
  std::int64_t panel = 0;  // rows of a panel; 1: row by row
  std::int64_t width = 0;  // codes of a row, filled up
  Buffer<std::int8_t> codes;
  Buffer<std::int32_t> start;               // [rows to whole panels] of the accumulators
  Buffer<float> low;                        // |b|^2, rounded down; NaN beyond the rows
  Buffer<float> scale;
  Buffer<float> length, error;              // of the coded row and of what it lacks, rounded up
  Buffer<float> panel_length, panel_error;  // the largest of a panel
  [[nodiscard]] bool empty() const noexcept { return rows == 0; }
  [[nodiscard]] const std::int8_t* row(std::int64_t r) const noexcept { return codes.data() + r * width; }  // where panel is 1
  [[nodiscard]] std::size_t bytes() const noexcept {
    return static_cast<std::size_t>(codes.size()) + static_cast<std::size_t>(start.size()) * sizeof(std::int32_t) +
           static_cast<std::size_t>(low.size() + scale.size() + length.size() + error.size() + panel_length.size() + panel_error.size()) * sizeof(float);
  }

  static NarrowBank in_panels(const NarrowKernels& kernels, MatrixView<const float> bank, const float* centre, Parallel parallel) {
    return code(kernels, bank, centre, kernels.panel, linalg::detail::round_up(bank.cols, kNarrowStep), parallel);
  }
  static NarrowBank row_by_row(const NarrowKernels& kernels, MatrixView<const float> bank, const float* centre, Parallel parallel) {
    return code(kernels, bank, centre, 1, linalg::detail::round_up(bank.cols, 64), parallel);
  }

 private:
  static NarrowBank code(const NarrowKernels& kernels, MatrixView<const float> bank, const float* centre, std::int64_t panel, std::int64_t width,
                         Parallel parallel) {
    NarrowBank out;
    const std::int64_t panels = (bank.rows + panel - 1) / panel, padded = panels * panel;
    out.kernels = &kernels;
    out.rows = bank.rows;
    out.panel = panel;
    out.width = width;
    out.codes = Buffer<std::int8_t>(padded * width);
    out.start = Buffer<std::int32_t>(padded);
    out.low = Buffer<float>(padded);
    out.scale = Buffer<float>(padded);
    out.length = Buffer<float>(padded);
    out.error = Buffer<float>(padded);
    if (panel > 1) {
      out.panel_length = Buffer<float>(panels);
      out.panel_error = Buffer<float>(panels);
    }
    Buffer<std::uint8_t> scratch(parallel.workers() * width);
    parallel.run_ranges(panels, std::max<std::int64_t>(1, 256 / panel), [&](std::int64_t first, std::int64_t last, int worker) {
      std::uint8_t* const coded = scratch.data() + worker * width;
      for (std::int64_t r = first * panel; r < last * panel; ++r) {
        if (r >= bank.rows) {
          out.low[r] = std::numeric_limits<float>::quiet_NaN();
          continue;
        }
        const NarrowRow row = kernels.code(bank.row(r).data(), centre, bank.cols, kernels.bank_levels, 0, coded);
        std::int8_t* const to = out.codes.data() + r / panel * panel * width + r % panel * 4;
        for (std::int64_t i = 0; i < width; i += 4) std::memcpy(to + i * panel, coded + i, 4);
        out.start[r] = -(kernels.query_levels + 1) * row.sum;
        out.low[r] = static_cast<float>(row.squares * (1.0 - kLowUnits * kRoundingUnit) - kTiny);
        out.scale[r] = row.scale;
        out.length[r] = static_cast<float>(std::sqrt(row.length) * (1.0 + 4.0 * kRoundingUnit));
        out.error[r] = static_cast<float>(std::sqrt(row.error) * (1.0 + 16.0 * kRoundingUnit) + 1e-12 * std::sqrt(row.squares) + kNarrowTiny);
        if (panel == 1) continue;
        out.panel_length[r / panel] = std::max(out.panel_length[r / panel], out.length[r]);
        out.panel_error[r / panel] = std::max(out.panel_error[r / panel], out.error[r]);
      }
    });
    return out;
  }
};

/// Asks for the codes of a row that will be compared soon.
inline void prefetch_codes(const NarrowBank& bank, std::int64_t r) noexcept {
#if NORMA_HAS_VECTOR_EXTENSION
  for (std::int64_t i = 0; i < bank.width; i += 64) __builtin_prefetch(bank.row(r) + i);
#else
  (void)bank, (void)r;
#endif
}

/// Queries, less the bank's centre, as codes; the arrays are pieces of the arena.
struct NarrowQueries {
  std::int64_t rows, stride;
  std::uint8_t* codes;
  float* step;    // 2 scale
  float* error;   // 2 (what the code lacks, and the rounding of the bound's own arithmetic)
  float* length;  // 2 |q|
  static constexpr std::size_t bytes(std::int64_t rows, std::int64_t dims) noexcept {
    return arena_bytes<std::uint8_t>(rows * narrow_stride(dims)) + 3 * arena_bytes<float>(rows);
  }
  /// `length` is null where the arena is too small.
  static NarrowQueries take(Arena& arena, std::int64_t rows, std::int64_t dims) noexcept {
    NarrowQueries out{rows, narrow_stride(dims), nullptr, nullptr, nullptr, nullptr};
    out.codes = arena.take<std::uint8_t>(rows * out.stride);
    out.step = arena.take<float>(rows);
    out.error = arena.take<float>(rows);
    out.length = arena.take<float>(rows);
    return out;
  }
  /// |query - centre|^2; a query where float cannot hold it is coded as zeros.
  double code(const NarrowKernels& kernels, std::int64_t q, const float* query, const float* centre, std::int64_t dims) const noexcept {
    const int offset = kernels.query_levels + 1;
    std::uint8_t* const to = codes + q * stride;
    const NarrowRow row = kernels.code(query, centre, dims, kernels.query_levels, offset, to);
    for (std::int64_t i = dims; i < linalg::detail::round_up(dims, 64); ++i) to[i] = static_cast<std::uint8_t>(offset);
    const bool finite = std::isfinite(static_cast<float>(row.squares));
    const double size = std::sqrt(row.squares);
    // The bound is computed in float with an error of less than 16 units of |q| |b|; twice that covers the sums' own growth.
    step[q] = finite ? 2.0f * row.scale : 0.0f;
    error[q] = finite ? static_cast<float>(2.0 * (std::sqrt(row.error) * (1.0 + 16.0 * kRoundingUnit) + 16.0 * kRoundingUnit * size + kNarrowTiny)) : 0.0f;
    length[q] = finite ? static_cast<float>(2.0 * size * (1.0 + 16.0 * kRoundingUnit)) : 0.0f;
    return row.squares;
  }
};

/// Bounds of |q - b|^2 - |q|^2.
struct NarrowBounds {
  float lower, upper;
};
/// `product` is that of the codes.
inline NarrowBounds narrow_bounds(const NarrowBank& bank, std::int64_t r, const NarrowQueries& queries, std::int64_t q, std::int32_t product) noexcept {
  const double low = static_cast<double>(bank.low[r]);
  const double slack = static_cast<double>(queries.error[q]) * static_cast<double>(bank.length[r]) +
                       static_cast<double>(queries.length[q]) * static_cast<double>(bank.error[r]);
  const double bound = low - static_cast<double>(queries.step[q]) * static_cast<double>(bank.scale[r]) * static_cast<double>(product) - slack;
  const double high = bound + 2.0 * slack + 3.0 * kLowUnits * kRoundingUnit * std::abs(low) + 3.0 * kTiny;
  return {static_cast<float>(bound - 2.0 * kRoundingUnit * std::abs(bound)), static_cast<float>(high + 2.0 * kRoundingUnit * std::abs(high))};
}

/// Calls visit(query, row, bounds) for every pair whose lower bound is not above limit[query]. Visits may lower limits. One query's rows
/// come in ascending order from one worker; different queries concurrently.
template <class Visit>
void walk_narrow(const NarrowBank& bank, const NarrowQueries& queries, const float* limit, Parallel parallel, const Visit& visit) {
  const NarrowKernels& kernels = *bank.kernels;
  const std::int64_t panel = bank.panel, panel_bytes = bank.width * panel, panels = (bank.rows + panel - 1) / panel;
  const std::int64_t block = std::max<std::int64_t>(1, linalg::detail::kPanelBlockBytes / panel_bytes);
  // A few tasks for every worker, so that one that is held up is made up for; each of them reads the whole bank.
  const std::int64_t all_tiles = (queries.rows + kernels.rows - 1) / kernels.rows;
  const std::int64_t tasks = parallel.workers() == 1 ? 1 : std::min<std::int64_t>(all_tiles, 4 * parallel.workers());
  parallel.run_ranges(queries.rows, (queries.rows + tasks - 1) / tasks, [&](std::int64_t first, std::int64_t last, int) {
    alignas(64) std::int32_t tile[linalg::detail::kMaxTileRows * linalg::detail::kMaxPanel];
    std::uint32_t found[linalg::detail::kMaxTileRows];
    float bar[linalg::detail::kMaxTileRows];
    const std::int64_t rows = last - first, tiles = (rows + kernels.rows - 1) / kernels.rows;
    for (std::int64_t from = 0; from < panels; from += block) {
      const std::int64_t to = std::min(from + block, panels);
      for (std::int64_t t = 0; t < tiles; ++t) {
        const std::int64_t q0 = first + rows * t / tiles, height = first + rows * (t + 1) / tiles - q0;
        const auto kernel = kernels.tile[static_cast<std::size_t>(height)];
        const float *const error = queries.error + q0, *const length = queries.length + q0;
        for (std::int64_t p = from; p < to; ++p) {
          const std::int64_t r0 = p * panel;
          kernel(queries.codes + q0 * queries.stride, queries.stride, bank.codes.data() + p * panel_bytes, bank.width / kNarrowStep, bank.start.data() + r0, tile);
          for (std::int64_t i = 0; i < height; ++i) bar[i] = limit[q0 + i] + (error[i] * bank.panel_length[p] + length[i] * bank.panel_error[p]);
          std::uint32_t any = kernels.candidates(tile, height, bank.low.data() + r0, bank.scale.data() + r0, queries.step + q0, bar, found);
          for (; any != 0; any &= any - 1) {
            const std::int64_t i = std::countr_zero(any);
            for (std::uint32_t columns = found[i]; columns != 0; columns &= columns - 1) {
              const std::int64_t c = std::countr_zero(columns), r = r0 + c;
              const NarrowBounds bounds = narrow_bounds(bank, r, queries, q0 + i, tile[i * panel + c]);
              if (bounds.lower <= limit[q0 + i]) visit(q0 + i, r, bounds);
            }
          }
        }
      }
    }
  });
}

}  // namespace norma::search::detail
