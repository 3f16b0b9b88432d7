// The emulation itself: the vocabulary, and every fault that it promises to find.
#include "device/simt_cases.hpp"

namespace {

using namespace norma;
using namespace norma::cuda;

std::string fault_of(void (*kernel)(float*), int threads, std::size_t shared_bytes = 1024) {
  test::DeviceArray<float> out(64);
  const Status status = cuda::detail::launch("test", {}, {.blocks_x = 2, .threads = threads, .shared_bytes = shared_bytes}, kernel, out.data());
  return status.ok() ? "no fault" : status.message();
}
bool says(const std::string& text, const std::string& part) {
  INFO(text);
  const bool found = text.find(part) != std::string::npos;
  CHECK(found);
  return found;
}

void reads_unwritten(float* out) {
  const auto s = simt::shared_array<float>(0, 64);
  out[0] = s[3];
}
void races_on_write(float*) {
  const auto s = simt::shared_array<float>(0, 64);
  s[0] = static_cast<float>(simt::thread_index());
}
void misses_barrier(float* out) {
  const auto s = simt::shared_array<float>(0, 64);
  s[simt::thread_index()] = 1.0f;
  out[simt::thread_index()] = s[63 - simt::thread_index()];
}
void overwrites_what_others_read(float* out) {
  const auto s = simt::shared_array<float>(0, 64);
  if (simt::thread_index() == 0) s[0] = 1.0f;
  simt::block_barrier();
  out[simt::thread_index()] = s[0];
  if (simt::thread_index() == 5) s[0] = 2.0f;
}
void trusts_shuffle_as_barrier(float* out) {
  const auto s = simt::shared_array<float>(0, 64);
  s[simt::thread_index()] = 1.0f;
  out[0] = simt::warp_shuffle(1.0f, 0);
  out[simt::thread_index()] = s[31 - simt::thread_index()];
}
void uses_warp_barrier(float* out) {
  const auto s = simt::shared_array<float>(0, 64);
  s[simt::thread_index()] = static_cast<float>(simt::thread_index());
  simt::warp_barrier();
  out[simt::thread_index()] = s[31 - simt::thread_index()];
}
void uses_warp_barrier_between_warps(float* out) {
  const auto s = simt::shared_array<float>(0, 64);
  s[simt::thread_index()] = 1.0f;
  simt::warp_barrier();
  out[simt::thread_index()] = s[63 - simt::thread_index()];
}
void passes_the_end(float*) {
  const auto s = simt::shared_array<float>(0, 64);
  s[simt::thread_index() + 40] = 1.0f;
}
void asks_for_too_much(float*) { simt::shared_array<float>(512, 200)[0] = 1.0f; }
void misaligned(float*) {
  const auto s = simt::shared_array<float>(0, 64);
  s.store<4>(4 * simt::thread_index() % 32 + 2, simt::Vec<float, 4>{});
}
void misaligned_global(float* out) { simt::store<4>(out + 1, simt::Vec<float, 4>{}); }
void reads_copy_too_early(float* out) {
  const auto s = simt::shared_array<float>(0, 64);
  simt::copy_async<4>(s, simt::thread_index(), out, true);
  simt::copy_async_commit();
  out[0] = s[simt::thread_index()];
}
void waits_for_the_wrong_group(float* out) {
  const auto s = simt::shared_array<float>(0, 64);
  simt::copy_async<4>(s, simt::thread_index(), out, true);
  simt::copy_async_commit();
  simt::copy_async_wait<1>();
  out[0] = s[simt::thread_index()];
}
void half_of_a_warp(float* out) {
  if (simt::lane_index() < 16) out[0] = simt::warp_sum(1.0f);
}
void different_barriers(float*) {
  if (simt::thread_index() < 32) {
    simt::block_barrier();
  } else {
    simt::block_barrier();
  }
}
void never_released(float*) {
  if (simt::thread_index() < 32) simt::named_barrier(2, 64);
}
void writes_behind(float* out) {
  if (simt::thread_index() == 0) out[64 + 3] = 0.0f;
}

}  // namespace

