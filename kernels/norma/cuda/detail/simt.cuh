/// \file
/// What kernels and launchers are written with: the few operations of a GPU that norma uses, under one set of names. nvcc gets them
/// from simt_device.cuh and runtime_device.cuh; a host compiler gets the emulation in tests/support/simt (then `tests/` is an include root),
/// so that the kernels that ship are the ones that are tested without a GPU.
///
/// Kernels (namespace norma::cuda::simt). Blocks are one-dimensional. "All lanes" means that the 32 lanes of a warp call it together.
///
/// | call | meaning |
/// | --- | --- |
/// | `thread_index() block_threads() lane_index() warp_index()` | place in the block |
/// | `block_x() block_y() block_z() blocks_x() blocks_y() blocks_z()` | place in the grid, std::int64_t |
/// | `pass_arch()` | constexpr: 80, 90, ... of the code being compiled; 0 on the host. What a tuning type is asked with |
/// | `block_barrier()` | all threads of the block; orders shared and global memory among them |
/// | `named_barrier(id, threads)` | the same for `threads` threads (whole warps), id 1 to 15 |
/// | `warp_barrier()` | all lanes; orders memory among them |
/// | `warp_shuffle(v, lane) warp_shuffle_xor(v, mask) warp_shuffle_down(v, n)` | all lanes; v of 4 or 8 bytes. They do not order memory |
/// | `warp_ballot(b) warp_any(b) warp_all(b)` | all lanes |
/// | `warp_sum(v) warp_min(v) warp_max(v)` | all lanes; result in every lane, in a fixed order |
/// | `shared_array<T>(byte_offset, count)` | a `Shared<T>`: `count` elements at that offset of the block's dynamic shared memory; sizeof(T) >= 2 |
/// | `Shared<T>`: `s[i]`, `s + n`, `s.load<N>(i)`, `s.store<N>(i, v)` | element; later elements; N elements at once, aligned to N * sizeof(T). Write `float x = s[i]`, not `auto` |
/// | `load<N>(p) store<N>(p, v)` | N elements of global memory at once as `Vec<T, N>`, aligned to N * sizeof(T) |
/// | `copy_async<Bytes>(s, i, p, valid)` | Bytes (4, 8, 16) from global p to &s[i] without registers; zeros where !valid (p is then not read) |
/// | `copy_async_commit() copy_async_wait<N>()` | closes a group of this thread; waits until at most N groups of this thread are open |
/// | `load_matrix_x4(r, s, i)` | all lanes: ldmatrix. Lane l names the 16-byte row l % 8 of the 8 x 16-byte matrix l / 8 by &s[i]; r[j] = bytes 4 (l % 4) .. + 3 of row l / 4 of matrix j |
/// | `load_matrix_x4_transposed(r, s, i)` | the same, each 8 x 8 matrix of 16-bit elements transposed on the way |
/// | `warp_mma<Element>(c, a, b)` | all lanes: c += a b for a tile of 16 x 8; Element Tf32 (depth 8), BFloat16 or Half (depth 16); needs sm_80. Layouts below |
/// | `reciprocal_root(x)` | 1 / sqrt(x) of a float, within 2 units in the last place (CUDA C++ Programming Guide, table of rsqrtf) |
/// | `round_tf32(x)` | bits of x rounded to TF32, as unsigned |
/// | `float_bits(x) float_from_bits(u)` | a float's bits as unsigned, and back |
/// | `pack<BFloat16>(lo, hi) pack<Half>(lo, hi)` | two floats as one 32-bit register, lo in the low half |
/// | `to_float(h)`, `from_float<T>(x)` | conversions of Half, BFloat16 (round to nearest even), float |
/// | `atomic_add atomic_min atomic_max(p, v)` | global memory; int, unsigned, unsigned long long. No float: scores must not depend on the order |
/// | `memory_fence()` | this thread's writes to global memory are visible to the device before later ones |
///
/// Fragments of warp_mma, with g = lane / 4, t = lane % 4. Tf32: a[0] = A(g, t), a[1] = A(g + 8, t), a[2] = A(g, t + 4), a[3] = A(g + 8, t + 4);
/// b[0] = B(t, g), b[1] = B(t + 4, g) with B of depth x 8. 16-bit: a[0] = A(g, 2t .. 2t+1), a[1] = A(g + 8, 2t ..), a[2] = A(g, 2t + 8 ..), a[3] = A(g + 8, 2t + 8 ..);
/// b[0] = B(2t .. 2t+1, g), b[1] = B(2t + 8 .., g). Both: c[0] = C(g, 2t), c[1] = C(g, 2t + 1), c[2] = C(g + 8, 2t), c[3] = C(g + 8, 2t + 1).
/// (PTX ISA, matrix fragments for mma.m16n8k8 and mma.m16n8k16.)
///
/// Launchers (namespace norma::cuda::detail). `who` starts every message, e.g. "cuda::nearest_rows". None of them waits for the device.
///
/// | call | meaning |
/// | --- | --- |
/// | `launch(who, stream, LaunchShape{...}, kernel, arguments...)` | Status; zero blocks: nothing is launched. Checks grid limits, threads, shared memory (raising the kernel's limit) |
/// | `kernel_arch(who, kernel)` | Result<int>: the pass_arch() that the code which will run was compiled with |
/// | `copy_async(who, to, from, bytes, stream)` | Status; either side host or device; host memory must be pinned to stay asynchronous |
/// | `fill_async(who, to, byte, bytes, stream)` | Status |
/// | `allocate(who, bytes)`, `release(p)` | Result<void*>, void: device memory, aligned to 256 bytes |
/// | `allocate_pinned(who, bytes)`, `release_pinned(p)` | host memory for asynchronous copies |
/// | `create_stream(who)`, `destroy_stream(s)`, `synchronize(who, s)`, `synchronize_device(who)` | the last two wait |
/// | `create_event(who)`, `destroy_event(e)`, `record_event(who, e, s)`, `wait_event(who, s, e)`, `synchronize_event(who, e)`, `elapsed_ms(who, from, to)` | handles are void* |
/// | `begin_capture(who, s)`, `end_capture(who, s)`, `launch_graph(who, g, s)`, `destroy_graph(g)` | a stream's calls recorded as an executable graph (void*) |
/// | `device_count()`, `device_info(who)` | int (0 without a driver), Result<DeviceInfo> of the current device |
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <norma/config.hpp>
#include <norma/core/status.hpp>
#include <norma/core/view.hpp>
#include <norma/cuda/device_info.hpp>
#include <norma/cuda/element.hpp>
#include <norma/cuda/stream_ref.hpp>

