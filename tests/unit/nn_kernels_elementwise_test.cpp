// Activations, sums, gates, concatenation and enlarging against double references.
#include <doctest/doctest.h>

#include <array>
#include <cstring>

#include <norma/core/thread_pool.hpp>
#include <norma/nn/kernels/elementwise.hpp>

#include "../support/reference.hpp"

using namespace norma;

TEST_CASE("activate: relative error below 1e-6 over the whole range, NaN stays") {
  // sigmoid, silu and tanh: exp within 2e-7, a sum and a division (each 6e-8). gelu: erfc within 2e-7 + z^2 6e-8, z^2 = x^2 / 2.
  std::vector<float> x;
  for (float v = -100.0f; v <= 100.0f; v += 0.0137f) x.push_back(v);
  for (float v = -1.0f; v <= 1.0f; v += 0.00071f) x.push_back(v);
  for (float v : {0.0f, -0.0f, 1e-30f, -1e-30f, 1e-6f, -1e-6f, 1e30f, -1e30f, 3.0f, -3.0f, 6.0f, 88.0f, -88.0f}) x.push_back(v);
  for (const auto set : test::instruction_sets()) {
    for (const auto activation : test::kActivations) {
      CAPTURE(to_string(set));
      CAPTURE(static_cast<int>(activation));
      const auto count = static_cast<std::int64_t>(x.size());
      std::vector<float> y(x.size());
      nn::activate({x.data(), 1, 1, 1, count}, activation, {y.data(), 1, 1, 1, count}, {}, set);
      double worst = 0.0;
      for (std::size_t i = 0; i < x.size(); ++i) {
        const double in = static_cast<double>(x[i]);
        const double want = test::activate(in, activation);
        double bound = 1e-6 * std::abs(want) + 1.2e-37 * std::max(1.0, std::abs(in));  // exp stops at 1.2e-38
        if (activation == Activation::gelu) bound = (1e-6 + 1e-7 * std::min(in * in, 200.0)) * std::abs(want) + 1e-36;
        if (activation == Activation::gelu && in < 0.0) bound += 1e-6 * std::min(1.0, std::abs(in)) * 1e-3;
        const double error = std::abs(static_cast<double>(y[i]) - want);
        if (!(error <= bound)) {
          CAPTURE(x[i]);
          CAPTURE(y[i]);
          CHECK(error <= bound);
          break;
        }
        worst = std::max(worst, error);
      }
      float nan[3] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::quiet_NaN(), 1.0f};
      nn::activate({nan, 1, 1, 1, 3}, activation, {nan, 1, 1, 1, 3}, {}, set);
      CHECK(std::isnan(nan[0]));
      CHECK(std::isnan(nan[1]));
      CHECK(!std::isnan(nan[2]));
    }
  }
}

TEST_CASE("add: sum and activation, in place, any count and thread number") {
  for (const auto set : test::instruction_sets()) {
    for (const std::int64_t channels : {1, 3, 4, 7, 8, 15, 16, 17, 33}) {
      const auto a = test::normal_tensor(2, {3, 5, channels}, 1), b = test::normal_tensor(2, {3, 5, channels}, 2);
      auto y = a;
      nn::add(y.view(), b.view(), Activation::relu, y.view(), {}, set);
      bool good = true;
      for (std::int64_t i = 0; i < a.view().count(); ++i) good = good && y.data()[i] == std::max(0.0f, a.data()[i] + b.data()[i]);
      CHECK(good);
    }
    const auto a = test::normal_tensor(1, {64, 64, 17}, 3), b = test::normal_tensor(1, {64, 64, 17}, 4);
    Tensor<float> one(1, a.shape()), three(1, a.shape());
    ThreadPool pool(3);
    nn::add(a.view(), b.view(), Activation::none, one.view(), {}, set);
    nn::add(a.view(), b.view(), Activation::none, three.view(), pool.parallel(), set);
    CHECK(std::memcmp(one.data(), three.data(), static_cast<std::size_t>(one.view().count()) * sizeof(float)) == 0);
  }
}

