/// \file
/// A bank, and queries, made ready for products that exclude rows. Host reference: norma::ExactSearch (search/detail/search_kernels.hpp,
/// product_bounds).
///
/// **The bound.** Let c be the centre, x = query - c, y = row - c, D = |x - y|^2 the distance. In real arithmetic D - |x|^2 = |y|^2 - 2 x y.
/// What the product sees is x' and y', rounded to its element type, and it starts at `low` instead of 0:
///
///     A = low - 2 x' y' + error of the accumulation.
///
/// 1. Rounding. x y - x' y' = (x - x') y + x' (y - y'), so by Cauchy and Schwarz |x y - x' y'| <= |x - x'| |y| + |x'| |y - y'|. The lengths of the
///    two rounding errors are measured when x' and y' are made, in double; for ordinary data they come out at 0.4 of the worst case (bf16: 2^-8 of
///    the length). Where the distance is cosine, x and y are themselves known only to double's precision of rows of length 1 (scaling, subtracting c,
///    and the ratio of the two scales in the measured distance round, 2^-53 each): 2^-49 on top of both errors pays for that in x y, |x|^2 and |y|^2.
/// 2. Accumulation. Its error is at most g (|low| + 2 |x'| |y'|), with g from product_error below.
/// 3. low = |y|^2 (1 - g - 2^-21) - 2^-100 pays for g |low|, for low's own rounding, and for up to 2^20 products below 2^-126 that are lost.
///
/// Together  D - |x|^2 >= A - |x'| 2 (|y - y'| + g |y'|) - |x - x'| 2 |y|.  The two factors that belong to the row are `slack`, kept as maxima over
/// the rows of a group, the two that belong to the query are QueryFacts::norm and ::error. All four are rounded up by 2^-20, which is more than the
/// double arithmetic around them loses. So a row whose A less its slack is above (k-th distance) - |x|^2 cannot be among the k nearest, nor tie with
/// them.
///
/// Rows and queries longer than 2^62 (after centring) would overflow the product: their operand is 0, and low, or the query's error, says that
/// nothing is known of them, so that they are always measured. Refused rows, and places without a row, carry kAbsent and are never looked at.
#pragma once

#include <cmath>

#include <norma/cuda/detail/simt.cuh>
#include <norma/cuda/nearest_rows.hpp>

