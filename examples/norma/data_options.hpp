// What `fit` and `eval` do alike: finding good images, fitting with progress.
#pragma once

#include <string>
#include <vector>

#include <norma/data/files.hpp>

#include "detectors.hpp"

namespace program {

/// With a category (or a folder that is one): its train/good; else the images of a plain folder.
norma::data::Files good_images(const std::string& folder, const std::string& category);
/// Fails before hours of work when the place for the result does not exist.
void require_writable(const std::string& path);
/// Fits, names every image that had to be left out, and returns the seconds it took.
double timed_fit(norma::AnyDetector& detector, const norma::data::Files& source, const Common& common, Terminal& terminal, std::vector<norma::SkippedImage>& skipped);

}  // namespace program
