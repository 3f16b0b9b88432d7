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
/// Fits, names every image that had to be left out, and returns the seconds it took.
double timed_fit(norma::AnyDetector& detector, const norma::data::Files& source, const Common& common, Terminal& terminal, std::vector<norma::SkippedImage>& skipped);

}  // namespace program
