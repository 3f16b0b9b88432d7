// Greedy k-centre on the device: the picks of the plain loop in double, its guarantees (tests K3, K4), what queueing, capture, progress and
// cancelling promise.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <norma/core/random.hpp>
#include <norma/core/tensor.hpp>
#include <norma/cuda/greedy_k_centre.hpp>
#include <norma/cuda/k_centre.cuh>
#include <norma/cuda/runtime.cuh>
#include <norma/estimators/memory_bank.hpp>
#include <norma/search/greedy_k_centre.hpp>

#include <support/device.hpp>

namespace norma::test::k_centre {

// Small tiles and a small pool, so that sizes around them are cheap in the emulation.
constexpr cuda::TilePolicy kSmallTf32{32, 32, 16, 2, 1, 2, cuda::Arithmetic::tf32};
constexpr cuda::TilePolicy kSmallFp32{32, 32, 8, 2, 1, 2, cuda::Arithmetic::fp32};
constexpr cuda::TilePolicy kWideTf32{64, 32, 16, 2, 2, 3, cuda::Arithmetic::tf32};
struct Small {
  NORMA_HD constexpr cuda::KCentrePolicy operator()(int) const { return {64, 32, 24, kSmallTf32, kSmallFp32}; }
};
struct SmallFp32 {
  NORMA_HD constexpr cuda::KCentrePolicy operator()(int) const { return {64, 64, 64, kSmallFp32, kSmallFp32}; }
};
struct Wide {
  NORMA_HD constexpr cuda::KCentrePolicy operator()(int) const { return {256, 64, 40, kWideTf32, kSmallFp32}; }
};

}  // namespace norma::test::k_centre

namespace {

using namespace norma;
using namespace norma::test::k_centre;
using Rows = std::vector<std::int64_t>;

Matrix<float> normal_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed, float offset = 0.0f, float scale = 1.0f) {
  Random random(seed);
  Matrix<float> matrix(rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) matrix.data()[i] = offset + scale * static_cast<float>(random.normal());
  return matrix;
}
Matrix<float> grid_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed, std::int64_t values) {
  Random random(seed);
  Matrix<float> matrix(rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) matrix.data()[i] = static_cast<float>(random.below(values));
  return matrix;
}
Matrix<float> clustered_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  const auto centres = normal_rows(7, cols, seed, 0.0f, 20.0f);
  auto matrix = normal_rows(rows, cols, seed + 1, 0.0f, 0.01f);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) matrix(r, c) += centres(r % 7, c);
  }
  return matrix;
}

// A grid whose points are off by a few `steps`: nearly all distances nearly tie.
Matrix<float> jittered_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed, float step) {
  Random random(seed);
  Matrix<float> matrix(rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) matrix.data()[i] = static_cast<float>(random.below(8)) + step * static_cast<float>(random.below(4));
  return matrix;
}

// In the documented order.
double squared_distance(const Matrix<float>& points, std::int64_t a, std::int64_t b) {
  double sum = 0.0;
  for (std::int64_t k0 = 0; k0 < points.cols(); k0 += 32) {
    double piece = 0.0;
    for (std::int64_t k = k0; k < std::min(k0 + 32, points.cols()); ++k) {
      const double difference = static_cast<double>(points(a, k)) - static_cast<double>(points(b, k));
      piece = std::fma(difference, difference, piece);
    }
    sum += piece;
  }
  return sum;
}

// The textbook loop. `nearest` holds the start values.
Rows plain_loop(const Matrix<float>& points, std::int64_t count, std::vector<double> nearest) {
  Rows chosen;
  std::vector<bool> taken(nearest.size(), false);
  while (static_cast<std::int64_t>(chosen.size()) < count) {
    std::int64_t best = -1;
    for (std::int64_t i = 0; i < points.rows(); ++i) {
      if (taken[static_cast<std::size_t>(i)]) continue;
      if (best < 0 || nearest[static_cast<std::size_t>(i)] > nearest[static_cast<std::size_t>(best)]) best = i;
    }
    chosen.push_back(best);
    taken[static_cast<std::size_t>(best)] = true;
    for (std::int64_t i = 0; i < points.rows(); ++i) {
      nearest[static_cast<std::size_t>(i)] = std::min(nearest[static_cast<std::size_t>(i)], squared_distance(points, i, best));
    }
  }
  return chosen;
}
Rows plain_loop_from(const Matrix<float>& points, std::int64_t count, std::int64_t first) {
  std::vector<double> nearest(static_cast<std::size_t>(points.rows()), 1e300);
  nearest[static_cast<std::size_t>(first)] = std::numeric_limits<double>::infinity();
  return plain_loop(points, count, nearest);
}

