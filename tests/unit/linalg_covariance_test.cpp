// Streamed covariances against two passes in double (test G1), merging, continuing, and what is refused.
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/linalg/covariance.hpp>

namespace {

using norma::GaussianAccumulator;
using norma::Matrix;

// [n P, d]: image after image, correlated between dimensions, each with its own mean and scale; `offset` moves all of it away from 0.
Matrix<float> images(std::int64_t n, std::int64_t positions, std::int64_t d, double offset, std::uint64_t seed) {
  norma::Random random(seed);
  Matrix<float> all(n * positions, d);
  for (std::int64_t r = 0; r < all.rows(); ++r) {
    const double common = random.normal();
    for (std::int64_t c = 0; c < d; ++c) {
      all(r, c) = static_cast<float>(offset * (1.0 + 0.1 * static_cast<double>(c % 7)) +
                                     (0.5 + 0.1 * static_cast<double>(c % 5)) * (random.normal() + common));
    }
  }
  return all;
}

struct TwoPass {
  std::vector<double> mean;
  Matrix<double> covariance;
};

TwoPass two_pass(const Matrix<float>& all, std::int64_t positions, std::int64_t position) {
  const std::int64_t d = all.cols(), n = all.rows() / positions;
  TwoPass result{std::vector<double>(static_cast<std::size_t>(d)), Matrix<double>(d, d)};
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t c = 0; c < d; ++c) result.mean[static_cast<std::size_t>(c)] += static_cast<double>(all(i * positions + position, c));
  }
  for (auto& m : result.mean) m /= static_cast<double>(n);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t r = 0; r < d; ++r) {
      const double x = static_cast<double>(all(i * positions + position, r)) - result.mean[static_cast<std::size_t>(r)];
      for (std::int64_t c = 0; c < d; ++c) {
        result.covariance(r, c) += x * (static_cast<double>(all(i * positions + position, c)) - result.mean[static_cast<std::size_t>(c)]) /
                                   static_cast<double>(n - 1);
      }
    }
  }
  return result;
}

// Every entry, relative to the two standard deviations: an off-diagonal entry may itself be near 0.
void check_against(GaussianAccumulator& accumulator, const Matrix<float>& all, double relative) {
  const std::int64_t positions = accumulator.positions(), d = accumulator.dims();
  Matrix<double> got(d, d);
  for (std::int64_t p = 0; p < positions; ++p) {
    CAPTURE(p);
    REQUIRE(accumulator.covariance(p, got.view()).ok());
    const auto want = two_pass(all, positions, p);
    for (std::int64_t r = 0; r < d; ++r) {
      for (std::int64_t c = 0; c < d; ++c) {
        const double size = std::sqrt(want.covariance(r, r) * want.covariance(c, c));
        REQUIRE(std::abs(got(r, c) - want.covariance(r, c)) <= relative * size);
        REQUIRE(got(r, c) == got(c, r));
      }
      REQUIRE(std::abs(accumulator.sums().mean(p, r) - want.mean[static_cast<std::size_t>(r)]) <=
              1e-12 * (std::abs(want.mean[static_cast<std::size_t>(r)]) + std::sqrt(want.covariance(r, r))));
    }
  }
}

GaussianAccumulator fitted(const Matrix<float>& all, std::int64_t positions, norma::Parallel parallel = {}) {
  auto accumulator = GaussianAccumulator::create(positions, all.cols());
  REQUIRE(accumulator.ok());
  REQUIRE(accumulator->add_batch(all.view(), parallel).ok());
  return *std::move(accumulator);
}

bool same_bits(norma::MatrixView<const float> a, norma::MatrixView<const float> b) {
  return a.count() == b.count() && std::memcmp(a.data, b.data, static_cast<std::size_t>(a.count()) * sizeof(float)) == 0;
}

}  // namespace

TEST_CASE("G1: a streamed covariance equals two passes in double, in every entry") {
  for (const std::int64_t d : {1, 2, 5, 7, 8, 9, 15, 16, 17, 33, 100, 101, 129}) {
    for (const std::int64_t n : {2, 3, 63, 64, 65, 209}) {
      CAPTURE(d);
      CAPTURE(n);
      const auto all = images(n, 3, d, 1.0, 7);
      auto accumulator = fitted(all, 3);
      CHECK(accumulator.count() == n);
      check_against(accumulator, all, 1e-6);
    }
  }
}

