/// \file
/// Which pixels DifferNet's score hangs on: its derivative through the flow and the network, and the map that the paper makes of it.
/// Source: Rudolph et al., "Same same but DifferNet", WACV 2021, section 3.5; turned back by bilinear samples where the public code takes cubic
///         splines.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/thread_pool.hpp>
#include <norma/image/gaussian.hpp>
#include <norma/methods/differnet.hpp>
#include <norma/nn/training/executor.hpp>

namespace norma {

namespace detail {

/// Channel c of a turned picture, seen upright again: bilinear, zero beyond the edge.
inline void turn_back(TensorView<const float> turned, std::int64_t c, double degrees, MapView<float> out) noexcept {
  const double radians = degrees * std::numbers::pi / 180.0, cosine = std::cos(radians), sine = std::sin(radians);
  const double middle = (static_cast<double>(out.rows) - 1.0) / 2.0;
  const auto at = [&](std::int64_t y, std::int64_t x) {
    return y >= 0 && y < out.rows && x >= 0 && x < out.cols ? static_cast<double>(turned(0, y, x, c)) : 0.0;
  };
  for (std::int64_t y = 0; y < out.rows; ++y) {
    for (std::int64_t x = 0; x < out.cols; ++x) {
      const double dx = static_cast<double>(x) - middle, dy = static_cast<double>(y) - middle;
      const double from_x = cosine * dx + sine * dy + middle, from_y = cosine * dy - sine * dx + middle;
      const auto left = static_cast<std::int64_t>(std::floor(from_x)), top = static_cast<std::int64_t>(std::floor(from_y));
      const double u = from_x - static_cast<double>(left), v = from_y - static_cast<double>(top);
      out(y, x) = static_cast<float>((1.0 - v) * ((1.0 - u) * at(top, left) + u * at(top, left + 1)) +
                                     v * ((1.0 - u) * at(top + 1, left) + u * at(top + 1, left + 1)));
    }
  }
}

}  // namespace detail

/// Gradients of DifferNet's score by the pixels that the network sees, and the map that the paper makes of them. Independent of the detector
/// once it is made. Not for a camera's pace: it holds the flow for both ways and gradients of all its weights (2.1 GB for the published
/// size, for a moment twice that while it is made) and does some three times the work of a score.
/// Memory: allocates. Threads: one caller at a time. Determinism: bit-equal for any number of threads.
class ScoreGradient {
 public:
  /// `detector` is a fitted DifferNet. Errors: not_fitted; unsupported for a network that has no way back (attention).
  template <class NetworkT, class FlowT, class MetricT, class ExecutionT>
  static Result<ScoreGradient> create(const Detector<ImageScales<NetworkT, PooledScales>, VectorFlow<FlowT>, MetricT, ExecutionT>& detector) {
    if (!detector.fitted()) return Status{Errc::not_fitted, "ScoreGradient: fit the detector or open a model first"};
    const auto& settings = detector.backbone().settings();
    ScoreGradient made;
    made.preprocess_ = settings.preprocess;
    made.rotations_ = settings.scales.rotations;
    const nn::GraphView graph = settings.network.graph();
    std::vector<std::string_view> all;
    for (const nn::Node& node : graph.nodes) {
      if (!node.name.view().empty()) all.push_back(node.name.view());
    }
    const std::array<std::string_view, 1> tap{settings.layers[0]};
    const nn::TrainingOptions options{.frozen = all, .input_gradient = nn::InputGradient::yes};
    for (std::size_t i = 0; i < kImageScales; ++i) {
      const std::int64_t side = settings.preprocess.height >> i;
      Scale& scale = made.scales_[i];
      NORMA_TRY(scale.executor, nn::TrainingExecutor::create(graph, tap, side, side, options));
      scale.parameters = scale.executor.make_parameters();
      NORMA_CHECK(load(detector.backbone().weights(), graph, scale.parameters));
    }
    // By way of a file: an opened model does not keep its weights in the order of the parameters.
    io::TensorFileWriter writer;
    NORMA_CHECK(detector.estimator().save(writer));
    NORMA_TRY(std::vector<std::byte> bytes, writer.to_bytes());
    NORMA_TRY(const io::Weights file, io::Weights::from_bytes(std::move(bytes), "the detector"));
    const FeatureShapes shapes = detector.estimator().shapes();
    NORMA_CHECK(made.load_flow(file, VectorFlow<FlowT>::block(shapes, detector.settings().estimator), detector.settings().estimator.flow_steps));
    return made;
  }

