/// \file
/// The tile product of tile_product.cuh on the warpgroup instructions of sm_90a: same sources, same accumulator interface, so a kernel takes one or the other
/// as a template argument. Operands of 16 bits, or floats rounded towards zero to TF32; both with the depth contiguous.
/// Bound by: the tensor cores, and 16-byte copies into shared memory.
/// Reads only 1 / (rows + cols) of what mma.sync fetches from shared memory: the operands never pass through registers.
#pragma once

#include <norma/cuda/detail/warpgroup.cuh>
#include <norma/cuda/tile_product.cuh>

namespace norma::cuda {

/// Two warpgroups of 64 x 256: 193 KiB of shared memory, one block on a multiprocessor.
inline constexpr TilePolicy kWarpgroupBf16{128, 256, 64, 8, 1, 4, Arithmetic::bf16};
inline constexpr TilePolicy kWarpgroupF16{128, 256, 64, 8, 1, 4, Arithmetic::f16};
inline constexpr TilePolicy kWarpgroupTf32{128, 256, 32, 8, 1, 4, Arithmetic::tf32};

/// Block tile of `kPolicy.rows` = 16 `warps_down` rows by `cols` columns, 128 bytes of depth a stage. A warpgroup owns 64 rows and cols / warps_across columns.
/// The members mean what they mean in TileProduct. `kPolicy.arithmetic` is what the element type says: bf16, f16, or tf32 for float.
template <TilePolicy kPolicy, class ElementT>
struct WarpgroupProduct {
  using Element = ElementT;
  static constexpr int kWarps = kPolicy.warps_down * kPolicy.warps_across;
  static constexpr int kThreads = kWarps * simt::kWarp;
  static constexpr int kChunk = 16 / static_cast<int>(sizeof(Element));
  static constexpr int kRowElements = 8 * kChunk;  // 128 bytes
  static constexpr int kColumns = kPolicy.cols / kPolicy.warps_across;
  static constexpr int kStageElements = (kPolicy.rows + kPolicy.cols) * kRowElements;
  static constexpr int kSharedBytes = kPolicy.stages * kStageElements * static_cast<int>(sizeof(Element));
  static constexpr int kRowSlots = 2;
  static constexpr int kRowLanes = 4;
  static constexpr int kRun = 2;
  static constexpr TilePolicy policy = kPolicy;

  static_assert(kPolicy.warps_down % 4 == 0 && kPolicy.rows == 16 * kPolicy.warps_down, "a warpgroup is four warps of 16 rows each, one below the other");
  static_assert(kColumns == 64 || kColumns == 128 || kColumns == 256);
  static_assert(kPolicy.depth == kRowElements, "a stage is 128 bytes deep");
  static_assert(kPolicy.stages >= 3, "one stage is multiplied, one is waited for, the others are on their way");
  static_assert(kPolicy.arithmetic == (sizeof(Element) == 4                  ? Arithmetic::tf32
                                       : std::is_same_v<Element, BFloat16> ? Arithmetic::bf16
                                                                           : Arithmetic::f16));

  /// One thread's part of the tile.
  struct Accumulator {
    float value[kColumns / 2];

    NORMA_DEVICE void fill(float v) {
      NORMA_UNROLL
      for (int i = 0; i < kColumns / 2; ++i) value[i] = v;
    }
    /// f(int slot, int row, int col, float& value): row and col in the tile. A row's columns ascend.
    template <class F>
    NORMA_DEVICE void for_each(F f) {
      visit([&](int slot, int row, int col, float& low, float& high) {
        f(slot, row, col, low);
        f(slot, row, col + 1, high);
      });
    }
    /// f(int slot, int row, int col, Vec<float, kRun>)
    template <class F>
    NORMA_DEVICE void for_each_run(F f) {
      visit([&](int slot, int row, int col, float low, float high) { f(slot, row, col, simt::Vec<float, kRun>{{low, high}}); });
    }
    /// f(int slot, int row)
    template <class F>
    NORMA_DEVICE void for_each_row(F f) {
      f(0, first_row());
      f(1, first_row() + 8);
    }

