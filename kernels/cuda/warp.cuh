// What a warp does together: matrix products, fragment loads, asynchronous copies, conversions. PTX
// of sm_80 and later under nvcc; elsewhere the same on the emulator, product by product in float32.
//
// Fragments, for lane = 4 g + t (g 0..7, t 0..3), two 16-bit values a word, the lower column first:
//   A 16 x 16: words (row, column) = (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8)
//   B 16 x 8:  words (row, column) = (2t, g), (2t + 8, g), the lower row first
//   C 16 x 8:  floats (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1)
// Two neighbouring C tiles, packed, are therefore one A fragment. The k = 8 product takes the first
// half of A's and B's words.
#pragma once

#include "device.cuh"

namespace tessera::cuda {

enum class Element { kBfloat16, kFloat16 };

constexpr unsigned kAllLanes = 0xffffffffu;

#if !defined(__CUDACC__)

namespace host {

inline float bfloat16_to_float(uint16_t bits) {
  return __uint_as_float(uint32_t(bits) << 16);
}

inline float float16_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
  if (rest >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  // The exponent is rebased by a product, which is exact and takes subnormal values along.
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
}

inline uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t(bits >> 16 | 0x40u);
  return uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline uint16_t float_to_float16(float x) {
  const uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return uint16_t(sign | 0x7fffu);
  if (rest >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // rounds to 65536 or more
  if (rest < 0x38800000u) {                                  // below 2^-14: subnormal
    const float units = __uint_as_float(rest) * 0x1p24f;
    return uint16_t(sign | uint32_t(std::nearbyint(units)));
  }
  return uint16_t(sign | ((rest + 0xfffu + (rest >> 13 & 1u) - 0x38000000u) >> 13));
}

template <Element E>
float widen(uint16_t bits) {
  return E == Element::kBfloat16 ? bfloat16_to_float(bits) : float16_to_float(bits);
}

// d += a b for a whole warp: kWords words of A and kWords / 2 of B a lane.
template <Element E, int kWords>
void multiply(float* d, const uint32_t* a, const uint32_t* b) {
  struct Operands {
    float* d;
    const uint32_t *a, *b;
  } own{d, a, b};
  emulator::together(kAllLanes, kWords == 4 ? "mma m16n8k16" : "mma m16n8k8", own,
                     [](Operands** lanes) {
                       constexpr int K = 4 * kWords;
                       float left[16][K], right[K][8];
                       for (int lane = 0; lane < 32; ++lane) {
                         const int g = lane / 4, t = lane % 4;
                         for (int i = 0; i < 2 * kWords; ++i) {
                           const int row = g + 8 * (i / 2 % 2), k = 2 * t + 8 * (i / 4) + i % 2;
                           left[row][k] = widen<E>(uint16_t(lanes[lane]->a[i / 2] >> 16 * (i % 2)));
                         }
                         for (int i = 0; i < kWords; ++i)
                           right[2 * t + 8 * (i / 2) + i % 2][g] =
                               widen<E>(uint16_t(lanes[lane]->b[i / 2] >> 16 * (i % 2)));
                       }
                       for (int row = 0; row < 16; ++row) {
                         float sum[8];
                         for (int n = 0; n < 8; ++n)
                           sum[n] = lanes[row % 8 * 4 + n / 2]->d[row / 8 * 2 + n % 2];
                         for (int k = 0; k < K; ++k)  // a product of two 16-bit values is exact
                           for (int n = 0; n < 8; ++n) sum[n] += left[row][k] * right[k][n];
                         for (int n = 0; n < 8; ++n)
                           lanes[row % 8 * 4 + n / 2]->d[row / 8 * 2 + n % 2] = sum[n];
                       }
                     });
}

// Lane i names row i % 8 of matrix i / 8; every lane gets one word of each of kCount matrices.
template <int kCount, bool kTransposed>
void load_matrices(uint32_t* words, const void* row) {
  struct Request {
    uint32_t* words;
    uint16_t row[8];
  } own{words, {}};
  if (emulator::lane() < 8 * kCount) {
    emulator::check_aligned(row, 16, "ldmatrix");
    for (int i = 0; i < 8; ++i) own.row[i] = static_cast<const uint16_t*>(row)[i];
  }
  emulator::together(kAllLanes, "ldmatrix", own, [](Request** lanes) {
    for (int m = 0; m < kCount; ++m)
      for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4;
        uint32_t low, high;
        if (kTransposed) {
          low = lanes[8 * m + 2 * t]->row[g];
          high = lanes[8 * m + 2 * t + 1]->row[g];
        } else {
          low = lanes[8 * m + g]->row[2 * t];
          high = lanes[8 * m + g]->row[2 * t + 1];
        }
        lanes[lane]->words[m] = low | high << 16;
      }
  });
}

}  // namespace host

#else

__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

#endif

// d[4] += a (16 x 16) b (16 x 8)
template <Element E>
__device__ __forceinline__ void mma16(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
#if defined(__CUDACC__)
  if constexpr (E == Element::kBfloat16)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  const uint32_t b[2] = {b0, b1};
  host::multiply<E, 4>(d, a, b);
#endif
}

// d[4] += a (16 x 8: two words) b (8 x 8)
template <Element E>
__device__ __forceinline__ void mma8(float* d, const uint32_t* a, uint32_t b0) {
#if defined(__CUDACC__)
  if constexpr (E == Element::kBfloat16)
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
#else
  host::multiply<E, 2>(d, a, &b0);
#endif
}

// Four 8 x 8 matrices of 16-bit values in shared memory: lane i gives the address of row i % 8 of
// matrix i / 8, 16-byte aligned.
__device__ __forceinline__ void load_matrices4(uint32_t* words, const void* row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
#else
  host::load_matrices<4, false>(words, row);
#endif
}

__device__ __forceinline__ void load_matrices4_transposed(uint32_t* words, const void* row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
#else
  host::load_matrices<4, true>(words, row);
#endif
}

// Two matrices: lanes 0..15 give addresses; the others' must be valid too.
__device__ __forceinline__ void load_matrices2(uint32_t* words, const void* row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(words[0]), "=r"(words[1])
               : "r"(shared_address(row))
               : "memory");
#else
  host::load_matrices<2, false>(words, row);
#endif
}

