/// \file
/// The composition: what looks (Backbone), what remembers normality (Estimator), what measures the distance from it (Metric).
/// Every published method is one such type with its paper's settings; methods/ names them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <norma/concepts/backbone.hpp>
#include <norma/concepts/estimator.hpp>
#include <norma/concepts/metric.hpp>
#include <norma/concepts/source.hpp>
#include <norma/core/finite.hpp>
#include <norma/core/progress.hpp>
#include <norma/core/workspace.hpp>
#include <norma/estimators/training_set.hpp>
#include <norma/features/patches.hpp>
#include <norma/image/resample.hpp>
#include <norma/io/safetensors.hpp>
#include <norma/io/settings_json.hpp>
#include <norma/io/sha256.hpp>
#include <norma/metrics/calibration.hpp>
#include <norma/version.hpp>

namespace norma {

enum class Label : std::int8_t {
  uncalibrated = -1,  ///< there is a score but no threshold yet
  normal = 0,
  anomalous = 1,
};

/// The answer for one image.
struct Verdict {
  float score = 0.0f;                    ///< larger is more anomalous; the unit is the metric's
  Label label = Label::uncalibrated;     ///< anomalous where score > threshold
  std::optional<double> threshold;       ///< what the score was compared with
  MapView<const float> map;              ///< [input height, input width]; in the workspace: valid until its next image
  double peak_row = 0.0;                 ///< the most anomalous place, in pixels of the frame (pixel centres are whole numbers)
  double peak_column = 0.0;
  std::shared_ptr<const void> keep_alive;  ///< keeps `map` readable after the workspace is gone
};

/// A training image that could not be used.
struct SkippedImage {
  std::string name;
  Status reason;
};

struct FitOptions {
  std::uint64_t seed = 0;
  int threads = 0;                               ///< <= 0: one for every hardware thread
  Observer observer{};                           ///< progress and cancel
  std::vector<SkippedImage>* skipped = nullptr;  ///< where given, broken images are listed here and left out; else the first one fails the fit
  // Of estimators that are trained in epochs; the others do not look at them.
  /// File that keeps the state of a training, and that the same fit goes on from; empty: none. A training that came to its end leaves it too (the
  /// same fit would then be done at once): delete it when the model is safe.
  std::string checkpoint{};
  double checkpoint_seconds = 60.0;  ///< least time between checkpoints; 0 or less: only when stopped and at the end
  std::uint64_t cache_bytes = std::uint64_t{4} << 30;  ///< most memory for features (or turned images' originals) that are kept between epochs
};

struct OpenOptions {
  bool verify = true;  ///< recompute the digest over the whole file; a flipped byte is an error
  int threads = 0;
};

/// What a model file says about its fit.
struct Provenance {
  std::int64_t images = 0;
  std::uint64_t seed = 0;
  std::string weights;         ///< name of the weight file, without its folder
  std::string weights_digest;  ///< SHA-256
};

namespace detail {

// A bare network becomes the usual patch features of that network.
template <class B>
struct AsBackbone {
  using type = B;
};
template <class B>
  requires Network<B>
struct AsBackbone<B> {
  using type = Patches<B, LocalAverage>;
};

template <class P>
std::string policy_type(const typename P::Settings& settings) {
  if constexpr (requires { P::type_name(settings); }) {
    return P::type_name(settings);
  } else {
    return std::string(P::name);
  }
}

inline constexpr std::string_view kModelFormat = "norma-model";
inline constexpr std::string_view kModelFormatVersion = "1";
inline constexpr int kReferenceFrames = 2;             // taken from the training images
inline constexpr std::int64_t kReferenceFrameSide = 256;

}  // namespace detail

template <class BackboneT, class EstimatorT, class MetricT, class ExecutionT = Cpu<>>
class Detector {
 public:
  using Backbone = typename detail::AsBackbone<BackboneT>::type;
  using Estimator = EstimatorT;
  using Metric = MetricT;
  using Execution = ExecutionT;
  using Workspace = norma::Workspace<ExecutionT>;
  static_assert(detail::check_backbone<Backbone>());
  static_assert(detail::check_estimator<Estimator>());
  static_assert(detail::check_metric<Metric, Estimator>());
  // One detector serves any number of threads by const reference; a copy would double gigabytes by accident.
  Detector(const Detector&) = delete;
  Detector& operator=(const Detector&) = delete;
  Detector(Detector&&) noexcept = default;
  Detector& operator=(Detector&&) noexcept = default;
  ~Detector() = default;

  struct Settings {
    typename Backbone::Settings backbone{};
    typename Estimator::Settings estimator{};
    typename Metric::Settings metric{};
    template <class Self, class Visitor>
    static constexpr void visit(Self& self, Visitor&& visitor) {
      Backbone::Settings::visit(self.backbone, visitor);
      Estimator::Settings::visit(self.estimator, visitor);
      Metric::Settings::visit(self.metric, visitor);
    }
  };

