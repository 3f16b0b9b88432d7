/// \file
/// The decision threshold, under the name of its place in the flow of an evaluation. The detector calibrates itself, so the
/// implementation lives on its side: metrics/calibration.hpp.
#pragma once

#include <norma/metrics/calibration.hpp>

namespace norma::evaluation {

using norma::calibrate;
using norma::Calibration;
using norma::CalibrationOptions;
using norma::required_images;

}  // namespace norma::evaluation
