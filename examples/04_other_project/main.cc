// Opens whatever model file it is given and judges pictures with it.
#include <cstdio>

#include <norma/norma.hpp>

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s MODEL PICTURE...\n", argv[0]);
    return 2;
  }
  const auto detector = norma::AnyDetector::open(argv[1]);
  if (!detector.ok()) {
    std::fprintf(stderr, "%s\n", detector.message().c_str());
    return 1;
  }
  auto workspace = detector->make_workspace();
  for (int i = 2; i < argc; ++i) {
    const auto picture = norma::image::read(argv[i]);
    const auto verdict = picture.ok() ? detector->inspect(*picture, workspace) : norma::Result<norma::Verdict>(picture.status());
    if (verdict.ok()) {
      std::printf("%s: %.4f%s\n", argv[i], static_cast<double>(verdict->score), verdict->label == norma::Label::anomalous ? " anomalous" : "");
    } else {
      std::printf("%s\n", verdict.message().c_str());
    }
  }
  return 0;
}
