/// \file
/// Owning arrays: 64-byte aligned, dense, channels last, zero-initialised. Element types are trivially copyable.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

#include <norma/config.hpp>
#include <norma/core/view.hpp>

#if NORMA_HAS_LARGE_PAGES
#include <sys/mman.h>
#endif

namespace norma {

inline constexpr std::size_t kAlignment = 64;

/// A fixed number of aligned elements. Copyable; moved-from buffers are empty.
template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() noexcept = default;
  explicit Buffer(std::int64_t count) : data_(allocate(count)), count_(count) {}
  Buffer(const Buffer& other) : Buffer(other.count_) {
    if (count_ > 0) std::memcpy(data_.get(), other.data_.get(), static_cast<std::size_t>(count_) * sizeof(T));
  }
  Buffer(Buffer&& other) noexcept : data_(std::move(other.data_)), count_(std::exchange(other.count_, 0)) {}
  Buffer& operator=(Buffer other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~Buffer() = default;

  [[nodiscard]] T* data() noexcept { return data_.get(); }
  [[nodiscard]] const T* data() const noexcept { return data_.get(); }
  [[nodiscard]] std::int64_t size() const noexcept { return count_; }
  [[nodiscard]] bool empty() const noexcept { return count_ == 0; }
  [[nodiscard]] T& operator[](std::int64_t i) noexcept { return data_.get()[i]; }
  [[nodiscard]] const T& operator[](std::int64_t i) const noexcept { return data_.get()[i]; }
  [[nodiscard]] std::span<T> span() noexcept { return {data(), static_cast<std::size_t>(count_)}; }
  [[nodiscard]] std::span<const T> span() const noexcept { return {data(), static_cast<std::size_t>(count_)}; }

 private:
  struct Release {
    void operator()(T* p) const noexcept { ::operator delete(static_cast<void*>(p), std::align_val_t{kAlignment}); }
  };
  using Pointer = std::unique_ptr<T, Release>;
  // Memory of many megabytes that is not touched yet: pages of 2 MiB, where the system has them, cost a fifth of the time to get, and reading
  // at random misses the processor's table of pages less often. Only a wish: failure changes nothing.
  static void prefer_large_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) noexcept {
#if NORMA_HAS_LARGE_PAGES && defined(MADV_HUGEPAGE)
    constexpr std::uintptr_t kPage = std::uintptr_t{2} << 20;
    const auto begin = reinterpret_cast<std::uintptr_t>(data);
    const std::uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = (begin + bytes) / kPage * kPage;
    if (bytes >= 4 * kPage) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  }
  static Pointer allocate(std::int64_t count) {
    NORMA_EXPECTS(count >= 0);
    if (count == 0) return {};
    const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
    void* p = ::operator new(bytes, std::align_val_t{kAlignment});
    prefer_large_pages(p, bytes);
    std::memset(p, 0, bytes);
    return Pointer(static_cast<T*>(p));
  }

  Pointer data_;
  std::int64_t count_ = 0;
};

/// Owning row-major matrix.
template <class T>
class Matrix {
 public:
  Matrix() noexcept = default;
  Matrix(std::int64_t rows, std::int64_t cols) : buffer_(rows * cols), rows_(rows), cols_(cols) {}

  [[nodiscard]] std::int64_t rows() const noexcept { return rows_; }
  [[nodiscard]] std::int64_t cols() const noexcept { return cols_; }
  [[nodiscard]] bool empty() const noexcept { return buffer_.empty(); }
  [[nodiscard]] T* data() noexcept { return buffer_.data(); }
  [[nodiscard]] const T* data() const noexcept { return buffer_.data(); }
  [[nodiscard]] T& operator()(std::int64_t r, std::int64_t c) noexcept { return buffer_[r * cols_ + c]; }
  [[nodiscard]] const T& operator()(std::int64_t r, std::int64_t c) const noexcept { return buffer_[r * cols_ + c]; }
  [[nodiscard]] MatrixView<T> view() noexcept { return {data(), rows_, cols_}; }
  [[nodiscard]] MatrixView<const T> view() const noexcept { return {data(), rows_, cols_}; }

 private:
  Buffer<T> buffer_;
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
};

/// Owning anomaly map or mask, [height, width].
template <class T>
using Map = Matrix<T>;

/// Owning [batch, height, width, channels].
template <class T>
class Tensor {
 public:
  Tensor() noexcept = default;
  Tensor(std::int64_t batch, Shape shape) : buffer_(batch * shape.count()), batch_(batch), shape_(shape) {}
  Tensor(std::int64_t batch, std::int64_t height, std::int64_t width, std::int64_t channels)
      : Tensor(batch, Shape{height, width, channels}) {}

  [[nodiscard]] std::int64_t batch() const noexcept { return batch_; }
  [[nodiscard]] Shape shape() const noexcept { return shape_; }
  [[nodiscard]] bool empty() const noexcept { return buffer_.empty(); }
  [[nodiscard]] T* data() noexcept { return buffer_.data(); }
  [[nodiscard]] const T* data() const noexcept { return buffer_.data(); }
  [[nodiscard]] TensorView<T> view() noexcept { return {data(), batch_, shape_}; }
  [[nodiscard]] TensorView<const T> view() const noexcept { return {data(), batch_, shape_}; }

 private:
  Buffer<T> buffer_;
  std::int64_t batch_ = 0;
  Shape shape_;
};

}  // namespace norma
