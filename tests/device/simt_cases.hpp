// The vocabulary of kernels against plain loops: what holds in the emulation must hold on a GPU, so both run these.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include <norma/core/random.hpp>
#include <support/device.hpp>

namespace norma::test {

using namespace norma::cuda;

NORMA_KERNEL shuffle_kernel(int* out) {
  const int lane = simt::lane_index();
  int* const mine = out + 8 * simt::thread_index();
  mine[0] = simt::warp_shuffle(lane * 10, 5);
  mine[1] = simt::warp_shuffle_xor(lane, 3);
  mine[2] = simt::warp_shuffle_down(lane, 30);
  mine[3] = static_cast<int>(simt::warp_ballot(lane % 3 == 0));
  mine[4] = simt::warp_any(lane == 31) && !simt::warp_any(lane == 32) ? 1 : 0;
  mine[5] = simt::warp_all(lane < 32) && !simt::warp_all(lane < 31) ? 1 : 0;
  mine[6] = simt::warp_sum(lane);
  mine[7] = 100 * simt::warp_min(lane + 1) + simt::warp_max(lane);
}

TEST_CASE("warp operations") {
  if (!has_device()) return;
  DeviceArray<int> out(8 * 64);
  const Status launched = cuda::detail::launch("test", {}, {.blocks_x = 1, .threads = 64}, shuffle_kernel, out.data());
  REQUIRE_MESSAGE(launched.ok(), launched.message());
  const std::vector<int> got = out.read();
  for (int t = 0; t < 64; ++t) {
    CAPTURE(t);
    const int lane = t % 32;
    const int* const mine = got.data() + 8 * t;
    CHECK(mine[0] == 50);
    CHECK(mine[1] == (lane ^ 3));
    CHECK(mine[2] == (lane + 30 < 32 ? lane + 30 : lane));
    CHECK(static_cast<unsigned>(mine[3]) == 0x49249249u);
    CHECK(mine[4] == 1);
    CHECK(mine[5] == 1);
    CHECK(mine[6] == 496);
    CHECK(mine[7] == 131);
  }
}

NORMA_KERNEL transpose_kernel(const float* in, float* out, int rows, int cols) {
  const auto tile = simt::shared_array<float>(0, 32 * 33);
  const int x = simt::thread_index() % 32, y0 = simt::thread_index() / 32;
  for (int y = y0; y < 32; y += 8) {
    if (y < rows && x < cols) tile[y * 33 + x] = in[y * cols + x];
  }
  simt::block_barrier();
  for (int y = y0; y < 32; y += 8) {
    if (y < cols && x < rows) out[y * rows + x] = tile[x * 33 + y];
  }
}

TEST_CASE("shared memory and barriers") {
  if (!has_device()) return;
  std::vector<float> in(20 * 31);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i);
  const DeviceArray<float> source(in);
  DeviceArray<float> target(20 * 31);
  const Status launched =
      cuda::detail::launch("test", {}, {.threads = 256, .shared_bytes = 32 * 33 * sizeof(float)}, transpose_kernel, source.data(), target.data(), 20, 31);
  REQUIRE_MESSAGE(launched.ok(), launched.message());
  const std::vector<float> got = target.read();
  for (int y = 0; y < 20; ++y) {
    for (int x = 0; x < 31; ++x) CHECK(got[static_cast<std::size_t>(x * 20 + y)] == in[static_cast<std::size_t>(y * 31 + x)]);
  }
}

// Two halves of the block work in turn, each behind its own barrier.
NORMA_KERNEL named_barrier_kernel(int* out) {
  const auto box = simt::shared_array<int>(0, 64);
  const int half = simt::warp_index() / 2, t = simt::thread_index() % 64;
  if (half == 0) {
    box[t] = t + 1;
    simt::named_barrier(1, 128);
  } else {
    simt::named_barrier(1, 128);
    out[t] = box[63 - t];
  }
}

