/// \file
/// Search policy on the device: the rest of an estimator stays on the host. `MemoryBank<GreedyKCenter, cuda::ExactSearch>` is all it takes.
/// Shapes:      bank [n, d]; queries [m, d]; squared_distance, row [m, k], nearest first; k = 1 to 64
/// Units:       squared L2 distance
/// Exactness:   brute force in double, ties to the lowest row (norma/cuda/nearest_rows.hpp): the answer of the host's ExactSearch, except that d
///              squares are summed in another order, so the last bit of a double may differ. It has that policy's name: a model file that one of them
///              wrote opens with the other
/// Cost:        per call the queries cross to the device and the answers back, and the call waits for them
/// Memory:      device: the bank, a copy of it as the product takes it, and for each call at a time what its queries need. Host: pinned memory for
///              the same queries
/// Determinism: bitwise
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include <norma/concepts/search.hpp>
#include <norma/cuda/detail/lane_pool.hpp>
#include <norma/cuda/nearest_rows.hpp>
#include <norma/cuda/runtime.hpp>

namespace norma::cuda {

/// `kProduct` decides how fast, never what: see RowProduct.
///
/// Threads: an index may be searched by several threads at once. Each call takes a lane (a stream and its buffers) from the index, or makes one when
///          all are in
/// use, and puts it back. So what is allocated is allocated by the first call of a size, and by the first calls that overlap.
/// Device: an index belongs to the device that was current when it was prepared; it must be current for the calling thread too.
template <RowProduct kProduct>
struct BasicExactSearch {
  static constexpr std::string_view name = "exact";
  static constexpr std::int64_t kQueriesPerPass = 4096;

 private:
  struct Lane {
    Stream stream;
    PinnedBuffer<float> host_queries = {}, host_distance = {};
    PinnedBuffer<std::int64_t> host_row = {};
    DeviceBuffer<float> queries = {}, distance = {};
    DeviceBuffer<std::int64_t> row = {};
    DeviceBuffer<std::byte> workspace = {};

    [[nodiscard]] std::size_t bytes() const noexcept { return queries.bytes() + distance.bytes() + row.bytes() + workspace.bytes(); }
    Status grow(std::int64_t m, std::int64_t n, std::int64_t d, int k) {
      NORMA_CHECK(grow(host_queries, m * d));
      NORMA_CHECK(grow(host_distance, m * k));
      NORMA_CHECK(grow(host_row, m * k));
      NORMA_CHECK(grow(queries, m * d));
      NORMA_CHECK(grow(distance, m * k));
      NORMA_CHECK(grow(row, m * k));
      return grow(workspace, static_cast<std::int64_t>(nearest_rows_workspace_bytes(m, n, d, k, kProduct)));
    }
    template <class Buffer>
    static Status grow(Buffer& buffer, std::int64_t count) {
      if (buffer.size() >= count) return {};
      NORMA_TRY(Buffer larger, Buffer::create(count));
      buffer = std::move(larger);
      return {};
    }
  };

  struct State {
    DeviceBuffer<float> rows;  // [n, d]
    DeviceBuffer<std::byte> prepared;
    PreparedBank<float> bank;
    detail::LanePool<Lane> lanes;
  };

 public:
  /// A bank on the device, made ready. Keeps nothing of the host's.
  class Index {
   public:
    Index() noexcept = default;
    [[nodiscard]] std::int64_t rows() const noexcept { return state_ == nullptr ? 0 : state_->bank.rows.rows; }
    [[nodiscard]] std::int64_t dims() const noexcept { return state_ == nullptr ? 0 : state_->bank.rows.cols; }
    /// On the device, without what running calls use.
    [[nodiscard]] std::size_t bytes() const {
      if (state_ == nullptr) return 0;
      return state_->rows.bytes() + state_->prepared.bytes() + state_->lanes.bytes();
    }

   private:
    friend BasicExactSearch;
    std::unique_ptr<State> state_;
  };

