// cuda::Flow against nn::Flow, through the interface that estimators use.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <norma/core/thread_pool.hpp>
#include <norma/cuda/flow.hpp>
#include <norma/nn/coupling.hpp>
#include <support/coupling_reference.hpp>
#include <support/device.hpp>

namespace norma::test {

using Floats = std::vector<float>;

inline Floats normal_floats(std::int64_t count, Random& random) {
  Floats x(index_of(count));
  for (float& v : x) v = static_cast<float>(random.normal());
  return x;
}

/// A flow's blocks and parameters, of which both kinds of flow are made.
class FlowParts {
 public:
  FlowParts(const std::vector<nn::CouplingShape>& shapes, Random& random) {
    for (const nn::CouplingShape& shape : shapes) {
      drawn_.push_back(random_block(shape, random));
      rotations_.emplace_back(drawn_.back().rotation.begin(), drawn_.back().rotation.end());
      const Floats packed = packed_parameters(drawn_.back());
      parameters.insert(parameters.end(), packed.begin(), packed.end());
    }
  }
  [[nodiscard]] std::vector<nn::FlowBlock> blocks() const {
    std::vector<nn::FlowBlock> given;
    for (std::size_t b = 0; b < drawn_.size(); ++b) {
      if (drawn_[b].shape.mixing == nn::ChannelMixing::rotation) {
        given.push_back({drawn_[b].shape, {}, rotations_[b]});
      } else {
        given.push_back({drawn_[b].shape, drawn_[b].permutation, {}});
      }
    }
    return given;
  }
  [[nodiscard]] Shape map(const Positions& at) const { return {at.height, at.width, drawn_[0].shape.channels}; }

  template <class FlowT, class... More>
  [[nodiscard]] FlowT make(const Positions& at, More... more) const {
    auto flow = FlowT::create(blocks(), map(at), nn::FlowUse::training, more...);
    REQUIRE_MESSAGE(flow.ok(), flow.message());
    prepare(*flow);
    return *std::move(flow);
  }
  template <class FlowT>
  void prepare(FlowT& flow) const {
    Buffer<std::byte> memory(static_cast<std::int64_t>(flow.scratch_bytes(nn::FlowPass::prepare, 1, 1)));
    Arena arena(memory.span());
    const Status status = flow.prepare(parameters, arena);
    REQUIRE_MESSAGE(status.ok(), status.message());
  }

  Floats parameters;

 private:
  std::vector<ReferenceBlock> drawn_;
  std::vector<Floats> rotations_;
};

struct FlowInputs {
  FlowInputs(const Positions& positions, std::int64_t channels, std::int64_t condition_channels, Random& random)
      : at(positions),
        x(normal_floats(at.rows() * channels, random)),
        condition(normal_floats(at.rows() * condition_channels, random)),
        dz(normal_floats(at.rows() * channels, random)),
        dlogdet(normal_floats(at.batch, random)) {}
  Positions at;
  Floats x, condition, dz, dlogdet;
};

struct FlowOutputs {
  Floats z, logdet, position_logdet, back, gradients, dx, dcondition;
  bool operator==(const FlowOutputs&) const = default;
};

/// Forward, inverse and backward; `z_of_backward` where the way back should begin at other numbers than this flow's.
template <class FlowT>
FlowOutputs run_flow(const FlowT& flow, const FlowInputs& in, const Floats* z_of_backward = nullptr, Parallel parallel = {}) {
  const Positions& at = in.at;
  const std::int64_t channels = flow.map().channels, more = flow.condition();
  const auto n = in.x.size();
  // What is not written shows.
  FlowOutputs out{Floats(n, 7.0f), Floats(index_of(at.batch), 7.0f), Floats(index_of(at.rows()), 7.0f), Floats(n, 7.0f),
                  Floats(index_of(flow.parameters()), 7.0f), Floats(n, 7.0f), Floats(in.condition.size(), 7.0f)};
  const auto view = [&](auto& values, std::int64_t c) { return TensorView(values.data(), at.batch, at.height, at.width, c); };
  const TensorView<const float> given = more > 0 ? view(in.condition, more) : TensorView<const float>();
  const auto call = [&](nn::FlowPass pass, auto&& body) {
    Buffer<std::byte> memory(static_cast<std::int64_t>(flow.scratch_bytes(pass, at.batch, parallel.workers())));
    Arena arena(memory.span());
    const Status status = body(arena);
    REQUIRE_MESSAGE(status.ok(), status.message());
  };
  call(nn::FlowPass::forward, [&](Arena& arena) {
    return flow.forward(view(in.x, channels), given, view(out.z, channels), out.logdet, out.position_logdet, parallel, arena);
  });
  const Floats& z = z_of_backward == nullptr ? out.z : *z_of_backward;
  call(nn::FlowPass::inverse, [&](Arena& arena) { return flow.inverse(view(z, channels), given, view(out.back, channels), parallel, arena); });
  call(nn::FlowPass::backward, [&](Arena& arena) {
    return flow.backward(view(z, channels), given, view(in.dz, channels), in.dlogdet, out.gradients, view(out.dx, channels),
                         more > 0 ? view(out.dcondition, more) : TensorView<float>(), parallel, arena);
  });
  return out;
}

inline double largest(const Floats& values) {
  double m = 1.0;
  for (const float v : values) m = std::max(m, std::abs(static_cast<double>(v)));
  return m;
}
/// Whether all are finite and within `bound`; counted, as a CHECK for each of some 10 000 numbers is slow.
inline void check_close(const Floats& got, const Floats& want, double bound) {
  REQUIRE(got.size() == want.size());
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < got.size(); ++i) wrong += !(std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i])) <= bound);
  CHECK(wrong == 0);
}

