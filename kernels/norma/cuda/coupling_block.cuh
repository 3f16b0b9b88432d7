/// \file
/// A block around its subnets: the last layer's product with the coupling in its epilogue (forward, inverse, backward), channel mixing with the
/// global affine map undone, and the sums that a flow ends with.
///
/// Bound by: the product; the others by reading. References: tests/support/coupling_reference.hpp.
#pragma once

#include <cmath>
#include <cstdint>

#include <norma/cuda/subnet.cuh>

namespace norma::cuda::detail {

/// Where channel c lies in a row: the halves apart (split layout) or not (`gap` 0: plain).
struct ChannelPlaces {
  int first = 0, gap = 0;
  [[nodiscard]] NORMA_HD constexpr int operator()(int c) const noexcept { return c < first ? c : c + gap; }
};

/// One step of a block, forward or inverse. Columns 2 j and 2 j + 1 of the product are the raw s and t of active channel j.
struct CouplingStep {
  const float* bias;                // [padded(2 active)], pairs
  nn::ScaleClamp clamp;
  float alpha, gain;
  bool inverse;                     // active = (active - t) exp(-s), instead of active exp(s) + t
  const float* from;                // [rows, from_stride]: the block's values
  std::int64_t from_stride;
  int active_at, active, active_first;     // place in a row, count, channel of the first
  int passive_at, passive, passive_first;  // what goes along; passive 0: nothing does
  float* to;                        // [rows, to_stride]; `from` itself where the map is the identity
  std::int64_t to_stride;
  ChannelPlaces to_places;
  const std::int32_t* target;       // channel c is stored as target[c]; null: c
  const float* scale;               // raw global scale G and offset o of each channel; null: none
  const float* offset;
  float* row_logdet;                // [groups, rows], or null: the share of each kLogdetColumns columns in a row's log-determinant
  int earlier_groups;               // groups that have a share already: these are added to
};

/// Shares are those of 32 columns whatever the tile, so that a log-determinant does not depend on which tile was chosen.
inline constexpr int kLogdetColumns = static_cast<int>(kLeastFlowColumns);

/// Shared memory of the epilogue, behind the product's: where each channel of the tile goes, and its global affine map.
struct CouplingShared {
  int entries, target, scale, offset, log_scale, flag, bytes;  // entries: active channels, then passive ones
  NORMA_HD constexpr explicit CouplingShared(const TilePolicy& policy)
      : entries(policy.cols),
        target(flow_shared_bytes(policy, Contiguous::depth, Contiguous::depth)),
        scale(target + 4 * entries),
        offset(scale + 4 * entries),
        log_scale(offset + 4 * entries),
        flag(log_scale + 4 * entries),
        bytes(flag + 4) {}
};

template <FlowArithmetic kArithmetic, class Tuning, FlowTile kTile>
NORMA_LAUNCH_BOUNDS(flow_tile(Tuning{}(simt::pass_arch()), kTile, kArithmetic).threads(), 1)
NORMA_KERNEL coupling_kernel(ConvolvedMap hidden, ConvolvedMap condition, RowGrid grid, LayerWeights weights, DepthSlices slices, CouplingStep step) {
  using Product = FlowProduct<kArithmetic, Tuning, kTile>;
  constexpr CouplingShared kMemory(Product::policy);
  constexpr int kPairs = Product::policy.cols / 2, kRun = Product::kRun;
  constexpr int kWarpCols = Product::policy.cols / Product::policy.warps_across, kRuns = kWarpCols / (kRun * Product::kRowLanes);
  static_assert(kWarpCols % kLogdetColumns == 0, "FlowPolicy: a warp has a multiple of 32 columns");
  constexpr int kGroups = kWarpCols / kLogdetColumns;
  const auto target = simt::shared_array<int>(kMemory.target, kMemory.entries);
  const auto scale = simt::shared_array<float>(kMemory.scale, kMemory.entries);
  const auto offset = simt::shared_array<float>(kMemory.offset, kMemory.entries);
  const auto log_scale = simt::shared_array<float>(kMemory.log_scale, kMemory.entries);
  const int first_row = static_cast<int>(simt::block_x()) * Product::policy.rows,
            first_col = static_cast<int>(simt::block_y()) * Product::policy.cols;
  const int first_pair = first_col / 2;

  for (int e = simt::thread_index(); e < kMemory.entries; e += Product::kThreads) {
    const bool is_active = e < kPairs;
    const int i = first_pair + (is_active ? e : e - kPairs);
    int to = 0;
    float g = 1.0f, o = 0.0f, log_g = 0.0f;
    if (i < (is_active ? step.active : step.passive)) {
      const int c = (is_active ? step.active_first : step.passive_first) + i;
      to = step.to_places(step.target != nullptr ? step.target[c] : c);
      if (step.scale != nullptr) {
        g = nn::global_scale(step.scale[c]).value;
        o = step.offset[c];
        log_g = std::log(g);
      }
    }
    target[e] = to;
    scale[e] = g;
    offset[e] = o;
    log_scale[e] = log_g;
  }

  typename Product::Accumulator acc;
  const SubnetInput rows{hidden, condition, grid, first_row};
  const MatrixSource<float> cols{weights.weight, first_col, weights.out, weights.depth, weights.depth};
  // Its barriers also make the entries visible: depth > 0.
  if (!sliced_product<Product>(acc, rows, cols, weights.depth, slices, kMemory.flag)) return;

  float share[Product::kRowSlots][kGroups];
  NORMA_UNROLL
  for (int slot = 0; slot < Product::kRowSlots; ++slot) {
    NORMA_UNROLL
    for (int g = 0; g < kGroups; ++g) share[slot][g] = 0.0f;
  }
  int runs = 0;  // a constant once the loop over the runs is unrolled
  acc.for_each_run([&](int slot, int row, int col, const simt::Vec<float, kRun>& sum) {
    const int group = runs++ % kRuns * kGroups / kRuns;
    const int r = first_row + row;
    if (r >= grid.rows) return;
    const float* const from = step.from + r * step.from_stride;
    float* const to = step.to + r * step.to_stride;
    NORMA_UNROLL
    for (int p = 0; p < kRun / 2; ++p) {
      const int e = col / 2 + p, j = first_pair + e;
      if (j < step.active) {
        const float s = nn::clamp_scale(step.clamp, step.alpha, step.gain * (sum[2 * p] + step.bias[2 * j])).value;
        const float t = step.gain * (sum[2 * p + 1] + step.bias[2 * j + 1]);
        const float x = from[step.active_at + j];
        const float y = step.inverse ? (x - t) * std::exp(-s) : x * std::exp(s) + t;
        const int place = target[e];
        const float g = scale[e], o = offset[e];
        to[place] = y * g + o;
        share[slot][group] += s;
      }
      if (j < step.passive) {
        const int place = target[kPairs + e];
        const float g = scale[kPairs + e], o = offset[kPairs + e];
        to[place] = from[step.passive_at + j] * g + o;
      }
    }
  });
  if (step.row_logdet == nullptr) return;

  const int warp_col = simt::warp_index() % Product::policy.warps_across * kWarpCols,
            groups = (2 * (step.active > step.passive ? step.active : step.passive) + kLogdetColumns - 1) / kLogdetColumns;
  NORMA_UNROLL
  for (int g = 0; g < kGroups; ++g) {
    // Lanes are the group's channels: 16 active, 16 passive ones.
    constexpr int kHalf = kLogdetColumns / 2;
    const int e = (warp_col + g * kLogdetColumns) / 2 + simt::lane_index() % kHalf;
    const float log_g = log_scale[simt::lane_index() < kHalf ? e : kPairs + e];
    const float of_scales = simt::warp_sum(log_g);
    const int group = (first_col + warp_col) / kLogdetColumns + g;
    acc.for_each_row([&](int slot, int row) {
      float s = share[slot][g];
      NORMA_UNROLL
      for (int mask = 1; mask < Product::kRowLanes; mask *= 2) s += simt::warp_shuffle_xor(s, mask);
      const int r = first_row + row;
      if (simt::lane_index() % Product::kRowLanes != 0 || r >= grid.rows || group >= groups) return;
      float& total = step.row_logdet[static_cast<std::int64_t>(group) * grid.rows + r];
      total = group < step.earlier_groups ? total + (s + of_scales) : s + of_scales;
    });
  }
}

/// One step of a block on the way back from its output: in place, values become what they were before the step, gradients those by them, without the
/// part that goes through the subnet.
struct CouplingBackwardStep {
  const float* bias;
  nn::ScaleClamp clamp;
  float alpha, gain;
  float* values;                 // [rows, stride]
  float* gradients;              // [rows, stride]
  std::int64_t stride;
  int active_at, active;
  const float* dlogdet;          // [batch], or null: 0
  int positions;                 // rows of a sample
  float* output_gradient;        // [rows, padded(2 active)]: of the subnet's output, pairs; fillers become 0
  std::int64_t output_stride;
};

template <FlowArithmetic kArithmetic, class Tuning, FlowTile kTile>
NORMA_LAUNCH_BOUNDS(flow_tile(Tuning{}(simt::pass_arch()), kTile, kArithmetic).threads(), 1)
NORMA_KERNEL coupling_backward_kernel(ConvolvedMap hidden, ConvolvedMap condition, RowGrid grid, LayerWeights weights, CouplingBackwardStep step) {
  using Product = FlowProduct<kArithmetic, Tuning, kTile>;
  constexpr int kRun = Product::kRun;
  const int first_row = static_cast<int>(simt::block_x()) * Product::policy.rows,
            first_col = static_cast<int>(simt::block_y()) * Product::policy.cols;
  typename Product::Accumulator acc;
  acc.fill(0.0f);
  Product::accumulate(acc, SubnetInput{hidden, condition, grid, first_row},
                      MatrixSource<float>{weights.weight, first_col, weights.out, weights.depth, weights.depth}, weights.depth, 0);
  float dlogdet[Product::kRowSlots];
  acc.for_each_row([&](int slot, int row) {
    const int r = first_row + row;
    dlogdet[slot] = step.dlogdet != nullptr && r < grid.rows ? step.dlogdet[r / step.positions] : 0.0f;
  });
  acc.for_each_run([&](int slot, int row, int col, const simt::Vec<float, kRun>& sum) {
    const int r = first_row + row, c = first_col + col;
    if (r >= grid.rows || c >= step.output_stride) return;
    float* const values = step.values + r * step.stride + step.active_at;
    float* const gradients = step.gradients + r * step.stride + step.active_at;
    simt::Vec<float, kRun> d{};
    NORMA_UNROLL
    for (int p = 0; p < kRun / 2; ++p) {
      const int j = c / 2 + p;
      if (j < step.active) {
        const nn::Clamped<float> s = nn::clamp_scale(step.clamp, step.alpha, step.gain * (sum[2 * p] + step.bias[2 * j]));
        const float t = step.gain * (sum[2 * p + 1] + step.bias[2 * j + 1]);
        const float scaled = values[j] - t, dy = gradients[j];  // x exp(s)
        values[j] = scaled * std::exp(-s.value);
        gradients[j] = dy * std::exp(s.value);
        d[2 * p] = step.gain * s.slope * (dy * scaled + dlogdet[slot]);
        d[2 * p + 1] = step.gain * dy;
      }
    }
    simt::store<kRun>(step.output_gradient + r * step.output_stride + c, d);
  });
}

/// Values, or gradients, with their channels in another order and the global affine map undone.
struct Mixing {
  const float* from;            // [rows, from_stride]
  std::int64_t from_stride;
  ChannelPlaces from_places;
  float* to;                    // [rows, to_stride]
  std::int64_t to_stride;
  ChannelPlaces to_places;
  const std::int32_t* source;   // channel c of `to` is source[c] of `from`; null: c
  const float* scale;           // raw global scale and offset of channel c of `to`; null: none
  const float* offset;
  int rows, channels;
};

inline constexpr int kMixThreads = 256, kMixRows = 64;  // lanes are channels, warps take rows in turn

/// to = (from - o) / g.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kMixThreads)
NORMA_KERNEL mix_kernel(Mixing m) {
  const int c = static_cast<int>(simt::block_y()) * simt::kWarp + simt::lane_index();
  if (c >= m.channels) return;
  const int from = m.from_places(m.source != nullptr ? m.source[c] : c), to = m.to_places(c);
  const float inverse_g = m.scale != nullptr ? 1.0f / nn::global_scale(m.scale[c]).value : 1.0f;
  const float o = m.offset != nullptr ? m.offset[c] : 0.0f;
  const int first = static_cast<int>(simt::block_x()) * kMixRows;
  const int end = first + kMixRows < m.rows ? first + kMixRows : m.rows;
  for (int r = first + simt::warp_index(); r < end; r += kMixThreads / simt::kWarp) {
    m.to[r * m.to_stride + to] = (m.from[r * m.from_stride + from] - o) * inverse_g;
  }
}

/// The same for values and gradients at once, with the gradients of the global affine map.
struct MixingBackward {
  Mixing values;
  const float* from;            // gradients, in the places of the values
  std::int64_t from_stride;
  float* to;                    // stride of values.to
  float* scale_gradient;        // of part 0; null: the block has no global affine map
  float* offset_gradient;
  std::int64_t part_stride;
  int part_rows;
  const float* dlogdet;         // [batch], or null: 0
  int batch, positions;
};

/// dv comes in; u = (v - o) / g, du = g dv, do = sum dv, dG = g' (sum dv u + positions sum(dlogdet) / g).
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kMixThreads)
NORMA_KERNEL mix_backward_kernel(MixingBackward m) {
  constexpr int kWarps = kMixThreads / simt::kWarp;
  const auto sums = simt::shared_array<float>(0, 3 * kWarps * simt::kWarp);
  const Mixing& v = m.values;
  const int lane = simt::lane_index(), warp = simt::warp_index();
  const int c = static_cast<int>(simt::block_y()) * simt::kWarp + lane;
  const bool has_affine = v.scale != nullptr;
  const int part = static_cast<int>(simt::block_x());
  const int begin = part * m.part_rows, end = begin + m.part_rows < v.rows ? begin + m.part_rows : v.rows;
  float by_u = 0.0f, by_one = 0.0f;
  nn::GlobalScale<float> g{1.0f, 0.0f};
  if (c < v.channels) {
    const int from = v.from_places(v.source != nullptr ? v.source[c] : c), to = v.to_places(c);
    if (has_affine) g = nn::global_scale(v.scale[c]);
    const float inverse_g = 1.0f / g.value, o = has_affine ? v.offset[c] : 0.0f;
    for (int r = begin + warp; r < end; r += kWarps) {
      const float u = (v.from[r * v.from_stride + from] - o) * inverse_g;
      const float d = m.from[r * m.from_stride + from];
      v.to[r * v.to_stride + to] = u;
      m.to[r * v.to_stride + to] = d * g.value;
      by_u += d * u;
      by_one += d;
    }
  }
  if (!has_affine) return;
  float of_samples = 0.0f;
  if (part == 0 && m.dlogdet != nullptr) {
    for (int n = simt::thread_index(); n < m.batch; n += kMixThreads) of_samples += m.dlogdet[n];
  }
  of_samples = simt::warp_sum(of_samples);
  sums[warp * simt::kWarp + lane] = by_u;
  sums[(kWarps + warp) * simt::kWarp + lane] = by_one;
  sums[(2 * kWarps + warp) * simt::kWarp + lane] = of_samples;
  simt::block_barrier();
  if (warp != 0 || c >= static_cast<int>(nn::padded(v.channels))) return;
  float total_u = 0.0f, total_one = 0.0f, total_samples = 0.0f;
  for (int w = 0; w < kWarps; ++w) {
    const float a = sums[w * simt::kWarp + lane], b = sums[(kWarps + w) * simt::kWarp + lane], s = sums[(2 * kWarps + w) * simt::kWarp + lane];
    total_u += a;
    total_one += b;
    total_samples += s;
  }
  const std::int64_t at = part * m.part_stride + c;
  m.scale_gradient[at] = g.slope * (total_u + static_cast<float>(m.positions) * total_samples / g.value);
  m.offset_gradient[at] = total_one;
}

