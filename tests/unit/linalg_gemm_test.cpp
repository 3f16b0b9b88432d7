// The packed matrix product against sums in double.
//
// Bound: a chain of k fused multiply-adds has |error| <= k u sum|a b| with u = 2^-24; the epilogue adds two roundings. Rounding errors
// of independent sign grow with sqrt(k): 4 sqrt(k) u sum|a b| is four standard deviations at the least and is what a correct kernel keeps.
#include <doctest/doctest.h>

#include <cstring>

#include <norma/core/thread_pool.hpp>
#include <norma/linalg/gemm.hpp>

#include "../support/reference.hpp"

using namespace norma;

namespace {

constexpr double kUnit = 0x1p-24;

struct Case {
  std::int64_t m, n, k;
};

/// A matrix whose rows lie `extra` elements further apart than they must; the gaps hold NaN.
struct Padded {
  Padded(std::int64_t rows, std::int64_t cols, std::int64_t extra, std::uint64_t seed) : storage(rows, cols + extra), cols_(cols) {
    for (std::int64_t i = 0; i < rows * (cols + extra); ++i) storage.data()[i] = std::numeric_limits<float>::quiet_NaN();
    Random random(seed);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) storage(r, c) = static_cast<float>(random.normal());
    }
  }
  [[nodiscard]] MatrixView<float> view() { return {storage.data(), storage.rows(), cols_, storage.cols()}; }
  Matrix<float> storage;
  std::int64_t cols_;
};

void check_product(Case size, std::int64_t extra, InstructionSet set) {
  CAPTURE(size.m);
  CAPTURE(size.n);
  CAPTURE(size.k);
  CAPTURE(extra);
  CAPTURE(to_string(set));
  Padded a(size.m, size.k, extra, 1), b(size.n, size.k, extra, 2), c(size.m, size.n, extra, 3);
  const auto packed = linalg::PackedMatrix::pack(b.view(), set);
  test::Scratch scratch(linalg::gemm_scratch_bytes(size.m, size.n, size.k, 1));
  Arena arena = scratch.arena();
  linalg::gemm(a.view(), packed, c.view(), {}, {}, arena);
  double worst = 0.0;  // in units of the bound
  for (std::int64_t r = 0; r < size.m; ++r) {
    for (std::int64_t col = 0; col < size.n; ++col) {
      test::BoundedSum want;
      for (std::int64_t i = 0; i < size.k; ++i) want.add(static_cast<double>(a.view()(r, i)) * static_cast<double>(b.view()(col, i)));
      const double bound = 4.0 * std::sqrt(static_cast<double>(size.k)) * kUnit * want.magnitude;
      const double error = std::abs(static_cast<double>(c.view()(r, col)) - want.value);
      if (!(error <= bound)) worst = std::numeric_limits<double>::infinity();
      worst = std::max(worst, error / bound);
    }
  }
  CHECK(worst <= 1.0);
  // The gaps between the rows of c are untouched.
  bool gaps = true;
  for (std::int64_t r = 0; r < size.m; ++r) {
    for (std::int64_t i = size.n; i < size.n + extra; ++i) gaps = gaps && std::isnan(c.storage(r, i));
  }
  CHECK(gaps);
  CHECK(arena.used() == 0);
}

}  // namespace

TEST_CASE("gemm: every size around the tiles, dense and strided") {
  for (const auto set : test::instruction_sets()) {
    for (const std::int64_t m : {1, 2, 5, 6, 7, 13, 14, 15, 28, 29, 42}) {
      for (const std::int64_t n : {1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65}) {
        for (const std::int64_t k : {1, 3, 16, 33}) check_product({m, n, k}, 0, set);
      }
    }
    for (const std::int64_t extra : {1, 3, 16}) check_product({19, 37, 21}, extra, set);
  }
}

TEST_CASE("gemm: sizes of real layers, rows at power-of-two distances") {
  for (const auto set : test::instruction_sets()) {
    check_product({49, 64, 147}, 0, set);
    check_product({100, 130, 512}, 0, set);
    check_product({45, 96, 1024}, 0, set);
    check_product({1, 100, 2048}, 0, set);
    check_product({17, 40, 1000}, 24, set);  // stride 1024, k below it
  }
}

