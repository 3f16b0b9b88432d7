/// \file
/// Flows of coupling blocks on the host: forward with log-determinants, inverse, and gradients from the output. nn/coupling_types.hpp has the blocks'
/// formulas and the layout of their parameters, which are the device's too (cuda/coupling.hpp): a trained flow moves between the two as bytes.
///
///     NORMA_TRY(auto flow, nn::Flow::create(blocks, {64, 64, 64}));              // allocates everything that it will ever own
///     Buffer<std::byte> memory(static_cast<std::int64_t>(flow.scratch_bytes(nn::FlowPass::forward, batch, pool.threads())));
///     Arena arena(memory.span());
///     NORMA_CHECK(flow.prepare(parameters, arena));                              // again after every step of an optimiser
///     NORMA_CHECK(flow.forward(x, {}, z, logdet, {}, pool.parallel(), arena));
///
/// Shapes:      x, z and their gradients [batch, height, width, C], condition [batch, height, width, condition], logdet [batch], position_logdet
///              [batch height width]; dense, channels last. Vectors are maps of 1 x 1
/// Memory:      calls allocate nothing. Images go through the flow in chunks of some 2048 positions, so scratch grows neither with the number of
///              blocks nor, beyond a chunk, with the batch
/// Accuracy:    subnets as nn/kernels/convolution.hpp has them (3x3 of 16 channels and more: Winograd, rms error about 1e-6 of a layer's output),
///              coupling as nn/kernels/coupling.hpp. Log-determinants: L summed over the channels of a position in float, over blocks and
///              positions in double
/// Determinism: bit-equal for any number of workers; z and log-determinants of an image do not depend on its batch
/// Not finite:  a NaN or infinity stays in its image
/// Source:      see nn/coupling_types.hpp; gradients from the output: Gomez et al., "The reversible residual network", NeurIPS 2017
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/arena.hpp>
#include <norma/core/parallel.hpp>
#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/core/view.hpp>
#include <norma/linalg/gemm.hpp>
#include <norma/nn/coupling_types.hpp>
#include <norma/nn/kernels/convolution.hpp>
#include <norma/nn/kernels/convolution_backward.hpp>
#include <norma/nn/kernels/coupling.hpp>
#include <norma/nn/kernels/elementwise.hpp>

namespace norma::nn {

/// A block and its fixed mixing: one of the two, as shape.mixing says. Read by `Flow::create` only.
struct FlowBlock {
  CouplingShape shape;
  std::span<const std::int64_t> permutation;  ///< [C]: out[i] = in[permutation[i]]
  std::span<const float> rotation;            ///< [C, C], row-major, orthogonal: out = R in
};

enum class FlowPass : std::uint8_t { prepare, forward, inverse, backward };

/// Whether a flow will also be asked for gradients: then it holds its weights twice.
enum class FlowUse : std::uint8_t { inference, training };

namespace detail {

/// Positions that go through a flow together: enough to read each block's weights for many products, few enough to stay in the caches.
inline constexpr std::int64_t kFlowChunk = 2048;
constexpr std::int64_t flow_chunk_images(Shape map, std::int64_t batch) noexcept {
  const std::int64_t positions = std::max<std::int64_t>(map.positions(), 1);
  return std::clamp<std::int64_t>((kFlowChunk + positions - 1) / positions, 1, std::max<std::int64_t>(batch, 1));
}

constexpr ConvolutionGeometry subnet_geometry(std::int64_t kernel) noexcept {
  const int side = static_cast<int>(kernel), pad = side / 2;
  return {side, side, 1, 1, pad, pad, pad, pad, 1};
}

/// What the blocks need most of; floats unless said otherwise.
struct FlowSizes {
  std::int64_t images = 1, rows = 0;  // of a chunk
  std::int64_t channels = 0, first = 0;
  std::int64_t condition = 0;
  std::int64_t joined = 0;  // channels of a subnet's input where there is a condition
  std::int64_t hidden[kMostSubnetLayers - 1] = {};
  std::int64_t most_hidden = 0, output = 0;
  std::int64_t weights = 0, most_out = 0;  // of a layer
  bool rotation = false;
  std::size_t forward_bytes = 0, backward_bytes = 0;  // of the kernels

  constexpr FlowSizes(Shape map, std::int64_t batch, int workers) noexcept : images(flow_chunk_images(map, batch)), workers_(workers), map_(map) {
    rows = images * map.positions();
  }
  constexpr void add(const CouplingShape& s) noexcept {
    channels = s.channels;
    first = s.first();
    condition = std::max(condition, s.condition);
    rotation = rotation || s.mixing == ChannelMixing::rotation;
    for (int step = 0; step < s.steps(); ++step) {
      if (s.condition > 0) joined = std::max(joined, s.passive(step) + s.condition);
      output = std::max(output, 2 * s.active(step));
      const SubnetShape subnet = s.subnet(step);
      for (int l = 0; l < subnet.count; ++l) {
        const SubnetLayer& layer = subnet.layers[l];
        const Shape in{map_.height, map_.width, layer.in};
        const ConvolutionGeometry g = subnet_geometry(layer.kernel);
        if (l + 1 < subnet.count) {
          hidden[l] = std::max(hidden[l], layer.out);
          most_hidden = std::max(most_hidden, layer.out);
        }
        weights = std::max(weights, layer.in * layer.out * layer.kernel * layer.kernel);
        most_out = std::max(most_out, layer.out);
        forward_bytes = std::max(forward_bytes, convolution_scratch_bytes(in, layer.out, g, workers_));
        backward_bytes = std::max({backward_bytes, convolution_input_gradient_scratch_bytes(in, layer.out, g, Direction::forward, workers_),
                                   convolution_weight_gradient_scratch_bytes(in, layer.out, g, Direction::forward),
                                   bias_gradient_scratch_bytes(layer.out)});
      }
    }
    backward_bytes = std::max({backward_bytes, forward_bytes, sums_scratch_bytes(std::max(s.first(), s.second()), 2)});
  }

