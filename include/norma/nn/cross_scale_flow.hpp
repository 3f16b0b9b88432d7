/// \file
/// Cross-scale flows on the host: three maps of one sample pass jointly through coupling blocks whose subnets exchange information between
/// neighbouring scales. Forward with log-determinants, inverse, gradients from the output. nn/cross_scale_types.hpp has the formulas and the layout
/// of the parameters.
///
///     NORMA_TRY(auto flow, nn::CrossScaleFlow::create(blocks, {24, 24, 304}));   // allocates everything that it will ever own
///     Buffer<std::byte> memory(static_cast<std::int64_t>(flow.scratch_bytes(nn::FlowPass::forward, batch, pool.threads())));
///     Arena arena(memory.span());
///     NORMA_CHECK(flow.prepare(parameters, pool.parallel(), arena));             // again after every step of an optimiser
///     NORMA_CHECK(flow.forward(x, z, logdet, pool.parallel(), arena));
///
/// Shapes:      x, z and their gradients: level l [batch, height / 2^l, width / 2^l, C], l = 0, 1, 2; logdet [batch]
/// Memory:      calls allocate nothing. Samples go through the flow in chunks of some 2048 positions of the finest level, so scratch grows neither
///              with the number of blocks nor, beyond a chunk, with the batch
/// Accuracy:    convolutions as nn/kernels/convolution.hpp has them (3x3: Winograd where the map is large enough), coupling as
///              nn/kernels/coupling.hpp. Log-determinants: L summed over the channels of a position in float, over blocks, positions and levels
///              in double
/// Determinism: bit-equal for any number of workers; z and log-determinants of a sample do not depend on its batch
/// Not finite:  a NaN or infinity stays in its sample (an infinity that leaves a block is limited, as every number)
/// Source:      see nn/cross_scale_types.hpp. The inverse follows from the formulas; the published code's reverse pass does not undo its forward pass
#pragma once

#include <algorithm>
#include <array>
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
#include <norma/nn/coupling.hpp>
#include <norma/nn/cross_scale_types.hpp>
#include <norma/nn/kernels/convolution.hpp>
#include <norma/nn/kernels/convolution_backward.hpp>
#include <norma/nn/kernels/coupling.hpp>
#include <norma/nn/kernels/elementwise.hpp>
#include <norma/nn/kernels/elementwise_backward.hpp>

namespace norma::nn {

/// A block and its fixed permutations: out[i] = in[permutation[l][i]] of level l, [C]. Read by `CrossScaleFlow::create` only.
struct CrossScaleBlock {
  CrossScaleShape shape;
  std::array<std::span<const std::int64_t>, kScales> permutation = {};
};

namespace detail {

constexpr ConvolutionGeometry cross_scale_geometry(const CrossScaleConvolution& c) noexcept {
  const int side = static_cast<int>(c.kernel), pad = side / 2;
  return {side, side, c.stride, 1, pad, pad, pad, pad, 1};
}
constexpr Shape cross_scale_input(Shape finest, const CrossScaleConvolution& c) noexcept {
  const Shape map = scale_shape(finest, c.level);
  return {map.height, map.width, c.in};
}

/// What the blocks need most of; floats unless said otherwise.
struct CrossScaleSizes {
  std::int64_t images = 1;          // of a chunk
  std::int64_t rows[kScales] = {};  // of a chunk's maps
  std::int64_t channels = 0, first = 0, hidden = 0;
  std::int64_t packing = 0;                           // of a convolution on its way into the products' order
  std::size_t forward_bytes = 0, backward_bytes = 0;  // of the kernels

  constexpr CrossScaleSizes(Shape finest, std::int64_t batch, int workers) noexcept
      : images(flow_chunk_images(finest, batch)), channels(finest.channels), first(finest.channels / 2), workers_(workers), finest_(finest) {
    for (int l = 0; l < kScales; ++l) rows[l] = images * scale_shape(finest, l).positions();
  }
  constexpr void add(const CrossScaleShape& s) noexcept {
    hidden = std::max(hidden, s.hidden);
    for (int step = 0; step < 2; ++step) {
      const CrossScaleSubnet subnet = cross_scale_subnet(s, step);
      for (const CrossScaleConvolution& c : subnet.convolutions) {
        const Shape in = cross_scale_input(finest_, c);
        const ConvolutionGeometry g = cross_scale_geometry(c);
        packing = std::max(packing, c.weights());
        forward_bytes = std::max(forward_bytes, convolution_scratch_bytes(in, c.out, g, workers_));
        backward_bytes = std::max({backward_bytes, convolution_input_gradient_scratch_bytes(in, c.out, g, Direction::forward, workers_),
                                   convolution_weight_gradient_scratch_bytes(in, c.out, g, Direction::forward), bias_gradient_scratch_bytes(c.out)});
      }
      backward_bytes = std::max(backward_bytes, sums_scratch_bytes(2 * s.active(step), 2));
    }
    backward_bytes = std::max(backward_bytes, forward_bytes);
  }

