/// \file
/// Device memory, pinned host memory, streams, events and graphs as objects that own what they name: move-only, released by the destructor, errors as values.
/// Plain C++. A program that uses them links norma::cuda, or includes <norma/cuda/runtime.cuh> in a file that nvcc compiles.
///
///     NORMA_TRY(auto stream, norma::cuda::Stream::create());
///     NORMA_TRY(auto bank, norma::cuda::DeviceBuffer<float>::create(rows * cols));
///     NORMA_CHECK(norma::cuda::copy_async(stream, bank.data(), host_bank, bank.size()));
///     NORMA_CHECK(stream.synchronize());
///
/// Sizes:   counts of elements, std::int64_t
/// Errors:  not_found (no device or no driver), unsupported (no kernel for this device), out_of_memory, invalid_argument (also: not possible while a
///          stream is captured), io_error (what the device reports otherwise; also for work that was queued before)
/// Threads: one object, one thread at a time; different objects from any thread. Everything belongs to the device that was current when it was made
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <norma/config.hpp>
#include <norma/core/status.hpp>
#include <norma/cuda/device_info.hpp>
#include <norma/cuda/stream_ref.hpp>

namespace norma::cuda {

namespace detail {

// What this header needs of CUDA, as static members of a template: defined in runtime.cuh, instantiated by runtime.cu, so that the linker finds
// it whether a program links norma::cuda or includes the .cuh (docs/kernels/README.md).
template <class Tag = void>
struct Runtime {
  static Result<void*> allocate(std::string_view who, std::size_t bytes);
  static void release(void* memory) noexcept;
  static Result<void*> allocate_pinned(std::string_view who, std::size_t bytes);
  static void release_pinned(void* memory) noexcept;
  static Status copy_async(std::string_view who, void* to, const void* from, std::size_t bytes, StreamRef stream);
  static Status fill_async(std::string_view who, void* to, int byte, std::size_t bytes, StreamRef stream);
  static Result<void*> create_stream(std::string_view who);
  static void destroy_stream(void* stream) noexcept;
  static Status synchronize(std::string_view who, StreamRef stream);
  static Result<void*> create_event(std::string_view who);
  static void destroy_event(void* event) noexcept;
  static Status record_event(std::string_view who, void* event, StreamRef stream);
  static Status wait_event(std::string_view who, StreamRef stream, void* event);
  static Status synchronize_event(std::string_view who, void* event);
  static Result<float> elapsed_ms(std::string_view who, void* from, void* to);
  static Status begin_capture(std::string_view who, StreamRef stream);
  static Result<void*> end_capture(std::string_view who, StreamRef stream);
  static Status launch_graph(std::string_view who, void* graph, StreamRef stream);
  static void destroy_graph(void* graph) noexcept;
  static int device_count();
  static Result<DeviceInfo> device_info(std::string_view who);
};

struct DestroyStream {
  void operator()(void* stream) const noexcept { Runtime<>::destroy_stream(stream); }
};
struct DestroyEvent {
  void operator()(void* event) const noexcept { Runtime<>::destroy_event(event); }
};
struct DestroyGraph {
  void operator()(void* graph) const noexcept { Runtime<>::destroy_graph(graph); }
};

// Where a buffer's elements live.
struct DeviceMemory {
  static constexpr std::string_view kCreate = "cuda::DeviceBuffer::create";
  static Result<void*> allocate(std::size_t bytes) { return Runtime<>::allocate(kCreate, bytes); }
  void operator()(void* memory) const noexcept { Runtime<>::release(memory); }
};
struct PinnedMemory {
  static constexpr std::string_view kCreate = "cuda::PinnedBuffer::create";
  static Result<void*> allocate(std::size_t bytes) { return Runtime<>::allocate_pinned(kCreate, bytes); }
  void operator()(void* memory) const noexcept { Runtime<>::release_pinned(memory); }
};

/// `count` elements of T; see DeviceBuffer and PinnedBuffer.
template <class T, class Memory>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T> && !std::is_const_v<T>, "a buffer's elements are copied byte by byte");

 public:
  using value_type = T;

