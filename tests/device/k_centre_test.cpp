// Greedy k-centre in the emulation; and what only the emulation can count or take away.
#include "device/k_centre_cases.hpp"

TEST_CASE("k-centre: queueing neither allocates nor waits, and a round is six kernels") {
  const auto points = normal_rows(300, 7, 40);
  Selection selection(points, 60);
  const test::TestStream stream;
  const test::EmulatedDevice before = test::emulated();
  REQUIRE(cuda::enqueue_k_centre_start<Small>(stream, selection.problem).ok());
  CHECK(test::emulated().launches - before.launches == 3);
  REQUIRE(cuda::enqueue_k_centre_rounds<Small>(stream, selection.problem, 4).ok());
  CHECK(test::emulated().launches - before.launches == 3 + 4 * 6);
  cuda::KCentreReport report;
  REQUIRE(cuda::enqueue_k_centre_report<Small>(stream, selection.problem, &report).ok());
  CHECK(test::emulated().allocations == before.allocations);
  CHECK(test::emulated().waits == before.waits);
}

TEST_CASE("cuda::GreedyKCenter without a driver, and with too little memory") {
  const auto points = normal_rows(200, 16, 41);
  const test::EmulatedScope restore;
  const std::size_t in_use = test::emulated().bytes_in_use;
  test::emulated().memory_bytes = in_use + 20000;
  CHECK(cuda::GreedyKCenter::select(points.view(), {}, 1, {}, {}).code() == Errc::out_of_memory);
  CHECK(test::emulated().bytes_in_use == in_use);
  test::emulated().driver_present = false;
  CHECK(cuda::GreedyKCenter::select(points.view(), {}, 1, {}, {}).code() == Errc::not_found);
}
