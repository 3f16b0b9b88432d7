// Estimators and the metrics that go with them: what is kept, and what a training image's own features score.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <norma/estimators/image_gallery.hpp>
#include <norma/estimators/memory_bank.hpp>
#include <norma/estimators/position_gaussian.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/metrics/gallery_distance.hpp>
#include <norma/metrics/mahalanobis_distance.hpp>
#include <norma/metrics/nearest_distance.hpp>
#include <norma/search/subset.hpp>
#include <tests/support/reference.hpp>

using namespace norma;

namespace {

constexpr Shape kGrid{4, 5, 6};

FeatureShapes one_level() {
  FeatureShapes shapes;
  shapes.add(kGrid);
  return shapes;
}
FeatureShapes two_levels_and_vector() {
  FeatureShapes shapes = one_level();
  shapes.add({2, 3, 8});
  shapes.add({1, 1, 7});
  return shapes;
}

// One image's features of these shapes, made from a number.
struct Picture {
  std::vector<Tensor<float>> levels;
  Picture(const FeatureShapes& shapes, std::uint64_t number) {
    for (int l = 0; l < shapes.count; ++l) levels.push_back(test::normal_tensor(1, shapes[l], 100 * number + static_cast<std::uint64_t>(l)));
  }
  [[nodiscard]] Features features() const {
    Features all;
    for (const Tensor<float>& level : levels) all.add(level.view());
    return all;
  }
};
std::vector<Picture> pictures(const FeatureShapes& shapes, int count) {
  std::vector<Picture> all;
  for (int i = 0; i < count; ++i) all.emplace_back(shapes, static_cast<std::uint64_t>(i + 1));
  return all;
}

template <class EstimatorT>
EstimatorT fitted(const FeatureShapes& shapes, const typename EstimatorT::Settings& settings, const std::vector<Picture>& all, int threads = 1) {
  auto made = EstimatorT::create(shapes, settings);
  REQUIRE_MESSAGE(made.ok(), made.message());
  ThreadPool pool(threads);
  for (std::size_t i = 0; i < all.size(); ++i) REQUIRE(made->observe(all[i].features(), static_cast<std::int64_t>(i), pool.parallel()).ok());
  const Observer observer;
  const Status finished = made->finish({pool.parallel(), observer, 0});
  REQUIRE_MESSAGE(finished.ok(), finished.message());
  return *std::move(made);
}

struct Answer {
  Map<float> map;
  float score = -1.0f;
};
// The metric in exactly the memory that it asks for.
template <class MetricT, class EstimatorT>
Answer measure(const EstimatorT& estimator, const Picture& picture, const typename MetricT::Settings& settings, int threads = 1, Shape map = {9, 11, 1}) {
  const Features features = picture.features();
  ThreadPool pool(threads);
  test::Scratch scratch(MetricT::template scratch_bytes<EstimatorT>(features.shapes(), map, settings, pool.parallel().workers()));
  Arena arena = scratch.arena();
  Context context{arena, pool.parallel()};
  Answer answer{Map<float>(map.height, map.width)};
  REQUIRE(MetricT::validate(settings).ok());
  const Status status = MetricT(settings).measure(estimator, features, answer.map.view(), answer.score, context);
  REQUIRE_MESSAGE(status.ok(), status.message());
  return answer;
}
float largest(const Map<float>& map) { return *std::max_element(map.data(), map.data() + map.rows() * map.cols()); }
bool same(const Map<float>& a, const Map<float>& b) { return std::equal(a.data(), a.data() + a.rows() * a.cols(), b.data()); }

const float* patch(const std::vector<Picture>& all, std::int64_t image, std::int64_t position) {
  return all[static_cast<std::size_t>(image)].levels[0].data() + position * kGrid.channels;
}
double distance(const float* a, const float* b) {
  double sum = 0.0;
  for (std::int64_t c = 0; c < kGrid.channels; ++c) sum += (static_cast<double>(a[c]) - static_cast<double>(b[c])) * (static_cast<double>(a[c]) - static_cast<double>(b[c]));
  return std::sqrt(sum);
}

using Bank = MemoryBank<>;

}  // namespace