  /// `invalid_argument` for an empty bank, `not_finite` names a row with NaN, infinity, or a squared norm that float cannot hold; and what the device
  /// reports.
  static Result<Index> prepare(MatrixView<const float> bank, Parallel /*parallel*/) {
    constexpr std::string_view kWho = "cuda::ExactSearch::prepare";
    if (bank.empty()) {
      return Status(Errc::invalid_argument, std::string(kWho) + ": expected a bank with rows and columns, found " + std::to_string(bank.rows) +
                                                " x " + std::to_string(bank.cols));
    }
    auto state = std::make_unique<State>();
    NORMA_TRY(const Stream stream, Stream::create());
    NORMA_TRY(state->rows, DeviceBuffer<float>::create(bank.rows * bank.cols));
    NORMA_TRY(state->prepared, DeviceBuffer<std::byte>::create(static_cast<std::int64_t>(prepared_bank_bytes(bank.rows, bank.cols, kProduct))));
    NORMA_TRY(state->bank, place_bank(MatrixView<const float>(state->rows.data(), bank.rows, bank.cols), RowDistance::squared_l2, kProduct,
                                      {state->prepared.data(), state->prepared.bytes()}));
    Status queued;
    if (bank.dense()) {
      queued = copy_async(stream, state->rows.data(), bank.data, bank.count());
    } else {
      for (std::int64_t r = 0; r < bank.rows && queued; ++r)
        queued = copy_async(stream, state->rows.data() + r * bank.cols, bank.row(r).data(), bank.cols);
    }
    BankStatus found;
    if (queued) queued = prepare_bank(stream, state->bank);
    if (queued) queued = copy_async(stream, &found, state->bank.status, 1);
    const Status waited = stream.synchronize();  // whatever happened: nothing may still run on memory that goes away
    NORMA_CHECK(queued);
    NORMA_CHECK(waited);
    if (found.refused > 0) {
      return Status(Errc::not_finite,
                    std::string(kWho) + ": row " + std::to_string(found.first_refused) + " of the bank is not finite, or too large for float");
    }
    Index index;
    index.state_ = std::move(state);
    return Result<Index>(std::move(index));
  }

  /// The arena is not used: memory is the index's.
  static constexpr std::size_t scratch_bytes(std::int64_t /*queries*/, std::int64_t /*dims*/, int /*k*/, int /*workers*/) noexcept { return 0; }

  /// Returns when the answer is there. A query that is not finite (or whose squared norm float cannot hold) gets distance NaN and row -1. Where k
  /// exceeds the bank's rows, what is missing is +infinity and -1. `invalid_argument`: k outside 1 to kMostNeighbours.
  static Status nearest(const Index& index, MatrixView<const float> queries, int k, MatrixView<float> squared_distance, MatrixView<std::int64_t> row,
                        Parallel parallel, Arena& /*arena*/) {
    constexpr std::string_view kWho = "cuda::ExactSearch::nearest";
    const std::int64_t n = index.rows(), d = index.dims();
    if (n == 0) return {Errc::not_fitted, std::string(kWho) + ": the index is empty"};
    if (queries.cols != d) {
      return {Errc::shape_mismatch,
              std::string(kWho) + ": wrong queries, expected rows of " + std::to_string(d) + " values, found " + std::to_string(queries.cols)};
    }
    if (k < 1 || k > kMostNeighbours) {
      return {Errc::invalid_argument,
              std::string(kWho) + ": expected k from 1 to " + std::to_string(kMostNeighbours) + ", found " + std::to_string(k)};
    }
    if (squared_distance.rows != queries.rows || row.rows != queries.rows || squared_distance.cols != k || row.cols != k) {
      return {Errc::shape_mismatch, std::string(kWho) + ": wrong outputs, expected " + std::to_string(queries.rows) + " x " + std::to_string(k) +
                                        ", found " + std::to_string(squared_distance.rows) + " x " + std::to_string(squared_distance.cols) + " and " +
                                        std::to_string(row.rows) + " x " + std::to_string(row.cols)};
    }
    if (queries.rows == 0) return {};
    NORMA_TRY(const auto lane, index.state_->lanes.take());
    NORMA_CHECK(lane->grow(std::min(queries.rows, kQueriesPerPass), n, d, k));
    for (std::int64_t first = 0; first < queries.rows; first += kQueriesPerPass) {
      const std::int64_t count = std::min(kQueriesPerPass, queries.rows - first);
      parallel.run_ranges(count, 64, [&](std::int64_t from, std::int64_t to, int) {
        for (std::int64_t q = from; q < to; ++q) {
          std::memcpy(lane->host_queries.data() + q * d, queries.row(first + q).data(), static_cast<std::size_t>(d) * sizeof(float));
        }
      });
      NORMA_CHECK(copy_async(lane->stream, lane->queries.data(), lane->host_queries.data(), count * d));
      NORMA_CHECK(nearest_rows(lane->stream, index.state_->bank, MatrixView<const float>(lane->queries.data(), count, d), k,
                               MatrixView<float>(lane->distance.data(), count, k), MatrixView<std::int64_t>(lane->row.data(), count, k),
                               {lane->workspace.data(), lane->workspace.bytes()}));
      NORMA_CHECK(copy_async(lane->stream, lane->host_distance.data(), lane->distance.data(), count * k));
      NORMA_CHECK(copy_async(lane->stream, lane->host_row.data(), lane->row.data(), count * k));
      NORMA_CHECK(lane->stream.synchronize());
      for (std::int64_t q = 0; q < count; ++q) {
        std::memcpy(squared_distance.row(first + q).data(), lane->host_distance.data() + q * k, static_cast<std::size_t>(k) * sizeof(float));
        std::memcpy(row.row(first + q).data(), lane->host_row.data() + q * k, static_cast<std::size_t>(k) * sizeof(std::int64_t));
      }
    }
    return {};
  }
};

using ExactSearch = BasicExactSearch<RowProduct::bf16>;

static_assert(Search<ExactSearch>);

}  // namespace norma::cuda
