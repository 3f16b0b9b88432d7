// Open a model and look at frames as a camera's driver hands them out: BGR, rows padded to a pitch, a region of interest.
// Page: docs/examples/02_inspect_camera_frame.md
//
//   02_inspect_camera_frame bottle.norma picture.png
#include <cstdio>
#include <cstring>
#include <vector>

#include <norma/backbones/resnet.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/image/decode.hpp>
#include <norma/methods/patchcore.hpp>

using Detector = norma::PatchCore<norma::ResNet18>;

namespace {

// Stands for the camera: a picture as BGR with 64-byte aligned rows.
struct CameraBuffer {
  std::vector<unsigned char> bytes;
  std::int64_t height, width, pitch;
};
CameraBuffer grab(const norma::Image& picture) {
  CameraBuffer buffer{{}, picture.height(), picture.width(), (picture.width() * 3 + 63) / 64 * 64};
  buffer.bytes.resize(static_cast<std::size_t>(buffer.height * buffer.pitch));
  for (std::int64_t y = 0; y < buffer.height; ++y) {
    for (std::int64_t x = 0; x < buffer.width; ++x) {
      for (std::int64_t c = 0; c < 3; ++c) {
        buffer.bytes[static_cast<std::size_t>(y * buffer.pitch + x * 3 + 2 - c)] = picture(y, x, picture.channels() == 3 ? c : 0);
      }
    }
  }
  return buffer;
}

norma::Status inspect_line(const char* model, const char* file) {
  NORMA_TRY(auto line, Detector::open(model));                 // refuses another type's file by name
  NORMA_CHECK(line.self_test());                               // the same answers as on the machine that fitted it
  Detector::Workspace workspace = line.make_workspace();       // one per thread; nothing is allocated afterwards
  NORMA_TRY(const norma::Image picture, norma::image::read(file));
  const CameraBuffer camera = grab(picture);
  for (int i = 0; i < 5; ++i) {
    const norma::ImageView frame = norma::image::view(camera.bytes.data(), camera.height, camera.width, camera.pitch, norma::PixelFormat::bgr8);
    NORMA_TRY(const norma::Verdict verdict, line.inspect(frame, workspace));
    std::printf("score %.4f, %s, most anomalous at row %.0f, column %.0f, %.1f ms (backbone %.1f, search %.1f)\n", static_cast<double>(verdict.score),
                verdict.label == norma::Label::anomalous ? "anomalous" : verdict.label == norma::Label::normal ? "normal" : "no threshold", verdict.peak_row,
                verdict.peak_column, workspace.times().total(), workspace.times()[norma::Stage::backbone], workspace.times()[norma::Stage::estimator]);
  }
  // Only a part of the frame matters: a view of it, nothing is copied.
  const norma::ImageView whole = norma::image::view(camera.bytes.data(), camera.height, camera.width, camera.pitch, norma::PixelFormat::bgr8);
  const norma::ImageView part = whole.roi(camera.height / 4, camera.width / 4, camera.height / 2, camera.width / 2);
  NORMA_TRY(const norma::Verdict verdict, line.inspect(part, workspace));
  std::printf("centre only: score %.4f\n", static_cast<double>(verdict.score));
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s MODEL PICTURE\n", argv[0]);
    return 2;
  }
  const norma::Status status = inspect_line(argv[1], argv[2]);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.message().c_str());
  return status.ok() ? 0 : 1;
}
