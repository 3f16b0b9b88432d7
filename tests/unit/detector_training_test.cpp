// Detectors whose estimator is trained in epochs: fitted, interrupted at any moment and gone on with, with and without kept features, refused, saved.
// An estimator of two dozen lines shows the life by itself, FastFlow's the real thing.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/thread_pool.hpp>
#include <norma/methods/fastflow.hpp>

#include "support/shared_fixtures.hpp"
#include "support/tiny_detector.hpp"

namespace {

using namespace norma;
using namespace norma::test;
namespace fs = std::filesystem;

// Learns the mean of the features by steps of an optimiser. `turned`: of images that are turned by another multiple of 90 degrees in every epoch.
class MeanByEpochs {
 public:
  static constexpr std::string_view name = "mean_by_epochs";
  struct Settings {
    TrainingSettings training{.epochs = 5, .batch = 4, .learning_rate = 0.05};
    bool turned = false;
    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      TrainingSettings::visit(self.training, visitor);
      visitor("turned", self.turned, "look at turned images");
    }
  };
  static constexpr bool wants_views(const Settings& settings) { return settings.turned; }
  static Result<MeanByEpochs> create(const FeatureShapes& shapes, const Settings& settings) {
    MeanByEpochs estimator;
    estimator.settings = settings;
    estimator.mean.assign(static_cast<std::size_t>(shapes[0].count()), 0.0f);
    return estimator;
  }
  Status train(const TrainingImages& images, const TrainingContext& context) {
    NORMA_TRY(Trainer trainer, Trainer::create(settings.training, context, images.size(), nn::LastBatch::keep));
    const std::size_t size = mean.size();
    NORMA_TRY(nn::Adam adam,
              nn::Adam::create(static_cast<std::int64_t>(size), {.learning_rate = static_cast<float>(settings.training.learning_rate)}));
    trainer.parameters("mean", mean);
    trainer.optimiser("adam", adam);
    std::vector<std::vector<float>> levels;
    for (int l = 0; l < images.shapes().count; ++l) levels.emplace_back(static_cast<std::size_t>(images.size() * images.shapes()[l].count()));
    std::vector<float> gradient(size);
    const auto look = [&](std::span<const std::int64_t> chosen, std::int64_t epoch) -> Result<double> {
      std::vector<float*> to;
      for (auto& level : levels) to.push_back(level.data());
      std::vector<View> views;
      for (const std::int64_t image : chosen) views.push_back({settings.turned ? 90.0f * static_cast<float>((image + epoch) % 4) : 0.0f});
      NORMA_CHECK(images.gather(chosen, settings.turned ? std::span<const View>(views) : std::span<const View>(), to));
      double loss = 0.0;
      std::fill(gradient.begin(), gradient.end(), 0.0f);
      for (std::size_t n = 0; n < chosen.size(); ++n) {
        for (std::size_t i = 0; i < size; ++i) {
          const float difference = mean[i] - levels[0][n * size + i];
          gradient[i] += difference / static_cast<float>(chosen.size());
          loss += 0.5 * static_cast<double>(difference) * static_cast<double>(difference);
        }
      }
      return loss / static_cast<double>(chosen.size());
    };
    NORMA_CHECK(trainer.run(
        [&](const nn::TrainingBatch& batch, std::span<const std::int64_t> chosen) -> Result<double> {
          NORMA_TRY(const double loss, look(chosen, batch.epoch));
          adam.step(mean, gradient, static_cast<float>(settings.training.learning_rate), context.parallel);
          return loss;
        },
        [&](std::span<const std::int64_t> chosen) { return look(chosen, 0); }));
    training = trainer.record();
    return {};
  }
  [[nodiscard]] const TrainingRecord& record() const { return training; }
  Status save(io::TensorFileWriter& writer) const {
    NORMA_CHECK(writer.add("estimator.mean", {static_cast<std::int64_t>(mean.size())}, std::span<const float>(mean)));
    return save_record(training, writer);
  }
  static Result<MeanByEpochs> load(const io::Weights& file, const FeatureShapes& shapes, const Settings& settings, Parallel) {
    NORMA_TRY(MeanByEpochs loaded, create(shapes, settings));
    NORMA_CHECK(file.read("estimator.mean", {shapes[0].count()}, std::span<float>(loaded.mean)));
    NORMA_TRY(loaded.training, load_record(file));
    return loaded;
  }
  Settings settings;
  std::vector<float> mean;
  TrainingRecord training;
};
static_assert(TrainingEstimator<MeanByEpochs> && !StreamingEstimator<MeanByEpochs>);

