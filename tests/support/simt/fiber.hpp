/// \file
/// Stacks that a scheduler switches between: one for every thread of an emulated block.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#endif

namespace norma::test {

#if defined(__x86_64__)
// Saves what the System V calling convention lets a callee keep, and continues on another stack.
__attribute__((naked, noinline)) inline void switch_stack(void** /*save*/, void* /*load*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}
#endif

/// A function on a stack of its own that runs until it yields or ends.
class Fiber {
 public:
  static constexpr std::size_t kStackBytes = 256 * 1024;

  Fiber() : stack_(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
    if (stack_ == MAP_FAILED) std::abort();
  }
  Fiber(Fiber&& other) noexcept : stack_(std::exchange(other.stack_, nullptr)) {}
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() {
    if (stack_ != nullptr) munmap(stack_, kStackBytes);
  }

  /// Makes `entry` what the next `resume` starts. What ran here before is forgotten. `entry` must not return: it ends with `yield`.
  void start(void (*entry)()) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(stack_, kStackBytes);
    fake_stack_ = nullptr;
#endif
#if defined(__x86_64__)
    auto* top = reinterpret_cast<std::uintptr_t*>(static_cast<char*>(stack_) + kStackBytes - 64);
    *top = 0;
    *--top = 0;                                       // where entry would return to
    *--top = reinterpret_cast<std::uintptr_t>(entry);  // where switch_stack's ret goes, with the stack as after a call
    for (int i = 0; i < 6; ++i) *--top = 0;
    here_ = top;
#else
    getcontext(&here_);
    here_.uc_stack.ss_sp = stack_;
    here_.uc_stack.ss_size = kStackBytes;
    here_.uc_link = nullptr;
    makecontext(&here_, entry, 0);
#endif
  }

  /// From the scheduler: runs the fiber until it yields.
  void resume() {
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack_, kStackBytes);
#endif
#if defined(__x86_64__)
    switch_stack(&scheduler_, here_);
#else
    swapcontext(&scheduler_, &here_);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  /// First thing on the fiber's own stack.
  void entered() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack_, &scheduler_stack_, &scheduler_bytes_);
#endif
  }

  /// From the fiber: back to the scheduler.
  void yield() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_stack_, scheduler_stack_, scheduler_bytes_);
#endif
#if defined(__x86_64__)
    switch_stack(&here_, scheduler_);
#else
    swapcontext(&here_, &scheduler_);
#endif
    entered();
  }

 private:
  void* stack_;
#if defined(__x86_64__)
  void* here_ = nullptr;
  void* scheduler_ = nullptr;
#else
  ucontext_t here_{}, scheduler_{};
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack_ = nullptr;
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_bytes_ = 0;
#endif
};

}  // namespace norma::test
