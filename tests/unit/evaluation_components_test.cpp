// Connected components against a flood fill, and their numbering.
#include <cstdint>
#include <utility>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/random.hpp>
#include <norma/evaluation/components.hpp>

namespace {

using norma::evaluation::Connectivity;

norma::Map<std::uint8_t> mask_of(const std::vector<std::vector<int>>& rows) {
  norma::Map<std::uint8_t> mask(static_cast<std::int64_t>(rows.size()), static_cast<std::int64_t>(rows[0].size()));
  for (std::int64_t y = 0; y < mask.rows(); ++y) {
    for (std::int64_t x = 0; x < mask.cols(); ++x) {
      mask(y, x) = static_cast<std::uint8_t>(rows[static_cast<std::size_t>(y)][static_cast<std::size_t>(x)]);
    }
  }
  return mask;
}

norma::Map<std::int32_t> flood(const norma::Map<std::uint8_t>& mask, Connectivity connectivity) {
  norma::Map<std::int32_t> labels(mask.rows(), mask.cols());
  std::int32_t count = 0;
  for (std::int64_t y = 0; y < mask.rows(); ++y) {
    for (std::int64_t x = 0; x < mask.cols(); ++x) {
      if (mask(y, x) == 0 || labels(y, x) != 0) continue;
      labels(y, x) = ++count;
      std::vector<std::pair<std::int64_t, std::int64_t>> todo{{y, x}};
      while (!todo.empty()) {
        const auto [cy, cx] = todo.back();
        todo.pop_back();
        for (int dy = -1; dy <= 1; ++dy) {
          for (int dx = -1; dx <= 1; ++dx) {
            if (connectivity == Connectivity::four && dy != 0 && dx != 0) continue;
            const std::int64_t ny = cy + dy, nx = cx + dx;
            if (ny < 0 || nx < 0 || ny >= mask.rows() || nx >= mask.cols() || mask(ny, nx) == 0 || labels(ny, nx) != 0) continue;
            labels(ny, nx) = count;
            todo.emplace_back(ny, nx);
          }
        }
      }
    }
  }
  return labels;
}

}  // namespace

TEST_CASE("corner contact joins under 8-connectivity only") {
  const auto mask = mask_of({{1, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 1}});
  CHECK(norma::evaluation::connected_components(mask.view()).count() == 2);
  CHECK(norma::evaluation::connected_components(mask.view(), Connectivity::four).count() == 3);
  const auto other_way = mask_of({{0, 1}, {1, 0}});
  CHECK(norma::evaluation::connected_components(other_way.view()).count() == 1);
  CHECK(norma::evaluation::connected_components(other_way.view(), Connectivity::four).count() == 2);
}

TEST_CASE("shapes whose provisional labels meet late") {
  const auto comb = mask_of({{1, 0, 1, 0, 1}, {1, 0, 1, 0, 1}, {1, 1, 1, 1, 1}});
  const auto found = norma::evaluation::connected_components(comb.view(), Connectivity::four);
  REQUIRE(found.count() == 1);
  CHECK(found.sizes[0] == 11);
  // A spiral: one pixel wide, turning inwards.
  const auto spiral = mask_of({{1, 1, 1, 1, 1}, {0, 0, 0, 0, 1}, {1, 1, 1, 0, 1}, {1, 0, 0, 0, 1}, {1, 1, 1, 1, 1}});
  CHECK(norma::evaluation::connected_components(spiral.view(), Connectivity::four).count() == 1);
}

TEST_CASE("any non-zero value counts: touching classes are one region") {
  const auto mask = mask_of({{253, 254, 0, 7}, {0, 255, 0, 7}});
  const auto found = norma::evaluation::connected_components(mask.view());
  REQUIRE(found.count() == 2);
  CHECK(found.sizes[0] == 3);
  CHECK(found.sizes[1] == 2);
}

TEST_CASE("empty and full masks") {
  norma::Map<std::uint8_t> none(3, 4);
  CHECK(norma::evaluation::connected_components(none.view()).count() == 0);
  CHECK(norma::evaluation::connected_components(norma::Map<std::uint8_t>().view()).count() == 0);
  for (std::int64_t i = 0; i < 12; ++i) none.data()[i] = 1;
  const auto all = norma::evaluation::connected_components(none.view());
  REQUIRE(all.count() == 1);
  CHECK(all.sizes[0] == 12);
}

TEST_CASE("labels, sizes and raster numbering equal a flood fill; rows may have a stride") {
  norma::Random random(11);
  for (const std::int64_t height : {1, 2, 5, 31, 32, 33}) {
    for (const std::int64_t width : {1, 3, 31, 64, 70}) {
      for (const std::int64_t percent : {10, 40, 59, 90}) {
        norma::Map<std::uint8_t> wide(height, width + 3), mask(height, width);
        for (std::int64_t y = 0; y < height; ++y) {
          for (std::int64_t x = 0; x < width + 3; ++x) {
            wide(y, x) = random.below(100) < percent ? 1 : 0;
            if (x < width) mask(y, x) = wide(y, x);
          }
        }
        for (const auto connectivity : {Connectivity::four, Connectivity::eight}) {
          CAPTURE(height);
          CAPTURE(width);
          CAPTURE(percent);
          const auto got = norma::evaluation::connected_components({wide.data(), height, width, width + 3}, connectivity);
          const auto want = flood(mask, connectivity);
          std::vector<std::int64_t> sizes(static_cast<std::size_t>(got.count()), 0);
          bool same = true;
          for (std::int64_t i = 0; i < height * width; ++i) {
            same = same && got.labels.data()[i] == want.data()[i];
            if (same && want.data()[i] > 0) ++sizes[static_cast<std::size_t>(want.data()[i] - 1)];
          }
          REQUIRE(same);
          CHECK(sizes == got.sizes);
        }
      }
    }
  }
}
