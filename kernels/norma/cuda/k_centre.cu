// The usual instantiations of norma/cuda/k_centre.hpp.
#include <norma/cuda/k_centre.cuh>

namespace norma::cuda {

template Status enqueue_k_centre_start<KCentreTuning>(StreamRef, const KCentreProblem&);
template Status enqueue_k_centre_rounds<KCentreTuning>(StreamRef, const KCentreProblem&, std::int64_t);
template Status enqueue_k_centre_report<KCentreTuning>(StreamRef, const KCentreProblem&, KCentreReport*);
template Result<std::vector<std::int64_t>> greedy_k_centre<KCentreTuning>(StreamRef, const KCentreProblem&, const Observer&);
template Status k_centre_mean_distances<KCentreTuning>(StreamRef, MatrixView<const float>, const std::int64_t*, std::int64_t, double*);
template Status k_centre_project<KCentreTuning>(StreamRef, MatrixView<const float>, MatrixView<const float>, MatrixView<float>);

}  // namespace norma::cuda