namespace norma::cuda::detail {

inline constexpr float kAbsent = 0x1.8p127f;  // `low` where there is no row; every product with a row stays below half of it
inline constexpr double kLongest = 0x1p62;    // of x and y: products and sums stay below 2^126
inline constexpr double kLargestFloat = 0x1.fffffep127;
inline constexpr double kLeast = 0x1p-100;
NORMA_HD constexpr double scaling_error(RowDistance distance) noexcept { return distance == RowDistance::cosine ? 0x1p-49 : 0.0; }

/// g: the accumulation's error relative to |low| + 2 |x'| |y'|, for `depth` products. Every partial sum is at most that, up to the factor 1 / (1 -
/// units).
/// - fp32: `depth` fused multiply-adds that round to nearest, 2^-24 each, in whatever order.
/// - Tensor cores add `s` exact products and the accumulator at once; each addend, aligned to the largest, and the result may be cut to 24 bits
///   (Fasi, Higham, Mikaitis, Pranesh, PeerJ Computer Science 2021, found 24 and more on V100, T4 and A100). That loses at most (s + 2) 2^-23 for s
///   products, so with s >= 4 at most 2^-22 a product.
/// - tf32x3: three such products, and what splitting drops: with hi = tf32(x), lo = tf32(x - hi), however the unit rounds, |x - hi| <= 2^-10 |x| and
///   |x - hi - lo| <= 2^-20 |x|; the dropped lo lo and the two remainders are below 2^-18 |x| |y|.
NORMA_HD constexpr double product_error(RowProduct product, std::int64_t depth) noexcept {
  const auto steps = static_cast<double>(depth);
  const double units = product == RowProduct::fp32     ? (steps + 2.0) * 0x1p-24
                       : product == RowProduct::tf32x3 ? 3.0 * (steps + 16.0) * 0x1p-22 + 0x1p-18
                                                       : (steps + 16.0) * 0x1p-22;
  return units / (1.0 - units);
}
static_assert(product_error(RowProduct::tf32x3, kMostRowDims) < 4.0, "the bounds hold up to kMostRowDims");

/// A float that is not below v.
NORMA_HD inline float rounded_up(double v) noexcept { return static_cast<float>(v * (1.0 + 0x1p-20) + kLeast); }

NORMA_HD inline double not_a_number() noexcept { return __builtin_nan(""); }
NORMA_HD constexpr bool is_number(double v) noexcept { return v == v; }

/// |row|^2 of a row of `count` elements; all lanes.
template <class T>
NORMA_DEVICE double warp_squares(const T* row, std::int64_t count) {
  double sum = 0.0;
  for (std::int64_t c = simt::lane_index(); c < count; c += simt::kWarp) {
    const auto v = static_cast<double>(simt::to_float(row[c]));
    sum += v * v;
  }
  return simt::warp_sum(sum);
}

/// What a row is multiplied with; NaN refuses it. A bank row and a query of the same bits get the same scale, which makes their distance 0.
NORMA_DEVICE double row_scale(double squares, RowDistance distance) {
  if (!(squares <= kLargestFloat)) return not_a_number();
  if (distance == RowDistance::squared_l2) return 1.0;
  return squares > 0.0 ? 1.0 / ::sqrt(squares) : 0.0;
}

/// The operand that the product takes for v, and its value.
template <class Operand>
struct RoundedOperand {
  Operand operand;
  double value;
};
template <class Operand>
NORMA_DEVICE RoundedOperand<Operand> round_operand(double v, RowProduct product) {
  float near = static_cast<float>(v);
  if constexpr (std::is_same_v<Operand, float>) {
    if (product == RowProduct::tf32) near = simt::float_from_bits(simt::round_tf32(near));
    return {near, static_cast<double>(near)};
  } else {
    const Operand bits = simt::from_float<Operand>(near);
    return {bits, static_cast<double>(simt::to_float(bits))};
  }
}

struct CentredRow {
  double squares = 0.0;          // |y|^2
  double operand_squares = 0.0;  // |y'|^2
  double error_squares = 0.0;    // |y - y'|^2
};

/// Writes the operand of factor * (row * scale - centre), `stride` elements with zeros behind the row's, and returns the sums of (row * scale -
/// centre); all lanes. `factor` is a power of two. A row without a number as scale, and one that is too long, becomes zeros.
template <class T, class Operand>
NORMA_DEVICE CentredRow warp_centre(const T* row, double scale, const float* centre, std::int64_t count, std::int64_t stride, RowProduct product,
                                    float factor, Operand* operand) {
  CentredRow sums;
  const bool usable = is_number(scale);
  for (std::int64_t c = simt::lane_index(); c < stride; c += simt::kWarp) {
    const double y = usable && c < count ? static_cast<double>(simt::to_float(row[c])) * scale - static_cast<double>(centre[c]) : 0.0;
    const RoundedOperand<Operand> rounded = round_operand<Operand>(y, product);
    operand[c] = simt::from_float<Operand>(factor * simt::to_float(rounded.operand));
    sums.squares += y * y;
    sums.operand_squares += rounded.value * rounded.value;
    sums.error_squares += (y - rounded.value) * (y - rounded.value);
  }
  sums.squares = simt::warp_sum(sums.squares);
  sums.operand_squares = simt::warp_sum(sums.operand_squares);
  sums.error_squares = simt::warp_sum(sums.error_squares);
  if (sums.squares > kLongest * kLongest) {
    for (std::int64_t c = simt::lane_index(); c < stride; c += simt::kWarp) operand[c] = simt::from_float<Operand>(0.0f);
  }
  return sums;
}

inline constexpr int kPrepareThreads = 256;
inline constexpr int kPrepareWarps = kPrepareThreads / simt::kWarp;
inline constexpr std::int64_t kCentreRows = 4096;  // the centre need not be the mean; a sample of that many rows is near enough

/// Row of the bank that is sample `i` of `count`.
NORMA_HD constexpr std::int64_t sample_row(std::int64_t i, std::int64_t count, std::int64_t rows) noexcept {
  return i * (rows / count) + i * (rows % count) / count;
}

/// One warp a row.
template <class T>
NORMA_LAUNCH_BOUNDS(kPrepareThreads)
NORMA_KERNEL bank_scale_kernel(PreparedBank<T> bank) {
  const std::int64_t row = simt::block_x() * kPrepareWarps + simt::warp_index();
  if (row >= bank.rows.rows) return;
  const double scale = row_scale(warp_squares(&bank.rows(row, 0), bank.rows.cols), bank.distance);
  if (simt::lane_index() != 0) return;
  bank.scale[row] = scale;
  if (is_number(scale)) return;
  simt::atomic_add(&bank.status->refused, 1ull);
  simt::atomic_min(&bank.status->first_refused, static_cast<unsigned long long>(row));
}

/// One block for 32 columns: every warp sums its share of the sample, then the shares are summed in order.
template <class T>
NORMA_LAUNCH_BOUNDS(kPrepareThreads)
NORMA_KERNEL bank_centre_kernel(PreparedBank<T> bank) {
  const auto sums = simt::shared_array<double>(0, kPrepareThreads);
  const auto counts = simt::shared_array<int>(kPrepareThreads * static_cast<int>(sizeof(double)), kPrepareThreads);
  const std::int64_t column = simt::block_x() * simt::kWarp + simt::lane_index();
  const std::int64_t samples = bank.rows.rows < kCentreRows ? bank.rows.rows : kCentreRows;
  double sum = 0.0;
  int count = 0;
  if (column < bank.rows.cols) {
    for (std::int64_t i = simt::warp_index(); i < samples; i += kPrepareWarps) {
      const std::int64_t row = sample_row(i, samples, bank.rows.rows);
      const double scale = bank.scale[row];
      if (!is_number(scale)) continue;
      sum += static_cast<double>(simt::to_float(bank.rows(row, column))) * scale;
      ++count;
    }
  }
  sums[simt::thread_index()] = sum;
  counts[simt::thread_index()] = count;
  simt::block_barrier();
  if (simt::warp_index() != 0 || column >= bank.rows.cols) return;
  for (int warp = 1; warp < kPrepareWarps; ++warp) {
    const double more = sums[warp * simt::kWarp + simt::lane_index()];
    const int more_rows = counts[warp * simt::kWarp + simt::lane_index()];
    sum += more;
    count += more_rows;
  }
  bank.centre[column] = count > 0 ? static_cast<float>(sum / count) : 0.0f;
}

/// One block a group of rows, also for the groups that only fill the last tile.
template <class T, class Operand>
NORMA_LAUNCH_BOUNDS(kPrepareThreads)
NORMA_KERNEL bank_operand_kernel(PreparedBank<T> bank, double g) {
  const auto per_length = simt::shared_array<float>(0, kRowGroup);
  const auto per_error = simt::shared_array<float>(kRowGroup * static_cast<int>(sizeof(float)), kRowGroup);
  const std::int64_t group = simt::block_x(), groups = row_groups(bank.rows.rows);
  for (int i = simt::warp_index(); i < kRowGroup; i += kPrepareWarps) {
    const std::int64_t row = group < groups ? row_at(group, i, groups) : bank.rows.rows, position = group * kRowGroup + i;
    Operand* const operand = static_cast<Operand*>(bank.operand) + position * bank.stride;
    float low = kAbsent, length = 0.0f, error = static_cast<float>(kLeast);  // never 0: a query's error may be infinite
    if (row < bank.rows.rows) {
      const double scale = bank.scale[row];
      const CentredRow sums = warp_centre(&bank.rows(row, 0), scale, bank.centre, bank.rows.cols, bank.stride, bank.product, 1.0f, operand);
      if (sums.squares > kLongest * kLongest) {
        low = -kAbsent;
      } else if (is_number(scale)) {
        low = static_cast<float>(sums.squares * (1.0 - g - 0x1p-21) - kLeast);
        length = rounded_up(2.0 * (::sqrt(sums.error_squares) + scaling_error(bank.distance) + g * ::sqrt(sums.operand_squares)));
        error = rounded_up(2.0 * ::sqrt(sums.squares));
      }
    } else if (group < groups) {
      for (std::int64_t c = simt::lane_index(); c < bank.stride; c += simt::kWarp) operand[c] = simt::from_float<Operand>(0.0f);
    }
    if (simt::lane_index() == 0) {
      bank.low[position] = low;
      per_length[i] = length;
      per_error[i] = error;
    }
  }
  simt::block_barrier();
  if (simt::warp_index() != 0) return;
  const float length = per_length[simt::lane_index()], error = per_error[simt::lane_index()];
  const float most_length = simt::warp_max(length), most_error = simt::warp_max(error);
  if (simt::lane_index() == 0) simt::store<2>(bank.slack + 2 * group, simt::Vec<float, 2>{{most_length, most_error}});
}

/// One warp a query: the operand is -2 x'.
template <class T, class Operand>
NORMA_LAUNCH_BOUNDS(kPrepareThreads)
NORMA_KERNEL query_operand_kernel(PreparedBank<T> bank, MatrixView<const T> queries, QueryFacts* facts, Operand* operand) {
  const std::int64_t row = simt::block_x() * kPrepareWarps + simt::warp_index();
  if (row >= queries.rows) return;
  QueryFacts fact;
  fact.scale = row_scale(warp_squares(&queries(row, 0), queries.cols), bank.distance);
  const CentredRow sums =
      warp_centre(&queries(row, 0), fact.scale, bank.centre, queries.cols, bank.stride, bank.product, -2.0f, operand + row * bank.stride);
  fact.offset = sums.squares;
  if (sums.squares > kLongest * kLongest) {
    fact.error = static_cast<float>(__builtin_inf());
  } else {
    fact.norm = rounded_up(::sqrt(sums.operand_squares));
    fact.error = rounded_up(::sqrt(sums.error_squares) + scaling_error(bank.distance));
  }
  if (simt::lane_index() == 0) facts[row] = fact;
}

/// Calls `run` with the operand's type of a product.
template <class Run>
Status with_operand(RowProduct product, const Run& run) {
  if (product == RowProduct::bf16) return run(BFloat16{});
  return run(float{});
}

}  // namespace norma::cuda::detail

