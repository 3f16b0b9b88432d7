/// \file
/// nn::Flow on the device: the same calls on the host's tensors, so that whatever takes a flow as its policy runs it there.
/// `FlowModel<cuda::Flow>` is all it takes, and its parameters, and so its model files, are the host's.
///
///     NORMA_TRY(auto flow, cuda::Flow::create(blocks, {64, 64, 64}));
///     NORMA_CHECK(flow.prepare(parameters, arena));                               // the arena is not used and may be empty
///     NORMA_CHECK(flow.forward(x, {}, z, logdet, {}, pool.parallel(), arena));    // waits for the answer
///
/// Shapes:      nn/coupling.hpp: x, z and their gradients [batch, height, width, C], condition [batch, height, width, condition], logdet [batch],
///              position_logdet [batch height width]; dense host memory
/// Cost:        the inputs of a call cross to the device and its outputs back, through pinned memory that `parallel` fills. Parameters cross in
///              `prepare`, their gradients in `backward`
/// Memory:      device: `create` takes parameters and mixings, the calls what docs/kernels/coupling.md calls a workspace, with inputs and outputs; a
///              batch is cut so that this stays below `pass_bytes` (docs/kernels/coupling.md has sizes). Host: pinned memory for the same inputs and
///              outputs
/// Allocation:  by the first call of a kind and size, and by the first calls that overlap. After that a call allocates only for a larger batch
/// Threads:     the const calls of one flow may come from several threads. Each takes a lane (a stream and its memory) for its time
/// Device:      a flow belongs to the device that was current at `create`; it must be current for the calling thread too
/// Accuracy:    norma/cuda/coupling.hpp; z and log-determinants are nn::Flow's up to the rounding of float
/// Determinism: bitwise; z and log-determinants of an image depend neither on its batch nor on how that is cut. Gradients of the parameters are sums
///              over the batch, in the order of its parts
/// Not finite:  a NaN or infinity stays in its image
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/arena.hpp>
#include <norma/core/parallel.hpp>
#include <norma/core/status.hpp>
#include <norma/core/view.hpp>
#include <norma/cuda/coupling.hpp>
#include <norma/cuda/detail/lane_pool.hpp>
#include <norma/cuda/runtime.hpp>
#include <norma/nn/coupling.hpp>

namespace norma::cuda {

namespace detail {

/// Where the arrays of one pass lie, in bytes: first those that are exchanged with the host, which has them at the same places of its pinned memory.
/// Rows are filled up to a multiple of 4 floats.
struct FlowPassPlan {
  std::size_t rows[3] = {};  // input, output; backward: z, dz, dx
  std::size_t condition = 0;
  std::size_t condition_gradient = 0;
  std::size_t logdet = 0;  // backward: its gradient
  std::size_t position_logdet = 0;
  std::size_t exchanged = 0;
  std::size_t gradients = 0;  // of the parameters
  std::size_t with_gradients = 0;
  std::size_t workspace = 0;
  std::size_t workspace_bytes = 0;
  std::size_t bytes = 0;

