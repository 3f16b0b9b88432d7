/// \file
/// Gallery of whole images: the features of every normal image, to be found again by one vector an image.
/// Source:      Cohen and Hoshen, "Sub-image anomaly detection with deep pyramid correspondences" (SPADE), arXiv 2005.02357, section 3.
/// Shapes:      observe levels [1, h_l, w_l, c_l], the last one [1, 1, c] the image's vector
/// Units:       squared L2 distance, >= 0
/// Cost:        memory 8 bytes for every feature of every image (the features, and the same packed for the search)
/// Determinism: bitwise for a fixed machine, any number of threads
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <norma/concepts/estimator.hpp>
#include <norma/core/finite.hpp>
#include <norma/core/tensor.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/search/exact.hpp>

namespace norma {

template <class SearchT = ExactSearch>
class ImageGallery {
 public:
  static constexpr std::string_view name = "image_gallery";
  using Search = SearchT;
  struct Settings {
    template <class Self, class Visitor>
    static constexpr void visit(Self&, Visitor&&) {}
    friend constexpr bool operator==(const Settings&, const Settings&) = default;
  };

  static std::string type_name(const Settings&) { return "image_gallery<" + std::string(SearchT::name) + ">"; }

  static Result<ImageGallery> create(const FeatureShapes& shapes, const Settings&) {
    if (shapes.count < 2 || shapes[shapes.count - 1].positions() != 1) {
      return Status{Errc::shape_mismatch, "ImageGallery: needs at least one feature map and, as the last level, one vector for the image (the Pyramid embedding gives both)"};
    }
    ImageGallery gallery;
    gallery.shapes_ = shapes;
    return gallery;
  }

  /// Largest memory of a fit: the features, and the same packed for the search.
  static double fit_bytes(const FeatureShapes& shapes, std::int64_t images) noexcept {
    double features = 0.0;
    for (int l = 0; l < shapes.count; ++l) features += static_cast<double>(shapes[l].count());
    return 2.0 * 4.0 * static_cast<double>(images) * features;
  }

  Status observe(const Features& features, std::int64_t, Parallel) {
    if (!(features.shapes() == shapes_)) return {Errc::shape_mismatch, "ImageGallery::observe: features of another shape than the first image's"};
    auto entry = std::make_unique<Entry>();
    for (int l = 0; l < features.count; ++l) {
      const std::span<const float> values(features[l].data, static_cast<std::size_t>(features[l].count()));
      if (const auto bad = first_not_finite(values); bad >= 0) {
        return {Errc::not_finite, "ImageGallery::observe: feature " + std::to_string(bad) + " of level " + std::to_string(l) + " is not a finite number"};
      }
      entry->level.emplace_back(shapes_[l].positions(), shapes_[l].channels);
      std::memcpy(entry->level.back().data(), values.data(), values.size_bytes());
    }
    images_.push_back(std::move(entry));
    return {};
  }

  Status merge(ImageGallery&& other) {
    if (!(other.shapes_ == shapes_)) return {Errc::shape_mismatch, "ImageGallery::merge: the two galleries hold features of different shapes"};
    for (auto& image : other.images_) images_.push_back(std::move(image));
    other.images_.clear();
    return {};
  }

  Status finish(const FitContext& context) {
    if (images_.empty()) return {Errc::not_enough_data, "ImageGallery::finish: needs at least one image, found 0"};
    return index(context.parallel, context.observer);
  }

  [[nodiscard]] std::int64_t images() const noexcept { return static_cast<std::int64_t>(images_.size()); }
  [[nodiscard]] int levels() const noexcept { return shapes_.count - 1; }

  /// The k nearest images to a vector [1, c].
  static constexpr std::size_t nearest_scratch_bytes(const FeatureShapes& shapes, int k, int workers) noexcept {
    std::size_t most = SearchT::scratch_bytes(1, shapes[shapes.count - 1].channels, k, workers);
    for (int l = 0; l + 1 < shapes.count; ++l) {
      const std::size_t bytes = SearchT::scratch_bytes(shapes[l].positions(), shapes[l].channels, 1, workers);
      most = bytes > most ? bytes : most;
    }
    return most;
  }
  Status nearest_images(MatrixView<const float> vector, int k, MatrixView<float> squared_distance, MatrixView<std::int64_t> image, Context& context) const {
    return SearchT::nearest(vectors_index_, vector, k, squared_distance, image, context.parallel, context.arena);
  }
  /// For each query patch of a level: squared distance [m, 1] to, and position [m, 1] of, the nearest patch of one stored image.
  Status nearest_patches(std::int64_t image, int level, MatrixView<const float> queries, MatrixView<float> squared_distance,
                         MatrixView<std::int64_t> position, Context& context) const {
    return SearchT::nearest(images_[static_cast<std::size_t>(image)]->index[static_cast<std::size_t>(level)], queries, 1, squared_distance, position,
                            context.parallel, context.arena);
  }

