/// \file
/// DifferNet's estimator: one flow over vectors, trained so that those of normal images, turned anyhow, become white noise.
/// Source:      Rudolph et al., "Same same but DifferNet: semi-supervised defect detection with normalizing flows", WACV 2021; blocks and
///              training as its public code has them (nn/coupling_types.hpp: differnet_block).
/// Shapes:      one level [n, 1, D]: n vectors an image, each by itself -> latents of the same shape; in training one vector a view
/// Memory:      the published flow of 768 numbers has 172,077,056 parameters: 688 MB to score with, six times that in training
/// Determinism: bitwise for a fixed machine, any number of threads, interrupted or not
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/progress.hpp>
#include <norma/estimators/flow_model.hpp>
#include <norma/estimators/trainer.hpp>
#include <norma/nn/training/losses.hpp>

namespace norma {

namespace detail {

/// The angle in which training looks at an image for the `index`-th time, uniform in [-180, 180): a function of seed, image and index.
inline View training_turn(std::uint64_t seed, std::int64_t image, std::int64_t index) noexcept {
  Random random(seed, 0x7475726E00000000u + (static_cast<std::uint64_t>(image) << 34) + static_cast<std::uint64_t>(index));
  return {static_cast<float>(random.uniform(-180.0, 180.0))};
}

/// Which of a pool of `size` turns stands for turn number `index`: all of them in the order in which they were drawn, then all of them again
/// in another order, and so on. So as long as the pool lasts, pooled and exact training see the same.
class PoolOrder {
 public:
  PoolOrder(std::uint64_t seed, std::int64_t image, std::int64_t size) noexcept : seed_(seed), image_(image), size_(size) {}
  std::int64_t operator()(std::int64_t index) {
    const std::int64_t round = index / size_, at = index % size_;
    if (round == 0) return at;
    if (round != round_) {
      Random random(seed_, 0x706F6F6C00000000u + (static_cast<std::uint64_t>(image_) << 34) + static_cast<std::uint64_t>(round));
      order_ = sample_without_replacement(size_, size_, random);
      round_ = round;
    }
    return order_[static_cast<std::size_t>(at)];
  }

 private:
  std::uint64_t seed_;
  std::int64_t image_, size_, round_ = 0;
  std::vector<std::int64_t> order_;
};

}  // namespace detail

/// `FlowT` runs the flow: nn::Flow, or one with the same calls, as cuda::Flow. Model files do not depend on it.
template <class FlowT = nn::Flow>
class VectorFlow {
 public:
  static constexpr std::string_view name = "vector_flow";

  struct Settings {
    TrainingSettings training{.epochs = 192, .batch = 24, .learning_rate = 2e-4, .weight_decay = 1e-5};
    std::int64_t turns = 4;
    std::int64_t pooled_turns = 0;
    std::int64_t flow_steps = 8;
    std::int64_t flow_width = 2048;
    double clamp = 3.0;

    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      TrainingSettings::visit(self.training, visitor);
      visitor("turns", self.turns, "random turns in which an image of a batch is seen; 0: as it is, once");
      visitor("pooled_turns", self.pooled_turns,
              "turns of each image that are looked at once, before training, and used again in every epoch; 0: new ones in every epoch");
      visitor("flow_steps", self.flow_steps, "blocks of the flow");
      visitor("flow_width", self.flow_width, "units of each of a subnet's three hidden layers");
      visitor("clamp", self.clamp, "the soft clamp's alpha: largest logarithm of a coupling's scale");
    }
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  static constexpr bool wants_views(const Settings& settings) noexcept { return settings.turns > 0; }

  static constexpr nn::CouplingShape block(const FeatureShapes& shapes, const Settings& settings) noexcept {
    nn::CouplingShape shape = nn::differnet_block(shapes[0].channels, settings.flow_width);
    shape.alpha = static_cast<float>(settings.clamp);
    return shape;
  }
  /// Numbers that learn: what papers count.
  static constexpr std::int64_t parameter_count(const FeatureShapes& shapes, const Settings& settings = Settings{}) noexcept {
    return settings.flow_steps * nn::parameter_count(block(shapes, settings));
  }

