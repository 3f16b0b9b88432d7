// Nearest rows on the device against brute force in double (tests K1, K2 of the catalogue): the same rows in the same order, also where distances
// tie, whatever the product, the tiles and the memory.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <norma/cuda/nearest_rows.cuh>
#include <support/device.hpp>

#include <device/nearest_rows_reference.hpp>

namespace norma::test {

inline constexpr RowProduct kProducts[] = {RowProduct::fp32, RowProduct::tf32x3, RowProduct::tf32, RowProduct::bf16};
inline std::string name_of(RowProduct p) {
  return p == RowProduct::fp32 ? "fp32" : p == RowProduct::tf32x3 ? "tf32x3" : p == RowProduct::tf32 ? "tf32" : "bf16";
}

/// Tiles so small that little data has many of them: edges of tiles everywhere, warps with one group of rows and with two.
struct TinyTiles {
  NORMA_HD constexpr cuda::NearestRowsPolicy operator()(int /*arch*/, RowProduct product) const {
    using enum cuda::Arithmetic;
    constexpr std::int64_t kFew = 5;
    switch (product) {
      case RowProduct::fp32: return {{32, 64, 16, 2, 1, 2, fp32}, {16, 32, 8, 1, 1, 2, fp32}, kFew, 64};
      case RowProduct::tf32x3: return {{32, 64, 16, 1, 2, 2, tf32x3}, {16, 32, 16, 1, 1, 2, tf32x3}, kFew, 64};
      case RowProduct::tf32: return {{16, 64, 16, 1, 1, 3, tf32}, {16, 32, 16, 1, 1, 2, tf32}, kFew, 64};
      case RowProduct::bf16: break;
    }
    return {{32, 64, 32, 2, 1, 2, bf16}, {16, 32, 32, 1, 1, 3, bf16}, kFew, 64};
  }
};

/// The default's large tiles, however few they are.
struct LargeTiles {
  NORMA_HD constexpr cuda::NearestRowsPolicy operator()(int arch, RowProduct product) const {
    cuda::NearestRowsPolicy policy = cuda::NearestRowsTuning{}(arch, product);
    policy.few = 0;
    return policy;
  }
};

struct Found {
  std::vector<float> distance;
  std::vector<std::int64_t> index;
  cuda::SearchCounters counters;
  cuda::BankStatus status;
  friend bool operator==(const Found& a, const Found& b) {  // bit by bit: NaN equals itself
    return a.index == b.index && a.distance.size() == b.distance.size() &&
           (a.distance.empty() || std::memcmp(a.distance.data(), b.distance.data(), a.distance.size() * sizeof(float)) == 0);
  }
};

struct How {
  RowProduct product = RowProduct::bf16;
  RowDistance distance = RowDistance::squared_l2;
  cuda::SearchMemory memory = {};
};

template <class Tuning = TinyTiles, class T>
Found search(const Rows<T>& bank, const Rows<T>& queries, int k, How how = {}) {
  const TestStream stream;
  const DeviceArray<T> device_bank(bank.data), device_queries(queries.data);
  DeviceArray<std::byte> prepared(static_cast<std::int64_t>(cuda::prepared_bank_bytes(bank.rows, bank.cols, how.product)));
  const auto placed = cuda::place_bank(MatrixView<const T>(device_bank.data(), bank.rows, bank.cols), how.distance, how.product,
                                       {prepared.data(), static_cast<std::size_t>(prepared.size())});
  REQUIRE_MESSAGE(placed.ok(), placed.message());
  Status status = cuda::prepare_bank(stream, *placed);
  REQUIRE_MESSAGE(status.ok(), status.message());
  DeviceArray<float> distance(queries.rows * k);
  DeviceArray<std::int64_t> index(queries.rows * k);
  DeviceArray<std::byte> workspace(
      static_cast<std::int64_t>(cuda::nearest_rows_workspace_bytes(queries.rows, bank.rows, bank.cols, k, how.product, how.memory)));
  status = cuda::nearest_rows<T, Tuning>(stream, *placed, MatrixView<const T>(device_queries.data(), queries.rows, queries.cols), k,
                                         distance.matrix(queries.rows, k), index.matrix(queries.rows, k),
                                         {workspace.data(), static_cast<std::size_t>(workspace.size())}, how.memory);
  REQUIRE_MESSAGE(status.ok(), status.message());
  stream.wait();
  Found found{distance.read(), index.read(), {}, {}};
  const std::vector<std::byte> memory = workspace.read(), bank_memory = prepared.read();
  std::memcpy(&found.counters, memory.data(), sizeof(found.counters));
  std::memcpy(&found.status, bank_memory.data(), sizeof(found.status));
  return found;
}

template <class T>
void check_exact(const Rows<T>& bank, const Rows<T>& queries, int k, const Found& found, RowDistance kind = RowDistance::squared_l2) {
  check_exact(bank, queries, k, found.distance, found.index, kind);
}

struct Size {
  std::int64_t n, d, m;
  int k;
};

TEST_CASE("nearest rows, K1: those of brute force in double") {
  if (!has_device()) return;
  // Around a group (32), the tiles (32, 64), the tile of the prepared arrays (256) and a chunk of the operands (4 or 8); k beyond the rows.
  const Size sizes[] = {{1, 1, 1, 1},    {1, 5, 3, 2},    {31, 3, 5, 3},    {32, 16, 31, 1},  {33, 17, 33, 9},
                        {64, 8, 16, 64}, {65, 33, 17, 7}, {255, 40, 6, 64}, {257, 7, 32, 16}, {300, 100, 20, 9}};
  for (const RowProduct product : kProducts) {
    CAPTURE(name_of(product));
    for (const RowDistance kind : {RowDistance::squared_l2, RowDistance::cosine}) {
      for (const Size& size : sizes) {
        CAPTURE(size.n);
        CAPTURE(size.d);
        CAPTURE(size.m);
        CAPTURE(size.k);
        const auto bank = normal_rows(size.n, size.d, 41, 0.5), queries = normal_rows(size.m, size.d, 42, 0.5);
        check_exact(bank, queries, size.k, search(bank, queries, size.k, {product, kind}), kind);
      }
    }
  }
}

TEST_CASE("nearest rows, K1: banks of half and bfloat16") {
  if (!has_device()) return;
  const auto run = [](auto element) {
    using T = decltype(element);
    for (const RowProduct product : {RowProduct::fp32, RowProduct::bf16}) {
      for (const std::int64_t d : {1, 20, 33}) {
        const auto bank = normal_rows<T>(90, d, 43, 1.0), queries = normal_rows<T>(10, d, 44, 1.0);
        for (const RowDistance kind : {RowDistance::squared_l2, RowDistance::cosine})
          check_exact(bank, queries, 5, search(bank, queries, 5, {product, kind}), kind);
      }
    }
  };
  run(Half{});
  run(BFloat16{});
}

TEST_CASE("nearest rows: the same bits for every product, tile and memory") {
  if (!has_device()) return;
  const auto bank = normal_rows(700, 24, 45, 2.0), queries = normal_rows(45, 24, 46, 2.0);
  for (const int k : {1, 10}) {
    const Found want = search(bank, queries, k, {RowProduct::fp32});
    check_exact(bank, queries, k, want);
    for (const RowProduct product : kProducts) {
      CAPTURE(name_of(product));
      CHECK(search(bank, queries, k, {product}) == want);
      // 20 queries at once; one tile of the bank at once; both.
      CHECK(search(bank, queries, k, {product, RowDistance::squared_l2, {20, std::int64_t{1} << 22}}) == want);
      CHECK(search(bank, queries, k, {product, RowDistance::squared_l2, {4096, 1}}) == want);
      CHECK(search(bank, queries, k, {product, RowDistance::squared_l2, {7, 60}}) == want);
    }
  }
  const Found want = search(bank, queries, 10);
  for (const RowProduct product : kProducts) {
    CAPTURE(name_of(product));
    CHECK(search<cuda::NearestRowsTuning>(bank, queries, 10, {product}) == want);  // small tiles: there are few
    CHECK(search<LargeTiles>(bank, queries, 10, {product}) == want);
  }
}

TEST_CASE("nearest rows, K1: ties go to the lowest row") {
  if (!has_device()) return;
  const auto bank = grid_rows(300, 5, 47, 3), queries = grid_rows(12, 5, 48, 3);
  for (const RowProduct product : kProducts) {
    CAPTURE(name_of(product));
    for (const int k : {1, 4, 64}) {
      CAPTURE(k);
      const Found found = search(bank, queries, k, {product});
      for (std::int64_t q = 0; q < queries.rows; ++q) {
        const auto want = brute_force(bank, queries, q, RowDistance::squared_l2);
        for (std::int64_t i = 0; i < k; ++i) {
          REQUIRE(found.index[static_cast<std::size_t>(q * k + i)] == want[static_cast<std::size_t>(i)].second);
          REQUIRE(static_cast<double>(found.distance[static_cast<std::size_t>(q * k + i)]) == want[static_cast<std::size_t>(i)].first);
        }
      }
    }
  }
}

TEST_CASE("nearest rows: what is measured, on ordinary data and on data made to defeat the bounds") {
  if (!has_device()) return;
  constexpr std::int64_t kRows = 400, kQueries = 6;
  const auto bank = normal_rows(kRows, 64, 49), queries = normal_rows(kQueries, 64, 50);
  for (const RowProduct product : kProducts) {
    CAPTURE(name_of(product));
    // Ordinary: distances are about 128 with a standard deviation of 16, so the smallest of 400 is some units ahead of the next; the bounds of fp32
    //           are 1e-3 wide,
    // those of bf16 about 1. Few rows are measured beside the nearest one, and no group twice.
    const Found ordinary = search(bank, queries, 1, {product});
    check_exact(bank, queries, 1, ordinary);
    CHECK(ordinary.counters.measured >= kQueries);
    CHECK(ordinary.counters.measured <= 4 * kQueries);
    CHECK(ordinary.counters.whole_groups == 0);

    // All rows equal: every one ties, so every one must be measured, and rows 0 .. k - 1 win.
    auto equal = bank;
    for (std::int64_t r = 1; r < kRows; ++r) std::copy_n(bank.data.begin(), 64, equal.data.begin() + r * 64);
    const Found all = search(equal, queries, 5, {product});
    CHECK(all.counters.measured == kRows * kQueries);
    CHECK(all.counters.whole_groups == kQueries * ((kRows + 31) / 32));
    for (std::int64_t i = 0; i < 5 * kQueries; ++i) REQUIRE(all.index[static_cast<std::size_t>(i)] == i % 5);

    // Rows around one point, nearer to each other than any product can tell, far from the others: the last bits decide.
    auto close = bank;
    Random random(51);
    for (std::int64_t r = 0; r < kRows; r += 3) {
      for (std::int64_t c = 0; c < 64; ++c) close.at(r, c) = 5.0f + 1e-6f * static_cast<float>(random.normal());
    }
    auto near = queries;
    for (float& x : near.data) x = 5.0f + 1e-6f * static_cast<float>(random.normal());
    const Found hard = search(close, near, 3, {product});
    check_exact(close, near, 3, hard);
    CHECK(hard.counters.whole_groups > 0);
  }
}

TEST_CASE("nearest rows: rows that follow one another in the bank do not hide one another") {
  if (!has_device()) return;
  // A walk: row r is nearest to r - 1 and r + 1, so the nine nearest of any point of it are neighbours in the bank.
  auto bank = normal_rows(640, 20, 80, 0.0, 1.0);
  for (std::int64_t r = 1; r < 640; ++r) {
    for (std::int64_t c = 0; c < 20; ++c) bank.at(r, c) += bank.at(r - 1, c);
  }
  const auto queries = normal_rows(4, 20, 81);
  auto near = queries;
  for (std::int64_t q = 0; q < 4; ++q) {
    for (std::int64_t c = 0; c < 20; ++c) near.at(q, c) = bank.at(150 * q + 20, c) + 0.1f * queries.data[static_cast<std::size_t>(q * 20 + c)];
  }
  for (const RowProduct product : {RowProduct::fp32, RowProduct::tf32}) {
    const Found found = search(bank, near, 9, {product});
    check_exact(bank, near, 9, found);
    CHECK(found.counters.whole_groups <= 4);  // of 80
  }
}

TEST_CASE("nearest rows, K1: a group of short rows beside groups of long ones, whose bounds are wider") {
  if (!has_device()) return;
  // 13 groups: rows 0, 13, 26, ... are short, the others lie around eight long points, nearer to each other than a product can tell; its error has
  // another size and sign at each.
  const auto points = normal_rows(8, 24, 85, 0.0, 100.0);
  auto bank = normal_rows(416, 24, 82, 0.0, 1e-2), queries = normal_rows(16, 24, 83, 0.0, 1e-4);
  for (std::int64_t r = 0; r < 416; ++r) {
    for (std::int64_t c = 0; c < 24 && r % 13 != 0; ++c)
      bank.at(r, c) = points.data[static_cast<std::size_t>(r % 8 * 24 + c)] + 1e-2f * bank.at(r, c);
  }
  for (std::int64_t q = 0; q < 16; ++q) {
    for (std::int64_t c = 0; c < 24; ++c) queries.at(q, c) += points.data[static_cast<std::size_t>(q % 8 * 24 + c)];
  }
  for (const RowProduct product : kProducts) {
    CAPTURE(name_of(product));
    check_exact(bank, queries, 3, search(bank, queries, 3, {product}));
  }
}

TEST_CASE("nearest rows, K1: far from the origin, where the expanded form alone would be noise") {
  if (!has_device()) return;
  for (const double offset : {100.0, 3000.0}) {
    CAPTURE(offset);
    const auto bank = normal_rows(200, 32, 52, offset), queries = normal_rows(10, 32, 53, offset);
    for (const RowProduct product : kProducts) {
      CAPTURE(name_of(product));
      for (const RowDistance kind : {RowDistance::squared_l2, RowDistance::cosine})
        check_exact(bank, queries, 3, search(bank, queries, 3, {product, kind}), kind);
    }
  }
}

TEST_CASE("nearest rows, K1: very small and very large values, and rows much longer than the others") {
  if (!has_device()) return;
  for (const double scale : {1e-30, 1e-21, 1e-18, 1e15, 2e18}) {
    CAPTURE(scale);
    const auto bank = normal_rows(70, 12, 54, 0.0, scale), queries = normal_rows(5, 12, 55, 0.0, scale);
    for (const RowProduct product : {RowProduct::fp32, RowProduct::bf16}) {
      const Found found = search(bank, queries, 2, {product});
      for (std::int64_t q = 0; q < 5; ++q) {
        const auto want = brute_force(bank, queries, q, RowDistance::squared_l2);
        for (std::int64_t i = 0; i < 2; ++i) CHECK(found.index[static_cast<std::size_t>(2 * q + i)] == want[static_cast<std::size_t>(i)].second);
      }
      check_exact(bank, queries, 2, search(bank, queries, 2, {product, RowDistance::cosine}), RowDistance::cosine);
    }
  }
  auto bank = normal_rows(100, 12, 56), queries = normal_rows(6, 12, 57);
  bank.at(3, 4) = 1e19f;  // beyond 2^62, its square still fits a float
  bank.at(40, 0) = 1e12f;
  queries.at(2, 4) = 1e19f;
  queries.at(4, 0) = 1e12f;
  for (const RowProduct product : kProducts) {
    CAPTURE(name_of(product));
    const Found found = search(bank, queries, 4, {product});
    for (const std::int64_t q : {0, 1, 3, 5}) {
      const auto want = brute_force(bank, queries, q, RowDistance::squared_l2);
      for (std::int64_t i = 0; i < 4; ++i) CHECK(found.index[static_cast<std::size_t>(4 * q + i)] == want[static_cast<std::size_t>(i)].second);
    }
    CHECK(found.index[8] == 3);
    CHECK(found.index[16] == 40);
  }
}

TEST_CASE("nearest rows, K2: every stored row finds itself at exactly 0, also among rows that differ in the last bit") {
  if (!has_device()) return;
  for (const double offset : {0.0, 50.0}) {
    const auto bank = normal_rows(150, 20, 58, offset);
    for (const RowProduct product : kProducts) {
      for (const RowDistance kind : {RowDistance::squared_l2, RowDistance::cosine}) {
        const Found found = search(bank, bank, 2, {product, kind});
        for (std::int64_t r = 0; r < bank.rows; ++r) {
          REQUIRE(found.index[static_cast<std::size_t>(2 * r)] == r);
          REQUIRE(found.distance[static_cast<std::size_t>(2 * r)] == 0.0f);
          REQUIRE(found.distance[static_cast<std::size_t>(2 * r + 1)] > 0.0f);
        }
      }
    }
  }
  auto bank = normal_rows(40, 30, 59);
  for (std::int64_t r = 1; r < 40; ++r) std::copy_n(bank.data.begin(), 30, bank.data.begin() + r * 30);
  for (std::int64_t r = 1; r < 40; ++r) bank.at(r, 7) = std::nextafter(bank.at(r - 1, 7), 9.0f);
  for (const RowProduct product : kProducts) {
    const Found found = search(bank, bank, 1, {product});
    for (std::int64_t r = 0; r < 40; ++r) {
      REQUIRE(found.index[static_cast<std::size_t>(r)] == r);
      REQUIRE(found.distance[static_cast<std::size_t>(r)] == 0.0f);
    }
  }
}

TEST_CASE("nearest rows: cosine of rows of zeros is 1, of a multiple 0 within double, of the opposite 2") {
  if (!has_device()) return;
  auto bank = normal_rows(40, 9, 60), queries = normal_rows(3, 9, 61);
  for (std::int64_t c = 0; c < 9; ++c) {
    bank.at(5, c) = 0.0f;
    queries.at(0, c) = 0.0f;
    bank.at(17, c) = 4.0f * queries.at(1, c);
    bank.at(30, c) = -2.0f * queries.at(2, c);
  }
  for (const RowProduct product : kProducts) {
    const Found found = search(bank, queries, 40, {product, RowDistance::cosine});
    check_exact(bank, queries, 40, found, RowDistance::cosine);
    for (std::int64_t i = 0; i < 40; ++i) {  // everything ties
      REQUIRE(found.index[static_cast<std::size_t>(i)] == i);
      REQUIRE(found.distance[static_cast<std::size_t>(i)] == 1.0f);
    }
    CHECK(found.index[40] == 17);
    CHECK(found.distance[40] == 0.0f);
    CHECK(found.index[119] == 30);
    CHECK(found.distance[119] == 2.0f);
  }
}

TEST_CASE("nearest rows: cosine of rows whose directions differ by little more than double can tell") {
  if (!has_device()) return;
  // All of one direction but for 2^-22 in one place or two: half squared distances are multiples of about 1e-14.
  Rows<> bank{std::vector<float>(96 * 16, 1.0f), 96, 16};
  Random random(84);
  for (std::int64_t r = 0; r < 96; ++r) {
    for (int i = 0; i < 2; ++i) bank.at(r, random.below(16)) += 0x1p-22f * static_cast<float>(1 + random.below(5));
  }
  for (const RowProduct product : kProducts) {
    const Found found = search(bank, bank, 4, {product, RowDistance::cosine});
    check_exact(bank, bank, 4, found, RowDistance::cosine);
    for (std::size_t r = 0; r < 96; ++r) REQUIRE(found.distance[4 * r] == 0.0f);
  }
}

TEST_CASE("nearest rows: a query that is not finite is reported, its neighbours are not disturbed") {
  if (!has_device()) return;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto bank = normal_rows(100, 17, 62), clean = normal_rows(20, 17, 63);
  for (const RowProduct product : kProducts) {
    const Found want = search(bank, clean, 2, {product});
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity, 3e38f}) {
      auto queries = clean;
      queries.at(6, 11) = bad;
      const Found found = search(bank, queries, 2, {product, RowDistance::squared_l2, {4096, 1}});
      for (std::size_t i = 0; i < 40; ++i) {
        if (i / 2 == 6) {
          CHECK(std::isnan(found.distance[i]));
          CHECK(found.index[i] == -1);
        } else {
          CHECK(found.distance[i] == want.distance[i]);
          CHECK(found.index[i] == want.index[i]);
        }
      }
    }
  }
}

