/// \file
/// Optimisers over flat buffers, with the formulas of PyTorch: Adam (coupled or decoupled weight decay) and SGD (momentum, Nesterov);
/// gradient clipping; learning-rate schedules.
/// Source:      Kingma and Ba, "Adam", ICLR 2015; Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019
/// Accuracy:    formulas in float as written, a few roundings a number and step; norms in double.
/// Determinism: bit-equal for any number of workers; other instruction sets differ in rounding only.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <norma/core/parallel.hpp>
#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/linalg/simd.hpp>
#include <norma/nn/training/parameters.hpp>

namespace norma::nn::detail {

inline constexpr std::int64_t kOptimiserGrain = 32768;

/// The numbers of one step of Adam, the same for all weights of a group.
struct AdamStep {
  float beta1, keep1, beta2, keep2;  ///< keep: 1 - beta
  float inverse_root;                ///< 1 / sqrt(1 - beta2^t)
  float epsilon;
  float rate;     ///< over 1 - beta1^t
  float coupled;  ///< decay that is added to the gradient
  float shrink;   ///< factor of the weight before anything else
};
struct SgdStep {
  float rate, momentum, decay;
  bool nesterov;
};

struct OptimiserKernels {
  void (*adam)(const AdamStep& step, const float* gradients, float* weights, float* mean, float* squares, std::int64_t count);
  void (*sgd)(const SgdStep& step, const float* gradients, float* weights, float* velocity, std::int64_t count);
  void (*scale)(float* x, float factor, std::int64_t count);
  double (*sum_of_squares)(const float* x, std::int64_t count);
};

}  // namespace norma::nn::detail

// Newer compilers have one name for the square root of any vector.
#if defined(__has_builtin)
#if __has_builtin(__builtin_elementwise_sqrt)
#define NORMA_HAS_ELEMENTWISE_SQRT 1
#endif
#endif
#ifndef NORMA_HAS_ELEMENTWISE_SQRT
#define NORMA_HAS_ELEMENTWISE_SQRT 0
#endif
#define NORMA_SIMD_FILE <norma/nn/kernels/detail/optimiser_kernels.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE
#undef NORMA_HAS_ELEMENTWISE_SQRT

namespace norma::nn {

namespace detail {
inline const OptimiserKernels& optimiser_kernels(InstructionSet set) noexcept { return NORMA_SIMD_SELECT(set, kOptimiserKernels); }
}  // namespace detail

/// Some numbers of the flat buffer with factors of their own.
struct ParameterGroup {
  std::int64_t first = 0, last = 0;  ///< [first, last)
  float rate = 1.0f;                 ///< times the learning rate
  float decay = 1.0f;                ///< times the weight decay
};

/// Factors for the pieces whose names begin with `prefix` (as TrainingOptions::frozen; empty: all) and whose role is asked for.
struct GroupRule {
  std::string_view prefix = {};
  float rate = 1.0f;
  float decay = 1.0f;
  bool only_vectors = false;  ///< biases and norms alone: what often gets no decay
};

/// One group a piece; the first rule that fits a piece decides, without one both factors are 1. Errors: not_found (a prefix without
/// pieces).
inline Result<std::vector<ParameterGroup>> make_groups(const ParameterTable& layout, std::span<const GroupRule> rules) {
  std::vector<bool> used(rules.size(), false);
  std::vector<ParameterGroup> groups;
  for (const ParameterPiece& piece : layout.pieces()) {
    if (!piece.trained) continue;
    ParameterGroup group{piece.offset, piece.offset + piece.count, 1.0f, 1.0f};
    bool decided = false;
    for (std::size_t r = 0; r < rules.size(); ++r) {
      const bool fits =
          (rules[r].prefix.empty() || name_begins_with(piece.name, rules[r].prefix)) && (!rules[r].only_vectors || piece.shape.size() == 1);
      if (!fits) continue;
      used[r] = true;
      if (decided) continue;
      group.rate = rules[r].rate;
      group.decay = rules[r].decay;
      decided = true;
    }
    groups.push_back(group);
  }
  for (std::size_t r = 0; r < rules.size(); ++r) {
    if (!used[r])
      return Status(Errc::not_found, "nn::make_groups: no weights that learn begin with '" + std::string(rules[r].prefix) + "'");
  }
  return groups;
}

struct AdamSettings {
  float learning_rate = 1e-3f;
  float beta1 = 0.9f;
  float beta2 = 0.999f;
  float epsilon = 1e-8f;  ///< added to the root of the corrected second moment
  float weight_decay = 0.0f;
  bool decoupled = false;  ///< false: weight_decay * w is added to the gradient (Adam); true: w shrinks by rate * decay (AdamW)

