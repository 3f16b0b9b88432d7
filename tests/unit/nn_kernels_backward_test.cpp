// Gradient kernels, every instruction set: convolutions against sums in double, linear layers against the equation that defines a
// transpose, <dy, F x> = <F' dy, x>, the others against their formulas in double (attention's are themselves checked by differences). Bits
// must not depend on the number of workers.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/thread_pool.hpp>
#include <norma/nn/kernels/attention_backward.hpp>
#include <norma/nn/kernels/convolution_backward.hpp>
#include <norma/nn/kernels/elementwise_backward.hpp>
#include <norma/nn/kernels/normalisation_backward.hpp>
#include <norma/nn/kernels/pooling_backward.hpp>

#include "../support/reference.hpp"

namespace {

using namespace norma;
using namespace norma::nn;
using test::BoundedSum;
using test::instruction_sets;
using test::normal_tensor;
using test::normal_vector;
using test::Scratch;

constexpr double kUnit = 0x1p-24;

struct Layer {
  std::string what;
  Shape in;
  std::int64_t out;
  ConvolutionGeometry g;
  Direction direction = Direction::forward;
  std::int64_t batch = 2;
};

ConvolutionGeometry geometry(int kernel, int stride, int pad, int groups = 1, int dilation = 1) {
  ConvolutionGeometry g;
  g.kernel_height = g.kernel_width = kernel;
  g.stride = stride;
  g.dilation = dilation;
  g.pad_top = g.pad_left = g.pad_bottom = g.pad_right = pad;
  g.groups = groups;
  return g;
}

// Calls body(n, input position, output position, tap) for every pair that a forward convolution connects.
template <class Body>
void for_each_connection(const Layer& l, Shape small, Shape large, Body&& body) {
  for (std::int64_t n = 0; n < l.batch; ++n)
    for (std::int64_t i = 0; i < small.height; ++i)
      for (std::int64_t j = 0; j < small.width; ++j)
        for (int u = 0; u < l.g.kernel_height; ++u)
          for (int v = 0; v < l.g.kernel_width; ++v) {
            const std::int64_t y = i * l.g.stride + u * l.g.dilation - l.g.pad_top, x = j * l.g.stride + v * l.g.dilation - l.g.pad_left;
            if (y < 0 || y >= large.height || x < 0 || x >= large.width) continue;
            body((n * large.height + y) * large.width + x, (n * small.height + i) * small.width + j, u * l.g.kernel_width + v);
          }
}

TEST_CASE("gradients of convolutions and transposed convolutions") {
  const Layer layers[] = {
      {"pointwise, whole panels", {5, 7, 64}, 32, geometry(1, 1, 0)},
      {"pointwise", {6, 5, 33}, 31, geometry(1, 1, 0)},
      {"3x3 products", {6, 7, 15}, 33, geometry(3, 1, 1)},
      {"3x3 winograd", {10, 9, 32}, 31, geometry(3, 1, 1)},
      {"3x3 winograd, no padding", {11, 12, 17}, 35, geometry(3, 1, 0)},
      {"3x3 winograd, many tiles", {40, 44, 16}, 16, geometry(3, 1, 1), Direction::forward, 3},
      {"3x3 stride 2", {9, 8, 6}, 40, geometry(3, 2, 1)},
      {"1x1 stride 2", {7, 8, 9}, 5, geometry(1, 2, 0)},
      {"5x5 stride 3, unread border", {12, 13, 4}, 6, geometry(5, 3, 1)},
      {"dilated stride 2, groups", {11, 10, 6}, 8, geometry(3, 2, 2, 2, 2)},
      {"groups", {6, 6, 12}, 6, geometry(3, 1, 1, 3)},
      {"depthwise", {9, 7, 37}, 37, geometry(3, 1, 1, 37)},
      {"depthwise stride 2", {9, 7, 37}, 37, geometry(5, 2, 2, 37)},
      {"large batch of gathered rows", {24, 24, 40}, 8, geometry(3, 2, 1), Direction::forward, 8},
      {"transposed 2x2 stride 2", {5, 6, 9}, 7, geometry(2, 2, 0), Direction::transposed},
      {"transposed 4x4 stride 2", {5, 4, 32}, 33, geometry(4, 2, 1), Direction::transposed},
      {"transposed 3x3 stride 1", {6, 5, 16}, 17, geometry(3, 1, 1), Direction::transposed},
  };
  ThreadPool two(2), three(3);
  for (const Layer& l : layers) {
    CAPTURE(l.what);
    const bool transposed = l.direction == Direction::transposed;
    const Shape out = transposed ? transposed_convolution_output(l.in, l.g, l.out) : convolution_output(l.in, l.g, l.out);
    const std::int64_t taps = l.g.kernel_height * l.g.kernel_width, groups = l.g.groups;
    const std::int64_t in_group = l.in.channels / groups, out_group = l.out / groups;
    const auto x = normal_tensor(l.batch, l.in, 1), dy = normal_tensor(l.batch, out, 2), before = normal_tensor(l.batch, l.in, 3);
    const auto w = normal_vector(l.out * in_group * taps, 4);
    const auto weight_at = [&](std::int64_t o, std::int64_t i, std::int64_t tap) {  // o and i of the same group
      return static_cast<std::size_t>(transposed ? (i * l.out + o) * taps + tap : (o * in_group + i % in_group) * taps + tap);
    };
    std::vector<BoundedSum> want_x(static_cast<std::size_t>(l.batch * l.in.count())), want_w(w.size());
    for_each_connection(l, transposed ? l.in : out, transposed ? out : l.in, [&](std::int64_t large, std::int64_t small, std::int64_t tap) {
      const std::int64_t ip = transposed ? small : large, op = transposed ? large : small;
      for (std::int64_t o = 0; o < l.out; ++o)
        for (std::int64_t i = o / out_group * in_group; i < (o / out_group + 1) * in_group; ++i) {
          const auto d = static_cast<double>(dy.data()[op * l.out + o]);
          want_x[static_cast<std::size_t>(ip * l.in.channels + i)].add(d * static_cast<double>(w[weight_at(o, i, tap)]));
          want_w[weight_at(o, i, tap)].add(d * static_cast<double>(x.data()[ip * l.in.channels + i]));
        }
    });
    // Winograd: a few times 1e-6 of the sums' rms, which for these numbers is the root of the number of products; 2e-5 is far outside its
    // tail. Others: every product and every addition rounds once, and the chain is no longer than the number of products.
    const auto terms_x = static_cast<double>(taps * out_group),
               terms_w = static_cast<double>(l.batch * std::max(out.positions(), l.in.positions()));
    for (const InstructionSet set : instruction_sets()) {
      CAPTURE(to_string(set));
      auto packed = PackedInputGradient::shaped(l.in, l.out, l.g, l.direction, set);
      std::vector<float> rows(static_cast<std::size_t>(packed.repack_scratch()));
      packed.repack(w, rows.data());
      const bool winograd_x =
          (packed.algorithm() == InputGradientAlgorithm::flipped || packed.algorithm() == InputGradientAlgorithm::strided) &&
          packed.convolution().algorithm() == ConvolutionAlgorithm::winograd;
      const bool winograd_w = !transposed && convolution_algorithm(l.in, l.out, l.g) == ConvolutionAlgorithm::winograd;
      std::vector<float> first_x, first_w;
      for (const Parallel parallel : {Parallel{}, two.parallel(), three.parallel()}) {
        for (const Accumulate accumulate : {Accumulate::no, Accumulate::yes}) {
          Tensor<float> dx = before;
          Scratch scratch(convolution_input_gradient_scratch_bytes(l.in, l.out, l.g, l.direction, parallel.workers()));
          Arena arena = scratch.arena();
          convolution_input_gradient(dy.view(), packed, dx.view(), accumulate, parallel, arena);
          bool inside = true;
          for (std::size_t i = 0; i < want_x.size(); ++i) {
            const double old = accumulate == Accumulate::yes ? static_cast<double>(before.data()[i]) : 0.0;
            const double bound = winograd_x ? 2e-5 * std::sqrt(terms_x) : (terms_x + 2) * kUnit * (want_x[i].magnitude + std::abs(old));
            inside = inside && std::abs(static_cast<double>(dx.data()[i]) - (want_x[i].value + old)) <= bound;
          }
          CHECK(inside);
          if (accumulate == Accumulate::no) {
            if (first_x.empty()) first_x.assign(dx.data(), dx.data() + dx.view().count());
            CHECK(std::memcmp(first_x.data(), dx.data(), first_x.size() * sizeof(float)) == 0);
          }
        }
        std::vector<float> dw(w.size(), 0.5f);
        Scratch scratch(convolution_weight_gradient_scratch_bytes(l.in, l.out, l.g, l.direction));
        Arena arena = scratch.arena();
        convolution_weight_gradient(x.view(), dy.view(), l.g, l.direction, dw, parallel, arena, set);
        bool inside = true;
        for (std::size_t i = 0; i < want_w.size(); ++i) {
          const double bound = winograd_w ? 2e-5 * std::sqrt(terms_w) : (terms_w + 2) * kUnit * (want_w[i].magnitude + 0.5);
          inside = inside && std::abs(static_cast<double>(dw[i]) - (want_w[i].value + 0.5)) <= bound;
        }
        CHECK(inside);
        if (first_w.empty()) first_w = dw;
        CHECK(first_w == dw);
      }
    }
  }
}

TEST_CASE("bias and linear gradients") {
  ThreadPool two(2);
  for (const std::int64_t positions : {1, 31, 32, 33, 5000}) {
    for (const std::int64_t channels : {1, 15, 16, 33, 64}) {
      CAPTURE(positions);
      CAPTURE(channels);
      const auto dy = normal_tensor(1, {1, positions, channels}, 1), x = normal_tensor(1, {1, positions, 19}, 2);
      for (const InstructionSet set : instruction_sets()) {
        std::vector<float> first;
        for (const Parallel parallel : {Parallel{}, two.parallel()}) {
          Scratch scratch(std::max(bias_gradient_scratch_bytes(channels), linear_weight_gradient_scratch_bytes(19, channels)));
          Arena arena = scratch.arena();
          std::vector<float> db(static_cast<std::size_t>(channels), 1.0f), dw(static_cast<std::size_t>(19 * channels));
          bias_gradient(dy.view(), db, parallel, arena, set);
          linear_weight_gradient(x.view(), dy.view(), dw, parallel, arena, set);
          for (std::int64_t c = 0; c < channels; ++c) {
            BoundedSum sum;
            sum.add(1.0);
            for (std::int64_t p = 0; p < positions; ++p) sum.add(static_cast<double>(dy.data()[p * channels + c]));
            CHECK(std::abs(static_cast<double>(db[static_cast<std::size_t>(c)]) - sum.value) <=
                  static_cast<double>(positions + 1) * kUnit * sum.magnitude);
          }
          for (std::int64_t k = 0; k < 19 * channels; k += 7) {
            BoundedSum sum;
            for (std::int64_t p = 0; p < positions; ++p) {
              sum.add(static_cast<double>(dy.data()[p * channels + k / 19]) * static_cast<double>(x.data()[p * 19 + k % 19]));
            }
            CHECK(std::abs(static_cast<double>(dw[static_cast<std::size_t>(k)]) - sum.value) <=
                  static_cast<double>(positions + 1) * kUnit * sum.magnitude);
          }
          db.insert(db.end(), dw.begin(), dw.end());
          if (first.empty()) first = db;
          CHECK(first == db);
        }
      }
    }
  }
}

TEST_CASE("gradients of activations, at their bends and for NaN") {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> x;
  for (int i = -700; i <= 700; ++i) x.push_back(0.0137f * static_cast<float>(i));
  for (const float v : {0.0f, -0.0f, 6.0f, 3.0f, -3.0f, 60.0f, -60.0f}) x.push_back(v);
  const auto count = static_cast<std::int64_t>(x.size());
  const auto dy = normal_vector(count, 1);
  for (const InstructionSet set : instruction_sets()) {
    for (const Activation activation : test::kActivations) {
      CAPTURE(static_cast<int>(activation));
      const TensorView<const float> in(x.data(), 1, 1, count, 1);
      std::vector<float> y(x.size()), dx(x.size());
      activate(in, activation, {y.data(), 1, 1, count, 1}, {}, set);
      const TensorView<const float> at(gradient_needs_argument(activation) ? x.data() : y.data(), 1, 1, count, 1);
      activation_gradient({dy.data(), 1, 1, count, 1}, at, activation, {dx.data(), 1, 1, count, 1}, Accumulate::no, {}, set);
      for (std::size_t i = 0; i < x.size(); ++i) {
        const auto v = static_cast<double>(x[i]), d = static_cast<double>(dy[i]);
        double slope = 0.0;
        if (activation == Activation::relu && v == 0.0) {
          slope = 0.0;  // PyTorch's choices where there are two slopes
        } else if (activation == Activation::relu6 && (v == 0.0 || v == 6.0)) {
          slope = 0.0;
        } else if (activation == Activation::leaky_relu && v == 0.0) {
          slope = static_cast<double>(kLeakyReluSlope);
        } else if (activation == Activation::hard_swish && std::abs(v) == 3.0) {
          slope = v / 3.0 + 0.5;
        } else {
          slope = (test::activate(v + 1e-6, activation) - test::activate(v - 1e-6, activation)) / 2e-6;
        }
        // 1e-9 from the difference; sigmoid and tanh from results that are good to 2e-7; exp to 2e-7 of a term of at most 1.1 |v|.
        CHECK(std::abs(static_cast<double>(dx[i]) - d * slope) <= std::abs(d) * 2e-6 + 1e-8);
      }
      // NaN in the value or in the gradient reaches the result wherever the slope is not zero.
      const std::vector<float> one{nan, 1.0f}, gradient{1.0f, nan};
      std::vector<float> result(2);
      activation_gradient({gradient.data(), 1, 1, 2, 1}, {one.data(), 1, 1, 2, 1}, activation, {result.data(), 1, 1, 2, 1}, Accumulate::no,
                          {}, set);
      const bool passes_value = activation == Activation::none || activation == Activation::relu || activation == Activation::relu6 ||
                                activation == Activation::leaky_relu;
      CHECK((passes_value ? result[0] == 1.0f : std::isnan(result[0])));
      CHECK(std::isnan(result[1]));
    }
  }
}

TEST_CASE("max pooling: the first of equal values, NaN, overlapping windows") {
  const PoolingGeometry g{3, 3, 2, 1, 1, 1, 1};
  for (const InstructionSet set : instruction_sets()) {
    for (const std::int64_t channels : {1, 5, 16, 70}) {
      Tensor<float> x = normal_tensor(2, {7, 6, channels}, 1);
      for (std::int64_t i = 0; i < x.view().count(); ++i) x.data()[i] = std::round(2.0f * x.data()[i]);  // many ties
      x.data()[0] = std::numeric_limits<float>::quiet_NaN();
      const Shape out = pooling_output(x.shape(), g);
      Tensor<float> y(2, out), dx = normal_tensor(2, x.shape(), 5);
      const Tensor<float> before = dx;
      max_pool(x.view(), g, y.view(), {}, set);
      const auto dy = normal_tensor(2, out, 2);
      max_pool_gradient(x.view(), y.view(), g, dy.view(), dx.view(), Accumulate::yes, {}, set);
      Tensor<float> want = before;
      for (std::int64_t n = 0; n < 2; ++n)
        for (std::int64_t oy = 0; oy < out.height; ++oy)
          for (std::int64_t ox = 0; ox < out.width; ++ox)
            for (std::int64_t c = 0; c < channels; ++c) {
              std::int64_t by = -1, bx = -1;
              for (std::int64_t u = 0; u < 3; ++u)
                for (std::int64_t v = 0; v < 3; ++v) {
                  const std::int64_t iy = oy * 2 + u - 1, ix = ox * 2 + v - 1;
                  if (iy < 0 || iy >= 7 || ix < 0 || ix >= 6) continue;
                  const float value = x.view()(n, iy, ix, c);
                  if (by >= 0 && std::isnan(x.view()(n, by, bx, c))) continue;
                  if (by < 0 || std::isnan(value) || value > x.view()(n, by, bx, c)) by = iy, bx = ix;
                }
              want.view()(n, by, bx, c) += dy.view()(n, oy, ox, c);
            }
      for (std::int64_t i = 0; i < want.view().count(); ++i) CHECK(std::abs(dx.data()[i] - want.data()[i]) <= 8 * 1.2e-7f * 4.0f);
    }
  }
}

// <dy, F x> against <F' dy, x>, with F' also added to what is there, and bits for two workers.
template <class Forward, class Backward>
void check_transpose(Shape in, Shape out, Forward&& forward, Backward&& backward) {
  ThreadPool two(2);
  const auto x = normal_tensor(3, in, 11), dy = normal_tensor(3, out, 12), before = normal_tensor(3, in, 13);
  for (const InstructionSet set : instruction_sets()) {
    Tensor<float> y(3, out), dx = before, added = before, other(3, in);
    forward(x.view(), y.view(), set);
    backward(dy.view(), dx.view(), Accumulate::no, Parallel{}, set);
    backward(dy.view(), added.view(), Accumulate::yes, Parallel{}, set);
    backward(dy.view(), other.view(), Accumulate::no, two.parallel(), set);
    BoundedSum left, right;
    for (std::int64_t i = 0; i < y.view().count(); ++i) left.add(static_cast<double>(y.data()[i]) * static_cast<double>(dy.data()[i]));
    for (std::int64_t i = 0; i < dx.view().count(); ++i) right.add(static_cast<double>(dx.data()[i]) * static_cast<double>(x.data()[i]));
    // Each side rounds a handful of times an element.
    CHECK(std::abs(left.value - right.value) <= 40 * kUnit * (left.magnitude + right.magnitude));
    CHECK(right.magnitude > 0.0);
    CHECK(std::memcmp(dx.data(), other.data(), static_cast<std::size_t>(dx.view().count()) * sizeof(float)) == 0);
    bool inside = true;
    for (std::int64_t i = 0; i < dx.view().count(); ++i) {
      inside = inside && std::abs(added.data()[i] - (before.data()[i] + dx.data()[i])) <= 2e-5f;
    }
    CHECK(inside);
  }
}

TEST_CASE("linear layers without weights: the gradient is the transpose") {
  const PoolingGeometry g{3, 2, 2, 1, 0, 1, 1};
  for (const std::int64_t c : {1, 6, 16, 70}) {
    CAPTURE(c);
    const Shape in{7, 5, c}, pooled = pooling_output(in, g);
    for (const PaddingCounts counts : {PaddingCounts::no, PaddingCounts::yes}) {
      check_transpose(
          in, pooled, [&](auto x, auto y, auto set) { average_pool(x, g, counts, y, {}, set); },
          [&](auto dy, auto dx, auto how, auto parallel, auto set) { average_pool_gradient(dy, g, counts, dx, how, parallel, set); });
    }
    for (const Shape size : {Shape{1, 1, c}, Shape{3, 2, c}, Shape{7, 5, c}, Shape{9, 6, c}}) {
      check_transpose(
          in, size, [](auto x, auto y, auto set) { adaptive_average_pool(x, y, {}, set); },
          [](auto dy, auto dx, auto how, auto parallel, auto set) { adaptive_average_pool_gradient(dy, dx, how, parallel, set); });
    }
    for (const Shape size : {Shape{14, 10, c}, Shape{7, 5, c}, Shape{4, 9, c}, Shape{1, 1, c}}) {
      check_transpose(
          in, size, [](auto x, auto y, auto) { upsample_nearest(x, y, {}); },
          [](auto dy, auto dx, auto how, auto parallel, auto set) { upsample_nearest_gradient(dy, dx, how, parallel, set); });
      for (const AlignCorners align : {AlignCorners::no, AlignCorners::yes}) {
        check_transpose(
            in, size, [&](auto x, auto y, auto set) { upsample_bilinear(x, align, y, {}, set); },
            [&](auto dy, auto dx, auto how, auto parallel, auto set) { upsample_bilinear_gradient(dy, align, dx, how, parallel, set); });
      }
    }
    check_transpose(
        {7, 5, c + 4}, in, [](auto x, auto y, auto set) { concat_gradient(x, 3, y, Accumulate::no, {}, set); },  // a slice is this copy
        [](auto dy, auto dx, auto how, auto parallel, auto set) { slice_gradient(dy, 3, dx, how, parallel, set); });
    check_transpose(
        in, {1, 1, 35 * c}, [](auto x, auto y, auto) { flatten(x, y, {}); },
        [](auto dy, auto dx, auto how, auto parallel, auto) { flatten_gradient(dy, dx, how, parallel); });
  }
}

TEST_CASE("batch norm: statistics with PyTorch's running variance, gradients by formula") {
  ThreadPool two(2);
  for (const std::int64_t channels : {1, 15, 16, 33}) {
    const auto x = normal_tensor(2, {6, 5, channels}, 1), dy = normal_tensor(2, {6, 5, channels}, 2);
    constexpr std::int64_t kPositions = 60;
    const auto gamma = normal_vector(channels, 3);
    for (const InstructionSet set : instruction_sets()) {
      std::vector<float> first;
      for (const Parallel parallel : {Parallel{}, two.parallel()}) {
        Scratch scratch(norm_scratch_bytes(channels));
        Arena arena = scratch.arena();
        std::vector<float> mean(static_cast<std::size_t>(channels)), inverse = mean, running_mean(mean.size(), 0.5f),
                                                                     running_variance(mean.size(), 2.0f);
        std::vector<float> dgamma(mean.size(), 1.0f), dbeta(mean.size(), 1.0f);
        const NormStatistics s{mean.data(), inverse.data()};
        batch_statistics(x.view(), 1e-5f, 0.1f, running_mean.data(), running_variance.data(), s, parallel, arena, set);
        Tensor<float> dx = dy;
        batch_norm_gradient(dx.view(), x.view(), s, gamma.data(), StatisticsFrom::batch, dgamma.data(), dbeta.data(), dx.view(),
                            Accumulate::no, parallel, arena, set);
        for (std::int64_t c = 0; c < channels; ++c) {
          const auto at = [&](const Tensor<float>& t, std::int64_t p) { return static_cast<double>(t.data()[p * channels + c]); };
          const auto k = static_cast<std::size_t>(c);
          double m = 0.0, v = 0.0, sum = 0.0, product = 0.0;
          for (std::int64_t p = 0; p < kPositions; ++p) m += at(x, p) / kPositions;
          for (std::int64_t p = 0; p < kPositions; ++p) v += (at(x, p) - m) * (at(x, p) - m) / kPositions;
          const double i = 1.0 / std::sqrt(v + static_cast<double>(1e-5f));
          for (std::int64_t p = 0; p < kPositions; ++p) {
            sum += at(dy, p);
            product += at(dy, p) * (at(x, p) - m) * i;
          }
          // Numbers of size one to ten, summed in pieces of at most 60: 1e-5 is a hundred roundings.
          CHECK(std::abs(static_cast<double>(mean[k]) - m) <= 1e-6);
          CHECK(std::abs(static_cast<double>(inverse[k]) - i) <= 1e-6 * i);
          CHECK(std::abs(static_cast<double>(running_mean[k]) - (0.9 * 0.5 + 0.1 * m)) <= 1e-6);
          CHECK(std::abs(static_cast<double>(running_variance[k]) - (0.9 * 2.0 + 0.1 * v * kPositions / (kPositions - 1))) <= 1e-6);
          CHECK(std::abs(static_cast<double>(dbeta[k]) - 1.0 - sum) <= 1e-5);
          CHECK(std::abs(static_cast<double>(dgamma[k]) - 1.0 - product) <= 1e-5);
          for (std::int64_t p = 0; p < kPositions; ++p) {
            const double want =
                static_cast<double>(gamma[k]) * i * (at(dy, p) - sum / kPositions - (at(x, p) - m) * i * product / kPositions);
            CHECK(std::abs(at(dx, p) - want) <= 1e-5);
          }
        }
        std::vector<float> all(dx.data(), dx.data() + dx.view().count());
        all.insert(all.end(), dgamma.begin(), dgamma.end());
        all.insert(all.end(), running_variance.begin(), running_variance.end());
        if (first.empty()) first = all;
        CHECK(first == all);
      }
    }
  }
}

TEST_CASE("repacked weights are the packed ones") {
  const auto w = normal_vector(24 * 20 * 9, 1), other = normal_vector(24 * 20 * 9, 2);
  for (const InstructionSet set : instruction_sets()) {
    for (const Shape in : {Shape{4, 4, 20}, Shape{16, 16, 20}}) {  // products, Winograd
      auto fresh = PackedConvolution::pack(w, in, 24, geometry(3, 1, 1), set);
      auto used = PackedConvolution::pack(other, in, 24, geometry(3, 1, 1), set);
      std::vector<float> rows(static_cast<std::size_t>(used.repack_scratch()));
      used.repack({w.data(), 0, 20 * 9, 9, 1}, rows.data());
      const float* a = fresh.algorithm() == ConvolutionAlgorithm::winograd ? fresh.winograd() : fresh.product(0).data();
      const float* b = used.algorithm() == ConvolutionAlgorithm::winograd ? used.winograd() : used.product(0).data();
      CHECK(std::memcmp(a, b, fresh.bytes()) == 0);
    }
  }
}

// Attention by its formulas, in double: `queries` rows of q, `tokens` rows of k and v, [row, heads * dim]. Mixes may be empty.
struct AttentionReference {
  using Values = std::vector<double>;
  std::int64_t queries, tokens, heads, dim;
  Values q, k, v;
  Values logits_mix = {}, logits_bias = {}, weights_mix = {}, weights_bias = {};