// A selection with its device memory. `extra` floats between rows, `shift` floats before the first.
struct Selection {
  test::DeviceArray<float> points;
  test::DeviceArray<std::int64_t> chosen;
  test::DeviceArray<std::byte> workspace;
  std::vector<test::DeviceArray<double>> initial;
  cuda::KCentreProblem problem;

  Selection(const Matrix<float>& rows, std::int64_t count, std::int64_t first = 0, std::int64_t extra = 0, std::int64_t shift = 0)
      : points(shift + rows.rows() * (rows.cols() + extra)),
        chosen(std::max<std::int64_t>(count, 1)),
        workspace(static_cast<std::int64_t>(cuda::k_centre_workspace_bytes(rows.rows(), rows.cols()))) {
    const std::int64_t stride = rows.cols() + extra;
    std::vector<float> values(static_cast<std::size_t>(points.size()), std::numeric_limits<float>::quiet_NaN());
    for (std::int64_t r = 0; r < rows.rows(); ++r) {
      for (std::int64_t c = 0; c < rows.cols(); ++c) values[static_cast<std::size_t>(shift + r * stride + c)] = rows(r, c);
    }
    points.write(values);
    problem = {.points = {points.data() + shift, rows.rows(), rows.cols(), stride},
               .count = count,
               .first_row = first,
               .initial = nullptr,
               .chosen = chosen.data(),
               .workspace = {workspace.data(), workspace.bytes()}};
  }
  void start_from(const std::vector<double>& values) {
    initial.emplace_back(values);
    problem.initial = initial.back().data();
  }
  template <class Tuning>
  Rows run(const Observer& observer = {}) {
    const test::TestStream stream;
    auto rows = cuda::greedy_k_centre<Tuning>(stream, problem, observer);
    REQUIRE_MESSAGE(rows.ok(), rows.message());
    CHECK(*rows == chosen.read());
    return *std::move(rows);
  }
  template <class Tuning>
  Status fail(const Observer& observer = {}) {
    const test::TestStream stream;
    return cuda::greedy_k_centre<Tuning>(stream, problem, observer).status();
  }
  cuda::KCentreReport report() {
    const test::TestStream stream;
    cuda::KCentreReport now;
    REQUIRE(cuda::enqueue_k_centre_report(stream, problem, &now).ok());
    stream.wait();
    return now;
  }
};

template <class Tuning>
Rows select(const Matrix<float>& points, std::int64_t count, std::int64_t first = 0, std::int64_t extra = 0, std::int64_t shift = 0) {
  return Selection(points, count, first, extra, shift).run<Tuning>();
}

}  // namespace

TEST_CASE("k-centre: the picks are those of the plain loop, for sizes around the pool, the tile and a piece of a sum") {
  if (!test::has_device()) return;
  for (const std::int64_t n : {1, 2, 31, 32, 33, 63, 64, 65, 129}) {
    for (const std::int64_t d : {1, 3, 32, 33}) {
      CAPTURE(n);
      CAPTURE(d);
      const auto points = normal_rows(n, d, static_cast<std::uint64_t>(100 * n + d));
      const std::int64_t count = std::min<std::int64_t>(n, 40);
      const Rows want = plain_loop_from(points, count, n / 2);
      CHECK(select<Small>(points, count, n / 2) == want);
      CHECK(select<SmallFp32>(points, count, n / 2) == want);
    }
  }
}

TEST_CASE("k-centre: the policy changes no pick, nor does the place of the rows in memory") {
  if (!test::has_device()) return;
  const auto points = normal_rows(700, 37, 1);
  const Rows want = plain_loop_from(points, 120, 5);
  CHECK(select<Small>(points, 120, 5) == want);
  CHECK(select<SmallFp32>(points, 120, 5, 3) == want);      // rows at multiples of 16 bytes
  CHECK(select<Wide>(points, 120, 5, 3, 4) == want);        // the same, not the first of the memory
  CHECK(select<Small>(points, 120, 5, 3, 1) == want);       // not aligned
  CHECK(select<Small>(points, 120, 5, 11) == want);
  CHECK(select<cuda::KCentreTuning>(points, 120, 5, 3) == want);
}