  /// Without what does not grow with the images.
  [[nodiscard]] constexpr std::size_t bytes_of_images() const noexcept { return bytes - (with_gradients - exchanged); }
};

constexpr FlowPassPlan plan_flow_pass(std::span<const FlowBlock> blocks, FlowGrid grid, std::int64_t condition, std::int64_t parameters,
                                      FlowPass pass) noexcept {
  FlowPassPlan plan;
  const auto take = [&plan](std::int64_t floats) {
    const std::size_t at = plan.bytes;
    plan.bytes += (static_cast<std::size_t>(floats) * sizeof(float) + 255) / 256 * 256;
    return at;
  };
  const std::int64_t of_rows = grid.rows() * nn::padded(blocks[0].shape.channels), of_condition = grid.rows() * nn::padded(condition);
  const bool backward = pass == FlowPass::backward;
  for (std::size_t& at : plan.rows) at = take(&at != &plan.rows[2] || backward ? of_rows : 0);
  plan.condition = take(of_condition);
  plan.condition_gradient = take(backward ? of_condition : 0);
  plan.logdet = take(pass == FlowPass::inverse ? 0 : grid.batch);
  plan.position_logdet = take(pass == FlowPass::forward ? grid.rows() : 0);
  plan.exchanged = plan.bytes;
  plan.gradients = take(backward ? parameters : 0);
  plan.with_gradients = plan.bytes;
  plan.workspace = plan.bytes;
  plan.workspace_bytes = flow_workspace_bytes(blocks, grid, pass);
  plan.bytes += plan.workspace_bytes;
  return plan;
}

}  // namespace detail

/// `kArithmetic` says how the subnets' products multiply; see FlowArithmetic.
template <FlowArithmetic kArithmetic>
class BasicFlow {
 public:
  /// Enough for 32 images of FastFlow at 64 x 64 positions of 64 channels, backwards.
  static constexpr std::size_t kPassBytes = std::size_t{512} << 20;

  BasicFlow() noexcept = default;

  /// `map` is height, width and channels of what the flow will see. `pass_bytes`: device memory of a pass, gradients of the parameters not counted;
  /// an image that needs more goes alone. Errors: as nn::Flow::create, invalid_argument also for a map beyond 16000 x 16000; and what the device
  /// reports.
  static Result<BasicFlow> create(std::span<const nn::FlowBlock> blocks, Shape map, nn::FlowUse use = nn::FlowUse::inference,
                                  std::size_t pass_bytes = kPassBytes) {
    constexpr std::string_view who = "cuda::Flow::create";
    NORMA_CHECK(check_blocks(who, blocks, map));
    BasicFlow flow;
    flow.map_ = map;
    flow.use_ = use;
    std::int64_t permutations = 0, rotations = 0;
    for (const nn::FlowBlock& block : blocks) {
      const nn::CouplingShape& s = block.shape;
      flow.condition_ = std::max(flow.condition_, s.condition);
      flow.blocks_.push_back({s});
      flow.offsets_.push_back(flow.parameters_);
      flow.parameters_ += nn::parameter_layout(s).total;
      (s.mixing == nn::ChannelMixing::permutation ? permutations : rotations) += mixing_size(s);
    }
    for (const FlowPass pass : {FlowPass::forward, FlowPass::inverse, FlowPass::backward}) {
      flow.most_images_[static_cast<std::size_t>(pass)] = flow.most_images_within(pass, pass_bytes);
    }
    NORMA_TRY(flow.weights_, DeviceBuffer<float>::create(flow.parameters_));
    NORMA_TRY(flow.permutations_, DeviceBuffer<std::int32_t>::create(permutations));
    NORMA_TRY(flow.rotations_, DeviceBuffer<float>::create(rotations));
    flow.lanes_ = std::make_unique<Lanes>();
    NORMA_TRY(const auto lane, flow.lanes_->take());
    std::int32_t* permutation = flow.permutations_.data();
    float* rotation = flow.rotations_.data();
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      const nn::CouplingShape& s = blocks[b].shape;
      flow.blocks_[b].parameters = flow.weights_.data() + flow.offsets_[b];
      if (s.mixing == nn::ChannelMixing::permutation) {
        NORMA_TRY(const std::vector<std::int32_t> packed, nn::pack_permutation(blocks[b].permutation));
        NORMA_CHECK(copy_async(lane->stream, permutation, packed.data(), mixing_size(s)));
        flow.blocks_[b].permutation = std::exchange(permutation, permutation + mixing_size(s));
      } else {
        NORMA_TRY(const std::vector<float> packed, nn::pack_rotation(s, blocks[b].rotation));
        NORMA_CHECK(copy_async(lane->stream, rotation, packed.data(), mixing_size(s)));
        flow.blocks_[b].rotation = std::exchange(rotation, rotation + mixing_size(s));
      }
    }
    NORMA_CHECK(lane->stream.synchronize());
    return flow;
  }

