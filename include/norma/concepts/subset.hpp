/// \file
/// Subset policy: which of many rows a bank keeps. All members are static.
///
/// | part | meaning |
/// | --- | --- |
/// | `static constexpr std::string_view name` | for reports and model files |
/// | `Settings` | literal struct with `visit` (core/settings.hpp) |
/// | `static Status validate(const Settings&)` | refuses settings in one sentence |
/// | `static Result<std::vector<std::int64_t>> select(points, settings, seed, Parallel, const Observer&)` | different rows of points [n, d], in the policy's order |
///
/// docs/policies/subset.md has a ten-line example.
#pragma once

#include <concepts>
#include <cstdint>
#include <string_view>
#include <vector>

#include <norma/core/parallel.hpp>
#include <norma/core/progress.hpp>
#include <norma/core/status.hpp>
#include <norma/core/view.hpp>

namespace norma {

template <class S>
concept HasSubsetName = requires {
  { S::name } -> std::convertible_to<std::string_view>;
};
template <class S>
concept HasSubsetSettings =
    requires { typename S::Settings; } && std::copyable<typename S::Settings> && std::default_initializable<typename S::Settings>;
template <class S>
concept HasSubsetValidate = requires(const typename S::Settings& settings) {
  { S::validate(settings) } -> std::same_as<Status>;
};
template <class S>
concept HasSelect = requires(MatrixView<const float> points, const typename S::Settings& settings, std::uint64_t seed, Parallel parallel,
                             const Observer& observer) {
  { S::select(points, settings, seed, parallel, observer) } -> std::same_as<Result<std::vector<std::int64_t>>>;
};

template <class S>
concept Subset = HasSubsetName<S> && HasSubsetSettings<S> && HasSubsetValidate<S> && HasSelect<S>;

namespace detail {
template <class S>
consteval bool check_subset() {
  static_assert(HasSubsetName<S>, "Subset policy: add `static constexpr std::string_view name`");
  static_assert(HasSubsetSettings<S>, "Subset policy: add a copyable, default-constructible struct `Settings`");
  if constexpr (HasSubsetSettings<S>) {
    static_assert(HasSubsetValidate<S>, "Subset policy: add `static Status validate(const Settings&)`");
    static_assert(HasSelect<S>,
                  "Subset policy: add `static Result<std::vector<std::int64_t>> select(MatrixView<const float> points, const Settings&, "
                  "std::uint64_t seed, Parallel, const Observer&)`");
  }
  return true;
}
}  // namespace detail

}  // namespace norma