  /// s and t of the wider half.
  [[nodiscard]] constexpr std::int64_t output() const noexcept { return 2 * (channels - first); }
  /// Two rows of all channels.
  [[nodiscard]] constexpr std::int64_t row_pair() const noexcept { return 2 * linalg::detail::round_up(channels, 16); }
  [[nodiscard]] constexpr std::size_t bytes(FlowPass pass) const noexcept {
    if (pass == FlowPass::prepare) return static_cast<std::size_t>(workers_) * arena_bytes<float>(packing);
    std::size_t total = arena_bytes<float>(row_pair() * workers_);
    for (int l = 0; l < kScales; ++l) {
      const std::size_t halves = arena_bytes<float>(rows[l] * first) + arena_bytes<float>(rows[l] * (channels - first));
      const std::size_t wide = arena_bytes<float>(rows[l] * hidden), outputs = arena_bytes<float>(rows[l] * output());
      const bool raised = l + 1 < kScales;
      total += 2 * halves + wide + (raised ? wide : 0) + outputs + arena_bytes<double>(rows[l]);
      if (pass == FlowPass::backward) total += halves + wide + (l == 0 ? wide : 0) + outputs;
    }
    return total + (pass == FlowPass::backward ? backward_bytes : forward_bytes);
  }

 private:
  int workers_;
  Shape finest_;
};

}  // namespace detail

/// Scratch of one call. `finest` is the flow's; more workers than the call's are fine.
constexpr std::size_t cross_scale_scratch_bytes(std::span<const CrossScaleShape> blocks, Shape finest, FlowPass pass, std::int64_t batch,
                                                int workers) noexcept {
  detail::CrossScaleSizes sizes(finest, batch, workers);
  for (const CrossScaleShape& shape : blocks) sizes.add(shape);
  return sizes.bytes(pass);
}

/// Blocks one after the other. Holds the weights in the order in which its products read them.
class CrossScaleFlow {
 public:
  CrossScaleFlow() noexcept = default;

  /// `finest` is height, width and channels of level 0; both sides multiples of 4. Allocates. Errors: invalid_argument, shape_mismatch (see
  /// check_shape, check_finest). `set` is for tests.
  static Result<CrossScaleFlow> create(std::span<const CrossScaleBlock> blocks, Shape finest, FlowUse use = FlowUse::inference,
                                       InstructionSet set = instruction_set()) {
    constexpr std::string_view who = "nn::CrossScaleFlow::create";
    if (blocks.empty()) return Status(Errc::invalid_argument, std::string(who) + ": expected at least one block, found none");
    NORMA_CHECK(check_finest(who, finest));
    CrossScaleFlow flow;
    flow.finest_ = finest;
    flow.use_ = use;
    flow.set_ = set;
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      const CrossScaleShape& s = blocks[b].shape;
      const std::string name = std::string(who) + ": block " + std::to_string(b);
      NORMA_CHECK(check_shape(name, s));
      if (s.channels != finest.channels) {
        return Status(Errc::shape_mismatch,
                      name + ": expected the maps' " + std::to_string(finest.channels) + " channels, found " + std::to_string(s.channels));
      }
      Block block;
      block.shape = s;
      block.offset = flow.parameters_;
      flow.parameters_ += parameter_count(s);
      for (int l = 0; l < kScales; ++l) {
        const auto given = blocks[b].permutation[static_cast<std::size_t>(l)];
        if (given.size() != static_cast<std::size_t>(s.channels)) {
          return Status(Errc::shape_mismatch, name + ": level " + std::to_string(l) + ": expected a permutation of " + std::to_string(s.channels) +
                                                  " channels, found " + std::to_string(given.size()));
        }
        NORMA_TRY(block.permutation[l], pack_permutation(given));
      }
      for (int step = 0; step < 2; ++step) {
        const CrossScaleSubnet layout = cross_scale_subnet(s, step);
        Subnet& subnet = block.subnets[step];
        subnet.gamma_at = layout.gamma;
        for (const CrossScaleConvolution& c : layout.convolutions) {
          const Shape in = detail::cross_scale_input(finest, c);
          const ConvolutionGeometry g = detail::cross_scale_geometry(c);
          subnet.layers.push_back(
              {c, PackedConvolution::shaped(in, c.out, g, set),
               use == FlowUse::training ? PackedInputGradient::shaped(in, c.out, g, Direction::forward, set) : PackedInputGradient(),
               Buffer<float>(c.out)});
        }
      }
      flow.blocks_.push_back(std::move(block));
    }
    return flow;
  }