  /// Bytes that looking at one frame needs; a constant for constant settings.
  static constexpr std::size_t workspace_bytes(const Settings& settings = Settings{}, int threads = 1) {
    const Shape map = Backbone::input_shape(settings.backbone);
    const FeatureShapes shapes = Backbone::shapes(settings.backbone);
    const std::size_t looking = arena_bytes<float>(map.positions()) + Backbone::scratch_bytes(settings.backbone, threads);
    if constexpr (ScratchDependsOnEstimator<Metric, Estimator>) {
      return looking + Metric::template scratch_bytes<Estimator>(shapes, map, settings.metric, settings.estimator, threads);
    } else {
      return looking + Metric::template scratch_bytes<Estimator>(shapes, map, settings.metric, threads);
    }
  }

  /// About how many bytes a fit on that many images needs at most, besides the workspace: for a check before hours of work. `cache_bytes` as in
  /// FitOptions.
  static double fit_bytes(const Settings& settings, std::int64_t images, std::uint64_t cache_bytes = FitOptions{}.cache_bytes) {
    double bytes = 0.0;
    if constexpr (requires { Estimator::fit_bytes(FeatureShapes{}, std::int64_t{}, settings.estimator); }) {
      bytes = Estimator::fit_bytes(Backbone::shapes(settings.backbone), images, settings.estimator);
    } else if constexpr (requires { Estimator::fit_bytes(FeatureShapes{}, std::int64_t{}); }) {
      bytes = Estimator::fit_bytes(Backbone::shapes(settings.backbone), images);
    }
    if constexpr (HasTrain<Estimator>) {  // and what is kept between epochs
      const double image = detail::wants_views<Estimator>(settings.estimator)
                               ? 3.0 * static_cast<double>(Backbone::input_shape(settings.backbone).positions())
                               : 4.0 * static_cast<double>(detail::training_shapes<Backbone>(settings.backbone).numbers());
      bytes += std::min(static_cast<double>(images) * image, static_cast<double>(cache_bytes));
    }
    return bytes;
  }

  /// `Detector<patches<resnet18,local_average>,memory_bank<...>,...>` in the library's names: what a model file must say to be opened.
  static std::string type_name(const Settings& settings = Settings{}) {
    return "detector<" + detail::policy_type<Backbone>(settings.backbone) + "," + detail::policy_type<Estimator>(settings.estimator) + "," +
           detail::policy_type<Metric>(settings.metric) + ">";
  }

  /// A detector that has not seen anything. `weights` are the backbone's; the detector shares them.
  static Result<Detector> create(const io::Weights& weights, const Settings& settings = Settings{}) {
    NORMA_CHECK(require_different_names(settings));
    NORMA_CHECK(Backbone::validate(settings.backbone));
    NORMA_CHECK(Metric::validate(settings.metric));
    if (!HasViews<Backbone> && detail::wants_views<Estimator>(settings.estimator)) {
      return Status(Errc::unsupported, "Detector::create: the estimator " + std::string(Estimator::name) + " asks for turned images, the backbone " +
                                           std::string(Backbone::name) + " cannot show them (it lacks prepare and extract_view)");
    }
    NORMA_TRY(Backbone backbone, Backbone::create(weights, settings.backbone));
    NORMA_TRY(Estimator estimator, Estimator::create(Backbone::shapes(settings.backbone), settings.estimator));
    Detector detector(settings, std::make_shared<const Backbone>(std::move(backbone)), std::move(estimator));
    detector.provenance_.weights = base_name(weights.name());
    detector.weights_ = weights;
    return detector;
  }

  // ---- fitting -------------------------------------------------------------------------------------------------------------

  /// Learns from a source of good images, forgetting what was learnt before. On error the detector stays as it was.
  template <class SourceT>
  Status fit(const SourceT& source, const FitOptions& options = {}) {
    NORMA_TRY(Detector fresh, emptied());
    if constexpr (HasTrain<Estimator>) {
      NORMA_CHECK(fresh.train(source, options));
    } else {
      NORMA_CHECK(fresh.observe(source, options));
      NORMA_CHECK(fresh.finish(options));
    }
    *this = std::move(fresh);
    return {};
  }

