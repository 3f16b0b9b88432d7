// expect: Estimator policy: add .*record
// expect NO_TRAIN: Estimator policy: add .*observe.* or `train` for one that is trained in epochs
// expect NO_SAVE: Estimator policy: add .*save
#include <norma/concepts/estimator.hpp>

struct Learner {
  static constexpr std::string_view name = "learner";
  struct Settings {
    template <class Self, class Visitor>
    static constexpr void visit(Self&, Visitor&&) {}
  };
  static norma::Result<Learner> create(const norma::FeatureShapes&, const Settings&) { return Learner{}; }
#if !defined(NO_TRAIN)
  norma::Status train(const norma::TrainingImages&, const norma::TrainingContext&) { return {}; }
#endif
#if !defined(NORMA_COMPILE_FAIL)
  const norma::TrainingRecord& record() const { return training; }
#endif
#if !defined(NO_SAVE)
  norma::Status save(norma::io::TensorFileWriter&) const { return {}; }
#endif
  static norma::Result<Learner> load(const norma::io::Weights&, const norma::FeatureShapes&, const Settings&, norma::Parallel) { return Learner{}; }
  norma::TrainingRecord training;
};

static_assert(norma::detail::check_estimator<Learner>());
