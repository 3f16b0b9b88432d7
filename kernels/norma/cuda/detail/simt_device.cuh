/// \file
/// The names of simt.cuh on a GPU. Include that one.
#pragma once

#include <cuda_runtime.h>

#include <norma/cuda/detail/simt.cuh>

namespace norma::cuda::simt {

NORMA_HD constexpr int pass_arch() noexcept {
#if defined(__CUDA_ARCH__)
  return __CUDA_ARCH__ / 10;
#else
  return 0;
#endif
}

NORMA_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
NORMA_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
NORMA_DEVICE int lane_index() { return thread_index() % kWarp; }
NORMA_DEVICE int warp_index() { return thread_index() / kWarp; }
NORMA_DEVICE std::int64_t block_x() { return blockIdx.x; }
NORMA_DEVICE std::int64_t block_y() { return blockIdx.y; }
NORMA_DEVICE std::int64_t block_z() { return blockIdx.z; }
NORMA_DEVICE std::int64_t blocks_x() { return gridDim.x; }
NORMA_DEVICE std::int64_t blocks_y() { return gridDim.y; }
NORMA_DEVICE std::int64_t blocks_z() { return gridDim.z; }

NORMA_DEVICE void block_barrier() { __syncthreads(); }
NORMA_DEVICE void named_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
NORMA_DEVICE void warp_barrier() { __syncwarp(); }
NORMA_DEVICE void memory_fence() { __threadfence(); }

inline constexpr unsigned kAllLanes = 0xffffffffu;
template <class T>
NORMA_DEVICE T warp_shuffle(T v, int lane) { return __shfl_sync(kAllLanes, v, lane); }
template <class T>
NORMA_DEVICE T warp_shuffle_xor(T v, int mask) { return __shfl_xor_sync(kAllLanes, v, mask); }
template <class T>
NORMA_DEVICE T warp_shuffle_down(T v, int n) { return __shfl_down_sync(kAllLanes, v, static_cast<unsigned>(n)); }
NORMA_DEVICE unsigned warp_ballot(bool b) { return __ballot_sync(kAllLanes, b); }
NORMA_DEVICE bool warp_any(bool b) { return __any_sync(kAllLanes, b) != 0; }
NORMA_DEVICE bool warp_all(bool b) { return __all_sync(kAllLanes, b) != 0; }

template <int N, class T>
NORMA_DEVICE Vec<std::remove_const_t<T>, N> load(T* p) { return *reinterpret_cast<const Vec<std::remove_const_t<T>, N>*>(p); }
template <int N, class T>
NORMA_DEVICE void store(T* p, const Vec<T, N>& v) { *reinterpret_cast<Vec<T, N>*>(p) = v; }

/// See simt.cuh. On the GPU a pointer; the emulation checks bounds, initialisation and races.
template <class T>
class Shared {
  static_assert(sizeof(T) >= 2);

 public:
  NORMA_DEVICE explicit Shared(T* data) : data_(data) {}
  NORMA_DEVICE T& operator[](int i) const { return data_[i]; }
  NORMA_DEVICE Shared operator+(int n) const { return Shared(data_ + n); }
  template <int N>
  NORMA_DEVICE Vec<T, N> load(int i) const { return simt::load<N>(data_ + i); }
  template <int N>
  NORMA_DEVICE void store(int i, const Vec<T, N>& v) const { simt::store<N>(data_ + i, v); }
  NORMA_DEVICE unsigned address(int i) const { return static_cast<unsigned>(__cvta_generic_to_shared(data_ + i)); }

 private:
  T* data_;
};

template <class T>
NORMA_DEVICE Shared<T> shared_array(int byte_offset, int /*count*/) {
  extern __shared__ __align__(1024) unsigned char norma_shared_memory[];
  return Shared<T>(reinterpret_cast<T*>(norma_shared_memory + byte_offset));
}

template <int Bytes, class T>
NORMA_DEVICE void copy_async(Shared<T> to, int i, const void* from, bool valid) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const int size = valid ? Bytes : 0;
  if constexpr (Bytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.address(i)), "l"(from), "r"(size) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to.address(i)), "l"(from), "n"(Bytes), "r"(size) : "memory");
  }
#else
  using Word = std::conditional_t<Bytes == 4, unsigned, Vec<unsigned, Bytes / 4>>;
  Word word{};
  if (valid) word = *static_cast<const Word*>(from);
  *reinterpret_cast<Word*>(&to[i]) = word;
#endif
}
NORMA_DEVICE void copy_async_commit() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int N>
NORMA_DEVICE void copy_async_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

template <class T>
NORMA_DEVICE void load_matrix_x4(unsigned (&r)[4], Shared<T> s, int i) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(s.address(i))
               : "memory");
}
template <class T>
NORMA_DEVICE void load_matrix_x4_transposed(unsigned (&r)[4], Shared<T> s, int i) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(s.address(i))
               : "memory");
}

template <class Element>
NORMA_DEVICE void warp_mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<Element, Tf32>) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else if constexpr (std::is_same_v<Element, BFloat16>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    static_assert(std::is_same_v<Element, Half>);
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#else
  __trap();  // a tuning chose tensor cores below sm_80
#endif
}

NORMA_DEVICE unsigned float_bits(float x) { return __float_as_uint(x); }
NORMA_DEVICE float float_from_bits(unsigned bits) { return __uint_as_float(bits); }

NORMA_DEVICE float reciprocal_root(float x) { return rsqrtf(x); }

NORMA_DEVICE unsigned round_tf32(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#else
  return __float_as_uint(x);
#endif
}

// Round to nearest even; NaN stays NaN. In integers, so that every architecture has it.
NORMA_DEVICE unsigned bfloat16_bits(float x) {
  const unsigned bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x0040u;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}
NORMA_DEVICE unsigned half_bits(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}

template <class T>
NORMA_DEVICE T from_float(float x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return BFloat16{static_cast<std::uint16_t>(bfloat16_bits(x))};
  } else if constexpr (std::is_same_v<T, Half>) {
    return Half{static_cast<std::uint16_t>(half_bits(x))};
  } else {
    static_assert(std::is_same_v<T, float>);
    return x;
  }
}
NORMA_DEVICE float to_float(float x) { return x; }
NORMA_DEVICE float to_float(BFloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
NORMA_DEVICE float to_float(Half x) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
}

template <class T>
NORMA_DEVICE unsigned pack(float lo, float hi) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  unsigned bits;
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(hi), "f"(lo));
  } else {
    static_assert(std::is_same_v<T, Half>);
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(hi), "f"(lo));
  }
  return bits;
#else
  return static_cast<unsigned>(from_float<T>(lo).bits) | static_cast<unsigned>(from_float<T>(hi).bits) << 16;
#endif
}

template <class T>
NORMA_DEVICE T atomic_add(T* p, T v) { return atomicAdd(p, v); }
template <class T>
NORMA_DEVICE T atomic_min(T* p, T v) { return atomicMin(p, v); }
template <class T>
NORMA_DEVICE T atomic_max(T* p, T v) { return atomicMax(p, v); }

}  // namespace norma::cuda::simt
