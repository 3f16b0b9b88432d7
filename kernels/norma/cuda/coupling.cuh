/// \file
/// Flows of coupling blocks: what norma/cuda/coupling.hpp declares, as queues of the kernels of subnet.cuh and coupling_block.cuh.
///
/// Forward, a block of L subnet layers: L launches (glow: 2 L); the last layer's epilogue couples, applies the global scale and offset and stores
/// through the permutation. A rotation is one product more. A flow adds one launch for the log-determinants, glow one for the first permutation.
/// Inverse: L + 1. Backward: per step L to compute the hidden layers and the step's input again, and 2 L for the gradients; per block 1 to undo the
/// mixing and 1 to sum partial gradients.
#pragma once

#include <limits>
#include <string>

#include <norma/cuda/coupling_block.cuh>

namespace norma::cuda {
namespace detail {

/// The channel order between two blocks; neither: none.
struct FlowMix {
  const std::int32_t* permutation = nullptr;  // [2, C]
  const float* rotation = nullptr;
  int channels = 0;
  [[nodiscard]] const std::int32_t* source() const noexcept { return permutation; }                                       // out[c] = in[source[c]]
  [[nodiscard]] const std::int32_t* target() const noexcept {
    return permutation == nullptr ? nullptr : permutation + channels;
  }  // in[c] goes to out[target[c]]
};

/// A flow's arrays that hold positions as rows, and in which layout.
struct FlowRows {
  float* data;
  std::int64_t stride;
  ChannelPlaces places;
};
struct ConstFlowRows {
  const float* data;
  std::int64_t stride;
  ChannelPlaces places;
  ConstFlowRows(const float* d, std::int64_t s, ChannelPlaces p) : data(d), stride(s), places(p) {}
  ConstFlowRows(const FlowRows& r) : data(r.data), stride(r.stride), places(r.places) {}  // NOLINT(google-explicit-constructor)
};

template <class T>
Status check_rows(std::string_view who, std::string_view what, MatrixView<T> view, std::int64_t rows, std::int64_t channels) {
  const std::string name = std::string(who) + ": " + std::string(what);
  if (view.rows != rows || view.cols != channels) {
    return {Errc::shape_mismatch, name + ": expected " + std::to_string(rows) + " x " + std::to_string(channels) + ", found " +
                                      std::to_string(view.rows) + " x " + std::to_string(view.cols)};
  }
  if (rows == 0 || channels == 0) return {};
  if (view.data == nullptr) return {Errc::invalid_argument, name + ": is null"};
  if (view.stride % 4 != 0 || view.stride < nn::padded(channels)) {
    return {Errc::invalid_argument, name + ": expected a stride of a multiple of 4 and at least " + std::to_string(nn::padded(channels)) +
                                        ", found " + std::to_string(view.stride)};
  }
  if (reinterpret_cast<std::uintptr_t>(view.data) % 16 != 0) return {Errc::invalid_argument, name + ": expected memory aligned to 16 bytes"};
  return {};
}

inline Status check_aligned(std::string_view who, std::string_view what, const void* p, std::size_t alignment) {
  if (p != nullptr && reinterpret_cast<std::uintptr_t>(p) % alignment == 0) return {};
  return {Errc::invalid_argument, std::string(who) + ": " + std::string(what) + ": expected memory aligned to " + std::to_string(alignment) +
                                      " bytes, found " + (p == nullptr ? "null" : "another address")};
}

/// What the three passes share: checked blocks, places in the workspace, and the launches.
template <FlowArithmetic kArithmetic, class Tuning>
class FlowQueue {
 public:
  static Result<FlowQueue> create(std::string_view who, StreamRef stream, std::span<const FlowBlock> blocks, FlowGrid grid, FlowPass pass,
                                  MatrixView<const float> condition, std::span<std::byte> workspace) {
    const std::string name(who);
    if (blocks.empty()) return Status(Errc::invalid_argument, name + ": expected at least one block");
    if (grid.batch < 0 || grid.height < 1 || grid.width < 1) {
      return Status(Errc::invalid_argument, name + ": expected a batch of 0 or more maps of at least 1 x 1, found " + std::to_string(grid.batch) +
                                                " of " + std::to_string(grid.height) + " x " + std::to_string(grid.width));
    }
    // Rows are counted in 32 bits, with room for one tile behind the last.
    constexpr std::int64_t kMostRows = std::int64_t{1} << 30;
    if (grid.height > kMostFlowSide || grid.width > kMostFlowSide || (grid.batch > 0 && grid.positions() > kMostRows / grid.batch)) {
      return Status(Errc::invalid_argument,
                    name + ": the problem is too large, expected maps of at most 16000 x 16000 and 1073741824 positions in all, found " +
                        std::to_string(grid.batch) + " of " + std::to_string(grid.height) + " x " + std::to_string(grid.width));
    }
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      const FlowBlock& block = blocks[b];
      const std::string at = name + ": block " + std::to_string(b);
      NORMA_CHECK(nn::check_shape(at, block.shape));
      if (block.shape.kind != blocks[0].shape.kind || block.shape.channels != blocks[0].shape.channels) {
        return Status(Errc::shape_mismatch, at + ": expected the kind and the " + std::to_string(blocks[0].shape.channels) +
                                                " channels of block 0, found " + std::to_string(block.shape.channels) + " channels");
      }
      if (block.shape.condition != 0) NORMA_CHECK(check_rows(at, "condition", condition, grid.rows(), block.shape.condition));
      NORMA_CHECK(check_aligned(at, "parameters", block.parameters, 16));
      if (block.shape.mixing == nn::ChannelMixing::permutation) {
        NORMA_CHECK(check_aligned(at, "permutation", block.permutation, 4));
      } else {
        NORMA_CHECK(check_aligned(at, "rotation", block.rotation, 16));
      }
    }
    FlowQueue queue(grid);
    queue.who_ = who;
    queue.stream_ = stream;
    queue.blocks_ = blocks;
    queue.condition_ = condition;
    queue.plan_ = plan_flow(blocks, grid, pass);
    // Sources of convolution.cuh count 16-byte chunks in 32 bits, a line of the map beside the first and last included.
    const std::int64_t widest = std::max({queue.plan_.stride, queue.plan_.most_columns, condition.stride});
    if ((grid.rows() + 2 * grid.width + 2) * (widest / 4) > std::numeric_limits<std::int32_t>::max()) {
      return Status(Errc::invalid_argument, name + ": the problem is too large, expected at most 34359738352 bytes of rows, found " +
                                                std::to_string(grid.rows()) + " rows of " + std::to_string(widest) + " floats");
    }
    if (workspace.size() < queue.plan_.bytes) {
      return Status(Errc::out_of_memory, name + ": expected a workspace of " + std::to_string(queue.plan_.bytes) +
                                             " bytes (flow_workspace_bytes), found " + std::to_string(workspace.size()));
    }
    if (queue.plan_.bytes > 0) NORMA_CHECK(check_aligned(who, "workspace", workspace.data(), 256));
    queue.memory_ = workspace.data();
    const nn::CouplingShape& s = queue.shape();
    queue.split_ = {static_cast<int>(s.first()), static_cast<int>(nn::padded(s.first()) - s.first())};
    NORMA_TRY(const int arch, kernel_arch(who, &subnet_layer_kernel<kArithmetic, Tuning, FlowTile::small>));
    queue.policy_ = Tuning{}(arch);
    return queue;
  }

