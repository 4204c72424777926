// CUDA's built-in functions and vector types for the emulator; included by emulator.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#define TESSERA_VECTOR_TYPES(type, scalar, align2, align4)                \
  struct alignas(align2) type##2 {                                        \
    scalar x, y;                                                          \
  };                                                                      \
  struct alignas(align4) type##4 {                                        \
    scalar x, y, z, w;                                                    \
  };                                                                      \
  inline type##2 make_##type##2(scalar x, scalar y) {                     \
    return {x, y};                                                        \
  }                                                                       \
  inline type##4 make_##type##4(scalar x, scalar y, scalar z, scalar w) { \
    return {x, y, z, w};                                                  \
  }
TESSERA_VECTOR_TYPES(char, signed char, 2, 4)
TESSERA_VECTOR_TYPES(uchar, unsigned char, 2, 4)
TESSERA_VECTOR_TYPES(short, short, 4, 8)
TESSERA_VECTOR_TYPES(ushort, unsigned short, 4, 8)
TESSERA_VECTOR_TYPES(int, int, 8, 16)
TESSERA_VECTOR_TYPES(uint, unsigned, 8, 16)
TESSERA_VECTOR_TYPES(float, float, 8, 16)
TESSERA_VECTOR_TYPES(double, double, 16, 16)
TESSERA_VECTOR_TYPES(longlong, long long, 16, 16)
TESSERA_VECTOR_TYPES(ulonglong, unsigned long long, 16, 16)
#undef TESSERA_VECTOR_TYPES

constexpr int warpSize = 32;

// ---- barriers and warps

unsigned __activemask() = delete;  // what it returns depends on scheduling

inline void __syncthreads() {
  tessera::emulator::barrier(false);
}
inline int __syncthreads_count(int flag) {
  return tessera::emulator::barrier(flag != 0);
}
inline int __syncthreads_or(int flag) {
  return tessera::emulator::barrier(flag != 0) > 0;
}
inline int __syncthreads_and(int flag) {
  return tessera::emulator::barrier(flag == 0) == 0;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  int nothing = 0;
  tessera::emulator::together(mask, "__syncwarp", nothing, [](int**) {});
}

namespace tessera::emulator {

// Every lane gives a value and the lane it reads.
template <class T>
T shuffle(unsigned mask, const char* operation, T value, int source) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  struct Exchange {
    T value, result;
    int source;
  } own{value, value, source};
  together(mask, operation, own, [](Exchange** lanes) {
    for (int i = 0; i < 32; ++i) {
      if (!lanes[i]) continue;
      if (!lanes[lanes[i]->source]) throw Error("a shuffle reads a lane outside its mask");
      lanes[i]->result = lanes[lanes[i]->source]->value;
    }
  });
  return own.result;
}

