// Loops that do nothing but compute, or nothing but read. See norma/linalg/detail/for_each_instruction_set.inl for the macros.
namespace norma::simd::NORMA_SIMD {

// Twelve independent chains of multiply-adds: more than latency times units of any processor at hand.
NORMA_SIMD_TARGET inline float fma_chains(std::int64_t rounds) {
  Vec a0{}, a1{}, a2{}, a3{}, a4{}, a5{}, a6{}, a7{}, a8{}, a9{}, a10{}, a11{};
  Vec x = broadcast(0.999f), y = broadcast(1e-3f);
  for (std::int64_t i = 0; i < rounds; ++i) {
    a0 = a0 * x + y;
    a1 = a1 * x + y;
    a2 = a2 * x + y;
    a3 = a3 * x + y;
    a4 = a4 * x + y;
    a5 = a5 * x + y;
    a6 = a6 * x + y;
    a7 = a7 * x + y;
    a8 = a8 * x + y;
    a9 = a9 * x + y;
    a10 = a10 * x + y;
    a11 = a11 * x + y;
#if NORMA_HAS_VECTOR_EXTENSION
    // Equal chains must not be merged into one.
    asm volatile(""
                 : "+x"(a0), "+x"(a1), "+x"(a2), "+x"(a3), "+x"(a4), "+x"(a5), "+x"(a6), "+x"(a7), "+x"(a8), "+x"(a9), "+x"(a10),
                   "+x"(a11));
#endif
  }
  return sum_of_lanes(a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7 + a8 + a9 + a10 + a11);
}

// Four streams: with one, the processor's prefetching is the limit and not the memory.
NORMA_SIMD_TARGET inline float sum_of(const float* p, std::int64_t count) {
  Vec a{}, b{}, c{}, d{};
  const std::int64_t quarter = count / 4 / kWidth * kWidth;
  for (std::int64_t i = 0; i < quarter; i += kWidth) {
    a += load(p + i);
    b += load(p + quarter + i);
    c += load(p + 2 * quarter + i);
    d += load(p + 3 * quarter + i);
  }
  return sum_of_lanes(a + b + c + d);
}

}  // namespace norma::simd::NORMA_SIMD