  [[nodiscard]] const nn::CouplingShape& shape() const { return blocks_[0].shape; }
  [[nodiscard]] const FlowPlan& plan() const { return plan_; }
  [[nodiscard]] int last_block() const { return static_cast<int>(blocks_.size()) - 1; }
  [[nodiscard]] float* at(std::size_t bytes) const { return reinterpret_cast<float*>(memory_ + bytes); }
  [[nodiscard]] FlowRows values(int i) const { return {at(plan_.values[i]), plan_.stride, split_}; }
  [[nodiscard]] FlowRows gradients(int i) const { return {at(plan_.gradients[i]), plan_.stride, split_}; }
  [[nodiscard]] bool split_is_plain() const { return split_.gap == 0; }
  [[nodiscard]] bool is_glow() const { return shape().kind == nn::BlockKind::glow; }

  /// Counters start at zero, and so do the fillers of the split layout, which nobody writes.
  [[nodiscard]] Status clear(FlowPass pass) const {
    if (plan_.has_slices) NORMA_CHECK(fill_async(who_, memory_ + plan_.arrived, 0, kMostSlicedFlowTiles * sizeof(unsigned), stream_));
    if (plan_.stride == shape().channels) return {};
    const std::size_t bytes = static_cast<std::size_t>(grid_.rows() * plan_.stride) * sizeof(float);
    for (int i = 0; i < 2; ++i) {
      NORMA_CHECK(fill_async(who_, values(i).data, 0, bytes, stream_));
      if (pass == FlowPass::backward) NORMA_CHECK(fill_async(who_, gradients(i).data, 0, bytes, stream_));
    }
    return {};
  }

  // Mixing between blocks: an all-in-one block ends with its own, a glow block begins with it.
  [[nodiscard]] FlowMix mix_of(int b) const {
    const FlowBlock& block = blocks_[static_cast<std::size_t>(b)];
    const bool rotates = block.shape.mixing == nn::ChannelMixing::rotation;
    return {rotates ? nullptr : block.permutation, rotates ? block.rotation : nullptr, static_cast<int>(shape().channels)};
  }
  [[nodiscard]] FlowMix mix_before_first() const { return is_glow() ? mix_of(0) : FlowMix{nullptr, nullptr, static_cast<int>(shape().channels)}; }
  [[nodiscard]] FlowMix mix_after(int b) const {
    if (!is_glow()) return mix_of(b);
    return b < last_block() ? mix_of(b + 1) : FlowMix{nullptr, nullptr, static_cast<int>(shape().channels)};
  }

