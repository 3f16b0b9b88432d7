// Embedding policies against their defining sums, written out in double.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <norma/core/thread_pool.hpp>
#include <norma/features/chosen_channels.hpp>
#include <norma/features/layers.hpp>
#include <norma/features/local_average.hpp>
#include <norma/features/pyramid.hpp>
#include <tests/support/reference.hpp>

using namespace norma;

namespace {

struct Taps {
  std::vector<Tensor<float>> tensors;
  std::vector<Shape> shapes;
  std::vector<TensorView<const float>> views;
  explicit Taps(std::vector<Shape> all) : shapes(std::move(all)) {
    for (const Shape& shape : shapes) tensors.push_back(test::normal_tensor(1, shape, 7 + tensors.size()));
    for (const Tensor<float>& tensor : tensors) views.emplace_back(tensor.view());
  }
};

// What an embedding policy gives, in exactly the memory that it asks for.
template <class EmbeddingT>
std::vector<std::vector<float>> embed(const Taps& taps, const typename EmbeddingT::Settings& settings, int threads = 1) {
  const auto made = EmbeddingT::create(taps.shapes, settings);
  REQUIRE_MESSAGE(made.ok(), made.message());
  ThreadPool pool(threads);
  test::Scratch scratch(EmbeddingT::scratch_bytes(taps.shapes, settings, pool.parallel().workers()));
  Arena arena = scratch.arena();
  Context context{arena, pool.parallel()};
  Features out;
  REQUIRE(made->embed(taps.views, out, context).ok());
  CHECK(out.shapes() == EmbeddingT::shapes(taps.shapes, settings));
  std::vector<std::vector<float>> levels;
  for (int l = 0; l < out.count; ++l) levels.emplace_back(out[l].data, out[l].data + out[l].count());
  return levels;
}

// A map of double vectors, [height * width][channels].
struct Grid {
  std::int64_t height, width;
  std::vector<std::vector<double>> at;
};

// Zero-padded patches in the order (channel, ky, kx): what PyTorch's unfold makes.
Grid unfold(const TensorView<const float>& tap, std::int64_t p) {
  Grid out{tap.height, tap.width, {}};
  for (std::int64_t y = 0; y < tap.height; ++y) {
    for (std::int64_t x = 0; x < tap.width; ++x) {
      std::vector<double> patch;
      for (std::int64_t c = 0; c < tap.channels; ++c) {
        for (std::int64_t k = 0; k < p * p; ++k) {
          const std::int64_t row = y + k / p - p / 2, column = x + k % p - p / 2;
          const bool inside = row >= 0 && row < tap.height && column >= 0 && column < tap.width;
          patch.push_back(inside ? static_cast<double>(tap(0, row, column, c)) : 0.0);
        }
      }
      out.at.push_back(std::move(patch));
    }
  }
  return out;
}
// Bilinear, half-pixel centres, clamped at the border.
Grid resize(const Grid& in, std::int64_t height, std::int64_t width) {
  Grid out{height, width, {}};
  const auto place = [](std::int64_t i, std::int64_t from, std::int64_t to, std::int64_t& low, std::int64_t& high) {
    const double source = std::max(0.0, (static_cast<double>(i) + 0.5) * static_cast<double>(from) / static_cast<double>(to) - 0.5);
    low = std::min(static_cast<std::int64_t>(std::floor(source)), from - 1);
    high = std::min(low + 1, from - 1);
    return source - static_cast<double>(low);
  };
  for (std::int64_t y = 0; y < height; ++y) {
    for (std::int64_t x = 0; x < width; ++x) {
      std::int64_t top, bottom, left, right;
      const double v = place(y, in.height, height, top, bottom), h = place(x, in.width, width, left, right);
      const auto& a = in.at[static_cast<std::size_t>(top * in.width + left)];
      const auto& b = in.at[static_cast<std::size_t>(top * in.width + right)];
      const auto& c = in.at[static_cast<std::size_t>(bottom * in.width + left)];
      const auto& d = in.at[static_cast<std::size_t>(bottom * in.width + right)];
      std::vector<double> mixed(a.size());
      for (std::size_t i = 0; i < a.size(); ++i) mixed[i] = (1 - v) * ((1 - h) * a[i] + h * b[i]) + v * ((1 - h) * c[i] + h * d[i]);
      out.at.push_back(std::move(mixed));
    }
  }
  return out;
}
// Means of windows floor(i L / n) .. ceil((i + 1) L / n).
std::vector<double> adaptive_average(const std::vector<double>& in, std::int64_t n) {
  const auto length = static_cast<std::int64_t>(in.size());
  std::vector<double> out;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t first = i * length / n, last = ((i + 1) * length + n - 1) / n;
    double sum = 0.0;
    for (std::int64_t e = first; e < last; ++e) sum += in[static_cast<std::size_t>(e)];
    out.push_back(sum / static_cast<double>(last - first));
  }
  return out;
}

