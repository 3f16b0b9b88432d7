// The cases in the emulation: see coupling_cases.hpp. And what only the emulation can count.
#include <functional>

#include <device/coupling_cases.hpp>

namespace norma::test {
namespace {

std::int64_t launches_of(const std::function<Status()>& call) {
  const std::int64_t before = emulated().launches;
  const Status status = call();
  REQUIRE_MESSAGE(status.ok(), status.message());
  return emulated().launches - before;
}

TEST_CASE("cuda::flow: launches are those of docs/kernels/coupling.md, and nothing is allocated or waited for") {
  struct Count {
    nn::CouplingShape shape;
    int blocks;
    std::int64_t forward, inverse, backward;
  };
  nn::CouplingShape cflow = nn::cflow_block(16, 8);
  cflow.hidden[0] = 8;
  const std::vector<Count> counts{
      {nn::fastflow_block(8, 3), 8, 8 * 2 + 1, 8 * 3 + 1, 8 * (1 + 3 * 2) + 1},
      {cflow, 2, 2 * (2 + 1) + 1, 2 * (2 + 2) + 1, 2 * (1 + 3 * 2 + 1 + 1 + 2) + 1},
      {nn::differnet_block(8, 8), 2, 1 + 2 * 2 * 4 + 1, 2 * (1 + 2 * 4) + 1, 2 * (1 + 2 * 3 * 4) + 1},
  };
  for (const Count& count : counts) {
    CAPTURE(count.blocks);
    Random random(41);
    const DeviceFlow flow(random_flow(count.shape, count.blocks, random));
    const nn::CouplingShape& s = count.shape;
    const Positions at{2, 2, 2};
    TestStream stream;
    DeviceRows x(random_values(at.rows() * s.channels, random), at.rows(), s.channels), z(at.rows(), s.channels), dx(at.rows(), s.channels);
    DeviceRows condition(random_values(at.rows() * s.condition, random), at.rows(), s.condition), dcondition(at.rows(), s.condition);
    DeviceArray<float> logdet(at.batch);
    auto workspace = flow.workspace(at, FlowPass::forward), inverse = flow.workspace(at, FlowPass::inverse),
         backward = flow.workspace(at, FlowPass::backward);
    const std::int64_t allocations = emulated().allocations, waits = emulated().waits;
    const std::int64_t of_forward = launches_of([&] {
      return cuda::flow_forward(stream, flow.device, grid_of(at), x.const_view(), condition.const_view(), z.view(), logdet.data(), nullptr,
                                whole(workspace));
    });
    const std::int64_t of_inverse = launches_of(
        [&] { return cuda::flow_inverse(stream, flow.device, grid_of(at), x.const_view(), condition.const_view(), z.view(), whole(inverse)); });
    const std::int64_t of_backward = launches_of([&] {
      return cuda::flow_backward(stream, flow.device, grid_of(at), x.const_view(), condition.const_view(), x.const_view(), logdet.data(),
                                 flow.gradient_pointers, dx.view(), dcondition.view(), whole(backward));
    });
    CHECK(of_forward == count.forward);
    CHECK(of_inverse == count.inverse);
    CHECK(of_backward == count.backward);
    CHECK(emulated().allocations == allocations);
    CHECK(emulated().waits == waits);
  }
}

}  // namespace
}  // namespace norma::test