// Each of the two is within kFlowBound of the largest value of a double reference for such flows, its gradients within four times that
// (nn_coupling_test.cpp and coupling_cases.hpp derive it): their difference is within the sum.
constexpr double kFlowBound = 2e-5, kBothFlows = 2 * kFlowBound;

inline void check_outputs(const FlowOutputs& got, const FlowOutputs& want, const std::vector<nn::CouplingShape>& shapes, const Positions& at,
                          double bound) {
  const double values = bound * largest(want.z);
  check_close(got.z, want.z, values);
  check_close(got.back, want.back, values);
  // Sums of so many terms of at most 1.9, plus log g.
  const auto terms = static_cast<double>(shapes[0].channels * static_cast<std::int64_t>(shapes.size()));
  check_close(got.logdet, want.logdet, bound * terms * static_cast<double>(at.per_sample()));
  check_close(got.position_logdet, want.position_logdet, bound * terms);
  check_close(got.dx, want.dx, 4 * bound * largest(want.dx));
  check_close(got.dcondition, want.dcondition, 4 * bound * largest(want.dcondition));
  std::size_t first = 0;
  for (const nn::CouplingShape& s : shapes) {
    const std::size_t last = first + index_of(nn::parameter_layout(s).total);
    const auto part = [&](const Floats& all) {
      return Floats(all.begin() + static_cast<std::int64_t>(first), all.begin() + static_cast<std::int64_t>(last));
    };
    check_close(part(got.gradients), part(want.gradients), 4 * bound * largest(part(want.gradients)));
    first = last;
  }
}

struct PublishedFlow {
  const char* name;
  std::vector<nn::CouplingShape> shapes;
  Positions at;
};
inline std::vector<PublishedFlow> published_flows() {
  nn::CouplingShape wide_cflow = nn::cflow_block(16, 12), odd_cflow = nn::cflow_block(11, 5);
  return {{"fastflow 3x3 and 1x1", {nn::fastflow_block(16, 3), nn::fastflow_block(16, 1), nn::fastflow_block(16, 3)}, {2, 5, 7}},
          {"fastflow, odd", {nn::fastflow_block(13, 3), nn::fastflow_block(13, 1)}, {3, 4, 3}},
          {"fastflow, fewer hidden channels", {nn::fastflow_block(24, 3, 0.16)}, {1, 6, 6}},
          {"cflow, rotation, condition", {wide_cflow, wide_cflow}, {33, 1, 1}},
          {"cflow on a map, odd", {odd_cflow, odd_cflow}, {2, 3, 5}},
          {"differnet", {nn::differnet_block(24, 32), nn::differnet_block(24, 32)}, {32, 1, 1}},
          {"differnet, odd", {nn::differnet_block(9, 16)}, {1, 1, 1}}};
}

TEST_CASE("cuda::Flow: outputs, log-determinants and gradients are nn::Flow's") {
  if (!has_device()) return;
  for (const PublishedFlow& c : published_flows()) {
    INFO(c.name);
    Random random(51, static_cast<std::uint64_t>(c.shapes[0].channels));
    const FlowParts parts(c.shapes, random);
    const auto host = parts.make<nn::Flow>(c.at);
    const auto device = parts.make<cuda::Flow>(c.at);
    CHECK(device.map() == host.map());
    CHECK(device.condition() == host.condition());
    REQUIRE(device.blocks() == host.blocks());
    CHECK(device.parameters() == host.parameters());
    for (std::int64_t b = 0; b < host.blocks(); ++b) {
      CHECK(device.shape(b) == host.shape(b));
      CHECK(device.parameter_offset(b) == host.parameter_offset(b));
    }
    CHECK(device.bytes() >= parts.parameters.size() * sizeof(float));
    const FlowInputs in(c.at, host.map().channels, host.condition(), random);
    const FlowOutputs want = run_flow(host, in);
    check_outputs(run_flow(device, in, &want.z), want, c.shapes, c.at, kBothFlows);
  }
}

