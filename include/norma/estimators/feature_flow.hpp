/// \file
/// FastFlow's estimator: one convolutional flow for each layer's map, trained so that normal maps become white noise.
/// Source:      Yu et al., "FastFlow: unsupervised anomaly detection and localization via 2D normalizing flows", arXiv 2111.07677. Blocks as
///              the public codes have them (nn/coupling_types.hpp: fastflow_block); the paper describes two couplings a step, which is
///              `flow_block = glow`.
/// Shapes:      level l [1, h_l, w_l, c_l] -> latents of the same shape
/// Determinism: bitwise for a fixed machine, any number of threads, interrupted or not
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/estimators/flow_model.hpp>
#include <norma/estimators/trainer.hpp>
#include <norma/nn/training/losses.hpp>

namespace norma {

/// Sides of the subnets' convolutions.
enum class FlowKernels : std::uint8_t {
  automatic,    ///< three where the last level has at most 512 channels (ResNet-18), else alternating
  three,        ///< 3 in every block
  alternating,  ///< 3, 1, 3, 1, ...
};
constexpr std::string_view to_string(FlowKernels kernels) noexcept {
  switch (kernels) {
    case FlowKernels::automatic: return "automatic";
    case FlowKernels::three: return "three";
    case FlowKernels::alternating: return "alternating";
  }
  return "unknown";
}
constexpr bool from_string(std::string_view text, FlowKernels& kernels) noexcept {
  for (const auto candidate : {FlowKernels::automatic, FlowKernels::three, FlowKernels::alternating}) {
    if (text == to_string(candidate)) return kernels = candidate, true;
  }
  return false;
}

/// What is done to a level's map in front of its flow.
enum class FlowNormalisation : std::uint8_t {
  automatic,  ///< plain where there are several levels, none for one (a transformer's map is normalised by the network)
  none,
  plain,   ///< mean 0, variance 1 over channels and positions of the image
  affine,  ///< and then a weight and a bias of every number, which learn: as public codes do, though the likelihood does not count them
};
constexpr std::string_view to_string(FlowNormalisation normalisation) noexcept {
  switch (normalisation) {
    case FlowNormalisation::automatic: return "automatic";
    case FlowNormalisation::none: return "none";
    case FlowNormalisation::plain: return "plain";
    case FlowNormalisation::affine: return "affine";
  }
  return "unknown";
}
constexpr bool from_string(std::string_view text, FlowNormalisation& normalisation) noexcept {
  for (const auto candidate : {FlowNormalisation::automatic, FlowNormalisation::none, FlowNormalisation::plain, FlowNormalisation::affine}) {
    if (text == to_string(candidate)) return normalisation = candidate, true;
  }
  return false;
}

/// The block of a step. An enumeration of its own because a settings file knows it by these words.
enum class FlowBlockKind : std::uint8_t {
  all_in_one,  ///< one coupling, then a scale and an offset of every channel: the public codes
  glow,        ///< two couplings on alternating halves: the paper's text
};
constexpr std::string_view to_string(FlowBlockKind kind) noexcept { return kind == FlowBlockKind::glow ? "glow" : "all_in_one"; }
constexpr bool from_string(std::string_view text, FlowBlockKind& kind) noexcept {
  if (text != "glow" && text != "all_in_one") return false;
  kind = text == "glow" ? FlowBlockKind::glow : FlowBlockKind::all_in_one;
  return true;
}

/// `FlowT` runs the flows: nn::Flow, or one with the same calls, as cuda::Flow. Model files do not depend on it.
template <class FlowT = nn::Flow>
class FeatureFlow {
 public:
  static constexpr std::string_view name = "feature_flow";