  /// Two rows of all channels.
  [[nodiscard]] constexpr std::int64_t row_pair() const noexcept { return 2 * linalg::detail::round_up(channels, 16); }
  /// Layers that are brought into order at the same time: more would take memory rather than time.
  [[nodiscard]] constexpr std::int64_t prepare_lanes() const noexcept { return std::min(workers_, 8); }
  /// Memory for a lane's layer: half of what it has.
  [[nodiscard]] constexpr std::int64_t prepare_piece() const noexcept { return linalg::detail::round_up(weights, 16); }
  [[nodiscard]] constexpr std::size_t bytes(FlowPass pass) const noexcept {
    if (pass == FlowPass::prepare) return arena_bytes<float>(2 * prepare_piece() * prepare_lanes());
    const std::size_t halves = arena_bytes<float>(rows * first) + arena_bytes<float>(rows * (channels - first));
    std::size_t total = 2 * halves + arena_bytes<float>(rows * output) + arena_bytes<float>(rows * joined) + arena_bytes<double>(rows) +
                        arena_bytes<float>(row_pair() * workers_);
    for (const std::int64_t h : hidden) total += arena_bytes<float>(rows * h);
    if (rotation) total += 2 * arena_bytes<float>(rows * channels);
    if (pass != FlowPass::backward) return total + forward_bytes;
    return total + halves + 2 * arena_bytes<float>(rows * most_hidden) + arena_bytes<float>(rows * joined) + arena_bytes<float>(weights) +
           arena_bytes<float>(most_out) + backward_bytes;
  }

 private:
  int workers_;
  Shape map_;
};

}  // namespace detail

/// Scratch of one call. `map` is the flow's; more workers than the call's are fine.
constexpr std::size_t flow_scratch_bytes(std::span<const CouplingShape> blocks, Shape map, FlowPass pass, std::int64_t batch, int workers) noexcept {
  detail::FlowSizes sizes(map, batch, workers);
  for (const CouplingShape& shape : blocks) sizes.add(shape);
  return sizes.bytes(pass);
}

/// Blocks one after the other, all of one kind and one number of channels. Holds the weights in the order in which its products read them.
class Flow {
 public:
  Flow() noexcept = default;

  /// `map` is height, width and channels of what the flow will see. Allocates. Errors: invalid_argument, shape_mismatch, unsupported (see
  /// check_shape). `set` is for tests.
  static Result<Flow> create(std::span<const FlowBlock> blocks, Shape map, FlowUse use = FlowUse::inference, InstructionSet set = instruction_set()) {
    constexpr std::string_view who = "nn::Flow::create";
    if (blocks.empty()) return Status(Errc::invalid_argument, std::string(who) + ": expected at least one block, found none");
    if (map.height < 1 || map.width < 1) {
      return Status(Errc::invalid_argument,
                    std::string(who) + ": expected a map of at least 1 x 1, found " + std::to_string(map.height) + " x " + std::to_string(map.width));
    }
    Flow flow;
    flow.map_ = map;
    flow.use_ = use;
    flow.set_ = set;
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      const CouplingShape& s = blocks[b].shape;
      const std::string name = std::string(who) + ": block " + std::to_string(b);
      NORMA_CHECK(check_shape(name, s));
      if (s.channels != map.channels || s.kind != blocks[0].shape.kind) {
        return Status(Errc::shape_mismatch, name + ": expected the first block's kind and the map's " + std::to_string(map.channels) +
                                                " channels, found " + std::to_string(s.channels));
      }
      if (s.condition != 0 && flow.condition_ != 0 && s.condition != flow.condition_) {
        return Status(Errc::shape_mismatch, name + ": expected a condition of 0 or, like the blocks before, " + std::to_string(flow.condition_) +
                                                " channels, found " + std::to_string(s.condition));
      }
      flow.condition_ = std::max(flow.condition_, s.condition);
      NORMA_TRY(Block block, make_block(name, blocks[b], map, use, set));
      block.offset = flow.parameters_;
      flow.parameters_ += block.layout.total;
      flow.blocks_.push_back(std::move(block));
    }
    return flow;
  }

