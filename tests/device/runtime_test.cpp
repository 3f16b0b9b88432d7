// The runtime's objects in the emulation, and the messages of machines that this one is not.
#include "device/runtime_cases.hpp"

namespace norma::test {

TEST_CASE("without a driver every call says so") {
  const EmulatedScope scope;
  auto stream = required(cuda::Stream::create());
  auto event = required(cuda::Event::create());
  auto elements = required(cuda::DeviceBuffer<int>::create(8));
  const auto graph = required(cuda::Graph::capture(stream, [&] { return step(stream, elements, 1); }));
  emulated().driver_present = false;
  const std::string part = "no usable CUDA driver, expected NVIDIA's driver for CUDA 13 or newer";
  CHECK(cuda::device_count() == 0);
  check_error(cuda::device_info(), Errc::not_found, "cuda::device_info", part);
  check_error(cuda::Stream::create(), Errc::not_found, "cuda::Stream::create", part);
  check_error(cuda::Event::create(), Errc::not_found, "cuda::Event::create", part);
  check_error(cuda::DeviceBuffer<int>::create(8), Errc::not_found, "cuda::DeviceBuffer::create", part);
  check_error(cuda::PinnedBuffer<int>::create(8), Errc::not_found, "cuda::PinnedBuffer::create", part);
  check_error(cuda::Graph::capture(stream, [] { return Status(); }), Errc::not_found, "cuda::Graph::capture", part);
  check_error(cuda::copy_async(stream, elements.data(), elements.data(), 8), Errc::not_found, "cuda::copy_async", part);
  check_error(cuda::fill_async(stream, elements.data(), 0, 8), Errc::not_found, "cuda::fill_async", part);
  check_error(stream.synchronize(), Errc::not_found, "cuda::Stream::synchronize", part);
  check_error(event.record(stream), Errc::not_found, "cuda::Event::record", part);
  check_error(event.hold(stream), Errc::not_found, "cuda::Event::hold", part);
  check_error(event.synchronize(), Errc::not_found, "cuda::Event::synchronize", part);
  check_error(graph.launch(stream), Errc::not_found, "cuda::Graph::launch", part);
  check_error(step(stream, elements, 1), Errc::not_found, "step", part);
}

TEST_CASE("a device that no kernel was compiled for") {
  const EmulatedScope scope;
  emulated().arch = 75;
  const auto stream = required(cuda::Stream::create());
  auto elements = required(cuda::DeviceBuffer<int>::create(8));  // memory and copies work there
  check_ok(cuda::fill_async(stream, elements.data(), 0, 8));
  check_error(step(stream, elements, 1), Errc::unsupported, "step", "no kernel was compiled for this device, expected CMAKE_CUDA_ARCHITECTURES with 75");
  CHECK(read(stream, elements) == std::vector<int>(8, 0));
}

TEST_CASE("memory: what is full is free again when a buffer is gone") {
  const EmulatedScope scope;
  const std::size_t before = emulated().bytes_in_use;
  emulated().memory_bytes = before + 1000;
  {
    const auto most = required(cuda::DeviceBuffer<std::uint8_t>::create(900));
    check_error(cuda::DeviceBuffer<float>::create(26), Errc::out_of_memory, "cuda::DeviceBuffer::create", "expected 104 bytes");
    CHECK(required(cuda::DeviceBuffer<float>::create(25)).size() == 25);
  }
  CHECK(emulated().bytes_in_use == before);
  auto replaced = required(cuda::DeviceBuffer<std::uint8_t>::create(1000));
  check_error(cuda::DeviceBuffer<std::uint8_t>::create(1), Errc::out_of_memory, "cuda::DeviceBuffer::create", "expected 1 bytes");
  replaced = {};
  CHECK(emulated().bytes_in_use == before);
  auto itself = required(cuda::DeviceBuffer<std::uint8_t>::create(10));
  auto& same = itself;
  itself = std::move(same);
  CHECK(itself.bytes() + before == emulated().bytes_in_use);  // moved to itself: what it says is what it holds
}

}  // namespace norma::test
