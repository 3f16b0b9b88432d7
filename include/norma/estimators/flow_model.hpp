/// \file
/// A flow with its parameters: drawn, trained, scored with, written and read. What FastFlow, CFlow and DifferNet have one or several of.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/arena.hpp>
#include <norma/core/finite.hpp>
#include <norma/core/random.hpp>
#include <norma/core/tensor.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/nn/coupling.hpp>
#include <norma/nn/random_rotation.hpp>
#include <norma/nn/training/initialise.hpp>

namespace norma {

/// `FlowT` runs the blocks: nn::Flow, or one with the same calls, as cuda::Flow. Model files do not depend on it.
///
/// Tensors under a prefix, in the order and layout of PyTorch modules: `<block>.subnet<step>.<layer>.weight` [out, in(, k, k)] and `.bias` [out]
/// (a last layer's outputs: s0, s1, ..., t0, t1, ...), `<block>.scale` and `.offset` [C] (all-in-one blocks), `<block>.permutation` [C] (I64) or
/// `.rotation` [C, C].
template <class FlowT = nn::Flow>
class FlowModel {
 public:
  FlowModel() = default;

  /// Mixings and first weights: permutations uniform, rotations uniform in SO(C), PyTorch's default for the subnets, global scale 1, offset 0. A
  /// pure function of the arguments; `name` tells the flows of one model apart.
  static Result<FlowModel> create(std::vector<nn::CouplingShape> blocks, Shape map, std::uint64_t seed, std::string_view name) {
    NORMA_TRY(FlowModel model, empty(std::move(blocks), map));
    for (std::size_t b = 0; b < model.blocks_.size(); ++b) {
      const nn::CouplingShape& shape = model.blocks_[b];
      const std::string own = std::string(name) + "." + std::to_string(b);
      Random random(seed, nn::detail::name_stream(own + ".mixing"));
      if (shape.mixing == nn::ChannelMixing::permutation) {
        model.permutations_[b] = sample_without_replacement(shape.channels, shape.channels, random);
      } else {
        model.rotations_[b] = Buffer<float>(shape.channels * shape.channels);
        nn::random_rotation(shape.channels, random, model.rotations_[b].span());
      }
      const nn::ParameterLayout layout = nn::parameter_layout(shape);
      const auto own_parameters = model.parameters_of(b);
      std::vector<float> weight, bias;
      for (int step = 0; step < shape.steps(); ++step) {
        for (int l = 0; l < shape.layers; ++l) {
          const nn::LayerLayout& at = layout.layers[step][l];
          const std::int64_t fan_in = (at.x + at.condition) * at.taps;
          const std::string layer = own + "." + layer_name(step, l);
          weight.resize(static_cast<std::size_t>(at.out * fan_in));
          bias.resize(static_cast<std::size_t>(at.out));
          nn::initialise(weight, fan_in, at.out * at.taps, nn::Initialiser::standard, 1.0, seed, layer + ".weight");
          nn::initialise(bias, fan_in, at.out * at.taps, nn::Initialiser::standard, 1.0, seed, layer + ".bias");
          NORMA_CHECK(nn::pack_layer(at, {weight, bias}, own_parameters));
        }
      }
      if (shape.has_global_affine()) {
        for (std::int64_t c = 0; c < shape.channels; ++c) own_parameters[static_cast<std::size_t>(layout.global_scale + c)] = nn::kUnitGlobalScale;
      }
    }
    return model;
  }

  /// Empty in a model that was loaded.
  [[nodiscard]] std::span<float> parameters() noexcept { return parameters_.span(); }
  [[nodiscard]] std::span<const float> parameters() const noexcept { return parameters_.span(); }
  /// Empty but in training.
  [[nodiscard]] std::span<float> gradients() noexcept { return gradients_.span(); }
  [[nodiscard]] const FlowT& flow() const noexcept { return flow_; }
  /// What learns, as papers count it.
  [[nodiscard]] std::int64_t parameter_count() const noexcept {
    std::int64_t count = 0;
    for (const nn::CouplingShape& shape : blocks_) count += nn::parameter_count(shape);
    return count;
  }