  Buffer() noexcept = default;
  Buffer(Buffer&& other) noexcept : memory_(std::move(other.memory_)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    memory_ = std::move(other.memory_);
    size_ = std::exchange(other.size_, 0);
    return *this;
  }
  ~Buffer() = default;

  /// `count` elements, not initialised, aligned to 256 bytes; none of them allocates nothing.
  static Result<Buffer> create(std::int64_t count) {
    if (count < 0) return Status(Errc::invalid_argument, std::string(Memory::kCreate) + ": expected a count of 0 or more, found " + std::to_string(count));
    if (count > std::numeric_limits<std::int64_t>::max() / static_cast<std::int64_t>(sizeof(T))) {
      return Status(Errc::out_of_memory, std::string(Memory::kCreate) + ": " + std::to_string(count) + " elements of " + std::to_string(sizeof(T)) +
                                             " bytes are more than any device holds");
    }
    Buffer buffer;
    if (count > 0) {
      NORMA_TRY(void* memory, Memory::allocate(static_cast<std::size_t>(count) * sizeof(T)));
      buffer.memory_.reset(memory);
      buffer.size_ = count;
    }
    return buffer;
  }

  [[nodiscard]] T* data() noexcept { return static_cast<T*>(memory_.get()); }
  [[nodiscard]] const T* data() const noexcept { return static_cast<const T*>(memory_.get()); }
  [[nodiscard]] std::int64_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return static_cast<std::size_t>(size_) * sizeof(T); }
  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }

  /// The elements, where the host can read them.
  [[nodiscard]] std::span<T> span() noexcept
    requires std::is_same_v<Memory, PinnedMemory>
  {
    return {data(), static_cast<std::size_t>(size_)};
  }
  [[nodiscard]] std::span<const T> span() const noexcept
    requires std::is_same_v<Memory, PinnedMemory>
  {
    return {data(), static_cast<std::size_t>(size_)};
  }

 private:
  std::unique_ptr<void, Memory> memory_;
  std::int64_t size_ = 0;
};

}  // namespace detail

/// Elements in the device's memory. The destructor waits for the device's work as cudaFree does, so keep buffers and use them again.
template <class T>
using DeviceBuffer = detail::Buffer<T, detail::DeviceMemory>;

/// Elements in host memory that copies to and from the device need not stage.
template <class T>
using PinnedBuffer = detail::Buffer<T, detail::PinnedMemory>;

/// A queue of work: what one stream is given runs in that order, what two streams are given in any. Converts to the StreamRef that launchers take.
/// Moved from, it is the default stream.
class Stream {
 public:
  static Result<Stream> create() {
    NORMA_TRY(void* handle, detail::Runtime<>::create_stream("cuda::Stream::create"));
    return Stream(handle);
  }
  [[nodiscard]] StreamRef ref() const noexcept { return StreamRef{handle_.get()}; }
  operator StreamRef() const noexcept { return ref(); }  // NOLINT(google-explicit-constructor)
  /// Waits for everything that this stream was given.
  [[nodiscard]] Status synchronize() const { return detail::Runtime<>::synchronize("cuda::Stream::synchronize", ref()); }

 private:
  explicit Stream(void* handle) noexcept : handle_(handle) {}
  std::unique_ptr<void, detail::DestroyStream> handle_;
};

/// A mark in a stream: others may wait for it, and two of them measure time.
class Event {
 public:
  static Result<Event> create() {
    NORMA_TRY(void* handle, detail::Runtime<>::create_event("cuda::Event::create"));
    return Event(handle);
  }
  /// Sets the mark behind what `stream` was given so far; an earlier mark is forgotten.
  [[nodiscard]] Status record(StreamRef stream) {
    NORMA_EXPECTS(handle_ != nullptr);
    return detail::Runtime<>::record_event("cuda::Event::record", handle_.get(), stream);
  }
  /// What `stream` is given from now on waits for the mark. The host does not.
  [[nodiscard]] Status hold(StreamRef stream) const {
    NORMA_EXPECTS(handle_ != nullptr);
    return detail::Runtime<>::wait_event("cuda::Event::hold", stream, handle_.get());
  }
  /// The host waits for the mark.
  [[nodiscard]] Status synchronize() const {
    NORMA_EXPECTS(handle_ != nullptr);
    return detail::Runtime<>::synchronize_event("cuda::Event::synchronize", handle_.get());
  }
  /// Milliseconds from `earlier`'s mark to this one; both must have been passed.
  [[nodiscard]] Result<float> ms_since(const Event& earlier) const {
    NORMA_EXPECTS(handle_ != nullptr && earlier.handle_ != nullptr);
    return detail::Runtime<>::elapsed_ms("cuda::Event::ms_since", earlier.handle_.get(), handle_.get());
  }