TEST_CASE("k-centre: the shipped policy with more rows than its pool") {
  if (!test::has_device()) return;
  const auto points = normal_rows(1500, 20, 2);
  Selection selection(points, 200);
  CHECK(selection.run<cuda::KCentreTuning>() == plain_loop_from(points, 200, 0));
  CHECK(selection.report().sweeps < 40);
}

TEST_CASE("k-centre: clusters, far from the origin, tiny and large numbers, one direction") {
  if (!test::has_device()) return;
  const auto same = [](const Matrix<float>& points, std::int64_t count) {
    const Rows want = plain_loop_from(points, count, 0);
    CHECK(select<Small>(points, count) == want);
    CHECK(select<SmallFp32>(points, count) == want);
  };
  same(clustered_rows(300, 12, 3), 60);
  same(jittered_rows(300, 4, 3, 0x1p-20f), 100);
  same(normal_rows(300, 12, 4, 1000.0f), 60);
  same(normal_rows(300, 12, 5, 1e6f), 60);                  // coordinates have a step of 1/16: ties
  same(normal_rows(200, 40, 6, 0.0f, 1e-24f), 40);          // squares are denormal or zero in float
  same(normal_rows(200, 12, 7, 1.0f, 1e-6f), 40);
  same(normal_rows(200, 12, 8, 0.0f, 1e17f), 40);
  auto outliers = normal_rows(300, 12, 9);
  for (std::int64_t i = 0; i < 5; ++i) outliers(37 * i + 11, i) = 1e15f * static_cast<float>(i + 1);
  same(outliers, 60);
  Matrix<float> line(300, 2);
  for (std::int64_t i = 0; i < 300; ++i) line(i, 0) = static_cast<float>((i * 7919) % 300);
  same(line, 100);
}

TEST_CASE("k-centre: after every round each row's distance is the exact one: the product excluded nothing that it must not") {
  if (!test::has_device()) return;
  const auto check = [&]<class Tuning>(Tuning, const Matrix<float>& points, std::int64_t count) {
    const std::int64_t n = points.rows();
    Selection selection(points, count);
    const test::TestStream stream;
    REQUIRE(cuda::enqueue_k_centre_start<Tuning>(stream, selection.problem).ok());
    std::vector<double> nearest(static_cast<std::size_t>(n), std::numeric_limits<double>::infinity());
    std::vector<bool> taken(static_cast<std::size_t>(n), false);
    for (std::int64_t known = 0; known < count;) {
      stream.wait();
      const cuda::KCentreReport report = selection.report();
      REQUIRE(report.chosen > known);
      if (report.chosen == count) break;
      const Rows chosen = selection.chosen.read();
      for (; known < report.chosen; ++known) {
        const std::int64_t row = chosen[static_cast<std::size_t>(known)];
        taken[static_cast<std::size_t>(row)] = true;
        for (std::int64_t i = 0; i < n; ++i) {
          double& so_far = nearest[static_cast<std::size_t>(i)];
          so_far = std::min(so_far, squared_distance(points, i, row));
        }
      }
      const auto memory = selection.workspace.read();
      std::vector<unsigned long long> keys(static_cast<std::size_t>(n));
      std::memcpy(keys.data(), memory.data() + cuda::detail::KCentreLayout(n, points.cols()).keys, keys.size() * sizeof(keys[0]));
      std::int64_t wrong = 0;
      for (std::size_t i = 0; i < keys.size(); ++i) wrong += keys[i] == (taken[i] ? 0 : cuda::detail::k_centre::key_of(nearest[i])) ? 0 : 1;
      CHECK(wrong == 0);
      REQUIRE(cuda::enqueue_k_centre_rounds<Tuning>(stream, selection.problem, 1).ok());
    }
  };
  for (const std::int64_t d : {2, 5, 40}) {
    CAPTURE(d);
    check(SmallFp32{}, jittered_rows(500, d, 30, 0x1p-20f), 150);  // within the rounding of float
    check(Small{}, jittered_rows(500, d, 31, 0x1p-11f), 150);      // within that of TF32
  }
  check(SmallFp32{}, clustered_rows(400, 3, 32), 150);
  check(Small{}, normal_rows(400, 70, 33, 3.0f), 100);
}

