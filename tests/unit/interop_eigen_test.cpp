// Eigen and norma see the same memory in the same order.
#include <numeric>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/tensor.hpp>
#include <norma/interop/eigen.hpp>

namespace {

norma::Matrix<float> counting(std::int64_t rows, std::int64_t cols) {
  norma::Matrix<float> matrix(rows, cols);
  std::iota(matrix.data(), matrix.data() + rows * cols, 0.0f);
  return matrix;
}

}  // namespace

TEST_CASE("a map has the view's shape, order and memory") {
  auto matrix = counting(3, 5);
  auto map = norma::interop::eigen(matrix.view());
  REQUIRE(map.rows() == 3);
  REQUIRE(map.cols() == 5);
  for (int r = 0; r < 3; ++r) {
    for (int c = 0; c < 5; ++c) CHECK(map(r, c) == matrix(r, c));
  }
  map(2, 4) = -1.0f;
  CHECK(matrix(2, 4) == -1.0f);
}

TEST_CASE("strided rows stay strided") {
  auto matrix = counting(4, 6);
  const norma::MatrixView<const float> part(matrix.data() + 1, 4, 3, 6);
  const auto map = norma::interop::eigen(part);
  for (int r = 0; r < 4; ++r) {
    for (int c = 0; c < 3; ++c) CHECK(map(r, c) == matrix(r, c + 1));
  }
}

TEST_CASE("a tensor is its list of patches") {
  norma::Tensor<float> tensor(2, 3, 4, 5);
  tensor.view()(1, 2, 3, 4) = 7.0f;
  const auto map = norma::interop::eigen(tensor.view());
  REQUIRE(map.rows() == 2 * 3 * 4);
  REQUIRE(map.cols() == 5);
  CHECK(map(23, 4) == 7.0f);
  CHECK(map.sum() == 7.0f);
}

TEST_CASE("spans become vectors") {
  std::vector<float> values{1.0f, 2.0f, 3.0f};
  CHECK(norma::interop::eigen(std::span<const float>(values)).sum() == 6.0f);
  norma::interop::eigen(std::span<float>(values))(1) = 5.0f;
  CHECK(values[1] == 5.0f);
}

TEST_CASE("views of Eigen matrices, maps and blocks") {
  norma::interop::EigenMatrix<float> matrix(3, 4);
  for (int i = 0; i < 12; ++i) matrix(i / 4, i % 4) = static_cast<float>(i);
  const auto view = norma::interop::view(matrix);
  REQUIRE(view.rows == 3);
  REQUIRE(view.cols == 4);
  CHECK(view(2, 1) == 9.0f);
  view(2, 1) = 100.0f;
  CHECK(matrix(2, 1) == 100.0f);

  auto block = matrix.block(1, 1, 2, 2);
  const auto part = norma::interop::view(block);
  CHECK(part.stride == 4);
  CHECK(part(0, 1) == 6.0f);
  CHECK(part(1, 0) == 100.0f);

  const auto& constant = matrix;
  static_assert(std::is_same_v<decltype(norma::interop::view(constant)), norma::MatrixView<const float>>);
  // There and back again is the same memory.
  auto again = norma::interop::eigen(norma::interop::view(matrix));
  CHECK(again.data() == matrix.data());
}

TEST_CASE("empty views") {
  CHECK(norma::interop::eigen(norma::MatrixView<float>()).size() == 0);
  norma::interop::EigenMatrix<float> none(0, 4);
  CHECK(norma::interop::view(none).empty());
}