TEST_CASE("G1: a mean a thousand standard deviations away changes nothing") {
  // Inputs are floats, so the deviations are exact; a sum of squares without centring would lose six digits here.
  const auto all = images(200, 2, 20, 1000.0, 8);
  auto accumulator = fitted(all, 2);
  check_against(accumulator, all, 1e-6);
}

TEST_CASE("G1: images in an order that drifts") {
  auto all = images(256, 1, 8, 0.0, 9);
  for (std::int64_t r = 0; r < all.rows(); ++r) {
    for (std::int64_t c = 0; c < 8; ++c) all(r, c) += static_cast<float>(r < 64 ? 0 : 500);  // the first batch knows nothing of the rest
  }
  auto accumulator = fitted(all, 1);
  check_against(accumulator, all, 1e-6);
}

TEST_CASE("constant features have covariance exactly 0") {
  Matrix<float> all(70, 4);
  for (std::int64_t r = 0; r < 70; ++r) {
    for (std::int64_t c = 0; c < 4; ++c) all(r, c) = 0.1f + static_cast<float>(c);
  }
  auto accumulator = fitted(all, 1);
  Matrix<double> covariance(4, 4);
  REQUIRE(accumulator.covariance(0, covariance.view()).ok());
  for (int i = 0; i < 16; ++i) CHECK(std::abs(covariance.data()[i]) <= 1e-12);
}

TEST_CASE("every instruction set adds the products of columns, and writes nothing beside them") {
  for (const auto set : {norma::InstructionSet::generic, norma::InstructionSet::avx2, norma::InstructionSet::avx512}) {
    if (!norma::available(set)) continue;
    CAPTURE(static_cast<int>(set));
    const auto kernels = norma::linalg::detail::covariance_kernels(set);
    for (const std::int64_t d : {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 48, 100, 101, 129}) {
      for (const std::int64_t depth : {1, 17, 65}) {
        CAPTURE(d);
        CAPTURE(depth);
        norma::Random random(20);
        const std::int64_t stride = norma::linalg::detail::odd_lines(d), size = norma::packed_triangle(d);
        norma::Buffer<float> x(depth * stride);
        for (std::int64_t k = 0; k < depth; ++k) {
          for (std::int64_t j = 0; j < d; ++j) x[k * stride + j] = static_cast<float>(random.normal());
        }
        std::vector<float> memory(static_cast<std::size_t>(size + 128), 7.5f);  // exactly as many as needed in the middle, at no vector's alignment
        float* const packed = memory.data() + 63;
        for (std::int64_t i = 0; i < size; ++i) packed[i] = static_cast<float>(random.normal());
        const std::vector<float> before = memory;
        kernels.add(x.data(), depth, d, stride, packed, x.data(), stride, depth);
        for (std::size_t i = 0; i < memory.size(); ++i) {
          if (i < 63 || i >= static_cast<std::size_t>(63 + size)) REQUIRE(memory[i] == 7.5f);
        }
        for (std::int64_t r = 0; r < d; ++r) {
          for (std::int64_t c = 0; c <= r; ++c) {
            const auto index = static_cast<std::size_t>(63 + norma::packed_triangle(r) + c);
            double want = static_cast<double>(before[index]), terms = std::abs(want);
            for (std::int64_t k = 0; k < depth; ++k) {
              const double term = static_cast<double>(x[k * stride + r]) * static_cast<double>(x[k * stride + c]);
              want += term;
              terms += std::abs(term);
            }
            REQUIRE(std::abs(static_cast<double>(memory[index]) - want) <= static_cast<double>(depth + 2) * 0x1p-24 * terms);
          }
        }
      }
    }
  }
}