TEST_CASE("named barriers") {
  if (!has_device()) return;
  DeviceArray<int> out(64);
  const Status launched = cuda::detail::launch("test", {}, {.threads = 128, .shared_bytes = 256}, named_barrier_kernel, out.data());
  REQUIRE_MESSAGE(launched.ok(), launched.message());
  const std::vector<int> got = out.read();
  for (int t = 0; t < 64; ++t) CHECK(got[static_cast<std::size_t>(t)] == 64 - t);
}

// Three stages of asynchronous copies, of which the last elements are left out.
NORMA_KERNEL copy_async_kernel(const float* in, float* out, int count, int tiles) {
  const auto ring = simt::shared_array<float>(0, 3 * 128);
  const int t = simt::thread_index();
  const auto begin = [&](int tile) {
    const int at = tile * 128 + 4 * t;
    if (tile < tiles) simt::copy_async<16>(ring, tile % 3 * 128 + 4 * t, at + 4 <= count ? in + at : nullptr, at + 4 <= count);
    simt::copy_async_commit();
  };
  begin(0);
  begin(1);
  for (int tile = 0; tile < tiles; ++tile) {
    simt::copy_async_wait<1>();
    simt::block_barrier();  // everybody's part of this tile is there, and everybody is done with the one before
    begin(tile + 2);
    const auto four = ring.load<4>(tile % 3 * 128 + (4 * t + 64) % 128);
    float sum = 0.0f;
    NORMA_UNROLL
    for (int i = 0; i < 4; ++i) sum += four[i];
    out[tile * 32 + t] = sum;
  }
}

TEST_CASE("asynchronous copies") {
  if (!has_device()) return;
  std::vector<float> in(128 * 5);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<float>(i % 97);
  const DeviceArray<float> source(in);
  DeviceArray<float> out(32 * 5);
  const int count = 128 * 5 - 4;
  const Status launched = cuda::detail::launch("test", {}, {.threads = 32, .shared_bytes = 3 * 128 * sizeof(float)}, copy_async_kernel, source.data(),
                                               out.data(), count, 5);
  REQUIRE_MESSAGE(launched.ok(), launched.message());
  const std::vector<float> got = out.read();
  for (int tile = 0; tile < 5; ++tile) {
    for (int t = 0; t < 32; ++t) {
      float want = 0.0f;
      for (int i = 0; i < 4; ++i) {
        const int at = tile * 128 + (4 * t + 64) % 128 + i;
        want += at < count ? in[static_cast<std::size_t>(at)] : 0.0f;
      }
      CHECK(got[static_cast<std::size_t>(tile * 32 + t)] == want);
    }
  }
}

