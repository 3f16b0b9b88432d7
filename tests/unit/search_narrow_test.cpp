// Products of small integers exclude rows, and never the wrong ones: kernels against plain loops, bounds against distances in long double, and the
// answers of a search that uses them against one that does not, bit for bit.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/search/pruned.hpp>

namespace {

namespace impl = norma::search::detail;
using norma::ExactSearch;
using norma::InstructionSet;
using norma::Matrix;
using norma::PrunedSearch;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<InstructionSet> narrow_sets() {
  std::vector<InstructionSet> sets;
  for (const auto set : {InstructionSet::avx2, InstructionSet::avx512}) {
    if (norma::available(set) && impl::narrow_kernels(set) != nullptr) sets.push_back(set);
  }
  return sets;
}

Matrix<float> normal_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed, double offset = 0.0, double scale = 1.0) {
  norma::Random random(seed);
  Matrix<float> matrix(rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) matrix.data()[i] = static_cast<float>(offset + scale * random.normal());
  return matrix;
}

// Rows of a few tight bunches: all differences inside a bunch are smaller than what integers of 8 bits tell apart.
Matrix<float> bunched_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed, int bunches, double width) {
  norma::Random centres(7), random(seed);
  Matrix<float> centre(bunches, cols), matrix(rows, cols);
  for (std::int64_t i = 0; i < bunches * cols; ++i) centre.data()[i] = static_cast<float>(centres.normal());
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) matrix(r, c) = static_cast<float>(static_cast<double>(centre(r % bunches, c)) + width * random.normal());
  }
  return matrix;
}

struct Found {
  Matrix<float> distance;
  Matrix<std::int64_t> row;
  std::int64_t count = 0;
};

template <class SearchT>
Found search(const typename SearchT::Index& index, norma::MatrixView<const float> queries, int k, norma::Parallel parallel = {}) {
  Found found{Matrix<float>(queries.rows, k), Matrix<std::int64_t>(queries.rows, k)};
  norma::Buffer<std::byte> scratch(static_cast<std::int64_t>(SearchT::scratch_bytes(queries.rows, queries.cols, k, parallel.workers())));
  norma::Arena arena(scratch.span());
  const auto status = SearchT::nearest(index, queries, k, found.distance.view(), found.row.view(), parallel, arena, found.count);
  REQUIRE_MESSAGE(status.ok(), status.message());
  CHECK(arena.used() == 0);
  return found;
}

bool same(const Found& a, const Found& b) {
  const auto count = static_cast<std::size_t>(a.row.rows() * a.row.cols());
  return std::memcmp(a.row.data(), b.row.data(), count * sizeof(std::int64_t)) == 0 && std::memcmp(a.distance.data(), b.distance.data(), count * sizeof(float)) == 0;
}

void check_same(const Matrix<float>& bank, const Matrix<float>& queries, int k) {
  for (const auto set : narrow_sets()) {
    CAPTURE(norma::to_string(set));
    const auto narrow = ExactSearch::prepare_narrow(bank.view(), {}, set), plain = ExactSearch::prepare_float(bank.view(), {}, set);
    REQUIRE(narrow.ok());
    REQUIRE(plain.ok());
    REQUIRE_FALSE(narrow->narrow.empty());
    REQUIRE(plain->narrow.empty());
    CHECK(same(search<ExactSearch>(*narrow, queries.view(), k), search<ExactSearch>(*plain, queries.view(), k)));
  }
}

}  // namespace

