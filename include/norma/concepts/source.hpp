/// \file
/// A *source* is where the images of `fit`, `calibrate` and `evaluate` come from: a folder, a data set, a vector, a camera's archive.
///
/// | part | meaning |
/// | --- | --- |
/// | `size()` | number of images, >= 0; does not change while somebody reads |
/// | `load(i)` | image i of [0, size()), decoded; may be asked again, in any order, and from several threads at once |
/// | `name(i)` | how to call image i in a message: its path, or any label |
/// | `status()` | why the source could not be opened, or success; a source's constructor never fails in another way |
///
/// A source whose status is an error has size 0.
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <type_traits>

#include <norma/core/status.hpp>
#include <norma/image/image.hpp>

namespace norma {

template <class S>
concept HasSize = requires(const S& source) {
  { source.size() } -> std::convertible_to<std::int64_t>;
};
template <class S, class Item = Image>
concept HasLoad = requires(const S& source, std::int64_t i) {
  { source.load(i) } -> std::same_as<Result<Item>>;
};
template <class S>
concept HasName = requires(const S& source, std::int64_t i) {
  { source.name(i) } -> std::convertible_to<std::string>;
};
template <class S>
concept HasStatus = requires(const S& source) {
  { source.status() } -> std::convertible_to<Status>;
};

/// `Item` is what a detector looks at: `Image` for photographs.
template <class S, class Item = Image>
concept Source = HasSize<S> && HasLoad<S, Item> && HasName<S> && HasStatus<S>;

namespace detail {

/// One sentence for each missing part; true where the type is a source.
template <class S, class Item = Image>
consteval bool check_source() {
  using Plain = std::remove_cvref_t<S>;
  static_assert(HasSize<Plain>, "Source: add `std::int64_t size() const`");
  static_assert(HasLoad<Plain, Item>, "Source: add `Result<Image> load(std::int64_t i) const` (the item type of the detector)");
  static_assert(HasName<Plain>, "Source: add `std::string name(std::int64_t i) const`");
  static_assert(HasStatus<Plain>, "Source: add `Status status() const`");
  return Source<Plain, Item>;
}

}  // namespace detail
}  // namespace norma