  /// to = from with channel c taken from source[c], the global affine map of block `affine` undone where it is one (-1: none).
  [[nodiscard]] Mixing mixing(const ConstFlowRows& from, const FlowRows& to, const std::int32_t* source, int affine) const {
    Mixing m{
        from.data, from.stride, from.places, to.data, to.stride, to.places, source, nullptr, nullptr, rows_.rows, static_cast<int>(shape().channels)};
    if (affine >= 0 && shape().has_global_affine()) {
      const FlowBlock& block = blocks_[static_cast<std::size_t>(affine)];
      const nn::ParameterLayout layout = nn::parameter_layout(block.shape);
      m.scale = block.parameters + layout.global_scale;
      m.offset = block.parameters + layout.global_offset;
    }
    return m;
  }
  [[nodiscard]] Status mix(const Mixing& m) const {
    const LaunchShape grid{ceil_div(m.rows, kMixRows), ceil_div(m.channels, simt::kWarp), 1, kMixThreads, 0};
    return launch(who_, stream_, grid, &mix_kernel<Tuning>, m);
  }

  /// to = R from, both in the split layout.
  [[nodiscard]] Status rotate(const float* rotation, const ConstFlowRows& from, const FlowRows& to) const {
    const std::int64_t n = plan_.stride;
    const LayerWeights weights{rotation, nullptr, static_cast<int>(n), static_cast<int>(n)};
    return layer(ConvolvedMap(from.data, from.stride, n, 1), {}, weights, {to.data, to.stride, static_cast<int>(n), Activation::none});
  }
  /// to = R^T from.
  [[nodiscard]] Status rotate_back(const float* rotation, const ConstFlowRows& from, const FlowRows& to) const {
    const std::int64_t n = plan_.stride;
    return input_gradient(ConvolvedMap(from.data, from.stride, n, 1), rotation, n, n, n, 1,
                          {to.data, to.stride, static_cast<int>(n), nullptr, 0, false});
  }

  /// The layers of a step's subnet but the last, into the workspace.
  [[nodiscard]] Status hidden_layers(int b, int step, const ConstFlowRows& values) const {
    const FlowBlock& block = blocks_[static_cast<std::size_t>(b)];
    const nn::ParameterLayout layout = nn::parameter_layout(block.shape);
    for (int l = 0; l + 1 < block.shape.layers; ++l) {
      const nn::LayerLayout& place = layout.layers[step][l];
      NORMA_CHECK(layer(input(b, step, l, values), condition_input(b, l), weights(block, place),
                        {at(plan_.hidden[l]), nn::padded(place.out), static_cast<int>(nn::padded(place.out)), Activation::relu}));
    }
    return {};
  }

  /// What layer l of a step's subnet reads beside the condition.
  [[nodiscard]] ConvolvedMap input(int b, int step, int l, const ConstFlowRows& values) const {
    const nn::CouplingShape& s = blocks_[static_cast<std::size_t>(b)].shape;
    const std::int64_t taps = s.kernels[l] * s.kernels[l];
    if (l > 0) return {at(plan_.hidden[l - 1]), nn::padded(s.hidden[l - 1]), nn::padded(s.hidden[l - 1]), taps};
    return {values.data + passive_at(s, step), values.stride, nn::padded(s.passive(step)), taps};
  }
  [[nodiscard]] ConvolvedMap condition_input(int b, int l) const {
    const nn::CouplingShape& s = blocks_[static_cast<std::size_t>(b)].shape;
    if (l > 0 || s.condition == 0) return {};
    return {condition_.data, condition_.stride, nn::padded(s.condition), s.kernels[0] * s.kernels[0]};
  }
  static int active_at(const nn::CouplingShape& s, int step) { return s.changes_first(step) ? 0 : static_cast<int>(nn::padded(s.first())); }
  static int passive_at(const nn::CouplingShape& s, int step) { return s.changes_first(step) ? static_cast<int>(nn::padded(s.first())) : 0; }
  static LayerWeights weights(const FlowBlock& block, const nn::LayerLayout& place) {
    return {block.parameters + place.weight, block.parameters + place.bias, static_cast<int>(place.out), static_cast<int>(place.depth())};
  }

  /// The last layer of a step with the coupling. Where the passive half stays where it is, `to` is `from`.
  [[nodiscard]] Status couple(int b, int step, bool inverse, const ConstFlowRows& from, const FlowRows& to, const std::int32_t* target,
                              bool with_passive, bool with_affine, float* row_logdet, int& groups) const {
    const FlowBlock& block = blocks_[static_cast<std::size_t>(b)];
    const nn::CouplingShape& s = block.shape;
    const nn::ParameterLayout layout = nn::parameter_layout(s);
    const int l = s.layers - 1;
    const nn::LayerLayout& place = layout.layers[step][l];
    CouplingStep c{};
    c.bias = block.parameters + place.bias;
    c.clamp = s.clamp;
    c.alpha = s.alpha;
    c.gain = s.gain();
    c.inverse = inverse;
    c.from = from.data;
    c.from_stride = from.stride;
    c.active_at = active_at(s, step);
    c.active = static_cast<int>(s.active(step));
    c.active_first = s.changes_first(step) ? 0 : static_cast<int>(s.first());
    c.passive_at = passive_at(s, step);
    c.passive = with_passive ? static_cast<int>(s.passive(step)) : 0;
    c.passive_first = s.changes_first(step) ? static_cast<int>(s.first()) : 0;
    c.to = to.data;
    c.to_stride = to.stride;
    c.to_places = to.places;
    c.target = target;
    if (with_affine && s.has_global_affine()) {
      c.scale = block.parameters + layout.global_scale;
      c.offset = block.parameters + layout.global_offset;
    }
    c.row_logdet = row_logdet;
    c.earlier_groups = groups;
    const std::int64_t columns = 2 * std::max(c.active, c.passive);
    groups = std::max(groups, static_cast<int>(ceil_div(columns, kLogdetColumns)));
    const FlowTile tile = choose(rows_.rows, columns, 1);
    LaunchShape grid = product_shape(tile, rows_.rows, columns, Contiguous::depth, Contiguous::depth);
    grid.shared_bytes = static_cast<std::size_t>(CouplingShared(flow_tile(policy_, tile, kArithmetic)).bytes);
    const DepthSlices slices = slice(grid, tile, place.depth());
    const auto go = [&](auto* kernel) {
      return launch(who_, stream_, grid, kernel, input(b, step, l, from), condition_input(b, l), rows_, weights(block, place), slices, c);
    };
    if (tile == FlowTile::large) return go(&coupling_kernel<kArithmetic, Tuning, FlowTile::large>);
    return go(&coupling_kernel<kArithmetic, Tuning, FlowTile::small>);
  }

