// Convolutions and their gradients against the sums that define them, in double; whole numbers, so that nothing but a wrong address or a rounded
// result makes a difference.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <norma/cuda/convolution.cuh>

#include "device/operands.hpp"
#include "support/device.hpp"

namespace norma::test {

using cuda::Arithmetic;
using cuda::BFloat16;
using cuda::ConvolutionSettings;
using cuda::Half;

template <class T, class Draw = SmallIntegers>
std::vector<T> drawn(std::int64_t count, std::uint64_t seed) {
  std::vector<T> values(static_cast<std::size_t>(count));
  Random random(seed);
  for (T& v : values) v = Draw::template draw<T>(random);
  return values;
}

/// One convolution: its tensors on the host, and a loop over all products (pixel of y, tap inside the image, pixel of x).
template <class T>
struct ConvolutionCase {
  Shape image;
  std::int64_t batch, out;
  ConvolutionSettings settings;
  std::int64_t oh = cuda::convolution_side(image.height, settings), ow = cuda::convolution_side(image.width, settings);
  std::int64_t taps = settings.taps(), pixels = batch * oh * ow;
  std::vector<T> x = drawn<T>(batch * image.count(), 1), w = drawn<T>(out * taps * image.channels, 2), dy = drawn<T>(pixels * out, 3);

  /// f(index of y's pixel, tap, index of x's pixel)
  template <class F>
  void for_each_tap(F f) const {
    for (std::int64_t n = 0; n < batch; ++n) {
      for (std::int64_t y = 0; y < oh; ++y) {
        for (std::int64_t xx = 0; xx < ow; ++xx) {
          for (std::int64_t tap = 0; tap < taps; ++tap) {
            const std::int64_t iy = y * settings.stride - settings.padding + tap / settings.kernel,
                               ix = xx * settings.stride - settings.padding + tap % settings.kernel;
            if (iy < 0 || iy >= image.height || ix < 0 || ix >= image.width) continue;
            f((n * oh + y) * ow + xx, tap, (n * image.height + iy) * image.width + ix);
          }
        }
      }
    }
  }
  [[nodiscard]] double at(const std::vector<T>& v, std::int64_t i) const { return value_of(v[static_cast<std::size_t>(i)]); }
};

/// got == want rounded to T; the sums are whole numbers below 2^24, so their float is exact.
template <class T>
void check_exact(const std::vector<T>& got, const std::vector<double>& want) {
  REQUIRE(got.size() == want.size());
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double expected = value_of(element_from<T>(static_cast<float>(want[i])));
    if (!(value_of(got[i]) == expected) && ++wrong <= 3) MESSAGE(i << ": " << value_of(got[i]) << ", expected " << expected);
  }
  CHECK(wrong == 0);
}

template <class T, Arithmetic kArithmetic>
void check_convolution(Shape image, std::int64_t batch, std::int64_t out, const ConvolutionSettings& settings, bool with_epilogue) {
  const ConvolutionCase<T> c{image, batch, out, settings};
  CAPTURE(static_cast<int>(kArithmetic));
  CAPTURE(image.height);
  CAPTURE(image.width);
  CAPTURE(image.channels);
  CAPTURE(out);
  CAPTURE(settings.kernel);
  CAPTURE(settings.stride);
  CAPTURE(settings.padding);
  const DeviceArray<T> x(c.x), w(c.w), residual(c.dy);
  const std::vector<float> bias_values = drawn<float>(out, 4);
  const DeviceArray<float> bias(bias_values);
  DeviceArray<T> y(c.pixels * out);
  const std::size_t bytes = cuda::convolution_workspace_bytes(c.pixels, image.channels, out, settings);
  DeviceArray<std::byte> workspace(static_cast<std::int64_t>(bytes));
  const Status done = cuda::convolution<T, kArithmetic>(
      {}, TensorView<const T>(x.data(), batch, image), MatrixView<const T>(w.data(), out, c.taps * image.channels),
      TensorView<T>(y.data(), batch, c.oh, c.ow, out), settings, with_epilogue ? bias.data() : nullptr,
      with_epilogue ? Activation::relu : Activation::none, with_epilogue ? residual.data() : nullptr, {workspace.data(), bytes});
  REQUIRE_MESSAGE(done.ok(), done.message());
  std::vector<double> want(static_cast<std::size_t>(c.pixels * out), 0.0);
  c.for_each_tap([&](std::int64_t to, std::int64_t tap, std::int64_t from) {
    for (std::int64_t o = 0; o < out; ++o) {
      for (std::int64_t i = 0; i < image.channels; ++i) {
        want[static_cast<std::size_t>(to * out + o)] += c.at(c.x, from * image.channels + i) * c.at(c.w, (o * c.taps + tap) * image.channels + i);
      }
    }
  });
  if (with_epilogue) {
    for (std::size_t i = 0; i < want.size(); ++i) {
      want[i] += static_cast<double>(bias_values[i % static_cast<std::size_t>(out)]) + value_of(c.dy[i]);
      want[i] = want[i] < 0.0 ? 0.0 : want[i];
    }
  }
  check_exact(y.read(), want);
}