  [[nodiscard]] std::size_t score(std::int64_t h, std::int64_t t, std::int64_t u) const {
    return static_cast<std::size_t>((h * queries + t) * tokens + u);
  }
  [[nodiscard]] std::size_t at(std::int64_t t, std::int64_t h, std::int64_t d) const {
    return static_cast<std::size_t>((t * heads + h) * dim + d);
  }
  // body(h, query, token)
  template <class Body>
  void scores(Body&& body) const {
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t t = 0; t < queries; ++t)
        for (std::int64_t u = 0; u < tokens; ++u) body(h, t, u);
  }
  // to[h] = bias[h] + sum over g of mix[h, g] from[g] (of the transpose: mix[g, h]); sizes instead of values where `sizes`.
  [[nodiscard]] Values mixed(const Values& from, const Values& mix, const Values& bias, bool transposed, bool sizes) const {
    if (mix.empty()) return from;
    Values to(from.size());
    scores([&](auto h, auto t, auto u) {
      double sum = bias.empty() ? 0.0 : sizes ? std::abs(bias[static_cast<std::size_t>(h)]) : bias[static_cast<std::size_t>(h)];
      for (std::int64_t g = 0; g < heads; ++g) {
        const double m = mix[static_cast<std::size_t>(transposed ? g * heads + h : h * heads + g)];
        sum += (sizes ? std::abs(m) : m) * from[score(g, t, u)];
      }
      to[score(h, t, u)] = sum;
    });
    return to;
  }
  struct Forward {
    Values scaled, scaled_size, logits_size, weights, mixed, mixed_size, out;
  };
  [[nodiscard]] Forward forward() const {
    Forward f;
    const auto count = static_cast<std::size_t>(heads * queries * tokens);
    f.scaled.resize(count), f.scaled_size.resize(count);
    scores([&](auto h, auto t, auto u) {
      for (std::int64_t d = 0; d < dim; ++d) {
        const double product = q[at(t, h, d)] * k[at(u, h, d)] / std::sqrt(static_cast<double>(dim));
        f.scaled[score(h, t, u)] += product;
        f.scaled_size[score(h, t, u)] += std::abs(product);
      }
    });
    f.weights = mixed(f.scaled, logits_mix, logits_bias, false, false);
    f.logits_size = mixed(f.scaled_size, logits_mix, logits_bias, false, true);
    for (auto row = f.weights.begin(); row != f.weights.end(); row += tokens) {
      const double most = *std::max_element(row, row + tokens);
      double sum = 0.0;
      for (std::int64_t u = 0; u < tokens; ++u) sum += row[u] = std::exp(row[u] - most);
      for (std::int64_t u = 0; u < tokens; ++u) row[u] /= sum;
    }
    f.mixed = mixed(f.weights, weights_mix, weights_bias, false, false);
    f.mixed_size = mixed(f.weights, weights_mix, weights_bias, false, true);
    f.out.resize(static_cast<std::size_t>(queries * heads * dim));
    scores([&](auto h, auto t, auto u) {
      for (std::int64_t d = 0; d < dim; ++d) f.out[at(t, h, d)] += f.mixed[score(h, t, u)] * v[at(u, h, d)];
    });
    return f;
  }
  // Gradients of the sum of dy times the result, or with `sizes` a bound on the sums of the sizes of all terms.
  struct Gradients {
    Values q, k, v, logits_mix, logits_bias, weights_mix, weights_bias;
  };
  [[nodiscard]] Gradients gradients(const Values& dy, bool sizes) const {
    const Forward f = forward();
    const auto size = [&](double x) { return sizes ? std::abs(x) : x; };
    Gradients g{Values(q.size()),           Values(k.size()),           Values(v.size()),           Values(logits_mix.size()),
                Values(logits_bias.size()), Values(weights_mix.size()), Values(weights_bias.size())};
    Values d(f.weights.size());  // of the mixed weights, the weights, the logits, the scaled scores in turn
    scores([&](auto h, auto t, auto u) {
      for (std::int64_t i = 0; i < dim; ++i) {
        d[score(h, t, u)] += size(dy[at(t, h, i)] * v[at(u, h, i)]);
        g.v[at(u, h, i)] += sizes ? f.mixed_size[score(h, t, u)] * std::abs(dy[at(t, h, i)]) : f.mixed[score(h, t, u)] * dy[at(t, h, i)];
      }
    });
    const auto mix_gradient = [&](const Values& seen, Values& mix, Values& bias) {
      if (mix.empty()) return;
      scores([&](auto h, auto t, auto u) {
        bias[static_cast<std::size_t>(h)] += d[score(h, t, u)];
        for (std::int64_t j = 0; j < heads; ++j) mix[static_cast<std::size_t>(h * heads + j)] += d[score(h, t, u)] * seen[score(j, t, u)];
      });
    };
    mix_gradient(f.weights, g.weights_mix, g.weights_bias);
    d = mixed(d, weights_mix, {}, true, sizes);
    for (std::size_t row = 0; row < d.size(); row += static_cast<std::size_t>(tokens)) {
      double sum = 0.0;
      for (std::size_t u = row; u < row + static_cast<std::size_t>(tokens); ++u) sum += f.weights[u] * d[u];
      for (std::size_t u = row; u < row + static_cast<std::size_t>(tokens); ++u) d[u] = f.weights[u] * (sizes ? d[u] + sum : d[u] - sum);
    }
    mix_gradient(sizes ? f.scaled_size : f.scaled, g.logits_mix, g.logits_bias);
    d = mixed(d, logits_mix, {}, true, sizes);
    scores([&](auto h, auto t, auto u) {
      const double ds = d[score(h, t, u)] / std::sqrt(static_cast<double>(dim));
      for (std::int64_t i = 0; i < dim; ++i) {
        g.q[at(t, h, i)] += ds * size(k[at(u, h, i)]);
        g.k[at(u, h, i)] += ds * size(q[at(t, h, i)]);
      }
    });
    return g;
  }
  // What a sum of sizes is multiplied with to bound a float's error. A weight: its logit errs by (dim + heads + 3) roundings of the logit's
  // size, twice (numerator and sum), exp by 2e-7, the sum by one rounding a token. A gradient sees its weight at most three times, and
  // chains over channels, heads and tokens; those of mixes run over 7 rows of tokens in float.
  [[nodiscard]] double share() const {
    const Forward f = forward();
    const double largest = *std::max_element(f.logits_size.begin(), f.logits_size.end());
    const auto t = static_cast<double>(std::max(tokens, queries)), h = static_cast<double>(heads), c = static_cast<double>(dim);
    const double weight = 2.0 * (c + h + 3.0) * kUnit * largest + 4e-7 + (t + 2.0) * kUnit;
    return 3.0 * weight + (c + 10.0 * t + 3.0 * h + 20.0) * kUnit;
  }
};