  /// The way back through the coupling of a step, in place; the gradient of the subnet's output into the workspace.
  [[nodiscard]] Status couple_backward(int b, int step, const FlowRows& values, const FlowRows& gradients, const float* dlogdet) const {
    const FlowBlock& block = blocks_[static_cast<std::size_t>(b)];
    const nn::CouplingShape& s = block.shape;
    const int l = s.layers - 1;
    const nn::LayerLayout place = nn::parameter_layout(s).layers[step][l];
    const std::int64_t columns = nn::padded(2 * s.active(step));
    CouplingBackwardStep c{};
    c.bias = block.parameters + place.bias;
    c.clamp = s.clamp;
    c.alpha = s.alpha;
    c.gain = s.gain();
    c.values = values.data;
    c.gradients = gradients.data;
    c.stride = values.stride;
    c.active_at = active_at(s, step);
    c.active = static_cast<int>(s.active(step));
    c.dlogdet = dlogdet;
    c.positions = static_cast<int>(grid_.positions());
    c.output_gradient = at(plan_.output_gradient);
    c.output_stride = columns;
    const FlowTile tile = choose(rows_.rows, columns, 1);
    const LaunchShape grid = product_shape(tile, rows_.rows, columns, Contiguous::depth, Contiguous::depth);
    const auto go = [&](auto* kernel) {
      return launch(who_, stream_, grid, kernel, input(b, step, l, values), condition_input(b, l), rows_, weights(block, place), c);
    };
    if (tile == FlowTile::large) return go(&coupling_backward_kernel<kArithmetic, Tuning, FlowTile::large>);
    return go(&coupling_backward_kernel<kArithmetic, Tuning, FlowTile::small>);
  }

  /// Gradients of a subnet's parameters (into `partial`, in the layout of the block's parameters), of its input (added to the passive half of
  /// `gradients`) and of the condition (where `dcondition` has data; `add_condition`: to what is there).
  [[nodiscard]] Status subnet_backward(int b, int step, const FlowRows& values, const FlowRows& gradients, float* partial,
                                       MatrixView<float> dcondition, bool add_condition) const {
    const FlowBlock& block = blocks_[static_cast<std::size_t>(b)];
    const nn::CouplingShape& s = block.shape;
    const nn::ParameterLayout layout = nn::parameter_layout(s);
    const float* from = at(plan_.output_gradient);
    for (int l = s.layers - 1; l >= 0; --l) {
      const nn::LayerLayout& place = layout.layers[step][l];
      const ConvolvedMap x = input(b, step, l, values), beside = condition_input(b, l);
      const std::int64_t stride = nn::padded(place.out);
      NORMA_CHECK(weight_gradient(from, place, x, partial + place.weight, partial + place.bias, layout.total));
      if (beside.channels > 0) NORMA_CHECK(weight_gradient(from, place, beside, partial + place.weight + x.depth(), nullptr, layout.total));
      const ConvolvedMap output(from, stride, stride, place.taps);
      if (l > 0) {
        float* const to = at(plan_.hidden_gradient[l % 2]);
        NORMA_CHECK(input_gradient(output, block.parameters + place.weight, place.depth(), place.out, x.channels, place.taps,
                                   {to, x.channels, x.channels, x.data, x.stride, false}));
        from = to;
      } else {
        NORMA_CHECK(input_gradient(output, block.parameters + place.weight, place.depth(), place.out, x.channels, place.taps,
                                   {gradients.data + passive_at(s, step), gradients.stride, static_cast<int>(s.passive(step)), nullptr, 0, true}));
        if (beside.channels > 0 && dcondition.data != nullptr) {
          NORMA_CHECK(input_gradient(output, block.parameters + place.weight + x.depth(), place.depth(), place.out, beside.channels, place.taps,
                                     {dcondition.data, dcondition.stride, static_cast<int>(s.condition), nullptr, 0, add_condition}));
        }
      }
    }
    return {};
  }