  template <class Self, class Visitor>
  static constexpr void visit(Self& self, Visitor&& visitor) {
    visitor("learning_rate", self.learning_rate, "step size, > 0");
    visitor("beta1", self.beta1, "decay of the mean of the gradients, in [0, 1)");
    visitor("beta2", self.beta2, "decay of the mean of their squares, in [0, 1)");
    visitor("epsilon", self.epsilon, "added to the root of the second moment, > 0");
    visitor("weight_decay", self.weight_decay, "weight decay, >= 0");
    visitor("decoupled", self.decoupled, "shrink the weights themselves instead of adding to the gradient");
  }
};

struct SgdSettings {
  float learning_rate = 1e-2f;
  float momentum = 0.0f;
  float weight_decay = 0.0f;
  bool nesterov = false;

  template <class Self, class Visitor>
  static constexpr void visit(Self& self, Visitor&& visitor) {
    visitor("learning_rate", self.learning_rate, "step size, > 0");
    visitor("momentum", self.momentum, "share of the last step that is kept, in [0, 1)");
    visitor("weight_decay", self.weight_decay, "weight decay, >= 0");
    visitor("nesterov", self.nesterov, "look ahead by the momentum");
  }
};

namespace detail {

inline Status check_setting(std::string_view who, std::string_view name, float value, bool fine, std::string_view expected) {
  if (fine) return {};
  return {Errc::invalid_argument,
          std::string(who) + ": " + std::string(name) + " must be " + std::string(expected) + ", found " + std::to_string(value)};
}

/// Calls body(first, last, rate factor, decay factor) over the groups, or over everything where there are none.
template <class Body>
void for_each_group(std::span<const ParameterGroup> groups, std::int64_t count, Parallel parallel, Body&& body) {
  const ParameterGroup all{0, count, 1.0f, 1.0f};
  const std::span<const ParameterGroup> list = groups.empty() ? std::span<const ParameterGroup>(&all, 1) : groups;
  for (const ParameterGroup& group : list) {
    parallel.run_ranges(group.last - group.first, kOptimiserGrain,
                        [&](std::int64_t first, std::int64_t last, int) { body(group.first + first, group.first + last, group); });
  }
}

}  // namespace detail

/// Adam. m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; w -= rate / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon).
class Adam {
 public:
  static constexpr std::string_view name = "adam";
  using Settings = AdamSettings;

  Adam() = default;
  /// Errors: invalid_argument. `groups` as `make_groups` makes them; empty: all alike.
  static Result<Adam> create(std::int64_t count, const AdamSettings& settings, std::vector<ParameterGroup> groups = {}) {
    constexpr std::string_view who = "nn::Adam::create";
    const auto& s = settings;
    NORMA_CHECK(
        detail::check_setting(who, "learning_rate", s.learning_rate, s.learning_rate > 0.0f && std::isfinite(s.learning_rate), "above 0"));
    NORMA_CHECK(detail::check_setting(who, "beta1", s.beta1, s.beta1 >= 0.0f && s.beta1 < 1.0f, "in [0, 1)"));
    NORMA_CHECK(detail::check_setting(who, "beta2", s.beta2, s.beta2 >= 0.0f && s.beta2 < 1.0f, "in [0, 1)"));
    NORMA_CHECK(detail::check_setting(who, "epsilon", s.epsilon, s.epsilon > 0.0f && std::isfinite(s.epsilon), "above 0"));
    NORMA_CHECK(
        detail::check_setting(who, "weight_decay", s.weight_decay, s.weight_decay >= 0.0f && std::isfinite(s.weight_decay), "at least 0"));
    Adam adam;
    adam.settings_ = settings;
    adam.groups_ = std::move(groups);
    adam.mean_ = Buffer<float>(count);
    adam.squares_ = Buffer<float>(count);
    return adam;
  }

