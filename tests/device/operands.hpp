/// \file
/// Operands of the product tests: element types by name, padded matrices, what a format keeps of a float.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include <norma/core/random.hpp>
#include <norma/cuda/element.hpp>
#include <norma/cuda/tile_product.cuh>
#include <norma/io/dtype.hpp>

namespace norma::test {

template <class Element>
Element element_from(float x) {
  if constexpr (std::is_same_v<Element, cuda::BFloat16>)
    return {io::bfloat16_from_float(x)};
  else if constexpr (std::is_same_v<Element, cuda::Half>)
    return {io::half_from_float(x)};
  else
    return x;
}
template <class Element>
double value_of(Element x) {
  if constexpr (std::is_same_v<Element, cuda::BFloat16>)
    return static_cast<double>(io::float_from_bfloat16(x.bits));
  else if constexpr (std::is_same_v<Element, cuda::Half>)
    return static_cast<double>(io::float_from_half(x.bits));
  else
    return static_cast<double>(x);
}

template <class Element>
constexpr std::int64_t padded(std::int64_t n) {
  constexpr std::int64_t kChunk = 16 / sizeof(Element);
  return (n + kChunk - 1) / kChunk * kChunk;
}

/// Whole numbers from -8 to 8: exact in every format, and so are their sums up to 2^24.
struct SmallIntegers {
  template <class Element>
  static Element draw(Random& random) {
    return element_from<Element>(static_cast<float>(random.below(17)) - 8.0f);
  }
};
struct Normals {
  template <class Element>
  static Element draw(Random& random) {
    return element_from<Element>(static_cast<float>(random.normal()));
  }
};

/// `rows` x `depth`, stored as kContiguous says, contiguous lines padded to 16 bytes: with zeros along the depth, with NaN along the rows, which
/// nobody may see.
template <class Element, cuda::Contiguous kContiguous>
struct Operand {
  static constexpr bool kAlongDepth = kContiguous == cuda::Contiguous::depth;
  std::int64_t rows, depth, stride;
  std::vector<Element> values;

  template <class Draw>
  Operand(Draw, std::int64_t rows_, std::int64_t depth_, std::uint64_t seed, std::int64_t extra_stride = 0)
      : rows(rows_), depth(depth_), stride(padded<Element>(kAlongDepth ? depth_ : rows_) + extra_stride) {
    values.assign(static_cast<std::size_t>(stride * (kAlongDepth ? rows : depth)), element_from<Element>(kAlongDepth ? 0.0f : NAN));
    Random random(seed);
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t k = 0; k < depth; ++k) values[index(r, k)] = Draw::template draw<Element>(random);
    }
  }
  [[nodiscard]] std::size_t index(std::int64_t r, std::int64_t k) const {
    return static_cast<std::size_t>(kAlongDepth ? r * stride + k : k * stride + r);
  }
  [[nodiscard]] double operator()(std::int64_t r, std::int64_t k) const { return value_of(values[index(r, k)]); }
};

/// |computed product - product of the stored operands| <= this * |product|. A format that keeps p bits rounds by 2^-p at most: one such error for
/// each operand that is rounded, and their product (covered by the factor 1 + 2^-6). tf32x3, with x = big + rest: big and rest are rounded to 11
/// bits, so rest is wrong by 2^-22 |x|, for both operands, and rest * rest <= 2^-22 is left out.
template <class A, class B>
double product_error(cuda::Arithmetic arithmetic) {
  const double rounded = (sizeof(A) == 4 ? 1.0 : 0.0) + (sizeof(B) == 4 ? 1.0 : 0.0);
  constexpr double kSecondOrder = 1.0 + 0x1p-6;
  switch (arithmetic) {
    case cuda::Arithmetic::fp32: return 0.0;
    case cuda::Arithmetic::tf32: return 2 * 0x1p-11 * kSecondOrder;
    case cuda::Arithmetic::tf32x3: return 3 * 0x1p-22 * kSecondOrder;
    case cuda::Arithmetic::bf16: return rounded * 0x1p-9 * kSecondOrder;
    case cuda::Arithmetic::f16: return rounded * 0x1p-11 * kSecondOrder;
  }
  return 0.0;
}

/// Bound of a sum of `terms` products whose magnitudes sum to `magnitude`: each product's error, and at most one rounding of a partial sum per
/// product (three for tf32x3), 2^-24 of it, or 2^-23 where a tensor core truncates.
template <class A, class B>
double sum_error(cuda::Arithmetic arithmetic, std::int64_t terms, double magnitude) {
  const double roundings = static_cast<double>(terms + 1) * (arithmetic == cuda::Arithmetic::tf32x3 ? 3.0 : 1.0);
  const double unit = arithmetic == cuda::Arithmetic::fp32 ? 0x1p-24 : 0x1p-23;
  return (product_error<A, B>(arithmetic) + roundings * unit) * magnitude;
}

}  // namespace norma::test