  /// The parts of `fit`, for fits that are spread over processes: every part observes its own images (into a detector made by
  /// `create`), parts are merged, one finishes. After an error in one of these begin again with `create`: what was observed before it
  /// stays observed. Only for estimators that see each image once: one that is trained in epochs needs them all.
  template <class SourceT>
    requires(!HasTrain<EstimatorT>)
  Status observe(const SourceT& source, const FitOptions& options = {}) {
    NORMA_CHECK(require_unfitted("observe"));
    auto threads = start_threads(options.threads);
    const Parallel parallel = threads.parallel();
    const std::size_t bytes = Backbone::scratch_bytes(settings_.backbone, 1);
    std::vector<Buffer<std::byte>> memory;
    std::vector<Features> features(static_cast<std::size_t>(parallel.workers()));
    for (int i = 0; i < parallel.workers(); ++i) memory.emplace_back(static_cast<std::int64_t>(bytes));
    if constexpr (requires { estimator_.reserve(std::int64_t{}); }) estimator_.reserve(source.size());
    return for_each_image(
        source, options, parallel,
        [&](const Image& frame, std::int64_t, std::int64_t lane) {
          Arena arena(memory[static_cast<std::size_t>(lane)].span());
          Context context{arena};
          return backbone_->extract(frame.view(), features[static_cast<std::size_t>(lane)], context);
        },
        [&](std::int64_t, std::int64_t lane) {
          return estimator_.observe(features[static_cast<std::size_t>(lane)], provenance_.images, parallel);
        });
  }
  Status merge(Detector&& other)
    requires(!HasTrain<EstimatorT>)
  {
    NORMA_CHECK(require_unfitted("merge"));
    NORMA_CHECK(other.require_unfitted("merge"));
    NORMA_CHECK(require_same(other));
    if constexpr (!HasTrain<EstimatorT>) {  // once more: clang 14 compiles this for an explicit instantiation whatever `requires` says
      NORMA_CHECK(estimator_.merge(std::move(other.estimator_)));
    }
    provenance_.images += other.provenance_.images;
    image_names_.insert(image_names_.end(), other.image_names_.begin(), other.image_names_.end());
    for (Reference& reference : other.references_) {
      if (references_.size() < detail::kReferenceFrames) references_.push_back(std::move(reference));
    }
    return {};
  }
  Status finish(const FitOptions& options = {})
    requires(!HasTrain<EstimatorT>)
  {
    NORMA_CHECK(require_unfitted("finish"));
    auto threads = start_threads(options.threads);
    if constexpr (!HasTrain<EstimatorT>) {  // as in merge
      NORMA_CHECK(estimator_.finish(FitContext{threads.parallel(), options.observer, options.seed}));
    }
    return complete(options);
  }

  [[nodiscard]] bool fitted() const noexcept { return fitted_; }

  // ---- looking -------------------------------------------------------------------------------------------------------------

  [[nodiscard]] Workspace make_workspace(int threads = 1) const {
    threads = thread_count(threads);
    return Workspace(workspace_bytes(settings_, threads), threads, backbone_);
  }
  /// For targets without a heap after start-up: `memory` of at least workspace_bytes(settings), aligned to kAlignment.
  [[nodiscard]] Result<Workspace> make_workspace(std::span<std::byte> memory, int threads = 1) const {
    threads = thread_count(threads);
    const std::size_t needed = workspace_bytes(settings_, threads);
    if (reinterpret_cast<std::uintptr_t>(memory.data()) % kAlignment != 0) {
      return Status{Errc::invalid_argument, "Detector::make_workspace: the memory must be aligned to " + std::to_string(kAlignment) + " bytes"};
    }
    if (memory.size() < needed) {
      return Status{Errc::out_of_memory, "Detector::make_workspace: needs " + std::to_string(needed) + " bytes, found " + std::to_string(memory.size())};
    }
    return Workspace(memory, threads, backbone_);
  }

  /// Score, label, map and most anomalous place of a frame. const and re-entrant: one workspace a thread. Allocates nothing.
  Result<Verdict> inspect(const ImageView& frame, Workspace& workspace) const {
    if (!fitted_) return Status{Errc::not_fitted, "Detector::inspect: fit the detector or open a model first"};
    // A workspace of another detector serves as well if it is large enough; only then the size is computed again.
    if (workspace.made_for() != backbone_.get() && workspace.bytes() < workspace_bytes(settings_, workspace.threads())) {
      return Status{Errc::out_of_memory, "Detector::inspect: the workspace was made for another detector and is too small for this one"};
    }
    workspace.times() = {};
    Arena arena(workspace.memory());
    Context context{arena, workspace.parallel(), &workspace.times()};
    const Shape shape = Backbone::input_shape(settings_.backbone);
    const MapView<float> map(arena.take<float>(shape.positions()), shape.height, shape.width);
    Features features;
    NORMA_CHECK(backbone_->extract(frame, features, context));
    Verdict verdict;
    NORMA_CHECK(metric_.measure(estimator_, features, map, verdict.score, context));
    const StageTimer timer(context, Stage::verdict);
    if (!std::isfinite(verdict.score) || first_not_finite({map.data, static_cast<std::size_t>(map.count())}) >= 0) {
      return Status{Errc::not_finite, "Detector::inspect: the score or the map is not a finite number"};
    }
    const auto peak = std::max_element(map.data, map.data + map.count()) - map.data;
    const Placement placement = backbone_->placement(frame.height, frame.width);
    verdict.peak_row = placement.original_row(static_cast<double>(peak / map.cols));
    verdict.peak_column = placement.original_column(static_cast<double>(peak % map.cols));
    if (calibration_) {
      verdict.threshold = calibration_->threshold;
      verdict.label = static_cast<double>(verdict.score) > calibration_->threshold ? Label::anomalous : Label::normal;
    }
    verdict.map = map;
    verdict.keep_alive = workspace.keep_alive();
    return verdict;
  }
  Result<Verdict> inspect(const Image& image, Workspace& workspace) const { return inspect(image.view(), workspace); }