TEST_CASE("every instruction set centres a batch to the last bit but two") {
  for (const auto set : {norma::InstructionSet::generic, norma::InstructionSet::avx2, norma::InstructionSet::avx512}) {
    if (!norma::available(set)) continue;
    CAPTURE(static_cast<int>(set));
    const auto kernels = norma::linalg::detail::covariance_kernels(set);
    for (const std::int64_t d : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 100, 129}) {
      for (const double offset : {0.0, 3.0, 1e4}) {
        CAPTURE(d);
        CAPTURE(offset);
        const std::int64_t count = 37, row_stride = d + 5, stride = norma::linalg::detail::odd_lines(d);
        const auto all = images(count, 1, row_stride, offset, 21);
        std::vector<double> mean(static_cast<std::size_t>(d + 1), -1.0);
        norma::Buffer<float> centred(count * stride);
        kernels.centre(all.data(), row_stride, count, d, mean.data(), centred.data(), stride);
        CHECK(mean[static_cast<std::size_t>(d)] == -1.0);
        for (std::int64_t c = 0; c < d; ++c) {
          double want = 0.0, size = 0.0;
          for (std::int64_t n = 0; n < count; ++n) {
            want += static_cast<double>(all(n, c)) / static_cast<double>(count);
            size += std::abs(static_cast<double>(all(n, c))) / static_cast<double>(count);
          }
          const double found = mean[static_cast<std::size_t>(c)];
          REQUIRE(std::abs(found - want) <= static_cast<double>(2 * count) * 0x1p-53 * size);
          for (std::int64_t n = 0; n < count; ++n) {
            const double deviation = static_cast<double>(all(n, c)) - found;
            // Two roundings of a deviation, and what is left of the mean beyond two floats.
            REQUIRE(std::abs(static_cast<double>(centred[n * stride + c]) - deviation) <=
                    2.1 * 0x1p-24 * std::abs(deviation) + 0x1p-47 * std::abs(found));
          }
        }
        for (std::int64_t n = 0; n < count; ++n) {
          for (std::int64_t c = d; c < stride; ++c) REQUIRE(centred[n * stride + c] == 0.0f);
        }
      }
    }
  }
}

