// One network at three sizes: which pixels it sees, what is written where, and turned views.
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/backbones/alexnet.hpp>
#include <norma/backbones/any_network.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/features/image_scales.hpp>
#include <norma/features/patches.hpp>

#include "support/count_allocations.hpp"
#include "support/tiny_detector.hpp"

using namespace norma;

namespace {

using TinyMaps = ImageScales<test::TinyNetwork, ScaleMaps>;
using TinyPooled = ImageScales<test::TinyNetwork, PooledScales>;
using TinyPatches = Patches<test::TinyNetwork>;

static_assert(Backbone<TinyMaps> && HasViews<TinyMaps> && Backbone<TinyPooled> && HasViews<TinyPooled> && HasViews<TinyPatches>);

template <class B>
B made(const typename B::Settings& settings) {
  auto backbone = B::create(test::tiny_weights(), settings);
  REQUIRE_MESSAGE(backbone.ok(), backbone.message());
  return *std::move(backbone);
}
template <class B>
typename B::Settings small(std::int64_t side) {
  typename B::Settings settings;
  settings.preprocess.resize = 0;
  settings.preprocess.height = settings.preprocess.width = side;
  return settings;
}

using Values = std::vector<std::vector<float>>;

// Runs `look(features, context)` in exactly the memory that the backbone asks for, without allocation.
template <class B, class Look>
Values run(const typename B::Settings& settings, Look&& look, int threads = 1) {
  ThreadPool pool(threads);
  Buffer<std::byte> memory(static_cast<std::int64_t>(B::scratch_bytes(settings, pool.parallel().workers())));
  Arena arena(memory.span());
  Context context{arena, pool.parallel()};
  Features features;
  const std::int64_t before = test::allocation_count();
  const Status status = look(features, context);
  if (threads == 1) CHECK(test::allocation_count() == before);
  REQUIRE_MESSAGE(status.ok(), status.message());
  Values out;
  for (int l = 0; l < features.count; ++l) out.emplace_back(features[l].data, features[l].data + features[l].count());
  return out;
}
template <class B>
Values extract(const B& backbone, const ImageView& frame, int threads = 1) {
  return run<B>(
      backbone.settings(), [&](Features& out, Context& context) { return backbone.extract(frame, out, context); }, threads);
}
template <class B>
Values extract_view(const B& backbone, const Image& prepared, View view) {
  return run<B>(backbone.settings(), [&](Features& out, Context& context) { return backbone.extract_view(prepared.view(), view, out, context); });
}
template <class B>
Image prepare(const B& backbone, const ImageView& frame) {
  Image prepared;
  REQUIRE(backbone.prepare(frame, prepared).ok());
  return prepared;
}

// The layer's map of one picture by an executor of its own.
std::vector<float> map_of(const std::vector<float>& picture, std::int64_t side, std::string_view layer) {
  const std::array<std::string_view, 1> tap{layer};
  const auto executor = nn::Executor::create(test::TinyNetwork::graph(), tap, side, side, test::tiny_weights());
  REQUIRE(executor.ok());
  Buffer<std::byte> memory(static_cast<std::int64_t>(executor->workspace_bytes(1, 1)));
  Arena arena(memory.span());
  TensorView<const float> map;
  REQUIRE(executor->run(TensorView<const float>(picture.data(), 1, side, side, 3), arena, {}, {&map, 1}).ok());
  return {map.data, map.data + map.count()};
}

}  // namespace

TEST_CASE("ImageScales: the published sizes and layers are the defaults") {
  using CsFlow = ImageScales<EfficientNetB5Same, ScaleMaps>;
  const FeatureShapes maps = CsFlow::shapes({});
  REQUIRE(maps.count == 3);
  CHECK(maps[0] == Shape{24, 24, 304});
  CHECK(maps[1] == Shape{12, 12, 304});
  CHECK(maps[2] == Shape{6, 6, 304});
  CHECK(CsFlow::input_shape({}) == Shape{768, 768, 1});
  CHECK(CsFlow::type_name({}) == "image_scales<efficientnet_b5_same,maps>");

  using Differ = ImageScales<AlexNet, PooledScales>;
  CHECK(Differ::shapes({})[0] == Shape{64, 1, 768});
  CHECK(Differ::view_shapes({})[0] == Shape{1, 1, 768});
  CHECK(Differ::input_shape({}) == Shape{448, 448, 1});
  CHECK(Differ::Settings{}.layers == Layers("features"));

  const auto any = AnyNetwork::of<AlexNet>();
  REQUIRE(any.ok());
  using Any = ImageScales<AnyNetwork, PooledScales>;
  CHECK(Any::shapes(Any::Settings(*any)) == Differ::shapes({}));
  CHECK(Any::scratch_bytes(Any::Settings(*any), 2) == Differ::scratch_bytes({}, 2));
  CHECK(Any::validate(Any::Settings(*any)).ok());
}

