// estimators/conditional_flow.hpp and metrics/fiber_likelihood.hpp: CFlow-AD without a backbone.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <norma/core/thread_pool.hpp>
#include <norma/estimators/conditional_flow.hpp>
#include <norma/metrics/fiber_likelihood.hpp>
#include <support/count_allocations.hpp>
#include <support/coupling_reference.hpp>
#include <support/shared_fixtures.hpp>

namespace norma::test {
namespace {

constexpr FeatureShapes shapes_of(std::initializer_list<Shape> levels) {
  FeatureShapes shapes;
  for (const Shape& shape : levels) shapes.add(shape);
  return shapes;
}

// 81.6 million in the publication, 8.62 million for ResNet-18.
static_assert(nn::parameter_count(ConditionalFlowSettings{}.block(512)) * 8 == 5523456);
static_assert(nn::parameter_count(ConditionalFlowSettings{}.block(1024)) * 8 == 17074176);
static_assert(nn::parameter_count(ConditionalFlowSettings{}.block(2048)) * 8 == 59049984);
static_assert(ConditionalFlow<>::parameter_count(shapes_of({{32, 32, 512}, {16, 16, 1024}, {8, 8, 2048}})) == 81647616);
static_assert(ConditionalFlow<>::parameter_count(shapes_of({{32, 32, 128}, {16, 16, 256}, {8, 8, 512}})) / 10000 == 862);
static_assert(MetricFor<FiberLikelihood, ConditionalFlow<>>);

/// Made-up features: of image i, position p and channel c a normal number around a mean that the place tells, moved by the view.
class MadeUpImages final : public TrainingImages {
 public:
  MadeUpImages(FeatureShapes shapes, std::int64_t images, std::uint64_t seed = 1) : shapes_(shapes), images_(images), seed_(seed) {}

  [[nodiscard]] std::int64_t size() const noexcept override { return images_; }
  [[nodiscard]] const FeatureShapes& shapes() const noexcept override { return shapes_; }
  Status gather(std::span<const std::int64_t> images, std::span<const View> views, std::span<float* const> out) const override {
    ++calls;
    if (stop != nullptr && calls == stop_after) stop->store(true);
    for (std::size_t n = 0; n < images.size(); ++n) {
      const float degrees = views.empty() ? 0.0f : views[n].degrees;
      seen.push_back({images[n], !views.empty(), degrees});
      for (int l = 0; l < shapes_.count; ++l) {
        const std::int64_t count = shapes_[l].count();
        Random random(seed_, static_cast<std::uint64_t>(images[n] * kMaxLevels + l));
        for (std::int64_t i = 0; i < count; ++i)
          out[static_cast<std::size_t>(l)][static_cast<std::int64_t>(n) * count + i] = value(l, i, random) + 0.01f * degrees;
      }
    }
    return {};
  }
  /// One image as it is.
  [[nodiscard]] std::vector<std::vector<float>> features(std::int64_t image) const {
    std::vector<std::vector<float>> levels;
    std::vector<float*> to;
    for (int l = 0; l < shapes_.count; ++l) levels.emplace_back(static_cast<std::size_t>(shapes_[l].count()));
    for (auto& level : levels) to.push_back(level.data());
    const std::int64_t images[] = {image};
    REQUIRE(gather(images, {}, to).ok());
    return levels;
  }

  struct Seen {
    std::int64_t image;
    bool viewed;
    float degrees;
    friend bool operator==(const Seen&, const Seen&) = default;
  };
  mutable std::vector<Seen> seen;
  mutable int calls = 0;
  int stop_after = 0;
  std::atomic<bool>* stop = nullptr;

