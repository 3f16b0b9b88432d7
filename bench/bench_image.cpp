// Pixels in and out: decoding, resizing, preprocessing, smoothing, going back to the frame. A generated frame of 900 x 900, as MVTec AD
// has. Results are checked once before timing. `bytes_per_second` counts the frame's bytes (or the map's).
#include <cmath>
#include <cstdlib>
#include <vector>

#include <benchmark/benchmark.h>

#include <norma/core/random.hpp>
#include <norma/image/decode.hpp>
#include <norma/image/encode.hpp>
#include <norma/image/gaussian.hpp>
#include <norma/image/overlay.hpp>
#include <norma/image/preprocess.hpp>

using namespace norma;

namespace {

constexpr std::int64_t kSide = 900;

// Something that compresses like a photograph: waves with a little noise.
Image frame_of(std::int64_t channels) {
  Image image(kSide, kSide, channels);
  Random random(1);
  for (std::int64_t y = 0; y < kSide; ++y) {
    for (std::int64_t x = 0; x < kSide; ++x) {
      for (std::int64_t c = 0; c < channels; ++c) {
        const double wave = 128.0 + 80.0 * std::sin(0.02 * static_cast<double>(x + 40 * c)) * std::cos(0.013 * static_cast<double>(y));
        image(y, x, c) = static_cast<std::uint8_t>(wave + static_cast<double>(random.bits() >> 29));
      }
    }
  }
  return image;
}

Map<float> spotted_map(std::int64_t side) {
  Map<float> map(side, side);
  for (std::int64_t i = 0; i < side * side; ++i) map.data()[i] = static_cast<float>((i * 7919) % 1000) * 1e-3f;
  return map;
}

void count(benchmark::State& state, std::int64_t bytes) { state.SetBytesProcessed(state.iterations() * bytes); }

void decode_png(benchmark::State& state) {
  const Image image = frame_of(state.range(0));
  const auto png = image::encode_png(image.view());
  const auto check = image::decode(*png, "generated");
  if (!check || !std::equal(check->data(), check->data() + check->size_bytes(), image.data()))
    return state.SkipWithError("the round trip differs");
  for (auto _ : state) benchmark::DoNotOptimize(image::decode(*png, "generated"));
  count(state, image.size_bytes());
}
BENCHMARK(decode_png)->ArgName("channels")->Arg(1)->Arg(3)->Unit(benchmark::kMillisecond);

// A file of yours: NORMA_BENCH_PHOTO=photo.jpg bench_image --benchmark_filter=photo
void decode_photo(benchmark::State& state) {
  const char* path = std::getenv("NORMA_BENCH_PHOTO");
  if (path == nullptr) return state.SkipWithError("NORMA_BENCH_PHOTO names no file");
  const auto bytes = io::read_file(path);
  if (!bytes) return state.SkipWithError(bytes.message().c_str());
  const auto check = image::decode(*bytes, path);
  if (!check) return state.SkipWithError(check.message().c_str());
  for (auto _ : state) benchmark::DoNotOptimize(image::decode(*bytes, path));
  count(state, check->size_bytes());
}
BENCHMARK(decode_photo)->Unit(benchmark::kMillisecond);

void encode_png(benchmark::State& state) {
  const Image image = frame_of(3);
  for (auto _ : state) benchmark::DoNotOptimize(image::encode_png(image.view()));
  count(state, image.size_bytes());
}
BENCHMARK(encode_png)->Unit(benchmark::kMillisecond);

void resize(benchmark::State& state) {
  const Image image = frame_of(3);
  const auto kind = static_cast<Interpolation>(state.range(0));
  state.SetLabel(std::string(to_string(kind)));
  for (auto _ : state) benchmark::DoNotOptimize(image::resize(image, 256, 256, kind));
  count(state, image.size_bytes());
}
BENCHMARK(resize)->ArgName("interpolation")->DenseRange(0, 5)->Unit(benchmark::kMicrosecond);

void preprocess_with(benchmark::State& state, PixelFormat format, Interpolation kind) {
  const Image image = frame_of(colour_channels(format));
  std::vector<std::uint8_t> memory(static_cast<std::size_t>(kSide * kSide * bytes_per_pixel(format)));
  const ImageView frame = image::view(memory.data(), kSide, kSide, kSide * bytes_per_pixel(format), format);
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = image.data()[i % static_cast<std::size_t>(image.size_bytes())];
  const Preprocess settings{.interpolation = kind};
  Buffer<std::byte> scratch(static_cast<std::int64_t>(image::preprocess_scratch_bytes(settings)));
  Arena arena(scratch.span());
  Tensor<float> out(1, settings.height, settings.width, 3);
  if (const Status status = image::preprocess(settings, frame, out.view(), arena); !status)
    return state.SkipWithError(status.message().c_str());
  const auto whole = image::resize(frame, 256, 256, kind);
  const float want = (static_cast<float>((*whole)(16, 16, 0)) - settings.mean[0]) / settings.stddev[0];
  if (out.data()[0] != want) return state.SkipWithError("the first pixel differs from the whole image resized and cropped");
  state.SetLabel(std::string(to_string(format)) + " " + std::string(to_string(kind)));
  for (auto _ : state) {
    benchmark::DoNotOptimize(image::preprocess(settings, frame, out.view(), arena));
    benchmark::ClobberMemory();
  }
  count(state, static_cast<std::int64_t>(memory.size()));
}

void preprocess_interpolation(benchmark::State& state) {
  preprocess_with(state, PixelFormat::rgb8, static_cast<Interpolation>(state.range(0)));
}
BENCHMARK(preprocess_interpolation)->ArgName("interpolation")->DenseRange(0, 5)->Unit(benchmark::kMicrosecond);

void preprocess_format(benchmark::State& state) {
  preprocess_with(state, static_cast<PixelFormat>(state.range(0)), Interpolation::pillow_bilinear);
}
BENCHMARK(preprocess_format)->ArgName("format")->DenseRange(0, 7)->Unit(benchmark::kMicrosecond);

void gaussian(benchmark::State& state) {
  const std::int64_t side = state.range(0);
  const Map<float> map = spotted_map(side);
  Map<float> out(side, side);
  Buffer<std::byte> scratch(static_cast<std::int64_t>(image::gaussian_scratch_bytes<float>(side, side, 4.0)));
  Arena arena(scratch.span());
  for (auto _ : state) {
    benchmark::DoNotOptimize(image::gaussian_filter(map.view(), out.view(), 4.0, arena));
    benchmark::ClobberMemory();
  }
  double before = 0, after = 0;  // smoothing with a reflected border moves the mean by what crosses the edges only
  for (std::int64_t i = 0; i < side * side; ++i) before += map.data()[i], after += out.data()[i];
  if (!(std::abs(before - after) <= 0.02 * before)) state.SkipWithError("the mean has moved");
  count(state, side * side * 4);
}
BENCHMARK(gaussian)->ArgName("side")->Arg(224)->Arg(900)->Unit(benchmark::kMicrosecond);

void map_to_original(benchmark::State& state) {
  const Map<float> map = spotted_map(224);
  Map<float> out(kSide, kSide);
  for (auto _ : state) {
    benchmark::DoNotOptimize(image::map_to_original(map.view(), Preprocess{}, out.view()));
    benchmark::ClobberMemory();
  }
  count(state, kSide * kSide * 4);
}
BENCHMARK(map_to_original)->Unit(benchmark::kMicrosecond);

void overlay(benchmark::State& state) {
  const Image image = frame_of(3);
  const auto map = image::map_to_original(spotted_map(28).view(), Preprocess{}, kSide, kSide);
  for (auto _ : state) benchmark::DoNotOptimize(image::overlay(image.view(), map->view(), {.threshold = 0.8f}));
  count(state, image.size_bytes());
}
BENCHMARK(overlay)->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
