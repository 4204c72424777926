// CUDA C++ on the host, for tests: a __global__ function runs block after block, every CUDA thread
// as a fiber with a stack of its own, all in the calling thread. Functions of a whole warp or block
// switch fibers, nothing else does. kernels/cuda/device.cuh includes this where nvcc does not read.
//
// What hardware leaves undefined is reported as Error: a barrier or warp function that not all its
// threads reach, different warp functions at once, a write just outside dynamic shared memory. The
// order of threads is a setting: one warp runs to its next barrier before another starts, so that a
// missing barrier shows as another result in some order. Shared memory starts as 0xFF bytes (NaN).
// __syncthreads means every thread of the block here: an exited one is an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static __attribute__((section("tessera_shared")))
#define __constant__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define TESSERA_DYNAMIC_SHARED(name) \
  unsigned char* const name = ::tessera::emulator::dynamic_shared()

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace tessera::emulator {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Of the warps of a block, and of the lanes of a warp between two of its functions.
enum class Order { kForward, kReverse, kRandom };
void set_order(Order order, uint64_t seed = 0);

// Runs body once per thread of every block, with dynamic shared memory of the given size.
// `kernel` names it in errors.
void run_blocks(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
                const std::function<void()>& body);

template <class... Parameters, class... Arguments>
void run(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
         size_t shared_bytes, Arguments... arguments) {
  run_blocks(name, grid, block, shared_bytes, [=] { kernel(arguments...); });
}

unsigned char* dynamic_shared();
unsigned lane();

// Waits for all lanes of `mask`, each in the same operation. The last one to arrive gets the lanes'
// payloads (null where not in the mask), does the operation for all of them and calls release; the
// others get null when it has.
void** arrive(uint32_t mask, const char* operation, void* payload);
void release(uint32_t mask);

// While one lives, the thread sanitizer overlooks what this thread reads and writes.
struct Unwatched {
  Unwatched();
  ~Unwatched();
};

// One operation of a warp: complete(T* payloads[32]) runs once. It may touch payloads and registers
// of the lanes, which the hardware exchanges; memory of the kernel belongs before or after it, in
// the lane that names it, because the operation itself orders no memory.
template <class T, class Complete>
void together(uint32_t mask, const char* operation, T& payload, Complete complete) {
  if (void** payloads = arrive(mask, operation, &payload)) {
    const Unwatched exchange;
    complete(reinterpret_cast<T**>(payloads));
    release(mask);
  }
}

// Waits for all threads of the block; returns in how many of them `flag` holds.
int barrier(bool flag);

// __syncwarp. Like `barrier` it orders the memory of its threads, and nothing else does.
void warp_barrier(uint32_t mask);

// Error where `at` is no multiple of `bytes`.
void check_aligned(const void* at, size_t bytes, const char* operation);

// cp.async: the copy takes place when its thread waits for its group, no earlier.
void copy_later(void* to, const void* from, size_t bytes, size_t valid_bytes);
void commit_copies();
void wait_copies(size_t groups_left);

}  // namespace tessera::emulator

#include "cuda_emulator/intrinsics.h"