  /// One step of `weights` against `gradients`; `rate` is the learning rate of this step (a schedule's, or settings().learning_rate).
  void step(std::span<float> weights, std::span<const float> gradients, float rate, Parallel parallel = {},
            InstructionSet set = instruction_set()) {
    NORMA_EXPECTS(static_cast<std::int64_t>(weights.size()) == mean_.size() && gradients.size() == weights.size());
    ++steps_;
    const auto kernel = detail::optimiser_kernels(set).adam;
    const double b1 = static_cast<double>(settings_.beta1), b2 = static_cast<double>(settings_.beta2);
    const double correction1 = 1.0 - std::pow(b1, static_cast<double>(steps_)),
                 correction2 = 1.0 - std::pow(b2, static_cast<double>(steps_));
    detail::AdamStep common{};
    common.beta1 = settings_.beta1, common.keep1 = static_cast<float>(1.0 - b1);
    common.beta2 = settings_.beta2, common.keep2 = static_cast<float>(1.0 - b2);
    common.inverse_root = static_cast<float>(1.0 / std::sqrt(correction2));
    common.epsilon = settings_.epsilon;
    detail::for_each_group(groups_, mean_.size(), parallel, [&](std::int64_t first, std::int64_t last, const ParameterGroup& group) {
      const double own_rate = static_cast<double>(rate) * static_cast<double>(group.rate);
      const float decay = settings_.weight_decay * group.decay;
      detail::AdamStep step = common;
      step.rate = static_cast<float>(own_rate / correction1);
      step.shrink = settings_.decoupled ? static_cast<float>(1.0 - own_rate * static_cast<double>(decay)) : 1.0f;
      step.coupled = settings_.decoupled ? 0.0f : decay;
      kernel(step, gradients.data() + first, weights.data() + first, mean_.data() + first, squares_.data() + first, last - first);
    });
  }

  [[nodiscard]] const AdamSettings& settings() const noexcept { return settings_; }
  [[nodiscard]] std::span<const ParameterGroup> groups() const noexcept { return groups_; }
  [[nodiscard]] std::int64_t steps() const noexcept { return steps_; }
  /// What a checkpoint holds.
  template <class Self, class Visitor>
  static void visit_state(Self& self, Visitor&& visitor) {
    visitor("mean", self.mean_.span());
    visitor("squares", self.squares_.span());
  }
  void set_steps(std::int64_t steps) noexcept { steps_ = steps; }

 private:
  AdamSettings settings_;
  std::vector<ParameterGroup> groups_;
  Buffer<float> mean_, squares_;
  std::int64_t steps_ = 0;
};

/// SGD. g += decay w; v = momentum v + g (the first step: v = g); w -= rate v, with Nesterov rate (g + momentum v).
class Sgd {
 public:
  static constexpr std::string_view name = "sgd";
  using Settings = SgdSettings;

  Sgd() = default;
  static Result<Sgd> create(std::int64_t count, const SgdSettings& settings, std::vector<ParameterGroup> groups = {}) {
    constexpr std::string_view who = "nn::Sgd::create";
    const auto& s = settings;
    NORMA_CHECK(
        detail::check_setting(who, "learning_rate", s.learning_rate, s.learning_rate > 0.0f && std::isfinite(s.learning_rate), "above 0"));
    NORMA_CHECK(detail::check_setting(who, "momentum", s.momentum, s.momentum >= 0.0f && s.momentum < 1.0f, "in [0, 1)"));
    NORMA_CHECK(
        detail::check_setting(who, "weight_decay", s.weight_decay, s.weight_decay >= 0.0f && std::isfinite(s.weight_decay), "at least 0"));
    if (s.nesterov && !(s.momentum > 0.0f)) return Status(Errc::invalid_argument, std::string(who) + ": nesterov needs a momentum above 0");
    Sgd sgd;
    sgd.settings_ = settings;
    sgd.groups_ = std::move(groups);
    sgd.velocity_ = Buffer<float>(count);
    return sgd;
  }

  void step(std::span<float> weights, std::span<const float> gradients, float rate, Parallel parallel = {},
            InstructionSet set = instruction_set()) {
    NORMA_EXPECTS(static_cast<std::int64_t>(weights.size()) == velocity_.size() && gradients.size() == weights.size());
    ++steps_;
    const auto kernel = detail::optimiser_kernels(set).sgd;
    detail::for_each_group(groups_, velocity_.size(), parallel, [&](std::int64_t first, std::int64_t last, const ParameterGroup& group) {
      const detail::SgdStep step{rate * group.rate, settings_.momentum, settings_.weight_decay * group.decay, settings_.nesterov};
      kernel(step, gradients.data() + first, weights.data() + first, velocity_.data() + first, last - first);
    });
  }

