// Greedy k-centre: the picks of the plain loop, its guarantees (tests K3, K4), its settings.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/settings.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/search/greedy_k_centre.hpp>

namespace {

using norma::GreedyKCenter;
using norma::KCenterStart;
using norma::Matrix;
using norma::Projection;

Matrix<float> normal_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  norma::Random random(seed);
  Matrix<float> matrix(rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) matrix.data()[i] = static_cast<float>(random.normal());
  return matrix;
}

Matrix<float> grid_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed, std::int64_t values) {
  norma::Random random(seed);
  Matrix<float> matrix(rows, cols);
  for (std::int64_t i = 0; i < rows * cols; ++i) matrix.data()[i] = static_cast<float>(random.below(values));
  return matrix;
}

double squared_distance(const Matrix<float>& points, std::int64_t a, std::int64_t b) {
  double sum = 0.0;
  for (std::int64_t i = 0; i < points.cols(); ++i) {
    const double difference = static_cast<double>(points(a, i)) - static_cast<double>(points(b, i));
    sum += difference * difference;
  }
  return sum;
}

// The textbook loop. `nearest` holds the start values.
std::vector<std::int64_t> plain_loop(const Matrix<float>& points, std::int64_t count, std::vector<double> nearest) {
  std::vector<std::int64_t> chosen;
  std::vector<bool> taken(static_cast<std::size_t>(points.rows()), false);
  while (static_cast<std::int64_t>(chosen.size()) < count) {
    std::int64_t best = -1;
    for (std::int64_t i = 0; i < points.rows(); ++i) {
      if (!taken[static_cast<std::size_t>(i)] && (best < 0 || nearest[static_cast<std::size_t>(i)] > nearest[static_cast<std::size_t>(best)])) best = i;
    }
    chosen.push_back(best);
    taken[static_cast<std::size_t>(best)] = true;
    for (std::int64_t i = 0; i < points.rows(); ++i) {
      nearest[static_cast<std::size_t>(i)] = std::min(nearest[static_cast<std::size_t>(i)], squared_distance(points, i, best));
    }
  }
  return chosen;
}

std::vector<std::int64_t> plain_loop_from(const Matrix<float>& points, std::int64_t count, std::int64_t first) {
  std::vector<double> nearest(static_cast<std::size_t>(points.rows()), 1e300);
  nearest[static_cast<std::size_t>(first)] = std::numeric_limits<double>::infinity();
  return plain_loop(points, count, nearest);
}

GreedyKCenter::Settings settings_of(std::int64_t count, KCenterStart start, Projection projection = Projection::none) {
  GreedyKCenter::Settings settings;
  settings.size.coreset_ratio = 1.0;
  settings.size.coreset_count = count;
  settings.start = start;
  settings.projection = projection;
  return settings;
}

std::vector<std::int64_t> select(const Matrix<float>& points, const GreedyKCenter::Settings& settings, std::uint64_t seed = 1, norma::Parallel parallel = {}) {
  const auto chosen = GreedyKCenter::select(points.view(), settings, seed, parallel, {});
  REQUIRE_MESSAGE(chosen.ok(), chosen.message());
  return *chosen;
}

double covering_radius(const Matrix<float>& points, std::span<const std::int64_t> centres) {
  double radius = 0.0;
  for (std::int64_t i = 0; i < points.rows(); ++i) {
    double nearest = std::numeric_limits<double>::infinity();
    for (const std::int64_t c : centres) nearest = std::min(nearest, squared_distance(points, i, c));
    radius = std::max(radius, nearest);
  }
  return std::sqrt(radius);
}

}  // namespace

TEST_CASE("the picks are those of the plain loop") {
  for (const std::int64_t d : {2, 16, 40}) {
    for (const std::int64_t n : {1, 2, 31, 100, 3000}) {  // below and above the pool of candidates
      CAPTURE(d);
      CAPTURE(n);
      const auto points = normal_rows(n, d, 71);
      const std::int64_t count = std::min<std::int64_t>(n, 400);
      CHECK(select(points, settings_of(count, KCenterStart::first_row)) == plain_loop_from(points, count, 0));
    }
  }
}

