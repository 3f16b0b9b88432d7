// expect: Search policy: add .*nearest
// expect NO_NAME: Search policy: add .*name
// expect NO_SCRATCH: Search policy: add .*scratch_bytes
#include <norma/concepts/search.hpp>

struct FirstRow {
#if !defined(NO_NAME)
  static constexpr std::string_view name = "first_row";
#endif
  using Index = norma::MatrixView<const float>;
  static norma::Result<Index> prepare(norma::MatrixView<const float> bank, norma::Parallel) { return bank; }
#if !defined(NO_SCRATCH)
  static constexpr std::size_t scratch_bytes(std::int64_t, std::int64_t, int, int) { return 0; }
#endif
#if !defined(NORMA_COMPILE_FAIL)
  static norma::Status nearest(const Index&, norma::MatrixView<const float>, int, norma::MatrixView<float>, norma::MatrixView<std::int64_t>, norma::Parallel,
                               norma::Arena&) {
    return {};
  }
#endif
};

static_assert(norma::detail::check_search<FirstRow>());