inline constexpr int kSumThreads = 256;

/// sum[i] = partial[0][i] + partial[1][i] + ..., in this order; `count` is a multiple of 4.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kSumThreads)
NORMA_KERNEL sum_parts_kernel(const float* partial, std::int64_t part_stride, int parts, std::int64_t count, float* sum) {
  const std::int64_t i = 4 * (simt::block_x() * kSumThreads + simt::thread_index());
  if (i >= count) return;
  simt::Vec<float, 4> total = simt::load<4>(partial + i);
  for (int p = 1; p < parts; ++p) {
    const simt::Vec<float, 4> part = simt::load<4>(partial + p * part_stride + i);
    NORMA_UNROLL
    for (int e = 0; e < 4; ++e) total[e] += part[e];
  }
  simt::store<4>(sum + i, total);
}

/// Samples of fewer positions than threads get a warp each, others a block. What a sample sums does not depend on the others.
NORMA_HD constexpr bool warp_for_sample(int positions) { return positions < kSumThreads; }

/// A row's log-determinant is the sum of its tiles' shares, a sample's that of its rows. Both outputs may be null.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kSumThreads)
NORMA_KERNEL sum_logdet_kernel(const float* row_logdet, int tiles, int rows, int positions, int batch, float* logdet, float* position_logdet) {
  constexpr int kWarps = kSumThreads / simt::kWarp;
  const auto sums = simt::shared_array<double>(0, kWarps);
  const bool by_warp = warp_for_sample(positions);
  const int sample = by_warp ? static_cast<int>(simt::block_x()) * kWarps + simt::warp_index() : static_cast<int>(simt::block_x());
  const int first = by_warp ? simt::lane_index() : simt::thread_index(), step = by_warp ? simt::kWarp : kSumThreads;
  double total = 0.0;
  if (sample < batch) {
    for (int i = first; i < positions; i += step) {
      const int r = sample * positions + i;
      float of_row = 0.0f;
      for (int t = 0; t < tiles; ++t) of_row += row_logdet[static_cast<std::int64_t>(t) * rows + r];
      if (position_logdet != nullptr) position_logdet[r] = of_row;
      total += static_cast<double>(of_row);
    }
  }
  total = simt::warp_sum(total);
  if (!by_warp) {
    if (simt::lane_index() == 0) sums[simt::warp_index()] = total;
    simt::block_barrier();
    total = 0.0;
    for (int w = 0; w < kWarps; ++w) {
      const double of_warp = sums[w];
      total += of_warp;
    }
  }
  if (first == 0 && sample < batch && logdet != nullptr) logdet[sample] = static_cast<float>(total);
}

