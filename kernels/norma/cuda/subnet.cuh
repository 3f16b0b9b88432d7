/// \file
/// A subnet's layers as tile products over positions: forward with bias and ReLU, the gradient of a layer's input, the gradients of its weights and
/// biases. Operands are read where they lie: an image becomes a convolution's matrix inside a source, the weights are transposed by reading them
/// along their rows.
///
/// Bound by: multiplications. References: tests/support/coupling_reference.hpp. Sums in float, depth ascending (forward in slices, below), so
/// |error| <= depth * 2^-24 * sum |a b| in fp32.
#pragma once

#include <cstdint>

#include <norma/cuda/convolution.cuh>
#include <norma/cuda/coupling.hpp>
#include <norma/cuda/detail/simt.cuh>
#include <norma/cuda/tile_product.cuh>

namespace norma::cuda {

/// Tiles of the products. The arithmetic is not part of it: `flow_tile` puts it in.
struct FlowPolicy {
  TilePolicy large, small;
  std::int64_t large_from_blocks;  ///< the large tile is used where it makes at least so many blocks
  std::int64_t sliced_to_blocks;   ///< where small tiles make at most so many blocks, the slices of the depth go to blocks of their own
  friend constexpr bool operator==(const FlowPolicy&, const FlowPolicy&) = default;
};

/// Subnets have 32 columns and more, and a single image few rows: small tiles have 16 x 32 a warp, and blocks share the depth, so that the longest
/// chain of multiplications is short. Not measured on a device; from the counts in docs/kernels/coupling.md.
struct FlowTuning {
  NORMA_HD constexpr FlowPolicy operator()(int arch) const {
    const std::int64_t multiprocessors = arch >= 90 ? 132 : 108;
    return {{128, 64, 16, 4, 1, 3, Arithmetic::fp32}, {32, 32, 16, 2, 1, 4, Arithmetic::fp32}, multiprocessors, 2 * multiprocessors};
  }
};

namespace detail {

enum class FlowTile : std::uint8_t { large, small };

NORMA_HD constexpr TilePolicy flow_tile(const FlowPolicy& policy, FlowTile tile, FlowArithmetic arithmetic) {
  TilePolicy p = tile == FlowTile::large ? policy.large : policy.small;
  p.arithmetic = arithmetic == FlowArithmetic::fp32 ? Arithmetic::fp32 : arithmetic == FlowArithmetic::tf32 ? Arithmetic::tf32 : Arithmetic::tf32x3;
  return p;
}

/// At least TileProduct::kSharedBytes for float, from a policy that is known when the program runs. Lines in shared memory may be padded: along the
/// depth on the CUDA cores, along the rows for the tensor cores.
NORMA_HD constexpr int flow_shared_bytes(const TilePolicy& p, Contiguous a, Contiguous b) {
  const int by_depth = p.depth + (p.arithmetic == Arithmetic::fp32 ? 4 : 0), by_row = p.arithmetic == Arithmetic::fp32 ? 0 : 8;
  const int elements = (a == Contiguous::depth ? p.rows * by_depth : p.depth * (p.rows + by_row)) +
                       (b == Contiguous::depth ? p.cols * by_depth : p.depth * (p.cols + by_row));
  return p.stages * elements * 4;
}

template <FlowArithmetic kArithmetic, class Tuning, FlowTile kTile, Contiguous kA, Contiguous kB>
struct CheckedFlowProduct {
  using Product = TileProduct<flow_tile(Tuning{}(simt::pass_arch()), kTile, kArithmetic), float, float, kA, kB>;
  static_assert(Product::kSharedBytes <= flow_shared_bytes(Product::policy, kA, kB));
};
template <FlowArithmetic kArithmetic, class Tuning, FlowTile kTile, Contiguous kA = Contiguous::depth, Contiguous kB = Contiguous::depth>
using FlowProduct = typename CheckedFlowProduct<kArithmetic, Tuning, kTile, kA, kB>::Product;

/// The depth of a forward product is cut into equal slices, each summed from zero, and their sums are added in order: by one block, or by one block a
/// slice and the last of them to arrive. So the bits do not depend on how many blocks worked on it, nor a sample's on the size of its batch.
struct DepthSlices {
  static constexpr int kMost = static_cast<int>(kMostFlowSlices);
  int slices = 1, depth = 0;        // of the product, and of one slice
  float* partial = nullptr;         // [tiles, slices, values of a thread, threads]
  unsigned* arrived = nullptr;      // [tiles], zero before and after