// The published order of steps: unfold, resize patches, pool each layer, lay end to end, pool again.
Grid pooled_reference(const Taps& taps, std::int64_t p, std::int64_t dims) {
  const std::int64_t height = taps.shapes[0].height, width = taps.shapes[0].width;
  Grid out{height, width, {}};
  out.at.resize(static_cast<std::size_t>(height * width));
  for (const auto& view : taps.views) {
    const Grid patches = resize(unfold(view, p), height, width);
    for (std::size_t i = 0; i < out.at.size(); ++i) {
      const auto pooled = adaptive_average(patches.at[i], dims);
      out.at[i].insert(out.at[i].end(), pooled.begin(), pooled.end());
    }
  }
  for (auto& vector : out.at) vector = adaptive_average(vector, dims);
  return out;
}
Grid concatenated_reference(const Taps& taps, std::int64_t p) {
  const std::int64_t height = taps.shapes[0].height, width = taps.shapes[0].width;
  Grid out{height, width, {}};
  out.at.resize(static_cast<std::size_t>(height * width));
  for (const auto& view : taps.views) {
    Grid patches = unfold(view, p);
    for (auto& patch : patches.at) patch = adaptive_average(patch, view.channels);  // p * p divides: the mean of each channel, padding counted
    patches = resize(patches, height, width);
    for (std::size_t i = 0; i < out.at.size(); ++i) out.at[i].insert(out.at[i].end(), patches.at[i].begin(), patches.at[i].end());
  }
  return out;
}

// Inputs are standard normal numbers, sums of at most a few hundred: 1e-5 of the largest value is far above float's rounding and far below any mistake.
void check_equal(const std::vector<float>& found, const Grid& expected) {
  REQUIRE(found.size() == expected.at.size() * expected.at[0].size());
  double largest = 0.0, worst = 0.0;
  std::size_t i = 0;
  for (const auto& vector : expected.at) {
    for (const double value : vector) {
      largest = std::max(largest, std::abs(value));
      const double error = std::abs(static_cast<double>(found[i++]) - value);
      worst = error <= worst ? worst : error;  // a NaN wins
    }
  }
  CHECK(largest > 0.0);
  CHECK(worst <= 1e-5 * largest);
}

const std::vector<std::vector<Shape>> kLayerSets{
    {{6, 5, 8}},
    {{6, 6, 8}, {3, 3, 16}},
    {{7, 5, 12}, {4, 3, 20}},           // sizes that do not divide
    {{8, 8, 6}, {4, 4, 10}, {2, 2, 14}},
    {{3, 3, 4}, {5, 5, 4}},             // the second is the finer one
    {{1, 1, 3}, {1, 1, 5}},
};

}  // namespace

TEST_CASE("LocalAverage: concatenated is average pooling with counted padding, then bilinear resize") {
  for (const auto& shapes : kLayerSets) {
    const Taps taps(shapes);
    for (const int p : {1, 3, 5}) {
      CAPTURE(shapes.size());
      CAPTURE(p);
      const LocalAverage::Settings settings{.neighbourhood = p, .embedding = PatchEmbedding::concatenated};
      const auto found = embed<LocalAverage>(taps, settings);
      REQUIRE(found.size() == 1);
      check_equal(found[0], concatenated_reference(taps, p));
      CHECK(embed<LocalAverage>(taps, settings, 3) == found);
    }
  }
}

