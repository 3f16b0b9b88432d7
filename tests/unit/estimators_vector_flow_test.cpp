// DifferNet's estimator on made-up vectors: what training asks for, that it is repeatable, interruptible and pooled without a difference, and
// the score.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/thread_pool.hpp>
#include <norma/estimators/vector_flow.hpp>
#include <norma/metrics/mean_squared_latent.hpp>

#include "support/count_allocations.hpp"
#include "support/shared_fixtures.hpp"

using namespace norma;

namespace {

using Flow = VectorFlow<>;
static_assert(TrainingEstimator<Flow>);
static_assert(MetricFor<MeanSquaredLatent, Flow>);
static_assert(!MeanSquaredLatent::localizes({}));

constexpr std::int64_t kDims = 6;

FeatureShapes vectors(std::int64_t rows = 1, std::int64_t dims = kDims) {
  FeatureShapes shapes;
  shapes.add({rows, 1, dims});
  return shapes;
}

// A vector that depends smoothly on image and angle, far from white: correlated, shifted.
void vector_of(std::int64_t image, float degrees, float* out) {
  Random random(5, static_cast<std::uint64_t>(image));
  const double a = random.normal(), b = random.normal(), turn = static_cast<double>(degrees) * std::numbers::pi / 180.0;
  for (std::int64_t c = 0; c < kDims; ++c) {
    const auto k = static_cast<double>(c);
    out[c] = static_cast<float>(2.0 + 0.5 * k + a * std::cos(0.4 * k) + 0.6 * b * std::sin(0.9 * k) + 0.3 * std::sin(turn + k));
  }
}

class MadeUp final : public TrainingImages {
 public:
  explicit MadeUp(std::int64_t count) : count_(count), shapes_(vectors()) {}
  [[nodiscard]] std::int64_t size() const noexcept override { return count_; }
  [[nodiscard]] const FeatureShapes& shapes() const noexcept override { return shapes_; }
  Status gather(std::span<const std::int64_t> images, std::span<const View> views, std::span<float* const> out) const override {
    REQUIRE((views.empty() || views.size() == images.size()));
    ++calls;
    if (cancel_at == calls) cancel = true;
    for (std::size_t i = 0; i < images.size(); ++i) {
      const float degrees = views.empty() ? 0.0f : views[i].degrees;
      vector_of(images[i], degrees, out[0] + static_cast<std::int64_t>(i) * kDims);
      asked.emplace_back(images[i], degrees);
    }
    sizes.push_back(static_cast<std::int64_t>(images.size()));
    return {};
  }
  mutable std::vector<std::pair<std::int64_t, float>> asked;
  mutable std::vector<std::int64_t> sizes;
  mutable std::int64_t calls = 0;
  std::int64_t cancel_at = -1;
  mutable std::atomic<bool> cancel{false};

 private:
  std::int64_t count_;
  FeatureShapes shapes_;
};

Flow::Settings small() {
  Flow::Settings settings;
  settings.training.epochs = 4;
  settings.training.batch = 3;
  settings.training.learning_rate = 5e-3;
  settings.turns = 2;
  settings.flow_steps = 3;
  settings.flow_width = 16;
  return settings;
}

Flow fresh(const Flow::Settings& settings, std::int64_t rows = 1) {
  auto made = Flow::create(vectors(rows), settings);
  REQUIRE_MESSAGE(made.ok(), made.message());
  return *std::move(made);
}
Status train(Flow& flow, const MadeUp& images, int threads = 1, const std::string& checkpoint = {}, std::uint64_t seed = 3) {
  ThreadPool pool(threads);
  Observer observer;
  observer.cancel = &images.cancel;
  return flow.train(
      images,
      TrainingContext{
          .parallel = pool.parallel(), .observer = observer, .seed = seed, .checkpoint = checkpoint, .identity = "test", .checkpoint_seconds = 1e9});
}
Flow trained(const Flow::Settings& settings, std::int64_t images = 7, int threads = 1) {
  Flow flow = fresh(settings);
  const Status status = train(flow, MadeUp(images), threads);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return flow;
}
std::vector<float> numbers(const Flow& flow) { return {flow.model().parameters().begin(), flow.model().parameters().end()}; }

io::Weights file_of(const Flow& flow, const std::function<void(io::TensorFileWriter&)>& extra = {}) {
  io::TensorFileWriter writer;
  REQUIRE(flow.save(writer).ok());
  if (extra) extra(writer);
  auto bytes = writer.to_bytes();
  REQUIRE(bytes.ok());
  auto file = io::Weights::from_bytes(*std::move(bytes), "model");
  REQUIRE(file.ok());
  return *std::move(file);
}

// Score of `rows` vectors in exactly the memory that the metric asks for.
float score_of(const Flow& flow, const std::vector<float>& x, std::vector<float>* map_out = nullptr) {
  const FeatureShapes shapes = flow.shapes();
  const Flow::Settings settings = small();
  Buffer<std::byte> memory(static_cast<std::int64_t>(MeanSquaredLatent::scratch_bytes<Flow>(shapes, {4, 5, 1}, {}, settings, 1)));
  Arena arena(memory.span());
  Context context{arena};
  Features features;
  features.add(TensorView<const float>(x.data(), 1, shapes[0]));
  std::vector<float> map(20);
  float score = 0.0f;
  const MeanSquaredLatent metric({});
  const std::int64_t before = test::allocation_count();
  const Status status = metric.measure(flow, features, MapView<float>(map.data(), 4, 5), score, context);
  CHECK(test::allocation_count() == before);
  REQUIRE_MESSAGE(status.ok(), status.message());
  CHECK(arena.used() == 0);
  if (map_out != nullptr) *map_out = map;
  return score;
}

}  // namespace