TEST_CASE("the emulation finds what goes wrong in shared memory") {
  says(fault_of(reads_unwritten, 32), "test: emulation: block 0,0,0, thread 0: shared byte 12: read before anything was written");
  says(fault_of(races_on_write, 64), "two writes without a barrier between");
  says(fault_of(misses_barrier, 64), "read");  // before it is written, or after without a barrier: depends on who runs first
  says(fault_of(overwrites_what_others_read, 64), "write without a barrier after another thread's read");
  says(fault_of(trusts_shuffle_as_barrier, 32), "read without a barrier after the write");
  CHECK(fault_of(uses_warp_barrier, 32) == "no fault");
  says(fault_of(uses_warp_barrier_between_warps, 64), "read");
  says(fault_of(passes_the_end, 32), "of a shared array of 64 at byte 0");
  says(fault_of(asks_for_too_much, 32), "the launch asked for 1024 bytes");
  says(fault_of(misaligned, 32), "multiple of 16");
}

TEST_CASE("the emulation finds asynchronous copies that are used too early") {
  says(fault_of(reads_copy_too_early, 32), "read while an asynchronous copy is under way");
  says(fault_of(waits_for_the_wrong_group, 32), "read while an asynchronous copy is under way");
}

TEST_CASE("the emulation finds barriers and warp operations that not everybody reaches") {
  says(fault_of(half_of_a_warp, 32), "needs all 32 lanes, 16 of warp 0 came");
  says(fault_of(different_barriers, 64), "different barriers");
  says(fault_of(never_released, 64), "the block is stuck: thread 0 waits at simt_test.cpp");
}

TEST_CASE("the emulation finds writes beside an allocation and misaligned global accesses") {
  says(fault_of(writes_behind, 32), "behind an allocation of 256");
  says(fault_of(misaligned_global, 32), "multiple of 16");
}

TEST_CASE("the emulated machine: no driver, an old device, too little memory, too much shared memory") {
  const test::EmulatedScope scope;
  test::DeviceArray<float> out(1);
  const auto launch = [&](std::size_t shared) {
    return cuda::detail::launch("test", {}, {.threads = 32, .shared_bytes = shared}, uses_warp_barrier, out.data());
  };
  says(launch(200 * 1024).message(), "test: the problem is too large for this device, expected at most 166912 bytes of shared memory a block, found 204800");
  test::emulated().arch = 75;
  says(launch(256).message(), "no kernel was compiled for this device, expected CMAKE_CUDA_ARCHITECTURES with 75");
  test::emulated().arch = 80;
  test::emulated().memory_bytes = 1000;
  CHECK(cuda::detail::allocate("test", 4096).code() == Errc::out_of_memory);
  test::emulated().driver_present = false;
  CHECK(launch(256).code() == Errc::not_found);
  CHECK(cuda::detail::device_count() == 0);
}

TEST_CASE("the emulated machine: what a capture forbids, and its replay") {
  test::DeviceArray<int> sum(std::vector<int>{0});
  test::DeviceArray<unsigned> least(std::vector<unsigned>{~0u});
  test::DeviceArray<unsigned long long> most(std::vector<unsigned long long>{0});
  const test::TestStream stream;
  REQUIRE(cuda::detail::begin_capture("test", stream).ok());
  REQUIRE(cuda::detail::launch("test", stream, {.threads = 32}, test::atomic_kernel, sum.data(), least.data(), most.data()).ok());
  const auto graph = cuda::detail::end_capture("test", stream);
  REQUIRE(graph.ok());
  CHECK(sum.read()[0] == 0);
  REQUIRE(cuda::detail::launch_graph("test", *graph, stream).ok());
  REQUIRE(cuda::detail::launch_graph("test", *graph, stream).ok());
  CHECK(sum.read()[0] == 2 * 496);
  cuda::detail::destroy_graph(*graph);

  REQUIRE(cuda::detail::begin_capture("test", stream).ok());
  CHECK(cuda::detail::allocate("test", 16).code() == Errc::invalid_argument);
  CHECK(cuda::detail::end_capture("test", stream).code() == Errc::invalid_argument);
  REQUIRE(cuda::detail::begin_capture("test", stream).ok());
  CHECK(cuda::detail::synchronize("test", stream).code() == Errc::invalid_argument);
  CHECK(cuda::detail::end_capture("test", stream).code() == Errc::invalid_argument);
}
