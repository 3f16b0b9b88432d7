// expect: Subset policy: add .*select
// expect NO_SETTINGS: Subset policy: add .*Settings
// expect NO_VALIDATE: Subset policy: add .*validate
#include <norma/concepts/subset.hpp>

struct EverySecond {
  static constexpr std::string_view name = "every_second";
#if !defined(NO_SETTINGS)
  struct Settings {};
#endif
#if !defined(NO_SETTINGS) && !defined(NO_VALIDATE)
  static norma::Status validate(const Settings&) { return {}; }
#endif
#if !defined(NO_SETTINGS) && !defined(NORMA_COMPILE_FAIL)
  static norma::Result<std::vector<std::int64_t>> select(norma::MatrixView<const float>, const Settings&, std::uint64_t, norma::Parallel, const norma::Observer&) {
    return std::vector<std::int64_t>{};
  }
#endif
};

static_assert(norma::detail::check_subset<EverySecond>());