   private:
    static NORMA_DEVICE int first_row() { return simt::warp_index() % kPolicy.warps_down * 16 + simt::lane_index() / 4; }
    static NORMA_DEVICE int first_col() { return simt::warp_index() / kPolicy.warps_down * kColumns + 2 * (simt::lane_index() % 4); }
    template <class F>
    NORMA_DEVICE void visit(F f) {
      NORMA_UNROLL
      for (int slot = 0; slot < 2; ++slot) {
        NORMA_UNROLL
        for (int j = 0; j < kColumns / 8; ++j) f(slot, first_row() + 8 * slot, first_col() + 8 * j, value[4 * j + 2 * slot], value[4 * j + 2 * slot + 1]);
      }
    }
  };

  /// acc(row, col) += sum over k in [0, depth) of A(row, k) B(col, k). `shared_offset` is a multiple of 1024. All threads of the block call it; on return the shared
  /// memory may be overwritten.
  template <class SourceA, class SourceB>
  static NORMA_DEVICE void accumulate(Accumulator& acc, const SourceA& a, const SourceB& b, std::int64_t depth, int shared_offset) {
    const auto memory = simt::shared_array<Element>(shared_offset, kPolicy.stages * kStageElements);
    const std::int64_t steps = detail::ceil_div(depth, kPolicy.depth);
    const auto fetch = [&](std::int64_t step) {
      if (step < steps) {
        const int at = static_cast<int>(step % kPolicy.stages) * kStageElements;
        constexpr int kPieces = (kPolicy.rows + kPolicy.cols) * 8;
        for (int p = simt::thread_index(); p < kPieces; p += kThreads) {
          const int row = p / 8, piece = p % 8;  // rows of A, then those of B
          const std::int64_t k = step * kPolicy.depth + piece * kChunk;
          const Element* const from = row < kPolicy.rows ? a.chunk(row, k) : b.chunk(row - kPolicy.rows, k);
          const bool there = from != nullptr && k < depth;
          simt::copy_async<16>(memory, at + row * kRowElements + (piece ^ row % 8) * kChunk, from, there);
        }
      }
      simt::copy_async_commit();
    };
    simt::warpgroup_registers(acc.value);
    constexpr int kAhead = kPolicy.stages - 2;
    for (int s = 0; s < kAhead; ++s) fetch(s);
    const int first_row = simt::warp_index() % kPolicy.warps_down / 4 * 64;
    const int first_col = simt::warp_index() / kPolicy.warps_down * kColumns;
    for (std::int64_t step = 0; step < steps; ++step) {
      simt::copy_async_wait<kAhead - 1>();
      simt::async_proxy_fence();
      // Everybody's part of this step is there, and everybody has waited for the products of two steps ago: that stage is free.
      simt::block_barrier();
      fetch(step + kAhead);
      const int at = static_cast<int>(step % kPolicy.stages) * kStageElements;
      const simt::SharedOperand tile_a = simt::shared_operand(memory, at + first_row * kRowElements);
      const simt::SharedOperand tile_b = simt::shared_operand(memory, at + (kPolicy.rows + first_col) * kRowElements);
      simt::warpgroup_begin();
      NORMA_UNROLL
      for (int i = 0; i < 4; ++i) {
        simt::warpgroup_mma<MmaElement, kColumns>(acc.value, tile_a.later(32 * i), tile_b.later(32 * i), true);
      }
      simt::warpgroup_commit();
      simt::warpgroup_wait<1>();
    }
    simt::warpgroup_finish(acc.value);
    simt::copy_async_wait<0>();
    simt::block_barrier();
  }

 private:
  using MmaElement = std::conditional_t<sizeof(Element) == 4, simt::Tf32, Element>;
};

}  // namespace norma::cuda