TEST_CASE("the picks are those of the plain loop where distances tie") {
  const auto points = grid_rows(4000, 5, 72, 3);  // at most 243 different points, each about 16 times
  const auto picks = select(points, settings_of(600, KCenterStart::first_row));
  const auto want = plain_loop_from(points, 600, 0);
  const auto different = std::set<std::vector<float>>([&] {
    std::set<std::vector<float>> rows;
    for (std::int64_t i = 0; i < points.rows(); ++i) rows.emplace(points.view().row(i).begin(), points.view().row(i).end());
    return rows;
  }()).size();
  REQUIRE(different < 600);
  CHECK(picks == want);
}

TEST_CASE("the authors' start: mean distance to ten random points, which are not members by right") {
  const auto points = normal_rows(2500, 12, 73);
  norma::Random random(5);
  const auto starts = norma::sample_without_replacement(2500, 10, random);
  std::vector<double> nearest(2500);
  for (std::int64_t i = 0; i < 2500; ++i) {
    double sum = 0.0;
    for (const std::int64_t s : starts) sum += std::sqrt(squared_distance(points, i, s));
    nearest[static_cast<std::size_t>(i)] = sum / 10.0 * (sum / 10.0);
  }
  CHECK(select(points, settings_of(300, KCenterStart::approximate), 5) == plain_loop(points, 300, nearest));
}

TEST_CASE("a random start belongs to the coreset and depends on the seed") {
  const auto points = normal_rows(500, 8, 74);
  std::set<std::int64_t> firsts;
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    const auto picks = select(points, settings_of(20, KCenterStart::random), seed);
    CHECK(picks == plain_loop_from(points, 20, picks[0]));
    firsts.insert(picks[0]);
  }
  CHECK(firsts.size() > 4);
}

TEST_CASE("a projection is used for choosing: the picks are those among the projected points") {
  const auto points = normal_rows(1500, 64, 75);
  for (const Projection projection : {Projection::uniform, Projection::sparse}) {
    auto settings = settings_of(200, KCenterStart::first_row, projection);
    settings.projection_dims = 16;
    const auto projected = norma::project(points.view(), norma::projection_matrix(projection, 16, 64, 9), {});
    CHECK(select(points, settings, 9) == plain_loop_from(projected, 200, 0));
  }
  // Nothing is projected to more dimensions than there are.
  auto settings = settings_of(50, KCenterStart::first_row, Projection::uniform);
  settings.projection_dims = 64;
  CHECK(select(points, settings) == plain_loop_from(points, 50, 0));
}

TEST_CASE("K3: the covering radius never grows, and is at most twice the best possible") {
  const auto points = normal_rows(14, 2, 76);
  const auto picks = select(points, settings_of(14, KCenterStart::first_row));
  double before = std::numeric_limits<double>::infinity();
  for (std::size_t k = 1; k <= 14; ++k) {
    const double radius = covering_radius(points, std::span(picks).first(k));
    CHECK(radius <= before);
    before = radius;
    // All choices of k centres among 14 points.
    double best = std::numeric_limits<double>::infinity();
    for (std::uint32_t mask = 1; mask < 1u << 14; ++mask) {
      if (static_cast<std::size_t>(std::popcount(mask)) != k) continue;
      std::vector<std::int64_t> centres;
      for (std::int64_t i = 0; i < 14; ++i) {
        if ((mask >> i & 1u) != 0) centres.push_back(i);
      }
      best = std::min(best, covering_radius(points, centres));
    }
    CHECK(radius <= 2.0 * best * (1.0 + 1e-12));
  }
  CHECK(before == 0.0);
}

TEST_CASE("K4: no row twice, also when only duplicates are left") {
  for (const KCenterStart start : {KCenterStart::approximate, KCenterStart::first_row, KCenterStart::random}) {
    Matrix<float> same(50, 3);
    for (std::int64_t i = 0; i < 150; ++i) same.data()[i] = 0.25f;
    auto picks = select(same, settings_of(50, start));
    std::ranges::sort(picks);
    for (std::int64_t i = 0; i < 50; ++i) CHECK(picks[static_cast<std::size_t>(i)] == i);

    const auto points = grid_rows(3000, 3, 77, 4);
    auto many = select(points, settings_of(3000, start));
    std::ranges::sort(many);
    for (std::int64_t i = 0; i < 3000; ++i) REQUIRE(many[static_cast<std::size_t>(i)] == i);
  }
}