class DistanceFromMean {
 public:
  static constexpr std::string_view name = "distance_from_mean";
  using Settings = MapSettings;
  explicit DistanceFromMean(const Settings& s) : settings_(s) {}
  static Status validate(const Settings& s) { return s.validate(); }
  template <class EstimatorT>
  static constexpr std::size_t scratch_bytes(const FeatureShapes& shapes, Shape map, const Settings& s, int) {
    return arena_bytes<float>(shapes[0].positions()) + metrics::smooth_map_scratch_bytes(map, s);
  }
  Status measure(const MeanByEpochs& estimator, const Features& features, MapView<float> map, float& score, Context& context) const {
    const auto& level = features[0];
    const MapView<float> distance(context.arena.take<float>(level.height * level.width), level.height, level.width);
    for (std::int64_t p = 0; p < distance.count(); ++p) {
      distance.data[p] = 0.0f;
      for (std::int64_t i = p * level.channels; i < (p + 1) * level.channels; ++i)
        distance.data[p] += std::abs(level.data[i] - estimator.mean[static_cast<std::size_t>(i)]);
    }
    NORMA_CHECK(image::resize_bilinear(MapView<const float>(distance), map, AlignCorners::no));
    NORMA_CHECK(metrics::smooth_map(map, settings_, context));
    score = *std::max_element(map.data, map.data + map.count());
    return {};
  }

 private:
  Settings settings_;
};

using Toy = Detector<Patches<TinyNetwork, Levels>, MeanByEpochs, DistanceFromMean>;
using Flow = FastFlow<TinyNetwork>;

// 12 pictures, 2 held out; 3 batches an epoch of the toy's, 2 of FastFlow's (which drops the last one).
template <class D>
typename D::Settings small_settings() {
  typename D::Settings settings;
  settings.backbone.preprocess.height = settings.backbone.preprocess.width = 32;
  settings.estimator.training.epochs = 4;
  settings.estimator.training.batch = 4;
  settings.estimator.training.holdout = 0.2;
  if constexpr (std::is_same_v<D, Flow>) settings.estimator.flow_steps = 2;
  return settings;
}
template <class D>
D empty(const typename D::Settings& settings = small_settings<D>(), std::uint64_t weights = 1) {
  auto detector = D::create(tiny_weights(weights), settings);
  REQUIRE_MESSAGE(detector.ok(), detector.message());
  return *std::move(detector);
}
template <class D>
std::vector<std::byte> bytes_of(const D& detector) {
  auto bytes = detector.save_bytes();
  REQUIRE_MESSAGE(bytes.ok(), bytes.message());
  return *std::move(bytes);
}
template <class D>
std::vector<std::byte> fitted(const FitOptions& options, const typename D::Settings& settings = small_settings<D>()) {
  D detector = empty<D>(settings);
  const Status status = detector.fit(TinySource{}, options);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return bytes_of(detector);
}