  [[nodiscard]] Shape map() const noexcept { return map_; }
  [[nodiscard]] std::int64_t condition() const noexcept { return condition_; }
  [[nodiscard]] std::int64_t blocks() const noexcept { return static_cast<std::int64_t>(blocks_.size()); }
  [[nodiscard]] const nn::CouplingShape& shape(std::int64_t block) const noexcept { return blocks_[static_cast<std::size_t>(block)].shape; }
  /// Floats of all blocks' parameters, fillers included: the blocks' parameter_layout(shape).total, one behind the other.
  [[nodiscard]] std::int64_t parameters() const noexcept { return parameters_; }
  /// Where a block's parameters begin.
  [[nodiscard]] std::int64_t parameter_offset(std::int64_t block) const noexcept { return offsets_[static_cast<std::size_t>(block)]; }
  /// On the device, without what running calls use.
  [[nodiscard]] std::size_t bytes() const {
    return weights_.bytes() + permutations_.bytes() + rotations_.bytes() + (lanes_ == nullptr ? 0 : lanes_->bytes());
  }
  /// The arena is not used: memory is the flow's.
  [[nodiscard]] static constexpr std::size_t scratch_bytes(nn::FlowPass /*pass*/, std::int64_t /*batch*/, int /*workers*/) noexcept { return 0; }

  /// Brings the parameters to the device; to be called before anything else and after every change of the parameters, beside no other call. Allocates
  /// nothing. Errors: shape_mismatch, and what the device reports; then the flow waits for another prepare.
  Status prepare(std::span<const float> parameters, Arena& arena) { return prepare(parameters, Parallel{}, arena); }
  Status prepare(std::span<const float> parameters, Parallel /*parallel*/, Arena& /*arena*/) {
    constexpr std::string_view who = "cuda::Flow::prepare";
    NORMA_CHECK(check_parameters(who, parameters.size(), "parameters"));
    if (lanes_ == nullptr) return {Errc::invalid_argument, std::string(who) + ": expected a flow that create made"};
    prepared_ = false;
    NORMA_TRY(const auto lane, lanes_->take());
    NORMA_CHECK(copy_async(lane->stream, weights_.data(), parameters.data(), parameters_));
    NORMA_CHECK(lane->stream.synchronize());
    prepared_ = true;
    return {};
  }

  /// nn::Flow::forward. Returns when the answer is there. z may be x; `logdet` and `position_logdet` may be empty. Errors: not_fitted (before
  /// prepare), shape_mismatch, out_of_memory, and what the device reports.
  Status forward(TensorView<const float> x, TensorView<const float> condition, TensorView<float> z, std::span<float> logdet,
                 std::span<float> position_logdet, Parallel parallel, Arena& /*arena*/) const {
    constexpr std::string_view who = "cuda::Flow::forward";
    NORMA_CHECK(check_call(who, "x", x, condition));
    NORMA_CHECK(check_same(who, "z", x.batch, z));
    NORMA_CHECK(check_size(who, "logdet", x.batch, logdet.size()));
    NORMA_CHECK(check_size(who, "position_logdet", x.batch * map_.positions(), position_logdet.size()));
    return for_each_part(FlowPass::forward, x.batch, parallel, [&](const Part& part) -> Status {
      const FlowPassPlan& at = part.plan;
      const std::int64_t count = part.rows(), first = part.first * map_.positions();
      NORMA_CHECK(part.send_rows(at.rows[0], x.data, map_.channels));
      NORMA_CHECK(part.send_rows(at.condition, condition.data, condition_));
      NORMA_CHECK(flow_forward<kArithmetic>(part.lane.stream, blocks_, part.grid, part.view(at.rows[0], map_.channels),
                                            part.view(at.condition, condition_), part.view(at.rows[1], map_.channels),
                                            logdet.empty() ? nullptr : part.device(at.logdet),
                                            position_logdet.empty() ? nullptr : part.device(at.position_logdet), part.workspace()));
      NORMA_CHECK(part.fetch_rows(at.rows[1], map_.channels));
      if (!logdet.empty()) NORMA_CHECK(part.fetch(at.logdet, part.grid.batch));
      if (!position_logdet.empty()) NORMA_CHECK(part.fetch(at.position_logdet, count));
      NORMA_CHECK(part.lane.stream.synchronize());
      part.store_rows(at.rows[1], z.data, map_.channels);
      if (!logdet.empty()) std::copy_n(part.host(at.logdet), part.grid.batch, logdet.data() + part.first);
      if (!position_logdet.empty()) std::copy_n(part.host(at.position_logdet), count, position_logdet.data() + first);
      return {};
    });
  }

