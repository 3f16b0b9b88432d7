// The device's flow in the emulation: against the host's, and on machines that fail.
#include <device/flow_cases.hpp>

#include <norma/cuda/coupling.cuh>
#include <norma/cuda/runtime.cuh>

namespace norma::test {

TEST_CASE("cuda::Flow: after the first call of a kind and size nothing is allocated") {
  const Positions at{3, 4, 4};
  Random random(61);
  for (const auto& shape : {nn::fastflow_block(10, 3), nn::cflow_block(8, 5)}) {
    const FlowParts parts({shape, shape}, random);
    for (const std::size_t pass_bytes : {std::size_t{0}, cuda::Flow::kPassBytes}) {
      auto flow = parts.make<cuda::Flow>(at, pass_bytes);
      const FlowInputs in(at, shape.channels, shape.condition, random), fewer({2, 4, 4}, shape.channels, shape.condition, random);
      const FlowOutputs want = run_flow(flow, in);
      const std::int64_t before = emulated().allocations;
      const std::size_t bytes = flow.bytes();
      parts.prepare(flow);
      CHECK(run_flow(flow, in) == want);
      run_flow(flow, fewer);
      CHECK(emulated().allocations == before);
      CHECK(flow.bytes() == bytes);
    }
  }
}

TEST_CASE("cuda::Flow: calls that do not overlap share one lane, also after some that did") {
  const Positions at{2, 3, 3};
  Random random(62);
  const FlowParts parts({nn::fastflow_block(8, 3)}, random);
  const auto flow = parts.make<cuda::Flow>(at);
  const FlowInputs small({1, 3, 3}, 8, 0, random), large(at, 8, 0, random);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      Floats z(small.x.size());
      Arena none;
      for (int i = 0; i < 20; ++i) {
        (void)flow.forward({small.x.data(), 1, 3, 3, 8}, {}, {z.data(), 1, 3, 3, 8}, {}, {}, {}, none);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  run_flow(flow, large);
  const std::int64_t before = emulated().allocations;
  for (int i = 0; i < 5; ++i) {
    run_flow(flow, small);
    run_flow(flow, large);
  }
  CHECK(emulated().allocations == before);
}

TEST_CASE("cuda::Flow: a batch goes through in the parts that pass_bytes leaves") {
  const Positions at{5, 4, 3};
  Random random(63);
  const FlowParts parts({nn::fastflow_block(8, 3), nn::fastflow_block(8, 3)}, random);
  const FlowInputs in(at, 8, 0, random);
  Floats z(in.x.size());
  Arena none;
  const auto launches = [&](const cuda::Flow& flow) {
    const std::int64_t before = emulated().launches;
    REQUIRE(flow.forward({in.x.data(), 5, 4, 3, 8}, {}, {z.data(), 5, 4, 3, 8}, {}, {}, {}, none).ok());
    return emulated().launches - before;
  };
  const auto whole = parts.make<cuda::Flow>(at);
  CHECK(launches(whole) == 4);  // two blocks of two layers; nobody asks for log-determinants
  CHECK(launches(parts.make<cuda::Flow>(at, std::size_t{0})) == 5 * 4);
  // Two images at a time: as much as they need, and a byte less than three do.
  const auto bytes_of = [&](std::int64_t images) {
    const auto flow = parts.make<cuda::Flow>(Positions{images, 4, 3});
    const std::size_t before = flow.bytes();
    REQUIRE(flow.forward({in.x.data(), images, 4, 3, 8}, {}, {z.data(), images, 4, 3, 8}, {}, {}, {}, none).ok());
    return flow.bytes() - before;
  };
  CHECK(launches(parts.make<cuda::Flow>(at, bytes_of(2))) == 3 * 4);
  CHECK(launches(parts.make<cuda::Flow>(at, bytes_of(3) - 1)) == 3 * 4);
  CHECK(launches(parts.make<cuda::Flow>(at, bytes_of(3))) == 2 * 4);
}

TEST_CASE("cuda::Flow: a batch is not cut because the parameters are many") {
  const Positions at{4, 1, 1};
  Random random(65);
  const FlowParts parts({nn::differnet_block(8, 64)}, random);
  constexpr std::size_t kLittle = std::size_t{32} << 10;
  REQUIRE(parts.parameters.size() * sizeof(float) > 2 * kLittle);
  const FlowInputs in(at, 8, 0, random);
  const auto launches = [&](const cuda::Flow& flow) {
    const std::int64_t before = emulated().launches;
    run_flow(flow, in);
    return emulated().launches - before;
  };
  CHECK(launches(parts.make<cuda::Flow>(at, kLittle)) == launches(parts.make<cuda::Flow>(at)));
}

TEST_CASE("cuda::Flow: no driver, no memory; nothing is lost") {
  const EmulatedScope scope;
  const std::size_t before = emulated().bytes_in_use;
  {
    const Positions at{2, 3, 3};
    Random random(64);
    const FlowParts parts({nn::fastflow_block(8, 3)}, random);
    auto flow = parts.make<cuda::Flow>(at);
    const FlowInputs in(at, 8, 0, random);
    Floats z(in.x.size());
    Arena none;
    const auto forward = [&] { return flow.forward({in.x.data(), 2, 3, 3, 8}, {}, {z.data(), 2, 3, 3, 8}, {}, {}, {}, none); };
    const auto create = [&] { return cuda::Flow::create(parts.blocks(), parts.map(at)).status(); };
    emulated().memory_bytes = emulated().bytes_in_use + 100;
    CHECK(forward().code() == Errc::out_of_memory);
    CHECK(create().code() == Errc::out_of_memory);
    emulated().memory_bytes = std::size_t{1} << 30;
    CHECK(forward().ok());
    emulated().driver_present = false;
    CHECK(forward().code() == Errc::not_found);
    CHECK(create().code() == Errc::not_found);
    CHECK(flow.prepare(parts.parameters, none).code() == Errc::not_found);
    emulated().driver_present = true;
    CHECK(forward().code() == Errc::not_fitted);  // who knows what a copy that failed left
    CHECK(flow.prepare(parts.parameters, none).ok());
    CHECK(forward().ok());
  }
  CHECK(emulated().bytes_in_use == before);
}

}  // namespace norma::test
