/// \file
/// Batch norm while training, and the gradients of batch, layer and instance norm.
/// Source:      Ioffe and Szegedy, "Batch normalization", ICML 2015; the running variance takes the unbiased estimate, as PyTorch's.
/// Accuracy:    sums over positions in float within a piece, in double over the pieces; variances are two-pass.
/// Determinism: bit-equal for any number of workers.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include <norma/nn/kernels/elementwise_backward.hpp>

namespace norma::nn {

/// What a normalisation did, one pair a channel: xhat = (x - mean) inverse.
struct NormStatistics {
  float* mean = nullptr;
  float* inverse = nullptr;  ///< 1 / sqrt(variance + epsilon)
};

/// Scratch of the functions below; of the gradients twice as much is used as of the statistics.
constexpr std::size_t norm_scratch_bytes(std::int64_t channels) noexcept {
  return detail::sums_scratch_bytes(channels, 2) + 4 * arena_bytes<float>(channels) + arena_bytes<double>(channels);
}

/// Mean and population variance over all positions of the batch into `statistics`; the running ones move towards them by `momentum`, the
/// variance by its unbiased estimate (by the population one where there is only one position). Running ones may be null.
inline void batch_statistics(TensorView<const float> x, float epsilon, float momentum, float* running_mean, float* running_variance,
                             const NormStatistics& statistics, Parallel parallel, Arena& arena, InstructionSet set = instruction_set()) {
  const auto& kernels = detail::elementwise_kernels(set);
  const std::int64_t positions = x.batch * x.height * x.width, channels = x.channels;
  const auto count = static_cast<double>(positions);
  const auto moments = [&](const float* mean, auto&& total) {
    detail::sum_over_positions(
        positions, channels, 1, parallel, arena,
        [&](std::int64_t first, std::int64_t rows, float* sums) {
          kernels.sum_positions(x.data + first * channels, rows, channels, channels, mean, sums);
        },
        total);
  };
  const auto move = [&](float& running, double now) {
    running =
        static_cast<float>((1.0 - static_cast<double>(momentum)) * static_cast<double>(running) + static_cast<double>(momentum) * now);
  };
  moments(nullptr, [&](std::int64_t c, int, double sum) {
    statistics.mean[c] = static_cast<float>(sum / count);
    if (running_mean != nullptr) move(running_mean[c], sum / count);
  });
  moments(statistics.mean, [&](std::int64_t c, int, double sum) {
    statistics.inverse[c] = static_cast<float>(1.0 / std::sqrt(sum / count + static_cast<double>(epsilon)));
    if (running_variance != nullptr) move(running_variance[c], positions > 1 ? sum / (count - 1.0) : sum);
  });
}

/// The running ones instead.
inline void running_statistics(const float* running_mean, const float* running_variance, std::int64_t channels, float epsilon,
                               const NormStatistics& statistics) noexcept {
  for (std::int64_t c = 0; c < channels; ++c) {
    statistics.mean[c] = running_mean[c];
    statistics.inverse[c] = static_cast<float>(1.0 / std::sqrt(static_cast<double>(running_variance[c]) + static_cast<double>(epsilon)));
  }
}

/// y = activation(gamma (x - mean) inverse + beta); y may be x.
inline void normalise(TensorView<const float> x, const NormStatistics& statistics, const float* gamma, const float* beta,
                      Activation activation, TensorView<float> y, Parallel parallel, Arena& arena, InstructionSet set = instruction_set()) {
  const std::int64_t channels = x.channels;
  const Arena::Scope scope(arena);
  float* scale = arena.take<float>(channels);
  float* shift = arena.take<float>(channels);
  for (std::int64_t c = 0; c < channels; ++c) {
    const double factor = static_cast<double>(gamma[c]) * static_cast<double>(statistics.inverse[c]);
    scale[c] = static_cast<float>(factor);
    shift[c] = static_cast<float>(static_cast<double>(beta[c]) - factor * static_cast<double>(statistics.mean[c]));
  }
  scale_channels(x, scale, shift, activation, y, parallel, set);
}

/// Whether the statistics came from the batch itself, and so carry gradients too.
enum class StatisticsFrom : std::uint8_t { batch, running };

/// Gradients of gamma (x - mean) inverse + beta over the batch. dgamma and dbeta [C] are added to (both null: not wanted); dx (+)= unless
/// its data is null; dx may be dy (with `Accumulate::no`).
inline void batch_norm_gradient(TensorView<const float> dy, TensorView<const float> x, const NormStatistics& statistics, const float* gamma,
                                StatisticsFrom from, float* dgamma, float* dbeta, TensorView<float> dx, Accumulate accumulate,
                                Parallel parallel, Arena& arena, InstructionSet set = instruction_set()) {
  const auto& kernels = detail::backward_kernels(set);
  const std::int64_t positions = dy.batch * dy.height * dy.width, channels = dy.channels;
  const auto count = static_cast<double>(positions);
  const Arena::Scope scope(arena);
  float* a = arena.take<float>(channels);
  float* b = arena.take<float>(channels);
  float* d = arena.take<float>(channels);
  const bool sums_wanted = dgamma != nullptr || from == StatisticsFrom::batch;
  for (std::int64_t c = 0; c < channels; ++c) {
    a[c] = static_cast<float>(static_cast<double>(gamma[c]) * static_cast<double>(statistics.inverse[c]));
    b[c] = d[c] = 0.0f;
  }
  if (sums_wanted) {
    detail::sum_over_positions(
        positions, channels, 2, parallel, arena,
        [&](std::int64_t first, std::int64_t rows, float* sums) {
          kernels.sum_gradients(dy.data + first * channels, x.data + first * channels, rows, channels, channels, channels, statistics.mean,
                                sums, sums + channels);
        },
        [&](std::int64_t c, int q, double sum) {
          const double inverse = static_cast<double>(statistics.inverse[c]), factor = static_cast<double>(gamma[c]) * inverse;
          if (q == 0) {
            if (dbeta != nullptr) dbeta[c] += static_cast<float>(sum);
            if (from == StatisticsFrom::batch) d[c] = static_cast<float>(-factor * sum / count);
          } else {
            if (dgamma != nullptr) dgamma[c] += static_cast<float>(sum * inverse);
            if (from == StatisticsFrom::batch) b[c] = static_cast<float>(-factor * inverse * inverse * sum / count);
          }
        });
  }
  if (dx.data == nullptr) return;
  parallel.run_ranges(positions, detail::positions_of_a_piece(positions, channels), [&](std::int64_t first, std::int64_t last, int) {
    const std::int64_t at = first * channels;
    kernels.apply_gradients(dy.data + at, x.data + at, last - first, channels, statistics.mean, a, b, d, dx.data + at,
                            accumulate == Accumulate::yes);
  });
}

/// Gradient of `instance_norm`: xhat over the positions of each image and channel. dx (+)=; dx may be dy (with `Accumulate::no`).
inline void instance_norm_gradient(TensorView<const float> dy, TensorView<const float> x, float epsilon, TensorView<float> dx,
                                   Accumulate accumulate, Parallel parallel, Arena& arena, InstructionSet set = instruction_set()) {
  const std::int64_t channels = x.channels;
  const Arena::Scope scope(arena);
  float* ones = arena.take<float>(channels);
  const NormStatistics statistics{arena.take<float>(channels), arena.take<float>(channels)};
  std::fill(ones, ones + channels, 1.0f);
  for (std::int64_t n = 0; n < x.batch; ++n) {
    batch_statistics(x.image(n), epsilon, 0.0f, nullptr, nullptr, statistics, parallel, arena, set);
    batch_norm_gradient(dy.image(n), x.image(n), statistics, ones, StatisticsFrom::batch, nullptr, nullptr, dx.image(n), accumulate,
                        parallel, arena, set);
  }
}
constexpr std::size_t instance_norm_scratch_bytes(std::int64_t channels) noexcept {
  return norm_scratch_bytes(channels) + 3 * arena_bytes<float>(channels);
}

/// Scratch of `layer_norm_gradient`.
constexpr std::size_t layer_norm_gradient_scratch_bytes(std::int64_t channels, int workers) noexcept {
  return detail::sums_scratch_bytes(channels, 2) + static_cast<std::size_t>(workers) * arena_bytes<float>(channels);
}

/// Gradients of layer norm over the channels of each position. dgamma and dbeta [C] are added to (both null: not wanted); dx (+)= unless
/// its data is null; dx may be dy (with `Accumulate::no`). Means over channels are in double.
inline void layer_norm_gradient(TensorView<const float> dy, TensorView<const float> x, const float* gamma, float epsilon, float* dgamma,
                                float* dbeta, TensorView<float> dx, Accumulate accumulate, Parallel parallel, Arena& arena) {
  const std::int64_t positions = dy.batch * dy.height * dy.width, channels = dy.channels;
  const auto count = static_cast<double>(channels);
  struct Row {
    double mean, inverse;
  };
  const auto statistics = [&](const float* row) {
    double sum = 0.0, squares = 0.0;
    for (std::int64_t c = 0; c < channels; ++c) sum += static_cast<double>(row[c]);
    const double mean = sum / count;
    for (std::int64_t c = 0; c < channels; ++c) {
      const double d = static_cast<double>(row[c]) - mean;
      squares += d * d;
    }
    return Row{mean, 1.0 / std::sqrt(squares / count + static_cast<double>(epsilon))};
  };
  if (dgamma != nullptr) {
    detail::sum_over_positions(
        positions, channels, 2, parallel, arena,
        [&](std::int64_t first, std::int64_t rows, float* sums) {
          std::fill(sums, sums + 2 * channels, 0.0f);
          for (std::int64_t i = first; i < first + rows; ++i) {
            const float* g = dy.data + i * channels;
            const float* v = x.data + i * channels;
            const Row row = statistics(v);
            for (std::int64_t c = 0; c < channels; ++c) {
              sums[c] += g[c];
              sums[channels + c] += g[c] * static_cast<float>((static_cast<double>(v[c]) - row.mean) * row.inverse);
            }
          }
        },
        [&](std::int64_t c, int q, double sum) { (q == 0 ? dbeta : dgamma)[c] += static_cast<float>(sum); });
  }
  if (dx.data == nullptr) return;
  parallel.run_ranges(positions, 64, [&](std::int64_t first, std::int64_t last, int) {
    for (std::int64_t i = first; i < last; ++i) {
      const float* g = dy.data + i * channels;
      const float* v = x.data + i * channels;
      float* to = dx.data + i * channels;
      const Row row = statistics(v);
      double sum = 0.0, product = 0.0;
      for (std::int64_t c = 0; c < channels; ++c) {
        const double scaled = static_cast<double>(g[c]) * static_cast<double>(gamma[c]);
        sum += scaled;
        product += scaled * (static_cast<double>(v[c]) - row.mean);
      }
      const double shift = sum / count, slope = product * row.inverse * row.inverse / count;
      for (std::int64_t c = 0; c < channels; ++c) {
        const double scaled = static_cast<double>(g[c]) * static_cast<double>(gamma[c]);
        const double d = row.inverse * (scaled - shift - (static_cast<double>(v[c]) - row.mean) * slope);
        to[c] = static_cast<float>(d) + (accumulate == Accumulate::yes ? to[c] : 0.0f);
      }
    }
  });
}

}  // namespace norma::nn
