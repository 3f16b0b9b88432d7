/// \file
/// Losses with their gradients. Each returns its value and writes `weight` times its gradient; a gradient without memory is left out.
/// Values are summed in double, in the order of the elements. NaN in, NaN out.
/// Source: the definitions are PyTorch's where it has the loss.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>

#include <norma/core/arena.hpp>
#include <norma/core/parallel.hpp>
#include <norma/core/view.hpp>

namespace norma::nn {

/// Whether gradients replace what is there or are added to it (several losses of one output).
enum class LossGradient : std::uint8_t { write, add };

namespace detail {
inline void put(float& to, double value, LossGradient how) noexcept {
  to = how == LossGradient::add ? to + static_cast<float>(value) : static_cast<float>(value);
}
}  // namespace detail

/// Mean over all elements of (y - target)^2.
inline double squared_error(std::span<const float> y, std::span<const float> target, double weight, std::span<float> gradient,
                            LossGradient how = LossGradient::write) {
  NORMA_EXPECTS(y.size() == target.size() && (gradient.empty() || gradient.size() == y.size()));
  const auto count = static_cast<double>(y.size());
  double sum = 0.0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double d = static_cast<double>(y[i]) - static_cast<double>(target[i]);
    sum += d * d;
    if (!gradient.empty()) detail::put(gradient[i], weight * 2.0 * d / count, how);
  }
  return sum / count;
}

/// Mean over all elements of |y - target|; gradient 0 where they are equal.
inline double absolute_error(std::span<const float> y, std::span<const float> target, double weight, std::span<float> gradient,
                             LossGradient how = LossGradient::write) {
  NORMA_EXPECTS(y.size() == target.size() && (gradient.empty() || gradient.size() == y.size()));
  const auto count = static_cast<double>(y.size());
  double sum = 0.0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double d = static_cast<double>(y[i]) - static_cast<double>(target[i]);
    sum += std::abs(d);
    if (!gradient.empty()) detail::put(gradient[i], d > 0.0 ? weight / count : d < 0.0 ? -weight / count : d * 0.0, how);
  }
  return sum / count;
}

/// Mean over rows of 1 - <y, target> / (|y| |target|), norms at least 1e-8. The gradient is y's. Reverse distillation takes an image's
/// whole map as one row; per location, rows are `TensorView::patches()`.
inline double cosine_distance(MatrixView<const float> y, MatrixView<const float> target, double weight, MatrixView<float> gradient,
                              LossGradient how = LossGradient::write) {
  NORMA_EXPECTS(y.rows == target.rows && y.cols == target.cols &&
                (gradient.data == nullptr || (gradient.rows == y.rows && gradient.cols == y.cols)));
  constexpr double kSmallest = 1e-8;
  const auto rows = static_cast<double>(y.rows);
  double sum = 0.0;
  for (std::int64_t r = 0; r < y.rows; ++r) {
    double product = 0.0, own = 0.0, other = 0.0;
    for (std::int64_t c = 0; c < y.cols; ++c) {
      const auto a = static_cast<double>(y(r, c)), b = static_cast<double>(target(r, c));
      product += a * b;
      own += a * a;
      other += b * b;
    }
    const bool small = std::sqrt(own) < kSmallest;
    const double a = small ? kSmallest : std::sqrt(own), b = std::max(std::sqrt(other), kSmallest);
    const double cosine = std::isnan(other) ? other : product / (a * b);
    sum += 1.0 - cosine;
    if (gradient.data == nullptr) continue;
    for (std::int64_t c = 0; c < y.cols; ++c) {
      const double d = static_cast<double>(target(r, c)) / (a * b) - (small ? 0.0 : cosine * static_cast<double>(y(r, c)) / (a * a));
      detail::put(gradient(r, c), -weight * d / rows, how);
    }
  }
  return sum / rows;
}

