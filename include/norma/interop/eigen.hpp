/// \file
/// Eigen matrices over norma's memory and the other way round, without copies. Row-major on both sides; nothing is transposed.
/// Views and maps do not own: what they look at must outlive them. Give results a named type: `auto` on an Eigen expression keeps
/// references to temporaries.
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>

#include <Eigen/Core>

#include <norma/core/view.hpp>

namespace norma::interop {

template <class T>
using EigenMatrix = Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Eigen's view of a MatrixView<T>; const for const T.
template <class T>
using EigenMatrixMap = Eigen::Map<std::conditional_t<std::is_const_v<T>, const EigenMatrix<T>, EigenMatrix<T>>, Eigen::Unaligned, Eigen::OuterStride<>>;

template <class T>
using EigenVectorMap = Eigen::Map<
    std::conditional_t<std::is_const_v<T>, const Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, 1>, Eigen::Matrix<T, Eigen::Dynamic, 1>>>;

/// A matrix or map, [rows, cols], rows may be strided.
template <class T>
[[nodiscard]] EigenMatrixMap<T> eigen(MatrixView<T> view) {
  return {view.data, static_cast<Eigen::Index>(view.rows), static_cast<Eigen::Index>(view.cols), Eigen::OuterStride<>(static_cast<Eigen::Index>(view.stride))};
}

/// All positions of all images as rows of channels, [batch * height * width, channels].
template <class T>
[[nodiscard]] EigenMatrixMap<T> eigen(TensorView<T> view) {
  return eigen(view.patches());
}

template <class T>
[[nodiscard]] EigenVectorMap<T> eigen(std::span<T> values) {
  return {values.data(), static_cast<Eigen::Index>(values.size())};
}

namespace detail {

template <class DerivedT>
constexpr void check_row_major() {
  static_assert((DerivedT::Flags & Eigen::RowMajorBit) != 0, "norma::interop::view: declare the Eigen matrix with Eigen::RowMajor; columns are not transposed silently");
  static_assert((DerivedT::Flags & Eigen::DirectAccessBit) != 0, "norma::interop::view: not an Eigen object with memory of its own; store the expression in a matrix first");
}

}  // namespace detail

/// norma's view of a row-major Eigen matrix, map, reference or block of whole columns.
template <class DerivedT>
[[nodiscard]] MatrixView<typename DerivedT::Scalar> view(Eigen::DenseBase<DerivedT>& matrix) {
  detail::check_row_major<DerivedT>();
  NORMA_EXPECTS(matrix.derived().innerStride() == 1);
  return {matrix.derived().data(), matrix.rows(), matrix.cols(), matrix.derived().outerStride()};
}
template <class DerivedT>
[[nodiscard]] MatrixView<const typename DerivedT::Scalar> view(const Eigen::DenseBase<DerivedT>& matrix) {
  detail::check_row_major<DerivedT>();
  NORMA_EXPECTS(matrix.derived().innerStride() == 1);
  return {matrix.derived().data(), matrix.rows(), matrix.cols(), matrix.derived().outerStride()};
}
/// A view of a temporary would dangle.
template <class DerivedT>
void view(const Eigen::DenseBase<DerivedT>&& matrix) = delete;

}  // namespace norma::interop