std::vector<double> widened(const float* from, std::int64_t count) { return {from, from + count}; }

AttentionReference reference_of(const Tensor<float>& qkv, std::int64_t n, int heads, std::int64_t dim) {
  const std::int64_t tokens = qkv.shape().positions(), channels = heads * dim;
  AttentionReference r{tokens, tokens, heads, dim, {}, {}, {}};
  const float* from = qkv.view().image(n).data;
  for (std::int64_t t = 0; t < tokens; ++t, from += 3 * channels) {
    r.q.insert(r.q.end(), from, from + channels);
    r.k.insert(r.k.end(), from + channels, from + 2 * channels);
    r.v.insert(r.v.end(), from + 2 * channels, from + 3 * channels);
  }
  return r;
}
bool inside(const float* got, std::int64_t stride, const std::vector<double>& want, const std::vector<double>& size, std::int64_t columns,
            double share, double before = 0.0) {
  bool good = true;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const auto row = static_cast<std::int64_t>(i) / columns, column = static_cast<std::int64_t>(i) % columns;
    const double value = static_cast<double>(got[row * stride + column]);
    good = good && std::abs(value - (want[i] + before)) <= share * (size[i] + std::abs(before));
  }
  return good;
}

TEST_CASE("attention's formulas are the derivatives, by central differences of the forward pass in double") {
  for (const bool talking : {false, true}) {
    for (const std::int64_t queries : {1, 4}) {
      AttentionReference r{queries, 4, 3, 5, {}, {}, {}};
      auto draw = [seed = std::uint64_t{1}](std::int64_t count) mutable {
        const auto v = normal_vector(count, seed++);
        return std::vector<double>(v.begin(), v.end());
      };
      r.q = draw(queries * 15), r.k = draw(60), r.v = draw(60);
      if (talking) r.logits_mix = draw(9), r.logits_bias = draw(3), r.weights_mix = draw(9), r.weights_bias = draw(3);
      const auto dy = draw(queries * 15);
      const auto loss = [&] {
        const auto out = r.forward().out;
        double sum = 0.0;
        for (std::size_t i = 0; i < out.size(); ++i) sum += out[i] * dy[i];
        return sum;
      };
      const auto got = r.gradients(dy, false), sizes = r.gradients(dy, true);
      // h^2 / 6 of the third derivative and 1e-16 / h of the loss: both far below 1e-6.
      const auto compare = [&](std::vector<double>& varied, const std::vector<double>& gradient, const std::vector<double>& size) {
        REQUIRE(gradient.size() == varied.size());
        double largest = 0.0;
        for (const double g : gradient) largest = std::max(largest, std::abs(g));
        for (std::size_t i = 0; i < varied.size(); ++i) {
          constexpr double h = 1e-5;
          const double before = varied[i];
          varied[i] = before + h;
          const double up = loss();
          varied[i] = before - h;
          const double down = loss();
          varied[i] = before;
          CHECK(std::abs(gradient[i] - (up - down) / (2 * h)) <= 1e-6 * std::max(largest, 1e-3));
          CHECK(std::abs(gradient[i]) <= size[i] * (1.0 + 1e-12) + 1e-12);
        }
      };
      compare(r.q, got.q, sizes.q);
      compare(r.k, got.k, sizes.k);
      compare(r.v, got.v, sizes.v);
      compare(r.logits_mix, got.logits_mix, sizes.logits_mix);
      compare(r.logits_bias, got.logits_bias, sizes.logits_bias);
      compare(r.weights_mix, got.weights_mix, sizes.weights_mix);
      compare(r.weights_bias, got.weights_bias, sizes.weights_bias);
    }
  }
}