template <class T, Arithmetic kArithmetic>
void check_gradients(Shape image, std::int64_t batch, std::int64_t out, const ConvolutionSettings& settings) {
  const ConvolutionCase<T> c{image, batch, out, settings};
  CAPTURE(static_cast<int>(kArithmetic));
  CAPTURE(image.height);
  CAPTURE(image.width);
  CAPTURE(settings.kernel);
  CAPTURE(settings.stride);
  CAPTURE(settings.padding);
  const std::int64_t in = image.channels;
  const DeviceArray<T> x(c.x), w(c.w), dy(c.dy);
  DeviceArray<T> flipped(in * c.taps * out), dx(batch * image.count());
  DeviceArray<float> dw(out * c.taps * in), dbias(out);
  const std::size_t for_input = cuda::convolution_input_gradient_workspace_bytes(batch * image.positions(), in, out, settings),
                    for_weights = cuda::convolution_weight_gradient_workspace_bytes(c.pixels, in, out, settings);
  DeviceArray<std::byte> workspace(static_cast<std::int64_t>(std::max(for_input, for_weights)));
  const MatrixView<T> flipped_view(flipped.data(), in, c.taps * out);
  Status done = cuda::flip_convolution_weights<T>({}, MatrixView<const T>(w.data(), out, c.taps * in), flipped_view, settings.kernel);
  REQUIRE_MESSAGE(done.ok(), done.message());
  const TensorView<const T> dy_view(dy.data(), batch, c.oh, c.ow, out);
  done = cuda::convolution_input_gradient<T, kArithmetic>({}, dy_view, flipped_view, TensorView<T>(dx.data(), batch, image), settings,
                                                          {workspace.data(), for_input});
  REQUIRE_MESSAGE(done.ok(), done.message());
  done = cuda::convolution_weight_gradient<T, kArithmetic>({}, TensorView<const T>(x.data(), batch, image), dy_view, dw.matrix(out, c.taps * in),
                                                           dbias.data(), settings, {workspace.data(), for_weights});
  REQUIRE_MESSAGE(done.ok(), done.message());
  std::vector<double> want_dx(static_cast<std::size_t>(batch * image.count()), 0.0), want_dw(static_cast<std::size_t>(out * c.taps * in), 0.0),
      want_dbias(static_cast<std::size_t>(out), 0.0);
  c.for_each_tap([&](std::int64_t to, std::int64_t tap, std::int64_t from) {
    for (std::int64_t o = 0; o < out; ++o) {
      const double g = c.at(c.dy, to * out + o);
      for (std::int64_t i = 0; i < in; ++i) {
        want_dx[static_cast<std::size_t>(from * in + i)] += g * c.at(c.w, (o * c.taps + tap) * in + i);
        want_dw[static_cast<std::size_t>((o * c.taps + tap) * in + i)] += g * c.at(c.x, from * in + i);
      }
    }
  });
  for (std::int64_t i = 0; i < c.pixels * out; ++i) want_dbias[static_cast<std::size_t>(i % out)] += c.at(c.dy, i);
  check_exact(dx.read(), want_dx);
  check_exact(dw.read(), want_dw);
  check_exact(dbias.read(), want_dbias);
}

