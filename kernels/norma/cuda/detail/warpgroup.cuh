/// \file
/// Matrix products of a warpgroup (128 threads) out of shared memory: the tensor cores of sm_90a at full rate. Beside simt.cuh, with the same two
/// implementations (the other is tests/support/simt/warpgroup.hpp). Compiled for anything but sm_90a the calls trap: a kernel that uses them is chosen by
/// naming its tuning, never by default.
///
/// | call (namespace simt) | meaning |
/// | --- | --- |
/// | `shared_operand(s, i)` | a tile at &s[i]: rows of 128 bytes of which row r keeps its 16-byte piece j at byte 128 r + 16 (j ^ (r % 8)); &s[i] a multiple of 1024 bytes |
/// | `operand.later(bytes)` | the same rows, `bytes` (a multiple of 32) further along |
/// | `async_proxy_fence()` | this thread's finished writes to shared memory count for products issued after the next barrier |
/// | `warpgroup_registers(c)` | before products that add to c: what wrote c is done |
/// | `warpgroup_begin()` | all threads of the warpgroup, before the first product on registers that other instructions wrote |
/// | `warpgroup_mma<Element, N>(c, a, b, accumulate)` | issues c (+)= a b: 64 rows x N columns x 32 bytes of depth; c[4 j + i] is element i of warp_mma's layout for columns 8 j .., rows 16 (warp % 4) .. |
/// | `warpgroup_commit()` | closes a group of products |
/// | `warpgroup_wait<G>()` | until at most G groups are open: their operands may be overwritten |
/// | `warpgroup_finish(c)` | until none is open: c may be read |
///
/// (PTX ISA, wgmma; matrix descriptor with the 128-byte swizzle, K-major operands.)
#pragma once

#include <norma/cuda/detail/simt.cuh>

#if !defined(__CUDACC__)
#include <support/simt/warpgroup.hpp>
#else

namespace norma::cuda::simt {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
inline constexpr bool kHasWarpgroupProducts = true;
#else
inline constexpr bool kHasWarpgroupProducts = false;
#endif

/// A tile in shared memory as wgmma's descriptor.
struct SharedOperand {
  std::uint64_t bits;
  NORMA_DEVICE SharedOperand later(int bytes) const { return {bits + static_cast<std::uint64_t>(bytes >> 4)}; }
};

template <class T>
NORMA_DEVICE SharedOperand shared_operand(Shared<T> s, int i) {
  constexpr std::uint64_t kRowsOfEight = std::uint64_t{1024 >> 4} << 32;  // bytes from one group of eight rows to the next
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62;
  return {kSwizzle128 | kRowsOfEight | std::uint64_t{1} << 16 | ((s.address(i) & 0x3ffffu) >> 4)};
}

NORMA_DEVICE void async_proxy_fence() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
NORMA_DEVICE void warpgroup_begin() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
NORMA_DEVICE void warpgroup_commit() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
template <int G>
NORMA_DEVICE void warpgroup_wait() {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(G) : "memory");
#endif
}
/// Nothing that writes or reads c moves across this call.
template <int Count>
NORMA_DEVICE void warpgroup_registers(float (&c)[Count]) {
  NORMA_UNROLL
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(c[i])::"memory");
}
template <int Count>
NORMA_DEVICE void warpgroup_finish(float (&c)[Count]) {
  warpgroup_wait<0>();
  warpgroup_registers(c);
}

#define NORMA_WGMMA_4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define NORMA_WGMMA_16(i) NORMA_WGMMA_4(i), NORMA_WGMMA_4(i + 4), NORMA_WGMMA_4(i + 8), NORMA_WGMMA_4(i + 12)