TEST_CASE("LocalAverage: pooled is unfold, resize, adaptive pooling twice") {
  for (const auto& shapes : kLayerSets) {
    const Taps taps(shapes);
    for (const int p : {1, 3, 5}) {
      for (const int dims : {1, 2, 7, 16, 31, 64}) {
        CAPTURE(shapes.size());
        CAPTURE(p);
        CAPTURE(dims);
        const LocalAverage::Settings settings{.neighbourhood = p, .embedding = PatchEmbedding::pooled, .feature_dims = dims};
        const auto found = embed<LocalAverage>(taps, settings);
        REQUIRE(found.size() == 1);
        check_equal(found[0], pooled_reference(taps, p, dims));
        CHECK(embed<LocalAverage>(taps, settings, 3) == found);
      }
    }
  }
}

TEST_CASE("the grid's kernels: every instruction set within float's rounding of double, whatever the length") {
  for (const auto set : test::instruction_sets()) {
    CAPTURE(to_string(set));
    const auto& kernels = features::detail::grid_kernels(set);
    for (const std::int64_t n : {1, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 129, 512}) {
      CAPTURE(n);
      for (const std::int64_t count : {1, 2, 9, 25}) {
        const auto in = test::normal_tensor(1, {count, n, 1}, 3), weights = test::normal_tensor(1, {count, n, 1}, 4);
        std::vector<const float*> rows;
        for (std::int64_t k = 0; k < count; ++k) rows.push_back(in.data() + k * n);
        std::vector<float> sum(static_cast<std::size_t>(n) + 1, 9.0f), weighted = sum, between = sum;
        kernels.sum_of_rows(rows.data(), count, n, 0.25f, sum.data());
        kernels.weighted_sum_of_rows(rows.data(), weights.data(), count, n, weighted.data());
        const auto row = [&](std::int64_t k) { return rows[static_cast<std::size_t>(k % count)]; };
        kernels.between_rows(row(0), row(1), row(2), row(3), 0.3f, 0.7f, n, between.data());
        for (std::int64_t i = 0; i < n; ++i) {
          double plain = 0.0, products = 0.0, size = 0.0, product_size = 0.0;
          for (std::int64_t k = 0; k < count; ++k) {
            const double value = static_cast<double>(in.data()[k * n + i]), product = value * static_cast<double>(weights.data()[k * n + i]);
            plain += value;
            products += product;
            size += std::abs(value);
            product_size += std::abs(product);
          }
          // n additions, and as many products: each rounds by half a unit of at most the sum of sizes.
          const double unit = 0x1p-24 * static_cast<double>(count + 1);
          CHECK(std::abs(static_cast<double>(sum[static_cast<std::size_t>(i)]) - 0.25 * plain) <= unit * 0.25 * size);
          CHECK(std::abs(static_cast<double>(weighted[static_cast<std::size_t>(i)]) - products) <= 2.0 * unit * product_size);
          const auto at = [&](std::int64_t k) { return static_cast<double>(row(k)[i]); };
          const double wx = static_cast<double>(0.3f), wy = static_cast<double>(0.7f);
          const double expected = (at(0) + (at(1) - at(0)) * wx) * (1.0 - wy) + (at(2) + (at(3) - at(2)) * wx) * wy;
          const double largest = std::max({std::abs(at(0)), std::abs(at(1)), std::abs(at(2)), std::abs(at(3))});
          CHECK(std::abs(static_cast<double>(between[static_cast<std::size_t>(i)]) - expected) <= 16.0 * 0x1p-24 * largest);
        }
        for (const auto* all : {&sum, &weighted, &between}) CHECK(all->back() == 9.0f);  // nothing behind the end
      }
    }
  }
}

