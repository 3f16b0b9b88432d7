// nn/cross_scale_flow.hpp against the formulas of nn/cross_scale_types.hpp in double, one loop at a time.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <norma/core/random.hpp>
#include <norma/core/thread_pool.hpp>
#include <norma/nn/cross_scale_flow.hpp>
#include <norma/nn/training/optimisers.hpp>
#include <support/count_allocations.hpp>

namespace norma::test {
namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;
using nn::kScales;

std::size_t index_of(std::int64_t i) { return static_cast<std::size_t>(i); }

/// One map in double, channels last.
struct RefMap {
  Shape shape;
  Doubles values;
  explicit RefMap(Shape s = {}) : shape(s), values(index_of(s.count())) {}
  [[nodiscard]] double& at(std::int64_t y, std::int64_t x, std::int64_t c) { return values[index_of((y * shape.width + x) * shape.channels + c)]; }
  [[nodiscard]] double at(std::int64_t y, std::int64_t x, std::int64_t c) const {
    return values[index_of((y * shape.width + x) * shape.channels + c)];
  }
};
using RefSample = std::array<RefMap, kScales>;

struct RefBlock {
  nn::CrossScaleShape shape;
  std::array<std::vector<std::int64_t>, kScales> permutation;
  Doubles parameters;
};

RefMap ref_convolution(const RefMap& x, const nn::CrossScaleConvolution& c, const Doubles& parameters) {
  RefMap y(Shape{x.shape.height / c.stride, x.shape.width / c.stride, c.out});
  for (std::int64_t i = 0; i < y.shape.height; ++i) {
    for (std::int64_t j = 0; j < y.shape.width; ++j) {
      for (std::int64_t o = 0; o < c.out; ++o) {
        double sum = parameters[index_of(c.bias + o)];
        for (std::int64_t u = 0; u < c.kernel; ++u) {
          for (std::int64_t v = 0; v < c.kernel; ++v) {
            const std::int64_t iy = i * c.stride + u - c.kernel / 2, ix = j * c.stride + v - c.kernel / 2;
            if (iy < 0 || iy >= x.shape.height || ix < 0 || ix >= x.shape.width) continue;
            for (std::int64_t k = 0; k < c.in; ++k) {
              sum += parameters[index_of(c.weight + ((o * c.in + k) * c.kernel + u) * c.kernel + v)] * x.at(iy, ix, k);
            }
          }
        }
        y.at(i, j, o) = sum;
      }
    }
  }
  return y;
}
void add_to(RefMap& a, const RefMap& b) {
  for (std::size_t i = 0; i < a.values.size(); ++i) a.values[i] += b.values[i];
}
/// Bilinear, twice the size, corners not aligned: an output lies a quarter of a position beside one of the two sources around it.
RefMap ref_twice(const RefMap& x) {
  RefMap y(Shape{2 * x.shape.height, 2 * x.shape.width, x.shape.channels});
  const auto source = [](std::int64_t out, std::int64_t size, std::int64_t& low, std::int64_t& high) {
    const double at = std::max(0.0, (static_cast<double>(out) + 0.5) / 2.0 - 0.5);
    low = static_cast<std::int64_t>(at);
    high = std::min(low + 1, size - 1);
    return at - static_cast<double>(low);
  };
  for (std::int64_t i = 0; i < y.shape.height; ++i) {
    for (std::int64_t j = 0; j < y.shape.width; ++j) {
      std::int64_t top = 0, bottom = 0, left = 0, right = 0;
      const double v = source(i, x.shape.height, top, bottom), u = source(j, x.shape.width, left, right);
      for (std::int64_t c = 0; c < x.shape.channels; ++c) {
        y.at(i, j, c) =
            (1 - v) * ((1 - u) * x.at(top, left, c) + u * x.at(top, right, c)) + v * ((1 - u) * x.at(bottom, left, c) + u * x.at(bottom, right, c));
      }
    }
  }
  return y;
}
RefSample ref_subnet(const RefBlock& block, int step, const RefSample& x) {
  const nn::CrossScaleSubnet n = nn::cross_scale_subnet(block.shape, step);
  const auto run = [&](int convolution, const RefMap& from) {
    return ref_convolution(from, n.convolutions[index_of(convolution)], block.parameters);
  };
  RefSample h, o;
  for (int l = 0; l < 3; ++l) {
    h[index_of(l)] = run(nn::cross_scale_in(l), x[index_of(l)]);
    for (double& v : h[index_of(l)].values) v = v < 0.0 ? 0.1 * v : v;
  }
  for (int l = 0; l < 3; ++l) o[index_of(l)] = run(nn::cross_scale_same(l), h[index_of(l)]);
  add_to(o[0], run(nn::cross_scale_up(1), ref_twice(h[1])));
  add_to(o[1], run(nn::cross_scale_up(2), ref_twice(h[2])));
  add_to(o[1], run(nn::cross_scale_down(0), h[0]));
  add_to(o[2], run(nn::cross_scale_down(1), h[1]));
  for (int l = 0; l < 3; ++l) {
    for (double& v : o[index_of(l)].values) v *= block.parameters[index_of(n.gamma + l)];
  }
  return o;
}
/// Channels [first, first + count).
RefSample channels_of(const RefSample& x, std::int64_t first, std::int64_t count) {
  RefSample part;
  for (std::size_t l = 0; l < 3; ++l) {
    part[l] = RefMap(Shape{x[l].shape.height, x[l].shape.width, count});
    for (std::int64_t y = 0; y < x[l].shape.height; ++y) {
      for (std::int64_t j = 0; j < x[l].shape.width; ++j) {
        for (std::int64_t c = 0; c < count; ++c) part[l].at(y, j, c) = x[l].at(y, j, first + c);
      }
    }
  }
  return part;
}
/// One sample through all blocks; returns its log-determinant.
double ref_forward(const std::vector<RefBlock>& blocks, RefSample& x) {
  double logdet = 0.0;
  for (const RefBlock& block : blocks) {
    const std::int64_t channels = block.shape.channels, first = channels / 2;
    RefSample mixed = x;
    for (std::size_t l = 0; l < 3; ++l) {
      for (std::int64_t p = 0; p < x[l].shape.positions(); ++p) {
        for (std::int64_t c = 0; c < channels; ++c) {
          mixed[l].values[index_of(p * channels + c)] = x[l].values[index_of(p * channels + block.permutation[l][index_of(c)])];
        }
      }
    }
    for (int step = 0; step < 2; ++step) {
      const std::int64_t begin = step == 0 ? 0 : first, count = step == 0 ? first : channels - first;
      const RefSample st = ref_subnet(block, step, step == 0 ? channels_of(mixed, first, channels - first) : channels_of(mixed, 0, first));
      const double alpha = static_cast<double>(block.shape.alpha);
      for (std::size_t l = 0; l < 3; ++l) {
        for (std::int64_t p = 0; p < mixed[l].shape.positions(); ++p) {
          for (std::int64_t c = 0; c < count; ++c) {
            const double bounded = 0.636 * alpha * std::atan(st[l].values[index_of(p * 2 * count + c)] / alpha);
            double& v = mixed[l].values[index_of(p * channels + begin + c)];
            v = v * std::exp(bounded) + st[l].values[index_of(p * 2 * count + count + c)];
            logdet += bounded;
          }
        }
      }
    }
    for (auto& map : mixed) {
      for (double& v : map.values) v = std::clamp(v, -1e6, 1e6);
    }
    x = mixed;
  }
  return logdet;
}

/// A flow with random numbers, and the same numbers in double.
struct Case {
  Case(std::vector<nn::CrossScaleShape> shapes, Shape finest_, std::int64_t batch_, double gamma, std::uint64_t seed,
       InstructionSet set = instruction_set())
      : finest(finest_), batch(batch_) {
    Random random(seed);
    std::vector<nn::CrossScaleBlock> given;
    for (const nn::CrossScaleShape& s : shapes) {
      RefBlock block{s, {}, Doubles(index_of(nn::parameter_count(s)))};
      for (auto& p : block.permutation) p = sample_without_replacement(s.channels, s.channels, random);
      for (int step = 0; step < 2; ++step) {
        const nn::CrossScaleSubnet n = nn::cross_scale_subnet(s, step);
        for (const auto& c : n.convolutions) {
          const double width = 1.0 / std::sqrt(static_cast<double>(c.fan_in()));
          // Numbers that a float holds: both sides start from the same ones.
          for (std::int64_t i = c.weight; i < c.bias + c.out; ++i) block.parameters[index_of(i)] = static_cast<float>(random.uniform(-width, width));
        }
        for (int l = 0; l < 3; ++l) {
          block.parameters[index_of(n.gamma + l)] = gamma == 0.0 ? 0.0 : static_cast<float>(gamma * random.uniform(0.5, 1.5));
        }
      }
      parameters.insert(parameters.end(), block.parameters.begin(), block.parameters.end());
      blocks.push_back(std::move(block));
    }
    for (const RefBlock& block : blocks) { given.push_back({block.shape, {block.permutation[0], block.permutation[1], block.permutation[2]}}); }
    auto made = nn::CrossScaleFlow::create(given, finest, nn::FlowUse::training, set);
    REQUIRE_MESSAGE(made.ok(), made.status().message());
    flow = *std::move(made);
    REQUIRE(flow.parameters() == static_cast<std::int64_t>(parameters.size()));
    prepare();
    x = draw(random);
    dz = draw(random);
    for (std::int64_t n = 0; n < batch; ++n) dlogdet.push_back(static_cast<float>(random.normal()));
  }
  [[nodiscard]] std::array<Floats, 3> draw(Random& random) const {
    std::array<Floats, 3> values;
    for (int l = 0; l < 3; ++l) {
      values[index_of(l)].resize(index_of(batch * nn::scale_shape(finest, l).count()));
      for (float& v : values[index_of(l)]) v = static_cast<float>(random.normal());
    }
    return values;
  }
  void prepare(Parallel parallel = {}) {
    Buffer<std::byte> memory(static_cast<std::int64_t>(flow.scratch_bytes(nn::FlowPass::prepare, 1, parallel.workers())));
    Arena arena(memory.span());
    REQUIRE(flow.prepare(parameters, parallel, arena).ok());
  }
  template <class T>
  [[nodiscard]] nn::ScaleViews<T> views(std::array<Floats, 3>& values, std::int64_t first, std::int64_t count) const {
    const auto level = [&](int l) {
      const Shape s = nn::scale_shape(finest, l);
      return TensorView<T>(values[index_of(l)].data() + first * s.count(), count, s);
    };
    return {level(0), level(1), level(2)};
  }
  template <class T>
  [[nodiscard]] nn::ScaleViews<T> views(std::array<Floats, 3>& values) const {
    return views<T>(values, 0, batch);
  }
  [[nodiscard]] RefSample sample(const std::array<Floats, 3>& values, std::int64_t n) const {
    RefSample s;
    for (int l = 0; l < 3; ++l) {
      s[index_of(l)] = RefMap(nn::scale_shape(finest, l));
      const std::int64_t count = s[index_of(l)].shape.count();
      for (std::int64_t i = 0; i < count; ++i) s[index_of(l)].values[index_of(i)] = values[index_of(l)][index_of(n * count + i)];
    }
    return s;
  }
  /// sum dz z + sum dlogdet logdet, in double; the sample n alone where n >= 0.
  [[nodiscard]] double loss(const std::vector<RefBlock>& at, const std::array<Floats, 3>& input, std::int64_t only = -1) const {
    double sum = 0.0;
    for (std::int64_t n = 0; n < batch; ++n) {
      if (only >= 0 && n != only) continue;
      RefSample s = sample(input, n);
      sum += loss_of(at, s, n);
    }
    return sum;
  }
  [[nodiscard]] double loss_of(const std::vector<RefBlock>& at, RefSample s, std::int64_t n) const {
    double sum = static_cast<double>(dlogdet[index_of(n)]) * ref_forward(at, s);
    const RefSample weights = sample(dz, n);
    for (std::size_t l = 0; l < 3; ++l) {
      for (std::size_t i = 0; i < s[l].values.size(); ++i) sum += s[l].values[i] * weights[l].values[i];
    }
    return sum;
  }