TEST_CASE("multiply_channels and scale_channels") {
  for (const auto set : test::instruction_sets()) {
    for (const std::int64_t channels : {1, 5, 16, 17, 40}) {
      const auto x = test::normal_tensor(2, {4, 3, channels}, 5);
      const auto gate = test::normal_tensor(2, {1, 1, channels}, 6);
      const auto shift = test::normal_vector(channels, 7);
      Tensor<float> y(2, x.shape()), z(2, x.shape());
      nn::multiply_channels(x.view(), gate.view(), y.view(), {}, set);
      nn::scale_channels(x.view(), gate.data(), shift.data(), Activation::relu, z.view(), {}, set);
      bool good = true;
      for (std::int64_t n = 0; n < 2; ++n) {
        for (std::int64_t i = 0; i < 4; ++i) {
          for (std::int64_t j = 0; j < 3; ++j) {
            for (std::int64_t c = 0; c < channels; ++c) {
              good = good && y.view()(n, i, j, c) == x.view()(n, i, j, c) * gate.view()(n, 0, 0, c);
              const double product = static_cast<double>(x.view()(n, i, j, c)) * static_cast<double>(gate.view()(0, 0, 0, c));
              const double add = static_cast<double>(shift[static_cast<std::size_t>(c)]);
              const double bound = 0x1p-23 * (std::abs(product) + std::abs(add));
              good = good && std::abs(static_cast<double>(z.view()(n, i, j, c)) - std::max(0.0, product + add)) <= bound;
            }
          }
        }
      }
      CHECK(good);
    }
  }
}

TEST_CASE("concat_channels: parts in order") {
  const auto a = test::normal_tensor(2, {5, 7, 3}, 8), b = test::normal_tensor(2, {5, 7, 16}, 9), c = test::normal_tensor(2, {5, 7, 1}, 10);
  const std::array<TensorView<const float>, 3> parts{a.view(), b.view(), c.view()};
  ThreadPool pool(2);
  Tensor<float> y(2, 5, 7, 20);
  nn::concat_channels(parts, y.view(), pool.parallel());
  bool good = true;
  for (std::int64_t n = 0; n < 2; ++n) {
    for (std::int64_t i = 0; i < 5; ++i) {
      for (std::int64_t j = 0; j < 7; ++j) {
        for (std::int64_t k = 0; k < 20; ++k) {
          const float want = k < 3 ? a.view()(n, i, j, k) : k < 19 ? b.view()(n, i, j, k - 3) : c.view()(n, i, j, 0);
          good = good && y.view()(n, i, j, k) == want;
        }
      }
    }
  }
  CHECK(good);
}

TEST_CASE("upsample_nearest: whole and fractional factors") {
  for (const auto& [height, width] : {std::pair<std::int64_t, std::int64_t>{6, 8}, {7, 5}, {3, 4}, {2, 2}}) {
    const auto x = test::normal_tensor(2, {3, 4, 5}, 11);
    Tensor<float> y(2, height, width, 5);
    nn::upsample_nearest(x.view(), y.view(), {});
    bool good = true;
    for (std::int64_t n = 0; n < 2; ++n) {
      for (std::int64_t i = 0; i < height; ++i) {
        for (std::int64_t j = 0; j < width; ++j) {
          for (std::int64_t c = 0; c < 5; ++c) good = good && y.view()(n, i, j, c) == x.view()(n, i * 3 / height, j * 4 / width, c);
        }
      }
    }
    CHECK(good);
  }
}

