/// \file
/// The names of kernels/norma/cuda/detail/simt.cuh for a host compiler: kernels run thread by thread, so that what ships is what is tested where there
/// is no GPU. It also finds what a GPU keeps to itself: shared memory read before it is written, out of bounds or misaligned; accesses that race; barriers and warp
/// operations that not everybody reaches; writes beyond an allocation; allocation or waiting while a stream is captured.
///
/// It cannot show: timing, memory order between blocks (they run one after the other, so a block must not wait for another), reads of global memory out of bounds
/// (the `sanitize` preset does), host pointers handed to a kernel, rounding of instructions that differ from the host's (approximate division, the order of sums inside a
/// tensor-core product), register use.
///
/// A fault ends the kernel, and `launch` returns it as its Status. NORMA_EMULATION_ABORT=1 aborts at the fault, for a debugger.
#pragma once

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <norma/cuda/detail/simt.cuh>
#include <norma/io/dtype.hpp>

#include <support/simt/block.hpp>

namespace norma::test {

/// What the emulated machine is like, and what happened on it. Tests may change the first part.
struct EmulatedDevice {
  bool driver_present = true;
  int arch = 80;  ///< of the device; the kernels are "compiled" for 80 and refuse less
  int multiprocessors = 4;
  std::size_t memory_bytes = std::size_t{8} << 30;
  std::size_t shared_bytes_per_block = 163 * 1024;

  std::int64_t launches = 0;     ///< kernels run, those inside graphs included
  std::int64_t allocations = 0;  ///< calls of allocate
  std::int64_t waits = 0;        ///< calls that wait for the device
  std::size_t bytes_in_use = 0;
};

namespace detail {

struct Graph {
  std::vector<std::function<Status()>> calls;
  bool broken = false;
};
struct Stream {
  std::shared_ptr<Graph> capture;
  bool origin = false;    // the stream that began the capture
  bool unjoined = false;  // has captured work that the origin does not wait for
};
struct Event {
  std::chrono::steady_clock::time_point when;
  bool recorded = false;
  std::shared_ptr<Graph> capture;
  Stream* from = nullptr;
};

/// All state of the emulated machine. One kernel runs at a time; calls may come from several threads.
struct Machine {
  static constexpr std::size_t kGuard = 256;  // bytes before and after each allocation
  static constexpr unsigned char kGuardByte = 0xa5;
  std::recursive_mutex mutex;
  EmulatedDevice device;
  Block block;
  std::map<unsigned char*, std::size_t> allocations;  // by the address that the caller has
  std::vector<Stream*> streams;
  int captures = 0;
  bool odd_launch = false;

  static Machine& get() {
    static Machine machine;
    return machine;
  }

  [[nodiscard]] Status usable(std::string_view who) const {
    if (device.driver_present) return {};
    return {Errc::not_found, std::string(who) + ": no usable CUDA driver, expected NVIDIA's driver for CUDA 13 or newer"};
  }
  [[nodiscard]] Status not_capturing(std::string_view who) {
    if (captures == 0) return {};
    for (Stream* stream : streams) {
      if (stream->capture) stream->capture->broken = true;
    }
    return {Errc::invalid_argument, std::string(who) + ": not possible while a stream is captured (operation not permitted)"};
  }

