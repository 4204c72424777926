// The products of dot-inl.h on aarch64. x is one word in lane 0, which the by-element forms
// broadcast for nothing; in assembly, because gcc 12 otherwise broadcasts it and keeps the sums in
// memory as well.

using Word = float;  // the bits of a word

TESSERA_INLINE Word word_of(const void* p) {
  return load_as<float>(p);
}

TESSERA_INLINE F fma_word(F sum, Word x, F w) {
  asm("fmla %0.4s, %1.4s, %2.s[0]" : "+w"(sum) : "w"(w), "w"(x));
  return sum;
}

struct Float32 {
  static constexpr Element kElement = Element::kFloat32;
  static constexpr int kGroup = 1;
  using Sum = F;
  TESSERA_INLINE static F dot(F sum, Word x, I w) { return fma_word(sum, x, (F)w); }
};

struct Bfloat16 {
  static constexpr Element kElement = Element::kBfloat16;
  static constexpr int kGroup = 2;
  using Sum = F;
  TESSERA_INLINE static F dot(F sum, Word x, I w) {
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    // Rounds both products' sum and the result to odd: other bits than two fused products have.
    asm("bfdot %0.4s, %1.8h, %2.2h[0]" : "+w"(sum) : "w"(w), "w"(x));
    return sum;
#else
    const uint32_t word = load_as<uint32_t>(&x), high = word & 0xffff0000, low = word << 16;
    sum = fma_word(sum, load_as<Word>(&high), (F)(w & (I{} + int32_t(0xffff0000))));
    return fma_word(sum, load_as<Word>(&low), (F)(w << 16));
#endif
  }
};

struct Int8 {
  static constexpr Element kElement = Element::kInt8;
  using Sum = I;
#if defined(__ARM_FEATURE_MATMUL_INT8)
  static constexpr int kGroup = 4;  // x unsigned, w signed bytes
  TESSERA_INLINE static I dot(I sum, Word x, I w) {
    asm("sudot %0.4s, %1.16b, %2.4b[0]" : "+w"(sum) : "w"(w), "w"(x));
    return sum;
  }
#else
  static constexpr int kGroup = 2;  // x and w int16
  TESSERA_INLINE static I dot(I sum, Word x, I w) {
    const int16x4_t even = vmovn_s32((int32x4_t)w), odd = vshrn_n_s32((int32x4_t)w, 16);
    asm("smlal %0.4s, %1.4h, %3.h[0]\n\tsmlal %0.4s, %2.4h, %3.h[1]"
        : "+&w"(sum)
        : "w"(even), "w"(odd), "x"(x));  // x: registers 0-15 alone have elements of 16 bits
    return sum;
  }
#endif
};

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
constexpr bool kNativeBf16 = true;
#else
constexpr bool kNativeBf16 = false;
#endif
