/// \file
/// CS-Flow's estimator: one flow over the feature maps of three image sizes, trained so that normal images become white noise.
/// Source:      Rudolph et al., "Fully convolutional cross-scale-flows for image-based defect detection", WACV 2022. Blocks: nn/cross_scale_types.hpp
/// Shapes:      levels [1, h, w, c], [1, h / 2, w / 2, c], [1, h / 4, w / 4, c] -> latents of the same shapes
/// Units:       loss: mean over the images of (|z|^2 / 2 - log-determinant) / numbers of an image
/// Cost:        with the published widths 275 M weights; see docs/methods/csflow.md
/// Determinism: bitwise for a fixed machine, any number of threads, interrupted or not
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/context.hpp>
#include <norma/core/finite.hpp>
#include <norma/core/random.hpp>
#include <norma/core/tensor.hpp>
#include <norma/estimators/trainer.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/nn/cross_scale_flow.hpp>
#include <norma/nn/training/initialise.hpp>
#include <norma/nn/training/losses.hpp>

namespace norma {

/// Tensors of a model file, in the order and layout of PyTorch modules: `estimator.<block>.subnet<step>.<convolution>.weight` [out, in, k, k] and
/// `.bias` [out] (convolutions as nn::cross_scale_name calls them), `estimator.<block>.subnet<step>.gamma` [3],
/// `estimator.<block>.permutation<level>` [C] (I64).
class ScaleFlow {
 public:
  static constexpr std::string_view name = "cross_scale_flow";

  struct Settings {
    TrainingSettings training{.epochs = 240, .batch = 16, .learning_rate = 2e-4, .weight_decay = 1e-5};
    std::int64_t flow_steps = 4;
    std::int64_t hidden_channels = 1024;
    std::int64_t kernel = 3;
    std::int64_t last_kernel = 5;
    double clamp = 3.0;
    double gradient_clip = 1.0;
    double adam_epsilon = 1e-4;
    double adam_beta1 = 0.9;
    double adam_beta2 = 0.999;

    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      TrainingSettings::visit(self.training, visitor);
      visitor("flow_steps", self.flow_steps, "blocks of the flow");
      visitor("hidden_channels", self.hidden_channels, "hidden channels of every subnet");
      visitor("kernel", self.kernel, "side of the subnets' convolutions (1, 3, 5, 7), but for the last block's");
      visitor("last_kernel", self.last_kernel, "side of the convolutions of the last block's subnets (1, 3, 5, 7)");
      visitor("clamp", self.clamp, "alpha of the arctangent that bounds the logarithm of a coupling's scale (0.999 alpha at most)");
      visitor("gradient_clip", self.gradient_clip, "largest norm of all gradients of a step; 0: any");
      visitor("adam_epsilon", self.adam_epsilon, "added to the root of Adam's second moment");
      visitor("adam_beta1", self.adam_beta1, "decay of Adam's mean of the gradients");
      visitor("adam_beta2", self.adam_beta2, "decay of Adam's mean of their squares");
    }
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  static constexpr nn::CrossScaleShape block(const FeatureShapes& shapes, std::int64_t step, const Settings& settings) noexcept {
    return {shapes[0].channels, settings.hidden_channels, step + 1 < settings.flow_steps ? settings.kernel : settings.last_kernel,
            static_cast<float>(settings.clamp)};
  }
  /// Numbers that learn.
  static constexpr std::int64_t parameter_count(const FeatureShapes& shapes, const Settings& settings) noexcept {
    return (settings.flow_steps - 1) * nn::parameter_count(block(shapes, 0, settings)) +
           nn::parameter_count(block(shapes, settings.flow_steps - 1, settings));
  }