  constexpr DepthSlices() noexcept = default;
  constexpr explicit DepthSlices(std::int64_t whole) noexcept : slices(static_cast<int>(flow_slices(whole))) {
    depth = static_cast<int>(ceil_div(ceil_div(whole, slices), 16) * 16);
  }
};

/// A source in parts (TileProduct), from depth `begin` on.
template <class Source>
struct FromDepth {
  const Source& source;
  int begin;
  [[nodiscard]] NORMA_DEVICE auto row(int tile_row) const { return source.row(tile_row); }
  template <class Row>
  [[nodiscard]] NORMA_DEVICE bool inside(const Row& row, std::int64_t k) const { return source.inside(row, begin + k); }
  template <class Row>
  [[nodiscard]] NORMA_DEVICE const float* address(const Row& row, std::int64_t k) const { return source.address(row, begin + k); }
};

template <class Accumulator>
NORMA_DEVICE void add_sums(Accumulator& to, const Accumulator& from) {
  NORMA_UNROLL
  for (int i = 0; i < Accumulator::kDown; ++i) {
    NORMA_UNROLL
    for (int j = 0; j < Accumulator::kAcross; ++j) {
      NORMA_UNROLL
      for (int e = 0; e < Accumulator::kEach; ++e) to.value[i][j][e] += from.value[i][j][e];
    }
  }
}

/// acc = the product over the whole depth; false: another block has it. `flag_offset`: 4 bytes of shared memory that the product does not use.
template <class Product, class SourceA, class SourceB>
NORMA_DEVICE bool sliced_product(typename Product::Accumulator& acc, const SourceA& a, const SourceB& b, int depth, const DepthSlices& slices,
                                 int flag_offset) {
  const bool alone = slices.partial == nullptr;
  const int mine = static_cast<int>(simt::block_z()), first = alone ? 0 : mine, end = alone ? slices.slices : mine + 1;
  acc.fill(0.0f);
  for (int slice = first; slice < end; ++slice) {
    const int begin = slice * slices.depth, left = depth - begin;
    typename Product::Accumulator sum;
    sum.fill(0.0f);
    Product::accumulate(sum, FromDepth<SourceA>{a, begin}, FromDepth<SourceB>{b, begin}, left < slices.depth ? left : slices.depth, 0);
    add_sums(acc, sum);
  }
  if (alone) return true;

  constexpr int kValues = Product::policy.rows * Product::policy.cols / Product::kThreads;
  const std::int64_t tile = simt::block_y() * simt::blocks_x() + simt::block_x();
  float* const of_thread = slices.partial + tile * slices.slices * kValues * Product::kThreads + simt::thread_index();
  const auto of_slice = [&](int slice) { return of_thread + slice * kValues * Product::kThreads; };
  {
    float* to = of_slice(mine);
    acc.for_each([&](int, int, int, float& value) {
      *to = value;
      to += Product::kThreads;
    });
  }
  simt::memory_fence();
  simt::block_barrier();
  const auto is_last = simt::shared_array<int>(flag_offset, 1);
  if (simt::thread_index() == 0) {
    const bool last = simt::atomic_add(slices.arrived + tile, 1u) + 1 == static_cast<unsigned>(slices.slices);
    if (last) slices.arrived[tile] = 0;  // for the next product
    is_last[0] = last ? 1 : 0;
  }
  simt::block_barrier();
  const int last = is_last[0];
  if (last == 0) return false;
  simt::memory_fence();
  acc.fill(0.0f);
  for (int slice = 0; slice < slices.slices; ++slice) {
    const float* from = of_slice(slice);
    acc.for_each([&](int, int, int, float& value) {
      value += *from;
      from += Product::kThreads;
    });
  }
  return true;
}

/// Positions of a batch of maps as rows.
struct RowGrid {
  int rows, height, width;
  Divisor by_height, by_width;