TEST_CASE("nearest rows: rows of the bank that are not finite are counted and never win") {
  if (!has_device()) return;
  const auto queries = normal_rows(9, 10, 64);
  auto bank = normal_rows(80, 10, 65);
  CHECK(search(bank, queries, 1).status.refused == 0);
  CHECK(search(bank, queries, 1).status.first_refused == ~0ull);
  bank.at(70, 3) = std::numeric_limits<float>::quiet_NaN();
  bank.at(33, 9) = -std::numeric_limits<float>::infinity();
  bank.at(34, 0) = 3e38f;
  auto without = bank;  // the same rows, so far away that they come last
  for (const std::int64_t r : {33, 34, 70}) {
    for (std::int64_t c = 0; c < 10; ++c) without.at(r, c) = 1e6f;
  }
  for (const RowProduct product : kProducts) {
    for (const RowDistance kind : {RowDistance::squared_l2, RowDistance::cosine}) {
      const Found found = search(bank, queries, 20, {product, kind});
      CHECK(found.status.refused == 3);
      CHECK(found.status.first_refused == 33);
      for (const std::int64_t row : found.index) CHECK((row >= 0 && row != 33 && row != 34 && row != 70));
      if (kind == RowDistance::squared_l2) CHECK(found == search(without, queries, 20, {product}));
    }
  }
  // Among equal rows, where all are measured; and a bank of nothing else.
  for (float& x : bank.data) x = std::isfinite(x) && x < 1e30f ? 1.0f : x;
  const Found equal = search(bank, queries, 64);
  for (std::size_t i = 0; i < 64; ++i) CHECK(equal.index[i] == static_cast<std::int64_t>(i) + (i >= 33 ? 2 : 0));
  for (float& x : bank.data) x = std::numeric_limits<float>::quiet_NaN();
  const Found none = search(bank, queries, 2);
  CHECK(none.status.refused == 80);
  for (std::size_t i = 0; i < 18; ++i) {
    CHECK(none.index[i] == -1);
    CHECK(none.distance[i] == std::numeric_limits<float>::infinity());
  }
}