  static Result<VectorFlow> create(const FeatureShapes& shapes, const Settings& settings) {
    if (shapes.count != 1) {
      return Status{Errc::shape_mismatch, "VectorFlow: expected one level of vectors, found " + std::to_string(shapes.count) + " levels"};
    }
    NORMA_CHECK(settings.training.validate("VectorFlow"));
    const auto within = [](std::string_view what, std::int64_t value, std::int64_t least, std::int64_t most) -> Status {
      if (value >= least && value <= most) return {};
      return {Errc::invalid_argument, "VectorFlow: " + std::string(what) + " must be in " + std::to_string(least) + ".." + std::to_string(most) +
                                          ", found " + std::to_string(value)};
    };
    NORMA_CHECK(within("turns", settings.turns, 0, 4096));
    NORMA_CHECK(within("pooled_turns", settings.pooled_turns, 0, 65536));
    NORMA_CHECK(within("flow_steps", settings.flow_steps, 1, 1000));
    NORMA_CHECK(within("flow_width", settings.flow_width, 1, 1 << 20));
    if (settings.pooled_turns > 0 && settings.turns == 0) {
      return Status{Errc::invalid_argument, "VectorFlow: pooled_turns needs turned images, expected turns above 0, found 0"};
    }
    if (!(settings.clamp > 0.0 && settings.clamp <= 20.0)) {
      return Status{Errc::invalid_argument, "VectorFlow: clamp must be in (0, 20], found " + std::to_string(settings.clamp)};
    }
    NORMA_CHECK(nn::check_shape("VectorFlow", block(shapes, settings)));
    VectorFlow estimator;
    estimator.settings_ = settings;
    estimator.shapes_ = shapes;
    return estimator;
  }

  /// Weights, gradients, moments, packed weights (twice; thrice with held-out images), the pool and the buffers of a batch.
  static double fit_bytes(const FeatureShapes& shapes, std::int64_t images, const Settings& settings) noexcept {
    const double weights = 4.0 * static_cast<double>(parameter_count(shapes, settings));
    const double vector = 4.0 * static_cast<double>(shapes[0].channels);
    const double rows = static_cast<double>(std::min(settings.training.batch, std::max<std::int64_t>(images, 1))) *
                        static_cast<double>(std::max<std::int64_t>(settings.turns, 1));
    return (settings.training.holdout > 0.0 ? 7.0 : 6.0) * weights +
           static_cast<double>(images) * static_cast<double>(settings.pooled_turns) * vector +
           rows * (3.0 * vector + 48.0 * static_cast<double>(settings.flow_width));
  }