/// Probabilities of each row of logits; `to` may be the logits.
inline void softmax(MatrixView<const float> logits, MatrixView<float> to) {
  NORMA_EXPECTS(logits.rows == to.rows && logits.cols == to.cols);
  for (std::int64_t r = 0; r < logits.rows; ++r) {
    float most = logits(r, 0);
    for (std::int64_t c = 1; c < logits.cols; ++c) most = std::max(most, logits(r, c));
    double sum = 0.0;
    for (std::int64_t c = 0; c < logits.cols; ++c) sum += std::exp(static_cast<double>(logits(r, c)) - static_cast<double>(most));
    for (std::int64_t c = 0; c < logits.cols; ++c) {
      to(r, c) = static_cast<float>(std::exp(static_cast<double>(logits(r, c)) - static_cast<double>(most)) / sum);
    }
  }
}

/// Mean over rows of -log softmax(logits)[label]. Preconditions: labels in [0, cols).
inline double cross_entropy(MatrixView<const float> logits, std::span<const std::int64_t> labels, double weight, MatrixView<float> gradient,
                            LossGradient how = LossGradient::write) {
  NORMA_EXPECTS(static_cast<std::int64_t>(labels.size()) == logits.rows);
  const auto rows = static_cast<double>(logits.rows);
  double total = 0.0;
  for (std::int64_t r = 0; r < logits.rows; ++r) {
    const std::int64_t label = labels[static_cast<std::size_t>(r)];
    NORMA_EXPECTS(label >= 0 && label < logits.cols);
    auto most = static_cast<double>(logits(r, 0));
    for (std::int64_t c = 1; c < logits.cols; ++c) most = std::max(most, static_cast<double>(logits(r, c)));
    double sum = 0.0;
    for (std::int64_t c = 0; c < logits.cols; ++c) sum += std::exp(static_cast<double>(logits(r, c)) - most);
    total += std::log(sum) + most - static_cast<double>(logits(r, label));
    if (gradient.data == nullptr) continue;
    for (std::int64_t c = 0; c < logits.cols; ++c) {
      const double p = std::exp(static_cast<double>(logits(r, c)) - most) / sum;
      detail::put(gradient(r, c), weight * (p - (c == label ? 1.0 : 0.0)) / rows, how);
    }
  }
  return total / rows;
}

/// Mean over all elements of -t log sigmoid(y) - (1 - t) log(1 - sigmoid(y)), from logits, targets t in [0, 1].
inline double binary_cross_entropy(std::span<const float> logits, std::span<const float> target, double weight, std::span<float> gradient,
                                   LossGradient how = LossGradient::write) {
  NORMA_EXPECTS(logits.size() == target.size() && (gradient.empty() || gradient.size() == logits.size()));
  const auto count = static_cast<double>(logits.size());
  double sum = 0.0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const auto y = static_cast<double>(logits[i]), t = static_cast<double>(target[i]);
    sum += (y > 0.0 ? y : y <= 0.0 ? 0.0 : y) - y * t + std::log1p(std::exp(-std::abs(y)));
    if (!gradient.empty()) detail::put(gradient[i], weight * (1.0 / (1.0 + std::exp(-y)) - t) / count, how);
  }
  return sum / count;
}

/// DRAEM's: mean over rows of -(1 - p)^gamma log p with p = sum over classes of clamp(one_hot, smooth, 1 - smooth) softmax(logits) +
/// smooth. The gradient is that of the logits. Precondition: at most 16 classes.
inline double focal_loss(MatrixView<const float> logits, std::span<const std::int64_t> labels, double gamma, double smooth, double weight,
                         MatrixView<float> gradient, LossGradient how = LossGradient::write) {
  constexpr std::int64_t kMostClasses = 16;
  NORMA_EXPECTS(static_cast<std::int64_t>(labels.size()) == logits.rows && logits.cols <= kMostClasses);
  const auto rows = static_cast<double>(logits.rows);
  double total = 0.0;
  for (std::int64_t r = 0; r < logits.rows; ++r) {
    const std::int64_t label = labels[static_cast<std::size_t>(r)];
    auto most = static_cast<double>(logits(r, 0));
    for (std::int64_t c = 1; c < logits.cols; ++c) most = std::max(most, static_cast<double>(logits(r, c)));
    std::array<double, kMostClasses> p{};
    double sum = 0.0, chosen = 0.0;
    for (std::int64_t c = 0; c < logits.cols; ++c)
      sum += p[static_cast<std::size_t>(c)] = std::exp(static_cast<double>(logits(r, c)) - most);
    const auto share = [&](std::int64_t c) { return std::clamp(c == label ? 1.0 : 0.0, smooth, 1.0 - smooth); };
    for (std::int64_t c = 0; c < logits.cols; ++c) {
      p[static_cast<std::size_t>(c)] /= sum;
      chosen += share(c) * p[static_cast<std::size_t>(c)];
    }
    const double pt = chosen + smooth, rest = std::max(0.0, 1.0 - pt);
    total += -std::pow(rest, gamma) * std::log(pt);
    if (gradient.data == nullptr) continue;
    const double slope = gamma * std::pow(rest, gamma - 1.0) * std::log(pt) - std::pow(rest, gamma) / pt;  // by p
    for (std::int64_t c = 0; c < logits.cols; ++c) {
      detail::put(gradient(r, c), weight * slope * p[static_cast<std::size_t>(c)] * (share(c) - chosen) / rows, how);
    }
  }
  return total / rows;
}