TEST_CASE("k-centre: distances that tie go to the lowest row, and coincident rows follow in order") {
  if (!test::has_device()) return;
  const auto points = grid_rows(900, 4, 10, 3);  // at most 81 different points
  const Rows want = plain_loop_from(points, 150, 0);
  CHECK(select<Small>(points, 150) == want);
  CHECK(select<Wide>(points, 150) == want);
  Matrix<float> same(150, 3);
  for (std::int64_t i = 0; i < 450; ++i) same.data()[i] = 0.25f;
  Rows order(150);
  for (std::int64_t i = 0; i < 150; ++i) order[static_cast<std::size_t>(i)] = i;
  Selection all(same, 150);
  CHECK(all.run<Small>() == order);
  CHECK(all.report().sweeps == 1);  // a row that coincides with a chosen one needs none
  std::swap(order[0], order[9]);
  std::sort(order.begin() + 1, order.end());
  CHECK(select<Small>(same, 150, 9) == order);
}

TEST_CASE("k-centre: more rows tie for the largest distance than the pool holds") {
  if (!test::has_device()) return;
  // Row 0 is the middle; the others are the corners of a cross-polytope, at one distance from it and from each other (or 2).
  constexpr std::int64_t kHalf = 90;
  Matrix<float> points(2 * kHalf + 1, kHalf);
  for (std::int64_t i = 0; i < kHalf; ++i) {
    points(1 + i, i) = 1.0f;
    points(1 + kHalf + i, i) = -1.0f;
  }
  const Rows want = plain_loop_from(points, 2 * kHalf + 1, 0);
  CHECK(select<Small>(points, 2 * kHalf + 1) == want);
}

TEST_CASE("k-centre: first distances may be given") {
  if (!test::has_device()) return;
  const auto points = normal_rows(300, 9, 11);
  std::vector<double> first(300);
  Random random(12);
  for (double& v : first) v = 10.0 * random.uniform();
  first[17] = 0.0;
  first[18] = -0.0;
  first[20] = std::numeric_limits<double>::infinity();
  first[40] = 1e300;
  Selection selection(points, 300);
  selection.start_from(first);
  CHECK(selection.run<Small>() == plain_loop(points, 300, first));
  Selection zeros(points, 5);
  zeros.start_from(std::vector<double>(300, 0.0));
  CHECK(zeros.run<Small>() == Rows{0, 1, 2, 3, 4});
}

TEST_CASE("k-centre: the mean distance to several rows") {
  if (!test::has_device()) return;
  for (const std::int64_t d : {5, 150}) {
    const auto points = normal_rows(70, d, 13);
    const std::vector<std::int64_t> starts{3, 69, 0};
    const Selection memory(points, 1, 0, 2);
    const test::DeviceArray<std::int64_t> rows(starts);
    test::DeviceArray<double> squared(70);
    const test::TestStream stream;
    REQUIRE(cuda::k_centre_mean_distances(stream, memory.problem.points, rows.data(), 3, squared.data()).ok());
    stream.wait();
    const auto got = squared.read();
    for (std::int64_t i = 0; i < 70; ++i) {
      double sum = 0.0;
      for (const std::int64_t s : starts) sum += std::sqrt(squared_distance(points, i, s));
      CHECK(got[static_cast<std::size_t>(i)] == sum / 3.0 * (sum / 3.0));  // the same operations in the same order
    }
    CHECK(cuda::k_centre_mean_distances(stream, memory.problem.points, rows.data(), 0, squared.data()).code() == Errc::invalid_argument);
  }
}

TEST_CASE("K3: the covering radius never grows, and is at most twice the best possible") {
  if (!test::has_device()) return;
  const auto points = normal_rows(12, 2, 14);
  const Rows picks = select<Small>(points, 12);
  const auto radius_of = [&](const Rows& centres) {
    double radius = 0.0;
    for (std::int64_t i = 0; i < points.rows(); ++i) {
      double nearest = std::numeric_limits<double>::infinity();
      for (const std::int64_t c : centres) nearest = std::min(nearest, squared_distance(points, i, c));
      radius = std::max(radius, nearest);
    }
    return std::sqrt(radius);
  };
  double before = std::numeric_limits<double>::infinity();
  for (std::size_t k = 1; k <= 12; ++k) {
    const double radius = radius_of(Rows(picks.begin(), picks.begin() + static_cast<std::ptrdiff_t>(k)));
    CHECK(radius <= before);
    before = radius;
    double best = std::numeric_limits<double>::infinity();
    for (std::uint32_t mask = 1; mask < 1u << 12; ++mask) {
      if (static_cast<std::size_t>(std::popcount(mask)) != k) continue;
      Rows centres;
      for (std::int64_t i = 0; i < 12; ++i) {
        if ((mask >> i & 1u) != 0) centres.push_back(i);
      }
      best = std::min(best, radius_of(centres));
    }
    CHECK(radius <= 2.0 * best * (1.0 + 1e-12));
  }
  CHECK(before == 0.0);
}