  /// Whether the map says where. A method that judges an image as a whole repeats its score in every pixel.
  [[nodiscard]] bool localizes() const {
    if constexpr (requires { { Metric::localizes(settings_.metric) } -> std::same_as<bool>; }) {
      return Metric::localizes(settings_.metric);
    } else {
      return true;
    }
  }
  /// Where the map's pixels lie in a frame of that size.
  [[nodiscard]] Placement placement(std::int64_t height, std::int64_t width) const { return backbone_->placement(height, width); }
  /// A map at the size of its frame: bilinear, and the map's minimum where the detector saw nothing.
  [[nodiscard]] Result<Map<float>> map_to_original(MapView<const float> map, std::int64_t height, std::int64_t width) const {
    Map<float> out(height, width);
    NORMA_CHECK(image::map_to_original(map, placement(height, width), out.view()));
    return out;
  }

  // ---- threshold -----------------------------------------------------------------------------------------------------------

  /// Sets the threshold from good images that the fit has not seen, so that at most `false_reject_rate` of good images are rejected.
  /// Refuses with not_enough_data when there are too few of them for that promise.
  template <class SourceT>
  Status calibrate(const SourceT& source, const CalibrationOptions& options = {}, const FitOptions& run = {}) {
    static_assert(detail::check_source<SourceT, Image>());
    if (!fitted_) return {Errc::not_fitted, "Detector::calibrate: fit the detector or open a model first"};
    NORMA_CHECK(source.status());
    // Too few images are refused before they are all looked at: calibrating on that many zeros says the same.
    const std::vector<double> zeros(static_cast<std::size_t>(source.size()));
    NORMA_CHECK(norma::calibrate(std::span<const double>(zeros), options).status());
    Workspace workspace = make_workspace(run.threads);
    std::vector<double> scores;
    Progress progress("calibration", source.size(), run.observer);
    for (std::int64_t i = 0; i < source.size(); ++i) {
      Result<Image> frame = source.load(i);
      Status status = frame.status();
      if (frame.ok()) {
        Result<Verdict> verdict = inspect(*frame, workspace);
        status = verdict.status();
        if (verdict.ok()) scores.push_back(static_cast<double>(verdict->score));
      }
      if (!status.ok()) {
        if (run.skipped == nullptr) return named(status, source.name(i));
        run.skipped->push_back({source.name(i), status});
      }
      NORMA_CHECK(progress.advance());
    }
    NORMA_TRY(auto calibration, norma::calibrate(std::span<const double>(scores), options));
    calibration_ = std::move(calibration);
    return {};
  }
  [[nodiscard]] const std::optional<Calibration>& calibration() const noexcept { return calibration_; }
  /// A threshold from elsewhere (a customer's limit); replaces the calibrated one. Error: invalid_argument unless it is finite.
  Status set_threshold(double threshold) {
    if (!std::isfinite(threshold)) return {Errc::invalid_argument, "Detector::set_threshold: expected a finite number, found " + std::to_string(threshold)};
    calibration_ = Calibration{};
    calibration_->threshold = threshold;
    calibration_->statement = "The threshold was set by hand.";
    return {};
  }

  // ---- model files ---------------------------------------------------------------------------------------------------------

  /// One file: weights, what was learnt, preprocessing, threshold, provenance, reference frames. Written to a temporary name first.
  Status save(const std::string& path) const {
    NORMA_TRY(const io::TensorFileWriter writer, model());
    return writer.write_sealed(path).with_context("Detector::save");
  }
  Result<std::vector<std::byte>> save_bytes() const {
    NORMA_TRY(const io::TensorFileWriter writer, model());
    return writer.to_sealed_bytes();
  }

  static Result<Detector> open(const std::string& path, const OpenOptions& options = {}) {
    NORMA_TRY(const io::Weights weights, io::Weights::open(path));
    return open(weights, options);
  }
  /// From memory that stays where it is: flash, or an array linked into the program.
  static Result<Detector> open_bytes(std::span<const std::byte> bytes, const OpenOptions& options = {}) {
    NORMA_TRY(const io::Weights weights, io::Weights::from_bytes(bytes, "model in memory"));
    return open(weights, options);
  }
  static Result<Detector> open(const io::Weights& file, const OpenOptions& options = {}) {
    NORMA_TRY(const Settings settings, stored_settings(file));
    if (options.verify) NORMA_CHECK(file.verify_seal());
    NORMA_TRY(Detector detector, create(file, settings));
    auto threads = start_threads(options.threads);
    NORMA_TRY(Estimator estimator, Estimator::load(file, Backbone::shapes(settings.backbone), settings.estimator, threads.parallel()));
    detector.estimator_ = std::move(estimator);
    NORMA_CHECK(detector.read_metadata(file));
    detector.fitted_ = true;
    return detector;
  }

