// CS-Flow's estimator and metric on made-up features, and the whole method with a network small enough for a test.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <norma/core/thread_pool.hpp>
#include <norma/methods/csflow.hpp>
#include <support/count_allocations.hpp>
#include <support/shared_fixtures.hpp>
#include <support/tiny_detector.hpp>

namespace norma::test {
namespace {

constexpr Shape kFinest{8, 8, 6};

FeatureShapes pyramid(Shape finest = kFinest) {
  FeatureShapes shapes;
  for (int l = 0; l < nn::kScales; ++l) shapes.add(nn::scale_shape(finest, l));
  return shapes;
}
ScaleFlow::Settings small_settings() {
  ScaleFlow::Settings s;
  s.training.epochs = 6;
  s.training.batch = 4;
  s.training.learning_rate = 2e-3;
  s.flow_steps = 3;
  s.hidden_channels = 7;
  return s;
}

/// Correlated noise whose channels have scales of their own; `shift` makes an image that does not fit.
class MadeUpImages final : public TrainingImages {
 public:
  explicit MadeUpImages(std::int64_t count, FeatureShapes shapes = pyramid()) : count_(count), shapes_(shapes) {}
  [[nodiscard]] std::int64_t size() const noexcept override { return count_; }
  [[nodiscard]] const FeatureShapes& shapes() const noexcept override { return shapes_; }
  Status gather(std::span<const std::int64_t> images, std::span<const View> views, std::span<float* const> out) const override {
    CHECK(views.empty());
    for (std::size_t i = 0; i < images.size(); ++i) {
      for (int l = 0; l < shapes_.count; ++l)
        draw(images[i], l, 0.0, out[static_cast<std::size_t>(l)] + static_cast<std::int64_t>(i) * shapes_[l].count());
    }
    ++gathered_;
    if (cancel_ != nullptr && gathered_ == cancel_after_) *cancel_ = true;
    if (gathered_ == fail_after_) return {Errc::corrupt, "picture 3 is no picture"};
    return {};
  }
  void draw(std::int64_t image, int level, double shift, float* to) const {
    Random random(7, static_cast<std::uint64_t>(image * 8 + level));
    const Shape s = shapes_[level];
    for (std::int64_t p = 0; p < s.positions(); ++p) {
      const double common = random.normal();
      for (std::int64_t c = 0; c < s.channels; ++c) {
        to[p * s.channels + c] = static_cast<float>(0.3 * (1.0 + 0.2 * static_cast<double>(c)) * (common + 0.3 * random.normal()) + shift);
      }
    }
  }
  void cancel_at(std::int64_t gather, std::atomic<bool>& flag) { cancel_after_ = gather, cancel_ = &flag; }
  void fail_at(std::int64_t gather) { fail_after_ = gather; }

