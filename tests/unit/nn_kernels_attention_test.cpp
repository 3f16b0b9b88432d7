// Layer normalisation, softmax and attention against double references.
#include <doctest/doctest.h>

#include <cstring>

#include <norma/core/thread_pool.hpp>
#include <norma/nn/kernels/attention.hpp>

#include "../support/reference.hpp"

using namespace norma;

TEST_CASE("layer_norm: rows of any length, a large common offset") {
  for (const auto set : test::instruction_sets()) {
    for (const std::int64_t cols : {1, 3, 8, 15, 16, 17, 33, 192, 384, 1000}) {
      CAPTURE(cols);
      CAPTURE(to_string(set));
      auto x = test::normal_matrix(5, cols, 1);
      for (std::int64_t c = 0; c < cols; ++c) x(4, c) += 100.0f;
      const auto gamma = test::normal_vector(cols, 2), beta = test::normal_vector(cols, 3);
      Matrix<float> y(5, cols);
      ThreadPool pool(2);
      nn::layer_norm(x.view(), gamma.data(), beta.data(), 1e-6f, y.view(), pool.parallel(), set);
      bool good = true;
      for (std::int64_t r = 0; r < 5; ++r) {
        double mean = 0.0, variance = 0.0;
        for (std::int64_t c = 0; c < cols; ++c) mean += static_cast<double>(x(r, c)) / static_cast<double>(cols);
        for (std::int64_t c = 0; c < cols; ++c) variance += std::pow(static_cast<double>(x(r, c)) - mean, 2.0) / static_cast<double>(cols);
        for (std::int64_t c = 0; c < cols; ++c) {
          const double scale = static_cast<double>(gamma[static_cast<std::size_t>(c)]) / std::sqrt(variance + 1e-6);
          const double shift = static_cast<double>(beta[static_cast<std::size_t>(c)]);
          const double want = (static_cast<double>(x(r, c)) - mean) * scale + shift;
          // The mean's own error moves every value: cols / width + log2 width roundings of the row's size, at most 4 sqrt(cols) u |mean|.
          const double bound = 4.0 * std::sqrt(static_cast<double>(cols)) * 0x1p-24 * std::abs(scale) * (std::abs(mean) + 1.0) +
                               1e-6 * std::abs((static_cast<double>(x(r, c)) - mean) * scale) +
                               0x1p-23 * (std::abs(want) + std::abs(shift));
          good = good && std::abs(static_cast<double>(y(r, c)) - want) <= bound;
        }
      }
      CHECK(good);
    }
  }
}

TEST_CASE("softmax: sums to one, any shift, NaN stays") {
  for (const auto set : test::instruction_sets()) {
    for (const std::int64_t cols : {1, 2, 7, 16, 17, 50, 197}) {
      const auto x = test::normal_matrix(3, cols, 4);
      auto y = x;
      for (std::int64_t c = 0; c < cols; ++c) y(2, c) += 1000.0f;
      const auto shifted = y;
      nn::softmax(y.view(), 0.5f, {}, set);
      bool good = true;
      for (std::int64_t r = 0; r < 3; ++r) {
        double total = 0.0;
        double most = -1e300;
        for (std::int64_t c = 0; c < cols; ++c) most = std::max(most, static_cast<double>(shifted(r, c)));
        for (std::int64_t c = 0; c < cols; ++c) total += std::exp(0.5 * (static_cast<double>(shifted(r, c)) - most));
        for (std::int64_t c = 0; c < cols; ++c) {
          const double want = std::exp(0.5 * (static_cast<double>(shifted(r, c)) - most)) / total;
          good = good && std::abs(static_cast<double>(y(r, c)) - want) <= 2e-6 * want;
        }
      }
      CHECK(good);
      auto broken = x;
      broken(1, cols - 1) = std::numeric_limits<float>::quiet_NaN();
      nn::softmax(broken.view(), 0.5f, {}, set);
      for (std::int64_t c = 0; c < cols; ++c) {
        good = good && std::isnan(broken(1, c)) && !std::isnan(broken(0, c)) && !std::isnan(broken(2, c));
      }
      CHECK(good);
    }
  }
}