  /// Before the first batch: memory for gradients, and weights in the order of the way back as well. Then `prepare`.
  Status begin_training() {
    gradients_ = Buffer<float>(parameters_.size());
    return make(nn::FlowUse::training);
  }
  /// After every change of the parameters.
  Status prepare(Parallel parallel = {}) {
    const auto needed = static_cast<std::int64_t>(flow_.scratch_bytes(nn::FlowPass::prepare, 1, parallel.workers()));
    if (scratch_.size() < needed) scratch_ = Buffer<std::byte>(needed);
    Arena arena(scratch_.span());
    return flow_.prepare(parameters_.span(), parallel, arena);
  }
  /// Back to what scoring needs.
  Status end_training(Parallel parallel = {}) {
    gradients_ = {};
    NORMA_CHECK(make(nn::FlowUse::inference));
    NORMA_CHECK(prepare(parallel));
    scratch_ = {};
    return {};
  }

  Status save(io::TensorFileWriter& writer, std::string_view prefix) const {
    if (source_) {
      NORMA_TRY(const FlowModel again, read(*source_, source_prefix_, blocks_, map_));
      return again.save(writer, prefix);
    }
    for (std::size_t b = 0; b < blocks_.size(); ++b) {
      const nn::CouplingShape& shape = blocks_[b];
      const std::string own = std::string(prefix) + std::to_string(b) + ".";
      const nn::ParameterLayout layout = nn::parameter_layout(shape);
      const auto block = parameters_of(b);
      for (int step = 0; step < shape.steps(); ++step) {
        for (int l = 0; l < shape.layers; ++l) {
          const nn::LayerLayout& at = layout.layers[step][l];
          const auto [weight_shape, bias_shape] = tensor_shapes(at, shape.kernels[l]);
          std::vector<float> weight(static_cast<std::size_t>(at.out * (at.x + at.condition) * at.taps)), bias(static_cast<std::size_t>(at.out));
          NORMA_CHECK(nn::unpack_layer(at, block, {weight, bias}));
          NORMA_CHECK(writer.add(own + layer_name(step, l) + ".weight", weight_shape, std::span<const float>(weight)));
          NORMA_CHECK(writer.add(own + layer_name(step, l) + ".bias", bias_shape, std::span<const float>(bias)));
        }
      }
      if (shape.has_global_affine()) {
        const auto channels = static_cast<std::size_t>(shape.channels);
        NORMA_CHECK(writer.add(own + "scale", {shape.channels}, block.subspan(static_cast<std::size_t>(layout.global_scale), channels)));
        NORMA_CHECK(writer.add(own + "offset", {shape.channels}, block.subspan(static_cast<std::size_t>(layout.global_offset), channels)));
      }
      if (shape.mixing == nn::ChannelMixing::permutation) {
        NORMA_CHECK(writer.add(own + "permutation", {shape.channels}, std::span<const std::int64_t>(permutations_[b])));
      } else {
        NORMA_CHECK(writer.add(own + "rotation", {shape.channels, shape.channels}, rotations_[b].span()));
      }
    }
    return {};
  }

  /// Ready to score with. Keeps the weights in the order of the products alone, and the file to read them from when they are saved. Errors
  /// name file and tensor: missing, of another shape, not finite; a permutation that is none.
  static Result<FlowModel> load(const io::Weights& weights, std::string_view prefix, std::vector<nn::CouplingShape> blocks, Shape map,
                                Parallel parallel = {}) {
    NORMA_TRY(FlowModel model, read(weights, prefix, std::move(blocks), map));
    NORMA_CHECK(model.end_training(parallel).with_context("'" + weights.name() + "'"));
    model.parameters_ = {};
    for (auto& rotation : model.rotations_) rotation = {};
    model.source_ = weights;
    model.source_prefix_ = prefix;
    return model;
  }

