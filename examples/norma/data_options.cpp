#include "data_options.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include <unistd.h>

#include <norma/data/folder.hpp>
#include <norma/data/mvtec_ad.hpp>
#include <norma/io/csv.hpp>
#include <norma/nn/training/checkpoint.hpp>

namespace program {

using namespace norma;

data::Files good_images(const std::string& folder, const std::string& category) {
  std::error_code ignored;
  if (!category.empty() || std::filesystem::is_directory(folder + "/train/good", ignored)) {
    return require(data::MvtecAd::open(folder, category, {.masks = data::Masks::optional})).train();
  }
  data::Folder plain(folder);
  if (!plain.status().ok()) {
    const auto categories = data::MvtecAd::categories(folder);
    if (categories.ok() && !categories->empty()) {
      std::string names;
      for (const std::string& name : *categories) names += (names.empty() ? "" : ", ") + name;
      throw Failure{kWrongUsage, "'" + folder + "' is a data set: choose a category with --category (" + names + ")"};
    }
  }
  return plain;
}

void require_writable(const std::string& path, const std::vector<std::string>& inputs) {
  if (path.empty() || path == "-") throw Failure{kWrongUsage, "expected the name of a file to write, found '" + path + "'"};
  const std::filesystem::path parent = std::filesystem::path(path).parent_path();
  std::error_code ignored;
  if (!parent.empty() && !std::filesystem::is_directory(parent, ignored)) {
    throw Failure{kUnusable, "'" + path + "': the folder '" + parent.string() + "' does not exist"};
  }
  if (std::filesystem::is_directory(path, ignored)) throw Failure{kUnusable, "'" + path + "': is a folder, expected a file name"};
  if (::access(parent.empty() ? "." : parent.c_str(), W_OK) != 0 && ::access(path.c_str(), W_OK) != 0) {
    throw Failure{kUnusable, "'" + path + "': the folder cannot be written to"};
  }
  for (const std::string& input : inputs) {
    if (std::filesystem::equivalent(path, input, ignored)) throw Failure{kWrongUsage, "'" + path + "' would be overwritten: it is read, too"};
  }
}
void require_writable(const std::optional<std::string>& path, const std::vector<std::string>& inputs) {
  if (path && *path != "-") require_writable(*path, inputs);
}

namespace {

// What the system would give without swapping, in bytes; 0 where it does not say.
double available_memory() {
  std::ifstream info("/proc/meminfo");
  for (std::string name; info >> name;) {
    double kilobytes = 0.0;
    if (name == "MemAvailable:" && info >> kilobytes) return kilobytes * 1024.0;
  }
  return 0.0;
}

// The kernel ends a process that takes too much without a word: refused before hours of work instead. Returns the bytes that may be kept between
// epochs; without a word of the user's they give way before the fit is refused.
std::uint64_t require_memory(const AnyDetector& detector, std::int64_t images, const Training& training, Terminal& terminal) {
  const auto cache = training.cache_mb ? static_cast<std::uint64_t>(*training.cache_mb) * 1'000'000u : FitOptions{}.cache_bytes;
  const double needed = detector.fit_bytes(images, cache), without = detector.fit_bytes(images, 0);
  const double there = available_memory();
  if (there == 0.0 || needed <= there) return cache;
  char text[320];
  if (without > there || training.cache_mb) {
    std::snprintf(text, sizeof text,
                  "this fit needs about %.1f GB of memory for %lld images, %.1f GB are available: a smaller --size or --crop%s need less",
                  needed / 1e9, static_cast<long long>(images), there / 1e9,
                  detector.training() != nullptr ? ", --batch or --cache-mb" : ", --feature-dims or fewer --layers");
    throw Failure{kUnusable, text};
  }
  const double kept = 0.5 * (there - without);
  std::snprintf(text, sizeof text,
                "note: %.1f GB are available, so %.1f GB of features are kept between epochs; other images are looked at in each of them",
                there / 1e9, kept / 1e9);
  terminal.note(text);
  return static_cast<std::uint64_t>(kept);
}

bool same_file(const std::string& a, const std::string& b) {
  std::error_code ignored;
  const auto whole = [&](const std::string& path) { return std::filesystem::weakly_canonical(std::filesystem::absolute(path, ignored), ignored); };
  return whole(a) == whole(b);
}

}  // namespace

std::string what_is_kept(const Training& training) {
  if (!training.checkpoint) return "; nothing is kept (--checkpoint FILE keeps what was trained)";
  std::error_code ignored;
  if (!std::filesystem::exists(*training.checkpoint, ignored)) return "; the training had not begun, nothing is kept";
  return "; '" + *training.checkpoint + "' keeps what was trained, the same command" + (training.restart ? " without --restart" : "") +
         " goes on from it";
}

Training take_training(Arguments& arguments) {
  Training training;
  training.checkpoint = arguments.take("checkpoint");
  training.curve = arguments.take("curve");
  training.restart = arguments.take_flag("restart");
  if (arguments.take("cache-mb")) training.cache_mb = arguments.take_number<std::int64_t>("cache-mb", 0);
  if (arguments.take("checkpoint-seconds")) training.checkpoint_seconds = arguments.take_number<double>("checkpoint-seconds", 0.0);
  if (training.cache_mb && (*training.cache_mb < 0 || *training.cache_mb > 1'000'000'000)) {
    throw Failure{kWrongUsage, "option --cache-mb: expected 0 to 1000000000, found " + std::to_string(*training.cache_mb)};
  }
  if (training.checkpoint_seconds && !(*training.checkpoint_seconds > 0.0)) {
    throw Failure{kWrongUsage, "option --checkpoint-seconds: expected a number above 0, found " + field_text(*training.checkpoint_seconds)};
  }
  return training;
}

void prepare_training(Training& training, const AnyDetector& detector, const std::optional<std::string>& output,
                      const std::vector<std::string>& inputs, Terminal& terminal) {
  if (detector.training() == nullptr) {
    const auto refuse = [&](std::string_view option, bool given) {
      if (given)
        throw Failure{kWrongUsage,
                      std::string(detector.method()) + " is not trained in epochs: --" + std::string(option) + " goes with methods that are"};
    };
    refuse("checkpoint", training.checkpoint.has_value());
    refuse("checkpoint-seconds", training.checkpoint_seconds.has_value());
    refuse("restart", training.restart);
    refuse("curve", training.curve.has_value());
    refuse("cache-mb", training.cache_mb.has_value());
    return;
  }
  if (training.curve) {
    require_writable(*training.curve, inputs);
    if (output && same_file(*training.curve, *output)) throw Failure{kWrongUsage, "'" + *training.curve + "' is both --curve and --output"};
  }
  if (!training.checkpoint && output) training.checkpoint = *output + ".checkpoint";
  if (!training.checkpoint) return;
  const std::string& path = *training.checkpoint;
  require_writable(path, inputs);
  for (const auto& other : {output, training.curve}) {
    if (other && same_file(path, *other)) throw Failure{kWrongUsage, "'" + path + "' is --checkpoint and another file to write as well"};
  }
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return;
  // Only a checkpoint is gone on from, and only a checkpoint is deleted.
  const auto reader = nn::CheckpointReader::open(path);
  const bool is_checkpoint = reader.ok() || (reader.code() == Errc::corrupt && io::Weights::open(path).ok());
  if (!reader.ok() && !(is_checkpoint && training.restart)) {
    throw Failure{kUnusable, reader.message() + (is_checkpoint ? "; delete it or give --restart to begin anew"
                                                               : "; delete it, or choose another --checkpoint FILE")};
  }
  if (training.restart) {
    std::filesystem::remove(path, ignored);
    return;
  }
  std::int64_t epoch = 0;
  require(reader->number("epoch", epoch));
  terminal.note("going on from '" + path + "', " + std::to_string(epoch) + (epoch == 1 ? " epoch" : " epochs") + " done");
}

double timed_fit(AnyDetector& detector, const data::Files& source, const Common& common, const Training& training, Terminal& terminal,
                 std::vector<SkippedImage>& skipped) {
  const bool trained = detector.training() != nullptr;
  FitOptions options{.seed = common.seed, .threads = common.threads, .observer = terminal.observer(), .skipped = &skipped};
  options.cache_bytes = require_memory(detector, source.size(), training, terminal);
  if (trained) options.checkpoint = training.checkpoint.value_or("");
  if (training.checkpoint_seconds) options.checkpoint_seconds = *training.checkpoint_seconds;
  const auto start = std::chrono::steady_clock::now();
  const Status status = fit(detector, source, options);
  for (const SkippedImage& image : skipped) terminal.warn("skipped: " + image.reason.message());
  if (trained && status.code() == Errc::cancelled) throw Failure{kInterrupted, status.message() + what_is_kept(training)};
  if (trained && status.message().find("cannot be gone on from") != std::string::npos) {
    throw Failure{exit_code(status.code()), status.message() + "; --restart begins anew"};
  }
  require(status);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (trained) terminal.note("training: " + training_text(*detector.training()));
  return seconds;
}

void write_curve(const Training& training, const TrainingRecord* record) {
  if (!training.curve || record == nullptr) return;
  io::CsvWriter table;
  table.row("epoch", "loss", "held_out");
  for (std::size_t i = 0; i < record->loss.size(); ++i) {
    table.row(static_cast<std::int64_t>(i + 1), record->loss[i],
              i < record->held_out.size() ? std::optional<float>(record->held_out[i]) : std::nullopt);
  }
  write_text(*training.curve, table.text());
}

void remove_checkpoint(const Training& training) {
  std::error_code ignored;
  if (training.checkpoint) std::filesystem::remove(*training.checkpoint, ignored);
}

}  // namespace program