TEST_CASE("VectorFlow: the published flow has 172,077,056 parameters") {
  CHECK(Flow::parameter_count(vectors(64, 768)) == 172077056);
  CHECK(trained(small()).model().parameter_count() == Flow::parameter_count(vectors(), small()));
}

TEST_CASE("VectorFlow: settings that cannot work are refused in one sentence") {
  const auto refused = [](auto&& change) {
    Flow::Settings settings = small();
    change(settings);
    return Flow::create(vectors(), settings).message();
  };
  CHECK(refused([](auto& s) { s.turns = -1; }) == "VectorFlow: turns must be in 0..4096, found -1");
  CHECK(refused([](auto& s) { s.pooled_turns = 65537; }) == "VectorFlow: pooled_turns must be in 0..65536, found 65537");
  CHECK(refused([](auto& s) { s.turns = 0, s.pooled_turns = 2; }) == "VectorFlow: pooled_turns needs turned images, expected turns above 0, found 0");
  CHECK(refused([](auto& s) { s.flow_steps = 0; }) == "VectorFlow: flow_steps must be in 1..1000, found 0");
  CHECK(refused([](auto& s) { s.flow_width = 0; }) == "VectorFlow: flow_width must be in 1..1048576, found 0");
  CHECK(refused([](auto& s) { s.clamp = std::numeric_limits<double>::quiet_NaN(); }).starts_with("VectorFlow: clamp must be in (0, 20]"));
  CHECK(refused([](auto& s) { s.training.batch = 0; }) == "VectorFlow: batch must be in 1..1000000, found 0");
  FeatureShapes two = vectors();
  two.add({1, 1, 4});
  CHECK(Flow::create(two, small()).message() == "VectorFlow: expected one level of vectors, found 2 levels");
  CHECK_FALSE(Flow::create(vectors(1, 1), small()).ok());
  Flow other = *Flow::create(vectors(1, 8), small());
  CHECK(train(other, MadeUp(4)).message() == "VectorFlow::train: expected one vector of 8 numbers a view");
  CHECK(Flow::wants_views(small()));
  Flow::Settings upright = small();
  upright.turns = 0;
  CHECK_FALSE(Flow::wants_views(upright));
}

TEST_CASE("VectorFlow: every epoch asks for new turns of every image, and the last batch is kept") {
  const MadeUp images(7);
  Flow flow = fresh(small());
  REQUIRE(train(flow, images).ok());
  CHECK(images.sizes == std::vector<std::int64_t>{6, 6, 2, 6, 6, 2, 6, 6, 2, 6, 6, 2});
  std::set<float> angles;
  for (std::size_t epoch = 0; epoch < 4; ++epoch) {
    std::vector<int> seen(7);
    for (std::size_t i = 0; i < 14; ++i) {
      const auto& [image, degrees] = images.asked[epoch * 14 + i];
      ++seen[static_cast<std::size_t>(image)];
      CHECK(degrees >= -180.0f);
      CHECK(degrees < 180.0f);
      angles.insert(degrees);
    }
    CHECK(seen == std::vector<int>(7, 2));
  }
  CHECK(angles.size() == 4 * 14);
  CHECK(*angles.begin() < -120.0f);
  CHECK(*angles.rbegin() > 120.0f);
  CHECK(flow.record().loss.size() == 4);
}