TEST_CASE("ImageScales: the smaller pictures are the even pixels of the normalised one") {
  const auto settings = small<TinyMaps>(128);
  const auto backbone = made<TinyMaps>(settings);
  const Image frame = test::tiny_picture(3, true, 90, 110);
  const Values levels = extract(backbone, frame.view());
  REQUIRE(levels.size() == 3);
  CHECK(extract(backbone, frame.view(), 3) == levels);  // threads change nothing

  std::vector<float> input(128 * 128 * 3);
  Buffer<std::byte> memory(static_cast<std::int64_t>(image::preprocess_scratch_bytes(settings.preprocess, {90, 110})));
  Arena arena(memory.span());
  REQUIRE(image::preprocess(settings.preprocess, frame.view(), TensorView<float>(input.data(), 1, 128, 128, 3), arena).ok());
  for (std::int64_t scale = 0; scale < 3; ++scale) {
    const std::int64_t step = std::int64_t{1} << scale, side = 128 / step;
    std::vector<float> picture;
    for (std::int64_t y = 0; y < side; ++y) {
      for (std::int64_t x = 0; x < side; ++x) {
        for (std::int64_t c = 0; c < 3; ++c) picture.push_back(input[static_cast<std::size_t>((y * step * 128 + x * step) * 3 + c)]);
      }
    }
    CHECK(levels[static_cast<std::size_t>(scale)] == map_of(picture, side, "level2"));
  }
}

TEST_CASE("ImageScales: odd pixels are seen by the large picture only") {
  const auto backbone = made<TinyMaps>(small<TinyMaps>(128));
  const Image even = prepare(backbone, test::tiny_picture(5, false, 128, 128).view());
  Image odd = even, second = even;
  for (std::int64_t y = 0; y < 128; ++y) {
    for (std::int64_t x = 0; x < 128; ++x) {
      if (y % 2 == 1 || x % 2 == 1) odd(y, x, 0) = static_cast<std::uint8_t>(255 - odd(y, x, 0));
      if (y % 4 == 2 && x % 4 == 0) second(y, x, 0) = static_cast<std::uint8_t>(255 - second(y, x, 0));
    }
  }
  const Values a = extract_view(backbone, even, {}), b = extract_view(backbone, odd, {}), c = extract_view(backbone, second, {});
  CHECK(a[0] != b[0]);
  CHECK(a[1] == b[1]);
  CHECK(a[2] == b[2]);
  CHECK(a[1] != c[1]);
  CHECK(a[2] == c[2]);
}

TEST_CASE("ImageScales: a constant image has the same features at all scales, but for the border") {
  const auto backbone = made<TinyMaps>(small<TinyMaps>(256));
  Image flat(50, 50, 3);
  for (std::int64_t i = 0; i < flat.size_bytes(); ++i) flat.data()[i] = static_cast<std::uint8_t>(60 + 40 * (i % 3));
  const Values levels = extract(backbone, flat.view());
  const std::int64_t sides[] = {32, 16, 8};
  for (std::size_t s = 0; s < 3; ++s) {
    const std::int64_t side = sides[s];
    // A position sees 15 pixels; from the second row on none of them is beyond the edge.
    for (std::int64_t y = 2; y < side - 2; ++y) {
      for (std::int64_t x = 2; x < side - 2; ++x) {
        for (std::int64_t c = 0; c < 10; ++c) {
          const float here = levels[s][static_cast<std::size_t>((y * side + x) * 10 + c)];
          const float centre = levels[0][static_cast<std::size_t>((16 * 32 + 16) * 10 + c)];
          // Sums of at most 27, 54 and 72 products in another order: 72 eps of values of a few units.
          CHECK(std::abs(here - centre) <= 1e-4f * (1.0f + std::abs(centre)));
        }
      }
    }
  }
}

TEST_CASE("PooledScales: means of the three maps behind each other, a row for each turn") {
  auto settings = small<TinyPooled>(64);
  settings.layers = Layers("level2");
  settings.scales.rotations = 6;
  const auto backbone = made<TinyPooled>(settings);
  const Image frame = test::tiny_picture(7, true, 70, 64);
  const Values all = extract(backbone, frame.view());
  REQUIRE(all.size() == 1);
  REQUIRE(all[0].size() == 6 * 30);
  CHECK(extract(backbone, frame.view(), 2) == all);
  const Image prepared = prepare(backbone, frame.view());
  for (std::int64_t view = 0; view < 6; ++view) {
    CAPTURE(view);
    const View turned{60.0f * static_cast<float>(view)};
    CHECK(TinyPooled::turn(view, 6) == turned);
    const Values one = extract_view(backbone, prepared, turned);
    CHECK(one[0] == std::vector<float>(all[0].begin() + view * 30, all[0].begin() + (view + 1) * 30));

    const auto rotated = image::rotate(prepared, static_cast<double>(turned.degrees));
    REQUIRE(rotated.ok());
    std::int64_t at = 0;
    for (std::int64_t step = 1; step <= 4; step *= 2) {
      const std::int64_t side = 64 / step;
      std::vector<float> picture;
      for (std::int64_t y = 0; y < side; ++y) {
        for (std::int64_t x = 0; x < side; ++x) {
          for (std::int64_t c = 0; c < 3; ++c) picture.push_back((static_cast<float>((*rotated)(y * step, x * step, c)) - 128.0f) / 64.0f);
        }
      }
      const auto map = map_of(picture, side, "level2");
      const std::int64_t positions = (side / 8) * (side / 8);
      for (std::int64_t c = 0; c < 10; ++c, ++at) {
        double sum = 0.0, size = 0.0;
        for (std::int64_t p = 0; p < positions; ++p) {
          sum += static_cast<double>(map[static_cast<std::size_t>(p * 10 + c)]);
          size += std::abs(static_cast<double>(map[static_cast<std::size_t>(p * 10 + c)]));
        }
        // At most 64 additions and a division in float.
        CHECK(std::abs(static_cast<double>(one[0][static_cast<std::size_t>(at)]) - sum / static_cast<double>(positions)) <=
              65.0 * 6e-8 * size / static_cast<double>(positions));
      }
    }
  }
}