TEST_CASE("LocalAverage: the closed form for 512 and 1024 channels to 1024 numbers") {
  // From layer 2, number c: (sum of the window + centre) / (p * p + 1). From layer 3, number 512 + k: the mean of the averages of channels 2k and 2k + 1, resized.
  const Taps taps({{6, 6, 512}, {3, 3, 1024}});
  for (const int p : {3, 5}) {
    const auto found = embed<LocalAverage>(taps, {.neighbourhood = p});  // automatic: 1536 channels are more than 1024
    REQUIRE(found.size() == 1);
    const double area = p * p;
    Grid fine = unfold(taps.views[0], p), coarse = unfold(taps.views[1], p);
    for (auto& patch : fine.at) {
      std::vector<double> numbers;
      for (std::size_t c = 0; c < 512; ++c) {
        double sum = 0.0;
        for (std::size_t k = 0; k < static_cast<std::size_t>(p * p); ++k) sum += patch[c * static_cast<std::size_t>(p * p) + k];
        numbers.push_back((sum + patch[c * static_cast<std::size_t>(p * p) + static_cast<std::size_t>(p * p / 2)]) / (area + 1.0));
      }
      patch = std::move(numbers);
    }
    for (auto& patch : coarse.at) patch = adaptive_average(patch, 512);  // windows of 2 * p * p
    coarse = resize(coarse, 6, 6);
    for (std::size_t i = 0; i < fine.at.size(); ++i) fine.at[i].insert(fine.at[i].end(), coarse.at[i].begin(), coarse.at[i].end());
    check_equal(found[0], fine);
  }
}

TEST_CASE("LocalAverage: automatic, and settings that cannot be") {
  const std::vector<Shape> shapes{{4, 4, 8}, {2, 2, 16}};
  CHECK(LocalAverage::shapes(shapes, {.feature_dims = 24})[0] == Shape{4, 4, 24});
  CHECK(LocalAverage::is_pooled(shapes, {.feature_dims = 23}));
  CHECK_FALSE(LocalAverage::is_pooled(shapes, {.feature_dims = 24}));
  for (const int p : {-3, 0, 2, 33}) CHECK(LocalAverage::create(shapes, {.neighbourhood = p}).code() == Errc::invalid_argument);
  for (const int dims : {-1, 0, 70000}) CHECK(LocalAverage::create(shapes, {.feature_dims = dims}).code() == Errc::invalid_argument);
  CHECK(LocalAverage::create({}, {}).code() == Errc::invalid_argument);
}

TEST_CASE("ChosenChannels: nearest up-sampling, concatenation, selection") {
  for (const auto& shapes : kLayerSets) {
    const Taps taps(shapes);
    const std::int64_t total = ChosenChannels::total_channels(shapes), height = shapes[0].height, width = shapes[0].width;
    for (const std::int64_t dims : {std::int64_t{1}, total / 2, total}) {
      CAPTURE(shapes.size());
      CAPTURE(dims);
      const ChosenChannels::Settings settings{.feature_dims = static_cast<int>(dims)};
      const auto chosen = ChosenChannels::create(shapes, settings);
      REQUIRE(chosen.ok());
      const auto found = embed<ChosenChannels>(taps, settings);
      REQUIRE(found[0].size() == static_cast<std::size_t>(height * width * dims));
      CHECK(embed<ChosenChannels>(taps, settings, 3) == found);
      std::size_t i = 0, wrong = 0;
      for (std::int64_t y = 0; y < height; ++y) {
        for (std::int64_t x = 0; x < width; ++x) {
          std::vector<float> all;
          for (const auto& view : taps.views) {
            for (std::int64_t c = 0; c < view.channels; ++c) all.push_back(view(0, y * view.height / height, x * view.width / width, c));
          }
          for (const std::int64_t channel : chosen->channels()) wrong += found[0][i++] == all[static_cast<std::size_t>(channel)] ? 0 : 1;
        }
      }
      CHECK(wrong == 0);
      std::vector<std::int64_t> sorted(chosen->channels().begin(), chosen->channels().end());
      std::sort(sorted.begin(), sorted.end());
      CHECK(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end());
      CHECK(sorted.front() >= 0);
      CHECK(sorted.back() < total);
    }
  }
  const std::vector<Shape> shapes{{4, 4, 8}, {2, 2, 16}};
  for (const int dims : {-1, 25}) CHECK(ChosenChannels::create(shapes, {.feature_dims = dims}).code() == Errc::invalid_argument);
  CHECK(ChosenChannels::create({}, {}).code() == Errc::invalid_argument);
  CHECK(ChosenChannels::dims(std::vector<Shape>{{1, 1, 1792}}, {}) == 550);
  CHECK(ChosenChannels::dims(std::vector<Shape>{{1, 1, 448}}, {}) == 100);
  CHECK(ChosenChannels::dims(std::vector<Shape>{{1, 1, 24}}, {}) == 24);
}