TEST_CASE("upsample_bilinear: a plane is reproduced, both alignments; corners and clamping") {
  // A bilinear function is its own interpolation: f(i, j) = 1 + 2 i - 3 j + i j / 2 at the source's coordinates.
  const auto plane = [](double i, double j) { return 1.0 + 2.0 * i - 3.0 * j + 0.5 * i * j; };
  for (const auto set : test::instruction_sets()) {
    for (const std::int64_t channels : {1, 8, 19}) {
      Tensor<float> x(1, 4, 5, channels);
      for (std::int64_t i = 0; i < 4; ++i) {
        for (std::int64_t j = 0; j < 5; ++j) {
          for (std::int64_t c = 0; c < channels; ++c)
            x.view()(0, i, j, c) = static_cast<float>(plane(static_cast<double>(i), static_cast<double>(j))) + static_cast<float>(c);
        }
      }
      for (const auto align : {nn::AlignCorners::no, nn::AlignCorners::yes}) {
        for (const auto& [height, width] : {std::pair<std::int64_t, std::int64_t>{8, 10}, {7, 13}, {4, 5}, {1, 1}}) {
          Tensor<float> y(1, height, width, channels);
          nn::upsample_bilinear(x.view(), align, y.view(), {}, set);
          const auto source = [&](std::int64_t o, std::int64_t out, double in) {
            const double od = static_cast<double>(o), outd = static_cast<double>(out);
            if (align == nn::AlignCorners::yes) return out == 1 ? 0.0 : od * (in - 1.0) / (outd - 1.0);
            return std::min(std::max((od + 0.5) * in / outd - 0.5, 0.0), in - 1.0);
          };
          bool good = true;
          for (std::int64_t i = 0; i < height; ++i) {
            for (std::int64_t j = 0; j < width; ++j) {
              for (std::int64_t c = 0; c < channels; ++c) {
                const double want = plane(source(i, height, 4.0), source(j, width, 5.0)) + static_cast<double>(c);
                // weights rounded to float, five roundings of values up to 40
                good = good && std::abs(static_cast<double>(y.view()(0, i, j, c)) - want) <= 8.0 * 40.0 * 0x1p-24;
              }
            }
          }
          CHECK(good);
        }
      }
    }
  }
}

TEST_CASE("multiply: element by element") {
  for (const auto set : test::instruction_sets()) {
    const auto a = test::normal_tensor(2, {3, 5, 17}, 12), b = test::normal_tensor(2, {3, 5, 17}, 13);
    Tensor<float> y(2, a.shape());
    nn::multiply(a.view(), b.view(), y.view(), {}, set);
    bool good = true;
    for (std::int64_t i = 0; i < a.view().count(); ++i) good = good && y.data()[i] == a.data()[i] * b.data()[i];
    CHECK(good);
  }
}

TEST_CASE("instance_norm: mean zero and unit variance per image and channel, large offsets") {
  for (const auto set : test::instruction_sets()) {
    for (const std::int64_t channels : {1, 3, 16, 33, 70}) {
      auto x = test::normal_tensor(2, {9, 11, channels}, 14);
      for (std::int64_t i = 0; i < 99; ++i) x.data()[i * channels] += 50.0f;
      const float eps = 1e-5f;
      Tensor<float> y(2, x.shape());
      ThreadPool pool(2);
      nn::instance_norm(x.view(), eps, y.view(), pool.parallel(), set);
      bool good = true;
      for (std::int64_t n = 0; n < 2; ++n) {
        for (std::int64_t c = 0; c < channels; ++c) {
          double mean = 0.0, variance = 0.0;
          for (std::int64_t i = 0; i < 99; ++i) mean += static_cast<double>(x.view()(n, i / 11, i % 11, c)) / 99.0;
          for (std::int64_t i = 0; i < 99; ++i)
            variance += std::pow(static_cast<double>(x.view()(n, i / 11, i % 11, c)) - mean, 2.0) / 99.0;
          const double factor = 1.0 / std::sqrt(variance + static_cast<double>(eps));
          for (std::int64_t i = 0; i < 99; ++i) {
            const double want = (static_cast<double>(x.view()(n, i / 11, i % 11, c)) - mean) * factor;
            // line sums of 11 in float move the mean by at most 11 u of it; the difference, factor and product round once each
            const double bound = 12.0 * 0x1p-24 * (std::abs(mean) + 1.0) * factor + 1e-6 * std::abs(want);
            good = good && std::abs(static_cast<double>(y.view()(n, i / 11, i % 11, c)) - want) <= bound;
          }
        }
      }
      CHECK(good);
    }
  }
}
