// FastFlow's estimator and its metric: sizes, normalisations and blocks, gradients, what a file may not hold, and whether a flow learns a density.
#include <cmath>
#include <functional>
#include <numbers>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/thread_pool.hpp>
#include <norma/estimators/feature_flow.hpp>
#include <norma/metrics/flow_likelihood.hpp>

#include "support/reference.hpp"
#include "support/shared_fixtures.hpp"

namespace {

using namespace norma;
using namespace norma::test;
using Estimator = FeatureFlow<>;

constexpr FeatureShapes shapes_of(std::initializer_list<Shape> all) {
  FeatureShapes shapes;
  for (const Shape& shape : all) shapes.add(shape);
  return shapes;
}

// ---- sizes as published: constants ----------------------------------------------------------------------------------------------------------
constexpr FeatureShapes kWideResNet = shapes_of({{64, 64, 256}, {32, 32, 512}, {16, 16, 1024}});
constexpr FeatureShapes kResNet18 = shapes_of({{64, 64, 64}, {32, 32, 128}, {16, 16, 256}});
constexpr FeatureShapes kDeiT = shapes_of({{24, 24, 768}});
constexpr FeatureShapes kCaiT = shapes_of({{28, 28, 768}});
static_assert(Estimator::parameter_count(kWideResNet) == 41'337'856);
static_assert(Estimator::parameter_count(kResNet18) == 4'657'408);
// 10 blocks of kernel 3 and 10 of kernel 1: 384 -> 61 -> 768 channels with biases, a scale and an offset each.
constexpr std::int64_t transformer_block(std::int64_t taps) { return taps * (384 * 61 + 61 * 768) + 61 + 768 + 2 * 768; }
static_assert(Estimator::parameter_count(kDeiT) == 10 * (transformer_block(9) + transformer_block(1)));
static_assert(Estimator::parameter_count(kDeiT) == 7'074'500);  // 7.07 M
static_assert(Estimator::parameter_count(kCaiT) == Estimator::parameter_count(kDeiT));
static_assert(Estimator::steps(kResNet18, {}) == 8 && Estimator::steps(kDeiT, {}) == 20);
static_assert(Estimator::block(kResNet18, 2, 1, {}).kernels[0] == 3 && Estimator::block(kWideResNet, 0, 1, {}).kernels[0] == 1);
static_assert(Estimator::latent_scratch_bytes(kResNet18, {}, 1) > 0);

// ---- images that are made of numbers -----------------------------------------------------------------------------------------------------------
// Levels with odd sides; every image its own mean and size, so that normalisations make a difference.
constexpr FeatureShapes kSmall = shapes_of({{5, 3, 6}, {3, 2, 4}});

class Numbers final : public TrainingImages {
 public:
  using Value = std::function<float(std::int64_t image, int level, std::int64_t i)>;
  Numbers(const FeatureShapes& shapes, std::int64_t count, const Value& value) : shapes_(shapes), count_(count) {
    for (int l = 0; l < shapes.count; ++l) {
      auto& level = levels_.emplace_back();
      for (std::int64_t n = 0; n < count; ++n) {
        for (std::int64_t i = 0; i < shapes[l].count(); ++i) level.push_back(value(n, l, i));
      }
    }
  }
  [[nodiscard]] std::int64_t size() const noexcept override { return count_; }
  [[nodiscard]] const FeatureShapes& shapes() const noexcept override { return shapes_; }
  Status gather(std::span<const std::int64_t> images, std::span<const View> views, std::span<float* const> out) const override {
    CHECK(views.empty());
    for (int l = 0; l < shapes_.count; ++l) {
      for (std::size_t n = 0; n < images.size(); ++n) {
        std::copy_n(image(images[n], l).data(), shapes_[l].count(),
                    out[static_cast<std::size_t>(l)] + static_cast<std::int64_t>(n) * shapes_[l].count());
      }
    }
    return {};
  }
  [[nodiscard]] std::span<const float> image(std::int64_t n, int l) const {
    const auto size = static_cast<std::size_t>(shapes_[l].count());
    return std::span<const float>(levels_[static_cast<std::size_t>(l)]).subspan(static_cast<std::size_t>(n) * size, size);
  }
  [[nodiscard]] Features features(std::int64_t n) const {
    Features all;
    for (int l = 0; l < shapes_.count; ++l) all.add(TensorView<const float>(image(n, l).data(), 1, shapes_[l]));
    return all;
  }

