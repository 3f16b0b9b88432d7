// The emulated machine stands in for one with the shared memory of sm_90.
#include "device/warpgroup_product_cases.hpp"

namespace {

struct Sm90 {
  Sm90() {
    norma::test::emulated().arch = 90;
    norma::test::emulated().shared_bytes_per_block = 227 * 1024;
  }
} const sm90;

using namespace norma;
using namespace norma::cuda;

// Products read shared memory when somebody waits for them: what is wrong before that is found.
template <bool kFence, bool kOverwrite>
void product_kernel(float* out) {
  const auto s = simt::shared_array<BFloat16>(0, 2 * 64 * 64);
  for (int i = simt::thread_index(); i < 2 * 64 * 64; i += 128) s[i] = BFloat16{};
  if (kFence) simt::async_proxy_fence();
  simt::block_barrier();
  float c[32] = {};
  simt::warpgroup_begin();
  simt::warpgroup_mma<BFloat16, 64>(c, simt::shared_operand(s, 0), simt::shared_operand(s, 64 * 64), true);
  simt::warpgroup_commit();
  if (kOverwrite) {
    simt::block_barrier();
    if (simt::thread_index() == 0) s[0] = BFloat16{};
    simt::async_proxy_fence();
  }
  simt::warpgroup_finish(c);
  out[simt::thread_index()] = c[0];
}
std::string fault_of(void (*kernel)(float*)) {
  test::DeviceArray<float> out(128);
  return cuda::detail::launch("test", {}, {.threads = 128, .shared_bytes = 2 * 64 * 64 * 2}, kernel, out.data()).message();
}

}  // namespace

TEST_CASE("the emulation finds a missing fence, and operands overwritten under a product") {
  CHECK(fault_of(product_kernel<true, false>).empty());
  CHECK(fault_of(product_kernel<false, false>).find("without async_proxy_fence") != std::string::npos);
  CHECK(fault_of(product_kernel<true, true>).find("overwritten before a product had read it") != std::string::npos);
}