  /// Score of one view, whose normalised pixels are `input` [1, S, S, 3], and its derivative by each of them, of the same shape.
  Result<double> of_input(TensorView<const float> input, TensorView<float> gradient, Parallel parallel = {}) {
    const std::int64_t side = preprocess_.height;
    if (input.batch != 1 || !(input.shape() == Shape{side, side, 3}) || gradient.batch != 1 || !(gradient.shape() == input.shape())) {
      return Status{Errc::shape_mismatch,
                    "ScoreGradient::of_input: expected input and gradient of 1 x " + std::to_string(side) + " x " + std::to_string(side) + " x 3"};
    }
    std::array<nn::TrainingPass, kImageScales> pass;
    std::array<TensorView<const float>, kImageScales> map;
    std::vector<float> vector;
    for (std::size_t i = 0; i < kImageScales; ++i) {
      Scale& scale = scales_[i];
      const std::int64_t step = std::int64_t{1} << i, small = side >> i;
      if (scale.picture.empty()) {
        scale.picture = Tensor<float>(1, small, small, 3);
        scale.gradient = Tensor<float>(1, small, small, 3);
      }
      const std::size_t bytes = scale.executor.workspace_bytes(1, parallel.workers());
      if (static_cast<std::size_t>(scale.memory.size()) < bytes) scale.memory = Buffer<std::byte>(static_cast<std::int64_t>(bytes));
      detail::sample_pixels(input, step, scale.picture.view());
      Arena arena(scale.memory.span());
      NORMA_CHECK(scale.executor.forward(scale.parameters, std::as_const(scale.picture).view(), nn::BatchNorm::evaluation, arena, parallel,
                                         {&map[i], 1}, pass[i]));
      const auto rows = map[i].patches();
      for (std::int64_t c = 0; c < rows.cols; ++c) {
        double sum = 0.0;
        for (std::int64_t r = 0; r < rows.rows; ++r) sum += static_cast<double>(rows(r, c));
        vector.push_back(static_cast<float>(sum / static_cast<double>(rows.rows)));
      }
    }

    const Shape shape{1, 1, static_cast<std::int64_t>(vector.size())};
    const std::size_t bytes = flow_.scratch_bytes(nn::FlowPass::backward, 1, parallel.workers());
    if (static_cast<std::size_t>(memory_.size()) < bytes) memory_ = Buffer<std::byte>(static_cast<std::int64_t>(bytes));
    std::vector<float> z(vector.size()), slope(vector.size());
    {
      Arena arena(memory_.span());
      NORMA_CHECK(
          flow_.forward(TensorView<const float>(vector.data(), 1, shape), {}, TensorView<float>(z.data(), 1, shape), {}, {}, parallel, arena));
    }
    double squares = 0.0;
    const auto dims = static_cast<double>(z.size());
    for (std::size_t d = 0; d < z.size(); ++d) {
      squares += static_cast<double>(z[d]) * static_cast<double>(z[d]);
      slope[d] = static_cast<float>(2.0 * static_cast<double>(z[d]) / dims);
    }
    {
      Arena arena(memory_.span());
      const TensorView<float> slopes(slope.data(), 1, shape);
      NORMA_CHECK(flow_.backward(TensorView<const float>(z.data(), 1, shape), {}, slopes, {}, gradients_.span(), slopes, {}, parallel, arena));
    }

    std::fill_n(gradient.data, gradient.count(), 0.0f);
    std::size_t first = 0;
    for (std::size_t i = 0; i < kImageScales; ++i) {
      Scale& scale = scales_[i];
      Tensor<float> spread(1, map[i].shape());  // the mean's derivative is the same at every position
      const auto rows = spread.view().patches();
      for (std::int64_t r = 0; r < rows.rows; ++r) {
        for (std::int64_t c = 0; c < rows.cols; ++c) rows(r, c) = slope[first + static_cast<std::size_t>(c)] / static_cast<float>(rows.rows);
      }
      first += static_cast<std::size_t>(rows.cols);
      const TensorView<const float> tap_gradient = std::as_const(spread).view();
      NORMA_CHECK(scale.executor.backward(scale.parameters, pass[i], {&tap_gradient, 1}, {}, parallel, scale.gradient.view()));
      const std::int64_t step = std::int64_t{1} << i, small = side >> i;
      const float* from = scale.gradient.data();
      for (std::int64_t y = 0; y < small; ++y) {
        for (std::int64_t x = 0; x < small; ++x) {
          for (std::int64_t c = 0; c < 3; ++c) gradient(0, y * step, x * step, c) += *from++;
        }
      }
    }
    return squares / dims;
  }

