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
inline void __threadfence() {}
inline void __threadfence_block() {}

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  tessera::emulator::warp_barrier(mask);
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

// ---- atomics: one fiber runs at a time, so a load and a store are one. They are atomic, relaxed,
// for the thread sanitizer. None on floats: their sum would depend on the order.

#define TESSERA_ATOMIC(name, expression)                                                \
  template <class T, class U>                                                           \
  T name(T* at, U given) {                                                              \
    static_assert(std::is_integral_v<T>);                                               \
    const T old = __atomic_load_n(at, __ATOMIC_RELAXED), value = static_cast<T>(given); \
    __atomic_store_n(at, expression, __ATOMIC_RELAXED);                                 \
    return old;                                                                         \
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
  const T old = __atomic_load_n(at, __ATOMIC_RELAXED);
  if (old == static_cast<T>(expected))
    __atomic_store_n(at, static_cast<T>(desired), __ATOMIC_RELAXED);
  return old;
}

// ---- bits

inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __popcll(unsigned long long x) {
  return __builtin_popcountll(x);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ typedef unsigned __int128 Wide;
  return static_cast<unsigned long long>((Wide(a) * b) >> 64);
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
inline float __uint_as_float(unsigned x) {
  return tessera_bits<float>(x);
}

// ---- arithmetic

template <class T>
inline T __ldg(const T* at) {
  return *at;
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline double __ddiv_rn(double a, double b) {
  return a / b;
}
inline int __double2int_rn(double x) {
  return int(std::nearbyint(x));
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