TEST_CASE("every instruction set copies and sees what is not finite") {
  for (const auto set : {norma::InstructionSet::generic, norma::InstructionSet::avx2, norma::InstructionSet::avx512}) {
    if (!norma::available(set)) continue;
    CAPTURE(static_cast<int>(set));
    const auto kernels = norma::linalg::detail::covariance_kernels(set);
    for (const std::int64_t count : {1, 3, 4, 15, 16, 17, 50}) {
      for (const bool past_caches : {false, true}) {
        norma::Buffer<float> to(count + 16);
        std::vector<float> from(static_cast<std::size_t>(count), std::numeric_limits<float>::max());
        from[0] = std::numeric_limits<float>::denorm_min();
        CHECK(kernels.copy(from.data(), count, to.data(), past_caches));
        CHECK(std::memcmp(to.data(), from.data(), from.size() * sizeof(float)) == 0);
        for (std::int64_t i = count; i < count + 16; ++i) CHECK(to[i] == 0.0f);
        for (std::size_t i = 0; i < from.size(); ++i) {
          for (const float bad :
               {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
            auto broken = from;
            broken[i] = bad;
            CHECK_FALSE(kernels.copy(broken.data(), count, to.data(), past_caches));
          }
        }
      }
    }
  }
}

TEST_CASE("images in wide rows, and batches that are gathered past the caches, give the same sums") {
  const std::int64_t positions = 700, d = 100;  // a batch of 18 MB
  const auto all = images(3, positions, d, 1.0, 22);
  Matrix<float> wide(3 * positions, d + 3);
  for (std::int64_t r = 0; r < wide.rows(); ++r) std::memcpy(&wide(r, 0), &all(r, 0), static_cast<std::size_t>(d) * sizeof(float));
  auto dense = fitted(all, positions);
  auto strided = GaussianAccumulator::create(positions, d);
  REQUIRE(strided->add_batch({wide.data(), wide.rows(), d, wide.cols()}).ok());
  CHECK(same_bits(dense.sums().products, strided->sums().products));
  auto broken = all;
  broken(2 * positions + 641, 99) = std::numeric_limits<float>::infinity();
  const auto status = dense.add(std::as_const(broken).view().block(2 * positions, positions));
  CHECK(status.code() == norma::Errc::not_finite);
  CHECK(status.message().find("position 641") != std::string::npos);
  CHECK(dense.count() == 3);
}

TEST_CASE("many images at once, which are not copied, and one after the other") {
  for (const std::int64_t n : {64, 100, 209}) {
    const std::int64_t positions = 5, d = 13;
    const auto all = images(n, positions, d, 2.0, 23);
    auto together = fitted(all, positions);
    check_against(together, all, 1e-6);
    auto one = GaussianAccumulator::create(positions, d);
    for (std::int64_t i = 0; i < n; ++i) REQUIRE(one->add(all.view().block(i * positions, positions)).ok());
    CHECK(one->count() == n);
    CHECK(same_bits(one->sums().products, together.sums().products));
    // More images after them, and rows in a wider matrix.
    Matrix<float> wide(n * positions, d + 2);
    for (std::int64_t r = 0; r < wide.rows(); ++r) std::memcpy(&wide(r, 0), &all(r, 0), static_cast<std::size_t>(d) * sizeof(float));
    auto more = GaussianAccumulator::create(positions, d);
    REQUIRE(more->add_batch({wide.data(), wide.rows(), d, wide.cols()}).ok());
    CHECK(same_bits(more->sums().products, together.sums().products));
    REQUIRE(more->add_batch(all.view()).ok());
    REQUIRE(together.merge(*one).ok());
    CHECK(more->count() == 2 * n);
    Matrix<double> a(d, d), b(d, d);
    REQUIRE(more->covariance(3, a.view()).ok());
    REQUIRE(together.covariance(3, b.view()).ok());
    for (std::int64_t r = 0; r < d; ++r) {
      for (std::int64_t c = 0; c < d; ++c) CHECK(std::abs(a(r, c) - b(r, c)) <= 2e-6 * std::sqrt(a(r, r) * a(c, c)));
    }
  }
}

TEST_CASE("many images at once of which one is not finite: those before it are counted, it is named") {
  const std::int64_t positions = 4, d = 9, n = 150;
  const auto all = images(n, positions, d, 2.0, 24);
  for (const std::int64_t bad : {0, 1, 63, 64, 149}) {
    CAPTURE(bad);
    for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      auto broken = all;
      broken(bad * positions + 2, 8) = value;
      auto accumulator = GaussianAccumulator::create(positions, d);
      const auto status = accumulator->add_batch(broken.view());
      CHECK(status.code() == norma::Errc::not_finite);
      CHECK(status.message().find("position 2") != std::string::npos);
      CHECK(accumulator->count() == bad);
      REQUIRE(accumulator->add_batch(all.view().block(bad * positions, (n - bad) * positions)).ok());
      check_against(*accumulator, all, 1e-6);
    }
  }
}

TEST_CASE("bit-equal for any number of threads") {
  const auto all = images(150, 40, 23, 2.0, 10);
  auto alone = fitted(all, 40);
  const auto model = alone.finish();
  REQUIRE(model.ok());
  for (const int threads : {2, 4}) {
    CAPTURE(threads);
    norma::ThreadPool pool(threads);
    auto together = fitted(all, 40, pool.parallel());
    CHECK(same_bits(alone.sums().products, together.sums(pool.parallel()).products));
    const auto other = together.finish(0.01, pool.parallel());
    REQUIRE(other.ok());
    CHECK(same_bits(model->mean.view(), other->mean.view()));
    CHECK(same_bits(model->factor.view(), other->factor.view()));
  }
}

TEST_CASE("two halves merged equal one fit") {
  const auto all = images(190, 2, 17, 5.0, 11);
  for (const std::int64_t split : {1, 20, 64, 100, 189}) {
    CAPTURE(split);
    auto first = GaussianAccumulator::create(2, 17);
    auto second = GaussianAccumulator::create(2, 17);
    REQUIRE(first->add_batch(all.view().block(0, split * 2)).ok());
    REQUIRE(second->add_batch(all.view().block(split * 2, (190 - split) * 2)).ok());
    REQUIRE(first->merge(*second).ok());
    CHECK(first->count() == 190);
    CHECK(second->count() == 190 - split);
    check_against(*first, all, 1e-6);
  }
  auto none = GaussianAccumulator::create(2, 17);
  auto whole = fitted(all, 2);
  REQUIRE(whole.merge(*none).ok());
  check_against(whole, all, 1e-6);
  REQUIRE(none->merge(whole).ok());
  check_against(*none, all, 1e-6);
}

