// Every built-in network can be trained: all its layers have a way back, whatever is asked for.
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/backbones/any_network.hpp>
#include <norma/nn/training/plan.hpp>

namespace {

using namespace norma;

TEST_CASE("a training plan for every built-in network, all taps at once, with the input's gradient") {
  int count = 0;
  for (const AnyNetwork& network : AnyNetwork::all()) {
    CAPTURE(std::string(network.name()));
    std::vector<std::string_view> taps;
    for (const nn::Tap& tap : network.graph().taps) taps.push_back(tap.name.view());
    const std::int64_t size = network.input().size;
    const auto plan = nn::TrainingPlan::create(network.graph(), taps, size, size, {.input_gradient = nn::InputGradient::yes});
    CHECK_MESSAGE(plan.ok(), plan.message());
    if (!plan.ok()) continue;
    for (int id = 0; id < plan->size(); ++id) {
      CHECK(plan->node(id).needed);
      CHECK(plan->node(id).gradient_wanted);
    }
    CHECK(plan->workspace_bytes(1, 1) > 0);
    ++count;
  }
  CHECK(count == static_cast<int>(AnyNetwork::all().size()));
}

}  // namespace
