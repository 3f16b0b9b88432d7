/// \file
/// All backbones. A program that knows its backbone includes that family's header alone.
#pragma once

#include <norma/backbones/alexnet.hpp>
#include <norma/backbones/any_network.hpp>
#include <norma/backbones/backbone.hpp>
#include <norma/backbones/cait.hpp>
#include <norma/backbones/deit.hpp>
#include <norma/backbones/efficientnet.hpp>
#include <norma/backbones/efficientnet_lite.hpp>
#include <norma/backbones/mobilenet_v2.hpp>
#include <norma/backbones/resnet.hpp>
#include <norma/backbones/squeezenet.hpp>
#include <norma/backbones/vgg.hpp>
#include <norma/backbones/vit.hpp>