TEST_CASE("gemm: bias, residual and every activation") {
  const std::int64_t m = 23, n = 41, k = 19;
  for (const auto set : test::instruction_sets()) {
    Padded a(m, k, 0, 4), b(n, k, 0, 5), residual(m, n, 5, 6);
    const auto bias = test::normal_vector(n, 7);
    const auto packed = linalg::PackedMatrix::pack(b.view(), set);
    for (const auto activation : test::kActivations) {
      CAPTURE(static_cast<int>(activation));
      CAPTURE(to_string(set));
      Matrix<float> c(m, n);
      test::Scratch scratch(linalg::gemm_scratch_bytes(m, n, k, 1));
      Arena arena = scratch.arena();
      linalg::gemm(a.view(), packed, c.view(), {bias.data(), residual.view(), activation}, {}, arena);
      bool good = true;
      for (std::int64_t r = 0; r < m; ++r) {
        for (std::int64_t col = 0; col < n; ++col) {
          test::BoundedSum sum;
          for (std::int64_t i = 0; i < k; ++i) sum.add(static_cast<double>(a.view()(r, i)) * static_cast<double>(b.view()(col, i)));
          sum.add(static_cast<double>(bias[static_cast<std::size_t>(col)]));
          sum.add(static_cast<double>(residual.view()(r, col)));
          const double want = test::activate(sum.value, activation);
          // Activations stretch differences at most 1.5 times (hard_swish; gelu and silu 1.13) and add 4e-7 relative, 2e-7 absolute of
          // their own.
          const double bound = 1.5 * 4.0 * std::sqrt(static_cast<double>(k)) * kUnit * sum.magnitude + 4e-7 * std::abs(want) + 2e-7;
          good = good && std::abs(static_cast<double>(c(r, col)) - want) <= bound;
        }
      }
      CHECK(good);
    }
  }
}

TEST_CASE("gemm: the residual may be the output itself") {
  const std::int64_t m = 30, n = 33, k = 8;
  const auto a = test::normal_matrix(m, k, 8), b = test::normal_matrix(n, k, 9);
  auto c = test::normal_matrix(m, n, 10);
  Matrix<float> fresh(m, n);
  const auto before = c;
  const auto packed = linalg::PackedMatrix::pack(b.view());
  test::Scratch scratch(linalg::gemm_scratch_bytes(m, n, k, 1));
  Arena arena = scratch.arena();
  linalg::gemm(a.view(), packed, fresh.view(), {nullptr, before.view(), Activation::relu}, {}, arena);
  linalg::gemm(a.view(), packed, c.view(), {nullptr, c.view(), Activation::relu}, {}, arena);
  CHECK(std::memcmp(c.data(), fresh.data(), static_cast<std::size_t>(m * n) * sizeof(float)) == 0);
}