// Calls back with the number of pictures that were loaded so far: where nothing is kept between epochs, that is a clock of the training.
struct WatchedSource : TinySource {
  std::function<void(int)> at_load;
  std::shared_ptr<std::atomic<int>> loads = std::make_shared<std::atomic<int>>(0);
  [[nodiscard]] Result<Image> load(std::int64_t i) const {
    const int n = ++*loads;
    if (at_load) at_load(n);
    return TinySource::load(i);
  }
};

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("the epochs of the toy lead to the mean, and its record says how") {
  auto settings = small_settings<Toy>();
  settings.estimator.training = {.epochs = 300, .batch = 12, .learning_rate = 0.02};
  Toy detector = empty<Toy>(settings);
  CHECK_FALSE(detector.fitted());
  CHECK(detector.save("never").code() == Errc::not_fitted);
  REQUIRE(detector.fit(TinySource{}, {.threads = 1}).ok());
  const TrainingRecord* record = detector.training();
  REQUIRE(record != nullptr);
  REQUIRE(record->loss.size() == 300);
  CHECK(record->held_out.empty());
  CHECK(record->best_epoch == -1);
  // With every picture in every batch the loss is what the features scatter about their mean, and Adam arrives there.
  std::vector<double> mean(detector.estimator().mean.size(), 0.0);
  std::vector<std::vector<float>> all;
  Buffer<std::byte> memory(static_cast<std::int64_t>(Toy::workspace_bytes(settings)));
  for (std::int64_t i = 0; i < 12; ++i) {
    Arena arena(memory.span());
    Context context{arena};
    Features features;
    REQUIRE(detector.backbone().extract(tiny_picture(static_cast<std::uint64_t>(i)).view(), features, context).ok());
    all.emplace_back(features[0].data, features[0].data + mean.size());
    for (std::size_t k = 0; k < mean.size(); ++k) mean[k] += static_cast<double>(all.back()[k]) / 12.0;
  }
  double scatter = 0.0, first = 0.0, worst = 0.0;
  for (const auto& image : all) {
    for (std::size_t k = 0; k < mean.size(); ++k) {
      const double x = static_cast<double>(image[k]);
      scatter += 0.5 * (x - mean[k]) * (x - mean[k]) / 12.0;
      first += 0.5 * x * x / 12.0;
    }
  }
  for (std::size_t k = 0; k < mean.size(); ++k) worst = std::max(worst, std::abs(static_cast<double>(detector.estimator().mean[k]) - mean[k]));
  CHECK(std::abs(static_cast<double>(record->loss.front()) - first) <= 1e-5 * first);  // float sums of 12 products, and the mean begins at 0
  CHECK(worst <= 0.02);                                                               // a step of Adam
  CHECK(static_cast<double>(record->loss.back()) <= scatter * 1.01);
  CHECK(static_cast<double>(record->loss.back()) >= scatter * 0.9999);
}

TEST_CASE_TEMPLATE("a trained model is saved, opened, tested and calibrated as any other, and its file holds the record", D, Toy, Flow) {
  const TemporaryFolder folder;
  const std::string path = (folder.path() / "model.norma").string();
  D detector = empty<D>();
  REQUIRE(detector.fit(TinySource{}, {.seed = 7, .threads = 1}).ok());
  REQUIRE(detector.calibrate(TinySource{.count = 20, .first = 300}, {.false_reject_rate = 0.1}).ok());
  REQUIRE(detector.save(path).ok());
  const auto opened = D::open(path);
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  const Status tested = opened->self_test(0.0);
  CHECK_MESSAGE(tested.ok(), tested.message());
  CHECK(bytes_of(*opened) == bytes_of(detector));
  CHECK(opened->provenance().images == 12);
  CHECK(opened->provenance().seed == 7);
  REQUIRE(opened->calibration());
  const TrainingRecord *here = detector.training(), *there = opened->training();
  REQUIRE(here != nullptr);
  REQUIRE(there != nullptr);
  REQUIRE(here->loss.size() == 4);
  REQUIRE(here->held_out.size() == 4);
  CHECK(there->loss == here->loss);
  CHECK(there->held_out == here->held_out);
  CHECK(there->best_epoch == here->best_epoch);
  CHECK(here->best_epoch >= 1);
  CHECK(here->loss.back() < here->loss.front());
  // It knows a defect, and a second fit begins from nothing.
  auto workspace = opened->make_workspace();
  const auto good = opened->inspect(tiny_picture(100), workspace);
  REQUIRE(good.ok());
  const float calm = good->score;
  const auto bad = opened->inspect(tiny_picture(5, true), workspace);
  REQUIRE(bad.ok());
  CHECK(bad->score > calm);
  REQUIRE(detector.fit(TinySource{}, {.seed = 7, .threads = 1}).ok());
  CHECK_FALSE(detector.calibration());
  CHECK(bytes_of(detector) == fitted<D>({.seed = 7, .threads = 1}));
  CHECK(bytes_of(detector) != fitted<D>({.seed = 8, .threads = 1}));
}

