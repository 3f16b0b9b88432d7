/// \file
/// Means, covariances and their states on the device against two passes in double (test G1), and against the host's accumulator. For the emulation
/// and for a GPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include <norma/core/random.hpp>
#include <norma/cuda/covariance.cuh>
#include <norma/cuda/runtime.cuh>
#include <norma/linalg/covariance.hpp>

#include <device/covariance_reference.hpp>
#include <support/device.hpp>

namespace norma::test {

TEST_CASE("G1: sums on the device equal two passes in double, in every entry") {
  if (!has_device()) return;
  for (const std::int64_t d : {1, 2, 7, 8, 9, 31, 32, 33, 64, 100, 130, 216, 217}) {
    for (const std::int64_t n : {2, 3, 63, 64, 65, 130}) {
      if (d > 100 && n > 3 && n != 65) continue;  // the large ones once
      CAPTURE(d);
      CAPTURE(n);
      const std::int64_t positions = d > 100 ? 2 : 3;
      const auto x = gaussian_images(n, positions, d, 1.0, 7);
      DeviceState state(positions, d);
      state.observe(x, positions);
      CHECK(state.view.count == n);
      check_state(state, x, 1);
    }
  }
}

TEST_CASE("G1: means ten thousand and a million away change nothing") {
  if (!has_device()) return;
  for (const double offset : {1e4, 1e6}) {
    for (const std::int64_t d : {20, 220}) {
      CAPTURE(offset);
      CAPTURE(d);
      const auto x = gaussian_images(100, 2, d, offset, 8);
      DeviceState state(2, d);
      state.observe(x, 2);
      check_state(state, x, 1);
    }
  }
}

TEST_CASE("G1: images in an order that drifts") {
  if (!has_device()) return;
  for (const std::int64_t d : {8, 217}) {
    CAPTURE(d);
    auto x = gaussian_images(200, 1, d, 0.0, 9);
    for (std::int64_t r = 64; r < x.rows(); ++r) {  // the first batch knows nothing of the rest
      for (std::int64_t c = 0; c < d; ++c) x(r, c) += 500.0f;
    }
    DeviceState state(1, d);
    state.observe(x, 1);
    check_state(state, x, 1);
  }
}

TEST_CASE("constant features have products of exactly 0") {
  if (!has_device()) return;
  for (const std::int64_t d : {5, 217}) {
    CAPTURE(d);
    Matrix<float> x(70 * 2, d);
    for (std::int64_t r = 0; r < x.rows(); ++r) {
      for (std::int64_t c = 0; c < d; ++c) x(r, c) = 0.1f + static_cast<float>(c);
    }
    DeviceState state(2, d);
    state.observe(x, 2);
    for (const float product : state.products.read()) REQUIRE(std::abs(product) <= 1e-12f);
  }
}

TEST_CASE("batches of any size, one after the other") {
  if (!has_device()) return;
  for (const std::int64_t d : {6, 33, 220}) {
    CAPTURE(d);
    const auto x = gaussian_images(90, 2, d, 5.0, 10);
    DeviceState state(2, d);
    int batches = 0;
    for (std::int64_t first = 0, size = 1; first < 90; first += size, size = std::min<std::int64_t>(3 * size, 90 - first), ++batches) {
      state.observe(part_of(x, 2 * first, 2 * size), 2);
    }
    CHECK(state.view.count == 90);
    check_state(state, x, batches);
  }
}

TEST_CASE("rows with gaps, and rows that start anywhere, give the same bits") {
  if (!has_device()) return;
  for (const std::int64_t d : {8, 12, 13, 220}) {
    CAPTURE(d);
    const auto x = gaussian_images(40, 2, d, 1.0, 11);
    DeviceState dense(2, d);
    dense.observe(x, 2);
    for (const std::int64_t gap : {1, 4}) {
      for (const std::int64_t shift : {0, 1}) {
        CAPTURE(gap);
        CAPTURE(shift);
        const std::int64_t stride = d + gap;
        std::vector<float> spread(static_cast<std::size_t>(x.rows() * stride + shift), std::numeric_limits<float>::quiet_NaN());
        for (std::int64_t r = 0; r < x.rows(); ++r) std::ranges::copy(x.view().row(r), spread.begin() + r * stride + shift);
        const DeviceArray<float> on_device(spread);
        DeviceState state(2, d);
        state.observe(MatrixView<const float>(on_device.data() + shift, x.rows(), d, stride));
        CHECK(same_bits(state.products.read(), dense.products.read()));
        CHECK(same_bits(state.mean.read(), dense.mean.read()));
      }
    }
  }
}

TEST_CASE("two states merged equal one, in either order, and with itself a state counts twice") {
  if (!has_device()) return;
  for (const std::int64_t d : {5, 40, 220}) {
    const std::int64_t n = d > 100 ? 40 : 130;
    const auto x = gaussian_images(n, 2, d, 5.0, 12);
    for (const std::int64_t split : {std::int64_t{1}, std::int64_t{20}, n - 1}) {
      CAPTURE(d);
      CAPTURE(split);
      DeviceState first(2, d), second(2, d);
      first.observe(part_of(x, 0, 2 * split), 2);
      second.observe(part_of(x, 2 * split, 2 * (n - split)), 2);
      const TestStream stream;
      DeviceState turned(2, d);
      required(cuda::merge_gaussians(stream, turned.view, second.view));  // into nothing: a copy
      stream.wait();
      CHECK(turned.view.count == n - split);
      CHECK(same_bits(turned.products.read(), second.products.read()));
      required(cuda::merge_gaussians(stream, turned.view, first.view));
      required(cuda::merge_gaussians(stream, first.view, second.view));
      stream.wait();
      CHECK(first.view.count == n);
      check_state(first, x, 2);
      check_state(turned, x, 2);
    }
    DeviceState twice(2, d), none(2, d);
    twice.observe(part_of(x, 0, 2 * 20), 2);
    const TestStream stream;
    required(cuda::merge_gaussians(stream, twice.view, none.view));
    CHECK(twice.view.count == 20);
    required(cuda::merge_gaussians(stream, twice.view, twice.view));
    stream.wait();
    CHECK(twice.view.count == 40);
    Matrix<float> both(80, d);
    for (std::int64_t r = 0; r < 80; ++r) std::ranges::copy(x.view().row(r % 40), both.view().row(r).begin());
    check_state(twice, both, 2);
  }
}

TEST_CASE("the host continues from the device's state, and the device from the host's") {
  if (!has_device()) return;
  constexpr std::int64_t kDims = 21, kPositions = 3;
  const auto x = gaussian_images(100, kPositions, kDims, 2.0, 13);
  auto host = GaussianAccumulator::create(kPositions, kDims);
  required(host.status());
  required(host->add_batch(x.view().block(0, 64 * kPositions)));
  const GaussianSums sums = host->sums();
  DeviceState state(kPositions, kDims);
  state.mean.write({sums.mean.data, static_cast<std::size_t>(sums.mean.count())});
  state.products.write({sums.products.data, static_cast<std::size_t>(sums.products.count())});
  state.view.count = sums.count;
  state.observe(part_of(x, 64 * kPositions, 36 * kPositions), kPositions);
  check_state(state, x, 2);

  const auto mean = state.mean.read();
  const auto products = state.products.read();
  auto resumed =
      GaussianAccumulator::resume({state.view.count, {mean.data(), kPositions, kDims}, {products.data(), kPositions, packed_triangle(kDims)}});
  required(resumed.status());
  CHECK(resumed->count() == 100);
}

/// Two copies of operands and two batches at a time.
struct OtherStages {
  NORMA_HD constexpr cuda::GaussianPolicy operator()(int) const { return {.stages = 2, .batch_stages = 2, .threads = 64}; }
};

TEST_CASE("other copies in flight, other block shapes: the same bits") {
  if (!has_device()) return;
  for (const std::int64_t d : {37, 220}) {
    CAPTURE(d);
    const auto x = gaussian_images(d > 100 ? 70 : 140, 2, d, 1.0, 14);
    DeviceState usual(2, d), other(2, d);
    usual.observe(x, 2);
    const DeviceArray<float> on_device(values_of(x));
    Workspace workspace(cuda::gaussian_workspace_bytes(2, d, x.rows() / 2));
    const TestStream stream;
    required(cuda::observe_gaussians<OtherStages>(stream, other.view, {on_device.data(), x.rows(), d}, workspace.span()));
    stream.wait();
    CHECK(same_bits(usual.products.read(), other.products.read()));
    CHECK(same_bits(usual.mean.read(), other.mean.read()));

    const auto fitted = fit_on_device(x, 2, 0.01);
    DeviceModel model(2, d);
    required(cuda::fit_gaussians<OtherStages>(stream, {on_device.data(), x.rows(), d}, 0.01, model.view, workspace.span()));
    stream.wait();
    CHECK(same_bits(model.factor.read(), fitted.factor));
  }
}

TEST_CASE("a matrix of several blocks: any workspace that holds one position gives the same bits") {
  if (!has_device()) return;
  constexpr std::int64_t kDims = 217, kPositions = 3, kImages = 20;
  const auto x = gaussian_images(kImages, kPositions, kDims, 1.0, 15);
  const DeviceArray<float> on_device(values_of(x));
  const std::size_t whole = cuda::gaussian_workspace_bytes(kPositions, kDims, kImages);
  const auto fit = [&](std::size_t bytes, DeviceModel& model) {
    Workspace workspace(bytes);
    const TestStream stream;
    const Status fitted = cuda::fit_gaussians(stream, {on_device.data(), x.rows(), kDims}, 0.01, model.view, workspace.span());
    stream.wait();
    return fitted;
  };
  DeviceModel all(kPositions, kDims), some(kPositions, kDims), none(kPositions, kDims);
  required(fit(whole, all));
  for (const int positions : {1, 2}) {
    CAPTURE(positions);
    required(fit(whole / 3 * static_cast<std::size_t>(positions), some));
    CHECK(same_bits(all.factor.read(), some.factor.read()));
    CHECK(same_bits(all.mean.read(), some.mean.read()));
  }
  const Status refused = fit(whole / 3 - 1, none);
  CHECK(refused.code() == Errc::out_of_memory);
  CHECK(refused.message().find("cuda::fit_gaussians: the workspace is too small for one position, expected at least " + std::to_string(whole / 3)) ==
        0);
}

TEST_CASE("covariance of the rows of one matrix") {
  if (!has_device()) return;
  for (const std::int64_t d : {1, 7, 33, 64, 220}) {
    for (const std::int64_t n : {2, 63, 127, 128, 300, 1031}) {
      if (d > 100 && n > 128 && n != 1031) continue;
      if (d == 64 && n > 300) continue;
      CAPTURE(d);
      CAPTURE(n);
      const auto x = gaussian_images(n, 1, d, 10.0, 16);
      const DeviceArray<float> on_device(values_of(x));
      DeviceArray<float> mean(d), out(d * (d + 3));
      Workspace workspace(cuda::covariance_workspace_bytes(n, d));
      const TestStream stream;
      const MatrixView<float> view(out.data(), d, d, d + 3);
      required(cuda::covariance(stream, {on_device.data(), n, d}, mean.data(), view, workspace.span()));
      stream.wait();
      const auto want = two_pass(x, 1, 0);
      const auto got = out.read();
      const auto got_mean = mean.read();
      // Each of the segments is a state of its own; joining them is done in double, the result rounded once.
      const double bound = products_bound(n / cuda::detail::covariance_segments(n, d) + 1, 1) + 2.0 * kUnit;
      for (std::int64_t r = 0; r < d; ++r) {
        CHECK(std::abs(static_cast<double>(got_mean[static_cast<std::size_t>(r)]) - want.mean[static_cast<std::size_t>(r)]) <=
              2.0 * kUnit * std::abs(want.mean[static_cast<std::size_t>(r)]));
        for (std::int64_t c = 0; c < d; ++c) {
          const float value = got[static_cast<std::size_t>(r * (d + 3) + c)];
          REQUIRE(std::abs(static_cast<double>(value) - want.covariance(r, c)) <= bound * std::sqrt(want.covariance(r, r) * want.covariance(c, c)));
          REQUIRE(value == got[static_cast<std::size_t>(c * (d + 3) + r)]);
        }
      }
    }
  }
}

TEST_CASE("everything can be captured and allocates nothing") {
  if (!has_device()) return;
  for (const std::int64_t d : {19, 217}) {
    CAPTURE(d);
    const auto x = gaussian_images(10, 2, d, 1.0, 17);
    const DeviceArray<float> on_device(values_of(x));
    DeviceState state(2, d);
    DeviceModel model(2, d);
    Workspace workspace(cuda::gaussian_workspace_bytes(2, d, 10));
    const TestStream stream;
    required(cuda::detail::begin_capture("test", stream));
    required(cuda::observe_gaussians(stream, state.view, {on_device.data(), x.rows(), d}, workspace.span()));
    required(cuda::finish_gaussians(stream, state.view, 0.01, model.view, workspace.span()));
    auto graph = cuda::detail::end_capture("test", stream);
    required(graph.status());
    required(cuda::detail::launch_graph("test", *graph, stream));
    stream.wait();
    cuda::detail::destroy_graph(*graph);
    const auto direct = fit_on_device(x, 2, 0.01);
    CHECK(same_bits(model.factor.read(), direct.factor));
    CHECK(same_bits(model.mean.read(), direct.mean));
  }
}

TEST_CASE("what is refused") {
  if (!has_device()) return;
  const TestStream stream;
  const auto refuses = [](const Status& status, Errc code, const std::string& start) {
    CHECK(status.code() == code);
    CHECK_MESSAGE(status.message().find(start) == 0, status.message());
  };
  const auto x = gaussian_images(4, 3, 5, 1.0, 18);
  const DeviceArray<float> on_device(values_of(x));
  const MatrixView<const float> all(on_device.data(), 12, 5);
  DeviceState state(3, 5), narrow(3, 4);
  DeviceModel model(3, 5), other(2, 5);
  refuses(cuda::observe_gaussians(stream, state.view, all.block(0, 10), {}), Errc::shape_mismatch,
          "cuda::observe_gaussians: wrong features, expected a multiple of 3 rows of 5 values, found 10 x 5");
  refuses(cuda::observe_gaussians(stream, narrow.view, all, {}), Errc::shape_mismatch,
          "cuda::observe_gaussians: wrong features, expected a multiple of 3 rows of 4");
  cuda::GaussianState broken = state.view;
  broken.products.cols -= 1;
  refuses(cuda::observe_gaussians(stream, broken, all, {}), Errc::shape_mismatch,
          "cuda::observe_gaussians: sums that do not fit together, expected 3 x 15 products, found 3 x 14");
  broken = {};
  refuses(cuda::observe_gaussians(stream, broken, all, {}), Errc::invalid_argument,
          "cuda::observe_gaussians: expected sums of at least one position");
  broken = state.view;
  broken.mean.stride = 6;
  refuses(cuda::observe_gaussians(stream, broken, all, {}), Errc::invalid_argument, "cuda::observe_gaussians: expected dense sums");
  broken = state.view;
  broken.count = -1;
  refuses(cuda::observe_gaussians(stream, broken, all, {}), Errc::invalid_argument,
          "cuda::observe_gaussians: expected a count of 0 or more, found -1");
  CHECK(state.view.count == 0);
  CHECK(cuda::observe_gaussians(stream, state.view, all.block(0, 0), {}).ok());
  CHECK(state.view.count == 0);
  refuses(cuda::finish_gaussians(stream, state.view, 0.01, model.view, {}), Errc::not_enough_data,
          "cuda::finish_gaussians: a covariance needs at least 2 images, found 0");
  required(cuda::observe_gaussians(stream, state.view, all.block(0, 3), {}));
  refuses(cuda::finish_gaussians(stream, state.view, 0.01, model.view, {}), Errc::not_enough_data,
          "cuda::finish_gaussians: a covariance needs at least 2 images, found 1");
  required(cuda::observe_gaussians(stream, state.view, all.block(3, 9), {}));
  refuses(cuda::finish_gaussians(stream, state.view, 0.01, other.view, {}), Errc::shape_mismatch,
          "cuda::finish_gaussians: wrong model, expected 3 x 5, found 2 x 5");
  for (const double bad : {-0.1, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    refuses(cuda::finish_gaussians(stream, state.view, bad, model.view, {}), Errc::invalid_argument,
            "cuda::finish_gaussians: expected a regularisation >= 0, found");
  }
  refuses(cuda::merge_gaussians(stream, state.view, narrow.view), Errc::shape_mismatch, "cuda::merge_gaussians: expected 3 x 5, found 3 x 4");
  refuses(cuda::fit_gaussians(stream, all.block(0, 3), 0.01, model.view, {}), Errc::not_enough_data,
          "cuda::fit_gaussians: a covariance needs at least 2 images, found 1");
  auto no_flags = model.view;
  no_flags.flags = nullptr;
  refuses(cuda::fit_gaussians(stream, all, 0.01, no_flags, {}), Errc::invalid_argument,
          "cuda::fit_gaussians: expected memory for a mean, a factor and flags");
  auto wrong_factor = model.view;
  wrong_factor.factor.cols = 25;
  refuses(cuda::fit_gaussians(stream, all, 0.01, wrong_factor, {}), Errc::shape_mismatch,
          "cuda::fit_gaussians: wrong factor, expected 3 x 15, found 3 x 25");
  DeviceArray<float> mean(5), out(25);
  refuses(cuda::covariance(stream, all, mean.data(), out.matrix(5, 4), {}), Errc::shape_mismatch, "cuda::covariance: wrong output, expected 5 x 5");
  refuses(cuda::covariance(stream, all.block(0, 1), mean.data(), out.matrix(5, 5), {}), Errc::not_enough_data,
          "cuda::covariance: expected at least 2 rows, found 1");
  refuses(cuda::covariance(stream, all, mean.data(), out.matrix(5, 5), {}), Errc::out_of_memory, "cuda::covariance: the workspace is too small");
  DeviceState large(1, 217);
  const DeviceArray<float> zeros(std::vector<float>(2 * 217));
  refuses(cuda::observe_gaussians(stream, large.view, {zeros.data(), 2, 217}, {}), Errc::out_of_memory,
          "cuda::observe_gaussians: the workspace is too small");
  Workspace room(cuda::gaussian_workspace_bytes(1, 217, 2) + 4), rows_room(cuda::covariance_workspace_bytes(12, 5) + 8);
  refuses(cuda::observe_gaussians(stream, large.view, {zeros.data(), 2, 217}, room.span().subspan(4)), Errc::invalid_argument,
          "cuda::observe_gaussians: expected a workspace aligned to 256 bytes");
  refuses(cuda::covariance(stream, all, mean.data(), out.matrix(5, 5), rows_room.span().subspan(8)), Errc::invalid_argument,
          "cuda::covariance: expected a workspace aligned to 256 bytes");
  CHECK(large.view.count == 0);
  stream.wait();
}

TEST_CASE("the accumulator for host features gives the host accumulator's model") {
  if (!has_device()) return;
  for (const std::int64_t d : {17, 217}) {
    for (const std::int64_t n : {2, 64, 65, 200}) {
      if (d > 100 && n != 65) continue;
      CAPTURE(d);
      CAPTURE(n);
      constexpr std::int64_t kPositions = 3;
      const auto x = gaussian_images(n, kPositions, d, 1.0, 19);
      auto host = norma::GaussianAccumulator::create(kPositions, d);
      auto device = cuda::GaussianAccumulator::create(kPositions, d);
      required(host.status());
      required(device.status());
      required(host->add_batch(x.view()));
      required(device->add_batch(x.view()));
      CHECK(device->count() == n);
      const auto want = host->finish(1.0);
      const auto got = device->finish(1.0);
      required(want.status());
      required(got.status());
      for (std::int64_t p = 0; p < kPositions; ++p) {
        for (std::int64_t c = 0; c < d; ++c)
          REQUIRE(std::abs(got->mean(p, c) - want->mean(p, c)) <= 2.0f * static_cast<float>(kUnit) * std::abs(want->mean(p, c)));
        // Both are held to the same equation; the host's, factored in double, lies well within.
        const auto covariance = regularised(two_pass(x, kPositions, p).covariance, 1.0);
        const double spread = products_bound(n, 1) + 4.0 * kUnit;
        check_inverse_factor(got->factor.data() + p * packed_triangle(d), covariance, spread);
        check_inverse_factor(want->factor.data() + p * packed_triangle(d), covariance, spread);
      }
      const auto again = device->finish(1.0);
      required(again.status());
      CHECK(same_bits(values_of(again->factor), values_of(got->factor)));
      const auto last = std::move(*device).finish(1.0);
      required(last.status());
      CHECK(same_bits(values_of(last->factor), values_of(got->factor)));
      CHECK(device->count() == 0);
      CHECK(device->add(x.view().block(0, kPositions)).code() == Errc::shape_mismatch);
      CHECK(device->finish().code() == Errc::not_enough_data);
    }
  }
}

TEST_CASE("the accumulator for host features merges, goes on after an error, and names what failed") {
  if (!has_device()) return;
  constexpr std::int64_t kPositions = 2, kDims = 6;
  auto x = gaussian_images(150, kPositions, kDims, 1.0, 20);
  auto whole = cuda::GaussianAccumulator::create(kPositions, kDims);
  auto first = cuda::GaussianAccumulator::create(kPositions, kDims);
  auto second = cuda::GaussianAccumulator::create(kPositions, kDims);
  required(whole.status());
  required(first.status());
  required(second.status());
  CHECK(whole->finish().code() == Errc::not_enough_data);
  required(whole->add_batch(x.view()));
  required(first->add_batch(x.view().block(0, 2 * 70)));
  required(second->add_batch(x.view().block(2 * 70, 2 * 80)));
  CHECK(first->add_batch(x.view().block(0, 3)).code() == Errc::shape_mismatch);
  auto broken = part_of(x, 0, 2);
  broken(1, 3) = std::numeric_limits<float>::quiet_NaN();
  const Status refused = first->add(broken.view());
  CHECK(refused.code() == Errc::not_finite);
  CHECK(refused.message() == "cuda::GaussianAccumulator::add: a feature of position 1 is not finite");
  CHECK(first->count() == 70);
  required(first->merge(*second));
  CHECK(first->count() == 150);
  CHECK(second->count() == 80);
  const auto want = whole->finish(1.0), got = first->finish(1.0);
  required(want.status());
  required(got.status());
  for (std::int64_t p = 0; p < kPositions; ++p) {
    const auto covariance = regularised(two_pass(x, kPositions, p).covariance, 1.0);
    check_inverse_factor(got->factor.data() + p * packed_triangle(kDims), covariance, products_bound(150, 5) + 4.0 * kUnit);
    check_inverse_factor(want->factor.data() + p * packed_triangle(kDims), covariance, products_bound(150, 3) + 4.0 * kUnit);
  }

  for (std::int64_t i = 0; i < 150; ++i) {
    for (std::int64_t c = 0; c < kDims; ++c) x(2 * i + 1, c) = 2.0f;
  }
  auto constant = cuda::GaussianAccumulator::create(kPositions, kDims);
  required(constant.status());
  required(constant->add_batch(x.view()));
  const auto failed = constant->finish(0.0);
  CHECK(failed.code() == Errc::invalid_argument);
  CHECK(failed.message().find(
            "cuda::GaussianAccumulator::finish: covariance of position 1 not positive definite, expected a positive pivot in row 0") == 0);
  CHECK(constant->finish(-1.0).code() == Errc::invalid_argument);
  CHECK(constant->finish(0.5).ok());
  auto other = cuda::GaussianAccumulator::create(kPositions, kDims + 1);
  required(other.status());
  CHECK(constant->merge(*other).code() == Errc::shape_mismatch);
  CHECK(cuda::GaussianAccumulator::create(0, 3).code() == Errc::invalid_argument);
}

}  // namespace norma::test