TEST_CASE("K4: no row twice, the same picks every time") {
  if (!test::has_device()) return;
  const auto points = grid_rows(600, 3, 15, 4);
  Selection selection(points, 600, 7);
  const Rows once = selection.run<Small>();
  CHECK(selection.run<Small>() == once);  // the workspace of another run is no different from a fresh one
  CHECK(std::set<std::int64_t>(once.begin(), once.end()).size() == 600);
  CHECK(once == plain_loop_from(points, 600, 7));
}

TEST_CASE("k-centre: many picks a sweep") {
  if (!test::has_device()) return;
  const auto points = normal_rows(2500, 8, 16);
  Selection selection(points, 300);
  const Rows picks = selection.run<Wide>();
  const cuda::KCentreReport report = selection.report();
  CHECK(report.chosen == 300);
  CHECK(report.rounds <= report.sweeps);
  CHECK(report.sweeps <= 300 / 8);
  CHECK(report.measured >= 2499);                // at least the first row's distances
  CHECK(report.measured <= 2500ull * 300 / 10);  // and few of the others
  CHECK(picks == plain_loop_from(points, 300, 0));
}

TEST_CASE("k-centre: rounds are queued without waiting, and a graph of them goes on where it is") {
  if (!test::has_device()) return;
  const auto points = normal_rows(500, 10, 17);
  Selection selection(points, 130);
  const Rows want = plain_loop_from(points, 130, 0);
  const cuda::KCentreProblem& problem = selection.problem;
  auto made = cuda::Stream::create();
  REQUIRE(made.ok());
  const cuda::Stream& stream = *made;
  cuda::KCentreReport report;
  auto start = cuda::Graph::capture(stream, [&] { return cuda::enqueue_k_centre_start<Small>(stream, problem); });
  REQUIRE_MESSAGE(start.ok(), start.message());
  auto rounds = cuda::Graph::capture(stream, [&]() -> Status {
    NORMA_CHECK(cuda::enqueue_k_centre_rounds<Small>(stream, problem, 2));
    return cuda::enqueue_k_centre_report<Small>(stream, problem, &report);
  });
  REQUIRE_MESSAGE(rounds.ok(), rounds.message());
  for (int repeat = 0; repeat < 2; ++repeat) {
    REQUIRE(start->launch(stream).ok());
    std::int64_t before = 1;
    int launches = 0;
    while (before < 130) {
      REQUIRE(rounds->launch(stream).ok());
      REQUIRE(stream.synchronize().ok());
      REQUIRE(report.chosen > before);
      const Rows so_far = selection.chosen.read();
      CHECK(std::equal(so_far.begin(), so_far.begin() + static_cast<std::ptrdiff_t>(report.chosen), want.begin()));
      before = report.chosen;
      ++launches;
    }
    CHECK(launches > 1);
    // More rounds than needed change nothing.
    const std::int64_t sweeps = report.sweeps;
    REQUIRE(rounds->launch(stream).ok());
    REQUIRE(stream.synchronize().ok());
    CHECK(report.chosen == 130);
    CHECK(report.sweeps == sweeps);
    CHECK(selection.chosen.read() == want);
  }
}

