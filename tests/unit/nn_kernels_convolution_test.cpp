// Convolution against sums in double, for every algorithm and instruction set.
//
// Bound for direct arithmetic: K products in one chain, |error| <= 4 sqrt(K) u sum|x w| with u = 2^-24 (see linalg_gemm_test.cpp), plus
// the roundings of bias and residual. Winograd adds and scales inputs and outputs by factors up to 8 in all; its error is measured against
// the same sum and against the rms that performance notes of other libraries report (1e-6).
#include <doctest/doctest.h>

#include <cstring>

#include <norma/core/thread_pool.hpp>
#include <norma/nn/kernels/convolution.hpp>

#include "../support/reference.hpp"

using namespace norma;
using nn::ConvolutionAlgorithm;
using nn::ConvolutionGeometry;

namespace {

constexpr double kUnit = 0x1p-24;

constexpr ConvolutionGeometry square(int kernel, int stride, int pad, int groups = 1, int dilation = 1) {
  return {kernel, kernel, stride, dilation, pad, pad, pad, pad, groups};
}

struct Case {
  std::int64_t batch;
  Shape in;
  std::int64_t out_channels;
  ConvolutionGeometry geometry;
};

Tensor<float> run(const Case& c, InstructionSet set, Parallel parallel, const float* bias, TensorView<const float> residual,
                  Activation activation, TensorView<const float> x, const std::vector<float>& w) {
  const auto packed = nn::PackedConvolution::pack(w, c.in, c.out_channels, c.geometry, set);
  CHECK(packed.bytes() >= w.size() * sizeof(float));
  Tensor<float> y(c.batch, packed.output());
  test::Scratch scratch(nn::convolution_scratch_bytes(c.in, c.out_channels, c.geometry, parallel.workers()));
  Arena arena = scratch.arena();
  nn::convolution(x, packed, y.view(), bias, residual, activation, parallel, arena);
  CHECK(arena.used() == 0);
  return y;
}

std::vector<float> weights_of(const Case& c) {
  return test::normal_vector(c.out_channels * c.in.channels / c.geometry.groups * c.geometry.kernel_height * c.geometry.kernel_width, 21);
}

void check_case(const Case& c, InstructionSet set) {
  CAPTURE(to_string(set));
  CAPTURE(c.batch);
  CAPTURE(c.in.height);
  CAPTURE(c.in.width);
  CAPTURE(c.in.channels);
  CAPTURE(c.out_channels);
  CAPTURE(c.geometry.kernel_height);
  CAPTURE(c.geometry.kernel_width);
  CAPTURE(c.geometry.stride);
  CAPTURE(c.geometry.groups);
  CAPTURE(c.geometry.dilation);
  const auto& g = c.geometry;
  const Shape out = nn::convolution_output(c.in, g, c.out_channels);
  const auto x = test::normal_tensor(c.batch, c.in, 20);
  const auto w = weights_of(c);
  const auto bias = test::normal_vector(c.out_channels, 22);
  const auto residual = test::normal_tensor(c.batch, out, 23);
  const auto y = run(c, set, {}, bias.data(), residual.view(), Activation::relu, x.view(), w);
  const double terms = static_cast<double>(c.in.channels / g.groups * g.kernel_height * g.kernel_width + 2);
  bool good = true;
  for (std::int64_t n = 0; n < c.batch; ++n) {
    for (std::int64_t oy = 0; oy < out.height; ++oy) {
      for (std::int64_t ox = 0; ox < out.width; ++ox) {
        for (std::int64_t o = 0; o < c.out_channels; ++o) {
          auto sum = test::convolve(x.view(), w, c.out_channels, g.kernel_height, g.kernel_width, g.stride, g.dilation, g.pad_top,
                                    g.pad_left, g.groups, n, oy, ox, o);
          sum.add(static_cast<double>(bias[static_cast<std::size_t>(o)]));
          sum.add(static_cast<double>(residual.view()(n, oy, ox, o)));
          const double want = sum.value < 0.0 ? 0.0 : sum.value;
          good = good && std::abs(static_cast<double>(y.view()(n, oy, ox, o)) - want) <= 4.0 * std::sqrt(terms) * kUnit * sum.magnitude;
        }
      }
    }
  }
  CHECK(good);
}

}  // namespace

