// Pooling against windows summed in double.
#include <doctest/doctest.h>

#include <cstring>

#include <norma/core/thread_pool.hpp>
#include <norma/nn/kernels/pooling.hpp>

#include "../support/reference.hpp"

using namespace norma;
using nn::PoolingGeometry;

namespace {

struct Case {
  Shape in;
  PoolingGeometry geometry;
  nn::Rounding rounding = nn::Rounding::floor;
};
constexpr PoolingGeometry square(int kernel, int stride, int pad) { return {kernel, kernel, stride, pad, pad, pad, pad}; }

const Case kCases[] = {
    {{12, 12, 64}, square(3, 2, 1)},
    {{7, 9, 5}, square(3, 1, 1)},
    {{8, 8, 16}, square(2, 2, 0)},
    {{7, 7, 17}, square(2, 2, 0), nn::Rounding::ceil},
    {{9, 6, 33}, square(3, 2, 0), nn::Rounding::ceil},
    {{5, 5, 1}, square(5, 1, 2)},
    {{6, 8, 7}, {2, 3, 2, 0, 1, 1, 1}},
    {{1, 1, 8}, square(3, 1, 1)},
    {{4, 4, 3}, square(4, 4, 0)},
};

/// Calls body(value) for every position of the window inside the map.
template <class Body>
void window(TensorView<const float> x, const PoolingGeometry& g, std::int64_t n, std::int64_t oy, std::int64_t ox, std::int64_t c,
            Body&& body) {
  for (int ky = 0; ky < g.kernel_height; ++ky) {
    for (int kx = 0; kx < g.kernel_width; ++kx) {
      const std::int64_t iy = oy * g.stride + ky - g.pad_top, ix = ox * g.stride + kx - g.pad_left;
      if (iy >= 0 && iy < x.height && ix >= 0 && ix < x.width) body(x(n, iy, ix, c));
    }
  }
}

}  // namespace

TEST_CASE("pooling_output: as PyTorch counts") {
  CHECK(nn::pooling_output({112, 112, 64}, square(3, 2, 1)) == Shape{56, 56, 64});
  CHECK(nn::pooling_output({7, 7, 4}, square(2, 2, 0)) == Shape{3, 3, 4});
  CHECK(nn::pooling_output({7, 7, 4}, square(2, 2, 0), nn::Rounding::ceil) == Shape{4, 4, 4});
  CHECK(nn::pooling_output({5, 5, 4}, square(2, 2, 1), nn::Rounding::ceil) ==
        Shape{3, 3, 4});  // torch.nn.MaxPool2d(2, 2, 1, ceil_mode=True)
}

TEST_CASE("max_pool: exact, every instruction set and thread number") {
  for (const auto set : test::instruction_sets()) {
    for (const auto& c : kCases) {
      CAPTURE(to_string(set));
      CAPTURE(c.in.channels);
      const auto x = test::normal_tensor(2, c.in, 1);
      Tensor<float> y(2, nn::pooling_output(c.in, c.geometry, c.rounding));
      ThreadPool pool(3);
      nn::max_pool(x.view(), c.geometry, y.view(), pool.parallel(), set);
      bool good = true;
      for (std::int64_t n = 0; n < 2; ++n) {
        for (std::int64_t oy = 0; oy < y.shape().height; ++oy) {
          for (std::int64_t ox = 0; ox < y.shape().width; ++ox) {
            for (std::int64_t k = 0; k < c.in.channels; ++k) {
              float want = -std::numeric_limits<float>::infinity();
              window(x.view(), c.geometry, n, oy, ox, k, [&](float v) { want = std::max(want, v); });
              good = good && y.view()(n, oy, ox, k) == want;
            }
          }
        }
      }
      CHECK(good);
    }
  }
}

TEST_CASE("max_pool: NaN anywhere in a window makes the result NaN, elsewhere nothing changes") {
  for (const auto set : test::instruction_sets()) {
    for (const std::int64_t channels : {3, 16, 21}) {
      auto x = test::normal_tensor(1, {8, 8, channels}, 2);
      x.view()(0, 3, 4, 2) = std::numeric_limits<float>::quiet_NaN();
      const auto g = square(3, 1, 1);
      Tensor<float> y(1, x.shape());
      nn::max_pool(x.view(), g, y.view(), {}, set);
      bool good = true;
      for (std::int64_t oy = 0; oy < 8; ++oy) {
        for (std::int64_t ox = 0; ox < 8; ++ox) {
          for (std::int64_t k = 0; k < channels; ++k) {
            const bool sees = k == 2 && std::abs(oy - 3) <= 1 && std::abs(ox - 4) <= 1;
            good = good && std::isnan(y.view()(0, oy, ox, k)) == sees;
          }
        }
      }
      CHECK(good);
    }
  }
}