TEST_CASE_TEMPLATE("one model for any number of threads and any room for features", D, Toy, Flow) {
  const auto expected = fitted<D>({.threads = 1});
  CHECK(fitted<D>({.threads = 2}) == expected);
  // Room for none, for some (an image has 16 x 16 x 6 + 8 x 8 x 8 + 4 x 4 x 10 numbers), for one and a half.
  for (const std::uint64_t room : {std::uint64_t{0}, std::uint64_t{4 * 2208 * 5}, std::uint64_t{4 * 2208 * 3 / 2}}) {
    CAPTURE(room);
    CHECK(fitted<D>({.threads = 1, .cache_bytes = room}) == expected);
  }
  CHECK(fitted<D>({.threads = 2, .cache_bytes = 4 * 2208 * 5}) == expected);
  // With room for all of them every picture is loaded once; without, in every epoch.
  WatchedSource kept, looked_at_again;
  D detector = empty<D>();
  REQUIRE(detector.fit(kept, {.threads = 1}).ok());
  CHECK(*kept.loads == 12);
  REQUIRE(detector.fit(looked_at_again, {.threads = 1, .cache_bytes = 0}).ok());
  CHECK(*looked_at_again.loads > 12 + 4 * 8);
}

TEST_CASE("turned images: one model whether their originals are kept or not, and another than without turning") {
  auto settings = small_settings<Toy>();
  settings.estimator.turned = true;
  const auto expected = fitted<Toy>({.threads = 1}, settings);
  CHECK(fitted<Toy>({.threads = 2}, settings) == expected);
  CHECK(fitted<Toy>({.threads = 1, .cache_bytes = 0}, settings) == expected);
  CHECK(fitted<Toy>({.threads = 1, .cache_bytes = 32 * 32 * 3 * 5}, settings) == expected);
  WatchedSource kept;
  Toy detector = empty<Toy>(settings);
  REQUIRE(detector.fit(kept, {.threads = 1}).ok());
  CHECK(*kept.loads == 12);
  const auto tensors = [](const Toy& of) { return of.estimator().mean; };
  Toy plain = empty<Toy>();
  REQUIRE(plain.fit(TinySource{}, {.threads = 1}).ok());
  CHECK(tensors(plain) != tensors(detector));
}

