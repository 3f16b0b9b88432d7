// xtensor and norma see the same memory in the same order; copies check their shapes.
#include <numeric>

#include <doctest/doctest.h>

#include <norma/interop/xtensor.hpp>

TEST_CASE("an adaptor has the tensor's shape, order and memory") {
  norma::Tensor<float> tensor(2, 3, 4, 5);
  std::iota(tensor.data(), tensor.data() + tensor.view().count(), 0.0f);
  auto adapted = norma::interop::adapt(tensor.view());
  REQUIRE(adapted.dimension() == 4);
  for (std::size_t axis = 0; axis < 4; ++axis) CHECK(adapted.shape()[axis] == std::array<std::size_t, 4>{2, 3, 4, 5}[axis]);
  for (std::int64_t n = 0; n < 2; ++n) {
    for (std::int64_t y = 0; y < 3; ++y) {
      for (std::int64_t x = 0; x < 4; ++x) {
        for (std::int64_t c = 0; c < 5; ++c) CHECK(adapted(n, y, x, c) == tensor.view()(n, y, x, c));
      }
    }
  }
  adapted(1, 2, 3, 4) = -1.0f;
  CHECK(tensor.view()(1, 2, 3, 4) == -1.0f);
}

TEST_CASE("maps and strided matrices") {
  norma::Map<float> map(3, 4);
  std::iota(map.data(), map.data() + 12, 0.0f);
  const auto whole = norma::interop::adapt(std::as_const(map).view());
  CHECK(whole(2, 3) == 11.0f);
  const auto part = norma::interop::adapt(norma::MatrixView<const float>(map.data() + 1, 3, 2, 4));
  REQUIRE(part.shape()[1] == 2);
  for (std::int64_t r = 0; r < 3; ++r) {
    for (std::int64_t c = 0; c < 2; ++c) CHECK(part(r, c) == map(r, c + 1));
  }
}

TEST_CASE("owning copies keep the order, whatever the layout of the expression") {
  xt::xtensor<double, 3> image = xt::zeros<double>({2, 3, 4});
  std::iota(image.begin(), image.end(), 0.0);
  const auto tensor = norma::interop::to_tensor(image);
  REQUIRE(tensor.ok());
  CHECK(tensor->batch() == 1);
  CHECK(tensor->shape() == norma::Shape{2, 3, 4});
  for (int i = 0; i < 24; ++i) CHECK(tensor->data()[i] == static_cast<float>(i));

  xt::xtensor<float, 4, xt::layout_type::column_major> columns(std::array<std::size_t, 4>{2, 2, 2, 2});
  for (std::size_t i = 0; i < 16; ++i) columns(i / 8, i / 4 % 2, i / 2 % 2, i % 2) = static_cast<float>(i);
  const auto copied = norma::interop::to_tensor(columns);
  REQUIRE(copied.ok());
  CHECK(copied->batch() == 2);
  for (int i = 0; i < 16; ++i) CHECK(copied->data()[i] == static_cast<float>(i));

  const auto sum = norma::interop::to_matrix(xt::xtensor<float, 2>{{1, 2}, {3, 4}} + 1.0f);
  REQUIRE(sum.ok());
  CHECK((*sum)(1, 0) == 4.0f);
}

TEST_CASE("wrong shapes are refused with both shapes named") {
  const xt::xtensor<float, 2> flat = xt::zeros<float>({2, 3});
  const auto tensor = norma::interop::to_tensor(flat);
  CHECK(tensor.code() == norma::Errc::shape_mismatch);
  CHECK(tensor.message().find("[2, 3]") != std::string::npos);
  const xt::xtensor<float, 3> image = xt::zeros<float>({4, 5, 3});
  CHECK(norma::interop::to_tensor(image, {4, 5, 3}).ok());
  const auto other = norma::interop::to_tensor(image, {4, 5, 1});
  CHECK(other.code() == norma::Errc::shape_mismatch);
  CHECK(other.message().find("[4, 5, 1]") != std::string::npos);
  CHECK(other.message().find("[4, 5, 3]") != std::string::npos);
  CHECK(norma::interop::to_matrix(image).code() == norma::Errc::shape_mismatch);
}

TEST_CASE("copies back are equal") {
  norma::Tensor<float> tensor(1, 2, 2, 3);
  std::iota(tensor.data(), tensor.data() + 12, 1.0f);
  const xt::xtensor<float, 4> copy = norma::interop::to_xtensor(tensor.view());
  const auto back = norma::interop::to_tensor(copy, tensor.shape());
  REQUIRE(back.ok());
  CHECK(std::equal(tensor.data(), tensor.data() + 12, back->data()));
  norma::Map<float> map(2, 2);
  map(1, 1) = 3.0f;
  const xt::xtensor<float, 2> owned = norma::interop::to_xtensor(std::as_const(map).view());
  map(1, 1) = 0.0f;
  CHECK(owned(1, 1) == 3.0f);
}
