// Nearest rows in the emulation, and what needs no device.
#include <sys/mman.h>

#include <device/nearest_rows_cases.hpp>

namespace norma::test {

TEST_CASE("nearest rows: sizes beyond 2^31 elements are counted in 64 bits") {
  // 41 million rows of 1024: 8.4e10 bytes of operands, 1.3 million groups.
  constexpr std::int64_t kRows = 41'000'000, kDims = 1'024;
  constexpr cuda::detail::BankPlan kBank = cuda::detail::plan_bank(kRows, kDims, RowProduct::bf16);
  static_assert(kBank.bytes > std::size_t{kRows} * kDims * 2 && kBank.bytes < std::size_t{kRows} * (kDims * 2 + 13) + 70'000);
  static_assert(cuda::prepared_bank_bytes(kRows, kDims, RowProduct::fp32) > std::size_t{kRows} * kDims * 4);
  // The workspace does not grow with the bank: segments do.
  constexpr cuda::detail::SearchPlan kSearch = cuda::detail::plan_search(784, kRows, kDims, 9, RowProduct::bf16, {});
  static_assert(kSearch.bytes < (std::size_t{40} << 20));
  static_assert(kSearch.segments * kSearch.segment_groups >= (kRows + 31) / 32 &&
                (kSearch.segments - 1) * kSearch.segment_groups < (kRows + 31) / 32);
  static_assert(kSearch.segment_groups % (cuda::detail::kBankTile / cuda::kRowGroup) == 0);
  // A sample of the rows: ascending, all inside, the last near the end.
  for (const std::int64_t rows : {std::int64_t{5000}, kRows, std::int64_t{3'000'000'017}}) {
    std::int64_t before = -1;
    for (std::int64_t i = 0; i < cuda::detail::kCentreRows; ++i) {
      const std::int64_t row = cuda::detail::sample_row(i, cuda::detail::kCentreRows, rows);
      REQUIRE(row > before);
      REQUIRE(row < rows);
      before = row;
    }
    CHECK(before >= rows - rows / cuda::detail::kCentreRows - 2);
  }
}

TEST_CASE("nearest rows: rows that lie beyond 2^31 elements and 2^33 bytes are read where they are") {
  // Address space without memory: only the pages of the rows are touched.
  constexpr std::int64_t kRows = 40, kDims = 12, kStride = (std::int64_t{1} << 27) + 4;
  constexpr std::size_t kBytes = static_cast<std::size_t>(kRows * kStride) * sizeof(float);
  static_assert(kRows * kStride > (std::int64_t{1} << 32));
  void* const space = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (space == MAP_FAILED) {
    MESSAGE("skipped: no address space for " << kBytes << " bytes");
    return;
  }
  const MatrixView<float> far(static_cast<float*>(space), kRows, kDims, kStride);
  const auto bank = normal_rows(kRows, kDims, 90), queries = normal_rows(5, kDims, 91);
  for (std::int64_t r = 0; r < kRows; ++r) std::copy_n(bank.data.begin() + r * kDims, kDims, far.row(r).begin());
  for (const RowProduct product : {RowProduct::fp32, RowProduct::bf16}) {
    DeviceArray<std::byte> prepared(static_cast<std::int64_t>(cuda::prepared_bank_bytes(kRows, kDims, product)));
    DeviceArray<std::byte> workspace(static_cast<std::int64_t>(cuda::nearest_rows_workspace_bytes(5, kRows, kDims, 3, product)));
    const DeviceArray<float> device_queries(queries.data);
    DeviceArray<float> distance(15);
    DeviceArray<std::int64_t> index(15);
    const auto placed = cuda::place_bank(far, RowDistance::squared_l2, product, {prepared.data(), prepared.bytes()});
    REQUIRE_MESSAGE(placed.ok(), placed.message());
    REQUIRE(cuda::prepare_bank({}, *placed).ok());
    const Status status = cuda::nearest_rows<float, TinyTiles>({}, *placed, {device_queries.data(), 5, kDims}, 3, distance.matrix(5, 3),
                                                               index.matrix(5, 3), {workspace.data(), workspace.bytes()});
    REQUIRE_MESSAGE(status.ok(), status.message());
    check_exact(bank, queries, 3, distance.read(), index.read());
  }
  munmap(space, kBytes);
}

/// The warpgroup's products, which a device has only where the code was compiled for sm_90a.
struct TinyWarpgroupTiles {
  NORMA_HD constexpr cuda::NearestRowsPolicy operator()(int arch, RowProduct product) const {
    using enum cuda::Arithmetic;
    cuda::NearestRowsPolicy policy = TinyTiles{}(arch, product);
    if (product != RowProduct::tf32 && product != RowProduct::bf16) return policy;
    policy.large = product == RowProduct::bf16 ? cuda::TilePolicy{64, 64, 64, 4, 1, 3, bf16} : cuda::TilePolicy{64, 128, 32, 4, 1, 3, tf32};
    policy.few = 2;
    policy.warpgroup = true;
    return policy;
  }
};

TEST_CASE("nearest rows: the same bits from the warpgroup's products") {
  const auto bank = normal_rows(500, 70, 92, 1.0), queries = normal_rows(70, 70, 93, 1.0);
  for (const int k : {1, 9}) {
    const Found want = search(bank, queries, k, {RowProduct::fp32});
    for (const RowProduct product : {RowProduct::tf32, RowProduct::bf16}) CHECK(search<TinyWarpgroupTiles>(bank, queries, k, {product}) == want);
  }
}

TEST_CASE("nearest rows: nothing is allocated and nobody waits") {
  const auto bank = normal_rows(60, 8, 94), queries = normal_rows(7, 8, 95);
  const TestStream stream;
  const DeviceArray<float> device_bank(bank.data), device_queries(queries.data);
  DeviceArray<std::byte> prepared(static_cast<std::int64_t>(cuda::prepared_bank_bytes(60, 8, RowProduct::bf16)));
  DeviceArray<std::byte> workspace(static_cast<std::int64_t>(cuda::nearest_rows_workspace_bytes(7, 60, 8, 2, RowProduct::bf16)));
  DeviceArray<float> distance(14);
  DeviceArray<std::int64_t> index(14);
  const EmulatedDevice before = emulated();
  const auto placed = cuda::place_bank(MatrixView<const float>(device_bank.data(), 60, 8), RowDistance::squared_l2, RowProduct::bf16,
                                       {prepared.data(), prepared.bytes()});
  REQUIRE(placed.ok());
  CHECK(emulated().launches == before.launches);
  REQUIRE(cuda::prepare_bank(stream, *placed).ok());
  CHECK(emulated().launches == before.launches + 3);
  REQUIRE(cuda::nearest_rows<float, TinyTiles>(stream, *placed, {device_queries.data(), 7, 8}, 2, distance.matrix(7, 2), index.matrix(7, 2),
                                               {workspace.data(), workspace.bytes()})
              .ok());
  CHECK(emulated().launches == before.launches + 6);  // queries, product, selection
  CHECK(emulated().allocations == before.allocations);
  CHECK(emulated().waits == before.waits);
}

}  // namespace norma::test