TEST_CASE("gradients of attention, with and without talking heads: tokens around the blocks, any number of channels, threads") {
  struct Case {
    std::int64_t tokens;
    int heads;
    std::int64_t dim;
  };
  ThreadPool two(2), three(3);
  for (const Case c : {Case{1, 1, 1}, Case{1, 2, 16}, Case{2, 3, 5}, Case{31, 4, 8}, Case{33, 2, 33}, Case{56, 5, 7}, Case{57, 3, 64},
                       Case{120, 2, 16}, Case{197, 1, 48}, Case{20, 16, 3}}) {
    CAPTURE(c.tokens);
    CAPTURE(c.heads);
    CAPTURE(c.dim);
    constexpr std::int64_t kBatch = 2;
    const std::int64_t channels = c.heads * c.dim, squares = c.heads * c.heads;
    const auto qkv = normal_tensor(kBatch, {1, c.tokens, 3 * channels}, 1), dy = normal_tensor(kBatch, {1, c.tokens, channels}, 2);
    std::array<std::vector<float>, 4> mixes{normal_vector(squares, 3), normal_vector(c.heads, 4), normal_vector(squares, 5),
                                            normal_vector(c.heads, 6)};
    for (float& m : mixes[0]) m /= std::sqrt(static_cast<float>(c.heads));
    for (const bool talking : {false, true}) {
      CAPTURE(talking);
      std::vector<AttentionReference::Gradients> want, size;
      std::vector<double> share;
      for (std::int64_t n = 0; n < kBatch; ++n) {
        AttentionReference r = reference_of(qkv, n, c.heads, c.dim);
        if (talking) {
          r.logits_mix = {mixes[0].begin(), mixes[0].end()}, r.logits_bias = {mixes[1].begin(), mixes[1].end()};
          r.weights_mix = {mixes[2].begin(), mixes[2].end()}, r.weights_bias = {mixes[3].begin(), mixes[3].end()};
        }
        const auto d = widened(dy.view().image(n).data, c.tokens * channels);
        want.push_back(r.gradients(d, false));
        size.push_back(r.gradients(d, true));
        share.push_back(r.share());
      }
      const auto sum = [](std::vector<double> a, const std::vector<double>& b) {
        for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
        return a;
      };
      for (const InstructionSet set : instruction_sets()) {
        CAPTURE(to_string(set));
        for (const Accumulate accumulate : {Accumulate::no, Accumulate::yes}) {
          std::vector<float> first;
          for (const Parallel parallel : {Parallel{}, two.parallel(), three.parallel()}) {
            Tensor<float> dqkv(kBatch, qkv.shape());
            std::fill_n(dqkv.data(), dqkv.view().count(), accumulate == Accumulate::yes ? 0.5f : std::nanf(""));
            std::array<std::vector<float>, 4> dmix;
            for (std::size_t i = 0; i < 4; ++i) dmix[i].assign(mixes[i].size(), 0.25f);
            if (talking) {
              Scratch scratch(talking_heads_attention_gradient_scratch_bytes(c.tokens, channels, c.heads));
              Arena arena = scratch.arena();
              talking_heads_attention_gradient(
                  dy.view(), qkv.view(), c.heads, {mixes[0].data(), mixes[1].data(), mixes[2].data(), mixes[3].data()},
                  {dmix[0].data(), dmix[1].data(), dmix[2].data(), dmix[3].data()}, dqkv.view(), accumulate, parallel, arena, set);
            } else {
              Scratch scratch(attention_gradient_scratch_bytes(c.tokens, channels, c.heads, parallel.workers()));
              Arena arena = scratch.arena();
              attention_gradient(dy.view(), qkv.view(), c.heads, dqkv.view(), accumulate, parallel, arena, set);
            }
            std::vector<float> bits(dqkv.data(), dqkv.data() + dqkv.view().count());
            for (const auto& d : dmix) bits.insert(bits.end(), d.begin(), d.end());
            if (!first.empty()) {
              CHECK(first == bits);
              continue;
            }
            first = bits;
            for (std::size_t n = 0; n < 2; ++n) {
              const float* d = dqkv.view().image(static_cast<std::int64_t>(n)).data;
              const double before = accumulate == Accumulate::yes ? 0.5 : 0.0;
              CHECK(inside(d, 3 * channels, want[n].q, size[n].q, channels, share[n], before));
              CHECK(inside(d + channels, 3 * channels, want[n].k, size[n].k, channels, share[n], before));
              CHECK(inside(d + 2 * channels, 3 * channels, want[n].v, size[n].v, channels, share[n], before));
            }
            if (!talking) continue;
            const double both = std::max(share[0], share[1]);
            CHECK(inside(dmix[0].data(), 1, sum(want[0].logits_mix, want[1].logits_mix), sum(size[0].logits_mix, size[1].logits_mix), 1,
                         both, 0.25));
            CHECK(inside(dmix[1].data(), 1, sum(want[0].logits_bias, want[1].logits_bias), sum(size[0].logits_bias, size[1].logits_bias), 1,
                         both, 0.25));
            CHECK(inside(dmix[2].data(), 1, sum(want[0].weights_mix, want[1].weights_mix), sum(size[0].weights_mix, size[1].weights_mix), 1,
                         both, 0.25));
            CHECK(inside(dmix[3].data(), 1, sum(want[0].weights_bias, want[1].weights_bias),
                         sum(size[0].weights_bias, size[1].weights_bias), 1, both, 0.25));
            // Mixes alone, and the input alone, are the same numbers.
            Scratch scratch(talking_heads_attention_gradient_scratch_bytes(c.tokens, channels, c.heads));
            Arena arena = scratch.arena();
            std::array<std::vector<float>, 4> alone;
            for (std::size_t i = 0; i < 4; ++i) alone[i].assign(mixes[i].size(), 0.25f);
            const detail::HeadMix mix{mixes[0].data(), mixes[1].data(), mixes[2].data(), mixes[3].data()};
            talking_heads_attention_gradient(dy.view(), qkv.view(), c.heads, mix,
                                             {alone[0].data(), alone[1].data(), alone[2].data(), alone[3].data()}, {}, accumulate, parallel,
                                             arena, set);
            CHECK(alone == dmix);
            Tensor<float> input(kBatch, qkv.shape());
            std::fill_n(input.data(), input.view().count(), 0.5f);
            talking_heads_attention_gradient(dy.view(), qkv.view(), c.heads, mix, {}, input.view(), accumulate, parallel, arena, set);
            CHECK(std::memcmp(input.data(), dqkv.data(), static_cast<std::size_t>(input.view().count()) * sizeof(float)) == 0);
          }
        }
      }
    }
  }
}