  /// Of level 0.
  [[nodiscard]] Shape finest() const noexcept { return finest_; }
  [[nodiscard]] std::int64_t blocks() const noexcept { return static_cast<std::int64_t>(blocks_.size()); }
  [[nodiscard]] const CrossScaleShape& shape(std::int64_t block) const noexcept { return blocks_[static_cast<std::size_t>(block)].shape; }
  /// Numbers of all blocks' parameters, one block behind the other.
  [[nodiscard]] std::int64_t parameters() const noexcept { return parameters_; }
  /// Where a block's parameters begin.
  [[nodiscard]] std::int64_t parameter_offset(std::int64_t block) const noexcept { return blocks_[static_cast<std::size_t>(block)].offset; }
  /// Memory of the packed weights.
  [[nodiscard]] std::size_t bytes() const noexcept {
    std::size_t total = 0;
    for (const Block& block : blocks_) {
      for (const Subnet& subnet : block.subnets) {
        for (const Layer& layer : subnet.layers) {
          total += layer.forward.bytes() + layer.gradient.bytes() + static_cast<std::size_t>(layer.bias.size()) * sizeof(float);
        }
      }
      for (const auto& permutation : block.permutation) total += permutation.size() * sizeof(std::int32_t);
    }
    return total;
  }
  [[nodiscard]] std::size_t scratch_bytes(FlowPass pass, std::int64_t batch, int workers) const noexcept { return sizes(batch, workers).bytes(pass); }

  /// Brings all weights into the products' order; to be called before anything else and after every change of the parameters. Allocates nothing.
  /// Errors: shape_mismatch, out_of_memory (arena).
  Status prepare(std::span<const float> parameters, Parallel parallel, Arena& arena) {
    constexpr std::string_view who = "nn::CrossScaleFlow::prepare";
    NORMA_CHECK(check_parameters(who, parameters.size(), "parameters"));
    NORMA_CHECK(check_arena(who, FlowPass::prepare, 1, parallel.workers(), arena));
    const Arena::Scope scope(arena);
    const auto piece = static_cast<std::int64_t>(arena_bytes<float>(sizes(1, 1).packing) / sizeof(float));
    float* scratch = arena.take<float>(piece * parallel.workers());
    for (Block& block : blocks_) {
      const float* own = parameters.data() + block.offset;
      for (Subnet& subnet : block.subnets) {
        for (int l = 0; l < kScales; ++l) subnet.gamma[l] = own[subnet.gamma_at + l];
        parallel.run(kCrossScaleConvolutions, [&](std::int64_t task, int worker) {
          Layer& layer = subnet.layers[static_cast<std::size_t>(task)];
          const CrossScaleConvolution& c = layer.at;
          const std::int64_t taps = c.kernel * c.kernel;
          std::copy_n(own + c.bias, c.out, layer.bias.data());
          layer.forward.repack({own + c.weight, c.weights(), c.fan_in(), taps, 1}, scratch + worker * piece);
          if (use_ == FlowUse::training) { layer.gradient.repack({own + c.weight, static_cast<std::size_t>(c.weights())}, scratch + worker * piece); }
        });
      }
    }
    prepared_ = true;
    return {};
  }

  /// z = the blocks, in order, of x; z may be x. `logdet` [batch] or empty. Errors: not_fitted (before prepare), shape_mismatch, out_of_memory
  /// (arena).
  Status forward(const ScaleViews<const float>& x, const ScaleViews<float>& z, std::span<float> logdet, Parallel parallel, Arena& arena) const {
    constexpr std::string_view who = "nn::CrossScaleFlow::forward";
    const std::int64_t batch = x[0].batch;
    NORMA_CHECK(check_call(who, FlowPass::forward, batch, parallel, arena));
    NORMA_CHECK(check_views(who, "x", batch, x));
    NORMA_CHECK(check_views(who, "z", batch, z));
    NORMA_CHECK(check_size(who, "logdet", batch, logdet.size()));
    const Arena::Scope scope(arena);
    Work work = take_work(FlowPass::forward, batch, parallel, arena);
    for (std::int64_t image = 0; image < batch; image += work.most_images) {
      enter(work, image, batch);
      split(x, image, work.now, work);
      for (int l = 0; l < kScales; ++l) std::fill_n(work.row_logdet[l], work.rows[l], 0.0);
      for (const Block& block : blocks_) forward_block(block, work);
      join(work.now, image, z, work);
      if (logdet.empty()) continue;
      for (std::int64_t n = 0; n < work.images; ++n) {
        double sum = 0.0;
        for (int l = 0; l < kScales; ++l) {
          const std::int64_t positions = work.rows[l] / work.images;
          for (std::int64_t p = 0; p < positions; ++p) sum += work.row_logdet[l][n * positions + p];
        }
        logdet[static_cast<std::size_t>(image + n)] = static_cast<float>(sum);
      }
    }
    return {};
  }

