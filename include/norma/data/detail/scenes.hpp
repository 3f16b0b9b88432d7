/// \file
/// Pictures of normal things for the generated data set: three textures, two objects, and cuts out of photographs.
/// Every picture is a pure function of its Random; the numbers below are shapes and grey levels chosen by eye.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <utility>
#include <vector>

#include <norma/core/random.hpp>
#include <norma/core/tensor.hpp>
#include <norma/image/image.hpp>

namespace norma::data::detail {

/// A normal picture. For objects also the same picture without the object, and where the object is; both empty for textures.
struct Scene {
  Image picture;
  Image background;
  Map<std::uint8_t> object;
};

inline std::uint8_t to_byte(double value) noexcept { return static_cast<std::uint8_t>(std::clamp(value + 0.5, 0.0, 255.0)); }

/// 0 below `low`, 1 above `high`, smooth between.
inline double smooth_step(double low, double high, double x) noexcept {
  const double t = std::clamp((x - low) / (high - low), 0.0, 1.0);
  return t * t * (3.0 - 2.0 * t);
}

/// Smooth random function on the plane with values in [-1, 1]: random values on the points of an integer lattice, repeated every
/// `period` points, smoothly interpolated.
class Noise {
 public:
  Noise(std::int64_t period, Random& random) : period_(period), values_(static_cast<std::size_t>(period * period)) {
    for (double& value : values_) value = random.uniform(-1.0, 1.0);
  }
  [[nodiscard]] double operator()(double y, double x) const noexcept {
    const double fy = std::floor(y), fx = std::floor(x);
    const double ty = smooth_step(0.0, 1.0, y - fy), tx = smooth_step(0.0, 1.0, x - fx);
    const std::int64_t y0 = wrap(static_cast<std::int64_t>(fy)), x0 = wrap(static_cast<std::int64_t>(fx));
    const std::int64_t y1 = wrap(y0 + 1), x1 = wrap(x0 + 1);
    const double top = at(y0, x0) + (at(y0, x1) - at(y0, x0)) * tx;
    const double bottom = at(y1, x0) + (at(y1, x1) - at(y1, x0)) * tx;
    return top + (bottom - top) * ty;
  }