  /// Undoes the mixing behind block b on values and gradients at once, and the block's global affine map, whose gradients go to `partial`.
  [[nodiscard]] Status mix_backward(int b, const Mixing& values, const float* from, std::int64_t from_stride, float* to, const float* dlogdet,
                                    float* partial) const {
    const nn::ParameterLayout layout = nn::parameter_layout(blocks_[static_cast<std::size_t>(b)].shape);
    MixingBackward m{values, from, from_stride, to, partial + layout.global_scale, partial + layout.global_offset, layout.total, part_rows(), dlogdet,
                     static_cast<int>(grid_.batch), static_cast<int>(grid_.positions())};
    const LaunchShape grid{plan_.parts, ceil_div(values.channels, simt::kWarp), 1, kMixThreads, 3 * kMixThreads * sizeof(float)};
    return launch(who_, stream_, grid, &mix_backward_kernel<Tuning>, m);
  }
  /// Where the partial gradients of a block go: to the gradients themselves where there is only one part.
  [[nodiscard]] float* partial(float* gradients) const { return plan_.parts == 1 ? gradients : at(plan_.partial); }
  [[nodiscard]] Status sum_parts(int b, float* gradients) const {
    if (plan_.parts == 1) return {};
    const std::int64_t count = nn::parameter_layout(blocks_[static_cast<std::size_t>(b)].shape).total;
    const LaunchShape grid{ceil_div(count, 4 * kSumThreads), 1, 1, kSumThreads, 0};
    return launch(who_, stream_, grid, &sum_parts_kernel<Tuning>, at(plan_.partial), count, static_cast<int>(plan_.parts), count, gradients);
  }

  [[nodiscard]] Status sum_logdet(int groups, float* logdet, float* position_logdet) const {
    const auto positions = static_cast<int>(grid_.positions());
    const std::int64_t samples_of_a_block = warp_for_sample(positions) ? kSumThreads / simt::kWarp : 1;
    const LaunchShape grid{ceil_div(grid_.batch, samples_of_a_block), 1, 1, kSumThreads, kSumThreads / simt::kWarp * sizeof(double)};
    return launch(who_, stream_, grid, &sum_logdet_kernel<Tuning>, at(plan_.row_logdet), groups, rows_.rows, positions, static_cast<int>(grid_.batch),
                  logdet, position_logdet);
  }

 private:
  explicit FlowQueue(FlowGrid grid) : grid_(grid), rows_(grid) {}

  /// The last position of every part but the last one's is full, so that no part is empty.
  [[nodiscard]] int part_rows() const { return static_cast<int>(ceil_div(rows_.rows, plan_.parts)); }

  /// The large tile where it makes enough blocks (times `times` parts) and its margins cost at most half more than the small one's.
  [[nodiscard]] FlowTile choose(std::int64_t rows, std::int64_t columns, std::int64_t times) const {
    const auto tiles = [&](const TilePolicy& tile) { return ceil_div(rows, tile.rows) * ceil_div(columns, tile.cols); };
    const auto area = [&](const TilePolicy& tile) { return tiles(tile) * tile.rows * tile.cols; };
    const bool enough = tiles(policy_.large) * times >= policy_.large_from_blocks, fits = 2 * area(policy_.large) <= 3 * area(policy_.small);
    return enough && fits ? FlowTile::large : FlowTile::small;
  }
  [[nodiscard]] LaunchShape product_shape(FlowTile tile, std::int64_t rows, std::int64_t columns, Contiguous a, Contiguous b) const {
    const TilePolicy policy = flow_tile(policy_, tile, kArithmetic);
    return {ceil_div(rows, policy.rows), ceil_div(columns, policy.cols), 1, policy.threads(),
            static_cast<std::size_t>(flow_shared_bytes(policy, a, b))};
  }

  /// How a forward product's depth is summed; where its tiles leave multiprocessors idle, the grid gets a block for each slice.
  [[nodiscard]] DepthSlices slice(LaunchShape& grid, FlowTile tile, std::int64_t depth) const {
    DepthSlices slices(depth);
    const TilePolicy policy = flow_tile(policy_, tile, kArithmetic);
    const std::int64_t tiles = grid.blocks_x * grid.blocks_y, most = std::min(policy_.sliced_to_blocks, kMostSlicedFlowTiles);
    if (tile == FlowTile::small && slices.slices > 1 && tiles <= most && policy.rows * policy.cols <= kSlicedFlowTile) {
      slices.partial = at(plan_.sliced);
      slices.arrived = reinterpret_cast<unsigned*>(memory_ + plan_.arrived);
      grid.blocks_z = slices.slices;
    }
    return slices;
  }

