/// \file
/// What all trained estimators share: settings, the images that are held out, epochs, checkpoints, the best weights, the record.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/concepts/estimator.hpp>
#include <norma/core/random.hpp>
#include <norma/io/json.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/nn/training/checkpoint.hpp>
#include <norma/nn/training/loop.hpp>
#include <norma/nn/training/optimisers.hpp>

namespace norma {

/// Part of a trained estimator's settings; the estimator gives its method's values.
struct TrainingSettings {
  std::int64_t epochs = 100;
  std::int64_t batch = 32;
  double learning_rate = 1e-3;
  double weight_decay = 0.0;
  double holdout = 0.0;       ///< share of the images that are not trained on
  std::int64_t patience = 0;  ///< epochs without a better loss on these after which training stops

  template <class Self, class Visitor>
  static constexpr void visit(Self& self, Visitor&& visitor) {
    visitor("epochs", self.epochs, "times that training goes through all images, at most");
    visitor("batch", self.batch, "images of one step");
    visitor("learning_rate", self.learning_rate, "step size of the optimiser");
    visitor("weight_decay", self.weight_decay, "pull of the weights towards zero");
    visitor("holdout", self.holdout,
            "share of the normal images, in [0, 0.5], that are held out to choose the epoch by their loss; 0: the last epoch is kept");
    visitor("patience", self.patience, "epochs without a better loss on the held-out images after which training stops; 0: never");
  }
  friend constexpr bool operator==(const TrainingSettings&, const TrainingSettings&) = default;

  [[nodiscard]] Status validate(std::string_view who) const {
    const auto refuse = [&](std::string_view what, const std::string& found) {
      return Status(Errc::invalid_argument, std::string(who) + ": " + std::string(what) + ", found " + found);
    };
    if (epochs < 1 || epochs > 1'000'000) return refuse("epochs must be in 1..1000000", std::to_string(epochs));
    if (batch < 1 || batch > 1'000'000) return refuse("batch must be in 1..1000000", std::to_string(batch));
    if (!(learning_rate >= 1e-12 && learning_rate <= 1e6)) return refuse("learning_rate must be in 1e-12..1e6", field_text(learning_rate));
    if (!(weight_decay >= 0.0 && std::isfinite(weight_decay))) return refuse("weight_decay must be at least 0", std::to_string(weight_decay));
    if (!(holdout >= 0.0 && holdout <= 0.5)) return refuse("holdout must be in [0, 0.5]", std::to_string(holdout));
    if (patience < 0) return refuse("patience must be at least 0", std::to_string(patience));
    if (patience > 0 && holdout == 0.0) return refuse("patience needs held-out images, expected holdout above 0", "0");
    return {};
  }
};

/// One training run. Everything that changes while it runs is named first (`parameters`, `optimiser`), so that checkpoints hold it.
class Trainer {
 public:
  using Batch = std::function<Result<double>(const nn::TrainingBatch&, std::span<const std::int64_t> images)>;
  using Validate = std::function<Result<double>(std::span<const std::int64_t> images)>;

  /// Draws the images that are held out. Errors: invalid_argument, not_enough_data. With `LastBatch::drop` a training of fewer images than
  /// a batch makes one batch of all of them.
  static Result<Trainer> create(const TrainingSettings& settings, const TrainingContext& context, std::int64_t images, nn::LastBatch last_batch) {
    NORMA_CHECK(settings.validate("Trainer"));
    Trainer trainer(context);
    auto held_out = static_cast<std::int64_t>(std::lround(settings.holdout * static_cast<double>(images)));
    if (settings.holdout > 0.0) held_out = std::max<std::int64_t>(held_out, 1);
    if (images - held_out < 1) {
      return Status(Errc::not_enough_data, "Trainer: found " + std::to_string(images) + (images == 1 ? " image" : " images") +
                                               ", expected at least " + std::to_string(held_out + 1) + " (" + std::to_string(held_out) +
                                               " of them held out)");
    }
    Random random(context.seed, 0x686f6c646f757400u);
    const std::vector<std::int64_t> order = sample_without_replacement(images, images, random);
    trainer.held_out_.assign(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(held_out));
    trainer.trained_.assign(order.begin() + static_cast<std::ptrdiff_t>(held_out), order.end());
    std::sort(trainer.held_out_.begin(), trainer.held_out_.end());
    std::sort(trainer.trained_.begin(), trainer.trained_.end());
    trainer.loop_.epochs = settings.epochs;
    trainer.loop_.batch = std::min(settings.batch, images - held_out);
    trainer.loop_.last_batch = last_batch;
    trainer.loop_.seed = context.seed;
    trainer.loop_.patience = settings.patience;
    trainer.loop_.checkpoint_seconds = context.checkpoint.empty() ? 0.0 : context.checkpoint_seconds;
    return trainer;
  }

