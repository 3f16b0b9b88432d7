// norma fit
#include <cstdio>

#include <filesystem>

#include <norma/data/folder.hpp>
#include <norma/data/mvtec_ad.hpp>

#include "commands.hpp"
#include "data_options.hpp"
#include "detectors.hpp"

namespace program {

using namespace norma;

int run_fit(Arguments arguments) {
  const Common common = take_common(arguments);
  Recipe recipe = take_recipe(arguments);
  Training training = take_training(arguments);
  const std::string folder = arguments.take_required("data", "a folder of good images, or a data set with --category");
  const std::string category = arguments.take("category").value_or("");
  const std::string output = arguments.take_required("output", "the model file to write");
  arguments.finish("fit");

  Terminal terminal(common.quiet);
  const data::Files source = good_images(folder, category);
  require(source.status());
  if (recipe.weights_path.empty()) recipe.weights_path = find_weights(recipe.backbone);
  require_writable(output, {recipe.weights_path});
  require_writable(common.json, {recipe.weights_path});
  AnyDetector detector = make_detector(recipe, terminal);
  std::vector<SkippedImage> skipped;
  prepare_training(training, detector, output, {recipe.weights_path}, terminal);
  const double seconds = timed_fit(detector, source, common, training, terminal, skipped);
  require(detector.save(output));
  write_curve(training, detector.training());
  remove_checkpoint(training);

  const auto bytes = static_cast<long long>(std::filesystem::file_size(output));
  if (common.json != "-") {
    std::printf("%s: %s on %s, %lld images in %.1f s, %.1f MB\n", output.c_str(), std::string(detector.method()).c_str(), std::string(detector.backbone()).c_str(),
                static_cast<long long>(detector.provenance().images), seconds, static_cast<double>(bytes) / 1e6);
  }
  if (common.json) {
    io::JsonWriter json(io::JsonLayout::pretty);
    json.begin_object().member("norma_version", kVersion).member("method", detector.method()).member("backbone", detector.backbone());
    json.member("model", output).member("seed", common.seed).key("settings").begin_object();
    detector.write_settings(json);
    json.end_object();
    json.key("images").begin_object().member("train", detector.provenance().images).member("broken", static_cast<std::int64_t>(skipped.size())).end_object();
    write_training(json, detector.training());
    json.key("time").begin_object().member("fit_s", seconds).end_object();
    json.key("memory").begin_object().member("model_bytes", static_cast<std::int64_t>(bytes)).member("peak_rss_bytes", peak_memory()).end_object();
    write_machine(json);
    json.end_object();
    write_text(*common.json, json.take() + "\n");
  }
  return skipped.empty() ? kDone : kSomeBroken;
}

}  // namespace program