  [[nodiscard]] const SgdSettings& settings() const noexcept { return settings_; }
  [[nodiscard]] std::span<const ParameterGroup> groups() const noexcept { return groups_; }
  [[nodiscard]] std::int64_t steps() const noexcept { return steps_; }
  template <class Self, class Visitor>
  static void visit_state(Self& self, Visitor&& visitor) {
    visitor("velocity", self.velocity_.span());
  }
  void set_steps(std::int64_t steps) noexcept { steps_ = steps; }

 private:
  SgdSettings settings_;
  std::vector<ParameterGroup> groups_;
  Buffer<float> velocity_;
  std::int64_t steps_ = 0;
};

/// The Euclidean norm of all gradients, in double: at most 256 pieces, cut by the count alone, whose sums are added in order.
inline double gradient_norm(std::span<const float> gradients, Parallel parallel = {}, InstructionSet set = instruction_set()) {
  constexpr std::int64_t kPieces = 256, kLeast = 4096;
  const auto count = static_cast<std::int64_t>(gradients.size());
  const auto kernel = detail::optimiser_kernels(set).sum_of_squares;
  const std::int64_t piece = std::max(kLeast, (count + kPieces - 1) / kPieces);
  double sums[kPieces] = {};
  parallel.run_ranges(count, piece, [&](std::int64_t first, std::int64_t last, int) {
    sums[first / piece] = kernel(gradients.data() + first, last - first);
  });
  double total = 0.0;
  for (const double sum : sums) total += sum;
  return std::sqrt(total);
}

/// Scales the gradients by min(1, most / (norm + 1e-6)), as PyTorch's clip_grad_norm_; returns the norm before. A norm that is not finite
/// leaves them as they are.
inline double clip_gradient_norm(std::span<float> gradients, double most, Parallel parallel = {}, InstructionSet set = instruction_set()) {
  const double norm = gradient_norm(gradients, parallel, set);
  const double factor = most / (norm + 1e-6);
  if (!(factor < 1.0) || !std::isfinite(norm)) return norm;
  const auto kernel = detail::optimiser_kernels(set).scale;
  parallel.run_ranges(
      static_cast<std::int64_t>(gradients.size()), detail::kOptimiserGrain,
      [&](std::int64_t first, std::int64_t last, int) { kernel(gradients.data() + first, static_cast<float>(factor), last - first); });
  return norm;
}

/// Learning rates over time: a pure function of the position, so that a run that goes on needs only the position. The position counts
/// epochs, steps, or parts of epochs, whatever the caller passes.
struct Schedule {
  enum class Kind : std::uint8_t { constant, step, cosine };
  Kind kind = Kind::constant;
  double length = 0.0;                  ///< cosine: where it ends (it stays there); step: unused
  double end_factor = 0.0;              ///< cosine: times the rate at its end
  std::vector<double> milestones = {};  ///< step: where the factor is applied once more
  double step_factor = 0.1;             ///< step
  double warm_up = 0.0;                 ///< linear from `warm_up_factor` times the rate to the schedule's value at its end
  double warm_up_factor = 0.1;

  /// The learning rate at `position` >= 0.
  [[nodiscard]] double rate(double base, double position) const {
    if (position < warm_up) {
      const double from = base * warm_up_factor, to = plain(base, warm_up);
      return from + (to - from) * position / warm_up;
    }
    return plain(base, position);
  }

 private:
  [[nodiscard]] double plain(double base, double position) const {
    switch (kind) {
      case Kind::constant: return base;
      case Kind::step: {
        double value = base;
        for (const double milestone : milestones) {
          if (position >= milestone) value *= step_factor;
        }
        return value;
      }
      case Kind::cosine: {
        const double share = length > 0.0 ? std::min(position / length, 1.0) : 1.0;
        const double lowest = base * end_factor;
        return lowest + (base - lowest) * 0.5 * (1.0 + std::cos(std::numbers::pi * share));
      }
    }
    return base;
  }
};

constexpr std::string_view to_string(Schedule::Kind kind) noexcept {
  switch (kind) {
    case Schedule::Kind::constant: return "constant";
    case Schedule::Kind::step: return "step";
    case Schedule::Kind::cosine: return "cosine";
  }
  return "unknown";
}

}  // namespace norma::nn
