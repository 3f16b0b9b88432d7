// The library's search with warpgroup products. No kernel is compiled here: this file's architecture may be any.
#include <doctest/doctest.h>

#include <vector>

#include <norma/cuda/nearest_rows.hpp>
#include <support/device.hpp>

#include <device/nearest_rows_reference.hpp>

namespace norma::test {

TEST_CASE("nearest rows: the library's warpgroup search finds what its default does") {
  if (!has_device()) return;
  const auto info = cuda::detail::device_info("test");
  REQUIRE(info.ok());
  // 3 x 47 large tiles of 128 x 256, more than NearestRowsWarpgroupTuning asks for; edges in both directions. Then so few that small tiles do it.
  struct Size {
    std::int64_t queries, rows;
  };
  constexpr std::int64_t kDims = 70;
  constexpr int kNeighbours = 3;
  for (const Size& size : {Size{300, 12000}, Size{40, 500}}) {
    const auto bank = normal_rows(size.rows, kDims, 96, 1.0), queries = normal_rows(size.queries, kDims, 97, 1.0);
    const DeviceArray<float> device_bank(bank.data), device_queries(queries.data);
    const MatrixView<const float> bank_view(device_bank.data(), size.rows, kDims), query_view(device_queries.data(), size.queries, kDims);
    for (const RowProduct product : {RowProduct::tf32, RowProduct::bf16}) {
      CAPTURE(size.rows);
      CAPTURE(static_cast<int>(product));
      const TestStream stream;
      DeviceArray<std::byte> prepared(static_cast<std::int64_t>(cuda::prepared_bank_bytes(size.rows, kDims, product)));
      DeviceArray<std::byte> workspace(
          static_cast<std::int64_t>(cuda::nearest_rows_workspace_bytes(size.queries, size.rows, kDims, kNeighbours, product)));
      const auto placed = cuda::place_bank(bank_view, RowDistance::squared_l2, product, {prepared.data(), prepared.bytes()});
      REQUIRE_MESSAGE(placed.ok(), placed.message());
      REQUIRE(cuda::prepare_bank(stream, *placed).ok());
      DeviceArray<float> distance(size.queries * kNeighbours);
      DeviceArray<std::int64_t> index(size.queries * kNeighbours);
      const auto distances = distance.matrix(size.queries, kNeighbours);
      const auto rows = index.matrix(size.queries, kNeighbours);
      const Status status = cuda::nearest_rows<float, cuda::NearestRowsWarpgroupTuning>(stream, *placed, query_view, kNeighbours, distances, rows,
                                                                                        {workspace.data(), workspace.bytes()});
      if (info->arch != 90) {
        CHECK(status.code() == Errc::unsupported);
        continue;
      }
      REQUIRE_MESSAGE(status.ok(), status.message());
      stream.wait();
      const auto got_distance = distance.read();
      const auto got_index = index.read();
      const Status again = cuda::nearest_rows(stream, *placed, query_view, kNeighbours, distances, rows, {workspace.data(), workspace.bytes()});
      REQUIRE_MESSAGE(again.ok(), again.message());
      stream.wait();
      CHECK(got_index == index.read());
      CHECK(got_distance == distance.read());
    }
  }
}

}  // namespace norma::test