  Status save(io::TensorFileWriter& writer) const {
    // One tensor a level, [images, h w, c].
    for (int l = 0; l < shapes_.count; ++l) {
      std::vector<float> all;
      all.reserve(images_.size() * static_cast<std::size_t>(shapes_[l].count()));
      for (const auto& image : images_) {
        const auto& level = image->level[static_cast<std::size_t>(l)];
        all.insert(all.end(), level.data(), level.data() + shapes_[l].count());
      }
      NORMA_CHECK(writer.add("estimator.level" + std::to_string(l), {images(), shapes_[l].positions(), shapes_[l].channels}, std::span<const float>(all)));
    }
    return {};
  }

  static Result<ImageGallery> load(const io::Weights& weights, const FeatureShapes& shapes, const Settings& settings, Parallel parallel) {
    NORMA_TRY(ImageGallery loaded, create(shapes, settings));
    for (int l = 0; l < shapes.count; ++l) {
      const std::string tensor = "estimator.level" + std::to_string(l);
      NORMA_TRY(const io::TensorInfo info, weights.get(tensor));
      const std::int64_t count = info.shape.empty() ? 0 : info.shape[0];
      if (info.count() != count * shapes[l].count() || (l > 0 && count != loaded.images())) {
        return Status{Errc::shape_mismatch, weights.name() + ": tensor '" + tensor + "' does not hold images of " + std::to_string(shapes[l].count()) + " features"};
      }
      if (l == 0) {
        if (count < 1) return Status{Errc::corrupt, weights.name() + ": tensor '" + tensor + "' holds no image"};
        for (std::int64_t i = 0; i < count; ++i) loaded.images_.push_back(std::make_unique<Entry>());
      }
      std::vector<float> all(static_cast<std::size_t>(loaded.images() * shapes[l].count()));
      NORMA_CHECK(weights.read(tensor, {loaded.images(), shapes[l].positions(), shapes[l].channels}, all));
      for (std::size_t i = 0; i < loaded.images_.size(); ++i) {
        auto& level = loaded.images_[i]->level.emplace_back(shapes[l].positions(), shapes[l].channels);
        std::memcpy(level.data(), all.data() + i * static_cast<std::size_t>(shapes[l].count()), static_cast<std::size_t>(shapes[l].count()) * sizeof(float));
      }
    }
    NORMA_CHECK(loaded.index(parallel, {}));
    return loaded;
  }

 private:
  struct Entry {
    std::vector<Matrix<float>> level;  // [h_l w_l, c_l] each; the last is the vector [1, c]
    std::vector<typename SearchT::Index> index;
  };

  Status index(Parallel parallel, const Observer& observer) {
    const auto last = static_cast<std::size_t>(shapes_.count - 1);
    Matrix<float> vectors(images(), shapes_[shapes_.count - 1].channels);
    Progress progress("indexing images", images(), observer);
    for (std::int64_t i = 0; i < images(); ++i) {
      Entry& entry = *images_[static_cast<std::size_t>(i)];
      std::memcpy(vectors.view().row(i).data(), entry.level[last].data(), static_cast<std::size_t>(vectors.cols()) * sizeof(float));
      entry.index.clear();
      for (std::size_t l = 0; l < last; ++l) {
        NORMA_TRY(auto made, SearchT::prepare(entry.level[l].view(), parallel));
        entry.index.push_back(std::move(made));
      }
      NORMA_CHECK(progress.advance());
    }
    NORMA_TRY(auto made, SearchT::prepare(vectors.view(), parallel));
    vectors_ = std::move(vectors);
    vectors_index_ = std::move(made);
    return {};
  }

  FeatureShapes shapes_;
  std::vector<std::unique_ptr<Entry>> images_;
  Matrix<float> vectors_;  // [images, c]
  typename SearchT::Index vectors_index_{};
};

}  // namespace norma
