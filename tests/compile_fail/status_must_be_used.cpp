// expect: ignoring
// expect RESULT_OF_STATUS: Result<Status> says nothing that Status does not
#include <norma/core/status.hpp>

#if defined(NORMA_COMPILE_FAIL)
#pragma GCC diagnostic error "-Wunused-result"
#endif

norma::Status work();

void caller() {
#if defined(NORMA_COMPILE_FAIL)
  work();
#else
  static_cast<void>(work());
#endif
}

#if defined(RESULT_OF_STATUS)
using Wrong = norma::Result<norma::Status>;
Wrong wrong() { return Wrong(norma::Status{}); }
#endif