  /// Errors: shape_mismatch (levels that are not three maps of equal channels, each half as large as the one before), invalid_argument.
  static Result<ScaleFlow> create(const FeatureShapes& shapes, const Settings& settings) {
    constexpr std::string_view who = "ScaleFlow";
    if (shapes.count != nn::kScales) {
      return Status(Errc::shape_mismatch, "ScaleFlow: expected features of 3 image sizes, found " + std::to_string(shapes.count) + " level(s)");
    }
    NORMA_CHECK(nn::check_finest(who, shapes[0]));
    for (int l = 1; l < nn::kScales; ++l) {
      const Shape expected = nn::scale_shape(shapes[0], l);
      if (shapes[l] == expected) continue;
      const auto text = [](Shape s) { return std::to_string(s.height) + " x " + std::to_string(s.width) + " x " + std::to_string(s.channels); };
      return Status(Errc::shape_mismatch, "ScaleFlow: level " + std::to_string(l) + ": expected " + text(expected) +
                                              ", half of the level before, found " + text(shapes[l]));
    }
    const Settings& s = settings;
    NORMA_CHECK(s.training.validate(who));
    const auto refuse = [](std::string_view what, const std::string& found) {
      return Status(Errc::invalid_argument, "ScaleFlow: " + std::string(what) + ", found " + found);
    };
    if (s.flow_steps < 1 || s.flow_steps > 64) return refuse("flow_steps must be in 1..64", std::to_string(s.flow_steps));
    if (!(s.clamp > 0.0 && s.clamp <= 20.0)) return refuse("clamp must be in (0, 20]", std::to_string(s.clamp));
    if (!(s.gradient_clip >= 0.0 && std::isfinite(s.gradient_clip)))
      return refuse("gradient_clip must be at least 0", std::to_string(s.gradient_clip));
    if (!(s.adam_epsilon > 0.0 && s.adam_epsilon <= 1.0)) return refuse("adam_epsilon must be in (0, 1]", std::to_string(s.adam_epsilon));
    if (!(s.adam_beta1 >= 0.0 && s.adam_beta1 < 1.0)) return refuse("adam_beta1 must be in [0, 1)", std::to_string(s.adam_beta1));
    if (!(s.adam_beta2 >= 0.0 && s.adam_beta2 < 1.0)) return refuse("adam_beta2 must be in [0, 1)", std::to_string(s.adam_beta2));
    NORMA_CHECK(nn::check_shape(who, block(shapes, 0, settings)));
    NORMA_CHECK(nn::check_shape(who, block(shapes, s.flow_steps - 1, settings)));
    ScaleFlow estimator;
    estimator.settings_ = settings;
    estimator.shapes_ = shapes;
    return estimator;
  }

  /// Weights, gradients and moments, the weights in the order of the products (forwards and backwards), the buffers of a batch.
  static double fit_bytes(const FeatureShapes& shapes, std::int64_t images, const Settings& settings) noexcept {
    const auto batch = std::min(settings.training.batch, std::max<std::int64_t>(images, 1));
    double floats = (settings.training.holdout > 0.0 ? 5.0 : 4.0) * static_cast<double>(parameter_count(shapes, settings)) +
                    3.0 * static_cast<double>(batch * nn::scale_dims(shapes[0]));
    std::vector<nn::CrossScaleShape> blocks;
    for (std::int64_t b = 0; b < settings.flow_steps; ++b) {
      blocks.push_back(block(shapes, b, settings));
      for (int step = 0; step < 2; ++step) {
        const nn::CrossScaleSubnet subnet = nn::cross_scale_subnet(blocks.back(), step);
        for (const nn::CrossScaleConvolution& c : subnet.convolutions) {
          const bool wide = nn::convolution_algorithm(nn::detail::cross_scale_input(shapes[0], c), c.out, nn::detail::cross_scale_geometry(c)) ==
                            nn::ConvolutionAlgorithm::winograd;
          floats += 2.0 * (wide ? 4.0 : 1.0) * static_cast<double>(c.weights());  // transformed 3x3 weights are 6x6
        }
      }
    }
    return 4.0 * floats + static_cast<double>(nn::cross_scale_scratch_bytes(blocks, shapes[0], nn::FlowPass::backward, batch, 1));
  }

