// Reading weights: opening a file in memory and converting every tensor to float, hashing, inflating, writing TIFFs.
// Rates are bytes of the stored form a second. Before timing each result is checked once.
#include <benchmark/benchmark.h>

#include <cmath>
#include <string>
#include <vector>

#include <norma/core/random.hpp>
#include <norma/io/inflate.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/io/sha256.hpp>
#include <norma/io/tiff.hpp>
#include <norma/io/torch_checkpoint.hpp>

namespace {

using namespace norma;

constexpr std::int64_t kTensors = 100;
constexpr std::int64_t kElements = 115'200;  // 100 tensors of them: about ResNet-18's first three stages four times over

std::vector<std::byte> weight_file(io::DType dtype) {
  Random random(1);
  std::vector<float> values(static_cast<std::size_t>(kElements));
  io::TensorFileWriter writer;
  const std::int64_t shape[] = {kElements};
  for (std::int64_t i = 0; i < kTensors; ++i) {
    for (float& value : values) value = static_cast<float>(random.uniform(-1.0, 1.0));
    if (!writer.add_converted("layer" + std::to_string(i) + ".weight", dtype, shape, values)) return {};
  }
  auto bytes = writer.to_sealed_bytes();
  return bytes.ok() ? *std::move(bytes) : std::vector<std::byte>();
}

Status convert_all(const std::vector<std::byte>& file, std::vector<float>& out) {
  NORMA_TRY(const auto weights, io::Weights::from_bytes(file));
  for (const io::TensorInfo& tensor : weights.tensors()) NORMA_CHECK(weights.read(tensor.name, tensor.shape, out));
  return {};
}

void open_and_convert(benchmark::State& state, io::DType dtype) {
  const auto file = weight_file(dtype);
  std::vector<float> out(static_cast<std::size_t>(kElements), 9.0f);
  if (const Status status = convert_all(file, out); !status || !(std::abs(out[0]) <= 1.0f)) {
    state.SkipWithError(status.message().c_str());
    return;
  }
  for (auto _ : state) {
    benchmark::DoNotOptimize(convert_all(file, out).ok());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(file.size()));
}
BENCHMARK_CAPTURE(open_and_convert, F32, io::DType::f32)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(open_and_convert, F16, io::DType::f16)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(open_and_convert, BF16, io::DType::bf16)->Unit(benchmark::kMillisecond);

void open_only(benchmark::State& state) {
  const auto file = weight_file(io::DType::f16);
  for (auto _ : state) benchmark::DoNotOptimize(io::Weights::from_bytes(file).ok());
}
BENCHMARK(open_only)->Unit(benchmark::kMicrosecond);

void verify_seal(benchmark::State& state) {
  const auto file = weight_file(io::DType::f16);
  const auto weights = io::Weights::from_bytes(file);
  if (!weights.ok() || !weights->verify_seal()) {
    state.SkipWithError("the seal does not verify");
    return;
  }
  for (auto _ : state) benchmark::DoNotOptimize(weights->verify_seal().ok());
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(file.size()));
}
BENCHMARK(verify_seal)->Unit(benchmark::kMillisecond);

void sha256(benchmark::State& state, void (*blocks)(std::uint32_t*, const std::byte*, std::size_t) noexcept) {
  const std::vector<std::byte> data(std::size_t{1} << 20, std::byte{0x5a});
  std::array<std::uint32_t, 8> a{1, 2, 3, 4, 5, 6, 7, 8}, b = a;
  blocks(a.data(), data.data(), 3);
  io::detail::sha256_blocks_generic(b.data(), data.data(), 3);
  if (a != b) {
    state.SkipWithError("differs from the generic rounds");
    return;
  }
  for (auto _ : state) {
    blocks(a.data(), data.data(), data.size() / 64);
    benchmark::DoNotOptimize(a);
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(data.size()));
}
BENCHMARK_CAPTURE(sha256, generic, io::detail::sha256_blocks_generic)->Unit(benchmark::kMicrosecond);

void crc32(benchmark::State& state) {
  const std::vector<std::byte> data(std::size_t{1} << 20, std::byte{0x5a});
  if (io::crc32(io::as_bytes("123456789")) != 0xcbf43926u) {
    state.SkipWithError("wrong check value");
    return;
  }
  for (auto _ : state) benchmark::DoNotOptimize(io::crc32(data));
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(data.size()));
}
BENCHMARK(crc32)->Unit(benchmark::kMicrosecond);

/// The largest dynamic stream of the test data, 16 KiB of Huffman codes without matches: the slowest kind. The rate is that of the output.
void inflate(benchmark::State& state) {
  const auto file = io::read_file(std::string(NORMA_SOURCE_DIR) + "/tests/data/io/deflate_streams.safetensors");
  if (!file.ok()) {
    state.SkipWithError(file.message().c_str());
    return;
  }
  const auto streams = io::Weights::from_bytes(*file);
  const io::TensorInfo* stream = streams.ok() ? streams->find("huffman.skewed") : nullptr;
  std::vector<std::byte> out(16383);
  if (stream == nullptr || !io::inflate(stream->bytes, out).ok()) {
    state.SkipWithError("the stream does not inflate");
    return;
  }
  for (auto _ : state) benchmark::DoNotOptimize(io::inflate(stream->bytes, out).ok());
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(out.size()));
}
BENCHMARK(inflate)->Unit(benchmark::kMicrosecond);

/// An organised point cloud of 900 x 900 x 3, written and read in memory.
void tiff_round_trip(benchmark::State& state) {
  Tensor<float> image(1, 900, 900, 3);
  for (std::int64_t i = 0; i < image.shape().count(); ++i) image.data()[i] = static_cast<float>(i);
  const auto round_trip = [&]() -> Result<Tensor<float>> {
    NORMA_TRY(const auto bytes, io::tiff_bytes(std::as_const(image).view()));
    return io::read_tiff(bytes, "memory");
  };
  if (const auto once = round_trip(); !once.ok() || once->data()[1234567] != 1234567.0f) {
    state.SkipWithError("the image changed");
    return;
  }
  for (auto _ : state) benchmark::DoNotOptimize(round_trip().ok());
  state.SetBytesProcessed(state.iterations() * image.shape().count() * 4);
}
BENCHMARK(tiff_round_trip)->Unit(benchmark::kMillisecond);

}  // namespace

int main(int argc, char** argv) {
#if NORMA_X86_DISPATCH
  if (io::detail::has_sha_instructions()) {
    benchmark::RegisterBenchmark("sha256/instructions", [](benchmark::State& state) {
      sha256(state, io::detail::sha256_blocks_sha);
    })->Unit(benchmark::kMicrosecond);
  }
#endif
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