  [[nodiscard]] Status layer(const ConvolvedMap& x, const ConvolvedMap& condition, const LayerWeights& weights, const LayerOutput& out) const {
    const FlowTile tile = choose(rows_.rows, out.columns, 1);
    LaunchShape grid = product_shape(tile, rows_.rows, out.columns, Contiguous::depth, Contiguous::depth);
    grid.shared_bytes += sizeof(int);
    const DepthSlices slices = slice(grid, tile, weights.depth);
    const auto go = [&](auto* kernel) { return launch(who_, stream_, grid, kernel, x, condition, rows_, weights, slices, out); };
    if (tile == FlowTile::large) return go(&subnet_layer_kernel<kArithmetic, Tuning, FlowTile::large>);
    return go(&subnet_layer_kernel<kArithmetic, Tuning, FlowTile::small>);
  }
  [[nodiscard]] Status input_gradient(const ConvolvedMap& output, const float* weight, std::int64_t weight_stride, std::int64_t out,
                                      std::int64_t channels, std::int64_t taps, const InputGradient& to) const {
    const TransposedWeights weights{
        weight, weight_stride, static_cast<int>(channels), static_cast<int>(out), static_cast<int>(taps), Divisor(nn::padded(out)), 0};
    const FlowTile tile = choose(rows_.rows, to.columns, 1);
    const LaunchShape grid = product_shape(tile, rows_.rows, to.columns, Contiguous::depth, Contiguous::row);
    const auto go = [&](auto* kernel) { return launch(who_, stream_, grid, kernel, output.data, output.grid(grid_), weights, to); };
    if (tile == FlowTile::large) return go(&subnet_input_gradient_kernel<kArithmetic, Tuning, FlowTile::large>);
    return go(&subnet_input_gradient_kernel<kArithmetic, Tuning, FlowTile::small>);
  }
  [[nodiscard]] Status weight_gradient(const float* output_gradient, const nn::LayerLayout& place, const ConvolvedMap& x, float* weight, float* bias,
                                       std::int64_t part_stride) const {
    const FlowTile tile = choose(place.out, x.depth(), plan_.parts);
    LaunchShape grid = product_shape(tile, place.out, x.depth(), Contiguous::row, Contiguous::row);
    const std::int64_t column_tiles = grid.blocks_y;
    const ParameterGradient to{weight,     bias, part_stride, place.depth(), static_cast<int>(place.out), x.depth(), static_cast<int>(column_tiles),
                               part_rows()};
    grid.blocks_y = grid.blocks_x;
    grid.blocks_x = column_tiles + (bias != nullptr ? ceil_div(place.out, kBiasesOfABlock) : 0);
    grid.blocks_z = plan_.parts;
    const auto go = [&](auto* kernel) {
      return launch(who_, stream_, grid, kernel, output_gradient, nn::padded(place.out), x.data, x.grid(grid_), to);
    };
    if (tile == FlowTile::large) return go(&subnet_weight_gradient_kernel<kArithmetic, Tuning, FlowTile::large>);
    return go(&subnet_weight_gradient_kernel<kArithmetic, Tuning, FlowTile::small>);
  }

  std::string_view who_;
  StreamRef stream_;
  std::span<const FlowBlock> blocks_;
  FlowGrid grid_;
  RowGrid rows_;
  MatrixView<const float> condition_;
  FlowPlan plan_;
  FlowPolicy policy_{};
  std::byte* memory_ = nullptr;
  ChannelPlaces split_;
};

}  // namespace detail

template <FlowArithmetic kArithmetic, class Tuning>
Status flow_forward(StreamRef stream, std::span<const FlowBlock> blocks, FlowGrid grid, MatrixView<const float> x, MatrixView<const float> condition,
                    MatrixView<float> z, float* logdet, float* position_logdet, std::span<std::byte> workspace) {
  constexpr std::string_view kWho = "cuda::flow_forward";
  using Queue = detail::FlowQueue<kArithmetic, Tuning>;
  NORMA_TRY(const Queue queue, Queue::create(kWho, stream, blocks, grid, FlowPass::forward, condition, workspace));
  NORMA_CHECK(detail::check_rows(kWho, "x", x, grid.rows(), queue.shape().channels));
  NORMA_CHECK(detail::check_rows(kWho, "z", z, grid.rows(), queue.shape().channels));
  if (grid.rows() == 0) return {};
  NORMA_CHECK(queue.clear(FlowPass::forward));

  const bool wants_logdet = logdet != nullptr || position_logdet != nullptr;
  float* const row_logdet = wants_logdet ? queue.at(queue.plan().row_logdet) : nullptr;
  const detail::FlowRows out{z.data, z.stride, {}};
  detail::ConstFlowRows current(x.data, x.stride, {});
  int buffer = 0;  // the one that `current` is not in
  const auto next = [&] { return queue.values(buffer); };
  const auto take = [&](const detail::FlowRows& rows) {
    current = rows;
    buffer = rows.data == queue.values(0).data ? 1 : 0;
  };
  const detail::FlowMix before = queue.mix_before_first();
  if (queue.is_glow() || !queue.split_is_plain()) {  // glow changes its first half in place, and x is the caller's
    const detail::FlowRows to = next();
    NORMA_CHECK(queue.mix(queue.mixing(current, to, before.source(), -1)));
    take(to);
    if (before.rotation != nullptr) {
      const detail::FlowRows rotated = next();
      NORMA_CHECK(queue.rotate(before.rotation, current, rotated));
      take(rotated);
    }
  }
  int groups = 0;
  for (int b = 0; b <= queue.last_block(); ++b) {
    const nn::CouplingShape& s = blocks[static_cast<std::size_t>(b)].shape;
    const detail::FlowMix after = queue.mix_after(b);
    const bool ends = b == queue.last_block();
    if (s.steps() == 2) {
      const detail::FlowRows in_place = queue.values(1 - buffer);  // `current`
      NORMA_CHECK(queue.hidden_layers(b, 0, current));
      NORMA_CHECK(queue.couple(b, 0, false, current, in_place, nullptr, false, false, row_logdet, groups));
    }
    const int step = s.steps() - 1;
    const detail::FlowRows to = ends && after.rotation == nullptr ? out : next();
    NORMA_CHECK(queue.hidden_layers(b, step, current));
    NORMA_CHECK(queue.couple(b, step, false, current, to, after.target(), true, true, row_logdet, groups));
    if (to.data == out.data) break;
    take(to);
    if (after.rotation != nullptr) {
      const bool into_z = ends && queue.split_is_plain();
      const detail::FlowRows rotated = into_z ? out : next();
      NORMA_CHECK(queue.rotate(after.rotation, current, rotated));
      if (into_z) break;
      take(rotated);
      if (ends) NORMA_CHECK(queue.mix(queue.mixing(current, out, nullptr, -1)));
    }
  }
  if (!wants_logdet) return {};
  return queue.sum_logdet(groups, logdet, position_logdet);
}

