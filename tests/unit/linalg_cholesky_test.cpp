// Factors and solves by their defining equations: U^T U = A, A X = B.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
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
    // Backward error of Cholesky: |A - U^T U| <= (d + 2) u sqrt(a_rr a_cc) / (1 - (d + 2) u) (Higham, theorem 10.3), twice for the
    // roundings of this check.
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

TEST_CASE_TEMPLATE("a batch has the factors of its matrices, in any company and on any number of threads", T, float, double) {
  for (const std::int64_t d : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 100, 101, 129}) {
    CAPTURE(d);
    const std::int64_t count = d < 100 ? 37 : 19;
    std::vector<norma::Matrix<T>> a;
    norma::Matrix<T> all(count * d, d + 2);  // rows wider than the matrices
    for (std::int64_t i = 0; i < all.rows() * all.cols(); ++i) all.data()[i] = T{-77};
    for (std::int64_t m = 0; m < count; ++m) {
      a.push_back(positive_definite<T>(d, 5 + static_cast<std::uint64_t>(m % 3)));
      for (std::int64_t r = 0; r < d; ++r) {
        for (std::int64_t c = r; c < d; ++c) all(m * d + r, c) = a.back()(r, c);
      }
    }
    auto threaded = all;
    const norma::MatrixView<T> view(all.data(), count * d, d, d + 2);
    REQUIRE(norma::cholesky_batch<T>(view).ok());
    norma::ThreadPool pool(3);
    REQUIRE(norma::cholesky_batch<T>({threaded.data(), count * d, d, d + 2}, pool.parallel()).ok());
    CHECK(std::memcmp(all.data(), threaded.data(), static_cast<std::size_t>(all.rows() * all.cols()) * sizeof(T)) == 0);
    const double unit = std::numeric_limits<T>::epsilon() / 2.0;
    for (std::int64_t m = 0; m < count; ++m) {
      for (std::int64_t r = 0; r < d; ++r) {
        const auto u = [&](std::int64_t i, std::int64_t j) { return static_cast<double>(view(m * d + i, j)); };
        for (std::int64_t c = 0; c < d + 2; ++c) {
          if (c < r || c >= d) REQUIRE(all(m * d + r, c) == T{-77});
          if (m >= 3) REQUIRE(all(m * d + r, c) == all(m % 3 * d + r, c));  // the same matrix in another lane
        }
        for (std::int64_t c = r; c < d && m < 3; ++c) {
          double sum = 0.0;
          for (std::int64_t k = 0; k <= r; ++k) sum += u(k, r) * u(k, c);
          const auto& want = a[static_cast<std::size_t>(m)];
          REQUIRE(std::abs(sum - static_cast<double>(want(r, c))) <=
                  2.0 * static_cast<double>(d + 4) * unit * std::sqrt(static_cast<double>(want(r, r)) * static_cast<double>(want(c, c))));
        }
      }
    }
  }
}

