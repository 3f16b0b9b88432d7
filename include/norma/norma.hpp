/// \file
/// The whole library for the host: detectors, methods, backbones, data sets, evaluation. Never pulls in CUDA, Eigen or xtensor.
/// Programs that care for compile time include the method they use, for instance <norma/methods/patchcore.hpp> and
/// <norma/backbones/resnet.hpp>.
#pragma once

#include <norma/backbones/backbones.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/data/folder.hpp>
#include <norma/data/mvtec_ad.hpp>
#include <norma/detector.hpp>
#include <norma/image/decode.hpp>
#include <norma/methods/any_detector.hpp>
#include <norma/methods/padim.hpp>
#include <norma/methods/patchcore.hpp>
#include <norma/methods/spade.hpp>
#include <norma/version.hpp>
