/// \file
/// Greedy k-centre selection on the device: again and again the point that is farthest from all chosen ones.
/// Source:      Roth et al., "PatchCore", CVPR 2022, section 3.2, algorithm 1; Gonzalez, "Clustering to minimize the maximum
///              intercluster distance", 1985
/// Method:      rounds of kernels in one stream, no answer from the host in between. A round collects the points farthest from the chosen ones (the
///              pool), runs the rule inside the pool while its best is ahead of everything outside, and then measures all points against the
///              round's picks with one matrix product. docs/kernels/k_centre.md has the proof that the picks are those of the plain loop.
/// Shapes:      points [n, d] float in device memory, any stride; chosen [count]
/// Exactness:   decided by squared distances in double: the sum over pieces of 32 coordinates, each piece summed in order. The product in
///              float or TF32 only excludes pairs, by a proven bound. Ties go to the lowest row; no row comes twice, where all points left coincide
///              with chosen ones the lowest rows follow
/// Determinism: a function of the points, the start and the count; not of the policy or the grid
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <norma/config.hpp>
#include <norma/core/progress.hpp>
#include <norma/core/status.hpp>
#include <norma/core/view.hpp>
#include <norma/cuda/stream_ref.hpp>

namespace norma::cuda {

struct KCentreTuning;

/// One selection. Everything is device memory of the caller and stays where it is until the work is done.
struct KCentreProblem {
  MatrixView<const float> points;      ///< [n, d], n < 2^31, d <= 2^20, squared lengths of rows at most 2^122
  std::int64_t count = 0;              ///< rows to choose, 1 to n
  std::int64_t first_row = 0;          ///< chosen first, unless `initial` is given
  const double* initial = nullptr;     ///< [n] squared distances before anything is chosen, >= 0; then no row is chosen in advance
  std::int64_t* chosen = nullptr;      ///< [count], the rows in the order of choice
  std::span<std::byte> workspace{};    ///< k_centre_workspace_bytes(n, d), aligned to 256; holds the state of the selection between calls
};

/// How far a selection is.
struct KCentreReport {
  static constexpr unsigned long long kNoRow = ~0ULL;
  std::int64_t chosen = 0;                    ///< rows chosen so far
  std::int64_t rounds = 0;                    ///< rounds that chose something
  std::int64_t sweeps = 0;                    ///< times all points were measured, the start's included
  unsigned long long measured = 0;            ///< pairs that the sweeps' product could not exclude, measured in double
  unsigned long long not_finite = kNoRow;     ///< the lowest row of `points` that is not finite (or too long), or of `initial` that is not >= 0
};

namespace detail {

/// Where the parts of the workspace are, in bytes from its beginning.
struct KCentreLayout {
  static constexpr std::int64_t kMostPool = 1024;     // candidates of a round
  static constexpr std::int64_t kMostPending = 256;   // picks between two sweeps
  static constexpr std::int64_t kBins = 4096;         // classes of distance that a pool is made of
  static constexpr std::int64_t kReplicas = 8;        // of the bins, so that equal distances do not queue up at one address
  static constexpr std::int64_t kMostBlocks = 256;    // that go through all points

  std::int64_t stride = 0;  // of the centred points, in floats
  std::size_t state = 0, histogram = 0, counts = 0, outside = 0, pending = 0, pool = 0, mutual = 0, centre = 0, squares = 0, keys = 0, centred = 0;
  std::size_t bytes = 0;  // of all

  constexpr KCentreLayout(std::int64_t rows, std::int64_t cols) noexcept : stride((cols + 3) / 4 * 4) {
    const std::int64_t most = rows < kMostPool ? rows : kMostPool;
    state = take(1, 128);
    histogram = take(kBins * kReplicas, 4);
    counts = take(kMostBlocks, 8);
    outside = take(kMostBlocks, 16);
    pending = take(kMostPending, 4);
    pool = take(kMostPool, 4);
    mutual = take(most * most, 8);
    centre = take(cols, 4);
    squares = take(rows, 4);
    keys = take(rows, 8);
    centred = take(rows * stride, 4);
  }

 private:
  constexpr std::size_t take(std::int64_t count, std::size_t size) noexcept {
    const std::size_t at = bytes;
    bytes += (static_cast<std::size_t>(count) * size + 255) / 256 * 256;
    return at;
  }
};

}  // namespace detail

/// Bytes of a selection's workspace: a copy of the points with rows of a multiple of 4 floats, 12 bytes a point and at most 8.2 MiB.
constexpr std::size_t k_centre_workspace_bytes(std::int64_t rows, std::int64_t cols) noexcept {
  return rows > 0 && cols > 0 ? detail::KCentreLayout(rows, cols).bytes : 0;
}

/// Queues the beginning of a selection: prepares the workspace and measures all points against the first row. Can be captured.
template <class Tuning = KCentreTuning>
Status enqueue_k_centre_start(StreamRef stream, const KCentreProblem& problem);

/// Queues `rounds` rounds. Each chooses at least one row while rows are wanted, typically tens to hundreds; after that their kernels
/// leave at once. Nothing is waited for, so any number may be queued; can be captured, and the graph launched again and again.
template <class Tuning = KCentreTuning>
Status enqueue_k_centre_rounds(StreamRef stream, const KCentreProblem& problem, std::int64_t rounds);

/// Queues a copy of the report into `report`, host (pinned, if the call must not wait) or device memory. Can be captured.
template <class Tuning = KCentreTuning>
Status enqueue_k_centre_report(StreamRef stream, const KCentreProblem& problem, KCentreReport* report);

/// The whole selection: starts, queues rounds, *waits* for the stream every tenth of a second or so to report progress (stage "coreset") and to see
/// `observer.cancel`, and returns the rows. Fails with `not_finite` naming a row, and with `cancelled` on request; `problem.chosen` then holds the
/// picks so far.
template <class Tuning = KCentreTuning>
Result<std::vector<std::int64_t>> greedy_k_centre(StreamRef stream, const KCentreProblem& problem, const Observer& observer = {});

/// The `approximate` start of PatchCore's authors: squared[i] = (mean over s of |points[i] - points[rows[s]]|)^2.
/// `rows` [count] and `squared` [n] are device memory; rows in [0, n).
template <class Tuning = KCentreTuning>
Status k_centre_mean_distances(StreamRef stream, MatrixView<const float> points, const std::int64_t* rows, std::int64_t count, double* squared);

/// out = points * map^T, in float: the random projection before a selection. points [n, d], map [dims, d], out [n, dims], device memory; rows of
/// points and map begin at multiples of 16 bytes and are zero between d and the next multiple of 4.
template <class Tuning = KCentreTuning>
Status k_centre_project(StreamRef stream, MatrixView<const float> points, MatrixView<const float> map, MatrixView<float> out);

}  // namespace norma::cuda