TEST_CASE("tiles and products of codes are those of plain loops, also at the ends of the range") {
  norma::Random random(1);
  for (const auto set : narrow_sets()) {
    CAPTURE(norma::to_string(set));
    const auto& kernels = *impl::narrow_kernels(set);
    const int offset = kernels.query_levels + 1;
    for (const std::int64_t width : {8, 16, 24, 64, 200, 1024}) {
      for (const bool extreme : {false, true}) {
        CAPTURE(width);
        CAPTURE(extreme);
        const std::int64_t stride = impl::narrow_stride(width);
        norma::Buffer<std::uint8_t> a(kernels.rows * stride);
        norma::Buffer<std::int8_t> rows(kernels.panel * width), panel(kernels.panel * width);
        norma::Buffer<std::int32_t> start(kernels.panel), tile(kernels.rows * kernels.panel);
        for (std::int64_t i = 0; i < a.size(); ++i) {
          const std::int64_t level = extreme ? (random.below(2) != 0 ? kernels.query_levels : -kernels.query_levels)
                                             : random.below(2 * kernels.query_levels + 1) - kernels.query_levels;
          a[i] = static_cast<std::uint8_t>(level + offset);
        }
        for (std::int64_t c = 0; c < kernels.panel; ++c) {
          start[c] = static_cast<std::int32_t>(random.below(2000)) - 1000;
          for (std::int64_t i = 0; i < width; ++i) {
            // In the extreme case whole columns are of one sign: the largest sums that there are.
            const std::int64_t level = extreme ? (c % 2 != 0 ? kernels.bank_levels : -kernels.bank_levels)
                                               : random.below(2 * kernels.bank_levels + 1) - kernels.bank_levels;
            rows[c * width + i] = static_cast<std::int8_t>(level);
            panel[(i / 4 * kernels.panel + c) * 4 + i % 4] = static_cast<std::int8_t>(level);
          }
        }
        const auto plain = [&](std::int64_t r, std::int64_t c) {
          std::int64_t sum = start[c];
          for (std::int64_t i = 0; i < width; ++i) sum += static_cast<std::int64_t>(a[r * stride + i]) * rows[c * width + i];
          return sum;
        };
        for (int height = 1; height <= kernels.rows; ++height) {
          std::fill_n(tile.data(), tile.size(), -1);
          kernels.tile[static_cast<std::size_t>(height)](a.data(), stride, panel.data(), width / impl::kNarrowStep, start.data(), tile.data());
          for (std::int64_t r = 0; r < kernels.rows; ++r) {
            for (std::int64_t c = 0; c < kernels.panel; ++c) REQUIRE(tile[r * kernels.panel + c] == (r < height ? plain(r, c) : -1));
          }
        }
        if (width % 64 == 0) {
          for (std::int64_t c = 0; c < kernels.panel; ++c) REQUIRE(kernels.product(a.data(), rows.data() + c * width, width) + start[c] == plain(0, c));
        }
      }
    }
  }
}

TEST_CASE("a row is its code and its error") {
  for (const auto set : narrow_sets()) {
    CAPTURE(norma::to_string(set));
    const auto& kernels = *impl::narrow_kernels(set);
    for (const std::int64_t d : {1, 2, 3, 4, 7, 8, 15, 16, 17, 100, 1000}) {
      for (const double scale : {1.0, 1e-25, 1e-32, 1e15}) {
        CAPTURE(d);
        CAPTURE(scale);
        const auto rows = normal_rows(2, d, 2, 0.0, scale);
        std::vector<std::uint8_t> codes(static_cast<std::size_t>(d));
        const int offset = kernels.query_levels + 1;
        const auto row = kernels.code(rows.data(), rows.data() + d, d, kernels.query_levels, offset, codes.data());
        long double squares = 0, error = 0, length = 0;
        std::int64_t sum = 0;
        for (std::int64_t i = 0; i < d; ++i) {
          const int code = codes[static_cast<std::size_t>(i)] - offset;
          REQUIRE(std::abs(code) <= kernels.query_levels);
          const long double x = static_cast<long double>(rows(0, i)) - static_cast<long double>(rows(1, i)), coded = static_cast<long double>(row.scale) * code;
          REQUIRE(std::abs(x - coded) <= static_cast<long double>(row.scale) * 0.5000001L + (row.scale == 0.0f ? std::abs(x) : 0.0L));
          squares += x * x;
          error += (x - coded) * (x - coded);
          length += coded * coded;
          sum += code;
        }
        // Sums of d rounded doubles; an error loses what the difference loses: 2^-53 of x.
        const long double share = static_cast<long double>(d + 8) * 0x1p-52L;
        CHECK(std::abs(row.squares - squares) <= share * squares);
        CHECK(std::abs(row.length - length) <= share * length);
        CHECK(std::abs(std::sqrt(static_cast<long double>(row.error)) - std::sqrt(error)) <= share * (std::sqrt(error) + std::sqrt(squares)));
        CHECK(row.sum == sum);
      }
    }
  }
}