  /// From first weights drawn by the seed. On error, also when the observer stops the training, the estimator is what it was.
  Status train(const TrainingImages& images, const TrainingContext& context) {
    const Settings& s = settings_;
    if (!(images.shapes() == shapes_)) return {Errc::shape_mismatch, "ScaleFlow::train: features of another shape than the estimator was made for"};
    NORMA_TRY(Trainer trainer, Trainer::create(s.training, context, images.size(), nn::LastBatch::keep));
    NORMA_TRY(Model model, Model::drawn(blocks(), shapes_[0], context.seed));
    NORMA_TRY(model.flow, model.make(nn::FlowUse::training));
    Buffer<float> gradients(model.parameters.size());
    NORMA_TRY(nn::Adam adam, nn::Adam::create(model.parameters.size(), {.learning_rate = static_cast<float>(s.training.learning_rate),
                                                                        .beta1 = static_cast<float>(s.adam_beta1),
                                                                        .beta2 = static_cast<float>(s.adam_beta2),
                                                                        .epsilon = static_cast<float>(s.adam_epsilon),
                                                                        .weight_decay = static_cast<float>(s.training.weight_decay)}));
    trainer.parameters("flow", model.parameters.span());
    trainer.optimiser("flow.adam", adam);

    const std::int64_t batch = std::max<std::int64_t>(trainer.batch(), 1);
    std::array<Buffer<float>, nn::kScales> x, z, dz;
    for (int l = 0; l < nn::kScales; ++l) {
      const auto at = static_cast<std::size_t>(l);
      x[at] = z[at] = dz[at] = Buffer<float>(batch * shapes_[l].count());
    }
    const int workers = context.parallel.workers();
    Buffer<std::byte> memory(static_cast<std::int64_t>(
        std::max(model.flow.scratch_bytes(nn::FlowPass::backward, batch, workers), model.flow.scratch_bytes(nn::FlowPass::prepare, batch, workers))));
    std::vector<float> logdet(static_cast<std::size_t>(batch)), dlogdet(static_cast<std::size_t>(batch)), none(static_cast<std::size_t>(batch));
    const auto dims = static_cast<double>(nn::scale_dims(shapes_[0]));

    const auto run = [&](std::span<const std::int64_t> chosen, bool learn) -> Result<double> {
      const auto count = static_cast<std::int64_t>(chosen.size());
      const auto views = [&](auto& of) {
        const auto level = [&](int l) { return TensorView<float>(of[static_cast<std::size_t>(l)].data(), count, shapes_[l]); };
        return nn::ScaleViews<float>(level(0), level(1), level(2));
      };
      const nn::ScaleViews<float> in = views(x), out = views(z), slope = views(dz);
      const std::array<float*, nn::kScales> to{in[0].data, in[1].data, in[2].data};
      NORMA_CHECK(images.gather(chosen, {}, to));
      Arena arena(memory.span());
      NORMA_CHECK(model.flow.prepare(model.parameters.span(), context.parallel, arena));
      const std::span<float> dets(logdet.data(), chosen.size()), ddets(dlogdet.data(), chosen.size());
      NORMA_CHECK(model.flow.forward(in, out, dets, context.parallel, arena));
      double loss = 0.0;
      for (int l = 0; l < nn::kScales; ++l) {  // the log-determinant belongs to all levels together: it is counted with the first
        const std::int64_t size = shapes_[l].count();
        loss += nn::flow_likelihood_loss({out[l].data, count, size}, l == 0 ? dets : std::span<float>(none.data(), chosen.size()), 1.0 / dims,
                                         learn ? MatrixView<float>(slope[l].data, count, size) : MatrixView<float>(),
                                         learn && l == 0 ? ddets : std::span<float>());
      }
      if (!learn) return loss / dims;
      NORMA_CHECK(model.flow.backward(out, slope, ddets, gradients.span(), {}, context.parallel, arena));
      if (s.gradient_clip > 0.0) nn::clip_gradient_norm(gradients.span(), s.gradient_clip, context.parallel);
      adam.step(model.parameters.span(), gradients.span(), static_cast<float>(s.training.learning_rate), context.parallel);
      return loss / dims;
    };
    const auto held_out = [&](std::span<const std::int64_t> chosen) -> Result<double> {
      double total = 0.0;
      for (std::size_t first = 0; first < chosen.size(); first += static_cast<std::size_t>(batch)) {
        const auto part = chosen.subspan(first, std::min(static_cast<std::size_t>(batch), chosen.size() - first));
        NORMA_TRY(const double loss, run(part, false));
        total += loss * static_cast<double>(part.size());
      }
      return total / static_cast<double>(chosen.size());
    };
    NORMA_CHECK(trainer.run([&](const nn::TrainingBatch&, std::span<const std::int64_t> chosen) { return run(chosen, true); }, held_out));
    NORMA_CHECK(model.ready(context.parallel));
    model_ = std::move(model);
    record_ = trainer.record();
    return {};
  }

