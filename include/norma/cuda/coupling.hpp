/// \file
/// Flows of coupling blocks on the device: forward with log-determinants, inverse, and backward from the output. nn/coupling_types.hpp has the
/// blocks' formulas and the layout of their parameters; docs/kernels/coupling.md has the kernels.
///
///     const std::size_t bytes = flow_workspace_bytes(blocks, grid, FlowPass::forward);
///     NORMA_TRY(auto workspace, DeviceBuffer<std::byte>::create(static_cast<std::int64_t>(bytes)));
///     NORMA_TRY(auto graph, Graph::capture(stream, [&] {
///                 return flow_forward(stream, blocks, grid, x, {}, z, logdet, nullptr, {workspace.data(), bytes});
///               }));
///     NORMA_CHECK(graph.launch(stream));
///
/// Shapes:      a row is a position: rows = batch height width. x, z and their gradients [rows, C], condition [rows, condition], logdet [batch],
///              position_logdet [rows]. Vectors are maps of 1 x 1
/// Layout:      channels last; the stride of a row is a multiple of 4 floats and at least padded(C); 16-byte aligned. The padding of
///              inputs must be finite, that of the condition zero in flow_backward. What is written to the padding of an output is unspecified
/// Memory:      device memory. Outputs and workspace overlap neither each other nor an input. Workspace aligned to 256 bytes, for one call at a time
/// Order:       everything is queued on `stream`; nothing allocates, waits or prints; calls can be captured into a graph
/// Determinism: bitwise for the same device, arithmetic and tuning: sums in fixed order, no atomics on floats; z and logdet of a
///              sample do not depend on the batch (the gradients of the parameters are sums over it)
/// Not finite:  a NaN or infinity stays in its sample
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include <norma/core/status.hpp>
#include <norma/core/view.hpp>
#include <norma/cuda/stream_ref.hpp>
#include <norma/nn/coupling_types.hpp>

