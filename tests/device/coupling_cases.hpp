// Flows on the device against the double reference: tests of coupling_test.cpp (emulation) and coupling_test.cu (a GPU).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <norma/cuda/coupling.cuh>
#include <norma/cuda/runtime.cuh>
#include <support/coupling_reference.hpp>
#include <support/device.hpp>

namespace norma::test {

// Named: kernels on them have external linkage.
/// Takes the large tile wherever it can, with two warps across it.
struct LargeTiles {
  constexpr cuda::FlowPolicy operator()(int) const {
    return {{64, 64, 16, 2, 2, 3, cuda::Arithmetic::fp32}, {32, 32, 16, 2, 1, 2, cuda::Arithmetic::fp32}, 0, 0};
  }
};
/// Small tiles whose slices of the depth one block sums.
struct UnslicedTiles {
  constexpr cuda::FlowPolicy operator()(int arch) const {
    cuda::FlowPolicy policy = cuda::FlowTuning{}(arch);
    policy.sliced_to_blocks = 0;
    return policy;
  }
};
/// The shipped large tile.
struct ShippedLargeTiles {
  constexpr cuda::FlowPolicy operator()(int arch) const {
    cuda::FlowPolicy policy = cuda::FlowTuning{}(arch);
    policy.large_from_blocks = 0;
    return policy;
  }
};

namespace {

using cuda::FlowArithmetic;
using cuda::FlowBlock;
using cuda::FlowGrid;
using cuda::FlowPass;

FlowGrid grid_of(const Positions& at) { return {at.batch, at.height, at.width}; }

/// Rows in device memory with a padded stride; the padding is `filler`.
class DeviceRows {
 public:
  DeviceRows(std::int64_t rows, std::int64_t channels, std::int64_t extra = 0)
      : rows_(rows), channels_(channels), stride_(nn::padded(channels) + extra), array_(std::max<std::int64_t>(rows * stride_, 1)) {}
  DeviceRows(const Doubles& values, std::int64_t rows, std::int64_t channels, float filler = 0.0f, std::int64_t extra = 0)
      : DeviceRows(rows, channels, extra) {
    write(values, filler);
  }
  void write(const Doubles& values, float filler = 0.0f) {
    std::vector<float> host(index_of(rows_ * stride_), filler);
    for (std::int64_t r = 0; r < rows_; ++r) {
      for (std::int64_t c = 0; c < channels_; ++c) host[index_of(r * stride_ + c)] = static_cast<float>(values[index_of(r * channels_ + c)]);
    }
    if (!host.empty()) array_.write(host);
  }
  [[nodiscard]] std::vector<float> read() const {
    const std::vector<float> host = array_.read();
    std::vector<float> values;
    for (std::int64_t r = 0; r < rows_; ++r) values.insert(values.end(), host.begin() + r * stride_, host.begin() + r * stride_ + channels_);
    return values;
  }
  [[nodiscard]] MatrixView<float> view() {
    return channels_ == 0 ? MatrixView<float>() : MatrixView<float>(array_.data(), rows_, channels_, stride_);
  }
  [[nodiscard]] MatrixView<const float> const_view() { return view(); }

 private:
  std::int64_t rows_, channels_, stride_;
  DeviceArray<float> array_;
};

/// Reference blocks and the same blocks in device memory.
class DeviceFlow {
 public:
  explicit DeviceFlow(std::vector<ReferenceBlock> blocks) : host(std::move(blocks)) {
    for (const ReferenceBlock& block : host) {
      parameters_.emplace_back(packed_parameters(block));
      gradients_.emplace_back(nn::parameter_layout(block.shape).total);
      FlowBlock on_device{block.shape, parameters_.back().data(), nullptr, nullptr};
      if (block.rotation.empty()) {
        permutations_.emplace_back(*nn::pack_permutation(block.permutation));
        on_device.permutation = permutations_.back().data();
      } else {
        const std::vector<float> rotation(block.rotation.begin(), block.rotation.end());
        rotations_.emplace_back(*nn::pack_rotation(block.shape, rotation));
        on_device.rotation = rotations_.back().data();
      }
      device.push_back(on_device);
      gradient_pointers.push_back(gradients_.back().data());
    }
  }
  [[nodiscard]] const nn::CouplingShape& shape() const { return host[0].shape; }
  [[nodiscard]] DeviceArray<std::byte> workspace(const Positions& at, FlowPass pass) const {
    return DeviceArray<std::byte>(static_cast<std::int64_t>(cuda::flow_workspace_bytes(device, grid_of(at), pass)));
  }
  [[nodiscard]] std::vector<float> gradient(std::size_t b) const { return gradients_[b].read(); }

  std::vector<ReferenceBlock> host;
  std::vector<FlowBlock> device;
  std::vector<float*> gradient_pointers;