TEST_CASE("reference_channels: Python's random.seed(1024); random.sample(range(total), count)") {
  // Made with CPython 3.11: both ends of each list, and two sums over all of it (channel[i], and (i + 1) channel[i]).
  struct Case {
    std::int64_t total, count;
    std::array<std::int64_t, 6> first, last;
    std::int64_t sum, weighted;
  };
  const Case cases[] = {
      {448, 100, {408, 9, 247, 435, 199, 165}, {237, 264, 440, 318, 403, 48}, 23181, 1136180},
      {1792, 550, {1632, 39, 990, 1740, 797, 661}, {1290, 879, 1217, 1319, 153, 1284}, 496188, 135741498},
  };
  for (const Case& c : cases) {
    const auto found = features::reference_channels(c.total, c.count, 1024);
    REQUIRE(static_cast<std::int64_t>(found.size()) == c.count);
    CHECK(std::equal(c.first.begin(), c.first.end(), found.begin()));
    CHECK(std::equal(c.last.rbegin(), c.last.rend(), found.rbegin()));
    std::int64_t sum = 0, weighted = 0;
    for (std::size_t i = 0; i < found.size(); ++i) sum += found[i], weighted += static_cast<std::int64_t>(i + 1) * found[i];
    CHECK(sum == c.sum);
    CHECK(weighted == c.weighted);
  }
  CHECK(features::reference_channels(5, 0, 1).empty());
  const auto few = features::reference_channels(100000, 3, 0);  // the other branch: a set of the chosen
  CHECK(few == std::vector<std::int64_t>{50494, 99346, 55125});
}

TEST_CASE("Pyramid: the layers as they are and the average of the last") {
  const Taps taps({{4, 3, 5}, {2, 2, 7}});
  const auto pooled = embed<Pyramid>(taps, {});
  const auto matched = embed<Pyramid>(taps, {.pooled_only = false});
  REQUIRE(pooled.size() == 2);
  REQUIRE(matched.size() == 3);
  CHECK(std::equal(pooled[0].begin(), pooled[0].end(), taps.tensors[0].data()));
  CHECK(matched[0] == pooled[0]);
  CHECK(std::equal(matched[1].begin(), matched[1].end(), taps.tensors[1].data()));
  CHECK(matched[2] == pooled[1]);
  REQUIRE(pooled[1].size() == 7);
  for (std::int64_t c = 0; c < 7; ++c) {
    double sum = 0.0;
    for (std::int64_t p = 0; p < 4; ++p) sum += static_cast<double>(taps.tensors[1].data()[p * 7 + c]);
    CHECK(std::abs(static_cast<double>(pooled[1][static_cast<std::size_t>(c)]) - sum / 4.0) <= 1e-6);
  }
  // A layer that is one vector already is taken bit by bit.
  const Taps vector({{4, 3, 5}, {1, 1, 9}});
  const auto taken = embed<Pyramid>(vector, {});
  CHECK(std::equal(taken[1].begin(), taken[1].end(), vector.tensors[1].data()));
  CHECK(Pyramid::create(std::vector<Shape>{{4, 4, 8}}, {}).code() == Errc::invalid_argument);
  CHECK(Pyramid::create(std::vector<Shape>{{4, 4, 8}}, {.pooled_only = false}).ok());
  CHECK(Pyramid::create({}, {.pooled_only = false}).code() == Errc::invalid_argument);
}

TEST_CASE("Layers: text and back") {
  Layers layers;
  CHECK(layers.from_text("layer2,layer3"));
  CHECK(layers == Layers{"layer2", "layer3"});
  CHECK(layers.text() == "layer2,layer3");
  CHECK(layers.from_text("only"));
  CHECK(layers.count == 1);
  const Layers before = layers;
  const std::string longest(nn::Name::kCapacity, 'x');
  for (const std::string& bad : {std::string(), std::string(","), std::string("a,"), std::string(",a"), std::string("a,,b"), longest + "x", std::string("1,2,3,4,5,6,7,8,9")}) {
    CAPTURE(bad);
    CHECK_FALSE(layers.from_text(bad));
    CHECK(layers == before);
  }
  CHECK(layers.from_text(longest));
  CHECK(layers.from_text("1,2,3,4,5,6,7,8"));
  CHECK(layers.count == kMaxLevels);
  CHECK(layers[7] == "8");
}
