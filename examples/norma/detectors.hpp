// The closed list of detectors that the program knows. They are compiled once, in detectors.cpp.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <norma/core/thread_pool.hpp>
#include <norma/data/files.hpp>
#include <norma/evaluation/evaluate.hpp>
#include <norma/methods/any_detector.hpp>

#include "arguments.hpp"
#include "terminal.hpp"

extern template class norma::Detector<norma::Patches<norma::AnyNetwork, norma::ChosenChannels>, norma::PositionGaussian, norma::MahalanobisDistance, norma::Cpu<>>;
extern template class norma::Detector<norma::Patches<norma::AnyNetwork, norma::LocalAverage>, norma::MemoryBank<norma::GreedyKCenter, norma::ExactSearch>,
                                      norma::NearestDistance<norma::Reweighted>, norma::Cpu<>>;
extern template class norma::Detector<norma::Patches<norma::AnyNetwork, norma::Pyramid>, norma::ImageGallery<norma::ExactSearch>, norma::GalleryDistance, norma::Cpu<>>;
extern template class norma::Detector<norma::Patches<norma::AnyNetwork, norma::Levels>, norma::FeatureFlow<>, norma::FlowLikelihood, norma::Cpu<>>;
extern template class norma::Detector<norma::Patches<norma::AnyNetwork, norma::DeepLevels>, norma::ConditionalFlow<>,
                                      norma::FiberLikelihood, norma::Cpu<>>;
extern template class norma::Detector<norma::ImageScales<norma::AnyNetwork, norma::ScaleMaps>, norma::ScaleFlow, norma::LatentSquare, norma::Cpu<>>;
extern template class norma::Detector<norma::ImageScales<norma::AnyNetwork, norma::PooledScales>, norma::VectorFlow<>,
                                      norma::MeanSquaredLatent, norma::Cpu<>>;

namespace program {

// Calls that would otherwise be compiled into every command.
norma::Status fit(norma::AnyDetector& detector, const norma::data::Files& source, const norma::FitOptions& options);
norma::Status calibrate(norma::AnyDetector& detector, const norma::data::Files& source, const norma::CalibrationOptions& options, const norma::FitOptions& run);
norma::Result<norma::evaluation::Report> evaluate(const norma::AnyDetector& detector, const norma::data::MvtecAd& set, const norma::evaluation::EvaluateOptions& options);
norma::Result<norma::AnyDetector> open_model(const std::string& path, int threads);
norma::Result<norma::Verdict> inspect(const norma::AnyDetector& detector, const norma::Image& image, norma::AnyDetector::Workspace& workspace);
norma::Result<norma::AnyDetector> create(const std::string& method, const std::string& backbone, const norma::io::Weights& weights,
                                         const std::vector<norma::SettingText>& settings);

/// What every command takes.
struct Common {
  int threads = 0;
  std::uint64_t seed = 0;
  bool quiet = false;
  std::optional<std::string> json;
};
Common take_common(Arguments& arguments);

/// Options of `fit` that describe the detector: method, backbone, weights, settings, and the short forms for the geometry.
struct Recipe {
  std::string method;
  std::string backbone;
  std::string weights_path;
  std::vector<norma::SettingText> settings;
};
Recipe take_recipe(Arguments& arguments);
/// BACKBONE.safetensors where weights usually lie.
std::string find_weights(const std::string& backbone);
/// Opens the weights and makes an empty detector. Where the file lacks the last layers, methods that take them by default fall back to
/// shallower ones, and say so.
norma::AnyDetector make_detector(Recipe& recipe, Terminal& terminal);

/// "padim, patchcore, ...".
std::string method_names();

/// `"training": {...}`, null for a method that is not trained in epochs.
void write_training(norma::io::JsonWriter& json, const norma::TrainingRecord* record);
/// "500 epochs, loss 12.5 to -3.25, ..." in one line.
std::string training_text(const norma::TrainingRecord& record);

/// Writes text to a file, or to standard output for "-".
void write_text(const std::string& path, const std::string& text);
/// `"machine": {...}` for reports.
void write_machine(norma::io::JsonWriter& json);
/// Largest resident memory of this process so far, in bytes.
std::int64_t peak_memory();
/// Makes a folder (and its parents) or fails with its name.
void make_folder(const std::string& path);

}  // namespace program
