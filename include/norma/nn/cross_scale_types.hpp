/// \file
/// Cross-scale coupling blocks by their settings: formulas, convolutions, and the place of every parameter.
///
/// Source:   Rudolph et al., "Fully convolutional cross-scale-flows for image-based defect detection", WACV 2022 (CS-Flow); coupling: Dinh et al.,
///           "Density estimation using Real NVP", ICLR 2017, both halves, with an arctangent clamp.
///
/// Formulas. A sample is three maps of C channels: h x w, h / 2 x w / 2 and h / 4 x w / 4, levels 0, 1 and 2. A block, for all levels at once:
///   x = P_l(in_l), a fixed permutation of the channels a level; first = the first C / 2 channels of x, second = the others
///   [s_l, t_l] = N0(second of all levels);   first'_l  = first_l  exp(L(s_l)) + t_l
///   [s_l, t_l] = N1(first' of all levels);   second'_l = second_l exp(L(s_l)) + t_l
///   out_l = [first'_l, second'_l], limited to +-1e6; log-determinant = sum of all L(s), L(s) = 0.636 alpha atan(s / alpha)
/// Subnet N of inputs x_0, x_1, x_2, side `kernel`, zero padding kernel / 2, a bias in every convolution:
///   h_l = leaky(in_l(x_l)), leaky(v) = v or 0.1 v below 0
///   o_0 = same_0(h_0) + up_1(twice(h_1))
///   o_1 = same_1(h_1) + up_2(twice(h_2)) + down_0(h_0)
///   o_2 = same_2(h_2) + down_1(h_1)
///   N_l = gamma_l o_l, one number a level
/// with `twice` the bilinear enlargement (corners not aligned) and `down` convolutions of stride 2.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include <norma/core/status.hpp>
#include <norma/core/view.hpp>

namespace norma::nn {

/// Levels of a sample.
inline constexpr int kScales = 3;
/// Slope of a subnet's activation below 0.
inline constexpr float kCrossScaleSlope = 0.1f;
/// What a block's output is limited to. Beyond it a block has no inverse.
inline constexpr float kCrossScaleLimit = 1e6f;
/// Most channels of a map and of a subnet's hidden layer: keeps the size of every weight inside 64 bits.
inline constexpr std::int64_t kMostCrossScaleChannels = 1 << 16;

/// The maps of all levels of a batch, each dense and channels last.
template <class T>
struct ScaleViews {
  std::array<TensorView<T>, kScales> level = {};

  constexpr ScaleViews() noexcept = default;
  constexpr ScaleViews(TensorView<T> fine, TensorView<T> middle, TensorView<T> coarse) noexcept : level{fine, middle, coarse} {}
  template <class U>
  requires(std::is_same_v<const U, T> &&
           !std::is_same_v<U, T>) constexpr ScaleViews(const ScaleViews<U>& other) noexcept  // NOLINT(google-explicit-constructor)
      : level{other[0], other[1], other[2]} {}
  [[nodiscard]] constexpr const TensorView<T>& operator[](int l) const noexcept { return level[static_cast<std::size_t>(l)]; }
  [[nodiscard]] constexpr TensorView<T>& operator[](int l) noexcept { return level[static_cast<std::size_t>(l)]; }
};

/// A level's map: both sides halve from level to level.
constexpr Shape scale_shape(Shape finest, int level) noexcept { return {finest.height >> level, finest.width >> level, finest.channels}; }
/// Numbers of one sample.
constexpr std::int64_t scale_dims(Shape finest) noexcept {
  std::int64_t dims = 0;
  for (int l = 0; l < kScales; ++l) dims += scale_shape(finest, l).count();
  return dims;
}

/// One block.
struct CrossScaleShape {
  std::int64_t channels = 0;  ///< of every level
  std::int64_t hidden = 1024;
  std::int64_t kernel = 3;  ///< side of the subnets' convolutions, odd
  float alpha = 3.0f;       ///< of the clamp

  friend constexpr bool operator==(const CrossScaleShape&, const CrossScaleShape&) = default;

  [[nodiscard]] constexpr std::int64_t first() const noexcept { return channels / 2; }
  [[nodiscard]] constexpr std::int64_t second() const noexcept { return channels - first(); }
  /// Step 0 changes the first half, step 1 the second.
  [[nodiscard]] constexpr std::int64_t active(int step) const noexcept { return step == 0 ? first() : second(); }
  [[nodiscard]] constexpr std::int64_t passive(int step) const noexcept { return step == 0 ? second() : first(); }
};

inline constexpr int kCrossScaleConvolutions = 10;
/// Places of a subnet's convolutions: of level l (`in`, `same`), from level l to the next finer (`up`) or coarser one (`down`).
constexpr int cross_scale_in(int l) noexcept { return l; }
constexpr int cross_scale_same(int l) noexcept { return 3 + l; }
constexpr int cross_scale_up(int l) noexcept { return 5 + l; }
constexpr int cross_scale_down(int l) noexcept { return 8 + l; }

/// One convolution of a subnet and its place in the block's parameters: weights [out, in, kernel, kernel], as weight files have them, then biases
/// [out].
struct CrossScaleConvolution {
  int level = 0;  ///< of the map that it reads (`up`: after the enlargement)
  int stride = 1;
  std::int64_t in = 0, out = 0, kernel = 0;
  std::int64_t weight = 0, bias = 0;

