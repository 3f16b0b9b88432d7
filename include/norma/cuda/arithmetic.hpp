/// \file
/// How products are computed on the device, and how their operands lie in memory. Plain C++; kernels/norma/cuda/tile_product.cuh has the error of
/// each.
#pragma once

#include <type_traits>

#include <norma/cuda/element.hpp>

namespace norma::cuda {

enum class Arithmetic {
  fp32,    ///< CUDA cores, every architecture
  tf32,    ///< tensor cores of sm_80 and later, operands rounded to 11 bits
  tf32x3,  ///< the same with operands split in two: nearly fp32
  bf16,    ///< operands BFloat16, or float rounded to it
  f16,     ///< operands Half, or float rounded to it
};

/// Which index of an operand [rows, depth] is contiguous in global memory.
enum class Contiguous {
  depth,  ///< [rows, depth]
  row,    ///< [depth, rows]
};

/// What keeps the precision of the operands on tensor cores.
template <class T>
inline constexpr Arithmetic kTensorArithmetic = std::is_same_v<T, BFloat16> ? Arithmetic::bf16
                                                : std::is_same_v<T, Half>   ? Arithmetic::f16
                                                                            : Arithmetic::tf32x3;

/// Elements of 16 bytes, what kernels read at once.
template <class T>
inline constexpr int kChunk = 16 / static_cast<int>(sizeof(T));

}  // namespace norma::cuda