  /// x with forward(x) = z, up to rounding and where no number was limited; x may be z. Errors as `forward`.
  Status inverse(const ScaleViews<const float>& z, const ScaleViews<float>& x, Parallel parallel, Arena& arena) const {
    constexpr std::string_view who = "nn::CrossScaleFlow::inverse";
    const std::int64_t batch = z[0].batch;
    NORMA_CHECK(check_call(who, FlowPass::inverse, batch, parallel, arena));
    NORMA_CHECK(check_views(who, "z", batch, z));
    NORMA_CHECK(check_views(who, "x", batch, x));
    const Arena::Scope scope(arena);
    Work work = take_work(FlowPass::inverse, batch, parallel, arena);
    for (std::int64_t image = 0; image < batch; image += work.most_images) {
      enter(work, image, batch);
      split(z, image, work.now, work);
      for (std::size_t b = blocks_.size(); b-- > 0;) inverse_block(blocks_[b], work);
      join(work.now, image, x, work);
    }
    return {};
  }

  /// Gradients from the flow's *output*: what the forward pass went through is computed again on the way back. `gradients` [parameters()] receives
  /// dL/dparameters, `dx` dL/dx (both overwritten; dx may have no memory: not wanted, and may be dz or z). `dlogdet` [batch] is dL/dlogdet, empty: 0.
  /// A number at the limit passes no gradient. Errors as `forward`; unsupported for a flow of FlowUse::inference.
  Status backward(const ScaleViews<const float>& z, const ScaleViews<const float>& dz, std::span<const float> dlogdet, std::span<float> gradients,
                  const ScaleViews<float>& dx, Parallel parallel, Arena& arena) const {
    constexpr std::string_view who = "nn::CrossScaleFlow::backward";
    const std::int64_t batch = z[0].batch;
    if (use_ != FlowUse::training) {
      return {Errc::unsupported, std::string(who) + ": expected a flow created with FlowUse::training, found FlowUse::inference"};
    }
    NORMA_CHECK(check_call(who, FlowPass::backward, batch, parallel, arena));
    NORMA_CHECK(check_views(who, "z", batch, z));
    NORMA_CHECK(check_views(who, "dz", batch, dz));
    NORMA_CHECK(check_size(who, "dlogdet", batch, dlogdet.size()));
    NORMA_CHECK(check_parameters(who, gradients.size(), "gradients"));
    if (dx[0].data != nullptr) NORMA_CHECK(check_views(who, "dx", batch, dx));
    std::fill(gradients.begin(), gradients.end(), 0.0f);

    const Arena::Scope scope(arena);
    Work work = take_work(FlowPass::backward, batch, parallel, arena);
    for (std::int64_t image = 0; image < batch; image += work.most_images) {
      enter(work, image, batch);
      work.dlogdet = dlogdet.empty() ? nullptr : dlogdet.data() + image;
      split(z, image, work.now, work);
      split(dz, image, work.gradient, work);
      for (std::size_t b = blocks_.size(); b-- > 0;) backward_block(blocks_[b], work, gradients.data() + blocks_[b].offset);
      if (dx[0].data != nullptr) join(work.gradient, image, dx, work);
    }
    return {};
  }

 private:
  struct Layer {
    CrossScaleConvolution at;
    PackedConvolution forward;
    PackedInputGradient gradient;  // training only
    Buffer<float> bias;
  };
  struct Subnet {
    std::vector<Layer> layers;  // by cross_scale_in, _same, _up, _down
    float gamma[kScales] = {};
    std::int64_t gamma_at = 0;
  };
  struct Block {
    CrossScaleShape shape;
    std::int64_t offset = 0;
    Subnet subnets[2];
    std::vector<std::int32_t> permutation[kScales];  // [permutation, its inverse]
  };

  /// The first and the second half of every row of every level, each dense.
  struct Halves {
    float* part[kScales][2] = {};
  };
  enum class Way : std::uint8_t { forward, back };

