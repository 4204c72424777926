// Vectors of kLanes floats on the compiler's own vector type: arithmetic, comparison and ?: are
// plain operators, so only fused multiply-add needs an intrinsic. Included once per ISA by
// isa_target.cc, inside its anonymous namespace: no standard library templates, no weak symbols.
//
//   portable   4 lanes: SSE2 on x86-64, NEON on aarch64; multiply, then add where no FMA exists
//   avx2       8 lanes with FMA
//   avx512    16 lanes
//   emulated  16 lanes on AVX2: the code of avx512 without its instructions, for tests
//
// Contraction is off (CMakeLists.txt): a product is fused where the source says fma() and only
// there, so that every instance of a kernel rounds alike.

typedef float F __attribute__((vector_size(kLanes * 4)));
typedef int32_t I __attribute__((vector_size(kLanes * 4)));
typedef uint16_t U16 __attribute__((vector_size(kLanes * 2)));
typedef int16_t I16 __attribute__((vector_size(kLanes * 2)));
typedef int8_t I8 __attribute__((vector_size(kLanes)));

#define TESSERA_INLINE __attribute__((always_inline)) inline

TESSERA_INLINE F load(const float* p) {
  F v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

TESSERA_INLINE void store(float* p, F v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// The first n < kLanes floats; the other lanes are 0.
TESSERA_INLINE F load_first(const float* p, int n) {
  F v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

TESSERA_INLINE void store_first(float* p, F v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}

// x - 0 is x for every x, so this is a broadcast alone (0 + x would be an addition: -0 becomes 0).
TESSERA_INLINE F set(float x) {
  return x - F{};
}

TESSERA_INLINE F fma(F a, F b, F c) {
#if TESSERA_LANES == 16 && defined(__AVX512F__)
  return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif TESSERA_LANES == 16
  __m256 r[2], x[2], y[2], z[2];
  __builtin_memcpy(x, &a, sizeof a);
  __builtin_memcpy(y, &b, sizeof b);
  __builtin_memcpy(z, &c, sizeof c);
  for (int i = 0; i < 2; ++i) r[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
  F v;
  __builtin_memcpy(&v, r, sizeof v);
  return v;
#elif TESSERA_LANES == 8
  return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (F)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

TESSERA_INLINE F max(F a, F b) {
  return a > b ? a : b;
}
TESSERA_INLINE F min(F a, F b) {
  return a < b ? a : b;
}
TESSERA_INLINE F abs(F a) {
  return a < 0 ? -a : a;
}

// Reductions halve the vector down to four lanes: one fixed order for a given kLanes.
#define TESSERA_REDUCE(name, op)                                   \
  TESSERA_INLINE float name(F v) {                                 \
    float t[kLanes];                                               \
    store(t, v);                                                   \
    for (int half = kLanes / 2; half > 0; half /= 2)               \
      for (int i = 0; i < half; ++i) t[i] = op(t[i], t[i + half]); \
    return t[0];                                                   \
  }
TESSERA_INLINE float add2(float a, float b) {
  return a + b;
}
TESSERA_INLINE float max2(float a, float b) {
  return a > b ? a : b;
}
TESSERA_REDUCE(reduce_add, add2)
TESSERA_REDUCE(reduce_max, max2)
#undef TESSERA_REDUCE

// e^x to 1-2 ulp: x = n ln 2 + r, |r| <= ln 2 / 2, a degree-6 polynomial in r (Taylor terms, whose
// remainder r^7/7! is below 2^-23), 2^n through the exponent bits. Below -87.3, where the result
// leaves the normal range, 0; above 88.3, the value at 88.3.
TESSERA_INLINE F exp(F x) {
  const F lowest = set(-87.3f);
  const F clamped = min(max(x, lowest), set(88.3f));
  const F magic = set(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  const F shifted = fma(clamped, set(1.44269504088896341f), magic);
  const F n = shifted - magic;
  F r = fma(n, set(-0.693359375f), clamped);  // ln 2 in two parts, the first exact in 10 bits
  r = fma(n, set(2.12194440e-4f), r);
  F p = set(1.0f / 720);
  p = fma(p, r, set(1.0f / 120));
  p = fma(p, r, set(1.0f / 24));
  p = fma(p, r, set(1.0f / 6));
  p = fma(p, r, set(0.5f));
  p = fma(p, r, set(1.0f));
  p = fma(p, r, set(1.0f));
  const I bits = (I)p + (((I)shifted - (I)magic) << 23);
  return x < lowest ? set(0.0f) : (F)bits;
}

TESSERA_INLINE F sigmoid(F x) {
  return set(1.0f) / (set(1.0f) + exp(-x));
}
TESSERA_INLINE F tanh(F x) {
  return set(1.0f) - set(2.0f) / (set(1.0f) + exp(x + x));
}