  Status run(std::string_view who, const cuda::detail::LaunchShape& shape, const std::function<void()>& kernel) {
    ++device.launches;
    odd_launch = !odd_launch;
    for (std::int64_t z = 0; z < shape.blocks_z; ++z) {
      for (std::int64_t y = 0; y < shape.blocks_y; ++y) {
        for (std::int64_t x = 0; x < shape.blocks_x; ++x) {
          const BlockPlace place{x, y, z, shape.blocks_x, shape.blocks_y, shape.blocks_z};
          // Warps in both orders: a missing barrier shows in one of them.
          const std::string fault = block.run(kernel, place, shape.threads, shape.shared_bytes, ((x + y + z) % 2 != 0) != odd_launch);
          if (!fault.empty()) return {Errc::mismatch, std::string(who) + ": emulation: " + fault};
        }
      }
    }
    return guards_hold(who);
  }
  [[nodiscard]] Status guards_hold(std::string_view who) const {
    for (const auto& [data, bytes] : allocations) {
      for (std::size_t i = 0; i < kGuard; ++i) {
        if (data[bytes + i] != kGuardByte) {
          return {Errc::mismatch, std::string(who) + ": emulation: write " + std::to_string(i) + " bytes behind an allocation of " + std::to_string(bytes)};
        }
        if (data[-1 - static_cast<std::ptrdiff_t>(i)] != kGuardByte) {
          return {Errc::mismatch, std::string(who) + ": emulation: write " + std::to_string(i + 1) + " bytes before an allocation of " + std::to_string(bytes)};
        }
      }
    }
    return {};
  }

  /// Runs now, or keeps for the graph that `stream` is captured into.
  Status enqueue(cuda::StreamRef stream, std::function<Status()> call) {
    auto* s = static_cast<Stream*>(stream.handle);
    if (s == nullptr || !s->capture) return call();
    s->unjoined = !s->origin;
    s->capture->calls.push_back(std::move(call));
    return {};
  }
};

}  // namespace detail

/// The emulated machine, for tests that change it; put it back with `= EmulatedDevice{}`'s fields or EmulatedScope.
inline EmulatedDevice& emulated() { return detail::Machine::get().device; }

/// Restores what the machine is like at the end of a test.
class EmulatedScope {
 public:
  EmulatedScope() : before_(emulated()) {}
  EmulatedScope(const EmulatedScope&) = delete;
  EmulatedScope& operator=(const EmulatedScope&) = delete;
  ~EmulatedScope() {
    EmulatedDevice& device = emulated();
    device.driver_present = before_.driver_present;
    device.arch = before_.arch;
    device.multiprocessors = before_.multiprocessors;
    device.memory_bytes = before_.memory_bytes;
    device.shared_bytes_per_block = before_.shared_bytes_per_block;
  }

 private:
  EmulatedDevice before_;
};

}  // namespace norma::test

// -------------------------------------------------------------------------------------------------------------------- inside kernels
namespace norma::cuda::simt {

using test::Where;

constexpr int pass_arch() noexcept { return 80; }

inline test::Block& emulated_block() { return test::Block::current(); }

inline int thread_index() { return emulated_block().thread(); }
inline int block_threads() { return emulated_block().threads(); }
inline int lane_index() { return thread_index() % kWarp; }
inline int warp_index() { return thread_index() / kWarp; }
inline std::int64_t block_x() { return emulated_block().place().x; }
inline std::int64_t block_y() { return emulated_block().place().y; }
inline std::int64_t block_z() { return emulated_block().place().z; }
inline std::int64_t blocks_x() { return emulated_block().place().blocks_x; }
inline std::int64_t blocks_y() { return emulated_block().place().blocks_y; }
inline std::int64_t blocks_z() { return emulated_block().place().blocks_z; }

inline void block_barrier(Where where = Where::here()) { emulated_block().barrier(0, 0, where); }
inline void named_barrier(int id, int threads, Where where = Where::here()) {
  if (id < 1 || id > 15 || threads % kWarp != 0 || threads <= 0) emulated_block().fail("named_barrier: expected id 1 to 15 and whole warps");
  emulated_block().barrier(id, threads, where);
}
inline void warp_barrier(Where where = Where::here()) {
  emulated_block().meet("warp_barrier", nullptr, [](test::Block& block, int warp) { block.next_warp_moment(warp); }, where);
}
inline void memory_fence() {}

namespace detail {
/// Every lane hands in `value`; lane l gets that of `source_of(l)`.
template <class T, class SourceOf>
T exchange(const char* operation, T value, SourceOf source_of, Where where) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  struct Slot {
    T in, out;
    int source;
  } slot{value, value, source_of(lane_index())};
  emulated_block().meet(
      operation, &slot,
      [](test::Block& block, int warp) {
        const auto at = [&](int lane) { return static_cast<Slot*>(block.data_of(warp * kWarp + lane)); };
        for (int lane = 0; lane < kWarp; ++lane) at(lane)->out = at(at(lane)->source)->in;
      },
      where);
  return slot.out;
}
}  // namespace detail