  /// The paper's map, [S, S]: for each of the turns the gradient, turned back and smoothed (sigma 3); the mean of the absolute values over
  /// turns and channels, squared. Its unit means little; larger is where the score would change most.
  Result<Map<float>> map(const ImageView& frame, Parallel parallel = {}) {
    Image prepared;
    NORMA_CHECK(image::crop(preprocess_, frame, prepared));
    const std::int64_t side = preprocess_.height;
    Tensor<float> input(1, side, side, 3), gradient(1, side, side, 3);
    Map<float> plane(side, side), total(side, side);
    constexpr double kSigma = 3.0;
    const std::size_t bytes = arena_bytes<std::uint8_t>(side * side * 3) + image::gaussian_scratch_bytes<float>(side, side, kSigma);
    Buffer<std::byte> memory(static_cast<std::int64_t>(bytes));
    for (std::int64_t turn = 0; turn < rotations_; ++turn) {
      const auto degrees = static_cast<double>(static_cast<float>(360.0 * static_cast<double>(turn) / static_cast<double>(rotations_)));
      Arena arena(memory.span());
      NORMA_CHECK(image::normalise_turned(preprocess_, prepared.view(), degrees, input.view(), arena));
      NORMA_CHECK(of_input(std::as_const(input).view(), gradient.view(), parallel).status());
      for (std::int64_t c = 0; c < 3; ++c) {
        detail::turn_back(std::as_const(gradient).view(), c, degrees, plane.view());
        NORMA_CHECK(image::gaussian_filter<float>(plane.view(), plane.view(), kSigma, arena));
        for (std::int64_t i = 0; i < side * side; ++i) total.data()[i] += std::abs(plane.data()[i]);
      }
    }
    const float share = 1.0f / (3.0f * static_cast<float>(rotations_));
    for (std::int64_t i = 0; i < side * side; ++i) {
      const float mean = total.data()[i] * share;
      total.data()[i] = mean * mean;
    }
    return total;
  }

 private:
  struct Scale {
    nn::TrainingExecutor executor;
    nn::Parameters parameters;
    Tensor<float> picture, gradient;
    Buffer<std::byte> memory;
  };

