#include "detectors.hpp"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <sys/resource.h>

#include <norma/io/file.hpp>
#include <norma/linalg/simd.hpp>

template class norma::Detector<norma::Patches<norma::AnyNetwork, norma::ChosenChannels>, norma::PositionGaussian, norma::MahalanobisDistance, norma::Cpu<>>;
template class norma::Detector<norma::Patches<norma::AnyNetwork, norma::LocalAverage>, norma::MemoryBank<norma::GreedyKCenter, norma::ExactSearch>,
                               norma::NearestDistance<norma::Reweighted>, norma::Cpu<>>;
template class norma::Detector<norma::Patches<norma::AnyNetwork, norma::Pyramid>, norma::ImageGallery<norma::ExactSearch>, norma::GalleryDistance, norma::Cpu<>>;

namespace program {

using namespace norma;

Status fit(AnyDetector& detector, const data::Files& source, const FitOptions& options) { return detector.fit(source, options); }
Status calibrate(AnyDetector& detector, const data::Files& source, const CalibrationOptions& options, const FitOptions& run) {
  return detector.calibrate(source, options, run);
}
Result<evaluation::Report> evaluate(const AnyDetector& detector, const data::MvtecAd& set, const evaluation::EvaluateOptions& options) {
  return evaluation::evaluate(detector, set, options);
}
Result<AnyDetector> open_model(const std::string& path, int threads) { return AnyDetector::open(path, {.threads = threads}); }
Result<Verdict> inspect(const AnyDetector& detector, const Image& image, AnyDetector::Workspace& workspace) { return detector.inspect(image, workspace); }
Result<AnyDetector> create(const std::string& method, const std::string& backbone, const io::Weights& weights, const std::vector<SettingText>& settings) {
  return AnyDetector::create(method, backbone, weights, settings);
}

Common take_common(Arguments& arguments) {
  Common common;
  common.threads = arguments.take_number<int>("threads", 0);
  common.seed = arguments.take_number<std::uint64_t>("seed", 0);
  common.quiet = arguments.take_flag("quiet");
  common.json = arguments.take("json");
  if (common.threads < 0 || common.threads > 1024) throw Failure{kWrongUsage, "option --threads: expected 0 (all) to 1024, found " + std::to_string(common.threads)};
  return common;
}

std::string find_weights(const std::string& backbone) {
  const std::string file = backbone + ".safetensors";
  std::vector<std::string> places;
  if (const char* folder = std::getenv("NORMA_WEIGHTS")) places.push_back(std::string(folder) + "/" + file);
  places.push_back(file);
  places.push_back("weights/" + file);
  for (const std::string& place : places) {
    std::error_code ignored;
    if (std::filesystem::is_regular_file(place, ignored)) return place;
  }
  throw Failure{kUnusable, "no weights for " + backbone + ": give --weights FILE, or put " + file +
                               " into the folder that NORMA_WEIGHTS names, here, or in ./weights (norma convert makes it from a published checkpoint)"};
}

Recipe take_recipe(Arguments& arguments) {
  Recipe recipe;
  recipe.method = arguments.take_required("method", method_names());
  recipe.backbone = arguments.take_required("backbone", "norma list backbones shows them");
  std::vector<std::string> fields;
  require_usage(AnyDetector::for_each_setting(recipe.method, recipe.backbone,
                                              [&](std::string_view name, const std::string&, std::string_view) { fields.emplace_back(name); }));
  // Short forms first, so that an exact setting overrides them. --resize is a setting itself.
  const auto size = arguments.take("size");
  const auto crop = arguments.take("crop");
  if (size && (crop || arguments.has("resize"))) throw Failure{kWrongUsage, "--size stretches straight to N x N: it goes with neither --resize nor --crop"};
  if (size) {
    recipe.settings.emplace_back("resize", "0");
    recipe.settings.emplace_back("height", *size);
    recipe.settings.emplace_back("width", *size);
  }
  if (crop) {
    recipe.settings.emplace_back("height", *crop);
    recipe.settings.emplace_back("width", *crop);
  }
  arguments.take_settings(fields, recipe.settings);
  if (auto weights = arguments.take("weights")) recipe.weights_path = *weights;
  return recipe;
}

namespace {

// What a method takes from a weight file that lacks the last layers, best first. Empty where no default is that deep.
std::vector<std::string> shallower_layers(const std::string& method, const TapChoice& taps) {
  std::string levels;
  for (const auto level : taps.three_levels) levels += (levels.empty() ? "" : ",") + std::string(level);
  if (method == "cflow") return {levels};
  std::vector<std::string> choices;
  for (std::size_t i = 1; i < taps.pooled.size(); ++i) {
    if (method == "spade") choices.push_back(levels + "," + std::string(taps.pooled[i]));
    if (method == "differnet") choices.emplace_back(taps.pooled[i]);
  }
  return choices;
}

}  // namespace

AnyDetector make_detector(Recipe& recipe, Terminal& terminal) {
  if (recipe.weights_path.empty()) recipe.weights_path = find_weights(recipe.backbone);
  auto opened = io::Weights::open(recipe.weights_path);
  if (!opened.ok() && opened.code() == Errc::corrupt) {
    throw Failure{kUnusable, opened.message() + " (norma reads .safetensors; norma convert makes one from a .pth, .pt or .whl)"};
  }
  const io::Weights weights = require_file(std::move(opened));
  auto detector = create(recipe.method, recipe.backbone, weights, recipe.settings);
  const bool layers_chosen = std::any_of(recipe.settings.begin(), recipe.settings.end(), [](const auto& s) { return s.first == "layers"; });
  if (!detector.ok() && detector.code() == Errc::not_found && !layers_chosen) {
    for (const std::string& layers : shallower_layers(recipe.method, require(AnyNetwork::find(recipe.backbone)).taps())) {
      auto settings = recipe.settings;
      settings.emplace_back("layers", layers);
      auto shallower = create(recipe.method, recipe.backbone, weights, settings);
      if (!shallower.ok()) continue;
      terminal.warn("note: " + recipe.weights_path + " ends before the deepest layer that " + recipe.method + " takes; its layers are '" +
                    layers + "' instead");
      recipe.settings = settings;
      detector = std::move(shallower);
      break;
    }
  }
  // A missing tensor is the file's fault; a missing layer, or a size that the network cannot have, the user's.
  const bool about_values = detector.code() == Errc::not_found || detector.code() == Errc::shape_mismatch;
  if (!detector.ok() && about_values && detector.message().find(recipe.weights_path) == std::string::npos) {
    throw Failure{kWrongUsage, detector.message()};
  }
  return require(std::move(detector));
}

std::string method_names() {
  std::string names;
  for (const std::string_view name : AnyDetector::kMethods) names += (names.empty() ? "" : ", ") + std::string(name);
  return names;
}

void write_training(io::JsonWriter& json, const TrainingRecord* record) {
  json.key("training");
  if (record == nullptr) {
    json.value(nullptr);
    return;
  }
  const auto best = record->best_epoch >= 0 ? std::optional<std::int64_t>(record->best_epoch) : std::nullopt;
  json.begin_object().member("epochs", static_cast<std::int64_t>(record->loss.size())).member("best_epoch", best);
  json.member("loss", record->loss).member("held_out", record->held_out).end_object();
}

std::string training_text(const TrainingRecord& record) {
  if (record.loss.empty()) return "no epochs on record";
  char text[160];
  const auto loss = [](float value) { return static_cast<double>(value); };
  const auto epochs = static_cast<long long>(record.loss.size());
  std::snprintf(text, sizeof text, "%lld epoch%s, loss %.6g to %.6g", epochs, epochs == 1 ? "" : "s", loss(record.loss.front()),
                loss(record.loss.back()));
  std::string line = text;
  const auto best = static_cast<std::size_t>(record.best_epoch);
  if (record.best_epoch >= 1 && best <= record.held_out.size()) {
    std::snprintf(text, sizeof text, "; kept is epoch %lld, the best on held-out images (%.6g)", static_cast<long long>(record.best_epoch),
                  loss(record.held_out[best - 1]));
    line += text;
  }
  return line;
}

void write_text(const std::string& path, const std::string& text) {
  if (path == "-") {
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
    return;
  }
  require(io::write_file_atomically(path, io::as_bytes(text)));
}

std::int64_t peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

void write_machine(io::JsonWriter& json) {
  std::string processor = "unknown";
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) {
      processor = line.substr(line.find(':') + 2);
      break;
    }
  }
#if defined(__clang__)
  const std::string compiler = "clang " + std::to_string(__clang_major__) + "." + std::to_string(__clang_minor__);
#elif defined(__GNUC__)
  const std::string compiler = "gcc " + std::to_string(__GNUC__) + "." + std::to_string(__GNUC_MINOR__);
#else
  const std::string compiler = "unknown";
#endif
#if defined(NDEBUG)
  constexpr std::string_view build = "release";
#else
  constexpr std::string_view build = "debug";
#endif
  json.key("machine").begin_object().member("processor", processor).member("instruction_set", to_string(instruction_set()));
  json.member("hardware_threads", ThreadPool(0).threads()).member("compiler", compiler).member("build_type", build).member("device", nullptr).end_object();
}

void make_folder(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) throw Failure{kUnusable, "'" + path + "': cannot make this folder: " + error.message()};
}

}  // namespace program
