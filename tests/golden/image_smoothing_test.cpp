// Gaussian smoothing against scipy (tests/golden/metrics/smoothing.json), in double to 1e-9 and in float to 1e-6.
#include <cmath>
#include <string>

#include <doctest/doctest.h>

#include <norma/image/gaussian.hpp>
#include <norma/io/file.hpp>
#include <norma/io/json.hpp>

#include <norma/core/tensor.hpp>

using namespace norma;

namespace {

template <class T>
Map<T> map_of(const io::JsonValue& rows) {
  const auto height = static_cast<std::int64_t>(rows.items().size());
  const auto width = static_cast<std::int64_t>(rows.items()[0].items().size());
  Map<T> map(height, width);
  for (std::int64_t r = 0; r < height; ++r) {
    for (std::int64_t c = 0; c < width; ++c) {
      const auto value = rows.items()[static_cast<std::size_t>(r)].items()[static_cast<std::size_t>(c)].number();
      REQUIRE(value.has_value());
      map(r, c) = static_cast<T>(*value);
    }
  }
  return map;
}

template <class T>
double largest_error(const io::JsonValue& item) {
  const auto in = map_of<T>(*item.find("input"));
  const auto want = map_of<double>(*item.find("expected"));
  const double sigma = *item.find("sigma")->number();
  CHECK(image::gaussian_radius(sigma) == static_cast<std::int64_t>(*item.find("radius")->number()));
  Buffer<std::byte> memory(static_cast<std::int64_t>(image::gaussian_scratch_bytes<T>(in.rows(), in.cols(), sigma)));
  Arena arena(memory.span());
  Map<T> out(in.rows(), in.cols());
  const Status status = image::gaussian_filter(in.view(), out.view(), sigma, arena);
  REQUIRE_MESSAGE(status.ok(), status.message());
  double most = 0;
  for (std::int64_t r = 0; r < out.rows(); ++r) {
    for (std::int64_t c = 0; c < out.cols(); ++c) {
      const double error = std::abs(static_cast<double>(out(r, c)) - want(r, c));
      most = error <= most ? most : error;
    }
  }
  return most;
}

}  // namespace

TEST_CASE("gaussian_filter gives scipy's values") {
  const auto text = io::read_text_file(NORMA_SOURCE_DIR "/tests/golden/metrics/smoothing.json");
  REQUIRE_MESSAGE(text.ok(), text.message());
  const auto json = io::JsonValue::parse(*text, "smoothing.json");
  REQUIRE_MESSAGE(json.ok(), json.message());
  const auto& cases = json->find("cases")->items();
  REQUIRE(cases.size() == 3);
  for (const auto& item : cases) {
    CHECK(largest_error<double>(item) <= 1e-9);
    CHECK(largest_error<float>(item) <= 1e-6);
  }
}
