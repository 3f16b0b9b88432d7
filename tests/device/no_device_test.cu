// What a program says on a machine without a GPU. It knows only the plain headers, so it also links norma::cuda the way any program does.
#include <string>

#include <doctest/doctest.h>

#include <norma/cuda.hpp>

using namespace norma;

namespace {

void check_message(const std::string& message, const std::string& who) {
  INFO(message);
  const bool no_driver = message == who + ": no usable CUDA driver, expected NVIDIA's driver for CUDA " NORMA_CUDA_MAJOR " or newer";
  const bool no_device = message == who + ": no CUDA device, expected an NVIDIA GPU that this process may use";
  const bool one_of_them = no_driver || no_device;
  CHECK(one_of_them);
}

}  // namespace

TEST_CASE("without a device every call says so") {
  if (cuda::device_count() > 0) {
    MESSAGE("skipped: this machine has a CUDA device");
    return;
  }
  check_message(cuda::device_info().message(), "cuda::device_info");
  check_message(cuda::Stream::create().message(), "cuda::Stream::create");
  check_message(cuda::Event::create().message(), "cuda::Event::create");
  check_message(cuda::DeviceBuffer<float>::create(8).message(), "cuda::DeviceBuffer::create");
  check_message(cuda::PinnedBuffer<float>::create(8).message(), "cuda::PinnedBuffer::create");
  check_message(cuda::fill_async<float>({}, nullptr, 0, 8).message(), "cuda::fill_async");
  CHECK(cuda::device_info().code() == Errc::not_found);
  CHECK(cuda::DeviceBuffer<float>::create(0).ok());  // asks for nothing, so it needs no device
}
