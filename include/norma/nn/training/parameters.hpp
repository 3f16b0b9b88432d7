/// \file
/// A network's numbers in one flat buffer: what learns first, in the order of the network; then frozen weights; then the running statistics
/// of batch norms. Gradients and an optimiser's moments are flat buffers of the part that learns.
/// Names and shapes are those of the weight file, so that what is saved is what `Executor::create` and other tools read.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <norma/core/finite.hpp>
#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/nn/training/plan.hpp>

namespace norma::nn {

/// One tensor of a network within the flat buffer.
struct ParameterPiece {
  std::string name;
  TensorRole role = TensorRole::weight;
  std::vector<std::int64_t> shape;
  std::int64_t offset = 0;
  std::int64_t count = 0;
  std::int64_t fan_in = 1;  ///< inputs of one output of the layer, as PyTorch counts them (also of a bias)
  std::int64_t fan_out = 1;
  bool trained = false;
  bool learning_layer = false;  ///< of a layer that is not frozen: `trained`, or running statistics that move
  bool of_norm = false;         ///< belongs to a layer norm or batch norm
};

/// Where everything lies. Nodes that name the same tensor share it.
class ParameterTable {
 public:
  /// Errors: shape_mismatch (two nodes want one tensor in two shapes, or one frozen and one not).
  static Result<ParameterTable> create(const TrainingPlan& plan) {
    ParameterTable layout;
    for (int id = 1; id < plan.size(); ++id) {
      const TrainingNode& at = plan.node(id);
      if (!at.needed) continue;
      const Node& node = plan.graph()[id];
      for (const TensorSpec& spec : NodeTensors(node, at.in, at.out)) {
        ParameterPiece piece;
        piece.name = spec.name();
        piece.role = spec.role;
        piece.shape.assign(spec.shape().begin(), spec.shape().end());
        piece.count = spec.count();
        piece.trained = at.trained && spec.is_parameter();
        piece.learning_layer = at.trained;
        piece.of_norm =
            node.op == Op::layer_norm || (spec.role != TensorRole::weight && spec.role != TensorRole::bias && detail::has_batch_norm(node));
        const std::int64_t taps = node.op == Op::convolution ? std::int64_t{node.kernel.height} * node.kernel.width : 1;
        // PyTorch takes the second size of a weight for its inputs, also where it enlarges.
        const std::int64_t inputs = node.transposed ? at.out.channels : at.in.channels / node.groups;
        piece.fan_in = inputs * taps;
        piece.fan_out = (node.transposed ? at.in.channels : at.out.channels) * taps;
        if (node.transposed) piece.fan_in /= node.groups;
        if (const ParameterPiece* known = layout.find(piece.name); known != nullptr) {
          if (known->shape != piece.shape || known->trained != piece.trained) {
            return Status(Errc::shape_mismatch,
                          "nn::ParameterTable::create: " + detail::describe(plan.graph(), id) + ": tensor '" + piece.name +
                              "' is shared with a layer that " +
                              (known->shape != piece.shape ? "has another shape" : "is frozen where this is not, or not where this is"));
          }
          continue;
        }
        layout.pieces_.push_back(std::move(piece));
      }
    }
    std::int64_t offset = 0;
    const auto lay = [&](auto&& belongs) {
      for (ParameterPiece& piece : layout.pieces_) {
        if (!belongs(piece)) continue;
        piece.offset = offset;
        offset += piece.count;
      }
      return offset;
    };
    const auto statistic = [](const ParameterPiece& p) { return p.role == TensorRole::norm_mean || p.role == TensorRole::norm_variance; };
    layout.trained_ = lay([](const ParameterPiece& p) { return p.trained; });
    lay([&](const ParameterPiece& p) { return !p.trained && !statistic(p); });
    layout.total_ = lay(statistic);
    return layout;
  }

  /// In the order of the network.
  [[nodiscard]] std::span<const ParameterPiece> pieces() const noexcept { return pieces_; }
  /// Numbers that learn: the size of gradients and moments.
  [[nodiscard]] std::int64_t trained() const noexcept { return trained_; }
  /// All numbers, running statistics included.
  [[nodiscard]] std::int64_t total() const noexcept { return total_; }
  [[nodiscard]] const ParameterPiece* find(std::string_view name) const noexcept {
    for (const ParameterPiece& piece : pieces_) {
      if (piece.name == name) return &piece;
    }
    return nullptr;
  }

