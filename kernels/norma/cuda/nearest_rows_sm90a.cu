// The search of float banks with warpgroup products. Files *_sm90a.cu are compiled for compute capability 9.0 alone: another device says that no kernel was
// compiled for it.
#include <norma/cuda/nearest_rows.cuh>

template norma::Status norma::cuda::nearest_rows<float, norma::cuda::NearestRowsWarpgroupTuning>(norma::cuda::StreamRef, const norma::cuda::PreparedBank<float>&,
                                                                                                  norma::MatrixView<const float>, int, norma::MatrixView<float>,
                                                                                                  norma::MatrixView<std::int64_t>, std::span<std::byte>,
                                                                                                  norma::cuda::SearchMemory);