TEST_CASE("nearest rows: strided banks and queries, aligned to nothing but their elements, give the same bits") {
  if (!has_device()) return;
  const TestStream stream;
  const auto bank = normal_rows(70, 30, 66), queries = normal_rows(11, 30, 67);
  const Found want = search(bank, queries, 3);
  Rows<> wide_bank = normal_rows(70, 51, 68), wide_queries = normal_rows(11, 39, 69);
  for (std::int64_t r = 0; r < 70; ++r) std::copy_n(bank.data.begin() + r * 30, 30, wide_bank.data.begin() + r * 51 + 3);
  for (std::int64_t r = 0; r < 11; ++r) std::copy_n(queries.data.begin() + r * 30, 30, wide_queries.data.begin() + r * 39 + 1);
  const DeviceArray<float> device_bank(wide_bank.data), device_queries(wide_queries.data);
  DeviceArray<std::byte> prepared(static_cast<std::int64_t>(cuda::prepared_bank_bytes(70, 30, RowProduct::bf16)));
  const auto placed = cuda::place_bank(MatrixView<const float>(device_bank.data() + 3, 70, 30, 51), RowDistance::squared_l2, RowProduct::bf16,
                                       {prepared.data(), static_cast<std::size_t>(prepared.size())});
  REQUIRE(placed.ok());
  REQUIRE(cuda::prepare_bank(stream, *placed).ok());
  DeviceArray<float> distance(11 * 5);  // outputs with a stride, too
  DeviceArray<std::int64_t> index(11 * 4);
  DeviceArray<std::byte> workspace(static_cast<std::int64_t>(cuda::nearest_rows_workspace_bytes(11, 70, 30, 3, RowProduct::bf16)));
  const Status status = cuda::nearest_rows<float, TinyTiles>(
      stream, *placed, MatrixView<const float>(device_queries.data() + 1, 11, 30, 39), 3, MatrixView<float>(distance.data(), 11, 3, 5),
      MatrixView<std::int64_t>(index.data(), 11, 3, 4), {workspace.data(), static_cast<std::size_t>(workspace.size())});
  REQUIRE_MESSAGE(status.ok(), status.message());
  stream.wait();
  const auto got_distance = distance.read();
  const auto got_index = index.read();
  for (std::size_t q = 0; q < 11; ++q) {
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(got_distance[q * 5 + i] == want.distance[q * 3 + i]);
      CHECK(got_index[q * 4 + i] == want.index[q * 3 + i]);
    }
    CHECK(std::isnan(got_distance[q * 5 + 3]));  // what the test wrote before: nobody touched it
    CHECK(got_index[q * 4 + 3] == -1);
  }
}

