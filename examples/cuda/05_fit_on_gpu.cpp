// PatchCore whose two costly parts, the selection of the bank and the search in it, run on a GPU. Everything else stays where it was, and so does the model
// file: who has no GPU opens it with the host's policies.
// Page: docs/examples/05_fit_on_gpu.md
//
//   05_fit_on_gpu resnet18.safetensors bottle/train/good bottle.norma picture.png...
#include <cstdio>
#include <span>

#include <norma/cuda.hpp>
#include <norma/norma.hpp>

using OnHost = norma::PatchCore<norma::ResNet18>;
using OnGpu = norma::Detector<OnHost::Backbone, norma::MemoryBank<norma::cuda::GreedyKCenter, norma::cuda::ExactSearch>, OnHost::Metric>;

norma::Status learn(const char* weight_file, const char* good, const char* output) {
  NORMA_TRY(const auto device, norma::cuda::device_info());  // the sentence of a machine without one
  std::printf("on %s, %d multiprocessors\n", device.name.c_str(), device.multiprocessors);
  NORMA_TRY(auto weights, norma::io::Weights::open(weight_file));
  NORMA_TRY(auto detector, OnGpu::create(weights));
  NORMA_CHECK(detector.fit(norma::data::Folder(good)));
  return detector.save(output);
}

template <class Detector>
norma::Status inspect(const char* where, const char* model, std::span<char*> pictures) {
  NORMA_TRY(const auto detector, Detector::open(model));
  auto workspace = detector.make_workspace();
  for (const char* picture : pictures) {
    NORMA_TRY(const auto image, norma::image::read(picture));
    NORMA_TRY(const auto verdict, detector.inspect(image.view(), workspace));
    std::printf("%s: %s %.6f\n", where, picture, verdict.score);
  }
  return {};
}

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s WEIGHTS GOOD_FOLDER MODEL [PICTURE...]\n", argv[0]);
    return 2;
  }
  const std::span pictures(argv + 4, argv + argc);
  norma::Status status = learn(argv[1], argv[2], argv[3]);
  if (status.ok()) status = inspect<OnGpu>("device", argv[3], pictures);
  if (status.ok()) status = inspect<OnHost>("host", argv[3], pictures);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}
