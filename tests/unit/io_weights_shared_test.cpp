// The real weight files beside the checkout: they open, agree with what is known of them, and convert.
#include <norma/io/convert.hpp>
#include <norma/io/safetensors.hpp>

#include <cmath>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "tests/support/shared_fixtures.hpp"

using namespace norma;

TEST_CASE("real weight files open, and every tensor converts to finite floats") {
  struct Case {
    const char* file;
    std::size_t tensors;
    const char* first;
    std::vector<std::int64_t> shape;
  };
  const Case cases[] = {{"weights/resnet18.safetensors", 30, "conv1.weight", {64, 3, 7, 7}},
                        {"weights/resnet50_caffe.safetensors", 86, "conv1.weight", {64, 3, 7, 7}},
                        {"weights/mobilenet_v2.safetensors", 104, "features.0.0.weight", {32, 3, 3, 3}},
                        {"weights/squeezenet1_1.safetensors", 52, "features.0.weight", {64, 3, 3, 3}},
                        {"weights/vit_tiny_patch16_224.safetensors", 152, "patch_embed.proj.weight", {192, 3, 16, 16}}};
  for (const Case& c : cases) {
    const auto path = test::shared(c.file);
    if (!path) continue;
    const auto weights = io::Weights::open(path->string());
    REQUIRE_MESSAGE(weights.ok(), weights.message());
    CHECK(weights->tensors().size() == c.tensors);
    const io::TensorInfo* first = weights->find(c.first);
    REQUIRE_MESSAGE(first != nullptr, c.file);
    CHECK(std::equal(first->shape.begin(), first->shape.end(), c.shape.begin(), c.shape.end()));
    CHECK(weights->metadata().size() > 0);
    std::vector<float> values;
    for (const io::TensorInfo& tensor : weights->tensors()) {
      values.resize(static_cast<std::size_t>(tensor.count()));
      REQUIRE(weights->read(tensor.name, tensor.shape, values).ok());
      bool finite = true;
      for (const float value : values) finite = finite && std::isfinite(value);
      CHECK_MESSAGE(finite, tensor.name);
    }
  }
}

TEST_CASE("a real file converted to half precision keeps every value within half an ulp of binary16") {
  const auto path = test::shared("weights/squeezenet1_1.safetensors");
  if (!path) return;
  const test::TemporaryFolder folder;
  const std::string out = (folder.path() / "half.safetensors").string();
  io::ConvertOptions options;
  options.float_type = io::DType::f16;
  REQUIRE(io::convert(path->string(), out, options).ok());
  const auto before = io::Weights::open(path->string());
  const auto after = io::Weights::open(out);
  REQUIRE(before.ok());
  REQUIRE(after.ok());
  CHECK(after->tensors().size() == before->tensors().size());
  CHECK(after->metadata("source_file") == "squeezenet1_1.safetensors");
  CHECK(after->metadata("source_sha256") == before->digest());
  for (const io::TensorInfo& tensor : before->tensors()) {
    std::vector<float> a(static_cast<std::size_t>(tensor.count())), b(a.size());
    REQUIRE(before->read(tensor.name, tensor.shape, a).ok());
    REQUIRE(after->read(tensor.name, tensor.shape, b).ok());
    bool close = true;
    // Relative 2^-11 for normal halves, absolute 2^-25 for subnormal ones.
    for (std::size_t i = 0; i < a.size(); ++i) close = close && std::abs(a[i] - b[i]) <= std::max(0x1p-11f * std::abs(a[i]), 0x1p-25f);
    CHECK_MESSAGE(close, tensor.name);
  }
}
