// norma predict
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <set>

#include <norma/data/folder.hpp>
#include <norma/image/decode.hpp>
#include <norma/image/encode.hpp>
#include <norma/image/overlay.hpp>
#include <norma/io/tiff.hpp>

#include "commands.hpp"
#include "data_options.hpp"
#include "detectors.hpp"

namespace program {

using namespace norma;

namespace {

// Every image below a folder, or the file itself; a path that does not exist stays, to be reported in its place.
std::vector<std::string> expand(const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    std::error_code ignored;
    if (!std::filesystem::is_directory(path, ignored)) {
      files.push_back(path);
      continue;
    }
    const data::Folder folder(path, data::Subfolders::include);
    require(folder.status());
    for (std::int64_t i = 0; i < folder.size(); ++i) files.push_back(folder.name(i));
  }
  return files;
}

// a/b/003.png -> a_b_003; numbered where two inputs would meet.
std::string flat_name(const std::string& path, std::set<std::string>& taken) {
  std::string name = std::filesystem::path(path).lexically_normal().replace_extension().generic_string();
  while (name.starts_with("../")) name.erase(0, 3);
  for (char& c : name) {
    if (c == '/' || c == '\\' || c == ':') c = '_';
  }
  const auto start = name.find_first_not_of('_');
  name.erase(0, start == std::string::npos ? 0 : start);
  std::string unique = name;
  for (int i = 2; !taken.insert(unique).second; ++i) unique = name + "_" + std::to_string(i);
  return unique;
}

// Names for an input's map and overlay: each once, and none that would overwrite an input.
class OutputNames {
 public:
  OutputNames(const std::vector<std::string>& inputs, const std::optional<std::string>& maps, const std::optional<std::string>& overlays) : maps_(maps), overlays_(overlays) {
    if (!maps && !overlays) return;
    for (const std::string& input : inputs) inputs_.insert(whole(input));
  }
  std::string next(const std::string& file) {
    for (;;) {
      const std::string name = flat_name(file, taken_);
      const bool overwrites = (maps_ && inputs_.contains(whole(*maps_ + "/" + name + ".tiff"))) || (overlays_ && inputs_.contains(whole(*overlays_ + "/" + name + ".png")));
      if (!overwrites) return name;
    }
  }

 private:
  static std::string whole(const std::string& path) {
    std::error_code ignored;
    return std::filesystem::weakly_canonical(path, ignored).string();
  }
  std::optional<std::string> maps_, overlays_;
  std::set<std::string> inputs_, taken_;
};

struct Line {
  std::string path;
  std::optional<double> score, threshold, latency_ms;
  std::optional<int> label;
  std::optional<std::string> map_file, overlay_file, error;
  std::array<double, 2> peak{};
};

std::string as_json(const Line& line) {
  io::JsonWriter json;
  json.begin_object().member("path", line.path).member("pred_score", line.score).member("pred_label", line.label).member("threshold", line.threshold);
  json.member("anomaly_map", line.map_file).member("overlay", line.overlay_file);
  if (line.score) {
    json.member("peak", line.peak);
  } else {
    json.member("peak", nullptr);
  }
  json.member("latency_ms", line.latency_ms).member("error", line.error).end_object();
  return json.take();
}

}  // namespace