TEST_CASE_TEMPLATE("a training that was stopped at any moment, once or twice, goes on bit for bit", D, Toy, Flow) {
  const TemporaryFolder folder;
  const std::string checkpoint = (folder.path() / "run.checkpoint").string();
  const auto expected = fitted<D>({.seed = 3, .threads = 1});
  const auto run = [&](D& detector, int stop_at) {
    std::atomic<bool> stop{false};
    WatchedSource source;
    if (stop_at > 0) source.at_load = [&](int n) { stop = stop || n >= stop_at; };
    FitOptions options{.seed = 3, .threads = 1, .checkpoint = checkpoint, .cache_bytes = 0};
    options.observer.cancel = &stop;
    return detector.fit(source, options);
  };
  // While features are looked at; in the first batch; in the middle; at the held-out images; late.
  int stopped = 0;
  for (const int moment : {2, 12, 13, 16, 17, 24, 25, 31, 40, 46}) {
    CAPTURE(moment);
    fs::remove(checkpoint);
    D detector = empty<D>();
    const Status first = run(detector, moment);
    CAPTURE(first.message());
    if (first.code() == Errc::cancelled) {
      ++stopped;
      CHECK(contains(first.message(), "stopped on request"));
      CHECK_FALSE(detector.fitted());
      CHECK(fs::exists(checkpoint) == (moment > 12));
    }
    // Twelve pictures for the first look, and some more.
    if (moment % 2 == 1) CHECK(run(detector, 12 + 6).code() == Errc::cancelled);
    const Status last = run(detector, 0);
    REQUIRE_MESSAGE(last.ok(), last.message());
    CHECK(bytes_of(detector) == expected);
  }
  CHECK(stopped >= 8);
  // What the end of a run left is gone on from at once.
  REQUIRE(fs::exists(checkpoint));
  D detector = empty<D>();
  WatchedSource source;
  REQUIRE(detector.fit(source, {.seed = 3, .threads = 1, .checkpoint = checkpoint, .cache_bytes = 0}).ok());
  CHECK(*source.loads == 12);
  CHECK(bytes_of(detector) == expected);
}

TEST_CASE("file names in any bytes: a checkpoint is written and gone on from all the same") {
  struct OddNames : TinySource {
    [[nodiscard]] std::string name(std::int64_t i) const { return "\xE9" + std::to_string(i) + "\n.png"; }
  };
  const TemporaryFolder folder;
  const std::string checkpoint = (folder.path() / "run.checkpoint").string();
  Toy detector = empty<Toy>();
  const Status status = detector.fit(OddNames{}, {.threads = 1, .checkpoint = checkpoint});
  REQUIRE_MESSAGE(status.ok(), status.message());
  REQUIRE(fs::exists(checkpoint));
  REQUIRE(detector.fit(OddNames{}, {.threads = 1, .checkpoint = checkpoint}).ok());
  CHECK(detector.fit(TinySource{}, {.threads = 1, .checkpoint = checkpoint}).code() == Errc::wrong_type);
}

TEST_CASE_TEMPLATE("a training that was killed goes on from its last checkpoint", D, Toy, Flow) {
  const TemporaryFolder folder;
  const std::string checkpoint = (folder.path() / "run.checkpoint").string(), earlier = (folder.path() / "earlier").string();
  const auto expected = fitted<D>({.threads = 1});
  int found = 0;
  for (const int moment : {17, 22, 30, 41}) {
    CAPTURE(moment);
    fs::remove(checkpoint);
    fs::remove(earlier);
    WatchedSource source;
    source.at_load = [&](int n) {
      if (n == moment && fs::exists(checkpoint)) fs::copy_file(checkpoint, earlier);
    };
    D detector = empty<D>();
    REQUIRE(detector.fit(source, {.threads = 1, .checkpoint = checkpoint, .checkpoint_seconds = 1e-9, .cache_bytes = 0}).ok());
    CHECK(bytes_of(detector) == expected);
    if (!fs::exists(earlier)) continue;
    ++found;
    fs::copy_file(earlier, checkpoint, fs::copy_options::overwrite_existing);
    WatchedSource again;
    REQUIRE(detector.fit(again, {.threads = 2, .checkpoint = checkpoint, .cache_bytes = 0}).ok());
    CHECK(*again.loads < *source.loads);
    CHECK(bytes_of(detector) == expected);
  }
  CHECK(found >= 3);
}

