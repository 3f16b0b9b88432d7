// Gradient kernels, every instruction set: convolutions against sums in double, linear layers against the equation that defines a
// transpose, <dy, F x> = <F' dy, x>, the others against their formulas in double. Bits must not depend on the number of workers.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/thread_pool.hpp>
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

}  // namespace