__device__ __forceinline__ void load_matrices2_transposed(uint32_t* words, const void* row) {
#if defined(__CUDACC__)
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(words[0]), "=r"(words[1])
               : "r"(shared_address(row))
               : "memory");
#else
  host::load_matrices<2, true>(words, row);
#endif
}

// 16 bytes from global to shared memory, not through L1, behind this thread's back.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global))
               : "memory");
#else
  emulator::copy_later(shared, global, 16, 16);
#endif
}

// Closes a group of this thread's copies.
__device__ __forceinline__ void commit_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulator::commit_copies();
#endif
}

// Waits for all but the last kGroups groups of this thread; a barrier shows them to the others.
template <int kGroups>
__device__ __forceinline__ void wait_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#else
  emulator::wait_copies(kGroups);
#endif
}

// Two floats as one word, rounded to nearest even, `low` in the lower half.
template <Element E>
__device__ __forceinline__ uint32_t pack(float low, float high) {
#if defined(__CUDACC__)
  uint32_t word;
  if constexpr (E == Element::kBfloat16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  if (E == Element::kBfloat16)
    return host::float_to_bfloat16(low) | uint32_t(host::float_to_bfloat16(high)) << 16;
  return host::float_to_float16(low) | uint32_t(host::float_to_float16(high)) << 16;
#endif
}

template <Element E>
__device__ __forceinline__ float unpack_low(uint32_t word) {
  if constexpr (E == Element::kBfloat16) return __uint_as_float(word << 16);
#if defined(__CUDACC__)
  float x;
  asm("{.reg .b16 l, h;\n mov.b32 {l, h}, %1;\n cvt.f32.f16 %0, l;}" : "=f"(x) : "r"(word));
  return x;
#else
  return host::float16_to_float(uint16_t(word));
#endif
}

template <Element E>
__device__ __forceinline__ float unpack_high(uint32_t word) {
  if constexpr (E == Element::kBfloat16) return __uint_as_float(word & 0xffff0000u);
#if defined(__CUDACC__)
  float x;
  asm("{.reg .b16 l, h;\n mov.b32 {l, h}, %1;\n cvt.f32.f16 %0, h;}" : "=f"(x) : "r"(word));
  return x;
#else
  return host::float16_to_float(uint16_t(word >> 16));
#endif
}

// 2^x to about 2 units in the last place; results below 2^-126 are 0.
__device__ __forceinline__ float exp2_approximate(float x) {
#if defined(__CUDACC__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
#endif
}

// Sums and maxima over the four lanes that hold a row of a C tile: the same bits in all four.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

}  // namespace tessera::cuda