  /// Memory of a call and where it stands.
  struct Work {
    Parallel parallel;
    Arena* arena;
    std::int64_t most_images = 1, images = 0;
    std::int64_t rows[kScales] = {};
    Halves now, next, gradient;
    float* hidden[kScales] = {};
    float* raised[kScales - 1] = {};  // level l: twice(h of level l + 1)
    float* output[kScales] = {};      // s, t before gamma
    double* row_logdet[kScales] = {};
    float* row_pair = nullptr;
    std::int64_t row_pair_size = 0;
    float* hidden_gradient[kScales] = {};
    float* raised_gradient = nullptr;
    float* output_gradient[kScales] = {};
    const float* dlogdet = nullptr;
  };

  [[nodiscard]] detail::CrossScaleSizes sizes(std::int64_t batch, int workers) const noexcept {
    detail::CrossScaleSizes sizes(finest_, batch, workers);
    for (const Block& block : blocks_) sizes.add(block.shape);
    return sizes;
  }

  [[nodiscard]] std::int64_t width(int half) const noexcept { return half == 0 ? finest_.channels / 2 : finest_.channels - finest_.channels / 2; }

  [[nodiscard]] Work take_work(FlowPass pass, std::int64_t batch, Parallel parallel, Arena& arena) const noexcept {
    const detail::CrossScaleSizes size = sizes(batch, parallel.workers());
    Work work;
    work.parallel = parallel;
    work.arena = &arena;
    work.most_images = size.images;
    work.row_pair_size = size.row_pair();
    work.row_pair = arena.take<float>(work.row_pair_size * parallel.workers());
    for (int l = 0; l < kScales; ++l) {
      const std::int64_t rows = size.rows[l];
      const auto take_halves = [&](Halves& halves) {
        for (int half = 0; half < 2; ++half) halves.part[l][half] = arena.take<float>(rows * width(half));
      };
      take_halves(work.now);
      take_halves(work.next);
      work.hidden[l] = arena.take<float>(rows * size.hidden);
      if (l + 1 < kScales) work.raised[l] = arena.take<float>(rows * size.hidden);
      work.output[l] = arena.take<float>(rows * size.output());
      work.row_logdet[l] = arena.take<double>(rows);
      if (pass != FlowPass::backward) continue;
      take_halves(work.gradient);
      work.hidden_gradient[l] = arena.take<float>(rows * size.hidden);
      if (l == 0) work.raised_gradient = arena.take<float>(rows * size.hidden);
      work.output_gradient[l] = arena.take<float>(rows * size.output());
    }
    return work;
  }

  void enter(Work& work, std::int64_t image, std::int64_t batch) const noexcept {
    work.images = std::min(work.most_images, batch - image);
    for (int l = 0; l < kScales; ++l) work.rows[l] = work.images * scale_shape(finest_, l).positions();
  }

  static void copy(const float* from, float* to, std::int64_t count) noexcept {
    std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
  }
  static constexpr std::int64_t kRowsOfTask = 64;