#define NORMA_WGMMA_64(SHAPE, TYPES, TRANSPOSE)                                                                                                     \
  asm volatile(                                                                                                                                     \
      "{.reg .pred p; setp.ne.b32 p, %34, 0; "                                                                                                      \
      "wgmma.mma_async.sync.aligned.m64n64" SHAPE ".f32" TYPES " "                                                                                  \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, "                        \
      "%25, %26, %27, %28, %29, %30, %31}"                                                                                                          \
      ", %32, %33, p, 1, 1" TRANSPOSE ";}"                                                                                                          \
      : NORMA_WGMMA_16(0), NORMA_WGMMA_16(16)                                                                                                       \
      : "l"(a.bits), "l"(b.bits), "r"(accumulate ? 1 : 0))

#define NORMA_WGMMA_128(SHAPE, TYPES, TRANSPOSE)                                                                                                    \
  asm volatile(                                                                                                                                     \
      "{.reg .pred p; setp.ne.b32 p, %66, 0; "                                                                                                      \
      "wgmma.mma_async.sync.aligned.m64n128" SHAPE ".f32" TYPES " "                                                                                 \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, "                        \
      "%25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                         \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"                                                             \
      ", %64, %65, p, 1, 1" TRANSPOSE ";}"                                                                                                          \
      : NORMA_WGMMA_16(0), NORMA_WGMMA_16(16), NORMA_WGMMA_16(32), NORMA_WGMMA_16(48)                                                               \
      : "l"(a.bits), "l"(b.bits), "r"(accumulate ? 1 : 0))

#define NORMA_WGMMA_256(SHAPE, TYPES, TRANSPOSE)                                                                                                    \
  asm volatile(                                                                                                                                     \
      "{.reg .pred p; setp.ne.b32 p, %130, 0; "                                                                                                     \
      "wgmma.mma_async.sync.aligned.m64n256" SHAPE ".f32" TYPES " "                                                                                 \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, "                        \
      "%25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                         \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, "                         \
      "%71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, "                         \
      "%94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, "                          \
      "%114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}"                                                         \
      ", %128, %129, p, 1, 1" TRANSPOSE ";}"                                                                                                        \
      : NORMA_WGMMA_16(0), NORMA_WGMMA_16(16), NORMA_WGMMA_16(32), NORMA_WGMMA_16(48), NORMA_WGMMA_16(64), NORMA_WGMMA_16(80), NORMA_WGMMA_16(96), NORMA_WGMMA_16(112) \
      : "l"(a.bits), "l"(b.bits), "r"(accumulate ? 1 : 0))

template <class Element, int N>
NORMA_DEVICE void warpgroup_mma(float (&c)[N / 2], SharedOperand a, SharedOperand b, bool accumulate) {
  static_assert(N == 64 || N == 128 || N == 256);
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (std::is_same_v<Element, Tf32>) {
    if constexpr (N == 64) NORMA_WGMMA_64("k8", ".tf32.tf32", "");
    if constexpr (N == 128) NORMA_WGMMA_128("k8", ".tf32.tf32", "");
    if constexpr (N == 256) NORMA_WGMMA_256("k8", ".tf32.tf32", "");
  } else if constexpr (std::is_same_v<Element, BFloat16>) {
    if constexpr (N == 64) NORMA_WGMMA_64("k16", ".bf16.bf16", ", 0, 0");
    if constexpr (N == 128) NORMA_WGMMA_128("k16", ".bf16.bf16", ", 0, 0");
    if constexpr (N == 256) NORMA_WGMMA_256("k16", ".bf16.bf16", ", 0, 0");
  } else {
    static_assert(std::is_same_v<Element, Half>);
    if constexpr (N == 64) NORMA_WGMMA_64("k16", ".f16.f16", ", 0, 0");
    if constexpr (N == 128) NORMA_WGMMA_128("k16", ".f16.f16", ", 0, 0");
    if constexpr (N == 256) NORMA_WGMMA_256("k16", ".f16.f16", ", 0, 0");
  }
#else
  __trap();
#endif
}

#undef NORMA_WGMMA_4
#undef NORMA_WGMMA_16
#undef NORMA_WGMMA_64
#undef NORMA_WGMMA_128
#undef NORMA_WGMMA_256

}  // namespace norma::cuda::simt

#endif