TEST_CASE("VectorFlow: exact and pooled training are the same while the pool lasts") {
  Flow::Settings exact = small(), pooled = small();
  pooled.pooled_turns = 8;  // 4 epochs of 2 turns
  const Flow a = trained(exact), b = trained(pooled);
  CHECK(numbers(a) == numbers(b));
  CHECK(a.record().loss == b.record().loss);
  pooled.pooled_turns = 3;
  const MadeUp images(7);
  Flow c = fresh(pooled);
  REQUIRE(train(c, images).ok());
  CHECK(images.asked.size() == 7 * 3);  // looked at once
  CHECK(numbers(c) != numbers(a));
  CHECK(c.record().loss[0] == a.record().loss[0]);  // the first two turns are in the pool
}

TEST_CASE("PoolOrder: all turns of a pool once before any comes again, the first time in their order") {
  detail::PoolOrder order(9, 4, 5);
  std::vector<std::int64_t> before;
  for (std::int64_t round = 0; round < 6; ++round) {
    std::vector<std::int64_t> now;
    for (std::int64_t i = 0; i < 5; ++i) now.push_back(order(round * 5 + i));
    if (round == 0) CHECK(now == std::vector<std::int64_t>{0, 1, 2, 3, 4});
    CHECK(now != before);
    before = now;
    std::sort(now.begin(), now.end());
    CHECK(now == std::vector<std::int64_t>{0, 1, 2, 3, 4});
  }
  detail::PoolOrder again(9, 4, 5);
  CHECK(again(27) == before[2]);  // a function of the arguments alone
}

TEST_CASE("VectorFlow: training brings the loss down, and unlike vectors score higher") {
  Flow::Settings settings = small();
  settings.training.epochs = 60;
  settings.training.batch = 8;
  Flow flow = fresh(settings);
  REQUIRE(train(flow, MadeUp(24)).ok());
  CHECK(flow.record().loss.back() < flow.record().loss.front() - 1.0f);
  std::vector<float> x(kDims);
  vector_of(100, 17.0f, x.data());  // another normal one
  const float normal = score_of(flow, x);
  for (std::int64_t c = 0; c < kDims; c += 2) x[static_cast<std::size_t>(c)] += 3.0f;
  CHECK(score_of(flow, x) > 4.0f * normal);
  for (float& value : x) value = 3e37f;  // beyond float on the way: still the most anomalous, not an error
  CHECK(score_of(flow, x) == std::numeric_limits<float>::max());
}

TEST_CASE("MeanSquaredLatent: features that are not finite are an error") {
  const Flow flow = trained(small());
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    std::vector<float> x(kDims, 1.0f), map(4);
    x[2] = bad;
    Buffer<std::byte> memory(static_cast<std::int64_t>(MeanSquaredLatent::scratch_bytes<Flow>(vectors(), {2, 2, 1}, {}, small(), 1)));
    Arena arena(memory.span());
    Context context{arena};
    Features features;
    features.add(TensorView<const float>(x.data(), 1, 1, 1, kDims));
    float score = 0.0f;
    CHECK(MeanSquaredLatent({}).measure(flow, features, MapView<float>(map.data(), 2, 2), score, context).code() == Errc::not_finite);
  }
}

TEST_CASE("VectorFlow: threads change nothing, seeds do") {
  const Flow one = trained(small()), three = trained(small(), 7, 3);
  CHECK(numbers(one) == numbers(three));
  CHECK(one.record().loss == three.record().loss);
  Flow other = fresh(small());
  REQUIRE(train(other, MadeUp(7), 1, {}, 4).ok());
  CHECK(numbers(one) != numbers(other));
}

