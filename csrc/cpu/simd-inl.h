// Vectors of kLanes 4-byte words on the compiler's own vector type: arithmetic, comparison and ?:
// are plain operators, so only fused multiply-add and the products of narrow types (dot-inl.h) need
// intrinsics. Included once per ISA by isa_target.cc, inside its anonymous namespace: no standard
// library templates, no weak symbols.
//
//   portable   4 lanes: SSE2 on x86-64, NEON on aarch64; multiply, then add where no FMA exists
//   neonbf16   4 lanes, with products of bfloat16 and of int8
//   avx2       8 lanes with FMA; avxvnni besides with products of int8
//   avx512    16 lanes; avx512vnni, avx512bf16 and amx with products of int8 and of bfloat16
//   emulated  16 lanes on AVX2: the code of avx512bf16 without its instructions, for tests
//
// Contraction is off (CMakeLists.txt): a product is fused where the source says fma() and only
// there, so that every instance of a kernel rounds alike.

typedef float F __attribute__((vector_size(kLanes * 4)));
typedef int32_t I __attribute__((vector_size(kLanes * 4)));
typedef uint32_t U __attribute__((vector_size(kLanes * 4)));
typedef uint16_t U16 __attribute__((vector_size(kLanes * 2)));
typedef int16_t I16 __attribute__((vector_size(kLanes * 2)));
typedef int8_t I8 __attribute__((vector_size(kLanes)));

#define TESSERA_INLINE __attribute__((always_inline)) inline

template <class V>
TESSERA_INLINE V load_as(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class V>
TESSERA_INLINE void store_as(void* p, V v) {
  __builtin_memcpy(p, &v, sizeof v);
}

TESSERA_INLINE F load(const float* p) {
  return load_as<F>(p);
}

TESSERA_INLINE void store(float* p, F v) {
  store_as(p, v);
}

#if TESSERA_LANES == 8
TESSERA_INLINE __m256i first_mask(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#endif

// The first n < kLanes words; the other lanes are 0.
TESSERA_INLINE I load_first_words(const void* p, int n) {
#if TESSERA_LANES == 16 && defined(__AVX512F__)
  return (I)_mm512_maskz_loadu_epi32(__mmask16((1u << n) - 1), p);
#elif TESSERA_LANES == 8
  return (I)_mm256_maskload_epi32(static_cast<const int*>(p), first_mask(n));
#else
  I v = {};
  __builtin_memcpy(&v, p, n * 4);
  return v;
#endif
}

TESSERA_INLINE F load_first(const float* p, int n) {
  return (F)load_first_words(p, n);
}

TESSERA_INLINE void store_first(float* p, F v, int n) {
#if TESSERA_LANES == 16 && defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), (__m512)v);
#elif TESSERA_LANES == 8
  _mm256_maskstore_ps(p, first_mask(n), (__m256)v);
#else
  __builtin_memcpy(p, &v, n * 4);
#endif
}

// The first n elements of a narrow vector.
template <class V, class T>
TESSERA_INLINE void store_narrow(T* p, V v, int n) {
  if (n == kLanes)
    store_as(p, v);
  else
    __builtin_memcpy(p, &v, n * sizeof(T));
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

// a > b ? a : b, which is what the instruction does with NaN and -0 too; gcc 12 makes two of it.
TESSERA_INLINE F max(F a, F b) {
#if TESSERA_LANES == 16 && defined(__AVX512F__)
  return (F)_mm512_max_ps((__m512)a, (__m512)b);
#elif TESSERA_LANES == 8
  return (F)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}
TESSERA_INLINE F min(F a, F b) {
#if TESSERA_LANES == 16 && defined(__AVX512F__)
  return (F)_mm512_min_ps((__m512)a, (__m512)b);
#elif TESSERA_LANES == 8
  return (F)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}
TESSERA_INLINE F abs(F a) {
  return (F)((I)a & 0x7fffffff);
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

// bfloat16, rounded to nearest even. The instruction takes denormals for 0.
TESSERA_INLINE U16 to_bf16(F v) {
#if TESSERA_LANES == 16 && defined(__AVX512BF16__)
  return (U16)_mm512_cvtneps_pbh((__m512)v);
#else
  const U bits = (U)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const U quiet = bits - bits + 0x7fc0;
  return __builtin_convertvector(v == v ? rounded : quiet, U16);
#endif
}

TESSERA_INLINE F from_bf16(U16 v) {
  return (F)(__builtin_convertvector(v, U) << 16);
}

// n <= kLanes elements of a row, as float32; the lanes past them are 0.
TESSERA_INLINE F load_some(const float* p, int n) {
  return n == kLanes ? load(p) : load_first(p, n);
}

TESSERA_INLINE F load_some(const uint16_t* p, int n) {  // bfloat16
  U16 v = {};
  if (n == kLanes)
    v = load_as<U16>(p);
  else
    __builtin_memcpy(&v, p, n * 2);
  return from_bf16(v);
}

TESSERA_INLINE void store_some(float* p, F v, int n) {
  if (n == kLanes)
    store(p, v);
  else
    store_first(p, v, n);
}

TESSERA_INLINE void store_some(uint16_t* p, F v, int n) {
  store_narrow(p, to_bf16(v), n);
}

template <class T, class Body>  // body(offset, vector of x, lanes that count)
TESSERA_INLINE void for_row(const T* x, int D, const Body& body) {
  int d = 0;
  for (; d + kLanes <= D; d += kLanes) body(d, load_some(x + d, kLanes), kLanes);
  if (d < D) body(d, load_some(x + d, D - d), D - d);
}

TESSERA_INLINE F first_lanes(F v, int n) {
  for (int i = n; i < kLanes; ++i) v[i] = 0;
  return v;
}

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

// e^x for x <= 0 where the result is to be rounded to bfloat16: 2^r by a cubic, at most 8e-5 off.
// Below -87.3 the value there, 1e-38.
TESSERA_INLINE F exp_coarse(F x) {
  const F scaled = max(x, set(-87.3f)) * set(1.44269504088896341f);
  const F magic = set(12582912.0f);
  const F shifted = scaled + magic;
  const F r = scaled - (shifted - magic);  // |r| <= 1/2
  F p = fma(set(0.05517166f), r, set(0.24261114f));
  p = fma(p, r, set(0.69326099f));
  p = fma(p, r, set(0.99992807f));
  return (F)((I)p + (((I)shifted - (I)magic) << 23));
}

TESSERA_INLINE F sigmoid(F x) {
  return set(1.0f) / (set(1.0f) + exp(-x));
}
TESSERA_INLINE F tanh(F x) {
  return set(1.0f) - set(2.0f) / (set(1.0f) + exp(x + x));
}
