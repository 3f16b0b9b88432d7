// nn/coupling.hpp and nn/kernels/coupling.hpp against the double reference of tests/support/coupling_reference.hpp.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <norma/core/thread_pool.hpp>
#include <norma/nn/coupling.hpp>
#include <norma/nn/training/optimisers.hpp>
#include <support/count_allocations.hpp>
#include <support/coupling_reference.hpp>

namespace norma::test {
namespace {

using Floats = std::vector<float>;

Doubles random_values(std::int64_t count, Random& random) {
  Doubles x(index_of(count));
  for (double& v : x) v = static_cast<float>(random.normal());  // floats: both sides start from the same numbers
  return x;
}
Floats floats(const Doubles& x) { return Floats(x.begin(), x.end()); }
double largest(const Doubles& values) {
  double m = 1.0;
  for (double v : values) m = std::max(m, std::abs(v));
  return m;
}

std::vector<InstructionSet> available_sets() {
  std::vector<InstructionSet> sets;
  for (const auto set : {InstructionSet::generic, InstructionSet::avx2, InstructionSet::avx512}) {
    if (available(set)) sets.push_back(set);
  }
  return sets;
}

/// Reference blocks and the flow of the same numbers.
struct HostFlow {
  HostFlow(std::vector<ReferenceBlock> blocks, const Positions& at, nn::FlowUse use = nn::FlowUse::training, InstructionSet set = instruction_set())
      : host(std::move(blocks)) {
    std::vector<Floats> rotations;
    std::vector<nn::FlowBlock> given;
    for (const ReferenceBlock& block : host) rotations.push_back(floats(block.rotation));
    for (std::size_t b = 0; b < host.size(); ++b) {
      const bool turned = host[b].shape.mixing == nn::ChannelMixing::rotation;
      given.push_back({host[b].shape, turned ? std::span<const std::int64_t>() : std::span<const std::int64_t>(host[b].permutation), rotations[b]});
      const Floats packed = packed_parameters(host[b]);
      parameters.insert(parameters.end(), packed.begin(), packed.end());
    }
    auto made = nn::Flow::create(given, {at.height, at.width, host[0].shape.channels}, use, set);
    REQUIRE_MESSAGE(made.ok(), made.status().message());
    flow = *std::move(made);
    REQUIRE(flow.parameters() == static_cast<std::int64_t>(parameters.size()));
    prepare();
  }
  void prepare() {
    Buffer<std::byte> memory(static_cast<std::int64_t>(flow.scratch_bytes(nn::FlowPass::prepare, 1, 1)));
    Arena arena(memory.span());
    REQUIRE(flow.prepare(parameters, arena).ok());
  }
  std::vector<ReferenceBlock> host;
  Floats parameters;
  nn::Flow flow;
};

/// One call's memory, exactly as much as it asks for.
struct Scratch {
  Scratch(const nn::Flow& flow, nn::FlowPass pass, std::int64_t batch, int workers)
      : memory(static_cast<std::int64_t>(flow.scratch_bytes(pass, batch, workers))), arena(memory.span()) {}
  Buffer<std::byte> memory;
  Arena arena;
};

struct Outputs {
  Floats z, logdet, position_logdet, back, gradients, dx, dcondition;
};

/// Forward, inverse and backward of one flow.
Outputs run_flow(const HostFlow& f, const Positions& at, const Floats& x, const Floats& condition, const Floats& dz, const Floats& dlogdet,
                 Parallel parallel = {}) {
  const std::int64_t channels = f.flow.map().channels, more = f.flow.condition();
  const auto n = x.size();
  Outputs out{Floats(n), Floats(index_of(at.batch)), Floats(index_of(at.rows())), Floats(n), Floats(f.parameters.size(), 7.0f), Floats(n),
              Floats(condition.size(), 7.0f)};
  const auto view = [&](auto& values, std::int64_t c) { return TensorView(values.data(), at.batch, at.height, at.width, c); };
  const TensorView<const float> given = more > 0 ? view(condition, more) : TensorView<const float>();
  const int workers = parallel.workers();
  {
    Scratch scratch(f.flow, nn::FlowPass::forward, at.batch, workers);
    const Status status = f.flow.forward(view(x, channels), given, view(out.z, channels), out.logdet, out.position_logdet, parallel, scratch.arena);
    REQUIRE_MESSAGE(status.ok(), status.message());
  }
  const Floats& z = out.z;
  {
    Scratch scratch(f.flow, nn::FlowPass::inverse, at.batch, workers);
    const Status status = f.flow.inverse(view(z, channels), given, view(out.back, channels), parallel, scratch.arena);
    REQUIRE_MESSAGE(status.ok(), status.message());
  }
  {
    Scratch scratch(f.flow, nn::FlowPass::backward, at.batch, workers);
    const Status status = f.flow.backward(view(z, channels), given, view(dz, channels), dlogdet, out.gradients, view(out.dx, channels),
                                          more > 0 ? view(out.dcondition, more) : TensorView<float>(), parallel, scratch.arena);
    REQUIRE_MESSAGE(status.ok(), status.message());
  }
  return out;
}

struct FlowCase {
  const char* name;
  std::vector<nn::CouplingShape> shapes;
  Positions at;
};

std::vector<FlowCase> flow_cases() {
  using enum nn::BlockKind;
  using enum nn::ChannelMixing;
  using nn::ScaleClamp;
  const auto times = [](int count, const nn::CouplingShape& s) { return std::vector<nn::CouplingShape>(static_cast<std::size_t>(count), s); };
  nn::CouplingShape alternating = flow_shape(all_in_one, ScaleClamp::tanh, permutation, 10, 0, 3, {5});
  alternating.kernels[1] = 1;
  return {
      {"fastflow 3x3, even halves", times(3, flow_shape(all_in_one, ScaleClamp::tanh, permutation, 8, 0, 3, {4})), {2, 5, 7}},
      {"fastflow 3x3 by Winograd", times(2, flow_shape(all_in_one, ScaleClamp::tanh, permutation, 64, 0, 3, {33})), {2, 9, 10}},
      {"several chunks of images", times(1, flow_shape(all_in_one, ScaleClamp::tanh, permutation, 6, 0, 3, {3})), {3, 32, 40}},
      {"several chunks, condition", times(1, flow_shape(all_in_one, ScaleClamp::tanh, rotation, 5, 2, 1, {4})), {3, 32, 40}},
      {"3x3 and 1x1", times(2, alternating), {2, 4, 5}},
      {"fastflow 1x1, odd", times(2, flow_shape(all_in_one, ScaleClamp::tanh_of_ratio, permutation, 13, 0, 1, {9})), {3, 4, 3}},
      {"one position", times(2, flow_shape(all_in_one, ScaleClamp::tanh, permutation, 6, 0, 3, {5})), {1, 1, 1}},
      {"two channels", times(2, flow_shape(all_in_one, ScaleClamp::tanh, permutation, 2, 0, 3, {1})), {1, 3, 2}},
      {"cflow, rotation, condition", times(2, flow_shape(all_in_one, ScaleClamp::tanh, rotation, 16, 12, 1, {40})), {33, 1, 1}},
      {"cflow, odd, rotation, condition", times(3, flow_shape(all_in_one, ScaleClamp::tanh, rotation, 11, 5, 1, {14})), {31, 1, 1}},
      {"condition beside a 3x3", times(2, flow_shape(all_in_one, ScaleClamp::tanh, permutation, 9, 3, 3, {6, 7})), {1, 4, 5}},
      {"one layer", times(2, flow_shape(all_in_one, ScaleClamp::atan, permutation, 7, 2, 3, {})), {2, 3, 3}},
      {"differnet", times(2, flow_shape(glow, ScaleClamp::atan, permutation, 24, 0, 1, {32, 32, 32})), {32, 1, 1}},
      {"glow, odd, 3x3", times(3, flow_shape(glow, ScaleClamp::atan, permutation, 7, 0, 3, {6})), {2, 3, 4}},
      {"glow, odd, rotation, condition", times(2, flow_shape(glow, ScaleClamp::tanh_of_ratio, rotation, 5, 2, 1, {8, 3})), {1, 5, 5}},
      {"glow, wider second half", times(2, flow_shape(glow, ScaleClamp::atan, permutation, 33, 0, 1, {8})), {2, 2, 2}},
      {"different blocks",
       {flow_shape(glow, ScaleClamp::tanh, permutation, 11, 0, 3, {6}), flow_shape(glow, ScaleClamp::atan, rotation, 11, 5, 1, {9, 4}),
        flow_shape(glow, ScaleClamp::tanh_of_ratio, permutation, 11, 0, 1, {}), flow_shape(glow, ScaleClamp::tanh, rotation, 11, 5, 3, {3})},
       {2, 3, 2}},
  };
}

std::vector<ReferenceBlock> random_flow(const std::vector<nn::CouplingShape>& shapes, Random& random) {
  std::vector<ReferenceBlock> flow;
  for (const auto& shape : shapes) flow.push_back(random_block(shape, random));
  return flow;
}

// Rounding: values are of order 1 to 10, each passes 5 roundings a block beside the subnet, whose sums of at most 600 products of order 0.1 are off
// by some 1e-6; exp(L) multiplies an error by at most e^1.9 a block. 4 blocks stay below 2e-5 times the largest value, which the bounds allow.
constexpr double kFlowBound = 2e-5;

void check_flow(const FlowCase& c, InstructionSet set) {
  CAPTURE(c.name);
  CAPTURE(to_string(set));
  Random random(21, static_cast<std::uint64_t>(c.shapes[0].channels));
  const HostFlow f(random_flow(c.shapes, random), c.at, nn::FlowUse::training, set);
  const std::int64_t rows = c.at.rows(), channels = c.shapes[0].channels;
  const Doubles x = random_values(rows * channels, random), condition = random_values(rows * f.flow.condition(), random);
  const Doubles dz = random_values(rows * channels, random), dlogdet = random_values(c.at.batch, random);
  const Outputs got = run_flow(f, c.at, floats(x), floats(condition), floats(dz), floats(dlogdet));

  std::vector<Doubles> inputs{x};
  Doubles want_logdet(index_of(c.at.batch));
  const auto own_condition = [&](const ReferenceBlock& block) { return block.shape.condition > 0 ? condition : Doubles(); };
  for (const ReferenceBlock& block : f.host) inputs.push_back(reference_forward(block, c.at, inputs.back(), own_condition(block), want_logdet));
  const Doubles& want = inputs.back();
  std::int64_t wrong = 0;  // counted: a CHECK for each of some 100 000 numbers is slow
  for (std::size_t i = 0; i < want.size(); ++i) wrong += !(std::abs(static_cast<double>(got.z[i]) - want[i]) <= kFlowBound * largest(want));
  CHECK(wrong == 0);
  for (std::int64_t n = 0; n < c.at.batch; ++n) {
    // A sum of positions x channels x blocks terms of at most 1.9, plus log g.
    const double terms = static_cast<double>(c.at.per_sample() * channels * static_cast<std::int64_t>(c.shapes.size()));
    CHECK(std::abs(static_cast<double>(got.logdet[index_of(n)]) - want_logdet[index_of(n)]) <= kFlowBound * terms);
    double sum = 0.0;
    for (std::int64_t p = 0; p < c.at.per_sample(); ++p) sum += static_cast<double>(got.position_logdet[index_of(n * c.at.per_sample() + p)]);
    CHECK(std::abs(sum - static_cast<double>(got.logdet[index_of(n)])) <= 1e-6 * std::max(1.0, std::abs(sum)));
  }
  // F1 on the way back: the rounding of z is undone along with everything else.
  wrong = 0;
  for (std::size_t i = 0; i < x.size(); ++i) wrong += !(std::abs(static_cast<double>(got.back[i]) - x[i]) <= kFlowBound * largest(want));
  CHECK(wrong == 0);

  Doubles d = dz, dcondition(condition.size());
  for (std::size_t b = f.host.size(); b-- > 0;) {
    CAPTURE(b);
    ReferenceBlock gradient = zero_like(f.host[b]);
    Doubles unused;
    d = reference_backward(f.host[b], c.at, inputs[b], own_condition(f.host[b]), d, dlogdet, gradient,
                           f.host[b].shape.condition > 0 ? dcondition : unused);
    const Floats want_gradient = packed_parameters(gradient);
    const auto offset = index_of(f.flow.parameter_offset(static_cast<std::int64_t>(b)));
    const double scale = largest(Doubles(want_gradient.begin(), want_gradient.end()));
    wrong = 0;
    for (std::size_t i = 0; i < want_gradient.size(); ++i) {
      wrong += !(std::abs(static_cast<double>(got.gradients[offset + i]) - static_cast<double>(want_gradient[i])) <= 4 * kFlowBound * scale);
    }
    CHECK(wrong == 0);
  }
  wrong = 0;
  for (std::size_t i = 0; i < d.size(); ++i) wrong += !(std::abs(static_cast<double>(got.dx[i]) - d[i]) <= 4 * kFlowBound * largest(d));
  CHECK(wrong == 0);
  wrong = 0;
  for (std::size_t i = 0; i < dcondition.size(); ++i) {
    wrong += !(std::abs(static_cast<double>(got.dcondition[i]) - dcondition[i]) <= 4 * kFlowBound * largest(dcondition));
  }
  CHECK(wrong == 0);
}

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

TEST_CASE("nn::Flow: forward, log-determinants, inverse and gradients are the reference's, with every instruction set") {
  for (const InstructionSet set : available_sets()) {
    for (const FlowCase& c : flow_cases()) check_flow(c, set);
  }
}

TEST_CASE("nn::Flow F1: the inverse of the forward pass of eight blocks is off by less than 1e-5") {
  for (const std::int64_t channels : {32, 33}) {
    CAPTURE(channels);
    const Positions at{2, 12, 12};
    Random random(3, static_cast<std::uint64_t>(channels));
    const std::vector<nn::CouplingShape> shapes(8, nn::fastflow_block(channels, 3));
    std::vector<ReferenceBlock> blocks = random_flow(shapes, random);
    for (ReferenceBlock& block : blocks) {  // as a flow begins: g = 1
      std::fill(block.global_scale.begin(), block.global_scale.end(), static_cast<double>(nn::kUnitGlobalScale));
    }
    const HostFlow f(std::move(blocks), at);
    const Floats x = floats(random_values(at.rows() * channels, random));
    const Outputs got = run_flow(f, at, x, {}, Floats(x.size()), Floats(2));
    double worst = 0.0;
    for (std::size_t i = 0; i < x.size(); ++i) worst = std::max(worst, std::abs(static_cast<double>(got.back[i]) - static_cast<double>(x[i])));
    CHECK(worst < 1e-5);
    CHECK(!same_bits(got.z, x));
  }
}

TEST_CASE("nn::Flow F4, F5: with zeroed last layers a block is its mixing, exactly") {
  const Positions at{2, 5, 4};
  Random random(4);
  for (const auto kind : {nn::BlockKind::all_in_one, nn::BlockKind::glow}) {
    auto blocks = random_flow({flow_shape(kind, nn::ScaleClamp::tanh, nn::ChannelMixing::permutation, 9, 0, 3, {6})}, random);
    for (auto& subnet : blocks[0].subnets) {
      if (subnet.empty()) continue;
      std::fill(subnet.back().weight.begin(), subnet.back().weight.end(), 0.0);
      std::fill(subnet.back().bias.begin(), subnet.back().bias.end(), 0.0);
    }
    std::fill(blocks[0].global_offset.begin(), blocks[0].global_offset.end(), 0.0);
    std::fill(blocks[0].global_scale.begin(), blocks[0].global_scale.end(), static_cast<double>(nn::kUnitGlobalScale));
    const auto permutation = blocks[0].permutation;
    const HostFlow f(std::move(blocks), at);
    const Floats x = floats(random_values(at.rows() * 9, random));
    const Outputs got = run_flow(f, at, x, {}, Floats(x.size()), Floats(2));
    // The float nearest to 2 log(e^5 - 1) gives g = 1 up to half a unit of its last place: |g - 1| <= 0.1 * 2^-21.
    const float bound = kind == nn::BlockKind::glow ? 0.0f : 1.2e-7f;
    for (std::int64_t r = 0; r < at.rows(); ++r) {
      for (std::int64_t c = 0; c < 9; ++c) {
        const float want = x[index_of(r * 9 + permutation[index_of(c)])];
        CHECK(std::abs(got.z[index_of(r * 9 + c)] - want) <= bound * std::abs(want));
      }
    }
    for (const float l : got.logdet) CHECK(std::abs(l) <= bound * 9 * 20);
    for (std::size_t i = 0; i < x.size(); ++i) CHECK(std::abs(got.back[i] - x[i]) <= 2 * bound * std::abs(x[i]));
  }
}

TEST_CASE("nn::Flow: an image's outputs do not depend on its batch; a NaN stays in its image") {
  for (const FlowCase& c : flow_cases()) {
    if (c.at.batch == 1) continue;
    CAPTURE(c.name);
    Random random(5);
    const std::int64_t channels = c.shapes[0].channels, per = c.at.per_sample();
    const HostFlow f(random_flow(c.shapes, random), c.at);
    Floats x = floats(random_values(c.at.rows() * channels, random)), condition = floats(random_values(c.at.rows() * f.flow.condition(), random));
    const Floats zeros(x.size()), none(index_of(c.at.batch));
    const Outputs together = run_flow(f, c.at, x, condition, zeros, none);
    const std::int64_t last = c.at.batch - 1;
    const Positions one{1, c.at.height, c.at.width};
    const auto image = [&](const Floats& v, std::int64_t width) {
      return Floats(v.begin() + last * per * width, v.begin() + (last + 1) * per * width);
    };
    const Outputs alone = run_flow(f, one, image(x, channels), image(condition, f.flow.condition()), Floats(index_of(per * channels)), Floats(1));
    CHECK(same_bits(alone.z, image(together.z, channels)));
    CHECK(same_bits(alone.back, image(together.back, channels)));
    CHECK(same_bits(alone.position_logdet, image(together.position_logdet, 1)));
    CHECK(alone.logdet[0] == together.logdet[index_of(last)]);

    x[1] = std::numeric_limits<float>::quiet_NaN();
    const Outputs broken = run_flow(f, c.at, x, condition, zeros, none);
    CHECK(std::isnan(broken.logdet[0]) == std::isnan(broken.position_logdet[0]));
    CHECK(std::any_of(broken.z.begin(), broken.z.begin() + per * channels, [](float v) { return std::isnan(v); }));
    CHECK(same_bits(image(broken.z, channels), image(together.z, channels)));
    CHECK(broken.logdet[index_of(last)] == together.logdet[index_of(last)]);
  }
}

TEST_CASE("nn::Flow: one and two threads give the same bits; z may be x and dx may be dz") {
  ThreadPool pool(2);
  for (const FlowCase& c : flow_cases()) {
    CAPTURE(c.name);
    Random random(6);
    const std::int64_t channels = c.shapes[0].channels;
    const HostFlow f(random_flow(c.shapes, random), c.at);
    const Floats x = floats(random_values(c.at.rows() * channels, random)), dz = floats(random_values(c.at.rows() * channels, random));
    const Floats condition = floats(random_values(c.at.rows() * f.flow.condition(), random)), dlogdet = floats(random_values(c.at.batch, random));
    const Outputs one = run_flow(f, c.at, x, condition, dz, dlogdet), two = run_flow(f, c.at, x, condition, dz, dlogdet, pool.parallel());
    CHECK(same_bits(one.z, two.z));
    CHECK(same_bits(one.logdet, two.logdet));
    CHECK(same_bits(one.position_logdet, two.position_logdet));
    CHECK(same_bits(one.back, two.back));
    CHECK(same_bits(one.gradients, two.gradients));
    CHECK(same_bits(one.dx, two.dx));
    CHECK(same_bits(one.dcondition, two.dcondition));

    Floats in_place = x, gradient = dz, gradients(f.parameters.size());
    const auto view = [&](auto& values, std::int64_t n) { return TensorView(values.data(), c.at.batch, c.at.height, c.at.width, n); };
    const TensorView<const float> given = condition.empty() ? TensorView<const float>() : view(condition, f.flow.condition());
    Scratch scratch(f.flow, nn::FlowPass::backward, c.at.batch, 1);
    REQUIRE(f.flow.forward(view(in_place, channels), given, view(in_place, channels), {}, {}, {}, scratch.arena).ok());
    CHECK(same_bits(in_place, one.z));
    const TensorView<float> d = view(gradient, channels);
    REQUIRE(f.flow.backward(view(in_place, channels), given, d, dlogdet, gradients, d, {}, {}, scratch.arena).ok());
    CHECK(same_bits(gradient, one.dx));
    CHECK(same_bits(gradients, one.gradients));
    // No dlogdet is a dlogdet of zeros.
    Floats without(f.parameters.size());
    REQUIRE(f.flow.backward(view(in_place, channels), given, view(dz, channels), {}, without, {}, {}, {}, scratch.arena).ok());
    REQUIRE(f.flow.backward(view(in_place, channels), given, view(dz, channels), Floats(dlogdet.size()), gradients, {}, {}, {}, scratch.arena).ok());
    CHECK(same_bits(without, gradients));
    REQUIRE(f.flow.inverse(view(in_place, channels), given, view(in_place, channels), {}, scratch.arena).ok());
    CHECK(same_bits(in_place, one.back));
  }
}

TEST_CASE("nn::Flow: no call allocates, and memory grows neither with the blocks nor with the batch") {
  const Positions at{3, 8, 8};
  Random random(7);
  HostFlow f(random_flow(std::vector<nn::CouplingShape>(2, flow_shape(nn::BlockKind::all_in_one, nn::ScaleClamp::tanh, nn::ChannelMixing::permutation,
                                                                      32, 4, 3, {16})),
                         random),
             at);
  const Floats x = floats(random_values(at.rows() * 32, random)), condition = floats(random_values(at.rows() * 4, random));
  Floats z(x.size()), back(x.size()), gradients(f.parameters.size()), logdet(3);
  const TensorView<const float> xs(x.data(), 3, 8, 8, 32), conditions(condition.data(), 3, 8, 8, 4);
  const TensorView<float> zs(z.data(), 3, 8, 8, 32), backs(back.data(), 3, 8, 8, 32);
  Scratch prepare(f.flow, nn::FlowPass::prepare, 3, 1), scratch(f.flow, nn::FlowPass::backward, 3, 1);
  const std::int64_t before = allocation_count();
  const Status prepared = f.flow.prepare(f.parameters, prepare.arena);
  const Status forward = f.flow.forward(xs, conditions, zs, logdet, {}, {}, scratch.arena);
  const Status inverse = f.flow.inverse(zs, conditions, backs, {}, scratch.arena);
  const Status backward = f.flow.backward(zs, conditions, zs, logdet, gradients, backs, {}, {}, scratch.arena);
  const std::int64_t after = allocation_count();
  CHECK(after == before);
  CHECK((prepared.ok() && forward.ok() && inverse.ok() && backward.ok()));
  CHECK(scratch.arena.used() == 0);

  constexpr nn::CouplingShape kBlocks[] = {nn::fastflow_block(64, 3), nn::fastflow_block(64, 3), nn::fastflow_block(64, 3)};
  constexpr Shape kMap{64, 64, 64};
  constexpr std::size_t kBytes = nn::flow_scratch_bytes(kBlocks, kMap, nn::FlowPass::backward, 1, 1);
  static_assert(kBytes == nn::flow_scratch_bytes({kBlocks, 1}, kMap, nn::FlowPass::backward, 1, 1));
  static_assert(kBytes == nn::flow_scratch_bytes(kBlocks, kMap, nn::FlowPass::backward, 32, 1));
  static_assert(kBytes > nn::flow_scratch_bytes(kBlocks, kMap, nn::FlowPass::forward, 1, 1));
  CHECK(kBytes < std::size_t{32} << 20);
}

TEST_CASE("nn::Flow: other parameters are seen after prepare") {
  const Positions at{1, 6, 6};
  Random random(8);
  const std::vector<nn::CouplingShape> shapes(2, nn::fastflow_block(32, 3));
  auto blocks = random_flow(shapes, random);
  HostFlow f(blocks, at);
  for (ReferenceBlock& block : blocks) {
    auto permutation = block.permutation;
    block = random_block(block.shape, random);
    block.permutation = std::move(permutation);
  }
  const HostFlow other(std::move(blocks), at);
  const Floats x = floats(random_values(at.rows() * 32, random)), dz = floats(random_values(at.rows() * 32, random)), dlogdet{0.5f};
  const Outputs before = run_flow(f, at, x, {}, dz, dlogdet);
  f.parameters = other.parameters;
  f.flow = nn::Flow(f.flow);  // a copy is whole
  CHECK(same_bits(run_flow(f, at, x, {}, dz, dlogdet).z, before.z));
  f.prepare();
  const Outputs got = run_flow(f, at, x, {}, dz, dlogdet), want = run_flow(other, at, x, {}, dz, dlogdet);
  CHECK(same_bits(got.z, want.z));
  CHECK(same_bits(got.logdet, want.logdet));
  CHECK(same_bits(got.gradients, want.gradients));
  CHECK(!same_bits(got.z, before.z));
}

TEST_CASE("nn::Flow: errors name what was expected and found") {
  Random random(9);
  const auto shape = flow_shape(nn::BlockKind::all_in_one, nn::ScaleClamp::tanh, nn::ChannelMixing::permutation, 8, 2, 3, {4});
  const auto blocks = random_flow({shape}, random);
  const nn::FlowBlock block{shape, blocks[0].permutation, {}};
  const auto code = [](const auto& result) { return result.status().code(); };
  CHECK(code(nn::Flow::create({}, {3, 3, 8})) == Errc::invalid_argument);
  CHECK(code(nn::Flow::create({&block, 1}, {0, 3, 8})) == Errc::invalid_argument);
  CHECK(code(nn::Flow::create({&block, 1}, {3, 3, 9})) == Errc::shape_mismatch);
  nn::FlowBlock bad = block;
  bad.shape.kernels[0] = 5;
  CHECK(code(nn::Flow::create({&bad, 1}, {3, 3, 8})) == Errc::unsupported);
  bad = block;
  bad.permutation = {};
  CHECK(code(nn::Flow::create({&bad, 1}, {3, 3, 8})) == Errc::shape_mismatch);
  const std::vector<std::int64_t> twice{0, 1, 2, 3, 4, 5, 6, 6};
  bad.permutation = twice;
  CHECK(code(nn::Flow::create({&bad, 1}, {3, 3, 8})) == Errc::invalid_argument);
  bad = block;
  bad.shape.mixing = nn::ChannelMixing::rotation;
  CHECK(code(nn::Flow::create({&bad, 1}, {3, 3, 8})) == Errc::shape_mismatch);
  nn::FlowBlock two[] = {block, block};
  two[1].shape.condition = 3;
  CHECK(code(nn::Flow::create(two, {3, 3, 8})) == Errc::shape_mismatch);
  two[1] = block;
  two[1].shape.kind = nn::BlockKind::glow;
  CHECK(code(nn::Flow::create(two, {3, 3, 8})) == Errc::shape_mismatch);

  auto made = nn::Flow::create({&block, 1}, {3, 3, 8});
  REQUIRE(made.ok());
  nn::Flow flow = *std::move(made);
  const Floats x(72), condition(18);
  Floats z(72), gradients(index_of(flow.parameters())), three(3);
  const TensorView<const float> xs(x.data(), 1, 3, 3, 8), conditions(condition.data(), 1, 3, 3, 2);
  const TensorView<float> zs(z.data(), 1, 3, 3, 8);
  Scratch scratch(flow, nn::FlowPass::backward, 1, 1);
  CHECK(flow.forward(xs, conditions, zs, {}, {}, {}, scratch.arena).code() == Errc::not_fitted);
  CHECK(flow.prepare(x, scratch.arena).code() == Errc::shape_mismatch);
  const Floats parameters = packed_parameters(blocks[0]);
  Arena none;
  CHECK(flow.prepare(parameters, none).code() == Errc::out_of_memory);
  REQUIRE(flow.prepare(parameters, scratch.arena).ok());
  const Status status = flow.forward({x.data(), 1, 3, 2, 8}, conditions, zs, {}, {}, {}, scratch.arena);
  CHECK(status.code() == Errc::shape_mismatch);
  CHECK(status.message() == "nn::Flow::forward: x: expected [1, 3, 3, 8], found [1, 3, 2, 8]");
  CHECK(flow.forward(xs, {}, zs, {}, {}, {}, scratch.arena).code() == Errc::shape_mismatch);
  CHECK(flow.forward(xs, conditions, {}, {}, {}, {}, scratch.arena).code() == Errc::shape_mismatch);
  CHECK(flow.forward(xs, conditions, zs, three, {}, {}, scratch.arena).code() == Errc::shape_mismatch);
  CHECK(flow.forward(xs, conditions, zs, {}, three, {}, scratch.arena).code() == Errc::shape_mismatch);
  CHECK(flow.forward(xs, conditions, zs, {}, {}, {}, none).code() == Errc::out_of_memory);
  CHECK(flow.inverse(xs, conditions, {}, {}, scratch.arena).code() == Errc::shape_mismatch);
  CHECK(flow.backward(xs, conditions, xs, {}, gradients, zs, {}, {}, scratch.arena).code() == Errc::unsupported);
  CHECK(flow.forward({nullptr, 0, 3, 3, 8}, {nullptr, 0, 3, 3, 2}, {nullptr, 0, 3, 3, 8}, {}, {}, {}, scratch.arena).ok());
}

TEST_CASE("nn coupling kernels: clamps, exponentials and gradients within their stated errors") {
  for (const InstructionSet set : available_sets()) {
    CAPTURE(to_string(set));
    const auto& kernels = nn::detail::coupling_kernels(set);
    Floats x, angles;
    for (double v = 1e-6; v < 1e6; v *= 1.0037) x.push_back(static_cast<float>(v));
    for (double v = -4.0; v < 4.0; v += 1.0 / 1021) x.push_back(static_cast<float>(v));
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    for (const float v : {0.0f, 0.41421357f, 2.4142137f, -2.4142134f, kInfinity, -kInfinity}) x.push_back(v);
    angles.resize(x.size());
    kernels.atan(x.data(), angles.data(), static_cast<std::int64_t>(x.size()));
    double worst = 0.0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double want = std::atan(static_cast<double>(x[i]));
      const double error = std::abs(static_cast<double>(angles[i]) - want);
      worst = std::max(worst, want == 0.0 ? error : error / std::abs(want));
      CHECK(!std::isnan(angles[i]));
    }
    CHECK(worst <= 3e-7);
    float nan = std::numeric_limits<float>::quiet_NaN();
    kernels.atan(&nan, &nan, 1);
    CHECK(std::isnan(nan));

    Random random(10);
    for (const auto clamp : {nn::ScaleClamp::tanh, nn::ScaleClamp::tanh_of_ratio, nn::ScaleClamp::atan}) {
      for (const std::int64_t count : {1, 5, 16, 37}) {
        const float alpha = 1.9f, gain = 0.1f, dlogdet = 0.3f;
        Floats s(index_of(count)), t(s.size()), v(s.size()), y(s.size()), back(s.size()), dy(s.size()), ds(s.size()), dt(s.size());
        for (std::size_t i = 0; i < s.size(); ++i) {
          s[i] = static_cast<float>(30.0 * random.normal());
          t[i] = static_cast<float>(10.0 * random.normal());
          v[i] = static_cast<float>(random.normal());
          dy[i] = static_cast<float>(random.normal());
        }
        const Floats d = dy;
        const nn::detail::CouplingRow row{s.data(), t.data(), count, alpha, gain};
        const auto at = static_cast<std::size_t>(clamp);
        const float sum = kernels.couple[at](row, v.data(), y.data());
        kernels.uncouple[at](row, y.data(), back.data());
        Floats undone = y;
        kernels.uncouple_gradient[at](row, undone.data(), dy.data(), dlogdet, ds.data(), dt.data());
        double want_sum = 0.0;
        for (std::size_t i = 0; i < s.size(); ++i) {
          const auto wide = [](float f) { return static_cast<double>(f); };
          const double a = wide(alpha), raw = wide(gain) * wide(s[i]), shift = wide(gain) * wide(t[i]);
          const double scale = reference_clamp(clamp, a, raw), e = std::exp(scale);
          want_sum += scale;
          // nn/kernels/coupling.hpp
          const double bound = (6e-7 + 5e-7 * std::abs(scale)) * std::abs(wide(v[i])) * e + 0x1p-23 * (std::abs(shift) + std::abs(wide(y[i])));
          CHECK(std::abs(wide(y[i]) - (wide(v[i]) * e + shift)) <= bound);
          // Back from y: the same relative errors again, and those of y and t divided by e.
          const double back_bound = (6e-7 + 5e-7 * std::abs(scale)) * std::abs(wide(v[i])) + (2 * bound + 0x1p-22 * std::abs(shift)) / e;
          CHECK(std::abs(wide(back[i]) - wide(v[i])) <= back_bound);
          CHECK(std::abs(wide(undone[i]) - wide(v[i])) <= back_bound);
          CHECK(std::abs(wide(dy[i]) - wide(d[i]) * e) <= (6e-7 + 5e-7 * std::abs(scale)) * std::abs(wide(d[i])) * e);
          CHECK(std::abs(wide(dt[i]) - wide(gain) * wide(d[i])) <= 0x1p-23 * std::abs(wide(dt[i])));
          // The slope 1 - tanh^2 has the absolute error of tanh, 4e-7, times alpha.
          const double through = wide(d[i]) * wide(v[i]) * e + wide(dlogdet), slope = reference_clamp_slope(clamp, a, raw);
          const double slope_error = 1e-6 * a * std::abs(through) + slope * std::abs(wide(d[i])) * (2 * bound + 0x1p-22 * std::abs(shift)) + 1e-7;
          CHECK(std::abs(wide(ds[i]) - wide(gain) * through * slope) <= wide(gain) * slope_error);
        }
        CHECK(std::abs(static_cast<double>(sum) - want_sum) <= 1e-6 * 1.9 * static_cast<double>(count));
      }
    }
  }
}

/// Two half moons, interleaved.
Floats moons(std::int64_t count, Random& random) {
  Floats points;
  for (std::int64_t i = 0; i < count; ++i) {
    const double angle = random.uniform(0.0, std::numbers::pi);
    const double x = i % 2 == 0 ? std::cos(angle) : 1.0 - std::cos(angle), y = i % 2 == 0 ? std::sin(angle) : 0.5 - std::sin(angle);
    points.push_back(static_cast<float>(x + 0.08 * random.normal()));
    points.push_back(static_cast<float>(y + 0.08 * random.normal()));
  }
  return points;
}

/// Mean negative log-likelihood of the Gaussian with the points' mean and covariance.
double gaussian_fit(const Floats& points) {
  const double n = static_cast<double>(points.size() / 2);
  double mx = 0, my = 0, xx = 0, yy = 0, xy = 0;
  for (std::size_t i = 0; i < points.size(); i += 2) {
    mx += static_cast<double>(points[i]) / n;
    my += static_cast<double>(points[i + 1]) / n;
  }
  for (std::size_t i = 0; i < points.size(); i += 2) {
    const double x = static_cast<double>(points[i]) - mx, y = static_cast<double>(points[i + 1]) - my;
    xx += x * x / n;
    yy += y * y / n;
    xy += x * y / n;
  }
  return 1.0 + std::log(2.0 * std::numbers::pi) + 0.5 * std::log(xx * yy - xy * xy);
}

TEST_CASE("nn::Flow F6: trained on two moons it is a better density than the best Gaussian") {
  Random random(11);
  const Positions at{256, 1, 1};
  for (const auto kind : {nn::BlockKind::all_in_one, nn::BlockKind::glow}) {
    auto shape = flow_shape(kind, nn::ScaleClamp::tanh, nn::ChannelMixing::permutation, 2, 0, 1, {32, 32});
    auto blocks = random_flow(std::vector<nn::CouplingShape>(6, shape), random);
    for (ReferenceBlock& block : blocks) {
      block.permutation = {1, 0};
      std::fill(block.global_scale.begin(), block.global_scale.end(), static_cast<double>(nn::kUnitGlobalScale));
      std::fill(block.global_offset.begin(), block.global_offset.end(), 0.0);
    }
    HostFlow f(std::move(blocks), at);
    auto adam = nn::Adam::create(static_cast<std::int64_t>(f.parameters.size()), {});
    REQUIRE_MESSAGE(adam.ok(), adam.message());
    Floats z(512), logdet(256), dz(512), gradients(f.parameters.size());
    Scratch scratch(f.flow, nn::FlowPass::backward, 256, 1);
    const auto nll = [&](const Floats& points) {
      REQUIRE(f.flow.forward({points.data(), 256, 1, 1, 2}, {}, {z.data(), 256, 1, 1, 2}, logdet, {}, {}, scratch.arena).ok());
      double sum = 256.0 * std::log(2.0 * std::numbers::pi);
      for (const float v : z) sum += 0.5 * static_cast<double>(v) * static_cast<double>(v);
      for (const float l : logdet) sum -= static_cast<double>(l);
      return sum / 256.0;
    };
    const Floats dlogdet(256, -1.0f / 256.0f);
    for (int step = 0; step < 400; ++step) {
      const Floats points = moons(256, random);
      (void)nll(points);
      for (std::size_t i = 0; i < z.size(); ++i) dz[i] = z[i] / 256.0f;
      REQUIRE(f.flow.backward({z.data(), 256, 1, 1, 2}, {}, {dz.data(), 256, 1, 1, 2}, dlogdet, gradients, {}, {}, {}, scratch.arena).ok());
      adam->step(f.parameters, gradients, step < 300 ? 5e-3f : 1e-3f);
      f.prepare();
    }
    double mine = 0.0, gaussian = 0.0;
    for (int i = 0; i < 8; ++i) {
      const Floats points = moons(256, random);
      mine += nll(points) / 8.0;
      gaussian += gaussian_fit(points) / 8.0;
    }
    INFO("flow " << mine << ", Gaussian " << gaussian);
    CHECK(mine < gaussian - 0.3);
  }
}

}  // namespace
}  // namespace norma::test