template <class T>
T warp_shuffle(T v, int lane, Where where = Where::here()) {
  return detail::exchange("warp_shuffle", v, [&](int) { return lane & (kWarp - 1); }, where);
}
template <class T>
T warp_shuffle_xor(T v, int mask, Where where = Where::here()) {
  return detail::exchange("warp_shuffle_xor", v, [&](int lane) { return (lane ^ mask) & (kWarp - 1); }, where);
}
template <class T>
T warp_shuffle_down(T v, int n, Where where = Where::here()) {
  return detail::exchange("warp_shuffle_down", v, [&](int lane) { return lane + n < kWarp ? lane + n : lane; }, where);
}
inline unsigned warp_ballot(bool b, Where where = Where::here()) {
  struct Slot {
    bool in;
    unsigned out;
  } slot{b, 0};
  emulated_block().meet(
      "warp_ballot", &slot,
      [](test::Block& block, int warp) {
        const auto at = [&](int lane) { return static_cast<Slot*>(block.data_of(warp * kWarp + lane)); };
        unsigned bits = 0;
        for (int lane = 0; lane < kWarp; ++lane) bits |= at(lane)->in ? 1u << lane : 0u;
        for (int lane = 0; lane < kWarp; ++lane) at(lane)->out = bits;
      },
      where);
  return slot.out;
}
inline bool warp_any(bool b, Where where = Where::here()) { return warp_ballot(b, where) != 0; }
inline bool warp_all(bool b, Where where = Where::here()) { return warp_ballot(b, where) == 0xffffffffu; }

namespace detail {
inline void require_aligned(const char* what, const void* p, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(p) % bytes != 0) emulated_block().fail(std::string(what) + ": the address is not a multiple of " + std::to_string(bytes));
}
}  // namespace detail

template <int N, class T>
Vec<std::remove_const_t<T>, N> load(T* p) {
  detail::require_aligned("load", p, sizeof(T) * N);
  Vec<std::remove_const_t<T>, N> v;
  std::memcpy(static_cast<void*>(&v), p, sizeof(v));  // T may have a default member
  return v;
}
template <int N, class T>
void store(T* p, const Vec<T, N>& v) {
  detail::require_aligned("store", p, sizeof(T) * N);
  std::memcpy(static_cast<void*>(p), &v, sizeof(v));
}

/// Bounds, initialisation and races are checked at every access.
template <class T>
class Shared {
  static_assert(sizeof(T) >= 2 && std::is_trivially_copyable_v<T>);

 public:
  /// A place; becomes a value when read.
  class Element {
   public:
    Element(const Shared& array, int i) : array_(array), i_(i) {}
    Element(const Element&) = default;
    operator T() const { return array_.read(i_); }  // NOLINT(google-explicit-constructor): as a T& would
    const Element& operator=(const T& v) const {
      array_.write(i_, v);
      return *this;
    }
    const Element& operator=(const Element& other) const { return *this = static_cast<T>(other); }
    template <class U>
    const Element& operator+=(U v) const { return *this = static_cast<T>(static_cast<T>(*this) + v); }
    template <class U>
    const Element& operator-=(U v) const { return *this = static_cast<T>(static_cast<T>(*this) - v); }
    template <class U>
    const Element& operator*=(U v) const { return *this = static_cast<T>(static_cast<T>(*this) * v); }

   private:
    Shared array_;
    int i_;
  };

  Shared(int byte_offset, int count) : byte_offset_(byte_offset), first_(0), count_(count) {}

