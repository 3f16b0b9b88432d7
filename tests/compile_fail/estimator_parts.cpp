// expect: Estimator policy: add .*observe
// expect NO_NAME: Estimator policy: add .*name
// expect NO_SETTINGS: Estimator policy: add .*Settings
// expect NO_VISIT: Estimator policy: add .*visit
// expect NO_CREATE: Estimator policy: add .*create
// expect NO_MERGE: Estimator policy: add .*merge
// expect NO_FINISH: Estimator policy: add .*finish
// expect NO_SAVE: Estimator policy: add .*save
// expect NO_LOAD: Estimator policy: add .*load
#include <norma/concepts/estimator.hpp>

struct Mean {
#if !defined(NO_NAME)
  static constexpr std::string_view name = "mean";
#endif
#if !defined(NO_SETTINGS)
  struct Settings {
#if !defined(NO_VISIT)
    template <class Self, class Visitor>
    static constexpr void visit(Self&, Visitor&&) {}
#endif
  };
#endif
#if !defined(NO_CREATE) && !defined(NO_SETTINGS)
  static norma::Result<Mean> create(const norma::FeatureShapes&, const Settings&) { return Mean{}; }
#endif
#if !defined(NORMA_COMPILE_FAIL)
  norma::Status observe(const norma::Features&, std::int64_t, norma::Parallel) { return {}; }
#endif
#if !defined(NO_MERGE)
  norma::Status merge(Mean&&) { return {}; }
#endif
#if !defined(NO_FINISH)
  norma::Status finish(const norma::FitContext&) { return {}; }
#endif
#if !defined(NO_SAVE)
  norma::Status save(norma::io::TensorFileWriter&) const { return {}; }
#endif
#if !defined(NO_LOAD) && !defined(NO_SETTINGS)
  static norma::Result<Mean> load(const norma::io::Weights&, const norma::FeatureShapes&, const Settings&, norma::Parallel) { return Mean{}; }
#endif
};

static_assert(norma::detail::check_estimator<Mean>());