 private:
  static Result<FlowModel> read(const io::Weights& weights, std::string_view prefix, std::vector<nn::CouplingShape> blocks, Shape map) {
    // Every tensor is found and its shape compared before memory of that size is asked for: the settings of a file are only its word.
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      NORMA_CHECK(nn::check_shape("FlowModel::load: block " + std::to_string(b), blocks[b]));
      NORMA_CHECK(check_tensors(weights, std::string(prefix) + std::to_string(b) + ".", blocks[b]));
    }
    NORMA_TRY(FlowModel model, empty(std::move(blocks), map));
    const auto finite = [&](const std::string& tensor, const std::vector<std::int64_t>& shape, std::span<float> to) -> Status {
      NORMA_CHECK(weights.read(tensor, shape, to));
      if (first_not_finite(to) < 0) return {};
      return {Errc::not_finite, weights.name() + ": tensor '" + tensor + "' holds a number that is not finite"};
    };
    for (std::size_t b = 0; b < model.blocks_.size(); ++b) {
      const nn::CouplingShape& shape = model.blocks_[b];
      const std::string own = std::string(prefix) + std::to_string(b) + ".";
      const nn::ParameterLayout layout = nn::parameter_layout(shape);
      const auto block = model.parameters_of(b);
      for (int step = 0; step < shape.steps(); ++step) {
        for (int l = 0; l < shape.layers; ++l) {
          const nn::LayerLayout& at = layout.layers[step][l];
          const auto [weight_shape, bias_shape] = tensor_shapes(at, shape.kernels[l]);
          std::vector<float> weight(static_cast<std::size_t>(at.out * (at.x + at.condition) * at.taps)), bias(static_cast<std::size_t>(at.out));
          NORMA_CHECK(finite(own + layer_name(step, l) + ".weight", weight_shape, weight));
          NORMA_CHECK(finite(own + layer_name(step, l) + ".bias", bias_shape, bias));
          NORMA_CHECK(nn::pack_layer(at, {weight, bias}, block));
        }
      }
      if (shape.has_global_affine()) {
        const auto channels = static_cast<std::size_t>(shape.channels);
        NORMA_CHECK(finite(own + "scale", {shape.channels}, block.subspan(static_cast<std::size_t>(layout.global_scale), channels)));
        NORMA_CHECK(finite(own + "offset", {shape.channels}, block.subspan(static_cast<std::size_t>(layout.global_offset), channels)));
      }
      if (shape.mixing == nn::ChannelMixing::permutation) {
        auto& permutation = model.permutations_[b];
        permutation.resize(static_cast<std::size_t>(shape.channels));
        NORMA_CHECK(weights.read_raw(own + "permutation", io::DType::i64, {shape.channels}, std::as_writable_bytes(std::span(permutation))));
        NORMA_CHECK(nn::pack_permutation(permutation).status().with_context(weights.name() + ": tensor '" + own + "permutation'"));
      } else {
        model.rotations_[b] = Buffer<float>(shape.channels * shape.channels);
        NORMA_CHECK(finite(own + "rotation", {shape.channels, shape.channels}, model.rotations_[b].span()));
        for (std::int64_t r = 0; r < shape.channels; ++r) {
          double length = 0.0;
          for (std::int64_t c = 0; c < shape.channels; ++c) {
            const auto value = static_cast<double>(model.rotations_[b][r * shape.channels + c]);
            length += value * value;
          }
          if (std::abs(length - 1.0) > 1e-3) {
            return Status(Errc::corrupt, weights.name() + ": tensor '" + own + "rotation' is no rotation: row " + std::to_string(r) +
                                             " has the squared length " + std::to_string(length));
          }
        }
      }
    }
    return model;
  }
  static Result<FlowModel> empty(std::vector<nn::CouplingShape> blocks, Shape map) {
    FlowModel model;
    model.map_ = map;
    std::int64_t total = 0;
    for (const nn::CouplingShape& shape : blocks) {
      NORMA_CHECK(nn::check_shape("FlowModel", shape));
      model.offsets_.push_back(total);
      total += nn::parameter_layout(shape).total;
    }
    model.parameters_ = Buffer<float>(total);
    model.permutations_.resize(blocks.size());
    model.rotations_.resize(blocks.size());
    model.blocks_ = std::move(blocks);
    return model;
  }
  Status make(nn::FlowUse use) {
    std::vector<nn::FlowBlock> blocks;
    for (std::size_t b = 0; b < blocks_.size(); ++b) blocks.push_back({blocks_[b], permutations_[b], rotations_[b].span()});
    NORMA_TRY(flow_, FlowT::create(blocks, map_, use));
    return {};
  }
  [[nodiscard]] std::span<float> parameters_of(std::size_t b) noexcept {
    return parameters_.span().subspan(static_cast<std::size_t>(offsets_[b]), static_cast<std::size_t>(nn::parameter_layout(blocks_[b]).total));
  }
  [[nodiscard]] std::span<const float> parameters_of(std::size_t b) const noexcept {
    return parameters_.span().subspan(static_cast<std::size_t>(offsets_[b]), static_cast<std::size_t>(nn::parameter_layout(blocks_[b]).total));
  }
  static std::string layer_name(int step, int l) { return "subnet" + std::to_string(step) + "." + std::to_string(l); }
  static std::pair<std::vector<std::int64_t>, std::vector<std::int64_t>> tensor_shapes(const nn::LayerLayout& at, std::int64_t kernel) {
    std::vector<std::int64_t> weight{at.out, at.x + at.condition};
    if (kernel > 1) weight.insert(weight.end(), {kernel, kernel});
    return {std::move(weight), {at.out}};
  }
  static Status check_tensors(const io::Weights& weights, const std::string& own, const nn::CouplingShape& shape) {
    const auto check = [&](const std::string& tensor, const std::vector<std::int64_t>& expected) -> Status {
      NORMA_TRY(const io::TensorInfo info, weights.get(tensor));
      if (std::equal(info.shape.begin(), info.shape.end(), expected.begin(), expected.end())) return {};
      return {Errc::shape_mismatch, weights.name() + ": tensor '" + tensor + "' has shape " + io::detail::shape_text(info.shape) + ", expected " +
                                        io::detail::shape_text(expected)};
    };
    const nn::ParameterLayout layout = nn::parameter_layout(shape);
    for (int step = 0; step < shape.steps(); ++step) {
      for (int l = 0; l < shape.layers; ++l) {
        const auto [weight, bias] = tensor_shapes(layout.layers[step][l], shape.kernels[l]);
        NORMA_CHECK(check(own + layer_name(step, l) + ".weight", weight));
        NORMA_CHECK(check(own + layer_name(step, l) + ".bias", bias));
      }
    }
    if (shape.has_global_affine()) {
      NORMA_CHECK(check(own + "scale", {shape.channels}));
      NORMA_CHECK(check(own + "offset", {shape.channels}));
    }
    if (shape.mixing == nn::ChannelMixing::permutation) return check(own + "permutation", {shape.channels});
    return check(own + "rotation", {shape.channels, shape.channels});
  }

  std::vector<nn::CouplingShape> blocks_;
  Shape map_;
  std::vector<std::int64_t> offsets_;
  std::vector<std::vector<std::int64_t>> permutations_;
  std::vector<Buffer<float>> rotations_;
  Buffer<float> parameters_, gradients_;
  FlowT flow_;
  Buffer<std::byte> scratch_;
  std::optional<io::Weights> source_;  // where the parameters are that are not kept here
  std::string source_prefix_;
};

}  // namespace norma
