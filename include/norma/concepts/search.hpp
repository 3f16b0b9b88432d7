/// \file
/// Search policy: finds the nearest rows of a bank. All members are static; what is learned lives in its `Index`.
///
/// | part | meaning |
/// | --- | --- |
/// | `static constexpr std::string_view name` | for reports and model files |
/// | `Index` | movable, default-constructible: a bank made ready to be searched |
/// | `static Result<Index> prepare(MatrixView<const float> bank, Parallel)` | once a bank [n, d]; may allocate; refuses rows that are not finite |
/// | `static Status nearest(const Index&, queries, k, squared_distance, row, Parallel, Arena&)` | per image: queries [m, d] -> [m, k] each, allocates nothing |
/// | `static constexpr std::size_t scratch_bytes(queries, dims, k, workers)` | what `nearest` takes from its arena, whatever the bank's size |
///
/// docs/policies/search.md has a ten-line example.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <norma/core/arena.hpp>
#include <norma/core/parallel.hpp>
#include <norma/core/status.hpp>
#include <norma/core/view.hpp>

namespace norma {

template <class S>
concept HasSearchName = requires {
  { S::name } -> std::convertible_to<std::string_view>;
};
template <class S>
concept HasSearchIndex = requires { typename S::Index; } && std::movable<typename S::Index> && std::default_initializable<typename S::Index>;
template <class S>
concept HasPrepare = requires(MatrixView<const float> bank, Parallel parallel) {
  { S::prepare(bank, parallel) } -> std::same_as<Result<typename S::Index>>;
};
template <class S>
concept HasNearest = requires(const typename S::Index& index, MatrixView<const float> queries, MatrixView<float> distance, MatrixView<std::int64_t> row,
                              Parallel parallel, Arena& arena) {
  { S::nearest(index, queries, 1, distance, row, parallel, arena) } -> std::same_as<Status>;
};
template <class S>
concept HasSearchScratch = requires {
  { S::scratch_bytes(std::int64_t{}, std::int64_t{}, 1, 1) } -> std::same_as<std::size_t>;
};

template <class S>
concept Search = HasSearchName<S> && HasSearchIndex<S> && HasPrepare<S> && HasNearest<S> && HasSearchScratch<S>;

namespace detail {
template <class S>
consteval bool check_search() {
  static_assert(HasSearchName<S>, "Search policy: add `static constexpr std::string_view name`");
  static_assert(HasSearchIndex<S>, "Search policy: add a movable, default-constructible struct `Index`");
  if constexpr (HasSearchIndex<S>) {
    static_assert(HasPrepare<S>, "Search policy: add `static Result<Index> prepare(MatrixView<const float> bank, Parallel)`");
    static_assert(HasNearest<S>,
                  "Search policy: add `static Status nearest(const Index&, MatrixView<const float> queries, int k, MatrixView<float> squared_distance, "
                  "MatrixView<std::int64_t> row, Parallel, Arena&)`");
  }
  static_assert(HasSearchScratch<S>,
                "Search policy: add `static constexpr std::size_t scratch_bytes(std::int64_t queries, std::int64_t dims, int k, int workers)`");
  return true;
}
}  // namespace detail

}  // namespace norma