  // A flow with a way back, from the tensors that VectorFlow writes.
  Status load_flow(const io::Weights& file, const nn::CouplingShape& shape, std::int64_t steps) {
    const nn::ParameterLayout layout = nn::parameter_layout(shape);
    Buffer<float> parameters(steps * layout.total);
    std::vector<std::vector<std::int64_t>> permutations(static_cast<std::size_t>(steps));
    std::vector<nn::FlowBlock> blocks;
    for (std::int64_t b = 0; b < steps; ++b) {
      const std::string own = "estimator." + std::to_string(b) + ".";
      const auto block = parameters.span().subspan(static_cast<std::size_t>(b * layout.total), static_cast<std::size_t>(layout.total));
      for (int step = 0; step < shape.steps(); ++step) {
        for (int l = 0; l < shape.layers; ++l) {
          const nn::LayerLayout& at = layout.layers[step][l];
          const std::string layer = own + "subnet" + std::to_string(step) + "." + std::to_string(l);
          std::vector<float> weight(static_cast<std::size_t>(at.out * at.x)), bias(static_cast<std::size_t>(at.out));
          NORMA_CHECK(file.read(layer + ".weight", {at.out, at.x}, std::span(weight)));
          NORMA_CHECK(file.read(layer + ".bias", {at.out}, std::span(bias)));
          NORMA_CHECK(nn::pack_layer(at, {weight, bias}, block));
        }
      }
      auto& permutation = permutations[static_cast<std::size_t>(b)];
      permutation.resize(static_cast<std::size_t>(shape.channels));
      NORMA_CHECK(file.read_raw(own + "permutation", io::DType::i64, {shape.channels}, std::as_writable_bytes(std::span(permutation))));
      blocks.push_back({shape, permutation, {}});
    }
    NORMA_TRY(flow_, nn::Flow::create(blocks, {1, 1, shape.channels}, nn::FlowUse::training));
    memory_ = Buffer<std::byte>(static_cast<std::int64_t>(flow_.scratch_bytes(nn::FlowPass::prepare, 1, 1)));
    Arena arena(memory_.span());
    NORMA_CHECK(flow_.prepare(parameters.span(), Parallel{}, arena));
    gradients_ = Buffer<float>(flow_.parameters());
    return {};
  }

  // Weight files may hold a batch norm folded into its convolution: then the norm does nothing but add the convolution's bias.
  static Status load(const io::Weights& weights, nn::GraphView graph, nn::Parameters& parameters) {
    const auto take = [&](const nn::ParameterPiece& piece, const std::string& tensor) -> Status {
      const auto values = parameters.of(piece);
      NORMA_CHECK(weights.read(tensor, piece.shape, values));
      if (first_not_finite(values) < 0) return {};
      return {Errc::not_finite, "ScoreGradient: '" + weights.name() + "': tensor '" + tensor + "' holds a NaN or an infinity"};
    };
    for (const nn::ParameterPiece& piece : parameters.layout().pieces()) {
      if (weights.find(piece.name) != nullptr) {
        NORMA_CHECK(take(piece, piece.name));
        continue;
      }
      const nn::Node* folded = nullptr;
      for (const nn::Node& node : graph.nodes) {
        if (node.op == nn::Op::convolution && node.norm == nn::Norm::batch && !node.bias && nn::name_begins_with(piece.name, node.second.view()))
          folded = &node;
      }
      if (folded == nullptr) return weights.get(piece.name).status().with_context("ScoreGradient");
      switch (piece.role) {
        case nn::TensorRole::norm_bias: NORMA_CHECK(take(piece, std::string(folded->name.view()) + ".bias")); break;
        case nn::TensorRole::norm_variance:
          for (float& value : parameters.of(piece)) value = 1.0f - folded->epsilon;
          break;
        case nn::TensorRole::norm_mean:
          for (float& value : parameters.of(piece)) value = 0.0f;
          break;
        default:
          for (float& value : parameters.of(piece)) value = 1.0f;
          break;
      }
    }
    return {};
  }

  Preprocess preprocess_;
  std::int64_t rotations_ = 1;
  std::array<Scale, kImageScales> scales_;
  nn::Flow flow_;
  Buffer<float> gradients_;  // of the weights: made on the way, not looked at
  Buffer<std::byte> memory_;
};

/// The gradient map of one frame; for several make a ScoreGradient once. `threads` <= 0: one for every hardware thread.
template <class DetectorT>
Result<Map<float>> gradient_map(const DetectorT& detector, const ImageView& frame, int threads = 1) {
  NORMA_TRY(ScoreGradient gradient, ScoreGradient::create(detector));
  ThreadPool pool(threads);
  return gradient.map(frame, pool.parallel());
}

}  // namespace norma
