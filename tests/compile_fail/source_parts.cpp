// expect: Source: add .*load
// expect NO_STATUS: Source: add .*status
#include <norma/concepts/source.hpp>

struct Frames {
  std::int64_t size() const { return 0; }
#if !defined(NORMA_COMPILE_FAIL)
  norma::Result<norma::Image> load(std::int64_t) const { return norma::Image(1, 1, 1); }
#endif
  std::string name(std::int64_t) const { return "frame"; }
#if !defined(NO_STATUS)
  norma::Status status() const { return {}; }
#endif
};

static_assert(norma::detail::check_source<Frames>());
