/// \file
/// Epochs over a set of samples: order, batches, progress, cancelling, checkpoints, validation. What a batch does is the caller's.
/// The order of an epoch is a function of seed and epoch, and the position of a run is four numbers, so a run that was interrupted goes on
/// with the batch that would have been next.
#pragma once

#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/progress.hpp>
#include <norma/core/random.hpp>
#include <norma/core/status.hpp>
#include <norma/nn/training/checkpoint.hpp>

namespace norma::nn {

enum class Order : std::uint8_t { shuffled, sequential };
enum class LastBatch : std::uint8_t {
  keep,  ///< the last batch of an epoch may be smaller
  drop,
};

struct TrainingLoopSettings {
  std::int64_t epochs = 1;
  std::int64_t batch = 32;
  std::int64_t accumulate = 1;  ///< batches whose gradients are added up for one step of the optimiser
  Order order = Order::shuffled;
  LastBatch last_batch = LastBatch::keep;
  std::uint64_t seed = 0;
  std::int64_t checkpoint_every = 0;  ///< epochs; 0: only when cancelled and at the end
  double checkpoint_seconds = 0.0;    ///< also after a step when the last one is that old, and twenty times as old as it took to write; 0: never
  std::int64_t validate_every = 1;    ///< epochs, where there is a validation
  std::int64_t patience = 0;          ///< validations without a new best after which training stops; 0: never
};

/// Where a run is. All of it goes into a checkpoint.
struct TrainingProgress {
  std::int64_t epoch = 0;                                 ///< epochs done
  std::int64_t batch = 0;                                 ///< batches done of the next one
  std::int64_t steps = 0;                                 ///< steps of the optimiser
  double loss_sum = 0.0;                                  ///< of the batches done in this epoch
  double best = std::numeric_limits<double>::infinity();  ///< lowest validation loss
  std::int64_t best_epoch = -1;                           ///< epochs done when it was found
  std::int64_t since_best = 0;                            ///< validations since then