TEST_CASE("VectorFlow: an interrupted training goes on bit for bit") {
  for (const int mode : {0, 1, 2}) {  // exact; pooled; pooled with held-out images
    CAPTURE(mode);
    Flow::Settings settings = small();
    if (mode > 0) settings.pooled_turns = 3;
    if (mode == 2) settings.training.holdout = 0.3, settings.training.epochs = 9, settings.training.learning_rate = 0.05;
    const Flow whole = trained(settings);
    const test::TemporaryFolder folder;
    const std::string checkpoint = (folder.path() / "run.norma").string();
    int interruptions = 0;
    if (mode == 0) {
      for (const std::int64_t at : {2, 5}) {  // calls of gather: in the middle of an epoch each
        MadeUp images(7);
        images.cancel_at = at;
        Flow part = fresh(settings);
        const Status status = train(part, images, 1, checkpoint);
        CHECK(status.code() == Errc::cancelled);
        ++interruptions;
      }
    } else {  // the pool is complete, then the observer stops the training at its second report of an epoch
      for (const int reports : {1, 2}) {
        std::atomic<bool> cancel{false};
        int seen = 0;
        Observer observer;
        observer.cancel = &cancel;
        observer.on_progress = [&](const ProgressUpdate& update) {
          if (update.stage.starts_with("training") && ++seen == reports) cancel = true;
        };
        Flow part = fresh(settings);
        const Status status = part.train(
            MadeUp(7), TrainingContext{.observer = observer, .seed = 3, .checkpoint = checkpoint, .identity = "test", .checkpoint_seconds = 1e9});
        if (status.code() == Errc::cancelled) ++interruptions;
      }
    }
    CHECK(interruptions >= 1);
    Flow rest = fresh(settings);
    REQUIRE(train(rest, MadeUp(7), 2, checkpoint).ok());
    CHECK(numbers(rest) == numbers(whole));
    CHECK(rest.record().loss == whole.record().loss);
    CHECK(rest.record().held_out == whole.record().held_out);
    CHECK(rest.record().best_epoch == whole.record().best_epoch);
    if (mode == 2) CHECK(whole.record().best_epoch >= 1);
    // Another run's checkpoint is refused.
    Flow other = fresh(settings);
    CHECK(train(other, MadeUp(7), 1, checkpoint, 4).code() == Errc::wrong_type);
  }
}

TEST_CASE("VectorFlow: a cancelled look at the pool ends the training") {
  Flow::Settings settings = small();
  settings.pooled_turns = 4;
  MadeUp images(7);
  images.cancel_at = 3;
  Flow flow = fresh(settings);
  CHECK(train(flow, images).code() == Errc::cancelled);
  CHECK(images.calls == 3);
}

TEST_CASE("VectorFlow: what save writes, load reads") {
  const Flow flow = trained(small());
  const io::Weights file = file_of(flow);
  const auto loaded = Flow::load(file, vectors(), small(), {});
  REQUIRE_MESSAGE(loaded.ok(), loaded.message());
  const io::Weights again = file_of(*loaded);
  REQUIRE(again.tensors().size() == file.tensors().size());
  for (const io::TensorInfo& tensor : file.tensors()) {
    const auto same = again.get(tensor.name);
    REQUIRE_MESSAGE(same.ok(), same.message());
    CHECK(std::equal(tensor.shape.begin(), tensor.shape.end(), same->shape.begin(), same->shape.end()));
    CHECK(std::equal(tensor.bytes.begin(), tensor.bytes.end(), same->bytes.begin(), same->bytes.end()));
  }
  CHECK(loaded->record().loss == flow.record().loss);
  std::vector<float> x(kDims);
  vector_of(1, 30.0f, x.data());
  CHECK(score_of(*loaded, x) == score_of(flow, x));
}