  [[nodiscard]] constexpr std::int64_t fan_in() const noexcept { return in * kernel * kernel; }
  [[nodiscard]] constexpr std::int64_t weights() const noexcept { return out * fan_in(); }
};

/// A subnet's parameters: its convolutions one behind the other, then gamma of the three levels. Nothing is filled up.
struct CrossScaleSubnet {
  std::array<CrossScaleConvolution, kCrossScaleConvolutions> convolutions = {};
  std::int64_t gamma = 0;
  std::int64_t end = 0;
};

/// The subnet of one step; step 1's parameters follow step 0's.
constexpr CrossScaleSubnet cross_scale_subnet(const CrossScaleShape& s, int step) noexcept {
  CrossScaleSubnet subnet;
  std::int64_t at = step == 0 ? 0 : cross_scale_subnet(s, 0).end;
  for (int c = 0; c < kCrossScaleConvolutions; ++c) {
    CrossScaleConvolution& own = subnet.convolutions[static_cast<std::size_t>(c)];
    own.level = c < 6 ? c % 3 : c < 8 ? c - 6 : c - 8;
    own.stride = c < 8 ? 1 : 2;
    own.in = c < 3 ? s.passive(step) : s.hidden;
    own.out = c < 3 ? s.hidden : 2 * s.active(step);
    own.kernel = s.kernel;
    own.weight = at;
    own.bias = at + own.weights();
    at = own.bias + own.out;
  }
  subnet.gamma = at;
  subnet.end = at + kScales;
  return subnet;
}

/// Trainable numbers of a block: what papers count, and the floats of its parameters.
constexpr std::int64_t parameter_count(const CrossScaleShape& s) noexcept { return cross_scale_subnet(s, 1).end; }
constexpr std::int64_t parameter_count(std::span<const CrossScaleShape> blocks) noexcept {
  std::int64_t count = 0;
  for (const CrossScaleShape& s : blocks) count += parameter_count(s);
  return count;
}

/// The name of a convolution, as initialisers and messages spell it.
constexpr std::string_view cross_scale_name(int convolution) noexcept {
  constexpr std::string_view names[] = {"in0", "in1", "in2", "same0", "same1", "same2", "up1", "up2", "down0", "down1"};
  return names[convolution];
}

/// The blocks of the published method on 304 channels: three with convolutions of side 3, one of side 5.
inline constexpr CrossScaleShape kCsFlowBlocks[] = {{304, 1024, 3}, {304, 1024, 3}, {304, 1024, 3}, {304, 1024, 5}};
static_assert(cross_scale_subnet(kCsFlowBlocks[0], 0).end == 23819347);
static_assert(cross_scale_subnet(kCsFlowBlocks[3], 0).end == 66155603);
static_assert(parameter_count(kCsFlowBlocks) == 275227288);

/// Whether a shape makes sense. `who` starts the message.
inline Status check_shape(std::string_view who, const CrossScaleShape& s) {
  const std::string name(who);
  constexpr std::int64_t most = kMostCrossScaleChannels;
  if (s.channels < 2 || s.channels > most) {
    return {Errc::invalid_argument, name + ": expected 2 to " + std::to_string(most) + " channels, found " + std::to_string(s.channels)};
  }
  if (s.hidden < 1 || s.hidden > most) {
    return {Errc::invalid_argument, name + ": expected 1 to " + std::to_string(most) + " hidden channels, found " + std::to_string(s.hidden)};
  }
  if (s.kernel < 1 || s.kernel > 7 || s.kernel % 2 == 0) {
    return {Errc::invalid_argument, name + ": expected kernel 1, 3, 5 or 7, found " + std::to_string(s.kernel)};
  }
  if (!(s.alpha > 0.0f) || !std::isfinite(s.alpha)) {
    return {Errc::invalid_argument, name + ": expected a clamp alpha > 0, found " + std::to_string(s.alpha)};
  }
  return {};
}
/// Whether all levels of a map have whole sides.
inline Status check_finest(std::string_view who, Shape finest) {
  constexpr int halvings = 1 << (kScales - 1);
  if (finest.height >= halvings && finest.width >= halvings && finest.height % halvings == 0 && finest.width % halvings == 0) return {};
  return {Errc::shape_mismatch, std::string(who) + ": expected a finest map with sides that are multiples of " + std::to_string(halvings) +
                                    ", found " + std::to_string(finest.height) + " x " + std::to_string(finest.width)};
}

}  // namespace norma::nn
