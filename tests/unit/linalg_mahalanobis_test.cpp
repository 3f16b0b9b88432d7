// Mahalanobis distances against an explicit inverse in double (test G2), and the equations of the PaDiM card.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/linalg/covariance.hpp>

namespace {

using norma::GaussianAccumulator;
using norma::GaussianModel;
using norma::Matrix;

Matrix<float> images(std::int64_t n, std::int64_t positions, std::int64_t d, std::uint64_t seed, float scale = 1.0f) {
  norma::Random random(seed);
  Matrix<float> all(n * positions, d);
  for (std::int64_t r = 0; r < all.rows(); ++r) {
    const double common = random.normal();
    for (std::int64_t c = 0; c < d; ++c) all(r, c) = scale * static_cast<float>(2.0 + 0.5 * common + (0.2 + 0.1 * static_cast<double>(c % 9)) * random.normal());
  }
  return all;
}

GaussianAccumulator sums_of(const Matrix<float>& all, std::int64_t positions) {
  auto accumulator = GaussianAccumulator::create(positions, all.cols());
  REQUIRE(accumulator.ok());
  REQUIRE(accumulator->add_batch(all.view()).ok());
  return *std::move(accumulator);
}

std::vector<float> distances(const norma::GaussianModelView& model, norma::MatrixView<const float> x, norma::Parallel parallel = {}) {
  norma::Buffer<std::byte> scratch(static_cast<std::int64_t>(norma::mahalanobis_scratch_bytes(model.dims(), parallel.workers())));
  norma::Arena arena(scratch.span());
  std::vector<float> out(static_cast<std::size_t>(x.rows), -1.0f);
  REQUIRE(norma::mahalanobis(model, x, out, parallel, arena).ok());
  CHECK(arena.used() == 0);
  return out;
}

// Gauss-Jordan with pivoting, independent of the library.
Matrix<double> inverse(Matrix<double> a) {
  const std::int64_t d = a.rows();
  Matrix<double> inverse(d, d);
  for (std::int64_t i = 0; i < d; ++i) inverse(i, i) = 1.0;
  for (std::int64_t i = 0; i < d; ++i) {
    std::int64_t pivot = i;
    for (std::int64_t r = i + 1; r < d; ++r) {
      if (std::abs(a(r, i)) > std::abs(a(pivot, i))) pivot = r;
    }
    for (std::int64_t c = 0; c < d; ++c) {
      std::swap(a(i, c), a(pivot, c));
      std::swap(inverse(i, c), inverse(pivot, c));
    }
    const double scale = 1.0 / a(i, i);
    for (std::int64_t c = 0; c < d; ++c) {
      a(i, c) *= scale;
      inverse(i, c) *= scale;
    }
    for (std::int64_t r = 0; r < d; ++r) {
      const double factor = r == i ? 0.0 : a(r, i);
      for (std::int64_t c = 0; c < d; ++c) {
        a(r, c) -= factor * a(i, c);
        inverse(r, c) -= factor * inverse(i, c);
      }
    }
  }
  return inverse;
}

}  // namespace

TEST_CASE("G2: distances equal those by an explicit inverse in double") {
  for (const std::int64_t d : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100, 101, 129}) {
    CAPTURE(d);
    const std::int64_t positions = 3;
    const auto all = images(60, positions, d, 21);
    auto sums = sums_of(all, positions);
    const auto model = sums.finish(0.01);
    REQUIRE(model.ok());
    const auto x = images(5, positions, d, 22);
    const auto got = distances(model->view(), x.view());
    for (std::int64_t p = 0; p < positions; ++p) {
      Matrix<double> covariance(d, d);
      REQUIRE(sums.covariance(p, covariance.view()).ok());
      for (std::int64_t i = 0; i < d; ++i) covariance(i, i) += 0.01;
      const auto precision = inverse(covariance);
      for (std::int64_t n = 0; n < 5; ++n) {
        double want = 0.0;
        for (std::int64_t r = 0; r < d; ++r) {
          for (std::int64_t c = 0; c < d; ++c) {
            want += (static_cast<double>(x(n * positions + p, r)) - sums.sums().mean(p, r)) * precision(r, c) *
                    (static_cast<double>(x(n * positions + p, c)) - sums.sums().mean(p, c));
          }
        }
        want = std::sqrt(want);
        REQUIRE(std::abs(static_cast<double>(got[static_cast<std::size_t>(n * positions + p)]) - want) <= 1e-5 * want);
      }
    }
  }
}