  Status train(const TrainingImages& images, const TrainingContext& context) {
    const Settings& s = settings_;
    const std::int64_t dims = shapes_[0].channels;
    if (images.shapes().count != 1 || !(images.shapes()[0] == Shape{1, 1, dims})) {
      return {Errc::shape_mismatch, "VectorFlow::train: expected one vector of " + std::to_string(dims) + " numbers a view"};
    }
    NORMA_TRY(Trainer trainer, Trainer::create(s.training, context, images.size(), nn::LastBatch::keep));
    NORMA_TRY(model_, FlowModel<FlowT>::create(blocks(), {1, 1, dims}, context.seed, "flow"));
    NORMA_CHECK(model_.begin_training());
    // The first moment forgets as fast as the second, and epsilon is large: with the usual values the loss has spikes.
    NORMA_TRY(nn::Adam adam,
              nn::Adam::create(static_cast<std::int64_t>(model_.parameters().size()), {.learning_rate = static_cast<float>(s.training.learning_rate),
                                                                                       .beta1 = 0.8f,
                                                                                       .beta2 = 0.8f,
                                                                                       .epsilon = 1e-4f,
                                                                                       .weight_decay = static_cast<float>(s.training.weight_decay)}));
    trainer.parameters("flow", model_.parameters());
    trainer.optimiser("flow.adam", adam);
    NORMA_TRY(const Buffer<float> pool, fill_pool(images, context));

    const std::int64_t turns = std::max<std::int64_t>(s.turns, 1), most = trainer.batch() * turns;
    Buffer<float> x(most * dims), z(most * dims), dz(most * dims);
    Buffer<std::byte> memory(static_cast<std::int64_t>(model_.flow().scratch_bytes(nn::FlowPass::backward, most, context.parallel.workers())));
    std::vector<float> logdet(static_cast<std::size_t>(most)), dlogdet(static_cast<std::size_t>(most));
    std::vector<std::int64_t> repeated;
    std::vector<View> views;

    // The vectors of `chosen` images in their turns number `first` and following, one behind the other.
    const auto look = [&](std::span<const std::int64_t> chosen, std::int64_t first) -> Status {
      float* to = x.data();
      if (s.turns == 0) return images.gather(chosen, {}, {&to, 1});
      if (s.pooled_turns > 0) {
        for (const std::int64_t image : chosen) {
          detail::PoolOrder order(context.seed, image, s.pooled_turns);
          for (std::int64_t t = 0; t < turns; ++t, to += dims)
            std::copy_n(pool.data() + (image * s.pooled_turns + order(first + t)) * dims, dims, to);
        }
        return {};
      }
      repeated.clear();
      views.clear();
      for (const std::int64_t image : chosen) {
        for (std::int64_t t = 0; t < turns; ++t) {
          repeated.push_back(image);
          views.push_back(detail::training_turn(context.seed, image, first + t));
        }
      }
      return images.gather(repeated, views, {&to, 1});
    };
    // The mean of (0.5 |z|^2 - logdet) / D.
    const auto run = [&](std::span<const std::int64_t> chosen, std::int64_t first, bool learn) -> Result<double> {
      NORMA_CHECK(look(chosen, first));
      NORMA_CHECK(model_.prepare(context.parallel));
      const std::int64_t rows = static_cast<std::int64_t>(chosen.size()) * turns;
      const auto count = static_cast<std::size_t>(rows);
      const Shape vector{1, 1, dims};
      Arena arena(memory.span());
      const TensorView<float> latent(z.data(), rows, vector);
      const std::span<float> dets(logdet.data(), count), ddets(dlogdet.data(), count);
      const double share = 1.0 / static_cast<double>(dims);
      NORMA_CHECK(model_.flow().forward(TensorView<const float>(x.data(), rows, vector), {}, latent, dets, {}, context.parallel, arena));
      const double loss = share * nn::flow_likelihood_loss({z.data(), rows, dims}, dets, share,
                                                           learn ? MatrixView<float>(dz.data(), rows, dims) : MatrixView<float>(),
                                                           learn ? ddets : std::span<float>());
      if (!learn || !std::isfinite(loss)) return loss;
      NORMA_CHECK(model_.flow().backward(latent, {}, TensorView<const float>(dz.data(), rows, vector), ddets, model_.gradients(), {}, {},
                                         context.parallel, arena));
      adam.step(model_.parameters(), model_.gradients(), adam.settings().learning_rate, context.parallel);
      return loss;
    };
    const auto held_out = [&](std::span<const std::int64_t> chosen) -> Result<double> {
      double total = 0.0;
      const auto batch = static_cast<std::size_t>(trainer.batch());
      for (std::size_t begin = 0; begin < chosen.size(); begin += batch) {
        const auto part = chosen.subspan(begin, std::min(batch, chosen.size() - begin));
        NORMA_TRY(const double loss, run(part, 0, false));
        total += loss * static_cast<double>(part.size());
      }
      return total / static_cast<double>(chosen.size());
    };
    NORMA_CHECK(trainer.run([&](const nn::TrainingBatch& at, std::span<const std::int64_t> chosen) { return run(chosen, at.epoch * turns, true); },
                            held_out));
    NORMA_CHECK(model_.end_training(context.parallel));
    record_ = trainer.record();
    return {};
  }