/// A flow's mean over the batch of (0.5 |z|^2 - logdet). z [n, d], logdet [n]; the methods' divisions go into `weight`.
/// dz and dlogdet (the same for all: -weight / n) are written where they have memory.
inline double flow_likelihood_loss(MatrixView<const float> z, std::span<const float> logdet, double weight, MatrixView<float> dz,
                                   std::span<float> dlogdet, LossGradient how = LossGradient::write) {
  NORMA_EXPECTS(static_cast<std::int64_t>(logdet.size()) == z.rows);
  const auto rows = static_cast<double>(z.rows);
  double total = 0.0;
  for (std::int64_t r = 0; r < z.rows; ++r) {
    double squares = 0.0;
    for (std::int64_t c = 0; c < z.cols; ++c) {
      squares += static_cast<double>(z(r, c)) * static_cast<double>(z(r, c));
      if (dz.data != nullptr) detail::put(dz(r, c), weight * static_cast<double>(z(r, c)) / rows, how);
    }
    total += 0.5 * squares - static_cast<double>(logdet[static_cast<std::size_t>(r)]);
    if (!dlogdet.empty()) detail::put(dlogdet[static_cast<std::size_t>(r)], -weight / rows, how);
  }
  return total / rows;
}

/// Mean of -log sigmoid(value) (CFlow, of log-likelihoods).
inline double negative_log_sigmoid(std::span<const float> value, double weight, std::span<float> gradient,
                                   LossGradient how = LossGradient::write) {
  const auto count = static_cast<double>(value.size());
  double sum = 0.0;
  for (std::size_t i = 0; i < value.size(); ++i) {
    const auto v = static_cast<double>(value[i]);
    sum += (v < 0.0 ? -v : v >= 0.0 ? 0.0 : v) + std::log1p(std::exp(-std::abs(v)));
    if (!gradient.empty()) detail::put(gradient[i], -weight / (1.0 + std::exp(v)) / count, how);
  }
  return sum / count;
}

/// Scratch of `structural_distance`.
constexpr std::size_t structural_distance_scratch_bytes(Shape image, int workers) noexcept {
  return static_cast<std::size_t>(workers) * arena_bytes<double>(7 * image.positions());
}