int run_predict(Arguments arguments) {
  const Common common = take_common(arguments);
  const std::string model = arguments.take_required("model", "a .norma file");
  const auto jsonl = arguments.take("jsonl");
  const auto overlays = arguments.take("overlays");
  const auto maps = arguments.take("maps");
  const bool fail_on_anomaly = arguments.take_flag("fail-on-anomaly");
  const std::vector<std::string> paths = arguments.take_positional();
  arguments.finish("predict");
  if (common.json == "-" && jsonl == "-") throw Failure{kWrongUsage, "predict: --json - and --jsonl - both want standard output"};
  if (paths.empty()) throw Failure{kWrongUsage, "predict: no images given"};

  Terminal terminal(common.quiet);
  const AnyDetector detector = require_file(open_model(model, common.threads));
  if (fail_on_anomaly && !detector.calibration()) {
    throw Failure{kNotEnoughData, "'" + model + "' has no threshold, so nothing can be called anomalous: run norma calibrate first"};
  }
  const std::vector<std::string> files = expand(paths);
  std::vector<std::string> inputs = files;
  inputs.push_back(model);
  require_writable(jsonl, inputs);
  require_writable(common.json, inputs);
  if (overlays) make_folder(*overlays);
  if (maps) make_folder(*maps);

  auto workspace = detector.make_workspace(common.threads);
  const Observer observer = terminal.observer();
  std::string lines;
  OutputNames names(inputs, maps, overlays);
  std::int64_t broken = 0, anomalous = 0, scored = 0;
  bool stopped = false;
  // A stage line would stand between the result lines of a terminal: progress shows only when they go elsewhere.
  std::optional<Progress> progress;
  if (jsonl && *jsonl != "-") progress.emplace("images", static_cast<std::int64_t>(files.size()), observer);
  for (const std::string& file : files) {
    Line line;
    line.path = file;
    const auto start = std::chrono::steady_clock::now();
    const Status status = [&]() -> Status {
      NORMA_TRY(const Image image, image::read(file));
      NORMA_TRY(const Verdict verdict, inspect(detector, image, workspace));
      line.latency_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
      line.score = static_cast<double>(verdict.score);
      line.threshold = verdict.threshold;
      if (verdict.label != Label::uncalibrated) line.label = static_cast<int>(verdict.label);
      line.peak = {verdict.peak_row, verdict.peak_column};
      if (!overlays && !maps) return {};
      NORMA_TRY(const Map<float> whole, detector.map_to_original(verdict.map, image.height(), image.width()));
      const std::string name = names.next(file);
      if (maps) {
        line.map_file = *maps + "/" + name + ".tiff";
        NORMA_CHECK(io::write_tiff(*line.map_file, whole.view()));
      }
      if (overlays) {
        line.overlay_file = *overlays + "/" + name + ".png";
        OverlayOptions options;
        if (const auto [low, high] = detector.map_range(); high > low) options.low = low, options.high = high;
        options.mark_peak = verdict.label != Label::normal;
        NORMA_TRY(const Image panel, image::panel(image.view(), whole.view(), options));
        NORMA_CHECK(image::write_png(*line.overlay_file, panel.view()));
      }
      return {};
    }();
    if (!status.ok()) {
      ++broken;
      line.error = status.message();
      if (jsonl) terminal.warn("broken: " + status.message());
    } else {
      ++scored;
      anomalous += line.label == 1 ? 1 : 0;
    }
    if (jsonl == "-") {
      std::printf("%s\n", as_json(line).c_str());
      std::fflush(stdout);
    } else if (jsonl) {
      lines += as_json(line) + "\n";
    } else if (common.json == "-") {
      if (line.error) terminal.warn("broken: " + *line.error);
    } else if (line.error) {
      std::printf("broken      %s: %s\n", file.c_str(), line.error->c_str());
    } else {
      std::printf("%-11s %10.4f  peak (%.0f, %.0f)  %7.1f ms  %s\n", line.label ? (*line.label == 1 ? "ANOMALOUS" : "normal") : "score", *line.score, line.peak[0],
                  line.peak[1], *line.latency_ms, file.c_str());
    }
    if (interrupted || (progress && !progress->advance().ok())) {
      stopped = true;
      break;
    }
  }
  if (jsonl && *jsonl != "-") write_text(*jsonl, lines);  // also after an interrupt: what was done is kept
  if (stopped) return kInterrupted;
  if (common.json) {
    io::JsonWriter json(io::JsonLayout::pretty);
    json.begin_object().member("norma_version", kVersion).member("model", model).member("method", detector.method()).member("backbone", detector.backbone());
    json.key("images").begin_object().member("scored", scored).member("anomalous", detector.calibration() ? std::optional<std::int64_t>(anomalous) : std::nullopt);
    json.member("broken", broken).end_object();
    json.member("threshold", detector.calibration() ? std::optional<double>(detector.calibration()->threshold) : std::nullopt).end_object();
    write_text(*common.json, json.take() + "\n");
  }
  if (!jsonl && !common.quiet) {
    terminal.note(std::to_string(scored) + " images" + (detector.calibration() ? ", " + std::to_string(anomalous) + " anomalous" : ", no threshold (norma calibrate sets one)") +
                  (broken > 0 ? ", " + std::to_string(broken) + " broken" : ""));
  }
  if (scored == 0) return kUnusable;
  if (fail_on_anomaly && anomalous > 0) return kAnswerIsNo;
  return broken > 0 ? kSomeBroken : kDone;
}

}  // namespace program
