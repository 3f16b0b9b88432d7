/// \file
/// For tests that run in the emulation and on a GPU: arrays in device memory, and a way to skip where there is no device.
#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <cstdlib>
#include <span>
#include <utility>
#include <vector>

#include <norma/cuda/detail/simt.cuh>

namespace norma::test {

/// False where there is no device: then it has said `skipped: ...` and the test returns.
inline bool has_device() {
  if (cuda::detail::device_count() > 0) return true;
  MESSAGE("skipped: no CUDA device");
  return false;
}

/// A stream of its own: captures are possible.
class TestStream {
 public:
  TestStream() {
    auto made = cuda::detail::create_stream("TestStream");
    REQUIRE_MESSAGE(made.ok(), made.message());
    handle_ = *made;
  }
  TestStream(const TestStream&) = delete;
  TestStream& operator=(const TestStream&) = delete;
  ~TestStream() { cuda::detail::destroy_stream(handle_); }
  operator cuda::StreamRef() const { return {handle_}; }  // NOLINT(google-explicit-constructor)
  void wait() const {
    const Status waited = cuda::detail::synchronize("TestStream", {handle_});
    REQUIRE_MESSAGE(waited.ok(), waited.message());
  }

 private:
  void* handle_ = nullptr;
};

/// `count` elements of device memory, filled with 0xff (NaN, -1) so that what nobody wrote shows.
template <class T>
class DeviceArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit DeviceArray(std::int64_t count) : count_(count) {
    auto made = cuda::detail::allocate("DeviceArray", bytes());
    REQUIRE_MESSAGE(made.ok(), made.message());
    data_ = static_cast<T*>(*made);
    finish(cuda::detail::fill_async("DeviceArray", data_, 0xff, bytes(), {}));
  }
  explicit DeviceArray(std::span<const T> values) : DeviceArray(static_cast<std::int64_t>(values.size())) { write(values); }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(std::span<const T>(values)) {}
  DeviceArray(DeviceArray&& other) noexcept : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cuda::detail::release(data_); }

  [[nodiscard]] T* data() { return data_; }
  [[nodiscard]] const T* data() const { return data_; }
  [[nodiscard]] std::int64_t size() const { return count_; }
  [[nodiscard]] std::size_t bytes() const { return static_cast<std::size_t>(count_) * sizeof(T); }
  void write(std::span<const T> values) {
    REQUIRE(static_cast<std::int64_t>(values.size()) <= count_);
    finish(Status());  // whoever still reads the old content
    finish(cuda::detail::copy_async("DeviceArray", data_, values.data(), values.size_bytes(), {}));
  }
  [[nodiscard]] std::vector<T> read() const {
    std::vector<T> values(static_cast<std::size_t>(count_));
    finish(Status());  // whoever still writes
    finish(cuda::detail::copy_async("DeviceArray", values.data(), data_, bytes(), {}));
    return values;
  }
  [[nodiscard]] MatrixView<T> matrix(std::int64_t rows, std::int64_t cols) { return {data_, rows, cols}; }

 private:
  // norma's streams and the default stream do not wait for each other, so this waits for all of them.
  static void finish(const Status& queued) {
    REQUIRE_MESSAGE(queued.ok(), queued.message());
    const Status waited = cuda::detail::synchronize_device("DeviceArray");
    REQUIRE_MESSAGE(waited.ok(), waited.message());
  }

  T* data_ = nullptr;
  std::int64_t count_ = 0;
};

}  // namespace norma::test