TEST_CASE("bounds hold for any rows") {
  const std::int64_t d = 48, n = 40;
  std::vector<Matrix<float>> banks;
  banks.push_back(normal_rows(n, d, 3));
  banks.push_back(normal_rows(n, d, 4, 5000.0));
  banks.push_back(normal_rows(n, d, 5, 0.0, 1e-24));
  banks.push_back(normal_rows(n, d, 6, 0.0, 1e16));
  banks.push_back(bunched_rows(n, d, 7, 2, 1e-4));
  banks.push_back(normal_rows(n, d, 8));  // one row far away, one of a single value, one of zeros, two that are the same
  for (std::int64_t i = 0; i < d; ++i) {
    banks.back()(3, i) *= 1e6f;
    banks.back()(4, i) = i == 5 ? 2.0f : 0.0f;
    banks.back()(5, i) = 0.0f;
    banks.back()(6, i) = banks.back()(7, i);
  }
  for (const auto set : narrow_sets()) {
    CAPTURE(norma::to_string(set));
    const auto& kernels = *impl::narrow_kernels(set);
    for (std::size_t b = 0; b < banks.size(); ++b) {
      CAPTURE(b);
      const auto bank = banks[b].view();
      const auto centre = impl::mean_row(bank, {});
      const auto rows = impl::NarrowBank::row_by_row(kernels, bank, centre.data(), {});
      for (const auto* queries : {&banks[b], &banks[0], &banks[3]}) {
        norma::Buffer<std::byte> memory(static_cast<std::int64_t>(impl::NarrowQueries::bytes(n, d)));
        norma::Arena arena(memory.span());
        const auto codes = impl::NarrowQueries::take(arena, n, d);
        for (std::int64_t q = 0; q < n; ++q) {
          codes.code(kernels, q, queries->view().row(q).data(), centre.data(), d);
          for (std::int64_t r = 0; r < n; ++r) {
            long double distance = 0, squares = 0;
            for (std::int64_t i = 0; i < d; ++i) {
              const long double query = (*queries)(q, i), middle = centre[i], value = bank(r, i);
              distance += (query - value) * (query - value);
              squares += (query - middle) * (query - middle);
            }
            const auto product = kernels.product(codes.codes + q * codes.stride, rows.row(r), rows.width) + rows.start[r];
            const auto bounds = impl::narrow_bounds(rows, r, codes, q, product);
            const long double lost = 1e-17L * (distance + squares);  // of this difference
            REQUIRE(bounds.lower <= distance - squares + lost);
            REQUIRE(bounds.upper >= distance - squares - lost);
          }
        }
      }
    }
  }
}

TEST_CASE("the answer of the product in float, for any shape") {
  for (const std::int64_t d : {1, 2, 3, 8, 15, 16, 17, 64, 100, 1000, 2048}) {
    for (const std::int64_t n : {1, 15, 16, 17, 31, 32, 33, 300}) {
      for (const int k : {1, 9}) {
        CAPTURE(d);
        CAPTURE(n);
        CAPTURE(k);
        check_same(normal_rows(n, d, 10), normal_rows(29, d, 11), k);
      }
    }
  }
  for (const int k : {100, 299, 300, 301, 1000}) {
    CAPTURE(k);
    check_same(normal_rows(300, 40, 12), normal_rows(17, 40, 13), k);
  }
}

