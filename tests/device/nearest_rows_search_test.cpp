// The device's search policy in the emulation: against the host's, in an estimator, and on machines that fail.
#include <device/nearest_rows_search_cases.hpp>

#include <norma/cuda/nearest_rows.cuh>
#include <norma/cuda/runtime.cuh>
#include <norma/estimators/memory_bank.hpp>
#include <norma/search/exact.hpp>

namespace norma::test {

TEST_CASE("cuda::ExactSearch and the host's: the same rows, distances to the last bit of a double") {
  for (const double offset : {0.0, 100.0}) {
    const auto bank = normal_rows(300, 40, 20, offset), queries = normal_rows(25, 40, 21, offset);
    const auto device = cuda::ExactSearch::prepare(bank.view(), {});
    const auto host = ExactSearch::prepare(bank.view(), {});
    REQUIRE(device.ok());
    REQUIRE(host.ok());
    const Answer got = nearest<cuda::ExactSearch>(*device, queries.view(), 9), want = nearest<ExactSearch>(*host, queries.view(), 9);
    CHECK(got.row == want.row);
    for (std::size_t i = 0; i < got.distance.size(); ++i) {
      // Two sums in double, each rounded to float: the next float at most.
      CHECK(std::abs(got.distance[i] - want.distance[i]) <= std::nextafter(want.distance[i], 1e30f) - want.distance[i]);
    }
  }
}

TEST_CASE("cuda::ExactSearch: after the first call of a size nothing is allocated") {
  const auto bank = normal_rows(50, 6, 22), queries = normal_rows(10, 6, 23);
  const auto index = cuda::ExactSearch::prepare(bank.view(), {});
  REQUIRE(index.ok());
  const Answer want = nearest<cuda::ExactSearch>(*index, queries.view(), 3);
  const std::int64_t before = emulated().allocations;
  const std::size_t bytes = index->bytes();
  CHECK(nearest<cuda::ExactSearch>(*index, queries.view(), 3) == want);
  const Answer fewer = nearest<cuda::ExactSearch>(*index, queries.view().block(0, 4), 2);
  CHECK(fewer.row[0] == want.row[0]);
  CHECK(emulated().allocations == before);
  CHECK(index->bytes() == bytes);
}

TEST_CASE("cuda::ExactSearch: no driver, no memory; nothing is lost") {
  const EmulatedScope scope;
  const std::size_t before = emulated().bytes_in_use;
  {
    const auto bank = normal_rows(50, 6, 24), queries = normal_rows(10, 6, 25);
    const auto index = cuda::ExactSearch::prepare(bank.view(), {});
    REQUIRE(index.ok());
    std::vector<float> distance(10);
    std::vector<std::int64_t> row(10);
    Arena none;
    const auto search = [&] {
      return cuda::ExactSearch::nearest(*index, queries.view(), 1, {distance.data(), 10, 1}, {row.data(), 10, 1}, {}, none);
    };
    emulated().memory_bytes = emulated().bytes_in_use + 100;
    CHECK(search().code() == Errc::out_of_memory);
    CHECK(cuda::ExactSearch::prepare(bank.view(), {}).code() == Errc::out_of_memory);
    emulated().memory_bytes = std::size_t{1} << 30;
    CHECK(search().ok());
    emulated().driver_present = false;
    CHECK(search().code() == Errc::not_found);
    CHECK(cuda::ExactSearch::prepare(bank.view(), {}).code() == Errc::not_found);
    emulated().driver_present = true;
    CHECK(search().ok());
  }
  CHECK(emulated().bytes_in_use == before);
}

TEST_CASE("a memory bank that searches on the device finds what the host's finds") {
  const auto fit = [](auto bank_type) {
    using Bank = typename decltype(bank_type)::type;
    FeatureShapes shapes;
    shapes.add({6, 6, 12});
    auto bank = Bank::create(shapes, typename Bank::Settings{});
    REQUIRE_MESSAGE(bank.ok(), bank.message());
    for (std::int64_t image = 0; image < 5; ++image) {
      const auto patches = normal_rows(36, 12, 30 + static_cast<std::uint64_t>(image), 1.0);
      Features features;
      features.add({patches.data.data(), 1, shapes[0]});
      REQUIRE(bank->observe(features, image, {}).ok());
    }
    const Observer nobody;
    REQUIRE(bank->finish({.observer = nobody}).ok());
    const auto queries = normal_rows(36, 12, 40, 1.0);
    Buffer<std::byte> scratch(static_cast<std::int64_t>(Bank::nearest_scratch_bytes(36, 12, 2, 1)));
    Arena arena(scratch.span());
    Context context{arena};
    Answer answer{std::vector<float>(72), std::vector<std::int64_t>(72)};
    const Status status = bank->nearest(queries.view(), 2, {answer.distance.data(), 36, 2}, {answer.row.data(), 36, 2}, context);
    REQUIRE_MESSAGE(status.ok(), status.message());
    return std::pair(answer.row, Bank::type_name(typename Bank::Settings{}));
  };
  using Host = MemoryBank<GreedyKCenter, ExactSearch>;
  using Device = MemoryBank<GreedyKCenter, cuda::ExactSearch>;
  const auto host = fit(std::type_identity<Host>{}), device = fit(std::type_identity<Device>{});
  CHECK(host.first == device.first);
  CHECK(host.second == device.second);  // a model file of one opens with the other
}

}  // namespace norma::test
