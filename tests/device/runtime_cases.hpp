/// \file
/// Buffers, streams, events and graphs, and what each of them says when something is wrong. For the emulation and for a GPU.
#pragma once

#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <norma/cuda/runtime.cuh>

#include <support/device.hpp>

namespace norma::test {

template <class T>
constexpr bool kMoveOnly = std::is_nothrow_move_constructible_v<T> && std::is_nothrow_move_assignable_v<T> && !std::is_copy_constructible_v<T> &&
                           !std::is_copy_assignable_v<T> && std::is_nothrow_destructible_v<T>;
static_assert(kMoveOnly<cuda::DeviceBuffer<float>> && kMoveOnly<cuda::PinnedBuffer<std::int64_t>>);
static_assert(kMoveOnly<cuda::Stream> && kMoveOnly<cuda::Event> && kMoveOnly<cuda::Graph>);

/// The value; the test stops with the message where there is none.
template <class T>
T required(Result<T> result) {
  REQUIRE_MESSAGE(result.ok(), result.message());
  return *std::move(result);
}

inline void check_ok(const Status& status) { CHECK_MESSAGE(status.ok(), status.message()); }

/// `outcome` is a Status or a Result that failed with this code and a message that starts and goes on like this.
template <class Outcome>
void check_error(const Outcome& outcome, Errc code, const std::string& start, const std::string& part) {
  INFO(outcome.message());
  CHECK(outcome.code() == code);
  CHECK(outcome.message().starts_with(start + ": "));
  CHECK(outcome.message().find(part) != std::string::npos);
}

// element[i] = factor * element[i] + i: applied twice it differs from applied once, and the order of two factors shows.
template <class Element>
NORMA_KERNEL runtime_step_kernel(Element* element, std::int64_t count, Element factor) {
  const std::int64_t threads = cuda::simt::blocks_x() * cuda::simt::block_threads();
  for (std::int64_t i = cuda::simt::block_x() * cuda::simt::block_threads() + cuda::simt::thread_index(); i < count; i += threads) {
    element[i] = factor * element[i] + static_cast<Element>(i);
  }
}

inline Status step(cuda::StreamRef stream, cuda::DeviceBuffer<int>& elements, int factor) {
  return cuda::detail::launch("step", stream, {.blocks_x = 2, .threads = 64}, runtime_step_kernel<int>, elements.data(), elements.size(), factor);
}

inline std::vector<int> read(const cuda::Stream& stream, const cuda::DeviceBuffer<int>& elements) {
  std::vector<int> values(static_cast<std::size_t>(elements.size()));
  check_ok(cuda::copy_async(stream, values.data(), elements.data(), elements.size()));
  check_ok(stream.synchronize());
  return values;
}

inline constexpr std::int64_t kMostElements = std::numeric_limits<std::int64_t>::max();

TEST_CASE("buffers: no elements, a negative number, more than there is memory") {
  if (!has_device()) return;
  for (const auto& buffer : {cuda::DeviceBuffer<float>(), required(cuda::DeviceBuffer<float>::create(0))}) {
    CHECK(buffer.empty());
    CHECK(buffer.size() == 0);
    CHECK(buffer.bytes() == 0);
    CHECK(buffer.data() == nullptr);
  }
  CHECK(required(cuda::PinnedBuffer<float>::create(0)).span().empty());
  check_error(cuda::DeviceBuffer<float>::create(-1), Errc::invalid_argument, "cuda::DeviceBuffer::create", "expected a count of 0 or more, found -1");
  check_error(cuda::PinnedBuffer<float>::create(-7), Errc::invalid_argument, "cuda::PinnedBuffer::create", "expected a count of 0 or more, found -7");
  // 4 x 2^63 bytes do not fit a size, 4 x 2^45 no device.
  check_error(cuda::DeviceBuffer<float>::create(kMostElements), Errc::out_of_memory, "cuda::DeviceBuffer::create", "more than any device holds");
  check_error(cuda::DeviceBuffer<float>::create(std::int64_t{1} << 45), Errc::out_of_memory, "cuda::DeviceBuffer::create",
              "not enough free memory, expected 140737488355328 bytes");
  CHECK(required(cuda::DeviceBuffer<double>::create(33)).bytes() == 33 * sizeof(double));  // and the next request is none the worse for it
}

TEST_CASE("buffers: moved, the elements have one owner") {
  if (!has_device()) return;
  auto first = required(cuda::DeviceBuffer<int>::create(31));
  int* const elements = first.data();
  CHECK(reinterpret_cast<std::uintptr_t>(elements) % 256 == 0);
  cuda::DeviceBuffer<int> second(std::move(first));
  CHECK(first.empty());  // NOLINT(bugprone-use-after-move): what is left is specified
  CHECK(first.data() == nullptr);
  CHECK(second.data() == elements);
  CHECK(second.size() == 31);
  auto third = required(cuda::DeviceBuffer<int>::create(32));
  third = std::move(second);
  CHECK(second.empty());  // NOLINT(bugprone-use-after-move)
  CHECK(third.data() == elements);
  CHECK(third.size() == 31);
  third = {};
  CHECK(third.empty());
}

TEST_CASE("copies and fills are done in the order of the calls") {
  if (!has_device()) return;
  constexpr int kCount = 1000;
  const auto stream = required(cuda::Stream::create());
  auto elements = required(cuda::DeviceBuffer<int>::create(kCount));
  auto others = required(cuda::DeviceBuffer<int>::create(kCount));
  auto host = required(cuda::PinnedBuffer<int>::create(kCount));
  std::iota(host.span().begin(), host.span().end(), 5);
  check_ok(cuda::fill_async(stream, elements.data(), 0x11, kCount));
  check_ok(cuda::copy_async(stream, elements.data(), host.data(), kCount - 1));  // the last one keeps the fill
  check_ok(cuda::copy_async(stream, others.data(), elements.data(), kCount));
  check_ok(cuda::fill_async(stream, elements.data(), 0xff, kCount));
  check_ok(cuda::copy_async(stream, host.data(), others.data(), kCount));
  check_ok(stream.synchronize());
  std::vector<int> want(kCount);
  std::iota(want.begin(), want.end(), 5);
  want.back() = 0x11111111;
  CHECK(std::vector<int>(host.span().begin(), host.span().end()) == want);
  CHECK(read(stream, elements) == std::vector<int>(kCount, -1));
  check_ok(cuda::copy_async<int>(stream, nullptr, nullptr, 0));
  check_ok(cuda::fill_async<int>(stream, nullptr, 0, 0));
}

TEST_CASE("streams: kernels of one run in order, a moved stream is the same queue") {
  if (!has_device()) return;
  auto stream = required(cuda::Stream::create());
  const cuda::StreamRef ref = stream;
  CHECK(ref.handle != nullptr);
  auto elements = required(cuda::DeviceBuffer<int>::create(300));
  check_ok(cuda::fill_async(stream, elements.data(), 0, elements.size()));
  check_ok(step(stream, elements, 1));
  const cuda::Stream moved(std::move(stream));
  CHECK(moved.ref().handle == ref.handle);
  CHECK(stream.ref().handle == nullptr);  // NOLINT(bugprone-use-after-move): the default stream, as documented
  check_ok(step(moved, elements, 3));
  const auto got = read(moved, elements);
  bool right = true;
  for (int i = 0; i < 300; ++i) right = right && got[static_cast<std::size_t>(i)] == 3 * i + i;
  CHECK(right);
}

TEST_CASE("events: time goes forward, another stream waits") {
  if (!has_device()) return;
  const auto first = required(cuda::Stream::create());
  const auto second = required(cuda::Stream::create());
  auto before = required(cuda::Event::create());
  auto after = required(cuda::Event::create());
  CHECK(!after.ms_since(before).ok());  // neither was recorded
  auto elements = required(cuda::DeviceBuffer<int>::create(std::int64_t{1} << 16));
  check_ok(cuda::fill_async(first, elements.data(), 0, elements.size()));
  check_ok(before.record(first));
  check_ok(step(first, elements, 1));
  check_ok(after.record(first));
  check_ok(after.hold(second));
  check_ok(step(second, elements, 2));
  const auto got = read(second, elements);
  bool right = true;
  for (std::size_t i = 0; i < got.size(); ++i) right = right && got[i] == static_cast<int>(3 * i);
  CHECK(right);
  check_ok(after.synchronize());
  const auto ms = after.ms_since(before);
  REQUIRE_MESSAGE(ms.ok(), ms.message());
  CHECK(*ms >= 0.0f);
  CHECK(*ms < 60000.0f);
}

TEST_CASE("graphs: nothing runs while recording, each launch runs everything") {
  if (!has_device()) return;
  const auto stream = required(cuda::Stream::create());
  auto elements = required(cuda::DeviceBuffer<int>::create(33));
  check_ok(cuda::fill_async(stream, elements.data(), 0, elements.size()));
  const auto graph = required(cuda::Graph::capture(stream, [&]() -> Status {
    NORMA_CHECK(step(stream, elements, 1));
    return step(stream, elements, 2);
  }));
  CHECK(read(stream, elements) == std::vector<int>(33, 0));
  std::vector<int> want(33, 0);
  for (int launches = 0; launches < 3; ++launches) {
    check_ok(graph.launch(stream));
    for (int i = 0; i < 33; ++i) want[static_cast<std::size_t>(i)] = 2 * (want[static_cast<std::size_t>(i)] + i) + i;
  }
  CHECK(read(stream, elements) == want);
  const auto other = required(cuda::Stream::create());  // recorded on one stream, launched on another
  check_ok(graph.launch(other));
  for (int i = 0; i < 33; ++i) want[static_cast<std::size_t>(i)] = 2 * (want[static_cast<std::size_t>(i)] + i) + i;
  CHECK(read(other, elements) == want);
  const auto empty = required(cuda::Graph::capture(stream, [] { return Status(); }));
  check_ok(empty.launch(stream));
  CHECK(read(stream, elements) == want);
}

TEST_CASE("graphs: what cannot be recorded is an error, and the stream works afterwards") {
  if (!has_device()) return;
  const std::string who = "cuda::Graph::capture";
  const auto stream = required(cuda::Stream::create());
  auto elements = required(cuda::DeviceBuffer<int>::create(33));
  check_ok(cuda::fill_async(stream, elements.data(), 0, elements.size()));

  check_error(cuda::Graph::capture({}, [] { return Status(); }), Errc::invalid_argument, who, "the default stream cannot be captured");
  check_error(cuda::Graph::capture(stream, [] { return Status(Errc::shape_mismatch, "mine: wrong"); }), Errc::shape_mismatch, "mine", "wrong");
  check_error(cuda::Graph::capture(stream, [] { return cuda::DeviceBuffer<float>::create(4).status(); }), Errc::invalid_argument,
              "cuda::DeviceBuffer::create", "not possible while a stream is captured");
  check_error(cuda::Graph::capture(stream, [&] { return stream.synchronize(); }), Errc::invalid_argument, "cuda::Stream::synchronize",
              "not possible while a stream is captured");
  check_error(cuda::Graph::capture(stream,
                                   [&] {
                                     (void)stream.synchronize();  // whoever swallows the error gets it from the capture
                                     return Status();
                                   }),
              Errc::invalid_argument, who, "not possible while a stream is captured");
  check_error(cuda::Graph::capture(stream, [&] { return cuda::Graph::capture(stream, [] { return Status(); }).status(); }), Errc::invalid_argument, who,
              "not possible while a stream is captured");
#if NORMA_HAS_EXCEPTIONS
  CHECK_THROWS_AS((void)cuda::Graph::capture(stream, [&]() -> Status { throw 1; }), int);
#endif

  const auto graph = required(cuda::Graph::capture(stream, [&] { return step(stream, elements, 1); }));
  check_ok(graph.launch(stream));
  std::vector<int> want(33);
  std::iota(want.begin(), want.end(), 0);
  CHECK(read(stream, elements) == want);
}

TEST_CASE("launches: too many blocks, too much shared memory, none at all") {
  if (!has_device()) return;
  const auto stream = required(cuda::Stream::create());
  auto elements = required(cuda::DeviceBuffer<int>::create(33));
  check_ok(cuda::fill_async(stream, elements.data(), 0, elements.size()));
  const auto launch = [&](const cuda::detail::LaunchShape& shape) {
    return cuda::detail::launch("cuda::some_op", stream, shape, runtime_step_kernel<int>, elements.data(), elements.size(), 1);
  };
  const std::string many = "the problem is too large for one launch, expected at most 2147483647 x 65535 x 65535 blocks, found ";
  check_error(launch({.blocks_x = std::int64_t{1} << 31, .threads = 32}), Errc::invalid_argument, "cuda::some_op", many + "2147483648 x 1 x 1");
  check_error(launch({.blocks_y = 65536, .threads = 32}), Errc::invalid_argument, "cuda::some_op", many + "1 x 65536 x 1");
  check_error(launch({.blocks_z = 65536, .threads = 32}), Errc::invalid_argument, "cuda::some_op", many + "1 x 1 x 65536");
  check_error(launch({.threads = 32, .shared_bytes = std::size_t{1} << 20}), Errc::invalid_argument, "cuda::some_op",
              "the problem is too large for this device, expected at most ");
  CHECK(!launch({.threads = 2048}).ok());
  check_ok(launch({.blocks_x = 0, .threads = 32}));
  CHECK(read(stream, elements) == std::vector<int>(33, 0));  // none of these ran, and none of the errors stays
  const std::size_t most = required(cuda::device_info()).shared_bytes_per_block;
  check_ok(launch({.threads = 32, .shared_bytes = most}));
  std::vector<int> want(33);
  std::iota(want.begin(), want.end(), 0);
  CHECK(read(stream, elements) == want);
}

TEST_CASE("the device says what it is") {
  if (!has_device()) return;
  CHECK(cuda::device_count() >= 1);
  const auto info = required(cuda::device_info());
  CHECK(!info.name.empty());
  CHECK(info.arch >= 50);
  CHECK(info.multiprocessors >= 1);
  CHECK(info.shared_bytes_per_block >= 48 * 1024);
  CHECK(info.memory_bytes > 0);
  const auto arch = cuda::detail::kernel_arch("cuda::some_op", runtime_step_kernel<int>);
  REQUIRE_MESSAGE(arch.ok(), arch.message());
  CHECK(*arch <= info.arch);  // what was compiled is at most what the device is
}

}  // namespace norma::test
