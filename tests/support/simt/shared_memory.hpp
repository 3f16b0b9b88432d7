/// \file
/// A block's shared memory with a memory of its own: who wrote and read each half word, and since when others may rely on it.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace norma::test {

/// A point in the order of one block: barriers of the block, then barriers of the thread's warp.
struct Moment {
  std::uint32_t block = 0;
  std::uint32_t warp = 0;
};

class SharedMemory {
 public:
  static constexpr std::size_t kUnit = 2;  // bytes that share a record

  void reset(std::size_t bytes) {
    bytes_.assign((bytes + kUnit - 1) / kUnit * kUnit, 0xff);
    records_.assign(bytes_.size() / kUnit, Record{});
  }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }

  /// Each of the three returns what is wrong, or an empty string.
  std::string read(std::size_t offset, std::size_t bytes, void* to, int thread, Moment now) {
    if (std::string fault = inside("read", offset, bytes); !fault.empty()) return fault;
    for (std::size_t i = offset / kUnit; i < (offset + bytes + kUnit - 1) / kUnit; ++i) {
      Record& r = records_[i];
      if (r.state == State::nothing) return describe("read before anything was written", i, thread, -1);
      if (r.state == State::under_way) return describe("read while an asynchronous copy is under way", i, thread, r.writer);
      if (!ordered(r.writer, r.written, thread, now)) return describe("read without a barrier after the write", i, thread, r.writer);
      remember_reader(r, thread, now);
    }
    std::memcpy(to, bytes_.data() + offset, bytes);
    return {};
  }
  std::string write(std::size_t offset, std::size_t bytes, const void* from, int thread, Moment now) {
    if (std::string fault = claim(offset, bytes, thread, now, State::written); !fault.empty()) return fault;
    std::memcpy(bytes_.data() + offset, from, bytes);
    return {};
  }
  /// A warpgroup's product that was issued at `issued` reads: in the meantime nobody may have written, and who wrote before must have fenced.
  std::string read_for_product(std::size_t offset, std::size_t bytes, void* to, int thread, Moment issued) {
    if (std::string fault = inside("read", offset, bytes); !fault.empty()) return fault;
    for (std::size_t i = offset / kUnit; i < (offset + bytes) / kUnit; ++i) {
      const Record& r = records_[i];
      if (r.state == State::written && r.written.block > issued.block) return describe("overwritten before a product had read it", i, thread, r.writer);
      if (r.state == State::written && !r.fenced) return describe("read by a product without async_proxy_fence after the write", i, thread, r.writer);
    }
    return read(offset, bytes, to, thread, issued);
  }
  void fence(int thread) {
    for (Record& r : records_) r.fenced = r.fenced || (r.writer == thread && r.state == State::written);
  }
  /// An asynchronous copy begins: nobody may touch the place until it is finished.
  std::string begin_copy(std::size_t offset, std::size_t bytes, int thread, Moment now) { return claim(offset, bytes, thread, now, State::under_way); }
  /// ... and ends, as a write of `thread`. `from` may be null: zeros.
  void end_copy(std::size_t offset, std::size_t bytes, const void* from, int thread, Moment now) {
    if (from != nullptr) {
      std::memcpy(bytes_.data() + offset, from, bytes);
    } else {
      std::memset(bytes_.data() + offset, 0, bytes);
    }
    for (std::size_t i = offset / kUnit; i < (offset + bytes) / kUnit; ++i) {
      records_[i].state = State::written;
      records_[i].writer = thread;
      records_[i].written = now;
      records_[i].fenced = false;
    }
  }

 private:
  enum class State : std::uint8_t { nothing, under_way, written };
  static constexpr int kNobody = -1, kSeveralOfAWarp = -2, kSeveral = -3;
  struct Record {
    State state = State::nothing;
    bool fenced = false;
    int writer = kNobody;
    Moment written;
    int reader = kNobody;
    int reader_warp = kNobody;
    Moment was_read;
  };

  static bool ordered(int other, Moment then, int thread, Moment now) {
    return other == kNobody || other == thread || then.block < now.block || (other / 32 == thread / 32 && then.warp < now.warp);
  }

  std::string claim(std::size_t offset, std::size_t bytes, int thread, Moment now, State state) {
    if (std::string fault = inside("write", offset, bytes); !fault.empty()) return fault;
    for (std::size_t i = offset / kUnit; i < (offset + bytes + kUnit - 1) / kUnit; ++i) {
      Record& r = records_[i];
      if (r.state == State::under_way) return describe("write while an asynchronous copy is under way", i, thread, r.writer);
      if (r.state == State::written && !ordered(r.writer, r.written, thread, now)) return describe("two writes without a barrier between", i, thread, r.writer);
      const bool read_now = r.reader != kNobody && r.was_read.block == now.block;
      const bool harmless = r.reader == thread || (r.reader_warp == thread / 32 && r.was_read.warp < now.warp);
      if (read_now && !harmless) return describe("write without a barrier after another thread's read", i, thread, r.reader);
      r.state = state;
      r.fenced = false;
      r.writer = thread;
      r.written = now;
    }
    return {};
  }

  static void remember_reader(Record& r, int thread, Moment now) {
    const int warp = thread / 32;
    if (r.reader == kNobody || r.was_read.block < now.block) {
      r.reader = thread;
      r.reader_warp = warp;
    } else if (r.reader_warp != warp) {
      r.reader = kSeveral;
      r.reader_warp = kNobody;
    } else if (r.was_read.warp < now.warp) {
      r.reader = thread;
    } else if (r.reader != thread) {
      r.reader = kSeveralOfAWarp;
    }
    r.was_read = now;
  }

  [[nodiscard]] std::string inside(const char* what, std::size_t offset, std::size_t bytes) const {
    if (offset + bytes <= bytes_.size()) return {};
    return std::string(what) + " of shared bytes " + std::to_string(offset) + " to " + std::to_string(offset + bytes) + ", the block has " +
           std::to_string(bytes_.size());
  }
  static std::string describe(const char* what, std::size_t unit, int thread, int other) {
    std::string text = std::string("shared byte ") + std::to_string(unit * kUnit) + ": " + what + " (thread " + std::to_string(thread);
    if (other >= 0) text += " after thread " + std::to_string(other);
    if (other < kNobody) text += " after several threads";
    return text + ")";
  }

  std::vector<unsigned char> bytes_;
  std::vector<Record> records_;
};

}  // namespace norma::test
