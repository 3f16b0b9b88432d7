// Factors and solves by their defining equations: U^T U = A, A X = B.
#include <cmath>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/linalg/cholesky.hpp>

namespace {

// G G^T / d + I, symmetric positive definite with eigenvalues in [1, about 5].
template <class T>
norma::Matrix<T> positive_definite(std::int64_t d, std::uint64_t seed) {
  norma::Random random(seed);
  norma::Matrix<double> g(d, d);
  for (std::int64_t i = 0; i < d * d; ++i) g.data()[i] = random.normal();
  norma::Matrix<T> a(d, d);
  for (std::int64_t r = 0; r < d; ++r) {
    for (std::int64_t c = 0; c <= r; ++c) {
      double sum = 0.0;
      for (std::int64_t k = 0; k < d; ++k) sum += g(r, k) * g(c, k);
      a(r, c) = a(c, r) = static_cast<T>(sum / static_cast<double>(d) + (r == c ? 1.0 : 0.0));
    }
  }
  return a;
}

constexpr std::int64_t kSizes[] = {1, 2, 5, 6, 7, 8, 15, 16, 17, 31, 32, 33, 100};

}  // namespace

TEST_CASE_TEMPLATE("the factor times itself is the matrix", T, float, double) {
  for (const std::int64_t d : kSizes) {
    CAPTURE(d);
    const auto a = positive_definite<T>(d, 1);
    auto u = a;
    for (std::int64_t r = 0; r < d; ++r) {
      for (std::int64_t c = 0; c < r; ++c) u(r, c) = T{-77};
    }
    REQUIRE(norma::cholesky(u.view()).ok());
    // Backward error of Cholesky: |A - U^T U| <= (d + 2) u sqrt(a_rr a_cc) / (1 - (d + 2) u) (Higham, theorem 10.3), twice for the roundings of this check.
    const double unit = std::numeric_limits<T>::epsilon() / 2.0;
    for (std::int64_t r = 0; r < d; ++r) {
      for (std::int64_t c = r; c < d; ++c) {
        double sum = 0.0;
        for (std::int64_t k = 0; k <= r; ++k) sum += static_cast<double>(u(k, r)) * static_cast<double>(u(k, c));
        const double bound = 2.0 * static_cast<double>(d + 4) * unit * std::sqrt(static_cast<double>(a(r, r)) * static_cast<double>(a(c, c)));
        REQUIRE(std::abs(sum - static_cast<double>(a(r, c))) <= bound);
      }
      CHECK(u(r, r) > T{0});
      for (std::int64_t c = 0; c < r; ++c) REQUIRE(u(r, c) == T{-77});  // below the diagonal nothing is written
    }
  }
}

TEST_CASE_TEMPLATE("a solve gives back what was multiplied in", T, float, double) {
  for (const std::int64_t d : kSizes) {
    CAPTURE(d);
    const auto a = positive_definite<T>(d, 2);
    norma::Random random(3);
    norma::Matrix<T> x(d, 3), b(d, 3);
    for (std::int64_t i = 0; i < d * 3; ++i) x.data()[i] = static_cast<T>(random.normal());
    for (std::int64_t r = 0; r < d; ++r) {
      for (std::int64_t c = 0; c < 3; ++c) {
        double sum = 0.0;
        for (std::int64_t k = 0; k < d; ++k) sum += static_cast<double>(a(r, k)) * static_cast<double>(x(k, c));
        b(r, c) = static_cast<T>(sum);
      }
    }
    auto u = a;
    REQUIRE(norma::cholesky(u.view()).ok());
    REQUIRE(norma::cholesky_solve<T>(u.view(), b.view()).ok());
    // Condition below 6 and at most 100 values of size about 1: 40 d u covers the backward error of factor and solves.
    const double bound = 40.0 * static_cast<double>(d + 4) * std::numeric_limits<T>::epsilon();
    for (std::int64_t i = 0; i < d * 3; ++i) REQUIRE(std::abs(static_cast<double>(b.data()[i]) - static_cast<double>(x.data()[i])) <= bound);
  }
}

TEST_CASE("the generic tile and the one for this processor agree") {
  namespace impl = norma::linalg::detail;
  norma::Random random(4);
  const std::int64_t depth = 37, stride = 32;
  norma::Matrix<double> a(depth, stride), b(depth, stride);
  for (std::int64_t i = 0; i < depth * stride; ++i) {
    a.data()[i] = random.normal();
    b.data()[i] = random.normal();
  }
  norma::Matrix<double> c(6, 8), d(6, 8);
  double* to_c[6];
  double* to_d[6];
  for (int r = 0; r < 6; ++r) {
    to_c[r] = c.view().row(r).data();
    to_d[r] = d.view().row(r).data();
  }
  impl::outer_tile_generic<double>(depth, a.data() + 3, stride, b.data() + 5, stride, to_c, -1.0);
  impl::outer_tile<double>()(depth, a.data() + 3, stride, b.data() + 5, stride, to_d, -1.0);
  for (std::int64_t r = 0; r < 6; ++r) {
    for (std::int64_t j = 0; j < 8; ++j) {
      double want = 0.0, size = 0.0;
      for (std::int64_t k = 0; k < depth; ++k) {
        want -= a(k, 3 + r) * b(k, 5 + j);
        size += std::abs(a(k, 3 + r) * b(k, 5 + j));
      }
      const double bound = static_cast<double>(depth + 1) * 0x1p-52 * size;
      CHECK(std::abs(c(r, j) - want) <= bound);
      CHECK(std::abs(d(r, j) - want) <= bound);
    }
  }
}

TEST_CASE("what cannot be factored is refused and left as it was") {
  norma::Matrix<double> a(3, 3);
  for (int i = 0; i < 3; ++i) a(i, i) = 1.0;
  a(2, 2) = -4.0;
  const auto copy = a;
  const auto status = norma::cholesky(a.view());
  CHECK(status.code() == norma::Errc::invalid_argument);
  CHECK(status.message().find("row 2") != std::string::npos);
  for (int i = 0; i < 9; ++i) CHECK(a.data()[i] == copy.data()[i]);

  a(2, 2) = std::numeric_limits<double>::quiet_NaN();
  CHECK(norma::cholesky(a.view()).code() == norma::Errc::not_finite);
  a(2, 2) = std::numeric_limits<double>::infinity();
  CHECK(norma::cholesky(a.view()).code() == norma::Errc::not_finite);
  a(2, 2) = 0.0;
  CHECK(norma::cholesky(a.view()).code() == norma::Errc::invalid_argument);
}

TEST_CASE("shapes that do not fit") {
  norma::Matrix<double> wide(2, 3), square(3, 3), rhs(2, 1);
  CHECK(norma::cholesky(wide.view()).code() == norma::Errc::shape_mismatch);
  CHECK(norma::cholesky_solve<double>(square.view(), rhs.view()).code() == norma::Errc::shape_mismatch);
  norma::Matrix<double> empty;
  CHECK(norma::cholesky(empty.view()).ok());
}