 private:
  [[nodiscard]] std::int64_t wrap(std::int64_t i) const noexcept { return ((i % period_) + period_) % period_; }
  [[nodiscard]] double at(std::int64_t y, std::int64_t x) const noexcept { return values_[static_cast<std::size_t>(y * period_ + x)]; }
  std::int64_t period_;
  std::vector<double> values_;
};

struct Colour {
  double red = 0.0, green = 0.0, blue = 0.0;
  friend Colour operator*(Colour c, double k) noexcept { return {c.red * k, c.green * k, c.blue * k}; }
};
inline Colour mix(Colour from, Colour to, double t) noexcept {
  return {from.red + (to.red - from.red) * t, from.green + (to.green - from.green) * t, from.blue + (to.blue - from.blue) * t};
}

inline void put(Image& image, std::int64_t y, std::int64_t x, Colour colour) noexcept {
  image(y, x, 0) = to_byte(colour.red);
  image(y, x, 1) = to_byte(colour.green);
  image(y, x, 2) = to_byte(colour.blue);
}

/// Slanted ribs of a fabric, with fibres along them.
inline Scene stripes_scene(std::int64_t size, Random& random) {
  Scene scene{Image(size, size, 3), {}, {}};
  const double angle = (25.0 + random.uniform(-1.5, 1.5)) * std::numbers::pi / 180.0, phase = random.uniform();
  const double light = random.uniform(0.96, 1.04), cosine = std::cos(angle), sine = std::sin(angle);
  const Noise wave(16, random), fibre(256, random);
  for (std::int64_t y = 0; y < size; ++y) {
    for (std::int64_t x = 0; x < size; ++x) {
      const double v = static_cast<double>(y) / static_cast<double>(size), u = static_cast<double>(x) / static_cast<double>(size);
      const double across = u * cosine + v * sine, along = v * cosine - u * sine;
      const double rib = 0.5 + 0.5 * std::sin(2.0 * std::numbers::pi * (15.0 * across + phase + 0.08 * wave(5.0 * v, 5.0 * u)));
      const double shade = light * (1.0 + 0.10 * fibre(120.0 * across, 14.0 * along) + 0.03 * random.uniform(-1.0, 1.0));
      put(scene.picture, y, x, mix({104, 88, 72}, {196, 178, 148}, rib * rib * (3.0 - 2.0 * rib)) * shade);
    }
  }
  return scene;
}

/// Plain weave: threads that pass over and under each other.
inline Scene weave_scene(std::int64_t size, Random& random) {
  Scene scene{Image(size, size, 3), {}, {}};
  const double shift_y = random.uniform(), shift_x = random.uniform(), light = random.uniform(0.96, 1.04);
  const Noise bend_y(16, random), bend_x(16, random), fibre(128, random);
  for (std::int64_t y = 0; y < size; ++y) {
    for (std::int64_t x = 0; x < size; ++x) {
      const double v = static_cast<double>(y) / static_cast<double>(size), u = static_cast<double>(x) / static_cast<double>(size);
      const double down = 22.0 * v + shift_y * 2.0 + 0.20 * bend_y(6.0 * v, 6.0 * u);
      const double right = 22.0 * u + shift_x * 2.0 + 0.20 * bend_x(6.0 * v, 6.0 * u);
      const double in_down = down - std::floor(down) - 0.5, in_right = right - std::floor(right) - 0.5;
      const bool vertical = (static_cast<std::int64_t>(std::floor(down)) + static_cast<std::int64_t>(std::floor(right))) % 2 == 0;
      const double across = vertical ? in_right : in_down, along = vertical ? in_down : in_right;
      const double roundness = std::cos(std::numbers::pi * across) * (0.55 + 0.45 * std::cos(std::numbers::pi * along));
      const double strands = vertical ? fibre(9.0 * down, 2.5 * right + along) : fibre(2.5 * down + along, 9.0 * right);
      const double shade = light * (0.34 + 0.66 * roundness) * (1.0 + 0.08 * strands + 0.03 * random.uniform(-1.0, 1.0));
      put(scene.picture, y, x, (vertical ? Colour{96, 128, 176} : Colour{206, 200, 184}) * shade);
    }
  }
  return scene;
}

/// Pebbles: the cells around random points, lit from the upper left.
inline Scene gravel_scene(std::int64_t size, Random& random) {
  constexpr std::int64_t kCells = 17;
  struct Stone {
    double y, x, level, warmth;
  };
  std::vector<Stone> stones;
  for (std::int64_t i = -1; i <= kCells; ++i) {
    for (std::int64_t j = -1; j <= kCells; ++j) {
      const double y = static_cast<double>(i) + random.uniform(0.1, 0.9), x = static_cast<double>(j) + random.uniform(0.1, 0.9);
      stones.push_back({y, x, random.uniform(110.0, 215.0), random.uniform(-0.10, 0.10)});
    }
  }
  const Noise rough(128, random), bend(64, random);
  Scene scene{Image(size, size, 3), {}, {}};
  for (std::int64_t y = 0; y < size; ++y) {
    for (std::int64_t x = 0; x < size; ++x) {
      const double scale = static_cast<double>(kCells) / static_cast<double>(size);
      const double v0 = static_cast<double>(y) * scale, u0 = static_cast<double>(x) * scale;
      const double v = v0 + 0.12 * bend(2.0 * v0, 2.0 * u0), u = u0 + 0.12 * bend(2.0 * v0 + 31.0, 2.0 * u0 + 17.0);
      const auto cell_y = static_cast<std::int64_t>(std::floor(v)), cell_x = static_cast<std::int64_t>(std::floor(u));
      const Stone* nearest = nullptr;
      double first = 1e9, second = 1e9;
      for (std::int64_t i = std::max<std::int64_t>(cell_y - 2, -1); i <= std::min(cell_y + 2, kCells); ++i) {
        for (std::int64_t j = std::max<std::int64_t>(cell_x - 2, -1); j <= std::min(cell_x + 2, kCells); ++j) {
          const Stone& stone = stones[static_cast<std::size_t>((i + 1) * (kCells + 2) + j + 1)];
          const double d = std::hypot(v - stone.y, u - stone.x);
          if (d < first) {
            second = std::exchange(first, d);
            nearest = &stone;
          } else {
            second = std::min(second, d);
          }
        }
      }
      const double inside = smooth_step(0.0, 0.34, second - first);
      const double tilt = ((nearest->y - v) + (nearest->x - u)) * 0.34 * (1.0 - 0.4 * inside);
      const double grain = 1.0 + 0.10 * rough(6.0 * v, 6.0 * u) + 0.03 * random.uniform(-1.0, 1.0);
      const double shade = (0.22 + 0.78 * inside) * (1.0 + tilt) * grain;
      const double warm = nearest->warmth;
      put(scene.picture, y, x, Colour{1.0 + warm, 1.0 + 0.2 * warm, 1.0 - 0.8 * warm} * (nearest->level * shade));
    }
  }
  return scene;
}

/// A gray object: `draw(v, u)` gives its grey level and how much of the pixel it covers, with v and u from -0.5 to 0.5.
template <class Draw>
Scene object_scene(std::int64_t size, Random& random, Draw&& draw) {
  Scene scene{Image(size, size, 1), Image(size, size, 1), Map<std::uint8_t>(size, size)};
  const Noise cloud(8, random);
  for (std::int64_t y = 0; y < size; ++y) {
    for (std::int64_t x = 0; x < size; ++x) {
      const double v = (static_cast<double>(y) + 0.5) / static_cast<double>(size) - 0.5;
      const double u = (static_cast<double>(x) + 0.5) / static_cast<double>(size) - 0.5;
      const double grain = 2.5 * random.uniform(-1.0, 1.0);
      const double ground = 46.0 - 18.0 * (v * v + u * u) / 0.5 + 3.0 * cloud(3.0 * v + 4.0, 3.0 * u + 4.0);
      const auto [level, cover] = draw(v, u);
      scene.background(y, x, 0) = to_byte(ground + grain);
      scene.picture(y, x, 0) = to_byte(ground + (level - ground) * cover + grain);
      scene.object(y, x) = cover > 0.5 ? 1 : 0;
    }
  }
  return scene;
}

struct Shade {
  double level, cover;
};

/// A turned metal ring seen from above: a hole, two grooves, brushed around its axis.
inline Scene disc_scene(std::int64_t size, Random& random) {
  const double centre_y = random.uniform(-0.015, 0.015), centre_x = random.uniform(-0.015, 0.015);
  const double turn = random.uniform(0.0, 1.0), light = random.uniform(0.97, 1.03), pixel = 1.0 / static_cast<double>(size);
  const Noise brushed(64, random);
  return object_scene(size, random, [&](double v, double u) {
    const double r = std::hypot(v - centre_y, u - centre_x);
    const double angle = std::atan2(v - centre_y, u - centre_x);
    double level = 150.0 + 30.0 * std::cos(2.0 * angle + 0.8) + 7.0 * brushed(220.0 * r, 5.0 * (angle / (2.0 * std::numbers::pi) + turn));
    level -= 70.0 * (1.0 - smooth_step(0.004, 0.010, std::abs(r - 0.19))) + 55.0 * (1.0 - smooth_step(0.004, 0.010, std::abs(r - 0.27)));
    level += 45.0 * smooth_step(0.345, 0.36, r) - 60.0 * smooth_step(0.372, 0.38, r) + 40.0 * (1.0 - smooth_step(0.10, 0.115, r));
    return Shade{level * light, smooth_step(-pixel, pixel, 0.38 - r) * smooth_step(-pixel, pixel, r - 0.095)};
  });
}

/// A hexagon bolt seen from the side.
inline Scene bolt_scene(std::int64_t size, Random& random) {
  const double centre_x = random.uniform(-0.015, 0.015), centre_y = random.uniform(-0.010, 0.010);
  const double angle = random.uniform(-2.0, 2.0) * std::numbers::pi / 180.0, light = random.uniform(0.97, 1.03);
  const double cosine = std::cos(angle), sine = std::sin(angle), pixel = 1.0 / static_cast<double>(size);
  const Noise stains(32, random);
  return object_scene(size, random, [&](double v, double u) {
    const double b = (v - centre_y) * cosine + (u - centre_x) * sine, a = (u - centre_x) * cosine - (v - centre_y) * sine;
    const auto edge = [&](double inside) { return smooth_step(-pixel, pixel, inside); };
    const double head = edge(0.19 - std::abs(a)) * edge(b + 0.40) * edge(-0.24 - b);
    const double collar = edge(0.215 - std::abs(a)) * edge(b + 0.24) * edge(-0.215 - b);
    const double half = 0.088 - 0.03 * smooth_step(0.36, 0.41, b);
    const double shank = edge(half - std::abs(a)) * edge(b + 0.22) * edge(0.41 - b);
    double level = 0.0;
    if (b < -0.24) {  // three faces of the hexagon, a chamfer above
      level = (a < -0.095 ? 128.0 : a < 0.095 ? 178.0 : 112.0) + 26.0 * (1.0 - smooth_step(0.0, 0.012, b + 0.40));
      level -= 30.0 * (1.0 - smooth_step(0.0, 0.006, std::abs(std::abs(a) - 0.095)));
    } else if (b < -0.215) {
      level = 150.0;
    } else {  // a cylinder, threaded below
      const double side = std::clamp(a / 0.088, -1.0, 1.0);
      level = 60.0 + 130.0 * std::sqrt(1.0 - 0.92 * side * side) - 22.0 * side;
      level -= smooth_step(-0.10, -0.09, b) * (34.0 + 34.0 * std::sin(2.0 * std::numbers::pi * (34.0 * b + 1.2 * a)));
    }
    return Shade{level * light + 4.0 * stains(12.0 * b, 12.0 * a), std::max({head, collar, shank})};
  });
}

/// A square cut out of a photograph at a random place, mirrored at random. Precondition: both sides >= size.
inline Scene photo_scene(const Image& photo, std::int64_t size, Random& random) {
  NORMA_EXPECTS(photo.height() >= size && photo.width() >= size);
  const std::int64_t top = random.below(photo.height() - size + 1), left = random.below(photo.width() - size + 1);
  const bool mirror_y = random.below(2) == 1, mirror_x = random.below(2) == 1;
  Scene scene{Image(size, size, photo.channels()), {}, {}};
  for (std::int64_t y = 0; y < size; ++y) {
    for (std::int64_t x = 0; x < size; ++x) {
      for (std::int64_t c = 0; c < photo.channels(); ++c) {
        scene.picture(y, x, c) = photo(top + (mirror_y ? size - 1 - y : y), left + (mirror_x ? size - 1 - x : x), c);
      }
    }
  }
  return scene;
}

}  // namespace norma::data::detail
