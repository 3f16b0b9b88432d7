/// \file
/// Conditional flows over single feature vectors: for each level one flow gives the density of the vectors ("fibers") of normal images at a place of
/// the grid, told to it by a position code.
/// Source:      Gudovskiy et al., "CFLOW-AD: real-time unsupervised anomaly detection with localization via conditional normalizing flows", WACV
///              2022, sections 3 and 4, with the constants of its published code.
/// Shapes:      train and score levels [1, h_l, w_l, C_l]; condition [h_l w_l, 128]
/// Units:       log-likelihood per dimension: (log-determinant - |z|^2 / 2 - C log(2 pi) / 2) / C; larger is more normal
/// Loss:        mean over fibers of -log sigmoid(l): fibers that fit well already weigh little
/// Training:    batches of images, the last incomplete one of an epoch left out (fewer images than a batch: one batch of all); in each, level by
///              level, all its fibers in random order in batches of `fibers` (what is left over is not used; fewer fibers than that: one batch), one
///              Adam step each. Levels are independent: each has its own Adam. The learning rate follows 25 equal parts e of the training: linear
///              from a tenth of the rate at e = 0 to the cosine's value at e = 2, batch by batch, then m + (rate - m) (1 + cos(pi e / 25)) / 2 with
///              m = rate / 1000, constant within a part. At the defaults a part is 8 epochs.
/// Cost:        a fiber of C channels: 8 (C + 256) (1.5 C + 128) multiply-adds, 8 C^2 more with rotations; in training four times that
/// Determinism: bitwise for a fixed machine and seed, any number of threads, interrupted or not
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/concepts/estimator.hpp>
#include <norma/core/random.hpp>
#include <norma/core/tensor.hpp>
#include <norma/estimators/flow_model.hpp>
#include <norma/estimators/trainer.hpp>
#include <norma/features/position_code.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/nn/coupling.hpp>

namespace norma {

/// How a conditional flow mixes channels between its blocks.
enum class FiberMixing : std::uint8_t {
  rotation,     ///< random rotations: the published code
  permutation,  ///< random permutations: a third fewer multiply-adds, and no fixed matrices in the model file
};
constexpr std::string_view to_string(FiberMixing mixing) noexcept { return mixing == FiberMixing::rotation ? "rotation" : "permutation"; }
constexpr bool from_string(std::string_view text, FiberMixing& mixing) noexcept {
  for (const auto candidate : {FiberMixing::rotation, FiberMixing::permutation}) {
    if (text == to_string(candidate)) return mixing = candidate, true;
  }
  return false;
}

struct ConditionalFlowSettings {
  TrainingSettings training{.epochs = 200, .batch = 32, .learning_rate = 2e-4};
  std::int64_t flow_steps = 8;
  FiberMixing flow_mixing = FiberMixing::rotation;
  std::int64_t fibers = 256;
  double turn = 5.0;

  template <class Self, class Visitor>
  static constexpr void visit(Self& self, Visitor&& visitor) {
    TrainingSettings::visit(self.training, visitor);
    visitor("flow_steps", self.flow_steps, "blocks of each level's flow");
    visitor("flow_mixing", self.flow_mixing, "how channels are mixed between blocks: rotation or permutation");
    visitor("fibers", self.fibers, "feature vectors of one step of the optimiser");
    visitor("turn", self.turn, "in training, images are turned by up to so many degrees either way; 0: not at all");
  }
  friend constexpr bool operator==(const ConditionalFlowSettings&, const ConditionalFlowSettings&) = default;