TEST_CASE("the answer of the product in float, for rows that codes hardly tell apart") {
  for (const int k : {1, 9}) {
    CAPTURE(k);
    for (const double offset : {100.0, 3000.0}) check_same(normal_rows(400, 64, 14, offset), normal_rows(30, 64, 15, offset), k);
    for (const double scale : {1e-38, 1e-30, 1e-21, 1e-18, 1e15}) check_same(normal_rows(400, 24, 16, 0.0, scale), normal_rows(30, 24, 17, 0.0, scale), k);
    check_same(normal_rows(400, 24, 18), normal_rows(30, 24, 19, 0.0, 1e15), k);
    check_same(normal_rows(400, 24, 18), normal_rows(30, 24, 19, 0.0, 1e-15), k);
    for (const double width : {1e-2, 1e-4, 1e-7}) check_same(bunched_rows(2000, 64, 20, 3, width), bunched_rows(30, 64, 21, 3, width), k);

    norma::Random random(22);
    Matrix<float> ties(900, 40);  // small integers, every row twice: distances are exact and tie
    for (std::int64_t i = 0; i < 900 * 40; ++i) ties.data()[i] = static_cast<float>(random.below(3));
    for (std::int64_t r = 0; r < 450; ++r) std::memcpy(ties.view().row(2 * r + 1).data(), ties.view().row(r).data(), 40 * sizeof(float));
    check_same(ties, ties, k);
    check_same(Matrix<float>(500, 40), ties, k);  // zeros
    Matrix<float> equal(700, 33);
    for (std::int64_t i = 0; i < 700 * 33; ++i) equal.data()[i] = 0.1f * static_cast<float>(i % 33);
    check_same(equal, normal_rows(9, 33, 23), k);
    check_same(equal, equal, k);

    auto outliers = normal_rows(600, 50, 24);  // and sparse rows
    for (std::int64_t i = 0; i < 50; ++i) outliers(599, i) *= 1e12f;
    for (std::int64_t r = 0; r < 100; ++r) {
      for (std::int64_t i = 0; i < 50; ++i) outliers(r, i) = i == r % 50 ? 3.0f : 0.0f;
    }
    check_same(outliers, outliers, k);
  }
}

TEST_CASE("bit-equal for any number of threads, in several passes") {
  const auto bank = normal_rows(900, 48, 25), queries = normal_rows(ExactSearch::kQueriesPerPass + 333, 48, 26);
  for (const auto set : narrow_sets()) {
    CAPTURE(norma::to_string(set));
    const auto index = ExactSearch::prepare_narrow(bank.view(), {}, set);
    REQUIRE(index.ok());
    const auto alone = search<ExactSearch>(*index, queries.view(), 4);
    for (const int threads : {2, 3, 4}) {
      norma::ThreadPool pool(threads);
      const auto threaded = ExactSearch::prepare_narrow(bank.view(), pool.parallel(), set);
      REQUIRE(threaded.ok());
      CHECK(std::memcmp(index->narrow.codes.data(), threaded->narrow.codes.data(), static_cast<std::size_t>(index->narrow.codes.size())) == 0);
      CHECK(same(alone, search<ExactSearch>(*threaded, queries.view(), 4, pool.parallel())));
    }
  }
}

TEST_CASE("a query that is not finite is reported, its neighbours are not disturbed") {
  const auto bank = normal_rows(300, 70, 27), clean = normal_rows(20, 70, 28);
  for (const auto set : narrow_sets()) {
    const auto index = ExactSearch::prepare_narrow(bank.view(), {}, set);
    REQUIRE(index.ok());
    const auto want = search<ExactSearch>(*index, clean.view(), 2);
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity, 3e38f}) {
      for (const std::int64_t at : {0, 11, 69}) {
        auto queries = clean;
        queries(6, at) = bad;
        const auto found = search<ExactSearch>(*index, queries.view(), 2);
        for (std::int64_t q = 0; q < 20; ++q) {
          for (std::int64_t i = 0; i < 2; ++i) {
            CHECK((q == 6 ? std::isnan(found.distance(q, i)) : found.distance(q, i) == want.distance(q, i)));
            CHECK(found.row(q, i) == (q == 6 ? -1 : want.row(q, i)));
          }
        }
      }
    }
  }
}