 private:
  std::vector<DeviceArray<float>> parameters_, gradients_, rotations_;
  std::vector<DeviceArray<std::int32_t>> permutations_;
};

std::span<std::byte> whole(DeviceArray<std::byte>& workspace) { return {workspace.data(), workspace.bytes()}; }

Doubles random_values(std::int64_t count, Random& random) {
  Doubles x(index_of(count));
  for (double& v : x) v = static_cast<float>(random.normal());  // floats, as the device has them
  return x;
}

std::vector<ReferenceBlock> random_flow(const nn::CouplingShape& shape, int blocks, Random& random) {
  std::vector<ReferenceBlock> flow;
  for (int b = 0; b < blocks; ++b) flow.push_back(random_block(shape, random));
  return flow;
}

Doubles forward_of(const std::vector<ReferenceBlock>& flow, const Positions& at, Doubles x, const Doubles& condition, Doubles& logdet) {
  for (const ReferenceBlock& block : flow) x = reference_forward(block, at, x, condition, logdet);
  return x;
}

struct FlowCase {
  const char* name;
  nn::CouplingShape shape;
  Positions at;
  int blocks;
  std::vector<nn::CouplingShape> more = {};  // blocks of other shapes behind them
};

std::vector<FlowCase> flow_cases() {
  using enum nn::BlockKind;
  using enum nn::ChannelMixing;
  using nn::ScaleClamp;
  return {
      {"fastflow 3x3, even halves", flow_shape(all_in_one, ScaleClamp::tanh, permutation, 8, 0, 3, {4}), {2, 5, 7}, 3},
      {"fastflow 3x3, more than one tile of columns", flow_shape(all_in_one, ScaleClamp::tanh, permutation, 64, 0, 3, {33}), {1, 6, 6}, 1},
      {"fastflow 1x1, odd", flow_shape(all_in_one, ScaleClamp::tanh_of_ratio, permutation, 13, 0, 1, {9}), {3, 4, 3}, 2},
      {"one position", flow_shape(all_in_one, ScaleClamp::tanh, permutation, 6, 0, 3, {5}), {1, 1, 1}, 2},
      {"two channels", flow_shape(all_in_one, ScaleClamp::tanh, permutation, 2, 0, 3, {1}), {1, 3, 2}, 2},
      {"cflow, rotation, condition", flow_shape(all_in_one, ScaleClamp::tanh, rotation, 16, 12, 1, {40}), {33, 1, 1}, 2},
      {"cflow, odd, rotation, condition", flow_shape(all_in_one, ScaleClamp::tanh, rotation, 11, 5, 1, {14}), {31, 1, 1}, 3},
      {"condition beside a 3x3", flow_shape(all_in_one, ScaleClamp::tanh, permutation, 9, 3, 3, {6, 7}), {1, 4, 5}, 2},
      {"one layer", flow_shape(all_in_one, ScaleClamp::atan, permutation, 7, 2, 3, {}), {2, 3, 3}, 2},
      {"differnet", flow_shape(glow, ScaleClamp::atan, permutation, 24, 0, 1, {32, 32, 32}), {32, 1, 1}, 2},
      {"glow, odd, 3x3", flow_shape(glow, ScaleClamp::atan, permutation, 7, 0, 3, {6}), {2, 3, 4}, 3},
      {"glow, odd, rotation, condition", flow_shape(glow, ScaleClamp::tanh_of_ratio, rotation, 5, 2, 1, {8, 3}), {1, 5, 5}, 2},
      {"glow, one more group of columns in the second step", flow_shape(glow, ScaleClamp::atan, permutation, 33, 0, 1, {8}), {2, 2, 2}, 2},
  };
}

// Rounding: values are of order 1 to 10, each passes 5 roundings a block beside the subnet, whose sums of at most 600 products of order 0.1 are off
// by some 1e-6; exp(L) multiplies an error by at most e^1.9 a block. 3 blocks stay below 2e-5 times the largest value, which the bounds below allow.
constexpr double kFlowBound = 2e-5;

double largest(const Doubles& values) {
  double m = 1.0;
  for (double v : values) m = std::max(m, std::abs(v));
  return m;
}

template <FlowArithmetic kArithmetic = FlowArithmetic::fp32, class Tuning = cuda::FlowTuning>
void check_flow(const FlowCase& c, double bound, double gradient_bound) {
  INFO(c.name);
  Random random(21, static_cast<std::uint64_t>(c.shape.channels));
  const nn::CouplingShape& s = c.shape;
  std::vector<ReferenceBlock> blocks = random_flow(s, c.blocks, random);
  for (const nn::CouplingShape& other : c.more) blocks.push_back(random_block(other, random));
  DeviceFlow flow(blocks);
  const std::int64_t rows = c.at.rows();
  std::int64_t conditions = s.condition;
  for (const nn::CouplingShape& other : c.more) conditions = std::max(conditions, other.condition);
  const Doubles x = random_values(rows * s.channels, random), condition = random_values(rows * conditions, random);
  const Doubles dz = random_values(rows * s.channels, random), dlogdet = random_values(c.at.batch, random);

  TestStream stream;
  // Strides beyond the channels; the padding of x is not 0.
  DeviceRows x_rows(x, rows, s.channels, 7.0f, 4), condition_rows(condition, rows, conditions), z_rows(rows, s.channels, 8),
      back_rows(rows, s.channels);
  DeviceArray<float> logdet(c.at.batch), position_logdet(rows);
  {
    auto workspace = flow.workspace(c.at, FlowPass::forward);
    const Status status =
        cuda::flow_forward<kArithmetic, Tuning>(stream, flow.device, grid_of(c.at), x_rows.const_view(), condition_rows.const_view(), z_rows.view(),
                                                logdet.data(), position_logdet.data(), whole(workspace));
    REQUIRE_MESSAGE(status.ok(), status.message());
  }
  Doubles want_logdet(index_of(c.at.batch));
  const Doubles want = forward_of(flow.host, c.at, x, condition, want_logdet);
  const std::vector<float> z = z_rows.read(), got_logdet = logdet.read(), by_position = position_logdet.read();
  for (std::size_t i = 0; i < want.size(); ++i) CHECK(std::abs(static_cast<double>(z[i]) - want[i]) <= bound * largest(want));
  for (std::int64_t n = 0; n < c.at.batch; ++n) {
    // A sum of positions x channels x blocks terms of at most 1.9, plus log g.
    const double terms = static_cast<double>(c.at.per_sample() * s.channels * static_cast<std::int64_t>(blocks.size()));
    CHECK(std::abs(static_cast<double>(got_logdet[index_of(n)]) - want_logdet[index_of(n)]) <= bound * terms);
    double sum = 0.0;
    for (std::int64_t p = 0; p < c.at.per_sample(); ++p) sum += static_cast<double>(by_position[index_of(n * c.at.per_sample() + p)]);
    CHECK(std::abs(sum - static_cast<double>(got_logdet[index_of(n)])) <= 1e-6 * std::max(1.0, std::abs(sum)));
  }

  {
    auto workspace = flow.workspace(c.at, FlowPass::inverse);
    z_rows.write(Doubles(z.begin(), z.end()), 0.0f);  // the padding of an output is unspecified, that of an input finite
    const Status status = cuda::flow_inverse<kArithmetic, Tuning>(stream, flow.device, grid_of(c.at), z_rows.const_view(),
                                                                  condition_rows.const_view(), back_rows.view(), whole(workspace));
    REQUIRE_MESSAGE(status.ok(), status.message());
  }
  const std::vector<float> back = back_rows.read();
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(std::abs(static_cast<double>(back[i]) - x[i]) <= bound * largest(want));

  // Backward: against the reference's backward from the input.
  DeviceRows dz_rows(dz, rows, s.channels), dx_rows(rows, s.channels), dcondition_rows(rows, conditions);
  const DeviceArray<float> dlogdet_array(std::vector<float>(dlogdet.begin(), dlogdet.end()));
  {
    auto workspace = flow.workspace(c.at, FlowPass::backward);
    const Status status = cuda::flow_backward<kArithmetic, Tuning>(stream, flow.device, grid_of(c.at), z_rows.const_view(),
                                                                   condition_rows.const_view(), dz_rows.const_view(), dlogdet_array.data(),
                                                                   flow.gradient_pointers, dx_rows.view(), dcondition_rows.view(), whole(workspace));
    REQUIRE_MESSAGE(status.ok(), status.message());
  }
  std::vector<Doubles> inputs{x};
  Doubles unused(index_of(c.at.batch));
  for (const ReferenceBlock& block : flow.host) inputs.push_back(reference_forward(block, c.at, inputs.back(), condition, unused));
  Doubles d = dz, dcondition(condition.size());
  for (std::size_t b = flow.host.size(); b-- > 0;) {
    CAPTURE(b);
    ReferenceBlock gradient = zero_like(flow.host[b]);
    d = reference_backward(flow.host[b], c.at, inputs[b], condition, d, dlogdet, gradient, dcondition);
    const std::vector<float> want_gradient = packed_parameters(gradient), got_gradient = flow.gradient(b);
    const double scale = largest(Doubles(want_gradient.begin(), want_gradient.end()));
    REQUIRE(got_gradient.size() == want_gradient.size());
    for (std::size_t i = 0; i < got_gradient.size(); ++i) {
      CAPTURE(i);
      CHECK(std::abs(static_cast<double>(got_gradient[i]) - static_cast<double>(want_gradient[i])) <= gradient_bound * scale);
    }
  }
  const std::vector<float> dx = dx_rows.read(), got_dcondition = conditions > 0 ? dcondition_rows.read() : std::vector<float>();
  for (std::size_t i = 0; i < d.size(); ++i) CHECK(std::abs(static_cast<double>(dx[i]) - d[i]) <= gradient_bound * largest(d));
  for (std::size_t i = 0; i < dcondition.size(); ++i) {
    CHECK(std::abs(static_cast<double>(got_dcondition[i]) - dcondition[i]) <= gradient_bound * largest(dcondition));
  }
}

TEST_CASE("cuda::flow: forward, log-determinant, inverse and gradients are the reference's") {
  if (!has_device()) return;
  for (const FlowCase& c : flow_cases()) check_flow(c, kFlowBound, 4 * kFlowBound);
}

TEST_CASE("cuda::flow: blocks of one flow may differ in all but kind and channels") {
  if (!has_device()) return;
  using nn::ScaleClamp;
  for (const auto kind : {nn::BlockKind::all_in_one, nn::BlockKind::glow}) {
    for (const std::int64_t channels : {16, 11}) {
      CAPTURE(channels);
      const auto shape = [&](ScaleClamp clamp, nn::ChannelMixing mixing, std::int64_t condition, std::int64_t kernel,
                             std::vector<std::int64_t> hidden) {
        return flow_shape(kind, clamp, mixing, channels, condition, kernel, std::move(hidden));
      };
      const FlowCase c{"different blocks",
                       shape(ScaleClamp::tanh, nn::ChannelMixing::permutation, 0, 3, {6}),
                       {2, 3, 2},
                       1,
                       {shape(ScaleClamp::atan, nn::ChannelMixing::rotation, 5, 1, {9, 4}),
                        shape(ScaleClamp::tanh_of_ratio, nn::ChannelMixing::permutation, 0, 1, {}),
                        shape(ScaleClamp::tanh, nn::ChannelMixing::rotation, 5, 3, {3})}};
      check_flow(c, 2 * kFlowBound, 8 * kFlowBound);
    }
  }
}

TEST_CASE("cuda::flow: more positions than one partial gradient sums, and several blocks of every kernel") {
  if (!has_device()) return;
  // 1081 positions: three parts, the last one shorter; 34 tiles of rows.
  check_flow(
      {"three parts", flow_shape(nn::BlockKind::all_in_one, nn::ScaleClamp::tanh, nn::ChannelMixing::permutation, 6, 2, 3, {5}), {1, 23, 47}, 2},
      kFlowBound, 4 * kFlowBound);
  check_flow(
      {"parts across samples", flow_shape(nn::BlockKind::glow, nn::ScaleClamp::atan, nn::ChannelMixing::permutation, 5, 0, 1, {4}), {300, 2, 2}, 1},
      kFlowBound, 4 * kFlowBound);
}

std::vector<FlowCase> wide_cases() {
  return {
      {"wide fastflow", flow_shape(nn::BlockKind::all_in_one, nn::ScaleClamp::tanh, nn::ChannelMixing::permutation, 70, 0, 3, {36}), {1, 9, 8}, 1},
      {"wide cflow", flow_shape(nn::BlockKind::all_in_one, nn::ScaleClamp::tanh, nn::ChannelMixing::rotation, 66, 40, 1, {50}), {65, 1, 1}, 2},
      {"wide glow", flow_shape(nn::BlockKind::glow, nn::ScaleClamp::atan, nn::ChannelMixing::permutation, 67, 0, 1, {70, 40}), {10, 1, 7}, 1}};
}

TEST_CASE("cuda::flow: the large tiles give the same results") {
  if (!has_device()) return;
  for (const FlowCase& c : wide_cases()) {
    check_flow<FlowArithmetic::fp32, LargeTiles>(c, kFlowBound, 4 * kFlowBound);
    check_flow<FlowArithmetic::fp32, ShippedLargeTiles>(c, kFlowBound, 4 * kFlowBound);
  }
}

/// What a forward pass gives.
struct FlowResult {
  std::vector<float> z, logdet;
  friend bool operator==(const FlowResult&, const FlowResult&) = default;
};
template <class Tuning = cuda::FlowTuning>
FlowResult run_forward(const DeviceFlow& flow, const Positions& at, const Doubles& x, const Doubles& condition) {
  const nn::CouplingShape& s = flow.shape();
  TestStream stream;
  DeviceRows x_rows(x, at.rows(), s.channels), condition_rows(condition, at.rows(), s.condition), z_rows(at.rows(), s.channels);
  DeviceArray<float> logdet(at.batch);
  auto workspace = flow.workspace(at, FlowPass::forward);
  const Status status = cuda::flow_forward<FlowArithmetic::fp32, Tuning>(
      stream, flow.device, grid_of(at), x_rows.const_view(), condition_rows.const_view(), z_rows.view(), logdet.data(), nullptr, whole(workspace));
  REQUIRE_MESSAGE(status.ok(), status.message());
  return {z_rows.read(), logdet.read()};
}

TEST_CASE("cuda::flow: a depth of several slices, summed by one block or by many") {
  if (!has_device()) return;
  // 9 x 72 = 648 of depth: two slices; 9 x 148 and 1028: four, the last one shorter.
  const std::vector<FlowCase> cases{
      {"two slices", flow_shape(nn::BlockKind::all_in_one, nn::ScaleClamp::tanh, nn::ChannelMixing::permutation, 6, 0, 3, {72}), {1, 6, 7}, 2},
      {"four slices", flow_shape(nn::BlockKind::glow, nn::ScaleClamp::atan, nn::ChannelMixing::permutation, 5, 0, 3, {148}), {2, 3, 3}, 1},
      {"four slices of vectors, a rotation of two",
       flow_shape(nn::BlockKind::all_in_one, nn::ScaleClamp::tanh, nn::ChannelMixing::rotation, 20, 514, 1, {1028}),
       {3, 1, 1},
       1}};
  for (const FlowCase& c : cases) {
    check_flow(c, kFlowBound, 8 * kFlowBound);
    check_flow<FlowArithmetic::fp32, UnslicedTiles>(c, kFlowBound, 8 * kFlowBound);
    check_flow<FlowArithmetic::tf32x3>(c, 2 * kFlowBound, 16 * kFlowBound);
    Random random(30);
    const DeviceFlow flow(random_flow(c.shape, c.blocks, random));
    const Doubles x = random_values(c.at.rows() * c.shape.channels, random), condition = random_values(c.at.rows() * c.shape.condition, random);
    const FlowResult sliced = run_forward(flow, c.at, x, condition);
    CHECK(sliced == run_forward(flow, c.at, x, condition));
    CHECK(sliced == run_forward<UnslicedTiles>(flow, c.at, x, condition));
    CHECK(sliced == run_forward<LargeTiles>(flow, c.at, x, condition));
  }
}

TEST_CASE("cuda::flow: tensor cores, split in two like float, rounded to 10 bits near it") {
  if (!has_device()) return;
  std::vector<FlowCase> cases = wide_cases();
  for (const FlowCase& c : {flow_cases()[0], flow_cases()[6], flow_cases()[10]}) cases.push_back(c);
  for (const FlowCase& c : cases) {
    // Products off by 2^-21 instead of 2^-24: the same bound with room for it.
    check_flow<FlowArithmetic::tf32x3>(c, 2 * kFlowBound, 8 * kFlowBound);
    // Both factors off by 2^-11; a rotation mixes all channels with that error, and the blocks multiply it. A hidden unit that near to zero may be on
    // in one and off in the other: its whole share in a gradient, one of 36 and more, is then off.
    check_flow<FlowArithmetic::tf32>(c, 8e-3, 0.1);
  }
  check_flow<FlowArithmetic::tf32x3, ShippedLargeTiles>(cases[0], 2 * kFlowBound, 8 * kFlowBound);
  check_flow<FlowArithmetic::tf32, ShippedLargeTiles>(cases[1], 8e-3, 0.1);
}

TEST_CASE("cuda::flow: the same bits again, in another batch, and with another tile") {
  if (!has_device()) return;
  for (const FlowCase& c : {flow_cases()[1], flow_cases()[6], flow_cases()[12]}) {
    INFO(c.name);
    Random random(22);
    DeviceFlow flow(random_flow(c.shape, c.blocks, random));
    const Positions three{3, c.at.height, c.at.width}, one{1, c.at.height, c.at.width};
    const Doubles x = random_values(three.rows() * c.shape.channels, random), condition = random_values(three.rows() * c.shape.condition, random);
    const FlowResult all = run_forward(flow, three, x, condition);
    CHECK(all == run_forward(flow, three, x, condition));
    CHECK(all == run_forward<LargeTiles>(flow, three, x, condition));
    for (std::int64_t n = 0; n < 3; ++n) {
      const auto part = [&](const Doubles& values, std::int64_t channels) {
        const std::int64_t count = one.rows() * channels;
        return Doubles(values.begin() + n * count, values.begin() + (n + 1) * count);
      };
      const FlowResult alone = run_forward(flow, one, part(x, c.shape.channels), part(condition, c.shape.condition));
      CHECK(alone.logdet[0] == all.logdet[index_of(n)]);
      const auto first = all.z.begin() + n * one.rows() * c.shape.channels;
      CHECK(std::equal(alone.z.begin(), alone.z.end(), first));
    }
  }
}

/// The subnets' last layers zero, g = 1, o = 0: the coupling does nothing.
void silence(ReferenceBlock& block) {
  for (int step = 0; step < block.shape.steps(); ++step) {
    std::fill(block.subnets[step].back().weight.begin(), block.subnets[step].back().weight.end(), 0.0);
    std::fill(block.subnets[step].back().bias.begin(), block.subnets[step].back().bias.end(), 0.0);
  }
  std::fill(block.global_scale.begin(), block.global_scale.end(), static_cast<double>(nn::kUnitGlobalScale));
  std::fill(block.global_offset.begin(), block.global_offset.end(), 0.0);
}

TEST_CASE("cuda::flow: silent blocks are their permutations, which have no log-determinant and an exact inverse") {
  if (!has_device()) return;
  for (const auto kind : {nn::BlockKind::glow, nn::BlockKind::all_in_one}) {
    for (const std::int64_t channels : {8, 9}) {
      for (const bool identity : {true, false}) {
        CAPTURE(channels);
        CAPTURE(identity);
        Random random(23);
        const nn::CouplingShape s = flow_shape(kind, nn::ScaleClamp::tanh, nn::ChannelMixing::permutation, channels, 0, 3, {4});
        std::vector<ReferenceBlock> blocks = random_flow(s, 3, random);
        for (ReferenceBlock& block : blocks) {
          silence(block);
          for (std::int64_t c = 0; identity && c < channels; ++c) block.permutation[index_of(c)] = c;
        }
        const DeviceFlow flow(blocks);
        const Positions at{2, 3, 4};
        const Doubles x = random_values(at.rows() * channels, random);
        const FlowResult got = run_forward(flow, at, x, {});
        Doubles want = x;
        for (const ReferenceBlock& block : blocks) want = mix(block, want, false);
        // glow: exactly. all_in_one: g = 0.1 softplus(G) rounds to 1 within two units, three times.
        const double unit = kind == nn::BlockKind::glow ? 0.0 : 6 * 0x1p-23;
        for (std::size_t i = 0; i < want.size(); ++i) CHECK(std::abs(static_cast<double>(got.z[i]) - want[i]) <= unit * std::abs(want[i]));
        for (float l : got.logdet) CHECK(std::abs(l) <= unit * static_cast<double>(at.per_sample() * channels));

        TestStream stream;
        DeviceRows z_rows(Doubles(got.z.begin(), got.z.end()), at.rows(), channels), x_rows(at.rows(), channels);
        auto workspace = flow.workspace(at, FlowPass::inverse);
        REQUIRE(cuda::flow_inverse(stream, flow.device, grid_of(at), z_rows.const_view(), {}, x_rows.view(), whole(workspace)).ok());
        const std::vector<float> back = x_rows.read();
        for (std::size_t i = 0; i < x.size(); ++i) CHECK(std::abs(static_cast<double>(back[i]) - x[i]) <= 2 * unit * std::abs(x[i]));
      }
    }
  }
}

TEST_CASE("cuda::flow: what is not finite stays in its sample") {
  if (!has_device()) return;
  Random random(24);
  const FlowCase c = flow_cases()[0];
  const DeviceFlow flow(random_flow(c.shape, 2, random));
  const Positions at{3, 4, 4};
  Doubles x = random_values(at.rows() * c.shape.channels, random);
  const FlowResult clean = run_forward(flow, at, x, {});
  const std::size_t of_sample = index_of(at.per_sample() * c.shape.channels);
  x[of_sample + 1] = std::nan("");  // of the passive half, which every subnet of the first block sees
  const FlowResult got = run_forward(flow, at, x, {});
  CHECK(std::isnan(got.logdet[1]));
  CHECK(got.logdet[0] == clean.logdet[0]);
  CHECK(got.logdet[2] == clean.logdet[2]);
  for (std::size_t i = 0; i < got.z.size(); ++i) {
    if (i / of_sample != 1) CHECK(got.z[i] == clean.z[i]);
  }
}

TEST_CASE("cuda::flow: three flows in one graph, launched again with other inputs") {
  if (!has_device()) return;
  Random random(25);
  struct Branch {
    Positions at;
    DeviceFlow flow;
    DeviceRows x, z, dz, dx;
    DeviceArray<float> logdet, dlogdet;
    DeviceArray<std::byte> forward_memory, backward_memory;
    TestStream stream;
    Branch(const Positions& p, std::int64_t channels, Random& r)
        : at(p),
          flow(random_flow(nn::fastflow_block(channels, 3), 2, r)),
          x(p.rows(), channels),
          z(p.rows(), channels),
          dz(p.rows(), channels),
          dx(p.rows(), channels),
          logdet(p.batch),
          dlogdet(p.batch),
          forward_memory(flow.workspace(p, FlowPass::forward)),
          backward_memory(flow.workspace(p, FlowPass::backward)) {}
  };
  Branch branches[3] = {{{2, 4, 4}, 8, random}, {{2, 2, 2}, 12, random}, {{2, 1, 1}, 16, random}};
  TestStream origin;
  std::vector<cuda::Event> events;
  for (int i = 0; i < 4; ++i) events.push_back(*cuda::Event::create());
  auto graph = cuda::Graph::capture(origin, [&]() -> Status {
    NORMA_CHECK(events[3].record(origin));
    for (std::size_t i = 0; i < 3; ++i) {
      Branch& b = branches[i];
      NORMA_CHECK(events[3].hold(b.stream));
      NORMA_CHECK(cuda::flow_forward(b.stream, b.flow.device, grid_of(b.at), b.x.const_view(), {}, b.z.view(), b.logdet.data(), nullptr,
                                     whole(b.forward_memory)));
      NORMA_CHECK(cuda::likelihood_gradient(b.stream, b.z.const_view(), 0.5f, b.dz.view(), b.dlogdet.data(), b.at.batch));
      NORMA_CHECK(cuda::flow_backward(b.stream, b.flow.device, grid_of(b.at), b.z.const_view(), {}, b.dz.const_view(), b.dlogdet.data(),
                                      b.flow.gradient_pointers, b.dx.view(), {}, whole(b.backward_memory)));
      NORMA_CHECK(events[i].record(b.stream));
      NORMA_CHECK(events[i].hold(origin));
    }
    return {};
  });
  REQUIRE_MESSAGE(graph.ok(), graph.message());
  for (int round = 0; round < 2; ++round) {
    Doubles inputs[3];
    for (std::size_t i = 0; i < 3; ++i) {
      inputs[i] = random_values(branches[i].at.rows() * branches[i].flow.shape().channels, random);
      branches[i].x.write(inputs[i]);
    }
    REQUIRE(graph->launch(origin).ok());
    origin.wait();
    for (std::size_t i = 0; i < 3; ++i) {
      Branch& b = branches[i];
      Doubles logdet(index_of(b.at.batch)), unused(index_of(b.at.batch)), no_condition;
      std::vector<Doubles> at_block{inputs[i]};
      for (const ReferenceBlock& block : b.flow.host) at_block.push_back(reference_forward(block, b.at, at_block.back(), {}, logdet));
      const std::vector<float> z = b.z.read(), got_logdet = b.logdet.read(), dx = b.dx.read();
      for (std::size_t e = 0; e < z.size(); ++e)
        CHECK(std::abs(static_cast<double>(z[e]) - at_block.back()[e]) <= kFlowBound * largest(at_block.back()));
      for (std::size_t n = 0; n < got_logdet.size(); ++n) CHECK(std::abs(static_cast<double>(got_logdet[n]) - logdet[n]) <= kFlowBound * 256);
      Doubles d = at_block.back();
      for (double& v : d) v *= 0.5;
      const Doubles dlogdet(index_of(b.at.batch), -0.5);
      for (std::size_t k = b.flow.host.size(); k-- > 0;) {
        ReferenceBlock gradient = zero_like(b.flow.host[k]);
        d = reference_backward(b.flow.host[k], b.at, at_block[k], {}, d, dlogdet, gradient, no_condition);
      }
      for (std::size_t e = 0; e < dx.size(); ++e) CHECK(std::abs(static_cast<double>(dx[e]) - d[e]) <= 4 * kFlowBound * largest(d));
    }
  }
}

TEST_CASE("cuda::flow: outputs that nobody wants may be missing") {
  if (!has_device()) return;
  Random random(26);
  const FlowCase c = flow_cases()[7];
  const DeviceFlow flow(random_flow(c.shape, 2, random));
  TestStream stream;
  DeviceRows x(random_values(c.at.rows() * c.shape.channels, random), c.at.rows(), c.shape.channels), z(c.at.rows(), c.shape.channels);
  DeviceRows condition(random_values(c.at.rows() * c.shape.condition, random), c.at.rows(), c.shape.condition), dx(c.at.rows(), c.shape.channels);
  auto forward = flow.workspace(c.at, FlowPass::forward), backward = flow.workspace(c.at, FlowPass::backward);
  REQUIRE(cuda::flow_forward(stream, flow.device, grid_of(c.at), x.const_view(), condition.const_view(), z.view(), nullptr, nullptr, whole(forward))
              .ok());
  const std::vector<float> got = z.read();
  CHECK(std::none_of(got.begin(), got.end(), [](float v) { return std::isnan(v); }));
  // No dlogdet is dlogdet = 0; gradients without dx and dcondition are those with them.
  DeviceArray<float> zero(std::vector<float>(index_of(c.at.batch), 0.0f));
  DeviceRows z_again(Doubles(got.begin(), got.end()), c.at.rows(), c.shape.channels);
  REQUIRE(cuda::flow_backward(stream, flow.device, grid_of(c.at), z_again.const_view(), condition.const_view(), x.const_view(), zero.data(),
                              flow.gradient_pointers, dx.view(), {}, whole(backward))
              .ok());
  const std::vector<float> with = flow.gradient(0);
  REQUIRE(cuda::flow_backward(stream, flow.device, grid_of(c.at), z_again.const_view(), condition.const_view(), x.const_view(), nullptr,
                              flow.gradient_pointers, {}, {}, whole(backward))
              .ok());
  CHECK(flow.gradient(0) == with);
}

TEST_CASE("cuda::flow: an empty batch is done at once, its gradients are zero") {
  if (!has_device()) return;
  Random random(27);
  const DeviceFlow flow(random_flow(nn::fastflow_block(8, 3), 2, random));
  TestStream stream;
  const FlowGrid none{0, 4, 4};
  const MatrixView<float> empty(nullptr, 0, 8);
  CHECK(cuda::flow_workspace_bytes(flow.device, none, FlowPass::forward) == 0);
  CHECK(cuda::flow_forward(stream, flow.device, none, empty, {}, empty, nullptr, nullptr, {}).ok());
  CHECK(cuda::flow_inverse(stream, flow.device, none, empty, {}, empty, {}).ok());
  DeviceArray<std::byte> workspace(static_cast<std::int64_t>(cuda::flow_workspace_bytes(flow.device, none, FlowPass::backward)));
  const Status status = cuda::flow_backward(stream, flow.device, none, empty, {}, empty, nullptr, flow.gradient_pointers, {}, {}, whole(workspace));
  CHECK_MESSAGE(status.ok(), status.message());
  for (float g : flow.gradient(1)) CHECK(g == 0.0f);
}

TEST_CASE("cuda::flow: the workspace does not grow with the number of blocks") {
  const std::vector<FlowBlock> one(1, {nn::fastflow_block(64, 3), nullptr, nullptr, nullptr}), eight(8, one[0]);
  for (const auto pass : {FlowPass::forward, FlowPass::inverse, FlowPass::backward}) {
    CHECK(cuda::flow_workspace_bytes(one, {32, 64, 64}, pass) == cuda::flow_workspace_bytes(eight, {32, 64, 64}, pass));
  }
}

TEST_CASE("cuda::flow: bad arguments are named") {
  if (!has_device()) return;
  Random random(28);
  DeviceFlow flow(random_flow(nn::fastflow_block(8, 3), 2, random));
  TestStream stream;
  const Positions at{1, 3, 3};
  DeviceRows x(at.rows(), 8), z(at.rows(), 8);
  auto workspace = flow.workspace(at, FlowPass::backward);
  const auto forward = [&](std::span<const FlowBlock> blocks, FlowGrid grid, MatrixView<const float> in, MatrixView<float> out) {
    return cuda::flow_forward(stream, blocks, grid, in, {}, out, nullptr, nullptr, whole(workspace));
  };
  const auto says = [](const Status& status, Errc code, const std::string& words) {
    INFO(status.message());
    CHECK(status.code() == code);
    CHECK(status.message().find("cuda::flow_") == 0);
    CHECK(status.message().find(words) != std::string::npos);
  };
  const FlowGrid grid = grid_of(at);
  REQUIRE(forward(flow.device, grid, x.const_view(), z.view()).ok());
  says(forward({}, grid, x.const_view(), z.view()), Errc::invalid_argument, "at least one block");
  says(forward(flow.device, {1, 3, 4}, x.const_view(), z.view()), Errc::shape_mismatch, "x: expected 12 x 8, found 9 x 8");
  says(forward(flow.device, grid, x.const_view(), {z.view().data, 9, 7, 8}), Errc::shape_mismatch, "z: expected 9 x 8, found 9 x 7");
  says(forward(flow.device, grid, {x.view().data, 9, 8, 9}, z.view()), Errc::invalid_argument, "x: expected a stride of a multiple of 4");
  says(forward(flow.device, grid, {x.view().data + 1, 9, 8, 8}, z.view()), Errc::invalid_argument, "x: expected memory aligned to 16 bytes");
  says(forward(flow.device, grid, {nullptr, 9, 8, 8}, z.view()), Errc::invalid_argument, "x: is null");
  says(forward(flow.device, {1, 0, 3}, x.const_view(), z.view()), Errc::invalid_argument, "at least 1 x 1");
  says(forward(flow.device, {-1, 3, 3}, x.const_view(), z.view()), Errc::invalid_argument, "batch of 0 or more");
  says(forward(flow.device, {1 << 20, 1 << 10, 2}, x.const_view(), z.view()), Errc::invalid_argument, "too large");
  says(forward(flow.device, {1, 1, 40000}, x.const_view(), z.view()), Errc::invalid_argument, "16000 x 16000");

  std::vector<FlowBlock> blocks = flow.device;
  blocks[1].parameters = nullptr;
  says(forward(blocks, grid, x.const_view(), z.view()), Errc::invalid_argument, "block 1: parameters");
  blocks[1].parameters = flow.device[1].parameters + 1;
  says(forward(blocks, grid, x.const_view(), z.view()), Errc::invalid_argument, "aligned to 16 bytes");
  blocks = flow.device;
  blocks[0].permutation = nullptr;
  says(forward(blocks, grid, x.const_view(), z.view()), Errc::invalid_argument, "block 0: permutation");
  blocks = flow.device;
  blocks[1].shape.mixing = nn::ChannelMixing::rotation;
  says(forward(blocks, grid, x.const_view(), z.view()), Errc::invalid_argument, "block 1: rotation");
  blocks = flow.device;
  blocks[1].shape.channels = 12;
  says(forward(blocks, grid, x.const_view(), z.view()), Errc::shape_mismatch, "block 1: expected the kind and the 8 channels of block 0, found 12");
  blocks = flow.device;
  blocks[1].shape.kernels[1] = 5;
  says(forward(blocks, grid, x.const_view(), z.view()), Errc::unsupported, "kernel 1 or 3");
  blocks = flow.device;
  blocks[1].shape.condition = 4;
  says(forward(blocks, grid, x.const_view(), z.view()), Errc::shape_mismatch, "block 1: condition: expected 9 x 4");

  const std::span<std::byte> all = whole(workspace);
  says(cuda::flow_forward(stream, flow.device, grid, x.const_view(), {}, z.view(), nullptr, nullptr, all.first(100)), Errc::out_of_memory,
       "flow_workspace_bytes");
  says(cuda::flow_inverse(stream, flow.device, grid, z.const_view(), {}, x.view(), all.subspan(4)), Errc::invalid_argument, "aligned to 256 bytes");
  says(cuda::flow_backward(stream, flow.device, grid, z.const_view(), {}, x.const_view(), nullptr, std::span(flow.gradient_pointers).first(1), {}, {},
                           all),
       Errc::shape_mismatch, "gradients of 2 blocks, found 1");
  flow.gradient_pointers[1] = nullptr;
  says(cuda::flow_backward(stream, flow.device, grid, z.const_view(), {}, x.const_view(), nullptr, flow.gradient_pointers, {}, {}, all),
       Errc::invalid_argument, "gradients: expected memory aligned to 16 bytes, found null");
}

TEST_CASE("cuda::latent_squares and cuda::likelihood_gradient") {
  if (!has_device()) return;
  Random random(29);
  TestStream stream;
  for (const std::int64_t rows : {0, 1, 7, 8, 33}) {
    for (const std::int64_t channels : {1, 31, 32, 33, 100}) {
      CAPTURE(rows);
      CAPTURE(channels);
      const Doubles z = random_values(rows * channels, random);
      DeviceRows z_rows(z, rows, channels), dz(rows, channels);
      DeviceArray<float> squares(std::max<std::int64_t>(rows, 1)), dlogdet(std::max<std::int64_t>(rows, 1));
      const MatrixView<const float> view(z_rows.view().data, rows, channels, nn::padded(channels));
      REQUIRE(cuda::latent_squares(stream, view, squares.data()).ok());
      REQUIRE(cuda::likelihood_gradient(stream, view, 0.25f, dz.view(), dlogdet.data(), rows).ok());
      if (rows == 0) continue;
      const std::vector<float> got = squares.read(), got_dz = dz.read(), got_dlogdet = dlogdet.read();
      for (std::int64_t r = 0; r < rows; ++r) {
        double want = 0.0;
        for (std::int64_t c = 0; c < channels; ++c) want += z[index_of(r * channels + c)] * z[index_of(r * channels + c)];
        // 4 products a lane and 5 shuffles: fewer than 16 roundings of positive terms.
        CHECK(std::abs(static_cast<double>(got[index_of(r)]) - want) <= 16 * 0x1p-24 * want);
        CHECK(got_dlogdet[index_of(r)] == -0.25f);
      }
      for (std::size_t i = 0; i < z.size(); ++i) CHECK(static_cast<double>(got_dz[i]) == 0.25 * z[i]);
    }
  }
  CHECK(cuda::latent_squares(stream, {nullptr, 3, 4}, nullptr).code() == Errc::invalid_argument);
  CHECK(cuda::likelihood_gradient(stream, {nullptr, 3, 4}, 1.0f, {nullptr, 3, 5}, nullptr, 3).code() == Errc::shape_mismatch);
  CHECK(cuda::likelihood_gradient(stream, {nullptr, 3, 4}, 1.0f, {nullptr, 3, 4}, nullptr, 3).code() == Errc::invalid_argument);
}

}  // namespace
}  // namespace norma::test
