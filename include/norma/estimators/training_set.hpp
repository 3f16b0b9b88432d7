/// \file
/// The images of a fit as a training estimator sees them: features by image and view, kept in memory as far as that may grow, looked at
/// again where they are not.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <norma/concepts/estimator.hpp>
#include <norma/concepts/source.hpp>
#include <norma/core/finite.hpp>
#include <norma/core/tensor.hpp>

namespace norma {

namespace detail {

template <class E>
constexpr bool wants_views(const typename E::Settings& settings) {
  if constexpr (requires {
                  { E::wants_views(settings) } -> std::convertible_to<bool>;
                }) {
    return E::wants_views(settings);
  } else {
    return false;
  }
}

/// Of one image in one view.
template <class B>
constexpr FeatureShapes training_shapes(const typename B::Settings& settings) {
  if constexpr (HasViews<B>) {
    return B::view_shapes(settings);
  } else {
    return B::shapes(settings);
  }
}

}  // namespace detail

/// Features are kept where every epoch sees the same ones; where images are turned anew, the 8-bit images that the network sees are.
/// Backbone and source are referred to.
template <class BackboneT, class SourceT>
class TrainingSet final : public TrainingImages {
 public:
  TrainingSet(const BackboneT& backbone, const SourceT& source, bool turned, std::uint64_t cache_bytes, Parallel parallel)
      : backbone_(backbone),
        source_(source),
        turned_(turned),
        room_(cache_bytes),
        parallel_(parallel),
        kept_(static_cast<std::size_t>(source.size())) {
    shapes_ = detail::training_shapes<BackboneT>(backbone.settings());
    one_view_ = !(shapes_ == BackboneT::shapes(backbone.settings()));
    const std::size_t bytes = BackboneT::scratch_bytes(backbone.settings(), 1);
    for (int worker = 0; worker < parallel.workers(); ++worker) memory_.emplace_back(static_cast<std::int64_t>(bytes));
  }

  /// Looks at image i of the source for the first time; called once for each, from several workers at once.
  Status look(const Image& frame, std::int64_t i, int worker) {
    Kept& kept = kept_[static_cast<std::size_t>(i)];
    kept.features = Buffer<float>(shapes_.numbers());
    if constexpr (HasViews<BackboneT>) {
      if (turned_ || one_view_) {
        NORMA_CHECK(backbone_.prepare(frame.view(), kept.prepared));
        // Looked at once in any case, so that an image that cannot be used is found before the training begins.
        const Status status = see(kept.prepared, View{}, worker, kept.features.data());
        if (turned_) {
          kept.features = {};
        } else {
          kept.prepared = {};
        }
        return status;
      }
    }
    return see(frame, worker, kept.features.data());
  }
  /// Counts image i in, in the order of the source. What there is no room for is looked at again whenever it is needed.
  void keep(std::int64_t i) {
    Kept& kept = kept_[static_cast<std::size_t>(i)];
    const auto bytes = static_cast<std::uint64_t>(kept.features.size()) * sizeof(float) + static_cast<std::uint64_t>(kept.prepared.size_bytes());
    if (bytes > room_) {
      kept = {};
    } else {
      room_ -= bytes;
    }
    usable_.push_back(i);
  }
  /// Forgets an image that cannot be used.
  void drop(std::int64_t i) { kept_[static_cast<std::size_t>(i)] = {}; }

  [[nodiscard]] std::int64_t size() const noexcept override { return static_cast<std::int64_t>(usable_.size()); }
  [[nodiscard]] const FeatureShapes& shapes() const noexcept override { return shapes_; }

  Status gather(std::span<const std::int64_t> images, std::span<const View> views, std::span<float* const> out) const override {
    NORMA_EXPECTS(static_cast<int>(out.size()) == shapes_.count && (views.empty() || views.size() == images.size()));
    const auto count = static_cast<std::int64_t>(images.size());
    std::vector<Status> status(images.size());
    std::vector<std::vector<float>> whole(static_cast<std::size_t>(parallel_.workers()));
    parallel_.run(count, [&](std::int64_t n, int worker) {
      const auto at = static_cast<std::size_t>(n);
      const std::int64_t i = usable_[static_cast<std::size_t>(images[at])];
      auto& features = whole[static_cast<std::size_t>(worker)];
      const View view = views.empty() ? View{} : views[at];
      const float* from = kept_[static_cast<std::size_t>(i)].features.data();
      if (from == nullptr || view.degrees != 0.0f) {
        features.resize(static_cast<std::size_t>(shapes_.numbers()));
        status[at] = again(i, view, worker, features.data());
        if (!status[at].ok()) {
          status[at] = status[at].with_context("'" + source_.name(i) + "'");
          return;
        }
        from = features.data();
      }
      for (int l = 0; l < shapes_.count; ++l) {
        const std::int64_t size = shapes_[l].count();
        std::memcpy(out[static_cast<std::size_t>(l)] + n * size, from, static_cast<std::size_t>(size) * sizeof(float));
        from += size;
      }
    });
    for (const Status& one : status) NORMA_CHECK(one);
    return {};
  }

 private:
  struct Kept {
    Buffer<float> features;
    Image prepared;
  };

  Status again(std::int64_t i, const View& view, int worker, float* to) const {
    if constexpr (HasViews<BackboneT>) {
      if (turned_ || one_view_) {
        if (const Image& prepared = kept_[static_cast<std::size_t>(i)].prepared; prepared.size_bytes() > 0) return see(prepared, view, worker, to);
        NORMA_TRY(const Image frame, source_.load(i));
        Image prepared;
        NORMA_CHECK(backbone_.prepare(frame.view(), prepared));
        return see(prepared, view, worker, to);
      }
    }
    if (view.degrees != 0.0f) return {Errc::unsupported, "Detector::fit: this backbone cannot show turned images"};
    NORMA_TRY(const Image frame, source_.load(i));
    return see(frame, worker, to);
  }
  Status see(const Image& frame, int worker, float* to) const {
    return copied(worker, to, [&](Features& features, Context& context) { return backbone_.extract(frame.view(), features, context); });
  }
  Status see(const Image& prepared, const View& view, int worker, float* to) const {
    return copied(worker, to, [&](Features& features, Context& context) { return backbone_.extract_view(prepared.view(), view, features, context); });
  }
  template <class Extract>
  Status copied(int worker, float* to, Extract&& extract) const {
    Arena arena(memory_[static_cast<std::size_t>(worker)].span());
    Context context{arena};
    Features features;
    NORMA_CHECK(extract(features, context));
    for (int l = 0; l < shapes_.count; ++l) {
      const auto values = std::span<const float>(features[l].data, static_cast<std::size_t>(shapes_[l].count()));
      if (const auto bad = first_not_finite(values); bad >= 0) {
        return {Errc::not_finite, "Detector::fit: feature " + std::to_string(bad) + " of level " + std::to_string(l) + " is not a finite number"};
      }
      to = std::copy(values.begin(), values.end(), to);
    }
    return {};
  }

  const BackboneT& backbone_;
  const SourceT& source_;
  bool turned_ = false;    // the training asks for turned views: prepared images are kept, else features
  bool one_view_ = false;  // `extract` gives several views, the training gets one
  std::uint64_t room_;
  Parallel parallel_;
  FeatureShapes shapes_;
  std::vector<Kept> kept_;
  std::vector<std::int64_t> usable_;
  mutable std::vector<Buffer<std::byte>> memory_;  // one a worker
};

}  // namespace norma
