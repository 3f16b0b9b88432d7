/// \file
/// Scratch memory without allocation. An operation says how much it needs with a constexpr `..._scratch_bytes(...)`, the caller
/// provides it once, and the operation takes pieces and gives them back in order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include <norma/core/tensor.hpp>

namespace norma {

/// Bytes that `Arena::take<T>(count)` uses, alignment included.
template <class T>
constexpr std::size_t arena_bytes(std::int64_t count) noexcept {
  const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

/// A stack of aligned pieces over memory that somebody else owns. Not thread-safe: one arena a thread.
class Arena {
 public:
  Arena() noexcept = default;
  /// `memory` must be aligned to kAlignment.
  explicit Arena(std::span<std::byte> memory) noexcept : base_(memory.data()), capacity_(memory.size()) {}

  /// `count` uninitialised elements, or nullptr when the arena is too small (a wrong `..._scratch_bytes`).
  template <class T>
  [[nodiscard]] T* take(std::int64_t count) noexcept {
    const std::size_t bytes = arena_bytes<T>(count);
    NORMA_EXPECTS(bytes <= capacity_ - used_);
    if (bytes > capacity_ - used_) return nullptr;
    T* piece = reinterpret_cast<T*>(base_ + used_);
    used_ += bytes;
    return piece;
  }
  [[nodiscard]] std::size_t used() const noexcept { return used_; }
  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  [[nodiscard]] std::size_t remaining() const noexcept { return capacity_ - used_; }

  /// Gives back everything taken since its construction when it leaves scope.
  class Scope {
   public:
    explicit Scope(Arena& arena) noexcept : arena_(arena), mark_(arena.used_) {}
    ~Scope() { arena_.used_ = mark_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    std::size_t mark_;
  };

 private:
  std::byte* base_ = nullptr;
  std::size_t capacity_ = 0;
  std::size_t used_ = 0;
};

}  // namespace norma