TEST_CASE("convolution: kernels, strides, padding") {
  if (!has_device()) return;
  for (const ConvolutionSettings& s :
       {ConvolutionSettings{1, 1, 0}, {1, 2, 0}, {3, 1, 1}, {3, 2, 1}, {3, 1, 0}, {3, 1, 2}, {5, 1, 2}, {5, 2, 1}, {7, 2, 3}, {7, 1, 3}}) {
    check_convolution<float, Arithmetic::tf32x3>({7, 9, 8}, 2, 12, s, false);
  }
}
TEST_CASE("convolution: arithmetic, bias, residual, ReLU, widths") {
  if (!has_device()) return;
  check_convolution<float, Arithmetic::fp32>({6, 5, 4}, 2, 7, {3, 1, 1}, true);
  check_convolution<float, Arithmetic::tf32>({9, 8, 12}, 1, 66, {3, 2, 1}, true);
  check_convolution<BFloat16, Arithmetic::bf16>({6, 7, 16}, 2, 24, {3, 1, 1}, true);
  check_convolution<BFloat16, Arithmetic::bf16>({1, 33, 40}, 1, 5, {1, 1, 0}, true);  // a linear layer
  check_convolution<Half, Arithmetic::f16>({8, 8, 8}, 1, 65, {5, 1, 2}, true);
  check_convolution<float, Arithmetic::tf32x3>({1, 1, 4}, 3, 1, {3, 1, 1}, true);
}
TEST_CASE("convolution: few pixels and many channels are cut along the depth") {
  if (!has_device()) return;
  REQUIRE(cuda::convolution_workspace_bytes(16, 128, 20, {3, 1, 1}) > 0);
  check_convolution<float, Arithmetic::tf32x3>({4, 4, 128}, 1, 20, {3, 1, 1}, true);
}
TEST_CASE("convolution: gradients") {
  if (!has_device()) return;
  for (const ConvolutionSettings& s : {ConvolutionSettings{1, 1, 0}, {1, 2, 0}, {3, 1, 1}, {3, 2, 1}, {3, 2, 0}, {5, 2, 2}, {5, 1, 1}}) {
    check_gradients<float, Arithmetic::tf32x3>({7, 8, 4}, 2, 8, s);
    check_gradients<float, Arithmetic::tf32x3>({8, 5, 8}, 1, 12, s);
  }
  check_gradients<float, Arithmetic::fp32>({6, 6, 8}, 1, 4, {3, 1, 1});
  check_gradients<float, Arithmetic::tf32>({6, 6, 8}, 1, 4, {3, 1, 1});
  check_gradients<BFloat16, Arithmetic::bf16>({5, 6, 16}, 2, 8, {3, 1, 1});
  check_gradients<Half, Arithmetic::f16>({4, 6, 8}, 1, 16, {3, 2, 1});
}
TEST_CASE("convolution: weights of many pixels are summed in parts") {
  if (!has_device()) return;
  REQUIRE(cuda::ProductPlan::make(8, 36, 2 * 20 * 20).parts > 1);
  check_gradients<float, Arithmetic::tf32x3>({20, 20, 4}, 2, 8, {3, 1, 1});
}

TEST_CASE("convolution: division by multiplication") {
  for (const std::int64_t d : {1, 2, 3, 5, 7, 49, 64, 100, 641, 784, 65535, 65536, 1000003, 2147483647}) {
    const cuda::Divisor divisor(d);
    CAPTURE(d);
    Random random(static_cast<std::uint64_t>(d));
    for (int i = 0; i < 1000; ++i) {
      const auto n = i < 3   ? static_cast<unsigned>(i)
                     : i < 6 ? static_cast<unsigned>(2147483647 - i + 3)
                             : static_cast<unsigned>(random.below(2147483648u));
      const auto exact = static_cast<unsigned>(n / d);
      REQUIRE(divisor.quotient(n) == exact);
      REQUIRE(divisor.remainder(n, exact) == n % static_cast<unsigned>(d));
      const auto multiple = static_cast<unsigned>(n / d * d);  // where rounding would show
      REQUIRE(divisor.quotient(multiple) == exact);
      if (multiple > 0) REQUIRE(divisor.quotient(multiple - 1) == (multiple - 1) / static_cast<unsigned>(d));
    }
  }
}