  [[nodiscard]] const TrainingRecord& record() const noexcept { return record_; }
  [[nodiscard]] const FeatureShapes& shapes() const noexcept { return shapes_; }
  [[nodiscard]] const FlowModel<FlowT>& model() const noexcept { return model_; }

  /// Latents of all vectors of one image, `z` of the features' shape, and the logarithms of the determinants [n] where `logdet` is not null.
  /// `l` is 0. Allocates nothing.
  static constexpr std::size_t latent_scratch_bytes(const FeatureShapes& shapes, const Settings& settings, int workers) noexcept {
    const nn::CouplingShape shape[] = {block(shapes, settings)};
    return nn::flow_scratch_bytes(shape, {1, 1, shapes[0].channels}, nn::FlowPass::forward, shapes[0].positions(), workers);
  }
  Status latent([[maybe_unused]] int l, TensorView<const float> features, TensorView<float> z, float* logdet, Context& context) const {
    NORMA_EXPECTS(l == 0);
    const Shape vector{1, 1, shapes_[0].channels};
    if (!(features.shape() == shapes_[0]) || !(z.shape() == shapes_[0])) {
      return {Errc::shape_mismatch, "VectorFlow::latent: features or latents of another shape than the estimator was made for"};
    }
    const std::int64_t rows = shapes_[0].positions();
    return model_.flow().forward(TensorView<const float>(features.data, rows, vector), {}, TensorView<float>(z.data, rows, vector),
                                 {logdet, logdet != nullptr ? static_cast<std::size_t>(rows) : std::size_t{0}}, {}, context.parallel, context.arena);
  }

  Status save(io::TensorFileWriter& writer) const {
    NORMA_CHECK(model_.save(writer, "estimator."));
    return save_record(record_, writer);
  }
  static Result<VectorFlow> load(const io::Weights& weights, const FeatureShapes& shapes, const Settings& settings, Parallel parallel) {
    NORMA_TRY(VectorFlow loaded, create(shapes, settings));
    NORMA_TRY(loaded.model_, FlowModel<FlowT>::load(weights, "estimator.", loaded.blocks(), {1, 1, shapes[0].channels}, parallel));
    NORMA_TRY(loaded.record_, load_record(weights));
    return loaded;
  }

 private:
  [[nodiscard]] std::vector<nn::CouplingShape> blocks() const {
    return std::vector<nn::CouplingShape>(static_cast<std::size_t>(settings_.flow_steps), block(shapes_, settings_));
  }
  // The first pooled_turns turns of every image, [images, pooled_turns, D]; empty in exact mode.
  [[nodiscard]] Result<Buffer<float>> fill_pool(const TrainingImages& images, const TrainingContext& context) const {
    const std::int64_t size = settings_.pooled_turns, dims = shapes_[0].channels;
    Buffer<float> pool(size > 0 ? images.size() * size * dims : 0);
    if (size == 0) return pool;
    Progress progress("turned images", images.size(), context.observer);
    std::vector<View> views(static_cast<std::size_t>(size));
    for (std::int64_t image = 0; image < images.size(); ++image) {
      for (std::int64_t t = 0; t < size; ++t) views[static_cast<std::size_t>(t)] = detail::training_turn(context.seed, image, t);
      float* to = pool.data() + image * size * dims;
      const std::vector<std::int64_t> repeated(views.size(), image);
      NORMA_CHECK(images.gather(repeated, views, {&to, 1}));
      NORMA_CHECK(progress.advance());
    }
    return pool;
  }

  Settings settings_{};
  FeatureShapes shapes_;
  FlowModel<FlowT> model_;
  TrainingRecord record_;
};

static_assert(TrainingEstimator<VectorFlow<>>);

}  // namespace norma
