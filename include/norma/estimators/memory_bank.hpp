/// \file
/// Memory-bank estimator: a patch is as anomalous as it is far from every normal patch that was kept.
/// Source:      Roth et al., "PatchCore", CVPR 2022, sections 3.1-3.2.
/// Shapes:      observe level 0 [1, h, w, d]; bank [m, d]
/// Units:       squared L2 distance, >= 0
/// Cost:        fit holds every patch of every image (n h w d floats) until `finish`; search as its policy says
/// Determinism: bitwise for a fixed machine, any number of threads
#pragma once

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <norma/concepts/estimator.hpp>
#include <norma/core/finite.hpp>
#include <norma/core/tensor.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/search/exact.hpp>
#include <norma/search/greedy_k_centre.hpp>

namespace norma {

/// `SubsetT` chooses which patches stay (GreedyKCenter, RandomSubset, KeepAll), `SearchT` finds the nearest of them (ExactSearch).
template <class SubsetT = GreedyKCenter, class SearchT = ExactSearch>
class MemoryBank {
 public:
  static constexpr std::string_view name = "memory_bank";
  using Subset = SubsetT;
  using Search = SearchT;
  using Settings = typename SubsetT::Settings;

  static std::string type_name(const Settings&) { return "memory_bank<" + std::string(SubsetT::name) + "," + std::string(SearchT::name) + ">"; }

  // The index points into the bank's memory, which moves along and would not be copied along.
  MemoryBank(const MemoryBank&) = delete;
  MemoryBank& operator=(const MemoryBank&) = delete;
  MemoryBank(MemoryBank&&) noexcept = default;
  MemoryBank& operator=(MemoryBank&&) noexcept = default;
  ~MemoryBank() = default;

  /// Where a row of the bank comes from.
  struct Provenance {
    std::int32_t image = 0;     ///< in the order of observation
    std::int32_t position = 0;  ///< row * width + column of the feature grid
  };

  static Result<MemoryBank> create(const FeatureShapes& shapes, const Settings& settings) {
    if (shapes.count < 1) return Status{Errc::shape_mismatch, "MemoryBank: the backbone gives no features"};
    NORMA_CHECK(SubsetT::validate(settings));
    MemoryBank bank;
    bank.settings_ = settings;
    bank.grid_ = shapes[0];
    return bank;
  }

  /// Largest memory of a fit: every patch, a projected copy for the selection (at most as large), and the bank.
  static double fit_bytes(const FeatureShapes& shapes, std::int64_t images) noexcept {
    return 2.0 * 4.0 * static_cast<double>(images) * static_cast<double>(shapes[0].count());
  }
  /// Room for that many images at once: without it, growing step by step needs up to three times the memory for a moment.
  void reserve(std::int64_t images) { patches_.reserve(patches_.size() + static_cast<std::size_t>(images * grid_.count())); }

  Status observe(const Features& features, std::int64_t image, Parallel) {
    const auto& level = features[0];
    if (!(level.shape() == grid_)) return {Errc::shape_mismatch, "MemoryBank::observe: features of another shape than the first image's"};
    const std::span<const float> values(level.data, static_cast<std::size_t>(level.count()));
    if (const auto bad = first_not_finite(values); bad >= 0) {
      return {Errc::not_finite, "MemoryBank::observe: feature " + std::to_string(bad) + " is not a finite number"};
    }
    patches_.insert(patches_.end(), values.begin(), values.end());
    images_.push_back(static_cast<std::int32_t>(image));
    return {};
  }

  /// The other's images follow this one's: their numbers, counted from 0 there, continue behind those here.
  Status merge(MemoryBank&& other) {
    if (!(other.grid_ == grid_)) return {Errc::shape_mismatch, "MemoryBank::merge: the two banks hold patches of different shapes"};
    patches_.insert(patches_.end(), other.patches_.begin(), other.patches_.end());
    const auto before = static_cast<std::int32_t>(images_.size());
    for (const std::int32_t image : other.images_) images_.push_back(image + before);
    other = {};
    return {};
  }