template <FlowArithmetic kArithmetic, class Tuning>
Status flow_inverse(StreamRef stream, std::span<const FlowBlock> blocks, FlowGrid grid, MatrixView<const float> z, MatrixView<const float> condition,
                    MatrixView<float> x, std::span<std::byte> workspace) {
  constexpr std::string_view kWho = "cuda::flow_inverse";
  using Queue = detail::FlowQueue<kArithmetic, Tuning>;
  NORMA_TRY(const Queue queue, Queue::create(kWho, stream, blocks, grid, FlowPass::inverse, condition, workspace));
  NORMA_CHECK(detail::check_rows(kWho, "z", z, grid.rows(), queue.shape().channels));
  NORMA_CHECK(detail::check_rows(kWho, "x", x, grid.rows(), queue.shape().channels));
  if (grid.rows() == 0) return {};
  NORMA_CHECK(queue.clear(FlowPass::inverse));

  detail::ConstFlowRows current(z.data, z.stride, {});
  int buffer = 0;
  // Undoes a mixing, and the global affine map of block `affine`, into one of the two buffers.
  const auto unmix = [&](const detail::FlowMix& mix, int affine) -> Status {
    if (mix.rotation != nullptr && !queue.split_is_plain() && current.places.gap == 0) {  // the product reads the split layout
      NORMA_CHECK(queue.mix(queue.mixing(current, queue.values(buffer), nullptr, -1)));
      current = queue.values(buffer);
      buffer = 1 - buffer;
    }
    const detail::FlowRows to = queue.values(buffer);
    if (mix.rotation != nullptr) {
      NORMA_CHECK(queue.rotate_back(mix.rotation, current, to));
      if (queue.shape().has_global_affine()) NORMA_CHECK(queue.mix(queue.mixing(to, to, nullptr, affine)));
    } else {
      NORMA_CHECK(queue.mix(queue.mixing(current, to, mix.target(), affine)));
    }
    current = to;
    buffer = 1 - buffer;
    return {};
  };
  int no_groups = 0;
  for (int b = queue.last_block(); b >= 0; --b) {
    NORMA_CHECK(unmix(queue.mix_after(b), b));
    const detail::FlowRows in_place = queue.values(1 - buffer);
    for (int step = blocks[static_cast<std::size_t>(b)].shape.steps() - 1; step >= 0; --step) {
      NORMA_CHECK(queue.hidden_layers(b, step, current));
      NORMA_CHECK(queue.couple(b, step, true, current, in_place, nullptr, false, false, nullptr, no_groups));
    }
  }
  const detail::FlowMix before = queue.mix_before_first();
  if (before.rotation != nullptr) {
    const detail::FlowRows to = queue.values(buffer);
    NORMA_CHECK(queue.rotate_back(before.rotation, current, to));
    current = to;
  }
  return queue.mix(queue.mixing(current, {x.data, x.stride, {}}, before.target(), -1));
}

