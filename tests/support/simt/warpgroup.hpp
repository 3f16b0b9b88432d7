/// \file
/// The warpgroup products of kernels/norma/cuda/detail/warpgroup.cuh for the emulation. A product reads shared memory only when somebody waits for it, so what was
/// overwritten too early, or written without async_proxy_fence, is found.
#pragma once

#include <array>

#include <norma/cuda/detail/simt.cuh>

namespace norma::cuda::simt {

inline constexpr bool kHasWarpgroupProducts = true;

struct SharedOperand {
  std::size_t start = 0;  // byte offset
  [[nodiscard]] SharedOperand later(int bytes) const {
    if (bytes % 32 != 0) emulated_block().fail("SharedOperand::later: expected a multiple of 32 bytes");
    return {start + static_cast<std::size_t>(bytes)};
  }
};

template <class T>
SharedOperand shared_operand(Shared<T> s, int i) {
  const std::size_t start = s.place(i, 1);
  if (start % 1024 != 0) emulated_block().fail("shared_operand: byte " + std::to_string(start) + " is not a multiple of 1024");
  return {start};
}

inline void async_proxy_fence() { emulated_block().shared().fence(emulated_block().thread()); }
inline void warpgroup_begin(Where where = Where::here()) {
  emulated_block().meet("warpgroup_begin", nullptr, [](test::Block&, int) {}, where);
}
inline void warpgroup_commit(Where where = Where::here()) {
  emulated_block().meet("warpgroup_commit", nullptr, [](test::Block& block, int warp) { block.close_group(warp); }, where);
}
template <int G>
void warpgroup_wait(Where where = Where::here()) {
  emulated_block().meet("warpgroup_wait", nullptr, [](test::Block& block, int warp) { block.finish_groups(warp, G); }, where);
}

template <int Count>
void warpgroup_registers(float (& /*c*/)[Count]) {}
template <int Count>
void warpgroup_finish(float (& /*c*/)[Count], Where where = Where::here()) {
  warpgroup_wait<0>(where);
}

template <class Element, int N>
void warpgroup_mma(float (&c)[N / 2], SharedOperand a, SharedOperand b, bool accumulate, Where where = Where::here()) {
  static_assert(N == 64 || N == 128 || N == 256);
  struct Slot {
    float* c;
    SharedOperand a, b;
    bool accumulate;
  } slot{c, a, b, accumulate};
  emulated_block().meet(
      "warpgroup_mma", &slot,
      [](test::Block& block, int warp) {
        std::array<float*, kWarp> registers;
        for (int lane = 0; lane < kWarp; ++lane) registers[static_cast<std::size_t>(lane)] = static_cast<Slot*>(block.data_of(warp * kWarp + lane))->c;
        const Slot first = *static_cast<Slot*>(block.data_of(warp * kWarp));
        const test::Moment issued = block.moment();
        block.defer(warp, [&block, warp, registers, first, issued]() -> std::string {
          constexpr int kBytes = std::is_same_v<Element, Tf32> ? 4 : 2, kDepth = 32 / kBytes;
          std::string fault;
          // Row r of an operand: 32 bytes of a row of 128, whose 16-byte pieces the address bits above 128 permute.
          const auto row_of = [&](SharedOperand operand, int r, double (&row)[kDepth]) {
            unsigned char bytes[32];
            for (std::size_t piece = 0; piece < 2; ++piece) {
              const std::size_t linear = operand.start + static_cast<std::size_t>(r / 8) * 1024 + static_cast<std::size_t>(r % 8) * 128 + piece * 16;
              const std::string wrong =
                  block.shared().read_for_product(linear ^ ((linear >> 7 & 7) << 4), 16, bytes + 16 * piece, warp * kWarp, issued);
              if (!wrong.empty() && fault.empty()) fault = wrong;
            }
            for (int k = 0; k < kDepth; ++k) {
              if constexpr (kBytes == 4) {
                std::uint32_t bits;
                std::memcpy(&bits, bytes + 4 * k, 4);
                row[k] = static_cast<double>(std::bit_cast<float>(bits & 0xffffe000u));
              } else {
                std::uint16_t bits;
                std::memcpy(&bits, bytes + 2 * k, 2);
                row[k] = static_cast<double>(to_float(Element{bits}));
              }
            }
          };
          double am[16][kDepth], bm[N][kDepth];
          for (int r = 0; r < 16; ++r) row_of(first.a, 16 * (warp % 4) + r, am[r]);
          for (int r = 0; r < N; ++r) row_of(first.b, r, bm[r]);
          if (!fault.empty()) return fault;
          for (int lane = 0; lane < kWarp; ++lane) {
            for (int i = 0; i < N / 2; ++i) {
              const int row = lane / 4 + (i % 4 >= 2 ? 8 : 0), col = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
              float& value = registers[static_cast<std::size_t>(lane)][i];
              double sum = first.accumulate ? static_cast<double>(value) : 0.0;
              for (int k = 0; k < kDepth; ++k) sum += am[row][k] * bm[col][k];
              value = static_cast<float>(sum);
            }
          }
          return {};
        });
      },
      where);
}

}  // namespace norma::cuda::simt