  [[nodiscard]] Status validate() const {
    const auto refuse = [](std::string_view what, const std::string& found) {
      return Status(Errc::invalid_argument, "ConditionalFlow: " + std::string(what) + ", found " + found);
    };
    NORMA_CHECK(training.validate("ConditionalFlow"));
    if (flow_steps < 1 || flow_steps > 64) return refuse("flow_steps must be in 1..64", std::to_string(flow_steps));
    if (fibers < 1 || fibers > 65536) return refuse("fibers must be in 1..65536", std::to_string(fibers));
    if (!(turn >= 0.0 && turn <= 180.0)) return refuse("turn must be in [0, 180]", std::to_string(turn));
    return {};
  }
  /// Of the flow of a level with so many channels. All its blocks have one shape.
  [[nodiscard]] constexpr nn::CouplingShape block(std::int64_t channels) const noexcept {
    return nn::cflow_block(channels, features::kPositionCodeChannels,
                           flow_mixing == FiberMixing::rotation ? nn::ChannelMixing::rotation : nn::ChannelMixing::permutation);
  }
  /// Of a batch of images.
  [[nodiscard]] double rate(const nn::TrainingBatch& at) const {
    constexpr double kParts = 25.0;
    nn::Schedule schedule;
    schedule.kind = nn::Schedule::Kind::cosine;
    schedule.length = kParts;
    schedule.end_factor = 1e-3;
    schedule.warm_up = 2.0;
    schedule.warm_up_factor = 0.1;
    const double part = at.position() * kParts / static_cast<double>(training.epochs);
    return schedule.rate(training.learning_rate, part < schedule.warm_up ? part : std::floor(part));
  }
};

/// `FlowT` runs the flows: nn::Flow, or one with the same calls that needs no more scratch. Model files do not depend on it.
template <class FlowT = nn::Flow>
class ConditionalFlow {
 public:
  static constexpr std::string_view name = "conditional_flow";
  using Settings = ConditionalFlowSettings;

  static Result<ConditionalFlow> create(const FeatureShapes& shapes, const Settings& settings) {
    NORMA_CHECK(settings.validate());
    if (shapes.count < 1) return Status(Errc::shape_mismatch, "ConditionalFlow: the backbone gives no features");
    for (int l = 0; l < shapes.count; ++l) {
      // A position takes 512 bytes of code, and a model file names any size.
      if (shapes[l].positions() < 1 || shapes[l].positions() > std::int64_t{1} << 18) {
        return Status(Errc::shape_mismatch, "ConditionalFlow: expected 1 to 262144 positions, found " + std::to_string(shapes[l].positions()) +
                                                " in level " + std::to_string(l));
      }
      NORMA_CHECK(nn::check_shape("ConditionalFlow: level " + std::to_string(l), settings.block(shapes[l].channels)));
    }
    ConditionalFlow empty;
    empty.shapes_ = shapes;
    empty.settings_ = settings;
    return empty;
  }

  static constexpr bool wants_views(const Settings& settings) noexcept { return settings.turn > 0.0; }

  /// What learns, as the publication counts it.
  static constexpr std::int64_t parameter_count(const FeatureShapes& shapes, const Settings& settings = {}) noexcept {
    std::int64_t count = 0;
    for (int l = 0; l < shapes.count; ++l) count += settings.flow_steps * nn::parameter_count(settings.block(shapes[l].channels));
    return count;
  }

  /// Parameters, gradients, Adam's two moments, weights in the order of both ways, rotations; the features of a batch of images.
  static double fit_bytes(const FeatureShapes& shapes, std::int64_t images, const Settings& settings) {
    double floats = 0.0;
    for (int l = 0; l < shapes.count; ++l) {
      const nn::CouplingShape block = settings.block(shapes[l].channels);
      const auto channels = static_cast<double>(block.channels), blocks = static_cast<double>(settings.flow_steps);
      floats += blocks * static_cast<double>(nn::parameter_layout(block).total) * (settings.training.holdout > 0.0 ? 7.0 : 6.0);
      if (settings.flow_mixing == FiberMixing::rotation) floats += blocks * 3.0 * channels * channels;
      floats += static_cast<double>(std::min(images, settings.training.batch)) * static_cast<double>(shapes[l].count());
    }
    return 4.0 * floats;
  }