TEST_CASE("convolution_output: the usual sizes") {
  CHECK(nn::convolution_output({224, 224, 3}, square(7, 2, 3), 64) == Shape{112, 112, 64});
  CHECK(nn::convolution_output({56, 56, 64}, square(3, 1, 1), 64) == Shape{56, 56, 64});
  CHECK(nn::convolution_output({56, 56, 64}, square(3, 2, 1), 128) == Shape{28, 28, 128});
  CHECK(nn::convolution_output({15, 15, 8}, square(3, 1, 0, 1, 2), 8) == Shape{11, 11, 8});
}

// Scratch is known to the compiler: what an embedded target reserves.
static_assert(nn::convolution_scratch_bytes({56, 56, 64}, 64, square(1, 1, 0), 2) == 0);
static_assert(nn::convolution_scratch_bytes({56, 56, 64}, 64, square(3, 1, 1), 1) < 1024 * 1024);
static_assert(nn::convolution_scratch_bytes({224, 224, 3}, 64, square(7, 2, 3), 2) ==
              2 * nn::convolution_scratch_bytes({224, 224, 3}, 64, square(7, 2, 3), 1));

TEST_CASE("convolution: pointwise") {
  for (const auto set : test::instruction_sets()) {
    check_case({1, {5, 7, 13}, 17, square(1, 1, 0)}, set);
    check_case({2, {4, 4, 64}, 33, square(1, 1, 0)}, set);
    // Whole register tiles and what is left, output channels that end with every part of a vector.
    for (const std::int64_t out : {1, 7, 8, 12, 16, 19, 24, 28, 32, 40, 48, 56}) check_case({1, {9, 11, 12}, out, square(1, 1, 0)}, set);
    check_case({3, {13, 14, 24}, 24, square(1, 1, 0)}, set);
  }
  CHECK(nn::convolution_algorithm({5, 7, 13}, 17, square(1, 1, 0)) == ConvolutionAlgorithm::pointwise);
}

TEST_CASE("convolution: gathered windows, strides, padding, dilation, groups") {
  for (const auto set : test::instruction_sets()) {
    check_case({1, {9, 11, 3}, 16, square(7, 2, 3)}, set);
    check_case({2, {8, 8, 5}, 9, square(3, 2, 1)}, set);
    check_case({1, {8, 9, 16}, 24, square(1, 2, 0)}, set);
    check_case({1, {9, 9, 4}, 6, square(3, 1, 2, 1, 2)}, set);
    check_case({1, {6, 6, 12}, 18, square(3, 1, 1, 3)}, set);
    check_case({2, {6, 5, 12}, 6, square(5, 2, 2, 2)}, set);
    check_case({1, {7, 9, 6}, 8, {1, 7, 1, 1, 0, 3, 0, 3, 1}}, set);
    check_case({1, {7, 9, 6}, 8, {4, 2, 2, 1, 0, 1, 3, 0, 1}}, set);
    check_case({1, {3, 3, 2}, 3, square(3, 1, 0)}, set);
    check_case({1, {1, 1, 3}, 5, square(3, 1, 1)}, set);
    check_case({1, {20, 20, 7}, 3, square(5, 3, 2)}, set);
    // Wide enough for windows that are multiplied where they lie, with tiles at every border and a rest at the end of a line.
    check_case({1, {11, 64, 3}, 24, square(3, 2, 1)}, set);
    check_case({2, {7, 59, 3}, 40, square(7, 2, 3)}, set);
    check_case({1, {6, 45, 5}, 8, square(3, 1, 1)}, set);
    check_case({1, {5, 70, 4}, 17, {2, 5, 2, 1, 0, 1, 1, 4, 1}}, set);
    check_case({1, {5, 60, 20}, 33, square(1, 2, 0)}, set);
    check_case({1, {9, 33, 11}, 5, {3, 3, 1, 1, 0, 0, 0, 0, 1}}, set);
  }
}