TEST_CASE("convolution: weights as kernels want them") {
  std::vector<float> weights(2 * 3 * 4);  // [out 2, in 3, 2 x 2]
  for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(i + 1);
  std::vector<float> packed(2 * 4 * 4);
  REQUIRE(cuda::repack_convolution_weights(std::span<const float>(weights), 2, 3, 2, 4, std::span<float>(packed), [](float x) { return x; }).ok());
  for (std::size_t o = 0; o < 2; ++o) {
    for (std::size_t tap = 0; tap < 4; ++tap) {
      for (std::size_t c = 0; c < 4; ++c) CHECK(packed[(o * 4 + tap) * 4 + c] == (c == 3 ? 0.0f : static_cast<float>((o * 3 + c) * 4 + tap + 1)));
    }
  }
  CHECK(cuda::repack_convolution_weights(std::span<const float>(weights), 2, 3, 2, 2, std::span<float>(packed), [](float x) { return x; }).code() ==
        Errc::shape_mismatch);
}

TEST_CASE("convolution: what is refused") {
  if (!has_device()) return;
  DeviceArray<float> memory(4096);
  DeviceArray<std::byte> workspace(1 << 16);
  float* const p = memory.data();
  const auto says = [](const Status& status, Errc code, const std::string& part) {
    INFO(status.message());
    CHECK(status.code() == code);
    CHECK(status.message().find("cuda::convolution") == 0);
    CHECK(status.message().find(part) != std::string::npos);
  };
  using In = TensorView<const float>;
  using Out = TensorView<float>;
  using Weights = MatrixView<const float>;
  const auto forward = [&](In x, Weights w, Out y, ConvolutionSettings s = {}, Activation activation = Activation::none) {
    return cuda::convolution<float, Arithmetic::fp32>({}, x, w, y, s, nullptr, activation);
  };
  const In x(p, 1, 4, 4, 8);
  const Weights w(p, 8, 72);
  const Out y(p, 1, 4, 4, 8);
  REQUIRE(forward(x, w, Out(p + 2048, 1, 4, 4, 8)).ok());
  says(forward(x, w, y, {0, 1, 0}), Errc::invalid_argument, "kernel and a stride of 1 to 15");
  says(forward(x, w, y, {3, 0, 1}), Errc::invalid_argument, "kernel and a stride of 1 to 15");
  says(forward(x, w, y, {3, 1, 3}), Errc::invalid_argument, "padding below the kernel");
  says(forward(x, w, Out(p, 1, 4, 5, 8)), Errc::shape_mismatch, "1 x 4 x 4, found 1 x 4 x 5");
  says(forward(x, w, Out(p, 2, 4, 4, 8)), Errc::shape_mismatch, "found 2 x");
  says(forward(x, Weights(p, 8, 64), y), Errc::shape_mismatch, "weights of 8 x 72");
  says(forward(In(p, 1, 4, 4, 6), Weights(p, 8, 54), y), Errc::invalid_argument, "a multiple of 4 channels");
  says(forward(In(nullptr, 1, 4, 4, 8), w, y), Errc::invalid_argument, "null");
  says(forward(x, w, Out(nullptr, 1, 4, 4, 8)), Errc::invalid_argument, "null");
  says(forward(x, Weights(nullptr, 8, 72), y), Errc::invalid_argument, "weights is null");
  says(forward(In(p + 2, 1, 4, 4, 8), w, y), Errc::invalid_argument, "aligned");
  says(forward(x, w, y, {}, Activation::silu), Errc::invalid_argument, "none or relu");
  says(forward(In(p, 1, 16001, 4, 8), w, Out(p, 1, 16001, 4, 8)), Errc::invalid_argument, "16000");
  says(forward(In(p, 10, 16000, 16000, 8), w, Out(p, 10, 16000, 16000, 8)), Errc::invalid_argument, "too large");
  says(cuda::convolution_input_gradient<float, Arithmetic::fp32>({}, In(p, 1, 2, 2, 8), w, y, {3, 3, 2}), Errc::invalid_argument, "stride of 1 or 2");
  says(cuda::convolution_weight_gradient<float, Arithmetic::fp32>({}, x, x, MatrixView<float>(p, 8, 72), nullptr, {}), Errc::out_of_memory,
       "workspace");
  says(cuda::convolution_weight_gradient<float, Arithmetic::fp32>({}, x, x, MatrixView<float>(p, 8, 70), nullptr, {},
                                                                  {workspace.data(), workspace.bytes()}),
       Errc::shape_mismatch, "dw of 8 x 72");
  CHECK(cuda::flip_convolution_weights<float>({}, w, MatrixView<float>(p, 8, 70), 3).code() == Errc::shape_mismatch);
}

}  // namespace norma::test