  struct Settings {
    TrainingSettings training{.epochs = 500, .batch = 32, .learning_rate = 1e-3, .weight_decay = 1e-5};
    std::int64_t flow_steps = 0;
    FlowBlockKind flow_block = FlowBlockKind::all_in_one;
    FlowKernels flow_kernels = FlowKernels::automatic;
    double hidden_ratio = 0.0;
    double clamp = 2.0;
    FlowNormalisation normalisation = FlowNormalisation::automatic;

    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      TrainingSettings::visit(self.training, visitor);
      visitor("flow_steps", self.flow_steps, "blocks of each flow; 0: 8 where there are several levels, 20 for one");
      visitor("flow_block", self.flow_block, "all_in_one (public codes) or glow (two couplings a step, as the paper describes)");
      visitor("flow_kernels", self.flow_kernels, "sides of the subnets' convolutions: three, alternating (3, 1, 3, ...) or automatic");
      visitor("hidden_ratio", self.hidden_ratio,
              "hidden channels of a subnet as a share of its input's; 0: 1 where there are several levels, 0.16 for one");
      visitor("clamp", self.clamp, "largest logarithm of a coupling's scale");
      visitor("normalisation", self.normalisation, "of a level in front of its flow: none, plain, affine or automatic");
    }
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  /// Block `step` of level l's flow.
  static constexpr nn::CouplingShape block(const FeatureShapes& shapes, int l, std::int64_t step, const Settings& settings) noexcept {
    const bool alternating = settings.flow_kernels == FlowKernels::alternating ||
                             (settings.flow_kernels == FlowKernels::automatic && shapes[shapes.count - 1].channels > 512);
    const double ratio = settings.hidden_ratio > 0.0 ? settings.hidden_ratio : shapes.count > 1 ? 1.0 : 0.16;
    nn::CouplingShape shape = nn::fastflow_block(shapes[l].channels, alternating && step % 2 == 1 ? 1 : 3, ratio);
    if (settings.flow_block == FlowBlockKind::glow) shape.kind = nn::BlockKind::glow;
    shape.hidden[0] = std::max<std::int64_t>(static_cast<std::int64_t>(ratio * static_cast<double>(shape.first())), 1);
    shape.alpha = static_cast<float>(settings.clamp);
    return shape;
  }
  static constexpr std::int64_t steps(const FeatureShapes& shapes, const Settings& settings) noexcept {
    return settings.flow_steps > 0 ? settings.flow_steps : shapes.count > 1 ? 8 : 20;
  }
  /// Numbers that learn, without those of an affine normalisation: what papers count.
  static constexpr std::int64_t parameter_count(const FeatureShapes& shapes, const Settings& settings = Settings{}) noexcept {
    std::int64_t count = 0;
    for (int l = 0; l < shapes.count; ++l) {
      for (std::int64_t s = 0; s < steps(shapes, settings); ++s) count += nn::parameter_count(block(shapes, l, s, settings));
    }
    return count;
  }

  static Result<FeatureFlow> create(const FeatureShapes& shapes, const Settings& settings) {
    if (shapes.count < 1) return Status{Errc::shape_mismatch, "FeatureFlow: the backbone gives no features"};
    NORMA_CHECK(settings.training.validate("FeatureFlow"));
    const auto refuse = [](std::string_view what, const std::string& found) {
      return Status(Errc::invalid_argument, "FeatureFlow: " + std::string(what) + ", found " + found);
    };
    if (settings.flow_steps < 0 || settings.flow_steps > 1000) return refuse("flow_steps must be in 0..1000", std::to_string(settings.flow_steps));
    if (!(settings.hidden_ratio >= 0.0 && settings.hidden_ratio <= 16.0))
      return refuse("hidden_ratio must be in 0..16", std::to_string(settings.hidden_ratio));
    if (!(settings.clamp > 0.0 && settings.clamp <= 20.0)) return refuse("clamp must be in (0, 20]", std::to_string(settings.clamp));
    for (int l = 0; l < shapes.count; ++l) NORMA_CHECK(nn::check_shape("FeatureFlow: level " + std::to_string(l), block(shapes, l, 0, settings)));
    FeatureFlow estimator;
    estimator.settings_ = settings;
    estimator.shapes_ = shapes;
    return estimator;
  }