TEST_CASE("convolution: depthwise") {
  for (const auto set : test::instruction_sets()) {
    for (const std::int64_t channels : {2, 8, 15, 16, 17, 33, 48})
      check_case({1, {6, 7, channels}, channels, square(3, 1, 1, static_cast<int>(channels))}, set);
    check_case({2, {9, 9, 20}, 20, square(5, 2, 2, 20)}, set);
    check_case({1, {10, 12, 16}, 16, {3, 3, 2, 1, 0, 0, 1, 1, 16}}, set);
    check_case({1, {4, 21, 16}, 16, square(5, 1, 2, 16)}, set);
    check_case({1, {9, 9, 16}, 16, square(3, 1, 2, 16, 2)}, set);
    check_case({1, {2, 2, 16}, 16, square(5, 1, 2, 16)}, set);
    // Blocks of eight outputs, whole and in part, several blocks of channels, bands of lines.
    for (const std::int64_t width : {7, 8, 9, 14, 17, 30}) {
      for (const int kernel : {3, 5}) {
        for (const int stride : {1, 2}) check_case({1, {11, width, 72}, 72, square(kernel, stride, kernel / 2, 72)}, set);
      }
    }
    check_case({2, {5, 20, 145}, 145, square(3, 1, 1, 145)}, set);
    check_case({1, {6, 20, 32}, 32, {3, 3, 2, 1, 0, 0, 1, 1, 32}}, set);
    check_case({1, {6, 20, 32}, 32, {5, 5, 1, 1, 4, 4, 4, 4, 32}}, set);
    check_case({1, {9, 9, 16}, 16, square(3, 3, 1, 16)}, set);
    check_case({1, {9, 12, 20}, 20, square(7, 1, 3, 20)}, set);
  }
  CHECK(nn::convolution_algorithm({6, 7, 8}, 8, square(3, 1, 1, 8)) == ConvolutionAlgorithm::depthwise);
  CHECK(nn::convolution_algorithm({6, 7, 8}, 16, square(3, 1, 1, 8)) == ConvolutionAlgorithm::im2col);
}

TEST_CASE("convolution: Winograd, whole and cut tiles, channel counts around the vectors") {
  for (const auto set : test::instruction_sets()) {
    check_case({1, {12, 12, 16}, 16, square(3, 1, 1)}, set);
    check_case({1, {12, 16, 64}, 64, square(3, 1, 1)}, set);
    check_case({2, {14, 14, 17}, 35, square(3, 1, 1)}, set);
    check_case({1, {13, 15, 40}, 33, square(3, 1, 1)}, set);
    check_case({1, {13, 11, 20}, 16, square(3, 1, 0)}, set);
    check_case({3, {9, 10, 31}, 19, {3, 3, 1, 1, 2, 0, 1, 2, 1}}, set);
    check_case({5, {30, 9, 18}, 50, square(3, 1, 1)}, set);  // several blocks
  }
  CHECK(nn::convolution_algorithm({56, 56, 64}, 64, square(3, 1, 1)) == ConvolutionAlgorithm::winograd);
  CHECK(nn::convolution_algorithm({7, 7, 512}, 512, square(3, 1, 1)) == ConvolutionAlgorithm::im2col);
}

TEST_CASE("convolution: Winograd's rms error is about 1e-6 of the output's rms") {
  const Case c{1, {16, 16, 128}, 64, square(3, 1, 1)};
  const auto x = test::normal_tensor(1, c.in, 40);
  const auto w = weights_of(c);
  for (const auto set : test::instruction_sets()) {
    CAPTURE(to_string(set));
    const auto y = run(c, set, {}, nullptr, {}, Activation::none, x.view(), w);
    double error = 0.0, power = 0.0, worst = 0.0;
    for (std::int64_t i = 0; i < y.view().count(); ++i) {
      const std::int64_t o = i % 64, position = i / 64;
      const double want = test::convolve(x.view(), w, 64, 3, 3, 1, 1, 1, 1, 1, 0, position / 16, position % 16, o).value;
      const double difference = static_cast<double>(y.data()[i]) - want;
      error += difference * difference;
      power += want * want;
      worst = std::max(worst, std::abs(difference));
      if (!(std::abs(difference) <= 1e30)) error = std::numeric_limits<double>::infinity();
    }
    const double rms = std::sqrt(power / static_cast<double>(y.view().count()));
    const double relative = std::sqrt(error / power);
    CAPTURE(relative);
    CHECK(relative <= 2e-6);
    CHECK(worst <= 2e-5 * rms);
  }
}

