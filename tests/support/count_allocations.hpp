// Counts every allocation of the program that includes this, from any thread. One source file of a program may include it: it
// replaces the global operators new and delete.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace norma::test {

inline std::atomic<std::int64_t> allocations{0};

/// Allocations so far; the difference of two calls is what lies between them.
inline std::int64_t allocation_count() { return allocations.load(); }

inline void* counted_allocation(std::size_t bytes, std::size_t alignment) {
  ++allocations;
  void* p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (p == nullptr) std::abort();
  return p;
}

}  // namespace norma::test

// Not inlined: a compiler that sees into one half of a pair takes it for a mismatch.
#if defined(__GNUC__) || defined(__clang__)
#define NORMA_TEST_NOINLINE __attribute__((noinline))
#else
#define NORMA_TEST_NOINLINE
#endif
NORMA_TEST_NOINLINE void* operator new(std::size_t bytes) { return norma::test::counted_allocation(bytes, alignof(std::max_align_t)); }
NORMA_TEST_NOINLINE void* operator new[](std::size_t bytes) { return norma::test::counted_allocation(bytes, alignof(std::max_align_t)); }
NORMA_TEST_NOINLINE void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return norma::test::counted_allocation(bytes, static_cast<std::size_t>(alignment));
}
NORMA_TEST_NOINLINE void* operator new[](std::size_t bytes, std::align_val_t alignment) {
  return norma::test::counted_allocation(bytes, static_cast<std::size_t>(alignment));
}
NORMA_TEST_NOINLINE void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  return norma::test::counted_allocation(bytes, alignof(std::max_align_t));
}
NORMA_TEST_NOINLINE void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept {
  return norma::test::counted_allocation(bytes, alignof(std::max_align_t));
}
NORMA_TEST_NOINLINE void operator delete(void* p) noexcept { std::free(p); }
NORMA_TEST_NOINLINE void operator delete[](void* p) noexcept { std::free(p); }
NORMA_TEST_NOINLINE void operator delete(void* p, std::size_t) noexcept { std::free(p); }
NORMA_TEST_NOINLINE void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
NORMA_TEST_NOINLINE void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
NORMA_TEST_NOINLINE void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
NORMA_TEST_NOINLINE void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
NORMA_TEST_NOINLINE void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
NORMA_TEST_NOINLINE void operator delete(void* p, const std::nothrow_t&) noexcept { std::free(p); }
NORMA_TEST_NOINLINE void operator delete[](void* p, const std::nothrow_t&) noexcept { std::free(p); }
#undef NORMA_TEST_NOINLINE