TEST_CASE("k-centre: what is refused") {
  if (!test::has_device()) return;
  const auto points = normal_rows(40, 6, 18);
  const auto code_of = [&](auto change) {
    Selection selection(points, 40);
    change(selection.problem);
    const test::TestStream stream;
    const Status start = cuda::enqueue_k_centre_start<Small>(stream, selection.problem);
    CHECK(start.code() == cuda::enqueue_k_centre_rounds<Small>(stream, selection.problem, 1).code());
    CHECK(start.code() == cuda::greedy_k_centre<Small>(stream, selection.problem).code());
    return start.code();
  };
  using Problem = cuda::KCentreProblem;
  CHECK(code_of([](Problem& p) { p.count = 41; }) == Errc::invalid_argument);
  CHECK(code_of([](Problem& p) { p.count = 0; }) == Errc::invalid_argument);
  CHECK(code_of([](Problem& p) { p.first_row = 40; }) == Errc::invalid_argument);
  CHECK(code_of([](Problem& p) { p.first_row = -1; }) == Errc::invalid_argument);
  CHECK(code_of([](Problem& p) { p.points.rows = 0; }) == Errc::not_enough_data);
  CHECK(code_of([](Problem& p) { p.points.cols = 0; }) == Errc::not_enough_data);
  CHECK(code_of([](Problem& p) { p.points.stride = 5; }) == Errc::shape_mismatch);
  CHECK(code_of([](Problem& p) { p.points.rows = std::int64_t{1} << 31; }) == Errc::invalid_argument);
  CHECK(code_of([](Problem& p) { p.points.cols = p.points.stride = (std::int64_t{1} << 20) + 1; }) == Errc::invalid_argument);
  CHECK(code_of([](Problem& p) { p.workspace = p.workspace.first(p.workspace.size() - 1); }) == Errc::out_of_memory);
  CHECK(code_of([](Problem& p) { p.workspace = {p.workspace.data() + 8, p.workspace.size()}; }) == Errc::invalid_argument);
  CHECK(code_of([](Problem& p) { p.chosen = nullptr; }) == Errc::invalid_argument);
}

TEST_CASE("k-centre: rows that are not finite are named, the lowest first") {
  if (!test::has_device()) return;
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 3e18f}) {
    auto points = normal_rows(100, 5, 19);
    points(71, 4) = bad;
    points(13, 2) = bad;
    Selection selection(points, 50);
    const Status status = selection.fail<Small>();
    CHECK(status.code() == Errc::not_finite);
    CHECK(status.message().find("row 13 ") != std::string::npos);
    CHECK(selection.report().not_finite == 13);
  }
  std::vector<double> first(100, 1.0);
  for (const double bad : {std::numeric_limits<double>::quiet_NaN(), -1.0}) {
    first[29] = bad;
    Selection selection(normal_rows(100, 5, 20), 50);
    selection.start_from(first);
    CHECK(selection.fail<Small>().message().find("row 29 ") != std::string::npos);
  }
}

TEST_CASE("k-centre: progress reaches the end, and a cancelled selection stops") {
  if (!test::has_device()) return;
  const auto points = normal_rows(400, 6, 21);
  Selection selection(points, 200);
  Observer observer;
  std::vector<std::int64_t> done;
  observer.on_progress = [&](const ProgressUpdate& update) {
    done.push_back(update.done);
    CHECK(update.total == 200);
  };
  CHECK(selection.run<Small>(observer) == plain_loop_from(points, 200, 0));
  REQUIRE(done.size() >= 2);
  CHECK(std::is_sorted(done.begin(), done.end()));
  CHECK(done.front() == 0);
  CHECK(done.back() == 200);
  std::atomic<bool> cancel{true};
  observer.cancel = &cancel;
  CHECK(selection.fail<Small>(observer).code() == Errc::cancelled);
  CHECK(selection.report().chosen < 200);
}

