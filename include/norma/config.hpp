/// \file
/// Compiler and platform switches. Every `#if` on a compiler or a platform in norma lives here.
#pragma once

#include <cassert>

#if defined(__cpp_exceptions) && __cpp_exceptions
#define NORMA_HAS_EXCEPTIONS 1
#else
#define NORMA_HAS_EXCEPTIONS 0
#endif

// NORMA_HD: a function usable on the host and, under nvcc, on the device. The others are for kernels/: a function of the device alone,
// a kernel (hidden, or two shared libraries of one process may swap theirs), its launch bounds, a loop that must (not) be unrolled. A host compiler
// reads kernels as plain functions, for the emulation in tests/support/simt.
#if defined(__CUDACC__)
#define NORMA_HD __host__ __device__
#define NORMA_DEVICE __device__ __forceinline__
#define NORMA_KERNEL __attribute__((visibility("hidden"))) __global__ void
#define NORMA_LAUNCH_BOUNDS(...) __launch_bounds__(__VA_ARGS__)
#define NORMA_UNROLL _Pragma("unroll")
#define NORMA_NO_UNROLL _Pragma("unroll 1")
#else
#define NORMA_HD
#define NORMA_DEVICE inline
#define NORMA_KERNEL inline void
#define NORMA_LAUNCH_BOUNDS(...)
#define NORMA_UNROLL
#define NORMA_NO_UNROLL
#endif

// x86 code paths are compiled per function with a target attribute and chosen at run time,
// so that users need no architecture flags. nvcc's host pass has them too: a .cu and a .cpp of one program must agree
// on every inline function.
#if (defined(__x86_64__) || defined(_M_X64)) && (defined(__GNUC__) || defined(__clang__))
#define NORMA_X86_DISPATCH 1
#define NORMA_TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define NORMA_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#else
#define NORMA_X86_DISPATCH 0
#endif
// NORMA_NO_AVX512, defined for a whole program, leaves the AVX-512 paths out: less to compile and to store where no such processor is
// met, and the way to measure AVX2 on a processor that has both.
#if NORMA_X86_DISPATCH && !defined(NORMA_NO_AVX512)
#define NORMA_X86_AVX512 1
#else
#define NORMA_X86_AVX512 0
#endif

#if defined(__GNUC__) || defined(__clang__)
#define NORMA_ALWAYS_INLINE inline __attribute__((always_inline))
#define NORMA_RESTRICT __restrict__
// Rarely called: kept out of line, and what leads to a call is compiled for size. Error texts are most of a reader's code.
#define NORMA_COLD __attribute__((noinline, cold))
#define NORMA_NOINLINE __attribute__((noinline))
#else
#define NORMA_ALWAYS_INLINE inline
#define NORMA_RESTRICT
#define NORMA_COLD
#define NORMA_NOINLINE
#endif

// A loop of host code that must be unrolled to keep its arrays in registers. nvcc's front end does not know the pragma.
#define NORMA_PRAGMA(text) _Pragma(#text)
#if (defined(__GNUC__) || defined(__clang__)) && !defined(__CUDACC__)
#define NORMA_UNROLL_TIMES(n) NORMA_PRAGMA(GCC unroll n)
#else
#define NORMA_UNROLL_TIMES(n)
#endif

// A class whose values must be looked at. nvcc's front end takes every assignment to such a class for an ignored value, so there the compilers
// that also read the code are left to check it.
#if defined(__CUDACC__)
#define NORMA_NODISCARD_CLASS
#else
#define NORMA_NODISCARD_CLASS [[nodiscard]]
#endif

// Vectors as built-in types (`vector_size`); elsewhere the same loops run on plain floats.
#if defined(__GNUC__) || defined(__clang__)
#define NORMA_HAS_VECTOR_EXTENSION 1
#else
#define NORMA_HAS_VECTOR_EXTENSION 0
#endif

// The generic path has 32 vector registers (AArch64) or 16.
#if defined(__aarch64__)
#define NORMA_GENERIC_TILE_ROWS 12
#else
#define NORMA_GENERIC_TILE_ROWS 6
#endif

// The system can be asked for large pages (madvise).
#if defined(__linux__)
#define NORMA_HAS_LARGE_PAGES 1
#else
#define NORMA_HAS_LARGE_PAGES 0
#endif

// Memory-mapped files exist.
#if defined(__unix__) || defined(__APPLE__)
#define NORMA_HAS_MMAP 1
#else
#define NORMA_HAS_MMAP 0
#endif

// A broken precondition is a bug of the caller, not an error to handle: checked where `assert` is.
#define NORMA_EXPECTS(condition) assert(condition)

#define NORMA_CONCAT_IMPL(a, b) a##b
#define NORMA_CONCAT(a, b) NORMA_CONCAT_IMPL(a, b)