TEST_CASE_TEMPLATE("a checkpoint of another run is refused by name and the detector stays as it was", D, Toy, Flow) {
  const TemporaryFolder folder;
  const std::string checkpoint = (folder.path() / "run.checkpoint").string();
  D detector = empty<D>();
  REQUIRE(detector.fit(TinySource{}, {.seed = 3, .threads = 1, .checkpoint = checkpoint}).ok());
  const auto expected = bytes_of(detector);
  const auto refused = [&](D& other, const auto& source, const FitOptions& options, Errc code) {
    const Status status = other.fit(source, options);
    CAPTURE(status.message());
    CHECK(status.code() == code);
    CHECK(contains(status.message(), checkpoint));
    CHECK(contains(status.message(), "delete it"));
    CHECK(status.message().size() < 1000);
  };
  const FitOptions same{.seed = 3, .threads = 1, .checkpoint = checkpoint};
  FitOptions seed = same;
  seed.seed = 4;
  refused(detector, TinySource{}, seed, Errc::wrong_type);
  refused(detector, TinySource{.count = 11}, same, Errc::wrong_type);
  refused(detector, TinySource{.count = 12, .first = 1}, same, Errc::wrong_type);
  // The same names in another folder may be other images, and may be the same ones.
  struct Elsewhere : TinySource {
    bool changed = false;
    [[nodiscard]] std::string name(std::int64_t i) const { return "elsewhere/picture" + std::to_string(i) + ".png"; }
    [[nodiscard]] Result<Image> load(std::int64_t i) const {
      Image picture = tiny_picture(static_cast<std::uint64_t>(i));
      if (changed && i == 3) picture(5, 5, 1) = static_cast<std::uint8_t>(picture(5, 5, 1) ^ 1);
      return picture;
    }
  };
  Elsewhere elsewhere;
  elsewhere.changed = true;
  refused(detector, elsewhere, same, Errc::wrong_type);
  CHECK(bytes_of(detector) == expected);
  elsewhere.changed = false;
  CHECK(detector.fit(elsewhere, same).ok());
  auto settings = small_settings<D>();
  settings.estimator.training.learning_rate *= 2.0;
  D faster = empty<D>(settings), others = empty<D>(small_settings<D>(), 2);
  refused(faster, TinySource{}, same, Errc::wrong_type);
  refused(others, TinySource{}, same, Errc::wrong_type);
  CHECK_FALSE(faster.fitted());
  // Damage, and a file that is something else.
  std::string text;
  {
    std::ifstream file(checkpoint, std::ios::binary);
    text.assign(std::istreambuf_iterator<char>(file), {});
  }
  const auto write = [&](const std::string& what) { std::ofstream(checkpoint, std::ios::binary) << what; };
  std::string damaged = text;
  damaged[damaged.size() - 5] = static_cast<char>(damaged[damaged.size() - 5] ^ 1);
  write(damaged);
  refused(detector, TinySource{}, same, Errc::corrupt);
  write(text.substr(0, text.size() / 2));
  refused(detector, TinySource{}, same, Errc::corrupt);
  write("something else");
  refused(detector, TinySource{}, same, Errc::corrupt);
  REQUIRE(detector.save(checkpoint).ok());
  refused(detector, TinySource{}, same, Errc::wrong_type);
  CHECK(bytes_of(detector) == expected);
}

