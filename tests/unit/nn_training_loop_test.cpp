// A run: its order, its end, stopping and going on bit for bit, checkpoints that refuse what is not theirs.
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/thread_pool.hpp>
#include <norma/nn/training/executor.hpp>
#include <norma/nn/training/initialise.hpp>
#include <norma/nn/training/loop.hpp>
#include <norma/nn/training/losses.hpp>
#include <norma/nn/training/optimisers.hpp>

#include "../support/reference.hpp"

namespace {

using namespace norma;
using namespace norma::nn;

consteval auto make_net(int width) {
  Graph<8> graph;
  Builder b(graph);
  int x = b.convolution(
      b.input(2),
      {.name = "enc", .out_channels = width, .kernel = 3, .stride = 2, .padding = 1, .norm = "bn", .activation = Activation::relu});
  b.tap("y", b.transposed_convolution(x, {.name = "dec", .out_channels = 2, .kernel = 2, .stride = 2, .bias = true}));
  return graph;
}
constexpr auto kNet = make_net(6);
constexpr auto kWider = make_net(8);
constexpr std::string_view kTap[] = {"y"};
constexpr std::int64_t kSamples = 22;

std::string path_of(const std::string& name) { return (std::filesystem::temp_directory_path() / ("norma_training_" + name)).string(); }

// A small auto-encoder with everything that a run has.
template <class Optimiser>
struct Run {
  TrainingExecutor executor;
  Parameters parameters;
  Optimiser optimiser;
  TrainingProgress progress;
  TrainingLoopSettings settings;
  Schedule schedule{.kind = Schedule::Kind::cosine, .length = 4, .warm_up = 1};
  Tensor<float> images = test::normal_tensor(kSamples, {8, 8, 2}, 77);
  Parallel parallel;
  std::vector<std::int64_t> seen;
  std::vector<double> losses;
  std::atomic<bool> cancel{false};
  std::int64_t cancel_after = -1;  // batches
  std::string checkpoint;
  Buffer<float> gradients;
  std::vector<std::byte> memory;

  explicit Run(GraphView graph = kNet) {
    auto made = TrainingExecutor::create(graph, kTap, 8, 8);
    REQUIRE(made.ok());
    executor = *std::move(made);
    parameters = executor.make_parameters();
    initialise(parameters, {}, 5);
    auto fresh = Optimiser::create(executor.layout().trained(), settings_of());
    REQUIRE(fresh.ok());
    optimiser = *std::move(fresh);
    gradients = Buffer<float>(executor.layout().trained());
    settings.epochs = 4;
    settings.batch = 4;
    settings.accumulate = 2;
    settings.seed = 9;
  }
  static typename Optimiser::Settings settings_of() {
    typename Optimiser::Settings s;
    s.learning_rate = 0.01f;
    if constexpr (std::is_same_v<Optimiser, Sgd>) s.momentum = 0.9f;
    return s;
  }

