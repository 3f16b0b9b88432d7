/// \file
/// SPADE: the nearest normal images by one vector each, then the nearest patches of those images.
/// Source: Cohen and Hoshen, "Sub-image anomaly detection with deep pyramid correspondences", arXiv 2005.02357.
#pragma once

#include <norma/detector.hpp>
#include <norma/estimators/image_gallery.hpp>
#include <norma/metrics/gallery_distance.hpp>

namespace norma {

template <class NetworkT, class ExecutionT = Cpu<>>
using SPADE = Detector<Patches<NetworkT, Pyramid>, ImageGallery<ExactSearch>, GalleryDistance, ExecutionT>;

}  // namespace norma