  explicit RowGrid(FlowGrid grid)
      : rows(static_cast<int>(grid.rows())),
        height(static_cast<int>(grid.height)),
        width(static_cast<int>(grid.width)),
        by_height(grid.height),
        by_width(grid.width) {}
};

/// Channels of every position, with the neighbours that a convolution of 1 or 9 taps sees. `channels` is padded: a multiple of 4.
struct ConvolvedMap {
  const float* data = nullptr;
  std::int64_t stride = 0;
  int channels = 0;
  int taps = 1;
  Divisor by_channels{1};

  ConvolvedMap() = default;
  ConvolvedMap(const float* data_, std::int64_t stride_, std::int64_t channels_, std::int64_t taps_)
      : data(data_), stride(stride_), channels(static_cast<int>(channels_)), taps(static_cast<int>(taps_)), by_channels(channels_) {}
  [[nodiscard]] NORMA_HD int depth() const noexcept { return taps * channels; }
  /// The same for the sources of convolution.cuh. Rows may be wider than the map.
  [[nodiscard]] ConvolutionGrid grid(FlowGrid g) const {
    const std::int64_t kernel = taps == 1 ? 1 : 3;
    ConvolutionGrid grid(g.batch, Shape{g.height, g.width, channels}, g.height, g.width, kernel, 1, kernel / 2, 4);
    grid.chunks = static_cast<int>(stride / 4);
    return grid;
  }
};

// The sources below come in parts (TileProduct): a row once, then for each depth whether it is inside and where, of which the second must only be
// computable outside.

/// A layer's input as ConvolutionSource reads a map, here of two: rows are positions, the depth is (tap, channel) of `x`, then of `condition`.
struct SubnetInput {
  using Element = float;
  struct Row {
    int r;   // position
    int yx;  // y in the upper half, x in the lower one: kMostFlowSide fits; beyond the last position y is far outside
  };
  const ConvolvedMap& x;
  const ConvolvedMap& condition;
  const RowGrid& grid;
  int first_row;

  [[nodiscard]] NORMA_DEVICE Row row(int tile_row) const {
    const int r = first_row + tile_row;
    if (r >= grid.rows) return {0, kBeyond};
    const unsigned line = grid.by_width.quotient(static_cast<unsigned>(r));
    const unsigned y = grid.by_height.remainder(line, grid.by_height.quotient(line)),
                   column = grid.by_width.remainder(static_cast<unsigned>(r), line);
    return {r, static_cast<int>(y * 65536 + column)};
  }
  [[nodiscard]] NORMA_DEVICE bool inside(const Row& row, std::int64_t depth) const {
    const Place place = find(depth);
    const int y = (row.yx >> 16) + place.dy, column = (row.yx & 65535) + place.dx;
    return static_cast<int>(depth) < x.depth() + condition.depth() && y >= 0 && y < grid.height && column >= 0 && column < grid.width;
  }
  [[nodiscard]] NORMA_DEVICE const float* address(const Row& row, std::int64_t depth) const {
    const Place place = find(depth);
    const ConvolvedMap& map = place.of_condition ? condition : x;
    return map.data + static_cast<std::int64_t>(row.r + place.dy * grid.width + place.dx) * map.stride + place.channel;
  }

 private:
  static constexpr int kBeyond = -4 * 65536;
  struct Place {
    int dy, dx, channel;
    bool of_condition;
  };
  [[nodiscard]] NORMA_DEVICE Place find(std::int64_t depth) const {
    const int k = static_cast<int>(depth);
    const bool of_condition = k >= x.depth() && condition.channels > 0;
    return of_condition ? find(condition, k - x.depth(), true) : find(x, k, false);
  }
  [[nodiscard]] static NORMA_DEVICE Place find(const ConvolvedMap& map, int k, bool of_condition) {
    const auto u = static_cast<unsigned>(k);
    const unsigned number = map.by_channels.quotient(u);
    const int tap = static_cast<int>(number), ky = tap / 3, channel = static_cast<int>(map.by_channels.remainder(u, number));
    if (map.taps == 1) return {0, 0, channel, of_condition};
    return {ky - 1, tap - 3 * ky - 1, channel, of_condition};
  }
};

/// A layer's weights [out][depth] read the other way, for the transposed convolution: rows are the input channels of one map, the depth is (tap from
/// the last to the first, output channel), outputs padded.
struct TransposedWeights {
  using Element = float;
  const float* data;    // at the map's first column
  std::int64_t stride;  // depth of the layer
  int channels;         // padded: of the map
  int out, taps;
  Divisor padded_out;
  int first_row;