  Result<double> batch(const TrainingBatch& b) {
    const auto n = static_cast<std::int64_t>(b.samples.size());
    Tensor<float> input(n, {8, 8, 2});
    for (std::int64_t i = 0; i < n; ++i) {
      seen.push_back(b.samples[static_cast<std::size_t>(i)]);
      std::copy_n(images.view().image(b.samples[static_cast<std::size_t>(i)]).data, 128, input.view().image(i).data);
    }
    test::Scratch scratch(executor.workspace_bytes(n, parallel.workers()));
    Arena arena = scratch.arena();
    std::array<TensorView<const float>, 1> out;
    TrainingPass pass;
    NORMA_CHECK(executor.forward(parameters, input.view(), BatchNorm::training, arena, parallel, out, pass));
    Tensor<float> d(n, {8, 8, 2});
    const auto count = static_cast<std::size_t>(out[0].count());
    const double loss =
        squared_error({out[0].data, count}, {input.data(), count}, 1.0 / static_cast<double>(b.accumulated), {d.data(), count});
    if (b.begins_step) std::fill(gradients.span().begin(), gradients.span().end(), 0.0f);
    const std::array<TensorView<const float>, 1> tap_gradients{d.view()};
    NORMA_CHECK(executor.backward(parameters, pass, tap_gradients, gradients.span(), parallel));
    if (b.ends_step) {
      clip_gradient_norm(gradients.span(), 1.0);
      optimiser.step(parameters.trained(), gradients.span(), static_cast<float>(schedule.rate(0.01, b.position())), parallel);
    }
    losses.push_back(loss);
    if (static_cast<std::int64_t>(losses.size()) == cancel_after) cancel = true;
    return loss;
  }
  Status save() const {
    CheckpointWriter writer;
    NORMA_CHECK(writer.must_match("data", "22 images"));
    NORMA_CHECK(writer.parameters("network", parameters));
    NORMA_CHECK(writer.optimiser("optimiser", optimiser));
    NORMA_CHECK(progress.save(writer));
    return writer.write(checkpoint);
  }
  Status load(std::string_view data = "22 images") {
    NORMA_TRY(const auto reader, CheckpointReader::open(checkpoint));
    NORMA_CHECK(reader.must_match("data", data));
    NORMA_CHECK(reader.parameters("network", parameters));
    NORMA_CHECK(reader.optimiser("optimiser", optimiser));
    NORMA_TRY(progress, TrainingProgress::load(reader));
    return {};
  }
  Result<TrainingEnd> go(TrainingHooks hooks = {}, Observer observer = {}) {
    hooks.batch = [this](const TrainingBatch& b) { return batch(b); };
    if (!checkpoint.empty()) hooks.checkpoint = [this](const TrainingProgress&) { return save(); };
    observer.cancel = &cancel;
    return train(settings, kSamples, progress, hooks, observer);
  }
};

template <class Optimiser>
void check_resume(const std::string& name) {
  Run<Optimiser> whole;
  const auto end = whole.go();
  REQUIRE_MESSAGE(end.ok(), end.message());
  CHECK(*end == TrainingEnd::epochs);
  CHECK(whole.losses.size() == 24);
  CHECK(whole.losses.back() < whole.losses.front());

  // Stopped in the middle of an epoch, in another object with other first weights, then again, on two threads.
  ThreadPool two(2);
  std::vector<double> losses;
  std::vector<std::int64_t> seen;
  const std::int64_t stops[] = {9, 4, -1};
  for (std::size_t part = 0; part < 3; ++part) {
    Run<Optimiser> run;
    run.checkpoint = path_of(name);
    run.cancel_after = stops[part];
    if (part > 0) {
      initialise(run.parameters, {}, 1234);
      run.parallel = two.parallel();
      const Status loaded = run.load();
      REQUIRE_MESSAGE(loaded.ok(), loaded.message());
    }
    const auto result = run.go();
    losses.insert(losses.end(), run.losses.begin(), run.losses.end());
    seen.insert(seen.end(), run.seen.begin(), run.seen.end());
    if (part < 2) {
      CHECK(result.code() == Errc::cancelled);
      continue;
    }
    REQUIRE(result.ok());
    CHECK(std::equal(run.parameters.values().begin(), run.parameters.values().end(), whole.parameters.values().begin()));
    CHECK(run.progress.steps == whole.progress.steps);
    CHECK(run.optimiser.steps() == whole.optimiser.steps());
  }
  CHECK(losses == whole.losses);
  CHECK(seen == whole.seen);
  std::filesystem::remove(path_of(name));
}

TEST_CASE("stopped and continued is the same run, bit for bit") {
  check_resume<Adam>("adam");
  check_resume<Sgd>("sgd");
}

TEST_CASE("the order of an epoch is a permutation of its own") {
  const auto a = epoch_order(50, 3, 0), b = epoch_order(50, 3, 1);
  CHECK(a == epoch_order(50, 3, 0));
  CHECK(a != b);
  CHECK(a != epoch_order(50, 4, 0));
  auto sorted = b;
  std::sort(sorted.begin(), sorted.end());
  for (std::int64_t i = 0; i < 50; ++i) CHECK(sorted[static_cast<std::size_t>(i)] == i);
}

TEST_CASE("batches: sizes, steps, the last one kept or dropped") {
  for (const LastBatch last : {LastBatch::keep, LastBatch::drop}) {
    TrainingLoopSettings settings;
    settings.epochs = 2;
    settings.batch = 4;
    settings.accumulate = 2;
    settings.order = Order::sequential;
    settings.last_batch = last;
    std::vector<std::array<std::int64_t, 5>> got;
    TrainingHooks hooks;
    std::vector<double> means;
    hooks.batch = [&](const TrainingBatch& b) -> Result<double> {
      got.push_back({static_cast<std::int64_t>(b.samples.size()), b.samples[0], b.begins_step, b.ends_step, b.accumulated});
      return static_cast<double>(b.batch);
    };
    hooks.epoch_done = [&](std::int64_t, double mean) { means.push_back(mean); };
    TrainingProgress progress;
    std::vector<std::string> stages;
    Observer observer;
    observer.on_progress = [&](const ProgressUpdate& u) {
      stages.emplace_back(u.stage);
      CHECK(u.total == (last == LastBatch::keep ? 6 : 4));
    };
    REQUIRE(train(settings, 10, progress, hooks, observer).ok());
    using Five = std::array<std::int64_t, 5>;
    if (last == LastBatch::keep) {
      CHECK(got == std::vector<Five>{{4, 0, 1, 0, 2}, {4, 4, 0, 1, 2}, {2, 8, 1, 1, 1}, {4, 0, 1, 0, 2}, {4, 4, 0, 1, 2}, {2, 8, 1, 1, 1}});
      CHECK(progress.steps == 4);
      CHECK(means == std::vector<double>{1.0, 1.0});
    } else {
      CHECK(got == std::vector<Five>{{4, 0, 1, 0, 2}, {4, 4, 0, 1, 2}, {4, 0, 1, 0, 2}, {4, 4, 0, 1, 2}});
      CHECK(progress.steps == 2);
    }
    CHECK(progress.epoch == 2);
    REQUIRE(stages.size() >= 2);
    CHECK(stages.front() == "training, epoch 1 of 2");
    CHECK(stages.back().find("epoch 2 of 2, loss ") != std::string::npos);
  }
}

TEST_CASE("validation: the best epoch, patience, only every so many epochs") {
  TrainingLoopSettings settings;
  settings.epochs = 20;
  settings.validate_every = 2;
  settings.patience = 3;
  const double values[] = {5.0, 3.0, 3.0, 4.0, 3.5, 1.0};
  int validated = 0, improved = 0;
  TrainingHooks hooks;
  hooks.batch = [](const TrainingBatch&) -> Result<double> { return 1.0; };
  hooks.validate = [&]() -> Result<double> { return values[validated++]; };
  hooks.improved = [&](const TrainingProgress&) -> Status {
    ++improved;
    return {};
  };
  int saved = 0;
  hooks.checkpoint = [&](const TrainingProgress&) -> Status {
    ++saved;
    return {};
  };
  TrainingProgress progress;
  const auto end = train(settings, 8, progress, hooks);
  REQUIRE(end.ok());
  CHECK(*end == TrainingEnd::patience);
  CHECK(validated == 5);
  CHECK(improved == 2);
  CHECK(saved == 1);
  CHECK(progress.best == 3.0);
  CHECK(progress.best_epoch == 4);
  CHECK(progress.epoch == 10);
  // Started again it has still no patience left, and does nothing.
  REQUIRE(train(settings, 8, progress, hooks).ok());
  CHECK(validated == 5);
}

TEST_CASE("checkpoints that cannot be written: the first one ends the run, later ones and the last one do not") {
  int written = 0;
  TrainingHooks hooks;
  hooks.batch = [](const TrainingBatch&) -> Result<double> { return 0.5; };
  const auto failing = [&](int works) {
    written = 0;
    hooks.checkpoint = [&written, works](const TrainingProgress&) -> Status {
      return ++written > works ? Status(Errc::io_error, "no space") : Status();
    };
    TrainingProgress progress;
    return train({.epochs = 4, .checkpoint_every = 1}, 8, progress, hooks).status();
  };
  CHECK(failing(0).message() == "no space");
  CHECK(written == 1);
  CHECK(failing(1).ok());
  CHECK(written == 4);
  // Only at the end: what was trained is complete.
  hooks.checkpoint = [](const TrainingProgress&) -> Status { return {Errc::io_error, "no space"}; };
  TrainingProgress progress;
  CHECK(train({.epochs = 2}, 8, progress, hooks).ok());
  CHECK(progress.epoch == 2);
}

TEST_CASE("a run that cannot go on says why") {
  TrainingHooks hooks;
  hooks.batch = [](const TrainingBatch& b) -> Result<double> { return b.batch == 1 ? std::numeric_limits<double>::quiet_NaN() : 0.5; };
  TrainingProgress progress;
  const auto broken = train({.epochs = 2, .batch = 4}, 10, progress, hooks);
  CHECK(broken.code() == Errc::not_finite);
  CHECK(broken.message().find("epoch 1, batch 2") != std::string::npos);
  const auto code = [&](const TrainingLoopSettings& s, std::int64_t samples, TrainingProgress at = {}) {
    return train(s, samples, at, hooks).code();
  };
  CHECK(code({.batch = 0}, 4) == Errc::invalid_argument);
  CHECK(code({.epochs = -1}, 4) == Errc::invalid_argument);
  CHECK(code({.accumulate = 0}, 4) == Errc::invalid_argument);
  CHECK(code({.patience = 2}, 4) == Errc::invalid_argument);  // without validation
  CHECK(code({.batch = 4}, 0) == Errc::not_enough_data);
  CHECK(code({.batch = 4, .last_batch = LastBatch::drop}, 3) == Errc::not_enough_data);
  TrainingProgress beyond;
  beyond.batch = 3;
  CHECK(code({.batch = 4}, 10, beyond) == Errc::invalid_argument);
  hooks.batch = [](const TrainingBatch&) -> Result<double> { return Status(Errc::io_error, "the disk is gone"); };
  progress = {};
  CHECK(train({}, 4, progress, hooks).message() == "the disk is gone");
  CHECK(train({}, 4, progress, {}).code() == Errc::invalid_argument);
}

TEST_CASE("a checkpoint of another network, setting or data is refused by name, and changes nothing") {
  Run<Adam> run;
  run.checkpoint = path_of("refuse");
  run.settings.epochs = 1;
  REQUIRE(run.go().ok());
  const auto refused = [](Status status, std::string_view word) {
    CHECK(status.code() == Errc::wrong_type);
    CHECK_MESSAGE(status.message().find(word) != std::string::npos, status.message());
  };
  Run<Adam> wider(kWider);
  wider.checkpoint = run.checkpoint;
  const std::vector<float> before(wider.parameters.values().begin(), wider.parameters.values().end());
  refused(wider.load(), "'network'");
  CHECK(std::equal(before.begin(), before.end(), wider.parameters.values().begin()));
  Run<Sgd> sgd;
  sgd.checkpoint = run.checkpoint;
  refused(sgd.load(), "'optimiser'");
  Run<Adam> other;
  other.checkpoint = run.checkpoint;
  refused(other.load("23 images"), "'data'");
  AdamSettings faster = Run<Adam>::settings_of();
  faster.learning_rate = 0.02f;
  auto adam = Adam::create(other.executor.layout().trained(), faster);
  REQUIRE(adam.ok());
  other.optimiser = *std::move(adam);
  refused(other.load(), "learning_rate=0.02");
  auto grouped =
      Adam::create(other.executor.layout().trained(), Run<Adam>::settings_of(), {{0, other.executor.layout().trained(), 0.5f, 1.0f}});
  REQUIRE(grouped.ok());
  other.optimiser = *std::move(grouped);
  refused(other.load(), "'optimiser'");

  // A weight file is no checkpoint; a damaged one is noticed; a missing one is named.
  const std::string weights = path_of("weights");
  io::TensorFileWriter writer;
  REQUIRE(run.parameters.save(writer).ok());
  REQUIRE(writer.write(weights).ok());
  refused(CheckpointReader::open(weights).status(), weights);
  std::fstream file(run.checkpoint, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-5, std::ios::end);
  file.put('\x55');
  file.close();
  CHECK(CheckpointReader::open(run.checkpoint).code() == Errc::corrupt);
  CHECK(CheckpointReader::open(path_of("nowhere")).code() == Errc::not_found);
  std::filesystem::remove(weights);
  std::filesystem::remove(run.checkpoint);
}

}  // namespace