  /// The settings that a model file holds. Errors: wrong_type for a file that is no model, a newer format or another detector type.
  static Result<Settings> stored_settings(const io::Weights& file) {
    const auto refuse = [&](Errc code, const std::string& what) { return Status(code, "Detector::open: '" + file.name() + "' " + what); };
    if (file.metadata("norma.format") != detail::kModelFormat) {
      return refuse(Errc::wrong_type, "is not a norma model (a weight file, perhaps): it has no metadata norma.format = norma-model");
    }
    const auto version = file.metadata("norma.format_version").value_or("none");
    if (version != detail::kModelFormatVersion) {
      return refuse(Errc::wrong_type, "has model format " + std::string(version) + ", expected " + std::string(detail::kModelFormatVersion));
    }
    Settings settings;
    if constexpr (requires { Backbone::stored_settings(file); }) {
      NORMA_TRY(settings.backbone, Backbone::stored_settings(file));
    }
    const std::string found(file.metadata("norma.type").value_or("nothing"));
    if (found != type_name(settings)) return refuse(Errc::wrong_type, "holds a " + found + ", expected a " + type_name(settings));
    NORMA_TRY(const io::JsonValue json, io::JsonValue::parse(file.metadata("norma.settings").value_or(""), file.name() + ": norma.settings"));
    NORMA_CHECK(io::read_settings(json, settings).with_context("Detector::open: '" + file.name() + "'"));
    return settings;
  }

  /// Looks at the reference frames again and compares with what was recorded at the fit. Scores may differ between processors in the
  /// last bits; `tolerance` is relative. Error: mismatch, naming frame, expected and found.
  Status self_test(double tolerance = 1e-3) const {
    if (!fitted_) return {Errc::not_fitted, "Detector::self_test: fit the detector or open a model first"};
    if (references_.empty()) return {Errc::not_enough_data, "Detector::self_test: the model holds no reference frames"};
    Workspace workspace = make_workspace();
    for (std::size_t i = 0; i < references_.size(); ++i) {
      const Reference& reference = references_[i];
      NORMA_TRY(const Answer found, look(reference.frame, workspace));
      const auto differs = [&](double expected, double actual) {
        return !(std::abs(expected - actual) <= tolerance * std::max({1e-6, std::abs(expected), std::abs(static_cast<double>(reference.answer.map_mean))}));
      };
      if (differs(reference.answer.score, found.score) || differs(reference.answer.map_mean, found.map_mean) || differs(reference.answer.map_peak, found.map_peak)) {
        return {Errc::mismatch, "Detector::self_test: reference frame " + std::to_string(i) + " gives score " + std::to_string(found.score) + ", map mean " +
                                    std::to_string(found.map_mean) + " and map maximum " + std::to_string(found.map_peak) + ", expected " +
                                    std::to_string(reference.answer.score) + ", " + std::to_string(reference.answer.map_mean) + " and " +
                                    std::to_string(reference.answer.map_peak)};
      }
    }
    return {};
  }

  // ---- what it is made of --------------------------------------------------------------------------------------------------

  [[nodiscard]] const Settings& settings() const noexcept { return settings_; }
  [[nodiscard]] const Backbone& backbone() const noexcept { return *backbone_; }
  [[nodiscard]] const Estimator& estimator() const noexcept { return estimator_; }
  [[nodiscard]] const Metric& metric() const noexcept { return metric_; }
  [[nodiscard]] const Provenance& provenance() const noexcept { return provenance_; }
  /// How the training went; null for an estimator that is not trained in epochs.
  [[nodiscard]] const TrainingRecord* training() const noexcept {
    if constexpr (HasTrain<Estimator>) {
      return &estimator_.record();
    } else {
      return nullptr;
    }
  }
  /// File names of the training images, in the order in which an estimator counts them.
  [[nodiscard]] const std::vector<std::string>& image_names() const noexcept { return image_names_; }
  [[nodiscard]] std::size_t reference_frames() const noexcept { return references_.size(); }
  /// Where a colour scale for maps may begin (the highest value on the normal reference frames) and end (twice that, or the highest
  /// on the frame with a made-up defect): so that a normal image stays calm. {0, 0} without reference frames.
  [[nodiscard]] std::pair<float, float> map_range() const noexcept {
    if (references_.size() < 2) return {0.0f, 0.0f};
    float low = 0.0f;
    for (std::size_t i = 0; i + 1 < references_.size(); ++i) low = std::max(low, references_[i].answer.map_peak);
    return {low, std::max(2.0f * low, references_.back().answer.map_peak)};
  }

 private:
  // What a reference frame must give: the score, and two numbers that a wrong map cannot both have by chance.
  struct Answer {
    float score = 0.0f;
    float map_mean = 0.0f;
    float map_peak = 0.0f;
  };
  struct Reference {
    Image frame;
    Answer answer;
  };