template <FlowArithmetic kArithmetic, class Tuning>
Status flow_backward(StreamRef stream, std::span<const FlowBlock> blocks, FlowGrid grid, MatrixView<const float> z, MatrixView<const float> condition,
                     MatrixView<const float> dz, const float* dlogdet, std::span<float* const> gradients, MatrixView<float> dx,
                     MatrixView<float> dcondition, std::span<std::byte> workspace) {
  constexpr std::string_view kWho = "cuda::flow_backward";
  using Queue = detail::FlowQueue<kArithmetic, Tuning>;
  NORMA_TRY(const Queue queue, Queue::create(kWho, stream, blocks, grid, FlowPass::backward, condition, workspace));
  NORMA_CHECK(detail::check_rows(kWho, "z", z, grid.rows(), queue.shape().channels));
  NORMA_CHECK(detail::check_rows(kWho, "dz", dz, grid.rows(), queue.shape().channels));
  if (dx.data != nullptr) NORMA_CHECK(detail::check_rows(kWho, "dx", dx, grid.rows(), queue.shape().channels));
  if (dcondition.data != nullptr) NORMA_CHECK(detail::check_rows(kWho, "dcondition", dcondition, grid.rows(), condition.cols));
  if (gradients.size() != blocks.size()) {
    return {Errc::shape_mismatch, std::string(kWho) + ": expected the gradients of " + std::to_string(blocks.size()) + " blocks, found " +
                                      std::to_string(gradients.size())};
  }
  for (float* g : gradients) NORMA_CHECK(detail::check_aligned(kWho, "gradients", g, 16));
  if (grid.rows() == 0) {
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      NORMA_CHECK(
          detail::fill_async(kWho, gradients[b], 0, static_cast<std::size_t>(nn::parameter_layout(blocks[b].shape).total) * sizeof(float), stream));
    }
    return {};
  }
  NORMA_CHECK(queue.clear(FlowPass::backward));

  detail::ConstFlowRows values(z.data, z.stride, {}), slopes(dz.data, dz.stride, {});
  int buffer = 0;
  const auto take = [&] {
    values = queue.values(buffer);
    slopes = queue.gradients(buffer);
    buffer = 1 - buffer;
  };
  bool add_condition = false;
  for (int b = queue.last_block(); b >= 0; --b) {
    float* const of_block = gradients[static_cast<std::size_t>(b)];
    float* const partial = queue.partial(of_block);
    const detail::FlowMix after = queue.mix_after(b);
    if (after.rotation != nullptr) {
      if (!queue.split_is_plain() && values.places.gap == 0) {  // the product reads the split layout
        NORMA_CHECK(queue.mix(queue.mixing(values, queue.values(buffer), nullptr, -1)));
        NORMA_CHECK(queue.mix(queue.mixing(slopes, queue.gradients(buffer), nullptr, -1)));
        take();
      }
      NORMA_CHECK(queue.rotate_back(after.rotation, values, queue.values(buffer)));
      NORMA_CHECK(queue.rotate_back(after.rotation, slopes, queue.gradients(buffer)));
      take();
    }
    NORMA_CHECK(queue.mix_backward(b, queue.mixing(values, queue.values(buffer), after.target(), b), slopes.data, slopes.stride,
                                   queue.gradients(buffer).data, dlogdet, partial));
    take();
    const detail::FlowRows in_place = queue.values(1 - buffer), slopes_in_place = queue.gradients(1 - buffer);
    for (int step = blocks[static_cast<std::size_t>(b)].shape.steps() - 1; step >= 0; --step) {
      NORMA_CHECK(queue.hidden_layers(b, step, values));
      NORMA_CHECK(queue.couple_backward(b, step, in_place, slopes_in_place, dlogdet));
      NORMA_CHECK(queue.subnet_backward(b, step, in_place, slopes_in_place, partial, dcondition, add_condition));
      add_condition = add_condition || blocks[static_cast<std::size_t>(b)].shape.condition > 0;
    }
    NORMA_CHECK(queue.sum_parts(b, of_block));
  }
  if (dx.data == nullptr) return {};
  const detail::FlowMix before = queue.mix_before_first();
  if (before.rotation != nullptr) {
    NORMA_CHECK(queue.rotate_back(before.rotation, slopes, queue.gradients(buffer)));
    take();
  }
  return queue.mix(queue.mixing(slopes, {dx.data, dx.stride, {}}, before.target(), -1));
}

template <class Tuning>
Status latent_squares(StreamRef stream, MatrixView<const float> z, float* squares) {
  constexpr std::string_view kWho = "cuda::latent_squares";
  if (z.rows == 0) return {};
  if (z.data == nullptr || squares == nullptr) return {Errc::invalid_argument, std::string(kWho) + ": z or squares is null"};
  const detail::LaunchShape grid{detail::ceil_div(z.rows, detail::kSumThreads / simt::kWarp), 1, 1, detail::kSumThreads, 0};
  return detail::launch(kWho, stream, grid, &detail::latent_squares_kernel<Tuning>, z, squares);
}

template <class Tuning>
Status likelihood_gradient(StreamRef stream, MatrixView<const float> z, float weight, MatrixView<float> dz, float* dlogdet, std::int64_t batch) {
  constexpr std::string_view kWho = "cuda::likelihood_gradient";
  if (dz.rows != z.rows || dz.cols != z.cols || batch < 0 || (dlogdet != nullptr && batch > z.rows)) {
    return {Errc::shape_mismatch, std::string(kWho) + ": expected dz of " + std::to_string(z.rows) + " x " + std::to_string(z.cols) +
                                      " and a batch of at most as many, found " + std::to_string(dz.rows) + " x " + std::to_string(dz.cols) +
                                      " and " + std::to_string(batch)};
  }
  if (z.empty()) return {};
  if (z.data == nullptr || dz.data == nullptr) return {Errc::invalid_argument, std::string(kWho) + ": z or dz is null"};
  const detail::LaunchShape grid{detail::ceil_div(z.count(), detail::kSumThreads), 1, 1, detail::kSumThreads, 0};
  return detail::launch(kWho, stream, grid, &detail::likelihood_gradient_kernel<Tuning>, z, weight, dz, dlogdet, batch);
}

}  // namespace norma::cuda