TEST_CASE("a prepared image seen straight has the features of its frame, bit for bit") {
  const Image frame = test::tiny_picture(11, true, 61, 83);
  const auto check = [&](const auto& backbone) {
    for (const PixelFormat format : {PixelFormat::rgb8, PixelFormat::bgr8}) {
      const ImageView view = image::view(frame.data(), 61, 83, 83 * 3, format);
      const Image prepared = prepare(backbone, view);
      CHECK(prepared.channels() == 3);
      CHECK(extract_view(backbone, prepared, View{}) == extract(backbone, view));
      CHECK(extract_view(backbone, prepared, View{20.0f}) != extract(backbone, view));
    }
  };
  check(made<TinyMaps>(small<TinyMaps>(128)));
  check(made<TinyPatches>({}));
  auto bgr = TinyPatches::Settings{};
  bgr.preprocess.order = ChannelOrder::bgr;
  check(made<TinyPatches>(bgr));
  auto one = small<TinyPooled>(32);
  one.scales.rotations = 1;
  check(made<TinyPooled>(one));
}

TEST_CASE("ImageScales: what cannot work is refused in one sentence") {
  auto maps = small<TinyMaps>(128);
  maps.preprocess.width = 256;
  CHECK(TinyMaps::validate(maps).message() == "ImageScales: expected height and width to be equal and a multiple of 128, found 128 x 256");
  CHECK(TinyMaps::validate(small<TinyMaps>(130)).code() == Errc::invalid_argument);
  auto pooled = small<TinyPooled>(30);
  CHECK(TinyPooled::validate(pooled).code() == Errc::invalid_argument);
  pooled = small<TinyPooled>(32);
  pooled.scales.rotations = 0;
  CHECK(TinyPooled::validate(pooled).message() == "PooledScales: expected rotations within 1 and 4096, found 0");
  pooled = small<TinyPooled>(32);
  pooled.layers = Layers("level1", "level2");
  CHECK(TinyPooled::validate(pooled).message() == "ImageScales: expected one layer, found 2");
  pooled.layers = Layers("nowhere");
  CHECK(TinyPooled::validate(pooled).code() == Errc::not_found);
  maps = small<TinyMaps>(128);
  maps.layers = Layers("pool");  // one position at every size
  CHECK(TinyMaps::validate(maps).message() == "ScaleMaps: the layer's map must halve with the picture, found 1 x 1 x 10 and then 1 x 1 x 10");
  const auto poisoned = io::Weights::from_bytes(test::tiny_weight_bytes(1, std::nanf("")), "poisoned");
  REQUIRE(poisoned.ok());
  CHECK(TinyPooled::create(*poisoned, small<TinyPooled>(32)).code() == Errc::not_finite);
  const auto backbone = made<TinyPooled>(small<TinyPooled>(32));
  const Image wrong = test::tiny_picture(1, false, 31, 32);
  Buffer<std::byte> memory(static_cast<std::int64_t>(TinyPooled::scratch_bytes(backbone.settings(), 1)));
  Arena arena(memory.span());
  Context context{arena};
  Features features;
  CHECK(backbone.extract_view(wrong.view(), {}, features, context).code() == Errc::shape_mismatch);
  CHECK(backbone.extract(ImageView{}, features, context).code() == Errc::invalid_argument);
}

TEST_CASE("ImageScales: what save writes is what create reads") {
  const auto settings = small<TinyMaps>(128);
  const auto backbone = made<TinyMaps>(settings);
  io::TensorFileWriter writer;
  REQUIRE(backbone.save(writer).ok());
  auto bytes = writer.to_bytes();
  REQUIRE(bytes.ok());
  const auto file = io::Weights::from_bytes(*std::move(bytes), "model");
  REQUIRE(file.ok());
  CHECK(file->metadata("norma.network") == "tiny");
  const auto again = TinyMaps::create(*file, settings);
  REQUIRE(again.ok());
  const Image frame = test::tiny_picture(2);
  CHECK(extract(*again, frame.view()) == extract(backbone, frame.view()));
}