TEST_CASE("nearest rows: recorded once, launched with other queries") {
  if (!has_device()) return;
  const TestStream stream;
  const auto bank = normal_rows(120, 16, 70), first = normal_rows(20, 16, 71), second = normal_rows(20, 16, 72);
  const DeviceArray<float> device_bank(bank.data);
  DeviceArray<float> queries(first.data), distance(20 * 2);
  DeviceArray<std::int64_t> index(20 * 2);
  DeviceArray<std::byte> prepared(static_cast<std::int64_t>(cuda::prepared_bank_bytes(120, 16, RowProduct::tf32)));
  DeviceArray<std::byte> workspace(static_cast<std::int64_t>(cuda::nearest_rows_workspace_bytes(20, 120, 16, 2, RowProduct::tf32)));
  const auto placed = cuda::place_bank(MatrixView<const float>(device_bank.data(), 120, 16), RowDistance::squared_l2, RowProduct::tf32,
                                       {prepared.data(), static_cast<std::size_t>(prepared.size())});
  REQUIRE(placed.ok());
  REQUIRE(cuda::detail::begin_capture("test", stream).ok());
  const Status prepare = cuda::prepare_bank(stream, *placed);
  const Status nearest = cuda::nearest_rows<float, TinyTiles>(stream, *placed, queries.matrix(20, 16), 2, distance.matrix(20, 2), index.matrix(20, 2),
                                                              {workspace.data(), static_cast<std::size_t>(workspace.size())});
  const auto graph = cuda::detail::end_capture("test", stream);
  REQUIRE_MESSAGE(prepare.ok(), prepare.message());
  REQUIRE_MESSAGE(nearest.ok(), nearest.message());
  REQUIRE_MESSAGE(graph.ok(), graph.message());
  for (const auto& rows : {first, second}) {
    queries.write(rows.data);
    REQUIRE(cuda::detail::launch_graph("test", *graph, stream).ok());
    stream.wait();
    check_exact(bank, rows, 2, {distance.read(), index.read(), {}, {}});
  }
  cuda::detail::destroy_graph(*graph);
}