/// squares[r] = sum over c of z(r, c)^2: a warp for each row.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kSumThreads)
NORMA_KERNEL latent_squares_kernel(MatrixView<const float> z, float* squares) {
  const std::int64_t r = simt::block_x() * (kSumThreads / simt::kWarp) + simt::warp_index();
  if (r >= z.rows) return;  // a warp leaves as a whole
  float sum = 0.0f;
  for (std::int64_t c = simt::lane_index(); c < z.cols; c += simt::kWarp) {
    const float x = z(r, c);
    sum += x * x;
  }
  sum = simt::warp_sum(sum);
  if (simt::lane_index() == 0) squares[r] = sum;
}

/// dz = weight z, and dlogdet = -weight for each sample.
template <class Tuning>
NORMA_LAUNCH_BOUNDS(kSumThreads)
NORMA_KERNEL likelihood_gradient_kernel(MatrixView<const float> z, float weight, MatrixView<float> dz, float* dlogdet, std::int64_t batch) {
  const std::int64_t i = simt::block_x() * kSumThreads + simt::thread_index();
  if (i < z.count()) {
    const std::int64_t r = i / z.cols, c = i - r * z.cols;
    dz(r, c) = weight * z(r, c);
  }
  if (dlogdet != nullptr && i < batch) dlogdet[i] = -weight;
}

}  // namespace norma::cuda::detail
