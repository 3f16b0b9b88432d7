// The double-precision coupling blocks against their defining equations: the inverse, the Jacobian, finite differences. What the device is compared
// with must itself be right. Also the packing and the parameter counts, which host and device share.
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <support/coupling_reference.hpp>

namespace norma::test {
namespace {

Doubles random_numbers(std::int64_t count, Random& random) {
  Doubles x(index_of(count));
  for (double& v : x) v = random.normal();
  return x;
}

nn::CouplingShape small_shape(nn::BlockKind kind, nn::ScaleClamp clamp, nn::ChannelMixing mixing, std::int64_t channels, std::int64_t condition,
                              std::int64_t kernel, int layers) {
  nn::CouplingShape s;
  s.kind = kind;
  s.clamp = clamp;
  s.mixing = mixing;
  s.alpha = 1.7f;
  s.channels = channels;
  s.condition = condition;
  s.layers = layers;
  for (int l = 0; l < layers; ++l) s.kernels[l] = l % 2 == 0 ? kernel : 1;
  for (int l = 0; l + 1 < layers; ++l) s.hidden[l] = 5 + l;
  return s;
}

std::vector<std::pair<nn::CouplingShape, Positions>> cases() {
  using enum nn::BlockKind;
  using enum nn::ChannelMixing;
  using nn::ScaleClamp;
  return {
      {small_shape(all_in_one, ScaleClamp::tanh, permutation, 6, 0, 3, 2), {2, 3, 2}},
      {small_shape(all_in_one, ScaleClamp::tanh_of_ratio, rotation, 5, 3, 1, 2), {3, 1, 1}},
      {small_shape(all_in_one, ScaleClamp::atan, permutation, 2, 2, 3, 1), {1, 2, 3}},
      {small_shape(glow, ScaleClamp::atan, permutation, 7, 0, 1, 4), {2, 1, 1}},
      {small_shape(glow, ScaleClamp::tanh, rotation, 4, 1, 3, 3), {1, 2, 2}},
  };
}

/// log|det| of a square matrix by elimination with row pivots.
double log_determinant(std::vector<Doubles> m) {
  double sum = 0.0;
  for (std::size_t k = 0; k < m.size(); ++k) {
    std::size_t pivot = k;
    for (std::size_t i = k + 1; i < m.size(); ++i) {
      if (std::abs(m[i][k]) > std::abs(m[pivot][k])) pivot = i;
    }
    std::swap(m[k], m[pivot]);
    sum += std::log(std::abs(m[k][k]));
    for (std::size_t i = k + 1; i < m.size(); ++i) {
      const double factor = m[i][k] / m[k][k];
      for (std::size_t j = k; j < m.size(); ++j) m[i][j] -= factor * m[k][j];
    }
  }
  return sum;
}

TEST_CASE("reference coupling block: the inverse undoes the forward pass") {
  int number = 0;
  for (const auto& [shape, at] : cases()) {
    ++number;
    CAPTURE(number);
    Random random(11, static_cast<std::uint64_t>(number));
    const ReferenceBlock block = random_block(shape, random);
    const Doubles x = random_numbers(at.rows() * shape.channels, random), condition = random_numbers(at.rows() * shape.condition, random);
    Doubles logdet(index_of(at.batch));
    const Doubles back = reference_inverse(block, at, reference_forward(block, at, x, condition, logdet), condition);
    for (std::size_t i = 0; i < x.size(); ++i) CHECK(std::abs(back[i] - x[i]) <= 1e-12);
  }
}

TEST_CASE("reference coupling block: the log-determinant is that of the numerical Jacobian") {
  int number = 0;
  for (const auto& [shape, positions] : cases()) {
    ++number;
    CAPTURE(number);
    const Positions at{1, positions.height, positions.width};
    Random random(12, static_cast<std::uint64_t>(number));
    const ReferenceBlock block = random_block(shape, random);
    Doubles x = random_numbers(at.rows() * shape.channels, random);
    const Doubles condition = random_numbers(at.rows() * shape.condition, random);
    Doubles logdet(1), unused(1);
    (void)reference_forward(block, at, x, condition, logdet);
    const double h = 1e-5;
    std::vector<Doubles> jacobian(x.size(), Doubles(x.size()));
    for (std::size_t j = 0; j < x.size(); ++j) {
      const double was = x[j];
      x[j] = was + h;
      const Doubles above = reference_forward(block, at, x, condition, unused);
      x[j] = was - h;
      const Doubles below = reference_forward(block, at, x, condition, unused);
      x[j] = was;
      for (std::size_t i = 0; i < x.size(); ++i) jacobian[i][j] = (above[i] - below[i]) / (2.0 * h);
    }
    CHECK(std::abs(log_determinant(jacobian) - logdet[0]) <= 1e-5 * std::max(1.0, std::abs(logdet[0])));
  }
}

// L = sum(weights y) + sum(dlogdet logdet): its gradients by y and logdet are the two weights.
double loss(const ReferenceBlock& block, const Positions& at, const Doubles& x, const Doubles& condition, const Doubles& dy, const Doubles& dlogdet) {
  Doubles logdet(index_of(at.batch));
  const Doubles y = reference_forward(block, at, x, condition, logdet);
  double sum = 0.0;
  for (std::size_t i = 0; i < y.size(); ++i) sum += dy[i] * y[i];
  for (std::size_t i = 0; i < logdet.size(); ++i) sum += dlogdet[i] * logdet[i];
  return sum;
}

TEST_CASE("reference coupling block: gradients of every kind are those of finite differences") {
  int number = 0;
  for (const auto& [shape, positions] : cases()) {
    ++number;
    CAPTURE(number);
    const Positions at = positions;
    Random random(13, static_cast<std::uint64_t>(number));
    ReferenceBlock block = random_block(shape, random), gradient = zero_like(block);
    Doubles x = random_numbers(at.rows() * shape.channels, random), condition = random_numbers(at.rows() * shape.condition, random);
    const Doubles dy = random_numbers(at.rows() * shape.channels, random), dlogdet = random_numbers(at.batch, random);
    Doubles dcondition(condition.size());
    const Doubles dx = reference_backward(block, at, x, condition, dy, dlogdet, gradient, dcondition);

    // Central differences: h^2 times a third derivative of about 1, plus rounding of L, 1e-16 |L| / h.
    const auto check = [&](Doubles& values, const Doubles& analytic) {
      const double h = 1e-5;
      REQUIRE(values.size() == analytic.size());
      for (std::size_t i = 0; i < values.size(); ++i) {
        const double was = values[i];
        values[i] = was + h;
        const double above = loss(block, at, x, condition, dy, dlogdet);
        values[i] = was - h;
        const double below = loss(block, at, x, condition, dy, dlogdet);
        values[i] = was;
        const double numeric = (above - below) / (2.0 * h);
        CHECK(std::abs(numeric - analytic[i]) <= 1e-6 * std::max(1.0, std::abs(analytic[i])));
      }
    };
    check(x, dx);
    check(condition, dcondition);
    check(block.global_scale, gradient.global_scale);
    check(block.global_offset, gradient.global_offset);
    for (int step = 0; step < shape.steps(); ++step) {
      for (std::size_t l = 0; l < block.subnets[step].size(); ++l) {
        check(block.subnets[step][l].weight, gradient.subnets[step][l].weight);
        check(block.subnets[step][l].bias, gradient.subnets[step][l].bias);
      }
    }
  }
}

TEST_CASE("coupling: the shared scalar formulas are the reference's") {
  for (const auto clamp : {nn::ScaleClamp::tanh, nn::ScaleClamp::tanh_of_ratio, nn::ScaleClamp::atan}) {
    for (double s = -30.0; s <= 30.0; s += 0.37) {
      CAPTURE(s);
      const auto got = nn::clamp_scale(clamp, 1.9, s);
      CHECK(std::abs(got.value - reference_clamp(clamp, 1.9, s)) <= 1e-15 * 1.9 * 4);
      CHECK(std::abs(got.slope - reference_clamp_slope(clamp, 1.9, s)) <= 1e-14);
    }
  }
  for (double raw = -40.0; raw <= 60.0; raw += 0.7) {
    CAPTURE(raw);
    const auto got = nn::global_scale(raw);
    CHECK(std::abs(got.value - reference_global_scale(raw)) <= 1e-14 * std::max(1.0, raw));
    CHECK(std::abs(got.slope - reference_global_scale_slope(raw)) <= 1e-15);
  }
  CHECK(std::abs(nn::global_scale(2000.0f).value - 200.0f) <= 1e-4f);  // exp(1000) does not appear
  CHECK(std::abs(nn::global_scale(nn::kUnitGlobalScale).value - 1.0f) <= 1e-6f);
}

TEST_CASE("coupling: parameter counts are the papers'") {
  std::int64_t wide = 0, r18 = 0, cflow = 0;
  for (std::int64_t block = 0; block < 8; ++block) {
    for (const std::int64_t channels : {256, 512, 1024}) wide += nn::parameter_count(nn::fastflow_block(channels, block % 2 == 0 ? 3 : 1));
    for (const std::int64_t channels : {64, 128, 256}) r18 += nn::parameter_count(nn::fastflow_block(channels, 3));
    for (const std::int64_t channels : {512, 1024, 2048}) cflow += nn::parameter_count(nn::cflow_block(channels));
  }
  CHECK(wide == 41337856);
  CHECK(r18 == 4657408);
  CHECK(cflow == 81647616);
  CHECK(8 * nn::parameter_count(nn::differnet_block()) == 172077056);
}

TEST_CASE("coupling: packing is undone by unpacking, fillers are zero, pairs are neighbours") {
  int number = 0;
  for (const auto& [shape, at] : cases()) {
    ++number;
    CAPTURE(number);
    Random random(14, static_cast<std::uint64_t>(number));
    const ReferenceBlock block = random_block(shape, random);
    const nn::ParameterLayout layout = nn::parameter_layout(shape);
    const std::vector<float> packed = packed_parameters(block);
    CHECK(layout.total % 4 == 0);
    std::int64_t nonzero = 0;
    for (float p : packed) nonzero += p != 0.0f;
    CHECK(nonzero <= nn::parameter_count(shape));
    for (int step = 0; step < shape.steps(); ++step) {
      for (std::size_t l = 0; l < block.subnets[step].size(); ++l) {
        const ReferenceLayer& layer = block.subnets[step][l];
        std::vector<float> weight(layer.weight.size()), bias(layer.bias.size());
        REQUIRE(nn::unpack_layer(layout.layers[step][l], packed, {weight, bias}).ok());
        CHECK(Doubles(weight.begin(), weight.end()) == layer.weight);
        CHECK(Doubles(bias.begin(), bias.end()) == layer.bias);
      }
      const nn::LayerLayout& last = layout.layers[step][shape.layers - 1];
      CHECK(last.row(0) == 0);
      CHECK(last.row(shape.active(step)) == 1);
      std::vector<float> short_weight(1), bias(index_of(last.out));
      CHECK(nn::unpack_layer(last, packed, {short_weight, bias}).code() == Errc::shape_mismatch);
      CHECK(nn::pack_layer(last, {short_weight, bias}, std::span<float>(bias)).code() == Errc::shape_mismatch);
    }
  }
  const std::vector<std::int64_t> order{2, 0, 1}, twice{0, 1, 1}, outside{0, 1, 3};
  const auto packed = nn::pack_permutation(order);
  REQUIRE(packed.ok());
  CHECK(*packed == std::vector<std::int32_t>{2, 0, 1, 1, 2, 0});
  CHECK(nn::pack_permutation(twice).code() == Errc::invalid_argument);
  CHECK(nn::pack_permutation(outside).code() == Errc::invalid_argument);
}

TEST_CASE("coupling: shapes that make no sense are named") {
  const auto message = [](const nn::CouplingShape& s) { return nn::check_shape("test", s).message(); };
  nn::CouplingShape s = nn::fastflow_block(8, 3);
  CHECK(nn::check_shape("test", s).ok());
  s.channels = 1;
  CHECK(message(s).find("at least 2 channels") != std::string::npos);
  s = nn::fastflow_block(8, 3);
  s.kernels[1] = 5;
  CHECK(message(s).find("layer 1: expected kernel 1 or 3") != std::string::npos);
  s = nn::fastflow_block(8, 3, 0.0);
  CHECK(message(s).find("layer 0: expected at least 1 hidden") != std::string::npos);
  s = nn::fastflow_block(8, 3);
  s.alpha = std::nanf("");
  CHECK(message(s).find("alpha") != std::string::npos);
  s = nn::fastflow_block(8, 3);
  s.layers = 5;
  CHECK(message(s).find("1 to 4 subnet layers") != std::string::npos);
}

}  // namespace
}  // namespace norma::test