 private:
  FeatureShapes shapes_;
  std::int64_t count_;
  std::vector<std::vector<float>> levels_;
};
Numbers small_images(std::int64_t count = 8) {
  return Numbers(kSmall, count, [](std::int64_t n, int l, std::int64_t i) {
    Random random(11, static_cast<std::uint64_t>((n * 7 + l) * 1000 + i));
    return static_cast<float>(0.3 * static_cast<double>(n) + (1.0 + 0.2 * static_cast<double>(n)) * random.normal());
  });
}

Estimator::Settings small_settings(std::int64_t epochs = 3) {
  Estimator::Settings settings;
  settings.training = {.epochs = epochs, .batch = 8, .learning_rate = 1e-2, .weight_decay = 0.0};
  settings.flow_steps = 2;
  return settings;
}
Estimator trained(const FeatureShapes& shapes, const TrainingImages& images, const Estimator::Settings& settings, const std::string& checkpoint = {},
                  std::uint64_t seed = 5) {
  auto estimator = Estimator::create(shapes, settings);
  REQUIRE_MESSAGE(estimator.ok(), estimator.message());
  const Observer nobody;
  const TrainingContext context{Parallel{}, nobody, seed, checkpoint, "test", 60.0};
  const Status status = estimator->train(images, context);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return *std::move(estimator);
}
std::vector<std::byte> file_of(const Estimator& estimator) {
  io::TensorFileWriter writer;
  REQUIRE(estimator.save(writer).ok());
  auto bytes = writer.to_bytes();
  REQUIRE(bytes.ok());
  return *std::move(bytes);
}
io::Weights opened(std::span<const std::byte> bytes) {
  auto file = io::Weights::from_bytes(bytes, "model.norma");
  REQUIRE_MESSAGE(file.ok(), file.message());
  return *std::move(file);
}
// All latents of an image, level after level, and the log-determinants.
std::vector<float> latents(const Estimator& estimator, const Estimator::Settings& settings, const Features& features) {
  Scratch scratch(Estimator::latent_scratch_bytes(estimator.shapes(), settings, 1) + (1u << 12));
  std::vector<float> all;
  for (int l = 0; l < features.count; ++l) {
    Arena arena = scratch.arena();
    Context context{arena};
    std::vector<float> z(static_cast<std::size_t>(features[l].shape().count()));
    float logdet = 0.0f;
    const Status status = estimator.latent(l, features[l], TensorView<float>(z.data(), 1, features[l].shape()), &logdet, context);
    REQUIRE_MESSAGE(status.ok(), status.message());
    all.insert(all.end(), z.begin(), z.end());
    all.push_back(logdet);
  }
  return all;
}
struct Scored {
  Matrix<float> map;
  float score = 0.0f;
};
Scored scored(const Estimator& estimator, const Estimator::Settings& settings, const Features& features, FlowLikelihood::Settings metric = {}) {
  const Shape map{20, 12, 1};
  const std::size_t bytes = FlowLikelihood::scratch_bytes<Estimator>(estimator.shapes(), map, metric, settings, 1);
  Scratch scratch(bytes);
  Arena arena = scratch.arena();
  Context context{arena};
  Scored out{Matrix<float>(map.height, map.width)};
  const Status status =
      FlowLikelihood(metric).measure(estimator, features, MapView<float>(out.map.data(), map.height, map.width), out.score, context);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return out;
}
bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("every normalisation and block: trains, is saved and read with the same latents") {
  const Numbers images = small_images();
  for (const auto normalisation : {FlowNormalisation::automatic, FlowNormalisation::none, FlowNormalisation::plain, FlowNormalisation::affine}) {
    for (const auto block : {FlowBlockKind::all_in_one, FlowBlockKind::glow}) {
      CAPTURE(to_string(normalisation));
      CAPTURE(to_string(block));
      auto settings = small_settings();
      settings.normalisation = normalisation;
      settings.flow_block = block;
      const Estimator estimator = trained(kSmall, images, settings);
      REQUIRE(estimator.record().loss.size() == 3);
      CHECK(estimator.record().loss[2] < estimator.record().loss[0]);
      const auto bytes = file_of(estimator);
      const io::Weights file = opened(bytes);
      CHECK((file.find("estimator.level0.norm.weight") != nullptr) == (normalisation == FlowNormalisation::affine));
      CHECK((file.find("estimator.level0.0.subnet1.0.weight") != nullptr) == (block == FlowBlockKind::glow));
      CHECK((file.find("estimator.level1.1.scale") != nullptr) == (block == FlowBlockKind::all_in_one));
      const auto loaded = Estimator::load(file, kSmall, settings, Parallel{});
      REQUIRE_MESSAGE(loaded.ok(), loaded.message());
      CHECK(loaded->record().loss == estimator.record().loss);
      for (std::int64_t n = 0; n < 3; ++n) CHECK(latents(*loaded, settings, images.features(n)) == latents(estimator, settings, images.features(n)));
      CHECK(file_of(*loaded) == bytes);
    }
  }
}

TEST_CASE("normalisation: plain makes brightness and contrast of an image no matter, affine begins as plain, one level has none") {
  const Numbers images = small_images();
  // 3 x + 2 of the same numbers: the same after normalisation, up to 1e-5 beside a variance near 1 and the rounding of the input.
  const Numbers brighter(kSmall, 8,
                         [&](std::int64_t n, int l, std::int64_t i) { return 3.0f * images.image(n, l)[static_cast<std::size_t>(i)] + 2.0f; });
  const auto distance = [&](const Estimator::Settings& settings) {
    const Estimator estimator = trained(kSmall, images, settings);
    double worst = 0.0;
    for (std::int64_t n = 0; n < 4; ++n) {
      const auto a = latents(estimator, settings, images.features(n)), b = latents(estimator, settings, brighter.features(n));
      for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
    }
    return worst;
  };
  auto settings = small_settings();
  const double automatic = distance(settings);
  settings.normalisation = FlowNormalisation::plain;
  CHECK(distance(settings) == automatic);
  CHECK(automatic <= 1e-3);
  settings.normalisation = FlowNormalisation::none;
  CHECK(distance(settings) > 0.5);
  // The first loss is taken before any step: weight 1 and bias 0 change nothing.
  const auto first = [&](FlowNormalisation normalisation) {
    auto once = small_settings(1);
    once.normalisation = normalisation;
    return trained(kSmall, images, once).record().loss.front();
  };
  CHECK(first(FlowNormalisation::affine) == first(FlowNormalisation::plain));
  CHECK(first(FlowNormalisation::none) != first(FlowNormalisation::plain));
  // A transformer's one level is left as it is.
  constexpr FeatureShapes single = shapes_of({{3, 3, 4}});
  const Numbers one(single, 8, [](std::int64_t n, int, std::int64_t i) { return static_cast<float>((n * 31 + i * 17) % 13) - 5.0f; });
  auto ones = small_settings(1);
  const auto with = [&](FlowNormalisation normalisation) {
    ones.normalisation = normalisation;
    return trained(single, one, ones).record().loss.front();
  };
  CHECK(with(FlowNormalisation::automatic) == with(FlowNormalisation::none));
  CHECK(with(FlowNormalisation::automatic) != with(FlowNormalisation::plain));
}

TEST_CASE("loss and the gradient of the affine normalisation, by finite differences") {
  const TemporaryFolder folder;
  const std::string checkpoint = (folder.path() / "run").string();
  constexpr FeatureShapes single = shapes_of({{3, 2, 4}});
  const std::int64_t size = single[0].count(), count = 5;
  const Numbers images(single, count, [](std::int64_t n, int, std::int64_t i) {
    Random random(3, static_cast<std::uint64_t>(n * 100 + i));
    return static_cast<float>(random.normal());
  });
  auto settings = small_settings(1);
  settings.normalisation = FlowNormalisation::affine;
  settings.training.batch = count;
  const Estimator estimator = trained(single, images, settings, checkpoint, 9);
  // Adam's mean of the gradients after one step is a tenth of the gradient.
  const auto reader = nn::CheckpointReader::open(checkpoint);
  REQUIRE_MESSAGE(reader.ok(), reader.message());
  std::vector<float> gradient(static_cast<std::size_t>(2 * size));
  REQUIRE(reader->buffer("level0.affine.adam.mean", gradient).ok());

  // The flow as the training began, and the mean of 0.5 |z|^2 - logdet over the images with any weight and bias.
  std::vector<nn::CouplingShape> blocks;
  for (std::int64_t s = 0; s < Estimator::steps(single, settings); ++s) blocks.push_back(Estimator::block(single, 0, s, settings));
  auto model = FlowModel<>::create(blocks, single[0], 9, "level0");
  REQUIRE(model.ok());
  REQUIRE(model->end_training().ok());
  Scratch scratch(model->flow().scratch_bytes(nn::FlowPass::forward, 1, 1));
  const auto loss = [&](const std::vector<float>& affine) {
    double total = 0.0;
    for (std::int64_t n = 0; n < count; ++n) {
      const auto x = images.image(n, 0);
      double mean = 0.0, variance = 0.0;
      for (const float v : x) mean += static_cast<double>(v) / static_cast<double>(size);
      for (const float v : x) variance += (static_cast<double>(v) - mean) * (static_cast<double>(v) - mean) / static_cast<double>(size);
      std::vector<float> y(x.size()), z(x.size());
      for (std::size_t i = 0; i < x.size(); ++i) {
        y[i] = static_cast<float>((static_cast<double>(x[i]) - mean) / std::sqrt(variance + 1e-5)) * affine[i] + affine[i + x.size()];
      }
      Arena arena = scratch.arena();
      float logdet = 0.0f;
      const Status status = model->flow().forward(TensorView<const float>(y.data(), 1, single[0]), {}, TensorView<float>(z.data(), 1, single[0]),
                                                  {&logdet, 1}, {}, Parallel{}, arena);
      REQUIRE_MESSAGE(status.ok(), status.message());
      for (const float v : z) total += 0.5 * static_cast<double>(v) * static_cast<double>(v);
      total -= static_cast<double>(logdet);
    }
    return total / static_cast<double>(count);
  };
  std::vector<float> affine(static_cast<std::size_t>(2 * size), 0.0f);
  std::fill_n(affine.begin(), size, 1.0f);
  const double here = loss(affine);
  // Sums of some 24 squares near 1 in float against double: 24 roundings of 6e-8 beside a sum of 12 or more.
  CHECK(std::abs(static_cast<double>(estimator.record().loss.front()) - here) <= 1e-5 * std::abs(here));
  // Central differences of a smooth function: the error is h^2 / 6 times its third derivative and the rounding of the loss (1e-6) over h. A step may
  // cross a kink of the subnet's ReLU, which moves one difference by h times a jump of the slope: hence 2e-2 beside gradients near 1.
  const float h = 1e-2f;
  double largest = 0.0;
  for (std::size_t i = 0; i < affine.size(); ++i) {
    CAPTURE(i);
    auto moved = affine;
    moved[i] = affine[i] + h;
    const double up = loss(moved);
    moved[i] = affine[i] - h;
    const double expected = (up - loss(moved)) / (2.0 * static_cast<double>(h)), found = 10.0 * static_cast<double>(gradient[i]);
    CHECK(std::abs(found - expected) <= 2e-2 * (1.0 + std::abs(expected)));
    largest = std::max(largest, std::abs(expected));
  }
  CHECK(largest > 0.3);
}

TEST_CASE("the map lies in [-1, 0], the score is its top, and neither depends on other images") {
  const Numbers images = small_images();
  const auto settings = small_settings(5);
  const Estimator estimator = trained(kSmall, images, settings);
  const Numbers strange(kSmall, 2, [](std::int64_t n, int, std::int64_t i) { return n == 0 ? 0.0f : static_cast<float>((i % 7) * (i % 5) * 1000); });
  std::vector<float> before;
  for (std::int64_t n = 0; n < 8; ++n) before.push_back(scored(estimator, settings, images.features(n)).score);
  for (std::int64_t n = 0; n < 2; ++n) {
    for (const Numbers* set : {&images, &strange}) {
      const Scored out = scored(estimator, settings, set->features(n));
      float top = -2.0f;
      for (std::int64_t i = 0; i < out.map.rows() * out.map.cols(); ++i) {
        CHECK((out.map.data()[i] >= -1.0f && out.map.data()[i] <= 0.0f));
        top = std::max(top, out.map.data()[i]);
      }
      CHECK(out.score == top);
    }
  }
  for (std::int64_t n = 7; n >= 0; --n) CHECK(scored(estimator, settings, images.features(n)).score == before[static_cast<std::size_t>(n)]);
  // The map by its definition, level after level, at a place that no interpolation changes: with one level of the map's size.
  constexpr FeatureShapes single = shapes_of({{20, 12, 2}});
  const Numbers one(single, 4, [](std::int64_t n, int, std::int64_t i) { return std::sin(static_cast<float>(n * 3 + i)); });
  const auto ones = small_settings(2);
  const Estimator flat = trained(single, one, ones);
  const auto z = latents(flat, ones, one.features(1));
  const Scored out = scored(flat, ones, one.features(1));
  double worst = 0.0;
  for (std::int64_t p = 0; p < 240; ++p) {
    const double a = static_cast<double>(z[static_cast<std::size_t>(2 * p)]), b = static_cast<double>(z[static_cast<std::size_t>(2 * p + 1)]);
    worst = std::max(worst, std::abs(-std::exp(-0.25 * (a * a + b * b)) - static_cast<double>(out.map.data()[p])));
  }
  CHECK(worst <= 1e-6);  // a few roundings of numbers up to 1
  // The mean of the highest values.
  std::vector<float> values(out.map.data(), out.map.data() + 240);
  std::sort(values.begin(), values.end(), std::greater<>());
  double mean = 0.0;
  for (std::size_t i = 0; i < 10; ++i) mean += static_cast<double>(values[i]) / 10.0;
  CHECK(std::abs(static_cast<double>(scored(flat, ones, one.features(1), {.top_pixels = 10}).score) - mean) <= 1e-6);
  CHECK(scored(flat, ones, one.features(1), {.sigma = 2.0}).score < out.score);
  CHECK_FALSE(FlowLikelihood::validate({.top_pixels = 0}).ok());
  CHECK_FALSE(FlowLikelihood::validate({.sigma = -1.0}).ok());
}

TEST_CASE("a file that lacks a tensor, or holds a wrong one, is refused by the names of both") {
  auto settings = small_settings(1);
  settings.normalisation = FlowNormalisation::affine;
  const auto bytes = file_of(trained(kSmall, small_images(), settings));
  const io::Weights file = opened(bytes);
  // Copies every tensor but one, which `change` may leave out, reshape or fill anew.
  struct Copied {
    std::vector<std::int64_t> shape;
    std::vector<float> values;
    std::vector<std::int64_t> indices;
  };
  const auto refused = [&](const std::string& name, Errc code, const std::string& part, const std::function<bool(Copied&)>& change) {
    CAPTURE(name);
    io::TensorFileWriter writer;
    bool met = false;
    for (const io::TensorInfo& tensor : file.tensors()) {
      Copied copied;
      copied.shape.assign(tensor.shape.begin(), tensor.shape.end());
      const bool whole = tensor.dtype == io::DType::i64;
      if (whole) {
        copied.indices.resize(static_cast<std::size_t>(tensor.count()));
        REQUIRE(file.read_raw(tensor.name, io::DType::i64, tensor.shape, std::as_writable_bytes(std::span(copied.indices))).ok());
      } else {
        copied.values.resize(static_cast<std::size_t>(tensor.count()));
        REQUIRE(file.read(tensor.name, tensor.shape, std::span<float>(copied.values)).ok());
      }
      if (tensor.name == name) {
        met = true;
        if (!change(copied)) continue;
      }
      if (whole) {
        REQUIRE(writer.add(tensor.name, copied.shape, std::span<const std::int64_t>(copied.indices)).ok());
      } else {
        REQUIRE(writer.add(tensor.name, copied.shape, std::span<const float>(copied.values)).ok());
      }
    }
    REQUIRE(met);
    const auto changed = writer.to_bytes();
    REQUIRE(changed.ok());
    const auto loaded = Estimator::load(opened(*changed), kSmall, settings, Parallel{});
    CAPTURE(loaded.message());
    CHECK(loaded.code() == code);
    CHECK(contains(loaded.message(), "model.norma"));
    CHECK(contains(loaded.message(), part));
  };
  REQUIRE(Estimator::load(file, kSmall, settings, Parallel{}).ok());
  const auto missing = [](Copied&) { return false; };
  const auto reshaped = [](Copied& tensor) {
    tensor.shape = {static_cast<std::int64_t>(tensor.values.size() + tensor.indices.size()) + 1};
    tensor.indices.empty() ? tensor.values.push_back(0.0f) : tensor.indices.push_back(0);
    return true;
  };
  const auto not_a_number = [](Copied& tensor) {
    tensor.values.back() = std::nanf("");
    return true;
  };
  const auto infinite = [](Copied& tensor) {
    tensor.values.front() = -std::numeric_limits<float>::infinity();
    return true;
  };
  for (const std::string level : {"estimator.level0.", "estimator.level1."}) {
    for (const std::string tensor : {"0.subnet0.0.weight", "1.subnet0.0.bias", "0.subnet0.1.weight", "1.subnet0.1.bias", "0.scale", "1.offset",
                                     "0.permutation", "norm.weight", "norm.bias"}) {
      refused(level + tensor, Errc::not_found, level + tensor, missing);
      refused(level + tensor, Errc::shape_mismatch, level + tensor, reshaped);
      if (tensor == "0.permutation") continue;
      refused(level + tensor, Errc::not_finite, level + (tensor == "norm.bias" ? "norm.weight" : tensor), not_a_number);
      refused(level + tensor, Errc::not_finite, level + (tensor == "norm.bias" ? "norm.weight" : tensor), infinite);
    }
    for (const std::int64_t wrong : {std::int64_t{-1}, std::int64_t{1} << 40, std::int64_t{99}}) {
      refused(level + "1.permutation", Errc::invalid_argument, "permutation", [&](Copied& tensor) {
        tensor.indices[1] = wrong;
        return true;
      });
    }
    refused(level + "1.permutation", Errc::invalid_argument, "permutation", [](Copied& tensor) {
      tensor.indices[1] = tensor.indices[0];
      return true;
    });
  }
  // Settings that ask for another flow than the file has.
  auto longer = settings;
  longer.flow_steps = 1000;
  CHECK(Estimator::load(file, kSmall, longer, Parallel{}).code() == Errc::not_found);
  longer = settings;
  longer.hidden_ratio = 16.0;
  CHECK(Estimator::load(file, kSmall, longer, Parallel{}).code() == Errc::shape_mismatch);
}

TEST_CASE("settings that cannot work are refused") {
  const auto refused = [](const std::function<void(Estimator::Settings&)>& change, const std::string& part) {
    auto settings = small_settings();
    change(settings);
    const auto estimator = Estimator::create(kSmall, settings);
    CHECK(estimator.code() == Errc::invalid_argument);
    CHECK(contains(estimator.message(), part));
  };
  refused([](auto& s) { s.flow_steps = -1; }, "flow_steps");
  refused([](auto& s) { s.flow_steps = 1 << 30; }, "flow_steps");
  refused([](auto& s) { s.hidden_ratio = -0.1; }, "hidden_ratio");
  refused([](auto& s) { s.hidden_ratio = std::nan(""); }, "hidden_ratio");
  refused([](auto& s) { s.clamp = 0.0; }, "clamp");
  refused([](auto& s) { s.clamp = std::nan(""); }, "clamp");
  refused([](auto& s) { s.training.epochs = 0; }, "epochs");
  CHECK_FALSE(Estimator::create(FeatureShapes{}, small_settings()).ok());
  CHECK_FALSE(Estimator::create(shapes_of({{4, 4, 1}}), small_settings()).ok());  // one channel cannot be halved
}

TEST_CASE("a flow learns a density that no Gaussian fits") {
  // Two half moons with noise: each image is one point of the plane, as a map of one position with two channels.
  constexpr FeatureShapes point = shapes_of({{1, 1, 2}});
  const auto moons = [&](std::int64_t count, std::uint64_t seed) {
    return Numbers(point, count, [seed](std::int64_t n, int, std::int64_t i) {
      Random random(seed, static_cast<std::uint64_t>(n));
      const double angle = std::numbers::pi * random.uniform(), first = 0.08 * random.normal(), second = 0.08 * random.normal();
      const bool upper = n % 2 == 0;
      if (i == 0) return static_cast<float>((upper ? std::cos(angle) : 1.0 - std::cos(angle)) + first);
      return static_cast<float>((upper ? std::sin(angle) : 0.5 - std::sin(angle)) + second);
    });
  };
  const std::int64_t count = 512;
  const Numbers images = moons(count, 1), others = moons(count, 2);
  Estimator::Settings settings;
  settings.training = {.epochs = 60, .batch = 64, .learning_rate = 1e-2, .weight_decay = 0.0};
  settings.flow_steps = 8;
  settings.hidden_ratio = 16.0;
  settings.flow_kernels = FlowKernels::three;
  const Estimator estimator = trained(point, images, settings);
  double nll = 0.0;  // of points that it has not seen
  for (std::int64_t n = 0; n < count; ++n) {
    const auto z = latents(estimator, settings, others.features(n));
    const double a = static_cast<double>(z[0]), b = static_cast<double>(z[1]);
    nll += (0.5 * (a * a + b * b) + std::log(2.0 * std::numbers::pi) - static_cast<double>(z[2])) / static_cast<double>(count);
  }
  // The Gaussian with the moons' own mean and covariance: log(2 pi) + log det / 2 + 1.
  double mean[2] = {}, covariance[2][2] = {};
  for (std::int64_t n = 0; n < count; ++n) {
    for (std::size_t i = 0; i < 2; ++i) mean[i] += static_cast<double>(others.image(n, 0)[i]) / static_cast<double>(count);
  }
  for (std::int64_t n = 0; n < count; ++n) {
    for (std::size_t i = 0; i < 2; ++i) {
      for (std::size_t j = 0; j < 2; ++j) {
        covariance[i][j] += (static_cast<double>(others.image(n, 0)[i]) - mean[i]) * (static_cast<double>(others.image(n, 0)[j]) - mean[j]) /
                            static_cast<double>(count);
      }
    }
  }
  const double gaussian =
      std::log(2.0 * std::numbers::pi) + 0.5 * std::log(covariance[0][0] * covariance[1][1] - covariance[0][1] * covariance[1][0]) + 1.0;
  CAPTURE(nll);
  CAPTURE(gaussian);
  CHECK(nll < gaussian - 0.2);
  CHECK(
      nll >
      -2.0);  // below the entropy of such moons something would be wrong: log(2 pi) + log(0.08 * 0.08) + 1 = -2.2 for one point alone, with its noise
}