namespace norma::cuda {

/// How the subnets' products multiply; sums are float. The rest of a block is float arithmetic in every case.
enum class FlowArithmetic : std::uint8_t {
  fp32,    ///< float multiplications: parity with a float library
  tf32,    ///< tensor cores, factors rounded to 10 bits of mantissa
  tf32x3,  ///< tensor cores, each factor as a sum of two: nearly float
};

enum class FlowPass : std::uint8_t { forward, inverse, backward };

/// One block on the device.
struct FlowBlock {
  nn::CouplingShape shape;
  const float* parameters = nullptr;            ///< nn::parameter_layout(shape).total floats, 16-byte aligned
  const std::int32_t* permutation = nullptr;    ///< nn::pack_permutation, [2, C]; ChannelMixing::permutation only
  const float* rotation = nullptr;              ///< nn::pack_rotation, 16-byte aligned; ChannelMixing::rotation only
};

struct FlowGrid {
  std::int64_t batch = 1;
  std::int64_t height = 1;
  std::int64_t width = 1;
  [[nodiscard]] constexpr std::int64_t positions() const noexcept { return height * width; }
  [[nodiscard]] constexpr std::int64_t rows() const noexcept { return batch * height * width; }
};

struct FlowTuning;

namespace detail {

/// Least columns of a product's tile: bounds the partial log-determinants of a row.
inline constexpr std::int64_t kLeastFlowColumns = 32;
/// Most lines or columns of a map: a position's two coordinates share 32 bits, with room beside.
inline constexpr std::int64_t kMostFlowSide = 16000;
/// Rows that one partial gradient sums at least, and the most partial gradients.
inline constexpr std::int64_t kFlowPartRows = 512, kMostFlowParts = 64;
/// Most bytes of partial gradients, unless one part is larger.
inline constexpr std::int64_t kMostFlowPartBytes = std::int64_t{64} << 20;

/// A forward product of a large depth is the sum of up to so many slices, of at least so much depth each.
inline constexpr std::int64_t kMostFlowSlices = 4, kLeastFlowSlice = 256;
constexpr std::int64_t flow_slices(std::int64_t depth) noexcept { return std::clamp(depth / kLeastFlowSlice, std::int64_t{1}, kMostFlowSlices); }
/// Tiles whose slices are summed by different blocks, at most, and the elements of such a tile.
inline constexpr std::int64_t kMostSlicedFlowTiles = 264, kSlicedFlowTile = 32 * 32;

/// Where everything of a flow lies in its workspace, in bytes; only what the pass needs has a place.
struct FlowPlan {
  std::int64_t stride = 0;          // of values and gradients, in floats: the split layout
  std::int64_t tiles = 0;           // most partial log-determinants of a row
  std::int64_t parts = 0;           // partial gradients of a parameter
  std::int64_t most_parameters = 0; // of a block
  std::int64_t most_columns = 0;    // of the activations of a subnet
  std::size_t values[2] = {};       // [rows, stride]
  std::size_t gradients[2] = {};    // [rows, stride]
  std::size_t hidden[nn::kMostSubnetLayers - 1] = {};  // [rows, padded(hidden)]
  std::size_t output_gradient = 0;  // [rows, padded(2 active)]
  std::size_t hidden_gradient[2] = {};
  std::size_t row_logdet = 0;       // [tiles, rows]
  bool has_slices = false;
  std::size_t sliced = 0;           // partial sums of slices
  std::size_t arrived = 0;          // a counter a tile
  std::size_t partial = 0;          // [parts, most_parameters]
  std::size_t bytes = 0;
};

constexpr FlowPlan plan_flow(std::span<const FlowBlock> blocks, FlowGrid grid, FlowPass pass) noexcept {
  FlowPlan plan;
  const std::int64_t rows = grid.rows();
  std::int64_t hidden[nn::kMostSubnetLayers - 1] = {}, most_hidden = 0, most_output = 0, most_halves = 0;
  for (const FlowBlock& block : blocks) {
    const nn::CouplingShape& s = block.shape;
    plan.stride = std::max(plan.stride, s.split_stride());
    plan.has_slices = plan.has_slices || (s.mixing == nn::ChannelMixing::rotation && flow_slices(s.split_stride()) > 1);
    for (int l = 0; l + 1 < s.layers; ++l) {
      hidden[l] = std::max(hidden[l], nn::padded(s.hidden[l]));
      most_hidden = std::max(most_hidden, hidden[l]);
    }
    const nn::ParameterLayout layout = nn::parameter_layout(s);
    plan.most_parameters = std::max(plan.most_parameters, layout.total);
    for (int step = 0; step < s.steps(); ++step) {
      for (int l = 0; l < s.layers; ++l) plan.has_slices = plan.has_slices || flow_slices(layout.layers[step][l].depth()) > 1;
      most_output = std::max(most_output, nn::padded(2 * s.active(step)));
      most_halves = std::max(most_halves, 2 * std::max(s.active(step), s.passive(step)));
    }
  }
  plan.tiles = (most_halves + kLeastFlowColumns - 1) / kLeastFlowColumns;
  plan.most_columns = std::max(most_hidden, most_output);
  const auto take = [&](std::int64_t floats) {
    const std::size_t at = plan.bytes;
    plan.bytes += (static_cast<std::size_t>(floats) * sizeof(float) + 255) / 256 * 256;
    return at;
  };
  for (auto& at : plan.values) at = take(rows * plan.stride);
  for (int l = 0; l < nn::kMostSubnetLayers - 1; ++l) plan.hidden[l] = take(rows * hidden[l]);
  if (plan.has_slices && rows > 0) {
    plan.sliced = take(kMostSlicedFlowTiles * kMostFlowSlices * kSlicedFlowTile);
    plan.arrived = take(kMostSlicedFlowTiles);
  }
  if (pass == FlowPass::forward) plan.row_logdet = take(rows * plan.tiles);
  if (pass == FlowPass::backward) {
    for (auto& at : plan.gradients) at = take(rows * plan.stride);
    plan.output_gradient = take(rows * most_output);
    for (auto& at : plan.hidden_gradient) at = take(rows * most_hidden);
    const std::int64_t by_rows = std::clamp((rows + kFlowPartRows - 1) / kFlowPartRows, std::int64_t{1}, kMostFlowParts);
    const std::int64_t by_bytes = kMostFlowPartBytes / (static_cast<std::int64_t>(sizeof(float)) * std::max(plan.most_parameters, std::int64_t{1}));
    plan.parts = std::min(by_rows, std::max(by_bytes, std::int64_t{1}));
    if (plan.parts > 1) plan.partial = take(plan.parts * plan.most_parameters);  // else the gradients themselves
  }
  return plan;
}

}  // namespace detail

/// Bytes of the workspace of one call. Depends on the blocks' shapes, not on their pointers; does not grow with the number of blocks.
constexpr std::size_t flow_workspace_bytes(std::span<const FlowBlock> blocks, FlowGrid grid, FlowPass pass) noexcept {
  return detail::plan_flow(blocks, grid, pass).bytes;
}

/// z = the blocks, in order, of x. `logdet` [batch] and `position_logdet` [rows] may be null; the second holds each position's share, global scales
/// included. `condition` is empty where no block has one. Errors: invalid_argument (shapes, pointers, alignment, sizes), shape_mismatch,
/// out_of_memory (workspace), unsupported, and what a launch reports.
template <FlowArithmetic kArithmetic = FlowArithmetic::fp32, class Tuning = FlowTuning>
Status flow_forward(StreamRef stream, std::span<const FlowBlock> blocks, FlowGrid grid, MatrixView<const float> x, MatrixView<const float> condition,
                    MatrixView<float> z, float* logdet, float* position_logdet, std::span<std::byte> workspace);

/// x with flow_forward(x) = z, up to rounding.
template <FlowArithmetic kArithmetic = FlowArithmetic::fp32, class Tuning = FlowTuning>
Status flow_inverse(StreamRef stream, std::span<const FlowBlock> blocks, FlowGrid grid, MatrixView<const float> z, MatrixView<const float> condition,
                    MatrixView<float> x, std::span<std::byte> workspace);

/// Gradients from the flow's *output*: inputs and hidden activations of the blocks are computed again on the way back, so nothing of the forward pass
/// is kept but z. `gradients[b]` receives dL/dparameters of block b in the layout of its parameters (overwritten; fillers are 0); `dx` and
/// `dcondition` may be empty. `dlogdet` [batch] is dL/dlogdet; null: 0.
template <FlowArithmetic kArithmetic = FlowArithmetic::fp32, class Tuning = FlowTuning>
Status flow_backward(StreamRef stream, std::span<const FlowBlock> blocks, FlowGrid grid, MatrixView<const float> z, MatrixView<const float> condition,
                     MatrixView<const float> dz, const float* dlogdet, std::span<float* const> gradients, MatrixView<float> dx,
                     MatrixView<float> dcondition, std::span<std::byte> workspace);

/// For likelihoods: squares[row] = the sum of z^2 over the channels. A sample's -log p is 0.5 sum(squares) - logdet, up to the constants of the
/// method.
template <class Tuning = FlowTuning>
Status latent_squares(StreamRef stream, MatrixView<const float> z, float* squares);

/// For training on the mean of `weight` (0.5 |z|^2 - logdet): dz = weight z, dlogdet = -weight; `dlogdet` [batch] may be null.
template <class Tuning = FlowTuning>
Status likelihood_gradient(StreamRef stream, MatrixView<const float> z, float weight, MatrixView<float> dz, float* dlogdet, std::int64_t batch);

}  // namespace norma::cuda