TEST_CASE("convolution: no bias, no residual, every activation") {
  for (const Case& c : {Case{1, {6, 6, 9}, 19, square(3, 2, 1)}, Case{1, {7, 9, 20}, 24, square(1, 1, 0)},
                        Case{1, {6, 19, 40}, 40, square(3, 1, 1, 40)}, Case{1, {5, 60, 3}, 16, square(3, 2, 1)}}) {
    for (const auto set : test::instruction_sets()) {
      const auto x = test::normal_tensor(c.batch, c.in, 30);
      const auto w = weights_of(c);
      const auto plain = run(c, set, {}, nullptr, {}, Activation::none, x.view(), w);
      for (const auto activation : test::kActivations) {
        CAPTURE(static_cast<int>(activation));
        const auto y = run(c, set, {}, nullptr, {}, activation, x.view(), w);
        bool good = true;
        for (std::int64_t i = 0; i < y.view().count(); ++i) {
          const double want = test::activate(static_cast<double>(plain.data()[i]), activation);
          good = good && std::abs(static_cast<double>(y.data()[i]) - want) <= 4e-7 * std::abs(want) + 2e-7;
        }
        CHECK(good);
      }
    }
  }
}

TEST_CASE("convolution: bit-equal for any number of threads, residual in place") {
  for (const auto set : test::instruction_sets()) {
    for (const Case& c : {Case{1, {14, 14, 32}, 48, square(1, 1, 0)}, Case{2, {17, 15, 8}, 24, square(3, 2, 1)},
                          Case{1, {19, 14, 40}, 40, square(3, 1, 1, 40)}, Case{2, {23, 60, 3}, 24, square(3, 2, 1)},
                          Case{1, {30, 30, 16}, 24, square(1, 1, 0)}, Case{1, {28, 28, 32}, 32, square(3, 1, 1)},
                          Case{3, {9, 10, 16}, 40, square(3, 1, 1)}, Case{1, {12, 12, 32}, 96, square(3, 1, 1)}}) {
      const Shape out = nn::convolution_output(c.in, c.geometry, c.out_channels);
      const auto x = test::normal_tensor(c.batch, c.in, 31);
      const auto residual = test::normal_tensor(c.batch, out, 32);
      const auto w = weights_of(c);
      const auto bytes = static_cast<std::size_t>(residual.view().count()) * sizeof(float);
      const auto first = run(c, set, {}, nullptr, residual.view(), Activation::relu, x.view(), w);
      for (const int threads : {2, 3, 4}) {
        ThreadPool pool(threads);
        const auto y = run(c, set, pool.parallel(), nullptr, residual.view(), Activation::relu, x.view(), w);
        CHECK(std::memcmp(y.data(), first.data(), bytes) == 0);
      }
      auto y = residual;
      const auto packed = nn::PackedConvolution::pack(w, c.in, c.out_channels, c.geometry, set);
      test::Scratch scratch(nn::convolution_scratch_bytes(c.in, c.out_channels, c.geometry, 1));
      Arena arena = scratch.arena();
      nn::convolution(x.view(), packed, y.view(), nullptr, y.view(), Activation::relu, {}, arena);
      CHECK(std::memcmp(y.data(), first.data(), bytes) == 0);
    }
  }
}

TEST_CASE("convolution: a NaN pixel reaches every output that sees it") {
  for (const auto set : test::instruction_sets()) {
    for (const auto& g : {square(3, 1, 1), square(3, 2, 1), square(1, 1, 0), square(3, 1, 1, 32), square(5, 1, 2, 32)}) {
      for (const std::int64_t width : {12, 64}) {
        const Case c{1, {12, width, 32}, 32, g};
        auto x = test::normal_tensor(1, c.in, 33);
        x.view()(0, 5, 6, 3) = std::numeric_limits<float>::quiet_NaN();
        const auto y = run(c, set, {}, nullptr, {}, g.groups == 1 ? Activation::relu : Activation::relu6, x.view(), weights_of(c));
        const Shape out = y.shape();
        bool seen = true;
        std::int64_t clean = 0;
        for (std::int64_t oy = 0; oy < out.height; ++oy) {
          for (std::int64_t ox = 0; ox < out.width; ++ox) {
            const std::int64_t dy = 5 - (oy * g.stride - g.pad_top), dx = 6 - (ox * g.stride - g.pad_left);
            const bool sees = dy >= 0 && dy < g.kernel_height && dx >= 0 && dx < g.kernel_width;
            const float value = y.view()(0, oy, ox, 3);
            if (sees) seen = seen && std::isnan(value);
            if (!std::isnan(value)) ++clean;
          }
        }
        CHECK(seen);
        CHECK(clean >= out.positions() - 36);  // Winograd spreads it over the tiles that read it, not further
      }
    }
  }
}

