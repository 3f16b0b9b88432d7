// expect: Network: add .*graph
// expect NO_NAME: Network: add .*name
// expect NO_INPUT: Network: add .*input
// expect NO_TAPS: Network: add .*default_taps
#include <norma/concepts/network.hpp>

namespace nn = norma::nn;

consteval auto make_graph() {
  nn::Graph<2> graph;
  nn::Builder b(graph);
  b.tap("conv", b.convolution(b.input(), {.name = "conv", .out_channels = 8, .bias = true}));
  return graph;
}

struct Tiny {
#if !defined(NO_NAME)
  static constexpr std::string_view name() { return "tiny"; }
#endif
#if !defined(NO_INPUT)
  static constexpr nn::InputSpec input() { return nn::kImageNet; }
#endif
#if !defined(NORMA_COMPILE_FAIL)
  static constexpr nn::GraphView graph() { return kGraph; }
#endif
#if !defined(NO_TAPS)
  static constexpr std::span<const std::string_view> default_taps() { return kTaps; }
#endif
  static constexpr auto kGraph = make_graph();
  static constexpr std::array<std::string_view, 1> kTaps{"conv"};
};

static_assert(norma::detail::check_network<Tiny>());