TEST_CASE("average_pool: both ways of counting the padding") {
  for (const auto set : test::instruction_sets()) {
    for (const auto& c : kCases) {
      for (const auto counts : {nn::PaddingCounts::no, nn::PaddingCounts::yes}) {
        CAPTURE(to_string(set));
        const auto& g = c.geometry;
        const auto x = test::normal_tensor(2, c.in, 3);
        Tensor<float> y(2, nn::pooling_output(c.in, g, c.rounding));
        nn::average_pool(x.view(), g, counts, y.view(), {}, set);
        bool good = true;
        for (std::int64_t n = 0; n < 2; ++n) {
          for (std::int64_t oy = 0; oy < y.shape().height; ++oy) {
            for (std::int64_t ox = 0; ox < y.shape().width; ++ox) {
              for (std::int64_t k = 0; k < c.in.channels; ++k) {
                double sum = 0.0, size = 0.0, inside = 0.0;
                window(x.view(), g, n, oy, ox, k, [&](float v) {
                  sum += static_cast<double>(v);
                  size += std::abs(static_cast<double>(v));
                  inside += 1.0;
                });
                // Positions of the window within the padded map.
                const auto extent = [](std::int64_t o, int stride, int before, int after, int kernel, std::int64_t length) {
                  const std::int64_t first = o * stride - before;
                  return static_cast<double>(std::min<std::int64_t>(first + kernel, length + after) - first);
                };
                const double padded = extent(oy, g.stride, g.pad_top, g.pad_bottom, g.kernel_height, c.in.height) *
                                      extent(ox, g.stride, g.pad_left, g.pad_right, g.kernel_width, c.in.width);
                const double count = counts == nn::PaddingCounts::no ? inside : padded;
                // a chain of sums and one multiplication with a rounded reciprocal
                good =
                    good && std::abs(static_cast<double>(y.view()(n, oy, ox, k)) - sum / count) <= (inside + 2.0) * 0x1p-24 * size / count;
              }
            }
          }
        }
        CHECK(good);
      }
    }
  }
}

TEST_CASE("adaptive_average_pool and global_average_pool") {
  for (const auto set : test::instruction_sets()) {
    for (const auto& [height, width] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {3, 3}, {2, 5}, {7, 9}, {10, 11}}) {
      const auto x = test::normal_tensor(2, {7, 9, 18}, 4);
      Tensor<float> y(2, height, width, 18);
      if (height == 1) {
        nn::global_average_pool(x.view(), y.view(), {}, set);
      } else {
        nn::adaptive_average_pool(x.view(), y.view(), {}, set);
      }
      bool good = true;
      for (std::int64_t n = 0; n < 2; ++n) {
        for (std::int64_t oy = 0; oy < height; ++oy) {
          for (std::int64_t ox = 0; ox < width; ++ox) {
            for (std::int64_t k = 0; k < 18; ++k) {
              const auto low = [](std::int64_t i, std::int64_t out, std::int64_t in) {
                return static_cast<std::int64_t>(std::floor(static_cast<double>(i * in) / static_cast<double>(out)));
              };
              const auto high = [](std::int64_t i, std::int64_t out, std::int64_t in) {
                return static_cast<std::int64_t>(std::ceil(static_cast<double>((i + 1) * in) / static_cast<double>(out)));
              };
              double sum = 0.0, size = 0.0, count = 0.0;
              for (std::int64_t i = low(oy, height, 7); i < high(oy, height, 7); ++i) {
                for (std::int64_t j = low(ox, width, 9); j < high(ox, width, 9); ++j) {
                  sum += static_cast<double>(x.view()(n, i, j, k));
                  size += std::abs(static_cast<double>(x.view()(n, i, j, k)));
                  count += 1.0;
                }
              }
              good = good && std::abs(static_cast<double>(y.view()(n, oy, ox, k)) - sum / count) <= (count + 2.0) * 0x1p-24 * size / count;
            }
          }
        }
      }
      CHECK(good);
    }
  }
}