  /// From first weights. On error the estimator stays as it was.
  Status train(const TrainingImages& images, const TrainingContext& context) {
    if (!(images.shapes() == shapes_)) {
      return {Errc::shape_mismatch, "ConditionalFlow::train: expected features of the shapes given to create, found others"};
    }
    NORMA_TRY(Trainer trainer, Trainer::create(settings_.training, context, images.size(), nn::LastBatch::drop));
    NORMA_TRY(ConditionalFlow fresh, create(shapes_, settings_));
    fresh.make_codes();
    std::vector<nn::Adam> adam;
    for (int l = 0; l < shapes_.count; ++l) {
      const std::string level_name = "level" + std::to_string(l);
      NORMA_TRY(auto model, FlowModel<FlowT>::create(fresh.blocks(l), {1, 1, shapes_[l].channels}, context.seed, level_name));
      NORMA_CHECK(model.begin_training());
      fresh.models_.push_back(std::move(model));
      nn::AdamSettings optimiser;
      optimiser.learning_rate = static_cast<float>(settings_.training.learning_rate);
      optimiser.weight_decay = static_cast<float>(settings_.training.weight_decay);
      NORMA_TRY(auto own, nn::Adam::create(static_cast<std::int64_t>(fresh.models_.back().parameters().size()), optimiser));
      adam.push_back(std::move(own));
    }
    for (int l = 0; l < shapes_.count; ++l) {
      const auto at = static_cast<std::size_t>(l);
      trainer.parameters("level" + std::to_string(l), fresh.models_[at].parameters());
      trainer.optimiser("level" + std::to_string(l) + ".adam", adam[at]);
    }

    Gathered gathered(shapes_, trainer.batch());
    Work work(fresh, trainer.batch(), context.parallel.workers());
    std::vector<View> views;
    const auto batch = [&](const nn::TrainingBatch& at, std::span<const std::int64_t> chosen) -> Result<double> {
      views.clear();
      for (const std::int64_t image : chosen) {
        if (settings_.turn <= 0.0) break;
        Random random(context.seed, stream(kTurns, at.epoch, image));
        views.push_back({static_cast<float>(random.uniform(-settings_.turn, settings_.turn))});
      }
      NORMA_CHECK(images.gather(chosen, views, gathered.levels()));
      const auto rate = static_cast<float>(settings_.rate(at));
      double loss = 0.0;
      for (int l = 0; l < shapes_.count; ++l) {
        const std::int64_t rows = static_cast<std::int64_t>(chosen.size()) * shapes_[l].positions();
        const std::int64_t fibers = std::min(settings_.fibers, rows), steps = rows / fibers;
        Random random(context.seed, stream(kFiberOrder, at.epoch, at.batch * kMaxLevels + l));
        const std::vector<std::int64_t> order = sample_without_replacement(rows, rows, random);
        double level_loss = 0.0;
        for (std::int64_t s = 0; s < steps; ++s) {
          const auto picked = std::span<const std::int64_t>(order).subspan(static_cast<std::size_t>(s * fibers), static_cast<std::size_t>(fibers));
          NORMA_TRY(const double one, fresh.step(l, adam[static_cast<std::size_t>(l)], gathered.level(l), picked, rate, work, context.parallel));
          level_loss += one;
        }
        loss += level_loss / static_cast<double>(steps);
      }
      return loss / static_cast<double>(shapes_.count);
    };
    const auto validate = [&](std::span<const std::int64_t> chosen) -> Result<double> {
      for (auto& model : fresh.models_) NORMA_CHECK(model.prepare(context.parallel));
      std::array<double, kMaxLevels> sums{};
      NORMA_CHECK(fresh.for_each_level(images, chosen, gathered, work, context.parallel, [&](int l, std::span<const double> likelihoods) {
        for (const double value : likelihoods) sums[static_cast<std::size_t>(l)] += softplus(-value);
        return Status();
      }));
      double loss = 0.0;
      for (int l = 0; l < shapes_.count; ++l) {
        loss += sums[static_cast<std::size_t>(l)] / (static_cast<double>(chosen.size()) * static_cast<double>(shapes_[l].positions()));
      }
      return loss / static_cast<double>(shapes_.count);
    };
    NORMA_CHECK(trainer.run(batch, validate));

    for (auto& model : fresh.models_) NORMA_CHECK(model.end_training(context.parallel));
    fresh.record_ = trainer.record();
    fresh.maxima_.assign(static_cast<std::size_t>(shapes_.count), -std::numeric_limits<float>::infinity());
    std::vector<std::int64_t> all(static_cast<std::size_t>(images.size()));
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int64_t>(i);
    Progress progress("likelihoods", images.size(), context.observer);
    NORMA_CHECK(fresh.for_each_level(images, all, gathered, work, context.parallel, [&](int l, std::span<const double> likelihoods) {
      float& best = fresh.maxima_[static_cast<std::size_t>(l)];
      for (const double value : likelihoods) {
        if (std::isnan(value)) return Status(Errc::not_finite, "ConditionalFlow::train: the training diverged: a likelihood is not a number");
        best = std::max(best, static_cast<float>(value));
      }
      return l + 1 == shapes_.count ? progress.advance() : Status();
    }));
    for (const float value : fresh.maxima_) {
      if (!std::isfinite(value)) return {Errc::not_finite, "ConditionalFlow::train: the training diverged: no likelihood is a finite number"};
    }
    *this = std::move(fresh);
    return {};
  }