// C [16, 8] = A [16, depth] B [8, depth]^T by one instruction, the fragments read element by element as simt.cuh describes them.
template <class Element>
NORMA_KERNEL mma_kernel(const float* a, const float* b, float* c) {
  constexpr bool kTf32 = std::is_same_v<Element, simt::Tf32>;
  constexpr int kPer = kTf32 ? 1 : 2, kDepth = 8 * kPer;
  const int g = simt::lane_index() / 4, t = simt::lane_index() % 4;
  const auto bits = [](const float* row, int k) -> unsigned {
    if constexpr (kTf32) {
      return simt::round_tf32(row[k]);
    } else {
      return simt::pack<Element>(row[k], row[k + 1]);
    }
  };
  const unsigned fa[4] = {bits(a + g * kDepth, kPer * t), bits(a + (g + 8) * kDepth, kPer * t), bits(a + g * kDepth, kPer * (t + 4)),
                          bits(a + (g + 8) * kDepth, kPer * (t + 4))};
  const unsigned fb[2] = {bits(b + g * kDepth, kPer * t), bits(b + g * kDepth, kPer * (t + 4))};
  float acc[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  simt::warp_mma<Element>(acc, fa, fb);
  NORMA_UNROLL
  for (int i = 0; i < 4; ++i) c[(g + (i >= 2 ? 8 : 0)) * 8 + 2 * t + i % 2] = acc[i];
}

// Small integers are exact in every format, so the product is exact too.
template <class Element>
void check_mma(int depth) {
  if (!has_device()) return;
  Random random(3);
  const auto integers = [&](std::int64_t count) {
    std::vector<float> v(static_cast<std::size_t>(count));
    for (float& x : v) x = static_cast<float>(random.below(17)) - 8.0f;
    return v;
  };
  const std::vector<float> a = integers(16 * depth), b = integers(8 * depth);
  const DeviceArray<float> da(a), db(b);
  DeviceArray<float> dc(16 * 8);
  const Status launched = cuda::detail::launch("test", {}, {.threads = 32}, mma_kernel<Element>, da.data(), db.data(), dc.data());
  REQUIRE_MESSAGE(launched.ok(), launched.message());
  const std::vector<float> got = dc.read();
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float want = 1.0f;
      for (int k = 0; k < depth; ++k) want += a[static_cast<std::size_t>(i * depth + k)] * b[static_cast<std::size_t>(j * depth + k)];
      CHECK(got[static_cast<std::size_t>(i * 8 + j)] == want);
    }
  }
}

TEST_CASE("warp_mma: TF32") { check_mma<simt::Tf32>(8); }
TEST_CASE("warp_mma: bfloat16") { check_mma<BFloat16>(16); }
TEST_CASE("warp_mma: half") { check_mma<Half>(16); }

// The 16 x 16 tile of 16-bit numbers as four matrices, both ways round.
NORMA_KERNEL load_matrix_kernel(unsigned* plain, unsigned* transposed) {
  const auto tile = simt::shared_array<std::uint16_t>(0, 16 * 24);
  const int lane = simt::lane_index();
  for (int i = lane; i < 256; i += 32) tile[i / 16 * 24 + i % 16] = static_cast<std::uint16_t>(i);
  simt::warp_barrier();
  const int row = lane % 16, col = lane / 16 * 8;
  unsigned r[4], q[4];
  simt::load_matrix_x4(r, tile, row * 24 + col);
  simt::load_matrix_x4_transposed(q, tile, row * 24 + col);
  NORMA_UNROLL
  for (int j = 0; j < 4; ++j) {
    plain[lane * 4 + j] = r[j];
    transposed[lane * 4 + j] = q[j];
  }
}

TEST_CASE("load_matrix_x4") {
  if (!has_device()) return;
  DeviceArray<unsigned> plain(128), transposed(128);
  const Status launched = cuda::detail::launch("test", {}, {.threads = 32, .shared_bytes = 16 * 24 * 2}, load_matrix_kernel, plain.data(), transposed.data());
  REQUIRE_MESSAGE(launched.ok(), launched.message());
  const std::vector<unsigned> p = plain.read(), q = transposed.read();
  for (int lane = 0; lane < 32; ++lane) {
    for (int j = 0; j < 4; ++j) {
      const int row0 = j % 2 * 8, col0 = j / 2 * 8;  // matrix j
      const auto at = [&](int r, int c) { return static_cast<unsigned>((row0 + r) * 16 + col0 + c); };
      const int along = lane / 4, across = 2 * (lane % 4);
      CHECK(p[static_cast<std::size_t>(lane * 4 + j)] == (at(along, across) | at(along, across + 1) << 16));
      CHECK(q[static_cast<std::size_t>(lane * 4 + j)] == (at(across, along) | at(across + 1, along) << 16));
    }
  }
}

NORMA_KERNEL convert_kernel(const float* in, float* out, int count) {
  const int i = simt::thread_index();
  if (i >= count) return;
  out[3 * i] = simt::to_float(simt::from_float<Half>(in[i]));
  out[3 * i + 1] = simt::to_float(simt::from_float<BFloat16>(in[i]));
  const unsigned both = simt::pack<BFloat16>(in[i], -in[i]);
  out[3 * i + 2] = simt::to_float(BFloat16{static_cast<std::uint16_t>(both >> 16)});
}