 private:
  std::vector<ParameterPiece> pieces_;
  std::int64_t trained_ = 0;
  std::int64_t total_ = 0;
};

/// The numbers. Weights zero, running variances one, norms one until they are initialised or loaded.
class Parameters {
 public:
  Parameters() = default;
  explicit Parameters(ParameterTable layout)
      : layout_(std::make_shared<const ParameterTable>(std::move(layout))), values_(layout_->total()) {
    for (const ParameterPiece& piece : layout_->pieces()) {
      const bool one = piece.role == TensorRole::norm_variance || piece.role == TensorRole::norm_weight ||
                       piece.role == TensorRole::scale || (piece.role == TensorRole::weight && piece.shape.size() == 1);
      if (one) std::fill_n(values_.data() + piece.offset, piece.count, 1.0f);
    }
  }
  static Result<Parameters> create(const TrainingPlan& plan) {
    NORMA_TRY(auto layout, ParameterTable::create(plan));
    return Parameters(std::move(layout));
  }

  [[nodiscard]] const ParameterTable& layout() const noexcept { return *layout_; }
  [[nodiscard]] bool empty() const noexcept { return layout_ == nullptr; }
  /// Everything, as the layout says.
  [[nodiscard]] std::span<float> values() noexcept { return values_.span(); }
  [[nodiscard]] std::span<const float> values() const noexcept { return values_.span(); }
  /// What learns.
  [[nodiscard]] std::span<float> trained() noexcept { return values_.span().first(static_cast<std::size_t>(layout_->trained())); }
  [[nodiscard]] std::span<const float> trained() const noexcept {
    return values_.span().first(static_cast<std::size_t>(layout_->trained()));
  }
  [[nodiscard]] std::span<float> of(const ParameterPiece& piece) noexcept {
    return values_.span().subspan(static_cast<std::size_t>(piece.offset), static_cast<std::size_t>(piece.count));
  }
  [[nodiscard]] std::span<const float> of(const ParameterPiece& piece) const noexcept {
    return values_.span().subspan(static_cast<std::size_t>(piece.offset), static_cast<std::size_t>(piece.count));
  }

  /// Replaces all numbers by those of a weight file, whose names may carry a `prefix`; with a `part`, only the tensors whose names begin
  /// with it (a pretrained body under a new head). Errors name file and tensor: missing, of another shape, not finite; not_found for a part
  /// that the network does not have. Nothing is changed on an error.
  Status load(const io::Weights& weights, std::string_view prefix = {}, std::string_view part = {}) {
    Buffer<float> read = values_;
    bool any = false;
    for (const ParameterPiece& piece : layout_->pieces()) {
      if (!part.empty() && !name_begins_with(piece.name, part)) continue;
      any = true;
      const std::string name = std::string(prefix) + piece.name;
      const auto to = read.span().subspan(static_cast<std::size_t>(piece.offset), static_cast<std::size_t>(piece.count));
      if (Status status = weights.read(name, piece.shape, to); !status) return status.with_context("nn::Parameters::load");
      if (first_not_finite(to) >= 0) {
        return {Errc::not_finite, "nn::Parameters::load: '" + weights.name() + "': tensor '" + name + "' holds a NaN or an infinity"};
      }
    }
    if (!any) return {Errc::not_found, "nn::Parameters::load: the network has no tensor that begins with '" + std::string(part) + "'"};
    values_ = std::move(read);
    return {};
  }
  /// Adds all tensors to a file, under `prefix` + their names. Their bytes are not copied: the object must live until the file is written.
  Status save(io::TensorFileWriter& writer, std::string_view prefix = {}) const {
    for (const ParameterPiece& piece : layout_->pieces()) {
      NORMA_CHECK(writer.add_view(std::string(prefix) + piece.name, piece.shape, of(piece)));
    }
    return {};
  }
  /// The same as an opened weight file in memory, for `Executor::create`.
  [[nodiscard]] Result<io::Weights> to_weights(std::string_view name = "trained network") const {
    io::TensorFileWriter writer;
    NORMA_CHECK(save(writer));
    NORMA_TRY(auto bytes, writer.to_bytes());
    return io::Weights::from_bytes(std::move(bytes), name);
  }

 private:
  std::shared_ptr<const ParameterTable> layout_;
  Buffer<float> values_;
};

}  // namespace norma::nn