TEST_CASE("a feature equal to the mean has distance 0") {
  const auto all = images(30, 4, 20, 23);
  const auto model = sums_of(all, 4).finish();
  REQUIRE(model.ok());
  for (const float distance : distances(model->view(), model->mean.view())) CHECK(distance == 0.0f);
}

TEST_CASE("features times c with the regularisation times c squared leave the distances unchanged") {
  const auto all = images(50, 3, 24, 24), scaled = images(50, 3, 24, 24, 8.0f);  // a power of two scales exactly
  const auto model = sums_of(all, 3).finish(0.01), other = sums_of(scaled, 3).finish(0.64);
  REQUIRE(model.ok());
  REQUIRE(other.ok());
  const auto x = images(4, 3, 24, 25), y = images(4, 3, 24, 25, 8.0f);
  const auto a = distances(model->view(), x.view()), b = distances(other->view(), y.view());
  // 0.64 is not 64 times 0.01 to the last bit of a double; everything else scales exactly.
  for (std::size_t i = 0; i < a.size(); ++i) CHECK(std::abs(a[i] - b[i]) <= 1e-6f * a[i]);
}

TEST_CASE("moving features and mean together changes nothing") {
  auto all = images(50, 2, 12, 26);
  const auto model = sums_of(all, 2).finish();
  const auto x = images(3, 2, 12, 27);
  const auto before = distances(model->view(), x.view());
  Matrix<float> moved_all = all, moved_x = x;
  for (std::int64_t i = 0; i < all.rows() * 12; ++i) moved_all.data()[i] += 16.0f;
  for (std::int64_t i = 0; i < x.rows() * 12; ++i) moved_x.data()[i] += 16.0f;
  const auto moved = sums_of(moved_all, 2).finish();
  const auto after = distances(moved->view(), moved_x.view());
  // Adding 16 rounds the features to 2^-20 of a unit (1e-6 of it), and the smallest standard deviation is 0.1.
  for (std::size_t i = 0; i < before.size(); ++i) CHECK(std::abs(before[i] - after[i]) <= 1e-3f * before[i]);
}

TEST_CASE("what is not finite never looks normal") {
  const auto all = images(40, 2, 19, 28);
  const auto model = sums_of(all, 2).finish();
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    for (std::int64_t c = 0; c < 19; ++c) {
      auto x = images(1, 2, 19, 29);
      x(1, c) = bad;
      const auto got = distances(model->view(), x.view());
      CHECK(std::isfinite(got[0]));
      CHECK_FALSE(std::isfinite(got[1]));
    }
  }
  auto huge = images(1, 2, 19, 30);
  huge(0, 3) = 3e38f;
  CHECK_FALSE(distances(model->view(), huge.view())[0] < 1e30f);
}

TEST_CASE("bit-equal for any number of threads and any grouping of images") {
  const std::int64_t positions = 50;
  const auto all = images(30, positions, 37, 31);
  const auto model = sums_of(all, positions).finish();
  const auto x = images(19, positions, 37, 32);
  const auto together = distances(model->view(), x.view());
  for (std::int64_t n = 0; n < 19; ++n) {
    const auto alone = distances(model->view(), x.view().block(n * positions, positions));
    CHECK(std::memcmp(alone.data(), together.data() + n * positions, alone.size() * sizeof(float)) == 0);
  }
  for (const int threads : {2, 4}) {
    norma::ThreadPool pool(threads);
    const auto shared = distances(model->view(), x.view(), pool.parallel());
    CHECK(std::memcmp(shared.data(), together.data(), shared.size() * sizeof(float)) == 0);
  }
}

