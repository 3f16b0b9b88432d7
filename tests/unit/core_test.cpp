// Errors as values, memory, loops, random numbers, progress, settings.
#include <atomic>
#include <cmath>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include <norma/core/arena.hpp>
#include <norma/core/finite.hpp>
#include <norma/core/progress.hpp>
#include <norma/core/random.hpp>
#include <norma/core/settings.hpp>
#include <norma/core/status.hpp>
#include <norma/core/tensor.hpp>
#include <norma/core/thread_pool.hpp>

namespace {

using namespace norma;

Result<int> half(int n) {
  if (n % 2 != 0) return Status{Errc::invalid_argument, "half: expected an even number, found " + std::to_string(n)};
  return n / 2;
}
Result<std::string> quarter_text(int n) {
  NORMA_TRY(const int once, half(n));
  NORMA_TRY(const int twice, half(once));
  return std::to_string(twice);
}
Status needs_even(int n) {
  NORMA_CHECK(half(n).status());
  return {};
}

TEST_CASE("Status and Result carry one sentence through the macros") {
  CHECK(*quarter_text(8) == "2");
  CHECK(quarter_text(6).code() == Errc::invalid_argument);
  CHECK(quarter_text(6).message() == "half: expected an even number, found 3");
  CHECK(needs_even(2).ok());
  CHECK(needs_even(3).with_context("file.png").message() == "file.png: half: expected an even number, found 3");
  CHECK(Status{}.with_context("anything").ok());
#if NORMA_HAS_EXCEPTIONS
  CHECK(half(4).value() == 2);
  CHECK_THROWS_AS((void)half(5).value(), BadResult);
#endif
}

TEST_CASE("Buffer and Tensor are aligned, zeroed, deep-copied and empty after a move") {
  Tensor<float> a(2, 3, 4, 5);
  CHECK(reinterpret_cast<std::uintptr_t>(a.data()) % kAlignment == 0);
  for (std::int64_t i = 0; i < a.view().count(); ++i) CHECK(a.data()[i] == 0.0f);
  a.view()(1, 2, 3, 4) = 7.0f;
  Tensor<float> copy = a;
  a.view()(1, 2, 3, 4) = 8.0f;
  CHECK(copy.view()(1, 2, 3, 4) == 7.0f);
  CHECK(copy.view().patches()(2 * 3 * 4 - 1, 4) == 7.0f);
  Buffer<int> source(4);
  Buffer<int> target = std::move(source);
  CHECK(source.empty());  // NOLINT(bugprone-use-after-move): the moved-from state is part of the contract
  CHECK(target.size() == 4);
}

TEST_CASE("Arena gives aligned pieces, takes them back in order, and says when it is too small") {
  Buffer<std::byte> memory(4 * 64);
  Arena arena(memory.span());
  float* first = arena.take<float>(3);
  CHECK(reinterpret_cast<std::uintptr_t>(first) % kAlignment == 0);
  CHECK(arena.used() == arena_bytes<float>(3));
  {
    const Arena::Scope scope(arena);
    CHECK(arena.take<std::byte>(128) != nullptr);
    CHECK(arena.remaining() == 64);
  }
  CHECK(arena.used() == 64);
#ifdef NDEBUG
  CHECK(arena.take<float>(1000) == nullptr);
#endif
}

TEST_CASE("a loop runs every task once, whatever the number of threads") {
  for (const int threads : {1, 2, 3, 8}) {
    CAPTURE(threads);
    ThreadPool pool(threads);
    CHECK(pool.parallel().workers() == threads);
    for (const std::int64_t tasks : {std::int64_t{0}, std::int64_t{1}, std::int64_t{2}, std::int64_t{1000}}) {
      std::vector<std::atomic<int>> seen(static_cast<std::size_t>(tasks));
      std::atomic<int> bad_worker = 0;
      pool.parallel().run(tasks, [&](std::int64_t task, int worker) {
        ++seen[static_cast<std::size_t>(task)];
        if (worker < 0 || worker >= threads) ++bad_worker;
      });
      int once = 0;
      for (const auto& count : seen) once += count == 1 ? 1 : 0;
      CHECK(once == tasks);
      CHECK(bad_worker == 0);
    }
    std::vector<std::int64_t> ends(10, -1);
    pool.parallel().run_ranges(95, 10, [&](std::int64_t first, std::int64_t last, int) { ends[static_cast<std::size_t>(first / 10)] = last; });
    CHECK(ends.back() == 95);
  }
}

TEST_CASE("Philox gives the published known answers") {
  // Random123's test vectors for philox4x32-10.
  CHECK(philox4x32({0, 0, 0, 0}, {0, 0}) == std::array<std::uint32_t, 4>{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
  CHECK(philox4x32({0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu}, {0xffffffffu, 0xffffffffu}) ==
        std::array<std::uint32_t, 4>{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
  CHECK(philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}) ==
        std::array<std::uint32_t, 4>{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
}

TEST_CASE("random numbers: moments, bounds, streams, samples without repetition") {
  Random random(7);
  double sum = 0.0, squares = 0.0, normal_sum = 0.0, normal_squares = 0.0;
  constexpr int n = 20000;
  for (int i = 0; i < n; ++i) {
    const double u = random.uniform();
    CHECK_UNARY(u >= 0.0 && u < 1.0);
    sum += u;
    squares += u * u;
    const double z = random.normal();
    normal_sum += z;
    normal_squares += z * z;
  }
  // Five standard deviations of the mean of n samples.
  CHECK(std::abs(sum / n - 0.5) <= 5.0 * std::sqrt(1.0 / 12.0 / n));
  CHECK(std::abs(squares / n - 1.0 / 3.0) <= 5.0 * std::sqrt(4.0 / 45.0 / n));
  CHECK(std::abs(normal_sum / n) <= 5.0 / std::sqrt(n));
  CHECK(std::abs(normal_squares / n - 1.0) <= 5.0 * std::sqrt(2.0 / n));
  CHECK(Random(7, 0).bits64() != Random(7, 1).bits64());
  CHECK(Random(7).bits64() == Random(7).bits64());
  Random draw(1);
  const auto sample = sample_without_replacement(50, 50, draw);
  CHECK(std::set<std::int64_t>(sample.begin(), sample.end()).size() == 50);
}

TEST_CASE("Progress reports the beginning and the end, estimates, and stops on request") {
  std::vector<ProgressUpdate> seen;
  std::atomic<bool> cancel = false;
  Observer observer{[&](const ProgressUpdate& update) { seen.push_back(update); }, &cancel};
  Progress progress("stage", 3, observer);
  CHECK(progress.advance(2).ok());
  CHECK(progress.advance().ok());
  REQUIRE(seen.size() >= 2);
  CHECK(seen.front().done == 0);
  CHECK(seen.back().done == 3);
  CHECK(seen.back().remaining_seconds == 0.0);
  cancel = true;
  CHECK(progress.advance().code() == Errc::cancelled);
}

TEST_CASE("first_not_finite finds the first NaN or infinity anywhere") {
  std::vector<float> values(5000, 1.0f);
  CHECK(first_not_finite(values) == -1);
  CHECK(first_not_finite({}) == -1);
  for (const std::size_t at : {std::size_t{4999}, std::size_t{1024}, std::size_t{1023}, std::size_t{0}}) {
    values[at] = at % 2 == 0 ? std::numeric_limits<float>::quiet_NaN() : -std::numeric_limits<float>::infinity();
    CHECK(first_not_finite(values) == static_cast<std::int64_t>(at));
  }
}

enum class Colour { red, blue };
constexpr std::string_view to_string(Colour c) { return c == Colour::red ? "red" : "blue"; }
constexpr bool from_string(std::string_view text, Colour& c) {
  if (text != "red" && text != "blue") return false;
  c = text == "red" ? Colour::red : Colour::blue;
  return true;
}
struct Sample {
  int count = 3;
  double share = 0.25;
  bool on = false;
  Colour colour = Colour::red;
  std::array<float, 3> mean{1.0f, 2.0f, 3.5f};
  template <class Self, class Visitor>
  static constexpr void visit(Self& self, Visitor&& visitor) {
    visitor("count", self.count, "");
    visitor("share", self.share, "");
    visitor("on", self.on, "");
    visitor("colour", self.colour, "");
    visitor("mean", self.mean, "");
  }
};

TEST_CASE("settings are read and written by name; a refused value changes nothing") {
  Sample sample;
  CHECK(set_field(sample, "count", "12").ok());
  CHECK(set_field(sample, "share", "1e-3").ok());
  CHECK(set_field(sample, "on", "true").ok());
  CHECK(set_field(sample, "colour", "blue").ok());
  CHECK(set_field(sample, "mean", "4,5,6.5").ok());
  CHECK(sample.count == 12);
  CHECK(sample.share == 0.001);
  CHECK(sample.on);
  CHECK(sample.colour == Colour::blue);
  CHECK(field_text(sample.colour) == "blue");
  CHECK(sample.mean[2] == 6.5f);
  CHECK(field_text(sample.mean) == "4,5,6.5");
  CHECK(set_field(sample, "absent", "1").code() == Errc::not_found);
  for (const auto& refused : {std::pair{"count", "12x"}, {"count", ""}, {"count", "99999999999"}, {"share", "half"}, {"on", "yes"}, {"colour", "green"},
                                   {"mean", "1,2"}, {"mean", "1,2,3,4"}, {"mean", "1,,3"}}) {
    CAPTURE(refused.first);
    CAPTURE(refused.second);
    CHECK(set_field(sample, refused.first, refused.second).code() == Errc::invalid_argument);
  }
  CHECK(sample.count == 12);
  CHECK(sample.mean[0] == 4.0f);
}

}  // namespace
