// Train FastFlow on a folder of good images: progress, a checkpoint that an interrupt leaves, and images held out to choose the epoch.
// Page: docs/examples/06_train_a_flow.md
//
//   06_train_a_flow resnet18.safetensors bottle/train/good bottle.norma
#include <atomic>
#include <csignal>
#include <cstdio>
#include <string>

#include <norma/backbones/resnet.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/data/folder.hpp>
#include <norma/methods/fastflow.hpp>

using Detector = norma::FastFlow<norma::ResNet18>;
static_assert(Detector::Estimator::parameter_count(Detector::Backbone::shapes({})) == 4'657'408);   // known before anything runs

std::atomic<bool> stop{false};

norma::Status learn(const char* weight_file, const char* good, const std::string& output) {
  Detector::Settings settings;
  settings.estimator.training.epochs = 100;
  settings.estimator.training.holdout = 0.1;                        // a tenth of the images is not trained on ...
  settings.estimator.training.patience = 10;                        // ... and ends the training ten epochs after their best one
  NORMA_TRY(auto weights, norma::io::Weights::open(weight_file));
  NORMA_TRY(auto detector, Detector::create(weights, settings));
  norma::FitOptions options;
  options.checkpoint = output + ".checkpoint";                      // the same call goes on from it, bit for bit
  options.observer.cancel = &stop;
  options.observer.on_progress = [](const norma::ProgressUpdate& update) {
    std::fprintf(stderr, "\r%.*s: %lld/%lld   ", static_cast<int>(update.stage.size()), update.stage.data(),
                 static_cast<long long>(update.done), static_cast<long long>(update.total));
  };
  NORMA_CHECK(detector.fit(norma::data::Folder(good), options));
  const norma::TrainingRecord& record = *detector.training();
  std::printf("\n%zu epochs; kept is number %lld\n", record.loss.size(), static_cast<long long>(record.best_epoch));
  NORMA_CHECK(detector.save(output));
  std::remove(options.checkpoint.c_str());
  return {};
}

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s WEIGHTS GOOD_FOLDER MODEL\n", argv[0]);
    return 2;
  }
  std::signal(SIGINT, [](int) { stop = true; });
  const norma::Status status = learn(argv[1], argv[2], argv[3]);
  if (!status.ok()) std::fprintf(stderr, "\n%s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}