TEST_CASE("MemoryBank: each row is, bit by bit, the training patch that its provenance names") {
  const auto shapes = one_level();
  const auto all = pictures(shapes, 7);
  for (const double ratio : {0.05, 0.3, 1.0}) {
    CAPTURE(ratio);
    Bank::Settings settings;
    settings.size.coreset_ratio = ratio;
    const Bank bank = fitted<Bank>(shapes, settings, all);
    REQUIRE(bank.bank().rows == static_cast<std::int64_t>(ratio * static_cast<double>(7 * kGrid.positions())));
    REQUIRE(bank.provenance().size() == static_cast<std::size_t>(bank.bank().rows));
    std::vector<std::pair<int, int>> places;
    for (std::int64_t r = 0; r < bank.bank().rows; ++r) {
      const auto from = bank.provenance()[static_cast<std::size_t>(r)];
      REQUIRE((from.image >= 0 && from.image < 7 && from.position >= 0 && from.position < kGrid.positions()));
      CHECK(std::memcmp(bank.bank().row(r).data(), patch(all, from.image, from.position), sizeof(float) * kGrid.channels) == 0);
      places.emplace_back(from.image, from.position);
    }
    std::sort(places.begin(), places.end());
    CHECK(std::adjacent_find(places.begin(), places.end()) == places.end());
    const Bank threads = fitted<Bank>(shapes, settings, all, 3);
    REQUIRE(threads.bank().rows == bank.bank().rows);
    for (std::int64_t r = 0; r < bank.bank().rows; ++r) CHECK(std::memcmp(bank.bank().row(r).data(), threads.bank().row(r).data(), sizeof(float) * kGrid.channels) == 0);
  }
}

TEST_CASE("MemoryBank: merged halves hold what one fit holds") {
  const auto shapes = one_level();
  const auto all = pictures(shapes, 6);
  Bank::Settings settings;
  settings.size.coreset_ratio = 0.2;
  const Bank whole = fitted<Bank>(shapes, settings, all);
  auto first = Bank::create(shapes, settings), second = Bank::create(shapes, settings);
  REQUIRE((first.ok() && second.ok()));
  for (std::size_t i = 0; i < 6; ++i) {
    REQUIRE((i < 2 ? *first : *second).observe(all[i].features(), static_cast<std::int64_t>(i < 2 ? i : i - 2), {}).ok());
  }
  REQUIRE(first->merge(std::move(*second)).ok());
  const Observer observer;
  REQUIRE(first->finish({{}, observer, 0}).ok());
  REQUIRE(first->bank().rows == whole.bank().rows);
  for (std::int64_t r = 0; r < whole.bank().rows; ++r) {
    CHECK(std::memcmp(first->bank().row(r).data(), whole.bank().row(r).data(), sizeof(float) * kGrid.channels) == 0);
    CHECK(first->provenance()[static_cast<std::size_t>(r)].image == whole.provenance()[static_cast<std::size_t>(r)].image);
  }
}

TEST_CASE("MemoryBank refuses what it cannot use and stays as it was") {
  const auto shapes = one_level();
  auto bank = Bank::create(shapes, {});
  REQUIRE(bank.ok());
  const Observer observer;
  CHECK(bank->finish({{}, observer, 0}).code() == Errc::not_enough_data);
  Picture poisoned(shapes, 1);
  poisoned.levels[0].data()[17] = std::numeric_limits<float>::quiet_NaN();
  const Status status = bank->observe(poisoned.features(), 0, {});
  CHECK(status.code() == Errc::not_finite);
  CHECK(status.message().find("17") != std::string::npos);
  FeatureShapes other;
  other.add({4, 4, 6});
  CHECK(bank->observe(Picture(other, 1).features(), 0, {}).code() == Errc::shape_mismatch);
  auto another = Bank::create(other, {});
  REQUIRE(another.ok());
  CHECK(bank->merge(std::move(*another)).code() == Errc::shape_mismatch);
  CHECK(bank->finish({{}, observer, 0}).code() == Errc::not_enough_data);
  Bank::Settings settings;
  settings.size.coreset_ratio = 0.0;
  CHECK(Bank::create(shapes, settings).code() == Errc::invalid_argument);
  CHECK(Bank::create({}, {}).code() == Errc::shape_mismatch);
}