  Shape finest;
  std::int64_t batch;
  std::vector<RefBlock> blocks;
  Floats parameters;
  nn::CrossScaleFlow flow;
  std::array<Floats, 3> x, dz;
  Floats dlogdet;
};

struct Outputs {
  std::array<Floats, 3> z, back, dx;
  Floats logdet, gradients;
};

Outputs run_case(Case& c, Parallel parallel = {}) {
  Outputs out{c.x, c.x, c.x, Floats(index_of(c.batch)), Floats(c.parameters.size(), 7.0f)};
  const auto arena_for = [&](nn::FlowPass pass) {  // exactly what the call asks for
    return Buffer<std::byte>(static_cast<std::int64_t>(c.flow.scratch_bytes(pass, c.batch, parallel.workers())));
  };
  {
    Buffer<std::byte> memory = arena_for(nn::FlowPass::forward);
    Arena arena(memory.span());
    const Status status = c.flow.forward(c.views<const float>(c.x), c.views<float>(out.z), out.logdet, parallel, arena);
    REQUIRE_MESSAGE(status.ok(), status.message());
  }
  {
    Buffer<std::byte> memory = arena_for(nn::FlowPass::inverse);
    Arena arena(memory.span());
    const Status status = c.flow.inverse(c.views<const float>(out.z), c.views<float>(out.back), parallel, arena);
    REQUIRE_MESSAGE(status.ok(), status.message());
  }
  {
    Buffer<std::byte> memory = arena_for(nn::FlowPass::backward);
    Arena arena(memory.span());
    const Status status =
        c.flow.backward(c.views<const float>(out.z), c.views<const float>(c.dz), c.dlogdet, out.gradients, c.views<float>(out.dx), parallel, arena);
    REQUIRE_MESSAGE(status.ok(), status.message());
  }
  return out;
}

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

struct Named {
  const char* name;
  std::vector<nn::CrossScaleShape> shapes;
  Shape finest;
  std::int64_t batch;
  double gamma;
};
std::vector<Named> all_cases() {
  return {
      {"toy pyramid", {{4, 5, 3}, {4, 5, 3}}, {8, 8, 4}, 3, 0.5},
      {"odd channels, kernels 3 and 5", {{5, 6, 3}, {5, 3, 5}}, {8, 4, 5}, 2, 0.5},
      {"kernels 1 and 7, smallest map", {{3, 4, 1}, {3, 2, 7}}, {4, 4, 3}, 1, 0.5},
      {"Winograd's algorithm", {{33, 17, 3}}, {8, 8, 33}, 2, 0.5},
      {"several chunks of samples", {{4, 3, 3}}, {36, 32, 4}, 3, 0.5},
      {"two channels", {{2, 3, 3}, {2, 3, 3}}, {8, 8, 2}, 2, 1.0},
  };
}

TEST_CASE("a cross-scale flow is its formula, and its inverse undoes it") {
  for (const Named& named : all_cases()) {
    CAPTURE(named.name);
    Case c(named.shapes, named.finest, named.batch, named.gamma, 17);
    const Outputs out = run_case(c);
    // A block's outputs are exp(L) x + t with |L| < 2 here; two blocks of at most 12 roundings each, Winograd's 1e-6 included.
    double worst = 0.0, back = 0.0, largest = 1.0;
    for (std::int64_t n = 0; n < c.batch; ++n) {
      RefSample s = c.sample(c.x, n);
      const double logdet = ref_forward(c.blocks, s);
      CHECK(std::abs(static_cast<double>(out.logdet[index_of(n)]) - logdet) <= 1e-5 * static_cast<double>(nn::scale_dims(c.finest)));
      CHECK(std::abs(logdet) > 1e-3);  // there is something to see
      const RefSample got = c.sample(out.z, n), returned = c.sample(out.back, n), began = c.sample(c.x, n);
      for (std::size_t l = 0; l < 3; ++l) {
        for (std::size_t i = 0; i < s[l].values.size(); ++i) {
          largest = std::max(largest, std::abs(s[l].values[i]));
          // max() would drop a NaN.
          worst = std::abs(got[l].values[i] - s[l].values[i]) <= worst ? worst : std::abs(got[l].values[i] - s[l].values[i]);
          back = std::abs(returned[l].values[i] - began[l].values[i]) <= back ? back : std::abs(returned[l].values[i] - began[l].values[i]);
        }
      }
    }
    CHECK(worst <= 4e-6 * largest);
    CHECK(back <= 1e-5);
  }
}

TEST_CASE("gradients are the finite differences of the formula in double, for every kind of parameter and for the input") {
  for (const Named& named : all_cases()) {
    if (named.finest.height > 16) continue;
    CAPTURE(named.name);
    Case c(named.shapes, named.finest, named.batch, named.gamma, 5);
    const Outputs out = run_case(c);
    Random random(99);
    constexpr double h = 1e-5;  // differences in double: error about h^2 and 1e-11 / h, far below the bound
    for (std::size_t b = 0; b < c.blocks.size(); ++b) {
      const std::int64_t offset = c.flow.parameter_offset(static_cast<std::int64_t>(b));
      for (int step = 0; step < 2; ++step) {
        const nn::CrossScaleSubnet n = nn::cross_scale_subnet(c.blocks[b].shape, step);
        const auto check = [&](std::int64_t first, std::int64_t count, std::int64_t samples, const std::string& what) {
          CAPTURE(what);
          double scale = 1e-2;
          for (std::int64_t i = first; i < first + count; ++i)
            scale = std::max(scale, std::abs(static_cast<double>(out.gradients[index_of(offset + i)])));
          for (std::int64_t k = 0; k < samples; ++k) {
            const std::int64_t i = samples >= count ? first + k % count : first + random.below(count);
            std::vector<RefBlock> moved = c.blocks;
            moved[b].parameters[index_of(i)] += h;
            const double up = c.loss(moved, c.x);
            moved[b].parameters[index_of(i)] -= 2 * h;
            const double difference = (up - c.loss(moved, c.x)) / (2 * h);
            // Sums of a few hundred products of recomputed activations, each within 1e-6 of its size: 2e-5 of the largest gradient of the kind.
            // A leaky ReLU may bend inside h: rare, and at most its slope's share of one position.
            CHECK(std::abs(static_cast<double>(out.gradients[index_of(offset + i)]) - difference) <= 2e-5 * scale + 2e-6);
          }
        };
        for (int k = 0; k < nn::kCrossScaleConvolutions; ++k) {
          const auto& conv = n.convolutions[index_of(k)];
          const std::string what = "block " + std::to_string(b) + " step " + std::to_string(step) + " " + std::string(nn::cross_scale_name(k));
          check(conv.weight, conv.weights(), 3, what + " weight");
          check(conv.bias, conv.out, 2, what + " bias");
        }
        check(n.gamma, kScales, kScales, "gamma");
      }
    }
    for (int l = 0; l < 3; ++l) {
      const std::int64_t count = nn::scale_shape(c.finest, l).count();
      double scale = 1.0;
      for (float d : out.dx[index_of(l)]) scale = std::max(scale, std::abs(static_cast<double>(d)));
      for (int k = 0; k < 8; ++k) {
        const std::int64_t n = random.below(c.batch), i = random.below(count);
        RefSample up = c.sample(c.x, n), down = up;
        up[index_of(l)].values[index_of(i)] += h;
        down[index_of(l)].values[index_of(i)] -= h;
        const double difference = (c.loss_of(c.blocks, up, n) - c.loss_of(c.blocks, down, n)) / (2 * h);
        CHECK(std::abs(static_cast<double>(out.dx[index_of(l)][index_of(n * count + i)]) - difference) <= 2e-5 * scale);
      }
    }
  }
}

TEST_CASE("the log-determinant is that of the Jacobian") {
  // The formula in double against its numeric Jacobian; the flow against the formula is above.
  Case c({{4, 5, 3}, {4, 4, 5}}, {4, 4, 4}, 1, 0.8, 3);
  const RefSample x = c.sample(c.x, 0);
  RefSample at = x;
  const double logdet = ref_forward(c.blocks, at);
  const std::int64_t dims = nn::scale_dims(c.finest);
  std::vector<Doubles> jacobian(index_of(dims), Doubles(index_of(dims)));
  const auto flat = [](const RefSample& s) {
    Doubles all;
    for (const auto& map : s) all.insert(all.end(), map.values.begin(), map.values.end());
    return all;
  };
  constexpr double h = 1e-5;
  std::int64_t column = 0;
  for (std::size_t l = 0; l < 3; ++l) {
    for (std::size_t i = 0; i < x[l].values.size(); ++i, ++column) {
      RefSample up = x, down = x;
      up[l].values[i] += h;
      down[l].values[i] -= h;
      ref_forward(c.blocks, up);
      ref_forward(c.blocks, down);
      const Doubles a = flat(up), b = flat(down);
      for (std::size_t r = 0; r < a.size(); ++r) jacobian[r][index_of(column)] = (a[r] - b[r]) / (2 * h);
    }
  }
  double numeric = 0.0;  // Gaussian elimination with row pivots
  for (std::size_t k = 0; k < jacobian.size(); ++k) {
    std::size_t pivot = k;
    for (std::size_t r = k + 1; r < jacobian.size(); ++r) {
      if (std::abs(jacobian[r][k]) > std::abs(jacobian[pivot][k])) pivot = r;
    }
    std::swap(jacobian[k], jacobian[pivot]);
    numeric += std::log(std::abs(jacobian[k][k]));
    for (std::size_t r = k + 1; r < jacobian.size(); ++r) {
      const double factor = jacobian[r][k] / jacobian[k][k];
      for (std::size_t j = k; j < jacobian.size(); ++j) jacobian[r][j] -= factor * jacobian[k][j];
    }
  }
  CHECK(std::abs(logdet) > 0.1);
  CHECK(std::abs(numeric - logdet) <= 1e-5 * std::abs(logdet));
}

TEST_CASE("with gamma 0 a flow is its permutations, and the log-determinant is 0, exactly") {
  Case c({{6, 5, 3}, {6, 4, 5}}, {8, 8, 6}, 2, 0.0, 8);
  const Outputs out = run_case(c);
  for (std::int64_t n = 0; n < c.batch; ++n) {
    CHECK(out.logdet[index_of(n)] == 0.0f);
    const RefSample x = c.sample(c.x, n), z = c.sample(out.z, n);
    for (std::size_t l = 0; l < 3; ++l) {
      for (std::int64_t p = 0; p < x[l].shape.positions(); ++p) {
        for (std::int64_t i = 0; i < 6; ++i) {
          const std::int64_t from = c.blocks[0].permutation[l][index_of(c.blocks[1].permutation[l][index_of(i)])];
          CHECK(z[l].values[index_of(p * 6 + i)] == x[l].values[index_of(p * 6 + from)]);
        }
      }
    }
  }
  for (std::size_t l = 0; l < 3; ++l) CHECK(same_bits(out.back[l], c.x[l]));
  // The first step of a training moves the gammas alone.
  for (std::size_t b = 0; b < 2; ++b) {
    for (int step = 0; step < 2; ++step) {
      const nn::CrossScaleSubnet n = nn::cross_scale_subnet(c.blocks[b].shape, step);
      const float* g = out.gradients.data() + c.flow.parameter_offset(static_cast<std::int64_t>(b));
      for (const auto& conv : n.convolutions) {
        CHECK(std::all_of(g + conv.weight, g + conv.bias + conv.out, [](float v) { return v == 0.0f; }));
      }
      for (int l = 0; l < 3; ++l) CHECK(std::abs(g[n.gamma + l]) > 1e-3f);
    }
  }
}

TEST_CASE("parameters are counted as the paper's code has them") {
  constexpr nn::CrossScaleShape k3{304, 1024, 3}, k5{304, 1024, 5};
  CHECK(nn::cross_scale_subnet(k3, 0).end == 23819347);
  CHECK(nn::cross_scale_subnet(k5, 0).end == 66155603);
  CHECK(nn::parameter_count(k3) == 2 * 23819347);
  CHECK(nn::parameter_count(nn::kCsFlowBlocks) == 275227288);
  CHECK(nn::scale_dims({24, 24, 304}) == 229824);
  // Every number belongs to one piece.
  constexpr nn::CrossScaleShape odd{5, 3, 3};
  std::int64_t at = 0;
  for (int step = 0; step < 2; ++step) {
    const nn::CrossScaleSubnet n = nn::cross_scale_subnet(odd, step);
    for (const auto& conv : n.convolutions) {
      CHECK(conv.weight == at);
      CHECK(conv.bias == at + conv.out * conv.in * 9);
      at = conv.bias + conv.out;
    }
    CHECK(n.gamma == at);
    at += 3;
    CHECK(n.end == at);
  }
  static_assert(nn::cross_scale_scratch_bytes(nn::kCsFlowBlocks, {24, 24, 304}, nn::FlowPass::forward, 1, 1) < (64u << 20));
}

TEST_CASE("a sample's numbers depend on no other sample, and nothing depends on the number of workers") {
  for (const Named& named : all_cases()) {
    CAPTURE(named.name);
    Case c(named.shapes, named.finest, named.batch, named.gamma, 23);
    const Outputs out = run_case(c);
    ThreadPool pool(3);
    c.prepare(pool.parallel());
    const Outputs threaded = run_case(c, pool.parallel());
    for (std::size_t l = 0; l < 3; ++l) {
      CHECK(same_bits(out.z[l], threaded.z[l]));
      CHECK(same_bits(out.back[l], threaded.back[l]));
      CHECK(same_bits(out.dx[l], threaded.dx[l]));
    }
    CHECK(same_bits(out.logdet, threaded.logdet));
    CHECK(same_bits(out.gradients, threaded.gradients));
    for (std::int64_t n = 0; n < c.batch; ++n) {
      std::array<Floats, 3> z = c.x;
      Floats logdet(1);
      Buffer<std::byte> memory(static_cast<std::int64_t>(c.flow.scratch_bytes(nn::FlowPass::forward, 1, 1)));
      Arena arena(memory.span());
      REQUIRE(c.flow.forward(c.views<const float>(c.x, n, 1), c.views<float>(z, n, 1), logdet, {}, arena).ok());
      CHECK(logdet[0] == out.logdet[index_of(n)]);
      for (int l = 0; l < 3; ++l) {
        const auto count = nn::scale_shape(c.finest, l).count();
        CHECK(std::memcmp(z[index_of(l)].data() + n * count, out.z[index_of(l)].data() + n * count, index_of(count) * sizeof(float)) == 0);
      }
    }
  }
}

TEST_CASE("every instruction set computes the same flow") {
  for (const InstructionSet set : {InstructionSet::generic, InstructionSet::avx2, InstructionSet::avx512}) {
    if (!available(set)) continue;
    Case c({{33, 20, 3}, {33, 17, 5}}, {8, 8, 33}, 1, 0.5, 4, set), d({{33, 20, 3}, {33, 17, 5}}, {8, 8, 33}, 1, 0.5, 4);
    const Outputs own = run_case(c), other = run_case(d);
    for (std::size_t i = 0; i < own.z[0].size(); ++i) CHECK(std::abs(own.z[0][i] - other.z[0][i]) <= 2e-5f);
    for (std::size_t i = 0; i < own.gradients.size(); ++i) {
      CHECK(std::abs(own.gradients[i] - other.gradients[i]) <= 1e-4f * std::max(1.0f, std::abs(other.gradients[i])));
    }
  }
}

TEST_CASE("outputs are limited to 1e6, and a limited number passes no gradient") {
  Case c({{4, 3, 3}}, {4, 4, 4}, 1, 0.3, 6);
  c.x[0][5] = 4e6f;
  const Outputs out = run_case(c);
  RefSample s = c.sample(c.x, 0);
  ref_forward(c.blocks, s);
  std::int64_t limited = 0;
  for (std::size_t i = 0; i < out.z[0].size(); ++i) {
    CHECK(std::abs(out.z[0][i]) <= 1e6f);
    const bool here = std::abs(out.z[0][i]) == 1e6f;
    CHECK(here == (std::abs(s[0].values[i]) == 1e6));
    limited += here ? 1 : 0;
  }
  CHECK(limited > 0);
  // With gradients only at the limited numbers, nothing arrives.
  for (int l = 0; l < 3; ++l) {
    for (std::size_t i = 0; i < out.z[index_of(l)].size(); ++i) c.dz[index_of(l)][i] = std::abs(out.z[index_of(l)][i]) == 1e6f ? 1.0f : 0.0f;
  }
  c.dlogdet = {0.0f};
  const Outputs again = run_case(c);
  for (float g : again.gradients) CHECK(g == 0.0f);
  for (float d : again.dx[0]) CHECK(d == 0.0f);
}

TEST_CASE("a NaN stays in its sample") {
  Case c({{4, 5, 3}, {4, 5, 3}}, {8, 8, 4}, 3, 0.5, 11);
  const Outputs clean = run_case(c);
  c.x[1][index_of(nn::scale_shape(c.finest, 1).count() + 3)] = std::numeric_limits<float>::quiet_NaN();
  const Outputs out = run_case(c);
  CHECK(std::isnan(out.logdet[1]));
  CHECK(out.logdet[0] == clean.logdet[0]);
  CHECK(out.logdet[2] == clean.logdet[2]);
  for (int l = 0; l < 3; ++l) {
    const auto count = nn::scale_shape(c.finest, l).count();
    for (const std::int64_t n : {0, 2}) {
      CHECK(std::memcmp(out.z[index_of(l)].data() + n * count, clean.z[index_of(l)].data() + n * count, index_of(count) * sizeof(float)) == 0);
    }
  }
}

TEST_CASE("calls allocate nothing and say what is wrong") {
  Case c({{4, 5, 3}}, {8, 8, 4}, 2, 0.5, 1);
  std::array<Floats, 3> z = c.x, dx = c.x;
  Floats logdet(2), gradients(c.parameters.size());
  Buffer<std::byte> memory(
      static_cast<std::int64_t>(std::max(c.flow.scratch_bytes(nn::FlowPass::backward, 2, 1), c.flow.scratch_bytes(nn::FlowPass::prepare, 2, 1))));
  Arena arena(memory.span());
  const auto x = c.views<const float>(c.x);
  const auto to = c.views<float>(z);
  const auto before = allocation_count();
  CHECK(c.flow.prepare(c.parameters, {}, arena).ok());
  CHECK(c.flow.forward(x, to, logdet, {}, arena).ok());
  CHECK(c.flow.inverse(to, c.views<float>(dx), {}, arena).ok());
  CHECK(c.flow.backward(to, x, {}, gradients, {}, {}, arena).ok());
  CHECK(allocation_count() == before);

  const auto message = [](const Status& status) { return std::string(status.message()); };
  CHECK(message(c.flow.prepare(std::span<const float>(c.parameters).first(3), {}, arena)) ==
        "nn::CrossScaleFlow::prepare: parameters: expected " + std::to_string(c.parameters.size()) + " numbers, found 3");
  auto wrong = x;
  wrong[1].height = 2;
  CHECK(message(c.flow.forward(wrong, to, logdet, {}, arena)) ==
        "nn::CrossScaleFlow::forward: x, level 1: expected [2, 4, 4, 4], found [2, 2, 4, 4]");
  Arena none;
  CHECK(c.flow.forward(x, to, logdet, {}, none).code() == Errc::out_of_memory);
  CHECK(c.flow.forward(x, to, std::span<float>(logdet).first(1), {}, arena).code() == Errc::shape_mismatch);

  const std::vector<std::int64_t> order = {0, 1, 2, 3}, twice = {0, 1, 1, 3};
  const auto create = [&](nn::CrossScaleShape s, Shape finest, const std::vector<std::int64_t>& p) {
    const nn::CrossScaleBlock block{s, {order, p, order}};
    return nn::CrossScaleFlow::create({&block, 1}, finest).status();
  };
  CHECK(create({4, 5, 3}, {8, 8, 4}, order).ok());
  CHECK(message(create({4, 5, 3}, {8, 6, 4}, order)) ==
        "nn::CrossScaleFlow::create: expected a finest map with sides that are multiples of 4, found 8 x 6");
  CHECK(message(create({4, 5, 4}, {8, 8, 4}, order)) == "nn::CrossScaleFlow::create: block 0: expected kernel 1, 3, 5 or 7, found 4");
  CHECK(create({4, 0, 3}, {8, 8, 4}, order).code() == Errc::invalid_argument);
  CHECK(create({1, 5, 3}, {8, 8, 1}, order).code() == Errc::invalid_argument);
  CHECK(create({4, 5, 3}, {8, 8, 6}, order).code() == Errc::shape_mismatch);
  CHECK(create({4, 5, 3}, {8, 8, 4}, twice).code() == Errc::invalid_argument);
  CHECK(create({4, 5, 3}, {8, 8, 4}, {0, 1}).code() == Errc::shape_mismatch);
  CHECK(nn::CrossScaleFlow::create({}, {8, 8, 4}).status().code() == Errc::invalid_argument);

  const nn::CrossScaleBlock block{{4, 5, 3}, {order, order, order}};
  auto inference = *nn::CrossScaleFlow::create({&block, 1}, {8, 8, 4});
  CHECK(inference.forward(x, to, logdet, {}, arena).code() == Errc::not_fitted);
  CHECK(inference.prepare(c.parameters, {}, arena).ok());
  CHECK(inference.forward(x, to, logdet, {}, arena).ok());
  CHECK(inference.backward(to, x, {}, gradients, {}, {}, arena).code() == Errc::unsupported);
}

TEST_CASE("a flow learns a density that a Gaussian cannot") {
  // Every position of every level: two half moons, independently. The best Gaussian's mean negative log-likelihood per position is
  // log(2 pi) + 1 + log det(covariance) / 2.
  constexpr Shape finest{8, 8, 2};
  constexpr std::int64_t batch = 8;
  const std::vector<nn::CrossScaleShape> shapes(4, nn::CrossScaleShape{2, 16, 1});
  Case c(shapes, finest, batch, 0.0, 2);
  auto adam = *nn::Adam::create(c.flow.parameters(), {.learning_rate = 5e-3f, .epsilon = 1e-4f});
  Random random(4);
  const auto moons = [&](std::array<Floats, 3>& to) {
    for (auto& level : to) {
      for (std::size_t i = 0; i < level.size(); i += 2) {
        const double angle = std::numbers::pi * random.uniform();
        const bool upper = random.uniform() < 0.5;
        level[i] = static_cast<float>((upper ? std::cos(angle) : 1.0 - std::cos(angle)) - 0.5 + 0.05 * random.normal());
        level[i + 1] = static_cast<float>((upper ? std::sin(angle) : 0.5 - std::sin(angle)) - 0.25 + 0.05 * random.normal());
      }
    }
  };
  std::array<Floats, 3> x = c.x, z = c.x;
  Floats logdet(index_of(batch)), gradients(c.parameters.size());
  Buffer<std::byte> memory(static_cast<std::int64_t>(c.flow.scratch_bytes(nn::FlowPass::backward, batch, 1)));
  const auto dims = static_cast<double>(nn::scale_dims(finest));
  const Floats slope(index_of(batch), static_cast<float>(-1.0 / (batch * dims)));
  const auto likelihood = [&] {  // mean over samples, per position, constants included
    Arena arena(memory.span());
    REQUIRE(c.flow.forward(c.views<const float>(x), c.views<float>(z), logdet, {}, arena).ok());
    double sum = 0.0;
    for (const auto& level : z) {
      for (float v : level) sum += 0.5 * static_cast<double>(v) * static_cast<double>(v) + 0.5 * std::log(2.0 * std::numbers::pi);
    }
    for (float l : logdet) sum -= static_cast<double>(l);
    return sum / (batch * dims / 2.0);
  };
  for (int step = 0; step < 400; ++step) {
    moons(x);
    likelihood();
    std::array<Floats, 3> dz = z;
    for (auto& level : dz) {
      for (float& v : level) v *= static_cast<float>(1.0 / (batch * dims));
    }
    Arena arena(memory.span());
    REQUIRE(c.flow.backward(c.views<const float>(z), c.views<const float>(dz), slope, gradients, {}, {}, arena).ok());
    nn::clip_gradient_norm(gradients, 1.0);
    adam.step(c.parameters, gradients, 5e-3f);
    c.prepare();
  }
  moons(x);
  const double learnt = likelihood();
  double mean[2] = {}, square[3] = {}, count = 0.0;
  for (const auto& level : x) {
    for (std::size_t i = 0; i < level.size(); i += 2) {
      const double a = static_cast<double>(level[i]), b = static_cast<double>(level[i + 1]);
      mean[0] += a, mean[1] += b, square[0] += a * a, square[1] += b * b, square[2] += a * b, count += 1.0;
    }
  }
  const double va = square[0] / count - mean[0] / count * mean[0] / count, vb = square[1] / count - mean[1] / count * mean[1] / count;
  const double vab = square[2] / count - mean[0] / count * mean[1] / count;
  const double gaussian = std::log(2.0 * std::numbers::pi) + 1.0 + 0.5 * std::log(va * vb - vab * vab);
  CAPTURE(learnt);
  CAPTURE(gaussian);
  CHECK(learnt < gaussian - 0.2);
}

}  // namespace
}  // namespace norma::test