  Element operator[](int i) const { return Element(*this, i); }
  Shared operator+(int n) const {
    Shared later = *this;
    later.first_ += n;
    return later;
  }
  template <int N>
  Vec<T, N> load(int i) const {
    Vec<T, N> v;
    block().require(block().shared().read(place(i, N), sizeof(v), &v, block().thread(), block().moment()));
    return v;
  }
  template <int N>
  void store(int i, const Vec<T, N>& v) const {
    block().require(block().shared().write(place(i, N), sizeof(v), &v, block().thread(), block().moment()));
  }
  /// Byte offset of elements i .. i + n - 1, which must be inside the array and aligned to their size.
  [[nodiscard]] std::size_t place(int i, int n) const {
    const int at = first_ + i;
    if (at < 0 || at + n > count_) {
      block().fail("elements " + std::to_string(at) + " to " + std::to_string(at + n) + " of a shared array of " + std::to_string(count_) + " at byte " +
                   std::to_string(byte_offset_));
    }
    const std::size_t offset = static_cast<std::size_t>(byte_offset_) + static_cast<std::size_t>(at) * sizeof(T);
    if (offset % (sizeof(T) * static_cast<std::size_t>(n)) != 0) {
      block().fail("shared byte " + std::to_string(offset) + ": " + std::to_string(n) + " elements at once need an address that is a multiple of " +
                   std::to_string(sizeof(T) * static_cast<std::size_t>(n)));
    }
    return offset;
  }

 private:
  static test::Block& block() { return emulated_block(); }
  [[nodiscard]] T read(int i) const {
    T v;
    block().require(block().shared().read(place(i, 1), sizeof(T), &v, block().thread(), block().moment()));
    return v;
  }
  void write(int i, const T& v) const { block().require(block().shared().write(place(i, 1), sizeof(T), &v, block().thread(), block().moment())); }

  int byte_offset_;
  int first_;
  int count_;
};

template <class T>
Shared<T> shared_array(int byte_offset, int count) {
  test::Block& block = emulated_block();
  if (byte_offset < 0 || byte_offset % static_cast<int>(alignof(T)) != 0 || count < 0 ||
      static_cast<std::size_t>(byte_offset) + static_cast<std::size_t>(count) * sizeof(T) > block.shared().size()) {
    block.fail("shared_array: " + std::to_string(count) + " elements of " + std::to_string(sizeof(T)) + " bytes at byte " + std::to_string(byte_offset) +
               ", the launch asked for " + std::to_string(block.shared().size()) + " bytes");
  }
  return Shared<T>(byte_offset, count);
}

template <int Bytes, class T>
void copy_async(Shared<T> to, int i, const void* from, bool valid) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  static_assert(Bytes % sizeof(T) == 0);
  test::Block& block = emulated_block();
  const std::size_t offset = to.place(i, Bytes / static_cast<int>(sizeof(T)));
  if (valid) detail::require_aligned("copy_async", from, Bytes);
  block.require(block.shared().begin_copy(offset, Bytes, block.thread(), block.moment()));
  block.copies().push_back({offset, Bytes, valid ? from : nullptr, block.committed()});
}
inline void copy_async_commit() { ++emulated_block().committed(); }
template <int N>
void copy_async_wait() { emulated_block().finish_copies(N); }

namespace detail {
template <class T>
void load_matrices(unsigned (&r)[4], Shared<T> s, int i, bool transposed, Where where) {
  struct Slot {
    std::uint16_t row[8];
    unsigned* out;
  } slot{};
  const auto row = s.template load<16 / static_cast<int>(sizeof(T))>(i);
  std::memcpy(slot.row, &row, sizeof(row));
  slot.out = r;
  const auto deal = [transposed](test::Block& block, int warp) {
    const auto at = [&](int lane) { return static_cast<Slot*>(block.data_of(warp * kWarp + lane)); };
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int j = 0; j < 4; ++j) {
        std::uint16_t element[2];
        for (int e = 0; e < 2; ++e) {
          const int along = lane / 4, across = 2 * (lane % 4) + e;
          element[e] = transposed ? at(8 * j + across)->row[along] : at(8 * j + along)->row[across];
        }
        at(lane)->out[j] = static_cast<unsigned>(element[0]) | static_cast<unsigned>(element[1]) << 16;
      }
    }
  };
  emulated_block().meet(transposed ? "load_matrix_x4_transposed" : "load_matrix_x4", &slot, deal, where);
}
}  // namespace detail