TEST_CASE("NearestDistance: 0 for training patches when all of them are kept") {
  const auto shapes = one_level();
  const auto all = pictures(shapes, 5);
  Bank::Settings settings;
  settings.size.coreset_ratio = 1.0;
  const Bank bank = fitted<Bank>(shapes, settings, all);
  for (const Picture& picture : all) {
    const Answer answer = measure<NearestDistance<>>(bank, picture, {});
    CHECK(answer.score == 0.0f);
    CHECK(largest(answer.map) == 0.0f);
  }
  CHECK(measure<NearestDistance<>>(bank, Picture(shapes, 99), {}).score > 0.0f);
}

TEST_CASE("NearestDistance: map, score and weight by their definitions") {
  const auto shapes = one_level();
  const auto all = pictures(shapes, 5);
  Bank::Settings settings;
  settings.size.coreset_ratio = 0.4;
  const Bank bank = fitted<Bank>(shapes, settings, all);
  const std::int64_t rows = bank.bank().rows;
  for (std::uint64_t number = 50; number < 60; ++number) {
    const Picture picture(shapes, number);
    // Distance of each patch to its nearest row; the worst patch, its row, and that row's company.
    std::vector<float> nearest;
    double worst = -1.0;
    std::int64_t matched = -1;
    const float* query = nullptr;
    for (std::int64_t p = 0; p < kGrid.positions(); ++p) {
      const float* candidate = picture.levels[0].data() + p * kGrid.channels;
      double best = std::numeric_limits<double>::infinity();
      std::int64_t row = -1;
      for (std::int64_t r = 0; r < rows; ++r) {
        if (const double d = distance(candidate, bank.bank().row(r).data()); d < best) best = d, row = r;
      }
      nearest.push_back(static_cast<float>(best));
      if (best > worst) worst = best, matched = row, query = candidate;
    }
    Map<float> expected(9, 11);
    REQUIRE(image::resize_bilinear(MapView<const float>(nearest.data(), kGrid.height, kGrid.width), expected.view(), AlignCorners::no).ok());
    for (const int b : {1, 2, 3, 9, 64}) {
      CAPTURE(number);
      CAPTURE(b);
      NearestDistance<>::Settings how;
      how.num_neighbours = b;
      how.map.sigma = 0;
      const Answer answer = measure<NearestDistance<>>(bank, picture, how);
      // Squared distances come from sums of products in float: relative 1e-5 is far above their rounding.
      for (std::int64_t i = 0; i < 99; ++i) CHECK(std::abs(answer.map.data()[i] - expected.data()[i]) <= 1e-5f * expected.data()[i]);
      const double weight = static_cast<double>(answer.score) / worst;
      const auto company = static_cast<std::size_t>(std::min<std::int64_t>(b, rows));
      if (b == 1) {
        CHECK(std::abs(weight - 1.0) <= 1e-5);
      } else {
        std::vector<std::pair<double, std::int64_t>> around;
        for (std::int64_t r = 0; r < rows; ++r) around.emplace_back(distance(bank.bank().row(matched).data(), bank.bank().row(r).data()), r);
        std::sort(around.begin(), around.end());
        double sum = 0.0;
        for (std::size_t i = 0; i < company; ++i) sum += std::exp(distance(query, bank.bank().row(around[i].second).data()));
        CHECK(std::abs(weight - (1.0 - std::exp(worst) / sum)) <= 2e-5);
        // The matched row is the nearest of its company to the query: its share is at most 1 / b.
        CHECK(weight >= 1.0 - 1.0 / static_cast<double>(company) - 1e-5);
        CHECK(weight < 1.0);
      }
      const Answer plain = measure<NearestDistance<Plain>>(bank, picture, {.map = how.map});
      CHECK(std::abs(static_cast<double>(plain.score) - worst) <= 1e-5 * worst);
      CHECK(same(plain.map, answer.map));
      const Answer threads = measure<NearestDistance<>>(bank, picture, how, 3);
      CHECK(threads.score == answer.score);
      CHECK(same(threads.map, answer.map));
    }
  }
  NearestDistance<>::Settings bad;
  for (const int b : {-1, 0, 65}) {
    bad.num_neighbours = b;
    CHECK(NearestDistance<>::validate(bad).code() == Errc::invalid_argument);
  }
}