TEST_CASE("cuda::Flow: products on tensor cores, as exact as their arithmetic") {
  if (!has_device()) return;
  for (const PublishedFlow& c : {published_flows()[0], published_flows()[3]}) {
    INFO(c.name);
    Random random(52);
    const FlowParts parts(c.shapes, random);
    const auto host = parts.make<nn::Flow>(c.at);
    const FlowInputs in(c.at, host.map().channels, host.condition(), random);
    const FlowOutputs want = run_flow(host, in);
    // coupling_cases.hpp allows twice the bound to tf32x3, and to tf32 8e-3 and 0.1 for gradients, of which a quarter is more than the former.
    check_outputs(run_flow(parts.make<cuda::BasicFlow<cuda::FlowArithmetic::tf32x3>>(c.at), in, &want.z), want, c.shapes, c.at, 3 * kFlowBound);
    check_outputs(run_flow(parts.make<cuda::BasicFlow<cuda::FlowArithmetic::tf32>>(c.at), in, &want.z), want, c.shapes, c.at, 0.025 + kFlowBound);
  }
}

TEST_CASE("cuda::Flow: a batch that does not fit into one pass gives the same, image for image") {
  if (!has_device()) return;
  const std::pair<nn::CouplingShape, Positions> cases[] = {{nn::fastflow_block(10, 3), {5, 4, 3}}, {nn::cflow_block(12, 6), {41, 1, 1}}};
  for (const auto& c : cases) {
    const nn::CouplingShape& shape = c.first;
    const Positions& at = c.second;
    CAPTURE(shape.channels);
    Random random(53);
    const std::vector<nn::CouplingShape> shapes(2, shape);
    const FlowParts parts(shapes, random);
    const auto whole = parts.make<cuda::Flow>(at), one_by_one = parts.make<cuda::Flow>(at, std::size_t{0}),
               some = parts.make<cuda::Flow>(at, std::size_t{48} << 10);
    const FlowInputs in(at, shape.channels, shape.condition, random);
    const FlowOutputs want = run_flow(whole, in);
    for (const cuda::Flow* flow : {&one_by_one, &some}) {
      FlowOutputs got = run_flow(*flow, in);
      // Sums over the batch in another order: roundings of a float sum of 60 terms.
      check_close(got.gradients, want.gradients, 64 * 0x1p-24 * largest(want.gradients));
      got.gradients = want.gradients;
      CHECK(got == want);
    }
  }
}

TEST_CASE("cuda::Flow: moved, with other parameters, in place, with a thread pool, without outputs that nobody wants") {
  if (!has_device()) return;
  const Positions at{2, 3, 4};
  Random random(54);
  const std::vector<nn::CouplingShape> shapes(
      2, flow_shape(nn::BlockKind::all_in_one, nn::ScaleClamp::tanh, nn::ChannelMixing::permutation, 9, 3, 3, {6}));
  FlowParts parts(shapes, random);
  auto made = parts.make<cuda::Flow>(at);
  const FlowInputs in(at, 9, 3, random);
  const FlowOutputs want = run_flow(made, in);
  cuda::Flow flow = std::move(made);
  CHECK(run_flow(flow, in) == want);
  ThreadPool pool(3);
  CHECK(run_flow(flow, in, nullptr, pool.parallel()) == want);

  const auto view = [&](auto& values, std::int64_t c) { return TensorView(values.data(), at.batch, at.height, at.width, c); };
  const TensorView<const float> condition = view(in.condition, 3);
  Floats values = in.x, slopes = in.dz, gradients(want.gradients.size());
  Arena none;
  REQUIRE(flow.forward(view(values, 9), condition, view(values, 9), {}, {}, {}, none).ok());
  CHECK(values == want.z);
  REQUIRE(flow.backward(view(values, 9), condition, view(slopes, 9), in.dlogdet, gradients, view(slopes, 9), {}, {}, none).ok());
  CHECK(slopes == want.dx);
  CHECK(gradients == want.gradients);
  // No dlogdet is a dlogdet of zeros, no dx changes nothing else.
  Floats with(gradients.size()), without(gradients.size());
  REQUIRE(flow.backward(view(values, 9), condition, view(in.dz, 9), {}, without, {}, {}, {}, none).ok());
  REQUIRE(flow.backward(view(values, 9), condition, view(in.dz, 9), Floats(2), with, view(slopes, 9), {}, {}, none).ok());
  CHECK(with == without);
  CHECK(with != gradients);
  REQUIRE(flow.inverse(view(values, 9), condition, view(values, 9), {}, none).ok());
  CHECK(values == want.back);

  const FlowParts others(shapes, random);
  parts.parameters = others.parameters;  // with the permutations that the flow has
  parts.prepare(flow);
  const FlowOutputs changed = run_flow(flow, in);
  CHECK(changed == run_flow(parts.make<cuda::Flow>(at), in));
  CHECK(changed.z != want.z);
}