TEST_CASE("gradients of class attention, all targets and some") {
  ThreadPool two(2), three(3);
  for (const std::int64_t tokens : {1, 2, 31, 197}) {
    for (const int heads : {1, 4}) {
      const std::int64_t dim = 9, channels = heads * dim;
      CAPTURE(tokens);
      CAPTURE(heads);
      const auto query = normal_tensor(2, {1, 1, channels}, 1), dy = normal_tensor(2, {1, 1, channels}, 2);
      const auto keys = normal_tensor(2, {1, tokens, channels}, 3), values = normal_tensor(2, {1, tokens, channels}, 4);
      for (const InstructionSet set : instruction_sets()) {
        std::vector<float> first;
        for (const Parallel parallel : {Parallel{}, two.parallel(), three.parallel()}) {
          Tensor<float> dk(2, keys.shape()), dv(2, keys.shape()), dq(2, query.shape());
          std::fill_n(dk.data(), dk.view().count(), std::nanf(""));
          std::fill_n(dv.data(), dv.view().count(), 0.5f);
          Scratch scratch(class_attention_gradient_scratch_bytes(tokens, channels, heads, parallel.workers()));
          Arena arena = scratch.arena();
          class_attention_gradient(dy.view(), keys.view(), values.view(), query.view(), heads, {dk.view(), Accumulate::no},
                                   {dv.view(), Accumulate::yes}, {dq.view(), Accumulate::yes}, parallel, arena, set);
          std::vector<float> bits(dk.data(), dk.data() + dk.view().count());
          bits.insert(bits.end(), dv.data(), dv.data() + dv.view().count());
          bits.insert(bits.end(), dq.data(), dq.data() + dq.view().count());
          if (first.empty()) first = bits;
          CHECK(first == bits);
          for (std::int64_t n = 0; n < 2; ++n) {
            const AttentionReference r{1,
                                       tokens,
                                       heads,
                                       dim,
                                       widened(query.view().image(n).data, channels),
                                       widened(keys.view().image(n).data, tokens * channels),
                                       widened(values.view().image(n).data, tokens * channels)};
            const auto d = widened(dy.view().image(n).data, channels);
            const auto want = r.gradients(d, false), size = r.gradients(d, true);
            CHECK(inside(dk.view().image(n).data, 1, want.k, size.k, 1, r.share()));
            CHECK(inside(dv.view().image(n).data, 1, want.v, size.v, 1, r.share(), 0.5));
            CHECK(inside(dq.view().image(n).data, 1, want.q, size.q, 1, r.share()));
          }
          Tensor<float> only(2, query.shape());
          class_attention_gradient(dy.view(), keys.view(), values.view(), query.view(), heads, {}, {}, {only.view(), Accumulate::no},
                                   parallel, arena, set);
          CHECK(std::memcmp(only.data(), dq.data(), static_cast<std::size_t>(2 * channels) * sizeof(float)) == 0);
        }
      }
    }
  }
}