TEST_CASE("VectorFlow: files that lie are refused by file and tensor") {
  const Flow flow = trained(small());
  const io::Weights file = file_of(flow);
  Flow::Settings wider = small();
  wider.flow_width = 1 << 20;  // never allocated: the file has no such tensors
  const auto wide = Flow::load(file, vectors(), wider, {});
  CHECK(wide.code() == Errc::shape_mismatch);
  CHECK(wide.message().find("estimator.0.subnet0.0.weight") != std::string::npos);
  Flow::Settings deeper = small();
  deeper.flow_steps = 4;
  CHECK(Flow::load(file, vectors(), deeper, {}).message().find("estimator.3.") != std::string::npos);
  CHECK_FALSE(Flow::load(file, vectors(1, 8), small(), {}).ok());

  // One tensor after the other replaced by a bad one.
  const auto damaged = [&](const std::string& name, const std::function<void(std::vector<float>&)>& change) {
    io::TensorFileWriter writer;
    for (const io::TensorInfo& tensor : file.tensors()) {
      if (tensor.name == name && !change) continue;
      if (tensor.name == name) {
        std::vector<float> values(tensor.bytes.size() / sizeof(float));
        REQUIRE(file.read(tensor.name, tensor.shape, std::span<float>(values)).ok());
        change(values);
        REQUIRE(writer.add(tensor.name, tensor.shape, std::span<const float>(values)).ok());
      } else {
        REQUIRE(writer.add_view(tensor.name, tensor.dtype, tensor.shape, tensor.bytes).ok());
      }
    }
    auto bytes = writer.to_bytes();
    REQUIRE(bytes.ok());
    const auto bad = io::Weights::from_bytes(*std::move(bytes), "bad.norma");
    REQUIRE(bad.ok());
    return Flow::load(*bad, vectors(), small(), {}).status();
  };
  const Status nan = damaged("estimator.1.subnet1.2.weight", [](auto& values) { values[3] = std::nanf(""); });
  CHECK(nan.code() == Errc::not_finite);
  CHECK(nan.message().find("bad.norma") != std::string::npos);
  CHECK(nan.message().find("estimator.1.subnet1.2.weight") != std::string::npos);
  CHECK(damaged("estimator.0.subnet0.3.bias", {}).code() == Errc::not_found);
  CHECK(damaged("estimator.2.subnet1.0.bias", [](auto& values) { values[0] = std::numeric_limits<float>::infinity(); }).code() == Errc::not_finite);
  io::TensorFileWriter writer;
  for (const io::TensorInfo& tensor : file.tensors()) {
    if (tensor.name == "estimator.0.permutation") {
      const std::vector<std::int64_t> twice{0, 1, 2, 3, 4, 4};
      REQUIRE(writer.add(tensor.name, tensor.shape, std::span<const std::int64_t>(twice)).ok());
    } else {
      REQUIRE(writer.add_view(tensor.name, tensor.dtype, tensor.shape, tensor.bytes).ok());
    }
  }
  auto bytes = writer.to_bytes();
  REQUIRE(bytes.ok());
  CHECK_FALSE(Flow::load(*io::Weights::from_bytes(*std::move(bytes), "bad"), vectors(), small(), {}).ok());
}

TEST_CASE("MeanSquaredLatent: the mean over all turns, whatever their order") {
  const Flow one = trained(small());
  const io::Weights file = file_of(one);
  const auto many = Flow::load(file, vectors(5), small(), {});
  REQUIRE(many.ok());
  std::vector<float> x(5 * kDims);
  double sum = 0.0;
  for (std::int64_t view = 0; view < 5; ++view) {
    vector_of(2, 72.0f * static_cast<float>(view), x.data() + view * kDims);
    const std::vector<float> single(x.begin() + view * kDims, x.begin() + (view + 1) * kDims);
    sum += static_cast<double>(score_of(one, single));
  }
  std::vector<float> map;
  const float score = score_of(*many, x, &map);
  // Latents of a vector do not depend on its neighbours, so only the rounding of six scores to float is left.
  CHECK(std::abs(static_cast<double>(score) - sum / 5.0) <= 1.2e-7 * (sum / 5.0 + static_cast<double>(score)));
  CHECK(map == std::vector<float>(20, score));
  std::vector<float> turned(x.begin() + 2 * kDims, x.end());
  turned.insert(turned.end(), x.begin(), x.begin() + 2 * kDims);
  CHECK(std::abs(score_of(*many, turned) - score) <= 1.2e-7f * score);
}

TEST_CASE("MeanSquaredLatent: the score is the mean of z^2 and has no determinant in it") {
  const Flow flow = trained(small());
  std::vector<float> x(kDims), z(kDims);
  vector_of(3, 11.0f, x.data());
  Buffer<std::byte> memory(static_cast<std::int64_t>(Flow::latent_scratch_bytes(vectors(), small(), 1)));
  Arena arena(memory.span());
  Context context{arena};
  float logdet = 0.0f;
  REQUIRE(flow.latent(0, TensorView<const float>(x.data(), 1, 1, 1, kDims), TensorView<float>(z.data(), 1, 1, 1, kDims), &logdet, context).ok());
  CHECK(logdet != 0.0f);
  double squares = 0.0;
  for (const float value : z) squares += static_cast<double>(value) * static_cast<double>(value);
  CHECK(std::abs(static_cast<double>(score_of(flow, x)) - squares / kDims) <= 6e-8 * squares);
  CHECK(flow.latent(0, TensorView<const float>(x.data(), 1, 1, 2, 3), TensorView<float>(z.data(), 1, 1, 2, 3), nullptr, context).code() ==
        Errc::shape_mismatch);
}