  /// nn::Flow::inverse; x may be z. Errors as `forward`.
  Status inverse(TensorView<const float> z, TensorView<const float> condition, TensorView<float> x, Parallel parallel, Arena& /*arena*/) const {
    constexpr std::string_view who = "cuda::Flow::inverse";
    NORMA_CHECK(check_call(who, "z", z, condition));
    NORMA_CHECK(check_same(who, "x", z.batch, x));
    return for_each_part(FlowPass::inverse, z.batch, parallel, [&](const Part& part) -> Status {
      const FlowPassPlan& at = part.plan;
      NORMA_CHECK(part.send_rows(at.rows[0], z.data, map_.channels));
      NORMA_CHECK(part.send_rows(at.condition, condition.data, condition_));
      NORMA_CHECK(flow_inverse<kArithmetic>(part.lane.stream, blocks_, part.grid, part.view(at.rows[0], map_.channels),
                                            part.view(at.condition, condition_), part.view(at.rows[1], map_.channels), part.workspace()));
      NORMA_CHECK(part.fetch_rows(at.rows[1], map_.channels));
      NORMA_CHECK(part.lane.stream.synchronize());
      part.store_rows(at.rows[1], x.data, map_.channels);
      return {};
    });
  }

  /// nn::Flow::backward: gradients from the flow's *output*. `gradients` [parameters()] is overwritten (fillers get 0), and so are `dx` and
  /// `dcondition`, which may be empty; dx may be dz or z. `dlogdet` [batch] is dL/dlogdet, empty: 0. Errors as `forward`; unsupported for a flow of
  /// FlowUse::inference.
  Status backward(TensorView<const float> z, TensorView<const float> condition, TensorView<const float> dz, std::span<const float> dlogdet,
                  std::span<float> gradients, TensorView<float> dx, TensorView<float> dcondition, Parallel parallel, Arena& /*arena*/) const {
    constexpr std::string_view who = "cuda::Flow::backward";
    if (use_ != nn::FlowUse::training) {
      return {Errc::unsupported, std::string(who) + ": expected a flow created with FlowUse::training, found FlowUse::inference"};
    }
    NORMA_CHECK(check_call(who, "z", z, condition));
    NORMA_CHECK(check_same(who, "dz", z.batch, dz));
    NORMA_CHECK(check_size(who, "dlogdet", z.batch, dlogdet.size()));
    NORMA_CHECK(check_parameters(who, gradients.size(), "gradients"));
    if (dx.data != nullptr) NORMA_CHECK(check_same(who, "dx", z.batch, dx));
    if (dcondition.data != nullptr) NORMA_CHECK(check_tensor(who, "dcondition", z.batch, condition_, dcondition));
    if (z.batch == 0) std::fill(gradients.begin(), gradients.end(), 0.0f);
    const bool wants_dx = dx.data != nullptr, wants_dcondition = dcondition.data != nullptr && condition_ > 0;
    return for_each_part(FlowPass::backward, z.batch, parallel, [&](const Part& part) -> Status {
      const FlowPassPlan& at = part.plan;
      NORMA_CHECK(part.send_rows(at.rows[0], z.data, map_.channels));
      NORMA_CHECK(part.send_rows(at.rows[1], dz.data, map_.channels));
      NORMA_CHECK(part.send_rows(at.condition, condition.data, condition_));
      if (!dlogdet.empty()) {
        std::copy_n(dlogdet.data() + part.first, part.grid.batch, part.host(at.logdet));
        NORMA_CHECK(copy_async(part.lane.stream, part.device(at.logdet), part.host(at.logdet), part.grid.batch));
      }
      for (std::size_t b = 0; b < blocks_.size(); ++b) part.lane.gradients[b] = part.device(at.gradients) + offsets_[b];
      NORMA_CHECK(flow_backward<kArithmetic>(part.lane.stream, blocks_, part.grid, part.view(at.rows[0], map_.channels),
                                             part.view(at.condition, condition_), part.view(at.rows[1], map_.channels),
                                             dlogdet.empty() ? nullptr : part.device(at.logdet), part.lane.gradients,
                                             wants_dx ? part.view(at.rows[2], map_.channels) : MatrixView<float>(),
                                             wants_dcondition ? part.view(at.condition_gradient, condition_) : MatrixView<float>(),
                                             part.workspace()));
      if (wants_dx) NORMA_CHECK(part.fetch_rows(at.rows[2], map_.channels));
      if (wants_dcondition) NORMA_CHECK(part.fetch_rows(at.condition_gradient, condition_));
      // The first part's gradients go to their place, those of the others are added.
      float* const sums = part.first == 0 ? gradients.data() : part.host(at.gradients);
      NORMA_CHECK(copy_async(part.lane.stream, sums, part.device(at.gradients), parameters_));
      NORMA_CHECK(part.lane.stream.synchronize());
      if (wants_dx) part.store_rows(at.rows[2], dx.data, map_.channels);
      if (wants_dcondition) part.store_rows(at.condition_gradient, dcondition.data, condition_);
      if (part.first == 0) return {};
      part.parallel.run_ranges(parameters_, kGradientsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
        for (std::int64_t i = begin; i < end; ++i) gradients[static_cast<std::size_t>(i)] += sums[i];
      });
      return {};
    });
  }

 private:
  using FlowPassPlan = detail::FlowPassPlan;
  static constexpr std::int64_t kRowsOfTask = 64, kGradientsOfTask = 1 << 14;
  /// Positions of a pass, at most: what coupling.hpp takes.
  static constexpr std::int64_t kMostRows = std::int64_t{1} << 30;

  struct Lane {
    Stream stream;
    DeviceBuffer<std::byte> device = {};
    PinnedBuffer<std::byte> host = {};
    std::vector<float*> gradients = {};  // of each block

    [[nodiscard]] std::size_t bytes() const noexcept { return device.bytes(); }
    Status grow(std::size_t device_bytes, std::size_t host_bytes, std::size_t blocks) {
      gradients.resize(blocks);
      NORMA_CHECK(grow(device, device_bytes));
      return grow(host, host_bytes);
    }
    template <class Buffer>
    static Status grow(Buffer& buffer, std::size_t bytes) {
      if (buffer.bytes() >= bytes) return {};
      buffer = {};  // first: both may not fit
      NORMA_TRY(buffer, Buffer::create(static_cast<std::int64_t>(bytes)));
      return {};
    }
  };
  using Lanes = detail::LanePool<Lane>;

  /// Images `first` to `first + grid.batch` of a call, on a lane.
  struct Part {
    Lane& lane;
    std::int64_t first;
    FlowGrid grid;
    FlowPassPlan plan;
    Parallel parallel;

    [[nodiscard]] std::int64_t rows() const noexcept { return grid.rows(); }
    [[nodiscard]] float* device(std::size_t at) const noexcept { return reinterpret_cast<float*>(lane.device.data() + at); }
    [[nodiscard]] float* host(std::size_t at) const noexcept { return reinterpret_cast<float*>(lane.host.data() + at); }
    [[nodiscard]] MatrixView<float> view(std::size_t at, std::int64_t channels) const noexcept {
      if (channels == 0) return {};
      return {device(at), rows(), channels, nn::padded(channels)};
    }
    [[nodiscard]] std::span<std::byte> workspace() const noexcept { return {lane.device.data() + plan.workspace, plan.workspace_bytes}; }

    [[nodiscard]] Status fetch(std::size_t at, std::int64_t count) const { return copy_async(lane.stream, host(at), device(at), count); }
    [[nodiscard]] Status fetch_rows(std::size_t at, std::int64_t channels) const { return fetch(at, rows() * nn::padded(channels)); }
    /// This part of `from`, all images' dense rows, to the device, with rows filled up with zeros.
    [[nodiscard]] Status send_rows(std::size_t at, const float* from, std::int64_t channels) const {
      if (channels == 0) return {};
      const std::int64_t stride = nn::padded(channels);
      const float* const own = from + first * grid.positions() * channels;
      float* const to = host(at);
      parallel.run_ranges(rows(), kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
        if (stride == channels) {
          copy(own + begin * channels, to + begin * channels, (end - begin) * channels);
          return;
        }
        for (std::int64_t r = begin; r < end; ++r) {
          copy(own + r * channels, to + r * stride, channels);
          std::fill_n(to + r * stride + channels, stride - channels, 0.0f);
        }
      });
      return copy_async(lane.stream, device(at), to, rows() * stride);
    }
    /// What fetch_rows has brought, into this part of `to`.
    void store_rows(std::size_t at, float* to, std::int64_t channels) const {
      const std::int64_t stride = nn::padded(channels);
      const float* const from = host(at);
      float* const own = to + first * grid.positions() * channels;
      parallel.run_ranges(rows(), kRowsOfTask, [&](std::int64_t begin, std::int64_t end, int) {
        if (stride == channels) {
          copy(from + begin * channels, own + begin * channels, (end - begin) * channels);
          return;
        }
        for (std::int64_t r = begin; r < end; ++r) copy(from + r * stride, own + r * channels, channels);
      });
    }
    static void copy(const float* from, float* to, std::int64_t count) noexcept {
      std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(float));
    }
  };

  /// Numbers of what nn::pack_permutation or nn::pack_rotation gives.
  static constexpr std::int64_t mixing_size(const nn::CouplingShape& s) noexcept {
    return s.mixing == nn::ChannelMixing::permutation ? 2 * s.channels : s.split_stride() * s.split_stride();
  }
  [[nodiscard]] FlowGrid grid(std::int64_t images) const noexcept { return {images, map_.height, map_.width}; }
  [[nodiscard]] FlowPassPlan plan(FlowPass pass, std::int64_t images) const noexcept {
    return detail::plan_flow_pass(blocks_, grid(images), condition_, parameters_, pass);
  }
  /// The most images whose pass needs at most `bytes` beside the gradients of the parameters, but one at least.
  [[nodiscard]] std::int64_t most_images_within(FlowPass pass, std::size_t bytes) const noexcept {
    std::int64_t fits = 1, most = std::max<std::int64_t>(kMostRows / map_.positions(), 1);
    while (fits < most) {
      const std::int64_t tried = fits + (most - fits + 1) / 2;
      if (plan(pass, tried).bytes_of_images() <= bytes) {
        fits = tried;
      } else {
        most = tried - 1;
      }
    }
    return fits;
  }

  /// Calls body(part) for a batch, piece by piece, on one lane.
  template <class Body>
  Status for_each_part(FlowPass pass, std::int64_t batch, Parallel parallel, Body&& body) const {
    if (batch == 0) return {};
    const std::int64_t most = std::min(batch, most_images_[static_cast<std::size_t>(pass)]);
    NORMA_TRY(const auto lane, lanes_->take());
    const FlowPassPlan largest = plan(pass, most);
    NORMA_CHECK(lane->grow(largest.bytes, batch > most ? largest.with_gradients : largest.exchanged, blocks_.size()));
    for (std::int64_t first = 0; first < batch; first += most) {
      const std::int64_t images = std::min(most, batch - first);
      NORMA_CHECK(body(Part{*lane, first, grid(images), plan(pass, images), parallel}));
    }
    return {};
  }

  // -- Checks: those of nn::Flow -------------------------------------------------------------------------------------------------------------------

  static Status check_blocks(std::string_view who, std::span<const nn::FlowBlock> blocks, Shape map) {
    if (blocks.empty()) return {Errc::invalid_argument, std::string(who) + ": expected at least one block, found none"};
    if (map.height < 1 || map.width < 1 || map.height > detail::kMostFlowSide || map.width > detail::kMostFlowSide) {
      return {Errc::invalid_argument, std::string(who) + ": expected a map of 1 x 1 to 16000 x 16000, found " + std::to_string(map.height) + " x " +
                                          std::to_string(map.width)};
    }
    std::int64_t condition = 0;
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      const nn::CouplingShape& s = blocks[b].shape;
      const std::string name = std::string(who) + ": block " + std::to_string(b);
      NORMA_CHECK(nn::check_shape(name, s));
      if (s.channels != map.channels || s.kind != blocks[0].shape.kind) {
        return {Errc::shape_mismatch, name + ": expected the first block's kind and the map's " + std::to_string(map.channels) +
                                          " channels, found " + std::to_string(s.channels)};
      }
      if (s.condition != 0 && condition != 0 && s.condition != condition) {
        return {Errc::shape_mismatch, name + ": expected a condition of 0 or, like the blocks before, " + std::to_string(condition) +
                                          " channels, found " + std::to_string(s.condition)};
      }
      condition = std::max(condition, s.condition);
      const bool permutes = s.mixing == nn::ChannelMixing::permutation;
      const std::size_t expected = static_cast<std::size_t>(permutes ? s.channels : s.channels * s.channels);
      const std::size_t found = permutes ? blocks[b].permutation.size() : blocks[b].rotation.size();
      if (found != expected) {
        return {Errc::shape_mismatch, name + ": expected a " + (permutes ? "permutation" : "rotation") + " of " + std::to_string(expected) +
                                          " numbers, found " + std::to_string(found)};
      }
    }
    return {};
  }
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
  Status check_call(std::string_view who, std::string_view name, TensorView<const float> x, TensorView<const float> condition) const {
    if (!prepared_) return {Errc::not_fitted, std::string(who) + ": expected a call of prepare before, found none"};
    NORMA_CHECK(check_same(who, name, x.batch, x));
    if (condition_ > 0) return check_tensor(who, "condition", x.batch, condition_, condition);
    if (condition.data == nullptr) return {};
    return {Errc::shape_mismatch, std::string(who) + ": condition: expected none, found " + std::to_string(condition.channels) + " channels"};
  }

  Shape map_;
  nn::FlowUse use_ = nn::FlowUse::inference;
  std::int64_t condition_ = 0, parameters_ = 0;
  std::array<std::int64_t, 3> most_images_{};  // of a pass, by FlowPass
  std::vector<FlowBlock> blocks_;
  std::vector<std::int64_t> offsets_;
  DeviceBuffer<float> weights_, rotations_;
  DeviceBuffer<std::int32_t> permutations_;
  bool prepared_ = false;
  std::unique_ptr<Lanes> lanes_;
};

using Flow = BasicFlow<FlowArithmetic::fp32>;

}  // namespace norma::cuda
