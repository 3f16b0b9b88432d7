// Includes NORMA_SIMD_FILE once per instruction set of this build, with
//   NORMA_SIMD        the namespace's name
//   NORMA_SIMD_TARGET the attribute that every function with vectors in it carries (lambdas do not inherit it: avoid them there)
//   NORMA_SIMD_WIDTH  floats in a vector
//   NORMA_SIMD_ROWS   rows of the matrix product's register tile, which is two vectors wide:
//                     2 * rows accumulators + 2 vectors of B + 1 of A must fit the register file
#define NORMA_SIMD generic
#define NORMA_SIMD_TARGET
#if NORMA_HAS_VECTOR_EXTENSION
#define NORMA_SIMD_WIDTH 4
#else
#define NORMA_SIMD_WIDTH 1
#endif
#define NORMA_SIMD_ROWS NORMA_GENERIC_TILE_ROWS
#include NORMA_SIMD_FILE
#undef NORMA_SIMD
#undef NORMA_SIMD_TARGET
#undef NORMA_SIMD_WIDTH
#undef NORMA_SIMD_ROWS

#if NORMA_X86_DISPATCH
#define NORMA_SIMD avx2
#define NORMA_SIMD_TARGET NORMA_TARGET_AVX2
#define NORMA_SIMD_WIDTH 8
#define NORMA_SIMD_ROWS 6
#include NORMA_SIMD_FILE
#undef NORMA_SIMD
#undef NORMA_SIMD_TARGET
#undef NORMA_SIMD_WIDTH
#undef NORMA_SIMD_ROWS
#endif

#if NORMA_X86_AVX512
#define NORMA_SIMD avx512
#define NORMA_SIMD_TARGET NORMA_TARGET_AVX512
#define NORMA_SIMD_WIDTH 16
#define NORMA_SIMD_ROWS 14
#include NORMA_SIMD_FILE
#undef NORMA_SIMD
#undef NORMA_SIMD_TARGET
#undef NORMA_SIMD_WIDTH
#undef NORMA_SIMD_ROWS
#endif
