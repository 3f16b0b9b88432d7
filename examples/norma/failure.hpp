// What a command ends with: an exit code, and the sentence for standard error.
#pragma once

#include <string>
#include <utility>

#include <norma/core/status.hpp>

namespace program {

enum Exit : int {
  kDone = 0,
  kAnswerIsNo = 1,
  kWrongUsage = 2,
  kUnusable = 3,
  kNotEnoughData = 4,
  kSomeBroken = 5,
  kInterrupted = 130,
};

/// Thrown to leave a command; caught in `main` alone.
struct Failure {
  Exit code;
  std::string message;
};

inline Exit exit_code(norma::Errc code) {
  switch (code) {
    case norma::Errc::ok: return kDone;
    case norma::Errc::invalid_argument: return kWrongUsage;
    case norma::Errc::not_enough_data: return kNotEnoughData;
    case norma::Errc::mismatch: return kAnswerIsNo;
    case norma::Errc::cancelled: return kInterrupted;
    default: return kUnusable;
  }
}

inline void require(const norma::Status& status) {
  if (!status.ok()) throw Failure{exit_code(status.code()), status.message()};
}
template <class T>
T require(norma::Result<T> result) {
  require(result.status());
  return *std::move(result);
}
/// The same for files: whatever is wrong with one (a folder in its place, an empty name), it cannot be used.
template <class T>
T require_file(norma::Result<T> result) {
  if (result.code() == norma::Errc::invalid_argument) throw Failure{kUnusable, result.message()};
  return require(std::move(result));
}
/// The same for names that the user typed (methods, backbones, settings): not finding them is wrong usage.
inline void require_usage(const norma::Status& status) {
  if (!status.ok()) throw Failure{status.code() == norma::Errc::not_found ? kWrongUsage : exit_code(status.code()), status.message()};
}
template <class T>
T require_usage(norma::Result<T> result) {
  require_usage(result.status());
  return *std::move(result);
}

}  // namespace program