TEST_CASE("merging with itself counts everything twice") {
  const auto all = images(70, 1, 5, 1.0, 12);
  auto accumulator = fitted(all, 1);
  REQUIRE(accumulator.merge(accumulator).ok());
  CHECK(accumulator.count() == 140);
  Matrix<float> twice(140, 5);
  std::memcpy(twice.data(), all.data(), 70 * 5 * sizeof(float));
  std::memcpy(twice.data() + 70 * 5, all.data(), 70 * 5 * sizeof(float));
  check_against(accumulator, twice, 1e-6);
}

TEST_CASE("a fit continues from its written sums bit by bit") {
  const auto all = images(192, 3, 9, 1.0, 13);
  auto whole = fitted(all, 3);
  auto begun = fitted(Matrix<float>(0, 9), 3);
  REQUIRE(begun.add_batch(all.view().block(0, 128 * 3)).ok());
  auto resumed = GaussianAccumulator::resume(begun.sums());
  REQUIRE(resumed.ok());
  CHECK(resumed->count() == 128);
  REQUIRE(resumed->add_batch(all.view().block(128 * 3, 64 * 3)).ok());
  CHECK(same_bits(resumed->sums().products, whole.sums().products));

  auto broken = begun.sums();
  broken.products.cols -= 1;
  CHECK(GaussianAccumulator::resume(broken).code() == norma::Errc::shape_mismatch);
}

TEST_CASE("finishing keeps the fit, and may take its memory") {
  const auto all = images(40, 2, 6, 1.0, 14);
  auto accumulator = fitted(all, 2);
  const auto first = accumulator.finish();
  REQUIRE(first.ok());
  const auto again = accumulator.finish();
  REQUIRE(again.ok());
  CHECK(same_bits(first->factor.view(), again->factor.view()));
  REQUIRE(accumulator.add(all.view().block(0, 2)).ok());
  CHECK(accumulator.count() == 41);
  auto copy = fitted(all, 2);
  const auto taken = std::move(copy).finish();
  REQUIRE(taken.ok());
  CHECK(same_bits(first->factor.view(), taken->factor.view()));
  CHECK(copy.count() == 0);
  CHECK(copy.add(all.view().block(0, 2)).code() == norma::Errc::shape_mismatch);
}

TEST_CASE("G3: fewer images than dimensions stay positive definite with 0.01 on the diagonal") {
  const auto all = images(10, 2, 100, 3.0, 15);
  auto accumulator = fitted(all, 2);
  CHECK(accumulator.finish(0.01).ok());
  const auto without = accumulator.finish(0.0);
  // Nine independent images: pivots from row 9 on are rounding errors of either sign, far below 90 positive ones in a row.
  CHECK(without.code() == norma::Errc::invalid_argument);
  CHECK(without.message().find("position 0") != std::string::npos);
}

TEST_CASE("the position that cannot be factored is named") {
  auto all = images(40, 5, 3, 1.0, 16);
  for (std::int64_t i = 0; i < 40; ++i) {
    for (std::int64_t c = 0; c < 3; ++c) all(i * 5 + 3, c) = 2.0f;
  }
  auto accumulator = fitted(all, 5);
  const auto model = accumulator.finish(0.0);
  CHECK(model.code() == norma::Errc::invalid_argument);
  CHECK(model.message().find("position 3") != std::string::npos);
  CHECK(accumulator.finish(1e-6).ok());
}