TEST_CASE("gradients of tokens that are placed, taken and weighted are sums that can be written down") {
  ThreadPool two(2);
  for (const InstructionSet set : instruction_sets()) {
    for (const Parallel parallel : {Parallel{}, two.parallel()}) {
      const auto dy = normal_tensor(3, {1, 70, 13}, 1), small = normal_tensor(3, {4, 5, 13}, 2);
      for (const Accumulate accumulate : {Accumulate::no, Accumulate::yes}) {
        const bool sum = accumulate == Accumulate::yes;
        Tensor<float> placed = small, taken = dy;
        placed_positions_gradient(dy.view(), 50, placed.view(), accumulate, parallel, set);
        taken_positions_gradient(small.view(), 7, taken.view(), accumulate, parallel, set);
        bool good = true;
        for (std::int64_t n = 0; n < 3; ++n) {
          for (std::int64_t t = 0; t < 70; ++t) {
            for (std::int64_t c = 0; c < 13; ++c) {
              if (t < 20) {
                const float at = dy.view()(n, 0, 50 + t, c);
                good = good && placed.view()(n, t / 5, t % 5, c) == (sum ? small.view()(n, t / 5, t % 5, c) + at : at);
              }
              const float from = t >= 7 && t < 27 ? small.view()(n, (t - 7) / 5, (t - 7) % 5, c) : 0.0f;
              good = good && taken.view()(n, 0, t, c) == (sum ? dy.view()(n, 0, t, c) + from : from);
            }
          }
        }
        CHECK(good);
      }
      std::vector<float> positions(70 * 13, 1.0f), cls(13, 2.0f), second(13, 3.0f);
      const std::array<float*, 2> tokens{cls.data(), second.data()};
      token_weight_gradient(dy.view(), positions.data(), tokens, parallel, set);
      bool good = true;
      for (std::size_t i = 0; i < positions.size(); ++i) {
        double sum = 0.0, size = 3.0;
        for (std::size_t n = 0; n < 3; ++n) {
          sum += static_cast<double>(dy.data()[n * 70 * 13 + i]);
          size += std::abs(static_cast<double>(dy.data()[n * 70 * 13 + i]));
        }
        good = good && std::abs(static_cast<double>(positions[i]) - (1.0 + sum)) <= 4 * kUnit * size;
        if (i < 26) {
          const float got = i < 13 ? cls[i] : second[i - 13];
          good = good && std::abs(static_cast<double>(got) - ((i < 13 ? 2.0 : 3.0) + sum)) <= 4 * kUnit * size;
        }
      }
      CHECK(good);
    }
  }
}

}  // namespace
