/// \file
/// One Gaussian per position of the feature grid: for objects that always stand in the same place.
/// Source:      Defard et al., "PaDiM", ICPR 2021 (arXiv 2011.08785), section III-B.
/// Shapes:      observe level 0 [1, h, w, d]; mean [h w, d]; factor [h w, d (d + 1) / 2]
/// Cost:        fit O(h w d^2) time an image, memory O(h w d^2) whatever the number of images
/// Determinism: bitwise for a fixed machine, any number of threads; merging halves changes the last bits only
#pragma once

#include <string>
#include <utility>

#include <norma/concepts/estimator.hpp>
#include <norma/core/finite.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/linalg/covariance.hpp>
#include <norma/linalg/mahalanobis.hpp>

namespace norma {

/// `Sums` gathers the images: norma::GaussianAccumulator, or one with the same calls, as cuda::GaussianAccumulator. Both give the same model up to rounding, so the
/// name, and with it the model file, does not depend on it.
template <class Sums = GaussianAccumulator>
class BasicPositionGaussian {
 public:
  static constexpr std::string_view name = "position_gaussian";
  struct Settings {
    double regularisation = 0.01;
    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      visitor("regularisation", self.regularisation, "added to the diagonal of every covariance");
    }
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  static Result<BasicPositionGaussian> create(const FeatureShapes& shapes, const Settings& settings) {
    if (shapes.count < 1) return Status{Errc::shape_mismatch, "PositionGaussian: the backbone gives no features"};
    if (!(settings.regularisation > 0.0 && settings.regularisation < 1e6)) {
      return Status{Errc::invalid_argument, "PositionGaussian: regularisation must be in (0, 1e6), found " + std::to_string(settings.regularisation)};
    }
    BasicPositionGaussian estimator;
    estimator.settings_ = settings;
    estimator.grid_ = shapes[0];
    return estimator;
  }

  /// Largest memory of a fit, whatever the number of images: sums that become factors, a batch of 64 images, means.
  static double fit_bytes(const FeatureShapes& shapes, std::int64_t /*images*/) noexcept {
    const auto p = static_cast<double>(shapes[0].positions());
    const auto d = static_cast<double>(shapes[0].channels);
    return 4.0 * p * (d * (d + 1.0) / 2.0 + 64.0 * d + 3.0 * d);
  }

  Status observe(const Features& features, std::int64_t, Parallel parallel) {
    const auto& level = features[0];
    if (!(level.shape() == grid_)) return {Errc::shape_mismatch, "PositionGaussian::observe: features of another shape than the first image's"};
    const std::span<const float> values(level.data, static_cast<std::size_t>(level.count()));
    if (const auto bad = first_not_finite(values); bad >= 0) {
      return {Errc::not_finite, "PositionGaussian::observe: feature " + std::to_string(bad) + " is not a finite number"};
    }
    NORMA_CHECK(begin());
    return sums_->add(level.patches(), parallel);
  }

  Status merge(BasicPositionGaussian&& other) {
    if (!(other.grid_ == grid_)) return {Errc::shape_mismatch, "PositionGaussian::merge: the two hold positions or channels of different number"};
    if (!other.sums_) return {};
    NORMA_CHECK(begin());
    NORMA_CHECK(sums_->merge(*other.sums_));
    other.sums_.reset();
    return {};
  }

  Status finish(const FitContext& context) {
    if (!sums_) return {Errc::not_enough_data, "PositionGaussian::finish: needs at least 2 images, found 0"};
    // The sums' memory becomes the factors': at 550 channels a second copy would be gigabytes. A failed finish therefore loses them.
    auto model = std::move(*sums_).finish(settings_.regularisation, context.parallel, context.observer);
    sums_.reset();
    NORMA_CHECK(model.status());
    model_ = *std::move(model);
    return {};
  }

  [[nodiscard]] GaussianModelView model() const noexcept { return model_.view(); }

  /// Mahalanobis distance of every position, `out` [h w]. Allocates nothing.
  static constexpr std::size_t distance_scratch_bytes(std::int64_t dims, int workers) noexcept { return mahalanobis_scratch_bytes(dims, workers); }
  Status distance(MatrixView<const float> patches, std::span<float> out, Context& context) const {
    return mahalanobis(model_.view(), patches, out, context.parallel, context.arena);
  }

  Status save(io::TensorFileWriter& writer) const {
    const auto add = [&](std::string_view tensor, const Matrix<float>& m) {
      return writer.add_view(tensor, {m.rows(), m.cols()}, std::span<const float>(m.data(), static_cast<std::size_t>(m.rows() * m.cols())));
    };
    NORMA_CHECK(add("estimator.mean", model_.mean));
    return add("estimator.factor", model_.factor);
  }

  static Result<BasicPositionGaussian> load(const io::Weights& weights, const FeatureShapes& shapes, const Settings& settings, Parallel) {
    NORMA_TRY(BasicPositionGaussian loaded, create(shapes, settings));
    const std::int64_t d = shapes[0].channels;
    const auto read = [&](std::string_view tensor, std::int64_t cols, Matrix<float>& out) -> Status {
      // The shape is compared before memory of that size is asked for: the settings of a file are only its word.
      NORMA_TRY(const io::TensorInfo info, weights.get(tensor));
      if (info.count() != shapes[0].positions() * cols) {
        return {Errc::shape_mismatch, weights.name() + ": tensor '" + std::string(tensor) + "' holds " + std::to_string(info.count()) + " numbers, expected " +
                                          std::to_string(shapes[0].positions()) + " x " + std::to_string(cols)};
      }
      Matrix<float> values(shapes[0].positions(), cols);
      const std::span<float> all(values.data(), static_cast<std::size_t>(values.rows() * values.cols()));
      NORMA_CHECK(weights.read(tensor, {values.rows(), values.cols()}, all));
      if (first_not_finite(all) >= 0) return {Errc::not_finite, weights.name() + ": tensor '" + std::string(tensor) + "' holds a number that is not finite"};
      out = std::move(values);
      return {};
    };
    NORMA_CHECK(read("estimator.mean", d, loaded.model_.mean));
    NORMA_CHECK(read("estimator.factor", packed_triangle(d), loaded.model_.factor));
    return loaded;
  }

 private:
  // The sums are large: they are made with the first image, not for a detector that will only be opened.
  Status begin() {
    if (sums_) return {};
    NORMA_TRY(auto sums, Sums::create(grid_.positions(), grid_.channels));
    sums_.emplace(std::move(sums));
    return {};
  }

  Settings settings_{};
  Shape grid_;
  std::optional<Sums> sums_;
  GaussianModel model_;
};

using PositionGaussian = BasicPositionGaussian<>;

}  // namespace norma