TEST_CASE_TEMPLATE("every instruction set factors and inverts in lanes", T, float, double) {
  namespace impl = norma::linalg::detail;
  for (const auto set : {norma::InstructionSet::generic, norma::InstructionSet::avx2, norma::InstructionSet::avx512}) {
    if (!norma::available(set)) continue;
    CAPTURE(static_cast<int>(set));
    const auto kernels = impl::lane_kernels<T>(set);
    REQUIRE(kernels.lanes <= impl::kMostLanes);
    for (const std::int64_t d : {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 33, 101}) {
      CAPTURE(d);
      const std::int64_t size = d * (d + 1) / 2;
      norma::Buffer<T> work(impl::LaneGroup<T>::elements(d, kernels.lanes, true));
      const impl::LaneGroup<T> group(work.data(), d, kernels.lanes);
      std::vector<norma::Matrix<T>> a;
      norma::Matrix<float> packed(kernels.lanes, size);
      norma::Matrix<T> u(kernels.lanes * d, d);
      float* rows[impl::kMostLanes];
      T* factors[impl::kMostLanes];
      for (std::int64_t lane = 0; lane < kernels.lanes; ++lane) {
        a.push_back(positive_definite<T>(d, 40 + static_cast<std::uint64_t>(lane)));
        rows[lane] = &packed(lane, 0);
        factors[lane] = &u(lane * d, 0);
        for (std::int64_t r = 0, i = 0; r < d; ++r) {
          for (std::int64_t c = 0; c <= r; ++c) {
            packed(lane, i) = static_cast<float>(a.back()(r, c));
            a.back()(r, c) = a.back()(c, r) = static_cast<T>(packed(lane, i++)) * T{0.25};
          }
        }
      }
      kernels.load_packed(rows, d, T{0.25}, group.l);
      group.fill();
      kernels.factor(group.l, group.blocks, group.inverse, group.pivots);
      kernels.invert(group.l, group.blocks, group.inverse, group.w);
      kernels.store_upper(group.l, d, factors, d);
      kernels.store_packed(group.w, d, rows);
      const double unit = std::numeric_limits<T>::epsilon() / 2.0;
      for (std::int64_t lane = 0; lane < kernels.lanes; ++lane) {
        CHECK(group.failed(lane) == impl::kPositiveDefinite);
        const auto l = [&](std::int64_t r, std::int64_t c) { return static_cast<double>(u(lane * d + c, r)); };
        const auto w = [&](std::int64_t r, std::int64_t c) { return static_cast<double>(packed(lane, r * (r + 1) / 2 + c)); };
        for (std::int64_t r = 0; r < d; ++r) {
          for (std::int64_t c = 0; c <= r; ++c) {
            double product = 0.0, identity = 0.0, terms = 0.0;
            for (std::int64_t k = 0; k <= c; ++k) product += l(r, k) * l(c, k);
            for (std::int64_t k = c; k <= r; ++k) {
              identity += l(r, k) * w(k, c);
              terms += std::abs(l(r, k) * w(k, c));
            }
            const auto& want = a[static_cast<std::size_t>(lane)];
            REQUIRE(std::abs(product - static_cast<double>(want(r, c))) <=
                    2.0 * static_cast<double>(d + 4) * unit * std::sqrt(static_cast<double>(want(r, r)) * static_cast<double>(want(c, c))));
            // Residual of a triangular inverse (Higham, section 14.2), and the rounding of W to float.
            REQUIRE(std::abs(identity - (r == c ? 1.0 : 0.0)) <= (2.0 * static_cast<double>(d + 4) * unit + 0x1p-24) * terms);
          }
        }
      }
      norma::Matrix<T> again(kernels.lanes * d, d);
      for (std::int64_t lane = 0; lane < kernels.lanes; ++lane) factors[lane] = &again(lane * d, 0);
      const T* read[impl::kMostLanes];
      for (std::int64_t lane = 0; lane < kernels.lanes; ++lane) read[lane] = &u(lane * d, 0);
      kernels.load_upper(read, d, d, group.l);
      kernels.store_upper(group.l, d, factors, d);
      CHECK(std::memcmp(again.data(), u.data(), static_cast<std::size_t>(again.rows() * d) * sizeof(T)) == 0);
    }
  }
}

TEST_CASE_TEMPLATE("a batch names the first matrix without a factor, leaves such matrices and factors the rest", T, float, double) {
  const std::int64_t d = 9, count = 21;
  norma::Matrix<T> all(count * d, d);
  for (std::int64_t m = 0; m < count; ++m) {
    const auto a = positive_definite<T>(d, 60);
    std::memcpy(&all(m * d, 0), a.data(), static_cast<std::size_t>(d * d) * sizeof(T));
  }
  all(7 * d + 5, 5) = T{-1};
  all(18 * d + 2, 8) = std::numeric_limits<T>::quiet_NaN();
  const auto before = all;
  const auto status = norma::cholesky_batch<T>(all.view());
  CHECK(status.code() == norma::Errc::invalid_argument);
  CHECK(status.message().find("matrix 7 not positive definite") != std::string::npos);
  CHECK(status.message().find("row 5") != std::string::npos);
  norma::Matrix<T> alone(d, d);
  std::memcpy(alone.data(), before.data(), static_cast<std::size_t>(d * d) * sizeof(T));
  REQUIRE(norma::cholesky_batch<T>(alone.view()).ok());
  for (std::int64_t m = 0; m < count; ++m) {
    const T* const want = m == 7 || m == 18 ? &before(m * d, 0) : alone.data();
    CHECK(std::memcmp(&all(m * d, 0), want, static_cast<std::size_t>(d * d) * sizeof(T)) == 0);
  }
  auto broken = before;
  broken(7 * d + 5, 5) = T{9};
  const auto second = norma::cholesky_batch<T>(broken.view());
  CHECK(second.code() == norma::Errc::not_finite);
  CHECK(second.message().find("matrix 18") != std::string::npos);
  norma::Matrix<T> uneven(5, 2), none(0, 3);
  CHECK(norma::cholesky_batch<T>(uneven.view()).code() == norma::Errc::shape_mismatch);
  CHECK(norma::cholesky_batch<T>(none.view()).ok());
}

TEST_CASE("shapes that do not fit") {
  norma::Matrix<double> wide(2, 3), square(3, 3), rhs(2, 1);
  CHECK(norma::cholesky(wide.view()).code() == norma::Errc::shape_mismatch);
  CHECK(norma::cholesky_solve<double>(square.view(), rhs.view()).code() == norma::Errc::shape_mismatch);
  norma::Matrix<double> empty;
  CHECK(norma::cholesky(empty.view()).ok());
}
