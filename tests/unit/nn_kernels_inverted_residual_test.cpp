// Three convolutions as one against the three one after the other: the same bits for every shape, batch, number of workers and instruction
// set, residual beside and in place, scratch exactly as large as announced.
#include <doctest/doctest.h>

#include <cstring>

#include <norma/core/thread_pool.hpp>
#include <norma/nn/kernels/inverted_residual.hpp>

#include "../support/reference.hpp"

using namespace norma;
using nn::ConvolutionGeometry;

namespace {

struct Case {
  std::int64_t batch;
  Shape in;
  std::int64_t wide, out;
  ConvolutionGeometry g;  // of the depthwise convolution
  Activation activation = Activation::relu6;
};

constexpr ConvolutionGeometry square(int kernel, int stride, int pad) { return {kernel, kernel, stride, 1, pad, pad, pad, pad}; }

void check(Case c, InstructionSet set) {
  CAPTURE(to_string(set));
  CAPTURE(c.in.height);
  CAPTURE(c.in.width);
  CAPTURE(c.in.channels);
  CAPTURE(c.wide);
  CAPTURE(c.out);
  CAPTURE(c.g.kernel_height);
  CAPTURE(c.g.stride);
  c.g.groups = static_cast<int>(c.wide);
  constexpr ConvolutionGeometry point;
  const auto expand = nn::PackedConvolution::pack(test::normal_vector(c.wide * c.in.channels, 1), c.in, c.wide, point, set);
  const auto depthwise =
      nn::PackedConvolution::pack(test::normal_vector(c.wide * c.g.kernel_height * c.g.kernel_width, 2), expand.output(), c.wide, c.g, set);
  const auto project = nn::PackedConvolution::pack(test::normal_vector(c.out * c.wide, 3), depthwise.output(), c.out, point, set);
  const auto b1 = test::normal_vector(c.wide, 4), b2 = test::normal_vector(c.wide, 5), b3 = test::normal_vector(c.out, 6);
  const auto x = test::normal_tensor(c.batch, c.in, 7);
  const auto residual = test::normal_tensor(c.batch, project.output(), 8);
  Tensor<float> wide(c.batch, expand.output()), narrow(c.batch, depthwise.output());
  const auto bytes = static_cast<std::size_t>(residual.view().count()) * sizeof(float);
  for (const bool adds : {false, true}) {
    const TensorView<const float> more = adds ? residual.view() : TensorView<const float>{};
    Tensor<float> want(c.batch, project.output());
    Arena nothing;  // none of the three needs scratch
    nn::convolution(x.view(), expand, wide.view(), b1.data(), {}, c.activation, {}, nothing);
    nn::convolution(wide.view(), depthwise, narrow.view(), b2.data(), {}, c.activation, {}, nothing);
    nn::convolution(narrow.view(), project, want.view(), b3.data(), more, Activation::none, {}, nothing);
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      test::Scratch scratch(nn::inverted_residual_scratch_bytes(expand.output(), project.output(), c.g, threads));
      Arena arena = scratch.arena();
      Tensor<float> y(c.batch, project.output());
      const auto run = [&](TensorView<float> to, TensorView<const float> added) {
        nn::inverted_residual(x.view(), {expand, b1.data(), c.activation}, {depthwise, b2.data(), c.activation},
                              {project, b3.data(), Activation::none}, to, added, pool.parallel(), arena);
      };
      run(y.view(), more);
      CHECK(arena.used() == 0);
      CHECK(std::memcmp(y.data(), want.data(), bytes) == 0);
      if (adds) {
        Tensor<float> in_place = residual;
        run(in_place.view(), in_place.view());
        CHECK(std::memcmp(in_place.data(), want.data(), bytes) == 0);
      }
    }
  }
}

}  // namespace

static_assert(nn::inverted_residual_scratch_bytes({112, 112, 96}, {56, 56, 24}, square(3, 2, 1), 1) < 512 * 1024);
static_assert(nn::inverted_residual_scratch_bytes({56, 56, 144}, {56, 56, 24}, square(3, 1, 1), 2) ==
              2 * nn::inverted_residual_scratch_bytes({56, 56, 144}, {56, 56, 24}, square(3, 1, 1), 1));

TEST_CASE("inverted_residual: the bits of the three convolutions, strides, kernels, sizes that nothing divides") {
  for (const auto set : test::instruction_sets()) {
    for (const int kernel : {3, 5}) {
      for (const int stride : {1, 2}) {
        check({1, {28, 28, 8}, 48, 16, square(kernel, stride, kernel / 2)}, set);
        check({2, {13, 17, 5}, 35, 11, square(kernel, stride, kernel / 2)}, set);
        check({1, {9, 120, 4}, 20, 24, square(kernel, stride, kernel / 2)}, set);
        check({1, {1, 6, 3}, 16, 8, square(kernel, stride, kernel / 2)}, set);
      }
    }
  }
}

TEST_CASE("inverted_residual: padding on one side, none, and more than the kernel needs") {
  for (const auto set : test::instruction_sets()) {
    check({1, {14, 15, 6}, 32, 8, {3, 3, 2, 1, 0, 0, 1, 1}}, set);
    check({1, {14, 15, 6}, 32, 8, square(3, 1, 0)}, set);
    check({2, {4, 5, 6}, 16, 8, square(3, 1, 3)}, set);
    check({1, {12, 10, 6}, 16, 8, {7, 5, 3, 1, 3, 2, 3, 2}}, set);
    check({1, {3, 130, 6}, 16, 8, square(3, 4, 1)}, set);  // lines between windows that nobody reads
  }
}

TEST_CASE("inverted_residual: activations that are limits and others") {
  for (const auto set : test::instruction_sets()) {
    for (const auto activation : {Activation::none, Activation::relu, Activation::silu, Activation::hard_swish}) {
      check({1, {10, 20, 8}, 40, 12, square(3, 1, 1), activation}, set);
    }
  }
}
