// Products of one 4-byte word of x with kLanes words of weights, added to kLanes sums: one type per
// element. Words hold kGroup neighbours along k (kernel_table.h). Word is what a tile loads of x
// for its products. aarch64 has files of its own for both: dot-neon-inl.h.

#if defined(__aarch64__)
#include "cpu/dot-neon-inl.h"
#else

using Word = I;  // in every lane

TESSERA_INLINE Word word_of(const void* p) {
  int32_t word;
  __builtin_memcpy(&word, p, 4);
  return word - I{};
}

#if TESSERA_LANES == 16 && !defined(__AVX512F__)
#define TESSERA_DOT __attribute__((noinline))  // emulated: a dozen instructions, and no registers
#else
#define TESSERA_DOT TESSERA_INLINE
#endif

struct Float32 {
  static constexpr Element kElement = Element::kFloat32;
  static constexpr int kGroup = 1;
  using Sum = F;
  TESSERA_INLINE static F dot(F sum, Word x, I w) { return fma((F)x, (F)w, sum); }
};

// The second product of a pair first, each fused, as vdpbf16ps does it; the instruction takes
// denormals for 0, the others here do not.
struct Bfloat16 {
  static constexpr Element kElement = Element::kBfloat16;
  static constexpr int kGroup = 2;
  using Sum = F;
  TESSERA_DOT static F dot(F sum, Word x, I w) {
#if TESSERA_LANES == 16 && defined(__AVX512BF16__)
    return (F)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)w);
#else
    const I high = I{} + int32_t(0xffff0000);
    sum = fma((F)(x & high), (F)(w & high), sum);
    return fma((F)(x << 16), (F)(w << 16), sum);
#endif
  }
};

#if TESSERA_LANES == 16 && (defined(__AVX512VNNI__) || !defined(__AVX512F__))
#define TESSERA_INT8_BYTES  // 512-bit vpdpbusd, or its emulation
#elif TESSERA_LANES == 8 && defined(__AVXVNNI__)
#define TESSERA_INT8_BYTES
#endif

struct Int8 {
  static constexpr Element kElement = Element::kInt8;
  using Sum = I;
#if defined(TESSERA_INT8_BYTES)
  static constexpr int kGroup = 4;  // x unsigned, w signed bytes
  TESSERA_DOT static I dot(I sum, Word x, I w) {
    // In assembly: as an intrinsic, gcc 12 spills the sums, and would fold the broadcast of x into
    // the operand that is signed.
#if defined(__AVX512VNNI__)
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
#elif defined(__AVXVNNI__)
    asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(x), "x"(w));
#else
    for (int shift = 0; shift < 32; shift += 8)
      sum += (x >> shift & 255) * ((w << (24 - shift)) >> 24);
#endif
    return sum;
  }
#else
  static constexpr int kGroup = 2;  // x and w int16
  TESSERA_INLINE static I dot(I sum, Word x, I w) {
#if TESSERA_LANES == 16
    return sum + (I)_mm512_madd_epi16((__m512i)x, (__m512i)w);
#elif TESSERA_LANES == 8
    return sum + (I)_mm256_madd_epi16((__m256i)x, (__m256i)w);
#elif defined(__SSE2__)
    return sum + (I)_mm_madd_epi16((__m128i)x, (__m128i)w);
#else
    return sum + (x >> 16) * (w >> 16) + ((x << 16) >> 16) * ((w << 16) >> 16);
#endif
  }
#endif
};

#if TESSERA_LANES == 16 && defined(__AVX512BF16__)
constexpr bool kNativeBf16 = true;
#else
constexpr bool kNativeBf16 = false;
#endif

#endif  // not aarch64

#if defined(__AVX512F__)
#define TESSERA_REGISTER "v"
#elif TESSERA_LANES == 16
#define TESSERA_REGISTER "m"  // emulated: no such register
#elif defined(__x86_64__)
#define TESSERA_REGISTER "x"
#else
#define TESSERA_REGISTER "w"
#endif

// 24 sums where there are 32 registers, 12 where there are 16: enough to hide the latency.
template <class Dot>
int64_t spin_as(int64_t steps) {
  constexpr int kSums = kLanes == 16 ? 24 : 12;
  typename Dot::Sum sums[kSums] = {};
  Word x = {};
  I w = {};
  for (int64_t i = 0; i < steps; ++i)
    for (auto& sum : sums) {
      asm volatile("" : "+" TESSERA_REGISTER(x), "+" TESSERA_REGISTER(w));  // another x, another w
      sum = Dot::dot(sum, x, w);
      asm volatile("" : "+" TESSERA_REGISTER(sum));
    }
  return steps * kSums * kLanes * Dot::kGroup;
}