  /// Weights, gradients, moments, the best epoch's, the weights in the order of both ways (3x3 ones transformed to 6x6), the buffers of a batch.
  static double fit_bytes(const FeatureShapes& shapes, std::int64_t images, const Settings& settings) noexcept {
    const double copies = settings.training.holdout > 0.0 ? 5.0 : 4.0;
    const bool affine = settings.normalisation == FlowNormalisation::affine;
    double floats = 0.0, largest = 0.0;
    std::size_t scratch = 0;
    const std::int64_t batch = std::min(settings.training.batch, std::max<std::int64_t>(images, 1));
    for (int l = 0; l < shapes.count; ++l) {
      for (std::int64_t s = 0; s < steps(shapes, settings); ++s) {
        const nn::CouplingShape shape = block(shapes, l, s, settings);
        floats += static_cast<double>(nn::parameter_count(shape)) * (copies + (shape.kernels[0] == 3 ? 8.0 : 2.0));
        scratch = std::max(scratch, nn::flow_scratch_bytes({&shape, 1}, shapes[l], nn::FlowPass::backward, batch, 1));
      }
      const auto numbers = static_cast<double>(shapes[l].count());
      if (affine) floats += 2.0 * copies * numbers;
      largest = std::max(largest, numbers);
    }
    floats += static_cast<double>(batch) * (static_cast<double>(shapes.numbers()) + (affine ? 3.0 : 2.0) * largest);
    return 4.0 * floats + static_cast<double>(scratch);
  }