  /// Loads all images of a source, as many at once as there are workers. `work(frame, i, lane)` runs at the same time for different lanes,
  /// `take(i, lane)` then counts image i in, in the order of the source. A broken image is listed in the options or ends it all.
  template <class SourceT, class Work, class Take>
  Status for_each_image(const SourceT& source, const FitOptions& options, Parallel parallel, Work&& work, Take&& take) {
    static_assert(detail::check_source<SourceT, Image>());
    NORMA_CHECK(source.status());
    if (source.size() < 1) return {Errc::not_enough_data, "Detector::fit: the source holds no images, expected at least 1"};
    // Each image is worked on by one thread, so results do not depend on their number.
    const auto lanes = std::min<std::int64_t>(parallel.workers(), source.size());
    struct Lane {
      Image frame;
      Status status;
    };
    std::vector<Lane> lane(static_cast<std::size_t>(lanes));
    Progress progress("features", source.size(), options.observer);
    for (std::int64_t first = 0; first < source.size(); first += lanes) {
      const std::int64_t count = std::min(lanes, source.size() - first);
      parallel.run(count, [&](std::int64_t i, int) {
        Lane& mine = lane[static_cast<std::size_t>(i)];
        Result<Image> frame = source.load(first + i);
        mine.status = frame.status();
        if (!frame.ok()) return;
        mine.frame = *std::move(frame);
        mine.status = work(mine.frame, first + i, i);
      });
      for (std::int64_t i = 0; i < count; ++i) {
        Lane& mine = lane[static_cast<std::size_t>(i)];
        Status status = mine.status;
        if (status.ok()) status = take(first + i, i);
        if (status.ok()) {
          ++provenance_.images;
          image_names_.push_back(base_name(source.name(first + i)));
          if (references_.size() < detail::kReferenceFrames) NORMA_CHECK(add_reference(mine.frame));
        } else if (options.skipped != nullptr) {
          options.skipped->push_back({source.name(first + i), status});
        } else {
          return named(status, source.name(first + i));
        }
      }
      NORMA_CHECK(progress.advance(count));
    }
    if (provenance_.images == 0) {
      return {Errc::not_enough_data, "Detector::fit: none of the " + std::to_string(source.size()) +
                                         " images could be used, the first one because: " +
                                         (options.skipped != nullptr && !options.skipped->empty() ? options.skipped->front().reason.message() : "")};
    }
    return {};
  }

  template <class SourceT>
  Status train(const SourceT& source, const FitOptions& options) {
    NORMA_CHECK(source.status());
    if (source.size() < 1) return {Errc::not_enough_data, "Detector::fit: the source holds no images, expected at least 1"};
    auto threads = start_threads(options.threads);
    const Parallel parallel = threads.parallel();
    TrainingSet<Backbone, SourceT> images(*backbone_, source, detail::wants_views<Estimator>(settings_.estimator), options.cache_bytes, parallel);
    std::vector<std::uint64_t> pixels(static_cast<std::size_t>(source.size()));
    io::Sha256 seen;  // names and pixels: two folders may hold the same names
    NORMA_CHECK(for_each_image(
        source, options, parallel,
        [&](const Image& frame, std::int64_t i, std::int64_t lane) {
          const Status status = images.look(frame, i, static_cast<int>(lane));
          if (!status.ok()) images.drop(i);
          pixels[static_cast<std::size_t>(i)] = pixel_hash(frame);
          return status;
        },
        [&](std::int64_t i, std::int64_t) {
          images.keep(i);
          const std::string one = base_name(source.name(i)) + '\n' + std::to_string(pixels[static_cast<std::size_t>(i)]) + '\n';
          seen.update(std::as_bytes(std::span(one)));
          return Status();
        }));
    TrainingContext context{parallel, options.observer, options.seed, options.checkpoint, {}, options.checkpoint_seconds};
    context.identity = std::string(kVersion) + " " + type_name(settings_) + " " + settings_text() + " weights " +
                       (weights_ ? weights_->digest() : std::string()) + " images " + seen.hex();
    NORMA_CHECK(estimator_.train(images, context));
    return complete(options);
  }

  // What every fit ends with.
  Status complete(const FitOptions& options) {
    provenance_.seed = options.seed;
    if (provenance_.weights_digest.empty() && weights_) provenance_.weights_digest = weights_->digest();
    calibration_.reset();
    fitted_ = true;  // the reference frames are looked at with the finished detector
    const Status recorded = record_references();
    fitted_ = recorded.ok();
    return recorded;
  }

  // A detector with the same backbone that has seen nothing.
  Result<Detector> emptied() const {
    NORMA_TRY(Estimator estimator, Estimator::create(Backbone::shapes(settings_.backbone), settings_.estimator));
    Detector fresh(settings_, backbone_, std::move(estimator));
    fresh.weights_ = weights_;
    fresh.provenance_.weights = provenance_.weights;
    fresh.provenance_.weights_digest = provenance_.weights_digest;
    return fresh;
  }
  Detector(const Settings& settings, std::shared_ptr<const Backbone> backbone, Estimator estimator)
      : settings_(settings), backbone_(std::move(backbone)), estimator_(std::move(estimator)), metric_(settings.metric) {}