TEST_CASE("cuda::Flow: several threads call one flow") {
  if (!has_device()) return;
  const Positions at{2, 3, 3};
  Random random(55);
  const FlowParts parts({nn::fastflow_block(8, 3), nn::fastflow_block(8, 1)}, random);
  const auto flow = parts.make<cuda::Flow>(at);
  const FlowInputs in(at, 8, 0, random);
  const FlowOutputs want = run_flow(flow, in);
  constexpr std::size_t kThreads = 4, kCalls = 3;
  std::vector<Floats> z(kThreads * kCalls, Floats(in.x.size())), gradients(kThreads * kCalls, Floats(want.gradients.size()));
  std::vector<Status> statuses(kThreads * kCalls);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const TensorView<const float> x(in.x.data(), 2, 3, 3, 8), dz(in.dz.data(), 2, 3, 3, 8);
      Arena none;
      for (std::size_t i = t * kCalls; i < (t + 1) * kCalls; ++i) {
        const TensorView<float> to(z[i].data(), 2, 3, 3, 8);
        statuses[i] = flow.forward(x, {}, to, {}, {}, {}, none);
        if (statuses[i]) statuses[i] = flow.backward(to, {}, dz, in.dlogdet, gradients[i], {}, {}, {}, none);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < z.size(); ++i) {
    REQUIRE_MESSAGE(statuses[i].ok(), statuses[i].message());
    CHECK(z[i] == want.z);
    CHECK(gradients[i] == want.gradients);
  }
}

TEST_CASE("cuda::Flow: a NaN stays in its image, an empty batch is done at once") {
  if (!has_device()) return;
  const Positions at{3, 3, 2};
  Random random(56);
  const FlowParts parts({nn::fastflow_block(6, 3), nn::fastflow_block(6, 3)}, random);
  const auto flow = parts.make<cuda::Flow>(at);
  FlowInputs in(at, 6, 0, random);
  const FlowOutputs want = run_flow(flow, in);
  in.x[36] = std::numeric_limits<float>::quiet_NaN();  // image 1, a channel of the passive half
  const FlowOutputs got = run_flow(flow, in);
  for (std::size_t n = 0; n < 3; ++n) {
    CAPTURE(n);
    CHECK(std::isnan(got.logdet[n]) == (n == 1));
    const bool same = std::equal(got.z.begin() + static_cast<std::int64_t>(36 * n), got.z.begin() + static_cast<std::int64_t>(36 * (n + 1)),
                                 want.z.begin() + static_cast<std::int64_t>(36 * n));
    CHECK(same == (n != 1));
  }

  Floats gradients(index_of(flow.parameters()), 7.0f);
  const TensorView<const float> empty(nullptr, 0, 3, 2, 6);
  const TensorView<float> to(nullptr, 0, 3, 2, 6);
  Arena none;
  CHECK(flow.forward(empty, {}, to, {}, {}, {}, none).ok());
  CHECK(flow.inverse(empty, {}, to, {}, none).ok());
  CHECK(flow.backward(empty, {}, empty, {}, gradients, to, {}, {}, none).ok());
  CHECK(gradients == Floats(gradients.size()));
}