TEST_CASE("convolution_transposed: scattered products, every phase") {
  struct Transposed {
    std::int64_t batch;
    Shape in;
    std::int64_t out_channels;
    ConvolutionGeometry g;
  };
  const Transposed cases[] = {
      {1, {5, 6, 7}, 9, square(2, 2, 0)},
      {2, {4, 4, 16}, 33, square(4, 2, 1)},
      {1, {5, 4, 8}, 5, {3, 3, 2, 1, 1, 1, 0, 0, 1}},  // output_padding 1
      {1, {6, 5, 3}, 17, square(3, 1, 1)},
      {2, {3, 5, 4}, 8, square(5, 3, 1)},
      {1, {1, 1, 6}, 4, square(4, 1, 0)},
      {1, {4, 3, 5}, 6, {2, 4, 2, 1, 0, 1, 0, 1, 1}},
  };
  for (const auto set : test::instruction_sets()) {
    for (const auto& c : cases) {
      CAPTURE(to_string(set));
      CAPTURE(c.in.channels);
      const auto& g = c.g;
      const Shape out = nn::transposed_convolution_output(c.in, g, c.out_channels);
      const auto x = test::normal_tensor(c.batch, c.in, 50);
      const auto w = test::normal_vector(c.in.channels * c.out_channels * g.kernel_height * g.kernel_width, 51);
      const auto bias = test::normal_vector(c.out_channels, 52);
      const auto residual = test::normal_tensor(c.batch, out, 53);
      const auto packed = nn::PackedTransposedConvolution::pack(w, c.in, c.out_channels, g, set);
      CHECK(packed.output() == out);
      CHECK(packed.bytes() >= w.size() * sizeof(float));
      Tensor<float> first;
      for (const int threads : {1, 2, 4}) {
        ThreadPool pool(threads);
        Tensor<float> y(c.batch, out);
        test::Scratch scratch(nn::convolution_transposed_scratch_bytes(c.in, c.out_channels, g, threads));
        Arena arena = scratch.arena();
        nn::convolution_transposed(x.view(), packed, y.view(), bias.data(), residual.view(), Activation::leaky_relu, pool.parallel(),
                                   arena);
        CHECK(arena.used() == 0);
        if (threads == 1) first = y;
        CHECK(std::memcmp(y.data(), first.data(), static_cast<std::size_t>(y.view().count()) * sizeof(float)) == 0);
      }
      std::vector<test::BoundedSum> want(static_cast<std::size_t>(c.batch * out.count()));
      const auto at = [&](std::int64_t n, std::int64_t oy, std::int64_t ox, std::int64_t o) -> test::BoundedSum& {
        return want[static_cast<std::size_t>(((n * out.height + oy) * out.width + ox) * out.channels + o)];
      };
      for (std::int64_t n = 0; n < c.batch; ++n) {
        for (std::int64_t iy = 0; iy < c.in.height; ++iy) {
          for (std::int64_t ix = 0; ix < c.in.width; ++ix) {
            for (int u = 0; u < g.kernel_height; ++u) {
              for (int v = 0; v < g.kernel_width; ++v) {
                const std::int64_t oy = iy * g.stride + u - g.pad_top, ox = ix * g.stride + v - g.pad_left;
                if (oy < 0 || oy >= out.height || ox < 0 || ox >= out.width) continue;
                for (std::int64_t i = 0; i < c.in.channels; ++i) {
                  for (std::int64_t o = 0; o < c.out_channels; ++o) {
                    const auto k = static_cast<std::size_t>(((i * c.out_channels + o) * g.kernel_height + u) * g.kernel_width + v);
                    at(n, oy, ox, o).add(static_cast<double>(x.view()(n, iy, ix, i)) * static_cast<double>(w[k]));
                  }
                }
              }
            }
          }
        }
      }
      const double terms = static_cast<double>(c.in.channels * g.kernel_height * g.kernel_width + 2);
      bool good = true;
      for (std::int64_t i = 0; i < c.batch * out.count(); ++i) {
        auto sum = want[static_cast<std::size_t>(i)];
        sum.add(static_cast<double>(bias[static_cast<std::size_t>(i % out.channels)]));
        sum.add(static_cast<double>(residual.data()[i]));
        const double value = test::activate(sum.value, Activation::leaky_relu);
        good = good && std::abs(static_cast<double>(first.data()[i]) - value) <= 4.0 * std::sqrt(terms) * kUnit * sum.magnitude;
      }
      CHECK(good);
    }
  }
}