/// 1 - SSIM: mean over everything of the structural similarity of y and target (Wang et al. 2004) with a Gaussian window 11 x 11,
/// sigma 1.5, zeros around the image, variances as E[x^2] - E[x]^2, and values of a range of 1. The gradient is y's. One task an image and
/// channel.
inline double structural_distance(TensorView<const float> y, TensorView<const float> target, double weight, TensorView<float> gradient,
                                  Parallel parallel, Arena& arena, std::span<double> plane_sums, LossGradient how = LossGradient::write) {
  constexpr std::int64_t kReach = 5;
  constexpr double kC1 = 0.01 * 0.01, kC2 = 0.03 * 0.03;
  NORMA_EXPECTS(y.count() == target.count() && static_cast<std::int64_t>(plane_sums.size()) == y.batch * y.channels);
  std::array<double, 2 * kReach + 1> window{};
  double total = 0.0;
  for (std::int64_t i = -kReach; i <= kReach; ++i) {
    window[static_cast<std::size_t>(i + kReach)] = std::exp(-static_cast<double>(i * i) / (2.0 * 1.5 * 1.5));
    total += window[static_cast<std::size_t>(i + kReach)];
  }
  for (double& w : window) w /= total;
  const std::int64_t height = y.height, width = y.width, positions = height * width, channels = y.channels;
  const auto count = static_cast<double>(y.count());
  const Arena::Scope scope(arena);
  const auto piece = static_cast<std::int64_t>(arena_bytes<double>(7 * positions) / sizeof(double));
  double* scratch = arena.take<double>(piece * parallel.workers());

  parallel.run(y.batch * channels, [&](std::int64_t task, int worker) {
    const float* a = y.image(task / channels).data + task % channels;
    const float* b = target.image(task / channels).data + task % channels;
    double* maps[7];
    for (int m = 0; m < 7; ++m) maps[m] = scratch + worker * piece + m * positions;
    double* between = maps[5];
    // to = window * from; the window is symmetric and the border zero, so this is its own transpose.
    const auto smooth = [&](const double* from, double* to) {
      for (std::int64_t i = 0; i < height; ++i) {
        for (std::int64_t j = 0; j < width; ++j) {
          double sum = 0.0;
          for (std::int64_t k = std::max(-kReach, -j); k <= std::min(kReach, width - 1 - j); ++k) {
            sum += window[static_cast<std::size_t>(k + kReach)] * from[i * width + j + k];
          }
          between[i * width + j] = sum;
        }
      }
      for (std::int64_t i = 0; i < height; ++i) {
        for (std::int64_t j = 0; j < width; ++j) {
          double sum = 0.0;
          for (std::int64_t k = std::max(-kReach, -i); k <= std::min(kReach, height - 1 - i); ++k) {
            sum += window[static_cast<std::size_t>(k + kReach)] * between[(i + k) * width + j];
          }
          to[i * width + j] = sum;
        }
      }
    };
    const auto value = [&](const float* of, std::int64_t p) { return static_cast<double>(of[p * channels]); };
    double* own = maps[6];
    const auto smoothed = [&](int m, auto&& element) {
      for (std::int64_t p = 0; p < positions; ++p) own[p] = element(p);
      smooth(own, maps[m]);
    };
    smoothed(0, [&](std::int64_t p) { return value(a, p); });
    smoothed(1, [&](std::int64_t p) { return value(b, p); });
    smoothed(2, [&](std::int64_t p) { return value(a, p) * value(a, p); });
    smoothed(3, [&](std::int64_t p) { return value(b, p) * value(b, p); });
    smoothed(4, [&](std::int64_t p) { return value(a, p) * value(b, p); });
    double sum = 0.0;
    for (std::int64_t p = 0; p < positions; ++p) {
      const double m = maps[0][p], n = maps[1][p];
      const double a1 = 2.0 * m * n + kC1, a2 = 2.0 * (maps[4][p] - m * n) + kC2;
      const double b1 = m * m + n * n + kC1, b2 = (maps[2][p] - m * m) + (maps[3][p] - n * n) + kC2;
      const double similarity = a1 * a2 / (b1 * b2);
      sum += similarity;
      const double by_a1 = a2 / (b1 * b2), by_a2 = a1 / (b1 * b2), by_b1 = -similarity / b1, by_b2 = -similarity / b2;
      maps[0][p] = 2.0 * n * (by_a1 - by_a2) + 2.0 * m * (by_b1 - by_b2);  // by E[y]
      maps[2][p] = by_b2;                                                  // by E[y^2]
      maps[4][p] = 2.0 * by_a2;                                            // by E[y target]
    }
    plane_sums[static_cast<std::size_t>(task)] = sum;
    if (gradient.data == nullptr) return;
    smooth(maps[0], maps[1]);
    smooth(maps[2], maps[3]);
    smooth(maps[4], maps[0]);
    float* to = gradient.image(task / channels).data + task % channels;
    for (std::int64_t p = 0; p < positions; ++p) {
      const double d = maps[1][p] + 2.0 * value(a, p) * maps[3][p] + value(b, p) * maps[0][p];
      detail::put(to[p * channels], -weight * d / count, how);
    }
  });
  double sum = 0.0;
  for (const double plane : plane_sums) sum += plane;
  return 1.0 - sum / count;
}

}  // namespace norma::nn