  Status finish(const FitContext& context) {
    const std::int64_t d = grid_.channels;
    const auto observed = static_cast<std::int64_t>(images_.size()) * grid_.positions();
    if (observed == 0) return {Errc::not_enough_data, "MemoryBank::finish: needs at least one image, found 0"};
    const MatrixView<const float> all(patches_.data(), observed, d);
    NORMA_TRY(const std::vector<std::int64_t> kept, SubsetT::select(all, settings_, context.seed, context.parallel, context.observer));
    Matrix<float> bank(static_cast<std::int64_t>(kept.size()), d);
    std::vector<Provenance> provenance(kept.size());
    for (std::size_t i = 0; i < kept.size(); ++i) {
      std::memcpy(bank.view().row(static_cast<std::int64_t>(i)).data(), all.row(kept[i]).data(), static_cast<std::size_t>(d) * sizeof(float));
      provenance[i] = {images_[static_cast<std::size_t>(kept[i] / grid_.positions())], static_cast<std::int32_t>(kept[i] % grid_.positions())};
    }
    NORMA_CHECK(adopt(std::move(bank), std::move(provenance), context.parallel));
    patches_ = {};
    images_ = {};
    return {};
  }

  [[nodiscard]] MatrixView<const float> bank() const noexcept { return bank_.view(); }
  [[nodiscard]] std::span<const Provenance> provenance() const noexcept { return provenance_; }

  /// The k nearest rows of each query, nearest first; ties to the lowest row. Allocates nothing.
  static constexpr std::size_t nearest_scratch_bytes(std::int64_t queries, std::int64_t dims, int k, int workers) noexcept {
    return SearchT::scratch_bytes(queries, dims, k, workers);
  }
  Status nearest(MatrixView<const float> queries, int k, MatrixView<float> squared_distance, MatrixView<std::int64_t> row, Context& context) const {
    return SearchT::nearest(index_, queries, k, squared_distance, row, context.parallel, context.arena);
  }

  Status save(io::TensorFileWriter& writer) const {
    NORMA_CHECK(writer.add_view("estimator.bank", {bank_.rows(), bank_.cols()}, std::span<const float>(bank_.data(), static_cast<std::size_t>(bank_.rows() * bank_.cols()))));
    return writer.add_view("estimator.provenance", io::DType::i32, {bank_.rows(), 2}, std::as_bytes(std::span(provenance_)));
  }

  static Result<MemoryBank> load(const io::Weights& weights, const FeatureShapes& shapes, const Settings& settings, Parallel parallel) {
    NORMA_TRY(MemoryBank loaded, create(shapes, settings));
    NORMA_TRY(const io::TensorInfo info, weights.get("estimator.bank"));
    const std::int64_t rows = info.shape.empty() ? 0 : info.shape[0];
    if (rows < 1) return Status{Errc::corrupt, weights.name() + ": tensor 'estimator.bank' has no rows"};
    if (info.count() != rows * shapes[0].channels) {
      return Status{Errc::shape_mismatch, weights.name() + ": tensor 'estimator.bank' holds " + std::to_string(info.count()) + " numbers, expected rows of " +
                                              std::to_string(shapes[0].channels)};
    }
    Matrix<float> bank(rows, shapes[0].channels);
    NORMA_CHECK(weights.read("estimator.bank", {rows, shapes[0].channels}, std::span<float>(bank.data(), static_cast<std::size_t>(bank.rows() * bank.cols()))));
    std::vector<Provenance> provenance(static_cast<std::size_t>(rows));
    NORMA_CHECK(weights.read_raw("estimator.provenance", io::DType::i32, {rows, 2}, std::as_writable_bytes(std::span(provenance))));
    for (const Provenance& origin : provenance) {
      if (origin.image < 0 || origin.position < 0 || origin.position >= shapes[0].positions()) {
        return Status{Errc::corrupt, weights.name() + ": tensor 'estimator.provenance' names image " + std::to_string(origin.image) + ", position " +
                                         std::to_string(origin.position) + ", expected positions below " + std::to_string(shapes[0].positions())};
      }
    }
    NORMA_CHECK(loaded.adopt(std::move(bank), std::move(provenance), parallel));
    return loaded;
  }

 private:
  MemoryBank() = default;
  Status adopt(Matrix<float> bank, std::vector<Provenance> provenance, Parallel parallel) {
    NORMA_TRY(auto index, SearchT::prepare(bank.view(), parallel));
    bank_ = std::move(bank);  // moving keeps the memory that the index points to
    index_ = std::move(index);
    provenance_ = std::move(provenance);
    return {};
  }

  Settings settings_{};
  Shape grid_;
  std::vector<float> patches_;         // [images_.size() * positions, d], until finish
  std::vector<std::int32_t> images_;
  Matrix<float> bank_;                 // [m, d]
  std::vector<Provenance> provenance_;
  typename SearchT::Index index_{};
};

}  // namespace norma