TEST_CASE("K4: the same picks for any number of threads") {
  const auto points = normal_rows(5000, 24, 78);
  auto settings = settings_of(700, KCenterStart::approximate, Projection::uniform);
  settings.projection_dims = 12;
  const auto alone = select(points, settings, 3);
  for (const int threads : {2, 4}) {
    norma::ThreadPool pool(threads);
    CHECK(select(points, settings, 3, pool.parallel()) == alone);
  }
  CHECK(select(points, settings, 4) != alone);
}

TEST_CASE("sizes: ratio, count and bytes, the smallest wins") {
  norma::SubsetSize size;
  CHECK(size.of(1000, 4) == 100);
  CHECK(size.of(5, 4) == 1);
  size.coreset_count = 30;
  CHECK(size.of(1000, 4) == 30);
  size.coreset_bytes = 10 * 4 * 4;
  CHECK(size.of(1000, 4) == 10);
  size.coreset_bytes = 1;
  CHECK(size.of(1000, 4) == 1);
  size = {.coreset_ratio = 1.0};
  CHECK(size.of(1000, 4) == 1000);
}

TEST_CASE("settings by name") {
  GreedyKCenter::Settings settings;
  CHECK(norma::set_field(settings, "coreset_ratio", "0.01").ok());
  CHECK(norma::set_field(settings, "projection", "sparse").ok());
  CHECK(norma::set_field(settings, "coreset_start", "first_row").ok());
  CHECK(settings.size.coreset_ratio == 0.01);
  CHECK(settings.projection == Projection::sparse);
  CHECK(settings.start == KCenterStart::first_row);
  CHECK(norma::set_field(settings, "projection", "other").code() == norma::Errc::invalid_argument);
  CHECK(norma::set_field(settings, "no_such", "1").code() == norma::Errc::not_found);
}

TEST_CASE("what is refused") {
  const auto points = normal_rows(20, 4, 79);
  GreedyKCenter::Settings settings;
  for (const double ratio : {0.0, -0.1, 1.5, std::numeric_limits<double>::quiet_NaN()}) {
    settings.size.coreset_ratio = ratio;
    CHECK(GreedyKCenter::validate(settings).code() == norma::Errc::invalid_argument);
    CHECK(GreedyKCenter::select(points.view(), settings, 1, {}, {}).code() == norma::Errc::invalid_argument);
  }
  settings = {};
  settings.projection_dims = -1;
  CHECK(GreedyKCenter::validate(settings).code() == norma::Errc::invalid_argument);
  settings = {};
  CHECK(GreedyKCenter::select({}, settings, 1, {}, {}).code() == norma::Errc::not_enough_data);
  auto broken = points;
  broken(13, 2) = std::numeric_limits<float>::quiet_NaN();
  const auto status = GreedyKCenter::select(broken.view(), settings, 1, {}, {});
  CHECK(status.code() == norma::Errc::not_finite);
  CHECK(status.message().find("row 13") != std::string::npos);
}

TEST_CASE("progress reaches the end, and a cancelled selection stops") {
  const auto points = normal_rows(3000, 8, 80);
  const auto settings = settings_of(600, KCenterStart::first_row);
  norma::Observer observer;
  std::int64_t done = 0, total = 0;
  observer.on_progress = [&](const norma::ProgressUpdate& update) {
    done = update.done;
    total = update.total;
  };
  REQUIRE(GreedyKCenter::select(points.view(), settings, 1, {}, observer).ok());
  CHECK(done == 600);
  CHECK(total == 600);
  const std::atomic<bool> cancel{true};
  observer.cancel = &cancel;
  CHECK(GreedyKCenter::select(points.view(), settings, 1, {}, observer).code() == norma::Errc::cancelled);
}