  [[nodiscard]] NORMA_HD int depth() const noexcept { return taps * static_cast<int>(padded_out.value()); }
  [[nodiscard]] NORMA_DEVICE int row(int tile_row) const { return first_row + tile_row; }
  [[nodiscard]] NORMA_DEVICE bool inside(int channel, std::int64_t k) const {
    const auto u = static_cast<unsigned>(k);
    const unsigned o = padded_out.remainder(u, padded_out.quotient(u));
    return channel < channels && static_cast<int>(u) < depth() && static_cast<int>(o) < out;
  }
  [[nodiscard]] NORMA_DEVICE const float* address(int channel, std::int64_t k) const {
    const auto u = static_cast<unsigned>(k);
    const unsigned number = padded_out.quotient(u), o = padded_out.remainder(u, number);
    return data + o * stride + static_cast<std::int64_t>(taps - 1 - static_cast<int>(number)) * channels + channel;
  }
};

/// Weights [out][depth] and biases [padded(out)] of one layer.
struct LayerWeights {
  const float* weight = nullptr;
  const float* bias = nullptr;  // null: none
  int out = 0;
  int depth = 0;
};

/// out[r][c] = activation(sum + bias), zero for c in [weights.out, columns).
struct LayerOutput {
  float* data;
  std::int64_t stride;
  int columns;
  Activation activation;
};

template <FlowArithmetic kArithmetic, class Tuning, FlowTile kTile>
NORMA_LAUNCH_BOUNDS(flow_tile(Tuning{}(simt::pass_arch()), kTile, kArithmetic).threads(), 1)
NORMA_KERNEL subnet_layer_kernel(ConvolvedMap x, ConvolvedMap condition, RowGrid grid, LayerWeights weights, DepthSlices slices, LayerOutput out) {
  using Product = FlowProduct<kArithmetic, Tuning, kTile>;
  const int first_row = static_cast<int>(simt::block_x()) * Product::policy.rows,
            first_col = static_cast<int>(simt::block_y()) * Product::policy.cols;
  typename Product::Accumulator acc;
  const SubnetInput rows{x, condition, grid, first_row};
  const MatrixSource<float> cols{weights.weight, first_col, weights.out, weights.depth, weights.depth};
  if (!sliced_product<Product>(acc, rows, cols, weights.depth, slices, flow_shared_bytes(Product::policy, Contiguous::depth, Contiguous::depth)))
    return;
  acc.for_each_run([&](int, int row, int col, simt::Vec<float, Product::kRun> sum) {
    const int r = first_row + row, c = first_col + col;
    if (r >= grid.rows || c >= out.columns) return;
    NORMA_UNROLL
    for (int e = 0; e < Product::kRun; ++e) {
      // Beyond `out` the products were zero, and the fillers of the biases are.
      const float v = weights.bias != nullptr ? sum[e] + weights.bias[c + e] : sum[e];
      sum[e] = out.activation == Activation::relu ? (v > 0.0f ? v : v == v ? 0.0f : v) : v;  // NaN stays
    }
    simt::store<Product::kRun>(out.data + r * out.stride + c, sum);
  });
}

/// What becomes of the gradient of a layer's input.
struct InputGradient {
  float* data;
  std::int64_t stride;
  int columns;
  const float* active;        // the input, where it was a ReLU's output: gradients pass where it is positive. Null: everywhere
  std::int64_t active_stride;
  bool accumulate;            // add to what is there
};

/// Rows: positions; columns: the input channels of one map of the layer.
template <FlowArithmetic kArithmetic, class Tuning, FlowTile kTile>
NORMA_LAUNCH_BOUNDS(flow_tile(Tuning{}(simt::pass_arch()), kTile, kArithmetic).threads(), 1)
NORMA_KERNEL subnet_input_gradient_kernel(const float* output_gradient, ConvolutionGrid grid, TransposedWeights weights, InputGradient out) {
  using Product = FlowProduct<kArithmetic, Tuning, kTile, Contiguous::depth, Contiguous::row>;
  const int first_row = static_cast<int>(simt::block_x()) * Product::policy.rows,
            first_col = static_cast<int>(simt::block_y()) * Product::policy.cols;
  weights.first_row = first_col;
  typename Product::Accumulator acc;
  acc.fill(0.0f);
  Product::accumulate(acc, ConvolutionSource<float>(output_gradient, grid, first_row, 0, weights.depth()), weights, weights.depth(), 0);
  acc.for_each([&](int, int row, int col, float& sum) {
    const int r = first_row + row, c = first_col + col;
    if (r >= grid.pixels || c >= out.columns) return;
    float v = sum;
    if (out.active != nullptr && !(out.active[r * out.active_stride + c] > 0.0f)) v = 0.0f;
    float& to = out.data[r * out.stride + c];
    to = out.accumulate ? to + v : v;
  });
}

/// One layer's share of the partial gradients of a block: part p, from `partial` + p * part_stride.
struct ParameterGradient {
  float* weight;              // at the map's first column
  float* bias;                // null: not from this launch
  std::int64_t part_stride;
  std::int64_t weight_stride; // depth of the layer
  int out;                    // of the layer; biases are padded to a multiple of 4
  int columns;                // of the map: taps * channels
  int column_tiles;           // blocks of the weights; the blocks behind them sum biases, 32 a block
  int part_rows;              // positions of a part
};

inline constexpr int kBiasesOfABlock = 32;

/// Rows: output channels; columns: (tap, channel) of one map of the layer; depth: the positions of one part.
template <FlowArithmetic kArithmetic, class Tuning, FlowTile kTile>
NORMA_LAUNCH_BOUNDS(flow_tile(Tuning{}(simt::pass_arch()), kTile, kArithmetic).threads(), 1)
NORMA_KERNEL
    subnet_weight_gradient_kernel(const float* output_gradient, std::int64_t stride, const float* x, ConvolutionGrid grid, ParameterGradient out) {
  using Product = FlowProduct<kArithmetic, Tuning, kTile, Contiguous::row, Contiguous::row>;
  const int begin = static_cast<int>(simt::block_z()) * out.part_rows;
  const int end = begin + out.part_rows < grid.pixels ? begin + out.part_rows : grid.pixels;
  const std::int64_t part = simt::block_z() * out.part_stride;
  const int column_tile = static_cast<int>(simt::block_x());
  if (column_tile >= out.column_tiles) {
    // Lanes are channels, warps take positions in turn; then the warps' sums in their order.
    if (simt::block_y() != 0) return;
    constexpr int kWarps = Product::kThreads / simt::kWarp;
    const auto sums = simt::shared_array<float>(0, kWarps * kBiasesOfABlock);
    const int o = (column_tile - out.column_tiles) * kBiasesOfABlock + simt::lane_index();
    float sum = 0.0f;
    if (o < out.out) {
      for (int r = begin + simt::warp_index(); r < end; r += kWarps) sum += output_gradient[r * stride + o];
    }
    sums[simt::warp_index() * kBiasesOfABlock + simt::lane_index()] = sum;
    simt::block_barrier();
    if (simt::warp_index() == 0 && o < static_cast<int>(nn::padded(out.out))) {
      float total = 0.0f;
      for (int w = 0; w < kWarps; ++w) {
        const float of_warp = sums[w * kBiasesOfABlock + simt::lane_index()];
        total += of_warp;
      }
      out.bias[part + o] = total;
    }
    return;
  }
  const int first_row = static_cast<int>(simt::block_y()) * Product::policy.rows, first_col = column_tile * Product::policy.cols;
  typename Product::Accumulator acc;
  acc.fill(0.0f);
  // Output channels are padded with zeros; `stride` is their padded count.
  Product::accumulate(acc, MatrixSource<float, Contiguous::row>{output_gradient + begin * stride, first_row, out.out, end - begin, stride},
                      ConvolutionTapSource<float>(x, grid, first_col, begin, end), end - begin, 0);
  acc.for_each_run([&](int, int row, int col, simt::Vec<float, Product::kRun> sum) {
    const int o = first_row + row, c = first_col + col;
    if (o >= out.out || c >= out.columns) return;
    simt::store<Product::kRun>(out.weight + part + o * out.weight_stride + c, sum);
  });
}

}  // namespace detail
}  // namespace norma::cuda