 private:
  std::int64_t count_;
  FeatureShapes shapes_;
  mutable std::int64_t gathered_ = 0;
  std::int64_t cancel_after_ = -1, fail_after_ = -1;
  std::atomic<bool>* cancel_ = nullptr;
};

ScaleFlow made(const ScaleFlow::Settings& settings = small_settings(), FeatureShapes shapes = pyramid()) {
  auto estimator = ScaleFlow::create(shapes, settings);
  REQUIRE_MESSAGE(estimator.ok(), estimator.message());
  return *std::move(estimator);
}
ScaleFlow trained(const ScaleFlow::Settings& settings = small_settings(), std::uint64_t seed = 3, Parallel parallel = {}) {
  ScaleFlow estimator = made(settings);
  const MadeUpImages images(10);
  const Observer observer;
  const Status status = estimator.train(images, {.parallel = parallel, .observer = observer, .seed = seed});
  REQUIRE_MESSAGE(status.ok(), status.message());
  return estimator;
}
bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && !a.empty() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

/// Features of one image, and room for latents of the same shapes.
struct OneImage {
  explicit OneImage(std::int64_t image, double shift = 0.0, FeatureShapes shapes = pyramid()) {
    const MadeUpImages images(1, shapes);
    for (int l = 0; l < 3; ++l) {
      const auto at = static_cast<std::size_t>(l);
      x[at] = z[at] = Tensor<float>(1, shapes[l]);
      images.draw(image, l, shift, x[at].data());
      features.add(x[at].view());
    }
  }
  nn::ScaleViews<float> latents() { return {z[0].view(), z[1].view(), z[2].view()}; }
  std::array<Tensor<float>, 3> x, z;
  Features features;
};

float score_of(const ScaleFlow& estimator, const ScaleFlow::Settings& settings, OneImage& image, MapView<float> map,
               LatentMap what = LatentMap::finest) {
  const LatentSquare metric({what});
  Buffer<std::byte> memory(
      static_cast<std::int64_t>(LatentSquare::scratch_bytes<ScaleFlow>(estimator.shapes(), {map.rows, map.cols, 1}, {what}, settings, 1)));
  Arena arena(memory.span());
  Context context{arena};
  float score = 0.0f;
  const Status status = metric.measure(estimator, image.features, map, score, context);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return score;
}

TEST_CASE("training a cross-scale flow makes normal images likely and others not") {
  ScaleFlow::Settings settings = small_settings();
  settings.training.epochs = 40;
  settings.training.holdout = 0.2;
  const ScaleFlow estimator = trained(settings);
  const TrainingRecord& record = estimator.record();
  REQUIRE(record.loss.size() == 40);
  REQUIRE(record.held_out.size() == 40);
  CHECK(record.best_epoch >= 1);
  CHECK(record.loss.back() < record.loss.front() - 0.1f);
  CHECK(*std::min_element(record.held_out.begin(), record.held_out.end()) == record.held_out[static_cast<std::size_t>(record.best_epoch - 1)]);
  // The best epoch's weights were kept: their loss on the held-out images, from the latents of each, is the record's.
  const Observer observer;
  const Trainer same = *Trainer::create(settings.training, {.observer = observer, .seed = 3}, 10, nn::LastBatch::keep);
  REQUIRE(same.held_out_images().size() == 2);
  double loss = 0.0;
  for (const std::int64_t i : same.held_out_images()) {
    OneImage image(i);
    Buffer<std::byte> memory(static_cast<std::int64_t>(ScaleFlow::latent_scratch_bytes(pyramid(), settings, 1)));
    Arena arena(memory.span());
    Context context{arena};
    float logdet = 0.0f;
    REQUIRE(estimator.latent(image.features, image.latents(), &logdet, context).ok());
    loss -= static_cast<double>(logdet);
    for (const auto& z : image.z) {
      for (std::int64_t k = 0; k < z.view().count(); ++k) loss += 0.5 * static_cast<double>(z.data()[k]) * static_cast<double>(z.data()[k]);
    }
  }
  loss /= 2.0 * static_cast<double>(nn::scale_dims(kFinest));
  CHECK(std::abs(loss - static_cast<double>(*std::min_element(record.held_out.begin(), record.held_out.end()))) <= 1e-5);
  Map<float> map(16, 16);
  OneImage fresh(50), other(50, 1.5);
  CHECK(score_of(estimator, settings, other, map.view()) > 2.0f * score_of(estimator, settings, fresh, map.view()));
}

TEST_CASE("a trained flow depends on the seed, not on the number of threads") {
  const ScaleFlow one = trained();
  ThreadPool pool(3);
  CHECK(same_bits(one.parameters(), trained(small_settings(), 3, pool.parallel()).parameters()));
  CHECK_FALSE(same_bits(one.parameters(), trained(small_settings(), 4).parameters()));
}

TEST_CASE("first weights are PyTorch's default, and gamma 0") {
  ScaleFlow::Settings settings = small_settings();
  settings.training.epochs = 1;
  settings.training.learning_rate = 1e-12;  // one step moves a weight by about that much
  settings.hidden_channels = 40;
  const ScaleFlow estimator = trained(settings);
  const auto parameters = estimator.parameters();
  std::int64_t offset = 0;
  for (std::int64_t b = 0; b < 3; ++b) {
    const nn::CrossScaleShape shape = ScaleFlow::block(pyramid(), b, settings);
    CHECK(shape.kernel == (b == 2 ? 5 : 3));
    for (int step = 0; step < 2; ++step) {
      const nn::CrossScaleSubnet subnet = nn::cross_scale_subnet(shape, step);
      for (const auto& c : subnet.convolutions) {
        const double bound = 1.0 / std::sqrt(static_cast<double>(c.fan_in()));
        double square = 0.0;
        for (std::int64_t i = c.weight; i < c.bias + c.out; ++i) {
          const auto w = static_cast<double>(parameters[static_cast<std::size_t>(offset + i)]);
          CHECK(std::abs(w) <= bound + 1e-7);
          square += w * w;
        }
        const double mean = square / static_cast<double>(c.weights() + c.out);
        CHECK(std::abs(mean / (bound * bound / 3.0) - 1.0) < 0.25);  // 720 numbers and more: six deviations of the mean
      }
      for (int l = 0; l < 3; ++l) CHECK(std::abs(parameters[static_cast<std::size_t>(offset + subnet.gamma + l)]) < 1e-10f);
    }
    offset += nn::parameter_count(shape);
  }
  CHECK(offset == static_cast<std::int64_t>(parameters.size()));
  CHECK(ScaleFlow::parameter_count(pyramid(), settings) == offset);
}

TEST_CASE("an interrupted training goes on bit for bit") {
  const TemporaryFolder folder;
  ScaleFlow::Settings settings = small_settings();
  settings.training.holdout = 0.2;
  const Observer quiet;
  ScaleFlow whole = made(settings);
  REQUIRE(whole.train(MadeUpImages(10), {.observer = quiet, .seed = 5}).ok());

  const std::string checkpoint = (folder.path() / "csflow.checkpoint").string();
  ScaleFlow parts = made(settings);
  int stops = 0;
  for (const std::int64_t stop : {4, 3, 5}) {  // inside epochs, and between an epoch and the next
    std::atomic<bool> cancel{false};
    const Observer observer{{}, &cancel};
    MadeUpImages images(10);
    images.cancel_at(stop, cancel);
    const Status status = parts.train(images, {.observer = observer, .seed = 5, .checkpoint = checkpoint, .identity = "test"});
    REQUIRE_MESSAGE(status.code() == Errc::cancelled, status.message());
    CHECK(parts.parameters().empty());  // an interrupted training leaves the estimator as it was
    ++stops;
  }
  CHECK(stops == 3);
  REQUIRE(parts.train(MadeUpImages(10), {.observer = quiet, .seed = 5, .checkpoint = checkpoint, .identity = "test"}).ok());
  CHECK(same_bits(whole.parameters(), parts.parameters()));
  CHECK(whole.record().loss == parts.record().loss);
  CHECK(whole.record().held_out == parts.record().held_out);
  CHECK(whole.record().best_epoch == parts.record().best_epoch);
  // Another run's checkpoint is refused.
  ScaleFlow other = made(settings);
  CHECK_FALSE(other.train(MadeUpImages(10), {.observer = quiet, .seed = 6, .checkpoint = checkpoint, .identity = "test"}).ok());
}

TEST_CASE("a failed training leaves the estimator as it was") {
  ScaleFlow estimator = trained();
  const std::vector<float> before(estimator.parameters().begin(), estimator.parameters().end());
  MadeUpImages images(10);
  images.fail_at(5);
  const Observer quiet;
  const Status status = estimator.train(images, {.observer = quiet, .seed = 9});
  CHECK(status.code() == Errc::corrupt);
  CHECK(same_bits(before, estimator.parameters()));
  CHECK(estimator.train(MadeUpImages(0), {.observer = quiet}).code() == Errc::not_enough_data);
  CHECK(estimator.train(MadeUpImages(4, pyramid({8, 8, 4})), {.observer = quiet}).code() == Errc::shape_mismatch);
  CHECK(same_bits(before, estimator.parameters()));
}

TEST_CASE("what create refuses") {
  const auto refused = [](const FeatureShapes& shapes, auto&& change) {
    ScaleFlow::Settings s = small_settings();
    change(s);
    const auto made = ScaleFlow::create(shapes, s);
    REQUIRE_FALSE(made.ok());
    return std::string(made.message());
  };
  const auto nothing = [](ScaleFlow::Settings&) {};
  FeatureShapes two, uneven;
  two.add({8, 8, 6}), two.add({4, 4, 6});
  uneven.add({8, 8, 6}), uneven.add({4, 4, 6}), uneven.add({2, 2, 5});
  CHECK(refused(two, nothing) == "ScaleFlow: expected features of 3 image sizes, found 2 level(s)");
  CHECK(refused(uneven, nothing) == "ScaleFlow: level 2: expected 2 x 2 x 6, half of the level before, found 2 x 2 x 5");
  CHECK(refused(pyramid({6, 8, 6}), nothing) == "ScaleFlow: expected a finest map with sides that are multiples of 4, found 6 x 8");
  CHECK(refused(pyramid(), [](auto& s) { s.flow_steps = 0; }) == "ScaleFlow: flow_steps must be in 1..64, found 0");
  CHECK(refused(pyramid(), [](auto& s) { s.hidden_channels = 0; }) == "ScaleFlow: expected 1 to 65536 hidden channels, found 0");
  CHECK(refused(pyramid(), [](auto& s) { s.kernel = 2; }) == "ScaleFlow: expected kernel 1, 3, 5 or 7, found 2");
  CHECK(refused(pyramid(), [](auto& s) { s.last_kernel = 9; }) == "ScaleFlow: expected kernel 1, 3, 5 or 7, found 9");
  CHECK(refused(pyramid(), [](auto& s) { s.clamp = 0.0; }).find("clamp must be in (0, 20]") != std::string::npos);
  CHECK(refused(pyramid(), [](auto& s) { s.gradient_clip = -1.0; }).find("gradient_clip") != std::string::npos);
  CHECK(refused(pyramid(), [](auto& s) { s.adam_beta1 = 1.0; }).find("adam_beta1") != std::string::npos);
  CHECK(refused(pyramid(), [](auto& s) { s.adam_beta2 = -0.1; }).find("adam_beta2") != std::string::npos);
  CHECK(refused(pyramid(), [](auto& s) { s.adam_epsilon = 0.0; }).find("adam_epsilon") != std::string::npos);
  CHECK(refused(pyramid(), [](auto& s) { s.training.batch = 0; }).find("batch") != std::string::npos);
}

TEST_CASE("the published widths have the published number of weights") {
  CHECK(ScaleFlow::parameter_count(pyramid({24, 24, 304}), {}) == 275227288);
  CHECK(ScaleFlow::fit_bytes(pyramid({24, 24, 304}), 209, {}) > 4.0 * 4.0 * 275227288.0);
}

// -- Model files -----------------------------------------------------------------------------------------------------------------------------------

std::vector<std::byte> bytes_of(const ScaleFlow& estimator) {
  io::TensorFileWriter writer;
  REQUIRE(estimator.save(writer).ok());
  auto bytes = writer.to_bytes();
  REQUIRE(bytes.ok());
  return *std::move(bytes);
}
Result<ScaleFlow> loaded(std::vector<std::byte> bytes, const ScaleFlow::Settings& settings = small_settings(), FeatureShapes shapes = pyramid()) {
  auto weights = io::Weights::from_bytes(std::move(bytes), "model.norma");
  REQUIRE(weights.ok());
  return ScaleFlow::load(*weights, shapes, settings, {});
}
/// The estimator's file with one tensor changed: bytes, shape, or left out (empty shape).
std::vector<std::byte> changed(const ScaleFlow& estimator, const std::string& which, std::vector<std::int64_t> shape, std::vector<std::byte> values) {
  auto whole = *io::Weights::from_bytes(bytes_of(estimator), "whole");
  io::TensorFileWriter writer;
  bool found = false;
  for (const io::TensorInfo& info : whole.tensors()) {
    std::vector<std::byte> data(static_cast<std::size_t>(info.count()) * (info.dtype == io::DType::i64 ? 8 : 4));
    REQUIRE(whole.read_raw(info.name, info.dtype, info.shape, data).ok());
    if (info.name != which) {
      REQUIRE(writer.add(info.name, info.dtype, info.shape, data).ok());
    } else {
      found = true;
      if (!shape.empty()) REQUIRE(writer.add(info.name, info.dtype, shape, values.empty() ? data : values).ok());
    }
  }
  REQUIRE(found);
  return *writer.to_bytes();
}
template <class T>
std::vector<std::byte> raw(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

TEST_CASE("a saved flow comes back bit for bit") {
  ScaleFlow::Settings settings = small_settings();
  const ScaleFlow estimator = trained(settings);
  const auto back = loaded(bytes_of(estimator));
  REQUIRE_MESSAGE(back.ok(), back.message());
  CHECK(same_bits(estimator.parameters(), back->parameters()));
  CHECK(estimator.record().loss == back->record().loss);
  Map<float> a(24, 20), b(24, 20);
  OneImage image(77);
  CHECK(score_of(estimator, settings, image, a.view()) == score_of(*back, settings, image, b.view()));
  CHECK(same_bits({a.data(), 480}, {b.data(), 480}));
}

TEST_CASE("a hostile model file is refused by file and tensor, before memory is asked for") {
  const ScaleFlow estimator = trained();
  const auto message = [&](const std::string& which, std::vector<std::int64_t> shape, std::vector<std::byte> values) {
    const auto result = loaded(changed(estimator, which, std::move(shape), std::move(values)));
    REQUIRE_FALSE(result.ok());
    return std::string(result.message());
  };
  const auto has = [](const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; };
  const std::string missing = message("estimator.1.subnet0.up2.weight", {}, {});
  CHECK(has(missing, "model.norma"));
  CHECK(has(missing, "estimator.1.subnet0.up2.weight"));
  const std::string turned = message("estimator.0.subnet1.in0.weight", {3, 7, 3, 3}, {});
  CHECK(has(turned, "tensor 'estimator.0.subnet1.in0.weight' has shape [3, 7, 3, 3], expected [7, 3, 3, 3]"));
  CHECK(has(message("estimator.2.subnet1.gamma", {3}, raw(std::vector<float>{1.0f, std::nanf(""), 0.0f})),
            "'estimator.2.subnet1.gamma' holds a number"));
  CHECK(has(message("estimator.2.subnet1.gamma", {1}, raw(std::vector<float>{1.0f})), "has shape [1], expected [3]"));
  CHECK(has(message("estimator.0.permutation1", {6}, raw(std::vector<std::int64_t>{0, 1, 2, 3, 4, 4})), "estimator.0.permutation1"));
  CHECK(has(message("estimator.0.permutation2", {6}, raw(std::vector<std::int64_t>{0, 1, 2, 3, 4, std::int64_t{1} << 40})),
            "estimator.0.permutation2"));
  CHECK(has(message("estimator.0.permutation0", {3}, raw(std::vector<std::int64_t>{0, 1, 2})), "has shape [3], expected [6]"));
  // Settings that claim 700 GB of weights.
  ScaleFlow::Settings huge = small_settings();
  huge.hidden_channels = 65536;
  huge.flow_steps = 64;
  huge.last_kernel = 7;
  const auto bytes = bytes_of(estimator);
  const auto large = loaded(bytes, huge, pyramid({8, 8, 4096}));
  REQUIRE_FALSE(large.ok());
  CHECK(large.status().code() == Errc::shape_mismatch);
  // Any other settings or shapes.
  ScaleFlow::Settings other = small_settings();
  other.flow_steps = 4;
  CHECK_FALSE(loaded(bytes, other).ok());
  other = small_settings();
  other.last_kernel = 3;
  CHECK_FALSE(loaded(bytes, other).ok());
  CHECK_FALSE(loaded(bytes, small_settings(), pyramid({8, 8, 8})).ok());
}

// -- Metric ----------------------------------------------------------------------------------------------------------------------------------------

/// Latents that are the features.
struct PlainLatents {
  struct Settings {};
  FeatureShapes shapes_;
  static constexpr std::size_t latent_scratch_bytes(const FeatureShapes&, const Settings&, int) noexcept { return 0; }
  Status latent(const Features& features, const nn::ScaleViews<float>& z, float*, Context&) const {
    for (int l = 0; l < 3; ++l) std::copy_n(features[l].data, features[l].count(), z[l].data);
    return {};
  }
};

TEST_CASE("the score is half the mean square of all latents, the map the mean square of a position") {
  OneImage image(4);
  Features& features = image.features;
  double total = 0.0, dims = 0.0;
  std::array<Map<float>, 3> squares;
  for (int l = 0; l < 3; ++l) {
    const auto& x = features[l];
    squares[static_cast<std::size_t>(l)] = Map<float>(x.height, x.width);
    for (std::int64_t p = 0; p < x.shape().positions(); ++p) {
      double sum = 0.0;
      for (std::int64_t c = 0; c < x.channels; ++c)
        sum += static_cast<double>(x.data[p * x.channels + c]) * static_cast<double>(x.data[p * x.channels + c]);
      squares[static_cast<std::size_t>(l)].data()[p] = static_cast<float>(sum / static_cast<double>(x.channels));
      total += 0.5 * sum;
    }
    dims += static_cast<double>(x.count());
  }
  for (const LatentMap what : {LatentMap::finest, LatentMap::product}) {
    const LatentSquare metric({what});
    Map<float> map(24, 20), want(24, 20), level(24, 20);
    Buffer<std::byte> memory(static_cast<std::int64_t>(LatentSquare::scratch_bytes<PlainLatents>(pyramid(), {24, 20, 1}, {what}, {}, 1)));
    Arena arena(memory.span());
    Context context{arena};
    float score = 0.0f;
    const auto before = allocation_count();
    REQUIRE(metric.measure(PlainLatents{}, features, map.view(), score, context).ok());
    CHECK(allocation_count() == before);
    CHECK(std::abs(static_cast<double>(score) - total / dims) <= 1e-6 * total / dims);
    for (std::int64_t i = 0; i < 480; ++i) want.data()[i] = 1.0f;
    for (std::size_t l = 0; l < (what == LatentMap::finest ? 1u : 3u); ++l) {
      REQUIRE(image::resize_bilinear(MapView<const float>(squares[l].view()), level.view(), AlignCorners::no).ok());
      for (std::int64_t i = 0; i < 480; ++i) want.data()[i] *= level.data()[i];
    }
    for (std::int64_t i = 0; i < 480; ++i) CHECK(std::abs(map.data()[i] - want.data()[i]) <= 1e-6f * std::max(1.0f, want.data()[i]));
  }
  // What is not finite is an error, not a score.
  image.x[2].data()[3] = std::nanf("");
  Map<float> map(24, 20);
  Buffer<std::byte> memory(1 << 16);
  Arena arena(memory.span());
  Context context{arena};
  float score = 0.0f;
  const Status status = LatentSquare({}).measure(PlainLatents{}, features, map.view(), score, context);
  CHECK(status.code() == Errc::not_finite);
  CHECK(std::string(status.message()) == "LatentSquare: the latents of level 2, position 0 are not finite numbers");
}

// -- The method ------------------------------------------------------------------------------------------------------------------------------------

using Tiny = CSFlow<TinyNetwork>;

Tiny::Settings tiny_settings() {
  Tiny::Settings s;
  s.backbone.preprocess.height = s.backbone.preprocess.width = 128;
  s.estimator.training.epochs = 12;
  s.estimator.training.batch = 4;
  s.estimator.training.learning_rate = 5e-3;
  s.estimator.flow_steps = 2;
  s.estimator.hidden_channels = 8;
  return s;
}

TEST_CASE("CS-Flow fits, saves, opens and inspects") {
  const auto settings = tiny_settings();
  CHECK(Tiny::type_name(settings) == "detector<image_scales<tiny,maps>,cross_scale_flow,latent_square>");
  const TemporaryFolder folder;
  auto detector = Tiny::create(tiny_weights(), settings);
  REQUIRE_MESSAGE(detector.ok(), detector.message());
  const Status fitted = detector->fit(TinySource{}, {.seed = 2, .threads = 1});
  REQUIRE_MESSAGE(fitted.ok(), fitted.message());
  REQUIRE(detector->training() != nullptr);
  CHECK(detector->training()->loss.size() == 12);
  const std::string path = (folder.path() / "tiny.norma").string();
  REQUIRE(detector->save(path).ok());
  auto opened = Tiny::open(path);
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  CHECK(opened->self_test(0.0).ok());
  auto workspace = detector->make_workspace(), other = opened->make_workspace();
  const Image good = tiny_picture(60), bad = tiny_picture(61, true);
  REQUIRE(detector->inspect(good, workspace).ok());
  const auto before = allocation_count();
  const auto verdict = detector->inspect(bad, workspace);
  CHECK(allocation_count() == before);
  REQUIRE(verdict.ok());
  const float score = verdict->score;
  const auto again = opened->inspect(bad, other);
  REQUIRE(again.ok());
  CHECK(score == again->score);
  CHECK(std::isfinite(score));
  CHECK(score > detector->inspect(good, workspace)->score);
}

}  // namespace
}  // namespace norma::test