TEST_CASE("PositionGaussian: the mean is at distance 0, other patches at their Mahalanobis distance") {
  const auto shapes = one_level();
  const auto all = pictures(shapes, 12);
  const PositionGaussian gaussian = fitted<PositionGaussian>(shapes, {}, all);
  Picture mean(shapes, 1);
  std::copy_n(gaussian.model().mean.data, kGrid.count(), mean.levels[0].data());
  const Answer answer = measure<MahalanobisDistance>(gaussian, mean, {});
  CHECK(answer.score == 0.0f);
  CHECK(largest(answer.map) == 0.0f);

  // One position by hand: covariance with n - 1, regularised, inverted by Gauss-Jordan in double.
  constexpr int d = 6;
  const Picture other(shapes, 77);
  MahalanobisDistance::Settings how;
  how.sigma = 0;
  const Answer map = measure<MahalanobisDistance>(gaussian, other, how, 1, {kGrid.height, kGrid.width, 1});
  for (std::int64_t p = 0; p < kGrid.positions(); ++p) {
    double centre[d] = {}, system[d][d + 1] = {};
    for (const Picture& picture : all) {
      for (int c = 0; c < d; ++c) centre[c] += static_cast<double>(picture.levels[0].data()[p * d + c]) / 12.0;
    }
    double difference[d];
    for (int a = 0; a < d; ++a) {
      difference[a] = static_cast<double>(other.levels[0].data()[p * d + a]) - centre[a];
      system[a][d] = difference[a];
      for (int b = 0; b < d; ++b) {
        for (const Picture& picture : all) {
          system[a][b] += (static_cast<double>(picture.levels[0].data()[p * d + a]) - centre[a]) * (static_cast<double>(picture.levels[0].data()[p * d + b]) - centre[b]) / 11.0;
        }
      }
      system[a][a] += 0.01;
    }
    for (int k = 0; k < d; ++k) {
      for (int row = 0; row < d; ++row) {
        if (row == k) continue;
        const double factor = system[row][k] / system[k][k];
        for (int c = k; c <= d; ++c) system[row][c] -= factor * system[k][c];
      }
    }
    double square = 0.0;
    for (int k = 0; k < d; ++k) square += difference[k] * system[k][d] / system[k][k];
    // 12 samples of 6 numbers: condition of at most some hundreds times float's 6e-8.
    CHECK(std::abs(static_cast<double>(map.map.data()[p]) - std::sqrt(square)) <= 1e-4 * std::sqrt(square));
  }
  CHECK(map.score == largest(map.map));
  const Answer threads = measure<MahalanobisDistance>(fitted<PositionGaussian>(shapes, {}, all, 3), other, how, 3, {kGrid.height, kGrid.width, 1});
  CHECK(same(threads.map, map.map));
}

TEST_CASE("PositionGaussian refuses what it cannot use") {
  const auto shapes = one_level();
  auto one = PositionGaussian::create(shapes, {});
  REQUIRE(one.ok());
  const Observer observer;
  CHECK(one->finish({{}, observer, 0}).code() == Errc::not_enough_data);
  REQUIRE(one->observe(Picture(shapes, 1).features(), 0, {}).ok());
  CHECK(one->finish({{}, observer, 0}).code() == Errc::not_enough_data);
  for (const double regularisation : {0.0, -1.0, 1e7, std::nan("")}) CHECK(PositionGaussian::create(shapes, {.regularisation = regularisation}).code() == Errc::invalid_argument);
}