  [[nodiscard]] const TrainingRecord& record() const noexcept { return record_; }
  [[nodiscard]] const FeatureShapes& shapes() const noexcept { return shapes_; }
  /// nn/cross_scale_types.hpp has their layout; empty before `train` or `load`.
  [[nodiscard]] std::span<const float> parameters() const noexcept { return model_.parameters.span(); }

  /// Latents of one image, of the features' shapes, and the logarithm of the determinant where `logdet` is not null. Allocates nothing.
  static constexpr std::size_t latent_scratch_bytes(const FeatureShapes& shapes, const Settings& settings, int workers) noexcept {
    // Where settings make no sense (create says so), memory of the nearest ones that do.
    Settings s = settings;
    s.hidden_channels = std::clamp<std::int64_t>(s.hidden_channels, 1, nn::kMostCrossScaleChannels);
    s.kernel = std::clamp<std::int64_t>(s.kernel, 1, 7);
    s.last_kernel = std::clamp<std::int64_t>(s.last_kernel, 1, 7);
    s.flow_steps = 2;
    const nn::CrossScaleShape both[] = {block(shapes, 0, s), block(shapes, 1, s)};
    return nn::cross_scale_scratch_bytes(both, shapes[0], nn::FlowPass::forward, 1, workers);
  }
  Status latent(const Features& features, const nn::ScaleViews<float>& z, float* logdet, Context& context) const {
    if (!(features.shapes() == shapes_)) return {Errc::shape_mismatch, "ScaleFlow::latent: features of another shape than the training's"};
    return model_.flow.forward({features[0], features[1], features[2]}, z, {logdet, logdet != nullptr ? std::size_t{1} : std::size_t{0}},
                               context.parallel, context.arena);
  }

  Status save(io::TensorFileWriter& writer) const {
    const auto piece = [&](std::int64_t at, std::int64_t count) {
      return model_.parameters.span().subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(count));
    };
    for (std::size_t b = 0; b < model_.permutations.size(); ++b) {
      NORMA_CHECK(for_each_tensor(b, [&](const std::string& tensor, std::int64_t at, std::span<const std::int64_t> shape, std::int64_t count) {
        return writer.add_view(tensor, shape, piece(at, count));
      }));
      for (int l = 0; l < nn::kScales; ++l) {
        const auto& order = model_.permutations[b][static_cast<std::size_t>(l)];
        NORMA_CHECK(writer.add(permutation_name(b, l), {static_cast<std::int64_t>(order.size())}, std::span<const std::int64_t>(order)));
      }
    }
    return save_record(record_, writer);
  }