 private:
  explicit Event(void* handle) noexcept : handle_(handle) {}
  std::unique_ptr<void, detail::DestroyEvent> handle_;
};

/// Calls that one stream was given, recorded once and launched as one: same kernels, same arguments, same memory, which must outlive the graph.
class Graph {
 public:
  /// Runs `record`, a callable that returns Status, while `stream` (one that Stream::create made) records its work instead of doing it.
  /// Whatever `record` returns or throws, `stream` is usable afterwards.
  template <class Record>
    requires std::is_same_v<std::invoke_result_t<Record&>, Status>
  static Result<Graph> capture(StreamRef stream, Record&& record) {
    constexpr std::string_view kWho = "cuda::Graph::capture";
    if (stream.handle == nullptr) {
      return Status(Errc::invalid_argument, std::string(kWho) + ": the default stream cannot be captured, expected one that Stream::create made");
    }
    NORMA_CHECK(detail::Runtime<>::begin_capture(kWho, stream));
    OpenCapture open{stream};
    Status recorded = record();
    Result<Graph> graph = open.close(kWho);
    if (!recorded) return recorded;  // says more than the capture that failed with it
    return graph;
  }

  /// Queues the recorded work. Launches of one graph run one after the other.
  [[nodiscard]] Status launch(StreamRef stream) const {
    NORMA_EXPECTS(handle_ != nullptr);
    return detail::Runtime<>::launch_graph("cuda::Graph::launch", handle_.get(), stream);
  }

 private:
  // Ends the capture when `record` throws, too.
  struct OpenCapture {
    StreamRef stream;
    bool is_open = true;
    explicit OpenCapture(StreamRef s) noexcept : stream(s) {}
    OpenCapture(const OpenCapture&) = delete;
    OpenCapture& operator=(const OpenCapture&) = delete;
    Result<Graph> close(std::string_view who) {
      is_open = false;
      NORMA_TRY(void* graph, detail::Runtime<>::end_capture(who, stream));
      return Graph(graph);
    }
    ~OpenCapture() {
      if (is_open) (void)close("cuda::Graph::capture");
    }
  };

  explicit Graph(void* handle) noexcept : handle_(handle) {}
  std::unique_ptr<void, detail::DestroyGraph> handle_;
};

/// Copies `count` elements, either side on the host or the device. Host memory that is not pinned is staged: `from` may be reused when the call returns,
/// but the call may wait for the stream.
template <class T>
Status copy_async(StreamRef stream, T* to, const std::type_identity_t<T>* from, std::int64_t count) {
  static_assert(std::is_trivially_copyable_v<T>);
  NORMA_EXPECTS(count >= 0);
  if (count == 0) return {};
  return detail::Runtime<>::copy_async("cuda::copy_async", to, from, static_cast<std::size_t>(count) * sizeof(T), stream);
}

/// Sets every byte of `count` elements.
template <class T>
Status fill_async(StreamRef stream, T* to, int byte, std::int64_t count) {
  static_assert(std::is_trivially_copyable_v<T>);
  NORMA_EXPECTS(count >= 0);
  if (count == 0) return {};
  return detail::Runtime<>::fill_async("cuda::fill_async", to, byte, static_cast<std::size_t>(count) * sizeof(T), stream);
}

/// Devices that this process may use; 0 without a driver.
inline int device_count() { return detail::Runtime<>::device_count(); }

/// The current device.
inline Result<DeviceInfo> device_info() { return detail::Runtime<>::device_info("cuda::device_info"); }

}  // namespace norma::cuda