  [[nodiscard]] const TrainingRecord& record() const noexcept { return record_; }
  [[nodiscard]] const FeatureShapes& shapes() const noexcept { return shapes_; }
  [[nodiscard]] const FlowModel<FlowT>& model(int level) const noexcept { return models_[static_cast<std::size_t>(level)]; }
  /// The largest log-likelihood per dimension of each level over all positions of all training images; empty before a training.
  [[nodiscard]] std::span<const float> maxima() const noexcept { return maxima_; }

  /// Of one fiber of C channels, from |z|^2 and the log-determinant.
  [[nodiscard]] static double log_likelihood_of(double squares, double log_determinant, std::int64_t channels) noexcept {
    const auto c = static_cast<double>(channels);
    return (log_determinant - 0.5 * squares) / c - 0.5 * std::log(2.0 * std::numbers::pi);
  }

  /// -log sigmoid(l) of one fiber z [C], and `share` times its gradients by z and by the log-determinant.
  static double fiber_loss(std::span<const float> z, float log_determinant, double share, std::span<float> dz, float& dlog_determinant) noexcept {
    const auto channels = static_cast<std::int64_t>(z.size());
    const double l = log_likelihood_of(squared_length(z.data(), channels), static_cast<double>(log_determinant), channels);
    // d/dl is -sigmoid(-l); dl/dz = -z / C, dl/dlogdet = 1 / C.
    const double slope = -share / (1.0 + std::exp(l)) / static_cast<double>(channels);
    const auto factor = static_cast<float>(-slope);
    for (std::size_t c = 0; c < z.size(); ++c) dz[c] = factor * z[c];
    dlog_determinant = static_cast<float>(slope);
    return softplus(-l);
  }