template <class T, class Combine>
T reduce(unsigned mask, const char* operation, T value, Combine combine) {
  T own = value;
  together(mask, operation, own, [&](T** lanes) {
    const T* first = nullptr;
    T total{};
    for (int i = 0; i < 32; ++i)
      if (lanes[i]) total = first ? combine(total, *lanes[i]) : *(first = lanes[i]);
    for (int i = 0; i < 32; ++i)
      if (lanes[i]) *lanes[i] = total;
  });
  return own;
}

}  // namespace tessera::emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int own = tessera::emulator::lane();
  return tessera::emulator::shuffle(mask, "__shfl_sync", value,
                                    (own & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int own = tessera::emulator::lane();
  const int source = (own & (width - 1)) - int(delta);
  return tessera::emulator::shuffle(mask, "__shfl_up_sync", value,
                                    source < 0 ? own : own - int(delta));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int own = tessera::emulator::lane();
  const int source = (own & (width - 1)) + int(delta);
  return tessera::emulator::shuffle(mask, "__shfl_down_sync", value,
                                    source >= width ? own : own + int(delta));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const int own = tessera::emulator::lane(), source = own ^ lanes;
  const bool inside = (source & ~(width - 1)) <= (own & ~(width - 1));
  return tessera::emulator::shuffle(mask, "__shfl_xor_sync", value, inside ? source : own);
}
inline unsigned __ballot_sync(unsigned mask, int flag) {
  const unsigned own = flag ? 1u << tessera::emulator::lane() : 0;
  return tessera::emulator::reduce(mask, "__ballot_sync", own, std::bit_or<unsigned>());
}
inline int __any_sync(unsigned mask, int flag) {
  return __ballot_sync(mask, flag) != 0;
}
inline int __all_sync(unsigned mask, int flag) {
  return __ballot_sync(mask, flag) == mask;
}
template <class T>
T __reduce_add_sync(unsigned mask, T value) {
  return tessera::emulator::reduce(mask, "__reduce_add_sync", value, std::plus<T>());
}
template <class T>
T __reduce_min_sync(unsigned mask, T value) {
  return tessera::emulator::reduce(mask, "__reduce_min_sync", value,
                                   [](T a, T b) { return std::min(a, b); });
}
template <class T>
T __reduce_max_sync(unsigned mask, T value) {
  return tessera::emulator::reduce(mask, "__reduce_max_sync", value,
                                   [](T a, T b) { return std::max(a, b); });
}

// ---- atomics: one fiber runs at a time, so a plain update is one. None on floats: their sum would
// depend on the order.

#define TESSERA_ATOMIC(name, expression)              \
  template <class T, class U>                         \
  T name(T* at, U given) {                            \
    static_assert(std::is_integral_v<T>);             \
    const T old = *at, value = static_cast<T>(given); \
    *at = expression;                                 \
    return old;                                       \
  }
TESSERA_ATOMIC(atomicAdd, static_cast<T>(old + value))
TESSERA_ATOMIC(atomicMin, std::min(old, value))
TESSERA_ATOMIC(atomicMax, std::max(old, value))
TESSERA_ATOMIC(atomicOr, old | value)
TESSERA_ATOMIC(atomicAnd, old& value)
TESSERA_ATOMIC(atomicExch, value)
#undef TESSERA_ATOMIC
template <class T, class U, class V>
T atomicCAS(T* at, U expected, V desired) {
  static_assert(std::is_integral_v<T>);
  const T old = *at;
  if (old == static_cast<T>(expected)) *at = static_cast<T>(desired);
  return old;
}

// ---- bits

inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
  return __builtin_popcountll(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __ffsll(long long x) {
  return __builtin_ffsll(x);
}
inline int __clz(int x) {
  return x ? __builtin_clz(unsigned(x)) : 32;
}
inline int __clzll(long long x) {
  return x ? __builtin_clzll(x) : 64;
}
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1u) << (31 - i);
  return y;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return unsigned((uint64_t(a) * b) >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ typedef unsigned __int128 Wide;
  return static_cast<unsigned long long>((Wide(a) * b) >> 64);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  unsigned y = 0;
  for (int i = 0; i < 4; ++i) y |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return y;
}

template <class To, class From>
inline To tessera_bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &value, sizeof to);
  return to;
}
inline unsigned __float_as_uint(float x) {
  return tessera_bits<unsigned>(x);
}
inline int __float_as_int(float x) {
  return tessera_bits<int>(x);
}
inline float __uint_as_float(unsigned x) {
  return tessera_bits<float>(x);
}
inline float __int_as_float(int x) {
  return tessera_bits<float>(x);
}
inline long long __double_as_longlong(double x) {
  return tessera_bits<long long>(x);
}
inline double __longlong_as_double(long long x) {
  return tessera_bits<double>(x);
}

// ---- arithmetic

template <class T>
inline T __ldg(const T* at) {
  return *at;
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float __frcp_rn(float a) {
  return 1.0f / a;
}
inline float __fsqrt_rn(float a) {
  return std::sqrt(a);
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline double __dsub_rn(double a, double b) {
  return a - b;
}
inline double __ddiv_rn(double a, double b) {
  return a / b;
}
inline double __fma_rn(double a, double b, double c) {
  return std::fma(a, b, c);
}
inline int __double2int_rn(double x) {
  return int(std::nearbyint(x));
}
inline int __float2int_rn(float x) {
  return int(std::nearbyint(x));
}
inline float __int2float_rn(int x) {
  return float(x);
}
inline float __expf(float x) {
  return std::exp(x);
}
inline float __logf(float x) {
  return std::log(x);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}

#define TESSERA_MIN_MAX(type)       \
  inline type min(type a, type b) { \
    return b < a ? b : a;           \
  }                                 \
  inline type max(type a, type b) { \
    return a < b ? b : a;           \
  }
TESSERA_MIN_MAX(int)
TESSERA_MIN_MAX(unsigned)
TESSERA_MIN_MAX(long)
TESSERA_MIN_MAX(unsigned long)
TESSERA_MIN_MAX(long long)
TESSERA_MIN_MAX(unsigned long long)
TESSERA_MIN_MAX(float)
TESSERA_MIN_MAX(double)
#undef TESSERA_MIN_MAX
