// methods/cflow.hpp: what the method looks at unless it is told otherwise.
#include <cstdint>

#include <doctest/doctest.h>
#include <norma/backbones/mobilenet_v2.hpp>
#include <norma/backbones/reflect_padding.hpp>
#include <norma/backbones/resnet.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/methods/cflow.hpp>

namespace norma::test {
namespace {

template <class NetworkT>
constexpr FeatureShapes default_shapes() {
  return CFlow<NetworkT>::Backbone::shapes(typename CFlow<NetworkT>::Settings{}.backbone);
}
constexpr FeatureShapes levels(std::int64_t a, std::int64_t b, std::int64_t c) {
  FeatureShapes shapes;
  shapes.add({32, 32, a});
  shapes.add({16, 16, b});
  shapes.add({8, 8, c});
  return shapes;
}

TEST_CASE("CFlow: the publication's layers and size, with and without mirrored borders") {
  CHECK(default_shapes<WideResNet50>() == levels(512, 1024, 2048));
  CHECK(default_shapes<ResNet18>() == levels(128, 256, 512));
  CHECK(default_shapes<ReflectPadded<ResNet18>>() == levels(128, 256, 512));
  CHECK(default_shapes<MobileNetV2>() == levels(32, 96, 1280));
  const CFlow<MobileNetV2>::Settings settings;
  CHECK(settings.backbone.preprocess.interpolation == Interpolation::pillow_lanczos);
  CHECK(settings.backbone.preprocess.resize == 0);
  CHECK(CFlow<ReflectPadded<WideResNet50>>::type_name() ==
        "detector<patches<wide_resnet50_2_reflect,deep_levels>,conditional_flow,fiber_likelihood>");
}

}  // namespace
}  // namespace norma::test