  [[nodiscard]] std::span<const std::int64_t> trained_images() const noexcept { return trained_; }
  [[nodiscard]] std::span<const std::int64_t> held_out_images() const noexcept { return held_out_; }
  [[nodiscard]] std::int64_t batch() const noexcept { return loop_.batch; }

  /// Numbers that a step changes. With held-out images, the ones of the best epoch are in their place when `run` returns. The memory must
  /// stay where it is.
  void parameters(std::string name, std::span<float> values) { parameters_.push_back({std::move(name), values, {}}); }
  void optimiser(std::string name, nn::Adam& adam) { optimisers_.push_back({std::move(name), &adam}); }

  /// Goes on from the context's checkpoint where there is one. `batch` does one batch with its optimiser steps and returns its loss;
  /// `validate` the loss on held-out images. What is random in them must follow from seed, epoch, batch and image alone. Errors:
  /// cancelled (a checkpoint was written), wrong_type (a checkpoint of another run), what the two return.
  Status run(const Batch& batch, const Validate& validate) {
    nn::TrainingProgress progress;
    if (!context_.checkpoint.empty()) {
      NORMA_CHECK(load(progress).with_context("the checkpoint '" + context_.checkpoint + "' cannot be gone on from (delete it to begin anew)"));
    }
    nn::TrainingHooks hooks;
    std::vector<std::int64_t> images;
    hooks.batch = [&](const nn::TrainingBatch& step) {
      images.clear();
      for (const std::int64_t sample : step.samples) images.push_back(trained_[static_cast<std::size_t>(sample)]);
      return batch(step, images);
    };
    hooks.epoch_done = [&](std::int64_t, double loss) { record_.loss.push_back(static_cast<float>(loss)); };
    if (!held_out_.empty()) {
      hooks.validate = [&]() -> Result<double> {
        NORMA_TRY(const double loss, validate(held_out_));
        record_.held_out.push_back(static_cast<float>(loss));
        return loss;
      };
      hooks.improved = [&](const nn::TrainingProgress&) {
        for (Kept& kept : parameters_) {
          if (kept.best.empty()) kept.best = Buffer<float>(static_cast<std::int64_t>(kept.values.size()));
          std::copy(kept.values.begin(), kept.values.end(), kept.best.data());
        }
        return Status();
      };
    }
    if (!context_.checkpoint.empty()) hooks.checkpoint = [&](const nn::TrainingProgress& at) { return save(at); };
    NORMA_CHECK(nn::train(loop_, static_cast<std::int64_t>(trained_.size()), progress, hooks, context_.observer).status());
    if (!held_out_.empty()) {
      record_.best_epoch = progress.best_epoch;
      for (const Kept& kept : parameters_) std::copy(kept.best.span().begin(), kept.best.span().end(), kept.values.begin());
    }
    return {};
  }

  /// Complete after `run`.
  [[nodiscard]] const TrainingRecord& record() const noexcept { return record_; }

 private:
  struct Kept {
    std::string name;
    std::span<float> values;
    Buffer<float> best;
  };
  struct Stepping {
    std::string name;
    nn::Adam* adam;
  };

  explicit Trainer(const TrainingContext& context) : context_(context) {}