TEST_CASE("a model in foreign memory gives the same distances, and nothing behind it is read") {
  const auto all = images(30, 2, 21, 33);
  const auto model = sums_of(all, 2).finish();
  const auto x = images(1, 2, 21, 34);
  const auto want = distances(model->view(), x.view());
  // Exactly as many floats as needed, at an address that no vector load is aligned to: an overrun is an error under the sanitizer.
  const std::int64_t count = model->factor.rows() * model->factor.cols();
  std::vector<float> memory(static_cast<std::size_t>(count + 1));
  std::memcpy(memory.data() + 1, model->factor.data(), static_cast<std::size_t>(count) * sizeof(float));
  const norma::GaussianModelView foreign{model->mean.view(), {memory.data() + 1, model->factor.rows(), model->factor.cols()}};
  const auto got = distances(foreign, x.view());
  CHECK(std::memcmp(got.data(), want.data(), got.size() * sizeof(float)) == 0);
}

TEST_CASE("the generic loop and the one for this processor agree") {
  namespace impl = norma::linalg::detail;
  for (const std::int64_t d : {1, 3, 4, 8, 13, 40}) {
    norma::Random random(35);
    const std::int64_t stride = impl::centred_stride(d);
    std::vector<float> w(static_cast<std::size_t>(norma::packed_triangle(d)));
    norma::Buffer<float> y(2 * stride);
    for (auto& value : w) value = static_cast<float>(random.normal());
    for (std::int64_t b = 0; b < 2; ++b) {
      for (std::int64_t j = 0; j < d; ++j) y[b * stride + j] = static_cast<float>(random.normal());
    }
    norma::Buffer<float> difference(2 * d), plain_difference(2 * d);
    impl::subtract()(y.data(), y.data() + stride, d, difference.data());
    impl::subtract_generic(y.data(), y.data() + stride, d, plain_difference.data());
    CHECK(std::memcmp(difference.data(), plain_difference.data(), static_cast<std::size_t>(2 * d) * sizeof(float)) == 0);  // and nothing behind it
    float plain[2], vector[2];
    impl::triangle_norms_generic(w.data(), d, y.data(), stride, 2, plain);
    impl::triangle_norms()(w.data(), d, y.data(), stride, 2, vector);
    for (std::int64_t b = 0; b < 2; ++b) {
      double want = 0.0, size = 0.0;
      for (std::int64_t i = 0; i < d; ++i) {
        double z = 0.0, terms = 0.0;
        for (std::int64_t j = 0; j <= i; ++j) {
          const double term = static_cast<double>(w[static_cast<std::size_t>(norma::packed_triangle(i) + j)]) * static_cast<double>(y[b * stride + j]);
          z += term;
          terms += std::abs(term);
        }
        want += z * z;
        size += terms * terms;
      }
      // z errs by (d + 3) u of the sum of its terms, its square by twice that, and d squares are added.
      const double bound = static_cast<double>(3 * d + 8) * 0x1p-24 * size;
      CHECK(std::abs(static_cast<double>(plain[b]) - want) <= bound);
      CHECK(std::abs(static_cast<double>(vector[b]) - want) <= bound);
    }
  }
}

TEST_CASE("shapes that do not fit, and arenas that are too small") {
  const auto all = images(10, 3, 4, 36);
  const auto model = sums_of(all, 3).finish();
  norma::Buffer<std::byte> scratch(static_cast<std::int64_t>(norma::mahalanobis_scratch_bytes(4, 1)));
  norma::Arena arena(scratch.span());
  std::vector<float> out(3);
  const auto view = all.view();
  CHECK(norma::mahalanobis(model->view(), view.block(0, 3), out, {}, arena).ok());
  CHECK(norma::mahalanobis(model->view(), view.block(0, 2), out, {}, arena).code() == norma::Errc::shape_mismatch);
  CHECK(norma::mahalanobis(model->view(), view.block(0, 6), out, {}, arena).code() == norma::Errc::shape_mismatch);
  Matrix<float> wide(3, 5);
  CHECK(norma::mahalanobis(model->view(), std::as_const(wide).view(), out, {}, arena).code() == norma::Errc::shape_mismatch);
  CHECK(norma::mahalanobis({}, view.block(0, 3), out, {}, arena).code() == norma::Errc::not_fitted);
  auto wrong = model->view();
  wrong.factor.cols = 9;
  CHECK(norma::mahalanobis(wrong, view.block(0, 3), out, {}, arena).code() == norma::Errc::shape_mismatch);
}
