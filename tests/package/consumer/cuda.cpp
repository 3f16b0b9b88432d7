// A plain C++ program that links norma::cuda: it starts without a GPU and says what it found.
#include <cstdio>

#include <norma/cuda.hpp>

int main() {
  const norma::Result<norma::cuda::DeviceInfo> device = norma::cuda::device_info();
  const bool consistent = device.ok() == (norma::cuda::device_count() > 0);
  std::printf("%s\n", device.ok() ? device->name.c_str() : device.message().c_str());
  return consistent ? 0 : 1;
}