  // Threads are an incomplete type until their header is included: said in one sentence instead of in the compiler's words.
  static auto start_threads(int count) {
    static_assert(requires { sizeof(typename ExecutionT::Threads); }, "include <norma/core/thread_pool.hpp> for a detector that runs on Cpu<> with threads");
    return typename ExecutionT::Threads(count);
  }
  static int thread_count(int threads) { return threads > 0 ? threads : start_threads(0).threads(); }
  // One name, one setting: the model file and the command line tell settings by their names alone.
  static Status require_different_names(const Settings& settings) {
    std::vector<std::string_view> names;
    std::string twice;
    Settings::visit(settings, [&](std::string_view name, const auto&, std::string_view) {
      if (std::find(names.begin(), names.end(), name) != names.end()) twice = name;
      names.push_back(name);
    });
    if (twice.empty()) return {};
    return {Errc::invalid_argument, "Detector::create: two policies have a setting called '" + twice + "': rename one"};
  }
  std::string settings_text() const {
    io::JsonWriter json;
    json.begin_object();
    io::write_settings(json, settings_);
    json.end_object();
    return json.take();
  }
  Status require_same(const Detector& other) const {
    const auto refuse = [](const std::string& what, const std::string& here, const std::string& there) {
      return Status(Errc::shape_mismatch, "Detector::merge: the parts differ in their " + what + ": " + here + " here, " + there + " there");
    };
    if (type_name(settings_) != type_name(other.settings_)) return refuse("type", type_name(settings_), type_name(other.settings_));
    if (settings_text() != other.settings_text()) return refuse("settings", settings_text(), other.settings_text());
    const auto digest = [](const Detector& part) { return part.weights_ ? part.weights_->digest() : std::string(); };
    if (digest(*this) != digest(other)) return refuse("weights", provenance_.weights, other.provenance_.weights);
    return {};
  }
  Status require_unfitted(const char* function) const {
    if (!fitted_) return {};
    return {Errc::invalid_argument, std::string("Detector::") + function + ": this detector is fitted already; begin with an empty one (create), or use fit, which begins anew"};
  }
  // Over size and pixels, eight bytes at a time: tells pictures apart, keeps no secrets.
  static std::uint64_t pixel_hash(const Image& image) noexcept {
    std::uint64_t hash = static_cast<std::uint64_t>(image.height()) * 0x9E3779B97F4A7C15u + static_cast<std::uint64_t>(image.width());
    const std::uint8_t* bytes = image.data();
    for (std::int64_t left = image.size_bytes(); left > 0; left -= 8, bytes += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes, static_cast<std::size_t>(std::min<std::int64_t>(left, 8)));
      hash = (hash ^ word) * 0xD6E8FEB86659FD93u;
      hash ^= hash >> 32;
    }
    return hash;
  }
  static std::string base_name(const std::string& path) { return path.substr(path.find_last_of("/\\") + 1); }
  static Status named(const Status& status, const std::string& name) {
    if (status.message().find(name) != std::string::npos) return status;
    return status.with_context("'" + name + "'");
  }

  // Reference frames are small copies: they make the model file larger by 200 kB each at most.
  Status add_reference(const Image& frame) {
    const double scale = std::min(1.0, static_cast<double>(detail::kReferenceFrameSide) / static_cast<double>(std::max(frame.height(), frame.width())));
    const auto side = [&](std::int64_t n) { return std::max<std::int64_t>(1, static_cast<std::int64_t>(static_cast<double>(n) * scale)); };
    NORMA_TRY(Image small, image::resize(frame, side(frame.height()), side(frame.width()), Interpolation::pillow_bilinear));
    references_.push_back({std::move(small), {}});
    return {};
  }
  // The training frames are normal; a copy of the first one with an inverted square is not.
  Status record_references() {
    if (references_.empty()) return {};
    Image marked = references_.front().frame;
    for (std::int64_t y = marked.height() * 3 / 8; y < marked.height() * 5 / 8; ++y) {
      for (std::int64_t x = marked.width() * 3 / 8; x < marked.width() * 5 / 8; ++x) {
        for (std::int64_t c = 0; c < marked.channels(); ++c) marked(y, x, c) = static_cast<std::uint8_t>(255 - marked(y, x, c));
      }
    }
    references_.push_back({std::move(marked), {}});
    Workspace workspace = make_workspace();
    for (Reference& reference : references_) {
      NORMA_TRY(reference.answer, look(reference.frame, workspace));
    }
    return {};
  }
  Result<Answer> look(const Image& frame, Workspace& workspace) const {
    NORMA_TRY(const Verdict verdict, inspect(frame, workspace));
    double sum = 0.0;
    float peak = verdict.map(0, 0);
    for (std::int64_t i = 0; i < verdict.map.count(); ++i) {
      sum += static_cast<double>(verdict.map.data[i]);
      peak = std::max(peak, verdict.map.data[i]);
    }
    return Answer{verdict.score, static_cast<float>(sum / static_cast<double>(verdict.map.count())), peak};
  }