TEST_CASE("attention: heads, token counts around the blocks, threads") {
  struct Case {
    std::int64_t tokens;
    int heads;
    std::int64_t dim;
  };
  for (const auto set : test::instruction_sets()) {
    for (const Case& c : {Case{1, 1, 4}, Case{5, 3, 8}, Case{17, 2, 12}, Case{50, 3, 64}, Case{43, 4, 33}, Case{197, 2, 64}}) {
      CAPTURE(c.tokens);
      CAPTURE(to_string(set));
      const std::int64_t channels = c.heads * c.dim;
      const auto qkv = test::normal_matrix(c.tokens, 3 * channels, 5);
      Matrix<float> out(c.tokens, channels);
      test::Scratch scratch(nn::attention_scratch_bytes(c.tokens, channels, c.heads, 1));
      Arena arena = scratch.arena();
      nn::attention(qkv.view(), c.heads, out.view(), {}, arena, set);
      CHECK(arena.used() == 0);
      bool good = true;
      std::vector<double> p(static_cast<std::size_t>(c.tokens));
      for (int h = 0; h < c.heads; ++h) {
        for (std::int64_t t = 0; t < c.tokens; ++t) {
          double most = -1e300, total = 0.0;
          for (std::int64_t u = 0; u < c.tokens; ++u) {
            double s = 0.0;
            for (std::int64_t d = 0; d < c.dim; ++d) {
              s += static_cast<double>(qkv(t, h * c.dim + d)) * static_cast<double>(qkv(u, channels + h * c.dim + d));
            }
            p[static_cast<std::size_t>(u)] = s / std::sqrt(static_cast<double>(c.dim));
            most = std::max(most, p[static_cast<std::size_t>(u)]);
          }
          for (auto& value : p) total += value = std::exp(value - most);
          for (std::int64_t d = 0; d < c.dim; ++d) {
            double want = 0.0, size = 0.0;
            for (std::int64_t u = 0; u < c.tokens; ++u) {
              const double term = p[static_cast<std::size_t>(u)] / total * static_cast<double>(qkv(u, 2 * channels + h * c.dim + d));
              want += term;
              size += std::abs(term);
            }
            // Scores are sums of dim products of unit normals, at most 5 sqrt(dim) sqrt(dim) / sqrt(dim): their rounding error 4 sqrt(dim)
            // u dim / sqrt(dim) is a relative error of the weights; exp, sums and the second product add a few u more.
            const double relative =
                4.0 * static_cast<double>(c.dim) * 0x1p-24 + 2e-6 + 4.0 * std::sqrt(static_cast<double>(c.tokens)) * 0x1p-24;
            good = good && std::abs(static_cast<double>(out(t, h * c.dim + d)) - want) <= relative * size;
          }
        }
      }
      CHECK(good);
      for (const int threads : {2, 4}) {
        ThreadPool pool(threads);
        test::Scratch more(nn::attention_scratch_bytes(c.tokens, channels, c.heads, threads));
        Arena own = more.arena();
        Matrix<float> again(c.tokens, channels);
        nn::attention(qkv.view(), c.heads, again.view(), pool.parallel(), own, set);
        CHECK(std::memcmp(again.data(), out.data(), static_cast<std::size_t>(c.tokens * channels) * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("talking_heads_attention: mixed scores and weights") {
  for (const auto set : test::instruction_sets()) {
    for (const std::int64_t tokens : {1, 13, 40}) {
      const int heads = 3;
      const std::int64_t dim = 20, channels = heads * dim;
      const auto qkv = test::normal_matrix(tokens, 3 * channels, 6);
      const auto l = test::normal_vector(heads * heads, 7), lb = test::normal_vector(heads, 8), w = test::normal_vector(heads * heads, 9),
                 wb = test::normal_vector(heads, 10);
      Matrix<float> out(tokens, channels);
      for (const int threads : {1, 2}) {
        ThreadPool pool(threads);
        test::Scratch scratch(nn::talking_heads_attention_scratch_bytes(tokens, channels, heads, threads));
        Arena arena = scratch.arena();
        const Matrix<float> before = out;
        nn::talking_heads_attention(qkv.view(), heads, l.data(), lb.data(), w.data(), wb.data(), out.view(), pool.parallel(), arena, set);
        if (threads > 1) CHECK(std::memcmp(before.data(), out.data(), static_cast<std::size_t>(tokens * channels) * sizeof(float)) == 0);
      }
      bool good = true;
      const auto at = [](std::int64_t i) { return static_cast<std::size_t>(i); };
      for (std::int64_t t = 0; t < tokens; ++t) {
        std::vector<double> s(at(heads * tokens)), mixed(at(heads * tokens)), p(at(heads * tokens));
        for (std::int64_t h = 0; h < heads; ++h) {
          for (std::int64_t u = 0; u < tokens; ++u) {
            for (std::int64_t d = 0; d < dim; ++d) {
              s[at(h * tokens + u)] += static_cast<double>(qkv(t, h * dim + d)) * static_cast<double>(qkv(u, channels + h * dim + d)) /
                                       std::sqrt(static_cast<double>(dim));
            }
          }
        }
        for (std::int64_t h = 0; h < heads; ++h) {
          double most = -1e300, total = 0.0;
          for (std::int64_t u = 0; u < tokens; ++u) {
            double& m = mixed[at(h * tokens + u)];
            m = static_cast<double>(lb[at(h)]);
            for (std::int64_t g = 0; g < heads; ++g) m += static_cast<double>(l[at(h * heads + g)]) * s[at(g * tokens + u)];
            most = std::max(most, m);
          }
          for (std::int64_t u = 0; u < tokens; ++u) total += mixed[at(h * tokens + u)] = std::exp(mixed[at(h * tokens + u)] - most);
          for (std::int64_t u = 0; u < tokens; ++u) mixed[at(h * tokens + u)] /= total;
        }
        for (std::int64_t h = 0; h < heads; ++h) {
          for (std::int64_t d = 0; d < dim; ++d) {
            double want = 0.0, size = 0.0;
            for (std::int64_t u = 0; u < tokens; ++u) {
              double weight = static_cast<double>(wb[at(h)]), magnitude = std::abs(weight);
              for (std::int64_t g = 0; g < heads; ++g) {
                const double term = static_cast<double>(w[at(h * heads + g)]) * mixed[at(g * tokens + u)];
                weight += term;
                magnitude += std::abs(term);
              }
              const double value = static_cast<double>(qkv(u, 2 * channels + h * dim + d));
              want += weight * value;
              size += magnitude * std::abs(value);
            }
            // As for plain attention, the mixes add sums of `heads` terms.
            good = good && std::abs(static_cast<double>(out(t, h * dim + d)) - want) <= 2e-5 * size;
          }
        }
      }
      CHECK(good);
    }
  }
}
