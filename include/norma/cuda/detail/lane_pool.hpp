/// \file
/// What lets several threads call one object whose work runs on the device: each call takes a lane, a stream with its buffers, and puts it back.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <norma/core/status.hpp>
#include <norma/cuda/runtime.hpp>

namespace norma::cuda::detail {

/// `Lane` begins with `Stream stream`, is an aggregate, and tells its device memory with `std::size_t bytes() const`.
///
/// A call gets the lane with the most memory of those that are idle, so that calls which do not overlap share one, and after the first of a size none
/// of them allocates. Calls that overlap make lanes, once.
template <class Lane>
class LanePool {
 public:
  /// A lane for the time of one call. The pool outlives it and stays where it is.
  class InUse {
   public:
    InUse(InUse&&) noexcept = default;
    InUse& operator=(InUse&&) = delete;
    ~InUse() {
      if (lane_ == nullptr) return;
      (void)lane_->stream.synchronize();  // after an error the stream may still read the buffers
      const std::lock_guard lock(pool_->mutex_);
      pool_->idle_.push_back(std::move(lane_));
    }
    Lane* operator->() const noexcept { return lane_.get(); }
    Lane& operator*() const noexcept { return *lane_; }

   private:
    friend LanePool;
    InUse(LanePool& pool, std::unique_ptr<Lane> lane) noexcept : pool_(&pool), lane_(std::move(lane)) {}
    LanePool* pool_;
    std::unique_ptr<Lane> lane_;
  };

  /// Errors: what the device says to a new stream.
  Result<InUse> take() {
    {
      const std::lock_guard lock(mutex_);
      const auto largest = std::max_element(idle_.begin(), idle_.end(), [](const auto& a, const auto& b) { return a->bytes() < b->bytes(); });
      if (largest != idle_.end()) {
        InUse used(*this, std::move(*largest));
        idle_.erase(largest);
        return used;
      }
    }
    NORMA_TRY(Stream stream, Stream::create());
    auto lane = std::make_unique<Lane>(Lane{std::move(stream)});
    const std::lock_guard lock(mutex_);
    idle_.reserve(++lanes_);  // a lane comes back without allocating
    return InUse(*this, std::move(lane));
  }

  /// Device memory of the lanes that are idle.
  [[nodiscard]] std::size_t bytes() const {
    const std::lock_guard lock(mutex_);
    std::size_t sum = 0;
    for (const auto& lane : idle_) sum += lane->bytes();
    return sum;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<Lane>> idle_;
  std::size_t lanes_ = 0;  // idle or not
};

}  // namespace norma::cuda::detail
