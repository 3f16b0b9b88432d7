// What `fit` and `eval` do alike: finding good images, fitting with progress.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <norma/data/files.hpp>

#include "detectors.hpp"

namespace program {

/// With a category (or a folder that is one): its train/good; else the images of a plain folder.
norma::data::Files good_images(const std::string& folder, const std::string& category);
/// Fails before hours of work when the result cannot be written there, or would overwrite one of the inputs.
void require_writable(const std::string& path, const std::vector<std::string>& inputs = {});
/// The same for a report: nothing given and "-" (standard output) are fine.
void require_writable(const std::optional<std::string>& path, const std::vector<std::string>& inputs = {});
/// Options of methods that are trained in epochs.
struct Training {
  std::optional<std::string> checkpoint;
  std::optional<std::string> curve;
  std::optional<std::int64_t> cache_mb;
  std::optional<double> checkpoint_seconds;
  bool restart = false;
};
Training take_training(Arguments& arguments);
/// What a run that ended early left behind, as the end of its sentence.
std::string what_is_kept(const Training& training);
/// Before any work: refuses the options where they have no meaning, settles where the checkpoint lies (beside `output`, where nothing else is asked
/// for), and says so where a training goes on.
void prepare_training(Training& training, const norma::AnyDetector& detector, const std::optional<std::string>& output,
                      const std::vector<std::string>& inputs, Terminal& terminal);
/// Fits, names every image that had to be left out, and returns the seconds it took. A failure says what is kept of a training.
double timed_fit(norma::AnyDetector& detector, const norma::data::Files& source, const Common& common, const Training& training, Terminal& terminal,
                 std::vector<norma::SkippedImage>& skipped);
/// The losses of every epoch as a table, where one is asked for.
void write_curve(const Training& training, const norma::TrainingRecord* record);
/// Once the result is written the checkpoint is of no use.
void remove_checkpoint(const Training& training);

}  // namespace program
