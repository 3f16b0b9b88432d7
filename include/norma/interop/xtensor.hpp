/// \file
/// xtensor arrays over norma's memory without copies, and owning copies of xtensor expressions with their shapes checked.
/// Adaptors do not own: what they look at must outlive them. Expressions hold references; give results a named type.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#if __has_include(<xtensor/xadapt.hpp>)
#include <xtensor/xadapt.hpp>
#include <xtensor/xtensor.hpp>
#else  // moved in xtensor 0.26
#include <xtensor/containers/xadapt.hpp>
#include <xtensor/containers/xtensor.hpp>
#endif

#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>

namespace norma::interop {

/// [batch, height, width, channels], writable where T is not const.
template <class T>
[[nodiscard]] auto adapt(TensorView<T> view) {
  const std::array<std::size_t, 4> shape{static_cast<std::size_t>(view.batch), static_cast<std::size_t>(view.height), static_cast<std::size_t>(view.width),
                                         static_cast<std::size_t>(view.channels)};
  return xt::adapt(view.data, static_cast<std::size_t>(view.count()), xt::no_ownership(), shape);
}

/// A matrix, an anomaly map or a mask, [rows, cols]; rows may be strided.
template <class T>
[[nodiscard]] auto adapt(MatrixView<T> view) {
  const std::array<std::size_t, 2> shape{static_cast<std::size_t>(view.rows), static_cast<std::size_t>(view.cols)};
  const std::array<std::ptrdiff_t, 2> strides{static_cast<std::ptrdiff_t>(view.stride), 1};
  // xtensor insists on a storage of exactly shape's size, also where the strides reach further.
  return xt::adapt(view.data, static_cast<std::size_t>(view.count()), xt::no_ownership(), shape, strides);
}

namespace detail {

template <class ExpressionT>
std::string shape_text(const ExpressionT& expression) {
  std::string text = "[";
  for (std::size_t i = 0; i < expression.dimension(); ++i) text += (i > 0 ? ", " : "") + std::to_string(expression.shape()[i]);
  return text + "]";
}

template <class ExpressionT>
std::int64_t extent(const ExpressionT& expression, std::size_t axis) {
  return static_cast<std::int64_t>(expression.shape()[axis]);
}

// Row-major copy of any expression, whatever its own layout.
template <class T, class ExpressionT>
void copy_elements(const ExpressionT& expression, T* to) {
  const auto end = expression.template cend<xt::layout_type::row_major>();
  for (auto at = expression.template cbegin<xt::layout_type::row_major>(); at != end; ++at) *to++ = static_cast<T>(*at);
}

}  // namespace detail

/// An owning copy of [height, width, channels] or [batch, height, width, channels]. `shape_mismatch` for other ranks.
template <class T = float, class ExpressionT>
[[nodiscard]] Result<Tensor<T>> to_tensor(const xt::xexpression<ExpressionT>& expression) {
  const ExpressionT& from = expression.derived_cast();
  const std::size_t rank = from.dimension();
  if (rank != 3 && rank != 4) {
    return Status(Errc::shape_mismatch, "interop::to_tensor: expected [height, width, channels] or [batch, height, width, channels], found " + detail::shape_text(from));
  }
  const std::size_t first = rank - 3;
  Tensor<T> tensor(first == 0 ? 1 : detail::extent(from, 0), detail::extent(from, first), detail::extent(from, first + 1), detail::extent(from, first + 2));
  detail::copy_elements(from, tensor.data());
  return tensor;
}

/// The same where the caller knows the shape of one image.
template <class T = float, class ExpressionT>
[[nodiscard]] Result<Tensor<T>> to_tensor(const xt::xexpression<ExpressionT>& expression, Shape expected) {
  NORMA_TRY(auto tensor, to_tensor<T>(expression));
  if (!(tensor.shape() == expected)) {
    return Status(Errc::shape_mismatch, "interop::to_tensor: expected images of [" + std::to_string(expected.height) + ", " + std::to_string(expected.width) + ", " +
                                            std::to_string(expected.channels) + "], found " + detail::shape_text(expression.derived_cast()));
  }
  return tensor;
}

/// An owning copy of [rows, cols]: a matrix, a map or a mask. `shape_mismatch` for other ranks.
template <class T = float, class ExpressionT>
[[nodiscard]] Result<Matrix<T>> to_matrix(const xt::xexpression<ExpressionT>& expression) {
  const ExpressionT& from = expression.derived_cast();
  if (from.dimension() != 2) {
    return Status(Errc::shape_mismatch, "interop::to_matrix: expected [rows, cols], found " + detail::shape_text(from));
  }
  Matrix<T> matrix(detail::extent(from, 0), detail::extent(from, 1));
  detail::copy_elements(from, matrix.data());
  return matrix;
}

/// Owning xtensor copies of what norma gives.
template <class T>
[[nodiscard]] xt::xtensor<std::remove_const_t<T>, 4> to_xtensor(TensorView<T> view) {
  return adapt(view);
}
template <class T>
[[nodiscard]] xt::xtensor<std::remove_const_t<T>, 2> to_xtensor(MatrixView<T> view) {
  return adapt(view);
}

}  // namespace norma::interop