TEST_CASE("gemm: bit-equal for any number of threads") {
  for (const auto set : test::instruction_sets()) {
    for (const Case size : {Case{300, 70, 64}, Case{5, 500, 96}, Case{196, 256, 512}, Case{1, 33, 7}}) {
      const auto a = test::normal_matrix(size.m, size.k, 11), b = test::normal_matrix(size.n, size.k, 12);
      const auto packed = linalg::PackedMatrix::pack(b.view(), set);
      Matrix<float> first(size.m, size.n);
      for (const int threads : {1, 2, 3, 4}) {
        ThreadPool pool(threads);
        Matrix<float> c(size.m, size.n);
        test::Scratch scratch(linalg::gemm_scratch_bytes(size.m, size.n, size.k, pool.parallel().workers()));
        Arena arena = scratch.arena();
        linalg::gemm(a.view(), packed, c.view(), {}, pool.parallel(), arena);
        if (threads == 1) first = c;
        CHECK(std::memcmp(c.data(), first.data(), static_cast<std::size_t>(size.m * size.n) * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("gemm: NaN reaches its row or column only, relu keeps it") {
  const std::int64_t m = 16, n = 20, k = 9;
  for (const auto set : test::instruction_sets()) {
    auto a = test::normal_matrix(m, k, 13);
    auto b = test::normal_matrix(n, k, 14);
    a(5, 3) = std::numeric_limits<float>::quiet_NaN();
    b(17, 8) = std::numeric_limits<float>::quiet_NaN();
    const auto packed = linalg::PackedMatrix::pack(b.view(), set);
    test::Scratch scratch(linalg::gemm_scratch_bytes(m, n, k, 1));
    for (const auto activation : test::kActivations) {
      CAPTURE(static_cast<int>(activation));
      CAPTURE(to_string(set));
      Matrix<float> c(m, n);
      Arena arena = scratch.arena();
      linalg::gemm(a.view(), packed, c.view(), {nullptr, {}, activation}, {}, arena);
      bool good = true;
      for (std::int64_t r = 0; r < m; ++r) {
        for (std::int64_t col = 0; col < n; ++col) good = good && std::isnan(c(r, col)) == (r == 5 || col == 17);
      }
      CHECK(good);
    }
  }
}

TEST_CASE("gemm: no rows is no work") {
  const auto b = test::normal_matrix(3, 4, 15);
  const auto packed = linalg::PackedMatrix::pack(b.view());
  test::Scratch scratch(linalg::gemm_scratch_bytes(0, 3, 4, 1));
  Arena arena = scratch.arena();
  linalg::gemm({nullptr, 0, 4}, packed, {nullptr, 0, 3}, {}, {}, arena);
  CHECK(arena.used() == 0);
}

TEST_CASE("PackedMatrix: panels hold b column by column, zero behind its last row") {
  for (const auto set : test::instruction_sets()) {
    const auto b = test::normal_matrix(35, 6, 16);
    const auto packed = linalg::PackedMatrix::pack(b.view(), set);
    CHECK(packed.n() == 35);
    CHECK(packed.k() == 6);
    CHECK(packed.bytes() == static_cast<std::size_t>(packed.panels() * packed.panel() * 6) * sizeof(float));
    bool good = true;
    for (std::int64_t row = 0; row < packed.panels() * packed.panel(); ++row) {
      for (std::int64_t i = 0; i < 6; ++i) {
        const float got = packed.data()[row / packed.panel() * packed.panel() * 6 + i * packed.panel() + row % packed.panel()];
        good = good && got == (row < 35 ? b(row, i) : 0.0f);
      }
    }
    CHECK(good);
  }
}

TEST_CASE("PackedMatrix: from the transpose, and again with other numbers, gives the same panels") {
  for (const auto set : test::instruction_sets()) {
    for (const std::int64_t n : {1, 16, 35, 64}) {
      const auto b = test::normal_matrix(n, 7, 19);
      Matrix<float> t(7, n + 2);  // wider than it must be
      for (std::int64_t r = 0; r < n; ++r) {
        for (std::int64_t i = 0; i < 7; ++i) t(i, r) = b(r, i);
      }
      const auto want = linalg::PackedMatrix::pack(b.view(), set);
      const MatrixView<const float> transposed(t.data(), 7, n, n + 2);
      auto got = linalg::PackedMatrix::pack_transposed(transposed, set);
      CHECK(std::memcmp(got.data(), want.data(), want.bytes()) == 0);
      got = linalg::PackedMatrix::pack(test::normal_matrix(n, 7, 20).view(), set);
      got.repack(b.view());
      CHECK(std::memcmp(got.data(), want.data(), want.bytes()) == 0);
      got = linalg::PackedMatrix::pack(test::normal_matrix(n, 7, 20).view(), set);
      got.repack_transposed(transposed);
      CHECK(std::memcmp(got.data(), want.data(), want.bytes()) == 0);
    }
  }
}

TEST_CASE("gemm_tiles: every entry once, columns of a row in ascending order from one worker") {
  const std::int64_t m = 150, n = 100, k = 17;
  const auto a = test::normal_matrix(m, k, 17), b = test::normal_matrix(n, k, 18);
  for (const auto set : test::instruction_sets()) {
    const auto packed = linalg::PackedMatrix::pack(b.view(), set);
    for (const int threads : {1, 2, 4}) {
      ThreadPool pool(threads);
      test::Scratch scratch(linalg::gemm_scratch_bytes(m, n, k, threads));
      Arena arena = scratch.arena();
      Matrix<float> c(m, n);
      std::vector<std::int64_t> next(static_cast<std::size_t>(m), 0);
      std::vector<int> owner(static_cast<std::size_t>(m), -1);
      std::vector<char> ordered(static_cast<std::size_t>(m), 1);
      linalg::gemm_tiles(a.view(), packed, pool.parallel(), arena,
                         [&](std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols, const float* tile,
                             std::int64_t stride, int worker) {
                           for (std::int64_t r = row; r < row + rows; ++r) {
                             const auto at = static_cast<std::size_t>(r);
                             if (next[at] != col || (owner[at] != -1 && owner[at] != worker)) ordered[at] = 0;
                             next[at] = col + cols;
                             owner[at] = worker;
                             std::memcpy(&c(r, col), tile + (r - row) * stride, static_cast<std::size_t>(cols) * sizeof(float));
                           }
                         });
      CHECK(std::count(ordered.begin(), ordered.end(), 1) == m);
      CHECK(std::count(next.begin(), next.end(), n) == m);
      Matrix<float> want(m, n);
      linalg::gemm(a.view(), packed, want.view(), {}, {}, arena);
      CHECK(std::memcmp(c.data(), want.data(), static_cast<std::size_t>(m * n) * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("instruction set: the chosen one is available and named") {
  CHECK(available(instruction_set()));
  CHECK(available(InstructionSet::generic));
  CHECK(to_string(InstructionSet::avx2) == "avx2");
}
