// Runs a planned network once, for tests that compare its outputs.
#pragma once

#include <cmath>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>
#include <norma/core/tensor.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/nn/executor.hpp>

namespace norma::test {

/// The taps of one image, in the order in which they were asked for.
inline std::vector<Tensor<float>> run_backbone(nn::GraphView graph, std::span<const std::string_view> taps, TensorView<const float> input,
                                               const io::Weights& weights, Parallel parallel = {}) {
  auto executor = nn::Executor::create(graph, taps, input.height, input.width, weights);
  INFO(executor.message());
  REQUIRE(executor.ok());
  Buffer<std::byte> memory(static_cast<std::int64_t>(executor->workspace_bytes(input.batch, parallel.workers())));
  Arena arena(memory.span());
  std::vector<TensorView<const float>> views(taps.size());
  const Status status = executor->run(input, arena, parallel, views);
  INFO(status.message());
  REQUIRE(status.ok());
  std::vector<Tensor<float>> outputs;
  for (const auto& view : views) {
    outputs.emplace_back(view.batch, view.shape());
    std::copy_n(view.data, view.count(), outputs.back().data());
  }
  return outputs;
}

/// A stored [1, C, H, W] as [1, H, W, C].
inline Tensor<float> read_channels_first(const io::Weights& file, std::string_view name) {
  const auto info = file.get(name);
  INFO(info.message());
  REQUIRE(info.ok());
  REQUIRE(info->shape.size() == 4);
  REQUIRE(info->shape[0] == 1);
  const std::int64_t channels = info->shape[1], height = info->shape[2], width = info->shape[3];
  std::vector<float> stored(static_cast<std::size_t>(info->count()));
  REQUIRE(file.read(name, info->shape, stored).ok());
  Tensor<float> image(1, height, width, channels);
  for (std::int64_t p = 0; p < height * width; ++p) {
    for (std::int64_t c = 0; c < channels; ++c) image.data()[p * channels + c] = stored[static_cast<std::size_t>(c * height * width + p)];
  }
  return image;
}

/// Norm of the difference over the norm of `want`; NaN where a value is.
inline double relative_error(std::span<const float> got, std::span<const float> want) {
  REQUIRE(got.size() == want.size());
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double d = double{got[i]} - double{want[i]};
    difference += d * d;
    norm += double{want[i]} * want[i];
  }
  return std::sqrt(difference / norm);
}
inline double relative_error(const Tensor<float>& got, const Tensor<float>& want) {
  REQUIRE(got.shape() == want.shape());
  return relative_error({got.data(), static_cast<std::size_t>(got.shape().count())}, {want.data(), static_cast<std::size_t>(want.shape().count())});
}

}  // namespace norma::test
