/// \file
/// A backbone that a program chooses while it runs, out of the closed list of those that norma has.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include <norma/backbones/alexnet.hpp>
#include <norma/backbones/cait.hpp>
#include <norma/backbones/deit.hpp>
#include <norma/backbones/efficientnet.hpp>
#include <norma/backbones/efficientnet_lite.hpp>
#include <norma/backbones/mobilenet_v2.hpp>
#include <norma/backbones/resnet.hpp>
#include <norma/backbones/squeezenet.hpp>
#include <norma/backbones/vgg.hpp>
#include <norma/backbones/vit.hpp>
#include <norma/core/status.hpp>

namespace norma {

namespace backbones::detail {

struct Row {
  nn::NetworkInfo info;
  TapChoice taps;
};

template <class... Networks>
struct NetworkList {};

using BuiltIn = NetworkList<
    ResNet18, ResNet34, ResNet50, ResNet101, ResNet152, ResNet50Caffe, WideResNet50, WideResNet101, MobileNetV2, EfficientNetLite0,
    EfficientNetLite1, EfficientNetLite2, EfficientNetLite3, EfficientNetLite4, EfficientNetB0, EfficientNetB1, EfficientNetB2,
    EfficientNetB3, EfficientNetB4, EfficientNetB5, EfficientNetB5Same, EfficientNetB6, EfficientNetB7, SqueezeNet1_1, AlexNet, VGG16,
    VGG16BatchNorm, VGG19, VGG19BatchNorm, VGG19Reflect, ViTTiny16, ViTSmall16, ViTBase16, DeiTTinyDistilled, DeiTBaseDistilled384,
    CaiTXXS24, CaiTM48>;

/// The table of a list. Who uses it must depend on the list by a template parameter: so a program that includes this header but names its
/// backbone in the type does not make its compiler build all graphs.
template <class List>
inline constexpr auto kRows = nullptr;
template <class... Networks>
inline constexpr auto kRows<NetworkList<Networks...>> = std::array{Row{nn::network_info<Networks>(), Networks::taps()}...};

/// Levenshtein: insertions, deletions and replacements of one character each.
inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, replaced}));
    }
  }
  return row.back();
}

}  // namespace backbones::detail

/// One of the built-in backbones. The same members as the types, on an object; cheap to copy.
class AnyNetwork {
 public:
  /// The first of the list, so that settings that hold a network have a value before one is chosen.
  template <class List = backbones::detail::BuiltIn>
  constexpr AnyNetwork() noexcept : row_(&backbones::detail::kRows<List>[0]) {}
  /// A built-in backbone as a value.
  template <BackboneNetwork N>
    requires StaticNetwork<N>
  static Result<AnyNetwork> of() {
    return find(N::name());
  }
  /// By its published name, as `resnet18`. Error not_found names the nearest ones.
  template <class List = backbones::detail::BuiltIn>
  static Result<AnyNetwork> find(std::string_view name) {
    for (const auto& row : backbones::detail::kRows<List>) {
      if (row.info.name() == name) return AnyNetwork(row);
    }
    std::vector<std::pair<std::size_t, std::string_view>> nearest;
    for (const auto& row : backbones::detail::kRows<List>) {
      nearest.emplace_back(backbones::detail::edit_distance(name, row.info.name()), row.info.name());
    }
    std::stable_sort(nearest.begin(), nearest.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::string message = "AnyNetwork::find: unknown backbone \"" + std::string(name) + "\", nearest are ";
    for (std::size_t i = 0; i < 3; ++i) message.append(i == 0 ? "" : ", ").append(nearest[i].second);
    return Status(Errc::not_found, std::move(message));
  }
  /// Every built-in backbone, families together, small to large.
  template <class List = backbones::detail::BuiltIn>
  static constexpr auto all() noexcept {
    return []<std::size_t... I>(std::index_sequence<I...>) {
      return std::array{AnyNetwork(backbones::detail::kRows<List>[I])...};
    }(std::make_index_sequence<backbones::detail::kRows<List>.size()>());
  }

  [[nodiscard]] constexpr std::string_view name() const noexcept { return row_->info.name(); }
  [[nodiscard]] constexpr nn::InputSpec input() const noexcept { return row_->info.input(); }
  [[nodiscard]] constexpr nn::GraphView graph() const noexcept { return row_->info.graph(); }
  [[nodiscard]] constexpr std::span<const std::string_view> default_taps() const noexcept { return row_->info.default_taps(); }
  [[nodiscard]] constexpr TapChoice taps() const noexcept { return row_->taps; }

  /// The same backbone: there is one row for each.
  friend constexpr bool operator==(const AnyNetwork& a, const AnyNetwork& b) noexcept { return a.row_ == b.row_; }

 private:
  explicit constexpr AnyNetwork(const backbones::detail::Row& row) noexcept : row_(&row) {}

  const backbones::detail::Row* row_;
};

static_assert(BackboneNetwork<AnyNetwork>);

}  // namespace norma