TEST_CASE_TEMPLATE("broken images are named, or skipped where that is asked for", D, Toy, Flow) {
  D detector = empty<D>();
  const Status status = detector.fit(TinySource{.count = 12, .first = 0, .broken = 4}, {.threads = 2});
  CHECK(status.code() == Errc::corrupt);
  CHECK(contains(status.message(), "picture4.png"));
  CHECK_FALSE(detector.fitted());
  std::vector<SkippedImage> skipped;
  REQUIRE(detector.fit(TinySource{.count = 12, .first = 0, .broken = 4}, {.threads = 2, .skipped = &skipped}).ok());
  REQUIRE(skipped.size() == 1);
  CHECK(contains(skipped[0].name, "picture4.png"));
  CHECK(detector.provenance().images == 11);
  CHECK(detector.image_names().size() == 11);
  CHECK(detector.image_names()[4] == "picture5.png");
  // Neither does the place of the broken one matter to what is kept, nor who looks.
  const auto expected = bytes_of(detector);
  REQUIRE(detector.fit(TinySource{.count = 12, .first = 0, .broken = 4}, {.threads = 1, .skipped = &skipped, .cache_bytes = 0}).ok());
  CHECK(bytes_of(detector) == expected);
  // One that breaks while the training runs ends it, by name.
  struct Breaking : WatchedSource {
    [[nodiscard]] Result<Image> load(std::int64_t i) const {
      if (++*loads > 20 && i == 7) return Status{Errc::io_error, "cannot be read any more"};
      return TinySource::load(i);
    }
  };
  const Status later = detector.fit(Breaking{}, {.threads = 1, .cache_bytes = 0});
  CHECK(later.code() == Errc::io_error);
  CHECK(contains(later.message(), "picture7.png"));
  CHECK(bytes_of(detector) == expected);
}

TEST_CASE_TEMPLATE("held-out images choose the epoch, and patience ends the training", D, Toy, Flow) {
  auto settings = small_settings<D>();
  settings.estimator.training.epochs = 40;
  settings.estimator.training.holdout = 0.25;
  // Epochs until three in a row were not better than the best one before.
  const auto last_epoch = [](const std::vector<float>& losses) {
    std::size_t since = 0, done = 0;
    for (float best = INFINITY; done < losses.size() && since < 3; ++done) {
      since = losses[done] < best ? 0 : since + 1;
      best = std::min(best, losses[done]);
    }
    return done;
  };
  // Steps that grow until the loss jumps about.
  TrainingRecord all;
  for (double rate = 0.1; rate < 10.0; rate *= 2.0) {
    settings.estimator.training.learning_rate = rate;
    D patient = empty<D>(settings);
    REQUIRE(patient.fit(TinySource{}, {.threads = 1}).ok());
    all = *patient.training();
    REQUIRE(all.held_out.size() == 40);
    if (last_epoch(all.held_out) < 40) break;
  }
  const std::size_t expected = last_epoch(all.held_out);
  REQUIRE(expected < 40);
  const auto lowest = std::min_element(all.held_out.begin(), all.held_out.end());
  CHECK(all.best_epoch == lowest - all.held_out.begin() + 1);
  // Stops after three epochs without a better one.
  settings.estimator.training.patience = 3;
  D hasty = empty<D>(settings);
  REQUIRE(hasty.fit(TinySource{}, {.threads = 1}).ok());
  const TrainingRecord some = *hasty.training();
  CHECK(some.loss.size() == expected);
  CHECK(std::equal(some.held_out.begin(), some.held_out.end(), all.held_out.begin()));
  CHECK(some.best_epoch == static_cast<std::int64_t>(expected) - 3);
  // What is kept is that epoch's: a training that ends there by its number of epochs has the same tensors.
  settings.estimator.training.patience = 0;
  settings.estimator.training.epochs = some.best_epoch;
  D straight = empty<D>(settings);
  REQUIRE(straight.fit(TinySource{}, {.threads = 1}).ok());
  CHECK(straight.training()->best_epoch == some.best_epoch);
  const auto a_bytes = bytes_of(hasty), b_bytes = bytes_of(straight);
  const auto a = io::Weights::from_bytes(std::span<const std::byte>(a_bytes), "a"),
             b = io::Weights::from_bytes(std::span<const std::byte>(b_bytes), "b");
  REQUIRE(a.ok());
  REQUIRE(b.ok());
  int compared = 0;
  for (const io::TensorInfo& tensor : a->tensors()) {
    if (!tensor.name.starts_with("estimator.") || tensor.dtype != io::DType::f32) continue;
    std::vector<float> x(static_cast<std::size_t>(tensor.count())), y(x.size());
    REQUIRE(a->read(tensor.name, tensor.shape, std::span<float>(x)).ok());
    REQUIRE(b->read(tensor.name, tensor.shape, std::span<float>(y)).ok());
    CAPTURE(std::string(tensor.name));
    CHECK(x == y);
    ++compared;
  }
  CHECK(compared > 0);
}

