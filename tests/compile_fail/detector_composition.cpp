// expect: Metric and Estimator do not fit: .*MahalanobisDistance with PositionGaussian
// expect NO_EXTRACT: Backbone policy: add .*extract
// expect NO_OBSERVE: Estimator policy: add .*observe
// expect NO_EMBEDDING: Embedding policy: see features/local_average.hpp
#include <norma/backbones/squeezenet.hpp>
#include <norma/detector.hpp>
#include <norma/estimators/memory_bank.hpp>
#include <norma/features/patches.hpp>
#include <norma/metrics/mahalanobis_distance.hpp>
#include <norma/metrics/nearest_distance.hpp>

using namespace norma;

#if defined(NO_EMBEDDING)
struct Nothing {};
using Looking = Patches<SqueezeNet1_1, Nothing>;
#else
using Looking = Patches<SqueezeNet1_1, LocalAverage>;
#endif

#if defined(NO_EXTRACT)
struct Blind : Looking {
  static Result<Blind> create(const io::Weights&, const Settings&);
  void extract() const = delete;
};
using Eyes = Blind;
#else
using Eyes = Looking;
#endif

#if defined(NO_OBSERVE)
struct Forgetful : MemoryBank<> {
  static Result<Forgetful> create(const FeatureShapes&, const Settings&);
  static Result<Forgetful> load(const io::Weights&, const FeatureShapes&, const Settings&, Parallel);
  void observe() = delete;
};
using Memory = Forgetful;
#else
using Memory = MemoryBank<>;
#endif

#if defined(NORMA_COMPILE_FAIL)
using Distance = MahalanobisDistance;
#else
using Distance = NearestDistance<>;
#endif

std::size_t bytes() { return sizeof(Detector<Eyes, Memory, Distance>); }