  /// Memory of `log_likelihood`, whatever the level.
  static constexpr std::size_t scratch_bytes(const FeatureShapes& shapes, const Settings& settings, int workers) noexcept {
    std::size_t most = 0;
    for (int l = 0; l < shapes.count; ++l) {
      const nn::CouplingShape block = settings.block(shapes[l].channels);
      const std::int64_t positions = shapes[l].positions();
      most = std::max(most, arena_bytes<float>(shapes[l].count()) + arena_bytes<float>(positions) +
                                nn::flow_scratch_bytes({&block, 1}, {1, 1, block.channels}, nn::FlowPass::forward, positions, workers));
    }
    return most;
  }
  /// Log-likelihood per dimension of each position of a level, `patches` [h w, C], `out` [h w]. Allocates nothing. A position's value does not depend
  /// on the others. Errors: not_fitted, shape_mismatch, out_of_memory (arena), not_finite.
  Status log_likelihood(int level, MatrixView<const float> patches, std::span<double> out, Context& context) const {
    if (maxima_.empty()) return {Errc::not_fitted, "ConditionalFlow::log_likelihood: train it or load a model first"};
    if (level < 0 || level >= shapes_.count || patches.rows != shapes_[level].positions() || patches.cols != shapes_[level].channels ||
        !patches.dense() || out.size() != static_cast<std::size_t>(patches.rows)) {
      return {Errc::shape_mismatch,
              "ConditionalFlow::log_likelihood: level " + std::to_string(level) + ": features of other shapes than those trained on"};
    }
    NORMA_CHECK(evaluate(level, patches.data, out, context.parallel, context.arena));
    for (std::size_t p = 0; p < out.size(); ++p) {
      if (std::isfinite(out[p])) continue;
      return {Errc::not_finite,
              "ConditionalFlow: the likelihood at position " + std::to_string(p) + " of level " + std::to_string(level) + " is not a finite number"};
    }
    return {};
  }

  Status save(io::TensorFileWriter& writer) const {
    for (int l = 0; l < shapes_.count; ++l) NORMA_CHECK(model(l).save(writer, prefix(l)));
    NORMA_CHECK(writer.add("estimator.maxima", {shapes_.count}, std::span<const float>(maxima_)));
    return save_record(record_, writer);
  }

  static Result<ConditionalFlow> load(const io::Weights& weights, const FeatureShapes& shapes, const Settings& settings, Parallel parallel) {
    NORMA_TRY(ConditionalFlow loaded, create(shapes, settings));
    std::vector<float> maxima(static_cast<std::size_t>(shapes.count));
    NORMA_CHECK(weights.read("estimator.maxima", {shapes.count}, maxima));
    if (first_not_finite(maxima) >= 0) {
      return Status(Errc::not_finite, weights.name() + ": tensor 'estimator.maxima' holds a number that is not finite");
    }
    for (int l = 0; l < shapes.count; ++l) {
      NORMA_TRY(auto model, FlowModel<FlowT>::load(weights, prefix(l), loaded.blocks(l), {1, 1, shapes[l].channels}, parallel));
      loaded.models_.push_back(std::move(model));
    }
    NORMA_TRY(loaded.record_, load_record(weights));
    loaded.make_codes();
    loaded.maxima_ = std::move(maxima);
    return loaded;
  }

 private:
  ConditionalFlow() = default;

  // Uses of the seed. What is drawn follows from epoch, batch, image and level alone, so that an interrupted training goes on with the same numbers.
  static constexpr std::uint64_t kTurns = 0xc1, kFiberOrder = 0xc2;
  static constexpr std::uint64_t stream(std::uint64_t use, std::int64_t epoch, std::int64_t item) noexcept {
    return use << 56 ^ static_cast<std::uint64_t>(epoch) << 32 ^ static_cast<std::uint64_t>(item);
  }

  static std::string prefix(int level) { return "estimator.level" + std::to_string(level) + "."; }
  [[nodiscard]] std::vector<nn::CouplingShape> blocks(int level) const {
    return std::vector<nn::CouplingShape>(static_cast<std::size_t>(settings_.flow_steps), settings_.block(shapes_[level].channels));
  }
  void make_codes() {
    codes_.clear();
    for (int l = 0; l < shapes_.count; ++l) {
      codes_.emplace_back(features::position_code_count(shapes_[l].height, shapes_[l].width));
      features::position_code(shapes_[l].height, shapes_[l].width, codes_.back().span());
    }
  }