  [[nodiscard]] Shape map() const noexcept { return map_; }
  [[nodiscard]] std::int64_t condition() const noexcept { return condition_; }
  [[nodiscard]] std::int64_t blocks() const noexcept { return static_cast<std::int64_t>(blocks_.size()); }
  [[nodiscard]] const CouplingShape& shape(std::int64_t block) const noexcept { return blocks_[static_cast<std::size_t>(block)].shape; }
  /// Floats of all blocks' parameters, fillers included: the blocks' parameter_layout(shape).total, one behind the other.
  [[nodiscard]] std::int64_t parameters() const noexcept { return parameters_; }
  /// Where a block's parameters begin.
  [[nodiscard]] std::int64_t parameter_offset(std::int64_t block) const noexcept { return blocks_[static_cast<std::size_t>(block)].offset; }
  /// Memory of the packed weights.
  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t total = 0;
    for (const Block& block : blocks_) {
      for (const auto& subnet : block.layers) {
        for (const Layer& layer : subnet) {
          total += layer.forward.bytes() + layer.gradient.bytes() + static_cast<std::size_t>(layer.bias.size()) * sizeof(float);
        }
      }
      total += block.rotation.bytes() + block.rotation_back.bytes() + block.permutation.size() * sizeof(std::int32_t);
    }
    return total;
  }
  [[nodiscard]] std::size_t scratch_bytes(FlowPass pass, std::int64_t batch, int workers) const noexcept { return sizes(batch, workers).bytes(pass); }

  /// Brings all weights into the products' order; to be called before anything else and after every change of the parameters. Allocates nothing.
  /// Errors: shape_mismatch, out_of_memory (arena).
  Status prepare(std::span<const float> parameters, Parallel parallel, Arena& arena) {
    constexpr std::string_view who = "nn::Flow::prepare";
    NORMA_CHECK(check_parameters(who, parameters.size(), "parameters"));
    NORMA_CHECK(check_arena(who, FlowPass::prepare, 1, parallel.workers(), arena));
    const Arena::Scope scope(arena);
    const detail::FlowSizes most = sizes(1, parallel.workers());
    const std::int64_t piece = most.prepare_piece(), lanes = most.prepare_lanes();
    float* memory = arena.take<float>(2 * piece * lanes);
    const auto own = [&](const Block& block) {
      return parameters.subspan(static_cast<std::size_t>(block.offset), static_cast<std::size_t>(block.layout.total));
    };
    const std::int64_t layers = blocks_.empty() ? 0 : std::int64_t{kMostSubnetLayers} * blocks_[0].shape.steps();
    const auto bring = [&](std::int64_t task, float* weights) {
      Block& block = blocks_[static_cast<std::size_t>(task / layers)];
      const auto step = static_cast<std::size_t>(task % layers / kMostSubnetLayers), l = static_cast<std::size_t>(task % kMostSubnetLayers);
      if (l >= block.layers[step].size()) return;
      Layer& layer = block.layers[step][l];
      const auto& at = block.layout.layers[step][l];
      const std::int64_t fan_in = layer.shape.in * at.taps;
      const std::span<float> ordered(weights, static_cast<std::size_t>(layer.shape.out * fan_in));
      const Status unpacked = unpack_layer(at, own(block), LibraryLayer<float>{ordered, layer.bias.span()});
      NORMA_EXPECTS(unpacked.ok());  // the sizes are the flow's own
      layer.forward.repack({weights, layer.shape.out * fan_in, fan_in, at.taps, 1}, weights + piece);
      if (use_ == FlowUse::training) layer.gradient.repack(ordered, weights + piece);
    };
    parallel.run(lanes, [&](std::int64_t lane, int) {
      for (std::int64_t task = lane; task < static_cast<std::int64_t>(blocks_.size()) * layers; task += lanes) bring(task, memory + 2 * piece * lane);
    });
    for (Block& block : blocks_) {
      block.log_scale = 0.0;
      for (std::int64_t c = 0; c < block.scale.size(); ++c) {
        const auto g = global_scale(static_cast<double>(own(block)[static_cast<std::size_t>(block.layout.global_scale + c)]));
        block.scale[c] = static_cast<float>(g.value);
        block.inverse_scale[c] = static_cast<float>(1.0 / g.value);
        block.scale_slope[c] = static_cast<float>(g.slope);
        block.log_scale += std::log(g.value);
        block.offsets[c] = own(block)[static_cast<std::size_t>(block.layout.global_offset + c)];
      }
    }
    prepared_ = true;
    return {};
  }
  Status prepare(std::span<const float> parameters, Arena& arena) { return prepare(parameters, Parallel{}, arena); }

  /// z = the blocks, in order, of x; z may be x. `logdet` [batch] or empty; `position_logdet` [batch height width] or empty: each position's share,
  /// global scales included. `condition` is empty where no block has one. Errors: not_fitted (before prepare), shape_mismatch, out_of_memory (arena).
  Status forward(TensorView<const float> x, TensorView<const float> condition, TensorView<float> z, std::span<float> logdet,
                 std::span<float> position_logdet, Parallel parallel, Arena& arena) const {
    constexpr std::string_view who = "nn::Flow::forward";
    NORMA_CHECK(check_call(who, FlowPass::forward, x, condition, parallel, arena));
    NORMA_CHECK(check_same(who, "z", x.batch, z));
    NORMA_CHECK(check_size(who, "logdet", x.batch, logdet.size()));
    NORMA_CHECK(check_size(who, "position_logdet", x.batch * map_.positions(), position_logdet.size()));
    const Arena::Scope scope(arena);
    Work work = take_work(FlowPass::forward, x.batch, parallel, arena);
    for (std::int64_t image = 0; image < x.batch; image += work.most_images) {
      enter(work, image, x.batch, condition);
      split(x.image(image).data, work.now, work);
      std::fill_n(work.row_logdet, work.rows, 0.0);
      double log_scale = 0.0;
      for (const Block& block : blocks_) {
        forward_block(block, work);
        log_scale += block.log_scale;
      }
      join(work.now, z.image(image).data, work);
      const std::int64_t positions = map_.positions();
      for (std::int64_t n = 0; n < work.images; ++n) {
        double sum = 0.0;
        for (std::int64_t p = 0; p < positions; ++p) {
          const double share = work.row_logdet[n * positions + p];
          sum += share;
          if (position_logdet.empty()) continue;
          position_logdet[static_cast<std::size_t>((image + n) * positions + p)] = static_cast<float>(share + log_scale);
        }
        if (!logdet.empty()) logdet[static_cast<std::size_t>(image + n)] = static_cast<float>(sum + static_cast<double>(positions) * log_scale);
      }
    }
    return {};
  }

  /// x with forward(x) = z, up to rounding; x may be z. Errors as `forward`.
  Status inverse(TensorView<const float> z, TensorView<const float> condition, TensorView<float> x, Parallel parallel, Arena& arena) const {
    constexpr std::string_view who = "nn::Flow::inverse";
    NORMA_CHECK(check_call(who, FlowPass::inverse, z, condition, parallel, arena));
    NORMA_CHECK(check_same(who, "x", z.batch, x));
    const Arena::Scope scope(arena);
    Work work = take_work(FlowPass::inverse, z.batch, parallel, arena);
    for (std::int64_t image = 0; image < z.batch; image += work.most_images) {
      enter(work, image, z.batch, condition);
      split(z.image(image).data, work.now, work);
      for (std::size_t b = blocks_.size(); b-- > 0;) inverse_block(blocks_[b], work);
      join(work.now, x.image(image).data, work);
    }
    return {};
  }

  /// Gradients from the flow's *output*: what the forward pass went through is computed again on the way back. `gradients` [parameters()] receives
  /// dL/dparameters (overwritten; fillers get 0); `dx` and `dcondition` are overwritten too and may be empty; dx may be dz or z. `dlogdet` [batch] is
  /// dL/dlogdet, empty: 0. Errors as `forward`; unsupported for a flow of FlowUse::inference.
  Status backward(TensorView<const float> z, TensorView<const float> condition, TensorView<const float> dz, std::span<const float> dlogdet,
                  std::span<float> gradients, TensorView<float> dx, TensorView<float> dcondition, Parallel parallel, Arena& arena) const {
    constexpr std::string_view who = "nn::Flow::backward";
    if (use_ != FlowUse::training) {
      return {Errc::unsupported, std::string(who) + ": expected a flow created with FlowUse::training, found FlowUse::inference"};
    }
    NORMA_CHECK(check_call(who, FlowPass::backward, z, condition, parallel, arena));
    NORMA_CHECK(check_same(who, "dz", z.batch, dz));
    NORMA_CHECK(check_size(who, "dlogdet", z.batch, dlogdet.size()));
    NORMA_CHECK(check_parameters(who, gradients.size(), "gradients"));
    if (dx.data != nullptr) NORMA_CHECK(check_same(who, "dx", z.batch, dx));
    if (dcondition.data != nullptr) NORMA_CHECK(check_tensor(who, "dcondition", z.batch, condition_, dcondition));
    std::fill(gradients.begin(), gradients.end(), 0.0f);
    if (dcondition.data != nullptr) std::fill_n(dcondition.data, dcondition.count(), 0.0f);

    const Arena::Scope scope(arena);
    Work work = take_work(FlowPass::backward, z.batch, parallel, arena);
    for (std::int64_t image = 0; image < z.batch; image += work.most_images) {
      enter(work, image, z.batch, condition);
      work.dlogdet = dlogdet.empty() ? nullptr : dlogdet.data() + image;
      work.dcondition = dcondition.data == nullptr ? nullptr : dcondition.image(image).data;
      split(z.image(image).data, work.now, work);
      split(dz.image(image).data, work.gradient, work);
      for (std::size_t b = blocks_.size(); b-- > 0;) backward_block(blocks_[b], work, gradients.data() + blocks_[b].offset);
      if (dx.data != nullptr) join(work.gradient, dx.image(image).data, work);
    }
    double total = 0.0;
    for (const float d : dlogdet) total += static_cast<double>(d);
    for (const Block& block : blocks_) {
      for (std::int64_t c = 0; c < block.scale.size(); ++c) {  // of n log g
        gradients[static_cast<std::size_t>(block.offset + block.layout.global_scale + c)] +=
            static_cast<float>(static_cast<double>(map_.positions()) * total * static_cast<double>(block.scale_slope[c]) /
                               static_cast<double>(block.scale[c]));
      }
    }
    return {};
  }

 private:
  struct Layer {
    SubnetLayer shape;
    PackedConvolution forward;
    PackedInputGradient gradient;  // training only
    Buffer<float> bias;            // s0, s1, ..., t0, t1, ... in a last layer
  };
  struct Block {
    CouplingShape shape;
    decltype(parameter_layout(CouplingShape{})) layout;
    std::int64_t offset = 0;
    std::vector<Layer> layers[2];
    std::vector<std::int32_t> permutation;  // [permutation, its inverse]
    linalg::PackedMatrix rotation, rotation_back;
    Buffer<float> scale, inverse_scale, scale_slope, offsets;  // g, 1 / g, dg / dG, o; empty without global affine
    double log_scale = 0.0;                                    // sum log g
  };

  static Result<Block> make_block(const std::string& name, const FlowBlock& given, Shape map, FlowUse use, InstructionSet set) {
    Block block;
    const CouplingShape& s = block.shape = given.shape;
    block.layout = parameter_layout(s);
    for (int step = 0; step < s.steps(); ++step) {
      const SubnetShape subnet = s.subnet(step);
      for (int l = 0; l < subnet.count; ++l) {
        const SubnetLayer& layer = subnet.layers[l];
        const Shape in{map.height, map.width, layer.in};
        const ConvolutionGeometry g = detail::subnet_geometry(layer.kernel);
        block.layers[step].push_back(
            {layer, PackedConvolution::shaped(in, layer.out, g, set),
             use == FlowUse::training ? PackedInputGradient::shaped(in, layer.out, g, Direction::forward, set) : PackedInputGradient(),
             Buffer<float>(layer.out)});
      }
    }
    const auto channels = static_cast<std::size_t>(s.channels);
    if (s.mixing == ChannelMixing::permutation) {
      if (given.permutation.size() != channels) {
        return Status(Errc::shape_mismatch, name + ": expected a permutation of " + std::to_string(channels) + " channels, found " +
                                                std::to_string(given.permutation.size()));
      }
      NORMA_TRY(block.permutation, pack_permutation(given.permutation));
    } else {
      if (given.rotation.size() != channels * channels) {
        return Status(Errc::shape_mismatch, name + ": expected a rotation of " + std::to_string(channels) + " x " + std::to_string(channels) +
                                                " numbers, found " + std::to_string(given.rotation.size()));
      }
      const MatrixView<const float> rotation(given.rotation.data(), s.channels, s.channels);
      block.rotation = linalg::PackedMatrix::pack(rotation, set);
      block.rotation_back = linalg::PackedMatrix::pack_transposed(rotation, set);
    }
    if (s.has_global_affine()) block.scale = block.inverse_scale = block.scale_slope = block.offsets = Buffer<float>(s.channels);
    return block;
  }

  /// The first and the second half of every row, each dense.
  struct Halves {
    float* part[2] = {};
  };
  enum class Way : std::uint8_t { forward, back };

  /// Memory of a call and where it stands.
  struct Work {
    Parallel parallel;
    Arena* arena;
    std::int64_t most_images = 1, images = 0, rows = 0;
    std::int64_t width[2] = {};
    Halves now, next, gradient;
    float* hidden[kMostSubnetLayers - 1] = {};
    float* output = nullptr;
    float* joined = nullptr;
    double* row_logdet = nullptr;
    float* row_pair = nullptr;
    std::int64_t row_pair_size = 0;
    float* rotated[2] = {};
    float* hidden_gradient[2] = {};
    float* joined_gradient = nullptr;
    float* weight_gradient = nullptr;
    float* bias_gradient = nullptr;
    const float* condition = nullptr;
    const float* dlogdet = nullptr;
    float* dcondition = nullptr;
  };

  [[nodiscard]] detail::FlowSizes sizes(std::int64_t batch, int workers) const noexcept {
    detail::FlowSizes sizes(map_, batch, workers);
    for (const Block& block : blocks_) sizes.add(block.shape);
    return sizes;
  }

  [[nodiscard]] Work take_work(FlowPass pass, std::int64_t batch, Parallel parallel, Arena& arena) const noexcept {
    const detail::FlowSizes size = sizes(batch, parallel.workers());
    Work work;
    work.parallel = parallel;
    work.arena = &arena;
    work.most_images = size.images;
    work.width[0] = size.first;
    work.width[1] = size.channels - size.first;
    const auto take_halves = [&](Halves& halves) {
      for (int i = 0; i < 2; ++i) halves.part[i] = arena.take<float>(size.rows * work.width[i]);
    };
    take_halves(work.now);
    take_halves(work.next);
    for (int l = 0; l < kMostSubnetLayers - 1; ++l) work.hidden[l] = arena.take<float>(size.rows * size.hidden[l]);
    work.output = arena.take<float>(size.rows * size.output);
    work.joined = arena.take<float>(size.rows * size.joined);
    work.row_logdet = arena.take<double>(size.rows);
    work.row_pair_size = size.row_pair();
    work.row_pair = arena.take<float>(work.row_pair_size * parallel.workers());
    if (size.rotation) {
      for (float*& rows : work.rotated) rows = arena.take<float>(size.rows * size.channels);
    }
    if (pass == FlowPass::backward) {
      take_halves(work.gradient);
      for (float*& rows : work.hidden_gradient) rows = arena.take<float>(size.rows * size.most_hidden);
      work.joined_gradient = arena.take<float>(size.rows * size.joined);
      work.weight_gradient = arena.take<float>(size.weights);
      work.bias_gradient = arena.take<float>(size.most_out);
    }
    return work;
  }

  void enter(Work& work, std::int64_t image, std::int64_t batch, TensorView<const float> condition) const noexcept {
    work.images = std::min(work.most_images, batch - image);
    work.rows = work.images * map_.positions();
    work.condition = condition_ > 0 ? condition.image(image).data : nullptr;
  }

  static void copy(const float* from, float* to, std::int64_t count) noexcept {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
  }
  static constexpr std::int64_t kRowsOfTask = 64;

  void split(const float* from, const Halves& to, const Work& work) const {
    const std::int64_t first = work.width[0], second = work.width[1], channels = first + second;
    work.parallel.run_ranges(work.rows, kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        copy(from + r * channels, to.part[0] + r * first, first);
        copy(from + r * channels + first, to.part[1] + r * second, second);
      }
    });
  }
  void join(const Halves& from, float* to, const Work& work) const {
    const std::int64_t first = work.width[0], second = work.width[1], channels = first + second;
    work.parallel.run_ranges(work.rows, kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        copy(from.part[0] + r * first, to + r * channels, first);
        copy(from.part[1] + r * second, to + r * channels + first, second);
      }
    });
  }

  /// to = P from, or P^-1 from. before(row, values) may change a row's channels on the way in, after(row, values) on the way out.
  template <class Before, class After>
  void mix(const Block& block, Way way, const Halves& from, const Halves& to, const Work& work, Before&& before, After&& after) const {
    const std::int64_t first = work.width[0], second = work.width[1], channels = first + second;
    if (block.shape.mixing == ChannelMixing::permutation) {
      const std::int32_t* index = block.permutation.data() + (way == Way::forward ? 0 : channels);
      work.parallel.run_ranges(work.rows, kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int worker) {
        float* in = work.row_pair + worker * work.row_pair_size;
        float* out = in + work.row_pair_size / 2;
        for (std::int64_t r = begin; r < end; ++r) {
          copy(from.part[0] + r * first, in, first);
          copy(from.part[1] + r * second, in + first, second);
          before(r, in);
          for (std::int64_t c = 0; c < channels; ++c) out[c] = in[index[c]];
          after(r, out);
          copy(out, to.part[0] + r * first, first);
          copy(out + first, to.part[1] + r * second, second);
        }
      });
      return;
    }
    float* in = work.rotated[0];
    float* out = work.rotated[1];
    work.parallel.run_ranges(work.rows, kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        copy(from.part[0] + r * first, in + r * channels, first);
        copy(from.part[1] + r * second, in + r * channels + first, second);
        before(r, in + r * channels);
      }
    });
    linalg::gemm({in, work.rows, channels}, way == Way::forward ? block.rotation : block.rotation_back, {out, work.rows, channels}, {}, work.parallel,
                 *work.arena);
    work.parallel.run_ranges(work.rows, kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t r = begin; r < end; ++r) {
        after(r, out + r * channels);
        copy(out + r * channels, to.part[0] + r * first, first);
        copy(out + r * channels + first, to.part[1] + r * second, second);
      }
    });
  }
  static void nothing(std::int64_t, float*) noexcept {}

  [[nodiscard]] TensorView<float> tensor(float* data, std::int64_t channels, const Work& work) const noexcept {
    return {data, work.images, map_.height, map_.width, channels};
  }
  [[nodiscard]] TensorView<const float> tensor(const float* data, std::int64_t channels, const Work& work) const noexcept {
    return {data, work.images, map_.height, map_.width, channels};
  }

  /// What a step's subnet reads: the passive half, with the condition behind it where there is one (after run_subnet).
  [[nodiscard]] const float* subnet_input(const Block& block, int step, const Work& work) const noexcept {
    return block.shape.condition > 0 ? work.joined : work.now.part[block.shape.changes_first(step) ? 1 : 0];
  }
  /// [s, t] of every position into work.output, hidden activations into work.hidden.
  void run_subnet(const Block& block, int step, const Work& work) const {
    const CouplingShape& s = block.shape;
    if (s.condition > 0) {
      const float* passive = work.now.part[s.changes_first(step) ? 1 : 0];
      const std::int64_t own = s.passive(step), more = s.condition;
      work.parallel.run_ranges(work.rows, kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t r = begin; r < end; ++r) {
          copy(passive + r * own, work.joined + r * (own + more), own);
          copy(work.condition + r * more, work.joined + r * (own + more) + own, more);
        }
      });
    }
    const float* in = subnet_input(block, step, work);
    const auto& layers = block.layers[step];
    for (std::size_t l = 0; l < layers.size(); ++l) {
      const Layer& layer = layers[l];
      float* out = l + 1 == layers.size() ? work.output : work.hidden[l];
      convolution(tensor(in, layer.shape.in, work), layer.forward, tensor(out, layer.shape.out, work), layer.bias.data(), {}, layer.shape.activation,
                  work.parallel, *work.arena);
      in = out;
    }
  }

  [[nodiscard]] detail::CouplingRow coupling_row(const Block& block, int step, std::int64_t row, const Work& work) const noexcept {
    const std::int64_t count = block.shape.active(step);
    const float* s = work.output + row * 2 * count;
    return {s, s + count, count, block.shape.alpha, block.shape.gain()};
  }

  void forward_block(const Block& block, Work& work) const {
    const auto couple = detail::coupling_kernels(set_).couple[static_cast<std::size_t>(block.shape.clamp)];
    if (block.shape.has_global_affine()) {
      const auto& elementwise = detail::elementwise_kernels(set_);
      run_subnet(block, 0, work);
      mix(
          block, Way::forward, work.now, work.next, work,
          [&](std::int64_t r, float* row) {
            float* active = row + work.width[0];
            work.row_logdet[r] += static_cast<double>(couple(coupling_row(block, 0, r, work), active, active));
            elementwise.scale(row, block.scale.data(), block.offsets.data(), row, block.shape.channels, Activation::none);
          },
          nothing);
      std::swap(work.now, work.next);
      return;
    }
    mix(block, Way::forward, work.now, work.next, work, nothing, nothing);
    std::swap(work.now, work.next);
    for (int step = 0; step < block.shape.steps(); ++step) {
      run_subnet(block, step, work);
      const std::int64_t count = block.shape.active(step);
      float* active = work.now.part[block.shape.changes_first(step) ? 0 : 1];
      work.parallel.run_ranges(work.rows, kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t r = begin; r < end; ++r) {
          work.row_logdet[r] += static_cast<double>(couple(coupling_row(block, step, r, work), active + r * count, active + r * count));
        }
      });
    }
  }

  /// Undoes the mixing and the global affine map of an all-in-one block.
  void undo_affine(const Block& block, Work& work) const {
    const auto& elementwise = detail::elementwise_kernels(set_);
    mix(block, Way::back, work.now, work.next, work, nothing, [&](std::int64_t, float* row) {
      elementwise.normalise_positions(row, 1, block.shape.channels, block.shape.channels, block.offsets.data(), block.inverse_scale.data(), row);
    });
    std::swap(work.now, work.next);
  }

  void inverse_block(const Block& block, Work& work) const {
    const auto uncouple = detail::coupling_kernels(set_).uncouple[static_cast<std::size_t>(block.shape.clamp)];
    if (block.shape.has_global_affine()) undo_affine(block, work);
    for (int step = block.shape.steps() - 1; step >= 0; --step) {
      run_subnet(block, step, work);
      const std::int64_t count = block.shape.active(step);
      float* active = work.now.part[block.shape.changes_first(step) ? 0 : 1];
      work.parallel.run_ranges(work.rows, kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t r = begin; r < end; ++r) uncouple(coupling_row(block, step, r, work), active + r * count, active + r * count);
      });
    }
    if (block.shape.kind == BlockKind::glow) {
      mix(block, Way::back, work.now, work.next, work, nothing, nothing);
      std::swap(work.now, work.next);
    }
  }

  void backward_block(const Block& block, Work& work, float* gradients) const {
    const CouplingShape& s = block.shape;
    if (s.has_global_affine()) {
      undo_affine(block, work);
      mix(block, Way::back, work.gradient, work.next, work, nothing, nothing);
      std::swap(work.gradient, work.next);
      affine_gradient(block, work, gradients);
    }
    const auto uncouple = detail::coupling_kernels(set_).uncouple_gradient[static_cast<std::size_t>(s.clamp)];
    const std::int64_t positions = map_.positions();
    for (int step = s.steps() - 1; step >= 0; --step) {
      run_subnet(block, step, work);
      const std::int64_t count = s.active(step);
      const int half = s.changes_first(step) ? 0 : 1;
      float* active = work.now.part[half];
      float* gradient = work.gradient.part[half];
      work.parallel.run_ranges(work.rows, kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t r = begin; r < end; ++r) {
          float* row = work.output + r * 2 * count;
          uncouple(coupling_row(block, step, r, work), active + r * count, gradient + r * count,
                   work.dlogdet == nullptr ? 0.0f : work.dlogdet[r / positions], row, row + count);
        }
      });
      subnet_gradient(block, step, work, gradients);
    }
    if (s.kind == BlockKind::glow) {
      mix(block, Way::back, work.now, work.next, work, nothing, nothing);
      std::swap(work.now, work.next);
      mix(block, Way::back, work.gradient, work.next, work, nothing, nothing);
      std::swap(work.gradient, work.next);
    }
  }

  /// From v (work.now) and dL/d(v g + o) (work.gradient): adds to the gradients of G and o; work.gradient becomes dL/dv.
  void affine_gradient(const Block& block, Work& work, float* gradients) const {
    const auto& elementwise = detail::elementwise_kernels(set_);
    const auto& kernels = detail::backward_kernels(set_);
    std::int64_t channel = 0;
    for (int half = 0; half < 2; ++half) {
      const std::int64_t count = work.width[half];
      const float* v = work.now.part[half];
      float* d = work.gradient.part[half];
      detail::sum_over_positions(
          work.rows, count, 2, work.parallel, *work.arena,
          [&](std::int64_t first, std::int64_t rows, float* sums) {
            kernels.sum_gradients(d + first * count, v + first * count, rows, count, count, count, nullptr, sums, sums + count);
          },
          [&](std::int64_t c, int quantity, double sum) {
            if (quantity == 0) {
              gradients[block.layout.global_offset + channel + c] += static_cast<float>(sum);
            } else {
              gradients[block.layout.global_scale + channel + c] +=
                  static_cast<float>(sum * static_cast<double>(block.scale_slope[channel + c]));
            }
          });
      work.parallel.run_ranges(work.rows, kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t r = begin; r < end; ++r)
          elementwise.scale(d + r * count, block.scale.data() + channel, nullptr, d + r * count, count, Activation::none);
      });
      channel += count;
    }
  }

  /// From dL/d[s, t] in work.output: adds to the gradients of the subnet's parameters, of the passive half and of the condition.
  void subnet_gradient(const Block& block, int step, Work& work, float* gradients) const {
    const CouplingShape& s = block.shape;
    const auto& layers = block.layers[step];
    float* passive = work.gradient.part[s.changes_first(step) ? 1 : 0];
    float* dy = work.output;
    for (std::size_t l = layers.size(); l-- > 0;) {
      const Layer& layer = layers[l];
      const float* in = l == 0 ? subnet_input(block, step, work) : work.hidden[l - 1];
      const ConvolutionGeometry g = detail::subnet_geometry(layer.shape.kernel);
      const TensorView<const float> x = tensor(in, layer.shape.in, work), d = tensor(dy, layer.shape.out, work);
      const std::int64_t count = layer.shape.in * layer.shape.out * layer.shape.kernel * layer.shape.kernel;
      std::fill_n(work.weight_gradient, count, 0.0f);
      std::fill_n(work.bias_gradient, layer.shape.out, 0.0f);
      convolution_weight_gradient(x, d, g, Direction::forward, {work.weight_gradient, static_cast<std::size_t>(count)}, work.parallel, *work.arena,
                                  set_);
      nn::bias_gradient(d, {work.bias_gradient, static_cast<std::size_t>(layer.shape.out)}, work.parallel, *work.arena, set_);
      add_gradient(block.layout.layers[step][l], work, gradients);
      if (l > 0) {
        float* dx = work.hidden_gradient[l % 2];
        convolution_input_gradient(d, layer.gradient, tensor(dx, layer.shape.in, work), Accumulate::no, work.parallel, *work.arena);
        const auto& kernels = detail::backward_kernels(set_);
        work.parallel.run_ranges(work.rows * layer.shape.in, detail::kElementwiseGrain, [&](std::int64_t first, std::int64_t last, int) {
          kernels.activation_gradient(dx + first, in + first, dx + first, last - first, Activation::relu, false);
        });
        dy = dx;
      } else if (s.condition == 0) {
        convolution_input_gradient(d, layer.gradient, tensor(passive, layer.shape.in, work), Accumulate::yes, work.parallel, *work.arena);
      } else {
        convolution_input_gradient(d, layer.gradient, tensor(work.joined_gradient, layer.shape.in, work), Accumulate::no, work.parallel, *work.arena);
        const auto& kernels = detail::backward_kernels(set_);
        const std::int64_t own = s.passive(step), more = s.condition;
        work.parallel.run_ranges(work.rows, kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
          for (std::int64_t r = begin; r < end; ++r) {
            const float* from = work.joined_gradient + r * (own + more);
            kernels.add_scaled(from, 1.0f, passive + r * own, own);
            if (work.dcondition != nullptr) kernels.add_scaled(from + own, 1.0f, work.dcondition + r * more, more);
          }
        });
      }
    }
  }

  /// Adds a layer's gradients, in a library's order, to their places.
  template <class LayoutT>
  static void add_gradient(const LayoutT& at, const Work& work, float* gradients) {
    const std::int64_t in = at.x + at.condition;
    work.parallel.run_ranges(at.out, 8, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t o = begin; o < end; ++o) {
        gradients[at.bias + at.row(o)] += work.bias_gradient[o];
        const float* from = work.weight_gradient + o * in * at.taps;
        for (std::int64_t tap = 0; tap < at.taps; ++tap) {
          float* own = gradients + at.at(o, 0, tap);
          for (std::int64_t i = 0; i < at.x; ++i) own[i] += from[i * at.taps + tap];
          if (at.condition == 0) continue;
          float* more = gradients + at.at(o, at.x, tap);
          for (std::int64_t i = 0; i < at.condition; ++i) more[i] += from[(at.x + i) * at.taps + tap];
        }
      }
    });
  }

  // -- Checks --------------------------------------------------------------------------------------------------------------------------------------

  template <class T>
  Status check_tensor(std::string_view who, std::string_view name, std::int64_t batch, std::int64_t channels, const TensorView<T>& t) const {
    if (t.batch == batch && t.height == map_.height && t.width == map_.width && t.channels == channels && (t.data != nullptr || t.empty())) return {};
    const auto text = [](std::int64_t n, std::int64_t h, std::int64_t w, std::int64_t c) {
      std::string shape("[");
      shape.append(std::to_string(n)).append(", ").append(std::to_string(h)).append(", ").append(std::to_string(w));
      return shape.append(", ").append(std::to_string(c)).append("]");
    };
    return {Errc::shape_mismatch, std::string(who) + ": " + std::string(name) + ": expected " + text(batch, map_.height, map_.width, channels) +
                                      ", found " + text(t.batch, t.height, t.width, t.channels) + (t.data == nullptr ? " without memory" : "")};
  }
  template <class T>
  Status check_same(std::string_view who, std::string_view name, std::int64_t batch, const TensorView<T>& t) const {
    return check_tensor(who, name, batch, map_.channels, t);
  }
  static Status check_size(std::string_view who, std::string_view name, std::int64_t expected, std::size_t found) {
    if (found == 0 || found == static_cast<std::size_t>(expected)) return {};
    return {Errc::shape_mismatch, std::string(who) + ": " + std::string(name) + ": expected " + std::to_string(expected) +
                                      " numbers or none, found " + std::to_string(found)};
  }
  Status check_parameters(std::string_view who, std::size_t found, std::string_view name) const {
    if (found == static_cast<std::size_t>(parameters_)) return {};
    return {Errc::shape_mismatch, std::string(who) + ": " + std::string(name) + ": expected " + std::to_string(parameters_) + " numbers, found " +
                                      std::to_string(found)};
  }
  Status check_arena(std::string_view who, FlowPass pass, std::int64_t batch, int workers, const Arena& arena) const {
    const std::size_t needed = scratch_bytes(pass, batch, workers);
    if (arena.remaining() >= needed) return {};
    return {Errc::out_of_memory, std::string(who) + ": expected scratch of " + std::to_string(needed) + " bytes, found " +
                                     std::to_string(arena.remaining())};
  }
  Status check_call(std::string_view who, FlowPass pass, TensorView<const float> x, TensorView<const float> condition, Parallel parallel,
                    const Arena& arena) const {
    if (!prepared_) return {Errc::not_fitted, std::string(who) + ": expected a call of prepare before, found none"};
    NORMA_CHECK(check_same(who, pass == FlowPass::forward ? "x" : "z", x.batch, x));
    if (condition_ > 0) {
      NORMA_CHECK(check_tensor(who, "condition", x.batch, condition_, condition));
    } else if (condition.data != nullptr) {
      return {Errc::shape_mismatch, std::string(who) + ": condition: expected none, found " + std::to_string(condition.channels) + " channels"};
    }
    return check_arena(who, pass, x.batch, parallel.workers(), arena);
  }

  Shape map_;
  FlowUse use_ = FlowUse::inference;
  InstructionSet set_ = InstructionSet::generic;
  std::int64_t condition_ = 0, parameters_ = 0;
  std::vector<Block> blocks_;
  bool prepared_ = false;
};

}  // namespace norma::nn