TEST_CASE_TEMPLATE("settings and numbers of images that cannot work are refused", D, Toy, Flow) {
  const auto refused = [](const auto& change, Errc code, const std::string& part) {
    auto settings = small_settings<D>();
    change(settings.estimator.training);
    auto detector = D::create(tiny_weights(), settings);
    const Status status = detector.ok() ? detector->fit(TinySource{}, {.threads = 1}) : detector.status();
    CAPTURE(status.message());
    CHECK(status.code() == code);
    CHECK(contains(status.message(), part));
  };
  refused([](TrainingSettings& t) { t.epochs = 0; }, Errc::invalid_argument, "epochs");
  refused([](TrainingSettings& t) { t.batch = 0; }, Errc::invalid_argument, "batch");
  refused([](TrainingSettings& t) { t.learning_rate = 0.0; }, Errc::invalid_argument, "learning_rate");
  refused([](TrainingSettings& t) { t.learning_rate = std::nan(""); }, Errc::invalid_argument, "learning_rate");
  refused([](TrainingSettings& t) { t.holdout = 0.6; }, Errc::invalid_argument, "holdout");
  refused([](TrainingSettings& t) { t.patience = -1; }, Errc::invalid_argument, "patience");
  refused([](TrainingSettings& t) { t.holdout = 0.0, t.patience = 2; }, Errc::invalid_argument, "held-out");
  D detector = empty<D>();
  CHECK(detector.fit(TinySource{.count = 1}, {.threads = 1}).code() == Errc::not_enough_data);  // one, and that is held out
  CHECK(detector.fit(TinySource{.count = 2}, {.threads = 1}).ok());
  CHECK(detector.fit(TinySource{.count = 0}, {.threads = 1}).code() == Errc::not_enough_data);
}

TEST_CASE("memory of a fit: what is kept counts as far as it may grow") {
  const auto settings = small_settings<Flow>();
  const double none = Flow::fit_bytes(settings, 1000, 0), all = Flow::fit_bytes(settings, 1000);
  CHECK(none > 0.0);
  CHECK(all - none == 4.0 * 2208.0 * 1000.0);
  CHECK(Flow::fit_bytes(settings, 1000, 4000) - none == 4000.0);
}

namespace {

// A backbone that cannot turn: the network without its views.
class NoViews : public Patches<TinyNetwork, Levels> {
 public:
  static constexpr std::string_view name = "no_views";
  static Result<NoViews> create(const io::Weights& weights, const Settings& settings) {
    NORMA_TRY(auto base, (Patches<TinyNetwork, Levels>::create(weights, settings)));
    return NoViews(std::move(base));
  }
  explicit NoViews(Patches<TinyNetwork, Levels> base) : Patches<TinyNetwork, Levels>(std::move(base)) {}
  Status extract_view() const = delete;
};
static_assert(!HasViews<NoViews>);

}  // namespace

TEST_CASE("turned images need a backbone that can show them") {
  using Blind = Detector<NoViews, MeanByEpochs, DistanceFromMean>;
  Blind::Settings settings;
  settings.backbone.preprocess.height = settings.backbone.preprocess.width = 32;
  settings.estimator.training.epochs = 1;
  auto detector = Blind::create(tiny_weights(), settings);
  REQUIRE_MESSAGE(detector.ok(), detector.message());
  CHECK(detector->fit(TinySource{}, {.threads = 1}).ok());
  settings.estimator.turned = true;
  const auto refused = Blind::create(tiny_weights(), settings);
  CHECK(refused.code() == Errc::unsupported);
  CHECK(contains(refused.message(), "no_views"));
  CHECK(contains(refused.message(), "mean_by_epochs"));
}