  static double softplus(double v) noexcept { return std::max(v, 0.0) + std::log1p(std::exp(-std::abs(v))); }
  static double squared_length(const float* z, std::int64_t count) noexcept {
    double sum = 0.0;
    for (std::int64_t c = 0; c < count; ++c) sum += static_cast<double>(z[c]) * static_cast<double>(z[c]);
    return sum;
  }

  /// The features of a batch of images, level by level.
  class Gathered {
   public:
    Gathered(const FeatureShapes& shapes, std::int64_t images) : images_(images), count_(shapes.count) {
      for (int l = 0; l < shapes.count; ++l) {
        const auto at = static_cast<std::size_t>(l);
        memory_[at] = Buffer<float>(images * shapes[l].count());
        data_[at] = memory_[at].data();
      }
    }
    /// At most.
    [[nodiscard]] std::int64_t images() const noexcept { return images_; }
    [[nodiscard]] std::span<float* const> levels() noexcept { return {data_.data(), static_cast<std::size_t>(count_)}; }
    [[nodiscard]] const float* level(int l) const noexcept { return data_[static_cast<std::size_t>(l)]; }

   private:
    std::int64_t images_;
    int count_;
    std::array<Buffer<float>, kMaxLevels> memory_;
    std::array<float*, kMaxLevels> data_{};
  };

  /// Memory of a step and of an evaluation.
  struct Work {
    Work(const ConditionalFlow& flow, std::int64_t images, int workers) {
      std::int64_t values = 0, fibers = 0, positions = 0;
      std::size_t bytes = scratch_bytes(flow.shapes_, flow.settings_, workers);
      for (int l = 0; l < flow.shapes_.count; ++l) {
        const Shape& shape = flow.shapes_[l];
        const std::int64_t rows = std::min(flow.settings_.fibers, images * shape.positions());
        const FlowT& runs = flow.model(l).flow();
        for (const auto pass : {nn::FlowPass::forward, nn::FlowPass::backward}) bytes = std::max(bytes, runs.scratch_bytes(pass, rows, workers));
        fibers = std::max(fibers, rows);
        values = std::max(values, rows * shape.channels);
        positions = std::max(positions, shape.positions());
      }
      x = Buffer<float>(values);
      gradient = Buffer<float>(values);
      condition = Buffer<float>(fibers * features::kPositionCodeChannels);
      log_determinant = Buffer<float>(fibers);
      log_determinant_gradient = Buffer<float>(fibers);
      likelihoods = Buffer<double>(positions);
      memory = Buffer<std::byte>(static_cast<std::int64_t>(bytes));
    }
    Buffer<float> x, gradient, condition, log_determinant, log_determinant_gradient;
    Buffer<double> likelihoods;
    Buffer<std::byte> memory;
  };

  /// One step of a level's optimiser on the fibers `picked`, rows of `features` [images h w, C]. Returns their mean loss before the step.
  Result<double> step(int level, nn::Adam& adam, const float* features, std::span<const std::int64_t> picked, float rate, Work& work,
                      Parallel parallel) {
    const std::int64_t channels = shapes_[level].channels, positions = shapes_[level].positions(), condition = features::kPositionCodeChannels;
    const auto count = static_cast<std::int64_t>(picked.size());
    const float* codes = codes_[static_cast<std::size_t>(level)].data();
    FlowModel<FlowT>& model = models_[static_cast<std::size_t>(level)];
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t row = picked[static_cast<std::size_t>(i)];
      std::copy_n(features + row * channels, channels, work.x.data() + i * channels);
      std::copy_n(codes + row % positions * condition, condition, work.condition.data() + i * condition);
    }
    const TensorView<float> x(work.x.data(), count, 1, 1, channels), gradient(work.gradient.data(), count, 1, 1, channels);
    const TensorView<const float> conditions(work.condition.data(), count, 1, 1, condition);
    const auto size = static_cast<std::size_t>(count);
    const std::span<float> log_determinant = work.log_determinant.span().first(size);
    const std::span<float> log_determinant_gradient = work.log_determinant_gradient.span().first(size);
    NORMA_CHECK(model.prepare(parallel));  // also the first time after a checkpoint was read
    Arena arena(work.memory.span());
    NORMA_CHECK(model.flow().forward(x, conditions, x, log_determinant, {}, parallel, arena));
    double loss = 0.0;
    for (std::int64_t i = 0; i < count; ++i) {
      const auto values = static_cast<std::size_t>(channels);
      loss += fiber_loss({x.data + i * channels, values}, log_determinant[static_cast<std::size_t>(i)], 1.0 / static_cast<double>(count),
                         {gradient.data + i * channels, values}, log_determinant_gradient[static_cast<std::size_t>(i)]);
    }
    NORMA_CHECK(model.flow().backward(x, conditions, gradient, log_determinant_gradient, model.gradients(), {}, {}, parallel, arena));
    adam.step(model.parameters(), model.gradients(), rate, parallel);
    return loss / static_cast<double>(count);
  }