template <class T>
void load_matrix_x4(unsigned (&r)[4], Shared<T> s, int i, Where where = Where::here()) {
  detail::load_matrices(r, s, i, false, where);
}
template <class T>
void load_matrix_x4_transposed(unsigned (&r)[4], Shared<T> s, int i, Where where = Where::here()) {
  static_assert(sizeof(T) == 2);
  detail::load_matrices(r, s, i, true, where);
}

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) { return io::float_from_bfloat16(x.bits); }
inline float to_float(Half x) { return io::float_from_half(x.bits); }
template <class T>
T from_float(float x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return BFloat16{io::bfloat16_from_float(x)};
  } else if constexpr (std::is_same_v<T, Half>) {
    return Half{io::half_from_float(x)};
  } else {
    static_assert(std::is_same_v<T, float>);
    return x;
  }
}
template <class T>
unsigned pack(float lo, float hi) {
  return static_cast<unsigned>(from_float<T>(lo).bits) | static_cast<unsigned>(from_float<T>(hi).bits) << 16;
}
inline unsigned float_bits(float x) { return std::bit_cast<unsigned>(x); }
inline float float_from_bits(unsigned bits) { return std::bit_cast<float>(bits); }
inline float reciprocal_root(float x) { return 1.0f / std::sqrt(x); }
/// To nearest, ties away from zero: cvt.rna.
inline unsigned round_tf32(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & 0xffffe000u;
}

template <class Element>
void warp_mma(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], Where where = Where::here()) {
  struct Slot {
    float* c;
    const unsigned* a;
    const unsigned* b;
  } slot{c, a, b};
  emulated_block().meet(
      "warp_mma", &slot,
      [](test::Block& block, int warp) {
        constexpr bool kTf32 = std::is_same_v<Element, Tf32>;
        constexpr int kPer = kTf32 ? 1 : 2;  // elements of a register
        constexpr int kDepth = 8 * kPer;
        const auto at = [&](int lane) { return static_cast<Slot*>(block.data_of(warp * kWarp + lane)); };
        const auto element = [](unsigned bits, int e) -> double {
          if constexpr (kTf32) {
            return static_cast<double>(std::bit_cast<float>(bits & 0xffffe000u));  // the unit ignores the last 13 bits
          } else {
            return static_cast<double>(to_float(Element{static_cast<std::uint16_t>(e == 0 ? bits & 0xffffu : bits >> 16)}));
          }
        };
        double am[16][kDepth], bm[kDepth][8];
        for (int lane = 0; lane < kWarp; ++lane) {
          const int g = lane / 4, t = lane % 4;
          for (int e = 0; e < kPer; ++e) {
            const int low = kPer * t + e, high = low + 4 * kPer;
            am[g][low] = element(at(lane)->a[0], e);
            am[g + 8][low] = element(at(lane)->a[1], e);
            am[g][high] = element(at(lane)->a[2], e);
            am[g + 8][high] = element(at(lane)->a[3], e);
            bm[low][g] = element(at(lane)->b[0], e);
            bm[high][g] = element(at(lane)->b[1], e);
          }
        }
        for (int lane = 0; lane < kWarp; ++lane) {
          for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + (i >= 2 ? 8 : 0), col = 2 * (lane % 4) + i % 2;
            double sum = static_cast<double>(at(lane)->c[i]);
            for (int k = 0; k < kDepth; ++k) sum += am[row][k] * bm[k][col];
            at(lane)->c[i] = static_cast<float>(sum);
          }
        }
      },
      where);
}