  Status train(const TrainingImages& images, const TrainingContext& context) {
    const Settings& s = settings_;
    if (!(images.shapes() == shapes_)) return {Errc::shape_mismatch, "FeatureFlow::train: features of another shape than the estimator was made for"};
    NORMA_TRY(Trainer trainer, Trainer::create(s.training, context, images.size(), nn::LastBatch::drop));
    const int levels = shapes_.count;
    const std::int64_t batch = std::max(trainer.batch(), static_cast<std::int64_t>(1));
    levels_.clear();
    levels_.resize(static_cast<std::size_t>(levels));
    std::vector<nn::Adam> adam(static_cast<std::size_t>(levels)), affine_adam(static_cast<std::size_t>(levels));
    std::vector<Buffer<float>> x(static_cast<std::size_t>(levels));
    std::int64_t largest = 0;
    std::size_t scratch = 0;
    const nn::AdamSettings optimiser{.learning_rate = static_cast<float>(s.training.learning_rate),
                                     .weight_decay = static_cast<float>(s.training.weight_decay)};
    for (int l = 0; l < levels; ++l) {
      Level& level = levels_[static_cast<std::size_t>(l)];
      const std::string own = "level" + std::to_string(l);
      NORMA_TRY(level.model, FlowModel<FlowT>::create(blocks(l), shapes_[l], context.seed, own));
      NORMA_CHECK(level.model.begin_training());
      NORMA_TRY(adam[static_cast<std::size_t>(l)], nn::Adam::create(static_cast<std::int64_t>(level.model.parameters().size()), optimiser));
      trainer.parameters(own, level.model.parameters());
      trainer.optimiser(own + ".adam", adam[static_cast<std::size_t>(l)]);
      if (normalisation() == FlowNormalisation::affine) {
        level.affine = Buffer<float>(2 * shapes_[l].count());
        std::fill_n(level.affine.data(), shapes_[l].count(), 1.0f);
        NORMA_TRY(affine_adam[static_cast<std::size_t>(l)], nn::Adam::create(level.affine.size(), optimiser));
        trainer.parameters(own + ".affine", level.affine.span());
        trainer.optimiser(own + ".affine.adam", affine_adam[static_cast<std::size_t>(l)]);
      }
      x[static_cast<std::size_t>(l)] = Buffer<float>(batch * shapes_[l].count());
      largest = std::max(largest, shapes_[l].count());
      scratch = std::max(scratch, level.model.flow().scratch_bytes(nn::FlowPass::backward, batch, context.parallel.workers()));
    }
    Buffer<float> y, z(batch * largest), dz(batch * largest), affine_gradient;
    if (normalisation() == FlowNormalisation::affine) y = Buffer<float>(batch * largest), affine_gradient = Buffer<float>(2 * largest);
    Buffer<std::byte> memory(static_cast<std::int64_t>(scratch));
    std::vector<float> logdet(static_cast<std::size_t>(batch)), dlogdet(static_cast<std::size_t>(batch));

    // Gathers, normalises and flows level after level: the mean of (0.5 |z|^2 - logdet), summed over the levels.
    const auto run = [&](std::span<const std::int64_t> chosen, bool learn) -> Result<double> {
      const auto count = static_cast<std::int64_t>(chosen.size());
      std::vector<float*> to;
      for (auto& buffer : x) to.push_back(buffer.data());
      NORMA_CHECK(images.gather(chosen, {}, to));
      double loss = 0.0;
      for (int l = 0; l < levels; ++l) {
        Level& level = levels_[static_cast<std::size_t>(l)];
        const std::int64_t size = shapes_[l].count();
        float* normal = x[static_cast<std::size_t>(l)].data();
        float* in = level.affine.empty() ? normal : y.data();
        context.parallel.run(count, [&](std::int64_t n, int) {
          normalise(normal + n * size, size);
          if (!level.affine.empty()) scale(level.affine, normal + n * size, in + n * size, size);
        });
        NORMA_CHECK(level.model.prepare(context.parallel));
        Arena arena(memory.span());
        const TensorView<const float> input(in, count, shapes_[l]);
        const TensorView<float> latent(z.data(), count, shapes_[l]), gradient(dz.data(), count, shapes_[l]);
        const std::span<float> dets(logdet.data(), static_cast<std::size_t>(count)), ddets(dlogdet.data(), static_cast<std::size_t>(count));
        NORMA_CHECK(level.model.flow().forward(input, {}, latent, dets, {}, context.parallel, arena));
        loss += nn::flow_likelihood_loss({z.data(), count, size}, dets, 1.0, learn ? MatrixView<float>(dz.data(), count, size) : MatrixView<float>(),
                                         learn ? ddets : std::span<float>());
        if (!learn) continue;
        const bool affine = !level.affine.empty();
        NORMA_CHECK(level.model.flow().backward(latent, {}, gradient, ddets, level.model.gradients(), affine ? gradient : TensorView<float>(), {},
                                                context.parallel, arena));
        const auto rate = static_cast<float>(s.training.learning_rate);
        adam[static_cast<std::size_t>(l)].step(level.model.parameters(), level.model.gradients(), rate, context.parallel);
        if (!affine) continue;
        const std::span<float> gradients(affine_gradient.data(), static_cast<std::size_t>(2 * size));
        affine_gradients(normal, dz.data(), count, size, gradients, context.parallel);
        affine_adam[static_cast<std::size_t>(l)].step(level.affine.span(), gradients, rate, context.parallel);
      }
      return loss;
    };
    const auto held_out = [&](std::span<const std::int64_t> chosen) -> Result<double> {
      double total = 0.0;
      for (std::size_t first = 0; first < chosen.size(); first += static_cast<std::size_t>(batch)) {
        const auto part = chosen.subspan(first, std::min<std::size_t>(static_cast<std::size_t>(batch), chosen.size() - first));
        NORMA_TRY(const double loss, run(part, false));
        total += loss * static_cast<double>(part.size());
      }
      return total / static_cast<double>(chosen.size());
    };
    NORMA_CHECK(trainer.run([&](const nn::TrainingBatch&, std::span<const std::int64_t> chosen) { return run(chosen, true); }, held_out));
    for (Level& level : levels_) NORMA_CHECK(level.model.end_training(context.parallel));
    record_ = trainer.record();
    return {};
  }