  /// Ready to score with. Errors name file and tensor: missing, of another shape, not finite; a permutation that is none.
  static Result<ScaleFlow> load(const io::Weights& weights, const FeatureShapes& shapes, const Settings& settings, Parallel parallel) {
    NORMA_TRY(ScaleFlow loaded, create(shapes, settings));
    const std::int64_t channels = shapes[0].channels;
    const auto blocks = static_cast<std::size_t>(settings.flow_steps);
    // Every tensor is found and its shape compared before memory of that size is asked for: the settings of a file are only its word.
    const auto check = [&](const std::string& tensor, std::span<const std::int64_t> expected) -> Status {
      NORMA_TRY(const io::TensorInfo info, weights.get(tensor));
      if (std::equal(info.shape.begin(), info.shape.end(), expected.begin(), expected.end())) return {};
      return {Errc::shape_mismatch, weights.name() + ": tensor '" + tensor + "' has shape " + io::detail::shape_text(info.shape) + ", expected " +
                                        io::detail::shape_text(std::vector<std::int64_t>(expected.begin(), expected.end()))};
    };
    for (std::size_t b = 0; b < blocks; ++b) {
      NORMA_CHECK(loaded.for_each_tensor(
          b, [&](const std::string& tensor, std::int64_t, std::span<const std::int64_t> shape, std::int64_t) { return check(tensor, shape); }));
      for (int l = 0; l < nn::kScales; ++l) NORMA_CHECK(check(permutation_name(b, l), std::span(&channels, 1)));
    }
    Model model(loaded.blocks(), shapes[0]);
    const auto read = [&](const std::string& tensor, std::int64_t at, std::span<const std::int64_t> shape, std::int64_t count) -> Status {
      const std::span<float> to = model.parameters.span().subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(count));
      NORMA_CHECK(weights.read(tensor, shape, to));
      if (first_not_finite(to) < 0) return {};
      return {Errc::not_finite, weights.name() + ": tensor '" + tensor + "' holds a number that is not finite"};
    };
    for (std::size_t b = 0; b < blocks; ++b) {
      NORMA_CHECK(loaded.for_each_tensor(b, read));
      for (int l = 0; l < nn::kScales; ++l) {
        auto& order = model.permutations[b][static_cast<std::size_t>(l)];
        order.resize(static_cast<std::size_t>(channels));
        NORMA_CHECK(weights.read_int64(permutation_name(b, l), {channels}, order));
        NORMA_CHECK(nn::pack_permutation(order).status().with_context(weights.name() + ": tensor '" + permutation_name(b, l) + "'"));
      }
    }
    NORMA_CHECK(model.ready(parallel));
    loaded.model_ = std::move(model);
    NORMA_TRY(loaded.record_, load_record(weights));
    return loaded;
  }

 private:
  /// The flow with its numbers.
  struct Model {
    std::vector<nn::CrossScaleShape> blocks;
    Shape finest;
    std::vector<std::array<std::vector<std::int64_t>, nn::kScales>> permutations;
    Buffer<float> parameters;
    nn::CrossScaleFlow flow;

    Model() = default;
    Model(std::vector<nn::CrossScaleShape> blocks_, Shape finest_) : blocks(std::move(blocks_)), finest(finest_), permutations(blocks.size()) {
      parameters = Buffer<float>(nn::parameter_count(blocks));
    }
    /// PyTorch's default for convolutions, gamma 0, uniform permutations. A pure function of the arguments.
    static Result<Model> drawn(std::vector<nn::CrossScaleShape> blocks_, Shape finest_, std::uint64_t seed) {
      Model model(std::move(blocks_), finest_);
      std::int64_t offset = 0;
      for (std::size_t b = 0; b < model.blocks.size(); ++b) {
        const nn::CrossScaleShape& shape = model.blocks[b];
        for (int l = 0; l < nn::kScales; ++l) {
          Random random(seed, nn::detail::name_stream(permutation_name(b, l)));
          model.permutations[b][static_cast<std::size_t>(l)] = sample_without_replacement(shape.channels, shape.channels, random);
        }
        for (int step = 0; step < 2; ++step) {
          const nn::CrossScaleSubnet subnet = nn::cross_scale_subnet(shape, step);
          for (int c = 0; c < nn::kCrossScaleConvolutions; ++c) {
            const nn::CrossScaleConvolution& at = subnet.convolutions[static_cast<std::size_t>(c)];
            const std::string own = convolution_name(b, step, c);
            float* to = model.parameters.data() + offset;
            nn::initialise({to + at.weight, static_cast<std::size_t>(at.weights())}, at.fan_in(), at.out * at.kernel * at.kernel,
                           nn::Initialiser::standard, 1.0, seed, own + ".weight");
            nn::initialise({to + at.bias, static_cast<std::size_t>(at.out)}, at.fan_in(), at.out * at.kernel * at.kernel, nn::Initialiser::standard,
                           1.0, seed, own + ".bias");
          }
        }
        offset += nn::parameter_count(shape);
      }
      return model;
    }
    [[nodiscard]] Result<nn::CrossScaleFlow> make(nn::FlowUse use) const {
      std::vector<nn::CrossScaleBlock> given;
      for (std::size_t b = 0; b < blocks.size(); ++b) given.push_back({blocks[b], {permutations[b][0], permutations[b][1], permutations[b][2]}});
      return nn::CrossScaleFlow::create(given, finest, use);
    }
    /// For scoring alone.
    Status ready(Parallel parallel) {
      flow = {};  // two of them at once would be gigabytes
      NORMA_TRY(flow, make(nn::FlowUse::inference));
      Buffer<std::byte> memory(static_cast<std::int64_t>(flow.scratch_bytes(nn::FlowPass::prepare, 1, parallel.workers())));
      Arena arena(memory.span());
      return flow.prepare(parameters.span(), parallel, arena);
    }
  };

  static std::string subnet_name(std::size_t b, int step) { return "estimator." + std::to_string(b) + ".subnet" + std::to_string(step); }
  static std::string convolution_name(std::size_t b, int step, int c) { return subnet_name(b, step) + "." + std::string(nn::cross_scale_name(c)); }
  static std::string permutation_name(std::size_t b, int l) { return "estimator." + std::to_string(b) + ".permutation" + std::to_string(l); }

  [[nodiscard]] std::vector<nn::CrossScaleShape> blocks() const {
    std::vector<nn::CrossScaleShape> all;
    for (std::int64_t b = 0; b < settings_.flow_steps; ++b) all.push_back(block(shapes_, b, settings_));
    return all;
  }
  /// body(name, place in all parameters, shape, count) -> Status for every tensor of a block but the permutations.
  template <class Body>
  Status for_each_tensor(std::size_t b, Body&& body) const {
    const auto number = static_cast<std::int64_t>(b);
    const std::int64_t offset = number * nn::parameter_count(block(shapes_, 0, settings_));  // only the last block may differ
    for (int step = 0; step < 2; ++step) {
      const nn::CrossScaleSubnet subnet = nn::cross_scale_subnet(block(shapes_, number, settings_), step);
      for (int c = 0; c < nn::kCrossScaleConvolutions; ++c) {
        const nn::CrossScaleConvolution& at = subnet.convolutions[static_cast<std::size_t>(c)];
        const std::int64_t weight[] = {at.out, at.in, at.kernel, at.kernel};
        NORMA_CHECK(body(convolution_name(b, step, c) + ".weight", offset + at.weight, std::span<const std::int64_t>(weight), at.weights()));
        NORMA_CHECK(body(convolution_name(b, step, c) + ".bias", offset + at.bias, std::span<const std::int64_t>(weight, 1), at.out));
      }
      const std::int64_t levels[] = {nn::kScales};
      NORMA_CHECK(body(subnet_name(b, step) + ".gamma", offset + subnet.gamma, std::span<const std::int64_t>(levels), std::int64_t{nn::kScales}));
    }
    return {};
  }

  Settings settings_{};
  FeatureShapes shapes_;
  Model model_;
  TrainingRecord record_;
};
static_assert(TrainingEstimator<ScaleFlow>);

}  // namespace norma
