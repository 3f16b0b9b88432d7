// Compose a detector, fit it on a folder of good images, give it a threshold, save it.
// Page: docs/examples/01_compose_and_fit.md
//
//   01_compose_and_fit resnet18.safetensors bottle/train/good bottle/held_out_good bottle.norma
#include <cstdio>

#include <norma/norma.hpp>

using Detector = norma::PatchCore<norma::ResNet18>;        // an alias: Detector<Backbone, Estimator, Metric> + the paper's settings
static_assert(Detector::workspace_bytes() <= 32u << 20);   // known before anything runs

// The same three words spelt out; change any of them.
using SpeltOut = norma::Detector<norma::Patches<norma::ResNet18, norma::LocalAverage>, norma::MemoryBank<norma::GreedyKCenter, norma::ExactSearch>,
                                 norma::NearestDistance<norma::Reweighted>>;
static_assert(std::is_same_v<Detector, SpeltOut>);

norma::Status learn(const char* weight_file, const char* good, const char* held_out, const char* output) {
  NORMA_TRY(auto weights, norma::io::Weights::open(weight_file));
  NORMA_TRY(auto detector, Detector::create(weights));
  norma::FitOptions options;
  options.observer.on_progress = [](const norma::ProgressUpdate& update) {
    std::fprintf(stderr, "\r%.*s %lld/%lld ", static_cast<int>(update.stage.size()), update.stage.data(), static_cast<long long>(update.done),
                 static_cast<long long>(update.total));
  };
  NORMA_CHECK(detector.fit(norma::data::Folder(good), options));
  NORMA_CHECK(detector.calibrate(norma::data::Folder(held_out), {.false_reject_rate = 0.05}));
  std::printf("\nthreshold %.4f: %s\n", detector.calibration()->threshold, detector.calibration()->statement.c_str());
  return detector.save(output);
}

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: %s WEIGHTS GOOD_FOLDER HELD_OUT_FOLDER MODEL\n", argv[0]);
    return 2;
  }
  const norma::Status status = learn(argv[1], argv[2], argv[3], argv[4]);
  if (!status.ok()) std::fprintf(stderr, "\n%s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}