template <class T>
T atomic_add(T* p, T v) {
  const T before = *p;
  *p = static_cast<T>(before + v);
  return before;
}
template <class T>
T atomic_min(T* p, T v) {
  const T before = *p;
  *p = std::min(before, v);
  return before;
}
template <class T>
T atomic_max(T* p, T v) {
  const T before = *p;
  *p = std::max(before, v);
  return before;
}

}  // namespace norma::cuda::simt

// ------------------------------------------------------------------------------------------------------------------- launchers' calls
namespace norma::cuda::detail {

using EmulatedMachine = norma::test::detail::Machine;

template <class... Parameters>
Result<int> kernel_arch(std::string_view who, void (* /*kernel*/)(Parameters...)) {
  EmulatedMachine& machine = EmulatedMachine::get();
  NORMA_CHECK(machine.usable(who));
  if (machine.device.arch < 80) {
    return Status(Errc::unsupported, std::string(who) + ": no kernel was compiled for this device, expected CMAKE_CUDA_ARCHITECTURES with " +
                                         std::to_string(machine.device.arch));
  }
  return simt::pass_arch();
}

template <class... Parameters, class... Arguments>
Status launch(std::string_view who, StreamRef stream, const LaunchShape& shape, void (*kernel)(Parameters...), Arguments&&... arguments) {
  NORMA_CHECK(check_shape(who, shape));
  if (shape.blocks_x == 0 || shape.blocks_y == 0 || shape.blocks_z == 0) return {};
  EmulatedMachine& machine = EmulatedMachine::get();
  const std::lock_guard lock(machine.mutex);
  NORMA_TRY(const int arch, kernel_arch(who, kernel));
  (void)arch;
  if (shape.shared_bytes > machine.device.shared_bytes_per_block) {
    return {Errc::invalid_argument, std::string(who) + ": the problem is too large for this device, expected at most " +
                                        std::to_string(machine.device.shared_bytes_per_block) + " bytes of shared memory a block, found " +
                                        std::to_string(shape.shared_bytes)};
  }
  if (shape.threads < 1 || shape.threads > 1024) return {Errc::io_error, std::string(who) + ": invalid configuration argument (cudaErrorInvalidConfiguration)"};
  std::tuple<Parameters...> held(static_cast<Parameters>(std::forward<Arguments>(arguments))...);
  return machine.enqueue(stream, [name = std::string(who), shape, kernel, held] {
    return EmulatedMachine::get().run(name, shape, [&] { std::apply(kernel, held); });
  });
}

inline Status copy_async(std::string_view who, void* to, const void* from, std::size_t bytes, StreamRef stream) {
  if (bytes == 0) return {};
  EmulatedMachine& machine = EmulatedMachine::get();
  const std::lock_guard lock(machine.mutex);
  NORMA_CHECK(machine.usable(who));
  return machine.enqueue(stream, [to, from, bytes] {
    std::memmove(to, from, bytes);
    return Status();
  });
}
inline Status fill_async(std::string_view who, void* to, int byte, std::size_t bytes, StreamRef stream) {
  if (bytes == 0) return {};
  EmulatedMachine& machine = EmulatedMachine::get();
  const std::lock_guard lock(machine.mutex);
  NORMA_CHECK(machine.usable(who));
  return machine.enqueue(stream, [to, byte, bytes] {
    std::memset(to, byte, bytes);
    return Status();
  });
}

inline Result<void*> allocate(std::string_view who, std::size_t bytes) {
  EmulatedMachine& machine = EmulatedMachine::get();
  const std::lock_guard lock(machine.mutex);
  NORMA_CHECK(machine.usable(who));
  NORMA_CHECK(machine.not_capturing(who));
  ++machine.device.allocations;
  if (bytes == 0) return static_cast<void*>(nullptr);
  if (bytes > machine.device.memory_bytes || machine.device.bytes_in_use > machine.device.memory_bytes - bytes) {
    return Status(Errc::out_of_memory, std::string(who) + ": the device has not enough free memory, expected " + std::to_string(bytes) + " bytes");
  }
  constexpr std::size_t kGuard = EmulatedMachine::kGuard;
  auto* const base = static_cast<unsigned char*>(::operator new(bytes + 2 * kGuard, std::align_val_t{kGuard}));
  std::memset(base, EmulatedMachine::kGuardByte, bytes + 2 * kGuard);
  std::memset(base + kGuard, 0xff, bytes);  // NaN, -1: nothing that looks like a result
  machine.allocations.emplace(base + kGuard, bytes);
  machine.device.bytes_in_use += bytes;
  return static_cast<void*>(base + kGuard);
}
inline void release(void* p) noexcept {
  if (p == nullptr) return;
  EmulatedMachine& machine = EmulatedMachine::get();
  const std::lock_guard lock(machine.mutex);
  const auto found = machine.allocations.find(static_cast<unsigned char*>(p));
  if (found == machine.allocations.end()) std::abort();  // released twice, or never allocated
  machine.device.bytes_in_use -= found->second;
  machine.allocations.erase(found);
  ::operator delete(static_cast<unsigned char*>(p) - EmulatedMachine::kGuard, std::align_val_t{EmulatedMachine::kGuard});
}
inline Result<void*> allocate_pinned(std::string_view who, std::size_t bytes) {
  EmulatedMachine& machine = EmulatedMachine::get();
  const std::lock_guard lock(machine.mutex);
  NORMA_CHECK(machine.usable(who));
  NORMA_CHECK(machine.not_capturing(who));
  if (bytes == 0) return static_cast<void*>(nullptr);
  return ::operator new(bytes, std::align_val_t{256});
}
inline void release_pinned(void* p) noexcept { ::operator delete(p, std::align_val_t{256}); }

inline Result<void*> create_stream(std::string_view who) {
  EmulatedMachine& machine = EmulatedMachine::get();
  const std::lock_guard lock(machine.mutex);
  NORMA_CHECK(machine.usable(who));
  auto* const stream = new norma::test::detail::Stream;
  machine.streams.push_back(stream);
  return static_cast<void*>(stream);
}
inline void destroy_stream(void* stream) noexcept {
  EmulatedMachine& machine = EmulatedMachine::get();
  const std::lock_guard lock(machine.mutex);
  std::erase(machine.streams, static_cast<norma::test::detail::Stream*>(stream));
  delete static_cast<norma::test::detail::Stream*>(stream);
}
inline Status synchronize(std::string_view who, StreamRef /*stream*/) {
  EmulatedMachine& machine = EmulatedMachine::get();
  const std::lock_guard lock(machine.mutex);
  NORMA_CHECK(machine.usable(who));
  ++machine.device.waits;
  return machine.not_capturing(who);
}

inline Status synchronize_device(std::string_view who) { return synchronize(who, {}); }

inline Result<void*> create_event(std::string_view who) {
  NORMA_CHECK(EmulatedMachine::get().usable(who));
  return static_cast<void*>(new norma::test::detail::Event);
}
inline void destroy_event(void* event) noexcept { delete static_cast<norma::test::detail::Event*>(event); }
inline Status record_event(std::string_view who, void* event, StreamRef stream) {
  EmulatedMachine& machine = EmulatedMachine::get();
  const std::lock_guard lock(machine.mutex);
  NORMA_CHECK(machine.usable(who));
  auto& e = *static_cast<norma::test::detail::Event*>(event);
  auto* const s = static_cast<norma::test::detail::Stream*>(stream.handle);
  e.capture = s != nullptr ? s->capture : nullptr;
  e.from = s;
  e.recorded = true;
  e.when = std::chrono::steady_clock::now();
  return {};
}
inline Status wait_event(std::string_view who, StreamRef stream, void* event) {
  EmulatedMachine& machine = EmulatedMachine::get();
  const std::lock_guard lock(machine.mutex);
  NORMA_CHECK(machine.usable(who));
  auto& e = *static_cast<norma::test::detail::Event*>(event);
  auto* const s = static_cast<norma::test::detail::Stream*>(stream.handle);
  if (!e.capture) return {};  // emulated work is done when its call returns
  if (s == nullptr) return {Errc::invalid_argument, std::string(who) + ": not possible while a stream is captured (the default stream cannot join)"};
  if (!s->capture) {
    s->capture = e.capture;
    s->origin = false;
    s->unjoined = true;
  }
  if (s->origin && e.from != nullptr) e.from->unjoined = false;
  return {};
}
inline Status synchronize_event(std::string_view who, void* /*event*/) { return synchronize(who, {}); }
inline Result<float> elapsed_ms(std::string_view who, void* from, void* to) {
  const auto& a = *static_cast<norma::test::detail::Event*>(from);
  const auto& b = *static_cast<norma::test::detail::Event*>(to);
  if (!a.recorded || !b.recorded) return Status(Errc::io_error, std::string(who) + ": invalid resource handle (cudaErrorInvalidResourceHandle)");
  return std::chrono::duration<float, std::milli>(b.when - a.when).count();
}

inline Status begin_capture(std::string_view who, StreamRef stream) {
  EmulatedMachine& machine = EmulatedMachine::get();
  const std::lock_guard lock(machine.mutex);
  NORMA_CHECK(machine.usable(who));
  auto* const s = static_cast<norma::test::detail::Stream*>(stream.handle);
  if (s == nullptr || s->capture) {
    return {Errc::invalid_argument, std::string(who) + ": not possible while a stream is captured (the default stream, or captured already)"};
  }
  s->capture = std::make_shared<norma::test::detail::Graph>();
  s->origin = true;
  ++machine.captures;
  return {};
}
inline Result<void*> end_capture(std::string_view who, StreamRef stream) {
  EmulatedMachine& machine = EmulatedMachine::get();
  const std::lock_guard lock(machine.mutex);
  auto* const s = static_cast<norma::test::detail::Stream*>(stream.handle);
  if (s == nullptr || !s->capture || !s->origin) return Status(Errc::invalid_argument, std::string(who) + ": the stream is not captured");
  const auto graph = s->capture;
  bool unjoined = false;
  for (auto* other : machine.streams) {
    if (other->capture != graph) continue;
    unjoined = unjoined || other->unjoined;
    *other = {};
  }
  --machine.captures;
  if (graph->broken || unjoined) {
    return Status(Errc::invalid_argument, std::string(who) + ": not possible while a stream is captured (" +
                                              (unjoined ? "work that was not joined" : "operation failed due to a previous error during capture") + ")");
  }
  return static_cast<void*>(new norma::test::detail::Graph(*graph));
}
inline Status launch_graph(std::string_view who, void* graph, StreamRef stream) {
  EmulatedMachine& machine = EmulatedMachine::get();
  const std::lock_guard lock(machine.mutex);
  NORMA_CHECK(machine.usable(who));
  for (const auto& call : static_cast<norma::test::detail::Graph*>(graph)->calls) NORMA_CHECK(machine.enqueue(stream, call));
  return {};
}
inline void destroy_graph(void* graph) noexcept { delete static_cast<norma::test::detail::Graph*>(graph); }

inline int device_count() noexcept { return EmulatedMachine::get().device.driver_present ? 1 : 0; }
inline Result<DeviceInfo> device_info(std::string_view who) {
  const EmulatedMachine& machine = EmulatedMachine::get();
  NORMA_CHECK(machine.usable(who));
  return DeviceInfo{"emulation",
                    machine.device.arch,
                    machine.device.multiprocessors,
                    machine.device.shared_bytes_per_block,
                    std::size_t{40} << 20,
                    machine.device.memory_bytes};
}

}  // namespace norma::cuda::detail