 private:
  [[nodiscard]] float value(int l, std::int64_t i, Random& random) const {
    const std::int64_t channels = shapes_[l].channels, position = i / channels, c = i % channels;
    const double mean = std::sin(static_cast<double>(3 * position + c));
    return static_cast<float>(mean + 0.3 * random.normal());
  }
  FeatureShapes shapes_;
  std::int64_t images_;
  std::uint64_t seed_;
};

constexpr FeatureShapes kSmall = shapes_of({{4, 3, 6}, {2, 2, 9}});

ConditionalFlowSettings small_settings() {
  ConditionalFlowSettings s;
  s.training.epochs = 3;
  s.training.batch = 4;
  s.training.learning_rate = 1e-3;
  s.flow_steps = 2;
  s.fibers = 16;
  return s;
}

ConditionalFlow<> made(const FeatureShapes& shapes, const ConditionalFlowSettings& settings) {
  auto flow = ConditionalFlow<>::create(shapes, settings);
  REQUIRE_MESSAGE(flow.ok(), flow.message());
  return *std::move(flow);
}
ConditionalFlow<> trained(const MadeUpImages& images, const ConditionalFlowSettings& settings, Parallel parallel = {}) {
  ConditionalFlow<> flow = made(images.shapes(), settings);
  const Observer observer;
  const Status status = flow.train(images, {parallel, observer, 7});
  REQUIRE_MESSAGE(status.ok(), status.message());
  return flow;
}

std::vector<double> likelihoods(const ConditionalFlow<>& flow, int level, const std::vector<float>& features) {
  const Shape shape = flow.shapes()[level];
  std::vector<double> out(static_cast<std::size_t>(shape.positions()));
  Buffer<std::byte> memory(static_cast<std::int64_t>(ConditionalFlow<>::scratch_bytes(flow.shapes(), small_settings(), 1)));
  Arena arena(memory.span());
  Context context{arena};
  const Status status = flow.log_likelihood(level, {features.data(), shape.positions(), shape.channels}, out, context);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return out;
}

std::vector<std::byte> saved(const ConditionalFlow<>& flow) {
  io::TensorFileWriter writer;
  REQUIRE(flow.save(writer).ok());
  auto bytes = writer.to_bytes();
  REQUIRE_MESSAGE(bytes.ok(), bytes.message());
  return *std::move(bytes);
}
io::Weights file_of(const ConditionalFlow<>& flow) {
  auto file = io::Weights::from_bytes(saved(flow));
  REQUIRE_MESSAGE(file.ok(), file.message());
  return *std::move(file);
}

TEST_CASE("ConditionalFlow: the learning rate of the publication at the beginning of its parts 0, 1, 2 and 24") {
  const ConditionalFlowSettings settings;  // 200 epochs, 8 a part
  const auto rate = [&](std::int64_t epoch, std::int64_t batch = 0) {
    nn::TrainingBatch at;
    at.epoch = epoch;
    at.batch = batch;
    at.batches = 6;
    return settings.rate(at);
  };
  const double least = 2e-7;
  const auto cosine = [&](double part) { return least + (2e-4 - least) * 0.5 * (1.0 + std::cos(std::numbers::pi * part / 25.0)); };
  const auto near = [](double got, double want) { return std::abs(got - want) <= 1e-12 * want; };
  CHECK(near(rate(0), 2e-5));
  CHECK(near(rate(8), 0.5 * (2e-5 + cosine(2.0))));
  CHECK(near(rate(4, 3), 2e-5 + (cosine(2.0) - 2e-5) * 4.5 / 16.0));  // batch by batch while warming up
  CHECK(near(rate(16), cosine(2.0)));
  CHECK(std::abs(rate(16) - 1.968615e-4) <= 1e-10);
  CHECK(rate(23, 5) == rate(16));  // constant within a part
  CHECK(near(rate(192), cosine(24.0)));
  CHECK(near(rate(199, 5), cosine(24.0)));
  CHECK(std::abs(rate(192) - 9.8776e-7) <= 1e-10);
  // Shorter trainings go through the same parts.
  ConditionalFlowSettings few;
  few.training.epochs = 10;
  nn::TrainingBatch middle;
  middle.epoch = 5;
  middle.batches = 1;
  CHECK(near(few.rate(middle), cosine(12.0)));
  middle.epoch = 0;
  CHECK(near(few.rate(middle), 2e-5));
}

TEST_CASE("ConditionalFlow: the likelihood's formula, the loss and its gradients") {
  // A standard normal vector through the identity: the mean over dimensions of log N(z; 0, 1).
  const std::vector<float> z{0.5f, -1.5f, 2.0f};
  double density = 0.0;
  for (const float v : z) density += std::log(std::exp(-0.5 * v * v) / std::sqrt(2.0 * std::numbers::pi)) / 3.0;
  CHECK(std::abs(ConditionalFlow<>::log_likelihood_of(0.25 + 2.25 + 4.0, 0.0, 3) - density) <= 1e-14);
  CHECK(std::abs(ConditionalFlow<>::log_likelihood_of(6.5, 1.2, 3) - density - 0.4) <= 1e-14);

  const auto loss = [&](const std::vector<double>& x, double logdet) {
    double squares = 0.0;
    for (const double v : x) squares += v * v;
    const double l = ConditionalFlow<>::log_likelihood_of(squares, logdet, static_cast<std::int64_t>(x.size()));
    return -std::log(1.0 / (1.0 + std::exp(-l)));
  };
  for (const double logdet : {-4.0, 0.0, 3.0, 20.0}) {
    std::vector<float> dz(3);
    float dlogdet = 0.0f;
    const double value = ConditionalFlow<>::fiber_loss(z, static_cast<float>(logdet), 0.25, dz, dlogdet);
    CHECK(std::abs(value - loss({0.5, -1.5, 2.0}, logdet)) <= 1e-12);
    constexpr double h = 1e-5;  // central differences: h^2 times a third derivative below 1, and rounding 1e-16 / h
    for (std::size_t c = 0; c < 3; ++c) {
      std::vector<double> up{0.5, -1.5, 2.0}, down = up;
      up[c] += h;
      down[c] -= h;
      const double want = 0.25 * (loss(up, logdet) - loss(down, logdet)) / (2.0 * h);
      CHECK(std::abs(static_cast<double>(dz[c]) - want) <= 1e-9 + 1e-7 * std::abs(want));
    }
    const double want = 0.25 * (loss({0.5, -1.5, 2.0}, logdet + h) - loss({0.5, -1.5, 2.0}, logdet - h)) / (2.0 * h);
    CHECK(std::abs(static_cast<double>(dlogdet) - want) <= 1e-9 + 1e-7 * std::abs(want));
  }
  // Stable far outside: -log sigmoid(l) = -l for very unlikely vectors, 0 for very likely ones.
  std::vector<float> far(3, 4e3f), dz(3);
  float dlogdet = 0.0f;
  const double value = ConditionalFlow<>::fiber_loss(far, 0.0f, 1.0, dz, dlogdet);
  CHECK(std::abs(value - (8e6 + 0.5 * std::log(2.0 * std::numbers::pi))) <= 1e-8);
  CHECK(std::abs(dlogdet + 1.0f / 3.0f) <= 1e-7f);
  CHECK(ConditionalFlow<>::fiber_loss(z, 1e6f, 1.0, dz, dlogdet) <= 1e-300);
  CHECK(dlogdet == 0.0f);
}

/// A level's blocks in double, from the tensors of a model file.
std::vector<ReferenceBlock> reference_blocks(const io::Weights& file, int level, const ConditionalFlowSettings& settings, std::int64_t channels) {
  std::vector<ReferenceBlock> blocks;
  for (std::int64_t b = 0; b < settings.flow_steps; ++b) {
    const std::string prefix = "estimator.level" + std::to_string(level) + "." + std::to_string(b) + ".";
    const auto doubles = [&](const std::string& name, std::vector<std::int64_t> shape) {
      std::int64_t count = 1;
      for (const std::int64_t n : shape) count *= n;
      std::vector<float> values(static_cast<std::size_t>(count));
      const Status status = file.read(prefix + name, shape, values);
      REQUIRE_MESSAGE(status.ok(), status.message());
      return Doubles(values.begin(), values.end());
    };
    ReferenceBlock block{settings.block(channels), {}, {}, {}, {}, {}};
    const nn::SubnetShape subnet = block.shape.subnet(0);
    for (int l = 0; l < subnet.count; ++l) {
      const auto& layer = subnet.layers[l];
      block.subnets[0].push_back({layer, doubles("subnet0." + std::to_string(l) + ".weight", {layer.out, layer.in}),
                                  doubles("subnet0." + std::to_string(l) + ".bias", {layer.out})});
    }
    block.global_scale = doubles("scale", {channels});
    block.global_offset = doubles("offset", {channels});
    if (block.shape.mixing == nn::ChannelMixing::rotation) {
      block.rotation = doubles("rotation", {channels, channels});
    } else {
      block.permutation.resize(static_cast<std::size_t>(channels));
      REQUIRE(file.read_raw(prefix + "permutation", io::DType::i64, {channels}, std::as_writable_bytes(std::span(block.permutation))).ok());
    }
    blocks.push_back(std::move(block));
  }
  return blocks;
}

TEST_CASE("ConditionalFlow: likelihoods are those of the blocks in double, from the model file's tensors") {
  for (const FiberMixing mixing : {FiberMixing::rotation, FiberMixing::permutation}) {
    ConditionalFlowSettings settings = small_settings();
    settings.flow_mixing = mixing;
    const MadeUpImages images(kSmall, 6);
    const ConditionalFlow<> flow = trained(images, settings);
    const io::Weights file = file_of(flow);
    const auto features = images.features(2);
    for (int level = 0; level < kSmall.count; ++level) {
      const Shape shape = kSmall[level];
      const Positions at{shape.positions(), 1, 1};
      std::vector<float> codes(static_cast<std::size_t>(features::position_code_count(shape.height, shape.width)));
      features::position_code(shape.height, shape.width, codes);
      const auto& level_features = features[static_cast<std::size_t>(level)];
      Doubles x(level_features.begin(), level_features.end()), logdet(index_of(shape.positions()));
      const Doubles condition(codes.begin(), codes.end());
      for (const ReferenceBlock& block : reference_blocks(file, level, settings, shape.channels))
        x = reference_forward(block, at, x, condition, logdet);
      const auto got = likelihoods(flow, level, level_features);
      for (std::int64_t p = 0; p < shape.positions(); ++p) {
        double want = -0.5 * std::log(2.0 * std::numbers::pi) * static_cast<double>(shape.channels) + logdet[index_of(p)];
        for (std::int64_t c = 0; c < shape.channels; ++c) want -= 0.5 * x[index_of(p * shape.channels + c)] * x[index_of(p * shape.channels + c)];
        want /= static_cast<double>(shape.channels);
        CAPTURE(level);
        CAPTURE(p);
        // z below 10 with an error of some 1e-6 (two blocks of sums of 262 products), so z^2 / 2 of some 1e-5 a channel.
        CHECK(std::abs(got[index_of(p)] - want) <= 2e-5);
      }
    }
  }
}

TEST_CASE("ConditionalFlow: a fiber's likelihood does not depend on how many go through the flow together, bit for bit") {
  const MadeUpImages images(kSmall, 5);
  const ConditionalFlow<> flow = trained(images, small_settings());
  const auto features = images.features(0);
  const Shape shape = kSmall[0];
  std::vector<float> codes(static_cast<std::size_t>(features::position_code_count(shape.height, shape.width)));
  features::position_code(shape.height, shape.width, codes);
  const auto whole = likelihoods(flow, 0, features[0]);
  const nn::Flow& runs = flow.model(0).flow();
  for (const std::int64_t batch : {1, 5}) {
    Buffer<std::byte> memory(static_cast<std::int64_t>(runs.scratch_bytes(nn::FlowPass::forward, batch, 1)));
    for (std::int64_t first = 0; first < shape.positions(); first += batch) {
      const std::int64_t count = std::min(batch, shape.positions() - first);
      std::vector<float> z(static_cast<std::size_t>(count * shape.channels)), logdet(static_cast<std::size_t>(count));
      Arena arena(memory.span());
      REQUIRE(runs.forward({features[0].data() + first * shape.channels, count, 1, 1, shape.channels}, {codes.data() + first * 128, count, 1, 1, 128},
                           {z.data(), count, 1, 1, shape.channels}, logdet, {}, {}, arena)
                  .ok());
      for (std::int64_t i = 0; i < count; ++i) {
        double squares = 0.0;
        for (std::int64_t c = 0; c < shape.channels; ++c)
          squares += static_cast<double>(z[index_of(i * shape.channels + c)]) * static_cast<double>(z[index_of(i * shape.channels + c)]);
        CHECK(whole[index_of(first + i)] == ConditionalFlow<>::log_likelihood_of(squares, static_cast<double>(logdet[index_of(i)]), shape.channels));
      }
    }
  }
}

TEST_CASE("ConditionalFlow: the same model for any number of threads, another one for another seed; the loss falls") {
  ConditionalFlowSettings settings = small_settings();
  settings.training.epochs = 20;
  const MadeUpImages images(kSmall, 9);
  const ConditionalFlow<> one = trained(images, settings);
  ThreadPool pool(3);
  CHECK(saved(one) == saved(trained(images, settings, pool.parallel())));
  const auto& loss = one.record().loss;
  REQUIRE(loss.size() == 20);
  CHECK(loss.back() < loss.front() - 0.1f);
  CHECK(one.record().best_epoch == -1);
  ConditionalFlow<> other = made(kSmall, settings);
  const Observer observer;
  REQUIRE(other.train(images, {{}, observer, 8}).ok());
  CHECK(saved(one) != saved(other));
}

TEST_CASE("ConditionalFlow: batches drop what is left over, fewer images than a batch make one, and images are turned anew") {
  ConditionalFlowSettings settings = small_settings();
  settings.training.epochs = 2;
  MadeUpImages nine(kSmall, 9);
  (void)trained(nine, settings);
  REQUIRE(nine.seen.size() == 2 * 8 + 9);  // two batches of 4 an epoch, then all images for the maxima
  std::vector<float> degrees;
  for (std::size_t i = 0; i < nine.seen.size(); ++i) {
    CHECK(nine.seen[i].viewed == (i < 16));
    if (i < 16) {
      degrees.push_back(nine.seen[i].degrees);
      CHECK(std::abs(nine.seen[i].degrees) <= 5.0f);
    }
  }
  std::sort(degrees.begin(), degrees.end());
  CHECK(std::adjacent_find(degrees.begin(), degrees.end()) == degrees.end());  // every image in every epoch by another angle
  CHECK(degrees.front() < -1.0f);
  CHECK(degrees.back() > 1.0f);
  MadeUpImages again(kSmall, 9);
  (void)trained(again, settings);
  CHECK(nine.seen == again.seen);

  MadeUpImages three(kSmall, 3);
  CHECK(trained(three, settings).record().loss.size() == 2);
  CHECK(three.seen.size() == 2 * 3 + 3);

  CHECK(ConditionalFlow<>::wants_views(settings));
  settings.turn = 0.0;
  CHECK_FALSE(ConditionalFlow<>::wants_views(settings));
  MadeUpImages still(kSmall, 4);
  (void)trained(still, settings);
  for (const auto& one : still.seen) CHECK_FALSE(one.viewed);
}

TEST_CASE("ConditionalFlow: held-out images choose the epoch, and are not trained on") {
  ConditionalFlowSettings settings = small_settings();
  settings.training.epochs = 6;
  settings.training.holdout = 0.25;
  settings.training.learning_rate = 0.02;
  const MadeUpImages images(kSmall, 8);
  const ConditionalFlow<> flow = trained(images, settings);
  const TrainingRecord& record = flow.record();
  REQUIRE(record.held_out.size() == 6);
  const auto best = std::min_element(record.held_out.begin(), record.held_out.end()) - record.held_out.begin();
  CHECK(record.best_epoch == best + 1);
  // The weights that were kept give the loss that was recorded: mean over levels of the mean over positions.
  std::vector<bool> seen(8, false);
  for (const auto& one : images.seen) {
    if (one.viewed) seen[static_cast<std::size_t>(one.image)] = true;
  }
  double loss = 0.0;
  int held_out = 0;
  for (std::int64_t i = 0; i < 8; ++i) {
    if (seen[static_cast<std::size_t>(i)]) continue;
    ++held_out;
    const auto features = images.features(i);
    for (int l = 0; l < 2; ++l) {
      double sum = 0.0;
      for (const double value : likelihoods(flow, l, features[static_cast<std::size_t>(l)])) sum += std::log1p(std::exp(-value));
      loss += sum / static_cast<double>(kSmall[l].positions());
    }
  }
  REQUIRE(held_out == 2);
  CHECK(std::abs(loss / 4.0 - static_cast<double>(record.held_out[static_cast<std::size_t>(best)])) <= 1e-6);
}

TEST_CASE("ConditionalFlow: the maxima are those over all training images") {
  const MadeUpImages images(kSmall, 7);
  const ConditionalFlow<> flow = trained(images, small_settings());
  double best[2] = {-1e9, -1e9};
  for (std::int64_t i = 0; i < 7; ++i) {
    const auto features = images.features(i);
    for (int l = 0; l < 2; ++l) {
      for (const double value : likelihoods(flow, l, features[static_cast<std::size_t>(l)])) best[l] = std::max(best[l], value);
    }
  }
  REQUIRE(flow.maxima().size() == 2);
  for (std::size_t l = 0; l < 2; ++l) CHECK(flow.maxima()[l] == static_cast<float>(best[l]));
}

TEST_CASE("ConditionalFlow: a training that was interrupted twice ends in the same model, bit for bit") {
  ConditionalFlowSettings settings = small_settings();
  settings.training.epochs = 5;
  settings.training.holdout = 0.1;
  const MadeUpImages images(kSmall, 11);
  const auto whole = saved(trained(images, settings));
  const TemporaryFolder folder;
  const std::string checkpoint = (folder.path() / "run").string();
  std::atomic<bool> stop = false;
  Observer observer;
  observer.cancel = &stop;
  ConditionalFlow<> flow = made(kSmall, settings);
  for (const int after : {3, 4}) {  // in the middle of epochs
    MadeUpImages part(kSmall, 11);
    part.stop = &stop;
    part.stop_after = after;
    const Status status = flow.train(part, {{}, observer, 7, checkpoint, "a test"});
    CHECK(status.code() == Errc::cancelled);
    CHECK(flow.maxima().empty());  // as it was
    stop = false;
  }
  const Status other = flow.train(images, {{}, observer, 8, checkpoint, "a test"});
  CHECK(other.code() == Errc::wrong_type);
  const Status status = flow.train(images, {{}, observer, 7, checkpoint, "a test"});
  REQUIRE_MESSAGE(status.ok(), status.message());
  CHECK(saved(flow) == whole);
  CHECK(flow.record().loss.size() == 5);
}

TEST_CASE("ConditionalFlow: saved and loaded it gives the same bits") {
  for (const FiberMixing mixing : {FiberMixing::rotation, FiberMixing::permutation}) {
    ConditionalFlowSettings settings = small_settings();
    settings.flow_mixing = mixing;
    const MadeUpImages images(kSmall, 4);
    const ConditionalFlow<> flow = trained(images, settings);
    const auto loaded = ConditionalFlow<>::load(file_of(flow), kSmall, settings, {});
    REQUIRE_MESSAGE(loaded.ok(), loaded.message());
    const auto features = images.features(1);
    for (int l = 0; l < 2; ++l) {
      CHECK(likelihoods(flow, l, features[static_cast<std::size_t>(l)]) == likelihoods(*loaded, l, features[static_cast<std::size_t>(l)]));
      CHECK(flow.maxima()[static_cast<std::size_t>(l)] == loaded->maxima()[static_cast<std::size_t>(l)]);
    }
    CHECK(loaded->record().loss == flow.record().loss);
    CHECK(saved(flow) == saved(*loaded));
  }
}

/// The file with one tensor left out or replaced.
io::Weights altered(const io::Weights& file, std::string_view tensor,
                    const std::function<void(std::vector<std::int64_t>&, std::vector<std::byte>&)>& change) {
  io::TensorFileWriter writer;
  for (const io::TensorInfo& info : file.tensors()) {
    std::vector<std::byte> bytes(info.bytes.begin(), info.bytes.end());
    std::vector<std::int64_t> shape(info.shape.begin(), info.shape.end());
    if (info.name == tensor) {
      if (!change) continue;
      change(shape, bytes);
    }
    REQUIRE(writer.add(info.name, info.dtype, shape, bytes).ok());
  }
  auto bytes = writer.to_bytes();
  REQUIRE(bytes.ok());
  auto changed = io::Weights::from_bytes(*std::move(bytes));
  REQUIRE(changed.ok());
  return *std::move(changed);
}

TEST_CASE("ConditionalFlow: files with missing, misshapen or impossible tensors are refused by name") {
  const MadeUpImages images(kSmall, 4);
  const ConditionalFlowSettings settings = small_settings();
  const io::Weights file = file_of(trained(images, settings));
  const auto refused = [&](const io::Weights& bad, std::string_view tensor, Errc code, const ConditionalFlowSettings& with) {
    const auto loaded = ConditionalFlow<>::load(bad, kSmall, with, {});
    REQUIRE_FALSE(loaded.ok());
    CHECK(loaded.code() == code);
    CAPTURE(loaded.message());
    CHECK(loaded.message().find(tensor) != std::string::npos);
  };
  const auto not_a_number = [](std::vector<std::int64_t>&, std::vector<std::byte>& bytes) {
    const float bad = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(bytes.data(), &bad, sizeof bad);
  };
  const auto flattened = [](std::vector<std::int64_t>& shape, std::vector<std::byte>&) {
    std::int64_t count = 1;
    for (const std::int64_t n : shape) count *= n;
    shape = {count, 1};
  };
  for (const char* tensor : {"estimator.maxima", "estimator.level0.0.rotation", "estimator.level1.1.subnet0.1.weight", "estimator.level1.0.scale"}) {
    CAPTURE(tensor);
    refused(altered(file, tensor, {}), tensor, Errc::not_found, settings);
    refused(altered(file, tensor, not_a_number), tensor, Errc::not_finite, settings);
    refused(altered(file, tensor, flattened), tensor, Errc::shape_mismatch, settings);
  }
  ConditionalFlowSettings other = settings;
  other.flow_steps = 3;
  refused(file, "estimator.level0.2.", Errc::not_found, other);
  other = settings;
  other.flow_mixing = FiberMixing::permutation;
  refused(file, "estimator.level0.0.permutation", Errc::not_found, other);
  const auto stretched = [](std::vector<std::int64_t>&, std::vector<std::byte>& bytes) {
    const float bad = 3.0f;
    std::memcpy(bytes.data(), &bad, sizeof bad);
  };
  refused(altered(file, "estimator.level0.0.rotation", stretched), "estimator.level0.0.rotation", Errc::corrupt, settings);
  // Shapes that only a hostile file asks for: found out before memory is asked for.
  CHECK(ConditionalFlow<>::load(file, shapes_of({{8192, 8192, 8}, {2, 2, 9}}), settings, {}).code() == Errc::shape_mismatch);
  const auto huge = ConditionalFlow<>::load(file, shapes_of({{4, 3, 1 << 18}, {2, 2, 9}}), settings, {});
  CHECK(huge.code() == Errc::shape_mismatch);
}

TEST_CASE("ConditionalFlow: settings and calls that cannot be") {
  const auto refused = [](auto change, std::string_view word) {
    ConditionalFlowSettings s = small_settings();
    change(s);
    const auto flow = ConditionalFlow<>::create(kSmall, s);
    REQUIRE_FALSE(flow.ok());
    CHECK(flow.code() == Errc::invalid_argument);
    CHECK(flow.message().find(word) != std::string::npos);
  };
  refused([](auto& s) { s.flow_steps = 0; }, "flow_steps");
  refused([](auto& s) { s.flow_steps = 65; }, "flow_steps");
  refused([](auto& s) { s.fibers = 0; }, "fibers");
  refused([](auto& s) { s.turn = -1.0; }, "turn");
  refused([](auto& s) { s.turn = std::nan(""); }, "turn");
  refused([](auto& s) { s.training.epochs = 0; }, "epochs");
  CHECK(ConditionalFlow<>::create({}, small_settings()).code() == Errc::shape_mismatch);
  CHECK(ConditionalFlow<>::create(shapes_of({{4, 4, 1}}), small_settings()).code() == Errc::invalid_argument);

  ConditionalFlow<> flow = made(kSmall, small_settings());
  std::vector<float> features(4 * 3 * 6);
  std::vector<double> out(12);
  Buffer<std::byte> memory(1 << 20);
  Arena arena(memory.span());
  Context context{arena};
  CHECK(flow.log_likelihood(0, {features.data(), 12, 6}, out, context).code() == Errc::not_fitted);
  const Observer observer;
  const MadeUpImages elsewhere(shapes_of({{4, 3, 6}, {2, 2, 8}}), 4);
  CHECK(flow.train(elsewhere, {{}, observer, 7}).code() == Errc::shape_mismatch);
  const MadeUpImages none(kSmall, 0);
  CHECK(flow.train(none, {{}, observer, 7}).code() == Errc::not_enough_data);
  flow = trained(MadeUpImages(kSmall, 4), small_settings());
  CHECK(flow.log_likelihood(1, {features.data(), 12, 6}, out, context).code() == Errc::shape_mismatch);
  CHECK(flow.log_likelihood(2, {features.data(), 12, 6}, out, context).code() == Errc::shape_mismatch);
  features[40] = std::numeric_limits<float>::quiet_NaN();
  const Status bad = flow.log_likelihood(0, {features.data(), 12, 6}, out, context);
  CHECK(bad.code() == Errc::not_finite);
  CHECK(bad.message().find("position 6") != std::string::npos);
}

TEST_CASE("ConditionalFlow: as text its settings are read back") {
  ConditionalFlowSettings s;
  REQUIRE(set_field(s, "flow_mixing", "permutation").ok());
  CHECK(s.flow_mixing == FiberMixing::permutation);
  CHECK(field_text(s.flow_mixing) == "permutation");
  CHECK(set_field(s, "flow_mixing", "both").code() == Errc::invalid_argument);
  REQUIRE(set_field(s, "epochs", "12").ok());
  CHECK(s.training.epochs == 12);
}

TEST_CASE("ConditionalFlow F6: a density that knows its place beats the best Gaussian that does not") {
  // Two dimensions, four places: at each a ring segment elsewhere. The Gaussian over all of them is fitted exactly.
  constexpr FeatureShapes grid = shapes_of({{2, 2, 2}});
  class Rings final : public TrainingImages {
   public:
    explicit Rings(FeatureShapes shapes, std::uint64_t seed) : shapes_(shapes), seed_(seed) {}
    [[nodiscard]] std::int64_t size() const noexcept override { return 256; }
    [[nodiscard]] const FeatureShapes& shapes() const noexcept override { return shapes_; }
    Status gather(std::span<const std::int64_t> images, std::span<const View>, std::span<float* const> out) const override {
      for (std::size_t n = 0; n < images.size(); ++n) {
        Random random(seed_, static_cast<std::uint64_t>(images[n]));
        for (std::size_t p = 0; p < 4; ++p) {
          const double angle = 0.5 * std::numbers::pi * (static_cast<double>(p) + random.uniform()), radius = 2.0 + 0.1 * random.normal();
          out[0][n * 8 + 2 * p] = static_cast<float>(radius * std::cos(angle));
          out[0][n * 8 + 2 * p + 1] = static_cast<float>(radius * std::sin(angle));
        }
      }
      return {};
    }

   private:
    FeatureShapes shapes_;
    std::uint64_t seed_;
  };
  ConditionalFlowSettings settings;
  settings.training.epochs = 25;
  settings.flow_steps = 4;
  settings.training.batch = 64;
  settings.training.learning_rate = 5e-3;
  settings.fibers = 64;
  settings.turn = 0.0;
  ConditionalFlow<> flow = made(grid, settings);
  const Observer observer;
  const Status status = flow.train(Rings(grid, 1), {{}, observer, 3});
  REQUIRE_MESSAGE(status.ok(), status.message());

  const Rings unseen(grid, 2);
  Buffer<std::byte> memory(static_cast<std::int64_t>(ConditionalFlow<>::scratch_bytes(grid, settings, 1)));
  double here = 0.0, elsewhere = 0.0, squares = 0.0;
  std::vector<float> features(8), moved(8);
  std::vector<double> out(4);
  for (std::int64_t i = 0; i < 256; ++i) {
    const std::int64_t images[] = {i};
    float* to[] = {features.data()};
    REQUIRE(unseen.gather(images, {}, to).ok());
    for (const float v : features) squares += static_cast<double>(v) * static_cast<double>(v) / (256.0 * 8.0);
    Arena arena(memory.span());
    Context context{arena};
    REQUIRE(flow.log_likelihood(0, {features.data(), 4, 2}, out, context).ok());
    for (const double l : out) here += l / 1024.0;
    std::rotate_copy(features.begin(), features.begin() + 2, features.end(), moved.begin());
    REQUIRE(flow.log_likelihood(0, {moved.data(), 4, 2}, out, context).ok());
    for (const double l : out) elsewhere += l / 1024.0;
  }
  // The best Gaussian has mean 0 and the data's variance in both dimensions: entropy (1 + log(2 pi variance)) / 2 a dimension. The density itself:
  // -log(pi) along its quarter and a normal of deviation 0.1 across, (0.88 - 1.14) / 2 = -0.13 a dimension.
  const double gaussian = -0.5 * (1.0 + std::log(2.0 * std::numbers::pi * squares));
  MESSAGE("log-likelihood a dimension: flow " << here << ", at the wrong places " << elsewhere << ", Gaussian " << gaussian);
  CHECK(here > gaussian + 0.5);
  CHECK(elsewhere < here - 1.0);
  CHECK(here < -0.08);  // no density is better than the data's own; 5 deviations of a mean of 1024
}

// ---- the metric
// ------------------------------------------------------------------------------------------------------------------------------------

/// Says the likelihoods that it was given.
struct SaidLikelihoods {
  struct Settings {};
  static constexpr std::size_t scratch_bytes(const FeatureShapes&, const Settings&, int) noexcept { return 0; }
  std::vector<std::vector<double>> values;
  std::vector<float> best;
  Status log_likelihood(int level, MatrixView<const float>, std::span<double> out, Context&) const {
    std::copy(values[static_cast<std::size_t>(level)].begin(), values[static_cast<std::size_t>(level)].end(), out.begin());
    return {};
  }
  [[nodiscard]] std::span<const float> maxima() const { return best; }
};

struct Measured {
  Map<float> map;
  float score = 0.0f;
};
Measured measure(const SaidLikelihoods& said, const FeatureShapes& shapes, std::int64_t height, std::int64_t width) {
  Measured result{Map<float>(height, width), 0.0f};
  Features features;
  for (int l = 0; l < shapes.count; ++l) features.add({nullptr, 1, shapes[l]});
  Buffer<std::byte> memory(static_cast<std::int64_t>(FiberLikelihood::scratch_bytes<SaidLikelihoods>(shapes, {height, width, 1}, {}, {}, 1)));
  Arena arena(memory.span());
  Context context{arena};
  const FiberLikelihood metric{FiberLikelihood::Settings{}};
  const Status status = metric.measure(said, features, result.map.view(), result.score, context);
  REQUIRE_MESSAGE(status.ok(), status.message());
  CHECK(arena.used() == 0);
  return result;
}

TEST_CASE("FiberLikelihood: -log of the mean over levels of exp(l - maximum), corners on corners") {
  constexpr FeatureShapes shapes = shapes_of({{3, 4, 2}, {2, 2, 2}, {1, 1, 2}});
  SaidLikelihoods said{{}, {0.5f, -1.0f, 2.0f}};
  Random random(3);
  for (int l = 0; l < 3; ++l) {
    said.values.emplace_back();
    for (std::int64_t p = 0; p < shapes[l].positions(); ++p)
      said.values.back().push_back(static_cast<double>(said.best[static_cast<std::size_t>(l)]) - 4.0 * random.uniform() + 0.5);
  }
  const std::int64_t height = 13, width = 17;
  const Measured got = measure(said, shapes, height, width);
  double highest = -1e9;
  for (std::int64_t y = 0; y < height; ++y) {
    for (std::int64_t x = 0; x < width; ++x) {
      double sum = 0.0;
      for (int l = 0; l < 3; ++l) {
        const Shape s = shapes[l];
        const double py = static_cast<double>(y * (s.height - 1)) / static_cast<double>(height - 1),
                     px = static_cast<double>(x * (s.width - 1)) / static_cast<double>(width - 1);
        for (std::int64_t r = 0; r < s.height; ++r) {
          for (std::int64_t c = 0; c < s.width; ++c) {
            const double weight =
                std::max(0.0, 1.0 - std::abs(py - static_cast<double>(r))) * std::max(0.0, 1.0 - std::abs(px - static_cast<double>(c)));
            sum += weight * std::exp(said.values[static_cast<std::size_t>(l)][static_cast<std::size_t>(r * s.width + c)] -
                                     static_cast<double>(said.best[static_cast<std::size_t>(l)]));
          }
        }
      }
      const double want = -std::log(sum / 3.0);
      highest = std::max(highest, want);
      CHECK(std::abs(static_cast<double>(got.map(y, x)) - want) <= 1e-6);  // one rounding of numbers below 4
    }
  }
  CHECK(std::abs(static_cast<double>(got.score) - highest) <= 1e-6);
}

TEST_CASE("FiberLikelihood: normal is about 0, likelier than all of the training below; what is very unlikely does not tie") {
  constexpr FeatureShapes shapes = shapes_of({{2, 2, 2}, {2, 2, 2}});
  const auto uniform = [](double below) { return std::vector<double>(4, below); };
  const auto score = [&](double first, double second) {
    return measure({{uniform(1.0 + first), uniform(-2.0 + second)}, {1.0f, -2.0f}}, shapes, 5, 5).score;
  };
  CHECK(score(0.0, 0.0) == 0.0f);
  CHECK(score(0.25, 0.25) == -0.25f);
  CHECK(std::abs(score(-20.0, -20.0) - 20.0f) <= 1e-5f);
  CHECK(std::abs(score(-20.0, -3.0) - (3.0f + std::log(2.0f))) <= 1e-5f);
  // Beyond what a float (88), then a double (745) can hold as a probability.
  float before = 0.0f;
  for (const double below : {50.0, 87.0, 88.0, 120.0, 640.0, 650.0, 744.0, 746.0, 1000.0, 1001.0, 5e6}) {
    const float now = score(-below, -below);
    CHECK(std::abs(static_cast<double>(now) - below) <= 1e-6 * below);
    CHECK(now > before);
    before = now;
  }
  // One unlikely corner: a monotone slope, no NaN, no step where the way of computing changes.
  const Measured slope = measure({{{1.0, 1.0 - 3000.0, 1.0 - 3000.0, 1.0 - 3000.0}, uniform(-2.0 - 3000.0)}, {1.0f, -2.0f}}, shapes, 1, 4001);
  for (std::int64_t x = 1; x < 4001; ++x) {
    CHECK(slope.map(0, x) >= slope.map(0, x - 1));
    if (x < 4000) CHECK(std::abs(slope.map(0, x) + std::log(0.5f * (1.0f - static_cast<float>(x) / 4000.0f))) <= 1e-3f);
  }
  CHECK(std::abs(slope.map(0, 4000) - 3000.0f) <= 1.0f);
}

TEST_CASE("ConditionalFlow and FiberLikelihood: looking at an image allocates nothing") {
  const MadeUpImages images(kSmall, 4);
  const ConditionalFlow<> flow = trained(images, small_settings());
  const auto values = images.features(0);
  Features features;
  for (int l = 0; l < 2; ++l) features.add({values[static_cast<std::size_t>(l)].data(), 1, kSmall[l]});
  Map<float> map(16, 12);
  Buffer<std::byte> memory(
      static_cast<std::int64_t>(FiberLikelihood::scratch_bytes<ConditionalFlow<>>(kSmall, {16, 12, 1}, {}, small_settings(), 1)));
  Arena arena(memory.span());
  Context context{arena};
  const FiberLikelihood metric{FiberLikelihood::Settings{}};
  float score = 0.0f;
  const auto before = allocation_count();
  const Status status = metric.measure(flow, features, map.view(), score, context);
  const auto after = allocation_count();
  REQUIRE_MESSAGE(status.ok(), status.message());
  CHECK(after == before);
  CHECK(std::isfinite(score));
}

}  // namespace
}  // namespace norma::test