TEST_CASE("rows nearly as long as float can measure keep their place, on the other side of the mean too") {
  // |b|^2 = 3.4e38 fits float; |b - mean|^2 would not.
  Matrix<float> bank = normal_rows(4096, 64, 1, 0.0, 1e15);
  for (std::int64_t r = 0; r < bank.rows(); ++r) bank(r, 0) -= 1e18f;
  for (std::int64_t c = 0; c < bank.cols(); ++c) bank(100, c) = 0.0f;
  bank(100, 0) = 1.84e19f;
  Matrix<float> query(1, 64);
  query(0, 0) = 1.7e19f;
  std::vector<InstructionSet> sets = narrow_sets();
  sets.push_back(InstructionSet::generic);
  for (const InstructionSet set : sets) {
    CAPTURE(norma::to_string(set));
    const auto codes = ExactSearch::prepare_narrow(bank.view(), {}, set), floats = ExactSearch::prepare_float(bank.view(), {}, set);
    const auto shorts = PrunedSearch::prepare_pruned(bank.view(), {}, set);
    REQUIRE((codes.ok() && floats.ok() && shorts.ok()));
    CHECK(search<ExactSearch>(*codes, query.view(), 1).row(0, 0) == 100);
    CHECK(search<ExactSearch>(*floats, query.view(), 1).row(0, 0) == 100);
    CHECK(search<PrunedSearch>(*shorts, query.view(), 1).row(0, 0) == 100);
  }
}

TEST_CASE("integers are used where they exclude nearly everything, and only there") {
  const auto rows = normal_rows(2000, 256, 29), bunches = bunched_rows(2000, 256, 30, 3, 1e-4);
  for (const auto set : narrow_sets()) {
    CAPTURE(norma::to_string(set));
    const auto index = ExactSearch::prepare(rows.view(), {}, set), coarse = ExactSearch::prepare(bunches.view(), {}, set);
    REQUIRE(index.ok());
    REQUIRE(coarse.ok());
    CHECK_FALSE(index->narrow.empty());
    CHECK(index->packed.empty());
    CHECK(index->bytes() < static_cast<std::size_t>(2016 * (256 + 24) + 256 * 4));
    CHECK(coarse->narrow.empty());
    const auto few = ExactSearch::prepare(rows.view().block(0, ExactSearch::kFewestRows - 1), {}, set);
    REQUIRE(few.ok());
    CHECK(few->narrow.empty());
    const auto queries = normal_rows(50, 256, 31);
    CHECK(search<ExactSearch>(*index, queries.view(), 1).count < 50 * 2000 / 20);
    // Where they are used all the same, a query that excludes too little is measured against the whole bank.
    const auto forced = ExactSearch::prepare_narrow(bunches.view(), {}, set);
    REQUIRE(forced.ok());
    CHECK(search<ExactSearch>(*forced, bunches.view().block(0, 20), 1).count > 20 * 2000);
  }
  const auto generic = ExactSearch::prepare(rows.view(), {}, InstructionSet::generic);
  REQUIRE(generic.ok());
  CHECK(generic->narrow.empty());
}

TEST_CASE("rows that are too long for sums of 32 bits are compared in float") {
  const auto bank = normal_rows(2, impl::kNarrowMostDims + 1, 32);
  const auto index = ExactSearch::prepare_narrow(bank.view(), {}, norma::instruction_set());
  REQUIRE(index.ok());
  CHECK(index->narrow.empty());
  CHECK(search<ExactSearch>(*index, bank.view(), 1).distance(1, 0) == 0.0f);
}

TEST_CASE("what a narrow index refuses") {
  auto bank = normal_rows(300, 40, 33);
  bank(7, 1) = std::numeric_limits<float>::quiet_NaN();
  for (const auto set : narrow_sets()) {
    const auto broken = ExactSearch::prepare_narrow(bank.view(), {}, set);
    CHECK(broken.code() == norma::Errc::not_finite);
    CHECK(broken.message().find("row 7") != std::string::npos);
    CHECK(ExactSearch::prepare_narrow({}, {}, set).code() == norma::Errc::invalid_argument);
  }
}
