/// \file
/// Errors as values. `Status` says whether a call worked; `Result<T>` carries a value or the reason why there is none.
/// Messages read `Class::function: what was wrong, expected ..., found ...` and name the file where there is one.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include <norma/config.hpp>

#if NORMA_HAS_EXCEPTIONS
#include <stdexcept>
#endif

namespace norma {

enum class Errc : std::uint8_t {
  ok,
  invalid_argument,   ///< a setting or argument outside its range
  shape_mismatch,     ///< sizes that do not fit together
  not_found,          ///< a file, folder, tensor or name that does not exist
  io_error,           ///< the operating system refused to read or write
  corrupt,            ///< a file whose content contradicts itself or its format
  unsupported,        ///< valid, but nothing that norma handles
  not_enough_data,    ///< too few images, labels or samples for what was asked
  not_finite,         ///< NaN (or infinity where none may be)
  not_fitted,         ///< used before fit or open
  wrong_type,         ///< a model file of another method, backbone or version
  mismatch,           ///< a self-test whose answer differs
  cancelled,          ///< the caller asked to stop
  out_of_memory,      ///< an allocation failed or a fixed workspace is too small
};

/// Short stable name of a code, for logs and tests.
constexpr std::string_view to_string(Errc code) noexcept {
  switch (code) {
    case Errc::ok: return "ok";
    case Errc::invalid_argument: return "invalid_argument";
    case Errc::shape_mismatch: return "shape_mismatch";
    case Errc::not_found: return "not_found";
    case Errc::io_error: return "io_error";
    case Errc::corrupt: return "corrupt";
    case Errc::unsupported: return "unsupported";
    case Errc::not_enough_data: return "not_enough_data";
    case Errc::not_finite: return "not_finite";
    case Errc::not_fitted: return "not_fitted";
    case Errc::wrong_type: return "wrong_type";
    case Errc::mismatch: return "mismatch";
    case Errc::cancelled: return "cancelled";
    case Errc::out_of_memory: return "out_of_memory";
  }
  return "unknown";
}

/// Success, or a code with one sentence. Success allocates nothing.
class NORMA_NODISCARD_CLASS Status {
 public:
  Status() noexcept = default;
  NORMA_COLD Status(Errc code, std::string message) : code_(code), message_(std::move(message)) { NORMA_EXPECTS(code != Errc::ok); }

  [[nodiscard]] bool ok() const noexcept { return code_ == Errc::ok; }
  explicit operator bool() const noexcept { return ok(); }
  [[nodiscard]] Errc code() const noexcept { return code_; }
  [[nodiscard]] const std::string& message() const noexcept { return message_; }

  /// The same error with `prefix` in front of its sentence; success stays success.
  [[nodiscard]] Status with_context(std::string_view prefix) const {
    if (ok()) return {};
    return {code_, std::string(prefix) + ": " + message_};
  }

 private:
  Errc code_ = Errc::ok;
  std::string message_;
};

#if NORMA_HAS_EXCEPTIONS
/// Thrown by `Result::value()` only.
class BadResult : public std::runtime_error {
 public:
  explicit BadResult(const Status& status) : std::runtime_error(status.message()), code_(status.code()) {}
  [[nodiscard]] Errc code() const noexcept { return code_; }

 private:
  Errc code_;
};
#endif

/// A value or the `Status` that says why there is none.
template <class T>
class NORMA_NODISCARD_CLASS Result {
  static_assert(!std::is_same_v<std::remove_cv_t<T>, Status>, "Result<Status> says nothing that Status does not");

 public:
  using value_type = T;

  // Two constructors instead of one by value: nvcc's front end moves a returned local only into a parameter that is an rvalue reference.
  Result(T&& value) : value_(std::move(value)) {}                                           // NOLINT(google-explicit-constructor)
  Result(const T& value)                                                                    // NOLINT(google-explicit-constructor)
    requires std::is_copy_constructible_v<T>
      : value_(value) {}
  Result(Status status) : status_(std::move(status)) { NORMA_EXPECTS(!status_.ok()); }      // NOLINT(google-explicit-constructor)

  [[nodiscard]] bool ok() const noexcept { return value_.has_value(); }
  explicit operator bool() const noexcept { return ok(); }
  [[nodiscard]] const Status& status() const& noexcept { return status_; }
  [[nodiscard]] Status status() && noexcept { return std::move(status_); }
  [[nodiscard]] Errc code() const noexcept { return status_.code(); }
  [[nodiscard]] const std::string& message() const noexcept { return status_.message(); }

  /// Precondition: ok().
  [[nodiscard]] T& operator*() & noexcept { NORMA_EXPECTS(ok()); return *value_; }
  [[nodiscard]] const T& operator*() const& noexcept { NORMA_EXPECTS(ok()); return *value_; }
  [[nodiscard]] T&& operator*() && noexcept { NORMA_EXPECTS(ok()); return *std::move(value_); }
  [[nodiscard]] T* operator->() noexcept { NORMA_EXPECTS(ok()); return &*value_; }
  [[nodiscard]] const T* operator->() const noexcept { NORMA_EXPECTS(ok()); return &*value_; }

#if NORMA_HAS_EXCEPTIONS
  /// The value; throws BadResult with the message where there is none.
  [[nodiscard]] T& value() & { require(); return *value_; }
  [[nodiscard]] const T& value() const& { require(); return *value_; }
  [[nodiscard]] T&& value() && { require(); return *std::move(value_); }
#endif

 private:
#if NORMA_HAS_EXCEPTIONS
  void require() const {
    if (!ok()) throw BadResult(status_);
  }
#endif
  std::optional<T> value_;
  Status status_;
};

}  // namespace norma

/// `NORMA_CHECK(status_expression)`: returns the Status from the enclosing function unless it is success.
#define NORMA_CHECK(...)                                                  \
  do {                                                                    \
    if (::norma::Status norma_status_ = (__VA_ARGS__); !norma_status_) {  \
      return norma_status_;                                               \
    }                                                                     \
  } while (false)

/// `NORMA_TRY(auto name, result_expression)`: declares `name` as the value, or returns the Status from the enclosing function.
#define NORMA_TRY(declaration, ...) NORMA_TRY_NAMED(NORMA_CONCAT(norma_result_, __COUNTER__), declaration, __VA_ARGS__)
#define NORMA_TRY_NAMED(result, declaration, ...)   \
  auto result = (__VA_ARGS__);                      \
  if (!result) return std::move(result).status();   \
  declaration = *std::move(result)
