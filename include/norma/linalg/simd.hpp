/// \file
/// Which vector instructions to use, and short vectors for the loops that use them.
///
/// Users give no architecture flags. Hot loops are written once, in `.inl` files, over the short vector type `Vec`, and compiled
/// once per instruction set into `norma::simd::generic`, `::avx2` and `::avx512`: each inclusion sets the target attribute of its
/// functions. Which one runs is decided once a process, from the processor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include <norma/config.hpp>
#include <norma/linalg/activation.hpp>

namespace norma {

enum class InstructionSet : std::uint8_t {
  generic,  ///< what the compiler's default target offers: SSE2, NEON, or plain floats
  avx2,     ///< AVX2 and FMA
  avx512,   ///< AVX-512 F, BW, DQ and VL
};

constexpr std::string_view to_string(InstructionSet set) noexcept {
  switch (set) {
    case InstructionSet::generic: return "generic";
    case InstructionSet::avx2: return "avx2";
    case InstructionSet::avx512: return "avx512";
  }
  return "unknown";
}

/// Whether this processor and build can run `set`.
inline bool available(InstructionSet set) noexcept {
#if NORMA_X86_DISPATCH
  switch (set) {
    case InstructionSet::generic: return true;
    case InstructionSet::avx2: return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
    case InstructionSet::avx512:
      return NORMA_X86_AVX512 != 0 && available(InstructionSet::avx2) && __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
             __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
  }
  return false;
#else
  return set == InstructionSet::generic;
#endif
}

/// The best one of this process, found at the first call.
inline InstructionSet instruction_set() noexcept {
  static const InstructionSet best = available(InstructionSet::avx512) ? InstructionSet::avx512
                                     : available(InstructionSet::avx2) ? InstructionSet::avx2
                                                                       : InstructionSet::generic;
  return best;
}

}  // namespace norma

// The object `name` of `set`'s namespace: how run-time code reaches what an `.inl` file defines, usually a table of its functions.
#if NORMA_X86_DISPATCH && !NORMA_X86_AVX512
#define NORMA_SIMD_SELECT(set, name) ((set) == ::norma::InstructionSet::generic ? ::norma::simd::generic::name : ::norma::simd::avx2::name)
#elif NORMA_X86_DISPATCH
#define NORMA_SIMD_SELECT(set, name)                                      \
  ((set) == ::norma::InstructionSet::avx512 ? ::norma::simd::avx512::name \
   : (set) == ::norma::InstructionSet::avx2 ? ::norma::simd::avx2::name   \
                                            : ::norma::simd::generic::name)
#else
#define NORMA_SIMD_SELECT(set, name) (static_cast<void>(set), ::norma::simd::generic::name)
#endif

#define NORMA_SIMD_FILE <norma/linalg/detail/simd.inl>
#include <norma/linalg/detail/for_each_instruction_set.inl>
#undef NORMA_SIMD_FILE