TEST_CASE("cuda::Flow: errors name what was expected and found") {
  if (!has_device()) return;
  Random random(57);
  const auto shape = flow_shape(nn::BlockKind::all_in_one, nn::ScaleClamp::tanh, nn::ChannelMixing::permutation, 8, 2, 3, {4});
  const FlowParts parts({shape}, random);
  const std::vector<nn::FlowBlock> given = parts.blocks();
  const nn::FlowBlock& block = given[0];
  const auto create = [](std::span<const nn::FlowBlock> blocks, Shape map) { return cuda::Flow::create(blocks, map).status(); };
  CHECK(create({}, {3, 3, 8}).message() == "cuda::Flow::create: expected at least one block, found none");
  CHECK(create(given, {0, 3, 8}).code() == Errc::invalid_argument);
  CHECK(create(given, {3, 16001, 8}).message() == "cuda::Flow::create: expected a map of 1 x 1 to 16000 x 16000, found 3 x 16001");
  CHECK(create(given, {3, 3, 9}).code() == Errc::shape_mismatch);
  nn::FlowBlock bad = block;
  bad.shape.kernels[0] = 5;
  CHECK(create({&bad, 1}, {3, 3, 8}).code() == Errc::unsupported);
  bad = block;
  bad.permutation = {};
  CHECK(create({&bad, 1}, {3, 3, 8}).message() == "cuda::Flow::create: block 0: expected a permutation of 8 numbers, found 0");
  const std::vector<std::int64_t> twice{0, 1, 2, 3, 4, 5, 6, 6};
  bad.permutation = twice;
  CHECK(create({&bad, 1}, {3, 3, 8}).code() == Errc::invalid_argument);
  bad = block;
  bad.shape.mixing = nn::ChannelMixing::rotation;
  CHECK(create({&bad, 1}, {3, 3, 8}).message() == "cuda::Flow::create: block 0: expected a rotation of 64 numbers, found 0");
  nn::FlowBlock two[] = {block, block};
  two[1].shape.condition = 3;
  CHECK(create(two, {3, 3, 8}).code() == Errc::shape_mismatch);
  two[1] = block;
  two[1].shape.kind = nn::BlockKind::glow;
  CHECK(create(two, {3, 3, 8}).code() == Errc::shape_mismatch);

  auto made = cuda::Flow::create(given, {3, 3, 8});
  REQUIRE_MESSAGE(made.ok(), made.message());
  cuda::Flow flow = *std::move(made);
  const Floats x(72), condition(18);
  Floats z(72), gradients(index_of(flow.parameters())), three(3);
  const TensorView<const float> xs(x.data(), 1, 3, 3, 8), conditions(condition.data(), 1, 3, 3, 2);
  const TensorView<float> zs(z.data(), 1, 3, 3, 8);
  Arena none;
  CHECK(flow.forward(xs, conditions, zs, {}, {}, {}, none).code() == Errc::not_fitted);
  CHECK(cuda::Flow().forward(xs, conditions, zs, {}, {}, {}, none).code() == Errc::not_fitted);
  CHECK(cuda::Flow().prepare({}, none).code() == Errc::invalid_argument);
  CHECK(flow.prepare(x, none).code() == Errc::shape_mismatch);
  REQUIRE(flow.prepare(parts.parameters, none).ok());
  REQUIRE(flow.forward(xs, conditions, zs, {}, {}, {}, none).ok());
  CHECK(flow.forward({x.data(), 1, 3, 2, 8}, conditions, zs, {}, {}, {}, none).message() ==
        "cuda::Flow::forward: x: expected [1, 3, 3, 8], found [1, 3, 2, 8]");
  CHECK(flow.forward(xs, {}, zs, {}, {}, {}, none).code() == Errc::shape_mismatch);
  CHECK(flow.forward(xs, conditions, {}, {}, {}, {}, none).code() == Errc::shape_mismatch);
  CHECK(flow.forward(xs, conditions, zs, three, {}, {}, none).code() == Errc::shape_mismatch);
  CHECK(flow.forward(xs, conditions, zs, {}, three, {}, none).code() == Errc::shape_mismatch);
  CHECK(flow.inverse(xs, conditions, {}, {}, none).code() == Errc::shape_mismatch);
  CHECK(flow.backward(xs, conditions, xs, {}, gradients, zs, {}, {}, none).code() == Errc::unsupported);

  const auto training = parts.make<cuda::Flow>(Positions{1, 3, 3});
  const auto backward = [&](TensorView<const float> dz, std::span<const float> dlogdet, std::span<float> to, TensorView<float> dx,
                            TensorView<float> dcondition) {
    return training.backward(xs, conditions, dz, dlogdet, to, dx, dcondition, {}, none).code();
  };
  CHECK(backward(xs, {}, gradients, zs, {}) == Errc::ok);
  CHECK(backward({}, {}, gradients, zs, {}) == Errc::shape_mismatch);
  CHECK(backward(xs, three, gradients, zs, {}) == Errc::shape_mismatch);
  CHECK(backward(xs, {}, three, zs, {}) == Errc::shape_mismatch);
  CHECK(backward(xs, {}, gradients, {z.data(), 1, 3, 3, 7}, {}) == Errc::shape_mismatch);
  CHECK(backward(xs, {}, gradients, {}, {z.data(), 1, 3, 3, 3}) == Errc::shape_mismatch);
}

}  // namespace norma::test