TEST_CASE("ImageGallery: a training image is its own first neighbour and its map is 0") {
  const auto shapes = two_levels_and_vector();
  const auto all = pictures(shapes, 6);
  const ImageGallery<> gallery = fitted<ImageGallery<>>(shapes, {}, all);
  CHECK(gallery.images() == 6);
  CHECK(gallery.levels() == 2);
  for (std::size_t i = 0; i < all.size(); ++i) {
    GalleryDistance::Settings nearest_only;
    nearest_only.num_neighbours = 1;
    const Answer own = measure<GalleryDistance>(gallery, all[i], nearest_only);
    CHECK(own.score == 0.0f);
    CHECK(largest(own.map) == 0.0f);
    const Answer all_six = measure<GalleryDistance>(gallery, all[i], {});
    CHECK(largest(all_six.map) == 0.0f);
    CHECK(all_six.score > 0.0f);

    test::Scratch scratch(ImageGallery<>::nearest_scratch_bytes(shapes, 6, 1));
    Arena arena = scratch.arena();
    Context context{arena};
    Matrix<float> squared(1, 6);
    Matrix<std::int64_t> image(1, 6);
    REQUIRE(gallery.nearest_images(all[i].levels[2].view().patches(), 6, squared.view(), image.view(), context).ok());
    CHECK(squared.data()[0] == 0.0f);
    CHECK(image.data()[0] == static_cast<std::int64_t>(i));
    CHECK(std::is_sorted(squared.data(), squared.data() + 6));
  }
}

TEST_CASE("GalleryDistance: score and map by their definitions, more neighbours than images, any order of images") {
  const auto shapes = two_levels_and_vector();
  auto all = pictures(shapes, 6);
  const ImageGallery<> gallery = fitted<ImageGallery<>>(shapes, {}, all);
  std::vector<Picture> turned(all.rbegin(), all.rend());
  std::rotate(turned.begin(), turned.begin() + 2, turned.end());
  const ImageGallery<> permuted = fitted<ImageGallery<>>(shapes, {}, turned);
  const Picture picture(shapes, 88);
  const auto apart = [](const float* a, const float* b, std::int64_t n) {
    double sum = 0.0;
    for (std::int64_t i = 0; i < n; ++i) sum += (static_cast<double>(a[i]) - static_cast<double>(b[i])) * (static_cast<double>(a[i]) - static_cast<double>(b[i]));
    return sum;
  };
  std::vector<std::pair<double, std::size_t>> order;
  for (std::size_t i = 0; i < all.size(); ++i) order.emplace_back(apart(picture.levels[2].data(), all[i].levels[2].data(), 7), i);
  std::sort(order.begin(), order.end());
  for (const int k : {1, 2, 4, 6, 7, 50}) {
    for (const bool squared : {false, true}) {
      CAPTURE(k);
      CAPTURE(squared);
      GalleryDistance::Settings how;
      how.num_neighbours = k;
      how.squared = squared;
      how.map.sigma = 0;
      const auto used = static_cast<std::size_t>(std::min(k, 6));
      const Answer answer = measure<GalleryDistance>(gallery, picture, how);
      double score = 0.0;
      for (std::size_t i = 0; i < used; ++i) score += (squared ? order[i].first : std::sqrt(order[i].first)) / static_cast<double>(used);
      CHECK(std::abs(static_cast<double>(answer.score) - score) <= 1e-5 * score);

      Map<float> expected(9, 11), enlarged(9, 11);
      std::fill_n(expected.data(), 99, 0.0f);
      for (int l = 0; l < 2; ++l) {
        std::vector<float> grid;
        for (std::int64_t p = 0; p < shapes[l].positions(); ++p) {
          double best = std::numeric_limits<double>::infinity();
          for (std::size_t i = 0; i < used; ++i) {
            for (std::int64_t q = 0; q < shapes[l].positions(); ++q) {
              best = std::min(best, apart(picture.levels[static_cast<std::size_t>(l)].data() + p * shapes[l].channels,
                                          all[order[i].second].levels[static_cast<std::size_t>(l)].data() + q * shapes[l].channels, shapes[l].channels));
            }
          }
          grid.push_back(static_cast<float>(squared ? best : std::sqrt(best)));
        }
        REQUIRE(image::resize_bilinear(MapView<const float>(grid.data(), shapes[l].height, shapes[l].width), enlarged.view(), AlignCorners::no).ok());
        for (std::int64_t i = 0; i < 99; ++i) expected.data()[i] += enlarged.data()[i] / 2.0f;
      }
      for (std::int64_t i = 0; i < 99; ++i) CHECK(std::abs(answer.map.data()[i] - expected.data()[i]) <= 2e-5f * expected.data()[i]);

      const Answer other_order = measure<GalleryDistance>(permuted, picture, how, 3);
      CHECK(other_order.score == answer.score);
      CHECK(same(other_order.map, answer.map));
    }
  }
  GalleryDistance::Settings most, clipped;
  most.num_neighbours = 6;
  clipped.num_neighbours = 64;
  CHECK(measure<GalleryDistance>(gallery, picture, most).score == measure<GalleryDistance>(gallery, picture, clipped).score);
}