  [[nodiscard]] const TrainingRecord& record() const noexcept { return record_; }
  [[nodiscard]] const FeatureShapes& shapes() const noexcept { return shapes_; }

  /// Latents of level l of one image, `z` [1, h_l, w_l, c_l], and the logarithm of the determinant where `logdet` is not null. Allocates nothing.
  static constexpr std::size_t latent_scratch_bytes(const FeatureShapes& shapes, const Settings& settings, int workers) noexcept {
    std::size_t most = 0;
    for (int l = 0; l < shapes.count; ++l) {
      const nn::CouplingShape both[] = {block(shapes, l, 0, settings), block(shapes, l, 1, settings)};
      most = std::max(most, nn::flow_scratch_bytes(both, shapes[l], nn::FlowPass::forward, 1, workers));
    }
    return most;
  }
  Status latent(int l, TensorView<const float> features, TensorView<float> z, float* logdet, Context& context) const {
    if (levels_.empty()) return {Errc::not_fitted, "FeatureFlow::latent: train it or load a model first"};
    NORMA_EXPECTS(l >= 0 && l < shapes_.count);
    const Level& level = levels_[static_cast<std::size_t>(l)];
    const std::int64_t size = shapes_[l].count();
    if (!(features.shape() == shapes_[l]) || !(z.shape() == shapes_[l])) {
      return {Errc::shape_mismatch, "FeatureFlow::latent: features or latents of another shape than level " + std::to_string(l)};
    }
    std::copy_n(features.data, size, z.data);
    normalise(z.data, size);
    if (!level.affine.empty()) scale(level.affine, z.data, z.data, size);
    return level.model.flow().forward(TensorView<const float>(z.data, 1, shapes_[l]), {}, z,
                                      {logdet, logdet != nullptr ? std::size_t{1} : std::size_t{0}}, {}, context.parallel, context.arena);
  }

  Status save(io::TensorFileWriter& writer) const {
    for (int l = 0; l < shapes_.count; ++l) {
      const Level& level = levels_[static_cast<std::size_t>(l)];
      const std::string own = prefix(l);
      NORMA_CHECK(level.model.save(writer, own));
      if (level.affine.empty()) continue;
      const Shape shape = shapes_[l];
      const auto half = static_cast<std::size_t>(shape.count());
      NORMA_CHECK(writer.add_view(own + "norm.weight", {shape.height, shape.width, shape.channels}, level.affine.span().first(half)));
      NORMA_CHECK(writer.add_view(own + "norm.bias", {shape.height, shape.width, shape.channels}, level.affine.span().subspan(half)));
    }
    return save_record(record_, writer);
  }