TEST_CASE("conversions") {
  if (!has_device()) return;
  // Ties to even among them: 1 + 2^-11 and 1 + 3 * 2^-11 for half, 1 + 2^-8 and 1 + 3 * 2^-8 for bfloat16.
  const std::vector<float> in = {0.0f, 1.0f, -2.5f, 65504.0f, 1e-7f, 1.00048828125f, 1.00146484375f, 1.00390625f, 1.01171875f, 3.0e38f};
  const std::vector<float> half = {0.0f, 1.0f, -2.5f, 65504.0f, 1.1920929e-7f, 1.0f, 1.001953125f, 1.00390625f, 1.01171875f, HUGE_VALF};
  const std::vector<float> bfloat16 = {0.0f, 1.0f, -2.5f, 65536.0f, 1.0011718e-7f, 1.0f, 1.0f, 1.0f, 1.015625f, 0x1.c4p127f};
  const auto count = static_cast<int>(in.size());
  const DeviceArray<float> source(in);
  DeviceArray<float> out(3 * count);
  const Status launched = cuda::detail::launch("test", {}, {.threads = 32}, convert_kernel, source.data(), out.data(), count);
  REQUIRE_MESSAGE(launched.ok(), launched.message());
  const std::vector<float> got = out.read();
  for (std::size_t i = 0; i < in.size(); ++i) {
    CAPTURE(in[i]);
    CHECK(got[3 * i] == half[i]);
    CHECK(got[3 * i + 1] == bfloat16[i]);
    CHECK(got[3 * i + 2] == -bfloat16[i]);
  }
}

NORMA_KERNEL atomic_kernel(int* sum, unsigned* least, unsigned long long* most) {
  const auto i = static_cast<unsigned>(simt::block_x() * simt::block_threads() + simt::thread_index());
  simt::atomic_add(sum, static_cast<int>(i));
  simt::atomic_min(least, i ^ 0x155u);
  simt::atomic_max(most, static_cast<unsigned long long>(i ^ 0x155u) << 32);
}

TEST_CASE("atomics over blocks") {
  if (!has_device()) return;
  DeviceArray<int> sum(std::vector<int>{0});
  DeviceArray<unsigned> least(std::vector<unsigned>{~0u});
  DeviceArray<unsigned long long> most(std::vector<unsigned long long>{0});
  const Status launched = cuda::detail::launch("test", {}, {.blocks_x = 8, .threads = 64}, atomic_kernel, sum.data(), least.data(), most.data());
  REQUIRE_MESSAGE(launched.ok(), launched.message());
  CHECK(sum.read()[0] == 511 * 512 / 2);
  CHECK(least.read()[0] == 0);
  CHECK(most.read()[0] == 511ull << 32);
}

TEST_CASE("launch: what no device can do") {
  const auto kernel = atomic_kernel;
  const Status wide = cuda::detail::launch("test", {}, {.blocks_x = std::int64_t{1} << 31, .threads = 32}, kernel, nullptr, nullptr, nullptr);
  CHECK(wide.code() == Errc::invalid_argument);
  CHECK(wide.message() == "test: the problem is too large for one launch, expected at most 2147483647 x 65535 x 65535 blocks, found 2147483648 x 1 x 1");
  CHECK(cuda::detail::launch("test", {}, {.blocks_x = 1, .blocks_y = 65536, .threads = 32}, kernel, nullptr, nullptr, nullptr).code() == Errc::invalid_argument);
  CHECK(cuda::detail::launch("test", {}, {.blocks_x = 0, .threads = 32}, kernel, nullptr, nullptr, nullptr).ok());
}

}  // namespace norma::test