  Status save(CheckpointWriter& writer) const {
    NORMA_CHECK(writer.number("epoch", epoch));
    NORMA_CHECK(writer.number("batch", batch));
    NORMA_CHECK(writer.number("steps", steps));
    NORMA_CHECK(writer.number("loss_sum", loss_sum));
    NORMA_CHECK(writer.number("best", best));
    NORMA_CHECK(writer.number("best_epoch", best_epoch));
    return writer.number("since_best", since_best);
  }
  static Result<TrainingProgress> load(const CheckpointReader& reader) {
    TrainingProgress p;
    NORMA_CHECK(reader.number("epoch", p.epoch));
    NORMA_CHECK(reader.number("batch", p.batch));
    NORMA_CHECK(reader.number("steps", p.steps));
    NORMA_CHECK(reader.number("loss_sum", p.loss_sum));
    NORMA_CHECK(reader.number("best", p.best));
    NORMA_CHECK(reader.number("best_epoch", p.best_epoch));
    NORMA_CHECK(reader.number("since_best", p.since_best));
    return p;
  }
};

/// What a batch is told.
struct TrainingBatch {
  std::span<const std::int64_t> samples;  ///< numbers in [0, samples)
  std::int64_t epoch = 0;
  std::int64_t batch = 0;
  std::int64_t batches = 0;      ///< of an epoch
  std::int64_t step = 0;         ///< of the optimiser, from 0
  bool begins_step = true;       ///< set gradients to zero first
  bool ends_step = true;         ///< let the optimiser step afterwards
  std::int64_t accumulated = 1;  ///< batches of this step: divide the loss by it
  /// For schedules over parts of epochs.
  [[nodiscard]] double position() const noexcept {
    return static_cast<double>(epoch) + static_cast<double>(batch) / static_cast<double>(batches);
  }
};

struct TrainingHooks {
  /// Forward, backward, and the optimiser's step where `ends_step`. Returns the batch's loss. Required.
  std::function<Result<double>(const TrainingBatch&)> batch;
  /// Loss on normal images that are held out. Never on labelled test images: choosing the epoch by them would be fitting to the test.
  std::function<Result<double>()> validate;
  /// The validation found a new best: keep a copy of the weights.
  std::function<Status(const TrainingProgress&)> improved;
  /// Write a checkpoint.
  std::function<Status(const TrainingProgress&)> checkpoint;
  /// An epoch's mean loss.
  std::function<void(std::int64_t epoch, double loss)> epoch_done;
};

enum class TrainingEnd : std::uint8_t {
  epochs,    ///< all epochs are done
  patience,  ///< the validation found no new best for long enough
};

/// The order of one epoch: a permutation of [0, samples) that depends on seed and epoch alone (Fisher-Yates from its own stream).
inline std::vector<std::int64_t> epoch_order(std::int64_t samples, std::uint64_t seed, std::int64_t epoch) {
  Random random(seed, 0x65706f6368000000u + static_cast<std::uint64_t>(epoch));
  return sample_without_replacement(samples, samples, random);
}

/// Runs from `progress` to the end and keeps it up to date. When the observer asks to stop, the batch that is running is finished, a
/// checkpoint is written, and the answer is Errc::cancelled: nothing is lost. Errors: invalid_argument, not_enough_data, not_finite (a
/// loss), what the hooks return.
inline Result<TrainingEnd> train(const TrainingLoopSettings& settings, std::int64_t samples, TrainingProgress& progress,
                                 const TrainingHooks& hooks, const Observer& observer = {}) {
  const std::string where = "nn::train: ";
  const auto positive = [&](std::string_view name, std::int64_t value, std::int64_t least) -> Status {
    if (value >= least) return {};
    return {Errc::invalid_argument,
            where + std::string(name) + " must be at least " + std::to_string(least) + ", found " + std::to_string(value)};
  };
  NORMA_CHECK(positive("epochs", settings.epochs, 0));
  NORMA_CHECK(positive("batch", settings.batch, 1));
  NORMA_CHECK(positive("accumulate", settings.accumulate, 1));
  NORMA_CHECK(positive("checkpoint_every", settings.checkpoint_every, 0));
  NORMA_CHECK(positive("validate_every", settings.validate_every, 1));
  NORMA_CHECK(positive("patience", settings.patience, 0));
  if (!hooks.batch) return Status(Errc::invalid_argument, where + "there is no function for a batch");
  if (settings.patience > 0 && !hooks.validate) return Status(Errc::invalid_argument, where + "patience needs a validation");
  const std::int64_t batches =
      settings.last_batch == LastBatch::drop ? samples / settings.batch : (samples + settings.batch - 1) / settings.batch;
  if (batches < 1) {
    return Status(Errc::not_enough_data, where + "found " + std::to_string(samples) + " samples, expected at least " +
                                             std::to_string(settings.last_batch == LastBatch::drop ? settings.batch : 1));
  }
  if (progress.epoch < 0 || progress.batch < 0 || progress.batch >= batches || progress.batch % settings.accumulate != 0) {
    return Status(Errc::invalid_argument, where + "epoch " + std::to_string(progress.epoch) + ", batch " + std::to_string(progress.batch) +
                                              " is no place to go on from in epochs of " + std::to_string(batches) + " batches");
  }

  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  auto reported = start - std::chrono::seconds(1);
  const std::int64_t total = settings.epochs * batches, before = progress.epoch * batches + progress.batch;
  double last_loss = std::numeric_limits<double>::quiet_NaN();
  const auto report = [&](bool now) {
    if (!observer.on_progress || (!now && Clock::now() - reported < std::chrono::milliseconds(100))) return;
    reported = Clock::now();
    const std::int64_t done = progress.epoch * batches + progress.batch;
    const double elapsed = std::chrono::duration<double>(reported - start).count();
    const double remaining = done > before ? elapsed * static_cast<double>(total - done) / static_cast<double>(done - before) : -1.0;
    std::string stage =
        "training, epoch " + std::to_string(std::min(progress.epoch + 1, settings.epochs)) + " of " + std::to_string(settings.epochs);
    if (!std::isnan(last_loss)) stage += ", loss " + field_text(static_cast<float>(last_loss));
    observer.on_progress({stage, done, total, elapsed, remaining});
  };
  const auto cancelled = [&] { return observer.cancel != nullptr && observer.cancel->load(std::memory_order_relaxed); };
  const auto checkpoint = [&]() -> Status { return hooks.checkpoint ? hooks.checkpoint(progress) : Status(); };
  const auto stop = [&]() -> Status {
    NORMA_CHECK(checkpoint());
    return {Errc::cancelled,
            where + "stopped on request in epoch " + std::to_string(progress.epoch + 1) + " of " + std::to_string(settings.epochs)};
  };
  const auto out_of_patience = [&] { return settings.patience > 0 && progress.since_best >= settings.patience; };

  report(true);
  bool saved = false, ever_saved = false;
  auto saved_at = start;
  double write_seconds = 0.0;
  const auto overdue = [&] {
    const double age = std::chrono::duration<double>(Clock::now() - saved_at).count();
    return settings.checkpoint_seconds > 0.0 && age >= std::max(settings.checkpoint_seconds, 20.0 * write_seconds);
  };
  // A disk that refuses the first checkpoint ends the run before much is lost. Later the run is worth more than its checkpoint: tried again
  // next time.
  const auto keep = [&]() -> Status {
    const auto before_write = Clock::now();
    const Status status = checkpoint();
    saved_at = Clock::now();
    write_seconds = std::chrono::duration<double>(saved_at - before_write).count();
    ever_saved = ever_saved || status.ok();
    return ever_saved ? Status() : status;
  };
  while (progress.epoch < settings.epochs && !out_of_patience()) {
    std::vector<std::int64_t> order;
    if (settings.order == Order::shuffled) {
      order = epoch_order(samples, settings.seed, progress.epoch);
    } else {
      order.resize(static_cast<std::size_t>(samples));
      for (std::int64_t i = 0; i < samples; ++i) order[static_cast<std::size_t>(i)] = i;
    }
    while (progress.batch < batches) {
      if (progress.batch % settings.accumulate == 0 && cancelled()) return stop();
      TrainingBatch batch;
      const std::int64_t first = progress.batch * settings.batch, last = std::min(first + settings.batch, samples);
      batch.samples = std::span<const std::int64_t>(order).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(last - first));
      batch.epoch = progress.epoch;
      batch.batch = progress.batch;
      batch.batches = batches;
      batch.step = progress.steps;
      const std::int64_t begin = progress.batch / settings.accumulate * settings.accumulate;
      batch.accumulated = std::min(settings.accumulate, batches - begin);
      batch.begins_step = progress.batch == begin;
      batch.ends_step = progress.batch + 1 == begin + batch.accumulated;
      NORMA_TRY(const double loss, hooks.batch(batch));
      if (!std::isfinite(loss)) {
        return Status(Errc::not_finite, where + "the loss of epoch " + std::to_string(progress.epoch + 1) + ", batch " +
                                            std::to_string(progress.batch + 1) + " is " + std::to_string(loss));
      }
      last_loss = loss;
      progress.loss_sum += loss;
      ++progress.batch;
      if (batch.ends_step) ++progress.steps;
      if (progress.batch < batches) {
        report(false);
        if (batch.ends_step && overdue()) NORMA_CHECK(keep());
      }
    }
    ++progress.epoch;
    progress.batch = 0;
    if (hooks.epoch_done) hooks.epoch_done(progress.epoch, progress.loss_sum / static_cast<double>(batches));
    progress.loss_sum = 0.0;
    if (hooks.validate && (progress.epoch % settings.validate_every == 0 || progress.epoch == settings.epochs)) {
      NORMA_TRY(const double loss, hooks.validate());
      if (!std::isfinite(loss)) {
        return Status(Errc::not_finite,
                      where + "the validation after epoch " + std::to_string(progress.epoch) + " is " + std::to_string(loss));
      }
      if (loss < progress.best) {
        progress.best = loss;
        progress.best_epoch = progress.epoch;
        progress.since_best = 0;
        if (hooks.improved) NORMA_CHECK(hooks.improved(progress));
      } else {
        ++progress.since_best;
      }
    }
    report(progress.epoch == settings.epochs || out_of_patience());
    saved = (settings.checkpoint_every > 0 && progress.epoch % settings.checkpoint_every == 0) || overdue();
    if (saved) NORMA_CHECK(keep());
  }
  if (!saved) static_cast<void>(checkpoint());  // what was trained is complete, with or without it
  return progress.epoch >= settings.epochs ? TrainingEnd::epochs : TrainingEnd::patience;
}

}  // namespace norma::nn