  [[nodiscard]] std::string identity() const {
    return context_.identity + " seed " + std::to_string(context_.seed) + " batch " + std::to_string(loop_.batch) + " of " +
           std::to_string(trained_.size()) + " images, " + std::to_string(held_out_.size()) + " held out";
  }
  Status save(const nn::TrainingProgress& progress) const {
    nn::CheckpointWriter writer;
    NORMA_CHECK(writer.must_match("run", identity()));
    NORMA_CHECK(progress.save(writer));
    for (const Kept& kept : parameters_) {
      NORMA_CHECK(writer.buffer(kept.name, kept.values));
      if (!kept.best.empty()) NORMA_CHECK(writer.buffer(kept.name + ".best", kept.best.span()));
    }
    for (const Stepping& stepping : optimisers_) NORMA_CHECK(writer.optimiser(stepping.name, *stepping.adam));
    NORMA_CHECK(writer.number("losses", static_cast<std::int64_t>(record_.loss.size())));
    NORMA_CHECK(writer.number("held_out_losses", static_cast<std::int64_t>(record_.held_out.size())));
    if (!record_.loss.empty()) NORMA_CHECK(writer.buffer("record.loss", record_.loss));
    if (!record_.held_out.empty()) NORMA_CHECK(writer.buffer("record.held_out", record_.held_out));
    return writer.write(context_.checkpoint);
  }
  Status load(nn::TrainingProgress& progress) {
    const auto opened = nn::CheckpointReader::open(context_.checkpoint);
    if (opened.code() == Errc::not_found) return {};
    NORMA_CHECK(opened.status());
    const nn::CheckpointReader& reader = *opened;
    NORMA_CHECK(reader.must_match("run", identity()));
    NORMA_TRY(progress, nn::TrainingProgress::load(reader));
    if (progress.epoch < 0 || progress.epoch > loop_.epochs) {
      return {Errc::corrupt, "it is in epoch " + std::to_string(progress.epoch) + " of " + std::to_string(loop_.epochs)};
    }
    for (Kept& kept : parameters_) {
      NORMA_CHECK(reader.buffer(kept.name, kept.values));
      if (!reader.has_buffer(kept.name + ".best")) continue;
      kept.best = Buffer<float>(static_cast<std::int64_t>(kept.values.size()));
      NORMA_CHECK(reader.buffer(kept.name + ".best", kept.best.span()));
    }
    for (Stepping& stepping : optimisers_) NORMA_CHECK(reader.optimiser(stepping.name, *stepping.adam));
    const auto curve = [&](std::string_view count, std::string_view name, std::vector<float>& values) -> Status {
      std::int64_t size = 0;
      NORMA_CHECK(reader.number(count, size));
      if (size < 0 || size > progress.epoch) return {Errc::corrupt, "the curve '" + std::string(name) + "' has " + std::to_string(size) + " epochs"};
      values.resize(static_cast<std::size_t>(size));
      return size > 0 ? reader.buffer(name, values) : Status();
    };
    NORMA_CHECK(curve("losses", "record.loss", record_.loss));
    return curve("held_out_losses", "record.held_out", record_.held_out);
  }

  TrainingContext context_;
  nn::TrainingLoopSettings loop_;
  std::vector<std::int64_t> trained_, held_out_;
  std::vector<Kept> parameters_;
  std::vector<Stepping> optimisers_;
  TrainingRecord record_;
};

/// The record in a model file, as metadata `norma.training` (JSON).
inline Status save_record(const TrainingRecord& record, io::TensorFileWriter& writer) {
  io::JsonWriter json;
  json.begin_object().member("epochs", static_cast<std::int64_t>(record.loss.size())).member("best_epoch", record.best_epoch);
  json.member("loss", record.loss).member("held_out", record.held_out);
  json.end_object();
  return writer.set_metadata("norma.training", json.take());
}
/// A file without it gives an empty record.
inline Result<TrainingRecord> load_record(const io::Weights& file) {
  TrainingRecord record;
  const auto stored = file.metadata("norma.training");
  if (!stored) return record;
  NORMA_TRY(const io::JsonValue json, io::JsonValue::parse(*stored, file.name() + ": norma.training"));
  const auto curve = [&](std::string_view name, std::vector<float>& values) {
    if (const io::JsonValue* list = json.find(name)) {
      for (const io::JsonValue& value : list->items())
        values.push_back(static_cast<float>(value.number().value_or(std::numeric_limits<double>::quiet_NaN())));
    }
  };
  curve("loss", record.loss);
  curve("held_out", record.held_out);
  if (const io::JsonValue* best = json.find("best_epoch")) record.best_epoch = best->integer().value_or(-1);
  return record;
}

}  // namespace norma