TEST_CASE("k-centre: the projection is the product with the map") {
  if (!test::has_device()) return;
  for (const std::int64_t d : {4, 37}) {
    const std::int64_t stride = (d + 3) / 4 * 4, n = 70, dims = 33;
    const auto points = normal_rows(n, d, 22);
    const auto map = projection_matrix(Projection::uniform, dims, d, 23);
    const auto pack = [&](const Matrix<float>& m) {
      std::vector<float> packed(static_cast<std::size_t>(m.rows() * stride), 0.0f);
      for (std::int64_t r = 0; r < m.rows(); ++r) {
        for (std::int64_t c = 0; c < d; ++c) packed[static_cast<std::size_t>(r * stride + c)] = m(r, c);
      }
      return packed;
    };
    const test::DeviceArray<float> device_points(pack(points)), device_map(pack(map));
    test::DeviceArray<float> out(n * 40);
    const MatrixView<const float> x{device_points.data(), n, d, stride}, m{device_map.data(), dims, d, stride};
    const test::TestStream stream;
    REQUIRE(cuda::k_centre_project<Small>(stream, x, m, {out.data(), n, dims, 40}).ok());
    stream.wait();
    const auto got = out.read();
    for (std::int64_t r = 0; r < n; ++r) {
      for (std::int64_t c = 0; c < 40; ++c) {
        const float value = got[static_cast<std::size_t>(r * 40 + c)];
        if (c >= dims) {
          CHECK(std::isnan(value));  // not touched
          continue;
        }
        double sum = 0.0, size = 0.0;
        for (std::int64_t k = 0; k < d; ++k) {
          const double product = static_cast<double>(points(r, k)) * static_cast<double>(map(c, k));
          sum += product;
          size += std::abs(product);
        }
        CHECK(std::abs(static_cast<double>(value) - sum) <= static_cast<double>(d + 1) * 0x1p-24 * size);  // d products and sums, each rounded once
      }
    }
    CHECK(cuda::k_centre_project<Small>(stream, x, m, {out.data(), n, dims - 1, 40}).code() == Errc::shape_mismatch);
    const MatrixView<const float> odd{device_points.data(), n, d, stride + 1};
    CHECK(cuda::k_centre_project<Small>(stream, odd, m, {out.data(), n, dims, 40}).code() == Errc::invalid_argument);
  }
}

TEST_CASE("cuda::GreedyKCenter chooses what norma::GreedyKCenter chooses") {
  if (!test::has_device()) return;
  const auto points = normal_rows(300, 21, 24);
  GreedyKCenter::Settings settings;
  settings.size.coreset_ratio = 0.2;
  settings.projection_dims = 13;
  for (const Projection projection : {Projection::none, Projection::uniform, Projection::sparse}) {
    for (const KCenterStart start : {KCenterStart::first_row, KCenterStart::random, KCenterStart::approximate}) {
      CAPTURE(to_string(projection));
      CAPTURE(to_string(start));
      settings.projection = projection;
      settings.start = start;
      const auto got = cuda::GreedyKCenter::select(points.view(), settings, 25, {}, {});
      const auto want = GreedyKCenter::select(points.view(), settings, 25, {}, {});
      REQUIRE_MESSAGE(got.ok(), got.message());
      CHECK(*got == *want);
    }
  }
  settings.size.coreset_ratio = 0.0;
  CHECK(cuda::GreedyKCenter::select(points.view(), settings, 25, {}, {}).code() == Errc::invalid_argument);
  settings.size.coreset_ratio = 0.5;
  CHECK(cuda::GreedyKCenter::select({}, settings, 25, {}, {}).code() == Errc::not_enough_data);
  auto broken = points;
  broken(13, 2) = std::numeric_limits<float>::quiet_NaN();
  const auto status = cuda::GreedyKCenter::select(broken.view(), settings, 25, {}, {});
  CHECK(status.code() == Errc::not_finite);
  CHECK(status.message().find("row 13 ") != std::string::npos);
}

TEST_CASE("a memory bank fits with the selection on the device as with the host's") {
  if (!test::has_device()) return;
  FeatureShapes shapes;
  shapes.add({6, 7, 10});
  const auto bank_of = [&]<class SubsetT>(SubsetT) {
    using Bank = MemoryBank<SubsetT>;
    auto bank = Bank::create(shapes, {});
    REQUIRE(bank.ok());
    for (std::int64_t image = 0; image < 4; ++image) {
      Tensor<float> level(1, {6, 7, 10});
      Random random(26, static_cast<std::uint64_t>(image));
      for (std::int64_t i = 0; i < level.view().count(); ++i) level.data()[i] = static_cast<float>(random.normal());
      Features features;
      features.add(std::as_const(level).view());
      REQUIRE(bank->observe(features, image, {}).ok());
    }
    const Observer observer;
    const Status finished = bank->finish({.observer = observer, .seed = 27});
    REQUIRE_MESSAGE(finished.ok(), finished.message());
    return *std::move(bank);
  };
  const auto device = bank_of(cuda::GreedyKCenter{});
  const auto host = bank_of(GreedyKCenter{});
  REQUIRE(device.bank().rows == 16);
  REQUIRE(host.bank().rows == 16);
  CHECK(std::memcmp(device.bank().data, host.bank().data, static_cast<std::size_t>(host.bank().count()) * sizeof(float)) == 0);
  CHECK(MemoryBank<cuda::GreedyKCenter>::type_name({}) == MemoryBank<>::type_name({}));  // its file opens without a device
}
