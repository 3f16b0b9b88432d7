// The composition as a whole, on a network and pictures that are made here: fit, look, save, open, calibrate, merge, refuse.
#include <atomic>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/thread_pool.hpp>
#include <norma/methods/padim.hpp>
#include <norma/methods/patchcore.hpp>
#include <norma/methods/spade.hpp>

#include "support/count_allocations.hpp"
#include "support/shared_fixtures.hpp"
#include "support/tiny_detector.hpp"

namespace {

using namespace norma;
using namespace norma::test;

using Core = PatchCore<TinyNetwork>;
using Gauss = PaDiM<TinyNetwork>;
using Gallery = SPADE<TinyNetwork>;

static_assert(Core::workspace_bytes() > 0 && Core::workspace_bytes() < (4u << 20));
static_assert(Gauss::workspace_bytes() > 0 && Gallery::workspace_bytes() > 0);
static_assert(Core::workspace_bytes(Core::Settings{}, 4) >= Core::workspace_bytes(Core::Settings{}, 1));

template <class D>
typename D::Settings small_settings() {
  typename D::Settings settings;
  if constexpr (std::is_same_v<D, Core>) settings.estimator.size.coreset_ratio = 0.5;
  if constexpr (std::is_same_v<D, Gauss>) settings.backbone.embedding.feature_dims = 9;
  if constexpr (std::is_same_v<D, Gallery>) settings.metric.num_neighbours = 3;
  return settings;
}
template <class D>
D fitted(const FitOptions& options = {}) {
  auto detector = D::create(tiny_weights(), small_settings<D>());
  REQUIRE_MESSAGE(detector.ok(), detector.message());
  const Status status = detector->fit(TinySource{}, options);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return *std::move(detector);
}
template <class D>
std::vector<float> answer(const D& detector, const Image& image, int threads = 1) {
  auto workspace = detector.make_workspace(threads);
  const auto verdict = detector.inspect(image, workspace);
  REQUIRE_MESSAGE(verdict.ok(), verdict.message());
  std::vector<float> all(verdict->map.data, verdict->map.data + verdict->map.count());
  all.push_back(verdict->score);
  return all;
}

TEST_CASE_TEMPLATE("a defect scores higher than every good picture, and the peak lies on it", D, Core, Gauss, Gallery) {
  const D detector = fitted<D>();
  auto workspace = detector.make_workspace();
  float worst = 0.0f;
  for (std::uint64_t i = 100; i < 110; ++i) worst = std::max(worst, detector.inspect(tiny_picture(i), workspace)->score);
  const auto verdict = detector.inspect(tiny_picture(5, true), workspace);
  REQUIRE(verdict.ok());
  CHECK(verdict->score > worst);
  CHECK(verdict->label == Label::uncalibrated);
  // The square covers rows 16..23 and columns 24..31; the coarsest level's patches are 12 pixels wide.
  CHECK(std::abs(verdict->peak_row - 19.5) <= 12.0);
  CHECK(std::abs(verdict->peak_column - 27.5) <= 12.0);
}

TEST_CASE_TEMPLATE("scores and maps are bit-equal for 1, 2 and 4 threads, in fit and in inspect", D, Core, Gauss, Gallery) {
  const auto one = answer(fitted<D>({.threads = 1}), tiny_picture(200, true), 1);
  for (const int threads : {2, 4}) {
    CAPTURE(threads);
    CHECK(answer(fitted<D>({.threads = threads}), tiny_picture(200, true), threads) == one);
  }
}

TEST_CASE_TEMPLATE("a saved model opens with bit-equal answers, passes its self-test, and names its type", D, Core, Gauss, Gallery) {
  const TemporaryFolder folder;
  const std::string path = (folder.path() / "model.norma").string();
  D detector = fitted<D>({.seed = 42});
  REQUIRE(detector.calibrate(TinySource{.count = 20, .first = 300}, {.false_reject_rate = 0.1}).ok());
  REQUIRE(detector.save(path).ok());
  const auto opened = D::open(path);
  REQUIRE_MESSAGE(opened.ok(), opened.message());
  CHECK(answer(*opened, tiny_picture(201, true)) == answer(detector, tiny_picture(201, true)));
  CHECK(opened->self_test(0.0).ok());
  CHECK(opened->reference_frames() == 3);
  CHECK(opened->provenance().images == 12);
  CHECK(opened->provenance().seed == 42);
  CHECK(opened->provenance().weights == "tiny.safetensors");
  CHECK(opened->provenance().weights_digest == tiny_weights().digest());
  CHECK(opened->image_names()[3] == "picture3.png");
  REQUIRE(opened->calibration());
  CHECK(opened->calibration()->threshold == detector.calibration()->threshold);
  CHECK(opened->calibration()->statement == detector.calibration()->statement);
  CHECK(D::type_name(opened->settings()) == D::type_name(detector.settings()));
  // The same again: what was opened can be saved.
  const std::string again = (folder.path() / "again.norma").string();
  REQUIRE(opened->save(again).ok());
  std::ifstream a(path, std::ios::binary), b(again, std::ios::binary);
  CHECK(std::string(std::istreambuf_iterator<char>(a), {}) == std::string(std::istreambuf_iterator<char>(b), {}));
}

TEST_CASE("looking at an image allocates nothing after preparation") {
  const auto count = [](const auto& detector, int threads) {
    auto workspace = detector.make_workspace(threads);
    const Image good = tiny_picture(1), bad = tiny_picture(2, true, 90, 61);
    (void)detector.inspect(good, workspace);
    const std::int64_t before = allocation_count();
    float sum = 0.0f;
    for (int i = 0; i < 3; ++i) {
      sum += detector.inspect(good, workspace)->score;
      sum += detector.inspect(bad, workspace)->score;
    }
    CHECK(sum > 0.0f);
    return allocation_count() - before;
  };
  for (const int threads : {1, 2}) {
    CAPTURE(threads);
    CHECK(count(fitted<Core>(), threads) == 0);
    CHECK(count(fitted<Gauss>(), threads) == 0);
    CHECK(count(fitted<Gallery>(), threads) == 0);
  }
}

TEST_CASE("a detector runs from memory that the caller owns, and refuses too little of it") {
  const Core detector = fitted<Core>();
  alignas(kAlignment) static std::byte memory[Core::workspace_bytes()];
  auto workspace = detector.make_workspace(std::span(memory));
  REQUIRE(workspace.ok());
  CHECK(detector.inspect(tiny_picture(3), *workspace)->score == answer(detector, tiny_picture(3)).back());
  CHECK(detector.make_workspace(std::span(memory).first(1000)).code() == Errc::out_of_memory);
  CHECK(detector.make_workspace(std::span(memory).subspan(8)).code() == Errc::invalid_argument);
  Workspace<Cpu<>> too_small(1024, 1, nullptr);
  CHECK(detector.inspect(tiny_picture(3), too_small).code() == Errc::out_of_memory);
  // No number of threads given means all of them, and memory for all of them.
  const auto all = detector.make_workspace(0);
  CHECK(all.bytes() >= Core::workspace_bytes(detector.settings(), all.threads()));
  Buffer<std::byte> large(static_cast<std::int64_t>(all.bytes()));
  const auto given = detector.make_workspace(large.span(), 0);
  REQUIRE(given.ok());
  CHECK(given->threads() == all.threads());
}

TEST_CASE("a verdict outlives its workspace") {
  const Core detector = fitted<Core>();
  const auto look = [&]() -> Result<Verdict> {
    auto workspace = detector.make_workspace();
    return detector.inspect(tiny_picture(4, true), workspace);
  };
  const auto verdict = look();
  REQUIRE(verdict.ok());
  CHECK(*std::max_element(verdict->map.data, verdict->map.data + verdict->map.count()) > 0.0f);
}

TEST_CASE_TEMPLATE("a fit spread over two halves answers like one fit", D, Core, Gauss, Gallery) {
  auto left = D::create(tiny_weights(), small_settings<D>());
  auto right = D::create(tiny_weights(), small_settings<D>());
  REQUIRE(left->observe(TinySource{.count = 7, .first = 0}).ok());
  REQUIRE(right->observe(TinySource{.count = 5, .first = 7}).ok());
  REQUIRE(left->merge(std::move(*right)).ok());
  REQUIRE(left->finish().ok());
  const auto merged = answer(*left, tiny_picture(202, true));
  const auto whole = answer(fitted<D>(), tiny_picture(202, true));
  REQUIRE(merged.size() == whole.size());
  // Sums of halves round differently from one sum; a thousandth is far above that and far below a changed result.
  for (std::size_t i = 0; i < whole.size(); ++i) CHECK(std::abs(merged[i] - whole[i]) <= 1e-3f * (1.0f + std::abs(whole[i])));
  CHECK(left->provenance().images == 12);
}

TEST_CASE("after a merge a row of the bank still names the image it comes from") {
  Core::Settings settings = small_settings<Core>();
  settings.estimator.size.coreset_ratio = 1.0;
  auto left = Core::create(tiny_weights(), settings);
  auto right = Core::create(tiny_weights(), settings);
  REQUIRE(left->observe(TinySource{.count = 3, .first = 0}).ok());
  REQUIRE(right->observe(TinySource{.count = 2, .first = 50}).ok());
  REQUIRE(left->merge(std::move(*right)).ok());
  REQUIRE(left->finish().ok());
  std::vector<int> rows(5, 0);
  for (const auto& origin : left->estimator().provenance()) ++rows[static_cast<std::size_t>(origin.image)];
  for (const int count : rows) CHECK(count == 64);  // the grid of level1 has 8 x 8 positions
  CHECK(left->image_names()[3] == "picture50.png");
}

TEST_CASE("parts of other weights or settings are not merged") {
  auto here = Core::create(tiny_weights(1), small_settings<Core>());
  auto other_weights = Core::create(tiny_weights(2), small_settings<Core>());
  auto settings = small_settings<Core>();
  settings.backbone.preprocess.mean[0] = 1.0f;
  auto other_settings = Core::create(tiny_weights(1), settings);
  REQUIRE(here->observe(TinySource{.count = 2}).ok());
  REQUIRE(other_weights->observe(TinySource{.count = 2}).ok());
  REQUIRE(other_settings->observe(TinySource{.count = 2}).ok());
  CHECK(here->merge(std::move(*other_weights)).message().find("weights") != std::string::npos);
  CHECK(here->merge(std::move(*other_settings)).message().find("settings") != std::string::npos);
}

TEST_CASE("a threshold set by hand must be a number") {
  Core detector = fitted<Core>();
  CHECK(detector.set_threshold(std::numeric_limits<double>::quiet_NaN()).code() == Errc::invalid_argument);
  CHECK(!detector.calibration());
  REQUIRE(detector.set_threshold(0.0).ok());
  auto workspace = detector.make_workspace();
  CHECK(detector.inspect(tiny_picture(6, true), workspace)->label == Label::anomalous);
}

TEST_CASE("a detector is moved, not copied") {
  CHECK(!std::is_copy_constructible_v<Core>);
  CHECK(!std::is_copy_constructible_v<Gallery>);
  Core first = fitted<Core>();
  const auto before = answer(first, tiny_picture(9, true));
  const Core second = std::move(first);
  CHECK(answer(second, tiny_picture(9, true)) == before);
}

TEST_CASE("files that carry a valid seal are still not believed") {
  const Core detector = fitted<Core>();
  const auto bytes = detector.save_bytes();
  REQUIRE(bytes.ok());
  const auto file = io::Weights::from_bytes(std::span<const std::byte>(*bytes), "good.norma");
  REQUIRE(file.ok());
  const auto resealed = [&](auto change_metadata, auto change_tensor) {
    io::TensorFileWriter writer;
    for (const auto& [key, value] : file->metadata()) {
      if (key != "digest") REQUIRE(writer.set_metadata(key, change_metadata(key, std::string(value))).ok());
    }
    for (const auto& tensor : file->tensors()) {
      std::vector<std::byte> copy(tensor.bytes.begin(), tensor.bytes.end());
      change_tensor(tensor.name, copy);
      REQUIRE(writer.add(tensor.name, tensor.dtype, tensor.shape, copy).ok());
    }
    auto changed = writer.to_sealed_bytes();
    REQUIRE(changed.ok());
    return Core::open_bytes(*changed).status();
  };
  const auto same = [](std::string_view, std::string value) { return value; };
  const auto untouched = [](std::string_view, std::vector<std::byte>&) {};
  CHECK(resealed(same, untouched).ok());
  const auto put = [](std::vector<std::byte>& bytes_of, auto value) { std::memcpy(bytes_of.data(), &value, sizeof value); };
  CHECK(resealed(same, [&](std::string_view name, auto& b) { if (name == "estimator.bank") put(b, std::numeric_limits<float>::quiet_NaN()); }).code() == Errc::not_finite);
  CHECK(resealed(same, [&](std::string_view name, auto& b) { if (name == "estimator.provenance") put(b, std::int32_t{-1}); }).code() == Errc::corrupt);
  const auto with_settings = [&](const std::string& text) {
    return resealed([&](std::string_view key, std::string value) { return key == "norma.settings" ? text : value; }, untouched);
  };
  CHECK(!with_settings("[1]").ok());
  CHECK(!with_settings("").ok());
  CHECK(!with_settings(R"({"height": 100000000, "width": 100000000, "resize": 0})").ok());
  CHECK(!with_settings(R"({"sigma": 1e300})").ok());
  CHECK(!with_settings(R"({"num_neighbours": -4})").ok());
  CHECK(!with_settings(R"({"unheard_of": 1})").ok());
}

TEST_CASE("a fitted detector takes no further observations in parts") {
  Core detector = fitted<Core>();
  const auto before = answer(detector, tiny_picture(1));
  CHECK(detector.observe(TinySource{}).code() == Errc::invalid_argument);
  CHECK(detector.finish().code() == Errc::invalid_argument);
  CHECK(detector.merge(fitted<Core>()).code() == Errc::invalid_argument);
  CHECK(answer(detector, tiny_picture(1)) == before);
}

TEST_CASE("a seed of 64 bits survives the file") {
  const Core detector = fitted<Core>({.seed = 0xffff'ffff'ffff'fff1u});
  const auto bytes = detector.save_bytes();
  REQUIRE(bytes.ok());
  const auto opened = Core::open_bytes(*bytes);
  REQUIRE(opened.ok());
  CHECK(opened->provenance().seed == 0xffff'ffff'ffff'fff1u);
}

TEST_CASE("calibration refuses too few images and keeps what it promised") {
  Core detector = fitted<Core>();
  const Status refused = detector.calibrate(TinySource{.count = 20, .first = 400}, {.false_reject_rate = 0.01});
  CHECK(refused.code() == Errc::not_enough_data);
  CHECK(refused.message().find("99") != std::string::npos);
  CHECK(!detector.calibration());
  REQUIRE(detector.calibrate(TinySource{.count = 20, .first = 400}, {.false_reject_rate = 0.1}).ok());
  auto workspace = detector.make_workspace();
  CHECK(detector.inspect(tiny_picture(6, true), workspace)->label == Label::anomalous);
  int rejected = 0;
  for (std::uint64_t i = 400; i < 420; ++i) rejected += detector.inspect(tiny_picture(i), workspace)->label == Label::anomalous ? 1 : 0;
  CHECK(rejected <= 2);
}

TEST_CASE("broken training images stop the fit by name, or are listed and left out") {
  auto detector = Core::create(tiny_weights(), small_settings<Core>());
  const Status stopped = detector->fit(TinySource{.broken = 4});
  CHECK(stopped.code() == Errc::corrupt);
  CHECK(stopped.message().find("picture4.png") != std::string::npos);
  CHECK(!detector->fitted());
  std::vector<SkippedImage> skipped;
  REQUIRE(detector->fit(TinySource{.broken = 4}, {.skipped = &skipped}).ok());
  REQUIRE(skipped.size() == 1);
  CHECK(skipped[0].name == "folder/picture4.png");
  CHECK(detector->provenance().images == 11);
}

TEST_CASE("a failed or cancelled fit leaves the detector as it was") {
  Core detector = fitted<Core>();
  const auto before = answer(detector, tiny_picture(203));
  CHECK(detector.fit(TinySource{.broken = 11}).code() == Errc::corrupt);
  CHECK(answer(detector, tiny_picture(203)) == before);
  std::atomic<bool> cancel = true;
  FitOptions options;
  options.observer.cancel = &cancel;
  CHECK(detector.fit(TinySource{}, options).code() == Errc::cancelled);
  CHECK(answer(detector, tiny_picture(203)) == before);
  CHECK(detector.fit(TinySource{.count = 0}).code() == Errc::not_enough_data);
}

TEST_CASE("an empty detector says what to do") {
  auto detector = Core::create(tiny_weights(), small_settings<Core>());
  REQUIRE(detector.ok());
  auto workspace = detector->make_workspace();
  CHECK(detector->inspect(tiny_picture(1), workspace).code() == Errc::not_fitted);
  CHECK(detector->save("/nonexistent/model.norma").code() == Errc::not_fitted);
  CHECK(detector->calibrate(TinySource{}).code() == Errc::not_fitted);
  CHECK(detector->self_test().code() == Errc::not_fitted);
}

TEST_CASE("settings that cannot be are refused in one sentence") {
  const auto refused = [](auto change) {
    Core::Settings settings = small_settings<Core>();
    change(settings);
    return Core::create(tiny_weights(), settings).status();
  };
  CHECK(refused([](auto& s) { s.backbone.layers = Layers{"level7"}; }).code() == Errc::not_found);
  CHECK(refused([](auto& s) { s.backbone.layers = {}; }).code() == Errc::invalid_argument);
  CHECK(refused([](auto& s) { s.backbone.preprocess.height = 0; }).code() == Errc::invalid_argument);
  CHECK(refused([](auto& s) { s.backbone.embedding.neighbourhood = 2; }).code() == Errc::invalid_argument);
  CHECK(refused([](auto& s) { s.metric.num_neighbours = 0; }).code() == Errc::invalid_argument);
  CHECK(refused([](auto& s) { s.metric.map.sigma = std::numeric_limits<double>::quiet_NaN(); }).code() == Errc::invalid_argument);
  CHECK(refused([](auto& s) { s.estimator.size.coreset_ratio = 0.0; }).code() == Errc::invalid_argument);
  Gauss::Settings gauss;
  gauss.backbone.embedding.feature_dims = 25;  // of 24 channels
  CHECK(Gauss::create(tiny_weights(), gauss).code() == Errc::invalid_argument);
}

TEST_CASE("weights that are not finite never become a normal score") {
  const auto bytes = tiny_weight_bytes(1, std::numeric_limits<float>::quiet_NaN());
  const auto weights = io::Weights::from_bytes(std::span<const std::byte>(bytes), "poisoned.safetensors");
  REQUIRE(weights.ok());
  const auto detector = Core::create(*weights, small_settings<Core>());
  CHECK(detector.code() == Errc::not_finite);
  CHECK(detector.message().find("poisoned.safetensors") != std::string::npos);
}

TEST_CASE("frames of any format and size are looked at; frames that cannot be are refused") {
  const Core detector = fitted<Core>();
  auto workspace = detector.make_workspace();
  const Image gray = [] {
    Image image(40, 40, 1);
    for (std::int64_t i = 0; i < image.size_bytes(); ++i) image.data()[i] = static_cast<std::uint8_t>(i % 251);
    return image;
  }();
  CHECK(detector.inspect(gray, workspace).ok());
  CHECK(detector.inspect(tiny_picture(1, false, 1, 1), workspace).ok());
  CHECK(detector.inspect(tiny_picture(1, false, 33, 500), workspace).ok());
  CHECK(detector.inspect(ImageView{}, workspace).code() == Errc::invalid_argument);
  // The bytes of a picture read as BGR are the picture with red and blue exchanged.
  Image picture = tiny_picture(8, true);
  for (std::int64_t i = 0; i < picture.size_bytes(); i += 3) picture.data()[i] = static_cast<std::uint8_t>(picture.data()[i] / 2);
  Image exchanged = picture;
  for (std::int64_t i = 0; i < picture.size_bytes(); i += 3) std::swap(exchanged.data()[i], exchanged.data()[i + 2]);
  ImageView as_bgr = picture.view();
  as_bgr.format = PixelFormat::bgr8;
  const float exchanged_score = detector.inspect(exchanged, workspace)->score;
  CHECK(detector.inspect(as_bgr, workspace)->score == exchanged_score);
  CHECK(detector.inspect(picture, workspace)->score != exchanged_score);
}

TEST_CASE("model files: another type, a plain weight file, a missing file, a truncated file and a flipped byte are refused by name") {
  const TemporaryFolder folder;
  const std::string path = (folder.path() / "model.norma").string();
  REQUIRE(fitted<Core>().save(path).ok());
  const auto other = Gauss::open(path);
  CHECK(other.code() == Errc::wrong_type);
  CHECK(other.message().find(path) != std::string::npos);
  CHECK(other.message().find("memory_bank") != std::string::npos);
  CHECK(Core::open((folder.path() / "absent.norma").string()).code() == Errc::not_found);
  CHECK(Core::open(tiny_weights()).code() == Errc::wrong_type);

  std::ifstream in(path, std::ios::binary);
  const std::string good((std::istreambuf_iterator<char>(in)), {});
  const auto opens = [](const std::string& bytes) { return Core::open_bytes(std::as_bytes(std::span(bytes))); };
  REQUIRE(opens(good).ok());
  for (const std::size_t cut : {std::size_t{0}, std::size_t{7}, std::size_t{100}, good.size() / 2, good.size() - 1}) {
    CAPTURE(cut);
    CHECK(!opens(good.substr(0, cut)).ok());
  }
  for (std::size_t at = 0; at < good.size(); at += 1 + good.size() / 300) {
    CAPTURE(at);
    std::string flipped = good;
    flipped[at] = static_cast<char>(flipped[at] ^ 0x10);
    CHECK(!opens(flipped).ok());
  }
}

TEST_CASE("saving to a place that cannot be written leaves the old file alone") {
  const TemporaryFolder folder;
  const Core detector = fitted<Core>();
  CHECK(!detector.save((folder.path() / "no_such_folder" / "model.norma").string()).ok());
  const std::string path = (folder.path() / "model.norma").string();
  REQUIRE(detector.save(path).ok());
  std::filesystem::create_directory(folder.path() / "directory.norma");
  CHECK(!detector.save((folder.path() / "directory.norma").string()).ok());
  int files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder.path())) ++files;
  CHECK(files == 2);
}

TEST_CASE("a bare network composes as the usual patches of that network") {
  using Composed = Detector<TinyNetwork, MemoryBank<GreedyKCenter, ExactSearch>, NearestDistance<Reweighted>>;
  CHECK(std::is_same_v<Composed::Backbone, Core::Backbone>);
  using Unweighted = Detector<TinyNetwork, MemoryBank<KeepAll>, NearestDistance<Plain>>;
  auto detector = Unweighted::create(tiny_weights());
  REQUIRE(detector.ok());
  REQUIRE(detector->fit(TinySource{}).ok());
  // With every patch kept, a training picture is at distance 0 everywhere.
  const auto zero = answer(*detector, tiny_picture(0));
  CHECK(*std::max_element(zero.begin(), zero.end()) == 0.0f);
}

}  // namespace