  /// Log-likelihoods of all positions of one image's level.
  Status evaluate(int level, const float* patches, std::span<double> out, Parallel parallel, Arena& arena) const {
    const Shape& shape = shapes_[level];
    const std::int64_t positions = shape.positions(), channels = shape.channels;
    const Arena::Scope scope(arena);
    const TensorView<float> z(arena.take<float>(shape.count()), positions, 1, 1, channels);
    const std::span<float> log_determinant(arena.take<float>(positions), static_cast<std::size_t>(positions));
    if (z.data == nullptr || log_determinant.data() == nullptr) {
      return {Errc::out_of_memory, "ConditionalFlow: the arena is smaller than scratch_bytes"};
    }
    const TensorView<const float> x(patches, positions, 1, 1, channels);
    const TensorView<const float> codes(codes_[static_cast<std::size_t>(level)].data(), positions, 1, 1, features::kPositionCodeChannels);
    NORMA_CHECK(model(level).flow().forward(x, codes, z, log_determinant, {}, parallel, arena));
    for (std::int64_t p = 0; p < positions; ++p) {
      const auto at = static_cast<std::size_t>(p);
      out[at] = log_likelihood_of(squared_length(z.data + p * channels, channels), static_cast<double>(log_determinant[at]), channels);
    }
    return {};
  }

  /// Calls visit(level, likelihoods [h w]) for every level of every chosen image as it is; an image's levels in ascending order.
  template <class Visit>
  Status for_each_level(const TrainingImages& images, std::span<const std::int64_t> chosen, Gathered& gathered, Work& work, Parallel parallel,
                        Visit&& visit) const {
    const auto room = static_cast<std::size_t>(gathered.images());
    for (std::size_t first = 0; first < chosen.size(); first += room) {
      const auto some = chosen.subspan(first, std::min(room, chosen.size() - first));
      NORMA_CHECK(images.gather(some, {}, gathered.levels()));
      for (std::size_t i = 0; i < some.size(); ++i) {
        for (int l = 0; l < shapes_.count; ++l) {
          const std::span<double> likelihoods = work.likelihoods.span().first(static_cast<std::size_t>(shapes_[l].positions()));
          Arena arena(work.memory.span());
          NORMA_CHECK(evaluate(l, gathered.level(l) + static_cast<std::int64_t>(i) * shapes_[l].count(), likelihoods, parallel, arena));
          NORMA_CHECK(visit(l, std::span<const double>(likelihoods)));
        }
      }
    }
    return {};
  }

  FeatureShapes shapes_;
  Settings settings_;
  std::vector<FlowModel<FlowT>> models_;
  std::vector<Buffer<float>> codes_;  // [h w, 128] of each level
  std::vector<float> maxima_;
  TrainingRecord record_;
};

static_assert(TrainingEstimator<ConditionalFlow<>>);

}  // namespace norma
