// norma eval
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <vector>

#include <norma/data/mvtec_ad.hpp>
#include <norma/image/encode.hpp>
#include <norma/image/overlay.hpp>
#include <norma/io/csv.hpp>
#include <norma/io/tiff.hpp>

#include "commands.hpp"
#include "data_options.hpp"
#include "detectors.hpp"
#include "report.hpp"

namespace program {

using namespace norma;

namespace {

std::string figures_json(const AnyDetector& detector, const evaluation::Report& report, std::int64_t broken_in_fit,
                         std::optional<double> fit_seconds, const std::string& data_digest) {
  const auto f1 = [](const std::optional<evaluation::F1Max>& best) { return best ? std::optional<double>(best->value) : std::nullopt; };
  io::JsonWriter json(io::JsonLayout::pretty);
  json.begin_object().member("norma_version", kVersion).member("method", detector.method()).member("backbone", detector.backbone());
  json.member("category", report.category).member("seed", detector.provenance().seed).member("threads", report.threads).key("settings").begin_object();
  detector.write_settings(json);
  json.end_object();
  json.key("images").begin_object().member("train", detector.provenance().images).member("normal", report.normal).member("anomalous", report.anomalous);
  json.member("broken", static_cast<std::int64_t>(report.broken.size()) + broken_in_fit).end_object();
  json.member("image_AUROC", report.image.auroc).member("image_AP", report.image.average_precision).member("image_F1Max", f1(report.image.f1_max));
  json.member("pixel_AUROC", report.pixel.auroc).member("pixel_AP", report.pixel.average_precision).member("pixel_F1Max", f1(report.pixel.f1_max));
  json.member("pixel_AUPRO", report.au_pro_30).member("pixel_AUPRO_0.05", report.au_pro_05).member("pixel_AUPIMO", report.aupimo);
  json.key("evaluation").begin_object().member("resolution", to_string(report.resolution)).member("mask_rule", report.mask_rule);
  json.member("pro_rule", "exact, 8-connected regions").member("pixel_images", report.pixel_images).member("regions", report.regions);
  json.member("aupimo_note", report.aupimo_note.empty() ? std::optional<std::string>() : std::optional<std::string>(report.aupimo_note));
  json.member("data_digest", data_digest);
  json.key("warnings").begin_array();
  for (const std::string& warning : report.warnings) json.value(warning);
  json.end_array().key("broken").begin_array();
  for (const auto& broken : report.broken) json.begin_object().member("path", broken.path).member("error", broken.reason.message()).end_object();
  json.end_array().end_object();
  write_training(json, detector.training());
  json.key("time").begin_object().member("fit_s", fit_seconds);
  const auto latency = [&](const char* key, const evaluation::LatencySummary& ms) {
    json.key(key).begin_object().member("p50", ms.p50).member("p99", ms.p99).member("mean", ms.mean).end_object();
  };
  latency("per_image_ms", report.latency);
  json.key("stages_ms").begin_object();
  for (std::size_t s = 0; s < kStageNames.size(); ++s) json.member(kStageNames[s], report.stages[s].mean);
  json.end_object().key("per_stage_ms").begin_object();
  for (std::size_t s = 0; s < kStageNames.size(); ++s) latency(kStageNames[s], report.stages[s]);
  json.end_object().member("images_at_once", report.images_at_once).member("threads_per_image", report.threads_per_image).end_object();
  const auto model = detector.visit([](const auto& d) { return d.save_bytes(); });
  json.key("memory").begin_object().member("workspace_bytes", static_cast<std::int64_t>(report.workspace_bytes));
  json.member("model_bytes", model.ok() ? std::optional<std::int64_t>(static_cast<std::int64_t>(model->size())) : std::nullopt);
  json.member("peak_rss_bytes", peak_memory()).end_object();
  write_machine(json);
  json.end_object();
  return json.take() + "\n";
}

std::string percent(const std::optional<double>& value) {
  if (!value) return "   n/a";
  char text[16];
  std::snprintf(text, sizeof text, "%6.2f", 100.0 * *value);
  return text;
}

void print_figures(const AnyDetector& detector, const evaluation::Report& report, std::optional<double> fit_seconds) {
  const auto f1 = [](const std::optional<evaluation::F1Max>& best) { return best ? std::optional<double>(best->value) : std::nullopt; };
  std::printf("%s on %s, %s: %lld normal and %lld anomalous test images\n", std::string(detector.method()).c_str(), std::string(detector.backbone()).c_str(),
              report.category.c_str(), static_cast<long long>(report.normal), static_cast<long long>(report.anomalous));
  std::printf("  image  AUROC %s   AP %s   F1-max %s\n", percent(report.image.auroc).c_str(), percent(report.image.average_precision).c_str(),
              percent(f1(report.image.f1_max)).c_str());
  std::printf("  pixel  AUROC %s   AP %s   F1-max %s   AU-PRO %s   AU-PRO@0.05 %s   AUPIMO %s   (%lld images, %lld regions, %s resolution)\n",
              percent(report.pixel.auroc).c_str(), percent(report.pixel.average_precision).c_str(), percent(f1(report.pixel.f1_max)).c_str(),
              percent(report.au_pro_30).c_str(), percent(report.au_pro_05).c_str(), percent(report.aupimo).c_str(), static_cast<long long>(report.pixel_images),
              static_cast<long long>(report.regions), std::string(to_string(report.resolution)).c_str());
  if (report.regions == 0) std::printf("  pixel figures need masks of anomalous images: there are none\n");
  std::printf("  per image p50 %.1f ms, p99 %.1f ms (%s, %d %s each); by stage:\n", report.latency.p50, report.latency.p99,
              report.images_at_once == 1 ? "one at a time" : (std::to_string(report.images_at_once) + " at once").c_str(), report.threads_per_image,
              report.threads_per_image == 1 ? "thread" : "threads");
  for (const auto& [name, value] : {std::pair("p50", &evaluation::LatencySummary::p50), std::pair("p99", &evaluation::LatencySummary::p99)}) {
    std::printf("    %s ms ", name);
    for (std::size_t s = 0; s < kStageNames.size(); ++s) std::printf(" %s %.2f", kStageNames[s], report.stages[s].*value);
    std::printf("\n");
  }
  if (fit_seconds) std::printf("  fit %.1f s\n", *fit_seconds);
}

// <maps>/<category>/test/<kind>/<stem>.tiff, what the official evaluation reads.
std::string mirrored(const std::string& root, const evaluation::ImageResult& image, const std::string& category, const char* extension) {
  const std::string folder = root + "/" + category + "/test/" + image.kind;
  make_folder(folder);
  return folder + "/" + std::filesystem::path(image.path).stem().string() + extension;
}

}  // namespace

int run_eval(Arguments arguments) {
  const Common common = take_common(arguments);
  const auto model = arguments.take("model");
  std::optional<Recipe> recipe;
  if (!model && !arguments.has("method") && !arguments.has("backbone")) {
    arguments.take_required("model", "a .norma file; or what fit takes: --method, --backbone, ...");
  }
  if (!model) recipe = take_recipe(arguments);
  Training training = take_training(arguments);
  const std::string folder = arguments.take_required("data", "a data set in MVTec AD's layout");
  const std::string category = arguments.take("category").value_or("");
  const auto maps = arguments.take("maps");
  const auto overlays = arguments.take("overlays");
  const auto report_path = arguments.take("report");
  const auto csv = arguments.take("csv");
  const auto output = arguments.take("output");
  evaluation::EvaluateOptions options;
  if (const auto text = arguments.take("resolution"); text && !evaluation::from_string(*text, options.resolution)) {
    throw Failure{kWrongUsage, "option --resolution: expected network or original, found '" + *text + "'"};
  }
  options.images_at_once = arguments.take_number<int>("images-at-once", 1);
  if (options.images_at_once < 0 || options.images_at_once > 1024) {
    throw Failure{kWrongUsage, "option --images-at-once: expected 0 (as many as threads) to 1024, found " + std::to_string(options.images_at_once)};
  }
  arguments.finish("eval");
  if (model && output) throw Failure{kWrongUsage, "--output keeps a fitted model: it does not go with --model"};
  if (model && (training.checkpoint || training.checkpoint_seconds || training.restart || training.cache_mb)) {
    throw Failure{kWrongUsage, "--checkpoint, --checkpoint-seconds, --restart and --cache-mb are of a fit: they do not go with --model"};
  }

  Terminal terminal(common.quiet);
  const data::MvtecAd set = require(data::MvtecAd::open(folder, category, {.masks = data::Masks::optional}));
  if (set.test().empty()) throw Failure{kNotEnoughData, "'" + set.folder() + "': no test images, expected folders test/good and test/<kind of defect>"};
  if (recipe && recipe->weights_path.empty()) recipe->weights_path = find_weights(recipe->backbone);
  const std::vector<std::string> inputs{model ? *model : recipe->weights_path};
  for (const auto& path : {report_path, csv, common.json}) require_writable(path, inputs);
  if (output) require_writable(*output, inputs);
  for (const auto& path : {maps, overlays}) {
    if (!path) continue;
    make_folder(*path);
    std::error_code ignored;
    if (std::filesystem::equivalent(*path + "/" + set.category(), set.folder(), ignored)) {
      throw Failure{kWrongUsage, "'" + *path + "': the data set lies there and its images would be overwritten, expected another folder"};
    }
  }

  std::vector<SkippedImage> skipped;
  std::optional<double> fit_seconds;
  AnyDetector detector = model ? require_file(open_model(*model, common.threads)) : make_detector(*recipe, terminal);
  prepare_training(training, detector, output, inputs, terminal);
  if (!model) {
    fit_seconds = timed_fit(detector, set.train(), common, training, terminal, skipped);
    if (output) {
      require(detector.save(*output));
      remove_checkpoint(training);
    }
  }
  write_curve(training, detector.training());

  options.threads = common.threads;
  options.observer = terminal.observer();
  if (maps) {
    options.on_image = [&](const evaluation::ImageResult& image, const Image& frame) -> Status {
      NORMA_TRY(const Map<float> whole, detector.map_to_original(image.map.view(), frame.height(), frame.width()));
      return io::write_tiff(mirrored(*maps, image, set.category(), ".tiff"), whole.view());
    };
  }
  auto evaluated = evaluate(detector, set, options);
  if (evaluated.code() == Errc::cancelled && !model) {
    const bool trained = detector.training() != nullptr;
    throw Failure{kInterrupted, evaluated.message() + (output    ? "; '" + *output + "' holds the fitted model"
                                                       : trained ? what_is_kept(training)
                                                                 : "")};
  }
  const evaluation::Report report = require(std::move(evaluated));
  for (const std::string& warning : report.warnings) terminal.note("note: " + warning);
  for (const auto& broken : report.broken) terminal.warn("broken: " + broken.reason.message());

  const bool quiet_standard_output = common.json == "-" || report_path == "-" || csv == "-";
  if (!quiet_standard_output) print_figures(detector, report, fit_seconds);
  const HeatMaps heat(detector, report);
  if (overlays) {
    ThreadPool pool(common.threads);
    std::vector<Status> status(static_cast<std::size_t>(pool.threads()));
    const auto count = static_cast<std::int64_t>(report.images.size());
    std::vector<std::string> paths;  // folders are made here, the pictures by all threads
    for (const evaluation::ImageResult& image : report.images) paths.push_back(mirrored(*overlays, image, set.category(), ".png"));
    Progress progress("overlays", count, options.observer);
    for (std::int64_t first = 0; first < count; first += pool.threads()) {
      const std::int64_t pictures = std::min<std::int64_t>(pool.threads(), count - first);
      pool.parallel().run(pictures, [&](std::int64_t i, int) {
        const auto at = static_cast<std::size_t>(first + i);
        const auto panel = heat.panel(report.images[at]);
        status[static_cast<std::size_t>(i)] = panel.ok() ? image::write_png(paths[at], panel->view()) : panel.status();
      });
      for (std::int64_t i = 0; i < pictures; ++i) require(status[static_cast<std::size_t>(i)]);
      require(progress.advance(pictures));
    }
    if (!quiet_standard_output) std::printf("  overlays in %s/%s/test\n", overlays->c_str(), set.category().c_str());
  }
  const std::string digest = require(set.digest());
  if (report_path) {
    write_text(*report_path, require(report_page(detector, report, heat, fit_seconds, digest)));
    if (!quiet_standard_output) std::printf("  report  %s\n", report_path->c_str());
  }
  if (csv) {
    io::CsvWriter table;
    table.row("path", "kind", "gt_label", "pred_score", "peak_row", "peak_column", "latency_ms");
    for (const evaluation::ImageResult& image : report.images) {
      table.row(image.path, image.kind, static_cast<int>(image.label), image.score, image.peak_row, image.peak_column, image.times.total());
    }
    write_text(*csv, table.text());
  }
  if (common.json) write_text(*common.json, figures_json(detector, report, static_cast<std::int64_t>(skipped.size()), fit_seconds, digest));
  if (!model) remove_checkpoint(training);
  return skipped.empty() && report.broken.empty() ? kDone : kSomeBroken;
}

}  // namespace program