TEST_CASE("nearest rows: no queries") {
  if (!has_device()) return;
  const auto bank = normal_rows(40, 6, 73);
  const Found found = search(bank, Rows<>{{}, 0, 6}, 3);
  CHECK(found.index.empty());
  CHECK(found.counters.measured == 0);
}

TEST_CASE("nearest rows: what is refused") {
  if (!has_device()) return;
  DeviceArray<float> memory(64 * 1024), distance(8);
  DeviceArray<std::int64_t> index(8);
  DeviceArray<std::byte> workspace(static_cast<std::int64_t>(cuda::nearest_rows_workspace_bytes(2, 10, 4, 64, RowProduct::bf16)) + 16);
  const std::span<std::byte> prepared(reinterpret_cast<std::byte*>(memory.data()), memory.bytes());
  const MatrixView<const float> bank(memory.data(), 10, 4), queries(memory.data(), 2, 4);
  const auto place = [&](MatrixView<const float> rows, std::span<std::byte> where) {
    return cuda::place_bank(rows, RowDistance::squared_l2, RowProduct::bf16, where);
  };
  CHECK(place({}, prepared).code() == Errc::invalid_argument);
  CHECK(place({memory.data(), 0, 4}, prepared).message() == "cuda::place_bank: expected a bank with rows and columns, found 0 x 4");
  CHECK(place({memory.data(), 10, 4, 3}, prepared).message() ==
        "cuda::place_bank: expected rows that do not overlap, found 4 columns at a stride of 3");
  CHECK(place({memory.data(), 1, (1 << 20) + 1}, prepared).message() == "cuda::place_bank: expected at most 1048576 columns, found 1048577");
  CHECK(place(bank, prepared.subspan(1)).message() == "cuda::place_bank: expected memory aligned to 256 bytes");
  const auto little = place(bank, prepared.first(100));
  CHECK(little.code() == Errc::out_of_memory);
  CHECK(little.message() == "cuda::place_bank: expected " + std::to_string(cuda::prepared_bank_bytes(10, 4, RowProduct::bf16)) +
                                " bytes (prepared_bank_bytes), found 100");

  const auto placed = place(bank, prepared);
  REQUIRE(placed.ok());
  const std::span<std::byte> scratch(workspace.data(), static_cast<std::size_t>(workspace.size()));
  const auto nearest = [&](const cuda::PreparedBank<float>& where, MatrixView<const float> q, int k, MatrixView<float> to,
                           MatrixView<std::int64_t> row,
                           std::span<std::byte> work) { return cuda::nearest_rows<float, TinyTiles>({}, where, q, k, to, row, work); };
  const auto d = distance.matrix(2, 3);
  const auto i = index.matrix(2, 3);
  CHECK(cuda::prepare_bank<float>({}, {}).code() == Errc::not_fitted);
  CHECK(nearest({}, queries, 3, d, i, scratch).message() == "cuda::nearest_rows: expected a bank that place_bank laid out");
  CHECK(nearest(*placed, queries, 0, d, i, scratch).message() == "cuda::nearest_rows: expected k from 1 to 64, found 0");
  CHECK(nearest(*placed, queries, 65, d, i, scratch).code() == Errc::invalid_argument);
  CHECK(nearest(*placed, {memory.data(), 2, 5}, 3, d, i, scratch).message() ==
        "cuda::nearest_rows: wrong queries, expected rows of 4 values, found 2 x 5");
  CHECK(nearest(*placed, queries, 2, d, i, scratch).message() == "cuda::nearest_rows: wrong outputs, expected 2 x 2, found 2 x 3 and 2 x 3");
  CHECK(nearest(*placed, queries, 3, d, index.matrix(1, 3), scratch).code() == Errc::shape_mismatch);
  const Status small = nearest(*placed, queries, 3, d, i, scratch.first(300));
  CHECK(small.code() == Errc::out_of_memory);
  CHECK(small.message() == "cuda::nearest_rows: expected a workspace of " +
                               std::to_string(cuda::nearest_rows_workspace_bytes(2, 10, 4, 3, RowProduct::bf16)) +
                               " bytes (nearest_rows_workspace_bytes), found 300");
  CHECK(nearest(*placed, queries, 3, d, i, scratch.subspan(8)).message() == "cuda::nearest_rows: expected a workspace aligned to 256 bytes");
}

}  // namespace norma::test