  static Result<FeatureFlow> load(const io::Weights& weights, const FeatureShapes& shapes, const Settings& settings, Parallel parallel) {
    NORMA_TRY(FeatureFlow loaded, create(shapes, settings));
    loaded.levels_.resize(static_cast<std::size_t>(shapes.count));
    for (int l = 0; l < shapes.count; ++l) {
      Level& level = loaded.levels_[static_cast<std::size_t>(l)];
      NORMA_TRY(level.model, FlowModel<FlowT>::load(weights, prefix(l), loaded.blocks(l), shapes[l], parallel));
      if (loaded.normalisation() != FlowNormalisation::affine) continue;
      const Shape shape = shapes[l];
      for (const char* part : {"norm.weight", "norm.bias"}) {  // before memory of that size is asked for
        NORMA_TRY(const io::TensorInfo info, weights.get(prefix(l) + part));
        const std::int64_t expected[] = {shape.height, shape.width, shape.channels};
        if (std::equal(info.shape.begin(), info.shape.end(), std::begin(expected), std::end(expected))) continue;
        return Status(Errc::shape_mismatch, weights.name() + ": tensor '" + prefix(l) + part + "' has shape " + io::detail::shape_text(info.shape) +
                                                ", expected " + io::detail::shape_text(expected));
      }
      Buffer<float> affine(2 * shape.count());
      const auto half = static_cast<std::size_t>(shape.count());
      NORMA_CHECK(weights.read(prefix(l) + "norm.weight", {shape.height, shape.width, shape.channels}, affine.span().first(half)));
      NORMA_CHECK(weights.read(prefix(l) + "norm.bias", {shape.height, shape.width, shape.channels}, affine.span().subspan(half)));
      if (first_not_finite(affine.span()) >= 0) {
        return Status(Errc::not_finite, weights.name() + ": tensor '" + prefix(l) + "norm.weight' or its bias holds a number that is not finite");
      }
      level.affine = std::move(affine);
    }
    NORMA_TRY(loaded.record_, load_record(weights));
    return loaded;
  }

 private:
  struct Level {
    FlowModel<FlowT> model;
    Buffer<float> affine;  // weight, then bias, of every number of the map; empty where the normalisation has none
  };

  static std::string prefix(int l) { return "estimator.level" + std::to_string(l) + "."; }
  [[nodiscard]] std::vector<nn::CouplingShape> blocks(int l) const {
    std::vector<nn::CouplingShape> all;
    for (std::int64_t s = 0; s < steps(shapes_, settings_); ++s) all.push_back(block(shapes_, l, s, settings_));
    return all;
  }
  [[nodiscard]] FlowNormalisation normalisation() const noexcept {
    if (settings_.normalisation != FlowNormalisation::automatic) return settings_.normalisation;
    return shapes_.count > 1 ? FlowNormalisation::plain : FlowNormalisation::none;
  }
  /// (x - mean) / sqrt(variance + 1e-5) over all numbers of one image's level.
  void normalise(float* x, std::int64_t size) const noexcept {
    if (normalisation() == FlowNormalisation::none) return;
    double sum = 0.0, squares = 0.0;
    for (std::int64_t i = 0; i < size; ++i) sum += static_cast<double>(x[i]);
    const double mean = sum / static_cast<double>(size);
    for (std::int64_t i = 0; i < size; ++i) {
      const double d = static_cast<double>(x[i]) - mean;
      squares += d * d;
    }
    const double factor = 1.0 / std::sqrt(squares / static_cast<double>(size) + 1e-5);
    for (std::int64_t i = 0; i < size; ++i) x[i] = static_cast<float>((static_cast<double>(x[i]) - mean) * factor);
  }
  static void scale(const Buffer<float>& affine, const float* from, float* to, std::int64_t size) noexcept {
    const float* weight = affine.data();
    const float* bias = weight + size;
    for (std::int64_t i = 0; i < size; ++i) to[i] = from[i] * weight[i] + bias[i];
  }
  static void affine_gradients(const float* normal, const float* dy, std::int64_t count, std::int64_t size, std::span<float> gradients,
                               Parallel parallel) {
    parallel.run_ranges(size, 4096, [&](std::int64_t first, std::int64_t last, int) {
      for (std::int64_t i = first; i < last; ++i) {
        float weight = 0.0f, bias = 0.0f;
        for (std::int64_t n = 0; n < count; ++n) {
          weight += dy[n * size + i] * normal[n * size + i];
          bias += dy[n * size + i];
        }
        gradients[static_cast<std::size_t>(i)] = weight;
        gradients[static_cast<std::size_t>(size + i)] = bias;
      }
    });
  }

  Settings settings_{};
  FeatureShapes shapes_;
  std::vector<Level> levels_;
  TrainingRecord record_;
};

static_assert(TrainingEstimator<FeatureFlow<>>);

}  // namespace norma