  void split(const ScaleViews<const float>& from, std::int64_t image, const Halves& to, const Work& work) const {
    const std::int64_t first = width(0), second = width(1), channels = first + second;
    for (int l = 0; l < kScales; ++l) {
      const float* x = from[l].image(image).data;
      work.parallel.run_ranges(work.rows[l], kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t r = begin; r < end; ++r) {
          copy(x + r * channels, to.part[l][0] + r * first, first);
          copy(x + r * channels + first, to.part[l][1] + r * second, second);
        }
      });
    }
  }
  void join(const Halves& from, std::int64_t image, const ScaleViews<float>& to, const Work& work) const {
    const std::int64_t first = width(0), second = width(1), channels = first + second;
    for (int l = 0; l < kScales; ++l) {
      float* y = to[l].image(image).data;
      work.parallel.run_ranges(work.rows[l], kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t r = begin; r < end; ++r) {
          copy(from.part[l][0] + r * first, y + r * channels, first);
          copy(from.part[l][1] + r * second, y + r * channels + first, second);
        }
      });
    }
  }
  /// to = P from, or P^-1 from, of every level.
  void mix(const Block& block, Way way, const Halves& from, const Halves& to, const Work& work) const {
    const std::int64_t first = width(0), second = width(1), channels = first + second;
    for (int l = 0; l < kScales; ++l) {
      const std::int32_t* index = block.permutation[l].data() + (way == Way::forward ? 0 : channels);
      work.parallel.run_ranges(work.rows[l], kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int worker) {
        float* in = work.row_pair + worker * work.row_pair_size;
        float* out = in + work.row_pair_size / 2;
        for (std::int64_t r = begin; r < end; ++r) {
          copy(from.part[l][0] + r * first, in, first);
          copy(from.part[l][1] + r * second, in + first, second);
          for (std::int64_t c = 0; c < channels; ++c) out[c] = in[index[c]];
          copy(out, to.part[l][0] + r * first, first);
          copy(out + first, to.part[l][1] + r * second, second);
        }
      });
    }
  }

  template <class T>
  [[nodiscard]] TensorView<T> tensor(T* data, int level, std::int64_t channels, const Work& work) const noexcept {
    const Shape map = scale_shape(finest_, level);
    return {data, work.images, map.height, map.width, channels};
  }
  /// The half that a step's subnet reads, and the one that it changes.
  static constexpr int passive(int step) noexcept { return step == 0 ? 1 : 0; }
  static constexpr int active(int step) noexcept { return step; }

  /// One convolution from its level to `to`'s; with `Accumulate::yes` its result is added to what is there.
  void apply(const Layer& layer, const float* from, float* to, int to_level, Accumulate accumulate, const Work& work) const {
    const TensorView<float> y = tensor(to, to_level, layer.at.out, work);
    convolution(tensor(from, layer.at.level, layer.at.in, work), layer.forward, y, layer.bias.data(),
                accumulate == Accumulate::yes ? TensorView<const float>(y) : TensorView<const float>(), Activation::none, work.parallel, *work.arena);
  }
  template <class Body>
  static void for_each(std::int64_t count, const Work& work, Body&& body) {
    work.parallel.run_ranges(count, detail::kElementwiseGrain, [&](std::int64_t begin, std::int64_t end, int) {
      for (std::int64_t i = begin; i < end; ++i) body(i);
    });
  }

  /// [s, t] before gamma of every position into work.output; hidden activations and their enlargements stay in work.hidden and work.raised.
  void run_subnet(const Block& block, int step, const Work& work) const {
    const auto& layers = block.subnets[step].layers;
    const auto at = [&](int convolution) -> const Layer& { return layers[static_cast<std::size_t>(convolution)]; };
    const std::int64_t hidden = block.shape.hidden;
    for (int l = 0; l < kScales; ++l) {
      float* h = work.hidden[l];
      apply(at(cross_scale_in(l)), work.now.part[l][passive(step)], h, l, Accumulate::no, work);
      for_each(work.rows[l] * hidden, work, [&](std::int64_t i) { h[i] = h[i] < 0.0f ? kCrossScaleSlope * h[i] : h[i]; });
      if (l > 0) {
        upsample_bilinear(tensor(static_cast<const float*>(h), l, hidden, work), AlignCorners::no, tensor(work.raised[l - 1], l - 1, hidden, work),
                          work.parallel, set_);
      }
    }
    for (int l = 0; l < kScales; ++l) {
      apply(at(cross_scale_same(l)), work.hidden[l], work.output[l], l, Accumulate::no, work);
      if (l + 1 < kScales) apply(at(cross_scale_up(l + 1)), work.raised[l], work.output[l], l, Accumulate::yes, work);
      if (l > 0) apply(at(cross_scale_down(l - 1)), work.hidden[l - 1], work.output[l], l, Accumulate::yes, work);
    }
  }

  [[nodiscard]] static detail::CouplingRow coupling_row(const Block& block, int step, const float* output, std::int64_t row, float gain) noexcept {
    const std::int64_t count = block.shape.active(step);
    const float* s = output + row * 2 * count;
    return {s, s + count, count, block.shape.alpha, gain};
  }
  [[nodiscard]] const detail::CouplingKernels& kernels() const noexcept { return detail::coupling_kernels(set_); }
  static constexpr auto kClamp = static_cast<std::size_t>(ScaleClamp::atan);

  void forward_block(const Block& block, Work& work) const {
    mix(block, Way::forward, work.now, work.next, work);
    std::swap(work.now, work.next);
    const auto couple = kernels().couple[kClamp];
    for (int step = 0; step < 2; ++step) {
      run_subnet(block, step, work);
      const std::int64_t count = block.shape.active(step);
      for (int l = 0; l < kScales; ++l) {
        float* x = work.now.part[l][active(step)];
        const float gamma = block.subnets[step].gamma[l];
        work.parallel.run_ranges(work.rows[l], kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
          for (std::int64_t r = begin; r < end; ++r) {
            const auto row = coupling_row(block, step, work.output[l], r, gamma);
            work.row_logdet[l][r] += static_cast<double>(couple(row, x + r * count, x + r * count));
          }
        });
      }
    }
    for (int l = 0; l < kScales; ++l) {
      for (int half = 0; half < 2; ++half) {
        float* y = work.now.part[l][half];
        for_each(work.rows[l] * width(half), work, [&](std::int64_t i) {
          y[i] = y[i] > kCrossScaleLimit ? kCrossScaleLimit : y[i] < -kCrossScaleLimit ? -kCrossScaleLimit : y[i];
        });
      }
    }
  }

  void inverse_block(const Block& block, Work& work) const {
    const auto uncouple = kernels().uncouple[kClamp];
    for (int step = 1; step >= 0; --step) {
      run_subnet(block, step, work);
      const std::int64_t count = block.shape.active(step);
      for (int l = 0; l < kScales; ++l) {
        float* y = work.now.part[l][active(step)];
        const float gamma = block.subnets[step].gamma[l];
        work.parallel.run_ranges(work.rows[l], kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
          for (std::int64_t r = begin; r < end; ++r) uncouple(coupling_row(block, step, work.output[l], r, gamma), y + r * count, y + r * count);
        });
      }
    }
    mix(block, Way::back, work.now, work.next, work);
    std::swap(work.now, work.next);
  }

  void backward_block(const Block& block, Work& work, float* gradients) const {
    const auto uncouple = kernels().uncouple_gradient[kClamp];
    for (int l = 0; l < kScales; ++l) {
      for (int half = 0; half < 2; ++half) {
        const float* y = work.now.part[l][half];
        float* d = work.gradient.part[l][half];
        for_each(work.rows[l] * width(half), work, [&](std::int64_t i) {
          if (y[i] >= kCrossScaleLimit || y[i] <= -kCrossScaleLimit) d[i] = 0.0f;
        });
      }
    }
    for (int step = 1; step >= 0; --step) {
      run_subnet(block, step, work);
      const std::int64_t count = block.shape.active(step);
      for (int l = 0; l < kScales; ++l) {
        const std::int64_t positions = work.rows[l] / work.images;
        const float gamma = block.subnets[step].gamma[l];
        const float* o = work.output[l];
        float* d = work.output_gradient[l];
        float* y = work.now.part[l][active(step)];
        float* dy = work.gradient.part[l][active(step)];
        work.parallel.run_ranges(work.rows[l], kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
          for (std::int64_t r = begin; r < end; ++r) {
            // gamma is applied first: the gradient of gamma needs that of gamma o, also where gamma is 0.
            float* row = d + r * 2 * count;
            for (std::int64_t i = 0; i < 2 * count; ++i) row[i] = gamma * o[r * 2 * count + i];
            uncouple(coupling_row(block, step, d, r, 1.0f), y + r * count, dy + r * count,
                     work.dlogdet == nullptr ? 0.0f : work.dlogdet[r / positions], row, row + count);
          }
        });
        gradients[block.subnets[step].gamma_at + l] += static_cast<float>(product_sum(d, o, work.rows[l], 2 * count, work));
        for_each(work.rows[l] * 2 * count, work, [&](std::int64_t i) { d[i] *= gamma; });
      }
      subnet_gradient(block, step, work, gradients);
    }
    mix(block, Way::back, work.now, work.next, work);
    std::swap(work.now, work.next);
    mix(block, Way::back, work.gradient, work.next, work);
    std::swap(work.gradient, work.next);
  }

  [[nodiscard]] double product_sum(const float* a, const float* b, std::int64_t rows, std::int64_t channels, const Work& work) const {
    const auto& backward = detail::backward_kernels(set_);
    double total = 0.0;
    detail::sum_over_positions(
        rows, channels, 2, work.parallel, *work.arena,
        [&](std::int64_t first, std::int64_t count, float* sums) {
          backward.sum_gradients(a + first * channels, b + first * channels, count, channels, channels, channels, nullptr, sums, sums + channels);
        },
        [&](std::int64_t, int quantity, double sum) { total += quantity == 1 ? sum : 0.0; });
    return total;
  }

  /// Adds a convolution's gradients of weights and biases; x is what it read, dy [level `to`] the gradient of its result.
  void layer_gradient(const Layer& layer, const float* x, const float* dy, int to, const Work& work, float* gradients) const {
    const CrossScaleConvolution& c = layer.at;
    const TensorView<const float> d = tensor(dy, to, c.out, work);
    convolution_weight_gradient(tensor(x, c.level, c.in, work), d, detail::cross_scale_geometry(c), Direction::forward,
                                {gradients + c.weight, static_cast<std::size_t>(c.weights())}, work.parallel, *work.arena, set_);
    bias_gradient(d, {gradients + c.bias, static_cast<std::size_t>(c.out)}, work.parallel, *work.arena, set_);
  }

  /// From dL/do in work.output_gradient: adds to the gradients of the subnet's convolutions and of the passive halves.
  void subnet_gradient(const Block& block, int step, Work& work, float* gradients) const {
    const auto& layers = block.subnets[step].layers;
    const auto at = [&](int convolution) -> const Layer& { return layers[static_cast<std::size_t>(convolution)]; };
    const auto output = [&](const Layer& layer, int level) {
      return tensor(static_cast<const float*>(work.output_gradient[level]), level, layer.at.out, work);
    };
    const std::int64_t hidden = block.shape.hidden;
    for (int l = 0; l < kScales; ++l) {
      const float* h = work.hidden[l];
      float* d = work.hidden_gradient[l];
      const TensorView<float> dh = tensor(d, l, hidden, work);
      const Layer& same = at(cross_scale_same(l));
      layer_gradient(same, h, work.output_gradient[l], l, work, gradients);
      convolution_input_gradient(output(same, l), same.gradient, dh, Accumulate::no, work.parallel, *work.arena);
      if (l > 0) {
        const Layer& up = at(cross_scale_up(l));
        const TensorView<float> raised = tensor(work.raised_gradient, l - 1, hidden, work);
        layer_gradient(up, work.raised[l - 1], work.output_gradient[l - 1], l - 1, work, gradients);
        convolution_input_gradient(output(up, l - 1), up.gradient, raised, Accumulate::no, work.parallel, *work.arena);
        upsample_bilinear_gradient(raised, AlignCorners::no, dh, Accumulate::yes, work.parallel, set_);
      }
      if (l + 1 < kScales) {
        const Layer& down = at(cross_scale_down(l));
        layer_gradient(down, h, work.output_gradient[l + 1], l + 1, work, gradients);
        convolution_input_gradient(output(down, l + 1), down.gradient, dh, Accumulate::yes, work.parallel, *work.arena);
      }
      for_each(work.rows[l] * hidden, work, [&](std::int64_t i) { d[i] = h[i] > 0.0f ? d[i] : kCrossScaleSlope * d[i]; });
      const Layer& in = at(cross_scale_in(l));
      layer_gradient(in, work.now.part[l][passive(step)], d, l, work, gradients);
      convolution_input_gradient(dh, in.gradient, tensor(work.gradient.part[l][passive(step)], l, in.at.in, work), Accumulate::yes, work.parallel,
                                 *work.arena);
    }
  }

  // -- Checks --------------------------------------------------------------------------------------------------------------------------------------

  template <class T>
  Status check_views(std::string_view who, std::string_view name, std::int64_t batch, const ScaleViews<T>& views) const {
    for (int l = 0; l < kScales; ++l) {
      const TensorView<T>& t = views[l];
      const Shape expected = scale_shape(finest_, l);
      if (t.batch == batch && t.shape() == expected && (t.data != nullptr || t.empty())) continue;
      const auto text = [](std::int64_t n, Shape s) {
        std::string shape("[");
        shape.append(std::to_string(n)).append(", ").append(std::to_string(s.height)).append(", ").append(std::to_string(s.width));
        return shape.append(", ").append(std::to_string(s.channels)).append("]");
      };
      return {Errc::shape_mismatch, std::string(who) + ": " + std::string(name) + ", level " + std::to_string(l) + ": expected " +
                                        text(batch, expected) + ", found " + text(t.batch, t.shape()) + (t.data == nullptr ? " without memory" : "")};
    }
    return {};
  }
  static Status check_size(std::string_view who, std::string_view name, std::int64_t expected, std::size_t found) {
    if (found == 0 || found == static_cast<std::size_t>(expected)) return {};
    return {Errc::shape_mismatch, std::string(who) + ": " + std::string(name) + ": expected " + std::to_string(expected) +
                                      " numbers or none, found " + std::to_string(found)};
  }
  Status check_parameters(std::string_view who, std::size_t found, std::string_view name) const {
    if (found == static_cast<std::size_t>(parameters_)) return {};
    return {Errc::shape_mismatch,
            std::string(who) + ": " + std::string(name) + ": expected " + std::to_string(parameters_) + " numbers, found " + std::to_string(found)};
  }
  Status check_arena(std::string_view who, FlowPass pass, std::int64_t batch, int workers, const Arena& arena) const {
    const std::size_t needed = scratch_bytes(pass, batch, workers);
    if (arena.remaining() >= needed) return {};
    return {Errc::out_of_memory,
            std::string(who) + ": expected scratch of " + std::to_string(needed) + " bytes, found " + std::to_string(arena.remaining())};
  }
  Status check_call(std::string_view who, FlowPass pass, std::int64_t batch, Parallel parallel, const Arena& arena) const {
    if (!prepared_) return {Errc::not_fitted, std::string(who) + ": expected a call of prepare before, found none"};
    return check_arena(who, pass, batch, parallel.workers(), arena);
  }

  Shape finest_;
  FlowUse use_ = FlowUse::inference;
  InstructionSet set_ = InstructionSet::generic;
  std::int64_t parameters_ = 0;
  std::vector<Block> blocks_;
  bool prepared_ = false;
};

}  // namespace norma::nn