namespace norma::cuda {

namespace simt {

inline constexpr int kWarp = 32;

/// Element tag of warp_mma: float with 10 mantissa bits.
struct Tf32 {};

/// N elements that move as one; aligned so that they do.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T value[N];
  [[nodiscard]] NORMA_HD constexpr T& operator[](int i) noexcept { return value[i]; }
  [[nodiscard]] NORMA_HD constexpr const T& operator[](int i) const noexcept { return value[i]; }
};

}  // namespace simt

namespace detail {

/// Grid and block of one launch. Blocks are one-dimensional.
struct LaunchShape {
  std::int64_t blocks_x = 1;
  std::int64_t blocks_y = 1;
  std::int64_t blocks_z = 1;
  int threads = 0;
  std::size_t shared_bytes = 0;  ///< dynamic
};

NORMA_HD constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) noexcept { return (a + b - 1) / b; }

/// The part of `launch` that needs no device: the same limits on every architecture.
inline Status check_shape(std::string_view who, const LaunchShape& shape) {
  constexpr std::int64_t kMostX = 2147483647, kMostYZ = 65535;
  if (shape.blocks_x > kMostX || shape.blocks_y > kMostYZ || shape.blocks_z > kMostYZ || shape.blocks_x < 0 || shape.blocks_y < 0 || shape.blocks_z < 0) {
    return {Errc::invalid_argument, std::string(who) + ": the problem is too large for one launch, expected at most 2147483647 x 65535 x 65535 blocks, found " +
                                        std::to_string(shape.blocks_x) + " x " + std::to_string(shape.blocks_y) + " x " + std::to_string(shape.blocks_z)};
  }
  return {};
}

}  // namespace detail
}  // namespace norma::cuda

#if defined(__CUDACC__)
#include <norma/cuda/detail/runtime_device.cuh>
#include <norma/cuda/detail/simt_device.cuh>
#else
#include <support/simt/emulation.hpp>
#endif

namespace norma::cuda::simt {

// Fixed order: a butterfly gives every lane the same bits, because a + b == b + a.
template <class T>
NORMA_DEVICE T warp_sum(T v) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) v = static_cast<T>(v + warp_shuffle_xor(v, mask));
  return v;
}
template <class T>
NORMA_DEVICE T warp_min(T v) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const T other = warp_shuffle_xor(v, mask);
    v = other < v ? other : v;
  }
  return v;
}
template <class T>
NORMA_DEVICE T warp_max(T v) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const T other = warp_shuffle_xor(v, mask);
    v = v < other ? other : v;
  }
  return v;
}

}  // namespace norma::cuda::simt
