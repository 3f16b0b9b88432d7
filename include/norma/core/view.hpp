/// \file
/// Non-owning views. Channels last everywhere: a tensor is [batch, height, width, channel], row-major and dense, so a feature
/// map *is* the list of its patch vectors and nothing is transposed between a network, an estimator and a kernel.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <type_traits>

#include <norma/config.hpp>

namespace norma {

/// Height, width and channels of one image or feature map.
struct Shape {
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::int64_t channels = 0;
  [[nodiscard]] constexpr std::int64_t positions() const noexcept { return height * width; }
  [[nodiscard]] constexpr std::int64_t count() const noexcept { return height * width * channels; }
  friend constexpr bool operator==(const Shape&, const Shape&) = default;
};

/// Row-major matrix; `stride` is the distance between rows in elements, >= cols.
template <class T>
struct MatrixView {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  constexpr MatrixView() noexcept = default;
  NORMA_HD constexpr MatrixView(T* data_, std::int64_t rows_, std::int64_t cols_) noexcept
      : data(data_), rows(rows_), cols(cols_), stride(cols_) {}
  NORMA_HD constexpr MatrixView(T* data_, std::int64_t rows_, std::int64_t cols_, std::int64_t stride_) noexcept
      : data(data_), rows(rows_), cols(cols_), stride(stride_) {}
  // From the mutable view of the same element.
  template <class U>
    requires(std::is_same_v<const U, T> && !std::is_same_v<U, T>)
  NORMA_HD constexpr MatrixView(const MatrixView<U>& other) noexcept  // NOLINT(google-explicit-constructor)
      : data(other.data), rows(other.rows), cols(other.cols), stride(other.stride) {}

  [[nodiscard]] NORMA_HD constexpr T& operator()(std::int64_t r, std::int64_t c) const noexcept { return data[r * stride + c]; }
  [[nodiscard]] constexpr std::span<T> row(std::int64_t r) const noexcept {
    return {data + r * stride, static_cast<std::size_t>(cols)};
  }
  [[nodiscard]] constexpr MatrixView block(std::int64_t first_row, std::int64_t row_count) const noexcept {
    return {data + first_row * stride, row_count, cols, stride};
  }
  [[nodiscard]] NORMA_HD constexpr bool dense() const noexcept { return stride == cols; }
  [[nodiscard]] NORMA_HD constexpr std::int64_t count() const noexcept { return rows * cols; }
  [[nodiscard]] NORMA_HD constexpr bool empty() const noexcept { return rows == 0 || cols == 0; }
};

/// One value a pixel: an anomaly map or a mask, [height, width].
template <class T>
using MapView = MatrixView<T>;

/// Dense [batch, height, width, channels].
template <class T>
struct TensorView {
  T* data = nullptr;
  std::int64_t batch = 0;
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::int64_t channels = 0;

  constexpr TensorView() noexcept = default;
  NORMA_HD constexpr TensorView(T* data_, std::int64_t batch_, std::int64_t height_, std::int64_t width_, std::int64_t channels_) noexcept
      : data(data_), batch(batch_), height(height_), width(width_), channels(channels_) {}
  constexpr TensorView(T* data_, std::int64_t batch_, Shape shape) noexcept
      : TensorView(data_, batch_, shape.height, shape.width, shape.channels) {}
  template <class U>
    requires(std::is_same_v<const U, T> && !std::is_same_v<U, T>)
  NORMA_HD constexpr TensorView(const TensorView<U>& other) noexcept  // NOLINT(google-explicit-constructor)
      : TensorView(other.data, other.batch, other.height, other.width, other.channels) {}

  [[nodiscard]] NORMA_HD constexpr T& operator()(std::int64_t n, std::int64_t y, std::int64_t x, std::int64_t c) const noexcept {
    return data[((n * height + y) * width + x) * channels + c];
  }
  [[nodiscard]] constexpr Shape shape() const noexcept { return {height, width, channels}; }
  [[nodiscard]] constexpr std::int64_t count() const noexcept { return batch * height * width * channels; }
  [[nodiscard]] constexpr bool empty() const noexcept { return count() == 0; }
  /// One image of the batch.
  [[nodiscard]] constexpr TensorView image(std::int64_t n) const noexcept {
    return {data + n * height * width * channels, 1, height, width, channels};
  }
  /// All positions of all images as rows of channels, [batch * height * width, channels].
  [[nodiscard]] constexpr MatrixView<T> patches() const noexcept { return {data, batch * height * width, channels}; }
};

}  // namespace norma
