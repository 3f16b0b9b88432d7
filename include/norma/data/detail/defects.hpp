/// \file
/// Defects painted into a normal picture, with their exact mask: outside the mask not one byte changes.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>
#include <utility>

#include <norma/core/random.hpp>
#include <norma/core/tensor.hpp>
#include <norma/data/detail/scenes.hpp>

namespace norma::data::detail {

enum class Defect : std::uint8_t { scratch, spot, stain, cut, missing, corners };

/// How much of each pixel the defect covers.
class Cover {
 public:
  explicit Cover(std::int64_t size) : map_(size, size) {}

  /// Raises the cover to shape(y, x), a function that is above 0 inside the shape and counts pixels across its edge.
  template <class Shape>
  void add(Shape&& shape, double softness = 1.0) {
    for (std::int64_t y = 0; y < map_.rows(); ++y) {
      for (std::int64_t x = 0; x < map_.cols(); ++x) {
        const double inside = std::clamp(0.5 + shape(static_cast<double>(y), static_cast<double>(x)) / softness, 0.0, 1.0);
        map_(y, x) = std::max(map_(y, x), static_cast<float>(inside));
      }
    }
  }
  [[nodiscard]] Map<float>& map() noexcept { return map_; }

 private:
  Map<float> map_;
};

/// Distance in pixels from the segment.
inline double segment_distance(double y, double x, double y0, double x0, double y1, double x1) noexcept {
  const double length = (y1 - y0) * (y1 - y0) + (x1 - x0) * (x1 - x0);
  const double t = length > 0.0 ? std::clamp(((y - y0) * (y1 - y0) + (x - x0) * (x1 - x0)) / length, 0.0, 1.0) : 0.0;
  return std::hypot(y - y0 - t * (y1 - y0), x - x0 - t * (x1 - x0));
}

/// A random pixel: on the object where there is one, else anywhere but the outer tenth.
inline std::pair<double, double> random_place(const Scene& scene, Random& random) {
  const std::int64_t size = scene.picture.height(), margin = size / 10;
  for (;;) {
    const std::int64_t y = margin + random.below(size - 2 * margin), x = margin + random.below(size - 2 * margin);
    if (scene.object.empty() || scene.object(y, x) != 0) return {static_cast<double>(y), static_cast<double>(x)};
  }
}

/// A round shape with an uneven edge.
inline void add_blob(Cover& cover, double y0, double x0, double radius, double softness, Random& random) {
  std::array<double, 3> height{}, phase{};
  for (std::size_t k = 0; k < height.size(); ++k) {
    height[k] = random.uniform(0.05, 0.16);
    phase[k] = random.uniform(0.0, 2.0 * std::numbers::pi);
  }
  const double stretch = random.uniform(0.75, 1.3);
  cover.add(
      [&](double y, double x) {
        const double dy = (y - y0) * stretch, dx = (x - x0) / stretch, angle = std::atan2(dy, dx);
        double edge = 1.0;
        for (std::size_t k = 0; k < height.size(); ++k) edge += height[k] * std::sin(static_cast<double>(k + 2) * angle + phase[k]);
        return radius * edge - std::hypot(dy, dx);
      },
      softness);
}

/// A crooked line that runs both ways from a place.
inline void add_scratch(Cover& cover, double y0, double x0, double length, double half_width, Random& random) {
  constexpr int kPieces = 3;  // each way
  const double direction = random.uniform(0.0, 2.0 * std::numbers::pi), step = 0.5 * length / kPieces;
  double turn = random.uniform(-0.12, 0.12);
  for (const double way : {0.0, std::numbers::pi}) {
    double y = y0, x = x0, angle = direction + way;
    for (int i = 0; i < kPieces; ++i) {
      const double y1 = y + step * std::sin(angle), x1 = x + step * std::cos(angle);
      cover.add([&](double py, double px) { return half_width - segment_distance(py, px, y, x, y1, x1); });
      angle += turn + random.uniform(-0.15, 0.15);
      y = y1;
      x = x1;
    }
    turn = -turn;  // the other way the same bend curves to the other side
  }
}

/// A slit: wide in the middle, pointed at both ends.
inline void add_cut(Cover& cover, double y0, double x0, double length, double half_width, Random& random) {
  const double angle = random.uniform(0.0, std::numbers::pi), cosine = std::cos(angle), sine = std::sin(angle);
  cover.add([&](double y, double x) {
    const double along = 2.0 * ((x - x0) * cosine + (y - y0) * sine) / length, across = (y - y0) * cosine - (x - x0) * sine;
    return half_width * (1.0 - along * along) - std::abs(across);
  });
}

/// Paints the defect into `scene.picture` and gives its mask (0 and 255). Precondition: only objects can miss a part.
inline Map<std::uint8_t> paint(Scene& scene, Defect defect, Random& random) {
  NORMA_EXPECTS(defect != Defect::missing || !scene.background.empty());
  const std::int64_t size = scene.picture.height();
  const double unit = static_cast<double>(size) / 256.0;  // shapes are given for 256 pixels
  const auto pixels = [&](double low, double high, double least = 1.5) { return std::max(least, unit * random.uniform(low, high)); };
  Cover cover(size);
  const auto [y, x] = random_place(scene, random);
  double opacity = 0.9;
  switch (defect) {
    case Defect::scratch: {  // one draw a statement: the order of arguments is the compiler's
      const double length = pixels(60.0, 140.0);
      const double half_width = pixels(0.9, 1.8, 0.8);
      add_scratch(cover, y, x, length, half_width, random);
      break;
    }
    case Defect::spot: add_blob(cover, y, x, pixels(5.0, 13.0), 1.5, random); break;
    case Defect::stain:
      add_blob(cover, y, x, pixels(18.0, 36.0), std::max(1.0, 5.0 * unit), random);
      opacity = 0.55;
      break;
    case Defect::cut: {
      const double length = pixels(45.0, 95.0);
      const double half_width = pixels(2.5, 4.5);
      add_cut(cover, y, x, length, half_width, random);
      break;
    }
    case Defect::missing:
      add_blob(cover, y, x, pixels(14.0, 26.0), 1.0, random);
      opacity = 1.0;
      break;
    case Defect::corners: {  // two squares that share one corner: one region for 8-connectivity, two for 4
      const auto side = std::max<double>(2.0, std::floor(unit * 12.0));
      const double middle_y = std::clamp(y, side, static_cast<double>(size) - side);
      const double middle_x = std::clamp(x, side, static_cast<double>(size) - side);
      for (const double corner : {-side, 0.0}) {
        const double top = middle_y + corner, left = middle_x + corner;
        cover.add([&](double py, double px) { return py >= top && py < top + side && px >= left && px < left + side ? 1.0 : -1.0; });
      }
      opacity = 1.0;
      break;
    }
  }

  // The brightness that the defect meets decides whether it is darker or lighter, so that it can be seen on every ground.
  const std::int64_t channels = scene.picture.channels();
  Map<std::uint8_t> mask(size, size);
  double sum = 0.0, weight = 0.0;
  for (std::int64_t i = 0; i < size * size; ++i) {
    float& alpha = cover.map().data()[i];
    bool outside = !scene.object.empty() && scene.object.data()[i] == 0 && defect != Defect::corners;
    // The soft edge of an object goes with the part that is missing.
    if (defect == Defect::missing) outside = outside && scene.picture.data()[i * channels] == scene.background.data()[i * channels];
    if (alpha < 0.25f || outside) alpha = 0.0f;
    if (alpha == 0.0f) continue;
    mask.data()[i] = 255;
    for (std::int64_t c = 0; c < channels; ++c) sum += static_cast<double>(alpha) * scene.picture.data()[i * channels + c];
    weight += static_cast<double>(alpha) * static_cast<double>(channels);
  }
  const double ground = weight > 0.0 ? sum / weight : 0.0;
  const double contrast = random.uniform(80.0, 115.0);
  double level = ground > 118.0 ? ground - contrast : ground + contrast;
  if (defect == Defect::cut && ground > 70.0) level = 0.12 * ground;
  const double tint = channels == 3 && defect != Defect::cut ? random.uniform(-28.0, 28.0) : 0.0;
  const std::array<double, 3> colour{level + tint, level, level - tint};
  for (std::int64_t i = 0; i < size * size; ++i) {
    const double alpha = opacity * static_cast<double>(cover.map().data()[i]);
    if (alpha == 0.0) continue;
    const double grain = random.uniform(-6.0, 6.0);
    for (std::int64_t c = 0; c < channels; ++c) {
      std::uint8_t& value = scene.picture.data()[i * channels + c];
      const double painted = colour[static_cast<std::size_t>(c)] + grain;
      const double target = defect == Defect::missing ? scene.background.data()[i * channels + c] : painted;
      value = to_byte(value + alpha * (target - value));
    }
  }
  return mask;
}

}  // namespace norma::data::detail