namespace norma::cuda {

template <class T>
Status prepare_bank(StreamRef stream, const PreparedBank<T>& bank) {
  constexpr std::string_view kWho = "cuda::prepare_bank";
  if (bank.operand == nullptr || bank.rows.empty()) return {Errc::not_fitted, std::string(kWho) + ": expected a bank that place_bank laid out"};
  const std::int64_t rows = bank.rows.rows;
  NORMA_CHECK(detail::fill_async(kWho, &bank.status->refused, 0, sizeof(bank.status->refused), stream));
  NORMA_CHECK(detail::fill_async(kWho, &bank.status->first_refused, 0xff, sizeof(bank.status->first_refused), stream));
  NORMA_CHECK(detail::launch(kWho, stream, {.blocks_x = detail::ceil_div(rows, detail::kPrepareWarps), .threads = detail::kPrepareThreads},
                             detail::bank_scale_kernel<T>, bank));
  NORMA_CHECK(detail::launch(kWho, stream,
                             {.blocks_x = detail::ceil_div(bank.rows.cols, simt::kWarp),
                              .threads = detail::kPrepareThreads,
                              .shared_bytes = detail::kPrepareThreads * (sizeof(double) + sizeof(int))},
                             detail::bank_centre_kernel<T>, bank));
  return detail::with_operand(bank.product, [&](auto operand) {
    return detail::launch(kWho, stream,
                          {.blocks_x = detail::round_up(rows, detail::kBankTile) / kRowGroup,
                           .threads = detail::kPrepareThreads,
                           .shared_bytes = 2 * kRowGroup * sizeof(float)},
                          detail::bank_operand_kernel<T, decltype(operand)>, bank, detail::product_error(bank.product, bank.rows.cols));
  });
}

}  // namespace norma::cuda