  Result<io::TensorFileWriter> model() const {
    if (!fitted_) return Status{Errc::not_fitted, "Detector::save: fit the detector first"};
    io::TensorFileWriter writer;
    NORMA_CHECK(writer.set_metadata("norma.format", detail::kModelFormat));
    NORMA_CHECK(writer.set_metadata("norma.format_version", detail::kModelFormatVersion));
    NORMA_CHECK(writer.set_metadata("norma.version", kVersion));
    NORMA_CHECK(writer.set_metadata("norma.type", type_name(settings_)));
    NORMA_CHECK(writer.set_metadata("norma.settings", settings_text()));
    io::JsonWriter fit;
    fit.begin_object().member("images", provenance_.images).member("seed", field_text(provenance_.seed)).member("weights", provenance_.weights);
    fit.member("weights_digest", provenance_.weights_digest);
    fit.member("image_names", image_names_).end_object();
    NORMA_CHECK(writer.set_metadata("norma.fit", fit.take()));
    if (calibration_) {
      io::JsonWriter calibration;
      calibration.begin_object().member("threshold", calibration_->threshold).member("false_reject_rate", calibration_->false_reject_rate);
      calibration.member("confidence", calibration_->confidence).member("images", calibration_->images).member("rank", calibration_->rank);
      calibration.member("above", calibration_->above).member("statement", calibration_->statement).end_object();
      NORMA_CHECK(writer.set_metadata("norma.calibration", calibration.take()));
    }
    NORMA_CHECK(backbone_->save(writer));
    NORMA_CHECK(estimator_.save(writer));
    for (std::size_t i = 0; i < references_.size(); ++i) {
      const Reference& reference = references_[i];
      const std::string prefix = "self_test." + std::to_string(i);
      NORMA_CHECK(writer.add_view(prefix + ".frame", io::DType::u8, {reference.frame.height(), reference.frame.width(), reference.frame.channels()},
                                  std::as_bytes(std::span(reference.frame.data(), static_cast<std::size_t>(reference.frame.size_bytes())))));
      const float answer[] = {reference.answer.score, reference.answer.map_mean, reference.answer.map_peak};
      NORMA_CHECK(writer.add(prefix + ".answer", {3}, std::span<const float>(answer)));
    }
    return writer;
  }

  Status read_metadata(const io::Weights& file) {
    NORMA_TRY(const io::JsonValue fit, io::JsonValue::parse(file.metadata("norma.fit").value_or("{}"), file.name() + ": norma.fit"));
    const auto text = [](const io::JsonValue* value) { return std::string(value != nullptr ? value->string().value_or("") : ""); };
    const auto whole = [](const io::JsonValue* value) { return value != nullptr ? value->integer().value_or(0) : 0; };
    provenance_ = {whole(fit.find("images")), 0, text(fit.find("weights")), text(fit.find("weights_digest"))};
    // As text: JSON's readers keep 53 or 63 bits of a number.
    if (!field_from_text(text(fit.find("seed")), provenance_.seed)) {
      return {Errc::corrupt, "Detector::open: '" + file.name() + "': norma.fit has no seed"};
    }
    if (const io::JsonValue* names = fit.find("image_names")) {
      for (const io::JsonValue& name : names->items()) image_names_.emplace_back(name.string().value_or(""));
    }
    if (const auto stored = file.metadata("norma.calibration")) {
      NORMA_TRY(const io::JsonValue json, io::JsonValue::parse(*stored, file.name() + ": norma.calibration"));
      const auto number = [&](std::string_view key) {
        const io::JsonValue* value = json.find(key);
        return value != nullptr ? value->number() : std::nullopt;
      };
      const auto threshold = number("threshold");
      if (!threshold) return {Errc::corrupt, "Detector::open: '" + file.name() + "': norma.calibration has no threshold"};
      Calibration calibration;
      calibration.threshold = *threshold;
      calibration.false_reject_rate = number("false_reject_rate").value_or(0.0);
      calibration.confidence = number("confidence").value_or(0.0);
      calibration.images = whole(json.find("images"));
      calibration.rank = whole(json.find("rank"));
      calibration.above = whole(json.find("above"));
      calibration.statement = text(json.find("statement"));
      calibration_ = std::move(calibration);
    }
    for (int i = 0; file.find("self_test." + std::to_string(i) + ".frame") != nullptr; ++i) {
      const std::string prefix = "self_test." + std::to_string(i);
      NORMA_TRY(const io::TensorInfo info, file.get(prefix + ".frame"));
      const auto corrupt = Status(Errc::corrupt, "Detector::open: '" + file.name() + "': tensor '" + prefix + ".frame' is not a picture");
      if (info.shape.size() != 3 || (info.shape[2] != 1 && info.shape[2] != 3) || info.shape[0] < 1 || info.shape[1] < 1) return corrupt;
      Reference reference{Image(info.shape[0], info.shape[1], info.shape[2]), {}};
      NORMA_CHECK(file.read_raw(prefix + ".frame", io::DType::u8, info.shape,
                                std::as_writable_bytes(std::span(reference.frame.data(), static_cast<std::size_t>(reference.frame.size_bytes())))));
      float answer[3];
      NORMA_CHECK(file.read(prefix + ".answer", {3}, std::span<float>(answer)));
      reference.answer = {answer[0], answer[1], answer[2]};
      references_.push_back(std::move(reference));
    }
    return {};
  }

  Settings settings_;
  std::shared_ptr<const Backbone> backbone_;  // shared between a detector and its copies: it never changes
  Estimator estimator_;
  Metric metric_;
  std::optional<Calibration> calibration_;
  std::optional<io::Weights> weights_;
  Provenance provenance_;
  std::vector<std::string> image_names_;
  std::vector<Reference> references_;
  bool fitted_ = false;
};

}  // namespace norma