TEST_CASE("ImageGallery refuses what it cannot use") {
  CHECK(ImageGallery<>::create(one_level(), {}).code() == Errc::shape_mismatch);
  const auto shapes = two_levels_and_vector();
  auto gallery = ImageGallery<>::create(shapes, {});
  REQUIRE(gallery.ok());
  const Observer observer;
  CHECK(gallery->finish({{}, observer, 0}).code() == Errc::not_enough_data);
  Picture poisoned(shapes, 1);
  poisoned.levels[1].data()[3] = std::numeric_limits<float>::infinity();
  const Status status = gallery->observe(poisoned.features(), 0, {});
  CHECK(status.code() == Errc::not_finite);
  CHECK(status.message().find("level 1") != std::string::npos);
  CHECK(gallery->images() == 0);
}

TEST_CASE("estimators survive a file") {
  const auto shapes = two_levels_and_vector();
  const auto all = pictures(shapes, 5);
  const Picture picture(shapes, 66);
  const auto reloaded = [&](const auto& estimator, const auto& settings) {
    using EstimatorT = std::remove_cvref_t<decltype(estimator)>;
    io::TensorFileWriter writer;
    REQUIRE(estimator.save(writer).ok());
    auto bytes = writer.to_bytes();
    REQUIRE(bytes.ok());
    auto weights = io::Weights::from_bytes(*std::move(bytes), "estimator");
    REQUIRE(weights.ok());
    auto loaded = EstimatorT::load(*weights, shapes, settings, {});
    REQUIRE_MESSAGE(loaded.ok(), loaded.message());
    FeatureShapes others;
    others.add({3, 3, 5});
    others.add({1, 1, 2});
    CHECK_FALSE(EstimatorT::load(*weights, others, settings, {}).ok());
    return *std::move(loaded);
  };
  const Bank bank = fitted<Bank>(shapes, {}, all);
  CHECK(measure<NearestDistance<>>(reloaded(bank, Bank::Settings{}), picture, {}).score == measure<NearestDistance<>>(bank, picture, {}).score);
  const PositionGaussian gaussian = fitted<PositionGaussian>(shapes, {}, all);
  CHECK(measure<MahalanobisDistance>(reloaded(gaussian, PositionGaussian::Settings{}), picture, {}).score == measure<MahalanobisDistance>(gaussian, picture, {}).score);
  const ImageGallery<> gallery = fitted<ImageGallery<>>(shapes, {}, all);
  CHECK(measure<GalleryDistance>(reloaded(gallery, ImageGallery<>::Settings{}), picture, {}).score == measure<GalleryDistance>(gallery, picture, {}).score);
}