TEST_CASE("what is refused, and that nothing changes then") {
  CHECK(GaussianAccumulator::create(0, 3).code() == norma::Errc::invalid_argument);
  CHECK(GaussianAccumulator::create(3, 0).code() == norma::Errc::invalid_argument);
  auto all = images(3, 4, 5, 1.0, 17);
  auto accumulator = GaussianAccumulator::create(4, 5);
  CHECK(accumulator->finish().code() == norma::Errc::not_enough_data);
  REQUIRE(accumulator->add(all.view().block(0, 4)).ok());
  CHECK(accumulator->finish().code() == norma::Errc::not_enough_data);
  CHECK(accumulator->add(all.view().block(0, 3)).code() == norma::Errc::shape_mismatch);
  CHECK(accumulator->add_batch(all.view().block(0, 6)).code() == norma::Errc::shape_mismatch);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    auto broken = all;
    broken(6, 2) = bad;
    const auto status = accumulator->add(broken.view().block(4, 4));
    CHECK(status.code() == norma::Errc::not_finite);
    CHECK(status.message().find("position 2") != std::string::npos);
  }
  CHECK(accumulator->count() == 1);
  REQUIRE(accumulator->add_batch(all.view().block(4, 8)).ok());
  check_against(*accumulator, all, 1e-6);
  CHECK(accumulator->finish(-0.1).code() == norma::Errc::invalid_argument);
  CHECK(accumulator->finish(std::numeric_limits<double>::quiet_NaN()).code() == norma::Errc::invalid_argument);
  auto other = GaussianAccumulator::create(4, 6);
  CHECK(accumulator->merge(*other).code() == norma::Errc::shape_mismatch);
}

TEST_CASE("factoring can be cancelled and reports progress") {
  const auto all = images(3, 600, 4, 1.0, 18);
  auto accumulator = fitted(all, 600);
  std::atomic<bool> cancel{false};
  std::int64_t done = 0;
  norma::Observer observer;
  observer.on_progress = [&](const norma::ProgressUpdate& update) { done = update.done; };
  REQUIRE(accumulator.finish(0.01, {}, observer).ok());
  CHECK(done == 600);
  observer.cancel = &cancel;
  cancel = true;
  CHECK(accumulator.finish(0.01, {}, observer).code() == norma::Errc::cancelled);
}

TEST_CASE_TEMPLATE("covariance of the rows of one matrix", T, float, double) {
  for (const std::int64_t d : {1, 7, 16, 33}) {
    for (const std::int64_t n : {2, 127, 128, 300}) {
      CAPTURE(d);
      CAPTURE(n);
      const auto all = images(n, 1, d, 10.0, 19);
      std::vector<T> mean(static_cast<std::size_t>(d));
      Matrix<T> got(d, d), threaded(d, d);
      REQUIRE(norma::covariance<T>(all.view(), mean, got.view()).ok());
      const auto want = two_pass(all, 1, 0);
      const double unit = std::numeric_limits<T>::epsilon();
      for (std::int64_t r = 0; r < d; ++r) {
        // Rounded once; the reference's own sum of n doubles is allowed for.
        CHECK(std::abs(static_cast<double>(mean[static_cast<std::size_t>(r)]) - want.mean[static_cast<std::size_t>(r)]) <=
              (unit + static_cast<double>(n) * 0x1p-52) * std::abs(want.mean[static_cast<std::size_t>(r)]));
        for (std::int64_t c = 0; c < d; ++c) {
          // Chains of 128 products and n / 128 additions, rounding of the centred values, and the reference's own n additions.
          const double bound = ((128.0 + static_cast<double>(n) / 128.0 + 8.0) * unit + static_cast<double>(n) * 0x1p-52) *
                               std::sqrt(want.covariance(r, r) * want.covariance(c, c));
          REQUIRE(std::abs(static_cast<double>(got(r, c)) - want.covariance(r, c)) <= bound);
        }
      }
      norma::ThreadPool pool(4);
      REQUIRE(norma::covariance<T>(all.view(), mean, threaded.view(), pool.parallel()).ok());
      CHECK(std::memcmp(got.data(), threaded.data(), static_cast<std::size_t>(d * d) * sizeof(T)) == 0);
    }
  }
  Matrix<float> one(1, 3), two(2, 3);
  std::vector<T> mean(3), small(2);
  Matrix<T> out(3, 3);
  CHECK(norma::covariance<T>(one.view(), mean, out.view()).code() == norma::Errc::not_enough_data);
  CHECK(norma::covariance<T>(two.view(), small, out.view()).code() == norma::Errc::shape_mismatch);
}
